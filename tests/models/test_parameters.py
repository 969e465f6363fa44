"""Parameters: bounds, transforms, text, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ude.errors import InputError
from ude.models import Parameter, parse_parameters
from ude.models.parameters import ParameterStore, merge_parameters

BOUNDS = [(None, None), (0.0, None), (None, 3.0), (-1.0, 2.0)]


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@given(fraction=st.floats(1e-6, 1 - 1e-6))
def test_a_value_that_is_set_is_read_back(lower: float | None, upper: float | None, fraction: float) -> None:
    low = lower if lower is not None else -5.0
    high = upper if upper is not None else 5.0
    value = low + fraction * (high - low)
    store = ParameterStore({"a": Parameter(None, True, lower, upper)})
    store.set({"a": value})
    assert store.values()["a"] == pytest.approx(value, rel=1e-12, abs=1e-12)
    assert store.table()["a"].value == store.values()["a"]


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize("raw", [-50.0, -1.0, 0.3, 50.0])
def test_no_raw_number_leaves_the_bounds(lower: float | None, upper: float | None, raw: float) -> None:
    store = ParameterStore({"a": Parameter(1.0, True, lower, upper)})
    with torch.no_grad():
        store.raw_a.fill_(raw)
    value = store.values()["a"]
    assert lower is None or value >= lower
    assert upper is None or value <= upper
    assert math.isfinite(value)


@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
def test_the_gradient_with_respect_to_raw_is_that_of_the_transform(lower: float | None, upper: float | None) -> None:
    store = ParameterStore({"a": Parameter(0.4, True, lower, upper)})
    (gradient,) = torch.autograd.grad(store.value_of("a"), store.raw_a)
    values, step = [], 1e-6
    for sign in (-1, 1):
        with torch.no_grad():
            store.raw_a.add_(sign * step)
            values.append(float(store.value_of("a")))
            store.raw_a.add_(-sign * step)
    assert gradient.item() == pytest.approx((values[1] - values[0]) / (2 * step), rel=1e-7)


def test_a_value_on_its_bound_stays_trainable() -> None:
    store = ParameterStore({"a": Parameter(0.0, True, 0.0, None), "b": Parameter(2.0, True, 0.0, 2.0)})
    assert store.values()["a"] == pytest.approx(0.0, abs=1e-8)
    assert store.values()["b"] == pytest.approx(2.0, abs=1e-8)
    for name in ("a", "b"):
        (gradient,) = torch.autograd.grad(store.value_of(name), getattr(store, f"raw_{name}"))
        assert gradient.item() != 0.0


def test_an_unset_parameter_starts_inside_its_bounds_and_says_that_it_is_unset() -> None:
    table = parse_parameters("a, b in [2, 4], c in [5, inf], d in [, -3]")
    store = ParameterStore(table)
    assert store.values() == pytest.approx({"a": 1.0, "b": 3.0, "c": 6.0, "d": -4.0})
    assert [entry.value for entry in store.table().values()] == [None] * 4
    with torch.no_grad():
        store.raw_b.add_(0.5)
    assert store.table()["b"].value == store.values()["b"]
    store.set({"a": 1.0})
    assert store.table()["a"].value == 1.0


def test_only_fitted_parameters_are_trained() -> None:
    store = ParameterStore({"a": Parameter(1.0, fitted=False), "b": Parameter(1.0)})
    assert [name for name, _ in store.named_parameters()] == ["raw_b"]
    store.set({"a": 7.0})
    assert store.values()["a"] == 7.0


def test_names_of_torch_are_fine_as_names_of_parameters() -> None:
    table = {name: Parameter(2.0) for name in ("half", "type", "keys", "training", "T", "_parameters")}
    assert ParameterStore(table).values() == dict.fromkeys(table, 2.0)


def test_a_store_refuses_what_does_not_fit_and_changes_nothing() -> None:
    store = ParameterStore({"alpha": Parameter(1.0, True, 0.0, 2.0), "b": Parameter(1.0)})
    with pytest.raises(InputError) as caught:
        store.set({"b": 5.0, "alpha": 3.0})
    assert str(caught.value) == "parameter alpha is outside its bounds: expected a value in [0.0, 2.0], got 3.0."
    assert store.values()["b"] == 1.0
    with pytest.raises(InputError) as caught:
        store.set({"alpa": 3.0})
    assert str(caught.value) == (
        "alpa is not a parameter of the model: expected one of alpha, b, got 'alpa'. Did you mean alpha?"
    )
    with pytest.raises(InputError, match="parameter b is not finite: expected a finite number, got nan"):
        store.set({"b": math.nan})


def test_text_gives_starts_and_bounds() -> None:
    assert parse_parameters("a=0.5, d in [0, 2], k = -1e-3 in [-inf, 0]") == {
        "a": Parameter(0.5),
        "d": Parameter(None, True, 0.0, 2.0),
        "k": Parameter(-1e-3, True, None, 0.0),
    }
    assert parse_parameters("a=1", fitted=False) == {"a": Parameter(1.0, fitted=False)}
    assert parse_parameters("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=x", "the list of parameters does not read: expected NAME, NAME=NUMBER"),
        ("a, 2b", "got '2b'"),
        ("a b", "got 'a b'"),
        ("a, a", "names a twice"),
        ("a=3 in [0, 2]", "a parameter is outside its bounds: expected a value in [0.0, 2.0], got 3.0."),
        ("a in [2, 0]", "the bounds of a parameter are in the wrong order: expected lower < upper, got [2.0, 0.0]."),
    ],
)
def test_text_that_does_not_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_parameters(text)
    assert message in str(caught.value)


def test_parameters_and_fit_make_one_table() -> None:
    table = merge_parameters({"a": 1.5, "b": Parameter(2.0, True, 0.0), "c": 3.0, "e": None}, "c, d=4 in [0, 9], e")
    assert table == {
        "a": Parameter(1.5, fitted=False),
        "b": Parameter(2.0, True, 0.0),
        "c": Parameter(3.0),
        "d": Parameter(4.0, True, 0.0, 9.0),
        "e": Parameter(),
    }
    assert merge_parameters({}, ["a", "b=2"]) == {"a": Parameter(), "b": Parameter(2.0)}


@pytest.mark.parametrize(
    ("parameters", "fit", "message"),
    [
        ({"a": None}, None, 'parameter a has no value. Give it one (parameters={"a": 1.0}) or have it fitted'),
        ({"a": Parameter(None, fitted=False)}, None, "parameter a has no value."),
        ({"a": "1"}, None, "parameter a is not a number: expected a finite number, got '1'."),
        ({"a": True}, None, "parameter a is not a number"),
        ({"a": math.inf}, None, "parameter a is not finite"),
        ({"a b": 1.0}, None, "the name of a parameter is not a name"),
        ([("a", 1.0)], None, "parameters is not a mapping"),
        ({"a": 1.0}, "a=2", "parameter a has two values: 1.0 in parameters and 2.0 in fit."),
        ({}, 3, "fit is not a list of names"),
        ({}, [3], "fit is not a list of names"),
        ({}, ["a", "a"], "fit names a twice"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(parameters: object, fit: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        merge_parameters(parameters, fit)  # type: ignore[arg-type]
    assert message in str(caught.value)
