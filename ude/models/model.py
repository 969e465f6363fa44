"""What training and discovery need to know of a right-hand side."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from ude.errors import InputError, ModelError
from ude.models.equations.names import did_you_mean
from ude.models.export.equation_set import EquationSet
from ude.models.networks import MLP
from ude.models.parameters import Parameter, ParameterStore, finite, unknown_parameter
from ude.models.terms import Neural, Symbolic, Term, call_term, describe_parameters, term_key
from ude.problems.ode import ODEProblem


@dataclass(frozen=True)
class TermCall:
    """One evaluation of a term's output: ``output = term(inputs)``; every tensor has the shape (*batch)."""

    inputs: dict[str, Tensor]
    output: Tensor


Recorder = dict[str, list[TermCall]]


class Model(nn.Module):
    """A right-hand side ``du/dt = f(u, p, t)`` whose states, parameters and terms have names.

    states:           names of the states, in the order of u's last axis
    terms:            name -> `Neural` or `Symbolic`; a network of several outputs is called by them, ``U1_U2``
    parameters_table: name -> `Parameter` as they are now; a constant ``c0`` of the formula ``U1`` is ``U1_c0``

    Subclasses give `_evaluate`.

    >>> model = ude.UDE("dx/dt = -k*x + U(x)", parameters={"k": 2.0})
    >>> known = model.replace({"U": ude.Symbolic({"U": "c0*x"}, inputs="x", parameters={"c0": 0.5})})
    >>> isinstance(known, ude.models.Model), known.unknown_outputs, known.values()["U_c0"]
    (True, (), 0.5)
    >>> prob = known.problem(u0=[1.0], tspan=(0.0, 1.0))
    >>> round(float(ude.solve(prob, ude.Tsit5(), reltol=1e-8, abstol=1e-8).u[-1, 0].detach()), 6)  # exp(-1.5)
    0.22313
    """

    def __init__(self, states: Sequence[str], table: Mapping[str, Parameter]) -> None:
        super().__init__()
        self.states = tuple(states)
        self.store = ParameterStore(table)
        self.terms = nn.ModuleDict()
        self._providers: dict[str, tuple[str, int]] = {}
        self._routes: dict[str, tuple[str | None, str]] = {}

    # -- what it computes -----------------------------------------------------------------------------------------

    def forward(self, u: Tensor, p: Any = None, t: Tensor | float = 0.0) -> Tensor:
        """``du/dt`` of the shape of u.

        u: (*batch, state); t: (*batch) or 0-d. p: None, or a mapping name -> value (natural units) that overrides
        parameters; a value is a number, 0-d or (*batch).

        Raises InputError when u does not have one entry a state, or p names a parameter that the model does not have.
        """
        return self._forward(u, p, t, None)

    def record_calls(self, u: Tensor, p: Any = None, t: Tensor | float = 0.0) -> Recorder:
        """What every term was given and gave while the right-hand side was computed: output name -> its calls."""
        recorder: Recorder = {name: [] for name in self._providers}
        self._forward(u, p, t, recorder)
        return recorder

    def _forward(self, u: Tensor, p: Any, t: Tensor | float, recorder: Recorder | None) -> Tensor:
        if u.ndim == 0 or u.shape[-1] != len(self.states):
            raise InputError(
                "u does not fit the model",
                expected=f"shape (*batch, {len(self.states)}) for {', '.join(self.states)}",
                got=str(tuple(u.shape)),
            )
        time = t if isinstance(t, Tensor) else torch.as_tensor(t, dtype=u.dtype, device=u.device)
        return self._evaluate(u, self.parameter_tensors(p, u), time, recorder)

    def _evaluate(self, u: Tensor, values: dict[str, Tensor], t: Tensor, recorder: Recorder | None) -> Tensor:
        raise NotImplementedError

    def _call(
        self, key: str, inputs: Sequence[Tensor], values: Mapping[str, Tensor], recorder: Recorder | None
    ) -> tuple[Tensor, ...]:
        """All outputs of the term `key`, with its constants from `values`."""
        term = self.term(key)
        outputs = call_term(term, inputs, lambda name: values[f"{key}_{name}"])
        if recorder is not None:
            for index, name in enumerate(term.outputs):
                if self._providers.get(name) == (key, index):
                    named = dict(zip(term.inputs, torch.broadcast_tensors(*inputs), strict=True))
                    recorder[name].append(TermCall(named, outputs[index]))
        return outputs

    def equation_set(self) -> EquationSet:
        """The equations, for `ude.export`."""
        raise NotImplementedError

    # -- parameters -----------------------------------------------------------------------------------------------

    @property
    def parameters_table(self) -> dict[str, Parameter]:
        """Every parameter, those of formulas included, with its value now (None: nobody has set or trained it yet)."""
        tables = {key: store.table() for key, store in self._stores().items()}
        return {name: tables[key][local] for name, (key, local) in self._routes.items()}

    def values(self) -> dict[str, float]:
        """The parameters now, in natural units (an unset one is read as the number that `forward` uses)."""
        tables = {key: store.values() for key, store in self._stores().items()}
        return {name: tables[key][local] for name, (key, local) in self._routes.items()}

    def set_values(self, values: Mapping[str, float]) -> None:
        """Set parameters in natural units.

        Raises InputError, and sets nothing, for an unknown name and for values not finite or outside the bounds.
        """
        parts: dict[str | None, dict[str, float]] = {}
        table = self.parameters_table
        for name, value in values.items():
            if name not in self._routes:
                raise unknown_parameter(name, self._routes)
            table[name].check(f"parameter {name}", finite(value, f"parameter {name}"))
            key, local = self._routes[name]
            parts.setdefault(key, {})[local] = value
        stores = self._stores()
        for key, part in parts.items():
            stores[key].set(part)

    def parameter_tensors(self, p: Any = None, like: Tensor | None = None) -> dict[str, Tensor]:
        """Every parameter in natural units as a tensor that carries gradients; `p` overrides by name."""
        overrides = self._overrides(p, like)
        stores = self._stores()
        return {
            name: overrides[name] if name in overrides else stores[key].value_of(local)
            for name, (key, local) in self._routes.items()
        }

    def _overrides(self, p: Any, like: Tensor | None) -> dict[str, Tensor]:
        if p is None:
            return {}
        if not hasattr(p, "keys") or not hasattr(p, "__getitem__"):
            raise InputError("p is not usable by a model", expected="None or a mapping name -> value", got=repr(p))
        overrides = {}
        for name in p.keys():  # noqa: SIM118  (a mapping by duck type need not iterate)
            if name not in self._routes:
                raise unknown_parameter(name, self._routes)
            value = p[name]
            if not isinstance(value, Tensor):
                value = torch.as_tensor(
                    value,
                    dtype=torch.float64 if like is None else like.dtype,
                    device=None if like is None else like.device,
                )
            overrides[name] = value
        return overrides

    def _stores(self) -> dict[str | None, ParameterStore]:
        stores: dict[str | None, ParameterStore] = {None: self.store}
        for key, term in self.terms.items():
            if isinstance(term, Symbolic):
                stores[key] = term.store
        return stores

    # -- terms ----------------------------------------------------------------------------------------------------

    def term(self, key: str) -> Term:
        """The term of that key in `terms`."""
        term = self.terms[key]
        if not isinstance(term, Neural | Symbolic):
            raise ModelError(f"{key} is not a term", expected="Neural or Symbolic", got=type(term).__name__)
        return term

    def provider(self, output: str) -> Term:
        """The term that gives `output`: ``model.provider("U1")``. Raises InputError for an unknown name."""
        if output not in self._providers:
            raise self._unknown_output(output)
        return self.term(self._providers[output][0])

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of all unknown functions, whether a network or a formula gives them."""
        return tuple(self._providers)

    @property
    def unknown_outputs(self) -> tuple[str, ...]:
        """The names of the unknown functions that are still given by networks."""
        return tuple(name for name in self._providers if isinstance(self.provider(name), Neural))

    def replace(self, terms: Mapping[str, Term]) -> Self:
        """A copy in which unknown functions are given by other terms: ``model.replace({"U1": Symbolic(...)})``.

        A network that gave U1 and U2 stays for U2, and goes when nothing uses it any more. A term of several
        outputs is named under each of them. The model and the given terms are left as they are.

        Raises InputError for a name that is no unknown function, or a term whose outputs or inputs do not fit.
        """
        if not isinstance(terms, Mapping):
            raise InputError("replace takes a mapping", expected='{"U1": Symbolic(...)}', got=repr(terms))
        for name, term in terms.items():
            self._check_replacement(name, term, terms)
        model = copy.deepcopy(self)
        unique = {id(term): term for term in terms.values()}
        model._install([copy.deepcopy(term) for term in unique.values()])
        return model

    def _check_replacement(self, name: str, term: Term, terms: Mapping[str, Term]) -> None:
        if name not in self._providers:
            raise self._unknown_output(name)
        if not isinstance(term, Neural | Symbolic):
            raise InputError(f"{name} cannot be replaced", expected="a Neural or a Symbolic", got=repr(term))
        if name not in term.outputs or any(terms.get(output) is not term for output in term.outputs):
            raise InputError(
                f"the term given for {name} has other outputs",
                expected=f"a term of {name}, named under each of its outputs",
                got=", ".join(term.outputs),
            )
        wanted = self.provider(name).inputs
        if term.inputs != wanted:
            raise InputError(
                f"the term given for {name} has other inputs", expected=", ".join(wanted), got=", ".join(term.inputs)
            )

    def _unknown_output(self, name: str) -> InputError:
        return InputError(
            f"{name} is not an unknown function of the model",
            expected=f"one of {', '.join(self._providers)}" if self._providers else "nothing, it has none",
            got=repr(name),
            fix=did_you_mean(str(name), self._providers),
        )

    def _install(self, terms: Iterable[Term]) -> None:
        """Put terms in place (a later one gives the outputs that it shares with an earlier one); drop unused ones."""
        for term in terms:
            key = term_key(term)
            while key in self.terms and self.term(key).outputs != term.outputs:
                key += "_"
            if key in self.terms:
                del self.terms[key]  # so that the order of `terms` is the order of precedence
            self.terms[key] = term
            for index, output in enumerate(term.outputs):
                self._providers[output] = (key, index)
        needed = {key for key, _ in self._providers.values()}
        for key in [key for key in self.terms if key not in needed]:
            del self.terms[key]
        self._routes = self._find_routes()
        self._compile()

    def _find_routes(self) -> dict[str, tuple[str | None, str]]:
        routes: dict[str, tuple[str | None, str]] = {}
        for key, store in self._stores().items():
            for local in store.names():
                name = local if key is None else f"{key}_{local}"
                if name in routes or name in self.states:
                    raise ModelError(
                        f"the constant {local} of the formula {key} would be called {name}, as something else is",
                        fix=f"Rename {local}.",
                    )
                routes[name] = (key, local)
        return routes

    def _compile(self) -> None:
        """Prepare what `_evaluate` needs; called whenever the terms have changed."""

    # -- going elsewhere ------------------------------------------------------------------------------------------

    def problem(self, u0: Any, tspan: tuple[Any, Any]) -> ODEProblem:
        """``ODEProblem(model, u0, tspan)`` with the names of the states."""
        return ODEProblem(self, u0, tspan, names=self.states)

    def to_dict(self) -> dict[str, Any]:
        """A description in plain data (JSON, TOML); with the `state_dict` it restores the model."""
        return {
            "states": list(self.states),
            "parameters": describe_parameters(self.store.table()),
            "terms": [self.term(key).describe() for key in self.terms],
        }


_NAMES, _BOUND = [str], (float, type(None))
_PARAMETERS = {str: {"value?": _BOUND, "fitted": bool, "lower?": _BOUND, "upper?": _BOUND}}
_TERM = {"kind": str, "inputs": _NAMES}
#: What `Model.to_dict` writes, for `untrusted.check`.
SCHEMA = {
    "kind": str,
    "states": _NAMES,
    "parameters": _PARAMETERS,
    "terms": [
        (
            {**_TERM, "outputs": _NAMES, "width": int, "depth": int, "activation": str, "seed": int},
            {**_TERM, "expressions": {str: str}, "parameters": _PARAMETERS},
            {**_TERM, "outputs": _NAMES, "class": str},
        )
    ],
}


def parameters_from_description(description: Mapping[str, Mapping[str, Any]]) -> dict[str, Parameter]:
    """The inverse of `describe_parameters`; a key that is left out (TOML has no null) means None."""
    return {
        name: Parameter(entry.get("value"), entry["fitted"], entry.get("lower"), entry.get("upper"))
        for name, entry in description.items()
    }


def terms_from_description(
    descriptions: Iterable[Mapping[str, Any]], modules: Mapping[str, nn.Module] | None = None
) -> list[Term]:
    """Terms from `to_dict`; `modules` gives the user's own modules by output name.

    Raises InputError when a module is missing or a kind is unknown.
    """
    terms: list[Term] = []
    for entry in descriptions:
        outputs, inputs = tuple(entry.get("outputs", ())), tuple(entry["inputs"])
        if entry["kind"] == "mlp":
            terms.append(MLP(outputs, inputs, entry["width"], entry["depth"], entry["activation"], entry["seed"]))
        elif entry["kind"] == "symbolic":
            terms.append(Symbolic(entry["expressions"], inputs, parameters_from_description(entry["parameters"])))
        elif entry["kind"] == "module":
            module = next((modules[name] for name in outputs if name in modules), None) if modules else None
            if module is None:
                raise InputError(
                    f"the network of {', '.join(outputs)} is a module of your own and must be given",
                    expected=f'modules={{"{outputs[0]}": {entry["class"]}(...)}}',
                )
            terms.append(module if isinstance(module, Neural) else Neural(module, inputs, outputs))
        else:
            raise InputError("unknown kind of term", expected="mlp, symbolic or module", got=repr(entry["kind"]))
    return terms
