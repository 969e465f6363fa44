"""The result of a solve as data, and the functions that interpolate, split and plot it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec
from ude.engines.return_code import ADVICE, ReturnCode
from ude.errors import InputError, SolveFailed
from ude.events.event import Event
from ude.problems.ode import ODEProblem
from ude.solving.statistics import Statistics
from ude.vocabulary import OF_SOLUTION, unknown_attribute

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(eq=False, repr=False)
class Solution:
    """A solved problem.

    ``sol.t``        saved times: (time,), or ``(*batch, time)`` when trajectories were saved at different times
    ``sol.u``        saved states ``(*batch, time, state)``, differentiable
    ``sol(2.5)``     dense output at any time inside the span: ``(*batch, state)``; ``sol([1.0, 2.5])`` adds a time axis
    ``sol["x"]``     one state by name ``(*batch, time)``
    ``sol[i]``       the i-th saved state ``(*batch, state)``; ``sol[2:5]`` keeps the time axis
    ``sol.retcode``  `ReturnCode`, or an array of them with a batch; ``sol.success`` the same as booleans
    ``sol.stats``    `Statistics`
    ``sol.events``   what callbacks did, a tuple of `Event`
    ``sol.notes``    what the solver cannot know about f, such as switches that a step may pass; a tuple of sentences

    Reading the values of a solution in which a trajectory failed raises `SolveFailed`; ``sol.partial`` returns them
    anyway, with NaN at times that a trajectory did not reach. In a batch, a trajectory that a callback ended has NaN
    at later times; a single trajectory has no such times.

    Args:
        prob: The problem that was solved.
        times: Saved times (B, T), a row for each trajectory.
        partial: Saved states ``(*batch, T, state)``, NaN at times that a failed trajectory did not reach; reading them
            never raises.
        span: Start and end of the dense output, each (B,).
        reached: The time that each trajectory reached (B,).
        codes: `ReturnCode` of each trajectory as a number (B,).
        dense: Dense output at the times (B, k), ``(*batch, k, state)``.
        count: Combines the statistics when they are first read.
        events: What callbacks did.
        notes: What the solver cannot know about f.

    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0), names="x"), ude.Tsit5(), saveat=0.25)
    >>> sol.t.tolist(), sol.success
    ([0.0, 0.25, 0.5, 0.75, 1.0], tensor(True))
    >>> round(float(sol(0.1)[0]), 3), round(float(sol["x"][-1]), 3)
    (0.905, 0.368)
    """

    prob: ODEProblem
    times: Float[Tensor, "B T"]
    partial: Float[Tensor, "*batch T *state"]
    span: tuple[Float[Tensor, "B"], Float[Tensor, "B"]]
    reached: Float[Tensor, "B"]
    codes: Int[Tensor, "B"]
    dense: Callable[[Float[Tensor, "B k"]], Float[Tensor, "*batch k *state"]]
    count: Callable[[], Statistics]
    events: tuple[Event, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._failed = [i for i, code in enumerate(self.codes.tolist()) if not ReturnCode(code).ok]

    @cached_property
    def _state_dims(self) -> int:
        return len(self.prob.state_axes().state)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the states."""
        return self.prob.state_names

    @cached_property
    def stats(self) -> Statistics:
        """What the solve cost; combined at the first read, since a fit never reads it."""
        return self.count()

    @property
    def batch(self) -> tuple[int, ...]:
        """Shape of the batch; () for a single trajectory."""
        return tuple(self.partial.shape[: -1 - self._state_dims])

    @property
    def state(self) -> tuple[int, ...]:
        """Shape of the state of one trajectory."""
        return tuple(self.partial.shape[-self._state_dims :])

    @property
    def t(self) -> Float[Tensor, "*batch time"]:
        """Saved times; (time,) where all trajectories share them."""
        first = self.times[0]
        return first if bool((self.times == first).all()) else self.times.view(*self.batch, -1)

    @property
    def u(self) -> Float[Tensor, "*batch time state"]:
        """Saved states.

        Raises:
            SolveFailed: A trajectory failed; the message says which, when and what to try.
        """
        self.require_success()
        return self.partial

    @property
    def retcode(self) -> Any:
        """How the solve ended: a `ReturnCode`, or an array of them of the batch's shape."""
        codes = [ReturnCode(code) for code in self.codes.tolist()]
        if not self.batch:
            return codes[0]
        array = np.empty(len(codes), dtype=object)
        array[:] = codes
        return array.reshape(self.batch)

    @property
    def success(self) -> Bool[Tensor, "*batch"]:
        """Which trajectories did not fail."""
        fine = torch.ones_like(self.codes, dtype=torch.bool)
        fine[self._failed] = False
        return fine.view(self.batch)

    @property
    def failed(self) -> bool:
        """Whether every trajectory failed."""
        return bool(self._failed) and len(self._failed) == len(self.codes)

    def require_success(self) -> None:
        """Check that no trajectory failed.

        Raises:
            SolveFailed: One did; the message says which, when and what to try.
        """
        if not self._failed:
            return
        first = self._failed[0]
        code = ReturnCode(int(self.codes[first]))
        happened, advice = ADVICE[code]
        who = f"{len(self._failed)} of {len(self.codes)} trajectories (first: {first})" if self.batch else "the solve"
        raise SolveFailed(f"{who} failed with {code.name} at t={float(self.reached[first]):g}: {happened}", fix=advice)

    def trajectory(self, i: int) -> Solution:
        """The i-th trajectory of a batch as a solution of its own; see `trajectory_of`."""
        return trajectory_of(self, i)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Plot every state against time, return the figure and write it to `path`; see `plot_solution`."""
        return plot_solution(self, path)

    def __getattr__(self, name: str) -> Any:
        raise unknown_attribute(self, name, OF_SOLUTION)

    def __len__(self) -> int:
        return self.times.shape[-1]

    def __getitem__(self, key: str | int | slice) -> Tensor:
        if isinstance(key, str):
            if key not in self.names:
                raise InputError("no such state", expected=f"one of {', '.join(self.names)}", got=repr(key))
            return self.u[..., self.names.index(key)]
        if isinstance(key, bool) or not isinstance(key, (int, slice)):
            raise InputError("sol[...] takes the index or slice of saved states, or the name of a state", got=repr(key))
        return self.u[(..., key, *(slice(None) for _ in self.state))]

    def __call__(self, t: Any) -> Tensor:
        """Evaluate the dense output at one time or a list of times; see `interpolate`."""
        return interpolate(self, t)

    def __repr__(self) -> str:
        ended = ", ".join(sorted({ReturnCode(code).name for code in self.codes.tolist()}))
        return (
            f"Solution({ended}; u {tuple(self.partial.shape)}, states {', '.join(self.names)}; "
            f"{self.stats.algorithm} in the {self.stats.engine} engine)"
        )


def solution_of(
    prob: ODEProblem,
    spec: SolveSpec,
    result: ForwardResult,
    read: tuple[Float[Tensor, "*batch T n"], Callable[[Float[Tensor, "B k"]], Float[Tensor, "*batch k n"]]],
    count: Callable[..., Statistics],
    *,
    window: tuple[Float[Tensor, "B T"], tuple[Float[Tensor, "B"], Float[Tensor, "B"]]] | None = None,
    events: tuple[Event, ...] = (),
) -> Solution:
    """Put the outcome of a solve together, with the axes that u0 has.

    Args:
        read: What was saved, connected to the graph, and the function that reads the dense output.
        count: Makes the statistics of (result, spec).
        window: Saved times and the span of the dense output, where they are not those of the result and the solve.
    """
    values, dense = read
    times, span = window or (result.times, (spec.t0, spec.t1))
    axes = getattr(spec.f, "axes", None)
    reached, codes = result.t_end, result.retcode
    if axes is not None:
        values, flat = axes.restore(values), dense
        times, reached, codes = axes.rows(times), axes.rows(reached), axes.rows(codes)
        span = axes.rows(span[0]), axes.rows(span[1])
        together = prod(axes.shared)

        def dense(asked: Tensor) -> Tensor:
            restored: Tensor = axes.restore(flat(asked[::together]))
            return restored

    return Solution(
        prob=prob,
        times=times,
        partial=values,
        span=span,
        reached=reached,
        codes=codes,
        dense=dense,
        count=partial(count, result, spec),
        events=events,
    )


def interpolate(solution: Solution, t: Any) -> Tensor:
    """Evaluate the dense output of a solution inside its span.

    Args:
        t: One time, or times (k,).

    Returns:
        ``(*batch, state)`` for one time, ``(*batch, k, state)`` for k times; differentiable like ``solution.u``.

    Raises:
        InputError: A time lies outside the span.
        SolveFailed: A trajectory failed.
    """
    solution.require_success()
    try:
        times = torch.as_tensor(t, dtype=solution.times.dtype, device=solution.times.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError("sol(t) takes one time or a list of times", got=repr(t)) from None
    if times.ndim > 1:
        raise InputError("sol(t) takes one time or a list of times", got=f"shape {tuple(times.shape)}")
    low, high = _common_span(solution)
    flat = times.reshape(-1)
    outside = flat[~((flat >= low) & (flat <= high))]
    if outside.numel():
        raise InputError(
            "the times of sol(t) must lie within its span",
            expected=f"times from {low:g} to {high:g}",
            got=f"{float(outside[0]):g}",
            fix="Solve over a longer tspan.",
        )
    values = solution.dense(flat.expand(len(solution.times), -1))
    values = values.view(*solution.batch, -1, *solution.state)
    return values if times.ndim else values.select(len(solution.batch), 0)


def trajectory_of(solution: Solution, i: int) -> Solution:
    """Select the i-th trajectory of a batch as a solution of its own, still connected to the graph.

    The points that fill a shorter trajectory up to the length of the longest are left out.

    Raises:
        InputError: There is no such trajectory.
    """
    count = len(solution.times)
    if isinstance(i, bool) or not isinstance(i, int):
        raise InputError("a trajectory is chosen by its index", got=repr(i))
    if not -count <= i < count:
        raise InputError("no such trajectory", expected=f"an index below {count}", got=str(i))
    i %= count
    times, values = solution.times[i], solution.partial.reshape(*solution.times.shape, *solution.state)[i]
    kept = len(times) - int((times == times[-1]).flip(0).to(torch.int8).cumprod(0).sum()) + 1
    if bool((times[1:] <= times[:-1]).any()) and bool((values[kept:] == values[kept - 1]).all()):
        times, values = times[:kept], values[:kept]

    def count_one() -> Statistics:
        stats = solution.stats
        return replace(
            stats,
            accepted_steps=stats.accepted_steps.reshape(-1)[i],
            rejected_steps=stats.rejected_steps.reshape(-1)[i],
            switches=None if stats.switches is None else stats.switches.reshape(-1)[i],
        )

    row = slice(i, i + 1)
    return Solution(
        prob=solution.prob,
        times=times.unsqueeze(0),
        partial=values,
        span=(solution.span[0][row], solution.span[1][row]),
        reached=solution.reached[row],
        codes=solution.codes[row],
        dense=lambda asked: solution.dense(asked.expand(count, -1)).reshape(count, asked.shape[1], *solution.state)[i],
        count=count_one,
        events=tuple(
            Event(event.callback, event.which[row], event.t[row], event.before[row], event.after[row])
            for event in solution.events
            if bool(event.which[i])
        ),
        notes=solution.notes,
    )


def plot_solution(solution: Solution, path: str | Path | None = None) -> Figure:
    """Plot every state against time, by the dense output between the saved points.

    Args:
        path: File to write the figure to (PNG, SVG or PDF by its suffix); None writes none.
    """
    from ude.reporting import plots  # imports matplotlib, which is slow

    with torch.no_grad():
        t = torch.linspace(*_common_span(solution), 400, dtype=solution.times.dtype, device=solution.times.device)
        # one curve for each number of a state
        u = interpolate(solution, t).reshape(*solution.batch, len(t), -1)
        saved = solution.partial.detach().reshape(*solution.times.shape, -1)
    cells = list(np.ndindex(solution.state[:-1]))
    names = [f"{name}{list(cell) or ''}" for cell in cells for name in solution.names]
    figure = plots.solution(
        t.cpu().numpy(),
        u.cpu().numpy(),
        names,
        t_saved=solution.times.cpu().numpy(),
        u_saved=saved.cpu().numpy(),
    )
    if path is not None:
        figure.savefig(path)
    return figure


def _common_span(solution: Solution) -> tuple[float, float]:
    """The earliest and the latest time inside the spans of all trajectories."""
    start, end = solution.span
    return float(torch.minimum(start, end).max()), float(torch.maximum(start, end).min())
