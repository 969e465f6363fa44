"""Refits that a run folder keeps, so that an interrupted selection goes on where it was, with the same answer."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sympy as sp

from ude.discovery.cache_keys import keep, key_of
from ude.discovery.refit.closed_system import Array, ClosedSystem, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, fit_closed_form
from ude.untrusted import check, parse_json

FOLDER = "refits"
_ARRAYS = ("u0", "residuals", "jacobian", "slopes", "logarithmic")
_PLAIN = {
    "values": {str: float},
    "sse": float,
    "n_observations": int,
    "sse_per_state": {str: float},
    "success": bool,
    "rhs_calls": int,
    "message": str,
}

#: What `fit_closed_form` is: system, trajectories, u0, scale, options, state_scale -> fit.
Refit = Callable[
    [ClosedSystem, Sequence[ObservedTrajectory], Array | None, Array | None, RefitOptions, Array | None],
    EmbeddedFit,
]


class RefitsCache:
    """`fit_closed_form` with a memory in a folder.

    A refit is found again where all that goes into it is the same to the last bit, and the versions of this package,
    NumPy and SymPy are. A file that cannot be read is one that is not there.

    Calling it raises as `fit_closed_form` does, and InputError for a folder that cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder) / FOLDER

    def __call__(
        self,
        system: ClosedSystem,
        trajectories: Sequence[ObservedTrajectory],
        u0: Array | None,
        scale: Array | None,
        options: RefitOptions,
        state_scale: Array | None,
    ) -> EmbeddedFit:
        path = self.folder / f"{_key(system, trajectories, (u0, scale, state_scale), options)}.npz"
        kept = _read(path)
        if kept is None:
            kept = fit_closed_form(system, trajectories, u0, scale, options, state_scale)
            _write(path, kept)
        return kept


def _key(
    system: ClosedSystem,
    trajectories: Sequence[ObservedTrajectory],
    arrays: Sequence[Array | None],
    options: RefitOptions,
) -> str:
    told = [
        {name: sp.srepr(rate) for name, rate in system.equations.items()},
        {name: sp.srepr(formula) for name, formula in system.observables.items()},
        {name: repr(constant) for name, constant in system.parameters.items()},
        {name: repr(noise) for name, noise in system.noise.items()},
        [system.states, system.time, system.positive],
        [{name: repr(value) for name, value in own.inputs.items()} for own in trajectories],
        repr(options),
        [version("ude"), np.__version__, sp.__version__],
    ]
    return key_of(told, (*arrays, *(part for own in trajectories for part in (own.t, own.u))))


def _read(path: Path) -> EmbeddedFit | None:
    try:
        # NumPy leaves a broken file open that it has opened itself
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            told = parse_json(str(kept["plain"]).encode(), path)
            check(told, _PLAIN, str(path))
            told |= {name: kept[name] for name in _ARRAYS if name in kept.files}
        return EmbeddedFit(**told)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, fit: EmbeddedFit) -> None:
    arrays = {name: getattr(fit, name) for name in _ARRAYS if getattr(fit, name) is not None}
    plain = np.array(json.dumps({name: getattr(fit, name) for name in _PLAIN}))
    content = io.BytesIO()
    np.savez(content, plain=plain, **arrays)
    keep(path, content.getvalue())
