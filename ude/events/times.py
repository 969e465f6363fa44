"""Times that a user gives: as a period, as a list, or as a row for each trajectory."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import SolveSpec
from ude.errors import InputError


def time_rows(name: str, times: Tensor, t0: Float[Tensor, "B"], batch: tuple[int, ...]) -> Float[Tensor, "B k"]:
    """Return a row of times for each trajectory.

    Args:
        name: What errors call the times.
        times: Times (k,), or ``(*batch, k)``.
        t0: Start of each trajectory (B,), for dtype and device.
        batch: Shape of the batch.

    Raises:
        InputError: The shape is another one.
    """
    rows = times.to(t0)
    if rows.ndim == 1:
        return rows.expand(len(t0), -1)
    if tuple(rows.shape[:-1]) != batch:
        raise InputError(
            f"{name} must have one row of times, or one for each trajectory",
            expected=f"shape (time,) or {(*batch, 'time')}".replace("'", ""),
            got=str(tuple(rows.shape)),
        )
    return rows.reshape(len(t0), -1)


def require_inside(name: str, rows: Float[Tensor, "B k"], t0: Float[Tensor, "B"], t1: Float[Tensor, "B"]) -> None:
    """Check that times lie within the span of their trajectory; NaN is no time.

    Raises:
        InputError: One does not.
    """
    low, high = torch.minimum(t0, t1).unsqueeze(-1), torch.maximum(t0, t1).unsqueeze(-1)
    outside = ((rows < low) | (rows > high)).nonzero()
    if len(outside):
        row, i = (int(x) for x in outside[0])
        raise InputError(
            f"{name} must lie within tspan",
            expected=f"times from {float(low[row]):g} to {float(high[row]):g}",
            got=f"{float(rows[row, i]):g} at index {i}",
        )


def multiples(every: float, t0: Float[Tensor, "B"], t1: Float[Tensor, "B"]) -> Float[Tensor, "B k"]:
    """Return the start and the times `every`, 2 `every`, ... after it, up to the end of the longest span."""
    count = int(float((t1 - t0).abs().max()) / every + 1e-9)
    steps = torch.arange(count + 1, dtype=t0.dtype, device=t0.device) * every
    sign = torch.where(t1 >= t0, 1.0, -1.0).to(t0.dtype)
    return t0.unsqueeze(-1) + sign.unsqueeze(-1) * steps


def regular_times(every: float, t0: Float[Tensor, "B"], t1: Float[Tensor, "B"]) -> Float[Tensor, "B k"]:
    """Return the start, a time every `every` after it, and the end; NaN where a trajectory has ended."""
    times = multiples(every, t0, t1)
    length = (t1 - t0).abs().to(torch.float64).unsqueeze(-1)
    steps = torch.arange(times.shape[1], dtype=torch.float64, device=t0.device) * every
    # a multiple that equals the end up to rounding is the end
    before = length - steps > 1e-9 * length
    return torch.cat([torch.where(before, times, float("nan")), t1.unsqueeze(-1)], -1)


def rounding(t: Tensor, spec: SolveSpec) -> Tensor:
    """A unit of rounding of times near t."""
    return torch.finfo(t.dtype).eps * torch.maximum(t.abs(), (spec.t1 - spec.t0).abs())
