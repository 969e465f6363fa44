"""Reads of the dense output by the step that they fall into, for the reverse sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from ude.engines.base import SolveSpec, StepRecord
from ude.engines.torch.stages import locate


class DenseReads:
    """DenseReads of the dense output, sorted by the step that they fall into."""

    def __init__(self, spec: SolveSpec, record: StepRecord, times: Tensor, grad: Tensor) -> None:
        rows = record.dt.shape[0]
        row, theta = locate(record.t, record.dt, times, spec.sign)
        flat = row.clamp(max=rows - 1).reshape(-1)
        order = flat.argsort(stable=True)
        self.bounds = torch.searchsorted(flat[order], torch.arange(rows + 1, device=order.device)).tolist()
        self.lane = order // times.shape[1]
        self.order = order
        self.theta = theta.reshape(-1)[order]
        self.grad = grad.reshape(-1, grad.shape[-1])[order]
        # reads at the very end of a step, as of every saved step, are the new state and need no further stage
        self.at_end = (self.theta == 1.0).tolist()

    def of(self, row: int) -> tuple[slice, bool] | None:
        """Return where a step's reads lie and whether all are of its end; None when it has none."""
        low, high = self.bounds[row], self.bounds[row + 1]
        return (slice(low, high), all(self.at_end[low:high])) if low < high else None
