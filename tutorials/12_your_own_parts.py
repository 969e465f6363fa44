# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Your own term, method and search
#
# **The question.** What `ude` has does not fit: the unknown function has a shape that no plain network respects, the
# solver that you want is not on the list, the formulas that your field uses are not searched. How much code is each,
# and how do you know that it is right?
#
# Three parts can be replaced from outside, without touching the package: a *term* is an `nn.Module`, a *method* is a
# table of numbers, and a *search* is an object with one function.

# %%
from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction as F
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import sympy
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ude
from ude.discovery import SelectionOptions
from ude.discovery.complexity import complexity
from ude.methods.explicit.explicit_rk import ExplicitRungeKutta
from ude.methods.tableau import ExplicitTableau

# %% [markdown]
# ## A term
#
# Bacteria grow in a reactor: biomass `x` lives on substrate `s`, and the growth rate is an unknown function of `s`.
# Two things are certain all the same: without food there is no growth, and growth is never negative. A network may
# break both between the points. A module of your own cannot: it is zero at zero and positive beyond because it is
# built so.


# %%
class Uptake(nn.Module):
    """mu(s) = s * softplus(net(s)): zero at zero, positive elsewhere, otherwise free."""

    def __init__(self, width: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.net = ude.MLP("g", inputs="s", width=width, seed=seed).module

    def forward(self, s: Tensor) -> Tensor:
        """(*batch, 1) -> (*batch, 1); the network sees s divided by its scale, which is positive."""
        return s * nn.functional.softplus(self.net(s))


# %%
MU, HALF, YIELD = 0.9, 0.6, 0.5
EQUATIONS = """
dx/dt = mu(s)*x
ds/dt = -mu(s)*x/yield_
"""


def measure() -> ude.Dataset:
    """Two batches with little and with much food, biomass and substrate measured with 0.01 of noise."""
    monod = ude.Symbolic({"mu": "m*s/(h + s)"}, inputs="s", parameters={"m": MU, "h": HALF})
    model = ude.UDE(EQUATIONS, parameters={"yield_": YIELD}, unknown=monod)
    t, chance = np.linspace(0.0, 6.0, 25), np.random.default_rng(0)
    runs = []
    for start in ([0.1, 1.0], [0.1, 3.0]):
        with torch.no_grad():
            u = ude.solve(model.problem(start, (0.0, 6.0)), ude.Tsit5(), saveat=torch.as_tensor(t), reltol=1e-8).u
        runs.append(u.numpy() + 0.01 * chance.normal(size=(25, 2)))
    return ude.Dataset.from_arrays([t, t], runs, "x, s")


def train(data: ude.Dataset) -> ude.Fit:
    """The module becomes a term by being given a name and inputs."""
    term = ude.Neural(Uptake(), inputs="s", outputs="mu")
    # an input that is shifted would no longer be zero at zero
    term.set_scales(input_scale=[1.0])
    model = ude.UDE(EQUATIONS, parameters={"yield_": YIELD}, unknown=term)
    options = ude.FitOptions(derivative_iterations=(100, 200), rescale=False)
    return ude.fit(model, data, holdout=0, options=options, positive="x", progress=False)


# %% [markdown]
# Nothing else is needed: gradients, scales and saving come with `nn.Module`. The fitted rate is exactly 0 at s = 0,
# and between 0 and 3 it is at most 0.016 away from the true $0.9\,s/(0.6 + s)$.
#
# ## A method
#
# A Runge-Kutta method is its table: nodes `c`, stages `a`, weights `b`, and the weights of the error estimate. Write
# it in fractions, and every engine can run it, compiled ones too. This is Kutta's method of order three of 1901, with
# a second-order formula beside it for the step control, and dense output.


# %%
@dataclass(frozen=True)
class Kutta3(ExplicitRungeKutta):
    """W. Kutta's method of order three (Zeitschrift fuer Mathematik und Physik 46 (1901) 435)."""

    tableau: ClassVar[ExplicitTableau] = ExplicitTableau(
        name="Kutta3",
        order=3,
        embedded_order=2,
        interpolant_order=2,
        c=(F(0), F(1, 2), F(1)),
        a=((), (F(1, 2),), (F(-1), F(2))),
        b=(F(1, 6), F(2, 3), F(1, 6)),
        # b minus the weights (0, 1, 0) of the midpoint rule
        b_error=(F(1, 6), F(-1, 3), F(1, 6)),
        # b_i(theta): coefficients of theta, theta^2
        interpolant=((F(1), F(-5, 6)), (F(0), F(2, 3)), (F(0), F(1, 6))),
    )


def error_with_step(dt: float) -> float:
    """Of one turn of the harmonic oscillator, with fixed steps."""

    def oscillator(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, v = u.unbind(-1)
        return torch.stack([v, -x], -1)

    prob = ude.ODEProblem(oscillator, u0=[1.0, 0.0], tspan=(0.0, 1.0))
    end = ude.solve(prob, Kutta3(), dt=dt, adaptive=False, saveat=[1.0]).u[-1]
    return float((end - torch.tensor([math.cos(1.0), -math.sin(1.0)], dtype=torch.float64)).norm())


# %% [markdown]
# Is it right? Halve the step, and the error must fall to an eighth: the measured order, from steps of 1/20 and 1/40,
# is 3.0. One wrong fraction would show here at once.
#
# ## A search
#
# A search is given samples of a term, inputs and outputs, and gives back candidates: formulas with constants, how
# complex they are, and how far off. It need not be clever. Biologists would look at a short list of uptake laws; so
# here is a search that fits the laws on that list.


# %%
class UptakeLaws:
    """Monod, Hill and Haldane, Blackman's line, and a plain exponential approach."""

    laws: ClassVar[tuple[str, ...]] = (
        "c0*s",
        "c0*s/(c1 + s)",
        "c0*s**2/(c1 + s**2)",
        "c0*s/(c1 + s + c2*s**2)",
        "c0*(1 - exp(-c1*s))",
    )

    def search(self, samples: ude.search.Samples) -> list[ude.search.Candidate]:
        """Least squares for each law, by SciPy."""
        from scipy.optimize import least_squares

        [(name, inputs)] = samples.inputs.items()
        total = float(np.sum(samples.weights * samples.output**2))
        found = []
        for text in self.laws:
            formula = sympy.sympify(text.replace("s", name) if name != "s" else text)
            constants = sorted(str(free) for free in formula.free_symbols if str(free) != name)
            function = sympy.lambdify([name, *constants], formula)

            def wrong(c: np.ndarray, function: Any = function) -> np.ndarray:
                return np.sqrt(samples.weights) * (function(inputs, *c) - samples.output)

            best = least_squares(wrong, np.ones(len(constants)), bounds=(0.0, np.inf))
            values = dict(zip(constants, best.x.tolist(), strict=True))
            error = 2 * float(best.cost) / total
            found.append(ude.search.Candidate(formula, values, complexity(formula, constants), error, "uptake laws"))
        return sorted(found, key=lambda candidate: candidate.complexity)


# %% [markdown]
# `discover` does the rest: it puts each law into the equations, fits its constants to the measured biomass and
# substrate, and lets these choose. Monod's law wins with a rate of 0.91 and a half-saturation of 0.62 (0.9 and 0.6
# made the data).


# %%
def draw(fit: ude.Fit, found: ude.Discovery) -> Figure:
    """The rate: true, as the module has it, and as the formula has it."""
    figure = Figure(figsize=(8.0, 3.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    s = torch.linspace(0.0, 3.0, 301, dtype=torch.float64)
    with torch.no_grad():
        left.plot(s, MU * s / (HALF + s), color="0.7", linewidth=5, label="true")
        left.plot(s, fit.model.term("mu")(s), "k:", label="own module")
        left.plot(s, found.model.term("mu")(s), "k--", linewidth=1, label="own search")
    left.set(xlabel="substrate s", ylabel="growth rate")
    left.legend(frameon=False)
    steps = [1 / 5, 1 / 10, 1 / 20, 1 / 40, 1 / 80]
    right.loglog(steps, [error_with_step(dt) for dt in steps], "ko-", label="Kutta3")
    right.loglog(steps, [0.1 * dt**3 for dt in steps], "k:", label="slope 3")
    right.set_xticks(steps, ["1/5", "1/10", "1/20", "1/40", "1/80"])
    right.set_xticks([], minor=True)
    right.set(xlabel="step", ylabel="error")
    right.legend(frameon=False)
    return figure


# %% [markdown]
# ## When this fails
#
# **A module that hides its weights.** What is trained must be a parameter of the module. Tensors in a closure, or a
# list of layers that is no `nn.ModuleList`, are constants.
#
# **A decision on values.** `if s > 0` sees a whole batch at once and cannot be compiled; `torch.where` can.
#
# **A table with a mistake.** A method with wrong weights still converges, only slowly. Always measure the order.
#
# **A list without the truth.** A search that tries five laws returns one of the five. The score says which is the
# best of them, and not that it is good: look at the residuals.


# %%
def main(fast: bool = False, folder: str | Path | None = None) -> dict[str, float]:
    """The whole story; returns the numbers that the text states. The picture goes to `folder` when it is given."""
    fit = train(measure())
    found = ude.discover(fit, UptakeLaws(), options=SelectionOptions(max_candidates=5), progress=False)
    s = torch.linspace(0.0, 3.0, 301, dtype=torch.float64)
    with torch.no_grad():
        wrong = fit.model.term("mu")(s) - MU * s / (HALF + s)
        at_zero = float(fit.model.term("mu")(torch.zeros(1, dtype=torch.float64)))
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        draw(fit, found).savefig(Path(folder) / "own_parts.png")
    return {
        "rate without food": at_zero,
        "largest error of the rate": float(wrong.abs().max()),
        "measured order": math.log2(error_with_step(1 / 20) / error_with_step(1 / 40)),
        "Monod's law chosen": float(found.chosen.candidates["mu"].expression == sympy.sympify("c0*s/(c1 + s)")),
        "rate": found.constants["mu_c0"],
        "half-saturation": found.constants["mu_c1"],
    }


# %%
if __name__ == "__main__":
    for name, value in main(folder="runs/tutorial-12").items():
        print(f"{name:>30}: {value:.4g}")
