"""What free parameters of the model take of a term, for searches that cannot fit it along."""

from __future__ import annotations

import numpy as np

from ude.discovery.evaluation import Array
from ude.discovery.samples import Samples
from ude.discovery.search.library import LibraryRegressor


def free_part(samples: Samples) -> Array:
    """The nuisance directions' share of the output, (N,), for a search that cannot fit them itself.

    They are fitted beside the simplest adequate library formula. Fitting them alone would take out of the target what
    it has in common with the formula sought; the share's size matters little, as constants are refitted beside free
    nuisance directions afterwards.
    """
    if samples.nuisance.shape[1] == 0:
        return np.zeros(samples.size)
    found = LibraryRegressor(atoms=False, max_terms=3, keep=4).search(samples)
    best = min(found, key=lambda c: samples.size * np.log(c.nmse + 1e-2) + c.complexity * np.log(samples.size))
    root = np.sqrt(samples.weights)
    rest = samples.output - best.evaluate(samples.inputs)
    factors = np.linalg.lstsq(samples.nuisance * root[:, None], rest * root, rcond=None)[0]
    return np.asarray(samples.nuisance @ factors)
