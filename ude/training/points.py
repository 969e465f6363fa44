"""Where a model is looked at before anything is simulated: dense points along the smoothed trajectories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ude.training.collocation import Smoothing
from ude.training.data import Dataset


@dataclass(frozen=True, eq=False)
class Points:
    """Dense points along the smoothed trajectories: u and du (point, state), t (point,), and whose they are."""

    u: Tensor
    du: Tensor
    t: Tensor
    trajectory: Tensor

    @classmethod
    def along(cls, data: Dataset, smoothing: Smoothing, total: int = 200) -> Points:
        """About `total` points over all trajectories, at least two an interval of data, at most 4000.

        Points outside of the times at which every state was measured are left out where there are others.
        """
        number = max(total // len(data), 4)
        most = max(4000 // len(data), 4)
        parts: list[tuple[npt.NDArray[Any], ...]] = []
        inside = []
        for i, trajectory in enumerate(data.trajectories):
            t = np.linspace(trajectory.t[0], trajectory.t[-1], min(max(number, 2 * len(trajectory)), most))
            inside.append(smoothing.inside(i, t).all(axis=1))
            parts.append((*smoothing(i, t), t, np.full(len(t), i)))
        known = np.concatenate(inside)
        known |= known.sum() < 2
        u, du, times, rows = (torch.as_tensor(np.concatenate(part)[known]) for part in zip(*parts, strict=True))
        return cls(u, du, times, rows)
