"""A table read as trajectories: what is tolerated, what is guessed, and where errors are."""

from __future__ import annotations

import re
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
    frame, of_index = _with_index(frame.set_axis([str(column) for column in frame.columns], axis=1), chosen)
    columns = list(frame.columns)
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
    notes: tuple[str, ...] = ()
    if time is None and of_index is not None:
        time, notes = of_index, (f"time is the index of the table, {of_index!r}",)
    elif time is None:
        time, notes = _guess_time([c for c in columns if c not in taken], columns)
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
    t, unit = time_column(frame[time], time, where)
    if unit is not None:
        notes = (*notes, f"{time!r} is counted in {unit}")
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
    if unit is not None:
        named_units[time] = unit.partition(" ")[0]
    return states, kept, time, (*notes, *dropped), named_units


def _with_index(frame: pd.DataFrame, chosen: Columns) -> tuple[pd.DataFrame, str | None]:
    """The table with the levels of its index that hold data as columns, and which of them is the time.

    An index holds data when it is asked for by name, or when it is no mere count of rows (its dtype is not integer, or
    it is named as times are) and no column is named as times are.
    """
    index = frame.index
    asked = {chosen.time, chosen.trajectory}
    for given in (chosen.conditions, chosen.covariates, chosen.states):
        wanted = given.values() if isinstance(given, Mapping) else given
        asked |= set(state_names(list(wanted) if not isinstance(wanted, str) else wanted)) if wanted else set()
    names = [str(name) if name is not None else None for name in index.names]
    guess = None
    timed = any(column.strip().lower() in TIME_NAMES for column in frame.columns)
    if chosen.time is None and not timed:
        levels = [index.get_level_values(i) for i in range(index.nlevels)]
        places = [i for i, name in enumerate(names) if name is not None and name.strip().lower() in TIME_NAMES]
        # times are written into an index as floats, dates or durations; whole numbers count rows unless they are named
        for i, level in enumerate(levels):
            counts = level.dtype.kind in "iu" and names[i] is not None and names[i] not in asked
            if _is_dated(level) or level.dtype.kind == "f" or counts:
                places.append(i)
        if places:
            place = places[0]
            guess = names[place] or next(name for name in ("time", "index", "index of the table") if name not in frame)
            frame = frame.assign(**{guess: levels[place]})
    for place, name in enumerate(names):
        if name is not None and name in asked and name not in frame.columns:
            frame = frame.assign(**{name: index.get_level_values(place)})
    return frame.reset_index(drop=True), guess


#: Units in which durations are counted, from the coarsest: the first of which a usual step holds at least one.
_DURATIONS = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?")
_CLOCK = re.compile(r"(\d+ days? )?\d+:\d\d(:\d\d(\.\d+)?)?")


def _is_dated(column: pd.Series | pd.Index) -> bool:
    """Whether it holds dates or durations."""
    return isinstance(column.dtype, pd.DatetimeTZDtype) or column.dtype.kind in "mM"


def _all_match(pattern: re.Pattern[str], cells: pd.Series) -> bool:
    return len(cells) > 0 and all(map(pattern.fullmatch, cells))


def time_column(column: pd.Series, name: str, where: RowNames) -> tuple[Array, str | None]:
    """The numbers of a column of times, and how dates and durations are counted ("days since 2020-01-01").

    Dates and durations are pandas', or text: ``2020-01-31``, ``2020-01-31 12:00``, ``12:30:00``.

    Raises:
        DataError: A cell is no time, or dates are written in a way that can be read as another day.
    """
    cells = column.astype(str).str.strip() if column.dtype == object or column.dtype.kind not in "fiumMb" else None
    if cells is not None and _all_match(_ISO_DATE, cells):
        column = pd.to_datetime(cells, format="ISO8601", utc=True)
    elif cells is not None and _all_match(_CLOCK, cells):
        column = pd.to_timedelta(cells.map(lambda cell: cell if cell.count(":") == 2 else f"{cell}:00"))
    if _is_dated(column):
        if bool(column.isna().any()):
            row = int(np.argmax(column.isna().to_numpy()))
            raise DataError(f"column {name!r} has no value in {where(row)}", expected="a time", fix="Remove the row.")
        start = column.min() if column.dtype.kind != "m" else None
        seconds = (column - start if start is not None else column).dt.total_seconds().to_numpy(dtype=np.float64)
        steps = np.abs(np.diff(seconds))
        usual = float(np.median(steps[steps > 0])) if bool((steps > 0).any()) else 1.0
        unit, size = next((one for one in _DURATIONS if usual >= one[1]), _DURATIONS[-1])
        return seconds / size, unit if start is None else f"{unit} since {_written(start)}"
    if cells is not None and bool(cells.str.fullmatch(r"\d{1,4}[./-]\d{1,2}[./-]\d{2,4}( .*)?").any()):
        raise DataError(
            f"column {name!r} has dates that can be read in several ways",
            expected="dates such as 2020-01-31 or 2020-01-31 12:00, or numbers",
            got=repr(cells.iloc[0]),
            fix="Write the year first, or give times as numbers, such as days since the start.",
        )
    return number_column(column, name, where, gaps=False), None


def _written(start: pd.Timestamp) -> str:
    return str(start.date()) if start == start.normalize() else str(start.replace(tzinfo=None))


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


GAPS = frozenset({"", "nan", "na", "n/a", "#n/a", "n.a.", "<na>", "null", "none", ".", "-", "--", "\u2013", "\u2014"})
"""Cells that say that nothing was measured, whatever their case."""


# what is written for a value below or above what an instrument can tell
_LIMIT = re.compile(r"([<>]=?|\u2264|\u2265)\s*[\w.,+-]+( .*)?|[BAba][LlQq]{1,3}|[NnUu]\.?[DdLl]\.?", re.ASCII)


def number_column(column: pd.Series, name: str, where: RowNames, *, gaps: bool) -> Array:
    """The numbers of a column; NaN for a gap where `gaps` are allowed."""
    if _is_dated(column):
        raise DataError(
            f"column {name!r} has dates or durations",
            expected="numbers",
            fix="Name it as the time, or give numbers, such as days since the start.",
        )
    mixed = column.dtype == object and any(isinstance(cell, complex | np.complexfloating) for cell in column)
    if mixed or column.dtype.kind == "c":
        raise DataError(
            f"column {name!r} has complex numbers",
            expected="real numbers",
            fix="Give real and imaginary part, or modulus and phase, as columns of their own.",
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
        if _LIMIT.fullmatch(str(cell).strip()):
            raise DataError(
                f"column {name!r} has a value beyond a limit of detection in {where(row)}",
                expected="a number",
                got=f"{str(cell)!r}",
                fix="No noise model is for such values: write the limit or half of it as the number, or leave the cell "
                "empty, which biases the fit to what was detected.",
            )
        raise DataError(
            f"column {name!r} has text in {where(row)}",
            expected="a number",
            got=f"{str(cell)!r}",
            fix="Correct the cell (empty or NA is a gap), or leave the column out by naming the states.",
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
