"""The mass matrix of ``M u' = f`` and its null spaces: which equations and which variables are algebraic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MassMatrix:
    """A constant matrix M, possibly singular, with bases of its null spaces (k vectors each).

    Args:
        matrix: M.
        equations: Orthonormal basis of the null space of M^T: ``equations.T @ f = 0`` are the algebraic equations.
        variables: Orthonormal basis of the null space of M: the directions of the algebraic variables.
    """

    matrix: Float[Tensor, "n n"]
    equations: Float[Tensor, "n k"]
    variables: Float[Tensor, "n k"]

    @classmethod
    def of(cls, matrix: Float[Tensor, "n n"]) -> MassMatrix:
        """Find the null spaces by a singular value decomposition."""
        left, values, right = torch.linalg.svd(matrix)
        rank = int((values > len(values) * torch.finfo(matrix.dtype).eps * values.max()).sum())
        return cls(matrix, left[:, rank:], right[rank:].T.contiguous())

    @property
    def singular(self) -> bool:
        return self.equations.shape[1] > 0

    @property
    def transposed(self) -> MassMatrix:
        return MassMatrix(self.matrix.T.contiguous(), self.variables, self.equations)

    def repeated(self, count: int) -> MassMatrix:
        """The mass matrix of `count` copies of the system, one behind the other."""
        return MassMatrix(
            *(torch.block_diag(*[part] * count) for part in (self.matrix, self.equations, self.variables))
        )

    def beside(self, other: MassMatrix) -> MassMatrix:
        """The mass matrix of two systems, one behind the other."""
        return MassMatrix(
            torch.block_diag(self.matrix, other.matrix),
            torch.block_diag(self.equations, other.equations),
            torch.block_diag(self.variables, other.variables),
        )

    def times(self, x: Float[Tensor, "*lanes n"], *, transposed: bool = False) -> Float[Tensor, "*lanes n"]:
        return x @ (self.matrix if transposed else self.matrix.T)

    def algebraic(self, f: Float[Tensor, "*lanes n"]) -> Float[Tensor, "*lanes n"]:
        """Project f on the algebraic equations."""
        return f @ self.equations @ self.equations.T
