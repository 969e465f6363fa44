"""Split problems and additive methods: order, a stiff partial differential equation, gradients, error texts."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import ude

METHODS = [ude.methods.KenCarp3(), ude.KenCarp4(), ude.methods.KenCarp5()]
NEWTON = {"newton_tolerance": 1e-6, "newton_maxiters": 60}
TIGHT = [ude.methods.KenCarp3(**NEWTON), ude.KenCarp4(**NEWTON), ude.methods.KenCarp5(**NEWTON)]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


# --- u = cos t with both parts nonlinear and dependent on time ------------------------------------------------------


def pulled(u: Tensor, p: Any, t: Tensor) -> Tensor:
    c = torch.cos(t).unsqueeze(-1)
    return -p.k * (u - c) - p.k * (u - c) ** 3


def pushed(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return -torch.sin(t).unsqueeze(-1) + p.a * (u**2 - torch.cos(t).unsqueeze(-1) ** 2)


def cosine() -> ude.ODEProblem:
    return ude.SplitODEProblem(pulled, pushed, [1.0], (0.0, 2.0), dict(k=2.0, a=0.7))


def exchange(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Stiff: both states relax to each other."""
    x, y = u.unbind(-1)
    flow = p.rate * (y - x * x)
    return torch.stack([flow, -flow], -1)


def drive(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([p.gain * torch.sin(3 * t) * y, torch.cos(2 * t) * x - p.gain * x * y], -1)


def exchange_problem(**changes: Any) -> ude.ODEProblem:
    prob = ude.SplitODEProblem(exchange, drive, [1.0, 0.5], (0.0, 2.0), dict(rate=3.0, gain=0.8), names="x, y")
    return ude.remake(prob, **changes) if changes else prob


STEPS = {3: (40, 80, 160), 4: (40, 80, 160), 5: (30, 60, 120)}


@cache
def exact_end() -> Tensor:
    return ude.solve(exchange_problem(), ude.methods.Vern9(), abstol=1e-14, reltol=1e-14, saveat=[2.0]).u[-1]


@cache
def solved_whole(alg: Any) -> Tensor:
    """By a method that does not split."""
    return ude.solve(exchange_problem(), alg, saveat=0.13, abstol=1e-10, reltol=1e-10).u


@pytest.mark.parametrize("alg", TIGHT, ids=name)
def test_measured_order_where_both_parts_are_nonlinear_and_depend_on_time(alg):
    exact = exact_end()
    errors = []
    for steps in STEPS[alg.tableau.order]:
        sol = ude.solve(exchange_problem(), alg, dt=2.0 / steps, adaptive=False, abstol=1e-12, reltol=1e-12)
        errors.append(float((sol.u[-1] - exact).abs().max()))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(alg.tableau.order, abs=0.2), errors


@pytest.mark.parametrize("alg", TIGHT, ids=name)
def test_dense_output_has_its_order_between_the_steps(alg):
    times = torch.linspace(0.0, 2.0, 333, dtype=torch.float64)
    errors = []
    for steps in (40, 80):
        sol = ude.solve(cosine(), alg, dt=2.0 / steps, adaptive=False, abstol=1e-12, reltol=1e-12)
        errors.append(float((sol(times)[:, 0] - torch.cos(times)).abs().max()))
    # over a fixed span the error of an interpolant of order q on top of steps of order p is min(p, q + 1)
    expected = min(alg.tableau.order, alg.tableau.interpolant_order + 1)
    assert math.log2(errors[0] / errors[1]) > expected - 0.35, errors


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_saves_agree_with_the_dense_output_and_with_methods_that_do_not_split(alg):
    sol = ude.solve(exchange_problem(), alg, saveat=0.13, abstol=1e-9, reltol=1e-9)
    torch.testing.assert_close(sol(sol.t), sol.u, rtol=1e-7, atol=1e-8)
    for other in (ude.Tsit5(), ude.Rodas5P(), ude.methods.Kvaerno5(), ude.FBDF()):
        torch.testing.assert_close(sol.u, solved_whole(other), rtol=1e-6, atol=1e-7)


# --- advection, diffusion and reaction on a ring --------------------------------------------------------------------

CELLS = 48
DIFFUSION, SPEED, GROWTH = 0.5, 0.3, 2.0


class Counted:
    """A part that counts its calls, and those that somebody wants to differentiate."""

    def __init__(self, f: Any) -> None:
        self.f, self.calls, self.tracked = f, 0, 0

    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        self.calls += 1
        self.tracked += bool(torch.is_grad_enabled() and u.requires_grad)
        return self.f(u, p, t)


def diffuse(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return DIFFUSION * CELLS**2 * (u.roll(1, -1) - 2 * u + u.roll(-1, -1))


def advect_and_react(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return -SPEED * CELLS / 2 * (u.roll(-1, -1) - u.roll(1, -1)) + GROWTH * u * (1 - u)


def bump() -> np.ndarray:
    x = np.arange(CELLS) / CELLS
    return 0.2 + 0.6 * np.exp(-40 * (x - 0.4) ** 2)


@cache
def ring_by_scipy() -> np.ndarray:
    def both(t: float, u: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(np.array(u))
        return (diffuse(state, None, state) + advect_and_react(state, None, state)).numpy()

    return solve_ivp(both, (0.0, 1.0), bump(), method="Radau", rtol=1e-9, atol=1e-9).y[:, -1]


@cache
def steps_of_an_explicit_method() -> int:
    prob = ude.SplitODEProblem(diffuse, advect_and_react, bump(), (0.0, 1.0))
    return int(ude.solve(prob, ude.Tsit5(), saveat=[1.0], abstol=1e-7, reltol=1e-7).stats.accepted_steps)


@pytest.mark.parametrize("alg", METHODS, ids=name)
def test_the_explicit_part_of_a_stiff_pde_stays_out_of_newtons_iteration(alg):
    f1, f2 = Counted(diffuse), Counted(advect_and_react)
    prob = ude.SplitODEProblem(f1, f2, bump(), (0.0, 1.0))
    sol = ude.solve(prob, alg, saveat=[1.0], abstol=1e-7, reltol=1e-7)
    np.testing.assert_allclose(sol.u[-1].numpy(), ring_by_scipy(), atol=2e-6)
    tried = int(sol.stats.accepted_steps) + int(sol.stats.rejected_steps)
    # every stage once, besides the look at f before the solve, the check of f and the probe for the first step
    assert f2.calls == alg.tableau.stages * tried + 3
    assert f2.tracked == 0
    assert f1.tracked == sol.stats.njacs > 0
    assert sol.stats.nf == f1.calls - 2
    # f1 is linear, so its Jacobian serves the whole solve
    assert sol.stats.njacs == 1
    assert tried < 0.15 * steps_of_an_explicit_method()


def test_a_trajectory_takes_the_same_steps_alone_and_in_a_batch():
    u0 = torch.tensor([[1.0, 0.5], [0.2, 1.5], [2.0, 0.1]], dtype=torch.float64)
    rate = torch.tensor([3.0, 3000.0, 40.0], dtype=torch.float64)
    ends = torch.tensor([2.0, 1.0, 1.5], dtype=torch.float64)
    prob = exchange_problem(u0=u0, tspan=(0.0, ends), p=dict(rate=rate))
    for alg in METHODS[1:]:
        together = ude.solve(prob, alg, abstol=1e-5, reltol=1e-5)
        for i in range(3):
            alone = ude.solve(
                exchange_problem(u0=u0[i], tspan=(0.0, float(ends[i])), p=dict(rate=rate[i])),
                alg, abstol=1e-5, reltol=1e-5,
            )  # fmt: skip
            steps = int(alone.stats.accepted_steps)
            assert int(together.stats.accepted_steps[i]) == steps
            torch.testing.assert_close(together.t[i, : steps + 1], alone.t, rtol=0, atol=0)
            torch.testing.assert_close(together.u[i, : steps + 1], alone.u, rtol=1e-10, atol=1e-10)


# --- gradients -------------------------------------------------------------------------------------------------------


def read(theta: Tensor, alg: Any, sensealg: Any, **options: Any) -> Tensor:
    """A loss of two trajectories with spans and parameters of their own, read inside steps and at their ends."""
    u0 = torch.stack([theta[2:4], theta[2:4] * 1.3])
    span = (torch.tensor([0.0, 0.2], dtype=torch.float64), torch.tensor([1.0, 1.6], dtype=torch.float64))
    saveat = torch.tensor([[0.13, 0.5, 1.0], [0.2, 0.7, 1.6]], dtype=torch.float64)
    rate = torch.stack([theta[0], 4 * theta[0]])
    prob = exchange_problem(u0=u0, tspan=span, p=dict(rate=rate, gain=theta[1]))
    sol = ude.solve(prob, alg, saveat=saveat, sensealg=sensealg, **options)
    return (sol.u**2).sum() + sol(0.777).prod()


THETA = [4.0, 0.8, 1.0, 0.5]


@pytest.mark.parametrize(
    "sensealg", [ude.DiscreteAdjoint(), ude.DiscreteAdjoint(checkpoints=3), ude.sensitivity.Autograd()], ids=name
)
@pytest.mark.parametrize("alg", TIGHT, ids=name)
def test_gradient_is_the_exact_derivative_of_a_rough_solve(alg, sensealg):
    """With fixed steps the solve is smooth in theta: differences of it converge to its own derivative."""
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    fixed = dict(dt=0.1, adaptive=False, abstol=1e-9, reltol=1e-9)
    (gradient,) = torch.autograd.grad(read(theta, alg, sensealg, **fixed), theta)
    direction = torch.tensor([0.7, -0.4, 0.5, 0.9], dtype=torch.float64)
    step = 1e-4
    with torch.no_grad():
        at = {k: float(read(theta + k * step * direction, alg, sensealg, **fixed)) for k in (-2, -1, 1, 2)}
    numeric = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    assert float(gradient @ direction) == pytest.approx(numeric, rel=1e-8)


def test_hessian_vector_products_agree_with_differences_of_the_gradient():
    theta = torch.tensor(THETA, dtype=torch.float64, requires_grad=True)
    vector = torch.tensor([0.7, -0.4, 0.5, 0.9], dtype=torch.float64)
    fixed = dict(dt=0.1, adaptive=False, abstol=1e-9, reltol=1e-9)
    alg = ude.KenCarp4(**NEWTON)
    (gradient,) = torch.autograd.grad(read(theta, alg, ude.sensitivity.Autograd(), **fixed), theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ vector, theta)

    def first(shift: float) -> Tensor:
        at = (theta.detach() + shift * vector).requires_grad_()
        return torch.autograd.grad(read(at, alg, ude.DiscreteAdjoint(), **fixed), at)[0]

    numeric = (first(1e-5) - first(-1e-5)) / 2e-5
    torch.testing.assert_close(product, numeric, rtol=1e-6, atol=1e-6 * float(numeric.abs().max()))


# slow rates, since BacksolveAdjoint has to run back through them
SLOW_THETA = [0.3, *THETA[1:]]


@cache
def in_one_piece() -> tuple[float, Tensor]:
    """The loss and its gradient by Vern9's discrete adjoint of f1 + f2, which knows nothing of the split."""
    theta = torch.tensor(SLOW_THETA, dtype=torch.float64, requires_grad=True)
    exact = read(theta, ude.methods.Vern9(), ude.DiscreteAdjoint(), abstol=1e-13, reltol=1e-13)
    return float(exact.detach()), torch.autograd.grad(exact, theta)[0]


@pytest.mark.parametrize(
    "sensealg",
    [
        ude.DiscreteAdjoint(), ude.DiscreteAdjoint(checkpoints="logarithmic"), ude.BacksolveAdjoint(),
        ude.InterpolatingAdjoint(), ude.QuadratureAdjoint(), ude.GaussAdjoint(), ude.ForwardSensitivity(),
        ude.sensitivity.Autograd(),
    ],
    ids=name,
)  # fmt: skip
def test_every_sensitivity_agrees_with_that_of_the_problem_in_one_piece(sensealg):
    theta = torch.tensor(SLOW_THETA, dtype=torch.float64, requires_grad=True)
    ours = read(theta, ude.methods.KenCarp5(), sensealg, abstol=1e-9, reltol=1e-9)
    exact, right = in_one_piece()
    assert float(ours.detach()) == pytest.approx(exact, rel=1e-7)
    (left,) = torch.autograd.grad(ours, theta)
    torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6 * float(right.abs().max()))


def test_gradients_reach_the_parameters_of_parts_that_are_modules():
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(50.0, dtype=torch.float64))

        def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
            return -self.rate * u

    class Source(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
            return self.level * torch.ones_like(u)

    decay, source = Decay(), Source()
    sol = ude.solve(
        ude.SplitODEProblem(decay, source, [1.0], (0.0, 0.1)), ude.KenCarp4(), saveat=[0.1], abstol=1e-11, reltol=1e-11
    )
    rate, level, u0 = decay.rate, source.level, 1.0
    exact = level / rate + (u0 - level / rate) * torch.exp(-rate * 0.1)
    expected = torch.autograd.grad(exact, (rate, level))
    found = torch.autograd.grad(sol.u[-1, 0], (rate, level))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=0)


def test_events_and_their_gradients_work_with_split_problems():
    """A ball that bounces, with drag as the stiff part: the reference solves it in one piece."""

    def drag(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(u[..., 0]), -p.drag * u[..., 1]], -1)

    def gravity(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.stack([u[..., 1], -9.81 * torch.ones_like(u[..., 1])], -1)

    def bounce(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(u[..., 0]), -0.8 * u[..., 1]], -1)

    ground = ude.ContinuousCallback(lambda u, p, t: u[..., 0], bounce, direction=-1)
    results = []
    for alg in (ude.KenCarp4(), ude.methods.Vern9()):
        k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        prob = ude.SplitODEProblem(drag, gravity, [1.0, 0.0], (0.0, 0.8), dict(drag=k))
        sol = ude.solve(prob, alg, saveat=[0.2, 0.7], callback=ground, abstol=1e-10, reltol=1e-10)
        (gradient,) = torch.autograd.grad(sol.u[:, 0].sum(), k)
        results.append((sol.u.detach(), gradient))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=0)


# --- failures --------------------------------------------------------------------------------------------------------


def test_parts_that_cannot_be_used_are_refused_by_name():
    with pytest.raises(ude.errors.InputError, match=r"f2 must be callable as f2\(u, p, t\): int\. Pass a function\."):
        ude.SplitODEProblem(exchange, 3, [1.0, 0.5], (0.0, 1.0))  # type: ignore[arg-type]
    prob = ude.SplitODEProblem(lambda u, p, t: -u, lambda u, p, t: u[..., :1], [1.0, 0.5], (0.0, 1.0))
    for alg in (ude.KenCarp4(), ude.Tsit5()):
        with pytest.raises(
            ude.errors.InputError,
            match=r"f2\(u, p, t\) must return a tensor of the shape of u: expected \(2,\), got \(1,\)\. Stack the "
            r"derivatives",
        ):
            ude.solve(prob, alg)
    with pytest.raises(
        ude.errors.InputError, match=r"f1\(u, p, t\) must return a tensor of the shape of u: .*got float"
    ):
        ude.solve(ude.SplitODEProblem(lambda u, p, t: 1.0, drive, [1.0, 0.5], (0.0, 1.0)))


def test_a_stiff_part_without_a_solution_ends_in_convergence_failure():
    def jump(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.where(u > 0, -1.0, 1.0).to(u.dtype) + 0 * u

    prob = ude.SplitODEProblem(jump, lambda u, p, t: 0 * u, [1.0], (0.0, 3.0))
    assert ude.solve(prob, ude.KenCarp4(), maxiters=2000).retcode == ude.ReturnCode.ConvergenceFailure
