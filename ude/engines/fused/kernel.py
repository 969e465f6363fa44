"""A compiled kernel and how it is called: chunks of trajectories, with pointers to tensors."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from ude.compile.build import load
from ude.engines.base import SolveSpec, StepRecord
from ude.engines.fused.threads import run_on_threads
from ude.errors import EngineRefused

# Trajectories are worked on in chunks, whose number depends on how many there are and on nothing else, so that sums
# over chunks are the same for any number of threads. Chunks of fewer lanes' worth of trajectories would leave lanes
# idle at their ends; longer ones would leave threads idle.
_LEAST_FILLINGS = 8
_MOST_TRAJECTORIES = 2048


def _arguments(real: Any) -> type[ctypes.Structure]:
    """`Arguments` of c/common.h."""
    pointer = ctypes.c_void_p
    names: list[tuple[str, Any]] = [(name, pointer) for name in ("u0", "t0", "t1", "saveat")]
    names += [(name, ctypes.c_int64) for name in ("saves", "saveat_stride")]
    names += [
        (name, pointer) for name in ("values", "t_end", "u_end", "code", "accepted", "rejected", "calls", "jacobians")
    ]
    names += [(name, pointer) for name in ("abstol", "reltol")]
    names += [(name, real) for name in ("dt", "dtmin", "dtmax")]
    names += [(name, ctypes.c_int64) for name in ("maxiters", "adaptive", "keep")]
    names += [(name, pointer) for name in ("shared", "own", "uniform", "grad", "grad_u0", "grad_shared", "grad_own")]
    return type("Arguments", (ctypes.Structure,), {"_fields_": names})


ARGUMENTS = {torch.float64: _arguments(ctypes.c_double), torch.float32: _arguments(ctypes.c_float)}


@dataclass(frozen=True, eq=False)
class Layout:
    """What a caller must know of a kernel, and what is kept with it on disk.

    Args:
        own: Which leaves have a row a trajectory.
        wanted: Leaves that a gradient is computed of; None when the kernel has no reverse sweep.
        calls: Calls of f in an attempt, and beside in an accepted one; None when the kernel counts them.
    """

    states: int
    sizes: tuple[int, ...]
    own: tuple[bool, ...]
    wanted: tuple[bool, ...] | None
    uniform_size: int
    lanes: int
    dtype: torch.dtype
    calls: tuple[int, int] | None

    @cached_property
    def batched(self) -> bool:
        """Whether some leaf has a row a trajectory."""
        return any(self.own)

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """Sizes of the leaves that all trajectories have in common and a gradient is computed of."""
        wanted = self.wanted or (False,) * len(self.sizes)
        return tuple(size for size, mine, need in zip(self.sizes, self.own, wanted, strict=True) if need and not mine)


class Kernel:
    """A loaded kernel. `captured` gives the tensors that f refers to beside its leaves, as they are now."""

    def __init__(self, path: Any, layout: Layout) -> None:
        self.layout, self.path = layout, path
        library, pointer, integer = load(path), ctypes.c_void_p, ctypes.c_int64
        self.forward = _function(library, "ude_forward_team", pointer)
        self.free = _function(library, "ude_free", pointer)
        self.unpack = _function(library, "ude_unpack", pointer, integer, *[pointer] * 5)
        self.once = _function(library, "ude_once", pointer)
        self.evaluate = _function(library, "ude_evaluate", pointer, integer, integer, pointer)
        self.pullback = _function(library, "ude_pullback_team", pointer) if layout.wanted is not None else None

    def chunks(self, batch: int) -> array[int]:
        """First and last of each chunk of trajectories, one after the other."""
        lanes = self.layout.lanes
        size = max(_LEAST_FILLINGS * lanes, min(_MOST_TRAJECTORIES, -(-batch // (16 * lanes)) * lanes))
        return array("q", [end for first in range(0, batch, size) for end in (first, min(batch, first + size))])


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    try:
        found = getattr(library, name)
    except AttributeError:
        raise EngineRefused(
            "a compiled kernel lacks a function", got=name, fix="Clear the cache: ude cache --clear."
        ) from None
    found.argtypes, found.restype = list(arguments), None
    return found


@dataclass(frozen=True, eq=False)
class Prototype:
    """The arguments of a solve but for what is new every time, and the tensors that they point to."""

    arguments: Any
    held: tuple[Tensor, ...]

    @classmethod
    def of(cls, kernel: Kernel, spec: SolveSpec) -> Prototype:
        layout = kernel.layout
        dtype = layout.dtype
        t0, t1 = _plain(spec.t0, dtype), _plain(spec.t1, dtype)
        abstol, reltol = (_plain(_spread(one, layout.states), dtype) for one in (spec.abstol, spec.reltol))
        arguments = ARGUMENTS[dtype](
            t0=t0.data_ptr(),
            t1=t1.data_ptr(),
            abstol=abstol.data_ptr(),
            reltol=reltol.data_ptr(),
            dt=spec.dt or 0.0,
            dtmin=spec.dtmin,
            dtmax=spec.dtmax,
            maxiters=spec.maxiters,
            adaptive=int(spec.adaptive),
        )
        return cls(arguments, (t0, t1, abstol, reltol))

    def copy(self) -> Any:
        """Arguments of their own: a struct is copied much sooner than it is filled."""
        return type(self.arguments).from_buffer_copy(self.arguments)


@dataclass(eq=False)
class KernelCall:
    """The arguments of one solve, and everything that must stay where it is while the kernel may read it."""

    kernel: Kernel
    batch: int
    arguments: Any
    held: list[Any]
    times: Tensor | None = None

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        prototype: Prototype,
        u0: Tensor,
        leaves: Sequence[Tensor],
        captured: Sequence[Tensor],
    ) -> KernelCall:
        layout = kernel.layout
        dtype = layout.dtype
        plain = [_plain(leaf, dtype) for leaf in leaves]
        own: list[Tensor] = []
        shared = plain
        if layout.batched:
            own = [leaf for leaf, mine in zip(plain, layout.own, strict=True) if mine]
            shared = [leaf for leaf, mine in zip(plain, layout.own, strict=True) if not mine]
        shared += [_plain(tensor, dtype) for tensor in captured]
        start = _plain(u0, dtype)
        uniform = torch.empty(layout.uniform_size, dtype=dtype)
        shared_pointers, own_pointers = _pointers(shared), _pointers(own)
        arguments = prototype.copy()
        arguments.u0 = start.data_ptr()
        arguments.shared = shared_pointers.buffer_info()[0]
        arguments.own = own_pointers.buffer_info()[0]
        arguments.uniform = uniform.data_ptr()
        call = cls(
            kernel, u0.shape[0], arguments, [prototype, start, uniform, shared, own, shared_pointers, own_pointers]
        )
        kernel.once(ctypes.byref(arguments))
        return call

    def evaluate(self) -> Float[Tensor, "B n"]:
        """f at the start of every trajectory."""
        out = torch.empty(self.batch, self.kernel.layout.states, dtype=self.kernel.layout.dtype)
        self.kernel.evaluate(ctypes.byref(self.arguments), 0, self.batch, out.data_ptr())
        return out

    def saves(self, times: Float[Tensor, "B T"] | None) -> None:
        """Set the times that values are read at, or that cotangents belong to."""
        if times is None:
            self.arguments.saves = 0
            return
        if times is self.times:
            return
        # one row for all, or a row for each
        shared = times.shape[0] > 1 and times.stride(0) == 0 and times.stride(1) == 1
        read = times if shared else _plain(times, self.kernel.layout.dtype)
        self.times = times
        self.held.append(read)
        self.arguments.saveat = read.data_ptr()
        self.arguments.saves = read.shape[1]
        self.arguments.saveat_stride = 0 if shared else read.shape[1]


class Rows:
    """The rows of every chunk, in C's memory, freed with this object."""

    __slots__ = ("_free", "bounds", "records")

    def __init__(self, kernel: Kernel, bounds: array[int]) -> None:
        self.bounds, self._free = bounds, kernel.free
        self.records = array("Q", bytes(4 * len(bounds)))

    def __len__(self) -> int:
        return len(self.records)

    def __del__(self) -> None:
        for record in self.records:
            if record:
                self._free(record)

    def run(self, work: Any, arguments: Any, sums: int = 0, row: int = 0) -> bool:
        """Run a function over all chunks, each with a row of so many `sums`; whether there was memory enough."""
        count = len(self.records)
        bounds, records = self.bounds.buffer_info()[0], self.records.buffer_info()[0]
        # `Team` of c/team.h
        team = array("q", [ctypes.addressof(arguments), bounds, records, count, 0, sums, row, 0])
        run_on_threads(work, team.buffer_info()[0], count)
        return not team[-1]


@dataclass(eq=False)
class FusedRecord:
    """What a fused solve remembers; `rows` is None where they were not kept."""

    call: KernelCall
    t_end: Float[Tensor, "B"]
    u_end: Float[Tensor, "B n"]
    accepted: Int[Tensor, "B"]
    rows: Rows | None
    _steps: StepRecord | None = field(default=None)

    def steps(self) -> StepRecord:
        """The accepted steps as tensors, for whatever reads steps; made when first asked for."""
        if self._steps is None:
            self._steps = self._unpacked()
        return self._steps

    def _unpacked(self) -> StepRecord:
        kernel, batch = self.call.kernel, self.call.batch
        states, count = kernel.layout.states, int(self.accepted.max())
        dtype = kernel.layout.dtype
        t = self.t_end.unsqueeze(1).repeat(1, count + 1)
        dt = torch.zeros(batch, count, dtype=dtype)
        u = self.u_end.unsqueeze(1).repeat(1, count + 1, 1)
        k1 = torch.zeros(batch, count, states, dtype=dtype)
        packed_t, packed_u = t[:, :count].contiguous(), u[:, :count].contiguous()
        filled = torch.zeros(batch, dtype=torch.int64)
        for record in self.rows.records if self.rows is not None else ():
            kernel.unpack(record, count, filled.data_ptr(), *(x.data_ptr() for x in (packed_t, dt, packed_u, k1)))
        t[:, :count], u[:, :count] = packed_t, packed_u
        return StepRecord(
            t=t.T.contiguous(),
            dt=dt.T.contiguous(),
            u=u.transpose(0, 1).contiguous(),
            k1=k1.transpose(0, 1).contiguous(),
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a forward run gives. `counts` are return codes, accepted and rejected steps, calls of f and Jacobians."""

    values: Float[Tensor, "B T n"] | None
    t_end: Float[Tensor, "B"]
    end: Float[Tensor, "B n"]
    counts: Int[Tensor, "5 B"]
    rows: Rows | None


def run_forward(call: KernelCall, *, keep: bool) -> Outcome:
    """Integrate all chunks; with `keep`, rows for the way back are held."""
    kernel, batch, a = call.kernel, call.batch, call.arguments
    dtype, states = kernel.layout.dtype, kernel.layout.states
    values = None
    if a.saves:
        values = torch.empty(batch, a.saves, states, dtype=dtype)
        a.values = values.data_ptr()
    t_end, end = torch.empty(batch, dtype=dtype), torch.empty(batch, states, dtype=dtype)
    # methods that do not iterate leave the last two rows as they are, and nobody reads them
    make = torch.zeros if kernel.layout.calls is None else torch.empty
    counts = make(5, batch, dtype=torch.int64)
    a.t_end, a.u_end = t_end.data_ptr(), end.data_ptr()
    base, row = counts.data_ptr(), 8 * batch
    a.code, a.accepted, a.rejected, a.calls, a.jacobians = range(base, base + 5 * row, row)
    a.keep = int(keep)
    call.held += [counts, t_end]
    rows = Rows(kernel, kernel.chunks(batch))
    if not rows.run(kernel.forward, a):
        raise MemoryError("there is not enough memory for the steps of this solve; save fewer trajectories at once")
    return Outcome(values, t_end, end, counts, rows if keep else None)


def run_pullback(
    record: FusedRecord, times: Float[Tensor, "B T"], grad: Float[Tensor, "B T n"], leaves: Sequence[Tensor]
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull cotangents of the states at `times` (in the direction of integration) back to u0 and the leaves."""
    call = record.call
    kernel, batch, layout = call.kernel, call.batch, call.kernel.layout
    if layout.wanted is None or record.rows is None:
        raise EngineRefused("this kernel has no reverse sweep", fix="Solve again with gradients enabled.")
    again = KernelCall(kernel, batch, type(call.arguments).from_buffer_copy(call.arguments), [call], call.times)
    again.saves(times)
    a, dtype = again.arguments, layout.dtype
    grad = _plain(grad, dtype)
    grad_u0 = torch.empty(batch, layout.states, dtype=dtype)
    own = [torch.zeros(batch, size, dtype=dtype) for size, mine in zip(layout.sizes, layout.own, strict=True) if mine]
    own_pointers = _pointers(own)
    chunks, count = len(record.rows), sum(layout.shared)
    sums = torch.empty(chunks * count, dtype=dtype)
    a.grad, a.grad_u0, a.grad_own = grad.data_ptr(), grad_u0.data_ptr(), own_pointers.buffer_info()[0]
    if not record.rows.run(kernel.pullback, a, sums.data_ptr(), count):
        raise MemoryError("there is not enough memory for the gradient of this solve")
    total = sums if chunks == 1 else sums.view(chunks, count).sum(0)
    chosen = [leaf for leaf, mine, need in zip(leaves, layout.own, layout.wanted, strict=True) if need and not mine]
    # views of one tensor, made in one call
    parts, rest = iter(_unflatten_dense_tensors(total, chosen) if chosen else ()), iter(own)
    found: list[Tensor | None] = []
    for leaf, mine, need in zip(leaves, layout.own, layout.wanted, strict=True):
        part = next(rest).view(leaf.shape) if mine else next(parts) if need else None
        found.append(part if need else None)
    return grad_u0, tuple(found)


def _pointers(tensors: Sequence[Tensor]) -> array[int]:
    """Where tensors lie, as C reads it. Not an array type of ctypes, which would be a new one at every call."""
    return array("Q", [tensor.data_ptr() for tensor in tensors] or [0])


def _plain(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as the kernel reads it: contiguous numbers of its type."""
    if tensor.dtype == dtype and tensor.is_contiguous():
        return tensor
    return tensor.detach().to(dtype).contiguous()


@lru_cache(maxsize=64)
def _cached_spread(value: float, count: int, dtype: torch.dtype) -> Tensor:
    return torch.full((count,), value, dtype=dtype)


def _spread(tolerance: Tensor, count: int) -> Tensor:
    if tolerance.ndim == 0:
        return _cached_spread(tolerance.item(), count, tolerance.dtype)
    return tolerance
