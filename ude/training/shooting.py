"""Shooting: simulate windows of the trajectories from free initial states and compare with the data.

Multiple shooting (Bock 1983; van Domselaar & Hemker 1975) cuts trajectories into windows, so that an error of the
model has little time to grow, and ties the end of each window to the start of the next by a growing penalty. Single
shooting is the case of one window a trajectory. All windows are one batch: every lane has its own span and times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.methods import Tsit5
from ude.problems import ODEProblem
from ude.solution import Solution
from ude.solve import solve
from ude.training.coordinates import Coordinates, InnerField
from ude.training.data import Dataset
from ude.training.losses import misfit
from ude.training.observables import Measurement


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of trajectories, padded to one length by repeating the last time.

    A window's last point is the first of its successor, where there is one; it counts as data only in the successor.
    """

    t: Float[Tensor, "window time"]
    u: Float[Tensor, "window time observable"]  # zero where nothing was measured
    mask: Bool[Tensor, "window time observable"]  # numbers compared with data
    last: Int[Tensor, " window"]  # index of the window's last point
    trajectory: Int[Tensor, " window"]
    linked: Int[Tensor, " link"]  # windows that have a successor, which is the next window

    def __len__(self) -> int:
        return self.t.shape[0]


def cut(data: Dataset, steps: int | None = None) -> Windows:
    """Windows of about `steps` intervals, equal within a trajectory but for one; None: each trajectory whole.

    Windows are cut by points, whether or not all states were measured there: where few were, the continuity ties a
    window's start to what its predecessor says.
    """
    pieces: list[tuple[int, int, int, bool]] = []  # trajectory, first point, last point, has a successor
    for index, trajectory in enumerate(data.trajectories):
        intervals = len(trajectory) - 1
        number = 1 if steps is None else max(1, round(intervals / steps))
        edges = [round(k * intervals / number) for k in range(number + 1)]
        pieces += [(index, a, b, b < intervals) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    length = max(b - a for _, a, b, _ in pieces) + 1
    t = torch.zeros(len(pieces), length, dtype=torch.float64)
    u = torch.zeros(len(pieces), length, len(data.states), dtype=torch.float64)
    mask = torch.zeros(len(pieces), length, len(data.states), dtype=torch.bool)
    for row, (index, a, b, followed) in enumerate(pieces):
        place = torch.arange(length).clamp(max=b - a) + a
        t[row] = torch.as_tensor(data.trajectories[index].t)[place]
        # A NaN outside the mask would still make NaN of the gradient.
        u[row] = torch.as_tensor(data.trajectories[index].u)[place].nan_to_num()
        own = slice(b - a + (0 if followed else 1))
        mask[row, own] = torch.as_tensor(data.trajectories[index].measured)[place[own]]
    return Windows(
        t,
        u,
        mask,
        last=torch.tensor([b - a for _, a, b, _ in pieces]),
        trajectory=torch.tensor([index for index, *_ in pieces]),
        linked=torch.tensor([row for row, piece in enumerate(pieces) if piece[3]], dtype=torch.long),
    )


@dataclass(frozen=True)
class SolverOptions:
    """Tolerance (absolute and relative, in inner coordinates) and the most steps of one window.

    A trial of a line search may be wild and take thousands of steps to no purpose. A window therefore gets at most
    `patience` times the steps that the start of the stage took, and never more than `maxiters` (None: 200, and 20 for
    each of its points). What it did not reach then counts as missing.
    """

    tolerance: float = 1e-4
    maxiters: int | None = None
    patience: float = 4.0

    def steps(self, points: int) -> int:
        """The most steps of a window of that many points."""
        return 200 + 20 * points if self.maxiters is None else self.maxiters


def simulate(
    field: InnerField, z0: Float[Tensor, "window state"], t: Float[Tensor, "window time"], options: SolverOptions
) -> Solution:
    """Inner states at the times `t` of each window, from z0 at its first time; `.partial` of it may hold NaN.

    Always with `Tsit5`: the windows are short, and an objective whose method changes with p jumps where it does.
    """
    problem = ODEProblem(field, z0, (t[:, 0], t[:, -1]))
    return solve(
        problem,
        Tsit5(),
        saveat=t,
        abstol=options.tolerance,
        reltol=options.tolerance,
        maxiters=options.steps(t.shape[1]),
    )


@dataclass(frozen=True, eq=False)
class Shooting:
    """The loss of windows: ``mean ((y(u) - data)/scale)² + continuity mean ((z_end - z_start_of_next)/spread)²``.

    y are the observables; the states themselves where these were measured.
    """

    field: InnerField
    windows: Windows
    scale: Float[Tensor, " observable"]
    spread: Float[Tensor, " state"]
    options: SolverOptions
    measurement: Measurement | None = None  # None: the columns of the data are the states

    @property
    def coordinates(self) -> Coordinates:
        return self.field.coordinates

    @torch.no_grad()
    def limited(self, starts: Float[Tensor, "window state"]) -> Shooting:
        """The same with the number of steps limited by what `starts` takes; see `SolverOptions`."""
        stats = simulate(self.field, starts, self.windows.t, self.options).stats
        tried = int((stats.accepted_steps + stats.rejected_steps).max())
        most = self.options.steps(self.windows.t.shape[1])
        maxiters = min(most, int(self.options.patience * tried) + 20)
        return replace(self, options=replace(self.options, maxiters=maxiters))

    def observed(self, u: Float[Tensor, "window time state"]) -> Float[Tensor, "window time observable"]:
        """What the states would be measured as. NaN where a simulation did not come, without a gradient there."""
        if self.measurement is None or not self.measurement.formulas:
            return u if self.measurement is None else self.measurement(u, self.windows.t, {})
        # A formula of NaN has a gradient of NaN, by the parameters too.
        reached = torch.isfinite(u).all(-1, keepdim=True)
        safe = torch.where(reached, u, u[:, :1].detach().nan_to_num(1.0))
        values = self.field.model.parameter_tensors(self.field.overrides(self.windows.t), u)
        return torch.where(reached, self.measurement(safe, self.windows.t, values), torch.nan)

    def __call__(self, starts: Float[Tensor, "window state"], continuity: float = 0.0) -> Float[Tensor, ""]:
        z = simulate(self.field, starts, self.windows.t, self.options).partial
        # Before exp: the gradient of a point that was not reached must be zero, not 0 * NaN.
        reached = torch.isfinite(z).all(-1, keepdim=True)
        u = torch.where(reached, self.coordinates.natural(torch.where(reached, z, 0.0)), torch.nan)
        loss = misfit(self.observed(u), self.windows.u, self.scale, self.windows.mask)
        linked = self.windows.linked
        if continuity and len(linked):
            ends = z[linked, self.windows.last[linked]]
            gap = (
                torch.where(torch.isfinite(ends), ends, starts[linked + 1].detach()) - starts[linked + 1]
            ) / self.spread
            loss = loss + continuity * (gap**2).mean()
        return loss
