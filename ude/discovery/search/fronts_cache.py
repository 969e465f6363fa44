"""The candidates of each term kept in a folder, so that a discovery that was interrupted does not search twice.

``fronts/U1.json`` holds the candidates of U1 and a key: a hash of the samples, the searches, the constraints and the
releases. Formulas are kept as trees of SymPy's names and exact numbers, never as text that is evaluated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sympy as sp

from ude.discovery.cache_keys import keep, key_of
from ude.discovery.candidate import Candidate, SymbolicRegressor
from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.samples import Samples
from ude.discovery.search.fronts import fronts
from ude.models.equations.functions import PRINTED_FUNCTIONS
from ude.untrusted import JSON, read_json, sealed

FOLDER = "fronts"
_NAMED = {"pi": sp.pi, "E": sp.E}
_OPERATIONS = {"Add", "Mul", "Pow", *PRINTED_FUNCTIONS} & set(dir(sp))
_CANDIDATE = {
    "expression": JSON,
    "constants": {str: float},
    "complexity": int,
    "nmse": float,
    "source": str,
    "pareto": bool,
}


def fronts_kept_in(
    folder: str | Path | None,
    samples: Mapping[str, Samples],
    searches: Sequence[SymbolicRegressor],
    constraints: Mapping[str, TermConstraints],
    on_search: Callable[[], None] = lambda: None,
) -> dict[str, list[Candidate]]:
    """As `fronts`; read from the folder where the same searches of the same samples left their candidates there.

    Each is kept as soon as it is found. Not kept are fronts for which a search failed, those of searches that are no
    dataclasses (what they are told is not known), and those with formulas that cannot be written exactly. A file that
    cannot be read is one that is not there.

    Raises as `fronts`, and InputError for a folder that cannot be written to.
    """
    if folder is None or not all(is_dataclass(search) for search in searches):
        return fronts(samples, searches, constraints, on_search)
    paths = {name: Path(folder) / FOLDER / f"{name}.json" for name in samples}
    keys = {name: _key(own, searches, constraints.get(name)) for name, own in samples.items()}
    kept = {name: found for name in samples if (found := _read(paths[name], keys[name])) is not None}
    for _ in range(len(kept) * len(searches)):
        on_search()
    missing = {name: own for name, own in samples.items() if name not in kept}
    if not missing:
        return kept
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        earlier = 0

        def keep_found(name: str, found: list[Candidate]) -> None:
            nonlocal earlier
            if len(said) == earlier:  # no search of this term failed
                _write(paths[name], keys[name], found)
            earlier = len(said)

        searched = fronts(missing, searches, constraints, on_search, keep_found)
    for one in said:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    every = {**kept, **searched}
    return {name: every[name] for name in samples}


def _key(samples: Samples, searches: Sequence[SymbolicRegressor], constraints: TermConstraints | None) -> str:
    told = [samples.name, list(samples.inputs), [repr(search) for search in searches], repr(constraints)]
    arrays = *samples.inputs.values(), samples.output, samples.nuisance, samples.weights
    return key_of([*told, version("ude"), sp.__version__], arrays)


def _read(path: Path, key: str) -> list[Candidate] | None:
    try:
        kept = read_json(path, {"key": str, "candidates": [_CANDIDATE]})
        if kept["key"] != key:
            return None
        return [Candidate(**{**own, "expression": _formula(own["expression"])}) for own in kept["candidates"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _write(path: Path, key: str, found: Sequence[Candidate]) -> None:
    try:
        rows = [_row(candidate) for candidate in found]
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    keep(path, sealed({"key": key, "candidates": rows}))


def _row(candidate: Candidate) -> dict[str, Any]:
    """Plain data. Raises ValueError for a formula that would not be read back the same, and as `_formula`."""
    tree = _tree(candidate.expression)
    if _formula(tree) != candidate.expression:  # such as symbols with assumptions
        raise ValueError(f"{candidate.expression} cannot be kept")
    return {
        "expression": tree,
        "constants": {name: float(value) for name, value in candidate.constants.items()},
        "complexity": int(candidate.complexity),
        "nmse": float(candidate.nmse),
        "source": candidate.source,
        "pareto": bool(candidate.pareto),
    }


def _tree(e: sp.Basic) -> list[Any]:
    if isinstance(e, sp.Symbol):
        return ["Symbol", e.name]
    if isinstance(e, sp.Float):
        return ["Float", float(e)]
    if isinstance(e, sp.Rational):
        return ["Rational", int(e.p), int(e.q)]
    if isinstance(e, sp.NumberSymbol):
        return ["Named", str(e)]
    return [type(e).__name__, *(_tree(argument) for argument in e.args)]


def _formula(tree: Sequence[Any]) -> sp.Expr:
    """Raises ValueError, TypeError, KeyError or AttributeError for what `_tree` did not write."""
    kind, *parts = tree
    if kind == "Symbol":
        return sp.Symbol(str(parts[0]))
    if kind == "Float":
        return sp.Float(float(parts[0]))
    if kind == "Rational":
        return sp.Rational(int(parts[0]), int(parts[1]))
    if kind == "Named":
        return _NAMED[parts[0]]
    if kind not in _OPERATIONS:
        raise ValueError(f"{kind} is no operation")
    return getattr(sp, kind)(*(_formula(part) for part in parts))
