"""PySR (Cranmer 2023, arXiv:2305.01582) as a search for formulas: evolution in Julia, reached through its Python layer.

It runs in a process of its own that imports no torch. Inputs travel as x0, x1, ... because PySR refuses names that
SymPy knows (S, I, E, N, beta), which are the everyday names of epidemiology.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sympy as sp
from sympy.core.function import AppliedUndef

from ude.discovery.candidate import Candidate, distinct, mark_pareto, zero_formula
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.constraints.units import Units
from ude.discovery.samples import Samples
from ude.discovery.search.foreign import candidate_from
from ude.discovery.search.free_part import free_part
from ude.discovery.search.notation import BINARY, FUNCTIONS, parse_equation
from ude.discovery.search.worker import SearchEngine, run_worker
from ude.errors import InputError, ModelError, UdeError
from ude.models.equations.names import did_you_mean
from ude.models.equations.parser import parse_expression

__all__ = ["PySR", "free_part", "parse_equation"]

INSTALL = 'python -m pip install pysr && python -c "import pysr"'
ENGINE = SearchEngine(
    name="PySR",
    script="pysr_worker.py",
    needs="PySR and its Julia",
    install=INSTALL,
    instead="Try LibraryRegressor(), which needs no Julia.",
)


@dataclass(frozen=True)
class PySR:
    """PySR behind the `SymbolicRegressor` protocol.

    niterations, populations, maxsize: PySR's own. seed: the search is deterministic (serial) and repeats itself.
    binary_operators, unary_operators: of "+ - * / ^" and sin cos tan tanh exp log sqrt abs square cube inv neg.
    timeout: seconds after which PySR is asked to end with what it has; the process is ended a minute later.
    allow_download: let PySR install Julia (some hundred megabytes) when it is not there.
    search_options: any other option of ``pysr.PySRRegressor``, by its name; plain values only.
    template: the formula's outline with functions to be found, "f(x)*y + g(y)", in the term's own arguments
        (PySR's TemplateExpressionSpec).
    units: "x: mol/L, y: K -> mol/L/s", in units that PySR knows: formulas that disagree are charged for it
        (dimensional_constraint_penalty in search_options, 1000 when left out).
    folder: where PySR keeps its state. A later search of the same samples goes on from there; None: nothing is kept.

    Raises InputError for an operator or option that it does not know, BackendMissing where there is no Julia.

    >>> search = ude.search.PySR(niterations=20, binary_operators=("+", "*"), unary_operators=())  # starts no Julia yet
    >>> ude.search.PySR(binary_operators=("+", "%"))
    Traceback (most recent call last):
    ude.errors.InputError: ...
    """

    niterations: int = 40
    populations: int = 15
    maxsize: int = 25
    binary_operators: tuple[str, ...] = ("+", "-", "*", "/")
    unary_operators: tuple[str, ...] = ("sin", "exp", "log", "sqrt")
    timeout: float = 120.0
    seed: int = 0
    allow_download: bool = False
    search_options: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""
    units: str = ""
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        for name, known in (("binary_operators", BINARY), ("unary_operators", FUNCTIONS)):
            unknown = [operator for operator in getattr(self, name) if operator not in known]
            if unknown:
                raise InputError(f"PySR({name})", expected=f"any of {' '.join(known)}", got=" ".join(unknown))
        accepted = known_options()
        for name in self.search_options:
            if accepted and name not in accepted:
                raise InputError(
                    "PySR(search_options)",
                    expected="options of pysr.PySRRegressor",
                    got=name,
                    fix=did_you_mean(name, accepted),
                )
        if self.units:
            Units.read(self.units)

    def options(self) -> dict[str, Any]:
        """What is passed to ``PySRRegressor``."""
        own = {
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
        if self.units:
            own["dimensional_constraint_penalty"] = 1000.0
        return {**own, **self.search_options}

    def informed(self, constraints: TermConstraints) -> PySR:
        """The same search with less to look through."""
        size = (
            self.maxsize
            if constraints.max_complexity is None
            else min(self.maxsize, max(7, constraints.max_complexity))
        )
        constants = {"dimensionless_constants_only": True} if constraints.dimensionless_constants else {}
        base = {"square": "^", "cube": "^", "inv": "/", "neg": "-"}
        return replace(
            self,
            maxsize=size,
            binary_operators=tuple(name for name in self.binary_operators if constraints.allows(name)),
            unary_operators=tuple(name for name in self.unary_operators if constraints.allows(base.get(name, name))),
            units=self.units or constraints.units,
            search_options={**constants, **self.search_options},
        )

    def search(self, samples: Samples) -> list[Candidate]:
        """PySR's hall of fame with constants refitted, simplest first, the Pareto front marked."""
        target = samples.output - free_part(samples)
        arrays = {"X": np.stack(list(samples.inputs.values()), axis=1), "y": target, "weights": samples.weights}
        names = list(samples.inputs)
        outline = None if not self.template else self._outline(names)
        told = {"search": self.options(), "allow_download": self.allow_download, "template": outline}
        if self.units:
            units, output = Units.read(self.units).text
            told |= {"X_units": [units.get(name, "") for name in names], "y_units": output}
        if self.folder is not None:
            told |= {"directory": str(Path(self.folder).resolve()), "run": re.sub(r"\W", "_", samples.name)}
            told["fingerprint"] = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()
        rows = run_worker(ENGINE, arrays, told, self.timeout + 60.0)
        read = [self._read(row["equation"], names) for row in rows if np.isfinite(row["loss"])]
        found = [candidate_from(expression, samples, "pysr") for expression in read]
        kept = [candidate for candidate in found if candidate is not None]
        if rows and not kept:
            raise UdeError("PySR found no formula that is finite on the samples", fix=ENGINE.instead)
        return mark_pareto(distinct([zero_formula(samples, "pysr"), *kept], samples, 1e-6))

    def _outline(self, inputs: list[str]) -> dict[str, Any]:
        """The template as TemplateExpressionSpec takes it. Raises InputError where it is none."""
        formula = self._template(inputs)
        places = {sp.Symbol(name): sp.Symbol(f"x{index}") for index, name in enumerate(inputs)}
        functions = sorted({str(call.func) for call in formula.atoms(AppliedUndef)})
        return {
            "combine": str(formula.xreplace(places)).replace("**", "^"),
            "expressions": functions,
            "variable_names": [f"x{index}" for index in range(len(inputs))],
        }

    def _template(self, inputs: list[str]) -> sp.Expr:
        try:
            formula = parse_expression(self.template)
        except ModelError as error:
            raise InputError("PySR(template)", expected='a formula, "f(x)*y"', got=error.what) from error
        unknown = sorted({str(symbol) for symbol in formula.free_symbols} - set(inputs))
        if unknown or not formula.atoms(AppliedUndef):
            raise InputError(
                "PySR(template)",
                expected=f"functions to be found, of {', '.join(inputs)}",
                got=", ".join(unknown) or self.template,
            )
        return formula

    def _read(self, text: str, inputs: list[str]) -> sp.Expr:
        """An equation of the table; with a template, "f = #1 * 2.0; g = sin(#1)" put into it."""
        if not self.template:
            return parse_equation(text, inputs)
        bodies = {name.strip(): body for name, _, body in (part.partition("=") for part in text.split(";"))}
        formula = self._template(inputs)
        for call in sorted(formula.atoms(AppliedUndef), key=str):
            body = bodies.get(str(call.func))
            if body is None:
                raise InputError(f"equation {text!r}", expected=f"one for {call.func}", got="none")
            places = [f"_{index}" for index in range(len(call.args))]
            inner = parse_equation(re.sub(r"#(\d+)", lambda m: f"x{int(m[1]) - 1}", body), places)
            own = dict(zip(map(sp.Symbol, places), call.args, strict=True))
            formula = formula.xreplace({call: inner.xreplace(own)})
        return formula


@lru_cache(maxsize=1)
def known_options() -> frozenset[str]:
    """The arguments of ``pysr.PySRRegressor``, read from its source, as importing it starts Julia; empty without it."""
    spec = importlib.util.find_spec("pysr")
    source = None if spec is None or spec.origin is None else Path(spec.origin).parent / "sr.py"
    if source is None or not source.exists():
        return frozenset()
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "PySRRegressor":
            [init] = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
            return frozenset(argument.arg for argument in init.args.args + init.args.kwonlyargs) - {"self"}
    return frozenset()
