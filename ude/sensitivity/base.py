"""What a sensitivity algorithm is: it makes values read from a solve differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from ude.engines.base import Engine, SolveSpec


@dataclass(frozen=True, eq=False)
class Solved:
    """A finished forward solve: what a sensitivity algorithm needs to differentiate reads of it.

    Args:
        fresh: As of `ForwardResult`.
    """

    engine: Engine
    spec: SolveSpec
    record: Any
    end: Float[Tensor, "B n"]
    fresh: bool = False


class SensitivityAlgorithm(Protocol):
    """Chooses how gradients are computed; handed the engine that ran the solve."""

    @property
    def name(self) -> str: ...

    def attach(
        self,
        solved: Solved,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        u0: Float[Tensor, "B n"],
        p: Sequence[Tensor],
    ) -> Float[Tensor, "B T n"]:
        """Return `values`, the states at `times`, connected to the autograd graph of u0 and of the leaves p."""
