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
from scipy.linalg import block_diag
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri
from scipy.optimize import minimize
from torch import Tensor
from torch.func import functional_call

from ude.fitting.posterior.function_kernel import FunctionKernel
from ude.fitting.simulation.jacobians import at_points
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
# Of the evidence, a relative change that ends its search, 1e-4 nats or so: the next Gauss-Newton step asks again.
_ENOUGH = 1e-6
# Square of what is seen of a function, over the noise, below which it does not count.
_FAINT = 1e-6


@dataclass(frozen=True, eq=False)
class FunctionPrior:
    """term: the network; x (point, input): where it is looked at, as it is called; z: the same, standardized."""

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
    def kernel(self) -> FunctionKernel:
        """The covariance of the values, by the numbers."""
        return FunctionKernel.of(self.z.numpy(), len(self.term.outputs))

    @property
    def size(self) -> int:
        """How many values f has."""
        return len(self.x) * len(self.term.outputs)

    def values(self) -> Float[Tensor, " value"]:
        """f over the scale of the outputs: all points of the first output, then those of the next."""
        found = self.term(*self.x.unbind(-1))
        found = found if isinstance(found, tuple) else (found,)
        return torch.cat([one / scale for one, scale in zip(found, self.term.output_scale, strict=True)])

    def jacobian(self, parameters: Sequence[Tensor]) -> Float[Tensor, "value parameter"]:
        """Derivatives of the values to given leaves, all flattened."""
        names = {id(q): name for name, q in self.term.named_parameters()}
        own = {names[id(q)]: q for q in parameters if id(q) in names}

        def values(own: dict[str, Tensor], at: dict[str, Tensor]) -> Tensor:
            found = functional_call(self.term, own, tuple(at["x"].unbind(-1)))
            return torch.stack(found if isinstance(found, tuple) else (found,)) / self.term.output_scale

        slopes, _ = at_points(values, len(self.term.outputs), own, {"x": self.x})
        flat = [
            torch.zeros(self.size, q.numel(), dtype=torch.float64)
            if id(q) not in names
            else slopes[names[id(q)]].transpose(0, 1).reshape(self.size, -1)
            for q in parameters
        ]
        return torch.cat(flat, 1)

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

    def jacobian(self, parameters: Sequence[Tensor]) -> Float[Tensor, "value parameter"]:
        none = torch.zeros(0, sum(q.numel() for q in parameters), dtype=torch.float64)
        return torch.cat([none, *[part.jacobian(parameters) for part in self.parts]])

    def _split(self, numbers: Array) -> list[Array]:
        """Those of each part."""
        ends = np.cumsum([len(part.start()) for part in self.parts])
        return np.split(numbers, ends[:-1]) if self.parts else []

    def covariance(self, numbers: Array) -> Float[np.ndarray, "value value"]:
        """Of the values, without the nugget; what different networks compute is independent."""
        own = zip(self.parts, self._split(numbers), strict=True)
        # none makes (1, 0) of nothing
        return block_diag(*(part.kernel(n)[0] for part, n in own)) if self.parts else np.zeros((0, 0))

    def whitener(self, numbers: Array, slack: float = 1.0) -> Array:
        """The inverse of the Cholesky factor of the covariance: what makes independent ones of the values.

        slack: how many times as far from functions of the prior as usual the networks may be
        """
        covariance = self.covariance(numbers)
        covariance[np.diag_indices_from(covariance)] += (slack * _NUGGET) ** 2
        # relative to the largest: what float64 needs to factorize it
        covariance[np.diag_indices_from(covariance)] += 1e-12 * np.diag(covariance).max(initial=0.0)
        factor = np.linalg.cholesky(covariance)
        return np.asarray(dtrtri(factor, lower=True)[0])

    def likeliest(self, numbers: Array, normal: Array, right: Array) -> Array:
        """The hyperparameters that make ``data = G f + noise`` of unit variance most probable, beginning from these.

        normal: GᵀG; right: Gᵀ data: as many numbers as there are values, however many data
        """
        squares, vectors = np.linalg.eigh(normal)
        # beside noise of variance one, the others say nothing, whatever the prior
        some = squares > max(_FAINT, 1e-13 * squares.max(initial=0.0))
        if not some.any():
            return numbers
        size = np.sqrt(squares[some])
        gain, seen = size[:, None] * vectors[:, some].T, vectors[:, some].T @ right / size
        gains = np.split(gain, np.cumsum([part.size for part in self.parts])[:-1], axis=1)
        usual = self.start()

        def cost(x: Array) -> tuple[float, Array]:
            own = [part.kernel(n) for part, n in zip(self.parts, self._split(x), strict=True)]
            whole = np.eye(len(seen)) + sum(g @ k @ g.T for g, (k, _) in zip(gains, own, strict=True))
            factor, failed = dpotrf(whole, lower=True)
            if failed:
                return 1e10, np.zeros_like(x)
            inverse = np.tril(dpotri(factor, lower=True)[0])
            inverse = inverse + np.tril(inverse, -1).T
            scaled = inverse @ seen
            value = 0.5 * float(seen @ scaled) + float(np.log(np.diag(factor)).sum())
            value += 0.5 * float(np.square((x - usual) / _WIDTH).sum())
            slope = 0.5 * (inverse - np.outer(scaled, scaled))
            slopes = [pullback(g.T @ slope @ g) for g, (_, pullback) in zip(gains, own, strict=True)]
            return value, np.concatenate(slopes) + (x - usual) / _WIDTH**2

        starts = [numbers, self.start(local=True)] if np.array_equal(numbers, usual) else [numbers]
        found = [
            minimize(
                cost,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=self.bounds(),
                options={"maxiter": _ITERATIONS, "ftol": _ENOUGH},
            )
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
