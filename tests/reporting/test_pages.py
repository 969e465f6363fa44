"""The report of a run: what is in it, that it survives the file, and that its figures show the support."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.reporting.contents_for_tests import example
from ude.errors import InputError
from ude.reporting import contents, front, pages, term_plots
from ude.untrusted import write_json


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pages.write(example(), tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_page_shows_every_part(page: str) -> None:
    for text in (
        "Lynx &amp; hare &lt;both&gt;", "several forms equally good", "Two forms are equally good.", "0.1235", "0.9877",
        "x &lt; y", "ude discover run/model.toml", "seed", "time is the column 'day'", "<mfrac>",
    ):  # fmt: skip
        assert text in page, text
    # prediction, phase plane, three functions; the front is a drawing of its own
    assert page.count("<img") == 5
    assert page.count('class="marked"') == 1


def test_page_names_no_address_and_is_small(page: str) -> None:
    plain = re.sub(r"(base64,|sha256-)[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:", plain)
    assert "//" not in re.sub(r"<pre>.*?</pre>", "", plain, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', plain)
    assert len(page) < 2_000_000


def test_text_of_a_candidate_cannot_end_the_script(page: str) -> None:
    [data] = re.findall(r'<script type="application/json" id="front-data">(.*?)</script>', page, re.S)
    assert [own["chosen"] for own in json.loads(data)] == [False, True, False, False, False]


def test_page_survives_the_file(page: str, tmp_path: Path) -> None:
    example().write(tmp_path)
    again = pages.write(contents.read(tmp_path), tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == page


def test_a_part_that_is_not_there_leaves_no_section(tmp_path: Path) -> None:
    bare = replace(example(), functions=(), front=(), sheets=(), runs=(), errors=None, sentences=(), verdict="")
    text = pages.write(bare, tmp_path / "report.html").read_text(encoding="utf-8")
    for heading in ("Candidates", "Unknown functions", "Data and prediction", "Which terms are sure"):
        assert heading not in text
    assert "<mfrac>" in text


def test_figures_for_papers_are_png_and_svg_with_text(tmp_path: Path) -> None:
    written = pages.write_figures(replace(example(), functions=example().functions[1:2]), tmp_path / "figures")
    names = ["data_vs_prediction", "phase", "term_U2", "front"]
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[::2])
    assert ">day</text>" in written[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is no report in"),
        ("{", "has no checksum in its first line"),
        ({"format": 9}, "was written by a later ude"),
        ({"format": 1}, "lacks the key 'title'"),
    ],
)
def test_report_that_cannot_be_read_says_so(tmp_path: Path, text: str | dict[str, int] | None, says: str) -> None:
    if isinstance(text, dict):
        write_json(tmp_path / contents.NAME, text)
    elif text is not None:
        (tmp_path / contents.NAME).write_text(text)
    with pytest.raises(InputError, match=says):
        contents.read(tmp_path)


def test_band_surrounds_the_line_by_what_was_said() -> None:
    drawn = dict(pages.figures(example()))
    axis = drawn["data_vs_prediction"][0].axes[1]
    first = axis.collections[0].get_paths()[0].vertices
    assert np.ptp(first[np.isclose(first[:, 0], 3.0), 1]) == pytest.approx(0.6)


def test_curve_shades_where_data_were_and_scales_to_them() -> None:
    function = example().functions[1]
    [axis] = term_plots.draw(function).axes
    [shade] = axis.patches
    low, high = min(function.inputs["x"]), max(function.inputs["x"])
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx((low, high))
    assert axis.get_ylim()[0] < low**2 < high**2 < axis.get_ylim()[1]


def test_surfaces_share_one_scale_and_veil_what_is_outside() -> None:
    network, formula, _ = term_plots.draw(example().functions[0]).axes
    assert (network.get_title(loc="left"), formula.get_title(loc="left")) == ("U1: network", "U1: formula")
    [veil] = network.patches
    box, outline = veil.get_path().to_polygons(closed_only=True)
    areas = [0.5 * np.sum(p[:-1, 0] * p[1:, 1] - p[1:, 0] * p[:-1, 1]) for p in (box, outline)]
    # the outline runs the other way around, which makes it a hole; it is the circle that the data ran along
    assert areas == pytest.approx([2.8**2, -np.pi], rel=0.02)


def test_network_without_a_formula_is_one_surface_and_its_caption_names_no_formula() -> None:
    function = replace(example().functions[0], formula=None, grid_formula=None)
    figure, caption = dict(pages.figures(replace(example(), functions=[function])))["term_U1"]
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["U1: network", ""]  # and the scale of colors
    assert "formula" not in caption
    assert "Dots" in caption


def test_losses_of_a_fit_are_a_section(tmp_path: Path) -> None:
    text = pages.write(replace(example(), losses={"first": [2.0, 1.0]}), tmp_path / "p.html").read_text("utf-8")
    assert text.count("<img") == 6
    assert "<h2" in text.split("Training")[-2]


def test_points_on_a_line_have_a_box_for_their_support() -> None:
    function = example().functions[0]
    x = np.linspace(1, 3, 20)
    on_a_line = replace(function, inputs={"x": x.tolist(), "y": x.tolist()}, network=x.tolist(), formula=x.tolist())
    assert len(term_plots.draw(on_a_line).axes) == 3


def test_front_of_nothing_finite_is_no_drawing() -> None:
    assert front.drawing(example().front[-1:]) == ""


def test_front_leaves_out_what_blew_up_and_can_be_reached_by_keyboard() -> None:
    text = front.drawing(example().front)
    assert re.findall(r'<g class="\w+" data-point="(\d)"', text) == ["0", "1", "2", "3"]
    assert text.count('tabindex="0"') == 4
    assert text.count("<polygon") == 1
