"""The torch engine: any right-hand side, any device, per-trajectory steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.engine import ForwardResult, SolveSpec, StepRecord, as_batch
from ude.engines.torch_engine.explicit import ExplicitScheme
from ude.engines.torch_engine.pullback import interpolate, pullback
from ude.engines.torch_engine.stages import stage_arguments, tableau_tensors
from ude.engines.torch_engine.stepper import integrate
from ude.methods import ExplicitRungeKutta, ExplicitTableau

__all__ = ["TorchEngine"]


class TorchEngine:
    """Runs explicit Runge-Kutta methods as torch operations over the whole batch."""

    name = "torch"

    def why_not(self, spec: SolveSpec) -> str | None:
        if not isinstance(spec.algorithm, ExplicitRungeKutta):
            return f"{spec.algorithm.name} is not a method of the torch engine"
        if spec.adaptive and not spec.algorithm.tableau.b_error:
            return f"{spec.algorithm.name} estimates no error, so it needs adaptive=False and dt"
        return None

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        with torch.no_grad():
            return integrate(spec, ExplicitScheme(spec, _tableau(spec), p), u0)

    def interpolate(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        with torch.no_grad():
            return interpolate(spec, _tableau(spec), record, p, times)

    def pullback(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        return pullback(spec, _tableau(spec), record, p, times, grad)

    def quadrature_nodes(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor]
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        numbers = tableau_tensors(_tableau(spec), record.u.dtype, record.u.device)
        for row in range(record.dt.shape[0]):
            u, t, dt = record.u[row], record.t[row], record.dt[row]
            for i, state, time in stage_arguments(lambda u, t: as_batch(spec, u, t, p), numbers, u, t, dt):
                yield state, time, numbers.weights[i] * dt


def _tableau(spec: SolveSpec) -> ExplicitTableau:
    algorithm = spec.algorithm
    if not isinstance(algorithm, ExplicitRungeKutta):
        raise TypeError(f"why_not was not asked: {algorithm.name} is not explicit Runge-Kutta")
    return algorithm.tableau
