"""What the report of a discovery shows: its numbers as plain data, handed to `reporting`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import sympy as sp
import torch

from ude.discovery.evaluation import Array, evaluate
from ude.discovery.report import figures
from ude.discovery.result import DiscoveryResult
from ude.discovery.samples import Samples
from ude.discovery.sampling import equations_of, gauge_directions
from ude.discovery.selection.combination import Combination
from ude.fitting.result import Fit
from ude.models import UDE, to_text
from ude.models.equations.names import TIME
from ude.models.export.export import export
from ude.models.export.mathml import named_mathml
from ude.reporting.contents import Contents, FrontPoint, Function, Run, Sheet

_GRID, _CURVE = 41, 201
_BEYOND = 0.2  # how far beyond the data a function is drawn, of their width


def contents(found: DiscoveryResult, *, reproduce: str = "") -> Contents:
    """Everything that the page of a discovery shows. reproduce: the command that repeats the run."""
    fit = found.fit
    columns = fit.measurement.names
    errors = Sheet(
        "Errors",
        "Root mean square of the whole trajectory, in the units of the data.",
        ["", *columns],
        figures.error_table(found),
    )
    return Contents(
        title=f"Equations of {', '.join(fit.model.states)}",
        equations=export(found, to="mathml", digits=found.digits),
        text=export(found, digits=found.digits),
        columns=columns,
        time=fit.data.time_name,
        verdict=found.verdict.kind,
        sentences=_sentences(found),
        runs=_runs(found),
        functions=[_function(found, name) for name in found.terms],
        front=_front(found),
        errors=errors,
        sheets=_sheets(found),
        programs=_programs(found),
        facts=_facts(found),
        notes=(*fit.data.notes, *fit.notes),
        reproduce=reproduce,
    )


def _sentences(found: DiscoveryResult) -> list[str]:
    words = list(found.verdict.sentences)
    return [*words, "The run was interrupted; this is the best up to there."] if found.interrupted else words


def _runs(found: DiscoveryResult) -> list[Run]:
    data, model, labels, tails = figures.trajectories(found)
    errors = found.rmse(found.fit.train, training_constants=True)
    band = [2.0 * errors[column] for column in labels.states]
    runs = []
    for i, (own, line) in enumerate(zip(data, model, strict=True)):
        tail = None if tails is None or not np.isfinite(tails[i]) else tails[i]
        name = found.fit.data.trajectories[i].name
        runs.append(Run(name, own.t.tolist(), own.u.tolist(), line.t.tolist(), line.u.tolist(), band, tail))
    return runs


# -- unknown functions -------------------------------------------------------------------------------------------------


def _function(found: DiscoveryResult, name: str) -> Function:
    samples, candidate = found.samples[name], found.chosen.candidates[name]
    values = {c: found.final.values[f"{name}_{c}"] for c in candidate.constants}
    formula = np.broadcast_to(evaluate(candidate.expression, {**samples.inputs, **values}), samples.output.shape)
    network, coefficients = figures.in_the_gauge_of(formula, samples)
    t = np.asarray(found.along.get(TIME, ()), dtype=float)
    grid = grid_beyond(samples)
    on_grid = None
    if grid:
        mesh = dict(zip(grid, np.meshgrid(*grid.values(), indexing="ij"), strict=True))
        on_grid = _network_at(found, name, mesh, coefficients)
    shown: dict[str, Any] = {}
    if on_grid is not None:
        with np.errstate(all="ignore"):
            at_grid = np.broadcast_to(evaluate(candidate.expression, {**mesh, **values}), on_grid.shape)
        shown = {
            "grid": {key: own.tolist() for key, own in grid.items()},
            "grid_network": on_grid.tolist(),
            "grid_formula": at_grid.tolist(),
        }
    return Function(
        name,
        {key: own.tolist() for key, own in samples.inputs.items()},
        network.tolist(),
        formula.tolist(),
        to_text(found.terms[name], 4),
        named_mathml(name, tuple(samples.inputs), found.terms[name]),
        # a function that is called with several lists of arguments has samples of all, one after another
        t.tolist() if samples.size == len(t) else None,
        **shown,
    )


def grid_beyond(samples: Samples) -> dict[str, Array]:
    """Inputs on a grid somewhat beyond the data; {} for more than two inputs, or one that does not change."""
    if len(samples.inputs) > 2:
        return {}
    points, grid = _CURVE if len(samples.inputs) == 1 else _GRID, {}
    for name, values in samples.inputs.items():
        low, high = float(values.min()), float(values.max())
        room = _BEYOND * (high - low)
        if room <= 1e-12 * max(abs(low), abs(high)):
            return {}
        # what is positive in the data stays so: roots and logarithms end at zero
        grid[name] = np.linspace(max(low - room, 0.02 * low) if low > 0 else low - room, high + room, points)
    return grid


def _network_at(found: DiscoveryResult, name: str, mesh: dict[str, Array], coefficients: Array) -> Array | None:
    """The network on a grid of its inputs, in the gauge of the formula; None where that cannot be said."""
    model = equations_of(found.fit)
    term = model.provider(name)
    directions = _directions(model, name)
    if directions is None or len(directions) != len(coefficients):
        return None
    with torch.no_grad():
        answer = term(*(torch.as_tensor(mesh[key]).reshape(-1) for key in term.inputs))
    index = term.outputs.index(name)
    value = (answer[index] if isinstance(answer, tuple) else answer).numpy().reshape(next(iter(mesh.values())).shape)
    for direction, coefficient in zip(directions, coefficients, strict=True):
        known: dict[str, Array | float] = {**model.values(), **mesh}
        if any(free.name not in known for free in direction.free_symbols):
            return None
        value = value + coefficient * np.broadcast_to(evaluate(direction, known), value.shape)
    return np.asarray(value)


def _directions(model: UDE, name: str) -> list[sp.Expr] | None:
    """Gauge directions of a function in the names of its inputs; None where it is called with something else."""
    inputs = model.provider(name).inputs
    if tuple(model.calls.get(name, ())) != tuple(inputs):
        return None
    return [d for d in gauge_directions(model, name) if not d.atoms(sp.core.function.AppliedUndef)]


# -- candidates and tables ---------------------------------------------------------------------------------------------


def _front(found: DiscoveryResult) -> list[FrontPoint]:
    table = found.front
    points = []
    for combination, (_, row) in zip(found.selection.ranked, table.iterrows(), strict=True):
        details = {"complexity": float(row["complexity"]), "misfit": float(row["sse"]), "score": float(row["score"])}
        for column in table.columns:
            if column in ("bic", "probability") or column.startswith("held-out"):
                details[column] = float(row[column])
        points.append(
            FrontPoint(
                ", ".join(f"{name} = {row[name]}" for name in found.terms),
                _formulas(combination),
                float(row["complexity"]),
                float(row["sse"]),
                bool(row["chosen"]),
                details,
            )
        )
    return points


def _formulas(combination: Combination) -> str:
    return "<br>".join(
        named_mathml(name, (), candidate.substituted) for name, candidate in combination.candidates.items()
    )


def _sheets(found: DiscoveryResult) -> list[Sheet]:
    sheets = [
        _of_frame(
            found.inclusion,
            "Which terms are sure",
            "Probability that a summand belongs to the function, over all candidates and resampled data.",
        ),
        _of_frame(found.intervals, "Constants", "95 % intervals from the curvature of the misfit to all data."),
        _of_frame(
            found.confounding,
            "What a network can hide",
            "How far a function of the term's inputs can stand in for a fitted parameter (share 1: entirely).",
        ),
    ]
    stability = found.stability
    rows = [
        [
            ", ".join(f"{name} = {value:.4g}" for name, value in own.state.items()),
            own.kind,
            ", ".join(_complex(value) for value in own.eigenvalues),
            "yes" if own.visited else "no",
        ]
        for own in stability.equilibria
    ]
    sheets.append(Sheet("Far beyond the data", stability.sentence, ["at rest", "kind", "eigenvalues", "visited"], rows))
    return [sheet for sheet in sheets if sheet.rows or sheet.title == "Far beyond the data"]


def _of_frame(frame: pd.DataFrame, title: str, note: str) -> Sheet:
    rows = [[_plain(cell) for cell in row] for row in frame.itertuples(index=False)]
    return Sheet(title, note, [str(column) for column in frame.columns], rows)


def _plain(cell: Any) -> Any:
    cell = cell.item() if isinstance(cell, np.generic) else cell
    return ("yes" if cell else "no") if isinstance(cell, bool) else cell if isinstance(cell, int | float) else str(cell)


def _complex(value: complex) -> str:
    return (
        f"{value.real:.3g}"
        if value.imag == 0
        else f"{value.real:.3g} {'+' if value.imag > 0 else '-'} {abs(value.imag):.3g}i"
    )


def _programs(found: DiscoveryResult) -> dict[str, str]:
    return {
        "LaTeX": export(found, to="latex", digits=found.digits),
        "Python (SciPy)": export(found, to="python"),
        "Python (torch)": export(found, to="torch"),
        "Julia": export(found, to="julia"),
    }


def _facts(found: DiscoveryResult) -> dict[str, str]:
    limited = "" if found.selection.complete else " (time or number was limited)"
    return {
        **facts_of_fit(found.fit),
        "combinations fitted": f"{len(found.selection.ranked)}{limited}",
        **versions(("ude", "torch", "numpy", "scipy", "sympy", "pyoperon", "pysr")),
    }


def facts_of_fit(fit: Fit) -> dict[str, str]:
    """What was fitted to, and with what seed."""
    points = [len(trajectory) for trajectory in fit.data.trajectories]
    return {
        "data": f"{sum(points)} times in {len(points)} {'run' if len(points) == 1 else 'runs'}",
        "fingerprint of the data (SHA-256)": fit.data.digest,
        "held out": str(fit.holdout),
        "seed": str(fit.seed),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Python's release and those of packages that are there."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
