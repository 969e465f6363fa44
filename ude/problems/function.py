"""A right-hand side with what solvers may know of it: mass matrix, Jacobian, sparsity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ude.errors import InputError
from ude.methods.coloring import Coloring, color


class ODEFunction(nn.Module):
    """The right-hand side of ``M u' = f(u, p, t)``, given to `ODEProblem` in the place of f.

    With a singular mass matrix M this is a differential-algebraic equation (DAE). Its index must be 1: the algebraic
    equations, those combinations of rows that M leaves without a derivative, determine the algebraic variables.
    Without a mass matrix it is called and differentiated like f itself. A module: the parameters of an f that is one
    are leaves of the gradient as without it.

    Args:
        f: A function or `nn.Module` called as ``f(u, p, t)``, as of `ODEProblem`.
        mass_matrix: M, constant, of shape (state, state), possibly singular. None is the identity.
        jac: ``jac(u, p, t)`` returns df/du of shape ``(*batch, state, state)``, used by implicit methods in the place
            of automatic differentiation. It is checked against it once, at the start.
        jac_prototype: Where df/du may have entries: a tensor, sparse or dense, or a SciPy sparse matrix, of shape
            (state, state), nonzero there. df/du is then computed in as many products as the pattern has colors.

    Raises:
        InputError: An argument cannot be used.

    >>> f = ODEFunction(lambda u, p, t: -u, mass_matrix=[[1.0, 0.0], [0.0, 0.0]])
    >>> f.mass_matrix.shape
    torch.Size([2, 2])
    """

    mass_matrix: Tensor | None

    def __init__(
        self,
        f: Callable[..., Tensor],
        mass_matrix: Any = None,
        jac: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
        jac_prototype: Any = None,
    ) -> None:
        super().__init__()
        for name, part in (("f", f), ("jac", jac)):
            if part is not None and not callable(part):
                raise InputError(f"{name} must be callable as {name}(u, p, t)", got=type(part).__name__)
        if isinstance(f, ODEFunction):
            raise InputError("f is an ODEFunction already", fix="Give its arguments together: ODEFunction(f.f, ...).")
        matrix = None if mass_matrix is None else _square(mass_matrix, "mass_matrix")
        if matrix is not None and matrix.requires_grad:
            raise InputError(
                "mass_matrix must be constant, and it requires a gradient",
                fix="Detach it, or divide f by what is trained.",
            )
        self.f, self.jac = f, jac
        # not persistent: it is no trained state, and a saved f is read by the same f
        self.register_buffer("mass_matrix", matrix, persistent=False)
        self.coloring: Coloring | None = None
        pattern = None if jac_prototype is None else _square(jac_prototype, "jac_prototype")
        if pattern is not None:
            rows, columns = (pattern != 0).nonzero(as_tuple=True)
            self.coloring = color(len(pattern), rows.tolist(), columns.tolist())
        given = matrix if pattern is None else pattern
        self.size = None if given is None else len(given)
        if pattern is not None and matrix is not None and len(pattern) != len(matrix):
            raise InputError(
                "mass_matrix and jac_prototype have different sizes",
                got=f"{tuple(matrix.shape)} and {tuple(pattern.shape)}",
            )

    def forward(self, u: Tensor, p: Any, t: Tensor, *more: Any) -> Tensor:
        value: Tensor = self.f(u, p, t, *more)
        return value

    def require_size(self, states: int) -> None:
        """Refuse a state that the matrices do not fit.

        Raises:
            InputError: They have another size.
        """
        if self.size is not None and self.size != states:
            name = "jac_prototype" if self.mass_matrix is None else "mass_matrix"
            raise InputError(
                f"{name} does not fit u0",
                expected=f"shape {(states, states)} for {states} states",
                got=f"shape {(self.size, self.size)}",
            )


class ExplicitForm(nn.Module):
    """``u' = M^-1 f(u, p, t)``, for methods that know no mass matrix."""

    inverse: Tensor

    def __init__(self, f: Callable[..., Tensor], mass_matrix: Float[Tensor, "n n"]) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("inverse", torch.linalg.inv(mass_matrix), persistent=False)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        value: Tensor = self.f(u, p, t)
        return value @ self.inverse.to(value).T


def innermost(f: Any) -> Any:
    """The function that an `ODEFunction` was made of; any other f as it is."""
    return f.f if isinstance(f, ODEFunction) else f


def _square(value: Any, name: str) -> Float[Tensor, "n n"]:
    # SciPy's sparse matrices have toarray, torch's sparse tensors to_dense
    dense = value.toarray() if hasattr(value, "toarray") else value
    try:
        matrix = dense if isinstance(dense, Tensor) else torch.as_tensor(dense, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be a matrix of numbers", got=type(value).__name__, fix=f"({error})") from None
    matrix = matrix.to_dense() if matrix.layout != torch.strided else matrix
    matrix = matrix if matrix.is_floating_point() else matrix.to(torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise InputError(f"{name} must be square", expected="shape (state, state)", got=f"shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{name} must be finite", got="NaN or infinity among its entries")
    return matrix
