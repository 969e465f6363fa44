"""Find right-hand sides that couple the trajectories of a batch, before each is given its own steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ude.engines import SolveSpec
from ude.engines.base import as_batch
from ude.errors import InputError
from ude.problems.function import DETERMINISTIC, innermost
from ude.problems.ode import FlatRightHandSide

# A trajectory depends on another when its derivative moves by more than rounding: this many epsilons of the largest.
_ROUNDINGS = 1e4
# A change of the state that no activation function swallows, and that leaves few domains.
_CHANGE = 1e-2
# Calls of f at most: enough for every pair of 64 trajectories, in both directions.
_MOST_CALLS = 12

# What was found independent: per f, the shapes of the batch with the kinds of its modules.
_INDEPENDENT: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()


def require_independent(spec: SolveSpec, u0: Float[Tensor, "B n"], p: tuple[Tensor, ...]) -> None:
    """Refuse an f in which the derivative of one trajectory depends on the state of another.

    Each trajectory has its own steps, so that f is called with the states of different times side by side; a graph
    network over the rows of u0, a convolution or an attention would then be wrong without a word. Some trajectories
    are moved and the derivatives of the others compared, once for each f and shape of the batch.

    Raises:
        InputError: f couples trajectories, or gives another value at each call.
    """
    if len(u0) < 2 or not isinstance(spec.f, FlatRightHandSide):
        return
    f = innermost(spec.f.f)
    key = (spec.batch, tuple(u0.shape), tuple(type(module) for module in spec.f.modules))
    try:
        known = _INDEPENDENT.setdefault(f, set())
    except TypeError:  # a callable without weak references is looked at every time
        known = set()
    if key in known:
        return
    coupled = _coupled_pair(spec, u0, p)
    if coupled is not None:
        _refuse(spec, u0, p, coupled)
    known.add(key)


def _coupled_pair(spec: SolveSpec, u0: Tensor, p: tuple[Tensor, ...]) -> tuple[int, float] | None:
    """A trajectory whose derivative moved with others, and by how much; None where none did."""
    expected = spec.first_du
    size = expected.nan_to_num(0.0, 0.0, 0.0).abs().amax()
    tolerance = _ROUNDINGS * torch.finfo(u0.dtype).eps * size
    change = _CHANGE * (1.0 + u0.abs())
    for moved in _partitions(len(u0), u0.device):
        try:
            du = as_batch(spec, torch.where(moved.unsqueeze(-1), u0 + change, u0), spec.t0, p)
        except Exception:  # the moved states may lie outside the domain of f
            return None
        difference = torch.where(moved.unsqueeze(-1), 0.0, du - expected).nan_to_num(0.0, 0.0, 0.0).abs().amax(-1)
        if bool((difference > tolerance).any()):
            worst = int(difference.argmax())
            return worst, float(difference[worst])
    return None


def _partitions(count: int, device: torch.device) -> Iterator[Bool[Tensor, "B"]]:
    """Sets of trajectories of which any two are told apart by one, in both directions: those with a given binary digit
    of their place."""
    place = torch.arange(count, device=device)
    for digit in range(min((count - 1).bit_length(), _MOST_CALLS // 2)):
        one = (place >> digit) % 2 == 1
        yield one
        yield ~one


def _refuse(spec: SolveSpec, u0: Tensor, p: tuple[Tensor, ...], found: tuple[int, float]) -> None:
    # what `first_call` cannot see: random numbers of another library or device, or a state of f's own
    one, other = (as_batch(spec, u0, spec.t0, p) for _ in range(2))
    if not torch.equal(one, other):
        raise InputError(
            DETERMINISTIC,
            got=f"values that differ by up to {float((one - other).abs().max()):.2g}",
            fix="Put dropout and batch normalization into evaluation mode (module.eval()), and draw random numbers "
            "before the solve.",
        )
    who, moved = found
    shape = (*spec.batch, u0.shape[1])
    axes = len(shape)
    raise InputError(
        "trajectories of a batch have steps of their own, so du/dt of one must not depend on another",
        got=f"an f that moves du/dt of trajectory {who} by {moved:.2g} when others move, for u0 of shape {shape}",
        fix=f"If all of u0 is one state (nodes of a graph, cells of a grid), give ODEProblem(..., state_dims={axes}), "
        "or set f.state_dims; if trajectories are coupled, solve(..., shared_steps=True).",
    )
