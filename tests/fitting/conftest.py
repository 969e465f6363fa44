"""Systems whose equations are known, measured with seeded noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ude
from ude.fitting.data.dataset import Dataset


def lotka_volterra(t, u):
    """The system of Rackauckas et al. 2020 (arXiv:2001.04385): alpha 1.3, beta 0.9, gamma 0.8, delta 1.8."""
    x, y = u
    return [1.3 * x - 0.9 * x * y, 0.8 * x * y - 1.8 * y]


@pytest.fixture(scope="session")
def lotka_volterra_data() -> Callable[..., Dataset]:
    def _data(noise: float = 0.005, seed: int = 0, points: int = 31, end: float = 3.0) -> Dataset:
        """`noise` is relative to the mean of each state, as in the paper."""
        t = np.linspace(0.0, end, points)
        u = solve_ivp(lotka_volterra, (0, end), [0.44249296, 4.6280594], t_eval=t, rtol=1e-10, atol=1e-12).y.T
        u = u + noise * u.mean(0) * np.random.default_rng(seed).normal(size=u.shape)
        return Dataset.from_arrays(t, u, "x, y")

    return _data


@pytest.fixture
def half_known() -> ude.UDE:
    """Growth and death known, interaction unknown."""
    network = ude.MLP("U1, U2", inputs="x, y", width=8)
    return ude.UDE(["dx/dt = 1.3*x - U1(x, y)", "dy/dt = U2(x, y) - 1.8*y"], unknown=network)
