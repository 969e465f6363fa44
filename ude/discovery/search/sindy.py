"""SINDy's sequentially thresholded least squares (Brunton, Proctor & Kutz 2016), through pysindy, as a search.

The term's samples are regressed on fixed library columns, normalized and with the nuisance directions projected out,
for a ladder of thresholds and penalties; each set of columns that is left is a candidate. Where the library's exact
search compares all subsets, this one follows a path through them, which costs the same with a hundred columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ude.discovery.candidate import Candidate, distinct, mark_pareto, zero_formula
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.evaluation import Array
from ude.discovery.samples import Samples, is_negligible, project_out
from ude.discovery.search.library import Column, LibraryRegressor, Subset, polish
from ude.errors import BackendMissing, InputError

INSTALL = 'python -m pip install "ude[sindy]"'


@dataclass(frozen=True)
class SINDy:
    """STLSQ behind the `SymbolicRegressor` protocol.

    degree: highest degree of the monomials; None: that of `LibraryRegressor`. unary: whether to offer functions of one
    input too. thresholds: shares of the largest coefficient (of normalized columns) below which one is dropped.
    penalties: ridge penalties tried with each. max_terms: candidates with more are left out.

    Deterministic. Raises InputError for options out of range, BackendMissing where pysindy is not installed.

    >>> x = np.linspace(0.1, 3.0, 40)
    >>> samples = ude.search.Samples({"x": x}, 2.0 * x - 0.5 * x**2)
    >>> front = ude.search.SINDy(degree=2).search(samples)
    >>> sorted(round(value, 3) for value in min(front, key=lambda candidate: candidate.nmse).constants.values())
    [-0.5, 2.0]
    """

    degree: int | None = None
    unary: bool = False
    thresholds: tuple[float, ...] = tuple(float(x) for x in np.geomspace(0.002, 0.9, 16))
    penalties: tuple[float, ...] = (1e-8, 1e-4, 1e-2)
    max_terms: int = 8
    library: LibraryRegressor = LibraryRegressor(atoms=False)

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 < value < 1 for value in self.thresholds):
            raise InputError("SINDy(thresholds)", expected="numbers between 0 and 1", got=str(self.thresholds))
        if not self.penalties or not all(value >= 0 for value in self.penalties):
            raise InputError("SINDy(penalties)", expected="numbers, zero or more", got=str(self.penalties))
        if self.max_terms < 1:
            raise InputError("SINDy(max_terms)", expected="1 or more", got=str(self.max_terms))

    def informed(self, constraints: TermConstraints) -> SINDy:
        """The same search with less to look through."""
        return replace(self, library=self.library.informed(constraints))

    def search(self, samples: Samples) -> list[Candidate]:
        """Distinct candidates, simplest first, the Pareto front marked; the formula 0 is always among them."""
        found = [zero_formula(samples, "sindy")]
        stlsq = _stlsq()
        if not is_negligible(samples):
            offered = replace(self.library, degree=self.degree or self.library.degree, unary=self.unary, atoms=False)
            columns = offered.library(samples.inputs)
            for chosen in dict.fromkeys(self._supports(stlsq, columns, samples)):
                parts = tuple(columns[index] for index in chosen)
                candidate = polish(Subset(parts, tuple(np.empty(0) for _ in parts), 0.0), samples)
                if candidate is not None:
                    found.append(replace(candidate, source="sindy"))
        return mark_pareto(distinct(found, samples))

    def _supports(self, stlsq: Any, columns: list[Column], samples: Samples) -> Iterator[tuple[int, ...]]:
        raw = np.concatenate([column.values(samples.inputs) for column in columns], axis=1)
        rest = project_out(samples, raw / np.maximum(np.abs(raw).max(axis=0), 1e-300))
        norms = np.linalg.norm(rest, axis=0)
        usable = np.flatnonzero(norms > 1e-7)
        matrix: Array = rest[:, usable] / norms[usable]
        target = project_out(samples, samples.output[:, None])
        target = target / np.linalg.norm(target)
        for penalty in self.penalties:
            largest = float(np.max(np.abs(np.linalg.lstsq(matrix, target, rcond=1e-12)[0])))
            for share in self.thresholds:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # it warns where a threshold leaves nothing, which is no harm here
                    found = stlsq(threshold=share * min(largest, 1.0), alpha=penalty, max_iter=50).fit(matrix, target)
                support = tuple(int(usable[index]) for index in np.flatnonzero(np.ravel(found.coef_)))
                if 0 < len(support) <= self.max_terms:
                    yield support


def _stlsq() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pysindy.optimizers import STLSQ
    except ImportError as error:
        raise BackendMissing(
            "SINDy cannot start", expected="the package pysindy", got=str(error), fix=f"Install it with {INSTALL}."
        ) from error
    return STLSQ
