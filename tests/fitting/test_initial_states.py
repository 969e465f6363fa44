"""Initial states: what may be given for them, and how they move while they are fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import ude
from ude.errors import InputError
from ude.fitting import InitialValue
from ude.fitting.simulation.coordinates import Coordinates
from ude.fitting.simulation.initial_states import InitialStates, read_u0, starting_values

STATES = ("x", "y", "z")


def states_of(*values: InitialValue, number: int = 3) -> InitialStates:
    return InitialStates.of(values, Coordinates([True] + [False] * (len(values) - 1), [2.0] * len(values)), number)


def test_a_mapping_says_of_each_state_what_is_known():
    read = read_u0({"x": 2, "y": [1.0, 2.0], "z": "shared"}, STATES, 2)
    assert read[0] == InitialValue(2.0, fitted=False)
    assert read[1] == InitialValue([1.0, 2.0], fitted=False)
    assert read[2] == InitialValue(shared=True)
    assert read_u0({"z": ude.Parameter(1.0, lower=0.0)}, STATES, 2)[2] == InitialValue(1.0, True, 0.0)
    assert read_u0({"z": "fit"}, STATES, 2) == read_u0(None, STATES, 2) == (InitialValue(),) * 3


def test_an_array_is_known_for_all():
    read = read_u0([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], STATES, 2)
    assert read[1] == InitialValue([2.0, 5.0], fitted=False)
    np.testing.assert_array_equal(starting_values(read, np.full((2, 3), np.nan))[:, 2], [3.0, 6.0])


def test_what_nothing_says_starts_at_one_or_where_the_bounds_allow():
    values = (InitialValue(), InitialValue(lower=2.0, upper=4.0), InitialValue(7.0))
    first = np.array([[5.0, np.nan, 0.0], [np.nan, np.nan, 0.0]])
    np.testing.assert_array_equal(starting_values(values, first), [[5.0, 3.0, 7.0], [1.0, 3.0, 7.0]])


@pytest.mark.parametrize(
    ("u0", "claim"),
    [
        ({"w": 1.0}, r"u0 names 'w': expected some of x, y, z"),
        ({"z": "free"}, r"u0 of 'z' does not read: expected a number, one for each trajectory, .* got 'free'"),
        (
            {"z": [1.0, 2.0, 3.0]},
            r"u0 of 'z' does not fit the data: expected one number, or 2 for 2 trajectories, got 3",
        ),
        ({"z": float("nan")}, r"u0 of 'z' does not read: .* got nan"),
        ([[1.0, 2.0]], r"u0 does not fit the data: expected finite numbers of shape \(2, 3\)"),
    ],
)
def test_unusable_starts_are_refused(u0, claim):
    with pytest.raises(InputError, match=claim):
        read_u0(u0, STATES, 2)


@pytest.mark.parametrize(
    ("arguments", "claim"),
    [
        (dict(value=3.0, upper=2.0), r"outside its bounds"),
        (dict(lower=3.0, upper=2.0), r"the bounds of a parameter are in the wrong order"),
        (dict(fitted=False), r"an initial value is neither given nor fitted"),
        (dict(value=[1.0, 2.0], shared=True), r"a shared initial value has several values"),
    ],
)
def test_an_initial_value_checks_itself(arguments, claim):
    with pytest.raises(InputError, match=claim):
        InitialValue(**arguments)


def test_no_offset_is_the_start_itself():
    values = (
        InitialValue(lower=0.5, upper=4.0),
        InitialValue(lower=-1.0),
        InitialValue(upper=9.0),
        InitialValue(),
        InitialValue(2.0, fitted=False),
    )
    initial = states_of(*values)
    u0 = torch.tensor([[1.0, 2.0, 3.0, -4.0, 2.0], [3.9, -0.9, 8.9, 0.0, 2.0], [0.6, 5.0, -30.0, 7.0, 2.0]]).double()
    z0 = initial.coordinates.inner(initial.inside(u0))
    placed = initial.place(z0, torch.zeros(3, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(initial.coordinates.natural(placed), u0, rtol=1e-12, atol=1e-12)


def test_starts_stay_within_their_bounds_wherever_they_are_moved():
    values = (InitialValue(lower=0.5, upper=4.0), InitialValue(lower=-1.0), InitialValue(upper=9.0), InitialValue(1.0))
    initial = states_of(*values)
    u0 = torch.tensor([[0.5, -1.0, 9.0, 1.0]] * 3, dtype=torch.float64)
    z0 = initial.coordinates.inner(initial.inside(u0))
    for size in (-1e3, -3.0, 3.0, 1e3):
        offset = torch.full((3, 4), size, dtype=torch.float64, requires_grad=True)
        placed = initial.place(z0, offset, torch.ones(4, dtype=torch.float64))
        u = initial.coordinates.natural(placed).detach()
        assert (u[:, 0] >= 0.5 - 1e-9).all()
        assert (u[:, 0] <= 4.0 + 1e-9).all()
        assert (u[:, 1] >= -1.0).all()
        assert (u[:, 2] <= 9.0).all()
        assert torch.isfinite(torch.autograd.grad(placed.sum(), offset)[0]).all()


def test_a_shared_start_moves_as_one_and_a_known_one_not_at_all():
    initial = states_of(InitialValue(), InitialValue(shared=True), InitialValue(2.0, fitted=False))
    u0 = initial.inside(torch.tensor([[1.0, 1.0, 2.0], [2.0, 2.0, 2.0], [3.0, 6.0, 2.0]], dtype=torch.float64))
    torch.testing.assert_close(u0[:, 1], torch.full((3,), 3.0, dtype=torch.float64))
    offset = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    spread = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64)
    placed = initial.place(initial.coordinates.inner(u0), offset, spread)
    u = initial.coordinates.natural(placed.detach())
    torch.testing.assert_close(u[:, 0], u0[:, 0] * offset.detach()[:, 0].exp())
    torch.testing.assert_close(u[:, 1], (3.0 + 2.0 * 0.5 * offset.detach()[0, 1]).expand(3))
    torch.testing.assert_close(u[:, 2], u0[:, 2])
    gradient = torch.autograd.grad(placed.sum(), offset)[0]
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 1.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).double())
