"""Whether the equations of a fit are stiff, seen along its smoothed data before any simulation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ude.fitting.simulation.coordinates import InnerField
from ude.methods import Algorithm, KenCarp4, Tsit5

# Where Tsit5's region of absolute stability meets the negative real axis.
_STABLE = 3.3
# Steps that stability alone may ask of a trajectory, for each of its points, before a stiff method is cheaper: a step
# of KenCarp4 costs about as much as five to ten of Tsit5.
_STEPS_A_POINT = 20.0
_MOST_POINTS = 50


def algorithm_for(
    field: InnerField,
    z: Float[Tensor, "point state"],
    t: Float[Tensor, " point"],
    trajectory: Int[Tensor, " point"],
    points: int,
) -> Algorithm:
    """`KenCarp4` where Tsit5 would have to take more than 20 steps a datum to stay stable, else `Tsit5`.

    An explicit method is stable while ``h |Re λ| < 3.3``, λ the eigenvalues of the Jacobian of dz/dt; between two
    points the fastest decay is taken as constant.

    points: data of the longest trajectory
    """
    first = trajectory == trajectory[torch.bincount(trajectory).argmax()]
    place = first.nonzero().squeeze(-1)
    place = place[torch.linspace(0, len(place) - 1, min(_MOST_POINTS, len(place))).round().long()]
    if len(place) < 2:
        return Tsit5()
    rates = [_fastest_decay(field, z, t, int(i)) for i in place]
    fast = torch.tensor(rates, dtype=torch.float64)
    steps = float(torch.trapezoid(fast, t[place])) / _STABLE
    return KenCarp4() if steps > _STEPS_A_POINT * points else Tsit5()


def _fastest_decay(field: InnerField, z: Tensor, t: Tensor, i: int) -> float:
    """The largest -Re λ at one point; zero where nothing decays or the model cannot say."""
    leaf = z[i : i + 1].detach().clone().requires_grad_()
    with torch.enable_grad():
        du = field.coordinates.inner_rate(
            field.coordinates.natural(leaf), field.model(field.coordinates.natural(leaf), None, t[i : i + 1])
        )
        rows = [
            torch.autograd.grad(du[0, k], leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0][0]
            for k in range(du.shape[-1])
        ]
    jacobian = torch.stack(rows)
    if not bool(torch.isfinite(jacobian).all()):
        return 0.0
    return max(0.0, float((-torch.linalg.eigvals(jacobian).real).max()))
