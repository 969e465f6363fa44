"""The cache of compiled kernels: a folder that any number of processes may read and write at once.

::

    kernels/<key>/kernel.so kernel.c kernel.sha256    written elsewhere and moved into place as a whole
    metadata/<hash>.json                              what is known of a problem, by any stable string
    failed/<key>.c                                    sources that the compiler refused
    compilers.json                                    compilers met before
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from ude.errors import DataError, InputError
from ude.untrusted import parse_json, read_bytes

#: What the cache consists of; nothing else in its folder is ever touched.
_FOLDERS, _FILES = ("kernels", "metadata", "failed"), ("compilers.json",)


def cache_dir() -> Path:
    """The folder: ``$UDE_CACHE_DIR``, else ``$XDG_CACHE_HOME/ude``, else where the system keeps such things.

    Never a folder relative to the current directory, where programs of somebody else may lie: a relative
    XDG_CACHE_HOME is ignored, as its specification says, and without a home directory the cache is a private folder
    of this process.

    Raises:
        InputError: UDE_CACHE_DIR is a relative path.
    """
    given, shared = os.environ.get("UDE_CACHE_DIR"), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        folder = os.path.expanduser(given)
        if not os.path.isabs(folder):
            raise InputError("UDE_CACHE_DIR must be an absolute path", expected="/home/me/.cache/ude", got=repr(given))
        return Path(os.path.normpath(folder))
    if os.path.isabs(shared):
        return Path(os.path.normpath(shared)) / "ude"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():
        return _private()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "ude"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local")) / "ude" / "cache"
    return home / ".cache" / "ude"


@functools.cache
def _private() -> Path:
    """A folder of this process alone, for where the cache cannot be written to; gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="ude-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def is_trusted(folder: Path) -> bool:
    """Whether programs in a folder may be loaded: on POSIX, nobody but its owner, who is this user, may write to it."""
    try:
        status = folder.stat()
    except OSError:
        return False
    if not hasattr(os, "geteuid"):  # Windows keeps caches in the user's own profile
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def places() -> tuple[Path, ...]:
    """Folders to look in: the cache if it can be trusted, and this process's own if it has one."""
    folders = (cache_dir(), _private()) if _private.cache_info().currsize else (cache_dir(),)
    return tuple(folder for folder in dict.fromkeys(folders) if is_trusted(folder))


def workplace(name: str) -> Path:
    """A folder `name` that can be written to: in the cache, or where that cannot be, in one of this process alone."""
    root = cache_dir()
    folder = root / name
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not is_trusted(root):
            raise PermissionError(f"others may write to {root}")
        folder.mkdir(exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        folder = _private() / name
        folder.mkdir(exist_ok=True)
        return folder


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that no reader sees a part of it.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is none that reads."""
    try:
        return parse_json(read_bytes(path), path)
    except DataError:
        return {}


def put_metadata(key: str, data: dict[str, Any]) -> None:
    """Remember plain data (JSON) under any string, such as which kernel belongs to `Fingerprint.stable`."""
    path = workplace("metadata") / _file_of(key)
    with contextlib.suppress(OSError):  # forgotten, then: found out again next time
        write_atomically(path, json.dumps({"key": key, "data": data}).encode())


def get_metadata(key: str) -> dict[str, Any] | None:
    """What `put_metadata` was given last for this string, by any process; None where it is not known."""
    for place in places():
        content = read_json(place / "metadata" / _file_of(key))
        if content.get("key") == key and isinstance(content.get("data"), dict):
            return dict(content["data"])
    return None


def _file_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:40] + ".json"


def _files() -> list[Path]:
    root = cache_dir()
    found = [root / name for name in _FILES if (root / name).is_file()]
    for folder in _FOLDERS:
        for parent, _, names in os.walk(root / folder):
            found += [Path(parent) / name for name in names]
    return found


def cached_kernels() -> int:
    """How many kernels the cache holds."""
    return sum(1 for path in _files() if path.name.endswith(".sha256"))


def cache_size() -> tuple[int, int]:
    """How many files the cache holds, and their bytes."""
    sizes = []
    for path in _files():
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # another process has just cleared it
    return len(sizes), sum(sizes)


def clear_cache() -> tuple[int, int]:
    """Delete what the cache holds, and nothing else in its folder; returns how many files and bytes went.

    Kernels that are loaded stay usable where they are. What cannot be deleted stays.
    """
    before = cache_size()
    root = cache_dir()
    for folder in _FOLDERS:
        shutil.rmtree(root / folder, ignore_errors=True)
    for name in _FILES:
        (root / name).unlink(missing_ok=True)
    after = cache_size()
    return max(before[0] - after[0], 0), max(before[1] - after[1], 0)
