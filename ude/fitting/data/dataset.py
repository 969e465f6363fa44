"""Measurements: trajectories over time, checked once, here, and what belongs to them.

Times in a `Dataset` are finite and strictly increase; measurements are finite, or NaN where nothing was measured.
Every row has at least one measurement, and every column. Nothing after it checks again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ude.errors import DataError
from ude.fitting.data.columns import missing_column, state_names
from ude.fitting.data.sources import read_table
from ude.fitting.data.splits import rolling_origin, split_tail, split_trajectories
from ude.fitting.data.table import Names, Roles, States, Table, split_runs
from ude.fitting.data.trajectory import Array, Trajectory, checked_covariate, checked_trajectory, without_empty
from ude.problems.interpolation import Kind


@dataclass(frozen=True, eq=False)
class Dataset:
    """Trajectories of the same states. Build it with `read_csv`, `Dataset.from_frame` or `Dataset.from_arrays`.

    NaN in `u` is a gap: a number that was not measured. `notes` says what was guessed or left out while reading (which
    column is the time, rows without any measurement), for whoever reports on the data. `units`: name -> unit, as the
    source had them. `covariate_kind`: how covariates go on between their times, as of `Interpolation`.

    >>> data = ude.Dataset.from_arrays([0.0, 1.0, 2.0], [[1.0, 0.0], [0.5, np.nan], [0.2, 0.8]], "x, y")
    >>> data.trajectories[0].u.shape, data.counts()
    ((3, 2), {'x': 3, 'y': 2})
    >>> train, held_out = data.split(1)
    >>> len(train.trajectories[0].t), len(held_out.trajectories[0].t)
    (2, 1)
    """

    states: tuple[str, ...]
    trajectories: tuple[Trajectory, ...]
    time_name: str = "t"
    notes: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    covariate_kind: Kind = "linear"

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

        NaN in u is a gap; a time at which nothing was measured is left out.

        Raises `DataError` for shapes that do not match, infinite numbers, times that do not increase, and a state
        without any value.
        """
        names = state_names(states)
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
            checked_trajectory(ti, ui, names, where=label(i), name=str(i) if several else "")
            for i, (ti, ui) in enumerate(zip(times, values, strict=True))
        ]
        kept, notes = without_empty(trajectories, names)
        return cls(names, kept, time_name, notes)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        time: str | None = None,
        states: States = None,
        trajectory: str | None = None,
        *,
        conditions: Names = None,
        covariates: Names = None,
        units: Mapping[str, str] | None = None,
    ) -> Dataset:
        """Read a table with one row a measurement time, one column a state.

        An empty cell, NaN or NA is a gap; a row of gaps only is left out (said in `notes`).

        Args:
            frame: the table.
            time: the time column; guessed from its name when None, else the first column (said in `notes`).
            states: the state columns, all others when None; a mapping {state: column} reads them under the names that
                the model uses ({"x": "hare", "y": "lynx"}).
            trajectory: a column that tells runs apart.
            conditions: columns that hold one number a trajectory.
            covariates: columns of measured inputs, with gaps where there are some.
            units: column -> unit, kept.

        Raises:
            DataError: a column that is missing or has no value at all, a cell that is text or infinite, times that are
                missing, repeat or go backwards, fewer than two rows in a trajectory.
        """
        return cls.from_table(Table(frame, units or {}), Roles(time, states, trajectory, conditions, covariates))

    @classmethod
    def from_table(cls, table: Table, roles: Roles) -> Dataset:
        """The same for a table that knows the lines of its file; raises as `from_frame`."""
        runs = split_runs(table, roles)
        return cls(runs.states, runs.trajectories, runs.time_name, runs.notes, runs.units)

    @classmethod
    def read(
        cls,
        source: Any,
        time: str | None = None,
        states: States = None,
        trajectory: str | None = None,
        *,
        conditions: Names = None,
        covariates: Names = None,
    ) -> Dataset:
        """Read a CSV or Parquet file, a DataFrame, a dict of columns (or of runs) or an `xarray.Dataset`.

        Arguments as in `from_frame`.

        Raises:
            InputError: another source.
            DataError: what the reader of the source raises.
        """
        return cls.from_table(*read_table(source, Roles(time, states, trajectory, conditions, covariates)))

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
        """Hold out the tail of every trajectory: (train, held out), None when nothing is held out.

        Args:
            holdout: a fraction of the points of each trajectory (0.25), a number of points (5), or a time after which
                everything is held out ("after 1915"). 0 holds out nothing. At least two points stay for training.
        """
        train, tail = split_tail(self.trajectories, holdout)
        held_out = replace(self, trajectories=tuple(tail)) if any(len(trajectory) for trajectory in tail) else None
        return self._training(train, f"holdout={holdout!r}"), held_out

    def split_trajectories(self, held_out: Sequence[str] | str | int | float, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Hold out whole trajectories: (train, held out).

        Args:
            held_out: their names, or a number or fraction of them, drawn with `seed`.
            seed: of the draw.

        Raises:
            DataError: a name that no trajectory has.
            InputError: one side would be empty.
        """
        train, rest = split_trajectories(self.trajectories, held_out, seed)
        note = f"trajectories held out: {', '.join(tr.name for tr in rest)} (held_out={held_out!r}, seed={seed})"
        noted = replace(self, notes=(*self.notes, note))
        return noted._training(train, f"held_out={held_out!r}"), replace(noted, trajectories=tuple(rest))

    def rolling_origin(self, folds: int = 3, horizon: float | int = 0.1) -> list[tuple[Dataset, Dataset]]:
        """Pairs (train, what follows), the origin moving to the end of the data.

        Fold k of K holds out `horizon` points (or that fraction of each trajectory) that end ``(K - 1 - k) horizon``
        points before the last; what comes after them is left out of both.

        Raises:
            InputError: folds or a horizon that are not positive.
            DataError: too little is left for training.
        """
        pairs = []
        for fold, (train, later) in enumerate(rolling_origin(self.trajectories, folds, horizon)):
            note = f"rolling origin: fold {fold} of {folds}, horizon {horizon!r}"
            noted = replace(self, notes=(*self.notes, note))
            pairs.append((noted._training(train, f"fold {fold}"), replace(noted, trajectories=tuple(later))))
        return pairs

    def _training(self, trajectories: Sequence[Trajectory], what: str) -> Dataset:
        """These trajectories of the data. Raises `DataError` where `what` leaves no value of a state."""
        training = replace(self, trajectories=tuple(trajectories))
        for state, count in training.counts().items():
            if not count:
                raise DataError(
                    f"{what} leaves no value of {state!r} for training",
                    expected="at least one",
                    got="0",
                    fix="Hold out less, or leave the column out.",
                )
        return training

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions that every trajectory has."""
        first, *others = [trajectory.conditions for trajectory in self.trajectories]
        return tuple(name for name in first if all(name in other for other in others))

    @property
    def covariates(self) -> tuple[str, ...]:
        """Names of the covariates that every trajectory has."""
        first, *others = [trajectory.covariates for trajectory in self.trajectories]
        return tuple(name for name in first if all(name in other for other in others))

    def with_conditions(self, conditions: Mapping[str, float | Sequence[float]]) -> Dataset:
        """The same with named numbers for each trajectory: ``{"dose": [1.0, 2.0], "T": 293.0}``.

        Raises `DataError` for a count that does not fit and for numbers that are not finite.
        """
        columns = {}
        for name, values in conditions.items():
            numbers = np.asarray(values, dtype=np.float64)
            numbers = np.full(len(self), numbers) if numbers.ndim == 0 else numbers
            if numbers.shape != (len(self),) or not np.isfinite(numbers).all():
                raise DataError(
                    f"the condition {name!r} does not fit the data",
                    expected=f"one finite number, or {len(self)} for {len(self)} trajectories",
                    got=repr(values),
                )
            columns[name] = numbers
        own = [{name: float(numbers[i]) for name, numbers in columns.items()} for i in range(len(self))]
        return replace(
            self,
            trajectories=tuple(
                replace(tr, conditions={**tr.conditions, **more})
                for tr, more in zip(self.trajectories, own, strict=True)
            ),
        )

    def with_covariates(
        self, name: str, t: npt.ArrayLike | Sequence[npt.ArrayLike], values: npt.ArrayLike | Sequence[npt.ArrayLike]
    ) -> Dataset:
        """The same with a measured input, from times (T,) and values (T,): of all trajectories, or a list of one each.

        Raises `DataError` for shapes that do not fit, times that do not increase, numbers that are not finite.
        """
        several = _is_list_of_arrays(t)
        times = list(t) if several else [t] * len(self)  # type: ignore[arg-type]
        numbers = list(values) if several else [values] * len(self)  # type: ignore[arg-type]
        if len(times) != len(self) or len(numbers) != len(self):
            raise DataError(
                f"the covariate {name!r} does not fit the data",
                expected=f"arrays for {len(self)} trajectories",
                got=f"{len(times)} of times and {len(numbers)} of values",
            )
        runs = []
        for i, (trajectory, ti, vi) in enumerate(zip(self.trajectories, times, numbers, strict=True)):
            own = checked_covariate(name, np.array(ti, dtype=np.float64), np.array(vi, dtype=np.float64), str(i))
            runs.append(replace(trajectory, covariates={**trajectory.covariates, name: own}))
        return replace(self, trajectories=tuple(runs))

    def counts(self) -> dict[str, int]:
        """How many numbers were measured of each state."""
        total = sum((trajectory.measured.sum(axis=0) for trajectory in self.trajectories), np.zeros(len(self.states)))
        return dict(zip(self.states, total.astype(int).tolist(), strict=True))

    def values(self) -> Array:
        """All measurements (point, state), one trajectory after another; NaN for a gap."""
        return np.concatenate([trajectory.u for trajectory in self.trajectories])

    def first_values(self) -> Array:
        """(trajectory, state): the first number measured; where a trajectory has none, the mean of the others'."""
        first = np.full((len(self), len(self.states)), np.nan)
        for row, trajectory in enumerate(self.trajectories):
            for column, measured in enumerate(trajectory.measured.T):
                if measured.any():
                    first[row, column] = trajectory.u[int(np.argmax(measured)), column]
        return np.where(np.isfinite(first), first, np.nanmean(first, axis=0))

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
            # one NaN for all: they differ in bits that mean nothing
            u = np.where(np.isnan(trajectory.u), np.nan, trajectory.u)
            code.update(np.ascontiguousarray(u, dtype="<f8").tobytes())
            for name, number in sorted(trajectory.conditions.items()):
                code.update(f"\0{name}\0{number!r}".encode())
            for name, (times, values) in sorted(trajectory.covariates.items()):
                code.update(f"\0{name}\0{len(times)}\0".encode())
                code.update(np.ascontiguousarray(np.stack([times, values]), dtype="<f8").tobytes())
        return code.hexdigest()

    def __len__(self) -> int:
        return len(self.trajectories)

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(trajectory)) for trajectory in self.trajectories)
        return f"Dataset(states={self.states}, time={self.time_name!r}, points=[{sizes}])"


def _is_list_of_arrays(t: npt.ArrayLike | Sequence[npt.ArrayLike]) -> bool:
    return isinstance(t, (list, tuple)) and len(t) > 0 and not np.isscalar(t[0]) and np.ndim(t[0]) > 0
