"""Formulas for what is measured of the states of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ude.errors import InputError, ModelError
from ude.models.equations.names import TIME, is_name
from ude.models.equations.parser import Parsed, parse
from ude.models.equations.printer import to_text


class Observation:
    """Formulas for what was measured: ``Observation("y = scale*(x1 + x2)")``.

    formulas: text ``y = ...`` (several on lines, or parted by ``;``), such texts, or a dict name -> formula. They may
              use the states, the parameters and ``t``; a parameter that occurs only there is declared with the model's
              (``ude.UDE(..., observe="y = scale*x", fit="scale")``)

    Raises ModelError, with a caret under the place, for what does not parse; InputError for what is not usable.

    >>> ude.models.Observation("total = s*(x + y)")
    Observation('total = s*(x + y)')
    """

    def __init__(self, formulas: str | Mapping[str, str] | Iterable[str]) -> None:
        self.parsed: dict[str, Parsed] = {}
        for line in _lines(formulas):
            name, equals, right = line.partition("=")
            name = name.strip()
            if not equals or not is_name(name) or name == TIME or not right.strip():
                raise ModelError("an observable does not read", expected='text such as "y = scale*x"', got=repr(line))
            if name in self.parsed:
                raise ModelError(f"the observable {name} is given twice", source=line, position=0, length=len(name))
            self.parsed[name] = parse(right, source=line, offset=len(line) - len(right))
            self.parsed[name].refuse_calls("in an observable")
        if not self.parsed:
            raise InputError("observe has no formula", expected='text such as "y = scale*x"', got=repr(formulas))

    @property
    def formulas(self) -> dict[str, str]:
        """Observable -> its formula as text."""
        return {name: to_text(parsed.expression) for name, parsed in self.parsed.items()}

    @property
    def used(self) -> set[str]:
        """The names of states, parameters and time that occur in the formulas."""
        return {free.name for parsed in self.parsed.values() for free in parsed.expression.free_symbols}

    def check(self, states: Iterable[str], parameters: Iterable[str]) -> None:
        """Raise ModelError, with a caret, for a name that is neither a state, nor a parameter, nor ``t``."""
        known = (*states, *parameters, TIME)
        for parsed in self.parsed.values():
            parsed.refuse_other_names(known, "in an observable")

    def __repr__(self) -> str:
        return f"Observation({'; '.join(f'{name} = {text}' for name, text in self.formulas.items())!r})"


def _lines(formulas: Any) -> list[str]:
    given = list(formulas) if isinstance(formulas, Iterable) and not isinstance(formulas, str | Mapping) else []
    if isinstance(formulas, str):
        texts = re.split(r"[\n;]", formulas)
    elif isinstance(formulas, Mapping):
        texts = [f"{name} = {text}" for name, text in formulas.items()]
    elif given and all(isinstance(text, str) for text in given):
        texts = [part for text in given for part in re.split(r"[\n;]", text)]
    else:
        raise InputError("observe is not usable", expected='text such as "y = scale*x", or a dict', got=repr(formulas))
    return [line for line in (text.split("#", 1)[0].strip() for text in texts) if line]
