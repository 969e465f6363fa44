"""How well can the interactions of Lotka and Volterra be known at all, from the data of `universal_fits`?

The data follow the unknown rates f = (U1, U2) along the true course, for small changes, as ``data = G f + noise``, the
initial state being unknown too. With G known, errors can be computed that no optimizer stands behind:

- sizes alone: least squares with the true forms, c1 x y and c2 x y, their two constants unknown (the Cramer-Rao bound)
- quadratics: the same with both unknowns any polynomial of degree two in x and y, which is as much as one might guess
- best prior: the error to be expected with the prior of `ude.fitting.posterior.function_prior` whose numbers suit the
  truth best, which nobody knows: a bound on what any choice of them can give
- own choice: the posterior mean with the numbers that the evidence chooses, for the noise of each seed: what a fit
  would find if its optimizer and its network were perfect

    python -m benchmarks.attainable [--seeds 10] [--first 20]    # writes attainable.md

With 20 % noise a linear response is no more than a rough guide.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

import ude
from benchmarks.fit_cases import ALPHA, BETA, DELTA, GAMMA, course, noisy
from ude.fitting.data.trajectory import Array
from ude.fitting.posterior.function_prior import FunctionPrior, FunctionPriors

NODES = 41
SUBSTEPS = 12


@dataclass(frozen=True)
class Case:
    """level: of the noise; missing: share of the numbers; rare: y only at every 12th time, its whole rate unknown."""

    title: str
    level: float
    missing: float = 0.0
    rare: bool = False

    @property
    def times(self) -> Array:
        return np.linspace(0.0, 6.0, 61) if self.rare else np.linspace(0.0, 3.0, 31)

    def data(self, seed: int) -> tuple[Array, Array]:
        """Noise over its standard deviation (time, state), NaN where nothing was measured, and that deviation (state,);
        drawn as in fit_cases."""
        generator = np.random.default_rng(seed)
        clean = course(self.times)
        values, sigma = noisy(clean, self.level, generator)
        if self.rare:
            values[np.arange(len(values)) % 12 != 0, 1] = np.nan
        else:
            values[generator.random(values.shape) < self.missing] = np.nan
        return (values - clean) / sigma, sigma


CASES = (
    Case("31 points, 0.5 % noise", 0.005),
    Case("y every 1.2, delta unknown, 0.5 % noise", 0.005, rare=True),
    Case("30 % of the numbers missing, 0.5 % noise", 0.005, missing=0.3),
    Case("5 % noise", 0.05),
    Case("20 % noise", 0.2),
)


def response(times: Array, nodes: Array) -> Array:
    """(time, state, 2 nodes + 2): derivatives of the course to U1 and U2 at the nodes, which are joined by straight
    lines, and to the initial state. Runge-Kutta steps of the variational equation."""
    m, step = len(nodes), (nodes[1] - nodes[0]) / SUBSTEPS
    fine = np.arange((m - 1) * SUBSTEPS * 2 + 1) * step / 2  # with the midpoints
    u = course(fine)

    def rate(s: Array, i: int, node: int) -> Array:
        x, y = u[i]
        jacobian = np.array([[ALPHA - BETA * y, -BETA * x], [GAMMA * y, GAMMA * x - DELTA]])
        share = (fine[i] - nodes[node]) / (nodes[1] - nodes[0])
        found = jacobian @ s
        found[0, [node, node + 1]] -= [1.0 - share, share]
        found[1, [m + node, m + node + 1]] += [1.0 - share, share]
        return found

    s = np.concatenate([np.zeros((2, 2 * m)), np.eye(2)], axis=1)
    found = [s]
    for k in range((m - 1) * SUBSTEPS):
        node, i = k // SUBSTEPS, 2 * k
        k1 = rate(s, i, node)
        k2 = rate(s + step / 2 * k1, i + 1, node)
        k3 = rate(s + step / 2 * k2, i + 1, node)
        k4 = rate(s + step * k3, i + 2, node)
        s = s + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        found.append(s)
    place = np.rint(times / step).astype(int)
    return np.stack(found)[place]


@dataclass(frozen=True)
class Limits:
    """Everything of one pattern of measurements: values f over their size, ``W = GᵀG`` of what is known of them.

    f (value,): U1 at the nodes, then U2; true forms (value, 2) and all quadratics (value, 12) as columns
    """

    f: Array
    forms: Array
    quadratics: Array
    gain: Array
    priors: FunctionPriors

    @classmethod
    def of(cls, case: Case, gain: Array, seen: Array, sigma: Array) -> Limits:
        """gain: of `response`; seen: (time, state), what was measured."""
        u = course(np.linspace(0.0, case.times[-1], NODES))
        product = u[:, 0] * u[:, 1]
        known = DELTA * u[:, 1] if case.rare else 0.0
        f = np.stack([BETA * product, GAMMA * product - known])
        size = np.sqrt((f**2).mean(1))
        scaled = gain / sigma[:, None]
        scaled = scaled * np.concatenate([np.repeat(size, NODES), np.ones(2)])
        rows = scaled[seen]
        start, _ = np.linalg.qr(rows[:, -2:])
        rows = rows[:, :-2] - start @ (start.T @ rows[:, :-2])
        x, y = u.T
        monomials = np.stack([np.ones(NODES), x, y, x * x, y * y, x * y], 1)
        own = [product[:, None], np.stack([product, u[:, 1]], 1) if case.rare else product[:, None]]
        z = torch.as_tensor((u - u.mean(0)) / u.std(0))
        term = ude.MLP("U1, U2", inputs="x, y", width=4)
        return cls(
            (f / size[:, None]).reshape(-1),
            _blocks(own),
            _blocks([monomials, monomials]),
            rows,
            FunctionPriors((FunctionPrior(term, torch.as_tensor(u), z),)),
        )

    @property
    def information(self) -> Array:
        return self.gain.T @ self.gain

    def worst(self, squares: Array) -> float:
        """The root mean square of either unknown, whichever is larger, of its size."""
        return float(np.sqrt(squares.reshape(2, -1).mean(1)).max())

    def least_squares(self, columns: Array) -> float:
        """The error to be expected with f any combination of the columns."""
        covariance = np.linalg.inv(columns.T @ self.information @ columns)
        return self.worst(np.einsum("ij,jk,ik->i", columns, covariance, columns))

    def _answer(self, numbers: Array) -> Array:
        """(value, value): what turns Gᵀ data into the posterior mean of f."""
        covariance = self.priors.covariance(numbers)
        return np.linalg.solve(np.eye(len(covariance)) + covariance @ self.information, covariance)

    def expected(self, numbers: Array) -> float:
        answer = self._answer(numbers)
        bias = answer @ (self.information @ self.f) - self.f
        return self.worst(bias**2 + np.einsum("ij,jk,ik->i", answer, self.information, answer))

    def best_prior(self) -> float:
        low, high = np.array(self.priors.bounds()).T
        chosen = self.priors.likeliest(self.priors.start(), self.information, self.information @ self.f)
        best = np.inf
        for start in (self.priors.start(), chosen):
            found = minimize(
                lambda x: self.expected(np.clip(x, low, high)),
                start,
                method="Nelder-Mead",
                options={"maxfev": 300, "adaptive": True},
            )
            best = min(best, float(found.fun))
        return best

    def own_choice(self, noise: Array) -> float:
        """noise: over its standard deviation, of what was measured; what only the start could explain drops out."""
        right = self.gain.T @ (self.gain @ self.f + noise)
        numbers = self.priors.likeliest(self.priors.start(), self.information, right)
        return self.worst((self._answer(numbers) @ right - self.f) ** 2)


def _blocks(parts: Sequence[Array]) -> Array:
    """Columns of U1 above, those of U2 below."""
    width = sum(part.shape[1] for part in parts)
    whole, column = np.zeros((len(parts) * NODES, width)), 0
    for i, part in enumerate(parts):
        whole[i * NODES : (i + 1) * NODES, column : column + part.shape[1]] = part / np.abs(part).max(0)
        column += part.shape[1]
    return whole


def row(case: Case, seeds: Sequence[int]) -> str:
    gain = response(case.times, np.linspace(0.0, case.times[-1], NODES))
    columns: list[list[float]] = [[], [], [], []]
    for seed in seeds:
        noise, sigma = case.data(seed)
        seen = np.isfinite(noise)
        limits = Limits.of(case, gain, seen, sigma)
        if case.missing or not columns[0]:  # the pattern of what is measured is the same otherwise
            columns[0].append(limits.least_squares(limits.forms))
            columns[1].append(limits.least_squares(limits.quadratics))
            columns[2].append(limits.best_prior())
        columns[3].append(limits.own_choice(noise[seen]))
    medians = [f"{100 * np.median(values):.1f}" for values in columns]
    medians[3] += f" ({100 * min(columns[3]):.1f} to {100 * max(columns[3]):.1f})"
    within = sum(value <= 0.05 for value in columns[3])
    return f"| {case.title} | {' | '.join(medians)} | {within} of {len(columns[3])} |"


def main(seeds: int = 10, first: int = 20) -> str:
    head, _, _ = (__doc__ or "").partition("\n\n    python")
    lines = [
        "# What the data allow",
        "",
        f"`python -m benchmarks.attainable`, seeds {first} to {first + seeds - 1}.",
        "",
    ]
    lines += [head, "", "Errors of the worse of the two unknown rates, in % of its size, medians over the seeds.", ""]
    lines += ["| Lotka-Volterra | sizes alone | quadratics | best prior | own choice | own choice within 5 % |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for case in CASES:
        lines.append(row(case, range(first, first + seeds)))
        print(lines[-1], flush=True)
    text = "\n".join([*lines, "", "With 20 % noise a linear response is no more than a rough guide.", ""])
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=20)
    given = parser.parse_args()
    main(given.seeds, given.first)
