"""``ude fit``: train a model on data, and keep the fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ude
from ude.cli.console import INTERRUPTED, OK, Console, Json, Quiet, Verbose, columns
from ude.cli.request import (
    Equations,
    Fitted,
    HoldoutOption,
    Known,
    Out,
    Request,
    Seed,
    Source,
    Time,
    Trajectory,
    opened,
)
from ude.cli.run_folder import RunFolder, free_name, logged_in

if TYPE_CHECKING:
    from ude.cli.specification import Specification
    from ude.fitting import Dataset
    from ude.fitting.result import Fit
    from ude.models import UDE


def fit(
    source: Source,
    equation: Equations = None,
    fitted: Fitted = None,
    param: Known = None,
    time: Time = None,
    trajectory: Trajectory = None,
    holdout: HoldoutOption = None,
    out: Out = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> int:
    """Fit parameters and unknown functions to data, and write a run folder; discover continues from it."""
    console = Console(quiet, verbose, json)
    request = Request(source, tuple(equation or ()), fitted, tuple(param or ()), time, trajectory, holdout, seed)
    specification, model, data = opened(request.specification())
    folder = RunFolder(out or free_name(specification.name), specification, data)
    with logged_in(folder):
        found = train(specification, model, data, folder, console)
    if found.interrupted:
        console.result(f"Interrupted; the fit so far is in {folder.path}", described(found, folder))
        return INTERRUPTED
    console.result(summary(found, folder), described(found, folder))
    return OK


def train(specification: Specification, model: UDE, data: Dataset, folder: RunFolder, console: Console) -> Fit:
    """The fit of a run, begun or continued."""
    for note in data.notes:
        console.note(note)
    if folder.resumed:
        console.note(f"Continuing the run in {folder.path}")
    arguments: dict[str, Any] = specification.fit_arguments()
    found = ude.fit(model, data, progress=console.progress, out=folder.path, **arguments)
    for note in found.notes:
        console.note(note)
    for stage, part in found.history.groupby("stage", sort=False):
        loss = float(part["loss"].iloc[-1])
        console.detail(f"{stage}: {len(part)} iterations, loss {loss:.4g}, {part['seconds'].iloc[-1]:.1f} s in all")
    return found


def errors_of(found: Fit) -> dict[str, dict[str, float]]:
    """part of the data -> column -> error."""
    parts = {"training": found.train, "validation": found.validation, "held-out": found.held_out}
    return {name: found.rmse(part) for name, part in parts.items() if part is not None}


def described(found: Fit, folder: RunFolder) -> dict[str, Any]:
    return {
        "folder": str(folder.path),
        "interrupted": found.interrupted,
        "parameters": found.model.values(),
        "unknown": list(found.model.unknown_outputs),
        "rmse": errors_of(found),
        "notes": [*found.data.notes, *found.notes],
    }


def summary(found: Fit, folder: RunFolder) -> str:
    points = sum(len(trajectory) for trajectory in found.train.trajectories)
    values = found.model.values()
    numbers: list[list[object]] = [["", "value"], *([name, value] for name, value in values.items())]
    errors = errors_of(found)
    names = found.measurement.names
    table: list[list[object]] = [
        ["", *names],
        *([f"on {part} data", *(own[name] for name in names)] for part, own in errors.items()),
    ]
    unknown = found.model.unknown_outputs
    more = f"ude discover continues with formulas for {', '.join(unknown)}: --out {folder.path}" if unknown else ""
    return "\n".join(
        [
            f"Fitted to {points} points.",
            *(["", "Parameters:", "", *columns(numbers)] if values else []),
            "",
            "Error (root mean square of the whole trajectory):",
            "",
            *columns(table),
            "",
            f"Model and fit are in {folder.path}",
            *([more] if more else []),
        ]
    )
