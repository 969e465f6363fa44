"""What the columns of a data set are of the states: the states themselves, or formulas of states and parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from jaxtyping import Float
from torch import Tensor

from ude.errors import DataError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import missing_column
from ude.models import Model, Observation, to_torch
from ude.models.equations.names import TIME

ObserveLike = str | Mapping[str, str] | Iterable[str] | Observation
"""What `fit` takes as `observe`: text "y = a*x", lines of it, a dict name -> formula, or an `Observation`."""


class Measurement:
    """The map from states to the columns of a data set, for one model.

    names: the columns that are compared, those of formulas first, then those that are states
    formulas: name -> text, for those that are formulas
    column_of: state -> the column that measures just it, where there is one
    """

    def __init__(self, model: Model, names: Iterable[str], formulas: Mapping[str, str]) -> None:
        self.names, self.formulas, self.states = tuple(names), dict(formulas), model.states
        parsed = Observation(self.formulas).parsed if self.formulas else {}
        self._parameters = tuple(model.values())
        expressions = [parsed[name].expression if name in parsed else sympy.Symbol(name) for name in self.names]
        self._places = [
            self.states.index(e.name) if isinstance(e, sympy.Symbol) and e.name in self.states else -1
            for e in expressions
        ]
        self._computed = [e for e, place in zip(expressions, self._places, strict=True) if place < 0]
        self._compile()
        self.column_of = {
            self.states[place]: column for column, place in reversed(list(enumerate(self._places))) if place >= 0
        }

    @classmethod
    def of(cls, model: Model, data: Dataset, observe: ObserveLike | None, named: Iterable[str]) -> Measurement:
        """Match columns with observables, then with states; `named`: states that need no column.

        Raises DataError: an observable without a column, a state that is neither measured, nor part of an observable,
        nor named; ModelError for formulas that do not fit the model.
        """
        if observe is None:
            observe = getattr(model, "observables", None) or None
        observation = observe if isinstance(observe, Observation) or observe is None else Observation(observe)
        formulas: dict[str, str] = {}
        used: set[str] = set(named)
        if observation is not None:
            observation.check(model.states, model.values())
            formulas, used = observation.formulas, used | observation.used
            for name in formulas:
                if name not in data.states:
                    raise missing_column(name, data.states, "observable")
        direct = [state for state in model.states if state in data.states and state not in formulas]
        for state in model.states:
            if state not in direct and state not in used:
                error = missing_column(state, data.states, "state")
                hint = f'A state that is not measured needs a start: u0={{"{state}": "fit"}}.'
                raise DataError(error.what, expected=error.expected, fix=f"{error.fix} {hint}")
        names = (*formulas, *direct)
        if not names:
            raise DataError(
                "nothing of the model was measured",
                expected=f"a column for one of {', '.join(model.states)}",
                got=", ".join(data.states),
            )
        return cls(model, names, formulas)

    def _compile(self) -> None:
        inputs = (*self.states, TIME, *self._parameters)
        self._function = to_torch(self._computed, inputs) if self._computed else None

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions do not pickle; they are built again.
        return {key: value for key, value in self.__dict__.items() if key != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """States of which no column measures just them."""
        return tuple(state for state in self.states if state not in self.column_of)

    def __call__(
        self,
        u: Float[Tensor, "*batch state"],
        t: Float[Tensor, "*batch"],
        values: Mapping[str, Tensor],
    ) -> Float[Tensor, "*batch observable"]:
        """What would be measured in the states `u` at the times `t`.

        values: every parameter of the model, natural units, each of a shape that broadcasts against *batch.
        """
        if self._function is None:
            return u if self._places == list(range(u.shape[-1])) else u[..., self._places]
        columns = u.unbind(-1)
        computed = iter(self._function(*columns, t, *(values[name] for name in self._parameters)))
        parts = [columns[place] if place >= 0 else next(computed) for place in self._places]
        return torch.stack(torch.broadcast_tensors(*parts, columns[0])[:-1], -1)
