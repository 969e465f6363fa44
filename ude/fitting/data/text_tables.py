"""Tables in text files as people and instruments write them: encodings, separators, preambles, decimal commas."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ude.errors import DataError, InputError
from ude.fitting.data.readers import GAPS

# what a number looks like with a decimal comma, and with points (or nothing) between thousands
_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")
# three digits behind a single comma may as well be thousands
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass
class TextTable:
    """A header and rows of cells, all text.

    Args:
        header: Names of the columns.
        rows: Cells of each row, as many as there are columns.
        lines: The line of the file that each row starts in, counted from 1.
        units: Column -> unit.
        notes: What was guessed while reading.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, *, units_row: bool | None, decimal: str | None) -> TextTable:
    """Read a text file with one header line; see `read_csv`.

    Raises:
        DataError: There is no such file, it is no text, or it is no table.
    """
    if decimal not in (None, ".", ","):
        raise InputError("decimal must be a point or a comma", got=repr(decimal))
    text, notes = _decoded(path)
    rows, lines = _cells(text)
    if not rows:
        raise DataError(f"{path} is empty", expected="a header line and rows of numbers")
    first = _header_row(rows)
    if first:
        notes.append(f"{first} line{'s' if first > 1 else ''} before the header left out")
        rows, lines = rows[first:], lines[first:]
    table = TextTable(rows[0], rows[1:], lines[1:], notes=notes)
    _check_shape(table, path, lines[0])
    _take_units(table, units_row)
    _use_points(table, decimal)
    return table


def _decoded(path: Path) -> tuple[str, list[str]]:
    if not path.exists():
        raise DataError(f"there is no file {path}", fix="Check the path; it is taken from the current folder.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _no_text(path, str(error)) from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16"), []
        except UnicodeDecodeError as error:
            raise _no_text(path, str(error)) from error
    if b"\0" in data:
        raise _no_text(path, "bytes that are zero")
    try:
        # spreadsheets put a byte-order mark first
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        try:
            return data.decode("cp1252"), ["the file is not UTF-8; it was read as Windows-1252"]
        except UnicodeDecodeError as error:
            raise _no_text(path, str(error)) from error


def _no_text(path: Path, got: str) -> DataError:
    return DataError(f"{path} cannot be read as text", got=got, fix="Save the table as CSV in UTF-8.")


def _cells(text: str) -> tuple[list[list[str]], list[int]]:
    """Cells of every line that is neither blank nor comment, and the line in which each row starts."""
    source = text.splitlines(keepends=True)
    content = [i for i, line in enumerate(source) if line.strip() and not _is_comment(line)]
    if not content:
        return [], []
    separator = _separator([source[i] for i in content])
    # `csv` rather than pandas' reader: it knows the line of each row, also after comments, and does not turn a line
    # that is too long into an index
    reader = csv.reader((source[i] for i in content), delimiter=separator, skipinitialspace=True)
    rows, lines, read = [], [], 0
    for cells in reader:
        # a quoted cell may go over several lines
        lines.append(content[read] + 1)
        read = reader.line_num
        rows.append([cell.strip() for cell in cells])
    while rows and all(len(row) > 1 and not row[-1] for row in rows):
        # a separator at the end of every line
        rows = [row[:-1] for row in rows]
    return rows, lines


def _is_comment(line: str) -> bool:
    # spreadsheets write #N/A, which is no comment
    return line.lstrip().startswith("#") and not re.match(r"\s*#(N/A|VALUE!|DIV/0!|REF!|NUM!|NAME\?|NULL!)", line)


def _separator(lines: Sequence[str]) -> str:
    """The first of tab, semicolon and comma that divides most lines into equally many cells."""
    best, most = ",", 0
    for separator in ";\t,":
        counts = Counter(line.count(separator) for line in lines if separator in line)
        common = counts.most_common(1)[0][1] if counts else 0
        if common > most:
            best, most = separator, common
    return best


def _header_row(rows: Sequence[Sequence[str]]) -> int:
    """The row with the names of the columns: the first as long as the last one and all between them."""
    size = len(rows[-1])
    if size < 2 or all(len(row) == size for row in rows):
        return 0
    first = next(i for i in range(len(rows)) if all(len(row) == size for row in rows[i:]))
    # what stands before must be a preamble: rows of numbers are a table that is broken
    broken = any(sum(map(_is_number, row)) > 1 for row in rows[:first])
    named = all(cell and not _is_number(cell) for cell in rows[first])
    return first if named and not broken and len(rows) - first > 2 else 0


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return bool(_COMMA.fullmatch(cell) or _GROUPED.fullmatch(cell))
    return True


def _check_shape(table: TextTable, path: Path, line: int) -> None:
    if all(_is_number(cell) for cell in table.header):
        raise DataError(
            f"line {line} of {path} should name the columns",
            expected="a header such as t,x,y",
            got=",".join(table.header),
            fix="Put the names of the columns in the first line.",
        )
    for cells, own in zip(table.rows, table.lines, strict=True):
        if len(cells) != len(table.header):
            raise DataError(
                f"line {own} of {path} does not fit the header",
                expected=f"{len(table.header)} cells",
                got=f"{len(cells)}",
                fix="Give every column a name in the first line, and every line one cell a column.",
            )


def _take_units(table: TextTable, units_row: bool | None) -> None:
    """Take the row after the header for units where that was said, or where it is text above numbers alone."""
    if not table.rows:
        return
    first = table.rows[0]
    if units_row is None:
        written = [cell for cell in first if cell]
        text = bool(written) and not any(_is_number(cell) or cell.lower() in GAPS for cell in written)
        below = [row[i] for row in table.rows[1:] for i, cell in enumerate(first) if cell]
        numbers = len(table.rows) > 2 and all(_is_number(cell) or cell.lower() in GAPS for cell in below)
        units_row = text and numbers and bool(first[0])
        if units_row:
            table.notes.append("the line after the header was read as units")
    if units_row:
        table.units = {name: unit for name, unit in zip(table.header, first, strict=True) if unit}
        table.rows, table.lines = table.rows[1:], table.lines[1:]


def _use_points(table: TextTable, decimal: str | None) -> None:
    """Write decimal commas as points.

    Raises:
        DataError: What a comma means cannot be told.
    """
    if decimal == ".":
        return
    cells = [(i, j) for i, row in enumerate(table.rows) for j, cell in enumerate(row) if "," in cell]
    found = [(i, j) for i, j in cells if _COMMA.fullmatch(table.rows[i][j]) or _GROUPED.fullmatch(table.rows[i][j])]
    if not found:
        return
    texts = [table.rows[i][j] for i, j in found]
    if decimal is None:
        points = any(re.fullmatch(r"[+-]?\d*\.\d+([eE][+-]?\d+)?", cell) for row in table.rows for cell in row)
        if points or all(_AMBIGUOUS.fullmatch(cell) for cell in texts):
            i, j = found[0]
            raise DataError(
                f"column {table.header[j]!r} has a comma in line {table.lines[i]} that may be decimal or between "
                "thousands",
                expected="numbers such as 1234.5",
                got=repr(table.rows[i][j]),
                fix='Say decimal="," if it is decimal; else remove the commas.',
            )
        table.notes.append("commas in numbers were read as decimal commas")
    for i, j in found:
        cell = table.rows[i][j]
        table.rows[i][j] = (cell.replace(".", "") if _GROUPED.fullmatch(cell) else cell).replace(",", ".")
