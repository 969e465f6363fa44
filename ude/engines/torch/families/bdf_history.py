"""What a multistep method remembers of a trajectory, and the polynomials through it.

Times are counted from the start of the current step in units of its size: u_{n-j} lies at ``theta = -r_j`` with
``r_0 = 0``, and the new state at 1. Everything is computed entry by entry, so that a trajectory's numbers do not depend
on its neighbors.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import StepRecord
from ude.errors import EngineRefused
from ude.methods.bdf import HIGHEST_ORDER, leading_coefficient

#: States before u_n that are remembered; order 5 extrapolates from all of them.
PAST = HIGHEST_ORDER


def leading(like: Tensor) -> Float[Tensor, "orders"]:
    """``alpha_k`` of every order, zero in front for order 0."""
    return torch.tensor([float(leading_coefficient(k)) for k in range(HIGHEST_ORDER + 1)], dtype=like.dtype).to(like)


def distances(sizes: Float[Tensor, "past ..."], dt: Float[Tensor, "..."], count: Int[Tensor, "..."]) -> Tensor:
    """``r_0 ... r_past``: sizes of the steps before, of which `count` are real, in units of dt, added up.

    Where there was no step the distance grows by one, so that unused entries stay finite and different.
    """
    size = torch.where(dt == 0, 1.0, dt)
    r = [torch.zeros_like(dt)]
    for j in range(PAST):
        real = (count > j) & (sizes[j] != 0)
        r.append(r[-1] + torch.where(real, sizes[j] / size, 1.0))
    return torch.stack(r)


def newton_terms(states: Float[Tensor, "points B n"], r: Float[Tensor, "points B"]) -> Float[Tensor, "points B n"]:
    """Terms of Newton's polynomial at the end of the step: summed up to order k they extrapolate by degree k.

    Term j is ``(1 + r_0) ... (1 + r_{j-1}) u[0, -r_1, ..., -r_j]`` with the divided difference of u.
    """
    terms = [states[0]]
    table, growth = states, torch.ones_like(r[0])
    for j in range(1, len(states)):
        table = (table[:-1] - table[1:]) / (r[j:] - r[:-j]).unsqueeze(-1)
        growth = growth * (1 + r[j - 1])
        terms.append(growth.unsqueeze(-1) * table[0])
    return torch.stack(terms)


def dense_stages(
    terms: Float[Tensor, "points B n"], r: Float[Tensor, "points B"], order: Int[Tensor, "B"], new: Tensor, dt: Tensor
) -> Float[Tensor, "powers B n"]:
    """Coefficients k of ``u(t + theta dt) = u + dt sum_m k_m theta^m``, the polynomial through u_{n+1} ... u_{n+1-k}.

    With ``q_j = theta (theta + r_1) ... (theta + r_{j-1}) / ((1 + r_0) ... (1 + r_{j-1}))`` it is
    ``u_n + sum_{j<k} term_j q_j + (u_{n+1} - sum_{j<k} term_j) q_k``.
    """
    stages = new.new_zeros(PAST, *new.shape)
    powers = r.new_zeros(PAST + 1, len(order))
    powers[1] = 1.0
    reached = terms[0]
    for j in range(1, PAST + 1):
        if j > 1:
            lower = torch.cat([torch.zeros_like(powers[:1]), powers[:-1]])
            powers = (lower + r[j - 1] * powers) / (1 + r[j - 1])
        own = torch.where((order == j).unsqueeze(-1), new - reached, terms[j])
        own = torch.where((order >= j).unsqueeze(-1), own, 0.0)
        stages += powers[1:].unsqueeze(-1) * own
        reached = reached + terms[j]
    column = torch.where(dt == 0, 1.0, dt).unsqueeze(-1)
    return torch.where((dt == 0).unsqueeze(-1), 0.0, stages / column)


def base_weights(r: Float[Tensor, "points ..."], order: Int[Tensor, "..."]) -> Float[Tensor, "points ..."]:
    """Weights of ``u_n, u_{n-1}, ...`` in ``p(1) - p'(1)/alpha``, from which a step of the order starts."""
    order = order.clamp(min=1)  # 0 stands where a trajectory waits
    used = torch.arange(len(r), device=r.device).view(-1, *(1,) * order.ndim) <= order
    slope = torch.where(used, 1 / (1 + r), 0.0)
    weights = lagrange_weights(-r, used, torch.ones_like(r[0]))
    return weights * (1 - (slope.sum(0) - slope) / leading(r)[order])


def lagrange_weights(
    nodes: Float[Tensor, "points ..."], used: Bool[Tensor, "points ..."], theta: Float[Tensor, "..."]
) -> Float[Tensor, "points ..."]:
    """Weights of values at the used nodes in the polynomial through them, read at theta; zero for the others."""
    weights = used.to(nodes.dtype)
    for m in range(len(nodes)):
        apart = nodes - nodes[m]
        factor = (theta - nodes[m]) / torch.where(apart == 0, 1.0, apart)
        other = used[m].expand_as(apart).clone()
        other[m] = False
        weights = weights * torch.where(other, factor, 1.0)
    return weights


class History:
    """The states that recorded steps of a multistep method were made of."""

    def __init__(self, record: StepRecord) -> None:
        if record.order is None or record.kept is not None:
            raise EngineRefused(
                "the steps of a multistep method are made of the states before them, and these are not all held",
                fix="Use DiscreteAdjoint() without checkpoints.",
            )
        rows, lanes = record.dt.shape
        self.record, self.order = record, record.order
        self._lane = torch.arange(lanes, device=record.dt.device)
        number = torch.arange(rows, device=record.dt.device).unsqueeze(-1)
        moved = torch.where(record.dt != 0, number, -1)
        latest = moved.cummax(0).values if rows else moved
        #: The row of the step before, -1 for the first one; the last row is for what comes after the end.
        self.previous = torch.cat([torch.full_like(self._lane, -1).unsqueeze(0), latest])

    def rows(self, row: Int[Tensor, "..."], lane: Int[Tensor, "..."]) -> tuple[Tensor, Tensor]:
        """Rows whose starts are ``u_n, u_{n-1}, ...`` of the steps in `row` (points, ...), and how many lie before
        u_n; rows beyond are those of the first step."""
        found, count, here = [row], torch.zeros_like(row), row
        for _ in range(PAST):
            before = self.previous[here, lane]
            count = count + (before >= 0)
            here = torch.where(before >= 0, before, here)
            found.append(here)
        return torch.stack(found), torch.clamp(count, max=PAST)

    def step(self, row: int) -> tuple[Tensor, Tensor]:
        """Rows of ``u_n, u_{n-1}, ...`` (points, B) and distances r (points, B) of one row of steps."""
        return self.at(torch.full_like(self._lane, row), self._lane)

    def at(self, row: Tensor, lane: Tensor) -> tuple[Tensor, Tensor]:
        index, count = self.rows(row, lane)
        dt = self.record.dt
        return index, distances(dt[index[1:], lane], dt[row, lane], count)

    def states(self, index: Tensor) -> Float[Tensor, "points B n"]:
        return self.record.u[index, self._lane]

    def stages(self, row: int) -> Float[Tensor, "powers B n"]:
        """Coefficients of the dense output of a recorded step, see `dense_stages`."""
        index, r = self.step(row)
        record = self.record
        return dense_stages(newton_terms(self.states(index), r), r, self.order[row], record.u[row + 1], record.dt[row])
