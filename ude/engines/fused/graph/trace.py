"""Record a right-hand side, and the pullback of it, as graphs of core ATen operators."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ude.engines.fused.graph.program import Unfusable

#: f over leaves: (u, leaves, t) -> du
RightHandSide = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]


@lru_cache(maxsize=1)
def _decompositions() -> dict[Any, Callable[..., Any]]:
    from torch._decomp import core_aten_decompositions, get_decompositions

    aten = torch.ops.aten
    more = [
        aten.native_layer_norm,
        aten.native_layer_norm_backward,
        aten._softmax,
        aten._softmax_backward_data,
        aten._log_softmax,
        aten._log_softmax_backward_data,
        aten.gelu,
        aten.gelu_backward,
        aten.elu,
        aten.elu_backward,
        aten.leaky_relu,
        aten.leaky_relu_backward,
        aten.softplus,
        aten.softplus_backward,
        aten.mse_loss,
        aten.addmm,
        aten.baddbmm,
        aten.linalg_vector_norm,
        aten.var,
        aten.var_mean,
        aten.native_group_norm,
        aten.pixel_shuffle,
        aten.logaddexp,
        aten.log_sigmoid_forward,
        aten.log_sigmoid_backward,
        aten.heaviside,
        aten.hardtanh,
        aten.hardtanh_backward,
        aten.hardshrink,
        aten.hardshrink_backward,
        aten.softshrink,
        aten.softshrink_backward,
    ]
    return {**core_aten_decompositions(), **get_decompositions(more)}


def trace_forward(f: RightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> fx.GraphModule:
    """The graph of ``(u, *leaves, t) -> (du,)``."""

    def forward(u: Tensor, leaves: list[Tensor], t: Tensor) -> list[Tensor]:
        return [f(u, leaves, t)]

    return _graph(forward, u, list(leaves), t)


def trace_pullback(
    f: RightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor, wanted: Sequence[bool]
) -> fx.GraphModule:
    """The graph of ``(u, *leaves, t, cotangent of du) -> (cotangent of u, of every wanted leaf...)``."""

    def pullback(u: Tensor, leaves: list[Tensor], t: Tensor, cotangent: Tensor) -> list[Tensor]:
        def of(u: Tensor, chosen: list[Tensor]) -> Tensor:
            found = iter(chosen)
            return f(u, [next(found) if need else leaf for leaf, need in zip(leaves, wanted, strict=True)], t)

        chosen = [leaf for leaf, need in zip(leaves, wanted, strict=True) if need]
        pull = torch.func.vjp(of, u, chosen)[1]
        of_u, of_leaves = pull(cotangent)
        return [of_u, *of_leaves]

    return _graph(pullback, u, list(leaves), t, torch.ones_like(u))


def trace_jacobian(f: RightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor) -> fx.GraphModule:
    """The graph of ``(u, *leaves, t) -> (du/du,)``, shape (n, n) for a state of n numbers."""
    count = u.numel()

    def jacobian(u: Tensor, leaves: list[Tensor], t: Tensor) -> list[Tensor]:
        pull = torch.func.vjp(lambda u: f(u, leaves, t), u)[1]
        # one pullback a row, not a vmapped one: its zeros are known, so that they cost nothing
        rows = [pull(row.view(u.shape))[0].reshape(-1) for row in torch.eye(count, dtype=u.dtype).unbind(0)]
        return [torch.stack(rows)]

    return _graph(jacobian, u, list(leaves), t)


def line_of(f: RightHandSide, u: Tensor, leaves: Sequence[Tensor], t: Tensor, operator: str) -> str:
    """Where f calls an operator, as `` (line 12 of model.py: `...`)``; nothing where it is not found."""
    finder = _Finder(operator)
    with torch.no_grad(), finder:
        f(u, leaves, t)
    if finder.frame is None:
        return ""
    return f" (line {finder.frame.lineno} of {Path(finder.frame.filename).name}: `{finder.frame.line}`)"


class _Finder(TorchDispatchMode):
    """Notes the innermost line outside of torch and ude from which an operator is called first."""

    def __init__(self, operator: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operator = operator
        self.frame: traceback.FrameSummary | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.frame is None and func.overloadpacket.__name__ == self.operator:
            own = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_INNER)]
            self.frame = own[-1] if own else None
        return func(*args, **(kwargs or {}))


# a trailing separator, so that a folder next to the package is not taken for a part of it
_INNER = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, Path(__file__).parents[3]))


class _Rewritten(TorchFunctionMode):
    """Functions of torch in a form whose trace can be lowered.

    Rings are padded by putting their ends together, where torch writes into an empty tensor; of real numbers, `sgn` is
    `sign`, whose derivative is a plain zero.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.sgn, torch.Tensor.sgn) and not args[0].is_complex():
            return torch.sign(args[0])
        if func in (torch.nn.functional.pad, torch._C._nn.pad):
            bound = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if bound.get("mode") == "circular" and min(bound["pad"]) >= 0:
                return _ring(bound.get("input", bound.get("self")), bound["pad"])
        return func(*args, **kwargs)


def _ring(x: Tensor, pad: Sequence[int]) -> Tensor:
    for i in range(0, len(pad), 2):
        axis = x.ndim - 1 - i // 2
        size = x.shape[axis]
        x = torch.cat([x.narrow(axis, size - pad[i], pad[i]), x, x.narrow(axis, 0, pad[i + 1])], axis)
    return x


def _graph(function: Callable[..., list[Tensor]], *inputs: Any) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    functional = torch.func.functionalize(function, remove="mutations_and_views")
    try:
        # real tensors, not fake ones: the first trace in a process is then ten times faster
        with _Rewritten():
            return make_fx(functional, decomposition_table=_decompositions())(*inputs)
    except Exception as error:
        raise Unfusable(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "get a value out of" in text or "data-dependent" in text or "_local_scalar_dense" in text:
        return (
            "f decides by the value of a tensor (an `if`, float() or .item()); write it with torch.where, minimum or "
            "maximum"
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"f could not be traced for a single trajectory: {first[:200]}"
