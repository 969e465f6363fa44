"""Equations with the numbers that stand in them: what every export writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sympy
from sympy.core.function import AppliedUndef

from ude.errors import ModelError
from ude.models.equations.functions import check_supported
from ude.models.equations.names import TIME, symbol


@dataclass(frozen=True)
class EquationSet:
    """Equations as data.

    Attributes:
        equations: state -> right-hand side, with every parameter by its name.
        values: parameter -> number.
        unset: parameters that nobody has given a value yet; `values` holds where their fit starts.
        u0: state -> initial value, where it is known.
        observables: name -> formula, as text.
    """

    equations: Mapping[str, sympy.Expr]
    values: Mapping[str, float] = field(default_factory=dict)
    unset: frozenset[str] = frozenset()
    u0: Mapping[str, float] = field(default_factory=dict)
    observables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for rhs in self.equations.values():
            check_supported(rhs)

    def with_numbers(self) -> dict[str, sympy.Expr]:
        """state -> right-hand side with numbers in place of the parameters; an unset one keeps its name."""
        numbers = {symbol(n): sympy.Float(value) for n, value in self.values.items() if n not in self.unset}
        return {state: rhs.xreplace(numbers) for state, rhs in self.equations.items()}

    @property
    def functions(self) -> list[str]:
        """Names of the unknown functions, sorted."""
        applied = {node.func.__name__ for rhs in self.equations.values() for node in rhs.atoms(AppliedUndef)}
        return sorted(applied)

    @property
    def used(self) -> set[str]:
        """Names of states, parameters and time that occur."""
        return {free.name for rhs in self.equations.values() for free in rhs.free_symbols}

    def check_values(self) -> None:
        """Raise ModelError for a name without a number."""
        missing = sorted(self.used - {*self.equations, *self.values, TIME})
        if missing:
            raise ModelError(
                f"{missing[0]} has no value",
                expected=f"numbers for {', '.join(missing)}",
                fix=f'Export a model: ude.UDE(equations, parameters={{"{missing[0]}": 1.0}}).',
            )

    def renamed(self, reserved: Iterable[str]) -> tuple[dict[str, str], list[sympy.Expr]]:
        """Names for a language that keeps `reserved` for itself, and the right-hand sides in those names."""
        names = free_names((*self.equations, *self.values, *self.functions), reserved)
        return names, [_renamed(rhs, names) for rhs in self.equations.values()]


def free_names(names: Iterable[str], reserved: Iterable[str]) -> dict[str, str]:
    """Names for a language that keeps `reserved` for itself: those get underscores until they are free."""
    names, reserved = list(names), set(reserved)
    taken = reserved | set(names)
    result = {}
    for name in names:
        new = name
        while new in reserved or (new != name and new in taken):
            new += "_"
        result[name] = new
        taken.add(new)
    return result


def _renamed(rhs: sympy.Expr, names: Mapping[str, str]) -> sympy.Expr:
    functions = {old: sympy.Function(new) for old, new in names.items()}
    rhs = rhs.replace(
        lambda node: isinstance(node, AppliedUndef), lambda node: functions[node.func.__name__](*node.args)
    )
    return rhs.xreplace({symbol(old): symbol(new) for old, new in names.items() if old != new})
