"""Whether nothing that a fingerprint read has changed since, without reading it all again.

A `Recorder` takes the walk of a fingerprint once more and notes what every place held that the walk looked at. As long
as each of them holds the very same object (``is``), and objects that never change stand for themselves, another walk
would give the same tokens. So the answer "unchanged" is as sure as a fingerprint; "changed" may be wrong (an equal
number in place of another), and then the fingerprint is taken again. What cannot be watched has always changed.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ude.compile.value_kinds import class_plan
from ude.compile.walk import GLOBAL_HOOKS, MISSING, Walk
from ude.problems.ode import Parameters

_same, _values = operator.is_, operator.methodcaller("values")
_OF_FUNCTION = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__", "__module__")
_OF_PARTIAL = operator.attrgetter("func", "args", "keywords")
_OF_CLASS = operator.attrgetter("__mro__")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Guards:
    """What everything was that a fingerprint looked at."""

    __slots__ = (
        *("attributes", "cells", "empty", "keys", "kinds", "lists", "mappings", "names", "objects", "settings"),
        *("tensors", "values"),
    )

    def __init__(self) -> None:
        #: What must stay empty.
        self.empty: list[Any] = list(GLOBAL_HOOKS)
        #: Mappings, the keys of each, and the values of all; and single names of large ones such as the globals.
        self.mappings: list[Any] = []
        self.keys: list[tuple[Any, ...]] = []
        self.values: list[Any] = []
        self.names: list[tuple[Any, str, Any]] = []
        self.cells: list[tuple[types.CellType, Any]] = []
        self.lists: list[tuple[list[Any], tuple[Any, ...]]] = []
        #: What a getter gives of an object, and the types of objects.
        self.attributes: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self.objects: list[Any] = []
        self.kinds: list[type] = []
        self.tensors: list[tuple[Tensor, tuple[Any, ...]]] = []
        self.settings = _settings()

    def hold(self) -> bool:
        """Whether all of it is as it was."""
        if any(self.empty) or self.settings != _settings() or not all(map(_same, map(type, self.objects), self.kinds)):
            return False
        # as many keys as before, so as many values: none of the two sequences ends before the other
        if list(map(tuple, self.mappings)) != self.keys:
            return False
        if not all(map(_same, chain.from_iterable(map(_values, self.mappings)), self.values)):
            return False
        for mapping, name, value in self.names:
            if mapping.get(name, MISSING) is not value:
                return False
        for get, owner, found in self.attributes:
            if not all(map(_same, get(owner), found)):
                return False
        for items, known in self.lists:
            if len(items) != len(known) or not all(map(_same, items, known)):
                return False
        try:
            if any(cell.cell_contents is not content for cell, content in self.cells):
                return False
        except ValueError:  # emptied since
            return False
        return all(kind_of(tensor) == kind for tensor, kind in self.tensors)


def kind_of(tensor: Tensor) -> tuple[Any, ...]:
    """What may change about a tensor in place beside its numbers."""
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.device, tensor.requires_grad


def _settings() -> tuple[Any, ...]:
    return torch.get_default_dtype(), torch.is_autocast_enabled(), torch._C._len_torch_function_stack()


def guards_of(f: Any, known: Sequence[Tensor], p: Any) -> Guards | None:
    """Note what the fingerprint of f, with these leaves, looks at, and which p they are the leaves of; None where some
    of it cannot be watched."""
    recorder = Recorder(known)
    try:
        recorder.parameters(p)
        recorder.surroundings()
        recorder.value(f)
        recorder.members()
    except Exception:  # whatever a fingerprint says instead of raising
        return None
    return None if recorder.guards.settings[2] else recorder.guards


class _Unwatched(Exception):
    """Something may change without being seen."""


class Recorder(Walk):
    """A walk that notes what it looks at in `guards`."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__(known)
        self.guards = Guards()
        self._noted: dict[int, Any] = {}
        self._classes: set[type] = set()

    def _first_time(self, value: Any) -> bool:
        if id(value) in self._noted:
            return False
        # held, so that its id stays its own
        self._noted[id(value)] = value
        return True

    def content(self, mapping: Any) -> None:
        """Note the keys and values of a mapping."""
        # a class hands out another view of its mapping at every look
        if type(mapping) is dict and not self._first_time(mapping):
            return
        if not mapping and type(mapping) is dict:
            self.guards.empty.append(mapping)
            return
        keys = tuple(mapping)
        if not all(type(key) in (str, int) for key in keys):
            raise _Unwatched
        self.guards.mappings.append(mapping)
        self.guards.keys.append(keys)
        self.guards.values += mapping.values()

    # -- what a walk looks at -----------------------------------------------------------------------------------------

    def look(self, mapping: Any, name: str, found: Any) -> None:
        value = mapping.get(name, MISSING)
        if value is not found:
            raise _Unwatched
        self.guards.names.append((mapping, name, value))

    def look_at_class(self, kind: type, name: str) -> None:
        def get(kind: type) -> tuple[Any, ...]:
            return getattr(kind, name, None), kind.__getattribute__

        self.guards.attributes.append((get, kind, get(kind)))

    def look_inside(self, cell: types.CellType) -> None:
        self.guards.cells.append((cell, cell.cell_contents))

    def holds(self, value: Any) -> None:
        if type(value) in (tuple, frozenset, staticmethod, classmethod):
            return
        if type(value) is not list:
            raise _Unwatched
        self.guards.lists.append((value, tuple(value)))

    def parameters(self, p: Any) -> None:
        """Note the containers that p is built of."""
        if isinstance(p, Parameters):
            self.content(p._values)
            items = tuple(p._values.values())
        elif isinstance(p, (list, tuple)):
            self.holds(p)
            items = tuple(p)
        elif p is None or isinstance(p, (Tensor, nn.Module)):
            return
        else:
            raise _Unwatched
        for item in items:
            self.parameters(item)

    def mapping(self, values: dict[Any, Any]) -> None:
        self.content(values)
        super().mapping(values)

    def function(self, function: types.FunctionType) -> None:
        if self._first_time(function):
            self.guards.attributes.append((_OF_FUNCTION, function, _OF_FUNCTION(function)))
            self.content(function.__dict__)
        super().function(function)

    def partial(self, value: Any) -> None:
        self.guards.attributes.append((_OF_PARTIAL, value, _OF_PARTIAL(value)))

    def module(self, module: nn.Module) -> None:
        if self._first_time(module):
            own = module.__dict__
            self._object(module)
            for part in (own, own["_parameters"], own["_buffers"], own["_modules"]):
                self.content(part)
            self.guards.empty += [own[name] for name in _HOOKS]
        super().module(module)

    def instance(self, value: Any) -> None:
        if self._first_time(value):
            self._object(value)
            own = getattr(value, "__dict__", None)
            if own is not None:
                self.content(own)
            slots = class_plan(type(value)).slots
            if slots:
                get = _slots(slots)
                self.guards.attributes.append((get, value, get(value)))
        super().instance(value)

    def _object(self, value: Any) -> None:
        self.guards.objects.append(value)
        self.guards.kinds.append(type(value))

    def type_of(self, kind: type, construct: bool = False) -> frozenset[str]:
        if self._first_time(kind):
            own = class_plan(kind).own
            if own:
                self.guards.attributes.append((_OF_CLASS, kind, kind.__mro__))
            for base in own:
                if base not in self._classes:
                    self._classes.add(base)
                    self.content(base.__dict__)
        return super().type_of(kind, construct)

    def tensor(self, tensor: Tensor) -> None:
        if id(tensor) not in self.leaves and self._first_time(tensor):
            self.guards.tensors.append((tensor, kind_of(tensor)))
        super().tensor(tensor)


def _slots(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(getattr(value, name, None) for name in names)
