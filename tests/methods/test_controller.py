"""The controller's arithmetic, in floats and in tensors."""

from __future__ import annotations

import math

import pytest
import torch

from ude.engines.torch_engine.lanes import TensorLanes
from ude.methods import PIController
from ude.methods.controller import FloatArithmetic

ORDER = 5
# factors are rounded to a grid of 2^-10, so that rounding errors do not change steps
HALF_GRID = 2.0**-11


DEFAULT = PIController()


def factor(error: float, previous: float, controller: PIController = DEFAULT) -> float:
    return controller.factor(FloatArithmetic(), error, previous, error <= 1.0, ORDER)


def test_accepted_steps_follow_the_pi_formula():
    # Julia's defaults for order 5: beta1 = 7/50, beta2 = 2/25
    assert factor(0.5, 0.25) == pytest.approx(0.9 * 0.5**-0.14 * 0.25**0.08, abs=HALF_GRID)


def test_a_rejected_step_ignores_the_memory_and_shrinks():
    assert factor(4.0, 0.25) == pytest.approx(0.9 * 4.0**-0.14, abs=HALF_GRID)
    assert factor(4.0, 0.25) < 1


@pytest.mark.parametrize(("error", "expected"), [(0.0, 10.0), (1e-20, 10.0), (math.inf, 0.2), (1e9, 0.2)])
def test_the_factor_stays_between_qmin_and_qmax(error: float, expected: float):
    assert factor(error, 1.0) == pytest.approx(expected, abs=HALF_GRID)


def test_beta2_zero_is_the_elementary_controller():
    controller = PIController(beta1=1 / ORDER, beta2=0.0)
    assert factor(0.5, 0.001, controller) == pytest.approx(0.9 * 0.5 ** (-1 / ORDER), abs=HALF_GRID)


def test_rounding_errors_in_the_error_estimate_do_not_reach_the_step():
    assert factor(0.5 * (1 + 1e-8), 0.25) == factor(0.5, 0.25)
    assert factor(0.5, 0.25) * 1024 == int(factor(0.5, 0.25) * 1024)


def test_tensors_and_floats_agree():
    errors = [0.0, 1e-6, 0.3, 1.0, 1.0001, 50.0, math.inf]
    tensor = torch.tensor(errors, dtype=torch.float64)
    previous = torch.full_like(tensor, 0.02)
    together = PIController().factor(TensorLanes(tensor), tensor, previous, tensor <= 1.0, ORDER)
    assert together.tolist() == pytest.approx([factor(error, 0.02) for error in errors], rel=1e-14)
