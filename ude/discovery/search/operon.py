"""Operon (Burlacu, Kronberger & Kommenda 2020) as a search for formulas: fast genetic programming in C++.

It finds what no library foresees. Its tree evolution (NSGA-II on error and length, constants by Levenberg and
Marquardt) runs twice, with the four operations and with functions as well, in two processes at once; its last
populations are harvested as a whole, because the right form is often not on its front, and polished here.
"""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import dataclass, replace

import numpy as np
import sympy as sp

from ude.discovery.candidate import Candidate, distinct, mark_pareto, zero_formula
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.evaluation import Array
from ude.discovery.samples import Samples, is_negligible, thin
from ude.discovery.search.free_part import free_part
from ude.discovery.search.notation import parse_equation
from ude.discovery.search.operon_worker import OPERATORS, closest
from ude.discovery.search.polish import polished
from ude.discovery.search.worker import SearchEngine, Worker, gather
from ude.errors import InputError, UdeError

ENGINE = SearchEngine(
    name="Operon",
    script="operon_worker.py",
    needs="the package pyoperon, on a processor with AVX2",
    install='python -m pip install "ude[operon]"',
    instead="Try LibraryRegressor(), which needs nothing else.",
)
_RATIONAL = ("+", "-", "*", "/")
_GRACE = 30.0  # seconds beyond the budget for starting Python, loading pyoperon and writing the table


@dataclass(frozen=True)
class Operon:
    """Operon behind the `SymbolicRegressor` protocol.

    functions: what the second run may use besides + - * /: of ^ sin cos tan tanh exp log sqrt abs square; with none,
        there is only the first run.
    generations, population: of each run; these are the budget, so that the same seed gives the same answer.
    max_length, max_depth: nodes and depth of a tree, variables with their factor counting as one node.
    local_iterations: steps of Levenberg and Marquardt for each new tree.
    keep: trees of each length and run that are polished. max_samples: above this, an even selection of the samples is
        searched on (all are used to polish).
    max_seconds: of each run, after which it ends with what it has (then, and only then, the answer depends on the
        machine's speed). seed: of the evolution. arithmetic: what both runs may use, of + - * /.

    Raises InputError for options out of range, BackendMissing where pyoperon is not installed, UdeError where the
    process fails or is ended.

    >>> search = ude.search.Operon(max_length=12, seed=1)  # its search needs pip install 'ude[operon]'
    >>> search.max_length
    12
    """

    functions: tuple[str, ...] = ("sin", "exp", "log", "sqrt", "abs")
    generations: int = 50
    population: int = 500
    max_length: int = 18
    max_depth: int = 8
    local_iterations: int = 5
    keep: int = 2
    max_samples: int = 300
    max_seconds: float = 20.0
    seed: int = 0
    arithmetic: tuple[str, ...] = ("+", "-", "*", "/")

    def __post_init__(self) -> None:
        known = [name for name in OPERATORS if name not in _RATIONAL]
        unknown = [name for name in self.functions if name not in known]
        if unknown:
            raise InputError("Operon(functions)", expected=f"any of {' '.join(known)}", got=" ".join(unknown))
        if not self.arithmetic or not set(self.arithmetic) <= set(_RATIONAL):
            raise InputError("Operon(arithmetic)", expected="any of + - * /", got=" ".join(self.arithmetic) or "none")
        for name in ("generations", "population", "max_length", "max_depth", "local_iterations", "keep"):
            if getattr(self, name) < 1:
                raise InputError(f"Operon({name})", expected="1 or more", got=str(getattr(self, name)))
        for name, least in (("max_samples", 10), ("max_seconds", 1)):
            if not getattr(self, name) >= least:
                raise InputError(f"Operon({name})", expected=f"{least} or more", got=str(getattr(self, name)))

    def informed(self, constraints: TermConstraints) -> Operon:
        """The same search with less to look through. Products stay, as every number is a factor."""
        arithmetic = tuple(name for name in self.arithmetic if name == "*" or constraints.allows(name))
        base = {"square": "^"}
        functions = tuple(name for name in self.functions if constraints.allows(base.get(name, name)))
        return replace(self, arithmetic=arithmetic, functions=functions)

    def search(self, samples: Samples) -> list[Candidate]:
        """Distinct candidates, simplest first, the Pareto front marked; the formula 0 is always among them."""
        return self.begin(samples).candidates()

    def begin(self, samples: Samples) -> Evolution:
        """Start the search's processes, one a run, and come back: the candidates are asked for later."""
        few = equally_weighted(thin(samples, self.max_samples))
        target = few.output - free_part(few)
        # Single precision and constants that begin near one: inputs and output are brought to that size.
        scales = {name: float(np.max(np.abs(value))) or 1.0 for name, value in few.inputs.items()}
        size = float(np.std(target)) or float(np.max(np.abs(target))) or 1.0
        if is_negligible(samples):
            return Evolution(self, samples, scales, size, [])
        x = np.stack([value / scales[name] for name, value in few.inputs.items()], axis=1)
        arrays = {"X": x, "y": target / size}
        told = [{**self.options(), "operators": [run], "seed": self.seed + 1 + i} for i, run in enumerate(self.runs)]
        workers: list[Worker] = []
        try:
            for options in told:
                workers.append(Worker(ENGINE, arrays, options))
        except BaseException:
            for worker in workers:
                worker.close()
            raise
        return Evolution(self, samples, scales, size, workers)

    @property
    def runs(self) -> list[list[str]]:
        """The operators of each run."""
        plain = list(self.arithmetic)
        return [plain, [*plain, *self.functions]] if self.functions else [plain]

    def options(self) -> dict[str, object]:
        """What the worker is told."""
        return {
            "operators": self.runs,
            "generations": self.generations,
            "population": self.population,
            "max_length": self.max_length,
            "max_depth": self.max_depth,
            "local_iterations": self.local_iterations,
            "max_evaluations": 10**9,
            "max_seconds": self.max_seconds,
            "keep": self.keep,
            "seed": self.seed + 1,  # pyoperon takes 0 for "no seed"
        }


@dataclass(frozen=True)
class Evolution:
    """A search that is under way in processes of its own.

    scales: input -> what it was divided by; size: what the output was divided by.
    """

    search: Operon
    samples: Samples
    scales: dict[str, float]
    size: float
    workers: list[Worker]

    def candidates(self) -> list[Candidate]:
        """Wait for the end: what `Operon.search` gives."""
        found = [zero_formula(self.samples, "operon")]
        if self.workers:
            found += polished(self.expressions(), self.samples, "operon")
        return mark_pareto(distinct(found, self.samples, 1e-6))

    def expressions(self) -> list[sp.Expr]:
        """What Operon wrote, in the inputs' own names and units, its numbers as SymPy floats."""
        rows = closest(gather(self.workers, self.search.max_seconds + _GRACE))
        if not rows:
            raise UdeError("Operon found no formula with a finite error", fix=ENGINE.instead)
        units = {sp.Symbol(name): sp.Symbol(name) / sp.Float(scale) for name, scale in self.scales.items()}
        ordered = sorted(rows, key=lambda row: (row["length"], row["nmse"], row["equation"]))
        names = list(self.scales)
        found = []
        for row in ordered:
            with contextlib.suppress(InputError):  # a part of it is infinite or not real: not a formula to consider
                found.append(sp.Float(self.size) * parse_equation(row["equation"], names, "Operon").xreplace(units))
        if not found:
            first = repr(ordered[0]["equation"])
            raise UdeError("none of Operon's formulas can be read", got=first, fix=ENGINE.instead)
        return found

    def close(self) -> None:
        """End what still runs; for a search whose answer is not wanted any more."""
        for worker in self.workers:
            worker.close()


def operon_is_installed() -> bool:
    """Whether pyoperon can be found; loading it, which takes a while, is left to the worker."""
    return importlib.util.find_spec("pyoperon") is not None


def equally_weighted(samples: Samples) -> Samples:
    """As many samples drawn at even steps of the cumulative weight, for an engine that knows no weights."""
    if np.ptp(samples.weights) == 0.0:
        return samples
    share = np.cumsum(samples.weights) / np.sum(samples.weights)
    rows = np.searchsorted(share, (np.arange(samples.size) + 0.5) / samples.size)
    inputs: dict[str, Array] = {name: value[rows] for name, value in samples.inputs.items()}
    return Samples(inputs, samples.output[rows], samples.name, samples.nuisance[rows])
