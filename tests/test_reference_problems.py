"""Reference problems: their equations, their published end values, and our solvers against both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import ude
from benchmarks import reference_problems
from ude.problems.ode import flatten

NON_STIFF, STIFF = reference_problems.names(stiff=False), reference_problems.names(stiff=True)
METHODS = [ude.Tsit5(), ude.Vern7(), ude.methods.Vern9(), ude.methods.DP8()]
# by default one problem of each kind; all of them are marked slow
FEW = {"a3", "b1", "b5", "c1", "c5"}
# DP8: in a single equation its two estimates may vanish together, and one step far too large is then accepted.
# Tsit5: the near collisions of the Pleiades let errors grow; it comes to 1.1e-4.
BOUNDS = {("DP8", "a3"): (1e-3, 1e-7), ("Tsit5", "pleiades"): (1.5e-4, 1e-7)}
# SciPy's method, tolerances and how far it must agree with the end values, by our measure of the error
PEERS = {
    "arenstorf": ("DOP853", 2.3e-14, 1e-16, 1e-6),
    "vdpol": ("Radau", 1e-9, 1e-12, 1e-10),
    "rober": ("Radau", 1e-9, 1e-20, 1e-8),
    "hires": ("Radau", 1e-9, 1e-13, 1e-9),
    "orego": ("Radau", 1e-8, 1e-8, 1e-9),
    "pollu": ("Radau", 1e-8, 1e-19, 1e-8),
}


def name(value: object) -> str:
    return getattr(value, "name", str(value))


def scipy_end(reference: reference_problems.ReferenceProblem, method: str, rtol: float, atol: float) -> torch.Tensor:
    f, leaves = flatten(reference.problem)

    def g(t: float, u: np.ndarray) -> np.ndarray:
        return f(torch.from_numpy(u), leaves, torch.tensor(t, dtype=torch.float64)).numpy()

    span = tuple(float(t) for t in reference.problem.tspan)
    solved = solve_ivp(g, span, reference.problem.u0.numpy(), method=method, rtol=rtol, atol=atol)
    assert solved.status == 0
    return torch.from_numpy(solved.y[:, -1])


@pytest.mark.parametrize("problem", [n for n in NON_STIFF if n != "arenstorf"])
def test_end_values_of_non_stiff_problems_agree_with_a_tight_solve_of_scipys(problem: str):
    reference = reference_problems.get(problem)
    assert float(reference.error(scipy_end(reference, "DOP853", 2.3e-14, 1e-16))) < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("problem", PEERS)
def test_end_values_of_stiff_and_unstable_problems_agree_with_scipys(problem: str):
    method, rtol, atol, bound = PEERS[problem]
    reference = reference_problems.get(problem)
    assert float(reference.error(scipy_end(reference, method, rtol, atol))) < bound


def test_the_end_value_of_e5_agrees_with_scipys_and_with_a_second_order_decay():
    # once y1 is gone, y3 decays by itself: 1/y3 grows by M C per unit of time
    reference = reference_problems.get("e5")
    f, leaves = flatten(reference.problem)

    def g(t: float, u: np.ndarray) -> np.ndarray:
        return f(torch.from_numpy(u), leaves, torch.tensor(t, dtype=torch.float64)).numpy()

    solved = solve_ivp(
        g, (0.0, 1e13), [1.76e-3, 0.0, 0.0], method="LSODA", rtol=1e-11, atol=[1e-23, 1e-41, 1e-41], t_eval=[1e12, 1e13]
    )
    assert float(reference.error(torch.from_numpy(solved.y[:, -1]))) < 1e-7
    before, after = 1 / solved.y[1]
    assert abs((after - before) / (1.13e9 * 9e12) - 1) < 1e-8


def ring_modulator(t: float, y: np.ndarray) -> list[float]:
    """The ring modulator in plain Python, a hundred times faster for one state, and written apart from ours."""

    def diode(v: float) -> float:
        return 40.67286402e-9 * math.expm1(17.7493332 * v)

    a, b, c, d, e, g, h, i1, i2, i3, i4, i5, i6, i7, i8 = y.tolist()
    high = 2 * math.sin(20000 * math.pi * t)
    one, two = diode(c - e - h - high), diode(g - d - h - high)
    three, four = diode(d + e + h + high), diode(h + high - c - g)
    return [
        (i1 - 0.5 * i3 + 0.5 * i4 + i7 - a / 25e3) / 1.6e-8,
        (i2 - 0.5 * i5 + 0.5 * i6 + i8 - b / 25e3) / 1.6e-8,
        (i3 - one + four) / 2e-12,
        (-i4 + two - three) / 2e-12,
        (i5 + one - three) / 2e-12,
        (-i6 - two + four) / 2e-12,
        (-h / 50 + one + two - three - four) / 1e-8,
        -a / 4.45,
        -b / 4.45,
        (0.5 * a - c - 17.3 * i3) / 5e-4,
        (-0.5 * a + d - 17.3 * i4) / 5e-4,
        (0.5 * b - e - 17.3 * i5) / 5e-4,
        (-0.5 * b + g - 17.3 * i6) / 5e-4,
        (-a + 0.5 * math.sin(2000 * math.pi * t) - 86.3 * i7) / 2e-3,
        (-b - 636.3 * i8) / 2e-3,
    ]


def test_the_ring_modulator_is_the_one_written_apart():
    prob = reference_problems.get("ring_modulator").problem
    u = 0.1 * torch.randn(15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (0.0, 3.3e-4):
        ours = prob.f(u, prob.p, torch.tensor(t, dtype=torch.float64))
        np.testing.assert_allclose(ours.numpy(), ring_modulator(t, u.numpy()), rtol=1e-12)


@pytest.mark.slow
def test_the_end_values_of_the_ring_modulator_agree_with_lsoda():
    # LSODA at 1e-10 comes to 2e-6 of them, in a minute; at 1e-6 to 2e-3
    reference = reference_problems.get("ring_modulator")
    solved = solve_ivp(ring_modulator, (0.0, 1e-3), np.zeros(15), method="LSODA", rtol=1e-8, atol=1e-11)
    assert float(reference.error(torch.from_numpy(solved.y[:, -1]))) < 2e-4


def end_error(alg, problem: str, reltol: float) -> float:
    reference = reference_problems.get(problem)
    end = [float(reference.problem.tspan[1])]
    sol = ude.solve(reference.problem, alg, reltol=reltol, abstol=1e-6 * reltol, saveat=end)
    return float(reference.error(sol.u[-1]))


def cases() -> list:
    every = [(alg, problem) for alg in METHODS for problem in NON_STIFF if problem != "arenstorf"]
    return [
        pytest.param(*case, id=f"{case[0].name}-{case[1]}", marks=() if case[1] in FEW else pytest.mark.slow)
        for case in every
    ]


@pytest.mark.parametrize(("alg", "problem"), cases())
def test_non_stiff_problems_are_solved_to_a_hundred_tolerances(alg, problem: str):
    loose, tight = BOUNDS.get((alg.name, problem), (1e-4, 1e-7))
    assert end_error(alg, problem, 1e-6) <= loose
    assert end_error(alg, problem, 1e-9) <= tight


@pytest.mark.parametrize("alg", [ude.Vern7(), ude.methods.Vern9(), ude.methods.DP8()], ids=name)
def test_the_arenstorf_orbit_closes(alg):
    # local errors grow by 1e5 along it, so a hundred tolerances are out of reach for any method
    assert end_error(alg, "arenstorf", 1e-11) < 5e-5


@pytest.mark.parametrize("problem", NON_STIFF + STIFF)
def test_right_hand_sides_take_any_batch(problem: str):
    prob = reference_problems.get(problem).problem
    t = torch.tensor([0.1, 0.2], dtype=torch.float64)
    u = prob.u0 + torch.tensor([[1e-3], [2e-3]], dtype=torch.float64)
    together = prob.f(u, prob.p, t)
    for i in range(2):
        torch.testing.assert_close(together[i], prob.f(u[i], prob.p, t[i]), rtol=1e-13, atol=0)


def test_the_masses_of_the_chains_are_conserved():
    for problem in ("b3", "c1", "c2", "rober"):
        prob = reference_problems.get(problem).problem
        u = torch.linspace(0.1, 1.0, prob.u0.shape[0], dtype=torch.float64)
        rate = prob.f(u, prob.p, torch.tensor(0.0))
        assert abs(float(rate.sum())) < 1e-12 * float(rate.abs().max())


def test_names_are_sorted_into_stiff_and_not():
    assert set(NON_STIFF) | set(STIFF) == set(reference_problems.names())
    assert STIFF == ("vdpol", "rober", "rober_dae", "chemakzo", "hires", "orego", "pollu", "e5", "ring_modulator")
    assert reference_problems.get("Pleiades").name == "pleiades"
    assert reference_problems.get("rober").digits == 8


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ude.errors.InputError, match=r"no such reference problem: expected one of a1, .*pleiades.*got 'pleiads'"
    ):
        reference_problems.get("pleiads")
