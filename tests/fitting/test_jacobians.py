"""Jacobians at many points at once are those of one point after another."""

from __future__ import annotations

import pytest
import torch
from torch.func import jacrev

import ude.fitting.simulation.jacobians
from ude.fitting.simulation.jacobians import at_points


def function(shared, own):
    hidden = torch.tanh(shared["w"] @ own["x"] + shared["b"] * own["t"])
    return torch.stack([hidden.sum(), own["x"].prod(), shared["b"][0] * hidden[1]])


@pytest.mark.parametrize("chunk", [20_000_000, 40])
def test_derivatives_at_points_are_those_of_jacrev_at_each(monkeypatch, chunk):
    monkeypatch.setattr(ude.fitting.simulation.jacobians, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    shared = {"w": torch.randn(2, 3, generator=generator), "b": torch.randn(2, generator=generator)}
    own = {"x": torch.randn(7, 3, generator=generator), "t": torch.randn(7, generator=generator)}
    to_shared, to_own = at_points(function, 3, shared, own)
    for k in range(7):
        one = {name: value[k] for name, value in own.items()}
        expected_shared, expected_own = jacrev(function, argnums=(0, 1))(shared, one)
        for name, slopes in expected_shared.items():
            torch.testing.assert_close(to_shared[name][k], slopes)
        for name, slopes in expected_own.items():
            torch.testing.assert_close(to_own[name][k], slopes)


def test_what_does_not_matter_has_no_slope():
    found, _ = at_points(lambda shared, own: own["x"] ** 2, 2, {"w": torch.ones(4)}, {"x": torch.ones(3, 2)})
    assert found["w"].shape == (3, 2, 4)
    assert not found["w"].any()
