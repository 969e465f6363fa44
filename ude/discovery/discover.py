"""discover: sample the networks, search formulas, put them back, let the observed trajectories choose, refit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ude.discovery.assessment.assessment import AssessmentOptions
from ude.discovery.candidate import Candidate, SymbolicRegressor
from ude.discovery.constraints.term_constraints import TermConstraints, constraints_by_term
from ude.discovery.discovery import Discovery
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, evaluate_closed_form, fit_closed_form
from ude.discovery.samples import Samples
from ude.discovery.sampling import (
    TrajectoryPoints,
    equations_of,
    observed,
    open_system,
    sample_smooth,
    sample_terms,
    trajectory_points,
    was_simulated,
)
from ude.discovery.search.fronts import default_searches, note_on_searches
from ude.discovery.search.fronts_cache import fronts_kept_in
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.refits_cache import Refit, RefitsCache
from ude.discovery.selection.selection import Allowed, Hooks, Selection, SelectionOptions, select
from ude.discovery.shared_terms import substitute_shared_terms
from ude.errors import DataError, InputError, ModelError
from ude.fitting.fit import require_seed
from ude.fitting.objective.measurement import Measurement
from ude.fitting.result import Fit
from ude.models import FunctionModel
from ude.progress import ProgressBar
from ude.threads import SMALL, threads_for
from ude.vocabulary import named_arguments

_FIRST_FIT = "Fit the model first: ude.discover(ude.fit(model, data))."

ConstraintsLike = TermConstraints | str | Sequence[TermConstraints | str] | None


@named_arguments({"data": _FIRST_FIT, "model": _FIRST_FIT})
def discover(
    fit: Fit,
    regressors: SymbolicRegressor | Sequence[SymbolicRegressor] | None = None,
    *,
    max_candidates: int | None = None,
    options: SelectionOptions | None = None,
    constraints: ConstraintsLike = None,
    assessment: AssessmentOptions | None = None,
    source: str = "auto",
    seed: int = 0,
    progress: bool = True,
    out: str | Path | None = None,
) -> Discovery:
    """Replace the networks of a fitted model by formulas.

    1. Each network is sampled along the fitted trajectories, in natural units.
    2. Each regressor searches formulas for each sampled function, beside the directions that fitted parameters of the
       model can take up as well.
    3. The simplest adequate candidates are put back into the equations, combination by combination; all constants and
       initial states are refitted on the training data, and ``N log(SSE/N) + complexity log N`` decides.
    4. Constants of the winner are tried at zero, refitted and scored.
    5. The winner's constants are refitted on all data, held-out ones included. Both sets of constants are kept; the
       error on held-out data is that of the constants from training data alone.
    6. How far that can be trusted is assessed: see `Discovery.verdict` and the properties beside it.

    fit: the result of `ude.fit` for a `UDE`, a `NeuralODE`, or a `FunctionModel` whose function can be read as
    equations (`FunctionModel.to_ude`). regressors: one or several searches; None: `LibraryRegressor()`, and `Operon()`
    where pyoperon is installed. Of several, one that fails is left out with a warning.
    max_candidates: how many formulas of each function are put back; options: the other settings of the selection.
    constraints: what is known of terms beforehand, `TermConstraints` objects or their text; what disagrees is left out.
    assessment: settings of the sixth step. source: of the samples: "networks", "smooth" (the smoothed data, see
    `sampling`), or "auto": the smoothed data where only derivatives were fitted (``stages="derivatives"``) and they
    give all unknown functions, else the networks.
    seed: of Operon, and of the starts of refits for options with several.
    out: a folder that keeps the candidates of the searches and the refits; the same call finds them there, and goes on
    where it was interrupted.

    Ctrl-C ends the selection and returns the best so far, with ``interrupted=True``.

    Raises ModelError for a model without equations or networks, InputError for arguments that break a rule, and
    what the regressors raise (BackendMissing).

    >>> t = np.linspace(0.0, 3.0, 16)
    >>> data = ude.Dataset.from_arrays(t, 2.0 * np.exp(-0.8 * t), "x")
    >>> quick = ude.FitOptions(derivative_iterations=(30, 60))
    >>> fit = ude.fit(
    ...     ude.UDE("dx/dt = U(x)", unknown=ude.MLP("U", "x", width=4)),
    ...     data, stages="derivatives", options=quick, holdout=0, progress=False,
    ... )
    >>> search = ude.search.LibraryRegressor(degree=2, max_terms=1, unary=False, atoms=False)
    >>> found = ude.discover(fit, search, max_candidates=2, progress=False)
    >>> print(found)
    dx/dt = -0.8*x
    """
    if not isinstance(fit, Fit):
        raise InputError("discover takes the result of a fit", got=type(fit).__name__, fix=_FIRST_FIT)
    chosen_options = _options(options, max_candidates, seed)
    searches = _searches(regressors, seed)
    fit = _with_equations(fit)
    _refuse_standstill(fit)
    samples, points = _samples(fit, source)
    known = constraints_by_term(constraints or (), list(samples))
    along = points.values(equations_of(fit))
    fit, samples = substitute_shared_terms(fit, samples, known)
    along = {**equations_of(fit).values(), **along}
    chosen_options = _with_known_starts(chosen_options, fit)
    with ProgressBar(progress) as bar, threads_for(SMALL):
        if progress and regressors is None and (note := note_on_searches(searches)):
            bar.console.print(note, markup=False)  # "ude[operon]" is no markup
        with bar.stage("searching formulas", len(samples) * len(searches)) as stage:
            found = fronts_kept_in(out, samples, searches, known, on_search=stage.advance)
        refit = fit_closed_form if out is None else RefitsCache(out)
        selection = _selected(fit, found, chosen_options, refit, bar, _allowed_by(known, samples))
        final, interrupted = _on_all_data(fit, selection, chosen_options.fit, bar)
        discovery = Discovery(
            fit, samples, found, selection, final, interrupted, assessment or AssessmentOptions(), along
        )
        return discovery if interrupted else _weighed(discovery, bar)


def _with_equations(fit: Fit) -> Fit:
    """The fit of a model with equations: candidates are refitted as formulas, so torch functions are read as such.

    Raises ModelError for what cannot be searched, before anything is simulated.
    """
    if isinstance(fit.model, FunctionModel):
        seen = fit.measurement
        model = fit.model.to_ude(seen.formulas)
        fit = replace(fit, model=model, measurement=Measurement(model, seen.names, seen.formulas))
    equations_of(fit)
    return fit


def _with_known_starts(options: SelectionOptions, fit: Fit) -> SelectionOptions:
    """Initial states that were given to `fit` are kept in refits."""
    if not any(fit.known_u0):
        return options
    return replace(options, fit=replace(options.fit, fit_u0=tuple(not known for known in fit.known_u0)))


def _selected(
    fit: Fit,
    found: Mapping[str, Sequence[Candidate]],
    options: SelectionOptions,
    refit: Refit,
    bar: ProgressBar,
    allowed: Allowed,
) -> Selection:
    held_out = observed(fit, fit.held_out) if fit.held_out is not None else []
    with bar.stage("fitting them to the data", None) as stage:
        return select(
            open_system(fit),
            found,
            observed(fit, fit.train),
            u0=fit.u0,
            held_out=held_out,
            options=options,
            hooks=Hooks(lambda done, total, best: stage.advance(), refit, allowed),
        )


def _allowed_by(known: Mapping[str, TermConstraints], samples: Mapping[str, Samples]) -> Allowed:
    """Whether a formula agrees with what is known of its term."""
    return lambda term, candidate: term not in known or known[term].why_not(candidate, samples[term]) is None


def _on_all_data(fit: Fit, selection: Selection, options: RefitOptions, bar: ProgressBar) -> tuple[EmbeddedFit, bool]:
    """The chosen system on all data where some were held out, and whether anything so far was interrupted."""
    if fit.held_out is None and fit.validation is None:
        return selection.chosen.fit, selection.interrupted or fit.interrupted
    with bar.stage("refitting on all data", 1) as stage:
        interrupted = selection.interrupted
        if not interrupted:
            try:
                final = refit_on_all(selection.chosen, fit, options)
            except KeyboardInterrupt:
                interrupted = True
        if interrupted:
            # training values, on all data: the residuals of a discovery are those of all its observations
            final = refit_on_all(selection.chosen, fit, options, fitted=False)
        stage.advance()
    return final, interrupted or fit.interrupted


def _weighed(discovery: Discovery, bar: ProgressBar) -> Discovery:
    """The discovery with its assessment computed, here where there is a bar, and kept."""
    with bar.stage("weighing what was found", 1) as stage:
        try:
            discovery.assessment  # noqa: B018
        except KeyboardInterrupt:
            discovery = replace(discovery, interrupted=True)
        stage.advance()
    return discovery


def _refuse_standstill(fit: Fit) -> None:
    values = fit.train.values()
    still = [
        name
        for name, column in zip(fit.train.states, values.T, strict=True)
        if np.ptp(seen := column[np.isfinite(column)]) <= 1e-12 * max(float(np.abs(seen).max()), 1e-300)
    ]
    if len(still) == len(fit.train.states):
        raise DataError(
            "the data never change, so nothing can be said about what makes them change",
            expected="measurements away from rest",
            got=f"constant {', '.join(still)}",
            fix="Measure a transient: start the system elsewhere, or drive it.",
        )


def _samples(fit: Fit, source: str) -> tuple[dict[str, Samples], TrajectoryPoints]:
    if source not in ("auto", "networks", "smooth"):
        raise InputError("source must be 'auto', 'networks' or 'smooth'", got=repr(source))
    if source == "smooth" or (source == "auto" and len(fit.history) and not was_simulated(fit)):
        found = sample_smooth(fit)
        if found is not None:
            return found
        if source == "smooth":
            raise ModelError(
                "the smoothed data do not give the unknown functions",
                expected="every state measured, and each unknown function once, alone and linear in its equation",
                fix='Use source="networks".',
            )
    points = trajectory_points(fit, 300)
    return sample_terms(fit, points), points


def refit_on_all(chosen: Combination, fit: Fit, options: RefitOptions, *, fitted: bool = True) -> EmbeddedFit:
    """The chosen system's constants and initial states on all observations, from their training values.

    They stay at their training values where no better fit was found from there, or `fitted` is False.
    """
    started = {
        name: replace(constant, start=chosen.fit.values[name]) for name, constant in chosen.closed.parameters.items()
    }
    data = observed(fit, fit.data)
    system = open_system(fit)
    closed = replace(chosen.closed, parameters=started)
    at = closed, data, chosen.fit.u0, system.residual_scale(data), options, system.sizes(data)
    if fitted:
        final = fit_closed_form(*at)
        if final.sse < float("inf"):
            return final
    return evaluate_closed_form(*at)


def _searches(
    regressors: SymbolicRegressor | Sequence[SymbolicRegressor] | None, seed: int = 0
) -> list[SymbolicRegressor]:
    if regressors is None:
        return default_searches(seed)
    given = [regressors] if isinstance(regressors, SymbolicRegressor) else regressors
    searches = list(given) if isinstance(given, Sequence) else []
    if not searches or not all(isinstance(search, SymbolicRegressor) for search in searches):
        raise InputError(
            "regressors must have a method search(samples)",
            expected="objects such as ude.search.LibraryRegressor()",
            got=repr(regressors),
        )
    return searches


def _options(options: SelectionOptions | None, max_candidates: int | None, seed: int) -> SelectionOptions:
    require_seed(seed)
    chosen = options or SelectionOptions()
    if max_candidates is not None:
        chosen = replace(chosen, max_candidates=max_candidates)
    return replace(chosen, fit=replace(chosen.fit, seed=seed))
