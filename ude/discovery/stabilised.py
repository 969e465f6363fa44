"""Residuals in a unit in which the noise is the same everywhere.

Least squares of plain differences believe a large number as firmly as a small one. Where the fit was given a noise
model by which large numbers are noisier, its variance-stabilising transformation (Bartlett, Biometrics 3 (1947) 39) is
applied to data and solutions alike, so that formulas are judged as the networks were trained: logarithms for log-normal
noise, square roots for counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ude.discovery.closed_form import Array, Trajectory, state_scale
from ude.training.noise import NoiseModel


def stabilised(noise: Mapping[str, NoiseModel], columns: Sequence[str], values: Array) -> tuple[Array, Array]:
    """Values (..., column) in units of constant noise, and the derivative of each; columns without a model stay."""
    if not any(column in noise for column in columns):
        return values, np.ones_like(values)
    with np.errstate(all="ignore"):  # outside of the domain of the noise there is no number
        pairs = [
            noise[column].stabilised(own) if column in noise else (own, np.ones_like(own))
            for column, own in zip(columns, np.moveaxis(values, -1, 0), strict=True)
        ]
    found, slopes = (np.stack(parts, -1) for parts in zip(*pairs, strict=True))
    return found, slopes


def stabilised_data(
    noise: Mapping[str, NoiseModel], columns: Sequence[str], trajectories: Sequence[Trajectory]
) -> list[Trajectory]:
    """The trajectories with their data in units of constant noise."""
    return [replace(own, u=stabilised(noise, columns, own.u)[0]) for own in trajectories]


def residual_scale(
    noise: Mapping[str, NoiseModel], columns: Sequence[str], trajectories: Sequence[Trajectory]
) -> Array:
    """(column,): what counts as one among residuals, `state_scale` of the stabilised data."""
    return state_scale(stabilised_data(noise, columns, trajectories))
