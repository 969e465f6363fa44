"""The tableaus of the stiff methods against order conditions, stability and their stated structure."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.methods.order_conditions import (
    density,
    interpolant_defects,
    order_defects,
    rooted_trees,
    rosenbrock_weights,
    size,
)
from ude.errors import InputError
from ude.methods.esdirk import (
    TRBDF2,
    DiagonallyImplicitTableau,
    ImplicitEuler,
    KenCarp3,
    KenCarp4,
    KenCarp5,
    Kvaerno3,
    Kvaerno4,
    Kvaerno5,
    Trapezoid,
)
from ude.methods.rosenbrock import Rodas4, Rodas5P, Rosenbrock23, RosenbrockTableau

IMPLICIT = [
    ImplicitEuler(), Trapezoid(), TRBDF2(), KenCarp3(), KenCarp4(), KenCarp5(), Kvaerno3(), Kvaerno4(), Kvaerno5()
]  # fmt: skip
ROSENBROCK = [Rosenbrock23(), Rodas4(), Rodas5P()]
# how exactly the order conditions hold: exactly for rational methods; to 1e-25 for KenCarp3 and KenCarp5, published as
# fractions of 25 correct digits; to rounding for the methods with square roots or 17 decimals
EXACTNESS = {"TRBDF2": 1e-15, "KenCarp3": 1e-25, "KenCarp5": 1e-25, "Kvaerno5": 1e-15}


def standard_form(tableau):
    """The coefficients (alpha_ij) and (alpha_ij + gamma_ij) of the untransformed method, for order conditions."""
    gamma = tableau.gamma_matrix()
    padded = [list(row) + [0] * (tableau.stages - len(row)) for row in tableau.a]
    alpha = [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*gamma, strict=True)] for row in padded
    ]
    return alpha, [[x + y for x, y in zip(*rows, strict=True)] for rows in zip(alpha, gamma, strict=True)]


def name(algorithm) -> str:
    return algorithm.name


def largest(numbers) -> float:
    return max(abs(float(number)) for number in numbers)


def embedded(tableau) -> list:
    return [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]


@pytest.mark.parametrize("algorithm", IMPLICIT, ids=name)
def test_implicit_methods_and_their_embedded_ones_have_their_order(algorithm):
    tableau = algorithm.tableau
    bound = EXACTNESS.get(tableau.name, 0.0)
    assert largest(order_defects(tableau, tableau.b, tableau.order).values()) <= bound
    assert largest(order_defects(tableau, embedded(tableau), tableau.embedded_order).values()) <= bound
    for node, row in zip(tableau.c, tableau.a, strict=True):
        assert abs(float(node - sum(row))) <= bound


@pytest.mark.parametrize("algorithm", IMPLICIT, ids=name)
def test_orders_of_implicit_methods_are_not_understated(algorithm):
    tableau = algorithm.tableau
    assert largest(order_defects(tableau, tableau.b, tableau.order + 1).values()) > 1e-3
    assert largest(order_defects(tableau, embedded(tableau), tableau.embedded_order + 1).values()) > 1e-5


@pytest.mark.parametrize("algorithm", IMPLICIT, ids=name)
def test_interpolants_of_implicit_methods_have_their_order_and_end_at_the_step(algorithm):
    tableau = algorithm.tableau
    defects = interpolant_defects(tableau, tableau.interpolant_order)
    assert largest(number for row in defects.values() for number in row) < 2e-15
    for b, row in zip(tableau.b, tableau.interpolant, strict=True):
        assert float(sum(row)) == pytest.approx(float(b), abs=3e-15)


@pytest.mark.parametrize("algorithm", [a for a in IMPLICIT if a.tableau.order > 1], ids=name)
def test_interpolants_match_the_slopes_at_both_ends(algorithm):
    # so that the dense output is continuously differentiable over steps: k_0 at theta = 0 and k_end at theta = 1
    tableau = algorithm.tableau
    for i, row in enumerate(tableau.interpolant):
        slope_at_end = sum((m + 1) * entry for m, entry in enumerate(row))
        assert float(row[0]) == pytest.approx(1.0 if i == 0 else 0.0, abs=1e-14)
        assert float(slope_at_end) == pytest.approx(1.0 if i == tableau.end_stage else 0.0, abs=1e-14)


def amplification(tableau, weights, z: complex) -> complex:
    a = np.array([[float(x) for x in row] + [0.0] * (tableau.stages - len(row)) for row in tableau.a])
    return 1 + z * np.array([float(w) for w in weights]) @ np.linalg.solve(
        np.eye(len(a)) - z * a, np.ones(len(a), dtype=complex)
    )


@pytest.mark.parametrize("algorithm", IMPLICIT, ids=name)
def test_implicit_methods_are_a_stable_and_all_but_the_trapezoid_l_stable(algorithm):
    tableau = algorithm.tableau
    axis = [1j * y for y in np.concatenate([np.linspace(0, 60, 601), np.logspace(2, 6, 40)])]
    assert max(abs(amplification(tableau, tableau.b, z)) for z in axis) <= 1 + 1e-7
    at_infinity = abs(amplification(tableau, tableau.b, -1e9))
    assert at_infinity == pytest.approx(1.0, abs=1e-6) if tableau.name == "Trapezoid" else at_infinity < 1e-6


@pytest.mark.parametrize("algorithm", IMPLICIT, ids=name)
def test_the_filtered_error_estimate_stays_bounded_for_stiff_components(algorithm):
    tableau = algorithm.tableau
    for z in (-1e3, -1e6, -1e9):
        raw = amplification(tableau, tableau.b_error, z) - 1
        assert abs(raw / (1 - float(tableau.gamma) * z)) < 5


@pytest.mark.parametrize("algorithm", ROSENBROCK, ids=name)
def test_rosenbrock_methods_and_their_embedded_ones_have_their_order(algorithm):
    tableau = algorithm.tableau
    alpha, beta = standard_form(tableau)

    def defect(weights, nodes: int) -> float:
        return largest(
            sum(w * phi for w, phi in zip(weights, rosenbrock_weights(alpha, beta, tree), strict=True))
            - Fraction(1, density(tree))
            for tree in rooted_trees(nodes)
        )

    b = tableau.weights(tableau.b)
    lower = tableau.weights(embedded(tableau))
    # the published digits are sixteen, and Rodas5P's entries reach 147
    assert max(defect(b, nodes) for nodes in range(1, tableau.order + 1)) < 1e-14
    assert max(defect(lower, nodes) for nodes in range(1, tableau.embedded_order + 1)) < 1e-14
    assert defect(b, tableau.order + 1) > 1e-3
    assert defect(lower, tableau.embedded_order + 1) > 1e-3


@pytest.mark.parametrize("algorithm", ROSENBROCK, ids=name)
def test_interpolants_of_rosenbrock_methods_have_their_order_and_end_at_the_step(algorithm):
    tableau = algorithm.tableau
    alpha, beta = standard_form(tableau)
    powers = [tableau.weights(column) for column in zip(*tableau.interpolant, strict=True)]
    for nodes in range(1, tableau.interpolant_order + 1):
        for tree in rooted_trees(nodes):
            phi = rosenbrock_weights(alpha, beta, tree)
            for power, weights in enumerate(powers, start=1):
                exact = Fraction(1, density(tree)) if power == size(tree) else 0
                assert float(sum(w * x for w, x in zip(weights, phi, strict=True))) == pytest.approx(
                    float(exact), abs=3e-13
                )
    for b, row in zip(tableau.b, tableau.interpolant, strict=True):
        assert float(sum(row)) == pytest.approx(float(b), abs=1e-14)


@pytest.mark.parametrize("algorithm", ROSENBROCK, ids=name)
def test_nodes_and_time_weights_of_rosenbrock_methods_are_row_sums(algorithm):
    tableau = algorithm.tableau
    alpha, beta = standard_form(tableau)
    for i in range(tableau.stages):
        assert float(sum(alpha[i])) == pytest.approx(float(tableau.alpha[i]), abs=1e-14)
        assert float(sum(beta[i]) - sum(alpha[i])) == pytest.approx(float(tableau.d[i]), abs=1e-14)


@pytest.mark.parametrize("algorithm", ROSENBROCK, ids=name)
def test_rosenbrock_methods_are_l_stable(algorithm):
    tableau = algorithm.tableau
    beta = np.array(standard_form(tableau)[1], dtype=float)
    b = np.array([float(w) for w in tableau.weights(tableau.b)])

    def factor(z: complex) -> complex:
        return 1 + z * b @ np.linalg.solve(np.eye(len(b)) - z * beta, np.ones(len(b), dtype=complex))

    axis = [1j * y for y in np.concatenate([np.linspace(0, 60, 601), np.logspace(2, 6, 40)])]
    assert max(abs(factor(z)) for z in axis) <= 1 + 1e-7
    assert abs(factor(-1e9)) < 1e-6


def test_tableaus_that_break_their_family_are_refused():
    good = KenCarp4().tableau
    fields = {key: getattr(good, key) for key in good.__dataclass_fields__}
    for change, text in (
        ({"c": good.c[:-1]}, "is not diagonally implicit"),
        ({"a": (*good.a[:1], (Fraction(1, 4), Fraction(1, 5)), *good.a[2:])}, "one gamma on the diagonal"),
        ({"b_error": good.b_error[:-1]}, "b_error has 5 entries for 6 stages"),
        ({"b": (*good.b[:-1], Fraction(1, 5))}, "not stiffly accurate"),
    ):
        with pytest.raises(ValueError, match=text):
            DiagonallyImplicitTableau(**{**fields, **change})
    rodas = Rodas4().tableau
    fields = {key: getattr(rodas, key) for key in rodas.__dataclass_fields__}
    with pytest.raises(ValueError, match="is not a Rosenbrock method of 6 stages"):
        RosenbrockTableau(**{**fields, "d": rodas.d[:-1]})


def test_options_of_newtons_iteration_are_checked():
    with pytest.raises(
        InputError, match="newton_tolerance is a part of the tolerance: expected a number between 0 and"
    ):
        KenCarp4(newton_tolerance=2.0)
    with pytest.raises(InputError, match="newton_maxiters allows no iteration: expected at least 1, got 0"):
        Kvaerno5(newton_maxiters=0)
