"""Loss and gradient of a Lotka-Volterra UDE, in the torch engine and in its peers, side by side in one process.

float64, tolerance 1e-6, one thread, a 2-32-32-2 tanh network, 31 saves on 0..3, for 1 and for 256 trajectories. The
contenders take turns, so that a machine that changes its speed changes all of them; medians and their ratios are
reported, and the losses and gradients are compared before any time is.

Run: ``python -m benchmarks.gradient_speed`` (writes benchmarks/gradient_speed.md).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchdiffeq
from torch import Tensor, nn

import ude

TOLERANCE = 1e-6
SAVES = torch.linspace(0.0, 3.0, 31, dtype=torch.float64)
Run = Callable[[Tensor], Tensor]


class Field(nn.Module):
    """dx = 1.3 x + N1(x, y), dy = -1.8 y + N2(x, y)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)).double()
        self.register_buffer("rates", torch.tensor([1.3, -1.8], dtype=torch.float64))
        self.calls = 0

    def forward(self, u: Tensor, p: object, t: Tensor) -> Tensor:
        self.calls += 1
        return self.rates * u + 0.3 * self.net(u)


def contenders(field: Field) -> dict[str, Run]:
    """Each returns the states at the saves, (batch, time, state), with a graph."""

    def of_ude(sensealg: ude.sensitivity.SensitivityAlgorithm) -> Run:
        def run(u0: Tensor) -> Tensor:
            prob = ude.ODEProblem(field, u0[0] if len(u0) == 1 else u0, (0.0, 3.0))
            u = ude.solve(prob, ude.Tsit5(), saveat=SAVES, abstol=TOLERANCE, reltol=TOLERANCE, sensealg=sensealg).u
            return u.reshape(len(u0), len(SAVES), 2)

        return run

    def of_torchdiffeq(integrate: Callable[..., Tensor]) -> Run:
        class System(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.field = field

            def forward(self, t: Tensor, u: Tensor) -> Tensor:
                return self.field(u, None, t)

        system = System()

        def run(u0: Tensor) -> Tensor:
            return integrate(system, u0, SAVES, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5").transpose(0, 1)

        return run

    found: dict[str, Run] = {
        "ude, DiscreteAdjoint": of_ude(ude.DiscreteAdjoint()),
        "torchdiffeq, backprop": of_torchdiffeq(torchdiffeq.odeint),
        "torchdiffeq, adjoint": of_torchdiffeq(torchdiffeq.odeint_adjoint),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchode
        except ImportError as error:
            print(f"torchode is left out: {error}")
            return found
        term = torchode.ODETerm(lambda t, u: field(u, None, t))
        stepper = torchode.Tsit5(term=term)
        controller = torchode.IntegralController(atol=TOLERANCE, rtol=TOLERANCE, term=term)
        adjoint = torchode.AutoDiffAdjoint(stepper, controller)

    def run_torchode(u0: Tensor) -> Tensor:
        problem = torchode.InitialValueProblem(y0=u0, t_eval=SAVES.expand(len(u0), -1))
        result: Tensor = adjoint.solve(problem).ys
        return result

    found["torchode, backprop"] = run_torchode
    return found


def gradient(field: Field, run: Run, u0: Tensor) -> tuple[float, Tensor]:
    loss = (run(u0) ** 2).mean()
    parts = torch.autograd.grad(loss, list(field.net.parameters()))
    return float(loss.detach()), torch.cat([part.reshape(-1) for part in parts])


def measure(batch: int, repeats: int) -> list[tuple[str, float, float, int, float]]:
    """Rows of (name, median ms, minimum ms, calls of f, largest relative difference of the gradient)."""
    field = Field()
    generator = torch.Generator().manual_seed(1)
    u0 = torch.tensor([[0.44249296, 4.6280594]], dtype=torch.float64).repeat(batch, 1)
    u0 = u0 + (0.1 * torch.randn(batch, 2, dtype=torch.float64, generator=generator) if batch > 1 else 0.0)
    runs = contenders(field)
    calls, differences = {}, {}
    _, exact = gradient(field, runs["ude, DiscreteAdjoint"], u0)
    for name, run in runs.items():
        field.calls = 0
        _, found = gradient(field, run, u0)
        calls[name] = field.calls
        differences[name] = float((found - exact).norm() / exact.norm())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            gradient(field, run, u0)
            times[name].append(1e3 * (time.perf_counter() - began))
    return [(name, statistics.median(times[name]), min(times[name]), calls[name], differences[name]) for name in runs]


def engine_overhead(repeats: int) -> tuple[float, float]:
    """Time of a forward solve of one trajectory, and the share of it that is not spent in f."""
    field = Field()
    u0 = torch.tensor([0.44249296, 4.6280594], dtype=torch.float64)
    prob = ude.ODEProblem(field, u0, (0.0, 3.0))
    totals, shares = [], []
    for _ in range(repeats):
        with torch.no_grad():
            sol = ude.solve(prob, ude.Tsit5(), saveat=SAVES, abstol=TOLERANCE, reltol=TOLERANCE)
            began = time.perf_counter()
            for _ in range(sol.stats.nf):
                field(u0, None, SAVES[0])
            inside = time.perf_counter() - began
        totals.append(1e3 * sol.stats.seconds)
        shares.append(1 - inside / sol.stats.seconds)
    return statistics.median(totals), statistics.median(shares)


def main(repeats: int = 15) -> str:
    """Measure, write the table and return it."""
    torch.set_num_threads(1)
    lines = ["# Loss and gradient of a Lotka-Volterra UDE", "", (__doc__ or "").split("\n\n")[1].replace("\n", " "), ""]
    lines += [
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {repeats} rounds.",
        "",
    ]
    for batch in (1, 256):
        rows = measure(batch, repeats)
        base = rows[0][1]
        lines += [f"## {batch} trajector{'y' if batch == 1 else 'ies'}", ""]
        lines += ["| | median ms | fastest ms | ratio to ude | calls of f | gradient differs by |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {name} | {median:.1f} | {least:.1f} | {median / base:.2f} | {count} | {difference:.1e} |"
            for name, median, least, count, difference in rows
        ]
        lines.append("")
    total, share = engine_overhead(repeats)
    lines += [
        f"A forward solve of one trajectory takes {total:.1f} ms; {100 * share:.0f} % of it is not spent in f.",
        "",
    ]
    text = "\n".join(lines)
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    main(parser.parse_args().repeats)
