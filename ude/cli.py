"""The commands. ``ude discover DATA.csv --equation ... --fit ...`` goes from a table to equations and a run folder;
``ude cache`` shows and clears the compiled kernels.

A user's mistake is one clear line on stderr and exit status 2; Ctrl-C keeps what there is and ends with 130; a
traceback means a mistake of ours.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

import ude
from ude.errors import InputError, UdeError

if TYPE_CHECKING:
    from ude.discovery import Discovery
    from ude.models import UDE
    from ude.training import Dataset

OK, MISTAKE, INTERRUPTED = 0, 2, 130

app = typer.Typer(
    name="ude",
    help="Universal differential equations: from data and half-known equations to equations.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass(frozen=True)
class Request:
    """What one ``ude discover`` was asked for, as it was written."""

    data: Path
    equations: tuple[str, ...]
    fit: str
    parameters: tuple[str, ...]
    time: str | None
    trajectory: str | None
    holdout: str
    out: Path | None
    seed: int
    quiet: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0 done, 2 a mistake in what was asked, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        status = get_command(app).main(args=arguments, prog_name="ude", standalone_mode=False)
    except UdeError as error:
        _complain(_in_words_of_the_command(str(error)))
        return MISTAKE
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except Exception as error:
        # typer's own words for an unknown option or a missing argument; its class has moved between releases
        if not callable(getattr(error, "format_message", None)):
            raise
        words = error.format_message().rstrip(".")  # type: ignore[attr-defined]
        _complain(f"{words}. Try ude --help, or ude discover --help.")
        return MISTAKE
    return status if isinstance(status, int) else OK


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ude {ude.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Universal differential equations: from data and half-known equations to equations."""


@app.command()
def discover(
    data: Annotated[Path, typer.Argument(help="Table of measurements (CSV with a header line).", metavar="DATA.csv")],
    equation: Annotated[
        list[str],
        typer.Option(
            "--equation",
            "-e",
            help="One equation, such as 'dhare/dt = a*hare - U1(hare, lynx)'; once for each state. "
            "Functions that are not known ones are to be found.",
        ),
    ],
    fit: Annotated[str, typer.Option(help="Parameters to fit: 'a,d' or 'a=0.5 in [0, 2], d'.")] = "",
    param: Annotated[list[str] | None, typer.Option(help="A known parameter, such as alpha=1.3.")] = None,
    time: Annotated[str | None, typer.Option(help="Column of the time; guessed from its name when left out.")] = None,
    trajectory: Annotated[str | None, typer.Option(help="Column that tells several runs apart.")] = None,
    holdout: Annotated[
        str, typer.Option(help="End of the data kept out of fitting: a fraction, a number of points or 'after TIME'.")
    ] = "0.25",
    out: Annotated[Path | None, typer.Option(help="Run folder; a new one under runs/ when left out.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.", min=0)] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> int:
    """Fit the unknown functions to data, find formulas for them, and write a run folder."""
    return _discover(
        Request(data, tuple(equation), fit, tuple(param or ()), time, trajectory, holdout, out, seed, quiet)
    )


def _discover(request: Request) -> int:
    # Everything that can be wrong with the request is found before the folder is made, and that before the long work.
    model, data = _read(request)
    folder = _new_folder(request)
    _write_settings(folder, request, data)
    for note in data.notes:
        _tell(request, note)
    fit = ude.fit(model, data, holdout=_holdout(request.holdout), seed=request.seed, progress=not request.quiet)
    fit.save(folder)
    if fit.interrupted:
        typer.echo(f"Interrupted; the fit so far is in {folder}")
        return INTERRUPTED
    try:
        found = ude.discover(fit, seed=request.seed, progress=not request.quiet)
    except (KeyboardInterrupt, ude.ModelError) as error:
        # interrupted before there was a first formula; afterwards discover returns the best so far
        if isinstance(error, ude.ModelError) and not error.what.startswith("interrupted"):
            raise
        typer.echo(f"Interrupted before a formula was found; the fit is in {folder}")
        return INTERRUPTED
    _write_discovery(folder, found)
    typer.echo(_summary(found, folder))
    return INTERRUPTED if found.interrupted else OK


def _read(request: Request) -> tuple[UDE, Dataset]:
    """The model and its data, with everything checked that can be checked before training."""
    from ude.models import parse_parameters

    parameters: dict[str, ude.Parameter] = {}
    for entry in request.parameters:
        for name, parameter in parse_parameters(entry, fitted=False).items():
            if parameter.value is None:
                raise InputError(f"--param {entry} has no value", expected="NAME=NUMBER", fix="To fit it, use --fit.")
            if name in parameters:
                raise InputError(f"--param gives {name} twice")
            parameters[name] = parameter
    model = ude.UDE(list(request.equations), parameters=parameters, fit=request.fit or None, seed=request.seed)
    if not model.unknown_outputs:
        raise InputError(
            "the equations have no unknown function",
            expected="at least one, such as U1 in 'dx/dt = a*x - U1(x, y)'",
            fix="Put a function of the states where you do not know the formula.",
        )
    data = ude.read_csv(request.data, time=request.time, states=model.states, trajectory=request.trajectory)
    data.split(_holdout(request.holdout))
    return model, data


def _holdout(text: str) -> float | int | str:
    """A number where it reads as one; "0.25" is a fraction, "5" a number of points."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@app.command()
def cache(
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete the compiled kernels; they are compiled anew.")
    ] = False,
) -> int:
    """Show where compiled kernels are kept, how many and how large they are; or delete them."""
    from ude.engines.fused import build

    if clear:
        files, size = build.clear_cache()
        typer.echo(f"Deleted {_count(files, 'file')}, {_bytes(size)}, in {build.cache_dir()}")
        return OK
    _, size = build.cache_size()
    typer.echo(f"{_count(build.cached_kernels(), 'kernel')}, {_bytes(size)}, in {build.cache_dir()}")
    missing = build.why_no_compiler()
    if missing is not None:
        typer.echo(f"Nothing can be compiled here: {missing}")
    return OK


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _bytes(size: int) -> str:
    """A size as people read it, in powers of 1000."""
    number, units = float(size), ["bytes", "kB", "MB", "GB"]
    while number >= 999.95 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} {units[0]}" if units[0] == "bytes" else f"{number:.1f} {units[0]}"


# -- the run folder ----------------------------------------------------------------------------------------------------


def _new_folder(request: Request) -> Path:
    """Make the run folder, and make sure that it can be written to before anything long begins."""
    folder = request.out if request.out is not None else _free_name(Path("runs"), request.data.stem)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(
                f"the folder {folder} is not empty", fix="Choose another with --out, or delete it if it is not needed."
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be written to",
            got=error.strerror or str(error),
            fix="Choose another with --out.",
        ) from error
    return folder


def _free_name(parent: Path, stem: str) -> Path:
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _write_settings(folder: Path, request: Request, data: Dataset) -> None:
    """What was asked, of what data, with what releases: enough to run it again."""
    command = ["ude", *sys.argv[1:]] if Path(sys.argv[0]).stem == "ude" else None
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()}
    settings = {
        "command": shlex.join(command) if command else None,
        "request": asked,
        "data": {"sha256": data.digest, "states": data.states, "time": data.time_name},
        "versions": _versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }
    (folder / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "ude": ude.__version__}
    for package in ("torch", "numpy", "scipy", "sympy", "pandas", "matplotlib", "pyoperon", "pysr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _write_discovery(folder: Path, found: Discovery) -> None:
    """Equations in every language, the front and all numbers; then the figures and the page that shows all."""
    from ude.discovery import figures

    found.save(folder)
    phase = figures.phase_plane(found)
    drawn = {
        "data_vs_prediction.png": figures.data_and_prediction(found),
        "terms.png": figures.terms(found),
        "front.png": figures.front(found),
        **({"phase.png": phase} if phase is not None else {}),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name)
    figures.write_report(found, folder / "report.html")


# -- what is printed ---------------------------------------------------------------------------------------------------


def _summary(found: Discovery, folder: Path) -> str:
    """Equations, errors and the best candidates as plain text."""
    from ude.discovery import figures

    fit = found.fit
    all_or_training = "" if fit.held_out is None else ", constants fitted to all of them"
    points = sum(len(trajectory) for trajectory in fit.data.trajectories)
    errors: list[list[object]] = [["", *fit.model.states], *figures.error_table(found)]
    front = found.front.head(8)
    columns = [*found.terms, "complexity", "score"]
    candidates: list[list[object]] = [
        ["", *columns],
        *[["*" if row["chosen"] else "", *(row[column] for column in columns)] for _, row in front.iterrows()],
    ]
    more = len(found.front) - len(front)
    return "\n".join(
        [
            f"Equations found from {points} points{all_or_training}:",
            "",
            *(f"    {line}" for line in found.to_text().splitlines()),
            "",
            "Error (root mean square of the whole trajectory):",
            "",
            *_columns(errors),
            "",
            "Candidates put back into the equations and fitted to the data (* chosen; a lower score is better"
            f"{f'; {more} more in front.csv' if more else ''}):",
            "",
            *_columns(candidates),
            "",
            f"Model, fit, equations (text, LaTeX, Python, Julia), figures and report.html are in {folder}",
        ]
    )


def _columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows as lines with aligned columns, text to the left and numbers to the right."""
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    numeric = [all(not isinstance(row[column], str) for row in rows[1:]) for column in range(len(cells[0]))]
    return [
        "    "
        + "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]


def _tell(request: Request, text: str) -> None:
    if not request.quiet:
        typer.echo(text, err=True)


def _complain(text: str) -> None:
    typer.echo(f"ude: {text}", err=True)


_WORDS = (
    (re.compile(r'\bparameters=\{"(\w+)": ([^}]+)\}'), r"--param \1=\2"),
    (re.compile(r'\bfit="([^"]*)"'), r"--fit \1"),
    (re.compile(r"\bholdout=('[^']*'|[^ ,.]+(?:\.\d+)?)"), r"--holdout \1"),
    (re.compile(r"^fit names\b"), "--fit names"),
    (re.compile(r"^parameters names\b"), "--param names"),
    (re.compile(r"^holdout is\b"), "--holdout is"),
)


def _in_words_of_the_command(text: str) -> str:
    """The library's advice speaks Python, ``fit="a"``; here the same advice in options, ``--fit a``."""
    for pattern, words in _WORDS:
        text = pattern.sub(words, text)
    return text


if __name__ == "__main__":
    sys.exit(main())
