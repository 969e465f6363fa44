"""A kernel that cannot be compiled or loaded costs a sentence and no result."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ude
from ude.compile import build
from ude.compile.build import why_no_compiler
from ude.engines import FUSED
from ude.engines.fused import engine as fused_engine
from ude.errors import EngineRefused

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")


def decay(u, p, t):
    return -p.a * u


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine that remembers nothing, does not wait, and has a cache of its own."""
    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(fused_engine, "PATIENCE", 0)
    FUSED.forget()
    yield tmp_path / "cache"
    FUSED.forget()


def solved(engine: str = "auto") -> ude.Solution:
    return ude.solve(ude.ODEProblem(decay, [1.0], (0.0, 1.0), p={"a": 2.0}), ude.Tsit5(), saveat=0.5, engine=engine)


def assert_falls_back(*parts: str) -> None:
    """`auto` runs in the torch engine and says why; the engine asked for by name raises with the same reason."""
    sol = solved()
    assert sol.stats.engine == "torch"
    assert float(sol.u[-1, 0]) == pytest.approx(0.1353, rel=1e-2)
    with pytest.raises(EngineRefused, match="the engine 'fused' cannot run this solve") as caught:
        solved("fused")
    for part in parts:
        assert part in sol.stats.why_not["fused"]
        assert part in str(caught.value)


def compiler(folder: Path, text: str) -> str:
    """A program that answers like a compiler, and then does what `text` says."""
    path = folder / "cc"
    asked = 'for one in "$@"; do case "$one" in --version|*empty.c) exec cc "$@";; esac; done'
    path.write_text(f"#!/bin/sh\n{asked}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_refuses_the_program(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", compiler(tmp_path, "echo 'kernel.c:1: error: no room' >&2; exit 1"))
    assert_falls_back("the C compiler refused the generated program: kernel.c:1: error: no room", "The source is")
    # tried once, and again when there is another compiler
    monkeypatch.setattr(fused_engine, "trace_program", None)
    assert solved().stats.engine == "torch"
    monkeypatch.undo()
    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path / "cache"))
    assert solved("fused").stats.engine == "fused"


def test_a_compiler_that_does_not_work_at_all(monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert_falls_back("the C compiler", "does not work")


def test_a_library_with_an_undefined_symbol(monkeypatch):
    written = fused_engine.write_source

    def broken(*arguments):
        source = written(*arguments)
        used = "\ndouble missing_function(void);\ndouble uses_it(void) { return missing_function(); }\n"
        return replace(source, text=source.text + used)

    monkeypatch.setattr(fused_engine, "write_source", broken)
    assert_falls_back("a compiled kernel cannot be loaded", "missing_function")


def test_a_damaged_library_whose_checksum_is_right(monkeypatch):
    def damaged(text):
        library = build.compile_kernel(text)
        library.write_bytes(b"\x7fELF and nothing behind it")
        library.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
        return library

    monkeypatch.setattr(fused_engine, "compile_kernel", damaged)
    assert_falls_back("a compiled kernel cannot be loaded", "ude cache --clear")


def test_a_library_without_its_functions(monkeypatch):
    monkeypatch.setattr(fused_engine, "compile_kernel", lambda text: build.compile_kernel("int nothing;\n"))
    assert_falls_back("a compiled kernel lacks a function: ude_forward_team")


def test_a_cache_that_cannot_be_written_to(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fused_engine, "compile_kernel", full)
    assert_falls_back("the kernel could not be written or compiled", "No space left on device")


def test_an_operator_in_a_form_without_a_rule_is_named(monkeypatch):
    def f(u, p, t):
        return torch.erfinv(0.5 * torch.tanh(u))

    prob = ude.ODEProblem(f, [0.3], (0.0, 1.0))
    sol = ude.solve(prob, ude.Tsit5())
    assert sol.stats.engine == "torch"
    assert "erfinv" in sol.stats.why_not["fused"]
    assert "test_fallback.py" in sol.stats.why_not["fused"]
