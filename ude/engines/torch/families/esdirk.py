"""Steps of singly diagonally implicit Runge-Kutta methods, and their exact derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec, add, as_batch
from ude.engines.jacobian import FreeJacobian, Jacobian
from ude.engines.torch.lanes import TensorLanes, lanes_for
from ude.engines.torch.newton import Newton, TightNewton
from ude.engines.torch.scheme import Cotangents, Trial, gathered, renewed
from ude.engines.torch.stages import combine
from ude.engines.work import Work
from ude.methods import GMRES
from ude.methods.esdirk import DiagonallyImplicitRungeKutta, DiagonallyImplicitTableau

# A Jacobian serves the next step too while Newton's iteration contracts at least this fast with it.
_GOOD_RATE = 0.01
# A trajectory whose stages do not converge with a new Jacobian halves its step.
_SHRINK = 0.5
# By how much a guess of a stage may magnify errors of the stages that it is made of.
_MOST_AMPLIFICATION = 10.0


@dataclass(frozen=True, eq=False)
class EsdirkTensors:
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
def esdirk_tensors(tableau: DiagonallyImplicitTableau, dtype: torch.dtype, device: torch.device) -> EsdirkTensors:
    def tensor(row: Any) -> Tensor:
        return torch.tensor([float(x) for x in row], dtype=dtype, device=device)

    needed = [bool(weight) or any(row) for weight, row in zip(tableau.b, tableau.interpolant, strict=True)]
    for i in reversed(range(tableau.stages)):
        for j, entry in enumerate(tableau.a[i][:-1]):
            needed[j] = needed[j] or (needed[i] and bool(entry))
    c = tuple(float(x) for x in tableau.c)
    return EsdirkTensors(
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


class EsdirkScheme:
    """One of the ESDIRK methods bound to a solve.

    The derivative at the start of a step is the last stage of the step before as its equation gave it,
    ``k = z / (gamma dt)``. f evaluated at the new state would multiply the error of Newton's iteration by the
    stiffness. It is therefore part of what a step starts from, in the record and in the adjoint too.

    With a mass matrix ``M z = gamma dt f(base + z)`` gives k of the algebraic variables as well, as differences of
    their stages. These never enter later stages (M removes them), so they serve the dense output alone.
    """

    carries_derivative = True

    def __init__(self, spec: SolveSpec, algorithm: DiagonallyImplicitRungeKutta, p: Sequence[Tensor]) -> None:
        tableau = algorithm.tableau
        self.spec, self.algorithm = spec, algorithm
        self.work = Work(spec, p)
        self.numbers = esdirk_tensors(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = self.numbers.interpolant
        self.error_order = min(tableau.order, tableau.embedded_order) + 1 if tableau.b_error else tableau.order
        self._lanes = lanes_for(spec.t0, spec.t0.shape[0])
        self._jacobian: Jacobian | None = None
        self._wanted = torch.ones_like(spec.t0, dtype=torch.bool)
        self._fresh = torch.zeros_like(self._wanted)
        self._seen = torch.zeros_like(spec.t0)

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        numbers = self.numbers
        jacobian = self._current_jacobian(u, t)
        factors = self.work.factor(jacobian, numbers.gamma * dt)
        newton = Newton(
            self.work,
            factors,
            numbers.gamma * dt,
            self._scale(u),
            self._lanes,
            tolerance=self.algorithm.newton_tolerance,
            maxiters=self.algorithm.newton_maxiters,
        )
        estimate = self.spec.adaptive and numbers.b_error is not None
        k, end, _ = self._solve_stages(newton, (u, k1, t, dt), all_stages=estimate)
        error: Tensor | None = None
        if estimate and numbers.b_error is not None:
            # M leaves nothing of the algebraic variables: their error is what the constraints make of the others'
            error = factors.solve(self.work.times_mass(combine(numbers.b_error, k) * dt.unsqueeze(-1)))
        converged = self._lanes.tensor(newton.converged).to(torch.bool)
        self._seen = self._lanes.tensor(newton.rate)
        shrink = torch.where(self._fresh, _SHRINK, 1.0).to(dt.dtype)
        self._wanted = ~converged & ~self._fresh
        return Trial(end, k, error, converged, shrink)

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        return trial.k[self.numbers.end]

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> EsdirkScheme:
        taken = EsdirkScheme(spec, self.algorithm, p)
        taken.work.go_on(self.work)
        # a batch stays one, even of a single trajectory: its numbers are tensors
        taken._lanes = TensorLanes(spec.t0)
        taken._jacobian = gathered(taken.work, self._jacobian, index)
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

    def _scale(self, u: Tensor) -> Tensor:
        return u.abs() * self.spec.reltol + self.spec.abstol

    def _current_jacobian(self, u: Tensor, t: Tensor) -> Jacobian:
        if self._jacobian is None or bool(self._wanted.any()):
            self._jacobian = renewed(self.work, self._jacobian, self._wanted, u, t)
            self._fresh = self._fresh | self._wanted
        return self._jacobian

    def _solve_stages(
        self, newton: Newton | TightNewton, start: tuple[Tensor, Tensor, Tensor, Tensor], *, all_stages: bool
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the stages k, the new state, and the argument of every stage."""
        numbers, (u, k1, t, dt) = self.numbers, start
        count = len(numbers.a)
        k = u.new_zeros(count, *u.shape)
        k[0] = k1
        column = dt.unsqueeze(-1)
        step = numbers.gamma * column
        divisor = torch.where(step == 0, 1.0, step)
        arguments = [u]
        for i in range(1, count):
            if not (all_stages or numbers.needed[i]):
                arguments.append(u)
                continue
            base = torch.addcmul(u, column, combine(numbers.a[i], k[:i]))
            guess = step * combine(numbers.predictor[i], k[:i])
            z = newton.solve(base, t + numbers.c[i] * dt, guess)
            k[i] = z / divisor
            arguments.append(base + z)
        return k, arguments[numbers.end], arguments

    def _tight(self, start: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Solve the stages of a recorded step as exactly as rounding allows."""
        u, _, t, dt = start
        with torch.no_grad():
            newton = TightNewton(
                self.work,
                self.work.df_du(u, t),
                self.numbers.gamma * dt,
                self._scale(u),
                self._lanes,
            )
            k, _, arguments = self._solve_stages(newton, start, all_stages=False)
        return k, arguments

    def stages(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> Float[Tensor, "stages B n"]:
        return self._tight((u, _carried(k1), t, dt))[0]

    def converged_stages(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Stages of a recorded step, solved as exactly as rounding allows, and their arguments."""
        return self._tight((u, k1, t, dt))

    def advance(self, u: Tensor, k1: Tensor | None, t: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Take a recorded step again. Its stages are solved to rounding, not to the tolerance of the first time."""
        carried = _carried(k1)
        k, arguments = self._tight((u, carried, t, dt))
        moved = (dt != 0).unsqueeze(-1)
        end = self.numbers.end
        return torch.where(moved, arguments[end], u), torch.where(moved, k[end], carried)

    def pull_step(
        self, start: tuple[Tensor, Tensor | None, Tensor, Tensor], cotangents: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Reverse a step by the implicit function theorem.

        ``M k_i = f(x_i + gamma dt k_i)`` gives ``w_i = (M - gamma dt J_i)^-T kbar_i``, then ``xbar_i = J_i^T w_i`` and
        ``pbar += (df/dp)^T w_i`` with J_i at the converged stage.
        """
        numbers, (u, k1, t, dt) = self.numbers, start
        _, arguments = self._tight((u, _carried(k1), t, dt))
        column = dt.unsqueeze(-1)
        moved = column != 0
        own = numbers.b.view(-1, 1, 1) * cotangents.u
        k_bar = column * (own if cotangents.stages is None else own + cotangents.stages)
        k_bar[numbers.end] += torch.where(moved, cotangents.k1, 0.0)
        u_bar = cotangents.u if cotangents.start is None else cotangents.u + cotangents.start
        totals: list[Tensor | None] = [None] * len(inputs)
        for i in reversed(range(1, len(numbers.a))):
            if not numbers.needed[i]:
                continue
            x_bar, parts = self._pull_stage(arguments[i], t + numbers.c[i] * dt, numbers.gamma * dt, k_bar[i], inputs)
            u_bar = u_bar + x_bar
            k_bar[:i] += numbers.a[i].view(-1, 1, 1) * (column * x_bar)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        return Cotangents(u_bar, torch.where(moved, k_bar[0], cotangents.k1)), totals

    def _pull_stage(
        self, argument: Tensor, t: Tensor, step: Tensor, k_bar: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        x = argument.detach().requires_grad_()
        with torch.enable_grad():
            du = as_batch(self.spec, x, t, self.work.p)
        if not du.requires_grad:
            return torch.zeros_like(k_bar), [None] * len(inputs)
        matrix_free = isinstance(self.algorithm.linsolve, GMRES)
        jacobian = FreeJacobian(self.work, x, t) if matrix_free else self.work.of_state(du, x, t, keep=True)
        w = self.work.factor(jacobian, step, tight=True).solve(k_bar, transposed=True)
        # a trajectory that stands still has no cotangent here, whatever f is worth at its state
        w = torch.where((step != 0).unsqueeze(-1), w, 0.0)
        of_x, *parts = torch.autograd.grad(du, (x, *inputs), w, allow_unused=True)
        return (torch.zeros_like(k_bar) if of_x is None else of_x), parts


def _carried(k1: Tensor | None) -> Tensor:
    if k1 is None:
        raise TypeError("the record of an ESDIRK solve holds the derivative that each step started with")
    return k1
