"""Trajectories that have finished leave the batch: the same steps and gradients, and fewer rows to compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ude
from tests.problems_for_tests import lotka_volterra, scipy_lotka_volterra
from ude.engines.torch import batches
from ude.engines.torch.compaction import CompactRecord

COUNT = 300
SLOW_ONES = slice(0, COUNT, 30)
METHODS = [ude.Tsit5(), ude.Vern7(), ude.KenCarp4(), ude.Rodas5P(), ude.AutoTsit5(ude.Rodas5P()), ude.FBDF()]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def rates() -> torch.Tensor:
    rate = torch.ones(COUNT, dtype=torch.float64)
    rate[SLOW_ONES] = 8.0
    return rate


def starts() -> torch.Tensor:
    return torch.rand(COUNT, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def predator_prey(u, p, t):
    x, y = u.unbind(-1)
    return torch.stack([p.rate * (p.a * x - x * y), p.rate * (x * y - 3.0 * y)], -1)


def problem(f: Any = predator_prey, **p: Any) -> ude.ODEProblem:
    return ude.ODEProblem(f, starts(), (0.0, 1.5), dict(rate=rates(), a=1.5) | p)


class Watched:
    """Widths of the batches that f was called with."""

    def __init__(self, f: Any = predator_prey) -> None:
        self.f, self.widths = f, []

    def __call__(self, u, p, t):
        self.widths.append(u.shape[0])
        return self.f(u, p, t)


def both(monkeypatch, prob: ude.ODEProblem, alg=None, **options) -> tuple[ude.Solution, ude.Solution]:
    options = {"abstol": 1e-5, "reltol": 1e-5} | options  # both take the same steps, however few
    compacted = ude.solve(prob, alg, **options)
    with monkeypatch.context() as patched:
        patched.setattr(batches, "may_compact", lambda spec: False)
        whole = ude.solve(prob, alg, **options)
    return compacted, whole


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_steps_are_bit_equal_with_and_without(alg, monkeypatch):
    compacted, whole = both(monkeypatch, problem(), alg)
    assert torch.equal(compacted.t, whole.t)
    assert torch.equal(compacted.stats.accepted_steps, whole.stats.accepted_steps)
    assert torch.equal(compacted.stats.rejected_steps, whole.stats.rejected_steps)
    torch.testing.assert_close(compacted.u, whole.u, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_saves_and_dense_output_are_the_same(alg, monkeypatch):
    compacted, whole = both(monkeypatch, problem(), alg, saveat=[0.0, 0.2, 0.7, 1.5])
    torch.testing.assert_close(compacted.u, whole.u, rtol=1e-13, atol=1e-13)
    t = torch.linspace(0.0, 1.5, 41, dtype=torch.float64)
    torch.testing.assert_close(compacted(t), whole(t), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("alg", METHODS, ids=name)
# every step is saved in test_steps_are_bit_equal_with_and_without too, whose gradient differs by what is read alone
@pytest.mark.parametrize(
    "saveat", [pytest.param(None, marks=pytest.mark.slow), [0.3, 0.31, 1.0, 1.5]], ids=["every step", "saves"]
)
def test_gradients_are_the_same_by_every_leaf(alg, saveat, monkeypatch):
    u0, rate = starts().requires_grad_(), rates().requires_grad_()
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(predator_prey, u0, (0.0, 1.5), dict(rate=rate, a=a))
    weights = torch.linspace(0.5, 1.5, COUNT, dtype=torch.float64).view(-1, 1, 1)
    found = [
        torch.autograd.grad((weights * sol.u**2).sum(), (u0, rate, a))
        for sol in both(monkeypatch, prob, alg, saveat=saveat)
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11 * float(other.abs().max()))


def relaxes(u, p, t):
    """Stiff where `rate` is large: x follows a slow y, which turns stiffness on and off by its own size."""
    x, y = u.unbind(-1)
    speed = p.rate * torch.sigmoid(20.0 * torch.sin(3.0 * t)) + 1.0
    return torch.stack([speed * (torch.cos(y) - x), p.a * x - 0.5 * y], -1)


@pytest.mark.parametrize(
    ("saveat", "stiff"),
    [
        pytest.param([0.3, 1.0, 4.0], ude.Rodas5P(), id="saves-Rodas5P"),
        pytest.param(None, ude.KenCarp4(), id="every step-KenCarp4", marks=pytest.mark.slow),
        pytest.param(None, ude.Rodas5P(), id="every step-Rodas5P", marks=pytest.mark.slow),
        pytest.param([0.3, 1.0, 4.0], ude.KenCarp4(), id="saves-KenCarp4", marks=pytest.mark.slow),
    ],
)
def test_a_method_that_switches_does_so_alike_with_and_without(stiff, saveat, monkeypatch):
    rate = torch.ones(COUNT, dtype=torch.float64)
    rate[::10] = 3000.0
    rate[::30] = 30000.0
    length = torch.linspace(0.5, 4.0, COUNT, dtype=torch.float64)
    u0, rate = starts().requires_grad_(), rate.requires_grad_()
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(relaxes, u0, (0.0, length), dict(rate=rate, a=a))
    saves = None if saveat is None else length.unsqueeze(-1) * torch.tensor(saveat, dtype=torch.float64) / 4.0
    alg = ude.AutoTsit5(stiff, maxstiffstep=4, maxnonstiffstep=2)
    watched = Watched(relaxes)
    compacted, whole = both(monkeypatch, ude.remake(prob, f=watched), alg, saveat=saves)
    assert min(watched.widths) < COUNT // 2
    assert int(whole.stats.switches.max()) >= 2 > int(whole.stats.switches.min()) == 0
    assert torch.equal(compacted.stats.switches, whole.stats.switches)
    assert torch.equal(compacted.stats.accepted_steps, whole.stats.accepted_steps)
    assert torch.equal(compacted.stats.rejected_steps, whole.stats.rejected_steps)
    torch.testing.assert_close(compacted.u, whole.u, rtol=1e-12, atol=1e-12)
    t = torch.linspace(0.0, 0.5, 11, dtype=torch.float64)
    torch.testing.assert_close(compacted(t), whole(t), rtol=1e-12, atol=1e-12)
    weights = torch.linspace(0.5, 1.5, COUNT, dtype=torch.float64).view(-1, 1, 1)
    found = [torch.autograd.grad((weights * sol.u**2).sum(), (u0, rate, a)) for sol in (compacted, whole)]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 * float(other.abs().max()))


def test_the_gradient_agrees_with_differences_of_a_trajectory_alone():
    rate = rates().requires_grad_()
    prob = ude.ODEProblem(predator_prey, starts(), (0.0, 1.5), dict(rate=rate, a=1.5))
    sol = ude.solve(prob, saveat=[1.5], abstol=1e-11, reltol=1e-11)
    (grad,) = torch.autograd.grad(sol.u[:, -1, 0].sum(), rate)
    for lane in (0, 1):  # a long one and a short one

        def end(value: float, lane: int = lane) -> float:
            times = torch.tensor([0.0, 1.5 * value], dtype=torch.float64).numpy()
            u0 = starts()[lane].tolist()
            return float(scipy_lotka_volterra(times, u0, dict(alpha=1.5, beta=1.0, gamma=1.0, delta=3.0))[-1, 0])

        r, step = float(rate[lane].detach()), 1e-4
        assert float(grad[lane]) == pytest.approx((end(r + step) - end(r - step)) / (2 * step), rel=1e-6, abs=1e-8)


def test_the_batch_becomes_smaller():
    f = Watched()
    sol = ude.solve(problem(f), saveat=[1.5], abstol=1e-6, reltol=1e-6)
    assert len(range(COUNT)[SLOW_ONES]) <= f.widths[-1] < 64
    steps = sol.stats.accepted_steps
    assert sum(f.widths) < 0.5 * COUNT * len(f.widths)
    assert int(steps.max()) > 4 * int(steps.median())


def test_a_network_in_f_is_never_gathered(monkeypatch):
    """Its first layer has as many rows as there are trajectories."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, COUNT), torch.nn.Tanh(), torch.nn.Linear(COUNT, 2)).double()

    def f(u, p, t):
        return p.rate.unsqueeze(-1) * (p.net(u) - 0.5 * u)

    prob = problem(f, net=net)
    compacted, whole = both(monkeypatch, prob, saveat=[1.5])
    assert torch.equal(compacted.stats.accepted_steps, whole.stats.accepted_steps)
    grads = [torch.autograd.grad((sol.u**2).sum(), list(net.parameters())) for sol in (compacted, whole)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


SCALES = torch.linspace(0.5, 1.0, COUNT, dtype=torch.float64)


def hides_a_batch(u, p, t):
    """One number a trajectory in a closure: gathered rows would meet the wrong ones."""
    return SCALES[: u.shape[0]].unsqueeze(-1) * predator_prey(u, p, t)


def needs_the_shape(u, p, t):
    return SCALES.unsqueeze(-1) * predator_prey(u, p, t)


def couples(u, p, t):
    """Not yet at the start, where `solve` would refuse it."""
    return predator_prey(u, p, t) * (1.0 + 1e-3 * u.mean(0) * t.mean())


def counts_rows(u, p, t):
    return predator_prey(u, p, t) * (u.shape[0] / COUNT)


def places_after(u, p, t):
    """A table that happens to be as long as the batch, looked up by time near the end alone."""
    late = p.table[(t * 100).long().clamp(0, len(p.table) - 1)].unsqueeze(-1)
    return predator_prey(u, p, t) + torch.where(t.unsqueeze(-1) > 1.4, late, 0.0)


@pytest.mark.parametrize("f", [hides_a_batch, needs_the_shape, couples, counts_rows], ids=lambda f: f.__name__)
def test_an_f_that_needs_its_whole_batch_keeps_it(f, monkeypatch):
    watched = Watched(f)
    compacted, whole = both(monkeypatch, problem(watched), saveat=[0.5, 1.5])
    assert torch.equal(compacted.u, whole.u)


def test_a_leaf_that_is_only_as_long_as_the_batch_is_left_whole(monkeypatch):
    table = torch.linspace(0.0, 1.0, COUNT, dtype=torch.float64)
    f = Watched(places_after)
    prob = ude.ODEProblem(f, starts(), (0.0, 1.5), dict(rate=rates(), a=1.5, table=table))
    compacted, whole = both(monkeypatch, prob, saveat=[1.5])
    torch.testing.assert_close(compacted.u, whole.u, rtol=1e-13, atol=1e-13)


def hides_a_batch_in_jac(u, p, t):
    return SCALES.view(-1, 1, 1) / SCALES.view(-1, 1, 1) * predator_prey_jac(u, p, t)


def predator_prey_jac(u, p, t):
    x, y = u.unbind(-1)
    rows = torch.stack([torch.stack([p.a - y, -x], -1), torch.stack([y, x - 3.0], -1)], -2)
    return p.rate.view(-1, 1, 1) * rows


def pulls(u, p, t):
    return -p.rate.unsqueeze(-1) * u


def pushes(u, p, t):
    return p.rate.unsqueeze(-1) * torch.stack([torch.sin(5 * t), u[..., 0] * u[..., 1]], -1)


def constrained(u, p, t):
    """predator_prey with x y as a third, algebraic state."""
    x, y, product = u.unbind(-1)
    return torch.stack([p.rate * (p.a * x - product), p.rate * (product - 3.0 * y), product - x * y], -1)


def with_structure(kind: str) -> ude.ODEProblem:
    if kind == "split":
        return ude.SplitODEProblem(pulls, Watched(pushes), starts(), (0.0, 1.5), dict(rate=rates()))
    if kind == "mass matrix":
        u0 = torch.cat([starts(), torch.zeros(COUNT, 1, dtype=torch.float64)], -1)
        f = ude.ODEFunction(Watched(constrained), mass_matrix=torch.diag(torch.tensor([1.0, 1.0, 0.0])))
        return ude.ODEProblem(f, u0, (0.0, 1.5), dict(rate=rates(), a=1.5))
    jac = {"jac": predator_prey_jac, "jac of the batch": hides_a_batch_in_jac}.get(kind)
    prob = problem(ude.ODEFunction(Watched(), jac=jac))
    return ude.remake(prob, tspan=(0.0, 0.6)) if kind == "GMRES" else prob


STRUCTURES = {
    "split": [ude.KenCarp4()],
    "mass matrix": [ude.KenCarp4(), ude.Rodas5P(), ude.FBDF()],
    "jac": [ude.KenCarp4(), ude.Rodas5P()],
    "GMRES": [
        ude.KenCarp4(linsolve=ude.methods.GMRES(reltol=1e-10)),
        ude.Rodas5P(linsolve=ude.methods.GMRES(reltol=1e-10)),
    ],
}


@pytest.mark.parametrize(("kind", "alg"), [(kind, alg) for kind, algs in STRUCTURES.items() for alg in algs], ids=name)
def test_what_is_known_of_f_goes_with_the_trajectories(kind, alg, monkeypatch):
    prob = with_structure(kind)
    rate, u0 = rates().requires_grad_(), prob.u0.requires_grad_()
    prob = ude.remake(prob, u0=u0, p=dict(rate=rate))
    tolerance = 1e-3 if kind == "GMRES" else 1e-5  # slow, and which steps are taken does not matter
    found = both(monkeypatch, prob, alg, saveat=[0.3, prob.tspan[1]], abstol=tolerance, reltol=tolerance)
    assert torch.equal(found[0].stats.accepted_steps, found[1].stats.accepted_steps)
    torch.testing.assert_close(found[0].u, found[1].u, rtol=1e-11, atol=1e-11)
    watched = prob.f.f2 if kind == "split" else prob.f.f
    assert min(watched.widths) < 64
    grads = [torch.autograd.grad((sol.u**2).sum(), (rate, u0)) for sol in found]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def test_a_jacobian_that_needs_its_whole_batch_keeps_it(monkeypatch):
    prob = with_structure("jac of the batch")
    compacted, whole = both(monkeypatch, prob, ude.Rodas5P(), saveat=[1.5])
    assert torch.equal(compacted.u, whole.u)


def test_trajectories_without_a_start_are_told_and_the_others_compacted(monkeypatch):
    u0 = torch.stack([torch.linspace(0.1, 0.9, COUNT), torch.full((COUNT,), 0.5)], -1).double()
    u0[3, 0] = 2.0  # no y with x^2 + y^2 = 1

    def circle(u, p, t):
        x, y = u.unbind(-1)
        return torch.stack([-p.rate * x * y, x**2 + y**2 - 1], -1)

    f = ude.ODEFunction(Watched(circle), mass_matrix=torch.diag(torch.tensor([1.0, 0.0])))
    prob = ude.ODEProblem(f, u0, (0.0, 1.5), dict(rate=rates()))
    for sol in both(monkeypatch, prob, ude.Rodas5P(), saveat=[1.5], abstol=1e-6, reltol=1e-6):
        assert [i for i, code in enumerate(sol.retcode) if code == ude.ReturnCode.InitialFailure] == [3]
        assert sum(code.ok for code in sol.retcode) == COUNT - 1
        x = u0[0, 0]
        # x = sech(rate t + c) solves x' = -rate x sqrt(1 - x^2)
        end = 1 / torch.cosh(torch.acosh(1 / x) + 8.0 * 1.5)
        torch.testing.assert_close(sol.partial[0, 0, 0], end, rtol=1e-4, atol=0.0)
    assert min(f.f.widths) < 64


def test_failures_and_spans_of_their_own_go_with_their_trajectory(monkeypatch):
    t1 = torch.linspace(0.5, 1.5, COUNT, dtype=torch.float64)
    u0 = starts()[:, :1]
    u0[10] = 3.0  # blows up at t = 1/3
    prob = ude.ODEProblem(lambda u, p, t: torch.where(u > 2.0, u**2, -u), u0, (0.0, t1))
    compacted, whole = both(monkeypatch, prob, maxiters=200)
    assert compacted.retcode.tolist() == whole.retcode.tolist()
    assert not compacted.retcode.tolist()[10].ok
    assert torch.equal(compacted.t[:10], whole.t[:10])


def test_maxiters_counts_over_all_batches(monkeypatch):
    compacted, whole = both(monkeypatch, problem(), maxiters=40, saveat=[1.5])
    assert compacted.retcode.tolist() == whole.retcode.tolist()
    assert ude.ReturnCode.MaxIters in compacted.retcode.tolist()


def test_small_batches_and_other_sensitivities_keep_their_batch():
    f = Watched()
    prob = problem(f)
    small = ude.ODEProblem(f, prob.u0[:60], prob.tspan, dict(rate=rates()[:60], a=1.5))
    ude.solve(small, saveat=[1.5])
    assert set(f.widths) == {60}
    f.widths.clear()
    u0 = starts().requires_grad_()
    ude.solve(ude.remake(prob, u0=u0), saveat=[1.5], sensealg=ude.BacksolveAdjoint())
    assert set(f.widths) == {COUNT}


def test_legs_between_doses_are_compacted_too(monkeypatch):
    dose = ude.PresetTimeCallback([0.8], lambda u, p, t: u + 0.1)
    rate = rates().requires_grad_()
    prob = ude.ODEProblem(predator_prey, starts(), (0.0, 1.5), dict(rate=rate, a=1.5))
    found = both(monkeypatch, prob, saveat=[0.5, 1.5], callback=dose)
    torch.testing.assert_close(found[0].u, found[1].u, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(sol.u.sum(), rate)[0] for sol in found]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-10)


def test_what_is_recorded_of_a_compacted_solve_is_smaller():
    from ude.engines.torch.engine import TorchEngine

    records = []
    engine_forward = TorchEngine.forward

    class Spy(TorchEngine):
        def forward(self, spec, u0, p):
            result = engine_forward(self, spec, u0, p)
            records.append(result.record)
            return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TorchEngine, "forward", Spy.forward)
        ude.solve(problem(), saveat=[1.5], abstol=1e-6, reltol=1e-6)
    (record,) = records
    assert isinstance(record, CompactRecord)
    rows = sum(len(segment.record.dt) for segment in record.segments)
    held = sum(segment.record.u.numel() for segment in record.segments)
    assert held < 0.5 * rows * COUNT * 2


def test_the_reference_problem_itself_is_right_in_a_compacted_batch():
    u0 = starts()
    length = torch.where(torch.arange(COUNT) % 30 == 0, 10.0, 1.0).double()
    prob = ude.ODEProblem(lotka_volterra, u0, (0.0, length), dict(alpha=1.5, beta=1.0, gamma=1.0, delta=3.0))
    sol = ude.solve(prob, saveat=length.unsqueeze(-1), abstol=1e-9, reltol=1e-9)
    for lane in (0, 7, 30):
        truth = scipy_lotka_volterra(torch.stack([length[lane] * 0, length[lane]]).numpy(), u0[lane].tolist())[-1]
        torch.testing.assert_close(sol.u[lane, 0], torch.as_tensor(truth), rtol=1e-5, atol=1e-6)
