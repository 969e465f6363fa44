"""df/du of every trajectory: given by the user, from few products of a known sparsity, row by row, or not formed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ude.engines.base import SolveSpec, as_batch
from ude.errors import InputError
from ude.methods.coloring import Coloring


class Jacobians:
    """f over the batch and its derivatives, counting each.

    Args of calls: u (B, n), t (B,).

    Attributes:
        calls: Of f.
        jacobians: How often df/du was formed, or a point taken at which its products are.
        products: Jacobian-vector and vector-Jacobian products, each of the whole batch.
    """

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        self.spec, self.p = spec, p
        self.calls = self.jacobians = self.products = 0
        self._batched = True

    def __call__(self, u: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return as_batch(self.spec, u, t, self.p)

    def linearize(self, u: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return f (B, n), df/du (B, n, n) and df/dt (B, n)."""
        u, t = u.detach().requires_grad_(), t.detach().requires_grad_()
        with torch.enable_grad():
            du = self(u, t)
        if self.spec.jac is None and self.spec.coloring is None:
            of_u, of_t = self.rows(du, (u, t))
            return du.detach(), of_u, of_t
        of_t = Pusher(self, du, (t,))(torch.ones_like(t))
        return du.detach(), self.of_state(du, u, t), of_t

    def jacobian(self, u: Tensor, t: Tensor) -> Float[Tensor, "B n n"]:
        """df/du alone."""
        if self.spec.jac is not None:
            return self._given(u, t)
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            du = self(u, t)
        return self.of_state(du, u, t)

    def of_state(self, du: Tensor, u: Tensor, t: Tensor, *, keep: bool = False) -> Float[Tensor, "B n n"]:
        """df/du where f has been called already; with `keep` the graph of du is not freed."""
        if self.spec.jac is not None:
            return self._given(u, t)
        if self.spec.coloring is not None:
            self.jacobians += 1
            return self._colored(du, u, self.spec.coloring)
        return self.rows(du, (u,), keep=keep)[0]

    def _given(self, u: Tensor, t: Tensor) -> Float[Tensor, "B n n"]:
        if self.spec.jac is None:
            raise TypeError("there is no Jacobian of the user's")
        self.jacobians += 1
        batch, count = self.spec.batch, u.shape[-1]
        with torch.no_grad():
            matrix = self.spec.jac(u.detach().view(*batch, count), self.p, t.detach().view(batch))
        return _checked(matrix, u, batch).reshape(-1, count, count)

    def _colored(self, du: Tensor, u: Tensor, coloring: Coloring) -> Float[Tensor, "B n n"]:
        color = torch.tensor(coloring.color, device=u.device)
        rows, columns = (torch.tensor(part, device=u.device) for part in (coloring.rows, coloring.columns))
        seeds = torch.nn.functional.one_hot(color, coloring.count).T.to(u.dtype)
        seeds = seeds.unsqueeze(1).expand(-1, u.shape[0], -1)
        matrix = u.new_zeros(*u.shape, u.shape[1])
        if coloring.by == "columns":
            push = Pusher(self, du, (u,))
            pushed = torch.stack([push(seed) for seed in seeds])
            matrix[:, rows, columns] = pushed[color[columns], :, rows].T
        else:
            found = self._products(du, (u,), seeds, keep=True)[0]
            if found is not None:
                matrix[:, rows, columns] = found[color[rows], :, columns].T
        return matrix

    def rows(self, du: Tensor, inputs: Sequence[Tensor], *, keep: bool = False) -> list[Tensor]:
        """Derivatives of du (B, n) by tensors with one row a trajectory; each (B, n, ...).

        A trajectory depends on its own row only, so one vector-Jacobian product gives a row of every trajectory's
        Jacobian. That holds for parameters of any shape, where torch.func.vmap over trajectories would not.
        """
        self.jacobians += 1
        if not du.requires_grad:
            return [x.new_zeros(du.shape[0], du.shape[1], *x.shape[1:]) for x in inputs]
        count = du.shape[1]
        unit = torch.eye(count, dtype=du.dtype, device=du.device).unsqueeze(1).expand(-1, du.shape[0], -1)
        return [
            x.new_zeros(du.shape[0], count, *x.shape[1:]) if part is None else part.transpose(0, 1)
            for part, x in zip(self._products(du, inputs, unit, keep=keep), inputs, strict=True)
        ]

    def _products(
        self, du: Tensor, inputs: Sequence[Tensor], cotangents: Float[Tensor, "m B n"], *, keep: bool
    ) -> Sequence[Tensor | None]:
        """m vector-Jacobian products at once, or one after another where f has no batching rule."""
        count = len(cotangents)
        if not du.requires_grad:
            return [None] * len(inputs)
        self.products += count
        if self._batched:
            try:
                result: Sequence[Tensor | None] = _pull(du, inputs, cotangents, keep=True, batched=True)
                return result
            except RuntimeError:
                # an operation of f has no batching rule for its derivative: one product at a time does
                self._batched = False
        single = [_pull(du, inputs, cotangents[i], keep=keep or i < count - 1, batched=False) for i in range(count)]
        return [None if rows[0] is None else torch.stack(rows) for rows in zip(*single, strict=True)]


class Pusher:
    """Jacobian-vector products of f at one point.

    The vector-Jacobian product is linear in its vector, so its own derivative by the vector is the Jacobian-vector
    product: reverse mode twice, which all of torch supports, where forward mode lacks operations.
    """

    def __init__(self, owner: Jacobians, du: Tensor, inputs: Sequence[Tensor]) -> None:
        self._owner, self._zero = owner, torch.zeros_like(du)
        self._rows: list[tuple[int, Tensor]] = []
        if not du.requires_grad:
            return
        with torch.enable_grad():
            self._vector = torch.zeros_like(du, requires_grad=True)
            pulled = torch.autograd.grad(du, inputs, self._vector, create_graph=True, allow_unused=True)
        self._rows = [(i, row) for i, row in enumerate(pulled) if row is not None and row.requires_grad]

    def __call__(self, *tangents: Tensor) -> Float[Tensor, "B n"]:
        self._owner.products += 1
        if not self._rows:
            return self._zero
        pushed = torch.autograd.grad(
            [row for _, row in self._rows],
            self._vector,
            [tangents[i] for i, _ in self._rows],
            retain_graph=True,
            allow_unused=True,
        )[0]
        return self._zero if pushed is None else pushed


class FreeJacobian:
    """df/du at one point of every trajectory, as its products with vectors; nothing is formed."""

    def __init__(self, owner: Jacobians, u: Float[Tensor, "B n"], t: Float[Tensor, "B"]) -> None:
        self.u, self.t, self._owner = u.detach(), t.detach(), owner
        owner.jacobians += 1
        self._x = self.u.clone().requires_grad_()
        with torch.enable_grad():
            self.du = owner(self._x, self.t)
        self._pusher: Pusher | None = None

    def times(self, v: Float[Tensor, "B n"], *, transposed: bool = False) -> Float[Tensor, "B n"]:
        """``J v``, or ``J^T v``."""
        if not transposed:
            self._pusher = self._pusher or Pusher(self._owner, self.du, (self._x,))
            return self._pusher(v)
        if not self.du.requires_grad:
            return torch.zeros_like(v)
        self._owner.products += 1
        (pulled,) = torch.autograd.grad(self.du, self._x, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(v) if pulled is None else pulled

    def moved(self, which: Tensor, u: Tensor, t: Tensor) -> FreeJacobian:
        """The same with another point for some trajectories."""
        return FreeJacobian(self._owner, torch.where(which.unsqueeze(-1), u, self.u), torch.where(which, t, self.t))

    def gather(self, owner: Jacobians, index: Int[Tensor, "k"]) -> FreeJacobian:
        """Those of some trajectories, which `owner` is of."""
        return FreeJacobian(owner, self.u[index], self.t[index])


#: df/du, formed or not.
Jacobian = Tensor | FreeJacobian

# A Jacobian given by the user is written by hand or by a computer algebra system, so it is right to rounding or wrong.
_SAME = 1e-6


def require_right(spec: SolveSpec, u: Float[Tensor, "B n"], p: Sequence[Tensor]) -> None:
    """Compare the user's Jacobian, or that from the user's pattern, with a product of automatic differentiation.

    A wrong one would slow Newton's iteration down at best; Rosenbrock methods would lose their order, and every
    discrete adjoint would be wrong, in silence. One product with one vector at the start costs next to nothing.

    Raises:
        InputError: They differ, or jac returns another shape.
    """
    if spec.jac is None and spec.coloring is None:
        return
    work = Jacobians(spec, [leaf.detach() for leaf in p])
    free = FreeJacobian(work, u, spec.t0)
    # no two entries alike, so that entries in the wrong place show
    index = torch.arange(1, u.shape[1] + 1, dtype=u.dtype, device=u.device)
    v = (0.5 + torch.frac(index * 0.6180339887498949)).expand_as(u)
    right = free.times(v)
    matrix = work.jacobian(u, spec.t0)
    ours = torch.einsum("bij,bj->bi", matrix, v)
    size = torch.einsum("bij,bj->bi", matrix.abs(), v) + right.abs()
    # where f has no derivative at the start, nothing can be said
    wrong = ((ours - right).abs() > _SAME * size.amax(-1, keepdim=True)) & torch.isfinite(right)
    if not bool(wrong.any()):
        return
    lane, row = (int(x) for x in wrong.nonzero()[0])
    given = spec.jac is not None
    raise InputError(
        "jac is not the derivative of f" if given else "jac_prototype misses entries of df/du",
        expected=f"a product with row {row} of {float(right[lane, row]):.8g}, as automatic differentiation gives it",
        got=f"{float(ours[lane, row]):.8g}",
        fix="Mend jac, or leave it out." if given else "Mark every entry that can be nonzero.",
    )


def _checked(matrix: Any, u: Tensor, batch: tuple[int, ...]) -> Tensor:
    expected = (*batch, u.shape[-1], u.shape[-1])
    if not isinstance(matrix, Tensor) or tuple(matrix.shape) != expected or matrix.dtype != u.dtype:
        got = f"{matrix.dtype} of shape {tuple(matrix.shape)}" if isinstance(matrix, Tensor) else type(matrix).__name__
        raise InputError("jac(u, p, t) must return df/du", expected=f"{u.dtype} of shape {expected}", got=got)
    return matrix


def _pull(du: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, *, keep: bool, batched: bool) -> Any:
    return torch.autograd.grad(
        du, tuple(inputs), cotangent, retain_graph=keep, allow_unused=True, is_grads_batched=batched
    )
