"""Solves with events: an ordinary solve for each segment between events, joined so that gradients pass through.

A segment ends at the first event of each trajectory (or its next preset time). The engine stops a trajectory after the
step in which its condition changes sign; the time of the event is then located on the dense output of that step.

Gradients. The values of a segment are differentiable for fixed times. The event time t* solves g(u(t*), p, t*) = 0, so
``dt* = -dg / (g_u f + g_t)``; adding the term ``-(g - g.detach()) / (g_u f + g_t)``, which is zero in value, makes t* a
differentiable number. In the same way ``f (t* - t*.detach())`` moves the state before the event along with its time,
and ``-f_after (t* - t*.detach())`` starts the next segment as if it had begun at the moved time. Source: the saltation
matrix, P. C. Mueller, Chaos, Solitons & Fractals 5 (1995) 1671; Chen, Amos & Nickel, ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec
from ude.engines.initialization import derivative
from ude.engines.return_code import ReturnCode
from ude.events.callbacks import ContinuousCallback, PeriodicCallback, PresetTimeCallback, VectorContinuousCallback
from ude.events.observers import ObservedSegment
from ude.events.outcome import EventSolve, SolveSegment, dense_output, join_saves
from ude.events.progress import Progress, SegmentEnd, apply_preset, choose_first_times
from ude.events.run import EventRun, preset_times
from ude.events.times import rounding
from ude.events.watch import Watch, component_of
from ude.sensitivity import Solved
from ude.sensitivity.reading import EVENT_TIME, first_derivative_only

# The integration to a stop ends this many units of rounding before it, so that every stage sees an input that switches
# there from its left (and the next segment from its right).
_BEFORE_STOP = 4


def solve_with_events(run: EventRun, u0: Float[Tensor, "B n"]) -> EventSolve:
    """Integrate u0 segment by segment; the text of the module explains how."""
    state = Progress.start(run, u0)
    segments: list[SolveSegment] = []
    apply_preset(run, state, run.spec.t0)
    choose_first_times(run, state)
    _observe_still(run, state)
    while bool(state.running.any()):
        if len(state.events) > run.max_events:
            state.stop(state.running, ReturnCode.MaxEvents)
            break
        segment, end = _solve_segment(run, state)
        state.arrive(run, end)
        if bool(state.unsaved.any()):
            unsaved = state.unsaved.unsqueeze(-1) & (segment.times == state.t.unsqueeze(-1))
            segment = replace(segment, saved=segment.saved & ~unsaved)
        segments.append(segment)
    for observer in state.observers:
        observer.finish()
    times, values = join_saves(run.spec, u0, segments)
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
    return EventSolve(result, tuple(state.events), dense_output(segments, u0))


@dataclass(frozen=True, eq=False)
class _Integration:
    """The integration of one segment, and reads of it.

    Args:
        u: State at its start, connected to the graph (B, n).
        spec: The segment, its end where the integration ended.
        reach, stop: How far the integration was to go, and the stop just after that, up to which it is read (B,).
    """

    run: EventRun
    u: Float[Tensor, "B n"]
    spec: SolveSpec
    result: ForwardResult
    reach: Float[Tensor, "B"]
    stop: Float[Tensor, "B"]

    def interpolate(self, times: Float[Tensor, "B T"]) -> Float[Tensor, "B T n"]:
        """Evaluate the dense output, without a graph."""
        times = _clip(times, self.reach, self.stop, self.spec.sign)
        return self.run.engine.interpolate(self.spec, self.result.record, self.run.p, times)

    def read(self, times: Float[Tensor, "B T"], values: Tensor | None = None) -> Float[Tensor, "B T n"]:
        """Evaluate the dense output (or take its `values`), connected to the graph."""
        values = self.interpolate(times) if values is None else values
        # u may need a gradient where u0 and p do not: an affect may have brought in a trainable tensor of its own
        if not (self.run.tracked or self.u.requires_grad) or not torch.is_grad_enabled():
            return values
        record = self.result.record
        solved = Solved(self.run.engine, self.spec, record, record.u_end)
        times = _clip(times, self.reach, self.stop, self.spec.sign)
        return self.run.sensealg.attach(solved, times, values, self.u, self.run.p)

    def project(self, times: Float[Tensor, "B T"]) -> Float[Tensor, "B T n"]:
        """`read`, projected onto the domains of the solve."""
        return self.run.project(self.read(times))


def _clip(times: Tensor, reach: Tensor, stop: Tensor, sign: Tensor) -> Float[Tensor, "B T"]:
    """Move times between the end of the integration and the stop to the end of the integration."""
    reach, stop, sign = reach.unsqueeze(-1), stop.unsqueeze(-1), sign.unsqueeze(-1)
    return torch.where(((times - reach) * sign > 0) & ((times - stop) * sign <= 0), reach, times)


def _integrate(run: EventRun, state: Progress, watch: Watch) -> _Integration:
    """Integrate every running trajectory up to its next stop, or to the step in which `watch` finds an event."""
    spec = run.spec
    stop, reach = _next_stop(run, state)
    spec = replace(
        spec,
        t0=state.t,
        t1=reach,
        saveat=None if spec.saveat is None else _clip(spec.saveat, reach, stop, spec.sign),
        first_du=derivative(spec, state.u.detach(), state.t, run.p),
        watch=watch if watch.needed else None,
        dt=spec.dt if not spec.adaptive or not state.nf else None,
        stiff=state.stiff,
        resume=state.resume(),
    )
    result = run.engine.forward(spec, state.u.detach(), run.p)
    state.count(result, adaptive=spec.adaptive)
    return _Integration(run, state.u, replace(spec, t1=result.t_end, watch=None), result, reach, stop)


def _solve_segment(run: EventRun, state: Progress) -> tuple[SolveSegment, SegmentEnd]:
    """Solve up to the next event of each trajectory, and read everything that is asked of the segment at once."""
    spec, start = run.spec, state.t
    watch = Watch(run, state)
    part = _integrate(run, state, watch)
    result = part.result
    end, fired, component = watch.locate(
        part.interpolate, torch.where(result.t_end == part.reach, part.stop, result.t_end)
    )
    at_end = part.interpolate(end.unsqueeze(-1))
    if spec.saveat is None:  # both sides of an event are saved: its time ends this segment and starts the next
        times, values = torch.cat([result.times, end.unsqueeze(-1)], 1), torch.cat([result.values, at_end], 1)
    else:
        times, values = spec.saveat, result.values
    asked = _observed_times(run, state, watch, end)
    more = torch.cat([times[:, :0], *(when for when, _ in asked)], 1)
    known = [values, part.interpolate(more), at_end] if more.shape[1] else [values, at_end]
    read = part.read(torch.cat([times, more, end.unsqueeze(-1)], 1), torch.cat(known, 1))
    _observe(run, state, asked, read[:, times.shape[1] : -1])
    # f may jump at the stop itself: its derivative before that is needed
    before = torch.where(end == part.stop, part.reach, end)
    u_end, event_t = _move_with_time(run, read[:, -1], (end, before), fired, component, state.chosen)
    segment = SolveSegment(
        start=start,
        end=end,
        read=part.project,
        times=times,
        values=run.project(read[:, : times.shape[1]]),
        saved=_saved(run, state, times, end),
    )
    codes = torch.where(state.running, result.retcode, 0)
    return segment, SegmentEnd(end, event_t, u_end, fired, component, watch.discrete, codes)


def _saved(run: EventRun, state: Progress, times: Float[Tensor, "B T"], end: Tensor) -> Bool[Tensor, "B T"]:
    """Which times belong to the segment from the current state to `end`; its start only where it was not saved."""
    sign = run.spec.sign.unsqueeze(-1)
    after, before = (times - state.t.unsqueeze(-1)) * sign, (end.unsqueeze(-1) - times) * sign
    with_start = (state.t == run.spec.t0) | (state.jumped if run.spec.saveat is None else False)
    inside = ((after > 0) | (with_start.unsqueeze(-1) & (after == 0))) & (before >= 0)
    return inside & state.running.unsqueeze(-1)


def _observed_times(run: EventRun, state: Progress, watch: Watch, end: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each observer, the times in this segment at which it is evaluated, and which of them count."""
    if not state.observers:
        return []
    segment = ObservedSegment(
        start=state.t,
        end=end,
        fresh=state.running & (state.t == run.spec.t0),
        jumped=state.jumped,
        steps=watch.steps(),
        close=2 * _BEFORE_STOP * rounding(end, run.spec),
        sign=run.spec.sign,
    )
    return [observer.times(segment) for observer in state.observers]


def _move_with_time(
    run: EventRun,
    u: Tensor,
    at: tuple[Tensor, Tensor],
    fired: Tensor,
    component: Tensor,
    chosen: dict[int, Tensor],
) -> tuple[Tensor, Float[Tensor, "B"]]:
    """Make the time of each located event differentiable, and move the state before the event with it.

    Args:
        at: The time of the event, and the time just before it at which f has its value before the event.
    """
    t, before = at
    chosen = {**chosen, -1: _moving_stop(run, t)} if run.tstops.requires_grad else chosen
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
    event_t = t
    du = derivative(run.spec, u.detach(), before, run.p)
    for callback, which, value in values:
        state, when = u.detach().requires_grad_(), t.detach().clone().requires_grad_()
        with torch.enable_grad():
            probe = component_of(run.call(callback.condition, state, when), component, len(t))
        by_u, by_t = torch.autograd.grad(probe.sum(), (state, when), allow_unused=True)
        rate = torch.zeros_like(t)
        rate = rate + ((by_u * du).sum(-1) if by_u is not None else 0.0)
        rate = rate + (by_t if by_t is not None else 0.0)
        # a condition that only touches zero has no event time to differentiate
        usable = which & (rate != 0)
        shift = -(value - value.detach()) / torch.where(usable, rate, 1.0)
        # rate and du count as constants here, which second derivatives would have to know
        shift = first_derivative_only(EVENT_TIME, shift, u, value)
        event_t = torch.where(usable, event_t + shift, event_t)
    for choice in moving:
        shift = first_derivative_only(EVENT_TIME, choice - choice.detach(), u)
        event_t = torch.where((choice.detach() == t) & (fired < 0), t + shift, event_t)
    return u + du * (event_t - event_t.detach()).unsqueeze(-1), event_t


def _moving_stop(run: EventRun, t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The differentiable stop at these times; NaN where there is none."""
    here = run.tstops.detach() == t.unsqueeze(-1)
    return torch.where(
        here.any(-1), torch.where(here, run.tstops, 0.0).sum(-1) / here.sum(-1).clamp(min=1), float("nan")
    )


def _next_stop(run: EventRun, state: Progress) -> tuple[Float[Tensor, "B"], Float[Tensor, "B"]]:
    """Find the latest end of each trajectory's segment: its next preset time or stop, or the end of its span.

    Returns:
        That time, and the time up to which the segment is integrated: a few units of rounding less at a stop.
    """
    spec = run.spec
    sign = spec.sign.unsqueeze(-1)
    rows = [run.tstops.detach(), spec.t1.unsqueeze(-1)]
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
    """Show the observers the trajectories that end at their start, which have no segment."""
    still, nothing = ~state.running, state.t.new_empty(len(state.t), 0)
    if bool(still.any()):
        segment = ObservedSegment(state.t, state.t, still, still, nothing, torch.zeros_like(state.t), run.spec.sign)
        asked = [observer.times(segment) for observer in state.observers]
        count = sum(when.shape[1] for when, _ in asked)
        _observe(run, state, asked, state.u.unsqueeze(1).expand(-1, count, -1))


def _observe(run: EventRun, state: Progress, asked: list[tuple[Tensor, Tensor]], states: Tensor) -> None:
    """Evaluate every observer on the states at the times that it asked for."""
    parts = run.project(states).split([times.shape[1] for times, _ in asked], 1) if asked else ()
    for observer, (times, counted), u in zip(state.observers, asked, parts, strict=True):
        observer.take(run.call, times, u, counted)
