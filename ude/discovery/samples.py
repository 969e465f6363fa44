"""What a search for formulas is given: samples of one unknown term along the fitted trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ude.discovery.evaluation import Array
from ude.errors import DataError


@dataclass(frozen=True)
class Samples:
    """What one unknown term did along the fitted trajectories.

    inputs: the term's arguments by name, each of shape (N,), in natural units.
    output: the term's value, shape (N,).
    name: the term, for messages.
    nuisance: directions, shape (N, k), that free parameters of the model can take up as well as the term. With
        ``dx/dt = a*x - U(x, y)`` and ``a`` fitted, ``U`` is known only up to a multiple of ``x``, so ``x`` is a
        nuisance column: every search fits it freely and charges nothing for it.
    weights: how much each sample counts, shape (N,), not negative.

    Raises DataError where a number is missing or infinite, or the lengths disagree.

    >>> x = np.linspace(0.1, 3.0, 40)
    >>> samples = ude.search.Samples({"x": x}, 2.0 * x - 0.5 * x**2)
    >>> samples.nuisance.shape, samples.weights.shape
    ((40, 0), (40,))
    """

    inputs: dict[str, Array]
    output: Array
    name: str = "U"
    nuisance: Array = field(default_factory=lambda: np.empty((0, 0)))
    weights: Array = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        output = _column(f"output of {self.name}", self.output)
        size = output.shape[0]
        if size < 2:
            raise DataError(
                f"too few samples of {self.name}",
                expected="at least 2",
                got=str(size),
                fix="Sample the term more densely in time.",
            )
        if not self.inputs:
            raise DataError(f"no inputs for {self.name}", expected="at least one named input", fix="Name an argument.")
        inputs = {key: _column(f"input {key} of {self.name}", value, size) for key, value in self.inputs.items()}
        nuisance = np.asarray(self.nuisance, dtype=np.float64)
        if nuisance.size == 0:
            nuisance = np.empty((size, 0))
        if nuisance.ndim != 2 or nuisance.shape[0] != size:
            raise DataError(
                f"nuisance columns of {self.name}", expected=f"shape ({size}, k)", got=f"shape {nuisance.shape}"
            )
        for index in range(nuisance.shape[1]):
            _column(f"nuisance column {index} of {self.name}", nuisance[:, index], size)
        weights = (
            np.ones(size) if np.size(self.weights) == 0 else _column(f"weights of {self.name}", self.weights, size)
        )
        if np.any(weights < 0) or not np.any(weights > 0):
            raise DataError(f"weights of {self.name}", expected="none negative and some positive", got=str(weights))
        for key, value in {"inputs": inputs, "output": output, "nuisance": nuisance, "weights": weights}.items():
            object.__setattr__(self, key, value)

    @property
    def size(self) -> int:
        return int(self.output.shape[0])


def project_out(samples: Samples, columns: Array) -> Array:
    """Columns (N, m) times sqrt(weight), less what the nuisance columns explain of them (Frisch & Waugh 1933)."""
    root = np.sqrt(samples.weights)[:, None]
    weighted = columns * root
    if samples.nuisance.shape[1] == 0:
        return weighted
    nuisance = samples.nuisance * root
    norms = np.linalg.norm(nuisance, axis=0)
    basis, sizes, _ = np.linalg.svd(nuisance[:, norms > 0] / norms[norms > 0], full_matrices=False)
    basis = basis[:, sizes > 1e-12 * max(sizes.max(initial=0.0), 1e-300)]
    return np.asarray(weighted - basis @ (basis.T @ weighted))


def normalized_error(samples: Samples, values: Array) -> float:
    """``|P(y - values)|^2 / |P y|^2`` with P the weighted projection beside the nuisance columns."""
    both = project_out(samples, np.stack([samples.output - values, samples.output], axis=1))
    wrong, whole = float(both[:, 0] @ both[:, 0]), float(both[:, 1] @ both[:, 1])
    if is_negligible(samples):
        return 0.0 if wrong <= whole * (1 + 1e-9) else float("inf")
    return wrong / whole


def is_negligible(samples: Samples) -> bool:
    """Whether the nuisance columns explain the output to rounding, so that the formula 0 is a perfect one."""
    rest = project_out(samples, samples.output[:, None])
    whole = np.sqrt(samples.weights) * samples.output
    return float(np.linalg.norm(rest)) <= 1e-10 * float(np.linalg.norm(whole))


def thin(samples: Samples, most: int) -> Samples:
    """An even selection of at most so many samples."""
    if samples.size <= most:
        return samples
    rows = np.unique(np.linspace(0, samples.size - 1, most).round().astype(int))
    if not np.any(samples.weights[rows] > 0):
        return samples
    return Samples(
        {name: value[rows] for name, value in samples.inputs.items()},
        samples.output[rows],
        samples.name,
        samples.nuisance[rows],
        samples.weights[rows],
    )


def _column(what: str, value: Array, size: int | None = None) -> Array:
    column = np.asarray(value, dtype=np.float64)
    if column.ndim != 1 or (size is not None and column.shape[0] != size):
        wanted = "one number a sample" if size is None else f"shape ({size},)"
        raise DataError(what, expected=wanted, got=f"shape {column.shape}")
    bad = np.flatnonzero(~np.isfinite(column))
    if bad.size:
        raise DataError(
            what,
            expected="finite numbers",
            got=f"{column[bad[0]]} at sample {bad[0]} ({bad.size} in all)",
            fix="Leave those samples out.",
        )
    return column
