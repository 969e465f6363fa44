"""ESDIRK methods: their steps, and their exact derivative by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, add, as_batch
from ude.engines.jacobian import FreeJacobian
from ude.engines.linear import Factors
from ude.engines.torch.checkpoints import Start
from ude.engines.torch.families.diagonally_implicit import DiagonallyImplicitScheme
from ude.engines.torch.newton import Newton, TightNewton
from ude.engines.torch.one_step import StepStart, TrackedStep, pull_through, solve_with_graph
from ude.engines.torch.scheme import Cotangents, Trial
from ude.engines.torch.stages import combine
from ude.methods import GMRES


class EsdirkScheme(DiagonallyImplicitScheme):
    """One of the ESDIRK methods bound to a solve.

    The derivative at the start of a step is the last stage of the step before as its equation gave it,
    ``k = z / (gamma dt)``. f evaluated at the new state would multiply the error of Newton's iteration by the
    stiffness. It is therefore part of what a step starts from, in the record and in the adjoint too.

    With a mass matrix ``M z = gamma dt f(base + z)`` gives k of the algebraic variables as well, as differences of
    their stages. These never enter later stages (M removes them), so they serve the dense output alone.
    """

    carries_derivative = True

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        tableau = self.algorithm.tableau
        self.interpolant = self.numbers.interpolant
        self.error_order = min(tableau.order, tableau.embedded_order) + 1 if tableau.b_error else tableau.order
        self.order = self.error_order

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        numbers = self.numbers
        newton, factors = self._newton(u, t, dt)
        estimate = self.spec.adaptive and numbers.b_error is not None
        k, arguments = self._solve_stages(newton, (u, k1, t, dt), all_stages=estimate)
        error: Tensor | None = None
        if estimate and numbers.b_error is not None:
            # M leaves nothing of the algebraic variables: their error is what the constraints make of the others'
            error = factors.solve(self.work.times_mass(combine(numbers.b_error, k) * dt.unsqueeze(-1)))
        return Trial(arguments[numbers.end], k, error, *self._judge(newton, dt))

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        return trial.k[self.numbers.end]

    def _solve_stages(
        self, newton: Newton | TightNewton, start: StepStart, *, all_stages: bool
    ) -> tuple[Float[Tensor, "stages B n"], list[Tensor]]:
        """Return the stages k, and the argument of every stage; one of them is the new state."""
        numbers, (u, k1, t, dt) = self.numbers, start
        count = len(numbers.a)
        k = u.new_zeros(count, *u.shape)
        k[0] = _carried(k1)
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
        return k, arguments

    def _solve_again(self, start: StepStart) -> tuple[Float[Tensor, "stages B n"], list[Tensor]]:
        """Solve the stages of a recorded step, to rounding and not to the tolerance of the first time."""
        u, _, t, dt = start
        with torch.no_grad():
            return self._solve_stages(self._tight_newton(u, t, dt), start, all_stages=False)

    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        return self._solve_again(start)[0]

    def advance(self, start: StepStart) -> Start:
        u, k1, _, dt = start
        k, arguments = self._solve_again(start)
        moved = (dt != 0).unsqueeze(-1)
        end = self.numbers.end
        return torch.where(moved, arguments[end], u), torch.where(moved, k[end], _carried(k1))

    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        """The stages' equations ``M k = f(x + gamma dt k)`` are solved without a graph; Newton steps then have one."""
        u, k1, t, dt = start
        carried = _carried(k1)
        numbers, work = self.numbers, self.work
        solved, arguments = self._solve_again((u.detach(), carried.detach(), t, dt))
        column = dt.unsqueeze(-1)
        step = numbers.gamma * dt
        k = [carried]
        end = u
        for i in range(1, len(numbers.a)):
            if not numbers.needed[i]:
                k.append(torch.zeros_like(u))
                continue
            base = torch.addcmul(u, column, combine(numbers.a[i], torch.stack(k)))
            time = t + numbers.c[i] * dt
            with torch.no_grad():
                factors = work.factor(work.df_du(arguments[i], time), step, tight=True)

            def correction(
                stage: Tensor, base: Tensor = base, time: Tensor = time, factors: Factors = factors
            ) -> Tensor:
                du = as_batch(self.spec, torch.addcmul(base, step.unsqueeze(-1), stage), time, work.p)
                return factors.solve(work.times_mass(stage) - du)

            k.append(solve_with_graph(solved[i], correction))
            if i == numbers.end:
                end = torch.addcmul(base, step.unsqueeze(-1), k[i])
        moved = column != 0
        return torch.stack(k), torch.where(moved, end, u), torch.where(moved, k[numbers.end], carried)

    def pull_step(
        self, start: StepStart, end: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Reverse a step by the implicit function theorem.

        ``M k_i = f(x_i + gamma dt k_i)`` gives ``w_i = (M - gamma dt J_i)^-T kbar_i``, then ``xbar_i = J_i^T w_i`` and
        ``pbar += (df/dp)^T w_i`` with J_i at the converged stage.
        """
        numbers, (_, _, t, dt) = self.numbers, start
        _, arguments = self._solve_again(start)
        column = dt.unsqueeze(-1)
        moved = column != 0
        own = numbers.b.view(-1, 1, 1) * end.u
        k_bar = column * (own if end.stages is None else own + end.stages)
        k_bar[numbers.end] += torch.where(moved, end.k1, 0.0)
        u_bar = end.u if end.start is None else end.u + end.start
        totals: list[Tensor | None] = [None] * len(inputs)
        for i in reversed(range(1, len(numbers.a))):
            if not numbers.needed[i]:
                continue
            x_bar, parts = self._pull_stage(arguments[i], t + numbers.c[i] * dt, numbers.gamma * dt, k_bar[i], inputs)
            u_bar = u_bar + x_bar
            k_bar[:i] += numbers.a[i].view(-1, 1, 1) * (column * x_bar)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        return Cotangents(u_bar, torch.where(moved, k_bar[0], end.k1)), totals

    def _pull_stage(
        self, argument: Tensor, t: Tensor, step: Tensor, k_bar: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        def of_du(du: Tensor, x: Tensor) -> Tensor:
            matrix_free = isinstance(self.algorithm.linsolve, GMRES)
            jacobian = FreeJacobian(self.work, x, t) if matrix_free else self.work.of_state(du, x, t, keep=True)
            w = self.work.factor(jacobian, step, tight=True).solve(k_bar, transposed=True)
            # a trajectory that stands still has no cotangent here, whatever f is worth at its state
            return torch.where((step != 0).unsqueeze(-1), w, 0.0)

        return pull_through(lambda x: as_batch(self.spec, x, t, self.work.p), argument, of_du, inputs)


def _carried(k1: Tensor | None) -> Tensor:
    if k1 is None:
        raise TypeError("the record of an ESDIRK solve holds the derivative that each step started with")
    return k1
