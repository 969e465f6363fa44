"""From a fresh process's first solve to its result: ``python -m benchmarks.fused_first CASE ENGINE`` prints JSON."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def run_here(name: str, engine: str) -> dict[str, Any]:
    """Seconds of the first gradient and of the second, and the CPU seconds of this process and its compiler."""
    import torch

    from benchmarks.fused_cases import FIRST

    torch.set_num_threads(1)
    case = FIRST[name]()
    if case.net is not None:
        # torch's own first backward loads what it needs; the solve is what is measured
        sum(p.sum() for p in case.net.parameters()).backward()
    began, own = time.perf_counter(), time.process_time()
    found = case.gradient(engine)
    first, first_cpu = time.perf_counter() - began, time.process_time() - own
    compiler = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    case.gradient(engine)
    return {
        "first": first,
        "cpu": first_cpu,
        "compiler": compiler.ru_utime + compiler.ru_stime,
        "second": time.perf_counter() - began,
        "finite": bool(found.isfinite().all()),
    }


def run_fresh(name: str, engine: str, cache: str) -> dict[str, Any] | str:
    """The same in a process of its own; one line of what it said when it failed."""
    environment = {**os.environ, "UDE_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fused_first", name, engine]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def table(names: list[str]) -> list[str]:
    lines = [
        "| case | nothing cached: s | CPU s: tracing | CPU s: C compiler | cached: ms | CPU ms | torch engine, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            cold = run_fresh(name, "fused", cache)
            warm = cold if isinstance(cold, str) else run_fresh(name, "fused", cache)
            plain = run_fresh(name, "torch", cache)
        torch_ms = f"{1e3 * plain['first']:.0f}" if isinstance(plain, dict) else "failed"
        if isinstance(cold, str) or isinstance(warm, str):
            lines.append(f"| {name} | not fused: {str(cold)[:160]} | | | | | {torch_ms} |")
            continue
        lines.append(
            f"| {name} | {cold['first']:.2f} | {cold['cpu']:.2f} | {cold['compiler']:.2f} | "
            f"{1e3 * warm['first']:.0f} | {1e3 * warm['cpu']:.0f} | {torch_ms} |"
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    print(json.dumps(run_here(sys.argv[1], sys.argv[2])))
