"""Evaluate saving and function-calling callbacks, segment by segment.

Events divide a solve into segments. For each segment an observer lists the times at which its callback is evaluated.
The segment reads the states there together with everything else (one read, so one backward pass), and the observer
evaluates the callback on them.
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
from ude.events.times import regular_times, require_inside, time_rows

#: Calls a user's function of (u, p, t, ...) with the shapes that its author expects.
Caller = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class ObservedSegment:
    """One segment between events, as observers need it.

    Args:
        start, end: Where each trajectory begins and ends (B,); equal where it has ended already.
        fresh: Which trajectories begin at the start of the solve (B,).
        jumped: Which trajectories had their state changed at the start (B,).
        steps: Ends of accepted steps, NaN where a trajectory took none (B, k); may reach beyond the end.
        close: Distance below which two times count as equal (B,).
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
class CallbackObserver:
    """A `SavingCallback` or a `FunctionCallingCallback` during one solve.

    Args:
        wanted: Times at which to evaluate it, a row for each trajectory (B, k); NaN is no time.
        everystep: Whether to evaluate it at the end of every step too.
        batch: Shape of the batch.
        columns: What was saved so far: times (B,), values (B, ...) and in which trajectories (B,).
    """

    callback: SavingCallback | FunctionCallingCallback
    wanted: Float[Tensor, "B k"]
    everystep: bool
    batch: tuple[int, ...]
    columns: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def times(self, segment: ObservedSegment) -> tuple[Float[Tensor, "B k"], Bool[Tensor, "B k"]]:
        """Return the times of evaluation in order, and which of them count; the others are the segment's end."""
        sign, start, end = (item.unsqueeze(-1) for item in (segment.sign, segment.start, segment.end))
        running = (start != end) | segment.fresh.unsqueeze(-1)
        after, before = (self.wanted - start) * sign, (end - self.wanted) * sign
        inside = (before >= 0) & ((after > 0) | (segment.fresh.unsqueeze(-1) & (after == 0))) & running
        times = self.wanted
        if self.everystep:
            own = torch.cat([start, segment.steps, end], -1)
            good = ((segment.steps - start) * sign > 0) & ((end - segment.steps) * sign > segment.close.unsqueeze(-1))
            first = (segment.fresh | (segment.jumped & (segment.start != segment.end))).unsqueeze(-1)
            times = torch.cat([times, own], -1)
            inside = torch.cat([inside, first, good, start != end], -1)
        key, order = torch.where(inside, times * sign, float("inf")).sort(dim=-1, stable=True)
        if self.everystep:
            # a wanted time that is also the end of a step counts once
            again = torch.zeros_like(inside)
            again[:, 1:] = key[:, 1:] == key[:, :-1]
            key, place = torch.where(again, float("inf"), key).sort(dim=-1, stable=True)
            order = order.gather(-1, place)
        inside = torch.isfinite(key)
        count = int(inside.sum(-1).max())
        inside, times = inside[:, :count], times.gather(-1, order[:, :count])
        return torch.where(inside, times, end), inside

    def take(self, call: Caller, times: Float[Tensor, "B k"], u: Float[Tensor, "B k n"], inside: Tensor) -> None:
        """Evaluate the callback on the states u that were read at the times of `times`."""
        for j in range(times.shape[1]):
            # a state that is not finite is not saved; unmasked, its 0 * NaN would reach the gradient of the others
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
                    "save_func must return a tensor with one row for each trajectory",
                    expected=f"shape {(*self.batch, '...')}".replace("'", ""),
                    got=str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
                )
            self.columns.append((times[:, j], value.reshape(len(times), *value.shape[len(self.batch) :]), which))

    def finish(self) -> None:
        """Write what was saved to the callback's `SavedValues`, a row of times and values for each trajectory."""
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


def observers_of(callbacks: Sequence[Callback], spec: SolveSpec) -> list[CallbackObserver]:
    """Return the observers of a solve, one for each saving or function-calling callback.

    Raises:
        InputError: Their times do not fit the batch, or lie outside the span.
    """
    found = []
    for item in callbacks:
        if isinstance(item, SavingCallback):
            wanted, everystep = _wanted(item.saveat, "saveat", spec), bool(item.save_everystep)
        elif isinstance(item, FunctionCallingCallback):
            wanted, everystep = _wanted(item.funcat, "funcat", spec), bool(item.func_everystep)
        else:
            continue
        found.append(CallbackObserver(item, wanted, everystep, spec.batch))
    return found


def _wanted(times: Tensor | None, name: str, spec: SolveSpec) -> Float[Tensor, "B k"]:
    if times is None:
        return spec.t0.new_empty(len(spec.t0), 0)
    if times.ndim == 0:
        return regular_times(float(times), spec.t0, spec.t1)
    rows = time_rows(f"{name} of a callback", times, spec.t0, spec.batch)
    require_inside(f"{name} of a callback", rows, spec.t0, spec.t1)
    return rows
