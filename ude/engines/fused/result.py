"""The outcome of a fused solve, counted when somebody asks: a training asks for the values alone."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from ude.engines.base import ForwardResult


class FusedResult(ForwardResult):
    """A `ForwardResult` whose counts are worked out from those of the kernel at the first look.

    Args:
        counted: Return codes, accepted and rejected steps, calls of f and Jacobians, one row each; `calls` of
            `Layout`; and whether f was called once more to choose the first step.
        fresh, switches: As of `ForwardResult`.
    """

    def __init__(
        self,
        times: Float[Tensor, "B T"],
        values: Float[Tensor, "B T n"],
        record: Any,
        counted: tuple[Int[Tensor, "5 B"], tuple[int, int] | None, bool],
        t_end: Float[Tensor, "B"],
        *,
        fresh: bool,
        switches: Int[Tensor, "B"] | None = None,
    ) -> None:
        counts, calls, first = counted
        # of a frozen dataclass, whose own __init__ wants everything at once
        self.__dict__.update(times=times, values=values, record=record, retcode=counts[0], t_end=t_end)
        self.__dict__.update(_counts=counts, _calls=calls, _first=first)
        # without times to save at, the values may be those of the record
        self.__dict__.update(fresh=fresh, switches=switches)

    def __getattr__(self, name: str) -> Any:
        if name not in ("accepted_steps", "rejected_steps", "nf"):
            raise AttributeError(name)
        self._count()
        return self.__dict__[name]

    # these have defaults in the dataclass, so that they are never missing
    @property
    def njacs(self) -> int:
        return self._work[0]

    @property
    def nw(self) -> int:
        return self._work[1]

    @property
    def _work(self) -> tuple[int, int]:
        """Jacobians and factorizations."""
        if self._calls is not None:
            return 0, 0
        return int(self._counts[4].max()), int((self.accepted_steps + self.rejected_steps).max())

    def _count(self) -> None:
        accepted, rejected, calls = self._counts[1:4].unbind()
        if self._calls is None:
            nf = int(calls.max())
        else:
            per_attempt, per_accepted = self._calls
            # of the trajectory that needed most
            nf = per_attempt * int((accepted + rejected).max()) + per_accepted * int(accepted.max())
        self.__dict__.update(accepted_steps=accepted, rejected_steps=rejected, nf=nf + int(self._first))
