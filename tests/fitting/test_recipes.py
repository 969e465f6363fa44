"""Noise, priors, penalties, validation and stages of a fit: each against a closed form, SciPy, or what it promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar

import ude
from ude.errors import InputError
from ude.fitting import Dataset, FitOptions, fit
from ude.fitting.smoothing.smooth import smooth
from ude.fitting.smoothing.smooth_points import SmoothPoints

LOTKA_VOLTERRA = ["dx/dt = a*x - b*x*y", "dy/dt = c*x*y - d*y"]
SHORT = FitOptions(derivative_iterations=(20, 20), continuity=(1.0,), multiple_iterations=4, single_iterations=(2, 3))


def line_data(seed: int = 0, noise: float = 0.3) -> Dataset:
    """x = 1 + 2 t with Gaussian noise, but for the start."""
    t = np.linspace(0.0, 2.0, 15)
    x = 1.0 + 2.0 * t + noise * np.random.default_rng(seed).normal(size=15)
    x[0] = 1.0
    return Dataset.from_arrays(t, x[:, None], "x")


def single(model, data, **arguments) -> ude.Fit:
    return fit(model, data, **{"holdout": 0, "progress": False, "stages": "single shooting", **arguments})


# ---------------------------------------------------------------- noise


def test_estimated_scales_are_the_root_mean_squares_of_the_residuals(lotka_volterra_data):
    data = lotka_volterra_data(noise=0.05)
    model, options = ude.UDE(LOTKA_VOLTERRA, fit="a, b, c, d"), FitOptions(stall=1e-7)
    result = fit(model, data, holdout=0, progress=False, noise=ude.noise.Gaussian(), options=options)
    for state, size in result.rmse().items():
        assert result.noise_models[state].sigma == pytest.approx(size, rel=1e-2)
    residuals = result.predict()[0] - data.trajectories[0].u
    expected = stats.norm.logpdf(residuals, scale=[result.noise_models[s].sigma for s in "xy"]).sum()
    assert result.log_likelihood == pytest.approx(expected, rel=1e-6)
    # four parameters, two initial states, two scales
    assert result.bic == pytest.approx(8 * np.log(62) - 2 * expected, rel=1e-6)
    assert result.aic == pytest.approx(16 - 2 * expected, rel=1e-6)


def test_least_squares_reports_the_gaussian_likelihood_of_its_residuals(lotka_volterra_data):
    data = lotka_volterra_data(noise=0.05)
    result = fit(ude.UDE(LOTKA_VOLTERRA, fit="a, b, c, d"), data, holdout=0, progress=False)
    residuals = result.predict()[0] - data.trajectories[0].u
    expected = stats.norm.logpdf(residuals, scale=np.sqrt((residuals**2).mean(0))).sum()
    assert result.log_likelihood == pytest.approx(expected, rel=1e-6)
    assert result.bic == pytest.approx(8 * np.log(62) - 2 * expected, rel=1e-6)


def test_poisson_counts_give_the_rate_of_scipy():
    t = np.linspace(0.0, 3.0, 10)
    counts = np.random.default_rng(1).poisson(200.0 * np.exp(-0.8 * t)).astype(float)
    counts[0] = 200.0
    data = Dataset.from_arrays(t, counts[:, None], "x")
    result = single(ude.UDE(["dx/dt = -k*x"], fit="k=0.5"), data, u0=[200.0], noise=ude.noise.Poisson())
    best = minimize_scalar(
        lambda k: -stats.poisson.logpmf(counts, 200.0 * np.exp(-k * t)).sum(), bounds=(0.1, 2.0), method="bounded"
    )
    assert result.model.values()["k"] == pytest.approx(best.x, rel=2e-3)
    assert result.log_likelihood == pytest.approx(-best.fun, rel=1e-4)


def test_students_t_is_not_moved_by_an_outlier_as_least_squares_is():
    data = line_data(noise=0.05)
    data.trajectories[0].u[10] += 20.0
    model = ude.UDE(["dx/dt = k"], fit="k=1")
    wrong = [
        abs(single(model, data, u0=[1.0], noise=noise).model.values()["k"] - 2.0)
        for noise in (None, ude.noise.StudentT())
    ]
    assert wrong[0] > 0.5
    assert wrong[1] < 0.05


def test_noise_is_saved_and_loaded(lotka_volterra_data, tmp_path):
    data = lotka_volterra_data(points=11)
    noise = {"x": ude.noise.StudentT(), "y": ude.noise.RelativeAbsolute(relative=0.01)}
    result = single(ude.UDE(LOTKA_VOLTERRA, fit="a=1.3, b=0.9, c=0.8, d=1.8"), data, noise=noise, validation=2)
    loaded = ude.fitting.load_fit(result.save(tmp_path))
    assert loaded.noise_models == result.noise_models
    assert loaded.log_likelihood == result.log_likelihood
    assert loaded.bic == result.bic
    assert loaded.validation.digest == result.validation.digest


def test_a_loaded_fit_divides_the_data_as_the_fit_did(lotka_volterra_data, tmp_path):
    """Training, validation and held-out data, in this order and none of them twice."""
    data = lotka_volterra_data(points=20)
    model = ude.UDE(LOTKA_VOLTERRA, fit="a=1.3, b=0.9, c=0.8, d=1.8")
    result = single(model, data, validation=3, holdout=4)
    loaded = ude.fitting.load_fit(result.save(tmp_path))
    t = data.trajectories[0].t
    for one in (result, loaded):
        parts = [one.train, one.validation, one.held_out]
        assert [part.trajectories[0].t.tolist() for part in parts] == [
            t[:13].tolist(),
            t[13:16].tolist(),
            t[16:].tolist(),
        ]


# ---------------------------------------------------------------- what is known beside the data


def test_a_normal_prior_gives_the_posterior_mode_of_the_textbook():
    data = line_data()
    t, x = data.trajectories[0].t, data.trajectories[0].u[:, 0]
    model = ude.UDE(["dx/dt = k"], fit="k=1")
    sigma, mean, sd = 0.3, 1.0, 0.1
    result = single(
        model, data, u0=[1.0], noise=ude.noise.Gaussian(sigma), priors={"k": ude.penalties.NormalPrior(mean, sd)}
    )
    precision = (t**2).sum() / sigma**2 + 1 / sd**2
    expected = ((t * (x - 1.0)).sum() / sigma**2 + mean / sd**2) / precision
    assert 1.2 < expected < 1.9  # neither the data nor the prior alone
    assert result.model.values()["k"] == pytest.approx(expected, rel=1e-4)


def test_a_log_normal_prior_of_no_width_decides():
    model = ude.UDE(["dx/dt = k"], fit="k=1 in [0, inf]")
    result = single(model, line_data(), u0=[1.0], priors={"k": ude.penalties.LogNormalPrior(1.5, 1e-4)})
    assert result.model.values()["k"] == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("expression", ["dx/dt - 1.5", "k - 1.5", "U - 1.5 + k - k", "dx/dt - 1.5 + 0*x*t"])
def test_a_heavy_residual_decides(expression):
    known = "dx/dt = k" if "U" not in expression else "dx/dt = U(x) + 0*k"
    unknown = ude.MLP("U", "x", width=4) if "U" in expression else None
    model = ude.UDE([known], fit="k=1", unknown=unknown)
    result = single(
        model,
        line_data(noise=0.0),
        stages="derivatives",
        penalties=[ude.penalties.ResidualPenalty(expression, weight=1e4)],
        options=FitOptions(derivative_iterations=(100, 400)),
    )
    with torch.no_grad():
        du = result.model(torch.tensor([[1.5], [4.0]], dtype=torch.float64))
    np.testing.assert_allclose(du, 1.5, atol=0.03)


def test_smallness_makes_the_unknown_function_small(lotka_volterra_data, half_known):
    sizes = []
    for penalties in ([], [ude.penalties.MagnitudePenalty("U1", weight=10.0)]):
        result = single(half_known, lotka_volterra_data(), stages="derivatives", penalties=penalties)
        with torch.no_grad():
            calls = result.model.record_calls(torch.as_tensor(result.train.trajectories[0].u))
        sizes.append([float(calls[name][0].output.square().mean().sqrt()) for name in ("U1", "U2")])
    assert sizes[1][0] < 0.3 * sizes[0][0]
    assert sizes[1][1] > 0.7 * sizes[0][1]  # of which nothing was demanded


@pytest.mark.parametrize(
    ("arguments", "claim"),
    [
        ({"priors": {"z": ude.penalties.NormalPrior(0, 1)}}, r"z is not a parameter of the model: expected one of k"),
        (
            {"priors": {"k": 1.0}},
            r"the prior of k must be a prior object: expected ude.penalties.NormalPrior or ude.penalties.LogN",
        ),
        (
            {"priors": {"k": ude.penalties.LogNormalPrior(1, 1)}},
            r"k may become negative, .*\. Bound it: fit=\"k in \[0, inf\]\"",
        ),
        (
            {"penalties": ["dx/dt"]},
            r"penalties must be penalty objects: expected ude.penalties.ResidualPenalty\(...\) or ude.pen",
        ),
        (
            {"penalties": [ude.penalties.ResidualPenalty("dx/dt - z")]},
            r"residual 'dx/dt - z' names 'z': expected states \(x\), their",
        ),
        (
            {"penalties": [ude.penalties.ResidualPenalty("V(x)")]},
            r"residual 'V\(x\)' calls V: .* Write V without its arguments",
        ),
        ({"penalties": [ude.penalties.MagnitudePenalty("V")]}, r"V is not an unknown function of the model"),
        ({"noise": {"y": ude.noise.Gaussian()}}, r"noise does not name every observable once: expected x, got y"),
        ({"noise": ude.noise.Poisson()}, r"the data of 'x' cannot have Poisson noise: expected whole numbers"),
        (
            {"stages": ["derivatives", 3]},
            r"stages must be some of .*, or objects of ude.stages: \['derivatives', 3\]",
        ),
    ],
)
def test_unusable_knowledge_is_refused(arguments, claim):
    with pytest.raises(InputError, match=claim):
        single(ude.UDE(["dx/dt = k"], fit="k=1"), line_data(), **arguments)


def test_a_prior_of_a_parameter_that_is_not_fitted_is_refused():
    with pytest.raises(InputError, match=r'parameter k has a prior and is not fitted\. Add fit="k" to the model'):
        single(
            ude.UDE(["dx/dt = k"], parameters={"k": 1.0}), line_data(), priors={"k": ude.penalties.NormalPrior(1, 1)}
        )


@pytest.mark.parametrize(
    ("build", "claim"),
    [
        (
            lambda: ude.penalties.NormalPrior(0.0, 0.0),
            r"sd of NormalPrior must be a positive number: 0",
        ),
        (
            lambda: ude.penalties.NormalPrior(np.inf, 1.0),
            r"mean of NormalPrior must be a finite number: inf",
        ),
        (
            lambda: ude.penalties.LogNormalPrior(-1.0, 1.0),
            r"median of LogNormalPrior must be a positive number: -1",
        ),
        (
            lambda: ude.penalties.ResidualPenalty("x", weight=-1.0),
            r"weight of ResidualPenalty must be a positive number: -1",
        ),
        (
            lambda: ude.penalties.ResidualPenalty(3),
            r"the expression of a ResidualPenalty is no text: expected \"dx/dt - y\", got 3",
        ),
        (
            lambda: ude.penalties.MagnitudePenalty("U", size=0.0),
            r"size of MagnitudePenalty must be a positive number: 0",
        ),
        (
            lambda: ude.stages.SingleShooting(ude.optimizers.Adam()),
            r"optimizers of SingleShooting must be a tuple of optimizers: expected one such as",
        ),
        (
            lambda: ude.stages.MultipleShooting(window_steps=0),
            r"window_steps of MultipleShooting must be a whole number, at least 1: 0",
        ),
        (
            lambda: ude.stages.MultipleShooting(continuity=(0.0,)),
            r"continuity of MultipleShooting must be positive penalties: .*\(0",
        ),
        (
            lambda: ude.stages.GrowingHorizon(fractions=(0.5, 0.2, 1)),
            r"fractions of GrowingHorizon must be increasing .* the last one 1: \(0.5, 0.2",
        ),
        (
            lambda: ude.stages.GrowingHorizon(fractions=(0.5,)),
            r"fractions of GrowingHorizon must be increasing .* the last one 1: \(0.5,\)",
        ),
        (lambda: ude.optimizers.Adam(-1), r"iterations of Adam must be a whole number, zero or more: -1"),
        (
            lambda: ude.optimizers.Adam(schedule="step"),
            r"schedule of Adam must be 'cosine', 'exponential' or 'constant': 'step'",
        ),
        (
            lambda: ude.optimizers.Adam(learning_rate=0.0),
            r"learning_rate of Adam must be a positive number: 0",
        ),
        (
            lambda: ude.optimizers.Adam(weight_decay=-1.0),
            r"weight_decay of Adam must be zero or a positive number: -1",
        ),
        (
            lambda: FitOptions(validation_every=0),
            r"validation_every of FitOptions must be a whole number, at least 1: 0",
        ),
        (
            lambda: FitOptions(checkpoint_seconds=-1),
            r"checkpoint_seconds of FitOptions must be",
        ),
    ],
)
def test_unusable_options_are_refused(build, claim):
    with pytest.raises(InputError, match=claim):
        build()


# ---------------------------------------------------------------- stages


def test_models_without_networks_are_fitted_by_least_squares(lotka_volterra_data):
    data = lotka_volterra_data(noise=0.05)
    model = ude.UDE(LOTKA_VOLTERRA, fit="a=1, b=1, c=1, d=1")
    found = [
        single(model, data, stages=ude.stages.SingleShooting(optimizers))
        for optimizers in (None, (ude.optimizers.LevenbergMarquardt(50),), (ude.optimizers.LBFGS(300),))
    ]
    losses = [result.history.loss.iloc[-1] for result in found]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0] <= losses[2] * (1 + 1e-9)
    assert len(found[0].history) < 0.5 * len(found[2].history)


def test_growing_horizon_arrives_where_single_shooting_from_the_same_start_does_not():
    # Many periods: from a wrong frequency the whole course fits best with no motion at all.
    t = np.linspace(0.0, 30.0, 61)
    data = Dataset.from_arrays(t, np.stack([np.cos(2 * t), -2 * np.sin(2 * t)], -1), "x, v")
    model = ude.UDE(["dx/dt = v", "dv/dt = -k*x"], fit="k=2.5")
    arguments = dict(u0=[1.0, 0.0], stages=ude.stages.SingleShooting((ude.optimizers.LBFGS(60),)))
    assert abs(single(model, data, **arguments).model.values()["k"] - 4.0) > 0.3
    growing = ude.stages.GrowingHorizon((ude.optimizers.LBFGS(30),), fractions=(0.05, 0.1, 0.2, 0.4, 1.0))
    assert single(model, data, u0=[1.0, 0.0], stages=growing).model.values()["k"] == pytest.approx(4.0, rel=1e-3)


def test_callback_hears_of_every_iteration_and_can_end_the_stage(lotka_volterra_data, half_known):
    heard: list[ude.stages.Iteration] = []
    losses: list[float] = []

    def listen(iteration):
        heard.append(iteration)
        return iteration.iteration == 3

    stages = [ude.stages.DerivativeMatching(callback=listen), ude.stages.SingleShooting((ude.optimizers.LBFGS(2),))]
    whole: list[str] = []
    result = single(
        half_known,
        lotka_volterra_data(points=11),
        stages=stages,
        callback=lambda i: whole.append(i.stage),
        options=SHORT,
    )
    losses = [iteration.loss for iteration in heard]
    assert [iteration.iteration for iteration in heard] == [1, 2, 3]
    assert (np.diff(losses) <= 0).all()
    assert whole == list(result.history.stage) == ["derivatives"] * 3 + ["single shooting"] * 2


def test_stages_may_come_in_any_order_and_twice(lotka_volterra_data, half_known):
    stages = [
        ude.stages.SingleShooting((ude.optimizers.Adam(2),)),
        ude.stages.DerivativeMatching((ude.optimizers.Adam(2),)),
        ude.stages.SingleShooting((ude.optimizers.Adam(1),)),
    ]
    history = single(half_known, lotka_volterra_data(points=11), stages=stages).history
    assert list(history.stage) == ["single shooting"] * 2 + ["derivatives"] * 2 + ["single shooting"]


def test_validation_ends_a_stage_and_keeps_the_weights_that_predicted_best(lotka_volterra_data, half_known):
    data = lotka_volterra_data(noise=0.1, points=31)
    options = FitOptions(validation_every=1, validation_patience=3, weight_prior=0.0, derivative_iterations=(100, 20))
    stages = ["derivatives", ude.stages.SingleShooting((ude.optimizers.LBFGS(60),))]
    result = single(half_known, data, validation=6, stages=stages, options=options)
    assert [len(part.trajectories[0]) for part in (result.train, result.validation)] == [25, 6]
    looks = result.history.validation[result.history.stage == "single shooting"]
    assert looks.notna().all()
    best = int(np.argmin(looks))
    assert len(looks) == best + 1 + 4 or len(looks) == 60
    error = np.array(list(result.rmse(result.validation).values())) / result.scale
    assert np.mean(error**2) == pytest.approx(looks.min(), rel=1e-2)
    assert looks.min() < looks.iloc[-1]  # it had begun to fit the noise


def test_weight_decay_shrinks_networks_and_not_parameters(lotka_volterra_data):
    network = ude.MLP("U", inputs="x, y", width=8)
    model = ude.UDE(["dx/dt = a*x - U(x, y)", "dy/dt = U(x, y) - d*y"], fit="a=1.3, d=1.8", unknown=network)
    norms = []
    for decay in (0.0, 30.0):
        stages = ude.stages.DerivativeMatching((ude.optimizers.Adam(100, weight_decay=decay),))
        result = single(model, lotka_volterra_data(), stages=stages)
        norms.append(float(result.model.terms["U"].module[2].weight.detach().norm()))
        assert abs(result.model.values()["a"]) > 0.5
    assert norms[1] < 0.5 * norms[0]


def test_many_failed_simulations_are_told_once():
    t = np.linspace(0.0, 4.0, 30)
    data = Dataset.from_arrays(t, (1.0 / (1.0 + t))[:, None], "x")
    model = ude.UDE(["dx/dt = b*x**2"], fit="b=3")  # blows up at t = 1/3
    options = FitOptions(stall=0.0)
    with pytest.warns(RuntimeWarning, match=r"^\d+ of \d+ simulations of a window broke down during the fit") as told:
        result = single(
            model, data, u0=[1.0], stages=ude.stages.SingleShooting((ude.optimizers.Adam(40, 1e-4),)), options=options
        )
    assert len(told) == 1
    assert result.model.values()["b"] < 3.0  # the way to fewer missing points


def test_a_fit_that_breaks_down_at_first_finds_its_way():
    t = np.linspace(0.0, 4.0, 30)
    data = Dataset.from_arrays(t, (1.0 / (1.0 + t))[:, None], "x")
    result = single(
        ude.UDE(["dx/dt = b*x**2"], fit="b=0.6"),
        data,
        u0=[1.0],
        stages=ude.stages.SingleShooting((ude.optimizers.LBFGS(60),)),
    )
    assert result.model.values()["b"] == pytest.approx(-1.0, rel=1e-3)


def test_a_network_does_not_follow_the_errors_of_the_smoothed_data(lotka_volterra_data, half_known):
    """Derivative matching ends where slopes are matched as closely as they are known: soon, with 2 % noise."""
    data = lotka_volterra_data(noise=0.02)
    matched = fit(half_known, data, holdout=0, progress=False, stages="derivatives")
    points = SmoothPoints.along(data, smooth(data, [True, True]))
    unsure = float((points.variance / points.du.square().mean(0)).mean())
    losses = matched.history["loss"].to_numpy()
    assert losses[-1] <= unsure < losses[len(losses) // 2]
    assert len(losses) < 100
