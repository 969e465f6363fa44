"""The table of docs/sensitivities.md that says how accurate each gradient is: every number is measured again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ude
from tests.sensitivities_for_tests import SENSITIVITIES

DOUBLE = torch.float64
PAGE = Path(__file__).parents[2] / "docs" / "sensitivities.md"
HEADER = "| error of the gradient at 1e-8 |"


def logistic(k: Tensor) -> Tensor:
    return 1 / (1 + 9 * torch.exp(-2 * k))


#: Column -> method, f, u0, and u(2) in closed form, all at k = 0.8.
COLUMNS: dict[str, tuple[ude.methods.Algorithm, Callable[..., Tensor], float, Callable[[Tensor], Tensor]]] = {
    "smooth f": (ude.Tsit5(), lambda u, p, t: p.k * u * (1 - u), 0.1, logistic),
    "smooth f, FBDF": (ude.FBDF(), lambda u, p, t: p.k * u * (1 - u), 0.1, logistic),
    "f with a kink": (
        ude.Tsit5(),
        lambda u, p, t: -p.k * u.clamp(min=0.4),
        1.0,
        lambda k: 0.4 - 0.4 * k * (2 - math.log(2.5) / k),
    ),
    "switch of time": (
        ude.Tsit5(),
        lambda u, p, t: torch.where(t > p.k, -u, 0.0 * u),
        1.0,
        lambda k: torch.exp(k - 2),
    ),
}


def error_of(column: str, sensealg: ude.sensitivity.SensitivityAlgorithm) -> float:
    alg, f, u0, closed = COLUMNS[column]
    k = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    (true,) = torch.autograd.grad(closed(k), k)
    prob = ude.ODEProblem(f, [u0], (0.0, 2.0), dict(k=k))
    end = ude.solve(prob, alg, saveat=[2.0], sensealg=sensealg, reltol=1e-8, abstol=1e-8).u[-1, 0]
    return abs(float(torch.autograd.grad(end, k)[0] - true))


def table() -> list[str]:
    """The table as it was measured: powers of ten that bound the errors."""
    lines = [f"{HEADER} {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for sensealg in SENSITIVITIES:
        bounds = [f"1e{math.ceil(math.log10(error_of(column, sensealg)))}" for column in COLUMNS]
        lines.append(f"| `{type(sensealg).__name__}()` | {' | '.join(bounds)} |")
    return lines


def written() -> dict[tuple[str, str], float]:
    lines = PAGE.read_text(encoding="utf-8").split(HEADER)[1].splitlines()
    names = [name.strip() for name in lines[0].strip(" |").split("|")]
    assert names == list(COLUMNS)
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines[2 : 2 + len(SENSITIVITIES)]]
    return {
        (row[0].strip("`()"), name): float(bound) for row in rows for name, bound in zip(names, row[1:], strict=True)
    }


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("sensealg", SENSITIVITIES, ids=lambda one: one.name)
def test_each_gradient_is_as_accurate_as_the_table_says(sensealg, column: str):
    bound = written()[type(sensealg).__name__, column]
    error = error_of(column, sensealg)
    # rounding differs between machines by more than it seems, where steps are chosen by it
    assert bound / 100 < error < 2 * bound


def test_a_second_derivative_is_what_torch_makes_of_f():
    n = torch.tensor(2.5, dtype=DOUBLE, requires_grad=True)

    def second(u0: float) -> float:
        prob = ude.ODEProblem(lambda u, p, t: u**p.n / (1 + u**p.n), [u0], (0.0, 1.0), dict(n=n))
        end = ude.solve(prob, ude.Tsit5(), sensealg=ude.sensitivity.Autograd(), saveat=[1.0]).u[-1, 0]
        (first,) = torch.autograd.grad(end, n, create_graph=True)
        return float(torch.autograd.grad(first, n)[0])

    assert math.isfinite(second(0.5))
    assert math.isnan(second(0.0))


if __name__ == "__main__":  # the lines of the page
    print("\n".join(table()))  # noqa: T201
