"""The segments of a solve joined: what was saved, and the dense output over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec
from ude.events.event import Event


@dataclass(frozen=True, eq=False)
class SolveSegment:
    """One segment of every trajectory between events.

    Args:
        start, end: Where each trajectory begins and ends (B,); equal where it had ended already.
        read: The dense output at the times (B, T), (B, T, n).
        times, values: What may be saved of it, (B, T) and (B, T, n).
        saved: Which of these are saved (B, T).
    """

    start: Float[Tensor, "B"]
    end: Float[Tensor, "B"]
    read: Callable[[Float[Tensor, "B T"]], Float[Tensor, "B T n"]]
    times: Float[Tensor, "B T"]
    values: Float[Tensor, "B T n"]
    saved: Bool[Tensor, "B T"]


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


def join_saves(
    spec: SolveSpec, u0: Float[Tensor, "B n"], segments: Sequence[SolveSegment]
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]]:
    """Join what the segments saved: with `saveat` each time from its segment, else every step one after another."""
    if spec.saveat is not None:
        still = (spec.t0 == spec.t1).view(-1, 1, 1)
        nothing = torch.full((*spec.saveat.shape, u0.shape[1]), float("nan"), dtype=u0.dtype, device=u0.device)
        total = torch.where(still, u0.unsqueeze(1), nothing)
        for segment in segments:
            total = torch.where(segment.saved.unsqueeze(-1), segment.values, total)
        return spec.saveat, total
    if not segments:
        return spec.t0.unsqueeze(-1), u0.unsqueeze(1)
    times = torch.cat([segment.times for segment in segments], 1)
    values = torch.cat([segment.values for segment in segments], 1)
    saved = torch.cat([_is_first(segment.times) & segment.saved for segment in segments], 1)
    count = saved.sum(1)
    order = torch.argsort((~saved).to(torch.int8), dim=1, stable=True)[:, : int(count.max())]
    # shorter trajectories repeat their end, as without events
    last = (count - 1).clamp(min=0).unsqueeze(-1)
    position = torch.minimum(torch.arange(order.shape[1], device=order.device).expand_as(order), last)
    index = order.gather(1, position)
    return times.gather(1, index), values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def _is_first(times: Float[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Which times are not the repeated end of a shorter trajectory."""
    new = torch.ones_like(times, dtype=torch.bool)
    new[:, 1:] = times[:, 1:] != times[:, :-1]
    return new


def dense_output(
    segments: Sequence[SolveSegment], u0: Float[Tensor, "B n"]
) -> Callable[[Float[Tensor, "B T"]], Float[Tensor, "B T n"]]:
    """Return the dense output over all segments; at the time of an event it gives the state before it."""

    def read(times: Float[Tensor, "B T"]) -> Float[Tensor, "B T n"]:
        total = u0.unsqueeze(1).expand(-1, times.shape[1], -1)
        for segment in segments:
            start, end = segment.start.unsqueeze(-1), segment.end.unsqueeze(-1)
            sign = torch.where(end >= start, 1.0, -1.0).to(times.dtype)
            inside = ((times - start) * sign > 0) & ((end - times) * sign >= 0)
            if bool(inside.any()):
                total = torch.where(inside.unsqueeze(-1), segment.read(torch.where(inside, times, end)), total)
        return total

    return read
