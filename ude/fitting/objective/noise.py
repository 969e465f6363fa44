"""Noise models: how likely a measurement is, given what the model predicts, with scales that are estimated.

Every model is a frozen set of numbers. A scale that is None is estimated together with the parameters of the model (as
its logarithm, so that it stays positive); one that is given is kept. Sources: P. McCullagh, J. A. Nelder, Generalized
Linear Models (1989), ch. 6; K. L. Lange, R. J. A. Little, J. M. G. Taylor, JASA 84 (1989) 881 for Student's t;
D. L. Ruppert, R. J. Carroll, Transformation and Weighting in Regression (1988) for variances that depend on the mean.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from torch import Tensor

from ude.errors import DataError, InputError, invalid_field

Array = npt.NDArray[np.float64]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)

# A prediction outside the domain of a density (a mean of zero or less) is moved to this fraction of the size of the
# data, and pays this much a size of the data for every step further: finite, and downhill is back into the domain.
_FLOOR, _SLOPE = 1e-12, 100.0
# What makes the noise of the root of a count most constant (Anscombe, Biometrika 35 (1948) 246).
_ANSCOMBE = 3.0 / 8.0
# How far a scale may move from its guess, as a logarithm: one of two scales may be zero as far as the data tell.
_FURTHEST = math.log(1e3)


@dataclass(frozen=True)
class NoiseModel(ABC):
    """-log p(observed | predicted) of one observable; None among the fields: to be estimated.

    >>> isinstance(ude.noise.Gaussian(0.1), ude.noise.NoiseModel)
    True
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise invalid_field(self, field.name, "a positive number, or None to have it estimated")

    @property
    def estimated(self) -> tuple[str, ...]:
        """The names of the scales that are estimated."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is None)

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if value is None:
            raise InputError(f"{name} of {type(self).__name__} is open", fix="Take the noise models of a fit.")
        return float(value)

    def filled(self, scales: Mapping[str, float]) -> Self:
        """The same with numbers for the estimated scales."""
        return replace(self, **scales)

    def scales(self, estimated: Mapping[str, Tensor]) -> dict[str, Tensor | float]:
        """Every scale: those given as numbers, the others from `estimated`."""
        return {
            field.name: estimated[field.name] if getattr(self, field.name) is None else getattr(self, field.name)
            for field in fields(self)
        }

    @abstractmethod
    def cost(
        self, predicted: Float[Tensor, "*any"], observed: Float[Tensor, "*any"], estimated: Mapping[str, Tensor]
    ) -> Float[Tensor, "*any"]:
        """-log p of each observation, normalized; finite for every finite prediction."""

    def stabilized(self, y: Array) -> tuple[Array, Array]:
        """y in a unit in which its noise is of one size wherever y is, and the derivative of that by y; no scale may be
        open. As here: y itself, where it is anyway."""
        return y, np.ones_like(y)

    @abstractmethod
    def guess(self, size: float, noise: float) -> dict[str, float]:
        """Starts of the scales: `size` is the mean magnitude of the data, `noise` their standard error."""

    def check(self, observable: str, observed: Float[Tensor, " point"]) -> None:  # noqa: B027  (any number may do)
        """Raise DataError for data that this kind of noise cannot give."""

    def start(self, size: float, noise: float) -> dict[str, float]:
        """`guess` for those that are estimated."""
        guess = self.guess(size, max(noise, 1e-9 * size, 1e-300))
        return {name: guess[name] for name in self.estimated}


@dataclass(frozen=True)
class Gaussian(NoiseModel):
    """y ~ N(μ, σ²): ``-log p = ½ log 2π + log σ + (y - μ)²/2σ²``. sigma has the unit of the data.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, noise=ude.noise.Gaussian(), stages="single shooting", holdout=0, progress=False)
    >>> 0.002 < fit.noise_models["x"].sigma < 0.02  # estimated, in the unit of x
    True
    """

    sigma: float | None = None

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        sigma = _tensor(self.scales(estimated)["sigma"])
        return HALF_LOG_TWO_PI + sigma.log() + 0.5 * ((observed - predicted) / sigma) ** 2

    def guess(self, size: float, noise: float) -> dict[str, float]:
        return {"sigma": noise}


@dataclass(frozen=True)
class LogNormal(NoiseModel):
    """log y ~ N(log μ, σ²), μ the median: ``-log p = ½ log 2π + log y + log σ + (log y - log μ)²/2σ²``.

    sigma is a relative error, without unit. Data must be positive.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, noise=ude.noise.LogNormal(), stages="single shooting", holdout=0, progress=False)
    >>> 0.01 < fit.noise_models["x"].sigma < 0.04  # relative: 2 % were put in
    True
    """

    sigma: float | None = None

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        sigma = _tensor(self.scales(estimated)["sigma"])
        mean, outside = _positive(predicted, observed)
        log = observed.log()
        return HALF_LOG_TWO_PI + log + sigma.log() + 0.5 * ((log - mean.log()) / sigma) ** 2 + outside

    def stabilized(self, y: Array) -> tuple[Array, Array]:
        sigma = self._number("sigma")
        return np.log(y) / sigma, 1.0 / (sigma * y)

    def guess(self, size: float, noise: float) -> dict[str, float]:
        return {"sigma": noise / size if size > 0 else 1.0}

    def check(self, observable: str, observed: Tensor) -> None:
        _refuse(observable, observed, observed <= 0, "LogNormal", "positive numbers")


@dataclass(frozen=True)
class RelativeAbsolute(NoiseModel):
    """y ~ N(μ, a² + (bμ)²), a = `absolute` in the unit of the data, b = `relative`.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     noise=ude.noise.RelativeAbsolute(absolute=0.001),
    ...     stages="single shooting",
    ... )
    >>> 0.005 < fit.noise_models["x"].relative < 0.04
    True
    """

    absolute: float | None = None
    relative: float | None = None

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        scales = self.scales(estimated)
        variance = _tensor(scales["absolute"]) ** 2 + (_tensor(scales["relative"]) * predicted) ** 2
        return HALF_LOG_TWO_PI + 0.5 * variance.log() + 0.5 * (observed - predicted) ** 2 / variance

    def stabilized(self, y: Array) -> tuple[Array, Array]:
        a, b = self._number("absolute"), self._number("relative")
        return np.arcsinh(b * y / a) / b, 1.0 / np.hypot(a, b * y)

    def guess(self, size: float, noise: float) -> dict[str, float]:
        # half of the variance each
        return {"absolute": noise / math.sqrt(2.0), "relative": noise / math.sqrt(2.0) / size if size > 0 else 1.0}


@dataclass(frozen=True)
class StudentT(NoiseModel):
    """(y - μ)/scale ~ t with `dof` degrees of freedom: heavy tails, so that an outlier pulls little.

    ``-log p = log Γ(ν/2) - log Γ((ν+1)/2) + ½ log πν + log s + (ν+1)/2 log(1 + ((y - μ)/s)²/ν)``. Four degrees of
    freedom unless given (Lange et al. 1989, who found that a good robust choice); None has them estimated.

    >>> t = np.linspace(0.0, 2.0, 15)
    >>> x = np.exp(-1.5 * t) * (1.0 + 0.02 * np.random.default_rng(0).standard_normal(15))
    >>> data = ude.Dataset.from_arrays(t, x, "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(model, data, noise=ude.noise.StudentT(), stages="single shooting", holdout=0, progress=False)
    >>> abs(fit.model.values()["k"] - 1.5) < 0.1
    True
    """

    scale: float | None = None
    dof: float | None = 4.0

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        scales = self.scales(estimated)
        s, dof = _tensor(scales["scale"]), _tensor(scales["dof"])
        constant = torch.lgamma(dof / 2) - torch.lgamma((dof + 1) / 2) + 0.5 * (math.pi * dof).log() + s.log()
        return constant + (dof + 1) / 2 * torch.log1p(((observed - predicted) / s) ** 2 / dof)

    def guess(self, size: float, noise: float) -> dict[str, float]:
        return {"scale": noise, "dof": 4.0}


@dataclass(frozen=True)
class Poisson(NoiseModel):
    """Counts with mean μ: ``-log p = μ - y log μ + log y!``. Nothing to estimate; data must be whole, zero or more.

    >>> t = np.arange(8.0)
    >>> data = ude.Dataset.from_arrays(t, np.random.default_rng(0).poisson(50.0 * np.exp(-0.3 * t)), "cases")
    >>> model = ude.UDE("dcases/dt = -k*cases", fit="k")
    >>> fit = ude.fit(model, data, noise=ude.noise.Poisson(), stages="single shooting", holdout=0, progress=False)
    >>> abs(fit.model.values()["k"] - 0.3) < 0.1
    True
    """

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        mean, outside = _positive(predicted, observed)
        return mean - observed * mean.log() + torch.lgamma(observed + 1) + outside

    def stabilized(self, y: Array) -> tuple[Array, Array]:
        root = np.sqrt(y + _ANSCOMBE)
        return 2.0 * root, 1.0 / root

    def guess(self, size: float, noise: float) -> dict[str, float]:
        return {}

    def check(self, observable: str, observed: Tensor) -> None:
        _refuse_what_is_no_count(observable, observed, "Poisson")


@dataclass(frozen=True)
class NegativeBinomial(NoiseModel):
    """Counts with mean μ and variance ``μ + dispersion μ²``; with r = 1/dispersion
    ``-log p = log Γ(r) + log y! - log Γ(y+r) + r log(1 + μ/r) + y log(1 + r/μ)``. Data must be whole, zero or more.

    >>> t = np.arange(8.0)
    >>> data = ude.Dataset.from_arrays(t, np.random.default_rng(0).poisson(50.0 * np.exp(-0.3 * t)), "cases")
    >>> model = ude.UDE("dcases/dt = -k*cases", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     noise=ude.noise.NegativeBinomial(),
    ...     stages="single shooting",
    ... )
    >>> abs(fit.model.values()["k"] - 0.3) < 0.1
    True
    """

    dispersion: float | None = None

    def cost(self, predicted: Tensor, observed: Tensor, estimated: Mapping[str, Tensor]) -> Tensor:
        r = 1.0 / _tensor(self.scales(estimated)["dispersion"])
        mean, outside = _positive(predicted, observed)
        counted = torch.lgamma(r) + torch.lgamma(observed + 1) - torch.lgamma(observed + r)
        return counted + r * torch.log1p(mean / r) + observed * torch.log1p(r / mean) + outside

    def stabilized(self, y: Array) -> tuple[Array, Array]:
        spread, y = self._number("dispersion"), y + _ANSCOMBE
        return 2.0 * np.arcsinh(np.sqrt(spread * y)) / np.sqrt(spread), 1.0 / np.sqrt(y * (1.0 + spread * y))

    def guess(self, size: float, noise: float) -> dict[str, float]:
        return {"dispersion": max((noise**2 - size) / size**2, 0.01) if size > 0 else 1.0}

    def check(self, observable: str, observed: Tensor) -> None:
        _refuse_what_is_no_count(observable, observed, "NegativeBinomial")


Noise = NoiseModel | Mapping[str, NoiseModel]
"""What `fit` takes as `noise`: one model for all observables, or one for each."""


def noise_models(noise: Noise, observables: Sequence[str]) -> dict[str, NoiseModel]:
    """One model an observable. Raises InputError for what is no noise model, an unknown and a missing observable."""
    if isinstance(noise, NoiseModel):
        return dict.fromkeys(observables, noise)
    if not isinstance(noise, Mapping) or not all(isinstance(model, NoiseModel) for model in noise.values()):
        raise InputError(
            "noise must be noise models",
            expected="one such as ude.noise.Gaussian(), or a dict observable -> noise model",
            got=repr(noise),
        )
    if set(noise) != set(observables):
        raise InputError(
            "noise does not name every observable once", expected=", ".join(observables), got=", ".join(noise)
        )
    return {name: noise[name] for name in observables}


class Likelihood:
    """-log likelihood of all observables, with the logarithms of the estimated scales in one leaf tensor.

    models:   observable -> noise model, in the order of the last axis of what is compared
    observed: (..., observable); mask: which of them were measured
    noise:    (observable,) a first estimate of the standard error

    Raises DataError for data that the noise model of an observable cannot give.
    """

    def __init__(
        self,
        models: Mapping[str, NoiseModel],
        observed: Float[Tensor, "*any observable"],
        mask: Bool[Tensor, "*any observable"],
        noise: Sequence[float],
    ) -> None:
        self.models = dict(models)
        starts: list[float] = []
        for index, (name, model) in enumerate(self.models.items()):
            values = observed[..., index][mask[..., index]]
            model.check(name, values)
            size = float(values.abs().mean()) if len(values) else 1.0
            starts += model.start(size, noise[index]).values()
        self.logs = torch.tensor(np.log(starts), dtype=torch.float64).requires_grad_()

    def estimate(self, predicted: Float[Tensor, "*any observable"], observed: Float[Tensor, "*any observable"]) -> None:
        """Move the estimated scales to where they make the observations likeliest, given these predictions."""
        if not len(self.logs):
            return
        start = self.logs.detach().numpy().copy()

        def cost(logs: Array) -> tuple[float, Array]:
            with torch.no_grad():
                self.logs.copy_(torch.as_tensor(logs))
            value = self(predicted, observed, mask)
            [slope] = torch.autograd.grad(value, self.logs)
            return float(value.detach()), slope.numpy()

        mask = torch.isfinite(observed) & torch.isfinite(predicted)
        for index, model in enumerate(self.models.values()):
            if isinstance(model, LogNormal | Poisson | NegativeBinomial):  # zero or less says nothing of their scales
                mask[..., index] &= predicted[..., index] > 0
        least = cost(start)[0]
        around = [(middle - _FURTHEST, middle + _FURTHEST) for middle in start]
        found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=around)
        with torch.no_grad():
            self.logs.copy_(torch.as_tensor(found.x if found.fun < least else start))

    def estimated(self) -> dict[str, dict[str, Tensor]]:
        """observable -> name -> scale, as 0-d tensors that carry gradients."""
        values = iter(self.logs.exp().unbind() if len(self.logs) else ())
        return {name: {scale: next(values) for scale in model.estimated} for name, model in self.models.items()}

    def __call__(
        self,
        predicted: Float[Tensor, "*any observable"],
        observed: Float[Tensor, "*any observable"],
        mask: Bool[Tensor, "*any observable"],
    ) -> Float[Tensor, ""]:
        """Sum of -log p over the observations in `mask`; what stands outside it may be NaN."""
        total = torch.zeros((), dtype=predicted.dtype)
        for index, (name, scales) in enumerate(self.estimated().items()):
            use = mask[..., index]
            if bool(use.any()):
                cost = self.models[name].cost(predicted[..., index][use], observed[..., index][use], scales)
                total = total + cost.sum()
        return total

    def fitted(self) -> dict[str, NoiseModel]:
        """The models with the numbers as they are now."""
        return {
            name: self.models[name].filled({scale: float(value.detach()) for scale, value in scales.items()})
            for name, scales in self.estimated().items()
        }


def log_likelihood(
    models: Mapping[str, NoiseModel],
    predicted: Float[Tensor, "*any observable"],
    observed: Float[Tensor, "*any observable"],
    mask: Bool[Tensor, "*any observable"],
) -> float:
    """Σ log p over the observations in `mask`; no scale may be open. -inf where a prediction is not finite."""
    total = 0.0
    for index, model in enumerate(models.values()):
        use = mask[..., index]
        if not bool(torch.isfinite(predicted[..., index][use]).all()):
            return -math.inf
        total -= float(model.cost(predicted[..., index][use], observed[..., index][use], {}).sum())
    return total


def _tensor(value: Tensor | float) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)


def _positive(predicted: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """A positive mean, and what a prediction below it pays."""
    size = float(observed.abs().mean()) or 1.0
    floor = _FLOOR * size
    return predicted.clamp(min=floor), (floor - predicted).clamp(min=0.0) * (_SLOPE / size)


def _refuse_what_is_no_count(observable: str, observed: Tensor, noise: str) -> None:
    _refuse(observable, observed, (observed < 0) | (observed != observed.round()), noise, "whole numbers, zero or more")


def _refuse(observable: str, observed: Tensor, bad: Tensor, noise: str, expected: str) -> None:
    if bool(bad.any()):
        raise DataError(
            f"the data of {observable!r} cannot have {noise} noise",
            expected=expected,
            got=f"{float(observed[bad][0]):g}",
            fix="Choose another noise model for it, such as ude.noise.Gaussian().",
        )
