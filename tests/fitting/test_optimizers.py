"""Adam and L-BFGS: known minima, and nothing that is not finite ever stays in the parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ude.fitting.optimizers.optimizers import Objective, adam, lbfgs


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return 100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2


def test_lbfgs_finds_the_minimum_of_rosenbrock():
    x = leaf(-1.2, 1.0)
    assert lbfgs(Objective(lambda: rosenbrock(x), [x]), 200) < 1e-12
    np.testing.assert_allclose(x.detach(), [1.0, 1.0], atol=1e-5)


def test_adam_finds_the_minimum_of_a_bowl():
    x, y = leaf(3.0), leaf(-2.0, 0.5)
    loss = adam(Objective(lambda: (x**2).sum() + ((y - 1.0) ** 2).sum(), [x, y]), 2000, learning_rate=0.05)
    assert loss < 1e-4
    np.testing.assert_allclose(y.detach(), [1.0, 1.0], atol=1e-2)


def test_parameters_keep_their_shapes():
    a, b = torch.ones(2, 3, dtype=torch.float64, requires_grad=True), leaf(2.0)
    lbfgs(Objective(lambda: (a**2).sum() + (b - 1.0).square().sum(), [a, b]), 50)
    assert a.shape == (2, 3)
    np.testing.assert_allclose(a.detach(), 0.0, atol=1e-6)
    np.testing.assert_allclose(b.detach(), 1.0, atol=1e-6)


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_a_loss_that_turns_nan_beyond_a_wall_is_not_entered(optimizer):
    # sqrt is NaN for x > 1, and the slope leads there.
    x = leaf(0.9)
    loss = optimizer(Objective(lambda: torch.sqrt(1.0 - x).sum(), [x]), 200)
    assert torch.isfinite(x).all()
    assert float(x.detach()) <= 1.0
    assert loss < float(np.sqrt(0.1))
    np.testing.assert_allclose(torch.sqrt(1.0 - x.detach()), [loss])


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_a_gradient_that_is_not_finite_is_rejected(optimizer):
    x = leaf(0.0, 1.0)  # the slope of sqrt at 0 is infinite
    optimizer(Objective(lambda: x.sqrt().sum(), [x]), 20)
    np.testing.assert_array_equal(x.detach(), [0.0, 1.0])


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_a_loss_that_is_never_finite_leaves_the_parameters_alone(optimizer):
    x = leaf(0.3, 0.7)
    assert optimizer(Objective(lambda: x.sum() * torch.nan, [x]), 20) == np.inf
    np.testing.assert_array_equal(x.detach(), [0.3, 0.7])


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_interruption_leaves_the_best_point(optimizer):
    x = leaf(-1.2, 1.0)
    seen = []

    def loss() -> torch.Tensor:
        if len(seen) == 15:
            raise KeyboardInterrupt
        value = rosenbrock(x)
        seen.append((float(value.detach()), x.detach().clone()))
        return value

    with pytest.raises(KeyboardInterrupt):
        optimizer(Objective(loss, [x]), 100)
    assert torch.equal(x.detach(), min(seen, key=lambda pair: pair[0])[1])


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_best_point_is_kept_not_the_last(optimizer):
    x = leaf(0.5)
    seen = []

    def loss() -> torch.Tensor:
        value = (x**2).sum() + 0.1 * torch.sin(50.0 * x).sum()
        seen.append(float(value.detach()))
        return value

    best = optimizer(Objective(loss, [x]), 60)
    assert best == min(seen)
    assert float(loss().detach()) == best


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_a_stalled_run_ends_early(optimizer):
    x = leaf(1.0)
    objective = Objective(lambda: 1.0 + 1e-9 * torch.sin(1e3 * x).sum(), [x])
    optimizer(objective, 400)
    assert objective.evaluations < 200


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_no_parameters_is_no_work(optimizer):
    optimizer(Objective(lambda: torch.zeros(()), []), 10)


def test_a_parameter_that_the_loss_does_not_use_stays():
    x, unused = leaf(1.0), leaf(5.0)
    lbfgs(Objective(lambda: (x**2).sum(), [x, unused]), 20)
    assert float(unused.detach()) == 5.0


@pytest.mark.parametrize("optimizer", [adam, lbfgs])
def test_every_iteration_is_reported_with_a_falling_loss(optimizer):
    x = leaf(-1.2, 1.0)
    losses: list[float] = []
    optimizer(Objective(lambda: rosenbrock(x), [x]), 30, on_iteration=losses.append)
    assert 10 < len(losses) <= 30
    assert (np.diff(losses) <= 0).all()
