"""A run folder of which one file is damaged: the file is named in one line, and nothing in the folder changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ude.cli import main

TABLE = "t,x\n" + "\n".join(f"{0.5 * i},{2.0 * 0.8**i:.6f}" for i in range(12)) + "\n"
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "one byte changed": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "decay.csv").write_text(TABLE)
    command = ["fit", str(folder / "decay.csv"), "-e", "dx/dt = -k*x", "--fit", "k", "--time", "t", "-q"]
    assert main([*command, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["fit.json", "fit.safetensors", "history.csv", "settings.json", "run.json"])
def test_a_damaged_file_is_named_in_one_line(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fitted, run)
    (run / name).write_bytes(DAMAGES[damage]((run / name).read_bytes()))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = ["fit", str(fitted.parent / "decay.csv"), "-e", "dx/dt = -k*x", "--fit", "k", "--time", "t", "-q"]
    of_the_fit = name.startswith(("fit", "history"))
    commands = (
        [[c, str(run)] for c in ("report", "simulate", "export")] if of_the_fit else [[*again, "--out", str(run)]]
    )
    for command in commands:
        capsys.readouterr()
        assert main(command) == 2
        said = capsys.readouterr().err
        assert str(run / name) in said
        assert len(said.splitlines()) == 1
        assert "Traceback" not in said
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
