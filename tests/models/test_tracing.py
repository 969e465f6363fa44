"""Equations read from torch functions are those of the functions."""

from __future__ import annotations

from typing import Any

import pytest
import sympy
import torch

import ude
from ude.errors import ModelError
from ude.models.equations.names import symbol


def lotka_volterra(u, p, t):
    x, y = u.unbind(-1)
    return torch.stack([p.alpha * x - p.U1(x, y), p.U2(x, y) - p.delta * y], -1)


def model(f=lotka_volterra, states="x, y", **options) -> ude.FunctionModel:
    usual = {"parameters": {"alpha": 1.3, "delta": 1.8}, "terms": [ude.MLP("U1, U2", inputs="x, y")]}
    return ude.FunctionModel(f, states, **{**usual, **options})


def test_terms_become_unknown_functions_and_stay_the_same_networks():
    traced = model().to_ude()
    x, y, alpha, delta = map(symbol, ("x", "y", "alpha", "delta"))
    u1, u2 = sympy.Function("U1"), sympy.Function("U2")
    assert traced.equations == {"x": alpha * x - u1(x, y), "y": u2(x, y) - delta * y}
    assert traced.values() == {"alpha": 1.3, "delta": 1.8}
    u = torch.rand(5, 2, dtype=torch.float64)
    torch.testing.assert_close(traced(u), model()(u), rtol=1e-14, atol=1e-14)


def test_whole_terms_arguments_and_nested_calls_are_read():
    def f(u, p, t):
        x, y = u.unbind(-1)
        u1, u2 = p.U1_U2(x * y, x)
        return torch.stack([u1 + t, p.V(u2)], -1)

    terms = [ude.MLP("U1, U2", inputs="a, b"), ude.MLP("V", inputs="c", seed=2)]
    with pytest.raises(ModelError):  # an unknown function of an unknown function is not read as an equation
        model(f, parameters={}, terms=terms).to_ude()

    def g(u, p, t):
        x, y = u.unbind(-1)
        u1, u2 = p.U1_U2(x * y, x)
        return torch.stack([u1 + t, u2], -1)

    traced = model(g, parameters={}, terms=terms[:1]).to_ude()
    x, y = symbol("x"), symbol("y")
    assert traced.equations["x"] == sympy.Function("U1")(x * y, x) + symbol("t")


def styles():
    def indexing(u, p, t):
        return torch.stack([u[..., 0] * p.alpha, -u[..., 1] / (1 + u[..., 0] ** 2)], -1)

    def in_place(u, p, t):
        du = torch.zeros_like(u)
        du[..., 0] = torch.exp(-u[..., 1]) * torch.sin(t)
        du[..., 1] = torch.sqrt(u[..., 0]) - p.alpha
        return du

    def matrix(u, p, t):
        a = torch.tensor([[0.0, 1.5], [-2.0, 0.25]], dtype=u.dtype)
        return u @ a.T - p.alpha * u * u.sum(-1, keepdim=True)

    def functions(u, p, t):
        x, y = u.unbind(-1)
        first = torch.tanh(x) + torch.relu(y - 0.3) + torch.sigmoid(x * y) + torch.log1p(x)
        return torch.stack([first, torch.maximum(x, y).pow(1.5) - torch.abs(y - x) * p.alpha], dim=-1)

    return [indexing, in_place, matrix, functions]


@pytest.mark.parametrize("f", styles(), ids=lambda f: f.__name__)
def test_every_style_of_writing_torch_gives_the_same_rates(f):
    traced = model(f, parameters={"alpha": 0.7}, terms=[]).to_ude()
    u = 0.1 + torch.rand(20, 2, dtype=torch.float64)
    t = torch.rand(20, dtype=torch.float64)
    torch.testing.assert_close(traced(u, None, t), model(f, parameters={"alpha": 0.7}, terms=[])(u, None, t))


def branching(u, p, t):
    return u if u[0] > 0 else -u


def sorting(u, p, t):
    return torch.sort(u, dim=-1).values


def random(u, p, t):
    return u + random.offset


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (branching, "decides by the value of a tensor, so it is no formula. Write the two cases with torch.minimum"),
        (sorting, "uses aten.sort.default, which formulas here do not have. Put that part into a term"),
    ],
)
def test_what_is_no_formula_is_refused_with_the_reason(f, text):
    with pytest.raises(ModelError, match=text):
        model(f, parameters={}, terms=[]).to_ude()


def test_a_function_with_memory_is_refused():
    count = [0.0]

    def remembering(u, p, t):
        count[0] += 1.0
        return u * count[0]

    with pytest.raises(ModelError, match="do not agree with it: a difference of .* no memory of earlier calls"):
        model(remembering, parameters={}, terms=[]).to_ude()


def test_a_parameter_of_an_observable_stays():
    traced = model(parameters={"alpha": 1.3, "delta": 1.8, "scale": 2.5}).to_ude({"seen": "scale*x"})
    assert traced.values() == {"alpha": 1.3, "delta": 1.8, "scale": 2.5}
    assert traced.observables == {"seen": "scale*x"}
    again = ude.UDE.from_dict(traced.to_dict())
    assert (again.values(), again.observables) == (traced.values(), traced.observables)


def test_torch_where_and_comparisons_become_conditions() -> None:
    def f(u: torch.Tensor, p: Any, t: torch.Tensor) -> torch.Tensor:
        x, y = u.unbind(-1)
        dx = torch.where((x < 1) & (t > p.lag), -p.k * x, torch.heaviside(y, torch.tensor(0.5, dtype=y.dtype)))
        return torch.stack([dx, torch.where(~(x >= 0.5), x, y) + (x > 0.7) * y], -1)

    traced = ude.FunctionModel(f, "x, y", parameters={"k": 2.0, "lag": 0.3}).to_ude()
    assert ude.export(traced, values=False).splitlines()[0] == (
        "dx/dt = where((t > lag) and (x < 1), -k*x, Piecewise((0, y < 0), (0.5, y == 0), (1, True)))"
    )
