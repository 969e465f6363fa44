"""The dense output of a whole solve as piecewise polynomials, to be read at any times without further stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import StepRecord
from ude.engines.torch.checkpoints import Starts
from ude.engines.torch.stages import extend, locate

#: Computes the stages of a recorded step again: row -> (stages, B, n).
StagesOf = Callable[[int], Float[Tensor, "stages B n"]]


class DenseOutput:
    """Reads ``u(t)`` at one time a trajectory: t (B,) -> (B, n), differentiable with respect to t.

    Holds ``powers`` coefficients a step, which is less than its stages.
    """

    def __init__(
        self,
        record: StepRecord,
        sign: Float[Tensor, "B"],
        interpolant: Float[Tensor, "stages powers"],
        starts: Starts,
        stages: StagesOf,
    ) -> None:
        rows = record.dt.shape[0]
        self._end = record.u[-1]
        self._sign = sign.unsqueeze(-1)
        self._lane = torch.arange(len(sign), device=sign.device)
        self._powers = torch.arange(1, interpolant.shape[1] + 1, dtype=sign.dtype, device=sign.device)
        self._t, self._dt = record.t[:-1].T.contiguous(), record.dt.T.contiguous()
        self._ends = (record.t[1:].T * self._sign).contiguous()
        u, coefficients = [], []
        for row in range(rows):
            u.append(starts(row)[0])
            size = record.dt[row].view(-1, 1, 1)
            part = size * torch.einsum("sp,sbn->bpn", interpolant, stages(row))
            # a trajectory that stands still moves nowhere, whatever its stages are worth
            coefficients.append(torch.where(size == 0, 0.0, part))
        self._rows = rows
        self._u = torch.stack(u, 1) if rows else self._end.unsqueeze(1)
        self._coefficients = torch.stack(coefficients, 1) if rows else None

    def __call__(self, t: Float[Tensor, "B"]) -> Float[Tensor, "B n"]:
        if self._coefficients is None:
            return self._end
        asked = (t.detach().unsqueeze(-1) * self._sign).contiguous()
        row = torch.searchsorted(self._ends, asked).squeeze(-1).clamp(max=self._rows - 1)
        start, size = self._t[self._lane, row], self._dt[self._lane, row]
        theta = (t - start) / torch.where(size == 0, 1.0, size)
        powers = (theta.unsqueeze(-1) ** self._powers).unsqueeze(1)
        return torch.baddbmm(
            self._u[self._lane, row].unsqueeze(1), powers, self._coefficients[self._lane, row]
        ).squeeze(1)


def read_dense(
    record: StepRecord,
    times: Float[Tensor, "B T"],
    sign: Float[Tensor, "B"],
    interpolant: Float[Tensor, "stages powers"],
    starts: Starts,
    stages: StagesOf,
) -> Float[Tensor, "B T n"]:
    """Evaluate the continuous extension at `times`, which may be in any order."""
    rows, (batch, states) = record.dt.shape[0], record.u.shape[1:]
    if rows == 0:
        return record.u[0].unsqueeze(1).expand(batch, times.shape[1], states).clone()
    row, theta = locate(record.t, record.dt, times, sign)
    row = row.clamp(max=rows - 1)
    # reads at the ends of a step are its states, and need no stage
    nearest = row + (theta == 1.0)
    if record.kept is None:
        values = record.u.transpose(0, 1).gather(1, nearest.unsqueeze(-1).expand(-1, -1, states))
    else:
        values = record.u.new_empty(batch, times.shape[1], states)
        for i in nearest.unique().tolist():
            lane, save = (nearest == i).nonzero(as_tuple=True)
            values[lane, save] = starts(i)[0][lane]
    inside = (theta != 0.0) & (theta != 1.0)
    for i in row[inside].unique().tolist():
        lane, save = (inside & (row == i)).nonzero(as_tuple=True)
        k = stages(i)[:, lane].transpose(0, 1)
        values[lane, save] = extend(interpolant, starts(i)[0][lane], record.dt[i, lane], theta[lane, save], k)
    return values


@lru_cache(maxsize=16)
def gauss_rule(count: int) -> tuple[tuple[float, float], ...]:
    """Nodes and weights of Gauss's rule on [0, 1]; it has order 2 count."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple((float(0.5 + 0.5 * node), float(0.5 * weight)) for node, weight in zip(nodes, weights, strict=True))


def gauss_nodes(
    record: StepRecord, interpolant: Float[Tensor, "stages powers"], stages: StagesOf, count: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (state, time, weight) of Gauss's rule on the dense output of every step."""
    for row in range(record.dt.shape[0]):
        u, t, dt = record.u[row], record.t[row], record.dt[row]
        k = stages(row).transpose(0, 1)
        for node, weight in gauss_rule(count):
            theta = torch.full_like(dt, node)
            yield extend(interpolant, u, dt, theta, k), t + theta * dt, weight * dt
