"""``ude doctor``: what works here, and how to get the rest.

Whatever may hang or end the process (a driver, single-precision C++, Julia) is asked in a process of its own with a
time limit; Julia and PySR are only looked for, never started.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ude.cli.console import OK, OURS, Console, Json
from ude.errors import UdeError

SECONDS = 60.0
"""After which a question counts as not answered. Importing torch on a busy machine takes ten seconds and more."""


@dataclass(frozen=True)
class Finding:
    """One part: whether it works, what was found, how to get it; `needed`: nothing works without it."""

    part: str
    works: bool
    found: str
    fix: str = ""
    needed: bool = False


def doctor(
    json: Json = False,
    seconds: Annotated[float, typer.Option(help="Time limit of one check.", min=1.0)] = SECONDS,
) -> int:
    """Say what works here (compiler, search engines, GPU, Julia) and how to get the rest."""
    console = Console(json=json)
    findings = [finding for check in _CHECKS for finding in check(seconds)]
    broken = [finding for finding in findings if finding.needed and not finding.works]
    lines = []
    width = max(len(finding.part) for finding in findings)
    for finding in findings:
        mark = "ok" if finding.works else "MISSING" if finding.needed else "-"
        lines.append(f"{mark:>7}  {finding.part:<{width}}  {finding.found}")
        if finding.fix and not finding.works:
            lines.append(f"{'':>7}  {'':<{width}}  {finding.fix}")
    lines += ["", "Something needed is missing." if broken else "All that is needed works; '-' marks what is optional."]
    console.result("\n".join(lines), {"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    return OURS if broken else OK


def _python(seconds: float) -> list[Finding]:
    import ude

    enough = sys.version_info >= (3, 11)
    here = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    folder = Path(ude.__file__).parent
    return [
        Finding("python", enough, here, "Install Python 3.11 or newer.", needed=True),
        Finding("ude", True, f"{ude.__version__} in {folder}", needed=True),
    ]


def _packages(seconds: float) -> list[Finding]:
    fix = "python -m pip install -c constraints.txt ."
    needed = ("torch", "torchdiffeq", "numpy", "scipy", "sympy", "pandas", "matplotlib", "safetensors")
    found = []
    for name in needed:
        try:
            found.append(Finding(name, True, version(name), fix, needed=True))
        except PackageNotFoundError:
            found.append(Finding(name, False, "not installed", fix, needed=True))
    return found


def _compiler(seconds: float) -> list[Finding]:
    from ude.compile import build, cache, compiler

    folder = build.cache_dir()
    missing = build.why_no_compiler()
    if missing is not None:
        return [Finding("C compiler", False, f"solves run through torch, slower: {missing}")]
    try:
        name = " ".join(str(part) for part in compiler.find_compiler().command)
        build.compile_kernel("int ude_doctor(void) { return 1; }\n")
    except (UdeError, OSError) as error:
        return [Finding("C compiler", False, f"it does not compile: {error}", "Set CC to another compiler.")]
    found = [Finding("C compiler", True, f"{name}, kernels in {folder}")]
    if folder.exists() and not cache.is_trusted(folder):
        fix = f"Until then programs are compiled again in each process. Run chmod go-w {folder}, or move it away."
        found.append(Finding("kernel cache", False, f"{folder} is writable by others or not yours", fix))
    return found


def _gpu(seconds: float) -> list[Finding]:
    code = (
        "import torch; print(torch.version.cuda); print(torch.cuda.is_available()); "
        "print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    )
    answer = _asked(code, seconds)
    if isinstance(answer, str):
        return [Finding("GPU", False, answer, "Solves run on the processor.")]
    built, usable, name = (*answer, "", "", "")[:3]
    if usable == "True":
        return [Finding("GPU", True, f"{name}, CUDA {built}")]
    if built == "None":
        return [Finding("GPU", False, "this torch is built without CUDA", "See https://pytorch.org/get-started.")]
    return [Finding("GPU", False, f"no CUDA device (torch is built for CUDA {built})")]


def _searches(seconds: float) -> list[Finding]:
    found = [Finding("library search", True, "part of ude")]
    found.append(_importable("operon search", "pyoperon", "python -m pip install 'ude[operon]'", seconds))
    if find_spec("pysindy") is not None:
        found.append(_importable("sindy search", "pysindy", "python -m pip install pysindy", seconds))
    return [*found, *_julia()]


def _importable(part: str, package: str, install: str, seconds: float) -> Finding:
    if find_spec(package) is None:
        return Finding(part, False, f"{package} is not installed", install)
    answer = _asked(f"import {package}", seconds)
    if isinstance(answer, str):
        return Finding(part, False, f"{package} is installed and does not start: {answer}", install)
    return Finding(part, True, f"{package} {_version(package)}")


def _julia() -> list[Finding]:
    """PySR and its Julia by their files: importing PySR would start Julia, or download it."""
    install = "python -m pip install pysr, and Julia from https://julialang.org/downloads (or PySR fetches it)"
    julia = shutil.which("julia") or _julia_of_pysr()
    found = [Finding("julia", julia is not None, julia or "not found", install)]
    if find_spec("pysr") is None:
        return [*found, Finding("pysr search", False, "pysr is not installed", install)]
    release = _version("pysr")
    if julia is None:
        return [*found, Finding("pysr search", False, f"pysr {release}, no Julia", install)]
    return [*found, Finding("pysr search", True, f"pysr {release} (found, not started)")]


def _julia_of_pysr() -> str | None:
    """The Julia that PySR's installer keeps beside the environment, or juliaup in the home folder."""
    places = [Path(sys.prefix) / "julia_env" / "pyjuliapkg" / "install" / "bin" / "julia"]
    places.append(Path.home() / ".juliaup" / "bin" / "julia")
    return next((str(place) for place in places if place.is_file()), None)


def _extras(seconds: float) -> list[Finding]:
    return [
        _importable("SBML export", "libsbml", "python -m pip install 'ude[sbml]'", seconds),
        _importable("Parquet", "pyarrow", "python -m pip install 'ude[data]'", seconds),
        _importable("xarray", "xarray", "python -m pip install 'ude[data]'", seconds),
    ]


def _version(package: str) -> str:
    try:
        return version("python-libsbml" if package == "libsbml" else package)
    except PackageNotFoundError:
        return ""


def _asked(code: str, seconds: float) -> list[str] | str:
    """The lines that a fresh Python prints, or one sentence that says why there are none."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:g} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        return last
    return done.stdout.splitlines()


_CHECKS: tuple[Callable[[float], list[Finding]], ...] = (_python, _packages, _compiler, _gpu, _searches, _extras)
