"""Parameters of a model: numbers with bounds, stored so that an optimizer may move them freely."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ude.errors import InputError
from ude.models.equations.names import did_you_mean, is_name, normalize_name

_MARGIN = 1e-9
"""A value on a bound is moved inside by this fraction: the transforms reach their bounds only at infinity."""


@dataclass(frozen=True)
class Parameter:
    """A number in a model, in natural units.

    value:  the number; None: not known yet, to be initialized by training (allowed only when fitted)
    fitted: whether training may change it
    lower, upper: bounds, None for none

    Raises InputError: a number that is not finite, bounds in the wrong order, a value outside them.

    >>> ude.UDE("dx/dt = -k*x", parameters={"k": ude.Parameter(0.5, fitted=True, lower=0.0)}).values()
    {'k': 0.5}
    >>> ude.Parameter(2.0, fitted=True, upper=1.0)
    Traceback (most recent call last):
    ude.errors.InputError: ...
    """

    value: float | None = None
    fitted: bool = True
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        for field in ("value", "lower", "upper"):
            number = getattr(self, field)
            if number is not None:
                object.__setattr__(self, field, finite(number, f"Parameter.{field}"))
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise InputError(
                "the bounds of a parameter are in the wrong order",
                expected="lower < upper",
                got=f"[{self.lower}, {self.upper}]",
            )
        if self.value is not None:
            self.check("a parameter", self.value)

    def check(self, name: str, value: float) -> None:
        """Raise InputError unless `value` lies within the bounds."""
        low = -math.inf if self.lower is None else self.lower
        high = math.inf if self.upper is None else self.upper
        if not low <= value <= high:
            raise InputError(f"{name} is outside its bounds", expected=f"a value in [{low}, {high}]", got=str(value))

    @property
    def start(self) -> float:
        """The value, or while it is unset: 1 if the bounds allow, otherwise their middle or one inside the bound."""
        if self.value is not None:
            return self.value
        low = -math.inf if self.lower is None else self.lower
        high = math.inf if self.upper is None else self.upper
        if low < 1.0 < high:
            return 1.0
        if self.lower is not None and self.upper is not None:
            return 0.5 * (self.lower + self.upper)
        return self.lower + 1.0 if self.lower is not None else high - 1.0


def finite(value: object, what: str) -> float:
    """`value` as a finite float, or InputError."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{what} is not a number", expected="a finite number", got=repr(value)) from None
    if not math.isfinite(number):
        raise InputError(f"{what} is not finite", expected="a finite number", got=repr(value))
    return number


_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_LIMIT = rf"(?:{_NUMBER}|[-+]?inf)?"
_ENTRY = re.compile(
    rf"\s*(?P<name>[^\W\d]\w*)\s*(?:=\s*(?P<value>{_NUMBER})\s*)?"
    rf"(?:in\s*[\[(]\s*(?P<lower>{_LIMIT})\s*,\s*(?P<upper>{_LIMIT})\s*[\])]\s*)?(?:,|$)"
)


def parse_parameters(text: str, *, fitted: bool = True) -> dict[str, Parameter]:
    """Parameters from text: ``"a=0.5, d in [0, 2], k=3 in [0, inf]"``; an empty limit or inf is no limit.

    Raises InputError with the part that does not read.
    """
    result: dict[str, Parameter] = {}
    position = 0
    while position < len(text.rstrip()):
        match = _ENTRY.match(text, position)
        if match is None:
            raise InputError(
                "the list of parameters does not read",
                expected='NAME, NAME=NUMBER or NAME=NUMBER in [LOWER, UPPER], such as "a=0.5, d in [0, 2]"',
                got=repr(text[position:].strip()),
            )
        name = normalize_name(match["name"])
        if name in result:
            raise InputError(f"the list of parameters names {name} twice", got=repr(text))
        value = None if match["value"] is None else float(match["value"])
        result[name] = Parameter(value, fitted, _limit(match["lower"]), _limit(match["upper"]))
        position = match.end()
    return result


def _limit(text: str | None) -> float | None:
    return None if not text or text.lstrip("+-") == "inf" else float(text)


ParametersLike = Mapping[str, "float | Parameter | None"]
"""What a model takes as `parameters`."""


def merge_parameters(
    parameters: ParametersLike | None, fit: str | Iterable[str] | None, *, fitted: bool = False
) -> dict[str, Parameter]:
    """One table from `parameters` (plain numbers: `fitted` as given) and the names (or text entries) in `fit`.

    Raises InputError for what is not a mapping, a name or a number, for a parameter that has neither a value nor
    is fitted, and for a value given twice.
    """
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InputError("parameters is not a mapping", expected='{"alpha": 1.3}', got=repr(parameters))
    table: dict[str, Parameter] = {}
    for key, entry in (parameters or {}).items():
        name = key if isinstance(key, str) else getattr(key, "name", None)
        if not isinstance(name, str) or not is_name(name):
            raise InputError("the name of a parameter is not a name", expected="letters, digits and _", got=repr(key))
        name = normalize_name(name)
        if entry is None or isinstance(entry, Parameter):
            table[name] = Parameter(None, True) if entry is None else entry
        else:
            table[name] = Parameter(finite(entry, f"parameter {name}"), fitted)
    unset = {normalize_name(str(key)) for key, entry in (parameters or {}).items() if entry is None}
    for name, wanted in _fit_entries(fit).items():
        given = table.get(name, Parameter())
        if wanted.value is not None and given.value is not None and wanted.value != given.value:
            raise InputError(
                f"parameter {name} has two values", got=f"{given.value} in parameters and {wanted.value} in fit"
            )
        bounded = wanted.lower is not None or wanted.upper is not None
        limits = wanted if bounded else given
        value = given.value if wanted.value is None else wanted.value
        table[name] = Parameter(value, True, limits.lower, limits.upper)
        unset.discard(name)
    for name, entry in table.items():
        if entry.value is None and (not entry.fitted or name in unset):
            raise InputError(
                f"parameter {name} has no value",
                fix=f'Give it one (parameters={{"{name}": 1.0}}) or have it fitted (fit="{name}").',
            )
    return table


def _fit_entries(fit: str | Iterable[str] | None) -> dict[str, Parameter]:
    if fit is None:
        return {}
    if isinstance(fit, str):
        return parse_parameters(fit)
    if isinstance(fit, Mapping) or not isinstance(fit, Iterable):
        raise InputError("fit is not a list of names", expected='"a, d" or ["a", "d"]', got=repr(fit))
    result: dict[str, Parameter] = {}
    for entry in fit:
        if not isinstance(entry, str):
            raise InputError("fit is not a list of names", expected='"a, d" or ["a", "d"]', got=repr(entry))
        for name, parameter in parse_parameters(entry).items():
            if name in result:
                raise InputError(f"fit names {name} twice", got=repr(fit))
            result[name] = parameter
    return result


class ParameterStore(nn.Module):
    """The numbers behind a table of parameters.

    A fitted parameter v is kept as an unconstrained 0-d ``raw``, with a scale s that makes raw near one::

        no bound      v = s raw                          lower a       v = a + s softplus(raw)
        both          v = a + (b - a) sigmoid(raw)       upper b       v = b - s softplus(raw)

    A fixed parameter is a buffer. All float64. A fitted value exactly on a bound is moved inside by a billionth.
    """

    #: A trace depends on the transforms and not on the numbers: see `ude.compile.value_kinds.class_plan`.
    __untraced__ = ("_start", "_table")

    def __init__(self, table: Mapping[str, Parameter]) -> None:
        super().__init__()
        self._table = dict(table)
        self._transforms = {name: (entry.fitted, entry.lower, entry.upper) for name, entry in table.items()}
        # Prefixes: a parameter called "half" or "type" must not meet the attributes of nn.Module.
        for name, entry in self._table.items():
            if entry.fitted:
                self.register_parameter(f"raw_{name}", nn.Parameter(torch.zeros((), dtype=torch.float64)))
                self.register_buffer(f"scale_{name}", torch.ones((), dtype=torch.float64))
            else:
                self.register_buffer(f"fixed_{name}", torch.zeros((), dtype=torch.float64))
            self._write(name, entry.start)
        self._start = {name: self._raw_number(name) for name, entry in self._table.items() if entry.value is None}

    def names(self) -> tuple[str, ...]:
        return tuple(self._table)

    def natural(self) -> dict[str, Tensor]:
        """Every parameter in natural units, as 0-d tensors that carry gradients."""
        return {name: self.value_of(name) for name in self._table}

    def value_of(self, name: str) -> Tensor:
        """One parameter in natural units, as a 0-d tensor."""
        entry = self._table[name]
        if not entry.fitted:
            fixed: Tensor = getattr(self, f"fixed_{name}")
            return fixed
        raw: Tensor = getattr(self, f"raw_{name}")
        scale: Tensor = getattr(self, f"scale_{name}")
        if entry.lower is not None and entry.upper is not None:
            return entry.lower + (entry.upper - entry.lower) * torch.sigmoid(raw)
        if entry.lower is not None:
            return entry.lower + scale * nn.functional.softplus(raw)
        if entry.upper is not None:
            return entry.upper - scale * nn.functional.softplus(raw)
        return scale * raw

    def values(self) -> dict[str, float]:
        """The numbers now, natural units."""
        with torch.no_grad():
            return {name: _inside(self._table[name], float(value)) for name, value in self.natural().items()}

    def table(self) -> dict[str, Parameter]:
        """The table with its values as they are now; None where no one has set or trained one yet."""
        values = self.values()
        return {
            name: replace(entry, value=None if self._is_unset(name) else values[name])
            for name, entry in self._table.items()
        }

    def set(self, values: Mapping[str, float]) -> None:
        """Write values in natural units. Raises InputError: unknown name, not finite, outside the bounds."""
        numbers = {}
        for name, value in values.items():
            if name not in self._table:
                raise unknown_parameter(name, self._table)
            numbers[name] = finite(value, f"parameter {name}")
            self._table[name].check(f"parameter {name}", numbers[name])
        for name, number in numbers.items():
            self._write(name, number)
            self._start.pop(name, None)

    def _is_unset(self, name: str) -> bool:
        # Training that moves raw has set it, though nobody called set().
        return name in self._start and self._raw_number(name) == self._start[name]

    def _raw_number(self, name: str) -> float:
        return float(getattr(self, f"raw_{name}").detach())

    @torch.no_grad()
    def _write(self, name: str, value: float) -> None:
        entry = self._table[name]
        if not entry.fitted:
            getattr(self, f"fixed_{name}").fill_(value)
            return
        raw, scale = getattr(self, f"raw_{name}"), getattr(self, f"scale_{name}")
        if entry.lower is not None and entry.upper is not None:
            fraction = (value - entry.lower) / (entry.upper - entry.lower)
            fraction = min(max(fraction, _MARGIN), 1.0 - _MARGIN)
            raw.fill_(math.log(fraction) - math.log1p(-fraction))
            return
        if entry.lower is None and entry.upper is None:
            scale.fill_(abs(value) if value != 0.0 else float(scale))
            raw.fill_(value / float(scale))
            return
        bound = entry.lower if entry.lower is not None else entry.upper
        distance = abs(value - bound)  # type: ignore[operator]
        if distance > _MARGIN * abs(bound):  # type: ignore[arg-type]
            scale.fill_(distance)
            raw.fill_(math.log(math.expm1(1.0)))
        else:
            # On the bound: the scale stays, so that an optimizer can still leave it.
            raw.fill_(math.log(math.expm1(_MARGIN)))


def _inside(entry: Parameter, value: float) -> float:
    """Rounding of the transforms may pass a bound by one unit in the last place."""
    value = value if entry.lower is None else max(value, entry.lower)
    return value if entry.upper is None else min(value, entry.upper)


def unknown_parameter(name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is no parameter of the model."""
    names = list(known)
    return InputError(
        f"{name} is not a parameter of the model",
        expected=f"one of {', '.join(names)}" if names else "no parameters",
        got=repr(name),
        fix=did_you_mean(str(name), names),
    )
