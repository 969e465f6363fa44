"""A saved fit is the fit, exactly; damaged or foreign folders give one clear line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import ude
from ude.errors import InputError
from ude.fitting import Dataset, FitOptions, fit, load_fit
from ude.untrusted import JSON, read_json, write_json

SHORT = FitOptions(derivative_iterations=(5, 5), multiple_iterations=2, single_iterations=(0, 2), scale={"x": 0.5})


@pytest.fixture(scope="module")
def trained(lotka_volterra_data) -> ude.Fit:
    model = ude.UDE(
        ["dx/dt = a*x - U1(x, y)", "dy/dt = U2(x, y) - d*y"], fit="a, d=1.8", unknown=ude.MLP("U1, U2", "x, y", width=4)
    )
    return fit(model, lotka_volterra_data(noise=0.01), holdout=5, seed=2, progress=False, options=SHORT)


def test_a_loaded_fit_predicts_the_same_to_the_bit(trained, tmp_path):
    assert trained.save(tmp_path / "a" / "run") == tmp_path / "a" / "run"
    loaded = load_fit(tmp_path / "a" / "run")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name
    np.testing.assert_array_equal(loaded.predict()[0], trained.predict()[0])
    assert loaded.rmse(loaded.held_out) == trained.rmse(trained.held_out)
    assert loaded.model.values() == trained.model.values()


def test_a_loaded_fit_has_all_that_was_saved(trained, tmp_path):
    loaded = load_fit(trained.save(tmp_path))
    for name in ("u0", "positive", "scale", "noise"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(trained, name))
    assert (loaded.seed, loaded.interrupted) == (2, False)
    assert loaded.options == trained.options
    assert loaded.data.digest == trained.data.digest
    assert loaded.train.digest == trained.train.digest
    assert loaded.held_out.digest == trained.held_out.digest
    assert list(loaded.history.stage) == list(trained.history.stage)
    np.testing.assert_allclose(loaded.history.loss, trained.history.loss, rtol=1e-12)
    versions = json.loads((tmp_path / "fit.json").read_text())["versions"]
    assert set(versions) == {"python", "ude", "torch", "numpy"}


@pytest.mark.parametrize("algorithm", [ude.KenCarp4(), ude.AutoTsit5(ude.Rodas5P()), ude.Tsit5()], ids=lambda a: a.name)
def test_the_method_of_the_simulations_is_loaded_as_it_was_saved(trained, tmp_path, algorithm):
    options = replace(trained.options, solver=ude.fitting.SolverOptions(algorithm=algorithm))
    assert load_fit(replace(trained, options=options).save(tmp_path)).options == options


def test_saving_again_replaces_and_leaves_nothing_beside(trained, tmp_path):
    trained.save(tmp_path)
    trained.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit.json", "fit.safetensors", "history.csv"]


def test_a_plain_function_must_be_given_again(tmp_path):
    def rhs(u, p, t):
        return torch.stack([-p.k * u[..., 0]], -1)

    data = Dataset.from_arrays(np.linspace(0, 1, 5), np.exp(-np.linspace(0, 1, 5)), "x")
    result = fit(ude.FunctionModel(rhs, "x", fit="k"), data, holdout=0, progress=False, options=FitOptions())
    result.save(tmp_path)
    with pytest.raises(
        InputError, match=r"the right-hand side of the saved model is a function of your own and must be"
    ):
        load_fit(tmp_path)
    loaded = load_fit(tmp_path, f=rhs)
    assert loaded.held_out is None
    np.testing.assert_array_equal(loaded.predict()[0], result.predict()[0])


def test_an_own_module_must_be_given_again(lotka_volterra_data, tmp_path):
    def network():
        return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))

    model = ude.UDE(["dx/dt = U(x, y)", "dy/dt = -y"], unknown={"U": network()})
    result = fit(model, lotka_volterra_data(), holdout=0, progress=False, stages=["derivatives"], options=SHORT)
    result.save(tmp_path)
    with pytest.raises(InputError, match=r"the network of U is a module of your own and must be given"):
        load_fit(tmp_path)
    loaded = load_fit(tmp_path, modules={"U": network()})
    np.testing.assert_array_equal(loaded.predict([0.0, 0.3])[0], result.predict([0.0, 0.3])[0])


def test_an_empty_folder_holds_no_fit(tmp_path):
    with pytest.raises(InputError, match=r"there is no saved fit in .*: expected fit\.json and fit\.safetensors"):
        load_fit(tmp_path)


def test_a_folder_that_cannot_be_written_is_said(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the fit cannot be written to .*file.*Choose another folder\."):
        trained.save(tmp_path / "file" / "run")


def test_a_later_format_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    description = read_json(tmp_path / "fit.json", {str: JSON})
    write_json(tmp_path / "fit.json", {**description, "format": 99})
    with pytest.raises(InputError, match=r"was written by a later ude: expected format 1, got 99\. Upgrade ude\."):
        load_fit(tmp_path)


@pytest.mark.parametrize("name", ["fit.json", "fit.safetensors"])
def test_a_damaged_file_is_said(trained, tmp_path, name):
    trained.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:100])
    with pytest.raises(InputError, match=rf"{name} (does not match its checksum|has no checksum)"):
        load_fit(tmp_path)


def test_exchanged_data_are_noticed(trained, tmp_path):
    trained.save(tmp_path)
    description = read_json(tmp_path / "fit.json", {str: JSON})
    description["data"]["digest"] = "0" * 64
    write_json(tmp_path / "fit.json", description)
    with pytest.raises(InputError, match=r"is damaged: ValueError: the data are not those that the fit was made from"):
        load_fit(tmp_path)
