"""Parameters of known equations, fitted to two data sets whose optimum is in the literature.

Alpha-pinene: G. E. P. Box, W. G. Hunter, J. F. MacGregor, J. Erjavec, Technometrics 15 (1973) 33, data and
scheme of five reactions; the least sum of squares is 19.8721 (E. D. Dolan, J. J. More, T. S. Munson, Benchmarking
optimization software with COPS 3.0, 2004). Ten starts, each rate constant log-uniform over three powers of ten.

Hudson Bay: hares and lynxes 1900 to 1920 and Lotka and Volterra's equations, by least squares with free initial
numbers: a = 0.481, b = 0.0248, c = 0.926, d = 0.0275 (J. M. Mahaffy, Math 636 lecture notes, San Diego State
University).

    python -m benchmarks.parameter_estimation    # writes parameter_estimation.md
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import ude

TIMES = [0.0, 1230.0, 3060.0, 4920.0, 7800.0, 10680.0, 15030.0, 22620.0, 36420.0]  # minutes; at 0 by construction
PERCENT = [
    [100.0, 0.0, 0.0, 0.0, 0.0],
    [88.35, 7.3, 2.3, 0.4, 1.75],
    [76.4, 15.6, 4.5, 0.7, 2.8],
    [65.1, 23.1, 5.3, 1.1, 5.8],
    [50.4, 32.9, 6.0, 1.5, 9.3],
    [37.5, 42.7, 6.0, 1.9, 12.0],
    [25.9, 49.1, 5.9, 2.2, 17.0],
    [14.0, 57.4, 5.1, 2.6, 21.0],
    [4.5, 63.1, 3.8, 2.9, 25.7],
]
PINENE = """
    dpinene/dt = -(p1 + p2)*pinene
    ddipentene/dt = p1*pinene
    docimene/dt = p2*pinene - (p3 + p4)*ocimene + p5*dimer
    dpyronene/dt = p3*ocimene
    ddimer/dt = p4*ocimene - p5*dimer
"""
STATES = "pinene, dipentene, ocimene, pyronene, dimer"
LYNX_HARE = """
    dhare/dt = a*hare - b*hare*lynx
    dlynx/dt = d*hare*lynx - c*lynx
"""


def pinene_data() -> ude.Dataset:
    return ude.Dataset.from_arrays(TIMES, PERCENT, STATES)


def pinene(seed: int) -> tuple[float, ude.Fit, float]:
    """(sum of squares simulated with a tolerance of 1e-10, fit, seconds) from one random start."""
    start = np.exp(np.random.default_rng(seed).uniform(np.log(1e-6), np.log(1e-3), 5))
    text = ", ".join(f"p{i + 1}={value:.6e} in [0, inf]" for i, value in enumerate(start))
    data = pinene_data()
    options = ude.FitOptions(scale=dict.fromkeys(data.states, 1.0))
    began = time.perf_counter()
    model = ude.UDE(PINENE, fit=text, states=STATES)
    fit = ude.fit(model, data, holdout=0, u0=PERCENT[0], progress=False, options=options)
    seconds = time.perf_counter() - began
    return float(np.sum((fit.predict(reltol=1e-10)[0] - np.array(PERCENT)) ** 2)), fit, seconds


def lynx_hare() -> tuple[ude.Fit, float]:
    data = ude.datasets.load("lynx_hare")
    options = ude.FitOptions(scale=dict.fromkeys(data.states, 1.0))
    began = time.perf_counter()
    positive = ", ".join(f"{name} in [0, inf]" for name in "abcd")
    fit = ude.fit(ude.UDE(LYNX_HARE, fit=positive), data, holdout=0, progress=False, options=options)
    return fit, time.perf_counter() - began


def main() -> str:
    lines = [
        "# Parameter estimation",
        "",
        "`python -m benchmarks.parameter_estimation`, two cores. The first fit compiles its kernels.",
        "",
        "Alpha-pinene, least sum of squares in the literature 19.8721:",
        "",
        "| start | sum of squares | p1 | p2 | p3 | p4 | p5 | evaluations | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in range(10):
        squares, fit, seconds = pinene(seed)
        numbers = " | ".join(f"{value:.4e}" for value in fit.model.values().values())
        evaluations = int(fit.history.groupby("stage").evaluations.max().sum())
        lines.append(f"| {seed} | {squares:.5f} | {numbers} | {evaluations} | {seconds:.1f} |")
    fit, seconds = lynx_hare()
    lines += [
        "",
        f"Lynx and hare, least squares with free initial numbers, {seconds:.1f} s:",
        "",
        "| | a | b | c | d | hare(1900) | lynx(1900) |",
        "|---|---|---|---|---|---|---|",
        "| literature | 0.481 | 0.0248 | 0.926 | 0.0275 | 34.9 | 3.86 |",
        "| here | " + " | ".join(f"{fit.model.values()[n]:.4f}" for n in "abcd") + f" | {fit.u0[0, 0]:.2f} | "
        f"{fit.u0[0, 1]:.2f} |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = main()
    Path(__file__).with_suffix(".md").write_text(text)
    print(text)
