"""What the pages of the reference describe."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def described() -> list[str]:
    """Every entry in the order of the pages, without the leading ``ude.``: "solve", "noise.LogNormal"."""
    pages = sorted((ROOT / "docs" / "reference").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: ude\.([\w.]+)$", page.read_text("utf-8"), re.M)]
