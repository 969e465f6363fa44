"""PySR's Python layer: names, options, its table of equations, and what is said when Julia is missing.

The search itself runs only where Julia is (mark `julia`). Elsewhere a stand-in module `pysr` takes its place in the
worker's process, so that everything on this side of Julia is exercised.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import sympy as sp

from ude.discovery.samples import Samples
from ude.discovery.search.foreign import candidate_from
from ude.discovery.search.pysr import PySR, free_part, known_options, parse_equation
from ude.errors import BackendMissing, InputError, UdeError

STAND_IN = """
import json, os, pickle, sys
from pathlib import Path
import pandas as pd

class TemplateExpressionSpec:
    def __init__(self, combine, expressions, variable_names, parameters=None):
        self.told = dict(combine=combine, expressions=expressions, variable_names=variable_names)

class PySRRegressor:
    def __init__(self, **options):
        self.options, self.rounds = options, 0

    @classmethod
    def from_file(cls, *, run_directory):
        return pickle.loads((Path(run_directory) / "checkpoint.pkl").read_bytes())

    def set_params(self, **options):
        self.options.update(options)

    def fit(self, X, y, *, weights=None, variable_names=None, X_units=None, y_units=None):
        self.rounds += 1
        shown = {k: getattr(v, "told", v) for k, v in self.options.items()}
        report = dict(options=shown, names=list(variable_names), shape=list(X.shape), y=y.tolist(), rounds=self.rounds,
                      units=[X_units, y_units], weights=weights.tolist(), torch="torch" in sys.modules,
                      ude="ude" in sys.modules)
        with open(os.environ["UDE_TEST_REPORT"], "w") as file:
            json.dump(report, file)
        if "run_id" in self.options:
            folder = Path(self.options["output_directory"]) / self.options["run_id"]
            (folder / "checkpoint.pkl").write_bytes(pickle.dumps(self))
        # The columns and the notation of PySR's own table.
        plain = ["3.7", "x0 * x1", "(x0 * x1) * 0.021", "((x0 * x1) * 0.02) + (1.0e-8 / (x0 ^ 2))"]
        outlined = ["f = 3.7; g = 1.0", "f = #1; g = #1", "f = #1 * 0.021; g = #1", "f = #1; g = #1 / 50.0"]
        self.equations_ = pd.DataFrame({
            "complexity": [1, 3, 5, 9], "loss": [9.1, 2.5, 1e-3, 1e-9], "score": [0.0, 0.6, 3.9, 3.4],
            "equation": outlined if "expression_spec" in self.options else plain,
        })
"""


def _samples() -> Samples:
    t = np.linspace(0.0, 20.0, 100)
    s, i = 50.0 + 30.0 * np.sin(t), 20.0 + 10.0 * np.cos(t)
    return Samples({"S": s, "I": i}, 0.02 * s * i, "U1")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pysr.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("UDE_TEST_REPORT", str(tmp_path / "report.json"))
    return tmp_path / "report.json"


def test_search_maps_names_there_and_back_and_refits(stand_in: Path) -> None:
    found = PySR(seed=7).search(_samples())
    report = json.loads(stand_in.read_text())
    assert report["names"] == ["x0", "x1"]
    assert report["shape"] == [100, 2]
    assert report["options"]["random_state"] == 7
    assert report["options"]["deterministic"] is True
    best = next(c for c in found if str(c.expression) == "I*S*c0")
    assert best.constants == pytest.approx({"c0": 0.02}, rel=1e-9)
    assert best.nmse < 1e-20
    assert best.pareto
    assert best.source == "pysr"
    assert {str(c.expression) for c in found} >= {"c0", "I*S", "I*S*c0"}


def test_worker_imports_neither_torch_nor_ude(stand_in: Path) -> None:
    PySR().search(_samples())
    report = json.loads(stand_in.read_text())
    assert report["torch"] is False
    assert report["ude"] is False


def test_free_directions_are_taken_out_of_the_target(stand_in: Path) -> None:
    plain = _samples()
    samples = Samples(plain.inputs, plain.output + 3.0 * plain.inputs["S"], "U1", nuisance=plain.inputs["S"][:, None])
    assert free_part(samples) == pytest.approx(3.0 * plain.inputs["S"], rel=1e-6)
    found = PySR().search(samples)
    assert json.loads(stand_in.read_text())["y"] == pytest.approx(list(plain.output), rel=1e-6)
    assert next(c for c in found if str(c.expression) == "I*S*c0").constants["c0"] == pytest.approx(0.02)


def test_search_options_are_passed_on_and_wrong_ones_refused(stand_in: Path) -> None:
    PySR(search_options={"parsimony": 0.01, "maxdepth": 6, "niterations": 5}).search(_samples())
    told = json.loads(stand_in.read_text())["options"]
    assert (told["parsimony"], told["maxdepth"], told["niterations"]) == (0.01, 6, 5)
    with pytest.raises(
        InputError, match=r"PySR\(search_options\): expected options of pysr.PySRRegressor, got maxdept"
    ):
        PySR(search_options={"maxdept": 6})


def test_a_template_says_what_the_formula_is_made_of(stand_in: Path) -> None:
    found = PySR(template="f(S)*g(I)").search(_samples())
    told = json.loads(stand_in.read_text())["options"]["expression_spec"]
    assert told == {"combine": "f(x0)*g(x1)", "expressions": ["f", "g"], "variable_names": ["x0", "x1"]}
    best = next(c for c in found if str(c.expression) == "I*S*c0")
    assert best.constants == pytest.approx({"c0": 0.02}, rel=1e-9)
    with pytest.raises(InputError, match=r"PySR\(template\): expected functions to be found, of S, I, got Q"):
        PySR(template="f(S)*Q").search(_samples())


def test_units_are_handed_to_pysr(stand_in: Path) -> None:
    PySR(units="I: mol, S: mol -> mol/s").search(_samples())
    report = json.loads(stand_in.read_text())
    assert report["units"] == [["mol", "mol"], "mol/s"]
    assert report["options"]["dimensional_constraint_penalty"] == 1000.0


def test_a_search_with_a_folder_goes_on_where_it_was(stand_in: Path, tmp_path: Path) -> None:
    search = PySR(folder=tmp_path / "runs", niterations=3)
    search.search(_samples())
    first = json.loads(stand_in.read_text())
    assert (first["rounds"], first["options"]["run_id"]) == (1, "U1")
    PySR(folder=tmp_path / "runs", niterations=7).search(_samples())
    second = json.loads(stand_in.read_text())
    assert (second["rounds"], second["options"]["warm_start"], second["options"]["niterations"]) == (2, True, 7)
    plain = _samples()
    with pytest.raises(UdeError, match="PySR failed: ValueError: .*U1 holds the search of other samples; give another"):
        search.search(Samples(plain.inputs, 2.0 * plain.output, "U1"))


def test_every_option_is_one_that_pysr_has() -> None:
    """Read from PySR's source, as importing it starts Julia."""
    spec = importlib.util.find_spec("pysr")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "sr.py").read_text()
    specs = (Path(spec.origin).parent / "expression_specs.py").read_text()
    tree = ast.parse(text)
    [regressor] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PySRRegressor"]
    functions = {node.name: node for node in regressor.body if isinstance(node, ast.FunctionDef)}
    accepted = {argument.arg for argument in functions["__init__"].args.args + functions["__init__"].args.kwonlyargs}
    mine = PySR(units="x: m -> m", search_options={"warm_start": True}).options()
    assert {*mine, "output_directory", "run_id", "expression_spec", "dimensionless_constants_only"} <= accepted
    assert known_options() == accepted - {"self"}
    assert all(f"    {name}:" in specs for name in ("combine", "expressions", "variable_names"))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "from_file" for node in regressor.body)
    fit = functions["fit"].args
    assert {"weights", "variable_names", "X_units", "y_units"} <= {
        argument.arg for argument in fit.args + fit.kwonlyargs
    }


def test_missing_julia_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pysr.py").write_text("from urllib.error import URLError\nraise URLError('no route')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendMissing) as caught:
        PySR().search(_samples())
    assert str(caught.value) == (
        "PySR cannot start: expected PySR and its Julia, got URLError: <urlopen error no route>. "
        'Install them with python -m pip install pysr && python -c "import pysr".'
    )


def test_a_search_that_fails_or_dies_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "pysr.py").write_text(
        "class PySRRegressor:\n    def __init__(self, **o):\n        raise ValueError('bad')\n"
    )
    with pytest.raises(UdeError, match="PySR failed: ValueError: bad. Try LibraryRegressor"):
        PySR().search(_samples())
    (tmp_path / "pysr.py").write_text(
        "import os, sys\nprint('out of memory', file=sys.stderr, flush=True)\nos._exit(9)\n"
    )
    with pytest.raises(UdeError, match="PySR ended without a result: out of memory. Try LibraryRegressor"):
        PySR().search(_samples())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x0 * x1", "I*S"),
        ("square(x0) + cube(x1)", "I**3 + S**2"),
        ("inv(x1) - neg(x0)", "S + 1/I"),
        ("(x0 ^ 2) / (x1 + 1.5e-3)", "S**2/(I + 0.0015)"),
        ("exp(-0.5 * x0) * sqrt(abs(x1))", "exp(-0.5*S)*sqrt(Abs(I))"),
    ],
)
def test_equations_are_read_in_pysr_notation(text: str, expected: str) -> None:
    wanted = sp.sympify(expected, locals={"S": sp.Symbol("S"), "I": sp.Symbol("I")})
    assert sp.simplify(parse_equation(text, ["S", "I"]) - wanted) == 0


@pytest.mark.parametrize("text", ["__import__('os')", "x7", "x0 * ", "foo(x0)", "x0; x1"])
def test_what_is_no_equation_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected PySR's notation"):
        parse_equation(text, ["a", "b"])


def test_unknown_operators_are_refused() -> None:
    with pytest.raises(InputError, match=r"PySR\(unary_operators\): expected any of sin cos .*, got gamma"):
        PySR(unary_operators=("sin", "gamma"))


def test_refit_leaves_whole_exponents_and_refuses_poles() -> None:
    x = np.linspace(-1.0, 2.0, 60)
    samples = Samples({"x": x}, 3.0 * x**2)
    symbol = sp.Symbol("x")
    found = candidate_from(2.0 * symbol ** sp.Float(2.0), samples, "test")
    assert found is not None
    assert str(found.expression) == "c0*x**2"
    assert found.constants["c0"] == pytest.approx(3.0)
    assert candidate_from(sp.Float(2.0) / symbol, samples, "test") is None
    assert candidate_from(sp.log(symbol), samples, "test") is None


@pytest.mark.julia
def test_pysr_finds_mass_action() -> None:
    search = PySR(niterations=10, timeout=300.0)
    found = search.search(_samples())
    assert any(c.nmse < 1e-8 and c.complexity <= 8 for c in found)
    assert search.search(_samples()) == found


@pytest.mark.julia
def test_pysr_fills_a_template_with_units_and_goes_on(tmp_path: Path) -> None:
    search = PySR(niterations=10, timeout=300.0, template="f(S)*g(I)")
    assert any(str(c.expression) == "I*S*c0" for c in search.search(_samples()))
    resumed = PySR(niterations=5, timeout=300.0, units="S: m, I: m -> m^2", folder=tmp_path)
    first = min(c.nmse for c in resumed.search(_samples()))
    assert min(c.nmse for c in resumed.search(_samples())) <= first + 1e-12
