"""The candidates of one term from several searches: run, guarded, merged, held against what is known."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from ude.discovery.candidate import Candidate, SymbolicRegressor, distinct, mark_pareto
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.samples import Samples
from ude.discovery.search.library import LibraryRegressor
from ude.discovery.search.operon import Operon, operon_is_installed
from ude.errors import InputError, UdeError


class SearchWarning(UserWarning):
    """One of several searches gave nothing, and the others went on without it."""


def default_searches(seed: int = 0) -> list[SymbolicRegressor]:
    """The library, and Operon where pyoperon is installed."""
    library: list[SymbolicRegressor] = [LibraryRegressor()]
    return [*library, Operon(seed=seed)] if operon_is_installed() else library


def note_on_searches(searches: Sequence[SymbolicRegressor]) -> str:
    """What a user should know of the default searches here; "" where all of them are."""
    if any(isinstance(search, Operon) for search in searches):
        return ""
    return (
        'Operon is not installed, so only library formulas are searched. Add it: python -m pip install "ude[operon]".'
    )


def fronts(
    samples: Mapping[str, Samples],
    searches: Sequence[SymbolicRegressor],
    constraints: Mapping[str, TermConstraints],
    on_search: Callable[[], None] = lambda: None,
    on_front: Callable[[str, list[Candidate]], None] = lambda name, found: None,
) -> dict[str, list[Candidate]]:
    """The merged candidates of all searches for each term, simplest first, with `pareto` marked again.

    What runs in processes of its own is started one term ahead. on_front: told the name and front of each term as soon
    as it is there. A search that fails is left out with a `SearchWarning` as long as another one works.

    Raises what the search raised where none works, ModelError where nothing agrees with what is known.
    """
    found: dict[str, list[Candidate]] = {}
    with ExitStack() as stack:
        ahead: list[_Searches] = []
        names = list(samples)
        for index, name in enumerate(names):
            for later in names[len(ahead) : index + 2]:
                ahead.append(stack.enter_context(closing(_Searches(samples[later], searches, constraints.get(later)))))
            found[name] = ahead[index].front(on_search)
            on_front(name, found[name])
    return found


class _Searches:
    """The searches for one term; those with a method ``begin(samples)`` (`Operon`) are started at once."""

    def __init__(
        self, samples: Samples, searches: Sequence[SymbolicRegressor], constraints: TermConstraints | None = None
    ) -> None:
        if constraints is not None:
            constraints.check(samples)
        self.constraints = constraints
        self.samples = samples if constraints is None else constraints.restricted(samples)
        self.searches = [informed(search, constraints) for search in searches]
        self.begun: list[Any] = []
        try:
            for search in self.searches:
                self.begun.append(search.begin(self.samples) if hasattr(search, "begin") else None)
        except BaseException:
            self.close()
            raise

    def front(self, on_search: Callable[[], None]) -> list[Candidate]:
        found: list[Candidate] = []
        failures: list[UdeError] = []
        for search, begun in zip(self.searches, self.begun, strict=True):
            try:
                candidates = search.search(self.samples) if begun is None else begun.candidates()
                found += checked(candidates, search, self.samples)
            except UdeError as error:
                failures.append(error)
            on_search()
        if len(failures) == len(self.searches):
            raise failures[0]
        for failure in failures:
            warnings.warn(f"{failure} The other searches went on without it.", SearchWarning, stacklevel=4)
        both = merged(found, self.samples)
        return both if self.constraints is None else self.constraints.applied(both, self.samples)

    def close(self) -> None:
        for begun in self.begun:
            if begun is not None:
                begun.close()


def informed(search: SymbolicRegressor, constraints: TermConstraints | None) -> SymbolicRegressor:
    """The search told of what is known, where it can be."""
    tell = getattr(search, "informed", None)
    told: SymbolicRegressor = search if constraints is None or tell is None else tell(constraints)
    return told


def checked(candidates: Sequence[Candidate], search: SymbolicRegressor, samples: Samples) -> list[Candidate]:
    """The candidates whose error is a number. Raises InputError where none has one."""
    usable = [candidate for candidate in candidates if math.isfinite(candidate.nmse) and candidate.nmse >= 0.0]
    if not usable:
        raise InputError(
            f"{type(search).__name__} gave no formula with a finite error for {samples.name}",
            expected="candidates whose error is a finite number",
            got=f"{len(candidates)} candidates, errors {sorted({str(c.nmse) for c in candidates})}",
            fix="Try LibraryRegressor().",
        )
    return usable


def merged(candidates: Sequence[Candidate], samples: Samples) -> list[Candidate]:
    """Of candidates with the same values on the samples the simplest."""
    return mark_pareto(distinct(candidates, samples, 1e-5))
