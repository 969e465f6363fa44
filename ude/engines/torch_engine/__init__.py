"""The torch engine: any right-hand side, any device, per-trajectory steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.engine import ForwardResult, SolveSpec, StepRecord, as_batch
from ude.engines.torch_engine.esdirk import EsdirkScheme
from ude.engines.torch_engine.explicit import ExplicitScheme
from ude.engines.torch_engine.implicit_pullback import gauss_nodes, pullback_implicit, recorded
from ude.engines.torch_engine.pullback import interpolate, interpolate_explicit, pullback
from ude.engines.torch_engine.rosenbrock import RosenbrockScheme
from ude.engines.torch_engine.stages import stage_arguments, tableau_tensors
from ude.engines.torch_engine.stepper import integrate
from ude.methods import DiagonallyImplicitRungeKutta, ExplicitRungeKutta, RosenbrockMethod

__all__ = ["TorchEngine"]


class TorchEngine:
    """Runs Runge-Kutta and Rosenbrock methods as torch operations over the whole batch."""

    name = "torch"

    def why_not(self, spec: SolveSpec) -> str | None:
        algorithm = spec.algorithm
        if not isinstance(algorithm, (ExplicitRungeKutta, DiagonallyImplicitRungeKutta, RosenbrockMethod)):
            return f"{algorithm.name} is not a method of the torch engine"
        if spec.adaptive and not algorithm.tableau.b_error:
            return f"{algorithm.name} estimates no error, so it needs adaptive=False and dt"
        return None

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        with torch.no_grad():
            if isinstance(spec.algorithm, ExplicitRungeKutta):
                return integrate(spec, ExplicitScheme(spec, spec.algorithm.tableau, p), u0)
            return integrate(spec, _implicit(spec, p), u0)

    def interpolate(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        with torch.no_grad():
            if isinstance(spec.algorithm, ExplicitRungeKutta):
                return interpolate_explicit(spec, spec.algorithm.tableau, record, p, times)
            scheme = _implicit(spec, p)
            return interpolate(
                spec, record, times, scheme.interpolant, lambda row: scheme.stages(*recorded(record, row))
            )

    def pullback(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        if isinstance(spec.algorithm, ExplicitRungeKutta):
            return pullback(spec, spec.algorithm.tableau, record, p, times, grad)
        return pullback_implicit(spec, lambda leaves: _implicit(spec, leaves), record, p, times, grad)

    def quadrature_nodes(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor]
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        if not isinstance(spec.algorithm, ExplicitRungeKutta):
            yield from gauss_nodes(_implicit(spec, p), record)
            return
        numbers = tableau_tensors(spec.algorithm.tableau, record.u.dtype, record.u.device)
        for row in range(record.dt.shape[0]):
            u, t, dt = record.u[row], record.t[row], record.dt[row]
            for i, state, time in stage_arguments(lambda u, t: as_batch(spec, u, t, p), numbers, u, t, dt):
                yield state, time, numbers.weights[i] * dt


def _implicit(spec: SolveSpec, p: Sequence[Tensor]) -> EsdirkScheme | RosenbrockScheme:
    """Bind an implicit method to a solve."""
    algorithm = spec.algorithm
    if isinstance(algorithm, DiagonallyImplicitRungeKutta):
        return EsdirkScheme(spec, algorithm, p)
    if isinstance(algorithm, RosenbrockMethod):
        return RosenbrockScheme(spec, algorithm, p)
    raise TypeError(f"why_not was not asked: {algorithm.name} is not a method of the torch engine")
