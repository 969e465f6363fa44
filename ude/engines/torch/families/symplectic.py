"""Steps of symplectic methods, half by half, and their exact derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ude.engines.base import SolveSpec
from ude.engines.torch.checkpoints import Start
from ude.engines.torch.one_step import OneStepScheme, StepStart, TrackedStep
from ude.engines.torch.scheme import Trial, why_not_adaptive
from ude.errors import EngineRefused, InputError
from ude.methods import SymplecticMethod
from ude.problems.dynamical import DynamicalODEFunction
from ude.problems.function import innermost
from ude.problems.ode import FlatRightHandSide

# u + dt (b_1(theta) (u_next - u)/dt + b_2(theta) f + b_3(theta) f_next): the cubic Hermite interpolant
_HERMITE = ((0.0, 3.0, -2.0), (1.0, -2.0, 1.0), (0.0, -1.0, 1.0))


def partition(spec: SolveSpec) -> DynamicalODEFunction | None:
    """The partitioned right-hand side of a solve, if it has one."""
    f = innermost(spec.f.f) if isinstance(spec.f, FlatRightHandSide) and spec.mass is None else None
    return f if isinstance(f, DynamicalODEFunction) else None


class SymplecticScheme(OneStepScheme):
    """A symplectic method bound to a solve.

    The stages handed on are the mean slope of the step and, for the dense output alone, the derivatives at both ends.
    Calls of f are counted by the evaluations of its first half.
    """

    extra_stages = 2

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        f, reason = partition(spec), self._needs_partition(spec)
        if f is None or reason is not None:
            # other sensitivities solve a larger system with the same method, which is no longer partitioned
            raise EngineRefused(reason or "", fix="Use sensealg=DiscreteAdjoint(), which every method has.")
        self._tableau = cast(SymplecticMethod, spec.algorithm).tableau
        self.error_order = self.order = self._tableau.order
        self.interpolant = spec.t0.new_tensor(_HERMITE)
        self.step_weights = spec.t0.new_ones(1, 1)
        self._f = f
        self._reuse = self._tableau.ends_with_first_kick
        self._force: Tensor | None = None

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, SymplecticMethod)

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        return cls._needs_partition(spec) or why_not_adaptive(spec, estimates_error=False)

    @staticmethod
    def _needs_partition(spec: SolveSpec) -> str | None:
        f, name = partition(spec), spec.algorithm.name
        if f is None:
            return f"{name} needs a SecondOrderODEProblem or a DynamicalODEProblem, whose halves it moves in turn"
        if cast(SymplecticMethod, spec.algorithm).tableau.needs_second_order and not f.second_order:
            return f"{name} keeps its order only where u' = v, so it needs a SecondOrderODEProblem"
        return None

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        force = k1[:, : self._f.sizes[0]] if self._reuse else None
        new, self._force = self._step(u, force, t, dt)
        return Trial(new, self._mean_slope(u, new, dt).unsqueeze(0), None)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        # only the force is ever read, by methods whose step ends with the force that the next begins with
        if not self._reuse or self._force is None:
            return torch.zeros_like(trial.u)
        return pad(self._force, (0, self._f.sizes[1]))

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        end = torch.addcmul(u, dt.unsqueeze(-1), k[0])
        return torch.stack([k[0], self.work(u, t), self.work(end, t + dt)])

    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        u, _, t, dt = start
        new, _ = self._step(u, None, t, dt)
        return torch.stack([self._mean_slope(u, new, dt), self.work(u, t), self.work(new, t + dt)])

    def advance(self, start: StepStart) -> Start:
        u, _, t, dt = start
        with torch.no_grad():
            new, _ = self._step(u, None, t, dt)
        return torch.where((dt != 0).unsqueeze(-1), new, u), None

    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        u, _, t, dt = start
        new, _ = self._step(u, None, t, dt)
        if not dense:
            return None, new, None
        return torch.stack([self._mean_slope(u, new, dt), self.work(u, t), self.work(new, t + dt)]), new, None

    def check_start(self, u0: Float[Tensor, "B n"]) -> None:
        """Refuse halves that depend on their own variable, for which these methods would silently fall to order 1.

        Raises:
            InputError: v' depends on v, or u' on u.
        """
        count, t = self._f.sizes[0], self.spec.t0
        names = ("u''", "u'") if self._f.second_order else ("v'", "v")
        halves = [(0, slice(0, count), *names)]
        if not self._f.second_order:
            halves.append((1, slice(count, None), "u'", "u"))
        for half, own, name, variable in halves:
            # at the start and beside it: a drag of v|v| has no slope at rest
            moved = u0.clone()
            moved[:, own] += 1.0
            for point in (u0, moved):
                if self._depends(half, point, own, t):
                    raise InputError(
                        f"{self.spec.algorithm.name} needs a separable problem",
                        expected=f"{name} that does not depend on {variable}",
                        got="one that does",
                        fix="Use Tsit5() or another Runge-Kutta method.",
                    )

    def _depends(self, half: int, point: Tensor, own: slice, t: Tensor) -> bool:
        z = point.detach().requires_grad_()
        with torch.enable_grad():
            value = self._half(z, t, half)
        if not value.requires_grad:
            return False
        weights = torch.linspace(1.0, 2.0, value.shape[-1], dtype=z.dtype, device=z.device).expand_as(value)
        (slope,) = torch.autograd.grad(value, z, weights, allow_unused=True)
        # where f is not defined beside the start it says nothing
        return slope is not None and bool((torch.nan_to_num(slope[:, own], posinf=0.0, neginf=0.0) != 0).any())

    def _half(self, z: Tensor, t: Tensor, half: int) -> Tensor:
        self.work.calls += half == 0
        batch = self.spec.batch
        of_half = self.spec.f(z.view(*batch, z.shape[-1]), self.work.p, t.view(batch), half)  # type: ignore[call-arg]
        return of_half.reshape(z.shape[0], -1)

    def _step(self, z: Tensor, force: Tensor | None, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the new state and the last force; `force` is that at z, for methods that begin with a kick."""
        v, u = z.split(self._f.sizes, -1)
        column = dt.unsqueeze(-1)
        drifted = kicked = 0.0
        for a, b in zip(self._tableau.a, self._tableau.b, strict=True):
            if b:
                rate = v if self._f.second_order else self._half(torch.cat([v, u], -1), t + kicked * dt, 1)
                u = torch.addcmul(u, column, rate, value=float(b))
                drifted += float(b)
                force = None
            if a:
                if force is None:
                    force = self._half(torch.cat([v, u], -1), t + drifted * dt, 0)
                v = torch.addcmul(v, column, force, value=float(a))
                kicked += float(a)
        return torch.cat([v, u], -1), force

    @staticmethod
    def _mean_slope(u: Tensor, new: Tensor, dt: Tensor) -> Tensor:
        column = dt.unsqueeze(-1)
        return (new - u) / torch.where(column == 0, 1.0, column)
