"""What a fit tells while it runs: on the bar, to callbacks, and to TensorBoard."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ude
from ude.errors import BackendMissing
from ude.fitting.iteration import Iteration

STAGES = ["derivatives", ude.stages.SingleShooting((ude.optimizers.Adam(iterations=12, learning_rate=0.05),))]


def fitted(**arguments: Any) -> ude.Fit:
    t = np.linspace(0.0, 2.0, 9)
    data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    model = ude.UDE("dx/dt = -k*x", fit="k")
    return ude.fit(model, data, validation=2, holdout=0, stages=STAGES, **arguments)


def test_callback_is_told_what_the_history_says() -> None:
    told: list[Iteration] = []
    fit = fitted(callback=told.append, progress=False)
    assert [own.total for own in told] == list(range(1, len(fit.history) + 1))
    for name in ("rate", "evaluations", "steps", "validation"):
        np.testing.assert_array_equal([getattr(own, name) for own in told], fit.history[name])
    assert np.isfinite(told[-1].rate)
    assert told[-1].steps > 0


def test_finished_stage_says_validation_rate_and_solver_steps(capfd: pytest.CaptureFixture[str]) -> None:
    steps = fitted().history["steps"].iloc[-1]
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("derivatives: ")
    assert "solver steps" not in first
    for part in ("single shooting: 12 steps, loss ", ", validation ", ", rate ", f", {steps:,} solver steps, "):
        assert part in second


def test_tensorboard_reads_back_the_history(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = ude.fitting.TensorBoard(tmp_path / "logs")
    fit = fitted(callback=board, progress=False)
    board.close()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    history = fit.history.reset_index(names="row")
    for stage, own in history.groupby("stage"):
        written = events.Scalars(f"{stage}/loss")
        assert [event.step for event in written] == (own["row"] + 1).tolist()
        assert [event.value for event in written] == pytest.approx(own["loss"].tolist(), rel=1e-6)
    looked = history["validation"].dropna()
    assert [event.value for event in events.Scalars("single shooting/validation")] == pytest.approx(looked.tolist())
    assert "derivatives/validation" not in events.Tags()["scalars"]
    assert len(events.Scalars("parameters/k")) == len(history)


def test_writer_stays_in_its_process(tmp_path: Path) -> None:
    board = ude.fitting.TensorBoard(tmp_path)
    fitted(callback=board, progress=False)
    again = pickle.loads(pickle.dumps(board))
    assert again.directory == tmp_path
    assert again._writer is None
    board.close()


def test_missing_tensorboard_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendMissing, match=r"TensorBoard needs tensorboard.*pip install 'ude\[tensorboard\]'"):
        ude.fitting.TensorBoard("logs")
