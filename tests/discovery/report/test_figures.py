"""The figures of a discovery show its numbers, on the side of the held-out years that they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ude
from ude.discovery import Discovery, Samples, SelectionOptions
from ude.discovery.report import figures
from ude.fitting import FitOptions


@pytest.fixture(scope="module")
def found() -> Discovery:
    """Logistic growth, dx/dt = 0.8 x - 0.1 x^2 from 0.5, in 16 points with 1 % noise; r is fitted, the rest unknown."""
    t = np.linspace(0, 8, 16)
    x = 8 / (1 + 15 * np.exp(-0.8 * t)) * np.random.default_rng(0).lognormal(0, 0.01, 16)
    model = ude.UDE("dx/dt = r*x - U(x)", fit="r")
    data = ude.Dataset.from_arrays(t, x[:, None], ["x"], time_name="day")
    early = FitOptions(derivative_iterations=(100, 100), multiple_iterations=10, single_iterations=(0, 20))
    fit = ude.fit(model, data, options=early, progress=False)
    return ude.discover(fit, ude.search.LibraryRegressor(), options=SelectionOptions(max_candidates=3), progress=False)


def test_prediction_is_that_of_training_constants_and_held_out_points_are_hollow(found: Discovery) -> None:
    [axis] = figures.data_and_prediction(found).axes
    [line] = [line for line in axis.lines if len(line.get_xdata()) > 100]
    t, x = line.get_data()
    at_data = np.isin(t, found.fit.data.trajectories[0].t)
    errors = x[at_data] - found.fit.data.trajectories[0].u[:, 0]
    trained = len(found.fit.train.trajectories[0])
    assert_allclose(np.sqrt(np.mean(errors[trained:] ** 2)), found.held_out_rmse["x"], rtol=1e-3)
    hollow = next(line for line in axis.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata()))
    assert found.fit.held_out is not None
    assert_array_equal(hollow.get_xdata(), found.fit.held_out.trajectories[0].t)
    assert axis.get_xlabel() == "day"


def test_one_state_has_no_phase_plane(found: Discovery) -> None:
    assert figures.phase_plane(found) is None


def test_network_is_drawn_with_what_the_fitted_rate_can_take_up(found: Discovery) -> None:
    # r*x - U(x) is the same model when r and U both gain a multiple of x: that multiple is the formula's
    left, _ = figures.terms(found).axes
    network, formula = (line.get_ydata() for line in left.lines)
    samples = found.samples["U"]
    x = samples.inputs["x"]
    shift = network - samples.output
    assert_allclose(shift, shift[0] / x[0] * x, atol=1e-10)
    assert abs((network - formula) @ x) < 1e-8 * (x @ x)
    assert left.get_xlabel() == "day"


def test_gauge_leaves_alone_what_no_parameter_can_take_up() -> None:
    x = np.linspace(1, 2, 10)
    fixed = Samples({"x": x}, x**2, "U")
    assert_array_equal(figures.in_the_gauge_of(x**2 + 3 * x, fixed)[0], x**2)
    free = replace(fixed, nuisance=x[:, None])
    assert_allclose(figures.in_the_gauge_of(x**2 + 3 * x, free)[0], x**2 + 3 * x)


def test_front_marks_the_chosen_combination(found: Discovery) -> None:
    [axis] = figures.front(found).axes
    [star] = [line for line in axis.lines if line.get_label() == "chosen"]
    assert_allclose(np.ravel(star.get_data()), [found.chosen.complexity, found.chosen.fit.sse])


def test_report_has_equations_errors_and_candidates(found: Discovery, tmp_path: Path) -> None:
    text = found.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert ude.export(found, digits=4) in text
    assert found.verdict.kind in text
    assert f"{found.held_out_rmse['x']:.4g}" in text
    assert text.count("<img") == 2  # data and U; the front is a drawing of its own
    assert 'id="front"' in text
    assert text.count('class="marked"') == 1


def test_error_table_tells_forecast_from_description(found: Discovery) -> None:
    rows = figures.error_table(found)
    assert [row[0] for row in rows] == [
        "on training data",
        "on held-out data (forecast)",
        "on all data, refitted to all",
    ]
    assert rows[1][1] == found.held_out_rmse["x"]
    assert rows[2][1] == found.rmse()["x"]


def test_plot_writes_the_figure(found: Discovery, tmp_path: Path) -> None:
    found.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
