"""PySR (Cranmer 2023, arXiv:2305.01582) as a search for formulas: evolution in Julia, reached through its Python layer.

It runs in a process of its own that imports no torch. Inputs travel as x0, x1, ... because PySR refuses names that
SymPy knows (S, I, E, N, beta), which are the everyday names of epidemiology.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp
from sympy.parsing.sympy_parser import parse_expr

from ude.discovery.library import LibraryRegressor
from ude.discovery.refit import candidate_from
from ude.discovery.regressor import Array, Candidate, Samples, mark_pareto
from ude.errors import BackendMissing, InputError, UdeError

INSTALL = 'python -m pip install pysr && python -c "import pysr"'

_FUNCTIONS: dict[str, Any] = {
    "sin": sp.sin,
    "cos": sp.cos,
    "tan": sp.tan,
    "tanh": sp.tanh,
    "exp": sp.exp,
    "log": sp.log,
    "sqrt": sp.sqrt,
    "abs": sp.Abs,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "inv": lambda x: 1 / x,
    "neg": lambda x: -x,
}
_BINARY = ("+", "-", "*", "/", "^")


@dataclass(frozen=True)
class PySR:
    """PySR behind the `SymbolicRegressor` protocol.

    niterations, populations, maxsize: PySR's own. seed: the search is deterministic (serial) and repeats itself.
    binary_operators, unary_operators: of "+ - * / ^" and sin cos tan tanh exp log sqrt abs square cube inv neg.
    timeout: seconds after which PySR is asked to end with what it has; the process is ended a minute later.
    allow_download: let PySR install Julia (some hundred megabytes) when it is not there.

    Raises InputError for an operator it does not know, BackendMissing where there is no Julia.
    """

    niterations: int = 40
    populations: int = 15
    maxsize: int = 25
    binary_operators: tuple[str, ...] = ("+", "-", "*", "/")
    unary_operators: tuple[str, ...] = ("sin", "exp", "log", "sqrt")
    timeout: float = 120.0
    seed: int = 0
    allow_download: bool = False

    def __post_init__(self) -> None:
        for name, known in (("binary_operators", _BINARY), ("unary_operators", tuple(_FUNCTIONS))):
            unknown = [operator for operator in getattr(self, name) if operator not in known]
            if unknown:
                raise InputError(f"PySR({name})", expected=f"any of {' '.join(known)}", got=" ".join(unknown))

    def options(self) -> dict[str, Any]:
        """What is passed to ``PySRRegressor``."""
        return {
            "niterations": self.niterations,
            "populations": self.populations,
            "maxsize": self.maxsize,
            "binary_operators": list(self.binary_operators),
            "unary_operators": list(self.unary_operators),
            "timeout_in_seconds": self.timeout,
            "random_state": self.seed,
            "deterministic": True,
            "parallelism": "serial",
            "progress": False,
            "verbosity": 0,
            "temp_equation_file": False,
        }

    def search(self, samples: Samples) -> list[Candidate]:
        """PySR's hall of fame with constants refitted, simplest first, the Pareto front marked."""
        target = samples.output - free_part(samples)
        rows = self._run(np.stack(list(samples.inputs.values()), axis=1), target, samples.weights)
        found = [candidate_from(parse_equation(row["equation"], list(samples.inputs)), samples, "pysr") for row in rows]
        return mark_pareto([candidate for candidate in found if candidate is not None])

    def _run(self, x: Array, y: Array, weights: Array) -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="ude-pysr-") as name:
            folder = Path(name)
            np.savez(folder / "samples.npz", X=x, y=y, weights=weights)
            options = {**self.options(), "allow_download": self.allow_download}
            (folder / "options.json").write_text(json.dumps(options))
            worker = Path(__file__).with_name("pysr_worker.py")
            # -P: without it Python would look for `pysr` in the worker's own folder first, and find this module.
            command = [sys.executable, "-P", str(worker), str(folder)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=self.timeout + 60.0, check=False)
            except subprocess.TimeoutExpired as error:
                raise UdeError(
                    "PySR did not end", expected=f"within {self.timeout:g} s", fix="Raise PySR(timeout=...)."
                ) from error
            if (folder / "equations.json").exists():
                rows: list[dict[str, Any]] = json.loads((folder / "equations.json").read_text())
                return rows
            raise _failure(folder / "error.json", done.stderr)


def _failure(report: Path, stderr: str) -> UdeError:
    if not report.exists():
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        return UdeError("PySR ended without a result", got=last, fix="Try LibraryRegressor(), which needs no Julia.")
    found = json.loads(report.read_text())
    if found["kind"] == "missing":
        return BackendMissing(
            "PySR cannot start",
            expected="PySR and its Julia",
            got=found["text"].rstrip("."),
            fix=f"Install them with {INSTALL}.",
        )
    return UdeError("PySR failed", got=found["text"].rstrip("."), fix="Try LibraryRegressor(), which needs no Julia.")


def parse_equation(text: str, inputs: Sequence[str]) -> sp.Expr:
    """An equation as PySR writes it (``x0 * inv(x1 ^ 2)``) as an expression in the inputs' own names.

    Raises InputError for text that is not such an equation.
    """
    stand_ins = {f"x{index}": sp.Symbol(f"_x{index}") for index in range(len(inputs))}
    names: Mapping[str, Any] = {**_FUNCTIONS, **stand_ins}
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\d\.?\d*[eE][+-]?\d+", "0", text)))
    unknown = sorted(words - set(names))
    if unknown or not re.fullmatch(r"[\w\s.+\-*/^(),]*", text):
        raise InputError(f"equation {text!r}", expected="PySR's notation", got=", ".join(unknown) or "other characters")
    # The text holds only numbers, operators and the names above, so evaluating it can reach nothing else.
    builtins = {"Integer": sp.Integer, "Float": sp.Float, "Symbol": sp.Symbol, "Rational": sp.Rational}
    try:
        expression = parse_expr(text.replace("^", "**"), local_dict=dict(names), global_dict=dict(builtins))
    except (SyntaxError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"equation {text!r}", expected="PySR's notation", got=str(error)) from error
    return expression.xreplace({stand_ins[f"x{index}"]: sp.Symbol(name) for index, name in enumerate(inputs)})


def free_part(samples: Samples) -> Array:
    """The nuisance directions' share of the output, (N,), for a search that cannot fit them itself.

    They are fitted beside the simplest adequate library formula. Fitting them alone would take out of the target what
    it has in common with the formula sought; the share's size matters little, as constants are refitted beside free
    nuisance directions afterwards.
    """
    if samples.nuisance.shape[1] == 0:
        return np.zeros(samples.size)
    found = LibraryRegressor(atoms=False, max_terms=3, keep=4).search(samples)
    best = min(found, key=lambda c: samples.size * np.log(c.nmse + 1e-2) + c.complexity * np.log(samples.size))
    root = np.sqrt(samples.weights)
    rest = samples.output - best.evaluate(samples.inputs)
    factors = np.linalg.lstsq(samples.nuisance * root[:, None], rest * root, rcond=None)[0]
    return np.asarray(samples.nuisance @ factors)
