"""What happens at every iteration of a stage: history, bar, validation, checkpoints, callbacks, early stops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from ude.fitting.optimizers.optimizers import Objective, Optimizer
from ude.fitting.stages.stages import Iteration, Stage
from ude.progress import ProgressStage

if TYPE_CHECKING:
    from ude.fitting.state import Training


class StopStage(Exception):
    """Ends a stage from inside of its optimizer."""


class StageLog(AbstractContextManager["StageLog"]):
    """Called with the loss of every iteration: into the history, onto the bar, to callbacks; stops early."""

    def __init__(self, training: Training, stage: Stage, shown: ProgressStage) -> None:
        self.training, self.stage, self.shown = training, stage, shown
        self.name, self.count, self.evaluations = stage.name, 0, 0
        self.best_validation, self.best_point, self.waited = np.inf, np.zeros(0), 0
        self.saved, self.validation = time.monotonic(), np.nan
        self.objective: Objective

    def minimize(self, objective: Objective, optimizers: Sequence[Optimizer]) -> None:
        """One optimizer after another; with validation data, the point that they liked best is kept."""
        before = self.evaluations
        self.best_validation, self.waited = np.inf, 0
        try:
            for optimizer in optimizers:
                self.objective, self.before = objective, before
                optimizer.minimize(objective, stall=self.training.options.stall, on_iteration=self)
        finally:
            self.evaluations = before + objective.evaluations
            if np.isfinite(self.best_validation):
                objective.assign(self.best_point)

    def __call__(self, loss: float) -> None:
        training, objective = self.training, self.objective
        self.count += 1
        # Whoever looks at the model now sees it at its best. The optimizer assigns its own point before it evaluates.
        objective.assign(objective.best_point)
        validation = self._look()
        evaluations = self.before + objective.evaluations
        meter = training.meter
        row = (self.name, self.count, loss, validation, objective.rate, evaluations, meter.steps, meter.seconds)
        training.rows.append(row)
        self.shown.advance(loss, detail=self._told(validation))
        if not training.log.replaying and time.monotonic() - self.saved > training.options.checkpoint_seconds:
            training.checkpoint()
            self.saved = time.monotonic()
        told = Iteration(
            self.name,
            self.count,
            loss,
            validation,
            training.model,
            objective.rate,
            evaluations,
            meter.steps,
            len(training.rows),
        )
        stop = [callback(told) for callback in (self.stage.callback, training.setup.callback) if callback is not None]
        if any(stop) or self.waited > training.options.validation_patience:
            raise StopStage

    def _told(self, validation: float) -> str:
        """What the bar says beside the loss."""
        if np.isfinite(validation):
            self.validation = validation  # looked at now and then, and shown until the next time
        rate, damping, steps = self.objective.rate, self.objective.damping, self.training.meter.steps
        parts = [
            f"validation {self.validation:.4g}" if np.isfinite(self.validation) else "",
            f"rate {rate:.2g}" if np.isfinite(rate) else "",
            f"damping {damping:.1g}" if np.isfinite(damping) else "",
            f"{steps:,} solver steps" if steps else "",
        ]
        return ", ".join(part for part in parts if part)

    def _look(self) -> float:
        """The validation loss where it is time to look, else NaN."""
        if self.count % self.training.options.validation_every:
            return float("nan")
        value = self.training.validate()
        if value < self.best_validation:
            self.best_validation, self.best_point, self.waited = value, self.objective.best_point.copy(), 0
        elif np.isfinite(value):
            self.waited += 1
        return value

    def __enter__(self) -> StageLog:
        self.shown.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        stopped = kind is StopStage
        self.shown.__exit__(None if stopped else kind, None if stopped else error, tb)
        return stopped
