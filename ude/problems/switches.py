"""Switches of a right-hand side: where a function that jumps makes f jump, as the time or the state moves.

They are found in the traced graph of f. The times of switches that the state does not move are computed before the
solve, so that its steps stop there, and each is a differentiable number: with g(p, t) the argument of the jump, which
is at a fixed level there, ``dt* = -dg / g_t``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from ude.problems.find_interpolations import interpolations_in
from ude.problems.inspection import leaf_names
from ude.problems.ode import FlatRightHandSide

# Between how many points of a span a switch is looked for at first, and how many of them a solve stops at.
_POINTS, _MOST_NUMBERS, MOST_SWITCHES = 513, 2_000_000, 1000
# Switches closer than this many units of rounding are one; a stop is this many behind its switch.
_CLOSE, _BEHIND = 16, 1
# Of how many elements of a comparison it is tried out whether f jumps with them.
_MOST_TRIED = 16

_COMPARE = {"gt": torch.gt, "lt": torch.lt, "ge": torch.ge, "le": torch.le}
_ROUND = {"floor": torch.floor, "ceil": torch.ceil, "round": torch.round, "trunc": torch.trunc, "frac": torch.trunc}
_QUOTIENT = {"remainder": torch.floor, "fmod": torch.trunc, "floor_divide": torch.floor}
_CHOOSE = frozenset({"argmax", "argmin", "argsort", "sort"})


def _heaviside(x: Tensor, at_zero: Tensor) -> Tensor:
    return torch.heaviside(x.detach(), at_zero.detach())


def _floor_divide(x: Any, y: Any) -> Tensor:
    x, y = (one.detach() if isinstance(one, Tensor) else one for one in (x, y))
    return torch.floor_divide(x, y)


#: Functions that are constant between jumps, with the derivative that torch does not know: zero.
_NO_DERIVATIVE: dict[str, Any] = {"heaviside": _heaviside, "floor_divide": _floor_divide}


@dataclass(frozen=True, eq=False)
class Switch:
    """One function of the graph that jumps.

    Args:
        kind: Its name, as "gt" or "floor".
        node: Its node in the graph of f.
        operands: What it is a function of: places among the outputs of the graph, or numbers.
        sources: What its operands depend on: "u", "t", "p.k".
    """

    kind: str
    node: fx.Node
    operands: tuple[Any, ...]
    sources: frozenset[str]

    def code(self, x: Tensor, y: Any = None) -> Tensor:
        """A number that is constant between the jumps."""
        if self.kind in _COMPARE:
            return _COMPARE[self.kind](*_pair(x, y)).to(torch.float64)
        if self.kind in ("heaviside", "sign", "sgn", "signbit"):
            return torch.sign(x)
        if self.kind in _QUOTIENT:
            x, y = _pair(x, y)
            return _QUOTIENT[self.kind](x / y)
        if self.kind == "threshold":
            return torch.gt(x, y).to(torch.float64)
        if self.kind == "hardshrink":
            return torch.gt(x, y).to(torch.float64) - torch.lt(x, -y).to(torch.float64)
        return _ROUND[self.kind](x) if self.kind in _ROUND else x.to(torch.float64)

    def level(self, x: Tensor, y: Any = None) -> Tensor | None:
        """What passes through a fixed number at a jump; None where no derivative says how it moves."""
        if self.kind in _COMPARE:
            return torch.sub(*_pair(x, y))
        if self.kind in _QUOTIENT:
            return torch.div(*_pair(x, y))
        return None if self.kind in ("index", *_CHOOSE) else x


def _pair(x: Any, y: Any) -> tuple[Tensor, Any]:
    return (x, y) if isinstance(x, Tensor) else (torch.as_tensor(x, dtype=y.dtype), y)


@dataclass(frozen=True, eq=False)
class SwitchGraph:
    """The switches of f, and the part of its graph that says where they are.

    Args:
        whole: The graph of f, ``(u, *leaves, t) -> du``.
        of_time: Switches that the time moves and the state does not.
        of_state: Those that the state moves.
        at_time, at_state: The graphs of their operands.
        batch: The shape of the batch.
    """

    whole: fx.GraphModule
    of_time: tuple[Switch, ...]
    of_state: tuple[Switch, ...]
    at_time: fx.GraphModule
    at_state: fx.GraphModule
    batch: tuple[int, ...]


class Unsolvable(Exception):
    """The times of the switches cannot be computed; says why in words that go on after "f has switches"."""


def trace_switches(f: FlatRightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> SwitchGraph | None:
    """Trace f and find its switches; None where it cannot be traced.

    Args:
        u, t: State ``(*batch, n)`` and time ``(*batch)`` as f's author sees them.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    def of(u: Tensor, leaves: list[Tensor], t: Tensor) -> Tensor:
        return FlatRightHandSide.__call__(f, u, leaves, t)

    functional = torch.func.functionalize(of, remove="mutations")
    inputs = u.detach().clone(), [leaf.detach().clone() for leaf in leaves], t.detach().clone()
    try:
        whole = make_fx(functional)(*inputs)
        whole.graph.eliminate_dead_code()
        whole.recompile()
    except Exception:  # whatever f does that has no trace; the caller says so
        return None
    names = ["u", *leaf_names(f), "t"]
    knots = {one.grid.untyped_storage().data_ptr() for one in interpolations_in(f.f, *f.modules)}
    sources = _sources(whole, names, knots)
    found = [
        node
        for node in whole.graph.nodes
        if _kind(node) and not sources[node] & {"knots"} and sources[node] & {"u", "t"}
    ]
    of_time = [node for node in found if "u" not in sources[node]]
    of_state = [node for node in found if "u" in sources[node]]
    parts = [_operands(whole, nodes, sources) for nodes in (of_time, of_state)]
    return SwitchGraph(whole, parts[0][0], parts[1][0], parts[0][1], parts[1][1], tuple(t.shape))


def _named(node: fx.Node) -> str:
    """The name of the operator of a node; nothing where it is none."""
    target: Any = node.target
    return target.overloadpacket.__name__ if hasattr(target, "overloadpacket") else ""


def _kind(node: fx.Node) -> str | None:
    name = _named(node)
    if name in _COMPARE or name in _ROUND or name in _QUOTIENT or name in _CHOOSE:
        return name
    if name in ("heaviside", "sign", "sgn", "signbit", "threshold", "hardshrink"):
        return name
    if name == "div" and node.kwargs.get("rounding_mode"):
        return "floor_divide" if node.kwargs["rounding_mode"] == "floor" else "fmod"
    if name == "_to_copy":
        kind = node.kwargs.get("dtype")
        whole = isinstance(kind, torch.dtype) and not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
        origin = node.args[0]
        value = origin.meta.get("val") if isinstance(origin, fx.Node) else None
        return "trunc" if whole and (value is None or value.is_floating_point()) else None
    return "index" if name in ("bucketize", "searchsorted") else None


def _sources(module: fx.GraphModule, names: Sequence[str], knots: set[int]) -> dict[fx.Node, frozenset[str]]:
    """What every node depends on; "knots" are the times of an interpolation, at which steps stop anyway."""
    found: dict[fx.Node, frozenset[str]] = {}
    given = iter(names)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            found[node] = frozenset([next(given)])
        elif node.op == "get_attr":
            tensor = getattr(module, node.target)
            known = isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() in knots
            found[node] = frozenset(["knots"] if known else [])
        else:
            found[node] = frozenset().union(*(found[one] for one in node.all_input_nodes))
    return found


def _operands(
    whole: fx.GraphModule, nodes: Sequence[fx.Node], sources: dict[fx.Node, frozenset[str]]
) -> tuple[tuple[Switch, ...], fx.GraphModule]:
    """The switches of these nodes, and the graph that computes their operands."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(whole.graph, copies)
    outputs: list[fx.Node] = []
    switches = []
    for node in nodes:
        kind = _kind(node) or ""
        whole_node = kind in ("index", *_CHOOSE)
        args = (node,) if whole_node else node.args[: 2 if kind in _COMPARE or kind in _QUOTIENT else 1]
        if kind in ("threshold", "hardshrink"):
            args = (*args, node.args[1] if len(node.args) > 1 else 0.5)
        places: list[Any] = []
        for arg in args:
            if isinstance(arg, fx.Node):
                places.append(_At(len(outputs)))
                outputs.append(copies[arg])
            else:
                places.append(arg)
        switches.append(Switch(kind, node, tuple(places), sources[node]))
    graph.output(tuple(outputs))
    graph.eliminate_dead_code()
    for node in graph.nodes:
        node.target = _NO_DERIVATIVE.get(_named(node), node.target)
    return tuple(switches), fx.GraphModule(whole, graph)


@dataclass(frozen=True)
class _At:
    """The place of an operand among the outputs of a graph."""

    index: int


def _aligned(operands: Sequence[Any]) -> tuple[Any, ...]:
    """Operands with as many axes each behind the first, which counts times: they broadcast from the right."""
    most = max(one.ndim for one in operands if isinstance(one, Tensor))
    return tuple(
        one.reshape(len(one), *[1] * (most - one.ndim), *one.shape[1:]) if isinstance(one, Tensor) else one
        for one in operands
    )


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads the switches of one kind at many times (and states)."""

    module: fx.GraphModule
    switches: tuple[Switch, ...]
    batch: tuple[int, ...]
    leaves: tuple[Tensor, ...]

    def operands(self, u: Tensor, t: Float[Tensor, "N B"], *, of_state: bool) -> list[tuple[Any, ...]]:
        """The operands of every switch: of u ``(*batch, n)``, or with `of_state` (N, \\*batch, n)."""
        times = t.reshape(len(t), *self.batch)

        def read(u: Tensor, t: Tensor) -> Any:
            return self.module(u, *self.leaves, t)

        try:
            outputs = torch.func.vmap(read, in_dims=(0 if of_state else None, 0))(u, times)
        except RuntimeError:  # an operator without a rule for batches
            rows = [read(u[i] if of_state else u, time) for i, time in enumerate(times)]
            outputs = tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return [
            _aligned([outputs[one.index] if isinstance(one, _At) else one for one in switch.operands])
            for switch in self.switches
        ]

    def rows(self, value: Tensor, count: int) -> Float[Tensor, "N B E"]:
        """A value of every trajectory in rows."""
        shape = tuple(value.shape[1 : 1 + len(self.batch)])
        if shape != self.batch:
            raise Unsolvable("whose arguments do not have the shape of the batch first")
        return value.reshape(count, math.prod(self.batch), -1)

    def codes(self, u: Tensor, t: Float[Tensor, "N B"], *, of_state: bool = False) -> Float[Tensor, "N B E"]:
        """A row of numbers that change exactly where a switch jumps."""
        read = self.operands(u, t, of_state=of_state)
        columns = [switch.code(*args) for switch, args in zip(self.switches, read, strict=True)]
        return torch.cat([self.rows(column, len(t)) for column in columns], -1)


def switch_times(
    graph: SwitchGraph, u: Tensor, leaves: Sequence[Tensor], span: tuple[Float[Tensor, "B"], Float[Tensor, "B"]]
) -> Float[Tensor, "B k"]:
    """The times inside the span at which a switch of time jumps, as differentiable functions of the leaves.

    Args:
        u: A state ``(*batch, n)`` of the right shape; its numbers do not matter.
        span: Start and end of every trajectory.

    Returns:
        A row for each trajectory, in the direction of the solve; NaN where a row is shorter.

    Raises:
        Unsolvable: There are too many, or no derivative says how they move with a leaf that requires a gradient.
    """
    reader = _Reader(graph.at_time, graph.of_time, graph.batch, tuple(leaf.detach() for leaf in leaves))
    with torch.no_grad():
        times, element = _search(lambda t: reader.codes(u, t), span)
    if not times.shape[0] or not any(leaf.requires_grad for leaf in leaves) or not torch.is_grad_enabled():
        return times.T
    return _moving(_Reader(graph.at_time, graph.of_time, graph.batch, tuple(leaves)), u, times, element).T


def _search(
    codes_at: Callable[[Float[Tensor, "N B"]], Float[Tensor, "N B E"]],
    span: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
) -> tuple[Float[Tensor, "k B"], Int[Tensor, "k B"]]:
    """Times just behind every change of the codes, and which of them changed first; NaN fills up."""
    t0, t1 = span
    sign = torch.where(t1 >= t0, 1.0, -1.0).to(t0)
    unit = torch.finfo(t0.dtype).eps * torch.maximum(torch.maximum(t0.abs(), t1.abs()), (t1 - t0).abs())
    grid = torch.stack([t0, t1])
    width = codes_at(grid).shape[-1] * len(t0)
    points = max(33, min(_POINTS, _MOST_NUMBERS // max(1, width)))
    grid = torch.lerp(t0, t1, torch.linspace(0, 1, points, dtype=t0.dtype, device=t0.device).unsqueeze(-1))
    codes = codes_at(grid)
    while True:
        changed = (codes[1:] != codes[:-1]).any(-1)
        open_ = changed & ((grid[1:] - grid[:-1]).abs() > 2 * unit)
        most = int(open_.sum(0).max())
        if not most:
            break
        if len(grid) > _POINTS + 3 * MOST_SWITCHES:
            raise Unsolvable(f"at more than {MOST_SWITCHES} times")
        place = open_.to(torch.int8).argsort(dim=0, descending=True, stable=True)[:most]
        low, high = grid.gather(0, place), grid.gather(0, place + 1)
        before = codes.gather(0, place.unsqueeze(-1).expand(-1, -1, codes.shape[-1]))
        while bool(((high - low).abs() > 2 * unit)[open_.gather(0, place)].any()):
            middle = (low + high) / 2
            same = (codes_at(middle) == before).all(-1)
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        grid, order = (torch.cat([grid, low, high]) * sign).sort(dim=0, stable=True)
        codes = torch.cat([codes, codes_at(low), codes_at(high)])
        grid, codes = grid * sign, codes.gather(0, order.unsqueeze(-1).expand(-1, -1, codes.shape[-1]))
    times = torch.where(changed, grid[1:] + _BEHIND * unit * sign, float("nan"))
    inside = ((times - t0).abs() > _CLOSE * unit) & ((t1 - times).abs() > _CLOSE * unit)
    times = torch.where(inside, times, float("nan"))
    element = (codes[1:] != codes[:-1]).to(torch.int8).argmax(-1)
    count = int(inside.sum(0).max()) if len(inside) else 0
    if count > MOST_SWITCHES:
        raise Unsolvable(f"at more than {MOST_SWITCHES} times")
    order = inside.to(torch.int8).argsort(dim=0, descending=True, stable=True)[:count]
    return _merged(times.gather(0, order), unit), element.gather(0, order)


def _merged(times: Float[Tensor, "k B"], unit: Tensor) -> Float[Tensor, "k B"]:
    """Keep the last of times that differ by rounding only."""
    if len(times) < 2:
        return times
    same = (times[1:] - times[:-1]).abs() <= _CLOSE * unit
    return torch.cat([torch.where(same, float("nan"), times[:-1]), times[-1:]])


def _moving(reader: _Reader, u: Tensor, times: Float[Tensor, "k B"], element: Int[Tensor, "k B"]) -> Tensor:
    """The times with their derivatives by the leaves."""
    count = len(times)
    with torch.enable_grad():
        t = times.nan_to_num(0.0).detach().requires_grad_()
        read = reader.operands(u.detach(), t, of_state=False)
        columns, known = [], []
        for switch, args in zip(reader.switches, read, strict=True):
            level, code = switch.level(*args), switch.code(*args)
            fixed = level is None
            level = torch.zeros_like(code) if level is None else torch.broadcast_to(level, code.shape)
            columns.append(reader.rows(level, count))
            known.append(torch.full((columns[-1].shape[-1],), not fixed, dtype=torch.bool))
        level = torch.cat(columns, -1).gather(-1, element.unsqueeze(-1)).squeeze(-1)
        if not level.requires_grad:
            return times
        (rate,) = torch.autograd.grad(level.sum(), t, retain_graph=True, allow_unused=True)
    moves = torch.isfinite(times) & torch.cat(known)[element]
    rate = torch.ones_like(times) if rate is None else rate
    shift = -(level - level.detach()) / torch.where(moves & (rate != 0), rate, 1.0)
    return times + torch.where(moves & (rate != 0), shift, 0.0)


class _Frozen(fx.Interpreter):
    """Runs the graph of f with one node held at a value."""

    def __init__(self, module: fx.GraphModule, node: fx.Node, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__(module)
        self.node, self.value = node, value

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        return self.value(result) if n is self.node else result


#: A state, the leaves and a time.
_Point = tuple[Tensor, tuple[Tensor, ...], Tensor]


def jumping(
    graph: SwitchGraph, u: Tensor, leaves: Sequence[Tensor], span: tuple[Float[Tensor, "B"], Float[Tensor, "B"]]
) -> tuple[Switch, ...]:
    """The switches of state at which f itself jumps, and not only a derivative of it (as of ``where(u > 0, u, 0)``)."""
    return tuple(switch for switch in graph.of_state if _jumps(graph, switch, (u, tuple(leaves)), span))


def _jumps(
    graph: SwitchGraph,
    switch: Switch,
    start: tuple[Tensor, tuple[Tensor, ...]],
    span: tuple[Float[Tensor, "B"], Float[Tensor, "B"]],
) -> bool:
    """Compare f on both sides at points of the switching surface, near random states, times and parameters."""
    if switch.kind not in (*_COMPARE, "sign", "sgn", "heaviside"):
        return True
    generator = torch.Generator().manual_seed(0)
    u = start[0].detach()
    size = 1.0 + float(u.abs().max())

    def random(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    for _ in range(3):
        # not those of the start, at which a jump may happen to be zero
        leaves = tuple(
            leaf.detach() * (0.8 + 0.4 * random(leaf)) if leaf.is_floating_point() else leaf for leaf in start[1]
        )
        point = (
            u + size * (random(u) - 0.5),
            leaves,
            torch.lerp(span[0], span[1], random(span[0])).reshape(graph.batch),
        )
        count = _levels(graph, switch, point).shape[-1]
        if count > _MOST_TRIED:
            return True
        for element in range(count):
            near = _onto_surface(graph, switch, element, point)
            left = _levels(graph, switch, near)[:, element].abs().max()
            if not bool(left < 1e-9 * size) or _differ(graph, switch, (element, count), near):
                return True
    return False


def _levels(graph: SwitchGraph, switch: Switch, point: _Point) -> Float[Tensor, "B E"]:
    """What passes through zero at a switch."""
    u, leaves, t = point
    reader = _Reader(graph.at_state, (switch,), graph.batch, leaves)
    (args,) = reader.operands(u.unsqueeze(0), t.reshape(1, -1), of_state=True)
    return reader.rows(torch.as_tensor(switch.level(*args)), 1)[0]


def _onto_surface(graph: SwitchGraph, switch: Switch, element: int, point: _Point) -> _Point:
    """Move the state to where an element of the level is zero, by Newton's steps along its gradient."""
    u, leaves, t = point
    for _ in range(8):
        with torch.enable_grad():
            state = u.detach().requires_grad_()
            level = _levels(graph, switch, (state, leaves, t))[:, element]
            slope = torch.autograd.grad(level.sum(), state, materialize_grads=True)[0]
        norm = slope.square().sum(-1, keepdim=True).clamp(min=1e-300)
        u = state.detach() - level.detach().reshape(*graph.batch, 1) * slope / norm
    return u, leaves, t


def _differ(graph: SwitchGraph, switch: Switch, which: tuple[int, int], point: _Point) -> bool:
    """Whether f is another number with this element of a switch on the one side than on the other."""
    (element, count), (u, leaves, t) = which, point

    def held(value: float) -> Tensor:
        def put(result: Tensor) -> Tensor:
            rows = result.detach().clone().reshape(-1, count)
            rows[:, element] = value
            return rows.reshape(result.shape)

        with torch.no_grad():
            du: Tensor = _Frozen(graph.whole, switch.node, put).run(u, *leaves, t)
        return du

    low, high = held(-1.0 if switch.kind in ("sign", "sgn") else 0.0), held(1.0)
    return not torch.allclose(low, high, rtol=1e-6, atol=1e-6 * float(high.abs().max().nan_to_num(1.0)) + 1e-12)


def crossed(
    graph: SwitchGraph,
    switches: Sequence[Switch],
    leaves: Sequence[Tensor],
    times: Float[Tensor, "N B"],
    states: Float[Tensor, "N B n"],
) -> Switch | None:
    """The first of these switches of state that jumps along a solution; None where none does."""
    reader = _Reader(graph.at_state, graph.of_state, graph.batch, tuple(leaf.detach() for leaf in leaves))
    with torch.no_grad():
        read = reader.operands(states.reshape(len(times), *graph.batch, -1), times, of_state=True)
    fine = torch.isfinite(states).all(-1)
    both = (fine[1:] & fine[:-1]).unsqueeze(-1)
    for switch, args in zip(graph.of_state, read, strict=True):
        if switch not in switches:
            continue
        codes = reader.rows(switch.code(*args), len(times))
        if bool(((codes[1:] != codes[:-1]) & both).any()):
            return switch
    return None


class _StepFunctions(TorchFunctionMode):
    """Gives functions that are constant between jumps the derivative that torch does not know: zero."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in (*_NO_DERIVATIVE, "__floordiv__", "__rfloordiv__"):
            args = tuple(one.detach() if isinstance(one, Tensor) else one for one in args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, eq=False)
class StepwiseConstant(FlatRightHandSide):
    """A right-hand side with functions such as `torch.heaviside`, of which torch has no derivative."""

    def __call__(self, u: Tensor, leaves: Sequence[Tensor], t: Tensor, *more: Any) -> Tensor:
        with _StepFunctions():
            return super().__call__(u, leaves, t, *more)

    @classmethod
    def of(cls, f: FlatRightHandSide) -> StepwiseConstant:
        """The same right-hand side."""
        return cls(*(getattr(f, one.name) for one in fields(FlatRightHandSide)))
