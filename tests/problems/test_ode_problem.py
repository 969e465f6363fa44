"""Problems, their parameters, and what is said of bad ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import ude
from tests.problems_for_tests import LV, lotka_volterra, lotka_volterra_problem
from ude.problems.ode import flatten


def test_parameters_read_as_attributes_and_items():
    p = ude.problems.Parameters(alpha=1.5, nested=ude.problems.Parameters(beta=2.0))
    assert (p.alpha, p["alpha"], p.nested.beta) == (1.5, 1.5, 2.0)
    assert list(p) == ["alpha", "nested"]
    with pytest.raises(AttributeError, match="p has no 'gamma': expected one of alpha, nested"):
        _ = p.gamma
    with pytest.raises(AttributeError, match="parameters are frozen"):
        p.alpha = 2.0


def test_parameters_copy_pickle_and_are_a_pytree():
    p = ude.problems.Parameters(alpha=torch.tensor(1.5), beta=(torch.tensor(1.0), torch.tensor(2.0)))
    for other in (copy.copy(p), copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert dict(other) == dict(p)
    leaves, structure = pytree.tree_flatten(p)
    assert [float(leaf) for leaf in leaves] == [1.5, 1.0, 2.0]
    assert dict(pytree.tree_unflatten(leaves, structure)) == dict(p)


def test_numbers_become_float64_and_tensors_keep_their_dtype():
    assert lotka_volterra_problem().u0.dtype == torch.float64
    assert lotka_volterra_problem().p.alpha.dtype == torch.float64
    assert ude.ODEProblem(lotka_volterra, torch.ones(2), (0.0, 1.0), LV).u0.dtype == torch.float32
    assert ude.ODEProblem(lotka_volterra, torch.ones(2), (0.0, 1.0), LV).p.alpha.dtype == torch.float32
    assert ude.ODEProblem(lotka_volterra, torch.tensor([1, 2]), (0, 1), LV).u0.dtype == torch.float64


def test_remake_changes_what_is_named_and_keeps_the_rest():
    prob = lotka_volterra_problem()
    other = ude.remake(prob, tspan=(0.0, 1.0), p=dict(alpha=2.0))
    assert (other.tspan, float(other.p.alpha), float(other.p.delta)) == ((0.0, 1.0), 2.0, 3.0)
    assert (prob.tspan, float(prob.p.alpha)) == ((0.0, 10.0), 1.5)
    with pytest.raises(
        ude.errors.InputError, match="remake cannot change 'tspam': expected tspan. Write tspan= in place of tspam="
    ):
        ude.remake(prob, tspam=(0, 1))
    with pytest.raises(
        ude.errors.InputError, match="p updates an unknown parameter: expected one of alpha, .*, got omega"
    ):
        ude.remake(prob, p=dict(omega=2.0))


def test_names_come_from_the_unpacking_in_the_source():
    def by_unbind(u, p, t):
        prey, predator = u.unbind(-1)
        return torch.stack([prey, predator], -1)

    def directly(u, p, t):
        a, b = u
        return torch.stack([b, a])

    class Module(nn.Module):
        def forward(self, u, p, t):
            left, right = u.unbind(-1)
            return torch.stack([right, left], -1)

    assert ude.ODEProblem(by_unbind, [1.0, 1.0], (0, 1)).state_names == ("prey", "predator")
    assert ude.ODEProblem(directly, [1.0, 1.0], (0, 1)).state_names == ("a", "b")
    assert ude.ODEProblem(Module(), [1.0, 1.0], (0, 1)).state_names == ("left", "right")
    assert ude.ODEProblem(torch.sin, [1.0, 1.0], (0, 1)).state_names == ("u1", "u2")
    assert ude.ODEProblem(by_unbind, [1.0, 1.0], (0, 1), names="x, y").state_names == ("x", "y")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"f": 3}, r"f must be callable as f\(u, p, t\): int. Pass a function."),
        (
            {"u0": 1.0},
            r"u0 must have a state axis: expected shape \(\*batch, state\), got a scalar. Write u0=\[value\].",
        ),
        ({"u0": []}, r"u0 must have at least one state: shape \(0,\)."),
        ({"u0": ["one"]}, r"u0 must be numbers or a tensor: \['one'\]"),
        ({"tspan": 3.0}, r"tspan must be a pair: expected \(start, end\), got 3.0."),
        ({"tspan": (0.0, float("nan"))}, r"the end of tspan must be finite: nan."),
        (
            {"tspan": (torch.zeros(3), 1.0)},
            r"the start of tspan must be one number or one for each .* got shape \(3,\)",
        ),
        ({"p": dict(alpha="much")}, r"p must be built of numbers, tensors and modules: 'much' of type str"),
        ({"names": "x"}, r"names must be one name for each state: expected 2 different names, got x."),
        ({"names": "x, x"}, r"names must be one name for each state: expected 2 different names, got x, x."),
    ],
)
def test_a_problem_that_cannot_be_is_refused_with_the_reason(arguments, text):
    usual = {"f": lotka_volterra, "u0": [1.0, 1.0], "tspan": (0.0, 1.0), "p": LV}
    with pytest.raises(ude.errors.InputError, match=text):
        ude.ODEProblem(**{**usual, **arguments})


def test_flatten_lists_tensors_modules_in_p_and_the_module_f():
    net, field = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = field

        def forward(self, u, p, t):
            return self.inner(u) + p.net(u) * p.scale

    prob = ude.ODEProblem(Field(), [1.0, 2.0], (0.0, 1.0), dict(scale=0.5, nothing=None, net=net))
    rhs, leaves = flatten(prob)
    assert [tuple(leaf.shape) for leaf in leaves] == [(), (2, 2), (2,), (2, 2), (2,)]
    u, t = prob.u0, torch.tensor(0.0)
    expected = field(u) + net(u) * 0.5
    torch.testing.assert_close(rhs(u, leaves, t), expected)
    # other tensors in place of the modules' own are used, and the modules stay as they are
    doubled = tuple(2 * leaf.detach() for leaf in leaves)
    other = 2 * field(u) + 2 * net(u) * 1.0
    torch.testing.assert_close(rhs(u, doubled, t), other)
    torch.testing.assert_close(rhs(u, leaves, t), expected)
