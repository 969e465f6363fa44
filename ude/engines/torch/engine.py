"""The torch engine: any right-hand side, any device, per-trajectory steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import ForwardResult, LeafCotangents, PlainEngine, SolveSpec, StepRecord
from ude.engines.torch.compaction import CompactRecord, pull_compact, read_compact
from ude.engines.torch.dense import DenseOutput, read_dense
from ude.engines.torch.families.bdf import BdfScheme
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.families.explicit import ExplicitScheme
from ude.engines.torch.families.imex import ImexScheme
from ude.engines.torch.families.rosenbrock import RosenbrockScheme
from ude.engines.torch.families.switching import SwitchingScheme
from ude.engines.torch.families.symplectic import SymplecticScheme
from ude.engines.torch.scheme import Scheme
from ude.engines.torch.stepper import integrate

__all__ = ["TorchEngine"]

#: The families of methods; the first that serves a solve runs it.
FAMILIES: tuple[type[Scheme], ...] = (
    ExplicitScheme,
    SwitchingScheme,
    ImexScheme,
    EsdirkScheme,
    RosenbrockScheme,
    BdfScheme,
    SymplecticScheme,
)


class TorchEngine(PlainEngine):
    """Runs methods of all families as torch operations over the whole batch."""

    name = "torch"
    keeps_steps = True

    def why_not(self, spec: SolveSpec) -> str | None:
        family = _family(spec)
        return family.why_not(spec) if family else f"{spec.algorithm.name} is not a method of the torch engine"

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        with torch.no_grad():
            scheme = _bind(spec, p)
            scheme.check_start(u0)
            return scheme.complete_record(integrate(spec, scheme, u0))

    def interpolate(
        self, spec: SolveSpec, record: StepRecord | CompactRecord, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        if isinstance(record, CompactRecord):
            return read_compact(spec, record, p, times, self.interpolate)
        scheme, record = _bind(spec, p).of_record(record)
        with torch.no_grad():
            starts = scheme.starts(record)
            return read_dense(record, times, spec.sign, scheme.interpolant, starts, scheme.stages_of(record, starts))

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
        leaves = LeafCotangents(p)
        scheme, record = _bind(spec, leaves.live).of_record(record)
        return scheme.pull(record, (times, grad), leaves).u, leaves.result()

    def dense(self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor]) -> DenseOutput:
        scheme, record = _bind(spec, p).of_record(record)
        with torch.no_grad():
            starts = scheme.starts(record)
            return DenseOutput(record, spec.sign, scheme.interpolant, starts, scheme.stages_of(record, starts))

    def replay(
        self,
        spec: SolveSpec,
        record: StepRecord,
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
        times: Float[Tensor, "B T"],
    ) -> Float[Tensor, "B T n"]:
        scheme, record = _bind(spec, p).of_record(record)
        return scheme.replay(record, u0, times)

    def quadrature_nodes(
        self, spec: SolveSpec, record: StepRecord, p: Sequence[Tensor], rule: Literal["own", "gauss"] = "own"
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        scheme, record = _bind(spec, p).of_record(record)
        yield from scheme.quadrature_nodes(record, rule)


def _family(spec: SolveSpec) -> type[Scheme] | None:
    return next((family for family in FAMILIES if family.serves(spec)), None)


def _bind(spec: SolveSpec, p: Sequence[Tensor]) -> Scheme:
    """Bind the method of a solve to it and to the leaves p."""
    family = _family(spec)
    if family is None:
        raise TypeError(f"why_not was not asked: {spec.algorithm.name} is not a method of the torch engine")
    return family(spec, p)


def _pull_segment(
    spec: SolveSpec,
    record: StepRecord,
    p: Sequence[Tensor],
    times: Float[Tensor, "B T"],
    grad: Tensor,
    of_carried: Tensor,
    first: bool,
) -> tuple[Tensor, Tensor, Sequence[Tensor | None]]:
    leaves = LeafCotangents(p)
    start = _bind(spec, leaves.live).pull(record, (times, grad), leaves, of_carried, first=first)
    return start.u, start.k1, leaves.result()
