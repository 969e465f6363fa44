"""Partitioned problems and symplectic methods: order conditions, order, energy, gradients, error texts."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from math import factorial

import pytest
import torch
from torch import Tensor, nn

import ude
from ude.methods.symplectic import SymplecticTableau
from ude.methods.tableau import Number

METHODS = [
    ude.methods.VelocityVerlet(),
    ude.methods.PseudoVerletLeapfrog(),
    ude.methods.McLachlan4(),
    ude.methods.CandyRoz4(),
    ude.methods.KahanLi6(),
    ude.methods.KahanLi8(),
]
GENERAL = [alg for alg in METHODS if not alg.tableau.needs_second_order]
# How far the coefficients, as published or computed, are from the conditions.
DIGITS = {"McLachlan4": 1e-17, "CandyRoz4": 1e-45, "KahanLi6": 1e-24, "KahanLi8": 1e-24}


def word_defects(tableau: SymplecticTableau, length: int) -> dict[str, Number]:
    """Order conditions of degree `length`: what the method's series has too much of every word in drifts and kicks.

    The exact flow is ``exp(dt (D + K))``, in whose series every word of n letters D and K has the coefficient
    ``1/n!``; the method's is ``prod_i exp(b_i dt D) exp(a_i dt K)``. A method has order p when the defects of all words
    of 1 ... p letters are zero (a method for quadratic kinetic energy may leave a multiple of ``[K,[K,[K,D]]] = 0``).

    Source: E. Hairer, Ch. Lubich, G. Wanner, Geometric Numerical Integration, III.4 and III.5.
    """
    flows = [(letter, x) for b, a in zip(tableau.b, tableau.a, strict=True) for letter, x in (("D", b), ("K", a)) if x]
    defects: dict[str, Number] = {}
    for letters in product("DK", repeat=length):
        # coefficient of every beginning of the word in the product of the flows so far
        so_far: list[Number] = [Fraction(1), *(Fraction(0) for _ in letters)]
        for letter, x in flows:
            for end in range(length, 0, -1):
                term: Number = Fraction(1)
                for count in range(1, end + 1):
                    if letters[end - count] != letter:
                        break
                    term = term * x / count
                    so_far[end] = so_far[end] + so_far[end - count] * term
        defects["".join(letters)] = so_far[length] - Fraction(1, factorial(length))
    return defects


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def kepler(du: Tensor, u: Tensor, p: object, t: Tensor) -> Tensor:
    return -u / (u**2).sum(-1, keepdim=True) ** 1.5


def kepler_energy(state: Tensor) -> Tensor:
    v, u = state.split(2, -1)
    return (v**2).sum(-1) / 2 - 1 / (u**2).sum(-1).sqrt()


def kepler_problem(eccentricity: float, end: float) -> ude.ODEProblem:
    speed = math.sqrt((1 + eccentricity) / (1 - eccentricity))
    return ude.SecondOrderODEProblem(kepler, [0.0, speed], [1 - eccentricity, 0.0], (0.0, end), names="x, y")


def henon_heiles(du: Tensor, u: Tensor, p: object, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([-x - 2 * x * y, y**2 - y - x**2], -1)


def henon_heiles_energy(state: Tensor) -> Tensor:
    v, u = state.split(2, -1)
    x, y = u.unbind(-1)
    return (v**2).sum(-1) / 2 + (u**2).sum(-1) / 2 + x**2 * y - y**3 / 3


def spring(du: Tensor, u: Tensor, p: object, t: Tensor) -> Tensor:
    return -u


def spring_energy(state: Tensor) -> Tensor:
    return (state**2).sum(-1) / 2


def driven_pendulum(du: Tensor, u: Tensor, p: ude.problems.Parameters, t: Tensor) -> Tensor:
    return -p.k * torch.sin(u) + p.drive * torch.cos(p.w * t).unsqueeze(-1)


def relativistic_force(v: Tensor, u: Tensor, p: ude.problems.Parameters, t: Tensor) -> Tensor:
    return -p.k * u**3 + p.drive * torch.cos(2 * t).unsqueeze(-1)


def relativistic_velocity(v: Tensor, u: Tensor, p: ude.problems.Parameters, t: Tensor) -> Tensor:
    return v / torch.sqrt(1 + v**2) * (1 + 0.3 * torch.sin(t).unsqueeze(-1))


P = {"k": 1.3, "drive": 0.4, "w": 1.7}


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_the_series_of_a_step_is_that_of_the_exact_flow_up_to_the_order(alg):
    tableau = alg.tableau
    # every word of eight letters takes seconds; degree 8 of KahanLi8 is measured below
    for degree in range(1, min(tableau.order, 7) + 1):
        defects = word_defects(tableau, degree)
        if tableau.needs_second_order and degree == 4:
            # what is left is a multiple of [K,[K,[K,D]]], which is zero for a quadratic kinetic energy
            rest = {word: defects.pop(word) for word in ("KKKD", "KKDK", "KDKK", "DKKK")}
            shape = [float(rest[word] / rest["KKKD"]) for word in rest]
            assert shape == pytest.approx([1, -3, 3, -1], abs=1e-12)
            assert abs(rest["KKKD"]) > 1e-4
        assert max(abs(x) for x in defects.values()) <= DIGITS.get(alg.name, 0)
    if tableau.order < 7 and not tableau.needs_second_order:
        assert max(abs(x) for x in word_defects(tableau, tableau.order + 1).values()) > 1e-5


@pytest.mark.slow
def test_kahan_li_8_satisfies_the_conditions_of_degree_8():
    assert max(abs(x) for x in word_defects(ude.methods.KahanLi8().tableau, 8).values()) < 1e-24


def errors_at_the_end(prob: ude.ODEProblem, alg, steps: tuple[int, ...]) -> list[float]:
    exact = ude.solve(prob, ude.methods.Vern9(), abstol=1e-14, reltol=1e-14, saveat=[float(prob.tspan[1])]).u[-1]
    span = prob.tspan[1] - prob.tspan[0]
    return [float((ude.solve(prob, alg, dt=span / n, adaptive=False).u[-1] - exact).abs().max()) for n in steps]


STEPS = {2: (100, 200, 400), 4: (40, 80, 160), 6: (30, 45, 60), 8: (16, 20, 26)}


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_measured_order_on_a_driven_pendulum(alg):
    prob = ude.SecondOrderODEProblem(driven_pendulum, [0.3], [1.0], (0.0, 5.0), P)
    steps = STEPS[alg.tableau.order]
    first, middle, last = errors_at_the_end(prob, alg, steps)
    assert math.log(middle / last) / math.log(steps[2] / steps[1]) == pytest.approx(alg.tableau.order, abs=0.2)


@pytest.mark.parametrize("alg", GENERAL, ids=name)
def test_measured_order_where_both_halves_are_nonlinear_and_depend_on_time(alg):
    prob = ude.DynamicalODEProblem(relativistic_force, relativistic_velocity, [0.3], [1.0], (0.0, 4.0), P)
    steps = STEPS[alg.tableau.order]
    first, middle, last = errors_at_the_end(prob, alg, steps)
    assert math.log(middle / last) / math.log(steps[2] / steps[1]) == pytest.approx(alg.tableau.order, abs=0.2)


def test_every_other_method_solves_a_second_order_problem_as_a_first_order_system():
    prob = kepler_problem(0.3, 2.0)
    tight = ude.solve(prob, ude.methods.Vern9(), abstol=1e-13, reltol=1e-13, saveat=0.5)
    for alg in (ude.Tsit5(), ude.Rodas5P(), ude.KenCarp4(), ude.TorchDiffEq("dopri5")):
        sol = ude.solve(prob, alg, abstol=1e-9, reltol=1e-9, saveat=0.5)
        torch.testing.assert_close(sol.u, tight.u, rtol=1e-6, atol=1e-6)
    assert tight.names == ("dx", "dy", "x", "y")
    torch.testing.assert_close(tight["dx"], tight.u[:, 0], rtol=0, atol=0)


def test_names_are_made_where_none_are_given():
    prob = ude.DynamicalODEProblem(relativistic_force, relativistic_velocity, [0.3], [1.0], (0.0, 4.0), P)
    assert prob.state_names == ("v1", "u1")
    assert ude.SecondOrderODEProblem(spring, [0.0, 1.0], [1.0, 0.0], (0.0, 1.0)).state_names == (
        "du1",
        "du2",
        "u1",
        "u2",
    )


DRIFTS = [
    (kepler_problem(0.5, 1.0), kepler_energy, 0.02),
    (ude.SecondOrderODEProblem(henon_heiles, [0.5, 0.0], [0.0, 0.1], (0.0, 1.0)), henon_heiles_energy, 0.1),
    (ude.SecondOrderODEProblem(spring, [0.0], [1.0], (0.0, 1.0)), spring_energy, 0.1),
]


def energy_errors(case, alg, steps: int) -> tuple[float, float]:
    """Largest relative error of the energy in the first and in the last tenth of the steps."""
    prob, energy, dt = case
    prob = ude.remake(prob, tspan=(0.0, steps * dt))
    sol = ude.solve(prob, alg, dt=dt, adaptive=False, maxiters=2 * steps)
    e = energy(sol.u)
    error = (e / e[0] - 1).abs()
    tenth = steps // 10
    return float(error[:tenth].max()), float(error[-tenth:].max())


@pytest.mark.parametrize("case", DRIFTS, ids=["Kepler", "Henon-Heiles", "spring"])
@pytest.mark.parametrize("alg", [ude.methods.VelocityVerlet(), ude.methods.McLachlan4()], ids=name)
def test_energy_does_not_drift_over_5000_steps(case, alg):
    early, late = energy_errors(case, alg, 5000)
    assert late < 1.5 * early + 1e-12
    assert early < (3e-3 if alg.tableau.order == 2 else 3e-5)


def test_a_method_that_is_not_symplectic_does_drift():
    early, late = energy_errors(DRIFTS[2], ude.RK4(), 2000)
    assert late > 5 * early


@pytest.mark.slow
@pytest.mark.parametrize("case", DRIFTS, ids=["Kepler", "Henon-Heiles", "spring"])
@pytest.mark.parametrize("alg", [ude.methods.VelocityVerlet(), ude.methods.KahanLi6()], ids=name)
def test_energy_does_not_drift_over_100_000_steps(case, alg):
    early, late = energy_errors(case, alg, 100_000)
    assert late < 1.5 * early + 1e-11


def by_hand(alg, z: Tensor, p: dict[str, Tensor], dt: float, steps: int) -> Tensor:
    """The method as a loop of its own, for autograd to differentiate: states after every step (steps + 1, 2)."""
    a, b = [float(x) for x in alg.tableau.a], [float(x) for x in alg.tableau.b]
    v, u = z[:1], z[1:]
    params, states = ude.problems.Parameters(p), [z]
    for n in range(steps):
        for i in range(len(a)):
            t = torch.tensor(n * dt, dtype=torch.float64)
            u = u + b[i] * dt * relativistic_velocity(v, u, params, t + sum(a[:i]) * dt)
            v = v + a[i] * dt * relativistic_force(v, u, params, t + sum(b[: i + 1]) * dt)
        states.append(torch.cat([v, u]))
    return torch.stack(states)


@pytest.mark.parametrize("alg", GENERAL, ids=name)
def test_the_gradient_is_that_of_the_steps_as_autograd_takes_it_through_a_loop(alg):
    weights = torch.linspace(0.5, 2.0, 12, dtype=torch.float64).view(6, 2)

    def gradient(ours: bool) -> tuple[Tensor, ...]:
        z = torch.tensor([0.3, 1.0], dtype=torch.float64, requires_grad=True)
        p = {key: torch.tensor(P[key], dtype=torch.float64, requires_grad=True) for key in ("k", "drive")}
        if ours:
            prob = ude.DynamicalODEProblem(relativistic_force, relativistic_velocity, z[:1], z[1:], (0.0, 0.5), p)
            u = ude.solve(prob, alg, dt=0.1, adaptive=False).u
        else:
            u = by_hand(alg, z, p, 0.1, 5)
        return u.detach(), *torch.autograd.grad((weights * u**2).sum(), (z, *p.values()))

    for got, expected in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_the_gradient_through_saves_inside_steps_agrees_with_differences(alg):
    theta = torch.tensor([0.3, 1.0, 1.3, 0.4], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        prob = ude.SecondOrderODEProblem(
            driven_pendulum, x[:1], x[1:2], (0.0, 2.0), {"k": x[2], "drive": x[3], "w": 2.0}
        )
        sol = ude.solve(prob, alg, dt=0.15, adaptive=False, saveat=0.23)
        return (sol.u**2).sum() + sol(1.234).prod()

    x = theta.clone().requires_grad_()
    (got,) = torch.autograd.grad(loss(x), x)
    step = 1e-5
    with torch.no_grad():
        rows = torch.eye(4, dtype=torch.float64) * step
        expected = torch.stack([(loss(theta + e) - loss(theta - e)) / (2 * step) for e in rows])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


def test_a_batch_gives_what_its_trajectories_give_alone_and_so_does_its_gradient():
    k = torch.tensor([1.0, 1.4, 0.8], dtype=torch.float64).unsqueeze(-1)
    u0, ends = torch.tensor([[1.0], [0.5], [0.2]]).double(), torch.tensor([1.0, 2.0, 0.7]).double()

    def run(rows: slice | int, ends: Tensor) -> tuple[Tensor, Tensor]:
        own = k[rows].clone().requires_grad_()
        prob = ude.SecondOrderODEProblem(driven_pendulum, 0 * u0[rows], u0[rows], (0.0, ends), {**P, "k": own})
        sol = ude.solve(prob, ude.methods.CandyRoz4(), dt=0.1, adaptive=False)
        end = sol.u[..., -1, :]
        return end.detach(), torch.autograd.grad((end**2).sum(), own)[0]

    together, gradient = run(slice(None), ends)
    for i in range(3):
        alone, own = run(i, ends[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(gradient[i], own, rtol=1e-12, atol=1e-12)


def test_dense_output_has_order_three():
    prob = ude.SecondOrderODEProblem(spring, [0.0], [1.0], (0.0, 2.0))
    times = torch.linspace(0.0, 2.0, 211, dtype=torch.float64)
    errors = []
    for steps in (10, 20, 40):
        sol = ude.solve(prob, ude.methods.KahanLi8(), dt=2.0 / steps, adaptive=False)
        errors.append(float((sol(times)[:, 1] - torch.cos(times)).abs().max()))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(4.0, abs=0.2)  # a local error of order 4


def test_a_ball_bounces_by_a_callback_and_its_gradient_passes_the_bounces():
    def fall(du, u, p, t):
        return -p.g * torch.ones_like(u)

    bounce = ude.ContinuousCallback(
        lambda u, p, t: u[..., 1], lambda u, p, t: torch.stack([-0.8 * u[..., 0], 0 * u[..., 1]], -1)
    )
    g = torch.tensor(9.81, dtype=torch.float64, requires_grad=True)
    prob = ude.SecondOrderODEProblem(fall, [0.0], [1.0], (0.0, 1.0), {"g": g})
    end = ude.solve(prob, ude.methods.VelocityVerlet(), dt=0.01, adaptive=False, callback=bounce).u[-1, 1]
    # one bounce at sqrt(2/g); Verlet is exact for constant forces
    hit = math.sqrt(2 / 9.81)
    assert float(end.detach()) == pytest.approx(
        0.8 * math.sqrt(2 * 9.81) * (1 - hit) - 9.81 / 2 * (1 - hit) ** 2, rel=1e-9
    )
    rate = lambda x: 0.8 * math.sqrt(2 * x) * (1 - math.sqrt(2 / x)) - x / 2 * (1 - math.sqrt(2 / x)) ** 2  # noqa: E731
    (slope,) = torch.autograd.grad(end, g)
    assert float(slope) == pytest.approx((rate(9.8101) - rate(9.8099)) / 2e-4, rel=1e-6)


def test_backward_in_time_undoes_the_steps():
    prob = kepler_problem(0.3, 1.0)
    there = ude.solve(prob, ude.methods.KahanLi6(), dt=0.05, adaptive=False).u[-1]
    back = ude.solve(ude.remake(prob, u0=there, tspan=(1.0, 0.0)), ude.methods.KahanLi6(), dt=0.05, adaptive=False).u[
        -1
    ]
    torch.testing.assert_close(back, prob.u0, rtol=1e-13, atol=1e-13)


def test_a_force_that_is_a_module_owns_its_parameters():
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, du, u, p, t):
            return -self.k * u

    force = Force()
    prob = ude.SecondOrderODEProblem(force, [0.0], [1.0], (0.0, 1.0))
    end = ude.solve(prob, ude.methods.KahanLi8(), dt=0.05, adaptive=False).u[-1, 1]
    end.backward()
    root = math.sqrt(1.5)
    assert float(end.detach()) == pytest.approx(math.cos(root), abs=1e-12)
    assert float(force.k.grad) == pytest.approx(-math.sin(root) / (2 * root), abs=1e-11)


def test_a_step_costs_as_many_forces_as_the_method_has_stages():
    prob = kepler_problem(0.3, 1.0)
    for alg in METHODS:
        counts = [ude.solve(prob, alg, dt=1.0 / n, adaptive=False).stats.nf for n in (20, 40)]
        assert counts[1] - counts[0] == 20 * alg.tableau.stages, alg.name


def refused(prob: ude.ODEProblem, alg, **options) -> str:
    with pytest.raises(ude.UdeError) as caught:
        ude.solve(prob, alg, **{"dt": 0.1, "adaptive": False, **options})
    return str(caught.value)


def test_errors_say_what_a_symplectic_method_needs():
    plain = ude.ODEProblem(lambda u, p, t: -u, [1.0, 0.0], (0.0, 1.0))
    text = refused(plain, ude.methods.KahanLi6())
    assert "KahanLi6 needs a SecondOrderODEProblem or a DynamicalODEProblem, whose halves it moves in turn" in text, (
        text
    )
    general = ude.DynamicalODEProblem(relativistic_force, relativistic_velocity, [0.3], [1.0], (0.0, 4.0), P)
    text = refused(general, ude.methods.McLachlan4())
    assert "McLachlan4 keeps its order only where u' = v, so it needs a SecondOrderODEProblem" in text
    text = refused(kepler_problem(0.1, 1.0), ude.methods.VelocityVerlet(), adaptive=True)
    assert "VelocityVerlet estimates no error, so it needs adaptive=False and dt" in text


@pytest.mark.parametrize("drag", [lambda v: v, lambda v: v * v.abs()], ids=["linear", "quadratic, at rest"])
def test_a_drag_is_refused_rather_than_solved_with_order_one(drag):
    prob = ude.SecondOrderODEProblem(lambda du, u, p, t: -u - 0.1 * drag(du), [0.0], [1.0], (0.0, 1.0))
    assert refused(prob, ude.methods.VelocityVerlet()) == (
        "VelocityVerlet needs a separable problem: expected u'' that does not depend on u', got one that does. "
        "Use Tsit5() or another Runge-Kutta method."
    )


def test_a_position_that_moves_itself_is_refused():
    prob = ude.DynamicalODEProblem(lambda v, u, p, t: -u, lambda v, u, p, t: v + u, [0.0], [1.0], (0.0, 1.0))
    assert "expected u' that does not depend on u, got one that does" in refused(prob, ude.methods.CandyRoz4())


def test_an_adjoint_that_needs_a_larger_system_is_refused():
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    prob = ude.SecondOrderODEProblem(driven_pendulum, [0.3], [1.0], (0.0, 1.0), {**P, "k": k})
    sol = ude.solve(prob, ude.methods.VelocityVerlet(), dt=0.1, adaptive=False, sensealg=ude.BacksolveAdjoint())
    with pytest.raises(ude.errors.EngineRefused, match=r"Use sensealg=DiscreteAdjoint\(\), which every method has\."):
        sol.u[-1].sum().backward()


def test_errors_of_the_problems_name_what_is_wrong():
    def text(build) -> str:
        with pytest.raises(ude.errors.InputError) as caught:
            build()
        return str(caught.value)

    span = (0.0, 1.0)
    assert text(lambda: ude.SecondOrderODEProblem(spring, [0.0, 1.0], [1.0], span)) == (
        "du0 must have the shape of u0: expected shape (1,), got shape (2,)."
    )
    assert text(lambda: ude.SecondOrderODEProblem(spring, 0.0, [1.0], span)) == (
        "du0 must have a state axis: expected shape (*batch, state), got a scalar. Write du0=[value]."
    )
    assert text(lambda: ude.SecondOrderODEProblem(spring, [0.0], [1.0], span, names="x, y")) == (
        "names must be one name for each position: expected 1 names, got x, y."
    )
    assert text(lambda: ude.SecondOrderODEProblem(3, [0.0], [1.0], span)) == (
        "f must be callable as f(du, u, p, t): int. Pass a function."
    )
    assert text(lambda: ude.DynamicalODEProblem(spring, spring, [[0.0]], [1.0], span)) == (
        "v0 and u0 must have the same batch: expected v0 of shape (state,), got (1, 1)."
    )
    assert text(lambda: ude.DynamicalODEProblem(spring, spring, torch.zeros(1), [1.0], span)) == (
        "v0 and u0 must have the same dtype: expected torch.float64, got torch.float32."
    )
    prob = ude.SecondOrderODEProblem(lambda du, u, p, t: u[..., 0], [0.0], [1.0], span)
    assert text(lambda: ude.solve(prob)) == (
        "f(du, u, p, t) must return a tensor of the shape of u: expected (1,), got (). "
        "Stack the derivatives along the last axis: torch.stack([...], -1)."
    )
    prob = ude.remake(ude.SecondOrderODEProblem(spring, [0.0], [1.0], span), names=None, u0=[1.0])
    assert text(lambda: ude.solve(prob)) == (
        "the state of a partitioned problem must be [v, u]: expected 1 velocities and 1 positions along the last axis, "
        "got shape (1,). Join them: torch.cat([v, u], -1)."
    )


def test_plain_autograd_gives_the_gradient_of_the_discrete_adjoint():
    gradients = []
    for sensealg in (ude.DiscreteAdjoint(), ude.DiscreteAdjoint(checkpoints=3), ude.sensitivity.Autograd()):
        start = torch.tensor([1.0, 0.2], dtype=torch.float64, requires_grad=True)
        prob = ude.SecondOrderODEProblem(lambda du, u, p, t: -torch.sin(u), start[1:], start[:1], (0.0, 2.0))
        sol = ude.solve(prob, ude.methods.KahanLi6(), dt=0.1, adaptive=False, saveat=[0.33, 2.0], sensealg=sensealg)
        gradients.append(torch.autograd.grad((sol.u**2).sum(), start)[0])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-12, atol=1e-12)
