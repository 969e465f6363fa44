"""``ude export``: the equations of a run in another language."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ude.cli.console import OK, Console, Json
from ude.cli.simulate import written
from ude.cli.trained import Trained, read_trained


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
    text = _writer(trained, to)(digits)
    text = text if text.endswith("\n") else text + "\n"
    if out is not None:
        written(out, text)
        console.result(f"Wrote {out}", {"file": str(out), "language": to.value})
    elif console.json:
        console.result("", {"language": to.value, "text": text})
    else:
        typer.echo(text, nl=False)
    return OK


def _writer(trained: Trained, to: Language) -> Callable[[int | None], str]:
    model = trained.model
    start = next(iter(trained.u0.values()), None)
    return {
        Language.TEXT: model.text,
        Language.LATEX: model.latex,
        Language.MATHML: model.to_mathml,
        Language.PYTHON: model.to_python,
        Language.TORCH: model.to_torch,
        Language.JULIA: model.to_julia,
        Language.SBML: lambda digits: model.to_sbml(start, digits),
        Language.UDE: model.to_ude,
    }[to]
