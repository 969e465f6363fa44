"""Smoothing of noisy trajectories: u(t), du/dt(t) and the noise level, before any equation is known.

The derivatives are what the first stage of a fit matches (collocation; Varah 1982, Ramsay et al. 2007). Each state is
a Gaussian process y = mean + f(t) + noise, whose length scale, amplitude and noise come from the marginal likelihood
(Rasmussen & Williams 2006, 5.4.1) of all trajectories together; the derivative is that of the posterior mean. Long
trajectories get a smoothing spline by generalized cross-validation instead, since a Gaussian process costs n^3.
States that are positive keep a positive smooth. Gaps need nothing: each state has its own times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator, make_smoothing_spline
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from ude.fitting.data.dataset import Dataset

Array = npt.NDArray[np.float64]
# t (k,) -> value, derivative, variance of the derivative, NaN where there is none to tell; (k,) each
Curve = Callable[[Array], tuple[Array, Array, Array]]

LONGEST_GAUSSIAN_PROCESS = 250  # points in a trajectory; 0.1 s a state there, a spline beyond
_RARE = 0.25
_SMALLEST_NOISE = 1e-8  # of noise variance to signal variance: what float64 needs to factorize the kernel


@dataclass(frozen=True)
class Smoothing:
    """The smooth of every trajectory. `noise` (state,): standard deviation of the measurement noise, units of u."""

    noise: Array
    positive: npt.NDArray[np.bool_]
    curves: tuple[tuple[Curve, ...], ...]  # trajectory, state
    measured: tuple[tuple[tuple[float, float], ...], ...]  # trajectory, state: first and last time with a value

    def __call__(self, trajectory: int, t: npt.ArrayLike) -> tuple[Array, Array]:
        """u and du/dt of shape (k, state) at the times `t` (k,) of this trajectory, units of u."""
        u, du, _ = self.along(trajectory, t)
        return u, du

    def along(self, trajectory: int, t: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """The same, and how far du/dt may be off by the posterior of a Gaussian process, units of du/dt squared.

        That is NaN where another smooth was taken.
        """
        times = np.asarray(t, dtype=np.float64)
        u, du, variance = (
            np.stack(parts, -1) for parts in zip(*(c(times) for c in self.curves[trajectory]), strict=True)
        )
        return u, du, variance

    def inside(self, trajectory: int, t: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """(k, state): whether the times `t` (k,) lie between the first and the last value of each state.

        Elsewhere the smooth extrapolates, or knows nothing of this trajectory but what is usual in the others.
        """
        times = np.asarray(t, dtype=np.float64)[:, None]
        first, last = np.array(self.measured[trajectory]).T
        return np.asarray((times >= first) & (times <= last))


def smooth(data: Dataset, positive: Sequence[bool] | npt.NDArray[np.bool_] | None = None) -> Smoothing:
    """Smooth every state of every trajectory. `positive` (state,): states whose smooth must stay above zero.

    A positive state is smoothed in u or in log u, whichever makes the data likelier: noise may be absolute or
    relative. Trajectories share length scale and noise; they need not share times.
    """
    mask = np.zeros(len(data.states), dtype=bool) if positive is None else np.asarray(positive, dtype=bool)
    fits, spans = [], []
    for i in range(len(data.states)):
        seen = [tr.measured[:, i] for tr in data.trajectories]
        times = [tr.t[own] for tr, own in zip(data.trajectories, seen, strict=True)]
        values = [tr.u[own, i] for tr, own in zip(data.trajectories, seen, strict=True)]
        fits.append(_smooth_measured(times, values, bool(mask[i])))
        spans.append([(float(t[0]), float(t[-1])) if len(t) else (np.inf, -np.inf) for t in times])
    noise = np.array([fit.noise for fit in fits])
    curves = tuple(zip(*(fit.curves for fit in fits), strict=True))
    return Smoothing(noise, mask, curves, tuple(zip(*spans, strict=True)))


def rarely_seen(data: Dataset) -> npt.NDArray[np.bool_]:
    """(column,): those with fewer than a quarter of the values of the column that has the most."""
    measured = np.sum([trajectory.measured.sum(0) for trajectory in data.trajectories], axis=0)
    return np.asarray(measured < _RARE * measured.max())


def interpolate_rare(smoothing: Smoothing, data: Dataset) -> Smoothing:
    """Columns that are rarely seen interpolated, with as much noise relative to their spread as the others have.

    Of a handful of values far apart the likelihood would as soon believe that all is noise.
    """
    rare = rarely_seen(data)
    if not rare.any():
        return smoothing
    spread = np.nanstd(data.values(), axis=0)
    often = ~rare & (spread > 0)
    relative = float(np.sqrt(np.mean((smoothing.noise[often] / spread[often]) ** 2))) if often.any() else 0.0
    curves = [list(own) for own in smoothing.curves]
    for i, trajectory in enumerate(data.trajectories):
        for column in np.flatnonzero(rare):
            seen = trajectory.measured[:, column]
            if seen.any():
                curves[i][column] = _interpolated(
                    trajectory.t[seen], trajectory.u[seen, column], bool(smoothing.positive[column])
                )
    noise = np.where(rare, relative * spread, smoothing.noise)
    return replace(smoothing, noise=noise, curves=tuple(tuple(own) for own in curves))


def _interpolated(t: Array, values: Array, positive: bool) -> Curve:
    """Without overshoot (PCHIP), in logarithms where positive; constant outside."""
    if len(t) == 1:
        return _constant(float(values[0]))
    pieces = PchipInterpolator(t, np.log(values) if positive else values)
    slope = pieces.derivative()

    def curve(s: Array) -> tuple[Array, Array, Array]:
        inside = (s >= t[0]) & (s <= t[-1])
        held = np.clip(s, t[0], t[-1])
        return pieces(held), np.where(inside, slope(held), 0.0), np.full_like(s, np.nan)

    return _exponential(curve) if positive else curve


@dataclass(frozen=True)
class _StateFit:
    """Curves of one state over all trajectories; `cost` is -log marginal likelihood, comparable for the same data."""

    curves: list[Curve]
    noise: float
    cost: float


def _smooth_measured(times: list[Array], values: list[Array], positive: bool) -> _StateFit:
    """As `_smooth_state`; a trajectory without a value of this state gets the mean of the others' values."""
    some = [i for i, v in enumerate(values) if len(v)]
    fit = _smooth_state([times[i] for i in some], [values[i] for i in some], positive)
    if len(some) == len(values):
        return fit
    curves = dict(zip(some, fit.curves, strict=True))
    usual = _constant(float(np.concatenate(values).mean()))
    return replace(fit, curves=[curves.get(i, usual) for i in range(len(values))])


def _smooth_state(times: list[Array], values: list[Array], positive: bool) -> _StateFit:
    if all(np.ptp(v) == 0 for v in values):
        return _StateFit([_constant(float(v[0])) for v in values], 0.0, 0.0)
    longest = max(len(t) for t in times)
    # Two points are a line; a likelihood of two numbers would as soon call them noise.
    method = _gaussian_processes if 2 < longest <= LONGEST_GAUSSIAN_PROCESS else _splines
    plain = method(times, values, lambda z: z)
    if not positive:
        return plain
    logarithmic = method(times, [np.log(v) for v in values], np.exp)
    # p(u) = p(log u) / u
    cost = logarithmic.cost + float(sum(np.log(v).sum() for v in values))
    relative = replace(logarithmic, curves=[_exponential(curve) for curve in logarithmic.curves], cost=cost)
    return plain if plain.cost <= cost and _stays_positive(plain.curves, times, values) else relative


def _stays_positive(curves: list[Curve], times: list[Array], values: list[Array]) -> bool:
    """Whether the smooth stays above half the least value measured, also between the points."""
    least = 0.5 * min(float(v.min()) for v in values)
    return all(
        float(curve(np.linspace(t[0], t[-1], 8 * len(t)))[0].min()) > least
        for curve, t in zip(curves, times, strict=True)
    )


# ---------------------------------------------------------------- Gaussian process


def _squared_exponential(d: Array, length: float) -> tuple[Array, Array, float]:
    """k(d) = exp(-d²/2ℓ²), dk/dd, and -d²k/dd² at 0, the variance of the slope."""
    k = np.exp(-0.5 * (d / length) ** 2)
    return k, -d / length**2 * k, 1.0 / length**2


def _matern(d: Array, length: float) -> tuple[Array, Array, float]:
    """Matérn 5/2: k(d) = (1 + a + a²/3) exp(-a), a = √5|d|/ℓ, dk/dd = -5d/(3ℓ²) (1 + a) exp(-a), -d²k/dd² at 0."""
    a = np.sqrt(5.0) * np.abs(d) / length
    decay = np.exp(-a)
    steep = 5.0 / (3.0 * length**2)
    return (1.0 + a + a * a / 3.0) * decay, -steep * d * (1.0 + a) * decay, steep


_KERNELS = (_squared_exponential, _matern)


def _gaussian_processes(times: list[Array], values: list[Array], inverse: Callable[[Array], Array]) -> _StateFit:
    """`inverse` maps what is smoothed to the units of u, in which the noise is wanted."""
    means = [float(v.mean()) for v in values]
    centered = [v - m for v, m in zip(values, means, strict=True)]
    distances = [t[:, None] - t[None, :] for t in times]
    likeliest = [(*_most_likely(kernel, distances, centered, times), kernel) for kernel in _KERNELS]
    cost, length, ratio, kernel = min(likeliest, key=lambda found: found[0])
    amplitude = _profile(kernel, distances, centered, length, ratio)[1]
    curves: list[Curve] = []
    squares, freedom = 0.0, 0.0
    for t, v, c, m, d in zip(times, values, centered, means, distances, strict=True):
        gram = kernel(d, length)[0]
        inverted = cho_solve(cho_factor(gram + ratio * np.eye(len(t)), lower=True), np.eye(len(t)))
        curves.append(_posterior(partial(kernel, length=length), t, (inverted @ c, m), (amplitude, inverted)))
        squares += float(np.sum((inverse(v) - inverse(m + gram @ (inverted @ c))) ** 2))
        freedom += ratio * float(np.trace(inverted))  # n - tr(hat matrix)
    return _StateFit(curves, float(np.sqrt(squares / max(freedom, 1e-12))), cost)


def _posterior(
    kernel: Callable[[Array], tuple[Array, Array, float]],
    t: Array,
    mean: tuple[Array, float],
    spread: tuple[float, Array],
) -> Curve:
    """mean: weights of the kernel at t, and the level. spread: amplitude² and (R + ηI)⁻¹."""
    (weights, level), (amplitude, inverted) = mean, spread

    def curve(s: Array) -> tuple[Array, Array, Array]:
        k, dk, steep = kernel(s[:, None] - t[None, :])
        explained = np.einsum("ki,ij,kj->k", dk, inverted, dk, optimize=True)
        return level + k @ weights, dk @ weights, amplitude * np.maximum(steep - explained, 0.0)

    return curve


def _profile(
    kernel: Callable[..., tuple[Array, Array, float]],
    distances: list[Array],
    centered: list[Array],
    length: float,
    ratio: float,
) -> tuple[float, float]:
    """-log marginal likelihood with the amplitude at its best, up to a constant, and that amplitude's square:
    s² = Σ yᵀ(R+ηI)⁻¹y / n,  n/2 log s² + ½ Σ log|R+ηI|."""
    quadratic, logdet, n = 0.0, 0.0, 0
    for d, c in zip(distances, centered, strict=True):
        factor = cho_factor(kernel(d, length)[0] + ratio * np.eye(len(c)), lower=True)
        quadratic += float(c @ cho_solve(factor, c))
        logdet += 2.0 * float(np.log(np.diag(factor[0])).sum())
        n += len(c)
    variance = max(quadratic / n, np.finfo(float).tiny)
    return 0.5 * (n * np.log(variance) + logdet), variance


def _most_likely(
    kernel: Callable[..., tuple[Array, Array, float]], distances: list[Array], centered: list[Array], times: list[Array]
) -> tuple[float, float, float]:
    """(objective, length scale, noise ratio): a grid over both, since the likelihood has local optima, then refined.

    A weak log-normal prior keeps the length scale between spacing and span where a handful of points say little.
    """
    spacing = float(np.median(np.concatenate([np.diff(t) for t in times])))
    span = max(float(np.ptp(t)) for t in times)
    center, width = np.log(np.sqrt(spacing * span)), max(np.log(span / spacing) / 2.0, 1.0)
    low, high = np.log(spacing) - np.log(2.0), np.log(span) + np.log(4.0)

    def objective(x: Array) -> float:
        value = _profile(kernel, distances, centered, float(np.exp(x[0])), float(np.exp(x[1])))[0]
        result: float = value + 0.5 * ((x[0] - center) / width) ** 2
        return result

    grid = [np.array([x, y]) for x in np.linspace(low, high, 9) for y in np.log([1e-7, 1e-5, 1e-3, 1e-2, 1e-1, 0.5])]
    start = min(grid, key=objective)
    bounds = [(low, high), (np.log(_SMALLEST_NOISE), np.log(10.0))]
    found = minimize(objective, start, method="L-BFGS-B", bounds=bounds)
    x = found.x if found.fun <= objective(start) else start
    return float(objective(x)), float(np.exp(x[0])), float(np.exp(x[1]))


# ---------------------------------------------------------------- splines and lines


def _splines(times: list[Array], values: list[Array], inverse: Callable[[Array], Array]) -> _StateFit:
    curves: list[Curve] = []
    squares, count = 0.0, 0
    for t, v in zip(times, values, strict=True):
        if len(t) < 5:  # what the spline needs
            curves.append(_line(t, v))
            continue
        # Units of time near one point apart: the spline's penalty search fails far from there.
        unit = float(np.median(np.diff(t)))
        spline = make_smoothing_spline((t - t[0]) / unit, v)
        curves.append(_spline_curve(spline, spline.derivative(), float(t[0]), unit))
        squares += float(np.sum((inverse(v) - inverse(curves[-1](t)[0])) ** 2))
        count += len(t)
    # A spline has no likelihood; equal costs choose natural units where these stay positive.
    return _StateFit(curves, float(np.sqrt(squares / max(count, 1))), -np.inf)


def _spline_curve(
    spline: Callable[[Array], Array], slope: Callable[[Array], Array], start: float, unit: float
) -> Curve:
    return lambda s: (spline((s - start) / unit), slope((s - start) / unit) / unit, np.full_like(s, np.nan))


def _line(t: Array, v: Array) -> Curve:
    if len(t) == 1:
        return _constant(float(v[0]))
    slope, level = np.polyfit(t - t[0], v, 1)
    return lambda s: (level + slope * (s - t[0]), np.full_like(s, slope), np.full_like(s, np.nan))


def _constant(value: float) -> Curve:
    return lambda s: (np.full_like(s, value), np.zeros_like(s), np.full_like(s, np.nan))


def _exponential(curve: Curve) -> Curve:
    def exponential(s: Array) -> tuple[Array, Array, Array]:
        z, dz, variance = curve(s)
        u = np.exp(z)
        return u, u * dz, u**2 * variance

    return exponential
