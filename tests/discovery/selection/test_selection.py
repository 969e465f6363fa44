"""The observed trajectories choose the formula, with a penalty for complexity, and say what it costs them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import sympy as sp

from ude.discovery.candidate import Candidate
from ude.discovery.complexity import complexity
from ude.discovery.refit.closed_system import ClosedSystem, Constant, ObservedTrajectory
from ude.discovery.refit.integration import Integrator
from ude.discovery.refit.partial_system import PartialSystem
from ude.discovery.selection.selection import Hooks, SelectionOptions, select
from ude.discovery.selection.shortlist import score, shortlist
from ude.errors import InputError, ModelError

x, y, c0, c1, c2 = sp.symbols("x y c0 c1 c2")
U1, U2 = sp.Function("U1"), sp.Function("U2")
a, d = sp.symbols("a d")

SYSTEM = PartialSystem(
    ("x", "y"),
    {"x": a * x - U1(x, y), "y": U2(x, y) - d * y},
    {"U1": ("x", "y"), "U2": ("x", "y")},
    {"a": Constant(0.5, 0.0), "d": Constant(0.8, 0.0)},
)


def candidate(expression: sp.Expr, nmse: float = 0.01, **constants: float) -> Candidate:
    return Candidate(expression, constants, complexity(expression, constants), nmse, "test", True)


TRUE = candidate(c0 * x * y, c0=0.03)
FRONT = [
    candidate(sp.S.Zero, 1.0),
    candidate(c0 * y, 0.2, c0=0.5),
    TRUE,
    candidate(c0 * x * y / (c1 + x), 0.005, c0=5.0, c1=150.0),
    candidate(c0 + c1 * x * y, 0.004, c0=0.1, c1=0.03),
    candidate(c0 * x * y + c1 * x**2 + c2 * y, 0.001, c0=0.03, c1=0.001, c2=0.01),
]


FEW = FRONT[1:5]  # where the point is another one than finding the needle


def _data(noise: float, seed: int = 0, end: float = 15.0, points: int = 31) -> ObservedTrajectory:
    closed = ClosedSystem(
        ("x", "y"),
        {"x": a * x - c0 * x * y, "y": c1 * x * y - d * y},
        {name: Constant(0.0) for name in ("a", "d", "c0", "c1")},
    )
    times = np.linspace(0.0, end, points)
    values = {"a": 0.5, "d": 0.8, "c0": 0.03, "c1": 0.02}
    states = Integrator(closed).solve(times, np.array([30.0, 8.0]), values, np.ones(2))
    assert states is not None
    random = np.random.default_rng(seed)
    return ObservedTrajectory(times, states + noise * states.std(axis=0) * random.standard_normal(states.shape))


def _cut(trajectory: ObservedTrajectory, points: int) -> tuple[ObservedTrajectory, ObservedTrajectory]:
    return (
        ObservedTrajectory(trajectory.t[:points], trajectory.u[:points]),
        ObservedTrajectory(trajectory.t[points:], trajectory.u[points:]),
    )


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_the_true_combination_wins_over_closer_and_simpler_ones(seed: int) -> None:
    train, held_out = _cut(_data(0.05, seed), 23)
    found = select(SYSTEM, {"U1": FRONT, "U2": FRONT}, [train], held_out=[held_out])
    assert str(found.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    assert found.chosen.fit.values["U1_c0"] == pytest.approx(0.03, rel=0.1)
    assert found.chosen.candidates["U1"].constants == {"c0": found.chosen.fit.values["U1_c0"]}
    assert set(found.chosen.held_out_rmse) == {"x", "y"}
    assert found.complete
    assert not found.interrupted


def test_noiseless_data_do_not_choose_by_rounding() -> None:
    found = select(SYSTEM, {"U1": FEW, "U2": FEW}, [_data(0.0)])
    assert str(found.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    assert found.chosen.fit.values["U2_c0"] == pytest.approx(0.02, rel=1e-5)
    assert found.chosen.held_out_rmse == {}


def test_score_is_as_defined_and_decides_the_order() -> None:
    found = select(SYSTEM, {"U1": FRONT[1:4], "U2": FRONT[1:4]}, [_data(0.05)])
    for combination in found.ranked:
        expected = score(combination.fit.sse, 62, combination.complexity, 1e-3)
        assert combination.score == expected
    assert [c.score for c in found.ranked] == sorted(c.score for c in found.ranked)
    assert score(2.0, 10, 7, 0.0) == pytest.approx(10 * np.log(0.2) + 7 * np.log(10))
    assert score(np.inf, 10, 7, 0.0) == np.inf


def test_held_out_error_is_that_of_simulating_on_from_the_fitted_start() -> None:
    train, held_out = _cut(_data(0.05), 21)
    found = select(SYSTEM, {"U1": [TRUE], "U2": [TRUE]}, [train], held_out=[held_out])
    chosen = found.chosen
    whole = Integrator(chosen.closed).solve(
        np.concatenate([train.t, held_out.t]), chosen.fit.u0[0], chosen.fit.values, np.ones(2)
    )
    assert whole is not None
    expected = np.sqrt(np.mean((whole[21:] - held_out.u) ** 2, axis=0))
    assert list(chosen.held_out_rmse.values()) == pytest.approx(list(expected), rel=1e-5)  # two integrations


def test_held_out_data_do_not_influence_the_choice() -> None:
    train, held_out = _cut(_data(0.05), 23)
    absurd = ObservedTrajectory(held_out.t, 1e3 * held_out.u)
    first = select(SYSTEM, {"U1": FEW, "U2": FEW}, [train], held_out=[held_out])
    second = select(SYSTEM, {"U1": FEW, "U2": FEW}, [train], held_out=[absurd])
    assert [str(c) for c in first.ranked] == [str(c) for c in second.ranked]


def test_terms_that_are_not_needed_are_dropped_in_a_named_step() -> None:
    front = [candidate(c0 + c1 * x * y, c0=0.1, c1=0.03)]
    found = select(SYSTEM, {"U1": front, "U2": front}, [_data(0.05)])
    assert str(found.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    assert "dropped c0 of U1 = c0 + c1*x*y" in found.chosen.step
    assert "dropped c0 of U2 = c0 + c1*x*y" in found.chosen.step
    assert found.chosen.candidates["U1"].complexity == 6
    kept = select(SYSTEM, {"U1": front, "U2": front}, [_data(0.05)], options=SelectionOptions(simplify=False))
    assert [str(c) for c in kept.ranked] == ["U1 = c0 + c1*x*y, U2 = c0 + c1*x*y"]


def test_of_formulas_that_the_data_do_not_tell_apart_the_simplest_is_chosen() -> None:
    options = SelectionOptions(margin=1e6)
    found = select(SYSTEM, {"U1": FEW, "U2": FEW}, [_data(0.05)], options=options)
    assert found.chosen.complexity == min(c.complexity for c in found.ranked)


def test_many_combinations_are_searched_term_by_term_within_the_limit() -> None:
    options = SelectionOptions(max_combinations=20, simplify=False)
    seen: list[tuple[int, int, str]] = []
    found = select(
        SYSTEM,
        {"U1": FRONT, "U2": FRONT},
        [_data(0.05)],
        options=options,
        hooks=Hooks(on_progress=lambda done, total, best: seen.append((done, total, best))),
    )
    assert str(found.chosen) == "U1 = c0*x*y, U2 = c0*x*y"
    assert len(found.ranked) <= 20
    # it begins with the likeliest and with the simplest near ones; from zero, which is near nothing, little is found
    assert "U1 = 0, U2 = 0" not in [str(c) for c in found.ranked]
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1))
    assert all(total == 20 for _, total, _ in seen)
    assert seen[-1][2] == "U1 = c0*x*y, U2 = c0*x*y"


def test_interruption_returns_the_best_so_far() -> None:
    def stop(done: int, total: int, best: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    found = select(SYSTEM, {"U1": FEW, "U2": FEW}, [_data(0.05)], hooks=Hooks(on_progress=stop))
    assert found.interrupted
    assert len(found.ranked) == 5
    assert found.chosen in found.ranked


def test_time_over_returns_the_best_so_far() -> None:
    found = select(SYSTEM, {"U1": FEW, "U2": FEW}, [_data(0.05)], options=SelectionOptions(max_seconds=1e-9))
    assert not found.complete
    assert not found.interrupted
    assert len(found.ranked) == 1


def test_shortlist_holds_the_simplest_adequate() -> None:
    far = [candidate(c0 * x ** (i + 2), 0.9, c0=1.0) for i in range(20)]
    close = [candidate(c0 * x ** (i + 2) + c1 * y + c2 * x * y, 1e-6, c0=1.0, c1=1.0, c2=1.0) for i in range(20)]
    noisy = replace(TRUE, nmse=0.08)  # what noise in the data leaves of the true form
    chosen = shortlist([*far, *close, noisy], 6, 60)
    assert noisy in chosen
    assert len(chosen) == 6
    assert not any(c.nmse == 0.9 for c in chosen)
    assert [c.complexity for c in chosen] == sorted(c.complexity for c in chosen)


def test_a_positive_state_is_not_followed_below_zero() -> None:
    system = PartialSystem(("x",), {"x": -U1(x)}, {"U1": ("x",)}, positive=("x",))
    times = np.linspace(0.0, 4.0, 20)
    data = ObservedTrajectory(times, 5.0 * np.exp(-times)[:, None])
    front = [candidate(c0, c0=0.5), candidate(c0 * x, c0=0.8)]
    found = select(system, {"U1": front}, [data], options=SelectionOptions(simplify=False))
    assert str(found.chosen) == "U1 = c0*x"
    [constant] = [c for c in found.ranked if str(c) == "U1 = c0"]
    assert constant.fit.u0[0, 0] > constant.fit.values["U1_c0"] * 4.0  # it stays above zero to the end


def test_an_unknown_term_may_be_called_with_other_arguments_than_its_names() -> None:
    """U(z) with z standing for y/x in the equation."""
    system = PartialSystem(("x", "y"), {"x": -U1(y / x) * x, "y": sp.S.Zero}, {"U1": ("z",)})
    closed, names = system.close({"U1": candidate(c0 * sp.Symbol("z") ** 2, c0=2.0)})
    assert sp.simplify(closed.equations["x"] + sp.Symbol("U1_c0") * y**2 / x) == 0
    assert names == {"U1": {"c0": "U1_c0"}}
    assert closed.parameters["U1_c0"].start == 2.0


def test_wrong_input_is_refused_in_words() -> None:
    with pytest.raises(ModelError, match="no candidate formulas for U2. Search with another regressor"):
        select(SYSTEM, {"U1": FRONT, "U2": []}, [_data(0.0)])
    with pytest.raises(InputError, match=r"SelectionOptions\(max_candidates\): expected above 0, got 0"):
        SelectionOptions(max_candidates=0)
    clash = replace(SYSTEM, parameters={**SYSTEM.parameters, "U1_c0": Constant(1.0)})
    with pytest.raises(ModelError, match="name U1_c0: expected a name of its own. Rename the parameter U1_c0"):
        clash.close({"U1": TRUE, "U2": TRUE})
    with pytest.raises(ModelError, match=r"terms without a formula: expected U1, U2, got none for \['U2'\]"):
        SYSTEM.close({"U1": TRUE})


def test_an_open_choice_is_widened_by_summands_that_were_offered_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum is on no front, its parts are: dx/dt = 2 - x."""
    monkeypatch.setattr("ude.discovery.selection.selection._OPEN", np.inf)
    system = PartialSystem(("x",), {"x": U1(x)}, {"U1": ("x",)})
    times = np.linspace(0.0, 4.0, 30)
    data = ObservedTrajectory(times, (2.0 + 3.0 * np.exp(-times))[:, None])
    front = [candidate(c0, c0=-0.5), candidate(c0 * x, c0=-0.5)]
    narrow = select(system, {"U1": front}, [data], options=SelectionOptions(extend=0))
    assert str(narrow.chosen) in ("U1 = c0", "U1 = c0*x")
    wide = select(system, {"U1": front}, [data])
    assert sorted(wide.chosen.fit.values.values()) == pytest.approx([-1.0, 2.0], rel=1e-4)
    assert wide.chosen.step.startswith("added")
    held = select(system, {"U1": front}, [data], hooks=Hooks(allowed=lambda term, own: len(own.constants) < 2))
    assert {len(c.candidates["U1"].constants) for c in held.ranked} <= {0, 1}


def test_an_open_choice_also_tries_rivals_without_one_of_their_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """dx/dt = 2x - x**2 is on no front, and with a floor that high the form that holds it is not the best."""
    monkeypatch.setattr("ude.discovery.selection.selection._OPEN", np.inf)
    system = PartialSystem(("x",), {"x": U1(x)}, {"U1": ("x",)})
    times = np.linspace(0.0, 4.0, 30)
    data = ObservedTrajectory(times, (2.0 / (1.0 + 3.0 * np.exp(-2.0 * times)))[:, None])
    front = [candidate(c0, c0=0.5), candidate(c0 + c1 * x + c2 * x**2, c0=0.1, c1=1.9, c2=-0.9)]
    found = select(system, {"U1": front}, [data], options=SelectionOptions(floor=1.0))
    assert str(found.chosen) == "U1 = c0"
    [reduced] = [c for c in found.ranked if str(c) == "U1 = c0*x + c1*x**2"]
    assert reduced.step == "dropped c0 of U1 = c0 + c1*x + c2*x**2"
    assert reduced.fit.values == pytest.approx({"U1_c0": 2.0, "U1_c1": -1.0}, rel=1e-3)
