"""What a solve does about the switches of its right-hand side: stops at those of time, and says what it cannot know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from ude.compile.fingerprint import fingerprint
from ude.engines import SolveSpec
from ude.errors import InputError
from ude.problems.inspection import Inspection, inspect, leaf_names
from ude.problems.ode import FlatRightHandSide
from ude.problems.switches import (
    StepwiseConstant,
    Switch,
    SwitchGraph,
    Unsolvable,
    crossed,
    jumping,
    switch_times,
    trace_switches,
)
from ude.solving.first_call import explained_errors

# At how many points of a span the switches of the state are looked at after the solve.
_POINTS = 257
# Stops that differ by so many units of rounding are the same.
_SAME = 32
_REMEDY = (
    "Make it an event: a ude.ContinuousCallback whose condition is the argument of the switch, or with times a "
    "ude.PresetTimeCallback; or a smooth switch such as torch.sigmoid(x / width)."
)


@dataclass(frozen=True, eq=False)
class SwitchStops:
    """What is known about the switches of a solve.

    Args:
        stops: Times at which f jumps, a row for each trajectory; differentiable where they move with a parameter.
        graph, jumps: The graph of f, and its switches of state at which f itself jumps.
        line: Where f has the first of those.
        notes: What the solution says about them.
    """

    stops: Float[Tensor, "B k"]
    graph: SwitchGraph | None = None
    jumps: tuple[Switch, ...] = ()
    line: str = ""
    notes: tuple[str, ...] = ()

    def beside(self, known: Float[Tensor, "B j"]) -> Float[Tensor, "B j+k"]:
        """The stops that are known, and of these the ones that differ from them by more than rounding, or move."""
        if self.stops.requires_grad or not known.shape[1]:
            return torch.cat([known, self.stops], -1)
        unit = torch.finfo(known.dtype).eps * known.abs().nan_to_num(0.0).amax()
        same = ((self.stops.unsqueeze(-1) - known.unsqueeze(1)).abs() <= _SAME * unit).any(-1)
        return torch.cat([known, torch.where(same, float("nan"), self.stops)], -1)

    def require_none_passed(self, spec: SolveSpec, dense: Callable[[Tensor], Tensor]) -> None:
        """Check that no trajectory has passed a switch of the state, whose time would move with the parameters.

        Args:
            dense: The dense output at times (B, k): (B, k, n).

        Raises:
            InputError: One has.
        """
        if not self.jumps or self.graph is None or spec.start is None:
            return
        with torch.no_grad():
            part = torch.linspace(0.0, 1.0, _POINTS, dtype=spec.t0.dtype, device=spec.t0.device)
            times = torch.lerp(spec.t0.unsqueeze(-1), spec.t1.unsqueeze(-1), part)
            states = dense(times).reshape(len(times), _POINTS, -1)
            found = crossed(self.graph, self.jumps, spec.start[1], times.T, states.transpose(0, 1))
        if found is not None:
            raise InputError(
                f"the state passes a switch of f ({found.kind}), and no sensitivity sees that the time at which it "
                f"does so moves{self.line}",
                fix=_REMEDY,
            )


def inspected(spec: SolveSpec) -> tuple[SolveSpec, Inspection]:
    """Look at f before it is called, and give functions without a derivative their derivative of zero.

    Raises:
        InputError: f changes its arguments in place, or loses a derivative that is asked for.
    """
    if spec.start is None or not isinstance(spec.f, FlatRightHandSide):
        return spec, Inspection()
    u0, p = spec.start
    u, t = u0.detach().view(*spec.batch, u0.shape[-1]), spec.t0.view(spec.batch)
    with explained_errors(spec.f, u, p, t):  # it may be the first call of f
        found = inspect(spec.f, u, p, t, gradient=spec.gradient)
    if spec.gradient:
        found.require_derivative(_wanted(spec.f, p))
        if found.undefined:
            spec = replace(spec, f=StepwiseConstant.of(spec.f))
    return spec, found


def _wanted(f: FlatRightHandSide, p: tuple[Tensor, ...]) -> frozenset[str]:
    names = leaf_names(f)
    return frozenset(["u", *(name for name, leaf in zip(names, p, strict=True) if leaf.requires_grad)])


def switch_stops(spec: SolveSpec, found: Inspection, *, named: bool) -> SwitchStops:
    """Find the switches of f, and the times of those that only the time moves.

    Args:
        named: Whether an engine was asked for by name that cannot stop.

    Raises:
        InputError: A gradient is asked for, and a switch moves in a way that cannot be followed.
    """
    none = spec.t0.new_empty(len(spec.t0), 0)
    if spec.start is None or not isinstance(spec.f, FlatRightHandSide):
        return SwitchStops(none)
    u0, p = spec.start
    hidden = [one for one in (*found.decided, *found.left) if one.sources & {"u", "t"}]
    notes = tuple(
        f"f takes {one.names} out of torch by {one.how}, so the solver may pass a switch there without seeing it"
        f"{one.line}."
        for one in hidden[:1]
    )
    if not found.switches:
        return SwitchStops(none, notes=notes)
    graph = _graph(spec)
    wanted = _wanted(spec.f, p) if spec.gradient else frozenset()
    moving = [one for one in found.switches if "t" in one.sources and one.sources & (wanted - {"u"})]
    if graph is None:
        if moving:
            raise _refusal(moving[0].how, moving[0].line, "f cannot be traced")
        return SwitchStops(none, notes=notes or ("f has switches that the solver may pass without seeing them.",))
    stops = none
    if graph.of_time:
        try:
            stops = switch_times(graph, u0.detach().view(*spec.batch, -1), p, (spec.t0, spec.t1))
        except Unsolvable as reason:
            if moving:
                raise _refusal(moving[0].how, moving[0].line, f"f has switches {reason}") from None
            notes = (*notes, f"f has switches {reason}, which the solver may pass without seeing them.")
    if stops.requires_grad and not spec.algorithm.reports_steps:
        raise _refusal(found.switches[0].how, found.switches[0].line, "this engine does not stop at them")
    if not stops.requires_grad and (named or not spec.adaptive or not spec.algorithm.reports_steps):
        if stops.shape[1]:
            notes = (
                *notes,
                "f has switches in time at which this solve does not stop, and may pass them unseen.",
            )
        stops = none
    of_state = [one for one in found.switches if "u" in one.sources]
    jumps = _jumps(graph, spec) if graph.of_state else ()
    if jumps:
        notes = (
            *notes,
            f"f jumps where the state passes a switch, which a step may pass twice{of_state[0].line}.",
        )
    line = of_state[0].line if of_state else ""
    # with fixed steps the derivative of the steps is that of the numbers that were computed
    checked = jumps if spec.gradient and spec.adaptive else ()
    return SwitchStops(stops, graph, checked, line, notes)


def _refusal(how: str, line: str, reason: str) -> InputError:
    return InputError(f"the time of a switch of f ({how}) moves with a parameter, and {reason}{line}", fix=_REMEDY)


_GRAPHS: dict[object, SwitchGraph | None] = {}
_JUMPS: WeakKeyDictionary[SwitchGraph, tuple[Switch, ...]] = WeakKeyDictionary()
_MOST = 64


def _graph(spec: SolveSpec) -> SwitchGraph | None:
    """The graph of the switches of f, remembered for as long as everything that f reads stays as it is."""
    if spec.start is None or not isinstance(spec.f, FlatRightHandSide):
        return None
    u0, p = spec.start
    print_ = fingerprint(spec.f, known=p)
    key = None
    if print_.why_not is None:
        key = (print_.key, tuple(map(id, print_.tensors)), spec.batch, u0.shape, tuple(leaf.shape for leaf in p))
    if key is not None and key in _GRAPHS:
        return _GRAPHS[key]
    graph = trace_switches(spec.f, u0.view(*spec.batch, u0.shape[-1]), p, spec.t0.view(spec.batch))
    if key is not None:
        if len(_GRAPHS) >= _MOST:
            _GRAPHS.clear()
        _GRAPHS[key] = graph
    return graph


def _jumps(graph: SwitchGraph, spec: SolveSpec) -> tuple[Switch, ...]:
    if graph not in _JUMPS and spec.start is not None:
        u0, p = spec.start
        _JUMPS[graph] = jumping(graph, u0.detach().view(*spec.batch, u0.shape[-1]), p, (spec.t0, spec.t1))
    return _JUMPS[graph]
