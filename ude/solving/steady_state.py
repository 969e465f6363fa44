"""States that no longer change: ``0 = f(u, p)``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines import SolveSpec
from ude.engines.return_code import ReturnCode
from ude.engines.work import Work
from ude.errors import InputError
from ude.events.callbacks import Callback, DiscreteCallback, terminate
from ude.methods import Algorithm, KenCarp4, Rodas5P
from ude.problems.ode import ODEProblem
from ude.sensitivity.steady_state_adjoint import SteadyStateAdjoint
from ude.solving.solution import Ended, Solution, statistics_of

# Where an unlimited integration ends: far beyond every time scale, and within the range of float32.
_FOREVER = 1e30
# Up to this many states a dense Jacobian a step costs less than the further stages of a method that keeps Jacobians.
_SMALL = 50
# A damping factor below this says that no step in Newton's direction helps.
_SMALLEST_DAMPING = 2.0**-30


@dataclass(frozen=True, eq=False)
class SteadyStateProblem(ODEProblem):
    """Find u with ``f(u, p, t) = 0``, starting from u0.

    The solution has one save, at ``t = inf``: ``sol[-1]`` is the state ``(*batch, state)``. Its gradient by p is that
    of the implicit function theorem (`SteadyStateAdjoint`); by u0 it is zero.

    Args:
        f: As for `ODEProblem`. It should not depend on t; methods that do not integrate call it at t = 0.
        u0: Where the search starts ``(*batch, state)``.
        p, names: As for `ODEProblem`.

    Raises:
        InputError: u0, p or names cannot be used.

    >>> decay = SteadyStateProblem(lambda u, p, t: p.supply - p.rate * u, [0.0], dict(supply=3.0, rate=2.0))
    >>> from ude.solving import solve
    >>> round(float(solve(decay)[-1]), 6)
    1.5
    """

    tspan: tuple[Any, Any] = field(init=False, default=(0.0, 1.0))


@dataclass(frozen=True)
class SteadyStateAlgorithm(Algorithm):
    """Base of the methods that find steady states."""


@dataclass(frozen=True)
class DynamicSS(SteadyStateAlgorithm):
    """Integrate until nothing changes: finds the stable state that u0 leads to.

    A trajectory is steady when every ``|du/dt| <= max(abstol, reltol |u|)``; see `TerminateSteadyState`. The tolerances
    of the integration are those of `solve`.

    Args:
        alg: The method that integrates; None means `Rodas5P()`, or `KenCarp4()` for more than 50 states. Near a steady
            state stability alone limits the steps of explicit methods, and what they leave of the derivative.
        abstol, reltol: Of the derivative.
        tspan: For how long at most; a trajectory that is not steady then has `ReturnCode.NotSteady`.

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
            raise InputError("DynamicSS needs a length of time", expected="a positive tspan", got=repr(self.tspan))


@dataclass(frozen=True)
class SSRootfind(SteadyStateAlgorithm):
    """Newton's iteration for f(u, p) = 0 with damped steps, each trajectory by itself. Finds unstable states too.

    A step ``u - s J^-1 f`` is damped, s = 1, 1/2, ..., until the next correction with the same Jacobian is smaller by
    the factor 1 - s/4, which does not depend on the units of u and f. A trajectory has converged when the root mean
    square of ``correction / (abstol + reltol |u|)`` is at most 1; else, after `maxiters` steps or where no damping
    helps, it has `ReturnCode.NotSteady`.

    Args:
        abstol, reltol: Of the state.
        maxiters: Most steps.

    Raises:
        InputError: A tolerance is not positive, or maxiters allows no step.

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
            raise InputError("maxiters allows no step", expected="at least 1", got=repr(self.maxiters))


def _check_tolerances(abstol: float, reltol: float) -> None:
    if not abstol > 0 or not reltol >= 0:
        raise InputError("tolerances of a steady state must be positive", got=f"abstol={abstol!r}, reltol={reltol!r}")


@dataclass(frozen=True)
class TerminateSteadyState(Callback):
    """End a trajectory after the first step at whose end every ``|du/dt| <= max(abstol, reltol |u|)``. Its code is then
    `Terminated`.

    Args:
        abstol, reltol: Of the derivative.
        min_t: Not before this time.

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

    def bound(self, f: Callable[[Tensor, Any, Tensor], Tensor]) -> DiscreteCallback:
        """The callback for the right-hand side f."""

        def steady(u: Tensor, p: Any, t: Tensor) -> Tensor:
            still = (f(u, p, t).abs() <= (self.reltol * u.abs()).clamp(min=self.abstol)).all(-1)
            return still if self.min_t is None else still & (t >= self.min_t)

        return DiscreteCallback(steady, terminate)


@dataclass(frozen=True, eq=False)
class _Found:
    u: Float[Tensor, "B n"]
    retcode: Int[Tensor, "B"]
    reached: Float[Tensor, "B"]
    accepted_steps: Int[Tensor, "B"]
    rejected_steps: Int[Tensor, "B"]
    nf: int
    njacs: int = 0
    nw: int = 0
    nproducts: int = 0
    switches: Tensor | None = None


def solve_steady_state(
    prob: SteadyStateProblem,
    spec: SolveSpec,
    variables: tuple[Tensor, Any],
    chosen: tuple[Any, str],
    integrate: Callable[[ODEProblem, Algorithm, Callback], Solution],
) -> Solution:
    """Solve a validated `SteadyStateProblem`.

    Args:
        variables: u0 (B, n) and the leaves p.
        chosen: The sensitivity algorithm (None lets this choose), and why the algorithm was chosen.
        integrate: Solves an `ODEProblem` with the options of this solve.
    """
    (u0, p), (sensealg, why) = variables, chosen
    if sensealg is not None and not isinstance(sensealg, SteadyStateAdjoint):
        raise InputError(
            f"{sensealg.name} differentiates solves in time",
            expected="sensealg=SteadyStateAdjoint() for a SteadyStateProblem",
            fix="For the gradient of the way there, solve an ODEProblem with callback=TerminateSteadyState().",
        )
    sensealg = SteadyStateAdjoint() if sensealg is None else sensealg
    began = time.perf_counter()
    with torch.no_grad():
        if isinstance(spec.algorithm, DynamicSS):
            found = _integrate(prob, spec, spec.algorithm, integrate)
        elif isinstance(spec.algorithm, SSRootfind):
            found = _newton(spec, spec.algorithm, u0.detach(), tuple(leaf.detach() for leaf in p))
        else:
            raise InputError(
                "alg cannot solve a SteadyStateProblem",
                expected="DynamicSS(), DynamicSS(Rodas5P()) or SSRootfind()",
                got=spec.algorithm.name,
            )
    seconds = time.perf_counter() - began
    tracked = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in p)
    arrived = found.retcode == ReturnCode.Success
    u = torch.where(arrived.unsqueeze(-1), found.u, float("nan"))
    if tracked:
        u = sensealg.attach_steady(spec, u, arrived, p)
    forever = torch.full_like(spec.t0, float("inf"))
    values = u.unsqueeze(1).view(*spec.batch, 1, u.shape[-1])
    return Solution(
        forever.unsqueeze(-1),
        values,
        names=prob.state_names,
        ended=Ended(forever, forever, found.reached, found.retcode),
        stats=statistics_of(
            found,
            spec,
            engine="torch",
            sensealg=sensealg.name if tracked else "none",
            seconds=seconds,
            why=({}, why),
        ),
        dense=lambda asked: values.reshape(len(asked), 1, -1).expand(-1, asked.shape[1], -1),
    )


def _integrate(
    prob: SteadyStateProblem,
    spec: SolveSpec,
    method: DynamicSS,
    integrate: Callable[[ODEProblem, Algorithm, Callback], Solution],
) -> _Found:
    ode = ODEProblem(prob.f, prob.u0.detach(), (0.0, min(method.tspan, _FOREVER)), prob.p, prob.names)
    alg = method.alg
    if alg is None:
        alg = Rodas5P() if prob.u0.shape[-1] <= _SMALL else KenCarp4()
    sol = integrate(ode, alg, TerminateSteadyState(method.abstol, method.reltol))
    codes = torch.tensor([int(code) for code in _flat(sol.retcode)], device=spec.t0.device)
    # the end of the span is no steady state, and a terminated trajectory is one
    codes = torch.where(codes == ReturnCode.Success, int(ReturnCode.NotSteady), codes)
    codes = torch.where(codes == ReturnCode.Terminated, int(ReturnCode.Success), codes)
    count, states = len(spec.t0), prob.u0.shape[-1]
    return _Found(
        u=sol.partial.reshape(count, -1, states)[:, -1],
        retcode=codes,
        reached=sol.reached.reshape(count),
        accepted_steps=sol.stats.accepted_steps.reshape(count),
        rejected_steps=sol.stats.rejected_steps.reshape(count),
        nf=sol.stats.nf,
        njacs=sol.stats.njacs,
        nw=sol.stats.nw,
        switches=sol.stats.switches,
    )


def _flat(codes: Any) -> list[ReturnCode]:
    return [codes] if isinstance(codes, ReturnCode) else list(codes.reshape(-1))


def _newton(spec: SolveSpec, method: SSRootfind, u: Tensor, p: tuple[Tensor, ...]) -> _Found:
    """Damped Newton iterations of every trajectory."""
    work, t = Work(spec, p), torch.zeros_like(spec.t0)
    open_ = torch.ones_like(t, dtype=torch.bool)
    converged, steps, rejected = ~open_, torch.zeros_like(open_, dtype=torch.int64), torch.zeros_like(t)
    for _ in range(method.maxiters):
        scale = method.abstol + method.reltol * u.abs()
        du, jacobian, _ = work.linearize(u, t)
        work.factorizations += 1
        lu, pivots, _ = torch.linalg.lu_factor_ex(jacobian)
        change = -torch.linalg.lu_solve(lu, pivots, du.unsqueeze(-1)).squeeze(-1)
        size = _norm(change, scale)
        u, moved, tries = _damped(work, (lu, pivots), (u, t), (change, size, scale), open_)
        done = open_ & (size <= 1.0)
        steps, rejected = steps + open_, rejected + tries
        converged = converged | done
        open_ = open_ & ~done & moved
        if not bool(open_.any()):
            break
    return _Found(
        u=u,
        retcode=torch.where(converged, int(ReturnCode.Success), int(ReturnCode.NotSteady)),
        reached=t,
        accepted_steps=steps,
        rejected_steps=rejected.to(torch.int64),
        nf=work.calls,
        njacs=work.jacobians,
        nw=work.factorizations,
    )


def _norm(x: Tensor, scale: Tensor) -> Float[Tensor, "B"]:
    return (x / scale).square().mean(-1).sqrt()


def _damped(
    work: Work,
    factors: tuple[Tensor, Tensor],
    start: tuple[Tensor, Tensor],
    direction: tuple[Tensor, Tensor, Tensor],
    open_: Bool[Tensor, "B"],
) -> tuple[Tensor, Bool[Tensor, "B"], Float[Tensor, "B"]]:
    """Go along Newton's direction (change, its size, the scale of sizes) as far as the next correction shrinks.

    Returns:
        The new states, which trajectories moved, and how many steps were too long.
    """
    (u, t), (change, size, scale) = start, direction
    damping, tries = torch.ones_like(t), torch.zeros_like(t)
    # a last step below the tolerance is taken as it is: rounding may not let it shrink further
    moved = open_ & torch.isfinite(size) & (size <= 1.0)
    after = torch.where(moved.unsqueeze(-1), u + change, u)
    searching = open_ & torch.isfinite(size) & ~moved
    while bool(searching.any()):
        trial = torch.where(searching.unsqueeze(-1), u + damping.unsqueeze(-1) * change, after)
        again = torch.linalg.lu_solve(*factors, work(trial, t).unsqueeze(-1)).squeeze(-1)
        good = searching & (_norm(again, scale) <= (1 - damping / 4) * size)
        after, moved = torch.where(good.unsqueeze(-1), trial, after), moved | good
        searching = searching & ~good
        tries = tries + searching
        damping = torch.where(searching, damping / 2, damping)
        searching = searching & (damping >= _SMALLEST_DAMPING)
    return after, moved, tries
