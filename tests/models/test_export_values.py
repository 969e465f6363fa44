"""Every function in every language: what an export says, as readers of our own read it, is what the model computes."""

from __future__ import annotations

import itertools
import math
import random
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ude
from tests.models.formula_readers import Reader, Values, content_value, latex_tokens, mathml_tokens, tokens_of
from ude.models.equations.functions import KNOWN_FUNCTIONS

PARAMETERS = {"k": 1.7, "q": -0.4}
ONE = sorted(name for name, known in KNOWN_FUNCTIONS.items() if known.arguments == 1)
SEVERAL = ["min(x, y)", "max(x, y)", "min(x, 0, k*y)", "max(-1, x, y - x)", "max(x, 2) - min(2.5, y)"]
CONDITIONS = [
    "where(x < 0, y, k)",
    "where(x <= 0, 1, 2)*y",
    "where(x > y or not (y >= 1), -x^2, x*y)",
    "where(0 < x < 1 and y != 0, 0.1, 0.2)",
    "where(x == 0, sqrt(2), sin(x)/x)",
    "where(x > 0, x*log(x), 0)",
    "where(x*x < 1, asin(x), where(x > 0, 2*x, sqrt(-x)))",
    "Piecewise((1, x < -1), (x^2, x < 0 and y < 0), (-k, x >= 1 or y > 1), (x - y, True))^2",
    "exp(-where(t < x, x, y))*where(x < y, k, q)",
    "k - where(x < 0, 1, 2)/where(y < 0, 3, x + 4)",
]
PRECEDENCE = """
    -x^2 | (-x)^2 | (x + y)^3 | x^-2 | (x + y)^-1 | (x*y)^-2 | x/(y*k) | x/y/k | x/(y/k) | x - (y - k)
    x - (y + k)*q | -(x + y)*k | -x*(y - k) | x*(-y) | x/(-3) | (-2.5)*x | -1e-7*x*y | 3 - 1e-7 | 2^x | 2^-x
    0.5^(x + y) | 1e-7^x | 2.5e8^(x/9) | x^(y^2) | abs(x)^y^2 | (abs(x)^y)^k | (2^x)^y | -(2^x) | -2^x | (1/3)^x
    (2/3)^x*y | x^(1/3) | x^(2/3) | x^(-1/3) | x^-2.5 | x^1.5 | 1/sqrt(x) | sqrt(x)^3 | sqrt(x + y)/y | exp(-x)^2
    exp(x)^y | exp(x)^-1 | sin(x)^2 | sin(x)^-1 | 1/sin(x)^2 | abs(x - y)^1.5 | abs(x)^2 | sigmoid(x)^3
    heaviside(x)^2 | sigmoid(-x*y)/k | log(x)^2 | log(x^2) | exp(1)*x | exp(2) - x | pi*x | pi^2*x | -pi | x/pi
    -3.5 | -3 | -1/3 | 0 | k | 7/3*x | -7/3*x | x/3 - y/7 | tanh(x)^2*k | max(x, y)^2 | -max(x, y) | 1/max(x, 3)
    min(x, y)*max(x, y) | 100000000000000000000*x | x/100000000000000000000 | 123456789012*x | 1e300*x | 1e-300*x
    x*y*k*q*t | (x + 1)*(y - 1)/(k + t^2) | (x - y)/(x^2 + 1)^2 | x^2*y^-3 | -x/(1 + y^2) | 1 - x - y | -x - y
    1/(1 + 1/(1 + x^2)) | (-k)^2 | (q*x)^3 | x^(-y) | (x + y)^(x - y) | 2^(1/2)*x | 3^(1/3)*x | sqrt(2)/3
    sin(2)*x | min(x, sqrt(2)) | atan(x)/atan(2) | log10(x)^2/k
""".replace("\n", "|").split("|")


SPECIAL = [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0]
_generator = random.Random(3)
POINTS = [(x, y, 0.7) for x, y in itertools.product(SPECIAL, SPECIAL)]
POINTS += [(_generator.uniform(-3, 3), _generator.uniform(-3, 3), _generator.uniform(0, 2)) for _ in range(20)]
POINTS += [(0.3, 7.0, 0.0), (-7.0, 0.3, 1.0)]


def value(formula: Callable[[Values], float], at: Values) -> float:
    """The value; NaN where the formula has none, or only an infinite or complex one."""
    try:
        found = formula(at)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):  # TypeError: of a complex number
        return math.nan
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else math.nan


def names_at(x: float, y: float, t: float) -> dict[str, float]:
    return {"x": x, "y": y, "t": t, "time": t, "pi": math.pi, "e": math.e, **PARAMETERS}


def random_formulas(count: int) -> list[str]:
    """Formulas grown at random from the same parts, numbers of both signs among them."""
    choose = random.Random(11)

    def grow(depth: int) -> str:
        if depth == 0 or choose.random() < 0.15:
            return choose.choice(["x", "y", "k", "q", "t", "2", "(-3)", "0.5", "(-1.5e-3)", "(1/3)"])
        kind = choose.random()
        if kind < 0.5:
            return f"({grow(depth - 1)} {choose.choice('+-*/')} {grow(depth - 1)})"
        if kind < 0.65:
            return f"({grow(depth - 1)})^{choose.choice(['2', '3', '(-1)', '(-2)', '0.5', '(1/3)', 'y'])}"
        if kind < 0.85:
            return f"{choose.choice(ONE)}({grow(depth - 1)})"
        if kind < 0.92:
            return f"{choose.choice(['min', 'max'])}({grow(depth - 1)}, {grow(depth - 1)})"
        relation = choose.choice(["<", "<=", ">", ">="])
        return f"where({grow(depth - 1)} {relation} {grow(depth - 1)}, {grow(depth - 1)}, {grow(depth - 1)})"

    found: list[str] = []
    while len(found) < count:
        text = grow(4)
        try:
            names = {free.name for free in ude.models.parse_expression(text).free_symbols}
        except ude.errors.ModelError:  # 1/0 and the like
            continue
        truth = Reader(tokens_of(text)).read()
        somewhere = sum(math.isfinite(value(truth, names_at(*point))) for point in POINTS) > 3
        cancelled = any(name in text and name not in names for name in PARAMETERS)
        found += [text] if "x" in names and somewhere and not cancelled and text not in found else []
    return found


FORMULAS = [*(f"{name}(x)" for name in ONE), *(f"k*{name}(x*y - q)" for name in ONE), *SEVERAL, *CONDITIONS]
FORMULAS += [text.strip() for text in PRECEDENCE if text.strip()] + random_formulas(100)


def model_of(text: str) -> ude.UDE:
    names = {free.name for free in ude.models.parse_expression(text).free_symbols}
    used = {name: number for name, number in PARAMETERS.items() if name in names}
    return ude.UDE(["dx/dt = " + text, "dy/dt = x"], parameters=used, states="x, y")


def body(text: str, language: str) -> Callable[[Values], float]:
    """The rate of x in the text of an export."""
    if language == "text":
        line = text.splitlines()[0].removeprefix("dx/dt = ")
        return Reader(tokens_of(line)).read()
    if language == "julia":
        line = next(line for line in text.splitlines() if "du[1] = " in line)
        return Reader(tokens_of(line.partition("=")[2])).read()
    if language == "latex":
        line = text.splitlines()[1].partition("&=")[2].removesuffix(r" \\")
        return Reader(latex_tokens(line), juxtaposed=True).read()
    for entity, letter in (("&pi;", "π"), ("&ExponentialE;", "e")):  # HTML knows these, XML does not
        text = text.replace(entity, letter)
    if language == "mathml":
        return Reader(mathml_tokens(ET.fromstring(text).findall("mtable/mtr")[0][2]), juxtaposed=True).read()
    tree = ET.fromstring(text)
    math_of_x = next(rule for rule in tree.iter() if rule.get("variable") == "x")[0][0]
    return lambda at: content_value(math_of_x, at)


@pytest.mark.parametrize("text", FORMULAS, ids=[text.replace(" ", "")[:40] for text in FORMULAS])
def test_every_language_says_what_the_model_computes(text: str) -> None:
    pytest.importorskip("libsbml")
    model = model_of(text)
    truth = Reader(tokens_of(text)).read()
    wanted = [value(truth, names_at(*point)) for point in POINTS]
    defined = [index for index, own in enumerate(wanted) if math.isfinite(own)]
    assert len(defined) > 3
    u = torch.tensor([point[:2] for point in POINTS], dtype=torch.float64)
    t = torch.tensor([point[2] for point in POINTS], dtype=torch.float64)
    found = {"model": model(u, None, t)[:, 0].detach().numpy()}
    for language in ("text", "julia", "latex", "mathml", "sbml"):
        options: dict[str, Any] = {"values": False} if language in ("text", "latex", "mathml") else {}
        rate = body(ude.export(model, to=language, **options), language)
        found[language] = np.array([value(rate, names_at(*point)) for point in POINTS])
    namespace: dict[str, Any] = {}
    exec(ude.export(model, to="python"), namespace)  # the exported source is what is tested
    exec(ude.export(model, to="torch"), namespace)
    module = namespace["RightHandSide"]()
    with np.errstate(all="ignore"):
        found["python"] = namespace["rhs"](t.numpy(), u.numpy().T)[0]
    found["python, one point"] = np.array([_alone(namespace["rhs"], point) for point in POINTS])
    found["torch"] = np.array([module(point_t, point_u)[0].item() for point_t, point_u in zip(t, u, strict=True)])
    exec(ude.export(model, to="ude"), namespace)
    found["ude"] = namespace["model"](u, None, t)[:, 0].detach().numpy()
    for language, own in found.items():
        np.testing.assert_allclose(own[defined], np.array(wanted)[defined], rtol=1e-9, atol=1e-12, err_msg=language)


def _alone(rhs: Callable[..., np.ndarray], point: tuple[float, float, float]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return float(rhs(point[2], list(point[:2]))[0])
        except (ZeroDivisionError, OverflowError, TypeError):  # of plain Python numbers: 1/0, (-1)**0.5
            return math.nan
