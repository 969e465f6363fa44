"""How well the parameters of a fit are known: by the curvature of the likelihood, and by its profile.

Sources: G. A. F. Seber, C. J. Wild, Nonlinear Regression (1989), ch. 5; A. Raue et al., Bioinformatics 25 (2009) 1923
for profile likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, least_squares
from scipy.stats import chi2, norm

from ude.errors import InputError
from ude.fitting.data.trajectory import Array
from ude.fitting.evaluation_log import Meter
from ude.fitting.objective.losses import network_weights
from ude.fitting.objective.noise import Gaussian
from ude.fitting.result import Fit
from ude.fitting.simulation.coordinates import Coordinates, InnerField
from ude.fitting.simulation.shooting import SolverOptions, cut, simulate
from ude.fitting.simulation.trajectory_inputs import restored

# Of differences, relative: far above the errors of the solver, which is asked for nine digits.
_STEP = 1e-4


@dataclass(frozen=True, eq=False)
class ParameterIntervals:
    """Estimates and intervals, natural units. covariance: (parameter, parameter), of `fisher_intervals` only.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> interval = ude.uncertainty.fisher_intervals(fit, level=0.9)
    >>> interval.level, interval.covariance.shape
    (0.9, (1, 1))
    """

    estimates: dict[str, float]
    lower: dict[str, float]
    upper: dict[str, float]
    level: float
    covariance: Array | None = None


class _Residuals:
    """Weighted residuals of a fit as a function of its fitted parameters and initial states, natural units.

    A column's weight is one over its noise: the fitted sigma, or the root mean square of its residuals with the degrees
    of freedom that the fit has used up.
    """

    def __init__(self, fit: Fit, tolerance: float = 1e-9) -> None:
        own = restored(fit.model, fit.data, fit.per_trajectory).names
        if own:
            raise InputError(
                "these intervals are for one set of parameters",
                got=f"{', '.join(own)} different in each trajectory",
                fix="Use ude.uncertainty.bootstrap(fit).",
            )
        if network_weights(fit.model):
            raise InputError(
                "the intervals of a model with networks are not those of few parameters",
                fix="Use ude.uncertainty.bootstrap(fit) or ude.uncertainty.fit_ensemble(model, data).",
            )
        if any(not isinstance(model, Gaussian) for model in fit.noise_models.values()):
            raise InputError(
                "these intervals are not for this noise",
                expected="ude.noise.Gaussian() or least squares",
                got=", ".join(type(model).__name__ for model in fit.noise_models.values()),
                fix="Use ude.uncertainty.bootstrap(fit).",
            )
        self.fit = fit
        self.names = [name for name, entry in fit.model.parameters_table.items() if entry.fitted]
        if not self.names:
            raise InputError("the fit has no fitted parameters", expected="at least one")
        self.field = InnerField(fit.model, Coordinates(fit.positive, fit.state_scale))
        self.windows, self.options = cut(fit.train), SolverOptions(tolerance, 100_000)
        self.meter = Meter()
        self.meter.patience = math.inf  # one engine throughout: differences of two would be taken for derivatives
        values = fit.model.values()
        # every noise model here is Gaussian, with one scale
        scales = len(fit.noise_models)
        self.free_starts = fit.fitted_numbers > len(self.names) + scales
        parameters = np.array([values[name] for name in self.names])
        self.best = np.concatenate([parameters, fit.u0.ravel() if self.free_starts else []])
        wrong = self._raw(self.best)
        counts = np.array(list(fit.train.counts().values()))
        freedom = max(1.0 - len(self.best) / counts.sum(), 1e-3)
        squares = np.array([np.sum(wrong[:, :, i][self._mask[:, :, i]] ** 2) for i in range(wrong.shape[-1])])
        self.sigma = np.sqrt(squares / (counts * freedom))

    @property
    def _mask(self) -> np.ndarray:
        return self.windows.mask.numpy()

    def _raw(self, x: Array) -> Array:
        """(window, time, column) prediction minus data."""
        model, fit = self.fit.model, self.fit
        k = len(self.names)
        values = {name: torch.tensor(float(v), dtype=torch.float64) for name, v in zip(self.names, x[:k], strict=True)}
        u0 = torch.as_tensor(x[k:].reshape(fit.u0.shape) if self.free_starts else fit.u0)
        with torch.no_grad():
            field, z0 = _With(self.field, values), self.field.coordinates.inner(u0)
            z = simulate(field, z0, self.windows.t, self.options, self.meter)
            u = self.field.coordinates.natural(z.partial)
            every = {**model.parameter_tensors(), **values}
            return (fit.measurement(u, self.windows.t, every) - self.windows.u).numpy()

    def __call__(self, x: Array) -> Array:
        wrong = self._raw(x) / self.sigma
        found = wrong[self._mask]
        return np.where(np.isfinite(found), found, 1e6)


class _With(InnerField):
    """The field with other parameters."""

    def __init__(self, field: InnerField, values: dict[str, torch.Tensor]) -> None:
        super().__init__(field.model, field.coordinates)
        self.values = values

    def forward(self, z: torch.Tensor, p: None, t: torch.Tensor) -> torch.Tensor:
        u = self.coordinates.natural(z)
        return self.coordinates.inner_rate(u, self.model(u, self.values, t))


def _jacobian(residuals: Callable[[Array], Array], x: Array) -> Array:
    """Central differences: the residuals are solved to 1e-9, and a few digits of an interval are enough."""
    steps = _STEP * np.maximum(np.abs(x), 1e-12)
    columns = []
    for i, h in enumerate(steps):
        move = np.zeros_like(x)
        move[i] = h
        columns.append((residuals(x + move) - residuals(x - move)) / (2 * h))
    return np.stack(columns, axis=1)


def fisher_intervals(fit: Fit, level: float = 0.95) -> ParameterIntervals:
    """Intervals ``θ ± z √(I⁻¹)`` from the Fisher information ``I = Jᵀ J``, J the derivatives of the residuals over
    their noise by all that was fitted (initial states included): right where the likelihood is a parabola.

    Raises InputError for models with networks, noise that is not Gaussian, nothing fitted, and data that leave a
    direction of the parameters open.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> interval = ude.uncertainty.fisher_intervals(fit)
    >>> interval.lower["k"] < 1.5 < interval.upper["k"]
    True
    """
    check_level(level)
    residuals = _Residuals(fit)
    unit = np.where(residuals.best != 0, np.abs(residuals.best), 1.0)
    jacobian = _jacobian(residuals, residuals.best) * unit
    left, sizes, right = np.linalg.svd(jacobian, full_matrices=False)
    if sizes[-1] < 1e-5 * sizes[0]:  # the differences have six digits
        loose = [name for name, part in zip(residuals.names, right[-1], strict=False) if abs(part) > 0.1]
        raise InputError(
            f"the data do not determine {', '.join(loose) or 'the initial states'}",
            fix="Fix one of them, or give a prior.",
        )
    covariance = (right.T / sizes**2) @ right * np.outer(unit, unit)
    k = len(residuals.names)
    half = norm.ppf(0.5 + level / 2) * np.sqrt(np.diag(covariance)[:k])
    estimates = dict(zip(residuals.names, residuals.best[:k].tolist(), strict=True))
    lower = {n: e - h for (n, e), h in zip(estimates.items(), half.tolist(), strict=True)}
    upper = {n: e + h for (n, e), h in zip(estimates.items(), half.tolist(), strict=True)}
    return ParameterIntervals(estimates, lower, upper, level, covariance[:k, :k])


def profile_intervals(fit: Fit, names: Sequence[str] | None = None, level: float = 0.95) -> ParameterIntervals:
    """Intervals in which the likelihood, at its best over all else, lies within the quantile of χ² with one degree of
    freedom of its maximum. They need not be symmetric; an end is infinite where the data set none within a factor of a
    thousand of the estimate.

    Raises InputError as `fisher_intervals`, and for names of parameters that were not fitted.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, stages="single shooting", holdout=0, progress=False)
    >>> interval = ude.uncertainty.profile_intervals(fit, ["k"])
    >>> interval.lower["k"] < 1.5 < interval.upper["k"]
    True
    """
    check_level(level)
    residuals = _Residuals(fit)
    chosen = list(residuals.names) if names is None else list(names)
    for name in chosen:
        if name not in residuals.names:
            raise InputError(f"{name} was not fitted", expected=f"some of {', '.join(residuals.names)}")
    steps = np.full(len(residuals.best), _STEP)
    polished = least_squares(residuals, residuals.best, diff_step=steps, x_scale="jac", xtol=1e-10, ftol=1e-12)
    threshold = float(chi2.ppf(level, 1))
    lower, upper, estimates = {}, {}, {}
    for name in chosen:
        index = residuals.names.index(name)
        estimates[name] = float(polished.x[index])
        lower[name], upper[name] = (
            _end(residuals, polished.x, 2 * polished.cost, index, side, threshold) for side in (-1.0, 1.0)
        )
    return ParameterIntervals(estimates, lower, upper, level)


def _end(residuals: _Residuals, best: Array, least: float, index: int, side: float, threshold: float) -> float:
    """Where the profile passes the threshold, on one side of the estimate."""
    others = np.delete(best, index)
    kept = {"x": others}

    def excess(value: float) -> float:
        if not len(others):
            wrong = residuals(np.array([value]))
            return float(wrong @ wrong) - least - threshold

        def rest_of(rest: Array) -> Array:
            return residuals(np.insert(rest, index, value))

        found = least_squares(
            rest_of, kept["x"], diff_step=np.full(len(others), _STEP), x_scale="jac", xtol=1e-8, ftol=1e-10
        )
        kept["x"] = found.x
        return 2 * float(found.cost) - least - threshold

    unit = max(abs(best[index]), 1e-12)
    reach, inner = 0.01 * unit, 0.0
    while excess(best[index] + side * reach) < 0:
        inner, reach = reach, 2 * reach
        if reach > 1000 * unit:
            return float(side * np.inf)
    kept["x"] = others
    distance = brentq(lambda d: excess(best[index] + side * d), inner, reach, rtol=1e-4)
    return float(best[index] + side * distance)


def check_level(level: float) -> None:
    """Raise InputError for what is no level of confidence."""
    if not 0 < level < 1:
        raise InputError("level must be a number between 0 and 1", got=repr(level))
