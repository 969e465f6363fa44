"""The contract of a search for formulas, run over all of them; PySR with a stand-in for its Julia."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from ude.discovery import Candidate, LibraryRegressor, Operon, PySR, Samples, SINDy, SymbolicRegressor
from ude.discovery.evaluation import is_regular
from ude.discovery.search.fronts import SearchWarning, default_searches, fronts, merged, note_on_searches
from ude.discovery.search.operon import equally_weighted, operon_is_installed
from ude.discovery.search.polish import polished
from ude.errors import BackendMissing, InputError, UdeError

# PySR's table for any samples of x and y: least squares of a few forms, which is all that this side can see of Julia.
STAND_IN = """
import numpy as np, pandas as pd

class PySRRegressor:
    def __init__(self, **options):
        pass

    def fit(self, X, y, *, weights=None, variable_names=None):
        forms = {"1": np.ones(len(y)), "x0": X[:, 0], "x1": X[:, 1], "(x0 * x1)": X[:, 0] * X[:, 1]}
        rows = []
        for text, column in forms.items():
            root = np.sqrt(weights)
            c = float((column * root) @ (y * root) / ((column * root) @ (column * root)))
            rows.append((len(text), float(np.mean(weights * (y - c * column) ** 2)), f"{c!r} * {text}"))
        self.equations_ = pd.DataFrame(rows, columns=["complexity", "loss", "equation"])
"""

needs_operon = pytest.mark.skipif(not operon_is_installed(), reason="pyoperon is not installed")
needs_sindy = pytest.mark.skipif(importlib.util.find_spec("pysindy") is None, reason="pysindy is not installed")
SMALL = Operon(generations=15, population=150, functions=())
SEARCHES = {
    "library": pytest.param(LibraryRegressor(), id="library"),
    "operon": pytest.param(SMALL, id="operon", marks=needs_operon),
    "pysr": pytest.param(PySR(), id="pysr"),
    "sindy": pytest.param(SINDy(), id="sindy", marks=needs_sindy),
}


def _samples(size: int = 120, extra: float = 0.0) -> Samples:
    t = np.linspace(0.0, 20.0, size)
    x, y = 30.0 + 25.0 * np.sin(0.6 * t), 20.0 + 15.0 * np.cos(0.6 * t + 0.4)
    return Samples({"x": x, "y": y}, 0.02 * x * y + extra * x, "U1")


def front(samples: Samples, searches: Sequence[SymbolicRegressor]) -> list[Candidate]:
    """The merged front of one term."""
    return fronts({samples.name: samples}, searches, {})[samples.name]


@pytest.fixture(autouse=True)
def _julia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pysr.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize("search", SEARCHES.values())
class TestSymbolicRegressor:
    def test_it_finds_mass_action_and_gives_a_front(self, search: SymbolicRegressor) -> None:
        assert isinstance(search, SymbolicRegressor)
        samples = _samples()
        found = search.search(samples)
        [best] = [c for c in found if str(c.expression) == "c0*x*y"]
        assert best.constants["c0"] == pytest.approx(0.02, rel=1e-9)
        assert best.nmse < 1e-18
        assert best.pareto
        assert [c.complexity for c in found] == sorted(c.complexity for c in found)
        assert found[0].expression == 0
        for candidate in found:
            assert candidate.expression.free_symbols <= {sp.Symbol(n) for n in (*samples.inputs, *candidate.constants)}
            assert is_regular(candidate.expression, samples.inputs, candidate.constants)
            assert 0.0 <= candidate.nmse < np.inf

    def test_the_same_seed_gives_the_same_answer_to_the_bit(self, search: SymbolicRegressor) -> None:
        samples = replace(_samples(), output=_samples().output * (1.0 + 0.05 * np.cos(_samples().inputs["x"] / 7.0)))
        assert search.search(samples) == search.search(samples)

    def test_free_directions_are_fitted_along(self, search: SymbolicRegressor) -> None:
        samples = _samples(extra=0.37)
        samples = replace(samples, nuisance=samples.inputs["x"][:, None])
        [best] = [c for c in search.search(samples) if str(c.expression) == "c0*x*y"]
        assert best.constants["c0"] == pytest.approx(0.02, rel=1e-7)
        assert best.nmse < 1e-12

    def test_weights_count(self, search: SymbolicRegressor) -> None:
        samples = _samples()
        output, weights = samples.output.copy(), np.ones(samples.size)
        output[::4] += 50.0
        weights[::4] = 0.0
        [best] = [c for c in search.search(replace(samples, output=output, weights=weights)) if c.nmse < 1e-16][:1]
        assert str(best.expression) == "c0*x*y"

    def test_constant_output_is_a_constant(self, search: SymbolicRegressor) -> None:
        found = search.search(replace(_samples(), output=np.full(120, 7.0)))
        [best] = [c for c in found if str(c.expression) == "c0"]
        assert best.constants["c0"] == pytest.approx(7.0)
        assert best.nmse < 1e-18

    def test_output_zero_and_constant_or_collinear_inputs_are_no_obstacle(self, search: SymbolicRegressor) -> None:
        samples = _samples()
        zero = search.search(replace(samples, output=np.zeros(120)))
        assert (zero[0].expression, zero[0].nmse) == (0, 0.0)
        x = samples.inputs["x"]
        flat = search.search(replace(samples, inputs={"x": x, "y": np.full(120, 4.0)}, output=0.1 * x))
        assert min(c.nmse for c in flat if c.complexity <= 6) < 1e-16
        twins = search.search(replace(samples, inputs={"x": x, "y": 2.0 * x}, output=0.1 * x**2))
        assert min(c.nmse for c in twins) < 1e-12


@needs_operon
def test_operon_finds_what_no_library_foresees() -> None:
    samples = _samples()
    x, y = samples.inputs["x"], samples.inputs["y"]
    samples = replace(samples, output=0.02 * x * y**2 / (20.0 + x))
    assert min(c.nmse for c in LibraryRegressor().search(samples)) > 1e-7
    found = Operon(generations=30, population=300, functions=()).search(samples)
    best = min((c for c in found if c.nmse < 1e-20), key=lambda c: c.complexity)
    assert str(best.expression) == "c0*x*y**2/(c1 + x)"
    assert best.constants == pytest.approx({"c0": 0.02, "c1": 20.0}, rel=1e-7)


@needs_operon
def test_operon_that_is_killed_says_so_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Operon(generations=100_000, population=2000, max_seconds=60.0)
    started = time.monotonic()

    def kill_worker() -> None:
        while time.monotonic() < started + 30.0:
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    command = entry.read_bytes().split(b"\0")
                    parent = int((entry.parent / "stat").read_text().rpartition(")")[2].split()[1])
                except (OSError, ValueError, IndexError):
                    continue
                if parent == os.getpid() and any(part.endswith(b"operon_worker.py") for part in command):
                    time.sleep(1.0)
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    return
            time.sleep(0.1)

    if not sys.platform.startswith("linux"):
        pytest.skip("the test finds the worker in /proc")
    killer = threading.Thread(target=kill_worker)
    killer.start()
    with pytest.warns(SearchWarning, match="Operon ended without a result: it was ended by signal 9. Try .* went on"):
        found = front(_samples(), [LibraryRegressor(), slow])
    killer.join()
    assert "c0*x*y" in {str(c.expression) for c in found}


def test_a_worker_that_never_ends_is_ended(tmp_path: Path) -> None:
    from ude.discovery.search.operon import ENGINE
    from ude.discovery.search.worker import run_worker

    (tmp_path / "pyoperon.py").write_text("import time\ntime.sleep(600)\n")
    with pytest.raises(UdeError, match=r"Operon did not end: expected within 1.5 s. Give it longer. Try Library"):
        run_worker(ENGINE, {"X": np.ones((3, 1)), "y": np.ones(3)}, {"operators": []}, 1.5)


def test_a_missing_engine_is_one_sentence_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyoperon.py").write_text("raise ImportError('no AVX2')\n")
    with pytest.raises(BackendMissing) as caught:
        SMALL.search(_samples())
    assert str(caught.value) == (
        "Operon cannot start: expected the package pyoperon, on a processor with AVX2, got ImportError: no AVX2. "
        'Install them with python -m pip install "ude[operon]".'
    )
    monkeypatch.setitem(sys.modules, "pysindy.optimizers", None)
    with pytest.raises(BackendMissing, match=r'SINDy cannot start: .* Install it with python -m pip install "ude\['):
        SINDy().search(_samples())


def test_without_operon_the_default_is_the_library_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ude.discovery.search.fronts.operon_is_installed", lambda: True)
    assert default_searches(3) == [LibraryRegressor(), Operon(seed=3)]
    assert note_on_searches(default_searches()) == ""
    monkeypatch.setattr("ude.discovery.search.fronts.operon_is_installed", lambda: False)
    assert default_searches() == [LibraryRegressor()]
    assert 'python -m pip install "ude[operon]"' in note_on_searches(default_searches())


def test_unknown_options_of_operon_are_refused() -> None:
    with pytest.raises(InputError, match=r"Operon\(functions\): expected any of .*sin.*, got gamma"):
        Operon(functions=("gamma",))
    with pytest.raises(InputError, match=r"Operon\(population\): expected 1 or more, got 0"):
        Operon(population=0)
    with pytest.raises(InputError, match=r"Operon\(arithmetic\): expected any of \+ - \* /, got %"):
        Operon(arithmetic=("%",))


class _Fixed:
    """A search that answers with what it was given."""

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates = list(candidates)

    def search(self, samples: Samples) -> list[Candidate]:
        return self.candidates


def test_a_front_of_nan_is_refused_and_single_nans_are_left_out() -> None:
    x = sp.Symbol("x")
    broken, fine = Candidate(x, {}, 1, float("nan"), "mine"), Candidate(x, {}, 1, 0.5, "mine")
    with pytest.raises(
        InputError, match="_Fixed gave no formula with a finite error for U1: expected candidates whose error"
    ):
        front(_samples(), [_Fixed(broken)])
    assert [c.nmse for c in front(_samples(), [_Fixed(broken, fine)])] == [0.5]
    with pytest.warns(SearchWarning, match="_Fixed gave no formula with a finite error"):
        assert front(_samples(), [_Fixed(broken), LibraryRegressor()])


def test_equal_functions_are_merged_into_the_simplest_way_of_writing_them() -> None:
    x, c0, c1, c2 = sp.symbols("x c0 c1 c2")
    first = Candidate(c0 * x / (c1 + c2 * x), {"c0": 4.0, "c1": 20.0, "c2": 2.0}, 14, 0.01, "operon")
    second = Candidate(c0 * x / (c1 + x), {"c0": 2.0, "c1": 10.0}, 9, 0.01, "library")
    assert [c.source for c in merged([first, second], _samples())] == ["library"]


def test_weights_become_frequencies_for_an_engine_without_weights() -> None:
    samples = _samples(100)
    weights = np.where(np.arange(100) < 50, 3.0, 1.0)
    drawn = equally_weighted(replace(samples, weights=weights))
    early = np.isin(drawn.output, samples.output[:50])
    assert drawn.size == 100
    assert early.mean() == pytest.approx(0.75, abs=0.02)


@pytest.fixture(autouse=True)
def _no_stray_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@needs_operon
def test_an_abandoned_search_leaves_no_process_behind() -> None:
    begun = Operon(generations=100_000, population=2000, max_seconds=60.0).begin(_samples())
    assert len(begun.workers) == 2
    assert not any(worker.ended for worker in begun.workers)
    begun.close()
    assert all(worker.ended for worker in begun.workers)


def test_a_phase_of_a_quarter_of_a_turn_is_read_as_the_other_wave() -> None:
    random = np.random.default_rng(0)
    inputs = {"x": random.uniform(0.2, 6.0, 100), "y": random.uniform(1.0, 5.0, 100)}
    x, y = sp.symbols("x y")
    samples = Samples(inputs, inputs["y"] - np.cos(inputs["x"]) / inputs["y"], "U")
    found = polished([1.02 * y + 0.98 * sp.sin(1.001 * x - 17.27) / y], samples, "test")
    assert y - sp.cos(x) / y in [candidate.expression for candidate in found]
    elsewhere = Samples(inputs, np.sin(inputs["x"] + 1.2), "U")
    best = min(polished([sp.sin(1.001 * x + 1.21)], elsewhere, "test"), key=lambda c: (round(c.nmse, 9), c.complexity))
    assert str(best.expression) == "sin(c0 + x)"
    assert best.constants == pytest.approx({"c0": 1.2})
