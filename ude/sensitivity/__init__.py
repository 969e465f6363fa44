"""How the gradient of a solve is computed: one file a family, each handed the engine as an argument."""

from ude.sensitivity.autograd import Autograd
from ude.sensitivity.backsolve_adjoint import BacksolveAdjoint
from ude.sensitivity.base import SensitivityAlgorithm, Solved
from ude.sensitivity.discrete_adjoint import DiscreteAdjoint
from ude.sensitivity.forward_sensitivity import ForwardSensitivity
from ude.sensitivity.interpolating_adjoint import GaussAdjoint, InterpolatingAdjoint
from ude.sensitivity.quadrature_adjoint import QuadratureAdjoint
from ude.sensitivity.steady_state_adjoint import SteadyStateAdjoint

__all__ = [
    "Autograd",
    "BacksolveAdjoint",
    "DiscreteAdjoint",
    "ForwardSensitivity",
    "GaussAdjoint",
    "InterpolatingAdjoint",
    "QuadratureAdjoint",
    "SensitivityAlgorithm",
    "Solved",
    "SteadyStateAdjoint",
]
