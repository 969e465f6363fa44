"""The model of a run folder, or of a ``model.toml`` in which everything is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ude.cli.run_folder import FIT, MODEL
from ude.cli.specification import read_specification
from ude.errors import InputError

if TYPE_CHECKING:
    from ude.models import UDE

FOUND = "model.json"


@dataclass(frozen=True)
class Trained:
    """A model with the starts that it was fitted with.

    u0: trajectory -> state -> number (empty where nothing was fitted). spans: trajectory -> first and last time.
    """

    model: UDE
    u0: dict[str, dict[str, float]]
    spans: dict[str, tuple[float, float]]
    time: str
    kind: str


def read_trained(source: Path) -> Trained:
    """What ``ude discover`` or ``ude fit`` left in a folder; or the model of a file with equations and numbers.

    Raises InputError where there is neither.
    """
    if source.suffix.lower() == ".toml":
        specification = read_specification(source)
        if not specification.equations:
            raise InputError(f"{source} has no equations", fix=f"Discover them first: ude discover {source}.")
        return Trained(specification.model(), _starts(specification.initial), {}, "t", "file")
    if not source.is_dir():
        raise InputError(
            f"there is no run in {source}",
            expected="a folder that ude discover or ude fit wrote, or a model.toml",
            got="a file" if source.exists() else "nothing there",
        )
    if (source / FOUND).is_file():
        return _found(source)
    if (source / FIT).is_file():
        return _fitted(source)
    begun = (source / MODEL).is_file()
    raise InputError(
        f"there is no model in {source}",
        expected=f"{FOUND} or {FIT}",
        fix=f"Continue the run: ude discover {source / MODEL} --out {source}." if begun else "",
    )


def _found(folder: Path) -> Trained:
    from ude.discovery.saved import read_discovery

    saved = read_discovery(folder)
    states, names = saved.model.states, saved.trajectories
    u0 = {n: dict(zip(states, row, strict=True)) for n, row in zip(names, saved.u0.tolist(), strict=True)}
    spans = {n: (float(a), float(b)) for n, (a, b) in zip(names, saved.spans.tolist(), strict=True)}
    return Trained(saved.model, u0, spans, saved.time, "discovery")


def _fitted(folder: Path) -> Trained:
    import ude

    fit = ude.fitting.load_fit(folder)
    if not isinstance(fit.model, ude.UDE):
        raise InputError(f"the fit in {folder} has no equations", got=type(fit.model).__name__)
    names = [trajectory.name for trajectory in fit.data.trajectories]
    u0 = {n: dict(zip(fit.model.states, row, strict=True)) for n, row in zip(names, fit.u0.tolist(), strict=True)}
    spans = {own.name: (float(own.t[0]), float(own.t[-1])) for own in fit.data.trajectories}
    return Trained(fit.model, u0, spans, fit.data.time_name, "fit")


def _starts(initial: object) -> dict[str, dict[str, float]]:
    numbers = {name: float(v) for name, v in dict(initial).items() if isinstance(v, int | float)}  # type: ignore[call-overload]
    return {"": numbers} if numbers else {}
