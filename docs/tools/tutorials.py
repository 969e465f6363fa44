"""Tutorials as pages: the cells of a percent script, and the figures that it draws.

``python docs/tools/tutorials.py`` runs every tutorial with ``fast=True`` and keeps figures and numbers in
docs/.figures, in a folder that is named after the content of the script; what has run before is not run again. The
site shows what it finds there and never runs anything itself, so that it can be built in seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jupytext

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
FIGURES = ROOT / "docs" / ".figures"
PICTURES = (".png", ".svg")
CLOSING = "## When this fails"

_RUN = """
import importlib.util, json, sys
from pathlib import Path
import matplotlib
matplotlib.use("agg")
script, folder = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("tutorial", script)
module = importlib.util.module_from_spec(spec)
sys.modules["tutorial"] = module
spec.loader.exec_module(module)
numbers = module.main(fast=True, folder=folder)
(folder / "numbers.json").write_text(json.dumps({name: float(value) for name, value in numbers.items()}, indent=1))
"""


def scripts() -> list[Path]:
    """All tutorials, in the order of their numbers."""
    return sorted(path for path in TUTORIALS.glob("[0-9]*.py"))


def folder_of(script: Path) -> Path:
    """Where the figures of this very text of a script are kept."""
    return FIGURES / f"{script.stem}-{hashlib.sha256(script.read_bytes()).hexdigest()[:12]}"


def title(script: Path) -> str:
    """The first heading."""
    [found] = re.findall(r"^# # (.+)$", script.read_text(encoding="utf-8"), re.M)[:1]
    return found


def figures(script: Path) -> list[Path]:
    """What a run of this script drew; nothing when it has not run."""
    folder = folder_of(script)
    if not (folder / "numbers.json").exists():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix in PICTURES)


def page(script: Path) -> str:
    """The tutorial as Markdown; a figure stands behind the cell that names it, the others before the closing part.

    `main` names all files and comes last: there a figure would follow what the text says about it.
    """
    pieces: list[str] = []
    waiting = figures(script)
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "markdown":
            if CLOSING in cell.source:
                pieces += [_image(script, picture) for picture in waiting]
                waiting = []
            pieces.append(cell.source)
        elif cell.source.strip():
            pieces.append(f"```python\n{cell.source}\n```")
            named = [p for p in waiting if p.name in cell.source and "def main(" not in cell.source]
            pieces += [_image(script, picture) for picture in named]
            waiting = [picture for picture in waiting if picture not in named]
    return "\n\n".join([*pieces, *_numbers(script)]) + "\n"


def _image(script: Path, picture: Path) -> str:
    name = picture.stem.replace("_", " ")
    return f"![{name}](figures/{script.stem}/{picture.name})"


def _numbers(script: Path) -> list[str]:
    path = folder_of(script) / "numbers.json"
    if not path.exists():
        return []
    rows = [f"| {name} | {value:.4g} |" for name, value in json.loads(path.read_text(encoding="utf-8")).items()]
    head = "## What came out\n\nOf the short run (`fast=True`) whose pictures stand on this page."
    return [head, "\n".join(["| | |", "|---|---:|", *rows])]


def run(script: Path) -> int:
    """Run one tutorial in a process of its own; its exit status."""
    folder = folder_of(script)
    if (folder / "numbers.json").exists():
        print(f"{script.stem}: kept from before")  # noqa: T201
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{script.stem}: running", flush=True)  # noqa: T201
    return subprocess.run([sys.executable, "-c", _RUN, str(script), str(folder)], cwd=ROOT).returncode


if __name__ == "__main__":
    wanted = sys.argv[1:]
    sys.exit(max((run(s) for s in scripts() if not wanted or s.stem in wanted or s.stem[:2] in wanted), default=0))
