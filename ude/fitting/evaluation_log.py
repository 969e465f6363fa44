"""What a fit has computed so far: counted always, and written down where it must be able to go on after a crash.

A fit is a deterministic function of its evaluations: an optimizer that is given the same losses and gradients again
takes the same way again. A run that was killed therefore needs none of its optimizer's insides, which SciPy does not
show anyway: the evaluations that were recorded are handed out once more, and the optimizer is soon where it was, bit by
bit.
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ude.engines.fused.engine import PATIENCE

Array = npt.NDArray[np.float64]

# Count of numbers, seconds since the start of the fit, calls, steps, simulations, simulations that broke down.
_HEADER = struct.Struct("<qdqqqq")


class Meter:
    """Counts of one fit: calls of f, steps, simulations of a window and how many of these broke down.

    It also chooses the engine: torch's until f has been called often, then the fused one. Left to itself, the choice
    of the fused engine depends on what else the process did before, and so would the last bits of a fit.
    """

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.calls = self.steps = self.solves = self.failed = 0
        self.patience: float = PATIENCE

    def hurry(self) -> None:
        """A kernel pays at once."""
        self.patience = 0

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines to try, one after another."""
        return ("torch",) if self.calls < self.patience else ("fused", "torch")

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Calls, steps, simulations, and simulations that broke down, as `count` takes them."""
        return self.calls, self.steps, self.solves, self.failed

    def count(self, calls: int, steps: int, solves: int, failed: int) -> None:
        self.calls += calls
        self.steps += steps
        self.solves += solves
        self.failed += failed

    def state(self) -> list[float]:
        return [self.seconds, *self.counts]

    def restore(self, state: Sequence[float]) -> None:
        seconds, *counts = state
        self.start = time.perf_counter() - seconds
        self.calls, self.steps, self.solves, self.failed = (int(count) for count in counts)


class EvaluationLog:
    """Arrays of numbers in the order in which they were computed; those that a file holds are not computed again.

    path: the file, made when missing; None: nothing is kept. A record that was cut off in the middle, as the last one
    may be after a kill, is dropped.
    """

    def __init__(self, meter: Meter, path: Path | None = None) -> None:
        self.meter = meter
        self._recorded: deque[tuple[list[float], Array]] = deque()
        self._file: int | None = None
        if path is not None:
            whole = self._read(path) if path.exists() else 0
            # Unbuffered: what was written before a kill is there after it.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, whole)
            os.lseek(self._file, 0, os.SEEK_END)

    def _read(self, path: Path) -> int:
        content = path.read_bytes()
        place = 0
        while place + _HEADER.size <= len(content):
            size, *counts = _HEADER.unpack_from(content, place)
            end = place + _HEADER.size + 8 * size
            if end > len(content):
                break
            numbers = np.frombuffer(content, dtype="<f8", count=size, offset=place + _HEADER.size).copy()
            self._recorded.append((counts, numbers))
            place = end
        return place

    @property
    def replaying(self) -> bool:
        """Whether the next numbers come from the file."""
        return bool(self._recorded)

    def __call__(self, compute: Callable[[], Array]) -> Array:
        """The numbers recorded here before, or those that `compute` gives, which are recorded."""
        meter = self.meter
        if self._recorded:
            counts, numbers = self._recorded.popleft()
            meter.restore(counts)
            return numbers
        numbers = np.ascontiguousarray(compute(), dtype="<f8")
        if self._file is not None:
            _write(self._file, _HEADER.pack(numbers.size, *meter.state()) + numbers.tobytes())
        return numbers

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> EvaluationLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _write(file: int, content: bytes) -> None:
    while content:
        content = content[os.write(file, content) :]
