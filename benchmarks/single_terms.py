"""Sixteen single terms in driven systems of one or two states with 2 % noise: is exactly the true form chosen?

Each system (`benchmarks.discovery_cases`) gives three runs of 50 points from different starts; everything but the term
U is known. Noise is normal, 2 % of each state's standard deviation. Each seed draws other noise and other weights, and
goes through `ude.fit` and `ude.discover` with their defaults, nothing held out. A formula is right when it is of the
true form with its constants free (`same_form`).

    python -m benchmarks.single_terms [--seeds 5] [--first 0] [--terms pendulum,ricker] [--noise 0.02] [--jobs 2]

Outcomes are appended to a file of JSON lines, so that an interrupted run goes on where it was; --fresh begins anew.
Seconds are CPU seconds of the process and its children: fit, and search with selection and belief.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import ude
from benchmarks.discovery_cases import CASES, same_form

HERE = Path(__file__)


def outcome(term: str, seed: int, noise: float) -> dict[str, Any]:
    """Fit and discover one system; whether the chosen form is right, and where the right one stood."""
    torch.set_num_threads(1)
    case = CASES[term]
    times, values = case.noisy(noise, seed)
    data = ude.Dataset.from_arrays(times, values, case.states)
    network = ude.MLP("U", inputs=", ".join(case.inputs), width=16, seed=seed)
    began = cpu_seconds()
    fit = ude.fit(ude.UDE(case.equations, unknown=network), data, holdout=0, seed=seed, progress=False)
    fitted = cpu_seconds()
    found = ude.discover(fit, seed=seed, progress=False)
    ended = cpu_seconds()
    samples = found.samples["U"]
    truth = case.truth.values(samples.inputs)
    chosen = found.chosen.candidates["U"]
    ranked = [combination.candidates["U"] for combination in found.selection.ranked]
    places = [i for i, c in enumerate(ranked) if same_form(c.expression, c.constants, case.truth)]
    offered = any(same_form(c.expression, c.constants, case.truth) for c in found.candidates["U"])
    return {
        "term": term,
        "seed": seed,
        "noise": noise,
        "right": same_form(chosen.expression, chosen.constants, case.truth),
        "offered": offered,
        "place": places[0] if places else None,
        "chosen": str(chosen.expression),
        "verdict": found.verdict.kind,
        "network": float(((samples.output - truth) ** 2).mean() / (truth**2).mean()) ** 0.5,
        "fit seconds": fitted - began,
        "discover seconds": ended - fitted,
    }


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def done(path: Path) -> dict[tuple[str, int, float], dict[str, Any]]:
    """What an earlier run has finished. A line that was cut off is done again."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[row["term"], row["seed"], row["noise"]] = row
    return found


def table(rows: Iterable[dict[str, Any]], noise: float) -> str:
    rule = (__doc__ or "").strip().partition("\n\n    python")[0].partition("\n\n")[2]
    rows = [row for row in rows if row["noise"] == noise]
    lines = ["# Sixteen single terms", "", "`python -m benchmarks.single_terms`.", rule, ""]
    lines += [
        "| term | right | offered | identified (wrongly) | network's error, % | fit, s | discover, s "
        "| chosen where wrong |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---|"]
    for term, case in CASES.items():
        own = [row for row in rows if row["term"] == term]
        if not own:
            continue
        wrong = sorted({f"`{row['chosen']}`" for row in own if not row["right"]})
        cells = [f"{sum(row['right'] for row in own)} of {len(own)}", str(sum(row["offered"] for row in own))]
        sure = [row for row in own if row["verdict"] == "identified"]
        cells += [f"{len(sure)} ({sum(not row['right'] for row in sure)})"]
        cells += [f"{100 * median(row['network'] for row in own):.1f}"]
        cells += [f"{median(row[name] for row in own):.1f}" for name in ("fit seconds", "discover seconds")]
        lines.append(f"| {case.title.replace('|', chr(92) + '|')} | {' | '.join(cells)} | {', '.join(wrong)} |")
    right, total = sum(row["right"] for row in rows), len(rows)
    share = 100 * right / max(total, 1)
    missing = len(CASES) - len({row["term"] for row in rows})
    rest = f" {missing} of the {len(CASES)} terms have not been run yet." if missing else ""
    lines += ["", f"Right: {right} of {total} ({share:.0f} %), with {100 * noise:g} % noise.{rest}"]
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    lines += [
        f"Seeds: {seeds}. Seconds: medians of CPU seconds, children included. Offered: the true form was among the",
        "candidates. Identified: the package's own verdict.",
        "",
    ]
    return "\n".join(lines)


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def main(
    terms: Sequence[str] = tuple(CASES),
    seeds: Sequence[int] = range(5),
    noise: float = 0.02,
    jobs: int = 2,
    fresh: bool = False,
) -> None:
    """Run what is missing, a process a run, and write the table after each."""
    path = HERE.with_suffix(".jsonl")
    if fresh:
        path.unlink(missing_ok=True)
    rows = done(path)
    missing = [(term, seed, noise) for seed in seeds for term in terms if (term, seed, noise) not in rows]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # no max_tasks_per_child: in Python 3.11 the pool hangs when it replaces a worker (CPython issue 115634)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(outcome, *one) for one in missing]
        for future in as_completed(waiting):
            row = future.result()
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            rows[row["term"], row["seed"], row["noise"]] = row
            print(row["term"], row["seed"], "right" if row["right"] else f"WRONG {row['chosen']}", flush=True)
            HERE.with_suffix(".md").write_text(table(rows.values(), noise), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terms", default=",".join(CASES), help="names of the terms, with commas")
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--noise", type=float, default=0.02)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true")
    given = parser.parse_args()
    chosen_terms = given.terms.split(",")
    unknown = [term for term in chosen_terms if term not in CASES]
    if unknown:
        parser.error(f"no such term: {', '.join(unknown)}. Choose of {', '.join(CASES)}.")
    chosen_seeds = range(given.first, given.first + given.seeds)
    main(chosen_terms, chosen_seeds, given.noise, given.jobs, given.fresh)
