"""What MkDocs is told beside mkdocs.yml: pages made of files that live elsewhere, links between them, formulas.

Benchmarks, tutorials, the changelog and the contributor's page stay where they belong in the repository and become
pages here. A link that is right in the repository (``../benchmarks/fused_speed.md``) is right on the site too.
"""

from __future__ import annotations

import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

from docstrings import linked
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tutorials as scripts

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.M | re.S)


def elsewhere() -> dict[str, str]:
    """Path in the repository -> path in the site, of every file outside docs/ that the site shows."""
    places = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
    places |= {"LICENSE": "LICENSE.txt", "CITATION.cff": "CITATION.cff", "setup.cfg": "architecture.md"}
    for path in sorted([*BENCHMARKS.glob("*.md"), *BENCHMARKS.glob("*.png")]):
        name = "index.md" if path.name == "README.md" else path.name
        places[f"benchmarks/{path.name}"] = f"benchmarks/{name}"
    places |= {f"tutorials/{script.name}": f"tutorials/{script.stem}.md" for script in scripts.scripts()}
    return places


def _in_repository(uri: str) -> str:
    """The file of the repository that a page of the site is made of."""
    for source, place in elsewhere().items():
        if place == uri and source not in ("README.md", "setup.cfg"):
            return source
    return f"docs/{uri}"


def _outside_code(text: str, change: Any) -> str:
    """Apply a change to what stands between fenced blocks."""
    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, change(text[end:])])


def _relink(text: str, uri: str) -> str:
    """Links to files of the repository, said relative to a page of the site."""
    source, places = _in_repository(uri), elsewhere()

    def moved(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if re.match(r"[a-z]+:|/", target) or not target:
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = places.get(wanted, wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
        if place is None:
            return match[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{anchor})"

    return re.sub(r"\]\((?P<target>[^)\s#]*)(?P<anchor>#[^)\s]*)?\)", moved, text)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the empty parts of the navigation; pages that nobody listed go under "More", so that none is lost."""
    benchmarks = [p.stem for p in sorted(BENCHMARKS.glob("*.md")) if p.name != "README.md"]
    filled = {
        "Tutorials": [{scripts.title(s).split(":")[0]: f"tutorials/{s.stem}.md"} for s in scripts.scripts()],
        "Benchmarks": ["benchmarks/index.md", *(f"benchmarks/{name}.md" for name in benchmarks)],
    }
    for part in config.nav or []:
        for name, pages in filled.items():
            if name in part:
                part[name] = pages
    listed = str(config.nav)
    docs = Path(config.docs_dir)
    found = [path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*.md"))]
    unlisted = [uri for uri in found if f"'{uri}'" not in listed and not uri.startswith("tools/")]
    if unlisted and config.nav is not None:
        config.nav.append({"More": unlisted})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and pictures that live elsewhere."""
    for source, place in elsewhere().items():
        path = ROOT / source
        if source in ("README.md", "setup.cfg"):
            continue
        if path.suffix == ".py":
            files.append(File.generated(config, place, content=scripts.page(path)))
            for picture in scripts.figures(path):
                where = f"tutorials/figures/{path.stem}/{picture.name}"
                files.append(File.generated(config, where, abs_src_path=str(picture)))
        else:
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links of the repository become links of the site, and names of the package links to the reference."""
    uri = page.file.src_uri
    markdown = _relink(markdown, uri)
    if uri.startswith(("reference/", "changelog")):
        return markdown
    return _outside_code(markdown, _link_names)


def _link_names(text: str) -> str:
    """Only names that are written with the package, ``ude.Tsit5()``: a bare `solve` may be anybody's."""
    lines = []
    for line in text.split("\n"):
        heading = line.startswith("#")
        lines.append(line if heading else re.sub(r"`ude\.[^`]+`", lambda match: linked(match[0]), line))
    return "\n".join(lines)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers set without any script."""
    inline = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
    display = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)
    html = inline.sub(lambda match: _mathml(unescape(match[1]), "inline"), html)
    return display.sub(lambda match: _mathml(unescape(match[1]), "block"), html)


def _mathml(formula: str, display: str) -> str:
    """One formula; names of functions get the thin space before them that TeX gives them and the converter does not."""
    space = '<mspace width="0.167em"/>'
    return re.sub(
        r"<mi>(log|ln|exp|sin|cos|tan|max|min)</mi>", rf"{space}\g<0>{space}", convert(formula, display=display)
    )
