"""Diagonally implicit methods in the fused engine: the torch engine's steps, values, gradients and endings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import ude
from tests.stiff_problems_for_tests import (
    HIRES_END,
    ROBERTSON,
    VAN_DER_POL_1E3_END,
    hires,
    robertson,
    van_der_pol,
)
from ude.compile.build import why_no_compiler
from ude.engines.fused.codegen.esdirk import EsdirkFamily
from ude.engines.fused.codegen.traced import JacobianRows
from ude.engines.fused.graph.program import Program
from ude.errors import EngineRefused

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")

METHODS = [
    ude.methods.ImplicitEuler(),
    ude.methods.Trapezoid(),
    ude.methods.TRBDF2(),
    ude.methods.KenCarp3(),
    ude.KenCarp4(),
    ude.methods.KenCarp5(),
    ude.methods.Kvaerno3(),
    ude.methods.Kvaerno4(),
    ude.methods.Kvaerno5(),
]


# each compiles two kernels, which takes seconds; the others run with `-m slow`
QUICK = ("TRBDF2", "KenCarp4", "Kvaerno5")
ALL = [pytest.param(alg, marks=() if alg.name in QUICK else pytest.mark.slow) for alg in METHODS]


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def gradient(sol: ude.Solution, wanted: list[Tensor], weights: Tensor) -> list[Tensor]:
    spread = 1 + torch.sin(torch.arange(sol.u[..., 0].numel(), dtype=sol.u.dtype)).view(sol.u.shape[:-1]).unsqueeze(-1)
    return list(torch.autograd.grad((sol.u * weights * spread).sum(), wanted))


def assert_engines_agree(prob, alg, wanted, *, weights=1.0, gradients=1e-10, **options) -> ude.Solution:
    """Both engines take the same steps; values agree to 1e-8 and gradients to `gradients`, relatively."""
    fused, plain = (ude.solve(prob, alg, engine=engine, **options) for engine in ("fused", "torch"))
    assert fused.stats.engine == "fused"
    assert torch.equal(fused.stats.accepted_steps, plain.stats.accepted_steps)
    assert torch.equal(fused.stats.rejected_steps, plain.stats.rejected_steps)
    floor = 1e-8 * plain.u.detach().abs().reshape(-1, plain.u.shape[-1]).amax(0)
    assert bool(((fused.u - plain.u).abs() <= 1e-8 * plain.u.abs() + 1e-2 * floor).all())
    scale = torch.as_tensor(weights, dtype=torch.float64)
    for ours, theirs in zip(gradient(fused, wanted, scale), gradient(plain, wanted, scale), strict=True):
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm()) <= gradients * float(theirs.norm())
    return fused


class TestManyStates:
    """Jacobians put together of pullbacks: of a ring, whose rows are found in a few together, and a dense one."""

    STATES = 40

    def right_hand_side(self, kind: str):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        mix = torch.randn(self.STATES, self.STATES, dtype=torch.float64) / self.STATES**0.5

        def f(u, p, t):
            diffusion = p.d * (torch.roll(u, 1, -1) - 2 * u + torch.roll(u, -1, -1))
            if kind == "ring":
                return diffusion + p.net(u.unsqueeze(-1)).squeeze(-1)
            return torch.tanh(u @ p.mix) - u + 1e-3 * diffusion

        p = {"d": number(300.0)}
        return f, p | ({"net": net} if kind == "ring" else {"mix": mix.requires_grad_()})

    @pytest.mark.parametrize(("kind", "batch"), [("ring", ()), ("dense", (5,))])
    def test_steps_values_and_gradients_agree(self, kind, batch):
        f, p = self.right_hand_side(kind)
        x = torch.linspace(0, 1, self.STATES, dtype=torch.float64)
        u0 = (torch.exp(-30 * (x - 0.4) ** 2) + torch.zeros(*batch, self.STATES, dtype=torch.float64)).requires_grad_()
        wanted = [u0, p["d"], *(p["net"].parameters() if kind == "ring" else [p["mix"]])]
        options = {"saveat": [0.5, 1.0], "reltol": 1e-5, "abstol": 1e-7}
        sol = assert_engines_agree(ude.ODEProblem(f, u0, (0.0, 1.0), p), ude.KenCarp4(), wanted, **options)
        assert sol.stats.njacs < sol.stats.nw

    def test_rows_that_share_no_column_are_found_together(self):
        program = Program()
        g, x = program.input("g", 12, uniform=False), program.input("x", 12, uniform=False)
        ring = program.map("add", program.map("mul", g, x), np.roll(g, 1))
        dense = program.contract(np.tile(x, (12, 1))[None], g[None, :, None])[0, :, 0]
        rows = JacobianRows.of(program, program.map("add", ring, np.roll(g, -1)), g)
        expected = np.eye(12, dtype=bool) | np.eye(12, k=1, dtype=bool) | np.eye(12, k=-1, dtype=bool)
        expected[0, -1] = expected[-1, 0] = True
        assert np.array_equal(rows.pattern, expected)
        for color in set(rows.color):
            assert rows.pattern[[one == color for one in rows.color]].sum(0).max() == 1
        assert max(rows.color) + 1 == 3
        assert JacobianRows.of(program, dense, g).color == tuple(range(12))


class TestAgreement:
    @pytest.mark.parametrize("alg", ALL, ids=name)
    def test_every_method_takes_the_same_steps_and_does_the_same_work_on_robertson(self, alg):
        u0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
        p = {key: number(value) for key, value in ROBERTSON.items()}
        prob = ude.ODEProblem(robertson, u0, (0.0, 1e4), p)
        reltol = 1e-4 if alg.tableau.order == 1 else 1e-6
        options = {"saveat": [0.3, 40.0, 1e3, 1e4], "reltol": reltol, "abstol": 1e-4 * reltol}
        sol = assert_engines_agree(prob, alg, [u0, *p.values()], weights=[1.0, 1e4, 1.0], **options)
        with torch.no_grad():
            plain = ude.solve(prob, alg, engine="torch", **options).stats
        # of a single trajectory, whose work the batch's is
        assert (sol.stats.nf, sol.stats.njacs, sol.stats.nw) == (plain.nf, plain.njacs, plain.nw)
        assert 0 < sol.stats.njacs < sol.stats.nw

    @pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.methods.Kvaerno5(), ude.methods.TRBDF2()], ids=name)
    def test_parameters_of_each_trajectory_give_each_its_own_steps(self, alg):
        generator = torch.Generator().manual_seed(0)
        p = {
            key: (value * 10 ** (torch.rand(11, dtype=torch.float64, generator=generator) - 0.5)).requires_grad_()
            for key, value in ROBERTSON.items()
        }
        u0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).repeat(11, 1).requires_grad_()
        prob = ude.ODEProblem(robertson, u0, (0.0, 1e4), p)
        sol = assert_engines_agree(
            prob, alg, [u0, *p.values()], weights=[1.0, 1e4, 1.0], saveat=[1.0, 1e2, 1e4], reltol=1e-5, abstol=1e-9
        )
        assert len(set(sol.stats.accepted_steps.tolist())) > 3

    @pytest.mark.parametrize("alg", [ude.KenCarp4(), ude.methods.Kvaerno5()], ids=name)
    def test_lanes_of_other_stiffness_and_other_spans_agree(self, alg):
        mu = torch.tensor([1.0, 1000.0, 30.0, 100.0, 5.0, 300.0], dtype=torch.float64, requires_grad=True)
        ends = torch.tensor([6.0, 900.0, 7.0, 200.0, -0.5, 500.0], dtype=torch.float64)
        u0 = torch.tensor([[2.0, 0.0]] * 6, dtype=torch.float64, requires_grad=True)
        saves = ends.unsqueeze(-1) * torch.linspace(0.0, 1.0, 5, dtype=torch.float64)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, ends), {"mu": mu})
        assert_engines_agree(prob, alg, [u0, mu], gradients=1e-8, saveat=saves, reltol=1e-6, abstol=1e-8)

    def test_hires_agrees_and_ends_at_its_published_values(self):
        u0 = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0.0057], dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(hires, u0, (0.0, 321.8122))
        sol = assert_engines_agree(prob, ude.methods.KenCarp5(), [u0], saveat=[5.0, 321.8122], reltol=1e-6, abstol=1e-9)
        torch.testing.assert_close(sol.u[-1].detach(), HIRES_END, rtol=1e-3, atol=1e-7)

    def test_van_der_pol_ends_at_its_published_value(self):
        prob = ude.ODEProblem(van_der_pol, [2.0, 0.0], (0.0, 2000.0), {"mu": 1000.0})
        sol = ude.solve(prob, ude.methods.Kvaerno5(), engine="fused", saveat=[2000.0], reltol=1e-8, abstol=1e-10)
        torch.testing.assert_close(sol.u[-1], VAN_DER_POL_1E3_END, rtol=1e-4, atol=1e-8)

    @pytest.mark.parametrize("batch", [(), (9,)])
    def test_a_stiff_right_hand_side_with_a_network_has_the_gradients_of_its_weights(self, batch):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2)).double()
        rates = torch.tensor([1e4, 1.0], dtype=torch.float64, requires_grad=True)

        def f(u: Tensor, p, t: Tensor) -> Tensor:
            return p["net"](u) - p["rates"] * (u - torch.cos(t).unsqueeze(-1))

        u0 = torch.rand(*batch, 2, dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(f, u0, (0.0, 2.0), {"net": net, "rates": rates})
        options = {"saveat": 0.5, "reltol": 1e-6, "abstol": 1e-8}
        assert_engines_agree(prob, ude.KenCarp4(), [u0, rates, *net.parameters()], **options)

    def test_rows_are_swapped_where_the_diagonal_is_small(self):
        # I - gamma dt J has its largest entries off the diagonal, in another place for every trajectory
        def f(u: Tensor, p, t: Tensor) -> Tensor:
            x, y, z = u.unbind(-1)
            return torch.stack([-p.k * y, p.k * x - 0.1 * y, p.m * y - p.k * z], -1)

        k = torch.tensor([3.0, 1e3, 50.0, 4e3, 0.5], dtype=torch.float64, requires_grad=True)
        m = torch.tensor([1e3, 1.0, 9e3, 1e4, 0.1], dtype=torch.float64, requires_grad=True)
        u0 = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(f, u0, (0.0, 1.0), {"k": k, "m": m})
        options = {"dt": 0.02, "adaptive": False, "saveat": [0.5, 1.0]}
        assert_engines_agree(prob, ude.methods.Kvaerno3(), [u0, k, m], **options)
        # the middle trajectory's matrix is that of a rotation by 50 a step: without pivoting its digits would go
        alone = ude.ODEProblem(f, u0[3], (0.0, 1.0), {"k": k[3], "m": m[3]})
        assert_engines_agree(alone, ude.methods.Kvaerno3(), [u0, k, m], **options)

    @pytest.mark.parametrize("alg", ALL, ids=name)
    def test_fixed_steps_agree(self, alg):
        mu, u0 = number(20.0), torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, 2.0), {"mu": mu})
        sol = assert_engines_agree(prob, alg, [u0, mu], dt=0.05, adaptive=False, saveat=[0.52, 1.0, 2.0])
        assert int(sol.stats.accepted_steps) == 40
        assert sol.stats.nf == ude.solve(prob, alg, engine="torch", dt=0.05, adaptive=False).stats.nf

    def test_dense_output_and_its_gradient_agree(self):
        mu, u0 = number(100.0), torch.tensor([2.0, 0.0], dtype=torch.float64)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, 150.0), {"mu": mu})
        options = {"saveat": 50.0, "reltol": 1e-7, "abstol": 1e-9}
        read = [ude.solve(prob, ude.KenCarp4(), engine=engine, **options)([81.2, 3.3]) for engine in ("fused", "torch")]
        torch.testing.assert_close(*read, rtol=1e-9, atol=1e-10)
        found = [torch.autograd.grad((u**2).sum(), [mu])[0] for u in read]
        torch.testing.assert_close(*found, rtol=1e-9, atol=0)

    def test_every_step_is_saved_without_saveat(self):
        u0 = torch.tensor([[2.0, 0.0], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, 60.0), {"mu": 50.0})
        assert_engines_agree(prob, ude.KenCarp4(), [u0], reltol=1e-5, abstol=1e-7, gradients=1e-8)

    def test_float32_agrees_within_its_precision(self):
        u0 = torch.tensor([[1.0, 0.0, 0.0]] * 9, dtype=torch.float32)
        prob = ude.ODEProblem(robertson, u0, (0.0, 40.0), ROBERTSON)
        options = {"saveat": [40.0], "reltol": 1e-4, "abstol": 1e-8}
        fused, plain = (ude.solve(prob, ude.KenCarp4(), engine=engine, **options) for engine in ("fused", "torch"))
        assert fused.u.dtype == torch.float32
        torch.testing.assert_close(fused.u, plain.u, rtol=2e-3, atol=1e-7)

    def test_a_right_hand_side_that_ignores_the_state_has_a_jacobian_of_zero(self):
        rate = number(1.5)
        prob = ude.ODEProblem(lambda u, p, t: p.rate * torch.ones_like(u), [1.0, 2.0], (0.0, 2.0), {"rate": rate})
        sol = assert_engines_agree(prob, ude.KenCarp4(), [rate], saveat=[2.0])
        torch.testing.assert_close(
            sol.u[-1].detach(), torch.tensor([4.0, 5.0], dtype=torch.float64), rtol=1e-12, atol=0
        )


class TestGradients:
    @pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
    def test_gradients_are_the_finite_differences_of_scipy(self, tolerance):
        """Two gradients that share nothing: Radau's values of shifted rates, and the reverse of our steps."""

        def end(k1: float) -> np.ndarray:
            def f(t: float, u: np.ndarray) -> list[float]:
                pair, back = 3e7 * u[1] ** 2, 1e4 * u[1] * u[2]
                return [back - k1 * u[0], k1 * u[0] - pair - back, pair]

            found = solve_ivp(f, (0.0, 40.0), [1.0, 0.0, 0.0], method="Radau", rtol=1e-11, atol=1e-15)
            return found.y[:, -1]

        shift = 1e-4 * 0.04
        expected = (end(0.04 + shift) - end(0.04 - shift)) / (2 * shift)
        k1 = number(0.04)
        prob = ude.ODEProblem(robertson, [1.0, 0.0, 0.0], (0.0, 40.0), {**ROBERTSON, "k1": k1})
        alg = ude.methods.KenCarp5(newton_tolerance=tolerance)
        sol = ude.solve(prob, alg, engine="fused", saveat=[40.0], reltol=1e-9, abstol=1e-13)
        found = [float(torch.autograd.grad(sol.u[-1, i], k1, retain_graph=True)[0]) for i in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    @pytest.mark.parametrize(
        "alg", [ude.KenCarp4(newton_tolerance=1e-8), ude.methods.Trapezoid(newton_tolerance=1e-8)], ids=name
    )
    def test_the_gradient_is_the_derivative_of_the_steps_taken(self, alg):
        """With fixed steps the solve is a smooth function, whose central difference the adjoint must match."""
        options = {"dt": 0.1, "adaptive": False, "saveat": [0.73, 1.5], "abstol": 1e-9, "reltol": 1e-9}

        def value(mu: Tensor) -> Tensor:
            prob = ude.ODEProblem(van_der_pol, [[2.0, 0.0]] * 5, (0.0, 1.5), {"mu": mu})
            return (ude.solve(prob, alg, engine="fused", **options).u ** 2).sum()

        mu = torch.tensor([3.0, 10.0, 1.0, 30.0, 5.0], dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(value(mu), mu)
        for i in range(5):
            shift = torch.zeros(5, dtype=torch.float64)
            shift[i] = 1e-5 * float(mu[i].detach())
            with torch.no_grad():
                expected = float(value(mu + shift) - value(mu - shift)) / (2 * float(shift[i]))
            assert float(found[i]) == pytest.approx(expected, rel=1e-6)


def jump(u: Tensor, p, t: Tensor) -> Tensor:
    """Points at zero from both sides: there no stage has a solution."""
    return torch.where(u > 0, -1.0, 1.0).to(u.dtype) + 0 * u


class TestEndings:
    def test_stages_that_cannot_be_solved_end_in_convergence_failure_and_spoil_no_neighbor(self):
        ends = torch.tensor([3.0, 0.05, 0.02, 0.01], dtype=torch.float64)
        u0 = torch.tensor([[1.0], [-0.1], [-0.2], [-0.3]], dtype=torch.float64)
        prob = ude.ODEProblem(jump, u0, (0.0, ends))
        both = [ude.solve(prob, ude.KenCarp4(), engine=engine, maxiters=2000) for engine in ("fused", "torch")]
        for sol in both:
            assert list(sol.retcode) == [ude.ReturnCode.ConvergenceFailure, *[ude.ReturnCode.Success] * 3]
        assert both[0].stats.engine == "fused"
        assert torch.equal(both[0].stats.rejected_steps, both[1].stats.rejected_steps)
        assert float(both[0].partial[1, -1, 0]) == pytest.approx(-0.05, abs=1e-9)

    def test_a_fixed_step_too_large_for_newton_ends_in_convergence_failure(self):
        prob = ude.ODEProblem(jump, [0.05], (0.0, 1.0))
        sol = ude.solve(prob, ude.methods.ImplicitEuler(), engine="fused", dt=0.1, adaptive=False)
        assert sol.retcode == ude.ReturnCode.ConvergenceFailure

    def test_a_blow_up_and_the_end_of_a_domain_are_reported_of_their_lane(self):
        def f(u: Tensor, p, t: Tensor) -> Tensor:
            return -1 - u.sqrt()

        u0 = torch.tensor([[1.0], [9.0], [16.0], [25.0], [1.0]], dtype=torch.float64)
        prob = ude.ODEProblem(f, u0, (0.0, 1.0))
        both = [ude.solve(prob, ude.KenCarp4(), engine=engine, saveat=[0.1, 1.0]) for engine in ("fused", "torch")]
        for sol in both:
            assert [int(code) for code in sol.retcode] == [int(c) for c in both[1].retcode]
            assert sol.retcode[0] == ude.ReturnCode.Unstable
            assert sol.success.tolist() == [False, True, True, True, False]
            assert sol.partial[0, -1].isnan().all()
        torch.testing.assert_close(both[0].partial[1:4], both[1].partial[1:4], rtol=1e-9, atol=0)

    def test_no_more_steps_than_allowed_are_tried(self):
        prob = ude.ODEProblem(robertson, [1.0, 0.0, 0.0], (0.0, 1e4), ROBERTSON)
        sol = ude.solve(prob, ude.KenCarp4(), engine="fused", maxiters=7, saveat=[1e4])
        assert sol.retcode == ude.ReturnCode.MaxIters
        assert int(sol.stats.accepted_steps) + int(sol.stats.rejected_steps) == 7

    def test_a_system_too_large_is_refused_in_one_sentence(self):
        most = EsdirkFamily.most_states
        count = most + 1
        prob = ude.ODEProblem(lambda u, p, t: -u, torch.ones(count, dtype=torch.float64), (0.0, 1.0))
        with pytest.raises(EngineRefused, match=f"fused for up to {most} states, and u0 has {count}"):
            ude.solve(prob, ude.KenCarp4(), engine="fused")

    def test_rosenbrock_methods_are_refused_by_name(self):
        prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0))
        with pytest.raises(EngineRefused, match="Rodas5P has no fused form"):
            ude.solve(prob, ude.Rodas5P(), engine="fused")
