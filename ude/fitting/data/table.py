"""A table of measurements, and how its rows become trajectories: what is tolerated, guessed and refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from ude.errors import DataError
from ude.fitting.data.columns import RowNames, missing_column, number_column, refuse_repeated, state_names
from ude.fitting.data.trajectory import Array, Trajectory, check_times, checked_covariate, without_empty

Names = str | Sequence[str] | None
States = Mapping[str, str] | Names

# Words that name a time column, matched without regard to case. Single letters other than t are left out:
# s, h and d are as likely states (susceptible, hare, dose) as units.
_TIME_NAMES = "t time times year years yr date day days hour hours hr minute minutes min second seconds sec month"
TIME_NAMES = frozenset((*_TIME_NAMES.split(), "months", "week", "weeks"))


@dataclass(frozen=True, eq=False)
class Table:
    """A table as a source holds it.

    Args:
        frame: one row a measurement time, one column a state.
        units: column -> unit.
        lines: the line of the file that each row came from; None where there is no file.
    """

    frame: pd.DataFrame
    units: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[int] | None = None


@dataclass(frozen=True)
class Roles:
    """Which column is what; see `Dataset.from_frame`."""

    time: str | None = None
    states: States = None
    trajectory: str | None = None
    conditions: Names = None
    covariates: Names = None


@dataclass(frozen=True, eq=False)
class TableRuns:
    """The fields of a `Dataset`."""

    states: tuple[str, ...]
    trajectories: tuple[Trajectory, ...]
    time_name: str
    notes: tuple[str, ...]
    units: Mapping[str, str]


def split_runs(table: Table, roles: Roles) -> TableRuns:
    """Read the trajectories of a table.

    Raises:
        DataError: as listed by `Dataset.from_frame`.
    """
    columns = [str(column) for column in table.frame.columns]
    frame = table.frame.set_axis(columns, axis=1)
    refuse_repeated(columns)
    renamed = dict(roles.states) if isinstance(roles.states, Mapping) else {}
    chosen = list(renamed.values()) or roles.states
    named = state_names(chosen) if chosen is not None else ()
    conditions, covariates = (state_names(n) if n else () for n in (roles.conditions, roles.covariates))
    wanted = {"state": named, "condition": conditions, "covariate": covariates}
    for role, given in {"time": [roles.time], "trajectory": [roles.trajectory], **wanted}.items():
        for column in given:
            if column is not None and column not in columns:
                raise missing_column(column, columns, role)
    taken = {roles.trajectory, *named, *conditions, *covariates}
    time, notes = (roles.time, ()) if roles.time is not None else _guess_time(columns, taken)
    names = named or tuple(c for c in columns if c not in {time, *taken})
    if not names:
        raise DataError(
            "the table has no column of measurements",
            expected=f"at least one column beside the time {time!r}",
            got="none",
        )
    if not len(frame):
        raise DataError("the table has a header and no rows", expected="at least two rows of numbers")
    where = RowNames(table.lines)
    numbers = {c: number_column(frame[c], c, where, gaps=c != time) for c in (time, *names, *conditions, *covariates)}
    t, u = numbers[time], np.column_stack([numbers[c] for c in names])
    trajectories = []
    for label, rows in _groups(None if roles.trajectory is None else frame[roles.trajectory], len(frame)):
        check_times(t[rows], [where(i) for i in rows], time, label, roles.trajectory)
        own = {name: _constant(numbers[name][rows], name, label) for name in conditions}
        forcing = {name: checked_covariate(name, t[rows], numbers[name][rows], label) for name in covariates}
        trajectories.append(Trajectory(t[rows].copy(), u[rows].copy(), label, own, forcing))
    kept, dropped = without_empty(trajectories, names)
    states = state_names(list(renamed)) if renamed else names
    state_of = dict(zip(names, states, strict=True))
    units = {state_of.get(column, column): unit for column, unit in table.units.items()}
    return TableRuns(states, kept, time, (*notes, *dropped), units)


def _constant(numbers: Array, name: str, label: str) -> float:
    """The one number of a condition in a run; it need not stand in every row."""
    found = np.unique(numbers[np.isfinite(numbers)])
    if len(found) != 1:
        raise DataError(
            f"the condition {name!r} must be one number{f' in trajectory {label!r}' if label else ''}",
            expected="the same in every row",
            got=", ".join(f"{number:g}" for number in found) or "none",
            fix="Read it as a covariate if it changes.",
        )
    return float(found[0])


def _guess_time(columns: Sequence[str], taken: set[str | None]) -> tuple[str, tuple[str, ...]]:
    candidates = [column for column in columns if column not in taken]
    for column in candidates:
        if column.strip().lower() in TIME_NAMES:
            return column, (f"time is the column {column!r} (by its name)",)
    if not candidates:
        raise DataError("no column is left for the time", expected="one beside the states", got=", ".join(columns))
    return candidates[0], (f"time is the column {candidates[0]!r} (the first; name another with time=...)",)


def _groups(column: pd.Series | None, rows: int) -> list[tuple[str, npt.NDArray[np.intp]]]:
    """The name and the rows of each trajectory, in the order in which they first appear."""
    if column is None:
        return [("", np.arange(rows))]
    codes, labels = pd.factorize(column)
    if (codes < 0).any():
        raise DataError(
            f"column {column.name!r} is empty in row {int(np.argmin(codes)) + 1}", expected="a trajectory name"
        )
    return [(str(label), np.flatnonzero(codes == i)) for i, label in enumerate(labels)]


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
