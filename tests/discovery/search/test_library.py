"""The exact best-subset search: the right form is found, over scales, with gauges, and nothing singular is offered."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.evaluation import is_regular
from ude.discovery.samples import Samples
from ude.discovery.search.library import Column, LibraryRegressor, best_subsets
from ude.errors import InputError

Array = np.ndarray


def _orbit(size: int = 200) -> dict[str, Array]:
    """Two inputs on a closed curve, as along the trajectory of a predator and its prey."""
    t = np.linspace(0.0, 20.0, size)
    return {"x": 30.0 + 25.0 * np.sin(0.6 * t), "y": 20.0 + 15.0 * np.cos(0.6 * t + 0.4)}


def _swing(size: int = 200) -> dict[str, Array]:
    t = np.linspace(0.0, 20.0, size)
    return {"v": 3.0 * np.sin(0.7 * t) * np.exp(-0.02 * t)}


def _has(candidates: list[Candidate], form: str, nmse: float = 1e-12) -> Candidate:
    found = [c for c in candidates if str(c.expression) == form]
    assert found, [str(c.expression) for c in candidates]
    assert found[0].nmse < nmse
    return found[0]


FORMS = {
    "mass action": ("c0*x*y", lambda x, y: 0.0248 * x * y, (0.0248,)),
    "Michaelis-Menten": ("c0*x/(c1 + x)", lambda x: 2.0 * x / (13.0 + x), (2.0, 13.0)),
    "Hill 2": ("c0*x**2/(c1 + x**2)", lambda x: 2.0 * x**2 / (400.0 + x**2), (2.0, 400.0)),
    "logistic": ("c0*x + c1*x**2", lambda x: 0.5 * x * (1.0 - x / 80.0), (0.5, -0.00625)),
    "quadratic drag": ("c0*v*Abs(v)", lambda v: -0.3 * v * np.abs(v), (-0.3,)),
    "Holling II": ("c0*x*y/(c1 + x)", lambda x, y: 0.9 * x * y / (15.0 + x), (0.9, 15.0)),
    "Holling III": ("c0*x**2*y/(c1 + x**2)", lambda x, y: 0.9 * x**2 * y / (400.0 + x**2), (0.9, 400.0)),
    "Ricker": ("c0*x*exp(-c1*x)", lambda x: 1.3 * x * np.exp(-x / 25.0), (1.3, 0.04)),
    "linear + quadratic": ("c0*x + c1*x**2", lambda x: 0.3 * x + 0.01 * x**2, (0.3, 0.01)),
    "pendulum": ("c0*sin(v)", lambda v: -9.8 * np.sin(v), (-9.8,)),
    "Haldane": ("c0*x/(c1 + x + x**2/c2)", lambda x: 3.0 * x / (20.0 + x + x**2 / 30.0), (3.0, 20.0, 30.0)),
}


def _samples(name: str) -> Samples:
    _, function, _ = FORMS[name]
    wanted = function.__code__.co_varnames
    inputs = {key: value for key, value in {**_orbit(), **_swing()}.items() if key in wanted}
    return Samples(inputs, function(**inputs), "U")


@pytest.mark.parametrize("name", FORMS)
def test_right_form_and_constants_of_smooth_noiseless_samples(name: str) -> None:
    form, _, constants = FORMS[name]
    candidates = LibraryRegressor().search(_samples(name))
    found = _has(candidates, form)
    assert tuple(found.constants.values()) == pytest.approx(constants, rel=1e-6)
    assert found.pareto
    assert all(is_regular(c.expression, _samples(name).inputs, c.constants) for c in candidates)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["mass action", "Michaelis-Menten", "Holling II", "Ricker", "logistic"])
def test_scale_of_inputs_and_output_does_not_matter(name: str, scale: float) -> None:
    form, _, _ = FORMS[name]
    base = _samples(name)
    scaled = Samples({k: scale * v for k, v in base.inputs.items()}, base.output / scale, "U")
    _has(LibraryRegressor().search(scaled), form)


def test_search_takes_about_a_second_of_the_processor() -> None:
    samples = _samples("Holling III")
    LibraryRegressor().search(samples)
    start = time.process_time()
    LibraryRegressor().search(samples)
    assert time.process_time() - start < 8.0


def test_same_answer_every_time() -> None:
    assert LibraryRegressor().search(_samples("Holling II")) == LibraryRegressor().search(_samples("Holling II"))


def test_free_directions_are_not_part_of_the_formula() -> None:
    inputs = _orbit()
    x, y = inputs["x"], inputs["y"]
    samples = Samples(inputs, 0.02 * x * y + 0.37 * x, "U", nuisance=x[:, None])
    candidates = LibraryRegressor().search(samples)
    assert _has(candidates, "c0*x*y").constants["c0"] == pytest.approx(0.02, rel=1e-9)
    assert not any(str(c.expression) == "c0*x" for c in candidates)


def test_weights_decide_which_samples_count() -> None:
    inputs = _orbit()
    x, y = inputs["x"], inputs["y"]
    output = 0.02 * x * y
    output[::4] += 50.0
    weights = np.ones(len(x))
    weights[::4] = 0.0
    assert _has(LibraryRegressor().search(Samples(inputs, output, weights=weights)), "c0*x*y").constants[
        "c0"
    ] == pytest.approx(0.02, rel=1e-9)


def test_subset_search_is_exact() -> None:
    """Against least squares on every subset, one by one, of a library without atoms."""
    random = np.random.default_rng(3)
    inputs = _orbit(60)
    nuisance = inputs["x"][:, None]
    samples = Samples(inputs, random.standard_normal(60), nuisance=nuisance, weights=random.uniform(0.5, 2.0, 60))
    x, y = sp.symbols("x y")
    columns = [Column(term) for term in (sp.S.One, y, x * y, x**2, y**2, sp.sin(x), x**2 * y)]
    root = np.sqrt(samples.weights)[:, None]
    for size in (1, 2, 3, 4):
        by_hand = []
        for chosen in combinations(columns, size):
            matrix = np.concatenate([c.values(inputs) for c in chosen] + [nuisance], axis=1) * root
            matrix = matrix / np.linalg.norm(matrix, axis=0)
            target = samples.output * root[:, 0]
            fitted = matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]
            by_hand.append((float(np.sum((target - fitted) ** 2)), {str(c.template) for c in chosen}))
        best = min(by_hand, key=lambda item: item[0])[1]
        found = [s for s in best_subsets(columns, samples, 4, 5) if len(s.columns) == size]
        assert {str(c.template) for c in found[0].columns} == best


def test_a_term_that_the_free_directions_explain_is_zero() -> None:
    inputs = _orbit()
    samples = Samples(inputs, 0.37 * inputs["x"], nuisance=inputs["x"][:, None])
    candidates = LibraryRegressor().search(samples)
    assert [(str(c.expression), c.nmse) for c in candidates] == [("0", 0.0)]
    assert [str(c.expression) for c in LibraryRegressor().search(Samples(inputs, np.zeros(200)))] == ["0"]


def test_constant_output_is_a_constant() -> None:
    best = LibraryRegressor().search(Samples(_orbit(), np.full(200, 7.0)))[1]
    assert str(best.expression) == "c0"
    assert best.constants["c0"] == pytest.approx(7.0)


def test_constant_input_and_collinear_inputs_are_no_obstacle() -> None:
    x = _orbit()["x"]
    candidates = LibraryRegressor().search(Samples({"x": x, "z": np.full(200, 4.0)}, 0.1 * x**2))
    _has(candidates, "c0*x**2")
    twins = LibraryRegressor().search(Samples({"x": x, "z": 2.0 * x}, 0.1 * x**2))
    assert any(c.nmse < 1e-12 and c.complexity <= 6 for c in twins)


def test_fifteen_samples_are_enough_for_one_term() -> None:
    inputs = _orbit(15)
    _has(LibraryRegressor().search(Samples(inputs, 0.02 * inputs["x"] * inputs["y"])), "c0*x*y")


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_handful_of_samples_does_not_break_the_search(size: int) -> None:
    inputs = {"x": np.linspace(1.0, 2.0, size)}
    assert LibraryRegressor().search(Samples(inputs, inputs["x"] ** 2))


def test_no_formula_has_a_pole_where_the_input_changes_sign() -> None:
    inputs = _swing()
    samples = Samples(inputs, np.tanh(3.0 * inputs["v"]))
    for candidate in LibraryRegressor().search(samples):
        assert is_regular(candidate.expression, inputs, candidate.constants)
        assert not candidate.expression.has(1 / sp.Symbol("v"))


def test_candidates_are_distinct_functions() -> None:
    samples = _samples("Holling II")
    candidates = LibraryRegressor().search(samples)
    values = [c.evaluate(samples.inputs) for c in candidates[1:]]
    assert len(values) > 10
    for a, b in combinations(values, 2):
        assert np.linalg.norm(a - b) > 1e-7 * np.linalg.norm(a)


def test_smooth_errors_leave_the_true_form_among_the_candidates() -> None:
    """A trained network's error is smooth; the true form must still be offered, though it is not the closest."""
    inputs = _orbit()
    x, y = inputs["x"], inputs["y"]
    for seed in range(8):
        random = np.random.default_rng(seed)
        bumps = sum(
            random.normal() * np.cos(random.normal() * x / 30 + random.normal() * y / 20 + 6 * random.random())
            for _ in range(20)
        )
        truth = 0.02 * x * y
        output = truth + 0.05 * np.std(truth) * bumps / np.std(bumps)
        assert "c0*x*y" in {str(c.expression) for c in LibraryRegressor().search(Samples(inputs, output))}


def test_inputs_may_have_names_that_sympy_uses() -> None:
    t = np.linspace(0.0, 10.0, 120)
    inputs = {"S": 80.0 - 5.0 * t, "I": 10.0 + 8.0 * np.sin(t), "N": 100.0 + 3.0 * np.cos(2.0 * t)}
    candidates = LibraryRegressor().search(Samples(inputs, 0.004 * inputs["S"] * inputs["I"]))
    assert "I*S*c0" in {str(c.expression) for c in candidates}


def test_an_input_called_c0_keeps_its_name() -> None:
    x = np.linspace(1.0, 3.0, 50)
    found = LibraryRegressor().search(Samples({"c0": x}, 2.0 * x))
    best = next(c for c in found if c.nmse < 1e-20)
    assert str(best.expression) == "c0*c1"
    assert best.constants == pytest.approx({"c1": 2.0})


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"LibraryRegressor\(max_terms\): expected 1, 2, 3 or 4, got 5"):
        LibraryRegressor(max_terms=5)
    with pytest.raises(InputError, match=r"LibraryRegressor\(degree\): expected None or 1 and above, got 0"):
        LibraryRegressor(degree=0)
    with pytest.raises(InputError, match=r"LibraryRegressor\(keep\): expected a positive number, got 0"):
        LibraryRegressor(keep=0)


def test_trajectory_that_ends_a_little_below_zero_keeps_its_saturating_atoms() -> None:
    x = np.linspace(-0.02, 10.0, 101)
    candidates = LibraryRegressor().search(Samples({"x": x}, x / (3.0 + x)))
    [found] = [one for one in candidates if one.pareto and one.nmse < 1e-20][:1]
    assert str(found.expression) == "c0*x/(c1 + x)"
    assert list(found.constants.values()) == pytest.approx([1.0, 3.0])
