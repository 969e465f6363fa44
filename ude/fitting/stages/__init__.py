"""The stages of a fit: derivative matching, multiple and single shooting, growing horizon."""

from ude.fitting.stages.stages import DerivativeMatching, GrowingHorizon, Iteration, MultipleShooting, SingleShooting

__all__ = [
    "DerivativeMatching",
    "GrowingHorizon",
    "Iteration",
    "MultipleShooting",
    "SingleShooting",
]
