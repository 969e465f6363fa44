"""The continuous adjoint with an adaptive quadrature for the parameters."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import as_batch, differentiable, live_leaves
from ude.sensitivity.base import Solved
from ude.sensitivity.continuous import Backward, Path, Span, Totals
from ude.sensitivity.interpolating_adjoint import ReadingAdjoint

# Gauss-Kronrod pair of 7 and 15 nodes on [-1, 1] (R. Piessens et al., QUADPACK, 1983): node, weight of 15, weight of 7.
_PAIR = (
    (0.991455371120812639206854697526329, 0.022935322010529224963732008058970, 0.0),
    (0.949107912342758524526189684047851, 0.063092092629978553290700663189204, 0.129484966168869693270611432679082),
    (0.864864423359769072789712788640926, 0.104790010322250183839876322541518, 0.0),
    (0.741531185599394439863864773280788, 0.140653259715525918745189590510238, 0.279705391489276667901467771423780),
    (0.586087235467691130294144691693132, 0.169004726639267902826583426598550, 0.0),
    (0.405845151377397166906606412076961, 0.190350578064785409913256402421014, 0.381830050505118944950369775488975),
    (0.207784955007898467600689403773245, 0.204432940075298892414161999234649, 0.0),
    (0.0, 0.209482141084727828012999174891714, 0.417959183673469387755102040816327),
)
# Halves of the span that are tried at most, and rounding below which no error can be brought.
_MOST_PARTS = 2000
_ROUNDING = 1e-14


def integrate_adaptively(g: Callable[[float], Tensor], abstol: float, reltol: float) -> Float[Tensor, "m"] | None:
    """Integrate a vector function over [0, 1]: the part with the largest error is halved until the sum is within
    ``abstol + reltol |integral|`` in the maximum norm; None when too many parts do not suffice."""
    value, error = _kronrod(g, 0.0, 1.0)
    parts = [(-error, 0.0, 1.0, value)]
    total, left = value, error
    while not left <= max(abstol + reltol * float(total.abs().max()), _ROUNDING * float(total.abs().max())):
        if len(parts) >= _MOST_PARTS or left != left:
            return None
        _, low, high, _ = heapq.heappop(parts)
        middle = (low + high) / 2
        for a, b in ((low, middle), (middle, high)):
            value, error = _kronrod(g, a, b)
            heapq.heappush(parts, (-error, a, b, value))
        total = torch.stack([part[3] for part in parts]).sum(0)
        left = -sum(part[0] for part in parts)
    return total


def _kronrod(g: Callable[[float], Tensor], low: float, high: float) -> tuple[Tensor, float]:
    half, middle = (high - low) / 2, (high + low) / 2
    fine: Tensor | float = 0.0
    coarse: Tensor | float = 0.0
    for node, of_fine, of_coarse in _PAIR:
        value = g(middle) if node == 0 else g(middle - half * node) + g(middle + half * node)
        fine, coarse = fine + of_fine * value, coarse + of_coarse * value
    result = torch.as_tensor(half * fine)
    return result, float((result - half * coarse).abs().max())


@dataclass(frozen=True)
class QuadratureAdjoint(ReadingAdjoint):
    """Solve ``dlambda/dt = -(df/du)^T lambda`` backwards, then integrate ``(df/dp)^T lambda`` adaptively.

    The state is read from the recorded steps, lambda from the dense output of its own solve. Between two saves the
    integral is computed by Gauss and Kronrod's pair of 7 and 15 nodes to a tolerance of its own. Worth it when f has
    few parameters and the steps of lambda say little about how ``(df/dp)^T lambda`` varies. First derivatives only.

    Args:
        abstol, reltol: Tolerances of the integral; None takes the smallest of the forward solve. The backward solve
            has those of the forward solve.

    Source: C. Rackauckas et al., arXiv:1812.01892; SciMLSensitivity.jl's algorithm of that name.

    >>> k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=k))
    >>> end = ude.solve(prob, ude.Tsit5(), sensealg=ude.QuadratureAdjoint(), reltol=1e-9, abstol=1e-9).u[-1, 0]
    >>> end.backward()
    >>> round(float(k.grad), 6)  # -exp(-2)
    -0.135335
    """

    abstol: float | None = None
    reltol: float | None = None

    def _integral(
        self, solved: Solved, backward: Backward, span: Span, path: Path, p: Sequence[Tensor]
    ) -> Totals | None:
        spec = solved.spec
        adjoint = solved.engine.dense(backward.spec, backward.record, p)
        wanted = differentiable(p)
        leaves = live_leaves(p, wanted)
        inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
        if not inputs:
            return [None] * len(p)
        length = span[1] - span[0]

        def integrand(s: float) -> Float[Tensor, "m"]:
            t = span[0] + s * length
            with torch.enable_grad():
                du = as_batch(spec, path(t), t, leaves)
            weight = -length.unsqueeze(-1) * adjoint(t)
            parts: Sequence[Tensor | None] = [None] * len(inputs)
            if du.requires_grad:
                parts = torch.autograd.grad(du, inputs, weight, allow_unused=True)
            return torch.cat(
                [
                    torch.zeros_like(leaf).reshape(-1) if part is None else part.reshape(-1)
                    for part, leaf in zip(parts, inputs, strict=True)
                ]
            )

        abstol = float(spec.abstol.min()) if self.abstol is None else self.abstol
        reltol = float(spec.reltol.min()) if self.reltol is None else self.reltol
        flat = integrate_adaptively(integrand, abstol, reltol)
        if flat is None:
            return None
        pieces = flat.split([leaf.numel() for leaf in inputs])
        found = iter(part.view(leaf.shape) for part, leaf in zip(pieces, inputs, strict=True))
        return [next(found) if need else None for need in wanted]
