"""Loss and gradient of a Lotka-Volterra UDE, in the torch engine and in its peers, side by side in one process.

float64, tolerance 1e-6, one thread, a 2-32-32-2 tanh network, 31 saves on 0..3, for 1 and for 256 trajectories. The
contenders take turns, so that a machine that changes its speed changes all of them; ratios are of the fastest rounds,
since other work on the machine only ever adds. At the same tolerance the contenders' errors differ twentyfold, so ude
runs a second time at the loosest tolerance with which its largest error is no larger than torchode's. "ude's torch
engine" is what runs where nothing can be compiled; "ude as it comes" is engine="auto", which after some solves of the
same right-hand side runs a compiled kernel, here after it was compiled.

Run: ``python -m benchmarks.gradient_speed`` (writes benchmarks/gradient_speed.md).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchdiffeq
from torch import Tensor, nn

import ude

TOLERANCE = 1e-6
SAVES = torch.linspace(0.0, 3.0, 31, dtype=torch.float64)
OURS, PEER = "ude's torch engine", "torchode, backprop"
AUTO = "ude as it comes"
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


class Plain(nn.Module):
    """The same field, without the count of calls that would be another function every time."""

    def __init__(self, field: Field) -> None:
        super().__init__()
        self.net, self.rates = field.net, field.rates

    def forward(self, u: Tensor, p: object, t: Tensor) -> Tensor:
        return self.rates * u + 0.3 * self.net(u)


def of_ude(field: nn.Module, tolerance: float, engine: str = "torch") -> Run:
    def run(u0: Tensor) -> Tensor:
        prob = ude.ODEProblem(field, u0[0] if len(u0) == 1 else u0, (0.0, 3.0))
        sol = ude.solve(prob, ude.Tsit5(), saveat=SAVES, abstol=tolerance, reltol=tolerance, engine=engine)
        return sol.u.reshape(len(u0), len(SAVES), 2)

    return run


def let_it_compile(field: Plain, u0: Tensor, most: int = 1000) -> None:
    """Solve as often as engine="auto" waits for before it compiles.

    Raises:
        RuntimeError: It never does.
    """
    prob = ude.ODEProblem(field, u0[0] if len(u0) == 1 else u0, (0.0, 3.0))
    for _ in range(most):
        sol = ude.solve(prob, ude.Tsit5(), saveat=SAVES, abstol=TOLERANCE, reltol=TOLERANCE)
        if sol.stats.engine == "fused":
            return
    raise RuntimeError(f"engine='auto' does not compile this: {sol.stats.why_not}")


def contenders(field: Field) -> dict[str, Run]:
    """Each returns the states at the saves, (batch, time, state), with a graph."""

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
        OURS: of_ude(field, TOLERANCE),
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

    found[PEER] = run_torchode
    return found


def gradient(field: Field, run: Run, u0: Tensor) -> tuple[float, Tensor]:
    loss = (run(u0) ** 2).mean()
    parts = torch.autograd.grad(loss, list(field.net.parameters()))
    return float(loss.detach()), torch.cat([part.reshape(-1) for part in parts])


@dataclass(frozen=True)
class Row:
    """What one contender took: milliseconds, calls of f in all, largest error of a save, difference of the gradient."""

    name: str
    median: float
    least: float
    calls: int
    error: float
    difference: float


def starts(batch: int) -> Tensor:
    u0 = torch.tensor([[0.44249296, 4.6280594]], dtype=torch.float64).repeat(batch, 1)
    generator = torch.Generator().manual_seed(1)
    return u0 + (0.1 * torch.randn(batch, 2, dtype=torch.float64, generator=generator) if batch > 1 else 0.0)


def loosest(field: Field, u0: Tensor, exact: Tensor, error: float) -> float:
    """The loosest tolerance, in steps of a quarter, with which our largest error stays within `error`."""
    tolerance = TOLERANCE
    with torch.no_grad():
        while float((of_ude(field, 1.25 * tolerance)(u0) - exact).abs().max()) <= error:
            tolerance *= 1.25
    return tolerance


def measure(batch: int, repeats: int) -> list[Row]:
    field, u0 = Field(), starts(batch)
    runs = contenders(field)
    with torch.no_grad():
        prob = ude.ODEProblem(field, u0, (0.0, 3.0))
        exact = ude.solve(prob, ude.methods.Vern9(), saveat=SAVES, abstol=1e-13, reltol=1e-13).u
        errors = {name: float((run(u0) - exact).abs().max()) for name, run in runs.items()}
    if PEER in runs:
        tolerance = loosest(field, u0, exact, errors[PEER])
        name = f"ude at torchode's error (tolerance {tolerance:.1e})"
        runs[name] = of_ude(field, tolerance)
        errors[name] = float((runs[name](u0).detach() - exact).abs().max())
    plain = Plain(field)
    let_it_compile(plain, u0)
    kernels = {AUTO: TOLERANCE} | ({f"{AUTO}, at torchode's error": tolerance} if PEER in runs else {})
    for name, wished in kernels.items():
        runs[name] = of_ude(plain, wished, "auto")
        errors[name] = float((runs[name](u0).detach() - exact).abs().max())
    calls, differences = {}, {}
    _, reference = gradient(field, of_ude(field, 1e-11), u0)
    for name, run in runs.items():
        field.calls = 0
        _, found = gradient(field, run, u0)
        calls[name] = field.calls
        differences[name] = float((found - reference).norm() / reference.norm())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            gradient(field, run, u0)
            times[name].append(1e3 * (time.perf_counter() - began))
    return [
        Row(name, statistics.median(times[name]), min(times[name]), calls[name], errors[name], differences[name])
        for name in runs
    ]


def engine_overhead(batch: int, repeats: int) -> tuple[float, float]:
    """Least time of a forward solve in ms, and the share of it that is not spent in f."""
    field, u0 = Field(), starts(batch)
    prob = ude.ODEProblem(field, u0[0] if batch == 1 else u0, (0.0, 3.0))
    totals, insides = [], []
    with torch.no_grad():
        for _ in range(repeats):
            sol = ude.solve(prob, ude.Tsit5(), saveat=SAVES, abstol=TOLERANCE, reltol=TOLERANCE, engine="torch")
            totals.append(sol.stats.seconds)
            began = time.perf_counter()
            for _ in range(sol.stats.nf):
                field(u0, None, SAVES[0])
            insides.append(time.perf_counter() - began)
    return 1e3 * min(totals), 1 - min(insides) / min(totals)


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| | fastest ms | median ms | over ude's torch engine | calls of f | largest error | gradient differs by |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    return lines + [
        f"| {row.name} | {row.least:.1f} | {row.median:.1f} | {row.least / rows[0].least:.2f} | {row.calls or ''} |"
        f" {row.error:.1e} | {row.difference:.1e} |"
        for row in rows
    ]


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
        lines += [f"## {batch} trajector{'y' if batch == 1 else 'ies'}", "", *table(rows), ""]
        least = {row.name: row.least for row in rows}
        if PEER in least:
            of_torch = next(row.least for row in rows if row.name.startswith("ude at torchode's error"))
            for own, which in ((of_torch, OURS), (rows[-1].least, AUTO)):
                lines += [f"At torchode's error, {which}: {least[PEER] / own:.2f} times as fast as torchode (bar 2), "]
                lines[-1] += f"{least['torchdiffeq, adjoint'] / own:.1f} times torchdiffeq's adjoint (bar 5)."
                lines += [""]
        total, share = engine_overhead(batch, repeats)
        lines += [
            f"A forward solve of the torch engine takes {total:.1f} ms; {100 * share:.0f} % of it is not spent in f.",
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
