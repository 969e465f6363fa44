"""Newton's iteration for the stages of a step, every trajectory on its own."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.jacobian import Jacobian
from ude.engines.linear import Factors
from ude.engines.torch.lanes import BatchArithmetic
from ude.engines.work import Work
from ude.errors import SolveFailed

# Before an iteration has shown how fast it converges no iterate is believed, so the first stage of a step takes two at
# least. Later stages go by the slowest rate seen, and by this at best: with a Jacobian of an earlier step a rate
# remembered from there can be wrong by any factor, and the errors it lets pass make the step control crawl.
_BEST_GUESS_OF_RATE = 0.01
# A rate this near to one, or above it, is no convergence.
_NO_CONVERGENCE = 0.999
# In the reverse sweep stages are solved until rounding stops them; with a Jacobian of the step's start. Newton's
# iteration gives up as soon as it foresees that its iterations will not do, so a slow one needs many to be allowed.
_TIGHT_ITERATIONS = 1000
_TIGHT_TOLERANCE = 1e-9
# The iteration proper squares its error once it is near; on the way there it may wander.
_PROPER_ITERATIONS = 50
# A change that is this part of the stage is no divergence. On Robertson's tail rounding leaves 1e-6.
_AS_ROUNDING = 1e-4


class Newton:
    """Solves ``M z = s f(base + z, t)`` for one stage after another with the same factors of ``M - s J``.

    A trajectory that has converged stands still while others iterate, so none depends on its neighbors.

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
        size: The last change that the last stage saw, in units of the tolerance, one a lane.

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, IV.8.
    """

    def __init__(
        self,
        work: Work,
        factors: Factors,
        step: Float[Tensor, "B"],
        scale: Float[Tensor, "B n"],
        lanes: BatchArithmetic,
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
        self.size = self.rate
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
            self.size = size if before is None else lanes.where(open_, size, self.size)
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


class TightNewton:
    """Solves the stages of a recorded step again, until rounding stops the iteration: what its derivative needs.

    Where the simplified iteration does not get there (the step may have been taken with the Jacobian of an earlier
    one, and the one at its start may be worse), Newton's iteration proper does, with a Jacobian at every iterate.

    Args:
        work, step, scale, lanes: As of `Newton`.
        jacobian: df/du at the start of the step.
    """

    def __init__(
        self,
        work: Work,
        jacobian: Jacobian,
        step: Float[Tensor, "B"],
        scale: Float[Tensor, "B n"],
        lanes: BatchArithmetic,
    ) -> None:
        self._work, self._step, self._scale, self._lanes = work, step, scale, lanes
        factors = work.factor(jacobian, step, tight=True)
        self._simplified = Newton(
            work, factors, step, scale, lanes, tolerance=_TIGHT_TOLERANCE, maxiters=_TIGHT_ITERATIONS
        )

    def solve(self, base: Float[Tensor, "B n"], t: Float[Tensor, "B"], guess: Float[Tensor, "B n"]) -> Tensor:
        """Return z (B, n).

        Raises:
            SolveFailed: A stage that was solved once could not be solved again.
        """
        newton, lanes = self._simplified, self._lanes
        # what rounding stopped in one stage is no reason to leave the next one at its guess
        newton.converged = lanes.read(torch.ones_like(t, dtype=torch.bool))
        z = newton.solve(base, t, guess)
        solved = lanes.tensor(newton.converged).to(torch.bool) | (self._step == 0)
        if bool(solved.all()):
            return z
        near = self._near(lanes.tensor(newton.size), z) | solved
        return self._proper(base, t, torch.where(near.unsqueeze(-1), z, guess), ~solved)

    def _near(self, size: Float[Tensor, "B"], z: Float[Tensor, "B n"]) -> Bool[Tensor, "B"]:
        """Whether a last change of this size is one that rounding leaves: within the tolerance, or (where f is the
        difference of large terms and the tolerance is tight) far smaller than the stage itself."""
        return size <= torch.clamp(_AS_ROUNDING * self._norm(z), min=1.0)

    def _norm(self, x: Tensor) -> Float[Tensor, "B"]:
        size: Tensor = torch.linalg.vector_norm(x / self._scale, dim=-1) / x.shape[-1] ** 0.5
        return size

    def _proper(self, base: Tensor, t: Tensor, z: Tensor, open_: Bool[Tensor, "B"]) -> Tensor:
        """Newton's iteration proper, of the trajectories in `open_`."""
        step = self._step.unsqueeze(-1)
        wanted, last = open_, torch.full_like(t, float("inf"))
        for _ in range(_PROPER_ITERATIONS):
            argument = base + z
            factors = self._work.factor(self._work.df_du(argument, t), self._step, tight=True)
            change = factors.solve(step * self._work(argument, t) - self._work.times_mass(z))
            size = self._norm(change)
            z = torch.where(open_.unsqueeze(-1), z + change, z)
            # it squares its error until rounding keeps a change from being smaller than the one before
            done = (self._near(size, z) & (size >= 0.5 * last)) | (size == 0) | ~torch.isfinite(size)
            last = torch.where(open_, size, last)
            open_ = open_ & ~done
            if not bool(open_.any()):
                break
        lost = wanted & ~self._near(last, z)
        if bool(lost.any()):
            first = int(lost.nonzero()[0])
            raise SolveFailed(
                "a step could not be solved again as exactly as gradients and dense output need",
                got=f"no convergence near t={float(t[first]):g} of trajectory {first}",
                fix="Lower reltol and abstol so that steps are shorter, check a Jacobian that you gave (jac), or take "
                "sensealg=ForwardSensitivity(), which solves no step again.",
            )
        return z
