"""Files from somebody else: nothing in them is executed, escapes its folder, or comes into a page as HTML."""

from __future__ import annotations

import ast
import html
import json
import os
import stat
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import sympy

import ude
from ude.cli import main
from ude.compile import cache
from ude.discovery.search.fronts_cache import _formula
from ude.discovery.search.notation import parse_equation
from ude.errors import DataError, InputError, ModelError
from ude.models.equations.functions import to_real_symbols
from ude.models.equations.printer import to_text
from ude.models.equations.torch_function import to_torch
from ude.reporting import contents, pages
from ude.reporting.safe_mathml import harmless
from ude.untrusted import JSON, check, plain_name, read_json, write_json


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that hostile content tries to write."""
    return tmp_path / "marker"


def code(marker: Path) -> str:
    return f"__import__('pathlib').Path({str(marker)!r}).touch() or 1"


def saved_model(folder: Path, **changed: object) -> Path:
    """What a discovery leaves, with parts replaced; its checksum is right, as an attacker can compute it too."""
    folder.mkdir(exist_ok=True)
    model = {
        "kind": "ude",
        "states": ["x"],
        "equations": ["dx/dt = -k*x"],
        "parameters": {"k": {"value": 1.0, "fitted": True, "lower": None, "upper": None}},
        "terms": [],
    }
    content = {"model": {**model, **changed}, "u0": [[1.0]], "trajectories": ["a"], "spans": [[0.0, 1.0]], "time": "t"}
    write_json(folder / "model.json", content)
    return folder


def test_the_harmless_twin_of_the_hostile_folders_works(tmp_path: Path) -> None:
    saved = ude.load(saved_model(tmp_path / "run"))
    np.testing.assert_allclose(saved.predict(np.array([0.0, 1.0])), [[1.0], [np.exp(-1)]], rtol=1e-6)


HOSTILE_MODELS = {
    "equations as an object of lists": lambda code: {"equations": {"x": [code]}},
    "equations as lists of lists": lambda code: {"equations": [[code]]},
    "code in the text of an equation": lambda code: {"equations": [f"dx/dt = {code}"]},
    "an expression that is a list": lambda code: {
        "equations": ["dx/dt = U(x)"],
        "parameters": {},
        "terms": [{"kind": "symbolic", "inputs": ["x"], "expressions": {"U": [code]}, "parameters": {}}],
    },
    "an expression that is code": lambda code: {
        "equations": ["dx/dt = U(x)"],
        "parameters": {},
        "terms": [{"kind": "symbolic", "inputs": ["x"], "expressions": {"U": code}, "parameters": {}}],
    },
    "an observable that is a list": lambda code: {"observables": {"y": [code]}},
    "a state that is code": lambda code: {"states": [code]},
    "a value that is code": lambda code: {"parameters": {"k": {"value": code, "fitted": True}}},
    "an activation that is code": lambda code: {
        "equations": ["dx/dt = U(x)"],
        "parameters": {},
        "terms": [
            {"kind": "mlp", "inputs": ["x"], "outputs": ["U"], "width": 4, "depth": 1, "activation": code, "seed": 0}
        ],
    },
    "a term of an unknown kind": lambda code: {"terms": [{"kind": code, "inputs": ["x"], "outputs": ["U"]}]},
}


@pytest.mark.parametrize("kind", HOSTILE_MODELS)
def test_a_saved_model_runs_no_code(kind: str, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture) -> None:
    folder = saved_model(tmp_path / "run", **HOSTILE_MODELS[kind](code(marker)))
    with pytest.raises(InputError):
        ude.load(folder)
    for command in ("simulate", "export", "report"):
        assert main([command, str(folder)]) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert not marker.exists()


@pytest.mark.parametrize("convert", [to_text, to_real_symbols, lambda value: to_torch([value], ["x"])])
@pytest.mark.parametrize("shape", [lambda text: text, lambda text: [text], lambda text: {text}, lambda text: (text,)])
def test_formulas_are_sympy_or_numbers_and_never_text_that_is_evaluated(convert, shape, marker: Path) -> None:
    with pytest.raises(ModelError, match="a formula must be a SymPy expression or a number"):
        convert(shape(code(marker)))
    assert not marker.exists()


def test_numbers_are_formulas() -> None:
    assert to_text(2) == "2"
    assert to_text(np.float64(0.5)) == "0.5"


def test_the_name_of_an_unknown_function_does_not_come_into_generated_source(marker: Path) -> None:
    call = sympy.Function(f"({code(marker)}) or abs")(sympy.Symbol("x"))
    with pytest.raises(ModelError, match="known functions only"):
        to_torch([call], ["x"])
    assert not marker.exists()


def test_formulas_of_search_engines_are_parsed(marker: Path) -> None:
    with pytest.raises(InputError, match="notation"):
        parse_equation(code(marker), ["x"])
    for tree in (["Function", ["Symbol", "x"]], ["Lambda", ["Symbol", "x"]], ["sympify", ["Symbol", "x"]]):
        with pytest.raises(ValueError, match="is no operation"):
            _formula(tree)
    assert not marker.exists()


def test_nothing_in_the_package_evaluates_text() -> None:
    """No call of `sympify`, `parse_expr`, `eval` or `pickle`; `exec` only on source that the package generates."""
    found = []
    for path in Path(ude.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("sympify", "parse_expr", "eval", "exec", "loads", "load") or name.startswith("unpickle"):
                found.append((path.name, name, ast.unparse(node.func)))
    allowed = {
        ("torch_function.py", "exec"),  # generated over generated names
        ("untrusted.py", "json.loads"),
        ("toml_reader.py", "tomllib.loads"),
        ("fit_folder.py", "json.loads"),  # of what `json.dumps` has just written
        ("operon_worker.py", "json.loads"),  # programs of their own, whose folder only we can write
        ("pysr_worker.py", "json.loads"),
        ("operon_worker.py", "np.load"),
        ("pysr_worker.py", "np.load"),
        ("refits_cache.py", "np.load"),  # allow_pickle=False
    }
    suspicious = {
        (file, called) for file, name, called in found if name != "load" or called in ("pickle.load", "np.load")
    }
    assert suspicious - allowed == set()


@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", "a/b", "a\\b", "..", ".hidden", "", "C:x", "nul", "CON.txt", "a\nb", "-rf", "x" * 300]
)
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must be a plain name"):
        plain_name(name, "name")


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/ude-escaped", "sub/escaped"])
def test_a_model_file_writes_only_into_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "data.csv").write_text("t,x\n0,1\n1,0.5\n2,0.25\n3,0.12\n", encoding="utf-8")
    lines = [f"name = {json.dumps(name)}", 'equations = ["dx/dt = -k*x"]', "[data]", 'file = "data.csv"']
    toml = "\n".join([*lines, "[parameters.k]", "fit = true", ""])
    (inside / "model.toml").write_text(toml, encoding="utf-8")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert main(["fit", "model.toml", "--quiet"]) == 2
    assert "must be a plain name" in capsys.readouterr().err
    assert sorted(path for path in tmp_path.rglob("*")) == before


class Tags(HTMLParser):
    """What a browser sees of a page: elements, names of attributes, addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self.sources += [value or "" for name, value in attrs if name in ("href", "src", "action")]


ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<math><mi href="javascript:alert(1)" onclick="alert(1)">x</mi></math>',
    "<math><annotation-xml encoding='text/html'><script>alert(1)</script></annotation-xml></math>",
    "<math><mtext></mtext></math><script>alert(1)</script>",
    '<!DOCTYPE x [<!ENTITY e "eeee">]><math><mi>&e;</mi></math>',
    "<math><mi>&lt;script&gt;alert(1)&lt;/script&gt;</mi></math>",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_mathml_of_a_file_keeps_formulas_and_nothing_else(attack: str) -> None:
    made = harmless(attack)
    assert "<script" not in made
    assert "<img" not in made
    assert "<annotation" not in made
    assert not any(f" {name}=" in made.partition("<math>")[2] for name in ("onclick", "href", "onerror"))


def test_mathml_of_our_own_passes_unchanged() -> None:
    x, k = sympy.symbols("x k_1")
    text = ude.export({"x": -k * x**2 / (1.5e-7 + sympy.sqrt(x)) + sympy.exp(-x)}, to="mathml")
    assert harmless(text) == html.unescape(text).replace("/>", "></mspace>")


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["title", "equations", "text", "mathml", "facts", "notes", "programs", "verdict"])
def test_a_report_injects_nothing(place: str, attack: str, tmp_path: Path) -> None:
    clean = contents.Contents(title="t", equations="<math></math>", text="x", columns=["x"], time="t")
    content = {"format": contents.FORMAT, **json.loads(json.dumps(clean.__dict__))}
    point = {
        "text": attack,
        "mathml": attack,
        "complexity": 3.0,
        "misfit": 1.0,
        "chosen": True,
        "details": {attack: 1.0},
    }
    replaced = {
        "mathml": {"front": [point]},
        "facts": {"facts": {attack: attack}},
        "notes": {"notes": [attack]},
        "programs": {"programs": {attack: attack}},
    }
    write_json(tmp_path / contents.NAME, {**content, **replaced.get(place, {place: attack})})
    page = pages.write(contents.read(tmp_path), tmp_path / "page.html").read_text(encoding="utf-8")
    seen = Tags()
    seen.feed(page)
    assert seen.tags.count("script") == 1 + (place == "mathml")
    assert not {"annotation-xml", "annotation"} & set(seen.tags)
    assert all(source.startswith(("data:", "#")) for source in seen.sources)
    assert not [name for name in seen.attributes if name.startswith("on")]
    assert "default-src 'none'" in page


def test_every_flipped_bit_of_a_saved_fit_is_named(tmp_path: Path) -> None:
    t = np.linspace(0.0, 2.0, 9)
    model = ude.UDE("dx/dt = -k*x", fit="k")
    fit = ude.fit(
        model, ude.Dataset.from_arrays(t, np.exp(-1.5 * t), "x"), stages="single shooting", holdout=0, progress=False
    )
    folder = fit.save(tmp_path / "fit")
    assert ude.load(folder).model.values() == fit.model.values()
    rng = np.random.default_rng(0)
    for name in ("fit.json", "fit.safetensors", "history.csv"):
        whole = (folder / name).read_bytes()
        for place in rng.integers(0, len(whole), 40):
            broken = bytearray(whole)
            broken[place] ^= 1 << int(rng.integers(8))
            (folder / name).write_bytes(bytes(broken))
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                ude.load(folder)
        for short in (b"", whole[: len(whole) // 2], bytes(len(whole))):
            (folder / name).write_bytes(short)
            with pytest.raises(DataError, match=name.replace(".", r"\.")):
                ude.load(folder)
        (folder / name).unlink()
        with pytest.raises(InputError):
            ude.load(folder)
        (folder / name).write_bytes(whole)


def test_every_flipped_bit_of_a_saved_discovery_is_named(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "run")
    whole = (folder / "model.json").read_bytes()
    for place in range(len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 1 << (place % 8)
        (folder / "model.json").write_bytes(bytes(broken))
        with pytest.raises(DataError, match=r"model\.json"):
            ude.load(folder)


def test_json_is_held_against_its_schema(tmp_path: Path) -> None:
    schema = {"a": int, "b?": [float], "c?": {str: (str, type(None))}}
    path = tmp_path / "x.json"
    write_json(path, {"a": 1, "b": [1, 2.5], "c": {"k": None}})
    assert read_json(path, schema) == {"a": 1, "b": [1, 2.5], "c": {"k": None}}
    for content, says in (
        ({}, "lacks the key 'a'"),
        ({"a": True}, "x.json: a does not fit: expected an integer, got True"),
        ({"a": 1, "b": [1.0, "2"]}, r"x.json: b\[1\] does not fit: expected a number, got '2'"),
        ({"a": 1, "c": {"k": 3}}, "x.json: c: k does not fit"),
        ({"a": 1, "d": 3}, "has a key that means nothing here: expected a, b, c, got d"),
    ):
        write_json(path, content)
        with pytest.raises(DataError, match=says):
            read_json(path, schema)
    path.write_text('{"sha256": "' + "0" * 64 + '",' + '"a":' + "[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match="does not match its checksum"):
        read_json(path, schema)
    check({"anything": [1]}, JSON, "x")


@pytest.mark.skipif(sys.platform == "win32", reason="owners and modes of POSIX")
def test_programs_are_loaded_only_from_a_folder_that_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UDE_CACHE_DIR", str(folder))
    assert cache.workplace("kernels") == folder / "kernels"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder in cache.places()
    for mode in (0o770, 0o707):
        folder.chmod(mode)
        assert folder not in cache.places()
        assert cache.workplace("kernels") != folder / "kernels"
    folder.chmod(0o755)
    assert folder in cache.places()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert folder not in cache.places()


def test_no_cache_lies_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UDE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a home directory
    if sys.platform == "win32":
        monkeypatch.delenv("LOCALAPPDATA", raising=False)
    assert not cache.cache_dir().is_relative_to(tmp_path)
    assert cache.cache_dir().is_absolute()
    monkeypatch.setenv("UDE_CACHE_DIR", "relative")
    with pytest.raises(InputError, match="UDE_CACHE_DIR must be an absolute path"):
        cache.cache_dir()
    assert list(tmp_path.iterdir()) == []


def test_hostile_tables_are_data(tmp_path: Path, marker: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text(f'{code(marker)!r},x\n0,1\n1,"=cmd|calc"\n', encoding="utf-8")
    with pytest.raises(DataError):
        ude.read_csv(table)
    assert not marker.exists()
