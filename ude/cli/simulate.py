"""``ude simulate``: solve the equations of a run, or of a file, and write a table."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ude.cli.console import OK, Console, Json, counted
from ude.cli.trained import Trained, read_trained
from ude.errors import InputError

if TYPE_CHECKING:
    from ude.models import UDE


def simulate(
    source: Annotated[Path, typer.Argument(help="Run folder, or a model.toml in which everything is known.")],
    u0: Annotated[str | None, typer.Option("--u0", help="Initial states, 'hare=30, lynx=4'; those of the fit.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="Another value of a parameter, such as a=0.5.")] = None,
    trajectory: Annotated[str | None, typer.Option(help="Which run's start is taken, by its name in the data.")] = None,
    start: Annotated[
        float | None, typer.Option(help="First time of the table, and of an --u0 of every state; that of the data.")
    ] = None,
    end: Annotated[float | None, typer.Option(help="Last time; that of the data.")] = None,
    points: Annotated[int, typer.Option(help="How many times, evenly spaced.", min=2)] = 201,
    at: Annotated[str | None, typer.Option(help="The times themselves, '0, 0.5, 2'.")] = None,
    reltol: Annotated[float, typer.Option(help="Relative tolerance of the solver.")] = 1e-8,
    maxiters: Annotated[
        int, typer.Option(help="Steps of the solver at most; a second has about a thousand.", min=1)
    ] = 20_000,
    out: Annotated[Path | None, typer.Option(help="CSV file; stdout when left out.")] = None,
    json: Json = False,
) -> int:
    """Solve the equations of a run and print the states as CSV."""
    console = Console(json=json)
    trained = read_trained(source)
    model, states = trained.model, trained.model.states
    if not 0 < reltol < 1:
        raise InputError("--reltol must be between 0 and 1", got=str(reltol))
    numbers = {n: v for entry in param or () for n, v in assignments(entry, "--param", tuple(model.values())).items()}
    model.set_values(numbers)
    if trained.kind == "file" and model.unknown_outputs:
        raise InputError(
            f"{source} has unknown functions",
            got=", ".join(model.unknown_outputs),
            fix=f"Train them first (ude fit {source}) and simulate the run folder.",
        )
    given = assignments(u0 or "", "--u0", states)
    own = _start(trained, trajectory, given)
    times = _times(trained, trajectory, (start, end, points), at)
    first = _initial_time(trained, trajectory, times, start if len(given) == len(states) else None)
    if start is not None and start != first and given:
        raise InputError(
            "--u0 with --start must give every state",
            got=f"only {', '.join(given)}; the others are known at {first:g} and not at {start:g}",
            fix=f"Add them to --u0, or leave --start {start:g} out.",
        )
    values = _states(model, [own[state] for state in states], first, times, (reltol, maxiters))
    if console.json:
        series = {state: [row[index] for row in values] for index, state in enumerate(states)}
        console.result("", {trained.time: times, **series})
        return OK
    text = table([trained.time, *states], [[time, *row] for time, row in zip(times, values, strict=True)])
    if out is None:
        typer.echo(text, nl=False)
        return OK
    written(out, text)
    typer.echo(f"Wrote {counted(len(times), 'time')} to {out}")
    return OK


def _states(model: UDE, u0: list[float], first: float, times: list[float], how: tuple[float, int]) -> list[list[float]]:
    """States (time, state) at `times`, from `u0` at `first`. Raises SolveFailed with what to try."""
    import torch

    import ude

    reltol, maxiters = how
    if times[-1] == first:  # there is no span to solve over
        return [u0]
    saveat = torch.tensor(times, dtype=torch.float64)
    with torch.no_grad():
        problem = model.problem(u0, (first, times[-1]))
        sol = ude.solve(problem, saveat=saveat, abstol=1e-3 * reltol, reltol=reltol, maxiters=maxiters)
        found: list[list[float]] = sol.u.tolist()
    return found


def assignments(text: str, option: str, known: tuple[str, ...]) -> dict[str, float]:
    """Numbers by name from ``"hare=30, lynx=4"``. Raises InputError for what does not read and for other names."""
    found: dict[str, float] = {}
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        name, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise InputError(f"{option} does not read", expected="NAME=NUMBER", got=repr(part))
        if name not in known:
            from ude.models.equations.names import did_you_mean

            expected = f"one of {', '.join(known)}" if known else "none: the model has no parameters"
            raise InputError(f"{option} names {name!r}", expected=expected, fix=did_you_mean(name, known))
        found[name] = value
    return found


def _start(trained: Trained, trajectory: str | None, given: dict[str, float]) -> dict[str, float]:
    own = {**trained.u0.get(_run(trained, trajectory), {}), **given}
    missing = [state for state in trained.model.states if state not in own]
    if missing:
        example = ", ".join(f"{state}=1.0" for state in missing)
        raise InputError(f"no initial value of {', '.join(missing)}", fix=f"Give it: --u0 '{example}'.")
    return own


def _run(trained: Trained, trajectory: str | None) -> str:
    names = list(trained.u0)
    if trajectory is None:
        return names[0] if names else ""
    if trajectory not in names:
        raise InputError(f"there is no trajectory {trajectory!r}", expected=f"one of {', '.join(names) or 'none'}")
    return trajectory


def _span(trained: Trained, trajectory: str | None) -> tuple[float, float | None]:
    return trained.spans.get(_run(trained, trajectory), (0.0, None))


def _initial_time(trained: Trained, trajectory: str | None, times: list[float], given: float | None) -> float:
    """The time of the initial state: a fitted one is that of the first time of the data, wherever the table begins."""
    first = _span(trained, trajectory)[0] if given is None else given
    if times[0] < first:
        raise InputError(
            "times must not precede the initial state",
            expected=f"times from {first:g} on",
            got=f"{times[0]:g}",
            fix="Give --start with an --u0 of every state.",
        )
    return first


def _times(
    trained: Trained, trajectory: str | None, even: tuple[float | None, float | None, int], at: str | None
) -> list[float]:
    start, end, points = even
    if at is not None:
        try:
            times = [float(part) for part in at.split(",")]
        except ValueError:
            raise InputError("--at does not read", expected="times such as '0, 0.5, 2'", got=repr(at)) from None
    else:
        first, last = _span(trained, trajectory)
        start, end = first if start is None else start, last if end is None else end
        if end is None:
            raise InputError("no last time", fix="Give it: --end 10.")
        times = [start + (end - start) * i / (points - 1) for i in range(points - 1)] + [end]
    if not all(map(math.isfinite, times)) or any(b <= a for a, b in zip(times, times[1:], strict=False)):
        raise InputError("times must be finite and increase", got=", ".join(f"{time:g}" for time in times[:6]))
    if at is not None and start is not None and times[0] < start:
        raise InputError("--at must not precede --start", got=f"{times[0]:g} before {start:g}")
    return times


def table(header: list[str], rows: list[list[float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[repr(number) for number in row] for row in rows])
    return text.getvalue()


def written(path: Path, text: str) -> None:
    """Write a file that was asked for. Raises InputError where it cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written", got=error.strerror or str(error), fix="Choose another with --out."
        ) from error
