"""One family of functions in several writings is one, and two families are two."""

from __future__ import annotations

import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.canonical_form import family


def told(text: str) -> str:
    names = ["c0", "c1", "c2", "c3", "x", "y"]
    expression = sp.sympify(text, locals={name: sp.Symbol(name) for name in names})
    constants = [name for name in names[:4] if sp.Symbol(name) in expression.free_symbols]
    return family(Candidate(expression, dict.fromkeys(constants, 1.0), 1, 0.0, "test"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("c0*y*(c1 + x)", "c1*x*y + c0*y"),
        ("c0 + c1*x*y", "c0*x*y - c1"),
        ("c0*x*(1 - x/c1)", "c0*x + c1*x**2"),
        ("c0*x + c1*sin(c2*x)", "c0*sin(c1*x) + c2*x"),
        ("c0 + c1*x/(c2 + x)", "c0*x/(c1 + x) + c2"),
        ("x - c0*sin(c1*y)", "x + c1*sin(c0*y)"),
    ],
)
def test_writings_of_one_family_are_one(one: str, other: str) -> None:
    assert told(one) == told(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("c0*(c1 + x)*(c2 + y)", "c0 + c1*x + c2*y + c3*x*y"),  # three constants do not give any four coefficients
        ("c0*x/(c1 + x) + c0*y", "c0*x/(c1 + x) + c2*y"),
        ("c0*c1*x + c0*c1*y", "c0*x + c1*y"),
        ("x - c0*x**2", "c1*x - c0*x**2"),
        ("x + c0*y", "2*x + c0*y"),
        ("c0*x + c0*c1*y + c1", "c0*x + c1*y + c2"),
        ("c0*sin(c1*x) + c2*sin(c1*y)", "c0*sin(c1*x) + c2*sin(c3*y)"),
        ("0", "c0"),
        ("x", "c0*x"),
    ],
)
def test_different_families_are_told_apart(one: str, other: str) -> None:
    assert told(one) != told(other)
