"""Columns of a table: their names, their numbers, and the words in which errors name a row or a column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd

from ude.errors import DataError
from ude.fitting.data.trajectory import Array

GAPS = frozenset({"", "nan", "na", "n/a", "null", "none"})
"""Cells that say that nothing was measured, whatever their case."""


class RowNames:
    """Names a row as a person finds it: the line of the file when there is one, else the row counted from 1."""

    def __init__(self, lines: Sequence[int] | None) -> None:
        self.lines = lines

    def __call__(self, row: int) -> str:
        return f"row {row + 1}" if self.lines is None else f"row {row + 1} (line {self.lines[row]} of the file)"


def number_column(column: pd.Series, name: str, where: RowNames, *, gaps: bool) -> Array:
    """The numbers of a column; NaN for a gap where `gaps` are allowed."""
    if pd.api.types.is_datetime64_any_dtype(column):
        raise DataError(
            f"column {name!r} has dates", expected="numbers", fix="Give times as numbers, such as days since the start."
        )
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    for row in np.flatnonzero(~np.isfinite(numbers)).tolist():
        cell = column.iloc[row]
        if np.isinf(numbers[row]):
            raise DataError(f"column {name!r} is infinite in {where(row)}", expected="a finite number", got=f"{cell}")
        if pd.isna(cell) or str(cell).strip().lower() in GAPS:
            if gaps:
                continue
            raise DataError(
                f"column {name!r} has no value in {where(row)}",
                expected="a number",
                fix="Remove the row, or fill the cell: only measurements may be missing.",
            )
        raise DataError(
            f"column {name!r} has text in {where(row)}",
            expected="a number",
            got=f"{str(cell)!r}",
            fix="Fix the cell (empty or NA is a gap), or leave the column out by naming the states.",
        )
    return numbers


def state_names(states: Mapping[str, str] | Sequence[str] | str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in states.split(",")) if isinstance(states, str) else tuple(states)
    refuse_repeated(names)
    if not names:
        raise DataError("no state is named", expected="at least one name in states")
    return names


def refuse_repeated(names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if not name.strip():
            raise DataError(f"column {i + 1} has no name", fix="Name every column in the header line.")
        if name in names[:i]:
            raise DataError(f"the column name {name!r} occurs twice", fix="Give every column its own name.")


def missing_column(wanted: str, columns: Iterable[str], role: str) -> DataError:
    """The error for a name that the data do not have: lists those they have and offers the nearest."""
    columns = list(columns)
    folded = {column.lower(): column for column in columns}
    close = [folded[c] for c in get_close_matches(wanted.lower(), list(folded), n=1, cutoff=0.6)]
    return DataError(
        f"the data have no column {wanted!r} for the {role}",
        expected=f"one of {', '.join(columns)}",
        fix=f"Did you mean {close[0]!r}?" if close else f"Name one of these columns as the {role}.",
    )
