"""Every tutorial runs, and the numbers in its text are those that come out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import jupytext
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TUTORIALS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
