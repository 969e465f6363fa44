"""The README's Python runs as written, and its numbers are those that come out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.end_to_end
def test_library_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["sol"].u.shape) == (101, 2)
    assert set(names["found"].held_out_rmse) == {"hare", "lynx"}
    assert all(error < 12 for error in names["found"].held_out_rmse.values()), "the forecast lost the cycle"
    assert (tmp_path / "solution.png").read_bytes().startswith(b"\x89PNG")
    assert "<img" in (tmp_path / "report.html").read_text(encoding="utf-8")
