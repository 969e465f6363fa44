"""The fused engine: chooses, builds and calls kernels; whatever a kernel cannot do is the torch engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ude.compile.build import compile_kernel, surroundings, why_no_compiler
from ude.compile.fingerprint import Fingerprint, fingerprint
from ude.compile.kernel_store import leave, take
from ude.engines.base import NO_CHECKS, ForwardResult, PlainEngine, SolveSpec, StepRecord, as_batch, differentiable
from ude.engines.fused.codegen.cuda import write_cuda
from ude.engines.fused.codegen.family import FusedFamily
from ude.engines.fused.codegen.source import Shape, family_class, family_of, write_source
from ude.engines.fused.codegen.traced import Traced, trace_program
from ude.engines.fused.graph.program import Unfusable
from ude.engines.fused.graph.trace import line_of
from ude.engines.fused.kernel import (
    FusedRecord,
    Kernel,
    KernelCall,
    Layout,
    Outcome,
    Prototype,
    run_forward,
    run_pullback,
)
from ude.engines.fused.result import FusedResult
from ude.engines.fused.solve_cache import SolveCache
from ude.engines.torch.engine import TorchEngine
from ude.errors import EngineRefused
from ude.problems.find_interpolations import interpolations_in
from ude.problems.inspection import Inspection, inspect_once
from ude.problems.ode import FlatRightHandSide, ODEProblem

# Trajectories side by side in one vector: two registers of AVX2, whose latencies hide each other.
_LANES = {torch.float64: 4, torch.float32: 8}
# Neighbors in one vector where there is one trajectory.
_WIDTH = {torch.float64: 4, torch.float32: 8}
# Fewer trajectories than this go one after another: lanes would stand idle.
_FEW = 3
# How far a kernel's f may lie from torch's: the order of sums differs, and functions by a few units in the last place.
_AGREEMENT = 1e-9
# Calls of f in the torch engine after which compiling a kernel (a second or two) pays.
PATIENCE = 20_000
# What a gradient costs, in solves.
WORK_OF_A_GRADIENT = 4
_MOST_REMEMBERED = 1000
# Where torch overtakes. In multiply-adds of a call of f, a kernel saves as much by one pointwise result, and by torch's
# dispatch of a call for the whole batch. Fitted to a Lotka-Volterra UDE of two hidden layers of 8 to 512 neurons: a
# kernel takes 4.5e-5 of such a solve's milliseconds for a multiply-add of a trajectory, torch 2.5e-5.
_PRODUCTS_OF_A_RESULT = 28
_PRODUCTS_OF_DISPATCH = 4_000_000
# Of c/common.h, beside the return codes.
_TURNED_STIFF = -1


@dataclass(frozen=True, eq=False)
class _Bound:
    """A kernel made fast to a solve.

    Args:
        captured: The tensors that f refers to beside its leaves.
        frozen: Those whose numbers became part of the program, with these numbers.
    """

    kernel: Kernel
    prototype: Prototype
    captured: tuple[Tensor, ...]
    frozen: tuple[tuple[Tensor, Tensor], ...]

    def fits(self) -> bool:
        """Whether the numbers that became part of the program are those that f refers to."""
        return all(torch.equal(now, known) for now, known in self.frozen)


@dataclass(frozen=True, eq=False)
class _Built:
    """A kernel, and where among the fingerprint's tensors those stand that f refers to (itself, if it made it).

    Args:
        frozen: Indices whose numbers are part of the program, and what they were.
        plain: Whether f has no interpolation and no switches, at which a solve may have to stop.
        work: As of `Traced.work`.
    """

    kernel: Kernel
    places: tuple[int | Tensor, ...]
    frozen: tuple[tuple[int | Tensor, Tensor], ...]
    plain: bool
    work: tuple[int, int]

    def pays(self, trajectories: int) -> bool:
        """Whether the kernel is quicker than torch, whose matrix products of a batch are twice as quick as C's."""
        products, pointwise = self.work
        return products <= _PRODUCTS_OF_A_RESULT * pointwise + _PRODUCTS_OF_DISPATCH / max(1, trajectories)

    def bound(self, spec: SolveSpec, print_: Fingerprint) -> _Bound:
        """The kernel for a solve whose right-hand side has this fingerprint."""
        captured = tuple(_tensor_at(place, print_) for place in self.places)
        frozen = tuple((_tensor_at(place, print_), known) for place, known in self.frozen)
        return _Bound(self.kernel, Prototype.of(self.kernel, spec), captured, frozen)


@dataclass(frozen=True, eq=False)
class _HandedOn:
    """What the torch engine remembers of a solve that a kernel gave up, and that solve with its first derivative."""

    spec: SolveSpec
    record: Any

    @property
    def u_end(self) -> Tensor:
        end: Tensor = self.record.u_end
        return end


@dataclass(frozen=True, eq=False)
class _Asked:
    """What a kernel must fit: everything that it was made of, its key."""

    key: tuple[Any, ...]
    print: Fingerprint
    wanted: tuple[bool, ...] | None
    own: tuple[bool, ...]
    few: bool


class FusedEngine(PlainEngine):
    """Runs explicit and diagonally implicit Runge-Kutta methods as generated C programs, and their reverse sweep."""

    name = "fused"
    keeps_steps = True

    def __init__(self) -> None:
        self._fallback = TorchEngine()
        self._bound: WeakKeyDictionary[SolveSpec, _Bound] = WeakKeyDictionary()
        self._looked: WeakKeyDictionary[SolveSpec, _Asked] = WeakKeyDictionary()
        self._built: dict[tuple[Any, ...], _Built | str] = {}
        # what could not be compiled or loaded, with the compiler and the folders that it was tried with
        self._failed: dict[tuple[Any, ...], str] = {}
        self._spent: dict[tuple[Any, ...], int] = {}
        self._prepared = SolveCache()

    def forget(self) -> None:
        """Forget kernels and counted calls of this process; kernels on disk stay there."""
        self._bound.clear()
        self._looked.clear()
        self._built.clear()
        self._failed.clear()
        self._spent.clear()
        self._prepared.clear()

    # -- choice ------------------------------------------------------------------------------------------------------
    def why_not(self, spec: SolveSpec) -> str | None:
        if spec in self._bound:
            return None
        reason = _why_not_spec(spec)
        if reason is not None:
            return reason
        found = self._kernel(spec)
        if isinstance(found, str):
            return found
        self._bound[spec] = found
        return None

    def is_ready(self, spec: SolveSpec) -> bool:
        """Whether there is a kernel for this solve already, compared with f, and f has no knots to stop at."""
        if not self._built or _why_not_spec(spec) is not None:
            return False
        asked = self._asked(spec)
        built = self._built.get(asked.key)
        if not isinstance(built, _Built) or not built.plain or not built.pays(spec.t0.shape[0]):
            return False
        bound = built.bound(spec, asked.print)
        fits = bound.fits()
        if fits:
            self._bound[spec] = bound
        return fits

    def recall(self, prob: ODEProblem, options: Sequence[Any], saveat: Any) -> SolveSpec | None:
        """The solve that `prepare` was given for this problem and these options, if all of it is as it was then."""
        spec = self._prepared.find(prob, options, saveat)
        bound = None if spec is None else self._bound.get(spec)
        return spec if bound is not None and bound.fits() else None

    def prepare(self, prob: ODEProblem, options: Sequence[Any], saveat: Any, spec: SolveSpec) -> None:
        """Keep a solve that `is_ready`, for `recall`."""
        self._prepared.put(prob, options, saveat, spec)

    def why_wait(self, spec: SolveSpec) -> str | None:
        reason = _why_not_spec(spec)
        if reason is not None:
            return reason
        asked = self._asked(spec)
        # counted in calls and not in seconds, so that the same program takes the same engines every time
        if asked.key not in self._built and self._spent.get(asked.key, 0) < PATIENCE:
            return "a kernel is compiled once this right-hand side has been called often enough for that to pay"
        if isinstance(self._kernel(spec), str):
            return None  # `why_not` says it
        built = self._built[asked.key]
        if isinstance(built, _Built) and not built.pays(spec.t0.shape[0]):
            return "torch multiplies this batch by matrices of this size in less time than a kernel"
        return None

    def learn(self, spec: SolveSpec, calls: int) -> None:
        asked = self._looked.get(spec)
        if asked is None:
            return
        if len(self._spent) > _MOST_REMEMBERED:
            self._spent.clear()
        self._spent[asked.key] = self._spent.get(asked.key, 0) + calls * (WORK_OF_A_GRADIENT if spec.gradient else 1)

    def _asked(self, spec: SolveSpec) -> _Asked:
        """What a kernel for this solve must fit."""
        asked = self._looked.get(spec)
        if asked is None:
            u0, leaves = _start(spec)
            print_ = fingerprint(spec.f, known=leaves)
            wanted = tuple(differentiable(leaves)) if spec.gradient else None
            shapes = tuple(leaf.shape for leaf in leaves)
            few, own = u0.shape[0] < _FEW, _own(spec, leaves)
            states = u0.shape[1], len(spec.batch)
            key = (print_.key, spec.algorithm, spec.controller, u0.dtype, states, few, wanted, shapes, own)
            asked = self._looked[spec] = _Asked(key, print_, wanted, own, few)
        return asked

    def _kernel(self, spec: SolveSpec) -> _Bound | str:
        asked = self._asked(spec)
        refusal = asked.print.why_not or why_no_compiler()
        if refusal is not None:
            return refusal
        built = self._built.get(asked.key)
        if isinstance(built, _Built):
            bound = built.bound(spec, asked.print)
            if bound.fits():
                return bound
        if isinstance(built, str):
            return built
        tried = (*asked.key, surroundings())
        if tried in self._failed:
            return self._failed[tried]
        if len(self._built) + len(self._failed) > _MOST_REMEMBERED:
            self._built.clear()
            self._failed.clear()
        try:
            built = self._built[asked.key] = self._build(spec, asked)
        except (EngineRefused, OSError) as failure:
            # other engines can run the solve all the same
            reason = self._failed[tried] = _told(failure)
            return reason
        return built if isinstance(built, str) else built.bound(spec, asked.print)

    def _build(self, spec: SolveSpec, asked: _Asked) -> _Built | str:
        """Find the kernel that an earlier process left, or trace f and compile one."""
        u0, leaves = _start(spec)
        found = self._from_disk(spec, asked)
        if found is not None:
            return found
        u, one, t = _single(spec, u0, leaves, asked.own)
        inspection = _inspection(spec, u, one, t)
        reason = inspection.why_not_traced()
        if reason is not None:
            return reason
        try:
            traced = _traced(spec, asked)
            shape = _shape(spec, asked)
            source = write_source(traced, _method(spec), spec.controller, shape)
        except Unfusable as refusal:
            return str(refusal) + (line_of(spec.f, u, one, t, refusal.operator) if refusal.operator else "")
        if fingerprint(spec.f, known=leaves).key != asked.print.key:
            return "f changes something outside of it while it runs (a counter, a list), which a kernel would not do"
        path = compile_kernel(source.text)
        kernel = Kernel(path, _layout(spec, asked, source.uniform_size, shape))
        frozen = tuple((place, tensor.clone()) for place, tensor in _places(traced.frozen, asked.print))
        captured = tuple(place for place, _ in _places(traced.captured, asked.print))
        known = isinstance(spec.f, FlatRightHandSide) and not interpolations_in(spec.f.f, *spec.f.modules)
        plain = known and inspection.plain
        built = _Built(kernel, captured, frozen, plain, traced.work())
        wrong = _disagreement(kernel, spec, traced.captured)
        if wrong is None:
            work = built.work
            leave(_on_disk(spec, asked), path, source.uniform_size, captured, frozen, plain=plain, work=work)
        return wrong or built

    def _from_disk(self, spec: SolveSpec, asked: _Asked) -> _Built | None:
        found = take(_on_disk(spec, asked))
        if found is None:
            return None
        try:
            kernel = Kernel(found.path, _layout(spec, asked, found.uniform_size, _shape(spec, asked)))
        except EngineRefused:
            return None
        built = _Built(kernel, found.places, found.frozen, found.plain, found.work)
        # it was made of the same code, but is believed only as far as it can be seen
        bound = built.bound(spec, asked.print)
        return built if bound.fits() and _disagreement(kernel, spec, bound.captured) is None else None

    # -- solves ------------------------------------------------------------------------------------------------------
    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        bound = self._bound.get(spec)
        if bound is None:
            # a larger system that a sensitivity algorithm made of this one
            return self._fallback.forward(spec, u0, p)
        noted = _NOTED.get()
        if noted is not None:
            noted.append((Path(bound.kernel.path), spec))
        call = KernelCall.of(bound.kernel, bound.prototype, u0, p, bound.captured)
        call.saves(spec.saveat)
        keep = spec.saveat is None or spec.gradient
        out = run_forward(call, keep=keep)
        stiff_at = _stiff_at(spec, out)
        if stiff_at is not None:
            reason = f"a trajectory turned stiff at t = {stiff_at:.4g}, and kernels do not switch"
            return self._hand_on(spec, u0, p, reason)
        record = FusedRecord(call, out.t_end, out.end, out.counts[1], out.rows)
        fresh = spec.saveat is not None and out.values is not None
        if spec.saveat is None or out.values is None:
            steps = record.steps()
            times, values = steps.t.T.contiguous(), steps.u.transpose(0, 1).contiguous()
        else:
            times, values = spec.saveat, out.values
        calls, chosen = bound.kernel.layout.calls, spec.dt is None
        return FusedResult(
            times,
            values,
            record,
            (out.counts, calls, chosen),
            out.t_end,
            fresh=fresh,
            switches=torch.zeros_like(out.counts[0]) if _switches(spec) else None,
        )

    def _hand_on(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor], reason: str) -> ForwardResult:
        """Solve again in the torch engine."""
        with torch.no_grad():
            # a solve that was ready came without it
            spec = replace(spec, first_du=as_batch(spec, u0, spec.t0, p))
        result = self._fallback.forward(spec, u0, p)
        return replace(result, record=_HandedOn(spec, result.record), handed_on=(self._fallback.name, reason))

    def pullback(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        if not isinstance(record, FusedRecord):
            return self._fallback.pullback(*self._steps(spec, record), p, times, grad)
        if times is not spec.saveat:
            # reads of the dense output come in any order
            direction = spec.sign.unsqueeze(-1)
            times, order = (times * direction).sort(dim=1)
            times = times * direction
            grad = grad.gather(1, order.unsqueeze(-1).expand_as(grad))
        return run_pullback(record, times, grad, p)

    # -- what reads the steps is the torch engine's --------------------------------------------------------------------
    def _steps(self, spec: SolveSpec, record: Any) -> tuple[SolveSpec, StepRecord]:
        if isinstance(record, _HandedOn):
            return record.spec, record.record
        if not isinstance(record, FusedRecord):
            return spec, record
        if record.rows is None and record._steps is None and int(record.accepted.max()) > 0:
            # the rows were not kept: take the same steps again
            record.rows = run_forward(record.call, keep=True).rows
        return spec, record.steps()

    def interpolate(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        return self._fallback.interpolate(*self._steps(spec, record), p, times)

    def dense(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor]
    ) -> Callable[[Float[Tensor, "B"]], Float[Tensor, "B n"]]:
        return self._fallback.dense(*self._steps(spec, record), p)

    def replay(
        self, spec: SolveSpec, record: Any, u0: Float[Tensor, "B n"], p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        return self._fallback.replay(*self._steps(spec, record), u0, p, times)

    def quadrature_nodes(
        self, spec: SolveSpec, record: Any, p: Sequence[Tensor], rule: Literal["own", "gauss"] = "own"
    ) -> Iterator[tuple[Float[Tensor, "B n"], Float[Tensor, "B"], Float[Tensor, "B"]]]:
        return self._fallback.quadrature_nodes(*self._steps(spec, record), p, rule)

    def cuda(self, spec: SolveSpec) -> str:
        """The program of a solve that was noted, in CUDA's words."""
        traced = _traced(spec, self._asked(spec))
        return write_cuda(traced, _method(spec), spec.controller, _start(spec)[0].dtype)

    @contextmanager
    def noting(self) -> Iterator[list[tuple[Path, SolveSpec]]]:
        """Note which kernels run inside of a ``with``, as the paths of their libraries, and what they solve."""
        noted: list[tuple[Path, SolveSpec]] = []
        token = _NOTED.set(noted)
        try:
            yield noted
        finally:
            _NOTED.reset(token)


# of this thread or task only
_NOTED: ContextVar[list[tuple[Path, SolveSpec]] | None] = ContextVar("kernels", default=None)


def _told(failure: EngineRefused | OSError) -> str:
    """Why there is no kernel, in one sentence."""
    if not isinstance(failure, EngineRefused):
        return f"the kernel could not be written or compiled: {failure}"
    said = failure.got.strip().splitlines()
    remedy = failure.fix.strip().rstrip(".")
    return failure.what + (f": {said[0].strip()}" if said else "") + (f" ({remedy})" if remedy else "")


def _stiff_at(spec: SolveSpec, out: Outcome) -> float | None:
    """When a trajectory turned stiff; None where none did."""
    if not _switches(spec):
        return None
    turned = (out.counts[0] == _TURNED_STIFF).nonzero()
    return float(out.t_end[turned[0]]) if len(turned) else None


def _method(spec: SolveSpec) -> FusedFamily:
    family = family_of(spec.algorithm)
    if family is None:
        raise AssertionError("_why_not_spec was not asked")
    return family


def _switches(spec: SolveSpec) -> bool:
    family = family_class(type(spec.algorithm))
    return family is not None and family.switches


def _start(spec: SolveSpec) -> tuple[Tensor, tuple[Tensor, ...]]:
    if spec.start is None:
        raise AssertionError("_why_not_spec was not asked")
    return spec.start


def _why_not_spec(spec: SolveSpec) -> str | None:
    """What is plain without looking at f."""
    if spec.start is None:
        return "events and stops cut the solve into legs, which the torch engine runs"
    u0, leaves = spec.start
    family = family_of(spec.algorithm)
    reason = f"{spec.algorithm.name} has no fused form" if family is None else family.why_not(spec)
    if reason is not None:
        return reason
    if spec.mass is not None or spec.jac is not None or spec.coloring is not None:
        return "mass matrices and Jacobians given by the user are the torch engine's"
    if spec.watch is not None or spec.resume is not None:
        return "events and stops are handled between the steps of the torch engine"
    if spec.force_dtmin or spec.checks is not NO_CHECKS:
        return "force_dtmin and checks of every step (isoutofdomain and the like) run in the torch engine"
    if spec.checkpoints != "all":
        return "checkpoints are kept by the torch engine"
    if u0.device.type != "cpu" or any(leaf.device.type != "cpu" for leaf in leaves):
        return "kernels run on the CPU, and the problem lies on another device"
    if u0.dtype not in _LANES:
        return f"kernels work on float64 and float32, and u0 is {u0.dtype}"
    wrong = next((leaf.dtype for leaf in leaves if leaf.is_floating_point() and leaf.dtype != u0.dtype), None)
    if wrong is not None:
        return f"a parameter is {wrong} and u0 is {u0.dtype}"
    if any(not leaf.is_floating_point() for leaf in leaves):
        return "a parameter is not a floating-point tensor"
    return None


def _single(
    spec: SolveSpec, u0: Tensor, leaves: Sequence[Tensor], own: Sequence[bool]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """One trajectory's state, leaves and time, in the shape that the author of f sees: with a batch, a batch of one."""
    ones = (1,) * len(spec.batch)
    detached = [leaf.detach() for leaf in leaves]
    rest = [tuple(leaf.shape[len(ones) :]) for leaf in leaves]
    one = [
        leaf.reshape(-1, *shape)[0].reshape(*ones, *shape) if mine else leaf
        for leaf, shape, mine in zip(detached, rest, own, strict=True)
    ]
    return u0[0].detach().reshape(*ones, -1), one, spec.t0[0].detach().reshape(ones)


def _inspection(spec: SolveSpec, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> Inspection:
    """What a call of f for one trajectory shows; nothing where f does not run, which its trace explains."""
    if not isinstance(spec.f, FlatRightHandSide):
        return Inspection()
    try:
        return inspect_once(spec.f, u, leaves, t, gradient=spec.gradient)
    except Exception:
        return Inspection()


def _traced(spec: SolveSpec, asked: _Asked) -> Traced:
    return trace_program(spec.f, _single(spec, *_start(spec), asked.own), asked.own, asked.wanted, _method(spec))


def _own(spec: SolveSpec, leaves: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which leaves have a row a trajectory: tensors of p, not of modules, whose first axes are the batch's."""
    batch = spec.batch
    if not batch or not isinstance(spec.f, FlatRightHandSide):
        return (False,) * len(leaves)
    return tuple(
        plain and tuple(leaf.shape[: len(batch)]) == batch
        for leaf, plain in zip(leaves, spec.f.plain_leaves(), strict=True)
    )


def _places(tensors: Sequence[Tensor], print_: Fingerprint) -> Iterator[tuple[int | Tensor, Tensor]]:
    for tensor in tensors:
        same = [i for i, other in enumerate(print_.tensors) if _same_memory(tensor, other)]
        yield (same[0] if same else tensor), tensor


def _tensor_at(place: int | Tensor, print_: Fingerprint) -> Tensor:
    return print_.tensors[place] if isinstance(place, int) else place


def _same_memory(x: Tensor, y: Tensor) -> bool:
    return x is y or (
        x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.numel() > 0
    )


def _shape(spec: SolveSpec, asked: _Asked) -> Shape:
    dtype = _start(spec)[0].dtype
    return Shape(dtype, 1 if asked.few else _LANES[dtype], _WIDTH[dtype])


def _layout(spec: SolveSpec, asked: _Asked, uniform_size: int, shape: Shape) -> Layout:
    u0, leaves = _start(spec)
    batch = max(1, u0.shape[0])
    return Layout(
        states=u0.shape[1],
        sizes=tuple(
            leaf.numel() // batch if mine else leaf.numel() for leaf, mine in zip(leaves, asked.own, strict=True)
        ),
        own=asked.own,
        wanted=asked.wanted,
        uniform_size=uniform_size,
        lanes=shape.lanes,
        dtype=u0.dtype,
        calls=_method(spec).calls(),
    )


def _on_disk(spec: SolveSpec, asked: _Asked) -> str | None:
    """The name under which a kernel is found again by another process; None where f has no name that lasts."""
    stable = asked.print.stable
    if stable is None:
        return None
    u0, leaves = _start(spec)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    # of a batch only the rows count, not how many there are
    rows = [shape[len(spec.batch) :] if mine else shape for shape, mine in zip(shapes, asked.own, strict=True)]
    what = (stable, spec.algorithm, spec.controller, u0.shape[1], len(spec.batch))
    name = repr((*what, rows, asked.own, asked.wanted, _shape(spec, asked)))
    # what prints as an address, such as a function given to the controller, has no name that lasts
    return None if " at 0x" in name else name


def _disagreement(kernel: Kernel, spec: SolveSpec, captured: Sequence[Tensor]) -> str | None:
    """Compare f of every trajectory with torch's, at the start and at random points near it, before a kernel is
    believed: what is frozen in a kernel agrees at the start."""
    u0, leaves = (_start(spec)[0].detach(), tuple(leaf.detach() for leaf in _start(spec)[1]))
    found = KernelCall.of(kernel, Prototype.of(kernel, spec), u0, leaves, captured).evaluate()
    if not _agree(found, spec.first_du):
        return (
            "f of a batch is not f of each trajectory, as far as ude can tell which of its tensors belong to one (give "
            "them in p with the batch's shape first)"
        )
    random = torch.Generator().manual_seed(0)
    u, *near = (_near(tensor, random) for tensor in (u0, *leaves))
    part = torch.rand(spec.t0.shape, generator=random, dtype=torch.float64).to(spec.t0)
    moved = replace(spec, t0=torch.lerp(spec.t0, spec.t1, part))
    found = KernelCall.of(kernel, Prototype.of(kernel, moved), u, near, captured).evaluate()
    try:
        with torch.no_grad():
            expected = as_batch(moved, u, moved.t0, near)
    except Exception:
        # f may check its arguments, and refuse these, which are nobody's
        return None
    if not _agree(found, expected):
        return "f at other u, p and t is not what was traced at the start: it depends on more than them"
    return None


def _near(tensor: Tensor, random: torch.Generator) -> Tensor:
    """Numbers near those of a tensor, of the same signs, so that roots and logarithms keep their domain."""
    noise = torch.rand(tensor.shape, generator=random, dtype=torch.float64).to(tensor)
    return tensor * (1 + 0.1 * (noise - 0.5))


def _agree(found: Tensor, expected: Tensor) -> bool:
    # where f has no number to compare with, it must have none in the kernel either
    scale = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax().clamp(min=1e-300)
    tolerance = _AGREEMENT if found.dtype == torch.float64 else 1e-4
    return torch.allclose(found, expected, rtol=tolerance, atol=float(scale) * tolerance, equal_nan=True)
