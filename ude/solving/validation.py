"""Turn the arguments of `solve` into a validated `SolveSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import SolveSpec
from ude.engines.jacobian import require_right
from ude.engines.structure import started, structure_of
from ude.errors import InputError
from ude.events.callbacks import flatten_callbacks
from ude.events.step_checks import step_checks
from ude.methods import (
    Algorithm,
    BrownFullBasicInit,
    CheckInit,
    Controller,
    InitializationAlgorithm,
    NoInit,
    PIController,
)
from ude.methods import __all__ as METHODS
from ude.problems.dynamical import DynamicalODEFunction
from ude.problems.function import ODEFunction, innermost, require_callable
from ude.problems.ode import FlatRightHandSide, ODEProblem, flatten, remake
from ude.problems.state_axes import StateAxes
from ude.sensitivity import DiscreteAdjoint
from ude.solving.coupling import require_independent
from ude.solving.first_call import first_call
from ude.solving.options import SolveOptions
from ude.solving.save_times import as_times, save_times
from ude.vocabulary import OF_PACKAGE


def validate(prob: ODEProblem, alg: Algorithm, options: SolveOptions) -> SolveSpec:
    """Check the arguments of `solve` without a call of f; `first_du` is `UNKNOWN` until `validate_start` calls it.

    Raises:
        InputError: An argument cannot be used.
    """
    require_algorithm(alg)
    axes = prob.state_axes(shared_steps=options.shared_steps)
    if not axes.plain:
        _require_plain_function(prob)
    batch = axes.batch
    u0 = prob.u0.reshape(-1, axes.size)
    t0, t1 = (_times(value, u0) for value in prob.tspan)
    structure = structure_of(prob, alg)
    f, p = flatten(prob if structure.f is None else remake(prob, f=structure.f), axes)
    require_options(options)
    gradient, sensealg = is_tracked(u0, p), options.sensitivity
    return SolveSpec(
        f=f,
        batch=batch,
        t0=t0,
        t1=t1,
        saveat=save_times(options.saveat, t0, t1, batch),
        algorithm=alg,
        abstol=_tolerance(options.abstol, "abstol", u0, axes),
        reltol=_tolerance(options.reltol, "reltol", u0, axes),
        controller=_controller(options.controller),
        first_du=UNKNOWN,
        dt=options.dt,
        dtmin=options.dtmin,
        dtmax=options.dtmax,
        adaptive=options.adaptive,
        maxiters=options.maxiters,
        force_dtmin=options.force_dtmin,
        checks=step_checks(f, batch, options.isoutofdomain, options.unstable_check, options.internalnorm),
        compact=isinstance(sensealg, DiscreteAdjoint) or not gradient,
        checkpoints=sensealg.checkpoints if gradient and isinstance(sensealg, DiscreteAdjoint) else "all",
        start=(u0, p),
        gradient=gradient,
        mass=structure.mass,
        initializealg=_initialization(options.initializealg),
        jac=structure.bound_jac(f),
        coloring=structure.coloring,
    )


def require_algorithm(alg: Any) -> None:
    """Check that alg is an algorithm object.

    Raises:
        InputError: It is not.
    """
    if isinstance(alg, Algorithm):
        return
    fix = ""
    if isinstance(alg, type) and issubclass(alg, Algorithm):
        fix = f"Write {alg.__name__}()."
    elif isinstance(alg, str):
        name = OF_PACKAGE.get(alg) or next(
            (f"ude.methods.{one}()" for one in METHODS if one.lower() == alg.lower()), ""
        )
        fix = f"Write {name}." if name else "ude.methods lists them."
    raise InputError("alg must be an algorithm object", expected="one such as ude.Tsit5()", got=repr(alg), fix=fix)


def validate_start(spec: SolveSpec) -> SolveSpec:
    """Call f at the start, check what it returns, and make the start of a DAE consistent.

    Raises:
        InputError: f does not return du/dt of u0's shape and dtype, or the user's Jacobian is wrong.
    """
    if spec.start is None or not isinstance(spec.f, FlatRightHandSide):
        raise TypeError("the solve has no start")
    u0, p = spec.start
    spec = _with_first_derivative(spec, spec.f, u0, p)
    require_independent(spec, u0.detach(), tuple(leaf.detach() for leaf in p))
    require_right(spec, u0.detach(), p)
    if spec.mass is None:
        return spec
    u0, spec = started(spec, u0, p)
    return replace(spec, start=(u0, p))


def _with_first_derivative(spec: SolveSpec, f: FlatRightHandSide, u0: Tensor, p: Sequence[Tensor]) -> SolveSpec:
    """Evaluate f once at the start, as its author sees it, and check what comes back; see `first_call`."""
    batch = spec.batch
    state = u0.detach().view(*batch, u0.shape[-1])
    constants = tuple(leaf.detach() for leaf in p)
    f, du = first_call(f, state, constants, spec.t0.view(batch), gradient=spec.gradient)
    axes = f.axes
    if axes is not None and isinstance(du, Tensor) and du.shape != state.shape:
        # what is wrong is told in the shape that its author sees
        state = axes.view(state)
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
    return replace(spec, f=f, first_du=du.reshape(u0.shape))


#: The derivative at the start, before f was called.
UNKNOWN = torch.empty(0)


def is_tracked(u0: Tensor, p: Sequence[Tensor]) -> bool:
    """Whether the gradient with respect to u0 or a leaf may be asked for."""
    return torch.is_grad_enabled() and (u0.requires_grad or any(leaf.requires_grad for leaf in p))


def require_options(options: SolveOptions) -> None:
    """Check the kinds of the options that are neither times nor tolerances.

    Raises:
        InputError: One is of another kind.
    """
    _check_numbers(options)
    for name in ("adaptive", "force_dtmin", "shared_steps"):
        if not isinstance(getattr(options, name), bool):
            raise InputError(f"{name} must be True or False", got=repr(getattr(options, name)))
    for name, arguments in (
        ("isoutofdomain", "u, p, t"),
        ("unstable_check", "dt, u, p, t"),
        ("internalnorm", "error, t"),
    ):
        if getattr(options, name) is not None:
            require_callable(getattr(options, name), name, arguments)
    if not isinstance(options.engine, str):
        raise InputError("engine must be a name", expected="such as 'auto' or 'torch'", got=repr(options.engine))
    sensealg = options.sensealg
    if sensealg is not None and (isinstance(sensealg, type) or not hasattr(sensealg, "attach")):
        given = sensealg.__name__ if isinstance(sensealg, type) else ""
        raise InputError(
            "sensealg must be a sensitivity algorithm object",
            expected="one such as ude.GaussAdjoint()",
            got=given or repr(sensealg),
            fix=f"Write {given}()." if hasattr(sensealg, "attach") else "",
        )
    flatten_callbacks(options.callback)
    if options.tstops is not None:
        as_times(options.tstops, "tstops must be a time or times")


def _initialization(given: InitializationAlgorithm | None) -> InitializationAlgorithm:
    known = BrownFullBasicInit, CheckInit, NoInit
    if given is not None and not isinstance(given, known):
        raise InputError(
            "initializealg must be an initialization algorithm",
            expected=f"one of {', '.join(f'{one.__name__}()' for one in known)}",
            got=repr(given),
        )
    return BrownFullBasicInit() if given is None else given


def _times(value: float | Tensor, u0: Tensor) -> Float[Tensor, "B"]:
    if isinstance(value, Tensor):
        # the graph of a time is taken up again in `moving_times`
        rows = value.detach().reshape(-1, 1) if value.ndim == 0 else value.detach().reshape(len(u0), -1)
        rows = rows.expand(len(u0), -1)
        if bool((rows != rows[:, :1]).any()):
            raise InputError(
                "trajectories that share their steps start and end together",
                got=f"times from {float(rows.min()):g} to {float(rows.max()):g} in tspan",
                fix="Give one number for each end of tspan, or leave shared_steps out.",
            )
        return rows[:, 0].contiguous()
    if u0.shape[0] <= _FEW:
        return _constant(value, (u0.shape[0],), u0.dtype, u0.device)
    return torch.full((u0.shape[0],), value, dtype=u0.dtype, device=u0.device)


# For at most this many trajectories the times are kept for the next solve.
_FEW = 1024


@lru_cache(maxsize=128)
def _constant(value: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.full(shape, value, dtype=dtype, device=device)


def _require_plain_function(prob: ODEProblem) -> None:
    """Refuse what is told about states of one axis where a state has several, or is a whole batch."""
    f = prob.f
    if isinstance(innermost(f), DynamicalODEFunction):
        raise InputError(
            "a partitioned problem has states of one axis and steps of each trajectory",
            fix="Leave state_dims and shared_steps out, or give an ODEProblem.",
        )
    if isinstance(f, ODEFunction) and (f.size is not None or f.jac is not None):
        raise InputError(
            "mass_matrix, jac and jac_prototype are matrices over states of one axis",
            expected="state_dims=1 and shared_steps=False",
            fix="Give u0 with one axis of states and reshape it in f.",
        )


def _controller(controller: Controller | None) -> Controller:
    if controller is None:
        return PIController()
    if isinstance(controller, type) or not hasattr(controller, "factor"):
        raise InputError("controller must be a controller object", expected="e.g. IController()", got=repr(controller))
    return controller


def _check_numbers(options: SolveOptions) -> None:
    dt, dtmin, dtmax = options.dt, options.dtmin, options.dtmax
    for name in ("dt", "dtmin", "dtmax"):
        require_number(getattr(options, name), name, optional=name == "dt")
    for name in ("maxiters", "max_events"):
        require_count(getattr(options, name), name)
    if dt is not None and not (0 < dt < float("inf")):
        raise InputError("dt must be positive and finite", got=f"dt={dt!r}")
    if not (dtmin >= 0):
        raise InputError("dtmin must be zero or more", got=f"dtmin={dtmin!r}")
    if not (dtmin < dtmax):
        raise InputError("dtmin must be less than dtmax", got=f"dtmin={dtmin!r}, dtmax={dtmax!r}")
    if options.adaptive:
        return
    if dt is None:
        raise InputError("adaptive=False needs a step size", fix="Give dt.")
    if options.force_dtmin or options.isoutofdomain is not None:
        raise InputError(
            "force_dtmin and isoutofdomain require adaptive steps", got="adaptive=False", fix="Leave them out."
        )


def require_number(value: Any, name: str, *, optional: bool = False) -> None:
    """Check that an option is a real number, or None where it is optional.

    Raises:
        InputError: It is not.
    """
    if value is None and optional:
        return
    single = isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex()
    if not single and (isinstance(value, bool) or not isinstance(value, Real)):
        raise InputError(f"{name} must be a number", got=repr(value))


def require_count(value: Any, name: str) -> None:
    """Check that an option is a whole number, at least 1.

    Raises:
        InputError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name} must be a whole number, at least 1", got=f"{name}={value!r}")


def _tolerance(value: Any, name: str, u0: Tensor, axes: StateAxes) -> Tensor:
    if isinstance(value, float) and 1e-300 <= value < float("inf"):
        return _constant(value, (), u0.dtype, u0.device)
    try:
        tolerance = torch.as_tensor(value, dtype=u0.dtype, device=u0.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be a number, or one for each state", got=repr(value)) from None
    if not axes.plain and tuple(tolerance.shape) == axes.state:
        tolerance = tolerance.expand(*axes.shared, *axes.state).reshape(-1)
    if tolerance.ndim > 1 or (tolerance.ndim == 1 and tolerance.shape[0] != u0.shape[1]):
        raise InputError(
            f"{name} must be one number or one number for each state",
            expected=f"a number or {u0.shape[1]} numbers" if axes.plain else f"a number or shape {axes.state}",
            got=f"shape {tuple(tolerance.shape)}",
        )
    lowest = 0.0 if name == "reltol" else 1e-300
    if not bool((tolerance >= lowest).all()) or not bool(torch.isfinite(tolerance).all()):
        sign = "zero or more" if name == "reltol" else "positive"
        raise InputError(f"{name} must be {sign}", got=repr(value), fix="A usual value is 1e-6.")
    return tolerance
