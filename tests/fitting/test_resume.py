"""A fit that is interrupted goes on where it was, and ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ude
from ude.errors import InputError
from ude.fitting import FitOptions, fit
from ude.fitting.evaluation_log import EvaluationLog, Meter
from ude.fitting.storage.fit_folder import model_identity

PROGRAM = """
import sys
import numpy as np
import ude

def case():
    t = np.linspace(0.0, 3.0, 13)
    x = 0.5 + 0.4 * np.cos(1.7 * t)
    y = 2.0 + 1.5 * np.sin(1.7 * t)
    data = ude.Dataset.from_arrays(t, np.stack([x, y], -1), "x, y")
    network = ude.MLP("U1, U2", inputs="x, y", width=8)
    model = ude.UDE(["dx/dt = 1.3*x - U1(x, y)", "dy/dt = U2(x, y) - d*y"], fit="d=1.5", unknown=network)
    return model, data

def run(out):
    model, data = case()
    stages = [
        ude.stages.DerivativeMatching((ude.optimizers.Adam(60), ude.optimizers.LBFGS(40))),
        ude.stages.MultipleShooting(continuity=(1.0, 10.0), optimizers=(ude.optimizers.LBFGS(12),)),
        ude.stages.SingleShooting((ude.optimizers.Adam(15, weight_decay=1e-3), ude.optimizers.LBFGS(12))),
    ]
    options = ude.FitOptions(checkpoint_seconds=0.2)
    how = dict(holdout=0, validation=2, noise=ude.noise.Gaussian(), progress=False)
    return ude.fit(model, data, stages=stages, out=out, options=options, **how)

if __name__ == "__main__":
    run(sys.argv[1])
"""


def numbers(result: ude.Fit) -> dict[str, np.ndarray]:
    state = {name: value.numpy() for name, value in result.model.state_dict().items()}
    sigma = [model.sigma for model in result.noise_models.values()]
    columns = ["iteration", "loss", "validation", "rate", "evaluations", "steps"]
    return {**state, "u0": result.u0, "sigma": np.array(sigma), "history": result.history[columns].to_numpy()}


def evaluations_in(folder: Path) -> int:
    """Bytes of evaluations, with a large number for each stage that has ended."""
    ended = len(list(folder.glob("stage-*.json")))
    return 10**9 * ended + sum(path.stat().st_size for path in folder.glob("stage-*.log") if path.exists())


def kill_and_go_on(tmp_path: Path, kills: int, seed: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    namespace: dict = {"__name__": "program"}
    exec(compile(PROGRAM, "program", "exec"), namespace)
    whole = numbers(namespace["run"](tmp_path / "whole"))
    chance = random.Random(seed)
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(ude.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, str(program), str(folder)], env=environment)
        before = evaluations_in(folder) if folder.exists() else 0
        while process.poll() is None and (not folder.exists() or evaluations_in(folder) <= before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.6))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= min(kills, 2)
    subprocess.run([sys.executable, str(program), str(folder)], env=environment, check=True)
    resumed = numbers(namespace["run"](folder))  # once more, all from the folder
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_fit_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(tmp_path):
    kill_and_go_on(tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_a_fit_killed_at_ten_random_moments_ends_with_the_bits_of_one_that_was_not(tmp_path):
    kill_and_go_on(tmp_path, kills=10, seed=1)


# ---------------------------------------------------------------- in one process

SHORT = FitOptions(derivative_iterations=(10, 10), continuity=(1.0,), multiple_iterations=4, single_iterations=(3, 3))


def interrupted_after(number: int):
    """A callback that presses Ctrl-C at an iteration of the fit."""
    seen = []

    def callback(iteration):
        seen.append(iteration)
        if len(seen) == number:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("number", [1, 12, 22, 27])
def test_ctrl_c_and_the_same_call_again_give_the_whole_fit(lotka_volterra_data, half_known, tmp_path, number):
    data = lotka_volterra_data(points=11)
    arguments = dict(holdout=0, progress=False, options=SHORT)
    whole = fit(half_known, data, **arguments)
    first = fit(half_known, data, **arguments, out=tmp_path, callback=interrupted_after(number))
    assert first.interrupted
    assert len(first.history) == number
    assert ude.fitting.load_fit(tmp_path).interrupted  # what there was is there to be used
    again = fit(half_known, data, **arguments, out=tmp_path)
    assert not again.interrupted
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    np.testing.assert_array_equal(whole.u0, again.u0)
    np.testing.assert_array_equal(whole.history.loss, again.history.loss)
    assert not ude.fitting.load_fit(tmp_path).interrupted


def test_least_squares_goes_on_too(lotka_volterra_data, tmp_path):
    data = lotka_volterra_data(points=11)
    model = ude.UDE(["dx/dt = a*x - b*x*y", "dy/dt = c*x*y - d*y"], fit="a, b, c, d")
    arguments = dict(holdout=0, progress=False, stages=["derivatives", "single shooting"])
    whole = fit(model, data, **arguments)
    number = len(whole.history) - 2
    assert fit(model, data, **arguments, out=tmp_path, callback=interrupted_after(number)).interrupted
    again = fit(model, data, **arguments, out=tmp_path)
    assert again.model.values() == whole.model.values()
    np.testing.assert_array_equal(whole.u0, again.u0)


def test_a_finished_run_is_read_and_not_run(lotka_volterra_data, half_known, tmp_path):
    data = lotka_volterra_data(points=11)
    arguments = dict(holdout=0, progress=False, options=SHORT, out=tmp_path)
    first = fit(half_known, data, **arguments)
    told = []
    second = fit(half_known, data, **arguments, callback=told.append)
    assert told == []
    assert torch.equal(first.model(torch.ones(2)), second.model(torch.ones(2)))
    assert first.history.equals(second.history)


def test_a_folder_of_another_fit_is_refused(lotka_volterra_data, half_known, tmp_path):
    arguments = dict(holdout=0, progress=False, options=SHORT, out=tmp_path)
    fit(half_known, lotka_volterra_data(points=11), **arguments)
    with pytest.raises(InputError, match=r"holds the run of another fit: .* got other seed\. Choose another"):
        fit(half_known, lotka_volterra_data(points=11), **arguments, seed=1)
    with pytest.raises(InputError, match=r"got other data\."):
        fit(half_known, lotka_volterra_data(points=11, seed=1), **arguments)


def test_a_run_folder_that_does_not_read_is_refused(lotka_volterra_data, half_known, tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json has no checksum in its first line: .* run again in another folder"):
        fit(half_known, lotka_volterra_data(points=11), progress=False, options=SHORT, out=tmp_path)


# ---------------------------------------------------------------- the log


def test_recorded_numbers_are_not_computed_again(tmp_path):
    path = tmp_path / "log"
    with EvaluationLog(Meter(), path) as log:
        log.meter.count(calls=7, steps=3, solves=2, failed=1)
        first = [log(lambda k=k: np.arange(k) / 3.0) for k in range(4)]
    with EvaluationLog(Meter(), path) as log:
        assert log.replaying
        again = [log(lambda: pytest.fail("computed")) for _ in range(4)]
        assert not log.replaying
        assert (log.meter.calls, log.meter.steps, log.meter.solves, log.meter.failed) == (7, 3, 2, 1)
        assert log(lambda: np.array([5.0])).tolist() == [5.0]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cut", [1, 20, 47, 48, 60])
def test_a_record_that_was_cut_off_is_computed_again(tmp_path, cut):
    path = tmp_path / "log"
    with EvaluationLog(Meter(), path) as log:
        log(lambda: np.array([1.0, 2.0]))
        log(lambda: np.array([3.0, 4.0]))
    content = path.read_bytes()
    assert len(content) == 2 * 64
    path.write_bytes(content[: 64 + 64 - cut])
    with EvaluationLog(Meter(), path) as log:
        assert log(lambda: np.array([-1.0])).tolist() == [1.0, 2.0]
        assert log(lambda: np.array([-1.0])).tolist() == [-1.0]
    with EvaluationLog(Meter(), path) as log:
        assert log(lambda: np.array([])).tolist() == [1.0, 2.0]
        assert log(lambda: np.array([])).tolist() == [-1.0]


def test_run_json_says_what_was_asked_for(lotka_volterra_data, half_known, tmp_path):
    fit(half_known, lotka_volterra_data(points=11), progress=False, options=SHORT, out=tmp_path, stages="derivatives")
    asked = json.loads((tmp_path / "run.json").read_text())
    assert asked["seed"] == 0
    assert asked["stages"] == ["DerivativeMatching(optimizers=None)"]


def test_a_run_of_another_function_of_the_same_name_is_another_run():
    def identity(power, exponent=1.0, weight=2.0):
        factor = torch.tensor(weight, dtype=torch.float64)
        source = f"def rates(u, p, t): return -p.k * factor * u**{power} * exponent"
        names = {"factor": factor, "exponent": exponent}
        exec(source, names)
        return model_identity(ude.FunctionModel(names["rates"], "x", {"k": 1.0}, fit="k"))

    assert identity(2) == identity(2)
    assert len({identity(2), identity(3), identity(2, exponent=0.5), identity(2, weight=3.0)}) == 4


def test_a_run_of_another_module_of_the_same_weights_is_another_run():
    def identity(activation):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(1, 3), activation, torch.nn.Linear(3, 1)).double()
        return model_identity(ude.UDE("dx/dt = U(x)", unknown=ude.Neural(module, "x", "U")))

    assert identity(torch.nn.Tanh()) == identity(torch.nn.Tanh()) != identity(torch.nn.Sigmoid())
