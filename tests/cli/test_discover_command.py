"""The command: every mistake is one clear line and exit status 2; a run writes what it says; Ctrl-C keeps the fit."""

from __future__ import annotations

import csv
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ude
from ude.cli import main

LYNX_HARE = Path(ude.__file__).parent / "datasets" / "lynx_hare.csv"
EQUATIONS = [
    *("--equation", "dhare/dt = a*hare - U1(hare, lynx)"),
    *("--equation", "dlynx/dt = U2(hare, lynx) - d*lynx"),
]
TABLE = "year,hare,lynx\n" + "".join(f"{1900 + i},{30 + i},{4 + i}\n" for i in range(8))


def table(tmp_path: Path, text: str = TABLE) -> str:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return str(path)


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines on stderr of a command that must be refused with status 2, before anything is printed as a result."""
    status = main(arguments)
    printed = capsys.readouterr()
    assert status == 2, printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert printed.err.startswith("ude: ")
    return printed.err.removeprefix("ude: ").splitlines()


# -- mistakes in the data ----------------------------------------------------------------------------------------------

CELLS = TABLE.splitlines()
BAD_TABLES = {
    "missing column": ("year,hare\n1900,1\n1901,2\n", "the data have no column 'lynx' for the state: expected one of"),
    "text in a number column": (
        TABLE.replace("1903,33", "1903,many"),
        "column 'hare' has text in row 4 (line 5 of the file): expected a number, got 'many'",
    ),
    "time missing": (TABLE.replace("1903,", ","), "column 'year' has no value in row 4 (line 5 of the file)"),
    "duplicate times": (TABLE.replace("1903,", "1902,"), "1902"),
    "unsorted times": ("\n".join([CELLS[0], CELLS[2], CELLS[1], *CELLS[3:]]), "1900"),
    "one row": ("year,hare,lynx\n1900,1,2\n", "1"),
    "no rows": ("year,hare,lynx\n", "the table has a header and no rows"),
    "empty file": ("", "is empty"),
    "no header": ("1900,1,2\n1901,2,3\n", "should name the columns"),
    "ragged line": (TABLE + "1908,1\n", "line 10"),
}


@pytest.mark.parametrize(("text", "says"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_table_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str) -> None:
    lines = mistake(capsys, "discover", table(tmp_path, text), *EQUATIONS, "--fit", "a,d")
    assert len(lines) == 1
    assert says in lines[0]


def test_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = mistake(capsys, "discover", str(tmp_path / "none.csv"), *EQUATIONS, "--fit", "a,d")
    assert len(lines) == 1
    assert lines[0].startswith(f"there is no file {tmp_path / 'none.csv'}")


def test_misspelt_time_column_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--time", "yaer")
    assert len(lines) == 1
    assert "no column 'yaer' for the time" in lines[0]
    assert "Did you mean 'year'?" in lines[0]


# -- mistakes in the equations -----------------------------------------------------------------------------------------


def test_misspelt_state_offers_the_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), "-e", "dhair/dt = a*hair - U(hair)", "--fit", "a")
    assert len(lines) == 1
    assert "no column 'hair' for the state" in lines[0]
    assert "Did you mean 'hare'?" in lines[0]


def test_equation_that_does_not_parse_has_a_caret_under_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), "-e", "dhare/dt = a*hare - U(hare", "--fit", "a")
    message, source, caret = lines
    assert message == "the formula does not parse: this '(' is never closed."
    assert source.strip() == "dhare/dt = a*hare - U(hare"
    assert source[caret.index("^")] == "("


def test_unknown_symbol_is_advised_in_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message, source, caret = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a")
    assert "unknown symbol d" in message
    assert "(--param d=1.0)" in message
    assert "(--fit d)" in message
    assert source[caret.index("^")] == "d"


def test_name_to_fit_that_is_in_no_equation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d,z")
    assert lines == ["--fit names z, which is not in the equations."]


def test_equations_without_an_unknown_function_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), "-e", "dhare/dt = a*hare", "--fit", "a")
    assert len(lines) == 1
    assert lines[0].startswith("the equations have no unknown function: expected at least one")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--param", "a"], "--param a has no value: expected NAME=NUMBER. To fit it, use --fit."),
        (["--param", "a=1", "--param", "a=2"], "--param gives a twice."),
        (["--param", "a=one"], "the list of parameters does not read: expected NAME, NAME=NUMBER or"),
        (["--fit", "a d"], "the list of parameters does not read: expected NAME, NAME=NUMBER or"),
    ],
)
def test_parameter_that_does_not_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), "-e", "dhare/dt = a*hare - U(hare)", *options)
    assert len(lines) == 1
    assert lines[0].startswith(says)


# -- mistakes in the options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holdout", "says"),
    [
        ("1.5", "--holdout is not usable: expected a fraction from 0 to below 1"),
        ("-1", "--holdout is not usable"),
        ("nan", "--holdout is not usable"),
        ("some", "--holdout is not usable"),
        ("7", "--holdout 7 leaves too little for training: expected at least 2 points, got 1 of 8."),
        ("after 1900", "--holdout 'after 1900' leaves too little for training"),
    ],
)
def test_holdout_that_is_not_usable_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], holdout: str, says: str
) -> None:
    lines = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--holdout", holdout)
    assert len(lines) == 1
    assert lines[0].startswith(says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dicsover"], "No such command 'dicsover'"),
        (["discover"], "Missing argument"),
        (["discover", "table.csv", "-e", "dx/dt = U(x)", "--fti", "a"], "No such option: --fti"),
        (["discover", "table.csv", "-e", "dx/dt = U(x)", "--seed", "one"], "Invalid value for '--seed'"),
        (["discover", "table.csv", "-e", "dx/dt = U(x)", "--seed", "-1"], "Invalid value for '--seed'"),
    ],
)
def test_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    lines = mistake(capsys, *arguments)
    assert len(lines) == 1
    assert lines[0].startswith(says)
    assert lines[0].endswith("Try ude --help, or ude discover --help.")


def test_folder_that_cannot_be_written_to_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ude, "fit", _must_not_be_called)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "run"
    lines = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--out", str(out))
    assert len(lines) == 1
    assert lines[0].startswith(f"the folder {out} cannot be written to")
    assert lines[0].endswith("Choose another with --out.")


def test_folder_that_is_not_empty_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ude, "fit", _must_not_be_called)
    out = tmp_path / "run"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    lines = mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--out", str(out))
    assert lines == [f"the folder {out} is not empty. Choose another with --out, or delete it if it is not needed."]
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    mistake(capsys, "discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--holdout", "9", "--out", str(out))
    assert not out.exists()


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("the long work began")


@pytest.mark.parametrize("verbose", [[], ["--verbose"]])
def test_a_mistake_of_ours_is_one_line_with_its_log_in_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verbose: list[str]
) -> None:
    monkeypatch.setattr(ude, "fit", _must_not_be_called)
    out = tmp_path / "run"
    assert main(["discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--out", str(out), *verbose]) == 1
    complained = capsys.readouterr().err
    assert f"AssertionError: the long work began. Please report it with the log {out / 'error.log'}" in complained
    assert ("Traceback" in complained) == bool(verbose)
    log = (out / "error.log").read_text()
    assert "Traceback" in log
    assert f"ude {ude.__version__}" in log


def test_a_mistake_of_ours_without_a_folder_is_logged_among_temporary_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ude.cli.doctor._CHECKS", (_must_not_be_called,))
    assert main(["doctor"]) == 1
    log = Path(capsys.readouterr().err.strip().rsplit(" ", 1)[1])
    assert "the long work began" in log.read_text()
    log.unlink()


# -- what is not a mistake ---------------------------------------------------------------------------------------------


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ude {ude.__version__}\n"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--equation", "--fit", "--param", "--time", "--trajectory", "--holdout", "--out", "--seed"):
        assert option in text


def test_cache_is_shown_and_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ude.compile import build

    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out.startswith(f"0 kernels, 0 bytes, in {tmp_path}\n")
    build.compile_kernel("int one(void) { return 1; }\n")
    files, size = build.cache_size()
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"1 kernel, {size / 1000:.1f} kB, in {tmp_path}\n"
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"Deleted {files} files, {size / 1000:.1f} kB, in {tmp_path}\n"
    assert build.cache_size() == (0, 0)


def test_cache_without_a_compiler_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == (
        f"0 kernels, 0 bytes, in {tmp_path}\n"
        "Nothing can be compiled here: there is no C compiler at $CC: no-such-compiler. "
        "Set CC to the path of one, or unset it.\n"
    )


@pytest.mark.parametrize(
    ("size", "written"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (2_500_000_000_000, "2500.0 GB")],
)
def test_sizes_are_written_as_people_read_them(size: int, written: str) -> None:
    from ude.cli.cache import as_bytes

    assert as_bytes(size) == written


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "discover" in capsys.readouterr().out


def test_help_imports_nothing_that_only_a_run_needs() -> None:
    code = """
import sys
from ude.cli import main
main(["--help"])
print([name for name in ("sympy", "pandas", "scipy", "matplotlib") if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_second_run_takes_the_next_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ude, "fit", _must_not_be_called)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--quiet"]) == 1
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["table-1", "table-2"]


# -- whole runs --------------------------------------------------------------------------------------------------------


def logistic(tmp_path: Path) -> str:
    """dx/dt = 0.8 x - 0.1 x^2 from x(0) = 0.5, at 24 times, to four digits."""
    t = np.linspace(0, 12, 24)
    x = solve_ivp(lambda _, x: 0.8 * x - 0.1 * x**2, (0, 12), [0.5], t_eval=t, rtol=1e-10, atol=1e-12).y[0]
    return table(tmp_path, "t,x\n" + "".join(f"{ti:.6f},{xi:.4f}\n" for ti, xi in zip(t, x, strict=True)))


def test_run_of_one_state_finds_the_equation_and_writes_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    status = main(["discover", logistic(tmp_path), "-e", "dx/dt = r*x - U(x)", "--fit", "r", "--out", str(out), "-q"])
    printed = capsys.readouterr()
    assert status == 0
    assert printed.err == ""
    assert "dx/dt = 0.8" in printed.out
    assert "x**2" in printed.out
    assert str(out) in printed.out
    # with one state there is no phase plane to draw
    assert not (out / "figures" / "phase.png").exists()
    assert (out / "figures" / "data_vs_prediction.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "settings.json").read_text())["request"]["parameters"] == {"r": "fit"}
    written: dict[str, object] = {}
    exec((out / "equations.py").read_text(), written)
    slope = written["rhs"](0.0, [2.0])[0]  # type: ignore[operator]
    assert slope == pytest.approx(0.8 * 2 - 0.1 * 4, rel=0.02)
    assert ude.fitting.load_fit(out).seed == 0


def test_interrupt_keeps_the_fit_and_ends_with_130(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ude.cli", "discover", str(LYNX_HARE), *EQUATIONS, "--fit", "a,d"]
    # a shell that started the tests in the background ignores SIGINT, and a child inherits that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    log = out / "stage-1.log"
    for _ in range(6000):
        # the first stage has ended and the second has kept an evaluation, however fast the machine
        if log.exists() and log.stat().st_size > 0:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    printed, complained = running.communicate(timeout=120)
    assert running.returncode == 130, complained
    assert "Traceback" not in complained
    assert f"Interrupted; the fit so far is in {out}" in printed
    fit = ude.fitting.load_fit(out)
    assert fit.interrupted
    assert np.all(np.isfinite(fit.u0))


def test_interrupt_while_formulas_are_fitted_writes_the_best_and_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tail of the data is held out by default, so that the best was fitted to a part of them."""
    module, calls = importlib.import_module("ude.discovery.selection.refits_cache"), 0
    fit_closed_form = module.fit_closed_form

    def interrupted(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return fit_closed_form(*arguments, **named)

    monkeypatch.setattr(module, "fit_closed_form", interrupted)
    out = tmp_path / "run"
    t = np.linspace(0, 8, 16)
    rows = [f"{ti:.6f},{8 / (1 + 15 * np.exp(-0.8 * ti)):.4f}" for ti in t]
    command = [
        "discover",
        table(tmp_path, "\n".join(["t,x", *rows])),
        "-e",
        "dx/dt = r*x - U(x)",
        "--param",
        "r=0.8",
        "--quiet",
    ]
    assert main([*command, "--out", str(out)]) == 130
    found = json.loads((out / "discovery.json").read_text())
    assert found["interrupted"]
    assert (out / "equations.txt").exists()
    assert (out / "report.html").exists()


@pytest.mark.parametrize(
    "interruption", [KeyboardInterrupt(), ude.errors.ModelError("interrupted before any formula had been fitted")]
)
def test_interrupt_before_the_first_formula_keeps_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    class Trained:
        interrupted = False

    def interrupted(*_: object, **__: object) -> None:
        raise interruption

    monkeypatch.setattr("ude.cli.discover.train", lambda *_, **__: Trained())
    monkeypatch.setattr(ude, "discover", interrupted)
    out = tmp_path / "run"
    assert main(["discover", table(tmp_path), *EQUATIONS, "--fit", "a,d", "--out", str(out)]) == 130
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"Interrupted before a formula was found; the fit is in {out}"
    assert second == f"The same command with --out {out} continues it."


def test_runs_of_one_table_are_fitted_together_with_nothing_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["run,t,x"]
    for run, start in enumerate((0.5, 3.0)):
        t = np.linspace(0, 8, 12)
        x = solve_ivp(lambda _, x: 0.8 * x - 0.1 * x**2, (0, 8), [start], t_eval=t, rtol=1e-10, atol=1e-12).y[0]
        rows += [f"{run},{ti:.6f},{xi:.4f}" for ti, xi in zip(t, x, strict=True)]
    path, out = table(tmp_path, "\n".join(rows)), tmp_path / "run"
    options = ["--param", "r=0.8", "--trajectory", "run", "--time", "t", "--holdout", "0", "--quiet"]
    assert main(["discover", path, "-e", "dx/dt = r*x - U(x)", *options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Equations found from 24 points:" in printed
    assert "held-out" not in printed
    assert json.loads((out / "discovery.json").read_text())["terms"] == {"U": "c0*x**2"}
    assert len(ude.fitting.load_fit(out).u0) == 2


@pytest.fixture(scope="module")
def hudson_bay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's run, with the command as a user types it."""
    out = tmp_path_factory.mktemp("hudson_bay") / "run"
    command = [sys.executable, "-m", "ude.cli", "discover", str(LYNX_HARE), *EQUATIONS, "--fit", "a,d"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (out / "printed.txt").write_text(done.stdout)
    (out / "progress.txt").write_text(done.stderr)
    return out


@pytest.mark.end_to_end
def test_hudson_bay_has_exactly_one_product_in_each_equation(hudson_bay: Path) -> None:
    found = json.loads((hudson_bay / "discovery.json").read_text())
    assert found["terms"] == {"U1": "c0*hare*lynx", "U2": "c0*hare*lynx"}
    printed = (hudson_bay / "printed.txt").read_text().split("Candidates")[0]
    assert printed.count("*hare*lynx") == 2
    # the README shows these equations; their digits may move a little between processors
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for state in ("hare", "lynx"):
        [shown], [come_out] = (re.findall(rf"^ *(d{state}/dt = \d.*)$", text, re.M) for text in (readme, printed))
        assert re.sub(r"[\d.]+", "#", shown) == re.sub(r"[\d.]+", "#", come_out)
        numbers = [[float(number) for number in re.findall(r"\d+\.\d+", text)] for text in (shown, come_out)]
        assert numbers[0] == pytest.approx(numbers[1], rel=5e-3)


@pytest.mark.end_to_end
def test_hudson_bay_is_described_as_well_as_by_least_squares(hudson_bay: Path) -> None:
    # least-squares Lotka-Volterra: 4.28 hare, 3.17 lynx (thousand pelts) over 1900-1920
    errors = json.loads((hudson_bay / "discovery.json").read_text())["rmse"]
    assert errors["hare"] <= 4.6
    assert errors["lynx"] <= 3.5


@pytest.mark.end_to_end
def test_hudson_bay_folder_has_all_that_was_promised(hudson_bay: Path) -> None:
    names = {path.name for path in hudson_bay.iterdir()}
    assert {"fit.json", "fit.safetensors", "history.csv", "settings.json", "discovery.json", "report.html"} <= names
    assert {"equations.txt", "equations.tex", "equations.py", "equations.jl", "front.csv"} <= names
    for name in ("data_vs_prediction", "phase", "term_U1", "term_U2", "front"):
        assert (hudson_bay / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in (hudson_bay / "figures" / f"{name}.svg").read_bytes()
    with (hudson_bay / "front.csv").open() as file:
        front = list(csv.DictReader(file))
    assert sum(row["chosen"] == "True" for row in front) == 1
    assert {"U1", "U2", "complexity", "score", "held-out rmse hare", "held-out rmse lynx"} <= set(front[0])
    settings = json.loads((hudson_bay / "settings.json").read_text())
    assert settings["request"]["fit"]["seed"] == 0
    assert settings["versions"]["ude"] == ude.__version__
    assert settings["data"]["sha256"] == ude.read_csv(LYNX_HARE).digest


@pytest.mark.end_to_end
def test_hudson_bay_shows_progress_and_held_out_errors(hudson_bay: Path) -> None:
    assert "single shooting" in (hudson_bay / "progress.txt").read_text()
    printed = (hudson_bay / "printed.txt").read_text()
    assert "on held-out data (forecast)" in printed
