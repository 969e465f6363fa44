"""Steps of additive Runge-Kutta methods, one half implicit and one explicit, and their exact derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, add, as_batch
from ude.engines.linear import Factors
from ude.engines.torch.checkpoints import Start
from ude.engines.torch.families.diagonally_implicit import DiagonallyImplicitScheme
from ude.engines.torch.newton import Newton, TightNewton
from ude.engines.torch.one_step import StepStart, TrackedStep, pull_through, solve_with_graph
from ude.engines.torch.scheme import Cotangents, Trial
from ude.engines.torch.stages import combine
from ude.engines.work import Work
from ude.methods.esdirk import DiagonallyImplicitRungeKutta, DiagonallyImplicitTableau
from ude.problems.ode import FlatRightHandSide
from ude.problems.split import SplitFunction


def split(spec: SolveSpec) -> SplitFunction | None:
    """The split right-hand side of a solve, if it has one."""
    f = spec.f.f if isinstance(spec.f, FlatRightHandSide) else None
    return f if isinstance(f, SplitFunction) else None


@dataclass(frozen=True, eq=False)
class _Part:
    """One part of a split right-hand side over leaves."""

    f: Any
    part: int

    def __call__(self, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
        du: Tensor = self.f(u, leaves, t, self.part)
        return du


class SplitWork(Work):
    """f1 over the batch with its Jacobian and linear systems, as Newton's iteration needs them; beside it f2."""

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(replace(spec, f=_Part(spec.f, 0)), p)
        self._second = replace(spec, f=_Part(spec.f, 1))

    def explicit(self, u: Tensor, t: Tensor) -> Float[Tensor, "B n"]:
        """f2, which is not counted."""
        return as_batch(self._second, u, t, self.p)

    def derivative(self, u: Tensor, t: Tensor) -> Float[Tensor, "B n"]:
        """u' = f1 + f2."""
        return self(u, t) + self.explicit(u, t)


@dataclass(frozen=True, eq=False)
class _Stages:
    """The parts of f at every stage, the arguments of the stages, and the new state."""

    implicit: Float[Tensor, "stages B n"]
    explicit: Float[Tensor, "stages B n"]
    arguments: list[Tensor]
    end: Float[Tensor, "B n"]


@lru_cache(maxsize=64)
def _explicit_rows(tableau: DiagonallyImplicitTableau, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Rows of the explicit half, and last the weights of the explicit stages in what the new state has beyond the last
    stage: ``b - a_explicit[end]``."""
    rows = [[float(x) for x in row] for row in tableau.a_explicit]
    last = rows[tableau.end_stage]
    beyond = [float(b) - a for b, a in zip(tableau.b, last + [0.0] * (tableau.stages - len(last)), strict=True)]
    return tuple(torch.tensor(row, dtype=dtype, device=device) for row in (*rows, beyond))


class ImexScheme(DiagonallyImplicitScheme):
    """One of the additive methods bound to a solve of a split problem.

    The dense output is made of the stages ``f1_i + f2_i`` and of f at the new state, which is evaluated only in steps
    inside which something is read. Unlike ESDIRK methods these carry no derivative over: the new state is no stage,
    since the explicit half moves it beyond the last one.
    """

    extra_stages = 1
    work: SplitWork

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        tableau = self.algorithm.tableau
        self.rows = _explicit_rows(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = spec.t0.new_tensor([[float(x) for x in row] for row in tableau.split_interpolant])
        self.step_weights = self.numbers.b.unsqueeze(-1)
        self.error_order = self.order = min(tableau.order, tableau.embedded_order) + 1

    def _work(self, spec: SolveSpec, p: Sequence[Tensor]) -> Work:
        return SplitWork(spec, p)

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        additive = super().serves(spec) and cast(DiagonallyImplicitRungeKutta, spec.algorithm).tableau.a_explicit
        return bool(additive) and split(spec) is not None

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        newton, factors = self._newton(u, t, dt)
        stages = self._solve_stages(newton, (u, None, t, dt))
        k = stages.implicit + stages.explicit
        error: Tensor | None = None
        if self.spec.adaptive and self.numbers.b_error is not None:
            error = factors.solve(combine(self.numbers.b_error, k) * dt.unsqueeze(-1))
        return Trial(stages.end, k, error, *self._judge(newton, dt))

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        # every step evaluates both parts at its start
        return torch.zeros_like(trial.u)

    def _solve_stages(self, newton: Newton | TightNewton, start: StepStart) -> _Stages:
        numbers, (u, _, t, dt) = self.numbers, start
        count = len(numbers.a)
        implicit, explicit = u.new_empty(count, *u.shape), u.new_empty(count, *u.shape)
        column = dt.unsqueeze(-1)
        step = numbers.gamma * column
        divisor = torch.where(step == 0, 1.0, step)
        implicit[0], explicit[0] = self.work(u, t), self.work.explicit(u, t)
        arguments = [u]
        for i in range(1, count):
            slope = combine(numbers.a[i], implicit[:i]) + combine(self.rows[i], explicit[:i])
            base = torch.addcmul(u, column, slope)
            time = t + numbers.c[i] * dt
            z = newton.solve(base, time, step * combine(numbers.predictor[i], implicit[:i]))
            arguments.append(base + z)
            implicit[i] = z / divisor
            explicit[i] = self.work.explicit(arguments[i], time)
        end = torch.addcmul(arguments[numbers.end], column, combine(self.rows[-1], explicit))
        return _Stages(implicit, explicit, arguments, end)

    def _solve_again(self, start: StepStart) -> _Stages:
        """Solve the stages of a recorded step, to rounding and not to the tolerance of the first time."""
        u, _, t, dt = start
        with torch.no_grad():
            return self._solve_stages(self._tight_newton(u, t, dt), start)

    def complete(self, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]) -> Tensor:
        end = torch.addcmul(u, dt.unsqueeze(-1), combine(self.numbers.b, k))
        return torch.cat([k, self.work.derivative(end, t + dt).unsqueeze(0)])

    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        found = self._solve_again(start)
        with torch.no_grad():
            at_end = self.work.derivative(found.end, start[2] + start[3])
        return torch.cat([found.implicit + found.explicit, at_end.unsqueeze(0)])

    def advance(self, start: StepStart) -> Start:
        return torch.where((start[3] != 0).unsqueeze(-1), self._solve_again(start).end, start[0]), None

    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        """Stages are solved without a graph; Newton steps from there have one."""
        numbers, work, (u, _, t, dt) = self.numbers, self.work, start
        found = self._solve_again((u.detach(), None, t, dt))
        column = dt.unsqueeze(-1)
        step = numbers.gamma * dt
        implicit, explicit = [work(u, t)], [work.explicit(u, t)]
        for i in range(1, len(numbers.a)):
            slope = combine(numbers.a[i], torch.stack(implicit)) + combine(self.rows[i], torch.stack(explicit))
            base = torch.addcmul(u, column, slope)
            time = t + numbers.c[i] * dt
            with torch.no_grad():
                factors = work.factor(work.df_du(found.arguments[i], time), step, tight=True)

            def correction(
                stage: Tensor, base: Tensor = base, time: Tensor = time, factors: Factors = factors
            ) -> Tensor:
                return factors.solve(stage - work(torch.addcmul(base, step.unsqueeze(-1), stage), time))

            stage = solve_with_graph(found.implicit[i], correction)
            implicit.append(stage)
            explicit.append(work.explicit(torch.addcmul(base, step.unsqueeze(-1), stage), time))
        k = torch.stack(implicit) + torch.stack(explicit)
        end = torch.where(column != 0, torch.addcmul(u, column, combine(numbers.b, k)), u)
        every = torch.cat([k, work.derivative(end, t + dt).unsqueeze(0)]) if dense else None
        return every, end, None

    def pull_step(
        self, start: StepStart, cotangents: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Reverse a step by the implicit function theorem.

        With ``Y_i = base_i + gamma dt f1_i``: ``ybar_i = (df2/du)^T f2bar_i``, ``w_i = (I - gamma dt J_i)^-T (f1bar_i +
        gamma dt ybar_i)``, and ``basebar_i = ybar_i + J_i^T w_i`` goes to u and, by the rows of both halves, to the
        parts of f at earlier stages.
        """
        numbers, (u, _, t, dt) = self.numbers, start
        found = self._solve_again(start)
        column = dt.unsqueeze(-1)
        moved = column != 0
        totals: list[Tensor | None] = [None] * len(inputs)
        of_end = cotangents.u
        u_bar = torch.zeros_like(u) if cotangents.start is None else cotangents.start
        of_stages = torch.zeros_like(found.implicit)
        if cotangents.stages is not None:
            of_stages = column * cotangents.stages[:-1]
            pulled, parts = pull_through(
                lambda x: self.work.derivative(x, t + dt), found.end, column * cotangents.stages[-1], inputs
            )
            of_end = of_end + torch.where(moved, pulled, 0.0)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        # u_next = u + dt sum b (f1 + f2), whatever Newton's iteration left of it
        u_bar = u_bar + of_end
        of_implicit = of_stages + column * numbers.b.view(-1, 1, 1) * of_end
        of_explicit = of_implicit.clone()
        for i in reversed(range(len(numbers.a))):
            bars = of_implicit[i], of_explicit[i]
            base_bar, parts = self._pull_stage(i, found.arguments[i], (t, dt), bars, inputs)
            u_bar = u_bar + torch.where(moved, base_bar, 0.0)
            of_implicit[:i] += numbers.a[i].view(-1, 1, 1) * (column * base_bar)
            of_explicit[:i] += self.rows[i].view(-1, 1, 1) * (column * base_bar)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        return Cotangents(u_bar, cotangents.k1), totals

    def _pull_stage(
        self,
        i: int,
        argument: Tensor,
        when: tuple[Tensor, Tensor],
        bars: tuple[Tensor, Tensor],
        inputs: Sequence[Tensor],
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        t, dt = when
        time = t + self.numbers.c[i] * dt
        y_bar, of_explicit = pull_through(lambda x: self.work.explicit(x, time), argument, bars[1], inputs)
        w = bars[0]
        if i:
            step = self.numbers.gamma * dt
            factors = self.work.factor(self.work.df_du(argument, time), step, tight=True)
            w = factors.solve(w + step.unsqueeze(-1) * y_bar, transposed=True)
            # a trajectory that stands still has no cotangent here, whatever f1 is worth at its state
            w = torch.where((dt != 0).unsqueeze(-1), w, 0.0)
        x_bar, of_implicit = pull_through(lambda x: self.work(x, time), argument, w, inputs)
        return y_bar + x_bar, [add(one, other) for one, other in zip(of_implicit, of_explicit, strict=True)]
