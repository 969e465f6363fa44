"""What a discovery found: equations, what they rest on, how far they can be trusted, predictions, exports."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sympy as sp

from ude.discovery.assessment.assessment import Assessment, AssessmentOptions, Subject, assess
from ude.discovery.assessment.intervals import profile_interval
from ude.discovery.assessment.stability import Stability
from ude.discovery.assessment.support import Support
from ude.discovery.assessment.verdict import NOT_ENOUGH, Verdict
from ude.discovery.candidate import Candidate
from ude.discovery.refit.closed_system import Array, Forcing
from ude.discovery.refit.closed_system import ObservedTrajectory as Observed
from ude.discovery.refit.embedding import EmbeddedFit
from ude.discovery.refit.integration import ColumnFunctions, Integrator, simulate
from ude.discovery.refit.rounding import digits_needed
from ude.discovery.samples import Samples
from ude.discovery.sampling import equations_of, expected_residuals, observed, open_system
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.selection import Selection
from ude.discovery.selection.shortlist import score
from ude.errors import DataError, InputError
from ude.fitting.data.dataset import Dataset
from ude.fitting.data.sources import read_data
from ude.fitting.data.trajectory import root_mean_square
from ude.fitting.objective.noise import Gaussian, StudentT
from ude.fitting.result import Fit
from ude.models import UDE, Parameter, Symbolic, to_text
from ude.models.export.equation_set import EquationSet
from ude.models.export.export import export
from ude.problems.ode import ODEProblem

if TYPE_CHECKING:
    pass


class SupportWarning(UserWarning):
    """A prediction asks the formulas for inputs at which they were never compared with data."""


@dataclass(frozen=True, eq=False)
class DiscoveryResult:
    """The numbers of a `Discovery`, which documents the fields, and what follows from them."""

    fit: Fit
    samples: dict[str, Samples]
    candidates: dict[str, list[Candidate]]
    selection: Selection
    final: EmbeddedFit
    interrupted: bool
    assessment_options: AssessmentOptions = AssessmentOptions()
    along: Mapping[str, Array | float] = field(default_factory=dict)

    # -- how far it can be trusted -------------------------------------------------------------------------------

    @cached_property
    def assessment(self) -> Assessment:
        """Verdict, inclusion, intervals, support, stability and confounding together; a second or two of work."""
        fit, system = self.fit, open_system(self.fit)
        everything = observed(fit, fit.data)
        subject = Subject(
            system=system,
            selection=self.selection,
            final=self.final,
            trajectories=everything,
            held_out=self.final is not self.selection.chosen.fit,
            samples=self.samples,
            along=self.along,
            expected=expected_residuals(fit),
            scale=system.residual_scale(everything),
            state_scale=system.sizes(everything),
            floor=self.selection.options.floor,
            fit=self.selection.options.fit,
        )
        return assess(subject, self.assessment_options)

    @property
    def verdict(self) -> Verdict:
        """``kind`` ("identified", "several forms equally good", "not enough data", "zero", "no formula fits"),
        ``sentences`` in plain words, ``terms`` (the kind for each unknown function) and ``rivals`` (the chosen forms
        and those hardly worse, with their probabilities)."""
        return self.assessment.verdict

    @property
    def inclusion(self) -> pd.DataFrame:
        """Columns term, summand, probability, chosen: how surely each summand belongs to each unknown function, from
        all combinations that were put back, averaged over resampled data (see `ude.discovery.assessment.inclusion`)."""
        return self.assessment.inclusion

    @property
    def intervals(self) -> pd.DataFrame:
        """Columns constant, value, lower, upper: 95 % intervals of all fitted constants (in formulas ``U1_c0``),
        from the curvature of the misfit to all data; infinite where the data do not determine a constant."""
        return self.assessment.intervals

    def profile(self, constant: str, level: float = 0.95) -> tuple[float, float]:
        """(lower, upper) of one constant by its profile: slower than `intervals`, and right for constants that the data
        hardly determine. Raises InputError for a name that is not a fitted constant."""
        data = observed(self.fit, self.fit.data)
        options = self.selection.options.fit
        scale = open_system(self.fit).residual_scale(data)
        return profile_interval(self.chosen.closed, self.final, data, constant, options, level, scale)

    @property
    def support(self) -> Support:
        """Where each unknown function was met: ``found.support["U1"]`` has ``inputs``, ``points`` (N, inputs),
        ``lower``, ``upper`` (the box) and ``hull``; ``found.support.outside(states)`` says of states (T, state) whether
        they ask a function for inputs that it was never seen with: term -> (T,) of bool."""
        return self.assessment.support

    @property
    def stability(self) -> Stability:
        """``bounded`` over ten times the span of the data, ``reached``, ``equilibria`` (each with ``state``,
        ``eigenvalues``, ``kind``, ``visited``) and a ``sentence``."""
        return self.assessment.stability

    @property
    def confounding(self) -> pd.DataFrame:
        """Columns term, parameter, share, correlation: how far some function of the term's inputs can take up the
        effect of a fitted parameter (1: entirely), and how correlated its estimate is with the formula's constants."""
        return self.assessment.confounding

    # -- what was found -------------------------------------------------------------------------------------------

    @property
    def chosen(self) -> Combination:
        """The chosen combination, with its constants from training data."""
        return self.selection.chosen

    @property
    def constants(self) -> dict[str, float]:
        """Every constant, those of formulas as ``U1_c0``, refitted on all data."""
        return dict(self.final.values)

    @property
    def training_constants(self) -> dict[str, float]:
        """Every constant as fitted on training data alone."""
        return dict(self.chosen.fit.values)

    @property
    def u0(self) -> Array:
        """Initial states (trajectory, state), refitted with the constants on all data."""
        return self.final.u0

    @cached_property
    def model(self) -> UDE:
        """The fitted model with a formula in the place of each network, constants from all data."""
        found = {}
        for name, candidate in self.chosen.candidates.items():
            values = {c: Parameter(self.final.values[f"{name}_{c}"], True) for c in candidate.constants}
            inputs = equations_of(self.fit).provider(name).inputs
            found[name] = Symbolic({name: candidate.expression}, inputs=inputs, parameters=values)
        model = equations_of(self.fit).replace(found)
        model.set_values({name: value for name, value in self.final.values.items() if name in model.values()})
        return model

    @property
    def equations(self) -> dict[str, sp.Expr]:
        """state -> right-hand side with the constants put in."""
        numbers = {sp.Symbol(name): sp.Float(value) for name, value in self.final.values.items()}
        return {state: rate.xreplace(numbers) for state, rate in self.chosen.closed.equations.items()}

    @property
    def terms(self) -> dict[str, sp.Expr]:
        """unknown function -> its formula with the constants put in."""
        found = {}
        for name, candidate in self.chosen.candidates.items():
            numbers = {sp.Symbol(c): sp.Float(self.final.values[f"{name}_{c}"]) for c in candidate.constants}
            found[name] = candidate.expression.xreplace(numbers)
        return found

    @property
    def held_out_rmse(self) -> dict[str, float]:
        """column -> error on held-out data of simulating on with what was fitted on training data alone; may be {}."""
        return dict(self.chosen.held_out_rmse)

    @property
    def front(self) -> pd.DataFrame:
        """One row a combination that was put back, best score first.

        Columns: the formula of each unknown function, complexity, sse (scaled, on training data), score (trajectory BIC
        with complexity in the place of the number of constants), nmse of each function on its samples, held-out error
        of each column of the data, step (how it came about), chosen, bic (Schwarz's, with the number of constants),
        probability (see `inclusion`; of the whole combination, on all data).
        """
        rows = []
        for combination, probability in zip(self.selection.ranked, self.assessment.probability, strict=True):
            row: dict[str, Any] = {name: to_text(c.expression) for name, c in combination.candidates.items()}
            row |= {"complexity": combination.complexity, "sse": combination.fit.sse, "score": combination.score}
            row |= {f"nmse {name}": candidate.nmse for name, candidate in combination.candidates.items()}
            if self.fit.held_out is not None:
                errors = combination.held_out_rmse
                row |= {f"held-out rmse {c}": errors.get(c, float("inf")) for c in self.fit.measurement.names}
            row |= {"step": combination.step, "chosen": combination is self.chosen}
            constants = len(combination.closed.fitted)
            own = combination.fit
            bic = score(own.sse, own.n_observations, constants, self.selection.options.floor)
            row |= {"bic": bic, "probability": float(probability)}
            rows.append(row)
        return pd.DataFrame(rows)

    def rmse(self, data: Dataset | None = None, *, training_constants: bool = False) -> dict[str, float]:
        """Root mean square error of each column over `data` (None: all data), in the column's own units.

        Simulated from the initial states; infinite where the simulation breaks down, NaN for a column without data.
        `training_constants`: with what was fitted on training data alone, which for held-out data is the error of a
        forecast.

        Raises DataError for other states or another number of trajectories, or times before the start.
        """
        data = self.fit.data if data is None else read_data(data).select(self.fit.measurement.names)
        if len(data.trajectories) != len(self.fit.data.trajectories):
            raise DataError(
                "the data have other trajectories than the fit",
                expected=str(len(self.fit.data.trajectories)),
                got=str(len(data.trajectories)),
            )
        runs = [(index, own) for index, own in enumerate(observed(self.fit, data)) if len(own.t)]
        if not runs:
            raise DataError("there are no points to compare with", got="empty trajectories")
        predicted = np.concatenate([self._columns(index, own.t, training_constants) for index, own in runs])
        errors = root_mean_square(predicted, np.concatenate([own.u for _, own in runs]))
        return dict(zip(self.fit.measurement.names, errors.tolist(), strict=True))

    def predict(self, t: Array | None = None) -> list[Array]:
        """Simulated states (T, state) of each trajectory at times t (None: of its data), with constants of all data.

        Warns (`SupportWarning`) where the equations are asked for states far from all that they were found from.
        """
        own = [
            trajectory.t if t is None else np.asarray(t, dtype=np.float64) for trajectory in self.fit.data.trajectories
        ]
        found = [self._simulated(index, times, False) for index, times in enumerate(own)]
        if t is not None:
            self._warn_outside(found, own)
        return found

    def _warn_outside(self, runs: list[Array], times: list[Array]) -> None:
        beyond: dict[str, float] = {}
        for u, t in zip(runs, times, strict=True):
            for term, flags in self.support.outside(u, t).items():
                if flags.any():
                    beyond[term] = min(beyond.get(term, np.inf), float(t[int(np.argmax(flags))]))
        if beyond:
            first = ", ".join(f"{term} from {self.fit.data.time_name} = {t:g} on" for term, t in beyond.items())
            warnings.warn(
                f"the prediction leaves the states that the formulas were found from: {first}; they may not hold there",
                SupportWarning,
                stacklevel=3,
            )

    def _simulated(self, index: int, times: Array, training_constants: bool) -> Array:
        fitted = self.chosen.fit if training_constants else self.final
        start = float(self.fit.data.trajectories[index].t[0])
        if times[0] < start:
            raise InputError(
                "t lies before the start of a trajectory", expected=f"times from {start:g} on", got=f"{times[0]:g}"
            )
        own = times if times[0] == start else np.append(start, times)
        blank = Observed(own, np.zeros((len(own), len(fitted.u0[index]))), self._inputs[index])
        [found] = simulate(
            Integrator(self.chosen.closed), [blank], fitted.u0[index : index + 1], fitted.values, self.fit.state_scale
        )
        whole = np.full(blank.u.shape, np.inf) if found is None else found
        return whole[len(own) - len(times) :]

    @cached_property
    def _inputs(self) -> list[Mapping[str, float | Forcing]]:
        """Conditions and forcing of each trajectory."""
        return [own.inputs for own in observed(self.fit, self.fit.data)]

    def _columns(self, index: int, times: Array, training_constants: bool) -> Array:
        """What the columns of the data would be, (T, column); infinite where the simulation breaks down."""
        fitted = self.chosen.fit if training_constants else self.final
        states = self._simulated(index, times, training_constants)
        if not np.isfinite(states).all():
            return np.full((len(times), len(self.fit.measurement.names)), np.inf)
        return ColumnFunctions(self.chosen.closed)(times, states, {**fitted.values, **self._inputs[index]})[0]

    def problem(self, trajectory: int = 0) -> ODEProblem:
        """The discovered system as an `ODEProblem` over the times of one trajectory, from its initial state."""
        times = self.fit.data.trajectories[trajectory].t
        return self.model.problem(self.final.u0[trajectory], (float(times[0]), float(times[-1])))

    # -- written down ---------------------------------------------------------------------------------------------

    def equation_set(self) -> EquationSet:
        """The equations with their numbers and the start of the first trajectory, for `ude.export`."""
        return replace(self.model.equation_set(), u0=dict(zip(self.fit.model.states, self.u0[0].tolist(), strict=True)))

    @cached_property
    def digits(self) -> int:
        """The significant digits that the printed equations need (four or more): simulated, they follow the trajectory
        of the full constants to a tenth of the noise, or to 1e-3 of a column's range where that is more."""
        uneven = {name for name, own in self.fit.noise_models.items() if not isinstance(own, Gaussian | StudentT)}
        noise = {name: size for name, size in expected_residuals(self.fit).items() if name not in uneven}
        seen, final = observed(self.fit, self.fit.data), self.final
        return digits_needed(self.chosen.closed, final.values, final.u0, seen, self.fit.state_scale, noise)

    def __str__(self) -> str:
        text = export(self, digits=self.digits)
        return f"{self.verdict}\n{text}" if self.verdict.kind == NOT_ENOUGH else text
