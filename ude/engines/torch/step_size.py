"""The size of an error, and of the first step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.torch.lanes import BatchArithmetic
from ude.engines.torch.scheme import Trial
from ude.engines.work import Work
from ude.methods.controller import FACTOR_GRID, SMALLEST_ERROR


def scaled_error(spec: SolveSpec, lanes: BatchArithmetic, old: Tensor, trial: Trial, t: Tensor) -> tuple[Any, Any]:
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


def start_memory(spec: SolveSpec) -> tuple[Float[Tensor, "B"], ...]:
    """What the controller remembers at the start: that of the solve before where it goes on from one."""
    fresh = tuple(torch.full_like(spec.t0, value) for value in spec.controller.start())
    if spec.resume is None:
        return fresh
    jumped = spec.resume.jumped
    return tuple(torch.where(jumped, new, old) for old, new in zip(spec.resume.memory, fresh, strict=True))


def start_step(spec: SolveSpec, f: Work, order: int, u0: Tensor, sign: Tensor) -> Float[Tensor, "B"]:
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
