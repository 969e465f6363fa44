"""What singly diagonally implicit methods share: tableaus as tensors, Newton's iteration and its Jacobians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.jacobian import Jacobian
from ude.engines.linear import Factors
from ude.engines.torch.lanes import TensorLanes, lanes_for
from ude.engines.torch.newton import Newton, TightNewton
from ude.engines.torch.one_step import OneStepScheme
from ude.engines.torch.scheme import why_not_adaptive
from ude.methods.esdirk import DiagonallyImplicitRungeKutta, DiagonallyImplicitTableau

# A Jacobian serves the next step too while Newton's iteration contracts at least this fast with it.
_GOOD_RATE = 0.01
# A trajectory whose stages do not converge with a new Jacobian halves its step.
_SHRINK = 0.5
# By how much a guess of a stage may magnify errors of the stages that it is made of.
_MOST_AMPLIFICATION = 10.0


@dataclass(frozen=True, eq=False)
class DiagonallyImplicitTensors:
    """A tableau as tensors; `a[i]` holds the i entries left of the diagonal, `predictor[i]` weights of earlier stages
    that guess stage i."""

    c: tuple[float, ...]
    a: tuple[Tensor, ...]
    predictor: tuple[Tensor, ...]
    b: Tensor
    b_error: Tensor | None
    interpolant: Float[Tensor, "stages powers"]
    gamma: float
    end: int
    #: Which stages the new state or the dense output need; the others serve the error estimate alone.
    needed: tuple[bool, ...]


@lru_cache(maxsize=64)
def tensors_of(
    tableau: DiagonallyImplicitTableau, dtype: torch.dtype, device: torch.device
) -> DiagonallyImplicitTensors:
    def tensor(row: Any) -> Tensor:
        return torch.tensor([float(x) for x in row], dtype=dtype, device=device)

    needed = [bool(weight) or any(row) for weight, row in zip(tableau.b, tableau.interpolant, strict=True)]
    for i in reversed(range(tableau.stages)):
        for j, entry in enumerate(tableau.a[i][:-1]):
            needed[j] = needed[j] or (needed[i] and bool(entry))
    c = tuple(float(x) for x in tableau.c)
    return DiagonallyImplicitTensors(
        c=c,
        a=tuple(tensor(row[:-1]) for row in tableau.a),
        predictor=tuple(tensor(_predictor(c, i)) for i in range(tableau.stages)),
        b=tensor(tableau.b),
        b_error=tensor(tableau.b_error) if tableau.b_error else None,
        interpolant=torch.stack([tensor(row) for row in tableau.interpolant]),
        gamma=float(tableau.gamma),
        end=tableau.end_stage,
        needed=tuple(needed),
    )


def _predictor(c: Sequence[float], stage: int) -> list[float]:
    """Weights of the earlier stages in the parabola through the three whose nodes lie nearest to c[stage], or in the
    straight line through two, where that extrapolates too far."""
    weights = [0.0] * stage
    chosen: list[int] = []
    for j in sorted(range(stage), key=lambda j: (abs(c[j] - c[stage]), -j)):
        if all(abs(c[j] - c[k]) > 1e-3 for k in chosen):
            chosen.append(j)
    # a straight line needs 5 to 10 % more calls of f on stiff chemistry, a cubic as many as the parabola
    for count in range(min(3, len(chosen)), 0, -1):
        found = _lagrange([c[j] for j in chosen[:count]], c[stage])
        if sum(map(abs, found)) <= _MOST_AMPLIFICATION:
            for j, weight in zip(chosen, found, strict=False):
                weights[j] = weight
            break
    return weights


def _lagrange(nodes: Sequence[float], x: float) -> list[float]:
    """Weights of the values at `nodes` in the polynomial through them, at x."""
    return [prod((x - other) / (node - other) for other in nodes if other != node) for node in nodes]


class DiagonallyImplicitScheme(OneStepScheme):
    """Solves stage after stage with one matrix ``M - gamma dt J``, whose Jacobian serves several steps."""

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        self.algorithm = cast(DiagonallyImplicitRungeKutta, spec.algorithm)
        self.numbers = tensors_of(self.algorithm.tableau, spec.t0.dtype, spec.t0.device)
        self._lanes = lanes_for(spec.t0, spec.t0.shape[0])
        self._jacobian: Jacobian | None = None
        # whose Jacobian is to be taken again, whose is of this step, and how fast Newton's iteration converged
        self._wanted = torch.ones_like(spec.t0, dtype=torch.bool)
        self._fresh = torch.zeros_like(self._wanted)
        self._seen = torch.zeros_like(spec.t0)

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, DiagonallyImplicitRungeKutta)

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        tableau = cast(DiagonallyImplicitRungeKutta, spec.algorithm).tableau
        return why_not_adaptive(spec, estimates_error=bool(tableau.b_error))

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Self:
        taken = super().gather(index, spec, p)
        # a batch stays one, even of a single trajectory: its numbers are tensors
        taken._lanes = TensorLanes(spec.t0)
        taken._jacobian = taken.work.gather(self._jacobian, index)
        taken._wanted, taken._fresh, taken._seen = self._wanted[index], self._fresh[index], self._seen[index]
        return taken

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        self._fresh = self._fresh & ~accepted
        self._wanted = self._wanted | (accepted & (self._seen > _GOOD_RATE))

    @property
    def jacobian(self) -> Tensor | None:
        """df/du (B, n, n) of this step, or of one before; None before the first, and where none is formed."""
        return self._jacobian if isinstance(self._jacobian, Tensor) else None

    def renew(self, lanes: Bool[Tensor, "B"]) -> None:
        """Forget the Jacobians of these trajectories, which come from elsewhere."""
        self._wanted, self._fresh = self._wanted | lanes, self._fresh & ~lanes

    def _newton(self, u: Tensor, t: Tensor, dt: Tensor) -> tuple[Newton, Factors]:
        """Newton's iteration for the stages of a step, and the factors of its matrix."""
        if self._jacobian is None or bool(self._wanted.any()):
            self._jacobian = self.work.renew(self._jacobian, self._wanted, u, t)
            self._fresh = self._fresh | self._wanted
        step = self.numbers.gamma * dt
        factors = self.work.factor(self._jacobian, step)
        tolerance, maxiters = self.algorithm.newton_tolerance, self.algorithm.newton_maxiters
        return Newton(
            self.work, factors, step, self._scale(u), self._lanes, tolerance=tolerance, maxiters=maxiters
        ), factors

    def _tight_newton(self, u: Tensor, t: Tensor, dt: Tensor) -> TightNewton:
        """Newton's iteration that solves the stages of a recorded step as exactly as rounding allows."""
        return TightNewton(self.work, self.work.df_du(u, t), self.numbers.gamma * dt, self._scale(u), self._lanes)

    def _judge(self, newton: Newton, dt: Tensor) -> tuple[Bool[Tensor, "B"], Float[Tensor, "B"]]:
        """Which trajectories solved all stages, and by how much the others change their step."""
        converged = self._lanes.tensor(newton.converged).to(torch.bool)
        self._seen = self._lanes.tensor(newton.rate)
        shrink = torch.where(self._fresh, _SHRINK, 1.0).to(dt.dtype)
        self._wanted = ~converged & ~self._fresh
        return converged, shrink

    def _scale(self, u: Tensor) -> Tensor:
        return u.abs() * self.spec.reltol + self.spec.abstol
