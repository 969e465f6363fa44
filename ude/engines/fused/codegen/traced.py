"""A right-hand side, its pullback and its Jacobian, traced into one program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from ude.engines.fused.codegen.family import FusedFamily
from ude.engines.fused.graph.lower import Lowering, sinks_of
from ude.engines.fused.graph.program import Addresses, Contract, Map, Program, Sink, Unfusable
from ude.engines.fused.graph.sparsity import Pattern, dependence
from ude.engines.fused.graph.trace import trace_forward, trace_jacobian, trace_pullback
from ude.methods.coloring import group_lines


@dataclass(frozen=True, eq=False)
class Traced:
    """A right-hand side as a program.

    Args:
        own: Which leaves have a row a trajectory.
        captured: Tensors that f refers to beside its leaves; the kernel reads them afresh at every solve.
        frozen: Tensors of indices, whose numbers are part of the program.
    """

    program: Program
    states: int
    sizes: tuple[int, ...]
    own: tuple[bool, ...]
    wanted: tuple[bool, ...]
    captured: tuple[Tensor, ...]
    frozen: tuple[Tensor, ...]
    u: Addresses
    t: Addresses
    cotangent: Addresses
    du: Addresses
    of_u: Addresses | None
    sinks: tuple[Sink, ...]
    jacobian: Addresses | None = None
    rows: JacobianRows | None = None

    def work(self) -> tuple[int, int]:
        """Of one call of f: multiply-adds with matrices that all trajectories share, and pointwise results."""
        operations = [one for one in self.program.needed([self.du]) if not one.out.uniform]
        shared = [
            one
            for one in operations
            if isinstance(one, Contract) and (self.program.uniform(one.left) or self.program.uniform(one.right))
        ]
        return sum(prod(one.sizes) for one in shared), sum(one.out.numel for one in operations if isinstance(one, Map))


@dataclass(frozen=True, eq=False)
class JacobianRows:
    """A Jacobian that is put together of pullbacks: each gives all rows of one color, which share no column.

    Args:
        of_u: The cotangent of u that `Traced.cotangent` gives.
        pattern: Where the Jacobian may have entries, (row, column).
        color: The color of every row.
    """

    of_u: Addresses
    pattern: Pattern
    color: tuple[int, ...]

    @classmethod
    def of(cls, program: Program, of_u: Addresses, cotangent: Addresses) -> JacobianRows:
        pattern = dependence(program, of_u, cotangent).T
        rows, columns = np.nonzero(pattern)
        return cls(of_u, pattern, tuple(group_lines(len(pattern), rows.tolist(), columns.tolist())))


def trace_program(
    f: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor],
    at: tuple[Tensor, Sequence[Tensor], Tensor],
    own: Sequence[bool],
    wanted: Sequence[bool] | None,
    family: FusedFamily,
) -> Traced:
    """Trace f for one trajectory, its pullback and the Jacobian that the method needs, into one program.

    Args:
        at: State, leaves and time at which f is traced.
        own: Which leaves have a row a trajectory.
        wanted: Which leaves a gradient is wanted for; None where there is no pullback.

    Raises:
        Unfusable: Something in f, or its size, has no form as a program.
    """
    states = at[0].numel()
    if states > family.most_states:
        raise Unfusable(f"{family.kind} methods are fused for up to {family.most_states} states, and u0 has {states}")
    tracer = _Tracer(f, at, own)
    du = tracer.right_hand_side()
    of_u, sinks = None, []
    if wanted is not None:
        of_u, gradients = tracer.pullback(wanted)
        chosen = [i for i, need in enumerate(wanted) if need]
        for leaf, gradient in zip(chosen, gradients, strict=True):
            sinks += sinks_of(tracer.program, leaf, gradient, products=not own[leaf])
    jacobian = rows = None
    if 0 < states <= family.most_written_out:
        jacobian = tracer.jacobian()
    elif family.most_written_out:
        pulled = tracer.pullback([False] * len(at[1]))[0] if of_u is None else of_u
        rows = JacobianRows.of(tracer.program, pulled, tracer.cotangent)
    return Traced(
        program=tracer.program,
        states=states,
        sizes=tuple(leaf.numel() for leaf in at[1]),
        own=tuple(own),
        wanted=tuple(wanted) if wanted is not None else tuple(False for _ in at[1]),
        captured=tuple(tensor for tensor, _ in tracer.captured.values()),
        frozen=tuple(tracer.lowering.frozen),
        u=tracer.u,
        t=tracer.t,
        cotangent=tracer.cotangent,
        du=du,
        of_u=of_u,
        sinks=tuple(sinks),
        jacobian=jacobian,
        rows=rows,
    )


class _Tracer:
    """Traces f and its derivatives one after another into the same program, over the same inputs."""

    def __init__(
        self,
        f: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor],
        at: tuple[Tensor, Sequence[Tensor], Tensor],
        own: Sequence[bool],
    ) -> None:
        u, leaves, t = at
        self._f, self._at = f, at
        self.program = program = Program()
        self.lowering = Lowering(program)
        self.captured: dict[int, tuple[Tensor, Addresses]] = {}
        self.u = program.input("u", u.numel(), uniform=False)
        self.t = program.input("t", 1, uniform=False)
        self.cotangent = program.input("g", u.numel(), uniform=False)
        self._leaves = [
            program.input(f"leaf{i}", leaf.numel(), uniform=not mine).reshape(tuple(leaf.shape))
            for i, (leaf, mine) in enumerate(zip(leaves, own, strict=True))
        ]

    def right_hand_side(self) -> Addresses:
        (du,) = self._run(trace_forward(self._f, *self._at))
        if du.shape != tuple(self._at[0].shape):
            raise Unfusable("f of a single trajectory does not return the shape of its state")
        return du

    def pullback(self, wanted: Sequence[bool]) -> tuple[Addresses, Sequence[Addresses]]:
        """The cotangents of u and of the wanted leaves."""
        of_u, *gradients = self._run(
            trace_pullback(self._f, *self._at, wanted), self.cotangent.reshape(tuple(self._at[0].shape))
        )
        return of_u, gradients

    def jacobian(self) -> Addresses:
        (found,) = self._run(trace_jacobian(self._f, *self._at))
        return found

    def _run(self, module: Any, *more: Addresses) -> Sequence[Addresses]:
        u, _, t = self._at
        inputs = [self.u.reshape(tuple(u.shape)), *self._leaves, self.t.reshape(tuple(t.shape)), *more]
        return self.lowering.run(module, inputs, self._stand_in)

    def _stand_in(self, tensor: Tensor) -> Addresses:
        """The place of a tensor that f refers to."""
        if id(tensor) not in self.captured:
            name = f"captured{len(self.captured)}"
            at = self.program.input(name, tensor.numel(), uniform=True).reshape(tuple(tensor.shape))
            self.captured[id(tensor)] = (tensor, at)
        return self.captured[id(tensor)][1]
