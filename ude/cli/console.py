"""What every command says and how it ends: exit codes, text or JSON, tables, and advice in the words of the command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

OK, OURS, MISTAKE, MISSING, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130
"""Done; an error of `ude`; a mistake in what was asked; an optional part is not installed; the computation broke down
(a simulation that blows up); Ctrl-C."""

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr; show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True)
class Console:
    """How much is said, and in which form. The result goes to stdout, all else to stderr."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    @property
    def progress(self) -> bool:
        return not self.quiet

    def note(self, text: str) -> None:
        if not self.quiet:
            typer.echo(text, err=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            typer.echo(text, err=True)

    def result(self, text: str, values: Mapping[str, Any]) -> None:
        """The result of a command: `text` for people, `values` for machines."""
        typer.echo(json_text(values) if self.json else text)


def json_text(values: Any) -> str:
    """JSON that every reader takes: numbers that are none become null."""
    return json.dumps(_finite(values), indent=2, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if callable(getattr(value, "tolist", None)):  # numbers and arrays of NumPy
        return _finite(value.tolist())
    return value


def complain(text: str) -> None:
    typer.echo(f"ude: {text}", err=True)


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
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


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_OPTIONS = (
    (re.compile(r'\bparameters=\{"(\w+)": ([^}]+)\}'), r"--param \1=\2"),
    (re.compile(r'\bfit="([^"]*)"'), r"--fit \1"),
    (re.compile(r"\bholdout=('[^']*'|[^ ,.]+(?:\.\d+)?)"), r"--holdout \1"),
    (re.compile(r"^fit names\b"), "--fit names"),
    (re.compile(r"^parameters names\b"), "--param names"),
    (re.compile(r"^holdout (is|must)\b"), r"--holdout \1"),
)
_FILE = (
    (re.compile(r'\bparameters=\{"(\w+)": ([^}]+)\}'), r"\1 = \2 under [parameters]"),
    (re.compile(r'\bfit="([^"]*)"'), r'\1 = "fit" under [parameters]'),
    (re.compile(r'\bu0=\{"(\w+)": ([^}]+)\}'), r"\1 = \2 under [initial]"),
)


def in_words_of_the_command(text: str, file: bool) -> str:
    """The library's advice speaks Python, ``fit="a"``; here the same in options, ``--fit a``, or of ``model.toml``."""
    for pattern, words in _FILE if file else _OPTIONS:
        text = pattern.sub(words, text)
    return text
