"""What saving and function-calling callbacks see of a solve, leg by leg.

Events cut a solve into legs. For each leg an observer says at which times it wants to look, the leg reads the states
there together with everything else (one read, so one backward pass), and the observer takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import SolveSpec
from ude.errors import InputError
from ude.events.callbacks import Callback, FunctionCallingCallback, SavingCallback

#: Calls a user's function of (u, p, t, ...) in the shape that its author sees.
Caller = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class ObservedSegment:
    """One leg, as observers need it.

    Args:
        start, end: Where each trajectory begins and ends (B,); equal where it has ended already.
        fresh: Whose start is the start of the solve (B,).
        jumped: Whose state was changed at the start (B,).
        steps: Ends of accepted steps, NaN where a trajectory took none (B, k); may reach beyond the end.
        close: How near two times are the same (B,).
        sign: 1 forwards in time, -1 backwards (B,).
    """

    start: Float[Tensor, "B"]
    end: Float[Tensor, "B"]
    fresh: Bool[Tensor, "B"]
    jumped: Bool[Tensor, "B"]
    steps: Float[Tensor, "B k"]
    close: Float[Tensor, "B"]
    sign: Float[Tensor, "B"]


@dataclass
class Observer:
    """A `SavingCallback` or a `FunctionCallingCallback` during one solve."""

    callback: SavingCallback | FunctionCallingCallback
    wanted: Float[Tensor, "B k"]
    everystep: bool
    batch: tuple[int, ...]
    columns: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def times(self, leg: ObservedSegment) -> tuple[Float[Tensor, "B k"], Bool[Tensor, "B k"]]:
        """The times at which to look, in the order of time, and which of them count; the others are the leg's end."""
        sign, start, end = (item.unsqueeze(-1) for item in (leg.sign, leg.start, leg.end))
        running = (start != end) | leg.fresh.unsqueeze(-1)
        after, before = (self.wanted - start) * sign, (end - self.wanted) * sign
        inside = (before >= 0) & ((after > 0) | (leg.fresh.unsqueeze(-1) & (after == 0))) & running
        times = self.wanted
        if self.everystep:
            own = torch.cat([start, leg.steps, end], -1)
            good = ((leg.steps - start) * sign > 0) & ((end - leg.steps) * sign > leg.close.unsqueeze(-1))
            first = (leg.fresh | (leg.jumped & (leg.start != leg.end))).unsqueeze(-1)
            times = torch.cat([times, own], -1)
            inside = torch.cat([inside, first, good, start != end], -1)
        key, order = torch.where(inside, times * sign, float("inf")).sort(dim=-1, stable=True)
        if self.everystep:
            # a time that is wanted and the end of a step is looked at once
            again = torch.zeros_like(inside)
            again[:, 1:] = key[:, 1:] == key[:, :-1]
            key, place = torch.where(again, float("inf"), key).sort(dim=-1, stable=True)
            order = order.gather(-1, place)
        inside = torch.isfinite(key)
        count = int(inside.sum(-1).max())
        inside, times = inside[:, :count], times.gather(-1, order[:, :count])
        return torch.where(inside, times, end), inside

    def take(self, call: Caller, times: Float[Tensor, "B k"], u: Float[Tensor, "B k n"], inside: Tensor) -> None:
        """Look at the states that were read."""
        for j in range(times.shape[1]):
            # a state that is not finite is nobody's value, and 0 NaN of it would reach the gradient of the others
            which = inside[:, j] & torch.isfinite(u[:, j]).all(-1)
            if not bool(which.any()):
                continue
            state = torch.where(which.unsqueeze(-1), u[:, j], torch.nan_to_num(u[:, j].detach()))
            if isinstance(self.callback, FunctionCallingCallback):
                with torch.no_grad():
                    call(self.callback.func, state.detach(), times[:, j], which)
                continue
            value = call(self.callback.save_func, state, times[:, j])
            if not isinstance(value, Tensor) or tuple(value.shape[: len(self.batch)]) != self.batch:
                raise InputError(
                    "save_func must return a tensor with one row a trajectory",
                    expected=f"shape {(*self.batch, '...')}".replace("'", ""),
                    got=str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
                )
            self.columns.append((times[:, j], value.reshape(len(times), *value.shape[len(self.batch) :]), which))

    def finish(self) -> None:
        """Give a saving callback what was saved, one row of times and values a trajectory."""
        if not isinstance(self.callback, SavingCallback):
            return
        saved, count = self.callback.saved_values, len(self.wanted)
        if self.columns:
            times, values, inside = (torch.stack(column) for column in zip(*self.columns, strict=True))
        else:
            times = values = self.wanted.new_empty(0, count)
            inside = torch.zeros(0, count, dtype=torch.bool, device=self.wanted.device)
        t = tuple(times[inside[:, b], b] for b in range(count))
        kept = tuple(values[inside[:, b], b] for b in range(count))
        saved.t, saved.saveval = (t, kept) if self.batch else (t[0], kept[0])


def observers_of(callbacks: Sequence[Callback], spec: SolveSpec) -> list[Observer]:
    """The observers among the callbacks.

    Raises:
        InputError: Their times do not fit the batch, or lie outside the span.
    """
    found = []
    for item in callbacks:
        if isinstance(item, SavingCallback):
            found.append(Observer(item, _wanted(item.saveat, "saveat", spec), bool(item.save_everystep), spec.batch))
        elif isinstance(item, FunctionCallingCallback):
            found.append(Observer(item, _wanted(item.funcat, "funcat", spec), bool(item.func_everystep), spec.batch))
    return found


def _wanted(times: Tensor | None, name: str, spec: SolveSpec) -> Float[Tensor, "B k"]:
    if times is None:
        return spec.t0.new_empty(len(spec.t0), 0)
    if times.ndim == 0:
        return _regular(float(times), spec)
    rows = times.to(spec.t0)
    if rows.ndim == 1:
        rows = rows.expand(len(spec.t0), -1)
    elif tuple(rows.shape[:-1]) != spec.batch:
        raise InputError(
            f"{name} of a callback does not fit the batch",
            expected=f"(time,) or {(*spec.batch, 'time')}".replace("'", ""),
            got=str(tuple(rows.shape)),
        )
    rows = rows.reshape(len(spec.t0), -1)
    low, high = torch.minimum(spec.t0, spec.t1).unsqueeze(-1), torch.maximum(spec.t0, spec.t1).unsqueeze(-1)
    outside = ((rows < low) | (rows > high)).nonzero()
    if len(outside):
        lane, i = (int(x) for x in outside[0])
        raise InputError(
            f"{name} of a callback lies outside tspan",
            expected=f"times from {float(low[lane]):g} to {float(high[lane]):g}",
            got=f"{name}[{i}]={float(rows[lane, i]):g}",
        )
    return rows


def _regular(every: float, spec: SolveSpec) -> Float[Tensor, "B k"]:
    """The start, every so much later, and the end, for each trajectory."""
    length = (spec.t1 - spec.t0).abs().unsqueeze(-1)
    count = int(float(length.max()) / every + 1e-9)
    steps = torch.arange(count + 1, dtype=spec.t0.dtype, device=spec.t0.device) * every
    # a multiple that is the end but for rounding is the end
    steps = torch.where(steps < length * (1 - 1e-9), steps, float("nan")).expand(len(length), -1)
    return torch.cat([spec.t0.unsqueeze(-1) + spec.sign.unsqueeze(-1) * steps, spec.t1.unsqueeze(-1)], -1)
