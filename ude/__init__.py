"""Universal differential equations: known physics, unknown functions, and the equations that the data choose for them.

What a tutorial needs is here; the rest is in the submodules named in `_SUBMODULES`. Everything is imported when its
name is first used (PEP 562), so that SymPy, pandas, SciPy and matplotlib are loaded only by what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ude.vocabulary import unknown_name

if TYPE_CHECKING:  # for type checkers, which do not see `__getattr__`; a test compares it with the tables below
    from ude import datasets, discovery, engines, errors, fitting, methods, models, problems, sensitivity, solving
    from ude.discovery import Discovery, TermConstraints, load, search
    from ude.discovery.discover import discover
    from ude.engines import TorchDiffEq
    from ude.errors import SolveFailed, UdeError
    from ude.events import callbacks
    from ude.events.callbacks import CallbackSet, ContinuousCallback, DiscreteCallback, PresetTimeCallback, terminate
    from ude.fitting import (
        Dataset,
        Fit,
        FitOptions,
        multistart,
        optimizers,
        read_csv,
        stages,
        uncertainty,
    )
    from ude.fitting.fit import fit
    from ude.fitting.objective import noise, penalties
    from ude.methods import FBDF, RK4, AutoTsit5, KenCarp4, Rodas5P, Tsit5, Vern7
    from ude.models import MLP, UDE, FunctionModel, Neural, NeuralODE, Parameter, Symbolic
    from ude.models.export.export import export
    from ude.problems import (
        DynamicalODEProblem,
        EnsembleProblem,
        Interpolation,
        ODEFunction,
        ODEProblem,
        SecondOrderODEProblem,
        SplitODEProblem,
        SteadyStateProblem,
        remake,
    )
    from ude.sensitivity import (
        BacksolveAdjoint,
        DiscreteAdjoint,
        ForwardSensitivity,
        GaussAdjoint,
        InterpolatingAdjoint,
        QuadratureAdjoint,
    )
    from ude.solving import (
        ReturnCode,
        Solution,
        check_gradient,
        fused,
        solve,
        steady_state,
    )

__version__ = "0.1.0"

_NAMES: dict[str, str] = {
    "ude.problems": "ODEProblem ODEFunction SplitODEProblem SecondOrderODEProblem DynamicalODEProblem "
    "SteadyStateProblem EnsembleProblem Interpolation remake",
    "ude.solving": "solve Solution ReturnCode check_gradient",
    "ude.methods": "Tsit5 Vern7 RK4 KenCarp4 Rodas5P FBDF AutoTsit5",
    "ude.engines": "TorchDiffEq",
    "ude.sensitivity": "DiscreteAdjoint BacksolveAdjoint InterpolatingAdjoint QuadratureAdjoint GaussAdjoint "
    "ForwardSensitivity",
    "ude.models": "UDE NeuralODE FunctionModel Neural MLP Symbolic Parameter",
    "ude.models.export.export": "export",
    "ude.fitting.fit": "fit",
    "ude.fitting": "Fit FitOptions Dataset read_csv multistart",
    "ude.discovery.discover": "discover",
    "ude.discovery": "Discovery TermConstraints load",
    "ude.errors": "UdeError SolveFailed",
    "ude.events.callbacks": "ContinuousCallback DiscreteCallback PresetTimeCallback CallbackSet terminate",
}
_SUBMODULES: dict[str, str] = {
    "callbacks": "ude.events.callbacks",
    "datasets": "ude.datasets",
    "discovery": "ude.discovery",
    "engines": "ude.engines",
    "errors": "ude.errors",
    "fitting": "ude.fitting",
    "fused": "ude.solving.fused",
    "methods": "ude.methods",
    "models": "ude.models",
    "noise": "ude.fitting.objective.noise",
    "optimizers": "ude.fitting.optimizers",
    "penalties": "ude.fitting.objective.penalties",
    "problems": "ude.problems",
    "search": "ude.discovery.search",
    "sensitivity": "ude.sensitivity",
    "solving": "ude.solving",
    "stages": "ude.fitting.stages",
    "steady_state": "ude.solving.steady_state",
    "uncertainty": "ude.fitting.uncertainty",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

# fmt: off
__all__ = [
    "FBDF",
    "MLP",
    "RK4",
    "UDE",
    "AutoTsit5",
    "BacksolveAdjoint",
    "CallbackSet",
    "ContinuousCallback",
    "Dataset",
    "Discovery",
    "DiscreteAdjoint",
    "DiscreteCallback",
    "DynamicalODEProblem",
    "EnsembleProblem",
    "Fit",
    "FitOptions",
    "ForwardSensitivity",
    "FunctionModel",
    "GaussAdjoint",
    "InterpolatingAdjoint",
    "Interpolation",
    "KenCarp4",
    "Neural",
    "NeuralODE",
    "ODEFunction",
    "ODEProblem",
    "Parameter",
    "PresetTimeCallback",
    "QuadratureAdjoint",
    "ReturnCode",
    "Rodas5P",
    "SecondOrderODEProblem",
    "Solution",
    "SolveFailed",
    "SplitODEProblem",
    "SteadyStateProblem",
    "Symbolic",
    "TermConstraints",
    "TorchDiffEq",
    "Tsit5",
    "UdeError",
    "Vern7",
    "__version__",
    "callbacks",
    "check_gradient",
    "datasets",
    "discover",
    "discovery",
    "engines",
    "errors",
    "export",
    "fit",
    "fitting",
    "fused",
    "load",
    "methods",
    "models",
    "multistart",
    "noise",
    "optimizers",
    "penalties",
    "problems",
    "read_csv",
    "remake",
    "search",
    "sensitivity",
    "solve",
    "solving",
    "stages",
    "steady_state",
    "terminate",
    "uncertainty",
]
# fmt: on


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, and keep the name here."""
    if name in _SUBMODULES:
        value: Any = import_module(_SUBMODULES[name])
    elif name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    else:
        raise unknown_name(name, {} if name.startswith("_") else _places())
    globals()[name] = value
    return value


def _places() -> dict[str, str]:
    """Every public name with the place where it is found."""
    inner = {
        other: f"ude.{place}.{other}"
        for place, module in _SUBMODULES.items()
        for other in getattr(import_module(module), "__all__", ())
    }
    return {**inner, **{name: f"ude.{name}" for name in (*_MODULE_OF, *_SUBMODULES)}}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
