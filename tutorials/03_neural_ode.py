# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A neural ODE on the spiral
#
# Chen et al. (2018, arXiv:1806.07366) put a network on the right-hand side of a differential equation and fitted it
# to a spiral. It has been the first example of every library since.
#
# **The question.** A network that was told nothing of the equations follows the data. Does it know the system: can it
# continue the motion, and start it elsewhere?
#
# The motion is $\dot u = A^\top u^3$ with $A = \begin{pmatrix} -0.1 & 2 \\ -2 & -0.1 \end{pmatrix}$ (the cube is
# taken of each component), from (2, 0). We see 51 points up to t = 5, with noise of 0.02.

# %%
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ude

SEEN, END, NOISE = 5.0, 10.0, 0.02
TOLERANCES = {"abstol": 1e-8, "reltol": 1e-8}


# %%
def spiral(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """The system that made the data."""
    x, y = u.unbind(-1)
    return torch.stack([-0.1 * x**3 - 2.0 * y**3, 2.0 * x**3 - 0.1 * y**3], -1)


def truth(u0: list[float], t: np.ndarray) -> np.ndarray:
    """The true motion (time, 2) from u0 at t = 0."""
    prob = ude.ODEProblem(spiral, u0=u0, tspan=(0.0, float(t[-1])))
    return ude.solve(prob, ude.Vern7(), saveat=torch.as_tensor(t), **TOLERANCES).u.numpy()


def measure(*starts: list[float]) -> ude.Dataset:
    """What is seen of the motions from these starts."""
    t, chance = np.linspace(0.0, SEEN, 51), np.random.default_rng(0)
    seen = [truth(u0, t) + NOISE * chance.normal(size=(len(t), 2)) for u0 in starts]
    return ude.Dataset.from_arrays([t] * len(starts), seen, "x, y")


# %% [markdown]
# ## By hand
#
# As in torchdiffeq or diffrax: solve, compare, differentiate, step. The weights are leaves of the problem, because
# the network is f. `solve` notices after some twenty thousand calls that the same f comes again and again, and goes
# on with a compiled program.


# %%
class Network(nn.Module):
    """du/dt = net(u), and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2)).double()

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.net(u)


def train_by_hand(data: ude.Dataset, iterations: int) -> float:
    """Adam through the whole trajectory; the root mean square error that it ends with."""
    t, u = (torch.as_tensor(array) for array in (data.trajectories[0].t, data.trajectories[0].u))
    f = Network()
    prob = ude.ODEProblem(f, u0=[2.0, 0.0], tspan=(0.0, SEEN), names="x, y")
    adam = torch.optim.Adam(f.parameters(), lr=0.01)
    for _ in range(iterations):
        adam.zero_grad()
        loss = (ude.solve(prob, ude.Tsit5(), saveat=t, abstol=1e-6, reltol=1e-4).u - u).square().mean()
        loss.backward()
        adam.step()
    return loss.item() ** 0.5


# %% [markdown]
# After 400 iterations the error is still 0.98, as large as the spiral itself. The reason is not the network. The
# trajectory turns round several times, and one that is out of phase gets no better by small changes of the weights:
# the loss is flat with many valleys. Shorter data, growing horizons and many thousand iterations are the usual
# answers.
#
# ## In stages
#
# `ude.fit` matches derivatives of the smoothed data first, where nothing has to be simulated; then it simulates short
# windows that are tied together, and at last the whole trajectory.


# %%
def train_in_stages(data: ude.Dataset) -> ude.Fit:
    """A network of two layers, fitted in stages."""
    model = ude.NeuralODE(ude.MLP("f_x, f_y", inputs="x, y", width=16))
    options = ude.FitOptions(derivative_iterations=(100, 500))
    return ude.fit(model, data, holdout=0, progress=False, options=options)


# %% [markdown]
# The error is then 0.013, below the noise of 0.02: the network has bent after some of it too.
#
# ## What it knows
#
# We compare with the true motion, first where there were data, then from t = 5 to 10, and then from starts that it
# never saw, over two units of time: (1, 0), which lies within the spiral, and (2.5, 0), which lies outside of it.


# %%
def elsewhere(fit: ude.Fit, u0: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(true, predicted) motion, each (time, 2), from another start."""
    t = np.linspace(0.0, 2.0, 101)
    with torch.no_grad():
        prob = fit.model.problem(u0, (0.0, 2.0))
        predicted = ude.solve(prob, ude.Tsit5(), saveat=torch.as_tensor(t), **TOLERANCES).u.numpy()
    return truth(u0, t), predicted


def distance(true: np.ndarray, predicted: np.ndarray) -> float:
    """Root mean square distance of two motions in the plane."""
    return float(np.sqrt(np.mean(np.sum((true - predicted) ** 2, -1))))


# %% [markdown]
# Where it has seen data, the network is 0.02 away from the true motion, as far as the points themselves. Its forecast
# from t = 5 to 10 is 1.2 away, where the motion itself is not larger than 1: the spiral leads inwards, to where there
# was no point yet. From (1, 0) it is 0.1 away, and from (2.5, 0) 2.0. Beyond what it has seen, the network is an
# arbitrary smooth function.
#
# The cure is not a better network but one more run. With 51 points from (0.8, 0) beside the others, which lie where
# the forecast leads, the forecast is 0.4 away; from (2.5, 0), where there still are no data, it is 1.7.


# %%
def draw(fit: ude.Fit, informed: ude.Fit, starts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Left: x over time. Right: motions from other starts."""
    figure = Figure(figsize=(8.0, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    t = np.linspace(0.0, END, 401)
    left.plot(t, truth([2.0, 0.0], t)[:, 0], color="0.65", linewidth=4, label="true motion")
    left.plot(t, fit.predict(t)[0][:, 0], "k--", linewidth=1.2, label="network, one run")
    left.plot(t, informed.predict(t)[0][:, 0], "k:", linewidth=1.6, label="network, two runs")
    left.plot(fit.data.trajectories[0].t, fit.data.trajectories[0].u[:, 0], "ko", markersize=2.5, label="data")
    left.axvspan(SEEN, END, color="0.94", zorder=0)
    left.set(xlabel="t", ylabel="x", ylim=(-2.3, 3.8))
    left.legend(frameon=False, ncols=2, loc="upper center")
    right.plot(*fit.data.trajectories[0].u.T, "ko", markersize=2, label="data")
    for true, predicted in starts.values():
        right.plot(*true.T, color="0.65", linewidth=4)
        right.plot(*predicted.T, "k--", linewidth=1.2)
        right.plot(*true[0], "k*", markersize=11)
    right.set(xlabel="x", ylabel="y", xlim=(-4.2, 4.2), ylim=(-4.2, 4.2), aspect="equal")
    return figure


# %% [markdown]
# ## When this fails
#
# **Outside of the data.** A small training error says nothing about other starts. If some of the equation is known,
# put it in (`ude.UDE`), and only what is unknown is a guess; if none is, let the data visit the places you will ask
# about.
#
# **Motions that cross.** A motion of an autonomous equation in the plane cannot cross itself. If your data do, a
# state is missing: add a state that nobody measured (docs/data.md), or let the network read `t`.
#
# **Through the whole trajectory at once.** It is not the library that fails above, but the loss. Nothing about it
# improves with a better solver or an exact gradient.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    data = measure([2.0, 0.0])
    by_hand = train_by_hand(data, 60 if fast else 400)
    fit, informed = train_in_stages(data), train_in_stages(measure([2.0, 0.0], [0.8, 0.0]))
    starts = {"inside": elsewhere(fit, [1.0, 0.0]), "outside": elsewhere(fit, [2.5, 0.0])}
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(fit, informed, starts).savefig(Path(folder) / "spiral.png")
    seen, later = np.linspace(0.0, SEEN, 201), np.linspace(SEEN, END, 201)
    motion = truth([2.0, 0.0], np.concatenate([seen, later[1:]]))
    return {
        "points": float(len(data.trajectories[0])),
        "error by hand": by_hand,
        "error in stages": float(np.sqrt(np.mean(np.square(list(fit.rmse().values()))))),
        "distance where seen": distance(motion[:201], fit.predict(seen)[0]),
        "distance of the forecast": distance(motion[200:], fit.predict(later)[0]),
        "distance from inside": distance(*starts["inside"]),
        "distance from outside": distance(*starts["outside"]),
        "distance of the forecast from two runs": distance(motion[200:], informed.predict(later)[0]),
        "distance from inside, two runs": distance(*elsewhere(informed, [1.0, 0.0])),
        "distance from outside, two runs": distance(*elsewhere(informed, [2.5, 0.0])),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-03").items():
        print(f"{name:>30}: {value:.4g}")
