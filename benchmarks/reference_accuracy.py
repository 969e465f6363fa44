"""Scaled errors at the ends of all reference problems, by every method that suits them.

    python -m benchmarks.reference_accuracy

writes `reference_accuracy.md`. The bars are an error of 1e-4 at reltol 1e-6 and of 1e-7 at reltol 1e-9. Every state has
its own abstol, a hundredth of reltol times what its error is measured by, and SciPy's methods get the same tolerances;
they take no DAEs. The ring modulator needs a million calls of f, which SciPy would take an hour for in right-hand sides
of torch; its LSODA, with f written in plain Python, ends with an error of 2e-3 at reltol 1e-6 and 2e-6 at 1e-10.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

import ude
from benchmarks import reference_problems
from benchmarks.reference_problems import ReferenceProblem
from ude.errors import EngineRefused
from ude.methods import Algorithm
from ude.problems.function import ODEFunction
from ude.problems.ode import flatten

#: Tolerances, and the largest error at each.
BARS = {1e-6: 1e-4, 1e-9: 1e-7}
EXPLICIT: tuple[Algorithm, ...] = (
    ude.methods.DP5(),
    ude.Tsit5(),
    ude.methods.Vern6(),
    ude.Vern7(),
    ude.methods.Vern9(),
    ude.methods.DP8(),
)
STIFF: tuple[Algorithm, ...] = (
    *(ude.KenCarp4(), ude.methods.KenCarp5(), ude.methods.Kvaerno4(), ude.methods.Kvaerno5()),
    *(ude.methods.Rodas4(), ude.Rodas5P()),
)
#: SciPy's methods beside ours, by whether the problem is stiff.
PEERS = {False: ("RK45", "DOP853"), True: ("Radau", "BDF", "LSODA")}
#: Problems that are solved by these alone: others would take a quarter of an hour each in right-hand sides of torch.
ONLY = {"ring_modulator": ("KenCarp4", "KenCarp5", "Kvaerno4", "Kvaerno5", "Rodas5P")}
MAXITERS = 2_000_000


def absolute_tolerance(reference: ReferenceProblem, reltol: float) -> torch.Tensor:
    return 1e-2 * reltol * reference.scale


def our_error(reference: ReferenceProblem, algorithm: Algorithm, reltol: float) -> float:
    """Scaled error at the end, NaN when the solve fails. Kernels take the same steps in a hundredth of the time."""
    options = {
        "reltol": reltol,
        "abstol": absolute_tolerance(reference, reltol),
        "saveat": [float(reference.problem.tspan[1])],
        "maxiters": MAXITERS,
    }
    try:
        sol = ude.solve(reference.problem, algorithm, engine="fused", **options)
    except EngineRefused:
        sol = ude.solve(reference.problem, algorithm, engine="torch", **options)
    return float(reference.error(sol.u[-1])) if sol.success else math.nan


def scipys_error(reference: ReferenceProblem, method: str, reltol: float) -> float:
    f, leaves = flatten(reference.problem)

    def g(t: float, u: np.ndarray) -> np.ndarray:
        return f(torch.from_numpy(u), leaves, torch.tensor(t, dtype=torch.float64)).numpy()

    span = tuple(float(t) for t in reference.problem.tspan)
    atol = absolute_tolerance(reference, reltol).numpy()
    solved = solve_ivp(g, span, reference.problem.u0.numpy(), method=method, rtol=reltol, atol=atol)
    return float(reference.error(torch.from_numpy(solved.y[:, -1]))) if solved.status == 0 else math.nan


def amplification(reference: ReferenceProblem) -> float:
    """By how much an error at the start can grow until the end, both scaled: what no method can undo."""
    u0 = reference.problem.u0.clone().requires_grad_()
    sol = ude.solve(
        ude.remake(reference.problem, u0=u0),
        ude.methods.Vern9(),
        reltol=1e-10,
        abstol=1e-12,
        saveat=[float(reference.problem.tspan[1])],
    )
    scaled = (sol.u[-1] / reference.scale).unbind()
    rows = [torch.autograd.grad(part, u0, retain_graph=True)[0] * reference.scale for part in scaled]
    return float(torch.linalg.matrix_norm(torch.stack(rows), ord=2))


def measure(stiff: bool) -> dict[str, dict[str, list[float]]]:
    """Errors at the two tolerances, problem -> method -> [error, error]; methods that were not run are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in reference_problems.names(stiff=stiff):
        reference = reference_problems.get(name)
        ours = [alg for alg in (STIFF if stiff else EXPLICIT) if alg.name in ONLY.get(name, (alg.name,))]
        found[name] = {alg.name: [our_error(reference, alg, reltol) for reltol in BARS] for alg in ours}
        if name not in ONLY and not isinstance(reference.problem.f, ODEFunction):
            found[name] |= {
                f"SciPy {peer}": [scipys_error(reference, peer, reltol) for reltol in BARS] for peer in PEERS[stiff]
            }
        print(
            name, {method: [f"{error:.1e}" for error in errors] for method, errors in found[name].items()}, flush=True
        )
    return found


def table(found: dict[str, dict[str, list[float]]]) -> list[str]:
    methods = list(next(iter(found.values())))
    lines = ["| problem | " + " | ".join(methods) + " |", "|---|" + "---|" * len(methods)]
    for name, row in found.items():
        cells = []
        for method in methods:
            marked = [_cell(error, bar) for error, bar in zip(row.get(method, ()), BARS.values(), strict=False)]
            cells.append(" / ".join(marked))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(error: float, bar: float) -> str:
    if math.isnan(error):
        return "**failed**"
    return f"{error:.0e}" if error <= bar else f"**{error:.0e}**"


def misses(found: dict[str, dict[str, list[float]]], stiff: bool) -> list[str]:
    """One line for each of our methods and problems above a bar, with the best of SciPy's at the same tolerance."""
    lines = []
    for name, row in found.items():
        reference = reference_problems.get(name)
        growth = None
        for method, errors in row.items():
            over = [i for i, bar in enumerate(BARS.values()) if not errors[i] <= bar]
            if method.startswith("SciPy") or not over:
                continue
            if growth is None:
                growth = "" if stiff else f"; an error at the start grows up to {amplification(reference):.0e} times"
            for i in over:
                peers = ", ".join(f"{peer} {row[peer][i]:.1e}" for peer in row if peer.startswith("SciPy"))
                beside = f" ({peers}{growth})" if peers else ""
                lines.append(f"- {method} on {name} at {list(BARS)[i]:.0e}: {errors[i]:.1e}{beside}")
    return lines


def reached(found: dict[str, dict[str, list[float]]]) -> str:
    """Which problems no method of ours solves to the bars."""
    lost = [
        name
        for name, row in found.items()
        if not any(
            all(error <= bar for error, bar in zip(errors, BARS.values(), strict=True))
            for method, errors in row.items()
            if not method.startswith("SciPy")
        )
    ]
    return (
        f"No method of ours reaches both bars on: {', '.join(lost)}." if lost else "Every problem has a method of ours."
    )


def main(folder: Path = Path(__file__).parent) -> str:
    """Measure, write the tables and return them."""
    torch.set_num_threads(1)
    about = (__doc__ or "").split("\n\n")[2].replace("\n", " ").removeprefix("writes `reference_accuracy.md`. ").strip()
    lines = [
        "# Errors at the ends of the reference problems",
        "",
        "Written by `python -m benchmarks.reference_accuracy`.",
    ]
    lines += [about, "Each cell: the error at 1e-6 / at 1e-9; above a bar in bold.", ""]
    for stiff in (False, True):
        found = measure(stiff)
        lines += [f"## {'Stiff' if stiff else 'Not stiff'}", "", *table(found), "", reached(found), ""]
        above = misses(found, stiff)
        if above:
            lines += ["Above a bar:", "", *above, ""]
    text = "\n".join(lines)
    (folder / "reference_accuracy.md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
