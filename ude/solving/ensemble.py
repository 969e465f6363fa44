"""Many variants of one problem: solved as one batch where they can be, one after another where they cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ude.errors import InputError
from ude.problems.ode import ODEProblem, remake
from ude.solving.solution import Solution

ProblemFunction = Callable[[ODEProblem, int], ODEProblem]


@dataclass(frozen=True, eq=False)
class EnsembleProblem:
    """Variants of a problem, as in SciML: ``solve(EnsembleProblem(prob, prob_func), trajectories=100, saveat=...)``.

    Args:
        prob: The problem that is varied; one trajectory, u0 of shape (state,).
        prob_func: ``prob_func(prob, i)`` returns the i-th variant, usually by `remake`: another u0, p or tspan. Random
            variants should draw from a generator seeded by i, so that an ensemble does not depend on its size.
        output_func: ``output_func(sol, i)`` reduces a solution to what is kept of it; None keeps the solution.
        reduction: ``reduction(total, outputs)`` folds what a chunk of variants kept into a running total, starting from
            `initial`; with it, nothing else is kept, and memory does not grow with the number of variants.
        initial: What `reduction` starts from.

    >>> f = lambda u, p, t: (-p.k * u[..., 0])[..., None]  # variants are a batch: k has one number for each
    >>> prob = ude.ODEProblem(f, [1.0], (0.0, 1.0), dict(k=1.0))
    >>> ensemble = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, p=dict(k=1.0 + i)))
    >>> result = ude.solve(ensemble, ude.Tsit5(), trajectories=3, saveat=1.0)
    >>> result.u.shape, result.batches
    (torch.Size([3, 2, 1]), 1)
    """

    prob: ODEProblem
    prob_func: ProblemFunction | None = None
    output_func: Callable[[Solution, int], Any] | None = None
    reduction: Callable[[Any, list[Any]], Any] | None = None
    initial: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.prob, ODEProblem):
            raise InputError("an ensemble varies an ODEProblem", got=type(self.prob).__name__)
        if self.prob.u0.ndim != 1:
            raise InputError(
                "an ensemble varies a single trajectory",
                expected="u0 of shape (state,)",
                got=str(tuple(self.prob.u0.shape)),
                fix="A batch of initial states needs no ensemble: solve it as it is.",
            )

    def variant(self, i: int) -> ODEProblem:
        """The i-th problem.

        Raises:
            InputError: prob_func returned something that is not a problem.
        """
        if self.prob_func is None:
            return self.prob
        made = self.prob_func(self.prob, i)
        if not isinstance(made, ODEProblem):
            raise InputError(
                "prob_func must return a problem", got=type(made).__name__, fix="Return remake(prob, ...)."
            )
        return made


@dataclass(frozen=True, eq=False)
class EnsembleSolution:
    """What an ensemble kept, in order. ``ensemble[i]`` is the i-th solution (or output), ``ensemble.reduced`` the fold.

    Args:
        outputs: Solutions, or what output_func made of them; empty with a reduction.
        reduced: The folded total of a reduction, else None.
        batches: How many solves it took: 1 when all variants went into one batch.

    >>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0))
    >>> total = ude.EnsembleProblem(
    ...     prob,
    ...     lambda prob, i: ude.remake(prob, u0=[float(i)]),
    ...     output_func=lambda sol, i: float(sol.u[-1, 0]),
    ...     reduction=lambda total, outputs: total + sum(outputs),
    ...     initial=0.0,
    ... )
    >>> round(ude.solve(total, ude.Tsit5(), trajectories=4, reltol=1e-8, abstol=1e-8).reduced, 5)  # 6/e
    2.20728
    """

    outputs: list[Any]
    reduced: Any = None
    batches: int = 0

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, i: int) -> Any:
        return self.outputs[i]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.outputs)

    @property
    def u(self) -> Tensor:
        """States of all variants ``(trajectories, time, state)``, where all were saved at equally many times."""
        return torch.stack([solution.u for solution in self._solutions()])

    @property
    def success(self) -> Tensor:
        return torch.stack([solution.success for solution in self._solutions()])

    def _solutions(self) -> list[Solution]:
        if not self.outputs or not isinstance(self.outputs[0], Solution):
            raise InputError(
                "this ensemble kept no solutions", got="an output_func or a reduction", fix="Use .outputs."
            )
        return self.outputs


@dataclass
class _Group:
    """Variants that can be one batch: same f, same structure, same dtype."""

    members: list[int] = field(default_factory=list)
    problems: list[ODEProblem] = field(default_factory=list)


def solve_ensemble(
    ensemble: EnsembleProblem,
    solve_one: Callable[[ODEProblem], Solution],
    *,
    trajectories: int,
    batch_size: int,
    batched: bool,
) -> EnsembleSolution:
    """Solve all variants with `solve_one`, in batches where `batched` and the variants allow it."""
    if trajectories < 1 or batch_size < 1:
        raise InputError(
            "an ensemble needs trajectories",
            expected="at least 1",
            got=f"trajectories={trajectories}, batch_size={batch_size}",
        )
    outputs: list[Any] = []
    total, batches = ensemble.initial, 0
    for start in range(0, trajectories, batch_size):
        indices = range(start, min(start + batch_size, trajectories))
        chunk: dict[int, Solution] = {}
        for group in _groups(ensemble, indices, batched):
            batches += 1
            chunk.update(zip(group.members, _solve_group(group, solve_one), strict=True))
        kept = [chunk[i] if ensemble.output_func is None else ensemble.output_func(chunk[i], i) for i in indices]
        if ensemble.reduction is None:
            outputs += kept
        else:
            total = ensemble.reduction(total, kept)
    return EnsembleSolution(outputs, total if ensemble.reduction is not None else None, batches)


def _groups(ensemble: EnsembleProblem, indices: Sequence[int], batched: bool) -> list[_Group]:
    groups: dict[Any, _Group] = {}
    for i in indices:
        problem = ensemble.variant(i)
        key = _key(problem) if batched else i
        group = groups.setdefault(i if key is None else key, _Group())
        group.members.append(i)
        group.problems.append(problem)
    return list(groups.values())


def _key(problem: ODEProblem) -> Any:
    """What problems of one batch must share; None where a problem can only be solved by itself.

    A parameter that is a number becomes one number a trajectory, as f expects of a batch. One with axes of its own
    would change its meaning, so it must be the same tensor in all variants.
    """
    leaves, structure = pytree.tree_flatten(problem.p)
    shared = tuple(
        id(leaf) for leaf in leaves if isinstance(leaf, nn.Module) or (isinstance(leaf, Tensor) and leaf.ndim)
    )
    if problem.u0.ndim != 1:
        return None
    return (id(problem.f), str(structure), shared, tuple(problem.u0.shape), problem.u0.dtype, problem.u0.device)


def _solve_group(group: _Group, solve_one: Callable[[ODEProblem], Solution]) -> list[Solution]:
    if len(group.problems) == 1:
        return [solve_one(group.problems[0])]
    first = group.problems[0]
    flat = [pytree.tree_flatten(problem.p)[0] for problem in group.problems]
    structure = pytree.tree_flatten(first.p)[1]
    leaves = [
        torch.stack(column) if isinstance(column[0], Tensor) and column[0].ndim == 0 else column[0]
        for column in (list(items) for items in zip(*flat, strict=True))
    ]
    spans = [torch.stack([_number(problem.tspan[k], first.u0) for problem in group.problems]) for k in (0, 1)]
    together = remake(
        first,
        u0=torch.stack([problem.u0 for problem in group.problems]),
        tspan=tuple(spans),
        p=pytree.tree_unflatten(leaves, structure),
        names=first.state_names,
    )
    solution = solve_one(together)
    return [solution.trajectory(i) for i in range(len(group.problems))]


def _number(value: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
