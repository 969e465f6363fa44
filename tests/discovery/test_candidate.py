"""Samples, the measure of complexity, the front, and where a formula is defined."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

from ude.discovery.candidate import Candidate, SymbolicRegressor, merged_constants, pareto_front
from ude.discovery.complexity import complexity
from ude.discovery.evaluation import evaluate, is_regular
from ude.discovery.samples import Samples, normalized_error
from ude.discovery.search.library import LibraryRegressor
from ude.errors import DataError, InputError

x, y, c0, c1, c2 = sp.symbols("x y c0 c1 c2")


@pytest.mark.parametrize(
    ("expression", "nodes"),
    [
        (x * y, 3),
        (c0 * x * y, 6),  # 5 nodes + 1 constant
        (c0 * x * y / (c1 + x), 11),  # 9 nodes + 2 constants
        (x - y, 3),
        (-x, 1),
        (x / y, 3),
        (1 / x, 3),
        (x**2, 3),
        (y / x**2, 5),
        (sp.sqrt(x), 3),  # 2 nodes + 1 function
        (c0 * sp.sin(x), 6),  # 4 nodes + 1 constant + 1 function
        (c0 * x * sp.exp(-c1 * x), 11),
        (c0 * x + c1 * x**2, 9),  # as x*(c0 + c1*x)
        (c0 * x + c1 * x * sp.Abs(x), 11),
        (c0 * x + c1 * y**2, 11),  # nothing is shared
        (x + x * y, 5),  # both writings are as long
        (x / (c0 + x) - y / (c0 + x), 12),  # a shared divisor is not drawn out
        (c0 * x**2 / (c1 + x**2), 11),  # as c0/(1 + c1/x**2)
        (c0 * x * y / (x + c1 * y), 11),
        (c0 * x / (c1 + x), 9),  # both writings are as long
        (c0 * x**2 / (c1 * x + x**2), 13),  # x is not canceled
        (c0 * x + c0, 6),  # a constant that stands twice is fitted once
        (sp.Integer(0), 1),
    ],
)
def test_complexity_counts_nodes_constants_and_functions(expression: sp.Expr, nodes: int) -> None:
    assert complexity(expression, ["c0", "c1"]) == nodes


def test_complexity_does_not_depend_on_how_a_product_was_entered() -> None:
    assert complexity(sp.Mul(x, sp.Mul(c0, y)), ["c0"]) == complexity(sp.Mul(sp.Mul(x, c0), y), ["c0"])


def _candidate(name: str, size: int, nmse: float) -> Candidate:
    return Candidate(sp.Symbol(name), {}, size, nmse, "test")


def test_front_keeps_what_nothing_simpler_matches() -> None:
    candidates = [
        _candidate("a", 5, 0.1),
        _candidate("b", 3, 0.5),
        _candidate("d", 7, 0.1),
        _candidate("e", 9, 0.01),
        _candidate("f", 3, 0.4),
    ]
    front = pareto_front(candidates)
    assert [str(c.expression) for c in front] == ["f", "a", "e"]
    assert all(c.pareto for c in front)


def test_library_is_a_symbolic_regressor() -> None:
    assert isinstance(LibraryRegressor(), SymbolicRegressor)


def test_a_missing_number_is_refused_with_its_place() -> None:
    values = np.ones(5)
    values[3] = np.nan
    with pytest.raises(DataError) as caught:
        Samples({"x": values}, np.ones(5), "U1")
    assert str(caught.value) == (
        "input x of U1: expected finite numbers, got nan at sample 3 (1 in all). Leave those samples out."
    )
    with pytest.raises(DataError, match="output of U1: expected finite numbers, got nan at sample 3"):
        Samples({"x": np.ones(5)}, values, "U1")


def test_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match=r"input x of U: expected shape \(5,\), got shape \(4,\)"):
        Samples({"x": np.ones(4)}, np.ones(5))
    with pytest.raises(DataError, match=r"nuisance columns of U: expected shape \(5, k\), got shape \(4, 1\)"):
        Samples({"x": np.ones(5)}, np.ones(5), nuisance=np.ones((4, 1)))
    with pytest.raises(DataError, match="weights of U: expected none negative and some positive"):
        Samples({"x": np.ones(5)}, np.ones(5), weights=np.zeros(5))
    with pytest.raises(DataError, match="no inputs for U: expected at least one named input"):
        Samples({}, np.ones(5))
    with pytest.raises(DataError, match="too few samples of U: expected at least 2, got 1"):
        Samples({"x": np.ones(1)}, np.ones(1))


def test_evaluation_names_the_missing_symbol() -> None:
    with pytest.raises(InputError, match=r"cannot evaluate x\*y: expected values for y, got x"):
        evaluate(x * y, {"x": np.ones(3)})


def test_names_that_sympy_knows_are_plain_symbols() -> None:
    names = [sp.Symbol(name) for name in ("S", "I", "E", "N", "beta", "lambda")]
    values = {str(symbol): np.full(2, float(index + 1)) for index, symbol in enumerate(names)}
    assert np.allclose(evaluate(sp.Mul(*names), values), 720.0)


def test_error_ignores_what_the_nuisance_directions_can_take_up() -> None:
    t = np.linspace(0.0, 1.0, 50)
    samples = Samples({"x": t}, t**2 + 7.0 * t - 3.0, nuisance=np.stack([t, np.ones(50)], axis=1))
    assert normalized_error(samples, t**2) < 1e-25
    assert normalized_error(samples, np.zeros(50)) == pytest.approx(1.0)
    assert normalized_error(samples, 0.9 * t**2) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("expression", "regular"),
    [
        (1 / x, False),
        (1 / (x - sp.Float(0.01234)), False),  # the pole lies between two samples
        (1 / (2 + x), True),
        (sp.log(x), False),
        (sp.log(x + 2), True),
        (sp.sqrt(x), False),
        (sp.exp(x), True),
        (sp.exp(1000 * x), False),
        (sp.tan(2 * x), False),
        (sp.tan(x), True),
        (1 / (1 + c0 * x), False),
        (1 / (3 + c0 * x), True),
    ],
)
def test_a_formula_must_be_defined_between_the_samples_too(expression: sp.Expr, regular: bool) -> None:
    inputs = {"x": np.linspace(-1.0, 1.0, 8)}
    assert is_regular(expression, inputs, {"c0": 2.0}) is regular


def test_a_pole_inside_the_box_of_three_inputs_is_seen() -> None:
    t = np.linspace(0.0, 1.0, 30)
    inputs = {"x": t, "y": t, "z": t}
    a, b, c = sp.symbols("x y z")
    assert not is_regular(1 / (a + b - c - sp.Float(1.5)), inputs, {})
    assert is_regular(1 / (a + b - c + sp.Float(1.5)), inputs, {})


def test_candidate_evaluates_with_its_constants() -> None:
    candidate = Candidate(c0 * x + c1, {"c0": 2.0, "c1": 3.0}, 7, 0.0, "test")
    assert np.allclose(candidate.evaluate({"x": np.array([1.0, 2.0])}), [5.0, 7.0])
    assert sp.simplify(candidate.substituted - (2.0 * x + 3.0)) == 0


@pytest.mark.parametrize(
    ("expression", "merged"),
    [
        (c0 * sp.sin(1) * x, c0 * x),
        (c0 * x * sp.sin(c1), c0 * x),
        (x + c0 / c1, c0 + x),
        (sp.exp(c0), c0),
        (c0 * x * sp.sin(x + c1 + 1), c0 * x * sp.sin(c1 + x)),
        (c0 * (c1 + x), c0 * (c1 + x)),
        (c0 * c1 * x + c0 * y, c0 * c1 * x + c0 * y),  # c0 stands elsewhere as well
        (c0 * x * sp.sqrt(c1 - 1), c0 * x * sp.sqrt(c1 - 1)),  # not real
        (2 * x, 2 * x),
    ],
)
def test_constants_that_stand_together_become_one_and_change_no_value(expression: sp.Expr, merged: sp.Expr) -> None:
    values = {symbol: value for symbol, value in ((c0, 0.7), (c1, -0.4)) if expression.has(symbol)}
    found, constants = merged_constants(expression, values)
    assert found == merged
    before, after = (e.subs(v).subs({x: 1.3, y: 0.4}) for e, v in ((expression, values), (found, constants)))
    assert complex(before) == pytest.approx(complex(after))
