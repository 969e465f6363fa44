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
        self._lock: int | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._take()
            self.resumed = not self._is_new() and self._is_of(specification, data)
            with tempfile.TemporaryFile(dir=path):
                pass
            if not self.resumed:
                self._begin(specification, data)
        except OSError as error:
            self.release()
            raise InputError(
                f"the folder {path} cannot be written to",
                got=error.strerror or str(error),
                fix="Choose another with --out.",
            ) from error
        except UdeError:
            self.release()
            raise

    def _take(self) -> None:
        """Keep the folder to this process until `release`; the system lets go of it when the process ends.

        Raises InputError where another process has it.
        """
        if sys.platform == "win32":  # a folder cannot be opened there
            return
        import fcntl

        self._lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is at work in the folder {self.path}",
                fix="Wait until it has ended, or choose another with --out.",
            ) from None
        except OSError:
            pass  # a file system without locks

    def release(self) -> None:
        """Let other processes use the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _is_new(self) -> bool:
        """Whether nothing is here, or only what a run left that was killed in `_begin`, before it could be continued.

        The settings are written first, so that a data.csv without them is another's, and stays.
        """
        found = {entry.name for entry in self.path.iterdir()}
        partial = {f".{SETTINGS}.tmp"}
        if SETTINGS in found:
            read_json(self.path / SETTINGS, _SETTINGS)
            partial |= {SETTINGS, DATA, f".{MODEL}.tmp"}
        return found <= partial

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def _begin(self, specification: Specification, data: Dataset) -> None:
        own = specification
        write_json(self.path / SETTINGS, settings(specification, data))
        if specification.file is not None:
            shutil.copyfile(specification.file, self.path / DATA)
            own = replace(specification, file=Path(DATA))
        # last: a folder with this file is one that can be continued
        self._write_model(own)

    def _write_model(self, own: Specification) -> None:
        own.write(self.path / MODEL, f"This run, made by ude {ude.__version__}. To repeat it: ude discover {MODEL}")

    def _is_of(self, specification: Specification, data: Dataset) -> bool:
        if not self.has(MODEL) or not self.has(SETTINGS):
            raise InputError(
                f"the folder {self.path} is not empty",
                fix="Choose another with --out, or delete it if it is not needed.",
            )
        begun = read_specification(self.path / MODEL)
        other = _differences(begun, specification)
        if read_json(self.path / SETTINGS, _SETTINGS)["data"]["sha256"] != data.digest:
            other.append("data")
        if other:
            raise InputError(
                f"the folder {self.path} holds another run",
                expected="the same as in its model.toml",
                got=f"another {', '.join(other)}",
                fix="Choose another with --out, or delete it if it is not needed.",
            )
        if begun.discover != specification.discover:
            write_json(self.path / SETTINGS, settings(specification, data))
            self._write_model(replace(begun, discover=specification.discover, file=specification.file and Path(DATA)))
        return True


def _differences(begun: Specification, asked: Specification) -> list[str]:
    """The sections in which the fits of two runs differ, as far as this changes what comes out.

    Another search, [discover], is another answer from the same fit: the caches of the search know theirs by key.
    """
    first, second = begun.described(), asked.described()
    for described in (first, second):
        described.pop("name", None)
        described.pop("discover", None)
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
def logged_in(folder: RunFolder) -> Iterator[None]:
    """An error of ours in here is logged into the folder, see `app.main`; after it, other processes may use it."""
    try:
        yield
    except UdeError:
        raise
    except Exception as error:
        error.__dict__.setdefault("ude_folder", folder.path)
        raise
    finally:
        folder.release()
