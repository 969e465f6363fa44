"""`import ude` is quick and light, and its public names are what they say, in whatever order things are imported."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ude

HEAVY = ("sympy", "pandas", "scipy", "matplotlib", "torchdiffeq", "pysr", "juliacall", "pyoperon", "rich", "typer")


def python(code: str) -> str:
    """What a fresh interpreter prints when it runs `code`."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_brings_in_nothing_heavy_that_torch_does_not() -> None:
    code = f"""
import sys, torch
before = set(sys.modules)
import ude
print([name for name in {HEAVY!r} if name in sys.modules and name not in before])
"""
    assert python(code) == "[]"


def test_solving_brings_in_nothing_heavy_either() -> None:
    # torchdiffeq's turn comes when it is asked for by name; plotting brings matplotlib
    code = f"""
import sys, torch, ude
before = set(sys.modules)
prob = ude.ODEProblem(lambda u, p, t: -u, u0=[1.0], tspan=(0.0, 1.0))
ude.solve(prob, ude.Tsit5(), saveat=0.5)(0.3)
print([name for name in {HEAVY!r} if name in sys.modules and name not in before])
"""
    assert python(code) == "[]"


def test_import_takes_under_two_seconds() -> None:
    code = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import ude
print(middle - start, time.process_time() - middle)
"""
    # time of the processor, and the best of three: the first run may write byte code, and a shared machine stutters
    runs = [tuple(float(seconds) for seconds in python(code).split()) for _ in range(3)]
    torch_alone, beyond_torch = (min(column) for column in zip(*runs, strict=True))
    assert beyond_torch < 0.5
    # where torch alone takes longer than that, nothing here can keep the promise
    assert torch_alone > 1.5 or torch_alone + beyond_torch < 2.0


@pytest.mark.parametrize("name", sorted(ude.__all__))
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(ude, name) is getattr(ude, name)
    assert name in dir(ude)


@pytest.mark.parametrize(("name", "module"), sorted(ude._MODULE_OF.items()))
def test_a_name_is_exported_by_its_module(name: str, module: str) -> None:
    assert getattr(ude, name) is getattr(importlib.import_module(module), name)


def test_a_tutorial_needs_about_sixty_names() -> None:
    assert 45 <= len(ude._MODULE_OF) <= 65
    assert not set(ude._MODULE_OF) & set(ude._SUBMODULES)
    assert set(ude.__all__) == {*ude._MODULE_OF, *ude._SUBMODULES, "__version__"}


def test_type_checkers_see_exactly_the_public_names() -> None:
    tree = ast.parse(Path(ude.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    seen = {
        (line.module, alias.name) for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names
    }
    names = {(module, name) for name, module in ude._MODULE_OF.items()}
    assert seen == names | {tuple(module.rsplit(".", 1)) for module in ude._SUBMODULES.values()}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ude' has no attribute 'slove'"):
        ude.slove  # noqa: B018


@pytest.mark.parametrize(
    "imports",
    [
        "import ude",
        "import ude.solving.solve; import ude",
        "import ude; import ude.solving.solve",
        "from ude.solving.solve import solve; import ude",
        "import ude.fitting.fit, ude.discovery.discover, ude.solving.solve; import ude",
        "import ude; ude.fit; ude.discover; import ude.fitting.fit, ude.discovery.discover",
    ],
)
def test_functions_are_not_hidden_by_modules_of_their_name(imports: str) -> None:
    code = f"{imports}\nimport types\nprint([type(f).__name__ for f in (ude.solve, ude.fit, ude.discover)])"
    assert python(code) == "['function', 'function', 'function']"
