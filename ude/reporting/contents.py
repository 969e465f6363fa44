"""What a report shows, as plain data: kept beside a run as ``report.json``, from which the page can be drawn anew."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ude.errors import InputError

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
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}) + "\n", encoding="utf-8")
        return path


def read(folder: Path) -> Contents:
    """The contents that `Contents.write` left in a folder. Raises InputError where there are none."""
    path = folder / NAME
    if not path.is_file():
        fix = "" if folder.is_dir() else "Give the folder of a run that has ended."
        raise InputError(f"there is no report in {folder}", expected=f"a run folder with {NAME}", fix=fix)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.pop("format") > FORMAT:
            raise InputError(f"{path} was written by a later ude", fix="Upgrade ude.")
        for name, kind in (("runs", Run), ("functions", Function), ("front", FrontPoint), ("sheets", Sheet)):
            saved[name] = tuple(kind(**entry) for entry in saved[name])
        saved["errors"] = None if saved["errors"] is None else Sheet(**saved["errors"])
        return Contents(**saved)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is damaged", got=f"{type(error).__name__}: {error}") from error
