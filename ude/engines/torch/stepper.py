"""The adaptive loop: every trajectory of the batch has its own time, step and status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import ForwardResult, SolveSpec, StepControl, StepRecord
from ude.engines.return_code import ReturnCode
from ude.engines.torch.checkpoints import Keeper
from ude.engines.torch.compaction import (
    SMALLEST_BATCH,
    CompactRecord,
    RecordPart,
    gather_leaves,
    gather_spec,
    may_compact,
    rows_of_leaves,
    same_alone,
)
from ude.engines.torch.lanes import BatchArithmetic, lanes_for
from ude.engines.torch.scheme import Part, Scheme, Trial
from ude.engines.torch.stages import extend, locate
from ude.engines.work import Work
from ude.methods.controller import FACTOR_GRID, SMALLEST_ERROR

# Saves are evaluated from the stages of this many steps at a time, so that stages need not be kept for all.
_ROWS_AT_ONCE = 64


@dataclass
class _Rows:
    """Accepted steps so far, and the saves evaluated from them."""

    scheme: Scheme
    keeper: Keeper
    sign: Tensor
    saveat: Float[Tensor, "B T"] | None
    values: Float[Tensor, "B T n"] | None
    t: list[Tensor]
    dt: list[Tensor] = field(default_factory=list)
    u: list[Tensor] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    implicit: list[bool] = field(default_factory=list)
    reader: Scheme | None = None
    #: Whose step before the first row, in the batch before, was implicit (B,); None where none was.
    goes_on: Tensor | None = None

    def ended_implicit(self) -> Tensor | None:
        """Whose last step was implicit (B,); None where no step was."""
        last = self.goes_on
        if any(self.implicit):
            last = torch.zeros_like(self.dt[0], dtype=torch.bool) if last is None else last
            for dt, implicit in zip(self.dt, self.implicit, strict=True):
                last = torch.where(dt != 0, implicit, last)
        return last

    def add(self, end: Tensor, dt: Tensor, start: tuple[Tensor, Tensor], part: Part) -> None:
        """Add a row of steps from `start` (u, k1) of size dt that lead to the times `end`."""
        u, k1 = start
        if part.scheme is not self.reader:
            self.flush()
            self.reader = part.scheme
        self.t.append(end)
        self.dt.append(dt)
        self.implicit.append(part.implicit)
        self.keeper.add(u, k1 if self.scheme.carries_derivative else None)
        if self.saveat is not None:
            self.u.append(u)
            self.stages.append(part.k)
            if len(self.stages) == _ROWS_AT_ONCE:
                self.flush()

    def add_parts(self, trial: Trial, end: Tensor, dt: Tensor, start: tuple[Tensor, Tensor], k1: Tensor) -> None:
        """Add a row for each method that some trajectory took a step with; k1 is what the next step starts with."""
        now = self.t[-1]
        for part in trial.parts:
            if part.lanes is None:
                self.add(end, dt, start, part)
                continue
            moves = part.lanes & (dt != 0)
            if bool(moves.any()):
                now, column = torch.where(moves, end, now), moves.unsqueeze(-1)
                self.add(now, torch.where(moves, dt, 0.0), start, part)
                start = torch.where(column, trial.u, start[0]), torch.where(column, k1, start[1])

    def flush(self) -> None:
        """Evaluate the saves that fall into the steps whose stages are held, and let the stages go."""
        held, scheme = len(self.stages), self.reader
        if self.saveat is None or self.values is None or scheme is None or not held:
            return
        t, dt, u = torch.stack(self.t[-held - 1 :]), torch.stack(self.dt[-held:]), torch.stack(self.u)
        row, theta = locate(t, dt, self.saveat, self.sign)
        after_start = self.saveat * self.sign.unsqueeze(-1) >= (t[0] * self.sign).unsqueeze(-1)
        lane, save = ((row < held) & after_start).nonzero(as_tuple=True)
        picked, theta = row[lane, save], theta[lane, save]
        if scheme.extra_stages:
            # reads at the ends of a step are its states, for which no further stage is evaluated
            inside = (theta != 0.0) & (theta != 1.0)
            for i in picked[inside].unique().tolist():
                here = inside & (picked == i)
                k = scheme.complete(u[i], t[i], dt[i], self.stages[i])[:, lane[here]].transpose(0, 1)
                start = u[i, lane[here]], dt[i, lane[here]]
                self.values[lane[here], save[here]] = extend(scheme.interpolant, *start, theta[here], k)
            lane, save, picked, theta = lane[~inside], save[~inside], picked[~inside], theta[~inside]
            weights = scheme.step_weights
        else:
            weights = scheme.interpolant
        k = torch.stack(self.stages)[picked, : len(weights), lane]
        self.values[lane, save] = extend(weights, u[picked, lane], dt[picked, lane], theta, k)
        self.u.clear()
        self.stages.clear()


@dataclass
class _State:
    """Where every trajectory stands; per-trajectory numbers are floats or (B,) tensors (see `lanes`)."""

    t: Any
    dt: Any
    u: Tensor
    k1: Tensor
    memory: tuple[Any, ...]
    active: Any
    stopped: Any


@dataclass
class _Batch:
    """Trajectories that run together: all at first, later those that the others have left behind.

    Args:
        start: Their states at the start of the solve.
        index: Which of the whole batch they are.
        before: Steps that each had accepted when this batch began.
        narrow_at: When at most so many still run, they go on alone.
    """

    spec: SolveSpec
    scheme: Scheme
    lanes: BatchArithmetic
    rows: _Rows
    state: _State
    start: Tensor
    index: Tensor
    accepted: Any
    rejected: Any
    codes: Any
    before: Any
    narrow_at: int


def integrate(spec: SolveSpec, scheme: Scheme, u0: Tensor) -> ForwardResult:
    """Integrate u0 (B, n) over the span of `spec` without building an autograd graph."""
    batches = [_whole_batch(spec, scheme, u0)]
    per_trajectory: tuple[bool, ...] | None = None
    iterations = 0
    while True:
        batch = batches[-1]
        iterations = _run(batch, iterations)
        if not batch.lanes.any(batch.state.active) or iterations == spec.maxiters:
            break
        narrower, per_trajectory = _narrower(batch, per_trajectory)
        if narrower is None:
            # f does not bear it
            batch.narrow_at = 0
        else:
            batches.append(narrower)
    last = batches[-1]
    last.rows.flush()
    last.codes = last.lanes.where(last.state.active, float(ReturnCode.MaxIters), last.codes)
    return _result(batches, per_trajectory or ())


def _whole_batch(spec: SolveSpec, scheme: Scheme, u0: Tensor) -> _Batch:
    lanes = lanes_for(u0, u0.shape[0])
    sign = spec.sign
    values = None if spec.saveat is None else u0.new_full((*spec.saveat.shape, u0.shape[1]), float("nan"))
    keeper = Keeper("all" if spec.saveat is None else spec.checkpoints)
    zeros = lanes.read(torch.zeros_like(spec.t0))
    return _Batch(
        spec=spec,
        scheme=scheme,
        lanes=lanes,
        rows=_Rows(scheme, keeper, sign, spec.saveat, values, [spec.t0]),
        state=_State(
            t=lanes.read(spec.t0),
            dt=lanes.read(_start_step(spec, scheme.work, scheme.error_order, u0, sign)),
            u=u0,
            k1=spec.first_du,
            memory=tuple(lanes.read(item) for item in _start_memory(spec)),
            active=lanes.read(spec.t0 != spec.t1 if spec.failed is None else (spec.t0 != spec.t1) & ~spec.failed),
            stopped=lanes.read(torch.zeros_like(spec.t0, dtype=torch.bool)),
        ),
        start=u0,
        index=torch.arange(len(u0), device=u0.device),
        accepted=zeros,
        rejected=zeros,
        codes=zeros if spec.failed is None else lanes.read(spec.failed * float(ReturnCode.InitialFailure)),
        before=zeros,
        narrow_at=len(u0) // 2 if may_compact(spec) else 0,
    )


def _run(batch: _Batch, iterations: int) -> int:
    """Try steps until all have ended, few enough are left, or the iterations are used up; returns those used so far."""
    spec, lanes, state = batch.spec, batch.lanes, batch.state
    sign, end = lanes.read(spec.sign), lanes.read(spec.t1)
    attempt = _Attempt(spec, batch.scheme, lanes)
    running = lanes.count(state.active)
    while running > batch.narrow_at and iterations < spec.maxiters:
        iterations += 1
        accept, code = attempt(state, batch.rows, sign, end)
        live = state.active
        batch.accepted = batch.accepted + lanes.where(accept, 1.0, 0.0)
        batch.rejected = batch.rejected + lanes.where(lanes.negate(accept) & live, 1.0, 0.0)
        batch.codes = lanes.where(live, code, batch.codes)
        state.active = live & (code == 0.0) & ((end - state.t) * sign > 0.0) & lanes.negate(state.stopped)
        running = lanes.count(state.active)
    return iterations


def _narrower(batch: _Batch, per_trajectory: tuple[bool, ...] | None) -> tuple[_Batch | None, tuple[bool, ...] | None]:
    """The trajectories that still run as a batch of their own, where f bears it; and which leaves were gathered."""
    spec, scheme, state, p = batch.spec, batch.scheme, batch.state, batch.scheme.work.p
    index = state.active.nonzero().squeeze(-1)
    # with a mass matrix the derivative at the start is not f there
    known = spec.first_du if spec.mass is None else None
    points = ((batch.start, spec.t0, known), (state.u, state.t, None), (state.u, spec.t1, None))
    guesses = rows_of_leaves(spec, p) if per_trajectory is None else [per_trajectory]
    for guess in guesses:
        # the calls of f that the trial costs
        scheme.work.calls += len(points)
        if same_alone(spec, p, index, guess, points):
            break
    else:
        return None, per_trajectory
    part, leaves = gather_spec(spec, index), gather_leaves(p, guess, index)
    taken = scheme.gather(index, part, leaves)
    rows = batch.rows
    rows.flush()
    implicit = rows.ended_implicit()
    values = None if rows.values is None else rows.values[index]
    narrow = _Rows(taken, Keeper("all"), part.sign, part.saveat, values, [state.t[index]])
    narrow.goes_on = None if implicit is None else implicit[index]
    moved = _State(
        t=state.t[index],
        dt=state.dt[index],
        u=state.u[index],
        k1=state.k1[index],
        memory=tuple(item[index] for item in state.memory),
        active=state.active[index],
        stopped=state.stopped[index],
    )
    return _Batch(
        spec=part,
        scheme=taken,
        lanes=batch.lanes,
        rows=narrow,
        state=moved,
        start=batch.start[index],
        index=batch.index[index],
        accepted=batch.accepted[index],
        rejected=batch.rejected[index],
        codes=batch.codes[index],
        before=batch.accepted[index],
        narrow_at=len(index) // 2 if len(index) >= SMALLEST_BATCH else 0,
    ), guess


@dataclass(frozen=True, eq=False)
class _Step:
    """A step that is tried: its size and signed size, start and end, one a lane, and the latter as tensors."""

    size: Any
    taken: Any
    last: Any
    at_smallest: Any
    t: Tensor
    dt: Tensor


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What became of a trial, one a lane.

    Args:
        error: The scaled error, infinite where it is not finite.
        judged: The same, infinite too where the user's domain was left.
        outside: Who left that domain; None without one.
        solved: Who solved the stages; None when there is nothing to solve.
    """

    error: Any
    judged: Any
    finite: Any
    outside: Any
    solved: Any
    accept: Any


class _Attempt:
    """Tries one step of every trajectory and moves those that accept it."""

    def __init__(self, spec: SolveSpec, scheme: Scheme, lanes: BatchArithmetic) -> None:
        self._spec, self._scheme, self._lanes = spec, scheme, lanes
        self._controller, self._checks = spec.controller, spec.checks
        self._resolution = 16 * torch.finfo(spec.t0.dtype).eps
        self._tiny = max(spec.dtmin, 1e3 * torch.finfo(spec.t0.dtype).tiny)

    def __call__(self, state: _State, rows: _Rows, sign: Any, end: Any) -> tuple[Any, Any]:
        """Return who accepted the step, and the `ReturnCode` of whoever cannot go on, 0 for all others."""
        spec, scheme, lanes = self._spec, self._scheme, self._lanes
        remaining = (end - state.t) * sign
        last = state.dt >= remaining * (1 - 1e-10)
        size = lanes.where(state.active, lanes.minimum(state.dt, remaining), remaining * 0.0)
        taken = size * sign
        at_smallest = spec.force_dtmin and size <= self._smallest_step(state.t)
        step = _Step(size, taken, last, at_smallest, lanes.tensor(state.t), lanes.tensor(taken))
        before = state.t
        trial = scheme.attempt(state.u, state.k1, step.t, step.dt)
        # that of the methods with which this step was tried
        order = scheme.error_order
        verdict = self._judge(state, step, trial, order)
        stretch = self._move(state, rows, step, trial, verdict.accept, end) if lanes.any(verdict.accept) else None
        if spec.adaptive:
            self._choose_step(state, step, trial, verdict, order, stretch)
        codes = self._codes(state, step, trial, verdict, before)
        if self._checks.unstable_check is not None:
            given_up = self._checks.unstable_check(step.dt, state.u, scheme.work.p, step.t + step.dt)
            codes = lanes.where(verdict.accept & lanes.read(given_up), float(ReturnCode.Unstable), codes)
        return verdict.accept, codes

    def _smallest_step(self, t: Any) -> Any:
        return self._lanes.maximum(abs(t) * self._resolution, self._tiny)

    def _judge(self, state: _State, step: _Step, trial: Trial, order: Any) -> _Verdict:
        spec, lanes = self._spec, self._lanes
        error, finite = _scaled_error(spec, lanes, state.u, trial, step.t)
        judged, outside = error, None
        if self._checks.isoutofdomain is not None:
            outside = self._checks.isoutofdomain(trial.u, self._scheme.work.p, step.t + step.dt)
            outside = lanes.read(outside) & finite
            judged = lanes.where(outside, float("inf"), error)
        own = self._scheme.chooses_steps
        within = judged <= 1.0 if own else self._controller.accepts(lanes, judged, state.memory, order)
        accept = finite & within & state.active
        if spec.force_dtmin:
            accept = accept | (finite & step.at_smallest & state.active)
        solved = None if trial.converged is None else lanes.read(trial.converged)
        if solved is not None:
            accept = accept & solved
        return _Verdict(error, judged, finite, outside, solved, accept)

    def _move(self, state: _State, rows: _Rows, step: _Step, trial: Trial, accept: Any, end: Any) -> Any:
        """Move whoever accepted; returns factors of the step sizes where a method changed, else None."""
        scheme, lanes, watch = self._scheme, self._lanes, self._spec.watch
        state.t = lanes.where(accept, lanes.where(step.last, end, state.t + step.taken), state.t)
        reached, taken = lanes.tensor(state.t), lanes.tensor(lanes.where(accept, step.taken, step.taken * 0.0))
        moved = lanes.tensor(accept).to(torch.bool)
        # before the row is added: the dense output may be made of this derivative too
        k1 = scheme.derivative_after(trial, step.t + step.dt)
        if trial.parts:
            rows.add_parts(trial, reached, taken, (state.u, state.k1), k1)
        else:
            rows.add(reached, taken, (state.u, state.k1), Part(scheme, trial.k, None, False))
        if watch is not None:
            stop = watch(step.t, state.u, reached, trial.u, moved) & moved
            state.stopped = state.stopped | lanes.read(stop)
        scheme.settle(moved)
        state.u, state.k1 = lanes.select(accept, trial.u, state.u), lanes.select(accept, k1, state.k1)
        switched = scheme.switch(state.u, state.k1, reached)
        if switched is None:
            return None
        state.k1, stretch = switched
        return stretch

    def _choose_step(
        self, state: _State, step: _Step, trial: Trial, verdict: _Verdict, order: Any, stretch: Any
    ) -> None:
        """Choose the step that each trajectory tries next, and let the controller remember this one."""
        spec, lanes, controller, accept = self._spec, self._lanes, self._controller, verdict.accept
        own = self._scheme.chooses_steps
        if own:
            factor = self._scheme.factor(accept, verdict.judged)
        else:
            factor = controller.factor(lanes, verdict.judged, state.memory, accept, order)
        if self._checks.scalefactor is not None:
            again: Any = self._checks.scalefactor
            if not own:
                again = lanes.minimum(controller.factor(lanes, verdict.error, state.memory, accept, order), again)
            factor = lanes.where(verdict.outside & lanes.negate(accept), again, factor)
        if verdict.solved is not None and trial.shrink is not None:
            factor = lanes.where(verdict.solved, factor, lanes.read(trial.shrink))
        factor = factor if stretch is None else factor * stretch
        proposed = lanes.minimum(step.size * factor, spec.dtmax)
        # a step cut short by the end says little about the next: whoever goes on from here keeps the longer one
        proposed = lanes.where(accept & step.last, lanes.maximum(proposed, state.dt), proposed)
        state.dt = lanes.where(state.active, proposed, state.dt)
        learnt = controller.remember(lanes, verdict.error, state.memory)
        state.memory = tuple(lanes.where(accept, new, old) for new, old in zip(learnt, state.memory, strict=True))

    def _codes(self, state: _State, step: _Step, trial: Trial, verdict: _Verdict, before: Any) -> Any:
        """Who cannot go on, and why; and no step may be smaller than allowed."""
        spec, lanes, accept = self._spec, self._lanes, verdict.accept
        smallest = self._smallest_step(state.t)
        # a step that is NaN, as it is where u0 is, is no step either
        too_small = lanes.negate(state.dt >= smallest)
        if spec.force_dtmin:
            # at the smallest step only a state that is not finite, or stages that cannot be solved, are an end
            stuck = lanes.negate(accept) & (step.at_smallest | (not spec.adaptive))
            state.dt = lanes.maximum(state.dt, smallest)
        else:
            stuck = lanes.negate(accept) & (too_small | (not spec.adaptive))
        code = float(ReturnCode.DtLessThanMin)
        if verdict.solved is not None and trial.shrink is not None:
            # a step that is tried again with a new Jacobian is not lost yet
            stuck = stuck & (verdict.solved | (lanes.read(trial.shrink) < 1.0))
            code = lanes.where(verdict.solved, code, float(ReturnCode.ConvergenceFailure))
        # into a singularity some methods step without an error, by steps that no longer change the time
        stuck = stuck | (accept & (state.t == before) & too_small)
        # a small last step or a cautious controller is no failure: only a rejection at the smallest step is
        state.dt = lanes.maximum(state.dt, spec.dtmin) if spec.dtmin else state.dt
        failed = lanes.where(verdict.finite, code, float(ReturnCode.Unstable))
        return lanes.where(stuck, failed, failed * 0.0)


def _scaled_error(spec: SolveSpec, lanes: BatchArithmetic, old: Tensor, trial: Trial, t: Tensor) -> tuple[Any, Any]:
    """Norm of error/(abstol + reltol max(|u|, |u_next|)) of each trajectory, and whether it is finite."""
    new, error = trial.u, trial.error
    if error is None:
        finite = lanes.isfinite(lanes.read(new.abs().sum(-1)))
        return lanes.where(finite, 0.0, float("inf")), finite
    scale = torch.maximum(old.abs(), new.abs()) * spec.reltol + spec.abstol
    norm = _norm(spec, error / scale, t)
    if trial.error_low is not None:
        low = _norm(spec, trial.error_low / scale, t)
        norm = norm * (norm / torch.hypot(norm, 0.1 * low).clamp(min=SMALLEST_ERROR))
    size = lanes.read(norm)
    finite = lanes.isfinite(size)
    return lanes.where(finite, size, float("inf")), finite


def _norm(spec: SolveSpec, scaled: Float[Tensor, "B n"], t: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """The root mean square of each trajectory, or the norm that the user gave."""
    if spec.checks.internalnorm is not None:
        return spec.checks.internalnorm(scaled, t)
    size: Tensor = torch.linalg.vector_norm(scaled, dim=-1)
    result: Tensor = size * scaled.shape[-1] ** -0.5
    return result


def _start_memory(spec: SolveSpec) -> tuple[Float[Tensor, "B"], ...]:
    """What the controller remembers at the start: that of the solve before where it goes on from one."""
    fresh = tuple(torch.full_like(spec.t0, value) for value in spec.controller.start())
    if spec.resume is None:
        return fresh
    jumped = spec.resume.jumped
    return tuple(torch.where(jumped, new, old) for old, new in zip(spec.resume.memory, fresh, strict=True))


def _start_step(spec: SolveSpec, f: Work, order: int, u0: Tensor, sign: Tensor) -> Float[Tensor, "B"]:
    """The step that each trajectory tries first: given, carried over from the solve before, or chosen.

    After a jump the carried step is bounded by the time scale |u|/|f| of the new state, where it has one. That spares
    the call of f and the cautious first steps of a choice from nothing (a seventh to a third of a bouncing ball's
    calls); the carried step alone was rejected several times when a dose met a fast elimination.
    """
    if spec.dt is not None or spec.resume is None:
        return _first_step(spec, f, order, u0, sign)
    scale = spec.abstol + spec.reltol * u0.abs()
    size, slope = _norm(spec, u0 / scale, spec.t0), _norm(spec, spec.first_du / scale, spec.t0)
    known = torch.where((size > 1e-5) & (slope > 1e-5), size / slope, float("nan"))
    carried = torch.where(spec.resume.jumped, torch.minimum(spec.resume.dt, known), spec.resume.dt)
    # a state that an event left near zero has a time scale below the resolution of the time
    carried = torch.maximum(carried, 16 * torch.finfo(u0.dtype).eps * spec.t0.abs())
    carried = carried.clamp(min=spec.dtmin, max=spec.dtmax)
    moving = spec.t0 != spec.t1
    if not bool((torch.isnan(carried) & moving).any()):
        # nobody needs the call of f that choosing costs
        return carried
    return torch.where(torch.isnan(carried), _first_step(spec, f, order, u0, sign), carried)


def _first_step(spec: SolveSpec, f: Work, order: int, u0: Tensor, sign: Tensor) -> Float[Tensor, "B"]:
    """Choose the first step of each trajectory so that an Euler step's error is about 1 % of the tolerance.

    Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, II.4.
    """
    span = (spec.t1 - spec.t0).abs()
    if spec.dt is not None:
        return torch.full_like(span, spec.dt)
    root_n = u0.shape[-1] ** 0.5
    scale = spec.abstol + spec.reltol * u0.abs()

    def norm(x: Tensor) -> Tensor:
        if spec.checks.internalnorm is not None:
            return spec.checks.internalnorm(x / scale, spec.t0)
        result: Tensor = torch.linalg.vector_norm(x / scale, dim=-1) / root_n
        return result

    d0, d1 = norm(u0), norm(spec.first_du)
    small = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.minimum(torch.where(small, 1e-6, 0.01 * d0 / d1.clamp(min=1e-300)), span.clamp(max=spec.dtmax))
    step = h0 * sign
    probe = f.derivative(torch.addcmul(u0, step.unsqueeze(-1), spec.first_du), spec.t0 + step)
    d2 = norm(probe - spec.first_du) / h0.clamp(min=1e-300)
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, (h0 * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** (1 / (order + 1)))
    chosen = torch.minimum(100 * h0, h1)
    # a probe outside the domain of f says nothing; its own size is the cautious choice
    chosen = torch.where(torch.isfinite(chosen), chosen, h0)
    # ten binary digits, so that rounding errors in f do not reach the steps (see FACTOR_GRID)
    mantissa, exponent = torch.frexp(chosen)
    chosen = torch.ldexp((mantissa / FACTOR_GRID).round() * FACTOR_GRID, exponent)
    chosen = torch.maximum(chosen, 16 * torch.finfo(span.dtype).eps * spec.t0.abs())
    return torch.minimum(chosen, span.clamp(max=spec.dtmax)).clamp(min=spec.dtmin)


def _result(batches: Sequence[_Batch], per_trajectory: tuple[bool, ...]) -> ForwardResult:
    whole, spec = batches[0], batches[0].spec
    records = [_record_of(batch) for batch in batches]
    record: StepRecord | CompactRecord = records[0]
    if len(batches) > 1:
        segments = tuple(RecordPart(batch.index, part) for batch, part in zip(batches, records, strict=True))
        record = CompactRecord(segments, _gathered(batches, [batch.state.u for batch in batches]), per_trajectory)
    t_end = _gathered(batches, [batch.state.t for batch in batches])
    times, values = _saved(batches, records, t_end)
    work = batches[-1].scheme.work
    switches = stiff = None
    if whole.scheme.stiff is not None:
        switches = _gathered(batches, [batch.scheme.switches for batch in batches]).to(torch.int64)
        stiff = _gathered(batches, [batch.scheme.stiff for batch in batches]).to(torch.bool)
    return ForwardResult(
        times=times,
        values=values,
        record=record,
        retcode=_gathered(batches, [batch.codes for batch in batches]).to(torch.int64),
        t_end=t_end,
        accepted_steps=_gathered(batches, [batch.accepted for batch in batches]).to(torch.int64),
        rejected_steps=_gathered(batches, [batch.rejected for batch in batches]).to(torch.int64),
        nf=work.calls,
        njacs=work.jacobians,
        nw=work.factorizations,
        switches=switches,
        stiff=stiff,
        nproducts=work.products,
        # a long step at the end says nothing to a scheme that starts again at its lowest order
        control=None
        if whole.scheme.chooses_steps
        else StepControl(
            dt=_gathered(batches, [batch.state.dt for batch in batches]),
            jumped=torch.zeros_like(spec.t0, dtype=torch.bool),
            memory=tuple(
                _gathered(batches, [batch.state.memory[place] for batch in batches])
                for place in range(len(whole.state.memory))
            ),
        ),
    )


def _record_of(batch: _Batch) -> StepRecord:
    rows = batch.rows
    dt = torch.stack(rows.dt) if rows.dt else batch.state.u.new_empty(0, len(batch.state.u))
    record = rows.keeper.record(torch.stack(rows.t), dt, batch.state.u)
    if any(rows.implicit):
        record = replace(record, implicit=tuple(rows.implicit), goes_on=rows.goes_on)
    return record


def _gathered(batches: Sequence[_Batch], items: Sequence[Any]) -> Tensor:
    """A number or row a trajectory, of each batch, as the last batch that it ran in left it."""
    total = batches[0].lanes.tensor(items[0]) if not isinstance(items[0], Tensor) else items[0]
    for batch, item in zip(batches[1:], items[1:], strict=True):
        total = total.index_copy(0, batch.index, item)
    return total


def _saved(batches: Sequence[_Batch], records: Sequence[StepRecord], t_end: Tensor) -> tuple[Tensor, Tensor]:
    """The times and values that the solve hands out."""
    whole, spec = batches[0], batches[0].spec
    if spec.saveat is None or whole.rows.values is None:
        # what had been counted when the next batch took some away stayed with this one
        counts = [batch.lanes.tensor(batch.accepted - batch.before).to(torch.int64) for batch in batches]
        return _joined(batches, records, counts, t_end)
    # a span of length zero takes no step, and every save of it is the initial state
    still = (spec.t0 == spec.t1).view(-1, 1, 1)
    saved = _gathered(batches, [batch.rows.values for batch in batches if batch.rows.values is not None])
    return spec.saveat, torch.where(still, whole.start.unsqueeze(1), saved)


def _joined(
    batches: Sequence[_Batch], records: Sequence[StepRecord], counts: Sequence[Tensor], t_end: Tensor
) -> tuple[Tensor, Tensor]:
    """Every trajectory's own accepted points, from one batch after another; shorter ones repeat their end."""
    if len(batches) == 1:
        return _every_step(records[0], counts[0])
    total = torch.zeros_like(counts[0])
    for batch, count in zip(batches, counts, strict=True):
        total.index_add_(0, batch.index, count)
    length = int(total.max()) + 1
    u_end = _gathered(batches, [batch.state.u for batch in batches])
    times = t_end.unsqueeze(-1).repeat(1, length)
    values = u_end.unsqueeze(1).repeat(1, length, 1)
    offset = torch.zeros_like(total)
    for batch, record, count in zip(batches, records, counts, strict=True):
        own_times, own_values = _every_step(record, count)
        lane, place = (torch.arange(own_times.shape[1], device=count.device) <= count.unsqueeze(-1)).nonzero(
            as_tuple=True
        )
        to = batch.index[lane]
        times[to, offset[to] + place] = own_times[lane, place]
        values[to, offset[to] + place] = own_values[lane, place]
        offset.index_add_(0, batch.index, count)
    return times, values


def _every_step(record: StepRecord, accepted: Tensor) -> tuple[Tensor, Tensor]:
    """Collect each trajectory's own accepted points; shorter ones repeat their end."""
    rows, batch = record.dt.shape
    # rows where the trajectory moved come first, in order
    order = torch.argsort((record.dt == 0).to(torch.int8), dim=0, stable=True)
    count = int(accepted.max()) if rows else 0
    index = torch.cat([order[:count], torch.full((1, batch), rows, device=order.device)])
    position = torch.arange(count + 1, device=order.device).unsqueeze(-1)
    index = torch.where(position < accepted, index, rows)
    times = record.t.gather(0, index)
    values = record.u.gather(0, index.unsqueeze(-1).expand(-1, -1, record.u.shape[-1]))
    return times.T.contiguous(), values.transpose(0, 1).contiguous()
