# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Fisher's equation: a reaction learned inside a PDE
#
# A population spreads along a coast: it diffuses, and it grows by a law that we do not know. This is an example of
# the paper on universal differential equations (Rackauckas et al. 2020, arXiv:2001.04385). The law that made the data
# is that of Fisher and of Kolmogorov, Petrovsky and Piskunov (1937),
#
# $$\frac{\partial u}{\partial t} = D \frac{\partial^2 u}{\partial x^2} + u\,(1 - u), \qquad D = 0.01.$$
#
# **The question.** From 26 snapshots of the density at 26 places, with 1 % of noise: how fast does it diffuse, and by
# which law does it grow? Both at once: what the one lacks, the other could pretend to supply.

# %%
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ude
from ude.discovery import LibraryRegressor

PLACES, DIFFUSION, NOISE = 26, 0.01, 0.01
X = np.linspace(0.0, 1.0, PLACES)
NAMES = [f"u{i}" for i in range(PLACES)]
# a few animals in the middle, released by us, so that the start is known
START = 0.5 * (np.tanh((X - 0.4) / 0.02) - np.tanh((X - 0.6) / 0.02))


# %% [markdown]
# ## From a PDE to an ODE
#
# The second derivative becomes differences of neighbors, and one equation becomes 26. The coast is a ring, so that
# `torch.roll` gives every place its neighbors.


# %%
def curvature(u: Tensor) -> Tensor:
    """The second derivative in space (*batch, place), by central differences on a ring."""
    return (torch.roll(u, 1, -1) - 2 * u + torch.roll(u, -1, -1)) / (X[1] - X[0]) ** 2


def fisher(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """What made the data."""
    return DIFFUSION * curvature(u) + u * (1 - u)


def measure() -> ude.Dataset:
    """26 snapshots up to t = 5."""
    t = np.linspace(0.0, 5.0, 26)
    prob = ude.ODEProblem(fisher, START, (0.0, 5.0), names=NAMES)
    u = ude.solve(prob, ude.Tsit5(), saveat=torch.as_tensor(t), abstol=1e-8, reltol=1e-8).u.numpy()
    return ude.Dataset.from_arrays(t, u + NOISE * np.random.default_rng(0).normal(size=u.shape), NAMES)


# %% [markdown]
# ## One small network for all places
#
# The law is the same everywhere, and it depends on the density alone. So the network has one input and one output,
# and is called at all 26 places at once: 26 snapshots are 676 examples of one curve. That is what a convolution is
# for; here it needs no more than that tensors have shapes.


# %%
def reaction_diffusion(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Diffusion with an unknown coefficient, and an unknown reaction."""
    return p.D * curvature(u) + p.R(u)


def train(data: ude.Dataset) -> ude.Fit:
    """D and the network together; D begins five times too large."""
    model = ude.FunctionModel(
        reaction_diffusion,
        states=NAMES,
        fit="D=0.05 in [1e-4, 1]",
        terms=ude.MLP("R", inputs="u", width=8),
    )
    # a front only moves on, so that short windows are not needed
    stages = (
        ude.stages.DerivativeMatching((ude.optimizers.Adam(100), ude.optimizers.LBFGS(200))),
        ude.stages.SingleShooting((ude.optimizers.LBFGS(40),)),
    )
    return ude.fit(model, data, holdout=0, u0=START[None], positive=False, stages=stages, progress=False)


# %% [markdown]
# `D` comes out within 15 % of 0.01, and the learned reaction is nowhere more than 0.07 away from $u(1-u)$, which is
# at most 0.25. The two errors belong together: at the foot of the front, where densities are low, a little less
# diffusion and a little more growth look alike.
#
# ## A formula
#
# `discover` reads equations, and 26 of them with shifted neighbors are more than it can read. Its parts do the same
# by hand. The search is given samples of the network; each of the simplest adequate formulas is put in its place with
# `replace` and fitted to the *snapshots*, and these decide by $N \log(\text{SSE}/N) + \text{complexity} \log N$.


# %%
def candidates(fit: ude.Fit, count: int) -> list[ude.search.Candidate]:
    """The simplest formulas that follow the network to 3 %, or the closest one."""
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    with torch.no_grad():
        samples = ude.search.Samples({"u": u.numpy()}, fit.model.term("R")(u).numpy(), "R")
    found = [c for c in LibraryRegressor().search(samples) if c.pareto or c.nmse < 0.03]
    good = [c for c in found if c.nmse < 0.03]
    return sorted(good or found[-1:], key=lambda c: (c.complexity, c.nmse))[:count]


def embedded(fit: ude.Fit, candidate: ude.search.Candidate) -> tuple[float, ude.Fit]:
    """Score and fit of a formula in the place of the network."""
    constants = {name: ude.Parameter(value, fitted=True) for name, value in candidate.constants.items()}
    formula = ude.Symbolic({"R": candidate.expression}, inputs="u", parameters=constants)
    model = fit.model.replace({"R": formula})
    stage = ude.stages.SingleShooting((ude.optimizers.LBFGS(20),))
    refit = ude.fit(model, fit.data, holdout=0, stages=stage, u0=START[None], positive=False, progress=False)
    residuals = np.concatenate([p - run.u for p, run in zip(refit.predict(), fit.data.trajectories, strict=True)])
    n = residuals.size
    return n * math.log(np.sum(residuals**2) / n) + candidate.complexity * math.log(n), refit


# %% [markdown]
# The snapshots choose $R = c_0 u + c_1 u^2$ with $c_0 = 1.00$ and $c_1 = -1.00$, and then `D` is 0.0099. That is the
# law of Fisher: growth at rate 1, and a limit at density 1.


# %%
def draw(fit: ude.Fit, found: ude.Fit) -> Figure:
    """Left: snapshots. Right: the reaction."""
    figure = Figure(figsize=(8.0, 3.3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    run, predicted = fit.data.trajectories[0], found.predict()[0]
    for index, style in ((0, "-"), (5, "--"), (10, "-."), (20, ":")):
        left.plot(X, predicted[index], "k" + style, linewidth=1.2, label=f"t = {run.t[index]:g}")
        left.plot(X, run.u[index], "ko", markersize=2.5)
    left.set(xlabel="x", ylabel="density u", ylim=(-0.1, 1.45))
    left.legend(frameon=False, ncols=2, loc="upper center")
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    with torch.no_grad():
        right.plot(u, u * (1 - u), color="0.7", linewidth=5, label="true")
        right.plot(u, fit.model.term("R")(u), "k:", label="network")
        right.plot(u, found.model.term("R")(u), "k--", linewidth=1, label="formula")
    right.set(xlabel="density u", ylabel="reaction R(u)")
    right.legend(frameon=False)
    return figure


# %% [markdown]
# ## When this fails
#
# **A grid that is too coarse.** The `D` that fits is that of the differences, not of the PDE. Here both were made
# with the same grid, which flatters the result; measured fronts must be wider than a few cells.
#
# **A finer grid is stiff.** The largest stable step of an explicit method falls with the square of the cell. With a
# few hundred places take `KenCarp4` or `FBDF` with a sparse Jacobian (`ude.ODEFunction(jac_prototype=...)`).
#
# **Densities that never occur.** The front passes through all values from 0 to 1, and so the law is known from 0 to
# 1. In a population that only ever grows from 0.5, nothing is known of small ones.
#
# **No space in the data.** With one place instead of 26, diffusion cannot be told from reaction.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    fit = train(measure())
    tried = [(*embedded(fit, one), one) for one in candidates(fit, 3 if fast else 5)]
    _, found, formula = min(tried, key=lambda item: item[0])
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(fit, found).savefig(Path(folder) / "fisher.png")
    u = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    with torch.no_grad():
        wrong = fit.model.term("R")(u) - u * (1 - u)
    values = found.model.values()
    return {
        "numbers measured": float(sum(fit.data.counts().values())),
        "D beside the network": fit.model.values()["D"],
        "largest error of the network": float(wrong.abs().max()),
        "logistic law chosen": float(str(formula.expression) == "c0*u + c1*u**2"),
        "c0": values.get("R_c0", math.nan),
        "c1": values.get("R_c1", math.nan),
        "D": values["D"],
        "error of the formula over noise": float(np.mean(list(found.rmse().values()))) / NOISE,
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-09").items():
        print(f"{name:>35}: {value:.4g}")
