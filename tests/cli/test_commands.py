"""The commands on one small run, as a new user types them; and ``model.toml``, whose mistakes name key and line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import ude
from ude.cli import main
from ude.cli.specification import Specification, read_specification
from ude.cli.toml_reader import TomlReader

MODEL = """
[data]
file = "growth.csv"
time = "day"

[equations]
x = "r*x - U(x)"

[parameters]
r = { value = 0.7, lower = 0.0, upper = 2.0, fit = true }

[unknown.U]
positive = true
zero_at = "x=0"
width = 8

[discover]
regressors = ["library"]
max_candidates = 3
"""


def growth(folder: Path) -> Path:
    """dx/dt = 0.8 x - 0.1 x^2 from 0.5 at 20 times, to four digits, and what is known of it."""
    t = np.linspace(0, 12, 20)
    x = solve_ivp(lambda _, x: 0.8 * x - 0.1 * x**2, (0, 12), [0.5], t_eval=t, rtol=1e-10, atol=1e-12).y[0]
    lines = [f"{a:.6f},{b:.4f}" for a, b in zip(t, x, strict=True)]
    (folder / "growth.csv").write_text("day,x\n" + "\n".join(lines) + "\n")
    (folder / "model.toml").write_text(MODEL)
    return folder / "model.toml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, for all commands."""
    folder = tmp_path_factory.mktemp("commands")
    assert main(["discover", str(growth(folder)), "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def output(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status, capsys.readouterr().err
    return capsys.readouterr().out


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    return said.err


def slope(x: Any) -> Any:
    return 0.8 * x - 0.1 * x**2


# -- the run folder ----------------------------------------------------------------------------------------------------


def test_run_folder_repeats_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "discover", run / "model.toml", "--out", tmp_path / "again", "-q", "--json"))
    first = json.loads((run / "discovery.json").read_text())
    assert found["constants"] == first["constants"]
    assert found["terms"].keys() == first["terms"].keys() == {"U"}
    assert (tmp_path / "again" / "model.toml").read_text() == (run / "model.toml").read_text()


def test_finished_run_is_continued_to_the_same_end(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ude.discovery.search import fronts_cache as kept_fronts

    monkeypatch.setattr(kept_fronts, "fronts", None)  # the run has its candidates: nothing is searched again
    before = (run / "equations.txt").read_text()
    found = json.loads(output(capsys, "discover", run.parent / "model.toml", "--out", run, "-q", "--json"))
    assert (run / "equations.txt").read_text() == before
    assert found["verdict"]["kind"] == "identified"
    assert found["equations"] == before.splitlines()


def test_folder_of_another_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = mistake(capsys, "discover", run.parent / "model.toml", "--seed", 3, "--out", run)
    assert said.startswith(f"ude: the folder {run} holds another run: expected the same as in its model.toml, got")
    assert "another fit." in said


def test_another_search_uses_the_fit_of_the_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    model = tmp_path / "run" / "model.toml"
    fit = (tmp_path / "run" / "fit.safetensors").read_bytes()
    other = tmp_path / "model.toml"
    other.write_text(MODEL.replace("max_candidates = 3", "max_candidates = 2"))
    shutil.copy(run.parent / "growth.csv", tmp_path)
    output(capsys, "discover", other, "--out", tmp_path / "run", "-q")
    assert (tmp_path / "run" / "fit.safetensors").read_bytes() == fit
    assert read_specification(model).discover["max_candidates"] == 2
    assert read_specification(model).file == tmp_path / "run" / "data.csv"


def test_a_search_that_is_not_installed_is_found_before_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pyoperon" else real(name, *more)
    )
    monkeypatch.setattr(ude, "fit", None)
    out = tmp_path / "out"
    said = mistake(capsys, "discover", run.parent / "model.toml", "--regressor", "operon", "--out", out, status=3)
    assert said.startswith("ude: the search operon needs the package pyoperon")
    assert not out.exists()


def test_a_folder_is_refused_while_another_process_is_at_work_in_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    code = "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(f, 2); print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    said = mistake(capsys, "discover", run.parent / "model.toml", "--out", out, "-q")
    assert said.startswith(f"ude: another process is at work in the folder {out}.")
    other.communicate(b"\n")
    output(capsys, "discover", run.parent / "model.toml", "--out", out, "-q")


@pytest.mark.parametrize("stage", ["write_json", "shutil.copyfile", "RunFolder._write_model"])
def test_a_run_killed_while_its_folder_is_made_is_begun_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path, out = growth(tmp_path), tmp_path / "run"
    code = (
        "import os, sys, ude.cli.run_folder as r\n"
        f"def killed(*_, **__): os._exit(9)\nr.{stage} = killed\n"
        "from ude.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["fit", str(path), "--out", str(out), "-q"]
    assert subprocess.run([sys.executable, "-c", code, *command], check=False).returncode == 9
    assert not (out / "model.toml").exists()
    monkeypatch.setattr("ude.cli.fit.train", _stop_here)
    assert main(command) == 130
    assert (out / "model.toml").is_file()
    assert (out / "data.csv").read_bytes() == (tmp_path / "growth.csv").read_bytes()


def _stop_here(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_table_of_somebody_else_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "data.csv").write_text("mine")
    assert f"the folder {out} is not empty" in mistake(capsys, "fit", growth(tmp_path), "--out", out)
    assert (out / "data.csv").read_text() == "mine"


def test_folder_of_other_data_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = growth(tmp_path)
    table = tmp_path / "growth.csv"
    table.write_text(table.read_text().replace("0.5000", "0.6000"))
    assert "another data" in mistake(capsys, "discover", path, "--out", run)


def test_killed_run_is_continued_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    growth(tmp_path)
    out = tmp_path / "run"
    code = (
        "import os, sys, ude.cli.discover as d\n"
        "def killed(*_, **__): os._exit(9)\n"
        "d._search = killed\n"
        "from ude.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["discover", str(tmp_path / "model.toml"), "--out", str(out), "-q"]
    assert subprocess.run([sys.executable, "-c", code, *command], check=False).returncode == 9
    assert not (out / "discovery.json").exists()
    assert main(command) == 0
    constants = [json.loads((folder / "discovery.json").read_text())["constants"] for folder in (run, out)]
    assert constants[0] == pytest.approx(constants[1], rel=1e-6)


# -- simulate ----------------------------------------------------------------------------------------------------------


def test_simulate_follows_the_true_system(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(output(capsys, "simulate", run, "--end", 20, "--points", 5))))
    assert [float(row["day"]) for row in rows] == [0.0, 5.0, 10.0, 15.0, 20.0]
    true = [8 / (1 + 15 * np.exp(-0.8 * t)) for t in (0, 5, 10, 15, 20)]
    assert [float(row["x"]) for row in rows] == pytest.approx(true, rel=2e-3)


def test_simulate_takes_other_starts_parameters_and_times(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--u0", "x=2", "--param", "r=0", "--param", "U_c0=0.5", "--at", "0, 1, 3")
    values = json.loads(output(capsys, "simulate", run, *options, "--json"))
    assert values["day"] == [0.0, 1.0, 3.0]
    assert values["x"] == pytest.approx([2 / (1 + t) for t in (0, 1, 3)], rel=1e-6)
    said = output(capsys, "simulate", run, "--out", tmp_path / "table.csv", "--points", 3)
    assert said == f"Wrote 3 times to {tmp_path / 'table.csv'}\n"
    assert (tmp_path / "table.csv").read_text().startswith("day,x\n")


@pytest.mark.parametrize("options", [["--at", "3, 4"], ["--start", "3", "--end", "4", "--points", "2"], ["--at", "4"]])
def test_simulate_starts_from_the_fitted_state_whatever_times_it_prints(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    values = json.loads(output(capsys, "simulate", run, *options, "--json"))
    assert values["x"] == pytest.approx([8 / (1 + 15 * np.exp(-0.8 * t)) for t in values["day"]], rel=2e-3)
    assert values["day"] == ([4.0] if options == ["--at", "4"] else [3.0, 4.0])


def test_simulate_starts_where_it_is_told_from_a_state_that_is_given(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A given state belongs to --start, and without it to the first time of the data."""
    given = ("--u0", "x=2", "--param", "r=0", "--param", "U_c0=0.5", "--json")
    values = json.loads(output(capsys, "simulate", run, *given, "--start", "3", "--at", "3, 5"))
    assert values["x"] == pytest.approx([2.0, 2 / (1 + 2)], rel=1e-6)
    values = json.loads(output(capsys, "simulate", run, *given, "--at", "3, 5"))
    assert values["x"] == pytest.approx([2 / (1 + 3), 2 / (1 + 5)], rel=1e-6)


def logistic(t: float, start: float, begin: float = 0.0) -> float:
    """x(t) of dx/dt = 0.8 x - 0.1 x^2 with x(begin) = start."""
    return float(8 / (1 + (8 / start - 1) * np.exp(-0.8 * (t - begin))))


LOGISTIC = 'equations = ["dx/dt = r*x - 0.1*x**2"]\n[parameters]\nr = 0.8\n[initial]\nx = 0.5\n'


@pytest.mark.parametrize(
    ("options", "times", "begin", "start"),
    [
        (["--at", "3,4"], [3.0, 4.0], 0.0, 0.5),
        (["--at", "3"], [3.0], 0.0, 0.5),
        (["--at", "0"], [0.0], 0.0, 0.5),
        (["--start", "3", "--end", "4", "--points", "3"], [3.0, 3.5, 4.0], 0.0, 0.5),
        (["--at", "3,4", "--u0", "x=2"], [3.0, 4.0], 0.0, 2.0),
        (["--start", "3", "--end", "4", "--points", "2", "--u0", "x=2"], [3.0, 4.0], 3.0, 2.0),
        (["--start", "-2", "--at", "3,4", "--u0", "x=2"], [3.0, 4.0], -2.0, 2.0),
    ],
)
def test_states_that_are_printed_are_those_of_their_times(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    times: list[float],
    begin: float,
    start: float,
) -> None:
    (tmp_path / "model.toml").write_text(LOGISTIC)
    values = json.loads(output(capsys, "simulate", tmp_path / "model.toml", *options, "--json"))
    assert values["t"] == times
    assert values["x"] == pytest.approx([logistic(t, start, begin) for t in times], rel=1e-6)


def test_the_tolerance_of_simulate_reaches_the_solver(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text(LOGISTIC)
    errors = []
    for reltol in ("1e-3", "1e-10"):
        values = json.loads(
            output(capsys, "simulate", tmp_path / "model.toml", "--at", "5", "--reltol", reltol, "--json")
        )
        errors.append(abs(values["x"][0] - logistic(5, 0.5)))
    assert errors[0] > 1e-6
    assert errors[1] < 1e-8


def test_the_digits_of_an_export_reach_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text(LOGISTIC.replace("r = 0.8", "r = 0.876543"))
    for digits, text in (("2", "0.88*x"), ("4", "0.8765*x")):
        assert text in output(capsys, "export", tmp_path / "model.toml", "--digits", digits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--u0", "y=1"], "--u0 names 'y': expected one of x."),
        (["--u0", "x=one"], "--u0 does not read: expected NAME=NUMBER, got 'x=one'."),
        (["--param", "q=1"], "--param names 'q': expected one of r, U_c0."),
        (["--at", "0,a"], "--at does not read"),
        (["--end", "-1"], "times must be finite and increase"),
        (["--start", "-1"], "times must not precede the initial state: expected times from 0 on, got -1."),
        (["--at", "-1,2"], "times must not precede the initial state: expected times from 0 on, got -1."),
        (["--at", "1,2", "--start", "3", "--u0", "x=1"], "--at must not precede --start: 1 before 3."),
        (["--maxiters", "0"], "Invalid value for '--maxiters'"),
        (["--trajectory", "b"], "there is no trajectory 'b'"),
        (["--reltol", "2"], "--reltol must be between 0 and 1: 2.0."),
        (["--out", "/nowhere/x.csv"], "/nowhere/x.csv cannot be written"),
    ],
)
def test_wrong_option_of_simulate_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    said = mistake(capsys, "simulate", run, *options)
    assert said.startswith(f"ude: {says}")
    assert len(said.splitlines()) == 1


def test_simulation_that_blows_up_ends_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text('equations = ["dx/dt = x**2"]\n[initial]\nx = 1.0\n')
    said = mistake(capsys, "simulate", tmp_path / "model.toml", "--end", 2, status=4)
    assert said.startswith("ude: ")


def test_an_end_that_no_solver_reaches_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.toml").write_text('equations = ["dx/dt = y", "dy/dt = -x"]\n[initial]\nx = 1.0\ny = 0.0\n')
    path = tmp_path / "model.toml"
    said = mistake(capsys, "simulate", path, "--end", "1e300", "--maxiters", 500, status=4)
    assert "MaxIters" in said
    assert len(said.splitlines()) == 1


def test_known_equations_are_simulated_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.toml"
    path.write_text('equations = ["dx/dt = -k*x"]\n[parameters]\nk = 2.0\n')
    assert "no initial value of x. Give it: --u0 'x=1.0'." in mistake(capsys, "simulate", path, "--end", 1)
    assert "no last time. Give it: --end 10." in mistake(capsys, "simulate", path, "--u0", "x=1")
    values = json.loads(output(capsys, "simulate", path, "--u0", "x=1", "--end", 1, "--points", 2, "--json"))
    assert values["x"] == pytest.approx([1.0, np.exp(-2)], rel=1e-6)


# -- export, report, doctor --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["text", "latex", "mathml", "python", "torch", "julia", "sbml", "ude"])
def test_every_language_is_written(run: Path, capsys: pytest.CaptureFixture[str], language: str) -> None:
    text = output(capsys, "export", run, "--to", language)
    assert "x" in text
    assert text.endswith("\n")
    names: dict[str, Any] = {}
    if language == "python":
        exec(text, names)
        assert names["rhs"](0.0, [2.0])[0] == pytest.approx(slope(2.0), rel=1e-3)
    if language == "ude":
        exec(text, names)
        assert names["model"].explicit().keys() == {"x"}
    if language == "sbml":
        assert 'id="x" value="0.5' in text or 'id="x" value="0.4' in text


def test_export_writes_a_file_and_rounds(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "equations.tex"
    assert output(capsys, "export", run, "--to", "latex", "--digits", 2, "--out", path) == f"Wrote {path}\n"
    assert "0.8 \\, x" in path.read_text()


def test_report_is_drawn_anew_with_figures(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    options = ("--out", page, "--figures", tmp_path / "figures", "--title", "Growth", "--json")
    written = json.loads(output(capsys, "report", run, *options))
    assert written["report"] == str(page)
    text = page.read_text(encoding="utf-8")
    assert "<h1>Growth</h1>" in text
    for part in ("Candidates", "Which terms are sure", "Constants", "Far beyond the data", "identified", "<math"):
        assert part in text, part
    assert {Path(path).name for path in written["figures"]} >= {"term_U.png", "front.svg"}


def test_fit_without_a_discovery_has_a_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fit.json", "fit.safetensors", "history.csv", "model.toml"):
        shutil.copyfile(run / name, tmp_path / name)
    options = ("--figures", tmp_path / "figures", "--json")
    written = json.loads(output(capsys, "report", tmp_path, *options))
    assert written["report"] == str(tmp_path / "report.html")
    names = {Path(path).name for path in written["figures"]}
    assert names == {f"{name}.{kind}" for name in ("data_vs_prediction", "term_U", "losses") for kind in ("png", "svg")}
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for part in ("Fit of x", "<mi>U</mi>", "Still a network: U.", "Training", "Initial states", "Stages", "ude fit "):
        assert part in text, part
    assert "Candidates" not in text
    from ude.discovery.report.fit_contents import contents_of_fit

    fit = ude.fitting.load_fit(tmp_path)
    shown = contents_of_fit(fit)
    [function], [own] = shown.functions, shown.runs
    # what is drawn is the network in the equation that was fitted
    x = np.array(function.inputs["x"])
    a = fit.model.values()["r"]
    assert a * x - np.array(function.network) == pytest.approx(slope(x), abs=0.05)
    on_curve = np.interp(x, function.grid["x"], function.grid_network)
    assert on_curve == pytest.approx(np.array(function.network), abs=0.01)
    assert np.interp(own.t, own.line_t, np.ravel(own.line_u)) == pytest.approx(np.ravel(own.u), abs=0.05)
    assert list(own.band) == pytest.approx([2 * fit.rmse()["x"]])
    assert own.held_out_from == fit.held_out.trajectories[0].t[0]
    assert sum(len(losses) for losses in shown.losses.values()) == len(fit.history)
    [parameters] = [sheet for sheet in shown.sheets if sheet.title == "Parameters"]
    assert parameters.rows == [["r", a, "fitted", 0.0, 2.0]]


@pytest.mark.parametrize("command", ["simulate", "export", "report"])
def test_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        said = mistake(capsys, command, folder)
        assert "there is no" in said
        assert str(folder) in said


def test_doctor_finds_what_is_needed_and_never_imports_julia(capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(output(capsys, "doctor", "--json"))
    assert values["ok"] is True
    parts = {finding["part"]: finding for finding in values["findings"]}
    assert parts["ude"]["found"].startswith(ude.__version__)
    assert {"C compiler", "GPU", "julia", "pysr search", "operon search", "SBML export"} <= parts.keys()
    for finding in parts.values():
        assert finding["works"] or finding["fix"] or finding["part"] in ("GPU", "C compiler")
    assert not {"juliacall", "pysr"} & sys.modules.keys()


def test_doctor_ends_a_check_that_hangs() -> None:
    from ude.cli.doctor import _asked

    assert _asked("import time; time.sleep(60)", 1.0) == "no answer within 1 s"
    assert _asked("raise ImportError('no such driver')", 30.0) == "ImportError: no such driver"


# -- fit, JSON, completion ---------------------------------------------------------------------------------------------


def test_fit_of_known_equations_gives_the_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growth(tmp_path)
    options = ("-e", "dx/dt = r*x - c*x**2", "--fit", "r, c", "--out", tmp_path / "fit", "-q")
    values = json.loads(output(capsys, "fit", tmp_path / "growth.csv", *options, "--json"))
    assert values["parameters"] == pytest.approx({"r": 0.8, "c": 0.1}, rel=1e-3)
    assert set(values["rmse"]) == {"training", "held-out"}
    page = Path(output(capsys, "report", tmp_path / "fit").split()[1]).read_text(encoding="utf-8")
    text, fit = " ".join(re.sub(r"<[^>]+>", " ", page).split()), ude.fitting.load_fit(tmp_path / "fit")
    assert fit.aic != fit.bic
    for name, value in (("log-likelihood", fit.log_likelihood), ("AIC", fit.aic), ("BIC", fit.bic)):
        assert f"{name} {value:.6g}" in text
    said = output(capsys, "simulate", tmp_path / "fit", "--points", 2)
    assert float(said.splitlines()[-1].split(",")[1]) == pytest.approx(8.0, rel=1e-2)


def test_mistake_in_json_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "nowhere", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["exit"] == 2
    assert said["error"]["what"] == "there is no run in nowhere"


def test_shell_completes_commands() -> None:
    words = {"_UDE_COMPLETE": "complete_bash", "COMP_WORDS": "ude dis", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "ude.cli"]
    done = subprocess.run(command, env={**os.environ, **words}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["discover"]


# -- model.toml --------------------------------------------------------------------------------------------------------

WRONG = {
    "not TOML": ("[data\n", "is not TOML"),
    "unknown section": ("[paramters]\na = 1\n", "line 1: unknown key paramters: expected some of name, data"),
    "unknown key": ('[data]\nfile = "growth.csv"\ntiem = "t"\n', "line 3: unknown key tiem in [data]"),
    "no file": ('[data]\nfile = "none.csv"\n', "line 2: there is no file"),
    "not text": ("[data]\nfile = 3\n", "line 2: data.file is not text"),
    "parameter": ('[parameters]\na = 1\nb = "free"\n', "line 3: the parameter b does not read: expected a number"),
    "bounds": ("[parameters]\na = { lower = 2, upper = 1 }\n", "line 2: the bounds of a parameter are in the wrong"),
    "parameter key": ("[parameters.a]\nvalue = 1\nmax = 2\n", "line 3: unknown key max in [parameters.a]"),
    "seed": ("[fit]\nseed = -1\n", "line 2: fit.seed is not usable: expected a whole number, at least 0, got -1."),
    "noise": ('noise = "Gauss"\n', "line 1: unknown noise: expected one of Gaussian"),
    "width": ('[unknown.U]\nwidth = "big"\n', "line 2: unknown.U.width is not usable"),
    "activation": ('[unknown.U]\nactivation = "step"\n', "line 2: unknown activation"),
    "knowledge": ("[unknown.U]\npositive = 1\n", "line 1: positive is neither true nor false"),
    "regressor": ('[discover]\nregressors = ["lib"]\n', "line 2: unknown regressor lib: expected some of library"),
    "option": ("[discover]\nmax_candidates = 0\n", "line 1: SelectionOptions(max_candidates): expected above 0"),
    "start": ('[initial]\nz = "free"\n', "line 2: the initial value of z does not read"),
    "holdout": ("[data]\nholdout = true\n", "line 2: holdout does not read"),
}


@pytest.mark.parametrize(("text", "says"), WRONG.values(), ids=WRONG.keys())
def test_mistake_in_the_file_names_key_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    growth(tmp_path)
    (tmp_path / "model.toml").write_text(text)
    said = mistake(capsys, "discover", tmp_path / "model.toml", "--out", tmp_path / "run")
    assert said.startswith(f"ude: {tmp_path / 'model.toml'}")
    assert says in said
    assert not (tmp_path / "run").exists()


def test_mistake_in_an_equation_of_the_file_has_line_and_caret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = growth(tmp_path)
    path.write_text(MODEL.replace("r*x - U(x)", "r*x - k*U(x)"))
    message, source, caret = mistake(capsys, "discover", path).splitlines()
    assert f"{path}, line 7: unknown symbol k" in message
    assert "k = 1.0 under [parameters]" in message
    assert source[caret.index("^")] == "k"


def test_inputs_that_are_not_those_of_the_equation_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = growth(tmp_path)
    path.write_text(MODEL.replace("width = 8", 'width = 8\ninputs = ["y"]'))
    assert "the inputs of U are not those of the equations: expected x, got y." in mistake(capsys, "discover", path)


def test_options_beside_a_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = mistake(capsys, "discover", growth(tmp_path), "--fit", "a")
    assert said.startswith("ude: --fit cannot be given beside")


def test_file_says_what_the_options_say(tmp_path: Path) -> None:
    specification = read_specification(growth(tmp_path))
    assert specification.equations == ("dx/dt = r*x - U(x)",)
    specification.write(tmp_path / "copy.toml")
    assert read_specification(tmp_path / "copy.toml") == specification


def test_everything_that_can_be_said_survives_the_file(tmp_path: Path) -> None:
    growth(tmp_path)
    (tmp_path / "model.toml").write_text(
        """
        name = "all"
        equations = ["dx/dt = -k*x + c*z + U(x)", "dz/dt = k*x - z"]
        noise = "StudentT"
        [data]
        file = "growth.csv"
        conditions = ["dose"]
        holdout = "after 9"
        validation = 2
        [parameters]
        k = "fit"
        c = 2
        s = { lower = 0 }
        [observables]
        y = "s*x"
        [initial]
        z = { value = 1.0, lower = 0.0, shared = true, fit = true }
        x = [1.0, 2.0]
        [fit]
        seed = 3
        positive = ["x"]
        per_trajectory = "k"
        """
    )
    specification = read_specification(tmp_path / "model.toml")
    specification.write(tmp_path / "copy.toml")
    assert read_specification(tmp_path / "copy.toml") == specification
    assert specification.parameters["s"] == ude.Parameter(None, True, 0.0)
    assert specification.fit_arguments()["noise"] == ude.noise.StudentT()
    model = specification.model()
    assert model.observables == {"y": "s*x"}


def test_nothing_known_takes_every_column_as_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ude.cli.request import Request, opened

    path = tmp_path / "table.csv"
    path.write_text("t,x,y\n" + "".join(f"{i},{i + 1},{i * i + 1}\n" for i in range(8)))
    specification, model, _ = opened(Request(path).specification())
    assert specification.equations == ("dx/dt = U_x(x, y)", "dy/dt = U_y(x, y)")
    assert model.unknown_outputs == ("U_x", "U_y")
    path.write_text("t,x 1\n0,1\n1,2\n2,3\n3,4\n")
    assert "the column 'x 1' cannot be a state" in mistake(capsys, "discover", path)


def test_lines_are_found_in_nested_tables_and_inline_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('a.b = 1\n\n[c."d e"]\nf = { g = 1, h = 2 }\n')
    reader = TomlReader(path)
    lines = [reader.line(key) for key in (("a", "b"), ("c", "d e", "f"), ("c", "d e", "f", "h"), ("c", "d e", "no"))]
    assert lines == [1, 4, 4, 3]
    assert reader.line(("nothing",)) is None


def test_specification_needs_no_file() -> None:
    assert Specification("a", equations=("dx/dt = -x",)).described() == {
        "name": "a", "equations": ["dx/dt = -x"], "data": {"holdout": 0.25}, "fit": {"seed": 0},
    }  # fmt: skip


def test_termination_is_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("ude.cli.fit.train", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert main(["fit", str(growth(tmp_path)), "--out", str(tmp_path / "run"), "-q"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before
