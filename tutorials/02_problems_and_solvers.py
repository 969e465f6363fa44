# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Problems and solvers, for those who come from Julia
#
# `ude` takes its words from DifferentialEquations.jl: `ODEProblem`, `solve`, `remake`, `saveat`, `reltol`, `retcode`,
# `Tsit5()`, `Rodas5P()`. What lies under them is torch: states are tensors, everything can be differentiated, and
# many trajectories are one batch.
#
# **The question.** Which method, and which tolerance? The answer is two pictures: what an accurate orbit costs, and
# what happens to the steps of an explicit method when the problem is stiff.
#
# | Julia | here |
# |---|---|
# | `f(u, p, t)`, or `f!(du, u, p, t)` | `f(u, p, t)`, returns du; u has shape `(*batch, state)` |
# | `ODEProblem(f, u0, tspan, p)` | the same; `p` may be a dict, read as `p.alpha` |
# | `solve(prob, Tsit5(), saveat = 0.1, reltol = 1e-8)` | the same |
# | `sol(2.5)`, `sol.t`, `sol.u`, `sol.retcode`, `sol.stats` | the same; `sol.u` has shape `(*batch, time, state)` |
# | `remake(prob, p = ...)` | the same; a dict changes the parameters that it names |
# | `EnsembleProblem`, `prob_func` | the same; variants of one f are solved as one batch |
# | `ContinuousCallback`, `PresetTimeCallback`, `terminate!` | the same; an affect returns the new state |
# | `sensealg = InterpolatingAdjoint()` | the same; the default is `DiscreteAdjoint()` |

# %%
from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import ude

# %% [markdown]
# ## One problem, from start to end
#
# A right-hand side is a torch function of `u`, `p` and `t`. The state axis is the last one, so that the same function
# serves one trajectory and a batch. Names of the states are read from the line that unpacks `u`.


# %%
def lotka_volterra(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Prey x and predators y."""
    x, y = u.unbind(-1)
    return torch.stack([p.alpha * x - p.beta * x * y, p.delta * x * y - p.gamma * y], -1)


def first_solve() -> dict[str, float]:
    """Solve, read, change a parameter, differentiate."""
    p = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}
    prob = ude.ODEProblem(lotka_volterra, u0=[1.0, 1.0], tspan=(0.0, 10.0), p=p)
    sol = ude.solve(prob, ude.Vern7(), abstol=1e-10, reltol=1e-10, saveat=0.1)
    faster = ude.solve(ude.remake(prob, p={"alpha": 1.8}), ude.Vern7(), abstol=1e-10, reltol=1e-10, saveat=0.1)

    alpha = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    end = ude.solve(ude.remake(prob, p={"alpha": alpha}), ude.Vern7(), abstol=1e-10, reltol=1e-10).u[-1]
    (slope,) = torch.autograd.grad(end[0], alpha)
    return {
        "x at 10": float(sol["x"][-1]),
        "x at 2.55, between the saves": float(sol(2.55)[0]),
        "highest x": float(sol["x"].max()),
        "highest y with alpha 1.8": float(faster["y"].max()),
        "dx(10)/dalpha": float(slope),
    }


# %% [markdown]
# With these parameters `x(10)` is 1.0263. `sol(2.55)` reads the dense output between two saved times. The derivative
# of `x(10)` by `alpha` is 2.161: raise `alpha` by 0.01, and `x(10)` grows by about 0.02. No option was needed for it:
# a leaf of `p` that requires a gradient gets one.
#
# ## What accuracy costs
#
# A planet on an ellipse of eccentricity 0.6 is back where it was after one period, so the error after three periods
# is known without any reference solution. We count the calls of f for tolerances from 1e-3 to 1e-11.


# %%
def kepler(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """A planet of unit mass around a sun at the origin."""
    x, y, vx, vy = u.unbind(-1)
    r3 = (x * x + y * y) ** 1.5
    return torch.stack([vx, vy, -x / r3, -y / r3], -1)


def work_and_precision(tolerances: list[float]) -> dict[str, list[tuple[int, float]]]:
    """Method -> (calls of f, error after three periods) for each tolerance."""
    e = 0.6
    prob = ude.ODEProblem(
        kepler, u0=[1 - e, 0.0, 0.0, math.sqrt((1 + e) / (1 - e))], tspan=(0.0, 6 * math.pi), names="x, y, vx, vy"
    )
    measured: dict[str, list[tuple[int, float]]] = {}
    for alg in (ude.methods.BS3(), ude.Tsit5(), ude.Vern7(), ude.methods.Vern9()):
        measured[alg.name] = []
        for tolerance in tolerances:
            if isinstance(alg, ude.methods.BS3) and tolerance < 1e-7:
                continue  # tens of thousands of calls
            sol = ude.solve(prob, alg, abstol=tolerance, reltol=tolerance, saveat=[6 * math.pi])
            measured[alg.name].append((sol.stats.nf, float((sol.u[-1, :2] - prob.u0[:2]).norm())))
    return measured


# %% [markdown]
# At Julia's default tolerance for `reltol`, 1e-3, `Tsit5` ends 0.88 away from where it should be, more than twice the
# planet's smallest distance from the sun. Default tolerances are for pictures, not for fits. For an error below 1e-6
# `Vern7` needs 1244 calls and `Tsit5` 1765: the more accurate, the more a high order pays.
#
# ## When steps are small for no visible reason
#
# Robertson's reactions have rates from 0.04 to 3e7. After the first instant the solution is smooth, and an explicit
# method still cannot take steps longer than 0.0016: it would become unstable. That is stiffness. An implicit method
# takes steps as long as the solution is smooth.


# %%
def robertson(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Robertson (1966): A -> B, B + B -> C + B, B + C -> A + C."""
    a, b, c = u.unbind(-1)
    first, second, third = 0.04 * a, 3e7 * b * b, 1e4 * b * c
    return torch.stack([-first + third, first - second - third, second], -1)


def steps_of(alg: Any, end: float) -> ude.Solution:
    """Robertson's problem up to `end`, every step saved."""
    prob = ude.ODEProblem(robertson, u0=[1.0, 0.0, 0.0], tspan=(0.0, end))
    return ude.solve(prob, alg, abstol=1e-8, reltol=1e-6)


# %% [markdown]
# `Tsit5` takes 630 steps to come to t = 1; `Rodas5P` comes to t = 100000 in 130. Who does not know whether a problem
# is stiff gives no method: `solve` then takes one that begins with an explicit method and changes when it finds that
# stability, and not accuracy, limits the steps. `sol.stats.why_algorithm` says what was taken and why.
#
# ## Many at once
#
# In Julia, an ensemble runs over threads. Here it is one batch: every trajectory has its own steps and its own
# parameters, and torch sees tensors with one more axis.


# %%
def ensemble(count: int) -> ude.solving.EnsembleSolution:
    """Lotka-Volterra with `count` values of alpha from 1 to 2."""
    p = {"alpha": 1.5, "beta": 1.0, "gamma": 3.0, "delta": 1.0}
    prob = ude.ODEProblem(lotka_volterra, u0=[1.0, 1.0], tspan=(0.0, 10.0), p=p)
    variants = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, p={"alpha": 1.0 + i / (count - 1)}))
    return ude.solve(variants, ude.Tsit5(), trajectories=count, saveat=0.1, abstol=1e-6, reltol=1e-6)


# %%
def draw(measured: dict[str, list[tuple[int, float]]], explicit: ude.Solution, implicit: ude.Solution) -> Figure:
    """Left: error against cost. Right: how long the steps are."""
    figure = Figure(figsize=(8.0, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, points), style in zip(measured.items(), ("k:o", "k-s", "k--^", "k-.D"), strict=True):
        left.loglog([n for n, _ in points], [error for _, error in points], style, markersize=4, label=name)
    left.set(xlabel="calls of f", ylabel="error after three periods", title="Kepler, eccentricity 0.6")
    left.set_xticks([300, 1000, 3000], ["300", "1000", "3000"])
    left.set_xticks([], minor=True)
    for sol, style, name in ((explicit, "k:", "Tsit5"), (implicit, "k-", "Rodas5P")):
        right.loglog(sol.t[1:], sol.t.diff(), style, label=name)
    right.set(xlabel="t", ylabel="length of the step", title="Robertson")
    for axis in (left, right):
        axis.legend(frameon=False)
        axis.grid(color="0.9")
    return figure


# %% [markdown]
# ## When this fails
#
# **A solve that fails does not raise.** `sol.retcode` says what happened, for each trajectory of a batch; the values
# raise, with the time and with what to try, when they are asked for. Below, `Tsit5` is given 500 steps for
# Robertson's problem up to t = 3: the code is `MaxIters`, and it came to t = 0.79.
#
# **f is not in place.** `f!(du, u, p, t)` has no counterpart: return a new tensor. A Python `if` on values of the
# state decides for a whole batch at once, so write `torch.where`.
#
# **Numbers in closures get no gradient.** What shall be differentiated or fitted stands in `p` (or f is an
# `nn.Module` that owns it).
#
# **Not everything of Julia's is here.** Delays, noise in the equations and DAEs of an index above one are not.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    tolerances = [10.0**-k for k in range(3, 12)]  # quick enough for `fast` too
    measured = work_and_precision(tolerances)
    explicit, implicit = steps_of(ude.Tsit5(), 1.0), steps_of(ude.Rodas5P(), 1e5)
    automatic = steps_of(None, 1e5)
    many = ensemble(11)
    prob = ude.ODEProblem(robertson, u0=[1.0, 0.0, 0.0], tspan=(0.0, 3.0))
    failed = ude.solve(prob, ude.Tsit5(), abstol=1e-8, reltol=1e-6, maxiters=500)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(measured, explicit, implicit).savefig(Path(folder) / "work_and_steps.png")
    good = {name: min((n for n, error in points if error < 1e-6), default=0) for name, points in measured.items()}
    return {
        **first_solve(),
        "error of Tsit5 at 1e-3": measured["Tsit5"][0][1],
        "calls of Tsit5 for 1e-6": good["Tsit5"],
        "calls of Vern7 for 1e-6": good["Vern7"],
        "steps of Tsit5": int(explicit.stats.accepted_steps),
        "longest step of Tsit5 after t=0.1": float(explicit.t.diff()[explicit.t[1:] > 0.1].max()),
        "steps of Rodas5P": int(implicit.stats.accepted_steps),
        "a at the end": float(implicit.u[-1, 0]),
        "a at the end, method chosen by solve": float(automatic.u[-1, 0]),
        "changes of method": int(automatic.stats.switches),
        "batches of the ensemble": many.batches,
        "failed with MaxIters": failed.retcode == ude.ReturnCode.MaxIters,
        "came to t": float(failed.reached[0]),
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-02").items():
        print(f"{name:>40}: {value:.6g}")
