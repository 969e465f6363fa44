"""The command ``ude``: its commands, and how an error ends. A user's mistake is one clear line and exit status 2; a
mistake of ours is one line too, with the traceback in a log; Ctrl-C keeps what there is and ends with 130."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

import ude
from ude.cli import cache, discover, doctor, export, fit, report, simulate
from ude.cli.console import (
    FAILED,
    INTERRUPTED,
    MISSING,
    MISTAKE,
    OK,
    OURS,
    complain,
    in_words_of_the_command,
    json_text,
)
from ude.errors import BackendMissing, SolveFailed, UdeError

app = typer.Typer(
    name="ude",
    help="Universal differential equations: from data and half-known equations to equations.",
    add_completion=True,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)
app.command()(discover.discover)
app.command()(fit.fit)
app.command()(simulate.simulate)
app.command()(report.report)
app.command()(export.export)
app.command()(doctor.doctor)
app.command()(cache.cache)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ude {ude.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Universal differential equations: from data and half-known equations to equations."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit status, see `console`."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    with _terminated_like_interrupted():
        return _run(arguments)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as batch systems send it at the end of a job's time, keeps what there is, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's alone
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str]) -> int:
    try:
        status = get_command(app).main(args=arguments, prog_name="ude", standalone_mode=False)
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `ude simulate ... | head`: whoever read has seen enough
        sys.stdout = None
        return OK
    except SystemExit as ended:  # completion scripts end the process by themselves
        return ended.code if isinstance(ended.code, int) else OK
    except Exception as error:
        return _ended_by(error, arguments)
    return status if isinstance(status, int) else OK


def _ended_by(error: Exception, arguments: Sequence[str]) -> int:
    status, text = _judged(error, arguments)
    complain(text)
    if "--json" in arguments:
        parts = {name: getattr(error, name, "") for name in ("what", "expected", "got", "fix")}
        typer.echo(json_text({"error": {"message": text, **parts}, "exit": status}))
    return status


def _judged(error: Exception, arguments: Sequence[str]) -> tuple[int, str]:
    if isinstance(error, UdeError):
        status = MISSING if isinstance(error, BackendMissing) else FAILED if isinstance(error, SolveFailed) else MISTAKE
        file = any(argument.endswith(".toml") for argument in arguments)
        return status, in_words_of_the_command(str(error), file)
    if type(error).__name__ == "Abort":  # click's word for Ctrl-C at a question
        return INTERRUPTED, "interrupted"
    # typer's own words for an unknown option or a missing argument; its class has moved between releases
    if callable(getattr(error, "format_message", None)):
        words = str(getattr(error, "format_message")()).rstrip(".")  # noqa: B009
        command = next((name for name in arguments if name in _commands()), "discover")
        return MISTAKE, f"{words}. Try ude --help, or ude {command} --help."
    log = _logged(error, arguments)
    if "--verbose" in arguments or "-v" in arguments:
        traceback.print_exception(error)
    said = " ".join(str(error).split())[:200]
    return OURS, f"an error of ude, not of yours: {type(error).__name__}: {said}. Please report it with the log {log}"


def _commands() -> list[str]:
    return list(getattr(get_command(app), "commands", {}))


def _logged(error: Exception, arguments: Sequence[str]) -> Path:
    """Where the traceback is: in the run folder when there is one, else among temporary files."""
    from ude.cli.run_folder import versions

    text = "\n".join(
        [
            f"ude {' '.join(arguments)}",
            ", ".join(f"{name} {release}" for name, release in versions().items()),
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    folder = getattr(error, "ude_folder", None)
    if folder is not None:
        try:
            (folder / "error.log").write_text(text, encoding="utf-8")
            return Path(folder / "error.log")
        except OSError:
            pass  # a full disk may be the very error
    with tempfile.NamedTemporaryFile("w", prefix="ude-error-", suffix=".log", delete=False, encoding="utf-8") as file:
        file.write(text)
    return Path(file.name)
