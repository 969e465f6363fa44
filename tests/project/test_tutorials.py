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

TUTORIALS = Path(__file__).parents[2] / "tutorials"


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
    # one product in each equation from 16 years, and from ten
    assert (got["product terms"], got["product terms from one cycle"]) == (2, 2)
    # stated to three digits
    [hare] = re.findall(r"= ([\d.]+)\\,\\text\{hare\} - ([\d.]+)", text)
    [lynx] = re.findall(r"= ([\d.]+)\\,\\text\{hare\}\\cdot\\text\{lynx\} - ([\d.]+)", text)
    stated = [float(number) for number in (*hare, *lynx)]
    assert [got[name] for name in ("a", "hares eaten", "lynxes fed", "d")] == pytest.approx(stated, rel=2e-3)
    # stated to one decimal
    errors = {"1900-1915": (4.8, 3.1), "1916-1920": (2.6, 3.1), "1900-1920": (4.3, 3.1)}
    for years, (hares, lynxes) in errors.items():
        assert f"{hares}" in text
        assert got[f"hare error {years}"] == pytest.approx(hares, abs=0.06)
        assert got[f"lynx error {years}"] == pytest.approx(lynxes, abs=0.06)
    assert "its own `a`, 0.63" in text
    assert got["a beside networks"] == pytest.approx(0.63, abs=0.06)
    # stated as bounds
    assert got["hare error 1910-1920 from one cycle"] > 15
    assert got["years"] == 21
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"data_vs_prediction.png", "phase.png", "terms.png", "front.png", "report.html"}


@pytest.mark.end_to_end
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


@pytest.mark.end_to_end
def test_missing_physics_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("0.005: error of U1", "is 0.1 % away", 0.0005, 0.0015),
        Stated("0.05: error of U1", "with 5 % it is 0.8 %", 0.005, 0.012),
        Stated("0.005: products", "one product for each equation", 2, 2),
        Stated("0.05: products", "one product for each equation", 2, 2),
        Stated("0.005: eaten", "| 0.5 % | 0.901 |", 0.9, 0.9015),
        Stated("0.005: fed", "| 0.901 | 0.800 |", 0.7995, 0.8005),
        Stated("0.05: eaten", "| 5 % | 0.906 |", 0.904, 0.908),
        Stated("0.05: fed", "| 0.906 | 0.800 |", 0.799, 0.802),
        Stated("0.005: forecast of the formulas", "| 0.800 | 0.002 |", 0.001, 0.003),
        Stated("0.005: forecast of the networks", "| 0.002 | 0.006 |", 0.002, 0.02),
        Stated("0.05: forecast of the formulas", "| 0.800 | 0.016 |", 0.013, 0.019),
        Stated("0.05: forecast of the networks", "| 0.016 | 0.14 |", 0.05, 0.4),
    ]
    assert_story_is_true("04_missing_physics", tmp_path, stated, {"noise.png"})


@pytest.mark.end_to_end
def test_epidemic_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("saturating rule", "The measurements choose", 1, 1),
        Stated("strength", "$Q = 0.597", 0.593, 0.601),
        Stated("half", "I/(0.099 + I)$", 0.098, 0.1005),
        Stated("largest share infected", "the largest share is 0.078", 0.0765, 0.0785),
        Stated("lead", "23 units of the score behind", 17, 29),
        Stated("lead with noise of 0.002", "one unit ahead of the saturating rule", -2.5, -0.2),
        Stated("reproduction number at the peak", "at the peak it is 1.00", 0.99, 1.01),
    ]
    got = assert_story_is_true("05_epidemic", tmp_path, stated, {"epidemic.png"})
    # "the sum of all stays one"; the fitted start is what may be off
    assert got["sum of the shares at the end"] == pytest.approx(1.0, abs=2e-3)


@pytest.mark.end_to_end
def test_kinetics_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("steps of Tsit5", "`Tsit5` takes 434 steps", 400, 470),
        Stated("steps of KenCarp4", "takes 43 for all ten", 38, 48),
        Stated("residual of the network", "The residual is the noise, 0.01", 0.009, 0.0105),
        Stated("blocking formula in the front", "Among the simplest that follow the network", 1, 1),
        Stated("residual with n = 0", "The residuals are 0.137", 0.136, 0.139),
        Stated("residual with n = 1", "0.137, 0.023", 0.022, 0.024),
        Stated("residual with n = 2", "0.023 and 0.0094", 0.0092, 0.0096),
        Stated("v", "It has $v = 2.07$", 2.0, 2.14),
        Stated("K", "and $K = 1.54$", 1.48, 1.6),
    ]
    assert_story_is_true("06_stiff_kinetics", tmp_path, stated, {"kinetics.png"})


@pytest.mark.end_to_end
def test_pharmacokinetics_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("Michaelis-Menten", "The concentrations choose", 1, 1),
        Stated("fastest", "$E = 1.00\\,c/", 0.99, 1.01),
        Stated("half", "c/(3.03 + c)$", 2.95, 3.1),
        Stated("uptake", "the uptake is 1.21 an hour", 1.195, 1.215),
        Stated("highest with 60 mg", "is 2.7, 8.9 and 20.7 mg/l", 2.7, 2.8),
        Stated("highest with 120 mg", "is 2.7, 8.9 and 20.7 mg/l", 8.7, 9.1),
        Stated("highest with 180 mg", "is 2.7, 8.9 and 20.7 mg/l", 20.4, 21.0),
        Stated("dose", "It is 134 mg", 133, 135),
        Stated("mean in the end", "about 15.5 mg/l", 15.0, 16.2),
        Stated("dose for a mean of 7", "takes 112 mg", 111, 113),
        Stated("lowest of the second day", "lies between 5.0 and 11.2 mg/l", 4.99, 5.01),
        Stated("highest of the second day", "lies between 5.0 and 11.2 mg/l", 11.0, 11.4),
        Stated("largest concentration seen", "seen up to 13 mg/l", 13, 13.5),
    ]
    assert_story_is_true("08_pharmacokinetics", tmp_path, stated, {"doses.png"})


@pytest.mark.end_to_end
def test_friction_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("k beside the network", "`k` comes out as 4.00", 3.985, 4.015),
        Stated("tanh in the found formula", "the search knows no `tanh`", 0, 0),
        Stated("constants of the found formula", "with four constants", 4, 4),
        Stated("residual of the found formula over noise", "its residuals in `x` are the noise", 0.95, 1.05),
        Stated("c", "It gives $F = 0.150", 0.145, 0.155),
        Stated("d", "0.607 \\tanh(v/0.184)", 0.595, 0.615),
        Stated("w", "0.607 \\tanh(v/0.184)", 0.175, 0.195),
        Stated("residual of the own formula over noise", "its residuals too are the noise", 0.95, 1.05),
        Stated("held out, own formula", "error in x is 6.3 mm", 6.0, 6.6),
        Stated("held out, found formula", "found has 6.9 mm", 6.0, 8.0),
        Stated("held out, network", "and the network 6.0 mm", 5.3, 7.0),
        Stated("impacts", "strikes the stop four times", 4, 4),
        Stated("impacts predicted", "strikes the stop four times", 4, 4),
        Stated("error of the times", "off by 5 ms at most", 3.0, 8.0),
        Stated("restitution", "and we find 0.71", 0.70, 0.72),
    ]
    assert_story_is_true("07_friction_and_impacts", tmp_path, stated, {"friction.png"})


@pytest.mark.end_to_end
def test_fisher_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("numbers measured", "26 snapshots are 676 examples", 676, 676),
        Stated("D beside the network", "`D` comes out within 15 % of 0.01", 0.0085, 0.0115),
        Stated("largest error of the network", "nowhere more than 0.07 away", 0.0, 0.075),
        Stated("logistic law chosen", "The snapshots choose", 1, 1),
        Stated("c0", "with $c_0 = 1.00$", 0.99, 1.01),
        Stated("c1", "and $c_1 = -1.00$", -1.01, -0.99),
        Stated("D", "then `D` is 0.0099", 0.0097, 0.0101),
    ]
    got = assert_story_is_true("09_fisher_kpp", tmp_path, stated, {"fisher.png"})
    assert got["error of the formula over noise"] < 1.05


@pytest.mark.end_to_end
def test_black_hole_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("orbits seen", "The record covers six orbits", 5.9, 6.1),
        Stated("error of Newton", "off by 76 %", 0.74, 0.77),
        Stated("error where seen", "the corrected one by 0.1 %", 0.0005, 0.002),
        Stated("error of the forecast", "which it never saw, by 0.3 %", 0.0005, 0.006),
        Stated("precession, learned", "from the waveform it is 0.1976 rad", 0.1970, 0.1982),
        Stated("precession, true", "of the geodesic it is 0.1976", 0.19755, 0.19765),
        Stated("6 pi / p", "gives 0.1885", 0.1884, 0.1886),
    ]
    assert_story_is_true("10_black_holes", tmp_path, stated, {"black_hole.png"})


@pytest.mark.end_to_end
def test_belief_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("v", "From x = 5, v comes out as 1.015", 1.013, 1.018),
        Stated("fisher, lower", "interval is 0.998 to 1.032", 0.996, 1.0),
        Stated("fisher, upper", "interval is 0.998 to 1.032", 1.03, 1.034),
        Stated("profile, lower", "the profile's 0.999 to 1.033", 0.997, 1.0),
        Stated("profile, upper", "the profile's 0.999 to 1.033", 1.031, 1.034),
        Stated("bootstrap, lower", "of ten bootstrap samples lies within both", 0.999, 1.015),
        Stated("bootstrap, upper", "of ten bootstrap samples lies within both", 1.015, 1.032),
        Stated("v from 0.2", "It prints v = 0.357", 0.35, 0.365),
        Stated("k from 0.2", "and k = 0.289", 0.28, 0.30),
        Stated("rise at v = 0.25 from 0.2", "where it rises by 0.5", 0.45, 0.55),
        Stated("rise at v = 40 from 0.2", "where it rises by 2.4", 2.3, 2.5),
        Stated("rise at v = 40 from 5", "excluded by a rise of 5160", 5000, 5300),
        Stated("members part within the data", "part by 0.007 at most", 0.0003, 0.02),
        Stated("members part at x = 10", "that was seen, by 0.17", 0.03, 0.4),
        Stated("largest error within the data", "off by up to 0.069", 0.04, 0.09),
    ]
    assert_story_is_true("11_how_much_to_believe", tmp_path, stated, {"belief.png"})


@pytest.mark.end_to_end
def test_own_parts_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("rate without food", "The fitted rate is exactly 0 at s = 0", 0, 0),
        Stated("largest error of the rate", "at most 0.016 away", 0.0, 0.025),
        Stated("measured order", "from steps of 1/20 and 1/40, is 3.0", 2.95, 3.05),
        Stated("Monod's law chosen", "Monod's law wins", 1, 1),
        Stated("rate", "a rate of 0.91", 0.895, 0.915),
        Stated("half-saturation", "a half-saturation of 0.62", 0.6, 0.64),
    ]
    assert_story_is_true("12_your_own_parts", tmp_path, stated, {"own_parts.png"})


@pytest.mark.end_to_end
def test_speed_story_is_true(tmp_path: Path) -> None:
    stated = [
        # measured 58 and 21 on a busy machine
        Stated("times faster, one trajectory", "less than a twentieth of the time", 20, 1e4),
        Stated("times faster, a hundred", "still less than a fifth", 5, 1e4),
        Stated("difference of the engines", "agree to twelve digits", 0, 1e-12),
        Stated("difference with checkpoints", "is the same to 1e-12", 0, 1e-12),
        Stated("worst of the good ones", "are right to seven digits", 0, 1e-7),
        Stated("error of InterpolatingAdjoint", "is off by 0.4 %", 3.5e-3, 4.5e-3),
        Stated("error of GaussAdjoint", "`GaussAdjoint` by 0.14 %", 1.2e-3, 1.6e-3),
        Stated("error of BacksolveAdjoint", "is wrong by a factor of $10^8$ and more", 1e8, 1e12),
    ]
    assert_story_is_true("13_speed", tmp_path, stated, {"speed.png"})


@pytest.mark.end_to_end
def test_neural_ode_story_is_true(tmp_path: Path) -> None:
    stated = [
        Stated("points", "We see 51 points", 51, 51),
        Stated("error by hand", "After 400 iterations the error is still 0.98", 0.9, 1.1),
        Stated("error in stages", "The error is then 0.013, below the noise of 0.02", 0.0115, 0.016),
        Stated("distance where seen", "is 0.02 away from the true motion", 0.015, 0.026),
        # what a network does where it saw nothing is its own affair, and that of the last bits
        Stated("distance of the forecast", "from t = 5 to 10 is 1.2 away", 0.4, 3.0),
        Stated("distance from inside", "From (1, 0) it is 0.1 away", 0.05, 0.4),
        Stated("distance from outside", "and from (2.5, 0) 2.0", 0.8, 3.5),
        Stated("distance of the forecast from two runs", "the forecast is 0.4 away", 0.1, 0.9),
        Stated("distance from outside, two runs", "no data, it is 1.7", 0.7, 3.5),
    ]
    assert_story_is_true("03_neural_ode", tmp_path, stated, {"spiral.png"})
