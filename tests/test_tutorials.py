"""Every tutorial runs, and the numbers in its text are those that come out."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jupytext
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TUTORIALS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the annotations of their module
    spec.loader.exec_module(module)
    return module


class Stated(NamedTuple):
    """A number that `main` returns, the words of the text that state it, and between which values they are true."""

    number: str
    words: str
    low: float
    high: float


def assert_story_is_true(name: str, folder: Path, stated: list[Stated], pictures: set[str]) -> dict[str, float]:
    got: dict[str, float] = load(name).main(fast=True, folder=folder)
    source = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    # lines of the text may break anywhere
    text = " ".join(source.replace("\n# ", " ").split())
    for number, words, low, high in stated:
        assert words in text, f"{name} no longer says {words!r}"
        assert low <= got[number] <= high, f"{number} is {got[number]:.6g}, and the text says {words!r}"
    assert {path.name for path in folder.iterdir()} == pictures
    return got


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_tutorial_is_a_notebook_that_begins_with_its_question(path: Path) -> None:
    cells = jupytext.read(path).cells
    assert cells[0].cell_type == "markdown"
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert "**The question.**" in text
    assert "## When this fails" in text
    assert any(cell.cell_type == "code" and "def main(fast: bool = False" in cell.source for cell in cells)


@pytest.mark.end_to_end
def test_hudson_bay_story_is_true(tmp_path: Path) -> None:
    got = load("01_hudson_bay").main(fast=True, folder=tmp_path)
    text = (TUTORIALS / "01_hudson_bay.py").read_text(encoding="utf-8")
    # one product in each equation, from 16 years as from ten
    assert got["product terms"] == got["product terms from one cycle"] == 2
    # stated to three digits
    [hare] = re.findall(r"= ([\d.]+)\\,\\text\{hare\} - ([\d.]+)", text)
    [lynx] = re.findall(r"= ([\d.]+)\\,\\text\{hare\}\\cdot\\text\{lynx\} - ([\d.]+)", text)
    stated = [float(number) for number in (*hare, *lynx)]
    assert [got[name] for name in ("a", "hares eaten", "lynxes fed", "d")] == pytest.approx(stated, rel=2e-3)
    # stated to one decimal
    errors = {"1900-1915": (4.8, 3.1), "1916-1920": (2.6, 3.1), "1900-1920": (4.4, 3.0)}
    for years, (hares, lynxes) in errors.items():
        assert f"{hares}" in text
        assert got[f"hare error {years}"] == pytest.approx(hares, abs=0.06)
        assert got[f"lynx error {years}"] == pytest.approx(lynxes, abs=0.06)
    # stated as bounds
    assert got["a beside networks"] < 0.3
    assert got["hare error 1910-1920 from one cycle"] > 15
    assert got["years"] == 21
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data_vs_prediction.png", "phase.png", "terms.png", "front.png", "report.html"}


def test_solvers_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("x at 10", "`x(10)` is 1.0263", 1.02630, 1.02638),
        Stated("dx(10)/dalpha", "by `alpha` is 2.161", 2.1600, 2.1615),
        Stated("error of Tsit5 at 1e-3", "`Tsit5` ends 0.88 away", 0.86, 0.89),
        Stated("calls of Vern7 for 1e-6", "`Vern7` needs 1244 calls", 1200, 1290),
        Stated("calls of Tsit5 for 1e-6", "`Tsit5` 1765", 1720, 1810),
        Stated("longest step of Tsit5 after t=0.1", "steps longer than 0.0016", 0.0014, 0.00165),
        Stated("steps of Tsit5", "`Tsit5` takes 630 steps to come to t = 1", 620, 640),
        Stated("steps of Rodas5P", "`Rodas5P` comes to t = 100000 in 130", 125, 135),
        Stated("changes of method", "changes when it finds", 1, 3),
        Stated("batches of the ensemble", "Here it is one batch", 1, 1),
        Stated("failed with MaxIters", "the code is `MaxIters`", 1, 1),
        Stated("came to t", "came to t = 0.79", 0.78, 0.80),
    ]
    got = assert_story_is_true("02_problems_and_solvers", tmp_path, stated, {"work_and_steps.png"})
    # as SciPy's Radau gives it at rtol 1e-12
    assert got["a at the end"] == pytest.approx(0.0178659, rel=1e-4)
    assert got["a at the end, method chosen by solve"] == pytest.approx(got["a at the end"], rel=1e-4)


def test_neural_ode_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("points", "We see 51 points", 51, 51),
        Stated("error by hand", "After 400 iterations the error is still 0.98", 0.9, 1.1),
        Stated("error in stages", "The error is then 0.021, which is the noise", 0.018, 0.023),
        Stated("distance where seen", "is 0.03 away from the true motion", 0.024, 0.036),
        # what a network does where it saw nothing is its own affair, and that of the last bits
        Stated("distance of the forecast", "from t = 5 to 10 is 0.5 away", 0.3, 1.2),
        Stated("distance from inside", "From (1, 0) it is 0.2 away", 0.1, 0.6),
        Stated("distance from outside", "and from (2.5, 0) 1.7", 1.0, 3.0),
        Stated("distance of the forecast from two runs", "the forecast is 0.12 away", 0.05, 0.2),
        Stated("distance from outside, two runs", "no data, it is 1.5", 0.8, 3.0),
    ]
    assert_story_is_true("03_neural_ode", tmp_path, stated, {"spiral.png"})
