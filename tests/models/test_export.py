"""Equations in other languages."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import ude
from ude.models import UDE, Symbolic

HARE = "dhare/dt = a*hare - U1(hare, lynx)\ndlynx/dt = U2(hare, lynx) - d*lynx"
ALL = """
    du/dt = p*sigmoid(u) + max(u, lambda, 0.3) + heaviside(u - 1) + abs(end)^1.5
    dend/dt = sqrt(u)/log10(u + 2) - atan(end)*exp(-t) + pi*min(end, 2) + sign(u - end)/3
    dw/dt = p/7
"""


def hudson_bay() -> UDE:
    model = UDE(HARE, parameters={"a": 0.480712345, "d": 0.92}, fit="a, d")
    formula = "c0*hare*lynx"
    return model.replace(
        {
            "U1": Symbolic({"U1": formula}, "hare, lynx", {"c0": 0.0248}),
            "U2": Symbolic({"U2": formula}, "hare, lynx", {"c0": 0.0276}),
        }
    )


def run(source: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(source, namespace)  # the exported source is what is tested
    return namespace


@pytest.mark.parametrize(
    "model", [hudson_bay(), UDE(ALL, parameters={"p": 1.5, "lambda": 0.2})], ids=["hudson_bay", "all_functions"]
)
def test_exported_python_computes_what_the_model_computes(model: UDE) -> None:
    u = torch.rand(6, len(model.states), generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 + 0.1
    rhs = run(ude.export(model, to="python"))["rhs"]
    t = torch.tensor(0.3, dtype=torch.float64)
    expected = model(u, None, t).detach().numpy()
    np.testing.assert_allclose(rhs(0.3, u.numpy().T).T, expected, rtol=1e-13)
    np.testing.assert_allclose(rhs(0.3, list(u[0].numpy())), expected[0], rtol=1e-13)


def test_exported_python_takes_parameters_and_unknown_functions() -> None:
    source = ude.export(UDE(HARE, parameters={"a": 0.5, "d": 0.9}), to="python")
    assert "def rhs(t, u, U1, U2, a=0.5, d=0.9):" in source
    assert "U1 is an unknown function and must be given." in source
    result = run(source)["rhs"](0.0, [2.0, 3.0], lambda x, y: x * y, lambda x, y: x, a=1.0)
    assert result.tolist() == [2.0 - 6.0, 2.0 - 0.9 * 3.0]


def test_exported_ude_source_builds_the_same_model() -> None:
    model = hudson_bay()
    again = run(ude.export(model, to="ude"))["model"]
    assert isinstance(again, ude.UDE)
    u = torch.tensor([30.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(again(u), model(u), rtol=1e-15, atol=1e-15)


def test_exported_ude_source_has_the_observables_and_their_parameters() -> None:
    model = UDE("dx/dt = -k*x", parameters={"k": 1.5, "scale": 2.0}, observe="y = scale*x")
    again = run(ude.export(model, to="ude"))["model"]
    assert (again.values(), again.observables) == (model.values(), model.observables)


def test_julia_is_a_complete_function() -> None:
    assert ude.export(hudson_bay(), to="julia", digits=3) == (
        "p = (a = 0.481, d = 0.92, U1_c0 = 0.0248, U2_c0 = 0.0276)\n"
        "\n"
        "function f!(du, u, p, t)\n"
        "    hare = u[1]\n"
        "    lynx = u[2]\n"
        "    a = p[1]\n"
        "    d = p[2]\n"
        "    U1_c0 = p[3]\n"
        "    U2_c0 = p[4]\n"
        "    du[1] = a*hare - U1_c0*hare*lynx\n"
        "    du[2] = U2_c0*hare*lynx - d*lynx\n"
        "    return nothing\n"
        "end\n"
    )


def test_julia_renames_what_julia_keeps_for_itself_and_writes_julia_operators() -> None:
    source = ude.export(UDE(ALL, parameters={"p": 2, "lambda": 0.2}), to="julia")
    assert "p = (p_ = 2.0, lambda = 0.2)" in source
    assert "u_ = u[1]" in source
    assert "end_ = u[2]" in source
    assert "p_ = p[1]" in source
    assert "**" not in source
    assert "np." not in source
    assert "sigmoid" not in source
    assert "abs(end_)^1.5" in source
    assert len(re.findall(r"\bend\b", source)) == 1


def test_julia_says_which_functions_are_missing() -> None:
    source = ude.export(UDE("dx/dt = a*U(x)", parameters={"a": 1.0}), to="julia")
    assert source.startswith("# U is an unknown function: define U(...) before use\np = (a = 1.0,)\n")


def test_latex_has_a_line_for_every_equation() -> None:
    assert ude.export(hudson_bay(), to="latex", digits=3) == (
        "\\begin{aligned}\n"
        "  \\frac{d \\mathrm{hare}}{d t} &= 0.481 \\, \\mathrm{hare} "
        "- 0.0248 \\, \\mathrm{hare} \\, \\mathrm{lynx} \\\\\n"
        "  \\frac{d \\mathrm{lynx}}{d t} &= 0.0276 \\, \\mathrm{hare} \\, \\mathrm{lynx} - 0.92 \\, \\mathrm{lynx}\n"
        "\\end{aligned}"
    )


def test_latex_writes_greek_letters_powers_of_ten_and_words() -> None:
    text = ude.export(
        UDE("dx/dt = 1e-7*beta*x^2/(1 + sigmoid(x)) + U1_c0*x", parameters={"beta": 1.0, "U1_c0": 2.0}),
        to="latex",
        values=False,
    )
    assert r"\beta" in text
    assert r"1 \cdot 10^{-7}" in text
    assert r"\mathrm{U1\_c0}" in text
    assert r"\sigma\left(x\right)" in text
    assert "x^{2}" in text


def test_an_unset_parameter_keeps_its_name_in_the_text() -> None:
    assert ude.export(UDE("dx/dt = a*x + b", parameters={"b": 2.0}, fit="a")) == "dx/dt = a*x + 2.0"


# -- one entry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "matlab"}, "there is no export to 'matlab': expected one of text, latex, mathml, python, torch, julia"),
        ({"to": "pyton"}, "Did you mean python?"),
        ({"to": None}, "there is no export to None"),
        ({"digits": 0}, "digits must be a positive integer or None: 0."),
        ({"digits": 2.5}, "digits must be a positive integer or None: 2.5."),
        ({"to": "julia", "values": True}, "the export to julia has no option values: expected values with text, latex"),
        ({"to": "text", "u0": {"hare": 1.0}}, "the export to text has no option u0: expected u0 with sbml only."),
    ],
)
def test_what_an_export_cannot_do_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ude.errors.InputError, match=re.escape(message)):
        ude.export(hudson_bay(), **arguments)


def test_equations_without_a_model_are_exported_as_text_or_as_sympy() -> None:
    assert ude.export("dx/dt = -a*x", to="latex") == ude.export(UDE("dx/dt = -a*x", fit="a"), to="latex")
    assert ude.export(hudson_bay().explicit(), to="text", digits=4) == ude.export(hudson_bay(), digits=4)
    assert run(ude.export({"x": "2*x - t"}, to="python"))["rhs"](1.0, [3.0]).tolist() == [5.0]


def test_a_language_that_needs_numbers_asks_for_them() -> None:
    with pytest.raises(ude.errors.ModelError, match="a has no value: expected numbers for a, b.*parameters="):
        ude.export("dx/dt = -a*x + b", to="julia")


def test_what_has_no_equations_is_refused() -> None:
    with pytest.raises(ude.errors.InputError, match="there are no equations to export: expected a model, a fit"):
        ude.export(3)  # type: ignore[arg-type]
    with pytest.raises(ude.errors.ModelError, match="the equation has no '='"):
        ude.export("x")


def test_a_function_model_is_exported_by_its_equations() -> None:
    model = ude.FunctionModel(lambda u, p, t: -p.k * u, states="x", parameters={"k": 2.0})
    assert ude.export(model) == "dx/dt = -2.0*x"
