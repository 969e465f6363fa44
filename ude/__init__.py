"""Universal differential equations in Python: known physics, unknown functions, and the equations they turn out to be.

Public names are resolved on first use (PEP 562). `import ude` therefore loads neither SymPy, pandas, SciPy and
matplotlib nor any symbolic search engine: each is loaded by the first thing that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same table as below, for type checkers; tests/test_import.py holds the two together
    from ude import datasets as datasets
    from ude.discovery import Candidate as Candidate
    from ude.discovery import Discovery as Discovery
    from ude.discovery import LibraryRegressor as LibraryRegressor
    from ude.discovery import PySR as PySR
    from ude.discovery import Samples as Samples
    from ude.discovery import discover as discover
    from ude.engines import TorchDiffEq as TorchDiffEq
    from ude.errors import BackendMissing as BackendMissing
    from ude.errors import DataError as DataError
    from ude.errors import EngineRefused as EngineRefused
    from ude.errors import InputError as InputError
    from ude.errors import ModelError as ModelError
    from ude.errors import SolveFailed as SolveFailed
    from ude.errors import UdeError as UdeError
    from ude.methods import BS3 as BS3
    from ude.methods import DP5 as DP5
    from ude.methods import PIController as PIController
    from ude.methods import Tsit5 as Tsit5
    from ude.models import MLP as MLP
    from ude.models import UDE as UDE
    from ude.models import FunctionModel as FunctionModel
    from ude.models import Model as Model
    from ude.models import Neural as Neural
    from ude.models import NeuralODE as NeuralODE
    from ude.models import Parameter as Parameter
    from ude.models import Symbolic as Symbolic
    from ude.problems import ODEProblem as ODEProblem
    from ude.problems import Parameters as Parameters
    from ude.problems import remake as remake
    from ude.sensitivity import BacksolveAdjoint as BacksolveAdjoint
    from ude.sensitivity import DiscreteAdjoint as DiscreteAdjoint
    from ude.solution import ReturnCode as ReturnCode
    from ude.solution import Solution as Solution
    from ude.solution import Statistics as Statistics
    from ude.solve import solve as solve
    from ude.training import Dataset as Dataset
    from ude.training import Fit as Fit
    from ude.training import fit as fit
    from ude.training import load_fit as load_fit
    from ude.training import read_csv as read_csv

__version__ = "0.1.0"

_PUBLIC: dict[str, tuple[str, ...]] = {
    "ude.errors": (
        "UdeError",
        "InputError",
        "DataError",
        "ModelError",
        "SolveFailed",
        "EngineRefused",
        "BackendMissing",
    ),
    "ude.problems": ("ODEProblem", "Parameters", "remake"),
    "ude.solution": ("Solution", "ReturnCode", "Statistics"),
    "ude.solve": ("solve",),
    "ude.methods": ("BS3", "DP5", "Tsit5", "PIController"),
    "ude.engines": ("TorchDiffEq",),
    "ude.sensitivity": ("DiscreteAdjoint", "BacksolveAdjoint"),
    "ude.models": ("Model", "UDE", "NeuralODE", "FunctionModel", "Neural", "Symbolic", "MLP", "Parameter"),
    "ude.training": ("Dataset", "read_csv", "fit", "Fit", "load_fit"),
    "ude.discovery": ("discover", "Discovery", "Samples", "Candidate", "LibraryRegressor", "PySR"),
}
_MODULE_OF: dict[str, str] = {name: module for module, names in _PUBLIC.items() for name in names}
_SUBMODULES: tuple[str, ...] = ("datasets",)

__all__ = ["__version__", *_SUBMODULES, *_MODULE_OF]


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, and remember the name here."""
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
