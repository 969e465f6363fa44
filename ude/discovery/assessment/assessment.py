"""How far a discovery can be trusted: verdict, inclusion, intervals, support, stability and confounding together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np
import pandas as pd

from ude.discovery.assessment.confounding import confounding_table, correlation_table
from ude.discovery.assessment.inclusion import InclusionOptions, inclusion_table, probabilities
from ude.discovery.assessment.intervals import covariance, observed_columns, wald_intervals
from ude.discovery.assessment.stability import Stability, screen
from ude.discovery.assessment.support import Support, support_of
from ude.discovery.assessment.verdict import Evidence, Verdict, VerdictOptions, judge
from ude.discovery.refit.closed_system import Array, ObservedTrajectory
from ude.discovery.refit.embedding import EmbeddedFit, RefitOptions, fit_closed_form
from ude.discovery.refit.integration import Integrator, along, simulate
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.refit.residuals import dependence
from ude.discovery.refit.stabilized import stabilized_data
from ude.discovery.samples import Samples
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.selection import Selection
from ude.discovery.selection.shortlist import score


@dataclass(frozen=True)
class AssessmentOptions:
    """level: of the intervals. horizon: of the stability screen, in spans of the data. contenders: how many of the best
    combinations are refitted on all data where some had been held out.
    """

    level: float = 0.95
    horizon: float = 10.0
    contenders: int = 12
    inclusion: InclusionOptions = InclusionOptions()
    verdict: VerdictOptions = VerdictOptions()


@dataclass(frozen=True, eq=False)
class Assessment:
    """See the properties of `Discovery` of the same names. probability: (combination,) in the order of the ranking."""

    verdict: Verdict
    inclusion: pd.DataFrame
    intervals: pd.DataFrame
    support: Support
    stability: Stability
    confounding: pd.DataFrame
    probability: Array


@dataclass(frozen=True, eq=False)
class Subject:
    """What is assessed, and on what data.

    trajectories: all data. final: the chosen system on them. expected: column -> the residuals to be expected, in its
    units, or those in which its noise is constant. along: states, parameters and time at the samples.
    """

    system: PartialSystem
    selection: Selection
    final: EmbeddedFit
    trajectories: Sequence[ObservedTrajectory]
    held_out: bool
    samples: Mapping[str, Samples]
    along: Mapping[str, Array | float]
    expected: Mapping[str, float]
    scale: Array
    state_scale: Array
    floor: float
    fit: RefitOptions = field(default_factory=RefitOptions)


def assess(subject: Subject, options: AssessmentOptions = AssessmentOptions()) -> Assessment:
    """All parts of the assessment of a discovery."""
    chosen, final = subject.selection.chosen, subject.final
    ranked = _on_all_data(subject, options.contenders)
    probability = probabilities(ranked, subject.floor, options.inclusion)
    inclusion = inclusion_table(ranked, probability, chosen.candidates)
    columns = observed_columns(subject.trajectories)
    intervals = wald_intervals(chosen.closed, final, subject.trajectories, options.level)
    matrix = covariance(final, columns)
    constants = {name: value for name, value in final.values.items() if name in subject.system.parameters}
    visited = _visited(subject)
    support = support_of(subject.samples, subject.system.equations, constants, subject.system.time, visited)
    stability = screen(
        chosen.closed, final.values, final.u0, subject.trajectories, subject.state_scale, options.horizon
    )
    fitted = tuple(name for name, constant in subject.system.parameters.items() if constant.fitted)
    confounding = confounding_table(
        subject.system.equations,
        fitted,
        subject.samples,
        subject.along,
        subject.state_scale,
        correlation_table(chosen.closed, matrix),
    )
    targets = stabilized_data(subject.system.noise, subject.system.columns, subject.trajectories)
    own = score(final.sse, final.n_observations, chosen.complexity, subject.floor)
    evidence = Evidence(
        chosen,
        ranked,
        probability,
        inclusion,
        own,
        subject.floor,
        standstill_score(targets, subject.scale, subject.floor),
        _misfit(subject),
        subject.samples,
        dependence(subject.trajectories, final, subject.floor),
    )
    by_key = {str(c): float(p) for c, p in zip(ranked, probability, strict=True)}
    in_order = np.array([by_key.get(str(combination), 0.0) for combination in subject.selection.ranked])
    return Assessment(judge(evidence, options.verdict), inclusion, intervals, support, stability, confounding, in_order)


def standstill_score(trajectories: Sequence[ObservedTrajectory], scale: Array, floor: float) -> float:
    """The score of states that do not change: each column of each trajectory at its mean, complexity 0."""
    sse, n = 0.0, 0
    for own in trajectories:
        for i, column in enumerate(own.u.T):
            seen = column[np.isfinite(column)]
            if len(seen):
                sse += float((((seen - seen.mean()) / scale[i]) ** 2).sum())
                n += len(seen)
    return score(sse, n, 0, floor) if n else inf


def _on_all_data(subject: Subject, contenders: int) -> list[Combination]:
    """The best combinations, refitted on all data where some had been held out, so that the assessment rests on all."""
    ranked, chosen = subject.selection.ranked, subject.selection.chosen
    if not subject.held_out:
        return list(ranked)
    found = []
    for combination in [chosen, *[c for c in ranked if c is not chosen][: contenders - 1]]:
        if not np.isfinite(combination.score):
            continue
        if combination is chosen:
            fit = subject.final
        else:
            started = {
                name: replace(constant, start=combination.fit.values[name])
                for name, constant in combination.closed.parameters.items()
            }
            fit = fit_closed_form(
                replace(combination.closed, parameters=started),
                subject.trajectories,
                combination.fit.u0,
                subject.scale,
                replace(subject.fit, starts=1, horizons=()),
                subject.state_scale,
            )
        value = score(fit.sse, fit.n_observations, combination.complexity, subject.floor)
        found.append(replace(combination, fit=fit, score=value))
    return sorted(found, key=lambda c: c.rank)


def _visited(subject: Subject) -> dict[str, Array | float]:
    """States, parameters and time (N,) along the trajectories of the system that was found, over all data."""
    closed, final = subject.selection.chosen.closed, subject.final
    dense = []
    for own in subject.trajectories:
        t = np.union1d(own.t, np.linspace(own.t[0], own.t[-1], 100))
        dense.append(replace(own, t=t, u=np.full((len(t), own.u.shape[1]), np.nan)))
    runs = simulate(Integrator(closed), dense, final.u0, final.values, subject.state_scale)
    pairs = [(own, run) for own, run in zip(dense, runs, strict=True) if run is not None]
    if not pairs:
        pairs = [(own, u0[None].repeat(len(own.t), axis=0)) for own, u0 in zip(dense, final.u0, strict=True)]
    states = np.concatenate([run for _, run in pairs])
    where: dict[str, Array | float] = {**final.values}
    where |= {state: states[:, i] for i, state in enumerate(subject.system.states)}
    where[subject.system.time] = np.concatenate([own.t for own, _ in pairs])
    for name in pairs[0][0].inputs:
        where[name] = np.concatenate([along(own.inputs[name], own.t) * np.ones(len(own.t)) for own, _ in pairs])
    return where


def _misfit(subject: Subject) -> dict[str, float]:
    counts = sum((np.isfinite(own.u).sum(axis=0) for own in subject.trajectories), np.zeros(len(subject.scale)))
    ratios = {}
    for index, (column, sse) in enumerate(subject.final.sse_per_state.items()):
        size = float(np.sqrt(sse / max(float(counts[index]), 1.0)) * subject.scale[index])
        least = max(subject.expected.get(column, 0.0), 3 * subject.floor * float(subject.scale[index]))
        ratios[column] = size / least
    return ratios
