"""Terms that are multiples of one another: ``U1 = -k*U2`` before any formula is known.

The relation is written into the equations, so that one formula, with one set of constants, serves all the terms that
share it; the samples of all of them, divided by their factors, are what it is sought from. The factor k is estimated
from the networks and refitted with everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import sympy as sp
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor, nn

from ude.discovery.constraints.term_constraints import TermConstraints
from ude.discovery.samples import Samples
from ude.discovery.sampling import equations_of
from ude.errors import InputError, ModelError
from ude.fitting.result import Fit
from ude.models import UDE, Neural, Parameter
from ude.models.equations.parser import parse_expression


@dataclass(frozen=True)
class Relation:
    """``term = sign * number * factor * other``; factor: name of a constant above zero, or "" for none."""

    term: str
    other: str
    number: float
    factor: str


def read_relation(term: str, text: str, terms: tuple[str, ...]) -> Relation:
    """From "-k*U2", "0.5*U2" or "U2". Raises InputError for what is no multiple of one other term."""
    wrong = InputError(
        f"TermConstraints of {term}: shared",
        expected=f'a multiple of another term ({", ".join(terms)}), "-k*U2"',
        got=repr(text),
    )
    try:
        expression = sp.expand(parse_expression(text))
    except ModelError as error:
        raise wrong from error
    number, rest = expression.as_coeff_Mul()
    names = [str(factor) for factor in sp.Mul.make_args(rest)]
    others = [name for name in names if name in terms and name != term]
    factors = [name for name in names if name not in terms]
    plain = all(factor.is_Symbol for factor in sp.Mul.make_args(rest))
    if not plain or len(others) != 1 or len(factors) > 1 or len(names) != len(others) + len(factors) or number == 0:
        raise wrong
    return Relation(term, others[0], float(number), factors[0] if factors else "")


class _Picked(nn.Module):
    """One output of a term as a network of its own."""

    def __init__(self, term: nn.Module, index: int) -> None:
        super().__init__()
        self.term, self.index = term, index

    def forward(self, x: Tensor) -> Tensor:
        given = self.term(*x.unbind(-1))
        values = given if isinstance(given, tuple) else (given,)
        result: Tensor = values[self.index].unsqueeze(-1)
        return result


def substitute_shared_terms(
    fit: Fit, samples: Mapping[str, Samples], constraints: Mapping[str, TermConstraints]
) -> tuple[Fit, dict[str, Samples]]:
    """The fit with shared terms written as multiples of the others, and samples of the terms that are left.

    Raises InputError for relations that cannot be read, form a chain, or join terms of other arguments.
    """
    model = equations_of(fit)
    terms = tuple(samples)
    relations = [read_relation(name, known.shared, terms) for name, known in constraints.items() if known.shared]
    if not relations:
        return fit, dict(samples)
    _check(relations, samples, model)
    starts = {relation.factor: _estimated(relation, samples) for relation in relations if relation.factor}
    left = _pooled(relations, samples, starts)
    return replace(fit, model=_rewritten(model, relations, starts)), left


def _check(relations: list[Relation], samples: Mapping[str, Samples], model: UDE) -> None:
    dropped = {relation.term for relation in relations}
    for relation in relations:
        if relation.other in dropped:
            raise InputError(
                f"TermConstraints of {relation.term}: shared",
                expected="a term that is not shared itself",
                got=relation.other,
                fix="Write all as multiples of the same term.",
            )
        if model.calls[relation.term] != model.calls[relation.other]:
            raise InputError(
                f"TermConstraints of {relation.term}: shared",
                expected=f"a term of the same arguments ({', '.join(model.calls[relation.term])})",
                got=f"{relation.other}({', '.join(model.calls[relation.other])})",
            )
        if relation.factor in {*model.states, *model.values(), *samples[relation.term].inputs}:
            raise InputError(
                f"TermConstraints of {relation.term}: shared", expected="a new name for the factor", got=relation.factor
            )


def _estimated(relation: Relation, samples: Mapping[str, Samples]) -> float:
    """Least squares of one network on the other. Raises InputError where they have the opposite sign."""
    mine, others = samples[relation.term].output, relation.number * samples[relation.other].output
    factor = float(mine @ others) / max(float(others @ others), 1e-300)
    if factor <= 0:
        raise InputError(
            f"TermConstraints of {relation.term}: shared",
            expected=f"a factor {relation.factor} above zero",
            got=f"{factor:.3g} from the networks",
            fix="Is the sign right?",
        )
    return factor


def _pooled(
    relations: list[Relation], samples: Mapping[str, Samples], starts: Mapping[str, float]
) -> dict[str, Samples]:
    left = {name: own for name, own in samples.items() if name not in {relation.term for relation in relations}}
    for relation in relations:
        mine, other = samples[relation.term], left[relation.other]
        factor = relation.number * starts.get(relation.factor, 1.0)
        columns = np.zeros((other.size + mine.size, other.nuisance.shape[1] + mine.nuisance.shape[1]))
        columns[: other.size, : other.nuisance.shape[1]] = other.nuisance
        columns[other.size :, other.nuisance.shape[1] :] = mine.nuisance / factor
        left[relation.other] = Samples(
            {name: np.concatenate([other.inputs[name], mine.inputs[name]]) for name in other.inputs},
            np.concatenate([other.output, mine.output / factor]),
            other.name,
            columns,
            np.concatenate([other.weights, mine.weights]),
        )
    return left


def _rewritten(model: UDE, relations: list[Relation], starts: Mapping[str, float]) -> UDE:
    body = {
        relation.term: (relation.number * (sp.Symbol(relation.factor) if relation.factor else 1), relation.other)
        for relation in relations
    }

    def written(rate: sp.Expr) -> sp.Expr:
        for call in rate.atoms(AppliedUndef):
            if str(call.func) in body:
                factor, other = body[str(call.func)]
                rate = rate.xreplace({call: factor * sp.Function(other)(*call.args)})
        return rate

    equations = {state: written(rate) for state, rate in model.explicit(values=False).items()}
    kept = [name for name in model.unknown_outputs if name not in body]
    networks = []
    for name in kept:
        term = model.provider(name)
        networks.append(Neural(_Picked(term, list(term.outputs).index(name)), list(term.inputs), [name]))
    table = {**model.parameters_table, **{name: Parameter(value, True, 0.0, None) for name, value in starts.items()}}
    copied = UDE(equations, parameters=table, unknown=networks, states=list(model.states))
    with torch.no_grad():
        copied.set_values({**model.values(), **starts})
    return copied
