"""Where a model is looked at before anything is simulated: dense points along the smoothed trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ude.fitting.data.dataset import Dataset
from ude.fitting.smoothing.smooth import Smoothing


@dataclass(frozen=True, eq=False)
class SmoothPoints:
    """Dense points along the smoothed trajectories: u and du (point, state), t (point,), and whose they are.

    variance: (point, state) of du, NaN where it is not known
    """

    u: Tensor
    du: Tensor
    t: Tensor
    trajectory: Tensor
    variance: Tensor | None = None

    @classmethod
    def along(cls, data: Dataset, smoothing: Smoothing, total: int = 200) -> SmoothPoints:
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
            u, du, variance = smoothing.along(i, t)
            parts.append((u, du, t, np.full(len(t), i), variance))
        known = np.concatenate(inside)
        known |= known.sum() < 2
        columns = zip(*parts, strict=True)
        return cls(*(torch.as_tensor(np.concatenate(part)[known]) for part in columns))

    def of(self, columns: Sequence[int]) -> SmoothPoints:
        """The same points, of some columns in another order."""
        variance = None if self.variance is None else self.variance[:, columns]
        return replace(self, u=self.u[:, columns], du=self.du[:, columns], variance=variance)
