"""Which axes of a state count trajectories, and which belong to the state of one."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StateAxes:
    """How the axes of u0 divide.

    Engines solve trajectories of shape (n,), each with its own steps. A state of several axes, and trajectories that
    share their steps, are one such trajectory: their axes are flattened into n, and f still sees them.

    Args:
        batch: Trajectories with steps of their own.
        shared: Trajectories that step together.
        state: The state of one trajectory.

    >>> axes = StateAxes(batch=(4,), shared=(), state=(6, 2))
    >>> axes.size, axes.plain
    (12, False)
    """

    batch: tuple[int, ...]
    shared: tuple[int, ...]
    state: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether a state has one axis, and every trajectory steps alone."""
        return len(self.state) == 1 and not self.shared

    @property
    def size(self) -> int:
        """How many numbers step together: n."""
        return prod(self.shared) * prod(self.state)

    @property
    def trajectories(self) -> tuple[int, ...]:
        """The axes of u0 that count trajectories."""
        return self.batch + self.shared

    def view(self, u: Float[Tensor, "*axes n"]) -> Tensor:
        """Give a state the axes that the author of f sees."""
        seen: Tensor = u.unflatten(-1, self.shared + self.state)
        return seen

    def times(self, t: Float[Tensor, "*axes"]) -> Tensor:
        """Give every trajectory its time."""
        if not self.shared:
            return t
        return t.reshape(t.shape + (1,) * len(self.shared)).expand(t.shape + self.shared)

    def flatten(self, u: Tensor) -> Float[Tensor, "*axes n"]:
        """Undo `view`."""
        return u.flatten(-len(self.shared) - len(self.state))

    def restore(self, values: Float[Tensor, "*batch T n"]) -> Float[Tensor, "*trajectories T *state"]:
        """Give saved values the axes of u0, with the axis of time behind the trajectories."""
        time = len(self.batch)
        restored: Tensor = self.view(values).movedim(time, time + len(self.shared))
        return restored

    def rows(self, x: Float[Tensor, "B *more"]) -> Float[Tensor, "trajectories *more"]:
        """Repeat what trajectories that step together have in common for each of them."""
        return x.repeat_interleave(prod(self.shared), 0) if self.shared else x
