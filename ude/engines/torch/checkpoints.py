"""Which states of a solve are kept, and how the others are computed again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import Checkpoints, StepRecord

#: What a step starts from: the state, and the derivative of methods that carry it over.
Start = tuple[Tensor, Tensor | None]
#: Takes the step in a row of a record again from its start: what the next one starts from.
Advance = Callable[[int, Start], Start]


class Keeper:
    """Keeps states while a solve runs: all, the first, or at most so many at even distances.

    With a number, every second one is dropped whenever that many are held, so that the number of steps need not be
    known beforehand (online checkpointing: V. Heuveline, A. Walther, Euro-Par 2006).
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._count, self._every = 0, 1
        self.rows: list[int] = []
        self.starts: list[Start] = []

    def add(self, u: Tensor, k1: Tensor | None) -> None:
        row = self._count
        self._count += 1
        if self._checkpoints == "logarithmic":
            if row:
                return
        elif isinstance(self._checkpoints, int):
            if row % self._every:
                return
            if len(self.rows) == self._checkpoints:
                self.rows, self.starts = self.rows[::2], self.starts[::2]
                self._every *= 2
                if row % self._every:
                    return
        self.rows.append(row)
        self.starts.append((u, k1))

    def record(self, t: Float[Tensor, "rows_and_end B"], dt: Float[Tensor, "rows B"], end: Tensor) -> StepRecord:
        """Put together what is remembered of a solve that ended at `end`."""
        carried = [k1 for _, k1 in self.starts if k1 is not None]
        return StepRecord(
            t=t,
            dt=dt,
            u=torch.stack([*(u for u, _ in self.starts), end]),
            k1=torch.stack(carried) if carried else None,
            kept=tuple(self.rows) if len(self.rows) < self._count else None,
            fan=self._checkpoints if isinstance(self._checkpoints, int) else None,
        )


class Starts:
    """What every recorded step started from; cheap when rows are asked from last to first, or from first to last.

    Where the record holds the states, they are read. Otherwise the steps since the nearest one held are taken again
    with the recorded step sizes, and some of the states on the way are held until rows before them are asked for:
    those that halve the way again and again, log2(steps) of them; or, with k checkpoints, k at even distances.

    Source: A. Griewank, A. Walther, Evaluating Derivatives, 2nd ed., chapter 12.
    """

    def __init__(self, record: StepRecord, advance: Advance) -> None:
        self._record, self._advance = record, advance
        self._held: list[tuple[int, Start]] = []

    def __call__(self, row: int) -> Start:
        record = self._record
        if row == record.dt.shape[0]:
            return record.u[-1], None
        if record.kept is None:
            return record.u[row], None if record.k1 is None else record.k1[row]
        while self._held and self._held[-1][0] > row:
            self._held.pop()
        here, start = self._nearest(record.kept, row)
        # with a number of checkpoints the distance is fixed at the start, or states would crowd before the row
        even = 0 if record.fan is None else -(-(row - here) // record.fan)
        while here < row:
            for at in range(here, min(row, here + (even or -(-(row - here) // 2)))):
                start = self._advance(at, start)
                here = at + 1
            self._held.append((here, start))
        return start

    def _nearest(self, kept: tuple[int, ...], row: int) -> tuple[int, Start]:
        """The last state held at or before this row."""
        position = max(i for i, at in enumerate(kept) if at <= row)
        if self._held and self._held[-1][0] >= kept[position]:
            return self._held[-1]
        self._held.clear()
        k1 = self._record.k1
        return kept[position], (self._record.u[position], None if k1 is None else k1[position])
