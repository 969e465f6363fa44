"""Where the time of one solve goes: CPU microseconds of one trajectory, from `solve` to the gradient, part by part.

The least of many rounds, since other people's work on the same machine only ever adds. "Cold" parts are timed inside of
whole gradients, where torch's code has pushed them out of the processor's caches; "alone" again and again by
themselves. What torch itself takes for the loss and its graph is what a solve of no cost would leave.

Run: ``python -m benchmarks.fused_overhead`` (writes benchmarks/fused_overhead.md).
"""

from __future__ import annotations

import ctypes
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import fused_cases as cases
from benchmarks import handwritten
from benchmarks.fused_cases import Case
from benchmarks.fused_speed import CORES, bind, conditions
from ude.engines import FUSED
from ude.engines.fused import engine as fused_engine
from ude.engines.fused.kernel import FusedRecord

ROUNDS, CALLS = 200, 20


def least(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Microseconds of CPU time a call, at least."""
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(CALLS):
            run()
        best = min(best, time.process_time() - began)
    return 1e6 * best / CALLS


@contextmanager
def clocked(owner: Any, name: str, spent: list[float], kept: dict[str, Any]) -> Iterator[None]:
    """Time every call of a function or method, and keep what the last one returned."""
    inner = getattr(owner, name)
    own = name in vars(owner)

    def outer(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        kept[name] = found = inner(*given, **named)
        spent.append(1e6 * (time.perf_counter() - began))
        kept[f"{name} of"] = given
        return found

    setattr(owner, name, outer)
    try:
        yield
    finally:
        setattr(owner, name, inner) if own else delattr(owner, name)


def inside(case: Case) -> dict[str, float]:
    """The parts inside of whole gradients; a decile, since single calls can be interrupted."""
    parts = {
        "recall: is all as it was": (FUSED, "recall"),
        "forward: arguments, kernel, outcome": (FUSED, "forward"),
        "pullback: arguments, kernel, leaves": (FUSED, "pullback"),
    }
    found = {}
    for label, (owner, name) in parts.items():
        spent: list[float] = []
        with clocked(owner, name, spent, {}):
            for _ in range(ROUNDS * CALLS // 4):
                case.gradient("fused")
        found[label] = sorted(spent)[len(spent) // 10]
    return found


def kernels(case: Case) -> tuple[float, float]:
    """The compiled program alone: the solve and its reverse sweep."""
    kept: dict[str, Any] = {}
    with clocked(FUSED, "forward", [], kept), clocked(fused_engine, "run_pullback", [], kept):
        case.gradient("fused")
    record = kept["forward"].record
    if not isinstance(record, FusedRecord) or record.rows is None:
        raise AssertionError("the fused engine keeps rows for a gradient")
    _, _, cotangents, _ = kept["run_pullback of"]
    kernel, arguments = record.call.kernel, record.call.arguments
    bounds, rows = array("q", [0, 1]), array("Q", [0])
    places = ctypes.addressof(arguments), bounds.buffer_info()[0], rows.buffer_info()[0]

    def forward() -> None:
        team = array("q", [*places, 1, 0, 0, 0, 0])
        kernel.forward(team.buffer_info()[0])
        kernel.free(rows[0])

    there = least(forward)
    again = type(arguments).from_buffer_copy(arguments)
    of_u0, sums = torch.empty(case.prob.u0.numel(), dtype=cases.DOUBLE), torch.empty(1 << 16, dtype=cases.DOUBLE)
    again.grad, again.grad_u0 = cotangents.data_ptr(), of_u0.data_ptr()
    own = record.rows.records.buffer_info()[0]
    places_back = ctypes.addressof(again), bounds.buffer_info()[0], own

    def back() -> None:
        team = array("q", [*places_back, 1, 0, sums.data_ptr(), 0, 0])
        kernel.pullback(team.buffer_info()[0])

    return there, least(back)


class _Nothing(torch.autograd.Function):
    """A solve that costs nothing: values and a gradient that are there already."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*leaves)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return (None, *(torch.empty_like(leaf) for leaf in ctx.saved_tensors))


def table(case: Case) -> list[str]:
    """Lines of one case."""
    leaves = list(case.net.parameters()) if case.net is not None else []
    values = case.solve("fused").u.detach()
    whole = least(lambda: case.gradient("fused"))
    there, back = kernels(case)
    rows = {
        "whole: solve, loss, gradient": whole,
        "torch alone: loss and graph of a solve of no cost": least(
            lambda: case.gradient_of(_Nothing.apply(values, *leaves))
        ),
        "solve alone, with a graph": least(lambda: case.solve("fused")),
        "compiled solve alone": there,
        "compiled reverse sweep alone": back,
        **{f"cold, {label}": one for label, one in inside(case).items()},
    }
    return [f"| {label} | {one:.1f} |" for label, one in rows.items()]


def main() -> str:
    """Write the table and return it."""
    bind(CORES[:1])
    torch.set_num_threads(1)
    lotka = cases.lotka_volterra_case(32, 1)
    lines = ["# Where the time of one solve goes", "", *(__doc__ or "").split("\n\n")[1].splitlines(), "", conditions()]
    for title, case in {"Lotka-Volterra UDE": lotka, "spiral neural ODE": cases.spiral_case(1e-6)}.items():
        lines += ["", f"| {title} | CPU us |", "|---|---|", *table(case)]
        if case is lotka and lotka.net is not None:
            by_hand = handwritten.gradient_of(lotka.net, lotka.prob.u0.reshape(1, 2), lotka.saveat, lotka.reltol)
            lines.append(f"| for comparison, solve and gradient in C by hand, no graph | {least(by_hand):.1f} |")
    text = "\n".join([*lines, ""])
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    return text


if __name__ == "__main__":
    print(main())
