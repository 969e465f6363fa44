"""One self-contained HTML page from paragraphs, code, tables and figures: no scripts, nothing fetched, printable."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from ude.errors import InputError

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
pre { background: #8881; border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #8884; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.marked { font-weight: 700; }
figure { margin: 1rem 0; } img { max-width: 100%; background: white; border-radius: 6px; }
figcaption { font-size: .9rem; opacity: .8; }
"""


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    """Text printed as it stands; ``language`` is said above it."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under ``columns``; numbers are printed with four digits; the row ``marked`` stands out."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    marked: int | None = None


@dataclass(frozen=True)
class Picture:
    """A figure and the sentence that says what it shows (also its text for those who cannot see it)."""

    figure: Figure
    caption: str


Part = Paragraph | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page as HTML text."""
    body = "\n".join(f"<h2>{_text(s.title)}</h2>\n" + "\n".join(_part(part) for part in s.parts) for s in sections)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{_text(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write the page; returns its path. Raises `InputError` where the file cannot be written."""
    target = Path(path)
    try:
        target.write_text(page(title, sections), encoding="utf-8")
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
        label = f"<p>{_text(part.language)}</p>\n" if part.language else ""
        return f"{label}<pre><code>{_text(part.text)}</code></pre>"
    if isinstance(part, Table):
        return _table(part)
    caption = _text(part.caption)
    image = f'<img alt="{html.escape(part.caption, quote=True)}" src="data:image/png;base64,{_png(part.figure)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    opening = ['<tr class="marked">' if i == table.marked else "<tr>" for i in range(len(table.rows))]
    rows = "\n".join(
        f"{start}{''.join(_cell(cell) for cell in row)}</tr>" for start, row in zip(opening, table.rows, strict=True)
    )
    return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"


def _cell(cell: object) -> str:
    kind = ' class="number"' if isinstance(cell, int | float) else ""
    return f"<td{kind}>{_text(number(cell))}</td>"


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _text(text: str) -> str:
    return html.escape(text, quote=False)
