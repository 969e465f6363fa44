"""Check a gradient: the adjoint, forward sensitivities and finite differences, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ude.errors import InputError
from ude.methods import Algorithm
from ude.problems.ode import ODEProblem, remake
from ude.sensitivity import ForwardSensitivity
from ude.solving.default_algorithm import default_algorithm
from ude.solving.options import DEFAULTS, SolveOptions
from ude.solving.solution import Solution
from ude.solving.solve import solve_with
from ude.vocabulary import OF_SOLVE, named_arguments


@dataclass(frozen=True)
class GradientEntry:
    """One number of the gradient: where it stands, and what each way of computing it gives."""

    name: str
    adjoint: float
    forward: float
    differences: float


@dataclass(frozen=True)
class GradientCheck:
    """Report of `check_gradient`. ``print(check)`` shows the entries that agree worst.

    Args:
        entries: Every number that was compared.
        sensealg, algorithm: Names of what was checked.

    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0))
    >>> tight = ude.solving.SolveOptions(abstol=1e-9, reltol=1e-9)
    >>> check = ude.check_gradient(prob, lambda sol: sol.u[-1].sum(), options=tight)
    >>> check.worst < 1e-6, len(check.entries)  # by u0 and by k
    (True, 2)
    """

    entries: tuple[GradientEntry, ...]
    sensealg: str
    algorithm: str

    @cached_property
    def scale(self) -> float:
        """The largest entry of the gradient; errors are relative to the larger of an entry and 1e-3 of this."""
        return max((abs(entry.adjoint) for entry in self.entries), default=0.0)

    @cached_property
    def worst(self) -> float:
        """The largest relative difference between the adjoint and the others."""
        return max((self.error(entry) for entry in self.entries), default=0.0)

    def agrees(self, tolerance: float = 1e-5) -> bool:
        """Whether all ways agree to `tolerance` relative."""
        return self.worst <= tolerance

    def error(self, entry: GradientEntry) -> float:
        size = max(abs(entry.adjoint), abs(entry.differences), 1e-3 * self.scale, 1e-300)
        return max(abs(entry.adjoint - entry.forward), abs(entry.adjoint - entry.differences)) / size

    def __str__(self) -> str:
        shown = sorted(self.entries, key=self.error, reverse=True)[:10]
        width = max(len(entry.name) for entry in shown)
        lines = [
            f"{self.sensealg} with {self.algorithm}: worst disagreement {self.worst:.1e} of {len(self.entries)} numbers"
        ]
        lines.append(f"{'':{width}}  {self.sensealg:>18}  {'forward':>18}  {'differences':>18}  {'error':>8}")
        lines += [
            f"{e.name:{width}}  {e.adjoint:18.10g}  {e.forward:18.10g}  {e.differences:18.10g}  {self.error(e):8.1e}"
            for e in shown
        ]
        return "\n".join(lines)


@named_arguments(OF_SOLVE)
def check_gradient(
    prob: ODEProblem,
    loss: Callable[[Solution], Tensor],
    alg: Algorithm | None = None,
    options: SolveOptions = DEFAULTS,
    *,
    step: float = 1e-4,
    most: int = 12,
    seed: int = 0,
) -> GradientCheck:
    """Compare the gradient of ``loss(solve(prob))`` by a sensitivity algorithm with two independent computations.

    The forward sensitivities share the solver, and nothing of the adjoint. The finite differences are of order four
    and solve with a hundredth of the tolerances, so that jumps of the step control do not affect them.

    Args:
        prob: u0, the numbers in p, and the parameters of modules are all checked.
        loss: A scalar function of the solution.
        alg, options: As for `solve`; ``options.sensealg`` is what is checked.
        step: Of the differences, relative to the size of the number, or absolute for numbers below 1.
        most: How many numbers of each tensor are compared at most, drawn with `seed`.

    Raises:
        InputError: The loss is not a scalar.
        SolveFailed: A solve failed and the loss reads its values.

    >>> prob = ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0))
    >>> tight = ude.solving.SolveOptions(abstol=1e-9, reltol=1e-9)
    >>> check_gradient(prob, lambda sol: sol.u[-1].sum(), options=tight).agrees(1e-6)
    True
    """
    varied = _Varied.of(prob)
    # chosen before the tolerances are tightened, which must not lead to another choice
    alg = default_algorithm(prob, options)[0] if alg is None else alg
    tight = replace(options, abstol=_hundredth(options.abstol), reltol=_hundredth(options.reltol))

    def value(with_options: SolveOptions) -> Tensor:
        result = loss(solve_with(varied.problem, alg, with_options))
        if not isinstance(result, Tensor) or result.numel() != 1:
            got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise InputError("the loss must be a scalar tensor", got=got, fix="Sum or average it.")
        return result

    gradients = []
    for sensealg in (options.sensitivity, ForwardSensitivity()):
        scalar = value(replace(options, sensealg=sensealg)).reshape(())
        parts = torch.autograd.grad(scalar, varied.tensors, allow_unused=True)
        gradients.append([torch.zeros_like(x) if g is None else g for g, x in zip(parts, varied.tensors, strict=True)])
    generator = torch.Generator().manual_seed(seed)
    entries = []
    for name, tensor, adjoint, forward in zip(varied.names, varied.tensors, *gradients, strict=True):
        for index in sorted(torch.randperm(tensor.numel(), generator=generator)[:most].tolist()):
            differences = _differences(lambda: float(value(tight)), tensor, index, step)
            label = name if tensor.ndim == 0 else f"{name}{list(_place(index, tensor))}"
            entries.append(
                GradientEntry(label, float(adjoint.reshape(-1)[index]), float(forward.reshape(-1)[index]), differences)
            )
    return GradientCheck(tuple(entries), options.sensitivity.name, alg.name)


def _hundredth(tolerance: Any) -> Any:
    return torch.as_tensor(tolerance, dtype=torch.float64) / 100


@dataclass(frozen=True, eq=False)
class _Varied:
    """The problem with leaves of its own, and what they are called."""

    problem: ODEProblem
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, prob: ODEProblem) -> _Varied:
        names, tensors = ["u0"], [prob.u0.detach().clone().requires_grad_()]
        with_paths, structure = pytree.tree_flatten_with_path(prob.p)
        leaves: list[Any] = []
        for path, leaf in with_paths:
            label = ".".join(["p", *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)])
            if isinstance(leaf, nn.Module):
                names += [f"{label}.{name}" for name, q in leaf.named_parameters() if q.requires_grad]
                tensors += [q for q in leaf.parameters() if q.requires_grad]
            elif isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaf = leaf.detach().clone().requires_grad_()
                names.append(label)
                tensors.append(leaf)
            leaves.append(leaf)
        if isinstance(prob.f, nn.Module):
            names += [f"f.{name}" for name, q in prob.f.named_parameters() if q.requires_grad]
            tensors += [q for q in prob.f.parameters() if q.requires_grad]
        problem = remake(prob, u0=tensors[0], p=pytree.tree_unflatten(leaves, structure))
        return cls(problem, tuple(names), tuple(tensors))


def _differences(value: Callable[[], float], tensor: Tensor, index: int, step: float) -> float:
    """Five-point central difference by one element, which is put back whatever happens."""
    size = step * max(abs(float(tensor.detach().reshape(-1)[index])), 1.0)
    found = {}
    for times in (-2, -1, 1, 2):
        with _moved(tensor, index, times * size), torch.no_grad():
            found[times] = value()
    return (8 * (found[1] - found[-1]) - (found[2] - found[-2])) / (12 * size)


@contextmanager
def _moved(tensor: Tensor, index: int, by: float) -> Iterator[None]:
    flat = tensor.detach().view(-1)
    before = flat[index].clone()
    flat[index] += by
    try:
        yield
    finally:
        flat[index] = before


def _place(index: int, tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(index), tensor.shape))
