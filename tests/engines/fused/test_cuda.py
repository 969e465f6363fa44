"""The CUDA program: its text, that nvcc takes it, its logic on a CPU thread by thread against the C program."""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ude
from tests.problems_for_tests import predator_prey
from tests.stiff_problems_for_tests import hires_problem, van_der_pol
from ude.compile.build import why_no_compiler
from ude.engines.fused.kernel import ARGUMENTS
from ude.errors import InputError
from ude.solving import SolveOptions

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")

HERE = Path(__file__).parent


class OnCpu:
    """A CUDA program compiled as C++; a grid of 3 blocks of 4 threads unless told otherwise."""

    def __init__(self, text: str, folder: Path) -> None:
        compiler = shutil.which("g++") or shutil.which("c++")
        if compiler is None:
            pytest.skip("there is no C++ compiler")
        (folder / "kernel.cu").write_text(text)
        flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-Wno-unknown-pragmas", "-pthread", "-shared", "-fPIC"]
        gradient = ["-DGRADIENT"] if "ude_pullback(" in text else []
        command = [compiler, *flags, *gradient, "-x", "c++", "-I", str(folder), str(HERE / "cuda_on_cpu.h")]
        library = folder / "kernel.so"
        done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        self.library = ctypes.CDLL(str(library))
        for name in ("row_size", "uniform_size", "sums_size", "arguments_size"):
            getattr(self.library, name).restype = ctypes.c_int64
        self.dtype = torch.float64 if "typedef double real;" in text else torch.float32

    def solve(
        self,
        prob: ude.ODEProblem,
        times: Tensor,
        shared: Sequence[Tensor] = (),
        own: Sequence[Tensor] = (),
        *,
        reltol: float,
        abstol: float,
        grad: Tensor | None = None,
        capacity: int = 500,
        grid: tuple[int, int] = (3, 4),
    ) -> dict[str, Tensor]:
        dtype, u0 = self.dtype, prob.u0.detach().reshape(-1, prob.u0.shape[-1]).contiguous()
        count, states = u0.shape
        shared, own = ([one.detach().to(dtype).contiguous() for one in part] for part in (shared, own))
        t0, t1 = (torch.as_tensor(t, dtype=dtype).expand(count).contiguous() for t in prob.tspan)
        out = {
            "values": torch.zeros(count, len(times), states, dtype=dtype),
            "t_end": torch.zeros(count, dtype=dtype),
            "u_end": torch.zeros(count, states, dtype=dtype),
            "grad_u0": torch.zeros(count, states, dtype=dtype),
            "grad_shared": torch.zeros(max(1, sum(one.numel() for one in shared)), dtype=dtype),
            "uniform": torch.zeros(self.library.uniform_size(), dtype=dtype),
            "du": torch.zeros(count, states, dtype=dtype),
        }
        counts = {
            name: torch.zeros(count, dtype=torch.int64)
            for name in ("code", "accepted", "rejected", "calls", "jacobians")
        }
        tolerances = [torch.full((states,), x, dtype=dtype) for x in (abstol, reltol)]
        own_grads = [torch.zeros_like(one) for one in own]
        pointers = [
            (ctypes.c_void_p * max(1, len(part)))(*[one.data_ptr() for one in part])
            for part in (shared, own, own_grads)
        ]
        a = ARGUMENTS[dtype](
            saves=len(times), saveat_stride=0, dt=0.0, dtmin=0.0, dtmax=math.inf, maxiters=10_000, adaptive=1
        )
        assert ctypes.sizeof(a) == self.library.arguments_size()
        a.keep = int(grad is not None)
        held = {"u0": u0, "t0": t0, "t1": t1, "saveat": times, "abstol": tolerances[0], "reltol": tolerances[1]}
        for name, tensor in {**out, **counts, **held}.items():
            if name != "du":
                setattr(a, name, tensor.data_ptr())
        a.shared, a.own, a.grad_own = (ctypes.cast(one, ctypes.c_void_p) for one in pointers)
        pointer, number = ctypes.byref(a), ctypes.c_int64
        self.library.run_once(pointer)
        self.library.run_evaluate(pointer, number(count), ctypes.c_void_p(out["du"].data_ptr()), *grid)
        rows = torch.full((capacity * self.library.row_size() * count,), math.nan, dtype=dtype)
        kept = ctypes.c_void_p(rows.data_ptr())
        self.library.run_forward(pointer, number(count), kept, number(capacity), *grid)
        if grad is not None:
            sums = torch.zeros(self.library.sums_size() * grid[0] * grid[1], dtype=dtype)
            cotangents = grad.detach().to(dtype).reshape(out["values"].shape).contiguous()
            a.grad = cotangents.data_ptr()
            summed = ctypes.c_void_p(sums.data_ptr())
            self.library.run_pullback(pointer, number(count), kept, number(capacity), summed, *grid)
        return {**out, **counts, "own": own_grads}  # type: ignore[dict-item]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def own_rates(count: int = 11) -> tuple[ude.ODEProblem, list[Tensor], list[Tensor]]:
    """Lotka-Volterra with a leaf of each trajectory's own between two of all."""
    b = (0.5 + torch.rand(count, dtype=torch.float64)).requires_grad_()
    p = {"a": number(1.5), "b": b, "c": number(2.0)}
    u0 = (0.5 + torch.rand(count, 2, dtype=torch.float64)).requires_grad_()
    return ude.ODEProblem(predator_prey, u0, (0.0, 3.0), p), [p["a"], p["c"]], [b]


def network(width: int = 9) -> tuple[ude.ODEProblem, list[Tensor], list[Tensor]]:
    net = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
    net = net.double()
    u0 = torch.rand(7, 2, dtype=torch.float64).requires_grad_()
    prob = ude.ODEProblem(lambda u, p, t: p["net"](u) - u * torch.cos(t).unsqueeze(-1), u0, (0.0, 2.0), {"net": net})
    return prob, list(net.parameters()), []


def stiff() -> tuple[ude.ODEProblem, list[Tensor], list[Tensor]]:
    mu = torch.tensor([1.0, 50.0, 5.0, 200.0, 20.0], dtype=torch.float64, requires_grad=True)
    u0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(5, 1).requires_grad_()
    return ude.ODEProblem(van_der_pol, u0, (0.0, 3.0), {"mu": mu}), [], [mu]


def chemistry() -> tuple[ude.ODEProblem, list[Tensor], list[Tensor]]:
    """Eight states, for which loops over rows are no longer unrolled."""
    prob = ude.remake(hires_problem(), tspan=(0.0, 20.0))
    return ude.remake(prob, u0=prob.u0.repeat(3, 1).requires_grad_()), [], []


CASES = {
    "own rates, Tsit5": (own_rates, ude.Tsit5()),
    "own rates, Vern7": (own_rates, ude.Vern7()),
    "own rates, DP8": (own_rates, ude.methods.DP8()),
    "network, Tsit5": (network, ude.Tsit5()),
    "network in global memory, BS3": (lambda: network(80), ude.methods.BS3()),
    "network, default": (network, None),
    "stiff, KenCarp4": (stiff, ude.KenCarp4()),
    "chemistry, Kvaerno5": (chemistry, ude.methods.Kvaerno5()),
}


@pytest.mark.parametrize("case", CASES)
def test_values_steps_and_gradients_are_those_of_the_c_program(case, tmp_path):
    make, alg = CASES[case]
    prob, shared, own = make()
    times = torch.linspace(float(prob.tspan[0]), float(prob.tspan[1]), 5, dtype=torch.float64)
    times[1] += 0.013  # inside a step, surely
    tolerances = {"reltol": 1e-6, "abstol": 1e-8}
    text = ude.fused.source(prob, alg, SolveOptions(saveat=times, **tolerances), target="cuda")
    assert ("__shared__" in text) is ("global" not in case)
    sol = ude.solve(prob, alg, engine="fused", saveat=times, **tolerances)
    weights = torch.sin(torch.arange(sol.u.numel(), dtype=torch.float64)).view(sol.u.shape)
    expected = torch.autograd.grad((sol.u * weights).sum(), [prob.u0, *shared, *own])
    found = OnCpu(text, tmp_path).solve(prob, times, shared, own, grad=weights, **tolerances)
    assert torch.equal(found["accepted"], sol.stats.accepted_steps)
    assert torch.equal(found["rejected"], sol.stats.rejected_steps)
    assert not bool(found["code"].any())
    close(found["du"], prob.f(prob.u0, prob.p, torch.zeros(len(prob.u0), dtype=torch.float64)), 1e-13)
    close(found["values"], sol.u, 1e-12)
    gradients = [found["grad_u0"], *found["grad_shared"].split([one.numel() for one in shared] or [1]), *found["own"]]
    for ours, theirs in zip([one for one in gradients if shared or one.numel() != 1], expected, strict=True):
        close(ours.reshape(theirs.shape), theirs, 1e-11 if alg is None or alg.name in EXPLICIT else 1e-10)


EXPLICIT = ("Tsit5", "Vern7", "DP8", "BS3")


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert float((ours - theirs.detach()).abs().max()) <= tolerance * float(theirs.detach().abs().max())


def test_float32_is_as_good_as_the_c_program(tmp_path):
    u0 = torch.rand(6, 2).add(0.5)
    p = {"a": torch.tensor(1.5), "b": torch.tensor(1.0), "c": torch.tensor(2.0)}
    prob = ude.ODEProblem(predator_prey, u0, (0.0, 1.0), p)
    times = torch.tensor([0.5, 1.0])
    text = ude.fused.source(prob, ude.Tsit5(), SolveOptions(saveat=times), target="cuda")
    found = OnCpu(text, tmp_path).solve(prob, times, list(p.values()), reltol=1e-3, abstol=1e-6)
    close(found["values"], ude.solve(prob, ude.Tsit5(), engine="fused", saveat=times).u, 1e-5)


def test_the_grid_changes_no_value_and_no_order_of_a_threads_sums(tmp_path):
    prob, shared, own = own_rates(23)
    times = torch.tensor([1.0, 3.0], dtype=torch.float64)
    program = OnCpu(ude.fused.source(prob, ude.Tsit5(), SolveOptions(saveat=times), target="cuda"), tmp_path)
    weights = torch.ones(23, 2, 2, dtype=torch.float64)
    found = [
        program.solve(prob, times, shared, own, grad=weights, reltol=1e-3, abstol=1e-6, grid=grid)
        for grid in ((1, 1), (2, 5), (1, 64), (1, 64))
    ]
    for name in ("values", "u_end", "accepted", "grad_u0"):
        assert all(torch.equal(one[name], found[0][name]) for one in found[1:])
    assert torch.equal(found[2]["grad_shared"], found[3]["grad_shared"])
    close(found[1]["grad_shared"], found[0]["grad_shared"], 1e-13)


def test_endings_are_told_apart(tmp_path):
    """A blow-up, a span of no length, a span backward, and one that ends well."""
    ends = torch.tensor([2.0, 0.0, -1.0, 0.5], dtype=torch.float64)
    prob = ude.ODEProblem(lambda u, p, t: u * u, torch.ones(4, 1, dtype=torch.float64), (0.0, ends))
    times = torch.tensor([0.0], dtype=torch.float64)
    program = OnCpu(
        ude.fused.source(prob, ude.Tsit5(), SolveOptions(saveat=ends.unsqueeze(-1)), target="cuda"), tmp_path
    )
    found = program.solve(prob, times, reltol=1e-6, abstol=1e-9)
    sol = ude.solve(prob, ude.Tsit5(), engine="fused", saveat=ends.unsqueeze(-1), reltol=1e-6, abstol=1e-9)
    assert found["code"].tolist() == [int(code) for code in sol.retcode]
    assert found["code"].tolist()[1:] == [0, 0, 0]
    assert found["accepted"].tolist() == sol.stats.accepted_steps.tolist()
    torch.testing.assert_close(found["u_end"][1:, 0], 1 / (1 - ends[1:]), rtol=1e-5, atol=0)


def test_a_trajectory_with_more_rows_than_there_is_room_for_says_so(tmp_path):
    prob, shared, own = own_rates(5)
    times = torch.tensor([0.01, 3.0], dtype=torch.float64)
    program = OnCpu(ude.fused.source(prob, ude.Tsit5(), SolveOptions(saveat=times), target="cuda"), tmp_path)
    weights = torch.ones(5, 2, 2, dtype=torch.float64)
    enough = program.solve(prob, times, shared, own, grad=weights, reltol=1e-3, abstol=1e-6)["accepted"]
    short = program.solve(
        prob, times, shared, own, grad=weights, reltol=1e-3, abstol=1e-6, capacity=int(enough.min()), grid=(1, 2)
    )
    assert torch.equal(short["code"] == -2, enough > enough.min())
    assert 0 < int((short["code"] == -2).sum()) < 5


def test_a_trajectory_that_turns_stiff_gives_up_alone(tmp_path):
    mu = torch.tensor([1.0, 300.0, 2.0], dtype=torch.float64)
    u0 = torch.tensor([2.0, 0.0], dtype=torch.float64).repeat(3, 1)
    prob = ude.ODEProblem(van_der_pol, u0, (0.0, 3.0), {"mu": mu})
    times = torch.tensor([3.0], dtype=torch.float64)
    program = OnCpu(ude.fused.source(prob, options=SolveOptions(saveat=times), target="cuda"), tmp_path)
    found = program.solve(prob, times, own=[mu], reltol=1e-3, abstol=1e-6, grid=(1, 1))
    assert found["code"].tolist() == [0, -1, 0]


class TestText:
    @pytest.mark.parametrize("case", CASES)
    def test_it_is_whole_and_has_nothing_that_only_c_has(self, case):
        make, alg = CASES[case]
        text = ude.fused.source(make()[0], alg, target="cuda")
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
        for opening, closing in ("{}", "()", "[]"):
            assert code.count(opening) == code.count(closing)
        for kernel in ("ude_once", "ude_evaluate", "ude_forward", "ude_pullback", "ude_total"):
            assert len(re.findall(rf"__global__[^;{{]*\b{kernel}\(", code)) == 1
        assert "__launch_bounds__(THREADS)" in code
        for stranger in (
            "malloc",
            "memalign",
            "free(",
            "__attribute__",
            "asm",
            "EXPORT",
            "vector_size",
            "ALIGNED",
            "w_t",
        ):
            assert stranger not in code
        assert not re.search(r"(?<!_)restrict\b", code)
        # every function and every table is the device's
        heads = [line for line in code.splitlines() if line.startswith(("static", "SEPARATE", "void", "real", "int"))]
        assert all(line.startswith("SEPARATE __device__ static") for line in heads)

    def test_without_a_gradient_there_is_no_reverse_sweep(self):
        prob = ude.ODEProblem(predator_prey, [1.0, 1.0], (0.0, 1.0), {"a": 1.0, "b": 1.0, "c": 1.0})
        assert "ude_pullback(" not in ude.fused.source(prob, ude.Tsit5(), target="cuda")

    def test_another_target_is_refused(self):
        prob = ude.ODEProblem(predator_prey, [1.0, 1.0], (0.0, 1.0), {"a": 1.0, "b": 1.0, "c": 1.0})
        with pytest.raises(InputError, match=r"no such target.*'c' or 'cuda'"):
            ude.fused.source(prob, ude.Tsit5(), target="metal")


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


@pytest.mark.skipif(nvcc() is None, reason="there is no nvcc")
@pytest.mark.parametrize("case", CASES)
def test_nvcc_takes_it(case, tmp_path):
    make, alg = CASES[case]
    (tmp_path / "kernel.cu").write_text(ude.fused.source(make()[0], alg, target="cuda"))
    command = [str(nvcc()), "-ptx", "-Werror", "all-warnings", "kernel.cu", "-o", "kernel.ptx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]
    text = (tmp_path / "kernel.ptx").read_text()
    assert {"ude_once", "ude_forward", "ude_pullback", "ude_total"} <= set(re.findall(r"\.entry (\w+)\(", text))
