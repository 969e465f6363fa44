"""Systems with one unknown term whose truth is known, and the question whether a formula found is of the true form.

Sixteen terms of biochemistry, ecology and mechanics, each in a driven system of one or two states: three runs of 50
points from different starts. `same_form` compares *families* of functions: a formula has the true form when, whatever
values its constants take near those found, the true formula gives the same function for some values of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import sympy as sp
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares

Array = NDArray[np.float64]

_FACTOR = 20.0  # how far the constants of the true formula may be from the true values
_TOLERANCE = 1e-7  # relative difference of two functions that are the same
_STARTS = 6


@dataclass(frozen=True)
class Truth:
    """A formula with its constants, and the box of its inputs on which it is compared.

    expression: in the names of `constants` and `box`. constants: name -> true value, none zero. box: input -> (low,
    high). Text is read by SymPy with every name a plain symbol; `Abs`, `exp`, `sin`, `sqrt` are functions.
    """

    expression: str
    constants: dict[str, float]
    box: dict[str, tuple[float, float]]

    @property
    def formula(self) -> sp.Expr:
        names = {name: sp.Symbol(name) for name in (*self.constants, *self.box)}
        return sp.sympify(self.expression, locals=names)

    def values(self, inputs: Mapping[str, Array]) -> Array:
        return _values(self.formula, {**inputs, **self.constants})


def same_form(expression: sp.Expr, constants: Mapping[str, float], truth: Truth) -> bool:
    """Whether a formula has exactly the true form, its constants free.

    expression: in the inputs and its own constants as symbols; numbers in it count as fixed. constants: their values.

    The constants are drawn anew, some tens of per cent around the values given; for each draw the true formula's
    constants are sought that give the same function on the box (relative difference below 1e-7), with their signs and
    within a factor of 20 of the truth. So ``x/(c0 + c1*x)`` is Michaelis-Menten, ``c0 - c1/(c2 + x)`` is not (its
    three constants can leave the family), and neither is ``c0*x`` (in the family only with an infinite constant).
    """
    inputs = _points(truth.box)
    random = np.random.default_rng(0)
    names = {str(symbol) for symbol in expression.free_symbols}
    if names - set(truth.box) - set(constants):
        return False
    used = {name: value for name, value in constants.items() if name in names}
    for draw in range(3 if used else 1):
        moved = {name: value * np.exp(0.1 * draw * random.standard_normal()) for name, value in used.items()}
        target = _values(expression, {**inputs, **moved})
        if not np.all(np.isfinite(target)) or not _within(truth, inputs, target, random):
            return False
    return True


def _within(truth: Truth, inputs: Mapping[str, Array], target: Array, random: np.random.Generator) -> bool:
    names, formula = list(truth.constants), truth.formula
    true = np.array(list(truth.constants.values()))
    function = sp.lambdify([sp.Symbol(name) for name in (*inputs, *names)], formula, "numpy")
    size = float(np.linalg.norm(target))
    bound = np.log(_FACTOR)
    if size == 0.0:
        return False

    def residual(z: Array) -> Array:
        with np.errstate(all="ignore"):
            wrong = (function(*inputs.values(), *(true * np.exp(z))) - target) / size
        return np.clip(np.nan_to_num(wrong, nan=1e3), -1e3, 1e3)

    for start in range(_STARTS):
        z0 = 0.7 * start / _STARTS * random.standard_normal(len(names))
        found = least_squares(
            residual, np.clip(z0, -2.0, 2.0), bounds=(-bound, bound), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=200
        )
        if np.linalg.norm(found.fun) < _TOLERANCE:
            return True
    return False


def _points(box: Mapping[str, tuple[float, float]], size: int = 200) -> dict[str, Array]:
    random = np.random.default_rng(1)
    return {name: random.uniform(low, high, size) for name, (low, high) in box.items()}


def _values(expression: sp.Expr, values: Mapping[str, Array | float]) -> Array:
    function = sp.lambdify([sp.Symbol(name) for name in values], expression, "numpy")
    with np.errstate(all="ignore"):
        return np.asarray(function(*values.values()) * np.ones(1), dtype=np.float64)


@dataclass(frozen=True)
class Case:
    """A system with one unknown function U.

    equations: text for `ude.UDE`, with ``U(...)`` unknown. parameters: known constants. truth: the formula of U.
    starts: initial states of the runs (run, state), in the order of the equations. span: seconds of a run.
    """

    title: str
    equations: str
    truth: Truth
    starts: tuple[tuple[float, ...], ...]
    span: float
    parameters: dict[str, float] = field(default_factory=dict)
    points: int = 50

    @property
    def states(self) -> list[str]:
        return [line.split("/dt")[0].strip()[1:] for line in self.equations.strip().splitlines()]

    @property
    def inputs(self) -> list[str]:
        return list(self.truth.box)

    def rates(self) -> sp.Matrix:
        """The right-hand sides with the true formula in the place of U."""
        names = {name: sp.Symbol(name) for name in (*self.states, *self.parameters, *self.truth.constants, "t")}
        known = {**self.parameters, **self.truth.constants}
        body = self.truth.formula

        def term(*arguments: sp.Expr) -> sp.Expr:
            return body.subs(dict(zip(map(sp.Symbol, self.inputs), arguments, strict=True)), simultaneous=True)

        lines = [line.split("=", 1)[1] for line in self.equations.strip().splitlines()]
        return sp.Matrix([sp.sympify(line, locals={**names, "U": term}) for line in lines]).subs(known)

    def trajectories(self, points: int | None = None) -> tuple[list[Array], list[Array]]:
        """Times (T,) and true states (T, state) of every run."""
        symbols = [sp.Symbol("t"), *(sp.Symbol(state) for state in self.states)]
        function = sp.lambdify(symbols, list(self.rates()), "math")
        t = np.linspace(0.0, self.span, points or self.points)
        runs = [
            solve_ivp(lambda s, u: function(s, *u), (0.0, self.span), start, "LSODA", t, rtol=1e-10, atol=1e-12).y.T
            for start in self.starts
        ]
        return [t] * len(runs), runs

    def noisy(self, noise: float, seed: int) -> tuple[list[Array], list[Array]]:
        """Observations: normal noise of the said share of each state's standard deviation over all runs."""
        times, runs = self.trajectories()
        sigma = noise * np.concatenate(runs).std(axis=0)
        random = np.random.default_rng(seed)
        return times, [run + sigma * random.standard_normal(run.shape) for run in runs]


def _case(title: str, equations: str, truth: Truth, starts: object, span: float) -> Case:
    return Case(title, equations, truth, starts, span)  # type: ignore[arg-type]


#: The sixteen terms. Units are arbitrary; drives are known functions of time.
CASES: dict[str, Case] = {
    "mass_action": _case(
        "mass action, k x y",
        "dx/dt = 0.9*(1 + sin(0.9*t)) - 0.2*x - U(x, y)\ndy/dt = 0.7*(1 + cos(0.5*t)) - 0.2*y - U(x, y)",
        Truth("k*x*y", {"k": 0.7}, {"x": (0.3, 3.6), "y": (0.05, 2.6)}),
        ((2.5, 0.3), (0.3, 2.5), (1.5, 1.5)),
        12.0,
    ),
    "michaelis_menten": _case(
        "Michaelis-Menten, V s/(K + s)",
        "ds/dt = 0.7*(1 + sin(0.6*t)) - U(s)",
        Truth("V*s/(K + s)", {"V": 1.6, "K": 0.8}, {"s": (0.05, 6.0)}),
        ((6.0,), (0.1,), (3.0,)),
        14.0,
    ),
    "hill_2": _case(
        "Hill 2, V x^2/(K^2 + x^2)",
        "dx/dt = 1.6*(1 + sin(0.8*t)) - 0.7*x\ndy/dt = U(x) - 0.8*y",
        Truth("V*x**2/(K**2 + x**2)", {"V": 2.0, "K": 1.5}, {"x": (0.05, 6.0)}),
        ((0.05, 0.0), (6.0, 1.0), (1.0, 2.0)),
        14.0,
    ),
    "logistic": _case(
        "logistic, r x (1 - x/K)",
        "dx/dt = U(x) - 0.35*(1 + sin(0.7*t))*x",
        Truth("r*x*(1 - x/K)", {"r": 0.9, "K": 4.0}, {"x": (0.1, 5.0)}),
        ((0.1,), (5.0,), (1.5,)),
        14.0,
    ),
    "pendulum": _case(
        "pendulum, w2 sin(q)",
        "dq/dt = v\ndv/dt = 0.5*cos(0.7*t) - 0.15*v - U(q)",
        Truth("k*sin(q)", {"k": 2.0}, {"q": (-2.6, 2.6)}),
        ((2.4, 0.0), (-2.0, 0.5), (0.3, -0.5)),
        10.0,
    ),
    "quadratic_drag": _case(
        "quadratic drag, k v|v|",
        "dv/dt = 4*sin(0.7*t) - U(v)",
        Truth("k*v*Abs(v)", {"k": 0.5}, {"v": (-3.0, 4.0)}),
        ((4.0,), (-3.0,), (0.5,)),
        14.0,
    ),
    "arrhenius": _case(
        "Arrhenius, k c exp(-E/T), T in units of its mean",
        "dc/dt = 0.8*(1 + 0.8*cos(0.6*t)) - 0.1*c - U(c, T)\ndT/dt = 0.9*(1.0 + 0.7*sin(1.1*t) - T)",
        Truth("k*c*exp(-E/T)", {"k": 3.0, "E": 1.5}, {"c": (0.1, 3.0), "T": (0.4, 2.0)}),
        ((2.5, 0.4), (0.2, 2.0), (1.0, 1.0)),
        14.0,
    ),
    "holling_2": _case(
        "Holling II, a x y/(h + x)",
        "dx/dt = 0.9*x*(1 - x/6.0) - U(x, y)\ndy/dt = 0.6*U(x, y) - 0.35*(1 + 0.5*sin(0.8*t))*y",
        Truth("a*x*y/(h + x)", {"a": 1.2, "h": 1.5}, {"x": (0.1, 6.0), "y": (0.2, 4.0)}),
        ((5.0, 0.4), (0.5, 2.5), (2.0, 1.0)),
        16.0,
    ),
    "holling_3": _case(
        "Holling III, a x^2 y/(h^2 + x^2)",
        "dx/dt = 0.9*x*(1 - x/6.0) - U(x, y)\ndy/dt = 0.6*U(x, y) - 0.35*(1 + 0.5*sin(0.8*t))*y",
        Truth("a*x**2*y/(h**2 + x**2)", {"a": 1.2, "h": 1.5}, {"x": (0.1, 6.0), "y": (0.2, 4.0)}),
        ((5.0, 0.4), (0.4, 3.0), (2.0, 1.0)),
        16.0,
    ),
    "haldane": _case(
        "Haldane, V s/(K + s + s^2/L)",
        "ds/dt = 0.45*(1 + sin(0.5*t)) - U(s)",
        Truth("V*s/(K + s + s**2/L)", {"V": 2.2, "K": 0.8, "L": 2.0}, {"s": (0.05, 9.0)}),
        ((9.0,), (0.1,), (4.0,)),
        14.0,
    ),
    "van_der_pol": _case(
        "van der Pol, m (1 - x^2) v",
        "dx/dt = v\ndv/dt = U(x, v) - x + 0.8*sin(1.7*t)",
        Truth("m*(1 - x**2)*v", {"m": 1.0}, {"x": (-2.2, 2.2), "v": (-3.0, 3.0)}),
        ((2.0, 0.0), (0.2, 0.2), (-1.0, 2.5)),
        10.0,
    ),
    "fitzhugh_nagumo": _case(
        "FitzHugh-Nagumo, v - v^3/3",
        "dv/dt = U(v) - w + 0.5 + 0.4*sin(0.9*t)\ndw/dt = 0.3*(v + 0.7 - 0.8*w)",
        Truth("a*v - b*v**3", {"a": 1.0, "b": 0.3333333333}, {"v": (-2.2, 2.2)}),
        ((-2.0, 0.0), (1.5, 1.2), (0.2, -0.4)),
        16.0,
    ),
    "ricker": _case(
        "Ricker, r x exp(-x/K)",
        "dx/dt = U(x) - 0.3*(1 + 0.8*sin(0.7*t))*x",
        Truth("r*x*exp(-b*x)", {"r": 1.5, "b": 0.6}, {"x": (0.1, 6.0)}),
        ((0.1,), (6.0,), (2.0,)),
        14.0,
    ),
    "two_drags": _case(
        "linear and quadratic drag, a v + b v|v|",
        "dv/dt = 4*sin(0.7*t) - U(v)",
        Truth("a*v + b*v*Abs(v)", {"a": 0.6, "b": 0.3}, {"v": (-3.0, 4.0)}),
        ((4.0,), (-3.0,), (0.5,)),
        14.0,
    ),
    "product_inhibition": _case(
        "product inhibition, V s/(K + s + c p)",
        "ds/dt = 0.9*(1 + sin(0.7*t)) - 0.1*s - U(s, p)\ndp/dt = U(s, p) - 0.5*(1 + 0.6*cos(0.4*t))*p",
        Truth("V*s/(K + s + c*p)", {"V": 2.5, "K": 0.6, "c": 1.0}, {"s": (0.1, 5.0), "p": (0.05, 4.0)}),
        ((5.0, 0.05), (0.1, 4.0), (2.0, 1.0)),
        14.0,
    ),
    "monod_inhibition": _case(
        "Monod with inhibition, V s/(K + s) L/(L + i)",
        "ds/dt = 0.8*(1 + sin(0.7*t)) - 0.1*s - U(s, i)\ndi/dt = 1.5*(1 + cos(0.9*t)) - 0.9*i",
        Truth("V*s/(K + s)/(1 + i/L)", {"V": 2.5, "K": 0.8, "L": 1.0}, {"s": (0.1, 5.0), "i": (0.05, 4.0)}),
        ((5.0, 0.05), (0.2, 4.0), (2.0, 1.0)),
        14.0,
    ),
}
