"""What the legs of one solve have in common, and the times that callbacks name beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import Engine, SolveSpec
from ude.errors import InputError
from ude.events.callbacks import Callback, PeriodicCallback, PositiveDomain, PresetTimeCallback
from ude.problems.ode import FlatRightHandSide
from ude.sensitivity import SensitivityAlgorithm


@dataclass(frozen=True, eq=False)
class EventRun:
    """What the legs of a solve have in common."""

    spec: SolveSpec
    engine: Engine
    sensealg: SensitivityAlgorithm
    p: Sequence[Tensor]
    tracked: bool
    callbacks: tuple[Callback, ...]
    tstops: Float[Tensor, "B k"]
    max_events: int

    def parameters(self) -> Any:
        f = self.spec.f
        return f.parameters(self.p) if isinstance(f, FlatRightHandSide) else None

    def call(self, function: Callable[..., Any], u: Tensor, t: Tensor, *more: Tensor) -> Any:
        """Call a user's function of (u, p, t) in the shape that its author sees."""
        batch = self.spec.batch
        extra = [item.reshape(batch) for item in more]
        return function(u.reshape(*batch, u.shape[-1]), self.parameters(), t.reshape(batch), *extra)

    def project(self, values: Float[Tensor, "B T n"]) -> Float[Tensor, "B T n"]:
        """What is handed out of states that were read: nothing outside the domains of the solve."""
        for callback in self.callbacks:
            if isinstance(callback, PositiveDomain):
                values = callback.project(values)
        return values


def preset_times(callback: PresetTimeCallback | PeriodicCallback, spec: SolveSpec) -> Float[Tensor, "B k"]:
    """The callback's times for every trajectory; NaN where a row is shorter."""
    if isinstance(callback, PeriodicCallback):
        length = spec.t1 - spec.t0
        count = int(float(length.abs().max()) / callback.every + 1e-9)
        steps = torch.arange(1, count + 1, dtype=spec.t0.dtype, device=spec.t0.device) * callback.every
        return spec.t0.unsqueeze(-1) + length.sign().unsqueeze(-1) * steps
    times: Tensor = callback.times.to(spec.t0)
    if times.ndim == 1:
        return times.expand(len(spec.t0), -1)
    if tuple(times.shape[:-1]) != spec.batch:
        raise InputError(
            "preset times do not fit the batch",
            expected=f"(k,) or {(*spec.batch, 'k')}".replace("'", ""),
            got=str(tuple(times.shape)),
        )
    return times.reshape(len(spec.t0), -1)


def rounding(t: Tensor, spec: SolveSpec) -> Tensor:
    """A unit of rounding of times near t."""
    return torch.finfo(t.dtype).eps * torch.maximum(t.abs(), (spec.t1 - spec.t0).abs())
