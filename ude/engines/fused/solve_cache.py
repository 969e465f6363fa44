"""Solves that were asked for before: what was made ready for them, and whether it still serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ude.compile.guards import Guards, guards_of
from ude.engines.base import SolveSpec
from ude.methods import Algorithm
from ude.problems.ode import ODEProblem

# Of one problem, with different options: training and validation, with a gradient and without.
_MOST_FOR_ONE = 4
# A right-hand side that changes all the time is not looked at in advance for ever.
_MOST_TRIES = 16
# What may change in place; of these, only tensors tell.
_CHANGING = (Tensor, np.ndarray, list, tuple, dict, set)
_PLAIN = frozenset({float, int, bool, str})


@dataclass(frozen=True, eq=False)
class Prepared:
    """A validated solve, and everything that it depends on as it was then.

    Args:
        options: What `solve` was called with.
        version: What may change in place about saveat and the two ends of the time span.
        kinds: u0 and every leaf, with what can change about them in place beside their numbers.
        graph: Whether gradients were enabled.
    """

    spec: SolveSpec
    options: tuple[Any, ...]
    version: tuple[Any, ...]
    kinds: tuple[tuple[Tensor, torch.Size, torch.dtype, bool], ...]
    graph: bool
    guards: Guards

    def serves(self, options: Sequence[Any]) -> bool:
        """Whether these options are those."""
        if torch.is_grad_enabled() is not self.graph:
            return False
        return all(map(is_, options, self.options)) or all(map(_equal, options, self.options))

    def holds(self, prob: ODEProblem, saveat: Any) -> bool:
        """Whether the problem, all that f reads, and the times are as they were."""
        if _versions(prob, saveat) != self.version or self.spec.start is None:
            return False
        # the start of the solve is a view of the problem's
        if self.kinds[0][0].data_ptr() != self.spec.start[0].data_ptr():
            return False
        for tensor, shape, dtype, need in self.kinds:
            if tensor.shape != shape or tensor.dtype is not dtype or tensor.requires_grad is not need:
                return False
            if not tensor.is_cpu:
                return False
        return self.guards.hold()


def _versions(prob: ODEProblem, saveat: Any) -> tuple[Any, ...]:
    return _version(saveat), *map(_version, prob.tspan)


def _version(time: Any) -> tuple[Any, ...]:
    return (time._version, time.data_ptr(), time.shape) if isinstance(time, Tensor) else ()


def _equal(x: Any, y: Any) -> bool:
    """Whether two options are the same, for sure."""
    if x is y:
        return True
    return type(x) is type(y) and (type(x) in _PLAIN or isinstance(x, Algorithm)) and bool(x == y)


@dataclass(eq=False)
class _Known:
    entries: list[Prepared] = field(default_factory=list)
    tries: int = 0


class SolveCache:
    """What is prepared, by problem; forgotten with the problem."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ODEProblem, _Known] = WeakKeyDictionary()

    def find(self, prob: ODEProblem, options: Sequence[Any], saveat: Any) -> SolveSpec | None:
        """The solve of this problem with these options, if nothing that it depends on has changed."""
        known = self._known.get(prob)
        if known is None:
            return None
        for entry in known.entries:
            if entry.serves(options):
                if entry.holds(prob, saveat):
                    return entry.spec
                known.entries.remove(entry)
                return None
        return None

    def put(self, prob: ODEProblem, options: Sequence[Any], saveat: Any, spec: SolveSpec) -> None:
        """Keep a solve for the next time, where everything that it depends on can be watched."""
        known = self._known.setdefault(prob, _Known())
        known.tries += 1
        # not at the first sight: a problem that is new in every solve never comes again
        if known.tries == 1 or known.tries > _MOST_TRIES or spec.start is None:
            return
        lasting = all(option is saveat or not isinstance(option, _CHANGING) for option in options)
        # a start with a graph gets another view every time
        if not lasting or isinstance(saveat, _CHANGING[1:]) or prob.u0.requires_grad:
            return
        leaves = spec.start[1]
        guards = guards_of(spec.f, leaves, prob.p)
        if guards is None or spec.start[0].data_ptr() != prob.u0.data_ptr():
            return
        del known.entries[: max(0, len(known.entries) - _MOST_FOR_ONE + 1)]
        known.entries.append(
            Prepared(
                spec=spec,
                options=tuple(options),
                version=_versions(prob, saveat),
                kinds=tuple((one, one.shape, one.dtype, one.requires_grad) for one in (prob.u0, *leaves)),
                graph=torch.is_grad_enabled(),
                guards=guards,
            )
        )

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
