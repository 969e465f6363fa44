"""What is known of an unknown term before any search: a hard filter on all candidates, and less to search through.

Every statement is checked on the candidate's formula with its constants, over the box that the samples span (signs and
slopes) or exactly (values, symmetries, forms, units). Where a nuisance direction is free, the statement is about the
formula without it. Constants are refitted on the trajectories afterwards, so a sign that hangs on a constant is known
of the formula that enters the selection, not guarded in every later refit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import sympy as sp

from ude.discovery.candidate import Candidate, mark_pareto, rename_constants
from ude.discovery.complexity import complexity
from ude.discovery.constraints.units import Units
from ude.discovery.evaluation import Array, evaluate, probe
from ude.discovery.samples import Samples, normalized_error
from ude.errors import InputError, ModelError
from ude.models.equations.names import did_you_mean
from ude.models.equations.parser import parse_expression

_EXACT = 1e-8  # relative difference of values that are equal
_NEAR = 0.1  # relative distance of a fitted constant from a known one that it may be

#: What `operators` and `forbidden` may name.
OPERATORS = ("+", "-", "*", "/", "^", "abs", "sqrt", "exp", "log", "sin", "cos", "tan", "tanh", "sinh", "cosh")

Names = str | Iterable[str]


@dataclass(frozen=True)
class TermConstraints:
    """What is known of one term. Lists of names and forms may be written as one text with commas.

    term: the unknown function. variables: the only arguments that it may use. operators: the only ones of `OPERATORS`
        that it may use. max_complexity: see `ude.discovery.complexity.complexity`.
    positive, negative: its sign wherever it was met (zero is allowed).
    increasing, decreasing: arguments in which it is monotone there. even, odd: arguments in whose sign it is.
    symmetric: arguments that can be exchanged, "x, y".
    zero_at: where it is zero: "x=0"; "x=0, y=1" is one condition, "x=0 or y=0" are two.
    forbidden: operators, or forms that may not occur in it: "exp, x**2"; required: forms that must: "x*y". In a form,
        names that are not arguments stand for any constant: "x/(K + x)".
    constants: numbers that are known to occur, {"g": 9.81} or "g=9.81": a fitted constant within 10 % of one (or its
        negative) is offered with that number, which costs no constant.
    units: "x: mol/L, y: K -> mol/L/s": arguments, then the term itself. Names that SymPy does not know as units (hare)
        are units of their own. Constants may have any units, unless dimensionless_constants.
    shared: the term as a multiple of another: "-k*U2" (k is fitted, k > 0) or "-U2"; see `ude.discovery.shared_terms`.

    Raises InputError for what cannot be read.

    >>> known = ude.TermConstraints("U", variables="x", positive=True, increasing="x", zero_at="x=0")
    >>> known.variables, known.positive
    (('x',), True)
    """

    term: str
    variables: Names | None = None
    operators: Names | None = None
    max_complexity: int | None = None
    positive: bool = False
    negative: bool = False
    increasing: Names = ()
    decreasing: Names = ()
    even: Names = ()
    odd: Names = ()
    symmetric: Names = ()
    zero_at: str = ""
    forbidden: Names = ()
    required: Names = ()
    constants: str | Mapping[str, float] = field(default_factory=dict)
    units: str = ""
    dimensionless_constants: bool = False
    shared: str = ""

    def __post_init__(self) -> None:
        for name in ("increasing", "decreasing", "even", "odd", "symmetric", "forbidden", "required"):
            object.__setattr__(self, name, split(getattr(self, name)))
        for name in ("variables", "operators"):
            given = getattr(self, name)
            read = _words if name == "operators" else split
            object.__setattr__(self, name, None if given is None else read(given))
        object.__setattr__(self, "constants", _read_constants(self.term, self.constants))
        unknown = [name for name in self.operators or () if name not in OPERATORS]
        if unknown:
            raise self._error("operators", f"any of {' '.join(OPERATORS)}", " ".join(unknown))
        if self.positive and self.negative:
            raise self._error("positive and negative", "one of them", "both")
        if self.max_complexity is not None and self.max_complexity < 1:
            raise self._error("max_complexity", "1 or more", str(self.max_complexity))
        if len(split(self.symmetric)) == 1:
            raise self._error("symmetric", 'two arguments or more, "x, y"', repr(split(self.symmetric)[0]))
        for form in (*self.forbidden, *self.required):
            if form not in OPERATORS:
                self._parsed(form)
        self.conditions  # noqa: B018  read here, so that what cannot be read is said now
        if self.units:
            Units.read(self.units)

    def _error(self, what: str, expected: str, got: str) -> InputError:
        return InputError(f"TermConstraints of {self.term}: {what}", expected=expected, got=got)

    def _parsed(self, form: str) -> sp.Expr:
        try:
            return parse_expression(form)
        except ModelError as error:
            raise self._error(f"the form {form!r}", "a formula", str(error.what)) from error

    @property
    def conditions(self) -> list[dict[str, float]]:
        """The points of `zero_at`: argument -> value."""
        points = []
        for text in re.split(r"\bor\b", self.zero_at) if self.zero_at.strip() else []:
            found = re.findall(r"([^\W\d]\w*)\s*=\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)", text)
            if not found or re.sub(r"[^\W\d]\w*\s*=\s*[-+]?[\d.]+(?:[eE][-+]?\d+)?", "", text).strip(" ,"):
                raise self._error("zero_at", '"x=0", "x=0, y=1" or "x=0 or y=0"', repr(self.zero_at))
            points.append({name: float(value) for name, value in found})
        return points

    # ---- use ----------------------------------------------------------------------------------------------------

    def check(self, samples: Samples) -> None:
        """Raises InputError where the statement names something that is not an argument of the term."""
        named = {
            "variables": self.variables or (),
            **{kind: getattr(self, kind) for kind in ("increasing", "decreasing", "even", "odd", "symmetric")},
            "zero_at": [name for point in self.conditions for name in point],
            "units": Units.read(self.units).inputs if self.units else (),
        }
        for what, names in named.items():
            for name in names:
                if name not in samples.inputs:
                    raise InputError(
                        f"TermConstraints of {self.term}: {what}",
                        expected=f"arguments of {samples.name}: {', '.join(samples.inputs)}",
                        got=name,
                        fix=did_you_mean(name, samples.inputs),
                    )
        if self.units:
            missing = [name for name in samples.inputs if name not in Units.read(self.units).inputs]
            if missing:
                raise self._error("units", "those of every argument", f"none for {', '.join(missing)}")

    def restricted(self, samples: Samples) -> Samples:
        """The samples with only those inputs that the term may use."""
        if self.variables is None:
            return samples
        inputs = {name: value for name, value in samples.inputs.items() if name in self.variables}
        return replace(samples, inputs=inputs)

    def allows(self, operator: str) -> bool:
        """Whether formulas may use an operator (of `OPERATORS`)."""
        return (self.operators is None or operator in self.operators) and operator not in self.forbidden

    def applied(self, candidates: Sequence[Candidate], samples: Samples) -> list[Candidate]:
        """The candidates that may stand, with known constants put in where they fit, simplest first.

        Raises ModelError where none is left.
        """
        offered = [*candidates, *(known for c in candidates for known in self._with_known_constants(c, samples))]
        refusals = [self.why_not(candidate, samples) for candidate in offered]
        left = [candidate for candidate, refusal in zip(offered, refusals, strict=True) if refusal is None]
        if not left:
            closest = min(range(len(offered)), key=lambda index: offered[index].nmse)
            raise ModelError(
                f"no formula found for {self.term} agrees with what is known of it",
                got=f"{offered[closest].expression}: {refusals[closest]}",
                fix="Loosen the constraints, or search wider.",
            )
        return mark_pareto(left)

    def why_not(self, candidate: Candidate, samples: Samples) -> str | None:
        """Why a candidate contradicts what is known, in a few words; None where it does not."""
        for reason in (self._shape, self._forms, self._sign, self._values, self._symmetry, self._units):
            found = reason(candidate, samples)
            if found is not None:
                return found
        return None

    def _shape(self, candidate: Candidate, samples: Samples) -> str | None:
        used = {str(symbol) for symbol in candidate.expression.free_symbols} & set(samples.inputs)
        foreign = sorted(used - set(self.variables)) if self.variables is not None else []
        if foreign:
            return f"uses {', '.join(foreign)}"
        if self.max_complexity is not None and candidate.complexity > self.max_complexity:
            return f"complexity {candidate.complexity}"
        wrong = sorted(operator for operator in operators_of(candidate.expression) if not self.allows(operator))
        return f"uses {' '.join(wrong)}" if wrong else None

    def _forms(self, candidate: Candidate, samples: Samples) -> str | None:
        for form in self.forbidden:
            if form not in OPERATORS and contains(candidate.expression, self._parsed(form), samples.inputs):
                return f"contains {form}"
        for form in self.required:
            if not contains(candidate.expression, self._parsed(form), samples.inputs):
                return f"does not contain {form}"
        return None

    def _sign(self, candidate: Candidate, samples: Samples) -> str | None:
        points: dict[str, Array | float] = {name: probe(samples.inputs, name, 33) for name in samples.inputs}
        points |= candidate.constants
        for flag, sign in (("positive", 1.0), ("negative", -1.0)):
            if getattr(self, flag) and not _not_below(sign * evaluate(candidate.expression, points)):
                return f"not {flag}"
        for kind, sign in (("increasing", 1.0), ("decreasing", -1.0)):
            for name in getattr(self, kind):
                slope = _slope(candidate.expression, name)
                if not _not_below(sign * evaluate(slope, points)):
                    return f"not {kind} in {name}"
        return None

    def _values(self, candidate: Candidate, samples: Samples) -> str | None:
        size = float(np.max(np.abs(candidate.evaluate(samples.inputs))))
        for point in self.conditions:
            where = {name: np.full(samples.size, point.get(name, np.nan)) for name in samples.inputs}
            where |= {name: value for name, value in samples.inputs.items() if name not in point}
            if not _same(candidate.evaluate(where), np.zeros(samples.size), size):
                return "not zero at " + ", ".join(f"{name}={value:g}" for name, value in point.items())
        return None

    def _symmetry(self, candidate: Candidate, samples: Samples) -> str | None:
        here = candidate.evaluate(samples.inputs)
        size = float(np.max(np.abs(here)))
        for kind, sign in (("even", 1.0), ("odd", -1.0)):
            for name in getattr(self, kind):
                there = candidate.evaluate({**samples.inputs, name: -samples.inputs[name]})
                if not _same(sign * there, here, size):
                    return f"not {kind} in {name}"
        for first, second in pairwise(self.symmetric):
            swapped = {**samples.inputs, first: samples.inputs[second], second: samples.inputs[first]}
            if not _same(candidate.evaluate(swapped), here, size):
                return f"not symmetric in {first} and {second}"
        return None

    def _units(self, candidate: Candidate, samples: Samples) -> str | None:
        if not self.units or candidate.expression == 0:
            return None
        free = () if self.dimensionless_constants else tuple(candidate.constants)
        consistent = Units.read(self.units).consistent(candidate.expression, free)
        return None if consistent else "units do not agree"

    def _with_known_constants(self, candidate: Candidate, samples: Samples) -> list[Candidate]:
        found = []
        for known in _read_constants(self.term, self.constants).values():
            for name, value in candidate.constants.items():
                number = known if value * known > 0 else -known
                if abs(value - number) > _NEAR * abs(number):
                    continue
                rest = {sp.Symbol(key): v for key, v in candidate.constants.items() if key != name}
                bare = candidate.expression.xreplace({sp.Symbol(name): sp.Float(number)})
                bare, constants = rename_constants(bare, rest, tuple(samples.inputs))
                error = normalized_error(samples, evaluate(bare, {**samples.inputs, **constants}))
                found.append(Candidate(bare, constants, complexity(bare, constants), error, candidate.source))
        return found


def _slope(expression: sp.Expr, name: str) -> sp.Expr:
    """The derivative by one symbol, of real numbers: that of ``Abs(x)`` is ``sign(x)``."""
    real = {symbol: sp.Symbol(str(symbol), real=True) for symbol in expression.free_symbols}
    slope = sp.diff(expression.xreplace(real), sp.Symbol(name, real=True))
    return slope.xreplace({own: symbol for symbol, own in real.items()})


def _not_below(values: Array) -> bool:
    """Whether no value is negative, but for rounding."""
    return bool(np.all(np.isfinite(values))) and float(values.min()) >= -_EXACT * float(np.max(np.abs(values)))


def _same(values: Array, others: Array, size: float) -> bool:
    return bool(np.all(np.isfinite(values))) and float(np.max(np.abs(values - others))) <= _EXACT * size


def operators_of(expression: sp.Expr) -> set[str]:
    """Which of `OPERATORS` a formula uses. A sign is no operator; whole powers and roots are "^" and "sqrt"."""
    found: set[str] = set()
    for node in sp.preorder_traversal(expression):
        if isinstance(node, sp.Add):
            found.add("+")
        elif isinstance(node, sp.Mul):
            below = [part for part in node.args if isinstance(part, sp.Pow) and part.exp.is_negative]
            above = [part for part in node.args if part not in below and part != -1]
            found |= {"/"} if below else set()
            found |= {"*"} if len(above) > 1 or len(below) > 1 else set()
        elif isinstance(node, sp.Pow) and node.base != sp.E:
            if node.exp.is_negative:
                found.add("/")
            if abs(node.exp) == sp.Rational(1, 2):
                found.add("sqrt")
            elif node.exp not in (1, -1):
                found.add("^")
        elif isinstance(node, sp.exp):
            found.add("exp")
        elif isinstance(node, sp.Function):
            found.add(str(node.func).lower())
    return found


def contains(expression: sp.Expr, form: sp.Expr, inputs: Iterable[str]) -> bool:
    """Whether a form occurs in a formula, as a part of it or as some of the factors or terms of a part.

    Names that are not inputs stand for any constant.
    """
    variables = {sp.Symbol(name) for name in inputs}
    wanted, whole = _masked(form, variables), _masked(expression, variables)
    if isinstance(wanted, sp.Add | sp.Mul):
        parts = [part for part in wanted.args if part.free_symbols & variables]
        for node in sp.preorder_traversal(whole):
            if isinstance(node, wanted.func) and all(part in node.args for part in parts):
                return True
        return False
    return any(node == wanted for node in sp.preorder_traversal(whole))


def _masked(expression: sp.Expr, variables: set[sp.Symbol]) -> sp.Expr:
    """Every constant as one symbol: ``c1 + x`` and ``3.2 + x`` are the same form, ``2*x`` is ``#*x``."""
    one = sp.Symbol("#")
    masked = expression.xreplace(dict.fromkeys(expression.free_symbols - variables, one))
    return masked.replace(lambda node: node.is_Float, lambda node: one)


# ---- text ------------------------------------------------------------------------------------------------------------


def read_constraints(text: str) -> TermConstraints:
    """``U1: positive; zero_at x=0; variables x, y; units x: m, y: m -> m/s`` or ``U1 = -k*U2``.

    Statements are separated by semicolons; each is the name of a field of `TermConstraints` and its value, after a
    space or an equals sign. Raises InputError for what is none.
    """
    relation = re.fullmatch(r"\s*([^\W\d]\w*)\s*=\s*(.+)", text)
    if relation is not None:
        return TermConstraints(relation[1], shared=relation[2].strip())
    term, colon, rest = text.partition(":")
    if not colon or not term.strip().isidentifier():
        raise InputError(
            f"constraint {text!r}",
            expected='"TERM: statement; statement", such as "U1: positive; zero_at x=0"',
            got=text,
        )
    known = {item.name: str(item.type) for item in fields(TermConstraints) if item.name != "term"}
    values: dict[str, Any] = {}
    for statement in filter(None, (part.strip() for part in rest.split(";"))):
        name, _, value = re.sub(r"^(\w+)\s*=\s*", r"\1 ", statement).partition(" ")
        if name not in known:
            raise InputError(
                f"constraint {statement!r}",
                expected=f"one of {', '.join(known)}",
                got=name,
                fix=did_you_mean(name, known),
            )
        if known[name] == "bool":
            values[name] = value.strip().lower() not in ("false", "no")
        elif name == "max_complexity":
            if not value.strip().isdigit():
                raise InputError(f"constraint {statement!r}", expected="a whole number", got=repr(value))
            values[name] = int(value)
        else:
            values[name] = value.strip()
    return TermConstraints(term.strip(), **values)


def constraints_by_term(given: object, terms: Sequence[str]) -> dict[str, TermConstraints]:
    """TermConstraints of each term, from one `TermConstraints` or text or several of them.

    Raises InputError for other things, for terms that the model has not, and for two statements about one term.
    """
    items = (
        [given] if isinstance(given, str | TermConstraints) else list(given) if isinstance(given, Iterable) else [given]
    )
    found: dict[str, TermConstraints] = {}
    for item in items:
        one = read_constraints(item) if isinstance(item, str) else item
        if not isinstance(one, TermConstraints):
            raise InputError("constraints must be ude.TermConstraints objects, or text", got=repr(item))
        if one.term not in terms:
            raise InputError(
                f"constraints of {one.term}",
                expected=f"one of the unknown functions: {', '.join(terms)}",
                got=one.term,
                fix=did_you_mean(one.term, terms),
            )
        if one.term in found:
            raise InputError(f"constraints of {one.term} are given twice", fix="Write it as one TermConstraints.")
        found[one.term] = one
    return found


def split(names: Names) -> tuple[str, ...]:
    """Parts of a text between commas that stand outside brackets; parts of a sequence as they are."""
    if not isinstance(names, str):
        return tuple(str(name).strip() for name in names)
    parts, depth = [""], 0
    for character in names:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts if part.strip())


def _words(names: Names) -> tuple[str, ...]:
    return tuple(names.replace(",", " ").split()) if isinstance(names, str) else tuple(names)


def _read_constants(term: str, given: str | Mapping[str, float]) -> dict[str, float]:
    if not isinstance(given, str):
        pairs: list[tuple[str, Any]] = [(str(name), value) for name, value in given.items()]
    else:
        pairs = [(name.strip(), value) for name, _, value in (part.partition("=") for part in split(given))]
    found = {}
    for name, value in pairs:
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            found[name] = float("nan")
        if not np.isfinite(found[name]) or found[name] == 0.0:
            raise InputError(
                f"TermConstraints of {term}: constants", expected='numbers that are not zero, "g=9.81"', got=repr(given)
            )
    return found
