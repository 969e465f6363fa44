"""Accepted steps while a solve runs, and the values saved from them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import StepRecord
from ude.engines.torch.checkpoints import Keeper
from ude.engines.torch.scheme import Part, Scheme, Trial
from ude.engines.torch.stages import extend, locate

# Saves are evaluated from the stages of this many steps at a time, so that stages need not be kept for all.
_ROWS_AT_ONCE = 64


@dataclass
class StepRows:
    """Accepted steps so far, and the saves evaluated from them."""

    scheme: Scheme
    keeper: Keeper
    sign: Tensor
    saveat: Float[Tensor, "B T"] | None
    values: Float[Tensor, "B T n"] | None
    t: list[Tensor]
    dt: list[Tensor] = field(default_factory=list)
    u: list[Tensor] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    implicit: list[bool] = field(default_factory=list)
    reader: Scheme | None = None
    #: Whose step before the first row, in the batch before, was implicit (B,); None where none was.
    goes_on: Tensor | None = None

    def ended_implicit(self) -> Tensor | None:
        """Whose last step was implicit (B,); None where no step was."""
        last = self.goes_on
        if any(self.implicit):
            last = torch.zeros_like(self.dt[0], dtype=torch.bool) if last is None else last
            for dt, implicit in zip(self.dt, self.implicit, strict=True):
                last = torch.where(dt != 0, implicit, last)
        return last

    def add(self, end: Tensor, dt: Tensor, start: tuple[Tensor, Tensor], part: Part) -> None:
        """Add a row of steps from `start` (u, k1) of size dt that lead to the times `end`."""
        u, k1 = start
        if part.scheme is not self.reader:
            self.flush()
            self.reader = part.scheme
        self.t.append(end)
        self.dt.append(dt)
        self.implicit.append(part.implicit)
        self.keeper.add(u, k1 if self.scheme.carries_derivative else None)
        if self.saveat is not None:
            self.u.append(u)
            self.stages.append(part.k)
            if len(self.stages) == _ROWS_AT_ONCE:
                self.flush()

    def add_parts(self, trial: Trial, end: Tensor, dt: Tensor, start: tuple[Tensor, Tensor], k1: Tensor) -> None:
        """Add a row for each method that some trajectory took a step with; k1 is what the next step starts with."""
        now = self.t[-1]
        for part in trial.parts:
            if part.lanes is None:
                self.add(end, dt, start, part)
                continue
            moves = part.lanes & (dt != 0)
            if bool(moves.any()):
                now, column = torch.where(moves, end, now), moves.unsqueeze(-1)
                self.add(now, torch.where(moves, dt, 0.0), start, part)
                start = torch.where(column, trial.u, start[0]), torch.where(column, k1, start[1])

    def flush(self) -> None:
        """Evaluate the saves that fall into the steps whose stages are held, and let the stages go."""
        held, scheme = len(self.stages), self.reader
        if self.saveat is None or self.values is None or scheme is None or not held:
            return
        t, dt, u = torch.stack(self.t[-held - 1 :]), torch.stack(self.dt[-held:]), torch.stack(self.u)
        row, theta = locate(t, dt, self.saveat, self.sign)
        after_start = self.saveat * self.sign.unsqueeze(-1) >= (t[0] * self.sign).unsqueeze(-1)
        lane, save = ((row < held) & after_start).nonzero(as_tuple=True)
        picked, theta = row[lane, save], theta[lane, save]
        if scheme.extra_stages:
            # reads at the ends of a step are its states, for which no further stage is evaluated
            inside = (theta != 0.0) & (theta != 1.0)
            for i in picked[inside].unique().tolist():
                here = inside & (picked == i)
                k = scheme.complete(u[i], t[i], dt[i], self.stages[i])[:, lane[here]].transpose(0, 1)
                start = u[i, lane[here]], dt[i, lane[here]]
                self.values[lane[here], save[here]] = extend(scheme.interpolant, *start, theta[here], k)
            lane, save, picked, theta = lane[~inside], save[~inside], picked[~inside], theta[~inside]
            weights = scheme.step_weights
        else:
            weights = scheme.interpolant
        k = torch.stack(self.stages)[picked, : len(weights), lane]
        self.values[lane, save] = extend(weights, u[picked, lane], dt[picked, lane], theta, k)
        self.u.clear()
        self.stages.clear()

    def record(self, u_end: Float[Tensor, "B n"]) -> StepRecord:
        """The steps of a solve that ended at `u_end`."""
        dt = torch.stack(self.dt) if self.dt else u_end.new_empty(0, len(u_end))
        record = self.keeper.record(torch.stack(self.t), dt, u_end)
        if any(self.implicit):
            record = replace(record, implicit=tuple(self.implicit), goes_on=self.goes_on)
        return record


def every_step(record: StepRecord, accepted: Tensor) -> tuple[Tensor, Tensor]:
    """Collect each trajectory's own accepted points; shorter ones repeat their end."""
    rows, batch = record.dt.shape
    # rows where the trajectory moved come first, in order
    order = torch.argsort((record.dt == 0).to(torch.int8), dim=0, stable=True)
    count = int(accepted.max()) if rows else 0
    index = torch.cat([order[:count], torch.full((1, batch), rows, device=order.device)])
    position = torch.arange(count + 1, device=order.device).unsqueeze(-1)
    index = torch.where(position < accepted, index, rows)
    times = record.t.gather(0, index)
    values = record.u.gather(0, index.unsqueeze(-1).expand(-1, -1, record.u.shape[-1]))
    return times.T.contiguous(), values.transpose(0, 1).contiguous()
