"""Discovery: the equations that were found, what they rest on, and how they are written down."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sympy as sp

from ude.discovery.embedding import Array, EmbeddedFit, Integrator, simulate
from ude.discovery.embedding import Trajectory as Observed
from ude.discovery.regressor import Candidate, Samples
from ude.discovery.sampling import equations_of, observed
from ude.discovery.selection import Combination, Selection
from ude.errors import DataError, InputError
from ude.models import UDE, Parameter, Symbolic, to_text
from ude.problems import ODEProblem
from ude.training.data import Dataset, root_mean_square
from ude.training.result import Fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Discovery:
    """Closed-form equations found for a fitted model.

    fit:        what was searched. samples: of each unknown function. candidates: formulas found for it, simplest first.
    selection:  all combinations that were put back into the equations, and the chosen one, fitted on training data.
    final:      the chosen system refitted on all data (where nothing was held out: the same as on training data).
    interrupted: Ctrl-C ended the fit or the selection early; this is the best up to there.
    """

    fit: Fit
    samples: dict[str, Samples]
    candidates: dict[str, list[Candidate]]
    selection: Selection
    final: EmbeddedFit
    interrupted: bool

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
        """state -> error on held-out data of simulating on with what was fitted on training data alone; may be {}."""
        return dict(self.chosen.held_out_rmse)

    @property
    def front(self) -> pd.DataFrame:
        """One row a combination that was put back, best score first.

        Columns: the formula of each unknown function, complexity, sse (scaled, on training data), score, nmse of each
        function on its samples, held-out error of each state, step (how it came about), chosen.
        """
        rows = []
        for combination in self.selection.ranked:
            row: dict[str, Any] = {name: to_text(c.expression) for name, c in combination.candidates.items()}
            row |= {"complexity": combination.complexity, "sse": combination.fit.sse, "score": combination.score}
            row |= {f"nmse {name}": candidate.nmse for name, candidate in combination.candidates.items()}
            if self.fit.held_out is not None:
                errors = combination.held_out_rmse
                row |= {f"held-out rmse {s}": errors.get(s, float("inf")) for s in self.fit.model.states}
            row |= {"step": combination.step, "chosen": combination is self.chosen}
            rows.append(row)
        return pd.DataFrame(rows)

    def rmse(self, data: Dataset | None = None, *, training_constants: bool = False) -> dict[str, float]:
        """Root mean square error of each state over `data` (None: all data), in the state's own units.

        Simulated from the initial states; infinite where the simulation breaks down, NaN for a state without data.
        `training_constants`: with what was fitted on training data alone, which for held-out data is the error of a
        forecast.

        Raises DataError for other states or another number of trajectories, or times before the start.
        """
        data = self.fit.data if data is None else data.select(self.fit.measurement.names)
        if len(data.trajectories) != len(self.fit.data.trajectories):
            raise DataError(
                "the data have other trajectories than the fit",
                expected=str(len(self.fit.data.trajectories)),
                got=str(len(data.trajectories)),
            )
        runs = [(index, own) for index, own in enumerate(observed(self.fit, data)) if len(own.t)]
        if not runs:
            raise DataError("there are no points to compare with", got="empty trajectories")
        predicted = np.concatenate([self._simulated(index, own.t, training_constants) for index, own in runs])
        errors = root_mean_square(predicted, np.concatenate([own.u for _, own in runs]))
        return dict(zip(self.fit.model.states, errors.tolist(), strict=True))

    def predict(self, t: Array | None = None) -> list[Array]:
        """Simulated states (T, state) of each trajectory at times t (None: of its data), with constants of all data."""
        own = [
            trajectory.t if t is None else np.asarray(t, dtype=np.float64) for trajectory in self.fit.data.trajectories
        ]
        return [self._simulated(index, times, False) for index, times in enumerate(own)]

    def _simulated(self, index: int, times: Array, training_constants: bool) -> Array:
        fitted = self.chosen.fit if training_constants else self.final
        start = float(self.fit.data.trajectories[index].t[0])
        if times[0] < start:
            raise InputError(
                "t lies before the start of a trajectory", expected=f"times from {start:g} on", got=f"{times[0]:g}"
            )
        own = times if times[0] == start else np.append(start, times)
        blank = Observed(own, np.zeros((len(own), len(fitted.u0[index]))))
        [found] = simulate(
            Integrator(self.chosen.closed), [blank], fitted.u0[index : index + 1], fitted.values, self.fit.state_scale
        )
        whole = np.full(blank.u.shape, np.inf) if found is None else found
        return whole[len(own) - len(times) :]

    def problem(self, trajectory: int = 0) -> ODEProblem:
        """The discovered system as an `ODEProblem` over the times of one trajectory, from its initial state."""
        times = self.fit.data.trajectories[trajectory].t
        return self.model.problem(self.final.u0[trajectory], (float(times[0]), float(times[-1])))

    # -- written down ---------------------------------------------------------------------------------------------

    def to_text(self, digits: int | None = 4) -> str:
        """Lines ``dx/dt = ...`` with `digits` significant digits (None: in full); no term is ever dropped."""
        return self.model.text(digits)

    def latex(self, digits: int | None = 4) -> str:
        """The equations as a LaTeX ``aligned`` block."""
        return self.model.latex(digits)

    def to_python(self, digits: int | None = None) -> str:
        """Python source of ``rhs(t, u, ...)`` for SciPy; NumPy only."""
        return self.model.to_python(digits)

    def to_julia(self, digits: int | None = None) -> str:
        """Julia source of ``f!(du, u, p, t)`` for OrdinaryDiffEq."""
        return self.model.to_julia(digits)

    def to_torch(self, digits: int | None = None) -> str:
        """Python source of a standalone `torch.nn.Module` with ``forward(t, u)``; needs torch only."""
        return self.model.to_torch(digits)

    def to_sbml(self, digits: int | None = None) -> str:
        """The equations as SBML L3V2, starting where the first trajectory does. Raises BackendMissing without
        python-libsbml."""
        return self.model.to_sbml(dict(zip(self.fit.model.states, self.u0[0].tolist(), strict=True)), digits)

    def __str__(self) -> str:
        return self.to_text()

    def plot(self, path: str | Path | None = None) -> Figure:
        """Data as points and the found equations as lines, fitted to training data alone; also written to `path`."""
        from ude.discovery import figures

        figure = figures.data_and_prediction(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def report(self, path: str | Path) -> Path:
        """Write equations, errors, figures and candidates as one HTML page that stands alone; returns its path.

        Raises InputError where it cannot be written.
        """
        from ude.discovery import figures

        return figures.write_report(self, path)

    def save(self, directory: str | Path) -> Path:
        """Write the equations (text, LaTeX, Python, Julia), the front (CSV) and all numbers (JSON) into a folder.

        Returns the folder. Raises InputError where it cannot be written.
        """
        folder = Path(directory)
        files = {
            "equations.txt": self.to_text(None) + "\n",
            "equations.tex": self.latex() + "\n",
            "equations.py": self.to_python(),
            "equations.jl": self.to_julia(),
            "front.csv": self.front.to_csv(index=False),
            "model.json": json.dumps(self._model_numbers(), indent=2) + "\n",
            "discovery.json": json.dumps(self._numbers(), indent=2) + "\n",
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write into {folder}", got=str(error.strerror or error)) from error
        return folder

    def _model_numbers(self) -> dict[str, Any]:
        """The model in plain data, with where and when its trajectories start: enough to simulate it again."""
        runs = self.fit.data.trajectories
        return {
            "model": self.model.to_dict(),
            "u0": self.u0.tolist(),
            "trajectories": [run.name for run in runs],
            "spans": [[float(run.t[0]), float(run.t[-1])] for run in runs],
            "time": self.fit.data.time_name,
        }

    def _numbers(self) -> dict[str, Any]:
        return {
            "terms": {name: to_text(c.expression) for name, c in self.chosen.candidates.items()},
            "constants": self.constants,
            "constants from training data alone": self.training_constants,
            "u0": self.u0.tolist(),
            "rmse": self.rmse(),
            "held-out rmse": self.held_out_rmse,
            "complexity": self.chosen.complexity,
            "score": self.chosen.score,
            "how the formula came about": self.chosen.step,
            "combinations tried": len(self.selection.ranked),
            "all combinations tried": self.selection.complete,
            "interrupted": self.interrupted,
        }
