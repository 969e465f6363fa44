"""The stages of a fit, one after another, continued where an interrupted fit ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ude.fitting.evaluation_log import EvaluationLog
from ude.fitting.preparation import prepare
from ude.fitting.stages.base import Stage
from ude.fitting.state import FitState
from ude.fitting.storage.fit_folder import FitFolder


def run_stages(
    state: FitState, stages: Sequence[Stage], folder: FitFolder | None, checkpoint: Callable[[], None]
) -> None:
    """Prepare, then one stage after another; those that the folder holds are read from it."""
    state.checkpoint = checkpoint
    prepare(state)
    for index, stage in enumerate(stages):
        done = folder.finished(index) if folder is not None else None
        if done is not None:
            state.restore(*done)
            continue
        path = folder.log_path(index) if folder is not None else None
        with EvaluationLog(state.meter, path) as state.log:
            stage.run(state)
        if folder is not None:
            folder.finish(index, state.tensors(), {"rows": state.rows, "meter": state.meter.state()})
