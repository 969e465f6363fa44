"""How the gradient of a solve is computed: one file a family, each handed the engine as an argument."""

from ude.sensitivity.backsolve_adjoint import BacksolveAdjoint
from ude.sensitivity.discrete_adjoint import DiscreteAdjoint
from ude.sensitivity.sensitivity import SensitivityAlgorithm, Solved

__all__ = ["BacksolveAdjoint", "DiscreteAdjoint", "SensitivityAlgorithm", "Solved"]
