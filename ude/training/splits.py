"""Where training data end: the tail of every trajectory held out, by fraction, by number of points or by time."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ude.errors import DataError, InputError

if TYPE_CHECKING:
    from ude.training.data import Dataset, Trajectory


def split_tail(data: Dataset, holdout: float | int | str) -> tuple[Dataset, Dataset | None]:
    """See `Dataset.split`."""
    keep = [_points_kept(trajectory, holdout) for trajectory in data.trajectories]
    train = tuple(tr.part(slice(k)) for tr, k in zip(data.trajectories, keep, strict=True))
    tail = tuple(tr.part(slice(k, None)) for tr, k in zip(data.trajectories, keep, strict=True))
    held_out = replace(data, trajectories=tail) if any(len(trajectory) for trajectory in tail) else None
    training = replace(data, trajectories=train)
    for state, count in training.counts().items():
        if not count:
            raise DataError(
                f"holdout={holdout!r} leaves no value of {state!r} for training",
                expected="at least one",
                got="0",
                fix="Hold out less, or leave the column out.",
            )
    return training, held_out


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
