"""Neural ordinary differential equations: the UDE with nothing known."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ude.errors import InputError
from ude.models.equations.names import TIME, split_names
from ude.models.terms import Neural
from ude.models.universal import UDE


class NeuralODE(UDE):
    """``du/dt = net(u)`` (Chen et al. 2018, arXiv:1806.07366), as the UDE ``dx/dt = f_x(x, y), dy/dt = f_y(x, y)``.

    net:    a module (*batch, state) -> (*batch, state), cast to float64 in place; or an `MLP`/`Neural` with one output
            a state, whose inputs are the states and, if it wants it, ``t``
    states: "x, y"; None: the inputs of a `Neural`, or u1, u2, ... as many as the last layer of `net` has outputs

    Raises InputError when the number of states and outputs differ, or the states cannot be told.

    >>> model = ude.NeuralODE(ude.MLP("f, g", inputs="x, y"), states="x, y")
    >>> model(torch.zeros(10, 2).double()).shape
    torch.Size([10, 2])
    """

    def __init__(self, net: nn.Module, states: str | Iterable[str] | None = None) -> None:
        if not isinstance(net, nn.Module):
            raise InputError("the network of a NeuralODE is not a torch module", expected="nn.Module", got=repr(net))
        names = _states_of(net) if states is None else split_names(states, "states")
        term = net if isinstance(net, Neural) else Neural(net, names, tuple(f"f_{name}" for name in names))
        if len(term.outputs) != len(names):
            raise InputError(
                "the network of a NeuralODE needs one output a state",
                expected=f"{len(names)} for {', '.join(names)}",
                got=f"{len(term.outputs)} ({', '.join(term.outputs)})",
            )
        arguments = ", ".join(term.inputs)
        lines = [f"d{name}/dt = {output}({arguments})" for name, output in zip(names, term.outputs, strict=True)]
        super().__init__(lines, unknown=term)


def _states_of(net: nn.Module) -> tuple[str, ...]:
    if isinstance(net, Neural):
        return tuple(name for name in net.inputs if name != TIME)
    sizes = [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]
    if not sizes:
        raise InputError(
            "the states of a NeuralODE cannot be told from its network", fix='Name them: NeuralODE(net, states="x, y").'
        )
    return tuple(f"u{index + 1}" for index in range(sizes[-1]))
