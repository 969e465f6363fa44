"""Every tableau is checked against the order conditions of Butcher's theory."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.methods.order_conditions import density, interpolant_defects, order_defects, rooted_trees, size
from ude.methods import BS3, DP5, ExplicitRungeKutta, ExplicitTableau, Tsit5

EXACT = [BS3(), DP5()]
# Tsit5's published coefficients have 16 digits, so its conditions hold to rounding
ROUNDED = [Tsit5()]


def defect(numbers) -> float:
    return max(abs(float(number)) for number in numbers)


def test_rooted_trees_are_counted_right():
    # OEIS A000081
    assert [len(rooted_trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


def test_density_of_a_tall_tree_is_a_factorial_and_of_a_bush_its_size():
    tall = ((((),),),)
    bush = ((), (), ())
    assert (size(tall), density(tall)) == (4, 24)
    assert (size(bush), density(bush)) == (4, 4)


@pytest.mark.parametrize("algorithm", EXACT, ids=lambda a: a.name)
def test_rational_methods_have_their_order_exactly(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    embedded = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    assert set(order_defects(tableau, tableau.b, tableau.order).values()) == {0}
    assert set(order_defects(tableau, embedded, tableau.embedded_order).values()) == {0}
    powers = interpolant_defects(tableau, tableau.interpolant_order).values()
    assert {number for row in powers for number in row} == {0}
    assert all(isinstance(b, Fraction) for b in tableau.b)


@pytest.mark.parametrize("algorithm", ROUNDED, ids=lambda a: a.name)
def test_decimal_methods_have_their_order_to_rounding(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    embedded = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    assert defect(order_defects(tableau, tableau.b, tableau.order).values()) < 2e-14
    assert defect(order_defects(tableau, embedded, tableau.embedded_order).values()) < 2e-14
    for row in interpolant_defects(tableau, tableau.interpolant_order).values():
        assert defect(row) < 5e-13


@pytest.mark.parametrize("algorithm", EXACT + ROUNDED, ids=lambda a: a.name)
def test_orders_are_not_understated(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    embedded = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    assert defect(order_defects(tableau, tableau.b, tableau.order + 1).values()) > 1e-5
    assert defect(order_defects(tableau, embedded, tableau.embedded_order + 1).values()) > 1e-5


@pytest.mark.parametrize("algorithm", EXACT + ROUNDED, ids=lambda a: a.name)
def test_row_sums_are_the_nodes_and_the_interpolant_ends_at_the_step(algorithm: ExplicitRungeKutta):
    tableau = algorithm.tableau
    for c, row in zip(tableau.c, tableau.a, strict=True):
        assert float(c) == pytest.approx(float(sum(row)), abs=2e-15)
    for b, row in zip(tableau.b, tableau.interpolant, strict=True):
        assert float(b) == pytest.approx(float(sum(row)), abs=2e-14)
    assert tableau.first_same_as_last


def test_a_tableau_that_is_not_explicit_is_refused():
    with pytest.raises(ValueError, match="not square and explicit"):
        ExplicitTableau("bad", 1, 0, 1, (0.0, 1.0), ((), (0.5, 0.5)), (0.5, 0.5), (), ((1.0,), (0.0,)))
    with pytest.raises(ValueError, match="b_error has 1 entries for 2 stages"):
        ExplicitTableau("bad", 1, 0, 1, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5), (0.5,), ((1.0,), (0.0,)))
