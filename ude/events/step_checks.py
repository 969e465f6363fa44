"""The user's own conditions on steps, as the engines call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ude.engines.base import NO_CHECKS, StepChecks
from ude.errors import InputError
from ude.events.callbacks import Callback, PositiveDomain
from ude.problems.ode import FlatRightHandSide


def step_checks(
    f: FlatRightHandSide,
    batch: tuple[int, ...],
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


def with_domains(checks: StepChecks, callbacks: Sequence[Callback], abstol: Tensor, u0: Tensor) -> StepChecks:
    """Add to the checks what the `PositiveDomain`s among the callbacks reject; u0 (B, n), abstol of the solve.

    Raises:
        InputError: A domain does not fit the state, or u0 is outside it.
    """
    for domain in callbacks:
        if isinstance(domain, PositiveDomain):
            checks = _with_domain(checks, domain, abstol, u0)
    return checks


def _with_domain(checks: StepChecks, domain: PositiveDomain, abstol: Tensor, u0: Tensor) -> StepChecks:
    count = u0.shape[-1]
    margin = abstol if domain.abstol is None else torch.as_tensor(domain.abstol).to(u0)
    if margin.ndim > 1 or (margin.ndim == 1 and len(margin) != count):
        raise InputError(
            "abstol of PositiveDomain does not fit the state",
            expected=f"a number or {count} numbers",
            got=f"shape {tuple(margin.shape)}",
        )
    wrong = [i for i in domain.idxs or () if not -count <= i < count]
    if wrong:
        raise InputError("idxs of PositiveDomain name no state", expected=f"indices below {count}", got=str(wrong[0]))
    below = domain.below(u0.detach(), -margin).nonzero()
    if len(below):
        lane, i = (int(x) for x in below[0])
        raise InputError(
            "u0 lies outside the PositiveDomain",
            expected="no state below zero",
            got=f"{float(u0[lane, i]):g} as state {i} of trajectory {lane}",
            fix="Mend u0, or name the states that cannot be negative: PositiveDomain(idxs=[0]).",
        )
    users = checks.isoutofdomain

    def isoutofdomain(u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
        outside = domain.below(u, -margin).any(-1)
        return outside if users is None else outside | users(u, leaves, t)

    factor = domain.scalefactor if checks.scalefactor is None else min(checks.scalefactor, domain.scalefactor)
    return replace(checks, isoutofdomain=isoutofdomain, scalefactor=factor)


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
