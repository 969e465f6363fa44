"""Steps of explicit Runge-Kutta methods as a scheme."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from ude.engines.engine import SolveSpec
from ude.engines.torch_engine.scheme import Trial, Work
from ude.engines.torch_engine.stages import combine, compute_stages, tableau_tensors
from ude.methods import ExplicitTableau


class ExplicitScheme:
    """An explicit Runge-Kutta method bound to a solve."""

    carries_derivative = False

    def __init__(self, spec: SolveSpec, tableau: ExplicitTableau, p: Sequence[Tensor]) -> None:
        self.spec, self.work = spec, Work(spec, p)
        self.numbers = tableau_tensors(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = self.numbers.interpolant
        self.error_order = tableau.order
        self._reuse_last = tableau.first_same_as_last

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        numbers = self.numbers
        k, argument = compute_stages(self.work, numbers, u, t, dt, k1)
        column = dt.unsqueeze(-1)
        new = argument if self._reuse_last else torch.addcmul(u, column, combine(numbers.b, k))
        estimate = self.spec.adaptive and numbers.b_error is not None
        return Trial(new, k, combine(numbers.b_error, k) * column if estimate and numbers.b_error is not None else None)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        return trial.k[-1] if self._reuse_last else self.work(trial.u, t)

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Nothing is kept from step to step."""
