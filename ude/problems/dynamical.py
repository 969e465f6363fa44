"""Partitioned problems, v' = f1(v, u, p, t) and u' = f2(v, u, p, t), and second-order ones, u'' = f(u', u, p, t)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ude.errors import InputError
from ude.problems.function import require_callable
from ude.problems.ode import ODEProblem, same_shape, state_tensor
from ude.vocabulary import OF_PROBLEMS, named_arguments

#: One half of a partitioned right-hand side: (v, u, p, t) -> dv/dt or du/dt
HalfRightHandSide = Callable[[Tensor, Tensor, Any, Tensor], Tensor]


class DynamicalODEFunction(nn.Module):
    """Both halves of a partitioned problem as one right-hand side of the state ``[v, u]``, velocities first.

    Called as ``f(state, p, t)`` it returns ``[v', u']``; as ``f(state, p, t, 0)`` only v', ``f(state, p, t, 1)`` only
    u', for symplectic methods. It is a module, so that halves that are modules own their parameters.

    Args:
        f2: None for u' = v.
        sizes: Number of velocities and number of positions.
    """

    def __init__(self, f1: HalfRightHandSide, f2: HalfRightHandSide | None, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.f1, self.f2, self.sizes = f1, f2, sizes

    @property
    def second_order(self) -> bool:
        """Whether u' = v."""
        return self.f2 is None

    def forward(self, state: Tensor, p: Any, t: Tensor, half: int | None = None) -> Tensor:
        if state.shape[-1] != sum(self.sizes):
            raise InputError(
                "the state of a partitioned problem must be [v, u]",
                expected=f"{self.sizes[0]} velocities and {self.sizes[1]} positions along the last axis",
                got=f"shape {tuple(state.shape)}",
                fix="Join them: torch.cat([v, u], -1).",
            )
        v, u = state.split(self.sizes, -1)
        parts: list[Tensor] = []
        if half != 1:
            name = "f(du, u, p, t)" if self.f2 is None else "f1(v, u, p, t)"
            parts.append(same_shape(self.f1(v, u, p, t), v, name, "u" if self.f2 is None else "v"))
        if half != 0:
            parts.append(v if self.f2 is None else same_shape(self.f2(v, u, p, t), u, "f2(v, u, p, t)", "u"))
        return parts[0] if half is not None else torch.cat(parts, -1)


@named_arguments(OF_PROBLEMS)
def DynamicalODEProblem(
    f1: HalfRightHandSide,
    f2: HalfRightHandSide,
    v0: Any,
    u0: Any,
    tspan: tuple[Any, Any],
    p: Any = None,
    names: Sequence[str] | str | None = None,
) -> ODEProblem:
    """Return the problem ``v' = f1(v, u, p, t)``, ``u' = f2(v, u, p, t)``, such as Hamilton's equations.

    As in SciML, it is an `ODEProblem` whose state is ``[v, u]``, velocities first: every method solves it as a
    first-order system, and symplectic methods (`VelocityVerlet`, `KahanLi8`, ...) half by half. ``remake`` takes
    ``u0=torch.cat([v0, u0], -1)``.

    Args:
        f1, f2: Functions or modules; v of shape ``(*batch, velocities)``, u of shape ``(*batch, positions)``. For
            symplectic methods f1 must not depend on v, nor f2 on u.
        v0, u0: Initial velocities (or momenta) and positions.
        tspan, p: As of `ODEProblem`.
        names: Names of all states, velocities first; v1, v2, ..., u1, u2, ... when left out.

    Raises:
        InputError: An argument is invalid, or v0 and u0 have different batches.

    >>> pull = lambda v, u, p, t: -u
    >>> prob = ude.DynamicalODEProblem(pull, lambda v, u, p, t: v, v0=[0.0], u0=[1.0], tspan=(0.0, 6.0))
    >>> sol = ude.solve(prob, ude.methods.VelocityVerlet(), adaptive=False, dt=0.01)
    >>> round(float(sol.u[-1].square().sum()), 3)  # twice the energy, which was 1
    1.0
    """
    require_callable(f1, "f1", "v, u, p, t")
    require_callable(f2, "f2", "v, u, p, t")
    v, u = _halves(v0, u0, "v0")
    if names is None:
        names = tuple(f"{letter}{i + 1}" for letter, half in (("v", v), ("u", u)) for i in range(half.shape[-1]))
    f = DynamicalODEFunction(f1, f2, (v.shape[-1], u.shape[-1]))
    return ODEProblem(f, torch.cat([v, u], -1), tspan, p, names)


@named_arguments(OF_PROBLEMS)
def SecondOrderODEProblem(
    f: HalfRightHandSide,
    du0: Any,
    u0: Any,
    tspan: tuple[Any, Any],
    p: Any = None,
    names: Sequence[str] | str | None = None,
) -> ODEProblem:
    """Return the second-order problem ``u'' = f(u', u, p, t)``, where f is called as ``f(du, u, p, t)``.

    As `DynamicalODEProblem` with ``v = u'``: the state of the returned `ODEProblem` is ``[u', u]``.

    Args:
        f: A function or module of du and u, both ``(*batch, positions)``, that returns u'' of that shape. For
            symplectic methods it must not depend on du.
        du0, u0: Initial velocities and positions.
        tspan, p: As of `ODEProblem`.
        names: Names of the positions; the velocities are called "d" and that name: ``names="x, y"`` gives dx, dy, x, y.

    Raises:
        InputError: An argument is invalid, or du0 and u0 have different shapes.

    >>> prob = ude.SecondOrderODEProblem(lambda du, u, p, t: -u, du0=[0.0], u0=[1.0], tspan=(0.0, 1.0), names="x")
    >>> sol = ude.solve(prob, ude.methods.KahanLi8(), adaptive=False, dt=0.1)
    >>> sol.names, round(float(sol["x"][-1]), 6)
    (('dx', 'x'), 0.540302)
    """
    require_callable(f, "f", "du, u, p, t")
    du, u = _halves(du0, u0, "du0")
    count = u.shape[-1]
    if du.shape[-1] != count:
        raise InputError(
            "du0 must have the shape of u0", expected=f"shape {tuple(u.shape)}", got=f"shape {tuple(du.shape)}"
        )
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    positions = tuple(f"u{i + 1}" for i in range(count)) if names is None else tuple(names)
    if len(positions) != count:
        raise InputError(
            "names must be one name for each position",
            expected=f"{count} names",
            got=", ".join(map(str, positions)) or "none",
        )
    both = (*(f"d{name}" for name in positions), *positions)
    return ODEProblem(DynamicalODEFunction(f, None, (count, count)), torch.cat([du, u], -1), tspan, p, both)


def _halves(v0: Any, u0: Any, name: str) -> tuple[Tensor, Tensor]:
    v, u = state_tensor(v0, name), state_tensor(u0, "u0")
    if v.shape[:-1] != u.shape[:-1]:
        raise InputError(
            f"{name} and u0 must have the same batch",
            expected=f"{name} of shape {(*u.shape[:-1], 'state')}".replace("'", ""),
            got=str(tuple(v.shape)),
        )
    if v.dtype != u.dtype:
        raise InputError(f"{name} and u0 must have the same dtype", expected=str(u.dtype), got=str(v.dtype))
    return v, u
