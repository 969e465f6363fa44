"""What the figures show: the numbers drawn are the numbers given, and nothing global is touched."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from ude.errors import InputError
from ude.reporting import plots

YEARS = 1900.0 + np.arange(21)
DATA = plots.Series(YEARS, np.stack([np.arange(21.0), 40 - np.arange(21.0)], -1))
MODEL = plots.Series(np.linspace(1900, 1920, 101), np.stack([np.linspace(0, 20, 101)] * 2, -1))
LABELS = plots.Labels(("hare", "lynx"), "year", {"hare": "thousand pelts"})


def drawn(figure: Figure) -> bytes:
    """The figure as PNG; drawing is where most mistakes of a figure appear."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def points(axis: Axes, face: str | None = None) -> np.ndarray:
    """Coordinates of all markers without a line, of those with the given face color."""
    lines = [line for line in axis.lines if line.get_linestyle() == "None" and len(line.get_xdata()) > 0]
    chosen = [line for line in lines if face is None or to_hex(line.get_markerfacecolor()) == face]
    return np.concatenate([np.column_stack(line.get_data()) for line in chosen]) if chosen else np.empty((0, 2))


def test_points_are_data_and_lines_are_the_model() -> None:
    figure = plots.data_and_model([DATA], [MODEL], LABELS)
    for state, axis in enumerate(figure.axes):
        np.testing.assert_array_equal(points(axis), np.column_stack([DATA.t, DATA.u[:, state]]))
        solid = [line for line in axis.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 101]
        np.testing.assert_array_equal(solid[0].get_ydata(), MODEL.u[:, state])
    assert drawn(figure).startswith(b"\x89PNG")


def test_held_out_points_are_hollow_and_their_years_shaded() -> None:
    figure = plots.data_and_model([DATA], [MODEL], LABELS, held_out_from=[1915.0])
    axis = figure.axes[0]
    hollow = points(axis, "#ffffff")
    np.testing.assert_array_equal(hollow[:, 0], np.arange(1915.0, 1921.0))
    shade = axis.patches[0]
    assert shade.get_x() == 1915.0
    assert shade.get_width() == 5.0
    assert "held out" in [text.get_text().strip() for text in axis.texts]


def test_trajectory_without_held_out_points_is_not_shaded() -> None:
    figure = plots.data_and_model([DATA], [MODEL], LABELS, held_out_from=[float("inf")])
    assert not figure.axes[0].patches
    drawn(figure)


def test_axes_carry_names_and_units() -> None:
    figure = plots.data_and_model([DATA], [MODEL], LABELS)
    assert [axis.get_ylabel() for axis in figure.axes] == ["hare (thousand pelts)", "lynx"]
    assert figure.axes[-1].get_xlabel() == "year"


def test_years_are_written_as_years() -> None:
    figure = plots.data_and_model([DATA], [MODEL], LABELS)
    drawn(figure)
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert {"1900", "1910", "1920"} <= set(labels)


def test_several_trajectories_differ_in_marker_as_well_as_color() -> None:
    figure = plots.data_and_model([DATA, DATA], [MODEL, MODEL], LABELS)
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 21]
    assert len({line.get_marker() for line in lines}) == 2
    assert len({line.get_markeredgecolor() for line in lines}) == 2


def test_phase_plane_has_one_state_against_the_other_and_marks_the_start() -> None:
    figure = plots.phase_plane([DATA], [MODEL], LABELS, held_out_from=[1915.0])
    axis = figure.axes[0]
    circles = np.concatenate([np.column_stack(line.get_data()) for line in axis.lines if line.get_marker() == "o"])
    np.testing.assert_array_equal(circles[np.argsort(circles[:, 0])], DATA.u)
    star = next(line for line in axis.lines if line.get_marker() == "*" and len(line.get_xdata()))
    np.testing.assert_array_equal(np.column_stack(star.get_data()), MODEL.u[:1])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("hare (thousand pelts)", "lynx")
    drawn(figure)


def test_phase_plane_of_one_state_is_refused() -> None:
    with pytest.raises(InputError, match="a phase plane needs two states: expected indices below 1"):
        plots.phase_plane([DATA], [MODEL], plots.Labels(("hare",)))


def test_solution_of_a_batch_has_a_line_for_each_trajectory_and_state() -> None:
    t = np.linspace(0, 1, 5)
    u = np.arange(3 * 5 * 2.0).reshape(3, 5, 2)
    axis = plots.solution(t, u, ["x", "y"]).axes[0]
    assert len(axis.lines) == 6
    np.testing.assert_array_equal(sorted(line.get_ydata()[0] for line in axis.lines), sorted(u[:, 0].reshape(-1)))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["x", "y"]


def test_saved_points_of_a_solution_are_drawn_until_they_would_hide_the_line() -> None:
    t = np.linspace(0, 1, 400)
    u = np.stack([t, -t], -1)
    few = plots.solution(t, u, ["x", "y"], t_saved=t[None, ::40], u_saved=u[None, ::40]).axes[0]
    assert len(points(few)) == 2 * 10
    many = plots.solution(t, u, ["x", "y"], t_saved=t, u_saved=u).axes[0]
    assert len(points(many)) == 0


def test_solution_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected u of shape \(\*batch, time, 2\) for the names x, y, got shape \(5"):
        plots.solution(np.zeros(5), np.zeros((5, 3)), ["x", "y"])
    with pytest.raises(InputError, match=r"t and u of the solution disagree: expected 5 times, got t of shape \(4,\)"):
        plots.solution(np.zeros(4), np.zeros((5, 2)), ["x", "y"])


def test_term_lines_stop_between_trajectories() -> None:
    t = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])
    term = plots.Term("U1", {"x": t, "y": t}, network=t + 1, formula=t + 2, text="x + 2", t=t)
    left, right = plots.terms([term]).axes
    np.testing.assert_array_equal(np.isnan(left.lines[0].get_xdata()).nonzero()[0], [3])
    np.testing.assert_array_equal(right.lines[-1].get_data(), (t + 1, t + 2))
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["network", "x + 2"]
    assert left.get_ylabel() == "U1(x, y)"


def test_term_of_one_input_is_drawn_over_that_input() -> None:
    x = np.array([3.0, 1.0, 2.0])
    right = plots.terms([plots.Term("U", {"x": x}, network=x**2, formula=x**2, text="x**2")]).axes[1]
    assert right.get_xlabel() == "x"
    np.testing.assert_array_equal(right.lines[1].get_data(), ([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]))


def test_no_term_is_refused() -> None:
    with pytest.raises(InputError, match="there is no term to draw. Give at least one unknown function."):
        plots.terms([])


def test_front_marks_the_chosen_and_leaves_out_what_blew_up() -> None:
    figure = plots.front([2, 4, 5, 9], [0.5, 0.01, np.inf, 0.003], 1, texts=["a", "b", "c", "d"])
    axis = figure.axes[0]
    candidates, best, chosen = axis.lines
    np.testing.assert_array_equal(candidates.get_xdata(), [2, 4, 9])
    np.testing.assert_array_equal(best.get_ydata(), [0.5, 0.01, 0.003])
    np.testing.assert_array_equal(np.ravel(chosen.get_data()), [4, 0.01])
    assert "chosen: b" in axis.get_title(loc="left")
    drawn(figure)


def test_front_with_an_impossible_choice_is_refused() -> None:
    with pytest.raises(InputError, match="the front cannot be drawn: .* got 2 complexities, 2 errors, chosen=2"):
        plots.front([1, 2], [0.1, 0.2], 2)


def test_history_puts_the_stages_one_after_another() -> None:
    axis = plots.history({"first": [3.0, 2.0], "second": [1.0, 0.5, 0.25]}).axes[0]
    np.testing.assert_array_equal(axis.lines[1].get_xdata(), [2, 3, 4])
    assert axis.get_yscale() == "log"


def test_neighboring_colors_differ_in_gray_or_in_line_style() -> None:
    gray = [float(np.dot(to_rgb(color), (0.299, 0.587, 0.114))) for color in plots.COLORS]
    for i in range(6):
        assert abs(gray[i] - gray[i + 1]) > 0.05 or plots.LINES[i % 6] != plots.LINES[(i + 1) % 6]
    assert len(set(plots.COLORS)) == len(plots.MARKERS) == 7


def test_pyplot_is_never_imported() -> None:
    code = """
import sys
from ude.reporting import plots
plots.solution([0, 1], [[0], [1]], ["x"]).savefig(sys.stderr.buffer)
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


@pytest.mark.parametrize("loss", [[0.0, 0.0], [], [0.0]])
def test_a_loss_of_zero_is_drawn_without_a_logarithm(loss: list[float]) -> None:
    assert plots.history({"first": loss}).axes[0].get_yscale() == "linear"
