"""The user's own conditions on steps, in the form in which engines call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
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
    """Turn functions of u ``(*batch, state)`` and t ``(*batch)`` into functions of (B, n), the leaves and (B,).

    Raises:
        InputError: One is not callable; or, during the solve, does not return one number for each trajectory.
    """
    given = dict(isoutofdomain=isoutofdomain, unstable_check=unstable_check, internalnorm=internalnorm)
    for name, function in given.items():
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a function", got=repr(function))
    if not any(given.values()):
        return NO_CHECKS

    seen = batch if f.axes is None else batch + f.axes.shared

    def call(name: str, u: Tensor, *arguments: Any) -> Tensor:
        answer = torch.as_tensor(given[name](*arguments), device=u.device)  # type: ignore[misc]
        if tuple(answer.shape) != seen:
            raise InputError(
                f"{name} must return one number for each trajectory",
                expected=f"shape {seen}",
                got=f"shape {tuple(answer.shape)}",
                fix="Reduce over the last axis, as in (u < 0).any(-1).",
            )
        # of trajectories that step together the worst decides
        rows = answer.reshape(len(u), -1)
        return rows.amax(-1).to(u.dtype) if name == "internalnorm" else rows.to(torch.bool).any(-1)

    def state(u: Tensor) -> Tensor:
        u = u.view(*batch, u.shape[-1])
        return u if f.axes is None else f.axes.view(u)

    def times(t: Tensor) -> Tensor:
        t = t.view(batch)
        return t if f.axes is None else f.axes.times(t)

    def outside(u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
        return call("isoutofdomain", u, state(u), f.parameters(leaves), times(t))

    def unstable(dt: Tensor, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
        return call("unstable_check", u, times(dt), state(u), f.parameters(leaves), times(t))

    def norm(error: Tensor, t: Tensor) -> Tensor:
        return call("internalnorm", error, state(error), times(t))

    return StepChecks(
        isoutofdomain=None if isoutofdomain is None else outside,
        unstable_check=None if unstable_check is None else unstable,
        internalnorm=None if internalnorm is None else norm,
    )


def with_domains(checks: StepChecks, callbacks: Sequence[Callback], abstol: Tensor, u0: Tensor) -> StepChecks:
    """Add the steps that the `PositiveDomain`s among the callbacks reject.

    Args:
        abstol: That of the solve.
        u0: Initial states (B, n).

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
            "abstol of PositiveDomain must be one number or one number for each state",
            expected=f"a number or {count} numbers",
            got=f"shape {tuple(margin.shape)}",
        )
    wrong = [i for i in domain.idxs or () if not -count <= i < count]
    if wrong:
        raise InputError(
            "idxs of PositiveDomain must be indices of states", expected=f"indices below {count}", got=str(wrong[0])
        )
    below = domain.below(u0.detach(), -margin).nonzero()
    if len(below):
        row, i = (int(x) for x in below[0])
        raise InputError(
            "u0 must lie inside the PositiveDomain",
            expected="no state below zero",
            got=f"{float(u0[row, i]):g} as state {i} of trajectory {row}",
            fix="Correct u0, or list the states that cannot be negative: PositiveDomain(idxs=[0]).",
        )
    given = checks.isoutofdomain

    def isoutofdomain(u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Tensor:
        outside = domain.below(u, -margin).any(-1)
        return outside if given is None else outside | given(u, leaves, t)

    factor = domain.scalefactor if checks.scalefactor is None else min(checks.scalefactor, domain.scalefactor)
    return replace(checks, isoutofdomain=isoutofdomain, scalefactor=factor)
