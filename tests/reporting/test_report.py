"""The page stands alone, shows what it was given, and cannot be broken by a name."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ude.errors import InputError
from ude.reporting import plots, report

SECTIONS = [
    report.Section("Equations", [report.Code("dx/dt = a*x - <U>", "text"), report.Paragraph("5 < 6 & true")]),
    report.Section("Front", [report.Table(["formula", "error"], [["c0*x", 0.123456], ["x", 1e-9]], marked=1)]),
    report.Section("Plot", [report.Picture(plots.solution([0, 1], [[0], [1]], ["x"]), 'x "against" t')]),
]


class Balance(HTMLParser):
    """Collects text and checks that every element is closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_shows_what_was_given() -> None:
    reader = Balance()
    reader.feed(report.page("Lynx & hare", SECTIONS))
    assert not reader.open
    for text in ("Lynx & hare", "dx/dt = a*x - <U>", "5 < 6 & true", "0.1235", "1e-09", 'x "against" t'):
        assert text in reader.text
    assert ("alt", 'x "against" t') in reader.attributes


def test_page_fetches_nothing() -> None:
    text = report.page("t", SECTIONS)
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "<script" not in text
    assert not re.search(r"https?:", text)


def test_picture_is_an_svg_inside_the_page() -> None:
    coded = re.search(r"data:image/svg\+xml;base64,([^\"]+)", report.page("t", SECTIONS))
    assert coded is not None
    assert b"<svg" in base64.b64decode(coded[1])


def test_picture_of_very_many_points_is_a_png() -> None:
    many = np.linspace(0, 1, 60_000)
    figure = plots.front(many, np.random.default_rng(0).random(len(many)) + 0.1, 0)
    coded = re.search(
        r"data:image/png;base64,([^\"]+)", report.page("t", [report.Section("P", [report.Picture(figure, "c")])])
    )
    assert coded is not None
    assert base64.b64decode(coded[1]).startswith(b"\x89PNG")


def test_marked_row_stands_out() -> None:
    marked = re.findall(r'<tr class="marked">(.*?)</tr>', report.page("t", SECTIONS))
    assert len(marked) == 1
    assert "1e-09" in marked[0]


def test_page_is_written_where_asked(tmp_path: Path) -> None:
    target = report.write_page(tmp_path / "report.html", "t", SECTIONS)
    assert target.read_text(encoding="utf-8") == report.page("t", SECTIONS)


def test_page_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"the report cannot be written to .*report.html: .*Choose a folder"):
        report.write_page(tmp_path / "file" / "report.html", "t", SECTIONS)
