"""What the fused engine makes of a problem: `ude.fused.source(prob, alg)`."""

from __future__ import annotations

from typing import Any

from ude.engines import FUSED
from ude.methods import Algorithm
from ude.problems import ODEProblem
from ude.solve import solve


def source(prob: ODEProblem, alg: Algorithm | None = None, **options: Any) -> str:
    """Return the C program that solves a problem; with its reverse sweep where a gradient could be asked for.

    Args:
        prob, alg, options: As of `solve`, of which one step is tried.

    Raises:
        EngineRefused: The problem cannot be fused; says why.
        InputError: As of `solve`.
    """
    with FUSED.noting() as kernels:
        solve(prob, alg, **{**options, "engine": FUSED.name, "maxiters": 1})
    return kernels[-1].with_name("kernel.c").read_text(encoding="utf-8")
