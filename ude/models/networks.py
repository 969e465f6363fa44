"""Networks for unknown functions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ude.errors import InputError
from ude.models.equations.names import did_you_mean, split_names
from ude.models.terms import Neural, check_not_empty

MOST_LAYERS = 1000
MOST_WEIGHTS = 100_000_000
"""Of a network, 0.8 GB in double precision; training needs several times as much."""


class GaussianBump(nn.Module):
    """``exp(-x²)``, the radial activation of Rackauckas et al. 2020 (arXiv:2001.04385)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-x * x)


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "rbf": GaussianBump,
}


class MLP(Neural):
    """A small fully connected network as a term: ``ude.MLP("U1, U2", inputs="x, y", width=16)``.

    `depth` hidden layers of `width` units, float64. Weights are uniform in ``±sqrt(6/(fan_in + fan_out))`` (Glorot &
    Bengio 2010), biases zero, drawn from a generator of its own: the same `seed` gives the same network, and
    torch's global random state is left alone.

    Raises InputError for names, sizes or an activation that do not make a network, and for more than 1000 layers or
    100 million weights.

    >>> net = ude.MLP("U1, U2", inputs="x, y", width=8)
    >>> first, second = net(torch.ones(5).double(), torch.zeros(5).double())
    >>> first.shape
    torch.Size([5])
    """

    #: The layers say all that these do: see `ude.compile.value_kinds.class_plan`.
    __untraced__ = ("width", "depth", "activation", "seed")

    def __init__(
        self,
        outputs: str | Iterable[str],
        inputs: str | Iterable[str],
        width: int = 16,
        depth: int = 2,
        activation: str = "tanh",
        seed: int = 0,
    ) -> None:
        outputs = split_names(outputs, "outputs of a network")
        inputs = split_names(inputs, "inputs of a network")
        for name, number, least in (("width", width, 1), ("depth", depth, 0), ("seed", seed, 0)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise InputError(f"{name} of a network must be an integer of at least {least}", got=repr(number))
        if seed >= 2**63:
            raise InputError("seed of a network must be less than 2**63", got=str(seed))
        if depth > MOST_LAYERS:
            raise InputError(f"depth of a network must be at most {MOST_LAYERS}", got=str(depth))
        if activation not in ACTIVATIONS:
            raise InputError(
                f"unknown activation {activation!r}",
                expected=f"one of {', '.join(ACTIVATIONS)}",
                fix=did_you_mean(str(activation), ACTIVATIONS),
            )
        check_not_empty(inputs, outputs)
        # Counted before anything is made: a width of 1e10 would take all memory.
        weights = len(inputs) * len(outputs)
        if depth:
            weights = width * (len(inputs) + len(outputs) + width * (depth - 1))
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"a network must have at most {MOST_WEIGHTS:,} weights",
                got=f"{weights:,} with width={width} and depth={depth}",
                fix="An unknown function of a few inputs needs a width of 8 to 64.",
            )
        sizes = [len(inputs), *[width] * depth, len(outputs)]
        super().__init__(_dense_layers(sizes, ACTIVATIONS[activation], seed), inputs, outputs)
        self.width, self.depth, self.activation, self.seed = width, depth, activation, seed

    def describe(self) -> dict[str, Any]:
        """What `Model.to_dict` writes."""
        return {
            "kind": "mlp",
            "outputs": list(self.outputs),
            "inputs": list(self.inputs),
            "width": self.width,
            "depth": self.depth,
            "activation": self.activation,
            "seed": self.seed,
        }


def _dense_layers(sizes: list[int], activation: type[nn.Module], seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        # nn.Linear's own initialization would draw from the global random state.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float64)
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        with torch.no_grad():
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.zero_()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])
