"""What solve takes when it is told none: the choice, its reason, and that it costs nothing where it is not needed."""

from __future__ import annotations

import math

import pytest
import torch

import ude
from tests.problems_for_tests import lotka_volterra_problem
from tests.stiff_problems_for_tests import VAN_DER_POL_1E3_END, van_der_pol_problem

LARGE = ude.ODEProblem(lambda u, p, t: -u, torch.ones(60, dtype=torch.float64), (0.0, 1.0))
SPRING = ude.SecondOrderODEProblem(lambda du, u, p, t: -u, [0.0], [1.0], (0.0, 1.0))

# y' = -z with z = y
DAE = ude.ODEProblem(
    ude.ODEFunction(lambda u, p, t: torch.stack([-u[..., 1], u[..., 0] - u[..., 1]], -1), [[1.0, 0.0], [0.0, 0.0]]),
    [1.0, 1.0],
    (0.0, 1.0),
)
SPLIT = ude.SplitODEProblem(lambda u, p, t: -2 * u, lambda u, p, t: u, [1.0], (0.0, 1.0))


@pytest.mark.parametrize(
    ("prob", "options", "name", "reason"),
    [
        (lotka_volterra_problem(), {}, "AutoTsit5(Rodas5P)", "Reltol is not below 1e-06, so Tsit5 while a trajectory"),
        (lotka_volterra_problem(), dict(reltol=1e-9), "AutoVern7(Rodas5P)", "Reltol is below 1e-06, so Vern7 while"),
        (lotka_volterra_problem(), dict(reltol=[1e-9, 1e-3]), "AutoVern7(Rodas5P)", "Reltol is below"),
        (LARGE, {}, "AutoTsit5(KenCarp4)", "for 60 states KenCarp4 where one is"),
        (DAE, {}, "Rodas5P", "The problem has a mass matrix"),
        (SPLIT, {}, "KenCarp4", "The problem is split"),
        (SPRING, {}, "Tsit5", "The problem is partitioned"),
        (lotka_volterra_problem(), dict(adaptive=False, dt=0.1), "Tsit5", "Steps are fixed"),
        (ude.SteadyStateProblem(lambda u, p, t: 1 - u, [0.0]), {}, "DynamicSS", "Integration finds the stable state"),
    ],
)
def test_the_solution_says_what_was_chosen_and_why(prob, options, name, reason):
    sol = ude.solve(prob, **options)
    assert sol.stats.algorithm == name
    assert reason in sol.stats.why_algorithm
    alg, why = ude.solving.default_algorithm(prob, ude.solving.SolveOptions(**options))
    assert (alg.name, why) == (name, sol.stats.why_algorithm)


@pytest.mark.parametrize("prob", [DAE, SPLIT], ids=["mass matrix", "split"])
def test_what_is_chosen_for_a_mass_matrix_or_a_split_solves_it(prob):
    sol = ude.solve(prob, saveat=[1.0], abstol=1e-8, reltol=1e-8)
    assert float(sol.u[-1, 0]) == pytest.approx(math.exp(-1.0), rel=1e-6)


def test_a_given_algorithm_has_no_reason():
    assert ude.solve(lotka_volterra_problem(), ude.Tsit5()).stats.why_algorithm == ""


def test_where_nothing_is_stiff_steps_calls_and_values_are_those_of_tsit5():
    default, tsit5 = ude.solve(lotka_volterra_problem()), ude.solve(lotka_volterra_problem(), ude.Tsit5())
    assert torch.equal(default.t, tsit5.t)
    assert torch.equal(default.u, tsit5.u)
    assert default.stats.nf == tsit5.stats.nf


def test_a_stiff_problem_is_solved_without_a_word():
    sol = ude.solve(van_der_pol_problem(1e3, 2000.0), reltol=1e-5, abstol=1e-9)
    torch.testing.assert_close(sol[-1], VAN_DER_POL_1E3_END, rtol=1e-3, atol=0)
    assert int(sol.stats.switches) >= 1
    assert sol.stats.nf < 10_000


def test_a_reltol_that_is_no_number_is_refused():
    with pytest.raises(ude.errors.InputError, match="reltol must be one number or one number for each state: 'tight'"):
        ude.solve(lotka_volterra_problem(), reltol="tight")
