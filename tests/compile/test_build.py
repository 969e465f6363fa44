"""Kernels are compiled once for all processes, whatever happens to the cache between."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ude.compile import build, cache, compiler
from ude.errors import EngineRefused, InputError

SOURCE = "#include <math.h>\ndouble scaled(double x) { return %d * tanh(x); }\n"
INFINITE = "int blown_up(double x) { return x != x || x - x != 0; }\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def compiled_processes(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were run."""
    ran: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: object) -> object:
        ran.append(command)
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", run)
    return ran


def scaled(library: Path, x: float) -> float:
    function = build.load(library).scaled
    function.restype, function.argtypes = ctypes.c_double, [ctypes.c_double]
    return float(function(x))


def test_a_kernel_computes_and_lies_beside_its_source(folder: Path) -> None:
    library = build.compile_kernel(SOURCE % 3)
    assert scaled(library, 0.5) == pytest.approx(3 * 0.46211715726000975)
    assert (library.parent / "kernel.c").read_text() == SOURCE % 3
    assert folder in library.parents


def test_the_same_source_is_compiled_once(compiled_processes: list[list[str]]) -> None:
    first = build.compile_kernel(SOURCE % 3)
    count = len(compiled_processes)
    assert count >= 1
    assert build.compile_kernel(SOURCE % 3) == first
    assert build.cached_kernel(first.parent.name) == first
    assert len(compiled_processes) == count


def test_another_source_or_other_flags_are_another_kernel() -> None:
    kernels = {
        build.compile_kernel(SOURCE % 3),
        build.compile_kernel(SOURCE % 4),
        build.compile_kernel(SOURCE % 3, ["-O1", "-fPIC"]),
    }
    assert len(kernels) == 3


def test_another_processor_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    here = build.compile_kernel(SOURCE % 3)
    monkeypatch.setattr(compiler, "processor", lambda: "another")
    assert build.compile_kernel(SOURCE % 3) != here


def test_nan_and_infinity_are_seen_under_the_usual_flags() -> None:
    blown_up = build.load(build.compile_kernel(INFINITE)).blown_up
    blown_up.argtypes = [ctypes.c_double]
    assert [blown_up(x) for x in (1.0, float("nan"), float("inf"), -float("inf"))] == [0, 1, 1, 1]


@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_a_flag_that_hides_a_blow_up_is_refused(flag: str) -> None:
    with pytest.raises(InputError, match=rf"the flag {flag} lets the compiler ignore NaN and infinity"):
        build.compile_kernel(INFINITE, ["-O2", flag])


# -- what may go wrong -------------------------------------------------------------------------------------------------


def test_refused_source_says_what_and_where() -> None:
    with pytest.raises(EngineRefused) as caught:
        build.compile_kernel("double f(double x { return x; }\n")
    text = str(caught.value)
    assert text.startswith("the C compiler refused the generated program: kernel.c:1:")
    assert "error" in text
    source = Path(text.split("The source is ")[1].split(", the compiler")[0])
    assert source.read_text() == "double f(double x { return x; }\n"


@pytest.mark.parametrize("name", ["kernel.so", "kernel.sha256"])
def test_a_damaged_library_is_compiled_anew(name: str) -> None:
    library = build.compile_kernel(SOURCE % 5)
    damaged = library.parent / name
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert build.cached_kernel(library.parent.name) is None
    assert build.compile_kernel(SOURCE % 5) == library
    assert build.is_sound(library)
    assert scaled(library, 0.5) == pytest.approx(5 * 0.46211715726000975)
    assert [path.name for path in library.parent.parent.iterdir()] == [library.parent.name]


def test_a_library_that_is_missing_in_its_folder_is_compiled_anew() -> None:
    library = build.compile_kernel(SOURCE % 6)
    library.unlink()
    assert build.compile_kernel(SOURCE % 6) == library
    assert build.is_sound(library)


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sentence = build.why_no_compiler()
    assert sentence is not None
    assert sentence.startswith(
        "there is no C compiler: expected cc, gcc or clang on PATH, or the path of one in $CC, got none of them."
    )
    with pytest.raises(EngineRefused, match="there is no C compiler"):
        build.compile_kernel(SOURCE % 3)


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -m32")
    assert build.why_no_compiler() == (
        "there is no C compiler at $CC: no-such-compiler -m32. Set CC to the path of one, or unset it."
    )


def test_a_compiler_that_does_not_work_says_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, "echo 'no licence accepted' >&2; exit 69")))
    sentence = build.why_no_compiler()
    assert sentence is not None
    assert "does not work: no licence accepted. Set $CC to another." in sentence


def fake_compiler(folder: Path, script: str) -> Path:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_flags_that_a_compiler_does_not_know_are_dropped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = compiler.find_compiler()
    script = f'case "$*" in *-fno-trapping-math*) echo "unknown option" >&2; exit 1;; esac; exec {real.command[0]} "$@"'
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, script)))
    found = compiler.find_compiler()
    assert set(real.flags) - set(found.flags) == {"-fno-trapping-math"}
    assert scaled(build.compile_kernel(SOURCE % 3), 0.5) == pytest.approx(3 * 0.46211715726000975)


def test_a_replaced_compiler_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    real = compiler.find_compiler().command[0]
    answer = f'[ "$1" = --version ] && {{ echo "fake cc %s"; exit 0; }}; exec {real} "$@"'
    monkeypatch.setenv("CC", str(fake_compiler(tmp_path, answer % "1")))
    assert compiler.find_compiler().version == "fake cc 1"
    first = build.compile_kernel(SOURCE % 3)
    fake_compiler(tmp_path, answer % "2.0")
    compiler._find.cache_clear()  # as in another process
    assert compiler.find_compiler().version == "fake cc 2.0"
    assert build.compile_kernel(SOURCE % 3) != first


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_cache_that_cannot_be_written_to_is_replaced_by_a_private_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path / "file" / "cache"))  # not even root can write there
    library = build.compile_kernel(SOURCE % 7)
    assert scaled(library, 0.5) == pytest.approx(7 * 0.46211715726000975)
    assert build.compile_kernel(SOURCE % 7) == library
    assert stat.S_IMODE(library.parents[2].stat().st_mode) == 0o700
    build.put_metadata("problem", {"kernel": library.parent.name})
    assert build.get_metadata("problem") == {"kernel": library.parent.name}
    assert build.cache_size() == (0, 0)


def test_a_private_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = f"from ude.compile import build; print(build.compile_kernel({SOURCE % 7!r}))"
    library = Path(in_another_process(code, tmp_path / "file" / "cache").strip())
    assert library.name == "kernel.so"
    assert not library.parents[2].exists()


# -- other processes ---------------------------------------------------------------------------------------------------


def start(code: str, cache_folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "UDE_CACHE_DIR": str(cache_folder), "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_another_process(code: str, cache_folder: Path) -> str:
    process = start(code, cache_folder)
    printed, complained = process.communicate(timeout=300)
    assert process.returncode == 0, complained
    assert complained == ""
    return printed


def test_processes_that_compile_the_same_at_once_all_get_a_sound_kernel(folder: Path) -> None:
    barrier = folder.parent / "go"
    code = f"""
import pathlib, time, ctypes
from ude.compile import build
pathlib.Path({str(folder.parent)!r}, f"ready-{{time.monotonic_ns()}}").touch()
while not pathlib.Path({str(barrier)!r}).exists():
    time.sleep(0.001)
for i in range(6):
    library = build.compile_kernel({SOURCE!r} % i)
    f = build.load(library).scaled
    f.restype, f.argtypes = ctypes.c_double, [ctypes.c_double]
    assert abs(f(0.5) - i * 0.46211715726000975) < 1e-12
    build.put_metadata("problem", {{"kernel": library.parent.name, "i": i}})
    assert build.get_metadata("problem") is not None
"""
    running = [start(code, folder) for _ in range(4)]
    while len(list(folder.parent.glob("ready-*"))) < len(running):
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
    barrier.touch()
    for process in running:
        _, complained = process.communicate(timeout=300)
        assert process.returncode == 0, complained
    kernels = list((folder / "kernels").iterdir())
    assert len(kernels) == 6
    assert all(build.is_sound(kernel / "kernel.so") for kernel in kernels)
    assert build.cached_kernels() == 6
    assert build.get_metadata("problem") in [{"kernel": kernel.name, "i": 5} for kernel in kernels]


def test_a_cached_start_runs_no_process(folder: Path) -> None:
    build.compile_kernel(SOURCE % 3)
    code = f"""
import subprocess
from ude.compile import build
def refuse(*_, **__):
    raise AssertionError("a process was started")
subprocess.run = subprocess.Popen = refuse
build.load(build.compile_kernel({SOURCE % 3!r}))
print("loaded")
"""
    assert in_another_process(code, folder).strip() == "loaded"


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_metadata_are_found_by_any_string_and_damaged_ones_are_forgotten(folder: Path) -> None:
    assert build.get_metadata("a/b\0ü") is None
    build.put_metadata("a/b\0ü", {"kernel": "k", "leaves": [1, 2]})
    build.put_metadata("other", {})
    assert build.get_metadata("a/b\0ü") == {"kernel": "k", "leaves": [1, 2]}
    build.put_metadata("a/b\0ü", {"kernel": "l"})
    assert build.get_metadata("a/b\0ü") == {"kernel": "l"}
    for path in (folder / "metadata").iterdir():
        path.write_text(path.read_text()[:-3])
    assert build.get_metadata("a/b\0ü") is None


def test_damaged_memory_of_compilers_is_no_obstacle(folder: Path) -> None:
    expected = compiler.find_compiler()
    remembered = folder / "compilers.json"
    for damage in ("{", "[]", json.dumps(dict.fromkeys(json.loads(remembered.read_text()), {"flags": ["-Ofast"]}))):
        remembered.write_text(damage)
        compiler._find.cache_clear()  # as in another process
        assert compiler.find_compiler() == expected


def test_clearing_deletes_what_the_cache_made_and_nothing_else(folder: Path) -> None:
    library = build.compile_kernel(SOURCE % 8)
    build.put_metadata("problem", {})
    loaded = build.load(library)
    (folder / "precious.txt").write_text("mine")
    files, size = build.cache_size()
    assert files == 5  # library, source, checksum, metadata, compilers
    assert size > library.stat().st_size
    assert build.clear_cache() == (files, size)
    assert build.cache_size() == (0, 0)
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    loaded.scaled.restype, loaded.scaled.argtypes = ctypes.c_double, [ctypes.c_double]
    assert loaded.scaled(0.5) == pytest.approx(8 * 0.46211715726000975)
    assert build.compile_kernel(SOURCE % 8) == library
    assert build.clear_cache()[0] >= 3


def test_clearing_nothing_is_nothing() -> None:
    assert build.clear_cache() == (0, 0)


def test_the_folder_is_where_the_system_keeps_such_things(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("UDE_CACHE_DIR", "~/mine")
    assert cache.cache_dir() == tmp_path / "mine"
    monkeypatch.setenv("UDE_CACHE_DIR", "")
    for platform, expected in (("linux", ".cache/ude"), ("darwin", "Library/Caches/ude"), ("win32", "local/ude/cache")):
        monkeypatch.setattr(sys, "platform", platform)
        assert cache.cache_dir() == tmp_path / expected
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "ude"


@pytest.mark.parametrize(
    ("cc", "says"),
    [
        ("gcc 'unclosed", '$CC must read as a command line: "gcc \'unclosed": No closing quotation'),
        ('gcc "', "$CC must read as a command line"),
        ("gcc \\", "$CC must read as a command line"),
        ("/nowhere/cc -O2", "there is no C compiler at $CC"),
        ("''", "there is no C compiler at $CC"),
    ],
)
def test_a_compiler_that_does_not_read_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, cc: str, says: str) -> None:
    from ude.compile.compiler import why_no_compiler

    monkeypatch.setenv("CC", cc)
    assert str(why_no_compiler()).startswith(says)
