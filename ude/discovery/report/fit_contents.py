"""What the page of a fit alone shows: as that of a discovery, with networks where the formulas would be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ude.discovery.report.discovery_contents import facts_of_fit, grid_beyond, versions
from ude.discovery.samples import Samples
from ude.discovery.sampling import sample_terms, trajectory_points
from ude.errors import ModelError, SolveFailed
from ude.fitting.data.trajectory import Trajectory
from ude.fitting.result import Fit
from ude.models import UDE, FunctionModel
from ude.models.export.export import export
from ude.reporting.contents import Contents, Function, Run, Sheet


def contents_of_fit(fit: Fit, *, reproduce: str = "") -> Contents:
    """Data and prediction, the networks along the trajectories, parameters, history and settings.

    reproduce: the command that repeats the fit. Raises ModelError for a model without equations.
    """
    model = fit.model.to_ude() if isinstance(fit.model, FunctionModel) else fit.model
    if not isinstance(model, UDE):
        raise ModelError("the page of a fit needs equations", expected="ude.UDE", got=type(model).__name__)
    functions, missing = _functions(fit, model)
    notes = [*fit.data.notes, *fit.notes, *missing]
    if fit.interrupted:
        notes.append("The fit was interrupted; this is the best up to there.")
    unknown = ", ".join(model.unknown_outputs)
    return Contents(
        title=f"Fit of {', '.join(model.states)}",
        equations=export(model, to="mathml", digits=4),
        text=export(model, digits=4),
        columns=fit.measurement.names,
        time=fit.data.time_name,
        verdict="fitted, not yet discovered" if unknown else "",
        sentences=[f"Still a network: {unknown}. ude discover looks for formulas."] if unknown else [],
        runs=_runs(fit),
        functions=functions,
        errors=_errors(fit),
        sheets=[sheet for sheet in (_parameters(fit), _starts(fit), _noise(fit), _stages(fit)) if sheet.rows],
        facts={
            **facts_of_fit(fit),
            "numbers fitted": str(fit.fitted_numbers),
            "log-likelihood": f"{fit.log_likelihood:.6g}",
            "AIC": f"{fit.aic:.6g}",
            "BIC": f"{fit.bic:.6g}",
            "options": repr(fit.options),
            **versions(("ude", "torch", "numpy", "scipy", "sympy")),
        },
        notes=notes,
        reproduce=reproduce,
        losses={str(stage): own["loss"].tolist() for stage, own in fit.history.groupby("stage", sort=False)},
    )


def _runs(fit: Fit) -> list[Run]:
    band = [2.0 * error for error in fit.rmse(fit.train).values()]
    data = fit.data.select(fit.measurement.names).trajectories
    tails: Sequence[Trajectory | None] = [None] * len(data) if fit.held_out is None else fit.held_out.trajectories
    return [
        Run(own.name, own.t.tolist(), own.u.tolist(), t.tolist(), u.tolist(), band, _first(tail))
        for own, (t, u), tail in zip(
            fit.data.select(fit.measurement.names).trajectories, fit.curves(), tails, strict=True
        )
    ]


def _first(tail: Trajectory | None) -> float | None:
    return None if tail is None or not len(tail.t) else float(tail.t[0])


def _functions(fit: Fit, model: UDE) -> tuple[list[Function], list[str]]:
    """The networks, and a sentence where they cannot be shown."""
    if not model.unknown_outputs:
        return [], []
    if fit.per_trajectory:
        own = ", ".join(fit.per_trajectory)
        return [], [f"The unknown functions are not drawn, as {own} differ between trajectories."]
    try:
        points = trajectory_points(fit, 300)
        samples = sample_terms(fit, points)
    except SolveFailed as error:
        return [], [f"The unknown functions are not drawn, as the model breaks down: {error}"]
    return [_function(model, name, own, points.t) for name, own in samples.items()], []


def _function(model: UDE, name: str, samples: Samples, t: np.ndarray) -> Function:
    grid = grid_beyond(samples)
    shown = None
    if grid:
        term = model.provider(name)
        mesh = dict(zip(grid, np.meshgrid(*grid.values(), indexing="ij"), strict=True))
        with torch.no_grad():
            answer = term(*(torch.as_tensor(mesh[key]).reshape(-1) for key in term.inputs))
        value = answer[term.outputs.index(name)] if isinstance(answer, tuple) else answer
        shown = value.numpy().reshape(next(iter(mesh.values())).shape).tolist()
    return Function(
        name,
        {key: own.tolist() for key, own in samples.inputs.items()},
        samples.output.tolist(),
        # a function that is called with several lists of arguments has samples of all, one after another
        t=t.tolist() if samples.size == len(t) else None,
        grid={key: own.tolist() for key, own in grid.items()},
        grid_network=shown,
    )


# -- tables ------------------------------------------------------------------------------------------------------------


def _errors(fit: Fit) -> Sheet:
    parts = {"training": fit.train, "validation": fit.validation, "held-out": fit.held_out}
    rows = [[f"on {name} data", *fit.rmse(part).values()] for name, part in parts.items() if part is not None]
    note = "Root mean square of the whole trajectory, in the units of the data."
    return Sheet("Errors", note, ["", *fit.measurement.names], rows)


def _parameters(fit: Fit) -> Sheet:
    values = fit.model.values()
    rows = []
    for name, entry in fit.model.parameters_table.items():
        bounds = ["" if bound is None else bound for bound in (entry.lower, entry.upper)]
        own = fit.per_trajectory.get(name)
        rows.append([name, values[name], "fitted" if entry.fitted else "given", *bounds])
        if own is not None:
            named = zip(fit.data.trajectories, own.tolist(), strict=True)
            rows[-1][0] = f"{name} (mean)"
            rows += [[f"{name} in {trajectory.name}", number, "fitted", *bounds] for trajectory, number in named]
    return Sheet("Parameters", "", ["", "value", "", "lower", "upper"], rows)


def _starts(fit: Fit) -> Sheet:
    named = zip(fit.data.trajectories, fit.u0.tolist(), strict=True)
    rows = [[trajectory.name, float(trajectory.t[0]), *start] for trajectory, start in named]
    note = "Where each trajectory starts, at its first time."
    return Sheet("Initial states", note, ["", fit.data.time_name, *fit.model.states], rows)


def _noise(fit: Fit) -> Sheet:
    rows = [[name, repr(model)] for name, model in fit.noise_models.items()]
    return Sheet("Noise", "Noise models with their estimated scales.", ["column", "model"], rows)


def _stages(fit: Fit) -> Sheet:
    rows: list[list[object]] = []
    before = 0.0
    for stage, own in fit.history.groupby("stage", sort=False):
        last = own.iloc[-1]
        seconds = float(last["seconds"])
        rows.append([stage, len(own), int(last["evaluations"]), float(last["loss"]), round(seconds - before, 3)])
        before = seconds
    return Sheet("Stages", "", ["", "iterations", "evaluations", "loss", "seconds"], rows)
