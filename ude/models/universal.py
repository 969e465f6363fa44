"""Universal differential equations: known physics as text or SymPy, with unknown functions inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor, nn

from ude.errors import InputError, ModelError
from ude.models.equations.names import TIME, did_you_mean, symbol
from ude.models.equations.printer import to_text
from ude.models.equations.system import EquationsLike, System, check_calls, check_names, read_system
from ude.models.equations.torch_function import expand_together, to_torch
from ude.models.export.equation_set import EquationSet
from ude.models.model import SCHEMA, Model, Recorder, parameters_from_description, terms_from_description
from ude.models.networks import MLP
from ude.models.observation import Observation
from ude.models.parameters import ParametersLike, merge_parameters
from ude.models.terms import Neural, Symbolic, Term, check_outputs
from ude.untrusted import check

UnknownLike = Neural | Symbolic | Iterable[Neural | Symbolic] | Mapping[str, nn.Module]
"""What a UDE takes as `unknown`."""


@dataclass(frozen=True)
class _Evaluation:
    """One call of a term: where its inputs stand among the argument values; which outputs the equations need."""

    key: str
    arguments: tuple[int, ...]
    outputs: tuple[int, ...]


class UDE(Model):
    """A universal differential equation (Rackauckas et al. 2020, arXiv:2001.04385)::

        model = ude.UDE('''
            dx/dt = alpha*x - U1(x, y)
            dy/dt = U2(x, y) - delta*y
        ''', parameters={"alpha": 1.3, "delta": 1.8}, unknown=ude.MLP("U1, U2", inputs="x, y", width=16))

    equations:  text, lines of text, a dict state -> right-hand side, or `sympy.Eq(Derivative(x(t), t), ...)`.
                ``x' = ...`` is read too, ``#`` begins a comment, ``t`` is the time, ``^`` is ``**``, and
                ``where(x < 1, a, b)`` is a where x < 1, elsewhere b
    parameters: name -> number (fixed) or `Parameter`
    fit:        names of fitted parameters, "a, d"; "a=0.5 in [0, 2]" gives a start and bounds
    unknown:    the networks (or formulas) of the unknown functions: one term, several, or a dict name -> module.
                None: every function that is not known is one; those with the same arguments share an `MLP`
    states:     the order of the states; None: the order of the equations
    seed:       of the networks that are made when `unknown` is None
    observe:    what is measured, where that is not the states: "y = scale*(x1 + x2)"; parameters may occur only there

    Attributes: `equations` (state -> SymPy), `calls` (unknown function -> its arguments as text, where it is first
    used), `observables` (name -> formula), and those of `Model`.

    Raises ModelError, with a caret under the place where there is one, for equations, names and calls that do not fit
    together; InputError for values that are not usable.

    >>> model = ude.UDE(["dx/dt = a*x - U(x, y)", "dy/dt = -d*y"], parameters={"d": 1.8}, fit="a=1.0 in [0, 3]")
    >>> model.states, model.unknown_outputs, model.values()["d"]
    (('x', 'y'), ('U',), 1.8)
    >>> model(torch.tensor([1.0, 2.0]).double())[1].item()  # dy/dt
    -3.6
    """

    #: The generated functions say all that these do, and say it faster: see `ude.compile.value_kinds.class_plan`.
    __untraced__ = ("equations", "calls", "observables")

    def __init__(
        self,
        equations: EquationsLike,
        parameters: ParametersLike | None = None,
        fit: str | Iterable[str] | None = None,
        unknown: UnknownLike | None = None,
        states: str | Iterable[str] | None = None,
        seed: int = 0,
        observe: str | Mapping[str, str] | Iterable[str] | None = None,
    ) -> None:
        table = merge_parameters(parameters, fit)
        system = read_system(equations, states, table)
        observables = None if observe is None else Observation(observe)
        if observables is not None:
            observables.check(system.states, table)
        elsewhere = set() if observables is None else observables.used
        check_names(system, table, [name for name, entry in table.items() if entry.fitted], elsewhere)
        check_calls(system)
        super().__init__(system.states, table)
        self.equations: dict[str, sympy.Expr] = system.equations
        self.observables: dict[str, str] = {} if observables is None else observables.formulas
        self.calls: dict[str, tuple[str, ...]] = {}
        for call in system.calls:
            self.calls.setdefault(call.name, tuple(to_text(argument) for argument in call.arguments))
        terms = _detected_terms(self.calls, seed) if unknown is None else _given_terms(unknown, system)
        _check_terms(terms, system)
        self._install(terms)

    def _compile(self) -> None:
        """Plan the evaluation: argument values, one call of a term for every distinct tuple of arguments, equations."""
        plain = (*self.states, TIME)
        applied = [node for rhs in self.equations.values() for node in sympy.preorder_traversal(rhs)]
        applied = list(dict.fromkeys(node for node in applied if isinstance(node, AppliedUndef)))
        computed = dict.fromkeys(argument for node in applied for argument in node.args if not argument.is_Symbol)
        place = {symbol(name): index for index, name in enumerate(plain)}
        place |= {argument: len(plain) + index for index, argument in enumerate(computed)}
        needed: dict[tuple[str, tuple[int, ...]], list[tuple[int, AppliedUndef]]] = {}
        for node in applied:
            key, index = self._providers[node.func.__name__]
            arguments = tuple(place[argument] for argument in node.args)
            needed.setdefault((key, arguments), []).append((index, node))
        self._evaluations = [
            _Evaluation(key, arguments, tuple(index for index, _ in entries))
            for (key, arguments), entries in needed.items()
        ]
        self._arguments = to_torch(list(computed), plain) if computed else None
        # The text of a call cannot be the name of anything else.
        stand_in = {node: symbol(to_text(node)) for entries in needed.values() for _, node in entries}
        right_sides = [rhs.xreplace(stand_in) for rhs in self.equations.values()]
        names = (*plain, *self.store.names(), *(str(name) for name in stand_in.values()))
        self._right_sides = to_torch(right_sides, names)

    def _evaluate(self, u: Tensor, values: dict[str, Tensor], t: Tensor, recorder: Recorder | None) -> Tensor:
        columns = u.unbind(-1)
        known = (*columns, t)
        places = known if self._arguments is None else (*known, *self._arguments(*known))
        outputs: list[Tensor] = []
        for evaluation in self._evaluations:
            inputs = [places[index] for index in evaluation.arguments]
            given = self._call(evaluation.key, inputs, values, recorder)
            outputs += [given[index] for index in evaluation.outputs]
        own = [values[name] for name in self.store.names()]
        return torch.stack(expand_together(self._right_sides(*known, *own, *outputs), columns[0]), -1)

    # -- the equations, written -----------------------------------------------------------------------------------

    def explicit(self, values: bool = True) -> dict[str, sympy.Expr]:
        """state -> right-hand side with formulas in place of the unknown functions that have one.

        values: write the numbers of the parameters (an unset one keeps its name); otherwise all keep their names
        (a constant ``c0`` of ``U1`` is ``U1_c0``).
        """
        if values:
            return self.equation_set().with_numbers()
        result = {}
        for state, rhs in self.equations.items():
            result[state] = rhs.xreplace({node: self._formula(node) for node in rhs.atoms(AppliedUndef)})
        return result

    def _formula(self, node: AppliedUndef) -> sympy.Expr:
        name = node.func.__name__
        key, _ = self._providers[name]
        term = self.term(key)
        if isinstance(term, Neural):
            return node
        mapping = dict(zip((symbol(name) for name in term.inputs), node.args, strict=True))
        mapping |= {symbol(local): symbol(f"{key}_{local}") for local in term.store.names()}
        return term.expressions[name].xreplace(mapping)

    def equation_set(self) -> EquationSet:
        """The equations with the numbers that stand in them, for `ude.export`."""
        unset = frozenset(name for name, entry in self.parameters_table.items() if entry.value is None)
        return EquationSet(self.explicit(values=False), self.values(), unset, observables=self.observables)

    # -- saving ---------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A description in plain data (JSON); with the `state_dict` it restores the model."""
        lines = [f"d{state}/dt = {to_text(rhs)}" for state, rhs in self.equations.items()]
        extra = {"observables": self.observables} if self.observables else {}
        return {"kind": "ude", "equations": lines, **extra, **super().to_dict()}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any], modules: Mapping[str, nn.Module] | None = None) -> UDE:
        """The model of `to_dict`; networks have their initial weights until `load_state_dict`.

        modules: the user's own modules by output name, which a description cannot hold.
        """
        if description.get("kind") != "ude":
            raise InputError("this does not describe a UDE", expected="kind 'ude'", got=repr(description.get("kind")))
        check(dict(description), {**SCHEMA, "equations": [str], "observables?": {str: str}}, "the model")
        model = UDE(
            description["equations"],
            parameters=parameters_from_description(description["parameters"]),
            states=description["states"],
            observe=description.get("observables"),
        )
        model._install(terms_from_description(description["terms"], modules))
        return model

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions do not pickle; they are built again.
        return {key: value for key, value in self.__dict__.items() if key not in ("_arguments", "_right_sides")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile()


def _detected_terms(calls: Mapping[str, tuple[str, ...]], seed: int) -> list[Term]:
    """One MLP for every distinct list of arguments."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, arguments in calls.items():
        groups.setdefault(arguments, []).append(name)
    terms: list[Term] = []
    for index, (arguments, names) in enumerate(groups.items()):
        terms.append(MLP(names, _input_names(arguments), seed=seed + index))
    return terms


def _input_names(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """The arguments themselves where they are names; z1, z2, ... for formulas and for one that is given twice."""
    names: list[str] = []
    for index, argument in enumerate(arguments):
        fresh = argument.isidentifier() and argument not in names
        name = argument if fresh else f"z{index + 1}"
        while not fresh and (name in arguments or name in names):
            name += "_"
        names.append(name)
    return tuple(names)


def _given_terms(unknown: UnknownLike, system: System) -> list[Term]:
    if isinstance(unknown, Neural | Symbolic):
        return [unknown]
    if isinstance(unknown, Mapping):
        return [_named_term(name, module, system) for name, module in unknown.items()]
    if isinstance(unknown, nn.Module) or not isinstance(unknown, Iterable):
        raise _not_terms(unknown)
    terms = list(unknown)
    for term in terms:
        if not isinstance(term, Neural | Symbolic):
            raise _not_terms(term)
    return terms


def _not_terms(got: object) -> InputError:
    return InputError(
        "unknown is not usable",
        expected='a term such as ude.MLP("U1", inputs="x, y"), several of them, or a dict name -> module',
        got=repr(got),
    )


def _named_term(name: str, module: nn.Module, system: System) -> Term:
    if isinstance(module, Neural | Symbolic):
        if module.outputs != (name,):
            raise InputError(
                f"the term given for {name} has other outputs", expected=name, got=", ".join(module.outputs)
            )
        return module
    if not isinstance(module, nn.Module):
        raise _not_terms(module)
    call = next((call for call in system.calls if call.name == name), None)
    if call is None:
        raise _never_used(name, system)
    return Neural(module, _input_names(tuple(to_text(argument) for argument in call.arguments)), (name,))


def _never_used(name: str, system: System) -> ModelError:
    called = list(dict.fromkeys(call.name for call in system.calls))
    return ModelError(
        f"the unknown function {name} is never used",
        expected=f"{name}(...) in the equations",
        got=", ".join(called) if called else "no unknown function",
        fix=did_you_mean(name, called),
    )


def _check_terms(terms: list[Term], system: System) -> None:
    """Raise ModelError unless the terms and the calls in the equations belong together."""
    term_of: dict[str, Term] = {}
    for term in terms:
        for name in check_outputs(term.outputs):
            if name in term_of:
                raise ModelError(f"two terms give {name}", expected="one term for an unknown function")
            if name in system.used:
                raise ModelError(f"the unknown function {name} has the name of a state or parameter", fix="Rename it.")
            term_of[name] = term
    for call in system.calls:
        if call.name not in term_of:
            raise call.span.error(
                f"unknown function {call.name}",
                expected=f"one of {', '.join(term_of)}" if term_of else "no unknown function",
                fix=did_you_mean(call.name, term_of),
            )
        inputs = term_of[call.name].inputs
        if len(inputs) != len(call.arguments):
            raise call.span.error(
                f"{call.name} is called with a wrong number of arguments",
                expected=f"{len(inputs)} ({', '.join(inputs)})",
                got=str(len(call.arguments)),
            )
    for name, term in term_of.items():
        calls = [call for call in system.calls if call.name == name]
        if not calls:
            raise _never_used(name, system)
        # An input named like a state must be that state; other names are the term's own (U(x/y) with inputs="ratio").
        for index, wanted in enumerate(term.inputs):
            given = {to_text(call.arguments[index]) for call in calls}
            if wanted in {*system.states, TIME} and wanted not in given:
                raise calls[0].span.error(
                    f"{name} is called with other arguments than its inputs",
                    expected=f"{name}({', '.join(term.inputs)})",
                    got=calls[0].text,
                )
