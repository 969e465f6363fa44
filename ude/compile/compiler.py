"""The system's C compiler: which it is, what it is called with, what it is remembered by."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ude.compile.cache import cache_dir, read_json, write_atomically
from ude.errors import EngineRefused

#: Nothing that lets the compiler assume away NaN and infinity: a blow-up must be seen as one. Errno and traps only
#: keep it from using vector instructions, and nobody reads them.
FLAGS = ("-O3", "-march=native", "-mcpu=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
UNSAFE = frozenset({"-ffast-math", "-Ofast", "-ffinite-math-only", "-funsafe-math-optimizations", "-fassociative-math"})
_ARM = ("arm64", "aarch64")


@dataclass(frozen=True)
class Compiler:
    """A C compiler that answered.

    Args:
        command: How it is called.
        version: The first line of what it says of itself.
        flags: Those of `FLAGS` that it knows on this machine.
    """

    command: tuple[str, ...]
    version: str
    flags: tuple[str, ...]

    def identity(self) -> str:
        """What compiled code depends on besides its source: compiler, its release, and the processor."""
        return f"{' '.join(self.command)}\n{self.version}\n{processor()}"


def find_compiler() -> Compiler:
    """The compiler in ``$CC``, else cc, gcc or clang.

    No process is started where this compiler was met before, in this process or another.

    Raises:
        EngineRefused: There is none, or the one there is does not compile an empty program.
    """
    return _find(os.environ.get("CC", ""), os.environ.get("PATH", ""), str(cache_dir()))


def why_no_compiler() -> str | None:
    """One sentence that says why nothing can be compiled here, or None."""
    try:
        find_compiler()
    except EngineRefused as refusal:
        return str(refusal)
    return None


@functools.lru_cache(maxsize=16)
def _find(cc: str, path: str, cache: str) -> Compiler:
    try:
        wanted = [tuple(shlex.split(cc))] if cc.strip() else [("cc",), ("gcc",), ("clang",)]
    except ValueError as error:  # a quote or an escape without its end
        raise EngineRefused(
            "$CC must read as a command line", got=f"{cc!r}: {error}", fix="Close the quote, or unset it."
        ) from error
    for command in filter(None, wanted):  # CC="#gcc" is a comment alone
        program = shutil.which(command[0], path=path)
        if program is not None:
            return _described((program, *command[1:]), Path(cache) / "compilers.json")
    if cc.strip():
        raise EngineRefused("there is no C compiler at $CC", got=cc, fix="Set CC to the path of one, or unset it.")
    raise EngineRefused(
        "there is no C compiler",
        expected="cc, gcc or clang on PATH, or the path of one in $CC",
        got="none of them",
        fix=f"Install one ({_how_to_install()}).",
    )


def _how_to_install() -> str:
    return {"darwin": "xcode-select --install", "win32": "winget install LLVM.LLVM"}.get(
        sys.platform, "apt install gcc, dnf install gcc or conda install c-compiler"
    )


def _described(command: tuple[str, ...], remembered: Path) -> Compiler:
    status = os.stat(command[0])
    # a compiler that was replaced has another size or time; the processor decides about -march
    place = f"{shlex.join(command)} {status.st_mtime_ns} {status.st_size} {processor()} {FLAGS}"
    known = read_json(remembered)
    entry = known.get(place)
    if entry is None or not _is_description(entry):
        entry = _ask(command)
        with contextlib.suppress(OSError):  # asked again next time, then
            write_atomically(remembered, json.dumps({**read_json(remembered), place: entry}, indent=1).encode())
    return Compiler(command, str(entry["version"]), tuple(entry["flags"]))


def _is_description(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("version"), str)
        and isinstance(entry.get("flags"), list)
        and set(entry["flags"]) <= set(FLAGS)
    )


def _ask(command: tuple[str, ...]) -> dict[str, Any]:
    """The version of a compiler, and which flags it knows: all, or each on its own where it refuses all together."""
    version = run_quietly([*command, "--version"])
    if version.returncode:
        raise _not_working(command, version)
    lines = version.stdout.strip().splitlines() or ["unknown version"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int ude_empty(void) { return 0; }\n")
        call = [*command, "-Werror", str(source), "-o", str(Path(folder) / "empty.bin")]
        # of the two ways to name the processor each architecture has its own; the other only warns, or means another
        of_others = "-march=native" if platform.machine().lower() in _ARM else "-mcpu=native"
        flags = [flag for flag in FLAGS if flag != of_others]
        if run_quietly([*call, *flags]).returncode:
            flags = [
                flag for flag in flags if flag == "-shared" or not run_quietly([*call, "-shared", flag]).returncode
            ]
            done = run_quietly([*call, *flags])
            if done.returncode:
                raise _not_working(command, done)
    return {"version": lines[0], "flags": flags}


def _not_working(command: tuple[str, ...], done: subprocess.CompletedProcess[str]) -> EngineRefused:
    said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
    return EngineRefused(f"the C compiler {command[0]} does not work", got=said, fix="Set $CC to another.")


def run_quietly(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says; one that cannot be started ends with status 126."""
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


@functools.cache
def processor() -> str:
    """The processor by model and instruction sets, which code for -march=native depends on."""
    fields = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}  # of Intel and AMD
    fields |= {"Features", "CPU implementer", "CPU part", "CPU variant"}  # of ARM
    try:
        # the first processor's part of the file is enough, and the whole takes long to read where there are many
        with open("/proc/cpuinfo", "rb") as file:
            first = file.read(16_384).decode(errors="replace").split("\n\n")[0]
    except OSError:
        return f"{platform.machine()} {_name_of_processor()}"
    told = [line for line in first.splitlines() if line.partition(":")[0].strip() in fields]
    return platform.machine() + " ".join(" ".join(line.split()) for line in told)


def _name_of_processor() -> str:
    try:
        buffer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
        # macOS has no /proc; `platform.processor` would start a process
        ctypes.CDLL(None).sysctlbyname(b"machdep.cpu.brand_string", buffer, ctypes.byref(size), None, 0)
        return buffer.value.decode(errors="replace")
    except (OSError, TypeError, AttributeError):
        return os.environ.get("PROCESSOR_IDENTIFIER", "")  # Windows
