"""The options that ``discover`` and ``fit`` share, and what they ask for: a `Specification`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ude.cli.specification import Holdout, Specification, nothing_known, read_specification
from ude.errors import InputError

if TYPE_CHECKING:
    from ude.fitting import Dataset
    from ude.models import UDE, Parameter

Source = Annotated[Path, typer.Argument(help="Table of measurements (CSV with a header), or a model.toml.")]
Equations = Annotated[
    list[str] | None,
    typer.Option(
        "--equation",
        "-e",
        help="One equation, such as 'dhare/dt = a*hare - U1(hare, lynx)'; once for each state. Functions that are not "
        "known ones are to be found. Left out: nothing is known, and every column is a state.",
    ),
]
Fitted = Annotated[str | None, typer.Option("--fit", help="Parameters to fit: 'a,d' or 'a=0.5 in [0, 2], d'.")]
Known = Annotated[list[str] | None, typer.Option("--param", help="A known parameter, such as alpha=1.3.")]
Time = Annotated[str | None, typer.Option(help="Column of the time; guessed from its name when left out.")]
Trajectory = Annotated[str | None, typer.Option(help="Column that tells several runs apart.")]
HoldoutOption = Annotated[
    str | None,
    typer.Option(help="End of the data kept out of fitting: a fraction (0.25), a number of points or 'after TIME'."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Run folder; a new one under runs/ when left out. One of the same run is continued."),
]
Seed = Annotated[int | None, typer.Option(help="The same seed (0) gives the same answer.", min=0)]


@dataclass(frozen=True)
class Request:
    """The options as they were written; None for what was not given."""

    source: Path
    equations: tuple[str, ...] = ()
    fit: str | None = None
    parameters: tuple[str, ...] = ()
    time: str | None = None
    trajectory: str | None = None
    holdout: str | None = None
    seed: int | None = None

    def specification(self) -> Specification:
        """Of a file, with seed and holdout as given here; or of options alone. Raises InputError."""
        if self.source.suffix.lower() != ".toml":
            return Specification(
                name=self.source.stem,
                file=self.source,
                time=self.time,
                trajectory=self.trajectory,
                equations=tuple(line for text in self.equations for line in text.splitlines() if line.strip()),
                parameters=self._parameters(),
                holdout=holdout(self.holdout) if self.holdout is not None else 0.25,
                seed=self.seed or 0,
            )
        names = {"--equation": self.equations, "--fit": self.fit, "--param": self.parameters, "--time": self.time}
        doubled = [name for name, given in {**names, "--trajectory": self.trajectory}.items() if given]
        if doubled:
            raise InputError(
                f"{', '.join(doubled)} cannot be given beside {self.source}",
                fix=f"Write it into {self.source.name}; only --out, --holdout and --seed go before it.",
            )
        found = read_specification(self.source)
        if self.holdout is not None:
            found = replace(found, holdout=holdout(self.holdout))
        return found if self.seed is None else replace(found, seed=self.seed)

    def _parameters(self) -> dict[str, Parameter]:
        from ude.models import parse_parameters
        from ude.models.parameters import merge_parameters

        known: dict[str, Parameter] = {}
        for entry in self.parameters:
            for name, parameter in parse_parameters(entry, fitted=False).items():
                if parameter.value is None:
                    raise InputError(
                        f"--param {entry} has no value", expected="NAME=NUMBER", fix="To fit it, use --fit."
                    )
                if name in known:
                    raise InputError(f"--param gives {name} twice")
                known[name] = parameter
        return merge_parameters(known, self.fit or None)


def holdout(text: str) -> Holdout:
    """A number where it reads as one; "0.25" is a fraction, "5" a number of points."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def opened(specification: Specification) -> tuple[Specification, UDE, Dataset]:
    """The specification with its equations, the model and its data, with everything checked that can be checked
    before training."""
    if not specification.equations:
        data = specification.dataset(None)
        specification = replace(specification, equations=nothing_known(data.states))
        model = specification.model()
    else:
        model = specification.model()
        data = specification.dataset(model.states)
    whole, _ = data.split(specification.holdout)
    whole.split(specification.validation)
    return specification, model, data
