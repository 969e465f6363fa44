"""Smoothing against functions whose values, derivatives and noise are known."""

from __future__ import annotations

import numpy as np
import pytest

from ude import datasets
from ude.fitting.data.dataset import Dataset
from ude.fitting.smoothing.smooth import LONGEST_GAUSSIAN_PROCESS, smooth

SEEDS = range(4)


def wave(t):
    return np.sin(t) + 0.5 * np.cos(2.3 * t)


def wave_slope(t):
    return np.cos(t) - 1.15 * np.sin(2.3 * t)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def noisy_wave(n: int, noise: float, seed: int) -> Dataset:
    t = np.linspace(0.0, 10.0, n)
    return Dataset.from_arrays(t, wave(t) + noise * np.random.default_rng(seed).normal(size=n), "x")


def test_clean_data_are_interpolated_with_their_derivative():
    smoothing = smooth(noisy_wave(40, 0.0, 0))
    t = np.linspace(0.0, 10.0, 301)
    u, du = smoothing(0, t)
    assert u.shape == du.shape == (301, 1)
    assert rms(u[:, 0] - wave(t)) < 1e-4
    assert rms(du[:, 0] - wave_slope(t)) < 1e-3
    assert smoothing.noise[0] < 1e-4


@pytest.mark.parametrize("n", [40, LONGEST_GAUSSIAN_PROCESS + 50])
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_noise_level_is_estimated_and_smoothed_away(n, noise):
    t = np.linspace(0.0, 10.0, 301)
    smoothings = [smooth(noisy_wave(n, noise, seed)) for seed in SEEDS]
    levels = [s.noise[0] for s in smoothings]
    assert 0.8 * noise < np.mean(levels) < 1.2 * noise
    for s in smoothings:
        u, du = s(0, t)
        assert rms(u[:, 0] - wave(t)) < 0.75 * noise
        assert rms(du[:, 0] - wave_slope(t)) < 0.35 * rms(wave_slope(t)) * max(noise / 0.1, 0.2)


@pytest.mark.parametrize("seed", SEEDS)
def test_derivative_is_that_of_the_curve(seed):
    for positive in ([False], [True]):
        t = np.linspace(0.0, 5.0, 30)
        g = np.random.default_rng(seed)
        data = Dataset.from_arrays(t, np.exp(wave(t)) * (1.0 + 0.05 * g.normal(size=30)), "x")
        smoothing = smooth(data, positive)
        s, h = np.linspace(0.1, 4.9, 50), 1e-5
        difference = (smoothing(0, s + h)[0] - smoothing(0, s - h)[0]) / (2 * h)
        np.testing.assert_allclose(smoothing(0, s)[1], difference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positive", [False, True])
def test_slopes_are_off_by_what_their_variance_says(positive):
    """Over 20 data sets and all times, errors over their standard deviations have a size near one."""
    t, s = np.linspace(0.0, 10.0, 60), np.linspace(0.5, 9.5, 50)
    ratios = []
    for seed in range(20):
        noise = 0.03 * np.random.default_rng(seed).normal(size=60)
        u = np.exp(wave(t) + noise) if positive else wave(t) + noise
        smoothing = smooth(Dataset.from_arrays(t, u, "x"), [positive])
        truth = np.exp(wave(s)) * wave_slope(s) if positive else wave_slope(s)
        ratios.append((smoothing(0, s)[1][:, 0] - truth) / np.sqrt(smoothing.along(0, s)[2][:, 0]))
    assert 0.7 < rms(np.concatenate(ratios)) < 1.4


def test_splines_say_nothing_of_the_error_of_their_slopes():
    smoothing = smooth(noisy_wave(LONGEST_GAUSSIAN_PROCESS + 50, 0.1, 0))
    assert np.isnan(smoothing.along(0, [1.0, 2.0])[2]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_positive_states_have_a_positive_smooth(seed):
    t = np.linspace(0.0, 12.0, 25)
    u = np.exp(3.0 * np.sin(t)) * np.exp(0.2 * np.random.default_rng(seed).normal(size=25))
    s = np.linspace(0.0, 12.0, 400)
    assert smooth(Dataset.from_arrays(t, u, "x"), [True])(0, s)[0].min() > 0


def test_relative_noise_is_read_in_log_and_absolute_noise_in_natural_units():
    t = np.linspace(0.0, 10.0, 60)
    truth = np.exp(1.5 * np.sin(t))
    for seed in SEEDS:
        z = np.random.default_rng(seed).normal(size=60)
        relative = smooth(Dataset.from_arrays(t, truth * np.exp(0.1 * z), "x"), [True])
        absolute = smooth(Dataset.from_arrays(t, truth + 0.02 * z, "x"), [True])
        assert rms((relative(0, t)[0][:, 0] - truth) / truth) < 0.07
        assert rms(absolute(0, t)[0][:, 0] - truth) < 0.016
        np.testing.assert_allclose(absolute.noise[0], 0.02, rtol=0.25)


def test_time_unit_and_state_unit_scale_through():
    data = noisy_wave(40, 0.05, 1)
    run = data.trajectories[0]
    scaled = Dataset.from_arrays(1e4 + 365.0 * run.t, 1e3 * run.u, "x")
    u, du = smooth(data)(0, run.t)
    u2, du2 = smooth(scaled)(0, scaled.trajectories[0].t)
    np.testing.assert_allclose(u2, 1e3 * u, atol=2.0)
    np.testing.assert_allclose(du2, 1e3 / 365.0 * du, atol=2.0 * 5 / 365)


def test_trajectories_share_the_noise_level_but_not_their_course():
    t = np.linspace(0.0, 5.0, 20)
    levels = []
    for seed in SEEDS:
        g = np.random.default_rng(seed)
        runs = [np.sin(t) + 0.05 * g.normal(size=20), 3.0 + np.cos(t) + 0.05 * g.normal(size=20)]
        smoothing = smooth(Dataset.from_arrays([t, t], [r[:, None] for r in runs], "x"))
        assert rms(smoothing(0, t)[0][:, 0] - np.sin(t)) < 0.05
        assert rms(smoothing(1, t)[0][:, 0] - 3.0 - np.cos(t)) < 0.05
        levels.append(smoothing.noise[0])
    np.testing.assert_allclose(np.mean(levels), 0.05, rtol=0.2)


@pytest.mark.parametrize("value", [0.0, 4.0])
def test_constant_state_is_a_constant_without_noise(value):
    smoothing = smooth(Dataset.from_arrays([0.0, 1.0, 3.0], np.full(3, value), "x"))
    u, du = smoothing(0, [0.5, 2.0])
    np.testing.assert_array_equal(u[:, 0], value)
    np.testing.assert_array_equal(du[:, 0], 0.0)
    assert smoothing.noise[0] == 0.0


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("positive", [False, True])
def test_a_few_points_are_enough(n, positive):
    t = np.linspace(0.0, 1.0, n)
    u, du = smooth(Dataset.from_arrays(t, 1.0 + 2.0 * t, "x"), [positive])(0, t)
    np.testing.assert_allclose(u[:, 0], 1.0 + 2.0 * t, rtol=0.2)
    assert (du > 0).all()


def test_short_run_beside_a_long_one_gets_a_line():
    t = np.linspace(0.0, 10.0, LONGEST_GAUSSIAN_PROCESS + 1)
    short = np.array([0.0, 2.0, 4.0])
    smoothing = smooth(Dataset.from_arrays([t, short], [wave(t)[:, None], 1.0 + short[:, None]], "x"))
    u, du = smoothing(1, [1.0, 3.0])
    np.testing.assert_allclose(u[:, 0], [2.0, 4.0], atol=1e-9)
    np.testing.assert_allclose(du[:, 0], 1.0, atol=1e-9)


def test_hudson_bay_noise_is_a_few_thousand_pelts():
    # The residuals of Lotka-Volterra fitted by least squares are 4.3 (hare) and 3.2 (lynx) thousand pelts.
    noise = smooth(datasets.load("lynx_hare"), [True, True]).noise
    assert 2.5 < noise[0] < 5.5
    assert 1.5 < noise[1] < 4.5


# ---------------------------------------------------------------- gaps


@pytest.mark.parametrize("seed", SEEDS)
def test_gaps_are_bridged_as_if_the_state_had_its_own_times(seed):
    g = np.random.default_rng(seed)
    t = np.linspace(0.0, 10.0, 60)
    u = np.stack([wave(t), 2.0 + np.cos(t)], -1) + 0.02 * g.normal(size=(60, 2))
    u[g.random(u.shape) < 0.3] = np.nan
    smoothing = smooth(Dataset.from_arrays(t, u, "x, y"))
    for i in range(2):
        seen = np.isfinite(u[:, i])
        alone = smooth(Dataset.from_arrays(t[seen], u[seen, i], "x"))
        for got, expected in zip(smoothing(0, t), alone(0, t), strict=True):
            np.testing.assert_array_equal(got[:, i], expected[:, 0])
        assert smoothing.noise[i] == alone.noise[0]
        assert 0.01 < smoothing.noise[i] < 0.03
    assert rms(smoothing(0, t)[0][:, 0] - wave(t)) < 0.04


def test_a_run_without_a_state_gets_what_is_usual_and_says_that_nothing_was_measured():
    t = np.linspace(0.0, 5.0, 20)
    full = np.stack([np.sin(t), 3.0 + np.cos(t)], -1)
    part = full.copy()
    part[:, 1] = np.nan
    smoothing = smooth(Dataset.from_arrays([t, t[4:]], [full, part[4:]], "x, y"))
    u, du = smoothing(1, t)
    np.testing.assert_allclose(u[:, 1], full[:, 1].mean())
    assert not du[:, 1].any()
    assert smoothing.inside(0, [0.0, 2.0, 5.0, 5.1]).tolist() == [[True, True]] * 3 + [[False, False]]
    assert smoothing.inside(1, t).tolist() == [[bool(s >= t[4]), False] for s in t]


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_single_value_in_a_run_is_a_constant_there(n):
    t = np.linspace(0.0, 4.0, LONGEST_GAUSSIAN_PROCESS + 10 if n == 6 else n + 1)
    runs = [np.stack([np.sin(t), t], -1), np.stack([np.sin(t), np.full(len(t), np.nan)], -1)]
    runs[1][0, 1] = 7.0
    u, _ = smooth(Dataset.from_arrays([t, t], runs, "x, y"))(1, t)
    np.testing.assert_allclose(u[0, 1], 7.0, rtol=1e-6)
