"""The progress bar: silent when told, plain lines in a pipe, stage and loss on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ude.progress import ProgressBar


def run(bar: ProgressBar, steps: int = 3) -> None:
    with bar, bar.stage("single shooting", total=10) as stage:
        for i in range(steps):
            stage.advance(loss=1.0 / (i + 1))


def test_nothing_is_printed_when_disabled(capfd):
    run(ProgressBar(enabled=False))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_pipe_gets_one_plain_line_a_stage(capfd):
    run(ProgressBar(enabled=True))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("single shooting: 3 steps, loss 0.3333, ")


def test_a_terminal_shows_stage_steps_and_loss():
    out = io.StringIO()
    run(ProgressBar(console=Console(file=out, force_terminal=True, width=120)))
    last = out.getvalue().split("\n")[-2]
    assert "single shooting" in last
    assert "3/3" in last  # stopped early, hence finished
    assert "loss 0.3333" in last


def test_detail_stands_beside_the_loss_until_there_is_another():
    out = io.StringIO()
    with ProgressBar(console=Console(file=out, width=120)) as bar, bar.stage("fit") as stage:
        stage.advance(loss=2.0, detail="rate 0.1")
        stage.advance(loss=1.0)
    assert out.getvalue().startswith("fit: 2 steps, loss 1, rate 0.1, ")


def test_interruption_is_said_and_passed_on():
    out = io.StringIO()
    bar = ProgressBar(console=Console(file=out, width=120))

    def interrupted() -> None:
        with bar, bar.stage("derivatives") as stage:
            stage.advance(loss=2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.getvalue() == "derivatives: 1 steps, loss 2, interrupted\n"
