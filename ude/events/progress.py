"""The state of every trajectory between two segments, and what callbacks do to it there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines import ForwardResult
from ude.engines.base import StepControl
from ude.engines.initialization import consistent, derivative
from ude.engines.return_code import ReturnCode
from ude.errors import InputError
from ude.events.callbacks import (
    ContinuousCallback,
    DiscreteCallback,
    IterativeCallback,
    PeriodicCallback,
    PositiveDomain,
    PresetTimeCallback,
    VectorContinuousCallback,
    terminate,
)
from ude.events.event import Event
from ude.events.observers import CallbackObserver, observers_of
from ude.events.run import EventRun, preset_times


@dataclass(frozen=True, eq=False)
class SegmentEnd:
    """How a segment ended.

    Args:
        t: The time of its end.
        event_t: The same number, differentiable where an event ended the segment.
        u: The state there, which moves with `event_t`.
        fired: Index of the continuous callback that ended it, -1 for none.
        component: Which component of a vector condition passed through zero.
        discrete: Where the condition of a discrete callback held at the end of a step.
        codes: `ReturnCode` of the integration.
    """

    t: Float[Tensor, "B"]
    event_t: Float[Tensor, "B"]
    u: Float[Tensor, "B n"]
    fired: Int[Tensor, "B"]
    component: Int[Tensor, "B"]
    discrete: Bool[Tensor, "B"]
    codes: Int[Tensor, "B"]


@dataclass
class Progress:
    """The state of every trajectory between segments, and the work so far.

    Args:
        u: State, connected to the graph.
        t: Time, not connected.
        running: Which trajectories go on.
        codes: `ReturnCode` so far.
        accepted, rejected: Number of steps.
        jumped: Which trajectories had their state changed by the last event.
        since: Time of the last event.
        unsaved: Which trajectories ended a step that must not be saved.
        observers: The saving and function-calling callbacks.
        side: Sign of each continuous condition, by index of the callback; 0 where an event has just happened.
        chosen: Next time of each iterative callback, by index; NaN for never. Connected to the graph.
        switches: Number of changes of the method, for a method that switches.
        stiff: Which trajectories use the implicit method, for a method that switches.
        control: Step control at the end of the last segment.
    """

    u: Float[Tensor, "B n"]
    t: Float[Tensor, "B"]
    running: Bool[Tensor, "B"]
    codes: Int[Tensor, "B"]
    accepted: Int[Tensor, "B"]
    rejected: Int[Tensor, "B"]
    jumped: Bool[Tensor, "B"]
    since: Float[Tensor, "B"]
    unsaved: Bool[Tensor, "B"]
    observers: list[CallbackObserver]
    side: dict[int, Tensor] = field(default_factory=dict)
    chosen: dict[int, Float[Tensor, "B"]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    nf: int = 0
    njacs: int = 0
    nw: int = 0
    nproducts: int = 0
    switches: Int[Tensor, "B"] | None = None
    stiff: Bool[Tensor, "B"] | None = None
    control: StepControl | None = None

    @classmethod
    def start(cls, run: EventRun, u0: Float[Tensor, "B n"]) -> Progress:
        """The state before the first segment."""
        spec = run.spec
        zeros, moving = torch.zeros_like(spec.t0, dtype=torch.int64), spec.t0 != spec.t1
        observers = observers_of(run.callbacks, spec)
        none = torch.zeros_like(moving)
        return cls(u0, spec.t0, moving, zeros, zeros, zeros, moving, spec.t0, none, observers)

    def resume(self) -> StepControl | None:
        """The step control of the last segment, with which the next one continues."""
        return None if self.control is None else replace(self.control, jumped=self.jumped)

    def count(self, result: ForwardResult, *, adaptive: bool) -> None:
        """Add the work of a segment, which called f once more at its start."""
        self.nf += result.nf + 1
        self.njacs += result.njacs
        self.nw += result.nw
        self.nproducts += result.nproducts
        self.accepted = self.accepted + result.accepted_steps
        self.rejected = self.rejected + result.rejected_steps
        if result.switches is not None:
            self.switches = result.switches if self.switches is None else self.switches + result.switches
        self.stiff = result.stiff
        self.control = result.control if adaptive else None

    def stop(self, which: Bool[Tensor, "B"], code: ReturnCode) -> None:
        """End trajectories with a return code."""
        self.codes = torch.where(which, int(code), self.codes)
        self.running = self.running & ~which

    def arrive(self, run: EventRun, end: SegmentEnd) -> None:
        """Move to the end of a segment, apply the callbacks that act there, and prepare for the next segment."""
        failed = end.codes != ReturnCode.Success
        self.u = torch.where((self.running & ~failed).unsqueeze(-1), end.u, self.u)
        self.t = torch.where(self.running, end.t, self.t)
        for code in ReturnCode:
            if code != ReturnCode.Success:
                self.stop(self.running & (end.codes == code), code)
        self.jumped, self.unsaved = torch.zeros_like(self.running), torch.zeros_like(self.running)
        for index, callback in enumerate(run.callbacks):
            if isinstance(callback, (ContinuousCallback, VectorContinuousCallback)):
                self.apply(run, index, end.fired == index, end.event_t, end.component)
            elif isinstance(callback, DiscreteCallback):
                with torch.no_grad():
                    holds = run.call(callback.condition, self.u, self.t).reshape(-1).to(torch.bool)
                self.apply(run, index, self.running & holds & end.discrete, end.event_t)
        apply_preset(run, self, end.event_t)
        if run.spec.mass is not None:
            # an affect may have violated the algebraic equations
            self.u, lost = consistent(replace(run.spec, t0=self.t), self.u, run.p)
            self.stop(self.running & lost, ReturnCode.InitialFailure)
        moved = end.event_t - end.event_t.detach()
        if moved.requires_grad:
            # the next segment is computed from the event's numeric time: shift its start back along the new flow
            du = derivative(run.spec, self.u.detach(), self.t, run.p)
            self.nf += 1
            self.u = torch.where(self.running.unsqueeze(-1), self.u - du * moved.unsqueeze(-1), self.u)
        self.running = self.running & (self.t != run.spec.t1)

    def apply(
        self,
        run: EventRun,
        index: int,
        which: Bool[Tensor, "B"],
        t: Float[Tensor, "B"],
        component: Tensor | None = None,
    ) -> None:
        """Apply a callback to the running trajectories among `which`, at the (differentiable) times t."""
        which = which & self.running
        if not bool(which.any()):
            return
        callback: Any = run.callbacks[index]
        if isinstance(callback, PositiveDomain):
            # so small a change does not disturb the step control, and both of its sides are saved as the same
            self.unsaved = self.unsaved | (which & (self.t != run.spec.t1) & (not callback.save))
        else:
            self.jumped = self.jumped | which
        self.since = torch.where(which, self.t, self.since)
        if callback.affect is terminate:
            after = self.u
            self.stop(which, ReturnCode.Terminated)
        else:
            more = (component,) if isinstance(callback, VectorContinuousCallback) and component is not None else ()
            after = run.call(callback.affect, self.u, t, *more)
            if not isinstance(after, Tensor) or after.numel() != self.u.numel():
                raise InputError(
                    "an affect must return the new state of the whole batch",
                    expected=f"shape {(*run.spec.batch, self.u.shape[-1])}",
                    got=str(tuple(after.shape)) if isinstance(after, Tensor) else type(after).__name__,
                    fix="Build it out of place: torch.stack([...], -1).",
                )
            after = torch.where(which.unsqueeze(-1), after.reshape(self.u.shape), self.u)
        self.events.append(Event(index, which, t, self.u, after))
        self.u = after
        # on which side of zero the state is now, the next step shows
        for watched, side in self.side.items():
            self.side[watched] = torch.where(which.unsqueeze(-1), torch.zeros_like(side), side)


def apply_preset(run: EventRun, state: Progress, t: Float[Tensor, "B"]) -> None:
    """Apply the callbacks whose time has come, at the (differentiable) times t."""
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, (PresetTimeCallback, PeriodicCallback)):
            state.apply(run, index, (preset_times(callback, run.spec) == state.t.unsqueeze(-1)).any(-1), t)
        elif isinstance(callback, IterativeCallback) and index in state.chosen:
            due = (state.chosen[index].detach() == state.t) & state.running
            if bool(due.any()):
                state.apply(run, index, due, t)
                _choose(run, state, index, due & (state.t != run.spec.t1), t)


def choose_first_times(run: EventRun, state: Progress) -> None:
    """Ask every iterative callback when it acts first, after its affect at the start."""
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, IterativeCallback):
            state.chosen[index] = torch.full_like(state.t, float("nan"))
            if callback.initial_affect:
                state.apply(run, index, state.running, state.t)
            _choose(run, state, index, state.running, state.t)


def _choose(run: EventRun, state: Progress, index: int, which: Bool[Tensor, "B"], t: Float[Tensor, "B"]) -> None:
    """Ask an iterative callback when it acts next in the trajectories of `which`."""
    callback = run.callbacks[index]
    if not isinstance(callback, IterativeCallback) or not bool(which.any()):
        return
    answer: Any = run.call(callback.time_choice, state.u, t)
    if answer is None:
        answer = torch.full_like(state.t, float("nan"))
    if not isinstance(answer, Tensor) or answer.numel() != len(state.t):
        raise InputError(
            "time_choice must return one time for each trajectory",
            expected=f"shape {run.spec.batch}, or None",
            got=f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else repr(answer),
        )
    answer = answer.reshape(-1)
    stuck = (which & ((answer - state.t) * run.spec.sign <= 0)).nonzero()
    if len(stuck):
        row = int(stuck[0])
        raise InputError(
            "time_choice must return a time after the current one",
            got=f"{float(answer[row]):g} at t={float(state.t[row]):g}",
            fix="Return t + delay (t - delay backwards), or NaN for never again.",
        )
    state.chosen[index] = torch.where(which, answer, state.chosen[index])
