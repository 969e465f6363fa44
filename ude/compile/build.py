"""Compile generated C to a shared library, once for every source, compiler and processor, and load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ude.compile.cache import (
    cache_dir,
    cache_size,
    cached_kernels,
    clear_cache,
    get_metadata,
    places,
    put_metadata,
    workplace,
    write_atomically,
)
from ude.compile.compiler import UNSAFE, Compiler, find_compiler, run_quietly, why_no_compiler
from ude.errors import EngineRefused, InputError

_LIBRARY = "kernel.dll" if os.name == "nt" else "kernel.so"


def compile_kernel(source: str, flags: Sequence[str] | None = None) -> Path:
    """Compile C to a shared library, or find it in the cache; its source lies next to it as kernel.c.

    Several processes may do this at once: each compiles into a folder of its own, and the first to finish moves it
    into place. A library that is not as it was written is compiled again.

    Args:
        flags: Instead of the usual ones; "-shared" and "-lm" are always there.

    Raises:
        EngineRefused: There is no C compiler, or it refuses the source; then says where that lies.
        InputError: A flag allows the compiler to ignore NaN and infinity.
    """
    compiler = find_compiler()
    used = compiler.flags if flags is None else tuple(dict.fromkeys((*flags, "-shared")))
    unsafe = UNSAFE.intersection(used)
    if unsafe:
        raise InputError(
            f"the flag {min(unsafe)} lets the compiler ignore NaN and infinity", fix="A blow-up would go unseen."
        )
    key = hashlib.sha256("\0".join((source, *used, compiler.identity())).encode()).hexdigest()[:40]
    return cached_kernel(key) or _build(key, source, used, compiler)


def cached_kernel(key: str) -> Path | None:
    """The library of that key (the name of the folder that `compile_kernel` gave) if it is there and sound."""
    for place in places():
        library = place / "kernels" / key / _LIBRARY
        if is_sound(library):
            return library
    return None


def is_sound(library: Path) -> bool:
    """Whether a library is there and as it was written. Loading a damaged one could end the process."""
    try:
        content = library.read_bytes()
        written = library.with_suffix(".sha256").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    return hashlib.sha256(content).hexdigest() == written


def load(path: Path) -> ctypes.CDLL:
    """Load a library that `compile_kernel` or `cached_kernel` gave.

    Raises:
        EngineRefused: It cannot be loaded, for instance because the cache lies where nothing may be executed.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineRefused(
            "a compiled kernel cannot be loaded",
            got=str(error),
            fix="Set UDE_CACHE_DIR to a folder from which programs may run, or clear the cache: ude cache --clear.",
        ) from None


def surroundings() -> tuple[str, ...]:
    """What decides, beside the source, whether it can be compiled and loaded; with others, trying again makes sense."""
    return (os.environ.get("CC", ""), os.environ.get("PATH", ""), str(cache_dir()))


def _build(key: str, source: str, flags: tuple[str, ...], compiler: Compiler) -> Path:
    kernels = workplace("kernels")
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=kernels))
    try:
        library = folder / _LIBRARY
        # relative names, so that the library does not depend on the folder that it was built in
        (folder / "kernel.c").write_text(source, encoding="utf-8")
        command = [*compiler.command, *flags, "kernel.c", "-o", _LIBRARY, "-lm"]
        done = run_quietly(command, folder)
        if done.returncode:
            raise _refused(key, source, done.stderr, compiler)
        library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        return _move_into_place(folder, kernels / key)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, target: Path) -> Path:
    """Move a finished folder to its name; where a sound one stands there already, that one is used."""
    for attempt in range(8):
        try:
            os.rename(folder, target)
        except OSError:
            if is_sound(target / _LIBRARY):
                break
            # A damaged one is moved away first: another process may be about to do the same.
            aside = folder.with_name(f"{folder.name}-{attempt}")
            try:
                os.rename(target, aside)
            except OSError:
                continue
            shutil.rmtree(aside, ignore_errors=True)
        else:
            break
    return target / _LIBRARY


def _refused(key: str, source: str, said: str, compiler: Compiler) -> EngineRefused:
    path = workplace("failed") / f"{key}.c"
    write_atomically(path, source.encode())
    lines = said.strip().splitlines()
    errors = [line for line in lines if "error" in line] or lines or ["no reason given"]
    return EngineRefused(
        "the C compiler refused the generated program",
        got="\n".join(errors[:8]),
        fix=f"The source is {path}, the compiler {compiler.command[0]} ({compiler.version}).",
    )


__all__ = [
    "cache_dir",
    "cache_size",
    "cached_kernel",
    "cached_kernels",
    "clear_cache",
    "compile_kernel",
    "find_compiler",
    "get_metadata",
    "is_sound",
    "load",
    "put_metadata",
    "surroundings",
    "why_no_compiler",
]
