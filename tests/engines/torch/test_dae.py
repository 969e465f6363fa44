"""Systems with a mass matrix: measured orders, consistent starts, reference problems, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import ude
from benchmarks import reference_problems

ALL = [
    ude.methods.ImplicitEuler(),
    ude.methods.Trapezoid(),
    ude.methods.TRBDF2(),
    ude.methods.KenCarp3(),
    ude.KenCarp4(),
    ude.methods.KenCarp5(),
    ude.methods.Kvaerno3(),
    ude.methods.Kvaerno4(),
    ude.methods.Kvaerno5(),
    ude.methods.Rosenbrock23(),
    ude.methods.Rodas4(),
    ude.Rodas5P(),
    *(ude.FBDF(max_order=order) for order in (1, 2, 3)),
]


def by_name(value: Any) -> str:
    order = getattr(value, "max_order", "")
    return getattr(value, "name", str(value)) + str(order)


def order_of(alg: Any) -> int:
    if isinstance(alg, ude.FBDF):
        # fixed steps begin at order 1 and so reach no more than order 2
        return min(alg.max_order, 2)
    return alg.tableau.order


def number(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# y' = rate y (1 - y) as y' = rate (y - z) with z + z^3 = y^2 + y^6, so that z = y^2. Equations are mixed by ROWS, the
# state is TURN (y, z): neither an equation nor a variable is algebraic by its place.
ROWS = number([[1.0, 0.5], [-0.7, 2.0]])
TURN = number([[2.0, 0.3], [0.4, 1.0]])
BACK = torch.linalg.inv(TURN)
MASS = ROWS @ torch.diag(number([1.0, 0.0])) @ BACK


def logistic(u: Tensor, p: Any, t: Tensor) -> Tensor:
    y, z = (u @ BACK.T).unbind(-1)
    return torch.stack([p.rate * (y - z), z + z**3 - y**2 - y**6], -1) @ ROWS.T


def exact(t: Tensor, start: float = 0.2, rate: float = 1.5) -> Tensor:
    y = 1 / (1 + (1 / start - 1) * torch.exp(-rate * t))
    return torch.stack([y, y**2], -1)


def problem(end: float = 2.0, z: float = 0.04, **more: Any) -> ude.ODEProblem:
    f = ude.ODEFunction(logistic, mass_matrix=MASS, **more)
    return ude.ODEProblem(f, TURN @ number([0.2, z]), (0.0, end), dict(rate=1.5))


@pytest.mark.parametrize("alg", ALL, ids=by_name)
def test_both_kinds_of_variables_converge_with_the_order_of_the_method(alg):
    if hasattr(alg, "newton_maxiters"):
        # with steps held fixed a stage may not be given up for a smaller one
        alg = replace(alg, newton_maxiters=60)
    order = order_of(alg)
    errors = []
    for count in (16, 32):
        options = {"dt": 2.0 / count, "adaptive": False, "abstol": 1e-11, "reltol": 1e-11}
        sol = ude.solve(problem(), alg, **options)
        # over all steps: at a single time the leading term of the error may vanish
        errors.append((sol.u @ BACK.T - exact(sol.t)).abs().amax(0))
    measured = torch.log2(errors[0] / errors[1])
    assert bool((measured > order - 0.35).all()), measured


@pytest.mark.parametrize(
    "alg", [ude.KenCarp4(), ude.methods.Kvaerno5(), ude.methods.Rodas4(), ude.Rodas5P()], ids=by_name
)
def test_dense_output_of_a_dae_is_at_least_of_order_three(alg):
    times = torch.linspace(0.05, 1.95, 77, dtype=torch.float64)
    errors = []
    for count in (10, 40):
        options = {"dt": 2.0 / count, "adaptive": False, "abstol": 1e-10, "reltol": 1e-10}
        if hasattr(alg, "newton_maxiters"):
            alg = replace(alg, newton_maxiters=60)
        sol = ude.solve(problem(), alg, **options)
        errors.append((sol(times) @ BACK.T - exact(times)).abs().amax(0))
    assert bool((torch.log2(errors[0] / errors[1]) / 2 > 2.8).all())


@pytest.mark.parametrize(
    "alg", [ude.KenCarp4(), ude.Rodas5P(), ude.methods.TRBDF2(), ude.methods.Kvaerno5(), ude.FBDF()], ids=by_name
)
def test_error_control_reaches_the_algebraic_variable(alg):
    errors = []
    for tolerance in (1e-4, 1e-7):
        sol = ude.solve(problem(), alg, saveat=[2.0], abstol=tolerance, reltol=tolerance)
        errors.append(float((sol.u[-1] @ BACK.T - exact(number(2.0)))[1].abs()))
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("alg", ALL, ids=by_name)
def test_a_regular_mass_matrix_gives_the_solution_of_the_explicit_form(alg):
    mass = number([[2.0, 0.5], [0.3, 1.0]])
    rates = number([[-1.0, 0.4], [0.2, -3.0]])
    prob = ude.ODEProblem(ude.ODEFunction(lambda u, p, t: u @ rates.T, mass), [1.0, 2.0], (0.0, 1.0))
    tolerance = 1e-4 if order_of(alg) < 3 else 1e-7
    sol = ude.solve(prob, alg, saveat=[1.0], abstol=tolerance, reltol=tolerance)
    right = torch.linalg.matrix_exp(torch.linalg.solve(mass, rates)) @ prob.u0
    torch.testing.assert_close(sol.u[0], right, rtol=0.0, atol=100 * tolerance)


def test_explicit_methods_divide_a_regular_mass_matrix_out():
    mass = number([[2.0, 0.5], [0.3, 1.0]])
    f = ude.ODEFunction(lambda u, p, t: -p.k * u, mass)
    k = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    sol = ude.solve(ude.ODEProblem(f, [1.0, 2.0], (0.0, 1.0), dict(k=k)), saveat=[1.0], abstol=1e-10, reltol=1e-10)
    right = torch.linalg.matrix_exp(-k * torch.linalg.inv(mass)) @ number([1.0, 2.0])
    torch.testing.assert_close(sol.u[0], right, rtol=1e-8, atol=1e-8)
    (ours,), (theirs,) = (torch.autograd.grad(x.sum(), k) for x in (sol.u, right))
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.Vern7(), ude.TorchDiffEq("dopri5")], ids=by_name)
def test_explicit_methods_refuse_a_dae_and_name_methods_that_solve_it(alg):
    with pytest.raises(
        ude.errors.InputError, match=r"cannot solve a system whose mass matrix is singular.*rank 1 of 2.*Rodas5P"
    ):
        ude.solve(problem(), alg, saveat=[2.0])


# errors of the many small steps of a multistep method add up to more
@pytest.mark.parametrize(
    ("alg", "multiple"), [(ude.Rodas5P(), 1), (ude.methods.KenCarp5(), 1), (ude.FBDF(), 10)], ids=by_name
)
@pytest.mark.parametrize(("name", "loose", "tight"), [("chemakzo", 1e-6, 1e-8), ("rober_dae", 1e-4, 1e-6)])
def test_reference_daes_are_solved(alg, multiple, name, loose, tight):
    reference = reference_problems.get(name)
    end = [float(reference.problem.tspan[1])]
    for reltol, bar in ((1e-6, loose), (1e-9, tight)):
        sol = ude.solve(reference.problem, alg, reltol=reltol, abstol=1e-6 * reltol, saveat=end)
        assert float(reference.error(sol.u[-1])) < multiple * bar
        assert torch.isfinite(sol.u).all()


def test_robertson_as_a_dae_meets_the_bar_of_a_hundred_tolerances():
    reference = reference_problems.get("rober_dae")
    sol = ude.solve(reference.problem, ude.Rodas5P(), reltol=1e-9, abstol=1e-15, saveat=[1e11])
    assert float(reference.error(sol.u[-1])) < 1e-7


def test_a_start_off_the_constraint_is_brought_on_it_and_keeps_what_the_mass_matrix_sees():
    prob = problem(z=0.9)
    sol = ude.solve(prob, ude.Rodas5P(), saveat=[0.0, 2.0], abstol=1e-10, reltol=1e-10)
    start = sol.u[0] @ BACK.T
    torch.testing.assert_close(start, number([0.2, 0.04]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(MASS @ sol.u[0], MASS @ prob.u0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sol.u[1] @ BACK.T, exact(number(2.0)), rtol=1e-8, atol=1e-8)


def test_newtons_iteration_for_the_start_shortens_steps_that_lead_away():
    # full steps for atan(v) = w diverge from 3
    f = ude.ODEFunction(
        lambda u, p, t: torch.stack([-u[..., 0], torch.atan(u[..., 1]) - u[..., 0]], -1), [[1.0, 0.0], [0.0, 0.0]]
    )
    sol = ude.solve(ude.ODEProblem(f, [0.1, 3.0], (0.0, 1.0)), ude.KenCarp4(), saveat=[0.0, 1.0])
    torch.testing.assert_close(sol.u[0, 1], torch.tan(number(0.1)), rtol=1e-12, atol=0.0)


def test_check_init_accepts_a_consistent_start_and_fails_another():
    options = {"saveat": [1.0], "initializealg": ude.methods.CheckInit()}
    assert ude.solve(problem(z=0.04), ude.Rodas5P(), **options).success
    failed = ude.solve(problem(z=0.05), ude.Rodas5P(), **options)
    assert failed.retcode == ude.ReturnCode.InitialFailure
    with pytest.raises(ude.SolveFailed, match="InitialFailure at t=0: no consistent initial state.*index is above 1"):
        _ = failed.u


def test_no_init_starts_where_it_is_told():
    sol = ude.solve(problem(z=0.05), ude.KenCarp4(), saveat=[0.0, 1.0], initializealg=ude.methods.NoInit())
    torch.testing.assert_close(sol.u[0], problem(z=0.05).u0)


def test_another_initialization_is_refused():
    with pytest.raises(
        ude.errors.InputError,
        match="initializealg must be an initialization algorithm: expected one of Brown",
    ):
        ude.solve(problem(), ude.Rodas5P(), initializealg="brown")  # type: ignore[arg-type]
    with pytest.raises(ude.errors.InputError, match="abstol of the initialization must be a positive number"):
        ude.methods.BrownFullBasicInit(abstol=0.0)
    with pytest.raises(ude.errors.InputError, match="maxiters allows no iteration"):
        ude.methods.BrownFullBasicInit(maxiters=0)


def circle(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """z = sqrt(1 - x^2) with x' = -k x: no z for |x| > 1."""
    x, z = u.unbind(-1)
    return torch.stack([-p.k * x, x**2 + z**2 - 1], -1)


@pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.Rodas5P(), ude.FBDF()], ids=by_name)
@pytest.mark.parametrize(
    "sensealg", [ude.DiscreteAdjoint(), ude.InterpolatingAdjoint(), ude.ForwardSensitivity()], ids=by_name
)
def test_a_trajectory_without_a_consistent_start_fails_alone(sensealg, alg):
    u0 = torch.tensor([[0.5, 0.3], [2.0, 0.3], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    k = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    f = ude.ODEFunction(circle, [[1.0, 0.0], [0.0, 0.0]])
    prob = ude.ODEProblem(f, u0, (0.0, 1.0), dict(k=k))
    sol = ude.solve(prob, alg, saveat=[1.0], sensealg=sensealg, abstol=1e-9, reltol=1e-9)
    # x = 2 has no z, and at (0, 0) the constraint says nothing of z
    assert [str(code) for code in sol.retcode] == ["Success", "InitialFailure", "InitialFailure"]
    assert torch.isnan(sol.partial[1:]).all()
    z = sol.partial[0, 0, 1]
    right = torch.sqrt(1 - (u0[0, 0] * torch.exp(-k)) ** 2)
    torch.testing.assert_close(z, right, rtol=1e-7, atol=0.0)
    for ours, theirs in zip(torch.autograd.grad(z, (u0, k)), torch.autograd.grad(right, (u0, k)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def pendulum(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y, vx, vy, tension = u.unbind(-1)
    return torch.stack([vx, vy, -tension * x, -tension * y - p.g, _index(p, x, y, vx, vy, tension)], -1)


def _index(p: Any, x: Tensor, y: Tensor, vx: Tensor, vy: Tensor, tension: Tensor) -> Tensor:
    if p.index == 3:
        return x**2 + y**2 - 1
    # the constraint differentiated twice
    return vx**2 + vy**2 - tension * (x**2 + y**2) - p.g * y


def test_a_pendulum_of_index_one_keeps_its_length_and_energy():
    f = ude.ODEFunction(pendulum, torch.diag(torch.tensor([1.0, 1, 1, 1, 0])))
    prob = ude.ODEProblem(f, [1.0, 0.0, 0.0, 0.0, 7.0], (0.0, 3.0), dict(g=9.81, index=1))
    sol = ude.solve(prob, ude.Rodas5P(), saveat=0.1, abstol=1e-10, reltol=1e-10)
    x, y, vx, vy, tension = sol.u.unbind(-1)
    torch.testing.assert_close(tension[0], number(0.0), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(x**2 + y**2, torch.ones_like(x), rtol=0.0, atol=1e-7)
    torch.testing.assert_close((vx**2 + vy**2) / 2 + 9.81 * y, torch.zeros_like(x), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(tension, -3 * 9.81 * y, rtol=0.0, atol=1e-5)


def test_an_index_of_three_is_told():
    f = ude.ODEFunction(pendulum, torch.diag(torch.tensor([1.0, 1, 1, 1, 0])))
    prob = ude.ODEProblem(f, [1.0, 0.0, 0.0, 0.0, 0.0], (0.0, 1.0), dict(g=9.81, index=3))
    sol = ude.solve(prob, ude.Rodas5P())
    assert sol.retcode == ude.ReturnCode.InitialFailure
    with pytest.raises(ude.SolveFailed, match="differentiate the constraint in time"):
        _ = sol.u


@pytest.mark.parametrize(
    ("kind", "alg"),
    [("jac", ude.KenCarp4), ("jac", ude.Rodas5P), ("jac_prototype", ude.KenCarp4), ("GMRES", ude.KenCarp4)]
    + [pytest.param(kind, ude.Rodas5P, marks=pytest.mark.slow) for kind in ("jac_prototype", "GMRES")]
    # which has no linear solver to choose: it keeps the factors of its matrix
    + [("jac", ude.FBDF), ("jac_prototype", ude.FBDF)],
)
def test_a_dae_is_the_same_however_its_jacobian_is_had(kind, alg):
    def jac(u: Tensor, p: Any, t: Tensor) -> Tensor:
        y, z = (u @ BACK.T).unbind(-1)
        rows = [[p.rate + 0 * y, -p.rate + 0 * y], [-2 * y - 6 * y**5, 1 + 3 * z**2]]
        inner = torch.stack([torch.stack(row, -1) for row in rows], -2)
        return ROWS @ inner @ BACK

    options = {"saveat": [0.3, 2.0], "abstol": 1e-7, "reltol": 1e-7}
    more: dict[str, Any] = {"jac": jac} if kind == "jac" else {}
    more = {"jac_prototype": torch.ones(2, 2)} if kind == "jac_prototype" else more
    other = alg(linsolve=ude.methods.GMRES(reltol=1e-12)) if kind == "GMRES" else alg()
    found = []
    for extra, method in ((more, other), ({}, alg())):
        prob = problem(z=0.1, **extra)
        u0, rate = prob.u0.requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        sol = ude.solve(ude.remake(prob, u0=u0, p=dict(rate=rate)), method, **options)
        found.append((sol.u.detach(), *torch.autograd.grad((sol.u**2).sum(), (u0, rate))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)


def test_trajectories_of_a_dae_do_not_depend_on_their_neighbors():
    prob = problem()
    u0 = torch.stack([TURN @ number([y, 0.3]) for y in (0.05, 0.3, 0.9)])
    options = {"saveat": [1.0], "abstol": 1e-8, "reltol": 1e-8}
    together = ude.solve(ude.remake(prob, u0=u0), ude.KenCarp4(), **options)
    for i in range(3):
        alone = ude.solve(ude.remake(prob, u0=u0[i]), ude.KenCarp4(), **options)
        torch.testing.assert_close(together.u[i], alone.u, rtol=1e-12, atol=1e-12)


def test_second_derivative_of_a_dae_by_replayed_steps_passes_through_its_start():
    rate = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    for alg in (ude.KenCarp4(), ude.Rodas5P(), ude.FBDF()):
        u0 = TURN @ torch.stack([y, number(0.1)])
        prob = ude.ODEProblem(ude.ODEFunction(logistic, MASS), u0, (0.0, 1.0), dict(rate=rate))
        sol = ude.solve(prob, alg, saveat=[0.0, 1.0], sensealg=ude.sensitivity.Autograd(), abstol=1e-9, reltol=1e-9)
        end = 1 / (1 + (1 / y - 1) * torch.exp(-rate))
        rows = []
        for value in ((sol.u @ BACK.T)[:, 1].sum(), y**2 + end**2):
            first = torch.autograd.grad(value, (y, rate), create_graph=True)
            rows.append([torch.autograd.grad(one, (y, rate), retain_graph=True) for one in first])
        for ours, right in zip(*rows, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


def test_check_gradient_agrees_for_a_dae():
    options = ude.solving.SolveOptions(saveat=[0.5, 1.0], abstol=1e-9, reltol=1e-9)
    check = ude.check_gradient(problem(z=0.1), lambda sol: (sol.u**2).sum(), ude.Rodas5P(), options)
    assert check.agrees(1e-5), str(check)
