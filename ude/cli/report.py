"""``ude report``: the page and the figures of a run, drawn again from its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import ude
from ude.cli.console import OK, Console, Json
from ude.cli.run_folder import FIT, MODEL

if TYPE_CHECKING:
    from ude.reporting.contents import Contents


def report(
    run: Annotated[Path, typer.Argument(help="Run folder of ude discover or ude fit.")],
    out: Annotated[Path | None, typer.Option(help="The page; report.html in the run folder when left out.")] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures for papers (PNG and SVG); none when left out.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    json: Json = False,
) -> int:
    """Write the report of a run as one HTML page that needs no network, and its figures as PNG and SVG."""
    from ude.reporting import pages

    console = Console(json=json)
    shown = _contents(run)
    page = pages.write(shown, out or run / "report.html", title)
    drawn = [] if figures is None else pages.write_figures(shown, figures)
    text = "\n".join([f"Wrote {page}", *(f"Wrote {path}" for path in drawn)])
    console.result(text, {"report": str(page), "figures": [str(path) for path in drawn]})
    return OK


def _contents(run: Path) -> Contents:
    """Of the discovery where there is one, else of the fit."""
    from ude.reporting import contents

    if (run / contents.NAME).is_file() or not (run / FIT).is_file():
        return contents.read(run)
    from ude.discovery.report.fit_contents import contents_of_fit

    return contents_of_fit(
        ude.fitting.load_fit(run), reproduce=f"ude fit {run / MODEL}" if (run / MODEL).is_file() else ""
    )
