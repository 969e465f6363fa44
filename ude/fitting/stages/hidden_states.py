"""States that nobody measured, before any shooting: simulated along the smooth of those that were.

Derivative matching needs all states at once. Those without data are given by the model itself: with the measured
states read from their smooth, the equations of the others are a system of their own, driven from outside,
``dz/dt = f_z(x_smooth(t), z, t)``, which stays near the data whatever the rest of the model says (the idea of
synchronizing an observer with its data: Abarbanel, Creveling & Jeanne, Phys. Rev. E 77 (2008) 016208).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ude.fitting.coordinates import InnerField
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.fitting.shooting import SolverOptions
from ude.fitting.smoothing import Smoothing
from ude.methods import Tsit5
from ude.problems.interpolation import Interpolation
from ude.problems.ode import ODEProblem
from ude.solving.solve import solve


class HiddenStates(nn.Module):
    """All states along trajectories whose measured states are known: (trajectory, time, state), inner coordinates.

    field:  the model in inner coordinates
    hidden: the indices of the states to simulate
    t:      (trajectory, time), increasing
    z:      (trajectory, time, state), of which the hidden ones do not matter
    """

    def __init__(
        self,
        field: InnerField,
        hidden: Sequence[int],
        t: Float[Tensor, "trajectory time"],
        z: Float[Tensor, "trajectory time state"],
    ) -> None:
        super().__init__()
        self.field, self.hidden, self.t, self.z = field, list(hidden), t, z
        self.seen = [i for i in range(z.shape[-1]) if i not in self.hidden]
        order = [*self.seen, *self.hidden]
        self.back = [order.index(i) for i in range(len(order))]
        # Akima: the kinks of straight lines would cost the step control more than the smooth itself does
        self.smooth = Interpolation(list(t), list(z[..., self.seen]), "akima") if self.seen else None
        if self.smooth is not None:
            self.smooth.values.requires_grad_(False)

    def forward(self, hidden: Tensor, p: None, t: Tensor) -> Tensor:
        """The rates of the hidden states."""
        seen = hidden[..., :0] if self.smooth is None else self.smooth(t)
        whole = torch.cat([seen, hidden], -1)[..., self.back]
        return self.field(whole, p, t)[..., self.hidden]

    def along(
        self, starts: Float[Tensor, "trajectory state"], options: SolverOptions
    ) -> Float[Tensor, "trajectory time state"]:
        """All states at the times t. From where a simulation breaks down on, its last state holds."""
        problem = ODEProblem(self, starts[:, self.hidden], (self.t[:, 0], self.t[:, -1]))
        found = solve(
            problem,
            options.algorithm or Tsit5(),
            saveat=self.t,
            abstol=options.settled(self.field.model).tolerance,
            reltol=options.settled(self.field.model).tolerance,
            maxiters=options.steps(self.t.shape[1]),
            engine="torch",  # always the same, so that a fit that goes on after a kill finds the same numbers
        ).partial
        reached = torch.isfinite(found).all(-1)
        last = (reached.sum(-1) - 1).clamp(min=0)
        held = found[torch.arange(len(found)), last].detach().nan_to_num().unsqueeze(1)
        found = torch.where(reached.unsqueeze(-1), found, held)
        return torch.cat([self.z[..., self.seen], found], -1)[..., self.back]


@dataclass(frozen=True, eq=False)
class HiddenStateMatching:
    """Derivative matching where some states are hidden: the rates of the measured states along `HiddenStates`.

    du:  (trajectory, time, state), rates of the smooth, zero where `use` is not
    use: (trajectory, time, state), where the smooth knows the rate
    """

    states: HiddenStates
    du: Float[Tensor, "trajectory time state"]
    use: Bool[Tensor, "trajectory time state"]

    @classmethod
    def along(
        cls,
        field: InnerField,
        hidden: Sequence[int],
        data: Dataset,
        smoothing: Smoothing,
        spread_out: Callable[[Array], Array],
    ) -> HiddenStateMatching:
        """On an even grid of each trajectory, at least two points an interval of the longest, at most 4000 in all.

        spread_out: columns (..., column) -> states (..., state), NaN for hidden ones.
        """
        longest = max(len(trajectory) for trajectory in data.trajectories)
        number = min(max(200 // len(data), 2 * longest, 8), max(4000 // len(data), 8))
        grids = [np.linspace(trajectory.t[0], trajectory.t[-1], number) for trajectory in data.trajectories]
        smooth = [smoothing(i, t) for i, t in enumerate(grids)]
        u = torch.as_tensor(np.stack([spread_out(u) for u, _ in smooth]))
        du = torch.as_tensor(np.stack([spread_out(du) for _, du in smooth]))
        inside = [smoothing.inside(i, t).all(axis=1, keepdims=True) for i, t in enumerate(grids)]
        use = torch.isfinite(du) & torch.as_tensor(np.stack(inside))
        states = HiddenStates(field, hidden, torch.as_tensor(np.stack(grids)), field.coordinates.inner(u))
        return cls(states, torch.where(use, du, 0.0), use)

    def __call__(self, starts: Float[Tensor, "trajectory state"], options: SolverOptions) -> Float[Tensor, ""]:
        """Mean of ``((f(u, t) - du)/size)²`` over what is used; size is the root mean square of du."""
        u = self.states.field.coordinates.natural(self.states.along(starts, options))
        counts = self.use.sum((0, 1)).clamp(min=1)
        size = (self.du.square().sum((0, 1)) / counts).sqrt().clamp(min=1e-12)
        rates = self.states.field.model(u, self.states.field.overrides(self.states.t), self.states.t)
        wrong = torch.where(self.use, rates - self.du, 0.0) / size
        return wrong.square().sum() / self.use.sum().clamp(min=1)

    @torch.no_grad()
    def points(
        self, starts: Float[Tensor, "trajectory state"], options: SolverOptions
    ) -> tuple[Float[Tensor, "point state"], Float[Tensor, "point state"], Float[Tensor, " point"]]:
        """States, rates (NaN where not known) and times as the model has them now."""
        u = self.states.field.coordinates.natural(self.states.along(starts, options))
        du = torch.where(self.use, self.du, torch.nan)
        return u.flatten(0, 1), du.flatten(0, 1), self.states.t.flatten()

    @torch.no_grad()
    def at(
        self,
        starts: Float[Tensor, "trajectory state"],
        trajectory: Int[Tensor, " k"],
        t: Float[Tensor, " k"],
        options: SolverOptions,
    ) -> Float[Tensor, "k state"]:
        """All states, inner coordinates, at one time each of some trajectories."""
        z, grid = self.states.along(starts, options)[trajectory], self.states.t[trajectory]
        left = (torch.searchsorted(grid.contiguous(), t.unsqueeze(-1).contiguous(), right=True) - 1).clamp(
            0, grid.shape[1] - 2
        )
        low, high = grid.gather(1, left), grid.gather(1, left + 1)
        share = ((t.unsqueeze(-1) - low) / (high - low)).clamp(0.0, 1.0)
        rows = torch.arange(len(z)).unsqueeze(-1)
        return ((1.0 - share).unsqueeze(-1) * z[rows, left] + share.unsqueeze(-1) * z[rows, left + 1]).squeeze(1)
