"""Kernels of methods that switch: the explicit method with the torch engine's sense of stiffness, and who goes on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ude
from tests.problems_for_tests import predator_prey
from tests.stiff_problems_for_tests import robertson_problem, van_der_pol, van_der_pol_problem
from ude.compile.build import why_no_compiler
from ude.engines.torch.engine import TorchEngine
from ude.errors import EngineRefused

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")


def rates() -> dict[str, Tensor]:
    return {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in (("a", 1.5), ("b", 1.0), ("c", 3.0))
    }


def gradients(sol: ude.Solution, wanted: list[Tensor]) -> list[Tensor]:
    weights = torch.sin(torch.arange(sol.u.numel(), dtype=sol.u.dtype)).view(sol.u.shape)
    return list(torch.autograd.grad((sol.u * weights).sum(), wanted))


class TestNothingStiff:
    @pytest.mark.parametrize(
        "alg",
        [
            None,
            ude.AutoTsit5(ude.KenCarp4()),
            ude.methods.AutoVern7(ude.Rodas5P()),
            ude.methods.AutoSwitch(ude.methods.DP5(), ude.methods.TRBDF2()),
        ],
        ids=lambda alg: "default" if alg is None else alg.name,
    )
    @pytest.mark.parametrize("batch", [(), (7,)])
    def test_steps_values_and_gradients_are_the_torch_engines(self, alg, batch):
        p, u0 = rates(), torch.rand(*batch, 2, dtype=torch.float64).add(0.5).requires_grad_()
        prob = ude.ODEProblem(predator_prey, u0, (0.0, 6.0), p)
        fused, plain = (ude.solve(prob, alg, engine=name, saveat=0.7, reltol=1e-6) for name in ("fused", "torch"))
        assert (fused.stats.engine, fused.stats.algorithm) == ("fused", plain.stats.algorithm)
        assert torch.equal(fused.stats.accepted_steps, plain.stats.accepted_steps)
        assert torch.equal(fused.stats.rejected_steps, plain.stats.rejected_steps)
        assert torch.equal(fused.stats.switches, plain.stats.switches)
        assert not bool(fused.stats.switches.any())
        torch.testing.assert_close(fused.u, plain.u, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(fused(2.34), plain(2.34), rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(*(gradients(sol, [u0, *p.values()]) for sol in (fused, plain)), strict=True):
            assert float((ours - theirs).norm()) <= 1e-10 * float(theirs.norm())

    def test_auto_fuses_the_default_algorithm_once_it_was_called_often_enough(self):
        prob = ude.ODEProblem(predator_prey, [1.0, 1.0], (0.0, 200.0), rates())
        sols = [ude.solve(prob, saveat=50.0) for _ in range(4)]
        assert [sol.stats.engine for sol in sols] == ["torch", "torch", "fused", "fused"]
        assert {sol.stats.algorithm for sol in sols} == {"AutoTsit5(Rodas5P)"}
        assert len({int(sol.stats.accepted_steps) for sol in sols}) == 1

    def test_a_network_is_trained_by_the_default_algorithm_with_kernels(self):
        net = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 2)).double()
        prob = ude.ODEProblem(lambda u, p, t: p["net"](u) - u, torch.rand(5, 2).double(), (0.0, 2.0), {"net": net})
        found = []
        for engine in ("fused", "torch"):
            sol = ude.solve(prob, engine=engine, saveat=0.5)
            assert sol.stats.engine == engine
            found.append(gradients(sol, list(net.parameters())))
        for ours, theirs in zip(*found, strict=True):
            assert float((ours - theirs).norm()) <= 1e-10 * float(theirs.norm())


class TestStiffness:
    def test_it_is_found_where_and_when_the_torch_engine_finds_it(self, monkeypatch):
        """Some of these are never stiff, and some only for fewer steps in a row than a change takes."""
        switched: list[float | None] = []
        run = TorchEngine.forward

        def spy(engine, spec, u0, p):
            result = run(engine, spec, u0, p)
            implicit = result.record.implicit
            switched.append(None if implicit is None else float(result.record.t[implicit.index(True), 0]))
            return result

        monkeypatch.setattr(TorchEngine, "forward", spy)
        answers = []
        for most in (0, 3, 10, 16):
            for mu in (0.5, 3.0, 5.0, 6.0, 7.0, 9.0, 14.0, 40.0):
                prob = ude.ODEProblem(van_der_pol, [2.0, 0.0], (0.0, 12.0), {"mu": mu})
                alg = ude.AutoTsit5(ude.Rodas5P(), maxstiffstep=most)
                ude.solve(prob, alg, engine="torch", saveat=[12.0])
                expected = switched.pop()
                sol = ude.solve(prob, alg, engine="fused", saveat=[12.0])
                if expected is None:
                    assert (sol.stats.engine, sol.stats.why_not, switched) == ("fused", {}, [])
                else:
                    assert (sol.stats.engine, switched.pop()) == ("torch", expected)
                    assert f"turned stiff at t = {expected:.4g}," in sol.stats.why_not["fused"]
                answers.append(expected is None)
        assert 8 <= sum(answers) <= 24

    @pytest.mark.parametrize("engine", ["fused", "auto"])
    def test_a_solve_that_turns_stiff_is_the_torch_engines_and_says_so(self, engine):
        prob = robertson_problem(1e3)
        options = {"saveat": [1.0, 1e3], "reltol": 1e-5, "abstol": 1e-9}
        ude.solve(prob, engine="fused", **options)  # a kernel is there
        found, plain = (ude.solve(prob, engine=name, **options) for name in (engine, "torch"))
        assert found.stats.engine == "torch"
        assert found.stats.why_not["fused"].endswith("and kernels do not switch")
        assert torch.equal(found.u, plain.u)
        assert torch.equal(found.stats.switches, plain.stats.switches)
        assert torch.equal(found(77.0), plain(77.0))
        assert (found.stats.nf, found.stats.njacs) == (plain.stats.nf, plain.stats.njacs)

    def test_gradients_after_handing_on_are_the_torch_engines(self):
        mu = torch.tensor([60.0, 1.0, 90.0, 2.0, 30.0] * 20, dtype=torch.float64, requires_grad=True)
        u0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(100, 1)
        prob = ude.ODEProblem(van_der_pol, u0, (0.0, 30.0), {"mu": mu})
        for _ in range(2):  # made ready, and ready
            found, plain = (ude.solve(prob, engine=name, saveat=10.0) for name in ("fused", "torch"))
            assert found.stats.engine == "torch"
            assert torch.equal(gradients(found, [mu])[0], gradients(plain, [mu])[0])
            assert torch.equal(found(17.0), plain(17.0))

    @pytest.mark.parametrize(
        "sensealg",
        [ude.InterpolatingAdjoint(), ude.ForwardSensitivity(), ude.sensitivity.Autograd()],
        ids=lambda s: s.name,
    )
    def test_other_sensitivities_run_on_what_was_handed_on(self, sensealg):
        mu = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
        prob = ude.ODEProblem(van_der_pol, [2.0, 0.0], (0.0, 20.0), {"mu": mu})
        found, plain = (ude.solve(prob, engine=name, saveat=10.0, sensealg=sensealg) for name in ("fused", "torch"))
        assert found.stats.engine == "torch"
        assert torch.equal(gradients(found, [mu])[0], gradients(plain, [mu])[0])

    def test_auto_compiles_nothing_for_what_has_always_turned_stiff(self, monkeypatch):
        monkeypatch.setattr("ude.engines.fused.engine.PATIENCE", 100)
        prob = van_der_pol_problem(1e3, 2000.0)
        for _ in range(2):
            sol = ude.solve(prob, saveat=[2000.0])
        assert int(sol.stats.switches) > 0
        assert sol.stats.why_not["fused"].startswith("a kernel is compiled once")

    def test_methods_that_begin_with_the_implicit_one_are_refused(self):
        alg = ude.AutoTsit5(ude.Rodas5P(), stiffalgfirst=True)
        with pytest.raises(EngineRefused, match="starts with its implicit method"):
            ude.solve(ude.ODEProblem(predator_prey, [1.0, 1.0], (0.0, 1.0), rates()), alg, engine="fused")
