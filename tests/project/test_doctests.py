"""The examples of all docstrings run, and every public name that stands for something to use has one."""

from __future__ import annotations

import doctest
import functools
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import ude
from tests.project.reference_for_tests import described

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
# Back ends that are not here: PySR's Julia, a C compiler.
WITHOUT = {"ude.discovery.search.pysr_worker"}


def modules() -> Iterator[ModuleType]:
    """Every module of the package that has an example in it."""
    for found in pkgutil.walk_packages(ude.__path__, "ude."):
        spec = found.module_finder.find_spec(found.name, None)  # type: ignore[call-arg]
        if spec is None or spec.origin is None or found.name in WITHOUT or not spec.origin.endswith(".py"):
            continue
        if ">>>" in Path(spec.origin).read_text(encoding="utf-8"):
            yield import_module(found.name)


def names_for(module: ModuleType) -> dict[str, Any]:
    """What an example may use without importing it: the package, torch, NumPy, and the names of its own module."""
    return {**vars(module), "np": np, "torch": torch, "ude": ude}


@pytest.mark.parametrize("module", list(modules()), ids=lambda module: module.__name__)
def test_examples_of_a_module_run(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    said: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=names_for(module)):
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_the_reference_describes_every_public_name() -> None:
    assert set(ude._MODULE_OF) <= set(described())


# protocols have nothing to run
@pytest.mark.parametrize("name", sorted({*described()} - {"search.SymbolicRegressor"}))
def test_public_name_has_an_example(name: str) -> None:
    text = inspect.getdoc(functools.reduce(getattr, name.split("."), ude)) or ""
    assert ">>>" in text
