"""Find states that no longer change, ``0 = f(u, p)``, by integration or by Newton's iteration.

>>> prob = ude.SteadyStateProblem(lambda u, p, t: 2.0 - u, [0.0])
>>> round(float(ude.solve(prob, ude.steady_state.SSRootfind())[-1]), 6)
2.0
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec
from ude.engines.jacobian import Jacobians
from ude.engines.return_code import ReturnCode
from ude.errors import InputError
from ude.events.callbacks import Callback, DiscreteCallback, terminate
from ude.methods import Algorithm, KenCarp4, Rodas5P
from ude.problems.ode import ODEProblem
from ude.problems.steady_state import SteadyStateProblem
from ude.sensitivity import SensitivityAlgorithm, SteadyStateAdjoint
from ude.solving.solution import Solution, solution_of
from ude.solving.statistics import statistics_of

# The end of an unlimited integration: far beyond every time scale, and within the range of float32.
_FOREVER = 1e30
#: Up to this many states, a dense Jacobian in each step costs less than the additional stages of a method that reuses
#: Jacobians.
FEW_STATES = 50
# Below this damping factor no step in Newton's direction helps.
_SMALLEST_DAMPING = 2.0**-30


@dataclass(frozen=True)
class SteadyStateAlgorithm(Algorithm):
    """Base of the methods that find steady states."""


@dataclass(frozen=True)
class DynamicSS(SteadyStateAlgorithm):
    """Integrate until the state no longer changes, which finds the stable state that u0 leads to.

    A trajectory is steady when every ``|du/dt| <= max(abstol, reltol |u|)``; see `TerminateSteadyState`. The tolerances
    of the integration are those of `solve`.

    Args:
        alg: The method that integrates; None is `Rodas5P()`, or `KenCarp4()` for more than 50 states. Near a steady
            state the steps of explicit methods are limited by stability alone, and with them the derivative that
            remains.
        abstol, reltol: Tolerances of the derivative.
        tspan: Maximum length of the integration; a trajectory that is not steady then has `ReturnCode.NotSteady`.

    Raises:
        InputError: A tolerance or tspan is not positive.

    >>> prob = ude.SteadyStateProblem(lambda u, p, t: u - u**3, [0.1])  # 0 is steady, but not stable
    >>> round(float(ude.solve(prob, ude.steady_state.DynamicSS())[-1]), 4)
    1.0
    """

    alg: Algorithm | None = None
    abstol: float = 1e-8
    reltol: float = 1e-6
    tspan: float = float("inf")

    def __post_init__(self) -> None:
        _check_tolerances(self.abstol, self.reltol)
        if not self.tspan > 0:
            raise InputError("tspan of DynamicSS must be positive", got=f"tspan={self.tspan!r}")


@dataclass(frozen=True)
class SSRootfind(SteadyStateAlgorithm):
    """Solve f(u, p) = 0 by a damped Newton iteration of each trajectory, which finds unstable states too.

    A step ``u - s J^-1 f`` is damped, s = 1, 1/2, ..., until the next correction with the same Jacobian is smaller by
    the factor 1 - s/4, which does not depend on the units of u and f. A trajectory has converged when the root mean
    square of ``correction / (abstol + reltol |u|)`` is at most 1; otherwise, after `maxiters` steps or where no damping
    helps, it has `ReturnCode.NotSteady`.

    Args:
        abstol, reltol: Tolerances of the state.
        maxiters: Maximum number of steps.

    Raises:
        InputError: A tolerance is not positive, or maxiters is less than 1.

    Source: P. Deuflhard, Newton Methods for Nonlinear Problems, 2011, chapter 3 (natural monotonicity test).

    >>> prob = ude.SteadyStateProblem(lambda u, p, t: u - u**3, [0.1])
    >>> abs(float(ude.solve(prob, ude.steady_state.SSRootfind())[-1])) < 1e-6
    True
    """

    abstol: float = 1e-10
    reltol: float = 1e-10
    maxiters: int = 100

    def __post_init__(self) -> None:
        _check_tolerances(self.abstol, self.reltol)
        if self.maxiters < 1:
            raise InputError("maxiters must be at least 1", got=f"maxiters={self.maxiters!r}")


def _check_tolerances(abstol: float, reltol: float) -> None:
    if not abstol > 0 or not reltol >= 0:
        raise InputError("abstol must be positive and reltol zero or more", got=f"abstol={abstol!r}, reltol={reltol!r}")


@dataclass(frozen=True)
class TerminateSteadyState(Callback):
    """End a trajectory, with `ReturnCode.Terminated`, after the first step that ends in a steady state.

    A state is steady where every ``|du/dt| <= max(abstol, reltol |u|)``.

    Args:
        abstol, reltol: Tolerances of the derivative.
        min_t: Earliest time at which to end; None is the start.

    Raises:
        InputError: A tolerance is not positive.

    Source: the rule and names of DiffEqCallbacks.jl.

    >>> prob = ude.ODEProblem(lambda u, p, t: 1.0 - u, [0.0], (0.0, 1000.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), callback=ude.steady_state.TerminateSteadyState(abstol=1e-4))
    >>> sol.retcode.name, float(sol.t[-1]) < 100.0
    ('Terminated', True)
    """

    abstol: float = 1e-8
    reltol: float = 1e-6
    min_t: float | None = None

    def __post_init__(self) -> None:
        _check_tolerances(self.abstol, self.reltol)

    def bound(self, prob: ODEProblem) -> DiscreteCallback:
        """Return the callback for the right-hand side of a problem."""
        f, dims = prob.f, len(prob.state_axes().state)

        def steady(u: Tensor, p: Any, t: Tensor) -> Tensor:
            still = (f(u, p, t).abs() <= (self.reltol * u.abs()).clamp(min=self.abstol)).flatten(-dims).all(-1)
            return still if self.min_t is None else still & (t >= self.min_t)

        return DiscreteCallback(steady, terminate)


def solve_steady_state(
    prob: SteadyStateProblem,
    spec: SolveSpec,
    chosen: tuple[SensitivityAlgorithm | None, str],
    integrate: Callable[[ODEProblem, Algorithm, Callback], Solution],
) -> Solution:
    """Solve a validated `SteadyStateProblem`.

    Args:
        chosen: The sensitivity algorithm (None is `SteadyStateAdjoint()`), and why the algorithm was chosen.
        integrate: Solves an `ODEProblem` with the options of this solve.
    """
    sensealg, why = chosen
    if sensealg is not None and not isinstance(sensealg, SteadyStateAdjoint):
        raise InputError(
            f"{sensealg.name} differentiates solves in time",
            expected="sensealg=SteadyStateAdjoint() for a SteadyStateProblem",
            fix="To differentiate a solve in time, give an ODEProblem with callback=TerminateSteadyState().",
        )
    sensealg = SteadyStateAdjoint() if sensealg is None else sensealg
    u0, p = spec.start or (prob.u0, ())
    began = time.perf_counter()
    with torch.no_grad():
        if isinstance(spec.algorithm, DynamicSS):
            result = _integrate(prob, spec, spec.algorithm, integrate)
        elif isinstance(spec.algorithm, SSRootfind):
            result = _newton(spec, spec.algorithm, u0.detach(), tuple(leaf.detach() for leaf in p))
        else:
            raise InputError(
                "a SteadyStateProblem requires an algorithm for steady states",
                expected="DynamicSS(), DynamicSS(Rodas5P()) or SSRootfind()",
                got=spec.algorithm.name,
            )
    seconds = time.perf_counter() - began
    tracked = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in p)
    arrived = result.retcode == ReturnCode.Success
    u = torch.where(arrived.unsqueeze(-1), result.values[:, 0], float("nan"))
    if tracked:
        u = sensealg.attach_steady(spec, u, arrived, p)
    values = u.view(*spec.batch, 1, u.shape[-1])
    return solution_of(
        prob,
        spec,
        result,
        (values, lambda asked: values.expand(*spec.batch, asked.shape[1], -1)),
        partial(
            statistics_of,
            engine="torch",
            sensealg=sensealg.name if tracked else "none",
            seconds=seconds,
            why_not={},
            why_algorithm=why,
        ),
        window=(result.times, (result.times[:, 0], result.times[:, 0])),
    )


def _integrate(
    prob: SteadyStateProblem,
    spec: SolveSpec,
    method: DynamicSS,
    integrate: Callable[[ODEProblem, Algorithm, Callback], Solution],
) -> ForwardResult:
    ode = ODEProblem(prob.f, prob.u0.detach(), (0.0, min(method.tspan, _FOREVER)), prob.p, prob.names, prob.state_dims)
    alg = method.alg
    if alg is None:
        alg = Rodas5P() if prob.state_axes().size <= FEW_STATES else KenCarp4()
    sol = integrate(ode, alg, TerminateSteadyState(method.abstol, method.reltol))
    # a trajectory that was terminated is steady, and one that reached the end of its span is not
    codes = torch.where(sol.codes == ReturnCode.Success, int(ReturnCode.NotSteady), sol.codes)
    codes = torch.where(codes == ReturnCode.Terminated, int(ReturnCode.Success), codes)
    stats = sol.stats
    return ForwardResult(
        times=torch.full_like(spec.t0, float("inf")).unsqueeze(-1),
        values=sol.partial.reshape(len(spec.t0), -1, prob.state_axes().size)[:, -1:],
        record=None,
        retcode=codes,
        t_end=sol.reached,
        accepted_steps=stats.accepted_steps.reshape(-1),
        rejected_steps=stats.rejected_steps.reshape(-1),
        nf=stats.nf,
        njacs=stats.njacs,
        nw=stats.nw,
        switches=None if stats.switches is None else stats.switches.reshape(-1),
        nproducts=stats.nproducts,
    )


def _newton(spec: SolveSpec, method: SSRootfind, u: Tensor, p: tuple[Tensor, ...]) -> ForwardResult:
    """Iterate damped Newton steps, each trajectory by itself, from u (B, n)."""
    jacobians, t = Jacobians(spec, p), torch.zeros_like(spec.t0)
    active = torch.ones_like(t, dtype=torch.bool)
    converged, steps, rejected = ~active, torch.zeros_like(active, dtype=torch.int64), torch.zeros_like(t)
    iterations = 0
    while iterations < method.maxiters and bool(active.any()):
        iterations += 1
        scale = method.abstol + method.reltol * u.abs()
        du, jacobian, _ = jacobians.linearize(u, t)
        lu, pivots, _ = torch.linalg.lu_factor_ex(jacobian)
        change = -torch.linalg.lu_solve(lu, pivots, du.unsqueeze(-1)).squeeze(-1)
        size = _norm(change, scale)
        u, moved, tries = _damped(jacobians, (lu, pivots), (u, t), (change, size, scale), active)
        done = active & (size <= 1.0)
        steps, rejected = steps + active, rejected + tries
        converged, active = converged | done, active & ~done & moved
    return ForwardResult(
        times=torch.full_like(t, float("inf")).unsqueeze(-1),
        values=u.unsqueeze(1),
        record=None,
        retcode=torch.where(converged, int(ReturnCode.Success), int(ReturnCode.NotSteady)),
        t_end=t,
        accepted_steps=steps,
        rejected_steps=rejected.to(torch.int64),
        nf=jacobians.calls,
        njacs=jacobians.jacobians,
        nw=iterations,
    )


def _norm(x: Tensor, scale: Tensor) -> Float[Tensor, "B"]:
    return (x / scale).square().mean(-1).sqrt()


def _damped(
    f: Jacobians,
    factors: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor],
    direction: tuple[Tensor, Tensor, Tensor],
    active: Bool[Tensor, "B"],
) -> tuple[Tensor, Bool[Tensor, "B"], Float[Tensor, "B"]]:
    """Go along Newton's direction (change, its size, the scale of sizes) as far as the next correction shrinks.

    Returns:
        The new states, which trajectories moved, and how many steps were too long.
    """
    (u, t), (change, size, scale) = start, direction
    damping, tries = torch.ones_like(t), torch.zeros_like(t)
    # a last step below the tolerance is taken as it is: rounding may not let it shrink further
    moved = active & torch.isfinite(size) & (size <= 1.0)
    after = torch.where(moved.unsqueeze(-1), u + change, u)
    searching = active & torch.isfinite(size) & ~moved
    while bool(searching.any()):
        trial = torch.where(searching.unsqueeze(-1), u + damping.unsqueeze(-1) * change, after)
        again = torch.linalg.lu_solve(*factors, f(trial, t).unsqueeze(-1)).squeeze(-1)
        good = searching & (_norm(again, scale) <= (1 - damping / 4) * size)
        after, moved = torch.where(good.unsqueeze(-1), trial, after), moved | good
        searching = searching & ~good
        tries = tries + searching
        damping = torch.where(searching, damping / 2, damping)
        searching = searching & (damping >= _SMALLEST_DAMPING)
    return after, moved, tries
