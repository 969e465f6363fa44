"""From a graph of ATen operators to a `Program`: three kinds of work, and everything else is addresses."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ude.engines.fused.graph.operators import BINARY, UNARY
from ude.engines.fused.graph.program import (
    ZERO,
    Added,
    AddedProducts,
    Addresses,
    Contract,
    Map,
    Program,
    Sink,
    Unfusable,
)

aten = torch.ops.aten

#: Operators that only move numbers about: run on addresses. (Their overload packets by name.)
_MOVES = """
    view reshape _unsafe_view expand permute transpose t select slice squeeze unsqueeze clone detach alias cat
    stack split split_with_sizes unbind flip roll repeat diagonal index_select gather narrow movedim
    chunk tril triu select_scatter slice_scatter diagonal_scatter lift_fresh_copy lift_fresh contiguous
    view_copy expand_copy select_copy slice_copy permute_copy squeeze_copy unsqueeze_copy detach_copy alias_copy
    t_copy transpose_copy unbind_copy split_copy split_with_sizes_copy diagonal_copy
    view_as_real diag_embed unfold copy squeeze_ unsqueeze_ _to_copy to repeat_interleave unfold_copy
    _reshape_copy
"""
MOVES = frozenset(_MOVES.split())
# A computed index may pick from this many different rows, each of which gets a loop of its own.
_MOST_TABLES = 64
# Cumulated sums are written out number by number.
_LONGEST_CHAIN = 64
#: Operators that fill with a known number, whatever tensors they are given.
FILLS = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0}
# what is written to before it is read may hold anything
FILLS |= dict.fromkeys(("empty", "empty_like", "new_empty", "empty_permuted"), 0.0)


class Lowering:
    """Runs a graph with addresses in the place of numbers.

    A node's value is an int64 tensor of addresses wrapped in `_Held`, or a torch tensor whose numbers are known
    (indices, ranges), which operators are run on as they are. Views are views of addresses: what an operator writes
    into its argument (decompositions do, behind torch's own removal of that) is seen through all of them.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        #: Tensors of indices that f refers to: their numbers become part of the program.
        self.frozen: list[Tensor] = []

    def run(self, module: fx.GraphModule, inputs: Sequence[Addresses], captured: Callable[[Tensor], Any]) -> list[Any]:
        """Return the addresses of every output.

        Args:
            inputs: Addresses of the placeholders in order.
            captured: What stands for a tensor that f refers to: addresses, or None when its numbers are to be frozen.
        """
        values: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = _Held(torch.from_numpy(next(given).copy()))
            elif node.op == "get_attr":
                values[node] = self._captured(getattr(module, node.target), captured)
            elif node.op == "call_function":
                values[node] = self._call(node, values)
            else:
                outputs: Any = node.args[0]
                return [None if out is None else self.addresses(values[out]) for out in outputs]
        raise Unfusable("the trace of f has no output")

    def _captured(self, tensor: Tensor, captured: Callable[[Tensor], Any]) -> Any:
        if not tensor.is_floating_point():
            self.frozen.append(tensor)
            return tensor
        found = captured(tensor)
        return tensor if found is None else _Held(torch.from_numpy(found.copy()))

    def addresses(self, value: Any) -> Addresses:
        """Addresses of a node's value; known numbers become constants."""
        if isinstance(value, _Held):
            return value.at.numpy()
        if isinstance(value, Tensor):
            if value.is_complex():
                raise Unfusable("f uses complex numbers")
            if value._is_zerotensor():  # which autograd makes of derivatives that vanish
                value = torch.zeros(value.shape)
            return self.program.constants(value.detach().to(torch.float64).numpy())
        if isinstance(value, (bool, int, float)):
            return np.array(self.program.constant(float(value)), dtype=np.int64)
        raise Unfusable(f"f uses a value of type {type(value).__name__}")

    # -- one operator --------------------------------------------------------------------------------------------
    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        target: Any = node.target
        args: Any = fx.map_arg(node.args, lambda n: values[n])
        kwargs: Any = fx.map_arg(node.kwargs, lambda n: values[n])
        if target is operator.getitem:
            return args[0][args[1]]
        name = _name(target)
        held = _holds(args) or _holds(kwargs)
        if not held and name not in FILLS and not _random(target):
            with torch.no_grad():
                return target(*args, **kwargs)
        try:
            return self._lower(name, target, node, args, kwargs)
        except Unfusable as reason:
            reason.operator = name
            raise
        except (ArithmeticError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            # an operator in a form that its rule does not know: other engines run it all the same
            refusal = Unfusable(f"the operator {target} has no fused form for these arguments ({_first_line(error)})")
            refusal.operator = name
            raise refusal from error

    def _lower(self, name: str, target: Any, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if name.endswith("_") and target._schema.is_mutable:
            return self._write(name.rstrip("_"), target, node, args, kwargs)
        if name in MOVES:
            return self._move(name, target, node, args, kwargs)
        if name in FILLS or name in ("full", "full_like", "new_full", "scalar_tensor"):
            return self._fill(name, node, args)
        if name in UNARY:
            return self._map(UNARY[name], args[:1])
        if name in BINARY:
            return self._map(BINARY[name], args[:2])
        special = getattr(self, f"_op_{name}", None)
        if special is None:
            raise Unfusable(f"the operator {target} has no fused form")
        return special(node, *args, **kwargs)

    def _write(self, name: str, target: Any, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """An operator that writes its result into its first argument."""
        if not isinstance(args[0], _Held):
            raise Unfusable(f"the operator {target} writes into a tensor that f refers to")
        if name == "fill":
            found = _held(self.addresses(args[1]))
        elif name == "zero":
            found = _held(self.addresses(0.0))
        else:
            found = self._lower(name, target, node, args, kwargs)
        args[0].at.copy_(found.at)
        return args[0]

    def _move(self, name: str, target: Any, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if name in ("_to_copy", "to"):
            _check_precision(node)
            if not _meta(node).is_floating_point():
                value = self.addresses(args[0])
                if _meta(node.args[0]).is_floating_point():
                    function = "truth" if _meta(node).dtype == torch.bool else "trunc"
                    return _held(self.program.map(function, value))
            return _Held(args[0].at.clone())
        if name in ("lift_fresh", "detach", "alias"):
            return args[0]
        if name in ("lift_fresh_copy", "clone", "contiguous", "detach_copy", "alias_copy"):
            # clone may ask for a memory format, but addresses have none
            return _Held(args[0].at.clone(memory_format=torch.contiguous_format))
        if name == "copy":
            return _Held(torch.broadcast_to(self._ids(args[1]), self._ids(args[0]).shape))
        if name == "roll" or not _holds(kwargs):
            kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "memory_format")}
        index_first = name in ("index_select", "gather", "repeat_interleave")
        if index_first and any(isinstance(part, _Held) for part in args[1:]):
            return self._dynamic_gather(name, args)
        moved = target(*_map_tree(args, self._ids, keep=index_first), **kwargs)
        return [_Held(part) for part in moved] if isinstance(moved, (list, tuple)) else _Held(moved)

    def _ids(self, value: Any) -> Tensor:
        if isinstance(value, _Held):
            return value.at
        return _tensor(self.addresses(value))

    def _fill(self, name: str, node: fx.Node, args: Any) -> Any:
        if name in FILLS:
            value = FILLS[name]
        else:
            value = args[0] if name == "scalar_tensor" else args[2] if name == "new_full" else args[1]
        shape = tuple(_meta(node).shape)
        address = self.addresses(value)
        return _Held(torch.from_numpy(np.broadcast_to(address.reshape(()), shape).copy()))

    def _map(self, function: str, args: Sequence[Any]) -> _Held:
        parts = np.broadcast_arrays(*(self.addresses(arg) for arg in args))
        return _held(self.program.map(function, *parts))

    # -- pointwise operators whose arguments need a word -----------------------------------------------------------
    def _op_add(self, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Any:
        return self._map("add", (x, y if alpha == 1 else self._map("mul", (y, alpha))))

    def _op_sub(self, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Any:
        return self._map("sub", (x, y if alpha == 1 else self._map("mul", (y, alpha))))

    def _op_rsub(self, node: fx.Node, x: Any, y: Any, alpha: Any = 1) -> Any:
        return self._op_sub(node, y, x, alpha)

    def _op_div(self, node: fx.Node, x: Any, y: Any, rounding_mode: str | None = None) -> Any:
        quotient = self._map("div", (x, y))
        return quotient if rounding_mode is None else self._map(rounding_mode, (quotient,))

    def _op_where(self, node: fx.Node, condition: Any, x: Any, y: Any) -> Any:
        return self._map("where", (condition, x, y))

    def _op_masked_fill(self, node: fx.Node, x: Any, mask: Any, value: Any) -> Any:
        return self._map("where", (mask, value, x))

    def _op_clamp(self, node: fx.Node, x: Any, low: Any = None, high: Any = None) -> Any:
        if low is not None:
            x = self._map("maximum", (x, low))
        return x if high is None else self._map("minimum", (x, high))

    def _op_clamp_min(self, node: fx.Node, x: Any, low: Any) -> Any:
        return self._map("maximum", (x, low))

    def _op_clamp_max(self, node: fx.Node, x: Any, high: Any) -> Any:
        return self._map("minimum", (x, high))

    def _op_pow(self, node: fx.Node, x: Any, y: Any) -> Any:
        simple = {2.0: "square", 3.0: "cube", 0.5: "sqrt", -1.0: "reciprocal", -0.5: "rsqrt"}
        if isinstance(y, (int, float)) and float(y) in simple:
            return self._map(simple[float(y)], (x,))
        if isinstance(y, (int, float)) and float(y) in (0.0, 1.0):
            return x if y else self._map("add", (self._map("mul", (x, 0.0)), 1.0))
        return self._map("pow", (x, y))

    # -- sums and products ---------------------------------------------------------------------------------------
    def _reduce(self, function: str, node: fx.Node, x: Any, dims: Any, keepdim: bool) -> _Held:
        source = self.addresses(x)
        ndim = source.ndim
        if dims is None or (isinstance(dims, (list, tuple)) and not dims):
            axes = list(range(ndim))
        else:
            axes = [axis % ndim for axis in ([dims] if isinstance(dims, int) else dims)] if ndim else []
        kept = [axis for axis in range(ndim) if axis not in axes]
        moved = source.transpose(kept + axes)
        k = math.prod(source.shape[axis] for axis in axes)
        if k == 0:
            raise Unfusable(f"the operator {node.target} runs over nothing")
        found = self.program.reduce(function, np.ascontiguousarray(moved).reshape(-1, k))
        shape = [1 if axis in axes else source.shape[axis] for axis in range(ndim)]
        return _held(found.reshape(shape if keepdim else [source.shape[axis] for axis in kept]))

    def _op_sum(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return self._reduce("add", node, x, dims, keepdim)

    def _op_mean(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        total = self._reduce("add", node, x, dims, keepdim)
        count = self.addresses(x).size // max(1, total.at.numel())
        return self._map("div", (total, float(count)))

    def _op_var(
        self, node: fx.Node, x: Any, dims: Any = None, correction: Any = 1, keepdim: bool = False, **_: Any
    ) -> Any:
        mean = self._op_mean(node, x, dims, True)
        centered = self._map("sub", (x, mean))
        total = self._reduce("add", node, self._map("square", (centered,)), dims, keepdim)
        count = self.addresses(x).size // max(1, total.at.numel())
        return self._map("div", (total, float(count - (1 if correction is None else correction))))

    def _op_amax(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("maximum", node, x, dims, keepdim)

    def _op_amin(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("minimum", node, x, dims, keepdim)

    def _op_prod(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return self._reduce("mul", node, x, dims, keepdim)

    def _op_new_empty_strided(self, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
        # what autograd makes of such writes reads memory by its layout, which a trace gets wrong
        raise Unfusable(
            "f writes numbers into a part of a tensor, of which derivatives cannot be traced; put them together with "
            "torch.stack, torch.cat or torch.where"
        )

    _op_as_strided = _op_as_strided_copy = _op_as_strided_scatter = _op_empty_strided = _op_new_empty_strided

    def _op_any(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("maximum", node, self._map("truth", (x,)), dims, keepdim)

    def _op_all(self, node: fx.Node, x: Any, dims: Any = None, keepdim: bool = False) -> Any:
        return self._reduce("minimum", node, self._map("truth", (x,)), dims, keepdim)

    def _op_cumsum(self, node: fx.Node, x: Any, axis: int, dtype: Any = None) -> Any:
        return self._cumulated("add", x, axis)

    def _op_cumprod(self, node: fx.Node, x: Any, axis: int, dtype: Any = None) -> Any:
        return self._cumulated("mul", x, axis)

    def _cumulated(self, function: str, x: Any, axis: int) -> _Held:
        moved = np.moveaxis(self.addresses(x), axis, 0)
        if len(moved) > _LONGEST_CHAIN:
            raise Unfusable(f"a cumulated sum or product of more than {_LONGEST_CHAIN} numbers has no fused form")
        rows = [moved[0]]
        for row in moved[1:]:
            rows.append(self.program.map(function, rows[-1], row))
        return _held(np.moveaxis(np.stack(rows), 0, axis))

    def _op_mm(self, node: fx.Node, x: Any, y: Any) -> Any:
        return _held(self.program.contract(self.addresses(x)[None], self.addresses(y)[None])[0])

    def _op_bmm(self, node: fx.Node, x: Any, y: Any) -> Any:
        return _held(self.program.contract(self.addresses(x), self.addresses(y)))

    def _op_mv(self, node: fx.Node, x: Any, y: Any) -> Any:
        return _held(self.program.contract(self.addresses(x)[None], self.addresses(y)[None, :, None])[0, :, 0])

    def _op_dot(self, node: fx.Node, x: Any, y: Any) -> Any:
        found = self.program.contract(self.addresses(x)[None, None], self.addresses(y)[None, :, None])
        return _held(found.reshape(()))

    def _op_addmm(self, node: fx.Node, bias: Any, x: Any, y: Any, beta: Any = 1, alpha: Any = 1) -> Any:
        product = self._op_mm(node, x, y)
        scaled = product if alpha == 1 else self._map("mul", (product, alpha))
        return self._map("add", (scaled, bias if beta == 1 else self._map("mul", (bias, beta))))

    def _op_broadcast_in_dim(self, node: fx.Node, x: Any, shape: Sequence[int], axes: Sequence[int]) -> Any:
        at = self._ids(x)
        sizes = [1] * len(shape)
        for axis, size in zip(axes, at.shape, strict=True):
            sizes[axis] = size
        return _Held(at.reshape(sizes).expand(*shape))

    # -- numbers picked by an index --------------------------------------------------------------------------------
    def _op_index(self, node: fx.Node, x: Any, indices: Sequence[Any]) -> Any:
        if not any(isinstance(index, _Held) for index in indices):
            return _Held(aten.index(self._ids(x), list(indices)))
        computed = [axis for axis, index in enumerate(indices) if isinstance(index, _Held)]
        if len(computed) > 1:
            raise Unfusable(f"the operator {node.target} picks by computed indices from more than one axis")
        # what each number is picked from: a row along the axis of the computed index
        (axis,) = computed
        source = np.moveaxis(self.addresses(x), axis, -1)
        known = [index for i, index in enumerate(indices) if i != axis]
        at = self.addresses(indices[axis])
        if any(index is None for index in known):
            raise Unfusable(f"the operator {node.target} picks whole rows by a computed index")
        shape = np.broadcast_shapes(at.shape, *(tuple(index.shape) for index in known))
        rows = source[tuple(np.broadcast_to(index.numpy(), shape) for index in known)]
        rest = source.shape[len(known) : -1]
        if rest:
            raise Unfusable(f"the operator {node.target} picks whole rows by a computed index")
        return _held(self._pick(np.broadcast_to(rows, (*shape, source.shape[-1])), np.broadcast_to(at, shape)))

    def _pick(self, rows: Addresses, index: Addresses) -> Addresses:
        """``rows[i, index[i]]``: one gather for all numbers that are picked from the same row."""
        tables, at = rows.reshape(-1, rows.shape[-1]), index.reshape(-1)
        found = np.empty(at.size, dtype=np.int64)
        distinct, which = np.unique(tables, axis=0, return_inverse=True)
        if len(distinct) > _MOST_TABLES:
            raise Unfusable("an operator picks by a computed index from many rows")
        for i, table in enumerate(distinct):
            here = np.flatnonzero(which.reshape(-1) == i)
            found[here] = self.program.gather(table, at[here])
        return found.reshape(index.shape)

    def _dynamic_gather(self, name: str, args: Any) -> Any:
        source, axis, index = self.addresses(args[0]), args[1], self.addresses(args[2])
        if name not in ("gather", "index_select"):
            raise Unfusable(f"the operator {name} picks by a computed index")
        source = np.moveaxis(source, axis, -1)
        if name == "index_select":
            rows = np.broadcast_to(source[..., None, :], (*source.shape[:-1], index.size, source.shape[-1]))
            picked = self._pick(rows, np.broadcast_to(index, rows.shape[:-1]))
        else:
            at = np.moveaxis(index, axis, -1)
            inner = source[tuple(slice(size) for size in at.shape[:-1])]
            rows = np.broadcast_to(inner[..., None, :], (*at.shape, source.shape[-1]))
            picked = self._pick(rows, at)
        return _held(np.moveaxis(picked, -1, axis))

    def _op_constant_pad_nd(self, node: fx.Node, x: Any, pad: Sequence[int], value: Any = 0.0) -> Any:
        return _Held(aten.constant_pad_nd(self._ids(x), list(pad), int(self.addresses(value))))

    def _op_searchsorted(self, node: fx.Node, knots: Any, x: Any, *, right: bool = False, **_: Any) -> Any:
        side = _.get("side") == "right" or right
        table, at = self.addresses(knots), self.addresses(x)
        # how many knots lie before x: a sum of comparisons, which needs no branch
        rows = table if table.ndim == 1 else table[..., None, :]
        wide, spread = np.broadcast_arrays(rows, at[..., None])
        before = self.program.map("le" if side else "lt", wide, spread)
        return _held(self.program.reduce("add", before.reshape(-1, table.shape[-1])).reshape(at.shape))

    def _op_bucketize(self, node: fx.Node, x: Any, knots: Any, *, right: bool = False, **_: Any) -> Any:
        return self._op_searchsorted(node, knots, x, right=right)

    def _op_index_put(self, node: fx.Node, x: Any, indices: Sequence[Any], y: Any, accumulate: bool = False) -> Any:
        if any(isinstance(index, _Held) for index in indices):
            vector = self.addresses(x)
            if vector.ndim != 1 or len(indices) != 1 or not accumulate:
                raise Unfusable(f"the operator {node.target} writes by a computed index")
            return self._scatter(vector, self.addresses(indices[0]), y)
        base = self._ids(x).contiguous()
        places = aten.index(torch.arange(base.numel()).view(base.shape), list(indices))
        return self._put(base, places, y, accumulate)

    def _put(self, base: Tensor, places: Tensor, y: Any, accumulate: bool) -> _Held:
        source = np.broadcast_to(self.addresses(y), tuple(places.shape)).reshape(-1)
        result, where = base.clone().reshape(-1).numpy(), places.reshape(-1).numpy()
        while where.size:
            # the first of everything that goes to one place, then the second, ...
            _, first = np.unique(where, return_index=True)
            spot = where[first]
            result[spot] = self.program.map("add", result[spot], source[first]) if accumulate else source[first]
            rest = np.setdiff1d(np.arange(where.size), first)
            where, source = where[rest], source[rest]
        return _Held(torch.from_numpy(result).view(base.shape))

    def _scatter(self, base: Addresses, index: Addresses, y: Any) -> _Held:
        """``base[index[i]] += y[i]`` of a vector."""
        # one term a place: `y` where the index is this place, else zero
        source = np.broadcast_to(self.addresses(y), index.shape).reshape(-1)
        places = self.program.constants(np.arange(base.size, dtype=np.float64))
        total = base
        for i in range(index.size):
            here = self.program.map("eq", np.broadcast_to(index.reshape(-1)[i], base.shape).copy(), places)
            total = self.program.map("add", total, self.program.map("mul", here, np.full_like(base, source[i])))
        return _held(total)

    def _op_scatter(self, node: fx.Node, x: Any, axis: int, index: Any, y: Any) -> Any:
        if isinstance(index, _Held):
            raise Unfusable(f"the operator {node.target} writes by a computed index")
        ids = self._ids(x).contiguous()
        order = torch.arange(ids.numel()).view(ids.shape)
        return self._put(ids, order.gather(axis, index), y, False)

    def _op_replication_pad1d_backward(self, node: fx.Node, grad: Any, x: Any, padding: Sequence[int]) -> Any:
        shape = self._ids(x).shape
        order = torch.arange(shape.numel(), dtype=torch.float64).view(shape)
        read = torch.nn.functional.pad(order, tuple(padding), mode="replicate").to(torch.int64)
        return self._put(torch.zeros(shape, dtype=torch.int64) + ZERO, read, grad, True)

    _op_replication_pad2d_backward = _op_replication_pad1d_backward

    def _op_scatter_add(self, node: fx.Node, x: Any, axis: int, index: Any, y: Any) -> Any:
        if isinstance(index, _Held):
            vector = self.addresses(x)
            if vector.size != vector.shape[axis]:
                raise Unfusable(f"the operator {node.target} writes by a computed index to more than one axis")
            spread = self._scatter(vector.reshape(-1), self.addresses(index), y)
            return _Held(spread.at.view(vector.shape))
        ids = self._ids(x).contiguous()
        order = torch.arange(ids.numel()).view(ids.shape)
        return self._put(ids, order.gather(axis, index), y, True)

    def _op_index_add(self, node: fx.Node, x: Any, axis: int, index: Any, y: Any, alpha: Any = 1) -> Any:
        if isinstance(index, _Held) or alpha != 1:
            raise Unfusable(f"the operator {node.target} writes by a computed index")
        base = self._ids(x).contiguous()
        order = torch.arange(base.numel()).view(base.shape)
        return self._put(base, order.index_select(axis, index), y, True)

    # -- convolutions: windows of addresses, then a product ----------------------------------------------------------
    def _op_convolution(self, node: fx.Node, *given: Any) -> Any:
        x, weight, bias, stride, padding, dilation, transposed, _, groups = given
        if transposed or groups != 1:
            raise Unfusable("transposed and grouped convolutions have no fused form")
        windows, shape = _windows(self._ids(x), self._ids(weight).shape[2:], stride, padding, dilation)
        kernel = self.addresses(weight)
        left = np.broadcast_to(kernel.reshape(1, kernel.shape[0], -1), (len(windows), kernel.shape[0], kernel[0].size))
        out = self.program.contract(left, windows.transpose(0, 2, 1)).reshape(len(windows), kernel.shape[0], *shape)
        if bias is None:
            return _held(out)
        return self._map("add", (_held(out), _held(self.addresses(bias).reshape(1, -1, *([1] * len(shape))))))

    def _op_convolution_backward(self, node: fx.Node, *given: Any) -> Any:
        grad, x, weight, _, stride, padding, dilation, transposed, _, groups, mask = given
        if transposed or groups != 1:
            raise Unfusable("transposed and grouped convolutions have no fused form")
        inputs, kernel, of_out = self._ids(x), self.addresses(weight), self.addresses(grad)
        windows, _ = _windows(inputs, kernel.shape[2:], stride, padding, dilation)
        flat = of_out.reshape(len(windows), kernel.shape[0], -1)
        of_x = of_weight = of_bias = None
        if mask[0]:
            # every input is read by some (place, tap): gather what they give back, with the zero address elsewhere
            order = torch.arange(1, inputs.numel() + 1).view(inputs.shape)
            readers, _ = _windows(order, kernel.shape[2:], stride, padding, dilation)
            of_x = _held(self._pull_windows(readers, inputs.numel(), flat, kernel).reshape(tuple(inputs.shape)))
        if mask[1]:
            left = flat.transpose(1, 0, 2).reshape(1, kernel.shape[0], -1)
            right = windows.reshape(1, -1, windows.shape[2])
            of_weight = _held(self.program.contract(left, right).reshape(kernel.shape))
        if mask[2]:
            axes = (0, *range(2, of_out.ndim))
            of_bias = self._reduce("add", node, grad, axes, False)
        return [of_x, of_weight, of_bias]

    def _pull_windows(self, readers: Addresses, readers_of: int, of_out: Addresses, kernel: Addresses) -> Addresses:
        """Sum over places and taps that read each of `readers_of` inputs.

        `readers` (batch, places, taps) hold 1 + the number of the input that is read there, or 0.
        """
        taps = kernel.reshape(kernel.shape[0], -1)
        batch, place, tap = np.nonzero(readers)
        read = readers[batch, place, tap] - 1
        order = np.argsort(read, kind="stable")
        count = np.bincount(read, minlength=readers_of)
        rank = np.arange(read.size) - np.repeat(np.cumsum(count) - count, count)
        size = readers_of
        left = np.full((size, 1, int(count.max()) * kernel.shape[0]), ZERO, dtype=np.int64)
        right = np.full((size, left.shape[2], 1), ZERO, dtype=np.int64)
        for channel in range(kernel.shape[0]):
            where = rank * kernel.shape[0] + channel
            left[read[order], 0, where] = of_out[batch[order], channel, place[order]]
            right[read[order], where, 0] = taps[channel, tap[order]]
        return self.program.contract(left, right).reshape(-1)


class _Held:
    """Addresses of a tensor whose numbers are not known before the solve."""

    __slots__ = ("at",)

    def __init__(self, at: Tensor) -> None:
        self.at = at


def _tensor(addresses: Addresses) -> Tensor:
    # a copy: what is known of the program must not change when a tensor is written to
    return torch.from_numpy(np.array(addresses, dtype=np.int64, order="C")).view(addresses.shape)


def _held(addresses: Addresses) -> _Held:
    return _Held(_tensor(addresses))


def _windows(
    x: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any
) -> tuple[Addresses, tuple[int, ...]]:
    """What each place of a convolution reads: (batch, places, channels x taps), and the shape of the places."""
    dims = len(kernel)
    pad = [side for axis in reversed(range(dims)) for side in (padding[axis], padding[axis])]
    padded = torch.nn.functional.pad(x, pad, value=ZERO).numpy()
    shape = tuple(
        (padded.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1 for axis in range(dims)
    )
    places = np.indices(shape).reshape(dims, -1)
    taps = np.indices(kernel).reshape(dims, -1)
    grid = tuple(places[axis][:, None] * stride[axis] + taps[axis][None] * dilation[axis] for axis in range(dims))
    found = padded[(slice(None), slice(None), *grid)]
    return np.ascontiguousarray(found.transpose(0, 2, 1, 3)).reshape(len(padded), places.shape[1], -1), shape


def _name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    return str(packet.__name__) if packet is not None else str(getattr(target, "__name__", target))


def _check_precision(node: fx.Node) -> None:
    before, after = _meta(node.args[0]).dtype, _meta(node).dtype
    if before.is_floating_point and after.is_floating_point and after.itemsize < before.itemsize:
        raise Unfusable(f"f turns {str(before)[6:]} numbers into {str(after)[6:]}, and kernels know one type")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _random(target: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())


def _holds(tree: Any) -> bool:
    if isinstance(tree, _Held):
        return True
    if isinstance(tree, (list, tuple)):
        return any(_holds(part) for part in tree)
    return isinstance(tree, dict) and any(_holds(part) for part in tree.values())


def _map_tree(tree: Any, ids: Callable[[Any], Tensor], *, keep: bool) -> Any:
    """Replace tensors by their addresses; with `keep`, known index tensors stay what they are."""
    if isinstance(tree, _Held) or (isinstance(tree, Tensor) and not (keep and not tree.is_floating_point())):
        return ids(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map_tree(part, ids, keep=keep) for part in tree)
    return tree


def _meta(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


# -- gradients of leaves -----------------------------------------------------------------------------------------------
def sinks_of(program: Program, leaf: int, gradient: Addresses, *, products: bool) -> list[Sink]:
    """Say how the gradient of a leaf is added up.

    Outer products are recognized (with `products`): added up over many evaluations at once, they are a matrix product.
    """
    order = np.arange(gradient.size, dtype=np.int64)
    return list(_sinks(program, leaf, gradient.reshape(-1), order, products))


def _sinks(program: Program, leaf: int, source: Addresses, at: Addresses, products: bool) -> Iterator[Sink]:
    buffers = program.buffers_of(source)
    made = program.producer.get(buffers[0]) if len(buffers) == 1 else None
    if made is not None and source.size == buffers[0].numel and np.unique(source).size == source.size:
        place = source - buffers[0].start
        if isinstance(made, Map) and made.function == "add":
            for part in made.arguments:
                yield from _sinks(program, leaf, part[place], at, products)
            return
        found = _products(leaf, made, place, at) if products and isinstance(made, Contract) else None
        if found is not None:
            yield found
            return
    live = source != ZERO
    if live.any():
        yield Added(leaf, at[live], source[live])


def _products(leaf: int, made: Contract, place: Addresses, at: Addresses) -> AddedProducts | None:
    """``gradient[at[i]] = product[place[i]]``, the whole leaf: a product, or the transpose of one."""
    batch, m, _, n = made.sizes
    if batch != 1 or min(m, n) < 2 or int(at.min()) != 0:
        return None
    where = np.empty(place.size, dtype=np.int64)
    where[place] = at
    order = np.arange(m * n, dtype=np.int64)
    left, right = np.ascontiguousarray(made.left[0]), np.ascontiguousarray(made.right[0].T)
    if np.array_equal(where, order):
        return AddedProducts(leaf, left, right)
    if np.array_equal(where.reshape(m, n).T.reshape(-1), order):
        return AddedProducts(leaf, right, left)
    return None
