"""What the segments of one solve have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ude.engines import Engine, SolveSpec
from ude.events.callbacks import Callback, PeriodicCallback, PositiveDomain, PresetTimeCallback
from ude.events.times import multiples, time_rows
from ude.problems.ode import FlatRightHandSide
from ude.sensitivity import SensitivityAlgorithm


@dataclass(frozen=True, eq=False)
class EventRun:
    """What the segments of one solve have in common.

    Args:
        spec: The whole solve.
        engine, sensealg: What runs and what differentiates every segment.
        p: The leaves of the parameters.
        tracked: Whether a gradient with respect to u0 or p may be asked for.
        callbacks: Single callbacks, in order.
        tstops: Times that steps must hit, a row for each trajectory; NaN is no time.
        max_events: Most events of all trajectories together.
    """

    spec: SolveSpec
    engine: Engine
    sensealg: SensitivityAlgorithm
    p: Sequence[Tensor]
    tracked: bool
    callbacks: tuple[Callback, ...]
    tstops: Float[Tensor, "B k"]
    max_events: int

    def call(self, function: Callable[..., Any], u: Tensor, t: Tensor, *more: Tensor) -> Any:
        """Call a user's function of (u, p, t, ...) with the shapes that its author expects."""
        batch, f = self.spec.batch, self.spec.f
        u, p = u.reshape(*batch, u.shape[-1]), None
        if isinstance(f, FlatRightHandSide):
            p = f.parameters(self.p)
            u = u if f.axes is None else f.axes.view(u)
        return function(u, p, t.reshape(batch), *(item.reshape(batch) for item in more))

    def project(self, values: Float[Tensor, "B T n"]) -> Float[Tensor, "B T n"]:
        """Project states that are returned to the user onto the domains of the solve."""
        for callback in self.callbacks:
            if isinstance(callback, PositiveDomain):
                values = callback.project(values)
        return values


def preset_times(callback: PresetTimeCallback | PeriodicCallback, spec: SolveSpec) -> Float[Tensor, "B k"]:
    """The times of a callback for every trajectory; NaN where a row is shorter."""
    if isinstance(callback, PeriodicCallback):
        return multiples(callback.every, spec.t0, spec.t1)[:, 1:]
    return time_rows("times of a callback", callback.times, spec.t0, spec.batch)
