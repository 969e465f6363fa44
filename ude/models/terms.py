"""Terms: the named parts of a right-hand side that a network or a formula may provide.

`Neural` and `Symbolic` are called alike, so that one can replace the other in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, nn

from ude.errors import InputError, ModelError
from ude.models.equations.functions import KNOWN_FUNCTIONS, to_real_symbols
from ude.models.equations.names import split_names
from ude.models.equations.parser import parse
from ude.models.equations.printer import to_text
from ude.models.equations.torch_function import expand_together, to_torch
from ude.models.parameters import Parameter, ParametersLike, ParameterStore, merge_parameters


class Neural(nn.Module):
    """A network as a term: ``outputs = output_scale * module((inputs - input_shift) / input_scale)``.

    module:  maps (*batch, inputs) to (*batch, outputs); cast to float64 in place, as ``module.double()`` does
    inputs:  names of what it reads, "x, y"
    outputs: names of what it gives, "U1, U2"

    Raises InputError for names that are not names or repeat, and when `module` is not an `nn.Module`.

    >>> term = ude.Neural(torch.nn.Linear(2, 1), inputs="x, y", outputs="U")
    >>> term(torch.ones(3).double(), torch.ones(3).double()).shape
    torch.Size([3])
    """

    input_shift: Tensor
    input_scale: Tensor
    output_scale: Tensor

    def __init__(self, module: nn.Module, inputs: str | Iterable[str], outputs: str | Iterable[str]) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise InputError("the network of a Neural is not a torch module", expected="nn.Module", got=repr(module))
        self.inputs = split_names(inputs, "inputs of a network")
        self.outputs = check_outputs(split_names(outputs, "outputs of a network"))
        check_not_empty(self.inputs, self.outputs)
        self.module = module.to(torch.float64)
        self.register_buffer("input_shift", torch.zeros(len(self.inputs), dtype=torch.float64))
        self.register_buffer("input_scale", torch.ones(len(self.inputs), dtype=torch.float64))
        self.register_buffer("output_scale", torch.ones(len(self.outputs), dtype=torch.float64))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor (*batch) an input -> (*batch), or a tuple of them when there are several outputs.

        Raises ModelError for a wrong number of inputs or when the module does not give (*batch, outputs).
        """
        check_arity(self.outputs, self.inputs, len(inputs))
        x = torch.stack(expand_together(inputs, inputs[0]), -1)
        y = self.module((x - self.input_shift) / self.input_scale)
        expected = (*x.shape[:-1], len(self.outputs))
        if tuple(y.shape) != expected:
            raise ModelError(
                f"the network of {', '.join(self.outputs)} gives a wrong shape",
                expected=f"(*batch, outputs) = {expected}",
                got=str(tuple(y.shape)),
            )
        values = (y * self.output_scale).unbind(-1)
        return values[0] if len(values) == 1 else tuple(values)

    def set_scales(
        self,
        input_shift: Sequence[float] | Tensor | None = None,
        input_scale: Sequence[float] | Tensor | None = None,
        output_scale: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Set the scales (one number an input or output; None leaves them) so that the network sees numbers near one.

        Raises InputError for a wrong count, and for scales that are not finite and positive.
        """
        new = {"input_shift": input_shift, "input_scale": input_scale, "output_scale": output_scale}
        checked = {}
        for name, values in new.items():
            if values is None:
                continue
            buffer: Tensor = getattr(self, name)
            tensor = torch.as_tensor(values, dtype=buffer.dtype, device=buffer.device).detach()
            if tensor.shape != buffer.shape:
                raise InputError(
                    f"{name} has a wrong shape", expected=str(tuple(buffer.shape)), got=str(tuple(tensor.shape))
                )
            good = torch.isfinite(tensor) & ((tensor > 0) | torch.tensor(name == "input_shift"))
            if not bool(good.all()):
                raise InputError(
                    f"{name} is not usable",
                    expected="finite numbers" if name == "input_shift" else "finite positive numbers",
                    got=str(tensor.tolist()),
                )
            checked[name] = tensor
        for name, tensor in checked.items():
            getattr(self, name).copy_(tensor)

    def describe(self) -> dict[str, Any]:
        """What `Model.to_dict` writes; the module itself cannot be written, only its class named."""
        return {
            "kind": "module",
            "class": type(self.module).__name__,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
        }

    def extra_repr(self) -> str:
        return f"({', '.join(self.inputs)}) -> ({', '.join(self.outputs)})"


class Symbolic(nn.Module):
    """Formulas as a term: ``Symbolic({"U1": "c0*x*y"}, inputs="x, y", parameters={"c0": 0.02})``.

    expressions: output name -> formula (text or SymPy) in the inputs and the constants
    inputs:      names of what it reads; they need not all occur
    parameters:  constants, numbers (fitted) or `Parameter`. In a model the constant ``c0`` of ``U1`` is the
                 parameter ``U1_c0`` (of several outputs: ``U1_U2_c0``): a name that is a name in every language

    Raises ModelError for a formula that does not parse, for names that are neither inputs nor constants, and for
    constants that do not occur; InputError for what is not usable as names or numbers.

    >>> term = ude.Symbolic({"U": "c0*x*y"}, inputs="x, y", parameters={"c0": 0.5})
    >>> term(torch.tensor(2.0).double(), torch.tensor(3.0).double()).item()
    3.0
    """

    #: The generated function says all that these do: see `ude.compile.value_kinds.class_plan`.
    __untraced__ = ("expressions",)

    def __init__(
        self,
        expressions: Mapping[str, str | sympy.Expr],
        inputs: str | Iterable[str],
        parameters: ParametersLike | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(expressions, Mapping) or not expressions:
            raise InputError("a Symbolic has no formulas", expected='{"U1": "c0*x*y"}', got=repr(expressions))
        self.outputs = check_outputs(split_names(list(expressions), "outputs of a formula"))
        self.inputs = split_names(inputs, "inputs of a formula")
        if not self.inputs:
            raise InputError("a formula needs at least one input", got=repr(inputs))
        self.store = ParameterStore(merge_parameters(parameters, None, fitted=True))
        constants = self.store.names()
        for name in constants:
            if name in self.inputs:
                raise InputError(f"{name} is an input of the formula and a constant as well", fix="Rename one.")
        self.expressions = {
            name: self._read(text) for name, text in zip(self.outputs, expressions.values(), strict=True)
        }
        used = {free.name for expression in self.expressions.values() for free in expression.free_symbols}
        for name in constants:
            if name not in used:
                raise ModelError(f"the constant {name} does not occur in the formula", got=self._text())
        self._compile()

    def _read(self, formula: str | sympy.Expr) -> sympy.Expr:
        # By way of text, so that SymPy and text input are checked by the same code and mean the same.
        text = formula if isinstance(formula, str) else to_text(to_real_symbols(formula))
        known = (*self.inputs, *self.store.names())
        parsed = parse(text, symbols=known)
        parsed.refuse_other_names(known, "in a formula")
        parsed.refuse_calls("in a formula")
        return parsed.expression

    def _compile(self) -> None:
        self._function = to_torch(list(self.expressions.values()), (*self.inputs, *self.store.names()))

    def _text(self) -> str:
        return "; ".join(f"{name} = {to_text(formula)}" for name, formula in self.expressions.items())

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One tensor (*batch) an input -> (*batch), or a tuple of them when there are several outputs."""
        return self.evaluate(inputs, self.store.natural())

    def evaluate(self, inputs: Sequence[Tensor], constants: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        """As `forward`, with the constants given (natural units, by their own names)."""
        check_arity(self.outputs, self.inputs, len(inputs))
        like = expand_together(inputs, inputs[0])[0]
        values = self._function(*inputs, *(constants[name] for name in self.store.names()))
        values = expand_together(values, like)
        return values[0] if len(values) == 1 else values

    def parameters_table(self) -> dict[str, Parameter]:
        """The constants as they are now, by their own names."""
        return self.store.table()

    def describe(self) -> dict[str, Any]:
        """What `Model.to_dict` writes."""
        return {
            "kind": "symbolic",
            "expressions": {name: to_text(formula) for name, formula in self.expressions.items()},
            "inputs": list(self.inputs),
            "parameters": describe_parameters(self.store.table()),
        }

    def extra_repr(self) -> str:
        return f"({', '.join(self.inputs)}) -> {self._text()}"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._compile()


Term = Neural | Symbolic


def check_outputs(names: tuple[str, ...]) -> tuple[str, ...]:
    """Raise ModelError when an unknown function has the name of a known one."""
    for name in names:
        if name in KNOWN_FUNCTIONS:
            raise ModelError(f"the unknown function {name} has the name of a known function", fix="Rename it.")
    return names


def check_not_empty(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Raise InputError unless a network has something to read and something to give."""
    if not inputs or not outputs:
        got = f"({', '.join(inputs)}) -> ({', '.join(outputs)})"
        raise InputError("a network needs at least one input and one output", got=got)


def check_arity(outputs: tuple[str, ...], inputs: tuple[str, ...], count: int) -> None:
    """Raise ModelError unless a term is called with one tensor an input."""
    if count != len(inputs):
        raise ModelError(
            f"{', '.join(outputs)} is called with a wrong number of inputs",
            expected=f"{len(inputs)} ({', '.join(inputs)})",
            got=str(count),
        )


def term_key(term: Term) -> str:
    """The name of a term in `model.terms`: its outputs joined, ``U1_U2``; `nn.ModuleDict`'s own names get a ``_``."""
    key = "_".join(term.outputs)
    return f"{key}_" if hasattr(nn.ModuleDict, key) else key


def describe_parameters(table: Mapping[str, Parameter]) -> dict[str, dict[str, Any]]:
    """A table of parameters as plain data."""
    return {
        name: {"value": entry.value, "fitted": entry.fitted, "lower": entry.lower, "upper": entry.upper}
        for name, entry in table.items()
    }


def call_term(term: Term, inputs: Sequence[Tensor], constants: Callable[[str], Tensor] | None) -> tuple[Tensor, ...]:
    """All outputs of a term as a tuple; `constants` gives the constants of a formula by name, None: its own."""
    if isinstance(term, Symbolic) and constants is not None:
        values = term.evaluate(inputs, {name: constants(name) for name in term.store.names()})
    else:
        values = term(*inputs)
    return values if isinstance(values, tuple) else (values,)
