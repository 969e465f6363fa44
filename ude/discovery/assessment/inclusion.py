"""How surely each summand of a formula belongs there: bagged probabilities of the combinations that were tried.

``exp(-score/2)`` is, to Schwarz's approximation, the posterior weight of a combination on the data at hand. On its own
it is overconfident: it takes the noise for exactly Gaussian and the true formula for one of those tried, and jumps from
one formula to another between equally good data sets. So it is averaged over resampled data (Huggins & Miller,
Bayesian Analysis 18 (2023) 79). Resampling gives every observed number a random weight (the Bayesian bootstrap, Rubin
1981, of mean 1), and refits each combination by one weighted Gauss-Newton step from its own optimum:

    SSE_m(w) = min_d  sum_i w_i (r_i + J_i d)^2

which costs a small linear least-squares problem instead of solves of the differential equation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ude.discovery.candidate import Candidate
from ude.discovery.canonical_form import summands
from ude.discovery.refit.closed_system import Array
from ude.discovery.selection.combination import Combination

# Weights below this share of the best are zero for every purpose, and not worth resampling.
_HOPELESS = 40.0


@dataclass(frozen=True)
class InclusionOptions:
    """resamples: how many data sets are averaged over; 0: the data as they are. most: combinations that take part."""

    resamples: int = 200
    most: int = 40
    seed: int = 0


def probabilities(ranked: Sequence[Combination], floor: float, options: InclusionOptions = InclusionOptions()) -> Array:
    """The probability of each combination, in the order given; those that cannot compete have zero.

    floor: as in the score.
    """
    scores = np.array([combination.score for combination in ranked])
    result = np.zeros(len(ranked))
    usable = [i for i in np.argsort(scores, kind="stable") if np.isfinite(scores[i])][: options.most]
    usable = [i for i in usable if scores[i] <= scores[usable[0]] + 2 * _HOPELESS]
    if not usable:
        return result
    own = [ranked[i] for i in usable]
    if options.resamples == 0 or any(c.fit.residuals is None or c.fit.jacobian is None for c in own):
        result[usable] = _weights(np.array([[scores[i] for i in usable]]))
        return result
    n = own[0].fit.n_observations
    random = np.random.default_rng(options.seed)
    weights = random.dirichlet(np.ones(n), options.resamples) * n
    table = np.stack([_resampled(combination, weights, floor) for combination in own], axis=1)
    result[usable] = _weights(table)
    return result


def _resampled(combination: Combination, weights: Array, floor: float) -> Array:
    """The score under every row of weights (B, N), by one Gauss-Newton step each."""
    residual, jacobian = combination.fit.residuals, combination.fit.jacobian
    if residual is None or jacobian is None:
        return np.full(len(weights), np.inf)
    n = combination.fit.n_observations
    # an orthonormal basis in place of the columns: these may be of very different size, or depend on each other
    left, sizes, _ = np.linalg.svd(jacobian, full_matrices=False)
    basis = left[:, sizes > 1e-9 * max(sizes.max(initial=0.0), 1e-300)]
    grams = np.einsum("bi,ij,ik->bjk", weights, basis, basis, optimize=True)
    sides = weights @ (basis * residual[:, None])
    steps = np.linalg.solve(grams + 1e-12 * np.eye(basis.shape[1]), -sides[..., None])[..., 0]
    sse = weights @ residual**2 + np.einsum("bj,bj->b", sides, steps)
    result: Array = n * np.log(np.maximum(sse, 0.0) / n + floor**2) + combination.complexity * np.log(n)
    return result


def _weights(scores: Array) -> Array:
    """Mean over rows of the normalized ``exp(-score/2)``."""
    relative = np.exp(-0.5 * (scores - scores.min(axis=1, keepdims=True)))
    return np.asarray((relative / relative.sum(axis=1, keepdims=True)).mean(axis=0))


def inclusion_table(
    ranked: Sequence[Combination], probability: Array, chosen: Mapping[str, Candidate], least: float = 0.01
) -> pd.DataFrame:
    """One row a term and summand, likeliest first (see `Discovery.inclusion`), without those below `least`."""
    total: dict[tuple[str, str], float] = {}
    for combination, weight in zip(ranked, probability, strict=True):
        if weight == 0.0:
            continue
        for term, candidate in combination.candidates.items():
            for summand in summands(candidate):
                total[term, summand] = total.get((term, summand), 0.0) + float(weight)
    kept = {(term, summand) for term, candidate in chosen.items() for summand in summands(candidate)}
    order = list(chosen)
    rows = [
        {"term": term, "summand": summand, "probability": min(value, 1.0), "chosen": (term, summand) in kept}
        for (term, summand), value in (dict.fromkeys(kept, 0.0) | total).items()
        if value >= least or (term, summand) in kept
    ]
    rows.sort(key=lambda row: (order.index(str(row["term"])), -float(str(row["probability"])), str(row["summand"])))
    return pd.DataFrame(rows, columns=["term", "summand", "probability", "chosen"])
