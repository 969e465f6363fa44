"""Any torch right-hand side as a model, with parameters and terms by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ude.errors import InputError, ModelError
from ude.models.equations.names import TIME, did_you_mean, split_names
from ude.models.export.equation_set import EquationSet
from ude.models.model import SCHEMA, Model, Recorder, parameters_from_description, terms_from_description
from ude.models.parameters import ParametersLike, merge_parameters
from ude.models.terms import Neural, Symbolic, Term, term_key
from ude.untrusted import check

if TYPE_CHECKING:
    from ude.models.universal import UDE


class FunctionModel(Model):
    """A right-hand side written in torch, with named parameters and terms::

        def f(u, p, t):
            x, y = u.unbind(-1)
            return torch.stack([p.alpha*x - p.U1(x, y), p.U2(x, y) - p.delta*y], -1)

        ude.FunctionModel(f, states="x, y", parameters={"alpha": 1.3}, fit="delta", terms=[ude.MLP("U1, U2", "x, y")])

    `p` gives parameters by attribute or key, single outputs of terms (``p.U1(x, y)``) and whole terms by their joined
    name (``p.U1_U2(x, y)`` -> tuple). A term called twice with the same tensors is evaluated once. `replace` puts a
    `Symbolic` of the same inputs in the place of an output, wherever `f` calls it.

    Raises ModelError for names that clash; InputError for what is not usable.

    >>> f = lambda u, p, t: -p.k * u + p.U(u[..., 0])[..., None]
    >>> model = ude.FunctionModel(f, states="x", parameters={"k": 2.0}, terms=[ude.MLP("U", "x")])
    >>> model(torch.ones(7, 1).double()).shape, model.unknown_outputs
    (torch.Size([7, 1]), ('U',))
    """

    def __init__(
        self,
        f: Callable[[Tensor, Any, Tensor], Tensor],
        states: str | Iterable[str],
        parameters: ParametersLike | None = None,
        fit: str | Iterable[str] | None = None,
        terms: Term | Iterable[Term] = (),
    ) -> None:
        if not callable(f):
            raise InputError("the right-hand side is not callable", expected="f(u, p, t)", got=repr(f))
        names = split_names(states, "states")
        if not names:
            raise InputError("a model needs at least one state", expected='states="x, y"', got=repr(states))
        super().__init__(names, merge_parameters(parameters, fit))
        self.function = f
        given = [terms] if isinstance(terms, Neural | Symbolic) else list(terms)
        self._groups: dict[str, tuple[str, ...]] = {}
        taken = {TIME, *self.store.names()}
        for term in given:
            if not isinstance(term, Neural | Symbolic):
                raise InputError("a term is not usable", expected="ude.Neural, ude.MLP or ude.Symbolic", got=repr(term))
            self._groups[term_key(term)] = term.outputs
            for name in {*term.outputs, term_key(term)}:
                if name in taken:
                    raise ModelError(f"the name {name} is given twice", expected="distinct parameters and terms")
                taken.add(name)
        self._install(given)

    def _evaluate(self, u: Tensor, values: dict[str, Tensor], t: Tensor, recorder: Recorder | None) -> Tensor:
        result = self.function(u, _Namespace(self, values, recorder), t)
        if not isinstance(result, Tensor) or result.shape != u.shape:
            got = str(tuple(result.shape)) if isinstance(result, Tensor) else repr(result)
            raise ModelError(
                "the right-hand side gives a wrong shape", expected=f"that of u, {tuple(u.shape)}", got=got
            )
        return result

    def to_ude(self, observe: Mapping[str, str] | None = None) -> UDE:
        """The same model with its right-hand side as equations, read from a trace of the function.

        observe: observables (name -> formula) of the result, whose parameters stay too

        Raises ModelError for a function that is no formula (see `ude.models.tracing`).
        """
        from ude.models.tracing import to_ude

        return to_ude(self, observe)

    def equation_set(self) -> EquationSet:
        """The equations that a trace of the function gives, for `ude.export`; see `to_ude` for its errors."""
        return self.to_ude().equation_set()

    def to_dict(self) -> dict[str, Any]:
        """A description in plain data; the function itself is named only."""
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        groups = {key: list(outputs) for key, outputs in self._groups.items()}
        return {"kind": "function", "function": name, "groups": groups, **super().to_dict()}

    @classmethod
    def from_dict(
        cls,
        description: Mapping[str, Any],
        f: Callable[[Tensor, Any, Tensor], Tensor],
        modules: Mapping[str, nn.Module] | None = None,
    ) -> FunctionModel:
        """The model of `to_dict`, with the function `f` that a description cannot hold."""
        if description.get("kind") != "function":
            raise InputError(
                "this does not describe a FunctionModel", expected="kind 'function'", got=repr(description.get("kind"))
            )
        check(dict(description), {**SCHEMA, "function": str, "groups": {str: [str]}}, "the model")
        model = cls(f, description["states"], parameters_from_description(description["parameters"]))
        model._groups = {key: tuple(outputs) for key, outputs in description["groups"].items()}
        model._install(terms_from_description(description["terms"], modules))
        return model


class _Namespace(Mapping[str, Any]):
    """What a right-hand side sees as `p` during one evaluation: parameters and terms by attribute or key."""

    def __init__(self, model: FunctionModel, values: dict[str, Tensor], recorder: Recorder | None) -> None:
        self._model, self._values, self._recorder = model, values, recorder
        # Keyed by the tensors' identities; they are held in the entry, so that an identity cannot be given twice.
        self._memory: dict[tuple[Any, ...], tuple[tuple[Any, ...], tuple[Tensor, ...]]] = {}

    def __getitem__(self, name: str) -> Any:
        model = self._model
        if name in self._values:
            return self._values[name]
        if name in model._providers:
            return lambda *inputs: self._output(name, inputs)
        if name in model._groups:
            return lambda *inputs: tuple(self._output(output, inputs) for output in model._groups[name])
        raise InputError(
            f"{name} is neither a parameter nor a term of the model",
            expected=f"one of {', '.join(self)}",
            fix=did_you_mean(name, self),
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Any:
        return iter(dict.fromkeys((*self._values, *self._model._providers, *self._model._groups)))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _output(self, name: str, inputs: tuple[Any, ...]) -> Tensor:
        key, index = self._model._providers[name]
        place = (key, *map(id, inputs))
        if place not in self._memory:
            like = next((value for value in inputs if isinstance(value, Tensor)), torch.zeros((), dtype=torch.float64))
            tensors = [torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in inputs]
            self._memory[place] = (inputs, self._model._call(key, tensors, self._values, self._recorder))
        return self._memory[place][1][index]
