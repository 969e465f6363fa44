"""A program in CUDA's words: one trajectory a thread, weights in shared memory where they fit.

What a step computes, and its reverse, is the text of the C program with one lane; this module replaces what languages
spell differently, and c/cuda.h has the kernels around it. Nothing here runs on a GPU yet: the text is generated, nvcc
compiles it, and its logic is tested on a CPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ude.engines.fused.codegen.family import FusedFamily
from ude.engines.fused.codegen.render import Renderer
from ude.engines.fused.codegen.source import (
    SINGLE_NAMES,
    Shape,
    controller_source,
    functions_of,
    macros,
)
from ude.engines.fused.codegen.texts import section, text_of
from ude.engines.fused.codegen.traced import Traced
from ude.engines.fused.graph.program import AddedProducts, Addresses

# Threads a block: registers are scarce, so that more would not be resident anyway.
_THREADS = 128
# What a block may declare statically on every device.
_SHARED_BYTES = 48 * 1024

_ROWS = """#define SEPARATE __noinline__
#define ROWS STATES
static inline int row_count(void) { return STATES; }

"""
_HEADS = (
    (re.compile(r"^((?:SEPARATE )?)static (inline )?", re.MULTILINE), r"\1__device__ static \2"),
    (re.compile(r"\brestrict\b"), "__restrict__"),
)


@dataclass
class CudaRenderer(Renderer):
    """Renders for one trajectory a thread; `places` says where the gradient of a leaf begins among a thread's sums."""

    places: tuple[int, ...] = ()

    # inlined into every stage, a network takes nvcc a minute to compile, and runs out of registers
    function_qualifier = "__device__ static __noinline__ "
    table_qualifier = "__device__ static const "
    array_qualifier = large_qualifier = ""

    @property
    def wide(self) -> bool:
        return False

    def accumulator(self, leaf: int, index: str) -> str:
        # threads' shares lie side by side
        return f"c->sums[({self.places[leaf]} + {index}) * c->stride]"

    def products(self, number: int, sink: AddedProducts) -> list[str]:
        """Outer products at once: to hold factors back would take memory that a thread has not."""
        rows, depth = sink.left.shape
        columns = sink.right.shape[0]
        lines = []
        for k in range(depth):
            left, first = self._factor("left", sink.left[:, k])
            right, second = self._factor("right", sink.right[:, k])
            target = self.accumulator(sink.leaf, f"m * {columns} + n")
            lines += ["{", *(f"    {line}" for line in first + second), f"    for (int m = 0; m < {rows}; m++)"]
            lines += [f"        for (int n = 0; n < {columns}; n++) {target} += {left('m')} * {right('n')};", "}"]
        return lines

    def _factor(self, name: str, part: Addresses) -> tuple[Any, list[str]]:
        """How a factor's numbers are read, and what must be done before."""
        part = np.ascontiguousarray(part)
        access = self.program.access(part)
        if access is not None and (part.size > 1 or access.buffer.numel > 1):
            buffer, offset, step = access.buffer, access.offset, access.strides[0]
            return lambda i: self.element(buffer, f"{offset} + {step} * {i}", prefix="v_"), []
        return lambda i: f"{name}[{i}]", [f"v_t {name}[{part.size}];", *self._stored(name, part)]


def write_cuda(traced: Traced, family: FusedFamily, controller: Any, dtype: torch.dtype) -> str:
    """Write the CUDA program."""
    gradient = traced.of_u is not None
    shape, places = Shape(dtype, 1, 1), _places(traced)
    renderer = CudaRenderer(traced.program, 1, 1, places=places)
    method, own_names = family.text(gradient=gradient, rows=_ROWS), family.macros(gradient=gradient)
    functions = functions_of(traced, renderer)
    uniform_size = max(8, renderer.uniform_size)
    offsets = _staged(traced, uniform_size, shape)
    names = {
        **{name: value for name, value in macros(traced, shape).items() if name not in ("LANES", "SLOTS")},
        **({} if offsets is None else {name: f"(c->staged + {offset})" for name, offset in offsets.items()}),
        **own_names,
        "MEMORY": len(controller.start()),
        "THREADS": _THREADS,
        "UNIFORM_SIZE": uniform_size,
        "SHARED_SUMS": sum(size for _, size in _wanted(traced, mine=False)),
        "SUMS": max(1, sum(size for mine in (False, True) for _, size in _wanted(traced, mine=mine))),
    }
    body = [
        section("common.h", "", "what an attempt works on"),
        *renderer.static,
        _context(traced, offsets),
        *functions,
        controller_source(controller, own_names["ERROR_ORDER"]),
        method,
        section("lanes.h", ""),
        section("cuda.h", "rows"),
        section("lanes.h", "one attempt"),
        section("cuda.h", "forward"),
    ]
    if gradient:
        body += [_hand_in_own(traced, places), section("lanes.h", "the reverse sweep"), section("cuda.h", "backward")]
    title = "a whole adaptive solve" + (" and its reverse sweep" if gradient else "")
    return "\n".join(
        [
            f"/* Generated by ude: {title}, for nvcc. */",
            section("cuda.h", ""),
            "#include <math.h>\n#include <stdint.h>\n#include <string.h>",
            "/* not every program calls every function */\n#pragma nv_diag_suppress 177",
            f"typedef {shape.real} real;",
            text_of("cuda_math.h"),
            *(f"#define s_{name} v_{name}" for name in SINGLE_NAMES.split()),
            *(f"#define {name} {value}" for name, value in names.items()),
            _in_cuda("\n".join(body)),
            _once(renderer),
        ]
    )


def _in_cuda(text: str) -> str:
    for pattern, replacement in _HEADS:
        text = pattern.sub(replacement, text)
    return text


def _wanted(traced: Traced, *, mine: bool) -> list[tuple[int, int]]:
    """Leaves that a gradient is computed of, with their sizes: those of each trajectory, or those of all."""
    return [
        (leaf, traced.sizes[leaf])
        for leaf, (own, need) in enumerate(zip(traced.own, traced.wanted, strict=True))
        if need and own is mine
    ]


def _places(traced: Traced) -> tuple[int, ...]:
    """Where the gradient of each leaf begins among a thread's sums; first those that all threads share in."""
    places, next_place = [0] * len(traced.sizes), 0
    for mine in (False, True):
        for leaf, size in _wanted(traced, mine=mine):
            places[leaf], next_place = next_place, next_place + size
    return tuple(places)


def _staged(traced: Traced, uniform_size: int, shape: Shape) -> dict[str, int] | None:
    """Where in shared memory lies what all trajectories have in common, by name; None where it does not fit."""
    parts = {
        **{f"leaf{i}": size for i, (size, mine) in enumerate(zip(traced.sizes, traced.own, strict=True)) if not mine},
        **{f"captured{i}": tensor.numel() for i, tensor in enumerate(traced.captured)},
    }
    offsets = dict(zip(parts, accumulate(parts.values(), initial=uniform_size), strict=False))
    size = uniform_size + sum(parts.values())
    return offsets if size * (8 if shape.real == "double" else 4) <= _SHARED_BYTES else None


def _context(traced: Traced, offsets: dict[str, int] | None) -> str:
    """What the functions of a thread work on: numbers that all have in common, its own, and its share of gradients."""
    own = [size for size, mine in zip(traced.sizes, traced.own, strict=True) if mine]
    lines = [
        f"static const int own_sizes[] = {{{', '.join(map(str, own)) or '0'}}};",
        "typedef struct {",
        "    const real *const *shared;",
        "    const real *staged;",
        "    real *uniform, *sums;",
        "    int64_t stride;",
        "    v_t own[OWN_SIZE];",
        "} Context;",
        "",
        "/* Called by all threads of a block; what `ude_once` computes is there where `uniform` is not zero. */",
        "static void open_context(Context *c, const Arguments *a, int uniform) {",
        "    memset(c, 0, sizeof(*c));",
        "    c->shared = a->shared;",
        "    c->uniform = a->uniform;",
    ]
    if offsets is None:
        return "\n".join([*lines, "    (void)uniform;", "}", ""])
    sizes = [size for size, mine in zip(traced.sizes, traced.own, strict=True) if not mine]
    sizes += [tensor.numel() for tensor in traced.captured]
    copy = "    for (int i = threadIdx.x; i < {size}; i += blockDim.x) staged[{offset} + i] = {source}[i];"
    lines.append(f"    __shared__ real staged[UNIFORM_SIZE + {sum(sizes)}];")
    for i, (size, offset) in enumerate(zip(sizes, offsets.values(), strict=True)):
        lines.append(copy.format(size=size, offset=offset, source=f"a->shared[{i}]"))
    lines += [
        "    if (uniform) {",
        "    " + copy.format(size="UNIFORM_SIZE", offset=0, source="a->uniform"),
        "        c->uniform = staged;",
        "    }",
        "    __syncthreads();",
        "    c->staged = staged;",
        "}",
        "",
    ]
    return "\n".join(lines)


def _hand_in_own(traced: Traced, places: Sequence[int]) -> str:
    """The gradients of leaves that each trajectory has a row of."""
    lines = ["static void hand_in_own(Context *c, const Arguments *a, int lane, int64_t at) {"]
    own = [leaf for leaf, mine in enumerate(traced.own) if mine]
    for leaf, size in _wanted(traced, mine=True):
        lines += [
            f"    for (int i = 0; i < {size}; i++) {{",
            f"        a->grad_own[{own.index(leaf)}][at * {size} + i] = c->sums[({places[leaf]} + i) * c->stride];",
            f"        c->sums[({places[leaf]} + i) * c->stride] = 0;",
            "    }",
        ]
    return "\n".join([*lines, "    (void)c; (void)a; (void)lane; (void)at;", "}", ""])


def _once(renderer: CudaRenderer) -> str:
    """What is the same all the time is computed by a launch of its own."""
    lines = [
        'extern "C" __global__ void ude_once(const __grid_constant__ Arguments a) {',
        "    Context context, *c = &context;",
        "    open_context(c, &a, 0);",
        "    if (thread_of_grid() != 0) return;",
        *(f"    {line}" for line in renderer.once),
        "}",
        "",
    ]
    return "\n".join(lines)
