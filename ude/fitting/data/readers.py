"""A table read as trajectories: what is tolerated, what is guessed, and where errors are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ude.errors import DataError
from ude.fitting.data.trajectory import (
    Array,
    Trajectory,
    check_times,
    checked_covariate,
    missing_column,
    refuse_repeated,
    state_names,
    without_empty,
)

# Words that name a time column, matched without regard to case. Single letters other than t are left out:
# s, h and d are as likely states (susceptible, hare, dose) as units.
TIME_NAMES = frozenset(
    {
        "t",
        "time",
        "times",
        "year",
        "years",
        "yr",
        "date",
        "day",
        "days",
        "hour",
        "hours",
        "hr",
        "minute",
        "minutes",
        "min",
        "second",
        "seconds",
        "sec",
        "month",
        "months",
        "week",
        "weeks",
    }
)


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what; see `Dataset.from_frame`."""

    time: str | None = None
    states: Mapping[str, str] | Sequence[str] | str | None = None
    trajectory: str | None = None
    conditions: str | Sequence[str] | None = None
    covariates: str | Sequence[str] | None = None


def read_frame(
    frame: pd.DataFrame, chosen: Columns, units: Mapping[str, str] | None, lines: Sequence[int] | None
) -> tuple[tuple[str, ...], tuple[Trajectory, ...], str, tuple[str, ...], dict[str, str]]:
    """States, trajectories, name of the time, notes and units of a table; see `Dataset.from_frame`."""
    time, states, trajectory = chosen.time, chosen.states, chosen.trajectory
    columns = [str(column) for column in frame.columns]
    frame = frame.set_axis(columns, axis=1)
    refuse_repeated(columns)
    renamed = dict(states) if isinstance(states, Mapping) else {}
    named = state_names(list(renamed.values()) if renamed else states) if states is not None else ()
    held, driving = (state_names(given) if given else () for given in (chosen.conditions, chosen.covariates))
    roles = [("state", named), ("condition", held), ("covariate", driving)]
    wanted_columns = [(time, "time"), (trajectory, "trajectory"), *((n, role) for role, names in roles for n in names)]
    for wanted, role in wanted_columns:
        if wanted is not None and wanted not in columns:
            raise missing_column(wanted, columns, role)
    taken = {trajectory, *named, *held, *driving}
    time, notes = (time, ()) if time is not None else _guess_time([c for c in columns if c not in taken], columns)
    names = named or tuple(c for c in columns if c not in {time, *taken})
    if not names:
        raise DataError(
            "the table has no column of measurements",
            expected=f"at least one column beside the time {time!r}",
            got="none",
        )
    if not len(frame):
        raise DataError("the table has a header and no rows", expected="at least two rows of numbers")
    where = RowNames(lines)
    t = number_column(frame[time], time, where, gaps=False)
    u = np.column_stack([number_column(frame[c], c, where, gaps=True) for c in names])
    groups = _groups(frame[trajectory]) if trajectory is not None else [("", np.arange(len(frame)))]
    trajectories = []
    for label, rows in groups:
        check_times(t[rows], [where(i) for i in rows], time, label, trajectory)
        own = {name: _constant(frame[name], name, rows, label, where) for name in held}
        forcing = {
            name: checked_covariate(name, t[rows], number_column(frame[name], name, where, gaps=True)[rows], label)
            for name in driving
        }
        trajectories.append(Trajectory(t[rows].copy(), u[rows].copy(), label, own, forcing))
    kept, dropped = without_empty(trajectories, names)
    states = state_names(list(renamed)) if renamed else names
    named_units = dict(units or {})
    for state, column in zip(states, names, strict=True):
        if column in named_units:
            named_units[state] = named_units.pop(column)
    return states, kept, time, (*notes, *dropped), named_units


def _constant(column: pd.Series, name: str, rows: npt.NDArray[np.intp], label: str, where: RowNames) -> float:
    """The one number of a condition in a run; it need not stand in every row."""
    numbers = number_column(column, name, where, gaps=True)[rows]
    found = np.unique(numbers[np.isfinite(numbers)])
    if len(found) != 1:
        raise DataError(
            f"the condition {name!r} must be one number{f' in trajectory {label!r}' if label else ''}",
            expected="the same in every row",
            got=", ".join(f"{number:g}" for number in found) or "none",
            fix="Read it as a covariate if it changes.",
        )
    return float(found[0])


class RowNames:
    """Names a row as a person finds it: the line of the file when there is one, else the row counted from 1."""

    def __init__(self, lines: Sequence[int] | None) -> None:
        self.lines = lines

    def __call__(self, row: int) -> str:
        return f"row {row + 1}" if self.lines is None else f"row {row + 1} (line {self.lines[row]} of the file)"


GAPS = frozenset({"", "nan", "na", "n/a", "null", "none"})
"""Cells that say that nothing was measured, whatever their case."""


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
            fix="Mend the cell (empty or NA is a gap), or leave the column out by naming the states.",
        )
    return numbers


def _guess_time(candidates: Sequence[str], columns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    for column in candidates:
        if column.strip().lower() in TIME_NAMES:
            return column, (f"time is the column {column!r} (by its name)",)
    if not candidates:
        raise DataError("no column is left for the time", expected="one beside the states", got=", ".join(columns))
    return candidates[0], (f"time is the column {candidates[0]!r} (the first; name another with time=...)",)


def _groups(column: pd.Series) -> list[tuple[str, npt.NDArray[np.intp]]]:
    """Rows of each trajectory, in the order in which they first appear."""
    codes, labels = pd.factorize(column)
    if (codes < 0).any():
        raise DataError(
            f"column {column.name!r} is empty in row {int(np.argmin(codes)) + 1}", expected="a trajectory name"
        )
    return [(str(label), np.flatnonzero(codes == i)) for i, label in enumerate(labels)]
