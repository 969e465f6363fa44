"""The whole C program of a solve: right-hand side, method, controller, loop and reverse sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ude.engines.fused.codegen import esdirk, explicit, switching
from ude.engines.fused.codegen.render import Renderer, product_sinks
from ude.engines.fused.codegen.texts import text_of
from ude.engines.fused.graph.lower import Lowering, sinks_of
from ude.engines.fused.graph.program import Added, AddedProducts, Addresses, Contract, Map, Program, Sink, Unfusable
from ude.engines.fused.graph.sparsity import Pattern, dependence
from ude.engines.fused.graph.trace import trace_forward, trace_jacobian, trace_pullback
from ude.methods import Algorithm, AutoSwitch, ExplicitRungeKutta
from ude.methods.coloring import group_lines
from ude.methods.controller import SMALLEST_ERROR
from ude.methods.esdirk import DiagonallyImplicitRungeKutta

# Evaluations whose factors of weight gradients are held until they are multiplied, within this many bytes.
_RING_BYTES = 1 << 17
_MOST_SLOTS = 48


@dataclass(frozen=True, eq=False)
class Traced:
    """A right-hand side as a program.

    Args:
        own: Which leaves have a row a trajectory.
        captured: Tensors that f refers to beside its leaves; the kernel reads them afresh at every solve.
        frozen: Tensors of indices, whose numbers are part of the program.
    """

    program: Program
    states: int
    sizes: tuple[int, ...]
    own: tuple[bool, ...]
    wanted: tuple[bool, ...]
    captured: tuple[Tensor, ...]
    frozen: tuple[Tensor, ...]
    u: Addresses
    t: Addresses
    cotangent: Addresses
    du: Addresses
    of_u: Addresses | None
    sinks: tuple[Sink, ...]
    jacobian: Addresses | None = None
    rows: JacobianRows | None = None

    def work(self) -> tuple[int, int]:
        """Of one call of f: multiply-adds with matrices that all trajectories share, and pointwise results."""
        operations = [one for one in self.program.needed([self.du]) if not one.out.uniform]
        shared = [
            one
            for one in operations
            if isinstance(one, Contract) and (self.program.uniform(one.left) or self.program.uniform(one.right))
        ]
        return sum(prod(one.sizes) for one in shared), sum(one.out.numel for one in operations if isinstance(one, Map))


@dataclass(frozen=True, eq=False)
class JacobianRows:
    """A Jacobian that is put together of pullbacks: each gives all rows of one color, which share no column.

    Args:
        of_u: The cotangent of u that `Traced.cotangent` gives.
        pattern: Where the Jacobian may have entries, (row, column).
        color: The color of every row.
    """

    of_u: Addresses
    pattern: Pattern
    color: tuple[int, ...]

    @classmethod
    def of(cls, program: Program, of_u: Addresses, cotangent: Addresses) -> JacobianRows:
        pattern = dependence(program, of_u, cotangent).T
        rows, columns = np.nonzero(pattern)
        return cls(of_u, pattern, tuple(group_lines(len(pattern), rows.tolist(), columns.tolist())))


def trace_program(
    f: Callable[[Tensor, Sequence[Tensor], Tensor], Tensor],
    u: Tensor,
    leaves: Sequence[Tensor],
    t: Tensor,
    own: Sequence[bool],
    wanted: Sequence[bool] | None,
    *,
    jacobian: bool = False,
) -> Traced:
    """Trace f and (unless `wanted` is None) its pullback for one trajectory, and its Jacobian, into one program."""
    most = esdirk.MOST_STATES if jacobian else explicit.MOST_STATES
    if u.numel() > most:
        kind = "implicit" if jacobian else "explicit"
        raise Unfusable(f"{kind} methods are fused for up to {most} states, and u0 has {u.numel()}")
    program = Program()
    at_u = program.input("u", u.numel(), uniform=False)
    at_t = program.input("t", 1, uniform=False)
    at_g = program.input("g", u.numel(), uniform=False)
    at_leaves = [
        program.input(f"leaf{i}", leaf.numel(), uniform=not mine).reshape(tuple(leaf.shape))
        for i, (leaf, mine) in enumerate(zip(leaves, own, strict=True))
    ]
    captured: dict[int, tuple[Tensor, Addresses]] = {}

    def stand_in(tensor: Tensor) -> Addresses:
        if id(tensor) not in captured:
            name = f"captured{len(captured)}"
            at = program.input(name, tensor.numel(), uniform=True).reshape(tuple(tensor.shape))
            captured[id(tensor)] = (tensor, at)
        return captured[id(tensor)][1]

    lowering = Lowering(program)
    shaped = at_u.reshape(tuple(u.shape)), at_t.reshape(tuple(t.shape)), at_g.reshape(tuple(u.shape))
    module = trace_forward(f, u, leaves, t)
    (du,) = lowering.run(module, [shaped[0], *at_leaves, shaped[1]], stand_in)
    if du.shape != tuple(u.shape):
        raise Unfusable("f of a single trajectory does not return the shape of its state")
    of_u, sinks = None, []
    if wanted is not None:
        module = trace_pullback(f, u, leaves, t, wanted)
        of_u, *gradients = lowering.run(module, [shaped[0], *at_leaves, shaped[1], shaped[2]], stand_in)
        chosen = [i for i, need in enumerate(wanted) if need]
        for leaf, gradient in zip(chosen, gradients, strict=True):
            sinks += sinks_of(program, leaf, gradient, products=not own[leaf])
    of_state = rows = None
    if jacobian and u.numel() > esdirk.MOST_WRITTEN_OUT:
        pulled = of_u
        if pulled is None:
            module = trace_pullback(f, u, leaves, t, [False] * len(leaves))
            (pulled,) = lowering.run(module, [shaped[0], *at_leaves, shaped[1], shaped[2]], stand_in)
        rows = JacobianRows.of(program, pulled, at_g)
    elif jacobian:
        module = trace_jacobian(f, u, leaves, t)
        (of_state,) = lowering.run(module, [shaped[0], *at_leaves, shaped[1]], stand_in)
    return Traced(
        program=program,
        states=u.numel(),
        sizes=tuple(leaf.numel() for leaf in leaves),
        own=tuple(own),
        wanted=tuple(wanted) if wanted is not None else tuple(False for _ in leaves),
        captured=tuple(tensor for tensor, _ in captured.values()),
        frozen=tuple(lowering.frozen),
        u=at_u,
        t=at_t,
        cotangent=at_g,
        du=du,
        of_u=of_u,
        sinks=tuple(sinks),
        jacobian=of_state,
        rows=rows,
    )


@dataclass(frozen=True)
class Shape:
    """How numbers are laid out: the real type, lanes (trajectories side by side), neighbors of a wide vector."""

    dtype: torch.dtype
    lanes: int
    width: int

    @property
    def real(self) -> str:
        return "double" if self.dtype == torch.float64 else "float"


@dataclass(frozen=True, eq=False)
class Source:
    """A program's text, and what a caller of it must know."""

    text: str
    uniform_size: int


def write_source(traced: Traced, algorithm: Algorithm, controller: Any, shape: Shape) -> Source:
    """Write the C program."""
    renderer = Renderer(traced.program, shape.lanes, shape.width)
    gradient = traced.of_u is not None
    method, own_names = method_text(algorithm, gradient=gradient)
    functions = functions_of(traced, renderer)
    if gradient:
        functions.insert(1, _flush(traced, renderer))
        functions[2] = _counting(functions[2], traced)
    names = {**own_names, **macros(traced, shape), "MEMORY": len(controller.start())}
    once = "".join(f"    {line}\n" for line in renderer.once)
    loops = [text_of("lanes.h"), text_of("team.h")]
    if not gradient:
        loops = [text[: text.index("/* -- the reverse sweep")] for text in loops]
    parts = [
        "/* Generated by ude: a whole adaptive solve" + (" and its reverse sweep." if gradient else ".") + " */",
        "#include <math.h>\n#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>",
        _types(shape),
        "\n".join(f"#define {name} {value}" for name, value in names.items()),
        text_of("common.h"),
        "\n".join(renderer.static),
        _context(traced, renderer),
        "EXPORT void ude_once(const Arguments *a) {\n    Context context, *c = &context;\n    open_context(c, a);",
        f"{once}}}\n",
        *functions,
        _evaluate(),
        controller_source(controller, own_names["ERROR_ORDER"]),
        method,
        *loops,
    ]
    return Source("\n".join(parts), max(8, renderer.uniform_size))


def functions_of(traced: Traced, renderer: Renderer) -> list[str]:
    """f, and where they are asked for its pullback and its Jacobian."""
    arguments = "Context *c, const v_t *u, const v_t *t"
    functions = [renderer.function(f"void f({arguments}, v_t *restrict du)", {"du": traced.du})]
    if traced.of_u is not None:
        pull = f"void f_pull({arguments}, const v_t *g, v_t *restrict gu)"
        functions.append(renderer.function(pull, {"gu": traced.of_u}, traced.sinks))
    if traced.jacobian is not None:
        jacobian = f"void f_jacobian({arguments}, v_t *restrict jacobian)"
        functions.append(renderer.function(jacobian, {"jacobian": traced.jacobian}))
    if traced.rows is not None:
        pull = f"void f_rows({arguments}, const v_t *g, v_t *restrict gu)"
        functions += [renderer.function(pull, {"gu": traced.rows.of_u}), _jacobian_of_rows(traced.rows)]
    return functions


def _jacobian_of_rows(rows: JacobianRows) -> str:
    """The Jacobian of many states: pullbacks of the sums of unit vectors of each color."""
    count, size = max(rows.color) + 1, len(rows.pattern)
    color = np.array(rows.color)
    lines = [
        "static void f_jacobian(Context *c, const v_t *u, const v_t *t, v_t *restrict jacobian) {",
        "    v_t g[STATES], gu[STATES];",
    ]
    tables = []
    if count == size:
        # every row alone: nothing to tell apart
        chosen, copied = "n == turn", "for (int n = 0; n < STATES; n++) jacobian[turn * STATES + n] = gu[n];"
    else:
        row, column = np.nonzero(rows.pattern)
        order = np.argsort(color[row], kind="stable")
        starts = np.searchsorted(color[row][order], np.arange(count + 1))
        places = (row * size + column)[order]
        for name, numbers in (("color_of_row", color), ("first_entry", starts), ("entries", places)):
            tables.append(f"static const int {name}[] = {{{', '.join(map(str, numbers.tolist()))}}};")
        lines.append("    memset(jacobian, 0, STATES * STATES * sizeof(v_t));")
        chosen = "color_of_row[n] == turn"
        copied = (
            "for (int i = first_entry[turn]; i < first_entry[turn + 1]; i++) "
            "jacobian[entries[i]] = gu[entries[i] % STATES];"
        )
    lines += [
        f"    for (int turn = 0; turn < {count}; turn++) {{",
        f"        for (int n = 0; n < STATES; n++) g[n] = v_splat((real)({chosen}));",
        "        f_rows(c, u, t, g, gu);",
        f"        {copied}",
        "    }",
        "}",
        "",
    ]
    return "\n".join([*tables, *lines])


def method_text(algorithm: Algorithm, *, gradient: bool, rows: str = esdirk.ROWS) -> tuple[str, dict[str, Any]]:
    """The text of a method and its macros; `rows` as of `esdirk_method`."""
    if isinstance(algorithm, ExplicitRungeKutta):
        return explicit.explicit_method(algorithm.tableau, gradient=gradient), explicit.macros(algorithm.tableau)
    if isinstance(algorithm, AutoSwitch):
        return switching.switching_method(algorithm, gradient=gradient), switching.macros(algorithm)
    if isinstance(algorithm, DiagonallyImplicitRungeKutta):
        return esdirk.esdirk_method(algorithm, gradient=gradient, rows=rows), esdirk.macros(
            algorithm, gradient=gradient
        )
    raise Unfusable(f"{algorithm.name} has no fused form")


def _types(shape: Shape) -> str:
    math = text_of("vector_math.h")
    kinds = [("s_", 1), ("v_", shape.lanes)] if shape.lanes > 1 else [("v_", 1), ("w_", shape.width)]
    lines = [
        f"typedef {shape.real} real;",
        f"typedef {'int64_t' if shape.real == 'double' else 'int32_t'} mask;",
        '#define EXPORT __attribute__((visibility("default")))',
        "#define ALIGNED __attribute__((aligned(64)))",
    ]
    for prefix, lanes in kinds:
        lines += [
            f"#define VM_REAL {shape.real}",
            f"#define VM_LANES {lanes}",
            f"#define VM(name) {prefix}##name",
            math,
        ]
    if shape.lanes == 1:
        # single numbers are lanes of one
        lines += ["typedef v_t s_t;", "typedef v_i s_i;"]
        lines += [f"#define s_{name} v_{name}" for name in SINGLE_NAMES.split()]
    return "\n".join(lines)


SINGLE_NAMES = """
    splat select lt le gt ge eq ne any all hsum min max fmin fmax copysign abs floor ceil round trunc sqrt rsqrt exp
    expm1 exp2 log log1p log2 log10 tanh sigmoid sin cos tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc
    lgamma digamma pow hypot fmod remainder number
"""


def macros(traced: Traced, shape: Shape) -> dict[str, Any]:
    """What all parts of a program call by name, beside what belongs to the method."""
    precise = torch.finfo(shape.dtype)
    own = [size for size, mine in zip(traced.sizes, traced.own, strict=True) if mine]
    names: dict[str, Any] = {
        "LANES": shape.lanes,
        "STATES": traced.states,
        "OWN_LEAVES": len(own),
        "OWN_SIZE": max(1, sum(own)),
        "EPSILON": f"((real){precise.eps!r})",
        "RESOLUTION": f"((real){16 * precise.eps!r})",
        "TINIEST": f"((real){1e3 * precise.tiny!r})",
        "TINY": f"((real){1e-300 if shape.real == 'double' else 1e-37!r})",
        "SMALLEST_ERROR": f"((real){SMALLEST_ERROR!r})",
        "SLOTS": _slots(traced, shape),
    }
    place, shared = 0, 0
    for i, (size, mine) in enumerate(zip(traced.sizes, traced.own, strict=True)):
        if mine:
            names[f"leaf{i}"] = f"(c->own + {place})"
            place += size
        else:
            names[f"leaf{i}"] = f"(c->shared[{shared}])"
            shared += 1
    for i in range(len(traced.captured)):
        names[f"captured{i}"] = f"(c->shared[{shared + i}])"
    return names


def _slots(traced: Traced, shape: Shape) -> int:
    held = sum((len(sink.left) + len(sink.right)) * sink.left.shape[1] for _, sink in product_sinks(traced.sinks))
    size = 8 if shape.real == "double" else 4
    result: int = max(4, min(_MOST_SLOTS, _RING_BYTES // max(1, held * shape.lanes * size)))
    return result


def _context(traced: Traced, renderer: Renderer) -> str:
    """What the functions of a chunk work on: leaves, and the sums of their gradients."""
    added = _added(traced)
    products = product_sinks(traced.sinks)
    own = [size for size, mine in zip(traced.sizes, traced.own, strict=True) if mine]
    lines = [
        f"static const int own_sizes[] = {{{', '.join(map(str, own)) or '0'}}};",
        "typedef struct {",
        "    const real *const *shared;",
        "    v_t own[OWN_SIZE];",
        "    real *uniform;",
        "    int slot;",
        "    void *memory;",
    ]
    lines += [f"    v_t *added{leaf};" for leaf, _ in added]
    lines += [f"    real *total{leaf};" for leaf in sorted({sink.leaf for _, sink in products})]
    lines += [f"    v_t *left{i}, *right{i};" for i, _ in products]
    lines += [
        "} Context;",
        "static void open_context(Context *c, const Arguments *a) {",
        "    memset(c, 0, sizeof(*c));",
        "    c->shared = a->shared;",
        "    c->uniform = a->uniform;",
        "}",
    ]
    return "\n".join(lines)


def _added(traced: Traced) -> list[tuple[int, int]]:
    """Leaves whose gradients are added up number by number, with their sizes."""
    leaves = {sink.leaf for sink in traced.sinks if isinstance(sink, Added)}
    return [(leaf, traced.sizes[leaf]) for leaf in sorted(leaves)]


def _flush(traced: Traced, renderer: Renderer) -> str:
    """Opening and closing of a reverse sweep, and the products of the held factors."""
    added = _added(traced)
    products = product_sinks(traced.sinks)
    totals = sorted({sink.leaf for _, sink in products})
    sizes: list[tuple[str, str]] = [(f"added{leaf}", f"{size} * sizeof(v_t)") for leaf, size in added]
    sizes += [(f"total{leaf}", f"{traced.sizes[leaf]} * sizeof(real)") for leaf in totals]
    cleared = len(sizes)
    for i, sink in products:
        depth = sink.left.shape[1]
        for side, part in (("left", sink.left), ("right", sink.right)):
            sizes.append((f"{side}{i}", f"SLOTS * {depth * renderer.padded(len(part))} * sizeof(v_t)"))
    lines = [text_of("products.h"), "static void flush(Context *c) {"]
    for i, sink in products:
        depth, rows, columns = sink.left.shape[1], len(sink.left), len(sink.right)
        lines.append(
            f"    add_products(c->total{sink.leaf}, {rows}, {columns}, c->left{i}, {renderer.padded(rows)}, "
            f"c->right{i}, {renderer.padded(columns)}, c->slot * {depth});"
        )
    lines += ["    c->slot = 0;", "}", "static int open_pullback(Context *c, const Arguments *a) {"]
    lines += ["    size_t size = 64;", "    open_context(c, a);"]
    for place, (name, text) in enumerate(sizes):
        lines.append(f"    const size_t at_{name} = size; size += (({text}) + 63) / 64 * 64;")
        if place == cleared - 1:
            lines.append("    const size_t cleared = size;")
    # the factors behind are written before they are read, but for what fills up vectors
    lines += [
        "    if (posix_memalign(&c->memory, 64, size)) return 0;",
        f"    memset(c->memory, 0, {'cleared' if cleared else 'size'});",
    ]
    lines += [f"    c->{name} = (void *)((char *)c->memory + at_{name});" for name, _ in sizes]
    lines += ["    return 1;", "}", "static void close_pullback(Context *c, const Arguments *a) {", "    flush(c);"]
    place = 0
    for leaf, (size, mine, need) in enumerate(zip(traced.sizes, traced.own, traced.wanted, strict=True)):
        if mine or not need:
            continue
        terms = []
        if any(leaf == other for other, _ in added):
            terms.append(f"v_hsum(c->added{leaf}[i])")
        if leaf in totals:
            terms.append(f"c->total{leaf}[i]")
        text = " + ".join(terms) or "0"
        lines.append(f"    for (int i = 0; i < {size}; i++) a->grad_shared[{place} + i] = {text};")
        place += size
    lines += ["    free(c->memory);", "    (void)a;", "}"]
    lines.append("static void hand_in_own(Context *c, const Arguments *a, int lane, int64_t at) {")
    index = 0
    for leaf, (size, mine, need) in enumerate(zip(traced.sizes, traced.own, traced.wanted, strict=True)):
        if not mine:
            continue
        if need and any(leaf == other for other, _ in added):
            lines += [
                f"    for (int i = 0; i < {size}; i++) {{",
                f"        a->grad_own[{index}][at * {size} + i] = LANE(c->added{leaf}[i], lane);",
                f"        LANE(c->added{leaf}[i], lane) = 0;",
                "    }",
            ]
        index += 1
    return "\n".join([*lines, "    (void)c; (void)a; (void)lane; (void)at;", "}", ""])


def _counting(pull: str, traced: Traced) -> str:
    """Let the pullback take the next slot for its factors, and multiply them when all are taken."""
    if not product_sinks(traced.sinks):
        return pull
    return pull.rstrip()[:-1] + "    if (++c->slot == SLOTS) flush(c);\n}\n"


def _evaluate() -> str:
    """f at the start of every trajectory: compared with torch's before a kernel is believed."""
    return """static void load_own(Context *c, const Arguments *a, int lane, int64_t at);
EXPORT void ude_evaluate(const Arguments *a, int64_t first, int64_t last, real *out) {
    Context context;
    open_context(&context, a);
    for (int64_t group = first; group < last; group += LANES) {
        v_t u[STATES], du[STATES], t;
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t at = group + lane < last ? group + lane : group;
            for (int n = 0; n < STATES; n++) LANE(u[n], lane) = a->u0[at * STATES + n];
            LANE(t, lane) = a->t0[at];
            load_own(&context, a, lane, at);
        }
        f(&context, u, &t, du);
        for (int lane = 0; lane < LANES && group + lane < last; lane++)
            for (int n = 0; n < STATES; n++) out[(group + lane) * STATES + n] = LANE(du[n], lane);
    }
}
"""


# -- the controller ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Term:
    """A piece of C that the controller's arithmetic builds."""

    text: str

    def __mul__(self, other: Any) -> _Term:
        return _Term(f"({self.text} * {_c(other)})")

    def __rmul__(self, other: Any) -> _Term:
        return _Term(f"({_c(other)} * {self.text})")

    def __truediv__(self, other: Any) -> _Term:
        return _Term(f"({self.text} / {_c(other)})")

    def __rtruediv__(self, other: Any) -> _Term:
        return _Term(f"({_c(other)} / {self.text})")

    def __add__(self, other: Any) -> _Term:
        return _Term(f"({self.text} + {_c(other)})")

    def __sub__(self, other: Any) -> _Term:
        return _Term(f"({self.text} - {_c(other)})")

    def __radd__(self, other: Any) -> _Term:
        return _Term(f"({_c(other)} + {self.text})")

    def __rsub__(self, other: Any) -> _Term:
        return _Term(f"({_c(other)} - {self.text})")

    def __lt__(self, other: Any) -> _Term:
        return _Term(f"v_lt({self.text}, {_c(other)})")

    def __le__(self, other: Any) -> _Term:
        return _Term(f"v_le({self.text}, {_c(other)})")

    def __gt__(self, other: Any) -> _Term:
        return _Term(f"v_gt({self.text}, {_c(other)})")

    def __ge__(self, other: Any) -> _Term:
        return _Term(f"v_ge({self.text}, {_c(other)})")

    def __and__(self, other: Any) -> _Term:
        return _Term(f"({self.text} & {_c(other)})")


def _c(value: Any) -> str:
    return value.text if isinstance(value, _Term) else f"v_splat((real){float(value)!r})"


class _CArithmetic:
    """`Arithmetic` of the controllers, as C."""

    def minimum(self, x: Any, y: Any) -> _Term:
        return _Term(f"v_min({_c(x)}, {_c(y)})")

    def maximum(self, x: Any, y: Any) -> _Term:
        return _Term(f"v_max({_c(x)}, {_c(y)})")

    def power(self, x: Any, exponent: float) -> _Term:
        return _Term(f"v_pow({_c(x)}, v_splat((real){float(exponent)!r}))")

    def arctan(self, x: Any) -> _Term:
        return _Term(f"v_atan({_c(x)})")

    def where(self, condition: Any, x: Any, y: Any) -> _Term:
        return _Term(f"v_select({_c(condition)}, {_c(x)}, {_c(y)})")

    def round(self, x: Any) -> _Term:
        return _Term(f"v_round({_c(x)})")


def controller_source(controller: Any, order: int) -> str:
    """The controller's own formulas, run on pieces of C instead of numbers."""
    ops = _CArithmetic()
    start = controller.start()
    memory = tuple(_Term(f"memory[{i}]") for i in range(len(start)))
    error = _Term("error")
    accepts = controller.accepts(ops, error, memory, order)
    factor = controller.factor(ops, error, memory, _Term("accepted"), order)
    learnt = controller.remember(ops, error, memory)
    lines = [
        f"static const real controller_start[] = {{{', '.join(f'(real){x!r}' for x in start) or '0'}}};",
        "static inline v_i controller_accepts(v_t error, const v_t *memory) {",
        f"    (void)memory;\n    return {accepts.text};\n}}",
        "static inline v_t controller_factor(v_t error, const v_t *memory, v_i accepted) {",
        f"    (void)memory;\n    return {_c(factor)};\n}}",
        "static inline void controller_learn(v_t error, v_t *memory, v_i accepted) {",
        *(f"    const v_t new{i} = {_c(item)};" for i, item in enumerate(learnt)),
        *(f"    memory[{i}] = v_select(accepted, new{i}, memory[{i}]);" for i in range(len(learnt))),
        "    (void)error; (void)memory; (void)accepted;\n}\n",
    ]
    return "\n".join(lines)


__all__ = [
    "SINGLE_NAMES",
    "AddedProducts",
    "Shape",
    "Source",
    "Traced",
    "controller_source",
    "macros",
    "method_text",
    "trace_program",
    "write_source",
]
