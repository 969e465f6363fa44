"""An unknown function against what it was asked with: network and formula side by side, and where data support them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, Delaunay, QhullError

from ude.reporting.contents import Function
from ude.reporting.plots import COLORS, INK, SHADE, Term, _finish, _new, terms

Array = NDArray[np.float64]


def draw(function: Function, time_name: str = "t") -> Figure:
    """A curve for one input, a surface each for two, agreement along the trajectories for more."""
    if function.grid and len(function.inputs) == 1:
        return _curve(function)
    if function.grid and len(function.inputs) == 2:
        return _surfaces(function)
    return terms(
        [Term(function.name, function.inputs, function.network, function.formula, function.text, function.t)],
        time_name=time_name,
    )


def _curve(function: Function) -> Figure:
    [(name, grid)] = function.grid.items()
    seen = np.asarray(function.inputs[name], dtype=float)
    figure, (axis,) = _new(1, 1, width=7.0, height=3.8)
    axis.axvspan(float(seen.min()), float(seen.max()), color=SHADE, linewidth=0, zorder=0, label="met in the data")
    axis.plot(grid, function.grid_network, color=COLORS[0], linewidth=3.2, alpha=0.55, label="network")
    if function.grid_formula is not None:
        axis.plot(grid, function.grid_formula, color=COLORS[1], linestyle="--", linewidth=1.8, label="formula")
    inside = (np.asarray(grid) >= seen.min()) & (np.asarray(grid) <= seen.max())
    drawn = [np.asarray(c, dtype=float) for c in (function.grid_network, function.grid_formula) if c is not None]
    _limit(axis, np.concatenate([c[inside] for c in drawn]))
    axis.set_xlabel(name)
    axis.set_ylabel(f"{function.name}({name})")
    _finish(axis, legend_above=True)
    return figure


def _limit(axis: Axes, values: Array) -> None:
    """What happens outside the data may be of any size, and must not flatten what happens inside."""
    values = values[np.isfinite(values)]
    if values.size:
        room = 0.4 * max(float(np.ptp(values)), 1e-12)
        axis.set_ylim(float(values.min()) - room, float(values.max()) + room)


def _surfaces(function: Function) -> Figure:
    (first, x), (second, y) = ((name, np.asarray(values, dtype=float)) for name, values in function.grid.items())
    points = np.stack([np.asarray(values, dtype=float) for values in function.inputs.values()], axis=-1)
    panels = {"network": np.asarray(function.grid_network, float).T}
    if function.grid_formula is not None:
        panels["formula"] = np.asarray(function.grid_formula, float).T
    inside, corners = _support(points, x, y)
    met = np.concatenate([values[inside] for values in panels.values()])
    met = met[np.isfinite(met)]
    if not met.size:
        met = np.zeros(1)
    low, high = float(met.min()), float(met.max())
    high = high if high > low else low + 1.0
    figure, axes = _new(1, len(panels), width=1.0 + 4.25 * len(panels), height=4.0)
    # a color map whose lightness rises evenly: it reads the same in gray
    levels = np.linspace(low, high, 13)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        filled = axis.contourf(x, y, np.clip(values, low, high), levels=levels, cmap="cividis", extend="neither")
        lines = axis.contour(x, y, np.clip(values, low, high), levels=levels[2:-1:3], colors=INK, linewidths=0.6)
        axis.clabel(lines, fontsize=7, fmt="%.3g")
        axis.add_patch(PathPatch(_around(corners, x, y), facecolor="white", alpha=0.72, linewidth=0))
        axis.plot(*corners.T, color=INK, linewidth=1.2)
        axis.plot(
            *points[:: max(1, len(points) // 80)].T,
            ".",
            color="white",
            markersize=3.5,
            markeredgecolor=INK,
            markeredgewidth=0.4,
        )
        axis.set_title(f"{function.name}: {title}", fontsize=10, loc="left", color=INK)
        axis.set_xlabel(first)
        axis.set_ylabel(second)
    figure.colorbar(filled, ax=list(axes), shrink=0.9, label=function.name)
    return figure


def _around(corners: Array, x: Array, y: Array) -> Path:
    """The panel without the outlined place: a box, and the outline run through the other way."""
    box = np.array([[x[0], y[0]], [x[-1], y[0]], [x[-1], y[-1]], [x[0], y[-1]], [x[0], y[0]]])
    area = np.sum(corners[:-1, 0] * corners[1:, 1] - corners[1:, 0] * corners[:-1, 1])
    inner = corners[::-1] if area > 0 else corners
    codes = [part for own in (box, inner) for part in (Path.MOVETO, *[Path.LINETO] * (len(own) - 1))]
    return Path(np.concatenate([box, inner]), codes)


def _support(points: Array, x: Array, y: Array) -> tuple[NDArray[np.bool_], Array]:
    """Which grid points (y, x) lie where the data were, and the outline of that place."""
    mesh = np.stack(np.meshgrid(x, y), axis=-1)
    try:
        hull = ConvexHull(points)
        corners = points[np.append(hull.vertices, hull.vertices[0])]
        return np.asarray(Delaunay(points).find_simplex(mesh) >= 0), corners
    except QhullError:  # points on a line have no hull
        low, high = points.min(axis=0), points.max(axis=0)
        corners = np.array(
            [[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]], [low[0], low[1]]]
        )
        return np.asarray(((mesh >= low) & (mesh <= high)).all(axis=-1)), corners
