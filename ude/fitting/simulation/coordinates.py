"""The coordinates in which a fit integrates: log u for states that are positive, u over its scale for the others.

In z = log u a state can never cross zero, whatever a half-trained network says, and a tolerance means a relative error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.simulation.trajectory_inputs import PerTrajectory
from ude.models import Model

Positive = bool | str | Sequence[str]


class Coordinates:
    """u <-> z: ``z = log u`` where `positive`, else ``z = u / scale``; both over the last axis (state)."""

    def __init__(self, positive: npt.ArrayLike, scale: npt.ArrayLike) -> None:
        self.positive = torch.as_tensor(np.asarray(positive, dtype=bool))
        self.scale = torch.as_tensor(np.asarray(scale, dtype=np.float64))
        self.all_positive = bool(self.positive.all())  # asked here: a program that is traced cannot ask a tensor

    def natural(self, z: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        if self.all_positive:
            return z.exp()
        # The other branch of a `where` must stay finite, or its zero gradient becomes 0 * inf.
        return torch.where(self.positive, torch.where(self.positive, z, 0.0).exp(), z * self.scale)

    def inner(self, u: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch state"]:
        return torch.where(self.positive, torch.where(self.positive, u, 1.0).log(), u / self.scale)

    def inner_rate(self, u: Tensor, du: Tensor) -> Tensor:
        """dz/dt from u and du/dt."""
        return du / torch.where(self.positive, u, self.scale)


class InnerField(nn.Module):
    """``dz/dt = f(u(z), p, t) dz/du``: a model in the coordinates of a fit. Owns the model, hence its parameters.

    lanes: the parameters that differ between the lanes of a batch; None where none does
    """

    def __init__(self, model: Model, coordinates: Coordinates, lanes: PerTrajectory | None = None) -> None:
        super().__init__()
        self.model, self.coordinates, self.lanes = model, coordinates, lanes

    def forward(self, z: Tensor, p: None, t: Tensor) -> Tensor:
        u = self.coordinates.natural(z)
        p = None if self.lanes is None else self.lanes(t)
        return self.coordinates.inner_rate(u, self.model(u, p, t))

    def overrides(self, t: Float[Tensor, "lane time"]) -> dict[str, Tensor] | None:
        """What stands in the place of the model's parameters along the times of each lane."""
        return None if self.lanes is None else self.lanes.along(t)


def positive_states(
    data: Dataset, positive: Positive, column_of: Mapping[str, int | None] | None = None
) -> npt.NDArray[np.bool_]:
    """(state,): which states are positive. "auto": those whose data all are; True, False, or names of states.

    column_of: state -> the column that measures just it, None where there is none; None: the columns are the states. A
    state without a column is positive only if `positive` says so.

    Raises `InputError` for a name that is no state, `DataError` for a state said to be positive whose data are not.
    """
    columns = {state: i for i, state in enumerate(data.states)} if column_of is None else column_of
    least = {
        state: np.nan if column is None else float(np.nanmin(data.values()[:, column]))
        for state, column in columns.items()
    }
    if isinstance(positive, str) and positive == "auto":
        return np.array([value > 0 for value in least.values()])
    if isinstance(positive, bool):
        named = tuple(least) if positive else ()
    else:
        if not isinstance(positive, Iterable):
            raise InputError('positive must be "auto", True, False or names of states', got=repr(positive))
        named = tuple(n.strip() for n in positive.split(",")) if isinstance(positive, str) else tuple(positive)
    for name in named:
        if name not in least:
            raise InputError(
                f"positive names {name!r}",
                expected=f'"auto", True, False or some of {", ".join(least)}',
            )
        if least[name] <= 0:
            raise DataError(
                f"state {name!r} is said to be positive",
                expected="data above zero",
                got=f"{least[name]:g}",
                fix="Leave the state out of positive=..., or drop the rows with zero or less.",
            )
    return np.array([state in named for state in least])
