"""Discovery: the equations that were found, with one line each for plots, the report and saving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ude.discovery.result import DiscoveryResult
from ude.errors import InputError
from ude.models import to_text
from ude.models.export.export import export
from ude.untrusted import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Discovery(DiscoveryResult):
    """Closed-form equations found for a fitted model.

    fit:        what was searched. samples: of each unknown function. candidates: formulas found for it, simplest first.
    selection:  all combinations that were put back into the equations, and the chosen one, fitted on training data.
    final:      the chosen system refitted on all data (where nothing was held out: the same as on training data).
    interrupted: Ctrl-C ended the fit or the selection early; this is the best up to there.
    assessment_options: how `assessment` is computed, which is done once, when first asked for (`discover` asks for it).
    along: states, parameters and time by name at the points of the samples.

    >>> t = np.linspace(0.0, 3.0, 16)
    >>> data = ude.Dataset.from_arrays(t, 2.0 * np.exp(-0.8 * t), "x")
    >>> quick = ude.FitOptions(derivative_iterations=(30, 60))
    >>> fit = ude.fit(
    ...     ude.UDE("dx/dt = U(x)", unknown=ude.MLP("U", "x", width=4)),
    ...     data, stages="derivatives", options=quick, holdout=0, progress=False,
    ... )
    >>> search = ude.search.LibraryRegressor(degree=2, max_terms=1, unary=False, atoms=False)
    >>> found = ude.discover(fit, search, max_candidates=2, progress=False)
    >>> round(found.constants["U_c0"], 4), int(found.front["chosen"].sum())
    (-0.8, 1)
    >>> "def rhs" in ude.export(found, to="python") and "function f!" in ude.export(found, to="julia")
    True
    """

    def plot(self, path: str | Path | None = None) -> Figure:
        """Data as points and the found equations as lines, fitted to training data alone; also written to `path`."""
        from ude.discovery.report import figures

        figure = figures.data_and_prediction(self)
        if path is not None:
            figure.savefig(path)
        return figure

    def report(self, path: str | Path) -> Path:
        """Write equations, errors, figures and candidates as one HTML page that stands alone; returns its path.

        Raises InputError where it cannot be written.
        """
        from ude.discovery.report.discovery_contents import contents
        from ude.reporting import pages

        return pages.write(contents(self), Path(path))

    def save(self, directory: str | Path) -> Path:
        """Write the equations (text, LaTeX, Python, Julia), the front (CSV) and all numbers (JSON) into a folder.

        Returns the folder. Raises InputError where it cannot be written.
        """
        folder = Path(directory)
        files = {
            "equations.txt": export(self) + "\n",
            "equations.tex": export(self, to="latex", digits=self.digits) + "\n",
            "equations.py": export(self, to="python"),
            "equations.jl": export(self, to="julia"),
            "front.csv": self.front.to_csv(index=False),
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
            write_json(folder / "discovery.json", self._numbers())
            write_json(folder / "model.json", self._model_numbers())
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
            "verdict": {"kind": self.verdict.kind, "sentences": list(self.verdict.sentences)},
            "inclusion": self.inclusion.to_dict("records"),
            "intervals": self.intervals.to_dict("records"),
        }
