"""The equations of a torch right-hand side: trace it, and read the graph with SymPy.

`torch.fx.experimental.proxy_tensor.make_fx` records the operations of one call on fake tensors, so an `if` on the
state is an error and not one branch taken for granted. Every number of the graph is then an expression. Operations
that only move numbers about (select, stack, expand, ...) are run as they are on tensors of *indices* into the list of
expressions, so none of them needs a rule of its own here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import sympy
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ude.errors import ModelError
from ude.models.equations.functions import KNOWN_FUNCTIONS, as_expression, where
from ude.models.equations.names import TIME, symbol
from ude.models.observation import Observation
from ude.models.parameters import ParameterStore
from ude.models.terms import Term
from ude.models.universal import UDE

aten = torch.ops.aten


class TorchModel(Protocol):
    """What a trace needs of a `FunctionModel`."""

    states: tuple[str, ...]
    store: ParameterStore
    terms: nn.ModuleDict
    _groups: dict[str, tuple[str, ...]]

    @property
    def function(self) -> Callable[[Tensor, Any, Tensor], Tensor]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...
    def term(self, key: str) -> Term: ...
    def values(self) -> dict[str, float]: ...
    def __call__(self, u: Tensor, p: Any = None, t: Tensor | float = 0.0) -> Tensor: ...


def to_ude(model: TorchModel, observe: Mapping[str, str] | None = None) -> UDE:
    """Write a torch right-hand side as a `UDE` with the same parameters and terms.

    observe: observables of the result, whose parameters stay too; a parameter that occurs nowhere is left out

    The two are compared on random states before the result is returned, so what comes back is the same model.

    Raises ModelError: an operation that formulas here cannot express, an `if` on numbers, or equations that do not
    agree with the function (it has randomness or memory).
    """
    graph, calls = _traced(model)
    rates, arguments = _read(graph, model, calls)
    applied = {
        symbol(f"_call{i}"): sympy.Function(name)(*inputs)
        for i, ((name, _), inputs) in enumerate(zip(calls, arguments, strict=True))
    }
    equations = {
        # an argument may itself hold the output of another call
        state: _resolved(rate, applied)
        for state, rate in zip(model.states, rates, strict=True)
    }
    used = set().union(*(rate.free_symbols for rate in equations.values())) if equations else set()
    used |= {symbol(name) for name in (Observation(observe).used if observe else ())}
    parameters = {name: entry for name, entry in model.store.table().items() if symbol(name) in used}
    terms: list[Term] = [copy.deepcopy(model.term(key)) for key in model.terms]
    written = UDE(equations, parameters=parameters, unknown=terms, states=model.states, observe=observe or None)
    _compare(model, written)
    return written


class _Calls:
    """`p` during the trace: parameters as given, and terms that note their arguments and return a stand-in."""

    def __init__(self, model: TorchModel, values: dict[str, Tensor], stand_ins: Sequence[Tensor] | None) -> None:
        self._model, self._values, self._stand_ins = model, values, stand_ins
        self.noted: list[tuple[str, list[Tensor]]] = []

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        groups = self._model._groups
        if name in groups and name not in self._model.outputs:
            return lambda *inputs: tuple(self._output(output, inputs) for output in groups[name])
        if name in self._model.outputs:
            return lambda *inputs: self._output(name, inputs)
        raise AttributeError(name)

    __getattr__ = __getitem__

    def _output(self, name: str, inputs: Sequence[Any]) -> Tensor:
        given = [torch.as_tensor(value, dtype=torch.float64) for value in inputs]
        self.noted.append((name, given))
        if self._stand_ins is None:
            return torch.ones((), dtype=torch.float64)
        return self._stand_ins[len(self.noted) - 1]


def _traced(model: TorchModel) -> tuple[fx.Graph, list[tuple[str, int]]]:
    """The graph of (u, t, parameters, outputs of term calls) -> (du, arguments of term calls), and the calls."""
    names = model.store.names()
    u, t = torch.ones(len(model.states), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    values = [torch.ones((), dtype=torch.float64) for _ in names]
    first = _Calls(model, dict(zip(names, values, strict=True)), None)
    with torch.no_grad():
        model.function(u, first, t)
    calls = [(name, len(inputs)) for name, inputs in first.noted]
    outputs = [torch.ones((), dtype=torch.float64) for _ in calls]

    def traced(u: Tensor, t: Tensor, values: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        p = _Calls(model, dict(zip(names, values, strict=True)), outputs)
        du = model.function(u, p, t)
        return [du, *(argument for _, inputs in p.noted for argument in inputs)]

    try:
        module = make_fx(torch.func.functionalize(traced), tracing_mode="fake")(u, t, values, outputs)
    except Exception as error:
        if "data-dependent" not in str(error):
            raise
        raise ModelError(
            "the right-hand side decides by the value of a tensor, so it is no formula",
            fix="Write the two cases with torch.minimum, torch.maximum, torch.relu or torch.where.",
        ) from error
    return module.graph, calls


def _read(
    graph: fx.Graph, model: TorchModel, calls: list[tuple[str, int]]
) -> tuple[list[sympy.Expr], list[list[sympy.Expr]]]:
    """Rates of the states, and the arguments of each call."""
    reader = _Reader()
    names = [*model.states, TIME, *model.store.names(), *(f"_call{i}" for i in range(len(calls)))]
    symbols = [symbol(name) for name in names]
    count = len(model.states)
    inputs = [reader.values(symbols[:count]), *(reader.value(item) for item in symbols[count:])]
    outputs = reader.run(graph, inputs)
    rates = reader.expressions(outputs[0])
    flat = [reader.expressions(item)[0] for item in outputs[1:]]
    arguments: list[list[sympy.Expr]] = []
    for _, size in calls:
        arguments.append(flat[:size])
        flat = flat[size:]
    return rates, arguments


def _resolved(expression: sympy.Expr, applied: dict[sympy.Symbol, sympy.Expr]) -> sympy.Expr:
    while expression.free_symbols & set(applied):
        expression = expression.xreplace(applied)
    return expression


def _compare(model: TorchModel, written: UDE) -> None:
    written.set_values({name: value for name, value in model.values().items() if name in written.values()})
    generator = torch.Generator().manual_seed(0)
    u = 0.1 + torch.rand(7, len(model.states), dtype=torch.float64, generator=generator)
    t = torch.rand(7, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        ours, theirs = written(u, None, t), model(u, None, t)
    if not torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12, equal_nan=True):
        raise ModelError(
            "the equations read from the right-hand side do not agree with it",
            got=f"a difference of {float((ours - theirs).abs().max()):.1e}",
            fix="A right-hand side must depend on u, p and t alone: no random numbers, no memory of earlier calls.",
        )


def _number(value: Any) -> sympy.Expr:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError("the right-hand side uses something that is no number", got=repr(value))
    return sympy.Integer(int(value)) if float(value).is_integer() and abs(value) < 1e15 else sympy.Float(value, 17)


def _as_number(value: sympy.Basic) -> sympy.Expr:
    return value if isinstance(value, sympy.Expr) else where(value, sympy.S.One, sympy.S.Zero)


def _function(name: str) -> Callable[..., sympy.Expr]:
    make: Callable[..., sympy.Expr] = KNOWN_FUNCTIONS[name].build
    return make


_ELEMENTWISE: dict[Any, Callable[..., sympy.Expr]] = {
    aten.add: lambda x, y, alpha=1: x + alpha * y,
    aten.sub: lambda x, y, alpha=1: x - alpha * y,
    aten.rsub: lambda x, y, alpha=1: y - alpha * x,
    aten.mul: lambda x, y: x * y,
    aten.div: lambda x, y: x / y,
    aten.true_divide: lambda x, y: x / y,
    aten.pow: lambda x, y: x**y,
    aten.neg: lambda x: -x,
    aten.reciprocal: lambda x: 1 / x,
    aten.square: lambda x: x**2,
    aten.sqrt: lambda x: sympy.sqrt(x),
    aten.rsqrt: lambda x: 1 / sympy.sqrt(x),
    aten.heaviside: lambda x, at_zero: where(x < 0, sympy.S.Zero, sympy.Eq(x, 0), at_zero, sympy.S.One),
    aten.lt: sympy.Lt,
    aten.le: sympy.Le,
    aten.gt: sympy.Gt,
    aten.ge: sympy.Ge,
    aten.eq: sympy.Eq,
    aten.ne: sympy.Ne,
    aten.relu: lambda x: _function("max")(0, x),
    aten.minimum: lambda x, y: _function("min")(x, y),
    aten.maximum: lambda x, y: _function("max")(x, y),
    aten.expm1: lambda x: sympy.exp(x) - 1,
    aten.log1p: lambda x: sympy.log(1 + x),
    aten.exp2: lambda x: 2**x,
} | {
    getattr(aten, name): _function(name)
    for name in ("exp", "log", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "abs", "sigmoid")
}
# torch's sign is spelled sgn for some inputs
_ELEMENTWISE |= {aten.sign: _function("sign"), aten.sgn: _function("sign")}

# What takes truth values; elsewhere they count as 1 and 0.
_LOGIC: dict[Any, Callable[..., sympy.Basic]] = {
    getattr(aten, f"{kind}_{name}"): join
    for kind in ("logical", "bitwise")
    for name, join in (("and", sympy.And), ("or", sympy.Or), ("not", sympy.Not))
} | {aten.where: where}
_ELEMENTWISE |= _LOGIC

# Operations that move numbers and compute none: run on indices.
_MOVED_BY = """
    select unbind stack cat slice expand permute t transpose view reshape _unsafe_view unsqueeze squeeze clone alias
    detach lift_fresh_copy roll flip index_select select_scatter slice_scatter repeat split diagonal movedim
"""
_MOVES = {getattr(aten, name) for name in _MOVED_BY.split()}
_IN_PLACE = {aten.squeeze_: aten.squeeze, aten.unsqueeze_: aten.unsqueeze}
_FILLED = {aten.zeros_like: 0, aten.ones_like: 1, aten.zeros: 0, aten.ones: 1}


class _Reader:
    """Runs a graph on tensors of indices into one list of expressions."""

    def __init__(self) -> None:
        self.table: list[sympy.Expr] = []
        self.known: dict[sympy.Expr, int] = {}

    def index(self, expression: sympy.Expr) -> int:
        if expression not in self.known:
            self.known[expression] = len(self.table)
            self.table.append(expression)
        return self.known[expression]

    def value(self, expression: sympy.Expr) -> Tensor:
        return torch.tensor(self.index(expression))

    def values(self, expressions: Sequence[sympy.Expr]) -> Tensor:
        return torch.tensor([self.index(expression) for expression in expressions])

    def expressions(self, indices: Tensor) -> list[sympy.Expr]:
        return [self.table[i] for i in indices.reshape(-1).tolist()]

    def run(self, graph: fx.Graph, inputs: Sequence[Tensor]) -> list[Tensor]:
        known: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = next(given)
            elif node.op == "get_attr":
                constant = getattr(graph.owning_module, str(node.target))
                known[node] = self.constant(constant)
            elif node.op == "output":
                found: list[Tensor] = fx.node.map_arg(node.args[0], lambda n: known[n])
                return list(found)
            else:
                arguments = fx.node.map_arg(node.args, lambda n: known[n])
                options = fx.node.map_arg(dict(node.kwargs), lambda n: known[n])
                known[node] = self.call(node, arguments, options)
        raise ModelError("the right-hand side returns nothing")

    def constant(self, tensor: Tensor) -> Tensor:
        numbers = [self.index(_number(value)) for value in tensor.reshape(-1).tolist()]
        return torch.tensor(numbers).reshape(tensor.shape)

    def call(self, node: fx.Node, arguments: Any, options: dict[str, Any]) -> Any:
        packet = getattr(node.target, "overloadpacket", node.target)
        if packet in _IN_PLACE:
            return _IN_PLACE[packet](*arguments)
        if packet in _MOVES:
            return node.target(*arguments, **{k: v for k, v in options.items() if k != "pin_memory"})  # type: ignore[operator]
        if packet in _ELEMENTWISE:
            function = _ELEMENTWISE[packet]
            if packet in _LOGIC:
                return self.elementwise(function, arguments, options)
            return self.elementwise(lambda *row, **extra: function(*map(_as_number, row), **extra), arguments, options)
        if packet is aten.copy:
            return arguments[1].expand(arguments[0].shape)
        if packet in _FILLED:
            shape = arguments[0].shape if isinstance(arguments[0], Tensor) else arguments[0]
            return self.value(sympy.Integer(_FILLED[packet])).expand(shape)
        if packet in (aten.full, aten.full_like, aten.scalar_tensor):
            shape = () if packet is aten.scalar_tensor else getattr(arguments[0], "shape", arguments[0])
            return self.value(_number(arguments[-1])).expand(shape)
        if packet in (aten.sum, aten.mean):
            return self.total(arguments, mean=packet is aten.mean)
        if packet in (aten.mm, aten.mv, aten.dot, aten.bmm, aten.matmul):
            return self.product(*arguments)
        if packet is aten._to_copy:
            return arguments[0]
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.target(*arguments, **options)  # type: ignore[operator]  # operator.getitem of a list
        raise ModelError(
            f"the right-hand side uses {str(node.target)}, which formulas here do not have",
            fix="Put that part into a term (ude.Neural), or write it with arithmetic and the usual functions.",
        )

    def elementwise(
        self, function: Callable[..., sympy.Expr], arguments: Sequence[Any], options: dict[str, Any]
    ) -> Tensor:
        tensors = [item if isinstance(item, Tensor) else self.value(_number(item)) for item in arguments]
        spread = torch.broadcast_tensors(*tensors)
        extra = {name: _number(value) for name, value in options.items()}
        rows = zip(*(self.expressions(item) for item in spread), strict=True)
        results = [function(*row, **extra) for row in rows]
        found = [self.index(e if isinstance(e, sympy.Basic) else as_expression(e)) for e in results]
        return torch.tensor(found, dtype=torch.int64).reshape(spread[0].shape)

    def total(self, arguments: Sequence[Any], *, mean: bool) -> Tensor:
        indices = arguments[0]
        axes = arguments[1] if len(arguments) > 1 and arguments[1] else list(range(indices.ndim))
        axes = [axis % max(indices.ndim, 1) for axis in axes]
        keep = bool(arguments[2]) if len(arguments) > 2 else False
        rest = [axis for axis in range(indices.ndim) if axis not in axes]
        shape = [indices.shape[axis] for axis in rest]
        flat = indices.permute(*rest, *axes).reshape(*shape, -1)
        size = flat.shape[-1] if mean else 1
        sums = [self.index(sympy.Add(*self.expressions(row)) / size) for row in flat.reshape(-1, flat.shape[-1])]
        kept = [1 if axis in axes else indices.shape[axis] for axis in range(indices.ndim)]
        return torch.tensor(sums, dtype=torch.int64).reshape(kept if keep else shape)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        if left.ndim > 2 or right.ndim > 2:
            raise ModelError("the right-hand side multiplies batches of matrices, which formulas here do not have")
        rows = left.reshape(1, -1) if left.ndim == 1 else left
        columns = right.reshape(-1, 1) if right.ndim == 1 else right
        entries = [
            [
                self.index(sympy.Add(*(x * y for x, y in zip(self.expressions(a), self.expressions(b), strict=True))))
                for b in columns.T
            ]
            for a in rows
        ]
        shape = (*left.shape[:-1], *(right.shape[1:] if right.ndim == 2 else ()))
        return torch.tensor(entries, dtype=torch.int64).reshape(shape)
