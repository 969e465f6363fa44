"""Differential equations of which nothing is known: ODEBench, with every right-hand side an unknown function.

S. d'Ascoli et al., ODEFormer, ICLR 2024 (arXiv:2310.05573); systems and trajectories from its repository
(sdascoli/odeformer, MIT). The file is not part of this project; it is a JSON list (gzip) of objects with "id", "dim"
and "solutions", whose first entry holds a dict {"t": [T], "y": [dim][T]} for each of two initial conditions.

    python -m benchmarks.odebench --data FILE.json.gz [--systems 3 6 ...] [--noise 0 0.05] [--processes 2]

The equations are found from the trajectory of the first initial condition: clean, every second of its 512 points; or
with 5 % noise (each number multiplied by 1 + 0.05 N(0, 1)) and half of the points dropped at random. They are
integrated from the first initial condition (reconstruction) and from the second (generalization) and compared with the
clean trajectories: counted is R2 > 0.9 (mean over the states), as published. Clean: ODEFormer 0.80 and 0.33 of all 63
systems, SINDy 0.66 and 0.37.

Runs are kept as JSON lines (odebench_runs.jsonl beside this script) and are not repeated; the table is odebench.md.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

import ude
from benchmarks.recovery import read
from ude.discovery.refit.closed_system import Array, ClosedSystem
from ude.discovery.refit.integration import BudgetSpent, Integrator
from ude.errors import DataError, UdeError

RECORDS = Path(__file__).with_name("odebench_runs.jsonl")
PUBLISHED = "Published for all 63 systems, clean: ODEFormer 0.80 and 0.33, SINDy 0.66 and 0.37."


def systems(path: Path) -> list[dict[str, Any]]:
    """The systems of a file. Raises DataError where there is none, or it holds something else."""
    if not path.exists():
        raise DataError(
            f"there is no file {path}",
            expected="ODEBench with its solutions, as JSON (gzip)",
            fix="See the repository sdascoli/odeformer, and give the path with --data.",
        )
    with gzip.open(path, "rt") as file:
        found = json.load(file)
    if not isinstance(found, list) or not all({"id", "dim", "solutions"} <= set(entry) for entry in found):
        raise DataError(f"{path} is not ODEBench", expected="a list of objects with id, dim and solutions")
    return found


def trajectory(system: dict[str, Any], index: int) -> tuple[Array, Array]:
    """Times (T,) and states (T, dim) of one of the two initial conditions."""
    solution = system["solutions"][0][index]
    return np.array(solution["t"]), np.array(solution["y"]).T


def discovered(t: Array, u: Array, seed: int) -> ude.Discovery:
    """Equations for data with nothing known: one unknown function of all states for each rate."""
    names = [f"x{i}" for i in range(u.shape[1])]
    arguments = ", ".join(names)
    model = ude.UDE([f"d{name}/dt = U{i}({arguments})" for i, name in enumerate(names)], seed=seed)
    data = ude.Dataset.from_arrays(t, u, names)
    fit = ude.fit(model, data, holdout=0, stages="derivatives", seed=seed, positive=False, progress=False)
    return ude.discover(fit, seed=seed, progress=False)


def r_squared(system: ClosedSystem, values: dict[str, float], t: Array, truth: Array) -> float:
    """Mean over the states of 1 - SSE/SST, from the true initial condition; -inf where the solution breaks down."""
    integrator = Integrator(system)
    integrator.max_calls = 1_000_000
    try:
        found = integrator.solve(t, truth[0], values, truth.std(axis=0) + 1e-12)
    except BudgetSpent:
        found = None
    if found is None:
        return -np.inf
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    wrong = ((found - truth) ** 2).sum(axis=0)
    return float(np.mean(1.0 - wrong / np.maximum(spread, 1e-12)))


def run(system: dict[str, Any], noise: float) -> dict[str, Any]:
    """One system at one level of noise."""
    t, clean = trajectory(system, 0)
    random = np.random.default_rng(system["id"])
    kept = np.sort(random.choice(len(t), len(t) // 2, replace=False)) if noise else np.arange(0, len(t), 2)
    data = (clean * (1.0 + noise * random.standard_normal(clean.shape)))[kept]
    began = time.process_time()
    record: dict[str, Any] = {"id": system["id"], "dim": system["dim"], "noise": noise}
    try:
        found = discovered(t[kept], data, 0)
    except UdeError as error:
        return record | {"reconstruction": -np.inf, "generalization": -np.inf, "error": str(error)}
    closed, values = found.chosen.closed, dict(found.final.values)
    return record | {
        "reconstruction": r_squared(closed, values, t, clean),
        "generalization": r_squared(closed, values, *trajectory(system, 1)),
        "equations": ude.export(found, digits=4),
        "verdict": found.verdict.kind,
        "cpu": round(time.process_time() - began, 1),
    }


def table(records: Sequence[dict[str, Any]]) -> str:
    lines = ["# ODEBench with nothing known", "", "`python -m benchmarks.odebench --data FILE`.", PUBLISHED, ""]
    lines += [
        "| noise | systems | R2 > 0.9 on the first start | on the second | median s |",
        "|---:|---:|---:|---:|---:|",
    ]
    for noise in sorted({row["noise"] for row in records}):
        own = [row for row in records if row["noise"] == noise]
        shares = [np.mean([row[key] > 0.9 for row in own]) for key in ("reconstruction", "generalization")]
        seconds = np.median([row["cpu"] for row in own if "cpu" in row])
        name = "clean" if noise == 0 else f"{100 * noise:g} %, half dropped"
        lines.append(f"| {name} | {len(own)} | {shares[0]:.2f} | {shares[1]:.2f} | {seconds:.0f} |")
    lines += ["", "| system | noise | first start | second | equations found |", "|---:|---:|---:|---:|---|"]
    for row in sorted(records, key=lambda r: (r["noise"], r["id"])):
        text = row.get("equations", row.get("error", "")).replace("\n", "; ").replace("|", "\\|")
        lines.append(
            f"| {row['id']} | {row['noise']:g} | {row['reconstruction']:.3f} | {row['generalization']:.3f} | `{text}` |"
        )
    return "\n".join([*lines, ""])


def main(
    data: Path, wanted: Sequence[int] | None, levels: Sequence[float], processes: int = 2, path: Path = RECORDS
) -> str:
    """Make the runs that are not recorded yet, and write the table."""
    chosen = [system for system in systems(data) if wanted is None or system["id"] in wanted]
    known = {(row["id"], row["noise"]) for row in read(path)}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool, path.open("a") as file:
        waiting = [
            pool.submit(run, system, level)
            for level in levels
            for system in chosen
            if (system["id"], level) not in known
        ]
        for done in as_completed(waiting):
            record = done.result()
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(json.dumps(record), flush=True)
    text = table(read(path))
    path.with_name("odebench.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--systems", type=int, nargs="+")
    parser.add_argument("--noise", type=float, nargs="+", default=(0.0, 0.05))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--records", type=Path, default=RECORDS)
    given = parser.parse_args()
    print(main(given.data, given.systems, given.noise, given.processes, given.records))
