"""Intervals, bands and many starts: against closed forms of linear regression, and what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import ude
from ude.errors import InputError
from ude.fitting import Dataset

LINE = "dx/dt = k"


def line_fit(seed: int = 0, noise: float = 0.3, points: int = 15) -> ude.Fit:
    """x = 1 + 2 t; the start is known."""
    t = np.linspace(0.0, 2.0, points)
    x = 1.0 + 2.0 * t + noise * np.random.default_rng(seed).normal(size=points)
    data = Dataset.from_arrays(t, x[:, None], "x")
    model = ude.UDE([LINE], fit="k=1")
    return ude.fit(model, data, holdout=0, u0=[1.0], progress=False, stages="single shooting")


def slope_error(result: ude.Fit) -> float:
    """The textbook's standard error of a slope through a known point."""
    t, x = result.train.trajectories[0].t, result.train.trajectories[0].u[:, 0]
    k = (t * (x - 1)).sum() / (t**2).sum()
    variance = ((x - 1 - k * t) ** 2).sum() / (len(t) - 1)
    return float(np.sqrt(variance / (t**2).sum()))


def test_fisher_interval_is_that_of_linear_regression():
    result = line_fit()
    found = ude.uncertainty.fisher_intervals(result, 0.9)
    half = stats.norm.ppf(0.95) * slope_error(result)
    assert found.upper["k"] - found.estimates["k"] == pytest.approx(half, rel=1e-5)
    assert found.estimates["k"] - found.lower["k"] == pytest.approx(half, rel=1e-5)
    assert found.covariance[0, 0] == pytest.approx(slope_error(result) ** 2, rel=1e-5)


def test_profile_interval_of_a_linear_model_is_the_same():
    result = line_fit()
    fisher, profile = ude.uncertainty.fisher_intervals(result), ude.uncertainty.profile_intervals(result)
    assert profile.estimates["k"] == pytest.approx(fisher.estimates["k"], rel=1e-6)
    assert profile.lower["k"] == pytest.approx(fisher.lower["k"], rel=1e-3)
    assert profile.upper["k"] == pytest.approx(fisher.upper["k"], rel=1e-3)


def test_initial_states_that_were_fitted_widen_the_interval_as_in_regression():
    t = np.linspace(0.0, 2.0, 15)
    x = 1.0 + 2.0 * t + 0.3 * np.random.default_rng(1).normal(size=15)
    data = Dataset.from_arrays(t, x[:, None], "x")
    result = ude.fit(
        ude.UDE([LINE], fit="k=1"), data, holdout=0, progress=False, stages="single shooting", positive=False
    )
    expected = stats.linregress(t, x)
    found = ude.uncertainty.fisher_intervals(result)
    assert found.estimates["k"] == pytest.approx(expected.slope, rel=1e-5)
    half = stats.norm.ppf(0.975) * expected.stderr
    assert found.upper["k"] - found.estimates["k"] == pytest.approx(half, rel=1e-4)
    profile = ude.uncertainty.profile_intervals(result, ["k"])
    assert profile.upper["k"] - profile.lower["k"] == pytest.approx(2 * half, rel=1e-3)


def test_profile_of_a_decay_ends_where_the_sum_of_squares_says_and_is_not_symmetric():
    t = np.array([0.0, 1.0, 2.0, 4.0])
    x = np.exp(-1.5 * t) + np.array([0.0, 0.1, -0.05, 0.08])
    data = Dataset.from_arrays(t, x[:, None], "x")
    model = ude.UDE(["dx/dt = -k*x"], fit="k=1")
    result = ude.fit(model, data, holdout=0, u0=[1.0], progress=False, stages="single shooting")
    found = ude.uncertainty.profile_intervals(result)
    squares = lambda k: np.sum((np.exp(-k * t) - x) ** 2)  # noqa: E731
    variance = squares(found.estimates["k"]) / 3
    for end in (found.lower["k"], found.upper["k"]):
        grown = (squares(end) - squares(found.estimates["k"])) / variance
        assert grown == pytest.approx(stats.chi2.ppf(0.95, 1), rel=1e-2)
    above, below = found.upper["k"] - found.estimates["k"], found.estimates["k"] - found.lower["k"]
    assert above > 1.2 * below


def test_parameters_that_the_data_leave_open_are_named():
    data = line_fit().data
    model = ude.UDE(["dx/dt = a*b"], fit="a=1, b=1")
    result = ude.fit(model, data, holdout=0, u0=[1.0], progress=False, stages="single shooting")
    with pytest.raises(InputError, match=r"the data do not determine a, b\. Fix one of them, or give a prior"):
        ude.uncertainty.fisher_intervals(result)


def test_unusable_intervals_are_refused(lotka_volterra_data, half_known):
    result = line_fit()
    with pytest.raises(InputError, match=r"level must be a number between 0 and 1: 1.5"):
        ude.uncertainty.fisher_intervals(result, 1.5)
    with pytest.raises(InputError, match=r"z was not fitted: expected some of k"):
        ude.uncertainty.profile_intervals(result, ["z"])
    network = ude.fit(half_known, lotka_volterra_data(points=11), progress=False, stages=[])
    with pytest.raises(
        InputError, match=r"with networks are not those of few parameters\. Use ude.uncertainty.bootstrap\(fit\)"
    ):
        ude.uncertainty.fisher_intervals(network)
    heavy = ude.fit(
        ude.UDE([LINE], fit="k=1"),
        result.data,
        holdout=0,
        u0=[1.0],
        progress=False,
        stages="single shooting",
        noise=ude.noise.StudentT(),
    )
    with pytest.raises(InputError, match=r"not for this noise: expected ude.noise.Gaussian\(\) or .*, got StudentT"):
        ude.uncertainty.profile_intervals(heavy)


# ---------------------------------------------------------------- many fits


def oscillator() -> tuple[ude.UDE, Dataset]:
    t = np.linspace(0.0, 12.0, 41)
    data = Dataset.from_arrays(t, np.stack([np.cos(2 * t), -2 * np.sin(2 * t)], -1), "x, v")
    return ude.UDE(["dx/dt = v", "dv/dt = -k*x"], fit="k=1 in [0.2, 40]"), data


ALONE = dict(holdout=0, u0=[1.0, 0.0], progress=False, stages="single shooting")


def test_the_best_of_many_starts_finds_a_frequency_that_one_start_does_not():
    model, data = oscillator()
    found = ude.multistart(model, data, starts=8, processes=1, seed=3, **ALONE)
    assert (np.diff(found.losses) >= 0).all()
    assert found.best.model.values()["k"] == pytest.approx(4.0, rel=1e-5)
    assert max(abs(k - 4.0) for k in found.values()["k"]) > 0.5  # some start did not
    assert model.parameters_table["k"].value == 1.0


@pytest.mark.slow
def test_processes_change_nothing():
    model, data = oscillator()
    one, two = (ude.multistart(model, data, starts=3, processes=n, seed=3, **ALONE) for n in (1, 2))
    np.testing.assert_array_equal(one.losses, two.losses)
    np.testing.assert_array_equal(one.values()["k"], two.values()["k"])


def test_hopeless_starts_end_early():
    t = np.linspace(0.0, 2.0, 15)
    data = Dataset.from_arrays(t, (1.0 + 2.0 * t)[:, None], "x")
    model = ude.UDE([LINE], fit="k=1")
    stages = ude.stages.SingleShooting((ude.optimizers.Adam(60, learning_rate=1e-4),))
    how = dict(holdout=0, u0=[1.0], progress=False, stages=stages, starts=3, processes=1, ranges={"k": (-4.0, 3.0)})
    lengths = [len(fit.history) for fit in ude.multistart(model, data, hopeless=1.5, patience=5, **how).fits]
    assert min(lengths) == 5
    assert max(lengths) > 5


def test_bootstrap_interval_is_about_that_of_linear_regression():
    result = line_fit(points=40)
    found = ude.uncertainty.bootstrap(result, samples=40, block=1, processes=1, u0=[1.0], progress=False)
    assert np.std(found.values()["k"]) == pytest.approx(slope_error(result), rel=0.35)
    low, high = found.intervals(0.95)["k"]
    assert low < result.model.values()["k"] < high
    ((lower, median, upper),) = found.band([0.5, 2.0])
    assert lower.shape == (2, 1)
    assert (lower < median).all()
    assert (median < upper).all()
    # a line through a known point: its band opens with t
    assert (upper - lower)[1, 0] == pytest.approx(4 * (upper - lower)[0, 0], rel=1e-3)


def test_bootstrap_of_several_runs_draws_runs():
    t = np.linspace(0.0, 2.0, 9)
    rates = [1.0, 1.2, 1.4, 1.6]
    data = Dataset.from_arrays([t] * 4, [np.exp(-k * t)[:, None] for k in rates], "x")
    model = ude.UDE(["dx/dt = -k*x"], fit="k=1")
    result = ude.fit(model, data, holdout=0, progress=False, stages="single shooting")
    found = ude.uncertainty.bootstrap(result, samples=6, processes=1, progress=False)
    values = found.values()["k"]
    assert values.min() > 0.99
    assert values.max() < 1.61
    assert np.ptp(values) > 0.05
    assert [len(fit.train) for fit in found.fits] == [4] * 6


def test_members_of_an_ensemble_differ_in_their_networks(lotka_volterra_data, half_known):
    options = ude.FitOptions(derivative_iterations=(20, 20))
    data = lotka_volterra_data(points=11)
    found = ude.uncertainty.fit_ensemble(
        half_known, data, members=2, processes=1, progress=False, stages="derivatives", options=options
    )
    first, second = (fit.model.terms["U1_U2"].module[0].weight.detach().numpy() for fit in found.fits)
    assert not np.array_equal(first, second)
    assert [fit.seed for fit in found.fits] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "claim"),
    [
        ({"starts": 0}, r"starts must be a whole number, at least 1: 0"),
        ({"ranges": {"z": (0, 1)}}, r"ranges names 'z': expected fitted parameters of the model"),
        ({"ranges": {"k": (2, 1)}}, r"the lowest number of the range of k must be less than the highest: \(2, 1\)"),
    ],
)
def test_unusable_starts_are_refused(arguments, claim):
    model, data = oscillator()
    with pytest.raises(InputError, match=claim):
        ude.multistart(model, data, **arguments, **ALONE)
