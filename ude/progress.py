"""One progress bar for everything that takes long.

::

    with ProgressBar(enabled) as bar:
        with bar.stage("single shooting", total=150) as stage:
            for ...:
                stage.advance(loss=loss)

On a terminal or in a notebook the bar moves and shows stage, loss, what the work adds to it (``detail=``: of fits
validation, learning rate, solver steps) and the time left; where output is a file or a pipe each finished stage gives
one plain line; with `enabled=False` nothing is printed at all. Output goes to stderr, so that what a command prints as
its result stays clean.
"""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class ProgressStage:
    """One stage of the work. Counts and times itself whether or not anything is shown."""

    def __init__(self, owner: ProgressBar, name: str, total: int | None) -> None:
        self.owner, self.name, self.total = owner, name, total
        self.completed = 0
        self.loss = math.nan
        self.detail = ""
        self._task: TaskID | None = None
        self._start = 0.0

    def __enter__(self) -> ProgressStage:
        self._start = time.perf_counter()
        if self.owner.live is not None:
            self._task = self.owner.live.add_task(self.name, total=self.total, loss="")
        return self

    def advance(self, loss: float | None = None, steps: int = 1, detail: str | None = None) -> None:
        """`steps` more are done, `loss` is the value now, `detail` stands beside it; None leaves what is shown."""
        self.completed += steps
        if loss is not None:
            self.loss = float(loss)
        if detail is not None:
            self.detail = detail
        if self.owner.live is not None and self._task is not None:
            self.owner.live.update(self._task, completed=self.completed, loss=self._said())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.owner.live is not None and self._task is not None:
            # A stage that stopped early is finished: without this its bar would stay part-way.
            self.owner.live.update(self._task, total=max(self.completed, 1), completed=max(self.completed, 1))
            self.owner.live.stop_task(self._task)
        elif self.owner.enabled:
            seconds = time.perf_counter() - self._start
            word = "interrupted" if kind is KeyboardInterrupt else "failed" if kind else f"{seconds:.1f} s"
            said = self._said()
            self.owner.console.print(f"{self.name}: {self.completed} steps{', ' + said if said else ''}, {word}")

    def _said(self) -> str:
        loss = "" if math.isnan(self.loss) else f"loss {self.loss:.4g}"
        return ", ".join(part for part in (loss, self.detail) if part)


class ProgressBar:
    """The bars of one piece of work; see the module's text. `console` is for tests and for callers with their own."""

    def __init__(self, enabled: bool = True, *, console: Console | None = None) -> None:
        self.enabled = enabled
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.live: Progress | None = None

    def __enter__(self) -> ProgressBar:
        # Rich draws nothing until the end where it cannot move the cursor; there, plain lines say more.
        if self.enabled and (self.console.is_terminal or self.console.is_jupyter):
            self.live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self.console,
            )
            self.live.start()
        return self

    def stage(self, name: str, total: int | None = None) -> ProgressStage:
        """A stage of `total` steps, None when the number is unknown; use it in a `with` statement."""
        return ProgressStage(self, name, total)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
