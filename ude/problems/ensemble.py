"""Variants of one problem that are solved together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ude.errors import InputError
from ude.problems.function import require_callable
from ude.problems.ode import ODEProblem
from ude.vocabulary import OF_PROBLEMS, named_arguments

ProblemFunction = Callable[[ODEProblem, int], ODEProblem]


@named_arguments(OF_PROBLEMS)
@dataclass(frozen=True, eq=False)
class EnsembleProblem:
    """Variants of a problem, as in SciML: ``solve(EnsembleProblem(prob, prob_func), trajectories=100, saveat=...)``.

    Args:
        prob: The problem that is varied; one trajectory, u0 of shape (state,).
        prob_func: ``prob_func(prob, i)`` returns the i-th variant, usually by `remake`: another u0, p or tspan. Random
            variants should draw from a generator seeded by i, so that an ensemble does not depend on its size.
        output_func: ``output_func(sol, i)`` returns what is kept of a solution; None keeps the solution itself.
        reduction: ``reduction(total, outputs)`` adds the outputs of a batch of variants to a running total; nothing
            else is kept then, and memory does not grow with the number of variants.
        initial: The total at the start.

    Raises:
        InputError: prob is not an ODEProblem with a single trajectory.

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
            raise InputError("prob of an ensemble must be an ODEProblem", got=type(self.prob).__name__)
        for name, arguments in (("prob_func", "prob, i"), ("output_func", "sol, i"), ("reduction", "total, outputs")):
            if getattr(self, name) is not None:
                require_callable(getattr(self, name), name, arguments)
        if self.prob.state_axes().batch:
            raise InputError(
                "prob of an ensemble must be a single trajectory",
                expected="u0 of the shape of one state",
                got=str(tuple(self.prob.u0.shape)),
                fix="A batch of initial states needs no ensemble: solve it directly.",
            )

    def variant(self, i: int) -> ODEProblem:
        """Return the i-th problem.

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
