"""The Python of the pages runs as written: block after block of a page, in one namespace and an empty folder.

A page may bring what its blocks need in a comment of its own (``<!-- before the blocks``, code, ``-->``), and a block
that is there to be looked at says so in the line above it: ``<!-- not run: why -->``.
"""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
_PIECE = re.compile(
    r"(?P<skipped><!-- not run: [^>]+ -->\n)?^```python\n(?P<block>.*?)^```"
    r"|^<!-- before the blocks\n(?P<hidden>.*?)^-->",
    re.M | re.S,
)


def blocks(page: Path) -> list[str]:
    """What of a page runs, in its order."""
    pieces = _PIECE.finditer(page.read_text(encoding="utf-8"))
    return [piece["hidden"] or piece["block"] for piece in pieces if not piece["skipped"]]


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if blocks(path)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_blocks_of_a_page_run_as_written(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page)):
        # names of states are read from the source of f, which `inspect` finds only in a file or here
        name = f"<{page.name}, block {number}>"
        linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)
        exec(compile(block, name, "exec"), names)


def test_marked_blocks_are_left_out_and_hidden_ones_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "<!-- before the blocks\na = 1\n-->\n```python\nb = a\n```\n<!-- not run: slow -->\n```python\nc\n```\n"
    page.write_text(text, encoding="utf-8")
    assert blocks(page) == ["a = 1\n", "b = a\n"]
