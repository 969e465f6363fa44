"""The prior on what networks compute: its covariance, where it looks, and what the data choose."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.spatial.distance import cdist
from scipy.special import gamma, kv

import ude
from ude.fitting.posterior.function_prior import FunctionPrior, FunctionPriors, farthest, function_priors, gain_of


def prior(outputs="U1, U2", points=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    visited = 3.0 + 2.0 * torch.randn(points, 2, generator=generator, dtype=torch.float64)
    return FunctionPrior.at(ude.MLP(outputs, inputs="x, y", width=6, seed=seed), visited)


def test_covariance_is_that_of_the_powers_that_the_docstring_names():
    part = prior("U")
    a, b, s = (0.4, 0.9), 0.3, 0.7
    numbers = np.array([math.log(a[0]), math.log(a[1]), math.log(b), -80.0, 0.0, math.log(s)])
    features = []
    for i, size in enumerate(a):
        powers = [torch.ones(len(part.z))]
        powers += [math.sqrt(size * b ** (n - 1) / math.factorial(n)) * part.z[:, i] ** n for n in range(1, 30)]
        features.append(torch.stack(powers, -1))
    both = torch.einsum("pm,pn->pmn", *features).flatten(1).numpy()
    np.testing.assert_allclose(part.kernel(numbers)[0], s**2 * both @ both.T, rtol=1e-8, atol=1e-8)


def test_what_is_local_falls_off_with_the_distance_as_a_gaussian_process_of_scipys_bessel_functions_does():
    """Matérn of order 5/2: 2^(1-ν)/Γ(ν) x^ν K_ν(x), x = √(2ν) r/ℓ (Rasmussen & Williams 2006, 4.14)."""
    part, length = prior("U"), 0.6
    with_it = np.array([-60.0, -60.0, -8.0, math.log(0.3), math.log(length), 0.0])
    x = math.sqrt(5.0) * cdist(part.z, part.z) / length
    np.fill_diagonal(x, 1e-6)
    expected = 2.0**-1.5 / gamma(2.5) * x**2.5 * kv(2.5, x)
    np.testing.assert_allclose(part.kernel(with_it)[0], 1.0 + 0.3 * expected, rtol=1e-6)


def test_outputs_of_one_network_may_be_alike():
    part = prior()
    numbers = np.array([0.0, 0.0, 0.0, -1.0, 0.0, 2.0, -3.0, math.log(0.5), math.log(0.1)])
    found = part.kernel(numbers)[0]
    kernel = found[: len(part.z), : len(part.z)] / (4.0 + 0.25)
    np.testing.assert_allclose(found[: len(part.z), len(part.z) :], -6.0 * kernel)
    np.testing.assert_allclose(found[len(part.z) :, len(part.z) :], (9.0 + 0.01) * kernel)


@pytest.mark.parametrize("outputs", ["U", "U1, U2, U3"])
def test_derivatives_of_the_covariance_are_those_of_differences(outputs):
    part = prior(outputs, points=20)
    generator = np.random.default_rng(1)
    numbers = part.start() + 0.3 * generator.standard_normal(len(part.names))
    direction = generator.standard_normal((part.size, part.size))  # not symmetric, as no caller need make it so
    expected = [
        ((part.kernel(numbers + step)[0] - part.kernel(numbers - step)[0]) * direction).sum() / 2e-5
        for step in 1e-5 * np.eye(len(numbers))
    ]
    np.testing.assert_allclose(part.kernel(numbers)[1](direction), expected, rtol=1e-6, atol=1e-6)


def test_the_covariance_of_two_networks_has_nothing_between_them():
    parts = (prior("U1, U2"), prior("V", seed=3))
    found = FunctionPriors(parts)
    numbers = found.start()
    whole, split = found.covariance(numbers), parts[0].size
    np.testing.assert_array_equal(whole[:split, :split], parts[0].kernel(numbers[: len(parts[0].names)])[0])
    np.testing.assert_array_equal(whole[split:, split:], parts[1].kernel(numbers[len(parts[0].names) :])[0])
    assert not whole[:split, split:].any()


def test_values_are_those_of_the_network_where_the_data_are():
    part = prior()
    part.term.set_scales(output_scale=[2.0, 5.0])
    first, second = part.term(*part.x.unbind(-1))
    torch.testing.assert_close(part.values(), torch.cat([first / 2.0, second / 5.0]))
    torch.testing.assert_close(part.z.mean(0), torch.zeros(2).double(), rtol=0, atol=0.3)


def test_points_are_far_apart_and_differ():
    z = torch.tensor([[0.0], [0.1], [5.0], [5.0], [-4.0]], dtype=torch.float64)
    assert farthest(z, 3) == [0, 2, 4]
    assert len(farthest(z, 5)) == 4


def test_a_network_without_enough_to_go_by_has_none():
    term = ude.MLP("U", inputs="x", width=4)
    assert FunctionPrior.at(term, torch.ones(20, 1).double()) is None
    many = ude.MLP(", ".join(f"U{i}" for i in range(30)), inputs="x", width=4)
    assert FunctionPrior.at(many, torch.randn(50, 1).double()) is None


def test_calls_on_fields_are_looked_at_cell_by_cell():
    def f(u, p, t):
        return p.R(u)

    model = ude.FunctionModel(f, ["a", "b", "c"], terms=[ude.MLP("R", inputs="u", width=4)])
    u = torch.linspace(0.0, 1.0, 30, dtype=torch.float64).reshape(10, 3)
    (found,) = function_priors(model, u, None, torch.zeros(10).double())
    assert sorted(found.x[:, 0].tolist()) == u.flatten().tolist()


@pytest.mark.parametrize("degree", [1, 3])
def test_the_evidence_prefers_the_order_that_the_data_have(degree):
    """b, which decides how far the powers go on, is large where the function is not of the first power."""
    x = torch.linspace(-1.7, 1.7, 60, dtype=torch.float64).unsqueeze(-1)
    part = FunctionPrior(ude.MLP("U", inputs="x", width=4), x, x)
    generator = np.random.default_rng(0)
    data = 100.0 * x[:, 0].numpy() ** degree + generator.standard_normal(60)
    gain = 100.0 * np.eye(60)
    found = FunctionPriors((part,)).likeliest(part.start(), gain.T @ gain, gain.T @ data)
    a, b, *_ = np.exp(found)
    assert (b < 0.02) if degree == 1 else (b > 0.1)
    assert a > 0.1


def test_data_that_say_nothing_leave_the_numbers_as_they_are():
    part = prior()
    numbers = part.start() + 0.1
    found = FunctionPriors((part,)).likeliest(numbers, np.zeros((part.size, part.size)), np.zeros(part.size))
    np.testing.assert_array_equal(found, numbers)


def test_gain_follows_the_values_where_weights_can():
    """With as many weights as values, data that depend on weights through the values have just their derivative."""
    generator = np.random.default_rng(0)
    values_jacobian, gain = generator.standard_normal((5, 8)), generator.standard_normal((7, 5))
    found = gain_of(gain @ values_jacobian, values_jacobian, np.full(8, 2.0), tolerance=1e-6)
    np.testing.assert_allclose(found, gain, rtol=1e-6, atol=1e-6)


def test_products_are_found_from_few_noisy_points():
    """Lotka and Volterra's interactions, within 4 % from 31 points, where a prior on weights leaves 5 (seed 1)."""
    t, generator = np.linspace(0.0, 3.0, 31), np.random.default_rng(1)

    def rates(t, u):
        return [1.3 * u[0] - 0.9 * u[0] * u[1], 0.8 * u[0] * u[1] - 1.8 * u[1]]

    clean = solve_ivp(rates, (0.0, 3.0), [0.44, 4.6], t_eval=t, rtol=1e-10, atol=1e-12).y.T
    values = clean + 0.005 * clean.mean(0) * generator.standard_normal(clean.shape)
    model = ude.UDE(
        "dx/dt = 1.3*x - U1(x, y)\ndy/dt = U2(x, y) - 1.8*y",
        unknown=ude.MLP("U1, U2", inputs="x, y", width=16, activation="softplus"),
    )
    fit = ude.fit(model, ude.Dataset.from_arrays(t, values, "x, y"), holdout=0, progress=False)
    with torch.no_grad():
        found = fit.model.term("U1_U2")(*torch.as_tensor(clean).unbind(-1))
    truth = clean[:, 0] * clean[:, 1]
    for output, size in zip(found, (0.9, 0.8), strict=True):
        assert np.linalg.norm(output.numpy() - size * truth) < 0.04 * np.linalg.norm(size * truth)


def test_a_model_without_networks_is_fitted_without_such_a_prior():
    t = np.linspace(0.0, 2.0, 9)
    data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    stages = [ude.stages.SingleShooting((ude.optimizers.GaussNewton(iterations=20),))]
    fit = ude.fit(ude.UDE("dx/dt = -k*x", fit="k"), data, stages=stages, holdout=0, progress=False)
    assert fit.model.values()["k"] == pytest.approx(1.5, rel=1e-4)
