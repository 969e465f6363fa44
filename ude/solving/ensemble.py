"""Solve the variants of an ensemble, as batches where they fit together and one by one where they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """Results of an ensemble in order: ``ensemble[i]`` is the i-th solution or output, ``ensemble.reduced`` the total.

    Args:
        outputs: Solutions, or what output_func returned for them; empty with a reduction.
        reduced: The total of a reduction, else None.
        batches: Number of solves: 1 when all variants were solved as one batch.

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
                "the ensemble must keep its solutions", got="an output_func or a reduction", fix="Use .outputs."
            )
        return self.outputs


def solve_ensemble(
    ensemble: EnsembleProblem,
    solve_one: Callable[[ODEProblem], Solution],
    *,
    trajectories: int,
    batch_size: int,
    batched: bool,
) -> EnsembleSolution:
    """Solve all variants with `solve_one`, in batches where `batched` and the variants allow it."""
    outputs: list[Any] = []
    total, batches = ensemble.initial, 0
    for start in range(0, trajectories, batch_size):
        problems = {i: ensemble.variant(i) for i in range(start, min(start + batch_size, trajectories))}
        solved: dict[int, Solution] = {}
        for members in _groups(problems, batched):
            batches += 1
            solutions = _solve_group([problems[i] for i in members], solve_one)
            solved.update(zip(members, solutions, strict=True))
        kept = [solved[i] if ensemble.output_func is None else ensemble.output_func(solved[i], i) for i in problems]
        if ensemble.reduction is None:
            outputs += kept
        else:
            total = ensemble.reduction(total, kept)
    return EnsembleSolution(outputs, total if ensemble.reduction is not None else None, batches)


def _groups(problems: dict[int, ODEProblem], batched: bool) -> list[list[int]]:
    """Divide the variants into batches."""
    groups: dict[Any, list[int]] = {}
    for i, problem in problems.items():
        key = _key(problem) if batched else None
        groups.setdefault(i if key is None else key, []).append(i)
    return list(groups.values())


def _key(problem: ODEProblem) -> Any:
    """What the problems of one batch must share; None where a problem can only be solved by itself.

    A parameter that is a number becomes one number for each trajectory, as f expects of a batch. A parameter with axes
    of its own would change its meaning, so it must be the same tensor in all variants.
    """
    if problem.state_axes().batch:
        return None
    leaves, structure = pytree.tree_flatten(problem.p)
    shared = tuple(id(leaf) for leaf in leaves if isinstance(leaf, nn.Module) or isinstance(leaf, Tensor) and leaf.ndim)
    return (id(problem.f), str(structure), shared, tuple(problem.u0.shape), problem.u0.dtype, problem.u0.device)


def _solve_group(problems: list[ODEProblem], solve_one: Callable[[ODEProblem], Solution]) -> list[Solution]:
    """Solve the problems of one batch, as one problem."""
    first = problems[0]
    if len(problems) == 1:
        return [solve_one(first)]
    columns = zip(*(pytree.tree_flatten(problem.p)[0] for problem in problems), strict=True)
    leaves = [
        torch.stack(column) if isinstance(column[0], Tensor) and column[0].ndim == 0 else column[0]
        for column in columns
    ]
    start, end = (
        torch.stack(
            [torch.as_tensor(problem.tspan[k], dtype=first.u0.dtype, device=first.u0.device) for problem in problems]
        )
        for k in (0, 1)
    )
    together = remake(
        first,
        u0=torch.stack([problem.u0 for problem in problems]),
        tspan=(start, end),
        p=pytree.tree_unflatten(leaves, pytree.tree_flatten(first.p)[1]),
        names=first.state_names,
        state_dims=len(first.state_axes().state),
    )
    solution = solve_one(together)
    return [solution.trajectory(i) for i in range(len(problems))]
