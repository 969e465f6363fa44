"""`solve`: validate the arguments, choose an engine, integrate, attach the sensitivity, return a `Solution`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import ENGINES, EngineChoice, SolveSpec, choose_engine
from ude.engines.return_code import ReturnCode
from ude.errors import InputError
from ude.events import EventRun, preset_times, solve_with_events
from ude.events.callbacks import (
    Callback,
    ContinuousCallback,
    PositiveDomain,
    PresetTimeCallback,
    SavingCallback,
    VectorContinuousCallback,
    flatten_callbacks,
    terminate,
)
from ude.events.step_checks import with_domains
from ude.methods import Algorithm, Controller, InitializationAlgorithm
from ude.problems.ensemble import EnsembleProblem
from ude.problems.find_interpolations import interpolations_in
from ude.problems.ode import ODEProblem
from ude.problems.steady_state import SteadyStateProblem
from ude.sensitivity import DiscreteAdjoint, SensitivityAlgorithm, Solved
from ude.solving.default_algorithm import default_algorithm
from ude.solving.ensemble import EnsembleSolution, solve_ensemble
from ude.solving.first_call import require_finite
from ude.solving.moving_times import as_one_tensor, saved_at_times_that_move, start_that_moves, times_move
from ude.solving.options import SolveOptions
from ude.solving.solution import Solution, solution_of
from ude.solving.statistics import statistics_of
from ude.solving.steady_state import TerminateSteadyState, solve_steady_state
from ude.solving.switch_stops import SwitchStops, inspected, switch_stops
from ude.solving.validation import is_tracked, require_count, validate, validate_start
from ude.vocabulary import OF_SOLVE, named_arguments


# The overloads leave the options to the implementation, where they are listed once.
@overload
def solve(prob: ODEProblem, alg: Algorithm | None = ..., **options: Any) -> Solution: ...


@overload
def solve(
    prob: EnsembleProblem, alg: Algorithm | None = ..., *, trajectories: int, **options: Any
) -> EnsembleSolution: ...


@named_arguments(OF_SOLVE)  # type: ignore[misc]
def solve(
    prob: ODEProblem | EnsembleProblem,
    alg: Algorithm | None = None,
    *,
    saveat: Any = SolveOptions.saveat,
    abstol: Any = SolveOptions.abstol,
    reltol: Any = SolveOptions.reltol,
    dt: float | None = SolveOptions.dt,
    adaptive: bool = SolveOptions.adaptive,
    dtmin: float = SolveOptions.dtmin,
    dtmax: float = SolveOptions.dtmax,
    maxiters: int = SolveOptions.maxiters,
    force_dtmin: bool = SolveOptions.force_dtmin,
    controller: Controller | None = SolveOptions.controller,
    isoutofdomain: Callable[..., Any] | None = SolveOptions.isoutofdomain,
    unstable_check: Callable[..., Any] | None = SolveOptions.unstable_check,
    internalnorm: Callable[..., Any] | None = SolveOptions.internalnorm,
    sensealg: SensitivityAlgorithm | None = SolveOptions.sensealg,
    engine: str = SolveOptions.engine,
    callback: Callback | Sequence[Callback] | None = SolveOptions.callback,
    tstops: Any = SolveOptions.tstops,
    max_events: int = SolveOptions.max_events,
    initializealg: InitializationAlgorithm | None = SolveOptions.initializealg,
    shared_steps: bool = SolveOptions.shared_steps,
    trajectories: int | None = None,
    batch_size: int = 4096,
    batched: bool = True,
) -> Solution | EnsembleSolution:
    """Solve an initial value problem; the result is differentiable with respect to u0 and every leaf of p.

    Args:
        prob: The problem.
        alg: `Tsit5()`; `Vern7()` for tight tolerances; `KenCarp4()` or `Rodas5P()` for stiff problems;
            `AutoTsit5(Rodas5P())`, which detects stiffness; or `TorchDiffEq("dopri5")`. None chooses by
            `default_algorithm` and says why in ``sol.stats.why_algorithm``.
        saveat: A number (the distance of the saved times; the end is saved too), times in the direction of
            integration, or a row of times for each trajectory ``(*batch, time)``. None saves every accepted step.
        abstol, reltol: Tolerances of the local error, one number or one for each state: the root mean square of
            ``error / (abstol + reltol |u|)`` of each step is at most 1. Every trajectory of a batch has its own steps.
        dt: Size of the first step; of every step with ``adaptive=False``.
        adaptive: Whether the error estimate controls the step size.
        dtmin, dtmax: Bounds of the step size. A step below dtmin ends the trajectory with a `ReturnCode`.
        force_dtmin: Whether to accept a step of size dtmin whatever its error, and continue.
        maxiters: Maximum number of steps, accepted or rejected, of each trajectory.
        controller: Step-size control: `PIController()` (the default), `IController()` or `PIDController(b1, b2, b3)`;
            qmin, qmax, gamma, qsteady_min and the like are its arguments.
        isoutofdomain: ``(u, p, t) -> (*batch)`` booleans. A step that ends where it holds is rejected and tried again
            with the smallest factor of the controller; with force_dtmin it is accepted at dtmin anyway.
        unstable_check: ``(dt, u, p, t) -> (*batch)`` booleans. A trajectory with an accepted step that ends where it
            holds fails with `ReturnCode.Unstable`.
        internalnorm: ``(error, t) -> (*batch)``: the norm of the scaled errors ``(*batch, state)`` of a step, which is
            accepted when it is at most 1; their root mean square unless given. The first step depends on it
            too; Newton's iteration uses the root mean square.
        sensealg: How gradients are computed: `DiscreteAdjoint()` (the default), which can store checkpoints only,
            `BacksolveAdjoint()`, `InterpolatingAdjoint()`, `QuadratureAdjoint()`, `GaussAdjoint()`,
            `ForwardSensitivity()`, or `Autograd()` for second derivatives; docs/sensitivities.md compares them.
        engine: "auto", or the name of an engine, which must then be able to run the solve.
        callback: Events and interventions: one callback, a `CallbackSet`, or a list of them.
        tstops: Times that steps must hit, (k,) or ``(*batch, k)``: where f or its derivatives jump, such as the knots
            of a forcing. Those of an `Interpolation` that f uses are added where that saves work (see its `known`).
        max_events: Maximum number of events, all trajectories together; more end the solve with
            `ReturnCode.MaxEvents`.
        initializealg: How the start of a DAE (an `ODEFunction` with a singular mass matrix) is made consistent:
            `BrownFullBasicInit()` (the default), `CheckInit()` or `NoInit()`.
        shared_steps: Whether all trajectories of a batch take the same steps, whose error is the root mean square over
            all of them, as other packages step a batch. It is required where f couples them and each is a state of
            its own; it takes no callbacks.
        trajectories: How many variants of an `EnsembleProblem` to solve.
        batch_size, batched: Variants that share f and differ in u0, tspan and numbers in p are solved in batches of at
            most `batch_size`; others, and all with ``batched=False``, are solved one after another.

    Returns:
        A `Solution`, or an `EnsembleSolution`. A failed trajectory raises no error here: see `Solution.retcode`.

    Raises:
        InputError: An argument is invalid, or f does not return the shape of u0.
        EngineRefused: The requested engine cannot run the solve.

    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), saveat=0.5, reltol=1e-8, abstol=1e-8)
    >>> sol.u.shape, round(float(sol.u[-1, 0]), 6)
    (torch.Size([3, 1]), 0.135335)
    >>> ude.solve(prob, ude.Tsit5(), saveat=[0.5, 0.2])
    Traceback (most recent call last):
    ude.errors.InputError: saveat must increase: saveat[1]=0.2 follows saveat[0]=0.5. Sort it, ...
    """
    given = locals()
    options = SolveOptions(*[given[name] for name in _OPTIONS])
    if not isinstance(prob, EnsembleProblem):
        if trajectories is not None:
            raise InputError("trajectories requires an EnsembleProblem", fix="Use EnsembleProblem(prob, prob_func).")
        if not isinstance(prob, ODEProblem):
            raise InputError(
                "solve takes a problem",
                expected="ude.solve(ude.ODEProblem(f, u0, tspan, p), ude.Tsit5())",
                got=f"the class {prob.__name__}" if isinstance(prob, type) else type(prob).__name__,
            )
        return _explained(solve_with(prob, alg, options))
    if trajectories is None:
        raise InputError("an ensemble needs a number of variants", fix="Give trajectories=100.")
    require_count(trajectories, "trajectories")
    require_count(batch_size, "batch_size")
    if any(isinstance(item, SavingCallback) for item in flatten_callbacks(callback)):
        raise InputError(
            "an ensemble is several solves, each of which would overwrite SavedValues",
            fix="Solve a batch: an ODEProblem with u0 of shape (trajectories, state).",
        )
    return solve_ensemble(
        prob,
        lambda one: _explained(solve_with(one, alg, options)),
        trajectories=trajectories,
        batch_size=batch_size,
        batched=batched,
    )


def _explained(solution: Solution) -> Solution:
    """Return a solution, unless all of it failed since the problem holds NaN or infinity."""
    if solution.failed:
        require_finite(solution.prob)
    return solution


_OPTIONS = tuple(field.name for field in fields(SolveOptions))


def solve_with(prob: ODEProblem, alg: Algorithm | None, options: SolveOptions) -> Solution:
    """Solve a single problem, with the options of `solve` as one object."""
    # without callbacks and stops, the whole solve may be ready
    saveat = as_one_tensor(options.saveat)
    options = options if saveat is options.saveat else replace(options, saveat=saveat)
    moving = times_move(prob, options)
    plain = options.callback is None and options.tstops is None and not moving
    engines = [one for one in ENGINES if options.engine in ("auto", one.name)] if plain else []
    asked = (alg, *vars(options).values())
    if alg is not None:
        for engine in engines:
            ready = engine.recall(prob, asked, options.saveat)
            if ready is not None:
                return _run(prob, ready, options, EngineChoice(engine))
    why_algorithm = ""
    if alg is None:
        alg, why_algorithm = default_algorithm(prob, options)
    spec = validate(prob, alg, options)
    for engine in engines:
        if engine.is_ready(spec):  # it was compared with f before: nothing is left to be checked
            if asked[0] is not None:
                engine.prepare(prob, asked, options.saveat, spec)
            return _run(prob, spec, options, EngineChoice(engine), why_algorithm)
    solution = _solve_validated(prob, spec, options, why_algorithm, moving=moving)
    if moving and not isinstance(prob, SteadyStateProblem):
        return saved_at_times_that_move(solution, spec, prob, options, (spec.start or (prob.u0, ()))[1])
    return solution


def _solve_validated(
    prob: ODEProblem, spec: SolveSpec, options: SolveOptions, why_algorithm: str, *, moving: bool
) -> Solution:
    """Solve a validated problem whose f was not called yet; `moving` is the answer of `times_move`."""
    callbacks = flatten_callbacks(options.callback)
    if not spec.adaptive and any(isinstance(item, PositiveDomain) for item in callbacks):
        raise InputError("PositiveDomain requires adaptive steps", got="adaptive=False", fix="Leave it out.")
    if callbacks and options.shared_steps:
        raise InputError(
            "callbacks act on one trajectory of a batch, which ends the steps that all share",
            got="shared_steps=True with callbacks",
            fix="Give the times at which f jumps as tstops, or leave shared_steps out.",
        )
    spec, inspection = inspected(spec)
    spec = validate_start(spec)
    if spec.saveat is None and not spec.algorithm.reports_steps:
        raise InputError(f"{spec.algorithm.name} does not report its own steps", fix="Give saveat.")
    u0, p = spec.start or (prob.u0, ())
    if isinstance(prob, SteadyStateProblem):
        inner = replace(options, sensealg=None)
        return solve_steady_state(
            prob,
            spec,
            (options.sensealg, why_algorithm),
            lambda ode, alg, until: solve_with(ode, alg, replace(inner, callback=[until, *callbacks])),
        )
    if moving:
        spec = start_that_moves(spec, prob)
        u0, p = spec.start or (u0, p)
    callbacks = tuple(one.bound(prob) if isinstance(one, TerminateSteadyState) else one for one in callbacks)
    spec = replace(spec, checks=with_domains(spec.checks, callbacks, spec.abstol, u0))
    stops = _stops(options.tstops, spec)
    if spec.adaptive and spec.algorithm.reports_steps:
        stops = torch.cat([stops, *(item.stops(spec.t0, spec.t1) for item in interpolations_in(prob.f, prob.p))], -1)
    switches = switch_stops(spec, inspection, named=options.engine not in ("auto", "torch"))
    stops = switches.beside(stops)
    if not callbacks and not stops.shape[1]:
        return _run(prob, spec, options, choose_engine(ENGINES, spec, options.engine), why_algorithm, switches)
    whole = spec
    # each segment between stops is a solve of its own, which an engine that prepares a whole solve cannot run
    spec = replace(spec, start=None, compact=isinstance(options.sensitivity, DiscreteAdjoint))
    choice = choose_engine(ENGINES, replace(spec, watch=_never_stop) if callbacks else spec, options.engine)
    run = EventRun(
        spec=spec,
        engine=choice.engine,
        sensealg=options.sensitivity,
        p=p,
        tracked=is_tracked(u0, p),
        callbacks=callbacks,
        tstops=stops,
        max_events=options.max_events,
    )
    solution = _run_with_events(prob, run, u0, choice.why_not, why_algorithm)
    if not any(isinstance(item, (ContinuousCallback, VectorContinuousCallback)) for item in callbacks):
        switches.require_none_passed(whole, solution.dense)
    return replace(solution, notes=switches.notes)


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
    began = time.perf_counter()
    solved = solve_with_events(run, u0)
    seconds, result = time.perf_counter() - began, solved.result
    times, values = result.times, result.values
    if not spec.batch and bool((result.retcode == ReturnCode.Terminated).all()):
        kept = (times[0] * spec.sign) <= (result.t_end * spec.sign)
        times, values = times[:, kept], values[:, kept]
    return solution_of(
        prob,
        spec,
        result,
        (
            values.view(*spec.batch, *values.shape[1:]),
            lambda asked: solved.dense(asked).view(*spec.batch, asked.shape[1], -1),
        ),
        partial(
            statistics_of,
            engine=run.engine.name,
            sensealg=run.sensealg.name if run.tracked or values.requires_grad else "none",
            seconds=seconds,
            why_not=why_not,
            why_algorithm=why_algorithm,
        ),
        window=(times, (spec.t0, result.t_end)),
        events=solved.events,
    )


def _run(
    prob: ODEProblem,
    spec: SolveSpec,
    options: SolveOptions,
    choice: EngineChoice,
    why_algorithm: str = "",
    switches: SwitchStops | None = None,
) -> Solution:
    engine, batch, sensealg = choice.engine, spec.batch, options.sensitivity
    u0, p = spec.start or (prob.u0, ())
    began = time.perf_counter()
    result = engine.forward(spec, u0.detach(), p)
    seconds = time.perf_counter() - began
    switched = result.switches is not None and bool(result.switches.any())
    for other in ENGINES:
        # only an engine that was asked and waits learns from it, and none from the work of an implicit method
        if other.name in choice.why_not and not switched:
            other.learn(spec, result.nf)
    name, why_not = engine.name, choice.why_not
    if result.handed_on is not None:
        name, reason = result.handed_on
        why_not = {**why_not, engine.name: reason}
    solved = Solved(engine, spec, result.record, result.record.u_end, result.fresh)
    if switches is not None:
        switches.require_none_passed(spec, lambda times: engine.interpolate(spec, result.record, p, times))

    def read(times: Tensor, values: Tensor | None = None) -> Tensor:
        if values is None:
            values = engine.interpolate(spec, result.record, p, times)
        shape = (*batch, *values.shape[1:])
        if spec.gradient and torch.is_grad_enabled():
            if isinstance(sensealg, DiscreteAdjoint):
                return sensealg.attach(solved, times, values.view(shape), u0, p)
            values = sensealg.attach(solved, times, values, u0, p)
        return values.view(shape)

    solution = solution_of(
        prob,
        spec,
        result,
        (read(result.times, result.values), read),
        partial(
            statistics_of,
            engine=name,
            sensealg=sensealg.name if spec.gradient else "none",
            seconds=seconds,
            why_not=why_not,
            why_algorithm=why_algorithm,
        ),
    )
    return solution if switches is None else replace(solution, notes=switches.notes)
