"""Right-hand sides written in torch, with parameters and terms by name."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from torch import Tensor

from ude.errors import InputError, ModelError
from ude.models import MLP, UDE, FunctionModel, Parameter, Symbolic
from ude.models.function_model import Term


def single(u: Tensor, p: object, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([p.alpha * x - p.U1(x, y), p.U2(x, y) - p["delta"] * y], -1)  # type: ignore[attr-defined, index]


def joined(u: Tensor, p: object, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    u1, u2 = p.U1_U2(x, y)  # type: ignore[attr-defined]
    return torch.stack([p.alpha * x - u1, u2 - p.delta * y], -1)  # type: ignore[attr-defined]


def states(*shape: int) -> Tensor:
    return torch.rand(*shape, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.5


def make(f: object = single, terms: list[Term] | None = None) -> FunctionModel:
    terms = [MLP("U1, U2", "x, y")] if terms is None else terms
    parameters = {"alpha": 1.3, "delta": Parameter(1.8, lower=0.0)}
    return FunctionModel(f, states="x, y", parameters=parameters, terms=terms)  # type: ignore[arg-type]


@pytest.mark.parametrize("f", [single, joined])
def test_a_function_model_equals_the_text_model(f: object) -> None:
    text = UDE(
        "dx/dt = alpha*x - U1(x, y)\ndy/dt = U2(x, y) - delta*y",
        parameters={"alpha": 1.3, "delta": Parameter(1.8, lower=0.0)},
        unknown=MLP("U1, U2", "x, y"),
    )
    formula = {"U1": Symbolic({"U1": "c0*x*y"}, "x, y", {"c0": 0.4})}
    for one, other in ((make(f), text), (make(f).replace(formula), text.replace(formula))):
        for u in (states(), states(5), states(2, 5)):
            torch.testing.assert_close(one(u), other(u), rtol=1e-15, atol=1e-15)
        assert one.values() == other.values()
        assert set(one.terms) == set(other.terms)
        assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]


def test_a_network_asked_for_two_outputs_is_evaluated_once() -> None:
    net, count = MLP("U1, U2", "x, y"), []
    net.module.register_forward_hook(lambda *_: count.append(1))
    make(single, [net])(states(4))
    assert len(count) == 1


def test_a_function_model_transforms_and_records() -> None:
    model, u = make(), states(4)
    torch.testing.assert_close(torch.func.vmap(lambda v: model(v, None, 0.0))(u), model(u))
    torch.testing.assert_close(model.record_calls(u)["U1"][0].output, 1.3 * u[:, 0] - model(u)[:, 0])
    assert torch.equal(model(u, {"alpha": 0.0})[:, 0], -model.provider("U1")(u[:, 0], u[:, 1])[0])


def test_a_function_model_survives_pickle_deepcopy_and_description() -> None:
    model, u = make().replace({"U2": Symbolic({"U2": "c*y"}, "x, y", {"c": 0.5})}), states(4)
    restored = FunctionModel.from_dict(json.loads(json.dumps(model.to_dict())), single)
    restored.load_state_dict(model.state_dict())
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), restored):
        assert torch.equal(twin(u), model(u))
    with pytest.raises(InputError, match="this does not describe a FunctionModel"):
        FunctionModel.from_dict({"kind": "ude"}, single)


def test_what_the_function_asks_for_in_vain_is_named() -> None:
    model = FunctionModel(lambda u, p, t: p.alpa * u, "x", {"alpha": 1.0})
    with pytest.raises(InputError) as caught:
        model(torch.ones(1))
    assert str(caught.value) == (
        "alpa is neither a parameter nor a term of the model: expected one of alpha. Did you mean alpha?"
    )


def test_a_result_of_another_shape_is_refused() -> None:
    model = FunctionModel(lambda u, p, t: u.sum(-1), "x, y")
    with pytest.raises(ModelError, match=r"gives a wrong shape: expected that of u, \(3, 2\), got \(3,\)"):
        model(states(3))


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda: FunctionModel(3, "x"), "the right-hand side is not callable: expected f(u, p, t), got 3."),  # type: ignore[arg-type]
        (lambda: FunctionModel(single, ""), "a model needs at least one state"),
        (lambda: FunctionModel(single, "x", {"U": 1.0}, terms=MLP("U", "x")), "the name U is given twice"),
        (lambda: FunctionModel(single, "x", terms=[3]), "a term is not usable: expected ude.Neural"),  # type: ignore[list-item]
    ],
)
def test_arguments_that_make_no_sense_are_refused(make_bad: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make_bad()  # type: ignore[operator]
    assert message in str(caught.value)
