# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Speed: engines and sensitivities
#
# A fit solves the same equation thousands of times and asks for a gradient each time. Two choices decide what that
# costs: which *engine* runs the steps, and which *sensitivity* algorithm computes the gradient.
#
# **The question.** What to choose, and when does a fast choice give a wrong number?

# %%
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import ude

# %% [markdown]
# ## Engines
#
# torch spends some microseconds on every operation, however small its tensors. A right-hand side with a small network
# takes some thirty operations, and a solve calls it hundreds of times: the time goes into bookkeeping. The fused
# engine traces the right-hand side once and compiles the whole solve, and its gradient, into one C program.


# %%
def lotka_volterra(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Prey and predators, with a network for what happens when they meet."""
    x, y = u.unbind(-1)
    met = p.net(u)
    return torch.stack([1.3 * x - 0.9 * x * y + met[..., 0], 0.8 * x * y - 1.8 * y + met[..., 1]], -1)


def problem(batch: int) -> ude.ODEProblem:
    """As many trajectories, from starts between 0.5 and 1.5."""
    u0 = 0.5 + torch.rand(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = ude.MLP("a, b", inputs="x, y", width=16).module
    for weight in net.parameters():
        weight.data *= 0.3
    return ude.ODEProblem(lotka_volterra, u0, (0.0, 5.0), {"net": net})


def gradient(prob: ude.ODEProblem, engine: str, **options: Any) -> Tensor:
    """The gradient of a sum of squares by all weights, as one vector."""
    sol = ude.solve(prob, ude.Tsit5(), saveat=0.1, abstol=1e-8, reltol=1e-8, engine=engine, **options)
    weights = tuple(prob.p.net.parameters())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(sol.u.square().mean(), weights)])


def seconds(prob: ude.ODEProblem, engine: str, repeats: int = 3) -> float:
    """Seconds of processor time of one gradient, the best of some."""
    gradient(prob, engine)  # compiles, where there is something to be compiled
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        gradient(prob, engine)
        taken.append(time.process_time() - start)
    return min(taken)


# %% [markdown]
# For one trajectory the compiled gradient takes less than a twentieth of the time, for a hundred still less than a
# fifth, and the two gradients agree to twelve digits: it is the same computation.
#
# You need not ask for it. With `engine="auto"` a right-hand side that has been called some twenty thousand times is
# compiled, which takes a second or two, and what was compiled is kept on disk for the next time. `sol.stats.engine`
# says who ran, `sol.stats.why_not` why another did not.
#
# ## Sensitivities
#
# `DiscreteAdjoint()`, the default, goes back through the steps that were taken: its gradient is that of the numbers
# that were returned. The others solve an equation for the gradient. How far off are they? We take a system that
# forgets: a temperature that follows its surroundings, $\dot T = -k\,(T - \cos t)$ with k = 20, and a meter that adds
# it up, $\dot y = T$. We ask for the derivative of the last $y^2$ by k, which can be worked out by hand.


# %%
def cooling(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Newton's law of cooling, and a meter."""
    temperature, _ = u.unbind(-1)
    return torch.stack([-p.k * (temperature - torch.cos(t)), temperature], -1)


def exact(k: float, end: float) -> float:
    """d y(end)^2 / dk from the closed form of y, with T(0) = y(0) = 0."""
    k_ = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(end, dtype=torch.float64)
    forced = k_**2 * torch.sin(t) + k_ * (1 - torch.cos(t))
    y = (forced - k_ * (1 - torch.exp(-k_ * t))) / (1 + k_**2)
    (slope,) = torch.autograd.grad(y**2, k_)
    return float(slope)


def relative_error(sensealg: Any, k: float = 20.0, end: float = 2.0) -> float:
    """Of the gradient by k, at a tolerance of 1e-8."""
    rate = torch.tensor(k, dtype=torch.float64, requires_grad=True)
    prob = ude.ODEProblem(cooling, [0.0, 0.0], (0.0, end), {"k": rate})
    sol = ude.solve(prob, ude.Tsit5(), abstol=1e-8, reltol=1e-8, saveat=[end], sensealg=sensealg, engine="torch")
    (slope,) = torch.autograd.grad(sol.u[-1, 1] ** 2, rate)
    return abs(float(slope) / exact(k, end) - 1)


ALGORITHMS = {
    "DiscreteAdjoint": ude.DiscreteAdjoint(),
    "ForwardSensitivity": ude.ForwardSensitivity(),
    "InterpolatingAdjoint": ude.InterpolatingAdjoint(),
    "GaussAdjoint": ude.GaussAdjoint(),
    "QuadratureAdjoint": ude.QuadratureAdjoint(),
    "BacksolveAdjoint": ude.BacksolveAdjoint(),
}

# %% [markdown]
# `DiscreteAdjoint`, `ForwardSensitivity` and `QuadratureAdjoint` are right to seven digits, at a tolerance of 1e-8.
#
# `InterpolatingAdjoint` is off by 0.4 % and `GaussAdjoint` by 0.14 %. Their integral over time is taken along the
# steps of the adjoint, and these are long here, because the adjoint is smooth; in the first instant, in which the
# temperature jumps to that of its surroundings and everything depends on k, they take one or two. The tolerance does
# not watch this integral.
#
# `BacksolveAdjoint` is wrong by a factor of $10^8$ and more: it saves memory by integrating the state backwards, and
# backwards a system that forgets explodes, by $e^{40}$ here. It is the method of the paper that made neural ODEs
# known.
#
# | you have | take |
# |---|---|
# | anything | `DiscreteAdjoint()` |
# | a solve too long for memory | `DiscreteAdjoint(checkpoints="logarithmic")` |
# | few parameters and many outputs | `ForwardSensitivity()` |
# | a wish for second derivatives | `Autograd()` |
# | a result to compare with SciMLSensitivity | `InterpolatingAdjoint()`, `GaussAdjoint()` |
#
# Checkpoints change nothing in the number: the gradient with a logarithm of the states kept is the same to 1e-12.


# %%
def draw(times: dict[tuple[str, int], float], errors: dict[str, float]) -> Figure:
    """Left: time of a gradient. Right: error of the gradient."""
    figure = Figure(figsize=(8.0, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for engine, style in (("torch", "k--s"), ("fused", "k-o")):
        batches = sorted(batch for name, batch in times if name == engine)
        left.loglog(batches, [1e3 * times[engine, batch] for batch in batches], style, label=engine)
    left.set(xlabel="trajectories", ylabel="ms of one gradient")
    left.legend(frameon=False)
    names = list(errors)[::-1]
    right.barh(range(len(names)), [errors[name] for name in names], color="0.6", edgecolor="k")
    right.set_yticks(range(len(names)), names)
    right.set(xscale="log", xlabel="relative error of the gradient", xlim=(1e-9, 1e10))
    right.axvline(1.0, color="k", linestyle=":")
    return figure


# %% [markdown]
# ## When this fails
#
# **The compiler is missing.** Without `cc`, `auto` stays with torch and `engine="fused"` says so. Events, Rosenbrock
# methods, `FBDF` and GPUs run as torch operations too (docs/engines.md).
#
# **A right-hand side that cannot be traced.** `if` on values, random numbers, `.item()`: `sol.stats.why_not["fused"]`
# names the line.
#
# **A gradient of a chaotic system.** Every method gives the right derivative of a number that depends on the start
# like $e^t$; it is of no use. Fit short windows instead.
#
# **Comparing times.** The first call compiles or loads. Measure processor time, the best of several, on a quiet
# machine.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    times = {
        (e, b): seconds(problem(b), e) for b in ((1, 100) if fast else (1, 10, 100, 1000)) for e in ("torch", "fused")
    }
    errors = {name: relative_error(algorithm) for name, algorithm in ALGORITHMS.items()}
    prob = problem(1)
    compiled, usual = gradient(prob, "fused"), gradient(prob, "torch")
    sparing = gradient(prob, "torch", sensealg=ude.DiscreteAdjoint(checkpoints="logarithmic"))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(times, errors).savefig(Path(folder) / "speed.png")
    return {
        "times faster, one trajectory": times["torch", 1] / times["fused", 1],
        "times faster, a hundred": times["torch", 100] / times["fused", 100],
        "difference of the engines": float((compiled - usual).norm() / usual.norm()),
        "difference with checkpoints": float((sparing - usual).norm() / usual.norm()),
        **{f"error of {name}": value for name, value in errors.items()},
        "worst of the good ones": max(
            errors[name] for name in ("DiscreteAdjoint", "ForwardSensitivity", "QuadratureAdjoint")
        ),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-13").items():
        print(f"{name:>35}: {value:.3g}")
