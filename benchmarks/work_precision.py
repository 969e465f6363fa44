"""Work-precision diagrams: error at the end against calls of the right-hand side, ours and SciPy's.

    python -m benchmarks.work_precision

writes `work_precision.png` and `work_precision.md` beside this file. Every solver gets the same tolerances
(reltol = abstol), and what it made of them is compared at equal error: calls are interpolated between tolerances on
logarithmic axes. Only counts are compared, so the result does not depend on the machine.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.integrate import solve_ivp

import ude
from benchmarks import reference_problems
from benchmarks.reference_problems import ReferenceProblem
from ude.problems.ode import flatten

HERE = Path(__file__).parent
PROBLEMS = ("a3", "b1", "b4", "b5", "c2", "c5", "pleiades")
TOLERANCES = tuple(10.0**-k for k in range(3, 13))
#: Ours, and SciPy's method of the same order (None: compared with both of SciPy's).
OURS = {
    "DP5": (ude.methods.DP5(), "RK45"),
    "Tsit5": (ude.Tsit5(), "RK45"),
    "Vern6": (ude.methods.Vern6(), None),
    "Vern7": (ude.Vern7(), None),
    "Vern9": (ude.methods.Vern9(), None),
    "DP8": (ude.methods.DP8(), "DOP853"),
}
PEERS = ("RK45", "DOP853")


@dataclass(frozen=True)
class Curve:
    """Errors and calls of one solver on one problem, loosest tolerance first."""

    errors: np.ndarray
    calls: np.ndarray

    def calls_at(self, error: float) -> float:
        """Calls for an error, interpolated on logarithmic axes; NaN outside of what was measured."""
        # a tighter tolerance may give a larger error: the best error so far is what so many calls buy
        best = np.minimum.accumulate(self.errors)
        if not best[-1] <= error <= best[0]:
            return math.nan
        return float(np.exp(np.interp(-math.log(error), -np.log(best), np.log(self.calls))))


def ours(reference: ReferenceProblem, algorithm: ude.methods.Algorithm) -> Curve:
    points = []
    end = [float(reference.problem.tspan[1])]
    for tolerance in TOLERANCES:
        sol = ude.solve(reference.problem, algorithm, reltol=tolerance, abstol=tolerance, saveat=end)
        # the call that checks the shape of f serves as the first stage
        points.append((float(reference.error(sol.u[-1])), sol.stats.nf + 1))
    return _curve(points)


def scipys(reference: ReferenceProblem, method: str) -> Curve:
    f, leaves = flatten(reference.problem)

    def g(t: float, u: np.ndarray) -> np.ndarray:
        return f(torch.from_numpy(u), leaves, torch.tensor(t, dtype=torch.float64)).numpy()

    span = tuple(float(t) for t in reference.problem.tspan)
    points = []
    for tolerance in TOLERANCES:
        solved = solve_ivp(g, span, reference.problem.u0.numpy(), method=method, rtol=tolerance, atol=tolerance)
        points.append((float(reference.error(torch.from_numpy(solved.y[:, -1]))), solved.nfev))
    return _curve(points)


def _curve(points: list[tuple[float, int]]) -> Curve:
    # errors of rounding size say nothing
    kept = [(error, calls) for error, calls in points if error > 1e-13]
    return Curve(np.array([error for error, _ in kept]), np.array([calls for _, calls in kept], dtype=float))


def ratio(one: Curve, other: Curve) -> float:
    """Geometric mean of calls of one over calls of the other at equal error, over the errors both reach."""
    low = max(one.errors.min(), other.errors.min())
    high = min(one.errors.max(), other.errors.max())
    ratios = [one.calls_at(error) / other.calls_at(error) for error in np.geomspace(low, high, 25)]
    finite = [value for value in ratios if math.isfinite(value)]
    return math.exp(np.mean(np.log(finite))) if finite else math.nan


def ratio_rows(
    curves: dict[str, dict[str, Curve]], columns: list[tuple[str, str]]
) -> tuple[list[str], dict[tuple[str, str], float]]:
    """A Markdown table of `ratio`s, a row a problem and a column a pair of ours and a peer; means of the columns."""
    lines = [
        "| problem | " + " | ".join(f"{name} / {peer}" for name, peer in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    rows = []
    for problem, found in curves.items():
        rows.append([ratio(found[name], found[peer]) for name, peer in columns])
        lines.append(f"| {problem} | " + " | ".join(f"{value:.2f}" for value in rows[-1]) + " |")
    means = np.exp(np.nanmean(np.log(np.array(rows)), axis=0)).tolist()
    lines.append("| **geometric mean** | " + " | ".join(f"**{value:.2f}**" for value in means) + " |")
    return lines, dict(zip(columns, means, strict=True))


def legend_apart(axes: np.ndarray, used: int) -> None:
    """The legend of the first axes in the place after the `used` ones, and nothing in those behind."""
    for axis in axes[used:]:
        axis.axis("off")
    axes[used].legend(*axes[0].get_legend_handles_labels(), loc="center", frameon=False)


def draw(curves: dict[str, dict[str, Curve]], path: Path) -> None:
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for axis, (problem, found) in zip(axes, curves.items(), strict=False):
        for i, (name, curve) in enumerate(found.items()):
            style = "--" if name in PEERS else "-"
            label = f"SciPy {name}" if name in PEERS else name
            color = "black" if name == "DOP853" else "gray" if name == "RK45" else f"C{i}"
            axis.loglog(curve.calls, curve.errors, style, color=color, marker="o", markersize=3, label=label)
        axis.set(title=problem, xlabel="calls of f", ylabel="scaled error at the end")
        axis.grid(alpha=0.3)
        # an axis of a decade would write every minor tick over the next
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda calls, _: f"{calls:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    legend_apart(axes, len(curves))
    figure.savefig(path, dpi=110)


def table(curves: dict[str, dict[str, Curve]]) -> str:
    """Ratios of calls at equal error as Markdown."""
    columns = [(name, peer) for name, (_, own) in OURS.items() for peer in ((own,) if own else PEERS)]
    lines = [
        "# Calls of the right-hand side at equal error",
        "",
        "Written by `python -m benchmarks.work_precision`. Calls of ours over calls of SciPy's method at the same",
        "scaled error at the end of the span (geometric mean over the errors that both reach with tolerances from 1e-3",
        "to 1e-12); below 1 means that ours needs fewer.",
        "",
    ]
    return "\n".join(lines + ratio_rows(curves, columns)[0]) + "\n"


def main(problems: tuple[str, ...] = PROBLEMS, folder: Path = HERE) -> dict[str, dict[str, Curve]]:
    """Measure, and write the picture and the table to `folder`."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    curves: dict[str, dict[str, Curve]] = {}
    for problem in problems:
        reference = reference_problems.get(problem)
        curves[problem] = {name: ours(reference, algorithm) for name, (algorithm, _) in OURS.items()}
        curves[problem] |= {peer: scipys(reference, peer) for peer in PEERS}
    draw(curves, folder / "work_precision.png")
    (folder / "work_precision.md").write_text(table(curves), encoding="utf-8")
    return curves


if __name__ == "__main__":
    main()
