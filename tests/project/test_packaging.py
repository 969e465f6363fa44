"""What is shipped is what is promised: one command everywhere, pins for everything, data and types in the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ude

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What torch itself pins to the digit, for some platforms only.
TORCHS_OWN = re.compile(r"nvidia-.*|cuda-.*|triton")


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {}
    for requirement in requirements:
        [specifier] = requirement.specifier
        assert specifier.operator == "==", f"{requirement} is not an exact pin"
        assert requirement.marker is None
        pinned[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pinned


def needed(extras: tuple[str, ...]) -> set[str]:
    """Every package that installing ude with these extras brings here, direct or not."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    waiting, seen = [Requirement(line) for line in lines], set[str]()
    visited: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "ude":
            waiting += [Requirement(r) for extra in requirement.extras for r in PROJECT["optional-dependencies"][extra]]
            continue
        if requirement.marker and not requirement.marker.evaluate({**default_environment(), "extra": ""}):
            continue
        if (name, frozenset(requirement.extras)) in visited:
            continue
        visited.add((name, frozenset(requirement.extras)))
        seen.add(name)
        for line in distribution(name).requires or []:
            further = Requirement(line)
            asked = [{**default_environment(), "extra": extra} for extra in ("", *requirement.extras)]
            if further.marker is None or any(further.marker.evaluate(environment) for environment in asked):
                further.marker = None
                waiting.append(further)
    return seen


def commands_of_readme() -> list[str]:
    """Every line of the README's shell blocks."""
    return [
        line for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.S) for line in block.splitlines()
    ]


def test_ci_runs_what_the_readme_says_and_nothing_else() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    [command] = re.findall(r"^command='(.*)'$", script, re.M)
    assert command in commands_of_readme()
    assert "pytest" not in script.replace(command, "")
    assert script.rstrip().endswith('eval "$command"')
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, ".ci/run is not executable"


def test_readme_installs_with_the_tested_pins() -> None:
    installs = [line for line in commands_of_readme() if "pip install" in line]
    assert installs
    assert all("python -m pip install -c constraints.txt" in line for line in installs)


def test_everything_that_is_installed_is_pinned() -> None:
    # what only developers install is not here to be looked into; that it is pinned itself is checked below
    missing = {name for name in needed(("test",)) - set(pins()) if not TORCHS_OWN.fullmatch(name)}
    assert not missing


def test_pins_are_the_releases_under_test() -> None:
    different = {}
    for name, pinned in pins().items():
        try:
            installed = Version(version(name))
        except PackageNotFoundError:
            continue  # a constraint asks for nothing: this one is for another platform or another extra
        if installed.public != pinned.public:
            different[name] = f"{installed}, pinned {pinned}"
    assert not different


def test_pins_satisfy_what_is_asked_for() -> None:
    pinned = pins()
    lines = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name != "ude":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), str(requirement)


@pytest.mark.parametrize(
    ("system", "machine", "python", "wanted"),
    [
        ("linux", "x86_64", "3.11", True),
        ("linux", "x86_64", "3.14", True),
        ("darwin", "arm64", "3.13", True),
        ("linux", "x86_64", "3.15", False),
        ("linux", "aarch64", "3.12", False),
        ("darwin", "x86_64", "3.12", False),
        ("win32", "AMD64", "3.12", False),
    ],
)
def test_operon_is_asked_for_only_where_it_has_wheels(system: str, machine: str, python: str, wanted: bool) -> None:
    [line] = PROJECT["optional-dependencies"]["operon"]
    marker = Requirement(line).marker
    assert marker is not None
    assert marker.evaluate({"sys_platform": system, "platform_machine": machine, "python_version": python}) is wanted


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {ude.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changes or f"## [{ude.__version__}]" in changes


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy, so that the tree stays clean."""
    copy = tmp_path_factory.mktemp("source") / "ude"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "ude", copy / "ude", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    target = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-c", build, str(target)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [built] = target.glob("*.whl")
    return zipfile.ZipFile(built).namelist()


def test_wheel_has_every_module_data_set_and_the_typing_mark(wheel: list[str]) -> None:
    wanted = {path.relative_to(ROOT).as_posix() for suffix in ("py", "csv") for path in ROOT.glob(f"ude/**/*.{suffix}")}
    assert wanted | {"ude/py.typed"} <= set(wheel)
    assert "ude/datasets/lynx_hare.csv" in wheel


def test_wheel_has_only_the_package(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"ude", f"ude-{ude.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
