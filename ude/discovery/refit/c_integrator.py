"""Closed-form systems integrated by a C program that runs them as lists of operations (``c/trajectory.c``).

The program is compiled once for a machine, not once for a system, with the same means as fused kernels. It serves
nonstiff stretches with Dormand & Prince's method of order 8; `Integrator` turns elsewhere where it gives up.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from importlib.resources import files

import numpy as np
import sympy as sp

from ude.compile.build import compile_kernel, load, surroundings
from ude.discovery.refit.closed_system import Array, ClosedSystem
from ude.errors import EngineRefused
from ude.methods.explicit.dop853 import DP8
from ude.methods.tableau import Number, padded

# In the order of the C program.
_BINARY = ("add", "mul", "div", "pow", "min", "max")
_UNARY = (
    *("square", "sqrt", "exp", "log", "sin", "cos", "tan", "tanh", "sinh", "cosh", "asin", "acos", "atan"),
    *("Abs", "sign", "sigmoid", "Heaviside"),
)
_CODES = {name: code for code, name in enumerate((*_BINARY, *_UNARY))}
CRAWL = 5000  # steps between two times after which a solution is taken to creep towards a pole
_LARGEST_POWER = 16

DONE, NOWHERE, STIFF, SPENT = range(4)
"""What `FormulaProgram.run` says: integrated; the solution does not exist up to there; stiff; no calls left."""


class FormulaProgram:
    """A system's right-hand side as a list of operations.

    free: the states by whose start the solution is differentiated; None: no sensitivities.
    Raises NotImplementedError for a function that the C program does not know, EngineRefused without a C compiler.
    """

    def __init__(self, system: ClosedSystem, free: Sequence[int] | None) -> None:
        self._function = _library()
        self.states, self.parameters = len(system.states), len(system.parameters)
        fitted = [] if free is None else [list(system.parameters).index(name) for name in system.fitted]
        self.width = 0 if free is None else len(fitted) + len(free)
        writer = _Writer([system.time, *system.states, *system.parameters])
        outputs = [writer.register(system.equations[state]) for state in system.states]
        differentiated = [1 + i for i in range(self.states)] if self.width else []
        own = {1 + self.states + place: column for column, place in enumerate(fitted)}
        size = len(writer.literals)
        active = np.zeros(size, dtype=np.int32)
        active[[*differentiated, *own]] = 1
        for _, to, one, two in writer.code:
            active[to] = active[one] | active[two]
        self._values = np.array(writer.literals)
        self._slopes = np.zeros((size, max(self.width, 1)))
        for register, column in own.items():
            self._slopes[register, column] = 1.0
        self._code = np.array(writer.code, dtype=np.int32).reshape(-1, 4)
        self._active, self._outputs = active, np.array(outputs, dtype=np.int32)

    def run(
        self, t: Array, start: Array, constants: Sequence[float], rtol: float, atol: Array, most: int
    ) -> tuple[int, Array, int]:
        """What became of it (see `DONE`), the states and sensitivities (T, states (1 + width)), and the calls it took.

        t: increasing times (T,). start: at t[0]. most: calls of the right-hand side.
        """
        first = 1 + self.states
        self._values[first : first + self.parameters] = constants
        found = np.empty((len(t), len(start)))
        calls = ctypes.c_long()
        arrays = [np.ascontiguousarray(array, dtype=np.float64) for array in (t, start, atol)]
        times, begin, absolute = (array.ctypes.data for array in arrays)
        outcome = self._function(
            self.states,
            self.width,
            len(self._values),
            len(self._code),
            self._code.ctypes.data,
            self._active.ctypes.data,
            self._outputs.ctypes.data,
            self._values.ctypes.data,
            self._slopes.ctypes.data,
            len(t),
            times,
            begin,
            rtol,
            absolute,
            most,
            CRAWL,
            ctypes.byref(calls),
            found.ctypes.data,
        )
        if outcome > SPENT:
            raise MemoryError
        return outcome, found, calls.value


class _Writer:
    """Operations that compute expressions; what occurs several times is computed once."""

    def __init__(self, names: Sequence[str]) -> None:
        self.known: dict[sp.Expr, int] = {sp.Symbol(name): place for place, name in enumerate(names)}
        self.literals = [0.0] * len(names)  # of every register; those of results mean nothing
        self.code: list[tuple[int, int, int, int]] = []

    def register(self, expression: sp.Expr) -> int:
        """The register that holds an expression's value."""
        place = self.known.get(expression)
        if place is None:
            place = self._new(expression)
            self.known[expression] = place
        return place

    def _new(self, e: sp.Expr) -> int:
        if e.is_number:
            return self._literal(float(e))
        if isinstance(e, sp.Add):
            return self._chain("add", [self.register(part) for part in e.args])
        if isinstance(e, sp.Mul):
            return self._product(e)
        if isinstance(e, sp.Pow):
            return self._power(e.base, e.exp)
        if isinstance(e, (sp.Min, sp.Max)):
            return self._chain("min" if isinstance(e, sp.Min) else "max", [self.register(part) for part in e.args])
        name = e.func.__name__
        # of steps the value at zero is the second argument; the C program has this one
        arguments = 2 if name == "Heaviside" and e.args[1:] == (sp.S.Half,) else 1
        if name not in _UNARY or len(e.args) != arguments:
            raise NotImplementedError(name)
        return self._emit(name, self.register(e.args[0]))

    def _literal(self, value: float) -> int:
        self.literals.append(value)
        return len(self.literals) - 1

    def _emit(self, name: str, one: int, two: int | None = None) -> int:
        to = self._literal(0.0)
        self.code.append((_CODES[name], to, one, one if two is None else two))
        return to

    def _chain(self, name: str, places: Sequence[int]) -> int:
        return functools.reduce(lambda one, two: self._emit(name, one, two), places)

    def _product(self, e: sp.Expr) -> int:
        below = [p for p in e.args if isinstance(p, sp.Pow) and p.exp.is_number and p.exp.is_negative]
        above = [self.register(part) for part in e.args if part not in below]
        top = self._chain("mul", above) if above else self._literal(1.0)
        return self._chain("div", [top, *(self.register(1 / part) for part in below)])

    def _power(self, base: sp.Expr, exponent: sp.Expr) -> int:
        if exponent.is_number and exponent.is_negative:
            return self._emit("div", self._literal(1.0), self.register(base**-exponent))
        if exponent == sp.S.Half:
            return self._emit("sqrt", self.register(base))
        if exponent == 2:
            return self._emit("square", self.register(base))
        if exponent.is_Integer and exponent <= _LARGEST_POWER:
            half = self.register(base ** (exponent // 2))
            whole = self._emit("square", half)
            return self._emit("mul", whole, self.register(base)) if exponent % 2 else whole
        return self._emit("pow", self.register(base), self.register(exponent))


def _library() -> Callable[..., int]:
    """The C program, compiled on first use. Raises EngineRefused where that cannot be done."""
    found = _loaded(surroundings())
    if isinstance(found, EngineRefused):
        raise found
    return found


@functools.lru_cache(maxsize=4)
def _loaded(_: tuple[str, ...]) -> Callable[..., int] | EngineRefused:
    text = files("ude.discovery.refit").joinpath("c/trajectory.c").read_text(encoding="utf-8")
    try:
        function = load(compile_kernel(_tableau() + text)).trajectory
    except EngineRefused as refusal:
        return refusal
    number, pointer, count = ctypes.c_double, ctypes.c_void_p, ctypes.c_int
    function.argtypes = [
        *(count, count, count, count, pointer, pointer, pointer, pointer, pointer, count, pointer, pointer),
        *(number, pointer, ctypes.c_long, ctypes.c_long, ctypes.POINTER(ctypes.c_long), pointer),
    ]
    function.restype = count
    return function


def _tableau() -> str:
    """The method's numbers as C."""
    own = DP8.tableau
    extra, powers = len(own.extra_a), len(own.interpolant[0])
    width = own.stages + extra

    def line(row: Sequence[Number]) -> str:
        return "{" + ", ".join(float(entry).hex() for entry in row) + "}"

    def table(rows: Sequence[Sequence[Number]], columns: int) -> str:
        return "{" + ",\n".join(line(padded(tuple(row), columns)) for row in rows) + "}"

    return (
        f"enum {{ STAGES = {own.stages}, EXTRA = {extra}, POWERS = {powers} }};\n"
        f"static const double ORDER = {own.order};\n"
        f"static const double A[{width}][{width}] = {table(own.all_a, width)};\n"
        f"static const double C[] = {line(own.all_c)};\n"
        f"static const double B[] = {line(own.b)};\n"
        f"static const double E_HIGH[] = {line(own.b_error)};\n"
        f"static const double E_LOW[] = {line(own.b_error_low)};\n"
        f"static const double DENSE[{width}][{powers}] = {table(own.interpolant, powers)};\n"
    )
