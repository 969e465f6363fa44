"""The site builds without a warning, shows every public name, and asks no other machine for anything."""

from __future__ import annotations

import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ude
from tests.project.reference_for_tests import described

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link, an unknown anchor or name, a page outside the navigation are errors."""
    folder = tmp_path_factory.mktemp("site")
    # never with --quiet, which hides warnings from --strict as well
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    # Material reminds of its end of life in 2027 on stderr, which is no finding of the build
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_public_name_has_an_entry(site: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    ids = set(re.findall(r'id="ude\.([\w.]+)"', pages))
    assert set(described()) <= ids


def test_every_public_name_is_listed_once() -> None:
    listed = described()
    assert len(listed) == len(set(listed))
    assert set(ude._MODULE_OF) <= set(listed)
    for module in ("callbacks", "errors", "search", "stages", "optimizers", "uncertainty"):
        public = getattr(getattr(ude, module), "__all__", [])
        assert {name for name in public if name[0].isupper()} <= {name.rpartition(".")[2] for name in listed}, module


@pytest.mark.parametrize("name", sorted(described()))
def test_public_name_has_a_docstring_of_its_own(name: str) -> None:
    value = functools.reduce(getattr, name.split("."), ude)
    name = name.rpartition(".")[2]
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text is not None
    assert len(text.split()) > 4
    assert not text.startswith(f"{name}("), "the signature that a dataclass writes by itself"


def test_pages_ask_no_other_machine_for_anything(site: Path) -> None:
    asked = re.compile(r"""<(?:link|script|img|iframe|source)[^>]*(?:href|src)=["']?(?:https?:)?//[^"'\s>]+""")
    for path in site.rglob("*.html"):
        assert not asked.findall(path.read_text(encoding="utf-8")), path.name
    for path in site.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8"), path.name


def test_formulas_are_set_without_a_script(site: Path) -> None:
    page = (site / "tutorials" / "01_hudson_bay.html").read_text(encoding="utf-8")
    assert "<math" in page
    assert "arithmatex" not in page


def test_docstrings_are_rendered_and_not_run_together(site: Path) -> None:
    page = (site / "reference" / "fitting.html").read_text(encoding="utf-8")
    assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>|<code.*?</code>", "", page, flags=re.S), (
        "an example is not code"
    )
    assert re.search(r"<li>\s*<p>\s*<code>noise</code>|<li>\s*<code>noise</code>", page), "fields are not a list"
