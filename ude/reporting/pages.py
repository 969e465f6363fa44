"""The report of a run as a page, and its figures for papers, from `Contents`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ude.errors import InputError
from ude.reporting import front, plots, report, term_plots
from ude.reporting.contents import Contents, Function, Sheet

_ROWS = 15  # of the table of candidates; the drawing shows all
_BAND = "Band: two root mean squares of the residuals on training data, where a new measurement is to be expected."


def write(contents: Contents, path: Path, title: str | None = None) -> Path:
    """The page. Raises InputError where it cannot be written."""
    return report.write_page(path, title or contents.title, sections(contents), script=front.SCRIPT)


def write_figures(contents: Contents, folder: Path) -> list[Path]:
    """Every figure as PNG (300 dots an inch) and SVG with text as text. Raises InputError where they cannot go."""
    import matplotlib as mpl

    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, (figure, _) in figures(contents):
            for kind in ("png", "svg"):
                with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
                    figure.savefig(folder / f"{name}.{kind}", dpi=300)
                written.append(folder / f"{name}.{kind}")
    except OSError as error:
        raise InputError(f"figures cannot be written to {folder}", got=error.strerror or str(error)) from error
    return written


def figures(contents: Contents) -> Iterator[tuple[str, tuple[Figure, str]]]:
    """(name of the file, (figure, caption)) of every figure on the page."""
    if contents.runs:
        yield "data_vs_prediction", (_prediction(contents), _prediction_caption(contents))
        if len(contents.columns) > 1:
            yield "phase", (_phase(contents), "The same, one state against another; a star marks the model's start.")
    for function in contents.functions:
        yield f"term_{function.name}", (term_plots.draw(function, contents.time), _function_caption(function))
    if contents.front:
        yield "front", (_front(contents), "Complexity of the combinations that were fitted, and their misfit.")
    if contents.losses:
        yield "losses", (plots.history(contents.losses), "The best loss so far; each stage has a loss of its own.")


def sections(contents: Contents) -> list[report.Section]:
    drawn = dict(figures(contents))
    found: list[report.Part] = [report.Typeset(contents.equations)]
    if contents.verdict or contents.sentences:
        found.append(report.VerdictBox(contents.verdict, tuple(contents.sentences)))
    if contents.errors is not None:
        found += _sheet(contents.errors)
    parts = [report.Section("Equations", found)]
    data = [report.Picture(*drawn[name]) for name in ("data_vs_prediction", "phase") if name in drawn]
    parts.append(report.Section("Data and prediction", data))
    terms: list[report.Part] = []
    for function in contents.functions:
        if function.mathml:
            terms.append(report.Typeset(function.mathml))
        terms.append(report.Picture(*drawn[f"term_{function.name}"]))
    parts.append(report.Section("Unknown functions", terms))
    parts.append(report.Section("Candidates", _candidates(contents)))
    if "losses" in drawn:
        parts.append(report.Section("Training", [report.Picture(*drawn["losses"])]))
    for sheet in contents.sheets:
        parts.append(report.Section(sheet.title, _sheet(sheet, heading=False)))
    languages = {"Text": contents.text, **contents.programs}
    programs = [report.Code(text, language, folded=True) for language, text in languages.items()]
    parts.append(report.Section("Programs", programs))
    parts.append(report.Section("How it was made", _made(contents)))
    return [section for section in parts if section.parts]


def _made(contents: Contents) -> list[report.Part]:
    parts: list[report.Part] = [report.Paragraph(note) for note in contents.notes]
    if contents.facts:
        parts.append(report.Table(["", ""], [[name, value] for name, value in contents.facts.items()]))
    if contents.reproduce:
        parts.append(report.Code(contents.reproduce, "To repeat this run"))
    return parts


def _sheet(sheet: Sheet, *, heading: bool = True) -> list[report.Part]:
    words = f"{sheet.title}. {sheet.note}" if heading and sheet.note else sheet.title if heading else sheet.note
    table = report.Table(sheet.columns, sheet.rows, sheet.marked)
    return [report.Paragraph(words), table] if words else [table]


def _candidates(contents: Contents) -> list[report.Part]:
    if not contents.front:
        return []
    points = contents.front
    note = (
        "Every point is a combination of formulas that was put back into the equations, with all constants fitted to "
        "the data; the star is the one chosen, the line the best up to each complexity. "
        "Click a point or a row; the table has the best."
    )
    names = list(dict.fromkeys(name for point in points for name in point.details))
    rows = [[point.text, *(point.details.get(name, "") for name in names)] for point in points[:_ROWS]]
    marked = next((i for i, point in enumerate(points[:_ROWS]) if point.chosen), None)
    table = report.Table(["formulas", *names], rows, marked, clickable=True)
    return [report.Paragraph(note), report.Drawing(front.drawing(points)), table]


def _series(contents: Contents) -> tuple[list[plots.Series], list[plots.Series], list[float] | None]:
    data = [plots.Series(np.asarray(run.t, float), np.asarray(run.u, float)) for run in contents.runs]
    model = [plots.Series(np.asarray(run.line_t, float), np.asarray(run.line_u, float)) for run in contents.runs]
    tails = [np.inf if run.held_out_from is None else run.held_out_from for run in contents.runs]
    return data, model, tails if np.isfinite(tails).any() else None


def _prediction(contents: Contents) -> Figure:
    data, model, tails = _series(contents)
    bands = [run.band for run in contents.runs]
    return plots.data_and_model(
        data,
        model,
        plots.Labels(contents.columns, contents.time),
        held_out_from=tails,
        bands=bands if all(len(band) for band in bands) else None,
    )


def _prediction_caption(contents: Contents) -> str:
    words = "Data (points) and the equations (lines)."
    if any(run.held_out_from is not None for run in contents.runs):
        words += " Hollow points were held out: there the line is a forecast, fitted to the training data alone."
    return f"{words} {_BAND}" if any(len(run.band) for run in contents.runs) else words


def _function_caption(function: Function) -> str:
    also = "" if function.formula is None else " and the formula found for it"
    caption = f"{function.name}: the network (trained on the data){also}. "
    if function.grid and len(function.inputs) == 1:
        caption += "The shaded stretch is where the data were; what lies beyond is supported by nothing."
    elif function.grid and len(function.inputs) == 2:
        caption += "Dots: where the data were; what lies outside their outline (pale) is supported by nothing."
    return caption


def _phase(contents: Contents) -> Figure:
    data, model, tails = _series(contents)
    return plots.phase_plane(data, model, plots.Labels(contents.columns, contents.time), held_out_from=tails)


def _front(contents: Contents) -> Figure:
    points = contents.front
    chosen = next((i for i, point in enumerate(points) if point.chosen), 0)
    return plots.front(
        [point.complexity for point in points],
        [point.misfit for point in points],
        chosen,
        texts=[point.text for point in points],
        error_name="misfit to the training data (scaled SSE)",
    )
