"""Numbers only: tableaus and step-size controllers. No torch below this line."""

from ude.methods.bdf import FBDF
from ude.methods.coloring import Coloring
from ude.methods.controller import Controller, IController, PIController, PIDController
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
from ude.methods.explicit.dop853 import DP8
from ude.methods.explicit.explicit_rk import BS3, DP5, Algorithm, ExplicitRungeKutta, Tsit5
from ude.methods.explicit.low_order import RK4, Euler, Heun, Midpoint, Ralston
from ude.methods.explicit.verner import Vern6, Vern7, Vern9
from ude.methods.initialization import BrownFullBasicInit, CheckInit, InitializationAlgorithm, NoInit
from ude.methods.linear_solvers import GMRES, LU, LinearSolver
from ude.methods.rosenbrock import Rodas4, Rodas5P, Rosenbrock23, RosenbrockMethod, RosenbrockTableau
from ude.methods.switching import AutoSwitch, AutoTsit5, AutoVern7
from ude.methods.symplectic import (
    CandyRoz4,
    KahanLi6,
    KahanLi8,
    McLachlan4,
    PseudoVerletLeapfrog,
    SymplecticMethod,
    SymplecticTableau,
    VelocityVerlet,
)
from ude.methods.tableau import ExplicitTableau

__all__ = [
    "BS3",
    "DP5",
    "DP8",
    "FBDF",
    "GMRES",
    "LU",
    "RK4",
    "TRBDF2",
    "Algorithm",
    "AutoSwitch",
    "AutoTsit5",
    "AutoVern7",
    "BrownFullBasicInit",
    "CandyRoz4",
    "CheckInit",
    "Coloring",
    "Controller",
    "DiagonallyImplicitRungeKutta",
    "DiagonallyImplicitTableau",
    "Euler",
    "ExplicitRungeKutta",
    "ExplicitTableau",
    "Heun",
    "IController",
    "ImplicitEuler",
    "InitializationAlgorithm",
    "KahanLi6",
    "KahanLi8",
    "KenCarp3",
    "KenCarp4",
    "KenCarp5",
    "Kvaerno3",
    "Kvaerno4",
    "Kvaerno5",
    "LinearSolver",
    "McLachlan4",
    "Midpoint",
    "NoInit",
    "PIController",
    "PIDController",
    "PseudoVerletLeapfrog",
    "Ralston",
    "Rodas4",
    "Rodas5P",
    "Rosenbrock23",
    "RosenbrockMethod",
    "RosenbrockTableau",
    "SymplecticMethod",
    "SymplecticTableau",
    "Trapezoid",
    "Tsit5",
    "VelocityVerlet",
    "Vern6",
    "Vern7",
    "Vern9",
]
