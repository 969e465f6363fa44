"""The fused engine beside its peers: gradients, ensembles, compile times; medians and ratios of one run.

float64, tolerance 1e-6 unless said, one core (the process is bound to it). The contenders of a case take turns, so that
a machine that changes its speed changes all of them. Ratios are of CPU time, which other people's work on the same
machine disturbs least; wall time stands beside it. diffrax is jitted and compiled before it is timed.

Run: ``python -m benchmarks.fused_speed`` (writes benchmarks/fused_speed.json, .md and .png); ``--quick`` for small
ensembles and few rounds, ``--long`` for many rounds and slow peers in large ensembles, ``--only lotka,first`` for some
sections, each of which takes up to three minutes. What was measured of each section last is kept in the .json, of which
the table and the picture are put together, so that sections may run one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import fused_cases as cases
from benchmarks import fused_first, fused_peers, handwritten
from benchmarks.fused_cases import Case
from ude.errors import EngineRefused

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FUSED, TORCH, BY_HAND = "ude, fused", "ude, torch engine", "C by hand"


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds, seconds that a contender may take in a section, and sizes."""

    rounds: int
    seconds: float
    ensembles: tuple[int, ...]
    stiff: int
    widths: tuple[int, ...]


QUICK = Effort(5, 2.0, (100, 1000), 100, (8, 32))
USUAL = Effort(15, 3.0, (100, 1000, 10_000, 100_000, 1_000_000), 10_000, (8, 32, 128, 256))
LONG = Effort(21, 60.0, (100, 1000, 10_000, 100_000, 1_000_000), 10_000, (8, 32, 128, 256))


@dataclass
class Timing:
    """Milliseconds of a call: the first one, and one number a round."""

    first: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    difference: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.cpu)


def bind(cores: Sequence[int]) -> None:
    """Keep this thread, and those that it starts from now on, on these cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def timed(run: Callable[[], Any], calls: int = 1) -> tuple[float, float]:
    """Milliseconds of wall and CPU time of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run()
    return 1e3 * (time.perf_counter() - wall) / calls, 1e3 * (time.process_time() - cpu) / calls


def measure(runs: dict[str, Callable[[], torch.Tensor]], effort: Effort, *, compare: bool = True) -> dict[str, Timing]:
    """Time contenders in turns. Short calls are repeated within a round; long ones get fewer rounds, at least one."""
    timings, calls, reference = {}, {}, None
    for name, run in runs.items():
        began = time.perf_counter()
        found = run()
        timings[name] = Timing(1e3 * (time.perf_counter() - began))
        reference = found if reference is None else reference
        if compare:
            timings[name].difference = float((found - reference).norm() / reference.norm())
        # once more: the first call may have compiled
        quick = timings[name].first < 1e3 * effort.seconds
        calls[name] = min(50, max(1, round(20 / max(timed(run)[0], 1e-3)))) if quick else 1
    for turn in range(effort.rounds):
        for name, run in runs.items():
            timing = timings[name]
            if turn and sum(timing.wall) * calls[name] > 1e3 * effort.seconds:
                continue
            wall, cpu = timed(run, calls[name])
            timing.wall.append(wall)
            timing.cpu.append(cpu)
    return timings


def table(timings: dict[str, Timing], *, unit: str = "gradient differs by") -> list[str]:
    base = timings[FUSED].median if FUSED in timings else next(iter(timings.values())).median
    lines = [
        f"| | CPU ms, median | least | wall ms, median | least | ratio to fused | first call s | rounds | {unit} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in timings.items():
        lines.append(
            f"| {name} | {one.median:.3g} | {min(one.cpu):.3g} | {statistics.median(one.wall):.3g} | "
            f"{min(one.wall):.3g} | {one.median / base:.2f} | {one.first / 1e3:.2f} | {len(one.cpu)} | "
            f"{one.difference:.1e} |"
        )
    return [*lines, ""]


def engines_of(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """The torch engine first, since differences are measured from the first; fused where it can."""
    runs = {TORCH: lambda: case.gradient("torch"), FUSED: lambda: case.gradient("fused")}
    try:
        case.solve("fused")
    except EngineRefused as refusal:
        print(f"not fused: {refusal}")
        del runs[FUSED]
    return runs


def lotka(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Loss and gradient of a Lotka-Volterra UDE, 2-32-32-2 tanh, Tsit5, 31 saves on 0..3"""
    lines, found = [], {}
    for count in (1, 256):
        case = cases.lotka_volterra_case(32, count)
        by_hand = handwritten.gradient_of(
            case.net or torch.nn.Identity(), case.prob.u0.reshape(count, 2), case.saveat, case.reltol
        )
        runs = {**engines_of(case), BY_HAND: lambda by_hand=by_hand: by_hand()[1]}
        runs |= peers_of(case)
        timings = measure(runs, effort)
        title = f"Lotka-Volterra UDE, {count} trajector{'y' if count == 1 else 'ies'}"
        found[title] = timings
        lines += [f"### {count} trajector{'y' if count == 1 else 'ies'}", "", *table(timings)]
        # the gradient of the handwritten program is exact, or it would be no comparison
        if timings[BY_HAND].difference > 1e-10:
            raise ArithmeticError(f"the handwritten gradient differs by {timings[BY_HAND].difference:.1e}")
    return lines, found


def peers_of(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """All peers that are installed."""
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    for make in (_diffrax, fused_peers.torchode_gradients, fused_peers.torchdiffeq_gradients):
        try:
            runs |= make(case)
        except ImportError as error:
            print(f"a peer is left out: {error}")
    return runs


def _diffrax(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """As it comes, and told how few steps there are, which spares its adjoint checkpoints."""
    few = fused_peers.diffrax_gradients(case, max_steps=64, name="diffrax, max_steps=64")
    return fused_peers.diffrax_gradients(case) | few


def threads(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Two threads and one: gradient of the Lotka-Volterra UDE, wall time"""
    if len(CORES) < 2:
        return ["There is one core only.", ""], {}
    lines = ["| trajectories | one thread, wall ms: median, least | two threads | ratio of medians, of least | equal |"]
    lines += ["|---|---|---|---|---|"]
    for count in (256, 1024, 4096):
        case = cases.lotka_volterra_case(32, count)
        times: dict[int, list[float]] = {1: [], 2: []}
        results = {}
        for turn in range(effort.rounds + 1):
            for number in (1, 2):
                bind(CORES[:number])
                torch.set_num_threads(number)
                if not turn:
                    results[number] = case.gradient("fused")
                else:
                    times[number].append(timed(lambda case=case: case.gradient("fused"))[0])
        bind(CORES[:1])
        torch.set_num_threads(1)
        one, two = ((statistics.median(times[n]), min(times[n])) for n in (1, 2))
        same = "bit for bit" if torch.equal(results[1], results[2]) else "NO"
        lines.append(
            f"| {count} | {one[0]:.1f}, {one[1]:.1f} | {two[0]:.1f}, {two[1]:.1f} | "
            f"{one[0] / two[0]:.2f}, {one[1] / two[1]:.2f} | {same} |"
        )
    return [*lines, ""], {}


def gradients(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Gradients of a neural ODE and of a partial differential equation, one trajectory"""
    made = {
        "Spiral, 2-50-2, 30 saves, reltol 1e-6": (cases.spiral_case(1e-6), True),
        "Spiral, reltol 1e-3 and abstol 1e-6 (Julia's defaults)": (cases.spiral_case(1e-3), True),
        "Fisher-KPP, 26 cells, learned reaction": (cases.fisher_case(26), False),
        "Fisher-KPP, 256 cells": (cases.fisher_case(256), False),
    }
    lines, found = [], {}
    for title, (case, small) in made.items():
        runs = engines_of(case)
        try:
            runs |= _diffrax(case) if small else fused_peers.diffrax_gradients(case)
        except ImportError as error:
            print(f"a peer is left out: {error}")
        found[title] = measure(runs, effort)
        lines += [f"### {title}", "", *table(found[title])]
        print("\n".join(lines[-8:]), flush=True)
    return lines, found


def widths(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Where torch overtakes: gradient of the Lotka-Volterra UDE by width of its network"""
    lines = ["| width | trajectories | fused, CPU ms | torch engine | torch/fused | gradients differ by |"]
    lines += ["|---|---|---|---|---|---|"]
    found = {}
    for width in effort.widths:
        for count in (1, 256):
            timings = measure(engines_of(cases.lotka_volterra_case(width, count)), effort)
            fused, plain = timings[FUSED], timings[TORCH]
            lines.append(
                f"| {width} | {count} | {fused.median:.3g} | {plain.median:.3g} | {plain.median / fused.median:.2f} | "
                f"{fused.difference:.1e} |"
            )
            print(lines[-1], flush=True)
            found[f"width {width}, {count}"] = timings
    return [*lines, ""], found


def lorenz(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Lorenz ensembles without gradient, 0..1, rho from 0 to 21: trajectories per CPU second"""
    lines, found = [], {}
    for label, dt in (("adaptive, 1e-6", None), ("fixed steps, dt = 0.001, Tsit5", 1e-3)):
        lines += [f"### {label}", "", "| trajectories | fused | torch engine | diffrax | torch/fused | diffrax/fused |"]
        lines += ["|---|---|---|---|---|---|"]
        slow: set[str] = set()
        for count in effort.ensembles:
            case = cases.lorenz_case(count, dt)
            runs: dict[str, Callable[[], torch.Tensor]] = {
                name: lambda case=case, engine=engine: case.solve(engine).u[..., -1, :]
                for name, engine in ((FUSED, "fused"), (TORCH, "torch"))
            }
            try:
                runs |= {
                    name: lambda run=run: run()[..., -1, :] for name, run in fused_peers.diffrax_ensemble(case).items()
                }
            except ImportError as error:
                print(f"a peer is left out: {error}")
            timings = measure({name: run for name, run in runs.items() if name not in slow}, effort)
            # what takes long now takes ten times as long next time
            slow |= {name for name, one in timings.items() if one.median > 300 * effort.seconds and name != FUSED}
            rates = [1e3 * count / timings[name].median if name in timings else None for name in runs]
            cells = [f"{rate:.3g}" if rate else "not run" for rate in rates]
            ratios = [f"{rates[0] / rate:.1f}" if rate and rates[0] else "" for rate in rates[1:]]
            lines.append(f"| {count} | " + " | ".join([*cells, *[""] * (3 - len(cells)), *ratios]) + " |")
            print(lines[-1], flush=True)
            found[f"Lorenz, {label}, {count}"] = timings
        lines.append("")
    return lines, found


def robertson(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """Robertson with random rates, KenCarp4, 0..1e5, reltol 1e-6, abstol 1e-8, without gradient"""
    case = cases.robertson_case(effort.stiff)
    sol = case.solve("fused")
    runs: dict[str, Callable[[], torch.Tensor]] = {
        name: lambda engine=engine: case.solve(engine).u[:, -1] for name, engine in ((FUSED, "fused"), (TORCH, "torch"))
    }
    try:
        runs |= {name: lambda run=run: run()[:, -1] for name, run in fused_peers.diffrax_ensemble(case).items()}
    except ImportError as error:
        print(f"a peer is left out: {error}")
    timings = measure(runs, effort)
    steps = sol.stats.accepted_steps.double().mean()
    lines = [f"{effort.stiff} trajectories, {float(steps):.0f} steps each.", ""]
    return [*lines, *table(timings, unit="values differ by")], {"Robertson": timings}


def first(effort: Effort) -> tuple[list[str], dict[str, dict[str, Timing]]]:
    """From the first solve to the first result, in a fresh process (after importing torch and ude)"""
    return [*fused_first.table(list(cases.FIRST)), ""], {}


SECTIONS = (lotka, threads, gradients, lorenz, robertson, widths, first)


def draw(found: dict[str, dict[str, Timing]], path: Path) -> None:
    """Bars of the gradients, lines of the ensembles, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = {title: one for title, one in found.items() if not title.startswith(("Lorenz", "Robertson", "width"))}
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.5), gridspec_kw={"width_ratios": [3, 2]})
    names = list(dict.fromkeys(name for one in bars.values() for name in one))
    for i, name in enumerate(names):
        places = [j + (i - len(names) / 2) * 0.8 / len(names) for j, one in enumerate(bars.values()) if name in one]
        heights = [one[name].median for one in bars.values() if name in one]
        left.bar(places, heights, 0.8 / len(names), label=name, align="edge", color=f"C{i}")
    left.set_xticks(range(len(bars)), [title.split(" (")[0].replace(", ", ",\n") for title in bars], fontsize=7)
    left.set_yscale("log")
    left.set_ylabel("loss and gradient, CPU ms (median)")
    left.legend(fontsize=7, ncol=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    series: dict[str, list[tuple[int, float]]] = {}
    for title, timings in found.items():
        if title.startswith("Lorenz"):
            *parts, count = title.split(", ")
            kind = "fixed" if "fixed" in parts[1] else "adaptive"
            for name, one in timings.items():
                series.setdefault(f"{name}, {kind}", []).append((int(count), 1e3 * int(count) / one.median))
    for label, points in series.items():
        name = label.rsplit(", ", 1)[0]
        right.plot(
            *zip(*points, strict=True),
            marker="o",
            linestyle="-" if label.endswith("adaptive") else "--",
            color={FUSED: "C1", TORCH: "C0"}.get(name, "C3"),
            label=label,
        )
    right.set(xscale="log", yscale="log", xlabel="Lorenz trajectories", ylabel="trajectories per CPU second")
    if series:
        right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    told = []
    for name in ("torch", "torchdiffeq", "torchode", "diffrax", "jax"):
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"no {name}")
    return ", ".join(told)


def conditions() -> str:
    """The machine, the releases, and what else the machine did."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    beside = "; other work ran beside it" if load > 1.3 else ""
    return (
        f"{platform.machine()}, {len(CORES)} cores, Python {platform.python_version()}, {_versions()}; load when it "
        f"began {load:.1f}{beside}."
    )


def assemble(measured: dict[str, Any], stem: Path) -> str:
    """Write the table and the picture of everything that was measured, each section as it was measured last."""
    lines = ["# The fused engine beside its peers", "", (__doc__ or "").split("\n\n")[1].replace("\n", " "), ""]
    found: dict[str, dict[str, Timing]] = {}
    shared = {one["conditions"] for one in measured.values()}
    if len(shared) == 1:
        lines += [*shared, ""]
    for section in SECTIONS:
        one = measured.get(section.__name__)
        if one is None:
            continue
        lines += [f"## {(section.__doc__ or '').strip()}", "", *([one["conditions"], ""] if len(shared) > 1 else [])]
        lines += one["lines"]
        for title, timings in one["timings"].items():
            found[title] = {name: Timing(**timing) for name, timing in timings.items()}
    text = "\n".join(lines)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(found, stem.with_suffix(".png"))
    return text


def main(effort: Effort = USUAL, only: Sequence[str] = (), stem: Path | None = None) -> str:
    """Measure all sections or some, write the table and the picture of all, and return the table."""
    unknown = set(only) - {section.__name__ for section in SECTIONS}
    if unknown:
        raise SystemExit(f"no such section: {', '.join(sorted(unknown))}; there are {_names()}")
    bind(CORES[:1])
    torch.set_num_threads(1)
    stem = stem or Path(__file__)
    kept = stem.with_suffix(".json")
    measured = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for section in SECTIONS:
        if only and section.__name__ not in only:
            continue
        now = conditions()
        print(f"== {section.__name__}", flush=True)
        lines, timings = section(effort)
        # after each section, so that an interrupted run has given something
        measured[section.__name__] = {
            "conditions": now,
            "lines": lines,
            "timings": {
                title: {name: asdict(timing) for name, timing in one.items()} for title, one in timings.items()
            },
        }
        kept.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        print("\n".join(lines), flush=True)
    return assemble(measured, stem)


def _names() -> str:
    return ", ".join(section.__name__ for section in SECTIONS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small ensembles, few rounds")
    parser.add_argument("--long", action="store_true", help="many rounds, and slow peers in large ensembles too")
    parser.add_argument("--only", default="", help=f"some of {_names()}")
    given = parser.parse_args()
    chosen = QUICK if given.quick else LONG if given.long else USUAL
    main(chosen, [name for name in given.only.split(",") if name])
