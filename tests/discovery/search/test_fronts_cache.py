"""Candidates that are kept in a folder: read back exactly, for the same question only, and never from a broken file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

import ude
from ude.discovery.candidate import Candidate
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.samples import Samples
from ude.discovery.search.fronts import SearchWarning
from ude.discovery.search.fronts_cache import FOLDER, fronts_kept_in
from ude.errors import InputError, ModelError

X, C0, C1 = sp.symbols("x c0 c1")
FORMULAS = (
    C0 * X**2 / (C1 + X) - sp.Rational(1, 3) * X,
    sp.exp(-C0 / X) * sp.sin(2.25 * X) + sp.Abs(X - C1) + sp.pi,
    sp.sqrt(X) * sp.log(X + C0) ** -2 + sp.tanh(C1 * X),
)
CALLS: list[str] = []


@dataclass(frozen=True)
class Fixed:
    """Gives the formulas and counts how often it was asked."""

    formulas: tuple[sp.Expr, ...] = FORMULAS
    fails: bool = False

    def search(self, samples: Samples) -> list[Candidate]:
        CALLS.append(samples.name)
        if self.fails:
            raise ModelError("killed")
        constants = {"c0": 0.1 + 0.2, "c1": 1 / 3}
        # numbers as NumPy's, as a search may well give them
        return [
            Candidate(e, constants, np.int64(5 + i), np.float64(0.1**i), "fixed") for i, e in enumerate(self.formulas)
        ]


def front_kept_in(
    folder: Path, own: Samples, searches: list, constraints: TermConstraints | None = None, **told
) -> list:
    known = {} if constraints is None else {own.name: constraints}
    return fronts_kept_in(folder, {own.name: own}, searches, known, **told)[own.name]


@pytest.fixture
def samples() -> Samples:
    CALLS.clear()
    x = np.linspace(0.2, 3.0, 30)
    return Samples({"x": x}, x**2, "U")


def test_front_is_read_back_exactly_and_not_searched_again(samples: Samples, tmp_path: Path) -> None:
    first = front_kept_in(tmp_path, samples, [Fixed()])
    counted: list[int] = []
    assert front_kept_in(tmp_path, samples, [Fixed()], on_search=lambda: counted.append(1)) == first
    assert {own.expression for own in first} == set(FORMULAS)
    assert first[0].constants["c0"] == 0.1 + 0.2
    assert CALLS == ["U"]
    assert counted == [1]


def test_another_question_is_searched(samples: Samples, tmp_path: Path) -> None:
    front_kept_in(tmp_path, samples, [Fixed()])
    nearly = replace(samples, output=samples.output * (1 + 1e-15))
    front_kept_in(tmp_path, nearly, [Fixed()])
    front_kept_in(tmp_path, nearly, [Fixed(FORMULAS[:1])])
    front_kept_in(tmp_path, nearly, [Fixed(FORMULAS[:1])], TermConstraints("U", max_complexity=30))
    assert len(CALLS) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"key": KEY, "candidates": [{"expression": ["os"]}]}',
        '{"key": KEY, "candidates": [{"expression": ["sympify", ["Symbol", "x"]]}]}',
        '{"key": KEY, "candidates": [{"expression": []}]}',
    ],
)
def test_broken_or_forged_file_is_searched_anew(samples: Samples, tmp_path: Path, text: str) -> None:
    first = front_kept_in(tmp_path, samples, [Fixed()])
    path = tmp_path / FOLDER / "U.json"
    key = path.read_text().split(",")[0].removeprefix('{"key": ')
    path.write_text(text.replace("KEY", key))
    assert front_kept_in(tmp_path, samples, [Fixed()]) == first
    assert len(CALLS) == 2


def test_front_without_one_of_its_searches_is_not_kept(samples: Samples, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.warns(SearchWarning, match="killed"):
            front_kept_in(tmp_path, samples, [Fixed(), Fixed(fails=True)])
    assert len(CALLS) == 4


def test_formula_that_cannot_be_written_exactly_is_not_kept(samples: Samples, tmp_path: Path) -> None:
    odd = Fixed((sp.Symbol("x", positive=True) * 2,))
    for _ in range(2):
        front_kept_in(tmp_path, samples, [odd])
    assert len(CALLS) == 2


def test_folder_that_is_a_file_is_said(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        front_kept_in(tmp_path / "file", samples, [Fixed()])


def test_candidates_of_the_library_are_kept(samples: Samples, tmp_path: Path) -> None:
    search = ude.search.LibraryRegressor(degree=2, max_terms=2)
    first = front_kept_in(tmp_path, samples, [search])
    assert (tmp_path / FOLDER / "U.json").is_file()
    assert front_kept_in(tmp_path, samples, [search]) == first


def test_terms_that_were_found_before_an_interruption_are_kept(samples: Samples, tmp_path: Path) -> None:
    both = {"U": samples, "V": replace(samples, name="V")}
    searched = []

    def interrupt() -> None:
        searched.append(len(CALLS))
        if len(searched) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fronts_kept_in(tmp_path, both, [Fixed()], {}, on_search=interrupt)
    assert CALLS == ["U", "V"]
    found = fronts_kept_in(tmp_path, both, [Fixed()], {})
    assert list(found) == ["U", "V"]
    assert CALLS == ["U", "V", "V"]
