"""Steps of symplectic methods, half by half, and their exact derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from ude.engines.base import SolveSpec
from ude.engines.torch.scheme import Cotangents, Trial
from ude.engines.work import Work
from ude.errors import InputError
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


def why_not_symplectic(spec: SolveSpec, algorithm: SymplecticMethod) -> str | None:
    """One sentence that says why a symplectic method cannot run the solve."""
    f = partition(spec)
    if f is None:
        return f"{algorithm.name} needs a SecondOrderODEProblem or a DynamicalODEProblem, whose halves it moves in turn"
    if algorithm.tableau.needs_second_order and not f.second_order:
        return f"{algorithm.name} keeps its order only where u' = v, so it needs a SecondOrderODEProblem"
    return None


class SymplecticScheme:
    """A symplectic method bound to a solve.

    The stages handed on are the mean slope of the step and, for the dense output alone, the derivatives at both ends.
    Calls of f are counted by the evaluations of its first half.
    """

    carries_derivative = False
    extra_stages = 2

    def __init__(self, spec: SolveSpec, algorithm: SymplecticMethod, p: Sequence[Tensor]) -> None:
        f = partition(spec)
        if f is None:
            raise TypeError(f"why_not was not asked: {why_not_symplectic(spec, algorithm)}")
        self.spec, self.work = spec, Work(spec, p)
        self.error_order = algorithm.tableau.order
        self.interpolant = spec.t0.new_tensor(_HERMITE)
        self.step_weights = spec.t0.new_ones(1, 1)
        self._f, self._algorithm = f, algorithm
        self._reuse = algorithm.tableau.ends_with_first_kick
        self._force: Tensor | None = None

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        force = k1[:, : self._f.sizes[0]] if self._reuse else None
        new, self._force = self._step(u, force, t, dt)
        return Trial(new, self._mean_slope(u, new, dt).unsqueeze(0), None)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        # only the force is ever read, by methods whose step ends with the force that the next begins with
        if not self._reuse or self._force is None:
            return torch.zeros_like(trial.u)
        return pad(self._force, (0, self._f.sizes[1]))

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Nothing is kept from step to step."""

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        end = torch.addcmul(u, dt.unsqueeze(-1), k[0])
        return torch.stack([k[0], self.work(u, t), self.work(end, t + dt)])

    def stages(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> Float[Tensor, "stages B n"]:
        new, _ = self._step(u, None, t, dt)
        return torch.stack([self._mean_slope(u, new, dt), self.work(u, t), self.work(new, t + dt)])

    def advance(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> tuple[Tensor, None]:
        """Take a recorded step again."""
        with torch.no_grad():
            new, _ = self._step(u, None, t, dt)
        return torch.where((dt != 0).unsqueeze(-1), new, u), None

    def pull_step(
        self, start: tuple[Tensor, Tensor | None, Tensor, Tensor], cotangents: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Compute a step again with a graph, and pull the cotangents of its end and of its stages back through it."""
        z, _, t, dt = start
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            new, _ = self._step(z, None, t, dt)
            outputs, grads = [new], [cotangents.u]
            if cotangents.stages is not None:
                slope = self._mean_slope(z, new, dt)
                outputs.append(torch.stack([slope, self.work(z, t), self.work(new, t + dt)]))
                grads.append(dt.unsqueeze(-1) * cotangents.stages)
        of_z, *parts = torch.autograd.grad(outputs, (z, *inputs), grads, allow_unused=True)
        u_bar = torch.where((dt != 0).unsqueeze(-1), of_z, cotangents.u)
        if cotangents.start is not None:
            u_bar = u_bar + cotangents.start
        return Cotangents(u_bar, cotangents.k1), parts

    def require_separable(self, state: Float[Tensor, "B n"]) -> None:
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
            moved = state.clone()
            moved[:, own] += 1.0
            for point in (state, moved):
                if self._depends(half, point, own, t):
                    raise InputError(
                        f"{self._algorithm.name} needs a separable problem",
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
        tableau = self._algorithm.tableau
        drifted = kicked = 0.0
        for a, b in zip(tableau.a, tableau.b, strict=True):
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
