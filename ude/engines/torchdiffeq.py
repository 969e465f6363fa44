"""torchdiffeq as an engine: its own methods, its own adjoint, and the reference in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ude.engines.base import NO_CHECKS, ForwardResult, PlainEngine, SolveSpec, differentiable, live_leaves
from ude.engines.return_code import ReturnCode
from ude.errors import InputError
from ude.methods import Algorithm


@dataclass(frozen=True)
class TorchDiffEq(Algorithm):
    """One of torchdiffeq's methods, run by torchdiffeq itself.

    torchdiffeq steps a whole batch as one system: trajectories share their steps and the error norm.
    `DiscreteAdjoint` back-propagates through its operations; `BacksolveAdjoint` is its `odeint_adjoint`.

    Args:
        method: "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", or a fixed-step method ("euler",
            "midpoint", "heun3", "rk4"), which needs dt.

    Source: R. T. Q. Chen, torchdiffeq, https://github.com/rtqichen/torchdiffeq.

    >>> TorchDiffEq("rk4").name
    'TorchDiffEq(rk4)'
    """

    method: str = "dopri5"

    reports_steps: ClassVar[bool] = False
    adaptive_methods: ClassVar[tuple[str, ...]] = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
    fixed_methods: ClassVar[tuple[str, ...]] = ("euler", "midpoint", "heun3", "rk4")

    def __post_init__(self) -> None:
        known = self.adaptive_methods + self.fixed_methods
        if self.method not in known:
            raise InputError("no such torchdiffeq method", expected=f"one of {', '.join(known)}", got=repr(self.method))

    @property
    def name(self) -> str:
        return f"TorchDiffEq({self.method})"


@dataclass(frozen=True, eq=False)
class _Rerun:
    """torchdiffeq keeps no steps: what is asked later is solved again from u0."""

    u0: Float[Tensor, "B n"]
    u_end: Float[Tensor, "B n"]


class _System(torch.nn.Module):
    """f over (B, n) as torchdiffeq takes it, counting its calls; a module, since `odeint_adjoint` asks for one."""

    def __init__(self, spec: SolveSpec, p: Sequence[Tensor]) -> None:
        super().__init__()
        self._spec, self._p, self.calls = spec, tuple(p), 0

    def forward(self, t: Tensor, u: Tensor) -> Tensor:
        self.calls += 1
        # the search for a first step may try one that is longer than the span, past which a forcing has no values
        low, high = sorted((float(self._spec.t0[0]), float(self._spec.t1[0])))
        times = t.clamp(low, high).to(u.dtype).expand(u.shape[0])
        return self._spec.f(u.view(*self._spec.batch, -1), self._p, times.view(self._spec.batch)).reshape(u.shape)


class TorchDiffEqEngine(PlainEngine):
    """Hands the solve to torchdiffeq."""

    name = "torchdiffeq"
    keeps_steps = False

    def why_not(self, spec: SolveSpec) -> str | None:
        algorithm = spec.algorithm
        if not isinstance(algorithm, TorchDiffEq):
            return f"{algorithm.name} is not a torchdiffeq method; write TorchDiffEq('dopri5')"
        if bool((spec.t0 != spec.t0[0]).any() | (spec.t1 != spec.t1[0]).any()):
            return "torchdiffeq integrates all trajectories over the same span"
        if spec.checks is not NO_CHECKS or spec.force_dtmin:
            return "torchdiffeq takes no isoutofdomain, unstable_check, internalnorm or force_dtmin"
        if spec.checkpoints != "all":
            return "torchdiffeq keeps no steps, so there are none to thin out; write DiscreteAdjoint()"
        if spec.watch is not None:
            return "torchdiffeq's steps cannot be watched, so it has no callbacks"
        if spec.saveat is None:
            return "torchdiffeq does not tell its own steps; give saveat"
        if bool((spec.saveat != spec.saveat[0]).any()):
            return "torchdiffeq saves all trajectories at the same times"
        if spec.reltol.ndim or spec.abstol.ndim:
            return "torchdiffeq takes one number for each tolerance"
        if algorithm.method in TorchDiffEq.fixed_methods and spec.dt is None:
            return f"{algorithm.name} takes fixed steps, so it needs dt"
        return None

    def forward(self, spec: SolveSpec, u0: Float[Tensor, "B n"], p: Sequence[Tensor]) -> ForwardResult:
        if spec.saveat is None:
            raise TypeError("why_not was not asked: torchdiffeq needs saveat")
        system = _System(spec, p)
        zeros = torch.zeros_like(spec.t0, dtype=torch.int64)
        code = ReturnCode.Success
        with torch.no_grad():
            asked = torch.cat([spec.saveat[0], spec.t1[:1]])
            try:
                read = _odeint(spec, system, u0, asked, adjoint=False)
            except AssertionError as error:
                # torchdiffeq's way to say that it cannot go on
                code = ReturnCode.MaxIters if "max_num_steps" in str(error) else ReturnCode.DtLessThanMin
                read = u0.new_full((u0.shape[0], len(asked), u0.shape[1]), float("nan"))
        if code == ReturnCode.Success and not bool(torch.isfinite(read).all()):
            code = ReturnCode.Unstable
        return ForwardResult(
            times=spec.saveat,
            values=read[:, :-1],
            record=_Rerun(u0.detach(), read[:, -1]),
            retcode=zeros + int(code),
            t_end=spec.t1 if code == ReturnCode.Success else torch.full_like(spec.t1, float("nan")),
            accepted_steps=zeros,
            rejected_steps=zeros,
            nf=system.calls,
        )

    def interpolate(
        self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor], times: Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T n"]:
        with torch.no_grad():
            return _odeint(spec, _System(spec, p), record.u0, times[0], adjoint=False)

    def pullback(
        self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        return self._differentiate(spec, record, p, times, grad, adjoint=False)

    def backsolve(
        self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor], times: Float[Tensor, "B T"], grad: Tensor
    ) -> tuple[Float[Tensor, "B n"], tuple[Tensor | None, ...]]:
        """Gradient by torchdiffeq's own `odeint_adjoint`."""
        return self._differentiate(spec, record, p, times, grad, adjoint=True)

    def dense(self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError("torchdiffeq keeps no steps to be read")

    def replay(
        self, spec: SolveSpec, record: _Rerun, u0: Float[Tensor, "B n"], p: Sequence[Tensor], times: Tensor
    ) -> Float[Tensor, "B T n"]:
        """Solve again with a graph: torchdiffeq's operations are torch's."""
        return _odeint(spec, _System(spec, p), u0, times[0], adjoint=False)

    def quadrature_nodes(
        self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor], rule: Literal["own", "gauss"] = "own"
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        raise NotImplementedError("torchdiffeq keeps no steps; its adjoint integrates the parameters itself")

    def _differentiate(
        self, spec: SolveSpec, record: _Rerun, p: Sequence[Tensor], times: Tensor, grad: Tensor, *, adjoint: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        wanted = differentiable(p)
        leaves = live_leaves(p, wanted)
        inputs = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
        u0 = record.u0.detach().requires_grad_()
        with torch.enable_grad():
            values = _odeint(spec, _System(spec, leaves), u0, times[0], adjoint=adjoint, inputs=inputs)
        of_u0, *of_leaves = torch.autograd.grad(values, (u0, *inputs), grad, allow_unused=True)
        found = iter(of_leaves)
        return of_u0, tuple(next(found) if need else None for need in wanted)


def _odeint(
    spec: SolveSpec,
    system: _System,
    u0: Tensor,
    asked: Float[Tensor, "T"],
    *,
    adjoint: bool,
    inputs: Sequence[Tensor] = (),
) -> Float[Tensor, "B T n"]:
    """Solve from t0 through the asked times (any order, repetition allowed) and return the states there."""
    import torchdiffeq

    algorithm = spec.algorithm
    if not isinstance(algorithm, TorchDiffEq):
        raise TypeError("why_not was not asked")
    sign = 1.0 if spec.t1[0] >= spec.t0[0] else -1.0
    grid, position = torch.unique(torch.cat([spec.t0[:1], asked]) * sign, return_inverse=True)
    if len(grid) == 1:
        return u0.unsqueeze(1).expand(-1, len(asked), -1)
    options: dict[str, Any] = {}
    if algorithm.method in TorchDiffEq.fixed_methods:
        options["step_size"] = spec.dt
    else:
        options["max_num_steps"] = spec.maxiters
        # otherwise its last step goes past the end of the span, where f may have no values
        options["step_t"] = grid * sign
        if spec.dt is not None:
            options["first_step"] = spec.dt
    arguments: dict[str, Any] = {
        "rtol": float(spec.reltol),
        "atol": float(spec.abstol),
        "method": algorithm.method,
        "options": options,
    }
    if adjoint:
        path = torchdiffeq.odeint_adjoint(system, u0, grid * sign, adjoint_params=tuple(inputs), **arguments)
    else:
        path = torchdiffeq.odeint(system, u0, grid * sign, **arguments)
    result: Tensor = path[position[1:]].transpose(0, 1)
    return result
