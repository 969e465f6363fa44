"""Events and interventions: what may happen to the state while it is integrated.

A condition and an affect are functions ``(u, p, t)`` of the same shapes as f: u ``(*batch, state)``, t ``(*batch)``.
An affect returns the new state for the whole batch; only the trajectories in which the event happened take it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ude.errors import InputError

Condition = Callable[[Tensor, Any, Tensor], Tensor]
Affect = Callable[[Tensor, Any, Tensor], Tensor]


def terminate(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """The affect that ends the trajectory: ``ContinuousCallback(condition, terminate)``. Its code is `Terminated`."""
    return u


@dataclass(frozen=True)
class Callback:
    """Base of all callbacks."""


@dataclass(frozen=True)
class ContinuousCallback(Callback):
    """Acts where ``condition(u, p, t)`` passes through zero; the time is located on the dense output.

    The gradient runs exactly through the event: through the time at which it happens, and through the jump.

    Args:
        condition: A smooth function, ``(*batch)``.
        affect: What happens at the event, or `terminate`.
        direction: 1 for passages from below, -1 from above, 0 for both.
        interp_points: In how many places of a step the condition is looked at; more find shorter excursions.

    >>> bounce = torch.tensor([1.0, -0.9], dtype=torch.float64)
    >>> ground = ContinuousCallback(lambda u, p, t: u[..., 0], lambda u, p, t: u * bounce, direction=-1)
    """

    condition: Condition
    affect: Affect
    direction: int = 0
    interp_points: int = 8

    def __post_init__(self) -> None:
        _check_direction(self.direction, self.interp_points)


@dataclass(frozen=True)
class VectorContinuousCallback(Callback):
    """Several conditions at once: ``condition`` returns ``(*batch, count)``, ``affect(u, p, t, index)`` is told which
    of them passed through zero in each trajectory (index ``(*batch)``, integers)."""

    condition: Condition
    affect: Callable[[Tensor, Any, Tensor, Tensor], Tensor]
    direction: int = 0
    interp_points: int = 8

    def __post_init__(self) -> None:
        _check_direction(self.direction, self.interp_points)


@dataclass(frozen=True)
class DiscreteCallback(Callback):
    """Acts at the end of every accepted step for which ``condition(u, p, t)`` (booleans, ``(*batch)``) holds."""

    condition: Condition
    affect: Affect


@dataclass(frozen=True, eq=False)
class PresetTimeCallback(Callback):
    """Acts at given times, which the steps hit exactly: doses, switches, samples taken.

    Args:
        times: Times (k,), or one row a trajectory ``(*batch, k)``. NaN in a row is no time: rows may differ in length.
        affect: What happens there. A time equal to the start of the span acts before the first step.
    """

    times: Any
    affect: Affect

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64)
        if times.ndim == 0:
            times = times.reshape(1)
        if bool(torch.isinf(times).any()):
            raise InputError("preset times must be finite", got="infinity among them")
        object.__setattr__(self, "times", times)


@dataclass(frozen=True)
class PeriodicCallback(Callback):
    """Acts every `every` units of time after the start of the span (not at the start itself)."""

    every: float
    affect: Affect

    def __post_init__(self) -> None:
        if not 0 < self.every < float("inf"):
            raise InputError("a period must be positive", got=repr(self.every))


@dataclass(frozen=True)
class CallbackSet(Callback):
    """Callbacks that act together: the earliest continuous event of a step first, and of what falls on the same time
    all, in the order given."""

    callbacks: tuple[Callback, ...]

    def __init__(self, *callbacks: Callback) -> None:
        for item in callbacks:
            if not isinstance(item, Callback):
                raise InputError("a callback set holds callbacks", got=type(item).__name__)
        object.__setattr__(self, "callbacks", callbacks)


def flatten_callbacks(callback: Callback | Sequence[Callback] | None) -> tuple[Callback, ...]:
    """List the single callbacks of a set, of nested sets, of a sequence."""
    if callback is None:
        return ()
    if isinstance(callback, CallbackSet):
        return tuple(single for item in callback.callbacks for single in flatten_callbacks(item))
    if isinstance(callback, Callback):
        return (callback,)
    if isinstance(callback, (list, tuple)):
        return tuple(single for item in callback for single in flatten_callbacks(item))
    raise InputError(
        "callback must be a callback object",
        expected="e.g. ContinuousCallback(condition, affect)",
        got=type(callback).__name__,
    )


def _check_direction(direction: int, interp_points: int) -> None:
    if direction not in (-1, 0, 1):
        raise InputError(
            "direction of a callback", expected="1 (from below), -1 (from above) or 0", got=repr(direction)
        )
    if interp_points < 1:
        raise InputError("interp_points of a callback", expected="at least 1", got=repr(interp_points))
