"""``ude discover``: from a table and half-known equations to equations and a run folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

import ude
from ude.cli import specification as spec
from ude.cli.console import INTERRUPTED, OK, Console, Json, Quiet, Verbose, columns
from ude.cli.fit import train
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
from ude.cli.run_folder import MODEL, RunFolder, free_name, logged_in
from ude.errors import InputError, ModelError

if TYPE_CHECKING:
    from ude.discovery import Discovery
    from ude.fitting.result import Fit


def discover(
    source: Source,
    equation: Equations = None,
    fit: Fitted = None,
    param: Known = None,
    time: Time = None,
    trajectory: Trajectory = None,
    holdout: HoldoutOption = None,
    regressor: Annotated[
        list[str] | None, typer.Option(help="A search for formulas: library, operon, pysr, sindy; may be repeated.")
    ] = None,
    out: Out = None,
    seed: Seed = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> int:
    """Fit the unknown functions to data, find formulas for them, and write a run folder."""
    console = Console(quiet, verbose, json)
    request = Request(source, tuple(equation or ()), fit, tuple(param or ()), time, trajectory, holdout, seed)
    # Everything that can be wrong with the request is found before the folder is made, and that before the long work.
    specification = _with_regressors(request.specification(), regressor)
    specification, model, data = opened(specification)
    if not model.unknown_outputs:
        raise InputError(
            "the equations have no unknown function",
            expected="at least one, such as U1 in 'dx/dt = a*x - U1(x, y)'",
            fix="Put a function of the states where you do not know the formula, or use ude fit.",
        )
    search = _search_arguments(specification)
    folder = RunFolder(out or free_name(specification.name), specification, data)
    with logged_in(folder):
        fitted = train(specification, model, data, folder, console)
        if fitted.interrupted:
            return _stopped(f"Interrupted; the fit so far is in {folder.path}", folder, console)
        try:
            found = _search(search, fitted, folder, console)
        except (KeyboardInterrupt, ModelError) as error:
            # interrupted before there was a first formula; afterwards discover returns the best so far
            if isinstance(error, ModelError) and not error.what.startswith("interrupted"):
                raise
            return _stopped(f"Interrupted before a formula was found; the fit is in {folder.path}", folder, console)
        write(folder, found)
    console.result(summary(found, folder), described(found, folder))
    return INTERRUPTED if found.interrupted else OK


def _with_regressors(specification: spec.Specification, names: list[str] | None) -> spec.Specification:
    from dataclasses import replace

    known = spec.regressor_names() if names else {}
    for name in names or ():
        if name not in known:
            raise InputError(f"--regressor {name} is not known", expected=f"one of {', '.join(known)}")
    if not names:
        return specification
    return replace(specification, discover={**specification.discover, "regressors": list(names)})


def _search_arguments(specification: spec.Specification) -> dict[str, Any]:
    """The arguments of `ude.discover`, all of them checked. Raises InputError, and BackendMissing for a search."""
    known = [spec.constraints(name, table) for name, table in specification.unknown.items()]
    return {
        "regressors": spec.regressors(specification.discover.get("regressors"), specification.seed),
        "options": spec.selection_options(specification.discover),
        "constraints": [own for own in known if own is not None],
        "seed": specification.seed,
    }


def _search(arguments: dict[str, Any], fitted: Fit, folder: RunFolder, console: Console) -> Discovery:
    return ude.discover(fitted, **arguments, progress=console.progress, out=folder.path)


def _stopped(text: str, folder: RunFolder, console: Console) -> int:
    values = {"folder": str(folder.path), "interrupted": True}
    console.result(f"{text}\nThe same command with --out {folder.path} continues it.", values)
    return INTERRUPTED


def write(folder: RunFolder, found: Discovery) -> None:
    """Equations in every language, the front and all numbers; the figures and the page that shows all."""
    from ude.discovery.report.discovery_contents import contents
    from ude.reporting import pages

    found.save(folder.path)
    shown = contents(found, reproduce=f"ude discover {folder.path / MODEL}")
    shown.write(folder.path)
    pages.write(shown, folder.path / "report.html")
    pages.write_figures(shown, folder.path / "figures")


def described(found: Discovery, folder: RunFolder) -> dict[str, Any]:
    return {
        "folder": str(folder.path),
        "interrupted": found.interrupted,
        "verdict": {"kind": found.verdict.kind, "sentences": found.verdict.sentences, "terms": found.verdict.terms},
        "equations": ude.export(found).splitlines(),
        "latex": ude.export(found, to="latex", digits=found.digits),
        "terms": {name: str(formula) for name, formula in found.terms.items()},
        "constants": found.constants,
        "rmse": found.rmse(),
        "held_out_rmse": found.held_out_rmse,
        "inclusion": found.inclusion.to_dict(orient="records"),
        "intervals": found.intervals.to_dict(orient="records"),
        "front": found.front.to_dict(orient="records"),
        "notes": [*found.fit.data.notes, *found.fit.notes],
    }


def summary(found: Discovery, folder: RunFolder) -> str:
    """Equations, errors and the best candidates as plain text."""
    from ude.discovery.report import figures

    fit = found.fit
    all_or_training = "" if fit.held_out is None else ", constants fitted to all of them"
    points = sum(len(trajectory) for trajectory in fit.data.trajectories)
    errors: list[list[object]] = [["", *fit.model.states], *figures.error_table(found)]
    front = found.front.head(8)
    names = [*found.terms, "complexity", "score"]
    candidates: list[list[object]] = [
        ["", *names],
        *[["*" if row["chosen"] else "", *(row[name] for name in names)] for _, row in front.iterrows()],
    ]
    more = len(found.front) - len(front)
    return "\n".join(
        [
            f"Equations found from {points} points{all_or_training}:",
            "",
            *(f"    {line}" for line in ude.export(found, digits=found.digits).splitlines()),
            "",
            "Error (root mean square of the whole trajectory):",
            "",
            *columns(errors),
            "",
            "Candidates put back into the equations and fitted to the data (* chosen; a lower score is better"
            f"{f'; {more} more in front.csv' if more else ''}):",
            "",
            *columns(candidates),
            "",
            str(found.verdict),
            "",
            f"Model, fit, equations (text, LaTeX, Python, Julia), figures and report.html are in {folder.path}",
        ]
    )
