"""Run by `ude.discovery.pysr` as a program of its own: one PySR search, samples in, table of equations out.

Usage: ``python -P pysr_worker.py FOLDER``. FOLDER holds ``samples.npz`` (X, y, weights) and ``options.json``; the
program writes ``equations.json`` (rows of complexity, loss, equation) or, on failure, ``error.json``. It imports
nothing of `ude`: Julia and torch in one process crash each other on some platforms, and `ude` imports torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(folder: Path) -> int:
    options = json.loads((folder / "options.json").read_text())
    if not options.pop("allow_download"):
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
        model = pysr.PySRRegressor(**options, output_directory=str(folder / "pysr"))
        model.fit(x, y, weights=weights, variable_names=names)
        rows = model.equations_[["complexity", "loss", "equation"]].to_dict("records")
        table = [
            {"complexity": int(r["complexity"]), "loss": float(r["loss"]), "equation": str(r["equation"])} for r in rows
        ]
        (folder / "equations.json").write_text(json.dumps(table))
    except Exception as error:
        return _fail(folder, "failed", error)
    return 0


def _fail(folder: Path, kind: str, error: Exception) -> int:
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    (folder / "error.json").write_text(json.dumps({"kind": kind, "text": text}))
    return 3


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
