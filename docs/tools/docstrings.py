"""Docstrings as they are written in the code, turned into what the site renders.

Fields are written as ``name:  text`` on lines of their own, examples as bare ``>>>`` lines at the end, and literal
blocks after ``::``. Rendered as Markdown these would run together; so fields become lists, examples become code, and
names of the package become links. The docstrings themselves stay as they read best in an editor.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[2]
_SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Examples?|Note|Warns):\s*$")
_FIELD = re.compile(r"^[a-z_][\w]*(, [a-z_]\w*)*: {1,}\S")


def entries() -> dict[str, str]:
    """What the reference describes: how a text names it (``LogNormal``, ``ude.noise.LogNormal``) -> its full name."""
    found: dict[str, str] = {}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name in re.findall(r"^::: (ude\.[\w.]+)$", page.read_text(encoding="utf-8"), re.M):
            found |= {name: name, name.rpartition(".")[2]: name}
    return found


ENTRIES = entries()


def linked(text: str) -> str:
    """Inline code that is a public name becomes a link to its entry."""

    def link(match: re.Match[str]) -> str:
        entry = ENTRIES.get(match["name"])
        return f"[`{match['code']}`][{entry}]" if entry else match[0]

    return re.sub(r"(?<![`\[])`(?P<code>(?P<name>[\w.]+)(?:\([^`\n]*\))?)`(?![`\]])", link, text)


def _blocks(text: str) -> list[str]:
    """Paragraphs; indented lines stay with what they are indented under."""
    return re.split(r"\n\s*\n", text)


def _fields(block: str) -> str:
    """A paragraph of ``name: text`` lines as a list; any other paragraph as it is."""
    lines = block.splitlines()
    if not _FIELD.match(lines[0]):
        return block
    items: list[str] = []
    for line in lines:
        if _FIELD.match(line):
            name, _, rest = line.partition(":")
            names = ", ".join(f"`{part.strip()}`" for part in name.split(","))
            items.append(f"- {names}: {rest.strip()}")
        else:
            items[-1] += f"\n    {line.strip()}"
    return "\n".join(items)


def markdown(text: str) -> str:
    """One docstring, ready for griffe's reading of Google's style."""
    out: list[str] = []
    for block in _blocks(text):
        first = block.lstrip("\n").splitlines()[0] if block.strip() else ""
        if first.startswith(">>>"):
            body = "\n".join(f"    {line}" for line in block.splitlines())
            out.append(f"Examples:\n{body}" if not (out and out[-1].startswith("Examples:")) else body)
        elif _SECTION.match(first) or first.startswith((" ", "\t")):
            out.append(block)
        else:
            out.append(_fields(re.sub(r"\s?::$", ":", block, flags=re.M)))
    return "\n\n".join(linked(_double_backticks(block)) if not _is_code(block) else block for block in out)


def _is_code(block: str) -> bool:
    return block.startswith("Examples:") or block.startswith("    ")


def _double_backticks(text: str) -> str:
    return re.sub(r"``([^`\n]+)``", r"`\1`", text)


class Docstrings(griffe.Extension):
    """Called by griffe for every object that it has read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
