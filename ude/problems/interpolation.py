"""Measured inputs as functions of time: interpolation through points, differentiable in its values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ude.errors import InputError

Kind = Literal["constant", "linear", "cubic", "pchip", "akima"]

# Up to how many knots steps stop automatically. A stop at a jump always pays off: at reltol 1e-6, steps without stops
# at 40 jumps call f 8 times as often, with 30 times the error. At a kink it does unless many fall into one step: with
# 40 kinks, stops halve the calls and divide the error by 1000; with 160 at reltol 1e-3 they multiply the calls by five.
# The error estimate handles jumps of higher derivatives. Every stop also costs about 5 ms in the torch engine.
_MOST_STOPS = {"constant": 1000, "linear": 100, "cubic": 0, "pchip": 0, "akima": 0}


class Interpolation(nn.Module):
    """A function of time through measured points: the forcing of a right-hand side.

    ``forcing(t)`` with t of any shape returns t's shape, and ``(*t.shape, channel)`` when the values have channels.
    With one grid for each trajectory, t is ``(batch,)``, as f receives it, and each trajectory uses its own grid.

    Args:
        t: Increasing times (time,), or a list of such grids, one for each trajectory, which may differ in length.
        values: Values (time,) or (time, channel), or a list of them like t. With ``trainable=True`` they are an
            `nn.Parameter` and gradients reach them: give the interpolation in `p`, or in the module that is f.
        kind: "constant" (the last measured value), "linear", "cubic" (the natural C2 spline), "pchip"
            (Fritsch & Carlson: monotone where the data are), "akima" (Akima: local, few wiggles).
        outside: "hold" keeps the first and last values outside the grid; "error" returns NaN there (`covers` says
            whether a span needs such values).
        known: Whether steps may stop at the knots. `solve` finds the interpolations that f uses (in p, in a module, in
            a closure or a global name) and stops at their knots, as with `tstops`: those of "constant" (up to 1000
            within the span) and "linear" (up to 100). More knots, and those of smoother kinds, are left to the error
            control; ``tstops=forcing.knots[0]`` stops there anyway. Fixed steps never stop automatically.

    Raises:
        InputError: Times that do not increase, another number of values than times, too few points, an unknown kind.

    Sources: F. N. Fritsch & J. Butland, SIAM J. Sci. Stat. Comput. 5 (1984) 300; H. Akima, J. ACM 17 (1970) 589.

    >>> heating = Interpolation([0.0, 1.0, 3.0], [0.0, 2.0, 0.0])
    >>> heating(torch.tensor([0.5, 2.0], dtype=torch.float64)).tolist()
    [1.0, 1.0]
    """

    grid: Tensor
    count: Tensor

    def __init__(
        self,
        t: Any,
        values: Any,
        kind: Kind = "linear",
        *,
        outside: Literal["hold", "error"] = "hold",
        trainable: bool = False,
        known: bool = True,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise InputError(
                "there is no such kind of interpolation", expected=f"one of {', '.join(get_args(Kind))}", got=repr(kind)
            )
        if outside not in ("hold", "error"):
            raise InputError("outside must be 'hold' or 'error'", got=repr(outside))
        self.kind, self.outside, self.known = kind, outside, known
        self.several = _is_list_of_grids(t)
        grids = [_grid(item, kind) for item in (t if self.several else [t])]
        columns = _values(values if self.several else [values], grids)
        self.scalar = columns[0].ndim == 1
        longest = max(len(grid) for grid in grids)
        # shorter grids are padded with +infinity, which no time reaches
        self.register_buffer("grid", torch.stack([_pad(grid, longest, float("inf")) for grid in grids]))
        self.register_buffer("count", torch.tensor([len(grid) for grid in grids]))
        padded = torch.stack([_pad(c.unsqueeze(-1) if self.scalar else c, longest, 0.0) for c in columns])
        self.values = nn.Parameter(padded, requires_grad=trainable)
        self._spline = [_spline_operator(grid) for grid in grids] if kind == "cubic" else []
        cubic = kind in ("cubic", "pchip", "akima")
        self._slopes: Tensor | None = self._all_slopes() if cubic and not trainable else None

    @property
    def knots(self) -> tuple[Float[Tensor, "time"], ...]:
        """Times at which the function or one of its derivatives jumps, a grid for each trajectory."""
        return tuple(row[: int(n)] for row, n in zip(self.grid, self.count, strict=True))

    def stops(self, start: Float[Tensor, "B"], end: Float[Tensor, "B"]) -> Float[Tensor, "B k"]:
        """Knots that steps from `start` to `end` should hit, a row for each trajectory; NaN where a row is shorter."""
        rows = self.grid.to(start)
        if self.several and len(start) % len(rows):
            # calling f raises the error that its trajectories do not match the grids
            return start.new_empty(len(start), 0)
        rows = rows.repeat(len(start) // len(rows), 1) if self.several else rows.expand(len(start), -1)
        low, high = torch.minimum(start, end).unsqueeze(-1), torch.maximum(start, end).unsqueeze(-1)
        inside = (rows > low) & (rows < high)
        if not self.known or int(inside.sum(-1).max()) > _MOST_STOPS[self.kind]:
            return start.new_empty(len(start), 0)
        return torch.where(inside, rows, float("nan"))[:, inside.any(0)]

    def covers(self, start: float, end: float) -> bool:
        """Whether every grid reaches from `start` to `end`."""
        low, high = min(start, end), max(start, end)
        return all(float(knots[0]) <= low and high <= float(knots[-1]) for knots in self.knots)

    def forward(self, t: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=self.grid.dtype, device=self.grid.device)
        if self.several and (t.ndim == 0 or t.shape[-1] != len(self.grid)):
            raise InputError(
                "t must be one time for each grid",
                expected=f"one time for each of {len(self.grid)} trajectories, shape (*, {len(self.grid)})",
                got=f"shape {tuple(t.shape)}",
            )
        # a row of times for every grid
        flat = t.reshape(-1, len(self.grid)).T if self.several else t.reshape(1, -1)
        result = self._evaluate(flat)
        result = result.transpose(0, 1) if self.several else result
        result = result.reshape(*t.shape, -1)
        return result.squeeze(-1) if self.scalar else result

    def _evaluate(self, t: Float[Tensor, "grids m"]) -> Float[Tensor, "grids m channel"]:
        last = (self.count - 1).unsqueeze(-1)
        first, final = self.grid[:, :1], self.grid.gather(1, last)
        inside = torch.minimum(torch.maximum(t, first), final).detach() if self.outside == "hold" else t.detach()
        # inside the grid t itself is used, so that derivatives with respect to time exist
        inside = torch.where((t >= first) & (t <= final), t, inside)
        left = torch.searchsorted(self.grid, inside.detach().contiguous(), right=True) - 1
        left = torch.minimum(left.clamp(min=0), last if self.kind == "constant" else last - 1)
        value = self._pick(self.values, left)
        if self.kind != "constant":
            start = self.grid.gather(1, left)
            width = (self.grid.gather(1, left + 1) - start).unsqueeze(-1)
            theta = (inside - start).unsqueeze(-1) / width
            value = self._between(value, self._pick(self.values, left + 1), theta, width, left)
        if self.outside == "error":
            beyond = ((t < first) | (t > final)).unsqueeze(-1)
            value = torch.where(beyond, torch.full_like(value, float("nan")), value)
        return value

    def _between(self, low: Tensor, high: Tensor, theta: Tensor, width: Tensor, left: Tensor) -> Tensor:
        if self.kind == "linear":
            return low + theta * (high - low)
        slopes = self._all_slopes() if self._slopes is None else self._slopes
        at_low, at_high = width * self._pick(slopes, left), width * self._pick(slopes, left + 1)
        rise = high - low
        # cubic Hermite polynomial about the left point
        return low + theta * (
            at_low + theta * (3 * rise - 2 * at_low - at_high + theta * (at_low + at_high - 2 * rise))
        )

    def _pick(self, source: Float[Tensor, "grids time channel"], index: Tensor) -> Tensor:
        return source.gather(1, index.unsqueeze(-1).expand(-1, -1, source.shape[-1]))

    def _all_slopes(self) -> Float[Tensor, "grids time channel"]:
        """Slopes at the knots, for the kinds that are cubic between them."""
        rows = []
        for i, knots in enumerate(self.knots):
            value = self.values[i, : len(knots)]
            if self.kind == "cubic":
                operator = self._spline[i].to(value)
                slope = operator @ value
            else:
                slope = (_pchip_slopes if self.kind == "pchip" else _akima_slopes)(knots, value)
            rows.append(_pad(slope, self.grid.shape[1], 0.0))
        return torch.stack(rows)

    def _apply(self, fn: Any, recurse: bool = True) -> Interpolation:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._slopes = None if self._slopes is None else fn(self._slopes)
        return self


def _is_list_of_grids(t: Any) -> bool:
    return isinstance(t, (list, tuple)) and len(t) > 0 and hasattr(t[0], "__len__")


def _grid(t: Any, kind: str) -> Float[Tensor, "time"]:
    grid = torch.as_tensor(t, dtype=torch.float64).detach()
    least = {"constant": 1, "linear": 2, "cubic": 3, "pchip": 3, "akima": 3}[kind]
    if grid.ndim != 1 or len(grid) < least:
        raise InputError(
            f"{kind} interpolation needs at least {least} times",
            expected="shape (time,)",
            got=f"shape {tuple(grid.shape)}",
        )
    wrong = (~(grid[1:] > grid[:-1])).nonzero()
    if len(wrong) or not bool(torch.isfinite(grid).all()):
        i = int(wrong[0]) if len(wrong) else int((~torch.isfinite(grid)).nonzero()[0])
        raise InputError(
            "times of an interpolation must increase and be finite", got=f"t[{i}:{i + 2}] = {grid[i : i + 2].tolist()}"
        )
    return grid


def _values(values: Sequence[Any], grids: Sequence[Tensor]) -> list[Tensor]:
    if len(values) != len(grids):
        raise InputError("values must be one list for each grid", expected=f"{len(grids)} lists", got=str(len(values)))
    columns = [torch.as_tensor(item, dtype=torch.float64).detach().clone() for item in values]
    for i, (column, grid) in enumerate(zip(columns, grids, strict=True)):
        if column.ndim not in (1, 2) or len(column) != len(grid) or column.shape[1:] != columns[0].shape[1:]:
            raise InputError(
                "values must be one for each time",
                expected=f"shape ({len(grid)},) or ({len(grid)}, channel)",
                got=f"{tuple(column.shape)}" + (f" in grid {i}" if len(grids) > 1 else ""),
            )
        if not bool(torch.isfinite(column).all()):
            raise InputError(
                "values of an interpolation must be finite", got="NaN or infinity", fix="Drop those times."
            )
    return columns


def _pad(rows: Tensor, length: int, filling: float) -> Tensor:
    return torch.cat([rows, rows.new_full((length - len(rows), *rows.shape[1:]), filling)])


def _spline_operator(t: Float[Tensor, "time"]) -> Float[Tensor, "time time"]:
    """Return the matrix from values to slopes of the natural cubic spline (second derivative zero at both ends)."""
    count = len(t)
    width = t[1:] - t[:-1]
    left = torch.zeros(count, count, dtype=t.dtype)
    right = torch.zeros(count, count, dtype=t.dtype)
    # 2 d0 + d1 = 3 (y1 - y0)/h at both ends
    for row, a, b, h in ((0, 0, 1, width[0]), (count - 1, count - 1, count - 2, width[-1])):
        left[row, a], left[row, b] = 2.0, 1.0
        sign = 1.0 if row == 0 else -1.0
        right[row, b], right[row, a] = sign * 3 / h, -sign * 3 / h
    for i in range(1, count - 1):
        before, after = 1 / width[i - 1], 1 / width[i]
        left[i, i - 1], left[i, i], left[i, i + 1] = before, 2 * (before + after), after
        right[i, i - 1], right[i, i], right[i, i + 1] = -3 * before**2, 3 * (before**2 - after**2), 3 * after**2
    result: Tensor = torch.linalg.solve(left, right)
    return result


def _secants(t: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    width = (t[1:] - t[:-1]).unsqueeze(-1)
    return width, (values[1:] - values[:-1]) / width


def _pchip_slopes(t: Float[Tensor, "time"], values: Float[Tensor, "time channel"]) -> Tensor:
    """Weighted harmonic means of the neighboring secants, zero where they differ in sign (Fritsch & Butland)."""
    width, secant = _secants(t, values)
    w1, w2 = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    same = secant[:-1] * secant[1:] > 0
    # ones in place of unused secants keep infinities out of the gradient
    before, after = torch.where(same, secant[:-1], 1.0), torch.where(same, secant[1:], 1.0)
    middle = torch.where(same, (w1 + w2) / (w1 / before + w2 / after), 0.0)
    ends = [
        _pchip_end(width[0], width[1], secant[0], secant[1]),
        _pchip_end(width[-1], width[-2], secant[-1], secant[-2]),
    ]
    return torch.cat([ends[0].unsqueeze(0), middle, ends[1].unsqueeze(0)])


def _pchip_end(h0: Tensor, h1: Tensor, s0: Tensor, s1: Tensor) -> Tensor:
    slope = ((2 * h0 + h1) * s0 - h0 * s1) / (h0 + h1)
    slope = torch.where(slope * s0 <= 0, torch.zeros_like(slope), slope)
    return torch.where((s0 * s1 < 0) & (slope.abs() > 3 * s0.abs()), 3 * s0, slope)


def _akima_slopes(t: Float[Tensor, "time"], values: Float[Tensor, "time channel"]) -> Tensor:
    """Akima's weighted means of the neighboring secants; secants beyond the ends are extrapolated linearly."""
    _, secant = _secants(t, values)
    first, last = 2 * secant[0] - secant[1], 2 * secant[-1] - secant[-2]
    m = torch.stack([2 * first - secant[0], first, *secant, last, 2 * last - secant[-1]])
    change = (m[1:] - m[:-1]).abs()
    weight_left, weight_right = change[2:], change[:-2]
    total = weight_left + weight_right
    # equal weights where both vanish; the bound is that of SciPy's Akima1DInterpolator
    known = total > 1e-9 * total.max(dim=0, keepdim=True).values
    safe = torch.where(known, total, 1.0)
    weighted = (weight_left * m[1:-2] + weight_right * m[2:-1]) / safe
    return torch.where(known, weighted, (m[1:-2] + m[2:-1]) / 2)
