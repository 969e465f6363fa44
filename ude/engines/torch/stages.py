"""The stages of one explicit Runge-Kutta step and its continuous extension, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.methods import ExplicitTableau

#: f over a batch: (u (B, n), t (B,)) -> du (B, n)
Derivative = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TableauTensors:
    """A tableau as tensors; `a[i]` has i entries; `weights` is b as floats.

    Args:
        end_count: How many of the first stages the new state needs.
        extra_c, extra_a: Of the stages that only the dense output needs; `extra_a[i]` has an entry for each before it.
        read: Which of all stages the dense output needs.
        next_is_extra: Whether the first extra stage is f at the new state, which the next step starts with.
    """

    c: tuple[float, ...]
    a: tuple[Tensor, ...]
    floats: tuple[tuple[float, ...], ...]
    b: Tensor
    weights: tuple[float, ...]
    b_error: Tensor | None
    b_error_low: Tensor | None
    interpolant: Float[Tensor, "stages powers"]
    end_count: int
    extra_c: tuple[float, ...]
    extra_a: tuple[Tensor, ...]
    read: tuple[bool, ...]
    next_is_extra: bool


@lru_cache(maxsize=64)
def tableau_tensors(tableau: ExplicitTableau, dtype: torch.dtype, device: torch.device) -> TableauTensors:
    def tensor(row: Any) -> Tensor:
        return torch.tensor([float(x) for x in row], dtype=dtype, device=device)

    return TableauTensors(
        c=tuple(float(x) for x in tableau.c),
        a=tuple(tensor(row) for row in tableau.a),
        floats=tuple(tuple(float(x) for x in row) for row in tableau.all_a),
        b=tensor(tableau.b),
        weights=tuple(float(x) for x in tableau.b),
        b_error=tensor(tableau.b_error) if tableau.b_error else None,
        b_error_low=tensor(tableau.b_error_low) if tableau.b_error_low else None,
        interpolant=torch.stack([tensor(row) for row in tableau.interpolant]),
        end_count=1 + max(i for i, weight in enumerate(tableau.b) if weight),
        extra_c=tuple(float(x) for x in tableau.extra_c),
        extra_a=tuple(tensor(row) for row in tableau.extra_a),
        read=_stages_read(tableau),
        next_is_extra=tableau.first_extra_is_next,
    )


def _stages_read(tableau: ExplicitTableau) -> tuple[bool, ...]:
    read = [any(row) for row in tableau.interpolant]
    for i in reversed(range(len(read))):
        for j, entry in enumerate(tableau.all_a[i]):
            read[j] = read[j] or (read[i] and bool(entry))
    return tuple(read)


def combine(weights: Float[Tensor, "stages"], k: Float[Tensor, "stages B n"]) -> Float[Tensor, "B n"]:
    """``sum_i weights_i k_i``."""
    return torch.mv(k.view(k.shape[0], -1).T, weights).view(k.shape[1:])


def compute_stages(
    f: Derivative, numbers: TableauTensors, u: Tensor, t: Tensor, dt: Tensor, k1: Tensor
) -> tuple[Float[Tensor, "stages B n"], Float[Tensor, "B n"]]:
    """Evaluate all stages of a step of signed size dt (B,) from u (B, n) at t (B,), given ``k1 = f(u, t)``.

    Returns:
        The stages, and the argument of the last one (the new state when the method is first-same-as-last). When the
        first extra stage is what the next step starts with, there is room for it behind the stages.
    """
    count = len(numbers.a)
    k = u.new_empty(count + numbers.next_is_extra, *u.shape)
    k[0] = k1
    column = dt.unsqueeze(-1)
    argument = u
    for i in range(1, count):
        argument = torch.addcmul(u, column, combine(numbers.a[i], k[:i]))
        k[i] = f(argument, t + numbers.c[i] * dt)
    return k, argument


def complete_stages(
    f: Derivative, numbers: TableauTensors, u: Tensor, t: Tensor, dt: Tensor, k: Float[Tensor, "stages B n"]
) -> Float[Tensor, "all_stages B n"]:
    """Evaluate the extra stages of a step that `k` does not hold yet."""
    count, known = len(numbers.a), k.shape[0]
    if known == numbers.interpolant.shape[0]:
        return k
    every = u.new_empty(numbers.interpolant.shape[0], *u.shape)
    every[:known] = k
    column = dt.unsqueeze(-1)
    for i in range(known - count, len(numbers.extra_a)):
        argument = torch.addcmul(u, column, combine(numbers.extra_a[i], every[: count + i]))
        every[count + i] = f(argument, t + numbers.extra_c[i] * dt)
    return every


def stage_arguments(
    f: Derivative, numbers: TableauTensors, u: Tensor, t: Tensor, dt: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (stage, its argument (B, n), its time (B,)) of the stages that the new state is made of."""
    k = u.new_empty(len(numbers.a), *u.shape)
    column = dt.unsqueeze(-1)
    for i in range(len(numbers.a)):
        argument = u if i == 0 else torch.addcmul(u, column, combine(numbers.a[i], k[:i]))
        time = t + numbers.c[i] * dt
        if numbers.weights[i]:
            yield i, argument, time
        if any(numbers.weights[i + 1 :]):
            k[i] = f(argument, time)


def extend(
    interpolant: Float[Tensor, "stages powers"],
    u: Float[Tensor, "m n"],
    dt: Float[Tensor, "m"],
    theta: Float[Tensor, "m"],
    k: Float[Tensor, "m stages n"],
) -> Float[Tensor, "m n"]:
    """Evaluate the continuous extension at ``t + theta dt`` for m pairs of a step and a time."""
    weights = interpolation_weights(interpolant, theta)
    return torch.addcmul(u, dt.unsqueeze(-1), torch.bmm(weights.unsqueeze(1), k).squeeze(1))


def interpolation_weights(
    interpolant: Float[Tensor, "stages powers"], theta: Float[Tensor, "m"]
) -> Float[Tensor, "m stages"]:
    """``b_i(theta)`` of every stage."""
    powers = torch.arange(1, interpolant.shape[1] + 1, dtype=theta.dtype, device=theta.device)
    return theta.unsqueeze(-1) ** powers @ interpolant.T


def locate(
    t: Float[Tensor, "rows_and_end B"],
    dt: Float[Tensor, "rows B"],
    times: Float[Tensor, "B T"],
    sign: Float[Tensor, "B"],
) -> tuple[Tensor, Tensor]:
    """Find the step that holds each time and where in it: rows (B, T), equal to the number of rows when the time
    lies past the last one, and theta (B, T)."""
    ends = t[1:].T.contiguous()
    row = torch.searchsorted(ends * sign.unsqueeze(-1), (times * sign.unsqueeze(-1)).contiguous())
    inside = row.clamp(max=dt.shape[0] - 1)
    start, size = t[:-1].T.gather(1, inside), dt.T.gather(1, inside)
    # a step of size zero belongs to a trajectory that stood still in this row
    theta = torch.where(size == 0, torch.zeros_like(size), (times - start) / torch.where(size == 0, 1.0, size))
    return row, torch.where((times == ends.gather(1, inside)) & (size != 0), 1.0, theta)
