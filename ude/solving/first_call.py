"""The first call of f: what it shows about f is said before the solve begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ude.errors import InputError
from ude.problems.function import DETERMINISTIC, require_evaluation_mode
from ude.problems.ode import FlatRightHandSide, ODEProblem

# What Python and torch raise where shapes, types or arguments do not fit; other errors are the author's own.
_MISMATCHES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


def first_call(
    f: FlatRightHandSide,
    state: Float[Tensor, "*batch n"],
    p: Sequence[Tensor],
    t: Float[Tensor, "*batch"],
    *,
    gradient: bool,
) -> tuple[FlatRightHandSide, Any]:
    """Call f at the start, without a graph from the leaves p.

    Args:
        gradient: Whether the derivative of f will be asked for.

    Returns:
        The right-hand side, told to run with a graph where f differentiates by itself; and what f returned.

    Raises:
        InputError: f fails, draws random numbers, depends on trained tensors that are not in p, or cuts its own
            derivative off.
    """
    random = torch.get_rng_state() if state.device.type == "cpu" else None
    f, du = _differentiating(f, state, p, t)
    if random is not None and not torch.equal(random, torch.get_rng_state()):
        with torch.no_grad():
            again = f(state, p, t)
        if not torch.equal(again, f(state, p, t)):
            raise InputError(
                DETERMINISTIC,
                got="an f that draws random numbers",
                fix="Put dropout into evaluation mode (net.eval()), and draw noise before the solve: an "
                "ude.Interpolation of random numbers, or parameters in p.",
            )
    if gradient and f.differentiates and isinstance(du, Tensor) and du.shape == state.shape:
        _require_derivative(f, state, p, t, du)
    return f, du


def _require_derivative(f: FlatRightHandSide, state: Tensor, p: Sequence[Tensor], t: Tensor, du: Tensor) -> None:
    """Compare df/du of an f that differentiates by itself with a difference, in one direction.

    An f that detaches its state, or takes its derivative without create_graph, has a graph that ends there.
    """
    x = state.detach().requires_grad_()
    index = torch.arange(1, x.numel() + 1, dtype=x.dtype, device=x.device).view(x.shape)
    # no two entries alike, so that none cancel
    direction, weight = torch.cos(index), torch.sin(2.0 * index)
    with torch.enable_grad():
        (pulled,) = torch.autograd.grad(f(x, p, t), x, weight, allow_unused=True)
    ours = 0.0 if pulled is None else float((pulled * direction).sum())
    eps = torch.finfo(x.dtype).eps
    step = eps ** (1 / 3) * (1.0 + float(state.abs().max()))
    with torch.no_grad():
        ahead, behind = f(state + step * direction, p, t), f(state - step * direction, p, t)
    right = float((weight * (ahead - behind)).sum()) / (2.0 * step)
    noise = 100.0 * eps * float(du.abs().sum()) / step
    if abs(ours - right) > 0.01 * (abs(ours) + abs(right)) + noise:
        raise InputError(
            "f must keep the graph of the derivative that it takes, or no gradient passes through it",
            expected=f"a slope of {right:.4g} by u, as differences give it",
            got=f"{ours:.4g}",
            fix="Write u.requires_grad_() without detach(), and torch.autograd.grad(..., create_graph=True).",
        )


def _differentiating(
    f: FlatRightHandSide, state: Tensor, p: Sequence[Tensor], t: Tensor
) -> tuple[FlatRightHandSide, Any]:
    """Call f as it is, or with a graph from u where it needs one, as a Hamiltonian network does."""
    try:
        # detached, so that an f that calls u.requires_grad_() does not do so to the solver's tensor
        with explained_errors(f, state, p, t):
            du = f(state.detach(), p, t.detach())
    except InputError as error:
        if "require grad" not in str(error.__cause__):
            raise
        du = None
    if du is not None and not (isinstance(du, Tensor) and du.requires_grad):
        return f, du
    tracked = replace(f, differentiates=True)
    with torch.enable_grad(), explained_errors(f, state, p, t):
        once, twice = (tracked(state, p, t) for _ in range(2))
    # a leaf that f creates is a new one in each call; a leaf that both calls share was captured
    if isinstance(once, Tensor) and isinstance(twice, Tensor):
        shared = {id(leaf) for leaf in leaves_of(once)} & {id(leaf) for leaf in leaves_of(twice)}
        if shared:
            raise InputError(
                "f depends on trainable tensors that are not in p, so no gradient would reach them",
                fix="Give them as p=dict(...) (modules too), or make f an nn.Module that owns them.",
            )
        once = once.detach()
    return tracked, once


def leaves_of(value: Tensor) -> list[Tensor]:
    """The leaves of the graph that a value was computed by."""
    found, seen, todo = [], set(), [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return found


@contextmanager
def explained_errors(f: FlatRightHandSide, state: Tensor, p: Sequence[Tensor], t: Tensor) -> Iterator[None]:
    """Calls of f at the start, whose errors say what does not fit; the author's own pass unchanged.

    Raises:
        InputError: Layers of f are in training mode, or a call fails.
    """
    require_evaluation_mode((*f.modules, *((f.f,) if isinstance(f.f, nn.Module) else ())))
    try:
        yield
    except _MISMATCHES as error:
        if type(error) not in _MISMATCHES:  # the author's own, or one of ude.errors
            raise
        raise _explained(error, f, state, p, t) from error


def _explained(error: Exception, f: FlatRightHandSide, state: Tensor, p: Sequence[Tensor], t: Tensor) -> InputError:
    numbers = [leaf for leaf in p if leaf.is_floating_point()]
    for leaf in numbers:
        if leaf.device != state.device:
            return InputError(
                "u0 and the parameters of f must be on one device",
                got=f"u0 on {state.device} and parameters on {leaf.device}",
                fix=f"Write net.to({str(state.device)!r}), or give u0 on {leaf.device}.",
            )
    for leaf in numbers:
        if leaf.dtype != state.dtype:
            name = str(leaf.dtype).removeprefix("torch.")
            return InputError(
                "u0 and the parameters of f must have one dtype",
                got=f"u0 of {state.dtype} and parameters of {leaf.dtype}",
                fix=f"Write net.to({state.dtype}), or give u0 as a tensor of {name}: torch.tensor([...], "
                f"dtype=torch.{name}).",
            )
    seen = state if f.axes is None else f.axes.view(state)
    first = str(error).splitlines()[0] if str(error) else ""
    return InputError(
        f"f(u, p, t) must work for u of shape {tuple(seen.shape)}, {state.dtype}, and t of shape {tuple(t.shape)}",
        got=f"{type(error).__name__}: {first}".rstrip(".: "),
        fix="f sees all trajectories at once: u is (*batch, state), so write u[..., 0], and t[..., None] beside u."
        if seen.ndim > 1
        else "",
    )


def require_finite(prob: ODEProblem) -> None:
    """Say that u0 or p are not finite, which is why a solve failed.

    Raises:
        InputError: They are not.
    """
    if not bool(torch.isfinite(prob.u0).all()):
        place = tuple((~torch.isfinite(prob.u0)).nonzero()[0].tolist())
        raise InputError("u0 must be finite", got=f"{float(prob.u0[place])!r} at index {', '.join(map(str, place))}")
    for path, leaf in pytree.tree_flatten_with_path(prob.p)[0]:
        tensors = [("", leaf)] if isinstance(leaf, Tensor) else []
        if isinstance(leaf, nn.Module):
            tensors = [(f".{name}", value) for name, value in leaf.named_parameters()]
        for name, value in tensors:
            wrong = ~torch.isfinite(value.detach())
            if bool(wrong.any()):
                got = float(value.detach()[wrong][0])
                raise InputError("p must be finite where f uses it", got=f"{got!r} in p{pytree.keystr(path)}{name}")
