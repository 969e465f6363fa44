"""Residuals in a unit in which the noise is the same everywhere.

Least squares of plain differences believe a large number as firmly as a small one. Where the fit was given a noise
model by which large numbers are noisier, its variance-stabilizing transformation (Bartlett, Biometrics 3 (1947) 39) is
applied to data and solutions alike, so that formulas are judged as the networks were trained: logarithms for log-normal
noise, square roots for counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ude.discovery.refit.closed_system import Array, ObservedTrajectory, state_scale
from ude.fitting.objective.noise import NoiseModel

_DOUBT = 16.0
_LEAST = 1e-3


def stabilized(noise: Mapping[str, NoiseModel], columns: Sequence[str], values: Array) -> tuple[Array, Array]:
    """Values (..., column) in units of constant noise, and the derivative of each; columns without a model stay."""
    if not any(column in noise for column in columns):
        return values, np.ones_like(values)
    with np.errstate(all="ignore"):  # outside of the domain of the noise there is no number
        pairs = [
            noise[column].stabilized(own) if column in noise else (own, np.ones_like(own))
            for column, own in zip(columns, np.moveaxis(values, -1, 0), strict=True)
        ]
    found, slopes = (np.stack(parts, -1) for parts in zip(*pairs, strict=True))
    return found, slopes


def stabilized_data(
    noise: Mapping[str, NoiseModel], columns: Sequence[str], trajectories: Sequence[ObservedTrajectory]
) -> list[ObservedTrajectory]:
    """The trajectories with their data in units of constant noise."""
    return [replace(own, u=stabilized(noise, columns, own.u)[0]) for own in trajectories]


def residual_scale(
    noise: Mapping[str, NoiseModel],
    columns: Sequence[str],
    trajectories: Sequence[ObservedTrajectory],
    errors: Mapping[str, float] | None = None,
) -> Array:
    """(column,): what counts as one among residuals.

    That is the spread of each column's stabilized data, moved towards what makes the noise of all columns equal, as the
    likelihood has it: a column measured twice as precisely weighs twice as much. errors: column -> its standard error,
    in the unit of the stabilized data. An estimate from n numbers is believed as one beside `_DOUBT` others by which
    all columns are measured equally well; errors below `_LEAST` of the spread are those of arithmetic. The geometric
    mean of the columns stays what it was, so that a relative accuracy keeps its meaning.
    """
    own = stabilized_data(noise, columns, trajectories)
    spread = state_scale(own)
    given = np.array([(errors or {}).get(column, np.nan) for column in columns])
    known = np.isfinite(given)
    if known.sum() < 2:
        return spread
    counts = np.sum([np.isfinite(trajectory.u).sum(axis=0) for trajectory in own], axis=0)[known]
    logs = np.log(np.maximum(given[known] / spread[known], _LEAST))
    believed = counts / (counts + _DOUBT) * (logs - logs.mean())
    spread[known] *= np.exp(believed - believed.mean())
    return spread
