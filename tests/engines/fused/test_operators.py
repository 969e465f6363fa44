"""Every operator that kernels are said to know, and its neighbors: values and derivatives are torch's.

Operators of one table go into one right-hand side, each the mean of what it makes of the whole state, so that a kernel
tests them all. A batch with one trajectory an operator gives the derivative of each of them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ude
from ude.compile.build import why_no_compiler
from ude.errors import EngineRefused

pytestmark = pytest.mark.skipif(why_no_compiler() is not None, reason="there is no C compiler")

Operator = Callable[[Tensor], Tensor]
DOUBLE = torch.float64
# what operators see of the state: more numbers than are written out one by one, and no multiple of a vector
SIZE = 10
MATRIX = torch.randn(5, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
TAPS = torch.randn(2, 1, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
PICKED = torch.tensor([0, 2, 2])


def by_name(where: object, names: str, inner: Operator) -> dict[str, Operator]:
    return {name: (lambda x, name=name: getattr(where, name)(inner(x))) for name in names.split()}


def pairs(names: str) -> dict[str, Operator]:
    return {name: (lambda x, name=name: getattr(torch, name)(x, x.roll(1, -1) + 0.1)) for name in names.split()}


def positive(x: Tensor) -> Tensor:
    return x.abs() + 0.3


def rows(x: Tensor) -> Tensor:
    return x.reshape(-1, 1, SIZE)


def picked(x: Tensor) -> Tensor:
    return PICKED.expand(*x.shape[:-1], 3)


def square(x: Tensor) -> Tensor:
    return x[..., :9].unflatten(-1, (3, 3))


def written_in_place(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., 1:] = x[..., :-1]
    y[..., 0] = x[..., 1]
    y.mul_(2).add_(x)
    return y


POINTWISE = {
    **by_name(
        torch,
        "sin cos tan tanh sinh cosh exp exp2 expm1 sigmoid atan asinh erf erfc abs sign sgn square neg floor ceil "
        "round trunc frac relu positive deg2rad rad2deg sinc nan_to_num",
        lambda x: x,
    ),
    **by_name(torch, "log log2 log10 log1p sqrt rsqrt reciprocal lgamma", positive),
    **by_name(torch, "asin acos atanh", lambda x: 0.9 * torch.tanh(x)),
    "logit": lambda x: torch.logit(torch.sigmoid(x)),
    "acosh": lambda x: torch.acosh(1.5 + x.abs()),
    "special": lambda x: torch.special.ndtr(x) + torch.special.expit(x) + torch.special.entr(positive(x)),
    "x**y": lambda x: positive(x) ** x.roll(1, -1),
    "2**x": lambda x: 2.0**x,
    **{f"x**{n}": (lambda x, n=n: positive(x) ** n) for n in (-2, -1, -0.5, 0, 0.5, 1, 1.7, 2, 3, 4)},
}
PAIRS = {
    **pairs(
        "add sub mul div true_divide minimum maximum fmin fmax max min atan2 arctan2 hypot fmod remainder logaddexp "
        "logaddexp2 copysign rsub"
    ),
    "xlogy": lambda x: torch.xlogy(x, positive(x)),
    "xlog1py": lambda x: torch.special.xlog1py(x, positive(x)),
    "lerp": lambda x: torch.lerp(x, x.roll(1, -1), 0.3),
    "lerp of tensors": lambda x: torch.lerp(x, x.roll(1, -1), x.roll(2, -1)),
    "addcmul": lambda x: torch.addcmul(x, x, x.roll(1, -1), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, positive(x.roll(1, -1)), value=0.5),
    "fmin of a constant": lambda x: torch.fmin(x, torch.tensor(0.2, dtype=DOUBLE)),
    "fmax of what is no number": lambda x: torch.fmax(x, torch.where(x > 0, math.nan, 0.0)),
}
ACTIVATIONS = {
    **by_name(
        functional,
        "softplus gelu silu elu selu celu mish hardtanh relu6 leaky_relu logsigmoid softsign tanhshrink hardswish",
        lambda x: x,
    ),
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "elu 1.5": lambda x: functional.elu(x, 1.5),
    "softplus 2": lambda x: functional.softplus(x, 2.0, 5.0),
    "threshold": lambda x: functional.threshold(x, 0.1, 0.5),
    "prelu": lambda x: functional.prelu(x, torch.tensor([0.2], dtype=DOUBLE)),
    "glu": lambda x: functional.glu(x, -1),
}
CHOICES = {
    "where": lambda x: torch.where(x > 0.2, x, 2 * x),
    "where and a number": lambda x: torch.where(x > 0.2, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0.5),
    "masked by position": lambda x: x.masked_fill(torch.arange(SIZE) % 2 == 0, 0.0),
    "bool times number": lambda x: (x > 0) * x,
    "bool to number": lambda x: (x < 0.1).to(x.dtype) * x,
    "and": lambda x: torch.where((x > 0) & (x < 1), x, -x),
    "or": lambda x: torch.where((x > 1) | (x < -1), x, -x),
    "xor": lambda x: torch.where((x > 0) ^ (x.roll(1, -1) > 0), x, -x),
    "not": lambda x: torch.where(~(x > 0), x, -x),
    "eq": lambda x: torch.where(x == x.roll(1, -1), x, -x),
    "ne": lambda x: torch.where(x != x.roll(1, -1), x, -x),
    "le, ge": lambda x: torch.where((x <= 0) | (x >= 0.5), x, 3 * x),
    "isnan": lambda x: torch.where(torch.isnan(x), 0.0, x),
    "isfinite": lambda x: torch.where(torch.isfinite(x), x, 0.0),
    "any": lambda x: torch.where((x > 1).any(-1, keepdim=True), x, -x),
    "all": lambda x: torch.where((x > -9).all(-1, keepdim=True), x, -x),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp by tensors": lambda x: torch.clamp(x, x.roll(1, -1) - 0.3, x.roll(1, -1) + 0.3),
    "clamp at one side": lambda x: x.clamp(min=0.1) + x.clamp(max=-0.1),
}
SUMS = {
    "linear": lambda x: functional.linear(x[..., :5], MATRIX, MATRIX[0]),
    "matmul": lambda x: x[..., :5] @ MATRIX,
    "matrix times vector": lambda x: (MATRIX @ x[..., :5].unsqueeze(-1)).squeeze(-1),
    "matmul of the state": lambda x: x.unflatten(-1, (2, 5)) @ x.unflatten(-1, (2, 5)).transpose(-1, -2),
    "einsum": lambda x: torch.einsum("...i,ij,...j->...", x[..., :5], MATRIX, x[..., 5:]),
    "outer by einsum": lambda x: torch.einsum("...i,...j->...ij", x[..., :5], x[..., 5:]),
    "vecdot": lambda x: torch.linalg.vecdot(x[..., :5], x[..., 5:]),
    "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6]),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "prod": lambda x: x.prod(-1),
    "cumsum": lambda x: x.cumsum(-1) * x,
    "cumprod": lambda x: x.cumprod(-1) * x,
    "norm": lambda x: x.norm(dim=-1),
    "norm 1": lambda x: x.norm(p=1, dim=-1),
    "norm 3": lambda x: x.norm(p=3, dim=-1),
    "largest norm": lambda x: x.norm(p=math.inf, dim=-1),
    "var": lambda x: x.var(-1),
    "std": lambda x: x.std(-1),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "softmax": lambda x: x.softmax(-1) * x,
    "log_softmax": lambda x: x.log_softmax(-1) * x,
    "layer_norm": lambda x: functional.layer_norm(x, (SIZE,)) * x,
    "rms_norm": lambda x: functional.rms_norm(x, (SIZE,)) * x,
    "group_norm": lambda x: functional.group_norm(x.reshape(-1, 2, 5), 2).reshape(x.shape) * x,
    "normalize": lambda x: functional.normalize(x, dim=-1) * x,
    "cosine_similarity": lambda x: functional.cosine_similarity(x[..., :5], x[..., 5:], dim=-1),
    "trapezoid": lambda x: torch.trapezoid(x, dx=0.1, dim=-1),
    "trace": lambda x: square(x).diagonal(dim1=-2, dim2=-1).sum(-1),
    "attention": lambda x: functional.scaled_dot_product_attention(square(x), square(x), square(x)),
}
MOVES = {
    "index": lambda x: x[..., [3, 1, 1]],
    "slice": lambda x: x[..., 1:8:3],
    "select": lambda x: x[..., 4],
    "gather": lambda x: x.gather(-1, picked(x)),
    "take_along_dim": lambda x: torch.take_along_dim(x, picked(x), -1),
    "index_select": lambda x: x.index_select(-1, torch.tensor([2, 3])),
    "cat": lambda x: torch.cat([x[..., 5:], x[..., :3]], -1),
    "stack": lambda x: torch.stack([x[..., 0], x[..., 3]], -1),
    "roll": lambda x: x.roll(2, -1) * x,
    "flip": lambda x: x.flip(-1) * x,
    "diff": lambda x: x.diff(dim=-1) ** 2,
    "gradient": lambda x: torch.gradient(x, dim=-1)[0] * x,
    "unfold": lambda x: x.unfold(-1, 3, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, -1)[..., ::3],
    "expand": lambda x: x[..., :1].expand(*x.shape[:-1], SIZE) * x,
    "split": lambda x: torch.mul(*x.split(5, -1)),
    "chunk": lambda x: torch.mul(*x.chunk(2, -1)),
    "unbind": lambda x: torch.stack(x.unbind(-1)[::2], -1),
    "transpose": lambda x: x.unflatten(-1, (2, 5)).transpose(-1, -2).flatten(-2) * x,
    "tril, triu": lambda x: square(x).tril() * square(x).triu(1).transpose(-1, -2),
    "diag_embed": lambda x: torch.diag_embed(x[..., :3]) @ MATRIX[:3, :3],
    "scatter": lambda x: torch.zeros_like(x).scatter(-1, PICKED[:2].expand(*x.shape[:-1], 2), x[..., :2]) * x,
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(-1, picked(x), x[..., :3]) * x,
    "index_add": lambda x: torch.zeros_like(x).index_add(-1, PICKED, x[..., :3]) * x,
    "detach": lambda x: x * x.detach(),
    "full_like": lambda x: torch.full_like(x, 2.0) * x,
    "searchsorted": lambda x: x * torch.searchsorted(torch.linspace(-2, 2, 7, dtype=DOUBLE), x.detach().contiguous()),
    "bucketize": lambda x: x * torch.bucketize(x.detach().contiguous(), torch.linspace(-2, 2, 7, dtype=DOUBLE)),
}
GRIDS = {
    **{
        f"pad {mode}": (lambda x, mode=mode: functional.pad(rows(x), (1, 1), mode=mode).reshape(*x.shape[:-1], -1) ** 2)
        for mode in ("constant", "circular", "reflect", "replicate")
    },
    "pad with a value": lambda x: functional.pad(x, (1, 2), value=0.7) ** 2,
    "conv1d": lambda x: functional.conv1d(rows(x), TAPS, padding=1).reshape(*x.shape[:-1], -1) ** 2,
    "conv1d on a ring": lambda x: (
        functional.conv1d(functional.pad(rows(x), (1, 1), mode="circular"), TAPS).reshape(*x.shape[:-1], -1) ** 2
    ),
    "conv1d that leaves cells out": lambda x: (
        functional.conv1d(rows(x), TAPS, stride=2, dilation=2).reshape(*x.shape[:-1], -1) ** 2
    ),
    "conv2d": lambda x: (
        functional.conv2d(square(x).reshape(-1, 1, 3, 3), TAPS[:, :, :2, None] * TAPS[:, :, None, :2], padding=1)
        .reshape(*x.shape[:-1], -1)
        .square()
    ),
    "laplacian": lambda x: (x.roll(1, -1) - 2 * x + x.roll(-1, -1)) * x,
    "upwind": lambda x: torch.where(x > 0, x - x.roll(1, -1), x.roll(-1, -1) - x) * x,
}
TABLES = {
    "pointwise": POINTWISE,
    "pairs": PAIRS,
    "activations": ACTIVATIONS,
    "choices": CHOICES,
    "sums and products": SUMS,
    "moves": MOVES,
    "grids": GRIDS,
}


def right_hand_side(table: dict[str, Operator]) -> Callable[[Tensor, object, Tensor], Tensor]:
    """Each operator's mean is the derivative of one state."""

    def f(u: Tensor, p: object, t: Tensor) -> Tensor:
        x = torch.cat([u, u.flip(-1), u], -1)[..., :SIZE]
        found = [operator(x).reshape(*u.shape[:-1], -1).mean(-1) for operator in table.values()]
        return torch.stack(found, -1)

    return f


def stepped(engine: str, table: dict[str, Operator], batch: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A step of Euler's method, and the derivative of one result a trajectory (of the sum, where there is one)."""
    count = len(table)
    start = torch.randn(count, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    u0 = start.expand(*batch, count).clone().requires_grad_()
    prob = ude.ODEProblem(right_hand_side(table), u0, (0.0, 1.0))
    sol = ude.solve(prob, ude.methods.Euler(), dt=1.0, adaptive=False, saveat=[1.0], engine=engine)
    end = sol.u[..., -1, :]
    chosen = end.diagonal().sum() if batch else (end * torch.arange(1.0, count + 1)).sum()
    return end.detach() - start, torch.autograd.grad(chosen, [u0])[0]


@pytest.mark.parametrize("layout", ["lanes", "one trajectory"])
@pytest.mark.parametrize("name", TABLES)
def test_operators_have_the_values_and_derivatives_of_torch(name: str, layout: str):
    table = TABLES[name]
    batch = (len(table),) if layout == "lanes" else ()
    (ours, of_ours), (theirs, of_theirs) = (stepped(engine, table, batch) for engine in ("fused", "torch"))
    close = torch.isclose(ours, theirs, rtol=1e-12, atol=1e-13, equal_nan=True).reshape(-1, len(table)).all(0)
    assert close.all(), [operator for operator, good in zip(table, close, strict=True) if not good]
    near = torch.isclose(of_ours, of_theirs, rtol=1e-10, atol=1e-11).all(-1)
    assert near.all(), [operator for operator, good in zip(table, near.reshape(-1), strict=False) if not good]
    assert of_theirs.isfinite().all()


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (lambda u: torch.erfinv(0.5 * torch.tanh(u)), "the operator aten.erfinv.default has no fused form"),
        (lambda u: u.sort(-1).values, "the operator aten.sort.default has no fused form"),
        (lambda u: torch.fft.rfft(u).abs()[..., :1] * u, "the operator aten._fft_r2c.default has no fused form"),
        (lambda u: u.float().double(), "f turns float64 numbers into float32, and kernels know one type"),
        (written_in_place, "f writes numbers into a part of a tensor, of which derivatives cannot be traced"),
        (lambda u: u.repeat(20).cumsum(-1)[..., :4], "a cumulated sum or product of more than 64 numbers"),
    ],
)
def test_what_has_no_fused_form_is_named_with_its_line(operator: Operator, said: str):
    u0 = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=DOUBLE, requires_grad=operator is written_in_place)
    prob = ude.ODEProblem(lambda u, p, t: operator(u), u0, (0.0, 1.0))
    with pytest.raises(EngineRefused) as caught:
        ude.solve(prob, ude.Tsit5(), engine="fused")
    assert said in str(caught.value)
    if operator is not written_in_place:
        assert "test_operators.py" in str(caught.value)


def test_what_writes_in_place_is_fused_where_no_gradient_is_asked_for():
    u0 = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=DOUBLE)
    prob = ude.ODEProblem(lambda u, p, t: written_in_place(u), u0, (0.0, 1.0))
    ours, theirs = (ude.solve(prob, ude.Tsit5(), saveat=0.5, engine=engine).u for engine in ("fused", "torch"))
    assert torch.allclose(ours, theirs, rtol=1e-12)
