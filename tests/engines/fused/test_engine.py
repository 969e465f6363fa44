"""The fused engine against the torch engine: the same steps, values, gradients and endings."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import ude
from tests.problems_for_tests import LV, lotka_volterra
from ude.compile.build import why_no_compiler
from ude.engines.fused import engine as fused_engine
from ude.errors import EngineRefused

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")

EXPLICIT = [
    ude.methods.BS3(),
    ude.methods.DP5(),
    ude.Tsit5(),
    ude.methods.Vern6(),
    ude.Vern7(),
    ude.methods.Vern9(),
    ude.methods.DP8(),
]


def leaves_of(p: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in p.items()}


def solved(engine: str, f, u0: Tensor, span, p, alg=None, **options):
    return ude.solve(ude.ODEProblem(f, u0, span, p=p), alg or ude.Tsit5(), engine=engine, **options)


def gradient(sol: ude.Solution, wanted: list[Tensor]) -> list[Tensor]:
    weights = torch.sin(torch.arange(sol.u.numel(), dtype=sol.u.dtype)).view(sol.u.shape)
    return list(torch.autograd.grad((sol.u * weights).sum(), wanted))


def assert_engines_agree(f, u0, span, p, wanted, *, alg=None, tolerance=1e-10, **options) -> ude.Solution:
    """Both engines take the same steps; values agree to rounding and gradients to `tolerance`, relatively."""
    fused, plain = (solved(name, f, u0, span, p, alg, **options) for name in ("fused", "torch"))
    assert fused.stats.engine == "fused"
    assert torch.equal(fused.stats.accepted_steps, plain.stats.accepted_steps)
    assert torch.equal(fused.stats.rejected_steps, plain.stats.rejected_steps)
    scale = float(plain.u.detach().abs().max())
    assert torch.allclose(fused.u, plain.u, rtol=1e-9, atol=1e-11 * scale)
    assert torch.allclose(fused.t, plain.t)
    for ours, theirs in zip(gradient(fused, wanted), gradient(plain, wanted), strict=True):
        assert float((ours - theirs).norm()) <= tolerance * max(1e-8, float(theirs.norm()))
    return fused


class TestAgreement:
    @pytest.mark.parametrize("alg", EXPLICIT, ids=lambda alg: alg.name)
    def test_every_explicit_method_takes_the_same_steps_and_has_the_same_gradient(self, alg):
        p, u0 = leaves_of(LV), torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
        options = {"saveat": 0.37, "abstol": 1e-8, "reltol": 1e-8}
        sol = assert_engines_agree(lotka_volterra, u0, (0.0, 4.0), p, [u0, *p.values()], alg=alg, **options)
        if not alg.tableau.extra_a:  # of which the torch engine counts those that the saves need
            assert sol.stats.nf == solved("torch", lotka_volterra, u0, (0.0, 4.0), p, alg, **options).stats.nf

    @pytest.mark.parametrize("alg", [ude.methods.Euler(), ude.RK4(), ude.Tsit5()], ids=lambda alg: alg.name)
    def test_fixed_steps_agree(self, alg):
        p, u0 = leaves_of(LV), torch.tensor([1.0, 1.0], dtype=torch.float64, requires_grad=True)
        options = {"saveat": 0.25, "dt": 0.05, "adaptive": False}
        assert_engines_agree(lotka_volterra, u0, (0.0, 2.0), p, [u0, *p.values()], alg=alg, **options)

    @pytest.mark.parametrize("batch", [(1,), (2,), (7,), (3, 5)])
    def test_a_batch_with_leaves_of_each_trajectory_agrees(self, batch):
        generator = torch.Generator().manual_seed(0)
        u0 = (1 + torch.rand(*batch, 2, dtype=torch.float64, generator=generator)).requires_grad_()
        p = leaves_of(LV)
        p["alpha"] = (1 + torch.rand(batch, dtype=torch.float64, generator=generator)).requires_grad_()
        sol = assert_engines_agree(lotka_volterra, u0, (0.0, 3.0), p, [u0, *p.values()], saveat=0.5, reltol=1e-6)
        assert sol.u.shape == (*batch, 7, 2)

    def test_spans_and_saves_of_each_trajectory_agree_backward_too(self):
        u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5], [0.3, 0.4]], dtype=torch.float64, requires_grad=True)
        t0 = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
        t1 = torch.tensor([3.0, -1.0, 1.0], dtype=torch.float64)
        saveat = torch.stack(
            [torch.linspace(float(a), float(b), 6, dtype=torch.float64) for a, b in zip(t0, t1, strict=True)]
        )
        assert_engines_agree(lotka_volterra, u0, (t0, t1), LV, [u0], saveat=saveat, reltol=1e-7)

    def test_every_step_is_saved_without_saveat(self):
        u0 = torch.tensor([[1.0, 1.0], [4.0, 0.5]], dtype=torch.float64, requires_grad=True)
        assert_engines_agree(lotka_volterra, u0, (0.0, 5.0), LV, [u0], reltol=1e-6)

    def test_dense_output_and_its_gradient_agree(self):
        p = leaves_of(LV)
        u0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
        read = [
            solved(name, lotka_volterra, u0, (0.0, 5.0), p, saveat=1.0, reltol=1e-7)([4.2, 0.1, 2.5])
            for name in ("fused", "torch")
        ]
        assert torch.allclose(*read, rtol=1e-9)
        found = [torch.autograd.grad((u**2).sum(), list(p.values())) for u in read]
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9)

    def test_dense_output_of_a_solve_without_gradient_takes_the_same_steps_again(self):
        u0 = torch.tensor([[1.0, 1.0], [4.0, 0.5]], dtype=torch.float64)
        read = [
            solved(name, lotka_volterra, u0, (0.0, 5.0), LV, saveat=1.0, reltol=1e-7)(2.3)
            for name in ("fused", "torch")
        ]
        assert torch.allclose(*read, rtol=1e-10)

    def test_float32_agrees_within_its_precision(self):
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        torch.manual_seed(0)
        u0 = torch.rand(20, 2, requires_grad=True)
        both = [
            solved(name, lambda u, p, t: p["net"](u) - u, u0, (0.0, 1.0), {"net": net}, saveat=0.5)
            for name in ("fused", "torch")
        ]
        assert both[0].u.dtype == torch.float32
        assert torch.allclose(both[0].u, both[1].u, rtol=1e-4, atol=1e-5)
        found = [gradient(sol, [u0, *net.parameters()]) for sol in both]
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)

    def test_other_sensitivities_run_on_a_fused_solve(self):
        expected = None
        for sensealg in (
            ude.DiscreteAdjoint(),
            ude.InterpolatingAdjoint(),
            ude.ForwardSensitivity(),
            ude.sensitivity.Autograd(),
        ):
            p, u0 = leaves_of(LV), torch.tensor([1.0, 1.0], dtype=torch.float64)
            sol = solved(
                "fused", lotka_volterra, u0, (0.0, 2.0), p, saveat=0.5, reltol=1e-10, abstol=1e-10, sensealg=sensealg
            )
            found = torch.stack(gradient(sol, list(p.values())))
            expected = found if expected is None else expected
            assert torch.allclose(found, expected, rtol=1e-6), sensealg.name


class Network(nn.Module):
    def __init__(self, width: int, activation: nn.Module, inputs: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs, width), activation, nn.Linear(width, width), activation, nn.Linear(width, inputs)
        ).double()

    def forward(self, u: Tensor, p: object, t: Tensor) -> Tensor:
        return 0.3 * self.net(u) - 0.1 * u


class TestNetworks:
    @pytest.mark.parametrize("batch", [1, 9])
    @pytest.mark.parametrize("width", [5, 32, 50])
    def test_weights_of_any_width_have_the_gradient_of_the_torch_engine(self, width, batch):
        torch.manual_seed(0)
        f = Network(width, nn.Tanh())
        u0 = torch.randn(batch, 2, dtype=torch.float64, requires_grad=True)
        assert_engines_agree(f, u0, (0.0, 2.0), None, [u0, *f.parameters()], saveat=0.2, reltol=1e-6)

    @pytest.mark.parametrize(
        "activation",
        [
            nn.Sigmoid(),
            nn.Softplus(),
            nn.ReLU(),
            nn.GELU(),
            nn.SiLU(),
            nn.ELU(),
            nn.LeakyReLU(),
            nn.GELU("tanh"),
            nn.Mish(),
        ],
        ids=lambda a: type(a).__name__,
    )
    def test_activations(self, activation):
        torch.manual_seed(0)
        f = Network(12, activation)
        u0 = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
        assert_engines_agree(f, u0, (0.0, 1.0), None, [u0, *f.parameters()], saveat=0.5, reltol=1e-5)

    def test_layer_norm_softmax_and_einsum(self):
        torch.manual_seed(0)
        norm = nn.LayerNorm(6).double()
        mix = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)

        def f(u, p, t):
            return torch.einsum("...i,ij->...j", torch.softmax(p["norm"](u), -1), p["mix"]) - u.norm() * u

        u0 = torch.randn(6, dtype=torch.float64, requires_grad=True)
        assert_engines_agree(f, u0, (0.0, 1.0), {"norm": norm, "mix": mix}, [u0, mix, *norm.parameters()], saveat=0.5)


def heat_by_roll(u, p, t):
    return p.d * (torch.roll(u, 1, -1) - 2 * u + torch.roll(u, -1, -1)) + p.r * u * (1 - u)


def heat_by_pad(u, p, t):
    v = nn.functional.pad(u.unsqueeze(-2), (1, 1), mode="constant").squeeze(-2)
    return p.d * (v[..., 2:] - 2 * v[..., 1:-1] + v[..., :-2]) + p.r * u * (1 - u)


def heat_by_conv(u, p, t):
    shape = u.shape
    rows = u.reshape(-1, 1, shape[-1])
    v = nn.functional.conv1d(rows, p.kernel.view(1, 1, 3), padding=1).reshape(shape)
    return p.d * v + p.r * u * (1 - u)


class TestGrids:
    @pytest.mark.parametrize("f", [heat_by_roll, heat_by_pad, heat_by_conv], ids=lambda f: f.__name__)
    @pytest.mark.parametrize("batch", [(), (5,)])
    def test_stencils_agree(self, f, batch):
        x = torch.linspace(0, 1, 26, dtype=torch.float64)
        u0 = (torch.exp(-30 * (x - 0.4) ** 2) + torch.zeros(*batch, 26, dtype=torch.float64)).requires_grad_()
        p = leaves_of({"d": 0.7, "r": 1.0})
        p["kernel"] = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
        wanted = [u0, p["d"], p["r"], *([p["kernel"]] if f is heat_by_conv else [])]
        assert_engines_agree(f, u0, (0.0, 1.0), p, wanted, saveat=0.25, reltol=1e-6)

    def test_a_convolution_in_two_dimensions_agrees(self):
        torch.manual_seed(0)
        conv = nn.Conv2d(1, 2, 3, padding=1).double()
        back = nn.Conv2d(2, 1, 3, padding=1).double()

        def f(u, p, t):
            grid = u.reshape(-1, 1, 5, 5)
            return p["back"](torch.tanh(p["conv"](grid))).reshape(u.shape) - 0.5 * u

        u0 = torch.randn(25, dtype=torch.float64, requires_grad=True)
        wanted = [u0, *conv.parameters(), *back.parameters()]
        assert_engines_agree(f, u0, (0.0, 0.5), {"conv": conv, "back": back}, wanted, saveat=0.25)


class TestForcing:
    @pytest.mark.parametrize("kind", ["constant", "linear", "cubic", "pchip"])
    def test_interpolated_forcing_is_fused_with_its_gradient(self, kind):
        knots = torch.linspace(0, 3, 7, dtype=torch.float64)
        values = torch.sin(knots)

        def f(u, p, t):
            return -u + p.forcing(t).unsqueeze(-1)

        u0 = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        found = []
        for name in ("fused", "torch"):
            # the slopes of trainable splines are solved for, by operators that are not fused
            trainable = kind in ("constant", "linear")
            forcing = ude.Interpolation(knots, values, kind=kind, trainable=trainable, known=False)
            sol = solved(name, f, u0, (0.0, 3.0), {"forcing": forcing}, saveat=0.5, reltol=1e-6)
            assert sol.stats.engine == name
            found.append((sol.u, *gradient(sol, [u0, *(one for one in forcing.parameters() if one.requires_grad)])))
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)

    def test_steps_whose_error_is_mostly_rounding_agree(self):
        # the first three steps of the spiral have errors of 1e-9 of a tolerance of 1e-3
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)).double()
        u0 = torch.tensor([2.0, 0.0], dtype=torch.float64, requires_grad=True)
        fused = assert_engines_agree(
            lambda u, p, t: p["net"](u**3), u0, (0.0, 1.5), {"net": net}, [u0, *net.parameters()], reltol=1e-3
        )
        plain = solved("torch", lambda u, p, t: p["net"](u**3), u0, (0.0, 1.5), {"net": net}, reltol=1e-3)
        assert torch.allclose(fused.t, plain.t, rtol=1e-14, atol=0.0)

    def test_time_dependence_agrees(self):
        p, u0 = leaves_of({"a": 2.0}), torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        assert_engines_agree(lambda u, p, t: torch.sin(p.a * t) * u, u0, (0.0, 6.0), p, [u0, p["a"]], saveat=0.5)


class TestModels:
    def test_a_text_model_with_networks_is_fused(self):
        torch.manual_seed(0)
        model = ude.UDE(
            "dx/dt = alpha*x - U1(x, y)\ndy/dt = U2(x, y) - delta*y",
            parameters={"alpha": 1.3, "delta": 1.8},
            unknown=ude.MLP("U1, U2", inputs="x, y", width=8),
        )
        prob = model.problem([0.4, 4.6], (0.0, 2.0))
        found = []
        for name in ("fused", "torch"):
            sol = ude.solve(prob, ude.Tsit5(), saveat=0.5, reltol=1e-6, engine=name)
            found.append((sol.u, *gradient(sol, [one for one in model.parameters() if one.requires_grad])))
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


class TestEndings:
    def test_a_blow_up_is_unstable_and_never_a_number(self):
        u0 = torch.tensor([[1.0], [0.1], [2.0]], dtype=torch.float64)
        both = [solved(name, lambda u, p, t: u**2, u0, (0.0, 1.5), None, saveat=0.5) for name in ("fused", "torch")]
        assert list(both[0].retcode) == list(both[1].retcode)
        assert both[0].success.tolist() == [False, True, False]
        assert [code.name for code in both[0].retcode] == ["DtLessThanMin", "Success", "DtLessThanMin"]

    def test_a_failed_trajectory_leaves_its_neighbors_as_they_are(self):
        def f(u, p, t):
            return torch.where(u > 50, torch.full_like(u, math.nan), u)

        u0 = torch.tensor([[1.0], [30.0], [2.0], [1.5], [0.3]], dtype=torch.float64)
        sol = solved("fused", f, u0, (0.0, 2.0), None, saveat=1.0, reltol=1e-8)
        alone = solved("fused", f, u0[:1].expand(5, 1).clone(), (0.0, 2.0), None, saveat=1.0, reltol=1e-8)
        assert [code.name for code in sol.retcode] == ["Success", "Unstable", "Success", "Success", "Success"]
        assert int(sol.stats.accepted_steps[0]) == int(alone.stats.accepted_steps[0])

    def test_maxiters_ends_a_trajectory(self):
        sol = solved(
            "fused", lotka_volterra, torch.ones(2, dtype=torch.float64), (0.0, 50.0), LV, saveat=10.0, maxiters=7
        )
        assert sol.retcode.name == "MaxIters"
        assert int(sol.stats.accepted_steps + sol.stats.rejected_steps) == 7


class TestBatches:
    def test_results_do_not_depend_on_the_number_of_threads(self):
        torch.manual_seed(0)
        f = Network(8, nn.Tanh())
        u0 = torch.randn(300, 2, dtype=torch.float64)
        before, found = torch.get_num_threads(), []
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                sol = solved("fused", f, u0, (0.0, 2.0), None, saveat=0.5, reltol=1e-6)
                found.append((sol.u, *gradient(sol, list(f.parameters()))))
        finally:
            torch.set_num_threads(before)
        for one, two in zip(*found, strict=True):
            assert torch.equal(one, two)

    def test_a_trajectory_takes_the_same_steps_alone_and_in_a_batch(self):
        u0 = 1 + torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        sol = solved("fused", lotka_volterra, u0, (0.0, 5.0), LV, saveat=1.0, reltol=1e-7)
        alone = [solved("fused", lotka_volterra, one, (0.0, 5.0), LV, saveat=1.0, reltol=1e-7) for one in u0[::8]]
        assert sol.stats.accepted_steps[::8].tolist() == [int(one.stats.accepted_steps) for one in alone]


class TestRefusals:
    def refused(self, f, **options) -> str:
        with pytest.raises(EngineRefused) as caught:
            solved("fused", f, torch.ones(2, dtype=torch.float64), (0.0, 1.0), None, **options)
        return str(caught.value)

    def test_an_unknown_operator_is_named_with_its_line(self):
        said = self.refused(lambda u, p, t: torch.linalg.inv(torch.diag(u)) @ u)
        assert "linalg_inv" in said
        assert "test_engine.py" in said

    def test_a_decision_on_values_is_refused(self):
        assert "torch.where" in self.refused(lambda u, p, t: u if float(u[0]) > 0 else -u)

    def test_a_function_with_a_side_effect_is_refused(self):
        calls: list[int] = []

        def f(u, p, t):
            calls.append(1)
            return -u

        assert "changes something outside" in self.refused(f)

    def test_events_run_in_the_torch_engine(self):
        callback = ude.ContinuousCallback(lambda u, t: u[..., 0] - 2, ude.terminate)
        assert "events" in self.refused(lambda u, p, t: u, callback=callback)

    def test_an_f_that_depends_on_the_place_in_the_batch_is_refused(self):
        u0 = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with pytest.raises(EngineRefused, match="f of a batch is not f of each trajectory"):
            solved("fused", lambda u, p, t: u * torch.arange(len(u)).to(u)[:, None], u0, (0.0, 1.0), None)


class TestWhereTorchOvertakes:
    @pytest.mark.parametrize(("width", "batch", "engine"), [(256, 300, "torch"), (256, 1, "fused"), (32, 300, "fused")])
    def test_auto_leaves_wide_networks_on_batches_to_torch(self, width, batch, engine, monkeypatch):
        monkeypatch.setattr(fused_engine, "PATIENCE", 0)
        torch.manual_seed(0)
        f = Network(width, nn.Tanh())
        u0 = torch.randn(batch, 2, dtype=torch.float64)
        for name, expected in (("auto", engine), ("fused", "fused"), ("auto", engine)):
            with torch.no_grad():
                sol = solved(name, f, u0, (0.0, 0.1), None, saveat=0.1)
            assert sol.stats.engine == expected
            if expected == "torch":
                assert "torch multiplies this batch" in sol.stats.why_not["fused"]


class TestFreshness:
    def test_a_changed_number_in_a_closure_is_seen(self):
        rate = 1.0

        def f(u, p, t):
            return -rate * u

        u0 = torch.ones(1, dtype=torch.float64)
        ends = []
        for rate in (1.0, 2.0):  # noqa: B007 - f reads it
            ends.append(float(solved("fused", f, u0, (0.0, 1.0), None, reltol=1e-9, abstol=1e-9).u[-1, 0]))
        assert ends == pytest.approx([math.exp(-1), math.exp(-2)], rel=1e-7)

    def test_a_captured_tensor_is_read_afresh(self):
        rate = torch.tensor([1.0], dtype=torch.float64)
        u0 = torch.ones(1, dtype=torch.float64)
        ends = []
        for value in (1.0, 2.0):
            rate.fill_(value)
            ends.append(
                float(
                    solved("fused", lambda u, p, t: -rate * u, u0, (0.0, 1.0), None, reltol=1e-9, abstol=1e-9).u[-1, 0]
                )
            )
        assert ends == pytest.approx([math.exp(-1), math.exp(-2)], rel=1e-7)

    def test_indices_that_f_captures_are_read_afresh(self):
        index = torch.tensor([0, 1])
        u0 = torch.tensor([1.0, 5.0], dtype=torch.float64)

        def f(u, p, t):
            return -u[..., index]

        first = solved("fused", f, u0, (0.0, 1.0), None).u[-1]
        index.copy_(torch.tensor([1, 0]))
        second = solved("fused", f, u0, (0.0, 1.0), None).u[-1]
        assert not torch.allclose(first, second)


UNARY = [
    torch.sin,
    torch.cos,
    torch.tanh,
    torch.sigmoid,
    torch.exp,
    torch.abs,
    torch.erf,
    torch.square,
    nn.functional.softplus,
]
BINARY = [torch.add, torch.sub, torch.mul, torch.minimum, torch.maximum, torch.atan2, torch.hypot]


@st.composite
def right_hand_sides(draw):
    """A random program over the state, a weight vector and the time; bounded, so that every solve arrives."""
    size = draw(st.sampled_from([1, 2, 3, 9, 12]))
    steps = draw(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=7))

    def f(u, p, t):
        values = [u, p.w * u, torch.sin(t).unsqueeze(-1) + u]
        for kind, i, j in steps:
            x, y = values[i % len(values)], values[j % len(values)]
            match kind:
                case 0 | 1:
                    new = UNARY[i % len(UNARY)](torch.tanh(x))
                case 2 | 3:
                    new = BINARY[j % len(BINARY)](x, y)
                case 4:
                    new = torch.where(x > y, x, 2 * y)
                case 5:
                    new = torch.roll(x, 1, -1) + nn.functional.pad(y, (1, 0))[..., :-1]
                case 6:
                    new = torch.cat([x[..., :1], y[..., 1:]], -1).flip(-1)
                case 7:
                    new = x - y.mean(-1, keepdim=True) + (x * y).sum(-1, keepdim=True).tanh()
                case _:
                    new = (p.m @ x.unsqueeze(-1)).squeeze(-1) / (1 + y**2)
            values.append(torch.tanh(new) + 0.1 * new.clamp(-1, 1))
        return values[-1] - 0.3 * u

    return size, f


@settings(max_examples=15, deadline=None, derandomize=True)
@given(right_hand_sides(), st.sampled_from([(), (5,)]))
def test_engines_agree_on_random_right_hand_sides(drawn, batch):
    size, f = drawn
    generator = torch.Generator().manual_seed(size)
    u0 = torch.randn(*batch, size, dtype=torch.float64, generator=generator).requires_grad_()
    p = {
        "w": torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_(),
        "m": torch.randn(size, size, dtype=torch.float64, generator=generator).requires_grad_(),
    }
    fused, plain = (solved(name, f, u0, (0.0, 0.5), p, saveat=0.25, reltol=1e-5) for name in ("fused", "torch"))
    assert torch.equal(fused.stats.accepted_steps, plain.stats.accepted_steps)
    assert torch.allclose(fused.u, plain.u, rtol=1e-10, atol=1e-12)
    found = [
        torch.autograd.grad((sol.u**2).sum(), [u0, *p.values()], allow_unused=True, materialize_grads=True)
        for sol in (fused, plain)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm()) <= 1e-10 * max(1e-3, float(theirs.norm()))


class TestSource:
    def test_the_program_of_a_problem_can_be_read(self):
        prob = ude.ODEProblem(lotka_volterra, [1.0, 1.0], (0.0, 1.0), p=LV)
        text = ude.fused.source(prob, ude.Tsit5())
        assert "ude_forward" in text
        assert "ude_pullback" not in text
        with_gradient = ude.remake(prob, p=leaves_of(LV))
        assert "ude_pullback" in ude.fused.source(with_gradient, ude.Tsit5())

    def test_another_process_neither_traces_nor_compiles(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import sys, ude\n"
            "import ude.engines.fused.engine as engine\n"
            "def f(u, p, t):\n    return -p.a * u\n"
            "if sys.argv[1] == 'second':\n    engine.trace_program = engine.compile_kernel = None\n"
            "sol = ude.solve(ude.ODEProblem(f, [1.0], (0.0, 1.0), p={'a': 2.0}), ude.Tsit5(), engine='fused')\n"
            "print(sol.stats.engine, float(sol.u[-1, 0]))\n"
        )
        environment = {**os.environ, "UDE_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
        first, second = (
            subprocess.run(
                [sys.executable, str(script), name], env=environment, capture_output=True, text=True, check=True
            ).stdout
            for name in ("first", "second")
        )
        assert first == second
        assert first.startswith("fused 0.135")
