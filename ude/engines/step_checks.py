"""The user's own conditions on steps, as the engines call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ude.engines.engine import NO_CHECKS, StepChecks
from ude.errors import InputError
from ude.problems import FlatRightHandSide


def step_checks(
    f: FlatRightHandSide,
    batch: tuple[int, ...],
    *,
    isoutofdomain: Callable[..., Any] | None = None,
    unstable_check: Callable[..., Any] | None = None,
    internalnorm: Callable[..., Any] | None = None,
) -> StepChecks:
    """Wrap functions of u ``(*batch, state)`` and t ``(*batch)`` as functions of (B, n), leaves and (B,).

    Raises:
        InputError: One cannot be called; or, while the solve runs, does not return one number a trajectory.
    """
    shapes = _Shapes(f, batch)
    for name, function in (
        ("isoutofdomain", isoutofdomain),
        ("unstable_check", unstable_check),
        ("internalnorm", internalnorm),
    ):
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a function", got=repr(function))
    if isoutofdomain is None and unstable_check is None and internalnorm is None:
        return NO_CHECKS
    return StepChecks(
        isoutofdomain=isoutofdomain and shapes.outside(isoutofdomain),
        unstable_check=unstable_check and shapes.unstable(unstable_check),
        internalnorm=internalnorm and shapes.norm(internalnorm),
    )


@dataclass(frozen=True, eq=False)
class _Shapes:
    f: FlatRightHandSide
    batch: tuple[int, ...]

    def outside(self, function: Callable[..., Any]) -> Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]:
        def isoutofdomain(u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
            answer = function(self._state(u), self.f.parameters(leaves), t.view(self.batch))
            return self._one_each("isoutofdomain", answer, u).to(torch.bool)

        return isoutofdomain

    def unstable(self, function: Callable[..., Any]) -> Callable[[Tensor, Tensor, Sequence[Tensor], Tensor], Tensor]:
        def unstable_check(dt: Tensor, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
            p = self.f.parameters(leaves)
            answer = function(dt.view(self.batch), self._state(u), p, t.view(self.batch))
            return self._one_each("unstable_check", answer, u).to(torch.bool)

        return unstable_check

    def norm(self, function: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
        def internalnorm(error: Tensor, t: Tensor) -> Tensor:
            answer = function(self._state(error), t.view(self.batch))
            return self._one_each("internalnorm", answer, error).to(error.dtype)

        return internalnorm

    def _state(self, u: Tensor) -> Tensor:
        return u.view(*self.batch, u.shape[-1])

    def _one_each(self, name: str, answer: Any, u: Tensor) -> Tensor:
        answer = torch.as_tensor(answer, device=u.device)
        if tuple(answer.shape) != self.batch:
            raise InputError(
                f"{name} must return one number a trajectory",
                expected=f"shape {self.batch}",
                got=f"shape {tuple(answer.shape)}",
                fix="Reduce over the last axis, as in (u < 0).any(-1).",
            )
        return answer.reshape(-1)
