"""The figures and the page of a discovery: its numbers, handed to `reporting`, which knows nothing of discoveries."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ude.discovery.evaluation import Array
from ude.discovery.result import DiscoveryResult
from ude.discovery.samples import Samples
from ude.discovery.sampling import observed
from ude.models import to_text
from ude.models.equations.names import TIME
from ude.reporting import plots


def data_and_prediction(found: DiscoveryResult) -> Figure:
    """Data and the found equations against time, simulated with the constants from training data alone.

    In the held-out stretch the line is therefore a forecast; the constants that are printed are refitted on all data.
    """
    data, model, labels, tails = trajectories(found)
    return plots.data_and_model(data, model, labels, held_out_from=tails)


def phase_plane(found: DiscoveryResult) -> Figure | None:
    """The first state against the second, as in `data_and_prediction`; None where there is only one state."""
    data, model, labels, tails = trajectories(found)
    return plots.phase_plane(data, model, labels, held_out_from=tails) if len(labels.states) > 1 else None


def terms(found: DiscoveryResult) -> Figure:
    """Each unknown function along the trajectories of the fit: what the network did, and what its formula does.

    Where a fitted parameter can take up part of a network (``a`` in ``a*hare - U1(hare, lynx)`` any multiple of
    ``hare``), the network is drawn with that part as the formula has it: two equal models shall not look different.
    """
    t = np.asarray(found.along[TIME])
    drawn = []
    for name, formula in found.terms.items():
        samples = found.samples[name]
        values = found.chosen.candidates[name].evaluate(samples.inputs)
        drawn.append(
            plots.Term(
                name,
                samples.inputs,
                in_the_gauge_of(values, samples)[0],
                values,
                to_text(formula, 4),
                # a function that is called with several lists of arguments has samples of all, one after another
                t if samples.size == len(t) else None,
            )
        )
    return plots.terms(drawn, time_name=found.fit.data.time_name)


def front(found: DiscoveryResult) -> Figure:
    """Complexity of the combinations that were put back against their misfit to the training data; one is chosen."""
    table = found.front
    texts = [", ".join(f"{name} = {row[name]}" for name in found.terms) for _, row in table.iterrows()]
    return plots.front(
        table["complexity"].to_numpy(dtype=float),
        table["sse"].to_numpy(dtype=float),
        int(np.flatnonzero(table["chosen"].to_numpy(dtype=bool))[0]),
        texts=texts,
        error_name="misfit to the training data (scaled SSE)",
    )


def error_table(found: DiscoveryResult) -> list[list[object]]:
    """Rows of (what, error of each state): training and held-out with training constants, all with the final ones."""
    fit = found.fit
    rows: list[list[object]] = []
    if fit.held_out is not None:
        fitted = found.rmse(fit.train, training_constants=True)
        rows.append(["on training data", *fitted.values()])
        forecast = [found.held_out_rmse.get(state, float("inf")) for state in fit.measurement.names]
        rows.append(["on held-out data (forecast)", *forecast])
    rows.append(["on all data, refitted to all", *found.rmse().values()])
    return rows


def trajectories(
    found: DiscoveryResult,
) -> tuple[list[plots.Series], list[plots.Series], plots.Labels, list[float] | None]:
    fit = found.fit
    data, model = [], []
    for index, trajectory in enumerate(observed(fit, fit.data)):
        t = np.union1d(np.linspace(trajectory.t[0], trajectory.t[-1], 400), trajectory.t)
        model.append(plots.Series(t, found._columns(index, t, True)))
        data.append(plots.Series(trajectory.t, trajectory.u))
    tails = None
    if fit.held_out is not None:
        tails = [float(tail.t[0]) if len(tail) else float("inf") for tail in fit.held_out.trajectories]
    return data, model, plots.Labels(fit.measurement.names, fit.data.time_name), tails


def in_the_gauge_of(formula: Array, samples: Samples) -> tuple[Array, Array]:
    """The network's samples plus what free parameters may add to them to come closest to the formula, and how much of
    each of these directions that is."""
    if samples.nuisance.shape[1] == 0 or not np.all(np.isfinite(formula)):
        return samples.output, np.zeros(samples.nuisance.shape[1])
    coefficients, *_ = np.linalg.lstsq(samples.nuisance, formula - samples.output, rcond=None)
    return samples.output + samples.nuisance @ coefficients, np.asarray(coefficients, dtype=np.float64)
