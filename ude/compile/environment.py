"""Which packages are taken by name and release instead of by their code, and what those releases are."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import sys
from pathlib import Path

#: Packages whose functions do what their name and release say.
TRUSTED = frozenset({"torch", "numpy", "scipy", "sympy", "ude", "jaxtyping", "builtins"}) | sys.stdlib_module_names


def is_trusted(root: str) -> bool:
    """Whether a package is taken by name. A user's signal.py that hides the standard library's is not."""
    if root not in sys.stdlib_module_names:
        return root in TRUSTED
    file = getattr(sys.modules.get(root), "__file__", None)
    if file is None or "lib-dynload" in file or "DLLs" in file:
        return True  # built in, or written in C
    folder = os.path.dirname(file)
    return os.path.dirname(os.__file__) in (folder, os.path.dirname(folder))


@functools.cache
def release(root: str) -> str:
    """The release of a trusted package; of ude, which changes between releases while it is written, its files too."""
    if root == "python" or root in sys.stdlib_module_names:
        return f"{sys.implementation.cache_tag} {sys.version_info.major}.{sys.version_info.minor}"
    if root == "ude":
        return ude_files()
    loaded = getattr(sys.modules.get(root), "__version__", None)
    return str(loaded) if loaded is not None else importlib.metadata.version(root)


@functools.cache
def ude_files() -> str:
    """A digest of names, sizes and times of ude's own source files; reading them all would take ten times as long."""
    root = Path(__file__).parents[1]
    hashed = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                path = os.path.join(folder, name)
                status = os.stat(path)
                hashed.update(f"{os.path.relpath(path, root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return hashed.hexdigest()
