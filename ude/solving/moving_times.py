"""Gradients by the times of a solve: its start, its end and its saves.

The solution has ``du(t)/dt = f``, so a save that moves changes by f there. A start that moves by dt0 is the start at
the old time of a state that is ``-f dt0`` away: ``du(t)/dt0 = -(du(t)/du0) f(u0, p, t0)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines import SolveSpec
from ude.engines.initialization import derivative
from ude.errors import InputError
from ude.problems.ode import ODEProblem
from ude.sensitivity.reading import first_derivative_only
from ude.solving.options import SolveOptions
from ude.solving.solution import Solution

_NAME = "the gradient by a time of the solve"


def as_one_tensor(saveat: Any) -> Any:
    """Times given as a list with tensors in it, as one tensor that keeps their graph."""
    if isinstance(saveat, (list, tuple)) and any(isinstance(one, Tensor) for one in saveat):
        return torch.stack([torch.as_tensor(one, dtype=torch.float64) for one in saveat])
    return saveat


def times_move(prob: ODEProblem, options: SolveOptions) -> bool:
    """Whether a gradient by the start, the end or the saves may be asked for.

    Raises:
        InputError: It may, and the state has several axes or trajectories share their steps.
    """
    (start, end), saveat = prob.tspan, options.saveat
    moving = (
        (isinstance(saveat, Tensor) and saveat.requires_grad)
        or (isinstance(start, Tensor) and start.requires_grad)
        or (isinstance(end, Tensor) and end.requires_grad)
    )
    if not moving or not torch.is_grad_enabled():
        return False
    if not prob.state_axes(shared_steps=options.shared_steps).plain:
        raise InputError(
            "a gradient by tspan or saveat takes states of one axis, and trajectories with steps of their own",
            fix="Detach the times, or flatten the state and leave shared_steps out.",
        )
    return True


def start_that_moves(spec: SolveSpec, prob: ODEProblem) -> SolveSpec:
    """The solve with a state at its start that moves with the time of the start."""
    if spec.start is None:
        return spec
    u0, p = spec.start
    shift = _shift(prob.tspan[0], spec.t0)
    moved = u0 - spec.first_du.detach() * first_derivative_only(_NAME, shift, u0, *p).unsqueeze(-1)
    return replace(spec, start=(moved, p), gradient=True)


def saved_at_times_that_move(
    solution: Solution, spec: SolveSpec, prob: ODEProblem, options: SolveOptions, p: Sequence[Tensor]
) -> Solution:
    """The solution with saved states that move with the times of the saves."""
    start, end = (_shift(time, known) for time, known in zip(prob.tspan, (spec.t0, spec.t1), strict=True))
    times = solution.times
    if isinstance(options.saveat, Tensor) and options.saveat.ndim:
        shifts = options.saveat.to(times)
        shifts = (shifts - shifts.detach()).reshape(-1, shifts.shape[-1]).expand_as(times)
    else:
        # steps in between stay where they are; saves at a distance go along with the start
        along = start.unsqueeze(-1) if options.saveat is not None else torch.zeros_like(start).unsqueeze(-1)
        shifts = torch.where(times == spec.t0.unsqueeze(-1), start.unsqueeze(-1), along)
        shifts = torch.where(times == spec.t1.unsqueeze(-1), end.unsqueeze(-1), shifts)
    if not shifts.requires_grad:
        return solution
    values = solution.partial.reshape(*times.shape, -1)
    with torch.no_grad():
        leaves = tuple(leaf.detach() for leaf in p)
        rates = [derivative(spec, values[:, i].detach(), times[:, i], leaves) for i in range(times.shape[1])]
    moved = torch.stack(rates, 1) * first_derivative_only(_NAME, shifts, values, *p).unsqueeze(-1)
    return replace(solution, partial=(values + moved).view_as(solution.partial))


def _shift(time: float | Tensor, known: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    """Zero, with the derivative of a time."""
    if not isinstance(time, Tensor):
        return torch.zeros_like(known)
    time = torch.as_tensor(time).to(known)
    return (time - time.detach()).reshape(-1).expand_as(known)
