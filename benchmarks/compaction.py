"""What a few stiff trajectories cost a large batch.

10 000 trajectories, 1 % of which run ten times as fast and so need about ten times the steps. Wall time of a solve
(and of the gradient of its end by the initial states and rates) relative to the same batch without fast ones; "mean" is
what the mean number of tried steps would make it, "whole batch" the solve whose finished trajectories stay in it.
One thread, float64; a single round each, the three taking turns.

Run: ``python -m benchmarks.compaction`` (writes benchmarks/compaction.md; ``--count 2000`` for a quick look).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import ude
from ude.engines.torch import batches

EVERY, FASTER = 100, 10.0


def lotka_volterra(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return p.rate.unsqueeze(-1) * torch.stack([1.5 * x - x * y, x * y - 3.0 * y], -1)


def with_a_network(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return lotka_volterra(u, p, t) + 0.01 * p.net(u)


def van_der_pol(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, v = u.unbind(-1)
    return p.rate.unsqueeze(-1) * torch.stack([v, 20.0 * (1 - x**2) * v - x], -1)


@dataclass(frozen=True)
class Case:
    """A right-hand side, a method, and the length of the span."""

    name: str
    f: Callable[..., Tensor]
    alg: Any
    end: float
    gradient: bool


CASES = (
    Case("Lotka-Volterra, Tsit5", lotka_volterra, ude.Tsit5(), 2.0, True),
    Case("the same with a 2-32-32-2 network, Tsit5", with_a_network, ude.Tsit5(), 1.0, True),
    Case("van der Pol, mu = 20, Rodas5P", van_der_pol, ude.Rodas5P(), 1.0, False),
)


@dataclass(frozen=True)
class Run:
    """Seconds of the forward solve and of the gradient, and steps tried by a trajectory: mean and most."""

    forward: float
    gradient: float
    mean_steps: float
    most_steps: int


def run(case: Case, count: int, *, fast: bool) -> Run:
    """Solve one batch, with or without fast trajectories."""
    rate = torch.ones(count, dtype=torch.float64)
    if fast:
        rate[::EVERY] = FASTER
    u0 = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    net.requires_grad_(False)
    rate.requires_grad_(case.gradient)
    u0.requires_grad_(case.gradient)
    prob = ude.ODEProblem(case.f, u0, (0.0, case.end), dict(rate=rate, net=net))
    began = time.perf_counter()
    sol = ude.solve(prob, case.alg, saveat=[case.end], abstol=1e-6, reltol=1e-6)
    forward = time.perf_counter() - began
    began = time.perf_counter()
    if case.gradient:
        torch.autograd.grad(sol.u.sum(), (u0, rate))
    steps = (sol.stats.accepted_steps + sol.stats.rejected_steps).double()
    return Run(forward, time.perf_counter() - began, float(steps.mean()), int(steps.max()))


def main(count: int = 10_000) -> str:
    """Measure, write the table and return it."""
    torch.set_num_threads(1)
    lines = ["# What a few stiff trajectories cost a large batch", ""]
    lines += [(__doc__ or "").split("\n\n")[1].replace("\n", " "), ""]
    lines += [
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, {count} trajectories.",
        "",
        "| | none fast, s | mean | compacted | whole batch | gradient: none fast, s | compacted | whole batch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in CASES:
        run(case, 100, fast=True)
        calm, compacted = run(case, count, fast=False), run(case, count, fast=True)
        with patch.object(batches, "may_compact", lambda spec: False):
            whole = run(case, count, fast=True)
        cells = [f"{calm.forward:.2f}", f"{compacted.mean_steps / calm.mean_steps:.2f}"]
        cells += [f"{item.forward / calm.forward:.2f}" for item in (compacted, whole)]
        if case.gradient:
            cells += [f"{calm.gradient:.2f}"]
            cells += [f"{item.gradient / calm.gradient:.2f}" for item in (compacted, whole)]
        else:
            cells += ["", "", ""]
        lines.append(f"| {case.name} (most steps {calm.most_steps}, then {whole.most_steps}) | {' | '.join(cells)} |")
    text = "\n".join([*lines, ""])
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    main(parser.parse_args().count)
