"""Jacobians of what no solve is behind: of a few numbers, and of a function at many points at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap

# Numbers of a block of Jacobians that are computed together: 160 MB.
_CHUNK = 20_000_000


def rows(values: Float[Tensor, " value"], parameters: Sequence[Tensor]) -> Float[Tensor, "value parameter"]:
    """Derivatives of a few numbers by one reverse sweep each."""
    found = []
    for value in values.reshape(-1).unbind():
        parts: Sequence[Tensor | None] = [None] * len(parameters)
        if value.requires_grad:
            parts = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        flat = [
            torch.zeros(p.numel(), dtype=torch.float64) if g is None else g.reshape(-1)
            for p, g in zip(parameters, parts, strict=True)
        ]
        found.append(torch.cat([torch.zeros(0, dtype=torch.float64), *flat]))
    return torch.stack(found) if found else torch.zeros(0, sum(p.numel() for p in parameters), dtype=torch.float64)


def rows_batched(values: Float[Tensor, " value"], parameters: Sequence[Tensor]) -> Float[Tensor, "value parameter"]:
    """The same, all at once."""
    if not len(values) or not values.requires_grad:
        return rows(values.detach(), parameters)
    eye = torch.eye(len(values), dtype=values.dtype)
    parts = torch.autograd.grad(values, parameters, eye, is_grads_batched=True, allow_unused=True)
    flat = [
        torch.zeros(len(values), p.numel(), dtype=torch.float64) if g is None else g.reshape(len(values), -1)
        for p, g in zip(parameters, parts, strict=True)
    ]
    return torch.cat(flat, 1)


def at_points(
    function: Callable[..., Tensor], outputs: int, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Derivatives of ``function(shared, own) -> (output,)`` at many points.

    Args:
        shared: What all points share.
        own: (point, ...): what each has of its own.

    Returns:
        To each of `shared` and of `own`, of shape (point, output, ...).

    Every output of every point is one row of a batch with its own copies of all that it depends on, so that one reverse
    sweep gives all derivatives. `torch.func.jacrev` of one point under `vmap` computes a little less but, having two
    levels of transforms to dispatch every operation through, takes half as long again for small networks.
    """
    points = len(next(iter(own.values())))
    size = outputs * (sum(p.numel() for p in shared.values()) + sum(p[0].numel() for p in own.values()) + 1)
    chunk = max(1, _CHUNK // size)
    parts = [
        _at_points(function, outputs, shared, {name: value[first : first + chunk] for name, value in own.items()})
        for first in range(0, points, chunk)
    ]
    first, second = zip(*parts, strict=True)
    return _joined(first), _joined(second)


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _at_points(
    function: Callable[..., Tensor], outputs: int, shared: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    points = len(next(iter(own.values())))
    leaves = [p.detach().expand(points * outputs, *p.shape).requires_grad_() for p in shared.values()]
    leaves += [p.detach().repeat_interleave(outputs, 0).requires_grad_() for p in own.values()]

    def alone(*row: Tensor) -> Tensor:
        return function(dict(zip(shared, row, strict=False)), dict(zip(own, row[len(shared) :], strict=True)))

    with torch.enable_grad():
        found = vmap(alone)(*leaves)
        picked = found.reshape(points, outputs, outputs).diagonal(dim1=1, dim2=2)
        slopes = torch.autograd.grad(picked.sum(), leaves, allow_unused=True, materialize_grads=True)
    shaped = [slope.reshape(points, outputs, *slope.shape[1:]) for slope in slopes]
    return dict(zip(shared, shaped, strict=False)), dict(zip(own, shaped[len(shared) :], strict=True))
