"""The controller's arithmetic, in floats and in tensors."""

from __future__ import annotations

import math
import random

import pytest
import torch

from ude.engines.torch.lanes import TensorLanes
from ude.errors import InputError
from ude.methods import IController, PIController, PIDController
from ude.methods.controller import FloatArithmetic, smooth_limiter

ORDER = 5
# factors are rounded to a grid of 2^-10, so that rounding errors do not change steps
HALF_GRID = 2.0**-11


DEFAULT = PIController()
OPS = FloatArithmetic()


def factor(error: float, previous: float, controller: PIController = DEFAULT) -> float:
    return controller.factor(FloatArithmetic(), error, (previous,), error <= 1.0, ORDER)


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


def test_rounding_errors_in_tiny_error_estimates_seldom_reach_the_step():
    # at a tolerance of 1e-3 an estimate is uncertain by about 1e-13 of it, whatever its size
    generator = random.Random(0)
    errors = [10 ** generator.uniform(-9.0, -4.0) for _ in range(5000)]
    changed = sum(factor(error + 1e-13, 1e-4) != factor(error, 1e-4) for error in errors)
    assert changed <= 4  # on the fine grid alone, 43 do


def test_a_factor_that_is_rounded_up_stays_below_qmax():
    assert factor(0.0, 1.0, PIController(qmax=3.3)) == 3.3
    assert IController(qmax=3.3).factor(OPS, 0.0, (), True, ORDER) == 3.3


def test_tensors_and_floats_agree():
    errors = [0.0, 1e-6, 0.3, 1.0, 1.0001, 50.0, math.inf]
    tensor = torch.tensor(errors, dtype=torch.float64)
    previous = torch.full_like(tensor, 0.02)
    together = PIController().factor(TensorLanes(tensor), tensor, (previous,), tensor <= 1.0, ORDER)
    assert together.tolist() == pytest.approx([factor(error, 0.02) for error in errors], rel=1e-14)


CONTROLLERS = [
    PIController(),
    PIController(qsteady_min=1.0, qsteady_max=1.2),
    IController(),
    IController(gamma=0.8, qmin=0.1, qmax=5.0, qsteady_min=0.9, qsteady_max=1.2),
    PIDController(1 / 18, 1 / 9, 1 / 18),
    PIDController(0.58, -0.21, 0.1, qsteady_max=1.1),
]


def test_the_integral_controller_is_the_textbook_formula():
    controller = IController()
    for error in (0.3, 0.9, 1.0):
        assert controller.factor(OPS, error, (), True, ORDER) == pytest.approx(0.9 * error**-0.2, abs=HALF_GRID)
    assert controller.factor(OPS, 3.0, (), False, ORDER) == pytest.approx(0.9 * 3.0**-0.2, abs=HALF_GRID)
    assert controller.factor(OPS, math.inf, (), False, ORDER) == pytest.approx(0.2, abs=HALF_GRID)
    assert controller.start() == controller.remember(OPS, 0.5, ()) == ()


def test_a_nearly_right_step_keeps_its_size_between_qsteady_min_and_qsteady_max():
    controller = IController(qsteady_min=0.95, qsteady_max=1.2)
    # q = error^(1/5)/0.9
    for q, steady in ((0.9, False), (0.96, True), (1.1, True), (1.19, True), (1.25, False)):
        error = (0.9 * q) ** ORDER
        factor = controller.factor(OPS, error, (), True, ORDER)
        assert (factor == 1.0) is steady, q
        # a rejected step never keeps its size
        assert controller.factor(OPS, error, (), False, ORDER) == pytest.approx(1 / q, abs=HALF_GRID)


def pid_by_hand(error: float, one: float, two: float, gains: tuple[float, float, float]) -> float:
    """OrdinaryDiffEq.jl's PIDController, written from its formula with inverse errors."""
    k = ORDER
    unlimited = (1 / error) ** (gains[0] / k) * (1 / one) ** (gains[1] / k) * (1 / two) ** (gains[2] / k)
    return 1 + math.atan(unlimited - 1)


def test_the_pid_controller_filters_three_errors_as_ordinarydiffeq_does():
    gains = (0.58, -0.21, 0.1)
    controller = PIDController(*gains)
    memory = controller.start()
    assert memory == (1.0, 1.0)
    errors = [0.5, 0.02, 0.9, 1.3, 0.1]
    accepted: list[float] = [1.0, 1.0]
    for error in errors:
        expected = pid_by_hand(error, accepted[-1], accepted[-2], gains)
        assert controller.accepts(OPS, error, memory, ORDER) == (expected >= 0.81)
        assert controller.factor(OPS, error, memory, True, ORDER) == pytest.approx(expected, abs=HALF_GRID)
        memory = controller.remember(OPS, error, memory)
        accepted.append(error)
        assert memory == (accepted[-1], accepted[-2])


def test_the_pid_controller_accepts_by_its_factor_and_not_by_the_error():
    controller = PIDController(0.7, -0.4)
    # 1.3^-0.14 = 0.964, so the step would shrink little and is accepted; 6^-0.14 = 0.778
    assert controller.accepts(OPS, 1.3, (1.0, 1.0), ORDER)
    assert not controller.accepts(OPS, 6.0, (1.0, 1.0), ORDER)
    assert not controller.accepts(OPS, math.inf, (1.0, 1.0), ORDER)
    # after a tiny error the next step is judged more strictly, as the filter expects growth
    assert not controller.accepts(OPS, 1.3, (1e-3, 1.0), ORDER)


def test_the_default_limiter_stays_within_its_published_bounds():
    assert smooth_limiter(OPS, 0.0) == pytest.approx(0.2146, abs=1e-4)
    assert smooth_limiter(OPS, 1e300) == pytest.approx(2.5708, abs=1e-4)
    assert smooth_limiter(OPS, 1.0) == 1.0
    controller = PIDController(0.7, -0.4)
    assert controller.factor(OPS, 0.0, (1.0, 1.0), True, ORDER) <= 2.5708 + HALF_GRID
    assert controller.factor(OPS, math.inf, (1.0, 1.0), False, ORDER) == pytest.approx(0.2146, abs=HALF_GRID + 1e-4)


def test_a_limiter_of_ones_own_replaces_it():
    controller = PIDController(1.0, 0.0, limiter=lambda ops, x: ops.minimum(ops.maximum(x, 0.5), 1.5))
    assert controller.factor(OPS, 1e-12, (1.0, 1.0), True, ORDER) == 1.5
    assert controller.factor(OPS, 1e12, (1.0, 1.0), False, ORDER) == 0.5


@pytest.mark.parametrize("controller", CONTROLLERS, ids=lambda one: type(one).__name__)
def test_every_controller_is_the_same_in_tensors_and_floats(controller):
    errors = [0.0, 1e-6, 0.3, 1.0, 1.0001, 50.0, math.inf]
    tensor = torch.tensor(errors, dtype=torch.float64)
    lanes = TensorLanes(tensor)
    memory = tuple(torch.full_like(tensor, 0.02) for _ in controller.start())
    single = tuple(0.02 for _ in controller.start())
    accepts = controller.accepts(lanes, tensor, memory, ORDER)
    assert accepts.tolist() == [controller.accepts(OPS, error, single, ORDER) for error in errors]
    together = controller.factor(lanes, tensor, memory, accepts, ORDER).tolist()
    for error, accepted, factor_of in zip(errors, accepts.tolist(), together, strict=True):
        assert factor_of == controller.factor(OPS, error, single, accepted, ORDER)
        assert factor_of * 1024 == int(factor_of * 1024)
    for new, old in zip(controller.remember(lanes, tensor[:3], memory), controller.start(), strict=True):
        assert torch.isfinite(new).all()
        assert old > 0


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: IController(gamma=1.5), r"gamma of IController is no safety factor: expected .*, got 1.5"),
        (lambda: PIController(qmin=1.0), r"qmin of PIController does not shrink a step: .*got 1.0"),
        (lambda: IController(qmax=1.0), r"qmax of IController does not let a step grow: .*got 1.0"),
        (lambda: PIController(qsteady_min=1.1), r"qsteady_min and qsteady_max of PIController must enclose 1"),
        (lambda: PIController(beta1=-0.1), r"beta1 of PIController must be positive"),
        (lambda: PIController(beta2=-0.1), r"beta2 of PIController must be zero or more"),
        (lambda: PIController(qoldinit=0.0), r"qoldinit of PIController must be positive"),
        (lambda: PIDController(0.0, 0.1), r"beta1 of PIDController must be positive"),
        (lambda: PIDController(0.7, math.nan), r"beta2 and beta3 of PIDController must be finite"),
        (lambda: PIDController(0.7, 0.1, accept_safety=1.0), r"accept_safety of PIDController is no factor"),
    ],
)
def test_numbers_out_of_range_are_refused(build, text):
    with pytest.raises(InputError, match=text):
        build()
