"""Right-hand sides with known solutions, shared by the tests of solvers and sensitivities."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import ude

LV = {"alpha": 1.5, "beta": 1.0, "gamma": 1.0, "delta": 3.0}


def lotka_volterra(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([p.alpha * x - p.beta * x * y, p.gamma * x * y - p.delta * y], -1)


def predator_prey(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Lotka and Volterra's equations with one rate of both for what is eaten."""
    x, y = u.unbind(-1)
    return torch.stack([p.a * x - p.b * x * y, p.b * x * y - p.c * y], -1)


def lotka_volterra_problem(**changes: Any) -> ude.ODEProblem:
    prob = ude.ODEProblem(lotka_volterra, u0=[1.0, 1.0], tspan=(0.0, 10.0), p=LV)
    return ude.remake(prob, **changes) if changes else prob


def scipy_lotka_volterra(times: np.ndarray, u0=(1.0, 1.0), p=LV) -> np.ndarray:
    """A tight solution by SciPy's DOP853, (time, state)."""

    def f(t: float, u: np.ndarray) -> list[float]:
        return [p["alpha"] * u[0] - p["beta"] * u[0] * u[1], p["gamma"] * u[0] * u[1] - p["delta"] * u[1]]

    solved = solve_ivp(f, (times[0], times[-1]), u0, method="DOP853", rtol=3e-14, atol=1e-14, t_eval=times)
    return solved.y.T


def forced(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """u' = p.rate u cos t: u = u0 exp(rate (sin t - sin t0)). Depends on time, works with any batch."""
    rate = p.rate.unsqueeze(-1) if p.rate.ndim else p.rate
    return rate * u * torch.cos(t).unsqueeze(-1)
