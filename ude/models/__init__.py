"""Right-hand sides: text, SymPy or torch, with networks and formulas as named terms."""

from __future__ import annotations

from ude.models.equations.parser import parse_expression
from ude.models.equations.printer import to_text
from ude.models.equations.torch_function import to_torch
from ude.models.function_model import FunctionModel
from ude.models.model import Model, TermCall
from ude.models.networks import ACTIVATIONS, MLP
from ude.models.neural_ode import NeuralODE
from ude.models.observation import Observation
from ude.models.parameters import Parameter, parse_parameters
from ude.models.terms import Neural, Symbolic
from ude.models.universal import UDE

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "UDE",
    "FunctionModel",
    "Model",
    "Neural",
    "NeuralODE",
    "Observation",
    "Parameter",
    "Symbolic",
    "TermCall",
    "parse_expression",
    "parse_parameters",
    "to_text",
    "to_torch",
]
