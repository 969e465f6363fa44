"""solve: validate -> engine -> sensitivity -> Solution."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import ENGINES, EngineChoice, SolveSpec, choose_engine
from ude.engines.jacobian import require_right
from ude.engines.return_code import ReturnCode
from ude.engines.structure import started
from ude.errors import InputError
from ude.events import EventRun, preset_times, solve_with_events
from ude.events.callbacks import (
    Callback,
    PositiveDomain,
    PresetTimeCallback,
    SavingCallback,
    flatten_callbacks,
    terminate,
)
from ude.events.step_checks import with_domains
from ude.methods import Algorithm, Controller, InitializationAlgorithm
from ude.problems.interpolation import interpolations_in
from ude.problems.ode import ODEProblem
from ude.sensitivity import DiscreteAdjoint, SensitivityAlgorithm, Solved
from ude.solving.default_algorithm import default_algorithm
from ude.solving.ensemble import EnsembleProblem, EnsembleSolution, solve_ensemble
from ude.solving.solution import Ended, Solution, Statistics, statistics_of
from ude.solving.steady_state import SteadyStateProblem, TerminateSteadyState, solve_steady_state
from ude.solving.validation import SolveOptions, tracked, validate


# The overloads leave the options to the implementation, where they are spelled once.
@overload
def solve(prob: ODEProblem, alg: Algorithm | None = ..., **options: Any) -> Solution: ...


@overload
def solve(
    prob: EnsembleProblem, alg: Algorithm | None = ..., *, trajectories: int, **options: Any
) -> EnsembleSolution: ...


def solve(  # type: ignore[misc]
    prob: ODEProblem | EnsembleProblem,
    alg: Algorithm | None = None,
    *,
    saveat: Any = None,
    abstol: Any = 1e-6,
    reltol: Any = 1e-3,
    dt: float | None = None,
    adaptive: bool = True,
    dtmin: float = 0.0,
    dtmax: float = float("inf"),
    maxiters: int = 100_000,
    force_dtmin: bool = False,
    controller: Controller | None = None,
    isoutofdomain: Callable[..., Any] | None = None,
    unstable_check: Callable[..., Any] | None = None,
    internalnorm: Callable[..., Any] | None = None,
    sensealg: SensitivityAlgorithm | None = None,
    engine: str = "auto",
    callback: Callback | Sequence[Callback] | None = None,
    tstops: Any = None,
    max_events: int = 10_000,
    initializealg: InitializationAlgorithm | None = None,
    trajectories: int | None = None,
    batch_size: int = 4096,
    batched: bool = True,
) -> Solution | EnsembleSolution:
    """Solve an initial value problem; the result is differentiable with respect to u0 and every leaf of p.

    Args:
        prob: The problem.
        alg: `Tsit5()`; `Vern7()` for tight tolerances; `KenCarp4()` or `Rodas5P()` for stiff problems;
            `AutoTsit5(Rodas5P())`, which finds out; or `TorchDiffEq("dopri5")`. None chooses by `default_algorithm`
            and says why in ``sol.stats.why_algorithm``.
        saveat: A number (save every so much, and the end), times in the direction of integration, or one row of
            times a trajectory ``(*batch, time)``. None saves every accepted step.
        abstol, reltol: Tolerances of the local error, a number or one number a state: each step's root mean square of
            ``error / (abstol + reltol |u|)`` is at most 1. Every trajectory of a batch has its own steps.
        dt: First step; the step itself with ``adaptive=False``.
        dtmin, dtmax: Bounds of the step size. A step below dtmin ends the trajectory with a `ReturnCode`.
        force_dtmin: Take a step of size dtmin whatever its error, and go on.
        maxiters: Most steps, accepted or not, that a trajectory may try.
        controller: Step-size control: `PIController()` (the default), `IController()` or `PIDController(b1, b2, b3)`;
            qmin, qmax, gamma, qsteady_min and the like are its arguments.
        isoutofdomain: ``(u, p, t) -> (*batch)`` booleans. A step that ends where it holds is rejected and tried again
            with the smallest factor of the controller; with force_dtmin it is taken at dtmin all the same.
        unstable_check: ``(dt, u, p, t) -> (*batch)`` booleans. A trajectory whose accepted step ends where it holds is
            given up as `Unstable`.
        internalnorm: ``(error, t) -> (*batch)``: the norm of the scaled errors ``(*batch, state)`` of a step, which is
            accepted when it is at most 1; their root mean square unless given. It chooses the first step too; Newton's
            iteration keeps the root mean square.
        sensealg: How gradients are computed: `DiscreteAdjoint()` (the default), which may keep checkpoints only,
            `BacksolveAdjoint()`, `InterpolatingAdjoint()`, `QuadratureAdjoint()`, `GaussAdjoint()`,
            `ForwardSensitivity()`, or `Autograd()` for second derivatives; docs/sensitivities.md compares them.
        engine: "auto", or the name of an engine that then must be able to run it.
        callback: Events and interventions: one callback, a `CallbackSet`, or a list of them.
        tstops: Times that steps must hit, (k,) or ``(*batch, k)``: where f or its derivatives jump, such as the knots
            of a forcing. Those of an `Interpolation` that f uses are added where it pays (see its `known`).
        max_events: Most events of a solve, all trajectories together; more end it with `ReturnCode.MaxEvents`.
        initializealg: How the start of a DAE (an `ODEFunction` with a singular mass matrix) is made consistent:
            `BrownFullBasicInit()` (the default), `CheckInit()` or `NoInit()`.
        trajectories: Of an `EnsembleProblem`, how many variants to solve.
        batch_size, batched: Variants that share f and differ in u0, tspan and numbers in p are solved as batches of at
            most so many; with ``batched=False``, or where they cannot be, one after another.

    Returns:
        A `Solution`, or an `EnsembleSolution`. A trajectory that fails does not raise here: see `Solution.retcode`.

    Raises:
        InputError: An argument cannot be used, or f does not fit u0.
        EngineRefused: The engine asked for cannot run this.

    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), saveat=0.5, reltol=1e-8, abstol=1e-8)
    >>> sol.u.shape, round(float(sol.u[-1, 0]), 6)
    (torch.Size([3, 1]), 0.135335)
    >>> ude.solve(prob, ude.Tsit5(), saveat=[0.5, 0.2])
    Traceback (most recent call last):
    ude.errors.InputError: saveat must increase: saveat[1]=0.2 follows saveat[0]=0.5. Sort it, ...
    """
    options = SolveOptions(
        saveat=saveat,
        abstol=abstol,
        reltol=reltol,
        dt=dt,
        adaptive=adaptive,
        dtmin=dtmin,
        dtmax=dtmax,
        maxiters=maxiters,
        force_dtmin=force_dtmin,
        controller=controller,
        isoutofdomain=isoutofdomain,
        unstable_check=unstable_check,
        internalnorm=internalnorm,
        initializealg=initializealg,
    )
    request = _Request(options, sensealg, engine, callback, tstops, max_events)
    if isinstance(prob, EnsembleProblem):
        return _solve_variants(prob, alg, request, trajectories, (batch_size, batched))
    if trajectories is not None:
        raise InputError(
            "trajectories belongs to an ensemble", fix="Wrap the problem: EnsembleProblem(prob, prob_func)."
        )
    return _solve(prob, alg, request)


class _Request(NamedTuple):
    """What `solve` was asked beside problem and algorithm."""

    options: SolveOptions
    sensealg: SensitivityAlgorithm | None
    engine: str
    callback: Callback | Sequence[Callback] | None
    tstops: Any
    max_events: int


def _solve(prob: ODEProblem, alg: Algorithm | None, request: _Request) -> Solution:
    """One problem: the solve that an engine has ready, if there is one; else validate and choose an engine."""
    options, chosen = request.options, request.sensealg or _USUAL
    # without callbacks and stops, the whole solve may be ready
    plain = request.callback is None and request.tstops is None
    preparing = [one for one in ENGINES if request.engine in ("auto", one.name)] if plain else []
    asked = (alg, request.sensealg, *options)
    if alg is not None:
        for one in preparing:
            ready = one.recall(prob, asked, options.saveat)
            if ready is not None:
                return _run(prob, ready, chosen, EngineChoice(one))
    given, why_algorithm = alg, ""
    if alg is None:
        alg, why_algorithm = default_algorithm(
            prob, reltol=options.reltol, abstol=options.abstol, adaptive=options.adaptive
        )
    spec = validate(prob, alg, options, chosen)
    for one in preparing:
        if one.is_ready(spec):  # it was compared with f before: nothing is left to be checked
            if given is not None:
                one.prepare(prob, asked, options.saveat, spec)
            return _run(prob, spec, chosen, EngineChoice(one), why_algorithm)
    return _solve_checked(prob, spec, request, why_algorithm)


def _solve_checked(prob: ODEProblem, spec: SolveSpec, request: _Request, why_algorithm: str) -> Solution:
    """Check f at the start, then solve: for a steady state, as a whole, or segment by segment between events."""
    callbacks = flatten_callbacks(request.callback)
    if not spec.adaptive and any(isinstance(item, PositiveDomain) for item in callbacks):
        raise InputError("PositiveDomain needs steps that can change", got="adaptive=False", fix="Leave it out.")
    spec = _checked(spec)
    if spec.saveat is None and not spec.algorithm.reports_steps:
        raise InputError(f"{spec.algorithm.name} does not tell its own steps", fix="Give saveat.")
    u0, p = spec.start or (prob.u0, ())
    if isinstance(prob, SteadyStateProblem):
        return solve_steady_state(
            prob,
            spec,
            (u0, p),
            (request.sensealg, why_algorithm),
            lambda ode, inner, until: _solve(ode, inner, request._replace(callback=[until, *callbacks], sensealg=None)),
        )
    chosen = request.sensealg or _USUAL
    callbacks = tuple(one.bound(prob.f) if isinstance(one, TerminateSteadyState) else one for one in callbacks)
    spec = replace(spec, checks=with_domains(spec.checks, callbacks, spec.abstol, u0))
    stops = _stops(request.tstops, spec)
    if spec.adaptive and spec.algorithm.reports_steps:
        stops = torch.cat([stops, *(item.stops(spec.t0, spec.t1) for item in interpolations_in(prob.f, prob.p))], -1)
    if not callbacks and not stops.shape[1]:
        return _run(prob, spec, chosen, choose_engine(ENGINES, spec, request.engine), why_algorithm)
    # segments between stops start anew each time, which is no work for an engine that prepares a whole solve
    spec = replace(spec, start=None, compact=isinstance(chosen, DiscreteAdjoint))
    watched = replace(spec, watch=_never_stop) if callbacks else spec
    choice = choose_engine(ENGINES, watched, request.engine)
    run = EventRun(
        spec=spec,
        engine=choice.engine,
        sensealg=chosen,
        p=p,
        tracked=tracked(u0, p),
        callbacks=callbacks,
        tstops=stops,
        max_events=request.max_events,
    )
    return _run_with_events(prob, run, u0, choice.why_not, why_algorithm)


_USUAL = DiscreteAdjoint()


def _solve_variants(
    ensemble: EnsembleProblem,
    alg: Algorithm | None,
    request: _Request,
    trajectories: int | None,
    batches: tuple[int, bool],
) -> EnsembleSolution:
    """Solve an ensemble with the arguments that `solve` was given."""
    if trajectories is None:
        raise InputError("an ensemble needs a number of variants", fix="Give trajectories=100.")
    if any(isinstance(item, SavingCallback) for item in flatten_callbacks(request.callback)):
        raise InputError(
            "an ensemble is several solves, each of which would write SavedValues anew",
            fix="Solve a batch: an ODEProblem with u0 of shape (trajectories, state).",
        )
    batch_size, batched = batches
    return solve_ensemble(
        ensemble,
        lambda one: _solve(one, alg, request),
        trajectories=trajectories,
        batch_size=batch_size,
        batched=batched,
    )


def _checked(spec: SolveSpec) -> SolveSpec:
    """Call f at the start and check what it returns; the start of a DAE is made consistent."""
    if spec.start is None:
        raise AssertionError("`validate` gives a start")
    u0, p = spec.start
    spec = replace(spec, first_du=_first_derivative(spec.f, u0, p, spec.t0, spec.batch))
    require_right(spec, u0.detach(), p)
    if spec.mass is None:
        return spec
    u0, spec = started(spec, u0, p)
    return replace(spec, start=(u0, p))


def _never_stop(t: Tensor, u: Tensor, t_next: Tensor, u_next: Tensor, moved: Tensor) -> Tensor:
    return torch.zeros_like(moved)


def _stops(tstops: Any, spec: SolveSpec) -> Float[Tensor, "B k"]:
    if tstops is None:
        return spec.t0.new_empty(len(spec.t0), 0)
    return preset_times(PresetTimeCallback(tstops, terminate), spec)


def _run_with_events(
    prob: ODEProblem, run: EventRun, u0: Tensor, why_not: dict[str, str], why_algorithm: str
) -> Solution:
    spec = run.spec
    result = solve_with_events(run, u0)
    times, values = result.times, result.values
    if not spec.batch and bool((result.retcode == ReturnCode.Terminated).all()):
        sign = spec.sign
        kept = (times[0] * sign) <= (result.t_end * sign)
        times, values = times[:, kept], values[:, kept]
    return Solution(
        times,
        values.view(*spec.batch, *values.shape[1:]),
        names=prob.state_names,
        ended=Ended(spec.t0, result.t_end, result.t_end, result.retcode),
        stats=statistics_of(
            result,
            spec,
            engine=run.engine.name,
            sensealg=run.sensealg.name if run.tracked or values.requires_grad else "none",
            seconds=result.seconds,
            why=(why_not, why_algorithm),
        ),
        dense=lambda asked: result.dense(asked).view(*spec.batch, asked.shape[1], -1),
        events=result.events,
    )


def _run(
    prob: ODEProblem,
    spec: SolveSpec,
    sensealg: SensitivityAlgorithm,
    choice: EngineChoice,
    why_algorithm: str = "",
) -> Solution:
    engine, batch = choice.engine, spec.batch
    u0, p = spec.start or (prob.u0, ())
    began = time.perf_counter()
    result = engine.forward(spec, u0.detach(), p)
    seconds = time.perf_counter() - began
    switched = result.switches is not None and bool(result.switches.any())
    for other in ENGINES:
        # only those that were asked and waited learn from it, and none from the work of an implicit method
        if other.name in choice.why_not and not switched:
            other.learn(spec, result.nf)
    name, why_not = engine.name, choice.why_not
    if result.handed_on is not None:
        name, reason = result.handed_on
        why_not = {**why_not, engine.name: reason}
    differentiable = spec.gradient
    solved = Solved(engine, spec, result.record, result.record.u_end, result.fresh)

    def read(times: Tensor, values: Tensor | None = None) -> Tensor:
        if values is None:
            values = engine.interpolate(spec, result.record, p, times)
        shape = (*batch, *values.shape[1:])
        if differentiable and torch.is_grad_enabled():
            if isinstance(sensealg, DiscreteAdjoint):
                return sensealg.attach(solved, times, values.view(shape), u0, p)
            values = sensealg.attach(solved, times, values, u0, p)
        return values.view(shape)

    def statistics() -> Statistics:
        attached = sensealg.name if differentiable else "none"
        return statistics_of(
            result, spec, engine=name, sensealg=attached, seconds=seconds, why=(why_not, why_algorithm)
        )

    return Solution(
        result.times,
        read(result.times, result.values),
        names=lambda: prob.state_names,
        ended=Ended(spec.t0, spec.t1, result.t_end, result.retcode),
        stats=statistics,
        dense=read,
    )


def _first_derivative(
    f: Callable[..., Any], u0: Tensor, p: Sequence[Tensor], t0: Tensor, batch: tuple[int, ...]
) -> Float[Tensor, "B n"]:
    """Evaluate f once at the start, as its author sees it, and check what comes back."""
    state = u0.detach().view(*batch, u0.shape[-1])
    constants = tuple(leaf.detach() for leaf in p)
    du = f(state, constants, t0.view(batch))
    if not isinstance(du, Tensor):
        raise InputError(
            "f(u, p, t) must return a tensor",
            expected=f"shape {tuple(state.shape)}",
            got=type(du).__name__,
            fix="Stack the derivatives: torch.stack([...], -1).",
        )
    if du.shape != state.shape:
        raise InputError(
            "f(u, p, t) must return the shape of u",
            expected=str(tuple(state.shape)),
            got=str(tuple(du.shape)),
            # (B,) with (B, 1) makes (B, B), which is what p.k * u does
            fix="Parameters of a batch have no axis of states: write p.k[..., None] * u."
            if batch and du.shape == (*batch, batch[-1])
            else "Stack the derivatives along the last axis: torch.stack([...], -1).",
        )
    if du.dtype != state.dtype:
        raise InputError(
            "f(u, p, t) must return the dtype of u0",
            expected=str(state.dtype),
            got=str(du.dtype),
            fix="Make the parameters and networks of f that dtype (module.double()), or give u0 in theirs.",
        )
    if du.requires_grad:
        raise InputError(
            "f depends on trainable tensors that are not in p, so no gradient would reach them",
            fix="Give them as p=dict(...) (modules too), or make f an nn.Module that owns them.",
        )
    return du.reshape(u0.shape)
