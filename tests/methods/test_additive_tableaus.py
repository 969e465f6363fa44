"""The explicit halves of the additive methods against order conditions, those of the coupling included."""

from __future__ import annotations

from fractions import Fraction

import pytest

from tests.methods.order_conditions import additive_defects, colored_trees, rooted_trees
from ude.methods.esdirk import DiagonallyImplicitTableau, KenCarp3, KenCarp4, KenCarp5

METHODS = [KenCarp3().tableau, KenCarp4().tableau, KenCarp5().tableau]
# the published fractions have 25 correct digits
DIGITS = 1e-25


def name(tableau) -> str:
    return tableau.name


def largest(defects) -> float:
    return max(abs(float(x)) for row in defects.values() for x in row)


def test_colored_trees_are_counted_right():
    # with one color they are the rooted trees; with two, a tree of n nodes has at most 2^(n-1) colorings
    for nodes in range(1, 6):
        assert len(colored_trees(nodes, 1)) == len(rooted_trees(nodes))
    assert [len(colored_trees(nodes, 2)) for nodes in range(1, 5)] == [1, 2, 7, 26]


@pytest.mark.parametrize("tableau", METHODS, ids=name)
def test_the_pair_has_its_order_with_all_conditions_of_coupling_and_no_more(tableau):
    parts = tableau.a, tableau.a_explicit
    assert largest(additive_defects(parts, [tableau.b], tableau.order)) < DIGITS
    assert largest(additive_defects(parts, [tableau.b], tableau.order + 1)) > 1e-3
    lower = [b - e for b, e in zip(tableau.b, tableau.b_error, strict=True)]
    assert largest(additive_defects(parts, [lower], tableau.embedded_order)) < DIGITS
    assert largest(additive_defects(parts, [lower], tableau.embedded_order + 1)) > 1e-3


@pytest.mark.parametrize("tableau", METHODS, ids=name)
def test_both_halves_have_the_same_nodes(tableau):
    for node, implicit, explicit in zip(tableau.c, tableau.a, tableau.a_explicit, strict=True):
        assert abs(float(node - sum(implicit))) < DIGITS
        assert abs(float(node - sum(explicit))) < DIGITS


@pytest.mark.parametrize("tableau", METHODS, ids=name)
def test_interpolants_of_split_steps_have_their_order_and_match_value_and_slope_at_both_ends(tableau):
    # f at the new state stands behind the stages: its argument is that of a stage with the weights of the method
    parts = (*tableau.a, tableau.b), (*tableau.a_explicit, tableau.b)
    columns = list(zip(*tableau.split_interpolant, strict=True))
    assert largest(additive_defects(parts, columns, tableau.interpolant_order)) < 1e-13
    count = tableau.stages
    for i, (b, row) in enumerate(zip((*tableau.b, Fraction(0)), tableau.split_interpolant, strict=True)):
        assert float(sum(row)) == pytest.approx(float(b), abs=1e-13)
        assert float(row[0]) == pytest.approx(1.0 if i == 0 else 0.0, abs=1e-13)
        slope = sum((m + 1) * entry for m, entry in enumerate(row))
        assert float(slope) == pytest.approx(1.0 if i == count else 0.0, abs=2e-13)


def test_interpolants_of_unsplit_steps_would_lose_their_order():
    """Why there are two: that of KenCarp3 breaks a condition of three nodes, that of KenCarp5 one of four."""
    for tableau in (METHODS[0], METHODS[2]):
        parts = tableau.a, tableau.a_explicit
        columns = list(zip(*tableau.interpolant, strict=True))
        assert largest(additive_defects(parts, columns, tableau.interpolant_order - 1)) < 1e-13
        assert largest(additive_defects(parts, columns, tableau.interpolant_order)) > 1e-2


def test_tableaus_that_break_the_form_are_refused():
    good = METHODS[1]
    fields = {key: getattr(good, key) for key in good.__dataclass_fields__}
    for change, text in (
        ({"a_explicit": good.a_explicit[:-1]}, "a_explicit is not strictly lower triangular for 6 stages"),
        ({"a_explicit": good.a}, "a_explicit is not strictly lower triangular for 6 stages"),
        ({"split_interpolant": good.interpolant}, "split_interpolant has no row for each stage and the new state"),
    ):
        with pytest.raises(ValueError, match=text):
            DiagonallyImplicitTableau(**{**fields, **change})
