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

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import ForwardResult
from ude.engines.initialization import derivative
from ude.engines.return_code import ReturnCode
from ude.events.callbacks import ContinuousCallback, PeriodicCallback, PresetTimeCallback, VectorContinuousCallback
from ude.events.observers import ObservedSegment
from ude.events.outcome import EventSolve, collect, dense_of
from ude.events.progress import Located, Progress, Segment, choose_first_times, fire_preset
from ude.events.run import EventRun, preset_times, rounding
from ude.events.watch import Watch, component_of
from ude.sensitivity import Solved
from ude.sensitivity.reading import EVENT_TIME, first_derivative_only

# A leg that ends at a stop ends this many units of rounding before it, so that an input that switches there is seen
# from its left by every stage (and from its right by the next leg).
_BEFORE_STOP = 4


def solve_with_events(run: EventRun, u0: Float[Tensor, "B n"]) -> EventSolve:
    """Integrate u0 leg by leg; see the module's text."""
    spec = run.spec
    state = Progress.start(run, u0)
    legs: list[Segment] = []
    pieces: list[tuple[Tensor, Tensor, Tensor]] = []
    fire_preset(run, state, spec.t0)
    choose_first_times(run, state)
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
    times, values = collect(spec, u0, pieces)
    result = ForwardResult(
        times=times,
        values=values,
        record=None,
        retcode=state.codes,
        t_end=state.t,
        accepted_steps=state.accepted,
        rejected_steps=state.rejected,
        nf=state.nf,
        njacs=state.njacs,
        nw=state.nw,
        nproducts=state.nproducts,
        switches=state.switches,
    )
    return EventSolve(result, tuple(state.events), dense_of(legs, u0))


def _one_leg(run: EventRun, state: Progress) -> tuple[Segment, Located, Tensor, Tensor, Tensor]:
    spec, engine = run.spec, run.engine
    u = state.u
    first = derivative(spec, u.detach(), state.t, run.p)
    watch = Watch(run, state)
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
    located = Located(
        t=end,
        live_t=live_t,
        u=u_end,
        fired=fired,
        component=component,
        watched=watch.discrete,
        codes=torch.where(state.running, result.retcode, 0),
    )
    leg = Segment(state.t, end, lambda asked: run.project(read(asked)))
    return leg, located, times, run.project(live[:, : times.shape[1]]), inside & state.running.unsqueeze(-1)


def _asked(run: EventRun, state: Progress, watch: Watch, end: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of every observer, the times in this leg at which it looks, and which of them count."""
    if not state.observers:
        return []
    leg = ObservedSegment(
        start=state.t,
        end=end,
        fresh=state.running & (state.t == run.spec.t0),
        jumped=state.jumped,
        steps=watch.steps(),
        close=2 * _BEFORE_STOP * rounding(end, run.spec),
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
    values = []
    for index, callback in enumerate(run.callbacks):
        which = fired == index
        if bool(which.any()) and isinstance(callback, (ContinuousCallback, VectorContinuousCallback)):
            value = component_of(run.call(callback.condition, u, t), component, len(t))
            if value.requires_grad:  # by the state, or by a trainable tensor of its own
                values.append((callback, which, value))
    if not values and not moving:
        return u, t
    live_t = t
    du = derivative(run.spec, u.detach(), t, run.p)
    for callback, which, value in values:
        at, when = u.detach().requires_grad_(), t.detach().clone().requires_grad_()
        with torch.enable_grad():
            probe = component_of(run.call(callback.condition, at, when), component, len(t))
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


def _next_stop(run: EventRun, state: Progress) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
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
    margin = _BEFORE_STOP * rounding(stop, spec) * sign.squeeze(-1)
    inner = state.running & (stop != spec.t1) & ((stop - state.t).abs() > 2 * margin.abs())
    return stop, torch.where(inner, stop - margin, stop)


def _observe_still(run: EventRun, state: Progress) -> None:
    """Trajectories that have ended at their start have no leg; what there is to see of them is that."""
    still, nothing = ~state.running, state.t.new_empty(len(state.t), 0)
    if bool(still.any()):
        leg = ObservedSegment(state.t, state.t, still, still, nothing, torch.zeros_like(state.t), run.spec.sign)
        asked = [observer.times(leg) for observer in state.observers]
        count = sum(looked.shape[1] for looked, _ in asked)
        _observe(run, state, asked, state.u.unsqueeze(1).expand(-1, count, -1))


def _observe(run: EventRun, state: Progress, asked: list[tuple[Tensor, Tensor]], states: Tensor) -> None:
    """Show every observer the states at the times that it asked for."""
    parts = run.project(states).split([times.shape[1] for times, _ in asked], 1) if asked else ()
    for observer, (times, counts), seen in zip(state.observers, asked, parts, strict=True):
        observer.take(run.call, times, seen, counts)
