"""Find the measured inputs that a right-hand side uses, so that steps can stop at their knots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from ude.problems.interpolation import Interpolation

# How deep functions that call functions are searched, and how many items of a container.
_DEPTH = 3
_MOST_ITEMS = 100


def interpolations_in(*roots: Any) -> tuple[Interpolation, ...]:
    """Find the interpolations that a right-hand side and its parameters use.

    Searched are modules and their parts, pytrees, and the closures, defaults and global names of functions; other
    objects are not.
    """
    found: dict[int, Interpolation] = {}
    seen: set[int] = set()
    waiting = [(root, _DEPTH) for root in roots]
    while waiting:
        item, depth = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Interpolation):
            found[id(item)] = item
        elif depth:
            waiting += [(part, depth - (not isinstance(part, Interpolation))) for part in _parts(item)]
    return tuple(found.values())


_FUNCTIONS = FunctionType, MethodType, partial


def _parts(item: Any) -> Iterator[Any]:
    if isinstance(item, nn.Module):
        for module in item.modules():
            if isinstance(module, Interpolation):
                yield module
            yield from (value for value in vars(module).values() if isinstance(value, _FUNCTIONS))
    elif isinstance(item, FunctionType):
        yield from (cell.cell_contents for cell in item.__closure__ or () if _filled(cell))
        yield from item.__defaults__ or ()
        yield from (item.__globals__[name] for name in _names(item.__code__) if name in item.__globals__)
    elif isinstance(item, MethodType):
        yield from (item.__func__, item.__self__)
    elif isinstance(item, partial):
        yield from (item.func, *item.args, *item.keywords.values())
    elif isinstance(item, (list, tuple)):
        # a long list is data
        yield from item[:_MOST_ITEMS]
    elif isinstance(item, Mapping):
        yield from islice(item.values(), _MOST_ITEMS)
    elif callable(item) and not isinstance(item, type) and hasattr(item, "__dict__"):
        yield from vars(item).values()


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty cell is what raises
    except ValueError:
        return False
    return True


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names that the code of a function mentions, those of nested functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
