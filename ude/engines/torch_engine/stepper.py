"""The adaptive loop: every trajectory of the batch has its own time, step and status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.engine import ForwardResult, SolveSpec, StepRecord
from ude.engines.torch_engine.checkpoints import Keeper
from ude.engines.torch_engine.lanes import Lanes, lanes_for
from ude.engines.torch_engine.scheme import LazyScheme, Scheme, SelfControlled, Trial, Work
from ude.engines.torch_engine.stages import extend, locate
from ude.methods.controller import FACTOR_GRID, INITIAL_ERROR, SMALLEST_ERROR
from ude.solution import ReturnCode

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

    def add(self, end: Tensor, dt: Tensor, state: _State, stages: Tensor) -> None:
        self.t.append(end)
        self.dt.append(dt)
        self.keeper.add(state.u, state.k1 if self.scheme.carries_derivative else None)
        if self.saveat is not None:
            self.u.append(state.u)
            self.stages.append(stages)
            if len(self.stages) == _ROWS_AT_ONCE:
                self.flush()

    def flush(self) -> None:
        """Evaluate the saves that fall into the steps whose stages are held, and let the stages go."""
        held = len(self.stages)
        if self.saveat is None or self.values is None or not held:
            return
        t, dt, u = torch.stack(self.t[-held - 1 :]), torch.stack(self.dt[-held:]), torch.stack(self.u)
        row, theta = locate(t, dt, self.saveat, self.sign)
        after_start = self.saveat * self.sign.unsqueeze(-1) >= (t[0] * self.sign).unsqueeze(-1)
        lane, save = ((row < held) & after_start).nonzero(as_tuple=True)
        picked, theta = row[lane, save], theta[lane, save]
        if isinstance(self.scheme, LazyScheme) and self.scheme.extra_stages:
            # reads at the ends of a step are its states, for which no further stage is evaluated
            inside = (theta != 0.0) & (theta != 1.0)
            for i in picked[inside].unique().tolist():
                here = inside & (picked == i)
                k = self.scheme.complete(u[i], t[i], dt[i], self.stages[i])[:, lane[here]].transpose(0, 1)
                start = u[i, lane[here]], dt[i, lane[here]]
                self.values[lane[here], save[here]] = extend(self.scheme.interpolant, *start, theta[here], k)
            lane, save, picked, theta = lane[~inside], save[~inside], picked[~inside], theta[~inside]
            weights = self.scheme.step_weights
        else:
            weights = self.scheme.interpolant
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
    error: Any
    active: Any
    stopped: Any


def integrate(spec: SolveSpec, scheme: Scheme, u0: Tensor) -> ForwardResult:
    """Integrate u0 (B, n) over the span of `spec` without building an autograd graph."""
    lanes = lanes_for(u0, u0.shape[0])
    sign_tensor = spec.sign
    values = None if spec.saveat is None else u0.new_full((*spec.saveat.shape, u0.shape[1]), float("nan"))
    keeper = Keeper("all" if spec.saveat is None else spec.checkpoints)
    rows = _Rows(scheme, keeper, sign_tensor, spec.saveat, values, [spec.t0])
    sign, end = lanes.read(sign_tensor), lanes.read(spec.t1)
    state = _State(
        t=lanes.read(spec.t0),
        dt=lanes.read(_first_step(spec, scheme.work, scheme.error_order, u0, sign_tensor)),
        u=u0,
        k1=spec.first_du,
        error=lanes.read(torch.full_like(spec.t0, INITIAL_ERROR)),
        active=lanes.read(spec.t0 != spec.t1 if spec.failed is None else (spec.t0 != spec.t1) & ~spec.failed),
        stopped=lanes.read(torch.zeros_like(spec.t0, dtype=torch.bool)),
    )
    accepted = rejected = lanes.read(torch.zeros_like(spec.t0))
    codes = lanes.read(torch.zeros_like(spec.t0))
    attempt = _attempt(spec, scheme, lanes)
    iterations = 0
    while lanes.any(state.active) and iterations < spec.maxiters:
        iterations += 1
        accept, code = attempt(state, sign, end, rows)
        live = state.active
        accepted = accepted + lanes.where(accept, 1.0, 0.0)
        rejected = rejected + lanes.where(lanes.negate(accept) & live, 1.0, 0.0)
        codes = lanes.where(live, code, codes)
        state.active = live & (code == 0.0) & ((end - state.t) * sign > 0.0) & lanes.negate(state.stopped)
    codes = lanes.where(state.active, float(ReturnCode.MaxIters), codes)
    if spec.failed is not None:
        codes = lanes.where(lanes.read(spec.failed), float(ReturnCode.InitialFailure), codes)
    rows.flush()
    return _result(spec, rows, state, lanes, _Counts(accepted, rejected, codes, scheme.work))


def _attempt(spec: SolveSpec, scheme: Scheme, lanes: Lanes) -> Callable[[_State, Any, Any, _Rows], tuple[Any, Any]]:
    """Build the function that tries one step of every trajectory and moves those that accept it."""
    resolution = 16 * torch.finfo(spec.t0.dtype).eps
    tiny = 1e3 * torch.finfo(spec.t0.dtype).tiny

    def attempt(state: _State, sign: Any, end: Any, rows: _Rows) -> tuple[Any, Any]:
        remaining = (end - state.t) * sign
        last = state.dt >= remaining * (1 - 1e-10)
        size = lanes.where(state.active, lanes.minimum(state.dt, remaining), remaining * 0.0)
        before = state.t
        t, dt = lanes.tensor(before), lanes.tensor(size * sign)
        trial = scheme.attempt(state.u, state.k1, t, dt)
        u = trial.u
        error, finite = _scaled_error(spec, lanes, state.u, trial)
        accept = finite & (error <= 1.0) & state.active
        solved = None if trial.converged is None else lanes.read(trial.converged)
        if solved is not None:
            accept = accept & solved
        if lanes.any(accept):
            state.t = lanes.where(accept, lanes.where(last, end, state.t + size * sign), state.t)
            taken = lanes.tensor(lanes.where(accept, size * sign, size * 0.0))
            # before the row is added: the dense output may be made of this derivative too
            k1 = scheme.derivative_after(trial, t + dt)
            rows.add(lanes.tensor(state.t), taken, state, trial.k)
            if spec.watch is not None:
                moved = lanes.tensor(accept).to(torch.bool)
                stop = spec.watch(t, state.u, lanes.tensor(state.t), u, moved) & moved
                state.stopped = state.stopped | lanes.read(stop)
            scheme.settle(lanes.tensor(accept).to(torch.bool))
            state.u, state.k1 = lanes.select(accept, u, state.u), lanes.select(accept, k1, state.k1)
        if spec.adaptive:
            if isinstance(scheme, SelfControlled):
                factor = scheme.factor(accept)
            else:
                factor = spec.controller.factor(lanes, error, state.error, accept, scheme.error_order)
            if solved is not None and trial.shrink is not None:
                factor = lanes.where(solved, factor, lanes.read(trial.shrink))
            state.dt = lanes.where(state.active, lanes.minimum(size * factor, spec.dtmax), state.dt)
            state.error = lanes.where(accept, spec.controller.remember(lanes, error), state.error)
        smallest = lanes.maximum(abs(state.t) * resolution, max(spec.dtmin, tiny))
        stuck = lanes.negate(accept) & ((state.dt < smallest) | (not spec.adaptive))
        code = float(ReturnCode.DtLessThanMin)
        if solved is not None and trial.shrink is not None:
            # a step that is tried again with a new Jacobian is not lost yet
            stuck = stuck & (solved | (lanes.read(trial.shrink) < 1.0))
            code = lanes.where(solved, code, float(ReturnCode.ConvergenceFailure))
        # into a singularity some methods step without an error, by steps that no longer change the time
        stuck = stuck | (accept & (state.t == before) & (state.dt < smallest))
        # a small last step or a cautious controller is no failure: only a rejection at the smallest step is
        state.dt = lanes.maximum(state.dt, spec.dtmin) if spec.dtmin else state.dt
        failed = lanes.where(finite, code, float(ReturnCode.Unstable))
        return accept, lanes.where(stuck, failed, failed * 0.0)

    return attempt


def _scaled_error(spec: SolveSpec, lanes: Lanes, old: Tensor, trial: Trial) -> tuple[Any, Any]:
    """Root mean square of error/(abstol + reltol max(|u|, |u_next|)) of each trajectory, and whether it is finite."""
    new, error = trial.u, trial.error
    if error is None:
        finite = lanes.isfinite(lanes.read(new.abs().sum(-1)))
        return lanes.where(finite, 0.0, float("inf")), finite
    scale = torch.maximum(old.abs(), new.abs()) * spec.reltol + spec.abstol
    norm = torch.linalg.vector_norm(error / scale, dim=-1) * old.shape[-1] ** -0.5
    if trial.error_low is not None:
        low = torch.linalg.vector_norm(trial.error_low / scale, dim=-1) * old.shape[-1] ** -0.5
        norm = norm * (norm / torch.hypot(norm, 0.1 * low).clamp(min=SMALLEST_ERROR))
    size = lanes.read(norm)
    finite = lanes.isfinite(size)
    return lanes.where(finite, size, float("inf")), finite


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
        return torch.linalg.vector_norm(x / scale, dim=-1) / root_n

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


@dataclass(frozen=True)
class _Counts:
    accepted: Any
    rejected: Any
    codes: Any
    work: Work


def _result(spec: SolveSpec, rows: _Rows, state: _State, lanes: Lanes, counts: _Counts) -> ForwardResult:
    dt = torch.stack(rows.dt) if rows.dt else state.u.new_empty(0, state.u.shape[0])
    record = rows.keeper.record(torch.stack(rows.t), dt, state.u)
    codes = lanes.tensor(counts.codes).to(torch.int64)
    if spec.saveat is None or rows.values is None:
        times, values = _every_step(record, lanes.tensor(counts.accepted).to(torch.int64))
    else:
        # a span of length zero takes no step, and every save of it is the initial state
        still = (spec.t0 == spec.t1).view(-1, 1, 1)
        times, values = spec.saveat, torch.where(still, record.u[0].unsqueeze(1), rows.values)
    return ForwardResult(
        times=times,
        values=values,
        record=record,
        retcode=codes,
        t_end=lanes.tensor(state.t),
        accepted_steps=lanes.tensor(counts.accepted).to(torch.int64),
        rejected_steps=lanes.tensor(counts.rejected).to(torch.int64),
        nf=counts.work.calls,
        njacs=counts.work.jacobians,
        nw=counts.work.factorisations,
        nproducts=counts.work.products,
    )


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
