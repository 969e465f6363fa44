"""A compiled kernel and how it is called: chunks of trajectories, on threads of Python, with pointers to tensors."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ude.engines.engine import SolveSpec, StepRecord
from ude.engines.fused.build import load
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


_ARGUMENTS = {torch.float64: _arguments(ctypes.c_double), torch.float32: _arguments(ctypes.c_float)}


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


class Kernel:
    """A loaded kernel. `captured` gives the tensors that f refers to beside its leaves, as they are now."""

    def __init__(self, path: Any, layout: Layout) -> None:
        self.layout, self.path = layout, path
        library = load(path)
        pointer = ctypes.c_void_p
        self.forward = library.ude_forward
        self.forward.argtypes = [pointer, ctypes.c_int64, ctypes.c_int64, pointer]
        self.free = library.ude_free
        self.free.argtypes, self.free.restype = [pointer], None
        self.unpack = library.ude_unpack
        self.unpack.argtypes, self.unpack.restype = [pointer, ctypes.c_int64, *[pointer] * 5], None
        self.once = library.ude_once
        self.once.argtypes, self.once.restype = [pointer], None
        self.evaluate = library.ude_evaluate
        self.evaluate.argtypes, self.evaluate.restype = [pointer, ctypes.c_int64, ctypes.c_int64, pointer], None
        self.pullback: Any = None
        if layout.wanted is not None:
            self.pullback = library.ude_pullback
            self.pullback.argtypes = [pointer, ctypes.c_int64, ctypes.c_int64, pointer]

    def chunks(self, batch: int) -> list[tuple[int, int]]:
        lanes = self.layout.lanes
        size = max(_LEAST_FILLINGS * lanes, min(_MOST_TRAJECTORIES, -(-batch // (16 * lanes)) * lanes))
        return [(first, min(batch, first + size)) for first in range(0, batch, size)]


@dataclass(eq=False)
class Call:
    """The arguments of one solve, and everything that must stay where it is while the kernel may read it."""

    kernel: Kernel
    batch: int
    arguments: Any
    held: list[Any]

    @classmethod
    def of(
        cls, kernel: Kernel, spec: SolveSpec, u0: Tensor, leaves: Sequence[Tensor], captured: Sequence[Tensor]
    ) -> Call:
        layout = kernel.layout
        dtype = layout.dtype
        batch = u0.shape[0]
        shared: list[Tensor] = []
        own: list[Tensor] = []
        for leaf, mine in zip(leaves, layout.own, strict=True):
            (own if mine else shared).append(_plain(leaf, dtype))
        shared += [_plain(tensor, dtype) for tensor in captured]
        tensors = [_plain(u0, dtype), _plain(spec.t0, dtype), _plain(spec.t1, dtype)]
        tolerances = [_plain(_spread(one, layout.states), dtype) for one in (spec.abstol, spec.reltol)]
        uniform = torch.empty(layout.uniform_size, dtype=dtype)
        shared_pointers = (ctypes.c_void_p * max(1, len(shared)))(*[tensor.data_ptr() for tensor in shared])
        own_pointers = (ctypes.c_void_p * max(1, len(own)))(*[tensor.data_ptr() for tensor in own])
        arguments = _ARGUMENTS[dtype](
            u0=tensors[0].data_ptr(),
            t0=tensors[1].data_ptr(),
            t1=tensors[2].data_ptr(),
            abstol=tolerances[0].data_ptr(),
            reltol=tolerances[1].data_ptr(),
            dt=spec.dt or 0.0,
            dtmin=spec.dtmin,
            dtmax=spec.dtmax,
            maxiters=spec.maxiters,
            adaptive=int(spec.adaptive),
            shared=ctypes.cast(shared_pointers, ctypes.c_void_p),
            own=ctypes.cast(own_pointers, ctypes.c_void_p),
            uniform=uniform.data_ptr(),
        )
        call = cls(kernel, batch, arguments, [tensors, tolerances, uniform, shared, own, shared_pointers, own_pointers])
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
        times = times.detach()
        # one row for all, or a row for each
        shared = times.shape[0] > 1 and times.stride(0) == 0 and times.stride(1) == 1
        times = times if shared else times.to(self.kernel.layout.dtype).contiguous()
        self.held.append(times)
        self.arguments.saveat = times.data_ptr()
        self.arguments.saves = times.shape[1]
        self.arguments.saveat_stride = 0 if shared else times.shape[1]


@dataclass(eq=False)
class FusedRecord:
    """What a fused solve remembers: the rows of each chunk, in C's memory, freed with this object."""

    call: Call
    t0: Float[Tensor, "B"]
    t_end: Float[Tensor, "B"]
    u_end: Float[Tensor, "B n"]
    accepted: Int[Tensor, "B"]
    rows: list[tuple[int, int, int]]
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
        for _, _, record in self.rows:
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
    """What a forward run gives."""

    values: Float[Tensor, "B T n"] | None
    t_end: Float[Tensor, "B"]
    end: Float[Tensor, "B n"]
    code: Int[Tensor, "B"]
    accepted: Int[Tensor, "B"]
    rejected: Int[Tensor, "B"]
    rows: list[tuple[int, int, int]]
    calls: Int[Tensor, "B"]
    jacobians: Int[Tensor, "B"]


def run_forward(call: Call, *, keep: bool) -> Outcome:
    """Integrate all chunks; with `keep`, rows for the way back are held."""
    kernel, batch, a = call.kernel, call.batch, call.arguments
    dtype, states = kernel.layout.dtype, kernel.layout.states
    values = torch.empty(batch, a.saves, states, dtype=dtype) if a.saves else None
    t_end, end = torch.empty(batch, dtype=dtype), torch.empty(batch, states, dtype=dtype)
    counts = torch.zeros(5, batch, dtype=torch.int64)
    a.values = values.data_ptr() if values is not None else None
    a.t_end, a.u_end = t_end.data_ptr(), end.data_ptr()
    base, row = counts.data_ptr(), 8 * batch
    a.code, a.accepted, a.rejected, a.calls, a.jacobians = (base + i * row for i in range(5))
    a.keep = int(keep)
    call.held += [counts, t_end]
    chunks = kernel.chunks(batch)
    records = (ctypes.c_void_p * len(chunks))()
    size, start = ctypes.sizeof(ctypes.c_void_p), ctypes.addressof(records)
    pointer = ctypes.byref(a)
    failed = _on_threads(lambda i: kernel.forward(pointer, *chunks[i], start + i * size), len(chunks))
    rows = [(*chunk, record) for chunk, record in zip(chunks, records, strict=True) if record]
    for _, _, record in rows:
        weakref.finalize(call, kernel.free, record)
    if any(failed):
        raise MemoryError("there is not enough memory for the steps of this solve; save fewer trajectories at once")
    code, accepted, rejected, calls, jacobians = counts
    return Outcome(values, t_end, end, code, accepted, rejected, rows, calls, jacobians)


def run_pullback(
    record: FusedRecord, times: Float[Tensor, "B T"], grad: Float[Tensor, "B T n"]
) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
    """Pull cotangents of the states at `times` (in the direction of integration) back to u0 and the flat leaves."""
    call = record.call
    kernel, batch, layout = call.kernel, call.batch, call.kernel.layout
    if layout.wanted is None:
        raise EngineRefused("this kernel has no reverse sweep", fix="Solve again with gradients enabled.")
    a = type(call.arguments).from_buffer_copy(call.arguments)
    again = Call(kernel, batch, a, [call])
    again.saves(times)
    dtype = layout.dtype
    grad = _plain(grad, dtype)
    grad_u0 = torch.empty(batch, layout.states, dtype=dtype)
    leaves = list(zip(layout.sizes, layout.own, layout.wanted, strict=True))
    shared = [size for size, mine, need in leaves if need and not mine]
    own = [torch.zeros(batch, size, dtype=dtype) if mine else None for size, mine, _ in leaves]
    own_pointers = (ctypes.c_void_p * max(1, len(leaves)))(*[x.data_ptr() for x in own if x is not None])
    chunks = record.rows
    sums = torch.empty(len(chunks), max(1, sum(shared)), dtype=dtype)
    a.grad, a.grad_u0 = grad.data_ptr(), grad_u0.data_ptr()
    a.grad_own = ctypes.cast(own_pointers, ctypes.c_void_p)

    def pull(i: int) -> int:
        mine = type(a).from_buffer_copy(a)
        mine.grad_shared = sums[i].data_ptr()
        first, last, rows = chunks[i]
        failed: int = kernel.pullback(ctypes.byref(mine), first, last, rows)
        return failed

    if any(_on_threads(pull, len(chunks))):
        raise MemoryError("there is not enough memory for the gradient of this solve")
    total = sums[0] if len(chunks) == 1 else sums.sum(0)
    parts = iter(total.split(shared) if shared else ())
    found = tuple(
        (own_part if mine else next(parts)) if need else None
        for (_, mine, need), own_part in zip(leaves, own, strict=True)
    )
    return grad_u0, found


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


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ude")


def _on_threads(work: Callable[[int], int], count: int) -> list[int]:
    """Run work(0..count - 1): calls into C let go of Python's lock, so its threads serve."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        return [work(i) for i in range(count)]
    return list(_pool(torch.get_num_threads()).map(work, range(count)))
