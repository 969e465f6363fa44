"""Straight-line programs over numbered elements: what a traced right-hand side is lowered to before it is rendered.

Every number of a program, be it an input, a constant or an intermediate result, has an address: a place in one virtual
memory that its buffers share. A tensor is then an int64 tensor of addresses, of the tensor's shape. Whatever moves
numbers about (select, permute, cat, roll, pad, ...) is run as it is on those tensors and leaves nothing in the program;
what computes becomes one of the few operations below. Address 0 holds the constant zero, so that operations which fill
up with zeros need no rule either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Addresses = NDArray[np.int64]
Role = Literal["constant", "table", "input", "temporary"]

ZERO = 0


class Unfusable(Exception):
    """This right-hand side has no fused kernel; the message is one sentence that says why.

    Attributes:
        operator: Name of the ATen operator that cannot be lowered, if it is one.
    """

    operator: str | None = None


@dataclass(eq=False)
class Buffer:
    """A run of addresses.

    Args:
        name: Its name in the generated source.
        start, numel: Which addresses it holds.
        uniform: Whether its numbers are the same for every trajectory and time, so that they are computed once a solve.
        values: Of constants and tables.
    """

    name: str
    start: int
    numel: int
    uniform: bool
    role: Role
    values: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Access:
    """The affine pattern ``buffer[offset + sum_d strides[d] i_d]``."""

    buffer: Buffer
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Map:
    """``out[i] = function(args[0][i], args[1][i], ...)``; `arguments` hold addresses (numel,)."""

    out: Buffer
    function: str
    arguments: tuple[Addresses, ...]


@dataclass(frozen=True, eq=False)
class Copy:
    """``out[i] = source[i]``: gathers numbers that lie apart into one buffer."""

    out: Buffer
    source: Addresses


@dataclass(frozen=True, eq=False)
class Contract:
    """``out[b, m, n] = sum_k left[b, m, k] right[b, k, n]``."""

    out: Buffer
    left: Addresses
    right: Addresses

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(b, m, k, n)."""
        batch, m, k = self.left.shape
        return batch, m, k, self.right.shape[2]


@dataclass(frozen=True, eq=False)
class Reduce:
    """``out[m] = function over k of source[m, k]`` with function add, mul, maximum or minimum."""

    out: Buffer
    function: str
    source: Addresses


@dataclass(frozen=True, eq=False)
class Gather:
    """``out[i] = table[index[i]]`` with an index that is computed."""

    out: Buffer
    table: Addresses
    index: Addresses


Operation = Map | Copy | Contract | Reduce | Gather


@dataclass(frozen=True, eq=False)
class Added:
    """A sink: ``total[leaf][at[i]] += source[i]``."""

    leaf: int
    at: Addresses
    source: Addresses


@dataclass(frozen=True, eq=False)
class AddedProducts:
    """A sink: ``total[leaf][i, j] += sum_k left[i, k] right[j, k]``, the gradient of a matrix."""

    leaf: int
    left: Addresses
    right: Addresses


Sink = Added | AddedProducts


@dataclass(eq=False)
class Program:
    """Operations in order over one memory; several functions (f, its pullback, its Jacobian) share what they share."""

    buffers: list[Buffer] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    producer: dict[Buffer, Operation] = field(default_factory=dict)
    _starts: list[int] = field(default_factory=list)
    _size: int = 0
    _constants: dict[str, int] = field(default_factory=dict)
    _known: dict[object, Addresses] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.constant(0.0)

    # -- memory --------------------------------------------------------------------------------------------------
    def add_buffer(self, name: str, numel: int, *, uniform: bool, role: Role, values: Sequence[float] = ()) -> Buffer:
        if role in ("temporary", "table"):
            count = self._counts.get(name, 0)
            self._counts[name] = count + 1
            name = f"{name}{count}"
        buffer = Buffer(name, self._size, numel, uniform, role, tuple(values))
        self.buffers.append(buffer)
        self._starts.append(self._size)
        # a gap of one: runs in neighboring buffers are never mistaken for one
        self._size += numel + 1
        return buffer

    def input(self, name: str, numel: int, *, uniform: bool) -> Addresses:
        return addresses_of(self.add_buffer(name, numel, uniform=uniform, role="input"))

    def constant(self, value: float) -> int:
        """Return the address of a number; +0 and -0 are two numbers, every NaN is one."""
        key = float(value)
        name = repr(key)
        if name not in self._constants:  # by text: 0.0 == -0.0, and nan != nan
            self._constants[name] = self.add_buffer("constant", 1, uniform=True, role="constant", values=(key,)).start
        return self._constants[name]

    def constants(self, values: NDArray[np.float64]) -> Addresses:
        """Addresses of known numbers, in their shape: a few as literals, many as a table."""
        flat = values.reshape(-1)
        distinct = np.unique(flat)
        if len(distinct) <= 16:
            found = np.array([self.constant(float(value)) for value in flat], dtype=np.int64)
            return found.reshape(values.shape)
        table = self.add_buffer("table", flat.size, uniform=True, role="table", values=[float(x) for x in flat])
        return addresses_of(table).reshape(values.shape)

    def buffer_at(self, address: int) -> Buffer:
        return self.buffers[int(np.searchsorted(self._starts, address, side="right")) - 1]

    def buffers_of(self, addresses: Addresses) -> list[Buffer]:
        """The buffers that addresses lie in, each once, in order."""
        places = np.unique(np.searchsorted(self._starts, addresses.reshape(-1), side="right") - 1)
        return [self.buffers[i] for i in places]

    def uniform(self, *arguments: Addresses) -> bool:
        return all(buffer.uniform for addresses in arguments for buffer in self.buffers_of(addresses))

    def value_at(self, address: int) -> float | None:
        """The number at an address, when it is a constant."""
        buffer = self.buffer_at(address)
        return buffer.values[0] if buffer.role == "constant" else None

    def access(self, addresses: Addresses) -> Access | None:
        """Recognize an affine pattern of one buffer, or return None."""
        base = int(addresses.flat[0])
        strides = []
        pattern = np.full((1,) * addresses.ndim, base, dtype=np.int64)
        for axis, size in enumerate(addresses.shape):
            if size == 1:
                strides.append(0)
                continue
            corner = tuple(1 if other == axis else 0 for other in range(addresses.ndim))
            stride = int(addresses[corner]) - base
            shape = [1] * addresses.ndim
            shape[axis] = size
            pattern = pattern + (np.arange(size, dtype=np.int64) * stride).reshape(shape)
            strides.append(stride)
        if not np.array_equal(np.broadcast_to(pattern, addresses.shape), addresses):
            return None
        buffer = self.buffer_at(base)
        low, high = int(addresses.min()), int(addresses.max())
        if low < buffer.start or high >= buffer.start + buffer.numel:
            return None
        return Access(buffer, base - buffer.start, tuple(strides))

    # -- operations ----------------------------------------------------------------------------------------------
    def emit(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.producer[operation.out] = operation

    def map(self, function: str, *arguments: Addresses) -> Addresses:
        """Apply a pointwise function to arrays of one shape; the same work is done once."""
        shape = arguments[0].shape
        flat = tuple(np.ascontiguousarray(part).reshape(-1) for part in arguments)
        key = ("map", function, *(part.tobytes() for part in flat))
        if key not in self._known:
            uniform = self.uniform(*flat)
            unchanged = self._unchanged(function, flat)
            if unchanged is not None:
                self._known[key] = unchanged
            elif flat[0].size <= SCALARS:
                self._known[key] = np.array([self._scalar(function, one) for one in zip(*flat, strict=True)], np.int64)
            else:
                out = self.add_buffer("v" if not uniform else "w", flat[0].size, uniform=uniform, role="temporary")
                self.emit(Map(out, function, flat))
                self._known[key] = addresses_of(out)
        return self._known[key].reshape(shape)

    def _unchanged(self, function: str, arguments: Sequence[Addresses]) -> Addresses | None:
        """The argument that an operation with a constant leaves as it is: ``1 * x`` and ``0 + x`` of whole arrays."""
        if function not in ("add", "mul", "sub", "div"):
            return None
        constant = [self.value_at(int(part[0])) if np.all(part == part[0]) else None for part in arguments]
        neutral = 1.0 if function in ("mul", "div") else 0.0
        if constant[1] == neutral:
            return arguments[0]
        return arguments[1] if constant[0] == neutral and function in ("add", "mul") else None

    def _scalar(self, function: str, arguments: Sequence[int]) -> int:
        simple = self._simplified(function, arguments)
        if simple is not None:
            return simple
        key = ("scalar", function, *(int(address) for address in arguments))
        if key not in self._known:
            flat = tuple(np.array([address], dtype=np.int64) for address in arguments)
            uniform = self.uniform(*flat)
            out = self.add_buffer("x" if not uniform else "y", 1, uniform=uniform, role="temporary")
            self.emit(Map(out, function, flat))
            self._known[key] = addresses_of(out)
        return int(self._known[key][0])

    def _simplified(self, function: str, arguments: Sequence[int]) -> int | None:
        """Drop additions of zero and products with one, of which derivatives are full."""
        values = [self.value_at(address) for address in arguments]
        for one, other in ((0, 1), (1, 0)):
            if function == "add" and values[one] == 0.0:
                return int(arguments[other])
            if function == "mul" and values[one] == 1.0:
                return int(arguments[other])
        if function == "sub" and values[1] == 0.0:
            return int(arguments[0])
        if function == "div" and values[1] == 1.0:
            return int(arguments[0])
        return None

    def contract(self, left: Addresses, right: Addresses) -> Addresses:
        """Matrix products (b, m, k) x (b, k, n) -> (b, m, n)."""
        batch, m, k = left.shape
        n = right.shape[2]
        if k == 1 and not (m > 1 and n > 1):
            return self.map("mul", *np.broadcast_arrays(left, right))
        if batch * m * k * n <= 2 * SCALARS:
            total = self._product(left, right, 0)
            for i in range(1, k):
                total = self.map("add", total, self._product(left, right, i))
            return total
        irregular = self.access(left) is None or self.access(right) is None
        if irregular and k <= 4:
            # a stencil: a sum of shifted arrays, which needs no copies
            total = self._product(left, right, 0)
            for i in range(1, k):
                total = self.map("add", total, self._product(left, right, i))
            return total
        left, right = self._regular(left), self._regular(right)
        uniform = self.uniform(left, right)
        out = self.add_buffer("m" if not uniform else "n", batch * m * n, uniform=uniform, role="temporary")
        self.emit(Contract(out, left, right))
        return addresses_of(out).reshape(batch, m, n)

    def _product(self, left: Addresses, right: Addresses, i: int) -> Addresses:
        return self.map("mul", *np.broadcast_arrays(left[:, :, i, None], right[:, None, i, :]))

    def _regular(self, addresses: Addresses) -> Addresses:
        return addresses if self.access(addresses) is not None else self.copied(addresses)

    def reduce(self, function: str, source: Addresses) -> Addresses:
        """Reduce the last axis of (m, k)."""
        m, k = source.shape
        if k == 1:
            return source[:, 0]
        if m * k <= 2 * SCALARS:
            total = source[:, 0]
            for i in range(1, k):
                total = self.map(function, total, source[:, i])
            return total
        source = self._regular(source)
        uniform = self.uniform(source)
        out = self.add_buffer("r" if not uniform else "s", m, uniform=uniform, role="temporary")
        self.emit(Reduce(out, function, source))
        return addresses_of(out)

    def gather(self, table: Addresses, index: Addresses) -> Addresses:
        uniform = self.uniform(table, index)
        out = self.add_buffer("g" if not uniform else "h", index.size, uniform=uniform, role="temporary")
        self.emit(Gather(out, self._regular(table.reshape(-1)), index.reshape(-1)))
        return addresses_of(out).reshape(index.shape)

    def copied(self, source: Addresses) -> Addresses:
        """Make a buffer of its own for numbers that lie apart."""
        key = ("copy", source.shape, source.tobytes())
        if key not in self._known:
            uniform = self.uniform(source)
            out = self.add_buffer("c" if not uniform else "d", source.size, uniform=uniform, role="temporary")
            self.emit(Copy(out, np.ascontiguousarray(source).reshape(-1)))
            self._known[key] = addresses_of(out)
        return self._known[key].reshape(source.shape)

    # -- order ---------------------------------------------------------------------------------------------------
    def needed(self, outputs: Sequence[Addresses]) -> list[Operation]:
        """The operations that outputs depend on, in order."""
        wanted = {buffer for addresses in outputs for buffer in self.buffers_of(addresses)}
        kept: list[Operation] = []
        for operation in reversed(self.operations):
            if operation.out in wanted:
                kept.append(operation)
                for addresses in reads_of(operation):
                    wanted.update(self.buffers_of(addresses))
        return kept[::-1]


#: Arrays up to this size are unrolled to single numbers, among which the C compiler finds its own way.
SCALARS = 8


def addresses_of(buffer: Buffer) -> Addresses:
    return np.arange(buffer.start, buffer.start + buffer.numel, dtype=np.int64)


def reads_of(operation: Operation | Sink) -> tuple[Addresses, ...]:
    """What an operation or sink reads."""
    match operation:
        case Map(arguments=arguments):
            return arguments
        case Copy(source=source) | Reduce(source=source) | Added(source=source):
            return (source,)
        case Contract(left=left, right=right) | AddedProducts(left=left, right=right):
            return left, right
        case Gather(table=table, index=index):
            return table, index


def runs(addresses: Sequence[Addresses]) -> Iterator[tuple[int, int]]:
    """Cut (numel,) arrays into the longest pieces (start, length) in which each steps by a constant of its own."""
    size = addresses[0].size
    if size == 1:
        yield 0, 1
        return
    breaks = np.zeros(size - 1, dtype=bool)
    for part in addresses:
        steps = np.diff(part)
        breaks[1:] |= steps[1:] != steps[:-1]
    start = 0
    while start < size:
        # the step from `start` on decides; it holds up to the next change
        after = np.flatnonzero(breaks[start + 1 :])
        stop = size if not after.size else start + 1 + int(after[0]) + 1
        yield start, stop - start
        start = stop
