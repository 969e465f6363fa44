"""The cases of benchmarks/fused_speed.py: problems of ude, built anew from a name, so that a fresh process can too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ude

DOUBLE = torch.float64


def network(*widths: int) -> nn.Sequential:
    """Linear layers with tanh between them; the same numbers every time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


class LotkaVolterra(nn.Module):
    """dx = 1.3 x + N1(x, y), dy = -1.8 y + N2(x, y)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = network(2, width, width, 2)
        self.register_buffer("rates", torch.tensor([1.3, -1.8], dtype=DOUBLE))

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.rates * u + 0.3 * self.net(u)


class Spiral(nn.Module):
    """du = N(u^3), the neural ODE of SciMLSensitivity's documentation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(2, 50, 2)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.net(u**3)


class FisherKPP(nn.Module):
    """du = D u_xx + N(u) on a ring of cells 0.04 apart; the reaction N is learned, one network for all cells."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(1, 10, 20, 10, 1)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        diffusion = (torch.roll(u, 1, -1) - 2 * u + torch.roll(u, -1, -1)) * (0.01 / 0.04**2)
        return diffusion + self.net(u.unsqueeze(-1)).squeeze(-1)


def lorenz(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y, z = u.unbind(-1)
    return torch.stack([10.0 * (y - x), x * (p.rho - z) - y, x * y - (8.0 / 3.0) * z], -1)


def robertson(u: Tensor, p: Any, t: Tensor) -> Tensor:
    x, y, z = u.unbind(-1)
    slow, fast, back = p.k1 * x, p.k2 * y * y, p.k3 * y * z
    return torch.stack([back - slow, slow - back - fast, fast], -1)


@dataclass(frozen=True, eq=False)
class Case:
    """A problem with the options of its solve; the loss is the mean square of u - target at the saves."""

    prob: ude.ODEProblem
    saveat: Tensor
    alg: Any = field(default_factory=ude.Tsit5)
    abstol: float = 1e-6
    reltol: float = 1e-6
    dt: float | None = None
    target: Tensor | float = 0.0

    @property
    def net(self) -> nn.Module | None:
        return getattr(self.prob.f, "net", None)

    def solve(self, engine: str) -> ude.Solution:
        return ude.solve(
            self.prob,
            self.alg,
            saveat=self.saveat,
            abstol=self.abstol,
            reltol=self.reltol,
            dt=self.dt,
            adaptive=self.dt is None,
            engine=engine,
        )

    def loss(self, u: Tensor) -> Tensor:
        return ((u - self.target) ** 2).mean()

    def gradient(self, engine: str) -> Tensor:
        """The gradient by the network's parameters, flat; the values at the saves where there is no network."""
        if self.net is None:
            return self.solve(engine).u
        return self.gradient_of(self.solve(engine).u)

    def gradient_of(self, u: Tensor) -> Tensor:
        parts = torch.autograd.grad(self.loss(u), list(self.net.parameters()) if self.net else [])
        return torch.cat([part.reshape(-1) for part in parts])


def lotka_volterra_case(width: int, count: int) -> Case:
    u0 = torch.tensor([0.44249296, 4.6280594], dtype=DOUBLE)
    if count > 1:
        generator = torch.Generator().manual_seed(1)
        u0 = u0 + 0.1 * torch.randn(count, 2, dtype=DOUBLE, generator=generator)
    return Case(ude.ODEProblem(LotkaVolterra(width), u0, (0.0, 3.0)), torch.linspace(0.0, 3.0, 31, dtype=DOUBLE))


def spiral_case(reltol: float) -> Case:
    matrix = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=DOUBLE)
    u0, saves = torch.tensor([2.0, 0.0], dtype=DOUBLE), torch.linspace(0.0, 1.5, 30, dtype=DOUBLE)
    truth = ude.ODEProblem(lambda u, p, t: u**3 @ matrix.T, u0, (0.0, 1.5))
    target = ude.solve(truth, ude.Tsit5(), saveat=saves, reltol=1e-8, abstol=1e-8, engine="torch").u
    return Case(ude.ODEProblem(Spiral(), u0, (0.0, 1.5)), saves, reltol=reltol, target=target)


def fisher_case(cells: int) -> Case:
    x = 0.04 * torch.arange(cells, dtype=DOUBLE)
    middle = x[-1] / 2
    u0 = (torch.tanh((x - middle + 0.1) / 0.05) - torch.tanh((x - middle - 0.1) / 0.05)) / 2
    return Case(ude.ODEProblem(FisherKPP(), u0, (0.0, 5.0)), torch.linspace(0.0, 5.0, 11, dtype=DOUBLE))


def lorenz_case(count: int, dt: float | None) -> Case:
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).repeat(count, 1)
    p = {"rho": torch.linspace(0.0, 21.0, count, dtype=DOUBLE)}
    return Case(ude.ODEProblem(lorenz, u0, (0.0, 1.0), p=p), torch.ones(1, dtype=DOUBLE), dt=dt)


def robertson_case(count: int) -> Case:
    u0 = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE).repeat(count, 1)
    generator = torch.Generator().manual_seed(2)
    rates = {"k1": 0.04, "k2": 3e7, "k3": 1e4}
    p = {name: k * torch.exp(0.3 * torch.randn(count, dtype=DOUBLE, generator=generator)) for name, k in rates.items()}
    saves = torch.tensor([1e5], dtype=DOUBLE)
    return Case(ude.ODEProblem(robertson, u0, (0.0, 1e5), p=p), saves, alg=ude.KenCarp4(), abstol=1e-8)


FIRST: dict[str, Callable[[], Case]] = {
    "Lotka-Volterra UDE, 1 trajectory": lambda: lotka_volterra_case(32, 1),
    "Lotka-Volterra UDE, 256 trajectories": lambda: lotka_volterra_case(32, 256),
    "spiral neural ODE": lambda: spiral_case(1e-6),
    "Fisher-KPP, 26 cells": lambda: fisher_case(26),
    "Fisher-KPP, 256 cells": lambda: fisher_case(256),
    "Lorenz, adaptive, 100 trajectories": lambda: lorenz_case(100, None),
    "Lorenz, fixed steps, 100 trajectories": lambda: lorenz_case(100, 1e-3),
    "Robertson, KenCarp4, 100 trajectories": lambda: robertson_case(100),
}
