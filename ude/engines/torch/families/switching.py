"""Steps of a method that switches: which trajectory takes the explicit and which the implicit one, and when it changes.

The state of the decision is one number a trajectory. While all trajectories use one method its steps are taken as if
there were no other; else both methods try a step of the whole batch in which the other's trajectories stand still.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import LeafCotangents, SolveSpec, StepRecord, as_batch
from ude.engines.torch.checkpoints import Start, Starts
from ude.engines.torch.dense_reads import DenseReads
from ude.engines.torch.families.esdirk import EsdirkScheme
from ude.engines.torch.families.explicit import ExplicitScheme
from ude.engines.torch.families.rosenbrock import RosenbrockScheme
from ude.engines.torch.lanes import lanes_for
from ude.engines.torch.one_step import RowScheme, TrackedStep, step_start
from ude.engines.torch.scheme import Cotangents, Part, Scheme, Trial
from ude.methods import AutoSwitch, ExplicitTableau
from ude.methods.switching import stability_size

# Two stages that differ by less than this part of the tolerance, or by rounding, tell nothing of an eigenvalue: steps
# that the stability of the method limits have errors, and so differences, as large as the tolerance.
TELLING = 1e-3
ROUNDINGS = 1e3
# While a trajectory has shown no stiff step, one in so many is looked at: the estimate costs a tenth of a step of a
# cheap f. Attempts are counted, of which all trajectories of a batch make the same number, so that each is looked at
# in the same steps alone and in any batch.
LOOK_EVERY = 5


class SwitchingScheme(RowScheme):
    """An `AutoSwitch` bound to a solve.

    Every row of its record is a step of one method, in which the trajectories of the other stand still. Dense output is
    read as polynomials in theta, whose coefficients stand for stages.

    Attributes:
        stiff: Which trajectories use the implicit method, one a lane (see `lanes`).
        switches: How often each changed its method.
    """

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__(spec, p)
        self.algorithm = algorithm = cast(AutoSwitch, spec.algorithm)
        stiff = replace(spec, algorithm=algorithm.stiff)
        family = EsdirkScheme if EsdirkScheme.serves(stiff) else RosenbrockScheme
        self.implicit: EsdirkScheme | RosenbrockScheme = family(stiff, p)
        self.explicit = ExplicitScheme(replace(spec, algorithm=algorithm.nonstiff), p)
        # one count of what both cost
        self.work = self.explicit.work = self.implicit.work
        self.carries_derivative = self.implicit.carries_derivative
        powers = max(self.explicit.interpolant.shape[1], self.implicit.interpolant.shape[1])
        self.interpolant = torch.eye(powers, dtype=spec.t0.dtype, device=spec.t0.device)
        self.order = max(self.explicit.order, self.implicit.order)
        size = stability_size(algorithm.nonstiff.tableau)
        self._bound, self._bound_of_norm = algorithm.nonstifftol * size, algorithm.stifftol * size
        self._twins = twin_weights(algorithm.nonstiff.tableau, spec.t0.dtype, spec.t0.device)
        self._lanes = lanes = lanes_for(spec.t0, spec.t0.shape[0])
        first = (
            torch.full_like(spec.t0, algorithm.stiffalgfirst, dtype=torch.bool) if spec.stiff is None else spec.stiff
        )
        zeros = lanes.read(torch.zeros_like(spec.t0))
        self.stiff = lanes.read(first)
        self.switches = zeros
        # stiff steps in a row as a positive number, others as a negative one; changes in a row at the first opportunity
        self._count, self._turns = zeros, zeros
        self._suspected = self._turned = False
        self._attempts = 0
        self._look()
        self.error_order: Any = self._order()
        self._trials: tuple[Trial | None, Trial | None] = (None, None)
        self._to_explicit: Any = None
        self._changed = False

    @classmethod
    def serves(cls, spec: SolveSpec) -> bool:
        return isinstance(spec.algorithm, AutoSwitch)

    @classmethod
    def why_not(cls, spec: SolveSpec) -> str | None:
        if spec.adaptive:
            return None
        return f"{spec.algorithm.name} chooses by the steps it takes, so it needs adaptive=True"

    def _look(self) -> None:
        """Which methods are in use."""
        self._any = self._lanes.any(self.stiff)
        self._all = self._any and not self._lanes.any(self._lanes.negate(self.stiff))

    def _order(self) -> Any:
        if self._any and not self._all:
            return self._lanes.where(self.stiff, float(self.implicit.error_order), float(self.explicit.error_order))
        return self.implicit.error_order if self._any else self.explicit.error_order

    def attempt(self, u: Tensor, k1: Tensor, t: Tensor, dt: Tensor) -> Trial:
        self._dt = dt
        self._attempts += 1
        self.error_order = self._order()
        if not self._any:
            trial = self.explicit.attempt(u, k1, t, dt)
            self._trials = trial, None
            parts = (Part(self.explicit, trial.k, None, False),)
            return Trial(trial.u, trial.k, trial.error, error_low=trial.error_low, parts=parts)
        if self._all:
            trial = self.implicit.attempt(u, k1, t, dt)
            self._trials = None, trial
            parts = (Part(self.implicit, trial.k, None, True),)
            return Trial(trial.u, trial.k, trial.error, trial.converged, trial.shrink, parts=parts)
        stiff, column = self.stiff, self.stiff.unsqueeze(-1)
        explicit = self.explicit.attempt(u, k1, t, torch.where(stiff, 0.0, dt))
        implicit = self.implicit.attempt(u, k1, t, torch.where(stiff, dt, 0.0))
        self._trials = explicit, implicit
        converged, shrink, low = implicit.converged, implicit.shrink, explicit.error_low
        return Trial(
            u=torch.where(column, implicit.u, explicit.u),
            k=explicit.k,
            error=torch.where(column, _error(implicit), _error(explicit)),
            converged=None if converged is None else converged | ~stiff,
            shrink=None if shrink is None else torch.where(stiff, shrink, 1.0),
            error_low=None if low is None else torch.where(column, 0.0, low),
            parts=(
                Part(self.explicit, explicit.k, ~stiff, False),
                Part(self.implicit, implicit.k, stiff, True),
            ),
        )

    def derivative_after(self, trial: Trial, t: Tensor) -> Tensor:
        explicit, implicit = self._trials
        if explicit is None or implicit is None:
            if explicit is not None:
                return self.explicit.derivative_after(explicit, t)
            return self.implicit.derivative_after(trial, t)
        column = self.stiff.unsqueeze(-1)
        of_implicit = self.implicit.derivative_after(implicit, t)
        return torch.where(column, of_implicit, self.explicit.derivative_after(explicit, t))

    def settle(self, accepted: Bool[Tensor, "B"]) -> None:
        """Count stiff steps of the trajectories that accepted, and change the method of those that had enough."""
        lanes = self._lanes
        self._changed = False
        looks = self._attempts % LOOK_EVERY == 0
        if not (looks or self._any or self._suspected):
            return
        accept = lanes.read(accepted)
        # the estimates read what the methods forget once they are told
        found = self._is_stiff() & accept
        if not (self._any or self._suspected or self._turned or lanes.any(found)):
            return
        if self._any:
            self.implicit.settle(accepted if self._all else accepted & self.stiff)
        looked = accept if looks else accept & (self.stiff | (self._count > 0.0))
        up, down = lanes.maximum(self._count, 0.0) + 1.0, lanes.minimum(self._count, 0.0) - 1.0
        # below zero only steps of the implicit method are counted
        down = lanes.where(self.stiff, down, 0.0)
        self._count = lanes.where(looked, lanes.where(found, up, down), self._count)
        self._suspected = lanes.any(self._count > 0.0)
        self._change(looked, found)

    def _change(self, looked: Any, found: Any) -> None:
        """Change the method of the trajectories that had enough stiff steps, or enough that were not."""
        lanes, options, stiff = self._lanes, self.algorithm, self.stiff
        to_implicit = lanes.negate(stiff) & (self._count > options.maxstiffstep) & looked
        to_explicit = stiff & (self._count < -options.maxnonstiffstep) & looked & (self._turns < options.switch_max)
        if self._turned:
            # a step that bears the method out
            confirmed = looked & (found == stiff) & (self._turns < options.switch_max)
            self._turns = lanes.where(confirmed, 0.0, self._turns)
        change = to_implicit | to_explicit
        self._changed = lanes.any(change)
        if not self._changed:
            return
        self._turns = lanes.where(change, self._turns + 1.0, self._turns)
        self._turned = True
        self.switches = lanes.where(change, self.switches + 1.0, self.switches)
        self._to_explicit = to_explicit
        shorter = lanes.where(to_explicit, 1.0 / options.dtfac, 1.0 + 0.0 * self._count)
        self._stretch = lanes.where(to_implicit, options.dtfac, shorter)
        self.stiff = (stiff | to_implicit) & lanes.negate(to_explicit)
        self._look()
        if lanes.any(to_implicit):
            self.implicit.renew(lanes.tensor(to_implicit).to(torch.bool))

    def gather(self, index: Int[Tensor, "k"], spec: SolveSpec, p: Sequence[Tensor]) -> Self:
        taken = super().gather(index, spec, p)
        taken.explicit = self.explicit.gather(index, taken.explicit.spec, p)
        taken.implicit = self.implicit.gather(index, taken.implicit.spec, p)
        taken.work = taken.explicit.work = taken.implicit.work
        taken._lanes = self._lanes
        taken.stiff, taken.switches = self.stiff[index], self.switches[index]
        taken._count, taken._turns = self._count[index], self._turns[index]
        taken._suspected, taken._turned = self._suspected, self._turned
        # the same attempts are looked at as in the whole batch, so that steps do not depend on who has left
        taken._attempts = self._attempts
        taken._look()
        return taken

    def switch(self, u: Tensor, k1: Tensor, t: Tensor) -> tuple[Tensor, Any] | None:
        if not self._changed:
            return None
        if self._lanes.any(self._to_explicit):
            # implicit methods carry another derivative than f(u), or none
            k1 = self._lanes.select(self._to_explicit, self.work(u, t), k1)
        return k1, self._stretch

    def _is_stiff(self) -> Any:
        """Whether the step of each trajectory was stiff, one a lane."""
        lanes = self._lanes
        explicit, implicit = self._trials
        of_explicit = of_implicit = None
        if explicit is not None:
            of_explicit = self._explicit_is_stiff(explicit)
        if implicit is not None and self.implicit.jacobian is not None:
            size = self.implicit.jacobian.abs()
            norm = torch.minimum(size.sum(-1).amax(-1), size.sum(-2).amax(-1)) * self._dt.abs()
            of_implicit = lanes.read(norm) > self._bound_of_norm
        if of_explicit is None or of_implicit is None:
            return of_implicit if of_explicit is None else of_explicit
        return lanes.where(self.stiff, of_implicit, of_explicit)

    def _explicit_is_stiff(self, trial: Trial) -> Any:
        """``|f(g) - f(h)| / |g - h| dt > tol S`` for the last two stages, where their difference is no noise.

        Norms are relative to the tolerance: without that a large smooth component hides a small stiff one, as in
        Robertson's problem.
        """
        lanes, spec = self._lanes, self.spec
        stages, (count, states) = self._twins.shape[1], trial.u.shape
        # f(g) - f(h), and (g - h) / dt
        pair = torch.mm(self._twins, trial.k[:stages].reshape(stages, -1)).view(2, count, states)
        scale = torch.addcmul(spec.abstol, trial.u.abs(), spec.reltol)
        of_f, of_u = torch.linalg.vector_norm(pair / scale, dim=-1).unbind(0)
        found = lanes.read(of_f > self._bound * of_u)
        if lanes.any(found):
            rounding = ROUNDINGS * torch.finfo(scale.dtype).eps * torch.linalg.vector_norm(trial.u / scale, dim=-1)
            tells = of_u * self._dt.abs() > (rounding + TELLING * states**0.5)
            found = found & lanes.read(tells)
        return found

    def of_record(self, record: StepRecord) -> tuple[Scheme, StepRecord]:
        # a solve in which only one of the methods took steps is a solve with that one
        if record.implicit is None:
            return self.explicit, replace(record, k1=None)
        return (self.implicit if all(record.implicit) else self), record

    def _method_of(self, record: StepRecord, row: int) -> ExplicitScheme | EsdirkScheme | RosenbrockScheme:
        return self.implicit if _implicit_rows(record)[row] else self.explicit

    def advance_row(self, record: StepRecord, row: int, start: Start) -> Start:
        method = self._method_of(record, row)
        if method is self.implicit:
            return method.advance_row(record, row, start)
        # what an ESDIRK method carries over stays with the trajectories that stand still here
        (u, k1), dt = start, record.dt[row]
        end, after = method.advance(step_start(record, row, (u, None)))
        if k1 is None or after is None:
            return end, None
        return end, torch.where((dt != 0).unsqueeze(-1), after, k1)

    def stages_of_row(self, record: StepRecord, row: int, start: Start) -> Float[Tensor, "powers B n"]:
        method = self._method_of(record, row)
        return self._coefficients(method, method.stages_of_row(record, row, start))

    def _coefficients(self, method: RowScheme, k: Float[Tensor, "stages B n"]) -> Float[Tensor, "powers B n"]:
        found = torch.einsum("sp,sbn->pbn", method.interpolant, k)
        return torch.cat([found, k.new_zeros(len(self.interpolant) - len(found), *k.shape[1:])])

    def pull_rows(
        self, record: StepRecord, rows: range, at: tuple[Starts, DenseReads], end: Cotangents, leaves: LeafCotangents
    ) -> Cotangents:
        """Pull cotangents back through the steps of each method as that one does.

        Where a trajectory changes to an ESDIRK method, the derivative that its first step starts with is f(u): its
        cotangent goes on to u and the leaves there.
        """
        starts, begins = at[0], _begins(record)
        for implicit, stretch in reversed(_stretches(record)):
            if not implicit:
                end = self.explicit.pull_rows(record, stretch, at, end, leaves)
                continue
            for row in reversed(stretch):
                end = self.implicit.pull_rows(record, range(row, row + 1), at, end, leaves)
                if self.carries_derivative and bool(begins[row].any()):
                    here = begins[row].unsqueeze(-1)
                    of_u = self.pull_derivative(starts(row)[0], record.t[row], torch.where(here, end.k1, 0.0), leaves)
                    end = Cotangents(end.u + of_u, torch.where(here, 0.0, end.k1))
        return end

    def pull_beginning(self, record: StepRecord, start: Cotangents, leaves: LeafCotangents) -> Cotangents:
        # done where implicit steps begin, be it the first row
        return start

    def replay_beginning(self, record: StepRecord, u: Float[Tensor, "B n"]) -> Tensor | None:
        # the first implicit step computes what it starts with
        return None

    def replay_row(self, record: StepRecord, row: int, start: Start, *, dense: bool) -> TrackedStep:
        method, (u, carried) = self._method_of(record, row), start
        if method is self.implicit and self.carries_derivative:
            begins = _begins(record)[row]
            if carried is None or bool(begins.any()):
                du = as_batch(self.spec, u, record.t[row], self.work.p)
                carried = du if carried is None else torch.where(begins.unsqueeze(-1), du, carried)
        k, end, after = method.replay_row(record, row, (u, carried), dense=dense)
        coefficients = self._coefficients(method, k) if dense and k is not None else None
        return coefficients, end, after if method is self.implicit else carried


def _error(trial: Trial) -> Tensor:
    if trial.error is None:
        raise TypeError("methods that switch are adaptive")
    return trial.error


@lru_cache(maxsize=64)
def twin_weights(tableau: ExplicitTableau, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2 stages"]:
    """Weights of the stages in ``f(g) - f(h)`` and in ``(g - h) / dt``, g and h the arguments of the last two."""
    count = tableau.stages
    weights = torch.zeros(2, count, dtype=dtype, device=device)
    weights[0, -1], weights[0, -2] = 1.0, -1.0
    last, before = tableau.a[-1], (*tableau.a[-2], 0.0)
    weights[1, : count - 1] = torch.tensor([float(x) - float(y) for x, y in zip(last, before, strict=True)])
    return weights


def _implicit_rows(record: StepRecord) -> tuple[bool, ...]:
    """Which rows are steps of the implicit method."""
    return (False,) * record.dt.shape[0] if record.implicit is None else record.implicit


def _stretches(record: StepRecord) -> list[tuple[bool, range]]:
    """Rows of one method one after another, in order."""
    found, first = [], 0
    for implicit, rows in groupby(_implicit_rows(record)):
        count = len(list(rows))
        found.append((implicit, range(first, first + count)))
        first += count
    return found


def _begins(record: StepRecord) -> Bool[Tensor, "rows B"]:
    """Where a trajectory takes the first of some implicit steps: none before, or an explicit one."""
    moved = record.dt != 0
    begins = torch.zeros_like(moved)
    continues = torch.zeros_like(moved[0]) if record.goes_on is None else record.goes_on
    for row, implicit in enumerate(_implicit_rows(record)):
        if implicit:
            begins[row] = moved[row] & ~continues
        continues = torch.where(moved[row], implicit, continues)
    return begins
