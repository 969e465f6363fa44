"""A solve that is asked for again is ready, and whatever changed in between is seen."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ude
from ude.compile.build import why_no_compiler
from ude.compile.fingerprint import fingerprint
from ude.compile.guards import guards_of
from ude.engines import FUSED
from ude.problems.ode import flatten

needs_compiler = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")

SAVES = torch.linspace(0.0, 1.0, 5, dtype=torch.float64)


class Net(nn.Module):
    gain: Any = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.rate: Any = -0.5
        self.rates: Any = [-0.5, [0.1]]
        self.register_buffer("shift", torch.full((2,), 0.1, dtype=torch.float64))

    def helper(self, u: Tensor, scale: Any = 1.0) -> Tensor:
        return u * self.rate * self.gain * scale + self.rates[1][0]

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.helper(self.net(u) + self.shift)


SCALE = -1.0
TABLE = np.ones(2)


def linear(u: Tensor, p: Any, t: Tensor, power: float = 1.0) -> Tensor:
    return SCALE * power * u


def other(u: Tensor, p: Any, t: Tensor, power: float = 1.0) -> Tensor:
    return -3.0 * power * u


def problem(f: Any, p: Any = None) -> ude.ODEProblem:
    return ude.ODEProblem(f, torch.tensor([1.0, 2.0], dtype=torch.float64), (0.0, 1.0), p=p)


def run(prob: ude.ODEProblem, engine: str = "fused", **options: Any) -> ude.Solution:
    return ude.solve(
        prob, ude.Tsit5(), **{"saveat": SAVES, "reltol": 1e-8, "abstol": 1e-8, "engine": engine, **options}
    )


def gradients(sol: ude.Solution, wanted: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((sol.u**2).sum(), wanted)) if wanted else []


def assert_right(prob: ude.ODEProblem, wanted: Callable[[], list[Tensor]] = list, **options: Any) -> ude.Solution:
    """The fused engine agrees with the torch engine, which prepares nothing."""
    ours, theirs = run(prob, **options), run(prob, "torch", **options)
    assert ours.stats.engine == "fused"
    assert torch.equal(ours.stats.accepted_steps, theirs.stats.accepted_steps)
    assert torch.allclose(ours.u, theirs.u, rtol=1e-10, atol=1e-12)
    for mine, other_ in zip(gradients(ours, wanted()), gradients(theirs, wanted()), strict=True):
        assert torch.allclose(mine, other_, rtol=1e-9, atol=1e-12)
    return ours


class Recalled:
    """Counts how many solves were ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hits, self.misses = 0, 0
        inner = FUSED.recall

        def counted(*given: Any) -> Any:
            found = inner(*given)
            self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
            return found

        monkeypatch.setattr(FUSED, "recall", counted)


@pytest.fixture
def recalled(monkeypatch: pytest.MonkeyPatch) -> Recalled:
    return Recalled(monkeypatch)


def rate(net: Net) -> None:
    net.rate = -0.25


def equal_number_of_another_type(net: Net) -> None:
    net.gain = True


def inner_list(net: Net) -> None:
    net.rates[1][0] = 0.3


def activation(net: Net) -> None:
    net.net[1] = nn.Sigmoid()


def new_parameter(net: Net) -> None:
    net.net[0].weight = nn.Parameter(net.net[0].weight.detach() * 2)


def parameter_in_place(net: Net) -> None:
    with torch.no_grad():
        net.net[2].bias += 0.5


def parameter_data(net: Net) -> None:
    net.net[0].weight.data = net.net[0].weight.data * 3


def transposed_data(net: Net) -> None:
    net.net[0].weight.data = (net.net[0].weight.data * 3).t().contiguous().t()


def frozen_parameter(net: Net) -> None:
    net.net[0].weight.requires_grad_(False)


def new_buffer(net: Net) -> None:
    net.shift = torch.full((2,), 0.4, dtype=torch.float64)


def buffer_in_place(net: Net) -> None:
    net.shift += 1.0


def own_forward(net: Net) -> None:
    net.forward = types.MethodType(lambda self, u, p, t: -u, net)  # type: ignore[method-assign]


def without_bias(net: Net) -> None:
    net.net[0].bias = None


def other_class(net: Net) -> None:
    net.net[1].__class__ = nn.Sigmoid


CHANGES = [
    *(rate, equal_number_of_another_type, inner_list, activation, new_parameter, parameter_in_place, parameter_data),
    *(transposed_data, frozen_parameter, new_buffer, buffer_in_place, own_forward, without_bias, other_class),
]


@needs_compiler
@pytest.mark.parametrize("change", CHANGES)
def test_a_module_that_changes_between_two_solves_is_solved_as_it_is_now(
    change: Callable[[Net], None], recalled: Recalled
) -> None:
    net = Net()
    prob = problem(net)

    def wanted() -> list[Tensor]:
        return [one for one in net.net.parameters() if one.requires_grad]

    before = [assert_right(prob, wanted).u for _ in range(4)]
    assert recalled.hits >= 1
    change(net)
    # a parameter that own_forward leaves out has no gradient
    reached = wanted if change is not own_forward else list
    after = assert_right(prob, reached).u
    if change not in (equal_number_of_another_type, frozen_parameter):
        assert not torch.allclose(before[-1], after)
    assert_right(prob, reached)


@needs_compiler
def test_functions_globals_and_closures_that_change_are_seen(
    recalled: Recalled, monkeypatch: pytest.MonkeyPatch
) -> None:
    slope, settings, inner = -1.0, {"shift": 0.1}, [0.2]

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return linear(u, p, t) * slope + settings["shift"] * inner[0]

    prob = problem(f)

    def settled() -> Tensor:
        for _ in range(3):
            assert_right(prob)
        hits = recalled.hits
        last = assert_right(prob).u
        assert recalled.hits == hits + 1
        return last

    seen = [settled()]
    slope = 0.5
    seen.append(settled())
    settings["shift"] = 0.7
    seen.append(settled())
    inner[0] = 5.0
    seen.append(settled())
    monkeypatch.setitem(globals(), "SCALE", -2.0)
    seen.append(settled())
    monkeypatch.setattr(linear, "__defaults__", (2.0,))
    seen.append(settled())
    monkeypatch.setattr(linear, "__code__", other.__code__)
    seen.append(settled())
    for i, one in enumerate(seen):
        assert not any(torch.allclose(one, another) for another in seen[:i])


@needs_compiler
def test_a_patched_class_and_a_deleted_key_are_seen(recalled: Recalled, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    prob = problem(net)
    # the first builds the kernel, the second finds it, the third makes the whole solve ready
    for _ in range(4):
        assert_right(prob)
    assert recalled.hits == 1
    monkeypatch.setattr(Net, "gain", 3.0)
    assert_right(prob)
    monkeypatch.setattr(Net, "helper", lambda self, u: -u)
    assert_right(prob)
    net.gain = 2.0  # hides the class's
    monkeypatch.setattr(Net, "helper", lambda self, u: -u * self.gain)
    hidden = assert_right(prob).u
    del net.gain
    assert not torch.allclose(assert_right(prob).u, hidden)


@needs_compiler
def test_hooks_and_compiled_surroundings_end_what_was_ready() -> None:
    net = Net()
    prob = problem(net)
    for _ in range(4):
        run(prob)
    handle = net.net[0].register_forward_hook(lambda module, given, out: 2 * out)
    with pytest.raises(ude.errors.EngineRefused, match="hooks"):
        run(prob)
    handle.remove()
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        with pytest.raises(ude.errors.EngineRefused, match="hook on all modules"):
            run(prob)
    finally:
        everywhere.remove()
    assert_right(prob)


@needs_compiler
def test_changed_options_times_and_starts_are_seen(recalled: Recalled) -> None:
    net, saves = Net(), SAVES.clone()
    prob = problem(net)
    fine = run(prob, saveat=saves)
    for _ in range(3):
        assert torch.equal(run(prob, saveat=saves).u, fine.u)
    assert recalled.hits == 1
    for options in (
        {"reltol": 1e-3},
        {"abstol": torch.tensor([1e-3, 1e-4], dtype=torch.float64)},
        {"dtmax": 0.01},
        {"dt": 0.1, "adaptive": False},
        {"controller": ude.methods.IController()},
        {"saveat": 0.5},
        {"saveat": [0.5, 0.75]},
        {"saveat": None},
        {"reltol": 1},
    ):
        for _ in range(2):
            assert_right(prob, **{"saveat": saves, **options})
    saves[1:4] = torch.tensor([0.3, 0.4, 0.9], dtype=torch.float64)
    for _ in range(2):
        moved = assert_right(prob, saveat=saves)
        assert moved.t.tolist() == saves.tolist()
    saves[1] = -1.0
    with pytest.raises(ude.errors.InputError):
        run(prob, saveat=saves)
    prob.u0[0] = 3.0
    assert float(assert_right(prob).u[0, 0].detach()) == 3.0


@needs_compiler
def test_a_tolerance_given_as_a_list_or_tensor_may_change_in_place() -> None:
    prob, tolerance = problem(Net()), torch.tensor(1e-8, dtype=torch.float64)
    for _ in range(4):
        tight = run(prob, reltol=tolerance, abstol=tolerance)
    tolerance.fill_(1e-2)
    loose = assert_right(prob, reltol=tolerance, abstol=tolerance)
    assert int(loose.stats.accepted_steps) < int(tight.stats.accepted_steps)


@needs_compiler
def test_gradients_are_off_and_on_again(recalled: Recalled) -> None:
    net = Net()
    prob = problem(net)
    for _ in range(4):
        assert_right(prob, lambda: list(net.net.parameters()))
        with torch.no_grad():
            assert not assert_right(prob).u.requires_grad
    assert recalled.hits == 3


@needs_compiler
def test_leaves_of_p_in_lists_may_be_replaced() -> None:
    first = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    second = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    prob = problem(lambda u, p, t: p.rates[0] * u, {"rates": [first]})
    for _ in range(4):
        assert_right(prob, lambda: [first])
    prob.p.rates[0] = second
    assert_right(prob, lambda: [second])


@needs_compiler
def test_a_solve_with_a_gradient_is_trained_while_it_is_ready(recalled: Recalled) -> None:
    net = Net()
    prob = problem(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = ((run(prob).u - 1.0) ** 2).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert recalled.hits >= 27
    assert_right(prob, lambda: list(net.net.parameters()))


@needs_compiler
@pytest.mark.parametrize("saveat", [SAVES, None], ids=["saved", "every step"])
def test_writing_into_values_leaves_the_record_as_it_is(saveat: Tensor | None) -> None:
    net = Net()
    prob = problem(net)
    wanted = list(net.net.parameters())
    expected = gradients(run(prob, saveat=saveat), wanted)
    weights = 2 * run(prob, saveat=saveat).u.detach()
    sol = run(prob, saveat=saveat)
    sol.partial.detach().zero_()
    assert torch.allclose(sol(0.5), run(prob)(0.5), rtol=1e-9)
    for one, two in zip(torch.autograd.grad(sol.u, wanted, grad_outputs=weights), expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-12)
    written = run(prob, saveat=saveat).u
    written.mul_(2.0)  # with a graph, too
    for one, two in zip(torch.autograd.grad((written**2).sum(), wanted), expected, strict=True):
        assert torch.allclose(one, 4 * two, rtol=1e-12)


@needs_compiler
def test_a_leaf_that_changed_between_solve_and_gradient_is_refused() -> None:
    net = Net()
    prob = problem(net)
    for _ in range(4):
        sol = run(prob)
    parameter_in_place(net)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sol.u.sum().backward()


@needs_compiler
def test_what_was_ready_is_forgotten_with_its_problem_and_left_behind_by_copies() -> None:
    net = Net()
    prob = problem(net)
    for _ in range(4):
        run(prob)
    assert torch.equal(run(copy.deepcopy(prob)).u, run(prob).u)
    assert pickle.loads(pickle.dumps(ude.ODEProblem(linear, [1.0], (0.0, 1.0)))).tspan == (0.0, 1.0)
    gone = weakref.ref(prob)
    del prob
    gc.collect()
    assert gone() is None


# -- guards ------------------------------------------------------------------------------------------------------------


def held(f: Any) -> tuple[Any, Callable[[], bool]]:
    rhs, leaves = flatten(problem(f))
    guards = guards_of(rhs, leaves, None)
    return fingerprint(rhs, known=leaves).key, (lambda: guards is not None and guards.hold())


@pytest.mark.parametrize(
    "change", [one for one in CHANGES if "in_place" not in one.__name__ and "data" not in one.__name__]
)
def test_guards_see_every_change_of_a_module(change: Callable[[Net], None]) -> None:
    net = Net()
    _, hold = held(net)
    assert hold()
    change(net)
    # of leaves, `Prepared` looks at what can change in place
    assert change is frozen_parameter or not hold()


def test_guards_hold_as_long_as_the_fingerprint_is_the_same() -> None:
    net = Net()
    key, hold = held(net)
    parameter_in_place(net)
    buffer_in_place(net)
    parameter_data(net)
    assert hold()
    assert fingerprint(flatten(problem(net))[0], known=flatten(problem(net))[1]).key == key


def test_captured_tensors_are_watched_for_what_is_no_number() -> None:
    rates = torch.ones(2, dtype=torch.float64)
    _, hold = held(lambda u, p, t: rates * u)
    rates.mul_(2.0)
    assert hold()
    rates.resize_(1)
    assert not hold()


def test_default_dtype_and_device_modes_are_watched() -> None:
    _, hold = held(linear)
    assert hold()
    torch.set_default_dtype(torch.float64)
    try:
        assert not hold()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("cpu"):
        assert not hold()
    assert hold()


@pytest.mark.parametrize(
    "f",
    [
        functools.partial(linear, power=2.0),
        lambda u, p, t, table=TABLE: u * float(table[0]),
        lambda u, p, t, table={1, 2}: u * len(table),
        lambda u, p, t, table={(1, 2): 3.0}: u * table[1, 2],
    ],
    ids=["partial", "array", "set", "keys that are no names"],
)
def test_what_cannot_be_watched_is_never_said_to_hold(f: Any) -> None:
    _, hold = held(f)
    if isinstance(f, functools.partial):
        assert hold()
        f.keywords["power"] = 3.0
    assert not hold()


def test_an_attribute_that_its_class_comes_to_hide_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Law:
        def __init__(self) -> None:
            self.rate = 2.0

    law = Law()
    _, hold = held(lambda u, p, t: law.rate * u)
    assert hold()
    monkeypatch.setattr(Law, "rate", property(lambda self: 3.0), raising=False)
    assert not hold()


@needs_compiler
def test_a_start_whose_memory_is_replaced_is_seen() -> None:
    prob = problem(Net())
    for _ in range(4):
        run(prob)
    prob.u0.data = torch.tensor([5.0, 6.0], dtype=torch.float64)
    assert assert_right(prob).u[0].tolist() == [5.0, 6.0]


@needs_compiler
def test_threads_of_python_serve_where_torch_has_no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    u0 = torch.rand(100, 2, dtype=torch.float64)
    net = Net()
    prob = ude.ODEProblem(net, u0, (0.0, 1.0))
    threads, found = torch.get_num_threads(), []
    try:
        for count, openmp in ((1, True), (2, True), (2, False)):
            torch.set_num_threads(count)
            if not openmp:
                monkeypatch.setattr("ude.engines.fused.threads._openmp", lambda: None)
            sol = run(prob)
            found.append([sol.u.detach(), *gradients(sol, list(net.net.parameters()))])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for others in found[1:] for one, two in zip(found[0], others, strict=True))


@needs_compiler
def test_times_of_a_batch_are_watched(recalled: Recalled) -> None:
    """Trajectories with spans of their own, whose ends change in place."""
    u0 = torch.tensor([[1.0, 2.0], [0.5, 1.5]], dtype=torch.float64)
    ends = torch.tensor([1.0, 2.0], dtype=torch.float64)
    prob = ude.ODEProblem(linear, u0, (torch.zeros(2, dtype=torch.float64), ends))
    saves = torch.stack([torch.linspace(0.0, float(end), 5, dtype=torch.float64) for end in ends])
    for _ in range(3):
        assert_right(prob, saveat=saves)
    before = recalled.hits
    assert_right(prob, saveat=saves)
    assert recalled.hits == before + 1
    prob.tspan[1].copy_(torch.tensor([1.5, 3.0]))
    with torch.no_grad():
        later = assert_right(prob, saveat=saves * 1.5)
    torch.testing.assert_close(later.u[:, -1], u0 * torch.exp(-prob.tspan[1]).unsqueeze(-1), rtol=1e-6, atol=1e-8)
