"""The stages of a fit: derivative matching, multiple and single shooting, growing horizon."""

from ude.fitting.iteration import Iteration
from ude.fitting.stages.stages import DerivativeMatching, GrowingHorizon, MultipleShooting, SingleShooting

__all__ = [
    "DerivativeMatching",
    "GrowingHorizon",
    "Iteration",
    "MultipleShooting",
    "SingleShooting",
]
