"""Measured data that come with the package: `path("lynx_hare")` is the file, `load("lynx_hare")` the `Dataset`.

>>> data = ude.datasets.load("lynx_hare")
>>> data.states, len(data.trajectories[0].t)
(('hare', 'lynx'), 21)
"""

from __future__ import annotations

from pathlib import Path

from ude.errors import InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import read_csv

__all__ = ["load", "names", "path"]

_FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.csv")))


def path(name: str) -> Path:
    """Where the CSV file of the data set lies; its first lines state source and units. Raises `InputError`."""
    if name not in names():
        raise InputError(f"there is no data set {name!r}", expected=f"one of {', '.join(names())}")
    return _FOLDER / f"{name}.csv"


def load(name: str) -> Dataset:
    """The data set as `read_csv` reads it. Raises `InputError` for a name that is not in `names()`."""
    return read_csv(path(name))
