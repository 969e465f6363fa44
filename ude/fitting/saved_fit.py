"""A fit read back from its folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from ude import methods
from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array, Trajectory
from ude.fitting.objective.measurement import Measurement
from ude.fitting.objective.noise import NoiseModel
from ude.fitting.options import FitOptions
from ude.fitting.result import Fit
from ude.fitting.simulation.shooting import SolverOptions
from ude.fitting.storage.fit_files import read_fit
from ude.models import UDE, FunctionModel, Model


def load_fit(
    directory: str | Path,
    *,
    modules: Mapping[str, nn.Module] | None = None,
    f: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
) -> Fit:
    """The fit that `Fit.save` wrote.

    modules: the user's own networks by output name; f: the function of a `FunctionModel`. Neither can be kept in plain
    data.

    Raises InputError: no fit in the folder, one of a later version, damaged files, a missing `modules` or `f`.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> folder = fit.save("trained")
    >>> ude.fitting.load_fit(folder).model.values() == fit.model.values()
    True
    """
    description, tensors, history = read_fit(directory)
    try:
        return _rebuild(description, tensors, history, modules, f)
    except InputError:
        raise
    except Exception as error:  # a wrong shape or value raises whatever it raises where it is used
        raise DataError(f"the fit in {directory} is damaged", got=f"{type(error).__name__}: {error}") from error


def _rebuild(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    history: pd.DataFrame,
    modules: Mapping[str, nn.Module] | None,
    f: Callable[[Tensor, Any, Tensor], Tensor] | None,
) -> Fit:
    model = _model(description["model"], modules, f)
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    data = _data(description["data"], tensors)
    train, validation, held_out = _parts(description["data"], data)
    return Fit(
        model=model,
        data=data,
        train=train,
        held_out=held_out,
        u0=tensors["u0"].numpy(),
        history=history,
        interrupted=description["interrupted"],
        seed=description["seed"],
        options=_options(description["options"]),
        positive=np.array(description["positive"], dtype=bool),
        scale=tensors["scale"].numpy(),
        noise=tensors["noise"].numpy(),
        noise_models={name: _noise_model(entry) for name, entry in description.get("noise_models", {}).items()},
        fitted_numbers=description.get("fitted_numbers", 0),
        known_u0=tuple(description.get("known_u0", ())),
        validation=validation,
        # folders of format 1 from before there were observables: every column was a state
        measurement=Measurement(model, data.states, description.get("observe", {})),
        state_scale=tensors.get("state_scale", tensors["scale"]).numpy(),
        notes=tuple(description.get("notes", ())),
        per_trajectory={name[15:]: v.numpy() for name, v in tensors.items() if name.startswith("per_trajectory.")},
        holdout=description["data"].get("holdout", 0),
    )


def _data(info: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dataset:
    conditions = info.get("conditions", [{}] * len(info["names"]))
    trajectories = tuple(
        Trajectory(
            tensors[f"data.{i}.t"].numpy(), tensors[f"data.{i}.u"].numpy(), name, conditions[i], _covariates(tensors, i)
        )
        for i, name in enumerate(info["names"])
    )
    data = Dataset(
        tuple(info["states"]),
        trajectories,
        info["time_name"],
        tuple(info["notes"]),
        info.get("units", {}),
        info.get("covariate_kind", "linear"),
    )
    if data.digest != info["digest"]:
        raise ValueError("the data are not those that the fit was made from")
    return data


def _parts(info: Mapping[str, Any], data: Dataset) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Training, validation and held-out data: what was trained on comes first, what was held out last."""
    kept = info["trained_on"]
    train = replace(data, trajectories=tuple(tr.part(slice(k)) for tr, k in zip(data.trajectories, kept, strict=True)))
    seen = info.get("validated_on") or [0] * len(kept)
    middle = tuple(tr.part(slice(k, k + v)) for tr, k, v in zip(data.trajectories, kept, seen, strict=True))
    tail = tuple(tr.part(slice(k + v, None)) for tr, k, v in zip(data.trajectories, kept, seen, strict=True))
    return (
        train,
        replace(data, trajectories=middle) if any(seen) else None,
        replace(data, trajectories=tail) if any(len(tr) for tr in tail) else None,
    )


def _options(entry: Mapping[str, Any]) -> FitOptions:
    settings = dict(entry)
    for name in ("derivative_iterations", "continuity", "single_iterations"):
        settings[name] = tuple(settings[name])
    solver = settings["solver"]
    settings["solver"] = SolverOptions(**{**solver, "algorithm": _algorithm(solver.get("algorithm"))})
    return FitOptions(**settings)


def _algorithm(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    kind: Any = getattr(methods, entry["kind"]) if entry["kind"] in methods.__all__ else None
    if not isinstance(kind, type):
        raise DataError("the algorithm of a fit must be one of ude.methods", got=repr(entry["kind"]))
    # a method such as AutoTsit5 sets some of its fields itself
    accepted = inspect.signature(kind).parameters
    return kind(**{name: _algorithm(value) for name, value in entry.items() if name in accepted})


def _noise_model(entry: Mapping[str, Any]) -> NoiseModel:
    kinds = {kind.__name__: kind for kind in NoiseModel.__subclasses__()}
    model: NoiseModel = kinds[entry["kind"]](**{name: value for name, value in entry.items() if name != "kind"})
    return model


def _covariates(tensors: Mapping[str, Tensor], trajectory: int) -> dict[str, tuple[Array, Array]]:
    prefix = f"covariate.{trajectory}."
    runs = {name[len(prefix) :]: value.numpy() for name, value in tensors.items() if name.startswith(prefix)}
    return {name: (run[0], run[1]) for name, run in runs.items()}


def _model(
    description: Mapping[str, Any],
    modules: Mapping[str, nn.Module] | None,
    f: Callable[[Tensor, Any, Tensor], Tensor] | None,
) -> Model:
    if description["kind"] != "function":
        return UDE.from_dict(description, modules)
    if f is None:
        raise InputError(
            "the right-hand side of the saved model is a function of your own and must be given",
            expected=f"f={description['function']}",
        )
    return FunctionModel.from_dict(description, f, modules)
