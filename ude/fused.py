"""What the fused engine makes of a problem: `ude.fused.source(prob, alg)`."""

from __future__ import annotations

from typing import Any, Literal

from ude.engines import FUSED
from ude.errors import InputError
from ude.methods import Algorithm
from ude.problems import ODEProblem
from ude.solve import solve


def source(
    prob: ODEProblem, alg: Algorithm | None = None, *, target: Literal["c", "cuda"] = "c", **options: Any
) -> str:
    """Return the C program that solves a problem; with its reverse sweep where a gradient could be asked for.

    Args:
        prob, alg, options: As of `solve`, of which one step is tried.
        target: "c", the program that runs; or "cuda", the same for GPUs, one trajectory a thread, on which `solve` does
            not run it yet.

    Raises:
        EngineRefused: The problem cannot be fused; says why.
        InputError: As of `solve`.
    """
    if target not in ("c", "cuda"):
        raise InputError("there is no such target", expected="'c' or 'cuda'", got=repr(target))
    with FUSED.noting() as kernels:
        solve(prob, alg, **{**options, "engine": FUSED.name, "maxiters": 1})
    path, spec = kernels[-1]
    return FUSED.cuda(spec) if target == "cuda" else path.with_name("kernel.c").read_text(encoding="utf-8")
