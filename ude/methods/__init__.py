"""Numbers only: tableaus and step-size controllers. No torch below this line."""

from ude.methods.controller import PIController
from ude.methods.esdirk import (
    TRBDF2,
    DiagonallyImplicitRungeKutta,
    DiagonallyImplicitTableau,
    ImplicitEuler,
    KenCarp3,
    KenCarp4,
    KenCarp5,
    Kvaerno3,
    Kvaerno4,
    Kvaerno5,
    Trapezoid,
)
from ude.methods.explicit_rk import BS3, DP5, Algorithm, ExplicitRungeKutta, Tsit5
from ude.methods.rosenbrock import Rodas4, Rodas5P, Rosenbrock23, RosenbrockMethod, RosenbrockTableau
from ude.methods.tableau import ExplicitTableau

__all__ = [
    "BS3",
    "DP5",
    "TRBDF2",
    "Algorithm",
    "DiagonallyImplicitRungeKutta",
    "DiagonallyImplicitTableau",
    "ExplicitRungeKutta",
    "ExplicitTableau",
    "ImplicitEuler",
    "KenCarp3",
    "KenCarp4",
    "KenCarp5",
    "Kvaerno3",
    "Kvaerno4",
    "Kvaerno5",
    "PIController",
    "Rodas4",
    "Rodas5P",
    "Rosenbrock23",
    "RosenbrockMethod",
    "RosenbrockTableau",
    "Trapezoid",
    "Tsit5",
]
