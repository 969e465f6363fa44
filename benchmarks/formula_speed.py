"""Formulas integrated with their sensitivities: the C program that runs lists of operations against LSODA from Python.

Both are what `discover` uses, with the tolerance that it uses: the second where there is no C compiler, the solution is
stiff, or the equations hold what the first does not know. Preparing a system (lists of operations here, SymPy's
derivatives and Python's compiler there) is timed too, as every candidate is prepared once and solved some fifty times.
The two take turns, and the least of the rounds is compared.

Run: ``python -m benchmarks.formula_speed`` (writes benchmarks/formula_speed.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ude.discovery.refit.closed_system import Array, ClosedSystem, Constant
from ude.discovery.refit.integration import Integrator
from ude.models.equations.parser import parse_expression

ROUNDS = 20


@dataclass(frozen=True)
class Case:
    name: str
    rates: dict[str, str]
    values: dict[str, float]
    start: tuple[float, ...]
    times: Array

    def system(self) -> ClosedSystem:
        constants = {name: Constant(value) for name, value in self.values.items()}
        return ClosedSystem(tuple(self.rates), {s: parse_expression(rate) for s, rate in self.rates.items()}, constants)


CASES = (
    Case("logistic growth, 50 points", {"x": "r*x*(1 - x/k)"}, {"r": 1.0, "k": 5.0}, (0.3,), np.linspace(0, 8, 50)),
    Case(
        "Lotka-Volterra, 31 points",
        {"x": "a*x - b*x*y", "y": "c*x*y - d*y"},
        {"a": 1.3, "b": 0.9, "c": 0.8, "d": 1.8},
        (0.44, 4.6),
        np.linspace(0, 3, 31),
    ),
    Case(
        "Holling II in a driven pond, 150 points",
        {"x": "r*x*(1 - x/k) - a*x*y/(h + x)", "y": "e*a*x*y/(h + x) - m*y + s*sin(w*t)"},
        {"r": 1.0, "k": 5.0, "a": 1.0, "h": 1.2, "e": 0.5, "m": 0.3, "s": 0.05, "w": 0.7},
        (1.0, 0.5),
        np.linspace(0, 40, 150),
    ),
    Case(
        "Lorenz, 256 points",
        {"x": "s*(y - x)", "y": "x*(r - z) - y", "z": "x*y - b*z"},
        {"s": 5.1, "r": 12.0, "b": 1.67},
        (2.3, 8.1, 12.4),
        np.linspace(0, 10, 256),
    ),
    Case(
        "SEIR, 100 points",
        {"S": "-b*S*I", "E": "b*S*I - a*E", "I": "a*E - g*I", "R": "g*I"},
        {"b": 0.8, "a": 0.3, "g": 0.2},
        (0.99, 0.0, 0.01, 0.0),
        np.linspace(0, 80, 100),
    ),
)


@dataclass(frozen=True)
class Times:
    """Milliseconds of the processor: of the first solve, preparation included, and of one after it."""

    first: float
    next: float


def measured(case: Case, compiled: bool, rounds: int) -> tuple[Times, tuple[Array, Array]]:
    """The least of the rounds, and states and sensitivities."""
    system, unknowns = case.system(), len(case.values) + len(case.start)
    first, later = [], []
    for _ in range(rounds):
        integrator = Integrator(system)
        if not compiled:
            integrator._native = {True: None, False: None}
        for seconds in (first, later):
            began = time.process_time()
            found = integrator.sensitivities(
                case.times, np.array(case.start), case.values, np.ones(len(case.start)), np.ones(unknowns)
            )
            seconds.append(time.process_time() - began)
    if found is None:
        raise RuntimeError(f"{case.name} has no solution")
    return Times(1e3 * min(first), 1e3 * min(later)), found


def main(rounds: int = ROUNDS) -> str:
    lines = [
        "# Formulas with their sensitivities",
        "",
        "`python -m benchmarks.formula_speed`. Milliseconds of processor time, the least of "
        f"{rounds} rounds; relative tolerance 1e-8. First: with preparation.",
        "",
        "| system | C, first | C, next | LSODA, first | LSODA, next | ratio | largest difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        measured(case, True, 1)  # compiles the program where it is not there yet
        ours, (u, s) = measured(case, True, rounds)
        theirs, (v, w) = measured(case, False, rounds)
        difference = max(np.abs(u - v).max() / np.abs(v).max(), np.abs(s - w).max() / np.abs(w).max())
        lines.append(
            f"| {case.name} | {ours.first:.2f} | {ours.next:.2f} | {theirs.first:.1f} | {theirs.next:.2f} "
            f"| {theirs.next / ours.next:.1f} | {difference:.0e} |"
        )
    text = "\n".join([*lines, ""])
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    main()
