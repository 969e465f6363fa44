"""The folder of a run: new, or begun earlier and continued; what it holds is enough to run it again."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ude
from ude.cli.specification import Specification, read_specification
from ude.errors import InputError, UdeError
from ude.untrusted import JSON, read_json, write_json

if TYPE_CHECKING:
    from ude.fitting import Dataset

MODEL, SETTINGS, DATA, FIT = "model.toml", "settings.json", "data.csv", "fit.json"
PACKAGES = ("torch", "numpy", "scipy", "sympy", "pandas", "matplotlib", "pyoperon", "pysr", "pysindy")

_SETTINGS = {
    "command": (str, type(None)),
    "request": {str: JSON},
    "data": {"sha256": str, "states": [str], "time": str},
    "versions": {str: str},
    "platform": str,
    "processors": (int, type(None)),
}


class RunFolder:
    """The folder of a run; `resumed` tells whether it had been begun.

    Raises InputError where it cannot be written to, and where it holds something else than this run.
    """

    def __init__(self, path: Path, specification: Specification, data: Dataset) -> None:
        self.path, self.resumed = path, False
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                self.resumed = self._is_of(specification, data)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise InputError(
                f"the folder {path} cannot be written to",
                got=error.strerror or str(error),
                fix="Choose another with --out.",
            ) from error
        if not self.resumed:
            self._begin(specification, data)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _begin(self, specification: Specification, data: Dataset) -> None:
        own = specification
        if specification.file is not None:
            shutil.copyfile(specification.file, self.path / DATA)
            own = replace(specification, file=Path(DATA))
        write_json(self.path / SETTINGS, settings(specification, data))
        # last: a folder with this file is one that can be continued
        own.write(self.path / MODEL, f"This run, made by ude {ude.__version__}. To repeat it: ude discover {MODEL}")

    def _is_of(self, specification: Specification, data: Dataset) -> bool:
        if not self.has(MODEL) or not self.has(SETTINGS):
            raise InputError(
                f"the folder {self.path} is not empty",
                fix="Choose another with --out, or delete it if it is not needed.",
            )
        other = _differences(read_specification(self.path / MODEL), specification)
        if read_json(self.path / SETTINGS, _SETTINGS)["data"]["sha256"] != data.digest:
            other.append("data")
        if other:
            raise InputError(
                f"the folder {self.path} holds another run",
                expected="the same as in its model.toml",
                got=f"another {', '.join(other)}",
                fix="Choose another with --out, or delete it if it is not needed.",
            )
        return True


def _differences(begun: Specification, asked: Specification) -> list[str]:
    """The sections in which two runs differ, as far as this changes what comes out."""
    first, second = begun.described(), asked.described()
    for described in (first, second):
        described.pop("name", None)
        described.get("data", {}).pop("file", None)
    return [name for name in dict.fromkeys((*first, *second)) if first.get(name) != second.get(name)]


def free_name(stem: str) -> Path:
    number = 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def settings(specification: Specification, data: Dataset) -> dict[str, Any]:
    """What was asked, of what data, with what releases."""
    command = ["ude", *sys.argv[1:]] if Path(sys.argv[0]).stem == "ude" else None
    return {
        "command": shlex.join(command) if command else None,
        "request": specification.described(),
        "data": {"sha256": data.digest, "states": data.states, "time": data.time_name},
        "versions": versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "ude": ude.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def logged_in(folder: Path) -> Iterator[None]:
    """An error of ours in here is logged into the folder; see `app.main`."""
    try:
        yield
    except UdeError:
        raise
    except Exception as error:
        error.__dict__.setdefault("ude_folder", folder)
        raise
