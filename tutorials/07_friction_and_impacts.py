# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A sliding mass: unknown friction, a shaker, and a stop
#
# A mass of 1 kg slides on a rail between springs. A shaker pushes it with a known force. Position and velocity are
# measured every tenth of a second, with noise of 5 mm and 2 cm/s.
#
# **The question.** What is the friction, as a function of the velocity? And if we know it, can we say what happens
# when somebody mounts a stop on the rail, against which the mass has never run?

# %%
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import ude
from ude.discovery import Discovery, SelectionOptions

STIFFNESS, VISCOUS, COULOMB, SMOOTH = 4.0, 0.15, 0.6, 0.2
STOP, RESTITUTION = 0.5, 0.7
TOLERANCES = {"abstol": 1e-8, "reltol": 1e-8}


# %%
def friction(v: Tensor) -> Tensor:
    """What nature does: viscous friction, and dry friction that changes its sign within about 0.2 m/s."""
    return VISCOUS * v + COULOMB * torch.tanh(v / SMOOTH)


def rail(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """The true rail."""
    x, v = u.unbind(-1)
    force = 3.0 * torch.sin(1.1 * t) + 1.5 * torch.sin(2.7 * t + 1.0)
    return torch.stack([v, force - STIFFNESS * x - friction(v)], -1)


def measure() -> ude.Dataset:
    """Twelve seconds without the stop, from rest."""
    t = np.linspace(0.0, 12.0, 121)
    prob = ude.ODEProblem(rail, u0=[0.0, 0.0], tspan=(0.0, 12.0))
    u = ude.solve(prob, ude.Tsit5(), saveat=torch.as_tensor(t), **TOLERANCES).u.numpy()
    noise = np.random.default_rng(0).normal(size=u.shape) * [0.005, 0.02]
    return ude.Dataset.from_arrays(t, u + noise, "x, v")


# %% [markdown]
# ## What we know, and what we do not
#
# Newton's law, the program of the shaker, that the springs are linear. We know neither their stiffness `k` nor the
# friction `F`. The last 30 % of the data are held out.


# %%
def train(data: ude.Dataset) -> ude.Fit:
    """A small network for the friction; the mass starts at rest."""
    model = ude.UDE(
        """
        dx/dt = v
        dv/dt = 3*sin(1.1*t) + 1.5*sin(2.7*t + 1) - k*x - F(v)
        """,
        fit="k",
        unknown=ude.MLP("F", inputs="v", width=8),
    )
    options = ude.FitOptions(derivative_iterations=(100, 300), multiple_iterations=10, single_iterations=(0, 20))
    return ude.fit(model, data, holdout=0.3, u0=np.zeros((1, 2)), options=options, progress=False)


# %% [markdown]
# Here `k` comes out as 4.00 (it is 4), although a network stands beside it: the friction depends on `v` and the
# spring on `x`, so neither can take the place of the other.
#
# ## A formula for it
#
# `discover` writes down formulas that resemble the network, puts them into the equation, and lets the measurements
# choose.


# %%
def search(fit: ude.Fit) -> Discovery:
    """The formula that the data prefer."""
    return ude.discover(fit, ude.search.LibraryRegressor(), options=SelectionOptions(max_candidates=6), progress=False)


# %% [markdown]
# The true friction is $0.15\,v + 0.6\tanh(v/0.2)$, and the search knows no `tanh` with a scale inside. It puts the
# curve together from others, with four constants, and follows the measurements well: its residuals in `x` are the
# noise, and the verdict is that several forms are equally good. A good fit does not make a formula right.
#
# So we put our own suspicion in the place of the network. `replace` gives a model with a formula where the network
# was, and `fit` fits its constants.


# %%
def own_formula(fit: ude.Fit) -> ude.Fit:
    """The engineer's formula in the place of the network."""
    formula = ude.Symbolic(
        {"F": "c*v + d*tanh(v/w)"},
        inputs="v",
        parameters={"c": 0.3, "d": 0.3, "w": ude.Parameter(0.3, fitted=True, lower=0.01, upper=5.0)},
    )
    model = fit.model.replace({"F": formula})
    return ude.fit(model, fit.data, holdout=0.3, u0=np.zeros((1, 2)), stages="single shooting", progress=False)


# %% [markdown]
# It gives $F = 0.150\,v + 0.607 \tanh(v/0.184)$, with three constants, and its residuals too are the noise. On
# the held-out seconds its error in x is 6.3 mm; the formula that the search found has 6.9 mm, and the network 6.0 mm.
# Who knows a law of the field should try it.
#
# ## The stop
#
# Now a stop at x = 0.5 m, from which the mass bounces with 0.7 of its speed. The model was fitted without it; an
# event adds it. `direction=1` means: only on the way out. The coefficient stands in `p`, where gradients reach it.


# %%
def bounce(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Back from the stop."""
    x, v = u.unbind(-1)
    return torch.stack([x, -p.restitution * v], -1)


def with_stop(f: Any, restitution: Tensor, saveat: Tensor) -> ude.Solution:
    """The motion under f, from rest, with the stop."""
    prob = ude.ODEProblem(
        lambda u, p, t: f(u, None, t),
        [0.0, 0.0],
        (0.0, float(saveat[-1])),
        p={"restitution": restitution},
        names="x, v",
    )
    stop = ude.ContinuousCallback(lambda u, p, t: u[..., 0] - STOP, bounce, direction=1)
    return ude.solve(prob, ude.Tsit5(), callback=stop, saveat=saveat, abstol=1e-7, reltol=1e-7)


# %% [markdown]
# The mass strikes the stop four times within ten seconds. The model says when, without having seen a single impact:
# its times are off by 5 ms at most.
#
# And if the coefficient of restitution is not known? Gradients run through events, through the time of the impact as
# well as through the jump, so that it is fitted like any other number. We measure x alone, thirty times within the
# first three seconds, begin at 0.4, and we find 0.71.


# %%
def fit_restitution(model: ude.models.Model, seen: Tensor, t: Tensor) -> float:
    """Restitution from measured positions (time,), with the model as it is."""
    restitution = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    model.requires_grad_(False)  # only the restitution is sought
    optimizer = torch.optim.LBFGS([restitution], max_iter=12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = 1e4 * (with_stop(model, restitution, t).u[:, 0] - seen).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    return restitution.item()


# %%
def draw(fit: ude.Fit, found: Discovery, own: ude.Fit, motions: tuple[ude.Solution, ude.Solution]) -> Figure:
    """Left: friction against velocity. Right: the motion with the stop."""
    figure = Figure(figsize=(8.0, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    v = torch.linspace(-2.7, 2.7, 301, dtype=torch.float64)
    left.plot(v, friction(v), color="0.7", linewidth=5, label="true")
    with torch.no_grad():
        for model, style, name in (
            (fit.model, "k:", "network"),
            (found.model, "k-.", "found"),
            (own.model, "k-", "own"),
        ):
            left.plot(v, model.term("F")(v), style, linewidth=1.3, label=name)
    left.set(xlabel="v (m/s)", ylabel="friction F (N)")
    left.legend(frameon=False)
    true, predicted = motions
    right.plot(true.t, true["x"], color="0.7", linewidth=4, label="true")
    right.plot(predicted.t, predicted["x"].detach(), "k--", linewidth=1.2, label="model")
    right.axhline(STOP, color="k", linewidth=2.5)
    right.text(0.1, STOP + 0.06, "stop")
    right.set(xlabel="t (s)", ylabel="x (m)", ylim=(-1.9, 0.9))
    right.legend(frameon=False, loc="lower right")
    return figure


# %% [markdown]
# ## When this fails
#
# **Dry friction that jumps.** True Coulomb friction is discontinuous, and a mass may stick. A smooth network cannot
# jump, and a solver steps over a jump at a price. Sticking is an event: end the slide with a `ContinuousCallback` on
# `v`.
#
# **Velocities that never occur.** Beyond 2.7 m/s the network is a guess, and so is every formula; between -0.1 and
# 0.1 m/s there are few points, and the slope there is the least certain number of all.
#
# **Impacts that accumulate.** Without the shaker, the mass would strike the stop ever faster and ever more often.
# After `max_events` of them `solve` gives up with the code `MaxEvents`; end such a motion with `terminate`.
#
# **Grazing.** Where the mass just touches the stop, an arbitrarily small change makes an impact or none. The gradient
# is right on each side and tells nothing of the other.
#
# **A force that was measured.** Give it as a covariate (docs/data.md): `fit` takes it, and `replace` as above as
# well, but `discover` does not yet.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    data = measure()
    fit = train(data)
    found, own = search(fit), own_formula(fit)
    t = torch.linspace(0.0, 10.0, 301, dtype=torch.float64)
    restitution = torch.tensor(RESTITUTION, dtype=torch.float64)
    with torch.no_grad():
        motions = (with_stop(rail, restitution, t), with_stop(own.model, restitution, t))
        soon = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)
        seen = with_stop(rail, restitution, soon).u[:, 0]
    seen = seen + 0.005 * torch.as_tensor(np.random.default_rng(1).normal(size=len(seen)))
    times = [np.array([float(event.t[0]) for event in motion.events]) for motion in motions]
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(fit, found, own, motions).savefig(Path(folder) / "friction.png")
    values = own.model.values()
    return {
        "k beside the network": fit.model.values()["k"],
        "constants of the found formula": float(len(found.chosen.candidates["F"].constants)),
        "tanh in the found formula": float("tanh" in str(found.chosen.candidates["F"].expression)),
        "residual of the found formula over noise": found.rmse(fit.train, training_constants=True)["x"] / 0.005,
        "residual of the own formula over noise": own.rmse()["x"] / 0.005,
        "c": values["F_c"],
        "d": values["F_d"],
        "w": values["F_w"],
        "held out, own formula": 1e3 * own.rmse(fit.held_out)["x"],
        "held out, found formula": 1e3 * found.held_out_rmse["x"],
        "held out, network": 1e3 * fit.rmse(fit.held_out)["x"],
        "impacts": float(len(times[0])),
        "impacts predicted": float(len(times[1])),
        "error of the times": 1e3 * float(np.abs(times[0] - times[1]).max()),
        "restitution": fit_restitution(own.model, seen, soon),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-07").items():
        print(f"{name:>40}: {value:.4g}")
