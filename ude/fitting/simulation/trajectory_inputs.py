"""What differs between trajectories: fitted parameters of their own, conditions, and measured forcing.

All three stand in the place of parameters of the model: a condition or covariate of the data replaces the fixed
parameter of its name, whose number is what holds without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ude.errors import InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.models import Model
from ude.models.equations.names import split_names
from ude.models.parameters import ParameterStore, unknown_parameter
from ude.problems.interpolation import Interpolation


class Inputs(nn.Module):
    """Values of parameters for each trajectory of a data set. Owns those that are fitted.

    own:        names of parameters fitted for each trajectory
    conditions: name -> (trajectory,)
    forcing:    name -> an `Interpolation` for each trajectory
    """

    def __init__(self, model: Model, data: Dataset, per_trajectory: str | Iterable[str] | None = None) -> None:
        super().__init__()
        if not isinstance(per_trajectory, Iterable | None):
            raise InputError('per_trajectory must be names, such as "k, m"', got=repr(per_trajectory))
        self.own = () if per_trajectory is None else split_names(per_trajectory, "per_trajectory")
        table = model.parameters_table
        for name in self.own:
            if name not in table:
                raise unknown_parameter(name, table)
            if not table[name].fitted:
                raise InputError(
                    f"per_trajectory names {name}, which is not fitted", fix=f'Have it fitted: fit="{name}".'
                )
        self.number = len(data)
        self.stores = nn.ModuleDict(
            {name: ParameterStore({str(i): table[name] for i in range(len(data))}) for name in self.own}
        )
        self.conditions: dict[str, Tensor] = {}
        self.forcing: dict[str, list[tuple[Array, Array]]] = {}
        self.kind = data.covariate_kind
        for name in data.conditions:
            if name in table:
                _check_fixed(name, table[name].fitted, "condition")
                numbers = [trajectory.conditions[name] for trajectory in data.trajectories]
                self.conditions[name] = torch.tensor(numbers, dtype=torch.float64)
        for name in data.covariates:
            if name in table:
                _check_fixed(name, table[name].fitted, "covariate")
                self.forcing[name] = [trajectory.covariates[name] for trajectory in data.trajectories]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that have other values than the model's."""
        return (*self.own, *self.conditions, *self.forcing)

    def begin(self, values: Mapping[str, float]) -> None:
        """Start the parameters of all trajectories from one value each."""
        for name in self.own:
            self.set(name, [values[name]] * self.number)

    def set(self, name: str, values: Sequence[float] | Array) -> None:
        """Write one parameter, a number a trajectory."""
        self._store(name).set({str(i): float(value) for i, value in enumerate(values)})

    def fitted(self) -> dict[str, Array]:
        """name -> (trajectory,), natural units."""
        return {name: np.array(list(self._store(name).values().values())) for name in self.own}

    def _store(self, name: str) -> ParameterStore:
        store = self.stores[name]
        if not isinstance(store, ParameterStore):
            raise InputError(f"{name} has no values of its own", got=type(store).__name__)
        return store

    def numbers(self, trajectory: Int[Tensor, " lane"]) -> dict[str, Float[Tensor, " lane"]]:
        """Parameters and conditions of these trajectories; gradients reach the former."""
        own = {
            name: torch.stack([self._store(name).value_of(str(i)) for i in range(self.number)])[trajectory]
            for name in self.own
        }
        return own | {name: values[trajectory] for name, values in self.conditions.items()}

    @torch.no_grad()
    def forcing_at(self, trajectory: Int[Tensor, " point"], t: Float[Tensor, " point"]) -> dict[str, Tensor]:
        """The forcing at single points of trajectories."""
        found = {}
        for name, runs in self.forcing.items():
            found[name] = torch.empty_like(t)
            for i, (times, values) in enumerate(runs):
                own = trajectory == i
                if bool(own.any()):
                    found[name][own] = Interpolation(times, values, self.kind)(t[own])
        return found

    def lanes(self, trajectory: Int[Tensor, " lane"]) -> PerTrajectory | None:
        """These trajectories as the lanes of a batch; None where no parameter differs."""
        return PerTrajectory(self, trajectory) if self.names else None


class PerTrajectory(nn.Module):
    """`Inputs` for a batch whose lanes belong to given trajectories. Called with times whose last axis is the lane, as
    engines call f."""

    def __init__(self, inputs: Inputs, trajectory: Int[Tensor, " lane"]) -> None:
        super().__init__()
        self.inputs, self.trajectory = inputs, trajectory
        rows = trajectory.tolist()
        self.forcing = nn.ModuleDict(
            {
                name: Interpolation([runs[i][0] for i in rows], [runs[i][1] for i in rows], inputs.kind)
                for name, runs in inputs.forcing.items()
            }
        )
        for part in self.forcing.parameters():
            part.requires_grad_(False)

    def forward(self, t: Float[Tensor, "*more lane"]) -> dict[str, Tensor]:
        """name -> value, (lane,) or of the shape of t."""
        values = self.inputs.numbers(self.trajectory)
        return values | {name: forcing(t) for name, forcing in self.forcing.items()}

    def along(self, t: Float[Tensor, "lane time"]) -> dict[str, Tensor]:
        """name -> value, of a shape that broadcasts against t."""
        values = {name: value.unsqueeze(-1) for name, value in self.inputs.numbers(self.trajectory).items()}
        return values | {name: forcing(t.T).T for name, forcing in self.forcing.items()}


def _check_fixed(name: str, fitted: bool, what: str) -> None:
    if fitted:
        raise InputError(
            f"the {what} {name!r} of the data is a fitted parameter of the model",
            expected="a fixed one, or another name",
            fix=f'Give the parameter a number: parameters={{"{name}": 0.0}}.',
        )


def restored(model: Model, data: Dataset, values: Mapping[str, Array]) -> Inputs:
    """The `Inputs` of a fit from the numbers that were fitted."""
    inputs = Inputs(model, data, list(values))
    for name, numbers in values.items():
        inputs.set(name, numbers)
    return inputs
