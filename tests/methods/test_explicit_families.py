"""The methods of low order exactly; Verner's pairs and DOP853 in arithmetic of 60 digits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.integrate import DOP853

from tests.methods.order_conditions import interpolant_defects, order_defects, size
from ude.methods.explicit.dop853 import DP8
from ude.methods.explicit.explicit_rk import BS3, DP5, ExplicitRungeKutta, Tsit5
from ude.methods.explicit.low_order import RK4, Euler, Heun, Midpoint, Ralston
from ude.methods.explicit.verner import Vern6, Vern7, Vern9
from ude.methods.tableau import ExplicitTableau, lower_triangle, numbers, table

LOW = [Euler(), Midpoint(), Heun(), Ralston(), RK4()]
PAIRS = [Midpoint(), Heun(), Ralston()]
HIGH = [Vern6(), Vern7(), Vern9(), DP8()]
# Vern6 subtracts numbers of size 4e3 from each other, which costs its 50 digits a few
DIGITS = {"Vern6": 42, "Vern7": 46, "Vern9": 46, "DP8": 46}
# DOP853's interpolant is known to 30 digits, Verner's to 50 with entries up to 1e5
INTERPOLANT_DIGITS = {"Vern6": 39, "Vern7": 43, "Vern9": 43, "DP8": 30}


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def largest(values: Iterable) -> float:
    return float(max((abs(value) for value in values), default=0))


def with_60_digits(tableau: ExplicitTableau) -> ExplicitTableau:
    """The same tableau in mpmath's numbers."""

    def row(entries):
        return tuple(mpmath.mpf(entry.numerator) / entry.denominator for entry in entries)

    return replace(
        tableau,
        c=row(tableau.c),
        a=tuple(map(row, tableau.a)),
        b=row(tableau.b),
        b_error=row(tableau.b_error),
        interpolant=tuple(map(row, tableau.interpolant)),
        b_error_low=row(tableau.b_error_low),
        extra_c=row(tableau.extra_c),
        extra_a=tuple(map(row, tableau.extra_a)),
    )


@pytest.mark.parametrize("algorithm", LOW, ids=name)
def test_methods_of_low_order_have_their_order_exactly_and_no_more(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    assert set(order_defects(tableau, tableau.b, tableau.order).values()) == {0}
    assert largest(order_defects(tableau, tableau.b, tableau.order + 1).values()) > 0.01
    rows = interpolant_defects(tableau, tableau.interpolant_order).values()
    assert {number for row in rows for number in row} == {0}
    assert all(isinstance(entry, Fraction) for row in tableau.all_a for entry in row)


@pytest.mark.parametrize("algorithm", PAIRS, ids=name)
def test_the_solution_embedded_in_methods_of_order_two_is_eulers(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    assert [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)] == [1, 0]


@pytest.mark.parametrize("algorithm", [Euler(), RK4()], ids=name)
def test_methods_without_an_embedded_solution_claim_none(algorithm: ExplicitRungeKutta):
    assert algorithm.tableau.b_error == ()
    assert algorithm.tableau.embedded_order == 0


@pytest.mark.parametrize("algorithm", HIGH, ids=name)
def test_high_orders_hold_to_the_digits_of_the_coefficients(algorithm: ExplicitRungeKutta):
    with mpmath.workdps(60):
        tableau, bound = with_60_digits(algorithm.tableau), 10.0 ** -DIGITS[algorithm.name]
        embedded = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
        assert largest(order_defects(tableau, tableau.b, tableau.order).values()) < bound
        assert largest(order_defects(tableau, embedded, tableau.embedded_order).values()) < bound
        for c, row in zip(tableau.all_c, tableau.all_a, strict=True):
            assert abs(c - sum(row)) < bound


@pytest.mark.parametrize("algorithm", HIGH, ids=name)
def test_interpolants_of_high_order_hold_to_the_digits_of_the_coefficients(algorithm: ExplicitRungeKutta):
    with mpmath.workdps(60):
        tableau, bound = with_60_digits(algorithm.tableau), 10.0 ** -INTERPOLANT_DIGITS[algorithm.name]
        defects = interpolant_defects(tableau, tableau.interpolant_order)
        assert max(largest(row) for row in defects.values()) < bound
        weights = [*tableau.b, *[0] * len(tableau.extra_a)]
        for b, row in zip(weights, tableau.interpolant, strict=True):
            assert abs(b - sum(row)) < bound


@pytest.mark.parametrize("algorithm", HIGH, ids=name)
def test_high_orders_are_not_understated(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    floats = replace(tableau, a=tuple(tuple(float(x) for x in row) for row in tableau.a))
    embedded = [float(b - e) for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    assert largest(order_defects(floats, [float(b) for b in tableau.b], tableau.order + 1).values()) > 1e-7
    assert largest(order_defects(floats, embedded, tableau.embedded_order + 1).values()) > 1e-5


def test_the_published_interpolant_of_vern7_misses_twelve_conditions_of_order_seven():
    with mpmath.workdps(60):
        defects = interpolant_defects(with_60_digits(Vern7().tableau), 7)
        wrong = {tree: largest(row) for tree, row in defects.items() if largest(row) > 1e-30}
    assert {size(tree) for tree in wrong} == {7}
    assert len(wrong) == 12
    assert max(wrong.values()) < 2e-4


def test_the_cruder_estimate_of_dp8_compares_with_a_solution_of_order_three():
    with mpmath.workdps(60):
        tableau = with_60_digits(DP8().tableau)
        low = [b - e for b, e in zip(tableau.b, tableau.b_error_low, strict=True)]
        assert largest(order_defects(tableau, low, 3).values()) < 1e-46
        assert largest(order_defects(tableau, low, 4).values()) > 1e-3


def test_a_step_of_dp8_and_its_dense_output_are_those_of_scipys_dop853():
    def f(t: float, u: np.ndarray) -> np.ndarray:
        return np.array([1.5 * u[0] - u[0] * u[1], u[0] * u[1] - 3 * u[1] + np.cos(t)])

    peer = DOP853(f, 0.0, np.array([1.0, 1.2]), 1.0, first_step=0.4, max_step=0.4, rtol=1e-3, atol=1e-3)
    peer.step()
    tableau, dt = DP8().tableau, 0.4
    k: list[np.ndarray] = []
    for c, row in zip(tableau.all_c, tableau.all_a, strict=True):
        argument = np.array([1.0, 1.2]) + dt * sum((float(a) * ki for a, ki in zip(row, k, strict=True)), np.zeros(2))
        k.append(f(float(c) * dt, argument))
    assert peer.t == dt
    end = np.array([1.0, 1.2]) + dt * sum(float(b) * ki for b, ki in zip(tableau.b, k[:12], strict=True))
    np.testing.assert_allclose(end, peer.y, rtol=1e-14)
    for theta in (0.1, 0.37, 0.8, 1.0):
        weights = [sum(float(w) * theta ** (m + 1) for m, w in enumerate(row)) for row in tableau.interpolant]
        inside = np.array([1.0, 1.2]) + dt * sum(w * ki for w, ki in zip(weights, k, strict=True))
        np.testing.assert_allclose(inside, peer.dense_output()(theta * dt), rtol=1e-13)
    for ours, theirs in ((tableau.b_error, DOP853.E5), (tableau.b_error_low, DOP853.E3)):
        np.testing.assert_allclose([float(x) for x in ours], theirs[:12], rtol=1e-13, atol=1e-15)


def test_vern_coefficients_agree_with_digits_published_elsewhere():
    # J. H. Verner's files, as quoted in OrdinaryDiffEq.jl
    assert float(Vern7().tableau.b[0] - Fraction(96762636172307789, 2051985304794103980)) == pytest.approx(0, abs=1e-49)
    assert float(Vern6().tableau.b_error[8]) == pytest.approx(-1 / 30, abs=1e-16)
    assert float(Vern9().tableau.b[8]) == 0.23109325002895065
    assert float(Vern9().tableau.interpolant[25][1]) == pytest.approx(1.719427581798715782, abs=1e-15)


@pytest.mark.parametrize("algorithm", [Midpoint(), RK4(), Vern7(), Vern9(), DP8()], ids=name)
def test_the_first_extra_stage_is_the_next_steps_first(algorithm: ExplicitRungeKutta):
    assert algorithm.tableau.first_extra_is_next
    assert not algorithm.tableau.first_same_as_last


@pytest.mark.parametrize("algorithm", [Euler(), BS3(), DP5(), Tsit5(), Vern6()], ids=name)
def test_free_derivatives_are_not_asked_for_twice(algorithm: ExplicitRungeKutta):
    assert not algorithm.tableau.first_extra_is_next


def steps_of(tableau: ExplicitTableau, dt: mpmath.mpf, count: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Take `count` steps of u' = (1 - t) v^2, v' = -2u / (1 + t v^2); return u at the end, and at 0.3 of the first."""

    def f(u, t):
        return [(1 - t) * u[1] ** 2, -2 * u[0] / (1 + t * u[1] ** 2)]

    def move(u, k, weights):
        return [u[d] + dt * mpmath.fsum(w * ki[d] for w, ki in zip(weights, k, strict=False) if w) for d in range(2)]

    u, inside = [mpmath.mpf(1), mpmath.mpf(1) / 2], []
    for n in range(count):
        k: list[list] = []
        for c, row in zip(tableau.all_c, tableau.all_a, strict=True):
            k.append(f(move(u, k, row), mpmath.mpf(1) / 5 + (n + c) * dt))
        theta = mpmath.mpf("0.3")
        within = [mpmath.fsum(w * theta ** (m + 1) for m, w in enumerate(row)) for row in tableau.interpolant]
        inside.append(move(u, k, within)[0])
        u = move(u, k, tableau.b)
    return u[0], inside[0]


@pytest.mark.parametrize("algorithm", [*LOW, *HIGH], ids=name)
def test_measured_order_is_the_stated_one_in_60_digits(algorithm: ExplicitRungeKutta):
    """Steps so small that no other order can be seen: errors of one step by comparison with eight small steps."""
    with mpmath.workdps(60):
        tableau, best = with_60_digits(algorithm.tableau), with_60_digits(Vern9().tableau)
        ends, inner = [], []
        # Vern9's error must stand above the rounding of its coefficients; the others' need smaller steps to be seen
        steps = 500 if tableau.order > 7 else 20_000
        for dt in (mpmath.mpf(1) / steps, mpmath.mpf(1) / (2 * steps)):
            end, inside = steps_of(tableau, dt, 1)
            ends.append(abs(end - steps_of(best, dt / 8, 8)[0]))
            inner.append(abs(inside - steps_of(best, mpmath.mpf("0.3") * dt / 8, 8)[0]))
        assert float(mpmath.log(ends[0] / ends[1], 2)) - 1 == pytest.approx(tableau.order, abs=0.1)
        assert float(mpmath.log(inner[0] / inner[1], 2)) - 1 == pytest.approx(tableau.interpolant_order, abs=0.1)


def test_readers_of_numbers():
    assert numbers(" 1/3\n 0.25 -2 ") == (Fraction(1, 3), Fraction(1, 4), Fraction(-2))
    assert table("1 2;\n 3;\n") == ((1, 2), (3,))
    assert lower_triangle(((1,), (2, 3)), 2) == ((1, 0), (2, 3, 0))


def test_tableaus_with_wrong_extra_stages_are_refused():
    good = Heun().tableau
    with pytest.raises(ValueError, match="tableau Heun: 2 nodes for 1 extra stages"):
        replace(good, extra_c=(Fraction(1), Fraction(1)))
    with pytest.raises(ValueError, match="tableau Heun is not square and explicit"):
        replace(good, extra_a=((Fraction(1),),))
    with pytest.raises(ValueError, match="b_error_low has 1 entries for 2 stages"):
        replace(good, b_error_low=(Fraction(1),))
