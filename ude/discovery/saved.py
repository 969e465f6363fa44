"""What `Discovery.save` and `Fit.save` left in a folder, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ude.errors import DataError, InputError
from ude.fitting import load_fit
from ude.fitting.data.trajectory import Array
from ude.fitting.result import Fit
from ude.models import UDE
from ude.models.export.equation_set import EquationSet
from ude.models.export.export import export
from ude.problems.ode import ODEProblem
from ude.solving.solve import solve
from ude.untrusted import JSON, read_json

_MODEL, _NUMBERS, _FIT = "model.json", "discovery.json", "fit.json"
_SCHEMA = {
    "model": {str: JSON},  # see `UDE.from_dict`
    "u0": [[float]],
    "trajectories": [str],
    "spans": [[float]],
    "time": str,
}


@dataclass(frozen=True, eq=False)
class SavedDiscovery:
    """The equations that `Discovery.save` wrote, with where and when their trajectories start.

    model:   the equations, with a formula in the place of each network
    u0:      (trajectory, state), refitted with the constants on all data
    trajectories, spans: names; first and last time (trajectory, 2)
    time:    the name of time in the data
    fit:     the fit that was searched, where the folder holds it too
    numbers: what ``discovery.json`` says beside: formulas, constants, errors, verdict, ...

    >>> decay = ude.UDE("dx/dt = -k*x", parameters={"k": 1.0})
    >>> saved = ude.discovery.SavedDiscovery(decay, np.array([[2.0]]), ("run",), np.array([[0.0, 1.0]]), "t")
    >>> saved.predict(np.array([0.0, 1.0])).round(3)
    array([[2.   ],
           [0.736]])
    """

    model: UDE
    u0: Array
    trajectories: tuple[str, ...]
    spans: Array
    time: str
    fit: Fit | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def constants(self) -> dict[str, float]:
        """Every constant, those of formulas as ``U1_c0``."""
        return self.model.values()

    def problem(self, trajectory: int = 0) -> ODEProblem:
        """The equations as an `ODEProblem` over the times of one trajectory, from its initial state."""
        first, last = self.spans[trajectory].tolist()
        return self.model.problem(self.u0[trajectory], (first, last))

    def predict(self, t: Array, trajectory: int = 0) -> Array:
        """Simulated states (T, state) of one trajectory at increasing times t, none before its start.

        Raises InputError for times that do not increase, SolveFailed where the simulation breaks down.
        """
        times, first = np.asarray(t, dtype=np.float64), float(self.spans[trajectory, 0])
        if times.ndim != 1 or not len(times) or (np.diff(times) < 0).any() or not times[0] >= first:
            raise InputError(f"t of predict must be increasing times (T,) from {first:g} on", got=repr(t))
        if times[-1] == first:
            return np.repeat(self.u0[trajectory][None], len(times), axis=0)
        problem = self.model.problem(self.u0[trajectory], (first, float(times[-1])))
        with torch.no_grad():
            return solve(problem, saveat=torch.as_tensor(times), reltol=1e-8, abstol=1e-8).u.numpy()

    def __str__(self) -> str:
        return export(self.model, digits=4)

    def equation_set(self) -> EquationSet:
        """The equations with their numbers and the start of the first trajectory, for `ude.export`."""
        return replace(self.model.equation_set(), u0=dict(zip(self.model.states, self.u0[0].tolist(), strict=True)))


def load(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    f: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
) -> Fit | SavedDiscovery:
    """What a folder holds: the equations that a discovery found (with its fit, where that is there too), or a fit.

    modules, f: as in `load_fit`, for fits of models with parts that are not plain data

    Raises InputError where there is neither, and for damaged files.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> folder = fit.save("trained")
    >>> round(ude.load(folder).model.values()["k"], 3)
    1.5
    """
    folder = Path(directory)
    if not (folder / _MODEL).is_file():
        if not (folder / _FIT).is_file():
            raise InputError(
                f"there is neither a fit nor a discovery in {folder}",
                expected=f"{_MODEL} or {_FIT}",
                got="no such folder" if not folder.is_dir() else "",
                fix="Name a folder that save() or a run of ude discover has written.",
            )
        return load_fit(folder, modules=modules, f=f)
    known = f is not None or not _needs_function(folder)
    fit = load_fit(folder, modules=modules, f=f) if (folder / _FIT).is_file() and known else None
    return read_discovery(folder, fit)


def read_discovery(folder: Path, fit: Fit | None = None) -> SavedDiscovery:
    """What `Discovery.save` wrote. Raises InputError for damaged files."""
    saved = read_json(folder / _MODEL, _SCHEMA)
    numbers = folder / _NUMBERS
    try:
        return SavedDiscovery(
            model=UDE.from_dict(saved["model"]),
            u0=np.array(saved["u0"], dtype=np.float64),
            trajectories=tuple(saved["trajectories"]),
            spans=np.array(saved["spans"], dtype=np.float64),
            time=saved["time"],
            fit=fit,
            numbers=read_json(numbers, {str: JSON}) if numbers.is_file() else {},
        )
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _MODEL} does not fit", got=f"{type(error).__name__}: {error}") from error


def _needs_function(folder: Path) -> bool:
    """Whether the fit is of a function of the user's, which only they have."""
    return (folder / _FIT).is_file() and read_json(folder / _FIT, {str: JSON})["model"].get("kind") == "function"
