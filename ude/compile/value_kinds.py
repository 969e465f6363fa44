"""How each kind of Python value counts in a fingerprint. A `walk` (walk.py) collects the tokens."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import random
import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ude.compile.code_reads import BLIND, Path
from ude.compile.environment import is_trusted
from ude.problems.ode import FlatRightHandSide


class Walker(Protocol):
    """What handlers need of a `walk.Walk`, which documents it."""

    tokens: list[Any]
    roots: set[str]
    seen: dict[int, tuple[int, Any]]
    leaves: dict[int, int]

    def value(self, value: Any) -> None: ...
    def holds(self, value: Any) -> None: ...
    def again(self, value: Any) -> bool: ...
    def mapping(self, values: dict[Any, Any]) -> None: ...
    def instance(self, value: Any) -> None: ...
    def function(self, function: types.FunctionType) -> None: ...
    def partial(self, value: Any) -> None: ...
    def named(self, root: str, name: str) -> None: ...
    def type_of(self, kind: type, construct: bool = False) -> frozenset[str]: ...
    def tensor(self, tensor: Tensor) -> None: ...
    def module(self, module: nn.Module) -> None: ...
    def read(self, value: Any, paths: tuple[Path, ...]) -> None: ...


Handler = Callable[[Walker, Any], None]

#: Bytes of a numpy array, which a trace freezes and a fingerprint must therefore read.
MOST_BYTES = 1 << 20
#: Modules whose functions answer differently every time.
CHANGING = frozenset({"random", "secrets", "uuid", "time"})


class Refused(Exception):
    """Why no trace may be kept, in one sentence."""


def frozen(name: str) -> Refused:
    """The refusal of a call whose answer a kernel would repeat for ever."""
    return Refused(f"f calls {name}, whose value a kernel would freeze.")


class Same:
    """An object that counts by identity; it is held, so that its id stays its own."""

    __slots__ = ("held",)

    def __init__(self, held: object) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.held is self.held

    def __hash__(self) -> int:
        return id(self.held)


# -- packages and classes ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def root_of(module: str) -> str | None:
    """The package of a module where it is taken by name and release, else None: its code must be looked at."""
    root = module.partition(".")[0]
    return root if is_trusted(root) else None


@dataclass(frozen=True)
class ClassPlan:
    """What does not change about a class: the user's own bases, slots, and attributes that no trace depends on."""

    kind: type
    own: tuple[type, ...]
    roots: tuple[str, ...]
    slots: tuple[str, ...]
    untraced: frozenset[str]


PLANS: dict[type, ClassPlan] = {}


def class_plan(kind: type) -> ClassPlan:
    """Parse a class, once. A class may name attributes that its results do not depend on in ``__untraced__``."""
    plan = PLANS.get(kind)
    if plan is None:
        if len(PLANS) > 4096:  # classes made in a loop must not fill the memory
            PLANS.clear()
        plan = PLANS[kind] = _parse(kind)
    return plan


def _parse(kind: type) -> ClassPlan:
    own, roots, slots = [], [], []
    untraced: set[str] = set()
    for base in kind.__mro__:
        root = root_of(base.__module__)
        # torch.fx writes the forward of a GraphModule into a class of its own
        if root is None or (base.__module__ == "torch.fx.graph_module" and base.__name__ == "GraphModuleImpl"):
            own.append(base)
        elif root != "builtins":
            roots.append(root)
        named = base.__dict__.get("__slots__", ())
        slots += [name for name in ((named,) if isinstance(named, str) else named) if not name.startswith("__")]
        untraced.update(base.__dict__.get("__untraced__", ()))
    return ClassPlan(kind, tuple(own), tuple(dict.fromkeys(roots)), tuple(slots), frozenset(untraced))


# -- values that are told in full -------------------------------------------------------------------------------------


def _itself(walk: Walker, value: Any) -> None:
    walk.tokens.append(value)


def _typed(walk: Walker, value: Any) -> None:
    # the type too: 1 == 1.0 == True, and a captured "end" is no mark of this traversal
    walk.tokens.append(type(value))
    walk.tokens.append(value)


def _float(walk: Walker, value: float) -> None:
    walk.tokens.append(float)
    # 0.0 == -0.0, and nan != nan
    walk.tokens.append(value if value and value == value else repr(value))


def _by_text(walk: Walker, value: Any) -> None:
    walk.tokens += (type(value), repr(value))


def _array(walk: Walker, value: Any) -> None:
    walk.holds(value)
    if value.dtype.hasobject:
        raise Refused("f captures a numpy array of Python objects, which cannot be compared safely.")
    if value.nbytes > MOST_BYTES:
        raise Refused(
            f"f captures a numpy array of {value.nbytes} bytes, which a trace would freeze; make it a torch tensor."
        )
    content = value.tobytes()
    content = content if len(content) <= 64 else hashlib.sha256(content).digest()
    walk.tokens += ("array", value.dtype.str, value.shape, content)


def _symbolic(walk: Walker, value: Any) -> None:
    if not isinstance(value, sys.modules["sympy"].Basic):
        walk.holds(value)  # a matrix, which can be written into
    walk.roots.add("sympy")
    walk.tokens += (type(value), sys.modules["sympy"].srepr(value))


# -- containers -------------------------------------------------------------------------------------------------------


def _sequence(walk: Walker, value: Any) -> None:
    if not walk.again(value):
        walk.holds(value)
        walk.tokens += (type(value), len(value))
        for item in value:
            walk.value(item)


def _dict(walk: Walker, value: dict[Any, Any]) -> None:
    if not walk.again(value):
        walk.tokens.append(dict)
        walk.mapping(value)


def _view(walk: Walker, value: types.MappingProxyType[Any, Any]) -> None:
    walk.holds(value)
    walk.tokens.append("view")
    walk.mapping(dict(value))


def _container(walk: Walker, value: Any) -> None:
    """A subclass of a container: what an object has, and its content, whatever the subclass makes of reading it."""
    if id(value) in walk.seen:
        walk.again(value)
        return
    walk.holds(value)
    walk.instance(value)
    if isinstance(value, collections.defaultdict):
        walk.value(value.default_factory)
    if isinstance(value, dict):
        walk.mapping(dict(dict.items(value)))
        return
    base = next(kind for kind in (list, tuple, set, frozenset, collections.deque) if isinstance(value, kind))
    content = tuple(base.__iter__(value))
    walk.tokens.append(len(content))
    for item in content:
        walk.value(item)


# -- what can be called -----------------------------------------------------------------------------------------------


def _function(walk: Walker, value: types.FunctionType) -> None:
    walk.function(value)


def _method(walk: Walker, value: types.MethodType) -> None:
    walk.tokens.append("method")
    walk.value(value.__func__)
    walk.value(value.__self__)


def _builtin(walk: Walker, value: Any) -> None:
    owner = getattr(value, "__self__", None)
    name = getattr(value, "__qualname__", value.__name__)
    if owner is not None and not isinstance(owner, (type, types.ModuleType)):
        walk.tokens += ("method", name)
        walk.value(owner)
        return
    module = value.__module__ or (owner.__module__ if isinstance(owner, type) else "")
    root = root_of(module.lstrip("_"))
    if root is None:
        walk.tokens.append(Same(value))
    elif root in CHANGING:
        raise frozen(f"{module}.{value.__name__}")
    elif root == "builtins" and name in BLIND:
        raise Refused(f"f calls {name}, so what it reads cannot be told.")
    else:
        walk.named(root, f"{module}.{name}")


def _descriptor(walk: Walker, value: Any) -> None:
    """What a class written in C has for methods and attributes."""
    walk.tokens += ("descriptor", value.__objclass__, value.__name__)


def _partial(walk: Walker, value: functools.partial[Any]) -> None:
    walk.tokens.append("partial")
    walk.partial(value)
    walk.value(value.func)
    walk.value(value.args)
    walk.mapping(value.keywords)


def _wrapper(walk: Walker, value: Any) -> None:
    walk.holds(value)
    walk.tokens.append(type(value))
    walk.value(value.__wrapped__)


def _property(walk: Walker, value: property) -> None:
    walk.tokens.append(property)
    walk.value(value.fget)
    walk.value(value.fset)


def _cell(walk: Walker, value: types.CellType) -> None:
    walk.holds(value)
    walk.tokens.append("cell")
    try:
        walk.value(value.cell_contents)
    except ValueError:  # not assigned yet
        walk.tokens.append("empty")


def _weak(walk: Walker, value: weakref.ref[Any]) -> None:
    walk.holds(value)
    walk.tokens.append("weak")
    walk.value(value())


def _class(walk: Walker, value: type) -> None:
    """A class that code names: it may be constructed."""
    walk.tokens.append("class")
    walk.type_of(value, construct=True)


# -- torch and ude ----------------------------------------------------------------------------------------------------


def _tensor(walk: Walker, value: Tensor) -> None:
    walk.tensor(value)


def _tensor_subclass(walk: Walker, value: Tensor) -> None:
    raise Refused(f"f captures a {type(value).__name__}, a kind of tensor that a kernel cannot read.")


def _module(walk: Walker, value: nn.Module) -> None:
    walk.module(value)


def _script(walk: Walker, value: Any) -> None:
    raise Refused(f"f runs a {type(value).__name__}, whose code is not Python's; give what it was made from.")


def _right_hand_side(walk: Walker, value: FlatRightHandSide) -> None:
    """f over leaves: the tensors of its slots are leaves by their place."""
    leaves: list[Tensor] = []
    for slot in (*value.slots, value.own):
        if slot is not None:
            leaves += (slot,) if isinstance(slot, Tensor) else slot.tensors
    for index, leaf in enumerate(leaves):
        walk.leaves.setdefault(id(leaf), index)
    axes = value.axes
    # the size of the batch is no part of a kernel
    walk.tokens += ("rhs", None if axes is None else (axes.shared, axes.state))
    walk.value(value.structure)
    for slot in value.slots:
        walk.value(slot if slot is None or isinstance(slot, Tensor) else slot.module)
    walk.value(value.f)


# -- what does not stand still ----------------------------------------------------------------------------------------


def _python_module(walk: Walker, value: types.ModuleType) -> None:
    walk.read(value, ((),))


def _random(walk: Walker, value: Any) -> None:
    raise Refused(f"f holds a random generator ({type(value).__name__}), whose numbers a kernel would freeze.")


def _running(walk: Walker, value: Any) -> None:
    raise Refused(f"f holds a {type(value).__name__}, which moves on when it is read, and a kernel would not move it.")


def _identity(walk: Walker, value: Any) -> None:
    walk.tokens.append(Same(value))


def _instance(walk: Walker, value: Any) -> None:
    walk.instance(value)


HANDLERS: dict[type, Handler] = {
    **dict.fromkeys((type(None), type(...), type(NotImplemented)), _itself),
    **dict.fromkeys((bool, int, str, bytes), _typed),
    float: _float,
    **dict.fromkeys((complex, range, slice), _by_text),
    **dict.fromkeys((torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size), _typed),
    **dict.fromkeys((list, tuple, set, frozenset, collections.deque), _sequence),
    dict: _dict,
    types.MappingProxyType: _view,
    types.FunctionType: _function,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin,
    **dict.fromkeys((types.WrapperDescriptorType, types.MethodDescriptorType, types.GetSetDescriptorType), _descriptor),
    **dict.fromkeys((types.MemberDescriptorType, types.ClassMethodDescriptorType), _descriptor),
    functools.partial: _partial,
    **dict.fromkeys((staticmethod, classmethod, functools._lru_cache_wrapper), _wrapper),
    property: _property,
    types.CellType: _cell,
    weakref.ref: _weak,
    types.ModuleType: _python_module,
    **dict.fromkeys((Tensor, nn.Parameter, nn.Buffer, torch.nn.parameter.UninitializedParameter), _tensor),
    FlatRightHandSide: _right_hand_side,
    **dict.fromkeys((types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType), _running),
}

_SUBCLASSES: tuple[tuple[tuple[type, ...], Handler], ...] = (
    ((type,), _class),
    ((Tensor,), _tensor_subclass),
    ((torch.jit.ScriptModule, torch.jit.ScriptFunction), _script),
    ((nn.Module,), _module),
    ((types.ModuleType,), _python_module),
    ((np.ndarray, np.generic), _array),
    ((torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator), _random),
    ((list, tuple, set, frozenset, dict, collections.deque), _container),
    ((io.IOBase,), _running),
)


def handler_of(kind: type) -> Handler:
    """How values of this type count; found once and kept in `HANDLERS`."""
    handler = _find(kind)
    if len(HANDLERS) < 4096:  # classes made in a loop must not fill the table
        HANDLERS[kind] = handler
    return handler


def _find(kind: type) -> Handler:
    for kinds, handler in _SUBCLASSES:
        if issubclass(kind, kinds):
            return handler
    if hasattr(kind, "__next__"):
        return _running
    root = root_of(kind.__module__)
    if kind.__module__.startswith("sympy."):
        return _symbolic
    if kind.__module__ in ("decimal", "fractions", "datetime", "pathlib", "re", "pathlib._local"):
        return _by_text
    if root is None and kind.__flags__ & (1 << 9) == 0:
        return _identity  # a class written in C by others: nothing of it can be read
    has_content = kind.__dictoffset__ != 0 or any("__slots__" in base.__dict__ for base in kind.__mro__)
    return _instance if has_content else _identity
