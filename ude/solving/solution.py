"""The result of a solve: values, dense output, statistics, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec
from ude.engines.return_code import ADVICE, ReturnCode
from ude.errors import InputError, SolveFailed
from ude.events.event import Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a solve cost and who ran it.

    Args:
        nf: Calls of f, each on the whole batch.
        accepted_steps, rejected_steps: One count a trajectory, shape ``(*batch)``.
        engine: Name of the engine that ran.
        why_not: For every engine that was considered first, the sentence that says why it did not run.
        algorithm, sensealg: Names of what was used; sensealg is "none" when no gradient was possible.
        seconds: Wall-clock time of the forward solve.
        njacs, nw: Jacobians df/du and factorizations of implicit methods, each of the whole batch.
        why_algorithm: Why `solve` chose this algorithm, one sentence; empty when it was given.
        switches: Of an algorithm that switches (`AutoSwitch`), how often each trajectory changed its method
            ``(*batch)``; None of others.
        nproducts: Jacobian-vector and vector-Jacobian products that these took, each of the whole batch.

    >>> stats = ude.solve(ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0)), ude.Tsit5()).stats
    >>> stats.algorithm, int(stats.accepted_steps) > 2, stats.nf > 12
    ('Tsit5', True, True)
    """

    nf: int
    accepted_steps: Int[Tensor, "*batch"]
    rejected_steps: Int[Tensor, "*batch"]
    engine: str
    algorithm: str
    sensealg: str
    seconds: float
    why_not: dict[str, str] = field(default_factory=dict)
    njacs: int = 0
    nw: int = 0
    why_algorithm: str = ""
    switches: Int[Tensor, "*batch"] | None = None
    nproducts: int = 0


class Ended(NamedTuple):
    """Where each trajectory (B,) began, was to end and got to, and how it ended (`ReturnCode`)."""

    t0: Float[Tensor, "B"]
    t1: Float[Tensor, "B"]
    reached: Float[Tensor, "B"]
    retcode: Int[Tensor, "B"]


class Counts(Protocol):
    """What a solve cost, over the whole batch (B trajectories)."""

    @property
    def nf(self) -> int: ...
    @property
    def njacs(self) -> int: ...
    @property
    def nw(self) -> int: ...
    @property
    def nproducts(self) -> int: ...
    @property
    def accepted_steps(self) -> Int[Tensor, "B"]: ...
    @property
    def rejected_steps(self) -> Int[Tensor, "B"]: ...
    @property
    def switches(self) -> Int[Tensor, "B"] | None: ...


def statistics_of(
    counts: Counts, spec: SolveSpec, *, engine: str, sensealg: str, seconds: float, why: tuple[dict[str, str], str]
) -> Statistics:
    """The statistics of a solve; `why`: why other engines did not run, and why this algorithm was chosen."""
    return Statistics(
        nf=counts.nf,
        accepted_steps=counts.accepted_steps.view(spec.batch),
        rejected_steps=counts.rejected_steps.view(spec.batch),
        engine=engine,
        algorithm=spec.algorithm.name,
        sensealg=sensealg,
        seconds=seconds,
        why_not=why[0],
        njacs=counts.njacs,
        nw=counts.nw,
        why_algorithm=why[1],
        switches=None if counts.switches is None else counts.switches.view(spec.batch),
        nproducts=counts.nproducts,
    )


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

    Asking for the values of a solution in which a trajectory failed raises `SolveFailed`; ``sol.partial`` gives
    them all the same, NaN where a trajectory did not arrive. A trajectory that a callback ended has NaN at the times
    after that in a batch; alone, it has no such times.

    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0), names="x"), ude.Tsit5(), saveat=0.25)
    >>> sol.t.tolist(), sol.success
    ([0.0, 0.25, 0.5, 0.75, 1.0], tensor(True))
    >>> round(float(sol(0.1)[0]), 3), round(float(sol["x"][-1]), 3)
    (0.905, 0.368)
    """

    def __init__(
        self,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "*batch T n"],
        *,
        names: tuple[str, ...] | Callable[[], tuple[str, ...]],
        ended: Ended,
        stats: Statistics | Callable[[], Statistics],
        dense: Callable[[Float[Tensor, "B T"]], Tensor],
        events: tuple[Event, ...] = (),
    ) -> None:
        self.events, self._names, self._stats = events, names, stats
        self._times, self._values, self._dense = times, values, dense
        self._span, self._codes = (ended.t0, ended.t1), ended.retcode
        self.reached = self._reached = ended.reached
        self._bad = [i for i, code in enumerate(ended.retcode.tolist()) if not ReturnCode(code).ok]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states."""
        if not isinstance(self._names, tuple):
            self._names = self._names()
        return self._names

    @property
    def stats(self) -> Statistics:
        """What the solve cost; written together at the first look, which in a training nobody takes."""
        if not isinstance(self._stats, Statistics):
            self._stats = self._stats()
        return self._stats

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self._values.shape[:-2])

    @property
    def t(self) -> Tensor:
        first = self._times[0]
        return first if bool((self._times == first).all()) else self._times.view(*self.batch, -1)

    @property
    def u(self) -> Float[Tensor, "*batch time state"]:
        """Saved states.

        Raises:
            SolveFailed: A trajectory failed; the message says which, when and what to try.
        """
        if self._bad:
            raise self._failure()
        return self._values

    @property
    def partial(self) -> Float[Tensor, "*batch time state"]:
        """Saved states with NaN where a failed trajectory did not arrive; never raises."""
        return self._values

    @property
    def retcode(self) -> Any:
        codes = [ReturnCode(code) for code in self._codes.tolist()]
        if not self.batch:
            return codes[0]
        array = np.empty(len(codes), dtype=object)
        array[:] = codes
        return array.reshape(self.batch)

    @property
    def success(self) -> Bool[Tensor, "*batch"]:
        fine = torch.ones_like(self._codes, dtype=torch.bool)
        fine[self._bad] = False
        return fine.view(self.batch)

    def trajectory(self, i: int) -> Solution:
        """The i-th trajectory of a batch as a solution of its own, still connected to the graph.

        Points with which a shorter trajectory was filled up to the longest are left out.
        """
        count = self._times.shape[0]
        if not -count <= i < count:
            raise InputError("no such trajectory", expected=f"an index below {count}", got=str(i))
        i %= count
        times, values = self._times[i], self._values.reshape(*self._times.shape, -1)[i]
        kept = len(times) - int((times == times[-1]).flip(0).to(torch.int8).cumprod(0).sum()) + 1
        if bool((times[1:] <= times[:-1]).any()) and bool((values[kept:] == values[kept - 1]).all()):
            times, values = times[:kept], values[:kept]
        stats = replace(
            self.stats,
            accepted_steps=self.stats.accepted_steps.reshape(-1)[i],
            rejected_steps=self.stats.rejected_steps.reshape(-1)[i],
            switches=None if self.stats.switches is None else self.stats.switches.reshape(-1)[i],
        )

        def dense(asked: Tensor) -> Tensor:
            return self._dense(asked.expand(count, -1)).reshape(count, asked.shape[1], -1)[i]

        return Solution(
            times.unsqueeze(0),
            values,
            names=self.names,
            ended=Ended(*(item[i : i + 1] for item in (*self._span, self._reached, self._codes))),
            stats=stats,
            dense=dense,
            events=tuple(
                Event(e.callback, e.which[i : i + 1], e.t[i : i + 1], e.before[i : i + 1], e.after[i : i + 1])
                for e in self.events
                if bool(e.which[i])
            ),
        )

    def __len__(self) -> int:
        return self._times.shape[-1]

    def __getitem__(self, key: str | int | slice) -> Tensor:
        if isinstance(key, str):
            if key not in self.names:
                raise InputError("no such state", expected=f"one of {', '.join(self.names)}", got=repr(key))
            return self.u[..., self.names.index(key)]
        return self.u[..., key, :]

    def __call__(self, t: Any) -> Tensor:
        """Evaluate the dense output at a time or at a sequence of times inside the span.

        Returns:
            ``(*batch, state)`` for one time, ``(*batch, k, state)`` for k times; differentiable like `u`.

        Raises:
            InputError: A time lies outside the span.
            SolveFailed: A trajectory failed.
        """
        if self._bad:
            raise self._failure()
        times = torch.as_tensor(t, dtype=self._times.dtype, device=self._times.device)
        if times.ndim > 1:
            raise InputError("sol(t) takes one time or a list of times", got=f"shape {tuple(times.shape)}")
        low, high = torch.minimum(*self._span).max(), torch.maximum(*self._span).min()
        outside = times.reshape(-1)
        outside = outside[~((outside >= low) & (outside <= high))]
        if outside.numel():
            raise InputError(
                "sol(t) is asked outside its span",
                expected=f"times from {float(low):g} to {float(high):g}",
                got=f"{float(outside[0]):g}",
                fix="Solve over a longer tspan.",
            )
        count = self._times.shape[0]
        values = self._dense(times.reshape(1, -1).expand(count, -1)).view(*self.batch, -1, len(self.names))
        return values if times.ndim else values[..., 0, :]

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw every state against time (the dense output where there is one) and return the figure.

        Args:
            path: Also write it there (PNG, SVG or PDF by its suffix).
        """
        from ude.reporting import plots

        with torch.no_grad():
            low, high = float(torch.minimum(*self._span).max()), float(torch.maximum(*self._span).min())
            t = torch.linspace(low, high, 400, dtype=self._times.dtype, device=self._times.device)
            u = self(t)
        figure = plots.solution(
            t.cpu().numpy(), u.cpu().numpy(), self.names, t_saved=self._times.cpu().numpy(), u_saved=self._saved()
        )
        if path is not None:
            figure.savefig(path)
        return figure

    def _saved(self) -> np.ndarray:
        return self._values.detach().reshape(*self._times.shape, -1).cpu().numpy()

    def _failure(self) -> SolveFailed:
        bad = self._bad
        code = ReturnCode(int(self._codes[bad[0]]))
        happened, advice = ADVICE[code]
        who = "the solve" if not self.batch else f"{len(bad)} of {len(self._codes)} trajectories (first: {bad[0]})"
        reached = float(self._reached[bad[0]])
        return SolveFailed(f"{who} failed with {code.name} at t={reached:g}: {happened}", fix=advice)

    def __repr__(self) -> str:
        ended = ", ".join(sorted({ReturnCode(code).name for code in self._codes.tolist()}))
        return (
            f"Solution({ended}; u {tuple(self._values.shape)}, states {', '.join(self.names)}; "
            f"{self.stats.algorithm} in the {self.stats.engine} engine)"
        )
