"""Figures drawn from plain arrays: points are data, lines are models, a dashed line is a formula.

Every function returns a `matplotlib.figure.Figure` of its own and leaves pyplot alone: no window opens, no global
figure stays behind, and drawing from several threads is safe. Show a figure in a notebook by naming it on the last
line of a cell, or keep it with ``figure.savefig("name.png")``.

Colors are those of Okabe and Ito (Color Universal Design, 2008), which readers with any color vision can tell
apart. A line style or a marker always says the same as the color, so that the figures survive printing in gray.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ude.errors import InputError

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, SHADE = "#333333", "#E6E6E6"


@dataclass(frozen=True)
class Series:
    """One trajectory: times ``t`` (time,) and states ``u`` (time, state). NaN in ``u`` means not measured."""

    t: Float[NDArray[np.float64], " time"]
    u: Float[NDArray[np.float64], "time state"]


@dataclass(frozen=True)
class Term:
    """A term of a model along the fitted trajectories: the network's values and, when one is found, the formula's.

    ``inputs`` name -> (sample,); ``network`` and ``formula`` (sample,); ``t`` (sample,) or None for sample numbers.
    ``text`` is the formula as it shall be printed in the legend. Breaks between trajectories are where ``t`` falls.
    """

    name: str
    inputs: Mapping[str, ArrayLike]
    network: ArrayLike
    formula: ArrayLike | None = None
    text: str = "formula"
    t: ArrayLike | None = None


@dataclass(frozen=True)
class Labels:
    """What is written on the axes: names of states and time, and their units where known."""

    states: Sequence[str]
    time: str = "t"
    units: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        unit = self.units.get(name)
        return f"{name} ({unit})" if unit else name


def solution(
    t: ArrayLike,
    u: ArrayLike,
    names: Sequence[str],
    *,
    t_saved: ArrayLike | None = None,
    u_saved: ArrayLike | None = None,
    time_name: str = "t",
    title: str = "",
) -> Figure:
    """All states of one solve, or of a batch, against time.

    ``t`` (time,) or (*batch, time); ``u`` (*batch, time, state); ``names`` one a state. ``t_saved`` and ``u_saved``,
    of the same kinds of shape, are the saved times, drawn as points when there are few. Raises `InputError` when the
    shapes do not fit each other.
    """
    times, values = _batch(t, u, names)
    figure, (axis,) = _new(1, 1, width=7.0, height=4.2)
    for state, name in enumerate(names):
        style = _line(state, thin=len(values) > 1)
        for i, (time, trajectory) in enumerate(zip(times, values, strict=True)):
            axis.plot(time, trajectory[:, state], label=name if i == 0 else None, **style)
    if t_saved is not None and u_saved is not None:
        times, values = _batch(t_saved, u_saved, names)
        for state, marker in zip(range(len(names)), MARKERS * (1 + len(names) // len(MARKERS)), strict=False):
            if times.shape[1] <= 60:  # more would hide the line
                style = {"color": COLORS[state % len(COLORS)], "markersize": 3.5, "linestyle": "none"}
                axis.plot(times.T, values[:, :, state].T, marker=marker, **style)
    axis.set_xlabel(time_name)
    axis.set_ylabel(names[0] if len(names) == 1 else "state")
    _finish(axis, legend=len(names) > 1, title=title)
    return figure


def data_and_model(
    data: Sequence[Series],
    model: Sequence[Series],
    labels: Labels,
    *,
    held_out_from: Sequence[float] | None = None,
    bands: Sequence[Sequence[float]] | None = None,
    title: str = "",
) -> Figure:
    """Measurements (points) and the model's trajectories (lines), one panel a state.

    ``held_out_from`` holds one time a trajectory: what was measured from there on was not used for fitting. Those
    points are hollow, and with a single trajectory the stretch is shaded too. ``bands`` holds, for each
    trajectory, half the width of a band around the model for every state.
    """
    figure, axes = _new(len(labels.states), 1, width=7.5, height=0.8 + 2.3 * len(labels.states), share_x=True)
    for state, (axis, name) in enumerate(zip(axes, labels.states, strict=True)):
        for i, measured in enumerate(data):
            start = np.inf if held_out_from is None else held_out_from[i]
            _points(axis, measured, state, color=i if len(data) > 1 else state, start=start)
        for i, line in enumerate(model):
            style = _line(i if len(data) > 1 else state, solid=True)
            axis.plot(line.t, line.u[:, state], **style)
            if bands is not None and np.isfinite(bands[i][state]):
                low, high = line.u[:, state] - bands[i][state], line.u[:, state] + bands[i][state]
                axis.fill_between(line.t, low, high, color=style["color"], alpha=0.15, linewidth=0)
        if held_out_from is not None and len(data) == 1 and np.isfinite(held_out_from[0]):
            _shade(axis, held_out_from[0], _last(data, model), with_text=state == 0)
        axis.set_ylabel(labels.of(name))
        _finish(axis)
    axes[-1].set_xlabel(labels.of(labels.time))
    _key(axes[0], held_out=held_out_from is not None)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return figure


def phase_plane(
    data: Sequence[Series],
    model: Sequence[Series],
    labels: Labels,
    *,
    held_out_from: Sequence[float] | None = None,
    states: tuple[int, int] = (0, 1),
    title: str = "",
) -> Figure:
    """One state against another: measurements as points, the model as lines with its start marked."""
    horizontal, vertical = states
    if max(states) >= len(labels.states):
        raise InputError(
            "a phase plane needs two states",
            expected=f"indices below {len(labels.states)}",
            got=f"{states}",
            fix=f"The states are {', '.join(labels.states)}.",
        )
    figure, (axis,) = _new(1, 1, width=5.6, height=5.0)
    for i, measured in enumerate(data):
        start = np.inf if held_out_from is None else held_out_from[i]
        late = measured.t >= start
        for chosen, face in ((~late, COLORS[i % len(COLORS)]), (late, "white")):
            axis.plot(
                measured.u[chosen, horizontal],
                measured.u[chosen, vertical],
                linestyle="none",
                marker=MARKERS[i % len(MARKERS)],
                markersize=6,
                markeredgecolor=COLORS[i % len(COLORS)],
                markerfacecolor=face,
                zorder=3,
            )
    for i, line in enumerate(model):
        axis.plot(line.u[:, horizontal], line.u[:, vertical], **_line(i, solid=True))
        axis.plot(line.u[:1, horizontal], line.u[:1, vertical], marker="*", markersize=13, color=INK, zorder=4)
    axis.set_xlabel(labels.of(labels.states[horizontal]))
    axis.set_ylabel(labels.of(labels.states[vertical]))
    _finish(axis, title=title)
    _key(axis, held_out=held_out_from is not None, start=True)
    return figure


def terms(found: Sequence[Term], *, time_name: str = "t") -> Figure:
    """What each network does along the trajectories, and how far the formula agrees; one row a term.

    Left: both against time. Right: both against the input when there is one; with several inputs the formula against
    the network, where agreement is the diagonal.
    """
    if not found:
        raise InputError("there is no term to draw", fix="Give at least one unknown function.")
    figure, axes = _new(len(found), 2, width=9.5, height=0.6 + 3.0 * len(found))
    for row, term in enumerate(found):
        _term_against_time(axes[2 * row], term, time_name)
        _term_against_input(axes[2 * row + 1], term)
    return figure


def _term_against_time(axis: Axes, term: Term, time_name: str) -> None:
    network = np.asarray(term.network, dtype=float)
    t = np.arange(len(network), dtype=float) if term.t is None else np.asarray(term.t, dtype=float)
    # a line across two trajectories would show a motion that nobody saw
    breaks = np.flatnonzero(np.diff(t) < 0) + 1
    axis.plot(*_broken(t, network, breaks), color=COLORS[0], linewidth=3.2, alpha=0.55, label="network")
    if term.formula is not None:
        formula = np.asarray(term.formula, dtype=float)
        axis.plot(*_broken(t, formula, breaks), color=COLORS[1], linestyle="--", linewidth=1.6, label=term.text)
    axis.set_xlabel("sample" if term.t is None else time_name)
    axis.set_ylabel(f"{term.name}({', '.join(term.inputs)})")
    _finish(axis, legend_above=True)


def _term_against_input(axis: Axes, term: Term) -> None:
    network = np.asarray(term.network, dtype=float)
    formula = None if term.formula is None else np.asarray(term.formula, dtype=float)
    name, values = next(iter(term.inputs.items()))
    if len(term.inputs) == 1 or formula is None:
        x = np.asarray(values, dtype=float)
        order = np.argsort(x)
        axis.plot(x, network, ".", color=COLORS[0], markersize=6, alpha=0.55)
        if formula is not None:
            axis.plot(x[order], formula[order], color=COLORS[1], linestyle="--", linewidth=1.6)
        axis.set_xlabel(name)
        axis.set_ylabel(f"{term.name}({', '.join(term.inputs)})")
    else:
        _diagonal(axis, network, formula)
        axis.set_xlabel(f"{term.name}: network")
        axis.set_ylabel(f"{term.name}: formula")
    _finish(axis)


def front(
    complexity: ArrayLike,
    error: ArrayLike,
    chosen: int,
    *,
    texts: Sequence[str] = (),
    error_name: str = "relative error of the term",
    title: str = "",
) -> Figure:
    """Complexity against error of the candidate formulas, with the chosen one marked and written out.

    ``complexity``, ``error`` (candidate,); ``chosen`` the index of the one that the data choose. A candidate whose
    error is not finite (its solution blew up) is left out. The error axis is logarithmic where all errors are positive.
    """
    x, y = np.asarray(complexity, dtype=float), np.asarray(error, dtype=float)
    if x.shape != y.shape or not 0 <= chosen < x.size:
        raise InputError(
            "the front cannot be drawn",
            expected="one error a complexity and a chosen index among them",
            got=f"{x.size} complexities, {y.size} errors, chosen={chosen}",
        )
    figure, (axis,) = _new(1, 1, width=7.0, height=4.4)
    shown = np.isfinite(y)
    axis.plot(x[shown], y[shown], "o", color=COLORS[0], markersize=6, label="candidate")
    best = np.array([np.min(y[shown & (x <= limit)], initial=np.inf) for limit in np.unique(x[shown])])
    axis.step(np.unique(x[shown]), best, where="post", color=COLORS[0], linewidth=1, alpha=0.6, label="best so far")
    axis.plot(x[chosen], y[chosen], "*", color=COLORS[1], markersize=17, label="chosen", zorder=4)
    if np.all(y[shown] > 0):
        axis.set_yscale("log")
    axis.set_xlabel("complexity (nodes + fitted constants + unary functions)")
    axis.set_ylabel(error_name)
    _finish(axis, legend=True)
    # a formula is longer than the free corner of any panel: it stands above, where it can be broken into lines
    lines = [title] if title else []
    lines += textwrap.wrap(f"chosen: {texts[chosen]}", 90) if texts else []
    axis.set_title("\n".join(lines), fontsize=9, loc="left", color=INK)
    return figure


def history(loss: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """The loss at every step of each stage of a fit, stages one after another: name of the stage -> (step,)."""
    figure, (axis,) = _new(1, 1, width=7.0, height=3.8)
    begin, positive = 0, True
    for i, (stage, values) in enumerate(loss.items()):
        curve = np.asarray(values, dtype=float)
        axis.plot(np.arange(begin, begin + len(curve)), curve, label=stage, **_line(i))
        begin += len(curve)
        positive = positive and bool(np.all(curve[np.isfinite(curve)] > 0))
    if positive and begin:
        axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("loss of the stage")
    _finish(axis, legend=True, title=title)
    return figure


def _batch(t: ArrayLike, u: ArrayLike, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times (trajectory, time) and states (trajectory, time, state) of any batch."""
    values, times = np.asarray(u, dtype=float), np.asarray(t, dtype=float)
    if values.ndim < 2 or values.shape[-1] != len(names):
        raise InputError(
            "the solution cannot be drawn",
            expected=f"u of shape (*batch, time, {len(names)}) for the names {', '.join(names)}",
            got=f"shape {values.shape}",
        )
    values = values.reshape(-1, *values.shape[-2:])
    if times.shape[-1:] != values.shape[1:2]:
        raise InputError(
            "t and u of the solution disagree", expected=f"{values.shape[1]} times", got=f"t of shape {times.shape}"
        )
    return np.broadcast_to(times.reshape(-1, times.shape[-1]), values.shape[:2]), values


def _new(
    rows: int, columns: int, *, width: float, height: float, share_x: bool = False
) -> tuple[Figure, tuple[Axes, ...]]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x)
    return figure, tuple(axes.flat)


def _line(index: int, *, solid: bool = False, thin: bool = False) -> dict[str, Any]:
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": "-" if solid else LINES[index % len(LINES)],
        "linewidth": 1.0 if thin else 1.8,
        "alpha": 0.6 if thin else 1.0,
    }


def _points(axis: Axes, measured: Series, state: int, *, color: int, start: float) -> None:
    late = measured.t >= start
    for chosen, face in ((~late, COLORS[color % len(COLORS)]), (late, "white")):
        axis.plot(
            measured.t[chosen],
            measured.u[chosen, state],
            linestyle="none",
            marker=MARKERS[color % len(MARKERS)],
            markersize=5.5,
            markeredgecolor=COLORS[color % len(COLORS)],
            markerfacecolor=face,
            zorder=3,
        )


def _shade(axis: Axes, start: float, end: float, *, with_text: bool) -> None:
    axis.axvspan(start, end, color=SHADE, linewidth=0, zorder=0)
    if with_text:
        transform = axis.get_xaxis_transform()
        axis.text(start, 0.97, " held out", transform=transform, va="top", ha="left", fontsize=9, color=INK)


def _last(data: Sequence[Series], model: Sequence[Series]) -> float:
    return max(float(np.max(series.t)) for series in (*data, *model) if len(series.t))


def _key(axis: Axes, *, held_out: bool, start: bool = False) -> None:
    """A legend of shapes rather than of lines: it holds for every panel and every trajectory."""
    gray = {"color": INK, "markersize": 6}
    axis.plot([], [], "o", label="data", **gray)  # type: ignore[arg-type]
    if held_out:
        axis.plot([], [], "o", markerfacecolor="white", label="data held out", **gray)  # type: ignore[arg-type]
    axis.plot([], [], "-", color=INK, linewidth=1.8, label="model")
    if start:
        axis.plot([], [], "*", color=INK, markersize=11, label="start of the model")
    axis.legend(frameon=False, fontsize=9, loc="best")


def _diagonal(axis: Axes, network: NDArray[np.float64], formula: NDArray[np.float64]) -> None:
    finite = np.isfinite(network) & np.isfinite(formula)
    both = np.concatenate([network[finite], formula[finite]])
    if both.size:
        ends = [both.min(), both.max()]
        axis.plot(ends, ends, color=INK, linewidth=1, linestyle=":")
    axis.plot(network[finite], formula[finite], "o", color=COLORS[1], markersize=3.5, alpha=0.6)


def _broken(
    t: NDArray[np.float64], values: NDArray[np.float64], breaks: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.insert(t, breaks, np.nan), np.insert(values, breaks, np.nan)


def _finish(axis: Axes, *, legend: bool = False, legend_above: bool = False, title: str = "") -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.02)
    if axis.get_xscale() == "linear":
        # years are written as 1905, not as 1902.5 and not as 5 + 1.9e3
        low, high = axis.get_xlim()
        axis.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=high - low > 5))
        axis.ticklabel_format(axis="x", useOffset=False)
    if title:
        axis.set_title(title, fontsize=11, color=INK)
    if legend_above:  # where a curve fills the panel, no corner of it is free
        axis.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    elif legend:
        axis.legend(frameon=False, fontsize=9)
