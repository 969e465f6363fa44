"""Look for events in every accepted step, and locate them on its dense output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines.initialization import derivative
from ude.errors import InputError
from ude.events.callbacks import ContinuousCallback, DiscreteCallback, VectorContinuousCallback
from ude.events.progress import Progress
from ude.events.run import EventRun
from ude.events.times import rounding

# The dense output of a step is a polynomial of at most this degree, which one sample more than that determines.
_DEGREE = 10
_BISECTIONS = 60
# A state that an event has just set to zero is on neither side until this many units of rounding later.
_UNSETTLED = 64


class Watch:
    """Looks for sign changes of the conditions in every accepted step, and records where each trajectory's was.

    Attributes:
        needed: Whether the engine must call it after every step.
        low, high: Times between which the condition changed sign (B,), where `found`.
        found: Which trajectories had a sign change (B,).
        discrete: Where the condition of a discrete callback held at the end of the last step (B,).
    """

    def __init__(self, run: EventRun, state: Progress) -> None:
        self.run, self.state = run, state
        self.continuous = [
            (i, c) for i, c in enumerate(run.callbacks) if isinstance(c, (ContinuousCallback, VectorContinuousCallback))
        ]
        self.discretes = [c for c in run.callbacks if isinstance(c, DiscreteCallback)]
        self.counts_steps = any(observer.everystep for observer in state.observers)
        self.needed = bool(self.continuous or self.discretes or self.counts_steps)
        self._ends: list[Tensor] = []
        zeros = torch.zeros_like(state.t)
        self.low, self.high = zeros, zeros
        self.found = torch.zeros_like(state.codes, dtype=torch.bool)
        self.discrete = torch.zeros_like(self.found)
        if self.continuous:
            self._first_sides()

    def _values(self, callback: Any, u: Tensor, t: Tensor) -> Float[Tensor, "B k"]:
        with torch.no_grad():
            value = self.run.call(callback.condition, u, t)
        if (
            not isinstance(value, Tensor)
            or value.numel() % len(t)
            or value.shape[: len(self.run.spec.batch)] != torch.Size(self.run.spec.batch)
        ):
            got = str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                "a condition must return one number for each trajectory", expected=str(self.run.spec.batch), got=got
            )
        return value.reshape(len(t), -1)

    def _first_sides(self) -> None:
        for index, callback in self.continuous:
            if index not in self.state.side:
                self.state.side[index] = self._values(callback, self.state.u.detach(), self.state.t).sign()

    def steps(self) -> Float[Tensor, "B k"]:
        """Return the ends of the steps so far, NaN where a trajectory took none."""
        return torch.stack(self._ends, -1) if self._ends else self.low[:, None][:, :0]

    def __call__(self, t: Tensor, u: Tensor, t_next: Tensor, u_next: Tensor, moved: Tensor) -> Tensor:
        if self.counts_steps:
            self._ends.append(torch.where(moved, t_next, float("nan")))
        stop = torch.zeros_like(moved)
        if self.continuous:
            points = max(callback.interp_points for _, callback in self.continuous)
            thetas = [(i + 1) / points for i in range(points)]
            before = torch.zeros_like(t)
            du = derivative(self.run.spec, u, t, self.run.p)
            width = (t_next - t).unsqueeze(-1)
            bend = u_next - u - width * du
            for theta in thetas:
                # accurate enough to see on which side the state is; the event is located on the dense output
                at = u_next if theta == 1.0 else u + theta * width * du + theta**2 * bend
                when = t_next if theta == 1.0 else t + theta * (t_next - t)
                crossed = self._crossings(at, when, moved & ~stop)
                self.low = torch.where(crossed, t + before * (t_next - t), self.low)
                self.high = torch.where(crossed, when, self.high)
                before = torch.full_like(t, theta)
                stop = stop | crossed
            self.found = self.found | stop
        for callback in self.discretes:
            holds = self._values(callback, u_next, t_next)[:, 0].to(torch.bool) & moved & ~self.found
            self.discrete = self.discrete | holds
            stop = stop | holds
        return stop

    def _crossings(self, u: Tensor, t: Tensor, which: Tensor) -> Bool[Tensor, "B"]:
        """Find the trajectories that changed sides since the last evaluation, and update the sides."""
        crossed = torch.zeros_like(which)
        for index, callback in self.continuous:
            side = self._values(callback, u, t).sign()
            old = self.state.side[index]
            changed = (side != old) & (old != 0)
            if callback.direction:
                changed = changed & (old == -callback.direction)
            happened = changed.any(-1) & which
            crossed = crossed | happened
            # a trajectory with an event keeps its old side, from which the event is located
            keep = (~which | happened).unsqueeze(-1) | (side == 0)
            close = (t - self.state.since).abs() < _UNSETTLED * rounding(t, self.run.spec)
            keep = keep | (close.unsqueeze(-1) & (old == 0))
            self.state.side[index] = torch.where(keep, old, side)
        return crossed

    def locate(self, interpolate: Callable[[Tensor], Tensor], t_end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find each trajectory's earliest event inside its bracket.

        Returns:
            The time where the segment ends (the event, or t_end without one), the callback's index (-1 without), and
            the component of a vector condition.
        """
        end, fired = t_end.clone(), torch.full_like(self.state.codes, -1)
        component = torch.zeros_like(self.state.codes)
        if not bool(self.found.any()):
            return end, fired, component
        low, high = torch.where(self.found, self.low, t_end), torch.where(self.found, self.high, t_end)
        path = Path(interpolate, low, high)
        sign = torch.where(high >= low, 1.0, -1.0).to(low.dtype)
        for index, callback in self.continuous:
            old = self.state.side[index]
            for k in range(old.shape[1]):
                side = old[:, k]
                at_high = self._values(callback, path(torch.ones_like(low)), high)[:, k].sign()
                changed = self.found & (side != 0) & (at_high != side)
                if callback.direction:
                    changed = changed & (side == -callback.direction)
                if not bool(changed.any()):
                    continue
                theta = self._bisect(callback, k, path, side)
                when = low + theta * (high - low)
                earlier = changed & ((when * sign < end * sign) | (fired < 0))
                end, fired = torch.where(earlier, when, end), torch.where(earlier, index, fired)
                component = torch.where(earlier, k, component)
        return end, fired, component

    def _bisect(self, callback: Any, k: int, path: Path, side: Tensor) -> Float[Tensor, "B"]:
        left, right = torch.zeros_like(side), torch.ones_like(side)
        for _ in range(_BISECTIONS):
            middle = (left + right) / 2
            same = self._values(callback, path(middle), path.time(middle))[:, k].sign() == side
            left, right = torch.where(same, middle, left), torch.where(same, right, middle)
        return right


class Path:
    """The dense output between two times as one polynomial, so that a root search needs no further calls of f."""

    def __init__(self, interpolate: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        # Chebyshev points and barycentric weights (J.-P. Berrut & L. N. Trefethen, SIAM Review 46 (2004) 501)
        j = torch.arange(_DEGREE + 1, dtype=low.dtype, device=low.device)
        self.nodes = (1 - torch.cos(torch.pi * j / _DEGREE)) / 2
        self.weights = (-1.0) ** j
        self.weights[0] /= 2
        self.weights[-1] /= 2
        self.samples = interpolate(self.time(self.nodes.expand(len(low), -1)))

    def time(self, theta: Tensor) -> Tensor:
        low, high = (self.low, self.high) if theta.ndim == 1 else (self.low.unsqueeze(-1), self.high.unsqueeze(-1))
        return torch.where(theta == 1.0, high, low + theta * (high - low))

    def __call__(self, theta: Float[Tensor, "B"]) -> Float[Tensor, "B n"]:
        difference = theta.unsqueeze(-1) - self.nodes
        hit = difference == 0
        terms = self.weights / torch.where(hit, 1.0, difference)
        # on a node the formula is 0/0, and the value is the sample
        terms = torch.where(hit.any(-1, keepdim=True), hit.to(terms.dtype), terms)
        return (terms.unsqueeze(-1) * self.samples).sum(1) / terms.sum(-1, keepdim=True)


def component_of(value: Tensor, component: Tensor, count: int) -> Float[Tensor, "B"]:
    """Select one component of a condition for each of `count` trajectories."""
    flat = value.reshape(count, -1)
    return flat[:, 0] if flat.shape[1] == 1 else flat.gather(1, component.unsqueeze(-1)).squeeze(-1)
