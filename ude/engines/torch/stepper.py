"""The adaptive loop: every trajectory of the batch has its own time, step and status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ude.engines.base import ForwardResult, SolveSpec
from ude.engines.return_code import ReturnCode
from ude.engines.torch.batches import Batch, State, narrower_batch, result_of, whole_batch
from ude.engines.torch.lanes import BatchArithmetic
from ude.engines.torch.scheme import Part, Scheme, Trial
from ude.engines.torch.step_rows import StepRows
from ude.engines.torch.step_size import scaled_error


def integrate(spec: SolveSpec, scheme: Scheme, u0: Tensor) -> ForwardResult:
    """Integrate u0 (B, n) over the span of `spec` without building an autograd graph."""
    batches = [whole_batch(spec, scheme, u0)]
    per_trajectory: tuple[bool, ...] | None = None
    iterations = 0
    while True:
        batch = batches[-1]
        iterations = _run(batch, iterations)
        if not batch.lanes.any(batch.state.active) or iterations == spec.maxiters:
            break
        narrower, per_trajectory = narrower_batch(batch, per_trajectory)
        if narrower is None:
            # f needs the whole batch
            batch.narrow_at = 0
        else:
            batches.append(narrower)
    last = batches[-1]
    last.rows.flush()
    last.codes = last.lanes.where(last.state.active, float(ReturnCode.MaxIters), last.codes)
    return result_of(batches, per_trajectory or ())


def _run(batch: Batch, iterations: int) -> int:
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


@dataclass(frozen=True, eq=False)
class _Step:
    """A step that is tried, one number a trajectory.

    Args:
        size, taken: Its size and its signed size.
        last: Whether it reaches the end of the span.
        at_smallest: Whether it is as small as steps may be.
        t, dt: Its start and its signed size as tensors (B,).
    """

    size: Any
    taken: Any
    last: Any
    at_smallest: Any
    t: Tensor
    dt: Tensor


@dataclass(frozen=True, eq=False)
class _Verdict:
    """What became of a trial, one number a trajectory.

    Args:
        error: The scaled error, infinite where it is not finite.
        judged: The same, infinite too where the user's domain was left.
        finite: Whether the error is finite.
        outside: Which trajectories left that domain; None without one.
        solved: Which solved their stages; None when there is nothing to solve.
        accept: Which accept the step.
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

    def __call__(self, state: State, rows: StepRows, sign: Any, end: Any) -> tuple[Any, Any]:
        """Return which trajectories accepted the step, and the `ReturnCode` of those that fail, 0 for the others."""
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

    def _judge(self, state: State, step: _Step, trial: Trial, order: Any) -> _Verdict:
        spec, lanes = self._spec, self._lanes
        error, finite = scaled_error(spec, lanes, state.u, trial, step.t)
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

    def _move(self, state: State, rows: StepRows, step: _Step, trial: Trial, accept: Any, end: Any) -> Any:
        """Move the trajectories that accepted; return factors of the step sizes where a method changed, else None."""
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
        self, state: State, step: _Step, trial: Trial, verdict: _Verdict, order: Any, stretch: Any
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
        # a last step that the end made shorter says little about the next: a solve that continues keeps the longer one
        proposed = lanes.where(accept & step.last, lanes.maximum(proposed, state.dt), proposed)
        state.dt = lanes.where(state.active, proposed, state.dt)
        learnt = controller.remember(lanes, verdict.error, state.memory)
        state.memory = tuple(lanes.where(accept, new, old) for new, old in zip(learnt, state.memory, strict=True))

    def _codes(self, state: State, step: _Step, trial: Trial, verdict: _Verdict, before: Any) -> Any:
        """Return codes of the trajectories that fail; and keep every step above the smallest."""
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
