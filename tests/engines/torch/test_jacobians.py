"""Jacobians that the user gives, that few products of a known sparsity give, and those that are never formed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ude

CELLS = 50
TOLERANCES = {"abstol": 1e-6, "reltol": 1e-6}


def brusselator(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Reaction and diffusion on a line of cells with fixed ends; the state is (x_1, y_1, x_2, y_2, ...).

    Source: E. Hairer, G. Wanner, Solving Ordinary Differential Equations II, IV.1 (BRUSS).
    """
    x, y = u.unflatten(-1, (-1, 2)).unbind(-1)
    spread = p.alpha * (x.shape[-1] + 1) ** 2
    one = torch.ones_like(x[..., :1])
    xs, ys = torch.cat([one, x, one], -1), torch.cat([3 * one, y, 3 * one], -1)
    dx = 1 + x**2 * y - 4 * x + spread * (xs[..., 2:] - 2 * x + xs[..., :-2])
    dy = 3 * x - x**2 * y + spread * (ys[..., 2:] - 2 * y + ys[..., :-2])
    return torch.stack([dx, dy], -1).flatten(-2)


def brusselator_problem(f: Any = brusselator, cells: int = CELLS, end: float = 0.5, batch: int = 1) -> ude.ODEProblem:
    place = torch.arange(1, cells + 1, dtype=torch.float64) / (cells + 1)
    u0 = torch.stack([1 + torch.sin(2 * torch.pi * place), torch.full_like(place, 3.0)], -1).flatten()
    scale = torch.linspace(1.0, 1.2, batch, dtype=torch.float64).unsqueeze(-1)
    return ude.ODEProblem(f, u0 if batch == 1 else scale * u0, (0.0, end), dict(alpha=0.02))


def pattern(cells: int = CELLS) -> Tensor:
    """Each component feels its own cell's other one, and its like in the neighboring cells."""
    near = torch.diag(torch.ones(cells)) + torch.diag(torch.ones(cells - 1), 1) + torch.diag(torch.ones(cells - 1), -1)
    return torch.kron(near, torch.eye(2)) + torch.kron(torch.eye(cells), torch.ones(2, 2))


def dense_jacobian(u: Tensor, p: Any, t: Tensor) -> Tensor:
    batch, count = u.shape[:-1], u.shape[-1]
    flat = u.reshape(-1, count)
    each = torch.func.vmap(torch.func.jacrev(lambda one: brusselator(one, p, t)))(flat)
    return each.view(*batch, count, count)


METHODS = [ude.KenCarp4, ude.methods.TRBDF2, ude.Rodas5P]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("kind", ["jac", "jac_prototype", "GMRES"])
def test_brusselator_is_the_same_however_its_jacobian_is_had(kind, method):
    plain = ude.solve(brusselator_problem(), method(), saveat=[0.5], **TOLERANCES)
    f: Any = brusselator
    alg = method()
    if kind == "jac":
        f = ude.ODEFunction(f, jac=dense_jacobian)
    elif kind == "jac_prototype":
        f = ude.ODEFunction(f, jac_prototype=pattern().to_sparse())
    else:
        alg = method(linsolve=ude.methods.GMRES(reltol=1e-10))
    other = ude.solve(brusselator_problem(f), alg, saveat=[0.5], **TOLERANCES)
    assert int(other.stats.accepted_steps) == int(plain.stats.accepted_steps)
    torch.testing.assert_close(other.u, plain.u, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_colored_jacobian_costs_as_many_products_as_it_has_colors(method):
    plain = ude.solve(brusselator_problem(), method(), **TOLERANCES)
    f = ude.ODEFunction(brusselator, jac_prototype=pattern())
    colored = ude.solve(brusselator_problem(f), method(), **TOLERANCES)
    assert f.coloring is not None
    assert f.coloring.count <= 6
    assert plain.stats.nproducts == 2 * CELLS * plain.stats.njacs
    in_time = 1 if method is ude.Rodas5P else 0
    assert colored.stats.nproducts == (f.coloring.count + in_time) * colored.stats.njacs
    assert colored.stats.njacs == plain.stats.njacs


class _Counted(torch.autograd.Function):
    """``u * w`` whose backward counts, and whose own derivative counts too."""

    calls = 0

    @staticmethod
    def forward(ctx: Any, u: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(u, w)
        return u * w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        _Counted.calls += 1
        return grad * ctx.saved_tensors[1], None


@pytest.mark.parametrize("wide", ["rows", "columns"])
def test_an_arrow_is_found_by_the_kind_of_product_that_needs_two(wide):
    size = 40
    matrix = torch.eye(size, dtype=torch.float64) * -2.0
    if wide == "rows":
        matrix[0] = 0.01
    else:
        matrix[:, 0] = 0.01
    matrix[0, 0] = -2.0
    f = ude.ODEFunction(lambda u, p, t: u @ matrix.T, jac_prototype=matrix)
    assert f.coloring is not None
    assert f.coloring.count == 2
    assert f.coloring.by == wide
    prob = ude.ODEProblem(f, torch.linspace(1.0, 2.0, size).double(), (0.0, 1.0))
    sol = ude.solve(prob, ude.KenCarp4(), saveat=[1.0], abstol=1e-9, reltol=1e-9)
    exact = torch.linalg.matrix_exp(matrix) @ prob.u0
    torch.testing.assert_close(sol.u[0], exact, rtol=1e-7, atol=1e-7)
    assert sol.stats.nproducts == 2 * sol.stats.njacs


def test_products_are_really_as_many_as_told():
    weights = torch.linspace(-1.0, -2.0, 30, dtype=torch.float64)
    f = ude.ODEFunction(lambda u, p, t: _Counted.apply(u, weights), jac_prototype=torch.eye(30))
    prob = ude.ODEProblem(f, torch.ones(30, dtype=torch.float64), (0.0, 1.0))
    _Counted.calls = 0
    sol = ude.solve(prob, ude.KenCarp4())
    # one group of rows, one product each; two more by the check of the pattern at the start, which pushes and pulls
    assert sol.stats.nproducts == sol.stats.njacs
    assert _Counted.calls - sol.stats.nproducts <= 3


def test_gmres_needs_no_jacobian_and_few_products_where_the_system_is_mild():
    sol = ude.solve(brusselator_problem(end=0.05), ude.KenCarp4(linsolve=ude.methods.GMRES(reltol=1e-4)), **TOLERANCES)
    solves = sol.stats.nf
    assert sol.stats.nproducts < 40 * solves


def test_trajectories_under_gmres_do_not_depend_on_their_neighbors():
    options = {"saveat": [0.1], **TOLERANCES}
    alg = ude.KenCarp4(linsolve=ude.methods.GMRES())
    together = ude.solve(brusselator_problem(cells=20, end=0.1, batch=3), alg, **options)
    for i in range(3):
        prob = brusselator_problem(cells=20, end=0.1, batch=3)
        alone = ude.solve(ude.remake(prob, u0=prob.u0[i]), alg, **options)
        assert int(together.stats.accepted_steps[i]) == int(alone.stats.accepted_steps)
        torch.testing.assert_close(together.u[i], alone.u, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
@pytest.mark.parametrize("kind", ["jac", "jac_prototype", "GMRES"])
@pytest.mark.parametrize(
    "sensealg", [ude.DiscreteAdjoint(), ude.sensitivity.Autograd()], ids=lambda sensealg: sensealg.name
)
def test_gradient_is_the_same_however_the_jacobian_is_had(kind, method, sensealg):
    cells = 5
    f: Any = brusselator
    alg = method()
    if kind == "jac":
        f = ude.ODEFunction(f, jac=dense_jacobian)
    elif kind == "jac_prototype":
        f = ude.ODEFunction(f, jac_prototype=pattern(cells))
    else:
        alg = method(linsolve=ude.methods.GMRES(reltol=1e-11))
    found = []
    for right_hand_side, algorithm in ((f, alg), (brusselator, method())):
        prob = brusselator_problem(right_hand_side, cells=cells, end=0.2)
        u0, alpha = prob.u0.requires_grad_(), torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
        prob = ude.remake(prob, u0=u0, p=dict(alpha=alpha))
        # the gradient of the steps to rounding whatever the tolerance, so loose ones tell as much
        sol = ude.solve(prob, algorithm, saveat=[0.1, 0.2], sensealg=sensealg, abstol=1e-6, reltol=1e-6)
        found.append(torch.autograd.grad((sol.u**2).sum(), (u0, alpha)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6 * float(plain.abs().max()))


def test_gradient_of_a_large_system_by_gmres_is_that_of_differences():
    def loss(alpha: Tensor) -> Tensor:
        prob = ude.remake(brusselator_problem(end=0.05), p=dict(alpha=alpha))
        sol = ude.solve(prob, ude.KenCarp4(linsolve=ude.methods.GMRES()), saveat=[0.05], abstol=1e-9, reltol=1e-9)
        return (sol.u**2).sum()

    alpha = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(loss(alpha), alpha)
    step = 1e-4
    with torch.no_grad():
        at = {k: loss(alpha + k * step) for k in (-2, -1, 1, 2)}
    difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    torch.testing.assert_close(ours, difference, rtol=1e-6, atol=0.0)


def test_a_wrong_jacobian_is_refused():
    f = ude.ODEFunction(lambda u, p, t: -u * u, jac=lambda u, p, t: -u.unsqueeze(-1))
    prob = ude.ODEProblem(f, [3.0], (0.0, 1.0))
    with pytest.raises(
        ude.errors.InputError, match="jac is not the derivative of f: expected a product with row 0 of -6.7"
    ):
        ude.solve(prob, ude.Rodas5P())


def test_a_pattern_that_misses_entries_is_refused():
    f = ude.ODEFunction(brusselator, jac_prototype=torch.eye(2 * CELLS))
    with pytest.raises(ude.errors.InputError, match="jac_prototype misses entries of df/du.*Mark every entry"):
        ude.solve(brusselator_problem(f), ude.KenCarp4())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: ude.ODEFunction(3), r"f must be callable as f\(u, p, t\): got int|f must be callable.*int"),
        (lambda: ude.ODEFunction(brusselator, jac=3), r"jac must be callable as jac\(u, p, t\).*int"),
        (lambda: ude.ODEFunction(ude.ODEFunction(brusselator)), "f must not be an ODEFunction"),
        (lambda: ude.ODEFunction(brusselator, [[1.0, 2.0]]), r"mass_matrix must be square.*\(1, 2\)"),
        (lambda: ude.ODEFunction(brusselator, "one"), "mass_matrix must be a matrix of numbers"),
        (lambda: ude.ODEFunction(brusselator, [[float("nan")]]), "mass_matrix must be finite"),
        (lambda: ude.ODEFunction(brusselator, torch.ones(1, 1, requires_grad=True)), "mass_matrix must be constant"),
        (lambda: ude.ODEFunction(brusselator, torch.eye(2), None, torch.eye(3)), "must have the same size"),
        (
            lambda: brusselator_problem(ude.ODEFunction(brusselator, torch.eye(2)), cells=2),
            r"mass_matrix must have the size of u0",
        ),
        (
            lambda: brusselator_problem(ude.ODEFunction(brusselator, None, None, torch.eye(2)), cells=2),
            "jac_prototype must have the size of u0",
        ),
        (lambda: ude.methods.GMRES(reltol=2.0), "reltol of GMRES must be a number between 0 and 1"),
        (lambda: ude.methods.GMRES(restart=0), "restart of GMRES allows no iteration"),
        (lambda: ude.methods.GMRES(maxiters=0), "maxiters of GMRES allows no iteration"),
    ],
)
def test_what_cannot_be_used_is_told(build, text):
    with pytest.raises(ude.errors.InputError, match=text):
        build()


def test_a_jacobian_of_the_wrong_shape_is_told():
    f = ude.ODEFunction(lambda u, p, t: -u, jac=lambda u, p, t: -torch.ones_like(u))
    with pytest.raises(
        ude.errors.InputError, match=r"jac\(u, p, t\) must return df/du: expected torch.float64 of shape \(2, 2\)"
    ):
        ude.solve(ude.ODEProblem(f, [1.0, 2.0], (0.0, 1.0)), ude.KenCarp4())


def test_a_system_that_gmres_cannot_solve_is_no_success():
    alg = ude.Rodas5P(linsolve=ude.methods.GMRES(maxiters=2, restart=2))
    sol = ude.solve(brusselator_problem(end=1.0), alg, dt=0.5, adaptive=False)
    assert sol.retcode == ude.ReturnCode.ConvergenceFailure


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.tanh(self.linear(u))


@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.KenCarp4(), ude.methods.VelocityVerlet()], ids=lambda alg: alg.name)
def test_without_a_mass_matrix_it_is_f_itself(alg):
    torch.manual_seed(0)
    if isinstance(alg, ude.methods.VelocityVerlet):
        plain = ude.SecondOrderODEProblem(lambda du, u, p, t: -u, [0.0], [1.0], (0.0, 1.0))
        options: dict[str, Any] = {"dt": 0.1, "adaptive": False}
        wrapped = ude.remake(plain, f=ude.ODEFunction(plain.f))
        assert torch.equal(ude.solve(plain, alg, **options).u, ude.solve(wrapped, alg, **options).u)
        return
    net = _Net()
    gradients = []
    for f in (net, ude.ODEFunction(net)):
        sol = ude.solve(ude.ODEProblem(f, [1.0, 0.5], (0.0, 1.0)), alg, saveat=0.25)
        gradients.append((sol.u.detach(), *torch.autograd.grad(sol.u.sum(), list(net.parameters()))))
    for left, right in zip(*gradients, strict=True):
        assert torch.equal(left, right)


def test_names_are_read_from_the_source_of_the_function_inside():
    def f(u, p, t):
        hare, lynx = u.unbind(-1)
        return torch.stack([hare, -lynx], -1)

    prob = ude.ODEProblem(ude.ODEFunction(f, mass_matrix=torch.eye(2)), [1.0, 1.0], (0.0, 1.0))
    assert prob.state_names == ("hare", "lynx")
    assert ude.remake(prob, u0=[2.0, 2.0]).f is prob.f
