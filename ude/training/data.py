"""Measurements: trajectories of states over time, read from a file, a table or arrays, and checked once, here.

Whatever stands in a `Dataset` has finite numbers and strictly increasing times; nothing after it checks again.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ude.errors import DataError, InputError

Array = npt.NDArray[np.float64]

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


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of the system: `t` of shape (T,), strictly increasing, and `u` of shape (T, state), finite."""

    t: Array
    u: Array
    name: str = ""

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Trajectories of the same states. Build it with `read_csv`, `Dataset.from_frame` or `Dataset.from_arrays`.

    `notes` says what was guessed while reading (which column is the time), for whoever reports on the data.
    """

    states: tuple[str, ...]
    trajectories: tuple[Trajectory, ...]
    time_name: str = "t"
    notes: tuple[str, ...] = ()

    @classmethod
    def from_arrays(
        cls,
        t: npt.ArrayLike | Sequence[npt.ArrayLike],
        u: npt.ArrayLike | Sequence[npt.ArrayLike],
        states: Sequence[str],
        *,
        time_name: str = "t",
    ) -> Dataset:
        """One trajectory from `t` (T,) and `u` (T, state), or several from lists of such arrays.

        Raises `DataError` for shapes that do not match, numbers that are not finite, and times that do not increase.
        """
        names = _state_names(states)
        several = _is_list_of_arrays(t)
        times: list[npt.ArrayLike] = list(t) if several else [t]  # type: ignore[arg-type, list-item]
        values: list[npt.ArrayLike] = list(u) if several else [u]  # type: ignore[arg-type, list-item]
        if len(times) != len(values):
            raise DataError(
                "t and u must list the same trajectories",
                got=f"{len(times)} arrays of times and {len(values)} of states",
                fix="Give one array of states for each array of times.",
            )
        label = (lambda i: f"trajectory {i}, ") if several else (lambda i: "")
        trajectories = [
            _checked_trajectory(ti, ui, names, where=label(i), name=str(i) if several else "")
            for i, (ti, ui) in enumerate(zip(times, values, strict=True))
        ]
        return cls(names, tuple(trajectories), time_name)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        time: str | None = None,
        states: Mapping[str, str] | Sequence[str] | str | None = None,
        trajectory: str | None = None,
        *,
        lines: Sequence[int] | None = None,
    ) -> Dataset:
        """A table with one row a measurement time, one column a state.

        `time`: the time column; guessed from its name when None, else the first column (said in `notes`).
        `states`: the state columns, all others when None; a mapping {state: column} reads them under the names that
        the model uses ({"x": "hare", "y": "lynx"}). `trajectory`: a column that tells runs apart.
        `lines`: the line of the file each row came from, so that errors can name it.

        Raises `DataError`: a column that is missing, a cell that is empty or no finite number, times that repeat or
        go backwards, fewer than two rows in a trajectory.
        """
        columns = [str(column) for column in frame.columns]
        frame = frame.set_axis(columns, axis=1)
        _refuse_repeated(columns)
        renamed = dict(states) if isinstance(states, Mapping) else {}
        named = _state_names(list(renamed.values()) if renamed else states) if states is not None else ()
        for wanted, role in [(time, "time"), (trajectory, "trajectory"), *((name, "state") for name in named)]:
            if wanted is not None and wanted not in columns:
                raise missing_column(wanted, columns, role)
        taken = {trajectory, *named}
        time, notes = (time, ()) if time is not None else _guess_time([c for c in columns if c not in taken], columns)
        names = named or tuple(c for c in columns if c not in {time, trajectory})
        if not names:
            raise DataError(
                "the table has no column of measurements",
                expected=f"at least one column beside the time {time!r}",
                got="none",
            )
        if not len(frame):
            raise DataError("the table has a header and no rows", expected="at least two rows of numbers")
        where = _RowNames(lines)
        numbers = np.column_stack([_number_column(frame[c], c, where) for c in (time, *names)])
        groups = _groups(frame[trajectory]) if trajectory is not None else [("", np.arange(len(frame)))]
        trajectories = []
        for label, rows in groups:
            _check_times(numbers[rows, 0], [where(i) for i in rows], time, label, trajectory)
            trajectories.append(Trajectory(numbers[rows, 0].copy(), numbers[rows, 1:].copy(), label))
        return cls(_state_names(list(renamed)) if renamed else names, tuple(trajectories), time, notes)

    def select(self, states: Sequence[str]) -> Dataset:
        """The same trajectories with only these states, in this order. Raises `DataError` for a state without data."""
        for state in states:
            if state not in self.states:
                raise missing_column(state, self.states, "state")
        index = [self.states.index(state) for state in states]
        return replace(
            self,
            states=tuple(states),
            trajectories=tuple(replace(tr, u=tr.u[:, index].copy()) for tr in self.trajectories),
        )

    def split(self, holdout: float | int | str = 0.25) -> tuple[Dataset, Dataset | None]:
        """(train, held out): the tail of every trajectory is held out; None when nothing is.

        `holdout`: a fraction of the points of each trajectory (0.25), a number of points (5), or a time after which
        everything is held out ("after 1915"). 0 holds out nothing. At least two points stay for training.
        """
        keep = [_points_kept(trajectory, holdout) for trajectory in self.trajectories]
        train = tuple(replace(tr, t=tr.t[:k], u=tr.u[:k]) for tr, k in zip(self.trajectories, keep, strict=True))
        tail = tuple(replace(tr, t=tr.t[k:], u=tr.u[k:]) for tr, k in zip(self.trajectories, keep, strict=True))
        held_out = replace(self, trajectories=tail) if any(len(trajectory) for trajectory in tail) else None
        return replace(self, trajectories=train), held_out

    def to_frame(self) -> pd.DataFrame:
        """One table of all trajectories; a first column `trajectory` when there are several."""
        parts = []
        for trajectory in self.trajectories:
            part = pd.DataFrame(trajectory.u, columns=list(self.states))
            part.insert(0, self.time_name, trajectory.t)
            if len(self.trajectories) > 1:
                part.insert(0, "trajectory", trajectory.name)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    @property
    def digest(self) -> str:
        """SHA-256 of names and numbers: equal for equal data, so that a run folder knows what it was made from."""
        code = hashlib.sha256("\0".join([self.time_name, *self.states]).encode())
        for trajectory in self.trajectories:
            code.update(f"{trajectory.name}\0{len(trajectory)}\0".encode())
            code.update(np.ascontiguousarray(trajectory.t, dtype="<f8").tobytes())
            code.update(np.ascontiguousarray(trajectory.u, dtype="<f8").tobytes())
        return code.hexdigest()

    def __len__(self) -> int:
        return len(self.trajectories)

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(trajectory)) for trajectory in self.trajectories)
        return f"Dataset(states={self.states}, time={self.time_name!r}, points=[{sizes}])"


def read_csv(
    path: str | Path,
    time: str | None = None,
    states: Mapping[str, str] | Sequence[str] | str | None = None,
    trajectory: str | None = None,
) -> Dataset:
    """Read a CSV file with a header line into a `Dataset`; arguments as in `Dataset.from_frame`.

    Lines that start with `#` are comments; blank lines and spaces around cells are ignored. The separator is a comma,
    or a semicolon or tab where the header has these and no comma.

    Raises `DataError`: no such file, an empty file, a line with too many or too few cells, and all of `from_frame`.
    """
    rows, lines = _read_rows(Path(path))
    header, body = rows[0], rows[1:]
    if all(_is_number(cell) for cell in header):
        raise DataError(
            f"line {lines[0]} of {path} should name the columns",
            expected="a header such as t,x,y",
            got=",".join(header),
            fix="Put the names of the columns in the first line.",
        )
    for cells, line in zip(body, lines[1:], strict=True):
        if len(cells) != len(header):
            raise DataError(
                f"line {line} of {path} does not fit the header",
                expected=f"{len(header)} cells",
                got=f"{len(cells)}",
                fix="Give every column a name in the first line, and every line one cell a column.",
            )
    frame = pd.DataFrame(body, columns=header, dtype=object)
    return Dataset.from_frame(frame, time, states, trajectory, lines=lines[1:])


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


class _RowNames:
    """Names a row as a person finds it: the line of the file when there is one, else the row counted from 1."""

    def __init__(self, lines: Sequence[int] | None) -> None:
        self.lines = lines

    def __call__(self, row: int) -> str:
        return f"row {row + 1}" if self.lines is None else f"row {row + 1} (line {self.lines[row]} of the file)"


def _number_column(column: pd.Series, name: str, where: _RowNames) -> Array:
    if pd.api.types.is_datetime64_any_dtype(column):
        raise DataError(
            f"column {name!r} has dates", expected="numbers", fix="Give times as numbers, such as days since the start."
        )
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if not len(bad):
        return numbers
    row = int(bad[0])
    cell = column.iloc[row]
    if pd.isna(cell) or str(cell).strip() == "":
        raise DataError(f"column {name!r} is empty in {where(row)}", expected="a number", fix=_FIX_CELL)
    if str(cell).strip().lower() in {"nan", "na", "n/a", "null", "none"}:
        raise DataError(
            f"column {name!r} has no value in {where(row)}", expected="a number", got=f"{cell}", fix=_FIX_CELL
        )
    if np.isinf(numbers[row]):
        raise DataError(f"column {name!r} is infinite in {where(row)}", expected="a finite number", got=f"{cell}")
    raise DataError(
        f"column {name!r} has text in {where(row)}",
        expected="a number",
        got=f"{str(cell)!r}",
        fix="Mend the cell, or leave the column out by naming the states.",
    )


_FIX_CELL = "Remove the row, or fill the cell."


def _check_times(t: Array, where: Sequence[str], time: str, label: str, trajectory: str | None) -> None:
    run = f" in trajectory {label!r}" if trajectory is not None else ""
    if len(t) < 2:
        raise DataError(f"there is one row{run}", expected="at least two", got="1", fix="A trajectory needs two times.")
    step = np.diff(t)
    bad = np.flatnonzero(step <= 0)
    if not len(bad):
        return
    i = int(bad[0])
    hint = "" if trajectory is not None else " or name the column that tells trajectories apart (trajectory=...)"
    if step[i] == 0:
        raise DataError(
            f"time {t[i]:g} stands twice{run}: {where[i]} and {where[i + 1]}", fix=f"Keep one of them{hint}."
        )
    raise DataError(
        f"times must increase{run}: {time}={t[i + 1]:g} in {where[i + 1]} follows {t[i]:g}",
        fix=f"Sort the rows by {time!r}{hint}.",
    )


def _checked_trajectory(
    t: npt.ArrayLike, u: npt.ArrayLike, states: tuple[str, ...], where: str, name: str
) -> Trajectory:
    """Copies: a later change of the caller's arrays must not reach a checked data set."""
    try:
        times, values = np.array(t, dtype=np.float64), np.array(u, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}t and u must be arrays of numbers", got=str(error)) from error
    if times.ndim == 1 and values.ndim == 1 and len(states) == 1:
        values = values[:, None]
    if times.ndim != 1 or values.shape != (len(times), len(states)):
        raise DataError(
            f"{where}t and u do not fit together",
            expected=f"t of shape (T,) and u of shape (T, {len(states)}) for {len(states)} states",
            got=f"t of shape {times.shape} and u of shape {values.shape}",
            fix="States run along the last axis.",
        )
    for label, array in [("t", times), *((s, values[:, i]) for i, s in enumerate(states))]:
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise DataError(
                f"{where}{label} is not finite at index {bad[0]}", expected="a finite number", got=f"{array[bad[0]]}"
            )
    _check_times(times, [f"index {i}" for i in range(len(times))], "t", name, "t" if name else None)
    return Trajectory(times, values, name)


def _is_list_of_arrays(t: npt.ArrayLike | Sequence[npt.ArrayLike]) -> bool:
    return isinstance(t, (list, tuple)) and len(t) > 0 and not np.isscalar(t[0]) and np.ndim(t[0]) > 0


def _state_names(states: Mapping[str, str] | Sequence[str] | str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in states.split(",")) if isinstance(states, str) else tuple(states)
    _refuse_repeated(names)
    if not names:
        raise DataError("no state is named", expected="at least one name in states")
    return names


def _refuse_repeated(names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        if not name.strip():
            raise DataError(f"column {i + 1} has no name", fix="Name every column in the header line.")
        if name in names[:i]:
            raise DataError(f"the column name {name!r} stands twice", fix="Give every column its own name.")


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


def _points_kept(trajectory: Trajectory, holdout: float | int | str) -> int:
    total = len(trajectory)
    if isinstance(holdout, str):
        kept = int(np.searchsorted(trajectory.t, _after(holdout), side="right"))
    elif isinstance(holdout, bool) or not np.isfinite(holdout) or holdout < 0:
        raise _bad_holdout(holdout)
    elif isinstance(holdout, (int, np.integer)):
        kept = total - int(holdout)
    elif holdout < 1:
        kept = total - round(float(holdout) * total)
    else:
        raise _bad_holdout(holdout)
    if kept < 2:
        run = f" of trajectory {trajectory.name!r}" if trajectory.name else ""
        raise DataError(
            f"holdout={holdout!r} leaves too little for training{run}",
            expected="at least 2 points",
            got=f"{max(kept, 0)} of {total}",
            fix="Hold out less.",
        )
    return kept


def _after(holdout: str) -> float:
    words = holdout.split()
    try:
        if len(words) != 2 or words[0] != "after":
            raise ValueError
        return float(words[1])
    except ValueError:
        raise _bad_holdout(holdout) from None


def _bad_holdout(holdout: object) -> InputError:
    return InputError(
        "holdout is not usable",
        expected='a fraction from 0 to below 1, a whole number of points, or "after TIME"',
        got=repr(holdout),
        fix='Examples: 0.25, 5, "after 1915".',
    )
