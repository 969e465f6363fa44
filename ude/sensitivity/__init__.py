"""How the gradient of a solve is computed: one file a family, each handed the engine as an argument."""

from ude.sensitivity.backsolve_adjoint import BacksolveAdjoint
from ude.sensitivity.discrete_adjoint import DiscreteAdjoint
from ude.sensitivity.forward_sensitivity import ForwardSensitivity
from ude.sensitivity.sensitivity import SensitivityAlgorithm, Solved

__all__ = ["BacksolveAdjoint", "DiscreteAdjoint", "ForwardSensitivity", "SensitivityAlgorithm", "Solved"]
