"""The traversal behind a fingerprint: everything that f reads, as one flat sequence of tokens."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ude.compile.code_reads import BLIND, CodeReads, Path, reads_of
from ude.compile.value_kinds import CHANGING, HANDLERS, PLANS, Refused, class_plan, frozen, handler_of, root_of

#: Objects that one f may reach; beyond, looking at them all at every solve costs more than it saves.
MOST_OBJECTS = 20_000

#: Members of a class that act without being named, or only where something is constructed, or never in a trace.
_ALWAYS = frozenset({"forward", "backward", "setup_context", "jvp", "vjp"})
_CONSTRUCTION = frozenset({"__init__", "__new__", "__post_init__"})
_NEVER = frozenset(
    (
        *("__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__slots__", "__untraced__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__parameters__"),
        *("__firstlineno__", "__static_attributes__", "__orig_bases__", "__abstractmethods__", "_abc_impl"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__replace__", "__init_subclass__"),
        *("__repr__", "__str__", "__format__", "__sizeof__", "__dir__", "__class_getitem__", "__del__"),
        *("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"),
    )
)
#: What torch calls around every module.
GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_MODULE_INTERNALS = frozenset(nn.Module().__dict__) - {"training"} | {"_graph"}
#: Of these packages names are enough; what others of the standard library hold (os.environ) is looked at.
_BY_NAME = frozenset({"torch", "numpy", "scipy", "sympy", "ude", "math", "cmath", "operator", "jaxtyping"})
_COMPILED = "f is compiled by torch.compile, whose place a kernel would take; give the function or module itself."
#: Found in the place of what is not there.
MISSING: Any = object()


class Walk:
    """One traversal; every method appends what it finds to `tokens`.

    Args:
        known: Tensors that count as leaves, by their place.
    """

    __slots__ = ("classes", "computed", "leaves", "mentioned", "places", "roots", "seen", "tensors", "tokens")

    def __init__(self, known: Sequence[Tensor]) -> None:
        self.tokens: list[Any] = []
        self.tensors: list[Tensor] = []
        self.roots: set[str] = set()
        self.leaves = {id(tensor): index for index, tensor in enumerate(known)}
        self.places: dict[int, int] = {}
        self.seen: dict[int, tuple[int, Any]] = {}
        self.mentioned: set[str] = set()
        self.computed = False
        self.classes: dict[type, bool] = {}

    def surroundings(self) -> None:
        """What torch itself is set to."""
        put = self.tokens.append
        put(torch.get_default_dtype())
        put(torch.is_autocast_enabled())
        if torch._C._len_torch_function_stack():
            put(str(torch.get_default_device()))
        for hooks in GLOBAL_HOOKS:
            if hooks:
                raise Refused("a hook on all modules is registered, which a kernel would not call.")

    # -- what `Recorder` (guards.py) notes beside ----------------------------------------------------------------------

    def look(self, mapping: Any, name: str, found: Any) -> None:
        """`found` was read under a name, or `MISSING`."""

    def look_at_class(self, kind: type, name: str) -> None:
        """An attribute of that name was read in an object of this class, since the class has none to hide it."""

    def look_inside(self, cell: types.CellType) -> None:
        """The content of a cell is read."""

    def holds(self, value: Any) -> None:
        """The items of a container, or whatever else may change in place, are read."""

    def partial(self, value: Any) -> None:
        """The parts of a `functools.partial` are read."""

    # -- values -------------------------------------------------------------------------------------------------------

    def value(self, value: Any) -> None:
        """Note any value, by the rule for its type."""
        kind = type(value)
        (HANDLERS.get(kind) or handler_of(kind))(self, value)

    def again(self, value: Any) -> bool:
        """Whether this object was met before; it then counts by its place."""
        seen, place = self.seen, id(value)
        if place in seen:
            self.tokens.append("again")
            self.tokens.append(seen[place][0])
            return True
        # held, so that the id of an object made on the way (a bound method) is not given twice
        seen[place] = (len(seen), value)
        if len(seen) > MOST_OBJECTS:
            raise Refused(f"f reaches more than {MOST_OBJECTS} Python objects, too many to look at in every solve.")
        return False

    def mapping(self, values: dict[Any, Any]) -> None:
        """Note names and values, in the order of insertion, since f may loop over them."""
        put, handlers = self.tokens.append, HANDLERS
        put(len(values))
        for name, value in values.items():
            if type(name) is str:
                put(name)
            else:
                self.value(name)
            kind = type(value)
            (handlers.get(kind) or handler_of(kind))(self, value)

    def tensor(self, tensor: Tensor) -> None:
        """Note a tensor: which leaf it is, or which captured tensor and of what kind."""
        place = id(tensor)
        put = self.tokens.append
        leaf = self.leaves.get(place)
        if leaf is not None:
            put("leaf")
            put(leaf)
            return
        if tensor.layout is not torch.strided:
            raise Refused(f"f captures a tensor of layout {tensor.layout}, which a kernel cannot read.")
        if place not in self.places:
            self.places[place] = len(self.tensors)
            self.tensors.append(tensor)
        put(self.places[place])
        put((tensor.dtype, tensor.shape, tensor.stride(), tensor.device.type, tensor.requires_grad))

    def named(self, root: str, name: str) -> None:
        """Note something of a trusted package, by name."""
        self.roots.add(root)
        self.tokens.append(name)

    # -- functions ----------------------------------------------------------------------------------------------------

    def function(self, function: types.FunctionType) -> None:
        """Note the code of a function, or the name of a trusted one, and what it closes over."""
        if self.again(function):
            return
        if "_torchdynamo_orig_callable" in function.__dict__:
            raise Refused(_COMPILED)
        name = function.__module__
        root = root_of(name) if name else None
        module = sys.modules.get(name) if root is not None else None
        trusted = module is not None and module.__dict__ is function.__globals__
        reads = reads_of(function.__code__)
        if trusted and root is not None:
            if root in CHANGING:
                raise frozen(f"{name}.{function.__name__}")
            self.named(root, f"{name}.{function.__qualname__}")
            self.tokens.append(reads.digest)
        else:
            self._code(function, reads)
        if function.__closure__ is not None:
            self._cells(function, reads, trusted)
        if function.__defaults__ is not None:
            self.value(function.__defaults__)
        if function.__kwdefaults__:
            self.mapping(function.__kwdefaults__)
        if function.__dict__ and not trusted:
            self.mapping(function.__dict__)

    def _code(self, function: types.FunctionType, reads: CodeReads) -> None:
        self.tokens.append("function")
        self.tokens.append(reads.digest)
        self.mentioned |= reads.mentioned
        self.computed = self.computed or reads.computed
        for imported in reads.imports:
            if root_of(imported) is None:
                raise Refused(f"{function.__qualname__} imports {imported} while it runs; import it at the top.")
        scope = function.__globals__
        for name, paths in reads.globals:
            value = scope.get(name, MISSING)
            self.look(scope, name, value)
            self.tokens.append(name)
            if value is not MISSING:
                self.read(value, paths)
            elif name in BLIND:
                raise Refused(f"{function.__qualname__} calls {name}, so what it reads cannot be told.")
            else:
                self.tokens.append("built in")

    def _cells(self, function: types.FunctionType, reads: CodeReads, trusted: bool) -> None:
        for cell, (name, paths) in zip(function.__closure__ or (), reads.cells, strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                self.holds(cell)
                self.tokens.append("empty")
                continue
            self.look_inside(cell)
            if name == "__class__" and isinstance(content, type):
                self.type_of(content)  # for super(): nothing is constructed
            else:
                self.read(content, ((),) if trusted else paths)

    # -- names followed -----------------------------------------------------------------------------------------------

    def read(self, value: Any, paths: tuple[Path, ...]) -> None:
        """Note what code reads of `value` when it follows these paths of attributes."""
        if type(value) is not types.ModuleType:
            for path in paths:
                self._attribute(value, path)
            return
        root = root_of(value.__name__)
        if root in _BY_NAME:
            if root == "numpy" and (".random" in value.__name__ or any("random" in path[:1] for path in paths)):
                raise frozen("numpy.random")
            self.named(str(root), value.__name__)
            self.tokens.append(paths)
            return
        if root in CHANGING:
            raise frozen(value.__name__)
        for path in paths:
            if not path:
                raise Refused(f"f hands on the module {value.__name__} as a whole; what it reads there cannot be told.")
            self.tokens.append(path[0])
            found = getattr(value, path[0], MISSING)
            self.look(value.__dict__, path[0], found)
            if found is not MISSING:
                self.read(found, (path[1:],))

    def _attribute(self, value: Any, path: Path) -> None:
        """Note one attribute where it is plainly stored in the object, otherwise the whole object."""
        kind = type(value)
        if path and kind not in HANDLERS:
            handler_of(kind)
        if path and getattr(HANDLERS.get(kind), "__name__", "") == "_instance":
            own = getattr(value, "__dict__", None)
            plain = isinstance(kind.__getattribute__, types.WrapperDescriptorType)  # not written in Python
            if own is not None and plain and path[0] in own and not hasattr(getattr(kind, path[0], None), "__set__"):
                self.look(own, path[0], own[path[0]])
                self.look_at_class(kind, path[0])
                self.tokens += (kind.__qualname__, path[0])
                self.read(own[path[0]], (path[1:],))
                return
        self.value(value)

    # -- objects ------------------------------------------------------------------------------------------------------

    def module(self, module: nn.Module) -> None:
        """Note a module: its class, its attributes, its tensors, and its submodules."""
        if self.again(module):
            return
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
            raise Refused(f"{type(module).__name__} has hooks, which a kernel would not call.")
        put, handlers, leaves = self.tokens.append, HANDLERS, self.leaves
        names = _attributes(type(module), own, self.type_of(type(module)))
        put(names)
        for name in names:
            value = own[name]
            kind = type(value)
            if kind is bool or kind is int:
                put(kind)
                put(value)
            else:
                (handlers.get(kind) or handler_of(kind))(self, value)
        for tensors in (own["_parameters"], own["_buffers"]):
            put(len(tensors))
            for name, tensor in tensors.items():
                put(name)
                leaf = leaves.get(id(tensor))
                if leaf is None:
                    self.value(tensor)
                else:
                    put("leaf")
                    put(leaf)
        children = own["_modules"]
        if "_orig_mod" in children:
            raise Refused(_COMPILED)
        put(len(children))
        for name, child in children.items():
            put(name)
            kind = type(child)
            (handlers.get(kind) or handler_of(kind))(self, child)

    def instance(self, value: Any) -> None:
        """Note any other object: its class and its attributes, in ``__dict__`` and in slots."""
        if self.again(value):
            return
        untraced = self.type_of(type(value))
        own = getattr(value, "__dict__", None)
        if own is not None:
            for name, item in own.items():
                if name not in untraced:
                    self.tokens.append(name)
                    self.value(item)
        for name in class_plan(type(value)).slots:
            if name not in untraced:
                self.tokens.append(name)
                self.value(getattr(value, name, None))
        self.tokens.append("end")

    def type_of(self, kind: type, construct: bool = False) -> frozenset[str]:
        """Note the class of something that was met, its members following in `members`; returns what does not count."""
        plan = PLANS.get(kind) or class_plan(kind)
        self.tokens.append(kind)
        if plan.roots:
            self.roots.update(plan.roots)
        if plan.own:
            self.classes[kind] = construct or self.classes.get(kind, False)
        return plan.untraced

    def members(self) -> None:
        """Note the members of the user's classes whose names occur in code that was reached, until no more is."""
        done: set[tuple[type, str]] = set()
        grown = bool(self.classes)
        while grown:
            grown = False
            for kind in list(self.classes):
                for base in class_plan(kind).own:
                    for name, member in list(base.__dict__.items()):
                        if (base, name) not in done and self._counts(name, self.classes[kind]):
                            done.add((base, name))
                            grown = True
                            self.tokens.append(name)
                            self.value(member)

    def _counts(self, name: str, construct: bool) -> bool:
        if name in _NEVER:
            return False
        if name in _CONSTRUCTION:
            return construct
        if name in self.mentioned or name in _ALWAYS or self.computed:
            return True
        return name.startswith("__") and name.endswith("__")


_attribute_names: dict[type, tuple[int, tuple[str, ...]]] = {}


def _attributes(kind: type, own: dict[str, Any], untraced: frozenset[str]) -> tuple[str, ...]:
    """The names of a module's attributes that are not torch's own, remembered: those of a class mostly agree."""
    count, names = _attribute_names.get(kind, (-1, ()))
    # as many as last time, and all of those: the same ones
    if count != len(own) or not all(map(own.__contains__, names)):
        names = tuple(name for name in own if name not in _MODULE_INTERNALS and name not in untraced)
        if len(_attribute_names) > 4096:
            _attribute_names.clear()
        _attribute_names[kind] = len(own), names
    return names
