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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ude.discovery.evaluation import Array
from ude.errors import BackendMissing, UdeError
from ude.untrusted import check, parse_json, read_bytes

_ROW = {"length?": int, "complexity?": int, "nmse?": float, "loss?": float, "equation": str}
_POLL = 0.02  # seconds between looks at what has ended


@dataclass(frozen=True)
class SearchEngine:
    """What messages need to know of an engine.

    name: as its users know it. script: file in this folder. needs: what has to be installed. install: the command.
    instead: the advice when it fails.
    """

    name: str
    script: str
    needs: str
    install: str
    instead: str


class Worker:
    """One process at work on samples and options; `gather` waits for it.

    Raises OSError where no process can be started.
    """

    def __init__(self, engine: SearchEngine, arrays: Mapping[str, Array], options: Mapping[str, Any]) -> None:
        self.engine = engine
        self._folder = tempfile.TemporaryDirectory(prefix=f"ude-{engine.name.lower()}-")
        folder = Path(self._folder.name)
        np.savez(folder / "samples.npz", allow_pickle=False, **arrays)
        (folder / "options.json").write_text(json.dumps(dict(options)))
        # -P: without it Python would look for `pysr` in the worker's own folder first, and find ours.
        command = [sys.executable, "-P", str(Path(__file__).with_name(engine.script)), str(folder)]
        # One thread: sums in another order are other numbers, and the same seed must give the same answer.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        # into a file and not a pipe, which would stop the process when it is full and nobody reads yet
        with (folder / "stderr.txt").open("w") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        self.began = time.monotonic()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def rows(self) -> list[dict[str, Any]]:
        """The table that the ended process left. Raises as `run_worker` does."""
        folder = Path(self._folder.name)
        table = folder / "equations.json"
        if table.exists():
            content = parse_json(b'{"rows": %s}' % read_bytes(table), table)
            check(content, {"rows": [_ROW]}, self.engine.name)
            return list(content["rows"])
        said = (folder / "stderr.txt").read_text(errors="replace")
        raise _failure(self.engine, folder / "error.json", self._process.returncode, said)

    def close(self) -> None:
        """End the process if it is still there, and remove its folder. May be called again."""
        if not self.ended:
            self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def gather(workers: Sequence[Worker], timeout: float) -> list[list[dict[str, Any]]]:
    """Wait for all of them: their rows. The first that fails ends the others, and so does Ctrl-C.

    timeout: seconds since each was started.

    Raises as `run_worker` does.
    """
    try:
        waiting = list(workers)
        while waiting:
            for worker in [one for one in waiting if one.ended]:
                worker.rows()
                waiting.remove(worker)
            for worker in waiting:
                if time.monotonic() > worker.began + timeout:
                    raise UdeError(
                        f"{worker.engine.name} did not end",
                        expected=f"within {timeout:g} s",
                        fix=f"Give it longer. {worker.engine.instead}",
                    )
            if waiting:
                time.sleep(_POLL)
        return [worker.rows() for worker in workers]
    finally:
        for worker in workers:
            worker.close()


def run_worker(
    engine: SearchEngine, arrays: Mapping[str, Array], options: Mapping[str, Any], timeout: float
) -> list[dict[str, Any]]:
    """Run the engine's script on samples and options; the rows of the table that it leaves.

    timeout: seconds after which the process is ended. Ctrl-C ends it too.

    Raises BackendMissing where the engine cannot be loaded, UdeError where it fails, dies or does not end.
    """
    return gather([Worker(engine, arrays, options)], timeout)[0]


def _failure(engine: SearchEngine, report: Path, code: int, said: str) -> UdeError:
    if not report.exists():
        lines = said.strip().splitlines()
        ended = f"it was ended by signal {-code}" if code < 0 else "no message"
        last = lines[-1] if lines else ended
        return UdeError(f"{engine.name} ended without a result", got=last, fix=engine.instead)
    found = parse_json(read_bytes(report), report)
    check(found, {"kind": str, "text": str}, engine.name)
    text = found["text"].rstrip(".")
    if found["kind"] == "missing":
        return BackendMissing(
            f"{engine.name} cannot start", expected=engine.needs, got=text, fix=f"Install them with {engine.install}."
        )
    return UdeError(f"{engine.name} failed", got=text, fix=engine.instead)
