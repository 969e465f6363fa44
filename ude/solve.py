"""solve: validate -> engine -> sensitivity -> Solution."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ude.callbacks import (
    Callback,
    PositiveDomain,
    PresetTimeCallback,
    SavingCallback,
    flatten_callbacks,
    terminate,
)
from ude.default_algorithm import default_algorithm
from ude.engines import ENGINES, FUSED, SolveSpec, TorchDiffEq, TorchEngine, choose_engine
from ude.engines.jacobian import require_right
from ude.engines.step_checks import step_checks, with_domains
from ude.engines.structure import started, structure_of
from ude.ensemble import EnsembleProblem, EnsembleSolution, solve_ensemble
from ude.errors import InputError
from ude.events import EventRun, preset_times, solve_with_events
from ude.interpolation import interpolations_in
from ude.methods import (
    Algorithm,
    BrownFullBasicInit,
    CheckInit,
    Controller,
    InitializationAlgorithm,
    NoInit,
    PIController,
)
from ude.problems import FlatRightHandSide, ODEProblem, flatten, remake
from ude.sensitivity import DiscreteAdjoint, SensitivityAlgorithm, Solved
from ude.solution import ReturnCode, Solution, Statistics
from ude.steady_state import SteadyStateProblem, TerminateSteadyState, solve_steady_state


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
    """
    options = {
        name: value for name, value in locals().items() if name not in ("prob", "trajectories", "batch_size", "batched")
    }
    if isinstance(prob, EnsembleProblem):
        if trajectories is None:
            raise InputError("an ensemble needs a number of variants", fix="Give trajectories=100.")
        if any(isinstance(item, SavingCallback) for item in flatten_callbacks(callback)):
            raise InputError(
                "an ensemble is several solves, each of which would write SavedValues anew",
                fix="Solve a batch: an ODEProblem with u0 of shape (trajectories, state).",
            )
        return solve_ensemble(
            prob,
            lambda one: solve(one, **options),
            trajectories=trajectories,
            batch_size=batch_size,
            batched=batched,
        )
    if trajectories is not None:
        raise InputError(
            "trajectories belongs to an ensemble", fix="Wrap the problem: EnsembleProblem(prob, prob_func)."
        )
    why_algorithm = ""
    if alg is None:
        alg, why_algorithm = default_algorithm(prob, reltol=reltol, abstol=abstol, adaptive=adaptive)
    if not isinstance(alg, Algorithm):
        raise InputError("alg must be an algorithm object", expected="e.g. Tsit5()", got=repr(alg))
    given, sensealg = sensealg, DiscreteAdjoint() if sensealg is None else sensealg
    batch = tuple(prob.u0.shape[:-1])
    u0 = prob.u0.reshape(-1, prob.u0.shape[-1])
    t0, t1 = (_times(value, u0) for value in prob.tspan)
    structure = structure_of(prob, alg)
    f, p = flatten(prob if structure.f is None else remake(prob, f=structure.f))
    _check_numbers(dt=dt, dtmin=dtmin, dtmax=dtmax, maxiters=maxiters)
    if not adaptive and dt is None:
        raise InputError("adaptive=False needs a step", fix="Give dt.")
    if not adaptive and (force_dtmin or isoutofdomain is not None):
        raise InputError(
            "force_dtmin and isoutofdomain need steps that can change", got="adaptive=False", fix="Leave them out."
        )
    callbacks = flatten_callbacks(callback)
    if not adaptive and any(isinstance(item, PositiveDomain) for item in callbacks):
        raise InputError("PositiveDomain needs steps that can change", got="adaptive=False", fix="Leave it out.")
    spec = SolveSpec(
        f=f,
        batch=batch,
        t0=t0,
        t1=t1,
        saveat=_save_times(saveat, t0, t1, batch),
        algorithm=alg,
        abstol=_tolerance(abstol, "abstol", u0),
        reltol=_tolerance(reltol, "reltol", u0),
        controller=_controller(controller),
        first_du=_UNKNOWN,
        dt=dt,
        dtmin=dtmin,
        dtmax=dtmax,
        adaptive=adaptive,
        maxiters=maxiters,
        force_dtmin=force_dtmin,
        checks=step_checks(
            f, batch, isoutofdomain=isoutofdomain, unstable_check=unstable_check, internalnorm=internalnorm
        ),
        compact=isinstance(sensealg, DiscreteAdjoint) or not _tracked(u0, p),
        checkpoints=getattr(sensealg, "checkpoints", "all") if _tracked(u0, p) else "all",
        start=(u0, p),
        gradient=_tracked(u0, p),
        mass=structure.mass,
        initializealg=_initialization(initializealg),
        jac=structure.bound_jac(f),
        colouring=structure.colouring,
    )
    if callback is None and tstops is None and engine in ("auto", FUSED.name) and FUSED.is_ready(spec):
        # a kernel that was compared with f before: nothing is left to be checked
        return _run(prob, spec, sensealg, FUSED.name, u0, p, why_algorithm)
    spec = replace(spec, first_du=_first_derivative(f, u0, p, t0, batch))
    require_right(spec, u0.detach(), p)
    if spec.mass is not None:
        u0, spec = started(spec, u0, p)
    if spec.saveat is None and isinstance(alg, TorchDiffEq):
        raise InputError(f"{alg.name} does not tell its own steps", fix="Give saveat.")
    if isinstance(prob, SteadyStateProblem):
        again = {name: value for name, value in options.items() if name not in ("alg", "callback", "sensealg")}
        return solve_steady_state(
            prob,
            spec,
            (u0, p),
            (given, why_algorithm),
            lambda ode, inner, until: solve(ode, inner, callback=[until, *callbacks], **again),
        )
    callbacks = tuple(one.bound(prob.f) if isinstance(one, TerminateSteadyState) else one for one in callbacks)
    spec = replace(spec, checks=with_domains(spec.checks, callbacks, spec.abstol, u0))
    stops = _stops(tstops, spec)
    if spec.adaptive and not isinstance(alg, TorchDiffEq):
        stops = torch.cat([stops, *(item.stops(t0, t1) for item in interpolations_in(prob.f, prob.p))], -1)
    if not callbacks and not stops.shape[1]:
        return _run(prob, spec, sensealg, engine, u0, p, why_algorithm)
    # legs between stops start anew each time, which is no work for an engine that prepares a whole solve
    spec = replace(spec, start=None)
    watched = replace(spec, watch=_never_stop) if callbacks else spec
    choice = choose_engine(ENGINES, watched, engine)
    run = EventRun(
        spec=spec,
        engine=choice.engine,
        sensealg=sensealg,
        p=p,
        tracked=_tracked(u0, p),
        callbacks=callbacks,
        tstops=stops,
        max_events=max_events,
    )
    return _run_with_events(prob, run, u0, choice.why_not, why_algorithm)


# The derivative at the start, before it was asked for.
_UNKNOWN = torch.empty(0)


def _never_stop(t: Tensor, u: Tensor, t_next: Tensor, u_next: Tensor, moved: Tensor) -> Tensor:
    return torch.zeros_like(moved)


def _tracked(u0: Tensor, p: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and (u0.requires_grad or any(leaf.requires_grad for leaf in p))


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
        span=(spec.t0, result.t_end),
        reached=result.t_end,
        retcode=result.retcode,
        stats=Statistics(
            nf=result.nf,
            accepted_steps=result.accepted_steps.view(spec.batch),
            rejected_steps=result.rejected_steps.view(spec.batch),
            engine=run.engine.name,
            algorithm=spec.algorithm.name,
            sensealg=run.sensealg.name if run.tracked else "none",
            seconds=result.seconds,
            why_not=why_not,
            njacs=result.njacs,
            nw=result.nw,
            why_algorithm=why_algorithm,
            switches=None if result.switches is None else result.switches.view(spec.batch),
            nproducts=result.nproducts,
        ),
        dense=lambda asked: result.dense(asked).view(*spec.batch, asked.shape[1], -1),
        events=result.events,
    )


def _run(
    prob: ODEProblem,
    spec: SolveSpec,
    sensealg: SensitivityAlgorithm,
    engine: str,
    u0: Tensor,
    p: Sequence[Tensor],
    why_algorithm: str,
) -> Solution:
    choice = choose_engine(ENGINES, spec, engine)
    began = time.perf_counter()
    result = choice.engine.forward(spec, u0.detach(), p)
    seconds = time.perf_counter() - began
    switched = result.switches is not None and bool(result.switches.any())
    for other in ENGINES:
        if other is not choice.engine and not switched:
            other.learn(spec, result.nf)
    name, why_not = choice.engine.name, choice.why_not
    if result.handed_on is not None:
        name, why_not = TorchEngine.name, {**why_not, name: result.handed_on}
    tracked = _tracked(u0, p)
    solved = Solved(choice.engine, spec, result.record, result.record.u_end)

    def read(times: Tensor, values: Tensor | None = None) -> Tensor:
        if values is None:
            values = choice.engine.interpolate(spec, result.record, p, times)
        if tracked and torch.is_grad_enabled():
            values = sensealg.attach(solved, times, values, u0, p)
        return values.view(*spec.batch, *values.shape[1:])

    return Solution(
        result.times,
        read(result.times, result.values),
        names=prob.state_names,
        span=(spec.t0, spec.t1),
        reached=result.t_end,
        retcode=result.retcode,
        stats=Statistics(
            nf=result.nf,
            accepted_steps=result.accepted_steps.view(spec.batch),
            rejected_steps=result.rejected_steps.view(spec.batch),
            engine=name,
            algorithm=spec.algorithm.name,
            sensealg=sensealg.name if tracked else "none",
            seconds=seconds,
            why_not=why_not,
            njacs=result.njacs,
            nw=result.nw,
            why_algorithm=why_algorithm,
            switches=None if result.switches is None else result.switches.view(spec.batch),
            nproducts=result.nproducts,
        ),
        dense=read,
    )


def _initialization(given: InitializationAlgorithm | None) -> InitializationAlgorithm:
    known = BrownFullBasicInit, CheckInit, NoInit
    if given is not None and not isinstance(given, known):
        raise InputError(
            "initializealg is none that ude has",
            expected=f"one of {', '.join(f'{one.__name__}()' for one in known)}",
            got=repr(given),
        )
    return BrownFullBasicInit() if given is None else given


def _times(value: float | Tensor, u0: Tensor) -> Float[Tensor, "B"]:
    if isinstance(value, Tensor):
        return value.reshape(-1)
    if u0.shape[0] <= _FEW:
        return _same_times(value, u0.shape[0], u0.dtype, u0.device)
    return torch.full((u0.shape[0],), value, dtype=u0.dtype, device=u0.device)


# Times of so few trajectories are kept for the next solve.
_FEW = 1024


@lru_cache(maxsize=64)
def _same_times(value: float, count: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "B"]:
    return torch.full((count,), value, dtype=dtype, device=device)


def _controller(controller: Controller | None) -> Controller:
    if controller is None:
        return PIController()
    if isinstance(controller, type) or not hasattr(controller, "factor"):
        raise InputError("controller must be a controller object", expected="e.g. IController()", got=repr(controller))
    return controller


def _check_numbers(*, dt: float | None, dtmin: float, dtmax: float, maxiters: int) -> None:
    if dt is not None and not (0 < dt < float("inf")):
        raise InputError("dt is not a step", expected="a positive number", got=repr(dt))
    if not (0 <= dtmin < dtmax):
        raise InputError("dtmin and dtmax are not bounds", expected="0 <= dtmin < dtmax", got=f"{dtmin!r}, {dtmax!r}")
    if maxiters < 1:
        raise InputError("maxiters allows no step", expected="at least 1", got=repr(maxiters))


@lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _tolerance(value: Any, name: str, u0: Tensor) -> Tensor:
    if isinstance(value, float) and 1e-300 <= value < float("inf"):
        return _number(value, u0.dtype, u0.device)
    tolerance = torch.as_tensor(value, dtype=u0.dtype, device=u0.device).detach()
    if tolerance.ndim > 1 or (tolerance.ndim == 1 and tolerance.shape[0] != u0.shape[1]):
        raise InputError(
            f"{name} does not fit the state",
            expected=f"a number or {u0.shape[1]} numbers",
            got=f"shape {tuple(tolerance.shape)}",
        )
    lowest = 0.0 if name == "reltol" else 1e-300
    if not bool((tolerance >= lowest).all()) or not bool(torch.isfinite(tolerance).all()):
        sign = "zero or more" if name == "reltol" else "positive"
        raise InputError(f"{name} must be {sign}", got=repr(value), fix="A usual value is 1e-6.")
    return tolerance


def _save_times(saveat: Any, t0: Tensor, t1: Tensor, batch: tuple[int, ...]) -> Float[Tensor, "B T"] | None:
    if saveat is None:
        return None
    if not isinstance(saveat, Tensor):
        return _checked_times(saveat, t0, t1, batch)
    # the same times again, as in training, have been checked
    known = _KNOWN_TIMES.get(saveat)
    asked = (saveat._version, batch, t0.dtype, t0.data_ptr(), t1.data_ptr(), t0._version, t1._version)
    if known is None or known[0] != asked:
        # t0 and t1 are kept, so that no others can come to lie where they lie
        known = _KNOWN_TIMES[saveat] = (asked, _checked_times(saveat, t0, t1, batch), t0, t1)
    return known[1]


# by the identity of the tensor that the user gave
_KNOWN_TIMES: Any = WeakIdKeyDictionary()


def _checked_times(saveat: Any, t0: Tensor, t1: Tensor, batch: tuple[int, ...]) -> Float[Tensor, "B T"]:
    times = torch.as_tensor(saveat, dtype=t0.dtype, device=t0.device).detach()
    if times.ndim == 0:
        return _regular_times(float(times), t0, t1)
    if times.ndim == 1:
        times = times.expand(len(t0), -1)
    elif tuple(times.shape[:-1]) == batch:
        times = times.reshape(len(t0), -1)
    else:
        raise InputError(
            "saveat does not fit the batch",
            expected=f"(time,) or {(*batch, 'time')}".replace("'", ""),
            got=str(tuple(times.shape)),
        )
    _check_save_times(times, t0, t1)
    return times.contiguous()


def _regular_times(every: float, t0: Tensor, t1: Tensor) -> Float[Tensor, "B T"]:
    if not every > 0:
        raise InputError("saveat is not a step", expected="a positive number or times", got=repr(every))
    span = t1 - t0
    if bool((span != span[0]).any()):
        raise InputError(
            "saveat as a number needs trajectories of one length",
            got="spans of different lengths",
            fix="Give saveat as times of shape (*batch, time).",
        )
    length = float(span[0].abs())
    count = int(length / every + 1e-9)
    steps = torch.arange(count + 1, dtype=t0.dtype, device=t0.device) * every
    if length - count * every > 1e-9 * length:
        steps = torch.cat([steps, steps.new_tensor([length])])
    else:
        steps[-1] = length
    sign = 1.0 if float(span[0]) >= 0 else -1.0
    times = t0.unsqueeze(-1) + sign * steps
    # the last save is the end itself, not the end plus a rounding error
    times[:, -1] = t1
    return times


def _check_save_times(times: Tensor, t0: Tensor, t1: Tensor) -> None:
    if times.shape[-1] == 0:
        raise InputError("saveat is empty", expected="at least one time", fix="Leave it out to save every step.")
    if not bool(torch.isfinite(times).all()):
        raise InputError("saveat must be finite", got="NaN or infinity among the times")
    sign = torch.where(t1 >= t0, 1.0, -1.0).to(times.dtype).unsqueeze(-1)
    wrong = ((times[:, 1:] - times[:, :-1]) * sign < 0).nonzero()
    if len(wrong):
        lane, i = (int(x) for x in wrong[0])
        word = "increase" if float(sign[lane]) > 0 else "decrease"
        before, after = float(times[lane, i]), float(times[lane, i + 1])
        raise InputError(
            f"saveat must {word}",
            got=f"saveat[{i + 1}]={after:g} follows saveat[{i}]={before:g}",
            fix="Sort it, or swap tspan to integrate backwards.",
        )
    low, high = torch.minimum(t0, t1).unsqueeze(-1), torch.maximum(t0, t1).unsqueeze(-1)
    outside = ((times < low) | (times > high)).nonzero()
    if len(outside):
        lane, i = (int(x) for x in outside[0])
        raise InputError(
            "saveat lies outside tspan",
            expected=f"times from {float(low[lane]):g} to {float(high[lane]):g}",
            got=f"saveat[{i}]={float(times[lane, i]):g}",
        )


def _first_derivative(
    f: FlatRightHandSide, u0: Tensor, p: Sequence[Tensor], t0: Tensor, batch: tuple[int, ...]
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
            fix="Stack the derivatives along the last axis: torch.stack([...], -1).",
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
