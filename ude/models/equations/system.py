"""Read a system of equations from text or SymPy and check its names.

SymPy input is printed to text and read like text, so that both mean the same by construction and both get carets.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
from sympy.core.function import AppliedUndef

from ude.errors import InputError, ModelError
from ude.models.equations.functions import KNOWN_FUNCTIONS, to_real_symbols
from ude.models.equations.names import TIME, did_you_mean, is_name, join_sentences, normalize_name, split_names
from ude.models.equations.parser import Parsed, Span, UnknownCall, parse
from ude.models.equations.printer import to_text

EquationsLike = str | Iterable[Any] | Mapping[Any, Any]
"""Text, a list of lines, a list of `sympy.Eq`, or a dict state -> right-hand side."""

_LEFT = re.compile(
    r"\s*(?:d(?P<plain>\w+?)(?:\(t\))?\s*/\s*dt|d\s*\(\s*(?P<inside>\w+)\s*\)\s*/\s*dt|(?P<prime>\w+)\s*['’′](?:\(t\))?)\s*"
)


@dataclass(frozen=True)
class System:
    """Equations that have been read: right-hand sides in the order of the states, and the places of all names."""

    states: tuple[str, ...]
    parsed: dict[str, Parsed]

    @property
    def equations(self) -> dict[str, sympy.Expr]:
        return {state: parsed.expression for state, parsed in self.parsed.items()}

    @property
    def calls(self) -> list[UnknownCall]:
        """Every application of an unknown function, in the order of the text."""
        return [call for parsed in self.parsed.values() for call in parsed.calls]

    @property
    def used(self) -> set[str]:
        return {name for parsed in self.parsed.values() for name, _ in parsed.names}


def read_system(equations: EquationsLike, states: str | Iterable[str] | None, parameters: Iterable[str]) -> System:
    """Read equations; `states` fixes their order, otherwise it is that of the equations.

    Raises ModelError with the place: a left-hand side that is no derivative, two equations for one state, a state
    without an equation, and whatever `parse` refuses.
    """
    parameters = tuple(parameters)
    sides: dict[str, tuple[str, int, Span]] = {}
    for line in _lines(equations):
        state, right, span = _split(line)
        _check_state_name(state, span, parameters)
        if state in sides:
            raise span.error(
                f"two equations for {state}",
                expected="one equation a state",
                got=f"an earlier {sides[state][2].source!r}",
            )
        sides[state] = (line, right, span)
    if not sides:
        raise ModelError("there are no equations", expected='text such as "dx/dt = a*x"', got=repr(equations))
    order = tuple(sides) if states is None else _check_states(split_names(states, "states"), sides)
    parsed = {
        state: parse(line[right:], source=line, offset=right, states=sides, symbols=parameters)
        for state, (line, right, _) in ((state, sides[state]) for state in order)
    }
    return System(order, parsed)


def _check_states(states: tuple[str, ...], sides: Mapping[str, tuple[str, int, Span]]) -> tuple[str, ...]:
    for state in states:
        if state not in sides:
            raise ModelError(
                f"state {state} has no equation",
                expected=f"d{state}/dt = ...",
                got=f"equations for {', '.join(sides)}",
                fix=did_you_mean(state, set(sides) - set(states)),
            )
    for state, (_, _, span) in sides.items():
        if state not in states:
            raise span.error(
                f"an equation for {state}, which is not a state",
                expected=f"one of {', '.join(states)}",
                fix=did_you_mean(state, states),
            )
    return states


def _check_state_name(state: str, span: Span, parameters: tuple[str, ...]) -> None:
    if state == TIME:
        raise span.error(f"{TIME} is the time and cannot be a state", fix="Rename the state.")
    if state in KNOWN_FUNCTIONS:
        raise span.error(f"the state {state} has the name of a known function", fix="Rename it.")
    if state in parameters:
        raise span.error(f"{state} is a state and a parameter as well", fix="Rename one of them.")


def _lines(equations: EquationsLike) -> list[str]:
    """Lines of text without comments and blank lines; SymPy input printed to such lines."""
    if isinstance(equations, str):
        texts = re.split(r"[\n;]", equations)
    elif isinstance(equations, Mapping):
        texts = [f"d{_key_name(key)}/dt = {_right_text(right)}" for key, right in equations.items()]
    elif isinstance(equations, sympy.Equality):
        texts = [_line_of_equality(equations)]
    elif isinstance(equations, Iterable):
        texts = []
        for entry in equations:
            if isinstance(entry, sympy.Equality):
                texts.append(_line_of_equality(entry))
            elif isinstance(entry, str):
                texts += re.split(r"[\n;]", entry)
            else:
                raise _not_equations(entry)
    else:
        raise _not_equations(equations)
    lines = [text.split("#", 1)[0].strip() for text in texts]
    return [line for line in lines if line]


def _not_equations(got: object) -> InputError:
    return InputError(
        "the equations are not usable",
        expected='text, a list of lines "dx/dt = ...", a list of sympy.Eq, or a dict state -> right-hand side',
        got=repr(got),
    )


def _key_name(key: Any) -> str:
    if isinstance(key, sympy.Derivative) and key.variables == (sympy.Symbol(TIME),):
        key = key.expr
    if isinstance(key, AppliedUndef):
        key = key.func.__name__
    name = key if isinstance(key, str) else getattr(key, "name", None)
    if not isinstance(name, str) or not is_name(name):
        raise ModelError("the key of an equation is not a state", expected="a name, a Symbol or x(t)", got=repr(key))
    return name


def _right_text(right: Any) -> str:
    if isinstance(right, str):
        return right
    try:
        expression = to_real_symbols(right)
    except ModelError:
        raise _not_equations(right) from None
    for free in expression.free_symbols:
        if not is_name(free.name):
            raise ModelError(f"the symbol {free.name!r} is not a name", expected="letters, digits and _")
    return to_text(expression)


def _line_of_equality(equality: sympy.Equality) -> str:
    left = equality.lhs
    names = {symbol.name for symbol in getattr(left, "variables", ())}
    if not isinstance(left, sympy.Derivative) or names != {TIME} or len(left.variables) != 1:
        raise ModelError(
            "the left-hand side is not the first derivative of a state",
            source=str(equality),
            position=0,
            expected="Eq(Derivative(x(t), t), ...)",
            got=str(left),
        )
    return f"d{_key_name(left.expr)}/dt = {_right_text(equality.rhs)}"


def _split(line: str) -> tuple[str, int, Span]:
    """State, where the right-hand side begins, and the place of the left-hand side."""
    equals = _find_equals(line, 0)
    whole = Span(line, 0, len(line))
    if equals < 0:
        raise whole.error("the equation has no '='", expected="dx/dt = ...", got=repr(line))
    second = _find_equals(line, equals + 1)
    if second >= 0:
        raise Span(line, second, 1).error(
            "the equation has two '='", expected="dx/dt = ...", fix="Separate equations by new lines or ';'."
        )
    span = Span(line, 0, max(1, len(line[:equals].rstrip())))
    match = _LEFT.fullmatch(line[:equals])
    name = match and (match["plain"] or match["inside"] or match["prime"])
    if not name or not is_name(name):
        raise span.error(
            "the left-hand side is not the derivative of a state",
            expected="dNAME/dt or NAME'",
            got=repr(line[:equals].strip()),
            fix=_left_advice(line[:equals]),
        )
    if not line[equals + 1 :].strip():
        raise Span(line, equals, 1).error("the equation has no right-hand side", expected=f"d{name}/dt = ...")
    return normalize_name(name), equals + 1, span


def _find_equals(line: str, start: int) -> int:
    """Where the next ``=`` stands that is no part of a comparison; -1 where there is none."""
    match = re.compile(r"(?<![<>=!])=(?!=)").search(line, start)
    return -1 if match is None else match.start()


def _left_advice(left: str) -> str:
    if re.search(r"d[2²3³^]|''|dt[2²3³^]", left):
        return "Write an equation of higher order as several of first order."
    return f"The independent variable is always called {TIME}." if "/d" in left else ""


def check_names(
    system: System, parameters: Iterable[str], fitted: Iterable[str], elsewhere: Collection[str] = ()
) -> None:
    """Raise ModelError for names in the equations that mean nothing, and for parameters that occur nowhere.

    elsewhere: names that something else uses, such as the formulas of observables.
    """
    parameters, fitted = tuple(parameters), tuple(fitted)
    functions = {call.name for call in system.calls}
    known = {*system.states, *parameters, TIME}
    for name in parameters:
        if name == TIME or name in KNOWN_FUNCTIONS:
            what = "is the time" if name == TIME else "is a known function"
            raise ModelError(f"{name} {what} and cannot be a parameter", fix="Rename it.")
    for parsed in system.parsed.values():
        for name, span in parsed.names:
            if name in functions:
                call = next(call for call in system.calls if call.name == name)
                raise span.error(f"{name} is an unknown function and needs its arguments", fix=f"Write {call.text}.")
            if name not in known:
                raise _unknown_symbol(name, span, known)
    for name in parameters:
        if name not in system.used and name not in elsewhere:
            where = "fit" if name in fitted else "parameters"
            raise ModelError(
                f"{where} names {name}, which is not in the equations",
                fix=did_you_mean(name, {*system.used, *functions} - set(parameters) - set(system.states)),
            )


def _unknown_symbol(name: str, span: Span, known: set[str]) -> ModelError:
    guess = did_you_mean(name, known)
    advice = (
        f'Give it a value (parameters={{"{name}": 1.0}}), have it fitted (fit="{name}"), '
        f"or add an equation d{name}/dt = ... if it is a state."
    )
    return span.error(f"unknown symbol {name}", fix=join_sentences(guess, advice))


def check_calls(system: System) -> None:
    """Raise ModelError for unknown functions called in two ways, or with arguments that are not states or time."""
    first: dict[str, UnknownCall] = {}
    allowed = {*system.states, TIME}
    for call in system.calls:
        alike = [known for known in KNOWN_FUNCTIONS if known.lower() == call.name.lower()]
        if alike:
            raise call.span.error(f"unknown function {call.name}", fix=f"Did you mean {alike[0]}?")
        earlier = first.setdefault(call.name, call)
        if len(earlier.arguments) != len(call.arguments):
            raise call.span.error(
                f"{call.name} is used with two signatures", expected=f"{earlier.text} as before", got=call.text
            )
        for argument, span in zip(call.arguments, call.argument_spans, strict=True):
            expected = f"formulas of {', '.join((*system.states, TIME))}"
            strangers = sorted({free.name for free in argument.free_symbols} - allowed)
            if argument.atoms(AppliedUndef):
                raise span.error(f"an unknown function in an argument of {call.name}", expected=expected)
            if strangers:
                raise span.error(
                    f"the parameter {strangers[0]} in an argument of {call.name}",
                    expected=expected,
                    got=to_text(argument),
                )
            if not argument.free_symbols:
                raise span.error(f"a plain number as argument of {call.name}", expected=expected, got=to_text(argument))
