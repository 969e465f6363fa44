"""What a family of methods has to know of itself for the fused engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ude.engines.base import SolveSpec
from ude.engines.torch.scheme import why_not_adaptive
from ude.methods import Algorithm


class FusedFamily(ABC):
    """A method as C text. A new family is one file here, listed in `source.FAMILIES`."""

    #: The algorithms of this family.
    methods: ClassVar[type[Algorithm]]
    #: What the family is called in messages.
    kind: ClassVar[str]
    #: Systems of more states are not compiled.
    most_states: ClassVar[int]
    #: Up to so many states df/du is written out number by number; 0 where no step needs it.
    most_written_out: ClassVar[int] = 0
    #: Whether a kernel counts what the methods of a solve that switches do.
    switches: ClassVar[bool] = False

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm

    def why_not(self, spec: SolveSpec) -> str | None:
        """One sentence that says why a solve has no kernel, as far as its method shows it."""
        return why_not_adaptive(spec, estimates_error=bool(self.algorithm.tableau.b_error))

    @abstractmethod
    def text(self, *, gradient: bool, rows: str) -> str:
        """The parts of c/lanes.h that belong to the method; `rows` bounds loops over states that are not unrolled."""

    @abstractmethod
    def macros(self, *, gradient: bool) -> dict[str, Any]:
        """The numbers that the rest of the program calls by name."""

    def calls(self) -> tuple[int, int] | None:
        """Calls of f in an attempt, and besides in an accepted one; None where Newton's iteration decides."""
        return None
