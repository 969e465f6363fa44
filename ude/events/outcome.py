"""The legs put together: what was saved, and the dense output over all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec
from ude.events.event import Event
from ude.events.progress import Segment


@dataclass(frozen=True, eq=False)
class EventSolve:
    """Outcome of `solve_with_events`.

    Args:
        result: As of an engine without events, except that its values are connected to the graph; it has no record.
        events: What happened, in order.
        dense: Dense output at the times (B, T), in any order.
    """

    result: ForwardResult
    events: tuple[Event, ...]
    dense: Callable[[Float[Tensor, "B T"]], Float[Tensor, "B T n"]]


def collect(spec: SolveSpec, u0: Tensor, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Put the legs' saves together: at `saveat` each from its leg; every step one after another otherwise."""
    if spec.saveat is not None:
        still = (spec.t0 == spec.t1).view(-1, 1, 1)
        nothing = torch.full((*spec.saveat.shape, u0.shape[1]), float("nan"), dtype=u0.dtype, device=u0.device)
        total = torch.where(still, u0.unsqueeze(1), nothing)
        for _, values, inside in pieces:
            total = torch.where(inside.unsqueeze(-1), values, total)
        return spec.saveat, total
    if not pieces:
        return spec.t0.unsqueeze(-1), u0.unsqueeze(1)
    times = torch.cat([piece[0] for piece in pieces], 1)
    values = torch.cat([piece[1] for piece in pieces], 1)
    inside = torch.cat([_firsts(piece[0]) & piece[2] for piece in pieces], 1)
    count = inside.sum(1)
    order = torch.argsort((~inside).to(torch.int8), dim=1, stable=True)[:, : int(count.max())]
    # shorter trajectories repeat their end, as without events
    last = (count - 1).clamp(min=0).unsqueeze(-1)
    position = torch.minimum(torch.arange(order.shape[1], device=order.device).expand_as(order), last)
    index = order.gather(1, position)
    return times.gather(1, index), values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _firsts(times: Float[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where a row is not the repeated end of a shorter trajectory."""
    new = torch.ones_like(times, dtype=torch.bool)
    new[:, 1:] = times[:, 1:] != times[:, :-1]
    return new


def dense_of(legs: list[Segment], u0: Tensor) -> Callable[[Tensor], Tensor]:
    """Dense output over all legs; at the time of an event it gives the state before it."""

    def read(times: Float[Tensor, "B T"]) -> Float[Tensor, "B T n"]:
        total = u0.unsqueeze(1).expand(-1, times.shape[1], -1)
        for leg in legs:
            start, end = leg.start.unsqueeze(-1), leg.end.unsqueeze(-1)
            sign = torch.where(end >= start, 1.0, -1.0).to(times.dtype)
            inside = ((times - start) * sign > 0) & ((end - times) * sign >= 0)
            if bool(inside.any()):
                total = torch.where(inside.unsqueeze(-1), leg.read(torch.where(inside, times, end)), total)
        return total

    return read
