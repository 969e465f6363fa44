"""Forward sensitivities of simulated windows to everything that is fitted: ``S = dz/dθ`` along ``dS/dt = A S + B``.

``A = ∂f/∂z`` and ``B = ∂f/∂θ`` are computed for all times at once, so that only products of small matrices run one
after another: a Jacobian of hundreds of weights costs about what a few gradients cost, whatever the number of data.

The linear equation is integrated by Radau IIA of order 5 between the times that the solver of the states stepped to
(Hairer & Wanner, Solving ODEs II, IV.5), which stays stable where these steps are long against the fast motions of a
stiff problem. It is a Jacobian for Gauss-Newton steps, as accurate as the solve; exact derivatives of the discrete
solve are what reverse sweeps give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call

from ude.fitting.coordinates import InnerField
from ude.fitting.jacobians import at_points, rows

_ROOT = 6.0**0.5
_NODES = torch.tensor([(4 - _ROOT) / 10, (4 + _ROOT) / 10, 1.0], dtype=torch.float64)
_RADAU = torch.tensor(
    [
        [(88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225],
        [(296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225],
        [(16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9],
    ],
    dtype=torch.float64,
)
_STATE, _TIME = "z of a point", "t of a point"  # no names of parameters


@dataclass(frozen=True, eq=False)
class Grid:
    """The steps of the linear equation: those of the solver, cut at the times of the data.

    edges: (window, edge), increasing, padded by repeating the last
    place: (window, time), the edge of each time of the data
    """

    edges: Float[Tensor, "window edge"]
    place: Int[Tensor, "window time"]

    @classmethod
    def of(cls, t: Float[Tensor, "window time"], accepted: Float[Tensor, "window step"]) -> Grid:
        """t: times of the data; accepted: the times that the solver stepped to."""
        rows = [np.unique(np.concatenate([a, b])) for a, b in zip(t.numpy(), accepted.numpy(), strict=True)]
        longest = max(len(row) for row in rows)
        edges = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
        place = np.stack([np.searchsorted(row, own) for row, own in zip(rows, t.numpy(), strict=True)])
        return cls(torch.as_tensor(edges), torch.as_tensor(place))

    @property
    def steps(self) -> Float[Tensor, "window step"]:
        return self.edges.diff(dim=1)

    @property
    def nodes(self) -> Float[Tensor, "window node"]:
        """The first edge, then three nodes a step, the last of which is the next edge."""
        inner = self.edges[:, :-1, None] + self.steps[..., None] * _NODES
        inner[..., -1] = self.edges[:, 1:]
        return torch.cat([self.edges[:, :1], inner.flatten(1)], 1)


class Variational:
    """The variational equation of a model in inner coordinates.

    parameters: the leaves that are fitted, of the model and of its `Inputs`; θ is all of them, flattened in this order
    """

    def __init__(self, field: InnerField, parameters: Sequence[Tensor]) -> None:
        self.field, self.parameters = field, list(parameters)
        named = {id(p): name for name, p in field.model.named_parameters()}
        self.names = [named.get(id(p)) for p in self.parameters]
        self.size = sum(p.numel() for p in self.parameters)

    def _jacobians(
        self, z: Float[Tensor, "point state"], t: Float[Tensor, " point"], own: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of dz/dt: to the model's parameters; and to z, and what overrides parameters at each point."""
        model, coordinates = self.field.model, self.field.coordinates
        theta = {n: p for n, p in zip(self.names, self.parameters, strict=True) if n is not None}

        def rate(theta: dict[str, Tensor], own: dict[str, Tensor]) -> Tensor:
            overrides = {name: value for name, value in own.items() if name not in (_STATE, _TIME)}
            u = coordinates.natural(own[_STATE])
            return coordinates.inner_rate(u, functional_call(model, theta, (u, overrides or None, own[_TIME])))

        return at_points(rate, z.shape[-1], theta, {_STATE: z, _TIME: t, **own})

    def linear(
        self, z: Float[Tensor, "window node state"], t: Float[Tensor, "window node"]
    ) -> tuple[Float[Tensor, "window node state state"], Float[Tensor, "window node state parameter"]]:
        """A and B."""
        windows, nodes, states = z.shape
        inputs = self.field.inputs
        with torch.no_grad():
            values = {} if inputs is None else {k: v.expand(t.shape) for k, v in inputs.along(t).items()}
            flat = {name: value.reshape(-1) for name, value in values.items()}
            to_theta, to_own = self._jacobians(z.reshape(-1, states), t.reshape(-1), flat)
        parts = [
            torch.zeros(windows, nodes, states, p.numel(), dtype=z.dtype)
            if name is None
            else to_theta[name].reshape(windows, nodes, states, -1)
            for name, p in zip(self.names, self.parameters, strict=True)
        ]
        b = torch.cat([z.new_zeros(windows, nodes, states, 0), *parts], -1)
        for name, chain in self._chains().items():
            b = b + to_own[name].reshape(windows, nodes, states, 1) * chain[:, None, None, :]
        return to_own[_STATE].reshape(windows, nodes, states, states), b

    def _chains(self) -> dict[str, Float[Tensor, "window parameter"]]:
        """Derivatives of the parameters that each trajectory has its own of."""
        inputs = self.field.inputs
        if inputs is None:
            return {}
        with torch.enable_grad():
            values = inputs.source.numbers(inputs.trajectory)
            return {name: rows(values[name], self.parameters) for name in inputs.source.own}

    def __call__(
        self, grid: Grid, z: Float[Tensor, "window node state"]
    ) -> Float[Tensor, "window time state parameter_or_start"]:
        """dz/d(θ, z₀) at the times of the data, z being the states at `grid.nodes`."""
        states, number = z.shape[-1], self.size
        a, b = self.linear(z[:, 1:], grid.nodes[:, 1:])
        windows, steps = grid.steps.shape
        h = grid.steps[..., None, None]
        a, b = a.reshape(windows, steps, 3, states, states), b.reshape(windows, steps, 3, states, number)
        # k_i = A_i (S + h Σ a_ij k_j) + B_i for all steps at once: k is linear in S.
        block = torch.einsum("ij,wsiab->wsiajb", _RADAU, a).reshape(windows, steps, 3 * states, 3 * states)
        right = torch.cat([b, a], -1).reshape(windows, steps, 3 * states, -1)
        # small matrices and hundreds of right-hand sides: a product is much quicker than LAPACK's substitution
        k = torch.linalg.inv(torch.eye(3 * states, dtype=z.dtype) - h * block) @ right
        grown = h * (_RADAU[2] @ k.reshape(windows * steps, 3, -1)).reshape(windows, steps, states, -1)
        transfer = torch.eye(states, dtype=z.dtype) + grown[..., number:]
        s = torch.cat([z.new_zeros(windows, states, number), torch.eye(states).to(z).expand(windows, -1, -1)], -1)
        found = [s]
        for step in range(steps):
            s = transfer[:, step] @ s
            s[..., :number] += grown[:, step, :, :number]
            found.append(s)
        return torch.stack(found, 1)[torch.arange(windows).unsqueeze(-1), grid.place]
