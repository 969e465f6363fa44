"""Adam(W), L-BFGS and Levenberg-Marquardt on the flattened parameters, none of which ever leaves a NaN behind.

An evaluation that is not finite is rejected, and whatever ends a run (the iteration limit, a stall, an exception,
Ctrl-C) leaves the parameters at the best finite point seen.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import least_squares, minimize
from torch import Tensor

from ude.errors import InputError, invalid_field
from ude.vocabulary import OF_OPTIMIZER, named_arguments

if TYPE_CHECKING:
    from ude.fitting.posterior.posterior import Posterior

Array = npt.NDArray[np.float64]
LARGEST_GRADIENT = 1e100
OnIteration = Callable[[float], None]
Record = Callable[[Callable[[], Array]], Array]


def _compute(compute: Callable[[], Array]) -> Array:
    return compute()


@dataclass(eq=False)
class Objective:
    """A scalar loss of some tensors, seen as a function of one flat vector.

    loss:       called without arguments; reads the tensors
    parameters: leaf tensors that require gradients; written in place
    residuals:  called without arguments; a vector whose sum of squares is the loss, where there is one
    record:     what every evaluation goes through, such as an `EvaluationLog`; it may know the numbers already
    decays:     the tensors among `parameters` that weight decay shrinks
    batched:    whether torch can push many cotangents through the residuals at once, which it cannot through a solve
    posterior:  what `GaussNewton` minimizes, of the same tensors
    floor:      a change of the loss by a small fraction of this counts as none, however small the loss is
    """

    loss: Callable[[], Tensor]
    parameters: Sequence[Tensor]
    _: KW_ONLY
    residuals: Callable[[], Tensor] | None = None
    record: Record = _compute
    decays: Sequence[Tensor] = ()
    floor: float = 0.0
    batched: bool = False
    posterior: Posterior | None = None
    evaluations: int = field(default=0, init=False)
    #: A loss below which nothing is to be gained.
    enough: float = field(default=-math.inf, init=False)
    #: Of Adam, and of Gauss-Newton steps, for who reports on them.
    rate: float = field(default=math.nan, init=False)
    damping: float = field(default=math.nan, init=False)
    best: float = field(default=math.inf, init=False)

    def __post_init__(self) -> None:
        self.parameters = list(self.parameters)
        self.best_point = self.point()
        decays = self.decays
        marked = [torch.full_like(p, any(p is q for q in decays), dtype=torch.float64) for p in self.parameters]
        #: 1 where weight decay shrinks a number, else 0 (number,).
        self.decay_mask = torch.cat([m.reshape(-1) for m in marked]).numpy() if marked else np.zeros(0)

    def point(self) -> Array:
        """The tensors now, flattened."""
        if not self.parameters:
            return np.zeros(0)
        return np.concatenate([p.detach().reshape(-1).cpu().double().numpy() for p in self.parameters])

    @torch.no_grad()
    def assign(self, x: Array) -> None:
        start = 0
        for p in self.parameters:
            p.copy_(torch.as_tensor(x[start : start + p.numel()]).view(p.shape))
            start += p.numel()

    def __call__(self, x: Array) -> tuple[float, Array] | None:
        """Loss and gradient at x, or None where either is not finite (or the gradient beyond all reason)."""
        self.assign(x)
        self.evaluations += 1
        found = self.record(self._loss_and_gradient)
        value, gradient = float(found[0]), found[1:]
        # Written so that NaN fails too. Beyond the limit, squares of the gradient overflow in any optimizer.
        if not np.isfinite(value) or not np.abs(gradient).max(initial=0.0) <= LARGEST_GRADIENT:
            return None
        self._keep(value, x)
        return value, gradient

    def _loss_and_gradient(self) -> Array:
        with torch.enable_grad():
            loss = self.loss()
            value = float(loss.detach())
            if not np.isfinite(value) or not loss.requires_grad:
                return np.array([np.nan])
            parts = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return np.concatenate([[value], self._flat(parts)])

    def errors(self, x: Array) -> Array:
        """The residuals at x."""
        self.assign(x)
        self.evaluations += 1
        with torch.no_grad():
            found = self.record(lambda: self._residuals().double().cpu().numpy())
        if np.isfinite(found).all():
            self._keep(float(found @ found), x)
        return found

    def jacobian(self, x: Array) -> Array:
        """Derivatives of the residuals at x: (residual, parameter), one reverse sweep a residual.

        A sweep through a compiled solve takes less than a millisecond. Forward sensitivities, which need one solve
        for all, were measured to be five times slower in torch, for 42 residuals of six unknowns.
        """
        self.assign(x)
        size = len(x)
        return self.record(lambda: self._rows().reshape(-1)).reshape(-1, size)

    def _residuals(self) -> Tensor:
        if self.residuals is None:
            raise InputError("this loss is no sum of squares", fix="Use LBFGS() or Adam() for it.")
        return self.residuals()

    def _rows(self) -> Array:
        with torch.enable_grad():
            residuals = self._residuals()
            if self.batched:
                one = torch.eye(len(residuals), dtype=residuals.dtype)
                parts = torch.autograd.grad(
                    residuals, self.parameters, one, is_grads_batched=True, allow_unused=True, retain_graph=True
                )
                blocks = [
                    np.zeros((len(residuals), p.numel())) if g is None else g.reshape(len(residuals), -1).cpu().numpy()
                    for p, g in zip(self.parameters, parts, strict=True)
                ]
                return np.concatenate(blocks, axis=1, dtype=np.float64)
            rows = [
                self._flat(torch.autograd.grad(residual, self.parameters, retain_graph=True, allow_unused=True))
                for residual in residuals.unbind()
            ]
        return np.stack(rows)

    def _flat(self, parts: Sequence[Tensor | None]) -> Array:
        return np.concatenate(
            [
                np.zeros(p.numel()) if g is None else g.detach().reshape(-1).cpu().double().numpy()
                for p, g in zip(self.parameters, parts, strict=True)
            ]
        )

    def _keep(self, value: float, x: Array) -> None:
        if value < self.best:
            self.best, self.best_point = value, x.copy()

    def stalls(self, before: float, stall: float) -> bool:
        """Whether the best loss has fallen since it was `before` by less than the fraction `stall`, or is enough."""
        if self.best <= self.enough:
            return True
        return before - self.best < stall * max(abs(before), self.floor) if np.isfinite(before) else False


@dataclass(frozen=True)
class Optimizer(ABC):
    """How a stage minimizes its loss. Raises InputError for options that break a rule."""

    iterations: int

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 0:
            raise invalid_field(self, "iterations", "a whole number, zero or more")

    @abstractmethod
    def minimize(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        """Leave the parameters at the best point found, and return its loss."""


@named_arguments(OF_OPTIMIZER)
@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2015); with `weight_decay`, AdamW (Loshchilov & Hutter 2019), on weights of networks only.

    learning_rate: of parameters and weights near one
    schedule: "cosine" falls to a hundredth along half a cosine, "constant" stays, "exponential" falls to a hundredth by
        equal factors

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.SingleShooting((ude.optimizers.Adam(iterations=20, learning_rate=0.05),))],
    ... )
    >>> int(fit.history["iteration"].max())
    20
    """

    iterations: int = 500
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("learning_rate", "weight_decay"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), Real):
                raise invalid_field(self, name, "a number")
        if not 0 < self.learning_rate < math.inf:
            raise invalid_field(self, "learning_rate", "a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise invalid_field(self, "weight_decay", "zero or a positive number")
        if self.schedule not in ("cosine", "exponential", "constant"):
            raise invalid_field(self, "schedule", "'cosine', 'exponential' or 'constant'")

    def factor(self, done: float) -> float:
        """The fraction of the learning rate after the fraction `done` of the iterations."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "exponential":
            result: float = 0.01**done
            return result
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done))

    def minimize(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        return _adam(objective, self, stall, on_iteration)


@named_arguments(OF_OPTIMIZER)
@dataclass(frozen=True)
class LBFGS(Optimizer):
    """L-BFGS with a line search (SciPy's L-BFGS-B; Byrd et al. 1995).

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.SingleShooting((ude.optimizers.LBFGS(iterations=30),))],
    ... )
    >>> abs(fit.model.values()["k"] - 1.5) < 0.01
    True
    """

    iterations: int = 100

    def minimize(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        return lbfgs(objective, self.iterations, stall=stall, on_iteration=on_iteration)


@named_arguments(OF_OPTIMIZER)
@dataclass(frozen=True)
class LevenbergMarquardt(Optimizer):
    """Gauss-Newton steps within a trust region (SciPy's `least_squares`; Branch, Coleman & Li 1999), for a loss that is
    a sum of squares of few parameters. Converges where L-BFGS crawls, and stops when nothing changes any more.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages=[ude.stages.SingleShooting((ude.optimizers.LevenbergMarquardt(iterations=20),))],
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    iterations: int = 100

    def minimize(self, objective: Objective, *, stall: float, on_iteration: OnIteration) -> float:
        return levenberg_marquardt(objective, self.iterations, on_iteration=on_iteration)


def adam(
    objective: Objective,
    iterations: int,
    *,
    learning_rate: float = 1e-2,
    stall: float = 1e-3,
    on_iteration: OnIteration = lambda loss: None,
) -> float:
    """Adam with a step that falls to a hundredth along a cosine. Returns the best loss.

    A rejected evaluation goes back to the best point with half the step and fresh moments. Stops early when a quarter
    of the iterations lowered the best loss by less than the fraction `stall`.
    """
    return _adam(objective, Adam(iterations, learning_rate), stall, on_iteration)


def _adam(objective: Objective, options: Adam, stall: float, on_iteration: OnIteration) -> float:
    x = objective.point()
    iterations, rate = options.iterations, options.learning_rate
    m, v, age = np.zeros_like(x), np.zeros_like(x), 0
    patience, mark = max(iterations // 4, 20), (0, np.inf)
    try:
        for i in range(iterations if len(x) else 0):
            found = objective(x)
            objective.rate = step = rate * options.factor(i / iterations)
            on_iteration(objective.best)
            if found is None:
                x, rate = objective.best_point.copy(), rate / 2
                m, v, age = np.zeros_like(x), np.zeros_like(x), 0
                if rate < options.learning_rate * 1e-4:
                    break
                continue
            if not np.isfinite(mark[1]) or not objective.stalls(mark[1], stall):
                mark = (i, objective.best)
            elif i - mark[0] >= patience:
                break
            gradient = found[1]
            age += 1
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            x = x - step * (m / (1.0 - 0.9**age)) / (np.sqrt(v / (1.0 - 0.999**age)) + 1e-12)
            if options.weight_decay:
                x = x - step * options.weight_decay * objective.decay_mask * x
    finally:
        objective.assign(objective.best_point)
        objective.rate = math.nan
    return objective.best


class _Stalled(Exception):
    """Ends SciPy's line search from inside."""


def lbfgs(
    objective: Objective,
    iterations: int,
    *,
    stall: float = 1e-3,
    patience: int = 10,
    on_iteration: OnIteration = lambda loss: None,
) -> float:
    """L-BFGS (SciPy's, on the flat vector; Byrd et al. 1995). Returns the best loss.

    Stops early when `patience` iterations, or as many evaluations within one line search, lowered the loss by less than
    the fraction `stall`: an adaptive solver's loss is rough on the scale of its tolerance, where a line search would
    look for long. A rejected evaluation is a high wall to the line search, from which it turns back.
    """
    start = objective.point()
    if not len(start) or iterations < 1:
        return objective.best
    seen: list[float] = []
    trials = 0

    def evaluate(x: Array) -> tuple[float, Array]:
        nonlocal trials
        trials += 1
        if trials > patience:
            raise _Stalled
        found = objective(x)
        if found is not None:
            return found
        # Uphill all the way back to the best point: finite, and its slope sends the interpolation there.
        away = x - objective.best_point
        level = 10.0 * abs(objective.best) + 1.0 if np.isfinite(objective.best) else 1e10
        return level, level * away / (np.linalg.norm(away) ** 2 + 1e-12)

    def each(xk: Array) -> None:  # the name by which SciPy knows this kind of callback
        nonlocal trials
        trials = 0
        seen.append(objective.best)
        on_iteration(objective.best)
        if len(seen) > patience and objective.stalls(seen[-1 - patience], stall):
            raise StopIteration

    try:
        minimize(
            evaluate,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=each,
            options={"maxiter": iterations, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-10},
        )
    except _Stalled:
        pass
    finally:
        objective.assign(objective.best_point)
    return objective.best


def levenberg_marquardt(
    objective: Objective, iterations: int, *, on_iteration: OnIteration = lambda loss: None
) -> float:
    """Least squares by SciPy's trust-region-reflective method. Returns the best sum of squares.

    A trial that is not finite shrinks the region. Ends when a step changes the sum by less than 1e-12 of it, or no
    parameter by more than 1e-10 of itself.
    """
    start = objective.point()
    if not len(start) or iterations < 1:
        return objective.best

    def jacobian(x: Array) -> Array:  # called once an accepted step
        found = objective.jacobian(x)
        on_iteration(objective.best)
        if not np.isfinite(found).all():
            raise _Stalled
        return found

    try:
        if np.isfinite(objective.errors(start)).all():
            least_squares(
                objective.errors,
                start,
                jac=jacobian,
                method="trf",
                x_scale="jac",
                ftol=1e-12,
                xtol=1e-10,
                gtol=None,
                max_nfev=iterations,
            )
    except _Stalled:
        pass
    finally:
        objective.assign(objective.best_point)
    return objective.best
