"""Refits that a folder keeps: read back exactly, for the same question only, and a selection goes on with them."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

import ude
from ude.discovery.candidate import Candidate
from ude.discovery.complexity import complexity
from ude.discovery.refit.closed_system import ClosedSystem, Constant, Forcing, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, fit_closed_form
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.selection import refits_cache
from ude.discovery.selection.refits_cache import FOLDER, RefitsCache
from ude.discovery.selection.selection import Hooks, select
from ude.errors import InputError

x, c0, c1 = sp.symbols("x c0 c1")
T = np.linspace(0.0, 4.0, 20)
DATA = [
    ObservedTrajectory(T, 3.0 * np.exp(-0.7 * T)[:, None] + 0.02 * np.random.default_rng(0).standard_normal((20, 1)))
]
SYSTEM = ClosedSystem(("x",), {"x": -c0 * x}, {"c0": Constant(1.0, 0.0)})
ONE = np.ones(1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ClosedSystem]:
    """The systems that were fitted, and not read."""
    found: list[ClosedSystem] = []

    def counted(system: ClosedSystem, *told: object) -> EmbeddedFit:
        found.append(system)
        return fit_closed_form(system, *told)  # type: ignore[arg-type]

    monkeypatch.setattr(refits_cache, "fit_closed_form", counted)
    return found


def same(one: EmbeddedFit, other: EmbeddedFit) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(EmbeddedFit)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


def test_a_refit_is_read_back_to_the_last_bit(tmp_path: Path, asked: list[ClosedSystem]) -> None:
    refit = RefitsCache(tmp_path)
    first = refit(SYSTEM, DATA, None, ONE, RefitOptions(), ONE)
    assert same(first, refit(SYSTEM, DATA, None, ONE, RefitOptions(), ONE))
    assert first.success
    hopeless = replace(SYSTEM, equations={"x": c0 * sp.exp(x**4)})  # no solution: nothing but numbers to keep
    nothing = refit(hopeless, DATA, None, ONE, RefitOptions(horizons=()), ONE)
    assert nothing.residuals is None
    assert same(nothing, refit(hopeless, DATA, None, ONE, RefitOptions(horizons=()), ONE))
    assert asked == [SYSTEM, hopeless]


def test_another_question_is_asked_anew(tmp_path: Path, asked: list[ClosedSystem]) -> None:
    refit = RefitsCache(tmp_path)
    moved = ObservedTrajectory(T, DATA[0].u + 1e-12)
    forced = ObservedTrajectory(T, DATA[0].u, {"k": Forcing((0.0, 4.0), (1.0, 2.0), None, False)})
    others = [ObservedTrajectory(T, DATA[0].u, {"k": value}) for value in (1.0, 2.0)]
    questions = [
        (SYSTEM, DATA, None, RefitOptions()),
        (replace(SYSTEM, parameters={"c0": Constant(1.1, 0.0)}), DATA, None, RefitOptions()),
        (replace(SYSTEM, noise={"x": ude.noise.LogNormal(0.1)}), DATA, None, RefitOptions()),
        (replace(SYSTEM, noise={"x": ude.noise.LogNormal(0.2)}), DATA, None, RefitOptions()),
        (SYSTEM, [moved], None, RefitOptions()),
        (SYSTEM, [forced], None, RefitOptions()),
        *[(SYSTEM, [other], None, RefitOptions()) for other in others],
        (SYSTEM, DATA, np.array([[3.0]]), RefitOptions()),
        (SYSTEM, DATA, None, RefitOptions(rtol=1e-7)),
    ]
    for system, data, u0, options in questions:
        refit(system, data, u0, ONE, options, ONE)
    assert len(asked) == len(questions)


def test_a_broken_file_is_none(tmp_path: Path, asked: list[ClosedSystem]) -> None:
    refit = RefitsCache(tmp_path)
    first = refit(SYSTEM, DATA, None, ONE, RefitOptions(), ONE)
    [path] = (tmp_path / FOLDER).iterdir()
    for content in (b"", b"nonsense", path.read_bytes()[:-40]):
        path.write_bytes(content)
        assert same(first, refit(SYSTEM, DATA, None, ONE, RefitOptions(), ONE))
    assert len(asked) == 4


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written: .*Choose another folder"):
        RefitsCache(tmp_path)(SYSTEM, DATA, None, ONE, RefitOptions(), ONE)


def test_an_interrupted_selection_goes_on_and_ends_the_same(tmp_path: Path, asked: list[ClosedSystem]) -> None:
    system = PartialSystem(("x",), {"x": sp.Function("U")(x)}, {"U": ("x",)})
    formulas = (c0, c0 * x, c0 + c1 * x, c0 * x**2, c0 * x / (c1 + x))
    front = [Candidate(f, dict.fromkeys(map(str, f.free_symbols - {x}), -0.6), 1, 0.01, "test") for f in formulas]
    front = [replace(c, complexity=complexity(c.expression, c.constants)) for c in front]

    def stop(done: int, total: int, best: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = select(system, {"U": front}, DATA)
    first = select(system, {"U": front}, DATA, hooks=Hooks(on_progress=stop, refit=RefitsCache(tmp_path)))
    assert first.interrupted
    assert len(asked) == 3
    second = select(system, {"U": front}, DATA, hooks=Hooks(refit=RefitsCache(tmp_path)))
    assert len(asked) == len(whole.ranked)  # the first three were read
    assert [(str(c), c.score) for c in second.ranked] == [(str(c), c.score) for c in whole.ranked]
