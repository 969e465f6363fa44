"""Variants of one problem, to be solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ude.errors import InputError
from ude.problems.ode import ODEProblem

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
    output_func: Callable[[Any, int], Any] | None = None
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
