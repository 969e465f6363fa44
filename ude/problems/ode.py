"""The initial value problem: right-hand side, initial state, time span, parameters."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from types import CodeType
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ude.errors import InputError, UnknownName
from ude.problems.function import ODEFunction, innermost, require_callable
from ude.problems.state_axes import StateAxes
from ude.vocabulary import OF_PROBLEMS, named_arguments, right_name

RightHandSide = Callable[[Tensor, Any, Tensor], Tensor]


class Parameters(Mapping[str, Any]):
    """Named parameters, read as ``p["alpha"]`` or ``p.alpha``; a pytree whose leaves are tensors.

    >>> p = Parameters(alpha=1.5, beta=torch.tensor([1.0, 2.0]))
    >>> p.alpha, p["beta"].shape
    (1.5, torch.Size([2]))
    """

    __slots__ = ("_values",)
    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        object.__setattr__(self, "_values", {**(values or {}), **named})

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise _unknown_parameter(name, self._values) from None

    def __getattr__(self, name: str) -> Any:
        # copy and pickle ask for special names before __init__ has run
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise _unknown_parameter(name, self._values) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"parameters are frozen: build new ones instead of setting {name!r}, or use ude.remake")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Parameters({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Parameters, (self._values,))


pytree.register_pytree_node(
    Parameters,
    lambda p: (list(p.values()), tuple(p)),
    lambda values, names: Parameters(dict(zip(names, values, strict=True))),
    serialized_type_name="ude.problems.Parameters",
    flatten_with_keys_fn=lambda p: ([(pytree.MappingKey(name), value) for name, value in p.items()], tuple(p)),
)


def _unknown_parameter(name: object, known: Mapping[str, Any]) -> UnknownName:
    return UnknownName(f"p has no {name!r}", expected=f"one of {', '.join(known)}" if known else "no parameters")


class BoundModule:
    """A module with the parameter tensors that it uses instead of its own; called like the module.

    The tensors of a network inside `p` are leaves of the pytree in this way, and the module is never modified.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.module, self.tensors = module, dict(tensors)

    def __call__(self, *args: Any) -> Any:
        return torch.func.functional_call(self.module, self.tensors, args)


@named_arguments(OF_PROBLEMS)
@dataclass(frozen=True, eq=False)
class ODEProblem:
    """The initial value problem ``du/dt = f(u, p, t)``, ``u(tspan[0]) = u0``.

    Args:
        f: A function, `nn.Module` or `ODEFunction` called as ``f(u, p, t)`` with u of shape ``(*batch, state)`` and t
            of shape ``(*batch)``; returns du/dt of u's shape. Trained tensors must not be captured in a closure:
            give networks in `p`, or make f a module that owns them.
        u0: Initial state ``(*batch, state)``; numbers become float64.
        tspan: Start and end; each a number or a tensor of shape ``(*batch)``. The end may precede the start. A gradient
            passes through them.
        p: Parameters, any pytree of tensors, numbers and modules; a dict becomes `Parameters`.
        names: Names of the states, as ``"x, y"`` or a sequence. When left out they are read from an unpacking of u in
            the source of f (``x, y = u.unbind(-1)``), else they are u1, u2, ... With several axes of the state they
            name the entries of the last one.
        state_dims: How many trailing axes of u0 are the state of one trajectory: 2 for a graph of shape (nodes,
            features), whose nodes depend on each other and share their steps. None is the attribute ``f.state_dims``
            if f has one, else 1. u then has shape ``(*batch, *state)`` everywhere.

    Raises:
        InputError: f, u0, tspan, p, names or state_dims are invalid.

    >>> def decay(u, p, t):
    ...     return -p.k * u
    >>> prob = ude.ODEProblem(decay, u0=[1.0, 2.0], tspan=(0.0, 1.0), p=dict(k=2.0), names="x, y")
    >>> prob.u0.shape, prob.state_names
    (torch.Size([2]), ('x', 'y'))
    """

    f: RightHandSide
    u0: Float[Tensor, "*batch state"]
    tspan: tuple[Any, Any]
    p: Any = None
    names: Sequence[str] | str | None = None
    state_dims: int | None = None

    def __post_init__(self) -> None:
        require_callable(self.f, "f")
        u0 = state_tensor(self.u0)
        object.__setattr__(self, "u0", u0)
        axes = self.state_axes()
        if isinstance(self.f, ODEFunction):
            self.f.require_size(axes.size)
        object.__setattr__(self, "tspan", _time_span(self.tspan, u0, axes.batch))
        object.__setattr__(self, "p", _tensors(self.p, u0))
        if self.names is not None:
            object.__setattr__(self, "names", _checked_names(self.names, u0.shape[-1]))

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, given or inferred."""
        if self.names is not None:
            return tuple(self.names)
        count = self.u0.shape[-1]
        return _names_in_source(self.f, count) or tuple(f"u{i + 1}" for i in range(count))

    def state_axes(self, *, shared_steps: bool = False) -> StateAxes:
        """Say which axes of u0 count trajectories; with `shared_steps` all of these step together.

        Raises:
            InputError: u0 has too few axes, or the problem takes states of one axis only.
        """
        dims = getattr(innermost(self.f), "state_dims", 1) if self.state_dims is None else self.state_dims
        shape = tuple(self.u0.shape)
        if isinstance(dims, bool) or not isinstance(dims, int) or not 1 <= dims <= len(shape):
            raise InputError(
                "state_dims must be a number of axes of u0",
                expected=f"a whole number from 1 to {len(shape)} for u0 of shape {shape}",
                got=repr(dims),
            )
        batch, state = shape[: len(shape) - dims], shape[len(shape) - dims :]
        return StateAxes((), batch, state) if shared_steps and batch else StateAxes(batch, (), state)


_Problem = TypeVar("_Problem", bound=ODEProblem)


def remake(prob: _Problem, **changes: Any) -> _Problem:
    """Return a copy of the problem with some fields replaced: ``remake(prob, u0=[2.0, 1.0], p=dict(alpha=1.2))``.

    A dict given for `p` updates the named parameters and keeps the others.

    Raises:
        InputError: A change names no field, or p names a parameter that the problem does not have.

    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0, m=1.0))
    >>> longer = ude.remake(prob, tspan=(0.0, 5.0), p=dict(k=3.0))
    >>> float(longer.p.k), float(longer.p.m)
    (3.0, 1.0)
    """
    if not isinstance(prob, ODEProblem):
        raise InputError("remake changes a problem", expected="an ODEProblem", got=type(prob).__name__)
    known = [field.name for field in fields(prob) if field.init]
    for name in changes:
        if name not in known:
            expected, fix = right_name(name, known, OF_PROBLEMS)
            raise InputError(f"remake cannot change {name!r}", expected=expected, fix=fix)
    update = changes.get("p")
    if isinstance(update, Mapping) and isinstance(prob.p, Parameters):
        for name in update:
            if name not in prob.p:
                raise InputError(
                    "p updates an unknown parameter", expected=f"one of {', '.join(prob.p)}", got=str(name)
                )
        changes["p"] = {**prob.p, **update}
    return replace(prob, **changes)


def state_tensor(u0: Any, name: str = "u0") -> Tensor:
    """Turn an initial state into a floating-point tensor with a state axis; errors call it `name`."""
    tensor = u0 if isinstance(u0, Tensor) else _as_state(u0, name)
    require_plain(tensor, name)
    if tensor.is_complex():
        raise InputError(
            f"{name} must be real",
            got=f"{tensor.dtype}",
            fix="Give real and imaginary parts as states of their own: torch.view_as_real(u0).flatten(-2).",
        )
    if not tensor.is_floating_point():
        if tensor.dtype == torch.bool:
            raise InputError(f"{name} must be numbers", got=str(tensor.dtype))
        tensor = tensor.to(torch.float64)
    if tensor.dtype not in (torch.float64, torch.float32):
        raise InputError(
            f"{name} must be float64 or float32",
            got=str(tensor.dtype),
            fix="The error of a step is below the precision of shorter numbers: write u0.float().",
        )
    if tensor.ndim == 0:
        raise InputError(
            f"{name} must have a state axis",
            expected="shape (*batch, state)",
            got="a scalar",
            fix=f"Write {name}=[value].",
        )
    if tensor.shape[-1] == 0 or tensor.numel() == 0:
        raise InputError(f"{name} must have at least one state", got=f"shape {tuple(tensor.shape)}")
    return tensor


def _as_state(u0: Any, name: str) -> Tensor:
    """Numbers as a tensor; refuse structures of states."""
    if isinstance(u0, Mapping):
        raise InputError(
            f"{name} must be one tensor of all states",
            got=f"a mapping with {', '.join(map(str, u0))}",
            fix=f"Give a list with names={', '.join(map(str, u0))!r}, or join tensors by torch.cat.",
        )
    if isinstance(u0, (list, tuple)) and any(isinstance(item, Tensor) for item in pytree.tree_leaves(u0)):
        single = all(isinstance(item, Tensor) and item.ndim == 0 for item in u0)
        raise InputError(
            f"{name} must be one tensor of all states",
            got=f"a {type(u0).__name__} with tensors in it",
            # torch.as_tensor of a list cuts its tensors off from their gradients
            fix="Write torch.stack(u0)."
            if single
            else "Join them along the last axis, torch.cat(u0, -1), and take them apart in f by u.split(sizes, -1).",
        )
    try:
        return torch.as_tensor(u0, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be numbers or a tensor", got=repr(u0), fix=f"({error})") from None


def require_plain(tensor: Tensor, name: str) -> None:
    """Refuse tensors without values of their own: of a transform of torch.func, or without data.

    Raises:
        InputError: It is one; the message calls it `name`.
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise InputError(
            "a solve cannot be transformed by torch.func (grad, vmap, jacrev, jvp): its steps depend on values",
            got=f"{name} inside such a transform",
            fix="Take gradients by loss.backward() or torch.autograd.grad, Jacobians by "
            "torch.autograd.functional.jacobian, and give a batch as u0 of shape (batch, state).",
        )
    if tensor.is_meta or tensor.layout != torch.strided:
        raise InputError(
            f"{name} must hold numbers",
            expected="a dense tensor",
            got="a tensor on the meta device" if tensor.is_meta else f"a tensor of layout {tensor.layout}",
            fix="" if tensor.is_meta else "Write .to_dense().",
        )


def _time_span(tspan: Any, u0: Tensor, batch: tuple[int, ...]) -> tuple[Any, Any]:
    try:
        start, end = tspan
    except (TypeError, ValueError):
        many = isinstance(tspan, (Tensor, list, tuple)) and len(tspan) > 2 if getattr(tspan, "ndim", 1) else False
        raise InputError(
            "tspan must be a pair",
            expected="(start, end)",
            got=f"{len(tspan)} times" if many else repr(tspan),
            fix="Write tspan=(t[0], t[-1]), and solve(..., saveat=t)." if many else "",
        ) from None
    span = tuple(_time(value, name, u0, batch) for value, name in ((start, "start"), (end, "end")))
    return span[0], span[1]


def _time(value: Any, name: str, u0: Tensor, batch: tuple[int, ...]) -> float | Tensor:
    moving = isinstance(value, Tensor) and value.requires_grad
    try:
        time = torch.as_tensor(value, dtype=u0.dtype, device=u0.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the {name} of tspan must be a number", got=repr(value)) from None
    require_plain(time, f"the {name} of tspan")
    time = time if moving else time.detach()
    if not bool(torch.isfinite(time).all()):
        raise InputError(f"the {name} of tspan must be finite", got=repr(value))
    if time.ndim == 0:
        return time if moving else float(value)
    if tuple(time.shape) != batch:
        raise InputError(
            f"the {name} of tspan must be one number or one for each trajectory",
            expected=f"a number or shape {batch}",
            got=f"shape {tuple(time.shape)}",
        )
    return time


def _tensors(p: Any, u0: Tensor) -> Any:
    """Turn every number in the pytree into a tensor of u0's dtype and device, and every dict into `Parameters`."""
    if isinstance(p, (dict, Parameters)):
        return Parameters({str(name): _tensors(value, u0) for name, value in p.items()})
    if isinstance(p, (list, tuple)):
        items = [_tensors(value, u0) for value in p]
        return type(p)(*items) if hasattr(p, "_fields") else type(p)(items)
    if isinstance(p, Tensor):
        require_plain(p, "p")
        return p
    if p is None or isinstance(p, nn.Module):
        return p
    try:
        return torch.as_tensor(p, dtype=u0.dtype, device=u0.device)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            "p must be built of numbers, tensors and modules",
            got=f"{p!r} of type {type(p).__name__}",
            fix="Capture anything else in f itself.",
        ) from None


def _checked_names(names: Sequence[str] | str, count: int) -> tuple[str, ...]:
    if not isinstance(names, (str, Sequence)) or not all(isinstance(name, str) for name in names):
        raise InputError("names must be text", expected="'x, y' or a list of names", got=repr(names))
    listed = tuple(part.strip() for part in names.split(",")) if isinstance(names, str) else tuple(names)
    if len(listed) != count or len(set(listed)) != count:
        raise InputError(
            "names must be one name for each state",
            expected=f"{count} different names",
            got=", ".join(map(str, listed)) or "none",
        )
    return listed


def _names_in_source(f: RightHandSide, count: int) -> tuple[str, ...] | None:
    """Find ``x, y = u.unbind(-1)`` or ``x, y = u`` in the source of f, where u is its first argument."""
    f = innermost(f)
    function = f.forward if isinstance(f, nn.Module) else f
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    first = 1 if inspect.ismethod(function) else 0
    return _names_in_code(code, code.co_varnames[first], count) if code.co_argcount > first else None


@lru_cache(maxsize=256)
def _names_in_code(code: CodeType, state: str, count: int) -> tuple[str, ...] | None:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple)):
            continue
        source = node.value
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Attribute) and source.func.attr == "unbind":
            source = source.func.value
        names = [item.id for item in node.targets[0].elts if isinstance(item, ast.Name)]
        if isinstance(source, ast.Name) and source.id == state and len(names) == count == len(set(names)):
            return tuple(names)
    return None


@dataclass(frozen=True, eq=False)
class _ModuleSlot:
    """A module whose parameters are leaves: their names and tensors, in order."""

    module: nn.Module
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleSlot:
        named = dict(module.named_parameters())
        return cls(module, tuple(named), tuple(named.values()))

    def bind(self, leaves: Sequence[Tensor]) -> Callable[..., Any]:
        # functional_call costs tens of microseconds, and is not needed when the leaves are the module's own tensors
        if all(leaf is own for leaf, own in zip(leaves, self.tensors, strict=True)):
            return self.module
        return BoundModule(self.module, dict(zip(self.names, leaves, strict=True)))


@dataclass(frozen=True, eq=False)
class FlatRightHandSide:
    """f as a function of a tuple of leaves instead of p, which is the form that engines and sensitivities use.

    Call: ``rhs(u, leaves, t)`` with u ``(*batch, n)``. The leaves are the tensors of p, then the parameters of modules
    inside p and of f itself, so that a gradient reaches all of them. Where `axes` are given, f sees u with these. An f
    that calls torch.autograd.grad itself, as a Hamiltonian network does, `differentiates`: it always runs with a graph.
    """

    f: RightHandSide
    structure: Any
    slots: tuple[_ModuleSlot | Tensor | None, ...]
    own: _ModuleSlot | None
    axes: StateAxes | None = None
    differentiates: bool = False

    def __call__(self, u: Tensor, leaves: Sequence[Tensor], t: Tensor, *more: Any) -> Tensor:
        """Call f; `more` are further arguments, such as which half of a partitioned f to evaluate.

        Raises:
            InputError: f changes an argument in place.
        """
        if self.differentiates:
            return _with_graph(replace(self, differentiates=False), u, leaves, t, *more)
        if self.axes is not None:
            u, t = self.axes.view(u), self.axes.times(t)
        p, before = self.parameters(leaves), _versions(u, t, leaves)
        f = self.f if self.own is None else self.own.bind(leaves[len(leaves) - len(self.own.names) :])
        result: Tensor = f(u, p, t, *more)
        after = _versions(u, t, leaves)
        if after != before:
            changed = [name for name, i, j in zip("ut", before, after, strict=False) if i != j]
            raise InputError(
                f"f changes {' and '.join(changed) or 'a parameter'} in place, which belongs to the solver",
                fix="Write -u in place of u.mul_(-1), and build the result by torch.stack([...], -1); or work on a "
                "clone().",
            )
        if self.axes is not None and isinstance(result, Tensor) and result.shape == u.shape:
            return self.axes.flatten(result)
        return result

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules in p."""
        return tuple(slot.module for slot in self.slots if isinstance(slot, _ModuleSlot))

    def plain_leaves(self) -> tuple[bool, ...]:
        """Which leaves are tensors of p; the others are parameters of modules."""
        plain = [
            isinstance(slot, Tensor)
            for slot in self.slots
            if slot is not None
            for _ in range(len(slot.names) if isinstance(slot, _ModuleSlot) else 1)
        ]
        return (*plain, *(False for _ in (self.own.names if self.own else ())))

    def parameters(self, leaves: Sequence[Tensor]) -> Any:
        """Rebuild p from the leaves."""
        items: list[Any] = []
        position = 0
        for slot in self.slots:
            if slot is None:
                items.append(None)
                continue
            count = len(slot.names) if isinstance(slot, _ModuleSlot) else 1
            taken = leaves[position : position + count]
            items.append(slot.bind(taken) if isinstance(slot, _ModuleSlot) else taken[0])
            position += count
        return pytree.tree_unflatten(items, self.structure)


def _versions(u: Tensor, t: Tensor, leaves: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each argument of f was written to, as torch counts it."""
    try:
        return u._version, t._version, *[leaf._version for leaf in leaves]
    except RuntimeError:  # torch.inference_mode does not count
        return ()


def same_shape(value: Any, like: Tensor, call: str, of: str) -> Tensor:
    """Check that a part of a right-hand side returned the shape of `like`, and return its value.

    Parts are checked one by one, since a sum or a concatenation of them would hide a wrong shape.

    Args:
        value: What the part returned.
        like: The part of the state that it must match.
        call, of: What errors call the part and the state.

    Raises:
        InputError: It returned something else.
    """
    if isinstance(value, Tensor) and value.shape == like.shape:
        return value
    raise InputError(
        f"{call} must return a tensor of the shape of {of}",
        expected=str(tuple(like.shape)),
        got=str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__,
        fix="Stack the derivatives along the last axis: torch.stack([...], -1).",
    )


def _with_graph(f: FlatRightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor, *more: Any) -> Tensor:
    """Call f with a state that it can differentiate by, whether or not the caller wants a graph."""
    wanted = torch.is_grad_enabled()
    with torch.enable_grad():
        # a state of f's own, so that u.requires_grad_() does not reach the solver's
        state = u if wanted and u.requires_grad else u.detach().requires_grad_()
        result = f(state, leaves, t if wanted and t.requires_grad else t.detach(), *more)
    return result if wanted or not isinstance(result, Tensor) else result.detach()


def flatten(prob: ODEProblem, axes: StateAxes | None = None) -> tuple[FlatRightHandSide, tuple[Tensor, ...]]:
    """Flatten the parameters of a problem into leaves, and its state as `axes` say.

    Returns:
        The right-hand side as a function of the leaves, and their current values.
    """
    items, structure = pytree.tree_flatten(prob.p)
    slots = tuple(_ModuleSlot.of(item) if isinstance(item, nn.Module) else item for item in items)
    own = _ModuleSlot.of(prob.f) if isinstance(prob.f, nn.Module) else None
    leaves: list[Tensor] = []
    for slot in (*slots, own):
        if slot is not None:
            leaves += slot.tensors if isinstance(slot, _ModuleSlot) else (slot,)
    axes = None if axes is None or axes.plain else axes
    return FlatRightHandSide(prob.f, structure, slots, own, axes), tuple(leaves)
