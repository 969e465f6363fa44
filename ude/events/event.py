"""One event of a solve: when it happened, in which trajectories, and the states on both sides of it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Event:
    """Something that happened during a solve.

    Args:
        callback: Index of the callback in the (flattened) set.
        which: The trajectories in which it happened (B,).
        t: Time of the event in each trajectory (B,), meaningful where `which`; differentiable.
        before, after: States on both sides of it (B, state).
    """

    callback: int
    which: Bool[Tensor, "B"]
    t: Float[Tensor, "B"]
    before: Float[Tensor, "B n"]
    after: Float[Tensor, "B n"]
