"""The files of a fit: `fit.safetensors` (weights, data, initial states), `fit.json` (all else), `history.csv`.

They are plain data, checked before use: nothing is unpickled, so that a folder from elsewhere cannot run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from ude.errors import DataError, InputError
from ude.untrusted import JSON, read_json, replace_file, sha256, verify, write_json

FORMAT = 1
_JSON, _TENSORS, _HISTORY = "fit.json", "fit.safetensors", "history.csv"
_SCHEMA = {
    "format": int,
    "model": {str: JSON},  # see `UDE.from_dict`
    "data": {
        "states": [str],
        "time_name": str,
        "notes": [str],
        "names": [str],
        "trained_on": [int],
        "validated_on": [int],
        "digest": str,
        "holdout": JSON,
        "conditions": [{str: float}],
        "units": {str: (str, type(None))},
        "covariate_kind": str,
    },
    "noise_models": {str: {str: JSON}},
    "fitted_numbers": int,
    "known_u0": [JSON],
    "seed": int,
    "interrupted": bool,
    "positive": [bool],
    "observe": {str: str},
    "notes": [str],
    "options": {str: JSON},
    "versions": {str: str},
    "files": {str: str},
}


def write_fit(
    directory: str | Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], history: pd.DataFrame
) -> Path:
    """Write the files of a fit into a folder, made when missing; each replaces an earlier one as a whole.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / _TENSORS, lambda path: save_file(dict(tensors), path))
        replace_file(folder / _HISTORY, lambda path: history.to_csv(path, index=False))
        files = {name: sha256(folder / name) for name in (_TENSORS, _HISTORY)}
        # last: it vouches for the others
        write_json(folder / _JSON, {"format": FORMAT, **description, "files": files})
    except OSError as error:
        raise InputError(
            f"the fit cannot be written to {folder}", got=str(error), fix="Choose another folder."
        ) from error
    return folder


def read_fit(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], pd.DataFrame]:
    """Description, tensors and history of a fit.

    Raises:
        InputError: There is no fit in the folder.
        DataError: A file was damaged or changed, or was written by a later version.
    """
    folder = Path(directory)
    if not (folder / _JSON).is_file() or not (folder / _TENSORS).is_file():
        raise InputError(f"there is no saved fit in {folder}", expected=f"{_JSON} and {_TENSORS}")
    description = read_json(folder / _JSON, _SCHEMA, latest=FORMAT)
    for name in (_TENSORS, _HISTORY):
        verify(folder / name, description["files"].get(name, ""))
    try:
        return description, load_file(folder / _TENSORS), pd.read_csv(folder / _HISTORY)
    except Exception as error:  # safetensors and pandas each raise their own
        raise DataError(f"the fit in {folder} is damaged", got=f"{type(error).__name__}: {error}") from error
