"""What is known beside the data: priors on parameters, smallness of a correction, residuals of equations.

Every one of them is a vector of numbers whose sum of squares adds to the loss, so that each optimizer, least squares
too, can use it. The loss is a mean square in scales of the data; see `ude.fit`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ude.errors import InputError, invalid_field
from ude.models import Model, Neural
from ude.models.equations.names import did_you_mean
from ude.models.equations.parser import parse
from ude.models.equations.torch_function import to_torch
from ude.models.parameters import unknown_parameter


@dataclass(frozen=True, eq=False)
class Scene:
    """What penalties are bound to: the model in training, points along the smoothed data, and what a unit of
    -log p (of a density) is worth in the loss."""

    model: Model
    u: Float[Tensor, "point state"]
    t: Float[Tensor, " point"]
    unit: float


Bound = Callable[[], Float[Tensor, " residual"]]


@dataclass(frozen=True)
class ParameterPrior(ABC):
    """A density of one parameter, in natural units."""

    @abstractmethod
    def deviation(self, value: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """r, of which -log p is r²/2."""

    def bind(self, name: str, scene: Scene) -> Bound:
        root = math.sqrt(0.5 * scene.unit)
        return lambda: root * self.deviation(scene.model.parameter_tensors()[name]).reshape(1)


@dataclass(frozen=True)
class NormalPrior(ParameterPrior):
    """The parameter is N(mean, sd²).

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k")
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     stages="single shooting",
    ...     noise=ude.noise.Gaussian(0.01),
    ...     priors={"k": ude.penalties.NormalPrior(mean=1.5, sd=0.1)},
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    mean: float
    sd: float

    def __post_init__(self) -> None:
        _check_number(self, "mean", positive=False)
        _check_number(self, "sd", positive=True)

    def deviation(self, value: Tensor) -> Tensor:
        return (value - self.mean) / self.sd


@dataclass(frozen=True)
class LogNormalPrior(ParameterPrior):
    """The logarithm of the parameter is N(log median, sigma²), and its density is that of the logarithm.

    The parameter must be positive: give it a lower bound of zero.

    >>> t = np.linspace(0.0, 2.0, 9)
    >>> data = ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x")
    >>> model = ude.UDE("dx/dt = -k*x", fit="k in [0, 9]")
    >>> prior = {"k": ude.penalties.LogNormalPrior(median=1.5, sigma=0.5)}
    >>> fit = ude.fit(
    ...     model, data, holdout=0, progress=False,
    ...     noise=ude.noise.Gaussian(0.01),
    ...     priors=prior,
    ...     stages="single shooting",
    ... )
    >>> round(fit.model.values()["k"], 3)
    1.5
    """

    median: float
    sigma: float

    def __post_init__(self) -> None:
        _check_number(self, "median", positive=True)
        _check_number(self, "sigma", positive=True)

    def deviation(self, value: Tensor) -> Tensor:
        return (value / self.median).log() / self.sigma


@dataclass(frozen=True)
class Penalty(ABC):
    """A soft demand, with the weight that its mean square has in the loss."""

    @abstractmethod
    def bind(self, scene: Scene) -> Bound:
        """The residuals as a function of the model's parameters. Raises InputError where the model does not fit."""


@dataclass(frozen=True)
class MagnitudePenalty(Penalty):
    """``weight mean (U / size)²`` along the smoothed data: the unknown function U explains only what the known part of
    the model cannot. `size` is U's unit; the output scale of its network when left out.

    >>> ude.penalties.MagnitudePenalty("U1", weight=1e-2).output  # given to fit as penalties=[...]
    'U1'
    """

    output: str
    weight: float = 1e-3
    size: float | None = None

    def __post_init__(self) -> None:
        _check_number(self, "weight", positive=True)
        if self.size is not None:
            _check_number(self, "size", positive=True)

    def bind(self, scene: Scene) -> Bound:
        term = scene.model.provider(self.output)
        size = self.size
        if size is None:
            size = float(term.output_scale[term.outputs.index(self.output)]) if isinstance(term, Neural) else 1.0
        root = math.sqrt(self.weight / len(scene.t)) / size

        def residuals() -> Tensor:
            calls = scene.model.record_calls(scene.u, None, scene.t)[self.output]
            return root * torch.cat([call.output.expand(len(scene.t)) for call in calls]) / math.sqrt(len(calls))

        return residuals


_RATE = re.compile(r"\bd([^\W\d]\w*)/dt\b")


@dataclass(frozen=True)
class ResidualPenalty(Penalty):
    """``weight mean (expression / size)²`` at points along the smoothed data: physics that the model should obey.

    expression: of states, parameters, `t`, unknown functions by their bare name (``U1``, its value), and ``dx/dt``, the
        model's right-hand side; ``"dx/dt - (1.3*x - 0.9*x*y)"`` makes a network behave like an equation, ``"dS/dt +
        dI/dt + dR/dt"`` conserves a sum
    size:       the unit of the expression

    >>> conserved = ude.penalties.ResidualPenalty("dS/dt + dI/dt + dR/dt", weight=1.0)  # fit(penalties=[conserved])
    >>> conserved.size
    1.0
    """

    expression: str
    weight: float = 0.1
    size: float = 1.0

    def __post_init__(self) -> None:
        _check_number(self, "weight", positive=True)
        _check_number(self, "size", positive=True)
        if not isinstance(self.expression, str):
            raise InputError(
                "the expression of a ResidualPenalty is no text", expected='"dx/dt - y"', got=repr(self.expression)
            )

    def bind(self, scene: Scene) -> Bound:
        model = scene.model
        # d(state)/dt is no name; a name that nobody can have written stands for it
        rates = {f"rate_of_{state}_": index for index, state in enumerate(model.states)}
        text = _RATE.sub(lambda match: f"rate_of_{match[1]}_", self.expression)
        parsed = parse(text)
        known = (*model.states, *model.parameters_table, *model.outputs, *rates, "t")
        for name, _ in parsed.names:
            if name not in known:
                raise InputError(
                    f"the residual {self.expression!r} names {name!r}",
                    expected=f"states ({', '.join(model.states)}), their rates (d{model.states[0]}/dt), "
                    "parameters, unknown functions or t",
                    fix=did_you_mean(name, known),
                )
        if parsed.calls:
            raise InputError(
                f"the residual {self.expression!r} calls {parsed.calls[0].name}",
                expected="known functions, and unknown ones by their bare name",
                fix=f"Write {parsed.calls[0].name} without its arguments.",
            )
        names = tuple(dict.fromkeys([*(name for name, _ in parsed.names), model.states[0]]))
        function = to_torch([parsed.expression], names)
        root = math.sqrt(self.weight / len(scene.t)) / self.size

        def residuals() -> Tensor:
            values = _values_along(scene, names, rates)
            (result,) = function(*(values[name] for name in names))
            return root * torch.as_tensor(result, dtype=scene.u.dtype).expand(len(scene.t))

        return residuals


def _values_along(scene: Scene, names: Iterable[str], rates: Mapping[str, int]) -> dict[str, Tensor]:
    model = scene.model
    columns = dict(zip(model.states, scene.u.unbind(-1), strict=True))
    values = {**model.parameter_tensors(), **columns, "t": scene.t}
    wanted = set(names)
    if wanted & set(rates):
        du = model(scene.u, None, scene.t)
        values |= {name: du[:, index] for name, index in rates.items()}
    if wanted & set(model.outputs):
        calls = model.record_calls(scene.u, None, scene.t)
        values |= {name: calls[name][0].output for name in model.outputs}
    return values


def bind_all(
    scene: Scene, priors: Mapping[str, ParameterPrior], penalties: Iterable[Penalty]
) -> Callable[[], Float[Tensor, " residual"]]:
    """All residuals in one vector, which is empty where nothing is known."""
    bound = [prior.bind(name, scene) for name, prior in priors.items()]
    bound += [penalty.bind(scene) for penalty in penalties]
    return lambda: torch.cat([torch.zeros(0, dtype=torch.float64), *(residuals() for residuals in bound)])


def check_known(model: Model, priors: Mapping[str, ParameterPrior], penalties: Iterable[Penalty]) -> None:
    """Raise InputError for what is no prior or penalty, and for priors on what is not fitted or can be negative."""
    if not isinstance(priors, Mapping):
        raise InputError("priors must map parameters to priors", got=repr(priors))
    if not isinstance(penalties, Iterable):
        raise InputError("penalties must be a list of penalty objects", got=repr(penalties))
    for penalty in penalties:
        if not isinstance(penalty, Penalty):
            raise InputError(
                "penalties must be penalty objects",
                expected="ude.penalties.ResidualPenalty(...) or ude.penalties.MagnitudePenalty(...)",
                got=repr(penalty),
            )
    table = model.parameters_table
    for name, prior in priors.items():
        if not isinstance(prior, ParameterPrior):
            raise InputError(
                f"the prior of {name} must be a prior object",
                expected="ude.penalties.NormalPrior or ude.penalties.LogNormalPrior",
                got=repr(prior),
            )
        if name not in table:
            raise unknown_parameter(name, table)
        if not table[name].fitted:
            raise InputError(f"parameter {name} has a prior and is not fitted", fix=f'Add fit="{name}" to the model.')
        lower = table[name].lower
        if isinstance(prior, LogNormalPrior) and (lower is None or lower < 0):
            raise InputError(
                f"parameter {name} may become negative, where its prior is not defined",
                fix=f'Bound it: fit="{name} in [0, inf]".',
            )


def _check_number(owner: object, name: str, *, positive: bool) -> None:
    value = getattr(owner, name)
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not finite or (positive and value <= 0):
        raise invalid_field(owner, name, "a positive number" if positive else "a finite number")
