"""The parts of generated programs that are the same for all of them: files beside this one, cut into sections."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_HEADING = re.compile(r"^/\* -- (.+?) -+ \*/$", re.MULTILINE)


@cache
def text_of(name: str) -> str:
    """A file of the folder c."""
    return (files("ude.engines.fused") / "c" / name).read_text(encoding="utf-8")


def section(name: str, *headings: str) -> str:
    """The sections of a file with these headings; "" is what stands before the first."""
    parts = _HEADING.split(text_of(name))
    found = dict(zip(["", *parts[1::2]], parts[::2], strict=True))
    return "\n".join(found[heading].strip("\n") + "\n" for heading in headings)
