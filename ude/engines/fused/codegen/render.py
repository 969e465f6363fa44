"""From a `Program` to C: loops over arrays, or single numbers where arrays are short.

The text is written over two vector types (c/vector_math.h): `v_t` holds one number of each lane, and where there is one
lane only, `w_t` holds neighbors of an array. What is the same for all trajectories and times is computed once a solve,
by a function of its own (`Renderer.once`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ude.engines.fused.graph.operators import FUNCTIONS
from ude.engines.fused.graph.program import (
    Access,
    Added,
    AddedProducts,
    Addresses,
    Buffer,
    Contract,
    Copy,
    Gather,
    Map,
    Operation,
    Program,
    Reduce,
    Sink,
    reads_of,
    runs,
)

# More pieces than this are read through a table of indices.
_MOST_RUNS = 8
# Arrays of more numbers than this do not lie on the stack.
_LARGE = 4096
# Accumulators of a matrix product that stay in registers: columns a lane, and neighbors (in vectors) without lanes.
_COLUMNS = 8
_WIDE_COLUMNS = 8


@dataclass
class Renderer:
    """Renders the functions of one program; a subclass overrides the strings that another language spells differently.

    Args:
        lanes: Trajectories that one vector holds.
        width: Neighbors that one wide vector holds, where there is one lane.
    """

    program: Program
    lanes: int
    width: int
    static: list[str] = field(default_factory=list)
    once: list[str] = field(default_factory=list)
    uniform_size: int = 0
    _places: dict[Buffer, int] = field(default_factory=dict)
    _rendered_once: set[Buffer] = field(default_factory=set)
    _packed: dict[tuple[Buffer, int, tuple[int, ...], int], int] = field(default_factory=dict)
    _tables: dict[bytes, str] = field(default_factory=dict)

    #: Strings of the language.
    function_qualifier = "static "
    table_qualifier = "static const "
    array_qualifier = " ALIGNED"
    #: Of arrays that the stack of a thread may not have room for.
    large_qualifier = "static _Thread_local "

    @property
    def wide(self) -> bool:
        return self.lanes == 1

    # -- names -----------------------------------------------------------------------------------------------------
    def number(self, value: float) -> str:
        if math.isnan(value):
            return "(real)NAN"
        if math.isinf(value):
            return "(real)INFINITY" if value > 0 else "(real)-INFINITY"
        return f"(real){value!r}"

    def name(self, buffer: Buffer) -> str:
        """What the numbers of a buffer are elements of; of single numbers, the number itself."""
        if buffer.role == "table" and buffer not in self._places:
            self._places[buffer] = 0
            numbers = ", ".join(self.number(value) for value in buffer.values)
            self.static.append(f"{self.table_qualifier}real {buffer.name}[] = {{{numbers}}};")
        if buffer.role == "temporary" and buffer.uniform:
            if buffer not in self._places:
                self._places[buffer] = self._reserve(buffer.numel)
            return f"(c->uniform + {self._places[buffer]})"
        return buffer.name

    def _reserve(self, numel: int) -> int:
        place = self.uniform_size
        self.uniform_size += -(-numel // 8) * 8
        return place

    def element(self, buffer: Buffer, index: str, *, prefix: str) -> str:
        """One number as a vector of the kind `prefix`: "s_" single, "v_" lanes, "w_" neighbors."""
        if buffer.role == "constant":
            text = self.number(buffer.values[0])
            return f"{prefix}splat({text})"
        single = buffer.role == "temporary" and not buffer.uniform and buffer.numel == 1
        text = self.name(buffer) if single else f"{self.name(buffer)}[{index}]"
        if prefix == "s_" or (prefix == "v_" and not buffer.uniform):
            return text
        return f"{prefix}splat({text})"

    def at(self, address: int, prefix: str) -> str:
        buffer = self.program.buffer_at(address)
        return self.element(buffer, str(address - buffer.start), prefix=prefix)

    # -- functions -------------------------------------------------------------------------------------------------
    def function(self, signature: str, outputs: dict[str, Addresses], sinks: Sequence[Sink] = ()) -> str:
        """Render a function that computes outputs (arrays of `v_t` by name) and adds to the sinks."""
        wanted = [*outputs.values(), *(part for sink in sinks for part in reads_of(sink))]
        operations = self.program.needed(wanted)
        for operation in operations:
            if operation.out.uniform and operation.out not in self._rendered_once:
                self._rendered_once.add(operation.out)
                self.once += self.operation(operation, "s_")
        body = [operation for operation in operations if not operation.out.uniform]
        read_last = {buffer for addresses in wanted for buffer in self.program.buffers_of(addresses)}
        lines = self._block(body, read_last)
        for name, addresses in outputs.items():
            lines += self._stored(name, addresses.reshape(-1))
        for i, sink in enumerate(sinks):
            lines += self._sink(i, sink)
        return f"{self.function_qualifier}{signature} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"

    def _block(self, operations: Sequence[Operation], read_last: set[Buffer]) -> list[str]:
        """Render operations in order; maps over arrays of one length that follow each other share a loop."""
        lines: list[str] = []
        group: list[Map] = []
        for i, operation in enumerate(operations):
            if isinstance(operation, Map) and operation.out.numel > 1 and self._streams(operation):
                if group and not self._joins(operation, group):
                    lines += self._loop(group, self._read_after(group, operations[i:], read_last))
                    group = []
                group.append(operation)
                continue
            if group and not (
                isinstance(operation, Map) and operation.out.numel == 1 and not self._touches(operation, group)
            ):
                lines += self._loop(group, self._read_after(group, operations[i:], read_last))
                group = []
            lines += self.operation(operation, "v_")
        if group:
            lines += self._loop(group, self._read_after(group, [], read_last))
        return lines

    def _joins(self, operation: Map, group: Sequence[Map]) -> bool:
        """Whether a map can share the loop of a group: what it reads of the group, it reads at its own place."""
        made = {one.out for one in group}
        for part in operation.arguments:
            access = self._flat(part)
            if access is not None and access.buffer in made and (access.offset, access.strides) != (0, (1,)):
                return False
        return group[0].out.numel == operation.out.numel

    def _touches(self, operation: Operation, group: Sequence[Map]) -> bool:
        made = {one.out for one in group}
        return any(buffer in made for part in reads_of(operation) for buffer in self.program.buffers_of(part))

    def _read_after(self, group: Sequence[Map], rest: Sequence[Operation], read_last: set[Buffer]) -> set[Buffer]:
        read = set(read_last)
        for operation in rest:
            for part in reads_of(operation):
                read.update(self.program.buffers_of(part))
        return read & {one.out for one in group}

    def _streams(self, operation: Map) -> bool:
        """Whether every argument steps through one buffer, or stands still, over the whole length."""
        return all(self._flat(part) is not None for part in operation.arguments)

    def _flat(self, addresses: Addresses) -> Access | None:
        return self.program.access(addresses)

    def _loop(self, group: Sequence[Map], stored: set[Buffer]) -> list[str]:
        """One loop for maps of one length; what is not read later is not stored."""
        count = group[0].out.numel
        lines = [self.declare(operation.out) for operation in group if operation.out in stored]
        made = {operation.out for operation in group}
        steps = {
            access.strides[0]
            for operation in group
            for part in operation.arguments
            if (access := self._flat(part)) is not None
        }
        vector = self.wide and steps <= {0, 1} and count >= self.width

        def body(prefix: str) -> list[str]:
            inner = []
            for operation in group:
                parts = [self._streamed(part, made, prefix) for part in operation.arguments]
                text = FUNCTIONS[operation.function].format(*parts, p=prefix)
                inner.append(f"const {prefix}t {operation.out.name}_ = {text};")
                if operation.out in stored:
                    if prefix == "w_":
                        inner.append(f"w_store({operation.out.name} + i, {operation.out.name}_);")
                    else:
                        inner.append(f"{operation.out.name}[i] = {operation.out.name}_;")
            return inner

        if not vector:
            return [*lines, f"for (int i = 0; i < {count}; i++) {{", *(f"    {line}" for line in body("v_")), "}"]
        whole = count - count % self.width
        lines += [f"for (int i = 0; i < {whole}; i += {self.width}) {{", *(f"    {line}" for line in body("w_")), "}"]
        if whole < count:
            lines += [f"for (int i = {whole}; i < {count}; i++) {{", *(f"    {line}" for line in body("v_")), "}"]
        return lines

    def _streamed(self, part: Addresses, made: set[Buffer], prefix: str) -> str:
        access = self._flat(part)
        if access is None:
            raise AssertionError("only streams are grouped")
        buffer, (step,) = access.buffer, access.strides
        if buffer in made and step == 1 and access.offset == 0:
            return f"{buffer.name}_"
        if step == 0:
            return self.element(buffer, str(access.offset), prefix=prefix)
        place = f"{access.offset} + " + ("i" if step == 1 else f"{step} * i")
        if prefix == "w_":
            return f"w_load({self.name(buffer)} + {place})"
        return self.element(buffer, place, prefix=prefix)

    # -- operations ------------------------------------------------------------------------------------------------
    def declare(self, buffer: Buffer) -> str:
        if buffer.uniform:
            return f"/* {buffer.name} */"
        if buffer.numel == 1:
            return f"v_t {buffer.name};"
        numel = self.padded(buffer.numel)
        qualifier = self.large_qualifier if numel * self.lanes > _LARGE else ""
        return f"{qualifier}v_t {buffer.name}[{numel}]{self.array_qualifier};"

    def padded(self, numel: int) -> int:
        """Room for whole wide vectors, so that loops need no remainder."""
        return -(-numel // self.width) * self.width if self.wide else numel

    def operation(self, operation: Operation, prefix: str) -> list[str]:
        match operation:
            case Map():
                return self._map(operation, prefix)
            case Copy():
                return self._pieces(operation.out, [operation.source], lambda parts, _: parts[0], prefix)
            case Contract():
                return self._contract(operation, prefix)
            case Reduce():
                return self._reduce(operation, prefix)
            case Gather():
                return self._gather(operation, prefix)

    def _map(self, operation: Map, prefix: str) -> list[str]:
        template = FUNCTIONS[operation.function]
        if operation.out.numel == 1:
            text = template.format(*(self.at(int(part[0]), prefix) for part in operation.arguments), p=prefix)
            if operation.out.uniform:
                return [f"{self.element(operation.out, '0', prefix='s_')} = {text};"]
            return [f"const v_t {operation.out.name} = {text};"]
        return self._pieces(
            operation.out, operation.arguments, lambda parts, kind: template.format(*parts, p=kind), prefix
        )

    def _pieces(
        self, out: Buffer, arguments: Sequence[Addresses], write: Callable[[Sequence[str], str], str], prefix: str
    ) -> list[str]:
        """``out[i] = write(arguments[i])`` for arguments that are patched together of several runs."""
        lines = [self.declare(out)]
        target = self.name(out)
        pieces = list(runs(arguments))
        period = pieces[0][1]
        if len(pieces) > 2 and period > 1 and out.numel % period == 0:
            rows = self._in_rows(out, arguments, write, prefix, period)
            if rows is not None:
                return [*lines, *rows]
        if len(pieces) > _MOST_RUNS and all(len(self.program.buffers_of(part)) == 1 for part in arguments):
            parts = [self._tabled(part, prefix) for part in arguments]
            return [*lines, f"for (int i = 0; i < {out.numel}; i++) {target}[i] = {write(parts, prefix)};"]
        for start, length in pieces:
            inside = [part[start : start + length] for part in arguments]
            accesses = [self.program.access(part) for part in inside]
            known = [access for access in accesses if access is not None]
            if length < 3 or len(known) < len(accesses):
                for i in range(length):
                    text = write([self.at(int(part[i]), prefix) for part in inside], prefix)
                    lines.append(f"{target}[{start + i}] = {text};")
                continue
            parts = [
                self.element(access.buffer, f"{access.offset} + {access.strides[0]} * i", prefix=prefix)
                for access in known
            ]
            lines.append(f"for (int i = 0; i < {length}; i++) {target}[{start} + i] = {write(parts, prefix)};")
        return lines

    def _in_rows(
        self,
        out: Buffer,
        arguments: Sequence[Addresses],
        write: Callable[[Sequence[str], str], str],
        prefix: str,
        period: int,
    ) -> list[str] | None:
        """A loop over rows of equal length, such as a bias for every cell of a grid; None where the rows differ."""
        accesses = [self.program.access(part.reshape(-1, period)) for part in arguments]
        known = [access for access in accesses if access is not None]
        if len(known) < len(accesses):
            return None
        target, lines, start = self.name(out), [], 0
        if self.wide and prefix == "v_" and all(access.strides[1] in (0, 1) for access in known):
            start = period - period % self.width
        for first, stop, kind in ((0, start, "w_"), (start, period, prefix)):
            if first == stop:
                continue
            parts = [self._in_row(access, kind) for access in known]
            step = self.width if kind == "w_" else 1
            text, place = write(parts, kind), f"m * {period} + n"
            store = f"w_store({target} + {place}, {text});" if kind == "w_" else f"{target}[{place}] = {text};"
            lines.append(f"    for (int n = {first}; n < {stop}; n += {step}) {store}")
        return [f"for (int m = 0; m < {out.numel // period}; m++) {{", *lines, "}"]

    def _in_row(self, access: Access, prefix: str) -> str:
        place = _place(access, ("m", "n"))
        if prefix == "w_" and access.strides[1] == 1:
            return f"w_load({self.name(access.buffer)} + {place})"
        return self.element(access.buffer, place, prefix=prefix)

    def _tabled(self, part: Addresses, prefix: str) -> str:
        access = self.program.access(part)
        if access is not None:
            return self.element(access.buffer, f"{access.offset} + {access.strides[0]} * i", prefix=prefix)
        buffer = self.program.buffer_at(int(part[0]))
        return self.element(buffer, f"{self._index_table(part - buffer.start)}[i]", prefix=prefix)

    def _index_table(self, indices: Addresses) -> str:
        key = indices.tobytes()
        if key not in self._tables:
            self._tables[key] = f"places{len(self._tables)}"
            text = ", ".join(str(int(i)) for i in indices)
            self.static.append(f"{self.table_qualifier}int {self._tables[key]}[] = {{{text}}};")
        return self._tables[key]

    def _reduce(self, operation: Reduce, prefix: str) -> list[str]:
        access = self._regular(operation.source)
        count = operation.source.shape[1]
        target = self.name(operation.out)
        single = operation.out.numel == 1 and not operation.out.uniform
        first = self._pattern(access, ("m", "0"), prefix)
        following = self._pattern(access, ("m", "k"), prefix)
        step = FUNCTIONS[operation.function].format("sum", following, p=prefix)
        return [
            self.declare(operation.out),
            f"for (int m = 0; m < {operation.out.numel}; m++) {{",
            f"    {prefix}t sum = {first};",
            f"    for (int k = 1; k < {count}; k++) sum = {step};",
            f"    {target if single else f'{target}[m]'} = sum;",
            "}",
        ]

    def _gather(self, operation: Gather, prefix: str) -> list[str]:
        table = self._regular(operation.table)
        last = operation.table.size - 1
        lines = [self.declare(operation.out)]
        for i, address in enumerate(operation.index):
            index = self.at(int(address), prefix)
            target = self.element(operation.out, str(i), prefix="s_" if operation.out.uniform else "v_")
            uniform = table.buffer.uniform
            lines += [
                "{",
                f"    {prefix}t index = {index}, found = {prefix}splat(0);",
                "    for (int l = 0; l < (int)(sizeof index / sizeof(real)); l++) {",
                "        const real at = ((real *)&index)[l];",
                f"        const int place = at >= 0 ? (at <= {last} ? (int)at : {last}) : 0;",
                "        ((real *)&found)[l] = "
                + (
                    f"{self.name(table.buffer)}[{table.offset} + {table.strides[0]} * place];"
                    if uniform
                    else f"((const real *)&{self.name(table.buffer)}[{table.offset} + {table.strides[0]} * place])[l];"
                ),
                "    }",
                f"    {target} = found;",
                "}",
            ]
        return lines

    def _regular(self, addresses: Addresses) -> Access:
        access = self.program.access(addresses)
        if access is None:
            raise AssertionError("the program copies irregular operands")
        return access

    def _pattern(self, access: Access, indices: Sequence[str], prefix: str) -> str:
        return self.element(access.buffer, _place(access, indices), prefix=prefix)

    # -- matrix products -------------------------------------------------------------------------------------------
    def _contract(self, operation: Contract, prefix: str) -> list[str]:
        batch, m, k, n = operation.sizes
        left, right = self._regular(operation.left), self._regular(operation.right)
        out = Access(operation.out, 0, (m * n, n, 1))
        if n < m and (n == 1 or not self.wide):
            # the longer side is the one that is blocked
            left, right = _transposed(right), _transposed(left)
            m, n, out = n, m, _transposed(out)
        lines = [self.declare(operation.out)]
        body = (
            self._wide_product(left, right, out, m, k, n)
            if self.wide and prefix == "v_" and self._wide_pays(left, right, k, n)
            else self._blocked_product(left, right, out, m, k, n, prefix)
        )
        loops = [f"for (int b = 0; b < {batch}; b++)"] if batch > 1 else ["{ const int b = 0; (void)b;"]
        loops += [f"for (int m = 0; m < {m}; m++) {{"] if m > 1 else ["{ const int m = 0; (void)m;"]
        lines += [*loops, *(f"    {line}" for line in body), "}" if batch > 1 else "}}"]
        return lines

    def _blocked_product(
        self, left: Access, right: Access, out: Access, m: int, k: int, n: int, prefix: str
    ) -> list[str]:
        target = "s_" if out.buffer.uniform else "v_"
        lines: list[str] = []
        done = 0
        for columns in (_COLUMNS, 4, 2, 1):
            blocks = (n - done) // columns
            if not blocks:
                continue
            stop = done + blocks * columns
            lines.append(f"for (int n = {done}; n < {stop}; n += {columns}) {{")
            # few columns leave the adders idle: split the sum
            parts = 1 if columns == _COLUMNS or k < 8 or k % 2 else 2
            sums = [f"sum{j}_{part}" for j in range(columns) for part in range(parts)]
            lines.append(f"    {prefix}t " + ", ".join(f"{name} = {prefix}splat(0)" for name in sums) + ";")
            lines.append(f"    for (int k = 0; k < {k}; k += {parts}) {{")
            for part in range(parts):
                index = "k" if part == 0 else f"(k + {part})"
                lines.append(f"        const {prefix}t left{part} = {self._pattern(left, ('b', 'm', index), prefix)};")
                for j in range(columns):
                    column = "n" if j == 0 else f"(n + {j})"
                    y = self._pattern(right, ("b", index, column), prefix)
                    lines.append(f"        sum{j}_{part} += left{part} * {y};")
            lines.append("    }")
            for j in range(columns):
                column = "n" if j == 0 else f"(n + {j})"
                total = " + ".join(f"sum{j}_{part}" for part in range(parts))
                single = out.buffer.numel == 1 and not out.buffer.uniform
                place = self.name(out.buffer) if single else self._pattern(out, ("b", "m", column), target)
                lines.append(f"    {place} = {total};")
            lines.append("}")
            done = stop
        return lines

    def _wide_pays(self, left: Access, right: Access, k: int, n: int) -> bool:
        return n >= self.width or (k >= self.width and left.strides[2] == 1 and right.strides[1] == 1)

    def _wide_product(self, left: Access, right: Access, out: Access, m: int, k: int, n: int) -> list[str]:
        """Products of one trajectory: neighbors in a row of the result, or along the sum when the rows are short."""
        if n < self.width:
            return self._wide_dots(left, right, out, k, n)
        lines: list[str] = []
        if right.strides[2] == 1 and n % self.width == 0 and right.strides[0] == 0:
            source, row = f"{self.name(right.buffer)} + {right.offset}", right.strides[1]
        else:
            row = self.padded(n)
            source, packing = self._pack(right, k, n, row)
            lines += packing
        whole = self.padded(n)
        if out.strides[2] != 1 or (whole != n and m > 1):
            lines.append(f"v_t line[{whole}] ALIGNED;")
            target = "line"
        else:
            target = f"{self.name(out.buffer)} + {_place(out, ('b', 'm', '0'))}"
        done = 0
        for columns in (_WIDE_COLUMNS, 4, 2, 1):
            blocks = (whole - done) // (columns * self.width)
            if not blocks:
                continue
            stop = done + blocks * columns * self.width
            lines.append(f"for (int n = {done}; n < {stop}; n += {columns * self.width}) {{")
            # short sums of few vectors wait for each other: two of them at once
            parts = 2 if columns < _WIDE_COLUMNS and k >= 8 and k % 2 == 0 else 1
            sums = [f"sum{j}_{part}" for j in range(columns) for part in range(parts)]
            lines.append("    w_t " + ", ".join(f"{name} = w_splat(0)" for name in sums) + ";")
            lines.append(f"    for (int k = 0; k < {k}; k += {parts}) {{")
            for part in range(parts):
                index = "k" if part == 0 else f"(k + {part})"
                lines.append(f"        const w_t left{part} = {self._pattern(left, ('b', 'm', index), 'w_')};")
                for j in range(columns):
                    place = f"{source} + {index} * {row} + n" + (f" + {j * self.width}" if j else "")
                    lines.append(f"        sum{j}_{part} += left{part} * w_load({place});")
            lines.append("    }")
            for j in range(columns):
                total = " + ".join(f"sum{j}_{part}" for part in range(parts))
                lines.append(f"    w_store({target} + n" + (f" + {j * self.width}" if j else "") + f", {total});")
            lines.append("}")
            done = stop
        if target == "line":
            place = _place(out, ("b", "m", "i"))
            lines.append(f"for (int i = 0; i < {n}; i++) {self.name(out.buffer)}[{place}] = line[i];")
        return lines

    def _pack(self, right: Access, k: int, n: int, row: int) -> tuple[str, list[str]]:
        """Lay a matrix out as (k, n) with rows of whole vectors: once a solve if it is the same all the time."""
        copy = [
            f"for (int k = 0; k < {k}; k++) for (int n = 0; n < {row}; n++)",
            "    {target}[k * " + f"{row} + n] = n < {n} ? " + "{value} : (real)0;",
        ]
        if right.buffer.uniform and right.strides[0] == 0:
            key = (right.buffer, right.offset, right.strides, n)
            if key not in self._packed:
                self._packed[key] = self._reserve(k * row)
                value = self._pattern(right, ("0", "k", "n"), "s_")
                target = f"c->uniform[{self._packed[key]} + "
                self.once += [copy[0], f"    {target}k * {row} + n] = n < {n} ? {value} : (real)0;"]
            return f"c->uniform + {self._packed[key]}", []
        value = self._pattern(right, ("b", "k", "n"), "v_")
        return "packed", [
            f"v_t packed[{k * row}] ALIGNED;",
            copy[0],
            f"    packed[k * {row} + n] = n < {n} ? {value} : (real)0;",
        ]

    def _wide_dots(self, left: Access, right: Access, out: Access, k: int, n: int) -> list[str]:
        whole = k - k % self.width
        lines = []
        for column in range(n):
            x = f"w_load({self.name(left.buffer)} + {_place(left, ('b', 'm', 'k'))})"
            y = f"w_load({self.name(right.buffer)} + {_place(right, ('b', 'k', str(column)))})"
            lines += [
                "{",
                "    w_t sum = w_splat(0);",
                f"    for (int k = 0; k < {whole}; k += {self.width}) sum += {x} * {y};",
                "    v_t total = w_hsum(sum);",
            ]
            if whole < k:
                a = self._pattern(left, ("b", "m", "k"), "v_")
                b = self._pattern(right, ("b", "k", str(column)), "v_")
                lines.append(f"    for (int k = {whole}; k < {k}; k++) total += {a} * {b};")
            single = out.buffer.numel == 1
            place = self.name(out.buffer) if single else self._pattern(out, ("b", "m", str(column)), "v_")
            lines += [f"    {place} = total;", "}"]
        return lines

    # -- sinks -----------------------------------------------------------------------------------------------------
    def _sink(self, number: int, sink: Sink) -> list[str]:
        if isinstance(sink, Added):
            return self._added(sink)
        return self.products(number, sink)

    def products(self, number: int, sink: AddedProducts) -> list[str]:
        """Hold back the factors of outer products, which are multiplied for many stages at once."""
        rows, depth = sink.left.shape
        columns = sink.right.shape[0]
        lines = []
        for side, part, size in (("left", sink.left, rows), ("right", sink.right, columns)):
            access = self.program.access(part)
            if access is not None and depth > 1:
                of_row, of_k = access.strides
                text = self.element(access.buffer, f"{access.offset} + {of_row} * i + {of_k} * k", prefix="v_")
                target = f"(c->{side}{number} + (c->slot * {depth} + k) * {self.padded(size)})[i]"
                lines.append(f"for (int k = 0; k < {depth}; k++) for (int i = 0; i < {size}; i++) {target} = {text};")
                continue
            for k in range(depth):
                base = f"(c->{side}{number} + (c->slot * {depth} + {k}) * {self.padded(size)})"
                lines += self._stored(base, np.ascontiguousarray(part[:, k]))
        return lines

    def accumulator(self, leaf: int, index: str) -> str:
        """Where the gradient of a leaf's numbers is added up."""
        return f"c->added{leaf}[{index}]"

    def _stored(self, target: str, part: Addresses) -> list[str]:
        lines = []
        for start, length in runs([part]):
            piece = part[start : start + length]
            access = self.program.access(piece)
            if length < 3 or access is None:
                lines += [f"{target}[{start + i}] = {self.at(int(a), 'v_')};" for i, a in enumerate(piece)]
                continue
            text = self.element(access.buffer, f"{access.offset} + {access.strides[0]} * i", prefix="v_")
            lines.append(f"for (int i = 0; i < {length}; i++) {target}[{start} + i] = {text};")
        return lines

    def _added(self, sink: Added) -> list[str]:
        lines = []
        for start, length in runs([sink.at, sink.source]):
            at, source = sink.at[start : start + length], sink.source[start : start + length]
            access = self.program.access(source)
            if length < 3 or access is None:
                lines += [
                    f"{self.accumulator(sink.leaf, str(int(i)))} += {self.at(int(a), 'v_')};"
                    for i, a in zip(at, source, strict=True)
                ]
                continue
            step = int(at[1] - at[0])
            text = self.element(access.buffer, f"{access.offset} + {access.strides[0]} * i", prefix="v_")
            target = self.accumulator(sink.leaf, f"{int(at[0])} + {step} * i")
            lines.append(f"for (int i = 0; i < {length}; i++) {target} += {text};")
        return lines


def _place(access: Access, indices: Sequence[str]) -> str:
    terms = [str(access.offset)] if access.offset else []
    for index, stride in zip(indices, access.strides, strict=True):
        if stride and index != "0":
            terms.append(index if stride == 1 else f"{index} * {stride}")
    return " + ".join(terms) or "0"


def _transposed(access: Access) -> Access:
    batch, rows, columns = access.strides
    return Access(access.buffer, access.offset, (batch, columns, rows))


def product_sinks(sinks: Sequence[Sink]) -> list[tuple[int, AddedProducts]]:
    """The sinks that are added up as products, by their number."""
    return [(i, sink) for i, sink in enumerate(sinks) if isinstance(sink, AddedProducts)]
