"""Initial states of a fit: known or fitted, within bounds, one for each trajectory or one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ude.errors import InputError
from ude.fitting.data.trajectory import Array
from ude.fitting.simulation.coordinates import Coordinates
from ude.models import Parameter
from ude.models.equations.names import did_you_mean

_MARGIN = 1e-6  # how far inside its bounds a fitted start begins, of their distance


@dataclass(frozen=True)
class InitialValue:
    """The initial value of one state, as `fit` takes it: ``u0={"z": InitialValue(lower=0.0, shared=True)}``.

    value:  a number for all trajectories, or one for each; None: from the data, or 1 (the middle of the bounds)
    fitted: whether training may change it
    lower, upper: bounds, None for none
    shared: whether all trajectories have the same

    Raises InputError for numbers that are not finite, a value that is neither given nor fitted or outside its bounds.

    >>> t = np.linspace(0.0, 3.0, 13)
    >>> data = ude.Dataset.from_arrays(t, 1.0 - np.exp(-t), "y")  # what x = exp(-t) turned into
    >>> model = ude.UDE(["dx/dt = -k*x", "dy/dt = k*x"], fit="k")
    >>> start = ude.fitting.InitialValue(lower=0.0)
    >>> fit = ude.fit(model, data, u0={"x": start}, stages="single shooting", holdout=0, progress=False)
    >>> round(float(fit.u0[0, 0]), 3)
    1.0
    """

    value: float | Sequence[float] | None = None
    fitted: bool = True
    lower: float | None = None
    upper: float | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        numbers: list[float] = [] if self.value is None else np.ravel(np.asarray(self.value, dtype=np.float64)).tolist()
        Parameter(None, self.fitted, self.lower, self.upper)
        for number in numbers:
            Parameter(number, self.fitted, self.lower, self.upper)
        if self.value is None and not self.fitted:
            raise InputError("an initial value is neither given nor fitted", fix="Give value=..., or leave it fitted.")
        if self.shared and len(set(numbers)) > 1:
            raise InputError("a shared initial value has several values", expected="one", got=repr(self.value))


U0Like = npt.ArrayLike | Mapping[str, Any]
"""Known states (trajectory, state), or state -> number, numbers, "fit", "shared", `Parameter` or `InitialValue`."""


def read_u0(u0: U0Like | None, states: Sequence[str], number: int) -> tuple[InitialValue, ...]:
    """One `InitialValue` a state. `number`: of trajectories.

    Raises InputError for a shape that does not fit, a name that is no state, and what does not read as a value.
    """
    if u0 is None:
        return tuple(InitialValue() for _ in states)
    if isinstance(u0, Mapping):
        for name in u0:
            if name not in states:
                raise InputError(
                    f"u0 names {name!r}", expected=f"some of {', '.join(states)}", fix=did_you_mean(str(name), states)
                )
        return tuple(_read(state, u0.get(state, "fit"), number) for state in states)
    try:
        known = np.array(u0, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("u0 must be numbers of shape (trajectory, state), or a dict", got=repr(u0)) from None
    if known.ndim == 1 and number == 1:
        known = known[None]
    if known.shape != (number, len(states)) or not np.isfinite(known).all():
        raise InputError(
            "u0 does not fit the data",
            expected=f"finite numbers of shape {(number, len(states))}",
            got=f"{known.tolist()}",
        )
    return tuple(InitialValue(column, fitted=False) for column in known.T.tolist())


def _read(state: str, given: Any, number: int) -> InitialValue:
    if isinstance(given, InitialValue):
        value = given
    elif isinstance(given, Parameter):
        value = InitialValue(given.value, given.fitted, given.lower, given.upper)
    elif given in ("fit", "shared") if isinstance(given, str) else given is None:
        value = InitialValue(shared=given == "shared")
    else:
        try:
            numbers = np.asarray(given, dtype=np.float64)
            value = InitialValue(float(numbers) if numbers.ndim == 0 else numbers.tolist(), fitted=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"u0 of {state!r} does not read",
                expected='a number, one for each trajectory, "fit", "shared", a Parameter or an InitialValue',
                got=repr(given),
            ) from error
    if value.value is not None and np.ndim(value.value) > 0 and len(np.ravel(value.value)) != number:
        raise InputError(
            f"u0 of {state!r} does not fit the data",
            expected=f"one number, or {number} for {number} trajectories",
            got=f"{len(np.ravel(value.value))}",
        )
    return value


@dataclass(frozen=True, eq=False)
class InitialStates:
    """Where trajectories begin, as a function of offsets that an optimizer may move freely.

    A fitted state begins at ``z = z₀ + offset·spread`` in inner coordinates; one within [a, b] at
    ``u = a + (b - a) sigmoid(logit((u₀ - a)/(b - a)) + offset)``, with one bound at ``u = a ± (u₀ - a) exp(offset)``.
    """

    coordinates: Coordinates
    free: Bool[Tensor, "trajectory state"]
    rows: Int[Tensor, "trajectory state"]  # whose offset counts: its own, or the first trajectory's of a shared one
    lower: Float[Tensor, " state"]
    upper: Float[Tensor, " state"]

    @classmethod
    def of(cls, values: Sequence[InitialValue], coordinates: Coordinates, number: int) -> InitialStates:
        fitted = torch.tensor([value.fitted for value in values])
        own = torch.arange(number).unsqueeze(-1)
        shared = torch.tensor([value.shared for value in values])
        return cls(
            coordinates,
            fitted.expand(number, -1),
            torch.where(shared, torch.zeros_like(own), own),
            torch.tensor([-np.inf if v.lower is None else v.lower for v in values], dtype=torch.float64),
            torch.tensor([np.inf if v.upper is None else v.upper for v in values], dtype=torch.float64),
        )

    def inside(self, u: Float[Tensor, "trajectory state"]) -> Float[Tensor, "trajectory state"]:
        """Starts that can be moved: shared ones equal, fitted ones strictly within their bounds."""
        shared = self.rows[1:] != torch.arange(1, len(u)).unsqueeze(-1)
        if len(u) > 1 and bool(shared.any()):
            u = torch.where(shared.any(0), u.mean(0), u)
        span = self.upper - self.lower
        margin = _MARGIN * torch.where(torch.isfinite(span), span, u.abs() + 1.0)
        clipped = torch.minimum(torch.maximum(u, self.lower + margin), self.upper - margin)
        return torch.where(self.free, clipped, u)

    def place(
        self,
        starts: Float[Tensor, "trajectory state"],
        offset: Float[Tensor, "trajectory state"],
        spread: Float[Tensor, " state"],
    ) -> Float[Tensor, "trajectory state"]:
        """Inner states at the start of each trajectory."""
        move = torch.where(self.free, offset.gather(0, self.rows), 0.0)
        z = starts + move * spread
        bounded = torch.isfinite(self.lower) | torch.isfinite(self.upper)
        if not bool(bounded.any()):
            return z
        u0 = self.coordinates.natural(starts)
        return torch.where(bounded & self.free, self.coordinates.inner(self._within(u0, move)), z)

    def _within(self, u0: Tensor, move: Tensor) -> Tensor:
        low, high = torch.isfinite(self.lower), torch.isfinite(self.upper)
        # Branches that do not apply must stay finite, or their zero gradient becomes 0 * inf.
        a, b = torch.where(low, self.lower, 0.0), torch.where(high, self.upper, 0.0)
        span = torch.where(low & high, b - a, 1.0)
        fraction = torch.where(low & high, (u0 - a) / span, 0.5).clamp(_MARGIN / 2, 1.0 - _MARGIN / 2)
        both = a + span * torch.sigmoid(torch.logit(fraction) + move)
        growth = move.clamp(-50.0, 50.0).exp()
        one = torch.where(low, a + (u0 - a) * growth, b - (b - u0) * growth)
        return torch.where(low & high, both, torch.where(low | high, one, u0))


def starting_values(values: Sequence[InitialValue], first: Array) -> Array:
    """(trajectory, state) natural units: what is given, else `first` (NaN where the data do not say), else 1 or what
    the bounds allow."""
    starts = first.copy()
    for column, value in enumerate(values):
        if value.value is not None:
            starts[:, column] = value.value
        else:
            usual = Parameter(None, True, value.lower, value.upper).start
            starts[:, column] = np.where(np.isfinite(first[:, column]), first[:, column], usual)
    return starts
