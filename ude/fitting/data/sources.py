"""Measurements from CSV, long tables, Parquet, dicts and xarray; and one function for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ude.errors import BackendMissing, DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.readers import RowNames, number_column
from ude.fitting.data.text_tables import read_table
from ude.fitting.data.trajectory import missing_column

Names = str | Sequence[str] | None


def read_csv(
    path: str | Path,
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
    trajectory: str | None = None,
    *,
    conditions: str | Sequence[str] | None = None,
    covariates: str | Sequence[str] | None = None,
    long: tuple[str, str] | None = None,
    units_row: bool | None = None,
    decimal: str | None = None,
) -> Dataset:
    """Read a CSV file with a header line into a `Dataset`; arguments as in `Dataset.from_frame`.

    long: the columns (variable, value) of a table with one measurement a row; `time` must then be named.
    units_row: whether the line after the header holds units, kept as `data.units`; None looks whether it is text above
    columns of numbers.
    decimal: "." or ","; None takes commas in numbers for decimal commas where they cannot be anything else.

    Lines that start with `#` are comments; blank lines, spaces around cells, and lines of an instrument before the
    header are ignored. The separator is the one of comma, semicolon and tab that divides most lines alike. Files are
    UTF-8, UTF-16 with its mark, or Windows-1252 (Latin-1). Empty cells, NA, N/A, #N/A, NaN, null, none, a point and
    dashes are gaps. Times may be dates or clock times (2020-01-31, 12:30:00). `data.notes` says what was guessed.

    Raises `DataError`: no such file, an empty file, a line with too many or too few cells, and all of `from_frame`.

    >>> from pathlib import Path
    >>> _ = Path("growth.csv").write_text("day,x,y\\n0,1.0,\\n1,1.2,0.4\\n", encoding="utf-8")
    >>> data = ude.read_csv("growth.csv", time="day")
    >>> data.states, data.counts()
    (('x', 'y'), {'x': 2, 'y': 1})
    """
    table = read_table(Path(path), units_row=units_row, decimal=decimal)
    lines = table.lines
    frame = pd.DataFrame(table.rows, columns=table.header, dtype=object)
    if long is not None:
        if time is None:
            raise InputError("a long table needs time=...", expected="the name of the column of times", got="None")
        frame, lines = widen(frame, time, *long, trajectory=trajectory, lines=lines), []
    data = Dataset.from_frame(
        frame,
        time,
        states,
        trajectory,
        conditions=conditions,
        covariates=covariates,
        units=table.units,
        lines=lines or None,
    )
    return data.with_trajectories(data.trajectories, *table.notes) if table.notes else data


def widen(
    frame: pd.DataFrame,
    time: str,
    variable: str,
    value: str,
    trajectory: str | None = None,
    *,
    lines: Sequence[int] | None = None,
) -> pd.DataFrame:
    """A long table (a row a measurement: time, variable, value[, trajectory]) as a wide one, a column a variable.

    Rows come in the order of time, variables and trajectories in that in which they first appear; what was not
    measured is NaN.

    Raises `DataError`: a missing column, a variable measured twice at one time, cells that are no numbers.
    """
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)
    columns = list(frame.columns)
    for wanted, role in ((time, "time"), (variable, "variable"), (value, "value"), (trajectory, "trajectory")):
        if wanted is not None and wanted not in columns:
            raise missing_column(wanted, columns, role)
    where = RowNames(lines)
    run = frame[trajectory] if trajectory is not None else pd.Series([""] * len(frame))
    table = pd.DataFrame(
        {
            "run": run.to_numpy(),
            "t": number_column(frame[time], time, where, gaps=False),
            "variable": frame[variable].astype(str).to_numpy(),
            "value": number_column(frame[value], value, where, gaps=True),
        }
    )
    twice = table.duplicated(["run", "t", "variable"]).to_numpy()
    if twice.any():
        row = int(np.argmax(twice))
        raise DataError(
            f"{table['variable'][row]!r} is measured twice at {time}={table['t'][row]:g}: again in {where(row)}",
            fix="Keep one of them, or name the column that tells trajectories apart (trajectory=...).",
        )
    wide = table.pivot(index=["run", "t"], columns="variable", values="value")[list(table["variable"].unique())]
    runs = {name: place for place, name in enumerate(table["run"].unique())}
    wide = wide.reset_index().sort_values(["run", "t"], key=lambda c: c.map(runs) if c.name == "run" else c)
    wide = wide.rename(columns={"run": trajectory or "run", "t": time}).rename_axis(columns=None)
    return (wide if trajectory is not None else wide.drop(columns="run")).reset_index(drop=True)


def read_parquet(
    path: str | Path,
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
    trajectory: str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """Read a Parquet file; arguments as in `Dataset.from_frame`. Units are those of the columns' metadata.

    Raises `BackendMissing` without pyarrow; `DataError` for a file that cannot be read, and all of `from_frame`.
    """
    if not Path(path).exists():
        raise DataError(f"there is no file {path}", fix="Check the path; it is taken from the current folder.")
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise BackendMissing(
            "Parquet files need pyarrow", fix="Install it: pip install 'ude[data]', or save the table as CSV."
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as Parquet", got=f"{error}") from error
    metadata = {column.name: column.metadata or {} for column in table.schema}
    units = {name: own[b"unit"].decode() for name, own in metadata.items() if b"unit" in own}
    frame = table.to_pandas()
    return Dataset.from_frame(
        frame, time, states, trajectory, conditions=conditions, covariates=covariates, units=units
    )


def from_dict(
    columns: Mapping[str, Any],
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """A dict of columns {"t": ..., "x": ...}, or of runs {"run 1": {"t": ..., "x": ...}}; further as `from_frame`.

    In a dict of runs a number (not a list) holds throughout its run: a condition, once named in `conditions`.

    Raises `DataError` for columns of different lengths, and all of `from_frame`.
    """
    if not columns:
        raise DataError("the dict has no columns", expected='{"t": [...], "x": [...]}')
    several = all(isinstance(column, Mapping) for column in columns.values())
    runs = {str(name): run for name, run in columns.items()} if several else {"": columns}
    frames = []
    for name, run in runs.items():
        try:
            part = pd.DataFrame({str(key): value for key, value in run.items()})
        except ValueError as error:
            where = f" of {name!r}" if name else ""
            raise DataError(f"the columns{where} do not have one length", got=str(error)) from error
        frames.append(part.assign(**{_RUN: name}) if several else part)
    frame = pd.concat(frames, ignore_index=True)
    return Dataset.from_frame(
        frame, time, states, _RUN if several else None, conditions=conditions, covariates=covariates
    )


_RUN = "trajectory"


def from_xarray(
    source: Any,
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
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
    if not hasattr(source, "to_dataframe") or not hasattr(source, "dims"):
        raise InputError("from_xarray cannot read this", expected="an xarray.Dataset", got=type(source).__name__)
    dimensions = [str(name) for name in source.dims]
    extra = [name for name in dimensions if name not in (time, trajectory)]
    if time is None:
        if len(extra) != 1:
            raise InputError(
                "the dimension of time is not clear", expected="time=...", got=f"dimensions {', '.join(dimensions)}"
            )
        time, extra = extra[0], []
    if extra:
        raise InputError(
            f"the dimension {extra[0]!r} is neither time nor trajectory", fix="Select along it, or name it trajectory."
        )
    frame = source.to_dataframe().reset_index()
    names = [str(name) for name in source.data_vars]
    if trajectory is not None:
        # one table holds the times of all runs: those at which a run has nothing are not its own
        measured = [name for name in names if time in source[name].dims]
        frame = frame[frame[measured].notna().any(axis=1)].sort_values([trajectory, time], kind="stable")
    units = {name: str(source[name].attrs["units"]) for name in names if "units" in source[name].attrs}
    return Dataset.from_frame(
        frame.reset_index(drop=True),
        time,
        states,
        trajectory,
        conditions=conditions,
        covariates=covariates,
        units=units,
    )


def read_data(
    source: Any,
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
    trajectory: str | None = None,
    *,
    conditions: Names = None,
    covariates: Names = None,
) -> Dataset:
    """Measurements from whatever holds them; wherever a `Dataset` is expected, any of these may be given.

    Args:
        source: A `Dataset`, a path of a CSV or Parquet file, a DataFrame, a dict of columns (or of runs), an
            `xarray.Dataset` or a named `xarray.DataArray`, or a pair of arrays (t, u) with `states` named.
        time, states, trajectory, conditions, covariates: As in `Dataset.from_frame`.

    Raises:
        InputError: The source is something else.
        DataError: As the reader of the source.

    >>> ude.fitting.read_data({"t": [0.0, 1.0, 2.0], "x": [1.0, 0.5, 0.2]}).counts()
    {'x': 3}
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, tuple) and len(source) == 2 and states is not None:
        return Dataset.from_arrays(*source, states=list(states) if not isinstance(states, str) else states)
    if isinstance(source, str | Path):
        reader = read_parquet if Path(source).suffix.lower() in (".parquet", ".pq") else read_csv
        return reader(source, time, states, trajectory, conditions=conditions, covariates=covariates)
    if isinstance(source, pd.DataFrame):
        return Dataset.from_frame(source, time, states, trajectory, conditions=conditions, covariates=covariates)
    if isinstance(source, Mapping) and not hasattr(source, "to_dataframe"):
        return from_dict(source, time, states, conditions=conditions, covariates=covariates)
    if hasattr(source, "to_dataset") and getattr(source, "name", None) is not None:
        source = source.to_dataset()
    if hasattr(source, "to_dataframe") and hasattr(source, "data_vars"):
        return from_xarray(source, time, states, trajectory, conditions=conditions, covariates=covariates)
    raise InputError(
        "data must be a table of measurements",
        expected="a Dataset, a path of a CSV or Parquet file, a DataFrame, a dict of columns, an xarray.Dataset, or "
        "arrays (t, u) of named states",
        got=type(source).__name__,
    )
