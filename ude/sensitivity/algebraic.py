"""What continuous adjoints do at a save of a solve with a mass matrix.

The adjoint equation is ``M^T dlambda/dt = -(df/du)^T lambda``. Where M is singular a cotangent g of u(t) cannot be
added to ``M^T lambda`` as it is: M^T does not reach the algebraic variables. Variations of u obey the derivative of the
algebraic equations, ``w^T (df/du du + df/dp dp) = 0`` for every w that M^T sends to zero, so that
``g + (df/du)^T w`` with the w that takes its algebraic part away has the same effect, beside ``(df/dp)^T w`` on p.

Source: Y. Cao, S. Li, L. Petzold, R. Serban, SIAM J. Sci. Comput. 24 (2003) 1076, for index 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import SolveSpec, as_batch, differentiable, live_leaves
from ude.engines.initialization import algebraic_inverse
from ude.engines.jacobian import Jacobians


def jump(
    spec: SolveSpec, p: Sequence[Tensor], u: Float[Tensor, "B n"], t: Float[Tensor, "B"], g: Float[Tensor, "B n"]
) -> tuple[Float[Tensor, "B n"], list[Tensor | None]]:
    """Return by how much lambda jumps at a save with the cotangent g, and the share of the leaves' gradient there.

    The algebraic part of lambda is left for its own equations to determine.
    """
    mass = spec.mass
    nothing: list[Tensor | None] = [None] * len(p)
    if mass is None or not bool((g != 0).any()):
        return g, nothing
    parts = nothing
    if mass.singular:
        jacobian = Jacobians(spec, [leaf.detach() for leaf in p]).jacobian(u, t)
        inverse = algebraic_inverse(mass, jacobian)
        w = -torch.einsum("bve,bv->be", inverse, g @ mass.variables) @ mass.equations.T
        # a trajectory without a cotangent has no share, whatever f is worth there
        w = torch.where((g != 0).any(-1, keepdim=True), w, 0.0)
        g = g + torch.einsum("bij,bi->bj", jacobian, w)
        parts = _pulled(spec, p, u, t, w)
    return g @ torch.linalg.pinv(mass.matrix), parts


def _pulled(spec: SolveSpec, p: Sequence[Tensor], u: Tensor, t: Tensor, w: Tensor) -> list[Tensor | None]:
    wanted = differentiable(p)
    leaves = live_leaves(p, wanted)
    inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
    with torch.enable_grad():
        du = as_batch(spec, u.detach(), t, leaves)
    if not inputs or not du.requires_grad:
        return [None] * len(p)
    found = iter(torch.autograd.grad(du, inputs, w, allow_unused=True))
    return [next(found) if need else None for need in wanted]
