"""What a report shows, as plain data: kept beside a run as ``report.json``, from which the page can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ude.errors import DataError, InputError
from ude.untrusted import JSON, read_json, write_json

NAME = "report.json"
FORMAT = 2

Numbers = Sequence[float]


@dataclass(frozen=True)
class Run:
    """One trajectory: data ``t`` (time,) and ``u`` (time, column), NaN for a gap; the model's line ``line_t``,
    ``line_u``; band: half its width a column; held_out_from: the first time kept out of fitting."""

    name: str
    t: Numbers
    u: Sequence[Numbers]
    line_t: Numbers
    line_u: Sequence[Numbers]
    band: Numbers = ()
    held_out_from: float | None = None


@dataclass(frozen=True)
class Function:
    """An unknown function along the trajectories: inputs (name -> (N,)), the network's and the formula's values (N,).

    grid: for one or two inputs, inputs on a grid somewhat beyond the data (name -> (n,), in order) with the network's
    and the formula's values there, (n,) or (n of the first, n of the second).
    """

    name: str
    inputs: dict[str, Numbers]
    network: Numbers
    formula: Numbers | None = None
    text: str = ""
    mathml: str = ""
    t: Numbers | None = None
    grid: dict[str, Numbers] = field(default_factory=dict)
    grid_network: Any = None
    grid_formula: Any = None


@dataclass(frozen=True)
class FrontPoint:
    """One combination of formulas that was fitted; `details` are shown when it is chosen on the page."""

    text: str
    mathml: str
    complexity: float
    misfit: float
    chosen: bool
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sheet:
    """A table with a sentence that says what it is."""

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    marked: int | None = None


@dataclass(frozen=True)
class Contents:
    """Everything on the page. ``equations`` is MathML; ``programs`` language -> source; ``facts`` what was done with
    what; ``losses`` stage of a fit -> the loss at each of its iterations; empty parts are left out."""

    title: str
    equations: str
    text: str
    columns: Sequence[str]
    time: str
    verdict: str = ""
    sentences: Sequence[str] = ()
    runs: Sequence[Run] = ()
    functions: Sequence[Function] = ()
    front: Sequence[FrontPoint] = ()
    errors: Sheet | None = None
    sheets: Sequence[Sheet] = ()
    programs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    reproduce: str = ""
    losses: dict[str, Numbers] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        path = folder / NAME
        write_json(path, {"format": FORMAT, **asdict(self)})
        return path


_NUMBERS = [(float, type(None))]
_SHEET = {"title": str, "note": str, "columns": [str], "rows": [[JSON]], "marked": (int, type(None))}
_SCHEMA = {
    "format": int,
    **dict.fromkeys(("title", "equations", "text", "time", "verdict", "reproduce"), str),
    "columns": [str],
    "sentences": [str],
    "runs": [
        {
            "name": str,
            "t": _NUMBERS,
            "u": [_NUMBERS],
            "line_t": _NUMBERS,
            "line_u": [_NUMBERS],
            "band": _NUMBERS,
            "held_out_from": (float, type(None)),
        }
    ],
    "functions": [
        {
            **dict.fromkeys(("name", "text", "mathml"), str),
            "inputs": {str: _NUMBERS},
            "network": _NUMBERS,
            "formula": (_NUMBERS, type(None)),
            "t": (_NUMBERS, type(None)),
            "grid": {str: _NUMBERS},
            "grid_network": JSON,
            "grid_formula": JSON,
        }
    ],
    "front": [
        {
            **dict.fromkeys(("text", "mathml"), str),
            "complexity": float,
            "misfit": float,
            "chosen": bool,
            "details": {str: float},
        }
    ],
    "errors": (_SHEET, type(None)),
    "sheets": [_SHEET],
    "programs": {str: str},
    "facts": {str: str},
    "notes": [str],
    "losses": {str: _NUMBERS},
}


def read(folder: Path) -> Contents:
    """The contents that `Contents.write` left in a folder. Raises InputError where there are none."""
    path = folder / NAME
    if not path.is_file():
        fix = "" if folder.is_dir() else "Give the folder of a run that has ended."
        raise InputError(f"there is no report in {folder}", expected=f"a run folder with {NAME}", fix=fix)
    saved = read_json(path, _SCHEMA, latest=FORMAT)
    del saved["format"]
    try:
        for name, kind in (("runs", Run), ("functions", Function), ("front", FrontPoint), ("sheets", Sheet)):
            saved[name] = tuple(kind(**entry) for entry in saved[name])
        saved["errors"] = None if saved["errors"] is None else Sheet(**saved["errors"])
        return Contents(**saved)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not fit", got=f"{type(error).__name__}: {error}") from error
