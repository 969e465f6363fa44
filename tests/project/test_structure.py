"""The package keeps its order: no import cycles, layers in every package, names that mean one thing, small parts."""

from __future__ import annotations

import ast
import configparser
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Imports of our own inside functions, each of which delays a third party that is slow to import.
DELAYED = {
    ("ude.discovery.discovery", "ude.discovery.report"): "matplotlib",
    ("ude.discovery.discovery", "ude.discovery.report.discovery_contents"): "matplotlib",
    ("ude.discovery.discovery", "ude.reporting"): "matplotlib",
    ("ude.fitting.result", "ude.reporting"): "matplotlib",
    ("ude.models.function_model", "ude.models.tracing"): "torch.fx",
    ("ude.solving.solution", "ude.reporting"): "matplotlib",
}
#: What users call with many keywords; and commands, whose options are parameters.
WIDE = {
    *("ude.solving.solve.solve", "ude.fitting.fit.fit", "ude.discovery.discover.discover"),
    *("ude.fitting.uncertainty.ensembles.multistart", "ude.fitting.data.sources.read_csv"),
    *("ude.fitting.data.dataset.from_frame",),
    *("ude.cli.discover.discover", "ude.cli.fit.fit", "ude.cli.simulate.simulate"),
}
#: Too long, and to be shortened; nothing may be added.
LONG: set[str] = set()
MOST_LINES, MOST_ARGUMENTS, MOST_FILES = 60, 7, 20


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "ude").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> Iterator[str]:
    """Full names of what an import statement names."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ude":
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ude")


def module_of(name: str) -> str | None:
    while name:
        if name in modules():
            return name
        name = name.rpartition(".")[0]
    return None


def graph() -> dict[str, set[str]]:
    """module -> modules that it imports anywhere, for types too; packages, which re-export, are left out."""
    edges: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        for node in ast.walk(tree_of(module)):
            for name in imported(node):
                target = module_of(name)
                if target and target != module and modules()[target].name != "__init__.py":
                    edges[module].add(target)
    return edges


def test_no_file_imports_itself_by_way_of_others() -> None:
    edges, state = graph(), dict.fromkeys(modules(), "new")

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state[module] == "open":
            raise AssertionError(" -> ".join([*path[path.index(module) :], module]))
        if state[module] == "new":
            state[module] = "open"
            for target in sorted(edges[module]):
                visit(target, (*path, module))
            state[module] = "done"

    for module in modules():
        visit(module, ())


def test_every_package_of_several_files_has_its_layers() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    contained = {settings[name]["containers"].strip() for name in settings if "containers" in settings[name]}
    children: dict[str, set[str]] = defaultdict(set)
    for module in modules():
        children[module.rpartition(".")[0]].add(module)
    linked = {
        package
        for package, inside in children.items()
        if package and any(target.startswith(f"{package}.") for m in inside for target in graph()[m])
    }
    assert {package for package in linked if len(children[package]) > 2} <= contained


def test_class_names_mean_one_thing() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules():
        for node in tree_of(module).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module in modules():
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, node


def test_imports_inside_functions_delay_something_slow() -> None:
    """The commands import what they need when they are called, so that `ude --help` is quick."""
    found = {
        (module, inner.module)
        for module, node in functions()
        for inner in ast.walk(node)
        if isinstance(inner, ast.ImportFrom) and list(imported(inner)) and not module.startswith("ude.cli")
    }
    assert found == set(DELAYED)


def test_functions_are_short_and_take_few_arguments() -> None:
    long, wide = [], []
    for module, node in functions():
        documented = ast.get_docstring(node) is not None
        words = node.body[0].end_lineno - node.body[0].lineno + 1 if documented else 0
        if node.end_lineno - node.lineno + 1 - words > MOST_LINES:
            long.append(f"{module}.{node.name}")
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [argument for argument in every if argument.arg not in ("self", "cls")]
        if len(own) > MOST_ARGUMENTS:
            wide.append(f"{module}.{node.name}")
    assert set(long) == LONG
    assert set(wide) == WIDE


@pytest.mark.parametrize("package", sorted({str(path.parent.relative_to(ROOT)) for path in modules().values()}))
def test_a_folder_shows_at_one_look_what_is_in_it(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MOST_FILES
    text = ast.get_docstring(tree_of(package.replace("/", ".")))
    assert text, "the package does not say what it is"
