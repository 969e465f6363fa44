"""Many fits of one model: from random starts, with other seeds, or of resampled data; in parallel processes.

Every fit is a plain `fit` in a process of its own with one thread, so its numbers do not depend on how many run at a
time. Sources: B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993); P. Hall, J. L. Horowitz, B.-Y. Jing,
Biometrika 82 (1995) 561 for blocks; B. Lakshminarayanan, A. Pritzel, C. Blundell, NeurIPS 2017 for deep ensembles.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ude.errors import InputError, SolveFailed
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.trajectory import Array
from ude.fitting.fit import fit
from ude.fitting.iteration import Iteration
from ude.fitting.result import Fit
from ude.fitting.stages.stages import checked_stages
from ude.fitting.uncertainty.intervals import check_level
from ude.models import Model


@dataclass(frozen=True, eq=False)
class FitEnsemble:
    """Several fits, best first (`multistart`) or in the order of their seeds.

    losses: the last loss of each; not comparable where the data differ (`bootstrap`)

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> resampled = ude.uncertainty.bootstrap(fit, samples=4, processes=1)
    >>> lower, median, upper = resampled.band(np.array([0.0, 1.0, 2.0]))[0]
    >>> median.shape, bool((lower <= upper).all())
    ((3, 1), True)
    """

    fits: tuple[Fit, ...]
    losses: Array

    @property
    def best(self) -> Fit:
        """The fit of the lowest loss."""
        return self.fits[int(np.argmin(self.losses))]

    def values(self) -> dict[str, Array]:
        """Every parameter, natural units, as an array (fit,)."""
        names = self.fits[0].model.values()
        return {name: np.array([one.model.values()[name] for one in self.fits]) for name in names}

    def intervals(self, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Parameter -> the quantiles that leave (1 - level)/2 of the fits on each side."""
        edges = _edges(level)
        return {name: tuple(np.quantile(values, edges).tolist()) for name, values in self.values().items()}

    def band(self, t: npt.ArrayLike, level: float = 0.95) -> list[tuple[Array, Array, Array]]:
        """(lower, median, upper), each (T, state), of every trajectory: quantiles of the predictions of the fits.

        Raises InputError for times that do not increase, SolveFailed when every simulation breaks down.
        """
        runs: list[list[Array]] = []
        for one in self.fits:
            try:
                runs.append(one.predict(t))
            except SolveFailed:  # one that breaks down outside of its data says nothing; the others do
                continue
        if not runs:
            raise SolveFailed("no fit of the ensemble can be simulated at these times", fix="Ask for earlier times.")
        low, high = _edges(level)
        bands = []
        for predictions in zip(*runs, strict=True):
            lower, median, upper = np.quantile(np.stack(predictions), [low, 0.5, high], axis=0)
            bands.append((lower, median, upper))
        return bands


@dataclass(frozen=True)
class _Hopeless:
    """A callback that ends a stage of simulations once it is far above the best that is known."""

    limit: float
    patience: int

    def __call__(self, iteration: Iteration) -> bool:
        return iteration.iteration >= self.patience and iteration.loss > self.limit


def multistart(
    model: Model,
    data: Dataset,
    *,
    starts: int = 10,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    processes: int | None = None,
    hopeless: float = 100.0,
    patience: int = 20,
    **arguments: Any,
) -> FitEnsemble:
    """Fit from several random starts and sort by the loss; `ensemble.best` is the one to keep.

    starts:    how many; parameters are drawn from `ranges`, networks with the seeds seed, seed + 1, ...
    ranges:    parameter -> (lowest, highest): log-uniform where both are positive, else uniform; parameters without a
               range keep their value. None: fitted parameters within their bounds, where both are given
    processes: None: as many as there are processors
    hopeless, patience: the first start runs to its end; a later one ends a stage after `patience` iterations with a
               loss more than `hopeless` times the first one's last. ``inf`` lets all finish
    arguments: as `fit` takes them

    Raises InputError as `fit` does, and for ranges whose lowest number is not below the highest.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> found = ude.multistart(
    ...     model, data, starts=2, ranges={"k": (0.1, 10.0)}, processes=1, stages="single shooting", holdout=0
    ... )
    >>> round(found.best.model.values()["k"], 3)
    1.5
    """
    _check_count("starts", starts)
    drawn = _draws(model, ranges, starts, seed)
    jobs = [_job(model, data, arguments, seed=seed + i, values=drawn[i]) for i in range(starts)]
    first = _fit(jobs[0])
    limit = hopeless * float(first.history.loss.iloc[-1]) if len(first.history) else float("inf")
    stop = _Hopeless(limit, patience)
    for job in jobs[1:]:
        stages = checked_stages(arguments.get("stages"))
        # the loss of derivatives is of another kind
        job["arguments"]["stages"] = [s if s.name == "derivatives" else replace(s, callback=stop) for s in stages]
    fits = [first, *_run(jobs[1:], processes)]
    losses = np.array([_last_loss(one) for one in fits])
    order = np.argsort(losses, kind="stable")
    return FitEnsemble(tuple(fits[i] for i in order), losses[order])


def fit_ensemble(
    model: Model, data: Dataset, *, members: int = 10, seed: int = 0, processes: int | None = None, **arguments: Any
) -> FitEnsemble:
    """Fits that differ in the seed of their networks: what the data leave open, a network's start decides.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> members = ude.uncertainty.fit_ensemble(model, data, members=2, processes=1, stages="single shooting", holdout=0)
    >>> len(members.fits)
    2
    """
    _check_count("members", members)
    fits = _run([_job(model, data, arguments, seed=seed + i) for i in range(members)], processes)
    return FitEnsemble(tuple(fits), np.array([_last_loss(one) for one in fits]))


def bootstrap(
    found: Fit,
    *,
    samples: int = 20,
    block: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    **arguments: Any,
) -> FitEnsemble:
    """Refit resampled data, beginning at the fit that was found: how far parameters and predictions are known.

    With several trajectories these are drawn with replacement. With one, blocks of its residuals are drawn and added to
    its prediction, so that noise that hangs together stays together.

    found:     a fit; its training data are resampled
    block:     length of a block of residuals; None: the cube root of the number of points
    arguments: as `fit` takes them, such as the ``noise`` that `found` was fitted with; `stages` is "single shooting"
               when left out

    Raises InputError for numbers that are not whole, SolveFailed when the fit cannot be simulated.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> resampled = ude.uncertainty.bootstrap(fit, samples=4, processes=1)
    >>> len(resampled.fits)
    4
    """
    _check_count("samples", samples)
    if block is not None:
        _check_count("block", block)
    chance = np.random.default_rng(seed)
    arguments = {"stages": "single shooting", "holdout": 0, "options": found.options, **arguments}
    predicted = found.observe() if len(found.train) == 1 else []
    jobs = []
    for _ in range(samples):
        data = _resampled(found, predicted, block, chance)
        jobs.append(_job(found.model, data, arguments, seed=found.seed))
    fits = _run(jobs, processes)
    return FitEnsemble(tuple(fits), np.array([_last_loss(one) for one in fits]))


def _resampled(found: Fit, predicted: Sequence[Array], block: int | None, chance: np.random.Generator) -> Dataset:
    train = found.train
    if len(train) > 1:
        drawn = chance.integers(len(train), size=len(train))
        trajectories = tuple(replace(train.trajectories[i], name=str(k)) for k, i in enumerate(drawn))
        return replace(train, trajectories=trajectories)
    trajectory = train.trajectories[0]
    number = len(trajectory)
    model = predicted[0][:number]
    # what the fit has taken up of the noise is missing from its residuals: fewer degrees of freedom, smaller squares
    share = max(1.0 - found.fitted_numbers / max(found.observations, 1), 0.5)
    residuals = (trajectory.u - model) / np.sqrt(share)
    residuals = np.where(np.isfinite(residuals), residuals, 0.0)
    residuals = residuals - residuals.mean(axis=0)
    length = min(block or max(round(number ** (1 / 3)), 1), number)
    begins = chance.integers(number - length + 1, size=-(-number // length))
    noise = np.concatenate([residuals[b : b + length] for b in begins])[:number]
    moved = model + noise
    positive = np.nanmin(trajectory.u, axis=0) > 0
    # a state that is positive in the data stays so: its residual is scaled down to a relative one
    moved = np.where(positive & (moved <= 0), model * np.exp(np.minimum(noise / np.abs(model), 0.0)), moved)
    u = np.where(np.isfinite(trajectory.u), moved, np.nan)
    return replace(train, trajectories=(replace(trajectory, u=u),))


def _draws(
    model: Model, ranges: Mapping[str, tuple[float, float]] | None, starts: int, seed: int
) -> list[dict[str, float]]:
    table = model.parameters_table
    if ranges is None:
        bounded = {name: (p.lower, p.upper) for name, p in table.items() if p.fitted}
        ranges = {name: (a, b) for name, (a, b) in bounded.items() if a is not None and b is not None}
    for name, (low, high) in ranges.items():
        if name not in table or not table[name].fitted:
            raise InputError(f"ranges names {name!r}", expected="fitted parameters of the model")
        if not -np.inf < low < high < np.inf:
            raise InputError(
                f"the lowest number of the range of {name} must be less than the highest", got=f"{(low, high)}"
            )
    chance = np.random.default_rng(seed)
    drawn = []
    for _ in range(starts):
        place = {name: chance.uniform() for name in ranges}
        drawn.append({name: _between(*ranges[name], share) for name, share in place.items()})
    return drawn


def _between(low: float, high: float, share: float) -> float:
    return float(low * (high / low) ** share) if low > 0 else low + (high - low) * share


def _job(
    model: Model, data: Dataset, arguments: Mapping[str, Any], *, seed: int, values: Mapping[str, float] | None = None
) -> dict[str, Any]:
    own = copy.deepcopy(model)
    if values:
        own.set_values(values)
    return {"model": own, "data": data, "arguments": {"progress": False, **arguments, "seed": seed}}


def _fit(job: Mapping[str, Any]) -> Fit:
    return fit(job["model"], job["data"], **job["arguments"])


def _worker() -> None:
    torch.set_num_threads(1)


def _run(jobs: Sequence[Mapping[str, Any]], processes: int | None) -> list[Fit]:
    number = min(processes or os.cpu_count() or 1, len(jobs))
    if number <= 1:
        return [_fit(job) for job in jobs]
    # spawned: a forked child of a process with torch's threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, mp_context=context, initializer=_worker) as pool:
        return list(pool.map(_fit, jobs))


def _last_loss(one: Fit) -> float:
    return float(one.history.loss.iloc[-1]) if len(one.history) else float("inf")


def _edges(level: float) -> list[float]:
    check_level(level)
    return [(1 - level) / 2, (1 + level) / 2]


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number, at least 1", got=repr(value))
