"""How often are Lotka and Volterra's interactions recovered? The loop of the paper on universal differential equations.

C. Rackauckas et al., Universal differential equations for scientific machine learning, arXiv:2001.04385; counts and
protocol from its repository (ChrisRackauckas/universal_differential_equations at d622d92, LotkaVolterra/run_loops.jl,
loop_evaluation.jl and the bars of plots/Found_Equations_Loop.pdf; MIT):

    dx/dt = 1.3 x - 0.9 x y,  dy/dt = 0.8 x y - 1.8 y  from (0.44249296, 4.6280594), 31 points on 0..3,
    noise = level * mean of the state * N(0, 1); 1.3 and 1.8 known, both interactions unknown.

A run is a success when the equations found hold exactly two terms beside what is known, p1*x*y in the first and p2*x*y
in the second. The paper recovers 75, 72, 58, 29 and 18 of 100 at 0.1, 0.5, 1, 2.5 and 5 % noise.

    python -m benchmarks.recovery [--noise 0.001 0.05] [--runs 100] [--first 0] [--processes 2] [--records FILE]

Every run has its own noise and weights, drawn from its number. Runs are kept as JSON lines in FILE
(recovery_runs.jsonl beside this script); a run that is in there is not repeated, so the loop may be stopped and goes
on, and the table recovery.md is made of all that are there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp

import ude
from benchmarks.fit_cases import course, model, noisy
from benchmarks.single_terms import cpu_seconds
from ude.models import to_text

LEVELS = (0.001, 0.005, 0.01, 0.025, 0.05)
PAPER = dict(zip(LEVELS, (75, 72, 58, 29, 18), strict=True))  # of 100
GOAL = dict(zip(LEVELS, (95, 90, 85, 70, 50), strict=True))
RECORDS = Path(__file__).with_name("recovery_runs.jsonl")


def is_recovered(terms: dict[str, sp.Expr]) -> bool:
    """Whether both unknown terms are one constant times x*y."""
    x, y = sp.symbols("x y")
    return all(term != 0 and not (sp.expand(term) / (x * y)).has(x, y) for term in terms.values())


def run(level: float, number: int) -> dict[str, Any]:
    """One data set, one fit, one discovery: what was found, and the processor seconds of both, children included."""
    t = np.linspace(0.0, 3.0, 31)
    # the levels differ in scale only, as in the paper's loop; every run has noise of its own
    values, _ = noisy(course(t), level, np.random.default_rng(1000 + number))
    data = ude.Dataset.from_arrays(t, values, "x, y")
    wall, began = time.perf_counter(), cpu_seconds()
    fit = ude.fit(model(number), data, holdout=0, seed=number, progress=False)
    fitted = cpu_seconds()
    found = ude.discover(fit, seed=number, progress=False)
    record = {
        "level": level,
        "run": number,
        "recovered": is_recovered(found.terms),
        "terms": {name: to_text(term, 4) for name, term in found.terms.items()},
        "fit_cpu": round(fitted - began, 2),
        "discover_cpu": round(cpu_seconds() - fitted, 2),
        "wall": round(time.perf_counter() - wall, 2),
    }
    # enough to score the combinations anew with another charge for complexity
    ranked = [
        {
            "terms": {term: str(candidate.expression) for term, candidate in combination.candidates.items()},
            "complexity": combination.complexity,
            "sse": combination.fit.sse,
            "score": combination.score,
        }
        for combination in found.selection.ranked[:12]
    ]
    return record | _belief(found) | {"ranked": ranked}


def _belief(found: ude.Discovery) -> dict[str, Any]:
    inclusion = found.inclusion
    probability = {
        name: dict(zip(rows["summand"], rows["probability"], strict=True)) for name, rows in inclusion.groupby("term")
    }
    rivals = [{term: sp.sympify(text) for term, text in one.formulas.items()} for one in found.verdict.rivals]
    listed = is_recovered(found.terms) or any(map(is_recovered, rivals))
    return {"verdict": found.verdict.kind, "inclusion": probability, "listed": listed}


def read(path: Path) -> list[dict[str, Any]]:
    """The runs recorded so far; a line that was cut off by a kill counts as none."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def table(records: Iterable[dict[str, Any]]) -> str:
    """Counts by level beside the paper's, with Wilson's 95 % interval of the share."""
    rows = list(records)
    lines = [
        "# Recovery of Lotka and Volterra's interactions",
        "",
        "`python -m benchmarks.recovery`: unknown interactions from 31 noisy points, exactly two terms c*x*y expected.",
        "The paper (arXiv:2001.04385) recovers the shares in the third column, of 100 runs each.",
        "",
        "| noise, % | recovered | paper, % | share, % (95 % interval) | among the forms called equally good "
        "| called identified (wrongly) | s to fit | s to search and select |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for level in sorted({row["level"] for row in rows}):
        own = [row for row in rows if row["level"] == level]
        hits, n = sum(row["recovered"] for row in own), len(own)
        low, high = _wilson(hits, n)
        seconds = [np.median([row[key] for row in own]) for key in ("fit_cpu", "discover_cpu")]
        sure = [row for row in own if row["verdict"] == "identified"]
        lines.append(
            f"| {100 * level:g} | {hits} of {n} | {PAPER.get(level, float('nan')):g} "
            f"| {100 * hits / n:.0f} ({low:.0f} to {high:.0f}) | {sum(row['listed'] for row in own)} "
            f"| {len(sure)} ({sum(not row['recovered'] for row in sure)}) | {seconds[0]:.1f} | {seconds[1]:.1f} |"
        )
    wrong = [f"- {100 * row['level']:g} %: `{row['terms']}`, {row['verdict']}" for row in rows if not row["recovered"]]
    if wrong:
        lines += ["", "Found where not recovered:", "", *wrong]
    return "\n".join([*lines, "", "Seconds are medians of processor time, Operon's included.", ""])


def _wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    share = hits / n
    center, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, 100 * (center - half) / (1 + z * z / n)), 100 * (center + half) / (1 + z * z / n)


def main(
    levels: Sequence[float] = LEVELS, runs: int = 100, first: int = 0, processes: int = 2, path: Path = RECORDS
) -> str:
    """Make the runs that are not recorded yet, one level after another within a run, and write the table."""
    known = {(row["level"], row["run"]) for row in read(path)}
    missing = [(lv, i) for i in range(first, first + runs) for lv in levels if (lv, i) not in known]
    # spawned, since torch's threads do not survive a fork
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        waiting = [pool.submit(run, level, number) for level, number in missing]
        try:
            for done in as_completed(waiting):
                record = done.result()
                file.write(json.dumps(record) + "\n")
                file.flush()
                print(json.dumps(record), flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    text = table(read(path))
    path.with_name("recovery.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, nargs="+", default=LEVELS)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--records", type=Path, default=RECORDS)
    given = parser.parse_args()
    print(main(given.noise, given.runs, given.first, given.processes, given.records))
