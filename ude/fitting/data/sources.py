"""Sources of tables: CSV and Parquet files, dicts, xarray."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ude.errors import BackendMissing, DataError, InputError
from ude.fitting.data.table import Roles, Table, widen

_RUN = "trajectory"


def csv_table(path: str | Path, units_row: bool = False) -> Table:
    """The table of a CSV file; see `read_csv`."""
    rows, lines = _read_rows(Path(path))
    header, body = rows[0], rows[1:]
    if all(_is_number(cell) for cell in header):
        raise DataError(
            f"line {lines[0]} of {path} should name the columns",
            expected="a header such as t,x,y",
            got=",".join(header),
            fix="Put the names of the columns in the first line.",
        )
    lines = lines[1:]
    for cells, line in zip(body, lines, strict=True):
        if len(cells) != len(header):
            raise DataError(
                f"line {line} of {path} does not fit the header",
                expected=f"{len(header)} cells",
                got=f"{len(cells)}",
                fix="Give every column a name in the first line, and every line one cell a column.",
            )
    units = {}
    if units_row and body:
        units = {name: unit for name, unit in zip(header, body[0], strict=True) if unit}
        body, lines = body[1:], lines[1:]
    return Table(pd.DataFrame(body, columns=header, dtype=object), units, lines or None)


def long_table(table: Table, time: str | None, variable: str, value: str, trajectory: str | None) -> Table:
    """A long table as a wide one; see `widen`. Raises `InputError` without a time."""
    if time is None:
        raise InputError("a long table needs time=...", expected="the name of the column of times", got="None")
    wide = widen(table.frame, time, variable, value, trajectory, lines=table.lines)
    return replace(table, frame=wide, lines=None)


def _read_rows(path: Path) -> tuple[list[list[str]], list[int]]:
    """Cells of every line that is neither blank nor comment, and the line numbers. `csv` rather than pandas' reader:
    it knows the line of each row, also after comments, and does not turn a line that is too long into an index."""
    if not path.exists():
        raise DataError(f"there is no file {path}", fix="Check the path; it is taken from the current folder.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text", got=f"{error}", fix="Save the table as CSV in UTF-8."
        ) from error
    source = text.splitlines(keepends=True)
    content = [i for i, line in enumerate(source) if line.strip() and not line.lstrip().startswith("#")]
    if not content:
        raise DataError(f"{path} is empty", expected="a header line and rows of numbers")
    first = source[content[0]]
    separator = next((s for s in ",;\t" if s in first), ",")
    reader = csv.reader((source[i] for i in content), delimiter=separator, skipinitialspace=True)
    rows, lines = [], []
    for cells in reader:
        rows.append([cell.strip() for cell in cells])
        lines.append(content[reader.line_num - 1] + 1)
    return rows, lines


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def parquet_table(path: str | Path) -> Table:
    """The table of a Parquet file; see `read_parquet`."""
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
    return Table(table.to_pandas(), {name: own[b"unit"].decode() for name, own in metadata.items() if b"unit" in own})


def dict_table(columns: Mapping[str, Any]) -> tuple[Table, str | None]:
    """The table of a dict, and its column of runs where it has several; see `from_dict`."""
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
    return Table(pd.concat(frames, ignore_index=True)), _RUN if several else None


def xarray_table(source: Any, time: str | None, trajectory: str | None) -> tuple[Table, str]:
    """The table of an `xarray.Dataset`, and its dimension of time; see `from_xarray`."""
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
    return Table(frame.reset_index(drop=True), units), time


def read_table(source: Any, roles: Roles) -> tuple[Table, Roles]:
    """The table of any source, and the roles of its columns. Raises `InputError` for another source."""
    if isinstance(source, str | Path):
        parquet = Path(source).suffix.lower() in (".parquet", ".pq")
        return (parquet_table(source) if parquet else csv_table(source)), roles
    if isinstance(source, pd.DataFrame):
        return Table(source), roles
    if hasattr(source, "to_dataframe"):
        table, time = xarray_table(source, roles.time, roles.trajectory)
        return table, replace(roles, time=time)
    if isinstance(source, Mapping):
        table, run = dict_table(source)
        return table, replace(roles, trajectory=run)
    raise InputError(
        "data must be a path of a CSV or Parquet file, a DataFrame, a dict of columns or an xarray.Dataset",
        got=type(source).__name__,
    )
