"""A search engine in a process of its own: what it is given, how long it may take, and what is said when it fails.

Engines are foreign code with threads, just-in-time compilers and raw pointers. In a process of their own they can
crash, hang or run out of memory without taking the caller along, and need not share it with torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ude.discovery.regressor import Array
from ude.errors import BackendMissing, UdeError


@dataclass(frozen=True)
class Engine:
    """What messages need to know of an engine.

    name: as its users know it. script: file in this folder. needs: what has to be installed. install: the command.
    instead: the advice when it fails.
    """

    name: str
    script: str
    needs: str
    install: str
    instead: str


def run_worker(
    engine: Engine, arrays: Mapping[str, Array], options: Mapping[str, Any], timeout: float
) -> list[dict[str, Any]]:
    """Run the engine's script on samples and options; the rows of the table that it leaves.

    timeout: seconds after which the process is ended. Ctrl-C ends it too.

    Raises BackendMissing where the engine cannot be loaded, UdeError where it fails, dies or does not end.
    """
    with tempfile.TemporaryDirectory(prefix=f"ude-{engine.name.lower()}-") as name:
        folder = Path(name)
        np.savez(folder / "samples.npz", allow_pickle=False, **arrays)
        (folder / "options.json").write_text(json.dumps(dict(options)))
        # -P: without it Python would look for `pysr` in the worker's own folder first, and find ours.
        command = [sys.executable, "-P", str(Path(__file__).with_name(engine.script)), str(folder)]
        # One thread: sums in another order are other numbers, and the same seed must give the same answer.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False, env=environment
            )
        except subprocess.TimeoutExpired as error:
            raise UdeError(
                f"{engine.name} did not end", expected=f"within {timeout:g} s", fix=f"Give it longer. {engine.instead}"
            ) from error
        if (folder / "equations.json").exists():
            rows: list[dict[str, Any]] = json.loads((folder / "equations.json").read_text())
            return rows
        raise _failure(engine, folder / "error.json", done)


def _failure(engine: Engine, report: Path, done: subprocess.CompletedProcess[str]) -> UdeError:
    if not report.exists():
        lines = done.stderr.strip().splitlines()
        ended = f"it was ended by signal {-done.returncode}" if done.returncode < 0 else "no message"
        last = lines[-1] if lines else ended
        return UdeError(f"{engine.name} ended without a result", got=last, fix=engine.instead)
    found = json.loads(report.read_text())
    text = found["text"].rstrip(".")
    if found["kind"] == "missing":
        return BackendMissing(
            f"{engine.name} cannot start", expected=engine.needs, got=text, fix=f"Install them with {engine.install}."
        )
    return UdeError(f"{engine.name} failed", got=text, fix=engine.instead)
