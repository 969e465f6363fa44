"""Autograd() can be differentiated twice; the others say that they cannot."""

from __future__ import annotations

import pytest
import torch

import ude
from tests.problems_for_tests import LV, lotka_volterra


def loss(theta: torch.Tensor, sensealg, alg=None) -> torch.Tensor:
    prob = ude.ODEProblem(lotka_volterra, theta[:2], (0.0, 2.0), dict(zip(LV, theta[2:], strict=True)))
    # fixed steps: the loss is then a smooth function whose own derivatives differences converge to
    sol = ude.solve(prob, alg or ude.Tsit5(), saveat=0.37, dt=0.05, adaptive=False, sensealg=sensealg)
    return (sol.u**2).sum()


@pytest.mark.parametrize("alg", [ude.Tsit5(), ude.Vern7(), ude.Rodas5P()], ids=lambda alg: alg.name)
def test_hessian_vector_products_agree_with_differences_of_the_gradient(alg):
    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)
    vector = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(theta, ude.sensitivity.Autograd(), alg), theta, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ vector, theta)

    def first(shift: torch.Tensor) -> torch.Tensor:
        # by the discrete adjoint, which shares no second derivative with what is tested
        at = (theta.detach() + shift).requires_grad_()
        return torch.autograd.grad(loss(at, ude.DiscreteAdjoint(), alg), at)[0]

    step = 1e-5
    numeric = (first(step * vector) - first(-step * vector)) / (2 * step)
    torch.testing.assert_close(product, numeric, rtol=1e-6, atol=1e-6 * float(numeric.abs().max()))


@pytest.mark.parametrize(
    "sensealg",
    [ude.DiscreteAdjoint(), ude.BacksolveAdjoint(), ude.InterpolatingAdjoint(), ude.ForwardSensitivity()],
    ids=lambda sensealg: sensealg.name,
)
def test_a_second_derivative_that_is_not_there_is_refused(sensealg):
    theta = torch.tensor([1.0, 1.2, *LV.values()], dtype=torch.float64, requires_grad=True)

    def twice() -> None:
        (gradient,) = torch.autograd.grad(loss(theta, sensealg), theta, create_graph=True)
        torch.autograd.grad(gradient.sum(), theta)

    with pytest.raises(Exception, match=r"first derivative only.*Autograd\(\)"):
        twice()
