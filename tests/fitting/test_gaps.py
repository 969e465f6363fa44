"""Fits to data with gaps: what they recover, and that errors, plots and folders do as if the gaps were not there."""

from __future__ import annotations

import numpy as np
import pytest

import ude
from ude.fitting import Dataset, FitOptions, fit, load_fit

TRUTH = dict(a=1.3, b=0.9, c=0.8, d=1.8)
SHORT = FitOptions(derivative_iterations=(20, 20), continuity=(1.0,), multiple_iterations=4, single_iterations=(2, 3))


def with_gaps(data: Dataset, share: float, seed: int = 0) -> Dataset:
    g = np.random.default_rng(seed)
    runs = [np.where(g.random(tr.u.shape) < share, np.nan, tr.u) for tr in data.trajectories]
    return Dataset.from_arrays([tr.t for tr in data.trajectories], runs, data.states)


def predator_prey() -> ude.UDE:
    return ude.UDE(["dx/dt = a*x - b*x*y", "dy/dt = c*x*y - d*y"], fit="a, b, c, d")


def test_parameters_are_recovered_with_three_numbers_of_ten_missing(lotka_volterra_data):
    data = with_gaps(lotka_volterra_data(noise=0.0), 0.3)
    assert sum(data.counts().values()) < 0.75 * 62
    result = fit(predator_prey(), data, holdout=0, progress=False)
    for name, value in TRUTH.items():
        assert result.model.values()[name] == pytest.approx(value, rel=5e-3)
    np.testing.assert_allclose(result.u0, [lotka_volterra_data(noise=0.0).trajectories[0].u[0]], rtol=5e-3)


def test_a_state_seen_at_every_sixth_time_is_enough(lotka_volterra_data):
    full = lotka_volterra_data(noise=0.0, points=31, end=6.0)
    u = full.trajectories[0].u.copy()
    u[np.arange(31) % 6 > 0, 1] = np.nan  # y every 1.2, as in scenario 2 of the paper
    model = ude.UDE(["dx/dt = 1.3*x - 0.9*x*y", "dy/dt = 0.8*x*y - d*y"], fit="d")
    result = fit(model, Dataset.from_arrays(full.trajectories[0].t, u, "x, y"), holdout=0, progress=False)
    assert result.model.values()["d"] == pytest.approx(1.8, rel=2e-3)
    np.testing.assert_allclose(result.predict()[0], full.trajectories[0].u, atol=0.01)


def test_errors_are_those_of_the_numbers_that_were_measured(lotka_volterra_data):
    data = with_gaps(lotka_volterra_data(noise=0.05), 0.4, seed=3)
    result = fit(predator_prey(), data, holdout=6, progress=False, options=SHORT)
    for part in (result.train, result.held_out):
        times = [float(part.trajectories[0].t[0]), *part.trajectories[0].t]
        predicted = result.predict(times)[0][1:] if part is result.train else result.predict()[0][-6:]
        wrong = predicted - part.trajectories[0].u
        np.testing.assert_allclose(list(result.rmse(part).values()), np.sqrt(np.nanmean(wrong**2, axis=0)), rtol=1e-4)
    result.plot()


def test_a_fit_to_gaps_is_loaded_as_it_was_saved(lotka_volterra_data, tmp_path):
    data = with_gaps(lotka_volterra_data(noise=0.02), 0.3, seed=1)
    result = fit(predator_prey(), data, holdout=0.25, progress=False, options=SHORT)
    loaded = load_fit(result.save(tmp_path))
    np.testing.assert_array_equal(loaded.train.trajectories[0].u, result.train.trajectories[0].u)
    assert loaded.held_out.digest == result.held_out.digest
    assert loaded.rmse() == result.rmse()


def test_twenty_runs_of_different_length_with_gaps_are_one_fit():
    g = np.random.default_rng(0)
    times, runs = [], []
    for _ in range(20):
        t = np.sort(g.uniform(0.0, g.uniform(2.0, 6.0), int(g.integers(5, 25))))
        x0, y0 = g.uniform(0.5, 3.0, size=2)
        # x' = -0.7 x, y' = 0.7 x - 0.3 y
        x = x0 * np.exp(-0.7 * (t - t[0]))
        y = (y0 + 0.7 / 0.4 * x0) * np.exp(-0.3 * (t - t[0])) - 0.7 / 0.4 * x
        u = np.stack([x, y], -1) + 0.01 * g.normal(size=(len(t), 2))
        u[g.random(u.shape) < 0.3] = np.nan
        times.append(t)
        runs.append(u)
    model = ude.UDE(["dx/dt = -k*x", "dy/dt = k*x - m*y"], fit="k, m")
    result = fit(model, Dataset.from_arrays(times, runs, "x, y"), holdout=0, progress=False)
    assert result.model.values()["k"] == pytest.approx(0.7, rel=0.02)
    assert result.model.values()["m"] == pytest.approx(0.3, rel=0.03)
    assert max(result.rmse().values()) < 0.012
