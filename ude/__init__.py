"""Universal differential equations: known physics, unknown functions, and the equations that the data choose for them.

What a tutorial needs is here; the rest is in the submodules named in `_SUBMODULES`. Everything is imported when its
name is first used (PEP 562), so that SymPy, pandas, SciPy and matplotlib are loaded only by what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which do not see `__getattr__`; a test compares it with the tables below
    from ude import datasets as datasets
    from ude import discovery as discovery
    from ude import engines as engines
    from ude import errors as errors
    from ude import fitting as fitting
    from ude import methods as methods
    from ude import models as models
    from ude import problems as problems
    from ude import sensitivity as sensitivity
    from ude import solving as solving
    from ude.discovery import Discovery as Discovery
    from ude.discovery import TermConstraints as TermConstraints
    from ude.discovery import discover as discover
    from ude.discovery import load as load
    from ude.discovery import search as search
    from ude.engines import TorchDiffEq as TorchDiffEq
    from ude.errors import SolveFailed as SolveFailed
    from ude.errors import UdeError as UdeError
    from ude.events import callbacks as callbacks
    from ude.events.callbacks import CallbackSet as CallbackSet
    from ude.events.callbacks import ContinuousCallback as ContinuousCallback
    from ude.events.callbacks import DiscreteCallback as DiscreteCallback
    from ude.events.callbacks import PresetTimeCallback as PresetTimeCallback
    from ude.events.callbacks import terminate as terminate
    from ude.fitting import Dataset as Dataset
    from ude.fitting import Fit as Fit
    from ude.fitting import FitOptions as FitOptions
    from ude.fitting import fit as fit
    from ude.fitting import multistart as multistart
    from ude.fitting import noise as noise
    from ude.fitting import optimizers as optimizers
    from ude.fitting import penalties as penalties
    from ude.fitting import read_csv as read_csv
    from ude.fitting import stages as stages
    from ude.fitting import uncertainty as uncertainty
    from ude.methods import FBDF as FBDF
    from ude.methods import RK4 as RK4
    from ude.methods import AutoTsit5 as AutoTsit5
    from ude.methods import KenCarp4 as KenCarp4
    from ude.methods import Rodas5P as Rodas5P
    from ude.methods import Tsit5 as Tsit5
    from ude.methods import Vern7 as Vern7
    from ude.models import MLP as MLP
    from ude.models import UDE as UDE
    from ude.models import FunctionModel as FunctionModel
    from ude.models import Neural as Neural
    from ude.models import NeuralODE as NeuralODE
    from ude.models import Parameter as Parameter
    from ude.models import Symbolic as Symbolic
    from ude.problems import DynamicalODEProblem as DynamicalODEProblem
    from ude.problems import Interpolation as Interpolation
    from ude.problems import ODEFunction as ODEFunction
    from ude.problems import ODEProblem as ODEProblem
    from ude.problems import SecondOrderODEProblem as SecondOrderODEProblem
    from ude.problems import SplitODEProblem as SplitODEProblem
    from ude.problems import remake as remake
    from ude.sensitivity import BacksolveAdjoint as BacksolveAdjoint
    from ude.sensitivity import DiscreteAdjoint as DiscreteAdjoint
    from ude.sensitivity import ForwardSensitivity as ForwardSensitivity
    from ude.sensitivity import GaussAdjoint as GaussAdjoint
    from ude.sensitivity import InterpolatingAdjoint as InterpolatingAdjoint
    from ude.sensitivity import QuadratureAdjoint as QuadratureAdjoint
    from ude.solving import EnsembleProblem as EnsembleProblem
    from ude.solving import ReturnCode as ReturnCode
    from ude.solving import Solution as Solution
    from ude.solving import SteadyStateProblem as SteadyStateProblem
    from ude.solving import check_gradient as check_gradient
    from ude.solving import fused as fused
    from ude.solving import solve as solve
    from ude.solving import steady_state as steady_state

__version__ = "0.1.0"

_NAMES: dict[str, str] = {
    "ude.problems": "ODEProblem ODEFunction SplitODEProblem SecondOrderODEProblem DynamicalODEProblem Interpolation "
    "remake",
    "ude.solving": "solve Solution ReturnCode check_gradient SteadyStateProblem EnsembleProblem",
    "ude.methods": "Tsit5 Vern7 RK4 KenCarp4 Rodas5P FBDF AutoTsit5",
    "ude.engines": "TorchDiffEq",
    "ude.sensitivity": "DiscreteAdjoint BacksolveAdjoint InterpolatingAdjoint QuadratureAdjoint GaussAdjoint "
    "ForwardSensitivity",
    "ude.models": "UDE NeuralODE FunctionModel Neural MLP Symbolic Parameter",
    "ude.fitting": "fit Fit FitOptions Dataset read_csv multistart",
    "ude.discovery": "discover Discovery TermConstraints load",
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
    "noise": "ude.fitting.noise",
    "optimizers": "ude.fitting.optimizers",
    "penalties": "ude.fitting.penalties",
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
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
