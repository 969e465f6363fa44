"""Solves with events: legs between events, each an ordinary solve, tied together so that gradients run through.

A leg runs until the first event of each trajectory (or its next preset time). The engine stops a trajectory after the
step in which its condition changes sign; the time of the event is then located on the dense output of that step.

Gradients. The leg's values are differentiable for fixed times. The event time t* solves g(u(t*), p, t*) = 0, so
``dt* = -dg / (g_u f + g_t)``; adding the term ``-(g - g.detach()) / (g_u f + g_t)``, which is zero in value, makes t* a
differentiable number. In the same way ``f (t* - t*.detach())`` moves the state before the event along with its time,
and ``-f_after (t* - t*.detach())`` starts the next leg as if it had begun at the moved time. Source: the saltation
matrix, P. C. Mueller, Chaos, Solitons & Fractals 5 (1995) 1671; Chen, Amos & Nickel, ICLR 2021.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.callbacks import (
    Callback,
    ContinuousCallback,
    DiscreteCallback,
    IterativeCallback,
    PeriodicCallback,
    PositiveDomain,
    PresetTimeCallback,
    VectorContinuousCallback,
    terminate,
)
from ude.engines import Engine, SolveSpec
from ude.engines.engine import StepControl
from ude.engines.initialization import consistent, derivative
from ude.errors import InputError
from ude.observation import Observer, Stretch, observers_of
from ude.problems import FlatRightHandSide
from ude.sensitivity import SensitivityAlgorithm, Solved
from ude.sensitivity.reading import EVENT_TIME, first_derivative_only
from ude.solution import Event, ReturnCode

# The dense output of a step is a polynomial of at most this degree, so as many samples and one describe it fully.
_DEGREE = 10
_BISECTIONS = 60
# A leg that ends at a stop ends this many units of rounding before it, so that an input that switches there is seen
# from its left by every stage (and from its right by the next leg).
_BEFORE_STOP = 4
# A state that has just been put on zero is on neither side until this many units of rounding later.
_UNSETTLED = 64


@dataclass(frozen=True, eq=False)
class EventSolve:
    """Outcome of `solve_with_events`, in the terms of `ForwardResult`; values are connected to the graph."""

    times: Float[Tensor, "B T"]
    values: Float[Tensor, "B T n"]
    retcode: Int[Tensor, "B"]
    t_end: Float[Tensor, "B"]
    u_end: Float[Tensor, "B n"]
    accepted_steps: Int[Tensor, "B"]
    rejected_steps: Int[Tensor, "B"]
    nf: int
    njacs: int
    nw: int
    nproducts: int
    seconds: float
    events: tuple[Event, ...]
    dense: Callable[[Float[Tensor, "B T"]], Float[Tensor, "B T n"]]
    switches: Int[Tensor, "B"] | None = None


@dataclass(frozen=True, eq=False)
class _Leg:
    """One stretch of every trajectory between events: from `start` to `end` (equal where a trajectory had ended)."""

    start: Float[Tensor, "B"]
    end: Float[Tensor, "B"]
    read: Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class EventRun:
    """What the legs of a solve have in common."""

    spec: SolveSpec
    engine: Engine
    sensealg: SensitivityAlgorithm
    p: Sequence[Tensor]
    tracked: bool
    callbacks: tuple[Callback, ...]
    tstops: Float[Tensor, "B k"]
    max_events: int

    def parameters(self) -> Any:
        f = self.spec.f
        return f.parameters(self.p) if isinstance(f, FlatRightHandSide) else None

    def call(self, function: Callable[..., Any], u: Tensor, t: Tensor, *more: Tensor) -> Any:
        """Call a user's function of (u, p, t) in the shape that its author sees."""
        batch = self.spec.batch
        extra = [item.reshape(batch) for item in more]
        return function(u.reshape(*batch, u.shape[-1]), self.parameters(), t.reshape(batch), *extra)

    def project(self, values: Float[Tensor, "B T n"]) -> Float[Tensor, "B T n"]:
        """What is handed out of states that were read: nothing outside the domains of the solve."""
        for callback in self.callbacks:
            if isinstance(callback, PositiveDomain):
                values = callback.project(values)
        return values


def solve_with_events(run: EventRun, u0: Float[Tensor, "B n"]) -> EventSolve:
    """Integrate u0 leg by leg; see the module's text."""
    began = clock.perf_counter()
    spec = run.spec
    state = _Progress.start(run, u0)
    legs: list[_Leg] = []
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    _fire_preset(run, state, spec.t0)
    _choose_first_times(run, state)
    _observe_still(run, state)
    while bool(state.running.any()):
        if len(state.events) > run.max_events:
            state.stop(state.running, ReturnCode.MaxEvents)
            break
        leg, located, times, values, inside = _one_leg(run, state)
        legs.append(leg)
        pieces.append((times, values, inside))
        state.arrive(run, leg, located)
        if bool(state.unsaved.any()):
            pieces[-1] = (times, values, inside & ~(state.unsaved.unsqueeze(-1) & (times == state.t.unsqueeze(-1))))
    for observer in state.observers:
        observer.finish()
    times, values = _collect(spec, u0, pieces)
    return EventSolve(
        times=times,
        values=values,
        retcode=state.codes,
        t_end=state.t,
        u_end=state.u,
        accepted_steps=state.accepted,
        rejected_steps=state.rejected,
        nf=state.nf,
        njacs=state.njacs,
        nw=state.nw,
        nproducts=state.nproducts,
        seconds=clock.perf_counter() - began,
        events=tuple(state.events),
        dense=_dense(legs, u0),
        switches=state.switches,
    )


@dataclass
class _Progress:
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
    def start(cls, run: EventRun, u0: Tensor) -> _Progress:
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

    def arrive(self, run: EventRun, leg: _Leg, located: _Located) -> None:
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
                self._apply(run, index, callback, located.fired == index, live_t, located.component)
            elif isinstance(callback, DiscreteCallback):
                with torch.no_grad():
                    holds = run.call(callback.condition, self.u, self.t).reshape(-1).to(torch.bool)
                self._apply(run, index, callback, self.running & holds & located.watched, live_t, located.component)
        _fire_preset(run, self, live_t)
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

    def _apply(
        self, run: EventRun, index: int, callback: Any, which: Tensor, live_t: Tensor, component: Tensor
    ) -> None:
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


def _fire_preset(run: EventRun, state: _Progress, live_t: Tensor) -> None:
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, (PresetTimeCallback, PeriodicCallback)):
            due = (preset_times(callback, run.spec) == state.t.unsqueeze(-1)).any(-1)
            state._apply(run, index, callback, due, live_t, torch.zeros_like(state.codes))
        elif isinstance(callback, IterativeCallback) and index in state.chosen:
            due = (state.chosen[index].detach() == state.t) & state.running
            if bool(due.any()):
                state._apply(run, index, callback, due, live_t, torch.zeros_like(state.codes))
                _choose(run, state, index, callback, due & (state.t != run.spec.t1), live_t)


def _choose_first_times(run: EventRun, state: _Progress) -> None:
    for index, callback in enumerate(run.callbacks):
        if isinstance(callback, IterativeCallback):
            state.chosen[index] = torch.full_like(state.t, float("nan"))
            if callback.initial_affect:
                state._apply(run, index, callback, state.running, state.t, torch.zeros_like(state.codes))
            _choose(run, state, index, callback, state.running, state.t)


def _choose(
    run: EventRun, state: _Progress, index: int, callback: IterativeCallback, which: Tensor, live_t: Tensor
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


def _observe_still(run: EventRun, state: _Progress) -> None:
    """Trajectories that have ended at their start have no leg; what there is to see of them is that."""
    still, nothing = ~state.running, state.t.new_empty(len(state.t), 0)
    if bool(still.any()):
        leg = Stretch(state.t, state.t, still, still, nothing, torch.zeros_like(state.t), run.spec.sign)
        asked = [observer.times(leg) for observer in state.observers]
        count = sum(looked.shape[1] for looked, _ in asked)
        _observe(run, state, asked, state.u.unsqueeze(1).expand(-1, count, -1))


def _observe(run: EventRun, state: _Progress, asked: list[tuple[Tensor, Tensor]], states: Tensor) -> None:
    """Show every observer the states at the times that it asked for."""
    parts = run.project(states).split([times.shape[1] for times, _ in asked], 1) if asked else ()
    for observer, (times, counts), seen in zip(state.observers, asked, parts, strict=True):
        observer.take(run.call, times, seen, counts)


def preset_times(callback: PresetTimeCallback | PeriodicCallback, spec: SolveSpec) -> Float[Tensor, "B k"]:
    """The callback's times for every trajectory; NaN where a row is shorter."""
    if isinstance(callback, PeriodicCallback):
        length = spec.t1 - spec.t0
        count = int(float(length.abs().max()) / callback.every + 1e-9)
        steps = torch.arange(1, count + 1, dtype=spec.t0.dtype, device=spec.t0.device) * callback.every
        return spec.t0.unsqueeze(-1) + length.sign().unsqueeze(-1) * steps
    times: Tensor = callback.times.to(spec.t0)
    if times.ndim == 1:
        return times.expand(len(spec.t0), -1)
    if tuple(times.shape[:-1]) != spec.batch:
        raise InputError(
            "preset times do not fit the batch",
            expected=f"(k,) or {(*spec.batch, 'k')}".replace("'", ""),
            got=str(tuple(times.shape)),
        )
    return times.reshape(len(spec.t0), -1)


def _rounding(t: Tensor, spec: SolveSpec) -> Tensor:
    """A unit of rounding of times near t."""
    return torch.finfo(t.dtype).eps * torch.maximum(t.abs(), (spec.t1 - spec.t0).abs())


def _next_stop(run: EventRun, state: _Progress) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Where each trajectory's leg ends at the latest: its next preset time or stop, or the end of its span.

    Returns:
        That time, and the time to which the leg is integrated: a few units of rounding less at a stop.
    """
    spec = run.spec
    sign = spec.sign.unsqueeze(-1)
    rows = [run.tstops, spec.t1.unsqueeze(-1)]
    rows += [
        preset_times(callback, spec)
        for callback in run.callbacks
        if isinstance(callback, (PresetTimeCallback, PeriodicCallback))
    ]
    rows += [chosen.detach().unsqueeze(-1) for chosen in state.chosen.values()]
    stops = torch.cat(rows, -1) * sign
    ahead = (stops > state.t.unsqueeze(-1) * sign) & (stops <= spec.t1.unsqueeze(-1) * sign)
    nearest = torch.where(ahead, stops, float("inf")).min(-1).values * sign.squeeze(-1)
    stop = torch.where(state.running, nearest, state.t)
    margin = _BEFORE_STOP * _rounding(stop, spec) * sign.squeeze(-1)
    inner = state.running & (stop != spec.t1) & ((stop - state.t).abs() > 2 * margin.abs())
    return stop, torch.where(inner, stop - margin, stop)


@dataclass(frozen=True, eq=False)
class _Located:
    """How a leg ended: where, by which callback (-1 none), and how it failed if it did."""

    t: Float[Tensor, "B"]
    live_t: Float[Tensor, "B"]
    u: Float[Tensor, "B n"]
    fired: Int[Tensor, "B"]
    component: Int[Tensor, "B"]
    watched: Bool[Tensor, "B"]
    codes: Int[Tensor, "B"]


def _one_leg(run: EventRun, state: _Progress) -> tuple[_Leg, _Located, Tensor, Tensor, Tensor]:
    spec, engine = run.spec, run.engine
    u = state.u
    first = derivative(spec, u.detach(), state.t, run.p)
    watch = _Watch(run, state)
    sign = spec.sign.unsqueeze(-1)
    stop, reach = _next_stop(run, state)

    def clipped(times: Tensor) -> Tensor:
        """Read what lies between the end of the integration and the stop at the end."""
        late = ((times - reach.unsqueeze(-1)) * sign > 0) & ((times - stop.unsqueeze(-1)) * sign <= 0)
        return torch.where(late, reach.unsqueeze(-1), times)

    leg_spec = replace(
        spec,
        t0=state.t,
        t1=reach,
        saveat=None if spec.saveat is None else clipped(spec.saveat),
        first_du=first,
        watch=watch if watch.needed else None,
        dt=spec.dt if not spec.adaptive or not state.nf else None,
        stiff=state.stiff,
        resume=state.resume(),
    )
    result = engine.forward(leg_spec, u.detach(), run.p)
    state.nf += result.nf + 1
    state.njacs += result.njacs
    state.nw += result.nw
    state.nproducts += result.nproducts
    state.control = result.control if spec.adaptive else None
    state.accepted = state.accepted + result.accepted_steps
    state.rejected = state.rejected + result.rejected_steps
    if result.switches is not None:
        state.switches = result.switches if state.switches is None else state.switches + result.switches
    state.stiff = result.stiff
    done = replace(leg_spec, t1=result.t_end, watch=None)
    solved = Solved(engine, done, result.record, result.record.u_end)

    def read(times: Tensor, values: Tensor | None = None) -> Tensor:
        times = clipped(times)
        if values is None:
            values = engine.interpolate(done, result.record, run.p, times)
        # an affect may have brought in a trainable tensor of its own
        if (run.tracked or u.requires_grad) and torch.is_grad_enabled():
            values = run.sensealg.attach(solved, times, values, u, run.p)
        return values

    interpolate = lambda times: engine.interpolate(done, result.record, run.p, clipped(times))  # noqa: E731
    end, fired, component = watch.locate(interpolate, torch.where(result.t_end == reach, stop, result.t_end))
    at_end = interpolate(end.unsqueeze(-1))
    times, values = result.times if spec.saveat is None else spec.saveat, result.values
    if spec.saveat is None:  # both sides of an event are saved: its time ends this leg and starts the next
        times, values = torch.cat([times, end.unsqueeze(-1)], 1), torch.cat([values, at_end], 1)
    asked = _asked(run, state, watch, end)
    more = torch.cat([times[:, :0], *(looked for looked, _ in asked)], 1)
    known = [values, interpolate(more), at_end] if more.shape[1] else [values, at_end]
    live = read(torch.cat([times, more, end.unsqueeze(-1)], 1), torch.cat(known, 1))
    _observe(run, state, asked, live[:, times.shape[1] : -1])
    u_end, live_t = _move_with_time(run, live[:, -1], end, fired, component, state.chosen)
    from_start = (times - state.t.unsqueeze(-1)) * sign
    with_start = (state.t == spec.t0) | (state.jumped if spec.saveat is None else False)
    inside = ((from_start > 0) | (with_start.unsqueeze(-1) & (from_start == 0))) & (
        (end.unsqueeze(-1) - times) * sign >= 0
    )
    located = _Located(
        t=end,
        live_t=live_t,
        u=u_end,
        fired=fired,
        component=component,
        watched=watch.discrete,
        codes=torch.where(state.running, result.retcode, 0),
    )
    leg = _Leg(state.t, end, lambda asked: run.project(read(asked)))
    return leg, located, times, run.project(live[:, : times.shape[1]]), inside & state.running.unsqueeze(-1)


def _asked(run: EventRun, state: _Progress, watch: _Watch, end: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every observer, the times in this leg at which it looks, and which of them count."""
    if not state.observers:
        return []
    leg = Stretch(
        start=state.t,
        end=end,
        fresh=state.running & (state.t == run.spec.t0),
        jumped=state.jumped,
        steps=watch.steps(),
        close=2 * _BEFORE_STOP * _rounding(end, run.spec),
        sign=run.spec.sign,
    )
    return [observer.times(leg) for observer in state.observers]


def _move_with_time(
    run: EventRun, u: Tensor, t: Tensor, fired: Tensor, component: Tensor, chosen: dict[int, Tensor]
) -> tuple[Tensor, Float[Tensor, "B"]]:
    """Make the time of each located event differentiable, and let the state before the event move with it."""
    moving = [choice for choice in chosen.values() if choice.requires_grad and bool((choice.detach() == t).any())]
    if not torch.is_grad_enabled() or not (moving or bool((fired >= 0).any())):
        return u, t
    live_t = t
    du = derivative(run.spec, u.detach(), t, run.p)
    for index, callback in enumerate(run.callbacks):
        which = fired == index
        if not bool(which.any()) or not isinstance(callback, (ContinuousCallback, VectorContinuousCallback)):
            continue
        value = _component(run.call(callback.condition, u, t), component, len(t))
        if not value.requires_grad:  # neither by the state nor by a trainable tensor of its own
            continue
        at, when = u.detach().requires_grad_(), t.detach().clone().requires_grad_()
        with torch.enable_grad():
            probe = _component(run.call(callback.condition, at, when), component, len(t))
        by_u, by_t = torch.autograd.grad(probe.sum(), (at, when), allow_unused=True)
        rate = torch.zeros_like(t)
        rate = rate + ((by_u * du).sum(-1) if by_u is not None else 0.0)
        rate = rate + (by_t if by_t is not None else 0.0)
        # a condition that only touches zero has no event time to differentiate
        usable = which & (rate != 0)
        shift = -(value - value.detach()) / torch.where(usable, rate, 1.0)
        # rate and du count as constants here, which second derivatives would have to know
        shift = first_derivative_only(EVENT_TIME, shift, u, value)
        live_t = torch.where(usable, live_t + shift, live_t)
    for choice in moving:
        shift = first_derivative_only(EVENT_TIME, choice - choice.detach(), u)
        live_t = torch.where((choice.detach() == t) & (fired < 0), t + shift, live_t)
    return u + du * (live_t - live_t.detach()).unsqueeze(-1), live_t


def _component(value: Tensor, component: Tensor, count: int) -> Float[Tensor, "B"]:
    flat = value.reshape(count, -1)
    return flat[:, 0] if flat.shape[1] == 1 else flat.gather(1, component.unsqueeze(-1)).squeeze(-1)


class _Watch:
    """Looks for sign changes of the conditions in every accepted step, and remembers where each trajectory's was."""

    def __init__(self, run: EventRun, state: _Progress) -> None:
        self.run, self.state = run, state
        self.continuous = [
            (i, c) for i, c in enumerate(run.callbacks) if isinstance(c, (ContinuousCallback, VectorContinuousCallback))
        ]
        self.discretes = [c for c in run.callbacks if isinstance(c, DiscreteCallback)]
        self.counts_steps = any(observer.everystep for observer in state.observers)
        self.needed = bool(self.continuous or self.discretes or self.counts_steps)
        self._ends: list[Tensor] = []
        zeros = torch.zeros_like(state.t)
        self.low, self.high = zeros, zeros
        self.found = torch.zeros_like(state.codes, dtype=torch.bool)
        self.discrete = torch.zeros_like(self.found)
        if self.continuous:
            self._first_sides()

    def _values(self, callback: Any, u: Tensor, t: Tensor) -> Float[Tensor, "B k"]:
        with torch.no_grad():
            value = self.run.call(callback.condition, u, t)
        if (
            not isinstance(value, Tensor)
            or value.numel() % len(t)
            or value.shape[: len(self.run.spec.batch)] != torch.Size(self.run.spec.batch)
        ):
            got = str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                "a condition must return one number a trajectory", expected=str(self.run.spec.batch), got=got
            )
        return value.reshape(len(t), -1)

    def _first_sides(self) -> None:
        for index, callback in self.continuous:
            if index not in self.state.side:
                self.state.side[index] = self._values(callback, self.state.u.detach(), self.state.t).sign()

    def steps(self) -> Float[Tensor, "B k"]:
        """Where the steps ended so far, NaN where a trajectory took none."""
        return torch.stack(self._ends, -1) if self._ends else self.low[:, None][:, :0]

    def __call__(self, t: Tensor, u: Tensor, t_next: Tensor, u_next: Tensor, moved: Tensor) -> Tensor:
        if self.counts_steps:
            self._ends.append(torch.where(moved, t_next, float("nan")))
        stop = torch.zeros_like(moved)
        if self.continuous:
            points = max(callback.interp_points for _, callback in self.continuous)
            thetas = [(i + 1) / points for i in range(points)]
            before = torch.zeros_like(t)
            du = derivative(self.run.spec, u, t, self.run.p)
            width = (t_next - t).unsqueeze(-1)
            bend = u_next - u - width * du
            for theta in thetas:
                # good enough to see on which side the state is; the event itself is located on the dense output
                at = u_next if theta == 1.0 else u + theta * width * du + theta**2 * bend
                when = t_next if theta == 1.0 else t + theta * (t_next - t)
                crossed = self._crossings(at, when, moved & ~stop)
                self.low = torch.where(crossed, t + before * (t_next - t), self.low)
                self.high = torch.where(crossed, when, self.high)
                before = torch.full_like(t, theta)
                stop = stop | crossed
            self.found = self.found | stop
        for callback in self.discretes:
            holds = self._values(callback, u_next, t_next)[:, 0].to(torch.bool) & moved & ~self.found
            self.discrete = self.discrete | holds
            stop = stop | holds
        return stop

    def _crossings(self, u: Tensor, t: Tensor, which: Tensor) -> Bool[Tensor, "B"]:
        """Which trajectories changed sides between the last look and this one; sides are updated."""
        crossed = torch.zeros_like(which)
        for index, callback in self.continuous:
            side = self._values(callback, u, t).sign()
            old = self.state.side[index]
            changed = (side != old) & (old != 0)
            if callback.direction:
                changed = changed & (old == -callback.direction)
            happened = changed.any(-1) & which
            crossed = crossed | happened
            # a trajectory with an event keeps its old side, from which the event is located
            keep = (~which | happened).unsqueeze(-1) | (side == 0)
            close = (t - self.state.since).abs() < _UNSETTLED * _rounding(t, self.run.spec)
            keep = keep | (close.unsqueeze(-1) & (old == 0))
            self.state.side[index] = torch.where(keep, old, side)
        return crossed

    def locate(self, interpolate: Callable[[Tensor], Tensor], t_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find each trajectory's earliest event inside its bracket.

        Returns:
            The time where the leg ends (the event, or t_end without one), the callback's index (-1 without), and the
            component of a vector condition.
        """
        end, fired = t_end.clone(), torch.full_like(self.state.codes, -1)
        component = torch.zeros_like(self.state.codes)
        if not bool(self.found.any()):
            return end, fired, component
        low, high = torch.where(self.found, self.low, t_end), torch.where(self.found, self.high, t_end)
        path = _Path(interpolate, low, high)
        sign = torch.where(high >= low, 1.0, -1.0).to(low.dtype)
        for index, callback in self.continuous:
            old = self.state.side[index]
            for k in range(old.shape[1]):
                side = old[:, k]
                at_high = self._values(callback, path(torch.ones_like(low)), high)[:, k].sign()
                changed = self.found & (side != 0) & (at_high != side)
                if callback.direction:
                    changed = changed & (side == -callback.direction)
                if not bool(changed.any()):
                    continue
                theta = self._bisect(callback, k, path, side)
                when = low + theta * (high - low)
                earlier = changed & ((when * sign < end * sign) | (fired < 0))
                end, fired = torch.where(earlier, when, end), torch.where(earlier, index, fired)
                component = torch.where(earlier, k, component)
        return end, fired, component

    def _bisect(self, callback: Any, k: int, path: _Path, side: Tensor) -> Float[Tensor, "B"]:
        left, right = torch.zeros_like(side), torch.ones_like(side)
        for _ in range(_BISECTIONS):
            middle = (left + right) / 2
            same = self._values(callback, path(middle), path.time(middle))[:, k].sign() == side
            left, right = torch.where(same, middle, left), torch.where(same, right, middle)
        return right


class _Path:
    """The dense output between two times as one polynomial, so that a root search needs no further calls of f."""

    def __init__(self, interpolate: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        # Chebyshev points and barycentric weights (J.-P. Berrut & L. N. Trefethen, SIAM Review 46 (2004) 501)
        j = torch.arange(_DEGREE + 1, dtype=low.dtype, device=low.device)
        self.nodes = (1 - torch.cos(torch.pi * j / _DEGREE)) / 2
        self.weights = (-1.0) ** j
        self.weights[0] /= 2
        self.weights[-1] /= 2
        self.samples = interpolate(self.time(self.nodes.expand(len(low), -1)))

    def time(self, theta: Tensor) -> Tensor:
        low, high = (self.low, self.high) if theta.ndim == 1 else (self.low.unsqueeze(-1), self.high.unsqueeze(-1))
        return torch.where(theta == 1.0, high, low + theta * (high - low))

    def __call__(self, theta: Float[Tensor, "B"]) -> Float[Tensor, "B n"]:
        difference = theta.unsqueeze(-1) - self.nodes
        hit = difference == 0
        terms = self.weights / torch.where(hit, 1.0, difference)
        # on a node the formula is 0/0, and the value is the sample
        terms = torch.where(hit.any(-1, keepdim=True), hit.to(terms.dtype), terms)
        return (terms.unsqueeze(-1) * self.samples).sum(1) / terms.sum(-1, keepdim=True)


def _collect(spec: SolveSpec, u0: Tensor, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
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


def _dense(legs: list[_Leg], u0: Tensor) -> Callable[[Tensor], Tensor]:
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
