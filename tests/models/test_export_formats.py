"""Equations as a torch module, as SBML and as MathML: executed, read back, compared with the model itself."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from ude.models import UDE, Symbolic

ALL = """
    du/dt = p*sigmoid(u) + max(u, lambda, 0.3) + heaviside(u - 1) + abs(end)^1.5
    dend/dt = sqrt(u)/log10(u + 2) - atan(end)*exp(-t) + pi*min(end, 2) + sign(u - end)/3 + exp(2)*tanh(u)
    dtime_/dt = p/7
    dTraining/dt = 0.5
"""


def hudson_bay() -> UDE:
    text = "dhare/dt = a*hare - U1(hare, lynx)\ndlynx/dt = U2(hare, lynx) - d*lynx"
    model = UDE(text, parameters={"a": 0.480712345, "d": 0.92})
    return model.replace(
        {
            name: Symbolic({name: "c0*hare*lynx"}, "hare, lynx", {"c0": c})
            for name, c in (("U1", 0.0248), ("U2", 0.0276))
        }
    )


MODELS = pytest.mark.parametrize(
    "model", [hudson_bay(), UDE(ALL, parameters={"p": 1.5, "lambda": 0.2})], ids=["hudson_bay", "all_functions"]
)
STATES = torch.rand(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 + 0.1


def rates(model: UDE, t: float = 0.3) -> tuple[torch.Tensor, np.ndarray]:
    u = STATES[:, : len(model.states)]
    return u, model(u, None, torch.tensor(t, dtype=torch.float64)).detach().numpy()


def module_of(source: str, *arguments: Any) -> torch.nn.Module:
    assert "ude" not in source
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # the exported source is what is tested
    made: torch.nn.Module = namespace["RightHandSide"](*arguments)
    return made


# -- torch -------------------------------------------------------------------------------------------------------------


@MODELS
def test_exported_module_computes_what_the_model_computes(model: UDE) -> None:
    module = module_of(ude.export(model, to="torch"))
    u, expected = rates(model)
    np.testing.assert_allclose(module(0.3, u).detach().numpy(), expected, rtol=1e-14)
    np.testing.assert_allclose(module(torch.tensor(0.3), u[0]).detach().numpy(), expected[0], rtol=1e-6)
    assert sorted(float(p.detach()) for p in module.parameters()) == sorted(model.values().values())


def test_exported_module_learns_and_takes_unknown_functions() -> None:
    model = UDE("dx/dt = a*x - U(x, y)\ndy/dt = y", parameters={"a": 0.5})
    module = module_of(ude.export(model, to="torch"), lambda x, y: x * y)
    value = module(0.0, torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert value.tolist() == [1.0 - 6.0, 3.0]
    value.sum().backward()
    [a] = module.parameters()
    assert a.grad == 2.0


def test_names_that_a_module_keeps_are_renamed() -> None:
    source = ude.export(UDE("dx/dt = forward*x + lambda", parameters={"forward": 2, "lambda": 1.0}), to="torch")
    assert "self.forward_ = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))" in source
    assert module_of(source)(0.0, torch.tensor([3.0], dtype=torch.float64)).tolist() == [7.0]


# -- SBML --------------------------------------------------------------------------------------------------------------


def rate_rules(text: str) -> tuple[list[str], dict[str, float], dict[str, str]]:
    """States, numbers and rules of a document as libSBML reads it; refuses a document with errors."""
    libsbml = pytest.importorskip("libsbml")
    document = libsbml.readSBMLFromString(text)
    document.checkConsistency()
    # units are not said, which libSBML warns about
    errors = [document.getError(i) for i in range(document.getNumErrors())]
    assert [error.getMessage() for error in errors if error.getSeverity() >= libsbml.LIBSBML_SEV_ERROR] == []
    assert (document.getLevel(), document.getVersion()) == (3, 2)
    model = document.getModel()
    numbers = {p.getId(): p.getValue() for p in model.getListOfParameters()}
    rules = {rule.getVariable(): libsbml.formulaToL3String(rule.getMath()) for rule in model.getListOfRules()}
    return [p.getId() for p in model.getListOfParameters() if not p.getConstant()], numbers, rules


def evaluate(rule: str, numbers: dict[str, float], t: float) -> float:
    """A rule in libSBML's infix, by Python."""

    def piecewise(*parts: float) -> float:
        for value, condition in zip(parts[::2], parts[1::2], strict=False):
            if condition:
                return value
        return parts[-1]

    functions = {"ln": math.log, "arctan": math.atan, "atan": math.atan, "abs": abs, "min": min, "max": max}
    names = {"piecewise": piecewise, "time": t, "pi": math.pi, **vars(math), **functions, **numbers}
    return float(eval(rule.replace("^", "**"), {"__builtins__": {}}, names))


@MODELS
def test_sbml_read_back_has_the_rates_of_the_model(model: UDE) -> None:
    u, expected = rates(model)
    states, numbers, rules = rate_rules(ude.export(model, to="sbml"))
    assert list(rules) == states
    for row, own in zip(u.tolist(), expected, strict=True):
        at = {**numbers, **dict(zip(states, row, strict=True))}
        assert [evaluate(rules[state], at, 0.3) for state in states] == pytest.approx(own, rel=1e-12)


def test_sbml_read_back_and_integrated_follows_the_model() -> None:
    model = hudson_bay()
    start = {"hare": 30.0, "lynx": 4.0}
    states, numbers, rules = rate_rules(ude.export(model, to="sbml", u0=start))
    assert {state: numbers[state] for state in states} == start

    def slope(t: float, u: Any) -> list[float]:
        at = {**numbers, **dict(zip(states, u, strict=True))}
        return [evaluate(rules[state], at, t) for state in states]

    read = solve_ivp(slope, (0, 10), list(start.values()), rtol=1e-9, atol=1e-9).y[:, -1]
    sol = ude.solve(model.problem(list(start.values()), (0.0, 10.0)), ude.Vern7(), abstol=1e-10, reltol=1e-10)
    np.testing.assert_allclose(read, sol.u[-1].detach().numpy(), rtol=1e-6)


def test_sbml_with_an_unknown_function_says_what_to_do() -> None:
    with pytest.raises(ude.errors.ModelError, match=r"no place for unknown functions: U\. Export the equations"):
        ude.export(UDE("dx/dt = -U(x)"), to="sbml")


def test_sbml_of_an_unknown_start_is_refused() -> None:
    with pytest.raises(ude.errors.InputError, match="u0 names 'hair': expected some of hare, lynx"):
        ude.export(hudson_bay(), to="sbml", u0={"hair": 1.0})


def test_sbml_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libsbml", None)
    with pytest.raises(ude.errors.BackendMissing, match=r"pip install 'ude\[sbml\]'"):
        ude.export(hudson_bay(), to="sbml")


# -- MathML ------------------------------------------------------------------------------------------------------------


def elements(text: str) -> ET.Element:
    for entity, letter in (("&pi;", "π"), ("&ExponentialE;", "e")):  # HTML knows these, XML does not
        text = text.replace(entity, letter)
    return ET.fromstring(text)


def test_mathml_has_a_row_for_every_equation_and_every_number() -> None:
    tree = elements(ude.export(hudson_bay(), to="mathml", digits=3))
    assert len(tree.findall(".//mtr")) == 2
    assert [node.text for node in tree.iter("mn")] == ["0.481", "0.0248", "0.0276", "0.92"]
    assert [node.text for node in tree.iter("mi")].count("hare") == 4
    assert "&InvisibleTimes;" not in ude.export(hudson_bay(), to="mathml")


def test_mathml_writes_powers_of_ten_indices_and_functions() -> None:
    text = ude.export(UDE("dx/dt = -2.5e-9*x + U1(x) + max(x, 1)"), to="mathml")
    tree = elements(text)
    assert [node.text for node in tree.find(".//msup").iter("mn")] == ["10", "−9"]  # type: ignore[union-attr]
    [index] = tree.findall(".//msub")
    assert [node.text for node in index] == ["U", "1"]
    assert "max" in [node.text for node in tree.iter("mi")]


@MODELS
def test_mathml_of_every_function_is_well_formed(model: UDE) -> None:
    assert len(elements(ude.export(model, to="mathml", values=False)).findall(".//mtr")) == len(model.states)
