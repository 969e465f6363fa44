"""Forward sensitivities: the derivative of the state, integrated along with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import NO_CHECKS, SolveSpec, as_batch, differentiable
from ude.engines.structure import started
from ude.methods import BrownFullBasicInit
from ude.sensitivity.base import Solved
from ude.sensitivity.reading import first_derivative_only


@dataclass(frozen=True, eq=False)
class _Tangent:
    """``d(u, S_1 ... S_m)/dt = (f, J S_1 + f_1, ..., J S_m + f_m)`` with f_j the derivative by the j-th direction.

    The first n directions are those of u0; the others the elements of the leaves, one after another.
    """

    spec: SolveSpec
    leaves: tuple[Tensor, ...]
    wanted: tuple[int, ...]
    directions: tuple[Tensor, ...]

    def __call__(self, z: Tensor, p: Sequence[Tensor], t: Tensor) -> Tensor:
        lanes = t.reshape(-1)
        states = z.shape[-1] // (1 + len(self.directions[0]))
        parts = z.reshape(len(lanes), -1, states)
        u, tangents = parts[:, 0], parts[:, 1:].transpose(0, 1)

        varied = [self.leaves[i].detach().requires_grad_() for i in self.wanted]
        values = list(self.leaves)
        for i, leaf in zip(self.wanted, varied, strict=True):
            values[i] = leaf
        # implicit methods ask for derivatives by z and t, and so for second derivatives of f
        twice = torch.is_grad_enabled() and (z.requires_grad or t.requires_grad)
        point = u if twice and u.requires_grad else u.detach().requires_grad_()
        with torch.enable_grad():
            du = as_batch(self.spec, point, lanes, values)
            dtangents = _push(du, [point, *varied], [tangents, *self.directions[1:]], twice=twice)
        du = du if twice else du.detach()
        return torch.cat([du.unsqueeze(1), dtangents.transpose(0, 1)], 1).reshape(z.shape)


def _push(du: Tensor, inputs: Sequence[Tensor], tangents: Sequence[Tensor], *, twice: bool) -> Float[Tensor, "m B n"]:
    """Derivatives of du (B, n) along m directions; `tangents` has each input's part of them, (m, *shape).

    The vector-Jacobian product is linear in its vector, so its own derivative by the vector is the Jacobian-vector
    product: reverse mode twice, which all of torch supports, where forward mode lacks operations.
    """
    nothing = du.new_zeros(len(tangents[0]), *du.shape)
    if not du.requires_grad:
        return nothing
    with torch.enable_grad():
        vector = torch.zeros_like(du, requires_grad=True)
        pulled = torch.autograd.grad(du, inputs, vector, create_graph=True, allow_unused=True)
    used = [
        (row, tangent) for row, tangent in zip(pulled, tangents, strict=True) if row is not None and row.requires_grad
    ]
    if not used:
        return nothing
    rows, parts = zip(*used, strict=True)
    try:
        pushed = torch.autograd.grad(rows, vector, parts, retain_graph=True, create_graph=twice, is_grads_batched=True)[
            0
        ]
    except RuntimeError:
        # an operation of f has no batching rule for its second derivative: one direction at a time does
        single = [
            torch.autograd.grad(rows, vector, [part[j] for part in parts], retain_graph=True, create_graph=twice)[0]
            for j in range(len(tangents[0]))
        ]
        pushed = torch.stack(single)
    return pushed if twice else pushed.detach()


@dataclass(frozen=True)
class ForwardSensitivity:
    """Integrate ``dS/dt = (df/du) S + df/dp`` with the state: best for few parameters and many outputs.

    The cost grows with the number of states and of parameter elements together; it does not grow with the number of
    saves, and no reverse sweep is needed. The sensitivities obey the tolerances of the solve, or their own.
    First derivatives only.

    Args:
        abstol, reltol: Tolerances of the sensitivities; None takes those of the state.

    Source: E. Hairer, S. P. Norsett, G. Wanner, Solving Ordinary Differential Equations I, I.14.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.ForwardSensitivity(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """

    abstol: float | None = None
    reltol: float | None = None

    @property
    def name(self) -> str:
        return "ForwardSensitivity"

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        wanted = tuple(i for i, need in enumerate(differentiable(p)) if need)
        sensitivity = self._solve(solved, times, u0, p, wanted)
        lanes, states = u0.shape
        # zero in value, and with the sensitivities as its derivative
        moved = [(u0 - u0.detach()).transpose(0, 1)]
        moved += [(p[i] - p[i].detach()).reshape(-1, 1).expand(-1, lanes) for i in wanted]
        change = torch.einsum("btmn,mb->btn", sensitivity, torch.cat(moved))
        return values + first_derivative_only(self.name, change, u0, *p)

    def _solve(
        self, solved: Solved, times: Tensor, u0: Tensor, p: Sequence[Tensor], wanted: tuple[int, ...]
    ) -> Float[Tensor, "B T m n"]:
        """Sensitivities of the states at `times` by u0 and by every element of the wanted leaves."""
        spec = solved.spec
        lanes, states = u0.shape
        leaves = tuple(leaf.detach() for leaf in p)
        count = states + sum(leaves[i].numel() for i in wanted)
        tangent = _Tangent(spec, leaves, wanted, _directions(leaves, wanted, count, states))
        z0 = u0.new_zeros(lanes, 1 + count, states)
        z0[:, 0] = u0.detach()
        z0[:, 1 : 1 + states] = torch.eye(states, dtype=u0.dtype, device=u0.device)
        z0 = z0.reshape(lanes, -1)
        sign = spec.sign.unsqueeze(-1)
        # a leg between events is asked for all saves; NaN outside it would reach the gradient
        low, high = torch.minimum(spec.t0, spec.t1).unsqueeze(-1), torch.maximum(spec.t0, spec.t1).unsqueeze(-1)
        times = torch.minimum(torch.maximum(times, low), high)
        order = (times * sign).argsort(dim=1, stable=True)
        with torch.no_grad():
            augmented = replace(
                spec,
                f=tangent,
                saveat=times.gather(1, order),
                abstol=_tolerance(spec.abstol, self.abstol, states, count),
                reltol=_tolerance(spec.reltol, self.reltol, states, count),
                first_du=z0,
                watch=None,
                mass=None if spec.mass is None else spec.mass.repeated(1 + count),
                initializealg=BrownFullBasicInit(),
                jac=None,
                coloring=None,
                checks=NO_CHECKS,
                resume=None,
                compact=False,
            )
            if augmented.mass is None:
                augmented = replace(augmented, first_du=tangent(z0, (), spec.t0))
            else:
                # directions that leave the algebraic equations are brought back; a consistent start moves along none
                z0, augmented = started(augmented, z0, ())
            result = solved.engine.forward(augmented, z0, ())
        # a solve that did not arrive leaves NaN, which reaches the gradient and never looks like one
        inverse = order.argsort(dim=1).unsqueeze(-1).expand(-1, -1, result.values.shape[-1])
        path = result.values.gather(1, inverse).reshape(lanes, times.shape[1], 1 + count, states)
        if augmented.failed is not None:
            # no start, no values: these must not spoil the gradient of what the trajectories share
            path = torch.where(augmented.failed.view(-1, 1, 1, 1), 0.0, path)
        return path[:, :, 1:]


def _directions(leaves: Sequence[Tensor], wanted: Sequence[int], count: int, states: int) -> tuple[Tensor, ...]:
    """For u, and for each wanted leaf, its part of every direction: (count, *shape)."""
    like = leaves[0] if leaves else torch.empty(0, dtype=torch.float64)
    parts = [like.new_zeros(count, 0)]
    position = states
    for i in wanted:
        size = leaves[i].numel()
        part = leaves[i].new_zeros(count, size)
        part[position : position + size] = torch.eye(size, dtype=part.dtype, device=part.device)
        parts.append(part.reshape(count, *leaves[i].shape))
        position += size
    return tuple(parts)


def _tolerance(of_state: Tensor, own: float | None, states: int, count: int) -> Tensor:
    row = of_state.expand(states)
    rest = row if own is None else torch.full_like(row, own)
    return torch.cat([row, rest.repeat(count)])
