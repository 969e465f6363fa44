"""Numbers only: tableaus and step-size controllers. No torch below this line."""

from ude.methods.controller import PIController
from ude.methods.explicit_rk import BS3, DP5, Algorithm, ExplicitRungeKutta, Tsit5
from ude.methods.tableau import ExplicitTableau

__all__ = ["BS3", "DP5", "Algorithm", "ExplicitRungeKutta", "ExplicitTableau", "PIController", "Tsit5"]
