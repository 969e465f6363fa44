"""What the continuous adjoints share: ``dlambda/dt = -(df/du)^T lambda`` solved backwards from save to save.

With a mass matrix it is ``M^T dlambda/dt = -(df/du)^T lambda``; `_algebraic.py` says what happens at saves then.

L. S. Pontryagin et al., The Mathematical Theory of Optimal Processes (1962); for the variants see C. Rackauckas et al.,
A comparison of automatic differentiation and continuous sensitivity analysis, arXiv:1812.01892.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import NO_CHECKS, SolveSpec, add, as_batch, differentiable, live_leaves
from ude.engines.mass_matrix import MassMatrix
from ude.engines.structure import started
from ude.errors import EngineRefused
from ude.methods import BrownFullBasicInit
from ude.sensitivity.algebraic import jump
from ude.sensitivity.base import Solved
from ude.sensitivity.reading import Gradient

#: Reads a state at one time a trajectory: t (B,) -> (B, n).
Path = Callable[[Float[Tensor, "B"]], Float[Tensor, "B n"]]
#: Start and end of a backward piece, of each trajectory.
Span = tuple[Float[Tensor, "B"], Float[Tensor, "B"]]
Totals = list[Tensor | None]
#: Solves backwards over a span: (span, z) -> (z at its end, the leaves' gradient on the way).
Piece = Callable[[Span, Tensor], tuple[Tensor, Totals]]


@dataclass(frozen=True, eq=False)
class Costate:
    """``dlambda/dt = -(df/du)^T lambda`` with the state read from the recorded solve.

    Implicit methods ask for its derivatives by lambda and t, so for second derivatives of f: then the graph is kept.
    """

    spec: SolveSpec
    path: Path

    def __call__(self, z: Tensor, p: Sequence[Tensor], t: Tensor) -> Tensor:
        adjoint, lanes = z.reshape(-1, z.shape[-1]), t.reshape(-1)
        twice = torch.is_grad_enabled() and (z.requires_grad or t.requires_grad)
        with torch.enable_grad():
            u = self.path(lanes)
            u = u if u.requires_grad and twice else u.detach().requires_grad_()
            pulled = pull(as_batch(self.spec, u, lanes, p), u, adjoint, twice=twice)
        return -pulled.view(z.shape)


def pull(du: Tensor, u: Tensor, adjoint: Tensor, *, twice: bool) -> Tensor:
    """``(df/du)^T adjoint``; zero where f does not depend on u."""
    if not du.requires_grad:
        return torch.zeros_like(u)
    (pulled,) = torch.autograd.grad(du, u, adjoint, allow_unused=True, create_graph=twice)
    return torch.zeros_like(u) if pulled is None else pulled


def sweep(
    solved: Solved,
    p: Sequence[Tensor],
    read: tuple[Tensor, Tensor],
    start: Tensor,
    piece: Piece,
    state_at: Callable[[Tensor, Tensor], Tensor],
) -> Gradient:
    """Go from the end of the span to its start, from save to save, where lambda jumps by the saves' cotangents.

    Args:
        read: The times (B, T) of the saves and the cotangents of what was read there.
        start: z at the end of the span (B, m); its last n components are lambda, zero there.
        state_at: Gives u (B, n) at the time (B,) at which z (B, m) stands.
    """
    times, grad = read
    spec, states = solved.spec, grad.shape[-1]
    z, now = start, spec.t1
    totals: Totals = [None] * len(p)
    sign = spec.sign
    # a leg between events is asked for all saves; those outside it carry no cotangent
    times = torch.minimum(
        torch.maximum(times, torch.minimum(spec.t0, spec.t1).unsqueeze(-1)),
        torch.maximum(spec.t0, spec.t1).unsqueeze(-1),
    )
    order = (times * sign.unsqueeze(-1)).argsort(dim=1, stable=True)

    def move(when: Tensor) -> None:
        nonlocal z, now, totals
        if bool((when != now).any()):
            z, parts = piece((now, when), z)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
            now = when

    for column in reversed(range(times.shape[1])):
        save = order[:, column : column + 1]
        move(times.gather(1, save).squeeze(1))
        of_u = grad.gather(1, save.unsqueeze(-1).expand(-1, -1, states)).squeeze(1)
        if spec.mass is not None:
            of_u, parts = jump(spec, p, state_at(now, z), now, of_u)
            totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
        z = torch.cat([z[:, :-states], z[:, -states:] + of_u], dim=1)
    move(spec.t0)
    wanted = differentiable(p)
    of_u0 = z[:, -states:]
    if spec.mass is not None:
        of_u0 = spec.mass.times(of_u0, transposed=True)
    return of_u0, tuple(total if need else None for total, need in zip(totals, wanted, strict=True))


@dataclass(frozen=True, eq=False)
class Backward:
    """A finished backward solve over one piece."""

    spec: SolveSpec
    record: Any
    end: Float[Tensor, "B m"]


def solve_back(
    solved: Solved, f: Any, span: Span, z: Tensor, p: Sequence[Tensor], tolerances: tuple[Any, Any]
) -> Backward | None:
    """Solve ``dz/dt = f`` over a backward span with the method of the forward solve; None when it does not arrive.

    Args:
        tolerances: abstol and reltol; None takes those of the forward solve.
    """
    spec = solved.spec
    states = solved.end.shape[1]
    abstol, reltol = (
        own if given is None else torch.as_tensor(given).to(own)
        for given, own in zip(tolerances, (spec.abstol, spec.reltol), strict=True)
    )
    if reltol.ndim or abstol.ndim:
        # lambda has other units than u: without numbers of its own it gets the same ones as its state
        times = z.shape[1] // states
        reltol, abstol = reltol.expand(states).repeat(times), abstol.expand(states).repeat(times)
    backward = replace(
        spec,
        f=f,  # called like a FlatRightHandSide
        t0=span[0],
        t1=span[1],
        saveat=None,
        checks=NO_CHECKS,
        resume=None,
        compact=False,
        abstol=abstol,
        reltol=reltol,
        first_du=z,
        mass=_mass_of(spec.mass, together=z.shape[1] > states),
        initializealg=BrownFullBasicInit(),
        jac=None,
        coloring=None,
    )
    if backward.mass is None:
        backward = replace(backward, first_du=f(z, p, span[0]))
    else:
        z, backward = started(backward, z, p)
    result = solved.engine.forward(backward, z, p)
    arrived = result.retcode == 0
    if not bool((arrived if spec.failed is None else arrived | spec.failed).all()):
        return None
    return Backward(backward, result.record, result.record.u_end)


def _mass_of(mass: MassMatrix | None, *, together: bool) -> MassMatrix | None:
    """The mass matrix of lambda, or of the state and lambda."""
    if mass is None:
        return None
    return mass.beside(mass.transposed) if together else mass.transposed


def nothing(z: Tensor, p: Sequence[Tensor]) -> tuple[Tensor, Totals]:
    """What a backward solve that did not arrive has to give: NaN says so and never looks like a gradient."""
    return torch.full_like(z, float("nan")), [torch.full_like(leaf, float("nan")) for leaf in p]


def require_steps(name: str, solved: Solved) -> None:
    """Refuse engines whose solution cannot be read on the way back.

    Raises:
        EngineRefused: The engine keeps no steps.
    """
    if not solved.engine.keeps_steps:
        raise EngineRefused(
            f"{name} reads the recorded steps on the way back, and the engine {solved.engine.name!r} keeps none",
            fix="Use DiscreteAdjoint() or BacksolveAdjoint(), or a method of ude's own such as Tsit5().",
        )


def parameter_integral(
    solved: Solved, nodes: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], p: Sequence[Tensor]
) -> Totals:
    """``pbar = -int (df/dp)^T lambda dt`` by a rule with nodes (u, lambda, t, weight).

    The integral feeds nothing back, so it stays out of the step control (P. Kidger, R. T. Q. Chen, T. Lyons,
    "Hey, that's not an ODE", ICML 2021).
    """
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    if not inputs:
        return [None] * len(p)
    totals: Totals = [None] * len(inputs)
    for u, adjoint, t, weight in nodes:
        with torch.enable_grad():
            du = as_batch(solved.spec, u, t, leaves)
        if not du.requires_grad:
            continue
        parts = torch.autograd.grad(du, inputs, -weight.unsqueeze(-1) * adjoint, allow_unused=True)
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    found = iter(totals)
    return [next(found) if need else None for need in wanted]
