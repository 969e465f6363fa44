"""Solve the variants of an ensemble, as batches where they fit together and one by one where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ude.errors import InputError
from ude.problems.ensemble import EnsembleProblem
from ude.problems.ode import ODEProblem, remake
from ude.solving.solution import Solution


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
