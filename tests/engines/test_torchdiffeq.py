"""torchdiffeq as an engine: it stays inside the span."""

from __future__ import annotations

import pytest
import torch

import ude
from ude.errors import InputError

DOUBLE = torch.float64


@pytest.mark.parametrize("sensealg", [ude.DiscreteAdjoint(), ude.BacksolveAdjoint()], ids=lambda one: one.name)
@pytest.mark.parametrize("u0", [1.0, 100.0])
@pytest.mark.parametrize("span", [(0.0, 2.0), (2.0, 0.0), (0.5, 1.3)])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_a_forcing_may_end_with_the_span(method: str, span: tuple[float, float], u0: float, sensealg):
    low, high = sorted(span)
    forcing = ude.Interpolation([low, (low + high) / 2, high], [1.0, 2.0, 0.5], outside="error")
    found = []
    for alg, chosen in ((ude.TorchDiffEq(method), sensealg), (ude.Tsit5(), ude.DiscreteAdjoint())):
        k = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
        prob = ude.ODEProblem(lambda u, p, t: forcing(t).unsqueeze(-1) - p.k * u, [u0], span, dict(k=k))
        end = ude.solve(prob, alg, saveat=[span[1]], reltol=1e-8, abstol=1e-8, sensealg=chosen).u[-1, 0]
        found.append([float(end.detach()), float(torch.autograd.grad(end, k)[0])])
    assert found[0] == pytest.approx(found[1], rel=2e-5)


def test_f_is_never_called_outside_of_the_span():
    seen = []

    def f(u: torch.Tensor, p: object, t: torch.Tensor) -> torch.Tensor:
        seen.append(float(t))
        return -1e-3 * u

    ude.solve(ude.ODEProblem(f, [100.0], (0.0, 1.0)), ude.TorchDiffEq("dopri5"), saveat=[1.0])
    assert min(seen) >= 0.0
    assert max(seen) <= 1.0


def test_a_switch_that_moves_is_refused_since_torchdiffeq_does_not_stop():
    lag = torch.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    prob = ude.ODEProblem(lambda u, p, t: torch.where(t > p.lag, -u, 0.0 * u), [1.0], (0.0, 2.0), dict(lag=lag))
    with pytest.raises(InputError, match=r"the time of a switch of f \(gt\) moves with a parameter"):
        ude.solve(prob, ude.TorchDiffEq("dopri5"), saveat=[2.0])
