"""What is held out: the tail of every trajectory, whole trajectories, or what follows an origin that moves on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ude.errors import DataError, InputError
from ude.fitting.data.trajectory import Trajectory

Runs = list[Trajectory]


def split_tail(trajectories: Sequence[Trajectory], holdout: float | int | str) -> tuple[Runs, Runs]:
    """What is kept and the tail, of each trajectory; see `Dataset.split`."""
    keep = [_points_kept(trajectory, holdout) for trajectory in trajectories]
    kept = [tr.part(slice(k)) for tr, k in zip(trajectories, keep, strict=True)]
    return kept, [tr.part(slice(k, None)) for tr, k in zip(trajectories, keep, strict=True)]


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
        'holdout must be a fraction from 0 to below 1, a whole number of points, or "after TIME"',
        got=repr(holdout),
        fix='Examples: 0.25, 5, "after 1915".',
    )


def split_trajectories(
    trajectories: Sequence[Trajectory], held_out: Sequence[str] | str | int | float, seed: int
) -> tuple[Runs, Runs]:
    """Those kept and those held out; see `Dataset.split_trajectories`."""
    names = [trajectory.name for trajectory in trajectories]
    total = len(names)
    if isinstance(held_out, bool):
        raise _bad_choice(held_out, total)
    if isinstance(held_out, int | float | np.integer | np.floating):
        number = round(held_out * total) if isinstance(held_out, float) and 0 < held_out < 1 else held_out
        if number != int(number):
            raise _bad_choice(held_out, total)
        out = set(np.random.default_rng(seed).permutation(total)[: max(int(number), 0)].tolist())
    else:
        wanted = [part.strip() for part in held_out.split(",")] if isinstance(held_out, str) else list(held_out)
        for name in wanted:
            if name not in names:
                raise DataError(f"there is no trajectory {name!r}", expected=f"some of {', '.join(names)}")
        out = {names.index(name) for name in wanted}
    if not 0 < len(out) < total:
        raise _bad_choice(held_out, total)
    kept, rest = ([tr for i, tr in enumerate(trajectories) if (i in out) is side] for side in (False, True))
    return kept, rest


def rolling_origin(trajectories: Sequence[Trajectory], folds: int, horizon: float | int) -> list[tuple[Runs, Runs]]:
    """What each fold trains on and what follows; see `Dataset.rolling_origin`."""
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 1:
        raise InputError("folds must be a whole number of at least 1", got=repr(folds))
    whole = isinstance(horizon, int) and not isinstance(horizon, bool) and horizon >= 1
    if not whole and not (isinstance(horizon, float) and 0 < horizon < 1):
        raise InputError("horizon must be a number of points, or a fraction", got=repr(horizon))
    pairs = []
    for fold in range(folds):
        train, later = [], []
        for trajectory in trajectories:
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
        pairs.append((train, later))
    return pairs


def _bad_choice(held_out: object, number: int) -> InputError:
    return InputError(
        "held_out must leave trajectories on both sides",
        expected=f"names, a number from 1 to {number - 1}, or a fraction of {number} trajectories",
        got=repr(held_out),
    )
