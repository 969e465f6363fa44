# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # How much to believe
#
# A fit always returns numbers, and a discovery always returns a formula. Whether the data had to say so is another matter.
#
# **The question.** An enzyme breaks down a substance, by Michaelis and Menten, $\dot x = -v x/(k + x)$, with v = 1 and k = 1.
# We measure x, with noise of 0.02. Which of the numbers can be believed, and over which range can a learned law be believed?
#
# One experiment begins with x = 5, where the enzyme is busy; the other with x = 0.2, where it never is.

# %%
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import ude

NOISE, EQUATION = 0.02, "dx/dt = -v*x/(k + x)"


def model() -> ude.UDE:
    """Both constants positive, unknown within wide bounds."""
    return ude.UDE(EQUATION, fit="v=0.7 in [1e-3, 1e3], k=0.7 in [1e-3, 1e3]")


def measure(start: float, noise: float = NOISE, seed: int = 0) -> ude.Dataset:
    """25 points up to t = 8."""
    t = np.linspace(0.0, 8.0, 25)
    prob = ude.UDE(EQUATION, parameters={"v": 1.0, "k": 1.0}).problem([start], (0.0, 8.0))
    with torch.no_grad():
        x = ude.solve(prob, ude.Tsit5(), saveat=torch.as_tensor(t), abstol=1e-9, reltol=1e-9).u.numpy()
    return ude.Dataset.from_arrays(t, x + noise * np.random.default_rng(seed).normal(size=x.shape), ["x"])


def fitted(start: float, noise: float = NOISE) -> ude.Fit:
    """The two constants from one experiment whose start is known."""
    return ude.fit(model(), measure(start, noise), holdout=0, u0={"x": start}, positive=False, progress=False)


# %% [markdown]
# ## Three intervals
#
# - `fisher_intervals` takes the likelihood for a parabola: cheap, symmetric, right when there are many data.
# - `profile_intervals` walks along each parameter, fits the others anew at every point, and stops where the data object.
#   It may be lopsided, and it may have no end.
# - `bootstrap` fits resampled data again and again. It asks least of the noise, and costs most.


# %%
def intervals(fit: ude.Fit, samples: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of v, by all three."""
    fisher, profile = ude.fisher_intervals(fit), ude.profile_intervals(fit, ["v"])
    again = ude.bootstrap(fit, samples=samples, processes=1, u0={"x": fit.u0[0, 0]}, positive=False)
    return {
        "fisher": (fisher.lower["v"], fisher.upper["v"]),
        "profile": (profile.lower["v"], profile.upper["v"]),
        "bootstrap": again.intervals()["v"],
    }


# %% [markdown]
# PLACEHOLDER
#
# ## Structure: what no experiment of this kind can tell
#
# From x = 0.2 the equation is nearly $\dot x = -(v/k)\,x$. The ratio is known well, each constant alone hardly: `v` and `k`
# may grow together. A fit shows none of this; it prints two numbers with four digits. A profile shows it, because it has no
# upper end within a factor of a thousand of the estimate.


# %%
def ratio_profile(fit: ude.Fit) -> tuple[np.ndarray, np.ndarray]:
    """(v, rise of chi^2) with k fitted anew at each v: the profile, drawn."""
    values = np.geomspace(0.25, 40.0, 15)
    data, start = fit.data, float(fit.u0[0, 0])
    sse = []
    for v in values:
        fixed = ude.UDE(EQUATION, parameters={"v": float(v)}, fit=f"k={v} in [1e-3, 1e4]")
        refit = ude.fit(
            fixed, data, holdout=0, u0={"x": start}, positive=False, stages="single shooting", progress=False
        )
        sse.append(refit.rmse()["x"] ** 2 * len(data.trajectories[0]))
    return values, (np.array(sse) - min(*sse, fit.rmse()["x"] ** 2 * len(data.trajectories[0]))) / NOISE**2


# %% [markdown]
# ## Support: where a learned law was seen
#
# Now a network in the place of the formula, $\dot x = -U(x)$, from the experiment with x = 5. Five members of an ensemble
# differ in nothing but the seed of their weights. Where they agree, the data speak; where they part, each
# speaks for itself.


# %%
def ensemble(members: int) -> tuple[np.ndarray, np.ndarray]:
    """x from 0 to 10, and U of each member (member, x)."""
    open_model = ude.UDE("dx/dt = -U(x)", unknown=ude.MLP("U", inputs="x", width=8))
    options = ude.FitOptions(derivative_iterations=(100, 100), multiple_iterations=10, single_iterations=(0, 30))
    found = ude.fit_ensemble(
        open_model, measure(5.0), members=members, processes=1, holdout=0, u0={"x": 5.0}, positive=False, options=options
    )
    x = np.linspace(0.0, 10.0, 201)
    with torch.no_grad():
        return x, np.stack([one.model.term("U")(torch.as_tensor(x)).numpy() for one in found.fits])


# %%
def draw(
    profiles: dict[float, tuple[np.ndarray, np.ndarray]], learned: tuple[np.ndarray, np.ndarray]
) -> Figure:
    """Left: profiles of v. Right: the ensemble."""
    figure = Figure(figsize=(8.0, 3.3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (start, (v, rise)), style in zip(profiles.items(), ("k-o", "k--s"), strict=True):
        left.semilogx(v, rise, style, markersize=3, label=f"from x = {start:g}")
    left.axhline(3.84, color="k", linewidth=0.7, linestyle=":")
    left.text(0.27, 4.1, "95 %")
    left.set(xlabel="v, with k fitted anew", ylabel="rise of chi²", ylim=(0, 12))
    left.legend(frameon=False)
    x, members = learned
    right.plot(x, x / (1 + x), color="0.7", linewidth=5, label="true")
    for i, member in enumerate(members):
        right.plot(x, member, "k-", linewidth=0.8, label="members" if i == 0 else None)
    right.axvspan(5.0, 10.0, color="0.94", zorder=0)
    right.text(5.2, 0.05, "no data")
    right.set(xlabel="x", ylabel="U(x)", ylim=(0, 1.5))
    right.legend(frameon=False)
    return figure


# %% [markdown]
# ## When this fails
#
# **All members wrong together.** An ensemble sees what is left open by the data, not what is wrong with the model. Five networks
# with the same missing state agree beautifully.
#
# **Noise that hangs together.** Fisher's and the profile's intervals count every point as new evidence. With noise that
# lasts over several points they are too narrow; the bootstrap draws blocks of residuals for this reason.
#
# **Reading a formula's constants as if it had been given.** Intervals after a discovery hold *if the formula is right*. That
# another formula might have won is not in them: look at the table of candidates, and at how close the second was.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    busy, idle = fitted(5.0), fitted(0.2, noise=0.004)
    by_all = intervals(busy, 20 if fast else 100)
    open_end = ude.profile_intervals(idle, ["v"])
    ratio = idle.model.values()["v"] / (idle.model.values()["k"] + 0.0)
    x, members = learned = ensemble(5)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw({5.0: ratio_profile(busy), 0.2: ratio_profile(idle)}, learned).savefig(Path(folder) / "belief.png")
    seen = (x >= 0.1) & (x <= 5.0)
    spread = members.max(0) - members.min(0)
    return {
        "v": busy.model.values()["v"],
        "k": busy.model.values()["k"],
        **{f"{name}, {end}": value for name, pair in by_all.items() for end, value in zip(("lower", "upper"), pair)},
        "v from 0.2": idle.model.values()["v"],
        "k from 0.2": idle.model.values()["k"],
        "v/k from 0.2": ratio,
        "profile of v from 0.2, lower": open_end.lower["v"],
        "no upper end from 0.2": float(math.isinf(open_end.upper["v"])),
        "upper end from 0.2": open_end.upper["v"],
        "members part within the data": float(spread[seen].max()),
        "members part at x = 10": float(spread[-1]),
        "largest error within the data": float(np.abs(members - x / (1 + x))[:, seen].max()),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-11").items():
        print(f"{name:>35}: {value:.4g}")
