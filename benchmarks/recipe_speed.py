"""A whole staged fit of the UDE paper's first scenario, and the same recipe written with torchdiffeq.

31 points of Lotka and Volterra's equations on 0..3, 0.5 % noise, both interactions unknown: a 2-16-16-2 softplus
network. Stages: derivative matching; multiple shooting in four windows with three continuity penalties; single
shooting. Everything is float64, tolerance 1e-4, states in logarithms.

ude's fits are measured as they come, from data to trained model, everything included (smoothing, optimizers, history).
Of torchdiffeq the time of one loss and gradient of each stage of simulations is measured, at the weights that ude
found, and multiplied by the evaluations that ude's stage took; the whole recipe is not run with torchdiffeq, as that
takes long. What this grants torchdiffeq: its optimizers cost nothing, windows are one batch, and the derivative
matching, which simulates nothing, takes the time that it takes in ude. Of dopri5 with backpropagation and with the
adjoint the faster counts. ude's default recipe takes Gauss-Newton steps: an iteration has one Jacobian, which
torchdiffeq gets by one backward pass a residual, and some trials, which are simulations alone. "gradients" is the
recipe with L-BFGS, a gradient an evaluation in both.

    python -m benchmarks.recipe_speed [--rounds 3] [--seed 0]    # writes recipe_speed.md
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn

import ude
from benchmarks.fit_cases import course, model, noisy

TOLERANCE = 1e-4
WINDOWS = ((0, 8), (8, 15), (15, 22), (22, 30))  # first and last point, as ude cuts 30 intervals
MATCHING, MULTIPLE, SINGLE = "derivatives", "multiple shooting", "single shooting"
BY_GRADIENTS = (
    ude.stages.DerivativeMatching(),
    ude.stages.MultipleShooting(optimizers=(ude.optimizers.LBFGS(30),)),
    ude.stages.SingleShooting(optimizers=(ude.optimizers.LBFGS(120),)),
)
RECIPES: dict[str, tuple[ude.fitting.stages.stages.Stage, ...] | None] = {"default": None, "gradients": BY_GRADIENTS}


class Field(nn.Module):
    """The equations in logarithms, as one writes them in torch; the network is that of the fit."""

    def __init__(self, fit: ude.Fit) -> None:
        super().__init__()
        network, known = fit.model.provider("U1"), fit.model.values()
        self.layers = network.module
        for name in ("input_shift", "input_scale", "output_scale"):
            self.register_buffer(name, getattr(network, name))
        self.alpha, self.delta = known["alpha"], known["delta"]

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        u = z.exp()
        first, second = (self.layers((u - self.input_shift) / self.input_scale) * self.output_scale).unbind(-1)
        x, y = u.unbind(-1)
        return torch.stack([(self.alpha * x - first) / x, (second - self.delta * y) / y], -1)


class Peer:
    """Residuals of the two stages of simulations with torchdiffeq; the loss is the sum of their squares."""

    def __init__(self, fit: ude.Fit) -> None:
        self.field, [trajectory] = Field(fit), fit.train.trajectories
        self.t, self.u = torch.as_tensor(trajectory.t), torch.as_tensor(trajectory.u)
        self.scale, self.spread = torch.as_tensor(fit.scale), self.u.log().std(0)
        self.start = torch.as_tensor(fit.u0[0]).log().requires_grad_()
        simulated = torch.as_tensor(fit.predict(reltol=1e-8)[0]).log()
        self.starts = simulated[[first for first, _ in WINDOWS]].clone().requires_grad_()
        self.check(fit)

    def check(self, fit: ude.Fit) -> None:
        """That both solve the same equations from the same starts to the same misfit."""
        with torch.no_grad():
            ours = fit.model(self.u, None, torch.zeros(len(self.u), dtype=torch.float64)) / self.u
            torch.testing.assert_close(self.field(torch.tensor(0.0), self.u.log()), ours, rtol=1e-10, atol=1e-10)
            misfit = np.mean((np.array(list(fit.rmse().values())) / fit.scale) ** 2)
            np.testing.assert_allclose(float((self.single(torchdiffeq.odeint, 1e-8) ** 2).sum()), misfit, rtol=1e-2)

    def single(self, odeint: Callable[..., Tensor], tolerance: float = TOLERANCE) -> Tensor:
        z = odeint(self.field, self.start, self.t, rtol=tolerance, atol=tolerance, method="dopri5")
        return ((z.exp() - self.u) / self.scale).reshape(-1) / self.u.numel() ** 0.5

    def multiple(self, odeint: Callable[..., Tensor]) -> Tensor:
        """The equations do not contain t and the points are equally far apart, so all windows are one batch."""
        longest = max(last - first for first, last in WINDOWS)
        t = self.t[: longest + 1] - self.t[0]
        z = odeint(self.field, self.starts, t, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
        wrong = torch.cat([z[: last - first, i].exp() - self.u[first:last] for i, (first, last) in enumerate(WINDOWS)])
        wrong = torch.cat([wrong, z[WINDOWS[-1][1] - WINDOWS[-1][0], -1:].exp() - self.u[-1:]]) / self.scale
        ends = torch.stack([z[last - first, i] for i, (first, last) in enumerate(WINDOWS[:-1])])
        gaps = (ends - self.starts[1:]) / self.spread
        return torch.cat([wrong.reshape(-1) / wrong.numel() ** 0.5, gaps.reshape(-1) * (10.0 / gaps.numel()) ** 0.5])

    def trial(self, residuals: Callable[..., Tensor]) -> float:
        """Seconds of the residuals alone."""

        def once(odeint: Callable[..., Tensor]) -> None:
            with torch.no_grad():
                residuals(odeint)

        return _timed(once, torchdiffeq.odeint)

    def seconds(self, residuals: Callable[..., Tensor], jacobian: bool) -> float:
        """Of one loss and gradient, by the faster of torchdiffeq's two ways; or of the Jacobian, a row at a time."""
        wanted = [*self.field.parameters(), self.start if residuals == self.single else self.starts]

        def once(odeint: Callable[..., Tensor]) -> None:
            found = residuals(odeint)
            for number in found if jacobian else [(found**2).sum()]:
                torch.autograd.grad(number, wanted, retain_graph=jacobian)

        if jacobian:
            return _timed(once, torchdiffeq.odeint)
        try:
            by_adjoint = _timed(once, torchdiffeq.odeint_adjoint)
        except AssertionError:  # the way back is unstable for some of these networks: its step underflows
            by_adjoint = np.inf
        return min(_timed(once, torchdiffeq.odeint), by_adjoint)


def _timed(once: Callable[[Callable[..., Tensor]], None], odeint: Callable[..., Tensor], least: float = 0.5) -> float:
    once(odeint)
    number, began = 0, time.perf_counter()
    while number == 0 or time.perf_counter() - began < least:
        once(odeint)
        number += 1
    return (time.perf_counter() - began) / number


def fitted(seed: int, recipe: str) -> tuple[ude.Fit, float]:
    t = np.linspace(0.0, 3.0, 31)
    values, _ = noisy(course(t), 0.005, np.random.default_rng(seed))
    data = ude.Dataset.from_arrays(t, values, "x, y")
    began = time.perf_counter()
    fit = ude.fit(model(seed), data, holdout=0, seed=seed, stages=RECIPES[recipe], progress=False)
    return fit, time.perf_counter() - began


def evaluations(fit: ude.Fit, by_jacobian: bool) -> dict[str, tuple[int, int]]:
    """Stage -> losses with their gradients (or Jacobians) that it took, and simulations beside them."""
    counts = {}
    for stage, own in fit.history.groupby("stage", sort=False):
        whole, iterations = int(own["evaluations"].max()), len(own)
        newton = by_jacobian and stage != MATCHING
        counts[str(stage)] = (iterations, whole - iterations) if newton else (whole, 0)
    return counts


def stage_seconds(fit: ude.Fit) -> dict[str, float]:
    """Stage -> seconds in ude, of everything between the ends of the stages."""
    ends = fit.history.groupby("stage", sort=False)["seconds"].max()
    return dict(zip(map(str, ends.index), np.diff([0.0, *ends]).tolist(), strict=True))


def compared(recipe: str, seed: int, rounds: int) -> list[str]:
    """Rows of the table, and the sentence below it. The contenders take turns; the fastest rounds count."""
    _, first = fitted(seed, recipe)
    best, ours, by_jacobian = np.inf, {}, RECIPES[recipe] is None
    theirs = {MULTIPLE: np.inf, SINGLE: np.inf}
    trials = {MULTIPLE: np.inf, SINGLE: np.inf}
    for _ in range(rounds):
        fit, seconds = fitted(seed, recipe)
        if seconds < best:
            best, ours = seconds, stage_seconds(fit)
        peer = Peer(fit)
        for stage, residuals in ((MULTIPLE, peer.multiple), (SINGLE, peer.single)):
            theirs[stage] = min(theirs[stage], peer.seconds(residuals, by_jacobian))
            trials[stage] = min(trials[stage], peer.trial(residuals))
    counts, total = evaluations(fit, by_jacobian), ours[MATCHING]
    rows = [f"| {recipe} | {MATCHING} | {counts[MATCHING][0]} | {ours[MATCHING]:.2f} | as ude | | |"]
    for stage in (MULTIPLE, SINGLE):
        derivatives, simulations = counts[stage]
        whole = theirs[stage] * derivatives + trials[stage] * simulations
        total += whole
        number = f"{derivatives} and {simulations}" if simulations else f"{derivatives}"
        rows.append(
            f"| {recipe} | {stage} | {number} | {ours[stage]:.2f} | {whole:.2f} | {1e3 * theirs[stage]:.2f} | "
            f"{1e3 * trials[stage]:.2f} |"
        )
    rows.append(f"| {recipe} | whole fit | | {best:.2f} (first in the process {first:.2f}) | {total:.2f} | | |")
    rows.append(f"| {recipe} | torchdiffeq / ude | | | {total / best:.1f} times | | |")
    return rows


def main(rounds: int = 3, seed: int = 0) -> str:
    lines = [
        "# A whole recipe of training",
        "",
        f"`python -m benchmarks.recipe_speed`, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"torchdiffeq {torchdiffeq.__version__}, {platform.machine()}, seed {seed}, fastest of {rounds} rounds. What "
        "is measured and what is reckoned stands at the head of the script: torchdiffeq's seconds are (one gradient "
        "or Jacobian) times (their number), and (one simulation) times (those without).",
        "",
        "| recipe | stage | derivatives and other simulations | ude, s | torchdiffeq, s | its derivative, ms | its "
        "simulation, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in RECIPES:
        lines += compared(recipe, seed, rounds)
    text = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    main(chosen.rounds, chosen.seed)
