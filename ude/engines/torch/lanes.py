"""One trajectory or many: the arithmetic of times, steps and errors.

The loop of the stepper is written once over these numbers. With one trajectory they are Python floats, which cost
a tenth of a 0-d tensor's dispatch; with a batch they are tensors of shape (B,), one number a trajectory.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ude.methods.controller import Arithmetic, FloatArithmetic


class BatchArithmetic(Arithmetic, Protocol):
    """Arithmetic of per-trajectory numbers, and the passage between them and tensors."""

    def read(self, x: Tensor) -> Any:
        """Turn a (B,) tensor into per-trajectory numbers."""

    def tensor(self, x: Any) -> Tensor:
        """Turn per-trajectory numbers into a (B,) tensor."""

    def column(self, x: Any) -> Any:
        """Shape numbers so that they multiply a (B, n) tensor row by row."""

    def any(self, condition: Any) -> bool: ...
    def count(self, condition: Any) -> int: ...
    def isfinite(self, x: Any) -> Any: ...
    def negate(self, condition: Any) -> Any: ...
    def select(self, condition: Any, new: Tensor, old: Tensor) -> Tensor:
        """Pick rows of (B, n) tensors."""


class FloatLanes(FloatArithmetic):
    """A single trajectory: Python floats and bools."""

    def __init__(self, like: Tensor) -> None:
        self._like = like

    def read(self, x: Tensor) -> Any:
        return x.item()

    def tensor(self, x: Any) -> Tensor:
        return torch.tensor([x], dtype=self._like.dtype, device=self._like.device)

    def column(self, x: float) -> float:
        return x

    def any(self, condition: bool) -> bool:
        return condition

    def count(self, condition: bool) -> int:
        return int(condition)

    def isfinite(self, x: float) -> bool:
        return x - x == 0.0

    def negate(self, condition: bool) -> bool:
        return not condition

    def select(self, condition: bool, new: Tensor, old: Tensor) -> Tensor:
        return new if condition else old


class TensorLanes:
    """A batch: tensors of shape (B,)."""

    def __init__(self, like: Tensor) -> None:
        self._like = like

    def minimum(self, x: Tensor, y: Any) -> Tensor:
        return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)

    def maximum(self, x: Tensor, y: Any) -> Tensor:
        return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)

    def power(self, x: Tensor, exponent: float) -> Tensor:
        return x**exponent

    def arctan(self, x: Tensor) -> Tensor:
        return torch.atan(x)

    def where(self, condition: Tensor, x: Any, y: Any) -> Tensor:
        return torch.where(condition, x, y)

    def round(self, x: Tensor) -> Tensor:
        return x.round()

    def read(self, x: Tensor) -> Any:
        return x

    def tensor(self, x: Any) -> Tensor:
        result: Tensor = x
        return result

    def column(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)

    def any(self, condition: Tensor) -> bool:
        return bool(condition.any())

    def count(self, condition: Tensor) -> int:
        return int(torch.count_nonzero(condition))

    def isfinite(self, x: Tensor) -> Tensor:
        return torch.isfinite(x)

    def negate(self, condition: Tensor) -> Tensor:
        return ~condition

    def select(self, condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
        return torch.where(condition.unsqueeze(-1), new, old)


def lanes_for(like: Tensor, count: int) -> BatchArithmetic:
    return FloatLanes(like) if count == 1 else TensorLanes(like)
