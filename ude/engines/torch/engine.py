"""The torch engine: any right-hand side, any device, per-trajectory steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import ForwardResult, PlainEngine, SolveSpec, StepRecord, as_batch
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.compaction import CompactRecord, in_one_piece, pull_compact, read_compact
from ude.engines.torch.dense import DenseOutput, StagesOf, gauss_nodes
from ude.engines.torch.families.bdf import BdfScheme
from ude.engines.torch.families.bdf_history import PAST, History
from ude.engines.torch.families.bdf_pullback import pullback_bdf, replay_bdf
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.families.explicit import ExplicitScheme
from ude.engines.torch.families.imex import ImexScheme, split
from ude.engines.torch.families.rosenbrock import RosenbrockScheme
from ude.engines.torch.families.switching import SwitchingScheme
from ude.engines.torch.families.symplectic import SymplecticScheme, why_not_symplectic
from ude.engines.torch.implicit_pullback import pull_segment, pullback_implicit, recorded
from ude.engines.torch.pullback import interpolate, pullback
from ude.engines.torch.replay import replay_explicit, replay_implicit
from ude.engines.torch.stages import stage_arguments, tableau_tensors
from ude.engines.torch.stepper import integrate
from ude.engines.torch.switched_record import (
    SwitchedSteps,
    of_one_method,
    pull_switched_segment,
    replay_switched,
)
from ude.errors import EngineRefused
from ude.methods import (
    FBDF,
    Algorithm,
    AutoSwitch,
    DiagonallyImplicitRungeKutta,
    ExplicitRungeKutta,
    RosenbrockMethod,
    SymplecticMethod,
)

__all__ = ["TorchEngine"]


class TorchEngine(PlainEngine):
    """Runs Runge-Kutta, Rosenbrock and symplectic methods as torch operations over the whole batch."""

    name = "torch"
    keeps_steps = True

    def why_not(self, spec: SolveSpec) -> str | None:
        algorithm = spec.algorithm
        if isinstance(algorithm, SymplecticMethod):
            return why_not_symplectic(spec, algorithm) or (_needs_fixed_steps(algorithm) if spec.adaptive else None)
        if isinstance(algorithm, AutoSwitch):
            return (
                None if spec.adaptive else f"{algorithm.name} chooses by the steps it takes, so it needs adaptive=True"
            )
        if isinstance(algorithm, FBDF):
            return None if spec.checkpoints == "all" else _NEEDS_ALL_STATES
        if not isinstance(algorithm, (ExplicitRungeKutta, DiagonallyImplicitRungeKutta, RosenbrockMethod)):
            return f"{algorithm.name} is not a method of the torch engine"
        if spec.adaptive and not algorithm.tableau.b_error:
            return _needs_fixed_steps(algorithm)
        return None

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        with torch.no_grad():
            if isinstance(spec.algorithm, ExplicitRungeKutta):
                return integrate(spec, ExplicitScheme(spec, spec.algorithm.tableau, p), u0)
            if isinstance(spec.algorithm, AutoSwitch):
                return integrate(spec, SwitchingScheme(spec, spec.algorithm, p), u0)
            if isinstance(spec.algorithm, FBDF):
                multistep = BdfScheme(spec, spec.algorithm, p)
                result = integrate(spec, multistep, u0)
                steps = in_one_piece(result.record) if isinstance(result.record, CompactRecord) else result.record
                return replace(result, record=replace(steps, order=multistep.orders()))
            scheme = _reversible(spec, p)
            if isinstance(scheme, SymplecticScheme):
                scheme.require_separable(u0)
            return integrate(spec, scheme, u0)

    def interpolate(
        self, spec: SolveSpec, record: StepRecord | CompactRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        if isinstance(record, CompactRecord):
            return read_compact(spec, record, p, times, self.interpolate)
        spec, record = of_one_method(spec, record)
        with torch.no_grad():
            steps = _steps(spec, record, p)
            return interpolate(spec, record, times, steps.interpolant, steps.starts, steps.stages)

    def pullback(
        self,
        spec: SolveSpec,
        record: StepRecord | CompactRecord,
        p: Sequence[Tensor],
        times: Float[Tensor, "B T"],
        grad: Tensor,
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        if isinstance(record, CompactRecord):
            return pull_compact(spec, record, p, times, grad, _pull_segment)
        spec, record = of_one_method(spec, record)
        if isinstance(spec.algorithm, AutoSwitch):
            of_u, _, parts = pull_switched_segment(spec, spec.algorithm, record, p, times, grad)
            return of_u, parts
        if isinstance(spec.algorithm, ExplicitRungeKutta):
            return pullback(spec, spec.algorithm.tableau, record, p, times, grad)
        if isinstance(spec.algorithm, FBDF):
            return pullback_bdf(spec, record, p, times, grad)
        return pullback_implicit(spec, lambda leaves: _reversible(spec, leaves), record, p, times, grad)

    def dense(self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor]) -> DenseOutput:
        spec, record = of_one_method(spec, record)
        with torch.no_grad():
            steps = _steps(spec, record, p)
            return DenseOutput(record, spec.sign, steps.interpolant, steps.starts, steps.stages)

    def replay(
        self,
        spec: SolveSpec,
        record: StepRecord,
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
        times: Float[Tensor, "B T"],
    ) -> Float[Tensor, "B T n"]:
        spec, record = of_one_method(spec, record)
        if isinstance(spec.algorithm, AutoSwitch):
            return replay_switched(spec, SwitchingScheme(spec, spec.algorithm, p), record, u0, times)
        if isinstance(spec.algorithm, ExplicitRungeKutta):
            return replay_explicit(spec, spec.algorithm.tableau, record, u0, p, times)
        if isinstance(spec.algorithm, FBDF):
            return replay_bdf(spec, record, u0, p, times)
        return replay_implicit(spec, _reversible(spec, p), record, u0, times)

    def quadrature_nodes(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], rule: Literal["own", "gauss"] = "own"
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        spec, record = of_one_method(spec, record)
        # the stages of implicit methods are no quadrature of their order: those of a Rosenbrock method are not values
        # of the solution at all
        if rule == "gauss" or not isinstance(spec.algorithm, ExplicitRungeKutta):
            steps = _steps(spec, record, p)
            yield from gauss_nodes(record, steps.interpolant, steps.stages, steps.order // 2 + 1)
            return
        numbers = tableau_tensors(spec.algorithm.tableau, record.u.dtype, record.u.device)
        for row in range(record.dt.shape[0]):
            u, t, dt = record.u[row], record.t[row], record.dt[row]
            for i, state, time in stage_arguments(lambda u, t: as_batch(spec, u, t, p), numbers, u, t, dt):
                yield state, time, numbers.weights[i] * dt


def _pull_segment(
    spec: SolveSpec,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Tensor,
    of_carried: Tensor,
    first: bool,
) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    if isinstance(spec.algorithm, AutoSwitch) and record.implicit is not None:
        return pull_switched_segment(spec, spec.algorithm, record, p, times, grad, of_carried)
    spec, record = of_one_method(spec, record)
    if isinstance(spec.algorithm, ExplicitRungeKutta):
        of_u, parts = pullback(spec, spec.algorithm.tableau, record, p, times, grad)
        return of_u, of_carried, parts
    return pull_segment(spec, lambda leaves: _reversible(spec, leaves), record, p, times, grad, (of_carried, first))


@dataclass(frozen=True, eq=False)
class _Steps:
    """Recorded steps, to be computed again."""

    interpolant: Float[Tensor, "stages powers"]
    starts: Starts
    stages: StagesOf
    order: int


def _steps(spec: SolveSpec, record: StepRecord, p: Sequence[Tensor]) -> _Steps:
    if isinstance(spec.algorithm, AutoSwitch):
        both = SwitchedSteps(spec, record, SwitchingScheme(spec, spec.algorithm, p))
        return _Steps(both.interpolant, both.starts, both.stages, both.order)
    if isinstance(spec.algorithm, ExplicitRungeKutta):
        explicit = ExplicitScheme(spec, spec.algorithm.tableau, p)
        starts = Starts(record, explicit.advance)
        return _Steps(
            explicit.interpolant,
            starts,
            lambda row: explicit.stages(starts(row)[0], record.t[row], record.dt[row]),
            spec.algorithm.tableau.order,
        )
    if isinstance(spec.algorithm, FBDF):
        starts = Starts(record, lambda u, k1, t, dt: (u, k1))
        return _Steps(torch.eye(PAST).to(record.u), starts, History(record).stages, spec.algorithm.max_order)
    scheme = _reversible(spec, p)
    starts = Starts(record, scheme.advance)
    return _Steps(
        scheme.interpolant,
        starts,
        lambda row: scheme.stages(*recorded(starts, record, row)),
        scheme.error_order,
    )


_NEEDS_ALL_STATES = (
    "FBDF's steps are made of the states before them, so DiscreteAdjoint holds them all: leave its checkpoints out"
)


def _needs_fixed_steps(algorithm: Algorithm) -> str:
    return f"{algorithm.name} estimates no error, so it needs adaptive=False and dt"


def _reversible(
    spec: SolveSpec, p: Sequence[Tensor]
) -> EsdirkScheme | ImexScheme | RosenbrockScheme | SymplecticScheme:
    """Bind an implicit or symplectic method to a solve."""
    algorithm = spec.algorithm
    if isinstance(algorithm, DiagonallyImplicitRungeKutta):
        if algorithm.tableau.a_explicit and split(spec) is not None:
            return ImexScheme(spec, algorithm, p)
        return EsdirkScheme(spec, algorithm, p)
    if isinstance(algorithm, RosenbrockMethod):
        return RosenbrockScheme(spec, algorithm, p)
    if isinstance(algorithm, SymplecticMethod):
        reason = why_not_symplectic(spec, algorithm)
        if reason is not None:
            # other sensitivities solve a larger system with the same method, which is no longer partitioned
            raise EngineRefused(reason, fix="Use sensealg=DiscreteAdjoint(), which every method has.")
        return SymplecticScheme(spec, algorithm, p)
    raise TypeError(f"why_not was not asked: {algorithm.name} is not a method of the torch engine")
