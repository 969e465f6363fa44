"""From a formula that an evolutionary search wrote to candidates worth comparing: tidy, refit, drop terms, snap.

Such formulas carry constants that say nothing (``(1.7*x)*(0.2*y)``), in single precision, and terms that the search
did not bother to remove. Here each is written in two normal forms (as a quotient of polynomials in the inputs and in
whatever functions occur, and with its factors kept), its constants are refitted in float64 beside the nuisance
directions, and then the constant that is missed least is set to zero, again and again: by the quadratic model of the
error, setting c_i to zero and refitting the others costs ``c_i^2 / (H^-1)_ii`` with H = J'J (Hassibi & Stork,
NIPS 5 (1993)). Every formula on the way is a candidate. Constants close to simple numbers are offered as those numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import sympy as sp
from scipy.optimize import leastsq

from ude.discovery.candidate import Candidate, pareto_front
from ude.discovery.complexity import complexity
from ude.discovery.evaluation import Array, as_text, evaluate, is_regular
from ude.discovery.samples import Samples, normalized_error, project_out

_WORST = 0.5  # normalized error above which nothing is dropped any more
_MOST_CONSTANTS = 9
_SIMPLE = (sp.Rational(1, 2), *map(sp.Integer, (1, 2, 3, 4, 5, 10)))


@dataclass
class Polisher:
    """Turns expressions into candidates, each structure once.

    samples: what the constants are fitted to. source: name of the search. seen: structures met so far. reached:
    complexity and error of the candidates so far.
    """

    samples: Samples
    source: str
    seen: set[sp.Expr] = field(default_factory=set)
    reached: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, expression: sp.Expr) -> Iterator[Candidate]:
        """Candidates from one expression whose floating-point numbers are constants to fit."""
        tidied = signs_resolved(expression, self.samples)
        kept = kept_factors(tidied)
        yield from self._path(kept)
        if any(isinstance(factor, sp.Add) for part in kept.atoms(sp.Mul, sp.Pow) for factor in part.args):
            yield from self._path(quotient(kept))

    def _path(self, form: sp.Expr) -> Iterator[Candidate]:
        """The form refitted, then without one constant after another."""
        while not form.has(sp.nan, sp.zoo, sp.oo, sp.I):
            bare, constants = name_constants(form, tuple(self.samples.inputs))
            if bare in self.seen or len(constants) > _MOST_CONSTANTS or bare == 0:
                return
            self.seen.add(bare)
            fitted = Fitted.of(bare, constants, self.samples)
            if fitted is None:
                return
            size = complexity(bare, constants)
            if not any(c <= size and 3.0 * error < fitted.error for c, error in self.reached):
                candidate = fitted.candidate(self.samples, self.source)
                if candidate is not None:
                    self.reached.append((size, candidate.nmse))
                    yield candidate
            if not constants or fitted.error > _WORST:
                return
            least = fitted.least_missed()
            values = {sp.Symbol(name): sp.Float(value) for name, value in fitted.constants.items() if name != least}
            form = kept_factors(bare.subs(sp.Symbol(least), 0).xreplace(values))

    def snapped(self, candidate: Candidate) -> Candidate | None:
        """The candidate with a constant that is within 1 % of a simple number replaced by it, if that is as close.

        Phases of sines and cosines are tried at quarters of a turn. None where there is no such constant.
        """
        for name, value in candidate.constants.items():
            number = _quarter(value) if _is_phase(name, candidate.expression) else _simple(value)
            if number is None:
                continue
            rest = {key: constant for key, constant in candidate.constants.items() if key != name}
            fitted = Fitted.of(candidate.expression.xreplace({sp.Symbol(name): number}), rest, self.samples)
            trial = None if fitted is None else fitted.candidate(self.samples, self.source)
            close = trial is not None and trial.nmse <= 1.01 * candidate.nmse + 1e-13
            if trial is not None and close and trial.complexity < candidate.complexity:
                return trial
        return None


@dataclass(frozen=True)
class Fitted:
    """Constants of one form by least squares, with the Jacobian of the scaled residual there."""

    expression: sp.Expr
    constants: dict[str, float]
    jacobian: Array  # (N, constants), scaled by the constants themselves
    error: float  # normalized

    @staticmethod
    def of(expression: sp.Expr, start: Mapping[str, float], samples: Samples) -> Fitted | None:
        """None where the form is not finite on the samples. Ten starts would cost more than they find: one."""
        names, begin = list(start), np.array(list(start.values()), dtype=np.float64)
        unit = np.where(begin != 0, np.abs(begin), 1.0)
        residual = _residual(expression, names, samples, unit)
        theta = begin / unit
        first = residual(theta)
        if not np.all(np.isfinite(first)):
            return None
        if not names:
            return Fitted(expression, {}, np.empty((len(first), 0)), float(first @ first))
        if len(names) < len(first):
            with np.errstate(all="ignore"):
                found = leastsq(
                    _bounded(residual),
                    theta,
                    xtol=1e-13,
                    ftol=1e-13,
                    gtol=1e-13,
                    maxfev=60 * (len(names) + 1),
                    full_output=True,
                )[0]
            theta = found if np.all(np.isfinite(residual(found))) else theta
        last = residual(theta)
        step = 1e-6
        moves = step * np.eye(len(names))
        columns = [(residual(theta + move) - residual(theta - move)) / (2 * step) for move in moves]
        jacobian = np.nan_to_num(np.stack(columns, axis=1))
        values = {name: float(value) for name, value in zip(names, theta * unit, strict=True)}
        scale = np.where(theta != 0, theta, 1.0)
        with np.errstate(all="ignore"):
            return Fitted(expression, values, jacobian * scale, float(last @ last))

    def least_missed(self) -> str:
        """The constant whose vanishing costs least. In units of the constant itself, c_i = 1."""
        hessian = self.jacobian.T @ self.jacobian
        ridge = 1e-10 * max(float(np.trace(hessian)), 1e-300)
        inverse = np.linalg.inv(hessian + ridge * np.eye(len(hessian)))
        cost = 1.0 / np.maximum(np.diag(inverse), 1e-300)
        return list(self.constants)[int(np.argmin(cost))]

    def candidate(self, samples: Samples, source: str) -> Candidate | None:
        bare, constants = renamed(self.expression, self.constants, tuple(samples.inputs))
        if not all(np.isfinite(value) and value != 0 for value in constants.values()):
            return None
        if not is_regular(bare, samples.inputs, constants, points=33):
            return None
        error = normalized_error(samples, evaluate(bare, {**samples.inputs, **constants}))
        if not np.isfinite(error):
            return None
        return Candidate(bare, constants, complexity(bare, constants), error, source)


def _simple(value: float) -> sp.Expr | None:
    near = min(_SIMPLE, key=lambda number: abs(abs(value) - number))
    return None if abs(abs(value) - near) > 0.01 * near else near * int(np.sign(value))


def _quarter(value: float) -> sp.Expr | None:
    """The multiple of pi/2 that is as near as 1 % of a radian."""
    quarters = round(value / (np.pi / 2))
    return None if abs(value - quarters * np.pi / 2) > 0.01 else quarters * sp.pi / 2


def _is_phase(name: str, expression: sp.Expr) -> bool:
    """Whether a constant stands in sines and cosines alone, and there as a summand beside something else."""
    constant = sp.Symbol(name)
    waves = [wave for wave in expression.atoms(sp.sin, sp.cos) if wave.has(constant)]
    if not waves or expression.xreplace(dict.fromkeys(waves, sp.S.Zero)).has(constant):
        return False
    rests = [wave.args[0] - wave.args[0].coeff(constant) * constant for wave in waves]
    return all(rest.free_symbols and not rest.has(constant) for rest in rests) and all(
        abs(wave.args[0].coeff(constant)) == 1 for wave in waves
    )


def _residual(expression: sp.Expr, names: Sequence[str], samples: Samples, unit: Array) -> Callable[[Array], Array]:
    inputs = list(samples.inputs)
    function = sp.lambdify([sp.Symbol(name) for name in (*inputs, *names)], expression, modules="numpy", cse=True)
    columns = list(samples.inputs.values())
    target = project_out(samples, samples.output[:, None])[:, 0]
    size = max(float(np.linalg.norm(target)), 1e-300)

    def residual(theta: Array) -> Array:
        with np.errstate(all="ignore"):
            values = np.broadcast_to(np.asarray(function(*columns, *(theta * unit)), dtype=np.float64), target.shape)
            if not np.all(np.isfinite(values)):
                return np.full_like(target, np.nan)
            # far away values overflow when squared; such a place is as good as undefined
            wrong = (target - project_out(samples, values[:, None])[:, 0]) / size
            return np.where(np.abs(wrong) < 1e100, wrong, np.nan)

    return residual


def _bounded(residual: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """MINPACK wants numbers: where the form is not defined, something worse than anything defined."""
    return lambda theta: np.nan_to_num(np.clip(residual(theta), -1e6, 1e6), nan=1e6)


# ---- normal forms ---------------------------------------------------------------------------------------------------


def count_nodes(expression: sp.Expr) -> int:
    return sum(1 for _ in sp.preorder_traversal(expression))


def signs_resolved(expression: sp.Expr, samples: Samples) -> sp.Expr:
    """``|f|`` as f or -f where f has one sign on the samples; a whole number written 2.0 as the exponent 2."""

    def walk(part: sp.Expr) -> sp.Expr:
        if not part.args:
            return part
        inner = [walk(argument) for argument in part.args]
        if isinstance(part, sp.Abs):
            values = evaluate(inner[0], samples.inputs) if inner[0].free_symbols else np.array([float(inner[0])])
            if np.all(values >= 0):
                return inner[0]
            if np.all(values <= 0):
                return -inner[0]
        if isinstance(part, sp.Pow) and isinstance(inner[1], sp.Float):
            twice = round(2 * float(inner[1]))
            if abs(2 * float(inner[1]) - twice) < 2e-3:
                return inner[0] ** sp.Rational(twice, 2)
        return part.func(*inner)

    return walk(expression)


def kept_factors(expression: sp.Expr) -> sp.Expr:
    """Numbers drawn out of products, powers and functions as far as they go, factors kept as they are.

    ``(1.7*x)*(0.2*y) -> 0.34*x*y``; ``3*x/(2*x + 4) -> 1.5*x/(x + 2)``; ``exp(2 - x) -> 7.39*exp(-x)``.
    """
    number, rest = _drawn_out(expression)
    if isinstance(rest, sp.Add):  # a sum by itself reads better with a number in every term
        return sp.Add(*(sp.Float(number) * term for term in rest.args))
    return sp.Float(number) * rest


def _drawn_out(part: sp.Expr) -> tuple[float, sp.Expr]:
    """(number, rest) with part = number * rest and rest normalized."""
    if part.is_number:
        return _as_float(part), sp.S.One
    if part.is_Atom:
        return 1.0, part
    if isinstance(part, sp.Mul):
        number, rests = 1.0, []
        for factor in part.args:
            own, rest = _drawn_out(factor)
            number *= own
            rests.append(rest)
        return number, sp.Mul(*rests)
    if isinstance(part, sp.Pow) and part.exp.is_number and part.base != sp.E:
        own, rest = _drawn_out(part.base)
        if part.exp.is_integer:
            return own ** int(part.exp), rest**part.exp
        if own > 0:
            return own ** float(part.exp), rest**part.exp
        return 1.0, (sp.Float(own) * rest) ** part.exp
    if isinstance(part, sp.Add):
        return _drawn_out_of_sum(part)
    if isinstance(part, sp.exp) or (isinstance(part, sp.Pow) and part.base == sp.E):
        shift, rest = kept_factors(part.args[-1] if isinstance(part, sp.Pow) else part.args[0]).as_coeff_Add()
        if not rest.free_symbols:
            return _as_float(sp.exp(shift + rest)), sp.S.One
        shift = float(shift) if abs(float(shift)) < 600 else 0.0
        return float(np.exp(shift)), sp.exp(rest)
    if isinstance(part, sp.Abs):
        own, rest = _drawn_out(part.args[0])
        return abs(own), sp.Abs(rest)
    return 1.0, part.func(*(kept_factors(argument) if not argument.is_Integer else argument for argument in part.args))


def _drawn_out_of_sum(part: sp.Add) -> tuple[float, sp.Expr]:
    """The sum over the coefficient of its most complex term, so that ``c0 + x`` and not ``1 + c0*x`` is left."""
    terms: dict[sp.Expr, float] = {}
    for term in part.args:
        own, rest = _drawn_out(term)
        terms[rest] = terms.get(rest, 0.0) + own
    terms = {rest: own for rest, own in terms.items() if own != 0.0}
    if not terms:
        return 0.0, sp.S.One
    sizes = {rest: count_nodes(rest) for rest in terms}
    largest = [rest for rest, size in sizes.items() if size == max(sizes.values())]
    lead = largest[0] if len(largest) == 1 else max(largest, key=as_text)
    number = terms[lead]
    return number, sp.Add(*(rest if rest == lead else sp.Float(own / number) * rest for rest, own in terms.items()))


def quotient(expression: sp.Expr) -> sp.Expr:
    """One quotient of two sums of products, each product with its own number, over the inputs and inner functions."""
    tidied = expression
    inner = {node: sp.Dummy() for node in tidied.atoms(sp.Function)}
    inner |= {
        node: sp.Dummy()
        for node in tidied.atoms(sp.Pow)
        if (not node.exp.is_integer or node.base == sp.E) and node not in inner
    }
    bare = tidied.xreplace(inner)
    if bare.atoms(sp.Pow) and any(not node.exp.is_number for node in bare.atoms(sp.Pow)):
        return tidied
    above, below = sp.fraction(sp.together(bare))
    above, below = sp.expand(above), sp.expand(below)
    if len(above.args) > 12 or len(below.args) > 12:
        return tidied
    common = _common_monomial(above, below)
    whole = sp.expand(above / common), sp.expand(below / common)
    back = {dummy: node for node, dummy in inner.items()}
    top, bottom = whole[0].xreplace(back), whole[1].xreplace(back)
    if not bottom.free_symbols:
        return sp.expand(sp.Float(1.0 / _as_float(bottom)) * top)
    number, rest = _drawn_out(bottom)
    return sp.expand(sp.Float(1.0 / number) * top) / rest


def _common_monomial(above: sp.Expr, below: sp.Expr) -> sp.Expr:
    """The largest product of powers that divides every term of both."""
    terms = [*sp.Add.make_args(above), *sp.Add.make_args(below)]
    least: dict[sp.Expr, sp.Expr] | None = None
    for term in terms:
        powers = {b: p for b, p in term.as_powers_dict().items() if not b.is_number and p.is_Integer}
        least = powers if least is None else {b: min(p, powers[b]) for b, p in least.items() if b in powers}
    return sp.Mul(*(base**power for base, power in (least or {}).items()))


def _as_float(number: sp.Expr) -> float:
    value = complex(number)
    return value.real if abs(value.imag) <= 1e-12 * abs(value.real) else float("nan")


# ---- constants ------------------------------------------------------------------------------------------------------


def name_constants(expression: sp.Expr, taken: Sequence[str]) -> tuple[sp.Expr, dict[str, float]]:
    """Every floating-point number as a constant, except 1.0 and -1.0 as factors, which are units."""
    values: dict[str, float] = {}

    def walk(part: sp.Expr) -> sp.Expr:
        if isinstance(part, sp.Float):
            if abs(float(part)) == 1.0:
                return sp.Integer(int(part))
            name = f"_number{len(values)}"
            values[name] = float(part)
            return sp.Symbol(name)
        return part.func(*(walk(inner) for inner in part.args)) if part.args else part

    return renamed(walk(expression), values, taken)


def renamed(expression: sp.Expr, values: Mapping[str, float], taken: Sequence[str]) -> tuple[sp.Expr, dict[str, float]]:
    """Constants as c0, c1, ... in the order in which they stand in the text, inputs' names skipped."""
    present = {str(symbol) for symbol in expression.free_symbols} & set(values)
    words = re.findall(r"[A-Za-z_]\w*", as_text(expression)) if present else []
    order = sorted(present, key=words.index)
    free = (name for name in (f"c{index}" for index in count()) if name not in taken)
    names = dict(zip(order, free, strict=False))
    swapped = expression.xreplace({sp.Symbol(old): sp.Symbol(new) for old, new in names.items()})
    return swapped, {new: float(values[old]) for old, new in names.items()}


def polished(expressions: Sequence[sp.Expr], samples: Samples, source: str) -> list[Candidate]:
    """Candidates from all expressions, in the order given; those on the Pareto front with simple numbers as well."""
    polisher = Polisher(samples, source)
    found = [candidate for expression in expressions for candidate in polisher(expression)]
    for candidate in pareto_front(found):
        simpler = polisher.snapped(candidate)
        while simpler is not None:
            found.append(simpler)
            simpler = polisher.snapped(simpler)
    return found
