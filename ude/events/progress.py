"""Where every trajectory stands between two legs, and what happens to it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

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
from ude.events.observers import Observer, observers_of
from ude.events.run import EventRun, preset_times


@dataclass(frozen=True, eq=False)
class Segment:
    """One stretch of every trajectory between events: from `start` to `end` (equal where a trajectory had ended)."""

    start: Float[Tensor, "B"]
    end: Float[Tensor, "B"]
    read: Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Located:
    """How a leg ended: where, by which callback (-1 none), and how it failed if it did."""

    t: Float[Tensor, "B"]
    live_t: Float[Tensor, "B"]
    u: Float[Tensor, "B n"]
    fired: Int[Tensor, "B"]
    component: Int[Tensor, "B"]
    watched: Bool[Tensor, "B"]
    codes: Int[Tensor, "B"]


@dataclass
class Progress:
    """Where every trajectory stands between legs. `u` carries the graph, `t` does not."""

    u: Tensor
    t: Tensor
    running: Bool[Tensor, "B"]
    codes: Int[Tensor, "B"]
    accepted: Int[Tensor, "B"]
    rejected: Int[Tensor, "B"]
    side: dict[int, Tensor]
    jumped: Bool[Tensor, "B"]
    since: Float[Tensor, "B"]
    #: Where each trajectory ended a step that is not to be saved.
    unsaved: Bool[Tensor, "B"]
    observers: list[Observer]
    #: Of iterative callbacks, by index: when they act next; NaN never. Connected to the graph.
    chosen: dict[int, Float[Tensor, "B"]] = field(default_factory=dict)
    nf: int = 0
    switches: Int[Tensor, "B"] | None = None
    #: Of a method that switches, which trajectories use the implicit one.
    stiff: Bool[Tensor, "B"] | None = None
    njacs: int = 0
    nw: int = 0
    nproducts: int = 0
    events: list[Event] = field(default_factory=list)
    control: StepControl | None = None

    def resume(self) -> StepControl | None:
        """The step control of the leg before, from which the next one goes on."""
        if self.control is None:
            return None
        return replace(self.control, jumped=self.jumped)

    @classmethod
    def start(cls, run: EventRun, u0: Tensor) -> Progress:
        zeros = torch.zeros_like(run.spec.t0, dtype=torch.int64)
        moving = run.spec.t0 != run.spec.t1
        return cls(
            u0,
            run.spec.t0,
            moving,
            zeros,
            zeros,
            zeros,
            {},
            moving,
            run.spec.t0,
            torch.zeros_like(moving),
            observers_of(run.callbacks, run.spec),
        )

    def stop(self, which: Tensor, code: ReturnCode) -> None:
        self.codes = torch.where(which, int(code), self.codes)
        self.running = self.running & ~which

    def arrive(self, run: EventRun, leg: Segment, located: Located) -> None:
        """Take the state to the end of the leg, let what happens there happen, and be ready for the next."""
        failed = located.codes != ReturnCode.Success
        reached, live_t = located.t, located.live_t
        self.u = torch.where((self.running & ~failed).unsqueeze(-1), located.u, self.u)
        self.t = torch.where(self.running, reached, self.t)
        for code in ReturnCode:
            if code != ReturnCode.Success:
                self.stop(self.running & (located.codes == code), code)
        self.jumped, self.unsaved = torch.zeros_like(self.running), torch.zeros_like(self.running)
        for index, callback in enumerate(run.callbacks):
            if isinstance(callback, (ContinuousCallback, VectorContinuousCallback)):
                self.apply(run, index, callback, located.fired == index, live_t, located.component)
            elif isinstance(callback, DiscreteCallback):
                with torch.no_grad():
                    holds = run.call(callback.condition, self.u, self.t).reshape(-1).to(torch.bool)
                self.apply(run, index, callback, self.running & holds & located.watched, live_t, located.component)
        fire_preset(run, self, live_t)
        if run.spec.mass is not None:
            # what happened may have left the algebraic equations
            self.u, lost = consistent(replace(run.spec, t0=self.t), self.u, run.p)
            self.stop(self.running & lost, ReturnCode.InitialFailure)
        moved = live_t - live_t.detach()
        if moved.requires_grad:
            # the next leg is computed from the event's numeric time: shift its start back along the new flow
            du = derivative(run.spec, self.u.detach(), self.t, run.p)
            self.nf += 1
            self.u = torch.where(self.running.unsqueeze(-1), self.u - du * moved.unsqueeze(-1), self.u)
        self.running = self.running & (self.t != run.spec.t1)

    def apply(self, run: EventRun, index: int, callback: Any, which: Tensor, live_t: Tensor, component: Tensor) -> None:
        which = which & self.running
        if not bool(which.any()):
            return
        if isinstance(callback, PositiveDomain):
            # so small a change is none to the step control, and both of its sides are saved as the same
            self.unsaved = self.unsaved | (which & (self.t != run.spec.t1) & (not callback.save))
        else:
            self.jumped = self.jumped | which
        self.since = torch.where(which, self.t, self.since)
        more = (component,) if isinstance(callback, VectorContinuousCallback) else ()
        if callback.affect is terminate:
            after = self.u
            self.stop(which, ReturnCode.Terminated)
        else:
            after = run.call(callback.affect, self.u, live_t, *more)
            if not isinstance(after, Tensor) or after.numel() != self.u.numel():
                raise InputError(
                    "an affect must return the new state of the whole batch",
                    expected=f"shape {(*run.spec.batch, self.u.shape[-1])}",
                    got=str(tuple(after.shape)) if isinstance(after, Tensor) else type(after).__name__,
                    fix="Build it out of place: torch.stack([...], -1).",
                )
            after = torch.where(which.unsqueeze(-1), after.reshape(self.u.shape), self.u)
        self.events.append(Event(index, which, live_t, self.u, after))
        self.u = after
        for watched in self.side:
            # which side of zero the state is on now shows itself in the next step
            self.side[watched] = torch.where(
                which.unsqueeze(-1), torch.zeros_like(self.side[watched]), self.side[watched]
            )


def fire_preset(run: EventRun, state: Progress, live_t: Tensor) -> None:
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, (PresetTimeCallback, PeriodicCallback)):
            due = (preset_times(callback, run.spec) == state.t.unsqueeze(-1)).any(-1)
            state.apply(run, index, callback, due, live_t, torch.zeros_like(state.codes))
        elif isinstance(callback, IterativeCallback) and index in state.chosen:
            due = (state.chosen[index].detach() == state.t) & state.running
            if bool(due.any()):
                state.apply(run, index, callback, due, live_t, torch.zeros_like(state.codes))
                _choose(run, state, index, callback, due & (state.t != run.spec.t1), live_t)


def choose_first_times(run: EventRun, state: Progress) -> None:
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, IterativeCallback):
            state.chosen[index] = torch.full_like(state.t, float("nan"))
            if callback.initial_affect:
                state.apply(run, index, callback, state.running, state.t, torch.zeros_like(state.codes))
            _choose(run, state, index, callback, state.running, state.t)


def _choose(
    run: EventRun, state: Progress, index: int, callback: IterativeCallback, which: Tensor, live_t: Tensor
) -> None:
    """Ask when the callback acts next in the trajectories of `which`."""
    if not bool(which.any()):
        return
    answer: Any = run.call(callback.time_choice, state.u, live_t)
    if answer is None:
        answer = torch.full_like(state.t, float("nan"))
    if not isinstance(answer, Tensor) or answer.numel() != len(state.t):
        raise InputError(
            "time_choice must return one time a trajectory",
            expected=f"shape {run.spec.batch}, or None",
            got=f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else repr(answer),
        )
    answer = answer.reshape(-1)
    stuck = (which & ((answer - state.t) * run.spec.sign <= 0)).nonzero()
    if len(stuck):
        lane = int(stuck[0])
        raise InputError(
            "time_choice must return a time after this one",
            got=f"{float(answer[lane]):g} at t={float(state.t[lane]):g}",
            fix="Return t + delay (t - delay backwards), or NaN for never again.",
        )
    state.chosen[index] = torch.where(which, answer, state.chosen[index])
