"""What is held out: the tail of every trajectory, whole trajectories, or what follows an origin that moves on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self, TypeVar

import numpy as np

from ude.errors import DataError, InputError
from ude.fitting.data.trajectory import Trajectory


class Splittable(Protocol):
    """What a split needs of a `Dataset`."""

    @property
    def trajectories(self) -> tuple[Trajectory, ...]: ...
    def with_trajectories(self, trajectories: Iterable[Trajectory], *notes: str) -> Self: ...
    def counts(self) -> dict[str, int]: ...


D = TypeVar("D", bound=Splittable)


def split_tail(data: D, holdout: float | int | str) -> tuple[D, D | None]:
    """See `Dataset.split`."""
    keep = [_points_kept(trajectory, holdout) for trajectory in data.trajectories]
    train = tuple(tr.part(slice(k)) for tr, k in zip(data.trajectories, keep, strict=True))
    tail = tuple(tr.part(slice(k, None)) for tr, k in zip(data.trajectories, keep, strict=True))
    held_out = data.with_trajectories(tail) if any(len(trajectory) for trajectory in tail) else None
    return _with_all_columns(data.with_trajectories(train), f"holdout={holdout!r}"), held_out


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


def split_trajectories(data: D, held_out: Sequence[str] | str | int | float, seed: int) -> tuple[D, D]:
    """See `Dataset.split_trajectories`."""
    names = [trajectory.name for trajectory in data.trajectories]
    if isinstance(held_out, bool):
        raise _bad_choice(held_out, len(names))
    if isinstance(held_out, int | float | np.integer | np.floating):
        number = round(held_out * len(names)) if isinstance(held_out, float) and 0 < held_out < 1 else held_out
        if number != int(number) or not 0 < number < len(names):
            raise _bad_choice(held_out, len(names))
        out = set(np.random.default_rng(seed).permutation(len(names))[: int(number)].tolist())
    else:
        wanted = [part.strip() for part in held_out.split(",")] if isinstance(held_out, str) else list(held_out)
        for name in wanted:
            if name not in names:
                raise DataError(f"there is no trajectory {name!r}", expected=f"some of {', '.join(names)}")
        out = {names.index(name) for name in wanted}
        if not 0 < len(out) < len(names):
            raise _bad_choice(held_out, len(names))
    parts = [[tr for i, tr in enumerate(data.trajectories) if (i in out) is side] for side in (False, True)]
    note = f"trajectories held out: {', '.join(tr.name for tr in parts[1])} (held_out={held_out!r}, seed={seed})"
    train, rest = (data.with_trajectories(part, note) for part in parts)
    return _with_all_columns(train, f"held_out={held_out!r}"), rest


def rolling_origin(data: D, folds: int, horizon: float | int) -> list[tuple[D, D]]:
    """See `Dataset.rolling_origin`."""
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 1:
        raise InputError("folds is not usable", expected="a whole number, at least 1", got=repr(folds))
    whole = isinstance(horizon, int) and not isinstance(horizon, bool) and horizon >= 1
    if not whole and not (isinstance(horizon, float) and 0 < horizon < 1):
        raise InputError("horizon is not usable", expected="a number of points, or a fraction", got=repr(horizon))
    pairs = []
    for fold in range(folds):
        train, later = [], []
        for trajectory in data.trajectories:
            step = int(horizon) if whole else max(1, round(horizon * len(trajectory)))
            origin = len(trajectory) - (folds - fold) * step
            if origin < 2:
                raise DataError(
                    f"{folds} folds of horizon={horizon!r} leave too little for training",
                    expected="at least 2 points",
                    got=f"{max(origin, 0)} of {len(trajectory)}",
                    fix="Take fewer folds or a shorter horizon.",
                )
            train.append(trajectory.part(slice(origin)))
            later.append(trajectory.part(slice(origin, origin + step)))
        note = f"rolling origin: fold {fold} of {folds}, horizon {horizon!r}"
        own = data.with_trajectories(train, note)
        pairs.append((_with_all_columns(own, f"fold {fold}"), own.with_trajectories(later)))
    return pairs


def _with_all_columns(training: D, what: str) -> D:
    for state, count in training.counts().items():
        if not count:
            raise DataError(
                f"{what} leaves no value of {state!r} for training",
                expected="at least one",
                got="0",
                fix="Hold out less, or leave the column out.",
            )
    return training


def _bad_choice(held_out: object, number: int) -> InputError:
    return InputError(
        "held_out is not usable",
        expected=f"names, a number from 1 to {number - 1}, or a fraction of {number} trajectories",
        got=repr(held_out),
    )
