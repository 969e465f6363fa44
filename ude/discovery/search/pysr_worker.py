"""Run by `ude.discovery.search.pysr` as a program of its own: one PySR search, samples in, table of equations out.

Usage: ``python -P pysr_worker.py FOLDER``. FOLDER holds ``samples.npz`` (X, y, weights) and ``options.json``; the
program writes ``equations.json`` (rows of complexity, loss, equation) or, on failure, ``error.json``. It imports
nothing of `ude`: Julia and torch in one process crash each other on some platforms, and `ude` imports torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(folder: Path) -> int:
    told = json.loads((folder / "options.json").read_text())
    if not told["allow_download"]:
        os.environ.setdefault("PYTHON_JULIAPKG_OFFLINE", "yes")
    try:
        import pysr
    except Exception as error:  # juliapkg raises whatever comes: URLError, OSError, a bare Exception
        return _fail(folder, "missing", error)
    try:
        import numpy as np

        with np.load(folder / "samples.npz") as samples:
            x, y, weights = samples["X"], samples["y"], samples["weights"]
        names = [f"x{index}" for index in range(x.shape[1])]
        units = {name: told[name] for name in ("X_units", "y_units") if name in told}
        model = prepared(pysr, folder, told)
        model.fit(x, y, weights=weights, variable_names=names, **units)
        rows = model.equations_[["complexity", "loss", "equation"]].to_dict("records")
        table = [
            {"complexity": int(r["complexity"]), "loss": float(r["loss"]), "equation": str(r["equation"])} for r in rows
        ]
        _write(folder / "equations.json", table)
    except Exception as error:
        return _fail(folder, "failed", error)
    return 0


def prepared(pysr: Any, folder: Path, told: dict[str, Any]) -> Any:
    """A new search, or the one that an earlier run on the same samples left."""
    options = dict(told["search"])
    if told["template"]:
        options["expression_spec"] = pysr.TemplateExpressionSpec(**told["template"])
    if "directory" not in told:
        return pysr.PySRRegressor(**options, output_directory=str(folder / "pysr"))
    run = Path(told["directory"]) / told["run"]
    mark = run / "samples.sha256"
    if (run / "checkpoint.pkl").exists():
        if not mark.exists() or mark.read_text() != told["fingerprint"]:
            raise ValueError(f"{run} holds the search of other samples; give another folder")
        model = pysr.PySRRegressor.from_file(run_directory=str(run))
        changeable = ("niterations", "timeout_in_seconds", "progress", "verbosity")
        model.set_params(warm_start=True, **{name: options[name] for name in changeable})
        return model
    run.mkdir(parents=True, exist_ok=True)
    mark.write_text(told["fingerprint"])
    return pysr.PySRRegressor(**options, output_directory=told["directory"], run_id=told["run"])


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, so that a killed worker leaves no half of a table."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    os.replace(part, path)


def _fail(folder: Path, kind: str, error: Exception) -> int:
    text = (f"{type(error).__name__}: {error}".strip().splitlines() or ["no message"])[0]
    _write(folder / "error.json", {"kind": kind, "text": text})
    return 3


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
