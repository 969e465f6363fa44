"""What a call of f shows: what leaves torch, what is changed in place, which derivatives are lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ude
from ude.errors import EngineRefused, GradientWarning, InputError
from ude.problems.inspection import Inspection, leaf_names
from ude.problems.ode import flatten

DOUBLE = torch.float64
HELD = torch.tensor(2.0, dtype=DOUBLE)
SENSITIVITIES = [ude.DiscreteAdjoint(), ude.GaussAdjoint(), ude.ForwardSensitivity(), ude.sensitivity.Autograd()]

LEAVING = {
    "NumPy of t": (lambda u, p, t: -u * torch.as_tensor(np.sin(t.numpy())), "t", "NumPy"),
    "a ufunc of t": (lambda u, p, t: -u * torch.as_tensor(np.cos(np.asarray(t))), "t", "NumPy"),
    "np.interp": (lambda u, p, t: -u * float(np.interp(t.numpy(), [0.0, 2.0], [0.0, 1.0])), "t", "NumPy"),
    "math of t": (lambda u, p, t: -u * math.exp(-t), "t", "float()"),
    "float of p": (lambda u, p, t: -u * torch.tensor(float(p.k), dtype=DOUBLE), "p.k", "float()"),
    "int of t": (lambda u, p, t: -u * int(t), "t", "int()"),
    "a list of u": (lambda u, p, t: torch.tensor([-x for x in u.tolist()], dtype=DOUBLE), "u", ".tolist()"),
    "item of a held tensor": (lambda u, p, t: -u * HELD.item(), "a tensor that f refers to", ".item()"),
    "an index": (lambda u, p, t: -u * [1.0, 2.0, 3.0][t.long()], "t", "int()"),
}


@pytest.mark.parametrize("name", LEAVING)
def test_no_kernel_is_made_of_an_f_that_leaves_torch(name: str):
    f, source, how = LEAVING[name]
    prob = ude.ODEProblem(f, [1.0], (0.0, 2.0), dict(k=1.3))
    with pytest.raises(EngineRefused) as caught:
        ude.solve(prob, ude.Tsit5(), engine="fused")
    assert f"f takes {source} out of torch by {how}, and the number would be frozen (line" in str(caught.value)


def test_auto_runs_such_an_f_in_torch_and_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ude.engines.fused.engine.PATIENCE", 0)
    prob = ude.ODEProblem(LEAVING["NumPy of t"][0], [1.0], (0.0, 2.0))
    sol = ude.solve(prob, ude.Tsit5(), reltol=1e-9, abstol=1e-9)
    assert float(sol.u[-1, 0]) == pytest.approx(math.exp(math.cos(2.0) - 1.0), abs=1e-8)
    assert sol.stats.engine == "torch"
    assert "f takes t out of torch by NumPy" in sol.stats.why_not["fused"]


def test_a_number_of_a_tensor_that_changes_is_read_anew():
    held = torch.tensor(1.0, dtype=DOUBLE)
    prob = ude.ODEProblem(lambda u, p, t: -held.item() * u, [1.0], (0.0, 1.0))
    for rate in (1.0, 2.0):
        held.fill_(rate)
        end = ude.solve(prob, ude.Tsit5(), reltol=1e-9, abstol=1e-9).u[-1, 0]
        assert float(end) == pytest.approx(math.exp(-rate), abs=1e-8)


def test_a_kernel_is_compared_with_f_away_from_the_start_too(monkeypatch: pytest.MonkeyPatch):
    """What a trace froze agrees at the start, where it was traced: here nothing else notices."""
    monkeypatch.setattr("ude.engines.fused.engine.inspect_once", lambda *args, **more: Inspection())
    prob = ude.ODEProblem(LEAVING["NumPy of t"][0], [1.0], (0.0, 2.0))
    with pytest.raises(EngineRefused, match="f at other u, p and t is not what was traced at the start"):
        ude.solve(prob, ude.Tsit5(), engine="fused")


IN_PLACE = {
    "u": lambda u, p, t: u.mul_(-1),
    "u by an index": lambda u, p, t: u.__setitem__(0, -u[0]) or u,
    "t": lambda u, p, t: -u * t.add_(1.0),
    "a parameter": lambda u, p, t: -u * p.k.mul_(2.0),
    "u of a view": lambda u, p, t: u[..., :1].neg_(),
    "u after a while": lambda u, p, t: -u if float(t) < 0.5 else u.neg_(),
}


@pytest.mark.parametrize("engine", ["auto", "torch", "fused"])
@pytest.mark.parametrize("name", IN_PLACE)
def test_an_f_that_writes_into_its_arguments_is_refused(name: str, engine: str):
    if engine == "fused" and name == "u after a while":
        pytest.skip("it leaves torch, so there is no kernel")
    u0, k = torch.ones(1, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE)
    prob = ude.ODEProblem(IN_PLACE[name], u0, (0.0, 1.0), dict(k=k))
    with pytest.raises(InputError, match=f"f changes {name.split(' ')[0]}.* in place.*clone"):
        ude.solve(prob, ude.Tsit5(), engine=engine)
    if name != "u after a while":
        assert float(u0) == float(k) == 1.0


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=lambda one: one.name)
def test_writing_in_place_is_refused_by_every_sensitivity(sensealg):
    k = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: u.mul_(-p.k), [1.0], (0.0, 1.0), dict(k=k))
    with pytest.raises(InputError, match="f changes u in place"):
        ude.solve(prob, ude.Tsit5(), sensealg=sensealg)


def test_copies_may_be_written_to():
    prob = ude.ODEProblem(lambda u, p, t: u.clone().mul_(-1), [1.0], (0.0, 1.0))
    assert float(ude.solve(prob, ude.Tsit5(), reltol=1e-9, abstol=1e-9).u[-1, 0]) == pytest.approx(
        math.exp(-1), abs=1e-8
    )


@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("f", "said"),
    [
        (lambda u, p, t: -float(p.k) * u, r"no gradient passes through p\.k, which f takes out of torch by float\(\)"),
        (lambda u, p, t: -torch.as_tensor(np.exp(p.k.detach().numpy())) * u, r"p\.k, which f takes .* by NumPy"),
        (lambda u, p, t: -p.k * u.max().item() * u, r"no gradient passes through u, .* by \.item\(\)"),
        (lambda u, p, t: -p.k * u if u[0] > 0.5 else -u, "f decides by the value of u in Python"),
        (lambda u, p, t: -torch.special.bessel_j1(p.k * u), r"torch has no derivative of torch\.special\.bessel_j1"),
    ],
)
def test_a_lost_derivative_is_refused_where_it_is_asked_for(f, said, sensealg):
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(f, [1.0], (0.0, 1.0), dict(k=k))
    with pytest.raises(InputError, match=said):
        ude.solve(prob, ude.Tsit5(), sensealg=sensealg)
    with torch.no_grad():
        assert bool(ude.solve(prob, ude.Tsit5()).success)


def test_numbers_of_time_and_of_constants_do_not_disturb_a_gradient():
    k, n = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True), torch.tensor(2.0, dtype=DOUBLE)
    prob = ude.ODEProblem(lambda u, p, t: -p.k * math.cos(t) * float(p.n) * u, [1.0], (0.0, 1.0), dict(k=k, n=n))
    end = ude.solve(prob, ude.Tsit5(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    (gradient,) = torch.autograd.grad(end, k)
    assert float(gradient) == pytest.approx(-2 * math.sin(1) * math.exp(-1.4 * math.sin(1)), abs=1e-7)


def test_a_detached_parameter_is_told_of():
    k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: -p.k.detach() * u, [1.0], (0.0, 1.0), dict(k=k))
    with pytest.warns(GradientWarning, match=r"does not pass \.detach\(\) in f, so what depends on p\.k"):
        ude.solve(prob, ude.Tsit5())


# -- derivatives that torch lacks --------------------------------------------------------------------------------------
SPECIAL = sorted(name for name in vars(torch.special) if hasattr(torch._C._special, f"special_{name}"))
#: Steps: the derivative is zero where it exists.
STEPS = {"round"}


def _of_one(name: str, x: torch.Tensor) -> torch.Tensor:
    """A special function with all further arguments fixed."""
    function = getattr(torch.special, name)
    for more in ((), (torch.tensor([1.7], dtype=DOUBLE),), (2,), (0,)):
        for args in ((x, *more), (*more, x)):
            try:
                value = function(*args)
            except (TypeError, RuntimeError, ValueError, IndexError):
                continue
            if isinstance(value, torch.Tensor) and value.shape == x.shape and value.dtype == DOUBLE:
                return value
    pytest.skip("not a function from numbers to numbers")


@pytest.mark.parametrize("name", SPECIAL)
def test_a_special_function_has_its_derivative_or_is_refused(name: str):
    x = torch.tensor([0.37], dtype=DOUBLE)
    slope = float((_of_one(name, x + 1e-6) - _of_one(name, x - 1e-6)) / 2e-6)
    if name in STEPS or not math.isfinite(slope):
        pytest.skip("no derivative here")
    k = torch.tensor([0.37], dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: _of_one(name, p.k), [1.0], (0.0, 1.0), dict(k=k))
    try:
        end = ude.solve(prob, ude.methods.Euler(), dt=1.0, adaptive=False, saveat=[1.0], engine="torch").u[-1, 0]
        (gradient,) = torch.autograd.grad(end, k)
    except InputError as refused:
        assert name in str(refused)  # noqa: PT017
        return
    except NotImplementedError as refused:  # torch says it itself
        assert "derivative" in str(refused)  # noqa: PT017
        return
    assert float(gradient) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_the_test_above_finds_functions_of_both_kinds():
    assert len(SPECIAL) > 40
    assert {"bessel_j0", "airy_ai", "modified_bessel_i0", "i0", "erf"} <= set(SPECIAL)


def test_leaves_are_named_as_the_user_names_them():
    net = torch.nn.Linear(1, 1)
    prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0), dict(k=1.0, more=[2.0, dict(a=3.0)], net=net))
    names = leaf_names(flatten(prob)[0])
    assert names == ("p.k", "p.more[0]", "p.more[1].a", "weight of p.net", "bias of p.net")
