"""Models from text and SymPy: what they compute, what they refuse, how terms are replaced."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import sympy
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import ude
from ude.errors import InputError, ModelError
from ude.models import MLP, UDE, Neural, NeuralODE, Parameter, Symbolic

LOTKA = """
    # prey and predator
    dx/dt = alpha*x - U1(x, y)

    dy/dt = U2(x, y) - delta*y   # dies without prey
"""


def lotka(**options: object) -> UDE:
    return UDE(LOTKA, **{"parameters": {"alpha": 1.3, "delta": 1.8}, **options})  # type: ignore[arg-type]


def states(*shape: int, count: int = 2, seed: int = 5) -> Tensor:
    return torch.rand(*shape, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


# -- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (5,), (3, 5)])
def test_a_text_model_equals_torch_written_by_hand(shape: tuple[int, ...]) -> None:
    net = MLP("U1, U2", inputs="x, y")
    u = states(*shape)
    x, y = u.unbind(-1)
    u1, u2 = net(x, y)
    expected = torch.stack([1.3 * x - u1, u2 - 1.8 * y], -1)
    torch.testing.assert_close(lotka(unknown=net)(u, None, 0.0), expected, rtol=1e-15, atol=1e-15)


def test_every_way_of_writing_a_model_computes_the_same() -> None:
    t = sympy.Symbol("t")
    x, y, u1, u2 = (sympy.Function(name) for name in ("x", "y", "U1", "U2"))
    a, d = sympy.symbols("alpha delta", positive=True)
    sx, sy = sympy.symbols("x y")
    forms = [
        LOTKA,
        "x' = alpha*x - U1(x, y); y' = U2(x, y) - delta*y",
        ["d(x)/dt = alpha*x(t) - U1(x(t), y)", "dy/dt = U2(x, y) − delta·y"],
        {sx: a * sx - u1(sx, sy), sy: u2(sx, sy) - d * sy},
        {"x": a * sx - u1(sx, sy), "y": "U2(x, y) - delta*y"},
        {x(t): a * x(t) - u1(x(t), y(t)), y(t): u2(x(t), y(t)) - d * y(t)},
        [
            sympy.Eq(sympy.Derivative(x(t), t), a * x(t) - u1(x(t), y(t))),
            sympy.Eq(y(t).diff(t), u2(x(t), y(t)) - d * y(t)),
        ],
    ]
    models = [UDE(form, parameters={"alpha": 1.3, "delta": 1.8}) for form in forms]
    for model in models:
        assert model.equations == models[0].equations
        assert model.calls == {"U1": ("x", "y"), "U2": ("x", "y")}
        assert torch.equal(model(states(4)), models[0](states(4)))


def test_time_forcing_and_constants_broadcast() -> None:
    model = UDE("dx/dt = a\ndy/dt = sin(t)*y + 2\ndz/dt = 1/3", parameters={"a": 0.5})
    u = states(6, count=3)
    for t in (torch.tensor(0.7, dtype=torch.float64), torch.linspace(0, 1, 6, dtype=torch.float64)):
        du = model(u, None, t)
        assert du.shape == (6, 3)
        torch.testing.assert_close(du[:, 1], torch.sin(t) * u[:, 1] + 2)
        assert du[:, 0].tolist() == [0.5] * 6
        assert du[:, 2].tolist() == [1 / 3] * 6


def test_a_shared_network_is_evaluated_once_for_each_tuple_of_arguments() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return torch.stack([x.prod(-1), x.sum(-1)], -1)

    net = Counting()
    term = Neural(net, inputs="x, y", outputs="U1, U2")
    model = UDE("dx/dt = U1(x, y) + U2(x, y)\ndy/dt = U1(x, y) - U1(y, x/2)", unknown=term)
    u = states(4)
    x, y = u.unbind(-1)
    torch.testing.assert_close(model(u), torch.stack([x * y + x + y, x * y - y * x / 2], -1))
    assert net.calls == 2


def test_arguments_may_be_formulas_of_states_and_time() -> None:
    model = UDE("dx/dt = U(x/y, t)\ndy/dt = -y", unknown=MLP("U", inputs="ratio, t"))
    u, t = states(4), torch.tensor(0.3, dtype=torch.float64)
    expected = model.term("U")(u[:, 0] / u[:, 1], t)
    torch.testing.assert_close(model(u, None, t)[:, 0], expected)
    assert model.calls == {"U": ("x/y", "t")}
    assert UDE("dx/dt = U(x/y, t)\ndy/dt = -y").term("U").inputs == ("z1", "t")


def test_p_overrides_parameters_by_name_for_every_trajectory() -> None:
    model = lotka()
    u, alpha = states(3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    changed = model(u, {"alpha": alpha}, 0.0)
    torch.testing.assert_close(changed - model(u), torch.stack([(alpha - 1.3) * u[:, 0], 0 * alpha], -1))
    with pytest.raises(InputError, match="alpa is not a parameter of the model: .* Did you mean alpha"):
        model(u, {"alpa": 1.0}, 0.0)
    with pytest.raises(InputError, match="p is not usable by a model: expected None or a mapping"):
        model(u, [1.0], 0.0)


def test_u_of_another_size_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        lotka()(torch.zeros(3))
    assert str(caught.value) == "u does not fit the model: expected shape (*batch, 2) for x, y, got (3,)."


def test_recorded_calls_hold_what_a_term_was_given_and_gave() -> None:
    model = lotka()
    u = states(4)
    calls = model.record_calls(u)
    (call,) = calls["U2"]
    assert torch.equal(call.inputs["y"], u[:, 1])
    torch.testing.assert_close(call.output, model(u)[:, 1] + 1.8 * u[:, 1])
    assert set(calls) == {"U1", "U2"}


# -- gradients and transformations ------------------------------------------------------------------------------------


def fitted() -> UDE:
    model = lotka(parameters={"alpha": Parameter(1.3, lower=0.0), "delta": Parameter(1.8, lower=0.0, upper=4.0)})
    return model.replace({"U1": Symbolic({"U1": "c0*x*y/(1 + x)"}, "x, y", {"c0": 0.7})})


def test_gradients_with_respect_to_all_parameters_match_finite_differences() -> None:
    model, u = fitted(), states(4)
    weights = states(4, seed=9)
    names = [name for name, _ in model.named_parameters()]
    assert {"store.raw_alpha", "store.raw_delta", "terms.U1.store.raw_c0"} <= set(names)

    def loss(*tensors: Tensor) -> Tensor:
        du = torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (u, None, 0.0))
        return (weights * du).sum()

    assert torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in model.parameters()))


def test_vjp_vmap_and_jacrev_agree_with_the_batched_call() -> None:
    model, u = fitted(), states(4)
    torch.testing.assert_close(torch.func.vmap(lambda v: model(v, None, 0.0))(u), model(u))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: model(v, None, 0.0)))(u)
    cotangent = states(4, seed=8)
    _, pull = torch.func.vjp(lambda v: model(v, None, 0.0), u)
    torch.testing.assert_close(pull(cotangent)[0], torch.einsum("bi,bij->bj", cotangent, jacobian))


def test_the_model_can_be_traced_and_the_trace_holds_for_other_values() -> None:
    model = fitted()
    weights = dict(model.named_parameters())

    def pulled(w: dict[str, Tensor], u: Tensor, t: Tensor, cotangent: Tensor) -> Tensor:
        _, pull = torch.func.vjp(lambda v: torch.func.functional_call(model, w, (v, None, t)), u)
        return pull(cotangent)[0]

    t = torch.tensor(0.0, dtype=torch.float64)
    graph = make_fx(pulled)(weights, states(4), t, states(4, seed=8))
    other = (weights, states(4, seed=21), t, states(4, seed=22))
    torch.testing.assert_close(graph(*other), pulled(*other))


# -- parameters and terms ---------------------------------------------------------------------------------------------


def test_parameters_are_set_and_read_in_natural_units() -> None:
    model = UDE(LOTKA, fit="alpha, delta=0.5 in [0, 2]")
    assert model.parameters_table["alpha"] == Parameter()
    assert model.values() == pytest.approx({"alpha": 1.0, "delta": 0.5})
    model.set_values({"alpha": -3.0, "delta": 1.5})
    assert model.values() == pytest.approx({"alpha": -3.0, "delta": 1.5}, rel=1e-12)
    with pytest.raises(InputError, match="parameter delta is outside its bounds"):
        model.set_values({"alpha": 9.0, "delta": 2.5})
    assert model.values()["alpha"] == -3.0


def test_detected_functions_with_the_same_arguments_share_a_network() -> None:
    model = UDE("dx/dt = U1(x, y) + V(x)\ndy/dt = U2(x, y)", seed=4)
    assert {key: model.term(key).outputs for key in model.terms} == {"U1_U2": ("U1", "U2"), "V": ("V",)}
    same = UDE("dx/dt = U1(x, y) + V(x)\ndy/dt = U2(x, y)", seed=4)
    assert torch.equal(model(states(3)), same(states(3)))


def test_replacing_one_output_of_a_shared_network_keeps_the_network_for_the_other() -> None:
    model, u = lotka(), states(4)
    formula = Symbolic({"U1": "c0*x*y"}, inputs="x, y", parameters={"c0": 0.02})
    one = model.replace({"U1": formula})
    x, y = u.unbind(-1)
    torch.testing.assert_close(one(u)[:, 0], 1.3 * x - 0.02 * x * y)
    assert torch.equal(one(u)[:, 1], model(u)[:, 1])
    assert set(one.terms) == {"U1_U2", "U1"}
    assert one.unknown_outputs == ("U2",)
    assert one.values() == {"alpha": 1.3, "delta": 1.8, "U1_c0": 0.02}
    assert one.parameters_table["U1_c0"].fitted
    two = one.replace({"U2": Symbolic({"U2": "c0*x*y"}, "x, y", {"c0": 0.03})})
    assert set(two.terms) == {"U1", "U2"}
    assert two.unknown_outputs == ()
    assert ude.export(two) == "dx/dt = 1.3*x - 0.02*x*y\ndy/dt = 0.03*x*y - 1.8*y"
    assert ude.export(two, values=False) == "dx/dt = alpha*x - U1_c0*x*y\ndy/dt = U2_c0*x*y - delta*y"
    again = two.replace({"U1": MLP("U1", "x, y")})
    assert again.unknown_outputs == ("U1",)
    assert "U1_c0" not in again.values()


def test_replacing_leaves_the_original_and_the_given_term_alone() -> None:
    model, u = lotka(), states(4)
    before = model(u)
    formula = Symbolic({"U1": "c*x"}, "x, y", {"c": 2.0})
    changed = model.replace({"U1": formula})
    changed.set_values({"U1_c": 9.0, "alpha": 0.0})
    assert torch.equal(model(u), before)
    assert set(model.terms) == {"U1_U2"}
    assert formula.store.values() == {"c": 2.0}


def test_a_formula_is_put_in_for_every_call_with_its_arguments() -> None:
    model = UDE("dx/dt = U(x, y)\ndy/dt = U(y, x/2)").replace({"U": Symbolic({"U": "x^2*y"}, "x, y")})
    x, y = sympy.symbols("x y")
    assert model.explicit() == {"x": x**2 * y, "y": y**2 * x / 2}
    u = states(4)
    torch.testing.assert_close(model(u)[:, 1], u[:, 1] ** 2 * u[:, 0] / 2)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"U3": Symbolic({"U3": "x"}, "x, y")}, "U3 is not an unknown function of the model: expected one of U1, U2"),
        ({"U1": Symbolic({"U2": "x"}, "x, y")}, "the term given for U1 has other outputs"),
        ({"U1": Symbolic({"U1": "x"}, "x")}, "the term given for U1 has other inputs: expected x, y, got x."),
        ({"U1": "x*y"}, "U1 cannot be replaced: expected a Neural or a Symbolic, got 'x*y'."),
        ("U1", "replace takes a mapping"),
    ],
)
def test_replacements_that_do_not_fit_are_refused(terms: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        lotka().replace(terms)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_constant_whose_full_name_is_taken_is_refused() -> None:
    model = UDE("dx/dt = U1_c*U1(x)", parameters={"U1_c": 1.0})
    with pytest.raises(ModelError, match="the constant c of the formula U1 would be called U1_c, as something else is"):
        model.replace({"U1": Symbolic({"U1": "c*x"}, "x", {"c": 1.0})})


# -- copies and files -------------------------------------------------------------------------------------------------


def test_pickle_deepcopy_and_description_restore_the_model() -> None:
    model, u = fitted(), states(4)
    model.provider("U2").set_scales(input_shift=[0.5, 0.5], output_scale=[2.0, 3.0])
    description = json.loads(json.dumps(model.to_dict()))
    restored = UDE.from_dict(description)
    restored.load_state_dict(model.state_dict())
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), restored):
        assert torch.equal(twin(u), model(u))
        assert twin.parameters_table == model.parameters_table
        assert twin.unknown_outputs == ("U2",)
        assert ude.export(twin) == ude.export(model)


def test_a_module_of_the_user_must_be_given_again() -> None:
    model = UDE("dx/dt = U(x)", unknown={"U": nn.Linear(1, 1)})
    with pytest.raises(InputError) as caught:
        UDE.from_dict(model.to_dict())
    assert str(caught.value) == (
        'the network of U is a module of your own and must be given: expected modules={"U": Linear(...)}.'
    )
    restored = UDE.from_dict(model.to_dict(), modules={"U": nn.Linear(1, 1)})
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(states(3, count=1)), model(states(3, count=1)))
    with pytest.raises(InputError, match="this does not describe a UDE: expected kind 'ude', got None"):
        UDE.from_dict({})


def test_a_problem_has_the_model_and_the_names_of_its_states() -> None:
    model = lotka()
    problem = model.problem([1.0, 1.0], (0.0, 10.0))
    assert problem.f is model
    assert problem.state_names == ("x", "y")


# -- neural ODE -------------------------------------------------------------------------------------------------------


def test_a_neural_ode_is_its_network() -> None:
    net, u = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)), states(4)
    model = NeuralODE(net, states="x, y")
    torch.testing.assert_close(model(u), net(u))
    assert model.calls == {"f_x": ("x", "y"), "f_y": ("x", "y")}
    assert NeuralODE(net).states == ("u1", "u2")


def test_a_neural_ode_takes_a_named_network_and_time() -> None:
    net, u = MLP("F, G", inputs="a, b, t"), states(4)
    model = NeuralODE(net)
    t = torch.tensor(0.4, dtype=torch.float64)
    assert model.states == ("a", "b")
    torch.testing.assert_close(model(u, None, t), torch.stack(net(u[:, 0], u[:, 1], t), -1))
    one = model.replace({"F": Symbolic({"F": "a*t"}, "a, b, t")})
    torch.testing.assert_close(one(u, None, t)[:, 0], u[:, 0] * t)


def test_a_neural_ode_that_does_not_close_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs one output a state: expected 2 for x, y, got 1 \(F\)"):
        NeuralODE(MLP("F", "x, y"), "x, y")
    with pytest.raises(
        InputError, match=r'cannot be told from its network. Name them: NeuralODE\(net, states="x, y"\)'
    ):
        NeuralODE(nn.Tanh())
    with pytest.raises(InputError, match="the network of a NeuralODE is not a torch module"):
        NeuralODE(torch.sin, "x")  # type: ignore[arg-type]


# -- errors -----------------------------------------------------------------------------------------------------------

XY = "dx/dt = a*x - U1(x, y)\ndy/dt = U1(x, y)"


@pytest.mark.parametrize(
    ("equations", "options", "expected"),
    [
        (
            "dx/dt = alpha*x - betta*x*y\ndy/dt = -y",
            {"parameters": {"alpha": 1.0, "beta": 1.0}},
            'unknown symbol betta. Did you mean beta? Give it a value (parameters={"betta": 1.0}), have it fitted '
            '(fit="betta"), or add an equation dbetta/dt = ... if it is a state.\n'
            "    dx/dt = alpha*x - betta*x*y\n"
            "                      ^^^^^",
        ),
        (
            "dx/dt = x +* 2",
            {},
            "the formula does not parse: expected a number, a name or '(', got '*'.\n"
            "    dx/dt = x +* 2\n               ^",
        ),
        (
            "dx/dt = -x\nx' = x",
            {},
            "two equations for x: expected one equation a state, got an earlier 'dx/dt = -x'.\n    x' = x\n    ^^",
        ),
        ("dx/dt = -x", {"states": "x, y"}, "state y has no equation: expected dy/dt = ..., got equations for x."),
        (
            "dx/dt = -x\ndyy/dt = x",
            {"states": "x"},
            "an equation for yy, which is not a state: expected one of x.\n    dyy/dt = x\n    ^^^^^^",
        ),
        (
            "x = 2",
            {},
            "the left-hand side is not the derivative of a state: expected dNAME/dt or NAME', got 'x'.\n"
            "    x = 2\n    ^",
        ),
        (
            "dx/dyear = x",
            {},
            "the left-hand side is not the derivative of a state: expected dNAME/dt or NAME', got 'dx/dyear'. "
            "The independent variable is always called t.\n    dx/dyear = x\n    ^^^^^^^^",
        ),
        ("dx/dt", {}, "the equation has no '=': expected dx/dt = ..., got 'dx/dt'.\n    dx/dt\n    ^^^^^"),
        (
            "dx/dt = y, dy/dt = x",
            {},
            "the equation has two '=': expected dx/dt = .... Separate equations by new lines or ';'.\n"
            "    dx/dt = y, dy/dt = x\n                     ^",
        ),
        (
            "d2x/dt2 = -x",
            {},
            "the left-hand side is not the derivative of a state: expected dNAME/dt or NAME', got 'd2x/dt2'. "
            "Write an equation of higher order as several of first order.\n    d2x/dt2 = -x\n    ^^^^^^^",
        ),
        ("dx/dt =", {}, "the equation has no right-hand side: expected dx/dt = ....\n    dx/dt =\n          ^"),
        (" # nothing", {}, "there are no equations: expected text such as \"dx/dt = a*x\", got ' # nothing'."),
        ("dt/dt = 1", {}, "t is the time and cannot be a state. Rename the state.\n    dt/dt = 1\n    ^^^^^"),
        ("dexp/dt = 1", {}, "the state exp has the name of a known function. Rename it.\n    dexp/dt = 1\n    ^^^^^^^"),
        (
            "dx/dt = x",
            {"parameters": {"x": 1.0}},
            "x is a state and a parameter as well. Rename one of them.\n    dx/dt = x\n    ^^^^^",
        ),
        (
            "dx/dt = U1(x) - x\ndy/dt = U1(x, y)",
            {},
            "U1 is used with two signatures: expected U1(x) as before, got U1(x, y).\n"
            "    dy/dt = U1(x, y)\n            ^^^^^^^^",
        ),
        (
            "dx/dt = a*U(x, a*x)",
            {"fit": "a"},
            "the parameter a in an argument of U: expected formulas of x, t, got a*x.\n"
            "    dx/dt = a*U(x, a*x)\n                   ^^^",
        ),
        (
            "dx/dt = U(3)",
            {},
            "a plain number as argument of U: expected formulas of x, t, got 3.\n    dx/dt = U(3)\n              ^",
        ),
        (
            "dx/dt = U(V(x))",
            {},
            "an unknown function in an argument of U: expected formulas of x, t.\n"
            "    dx/dt = U(V(x))\n              ^^^^",
        ),
        (
            "dx/dt = Exp(x)",
            {},
            "unknown function Exp. Did you mean exp?\n    dx/dt = Exp(x)\n            ^^^^^^",
        ),
        (
            "dx/dt = x(y + 1)\ndy/dt = x",
            {},
            "x is a state and cannot be called like a function. Write x*(...).\n    dx/dt = x(y + 1)\n            ^",
        ),
        (
            "dx/dt = a(x)",
            {"parameters": {"a": 1.0}},
            "a is a parameter and cannot be called like a function. Write a*(...).\n    dx/dt = a(x)\n            ^",
        ),
        (
            "dx/dt = U(x) - U*x",
            {},
            "U is an unknown function and needs its arguments. Write U(x).\n"
            "    dx/dt = U(x) - U*x\n                   ^",
        ),
        (
            XY,
            {"fit": "a", "unknown": MLP("U2", "x, y")},
            "unknown function U1: expected one of U2.\n    dx/dt = a*x - U1(x, y)\n                  ^^^^^^^^",
        ),
        (
            XY,
            {"fit": "a", "unknown": MLP("U1, U2", "x, y")},
            "the unknown function U2 is never used: expected U2(...) in the equations, got U1.",
        ),
        (
            XY,
            {"fit": "a", "unknown": [MLP("U1", "x, y"), MLP("U1", "x, y")]},
            "two terms give U1: expected one term for an unknown function.",
        ),
        (
            XY,
            {"fit": "a", "unknown": MLP("U1", "x")},
            "U1 is called with a wrong number of arguments: expected 1 (x), got 2.\n"
            "    dx/dt = a*x - U1(x, y)\n                  ^^^^^^^^",
        ),
        (
            XY,
            {"fit": "a", "unknown": MLP("U1", "y, x")},
            "U1 is called with other arguments than its inputs: expected U1(y, x), got U1(x, y).\n"
            "    dx/dt = a*x - U1(x, y)\n                  ^^^^^^^^",
        ),
        (
            XY,
            {"fit": "a", "unknown": MLP("U1, a", "x, y")},
            "the unknown function a has the name of a state or parameter. Rename it.",
        ),
        (
            XY,
            {"fit": "a", "unknown": {"V": nn.Linear(2, 1)}},
            "the unknown function V is never used: expected V(...) in the equations, got U1.",
        ),
        (
            XY,
            {"parameters": {"a": 1.0, "alpha": 2.0}},
            "parameters names alpha, which is not in the equations.",
        ),
        (
            "dx/dt = alpha*x",
            {"fit": "alpa"},
            'unknown symbol alpha. Did you mean alpa? Give it a value (parameters={"alpha": 1.0}), have it fitted '
            '(fit="alpha"), or add an equation dalpha/dt = ... if it is a state.\n'
            "    dx/dt = alpha*x\n            ^^^^^",
        ),
        ("dx/dt = -x", {"fit": "a"}, "fit names a, which is not in the equations."),
        ("dx/dt = t*x", {"parameters": {"t": 1.0}}, "t is the time and cannot be a parameter. Rename it."),
        ("dx/dt = x", {"parameters": {"exp": 1.0}}, "exp is a known function and cannot be a parameter. Rename it."),
    ],
)
def test_a_model_that_makes_no_sense_is_refused_with_a_caret(
    equations: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(ModelError) as caught:
        UDE(equations, **options)  # type: ignore[arg-type]
    assert str(caught.value) == expected


def test_sympy_equations_get_carets_too() -> None:
    x, b = sympy.symbols("x b")
    with pytest.raises(ModelError) as caught:
        UDE({x: -b * x})
    assert str(caught.value).endswith("    dx/dt = -b*x\n             ^")
    with pytest.raises(ModelError, match="the left-hand side is not the first derivative of a state"):
        UDE([sympy.Eq(x, b)])
    with pytest.raises(ModelError, match="besselj.* has no meaning in a model"):
        UDE({x: sympy.besselj(0, x)})
    with pytest.raises(ModelError, match="the symbol 'a b' is not a name"):
        UDE({x: sympy.Symbol("a b") * x})
    with pytest.raises(ModelError, match="the key of an equation is not a state"):
        UDE({3: x})


@pytest.mark.parametrize(
    ("equations", "options", "message"),
    [
        (3, {}, "the equations are not usable: expected text"),
        ([3], {}, "the equations are not usable"),
        ("dx/dt = U(x)", {"unknown": nn.Linear(1, 1)}, "unknown is not usable: expected a term such as ude.MLP"),
        ("dx/dt = U(x)", {"unknown": [nn.Linear(1, 1)]}, "unknown is not usable"),
        ("dx/dt = U(x)", {"unknown": {"U": 3}}, "unknown is not usable"),
        (
            "dx/dt = U(x)",
            {"unknown": {"U": MLP("V", "x")}},
            "the term given for U has other outputs: expected U, got V.",
        ),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused(equations: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        UDE(equations, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)


# -- conditions --------------------------------------------------------------------------------------------------------

SWITCHED = "dx/dt = where(x >= 1.0 and t != 9, -k*x, where(t < 1 or x <= 0.1, -0.5, -x))"


def test_comparisons_in_an_equation_are_no_second_equals_sign() -> None:
    model = UDE(SWITCHED, parameters={"k": 1.2})
    u = torch.tensor([[2.0], [1.0], [0.25], [0.05]], dtype=torch.float64)
    assert model(u, None, torch.tensor(0.0)).flatten().tolist() == [-2.4, -1.2, -0.5, -0.5]
    assert model(u, None, torch.tensor(5.0)).flatten().tolist() == [-2.4, -1.2, -0.25, -0.5]
    assert model(u, None, torch.tensor(9.0)).flatten().tolist() == [-2.0, -1.0, -0.25, -0.5]
    with pytest.raises(ModelError, match="the equation has two '='"):
        UDE("dx/dt = x <= 1 = 2")


@pytest.mark.parametrize("engine", ["torch", "fused"])
def test_a_model_with_conditions_is_solved_exactly(engine: str) -> None:
    # 2 exp(-1.2 t) until x = 1 at ln(2)/1.2, then a line until t = 1, then exp(-t)
    first = math.log(2) / 1.2
    at_one = 1 - 0.5 * (1 - first)
    problem = UDE(SWITCHED, parameters={"k": 1.2}).problem([2.0], (0.0, 2.0))
    try:
        sol = ude.solve(problem, ude.Tsit5(), engine=engine, reltol=1e-10, abstol=1e-10, saveat=[1.0, 2.0])
    except ude.errors.EngineRefused as refusal:
        pytest.skip(str(refusal))
    assert sol.u[:, 0].tolist() == pytest.approx([at_one, at_one * math.exp(-1)], rel=1e-6)
