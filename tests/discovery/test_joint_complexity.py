"""What the formulas of several terms share is charged once, and nothing else is."""

from __future__ import annotations

import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.complexity import complexity
from ude.discovery.joint_complexity import joint_complexity


def charged(*texts: str) -> int:
    names = ["c0", "c1", "c2", "x", "y"]
    candidates = {}
    for i, text in enumerate(texts):
        expression = sp.sympify(text, locals={name: sp.Symbol(name) for name in names})
        constants = {name: 1.0 for name in names[:3] if sp.Symbol(name) in expression.free_symbols}
        candidates[f"U{i}"] = Candidate(expression, constants, complexity(expression, constants), 0.0, "test")
    return joint_complexity(candidates)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("c0*x*y",), 6),
        (("c0*x*y", "c0*y"), 10),
        (("c0*x*y", "c0*x*y"), 10),  # the second names what the first writes out
        (("c0*x*y", "-c0*x*y"), 10),
        (("c0*x*y", "c0*x*y", "c0*x*y"), 14),
        (("c0*x", "c0*x"), 8),  # naming an input is not shorter than writing it
        (("c0*x*y + c1*x", "c0*x*y"), 15),  # x*(c0*y + c1) and c0*x*y; nothing is won by writing x*y out
        (("c0*x*y + c1*x**2", "c0*x*y + c1*x**2"), 22),
        (("c0*x/(c1 + x)", "c0*x/(c1 + x)"), 18),  # each has its own c1
        (("0", "0"), 2),
    ],
)
def test_the_charge_is_that_of_writing_what_is_shared_once(texts: tuple[str, ...], expected: int) -> None:
    assert charged(*texts) == expected


def test_the_order_of_the_terms_does_not_matter() -> None:
    assert charged("c0*x*y + c1*x", "c0*x*y", "c0*y") == charged("c0*y", "c0*x*y", "c0*x*y + c1*x")
