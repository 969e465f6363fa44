"""Names in formulas: which are possible, how they are compared, and what was meant by one that is not known."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

import sympy

from ude.errors import InputError

TIME = "t"
"""Name of the independent variable in every model."""
LOGIC = ("and", "or", "not", "True", "False")
"""Words of conditions, which cannot be names."""

SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
NAME = rf"[^\W\d{SUPERSCRIPTS}][^\W{SUPERSCRIPTS}]*"


def normalize_name(name: str) -> str:
    """The spelling under which a name is known: Unicode NFKC, as Python does for identifiers (``x₁`` is ``x1``)."""
    return unicodedata.normalize("NFKC", name)


def split_names(names: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Names from ``"x, y"`` or from a list of strings, checked to be names and to be distinct."""
    if isinstance(names, str):
        parts = [part.strip() for part in names.replace(";", ",").split(",")]
        parts = [] if parts == [""] else parts
    else:
        parts = list(names)
    for part in parts:
        if not isinstance(part, str) or not is_name(part):
            raise InputError(
                f"{what} is not a list of names", expected='text such as "x, y" or a list of names', got=repr(names)
            )
    result = tuple(normalize_name(part) for part in parts)
    for name in result:
        if result.count(name) > 1:
            raise InputError(f"{what} names {name} twice", expected="distinct names", got=repr(names))
    return result


def is_name(text: str) -> bool:
    """Whether `text` can name a state, a parameter or a function."""
    possible = re.fullmatch(NAME, text) is not None and normalize_name(text).isidentifier()
    return possible and normalize_name(text) not in LOGIC


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"Did you mean beta?"`` when a known name is near, otherwise an empty text."""
    pool = sorted(set(known))
    near = [other for other in pool if other.lower() == name.lower()]
    near = near or difflib.get_close_matches(name, pool, n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""


def join_sentences(*sentences: str) -> str:
    """The sentences that are not empty, with a blank between."""
    return " ".join(sentence for sentence in sentences if sentence)


def symbol(name: str) -> sympy.Symbol:
    """The one symbol of that name: no assumptions, so that text and SymPy input meet in the same objects."""
    return sympy.Symbol(name)
