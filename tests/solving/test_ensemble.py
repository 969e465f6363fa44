"""Ensembles: the same answers as one by one, in one batch where that is possible."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ude
from tests.problems_for_tests import lotka_volterra_problem

OPTIONS = {"abstol": 1e-8, "reltol": 1e-8}


def vary(prob: ude.ODEProblem, i: int) -> ude.ODEProblem:
    return ude.remake(prob, u0=[1.0 + 0.1 * i, 1.0], p=dict(alpha=1.5 + 0.05 * i), tspan=(0.0, 2.0 + 0.5 * i))


@pytest.mark.parametrize("saveat", [None, 0.5])
def test_a_batch_gives_what_solving_one_by_one_gives(saveat):
    ensemble = ude.EnsembleProblem(lotka_volterra_problem(), vary)
    if saveat is not None:  # a number needs spans of one length
        ensemble = ude.EnsembleProblem(
            lotka_volterra_problem(), lambda prob, i: ude.remake(vary(prob, i), tspan=(0.0, 3.0))
        )
    together = ude.solve(ensemble, trajectories=5, saveat=saveat, **OPTIONS)
    apart = ude.solve(ensemble, trajectories=5, saveat=saveat, batched=False, **OPTIONS)
    assert (together.batches, apart.batches) == (1, 5)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.t, other.t, rtol=0, atol=1e-14)
        torch.testing.assert_close(one.u, other.u, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one(1.3), other(1.3), rtol=1e-12, atol=1e-12)
        assert int(one.stats.accepted_steps) == int(other.stats.accepted_steps)
        assert one.retcode == ude.ReturnCode.Success


def test_gradients_run_through_the_batch_to_what_the_variants_were_made_of():
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def scaled(prob, i):
        return ude.remake(prob, p=dict(alpha=scale * (1.4 + 0.1 * i)), tspan=(0.0, 1.0))

    ensemble = ude.EnsembleProblem(lotka_volterra_problem(), scaled)
    gradients = []
    for batched in (True, False):
        solved = ude.solve(ensemble, trajectories=3, saveat=0.5, batched=batched, **OPTIONS)
        assert solved.u.shape == (3, 3, 2)
        gradients.append(torch.autograd.grad((solved.u**2).sum(), scale)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=0)


def test_chunks_and_reduction_keep_only_the_total():
    ensemble = ude.EnsembleProblem(
        lotka_volterra_problem(tspan=(0.0, 1.0)),
        lambda prob, i: ude.remake(prob, u0=[1.0 + 0.1 * i, 1.0]),
        output_func=lambda sol, i: float(sol.u[-1, 0]),
        reduction=lambda total, outputs: total + sum(outputs),
        initial=0.0,
    )
    solved = ude.solve(ensemble, trajectories=7, batch_size=3, saveat=1.0, **OPTIONS)
    assert solved.outputs == []
    assert solved.batches == 3
    whole = ude.EnsembleProblem(ensemble.prob, ensemble.prob_func)
    each = ude.solve(whole, trajectories=7, saveat=1.0, **OPTIONS)
    assert solved.reduced == pytest.approx(float(each.u[:, -1, 0].sum()), rel=1e-9)
    with pytest.raises(ude.errors.InputError, match="the ensemble must keep its solutions"):
        _ = solved.u


def test_variants_with_modules_of_their_own_are_solved_apart_and_shared_ones_together():
    nets = [nn.Linear(2, 2).double() for _ in range(2)]
    prob = ude.ODEProblem(lambda u, p, t: p.net(u), [1.0, 2.0], (0.0, 1.0), dict(net=nets[0]))
    own = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, p=dict(net=nets[i % 2])))
    shared = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, u0=[1.0 + i, 2.0]))
    solved = ude.solve(own, trajectories=4, saveat=1.0, **OPTIONS)
    assert solved.batches == 2
    for i in range(4):
        alone = ude.solve(own.variant(i), saveat=1.0, **OPTIONS)
        torch.testing.assert_close(solved[i].u, alone.u, rtol=1e-11, atol=1e-11)
    assert ude.solve(shared, trajectories=4, saveat=1.0, **OPTIONS).batches == 1


def test_a_failed_variant_is_its_own_affair():
    prob = ude.ODEProblem(lambda u, p, t: u**2, [0.1], (0.0, 1.0))
    ensemble = ude.EnsembleProblem(prob, lambda prob, i: ude.remake(prob, u0=[0.1 if i != 1 else 2.0]))
    solved = ude.solve(ensemble, trajectories=3, saveat=1.0)
    assert solved.success.tolist() == [True, False, True]
    assert float(solved[2].u[-1, 0]) == pytest.approx(0.1 / 0.9, rel=1e-2)
    with pytest.raises(ude.SolveFailed):
        _ = solved[1].u


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ude.EnsembleProblem(3), "prob of an ensemble must be an ODEProblem: int."),
        (
            lambda: ude.EnsembleProblem(lotka_volterra_problem(u0=[[1.0, 1.0]])),
            "prob of an ensemble must be a single trajectory: expected u0 of the shape of one state",
        ),
        (
            lambda: ude.solve(ude.EnsembleProblem(lotka_volterra_problem())),
            "an ensemble needs a number of variants. Give trajectories=100.",
        ),
        (
            lambda: ude.solve(ude.EnsembleProblem(lotka_volterra_problem()), trajectories=0),
            "trajectories must be a whole number, at least 1: trajectories=0",
        ),
        (
            lambda: ude.solve(ude.EnsembleProblem(lotka_volterra_problem(), lambda p, i: None), trajectories=2),
            "prob_func must return a problem: NoneType. Return remake",
        ),
        (
            lambda: ude.solve(lotka_volterra_problem(), trajectories=2),
            "trajectories requires an EnsembleProblem. Use",
        ),
    ],
)
def test_unusable_ensembles_are_refused_with_the_reason(make, text):
    with pytest.raises(ude.errors.InputError, match=text):
        make()
