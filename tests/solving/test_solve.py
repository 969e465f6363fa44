"""What solve accepts, returns and refuses."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields

import matplotlib.figure
import numpy as np
import pytest
import torch
from torch import nn

import ude
from tests.problems_for_tests import LV, lotka_volterra, lotka_volterra_problem, scipy_lotka_volterra


def test_the_example_of_the_readme_runs_as_written(tmp_path):
    sol = ude.solve(
        lotka_volterra_problem(), ude.Tsit5(), saveat=0.1, abstol=1e-8, reltol=1e-8, sensealg=ude.DiscreteAdjoint()
    )
    truth = scipy_lotka_volterra(np.linspace(0, 10, 101))
    assert sol.t.shape == (101,)
    np.testing.assert_allclose(sol.u.numpy(), truth, rtol=1e-6)
    np.testing.assert_allclose(sol(2.5).numpy(), truth[25], rtol=1e-6)
    np.testing.assert_allclose(sol["x"].numpy(), truth[:, 0], rtol=1e-6)
    np.testing.assert_allclose(sol[3].numpy(), truth[3], rtol=1e-6)
    assert sol[2:5].shape == (3, 2)
    assert len(sol) == 101
    assert sol.retcode == ude.ReturnCode.Success
    assert str(sol.retcode) == "Success"
    assert sol.stats.engine == "torch"
    assert sol.stats.algorithm == "Tsit5"
    assert sol.stats.nf > 100
    figure = sol.plot(tmp_path / "solution.png")
    assert isinstance(figure, matplotlib.figure.Figure)
    assert (tmp_path / "solution.png").stat().st_size > 5000
    assert repr(sol) == "Solution(Success; u (101, 2), states x, y; Tsit5 in the torch engine)"


def test_the_default_algorithm_is_tsit5_that_looks_out_for_stiffness():
    assert ude.solve(lotka_volterra_problem()).stats.algorithm == "AutoTsit5(Rodas5P)"


@pytest.mark.parametrize(
    ("saveat", "expected"),
    [
        (0.25, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.4, [0.0, 0.4, 0.8, 1.0]),
        (3.0, [0.0, 1.0]),
        ([0.1, 0.1, 0.9], [0.1, 0.1, 0.9]),
        (np.array([1.0]), [1.0]),
    ],
)
def test_saveat_as_a_step_or_as_times(saveat, expected):
    sol = ude.solve(lotka_volterra_problem(tspan=(0.0, 1.0)), saveat=saveat)
    assert sol.t.tolist() == pytest.approx(expected, abs=1e-15)
    assert float(sol.t[-1]) == expected[-1]
    assert sol.u.shape == (len(expected), 2)


def test_saveat_as_a_step_backwards():
    sol = ude.solve(lotka_volterra_problem(tspan=(1.0, 0.0)), saveat=0.4)
    assert sol.t.tolist() == pytest.approx([1.0, 0.6, 0.2, 0.0])


def test_every_option_of_solve_has_the_default_of_solve_options():
    parameters = inspect.signature(ude.solve).parameters
    of_ensembles = {"prob", "alg", "trajectories", "batch_size", "batched"}
    defaults = {name: item.default for name, item in parameters.items() if name not in of_ensembles}
    assert defaults == {field.name: field.default for field in fields(ude.solving.SolveOptions)}


@pytest.mark.parametrize("every", [0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0.7, -2.1, 3.0])
def test_regular_times_have_the_distance_asked_for_and_end_at_the_end(every, dtype, end):
    times = ude.solve(ude.ODEProblem(lambda u, p, t: -u, torch.ones(1, dtype=dtype), (0.0, end)), saveat=every).t
    count = math.ceil(abs(end) / every - 1e-6)
    assert len(times) == count + 1
    expected = [math.copysign(min(k * every, abs(end)), end) for k in range(count + 1)]
    np.testing.assert_allclose(times.numpy(), expected, rtol=1e-6)
    assert times[-1] == torch.tensor(end, dtype=dtype)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"saveat": [0.1, 0.7, 0.5]},
            r"saveat must increase: saveat\[2\]=0.5 follows saveat\[1\]=0.7. Sort it, or swap tspan",
        ),
        ({"saveat": [0.5, 20.0]}, r"saveat must lie within tspan: expected times from 0 to 10, got 20 at index 1."),
        ({"saveat": []}, "saveat must have at least one time: none. Leave it out"),
        ({"saveat": -0.1}, "saveat must be a positive number or a list of times: -0.1."),
        ({"saveat": [0.1, float("nan")]}, "saveat must be finite"),
        (
            {"saveat": np.zeros((3, 2))},
            r"saveat must have one row of times, or one for each .*: expected shape .*, got \(3, 2\)",
        ),
        ({"abstol": 0.0}, "abstol must be positive: 0.0. A usual value is 1e-6."),
        ({"reltol": -1.0}, "reltol must be zero or more: -1.0."),
        (
            {"reltol": [1e-3, 1e-3, 1e-3]},
            r"reltol must be one number or one number for each state: expected a number or 2 numbers, got shape \(3,\)",
        ),
        ({"dt": 0.0}, "dt must be positive and finite: dt=0.0."),
        ({"dtmin": 1.0, "dtmax": 0.1}, "dtmin must be less than dtmax: dtmin=1.0, dtmax=0.1."),
        ({"maxiters": 0}, "maxiters must be a whole number, at least 1: maxiters=0."),
        ({"dtmin": -1.0}, "dtmin must be zero or more: dtmin=-1.0."),
        ({"adaptive": False}, "adaptive=False needs a step size. Give dt."),
        (
            {"alg": "Tsit5"},
            r"alg must be an algorithm object: expected one such as ude.Tsit5\(\), got 'Tsit5'. Write ude.methods.Ts",
        ),
    ],
)
def test_bad_options_are_refused_with_the_reason(options, text):
    with pytest.raises(ude.errors.InputError, match=text):
        ude.solve(lotka_volterra_problem(), **options)


@pytest.mark.parametrize(
    ("f", "text"),
    [
        (lambda u, p, t: [u[0], u[1]], r"f\(u, p, t\) must return a tensor: expected shape \(2,\), got list. Stack"),
        (lambda u, p, t: u[:1], r"f\(u, p, t\) must return the shape of u: expected \(2,\), got \(1,\)."),
        (lambda u, p, t: u.float(), "must return the dtype of u0: expected torch.float64, got torch.float32. Make the"),
    ],
)
def test_an_f_that_does_not_fit_is_refused_with_the_reason(f, text):
    with pytest.raises(ude.errors.InputError, match=text):
        ude.solve(ude.ODEProblem(f, [1.0, 1.0], (0.0, 1.0)))


def test_trainable_tensors_hidden_in_a_closure_are_refused():
    net = nn.Linear(2, 2).double()
    prob = ude.ODEProblem(lambda u, p, t: net(u), [1.0, 1.0], (0.0, 1.0))
    with pytest.raises(
        ude.errors.InputError, match="f depends on trainable tensors that are not in p.*Give them as p=dict"
    ):
        ude.solve(prob)
    with torch.no_grad():  # nothing is lost where no gradient is wanted
        assert ude.solve(prob).success


def test_dense_output_outside_the_span_is_refused():
    sol = ude.solve(lotka_volterra_problem(tspan=(0.0, 1.0)))
    with pytest.raises(
        ude.errors.InputError,
        match=r"sol\(t\) must lie within its span: expected times from 0 to 1, got 1.5.",
    ):
        sol(1.5)
    with pytest.raises(ude.errors.InputError, match=r"sol\(t\) takes one time or a list of times: shape \(1, 1\)."):
        sol([[0.5]])
    with pytest.raises(ude.errors.InputError, match="no such state: expected one of x, y, got 'z'."):
        sol["z"]


def test_a_failed_batch_says_how_many_and_which():
    prob = ude.ODEProblem(lambda u, p, t: u**2, [[0.1], [2.0], [0.2]], (0.0, 1.0))
    sol = ude.solve(prob, saveat=1.0, abstol=1e-6, reltol=1e-4)
    with pytest.raises(ude.SolveFailed, match=r"1 of 3 trajectories \(first: 1\) failed with \w+ at t=0.5"):
        _ = sol.u


class TestEngines:
    def test_auto_says_why_another_engine_did_not_run(self):
        sol = ude.solve(lotka_volterra_problem(), ude.TorchDiffEq("dopri5"), saveat=0.5)
        assert sol.stats.engine == "torchdiffeq"
        assert sol.stats.why_not["torch"] == "TorchDiffEq(dopri5) is not a method of the torch engine"

    def test_a_named_engine_raises_instead_of_falling_back(self):
        with pytest.raises(
            ude.errors.EngineRefused, match="the engine 'torchdiffeq' cannot run this solve: torchdiffeq: Tsit5"
        ):
            ude.solve(lotka_volterra_problem(), ude.Tsit5(), engine="torchdiffeq")
        with pytest.raises(ude.errors.EngineRefused, match="expected one of auto, fused, torch, .*, got 'julia'"):
            ude.solve(lotka_volterra_problem(), engine="julia")

    @pytest.mark.parametrize("method", ude.TorchDiffEq.adaptive_methods)
    def test_torchdiffeq_agrees_with_scipy(self, method):
        tolerance = 1e-6 if method in ("bosh3", "fehlberg2", "adaptive_heun") else 1e-10
        sol = ude.solve(
            lotka_volterra_problem(tspan=(0.0, 3.0)),
            ude.TorchDiffEq(method),
            saveat=0.5,
            abstol=tolerance,
            reltol=tolerance,
        )
        # dopri8 reads its saves off an interpolant of low order over long steps
        rtol = 3e-6 if method == "dopri8" else 3000 * tolerance
        np.testing.assert_allclose(sol.u.numpy(), scipy_lotka_volterra(np.linspace(0, 3, 7)), rtol=rtol)
        torch.testing.assert_close(sol(1.5), sol.u[3], rtol=rtol, atol=0)

    def test_torchdiffeq_runs_backwards_and_in_batches(self):
        u0 = torch.tensor([[1.0, 1.0], [2.0, 0.5]], dtype=torch.float64)
        prob = ude.ODEProblem(lotka_volterra, u0, (2.0, 0.0), LV)
        theirs = ude.solve(prob, ude.TorchDiffEq(), saveat=0.5, abstol=1e-9, reltol=1e-9)
        ours = ude.solve(prob, saveat=0.5, abstol=1e-9, reltol=1e-9)
        torch.testing.assert_close(theirs.u, ours.u, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(theirs.t, ours.t)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({}, r"TorchDiffEq\(dopri5\) does not report its own steps. Give saveat."),
            ({"saveat": 0.5, "alg": ude.TorchDiffEq("rk4")}, r"TorchDiffEq\(rk4\) takes fixed steps, so it needs dt"),
            ({"saveat": 0.5, "abstol": [1e-6, 1e-5]}, "torchdiffeq takes one number for each tolerance"),
        ],
    )
    def test_torchdiffeq_says_what_it_cannot_do(self, options, text):
        arguments = {"alg": ude.TorchDiffEq(), **options}
        with pytest.raises(ude.UdeError, match=text):
            ude.solve(lotka_volterra_problem(), **arguments)

    def test_torchdiffeq_refuses_trajectories_of_their_own(self):
        u0 = torch.ones(2, 2, dtype=torch.float64)
        ends = torch.tensor([1.0, 2.0], dtype=torch.float64)
        prob = ude.ODEProblem(lotka_volterra, u0, (0.0, ends), LV)
        saveat = torch.tensor([[0.5], [0.7]], dtype=torch.float64)
        with pytest.raises(ude.errors.EngineRefused, match="integrates all trajectories over the same span"):
            ude.solve(prob, ude.TorchDiffEq(), saveat=saveat)
        prob = ude.ODEProblem(lotka_volterra, u0, (0.0, 1.0), LV)
        with pytest.raises(ude.errors.EngineRefused, match="saves all trajectories at the same times"):
            ude.solve(prob, ude.TorchDiffEq(), saveat=saveat)

    def test_torchdiffeqs_failure_is_data_too(self):
        prob = ude.ODEProblem(lambda u, p, t: u**2, [1.0], (0.0, 2.0))
        sol = ude.solve(prob, ude.TorchDiffEq(), saveat=2.0)
        assert sol.retcode in (ude.ReturnCode.DtLessThanMin, ude.ReturnCode.Unstable)
        sol = ude.solve(lotka_volterra_problem(), ude.TorchDiffEq(), saveat=1.0, maxiters=3)
        assert sol.retcode == ude.ReturnCode.MaxIters

    def test_an_unknown_torchdiffeq_method_lists_the_known_ones(self):
        with pytest.raises(
            ude.errors.InputError, match="no such torchdiffeq method: expected one of dopri5, .*, got 'tsit5'"
        ):
            ude.TorchDiffEq("tsit5")


def test_a_parameter_of_a_batch_that_lacks_the_axis_of_states_is_told_how_to_get_it():
    prob = ude.ODEProblem(lambda u, p, t: -p.k * u, torch.ones(3, 1), (0.0, 1.0), {"k": torch.arange(3.0)})
    with pytest.raises(ude.errors.InputError, match=r"write p\.k\[\.\.\., None\] \* u"):
        ude.solve(prob, ude.Tsit5())
