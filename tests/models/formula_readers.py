"""Formulas of other languages, read and evaluated: each language becomes tokens, and one grammar serves all.

What is not on the page does not group: braces of LaTeX and rows of MathML are transparent, so that ``{2x}^{3}`` is
``2 x^3``, as a reader sees it.
"""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping

Values = Mapping[str, float]
Formula = Callable[[Values], float]

FUNCTIONS: dict[str, Callable[..., float]] = {
    **{name: getattr(math, name) for name in ("sqrt", "sin", "cos", "tan", "asin", "acos", "atan")},
    **{name: getattr(math, name) for name in ("sinh", "cosh", "tanh", "log10", "log2")},
    "log": math.log,
    "exp": lambda x: math.exp(x) if x < 709 else math.inf,
    "ln": math.log,
    "abs": math.fabs,
    "min": min,
    "max": max,
    "sign": lambda x: float((x > 0) - (x < 0)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0,
    "heaviside": lambda x: 0.5 * ((x > 0) - (x < 0)) + 0.5,
}
_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
_TOKEN = re.compile(r"\s*(\d+\.?\d*(?:[eE][-+]?\d+)?|\w+|&&|\|\||[<>=!]=|\*\*|[-+*/^(),<>!?:])")
_SPELLED = {"and": "&&", "or": "||", "not": "!", "**": "^"}


def tokens_of(text: str) -> list[str]:
    """Tokens of infix text: ours, or Julia's."""
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        assert match is not None, text[position:]
        tokens.append(match[1])
        position = match.end()
    return tokens


class Reader:
    """A formula from tokens; `juxtaposed`: operands side by side are a product."""

    def __init__(self, tokens: list[str], *, juxtaposed: bool = False) -> None:
        self.tokens, self.index, self.juxtaposed = [*tokens, ""], 0, juxtaposed

    def read(self) -> Formula:
        formula = self.choice()
        assert self.token == "", (self.tokens, self.index)
        return formula

    @property
    def token(self) -> str:
        return _SPELLED.get(self.tokens[self.index], self.tokens[self.index])

    def next(self) -> str:
        self.index += 1
        return _SPELLED.get(self.tokens[self.index - 1], self.tokens[self.index - 1])

    def expect(self, token: str) -> None:
        assert self.next() == token, (token, self.tokens, self.index)

    def choice(self) -> Formula:
        condition = self.either()
        if self.token != "?":
            return condition
        self.next()
        value = self.choice()
        self.expect(":")
        other = self.choice()
        return lambda at: value(at) if condition(at) else other(at)

    def either(self) -> Formula:
        parts = [self.both()]
        while self.token == "||":
            self.next()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else lambda at: any(part(at) for part in parts)

    def both(self) -> Formula:
        parts = [self.order()]
        while self.token == "&&":
            self.next()
            parts.append(self.order())
        return parts[0] if len(parts) == 1 else lambda at: all(part(at) for part in parts)

    def order(self) -> Formula:
        if self.token == "!":
            self.next()
            denied = self.order()
            return lambda at: not denied(at)
        value, parts = self.sum(), []
        while self.token in _RELATIONS:
            compare, left, value = _RELATIONS[self.next()], value, self.sum()
            parts.append((compare, left, value))
        if not parts:
            return value
        return lambda at: all(compare(left(at), right(at)) for compare, left, right in parts)

    def sum(self) -> Formula:
        value = self.product()
        while self.token in ("+", "-"):
            sign = 1 if self.next() == "+" else -1
            value = self._sum(value, self.product(), sign)
        return value

    @staticmethod
    def _sum(left: Formula, right: Formula, sign: int) -> Formula:
        return lambda at: left(at) + sign * right(at)

    def product(self) -> Formula:
        value = self.unary()
        while self.token in ("*", "/") or (self.juxtaposed and re.match(r"[\w(]", self.token)):
            operator = self.next() if self.token in ("*", "/") else "*"
            value = self._product(value, self.unary(), operator)
        return value

    @staticmethod
    def _product(left: Formula, right: Formula, operator: str) -> Formula:
        return lambda at: left(at) * right(at) if operator == "*" else left(at) / right(at)

    def unary(self) -> Formula:
        if self.token not in ("-", "+"):
            return self.power()
        sign = -1 if self.next() == "-" else 1
        value = self.unary()
        return lambda at: sign * value(at)

    def power(self) -> Formula:
        base = self.atom()
        if self.token != "^":
            return base
        self.next()
        exponent = self.unary()
        return lambda at: float(base(at)) ** exponent(at)

    def atom(self) -> Formula:
        token = self.next()
        if token == "(":
            value = self.choice()
            self.expect(")")
            return value
        assert re.fullmatch(r"[\w.+-]+", token), (token, self.tokens, self.index)
        if token[0].isdigit():
            return lambda at: float(token)
        if token in FUNCTIONS and self.token == "^":  # sin^{2}(x)
            self.next()
            exponent, value = self.atom(), self.call(token)
            return lambda at: float(value(at)) ** exponent(at)
        if token in FUNCTIONS or token in ("where", "Piecewise"):
            return self.call(token)
        return lambda at: True if token == "True" else at[token]

    def call(self, name: str) -> Formula:
        self.expect("(")
        pairs = name == "Piecewise"
        arguments = []
        while True:
            if pairs:
                self.expect("(")
                value = self.choice()
                self.expect(",")
                arguments.append((value, self.choice()))
                self.expect(")")
            else:
                arguments.append(self.choice())
            if self.token != ",":
                break
            self.next()
        self.expect(")")
        if pairs:
            return lambda at: next(value(at) for value, condition in arguments if condition(at))
        if name == "where":
            return lambda at: arguments[1](at) if arguments[0](at) else arguments[2](at)
        return lambda at: FUNCTIONS[name](*(argument(at) for argument in arguments))


# -- LaTeX -------------------------------------------------------------------------------------------------------------

_LATEX = re.compile(r"\s*(\\left\||\\right\||\\left|\\right|\\[a-zA-Z]+|\\.|\d+\.?\d*|[a-zA-Z]|[-+^_{}()\[\],<>=&])")
_LATEX_WORDS = {
    **{rf"\{name}": name for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "log", "min", "max", "pi")},
    **{r"\sigma": "sigmoid", r"\theta": "heaviside", r"\left|": "abs(", r"\right|": ")", r"\cdot": "*", r"\,": "*"},
    **{r"\leq": "<=", r"\geq": ">=", r"\neq": "!=", r"\wedge": "&&", r"\vee": "||", r"\neg": "!", "=": "=="},
}


def latex_tokens(text: str) -> list[str]:
    return _Latex([match[1] for match in _LATEX.finditer(text)]).until("")


class _Latex:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.index = [*tokens, ""], 0

    def next(self) -> str:
        self.index += 1
        return self.tokens[self.index - 1]

    def group(self) -> list[str]:
        assert self.next() == "{", self.tokens
        return self.until("}")

    def until(self, *ends: str) -> list[str]:
        found: list[str] = []
        while self.tokens[self.index] not in ends:
            found += self.part()
        self.index += 1
        return found

    def part(self) -> list[str]:
        token = self.next()
        if token == r"\frac":
            return ["(", "(", *self.group(), ")", "/", "(", *self.group(), ")", ")"]
        if token == "^":
            return ["^", "(", *self.group(), ")"]
        if token == r"\sqrt":
            if self.tokens[self.index] == "[":
                self.next()
                root = self.until("]")
                return ["(", "(", *self.group(), ")", "^", "(", "1", "/", *root, ")", ")"]
            return ["sqrt", "(", *self.group(), ")"]
        if token in (r"\operatorname", r"\mathrm"):
            return ["".join(self.group())]
        if token == r"\begin":
            assert self.group() == list("cases")
            found = self.cases()
            # cases have no right brace: what follows would seem to belong to the last line
            assert self.tokens[self.index] not in (r"\,", "^", r"\cdot")
            return found
        if token == "{":
            return self.until("}")
        if token in (r"\left", r"\right"):
            return []
        word = _LATEX_WORDS.get(token, token)
        return ["abs", "("] if word == "abs(" else [word]

    def cases(self) -> list[str]:
        value = self.until("&")
        assert self.next() == r"\text"
        if "".join(self.group()) == "otherwise":
            self.until(r"\end")
            self.group()
            return ["(", *value, ")"]
        assert self.next() == r"\:"
        condition = self.until("\\\\")
        return ["(", "(", *condition, ")", "?", "(", *value, ")", ":", *self.cases(), ")"]


# -- MathML ------------------------------------------------------------------------------------------------------------

_MATHML_WORDS = {"−": "-", "·": "*", "¬": "!", "∧": "&&", "∨": "||", "≤": "<=", "≥": ">=", "≠": "!=", "=": "=="}
_MATHML_WORDS |= {"π": "pi"}


def mathml_tokens(node: ET.Element) -> list[str]:
    """Tokens of presentation MathML, as they are seen."""
    children = list(node)
    if node.tag in ("mn", "mi", "mo"):
        word = node.text or ""
        # a hyphen is no minus sign
        assert "-" not in word
        return ["-", word[1:]] if node.tag == "mn" and word.startswith("−") else [_MATHML_WORDS.get(word, word)]
    if node.tag == "mspace":
        return ["*"]
    if node.tag in ("mfrac", "msqrt", "mroot", "msup"):
        one, *rest = [mathml_tokens(child) for child in children]
        if node.tag == "msqrt":
            return ["sqrt", "(", *one, *(token for part in rest for token in part), ")"]
        if node.tag == "msup":
            return [*one, "^", "(", *rest[0], ")"]
        if node.tag == "mroot":
            return ["(", "(", *one, ")", "^", "(", "1", "/", *rest[0], ")", ")"]
        return ["(", "(", *one, ")", "/", "(", *rest[0], ")", ")"]
    assert node.tag in ("mrow", "mtd"), node.tag
    if children and children[0].text == "|":
        return ["abs", "(", *mathml_tokens(_row(children[1:-1])), ")"]
    if children and children[0].text == "{":
        found: list[str] = []
        for value, (told, *condition) in (list(row) for row in children[1]):
            if (told.text or "").strip() == "otherwise":
                return [*found, "(", *mathml_tokens(value), ")", *")" * (len(children[1]) - 1)]
            found += ["(", "(", *mathml_tokens(_row(condition)), ")", "?", "(", *mathml_tokens(value), ")", ":"]
    for first, second in itertools.pairwise(children):
        assert not (_ends_with_cases(first) and second.tag == "mspace")
    return [token for child in children for token in mathml_tokens(child)]


def _ends_with_cases(node: ET.Element) -> bool:
    return node.tag == "mtable" or (len(node) > 0 and node.tag == "mrow" and _ends_with_cases(node[-1]))


def _row(children: list[ET.Element]) -> ET.Element:
    row = ET.Element("mrow")
    row.extend(children)
    return row


# -- SBML --------------------------------------------------------------------------------------------------------------

_M = "{http://www.w3.org/1998/Math/MathML}"


def content_value(node: ET.Element, at: Values) -> float:
    """The value of content MathML, as SBML has it."""
    kind = node.tag.removeprefix(_M)
    if kind == "cn":
        parts = [float(part) for part in node.itertext() if part.strip()]
        if node.get("type") == "e-notation":
            return float(f"{parts[0]}e{int(parts[1])}")
        return parts[0] / parts[1] if node.get("type") == "rational" else parts[0]
    if kind in ("ci", "csymbol"):
        return at[(node.text or "").strip()]
    if kind in ("pi", "exponentiale"):
        return math.pi if kind == "pi" else math.e
    if kind == "piecewise":
        for piece in node:
            if piece.tag == f"{_M}otherwise" or content_value(piece[1], at):
                return content_value(piece[0], at)
    assert kind == "apply", kind
    head, *rest = node
    name = head.tag.removeprefix(_M)
    if name in ("root", "log") and rest[0].tag in (f"{_M}degree", f"{_M}logbase"):
        number, value = content_value(rest[0][0], at), content_value(rest[1], at)
        return math.sqrt(value) if (name, number) == ("root", 2) else value ** (1 / number)
    values = [content_value(part, at) for part in rest]
    return _apply(name, values)


def _apply(name: str, values: list[float]) -> float:
    names = {"lt": "<", "leq": "<=", "gt": ">", "geq": ">=", "eq": "==", "neq": "!="}
    if name in names:
        return all(_RELATIONS[names[name]](a, b) for a, b in zip(values[:-1], values[1:], strict=True))
    if name in ("and", "or", "not"):
        return {"and": all(values), "or": any(values), "not": not values[0]}[name]
    if name == "minus":
        return -values[0] if len(values) == 1 else values[0] - values[1]
    if name in ("plus", "times"):
        return math.fsum(values) if name == "plus" else math.prod(values)
    if name == "divide":
        return values[0] / values[1]
    if name == "power":
        return float(values[0] ** values[1])
    return FUNCTIONS[name.replace("arc", "a")](*values)
