"""Networks and formulas as terms."""

from __future__ import annotations

import copy
import pickle

import pytest
import sympy
import torch
from torch import nn

from ude.errors import InputError, ModelError
from ude.models import ACTIVATIONS, MLP, Neural, Symbolic


def columns(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) + 0.5
    return u[..., 0], u[..., 1]


@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
def test_a_network_is_called_with_columns_and_gives_columns(shape: tuple[int, ...]) -> None:
    net = MLP("U1, U2", inputs="x, y")
    x, y = columns(*shape)
    first, second = net(x, y)
    direct = net.module(torch.stack([x, y], -1))
    assert torch.equal(first, direct[..., 0])
    assert torch.equal(second, direct[..., 1])
    single = MLP("U", inputs="x, y")(x, y)
    assert isinstance(single, torch.Tensor)
    assert single.shape == shape


def test_scales_are_those_of_the_formula() -> None:
    net = MLP("U1, U2", inputs="x, y")
    net.set_scales([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    x, y = columns(7)
    direct = net.module(torch.stack([(x - 1) / 3, (y - 2) / 4], -1))
    torch.testing.assert_close(torch.stack(net(x, y), -1), direct * torch.tensor([5.0, 6.0], dtype=torch.float64))
    assert "input_scale" in net.state_dict()


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"input_scale": [1.0]}, "input_scale has a wrong shape: expected (2,), got (1,)."),
        ({"input_scale": [1.0, 0.0]}, "input_scale is not usable: expected finite positive numbers"),
        ({"input_shift": [float("nan"), 0.0]}, "input_shift is not usable: expected finite numbers"),
    ],
)
def test_scales_that_make_no_sense_are_refused(scales: dict[str, list[float]], message: str) -> None:
    with pytest.raises(InputError) as caught:
        MLP("U", inputs="x, y").set_scales(**scales)
    assert message in str(caught.value)


def test_the_seed_decides_and_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (MLP("U", "x", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert all(parameter.dtype == torch.float64 for parameter in one.parameters())


def test_weights_fill_the_range_of_glorot_and_bengio() -> None:
    net = MLP("U", inputs="x, y", width=200, depth=2)
    weight = net.module[2].weight
    bound = (6 / 400) ** 0.5
    assert 0.98 * bound < weight.abs().max().item() <= bound
    assert weight.var().item() == pytest.approx(bound**2 / 3, rel=0.05)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_gives_finite_values_and_gradients(activation: str) -> None:
    net = MLP("U", inputs="x, y", activation=activation, depth=1)
    value = net(*columns(5)).sum()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, list(net.parameters())))


def test_a_torch_module_becomes_a_term_in_float64() -> None:
    term = Neural(nn.Linear(2, 1), inputs="x, y", outputs="U")
    assert term(*columns(5)).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP("U", "x", width=0), "width of a network must be an integer of at least 1: 0."),
        (lambda: MLP("U", "x", width=1e10), "width of a network must be an integer of at least 1: 10000000000.0."),
        (lambda: MLP("U", "x", width=10**10), "a network must have at most 100,000,000 weights: 100,000,000,020,000"),
        (lambda: MLP("U", "x", width=20_000), "400,040,000 with width=20000 and depth=2. An unknown function of a few"),
        (lambda: MLP("U", "x", width=1, depth=10**12), "depth of a network must be at most 1000: 1000000000000."),
        (lambda: MLP("U", "x", depth=1.5), "depth of a network must be an integer of at least 0: 1.5."),
        (lambda: MLP("U", "x", seed=2**70), "seed of a network must be less than 2**63: 1180591620717411303424."),
        (lambda: MLP("U", "x", activation="tanhh"), "unknown activation 'tanhh': expected one of tanh,"),
        (lambda: MLP("U", "x", activation="tanhh"), "Did you mean tanh?"),
        (lambda: MLP("U, U", "x"), "outputs of a network names U twice"),
        (lambda: MLP("exp", "x"), "the unknown function exp has the name of a known function. Rename it."),
        (lambda: MLP("U", ""), "a network needs at least one input and one output"),
        (lambda: Neural(torch.sin, "x", "U"), "the network of a Neural is not a torch module"),
        (lambda: MLP("U", "x")(*columns(2)), "U is called with a wrong number of inputs: expected 1 (x), got 2."),
        (lambda: Neural(nn.Linear(2, 3), "x, y", "U")(*columns(4)), "(*batch, outputs) = (4, 1), got (4, 3)."),
        (lambda: Symbolic({}, "x"), "a Symbolic has no formulas"),
        (lambda: Symbolic({"U": "x*z"}, "x"), "unknown symbol z in a formula: expected one of x."),
        (lambda: Symbolic({"U": "x*z"}, "x"), "    x*z\n      ^"),
        (lambda: Symbolic({"U": "V(x)"}, "x"), "unknown function V in a formula."),
        (lambda: Symbolic({"U": "x"}, "x", {"c": 1.0}), "the constant c does not occur in the formula: U = x."),
        (lambda: Symbolic({"U": "x"}, "x", {"x": 1.0}), "x is an input of the formula and a constant as well."),
    ],
)
def test_terms_that_make_no_sense_are_refused(make: object, message: str) -> None:
    with pytest.raises((InputError, ModelError)) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)


@pytest.mark.parametrize("formula", ["c0*x*y/(1 + c1*x)", sympy.sympify("c0*x*y/(1 + c1*x)")])
def test_a_formula_computes_and_differentiates(formula: object) -> None:
    term = Symbolic({"U": formula}, inputs="x, y", parameters={"c0": 0.02, "c1": 0.5})
    x, y = columns(6)
    value = term(x, y)
    torch.testing.assert_close(value, 0.02 * x * y / (1 + 0.5 * x))
    constants = {
        name: torch.tensor(v, dtype=torch.float64, requires_grad=True) for name, v in (("c0", 2.0), ("c1", 3.0))
    }
    (gradient,) = torch.autograd.grad(term.evaluate((x, y), constants).sum(), constants["c1"])
    assert gradient.item() == pytest.approx((-2 * x * x * y / (1 + 3 * x) ** 2).sum().item(), rel=1e-12)


def test_a_formula_of_constants_only_has_the_shape_of_its_inputs() -> None:
    assert Symbolic({"U": "c"}, "x, y", {"c": 3.0})(*columns(4)).tolist() == [3.0] * 4
    assert Symbolic({"U": "1/3"}, "x, y")(*columns(4)).tolist() == [1 / 3] * 4


def test_terms_survive_pickle_and_deepcopy() -> None:
    for term in (MLP("U1, U2", "x, y"), Symbolic({"U1": "a*x", "U2": "y^2"}, "x, y", {"a": 2.0})):
        for twin in (pickle.loads(pickle.dumps(term)), copy.deepcopy(term)):
            expected, got = torch.stack(term(*columns(3))), torch.stack(twin(*columns(3)))
            assert torch.equal(expected, got)
