"""Read formulas from text, without executing any of it.

The parser is our own. `sympy.parse_expr` evaluates its input as Python and knows `S, I, E, N, beta, gamma, Q` as
its own objects; here every name is a plain symbol, nothing is executed, and every node knows its place in the line.

Grammar (``^`` is ``**``; both bind tighter than unary minus and to the right)::

    formula = either, which is no condition
    either  = both ("or" both)*
    both    = order ("and" order)*
    order   = "not" order | sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)*
    sum     = product (("+" | "-") product)*
    product = unary (("*" | "/") unary)*
    unary   = ("+" | "-") unary | power
    power   = atom (("**" | "^") unary | superscript)?
    atom    = number | name | name "(" either ("," either)* ")" | "(" either ")"
            | "Piecewise" "(" pair ("," pair)* ")"
    pair    = "(" sum "," either ")"

``a < x < b`` is ``a < x and x < b``; ``&``, ``&&``, ``|``, ``||``, ``~``, ``!`` are and, or, not.
"""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import sympy
from sympy.logic.boolalg import Boolean

from ude.errors import ModelError
from ude.models.equations.functions import ALIASES, COMPLETE, INCOMPLETE, KNOWN_FUNCTIONS, where
from ude.models.equations.names import LOGIC, NAME, SUPERSCRIPTS, TIME, did_you_mean, normalize_name, symbol
from ude.models.equations.printer import to_text

_MAX_DEPTH = 100
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>{NAME})"
    rf"|(?P<superscript>[{SUPERSCRIPTS}]+)|(?P<operator>\*\*|&&|\|\||[<>=!]=|[-+*/^(),<>&|~!≤≥≠∧∨¬])"
)
# One character for one character, so that positions stay those of the text that the user wrote.
_OPERATORS = {"&": "and", "&&": "and", "∧": "and", "|": "or", "||": "or", "∨": "or", "~": "not", "!": "not", "¬": "not"}
_OPERATORS |= {"≤": "<=", "≥": ">=", "≠": "!="}
_RELATIONS: dict[str, Callable[[sympy.Expr, sympy.Expr], Boolean]] = {
    "<": sympy.Lt,
    "<=": sympy.Le,
    ">": sympy.Gt,
    ">=": sympy.Ge,
    "==": sympy.Eq,
    "!=": sympy.Ne,
}
_LOOKALIKES = str.maketrans({"−": "-", "–": "-", "·": "*", "×": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/"})


@dataclass(frozen=True)
class Span:
    """A place in a source line."""

    source: str
    position: int
    length: int

    def error(self, what: str, *, expected: str = "", got: str = "", fix: str = "") -> ModelError:
        """A ModelError with its caret under this place."""
        return ModelError(
            what,
            source=self.source,
            position=self.position,
            length=self.length,
            expected=expected,
            got=got,
            fix=fix,
        )


@dataclass(frozen=True)
class UnknownCall:
    """One application of an unknown function."""

    name: str
    arguments: tuple[sympy.Expr, ...]
    span: Span
    argument_spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        return f"{self.name}({', '.join(to_text(argument) for argument in self.arguments)})"


@dataclass(frozen=True)
class Parsed:
    """A formula with the places of its names and of its unknown functions."""

    expression: sympy.Expr
    names: tuple[tuple[str, Span], ...]
    calls: tuple[UnknownCall, ...]

    def refuse_other_names(self, known: Sequence[str], where: str) -> None:
        """Raise ModelError, with a caret, for a name that is not one of `known`; `where`: "in a formula"."""
        for name, span in self.names:
            if name not in known:
                raise span.error(
                    f"unknown symbol {name} {where}",
                    expected=f"one of {', '.join(known)}",
                    fix=did_you_mean(name, known),
                )

    def refuse_calls(self, where: str) -> None:
        """Raise ModelError, with a caret, for an unknown function."""
        for call in self.calls:
            raise call.span.error(f"unknown function {call.name} {where}", fix=did_you_mean(call.name, KNOWN_FUNCTIONS))


def parse(
    text: str,
    *,
    source: str | None = None,
    offset: int = 0,
    states: Iterable[str] = (),
    symbols: Iterable[str] = (),
) -> Parsed:
    """Parse a formula.

    `source` and `offset` say where the text stands in a longer line, for the caret of errors. Names in `states` may
    be written ``x(t)``; names in `states` and `symbols` may not be used as functions. Any function that is not
    known becomes an applied `sympy.Function` and is listed in `calls`.

    Raises ModelError with the place: what does not parse, wrong number of arguments, numbers that are not finite
    and real (``1/0``, ``sqrt(-1)``, ``1e999``).
    """
    parser = _Parser(text, text if source is None else source, offset, frozenset(states), frozenset(symbols))
    expression = parser.formula()
    parser.finish()
    return Parsed(expression, tuple(parser.names), tuple(parser.calls))


def parse_expression(text: str) -> sympy.Expr:
    """The SymPy form of a formula: plain symbols, unknown functions as applied `sympy.Function`."""
    return parse(text).expression


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    start: int


class _Parser:
    """Recursive descent over the tokens of one formula."""

    def __init__(self, text: str, source: str, offset: int, states: frozenset[str], symbols: frozenset[str]) -> None:
        self.source, self.offset, self.states, self.symbols = source, offset, states, symbols
        self.names: list[tuple[str, Span]] = []
        self.calls: list[UnknownCall] = []
        self.tokens = self._tokenize(text.translate(_LOOKALIKES))
        self.index = 0
        self.depth = 0

    def _tokenize(self, text: str) -> list[_Token]:
        tokens, position = [], 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                fix = "Write == to compare." if text[position] == "=" else ""
                raise self.span(position, 1).error(f"{text[position]!r} is not part of a formula", fix=fix)
            kind, own = str(match.lastgroup), match.group()
            if kind == "name" and own in LOGIC[:3]:
                kind = "operator"
            if kind != "space":
                tokens.append(_Token(kind, own, position))
            position = match.end()
        return [*tokens, _Token("end", "", len(text.rstrip()))]

    def span(self, start: int, length: int) -> Span:
        return Span(self.source, self.offset + start, length)

    def token_span(self, token: _Token) -> Span:
        return self.span(token.start, max(1, len(token.text)))

    @property
    def token(self) -> _Token:
        return self.tokens[self.index]

    def advance(self) -> _Token:
        token = self.token
        self.index += 1
        return token

    def at(self, *texts: str) -> bool:
        return self.token.kind == "operator" and _OPERATORS.get(self.token.text, self.token.text) in texts

    def fail(self, expected: str) -> NoReturn:
        token = self.token
        got = "the end" if token.kind == "end" else repr(token.text)
        raise self.token_span(token).error("the formula does not parse", expected=expected, got=got)

    def finish(self) -> None:
        """Raise unless every token is used."""
        self.refuse_juxtaposition()
        if self.token.kind != "end":
            self.fail("an operator or the end")

    def refuse_juxtaposition(self) -> None:
        """Raise where two operands meet: ``2x``, ``x (y + 1)``."""
        if self.token.kind in ("name", "number") or self.at("("):
            raise self.token_span(self.token).error(
                "the formula does not parse",
                expected="an operator",
                got=repr(self.token.text),
                fix=f"Write {self.tokens[self.index - 1].text}*{self.token.text} for a product.",
            )

    def formula(self) -> sympy.Expr:
        start = self.token
        return self.as_number(self.either(), start)

    def as_number(self, value: sympy.Basic, token: _Token) -> sympy.Expr:
        """Refuse a condition where a number must stand."""
        if not isinstance(value, sympy.Expr):
            raise self.span_from(token).error(
                "a condition is not a number", fix="Write where(condition, 1, 0) for a number that is 1 or 0."
            )
        return value

    def as_condition(self, value: sympy.Basic, token: _Token) -> Boolean:
        """Refuse a number where a condition must stand."""
        if isinstance(value, sympy.Expr):
            raise self.span_from(token).error("a number is not a condition", expected="a comparison, such as x < 1")
        return value

    def span_from(self, token: _Token) -> Span:
        """The place from a token to where the parser stands."""
        last = self.tokens[max(self.index - 1, 0)]
        return self.span(token.start, max(1, last.start + len(last.text) - token.start))

    def either(self) -> sympy.Basic:
        start = self.token
        value = self.order()
        if not self.at("and", "or"):
            return value
        parts = [[self.as_condition(value, start)]]  # or of and
        while self.at("and", "or"):
            if self.at("or"):
                parts.append([])
            self.advance()
            start = self.token
            parts[-1].append(self.as_condition(self.order(), start))
        return sympy.Or(*(sympy.And(*part) for part in parts))

    def order(self) -> sympy.Basic:
        start = self.token
        if self.at("not"):
            self.advance()
            start = self.token
            return sympy.Not(self.as_condition(self.nested(self.order), start))
        value = self.sum()
        parts = []
        while self.at(*_RELATIONS):
            operator, left = self.advance(), self.as_number(value, start)
            start = self.token
            value = self.as_number(self.sum(), start)
            parts.append(_RELATIONS[_OPERATORS.get(operator.text, operator.text)](left, value))
        return sympy.And(*parts) if parts else value

    def sum(self) -> sympy.Expr:
        start = self.token
        value = self.product()
        if not self.at("+", "-"):
            return value
        # Added once at the end: adding one after the other would take quadratic time.
        terms = [self.as_number(value, start)]
        while self.at("+", "-"):
            operator, start = self.advance(), self.token
            right = self.as_number(self.product(), start)
            terms.append(right if operator.text == "+" else -right)
        return self.checked(sympy.Add(*terms), operator)

    def product(self) -> sympy.Expr:
        start = self.token
        value = self.unary()
        while self.at("*", "/"):
            operator, left = self.advance(), self.as_number(value, start)
            start = self.token
            right = self.as_number(self.unary(), start)
            value = self.checked(left * right if operator.text == "*" else left / right, operator)
        return value

    def unary(self) -> sympy.Expr:
        if not self.at("+", "-"):
            return self.power()
        operator, start = self.advance(), self.token
        value = self.as_number(self.nested(self.unary), start)
        return -value if operator.text == "-" else value

    def power(self) -> sympy.Expr:
        start = self.token
        base = self.atom()
        if self.token.kind == "superscript":
            operator = self.advance()
            base = self.as_number(base, start)
            return self.raise_to(base, sympy.Integer(int(normalize_name(operator.text))), operator)
        if self.at("**", "^"):
            base = self.as_number(base, start)
            operator, start = self.advance(), self.token
            return self.raise_to(base, self.as_number(self.nested(self.unary), start), operator)
        return base

    def raise_to(self, base: sympy.Expr, exponent: sympy.Expr, operator: _Token) -> sympy.Expr:
        # SymPy would compute 9**9**9 digit by digit.
        if base.is_number and exponent.is_number:
            size = abs(float(exponent.evalf())) * abs(math.log(max(1e-300, abs(float(abs(base).evalf())))))
            if size > 700.0:
                raise self.token_span(operator).error("a power of numbers is too large or too small for a float")
        return self.checked(base**exponent, operator)

    def atom(self) -> sympy.Basic:
        token = self.token
        if token.kind == "number":
            return self.number(self.advance())
        if token.kind == "name":
            self.advance()
            return self.call(token) if self.at("(") else self.name(token)
        if self.at("("):
            self.advance()
            value = self.nested(self.either)
            self.close(token)
            return value
        self.fail("a number, a name or '('")

    def close(self, opening: _Token) -> None:
        if self.at(")"):
            self.advance()
            return
        if self.token.kind == "end":
            raise self.token_span(opening).error("the formula does not parse: this '(' is never closed")
        self.refuse_juxtaposition()
        self.fail("')'")

    def nested(self, rule: Callable[[], sympy.Basic]) -> sympy.Basic:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.token_span(self.token).error(f"the formula is nested more than {_MAX_DEPTH} deep")
        value = rule()
        self.depth -= 1
        return value

    def number(self, token: _Token) -> sympy.Expr:
        if token.text.isdecimal():
            value = sympy.Integer(int(token.text)) if len(token.text) <= 300 else sympy.oo
        else:
            # By way of a double: sympy.Float("0.1") would take its precision from the number of digits.
            number = float(token.text)
            value = sympy.Float(number) if math.isfinite(number) else sympy.oo
        if value is sympy.oo:
            raise self.token_span(token).error(f"the number {token.text[:30]} is too large for a float")
        return value

    def name(self, token: _Token) -> sympy.Basic:
        name = normalize_name(token.text)
        if name in LOGIC:
            return sympy.true if name == "True" else sympy.false
        if name == "pi" and name not in self.symbols | self.states:
            return sympy.pi
        self.names.append((name, self.token_span(token)))
        return symbol(name)

    def call(self, token: _Token) -> sympy.Expr:
        opening = self.advance()
        if token.text in ("Piecewise", "piecewise") and token.text not in self.states | self.symbols:
            return self.piecewise(token, opening)
        arguments: list[sympy.Basic] = []
        spans = []
        while True:
            start = self.token
            value = self.nested(self.either)
            is_where = ALIASES.get(token.text, token.text) == "where" and not arguments
            arguments.append(self.as_condition(value, start) if is_where else self.as_number(value, start))
            spans.append(self.span_from(start))
            if not self.at(","):
                break
            self.advance()
        self.close(opening)
        return self.apply(token, tuple(arguments), tuple(spans))

    def piecewise(self, token: _Token, opening: _Token) -> sympy.Expr:
        pairs: list[sympy.Basic] = []
        while True:
            pair = self.token
            if not self.at("("):
                self.fail("a pair (value, condition)")
            self.advance()
            start = self.token
            value = self.as_number(self.nested(self.either), start)
            if not self.at(","):
                self.fail("',' and a condition")
            self.advance()
            start = self.token
            pairs += [self.as_condition(self.nested(self.either), start), value]
            self.close(pair)
            if not self.at(","):
                break
            self.advance()
        self.close(opening)
        if sympy.true not in pairs[::2]:
            raise self.token_span(token).error(INCOMPLETE, fix=COMPLETE)
        return self.checked(where(*pairs[:-2], value), token)

    def apply(self, token: _Token, arguments: tuple[sympy.Expr, ...], spans: tuple[Span, ...]) -> sympy.Expr:
        name = normalize_name(token.text)
        span = self.token_span(token)
        if name in self.states and arguments == (symbol(TIME),):
            self.names.append((name, span))
            return symbol(name)
        if name in self.states | self.symbols:
            role = "state" if name in self.states else "parameter"
            raise span.error(f"{name} is a {role} and cannot be called like a function", fix=f"Write {name}*(...).")
        known = KNOWN_FUNCTIONS.get(ALIASES.get(name, name))
        if known is None:
            end = self.tokens[self.index - 1].start + 1
            self.calls.append(UnknownCall(name, arguments, self.span(token.start, end - token.start), spans))
            return sympy.Function(name)(*arguments)
        if known.arguments is not None and len(arguments) != known.arguments:
            raise span.error(
                f"{name} has a wrong number of arguments", expected=str(known.arguments), got=str(len(arguments))
            )
        return self.checked(known.build(*arguments), token)

    def checked(self, value: sympy.Expr, token: _Token) -> sympy.Expr:
        """Refuse what is not a finite real number as soon as it arises, where its place is known."""
        number = complex(value.evalf()) if value.is_number and not value.has(sympy.zoo) else 0j
        if value.has(sympy.zoo, sympy.nan, sympy.oo, -sympy.oo) or not cmath.isfinite(number):
            raise self.token_span(token).error("a part of the formula is not finite (a division by zero?)")
        if value.has(sympy.I) or number.imag != 0.0:
            raise self.token_span(token).error("a part of the formula is not a real number")
        return value
