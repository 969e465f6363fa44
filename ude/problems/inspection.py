"""What one call of a right-hand side shows: numbers that leave torch, derivatives that torch drops, and switches.

A traced or differentiated f is right only where all its arithmetic is torch's. Here f is called once, every torch
function that it calls is watched, and for every tensor it is known which of u, t and the parameters it depends on.
The call works on copies, so that an f that changes its arguments in place is found before it does harm.
"""

from __future__ import annotations

import linecache
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ude.errors import GradientWarning, InputError
from ude.problems.interpolation import Interpolation
from ude.problems.ode import FlatRightHandSide, Parameters

#: What a tensor that f refers to, beside its arguments, is called.
CAPTURED = "a tensor that f refers to"

# Functions that hand numbers of a tensor to Python or NumPy, and what messages call them.
_LEAVE = {
    **dict.fromkeys(("__float__", "__complex__"), "float()"),
    **dict.fromkeys(("__int__", "__index__"), "int()"),
    **dict.fromkeys(("numpy", "__array__", "__dlpack__"), "NumPy"),
    **{"item": ".item()", "tolist": ".tolist()", "data_ptr": ".data_ptr()", "untyped_storage": ".untyped_storage()"},
}
_DECIDE = frozenset({"__bool__", "is_nonzero", "equal", "allclose", "__contains__"})
# Results that depend on the shape of the first argument and not on its numbers.
_OF_SHAPE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "new_")
# Guards against numbers that are none; a branch on them is no switch of the equations.
_GUARDS = frozenset({"isnan", "isfinite", "isinf", "isposinf", "isneginf"})
#: Functions whose result jumps where an argument passes through a level.
_JUMPS = """
    gt lt ge le greater less greater_equal less_equal heaviside sign sgn floor ceil round trunc fix frac remainder
    fmod floor_divide __floordiv__ __rfloordiv__ __mod__ __rmod__ bucketize searchsorted threshold threshold_ hardshrink
    argmax argmin argsort int long short to type signbit
"""
_JUMP = frozenset(_JUMPS.split())
# Of these torch has no derivative, although it is zero wherever it exists.
_NO_DERIVATIVE = frozenset({"heaviside", "floor_divide", "__floordiv__", "__rfloordiv__"})
_INNER = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_CUSTOM = str(Path(torch.autograd.function.__file__))


@dataclass(frozen=True)
class TorchCall:
    """A torch function that f calls, on what it depends, and where.

    Args:
        how: What messages call the function.
        sources: Which of "u", "t", the leaves ("p.k") and `CAPTURED` its arguments depend on.
        line: Where f calls it: `` (line 12 of model.py: `...`)``, or nothing.
    """

    how: str
    sources: frozenset[str]
    line: str

    @property
    def names(self) -> str:
        """The sources as a list in words."""
        return " and ".join(sorted(self.sources))


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a call of f showed.

    Args:
        left: Numbers that left torch, to Python or NumPy.
        decided: Branches of Python on the values of tensors.
        dropped: Functions through which torch passes no derivative.
        detached: Places where f itself cuts the derivative.
        jumps: Functions that jump, which make switches of f where they depend on u or t.
        undefined: Whether one of them has a derivative of zero that torch does not know.
    """

    left: tuple[TorchCall, ...] = ()
    decided: tuple[TorchCall, ...] = ()
    dropped: tuple[TorchCall, ...] = ()
    detached: tuple[TorchCall, ...] = ()
    jumps: tuple[TorchCall, ...] = ()
    undefined: bool = False

    @property
    def plain(self) -> bool:
        """Whether there is nothing that a solve would have to know."""
        return not (self.left or self.decided or self.dropped or self.detached or self.switches)

    @property
    def switches(self) -> tuple[TorchCall, ...]:
        """The functions that jump as the state or the time move."""
        return tuple(found for found in self.jumps if found.sources & {"u", "t"})

    def why_not_traced(self) -> str | None:
        """Why a program traced from f would not be f: numbers left torch, and would be constants of it."""
        for found in self.left:
            if found.sources:
                return f"f takes {found.names} out of torch by {found.how}, and the number would be frozen{found.line}"
        return None

    def require_derivative(self, wanted: frozenset[str]) -> None:
        """Check that no derivative with respect to these sources is lost inside f.

        Raises:
            InputError: Torch cannot pass it through f.
        """
        for found in self.left:
            if found.sources & wanted:
                raise InputError(
                    f"no gradient passes through {_lost(found, wanted)}, which f takes out of torch by {found.how}"
                    f"{found.line}",
                    fix="Compute with tensors, such as torch.sin(p.k) in place of math.sin(p.k); or detach it before "
                    "the solve, if it is a constant.",
                )
        for found in self.decided:
            if found.sources & wanted:
                raise InputError(
                    f"f decides by the value of {_lost(found, wanted)} in Python, so the gradient would miss that the "
                    f"switch moves{found.line}",
                    fix="Write a switch of time with torch.where; for one of the state use a ContinuousCallback.",
                )
        for found in self.dropped:
            if found.sources & wanted:
                raise InputError(
                    f"torch has no derivative of {found.how}, on which f depends by {_lost(found, wanted)}{found.line}",
                    fix="Give its derivative in a torch.autograd.Function, or use a series or an interpolation of it.",
                )
        for found in self.detached:
            # a state that f detaches is meant so; a parameter may be lost altogether
            lost = found.sources & (wanted if found.how.startswith("torch.autograd") else wanted - {"u"})
            if lost:
                warnings.warn(
                    f"the gradient does not pass {found.how} in f, so what depends on {' and '.join(sorted(lost))} by "
                    f"that way counts as a constant{found.line}.",
                    GradientWarning,
                    stacklevel=2,
                )


def _lost(found: TorchCall, wanted: frozenset[str]) -> str:
    return " and ".join(sorted(found.sources & wanted))


_KNOWN: WeakKeyDictionary[Any, dict[Any, Inspection]] = WeakKeyDictionary()
_MOST_OF_ONE = 16


def inspect(f: FlatRightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor, *, gradient: bool) -> Inspection:
    """`inspect_once`, which is remembered for the same function with arguments and modules of the same kind."""
    kind = (u.shape, u.dtype, tuple(leaf.shape for leaf in leaves), *map(id, f.modules), gradient)
    try:
        known = _KNOWN.setdefault(f.f, {})
    except TypeError:  # a method, or an object that cannot be a key
        return inspect_once(f, u, leaves, t, gradient=gradient)
    if kind not in known:
        if len(known) >= _MOST_OF_ONE:
            known.clear()
        known[kind] = inspect_once(f, u, leaves, t, gradient=gradient)
    return known[kind]


def inspect_once(f: FlatRightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor, *, gradient: bool) -> Inspection:
    """Call f with copies of its arguments and note what it does with them.

    Args:
        u, leaves, t: As of a call of f.
        gradient: Whether to look for lost derivatives, which takes a graph of the call.

    Raises:
        InputError: f changes an argument in place.
    """
    if torch.is_inference_mode_enabled() or _is_compiled(f):
        return Inspection()
    # the graph is thrown away: hooks on saved tensors, which a user may have set, are not to see it
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.enable_grad() if gradient else nullcontext(), hooks:
        state, *copies, time = (_copy(tensor, gradient) for tensor in (u, *leaves, t))
        named = {"u": state, "t": time, **dict(zip(leaf_names(f), copies, strict=True))}
        watch = _Watch(named)
        with watch:
            f(state, copies, time)
    return Inspection(
        left=tuple(watch.left),
        decided=tuple(watch.decided),
        dropped=tuple(watch.dropped),
        detached=tuple(watch.detached),
        jumps=tuple(watch.jumps),
        undefined=watch.undefined,
    )


def _copy(tensor: Tensor, gradient: bool) -> Tensor:
    copy = tensor.detach().clone()
    # not a leaf of the graph, into which torch itself would forbid to write: the message should be ours
    return copy.requires_grad_().clone() if gradient and copy.is_floating_point() else copy


def _is_compiled(f: FlatRightHandSide) -> bool:
    parts = (f.f, *f.modules)
    return any(hasattr(part, "_torchdynamo_orig_callable") or hasattr(part, "_orig_mod") for part in parts)


@dataclass(frozen=True)
class _Place:
    """Stands for a slot of p in the structure of p: where its leaves begin, and their names in a module."""

    first: int
    inner: tuple[str, ...] | None


def leaf_names(f: FlatRightHandSide) -> tuple[str, ...]:
    """What the user calls each leaf: "p.k", "p[0]", "weight of p.net"."""
    places: list[_Place | None] = []
    count = 0
    for slot in f.slots:
        inner = None if slot is None or isinstance(slot, Tensor) else slot.names
        places.append(None if slot is None else _Place(count, inner))
        count += 0 if slot is None else 1 if inner is None else len(inner)
    own = f.own.names if f.own else ()
    names = [f"parameter {i + 1}" for i in range(count)] + [f"{name} of f" for name in own]
    for place, path in _places(pytree.tree_unflatten(places, f.structure), "p"):
        for i, name in enumerate([path] if place.inner is None else [f"{name} of {path}" for name in place.inner]):
            names[place.first + i] = name
    return tuple(names)


def _places(part: Any, path: str) -> Iterator[tuple[_Place, str]]:
    if isinstance(part, _Place):
        yield part, path
    elif isinstance(part, Parameters):
        for name, item in part.items():
            yield from _places(item, f"{path}.{name}")
    elif isinstance(part, (list, tuple)):
        for i, item in enumerate(part):
            yield from _places(item, f"{path}[{i}]")


class _Watch(TorchFunctionMode):
    """Follows which inputs every tensor depends on, and notes the functions that matter."""

    def __init__(self, inputs: Mapping[str, Tensor]) -> None:
        # the tensors are held, so that their ids stay theirs
        self._sources = {id(tensor): (tensor, frozenset([name])) for name, tensor in inputs.items()}
        self.left: list[TorchCall] = []
        self.decided: list[TorchCall] = []
        self.dropped: list[TorchCall] = []
        self.detached: list[TorchCall] = []
        self.jumps: list[TorchCall] = []
        self.undefined = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name in ("__get__", "__set__"):
            name = getattr(func.__self__, "__name__", name)
        if name in _LEAVE and args[0].requires_grad:
            # f may be called without a graph, where torch allows it
            self._note(name, self.sources_of(args[0]), [args[0]], [])
            return func(args[0].detach(), *args[1:], **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        tensors = _tensors((args, kwargs))
        made = _tensors(result)
        sources = frozenset().union(*map(self.sources_of, tensors))
        if tensors:
            self._note(name, sources, tensors, made)
        if name in _GUARDS or name.startswith(_OF_SHAPE):
            sources = frozenset().union(*map(self.sources_of, tensors[1:]))
        if name.endswith("_") or name in ("__setitem__", "__set__"):
            made = [*made, *tensors[:1]]
            sources |= self.sources_of(tensors[0]) if tensors else frozenset()
        for tensor in made:
            self._sources[id(tensor)] = (tensor, sources)
        return result

    def sources_of(self, tensor: Tensor) -> frozenset[str]:
        """What a tensor depends on; one that no function has made is captured."""
        known = self._sources.get(id(tensor))
        return frozenset([CAPTURED]) if known is None else known[1]

    def _note(self, name: str, sources: frozenset[str], tensors: list[Tensor], made: list[Tensor]) -> None:
        if not sources or name.startswith(_OF_SHAPE) or name in _GUARDS:
            return
        if name in _LEAVE:
            self._add(self.left, _LEAVE[name], sources)
        elif name in _DECIDE:
            self._add(self.decided, f"{name}()", sources)
        elif name in _JUMP or (name in ("div", "divide", "true_divide") and not made[0].requires_grad):
            if not (name in ("to", "type") and made and made[0].is_floating_point()):
                self._add(self.jumps, name, sources)
                self.undefined |= name in _NO_DERIVATIVE
        elif any(one.requires_grad for one in tensors) and any(
            one.is_floating_point() and not one.requires_grad for one in made
        ):
            if name in ("detach", "detach_", "data"):
                self._add(self.detached, f".{name}()".replace("data()", "data"), sources)
            elif name == "grad":
                self._add(self.detached, "torch.autograd.grad without create_graph=True", sources)
            elif not torch.is_grad_enabled():
                self._add(self.detached, "torch.no_grad()", sources)
            else:
                self._add(self.dropped, f"torch.{name}".replace("torch.special_", "torch.special."), sources)

    def _add(self, findings: list[TorchCall], how: str, sources: frozenset[str]) -> None:
        line, inside = _where()
        if not inside:
            findings.append(TorchCall(how, sources, line))


def _tensors(tree: Any) -> list[Tensor]:
    return [item for item in pytree.tree_leaves(tree) if isinstance(item, Tensor)]


def _where() -> tuple[str, bool]:
    """The innermost line outside of torch and ude, and whether it is reached through code that knows what it does."""
    frame: Any = sys._getframe(3)
    line, trusted = "", False
    while frame is not None and not trusted:
        code = frame.f_code
        # a custom autograd function has a derivative of its own; an interpolation tells its knots
        trusted = code is Interpolation.forward.__code__ or (code.co_filename == _CUSTOM and code.co_name == "apply")
        if not line and not code.co_filename.startswith(_INNER):
            text = linecache.getline(code.co_filename, frame.f_lineno).strip()
            shown = f": `{text[:100]}`" if text else ""
            line = f" (line {frame.f_lineno} of {Path(code.co_filename).name}{shown})"
        frame = frame.f_back
    return line, trusted
