"""A prior on what a network computes, not on its weights: a Gaussian process at the points that the data visit.

The outputs of a network, over their scales, at visited inputs z (mean 0, deviation 1) are a priori

    f_o(z) ~ GP(0, B_oo' k(z, z')),   k(z, z') = Π_i (1 + a_i t_i (e^{b t_i} - 1)/(b t_i)) + c m(|z - z'|/ℓ)

with t_i = z_i z_i'. The product is an expansion in powers of each input, whose terms of degree n have variance
a_i b^(n-1)/n!: b = 0 leaves products of the inputs, each to the first power, and a_i = 0 says that input i does not
matter. m, Matérn's of order 5/2, is for what changes within a short way, such as dry friction.
``B = w wᵀ + diag(s²)`` lets the outputs of one network be alike. The data choose a, b, c, ℓ, w and s by their
evidence, the functions being integrated out (Rasmussen & Williams 2006, 5.4; MacKay 1992).

Why not a prior on weights: one that is strong enough to keep the noise out of a small network makes it small, and a
network of small weights is near zero, not simple. The idea of putting the prior on a network's function values is that
of Sun, Zhang, Shi & Grosse, Functional variational Bayesian neural networks, ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from ude.models import Model, Neural

Array = npt.NDArray[np.float64]

_MOST_VALUES, _MOST_POINTS, _LEAST_POINTS = 240, 60, 12
_MOST_INPUTS = 12
# What a network need not follow of a function of this prior, of the scale of its outputs: it is no polynomial.
_NUGGET = 5e-3
_START = {"a": -0.7, "b": -1.4, "c": -3.0, "l": -0.7, "w": 0.5, "s": -0.7}  # logarithms, but for w
_BOUNDS = {
    "a": (-12.0, 4.0),
    "b": (-8.0, 0.7),
    "c": (-14.0, 2.0),
    "l": (-3.0, 0.7),
    "w": (-50.0, 50.0),
    "s": (-6.0, 4.0),
}
_LOCAL = 0.0  # log c to begin from as well, since what is local may be seen only once there is enough of it
# Largest b t: beyond it, the farthest points would be all that the covariance knows in float64.
_FARTHEST = 12.0
_WIDTH = 4.0  # standard deviation of the normal hyperprior of these numbers
_ITERATIONS = 40


@dataclass(frozen=True, eq=False)
class FunctionPrior:
    """term: the network; x (point, input): where it is looked at, as it is called; z: the same, standardised."""

    term: Neural
    x: Float[Tensor, "point input"]
    z: Float[Tensor, "point input"]

    @classmethod
    def at(cls, term: Neural, visited: Float[Tensor, "call input"]) -> FunctionPrior | None:
        """At the points of `visited` that lie farthest apart; None where too few differ or there are too many axes."""
        visited = visited[torch.isfinite(visited).all(-1)]
        number = min(_MOST_POINTS, _MOST_VALUES // len(term.outputs))
        if number < _LEAST_POINTS or len(term.inputs) > _MOST_INPUTS or len(visited) < 2:
            return None
        spread = visited.std(0)
        if not bool((spread > 1e-9 * visited.abs().max(0).values).any()):
            return None
        z = (visited - visited.mean(0)) / torch.where(spread > 0, spread, 1.0)
        chosen = farthest(z, number)
        return cls(term, visited[chosen], z[chosen])

    @cached_property
    def apart(self) -> Float[Tensor, "point point"]:
        """Squares of the distances of the points."""
        return (self.z.unsqueeze(1) - self.z.unsqueeze(0)).square().sum(-1)

    @cached_property
    def products(self) -> Float[Tensor, "point point input"]:
        """``t_i = z_i z_i'`` of every two points."""
        return self.z.unsqueeze(1) * self.z.unsqueeze(0)

    @property
    def size(self) -> int:
        """How many values f has."""
        return len(self.x) * len(self.term.outputs)

    def values(self) -> Float[Tensor, " value"]:
        """f over the scale of the outputs: all points of the first output, then those of the next."""
        found = self.term(*self.x.unbind(-1))
        found = found if isinstance(found, tuple) else (found,)
        return torch.cat([one / scale for one, scale in zip(found, self.term.output_scale, strict=True)])

    # -- hyperparameters: log a (input), log b, log c, log l, w (output; of several), log s (output) ------------------

    @property
    def names(self) -> str:
        """One letter a number."""
        outputs = len(self.term.outputs)
        return "a" * len(self.term.inputs) + "bcl" + ("w" * outputs if outputs > 1 else "") + "s" * outputs

    def start(self, local: bool = False) -> Array:
        """local: with much of what changes within a short way"""
        return np.array([_LOCAL if local and name == "c" else _START[name] for name in self.names])

    def bounds(self) -> list[tuple[float, float]]:
        farthest_b = float(np.log(_FARTHEST) - self.z.square().max().log())
        bounds = [_BOUNDS[name] for name in self.names]
        return [
            (low, min(high, farthest_b)) if n == "b" else (low, high)
            for n, (low, high) in zip(self.names, bounds, strict=True)
        ]

    def covariance(self, numbers: Tensor) -> Float[Tensor, "value value"]:
        """Of the values, without the nugget."""
        inputs, outputs = self.z.shape[1], len(self.term.outputs)
        a, (b, c, length) = numbers[:inputs].exp(), numbers[inputs : inputs + 3].exp()
        t = self.products
        distance = (5.0 * self.apart).sqrt() / length
        matern = (1.0 + distance + distance.square() / 3.0) * (-distance).exp()
        kernel = (1.0 + a * torch.expm1(b * t) / b).prod(-1) + c * matern
        rest = numbers[inputs + 3 :]
        between = torch.diag((2.0 * rest[-outputs:]).exp())
        if outputs > 1:
            between = between + torch.outer(rest[:outputs], rest[:outputs])
        return torch.kron(between, kernel)


def farthest(z: Float[Tensor, "point input"], number: int) -> list[int]:
    """Indices of `number` points, each the farthest from those before; fewer where others repeat them."""
    chosen = [int(z.square().sum(-1).argmin())]
    distance = (z - z[chosen[0]]).square().sum(-1)
    while len(chosen) < min(number, len(z)) and float(distance.max()) > 1e-12:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (z - z[chosen[-1]]).square().sum(-1))
    return chosen


def function_priors(
    model: Model, u: Float[Tensor, "point state"], p: object, t: Float[Tensor, " point"]
) -> tuple[FunctionPrior, ...]:
    """One for each network that can have one, at what it is asked along the points."""
    with torch.no_grad():
        calls = model.record_calls(u, p, t)
    found = []
    for term in model.terms.values():
        if not isinstance(term, Neural) or not any(q.requires_grad for q in term.parameters()):
            continue
        seen = [call for name in term.outputs[:1] for call in calls.get(name, ())]
        if not seen:
            continue
        columns = [
            torch.cat([call.inputs[name].expand(len(u), *call.inputs[name].shape[1:]).reshape(-1) for call in seen])
            for name in term.inputs
        ]
        if len({len(column) for column in columns}) == 1:
            prior = FunctionPrior.at(term, torch.stack(columns, -1).detach())
            found += [] if prior is None else [prior]
    return tuple(found)


@dataclass(frozen=True, eq=False)
class FunctionPriors:
    """Those of all networks together; `numbers` in all methods are the hyperparameters of one after another."""

    parts: tuple[FunctionPrior, ...]

    def __len__(self) -> int:
        return sum(part.size for part in self.parts)

    def start(self, local: bool = False) -> Array:
        return np.concatenate([np.zeros(0), *[part.start(local) for part in self.parts]])

    def bounds(self) -> list[tuple[float, float]]:
        return [bound for part in self.parts for bound in part.bounds()]

    def values(self) -> Float[Tensor, " value"]:
        return torch.cat([torch.zeros(0, dtype=torch.float64), *[part.values() for part in self.parts]])

    def covariance(self, numbers: Tensor) -> Float[Tensor, "value value"]:
        blocks, place = [], 0
        for part in self.parts:
            size = len(part.start())
            blocks.append(part.covariance(numbers[place : place + size]))
            place += size
        # none makes (1, 0) of nothing
        return torch.block_diag(*blocks) if blocks else torch.zeros(0, 0, dtype=torch.float64)

    def whitener(self, numbers: Array, slack: float = 1.0) -> Array:
        """The inverse of the Cholesky factor of the covariance: what makes independent ones of the values.

        slack: how many times as far from functions of the prior as usual the networks may be
        """
        covariance = self.covariance(torch.as_tensor(numbers)).numpy()
        covariance[np.diag_indices_from(covariance)] += (slack * _NUGGET) ** 2
        # relative to the largest: what float64 needs to factorise it
        covariance[np.diag_indices_from(covariance)] += 1e-12 * np.diag(covariance).max(initial=0.0)
        return np.asarray(np.linalg.inv(np.linalg.cholesky(covariance)))

    def likeliest(self, numbers: Array, normal: Array, right: Array) -> Array:
        """The hyperparameters that make ``data = G f + noise`` of unit variance most probable, beginning from these.

        normal: GᵀG; right: Gᵀ data: as many numbers as there are values, however many data
        """
        squares, vectors = np.linalg.eigh(normal)
        some = squares > 1e-13 * squares.max(initial=0.0)
        size = np.sqrt(squares[some])
        matrix, seen = (
            torch.as_tensor(size[:, None] * vectors[:, some].T),
            torch.as_tensor(vectors[:, some].T @ right / size),
        )
        eye, usual = torch.eye(len(seen), dtype=torch.float64), self.start()
        centre = torch.as_tensor(usual)

        def cost(x: Array) -> tuple[float, Array]:
            leaf = torch.as_tensor(x).requires_grad_()
            with torch.enable_grad():
                whole = matrix @ self.covariance(leaf) @ matrix.T + eye
                factor, failed = torch.linalg.cholesky_ex(whole)
                if int(failed):
                    return 1e10, np.zeros_like(x)
                scaled = torch.linalg.solve_triangular(factor, seen.unsqueeze(-1), upper=False)
                value = 0.5 * scaled.square().sum() + factor.diagonal().log().sum()
                value = value + 0.5 * ((leaf - centre) / _WIDTH).square().sum()
                (slope,) = torch.autograd.grad(value, leaf)
            return float(value.detach()), slope.numpy()

        starts = [numbers, self.start(local=True)] if np.array_equal(numbers, usual) else [numbers]
        found = [
            minimize(cost, start, jac=True, method="L-BFGS-B", bounds=self.bounds(), options={"maxiter": _ITERATIONS})
            for start in starts
        ]
        return np.asarray(min(found, key=lambda one: float(one.fun)).x)


def gain_of(jacobian: Array, values_jacobian: Array, variances: Array, tolerance: float = _NUGGET) -> Array:
    """How data follow the values f of networks, whose weights otherwise stay as near as their variances have them:
    ``J A Fᵀ (F A Fᵀ + ε)⁻¹``, J and F the derivatives of data and values to the weights, A the variances."""
    weighted = values_jacobian * variances
    gram = weighted @ values_jacobian.T
    gram[np.diag_indices_from(gram)] += tolerance**2
    return np.asarray(np.linalg.solve(gram, weighted @ jacobian.T).T)


def covered(priors: Sequence[FunctionPrior]) -> set[int]:
    """The identities of the tensors whose function has a prior."""
    return {id(q) for prior in priors for q in prior.term.parameters()}
