"""One run of a system, and the checks that every table of measurements passes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from ude.errors import DataError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """One run of the system: `t` of shape (T,), strictly increasing, and `u` of shape (T, state), NaN for a gap.

    conditions: numbers that hold throughout, such as a dose or a temperature
    covariates: name -> (times, values), measured inputs with times of their own; a part of the run keeps them whole
    """

    t: Array
    u: Array
    name: str = ""
    conditions: Mapping[str, float] = field(default_factory=dict)
    covariates: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.t)

    @property
    def measured(self) -> npt.NDArray[np.bool_]:
        """(T, state): which numbers were measured."""
        return np.isfinite(self.u)

    def part(self, points: slice | npt.NDArray[np.bool_]) -> Trajectory:
        """Some of the points, with all covariates: what drove a run is known beyond its training data."""
        return replace(self, t=self.t[points], u=self.u[points])


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


def without_empty(
    trajectories: Sequence[Trajectory], names: Sequence[str]
) -> tuple[tuple[Trajectory, ...], tuple[str, ...]]:
    """The trajectories without rows at which nothing was measured, and notes of what was left out.

    Raises `DataError` for a state without any value and for a trajectory that keeps fewer than two rows.
    """
    kept, dropped = [], 0
    for trajectory in trajectories:
        some = np.asarray(trajectory.measured.any(axis=1))
        dropped += int((~some).sum())
        kept.append(trajectory.part(some))
        if len(kept[-1]) < 2:
            run = f" in trajectory {trajectory.name!r}" if trajectory.name else ""
            raise DataError(
                f"too few rows have a measurement{run}",
                expected="at least two",
                got=f"{len(kept[-1])} of {len(trajectory)}",
                fix="A trajectory needs two times.",
            )
    measured = np.concatenate([trajectory.measured for trajectory in kept])
    for column, name in enumerate(names):
        if not measured[:, column].any():
            raise DataError(
                f"column {name!r} has no value at all",
                expected="at least one number",
                fix="Leave the column out; a state that is not measured needs none.",
            )
    if not dropped:
        return tuple(kept), ()
    return tuple(kept), (f"{dropped} {'row' if dropped == 1 else 'rows'} without any measurement left out",)


def check_times(t: Array, where: Sequence[str], time: str, label: str, trajectory: str | None) -> None:
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
            f"time {t[i]:g} stands twice{run}: {where[i]} and {where[i + 1]}",
            fix=f"Keep one of them{hint}. Replicates are trajectories of their own (u0={{'x': 'shared'}} in fit gives "
            "them one initial state), or enter as their mean.",
        )
    raise DataError(
        f"times must increase{run}: {time}={t[i + 1]:g} in {where[i + 1]} follows {t[i]:g}",
        fix=f"Sort the rows by {time!r}{hint}.",
    )


def checked_trajectory(
    t: npt.ArrayLike, u: npt.ArrayLike, states: tuple[str, ...], where: str, name: str
) -> Trajectory:
    """Copies: a later change of the caller's arrays must not reach a checked data set."""
    for label, given in (("t", t), ("u", u)):
        if np.iscomplexobj(given):
            raise DataError(
                f"{where}{label} has complex numbers",
                expected="real numbers",
                fix="Give real and imaginary part, or modulus and phase, as states of their own.",
            )
    try:
        # asarray first: a tensor does not copy itself
        times, values = (np.array(np.asarray(given), dtype=np.float64) for given in (t, u))
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
        bad = np.flatnonzero(~np.isfinite(array) if label == "t" else np.isinf(array))
        if len(bad):
            raise DataError(
                f"{where}{label} is not finite at index {bad[0]}",
                expected="a finite number" if label == "t" else "a finite number, or NaN for a gap",
                got=f"{array[bad[0]]}",
            )
    check_times(times, [f"index {i}" for i in range(len(times))], "t", name, "t" if name else None)
    return Trajectory(times, values, name)


def is_list_of_arrays(t: npt.ArrayLike | Sequence[npt.ArrayLike]) -> bool:
    return isinstance(t, (list, tuple)) and len(t) > 0 and not np.isscalar(t[0]) and np.ndim(t[0]) > 0


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
            raise DataError(f"the column name {name!r} stands twice", fix="Give every column its own name.")


def root_mean_square(predicted: Array, measured: Array) -> Array:
    """(state,): root mean square of ``predicted - measured``, both (point, state), over what was measured.

    Infinite where a prediction is not finite; NaN for a state of which nothing was measured.
    """
    seen = np.isfinite(measured)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.where(seen, (predicted - np.where(seen, measured, 0.0)) ** 2, 0.0)
        total = np.where(np.isnan(squares), np.inf, squares).sum(axis=0)
        return np.sqrt(np.where(seen.any(axis=0), total / np.maximum(seen.sum(axis=0), 1), np.nan))


def checked_covariate(name: str, t: Array, values: Array, run: str) -> tuple[Array, Array]:
    """Times and values of a covariate without its gaps. Raises `DataError` where they are not usable."""
    if t.ndim != 1 or values.shape != t.shape:
        raise DataError(
            f"the covariate {name!r} of trajectory {run!r} does not fit its times",
            expected=f"shape {t.shape}",
            got=f"{values.shape}",
        )
    t, values = t[~np.isnan(values)], values[~np.isnan(values)]
    if len(t) < 2 or not (np.isfinite(t).all() and np.isfinite(values).all() and (np.diff(t) > 0).all()):
        raise DataError(
            f"the covariate {name!r} of trajectory {run!r} is not usable",
            expected="at least two finite numbers at increasing times",
            got=f"{len(t)} of them",
        )
    return t, values
