"""Before training: networks see and give numbers near one, and parameters without a value get one from the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ude.models import MLP, Model, Neural, Parameter


@torch.no_grad()
def redraw_networks(model: Model, seed: int) -> None:
    """Draw the weights of each `MLP` again from its own seed plus `seed`, unless something has changed them already."""
    for term in model.terms.values():
        if isinstance(term, MLP) and _same(term, _fresh(term, term.seed)):
            term.module.load_state_dict(_fresh(term, term.seed + seed).module.state_dict())


def _fresh(term: MLP, seed: int) -> MLP:
    return MLP(term.outputs, term.inputs, term.width, term.depth, term.activation, seed)


def _same(term: MLP, other: MLP) -> bool:
    return all(torch.equal(a, b) for a, b in zip(term.module.parameters(), other.module.parameters(), strict=True))


@torch.no_grad()
def set_network_scales(
    model: Model,
    u: Float[Tensor, "point state"],
    du: Float[Tensor, "point state"],
    t: Float[Tensor, " point"],
    p: Mapping[str, Tensor] | None = None,
) -> None:
    """Scales of each network that still has none.

    p overrides parameters, as in `Model.forward`. Inputs: mean and standard deviation along the smoothed trajectories.
    Outputs: the size that the derivatives ask for, ``rms(du_i) / rms(∂f_i/∂output)``. Where an output occurs in several
    equations i, the smallest of what these can bear, where what an equation is without networks counts as well as du_i:
    people move from a large group to a small one at a rate that is read from the small one.
    """
    calls = model.record_calls(u, p, t)
    for term in model.terms.values():
        if not isinstance(term, Neural) or not _has_no_scales(term):
            continue
        seen = calls[next(name for name in term.outputs if name in calls)]
        shift, spread = [], []
        for name in term.inputs:
            values = torch.cat([_at_points(call.inputs[name], len(u)) for call in seen])
            values = values[torch.isfinite(values)]
            mean = values.mean() if len(values) else torch.zeros(())
            deviation = values.std() if len(values) > 1 else torch.zeros(())
            shift.append(float(mean))
            spread.append(float(deviation) if deviation > 1e-9 * abs(mean) else max(abs(float(mean)), 1.0))
        sizes = [_output_size(model, term, index, du, lambda: model(u, p, t)) for index in range(len(term.outputs))]
        term.set_scales(shift, spread, sizes)


def _at_points(value: Tensor, points: int) -> Tensor:
    """All values of an input: a constant has no axis of points; a field, such as the cells of a grid, one more."""
    return value.expand(points, *value.shape[1:]).reshape(-1)


def _has_no_scales(term: Neural) -> bool:
    return bool((term.input_shift == 0).all() and (term.input_scale == 1).all() and (term.output_scale == 1).all())


def _output_size(model: Model, term: Neural, index: int, du: Tensor, rates: Callable[[], Tensor]) -> float:
    """How large an output must be for its effect on du/dt to be as large as du/dt. Tried, not read from equations, so
    that it serves any right-hand side."""

    def add_one(output: int, value: Tensor) -> Tensor:
        return value + 1.0 if output == index else value

    before = rates()
    with _changed([term], add_one):
        effect = rates() - before
    touched = [i for i in range(du.shape[-1]) if _rms(effect[:, i]) > 0 and _rms(du[:, i]) > 0]
    sizes = [_rms(du[:, i]) / _rms(effect[:, i]) for i in touched]
    if len(touched) > 1:
        with _changed([t for t in model.terms.values() if isinstance(t, Neural)], lambda _, value: 0.0 * value):
            asked = du - rates()
        sizes = [max(size, _rms(asked[:, i]) / _rms(effect[:, i])) for i, size in zip(touched, sizes, strict=True)]
    return min((size for size in sizes if 0 < size < float("inf")), default=1.0)


@contextmanager
def _changed(terms: Sequence[Neural], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, `change(number of the output, value)` stands in the place of every output of the terms."""

    def hook(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not isinstance(outputs, tuple):
            return change(0, outputs)
        return tuple(change(i, value) for i, value in enumerate(outputs))

    handles = [term.register_forward_hook(hook) for term in terms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rms(x: Tensor) -> float:
    return float(x[torch.isfinite(x)].square().mean().sqrt()) if bool(torch.isfinite(x).any()) else 0.0


def unset_parameters(model: Model) -> dict[str, Parameter]:
    return {name: entry for name, entry in model.parameters_table.items() if entry.fitted and entry.value is None}


def rate_of(z: Float[Tensor, "point state"], dz: Float[Tensor, "point state"]) -> float:
    """One over the time scale of the motion: the mean over the states of ``rms(dz/dt) / std(z)``."""
    rates = [float(dz[:, i].square().mean().sqrt() / z[:, i].std()) for i in range(z.shape[-1]) if z[:, i].std() > 0]
    rates = [rate for rate in rates if 0 < rate < float("inf")]
    return sum(rates) / len(rates) if rates else 1.0


def start_values(unset: Mapping[str, Parameter], value: float) -> dict[str, float]:
    """`value` for every parameter, or the nearest inside its bounds."""
    result = {}
    for name, entry in unset.items():
        low = -float("inf") if entry.lower is None else entry.lower
        high = float("inf") if entry.upper is None else entry.upper
        margin = 1e-3 * (high - low) if high - low < float("inf") else 1e-3 * value
        result[name] = min(max(value, low + margin), high - margin)
    return result
