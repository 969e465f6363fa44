"""Readers of one kind of source each; `Dataset.read` takes any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import csv_table, dict_table, long_table, parquet_table, xarray_table
from ude.fitting.data.table import Names, Roles, States


def read_csv(
    path: str | Path,
    time: str | None = None,
    states: States = None,
    trajectory: str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
    long: tuple[str, str] | None = None,
    units_row: bool = False,
) -> Dataset:
    """Read a CSV file with a header line into a `Dataset`; arguments as in `Dataset.from_frame`.

    long: the columns (variable, value) of a table with one measurement a row; `time` must then be named.
    units_row: the line after the header holds units, kept as `data.units`.

    Lines that start with `#` are comments; blank lines and spaces around cells are ignored. The separator is a comma,
    or a semicolon or tab where the header has these and no comma.

    Raises `DataError`: no such file, an empty file, a line with too many or too few cells, and all of `from_frame`.

    >>> from pathlib import Path
    >>> _ = Path("growth.csv").write_text("day,x,y\\n0,1.0,\\n1,1.2,0.4\\n", encoding="utf-8")
    >>> data = ude.read_csv("growth.csv", time="day")
    >>> data.states, data.counts()
    (('x', 'y'), {'x': 2, 'y': 1})
    """
    table = csv_table(path, units_row)
    if long is not None:
        table = long_table(table, time, *long, trajectory)
    return Dataset.from_table(table, Roles(time, states, trajectory, conditions, covariates))


def read_parquet(
    path: str | Path,
    time: str | None = None,
    states: States = None,
    trajectory: str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """Read a Parquet file; arguments as in `Dataset.from_frame`. Units are those of the columns' metadata.

    Raises `BackendMissing` without pyarrow; `DataError` for a file that cannot be read, and all of `from_frame`.
    """
    return Dataset.from_table(parquet_table(path), Roles(time, states, trajectory, conditions, covariates))


def from_dict(
    columns: Mapping[str, Any],
    time: str | None = None,
    states: States = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """A dict of columns {"t": ..., "x": ...}, or of runs {"run 1": {"t": ..., "x": ...}}; further as `from_frame`.

    In a dict of runs a number (not a list) holds throughout its run: a condition, once named in `conditions`.

    Raises `DataError` for columns of different lengths, and all of `from_frame`.
    """
    table, run = dict_table(columns)
    return Dataset.from_table(table, Roles(time, states, run, conditions, covariates))


def from_xarray(
    source: Any,
    time: str | None = None,
    states: States = None,
    trajectory: str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """An `xarray.Dataset` whose variables have the dimension `time` and, if there are several runs, `trajectory`.

    Variables without the time are conditions, once named; times at which a run has nothing are left out. Units are
    the attributes ``units``.

    Raises `InputError` for another object or dimensions; all of `from_frame`.
    """
    table, time = xarray_table(source, time, trajectory)
    return Dataset.from_table(table, Roles(time, states, trajectory, conditions, covariates))
