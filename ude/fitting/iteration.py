"""What a callback of a fit is told after every iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ude.models import Model


@dataclass(frozen=True, eq=False)
class Iteration:
    """What a callback is told: the loss is the best so far, and `model` is at that point.

    iteration, evaluations: of this stage. validation: NaN where it was not looked at. rate: of Adam, else NaN.
    steps: of the solver since the start. total: iterations of the whole fit.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> seen = []
    >>> def stop(iteration):
    ...     seen.append(iteration)
    ...     return iteration.loss < 1e-3  # True ends the stage
    >>> fit = ude.fit(model, data, stages="single shooting", callback=stop, holdout=0, progress=False)
    >>> len(seen) > 0 and seen[0].stage
    'single shooting'
    """

    stage: str
    iteration: int
    loss: float
    validation: float
    model: Model
    rate: float = math.nan
    evaluations: int = 0
    steps: int = 0
    total: int = 0


Callback = Callable[[Iteration], bool | None]
