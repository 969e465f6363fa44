"""What the data say about the formula, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import pandas as pd

from ude.discovery.canonical_form import ZERO, family, summands
from ude.discovery.refit.closed_system import Array
from ude.discovery.refit.residuals import DEPENDENT, Dependence
from ude.discovery.samples import Samples
from ude.discovery.selection.combination import Combination
from ude.discovery.selection.shortlist import score

IDENTIFIED = "identified"
SEVERAL = "several forms equally good"
NOT_ENOUGH = "not enough data"
ZERO_TERM = "zero"
NO_FORMULA = "no formula fits"
_NAMED = 4  # of the forms that are merely longer to write


@dataclass(frozen=True)
class Rival:
    """A combination of formulas that the data hardly tell from the chosen one.

    formulas: term -> formula as text. probability: of the whole combination, see `inclusion`. score and held_out_rmse
    (column -> error) are those of the front.
    """

    formulas: dict[str, str]
    probability: float
    score: float
    held_out_rmse: dict[str, float]
    chosen: bool

    def __str__(self) -> str:
        return ", ".join(f"{term} = {formula}" for term, formula in self.formulas.items())


@dataclass(frozen=True)
class Verdict:
    """kind: "identified", "several forms equally good", "not enough data", "zero" (every unknown function is zero), or
    "no formula fits". terms: the kind for each unknown function. sentences: the same for people, most important first.
    rivals: the chosen combination, those with at least a tenth of its probability, and those that are longer to write
    but fit as well with as few constants; likeliest first.
    """

    kind: str
    sentences: tuple[str, ...]
    terms: dict[str, str]
    rivals: tuple[Rival, ...]

    def __str__(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class VerdictOptions:
    """sure: inclusion probability from which a summand counts as certain. possible: from which one that was not chosen
    keeps the form open. rival: share of the chosen combination's probability from which another counts as as good.
    most_rivals: with more than so many the data are called too few. misfit: how many times the residuals of the
    network, and of the smoothed data, those of the formula may be. standstill: by how much the score must beat states
    that do not change. as_few: by how much ``N log SSE`` of another form with no more constants may be
    above that of the chosen one for it to count as as good (0: it fits as well): that a form is longer to write is no
    evidence against it. dependent: deviations from which neighboring residuals count as alike (3.5: one in some
    four thousand where they are independent).
    """

    sure: float = 0.9
    possible: float = 0.5
    rival: float = 0.1
    most_rivals: int = 8
    misfit: float = 2.0
    standstill: float = 6.0
    as_few: float = 0.0
    dependent: float = DEPENDENT


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on.

    ranked and probability: combinations and their probabilities on all data. inclusion: see `inclusion_table`.
    floor: as in the score. still_score: the score of states that do not change at all. misfit: column -> residuals of
    the formula over those to be expected, root mean squares. dependence: column -> see `Dependence`; columns without
    any are left out.
    """

    chosen: Combination
    ranked: Sequence[Combination]
    probability: Array
    inclusion: pd.DataFrame
    score: float
    floor: float
    still_score: float
    misfit: Mapping[str, float]
    samples: Mapping[str, Samples]
    dependence: Mapping[str, Dependence] = field(default_factory=dict)

    @property
    def weighted(self) -> list[tuple[Combination, float]]:
        """The combinations, each with its probability."""
        return list(zip(self.ranked, map(float, self.probability), strict=True))


def judge(evidence: Evidence, options: VerdictOptions = VerdictOptions()) -> Verdict:
    """The verdict; see the fields of `VerdictOptions` for the limits between the kinds."""
    rivals, longer = _rivals(evidence, options), _longer_to_write(evidence, options)
    terms = {term: _of_term(term, evidence, options) for term in evidence.chosen.candidates}
    together = {term: _collinear(term, own) for term, own in evidence.samples.items()}
    sentences = [*_still(evidence.samples), *(text for texts in together.values() for text in texts)]
    # formulas that are equal on the samples are searched as one, so they do not show as rivals
    terms |= {term: SEVERAL for term, texts in together.items() if texts and terms[term] == IDENTIFIED}
    terms |= {
        term: SEVERAL
        for term, own in evidence.chosen.candidates.items()
        if any(family(other.candidates[term]) != family(own) for other, _ in longer)
    }
    named = {str(rival) for rival in rivals}
    further = tuple(rival for pair in longer for rival in [_rival(evidence, *pair)] if str(rival) not in named)
    kind, first = _as_a_whole(evidence, options, terms, rivals, further)
    if (alike := _dependent(evidence, options)) and kind != NOT_ENOUGH:
        if kind in (IDENTIFIED, ZERO_TERM):
            kind, first = NO_FORMULA, f"Close, but not the whole truth: {alike}"
        else:
            sentences.append(alike[0].upper() + alike[1:])
    if kind not in (NOT_ENOUGH, NO_FORMULA):
        sentences += [_sentence(term, own, evidence) for term, own in terms.items() if len(terms) > 1 or own != kind]
    if kind in (NOT_ENOUGH, NO_FORMULA):
        terms = dict.fromkeys(terms, kind)
    return Verdict(kind, (first, *sentences), terms, (*rivals, *further))


def _as_a_whole(
    evidence: Evidence,
    options: VerdictOptions,
    terms: Mapping[str, str],
    rivals: Sequence[Rival],
    further: Sequence[Rival],
) -> tuple[str, str]:
    """The kind of the verdict and its first sentence, where residuals are what errors of measurement are."""
    if evidence.score > evidence.still_score - options.standstill:
        return NOT_ENOUGH, (
            "Not enough data: states that do not change at all describe the data as well as any equation, "
            "so no equation is claimed."
        )
    bad = [f"{column} ({ratio:.1f} times)" for column, ratio in evidence.misfit.items() if ratio > options.misfit]
    if bad:
        return NO_FORMULA, (
            f"No formula tried describes the data as well as the networks do: the residuals of {', '.join(bad)} are "
            "larger than theirs. Search wider, or leave the network in."
        )
    if len(rivals) > options.most_rivals:
        return NOT_ENOUGH, (
            f"Not enough data to tell {len(rivals)} formulas apart; the simplest of the best is shown, as "
            "no more than an example."
        )
    if all(kind == ZERO_TERM for kind in terms.values()):
        return ZERO_TERM, f"The data show no sign of {', '.join(terms)}: zero describes them."
    if all(kind in (IDENTIFIED, ZERO_TERM) for kind in terms.values()):
        return IDENTIFIED, "Identified: every summand is needed, and no other form is as good."
    others = "; ".join(str(rival) for rival in (*rivals, *further) if not rival.chosen)
    return (
        SEVERAL,
        f"Several forms equally good: beside the one shown, {others or 'none as a whole; parts are unsure'}.",
    )


def _dependent(evidence: Evidence, options: VerdictOptions) -> str:
    """What neighboring residuals say against the formula, as a clause; "" where they look independent."""
    alike = [
        f"{column} (correlation {own.correlation:.2f})"
        for column, own in evidence.dependence.items()
        if own.deviations > options.dependent
    ]
    if not alike:
        return ""
    return (
        f"neighboring residuals of {', '.join(alike)} are alike, so the data hold something that these equations do "
        "not say: another form, something missing in the known part, or errors of measurement with a memory."
    )


def _rivals(evidence: Evidence, options: VerdictOptions) -> tuple[Rival, ...]:
    own = _key(evidence.chosen)
    best = next((weight for c, weight in evidence.weighted if _key(c) == own), 0.0)
    least = max(options.rival * best, 0.01)
    found = [_rival(evidence, c, weight) for c, weight in evidence.weighted if _key(c) == own or weight >= least]
    return tuple(sorted(found, key=lambda rival: (-rival.probability, str(rival))))


def _rival(evidence: Evidence, combination: Combination, weight: float) -> Rival:
    return Rival(
        {term: str(candidate.expression) for term, candidate in combination.candidates.items()},
        weight,
        combination.score,
        combination.held_out_rmse,
        _key(combination) == _key(evidence.chosen),
    )


def _longer_to_write(evidence: Evidence, options: VerdictOptions) -> list[tuple[Combination, float]]:
    """Others that fit as well as the chosen one with as few constants, the nearest `_NAMED`; with probabilities."""

    def misfit(combination: Combination) -> float:
        return score(combination.fit.sse, combination.fit.n_observations, 0, evidence.floor)

    own, few = _key(evidence.chosen), _constants(evidence.chosen)
    most = next((misfit(c) for c in evidence.ranked if _key(c) == own), -inf) + options.as_few
    found = [
        (c, weight) for c, weight in evidence.weighted if _key(c) != own and _constants(c) <= few and misfit(c) <= most
    ]
    return sorted(found, key=lambda pair: (misfit(pair[0]), str(pair[0])))[:_NAMED]


def _constants(combination: Combination) -> int:
    return sum(len(candidate.constants) for candidate in combination.candidates.values())


def _key(combination: Combination) -> tuple[str, ...]:
    return tuple(str(candidate.expression) for candidate in combination.candidates.values())


def _of_term(term: str, evidence: Evidence, options: VerdictOptions) -> str:
    rows = evidence.inclusion[evidence.inclusion["term"] == term]
    sure = rows[rows["chosen"]]["probability"].min() >= options.sure
    open_ = (rows[~rows["chosen"]]["probability"] >= options.possible).any()
    if not sure or open_:
        return SEVERAL
    return ZERO_TERM if summands(evidence.chosen.candidates[term]) == (ZERO,) else IDENTIFIED


def _sentence(term: str, kind: str, evidence: Evidence) -> str:
    rows = evidence.inclusion[evidence.inclusion["term"] == term]
    parts = ", ".join(f"{row['summand']} ({row['probability']:.2f})" for _, row in rows.head(6).iterrows())
    if kind == ZERO_TERM:
        return f"{term} is zero as far as the data show (probability {rows.iloc[0]['probability']:.2f})."
    if kind == IDENTIFIED:
        return f"{term} is identified; probabilities that a summand belongs to it: {parts}."
    return f"{term} is open; probabilities that a summand belongs to it: {parts}."


def _still(samples: Mapping[str, Samples]) -> list[str]:
    return [
        f"The input {name} of {term} is the same ({values[0]:.3g}) all along, so no dependence on it can be found."
        for term, own in samples.items()
        for name, values in own.inputs.items()
        if not _varies(values)
    ]


def _varies(values: Array) -> bool:
    return float(np.ptp(values)) > 1e-6 * max(float(np.abs(values).max()), 1e-300)


def _collinear(term: str, samples: Samples) -> list[str]:
    """Pairs of inputs that vary together, so that no data of this kind tell their roles apart."""
    words = []
    varying = [name for name, values in samples.inputs.items() if _varies(values)]
    for i, first in enumerate(varying):
        for second in varying[i + 1 :]:
            r = float(np.corrcoef(samples.inputs[first], samples.inputs[second])[0, 1])
            if abs(r) > 0.999:
                words.append(
                    f"The inputs {first} and {second} of {term} move together (correlation {r:.4f}), so a term in the "
                    "one cannot be told from a term in the other."
                )
    return words
