"""What a fit minimizes: Gaussian misfit in natural units over a scale a state, and a prior on network weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.models import Model, Neural

# What a number costs at least that a failed solve did not reach, in squared scales: as if it were this far off. Finite,
# so that an optimizer can compare two failures (the one that got further is better), and far above any fit to keep.
COST_OF_A_MISSING_POINT = 100.0


def residuals(
    predicted: Float[Tensor, "*batch time state"],
    observed: Float[Tensor, "*batch time state"],
    scale: Float[Tensor, " state"],
    mask: Bool[Tensor, "*batch time state"],
    reached: Bool[Tensor, "*batch time"],
) -> Float[Tensor, " residual"]:
    """The vector whose sum of squares is the mean of ``((predicted - observed) / scale)²`` over the numbers measured.

    A number at a point that the solve did not reach, where `predicted` holds the last that it did, has as its residual
    the root of `COST_OF_A_MISSING_POINT` and ``log(1 + r²)``, r what the prediction is off. It is finite whatever broke
    down, says that reaching further is better, and its gradient leads to where the last point reached fits better.
    """
    wrong = (predicted - torch.where(mask, observed, 0.0)) / scale
    there = reached.unsqueeze(-1).expand(mask.shape)
    missing = wrong[mask & ~there]
    parts = [wrong[mask & there], (COST_OF_A_MISSING_POINT + torch.log1p(missing**2)).sqrt()]
    return torch.cat(parts) / mask.sum().clamp(min=1).sqrt()


@dataclass(frozen=True)
class Prior:
    """The prior w ~ N(0, σ²/strength) on network weights, with σ² = 2/(fan_in + fan_out) of Glorot & Bengio (2010):
    a weight is as likely to stay as large as it was drawn.

    With N observations of noise ν (in scales of the loss) the posterior is ``Σ r²/2ν² + strength Σ w²/2σ²``; that times
    2ν²/N is the loss. Thus noisy data get a smooth function and clean data the function they ask for.
    """

    weights: tuple[Tensor, ...]
    factors: tuple[float, ...]
    functions: Callable[[], Tensor] | None = None  # residuals of what is known of the networks' functions

    @classmethod
    def of(cls, model: Model, noise: float, observations: int, strength: float) -> Prior:
        """noise: ν, the root mean square of the noise over the loss's scale; observations: N, numbers measured."""
        weights = network_weights(model)
        common = strength * noise**2 / max(observations, 1)
        return cls(tuple(weights), tuple(common * (w.shape[0] + w[0].numel()) / 2.0 for w in weights))

    def residuals(self) -> Float[Tensor, " number"]:
        """Whose sum of squares is the prior's part of the loss."""
        parts = [factor**0.5 * w.reshape(-1) for factor, w in zip(self.factors, self.weights, strict=True)]
        functions = [] if self.functions is None else [self.functions()]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *parts, *functions])

    def __call__(self) -> Tensor:
        return (self.residuals() ** 2).sum()


def network_weights(model: Model) -> list[Tensor]:
    """The weight matrices of all networks: what the prior shrinks. Biases are free, as is usual."""
    return [
        p
        for term in model.terms.values()
        if isinstance(term, Neural)
        for p in term.parameters()
        if p.ndim >= 2 and p.requires_grad
    ]
