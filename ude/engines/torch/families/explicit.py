"""Steps of explicit Runge-Kutta methods as a scheme."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.torch.scheme import Trial
from ude.engines.torch.stages import combine, complete_stages, compute_stages, tableau_tensors
from ude.engines.work import Work
from ude.methods import ExplicitTableau


class ExplicitScheme:
    """An explicit Runge-Kutta method bound to a solve."""

    carries_derivative = False

    def __init__(self, spec: SolveSpec, tableau: ExplicitTableau, p: Sequence[Tensor]) -> None:
        self.spec, self.work, self._tableau = spec, Work(spec, p), tableau
        self.numbers = tableau_tensors(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = self.numbers.interpolant
        self.error_order = tableau.order
        self.extra_stages = len(self.numbers.extra_a)
        self.step_weights = self.numbers.b.unsqueeze(-1)
        self._count = tableau.stages
        self._reuse_last = tableau.first_same_as_last

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        numbers = self.numbers
        k, argument = compute_stages(self.work, numbers, u, t, dt, k1)
        own = k[: self._count]
        column = dt.unsqueeze(-1)
        new = argument if self._reuse_last else torch.addcmul(u, column, combine(numbers.b, own))
        if not self.spec.adaptive or numbers.b_error is None:
            return Trial(new, k, None)
        error = combine(numbers.b_error, own) * column
        low = None if numbers.b_error_low is None else combine(numbers.b_error_low, own) * column
        return Trial(new, k, error, error_low=low)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        if self._reuse_last:
            return trial.k[self._count - 1]
        after = self.work(trial.u, t)
        if self.numbers.next_is_extra:
            trial.k[self._count] = after
        return after

    def advance(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Take a recorded step again, with the operations of the first time."""
        k1 = self.work(u, t) if k1 is None else k1
        trial = self.attempt(u, k1, t, dt)
        moved = (dt != 0).unsqueeze(-1)
        return torch.where(moved, trial.u, u), torch.where(moved, self.derivative_after(trial, t + dt), k1)

    def stages(self, u: Tensor, t: Tensor, dt: Tensor) -> Float[Tensor, "stages B n"]:
        """All stages of a recorded step, those that only the dense output needs too."""
        k, _ = compute_stages(self.work, self.numbers, u, t, dt, self.work(u, t))
        return self.complete(u, t, dt, k[: self._count])

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        return complete_stages(self.work, self.numbers, u, t, dt, k)

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> ExplicitScheme:
        taken = ExplicitScheme(spec, self._tableau, p)
        taken.work.go_on(self.work)
        return taken

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Nothing is kept from step to step."""
