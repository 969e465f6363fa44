"""What other packages call things that have another name here, and the errors that say so."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from ude.errors import InputError, UnknownName

_Callable = TypeVar("_Callable", bound=Callable[..., Any])

_TOLERANCE = "Write reltol= for the relative and abstol= for the absolute tolerance."
_PROBLEM = "Give it to the problem: ude.ODEProblem(f, u0, tspan, p), or change one with ude.remake(prob, ...)."
_ALGORITHM = "Give an algorithm object as the second argument: ude.solve(prob, ude.Tsit5())."
_JACOBIAN = "Give it with f: ODEProblem(ude.ODEFunction(f, jac=...), u0, tspan)."
_DENSE = "Leave it out: every solution has dense output, sol(t)."
_STEPS = "Leave it out: without saveat every accepted step is saved."
_DTYPE = "Leave it out: a solve has the dtype and device of u0."
_SENSITIVITY = "Write sensealg=, such as sensealg=ude.GaussAdjoint()."

#: Arguments of `solve` elsewhere (SciPy, torchdiffeq, diffrax, torchode, Julia) -> the argument, or what to do.
OF_SOLVE: dict[str, str] = {
    **dict.fromkeys(("rtol", "rel_tol", "rtols"), "reltol"),
    **dict.fromkeys(("atol", "abs_tol", "atols"), "abstol"),
    **dict.fromkeys(("tol", "tolerance", "eps"), _TOLERANCE),
    **dict.fromkeys(
        ("max_steps", "max_num_steps", "mxstep", "max_iter", "maxiter", "nsteps", "max_iters", "n_steps"), "maxiters"
    ),
    **dict.fromkeys(("max_step", "hmax", "max_dt", "dt_max"), "dtmax"),
    **dict.fromkeys(("min_step", "hmin", "min_dt", "dt_min"), "dtmin"),
    **dict.fromkeys(("first_step", "dt0", "h0", "h"), "dt"),
    "step_size": "Write dt=... with adaptive=False for steps of one size.",
    **dict.fromkeys(("t_eval", "ts", "t", "times", "teval", "evaluation_times", "save_at"), "saveat"),
    **dict.fromkeys(("method", "solver", "algorithm", "algo"), _ALGORITHM),
    **dict.fromkeys(("event", "events", "event_fn", "callbacks", "discrete_terminating_event"), "callback"),
    **dict.fromkeys(("stepsize_controller", "step_size_controller"), "controller"),
    **dict.fromkeys(("adjoint", "adjoint_method", "adjoint_params", "sensitivity", "gradient"), _SENSITIVITY),
    **dict.fromkeys(("tstop", "tcrit", "jump_t", "d_discontinuities", "grid_points"), "tstops"),
    **dict.fromkeys(("y0", "x0", "u0", "p", "args", "params", "parameters", "tspan", "t_span", "f", "fun"), _PROBLEM),
    **dict.fromkeys(("jac", "jac_sparsity", "mass_matrix"), _JACOBIAN),
    "dense_output": _DENSE,
    "dense": _DENSE,
    "save_everystep": _STEPS,
    "save_start": "List the times in saveat.",
    "save_end": "List the times in saveat.",
    "save_idxs": "Index the solution: sol.u[..., 0] or sol['x'].",
    "dtype": _DTYPE,
    "device": _DTYPE,
    "backend": "engine",
    "norm": "internalnorm",
    "ensemblealg": "Give trajectories= and batch_size=.",
    "options": "Give each option as an argument of its own: dt=, dtmin=, dtmax=, maxiters=.",
}

_STATE = "u0"
#: Arguments of problems elsewhere.
OF_PROBLEMS: dict[str, str] = {
    **dict.fromkeys(("y0", "x0", "z0", "initial_state", "initial_condition"), _STATE),
    **dict.fromkeys(("t_span", "ts", "t", "time_span", "t_range"), "tspan"),
    **dict.fromkeys(("args", "params", "parameters", "theta", "ps", "par"), "p"),
    **dict.fromkeys(("func", "fun", "rhs", "vector_field", "terms", "function", "model"), "f"),
    **dict.fromkeys(("state_names", "states", "syms"), "names"),
    "jac": _JACOBIAN,
    "mass_matrix": "Give it with f: ODEProblem(ude.ODEFunction(f, mass_matrix=...), u0, tspan).",
    "callback": "Give it to solve: ude.solve(prob, callback=...).",
    "event_dims": "state_dims",
    "dtype": "Give u0 as a tensor of that dtype.",
    "device": "Give u0 as a tensor on that device.",
}

_ITERATIONS = (
    "Give options=ude.FitOptions(single_iterations=(500, 200)), or "
    "stages=[ude.stages.SingleShooting((ude.optimizers.Adam(500),))]."
)
_OPTIMIZER = "Give stages=[ude.stages.SingleShooting((ude.optimizers.Adam(500, learning_rate=0.01),))]."
_SOLVER = "Give options=ude.FitOptions(solver=ude.fitting.SolverOptions(...))."
#: Arguments of training elsewhere.
OF_FIT: dict[str, str] = {
    **dict.fromkeys(("epochs", "n_epochs", "max_epochs", "max_iter", "maxiters", "iterations", "n_iter"), _ITERATIONS),
    **dict.fromkeys(("lr", "learning_rate", "optimizer", "optim", "opt", "batch_size", "scheduler"), _OPTIMIZER),
    **dict.fromkeys(("loss", "loss_fn", "criterion", "likelihood"), "Give noise=, such as ude.noise.Gaussian()."),
    **dict.fromkeys(("verbose", "show_progress", "progress_bar", "disp"), "progress"),
    **dict.fromkeys(("test_size", "test_split", "test", "hold_out"), "holdout"),
    **dict.fromkeys(("validation_split", "val_split", "val", "val_size"), "validation"),
    **dict.fromkeys(("random_state", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("solver", "alg", "sensealg", "reltol", "abstol", "rtol", "atol", "method"), _SOLVER),
    **dict.fromkeys(("dataset", "df", "x", "X", "train_data"), "data"),
    **dict.fromkeys(("y0", "x0"), "u0"),
    **dict.fromkeys(("callbacks", "cb"), "callback"),
    **dict.fromkeys(("prior",), "priors"),
    **dict.fromkeys(("regularization", "weight_decay", "l2", "regularizer"), "penalties"),
    **dict.fromkeys(("checkpoint", "save_dir", "output", "path", "folder"), "out"),
    "bounds": "Give a parameter its bounds in the model: ude.Parameter(...).",
}

#: Options of stages and optimizers elsewhere.
OF_STAGE: dict[str, str] = {
    **dict.fromkeys(
        ("optimizer", "optim", "opt", "epochs", "iterations", "lr", "learning_rate", "max_iter"), _OPTIMIZER
    ),
    **dict.fromkeys(("group_size", "n_windows", "windows", "window"), "window_steps"),
    **dict.fromkeys(("continuity_term", "penalty", "penalties"), "continuity"),
    **dict.fromkeys(("callbacks",), "callback"),
}
OF_OPTIMIZER: dict[str, str] = {
    **dict.fromkeys(("lr", "rate", "eta", "step_size"), "learning_rate"),
    **dict.fromkeys(("epochs", "max_iter", "maxiters", "maxiter", "n_iter", "steps", "max_nfev"), "iterations"),
    **dict.fromkeys(("params", "parameters"), "Leave it out: the stage gives it the parameters of the model."),
}

#: Attributes of the solutions of other packages.
OF_SOLUTION: dict[str, str] = {
    **dict.fromkeys(("y", "ys", "x", "xs", "values", "states", "us"), "u"),
    **dict.fromkeys(("ts", "times_saved", "time"), "t"),
    **dict.fromkeys(("status", "message", "result", "retcodes"), "retcode"),
    **dict.fromkeys(("nfev", "njev", "nlu", "nf", "destats", "num_steps"), "stats"),
    **dict.fromkeys(("t_events", "y_events", "event_times"), "events"),
    **dict.fromkeys(("sol", "interp", "interpolation", "evaluate"), "sol(t), the dense output"),
    **dict.fromkeys(("successful", "converged", "ok"), "success"),
}

_FBDF = "ude.FBDF(), a stiff multistep method of variable order"
_SOLVE = "ude.solve(ude.ODEProblem(f, u0, tspan, p), ude.Tsit5(), saveat=...)"
_DOPRI5 = "ude.methods.DP5() (Dormand and Prince 5(4)), or ude.Tsit5()"
_FIT = "ude.fit(model, data)"
#: Names at the top of other packages -> what plays their part here.
OF_PACKAGE: dict[str, str] = {
    **dict.fromkeys(("QNDF", "QBDF", "BDF", "CVODE_BDF", "VODE", "QNDF1", "QNDF2", "ABDF2", "NDF"), _FBDF),
    **dict.fromkeys(("Dopri5", "dopri5", "RK45", "DormandPrince", "ode45"), _DOPRI5),
    **dict.fromkeys(("Dopri8", "dopri8", "DOP853"), "ude.methods.DP8(), or ude.Vern7()"),
    **dict.fromkeys(("RK23", "bosh3", "Bosh3", "ode23"), "ude.methods.BS3()"),
    **dict.fromkeys(("Radau", "RadauIIA5", "RadauIIA9", "Kvaerno"), "ude.Rodas5P(), or ude.KenCarp4()"),
    **dict.fromkeys(("Rodas4P", "Rodas5", "Rodas42", "ROS3P", "Rosenbrock32", "ode15s"), "ude.Rodas5P()"),
    **dict.fromkeys(("LSODA", "lsoda", "AutoSwitcher"), "ude.AutoTsit5(ude.Rodas5P())"),
    **dict.fromkeys(("KenCarp47", "KenCarp58", "SDIRK2", "Hairer4"), "ude.KenCarp4()"),
    **dict.fromkeys(("Vern8", "TsitPap8", "Feagin10"), "ude.Vern7(), or ude.methods.Vern9()"),
    **dict.fromkeys(("VCABM", "AB3", "ABM54", "Adams", "CVODE_Adams"), "ude.Vern7()"),
    **dict.fromkeys(("odeint", "solve_ivp", "diffeqsolve", "ode", "integrate", "solve_ode", "IVP"), _SOLVE),
    "odeint_adjoint": "ude.solve(..., sensealg=ude.BacksolveAdjoint()); every solve has a gradient",
    "odeint_event": "ude.solve(..., callback=ude.ContinuousCallback(...))",
    **dict.fromkeys(("ODETerm", "ODESystem", "InitialValueProblem"), "ude.ODEProblem(f, u0, tspan, p)"),
    "SaveAt": "ude.solve(..., saveat=...)",
    **dict.fromkeys(("solve_bvp", "BVProblem"), "no method for boundary value problems"),
    **dict.fromkeys(
        ("SDEProblem", "DDEProblem", "DAEProblem", "sdeint"),
        "ude.ODEProblem; no SDEs and DDEs, and DAEs by ude.ODEFunction(f, mass_matrix=...)",
    ),
    **dict.fromkeys(("ODESolution", "OdeResult"), "ude.Solution"),
    **dict.fromkeys(("Chain", "FastChain", "Sequential"), "ude.MLP(...) or any torch.nn.Module"),
    **dict.fromkeys(("train", "Trainer", "optimize", "OptimizationProblem"), _FIT),
    "simulate": "ude.solve, or fit.predict(t)",
    **dict.fromkeys(("DataDrivenProblem", "regress"), "ude.discover(fit)"),
    "UDEProblem": "ude.UDE(equations, ...)",
    **dict.fromkeys(("read_csvs", "load_csv", "from_csv"), "ude.read_csv(path, time=...)"),
    **dict.fromkeys(("ForwardDiffSensitivity", "ForwardSensitivityAlgorithm"), "ude.ForwardSensitivity()"),
    **dict.fromkeys(("ReverseDiffAdjoint", "ZygoteAdjoint", "TrackerAdjoint"), "ude.DiscreteAdjoint()"),
    **dict.fromkeys(("RecursiveCheckpointAdjoint", "DirectAdjoint"), "ude.DiscreteAdjoint()"),
}


def named_arguments(elsewhere: Mapping[str, str]) -> Callable[[_Callable], _Callable]:
    """Decorate a function or class so that a wrong name or number of arguments is an `InputError` with the right name.

    Python's own TypeError cannot say that ``rtol`` is called ``reltol`` here.

    Args:
        elsewhere: What other packages call the arguments: the name of the argument, or a sentence that says what to do.
    """

    def decorate(target: _Callable) -> _Callable:
        inner = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        parameters = list(inspect.signature(target).parameters.values())
        own = 1 if isinstance(target, type) else 0  # self
        names = [one.name for one in parameters]
        positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        required = [one.name for one in parameters if one.default is one.empty]
        known = frozenset(names)
        # by the number of positional arguments: who must not come by name, and who must
        taken = [frozenset(positional[:count]) for count in range(len(positional) + 1)]
        missing = [frozenset(required) - names for names in taken]

        @wraps(inner)
        def checked(*args: Any, **named: Any) -> Any:
            try:
                return inner(*args, **named)
            except TypeError:
                # looked at only now, which costs a call with the right arguments nothing
                count = len(args) - own
                if (
                    known.issuperset(named)
                    and count < len(taken)
                    and taken[count].isdisjoint(named)
                    and missing[count].issubset(named)
                ):
                    raise
                raise _wrong_arguments(target.__name__, names, positional, required, elsewhere, count, named) from None

        if not isinstance(target, type):
            return checked  # type: ignore[return-value]
        target.__init__ = checked  # type: ignore[misc]
        return target

    return decorate


def _wrong_arguments(
    function: str,
    names: list[str],
    positional: list[str],
    required: list[str],
    elsewhere: Mapping[str, str],
    count: int,
    named: Mapping[str, Any],
) -> InputError:
    for name in named:
        if name not in names:
            expected, fix = right_name(name, names, elsewhere)
            return InputError(f"{function} has no argument {name!r}", expected=expected, fix=fix)
    if count > len(positional):
        listed = ", ".join(positional) or "no arguments without a name"
        return InputError(
            f"{function} takes at most {len(positional)} arguments without a name",
            expected=listed,
            got=f"{count} arguments",
            fix="Give the others by name.",
        )
    twice = [name for name in positional[:count] if name in named]
    if twice:
        return InputError(f"{function} was given {twice[0]} twice", fix="Leave one of them out.")
    absent = [name for name in required if name not in named and name not in positional[:count]]
    return InputError(f"{function} needs {' and '.join(absent)}", expected=f"{function}({', '.join(required)})")


def right_name(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> tuple[str, str]:
    """What was expected in the place of a name, and what to do."""
    listed = list(known)
    found = elsewhere.get(name, "")
    if not found:
        close = get_close_matches(name, listed, n=1, cutoff=0.75)
        found = close[0] if close else ""
    if found in listed:
        return found, f"Write {found}= in place of {name}=."
    return ("" if found else f"one of {', '.join(listed)}"), found


def unknown_attribute(owner: object, name: str, elsewhere: Mapping[str, str]) -> AttributeError:
    """The error for an attribute that an object of `ude` does not have; it names the right one where it is known."""
    known = [one for one in dir(type(owner)) if not one.startswith("_")]
    what = f"a {type(owner).__name__} has no {name!r}"
    if name.startswith("_"):  # asked for by copy, pickle and the like
        return AttributeError(what)
    found = elsewhere.get(name) or next(iter(get_close_matches(name, known, n=1, cutoff=0.75)), "")
    return UnknownName(what, expected=found or f"one of {', '.join(sorted(known))}")


def unknown_name(name: str, places: Mapping[str, str]) -> AttributeError:
    """The error for a name that is not at the top of `ude`.

    Args:
        name: What was asked for.
        places: Public names, and where each is found.
    """
    what = f"module 'ude' has no attribute {name!r}"
    if name.startswith("_"):
        return AttributeError(what)
    close = [name] if name in places else get_close_matches(name, list(places), n=3, cutoff=0.75)
    found = OF_PACKAGE.get(name, " or ".join(places[one] for one in close))
    return UnknownName(
        what, expected=found, fix="" if found else "dir(ude) lists the names; methods are in ude.methods."
    )
