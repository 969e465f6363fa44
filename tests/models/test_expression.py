"""The parser, the printer and the compiled torch function."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ude.errors import InputError, ModelError
from ude.models import parse_expression, to_text, to_torch
from ude.models.equations.functions import KNOWN_FUNCTIONS
from ude.models.equations.names import split_names
from ude.models.equations.parser import parse

x, y = sympy.symbols("x y")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x + 2*y", x + 2 * y),
        ("-x^2", -(x**2)),
        ("2^-1 * x", x / 2),
        ("x^y^2", x ** (y**2)),
        ("x - y - 1", x - y - 1),
        ("x / y / 2", x / (2 * y)),
        ("x²·y − 1", x**2 * y - 1),
        ("sqrt(x)", sympy.sqrt(x)),
        ("max(x, 0, y)", sympy.Max(x, 0, y)),
        ("2*pi*x", 2 * sympy.pi * x),
        ("+x", x),
        (".5e1*x", sympy.Float(5.0) * x),
        ("ln(x) + Abs(y)", sympy.log(x) + sympy.Abs(y)),
    ],
)
def test_text_means_what_mathematics_says(text: str, expected: sympy.Expr) -> None:
    assert parse_expression(text) == expected


@pytest.mark.parametrize("name", ["S", "I", "E", "N", "O", "Q", "beta", "gamma", "zeta", "lambda", "C", "α", "x₁"])
def test_every_name_is_a_plain_symbol(name: str) -> None:
    expression = parse_expression(f"2*{name}")
    assert {free.name for free in expression.free_symbols} == {"x1" if name == "x₁" else name}
    assert expression.diff(next(iter(expression.free_symbols))) == 2


def test_a_number_keeps_full_double_precision() -> None:
    assert float(parse_expression("0.1234567890123456789")) == 0.1234567890123456789
    assert to_text(parse_expression("0.1*x")) == "0.1*x"


def test_an_unknown_function_is_an_applied_function_with_its_place() -> None:
    parsed = parse("x - U1(x, y/2)")
    (call,) = parsed.calls
    assert parsed.expression == x - sympy.Function("U1")(x, y / 2)
    assert (call.text, call.span.position, call.span.length) == ("U1(x, y/2)", 4, 10)


def caret(error: ModelError) -> str:
    """The part of the source that the caret line marks."""
    line, marks = str(error).splitlines()[-2:]
    return line[marks.index("^") : marks.rindex("^") + 1]


@pytest.mark.parametrize(
    ("text", "message", "marked"),
    [
        ("x + * y", "the formula does not parse: expected a number, a name or '(', got '*'.", "*"),
        ("2x", "expected an operator, got 'x'. Write 2*x for a product.", "x"),
        ("x y", "Write x*y for a product.", "y"),
        ("(x + y", "this '(' is never closed.", "("),
        ("x + y)", "expected an operator or the end, got ')'.", ")"),
        ("(x, y)", "expected ')', got ','.", ","),
        ("x $ y", "'$' is not part of a formula.", "$"),
        ("x = y", "'=' is not part of a formula. Write == to compare.", "="),
        ("x > y", "a condition is not a number. Write where(condition, 1, 0) for a number that is 1 or 0.", "x > y"),
        ("2*(x > y)", "a condition is not a number.", "(x > y)"),
        ("-(x < 1)", "a condition is not a number.", "(x < 1)"),
        ("sin(not x < 1)", "a condition is not a number.", "not x < 1"),
        ("True + x", "a condition is not a number.", "True"),
        ("where(x, 1, 2)", "a number is not a condition: expected a comparison, such as x < 1.", "x"),
        ("where(x < 1 and y, 1, 2)", "a number is not a condition", "y"),
        ("where(x < 1, 2)", "where has a wrong number of arguments: expected 3, got 2.", "where"),
        ("x + Piecewise((1, x < 1))", "a Piecewise must have a value where none of its conditions holds.", "Piecewise"),
        ("Piecewise(1, x < 1)", "expected a pair (value, condition), got '1'.", "1"),
        ("Piecewise((1, x), (2, True))", "a number is not a condition", "x"),
        ("where(x < 1/0, 1, 2)", "a part of the formula is not finite", "/"),
        ("exp(x, y)", "exp has a wrong number of arguments: expected 1, got 2.", "exp"),
        ("1/0", "a part of the formula is not finite (a division by zero?).", "/"),
        ("log(0)", "a part of the formula is not finite", "log"),
        ("x*exp(1000)", "a part of the formula is not finite", "exp"),
        ("(pi*tan(2.0))^0.5", "a part of the formula is not a real number.", "^"),
        ("asin(2)*x", "a part of the formula is not a real number.", "asin"),
        ("min(x, cos(2)^(-1.5))", "a part of the formula is not a real number.", "^"),
        ("x*sqrt(-1)", "a part of the formula is not a real number.", "sqrt"),
        ("9**9**9", "a power of numbers is too large", "**"),
        ("1e999*x", "the number 1e999 is too large for a float.", "1e999"),
    ],
)
def test_an_error_points_at_the_character(text: str, message: str, marked: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_expression(text)
    assert message in str(caught.value)
    assert caret(caught.value) == marked


def test_a_missing_operand_is_marked_behind_the_end() -> None:
    with pytest.raises(ModelError) as caught:
        parse_expression("x +")
    assert str(caught.value) == (
        "the formula does not parse: expected a number, a name or '(', got the end.\n    x +\n       ^"
    )


def test_deep_nesting_is_refused_before_python_runs_out_of_stack() -> None:
    with pytest.raises(ModelError, match="nested more than 100 deep"):
        parse_expression("(" * 5000 + "x" + ")" * 5000)


def test_text_is_never_executed() -> None:
    for text in ("__import__('os')", "x.__class__", "[x]", "lambda: 1", "'a'"):
        with pytest.raises(ModelError):
            parse_expression(text)


def test_digits_round_numbers_and_never_drop_a_term() -> None:
    expression = parse_expression("0.00001234567*x + 123456.7*y + 2.0000001")
    assert to_text(expression, 3) == "1.23e-05*x + 1.23e+05*y + 2"


def test_what_has_no_meaning_in_a_model_is_refused_by_the_printer() -> None:
    with pytest.raises(ModelError, match=r"besselj\(0, x\) \(besselj\) has no meaning in a model"):
        to_text(sympy.besselj(0, x))


def test_names_are_checked() -> None:
    assert split_names("x, y", "states") == ("x", "y")
    with pytest.raises(InputError, match="states names x twice"):
        split_names("x, x", "states")
    with pytest.raises(InputError, match="states is not a list of names"):
        split_names("x, 2y", "states")


def test_the_reference_names_every_function() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    assert set(KNOWN_FUNCTIONS) <= set(re.findall(r"`(\w+)[`(]", page))


# -- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("where(0 < x <= 1, x, 0)", "where(0 < x and x <= 1, x, 0)"),
        ("where(x < 1 & y > 2 | x == y, x, 0)", "where((x < 1 and y > 2) or x == y, x, 0)"),
        ("where(~(x < 1) && !(y > 2) || x != 1, x, 0)", "where(not x < 1 and not y > 2 or x != 1, x, 0)"),
        ("ifelse(x ≤ 1 ∧ y ≥ 2 ∨ ¬ x ≠ y, x, 0)", "where(x <= 1 and y >= 2 or x == y, x, 0)"),
        ("Piecewise((x, x < 1), (0, True))", "where(x < 1, x, 0)"),
        ("piecewise((x, x < 1), (y, True), (0, x > 1))", "where(x < 1, x, y)"),
        ("where(1 < 2, x, y)", "x"),
        ("where(pi < 3, x, y)", "y"),
        ("where(x + 1 < 2*y, x, 0)", "where((x + 1) < (2*y), x, 0)"),
    ],
)
def test_conditions_may_be_written_in_several_ways(text: str, alike: str) -> None:
    assert parse_expression(text) == parse_expression(alike)


def test_sympy_piecewise_means_what_the_text_means() -> None:
    given = sympy.Piecewise((x, x < 1), (y, sympy.And(x < 2, y > 0)), (0, True))
    assert to_text(given) == "Piecewise((x, x < 1), (y, (y > 0) and (x < 2)), (0, True))"
    nested = sympy.Piecewise((1, sympy.Piecewise((x, x < 1), (y, True)) < 2), (0, True))  # SymPy makes ITE of it
    again = parse_expression(to_text(nested))
    for a, b in ((0.5, 5.0), (1.5, 5.0), (1.5, 1.0)):
        assert again.subs({x: a, y: b}) == nested.subs({x: a, y: b})
    with pytest.raises(ModelError, match="a Piecewise must have a value where none of its conditions holds"):
        to_text(sympy.Piecewise((x, x < 1)))


def test_a_step_with_another_value_at_zero_is_refused() -> None:
    with pytest.raises(ModelError, match=r"value of its own at zero.*Write Piecewise\(\(0, x < 0\), \(1, True\)\)"):
        to_text(sympy.Heaviside(x, 1))


@pytest.mark.parametrize("name", ["and", "or", "not", "True"])
def test_words_of_conditions_cannot_be_names(name: str) -> None:
    with pytest.raises(InputError, match="states is not a list of names"):
        split_names(f"x, {name}", "states")


def test_the_derivative_of_a_condition_is_that_of_the_value_taken() -> None:
    expression = parse_expression("where(x < y, x^2, y*x)")
    assert expression.diff(x) == parse_expression("where(x < y, 2*x, y)")
    assert expression.rewrite(sympy.Piecewise) == sympy.Piecewise((x**2, x < y), (x * y, True))


def test_reading_a_sum_takes_time_proportional_to_its_length() -> None:
    def calls(summands: int) -> int:
        text = " + ".join(f"{i + 0.5}*x{i}*sin({i + 1.25}*y)" for i in range(summands))
        total = 0

        def count_call(frame: object, event: str, argument: object) -> None:
            nonlocal total
            total += event in ("call", "c_call")

        sympy.core.cache.clear_cache()
        sys.setprofile(count_call)
        try:
            parse_expression(text)
        finally:
            sys.setprofile(None)
        return total

    assert calls(800) < 1.2 * 4 * calls(200)


# -- round trip: formulas are drawn as text, because text is what users write -----------------------------------------

_leaves = st.one_of(
    st.sampled_from(["x", "y", "S", "beta", "lambda", "pi"]),
    st.integers(0, 20).map(str),
    st.floats(1e-3, 1e3).map(repr),
)


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    binary = st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})")
    power = st.tuples(inner, st.sampled_from(["2", "3", "(-1)", "(-2)", "0.5", "(1/2)", "y", "(-1.5)"])).map(
        lambda p: f"({p[0]})^{p[1]}"
    )
    one = sorted(name for name, known in KNOWN_FUNCTIONS.items() if known.arguments == 1)
    unary = st.tuples(st.sampled_from([*one, "-", "U"]), inner).map(lambda p: f"{p[0]}({p[1]})")
    several = st.tuples(st.sampled_from(["min", "max", "U2"]), inner, inner).map(lambda p: f"{p[0]}({p[1]}, {p[2]})")
    order = st.tuples(inner, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), inner).map(" ".join)
    logic = st.tuples(order, st.sampled_from(["and", "or", "and not"]), order).map(" ".join)
    choice = st.tuples(st.one_of(order, logic), inner, inner).map(lambda p: f"where({p[0]}, {p[1]}, {p[2]})")
    table = st.tuples(inner, order, inner, logic, inner).map(
        lambda p: f"Piecewise(({p[0]}, {p[1]}), ({p[2]}, {p[3]}), ({p[4]}, True))"
    )
    return st.one_of(binary, power, unary, several, choice, table)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.recursive(_leaves, _grow, max_leaves=8))
def test_text_to_sympy_to_text_to_sympy_is_the_same_formula(text: str) -> None:
    try:
        expression = parse_expression(text)
    except ModelError:  # 1/0 and the like
        return
    assert parse_expression(to_text(expression)) == expression


# -- torch ------------------------------------------------------------------------------------------------------------

VALUES = {
    "x**2 + y**3 - x**4/y**5": lambda a, b: a**2 + b**3 - a**4 / b**5,
    "sqrt(x)/sqrt(y) + x^-0.5": lambda a, b: a**0.5 / b**0.5 + a**-0.5,
    "x**y + 2**x + y^1.5 + (x + 1)^-3": lambda a, b: a**b + 2**a + b**1.5 + (a + 1) ** -3,
    "max(x, 0.5) - min(y, x, 2)": lambda a, b: torch.clamp(a, min=0.5) - torch.clamp(torch.minimum(a, b), max=2.0),
    "sigmoid(x) + tanh(y)*exp(-x)": lambda a, b: 1 / (1 + torch.exp(-a)) + torch.tanh(b) * torch.exp(-a),
    "sin(2)*x + log10(y) + 1/3": lambda a, b: math.sin(2) * a + torch.log10(b) + 1 / 3,
    "heaviside(x - 1) + sign(y - 1) + abs(x - y)": lambda a, b: (
        (a > 1).to(a.dtype) + torch.sign(b - 1) + torch.abs(a - b)
    ),
    "asin(x/4) + acos(y/4) + atan(x) + sinh(y) + cosh(x) + tan(x/4) + cos(y) + log2(x)": lambda a, b: (
        torch.asin(a / 4) + torch.acos(b / 4) + torch.atan(a) + torch.sinh(b) + torch.cosh(a) + torch.tan(a / 4)
        + torch.cos(b) + torch.log2(a)
    ),
    "(x + y)/(1 + x + y) + exp(x + y)": lambda a, b: (a + b) / (1 + a + b) + torch.exp(a + b),
}  # fmt: skip


@pytest.mark.parametrize("text", VALUES)
def test_the_compiled_function_equals_torch_written_by_hand(text: str) -> None:
    a = torch.rand(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 0.1
    b = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3 + 0.1
    (value,) = to_torch([parse_expression(text)], ["x", "y"])(a, b)
    torch.testing.assert_close(value, VALUES[text](a, b), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("text", [text for text in VALUES if "heaviside" not in text and "max" not in text])
def test_the_compiled_function_has_the_right_gradient(text: str) -> None:
    function = to_torch([parse_expression(text)], ["x", "y"])
    point = tuple(torch.tensor([0.7, 1.9], dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(function, point)


def test_sigmoid_has_a_finite_gradient_where_the_quotient_has_none() -> None:
    a = torch.tensor(-800.0, dtype=torch.float64, requires_grad=True)
    (value,) = to_torch([parse_expression("sigmoid(x)")], ["x"])(a)
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.item() == 0.0
    assert sympy.diff(parse_expression("sigmoid(x)"), x).subs(x, 0.0).has(sympy.nan) is False


@pytest.mark.parametrize(
    "text",
    [
        "where(x > 0, sqrt(x), 0)",
        "where(x > 0, x*log(x), -x)",
        "where(x == 0, 1, sin(x)/x)",
        "where(x < 10, where(x > 0, 1/x^1.5, 2), exp(x))",
        "Piecewise((asin(x), x^2 < 1), (acos(x - 3), 2 < x < 4), (exp(-1000*x)*0, x > 5), (x, True))",
    ],
)
def test_a_value_that_is_not_taken_does_not_spoil_the_gradient(text: str) -> None:
    points = torch.tensor([-1e3, -1.0, -0.0, 0.5, 2.5, 30.0], dtype=torch.float64, requires_grad=True)
    expression = parse_expression(text)
    (value,) = to_torch([expression], ["x"])(points)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    exact = sympy.lambdify(x, expression.diff(x).rewrite(sympy.Piecewise), "math")
    assert gradient[3:5].tolist() == pytest.approx([exact(0.5), exact(2.5)])


def test_two_plain_numbers_to_choose_from_keep_double_precision() -> None:
    (value,) = to_torch([parse_expression("where(x < 1, 0.1, 0.3)")], ["x"])(torch.zeros(2, dtype=torch.float64))
    assert value.tolist() == [0.1, 0.1]


def test_a_number_that_occurs_twice_stays_a_number_for_max() -> None:
    text = "max(log(9)/log(2), cos(x)) + sin(x)*max(1, x)*log(9)/log(2) - max(-log(9)/log(2), x)"
    (value,) = to_torch([parse_expression(text)], ["x"])(torch.tensor([0.5], dtype=torch.float64))
    ratio = math.log(9) / math.log(2)
    assert value.item() == pytest.approx(ratio + math.sin(0.5) * ratio - 0.5)


def test_a_plain_number_has_the_shape_of_the_first_argument() -> None:
    (value,) = to_torch([sympy.Rational(1, 3)], ["x"])(torch.zeros(4, 2, dtype=torch.float64))
    assert torch.equal(value, torch.full((4, 2), 1 / 3, dtype=torch.float64))


def test_a_common_part_is_computed_once() -> None:
    function = to_torch([parse_expression("exp(x*y) + 1"), parse_expression("exp(x*y)*x")], ["x", "y"])
    assert function.__source__.count("torch.exp") == 1


def test_an_integer_beyond_64_bits_is_a_float() -> None:
    (value,) = to_torch([parse_expression("x*100000000000000000000")], ["x"])(torch.ones(1, dtype=torch.float64))
    assert value.item() == 1e20


def test_a_symbol_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ModelError, match=r"the formula x \+ y uses y: expected only x"):
        to_torch([x + y], ["x"])
