"""What a solve cost and which methods ran it."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Int
from torch import Tensor

from ude.engines import ForwardResult, SolveSpec


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a solve cost and which methods ran it.

    Args:
        nf: Calls of f, each on the whole batch.
        accepted_steps, rejected_steps: Number of steps of each trajectory, shape ``(*batch)``.
        engine: Name of the engine that ran.
        why_not: For every engine that was considered first, the sentence that says why it did not run.
        algorithm, sensealg: Names of what was used; sensealg is "none" when no gradient was possible.
        seconds: Wall-clock time of the forward solve.
        njacs, nw: Jacobians df/du and factorizations of implicit methods, each of the whole batch.
        why_algorithm: Why `solve` chose this algorithm, one sentence; empty when it was given.
        switches: How often each trajectory changed its method ``(*batch)``, for an algorithm that switches
            (`AutoSwitch`); None for others.
        nproducts: Jacobian-vector and vector-Jacobian products, each of the whole batch.

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


def statistics_of(
    result: ForwardResult,
    spec: SolveSpec,
    *,
    engine: str,
    sensealg: str,
    seconds: float,
    why_not: dict[str, str],
    why_algorithm: str,
) -> Statistics:
    """Combine what the engine counted with the names of what ran.

    Args:
        result: Counts of the engine, a row for each trajectory.
        spec: The solve; its batch is the shape of the counts.
        engine, sensealg, seconds, why_not, why_algorithm: As of `Statistics`.
    """
    axes = getattr(spec.f, "axes", None)

    def of_each(count: Tensor) -> Tensor:
        return count.view(spec.batch) if axes is None else axes.rows(count).view(axes.trajectories)

    return Statistics(
        nf=result.nf,
        accepted_steps=of_each(result.accepted_steps),
        rejected_steps=of_each(result.rejected_steps),
        engine=engine,
        algorithm=spec.algorithm.name,
        sensealg=sensealg,
        seconds=seconds,
        why_not=why_not,
        njacs=result.njacs,
        nw=result.nw,
        why_algorithm=why_algorithm,
        switches=None if result.switches is None else of_each(result.switches),
        nproducts=result.nproducts,
    )
