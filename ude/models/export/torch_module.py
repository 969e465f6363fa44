"""Equations as a standalone `torch.nn.Module`: source that needs torch and nothing of `ude`."""

from __future__ import annotations

import keyword

import sympy
from torch import nn

from ude.models.equations.functions import guard_branches
from ude.models.equations.printer import ArrayPrinter
from ude.models.export.equation_set import EquationSet

_RESERVED = frozenset({"torch", "nn", "self", "t", "u", "rates", *keyword.kwlist, *dir(nn.Module())})


class _TorchPrinter(ArrayPrinter):
    library = "torch"

    def function(self, name: str, arguments: list[str]) -> str:
        if name == "heaviside":
            return f"((torch.sign({arguments[0]}) + 1.0)/2.0)"
        return super().function(name, arguments)

    def unknown(self, name: str, arguments: list[str]) -> str:
        return f"self.{name}({', '.join(arguments)})"

    def last_value(self, value: sympy.Expr) -> str:
        # of two plain numbers torch would make a tensor of its default type, which is single precision
        return self.tensor(value)

    def tensor(self, value: sympy.Expr) -> str:
        """The value as a tensor where it is a plain number."""
        text = str(self._print(value))
        return f"torch.as_tensor({text}, dtype=u.dtype, device=u.device)" if value.is_number else text

    def _print_Pi(self, expr: sympy.Expr) -> str:
        return "torch.pi"

    def _minmax(self, name: str, expr: sympy.Expr) -> str:
        ordered = sorted(expr.args, key=sympy.default_sort_key)
        # torch.minimum takes no plain number
        return self.function(name, [self.tensor(argument) for argument in ordered])


def write_torch_module(source: EquationSet, digits: int | None) -> str:
    """A module ``RightHandSide`` with ``forward(t, u)``, the form that torchdiffeq takes.

    ``u`` and the result: (*batch, state). Every parameter is a trainable `nn.Parameter` in double precision. Unknown
    functions are arguments of the constructor. Names that Python or `nn.Module` keep get a trailing underscore.
    """
    printer = _TorchPrinter(digits)
    equations, values, functions = source.equations, source.values, source.functions
    names, rates = source.renamed(_RESERVED)
    states = [names[state] for state in equations]
    lines = ["import torch", "from torch import nn", "", "", "class RightHandSide(nn.Module):"]
    lines.append(
        f'    """d({", ".join(equations)})/dt = forward(t, u), with u and the result of shape (*batch, state)."""'
    )
    arguments = "".join(f", {names[name]}" for name in functions)
    lines += ["", f"    def __init__(self{arguments}):", "        super().__init__()"]
    lines += [f"        self.{names[name]} = {names[name]}" for name in functions]
    lines += [
        f"        self.{names[name]} = nn.Parameter(torch.tensor({printer.double(value)}, dtype=torch.float64))"
        for name, value in values.items()
    ]
    lines += ["", "    def forward(self, t, u):"]
    lines.append(f"        {', '.join(states)}{',' if len(states) == 1 else ''} = u.unbind(-1)")
    lines += ["        t = torch.as_tensor(t, dtype=u.dtype, device=u.device)"] if "t" in source.used else []
    lines += [f"        {names[name]} = self.{names[name]}" for name in values if name in source.used]
    lines.append("        rates = [")
    lines += [f"            {printer.doprint(guard_branches(_numbers_put_in(rate)))}," for rate in rates]
    lines += [
        "        ]",
        "        rates = [torch.as_tensor(rate, dtype=u.dtype, device=u.device) for rate in rates]",
        "        return torch.stack([rate.expand(u.shape[:-1]) for rate in rates], -1)",
    ]
    return "\n".join([*lines, ""])


def _numbers_put_in(rhs: sympy.Expr) -> sympy.Expr:
    """Functions of plain numbers, ``exp(2)``, as numbers: torch's functions take tensors only."""
    fixed = {
        node: sympy.Float(node.evalf(17))
        for node in sympy.preorder_traversal(rhs)
        if node.is_number and not node.is_Number and node != sympy.pi
    }
    return rhs.xreplace(fixed)
