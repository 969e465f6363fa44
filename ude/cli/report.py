"""``ude report``: the page and the figures of a run, drawn anew from its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ude.cli.console import OK, Console, Json


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
    from ude.reporting import contents, pages

    console = Console(json=json)
    shown = contents.read(run)
    page = pages.write(shown, out or run / "report.html", title)
    drawn = [] if figures is None else pages.write_figures(shown, figures)
    text = "\n".join([f"Wrote {page}", *(f"Wrote {path}" for path in drawn)])
    console.result(text, {"report": str(page), "figures": [str(path) for path in drawn]})
    return OK
