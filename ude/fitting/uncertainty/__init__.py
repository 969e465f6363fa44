"""How well a fit is known: intervals of parameters, bootstrap, many starts."""

from ude.fitting.uncertainty.ensembles import FitEnsemble, bootstrap, fit_ensemble, multistart
from ude.fitting.uncertainty.intervals import ParameterIntervals, fisher_intervals, profile_intervals

__all__ = [
    "FitEnsemble",
    "ParameterIntervals",
    "bootstrap",
    "fisher_intervals",
    "fit_ensemble",
    "multistart",
    "profile_intervals",
]
