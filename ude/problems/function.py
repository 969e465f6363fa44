"""A right-hand side with what solvers may use of it: mass matrix, Jacobian, sparsity."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache
from inspect import Parameter
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ude.errors import InputError
from ude.methods.coloring import Coloring, color


def require_callable(f: Any, name: str, arguments: str = "u, p, t") -> None:
    """Check that f can be called with these arguments, in this order.

    Raises:
        InputError: It cannot; the message calls it `name`.
    """
    if not callable(f) or isinstance(f, type):
        got = f"the class {f.__name__}" if isinstance(f, type) else type(f).__name__
        raise InputError(f"{name} must be callable as {name}({arguments})", got=got, fix="Pass a function.")
    fault = _wrong_signature(f, arguments)
    if fault:
        raise InputError(
            f"{name} must be callable as {name}({arguments})", got=f"a function of {fault}", fix=_fix(f, arguments)
        )


def _wrong_signature(f: Any, arguments: str) -> str:
    """The arguments of f where it cannot be called with these; else nothing."""
    function, own = f, ""
    if isinstance(f, nn.Module) and "forward" not in f.__dict__:
        function, own = type(f).forward, "self, "
    elif isinstance(f, MethodType):
        function, own = f.__func__, "self, "
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):
        # keyed by the code, since each problem may have a new function of the same code
        return _wrong_code(function.__code__, len(function.__defaults__ or ()), own + arguments)
    try:
        return _wrong_order(inspect.signature(f.forward if isinstance(f, nn.Module) else f), arguments)
    except (TypeError, ValueError):  # a built-in function without a signature
        return ""


@lru_cache(maxsize=1024)
def _wrong_code(code: CodeType, defaults: int, arguments: str) -> str:
    parameters = [
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=0 if i >= code.co_argcount - defaults else _EMPTY)
        for i, name in enumerate(code.co_varnames[: code.co_argcount])
    ]
    more = code.co_varnames[code.co_argcount + code.co_kwonlyargcount :]
    if code.co_flags & inspect.CO_VARARGS:
        parameters.append(Parameter(more[0], Parameter.VAR_POSITIONAL))
    return _wrong_order(inspect.Signature(parameters), arguments)


_EMPTY = Parameter.empty


def _wrong_order(signature: inspect.Signature, arguments: str) -> str:
    wanted = arguments.split(", ")
    shown = f"({', '.join(list(signature.parameters)[wanted[0] == 'self' :])})"
    try:
        signature.bind(*wanted)
    except TypeError:
        return shown
    called = list(signature.parameters)[: len(wanted)]
    # the names of another order: f(t, u, p) would be called with the state as the time
    displaced = [name for i, name in enumerate(called) if name in wanted and wanted.index(name) != i]
    return shown if displaced else ""


def _fix(f: Any, arguments: str) -> str:
    if arguments != "u, p, t":
        return f"Write a function of {arguments}, in this order."
    if isinstance(f, nn.Module):
        return "Give the network in p: ODEProblem(lambda u, p, t: p.net(u), u0, tspan, p=dict(net=net))."
    count = getattr(getattr(f, "__code__", None), "co_argcount", 0)
    if count == 4:
        return "Return du/dt in place of writing it into du."
    return "The state comes first and the time last, and f returns du/dt: def f(u, p, t)."


#: What is asked of every right-hand side.
DETERMINISTIC = "f must give the same value for the same arguments"


def require_evaluation_mode(modules: Iterable[nn.Module]) -> None:
    """Refuse layers whose value is random, or depends on the other trajectories of a batch, while they are trained.

    Raises:
        InputError: There is one.
    """
    for layer in (layer for module in modules for layer in module.modules() if layer.training):
        random = isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
        if random or isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                DETERMINISTIC,
                got=f"{type(layer).__name__} in training mode",
                fix="Put the network into evaluation mode before: net.eval().",
            )


class ODEFunction(nn.Module):
    """The right-hand side of ``M u' = f(u, p, t)``, given to `ODEProblem` in place of f.

    With a singular mass matrix M this is a differential-algebraic equation (DAE). Its index must be 1: the algebraic
    equations, which are the combinations of rows in which M leaves no derivative, determine the algebraic variables.
    Without a mass matrix it is called and differentiated like f itself. It is a module, so that the parameters of an f
    that is a module are leaves of the gradient.

    Args:
        f: A function or `nn.Module` called as ``f(u, p, t)``, as of `ODEProblem`.
        mass_matrix: M, constant, of shape (state, state), possibly singular. None is the identity.
        jac: ``jac(u, p, t)`` returns df/du of shape ``(*batch, state, state)``, used by implicit methods in place
            of automatic differentiation, against which it is checked once, at the start.
        jac_prototype: Where df/du may have entries: a tensor, sparse or dense, or a SciPy sparse matrix, of shape
            (state, state), nonzero there. df/du then takes as many products as the pattern has colors.

    Raises:
        InputError: An argument cannot be used.

    >>> f = ODEFunction(lambda u, p, t: -u, mass_matrix=[[1.0, 0.0], [0.0, 0.0]])
    >>> f.mass_matrix.shape
    torch.Size([2, 2])
    """

    mass_matrix: Tensor | None

    def __init__(
        self,
        f: Callable[..., Tensor],
        mass_matrix: Any = None,
        jac: Callable[[Tensor, Any, Tensor], Tensor] | None = None,
        jac_prototype: Any = None,
    ) -> None:
        super().__init__()
        require_callable(f, "f")
        if jac is not None:
            require_callable(jac, "jac")
        if isinstance(f, ODEFunction):
            raise InputError("f must not be an ODEFunction", fix="Give all arguments together: ODEFunction(f.f, ...).")
        matrix = None if mass_matrix is None else _square(mass_matrix, "mass_matrix")
        if matrix is not None and matrix.requires_grad:
            raise InputError(
                "mass_matrix must be constant",
                got="a tensor that requires a gradient",
                fix="Detach it, or divide f by what is trained.",
            )
        self.f, self.jac = f, jac
        # not persistent: it is not trained, and a saved f is loaded into the same f
        self.register_buffer("mass_matrix", matrix, persistent=False)
        self.coloring: Coloring | None = None
        pattern = None if jac_prototype is None else _square(jac_prototype, "jac_prototype")
        if pattern is not None:
            rows, columns = (pattern != 0).nonzero(as_tuple=True)
            self.coloring = color(len(pattern), rows.tolist(), columns.tolist())
        given = matrix if pattern is None else pattern
        self.size = None if given is None else len(given)
        if pattern is not None and matrix is not None and len(pattern) != len(matrix):
            raise InputError(
                "mass_matrix and jac_prototype must have the same size",
                got=f"{tuple(matrix.shape)} and {tuple(pattern.shape)}",
            )

    def forward(self, u: Tensor, p: Any, t: Tensor, *more: Any) -> Tensor:
        value: Tensor = self.f(u, p, t, *more)
        return value

    def require_size(self, states: int) -> None:
        """Check that the matrices have the size of the state.

        Raises:
            InputError: They do not.
        """
        if self.size is not None and self.size != states:
            name = "jac_prototype" if self.mass_matrix is None else "mass_matrix"
            raise InputError(
                f"{name} must have the size of u0",
                expected=f"shape {(states, states)} for {states} states",
                got=f"shape {(self.size, self.size)}",
            )


class ExplicitForm(nn.Module):
    """``u' = M^-1 f(u, p, t)``, for methods that take no mass matrix."""

    inverse: Tensor

    def __init__(self, f: Callable[..., Tensor], mass_matrix: Float[Tensor, "n n"]) -> None:
        super().__init__()
        self.f = f
        self.register_buffer("inverse", torch.linalg.inv(mass_matrix), persistent=False)

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        value: Tensor = self.f(u, p, t)
        return value @ self.inverse.to(value).T


def innermost(f: Any) -> Any:
    """Return the function inside an `ODEFunction`, and any other f unchanged."""
    return f.f if isinstance(f, ODEFunction) else f


def _square(value: Any, name: str) -> Float[Tensor, "n n"]:
    # SciPy's sparse matrices have toarray, torch's sparse tensors to_dense
    dense = value.toarray() if hasattr(value, "toarray") else value
    try:
        matrix = dense if isinstance(dense, Tensor) else torch.as_tensor(dense, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be a matrix of numbers", got=type(value).__name__, fix=f"({error})") from None
    matrix = matrix.to_dense() if matrix.layout != torch.strided else matrix
    matrix = matrix if matrix.is_floating_point() else matrix.to(torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise InputError(f"{name} must be square", expected="shape (state, state)", got=f"shape {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{name} must be finite", got="NaN or infinity among its entries")
    return matrix
