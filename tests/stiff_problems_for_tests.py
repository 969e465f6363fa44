"""Stiff right-hand sides in torch, with reference solutions at their ends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ude

ROBERTSON = {"k1": 0.04, "k2": 3e7, "k3": 1e4}


def robertson(u: Tensor, p: Any, t: Tensor) -> Tensor:
    a, b, c = u.unbind(-1)
    decay, pair, back = p.k1 * a, p.k2 * b * b, p.k3 * b * c
    return torch.stack([back - decay, decay - pair - back, pair], -1)


def van_der_pol(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y = u.unbind(-1)
    return torch.stack([y, p.mu * ((1 - x * x) * y) - x], -1)


def hires(u: Tensor, p: Any, t: Tensor) -> Tensor:
    y = u.unbind(-1)
    binding = 280 * y[5] * y[7]
    release = 0.69 + 0.43 + 0.69
    return torch.stack(
        [
            -1.71 * y[0] + 0.43 * y[1] + 8.32 * y[2] + 0.0007,
            1.71 * y[0] - 8.75 * y[1],
            -10.03 * y[2] + 0.43 * y[3] + 0.035 * y[4],
            8.32 * y[1] + 1.71 * y[2] - 1.12 * y[3],
            -1.745 * y[4] + 0.43 * y[5] + 0.43 * y[6],
            -binding + 0.69 * y[3] + 1.71 * y[4] - 0.43 * y[5] + 0.69 * y[6],
            binding - release * y[6],
            release * y[6] - binding,
        ],
        -1,
    )


def robertson_problem(end: float = 1e11) -> ude.ODEProblem:
    return ude.ODEProblem(robertson, [1.0, 0.0, 0.0], (0.0, end), ROBERTSON)


def van_der_pol_problem(mu: float, end: float) -> ude.ODEProblem:
    return ude.ODEProblem(van_der_pol, [2.0, 0.0], (0.0, end), {"mu": mu})


def hires_problem() -> ude.ODEProblem:
    return ude.ODEProblem(hires, [1.0, 0, 0, 0, 0, 0, 0, 0.0057], (0.0, 321.8122))


#: End values of the Test Set for IVP Solvers (F. Mazzia & C. Magherini, Bari 2008).
ROBERTSON_END = torch.tensor([2.083340149701255e-08, 8.333360770334713e-14, 0.999999979166505], dtype=torch.float64)
VAN_DER_POL_1E3_END = torch.tensor([1.706167732170469, -0.8928097010248125e-3], dtype=torch.float64)
HIRES_END = torch.tensor(
    [
        0.7371312573325668e-3,
        0.1442485726316185e-3,
        0.5888729740967575e-4,
        0.1175651343283149e-2,
        0.2386356198831331e-2,
        0.6238968252742796e-2,
        0.2849998395185769e-2,
        0.2850001604814231e-2,
    ],
    dtype=torch.float64,
)
#: mu = 1e6 at t = 2e6: SciPy's Radau with its Jacobian at rtol 1e-10; at 1e-8 it differs by 2e-11.
VAN_DER_POL_1E6_END = torch.tensor([1.7055462175349148, -8.934763625470252e-07], dtype=torch.float64)
