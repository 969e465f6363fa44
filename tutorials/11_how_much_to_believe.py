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
# A fit always returns numbers, and a discovery always returns a formula. Whether the data had to say so is another
# matter.
#
# **The question.** An enzyme breaks down a substance, by Michaelis and Menten, $\dot x = -v x/(k + x)$, with v = 1
# and k = 1. We measure x, with a little noise. Which of the numbers can be believed, and over which range can a
# learned law be believed?
#
# One experiment begins with x = 5, where the enzyme is busy (noise 0.02); the other with x = 0.2, where it never is
# (noise 0.01).

# %%
from __future__ import annotations

from pathlib import Path
from typing import Any

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
# - `profile_intervals` walks along each parameter, fits the others again at every point, and stops where the data
#   object.
#   It may be lopsided, and it may have no end.
# - `bootstrap` fits resampled data again and again. It asks least of the noise, and costs most.


# %%
def intervals(fit: ude.Fit, samples: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of v, by all three."""
    fisher, profile = ude.uncertainty.fisher_intervals(fit), ude.uncertainty.profile_intervals(fit, ["v"])
    again = ude.uncertainty.bootstrap(fit, samples=samples, processes=1, u0={"x": fit.u0[0, 0]}, positive=False)
    return {
        "fisher": (fisher.lower["v"], fisher.upper["v"]),
        "profile": (profile.lower["v"], profile.upper["v"]),
        "bootstrap": again.intervals()["v"],
    }


# %% [markdown]
# From x = 5, v comes out as 1.015. Fisher's interval is 0.998 to 1.032, the profile's 0.999 to 1.033, and that of ten
# bootstrap samples lies within both. Where the data say enough, all agree, and the cheapest will do. (1 lies just
# inside, as it may: one interval of twenty misses.)
#
# ## Structure: what no experiment of this kind can tell
#
# From x = 0.2 the equation is nearly $\dot x = -(v/k)\,x$. Only the ratio shows: `v` and `k` may grow together. A fit
# shows none of this. It prints v = 0.357 and k = 0.289, with as many digits as you like, where both are 1.
#
# A profile shows it. Put v at some value, fit k again, and see how much $\chi^2$ rises; a rise by 3.84 is what 95 %
# allow. From v = 0.25, where it rises by 0.5, to v = 40, where it rises by 2.4, nothing is excluded. From x = 5, v =
# 40 is excluded by a rise of 5160. The cure is not more data of the same kind, but one experiment with more
# substance.


# %%
def chi_squared(fit: ude.Fit, v: np.ndarray, k: np.ndarray, noise: float) -> np.ndarray:
    """chi^2 for pairs of constants (v, k), all simulated as one batch."""

    def f(u: torch.Tensor, p: Any, t: torch.Tensor) -> torch.Tensor:
        (x,) = u.unbind(-1)
        return (-p.v * x / (p.k + x)).unsqueeze(-1)

    [run] = fit.data.trajectories
    u0 = torch.full((v.size, 1), float(fit.u0[0, 0]), dtype=torch.float64)
    p = {name: torch.as_tensor(grid.reshape(-1)) for name, grid in (("v", v), ("k", k))}
    prob = ude.ODEProblem(f, u0, (0.0, 8.0), p)
    x = ude.solve(prob, ude.Tsit5(), saveat=torch.as_tensor(run.t), abstol=1e-7, reltol=1e-7).u.numpy()
    return np.sum((x - run.u) ** 2, (-1, -2)).reshape(v.shape) / noise**2


def drawn_profile(fit: ude.Fit, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(v, rise of chi^2) at the best k for each v, from a coarse grid of k and then a fine one."""
    best, x0 = fit.model.values(), float(fit.u0[0, 0])
    near = best["v"] * np.linspace(0.95, 1.05, 9)
    values = np.sort(np.concatenate([np.geomspace(0.25, 40.0, 15), near]))
    # k follows v, so that the initial rate v x/(k + x) lies near the measured one
    k = values * (best["k"] + x0) / best["v"] - x0
    for factors in (np.geomspace(0.4, 2.0, 100), np.linspace(0.97, 1.03, 100)):
        grid = np.maximum(k[:, None] * factors, 1e-3)
        rise = chi_squared(fit, np.broadcast_to(values[:, None], grid.shape).copy(), grid, noise)
        k = grid[np.arange(len(values)), rise.argmin(1)]
    least = float(np.sum((fit.predict()[0] - fit.data.trajectories[0].u) ** 2)) / noise**2
    return values, rise.min(1) - least


# %% [markdown]
# ## Support: where a learned law was seen
#
# Now a network in the place of the formula, $\dot x = -U(x)$, from the experiment with x = 5. Four members of an
# ensemble differ in nothing but the seed of their weights. Where they agree, the data speak; where they part, each
# speaks for itself.


# %%
def ensemble(members: int) -> tuple[np.ndarray, np.ndarray]:
    """x from 0 to 10, and U of each member (member, x)."""
    open_model = ude.UDE("dx/dt = -U(x)", unknown=ude.MLP("U", inputs="x", width=8))
    options = ude.FitOptions(derivative_iterations=(50, 100), multiple_iterations=5, single_iterations=(0, 20))
    found = ude.uncertainty.fit_ensemble(
        open_model,
        measure(5.0),
        members=members,
        processes=1,
        holdout=0,
        u0={"x": 5.0},
        positive=False,
        options=options,
    )
    x = np.linspace(0.0, 10.0, 201)
    with torch.no_grad():
        return x, np.stack([one.model.term("U")(torch.as_tensor(x)).numpy() for one in found.fits])


# %%
def draw(profiles: dict[float, tuple[np.ndarray, np.ndarray]], learned: tuple[np.ndarray, np.ndarray]) -> Figure:
    """Left: profiles of v. Right: the ensemble."""
    figure = Figure(figsize=(8.0, 3.3), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (start, (v, rise)), style in zip(profiles.items(), ("k-o", "k--s"), strict=True):
        left.semilogx(v, rise, style, markersize=3, label=f"from x = {start:g}")
    left.axhline(3.84, color="k", linewidth=0.7, linestyle=":")
    left.text(0.27, 4.1, "95 %")
    left.set(xlabel="v, with k fitted again", ylabel="rise of chi²", ylim=(0, 12))
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
# Within the data the members part by 0.007 at most; at x = 10, twice the largest value that was seen, by 0.17. But
# all of them are off by up to 0.069 within the data, near x = 0, where few points were: the members share the data,
# their noise, and the habits of their training. An ensemble tells where nothing is known. How large the errors are it
# does not tell.


# %% [markdown]
# ## When this fails
#
# **All members wrong together.** An ensemble sees what is left open by the data, not what is wrong with the model.
# Four networks with the same missing state agree beautifully.
#
# **Noise that hangs together.** Fisher's and the profile's intervals count every point as new evidence. With noise
# that lasts over several points they are too narrow; the bootstrap draws blocks of residuals for this reason.
#
# **Reading a formula's constants as if it had been given.** Intervals after a discovery hold *if the formula is
# right*. That another formula might have won is not in them: look at the table of candidates, and at how close the
# second was.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    busy, idle = fitted(5.0), fitted(0.2, noise=0.01)
    by_all = intervals(busy, 10 if fast else 100)
    ratio = idle.model.values()["v"] / idle.model.values()["k"]
    busy_profile, idle_profile = drawn_profile(busy, NOISE), drawn_profile(idle, 0.01)
    x, members = learned = ensemble(4)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw({5.0: busy_profile, 0.2: idle_profile}, learned).savefig(Path(folder) / "belief.png")
    seen = (x >= 0.1) & (x <= 5.0)
    spread = members.max(0) - members.min(0)
    return {
        "v": busy.model.values()["v"],
        "k": busy.model.values()["k"],
        **{
            f"{name}, {end}": value
            for name, pair in by_all.items()
            for end, value in zip(("lower", "upper"), pair, strict=True)
        },
        "v from 0.2": idle.model.values()["v"],
        "k from 0.2": idle.model.values()["k"],
        "v/k from 0.2": ratio,
        "rise at v = 0.25 from 0.2": float(idle_profile[1][0]),
        "rise at v = 40 from 0.2": float(idle_profile[1][-1]),
        "rise at v = 40 from 5": float(busy_profile[1][-1]),
        "members part within the data": float(spread[seen].max()),
        "members part at x = 10": float(spread[-1]),
        "largest error within the data": float(np.abs(members - x / (1 + x))[:, seen].max()),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-11").items():
        print(f"{name:>35}: {value:.4g}")
