"""Adam and L-BFGS on the flattened parameters, neither of which ever leaves a NaN behind.

An evaluation that is not finite is rejected, and whatever ends a run (the iteration limit, a stall, an exception,
Ctrl-C) leaves the parameters at the best finite point seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

Array = npt.NDArray[np.float64]
LARGEST_GRADIENT = 1e100
OnIteration = Callable[[float], None]


class Objective:
    """A scalar loss of some tensors, seen as a function of one flat vector.

    loss:       called without arguments; reads the tensors
    parameters: leaf tensors that require gradients; written in place
    """

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        self.loss, self.parameters = loss, list(parameters)
        self.evaluations = 0
        self.best = np.inf
        self.best_point = self.point()

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
        with torch.enable_grad():
            loss = self.loss()
            value = float(loss.detach())
            if not np.isfinite(value) or not loss.requires_grad:
                return None
            parts = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = np.concatenate(
            [
                np.zeros(p.numel()) if g is None else g.detach().reshape(-1).cpu().double().numpy()
                for p, g in zip(self.parameters, parts, strict=True)
            ]
        )
        # Written so that NaN fails too. Beyond the limit, squares of the gradient overflow in any optimiser.
        if not np.abs(gradient).max() <= LARGEST_GRADIENT:
            return None
        if value < self.best:
            self.best, self.best_point = value, x.copy()
        return value, gradient


def adam(
    objective: Objective,
    iterations: int,
    *,
    learning_rate: float = 1e-2,
    stall: float = 1e-3,
    on_iteration: OnIteration = lambda loss: None,
) -> float:
    """Adam (Kingma & Ba 2015) with a step that falls to a hundredth along a cosine. Returns the best loss.

    A rejected evaluation goes back to the best point with half the step and fresh moments. Stops early when a quarter
    of the iterations lowered the best loss by less than the fraction `stall`.
    """
    x = objective.point()
    m, v, age, rate = np.zeros_like(x), np.zeros_like(x), 0, learning_rate
    patience, mark = max(iterations // 4, 20), (0, np.inf)
    try:
        for i in range(iterations if len(x) else 0):
            found = objective(x)
            on_iteration(objective.best)
            if found is None:
                x, rate = objective.best_point.copy(), rate / 2
                m, v, age = np.zeros_like(x), np.zeros_like(x), 0
                if rate < learning_rate * 1e-4:
                    break
                continue
            if objective.best < mark[1] * (1.0 - stall):
                mark = (i, objective.best)
            elif i - mark[0] >= patience:
                break
            gradient = found[1]
            age += 1
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            step = rate * (0.01 + 0.99 * 0.5 * (1.0 + np.cos(np.pi * i / iterations)))
            x = x - step * (m / (1.0 - 0.9**age)) / (np.sqrt(v / (1.0 - 0.999**age)) + 1e-12)
    finally:
        objective.assign(objective.best_point)
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
        if len(seen) > patience and seen[-1] > seen[-1 - patience] * (1.0 - stall):
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
