"""How a run folder keeps what took long to find: under a hash of all that went into it, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ude.discovery.refit.closed_system import Array
from ude.errors import InputError
from ude.untrusted import replace_file


def key_of(told: Sequence[Any], arrays: Iterable[Array | None]) -> str:
    """A hash of plain data and of numbers to the last bit."""
    code = hashlib.sha256(json.dumps(told).encode())
    for array in arrays:
        whole = np.empty(0) if array is None else np.ascontiguousarray(array, dtype=np.float64)
        code.update(repr(whole.shape).encode() + whole.tobytes())
    return code.hexdigest()


def keep(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none.

    Raises InputError where that cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda beside: beside.write_bytes(content))
    except OSError as error:
        raise InputError(f"{path} cannot be written", got=str(error), fix="Choose another folder.") from error
