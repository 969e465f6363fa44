"""Shooting: simulate windows of the trajectories from free initial states and compare with the data.

Multiple shooting (Bock 1983; van Domselaar & Hemker 1975) cuts trajectories into windows, so that an error of the
model has little time to grow, and ties the end of each window to the start of the next by a growing penalty. Single
shooting is the case of one window a trajectory. All windows are one batch: every lane has its own span and times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.fused.engine import WORK_OF_A_GRADIENT
from ude.errors import EngineRefused
from ude.fitting.data.dataset import Dataset
from ude.fitting.evaluation_log import Meter
from ude.fitting.objective.losses import COST_OF_A_MISSING_POINT, residuals
from ude.fitting.objective.measurement import Measurement
from ude.fitting.objective.noise import Likelihood
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.jacobians import rows
from ude.methods import Algorithm, Tsit5
from ude.models import Model, Neural
from ude.problems.ode import ODEProblem
from ude.solving.options import SolveOptions
from ude.solving.solution import Solution
from ude.solving.solve import solve_with


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

    Left out, the tolerance is 1e-4 with networks and 1e-8 without: where a few parameters are fitted by least squares,
    they get as many digits as the data allow.

    A trial of a line search may be wild and take thousands of steps to no purpose. A window therefore gets at most
    `patience` times the steps that the start of the stage took, and never more than `maxiters` (None: 200, and 20 for
    each of its points). What it did not reach then counts as missing.

    `algorithm` left out is `Tsit5()`, or `KenCarp4()` where the equations are found stiff along the smoothed data. It
    stays the same throughout a fit: an objective whose method changes with p jumps where it does.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages="single shooting",
    ...     options=ude.FitOptions(solver=ude.fitting.SolverOptions(tolerance=1e-6)),
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    tolerance: float | None = None
    maxiters: int | None = None
    patience: float = 4.0
    algorithm: Algorithm | None = None

    def settled(self, model: Model) -> SolverOptions:
        """The same with the tolerance that this model gets."""
        if self.tolerance is not None:
            return self
        networks = any(isinstance(term, Neural) for term in model.terms.values())
        return replace(self, tolerance=1e-4 if networks else 1e-8)

    def steps(self, points: int) -> int:
        """The most steps of a window of that many points."""
        return 200 + 20 * points if self.maxiters is None else self.maxiters


def simulate(
    field: InnerField,
    z0: Float[Tensor, "window state"],
    t: Float[Tensor, "window time"] | None,
    options: SolverOptions,
    meter: Meter | None = None,
    span: Float[Tensor, "window time"] | None = None,
) -> Solution:
    """Inner states at the times `t` of each window, from z0 at its first time; `.partial` of it may hold NaN.

    With `span` and no `t`, at the times that the solver steps to.

    With a meter, the engine is the one that it chooses, and it counts the work.
    """
    times = t if t is not None else span
    if times is None:
        raise AssertionError("neither t nor span")
    problem = ODEProblem(field, z0, (times[:, 0], times[:, -1]))
    return _solved(problem, field, t, times.shape[1], options, meter)


def _solved(
    problem: ODEProblem,
    field: InnerField,
    t: Float[Tensor, "window time"] | None,
    points: int,
    options: SolverOptions,
    meter: Meter | None,
) -> Solution:
    """points: of a window, by which the options limit its steps"""
    tolerance = options.settled(field.model).tolerance
    for engine in meter.engines if meter is not None else ("auto",):
        try:
            # not `solve`, which refuses states and parameters that are not finite: a step of an optimizer may try them
            solution = solve_with(
                problem,
                options.algorithm or Tsit5(),
                SolveOptions(
                    saveat=t,
                    abstol=tolerance,
                    reltol=tolerance,
                    maxiters=options.steps(points),
                    engine=engine,
                ),
            )
            break
        except EngineRefused:
            if engine != "fused":
                raise
    if meter is not None:
        stats = solution.stats
        steps = int((stats.accepted_steps + stats.rejected_steps).sum())
        failed = int((~torch.as_tensor(solution.success)).sum())
        gradient = WORK_OF_A_GRADIENT if torch.is_grad_enabled() else 1
        meter.count(calls=stats.nf * gradient, steps=steps, solves=len(problem.u0), failed=failed)
    return solution


def _whole(solution: Solution) -> Float[Tensor, "window time state"] | None:
    z = solution.partial
    return z if bool(torch.isfinite(z).all()) else None


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
    meter: Meter | None = None
    likelihood: Likelihood | None = None
    unit: float = 1.0

    @property
    def coordinates(self) -> Coordinates:
        return self.field.coordinates

    @cached_property
    def _problem(self) -> ODEProblem:
        """All windows; simulations without gradients write their starts into it, since what an engine has made ready
        for a problem serves as long as it is this object."""
        t = self.windows.t
        return ODEProblem(self.field, torch.zeros(len(t), len(self.spread)).to(t), (t[:, 0], t[:, -1]))

    def _simulate(self, starts: Float[Tensor, "window state"], t: Float[Tensor, "window time"] | None) -> Solution:
        """At the times of the data, or for None at those that the solver steps to."""
        if torch.is_grad_enabled():
            return simulate(self.field, starts, t, self.options, self.meter, self.windows.t)
        self._problem.u0.copy_(starts)
        return _solved(self._problem, self.field, t, self.windows.t.shape[1], self.options, self.meter)

    @torch.no_grad()
    def most_steps(self, starts: Float[Tensor, "window state"]) -> int:
        """The number of steps that windows get, by what `starts` takes; see `SolverOptions`."""
        stats = self._simulate(starts, self.windows.t).stats
        tried = int((stats.accepted_steps + stats.rejected_steps).max())
        return min(self.options.steps(self.windows.t.shape[1]), int(self.options.patience * tried) + 20)

    def _simulated(
        self, starts: Float[Tensor, "window state"]
    ) -> tuple[Float[Tensor, "window time state"], Float[Tensor, "window time state"], Bool[Tensor, "window time"]]:
        """Inner and natural states, held at the last that was reached; which were reached."""
        z = self._simulate(starts, self.windows.t).partial
        reached = torch.isfinite(z).all(-1)
        # What was not reached is compared at the point where the simulation broke down: its cost is then downhill to
        # where that point fits better. Held before exp: the gradient of NaN must be zero, not 0 * NaN.
        last = (reached.sum(1, keepdim=True) - 1).clamp(min=0)
        place = torch.minimum(torch.arange(z.shape[1]).expand(reached.shape), last)
        held = z.gather(1, place.unsqueeze(-1).expand(z.shape))
        held = torch.where(torch.isfinite(held), held, starts.detach().unsqueeze(1))
        return held, self.coordinates.natural(held), reached

    def simulated(
        self, starts: Float[Tensor, "window state"]
    ) -> tuple[Float[Tensor, "window time state"], Float[Tensor, "window time state"]] | None:
        """Inner and natural states at the times of the data; None where a simulation broke down."""
        z = _whole(self._simulate(starts, self.windows.t))
        return None if z is None else (z, self.coordinates.natural(z))

    def at(
        self, starts: Float[Tensor, "window state"], t: Float[Tensor, "window node"]
    ) -> Float[Tensor, "window node state"] | None:
        """Inner states at other times of the windows; None where a simulation broke down."""
        return _whole(simulate(self.field, starts, t, self.options, self.meter))

    @torch.no_grad()
    def accepted_times(self, starts: Float[Tensor, "window state"]) -> Float[Tensor, "window step"]:
        """The times that the solver steps to, padded by the last; those of the data where it breaks down."""
        times = self._simulate(starts, None).t
        times = times.expand(len(self.windows), -1)
        return times if bool(torch.isfinite(times).all()) else self.windows.t

    def observation_derivatives(
        self, u: Float[Tensor, "window time state"], parameters: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "window time observable state"], Float[Tensor, "window time observable parameter"]]:
        """Of what would be measured, to the states and directly to the parameters (none, where it depends on none)."""
        leaf = u.detach().requires_grad_()
        formulas = self.measurement is not None and bool(self.measurement.formulas)
        with torch.enable_grad():
            raw = self._parameter_values(leaf) if formulas else {}
            values = {k: v.detach().expand(u.shape[:-1]).clone().requires_grad_() for k, v in raw.items()}
            y = leaf if self.measurement is None else self.measurement(leaf, self.windows.t, values)
            columns = [
                torch.autograd.grad(
                    column.sum(), [leaf, *values.values()], retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for column in y.unbind(-1)
            ]
            to_u = torch.stack([column[0] for column in columns], -2)
            to_theta = u.new_zeros(*y.shape, sum(p.numel() for p in parameters) if formulas else 0)
            for place, value in enumerate(raw.values()):
                if not value.requires_grad:
                    continue
                chain = rows(value, parameters).reshape(*value.shape, -1)
                chain = chain.expand(*u.shape[:-1], -1)
                direct = torch.stack([column[1 + place] for column in columns], -1)
                to_theta = to_theta + direct.unsqueeze(-1) * chain.unsqueeze(-2)
        return to_u.detach(), to_theta.detach()

    def _parameter_values(self, u: Float[Tensor, "window time state"]) -> dict[str, Tensor]:
        return self.field.model.parameter_tensors(self.field.overrides(self.windows.t), u)

    def gaps(self, z: Float[Tensor, "window time state"], starts: Tensor, continuity: float) -> Float[Tensor, " gap"]:
        """Root of the penalty of each jump between windows; their sum of squares is the penalty."""
        linked = self.windows.linked
        if not continuity or not len(linked):
            return starts.new_zeros(0)
        gap = (z[linked, self.windows.last[linked]] - starts[linked + 1]) / self.spread
        result: Tensor = gap.reshape(-1) * (continuity / gap.numel()) ** 0.5
        return result

    def residuals(self, starts: Float[Tensor, "window state"], continuity: float = 0.0) -> Float[Tensor, " residual"]:
        """Whose sum of squares is the loss where noise is Gaussian of known relative sizes."""
        z, u, reached = self._simulated(starts)
        wrong = residuals(self.observed(u), self.windows.u, self.scale, self.windows.mask, reached)
        return torch.cat([wrong, self.gaps(z, starts, continuity)])

    def observed(self, u: Float[Tensor, "window time state"]) -> Float[Tensor, "window time observable"]:
        """What the states would be measured as."""
        if self.measurement is None:
            return u
        values = self._parameter_values(u) if self.measurement.formulas else {}
        return self.measurement(u, self.windows.t, values)

    def __call__(self, starts: Float[Tensor, "window state"], continuity: float = 0.0) -> Float[Tensor, ""]:
        """The loss; with a likelihood, ``unit * -log p / N`` instead of the mean square."""
        if self.likelihood is None:
            return (self.residuals(starts, continuity) ** 2).sum()
        z, u, reached = self._simulated(starts)
        y = self.observed(u)
        mask, there = self.windows.mask, reached.unsqueeze(-1)
        nats = self.likelihood(y, self.windows.u, mask & there)
        missing = residuals(y, self.windows.u, self.scale, mask & ~there, reached)
        number = mask.sum().clamp(min=1)
        share = (mask & ~there).sum() / number
        # what is missing costs its price in nats, and pulls as it does in least squares
        loss = self.unit * (nats / number + COST_OF_A_MISSING_POINT * share) + share * (missing**2).sum()
        return loss + (self.gaps(z, starts, continuity) ** 2).sum()
