"""``ude export``: the equations of a run in another language."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import ude
from ude.cli.console import OK, Console, Json
from ude.cli.simulate import written
from ude.cli.trained import read_trained


class Language(StrEnum):
    """What equations can be written in."""

    TEXT = "text"
    LATEX = "latex"
    MATHML = "mathml"
    PYTHON = "python"
    TORCH = "torch"
    JULIA = "julia"
    SBML = "sbml"
    UDE = "ude"


def export(
    source: Annotated[Path, typer.Argument(help="Run folder, or a model.toml.")],
    to: Annotated[Language, typer.Option(help="The language.", case_sensitive=False)] = Language.TEXT,
    digits: Annotated[int | None, typer.Option(help="Significant digits of numbers; all.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="File; stdout when left out.")] = None,
    json: Json = False,
) -> int:
    """Write the equations of a run as text, LaTeX, MathML, Python, torch, Julia, SBML or ude."""
    console = Console(json=json)
    trained = read_trained(source)
    equations = replace(trained.model.equation_set(), u0=next(iter(trained.u0.values()), {}))
    text = ude.export(equations, to=to.value, digits=digits)
    text = text if text.endswith("\n") else text + "\n"
    if out is not None:
        written(out, text)
        console.result(f"Wrote {out}", {"file": str(out), "language": to.value})
    elif console.json:
        console.result("", {"language": to.value, "text": text})
    else:
        typer.echo(text, nl=False)
    return OK
