"""The engine protocol: how a solve is executed, and the choice of engine with its reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.engines.mass_matrix import MassMatrix
from ude.errors import EngineRefused
from ude.methods import Algorithm, BrownFullBasicInit, Coloring, Controller, InitializationAlgorithm

#: Which states of a solve are kept for the way back: all, the first alone, or at most so many.
Checkpoints = Literal["all", "logarithmic"] | int


@dataclass(frozen=True, eq=False)
class StepChecks:
    """What the user has to say about every step, as functions of u (B, n), the leaves p, and t, dt (B,).

    Args:
        isoutofdomain: ``(u, p, t) -> (B,)`` booleans: a step that ends there is rejected and tried again shorter.
        unstable_check: ``(dt, u, p, t) -> (B,)`` booleans: a trajectory whose accepted step ends there is given up.
        internalnorm: ``(error, t) -> (B,)``, the norm of scaled errors (B, n) in place of their root mean square.
        scalefactor: The factor at most of a step that isoutofdomain rejects; None is the controller's smallest.
    """

    isoutofdomain: Callable[[Tensor, Sequence[Tensor], Tensor], Bool[Tensor, "B"]] | None = None
    unstable_check: Callable[[Tensor, Tensor, Sequence[Tensor], Tensor], Bool[Tensor, "B"]] | None = None
    internalnorm: Callable[[Tensor, Tensor], Float[Tensor, "B"]] | None = None
    scalefactor: float | None = None


#: Of systems that a sensitivity solves in place of the user's, whose states mean something else.
NO_CHECKS = StepChecks()


@dataclass(frozen=True, eq=False)
class StepControl:
    """Where the step control of a solve stands at its end, for a solve that goes on from there.

    Args:
        dt: The step that each trajectory would try next, positive (B,).
        jumped: Whose state was changed since, so that the step may be too long and the memory tells nothing (B,).
        memory: What the controller remembers, its `Controller.start` a trajectory; each (B,).
        history: Whatever a scheme of several steps remembers; None for all others.
    """

    dt: Float[Tensor, "B"]
    jumped: Bool[Tensor, "B"]
    memory: tuple[Float[Tensor, "B"], ...]
    history: Any = None


@dataclass(frozen=True, eq=False)
class SolveSpec:
    """A validated solve. B is the number of trajectories, n of states; `batch` is the shape that f sees.

    Args:
        t0, t1: Start and end of every trajectory (B,).
        saveat: Times to save at (B, T), in the direction of integration; None saves every accepted step.
        abstol, reltol: 0-d, or (n,).
        first_du: u'(t0) = f(u0, p, t0) of shape (B, n), already computed by validation.
        dt: First step (or the step, when not adaptive), positive; None lets the engine choose.
        dtmin: Smallest step allowed; 0 means the resolution of the time itself.
        force_dtmin: Whether a step of that size is taken whatever its error.
        checks: The user's own conditions on steps.
        resume: Where the step control goes on from; None starts afresh.
        compact: Whether trajectories that have finished may leave the batch; the record is then read by `interpolate`
            and `pullback` alone.
        watch: Called as ``watch(t, u, t_next, u_next, moved)`` after an iteration in which some trajectory accepted a
            step (those in `moved`); says which trajectories shall end there (B,). Events are found this way.
        checkpoints: Which states the record holds; steps in between are taken again where they are needed.
        start: u0 (B, n) and the leaves of p, of a solve that `solve` started: engines that look at f before they run
            it need them. The larger systems of sensitivity algorithms have none.
        gradient: Whether a gradient of this solve may be asked for.
        stiff: Of a method that switches, which trajectories begin with the implicit one; None lets the method say.
        mass: M of ``M u' = f``; None is the identity. Then `first_du` is u', not f.
        initializealg: How states are made consistent with a singular M.
        failed: Trajectories without a consistent start; they take no step.
        jac: df/du of f's author, called like f; returns ``(*batch, n, n)``.
        coloring: Which columns or rows of df/du one product finds together.
    """

    f: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]
    batch: tuple[int, ...]
    t0: Float[Tensor, "B"]
    t1: Float[Tensor, "B"]
    saveat: Float[Tensor, "B T"] | None
    algorithm: Algorithm
    abstol: Tensor
    reltol: Tensor
    controller: Controller
    first_du: Float[Tensor, "B n"]
    dt: float | None = None
    dtmin: float = 0.0
    dtmax: float = float("inf")
    adaptive: bool = True
    maxiters: int = 100_000
    watch: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Bool[Tensor, "B"]] | None = None
    checkpoints: Checkpoints = "all"
    start: tuple[Float[Tensor, "B n"], tuple[Tensor, ...]] | None = None
    gradient: bool = False
    stiff: Bool[Tensor, "B"] | None = None
    mass: MassMatrix | None = None
    initializealg: InitializationAlgorithm = field(default_factory=BrownFullBasicInit)
    failed: Bool[Tensor, "B"] | None = None
    jac: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor] | None = None
    coloring: Coloring | None = None
    force_dtmin: bool = False
    checks: StepChecks = NO_CHECKS
    resume: StepControl | None = None
    compact: bool = False

    @property
    def sign(self) -> Float[Tensor, "B"]:
        """1 for trajectories that run forward in time, -1 for those that run backward."""
        return torch.where(self.t1 >= self.t0, 1.0, -1.0).to(self.t0.dtype)


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What an engine remembers of a solve: one state a step; everything else is recomputed from it.

    Rows are iterations in which some trajectory accepted a step; a trajectory that did not has dt = 0 there,
    so its step is the identity.

    Args:
        t: Start of each step (rows + 1, B); the last row is the time reached. It is kept rather than added up from
            dt, since a rounding error would push a save at the very end out of the last step.
        dt: Signed size of each step (rows, B).
        u: State at the start of each step (rows + 1, B, n); the last row is the final state. With checkpoints, the
            states at the rows `kept`, and the final state.
        k1: Derivative that each step started with (rows, B, n), of methods that carry it over from the step before
            and cannot compute it again from the state. With checkpoints, at the rows `kept`.
        kept: The rows whose states are held; None when all are.
        fan: With checkpoints, how many states are held between two of them while steps are taken again; None halves
            the way between them again and again.
        implicit: Of a method that switches, which rows are steps of the implicit one. Trajectories that take steps of
            different methods at the same time do so in two rows, and each stands still in the other's.
        goes_on: With `implicit`, of a record that goes on after another: whose last step there was implicit (B,).
        order: Order of each step (rows, B), of methods that change it; 0 where a trajectory stood still.
    """

    t: Float[Tensor, "rows_and_end B"]
    dt: Float[Tensor, "rows B"]
    u: Float[Tensor, "rows_and_end B n"]
    k1: Float[Tensor, "rows B n"] | None = None
    kept: tuple[int, ...] | None = None
    fan: int | None = None
    implicit: tuple[bool, ...] | None = None
    goes_on: Bool[Tensor, "B"] | None = None
    order: Int[Tensor, "rows B"] | None = None

    @property
    def u_end(self) -> Float[Tensor, "B n"]:
        """The final state."""
        return self.u[-1]


@dataclass(frozen=True, eq=False)
class ForwardResult:
    """Outcome of `Engine.forward`.

    Args:
        times, values: What was saved, (B, T) and (B, T, n). Without `saveat`, a trajectory with fewer steps than
            others repeats its end. Values that a failed trajectory did not reach are NaN.
        retcode: `ReturnCode` of each trajectory (B,).
        t_end: Time reached (B,).
        nf: Calls of f on the whole batch.
        njacs, nw: Jacobians and factorizations of the whole batch.
        switches: Of a method that switches, how often each trajectory did (B,).
        stiff: Of such a method, which trajectories ended with the implicit one (B,).
        nproducts: Jacobian-vector and vector-Jacobian products of the whole batch.
        control: Where the step control stands, of engines that can go on from it.
        fresh: Whether the values belong to nobody else, so that they can be handed out without a copy.
        handed_on: Where another engine ran the solve after all: its name, and why.
    """

    times: Float[Tensor, "B T"]
    values: Float[Tensor, "B T n"]
    record: Any
    retcode: Int[Tensor, "B"]
    t_end: Float[Tensor, "B"]
    accepted_steps: Int[Tensor, "B"]
    rejected_steps: Int[Tensor, "B"]
    nf: int
    njacs: int = 0
    nw: int = 0
    switches: Int[Tensor, "B"] | None = None
    stiff: Bool[Tensor, "B"] | None = None
    nproducts: int = 0
    control: StepControl | None = None
    fresh: bool = False
    handed_on: tuple[str, str] | None = None


class Engine(Protocol):
    """Executes solves. A sensitivity algorithm receives the engine and never looks inside it."""

    name: str
    #: Whether the record holds the steps, so that they can be read (`dense`) and thinned out.
    keeps_steps: bool

    def why_not(self, spec: SolveSpec) -> str | None:
        """Return one sentence that says why this engine cannot run the solve, or None when it can."""

    def why_wait(self, spec: SolveSpec) -> str | None:
        """Return one sentence that says why this engine does not pay (yet) where it is not asked for by name."""

    def learn(self, spec: SolveSpec, calls: int) -> None:
        """Be told that another engine ran the solve, with so many calls of f."""

    def recall(self, prob: Any, options: Sequence[Any], saveat: Any) -> SolveSpec | None:
        """The solve that `prepare` was given for this problem and these options, if all of it is as it was then."""

    def is_ready(self, spec: SolveSpec) -> bool:
        """Whether the solve can run at once, with nothing left to be checked."""

    def prepare(self, prob: Any, options: Sequence[Any], saveat: Any, spec: SolveSpec) -> None:
        """Keep a solve that `is_ready`, for `recall`."""

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        """Integrate, without building an autograd graph."""

    def interpolate(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        """Evaluate the dense output of a recorded solve; times may be in any order inside the span."""

    def pullback(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        """Pull the cotangents `grad` (B, T, n) of u(times) back to u0 and to the leaves p.

        The result is the exact derivative of the steps taken; step sizes count as constants.
        """

    def backsolve(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]] | None:
        """The gradient by an adjoint of the engine's own, solved backwards; None where it has none."""

    def dense(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor]
    ) -> Callable[[Float[Tensor, "B"]], Float[Tensor, "B n"]]:
        """Compute the dense output of every recorded step once; the result reads it at one time a trajectory.

        What is read is differentiable with respect to the times.

        Raises:
            EngineRefused: The engine keeps no steps.
        """

    def replay(
        self, spec: SolveSpec, record: Any, u0: Float[Tensor, "B n"], p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        """Take the recorded steps again with an autograd graph from u0 and p, and read them at `times`."""

    def quadrature_nodes(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], rule: Literal["own", "gauss"] = "own"
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        """Yield (state, time, weight) such that ``sum weight g(state, time)`` integrates g along the solution
        with the order of the method: by its own stages and weights, or by Gauss's nodes on the dense output."""


class PlainEngine:
    """What engines answer that prepare nothing, learn nothing and have no adjoint of their own."""

    def why_wait(self, spec: SolveSpec) -> str | None:
        return None

    def learn(self, spec: SolveSpec, calls: int) -> None:
        return None

    def recall(self, prob: Any, options: Sequence[Any], saveat: Any) -> SolveSpec | None:
        return None

    def is_ready(self, spec: SolveSpec) -> bool:
        return False

    def prepare(self, prob: Any, options: Sequence[Any], saveat: Any, spec: SolveSpec) -> None:
        return None

    def backsolve(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]] | None:
        return None


@dataclass(frozen=True)
class EngineChoice:
    """The engine that runs, and why each of the others does not."""

    engine: Engine
    why_not: dict[str, str] = field(default_factory=dict)


def choose_engine(engines: Sequence[Engine], spec: SolveSpec, requested: str) -> EngineChoice:
    """Pick the first engine that can run the solve; a named one must be able to.

    Raises:
        EngineRefused: The engine asked for by name cannot run it, none can, or the name is unknown.
    """
    names = [engine.name for engine in engines]
    if requested not in ("auto", *names):
        raise EngineRefused("no such engine", expected=f"one of auto, {', '.join(names)}", got=repr(requested))
    reasons: dict[str, str] = {}
    for engine in engines:
        if requested not in ("auto", engine.name):
            continue
        reason = (engine.why_wait(spec) if requested == "auto" else None) or engine.why_not(spec)
        if reason is None:
            return EngineChoice(engine, reasons)
        reasons[engine.name] = reason
    told = " ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise EngineRefused(
        f"the engine {requested!r} cannot run this solve" if requested != "auto" else "no engine can run this solve",
        got=told.rstrip("."),
        fix="Use engine='auto' or another algorithm.",
    )


def as_batch(spec: SolveSpec, u: Float[Tensor, "B n"], t: Float[Tensor, "B"], p: Sequence[Tensor]) -> Tensor:
    """Call f in the shape its author sees, ``(*batch, state)``, and return (B, n)."""
    du = spec.f(u.view(*spec.batch, u.shape[-1]), p, t.view(spec.batch))
    return du.reshape(u.shape)


def live_leaves(p: Sequence[Tensor], wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """Leaves to differentiate by: tensors cut from their history, and a module's own parameters as they are."""
    return tuple(
        leaf if leaf.is_leaf and leaf.requires_grad == need else leaf.detach().requires_grad_(need)
        for leaf, need in zip(p, wanted, strict=True)
    )


def differentiable(p: Sequence[Tensor]) -> list[bool]:
    """Which leaves a gradient is wanted for."""
    return [leaf.requires_grad for leaf in p]


def add(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    """Add a share of a gradient to what there is of it; None is no gradient."""
    if part is None or total is None:
        return total if part is None else part
    return total + part


class LeafCotangents:
    """Cotangents of the leaves of p that a gradient is wanted for, summed up during a reverse sweep.

    Attributes:
        live: The leaves as they enter f during the sweep, see `live_leaves`.
        inputs: Those of them that a gradient is wanted for.
    """

    def __init__(self, p: Sequence[Tensor]) -> None:
        self._wanted = differentiable(p)
        self.live = live_leaves(p, self._wanted)
        self.inputs = [leaf for leaf, need in zip(self.live, self._wanted, strict=True) if need]
        self._totals: list[Tensor | None] = [None] * len(self.inputs)

    def add(self, parts: Sequence[Tensor | None]) -> None:
        """Add a share of each of `inputs`."""
        self._totals = [add(total, part) for total, part in zip(self._totals, parts, strict=True)]

    def result(self) -> tuple[Tensor | None, ...]:
        """Return a cotangent of every leaf; None where no gradient is wanted or f does not depend on it."""
        found = iter(self._totals)
        return tuple(next(found) if need else None for need in self._wanted)
