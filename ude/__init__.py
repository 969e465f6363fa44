"""Universal differential equations in Python: known physics, unknown functions, and the equations they turn out to be.

The solver needs nothing but torch and is here at once. What needs SymPy, pandas, SciPy or matplotlib (models, training,
discovery) is imported when its name is first used (PEP 562), and no symbolic search engine before a search starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ude.callbacks import (
    CallbackSet,
    ContinuousCallback,
    DiscreteCallback,
    FunctionCallingCallback,
    IterativeCallback,
    PeriodicCallback,
    PositiveDomain,
    PresetTimeCallback,
    SavedValues,
    SavingCallback,
    VectorContinuousCallback,
    terminate,
)
from ude.default_algorithm import default_algorithm
from ude.dynamical import DynamicalODEProblem, SecondOrderODEProblem
from ude.engines import TorchDiffEq
from ude.ensemble import EnsembleProblem, EnsembleSolution
from ude.errors import BackendMissing, DataError, EngineRefused, InputError, ModelError, SolveFailed, UdeError
from ude.gradient_check import GradientCheck, check_gradient
from ude.interpolation import Interpolation
from ude.methods import (
    BS3,
    DP5,
    DP8,
    FBDF,
    GMRES,
    LU,
    RK4,
    TRBDF2,
    AutoSwitch,
    AutoTsit5,
    AutoVern7,
    BrownFullBasicInit,
    CandyRoz4,
    CheckInit,
    Euler,
    Heun,
    IController,
    ImplicitEuler,
    KahanLi6,
    KahanLi8,
    KenCarp3,
    KenCarp4,
    KenCarp5,
    Kvaerno3,
    Kvaerno4,
    Kvaerno5,
    McLachlan4,
    Midpoint,
    NoInit,
    PIController,
    PIDController,
    PseudoVerletLeapfrog,
    Ralston,
    Rodas4,
    Rodas5P,
    Rosenbrock23,
    Trapezoid,
    Tsit5,
    VelocityVerlet,
    Vern6,
    Vern7,
    Vern9,
)
from ude.ode_function import ODEFunction
from ude.problems import ODEProblem, Parameters, remake
from ude.sensitivity import (
    Autograd,
    BacksolveAdjoint,
    DiscreteAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    SteadyStateAdjoint,
)
from ude.solution import ReturnCode, Solution, Statistics

# `solve` is a module too. Python sets the attribute `ude.solve` to the module when that is first imported; this line
# does it before it binds the function, and no later `import ude.solve` does it again. A lazy name would lose that race.
from ude.solve import solve
from ude.split import SplitODEProblem
from ude.steady_state import DynamicSS, SSRootfind, SteadyStateProblem, TerminateSteadyState

if TYPE_CHECKING:  # what `_LAZY` says, for type checkers
    from ude import datasets, fused, reference_problems
    from ude.discovery import Candidate, Discovery, LibraryRegressor, PySR, Samples, discover
    from ude.models import MLP, UDE, FunctionModel, Model, Neural, NeuralODE, Observation, Parameter, Symbolic
    from ude.training import (
        LBFGS,
        Adam,
        Dataset,
        DerivativeMatching,
        Fit,
        FitOptions,
        Gaussian,
        GrowingHorizon,
        InitialValue,
        Iteration,
        LevenbergMarquardt,
        LogNormal,
        LogNormalPrior,
        MultipleShooting,
        NegativeBinomial,
        NoiseModel,
        NormalPrior,
        Poisson,
        RelativeAbsolute,
        Residual,
        SingleShooting,
        Smallness,
        SolverOptions,
        StudentT,
        fit,
        load_fit,
        read_csv,
    )

__version__ = "0.1.0"

__all__ = [
    "BS3",
    "DP5",
    "DP8",
    "FBDF",
    "GMRES",
    "LBFGS",
    "LU",
    "MLP",
    "RK4",
    "TRBDF2",
    "UDE",
    "Adam",
    "AutoSwitch",
    "AutoTsit5",
    "AutoVern7",
    "Autograd",
    "BackendMissing",
    "BacksolveAdjoint",
    "BrownFullBasicInit",
    "CallbackSet",
    "Candidate",
    "CandyRoz4",
    "CheckInit",
    "ContinuousCallback",
    "DataError",
    "Dataset",
    "DerivativeMatching",
    "Discovery",
    "DiscreteAdjoint",
    "DiscreteCallback",
    "DynamicSS",
    "DynamicalODEProblem",
    "EngineRefused",
    "EnsembleProblem",
    "EnsembleSolution",
    "Euler",
    "Fit",
    "FitOptions",
    "ForwardSensitivity",
    "FunctionCallingCallback",
    "FunctionModel",
    "GaussAdjoint",
    "Gaussian",
    "GradientCheck",
    "GrowingHorizon",
    "Heun",
    "IController",
    "ImplicitEuler",
    "InitialValue",
    "InputError",
    "InterpolatingAdjoint",
    "Interpolation",
    "Iteration",
    "IterativeCallback",
    "KahanLi6",
    "KahanLi8",
    "KenCarp3",
    "KenCarp4",
    "KenCarp5",
    "Kvaerno3",
    "Kvaerno4",
    "Kvaerno5",
    "LevenbergMarquardt",
    "LibraryRegressor",
    "LogNormal",
    "LogNormalPrior",
    "McLachlan4",
    "Midpoint",
    "Model",
    "ModelError",
    "MultipleShooting",
    "NegativeBinomial",
    "Neural",
    "NeuralODE",
    "NoInit",
    "NoiseModel",
    "NormalPrior",
    "ODEFunction",
    "ODEProblem",
    "Observation",
    "PIController",
    "PIDController",
    "Parameter",
    "Parameters",
    "PeriodicCallback",
    "Poisson",
    "PositiveDomain",
    "PresetTimeCallback",
    "PseudoVerletLeapfrog",
    "PySR",
    "QuadratureAdjoint",
    "Ralston",
    "RelativeAbsolute",
    "Residual",
    "ReturnCode",
    "Rodas4",
    "Rodas5P",
    "Rosenbrock23",
    "SSRootfind",
    "Samples",
    "SavedValues",
    "SavingCallback",
    "SecondOrderODEProblem",
    "SingleShooting",
    "Smallness",
    "Solution",
    "SolveFailed",
    "SolverOptions",
    "SplitODEProblem",
    "Statistics",
    "SteadyStateAdjoint",
    "SteadyStateProblem",
    "StudentT",
    "Symbolic",
    "TerminateSteadyState",
    "TorchDiffEq",
    "Trapezoid",
    "Tsit5",
    "UdeError",
    "VectorContinuousCallback",
    "VelocityVerlet",
    "Vern6",
    "Vern7",
    "Vern9",
    "__version__",
    "check_gradient",
    "datasets",
    "default_algorithm",
    "discover",
    "fit",
    "fused",
    "load_fit",
    "read_csv",
    "reference_problems",
    "remake",
    "solve",
    "terminate",
]

_LAZY: dict[str, tuple[str, ...]] = {
    "ude.models": (
        "Model",
        "UDE",
        "NeuralODE",
        "FunctionModel",
        "Neural",
        "Symbolic",
        "MLP",
        "Parameter",
        "Observation",
    ),
    "ude.training": (
        "Dataset",
        "read_csv",
        "fit",
        "Fit",
        "load_fit",
        "Gaussian",
        "LogNormal",
        "NegativeBinomial",
        "NoiseModel",
        "Poisson",
        "RelativeAbsolute",
        "StudentT",
        "LBFGS",
        "Adam",
        "LevenbergMarquardt",
        "FitOptions",
        "LogNormalPrior",
        "NormalPrior",
        "Residual",
        "Smallness",
        "SolverOptions",
        "DerivativeMatching",
        "GrowingHorizon",
        "InitialValue",
        "Iteration",
        "MultipleShooting",
        "SingleShooting",
    ),
    "ude.discovery": ("discover", "Discovery", "Samples", "Candidate", "LibraryRegressor", "PySR"),
}
_MODULE_OF: dict[str, str] = {name: module for module, names in _LAZY.items() for name in names}
_LAZY_MODULES: tuple[str, ...] = ("datasets", "fused", "reference_problems")


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, and keep the name here."""
    if name in _LAZY_MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
