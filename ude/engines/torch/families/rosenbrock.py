"""Steps of Rosenbrock methods, and their exact derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec, add, as_batch
from ude.engines.jacobian import Jacobian
from ude.engines.linear import Factors
from ude.engines.torch.checkpoints import Start
from ude.engines.torch.one_step import OneStepScheme, StepStart, TrackedStep, pull_through
from ude.engines.torch.scheme import Cotangents, Trial
from ude.engines.torch.stages import combine
from ude.methods.rosenbrock import RosenbrockMethod, RosenbrockTableau

# A trajectory whose iterative solver fails halves its step.
_SHRINK = 0.5


@dataclass(frozen=True, eq=False)
class RosenbrockTensors:
    """A tableau as tensors; `a[i]` and `c[i]` have i entries; `used[i]` says whether a row of a has any."""

    alpha: tuple[float, ...]
    d: tuple[float, ...]
    a: tuple[Tensor, ...]
    c: tuple[Tensor, ...]
    used: tuple[bool, ...]
    b: Tensor
    b_error: Tensor
    interpolant: Float[Tensor, "stages powers"]
    gamma: float


@lru_cache(maxsize=64)
def rosenbrock_tensors(tableau: RosenbrockTableau, dtype: torch.dtype, device: torch.device) -> RosenbrockTensors:
    def tensor(row: Any) -> Tensor:
        return torch.tensor([float(x) for x in row], dtype=dtype, device=device)

    return RosenbrockTensors(
        alpha=tuple(float(x) for x in tableau.alpha),
        d=tuple(float(x) for x in tableau.d),
        a=tuple(tensor(row) for row in tableau.a),
        c=tuple(tensor(row) for row in tableau.c),
        used=tuple(any(row) for row in tableau.a),
        b=tensor(tableau.b),
        b_error=tensor(tableau.b_error),
        interpolant=torch.stack([tensor(row) for row in tableau.interpolant]),
        gamma=float(tableau.gamma),
    )


@dataclass(frozen=True, eq=False)
class _Linear:
    """f and its derivatives at the start of a step."""

    du: Float[Tensor, "B n"]
    jacobian: Jacobian
    of_t: Float[Tensor, "B n"]


class RosenbrockScheme(OneStepScheme):
    """One of the Rosenbrock methods bound to a solve: one Jacobian and one factorization a step, no iteration.

    The equation of a stage is multiplied by ``gamma dt``, so that trajectories that stand still divide by nothing::

        (M - gamma dt J) U_i = gamma dt f(Y_i) + gamma M sum_j c_ij U_j + gamma dt^2 d_i f_t
    """

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        tableau = cast(RosenbrockMethod, spec.algorithm).tableau
        self.numbers = rosenbrock_tensors(tableau, spec.t0.dtype, spec.t0.device)
        self.interpolant = self.numbers.interpolant
        self.error_order = self.order = min(tableau.order, tableau.embedded_order) + 1
        self._linear: _Linear | None = None

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, RosenbrockMethod)

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        if self._linear is None:
            self._linear = _Linear(*self.work.with_time(u, t))
        factors = self.work.factor(self._linear.jacobian, self.numbers.gamma * dt)
        stages, _, failed = self._stages(self._linear, factors, u, t, dt)
        return Trial(
            u=u + combine(self.numbers.b, stages),
            k=_per_time(stages, dt),
            error=combine(self.numbers.b_error, stages) if self.spec.adaptive else None,
            converged=None if failed is None else ~failed,
            shrink=None if failed is None else torch.full_like(dt, _SHRINK),
        )

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        return trial.k[0]

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Self:
        taken = super().gather(index, spec, p)
        if self._linear is not None:
            linear = self._linear
            jacobian = taken.work.gather(linear.jacobian, index)
            taken._linear = None if jacobian is None else _Linear(linear.du[index], jacobian, linear.of_t[index])
        return taken

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        if bool(accepted.any()):
            self._linear = None

    @property
    def jacobian(self) -> Tensor | None:
        """df/du (B, n, n) of the step that was tried last; None after it was accepted, and where none is formed."""
        formed = None if self._linear is None else self._linear.jacobian
        return formed if isinstance(formed, Tensor) else None

    def renew(self, lanes: Bool[Tensor, "B"]) -> None:
        """Forget the Jacobians of these trajectories, which come from elsewhere."""
        self.settle(lanes)

    def _stages(
        self, linear: _Linear, factors: Factors, u: Tensor, t: Tensor, dt: Tensor
    ) -> tuple[Float[Tensor, "stages B n"], list[Tensor], Tensor | None]:
        """Return the stages U, the arguments of f, and which trajectories an iterative solver failed for."""
        numbers = self.numbers
        count = len(numbers.a)
        stages = u.new_empty(count, *u.shape)
        step = (numbers.gamma * dt).unsqueeze(-1)
        in_time = step * dt.unsqueeze(-1) * linear.of_t
        arguments = []
        failed: Tensor | None = None
        for i in range(count):
            argument = u + combine(numbers.a[i], stages[:i]) if numbers.used[i] else u
            arguments.append(argument)
            at_start = not numbers.used[i] and numbers.alpha[i] == 0
            du = linear.du if at_start else self.work(argument, t + numbers.alpha[i] * dt)
            right = torch.addcmul(numbers.d[i] * in_time, step, du)
            if i:
                earlier = self.work.times_mass(combine(numbers.c[i], stages[:i]))
                right = torch.add(right, earlier, alpha=numbers.gamma)
            stages[i] = factors.solve(right)
            if factors.failed is not None:
                failed = factors.failed if failed is None else failed | factors.failed
        return stages, arguments, failed

    def _take_again(self, start: StepStart) -> tuple[_Linear, Tensor, list[Tensor]]:
        """The linearization at the start of a recorded step, its stages U and the arguments of f."""
        u, _, t, dt = start
        with torch.no_grad():
            linear = _Linear(*self.work.with_time(u, t))
            factors = self.work.factor(linear.jacobian, self.numbers.gamma * dt)
            stages, arguments, _ = self._stages(linear, factors, u, t, dt)
        return linear, stages, arguments

    def stages(self, start: StepStart) -> Float[Tensor, "stages B n"]:
        return _per_time(self._take_again(start)[1], start[3])

    def advance(self, start: StepStart) -> Start:
        u, dt = start[0], start[3]
        new = u + combine(self.numbers.b, self._take_again(start)[1])
        return torch.where((dt != 0).unsqueeze(-1), new, u), None

    def replay_step(self, start: StepStart, *, dense: bool) -> TrackedStep:
        """The step with its Jacobian, factorization and solves in the graph; the matrix is formed even for GMRES."""
        spec, numbers, p, (u, _, t, dt) = self.spec, self.numbers, self.work.p, start
        time = t.detach().requires_grad_()
        jacobian, of_t = _linearize(as_batch(spec, u, time, p), u, time)
        step = (numbers.gamma * dt).unsqueeze(-1)
        unit = torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
        mass = unit if spec.mass is None else spec.mass.matrix
        # a trajectory that stands still solves with the identity, since M may be singular
        matrix = torch.where(step.unsqueeze(-1) == 0, unit, mass - step.unsqueeze(-1) * jacobian)
        lu, pivots = torch.linalg.lu_factor(matrix)
        stages: list[Tensor] = []
        for i in range(len(numbers.a)):
            argument = u + combine(numbers.a[i], torch.stack(stages)) if numbers.used[i] else u
            right = step * as_batch(spec, argument, t + numbers.alpha[i] * dt, p)
            right = right + numbers.d[i] * step * dt.unsqueeze(-1) * of_t
            if i:
                right = right + numbers.gamma * self.work.times_mass(combine(numbers.c[i], torch.stack(stages)))
            stages.append(torch.linalg.lu_solve(lu, pivots, right.unsqueeze(-1)).squeeze(-1))
        together = torch.stack(stages)
        end = torch.where((dt != 0).unsqueeze(-1), u + combine(numbers.b, together), u)
        return _per_time(together, dt), end, None

    def pull_step(
        self, start: StepStart, cotangents: Cotangents, inputs: Sequence[Tensor]
    ) -> tuple[Cotangents, Sequence[Tensor | None]]:
        """Reverse a step, the dependence of J and f_t on u and p included.

        With ``r_i`` the right-hand side of stage i: ``rbar_i = (M - gamma dt J)^-T Ubar_i``; f(Y_i) receives
        ``gamma dt rbar_i``, earlier stages ``gamma c_ij M^T rbar_i + a_ij Ybar_i``, and J ``gamma dt rbar_i U_i^T``,
        which is pulled to u and p through ``sum_i rbar_i^T J(u, p) U_i``.
        """
        numbers, (u, _, t, dt) = self.numbers, start
        # the stages as they were solved, and tightly what is pulled back through them
        linear, stages, arguments = self._take_again(start)
        factors = self.work.factor(linear.jacobian, numbers.gamma * dt, tight=True)
        moved = (dt != 0).unsqueeze(-1)
        step = (numbers.gamma * dt).unsqueeze(-1)
        bars = numbers.b.view(-1, 1, 1) * cotangents.u
        bars = bars if cotangents.stages is None else bars + cotangents.stages
        u_bar = cotangents.u if cotangents.start is None else cotangents.u + cotangents.start
        totals: list[Tensor | None] = [None] * len(inputs)
        rights = torch.empty_like(stages)
        for i in reversed(range(len(numbers.a))):
            # a trajectory that stands still has stages of size zero, which pull nothing
            right = torch.where(moved, factors.solve(bars[i], transposed=True), 0.0)
            rights[i] = right
            time = t + numbers.alpha[i] * dt
            y_bar, parts = pull_through(self._f(time), arguments[i], step * right, inputs)
            u_bar = u_bar + y_bar
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
            if i:
                carried = numbers.gamma * self.work.times_mass(right, transposed=True)
                bars[:i] += numbers.a[i].view(-1, 1, 1) * y_bar + numbers.c[i].view(-1, 1, 1) * carried
        of_u, parts = self._pull_linear(u, t, dt, stages, rights, inputs)
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        return Cotangents(u_bar + of_u, cotangents.k1), totals

    def _f(self, t: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: as_batch(self.spec, x, t, self.work.p)

    def _pull_linear(
        self, u: Tensor, t: Tensor, dt: Tensor, stages: Tensor, rights: Tensor, inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Gradient of ``gamma dt sum_i rbar_i^T J U_i + gamma dt^2 sum_i d_i rbar_i^T f_t`` by u and the leaves."""
        nothing = torch.zeros_like(u), [None] * len(inputs)
        x, time = u.detach().requires_grad_(), t.detach().requires_grad_()
        step = (self.numbers.gamma * dt).unsqueeze(-1)
        in_time = step * dt.unsqueeze(-1) * combine(rights.new_tensor(self.numbers.d), rights)
        products: list[Tensor] = []
        with torch.enable_grad():
            du = as_batch(self.spec, x, time, self.work.p)
            if not du.requires_grad:
                return nothing
            for right, stage in zip(rights, stages, strict=True):
                (row,) = torch.autograd.grad(du, (x,), step * right, create_graph=True, allow_unused=True)
                if row is not None and row.requires_grad:
                    products.append((row * stage).sum())
            (in_t,) = torch.autograd.grad(du, (time,), in_time, create_graph=True, allow_unused=True)
            if in_t is not None and in_t.requires_grad:
                products.append(in_t.sum())
            if not products:
                return nothing
            of_x, *parts = torch.autograd.grad(torch.stack(products).sum(), (x, *inputs), allow_unused=True)
        return (torch.zeros_like(u) if of_x is None else of_x), parts


def _per_time(stages: Tensor, dt: Tensor) -> Tensor:
    """Divide by dt, so that dense output reads the stages of every family alike; zero where nothing moved."""
    return stages / torch.where(dt == 0, 1.0, dt).unsqueeze(-1)


def _linearize(du: Tensor, u: Tensor, t: Tensor) -> tuple[Float[Tensor, "B n n"], Float[Tensor, "B n"]]:
    """df/du and df/dt with a graph, one component of f after another."""
    rows, slopes = [], []
    for i in range(du.shape[1]):
        of_u: Tensor | None = None
        of_t: Tensor | None = None
        if du.requires_grad:
            of_u, of_t = torch.autograd.grad(du[:, i].sum(), (u, t), create_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(u) if of_u is None else of_u)
        slopes.append(torch.zeros_like(t) if of_t is None else of_t)
    return torch.stack(rows, 1), torch.stack(slopes, 1)
