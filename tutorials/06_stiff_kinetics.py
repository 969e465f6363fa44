# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Stiff kinetics with an unknown rate law
#
# A substance A reacts on a catalyst to B; B and C turn into each other within a millisecond; C is drawn off slowly.
# The fast pair is textbook chemistry. By which law the catalyst turns A into B is not known.
#
# **The question.** What is the rate law, although the equations around it are so stiff that an explicit method takes
# thousands of steps?

# %%
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ude
from ude.discovery import LibraryRegressor

FORTH, BACK, OFF, SPEED, BLOCK, NOISE = 1000.0, 500.0, 0.5, 2.0, 1.5, 0.01
TOLERANCES = {"abstol": 1e-7, "reltol": 1e-6}
# "auto" would wait for twenty thousand calls before it compiles; here we know that they will come
COMPILED = {"engine": "fused", **TOLERANCES}


# %%
def kinetics(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """A -> B at the rate p.rate(A), B <-> C fast, C drawn off."""
    a, b, c = u.unbind(-1)
    rate = p.rate(a.unsqueeze(-1))[..., 0]
    exchange = FORTH * b - BACK * c
    return torch.stack([-rate, rate - exchange, exchange - OFF * c], -1)


class Hinshelwood(torch.nn.Module):
    """The true law (Langmuir and Hinshelwood): A needs a free place beside it, and blocks it itself."""

    def forward(self, a: Tensor) -> Tensor:
        return SPEED * a / (1 + BLOCK * a) ** 2


def problem(rate: torch.nn.Module) -> ude.ODEProblem:
    """Ten minutes, from A alone."""
    return ude.ODEProblem(kinetics, [2.0, 0.0, 0.0], (0.0, 10.0), {"rate": rate}, names="A, B, C")


def measure() -> tuple[Tensor, Tensor]:
    """Times (41,), and all concentrations (41, 3) with noise of 0.01."""
    t = torch.linspace(0.0, 10.0, 41, dtype=torch.float64)
    u = ude.solve(problem(Hinshelwood()), ude.KenCarp4(), saveat=t, **TOLERANCES).u
    return t, u + NOISE * torch.as_tensor(np.random.default_rng(0).normal(size=u.shape))


# %% [markdown]
# ## How stiff is it?
#
# The pair relaxes with a rate of 1500 a minute, and the experiment takes ten minutes. In the first minute alone
# `Tsit5` takes 434 steps; `KenCarp4`, an implicit method, takes 43 for all ten. Its gradient is as exact as that of
# an explicit one: the default `DiscreteAdjoint` solves the transposed equations of each stage.
#
# ## The fit, by hand
#
# `ude.fit` simulates with `Tsit5`, so we write the loop ourselves; it is short. The network has one input and is kept
# positive by softplus. L-BFGS from torch does the rest.


# %%
def network() -> torch.nn.Module:
    """A positive rate."""
    return torch.nn.Sequential(ude.MLP("r", inputs="A", width=8, depth=1).module, torch.nn.Softplus())


def train(rate: torch.nn.Module, t: Tensor, seen: Tensor, iterations: int) -> float:
    """Fit the parameters of `rate`, in place; the root mean square residual."""
    prob = problem(rate)
    optimizer = torch.optim.LBFGS(rate.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = 100 * (ude.solve(prob, ude.KenCarp4(), saveat=t, **COMPILED).u - seen).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return float((ude.solve(prob, ude.KenCarp4(), saveat=t, **COMPILED).u - seen).square().mean().sqrt())


# %% [markdown]
# The residual is the noise, 0.01. The learned rate rises, and falls again where A is plentiful: a law that is
# proportional to A is out of the question.
#
# ## A formula
#
# The search is asked for formulas of A that follow the network, over the concentrations that occurred.


# %%
def formulas(rate: torch.nn.Module) -> list[ude.search.Candidate]:
    """Candidates from samples of the network between A = 0.05 and 2."""
    a = torch.linspace(0.05, 2.0, 120, dtype=torch.float64)
    with torch.no_grad():
        samples = ude.search.Samples({"A": a.numpy()}, rate(a.unsqueeze(-1))[:, 0].numpy(), "r")
    return [candidate for candidate in LibraryRegressor().search(samples) if candidate.pareto]


class Law(torch.nn.Module):
    """A chemist's guess: v A/(1 + K A)^n, for n = 0, 1 or 2."""

    def __init__(self, power: int) -> None:
        super().__init__()
        self.register_buffer("power", torch.tensor(float(power), dtype=torch.float64))
        self.logs = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, a: Tensor) -> Tensor:
        v, k = self.logs.exp()
        return v * a / (1 + k * a) ** self.power


# %% [markdown]
# Among the simplest that follow the network to 0.1 % is $c_0 A/(c_1 + A + A^2/c_2)$, and chemists know it: with two
# free places that A may take, it is the law of Langmuir and Hinshelwood, $v A/(1 + K A)^2$, multiplied out. So we fit
# $v A/(1 + K A)^n$ to the concentrations, with n = 0 (proportional to A), 1 (saturating) and 2.
#
# The residuals are 0.137, 0.023 and 0.0094: only n = 2 comes down to the noise. It has $v = 2.07$ and $K = 1.54$; the
# data were made with 2 and 1.5.


# %%
def draw(rate: torch.nn.Module, laws: dict[int, Law], t: Tensor, seen: Tensor) -> Figure:
    """Left: concentrations. Right: rates."""
    figure = Figure(figsize=(8.0, 3.3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    a = torch.linspace(0.0, 2.0, 201, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        u = ude.solve(problem(laws[2]), ude.KenCarp4(), saveat=0.05, **TOLERANCES)
        for i, (name, marker, style) in enumerate(zip("ABC", "o^s", ("-", "--", "-."), strict=True)):
            left.plot(u.t, u.u[:, i], "k" + style, linewidth=1.1, label=name)
            left.plot(t, seen[:, i], "k" + marker, markersize=2.5)
        right.plot(a, Hinshelwood()(a), color="0.7", linewidth=5, label="true")
        right.plot(a, rate(a), "k:", label="network")
        for power, style in ((0, "-."), (1, "--"), (2, "-")):
            right.plot(a, laws[power](a), "k" + style, linewidth=0.9, label=f"n = {power}")
    left.set(xlabel="minutes", ylabel="concentration")
    right.set(xlabel="A", ylabel="rate", ylim=(0, 0.7))
    left.legend(frameon=False)
    right.legend(frameon=False, ncols=2)
    return figure


# %% [markdown]
# ## When this fails
#
# **Derivatives of stiff data.** Matching derivatives is useless for B and C: a noise of 0.01 in B is a noise of ten
# in its rate of change. Simulate.
#
# **The fast rates cannot be fitted.** Only their ratio shows, in C/B; whether the pair relaxes in one millisecond or
# in ten, no sample taken every fifteen seconds knows. Fix them, or eliminate them (a DAE: docs/architecture.md).
#
# **Concentrations that never occur.** Above A = 2 the law is a guess.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    t, seen = measure()
    rate = network()
    minute = ude.remake(problem(Hinshelwood()), tspan=(0.0, 1.0))
    explicit = ude.solve(minute, ude.Tsit5(), **TOLERANCES)
    implicit = ude.solve(problem(Hinshelwood()), ude.KenCarp4(), saveat=t, **TOLERANCES)
    residual = train(rate, t, seen, 80 if fast else 200)
    laws = {power: Law(power) for power in (0, 1, 2)}
    residuals = {power: train(law, t, seen, 30) for power, law in laws.items()}
    close = [one for one in formulas(rate) if one.nmse < 1e-3][:2]
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(rate, laws, t, seen).savefig(Path(folder) / "kinetics.png")
    a = torch.linspace(0.05, 2.0, 101, dtype=torch.float64).unsqueeze(-1)
    with torch.no_grad():
        wrong = rate(a) - Hinshelwood()(a)
        v, k = laws[2].logs.exp().tolist()
    return {
        "steps of Tsit5": float(explicit.stats.accepted_steps),
        "steps of KenCarp4": float(implicit.stats.accepted_steps),
        "residual of the network": residual,
        "largest error of the network": float(wrong.abs().max()),
        "blocking formula in the front": float("A*c0/(A**2/c2 + A + c1)" in [str(one.expression) for one in close]),
        **{f"residual with n = {power}": value for power, value in residuals.items()},
        "v": v,
        "K": k,
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-06").items():
        print(f"{name:>30}: {value:.4g}")
