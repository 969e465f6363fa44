"""One self-contained HTML page from paragraphs, code, tables, figures and formulas: nothing fetched, printable."""

from __future__ import annotations

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ude.errors import InputError
from ude.reporting.safe_mathml import harmless

STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #d8d8d8; --paper: #fff; --wash: #f4f4f2;
  --blue: #0072B2; --red: #D55E00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e4e0; --soft: #a5a5a0; --line: #444; --paper: #1b1b1a;
  --wash: #262625; --blue: #56B4E9; --red: #E69F00; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 54rem; margin: 2.5rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; font-weight: 600; letter-spacing: -.01em; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2.6rem 0 .7rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 44rem; }
nav { font-size: .9rem; margin-bottom: 1rem; } nav a { color: var(--soft); margin-right: 1.1em; white-space: nowrap; }
pre { background: var(--wash); border-radius: 4px; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0 1rem; }
th { font-weight: 600; color: var(--soft); } th, td { text-align: left; padding: .28rem 1.1rem .28rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr[data-point] td:first-child { min-width: 17rem; }
tr.marked td { font-weight: 700; } tr[data-point] { cursor: pointer; } tr.picked td { background: var(--wash); }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; background: white; border-radius: 4px; padding: 4px; }
figcaption { font-size: .88rem; color: var(--soft); max-width: 44rem; }
.typeset { overflow-x: auto; padding: .5rem 0; font-size: 1.15rem; } math { font-size: 1.1em; }
.typeset mtd { padding: .35em .25em; text-align: left; }
.verdict { border-left: 4px solid var(--blue); background: var(--wash); padding: .6rem 1rem; margin: 1rem 0;
  border-radius: 0 4px 4px 0; } .verdict.open { border-left-color: var(--red); border-left-style: double; }
.verdict strong { display: block; text-transform: uppercase; letter-spacing: .05em; font-size: .8rem; }
summary { cursor: pointer; margin: .5rem 0; }
#front svg { width: 100%; height: auto; } #front text { font-size: 12px; fill: var(--soft); }
#front .grid { stroke: var(--line); stroke-width: .7; }
#front .stairs { fill: none; stroke: var(--blue); stroke-width: 1.2; }
#front g[data-point] { cursor: pointer; outline: none; }
#front .candidate circle { fill: var(--blue); fill-opacity: .75; }
#front .chosen polygon { fill: var(--red); }
#front .picked circle, #front .picked polygon, #front g:focus-visible > * { stroke: var(--ink); stroke-width: 2.5; }
#front-detail { background: var(--wash); border-radius: 4px; padding: .6rem 1rem; min-height: 5.5rem;
  overflow-x: auto; }
#front-detail dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0 0;
  font-size: .88rem; } #front-detail dt { color: var(--soft); } #front-detail dd { margin: 0; }
@media (max-width: 40rem) { body { font-size: 15px; margin-top: 1rem; padding: 0 .8rem; } }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --wash: #f4f4f2; color-scheme: light; }
  body { margin: 0; max-width: none; font-size: 11pt; } nav { display: none; }
  figure, table, .typeset, .verdict, #front { break-inside: avoid; } h2 { break-after: avoid; }
  .scroll, .typeset, pre { overflow: visible; } pre { white-space: pre-wrap; } }
"""


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    """Text printed as it stands; ``language`` is said above it; ``folded``: it opens with a click."""

    text: str
    language: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under ``columns``; numbers are printed with four digits; the row ``marked`` stands out.

    clickable: rows are numbered for the page's script (``data-point``).
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    marked: int | None = None
    clickable: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that says what it shows (also its text for those who cannot see it)."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Typeset:
    """Formulas as MathML, of which only what is `harmless` comes into the page."""

    mathml: str


@dataclass(frozen=True)
class Drawing:
    """A drawing made as HTML, put into the page as it is."""

    html: str


@dataclass(frozen=True)
class VerdictBox:
    """What the page says first: a word and its reasons."""

    kind: str
    sentences: Sequence[str]


Part = Paragraph | Code | Table | Picture | Typeset | Drawing | VerdictBox


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section], *, script: str = "") -> str:
    """The whole page as HTML text; ``script`` runs at its end."""
    links = " ".join(f'<a href="#part{i}">{_text(s.title)}</a>' for i, s in enumerate(sections))
    body = "\n".join(
        f'<h2 id="part{i}">{_text(s.title)}</h2>\n' + "\n".join(_part(part) for part in s.parts)
        for i, s in enumerate(sections)
    )
    if len(sections) > 3:
        body = f"<nav>{links}</nav>\n{body}"
    end = f"<script>{script}</script>\n" if script else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">\n'
        # without an icon of its own a browser would ask a server for one
        f'<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{_text(title)}</h1>\n{body}\n{end}</body>\n</html>\n"
    )


def _policy(script: str) -> str:
    """What the page may do: show its own pictures, use this style sheet and run this script, and nothing else."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    scripts = f"script-src {source(script)}; " if script else ""
    return f"default-src 'none'; img-src data:; style-src {source(STYLE)}; {scripts}base-uri 'none'; form-action 'none'"


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, script: str = "") -> Path:
    """Write the page; returns its path. Raises `InputError` where the file cannot be written."""
    target = Path(path)
    try:
        target.write_text(page(title, sections, script=script), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {target}",
            got=error.strerror or str(error),
            fix="Choose a folder that exists and that you may write to.",
        ) from error
    return target


def number(value: object) -> str:
    """A cell as text: floats with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _part(part: Part) -> str:
    if isinstance(part, Paragraph):
        return f"<p>{_text(part.text)}</p>"
    if isinstance(part, Code):
        return _code(part)
    if isinstance(part, Typeset):
        return f'<div class="typeset">{harmless(part.mathml)}</div>'
    if isinstance(part, Drawing):
        return part.html
    if isinstance(part, VerdictBox):
        kind = "verdict" if part.kind == "identified" else "verdict open"
        return f'<div class="{kind}"><strong>{_text(part.kind)}</strong> {_text(" ".join(part.sentences))}</div>'
    if isinstance(part, Table):
        return _table(part)
    caption = _text(part.caption)
    image = f'<img alt="{html.escape(part.caption, quote=True)}" src="{_image(part.figure)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _code(part: Code) -> str:
    text = f"<pre><code>{_text(part.text)}</code></pre>"
    if part.folded:
        return f"<details><summary>{_text(part.language or 'Source')}</summary>{text}</details>"
    return f"<p>{_text(part.language)}</p>\n{text}" if part.language else text


def _table(table: Table) -> str:
    numeric = [
        bool(table.rows) and all(isinstance(row[i], int | float) for row in table.rows)
        for i in range(len(table.columns))
    ]
    kinds = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f"<th{kind}>{_text(column)}</th>" for kind, column in zip(kinds, table.columns, strict=True))
    head = f"<tr>{head}</tr>\n" if any(table.columns) else ""
    rows = []
    for i, row in enumerate(table.rows):
        marked = ' class="marked"' if i == table.marked else ""
        clickable = f' data-point="{i}" tabindex="0"' if table.clickable else ""
        rows.append(f"<tr{marked}{clickable}>{''.join(_cell(cell) for cell in row)}</tr>")
    return f'<div class="scroll"><table>\n{head}{chr(10).join(rows)}\n</table></div>'


def _cell(cell: object) -> str:
    kind = ' class="number"' if isinstance(cell, int | float) else ""
    return f"<td{kind}>{_text(number(cell))}</td>"


_LARGEST_SVG = 300_000
"""Bytes above which a figure travels as PNG: thousands of points are smaller as dots than as paths."""


def _image(figure: Figure) -> str:
    """The figure as a data address: SVG, sharp at every size; PNG where that would be large."""
    buffer = io.BytesIO()
    # names inside a drawing are drawn by lot unless there is a salt: the same page twice is the same file
    with mpl.rc_context({"svg.hashsalt": "ude"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    kind = "svg+xml"
    if buffer.tell() > _LARGEST_SVG:
        buffer, kind = io.BytesIO(), "png"
        figure.savefig(buffer, format="png")
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _text(text: str) -> str:
    return html.escape(text, quote=False)
