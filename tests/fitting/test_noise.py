"""Noise models: densities of SciPy, scales that maximize the likelihood, and errors for data they cannot give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import ude
from ude.errors import DataError, InputError
from ude.fitting.objective.noise import (
    Gaussian,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Poisson,
    RelativeAbsolute,
    StudentT,
    log_likelihood,
    noise_models,
)

MEAN = np.array([0.3, 1.0, 4.5, 20.0])
REAL = np.array([0.1, 1.7, 4.5, 17.0])
COUNTS = np.array([0.0, 2.0, 3.0, 25.0])


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("model", "observed", "log_density"),
    [
        (Gaussian(0.7), REAL, lambda y: stats.norm.logpdf(y, MEAN, 0.7)),
        (LogNormal(0.4), REAL, lambda y: stats.lognorm.logpdf(y, 0.4, scale=MEAN)),
        (
            RelativeAbsolute(0.5, 0.2),
            REAL,
            lambda y: stats.norm.logpdf(y, MEAN, np.sqrt(0.25 + 0.04 * MEAN**2)),
        ),
        (StudentT(0.7, 3.0), REAL, lambda y: stats.t.logpdf(y, 3.0, MEAN, 0.7)),
        (Poisson(), COUNTS, lambda y: stats.poisson.logpmf(y, MEAN)),
        (NegativeBinomial(0.5), COUNTS, lambda y: stats.nbinom.logpmf(y, 2.0, 2.0 / (2.0 + MEAN))),
    ],
    ids=lambda x: type(x).__name__,
)
def test_cost_is_minus_the_log_density_of_scipy(model, observed, log_density):
    cost = model.cost(tensor(MEAN), tensor(observed), {})
    np.testing.assert_allclose(-cost.numpy(), log_density(observed), rtol=1e-12)
    total = log_likelihood({"y": model}, tensor(MEAN)[:, None], tensor(observed)[:, None], torch.ones(4, 1, dtype=bool))
    assert total == pytest.approx(log_density(observed).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("model", "scales"),
    [
        (Gaussian(), [0.7]),
        (LogNormal(), [0.4]),
        (RelativeAbsolute(), [0.5, 0.2]),
        (StudentT(dof=None), [0.7, 3.0]),
        (NegativeBinomial(), [0.5]),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, list) else "",
)
def test_gradients_by_prediction_and_scales_are_right(model, scales):
    observed = tensor(COUNTS) if isinstance(model, NegativeBinomial) else tensor(REAL)
    inputs = [tensor(MEAN), *(tensor(s) for s in scales)]

    def cost(predicted, *values):
        return model.cost(predicted, observed, dict(zip(model.estimated, values, strict=True)))

    assert torch.autograd.gradcheck(cost, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("model", [LogNormal(0.4), Poisson(), NegativeBinomial(0.5)], ids=lambda m: type(m).__name__)
def test_a_mean_below_zero_costs_more_the_further_it_lies_and_has_a_finite_gradient(model):
    predicted = tensor([-3.0, -2.0, -1e-3, 0.0]).requires_grad_()
    cost = model.cost(predicted, tensor([1.0, 1.0, 1.0, 1.0]), {})
    assert torch.isfinite(cost).all()
    assert (cost.diff() < 0).all()
    (gradient,) = torch.autograd.grad(cost.sum(), predicted)
    assert torch.isfinite(gradient).all()
    assert (gradient[:3] < 0).all()


def test_scales_that_minimize_the_likelihood_are_the_closed_forms():
    generator = np.random.default_rng(0)
    mean = generator.uniform(1.0, 5.0, size=(200, 2))
    observed = np.stack([mean[:, 0] + 0.3 * generator.normal(size=200), mean[:, 1] * np.exp(0.1 * mean[:, 0])], -1)
    mask = generator.random((200, 2)) > 0.3
    data = tensor(np.where(mask, observed, np.nan))
    likelihood = Likelihood({"a": Gaussian(), "b": LogNormal()}, data, torch.as_tensor(mask), [1.0, 1.0])
    optimizer = torch.optim.LBFGS(
        [likelihood.logs], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def closure():
        optimizer.zero_grad()
        loss = likelihood(tensor(mean), data, torch.as_tensor(mask))
        loss.backward()
        return loss

    optimizer.step(closure)
    found = likelihood.fitted()
    a = np.sqrt(np.mean((observed - mean)[:, 0][mask[:, 0]] ** 2))
    b = np.sqrt(np.mean(np.log(observed / mean)[:, 1][mask[:, 1]] ** 2))
    assert found["a"].sigma == pytest.approx(a, rel=1e-6)
    assert found["b"].sigma == pytest.approx(b, rel=1e-6)


def test_what_is_given_is_not_estimated():
    assert Gaussian(0.3).estimated == ()
    assert StudentT().estimated == ("scale",)
    assert StudentT(dof=None).estimated == ("scale", "dof")
    assert RelativeAbsolute(relative=0.1).estimated == ("absolute",)
    assert RelativeAbsolute(relative=0.1).filled({"absolute": 2.0}) == RelativeAbsolute(2.0, 0.1)


@pytest.mark.parametrize(
    ("model", "draw"),
    [
        (LogNormal(0.1), lambda g, mean: mean * np.exp(0.1 * g.standard_normal(mean.shape))),
        (RelativeAbsolute(0.5, 0.1), lambda g, mean: mean + np.hypot(0.5, 0.1 * mean) * g.standard_normal(mean.shape)),
        (Poisson(), lambda g, mean: g.poisson(mean).astype(float)),
        (NegativeBinomial(0.05), lambda g, mean: g.negative_binomial(20.0, 20.0 / (20.0 + mean)).astype(float)),
    ],
)
def test_stabilized_data_are_as_noisy_everywhere(model, draw):
    """Standard deviation one, for small and for large means; and the derivative is that of differences."""
    mean = np.array([5.0, 20.0, 100.0, 1000.0])
    drawn = draw(np.random.default_rng(0), np.tile(mean, (20_000, 1)))
    np.testing.assert_allclose(model.stabilized(drawn)[0].std(0), 1.0, rtol=0.06)
    difference = (model.stabilized(mean + 1e-4)[0] - model.stabilized(mean - 1e-4)[0]) / 2e-4
    np.testing.assert_allclose(model.stabilized(mean)[1], difference, rtol=1e-6)


def test_stabilizing_needs_numbers():
    assert np.array_equal(Gaussian(2.0).stabilized(REAL)[0], REAL)
    with pytest.raises(InputError, match="sigma of LogNormal is open. Take the noise models of a fit"):
        LogNormal().stabilized(REAL)


def test_outliers_pull_students_t_less_than_a_gaussian():
    predicted = tensor([0.0]).requires_grad_()
    pulls = [
        float(torch.autograd.grad(model.cost(predicted, tensor([50.0]), {}).sum(), predicted)[0])
        for model in (Gaussian(1.0), StudentT(1.0))
    ]
    assert pulls[0] == pytest.approx(-50.0)
    assert abs(pulls[1]) < 0.2


def test_a_prediction_that_is_not_finite_is_impossible():
    predicted, observed = tensor([[math.nan], [1.0]]), tensor([[1.0], [1.0]])
    assert log_likelihood({"y": Gaussian(1.0)}, predicted, observed, torch.ones(2, 1, dtype=bool)) == -math.inf
    only_second = torch.tensor([[False], [True]])
    assert log_likelihood({"y": Gaussian(1.0)}, predicted, observed, only_second) == pytest.approx(
        stats.norm.logpdf(0.0)
    )


@pytest.mark.parametrize(
    ("model", "value", "claim"),
    [
        (LogNormal(), 0.0, r"the data of 'y' cannot have LogNormal noise: expected positive numbers, got 0\. Choose"),
        (Poisson(), 1.5, r"the data of 'y' cannot have Poisson noise: expected whole numbers, zero or more, got 1\.5"),
        (NegativeBinomial(), -1.0, r"cannot have NegativeBinomial noise: expected whole numbers, zero or more, got -1"),
    ],
)
def test_data_that_the_noise_cannot_give_are_refused(model, value, claim):
    with pytest.raises(DataError, match=claim):
        Likelihood({"y": model}, tensor([[value]]), torch.ones(1, 1, dtype=bool), [1.0])


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "x"])
def test_unusable_scale_is_refused(value):
    with pytest.raises(InputError, match=r"sigma of Gaussian must be a positive number, or None to"):
        Gaussian(value)


def test_unusable_noise_is_refused():
    assert noise_models(Gaussian(), ["x", "y"]) == {"x": Gaussian(), "y": Gaussian()}
    assert list(noise_models({"y": Poisson(), "x": Gaussian()}, ["x", "y"])) == ["x", "y"]
    with pytest.raises(
        InputError, match=r"noise must be noise models: expected one such as ude.noise.Gaussian\(\), or"
    ):
        noise_models(0.1, ["x"])
    with pytest.raises(InputError, match=r"noise does not name every observable once: expected x, y, got x"):
        noise_models({"x": Gaussian()}, ["x", "y"])


@pytest.mark.parametrize(("absolute", "relative"), [(1e-4, 0.05), (0.05, 1e-4)])
def test_scales_start_where_the_smoothed_data_have_them(absolute: float, relative: float) -> None:
    """Matching derivatives does not move them; half of the variance each, the guess, is wrong for either."""
    random = np.random.default_rng(0)
    t = np.linspace(0.0, 3.0, 120)
    x = 2.0 * np.exp(-t)
    noisy = x + np.hypot(absolute, relative * x) * random.standard_normal(len(t))
    found = ude.fit(
        ude.UDE("dx/dt = -k*x", fit="k"),
        ude.Dataset.from_arrays(t, noisy, "x"),
        noise=ude.noise.RelativeAbsolute(),
        stages="derivatives",
        holdout=0,
        positive=False,
        progress=False,
    ).noise_models["x"]
    assert isinstance(found, ude.noise.RelativeAbsolute)
    large, small = (found.absolute, found.relative) if absolute > relative else (found.relative, found.absolute)
    assert large == pytest.approx(0.05, rel=0.25)
    assert small is not None
    assert small < 0.02
