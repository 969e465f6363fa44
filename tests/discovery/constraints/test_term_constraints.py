"""What is known beforehand: each statement lets the right candidates through and no others, in every search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from ude.discovery import Candidate, LibraryRegressor, Operon, PySR, Samples, SINDy, SymbolicRegressor, TermConstraints
from ude.discovery.complexity import complexity
from ude.discovery.constraints.term_constraints import constraints_by_term, contains, operators_of, read_constraints
from ude.discovery.constraints.units import Units, dimension_of
from ude.discovery.search.fronts import fronts, informed
from ude.errors import InputError, ModelError

x, y, c0, c1, c2, K = sp.symbols("x y c0 c1 c2 K")


def _samples() -> Samples:
    t = np.linspace(0.0, 20.0, 80)
    a, b = 3.0 + 2.5 * np.sin(0.6 * t), 2.0 * np.cos(0.6 * t + 0.4)
    return Samples({"x": a, "y": b}, 0.5 * a * b, "U1")


def front(samples: Samples, searches: Sequence[SymbolicRegressor], known: TermConstraints) -> list[Candidate]:
    """The merged front of one term."""
    return fronts({samples.name: samples}, searches, {samples.name: known})[samples.name]


def _candidate(expression: sp.Expr, **constants: float) -> Candidate:
    return Candidate(expression, constants, complexity(expression, constants), 0.1, "test")


def _admitted(known: TermConstraints, expression: sp.Expr, **constants: float) -> bool:
    return known.why_not(_candidate(expression, **constants), _samples()) is None


@pytest.mark.parametrize(
    ("known", "yes", "no"),
    [
        (TermConstraints("U1", variables="x"), c0 * x, c0 * x * y),
        (TermConstraints("U1", operators="+ * ^"), c0 * x**2 + c1, c0 / x),
        (TermConstraints("U1", operators="*, /"), c0 * x / y, c0 + x),
        (TermConstraints("U1", max_complexity=6), c0 * x * y, c0 * x * y + c1),
        (TermConstraints("U1", positive=True), c0 * y**2, c0 * y),
        (TermConstraints("U1", negative=True), -c0 * x, c0 * x),
        (TermConstraints("U1", increasing="x"), c0 * x / (c1 + x), c0 * (x - 3) ** 2),
        (TermConstraints("U1", decreasing="x"), c0 / (c1 + x), c0 * x),
        (TermConstraints("U1", increasing="y"), c0 * y * sp.Abs(y), c0 * sp.Abs(y)),
        (TermConstraints("U1", even="y"), c0 * sp.cos(y) * x, c0 * y * x),
        (TermConstraints("U1", odd="y"), c0 * sp.sin(y) + c1 * y**3, c0 * y + c1),
        (TermConstraints("U1", symmetric="x, y"), c0 * (x - y) ** 2, c0 * (x - y)),
        (TermConstraints("U1", zero_at="x=0"), c0 * x * y, c0 * y),
        (TermConstraints("U1", zero_at="x=0, y=1"), c0 * (x + y - 1), c0 * (x + y)),
        (TermConstraints("U1", zero_at="x=0 or y=0"), c0 * x * y, c0 * x),
        (TermConstraints("U1", forbidden="exp"), c0 * x, c0 * sp.exp(-x)),
        (TermConstraints("U1", forbidden="x**2, x/(K + x)"), c0 * x * y, c0 * x * y / (c1 + x)),
        (TermConstraints("U1", required="x*y"), c0 * x * y / (c1 + x), c0 * x + y),
        (TermConstraints("U1", units="x: m, y: s -> m/s"), c0 * x / y, x + x / y),
        (TermConstraints("U1", units="x: m, y: m -> m"), c0 * x * sp.exp(-y / x), c0 * x * sp.exp(-y)),
        (TermConstraints("U1", units="x: m, y: s -> m/s", dimensionless_constants=True), c0 * x / y, c0 * x),
    ],
)
def test_statements_let_through_what_agrees_and_nothing_else(known: TermConstraints, yes: sp.Expr, no: sp.Expr) -> None:
    constants = {"c0": 2.0, "c1": 3.0}
    for expression, expected in ((yes, True), (no, False)):
        own = {name: v for name, v in constants.items() if sp.Symbol(name) in expression.free_symbols}
        assert _admitted(known, expression, **own) is expected, expression


@pytest.mark.parametrize(
    "search",
    [LibraryRegressor(), SINDy(unary=True), Operon(generations=8, population=100, functions=("exp", "sin"))],
    ids=["library", "sindy", "operon"],
)
def test_every_search_obeys(search: LibraryRegressor | SINDy | Operon) -> None:
    samples = replace(_samples(), output=0.5 * _samples().inputs["x"] ** 2 + 0.01 * _samples().inputs["y"])
    known = TermConstraints("U1", variables="x", operators="+ * / ^", positive=True, zero_at="x=0", max_complexity=12)
    found = front(samples, [search], known)
    assert "c0*x**2" in {str(c.expression) for c in found}
    assert any(c.pareto for c in found)
    for candidate in found:
        assert candidate.expression.free_symbols <= {x, *map(sp.Symbol, candidate.constants)}
        assert operators_of(candidate.expression) <= {"+", "*", "/", "^"}
        assert candidate.complexity <= 12
        assert known.why_not(candidate, samples) is None


def test_searches_are_told_so_that_they_look_through_less() -> None:
    known = TermConstraints("U1", operators="+ * ^ exp", max_complexity=11)
    pysr = informed(PySR(), known)
    assert isinstance(pysr, PySR)
    assert (pysr.binary_operators, pysr.unary_operators, pysr.maxsize) == (("+", "*"), ("exp",), 11)
    operon = informed(Operon(), known)
    assert isinstance(operon, Operon)
    assert operon.runs == [["+", "*"], ["+", "*", "exp"]]
    plain, fewer = LibraryRegressor(), informed(LibraryRegressor(), known)
    assert isinstance(fewer, LibraryRegressor)
    offered = fewer.library(_samples().inputs)
    assert len(offered) < 0.5 * len(plain.library(_samples().inputs))
    assert not any(operators_of(column.template) - {"+", "*", "^", "exp"} for column in offered)


def test_known_constants_are_put_in_where_they_fit() -> None:
    samples = replace(_samples(), output=-9.81 * np.sin(_samples().inputs["y"]))
    found = front(samples, [LibraryRegressor()], TermConstraints("U1", constants={"g": 9.81}))
    [best] = [c for c in found if str(c.expression) == "-9.81*sin(y)"]
    assert best.constants == {}
    assert best.complexity < min(c.complexity for c in found if str(c.expression) == "c0*sin(y)")


def test_nothing_left_says_what_stood_in_the_way() -> None:
    with pytest.raises(
        ModelError, match=r"no formula found for U1 agrees with what is known of it: c0\*y: not positive"
    ):
        front(_samples(), [Only(_candidate(c0 * y, c0=1.0))], TermConstraints("U1", positive=True))


class Only:
    def __init__(self, candidate: Candidate) -> None:
        self.candidate = candidate

    def search(self, samples: Samples) -> list[Candidate]:
        return [self.candidate]


def test_knowledge_is_read_from_text() -> None:
    assert read_constraints("U1: positive; zero_at x=0; variables x, y; max_complexity 12") == TermConstraints(
        "U1", positive=True, zero_at="x=0", variables=("x", "y"), max_complexity=12
    )
    assert read_constraints("U1: units = x: m -> m/s; forbidden exp, x/(K + x)") == TermConstraints(
        "U1", units="x: m -> m/s", forbidden=("exp", "x/(K + x)")
    )
    assert read_constraints("U1 = -k*U2") == TermConstraints("U1", shared="-k*U2")
    assert read_constraints("U1: constants g=9.81").constants == {"g": 9.81}
    assert list(constraints_by_term(["U1: positive", TermConstraints("U2", odd="x")], ["U1", "U2"])) == ["U1", "U2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("positive", "expected .TERM: statement; statement.*, got positive"),
        ("U1: positiv", "got positiv. Did you mean positive"),
        ("U1: max_complexity many", "expected a whole number"),
        ("U1: operators + gamma", "TermConstraints of U1: operators: expected any of .* got gamma"),
        ("U1: zero_at x", "TermConstraints of U1: zero_at: expected"),
        ("U1: units m/s", "units: expected"),
        ("U1: units x: m+s -> m", "unit 'm"),
        ("U1: forbidden x**", "TermConstraints of U1: the form 'x"),
        ("U1: constants g=0", "numbers that are not zero"),
        ("U1: positive; negative", "expected one of them, got both"),
        ("U1: symmetric x", "two arguments or more"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_constraints(text)


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match="TermConstraints of U1: odd: expected arguments of U1: x, y, got z"):
        front(_samples(), [LibraryRegressor()], TermConstraints("U1", odd="z"))
    with pytest.raises(
        InputError, match="TermConstraints of U1: units: expected those of every argument, got none for y"
    ):
        front(_samples(), [LibraryRegressor()], TermConstraints("U1", units="x: m -> m"))
    with pytest.raises(InputError, match="constraints of U3: expected one of the unknown functions: U1, U2"):
        constraints_by_term("U3: positive", ["U1", "U2"])
    with pytest.raises(InputError, match="constraints of U1 are given twice"):
        constraints_by_term(["U1: positive", "U1: odd x"], ["U1"])
    with pytest.raises(InputError, match="must be ude.TermConstraints objects, or text"):
        constraints_by_term(3, ["U1"])


def test_forms_are_found_whatever_their_constants() -> None:
    form = x / (K + x)
    assert contains(c0 * y * x / (c1 + x), form, ["x", "y"])
    assert contains(c0 * y * x / (3.2 + x) + c1, form, ["x", "y"])
    assert not contains(c0 * x / (c1 + x**2), form, ["x", "y"])
    assert not contains(c0 * x / (c1 + y), form, ["x", "y"])
    assert contains(c0 * sp.exp(-c1 * x), sp.exp(-K * x), ["x", "y"])


def test_units_are_a_linear_system_in_the_exponents_of_the_constants() -> None:
    units = Units.read("x: mol/L, y: K -> mol/L/s")
    assert units.consistent(c0 * x / (c1 + x), ["c0", "c1"])
    assert units.consistent(c0 * x * sp.exp(-c1 / y), ["c0", "c1"])
    assert not units.consistent(c0 * x * sp.exp(-c1 / y) + c1 * x, ["c0", "c1"])  # c1 cannot be K and 1/s
    assert not units.consistent(c0 * x * sp.exp(-1 / y), ["c0"])
    assert dimension_of("N*m") == dimension_of("kg*m^2/s^2")
    assert dimension_of("hare/year") == {"hare": 1.0, "time": -1.0}
    assert dimension_of("1") == {}
