"""A fit as a folder: `fit.safetensors` (weights, data, initial states), `fit.json` (all else), `history.csv`.

Both main files are plain data: nothing is unpickled, so that a folder from elsewhere cannot run code.
"""

from __future__ import annotations

import importlib
import inspect
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ude.errors import InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array, Trajectory
from ude.fitting.measurement import Measurement
from ude.fitting.noise import NoiseModel
from ude.fitting.options import FitOptions
from ude.fitting.result import Fit
from ude.fitting.shooting import SolverOptions
from ude.fitting.storage.fit_folder import replace_file
from ude.models import UDE, FunctionModel, Model

FORMAT = 1
_JSON, _TENSORS, _HISTORY = "fit.json", "fit.safetensors", "history.csv"


def save_fit(fit: Fit, directory: str | Path) -> Path:
    """Write the fit into a folder, made when missing; existing files of a fit are replaced one by one, each whole.

    Raises InputError where the folder cannot be written.
    """
    folder = Path(directory)
    tensors = {f"model.{name}": value.detach().clone().contiguous() for name, value in fit.model.state_dict().items()}
    tensors["u0"] = torch.as_tensor(fit.u0)
    tensors["scale"], tensors["noise"] = torch.as_tensor(fit.scale), torch.as_tensor(fit.noise)
    tensors["state_scale"] = torch.as_tensor(fit.state_scale)
    for i, trajectory in enumerate(fit.data.trajectories):
        tensors[f"data.{i}.t"], tensors[f"data.{i}.u"] = torch.tensor(trajectory.t), torch.tensor(trajectory.u)
        for name, (times, values) in trajectory.covariates.items():
            tensors[f"covariate.{i}.{name}"] = torch.tensor(np.stack([times, values]))
    for name, numbers in fit.per_trajectory.items():
        tensors[f"per_trajectory.{name}"] = torch.as_tensor(numbers)
    description = {
        "format": FORMAT,
        "model": fit.model.to_dict(),
        "data": {
            "states": list(fit.data.states),
            "time_name": fit.data.time_name,
            "notes": list(fit.data.notes),
            "names": [trajectory.name for trajectory in fit.data.trajectories],
            "trained_on": [len(trajectory) for trajectory in fit.train.trajectories],
            "validated_on": [] if fit.validation is None else [len(tr) for tr in fit.validation.trajectories],
            "digest": fit.data.digest,
            "holdout": fit.holdout,
            "conditions": [dict(trajectory.conditions) for trajectory in fit.data.trajectories],
            "units": dict(fit.data.units),
            "covariate_kind": fit.data.covariate_kind,
        },
        "noise_models": {
            name: {"kind": type(model).__name__, **asdict(model)} for name, model in fit.noise_models.items()
        },
        "fitted_numbers": fit.fitted_numbers,
        "known_u0": list(fit.known_u0),
        "seed": fit.seed,
        "interrupted": fit.interrupted,
        "positive": [bool(flag) for flag in fit.positive],
        "observe": fit.measurement.formulas,
        "notes": list(fit.notes),
        "options": _plain_options(fit.options),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("ude", "torch", "numpy")},
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / _TENSORS, lambda path: save_file(tensors, path))
        replace_file(folder / _HISTORY, lambda path: fit.history.to_csv(path, index=False))
        replace_file(folder / _JSON, lambda path: path.write_text(json.dumps(description, indent=2) + "\n"))
    except OSError as error:
        raise InputError(
            f"the fit cannot be written to {folder}", got=str(error), fix="Choose another folder."
        ) from error
    return folder


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
    folder = Path(directory)
    if not (folder / _JSON).is_file() or not (folder / _TENSORS).is_file():
        raise InputError(f"there is no saved fit in {folder}", expected=f"{_JSON} and {_TENSORS}")
    try:
        description = json.loads((folder / _JSON).read_text())
        if description["format"] > FORMAT:
            raise InputError(
                f"the fit in {folder} was written by a later ude",
                expected=f"format {FORMAT}",
                got=str(description["format"]),
                fix="Upgrade ude.",
            )
        tensors = load_file(folder / _TENSORS)
        history = pd.read_csv(folder / _HISTORY)
        return _rebuild(description, tensors, history, modules, f)
    except InputError:
        raise
    except Exception as error:  # JSON, safetensors and a wrong shape each raise their own
        raise InputError(f"the fit in {folder} is damaged", got=f"{type(error).__name__}: {error}") from error


def _rebuild(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    history: pd.DataFrame,
    modules: Mapping[str, nn.Module] | None,
    f: Callable[[Tensor, Any, Tensor], Tensor] | None,
) -> Fit:
    model = _model(description["model"], modules, f)
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    info = description["data"]
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
    kept = info["trained_on"]
    train = replace(data, trajectories=tuple(tr.part(slice(k)) for tr, k in zip(trajectories, kept, strict=True)))
    seen = info.get("validated_on") or [0] * len(kept)
    middle = tuple(tr.part(slice(k, k + v)) for tr, k, v in zip(trajectories, kept, seen, strict=True))
    tail = tuple(tr.part(slice(k + v, None)) for tr, k, v in zip(trajectories, kept, seen, strict=True))
    settings = description["options"]
    for name in ("derivative_iterations", "continuity", "single_iterations"):
        settings[name] = tuple(settings[name])
    solver = settings["solver"]
    settings["solver"] = SolverOptions(**{**solver, "algorithm": _algorithm(solver.get("algorithm"))})
    return Fit(
        model=model,
        data=data,
        train=train,
        held_out=replace(data, trajectories=tail) if any(len(tr) for tr in tail) else None,
        u0=tensors["u0"].numpy(),
        history=history,
        interrupted=description["interrupted"],
        seed=description["seed"],
        options=FitOptions(**settings),
        positive=np.array(description["positive"], dtype=bool),
        scale=tensors["scale"].numpy(),
        noise=tensors["noise"].numpy(),
        noise_models={name: _noise_model(entry) for name, entry in description.get("noise_models", {}).items()},
        fitted_numbers=description.get("fitted_numbers", 0),
        known_u0=tuple(description.get("known_u0", ())),
        validation=replace(data, trajectories=middle) if any(seen) else None,
        # folders of format 1 from before there were observables: every column was a state
        measurement=Measurement(model, data.states, description.get("observe", {})),
        state_scale=tensors.get("state_scale", tensors["scale"]).numpy(),
        notes=tuple(description.get("notes", ())),
        per_trajectory={name[15:]: v.numpy() for name, v in tensors.items() if name.startswith("per_trajectory.")},
        holdout=info.get("holdout", 0),
    )


def _plain_options(options: FitOptions) -> dict[str, Any]:
    plain = asdict(options)
    plain["solver"]["algorithm"] = _plain_algorithm(options.solver.algorithm)
    return plain


def _plain_algorithm(value: Any) -> Any:
    """A method of integration, and the parts that it is made of, by their names."""
    if not is_dataclass(value):
        return value
    return {"kind": type(value).__name__} | {f.name: _plain_algorithm(getattr(value, f.name)) for f in fields(value)}


def _algorithm(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    kind = getattr(importlib.import_module("ude.methods"), entry["kind"])
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # running from a source tree
        return "unknown"
