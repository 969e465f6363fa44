"""Steps of backward differentiation formulas: every trajectory with its own order, step and history."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import ForwardResult, LeafCotangents, SolveSpec, StepRecord
from ude.engines.linear import DenseFactors
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.compaction import CompactRecord, in_one_piece
from ude.engines.torch.dense import StagesOf
from ude.engines.torch.families.bdf_history import PAST, History, dense_stages, distances, leading, newton_terms
from ude.engines.torch.families.bdf_pullback import pullback_bdf, replay_bdf
from ude.engines.torch.lanes import BatchArithmetic, TensorLanes, lanes_for
from ude.engines.torch.newton import Newton
from ude.engines.torch.scheme import Cotangents, Scheme, Trial
from ude.engines.work import Work
from ude.methods.bdf import FBDF
from ude.methods.controller import FACTOR_GRID, SMALLEST_ERROR

# A Jacobian serves the next step too while Newton's iteration contracts at least this fast with it.
_GOOD_RATE = 0.2
# A trajectory whose equation is not solved with a new Jacobian halves its step.
_SHRINK = 0.5
_SAFETY = 0.9
_QMIN, _QMAX = 0.2, 10.0
# A step that was rejected is tried again with less than this of it.
_LESS = 0.9
# A step changes only when that gains so much, since the error of a formula with even steps is estimated best.
_WORTH = 1.2
# After so many rejections in a row the history is of no use: the step starts again at order 1.
_HOPELESS = 3


class BdfScheme(Scheme):
    """`FBDF` bound to a solve. All that belongs to a trajectory has the lanes as its last axis but the states'.

    Steps are accepted by the error of the order taken; `factor` then chooses order and step together.

    With a mass matrix a step solves ``M (u - base) = dt/alpha f(u)``: its algebraic equations hold at the new state;
    algebraic variables are extrapolated, and their errors estimated, like the others.
    """

    chooses_steps = True
    # the first step is of order 1
    error_order = 1

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        self.algorithm = cast(FBDF, spec.algorithm)
        self.order = self.algorithm.max_order
        self.interpolant = torch.eye(PAST, dtype=spec.t0.dtype, device=spec.t0.device)
        self._alpha = leading(spec.t0)
        self._orders: list[Tensor] = []
        self._width = len(spec.t0)
        self._select(torch.arange(self._width, device=spec.t0.device))
        self._lanes: BatchArithmetic = lanes_for(spec.t0, self._width)
        self._order = torch.ones_like(self._lane)
        self._steady = torch.zeros_like(self._lane)
        self._failures = torch.zeros_like(self._lane)
        self._count = torch.zeros_like(self._lane)
        self._sizes = spec.t0.new_zeros(PAST, self._width)
        self._past: Tensor | None = None
        self._jacobian: Tensor | None = None
        self._factors: DenseFactors | None = None
        self._factored_step = torch.full_like(spec.t0, float("nan"))
        self._wanted = torch.ones_like(spec.t0, dtype=torch.bool)
        self._fresh = torch.zeros_like(self._wanted)
        self._seen = torch.zeros_like(spec.t0)
        self._tried: tuple[Tensor, Tensor] | None = None
        # trajectories whose step is tried again with a new Jacobian have not failed yet
        self._solved = torch.ones_like(self._wanted)
        self._errors: Float[Tensor, "orders B"] | None = None

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, FBDF)

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        if spec.checkpoints == "all":
            return None
        return (
            f"{spec.algorithm.name}'s steps are made of the states before them, so DiscreteAdjoint holds them all: "
            "leave its checkpoints out"
        )

    def _select(self, lanes: Int[Tensor, "B"]) -> None:
        self._lane = lanes
        self._position = torch.arange(len(lanes), device=lanes.device)

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Self:
        # the copy adds the orders it takes to those of this scheme
        taken = copy(self)
        taken.spec, taken.work = spec, Work(spec, p)
        taken.work.go_on(self.work)
        taken._select(self._lane[index])
        # a batch stays one, even of a single trajectory: its numbers are tensors
        taken._lanes = TensorLanes(spec.t0)
        for name in ("order", "steady", "failures", "count", "factored_step", "wanted", "fresh", "seen", "solved"):
            setattr(taken, f"_{name}", getattr(self, f"_{name}")[index])
        taken._sizes = self._sizes[:, index]
        if self._past is not None:
            taken._past = self._past[:, index]
        if self._jacobian is not None:
            taken._jacobian = self._jacobian[index]
        if self._factors is not None:
            taken._factors = DenseFactors(self._factors.lu[index], self._factors.pivots[index])
        return taken

    def complete_record(self, result: ForwardResult) -> ForwardResult:
        """Add the order of every accepted step in the rows of the record; 0 where a trajectory stood still."""
        found = result.record
        record = in_one_piece(found) if isinstance(found, CompactRecord) else found
        nothing = torch.zeros(0, self._width, dtype=torch.int64, device=self._lane.device)
        orders = torch.stack(self._orders) if self._orders else nothing
        return replace(result, record=replace(record, order=orders))

    def starts(self, record: StepRecord) -> Starts:
        # all states are held, since the steps are made of those before them
        return Starts(record, lambda row, start: start)

    def stages_of(self, record: StepRecord, starts: Starts) -> StagesOf:
        return History(record).stages

    def pull(
        self,
        record: StepRecord,
        reads: tuple[Float[Tensor, "B T"], Float[Tensor, "B T n"]],
        leaves: LeafCotangents,
        carried: Float[Tensor, "B n"] | None = None,
        *,
        first: bool = True,
    ) -> Cotangents:
        zeros = torch.zeros_like(record.u[0])
        return Cotangents(pullback_bdf(self.work, record, reads, leaves), zeros if carried is None else carried)

    def replay(self, record: StepRecord, u0: Float[Tensor, "B n"], times: Float[Tensor, "B T"]) -> Tensor:
        return replay_bdf(self.work, record, u0, times)

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        moving = (dt != 0).unsqueeze(-1)
        past = self._before(u, k1, dt)
        r = distances(self._sizes, dt, self._count)
        terms = newton_terms(torch.cat([u.unsqueeze(0), past]), r)
        rates = 1 / (1 + r)
        predicted, slope, reach = [terms[0]], torch.zeros_like(u), torch.zeros_like(dt)
        slopes = [slope]
        for j in range(1, PAST + 1):
            predicted.append(predicted[-1] + terms[j])
            reach = reach + rates[j - 1]
            slope = slope + reach.unsqueeze(-1) * terms[j]
            slopes.append(slope)
        guesses = torch.stack(predicted)
        guess = torch.where(moving, self._of_order(guesses), u)
        alpha = self._alpha[self._order]
        step = dt / alpha
        change = torch.where(moving, self._of_order(torch.stack(slopes)) / alpha.unsqueeze(-1), 0.0)
        newton = Newton(
            self.work,
            self._current_factors(guess, t + dt, step),
            step,
            u.abs() * self.spec.reltol + self.spec.abstol,
            self._lanes,
            tolerance=self.algorithm.newton_tolerance,
            maxiters=self.algorithm.newton_maxiters,
        )
        base = guess - change
        new = base + newton.solve(base, t + dt, change)
        new = torch.where(moving, new, u)
        errors = self._error_constants(rates).unsqueeze(-1) * (new - guesses[1:])
        scale = torch.maximum(u.abs(), new.abs()) * self.spec.reltol + self.spec.abstol
        self._errors = self._norm(errors / scale, t)
        self._tried = u, dt
        converged = self._lanes.tensor(newton.converged).to(torch.bool)
        self._seen = self._lanes.tensor(newton.rate)
        shrink = torch.where(self._fresh, _SHRINK, 1.0).to(dt.dtype)
        self._wanted = ~converged & ~self._fresh
        self._solved = converged | self._fresh
        saved = self.spec.saveat is not None
        k = dense_stages(terms, r, self._order, new, dt) if saved else u.new_zeros(0, *u.shape)
        error = errors[self._order - 1, self._position] if self.spec.adaptive else None
        return Trial(new, k, error, converged, shrink)

    def _norm(self, errors: Float[Tensor, "orders B n"], t: Tensor) -> Float[Tensor, "orders B"]:
        """The norm of scaled errors by which the stepper judges that of the order taken."""
        own = self.spec.checks.internalnorm
        if own is not None:
            return torch.stack([own(error, t) for error in errors])
        result: Tensor = torch.linalg.vector_norm(errors, dim=-1) * errors.shape[-1] ** -0.5
        return result

    def _of_order(self, levels: Float[Tensor, "orders B n"]) -> Float[Tensor, "B n"]:
        return levels[self._order, self._position]

    def _before(self, u: Tensor, k1: Tensor, dt: Tensor) -> Float[Tensor, "past B n"]:
        """States before u. Before the first step stands an Euler step backwards, which only its prediction uses."""
        if self._past is None:
            self._past = u.expand(PAST, *u.shape)
        first = (self._count == 0).unsqueeze(-1)
        if not bool(first.any()):
            return self._past
        start = torch.where(first, torch.addcmul(u, dt.unsqueeze(-1), k1, value=-1.0), self._past[0])
        return torch.cat([start.unsqueeze(0), self._past[1:]])

    def _error_constants(self, rates: Float[Tensor, "points B"]) -> Float[Tensor, "orders B"]:
        """What ``u_{n+1} - p_k`` is multiplied with for the local error at order k.

        The larger of the residual of the formula and of the error of its interpolant (DASSL; K. E. Brenan,
        S. L. Campbell, L. R. Petzold, Numerical Solution of Initial-Value Problems in DAEs, 5.2.3).
        """
        constants, total = [], rates[0]
        for k in range(1, PAST + 1):
            total = total + rates[k]
            constants.append(torch.maximum((self._alpha[k] - total).abs(), rates[k]))
        return torch.stack(constants)

    def _current_factors(self, u: Tensor, t: Tensor, step: Tensor) -> DenseFactors:
        renewed = self._wanted
        if self._jacobian is None or bool(renewed.any()):
            new = self.work.jacobian(u, t)
            old = self._jacobian
            self._jacobian = new if old is None else torch.where(renewed.view(-1, 1, 1), new, old)
            self._fresh = self._fresh | renewed
        needed = (step != 0) & (renewed | (step != self._factored_step))
        if self._factors is None or bool(needed.all()):
            self._factors = self.work.factor_dense(self._jacobian, step)
        elif bool(needed.any()):
            some = self.work.factor_dense(self._jacobian[needed], step[needed])
            lu, pivots = self._factors.lu.clone(), self._factors.pivots.clone()
            lu[needed], pivots[needed] = some.lu, some.pivots
            self._factors = DenseFactors(lu, pivots)
        self._factored_step = torch.where(needed, step, self._factored_step)
        return self._factors

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        # no step but the first reads it
        return torch.zeros_like(trial.u)

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        if self._tried is None or self._past is None:
            raise TypeError("settle follows attempt")
        u, dt = self._tried
        row = torch.zeros(self._width, dtype=torch.int64, device=self._lane.device)
        row[self._lane] = torch.where(accepted, self._order, 0)
        self._orders.append(row)
        self._past = torch.where(accepted.unsqueeze(-1), torch.cat([u.unsqueeze(0), self._past[:-1]]), self._past)
        self._sizes = torch.where(accepted, torch.cat([dt.unsqueeze(0), self._sizes[:-1]]), self._sizes)
        self._count = torch.where(accepted, (self._count + 1).clamp(max=PAST), self._count)
        self._fresh = self._fresh & ~accepted
        self._wanted = self._wanted | (accepted & (self._seen > _GOOD_RATE))
        if not self.spec.adaptive:
            higher = torch.minimum((self._order + 1).clamp(max=self.algorithm.max_order), self._count)
            self._order = torch.where(accepted, higher, self._order)

    def factor(self, accept: Any, error: Any) -> Any:
        """Choose the order of the next step; return its size in units of this one, one a lane."""
        if self._errors is None:
            raise TypeError("factor follows attempt")
        accepted = self._lanes.tensor(accept).to(torch.bool)
        judged = torch.isfinite(self._lanes.tensor(error))
        orders = torch.arange(1, PAST + 1, device=accepted.device).unsqueeze(-1)
        order = self._order
        gain = self._errors.nan_to_num(nan=float("inf")).clamp(min=SMALLEST_ERROR) ** (-1 / (orders + 1))
        gain = _SAFETY * gain
        open_ = (orders - order).abs() <= 1
        # one more point than the order's own is needed to know what the next order would have done
        open_ = open_ & (orders <= self.algorithm.max_order) & (orders <= self._count)
        gain = torch.where(open_ | (orders == order), gain, 0.0)
        best = gain.max(0)
        own = gain.gather(0, (order - 1).unsqueeze(0)).squeeze(0)

        failed = ~accepted & self._solved
        self._steady = torch.where(accepted, self._steady + 1, torch.where(failed, 0, self._steady))
        self._failures = torch.where(accepted, 0, self._failures + failed)
        settled = self._steady >= order + 1
        worth = (best.values > _WORTH) | (best.values < 1.0)
        change = accepted & settled & worth
        less = torch.where(judged, own.clamp(max=_LESS), _QMIN)
        factor = torch.where(accepted, torch.where(change, best.values, 1.0), less)
        lower = gain.gather(0, (order - 2).clamp(min=0).unsqueeze(0)).squeeze(0)
        down = failed & (order > 1) & (lower > own)
        order = torch.where(down, order - 1, order)
        order = torch.where(failed & (self._failures >= _HOPELESS), 1, order)
        self._order = torch.where(change, best.indices + 1, order)
        self._steady = torch.where(change, 0, self._steady)
        return self._lanes.read((factor.clamp(_QMIN, _QMAX) / FACTOR_GRID).round() * FACTOR_GRID)
