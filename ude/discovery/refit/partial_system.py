"""A differential equation in which terms are still unknown, and what it becomes with a formula for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.refit.closed_system import Array, ClosedSystem, Constant, ObservedTrajectory, state_scale
from ude.discovery.refit.stabilized import residual_scale
from ude.errors import ModelError
from ude.fitting.objective.noise import NoiseModel


@dataclass(frozen=True)
class PartialSystem:
    """A system in which terms are still unknown.

    equations: state -> right-hand side with unknown terms as applied functions, ``U1(hare, lynx)``.
    parameters: the model's own constants. calls: unknown term -> the names that its candidates are written in.
    positive: states that are positive by nature. observables: column of the data -> formula; empty where the columns
    are the states. state_scale: the size of each state, where its columns do not tell. noise: see `ClosedSystem`.
    errors: column -> its standard error where it is known, see `residual_scale`.
    """

    states: tuple[str, ...]
    equations: dict[str, sp.Expr]
    calls: dict[str, tuple[str, ...]]
    parameters: dict[str, Constant] = field(default_factory=dict)
    time: str = "t"
    positive: tuple[str, ...] = ()
    observables: dict[str, sp.Expr] = field(default_factory=dict)
    state_scale: tuple[float, ...] | None = None
    noise: Mapping[str, NoiseModel] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def close(self, chosen: Mapping[str, Candidate]) -> tuple[ClosedSystem, dict[str, dict[str, str]]]:
        """The system with a candidate in the place of each term, and for each term its constants' names there."""
        missing = [term for term in self.calls if term not in chosen]
        if missing:
            raise ModelError("terms without a formula", expected=", ".join(self.calls), got=f"none for {missing}")
        parameters, names, bodies = dict(self.parameters), {}, {}
        for term, candidate in chosen.items():
            own = {constant: f"{term}_{constant}" for constant in candidate.constants}
            clash = sorted(set(own.values()) & ({*parameters, *self.states, self.time}))
            if clash:
                raise ModelError(
                    f"name {clash[0]}", expected="a name of its own", fix=f"Rename the parameter {clash[0]}."
                )
            parameters.update({name: Constant(candidate.constants[constant]) for constant, name in own.items()})
            bodies[term] = candidate.expression.xreplace({sp.Symbol(c): sp.Symbol(n) for c, n in own.items()})
            names[term] = own
        equations = {state: self._substitute(rate, bodies) for state, rate in self.equations.items()}
        closed = ClosedSystem(
            self.states, equations, parameters, self.time, self.positive, self.observables, self.noise
        )
        return closed, names

    @property
    def columns(self) -> tuple[str, ...]:
        """What the data hold."""
        return tuple(self.observables) or self.states

    def sizes(self, trajectories: Sequence[ObservedTrajectory]) -> Array:
        """The size of each state, for tolerances."""
        return state_scale(trajectories) if self.state_scale is None else np.array(self.state_scale)

    def residual_scale(self, trajectories: Sequence[ObservedTrajectory]) -> Array:
        """(column,): what counts as one among residuals."""
        return residual_scale(self.noise, self.columns, trajectories, self.errors)

    def _substitute(self, rate: sp.Expr, bodies: Mapping[str, sp.Expr]) -> sp.Expr:
        for call in rate.atoms(sp.core.function.AppliedUndef):
            term = str(call.func)
            if term not in bodies:
                raise ModelError(f"no formula for {call}", expected=f"one of {', '.join(bodies)}")
            formal = [sp.Symbol(name) for name in self.calls[term]]
            if len(formal) != len(call.args):
                raise ModelError(f"{call}", expected=f"{len(formal)} arguments", got=str(len(call.args)))
            rate = rate.xreplace({call: bodies[term].xreplace(dict(zip(formal, call.args, strict=True)))})
        return rate
