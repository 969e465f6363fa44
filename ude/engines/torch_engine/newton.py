"""Simplified Newton iteration for the stages of a step, every trajectory on its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.torch_engine.lanes import Lanes
from ude.engines.torch_engine.linear import Factors
from ude.engines.torch_engine.scheme import Work

# Before an iteration has shown how fast it converges no iterate is believed, so the first stage of a step takes two at
# least. Later stages go by the slowest rate seen, and by this at best: with a Jacobian of an earlier step a rate
# remembered from there can be wrong by any factor, and the errors it lets pass make the step control crawl.
_BEST_GUESS_OF_RATE = 0.01
# A rate this near to one, or above it, is no convergence.
_NO_CONVERGENCE = 0.999


class Newton:
    """Solves ``M z = s f(base + z, t)`` for one stage after another with the same factors of ``M - s J``.

    A trajectory that has converged stands still while others iterate, so none depends on its neighbours.

    Args:
        work: f over the batch, and M.
        factors: Factors of ``M - s J``, J near df/du.
        step: s = gamma dt of every trajectory (B,); zero for those that stand still.
        scale: The tolerance of each component (B, n).
        lanes: Arithmetic of one number a trajectory.
        tolerance: Iterates end when their error is below this part of the tolerance.

    Attributes:
        converged: Which trajectories solved every stage so far, one a lane.
        rate: The slowest rate of convergence seen, one a lane, for the decision on a new Jacobian.

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, IV.8.
    """

    def __init__(
        self,
        work: Work,
        factors: Factors,
        step: Float[Tensor, "B"],
        scale: Float[Tensor, "B n"],
        lanes: Lanes,
        *,
        tolerance: float,
        maxiters: int,
    ) -> None:
        self._work, self._factors, self._scale, self._lanes = work, factors, scale, lanes
        self._step = step.unsqueeze(-1)
        self._tolerance, self._maxiters = tolerance, maxiters
        self._root_n = scale.shape[-1] ** 0.5
        self._guess_of_rate = lanes.read(torch.ones_like(step))
        self.rate = lanes.read(torch.zeros_like(step))
        self.converged = lanes.read(torch.ones_like(step, dtype=torch.bool))

    def _norm(self, x: Tensor) -> Any:
        return self._lanes.read(torch.linalg.vector_norm(x / self._scale, dim=-1) / self._root_n)

    def solve(self, base: Float[Tensor, "B n"], t: Float[Tensor, "B"], guess: Float[Tensor, "B n"]) -> Tensor:
        """Return z (B, n); trajectories that fail are told in `converged`."""
        lanes, z, open_ = self._lanes, guess, self.converged
        rate = self._guess_of_rate
        # an update below the rounding of the state itself cannot be bettered
        floor = 4 * torch.finfo(base.dtype).eps * self._norm(base)
        size: Any = None
        quotient: Any = None
        for iteration in range(self._maxiters):
            change = self._factors.solve(self._step * self._work(base + z, t) - self._work.times_mass(z))
            before, size = size, self._norm(change)
            if before is not None:
                # the mean of the last two: a single quotient can be small by luck (RADAU5 does so for that reason)
                last, quotient = quotient, size / before
                mean = quotient if last is None else lanes.power(quotient * last, 0.5)
                rate = lanes.where(open_, mean, rate)
            z = lanes.select(open_, z + change, z)
            slow = lanes.minimum(rate, _NO_CONVERGENCE)
            error = slow / (1 - slow) * size
            done = ((rate < _NO_CONVERGENCE) & (error <= self._tolerance)) | (size <= floor)
            hopeless = lanes.negate(lanes.isfinite(size))
            if before is not None:
                final = error * lanes.power(slow, self._maxiters - iteration - 1)
                hopeless = hopeless | (rate >= _NO_CONVERGENCE) | (final > self._tolerance)
                self.rate = lanes.where(open_, lanes.maximum(self.rate, rate), self.rate)
            self.converged = self.converged & lanes.negate(open_ & hopeless & lanes.negate(done))
            open_ = open_ & lanes.negate(done) & lanes.negate(hopeless)
            if not lanes.any(open_):
                break
        self.converged = self.converged & lanes.negate(open_)
        remembered = lanes.maximum(self.rate, _BEST_GUESS_OF_RATE)
        self._guess_of_rate = lanes.where(self.rate > 0, remembered, self._guess_of_rate)
        return z
