"""Callbacks: events and interventions that act on the state while it is integrated.

A condition and an affect are functions ``(u, p, t)`` of the same shapes as f: u ``(*batch, state)``, t ``(*batch)``.
An affect returns the new state of the whole batch, which only the trajectories in which the event happened take.

>>> dose = ude.PresetTimeCallback([1.0], lambda u, p, t: u + 1.0)
>>> reset = ude.callbacks.PeriodicCallback(2.0, lambda u, p, t: 0.0 * u)
>>> prob = ude.ODEProblem(lambda u, p, t: 0.0 * u, [0.0], (0.0, 3.0))
>>> ude.solve(prob, ude.Tsit5(), saveat=1.5, callback=[dose, reset]).u[:, 0].tolist()
[0.0, 1.0, 0.0]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ude.errors import InputError

Condition = Callable[[Tensor, Any, Tensor], Tensor]
Affect = Callable[[Tensor, Any, Tensor], Tensor]


def terminate(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """The affect that ends a trajectory with `ReturnCode.Terminated`: ``ContinuousCallback(condition, terminate)``.

    >>> ground = ude.ContinuousCallback(lambda u, p, t: u[..., 0], ude.terminate)
    >>> fall = lambda u, p, t: torch.stack([u[..., 1], torch.full_like(t, -9.81)], -1)
    >>> sol = ude.solve(ude.ODEProblem(fall, [1.0, 0.0], (0.0, 9.0)), ude.Tsit5(), callback=ground)
    >>> sol.retcode.name, round(float(sol.t[-1]), 4)
    ('Terminated', 0.4515)
    """
    return u


@dataclass(frozen=True)
class Callback:
    """Base of all callbacks."""


@dataclass(frozen=True)
class ContinuousCallback(Callback):
    """Acts where ``condition(u, p, t)`` passes through zero; the time is located on the dense output.

    The gradient passes exactly through the event: through the time at which it happens, and through the jump.

    Args:
        condition: A smooth function, ``(*batch)``.
        affect: What happens at the event, or `terminate`.
        direction: 1 for passages from below, -1 from above, 0 for both.
        interp_points: At how many points of a step the condition is evaluated; more find shorter excursions.

    Raises:
        InputError: direction or interp_points is out of range.

    >>> bounce = torch.tensor([1.0, -0.9], dtype=torch.float64)
    >>> ground = ContinuousCallback(lambda u, p, t: u[..., 0], lambda u, p, t: u * bounce, direction=-1)
    """

    condition: Condition
    affect: Affect
    direction: int = 0
    interp_points: int = 8

    def __post_init__(self) -> None:
        _check_direction(self.direction, self.interp_points)


@dataclass(frozen=True)
class VectorContinuousCallback(Callback):
    """Several conditions at once, of which the affect receives the index.

    Args:
        condition: Smooth functions, ``(*batch, count)``.
        affect: ``affect(u, p, t, index)``, where index ``(*batch)`` says which condition passed through zero in each
            trajectory.
        direction, interp_points: As of `ContinuousCallback`.

    >>> walls = lambda u, p, t: torch.stack([u[..., 0], 1.0 - u[..., 0]], -1)  # at 0 and at 1
    >>> turn = torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> reflect = ude.callbacks.VectorContinuousCallback(walls, lambda u, p, t, index: u * turn)
    >>> flight = lambda u, p, t: torch.stack([u[..., 1], 0.0 * u[..., 1]], -1)
    >>> sol = ude.solve(ude.ODEProblem(flight, [0.5, 1.0], (0.0, 2.0)), ude.Tsit5(), callback=reflect)
    >>> [round(float(event.t), 3) for event in sol.events]
    [0.5, 1.5]
    """

    condition: Condition
    affect: Callable[[Tensor, Any, Tensor, Tensor], Tensor]
    direction: int = 0
    interp_points: int = 8

    def __post_init__(self) -> None:
        _check_direction(self.direction, self.interp_points)


@dataclass(frozen=True)
class DiscreteCallback(Callback):
    """Acts at the end of every accepted step where ``condition(u, p, t)`` (booleans, ``(*batch)``) is true.

    >>> halve = ude.DiscreteCallback(lambda u, p, t: u[..., 0] > 2.0, lambda u, p, t: u / 2.0)
    >>> prob = ude.ODEProblem(lambda u, p, t: u, [1.0], (0.0, 5.0))
    >>> bool(ude.solve(prob, ude.Tsit5(), callback=halve).u[-1, 0] < 2.0)
    True
    """

    condition: Condition
    affect: Affect


@dataclass(frozen=True, eq=False)
class PresetTimeCallback(Callback):
    """Acts at given times, which the steps hit exactly: doses, switches, samples.

    Args:
        times: Times (k,), or a row for each trajectory ``(*batch, k)``. NaN is no time, so rows may differ in length.
        affect: What happens there. A time equal to the start of the span acts before the first step.

    >>> dose = ude.PresetTimeCallback([1.0, 2.0], lambda u, p, t: u + 5.0)
    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: 0.0 * u, [0.0], (0.0, 3.0)), ude.Tsit5(), callback=dose)
    >>> float(sol.u[-1, 0])
    10.0
    """

    times: Any
    affect: Affect

    def __post_init__(self) -> None:
        times = torch.as_tensor(self.times, dtype=torch.float64)
        if times.ndim == 0:
            times = times.reshape(1)
        if bool(torch.isinf(times).any()):
            raise InputError("times of a callback must be finite", got="infinity among the times")
        object.__setattr__(self, "times", times)


@dataclass(frozen=True)
class PeriodicCallback(Callback):
    """Acts every `every` units of time after the start of the span, but not at the start itself.

    >>> dose = ude.callbacks.PeriodicCallback(1.0, lambda u, p, t: u + 1.0)
    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: 0.0 * u, [0.0], (0.0, 3.5)), ude.Tsit5(), callback=dose)
    >>> float(sol.u[-1, 0])
    3.0
    """

    every: float
    affect: Affect

    def __post_init__(self) -> None:
        if not 0 < self.every < float("inf"):
            raise InputError("every must be positive and finite", got=f"every={self.every!r}")


@dataclass(frozen=True)
class IterativeCallback(Callback):
    """Acts at a time that is chosen after each action, as when the next dose depends on the patient.

    The gradient passes through the chosen time too, where it depends on u or p.

    Args:
        time_choice: ``(u, p, t) -> (*batch)``: when to act next, later than t in the direction of the solve; NaN for
            never again, and None for never again in all trajectories. Called at the start, and after each affect
            with the new state.
        affect: What happens there.
        initial_affect: Whether it acts at the start as well, before the first step.

    >>> # a dose whenever the drug has decayed by a factor of e, which takes 1/k
    >>> again = ude.callbacks.IterativeCallback(lambda u, p, t: t + 1.0 / p.k, lambda u, p, t: u + 1.0)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 3.5), dict(k=1.0))
    >>> [round(float(event.t), 3) for event in ude.solve(prob, ude.Tsit5(), callback=again).events]
    [1.0, 2.0, 3.0]
    """

    time_choice: Callable[[Tensor, Any, Tensor], Tensor | None]
    affect: Affect
    initial_affect: bool = False


@dataclass(frozen=True, eq=False)
class PositiveDomain(DiscreteCallback):
    """Keeps states from falling below zero, as ``PositiveDomain()``.

    A step that ends below ``-abstol`` is rejected and tried again, `scalefactor` times as long; a smaller negative
    number is set to zero at the end of the step. Saved values and the dense output are set to zero in the same way, so
    that nothing that is read from the solution is negative (conditions and affects of other callbacks may still see
    numbers down to ``-abstol``).

    The gradient is that of ``max(u, 0)``: zero through a state that was set to zero, until something else raises it
    again. It is the gradient of the exact solution up to the tolerance where f is smooth at zero. Where f itself
    switches there, the time of the switch moves too: then use a `ContinuousCallback`.

    The exact solution must not leave the domain: where a state is zero, its derivative must not be negative. Otherwise
    each step crosses zero by at most `abstol`, and many steps are needed. Setting a state to zero is an event of the
    solution.

    Args:
        save: Without `saveat`, whether the ends of steps at which a state was set to zero are saved.
        abstol: How far below zero a step may end, a number or one for each state; that of `solve` unless given.
        scalefactor: The factor of a step that is tried again, between 0 and 1.
        idxs: Indices of the states that must not be negative; all unless given.

    Source: L. F. Shampine, S. Thompson, J. A. Kierzenka & G. D. Byrne, Non-negative solutions of ODEs, Applied
    Mathematics and Computation 170 (2005) 556. They extrapolate to predict a negative step, and make f nonnegative
    outside the domain; here a step that ends negative is rejected, and f is unchanged.

    Raises:
        InputError: An argument is out of range; or, by `solve`, u0 is not in the domain.

    >>> # without it, the error of a loose solve goes below zero
    >>> prob = ude.ODEProblem(lambda u, p, t: -u.abs().sqrt(), [1.0], (0.0, 4.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), callback=ude.callbacks.PositiveDomain(), reltol=1e-2, abstol=1e-3)
    >>> bool((sol.u >= 0.0).all())
    True
    """

    condition: Condition = field(init=False, repr=False)
    affect: Affect = field(init=False, repr=False)
    save: bool = True
    abstol: Any = None
    scalefactor: float = 0.5
    idxs: Sequence[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "condition", lambda u, p, t: self.below(u, 0.0).any(-1))
        object.__setattr__(self, "affect", lambda u, p, t: self.project(u))
        if not 0 < self.scalefactor < 1:
            raise InputError("scalefactor must be between 0 and 1", got=f"scalefactor={self.scalefactor!r}")
        if self.abstol is not None and not bool((torch.as_tensor(self.abstol) >= 0).all()):
            raise InputError("abstol of PositiveDomain must be zero or more", got=f"abstol={self.abstol!r}")

    def below(self, u: Tensor, bound: Any) -> Tensor:
        """Return which of the chosen states of u ``(..., state)`` lie below a bound; NaN does not."""
        low: Tensor = u < bound
        if self.idxs is None:
            return low
        chosen = torch.zeros(u.shape[-1], dtype=torch.bool, device=u.device)
        chosen[list(self.idxs)] = True
        return low & chosen

    def project(self, u: Tensor) -> Tensor:
        """Return u with its negative numbers set to zero. At zero itself the derivative is one."""
        # where() rather than clamp(), so that idxs costs nothing and the gradient at zero is one
        return torch.where(self.below(u, 0.0), 0.0, u)


class SavedValues:
    """Where a `SavingCallback` writes what it saves; every solve overwrites it.

    ``saved.t``        times (k,), or with a batch a tuple of them, one for each trajectory in the order of u0's rows
    ``saved.saveval``  what save_func returned there ``(k, ...)``, or a tuple of them; differentiable like ``sol.u``

    Trajectories are not padded to a common length. Before a solve both are None.

    >>> saved = ude.callbacks.SavedValues()
    >>> save = ude.callbacks.SavingCallback(lambda u, p, t: u.square().sum(-1), saved, saveat=[0.0, 1.0])
    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: 0.0 * u, [3.0, 4.0], (0.0, 1.0)), ude.Tsit5(), callback=save)
    >>> saved.t.tolist(), saved.saveval.tolist()
    ([0.0, 1.0], [25.0, 25.0])
    """

    t: Tensor | tuple[Tensor, ...] | None = None
    saveval: Tensor | tuple[Tensor, ...] | None = None

    def __repr__(self) -> str:
        if self.t is None:
            return "SavedValues(empty)"
        counts = [len(self.t)] if isinstance(self.t, Tensor) else [len(item) for item in self.t]
        return f"SavedValues({', '.join(map(str, counts))} values)"


@dataclass(frozen=True, eq=False)
class SavingCallback(Callback):
    """Saves functions of the state: fluxes, energies, outputs.

    ``saved = SavedValues(); solve(prob, callback=SavingCallback(lambda u, p, t: u.square().sum(-1), saved))``

    Saved values are connected to the graph like ``sol.u``, through events too; return ``u.detach()...`` to keep numbers
    only. Where a time of `saveat` is the time of an event, the state before it is saved; `save_everystep` saves both
    sides. A trajectory that fails or ends early has the values up to there; states that are not finite are not saved.

    Args:
        save_func: ``(u, p, t) -> (*batch, ...)``, called on the whole batch after each segment between events; rows
            of trajectories that save nothing there are dropped.
        saved_values: A `SavedValues`, which the solve fills at its end.
        saveat: A number (the distance of the saves; the end is saved too), times (k,), or a row for each trajectory
            ``(*batch, k)`` in which NaN is no time.
        save_everystep: Whether to save the start, and the end of every step; True unless `saveat` is given.

    Raises:
        InputError: An argument cannot be used; or, by `solve`, a time lies outside tspan.

    >>> saved = ude.callbacks.SavedValues()
    >>> flux = ude.callbacks.SavingCallback(lambda u, p, t: p.k * u[..., 0], saved, saveat=0.5)
    >>> prob = ude.ODEProblem(lambda u, p, t: -p.k * u, [1.0], (0.0, 1.0), dict(k=2.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), callback=flux)
    >>> saved.saveval.shape
    torch.Size([3])
    """

    save_func: Callable[[Tensor, Any, Tensor], Tensor]
    saved_values: SavedValues
    saveat: Any = None
    save_everystep: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.save_func):
            raise InputError("save_func must be a function", got=repr(self.save_func))
        if not isinstance(self.saved_values, SavedValues):
            raise InputError(
                "saved_values must be a SavedValues",
                expected="SavedValues()",
                got=type(self.saved_values).__name__,
            )
        object.__setattr__(self, "saveat", _observation_times("saveat", self.saveat))
        _fill_everystep(self, "save_everystep", "saveat")


@dataclass(frozen=True, eq=False)
class FunctionCallingCallback(Callback):
    """Calls a function for its side effects: to print, plot or count. It changes no state and has no gradient.

    It is called on the whole batch after each segment between events or stops, in the order of time. (To observe a
    running solve step by step, use a `DiscreteCallback` whose condition observes and returns False.)

    Args:
        func: ``(u, p, t, which)``: `which` ``(*batch)`` says which trajectories are at one of their times; each has
            its own t. The returned value is ignored.
        funcat: A number (the distance of the calls; the end is one too), times (k,), or a row for each trajectory
            ``(*batch, k)``.
        func_everystep: Whether to call at the start, and the end of every step; True unless `funcat` is given.

    Raises:
        InputError: An argument cannot be used; or, by `solve`, a time lies outside tspan.

    >>> seen = []
    >>> look = ude.callbacks.FunctionCallingCallback(lambda u, p, t, which: seen.append(round(float(t), 2)), funcat=0.5)
    >>> sol = ude.solve(ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 1.0)), ude.Tsit5(), callback=look)
    >>> seen
    [0.0, 0.5, 1.0]
    """

    func: Callable[[Tensor, Any, Tensor, Tensor], Any]
    funcat: Any = None
    func_everystep: bool | None = None

    def __post_init__(self) -> None:
        if not callable(self.func):
            raise InputError("func must be a function", got=repr(self.func))
        object.__setattr__(self, "funcat", _observation_times("funcat", self.funcat))
        _fill_everystep(self, "func_everystep", "funcat")


@dataclass(frozen=True)
class CallbackSet(Callback):
    """Callbacks that act together: the earliest continuous event of a step first; at equal times all, in order.

    >>> dose = ude.PresetTimeCallback([1.0], lambda u, p, t: u + 1.0)
    >>> end = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - 0.5, ude.terminate, direction=-1)
    >>> prob = ude.ODEProblem(lambda u, p, t: -u, [1.0], (0.0, 9.0))
    >>> sol = ude.solve(prob, ude.Tsit5(), callback=ude.CallbackSet(dose, end))
    >>> sol.retcode.name, round(float(sol.t[-1]), 3)  # log 2: before the dose
    ('Terminated', 0.693)
    """

    callbacks: tuple[Callback, ...]

    def __init__(self, *callbacks: Callback) -> None:
        for item in callbacks:
            if not isinstance(item, Callback):
                raise InputError("a CallbackSet must hold callbacks", got=type(item).__name__)
        object.__setattr__(self, "callbacks", callbacks)


def flatten_callbacks(callback: Callback | Sequence[Callback] | None) -> tuple[Callback, ...]:
    """List the single callbacks of a set, of nested sets, or of a sequence."""
    if callback is None:
        return ()
    if isinstance(callback, CallbackSet):
        return tuple(single for item in callback.callbacks for single in flatten_callbacks(item))
    if isinstance(callback, Callback):
        return (callback,)
    if isinstance(callback, (list, tuple)):
        return tuple(single for item in callback for single in flatten_callbacks(item))
    raise InputError(
        "callback must be a callback object",
        expected="e.g. ContinuousCallback(condition, affect)",
        got=type(callback).__name__,
    )


def _check_direction(direction: int, interp_points: int) -> None:
    if direction not in (-1, 0, 1):
        raise InputError("direction must be 1 (from below), -1 (from above) or 0", got=f"direction={direction!r}")
    if interp_points < 1:
        raise InputError("interp_points must be at least 1", got=f"interp_points={interp_points!r}")


def _observation_times(name: str, times: Any) -> Tensor | None:
    """Return a 0-d tensor for a period, else the times; NaN in a row is no time."""
    if times is None:
        return None
    found = torch.as_tensor(times, dtype=torch.float64).detach()
    if found.ndim == 0 and not 0 < float(found) < float("inf"):
        raise InputError(f"{name} must be a positive number or a list of times", got=repr(times))
    if bool(torch.isinf(found).any()):
        raise InputError(f"{name} must be finite", got="infinity among the times")
    return found


def _fill_everystep(callback: Any, everystep: str, at: str) -> None:
    if getattr(callback, everystep) is None:
        object.__setattr__(callback, everystep, getattr(callback, at) is None)
    elif getattr(callback, at) is None and not getattr(callback, everystep):
        raise InputError(
            f"{at} or {everystep} must be given", got="neither", fix=f"Give {at}=0.1, or {everystep}=True."
        )
