"""Mistakes of people who come from SciPy, torchdiffeq, diffrax or Julia: each is told what is right, at once.

Every message states the rule, what was expected or came, and what to write; nothing is integrated or trained before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import ude
from ude import vocabulary
from ude.errors import InputError, UdeError, UnknownName

Call = Callable[[], Any]
TIMES = np.linspace(0.0, 2.0, 9)
DATA = ude.Dataset.from_arrays(TIMES, np.exp(-1.5 * TIMES), "x")
MODEL = ude.UDE("dx/dt = -k*x", fit="k")
NAN = math.nan


def decay(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return -u


def scaled(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return -p.k * u


PROB = ude.ODEProblem(decay, [1.0, 2.0], (0.0, 1.0))


def problem(**fields: Any) -> Call:
    """Solve a problem with some fields replaced."""
    return lambda: ude.solve(
        ude.ODEProblem(**{"f": decay, "u0": [1.0, 2.0], "tspan": (0.0, 1.0), **fields}), ude.Tsit5()
    )


def solve(**options: Any) -> Call:
    return lambda: ude.solve(PROB, ude.Tsit5(), **options)


def fit(*given: Any, **options: Any) -> Call:
    return lambda: ude.fit(*(given or (MODEL, DATA)), **{"progress": False, **options})


# What is passed to solve, and the end of "solve has no argument ...: ".
SOLVE_NAMES = {
    "rtol": "expected reltol. Write reltol= in place of rtol=.",
    "atol": "expected abstol. Write abstol= in place of atol=.",
    "max_steps": "expected maxiters.",
    "mxstep": "expected maxiters.",
    "max_step": "expected dtmax.",
    "first_step": "expected dt.",
    "dt0": "expected dt.",
    "step_size": "Write dt=... with adaptive=False for steps of one size.",
    "t_eval": "expected saveat.",
    "ts": "expected saveat.",
    "t": "expected saveat.",
    "method": "Give an algorithm object as the second argument: ude.solve(prob, ude.Tsit5()).",
    "solver": "Give an algorithm object as the second argument",
    "events": "expected callback.",
    "callbacks": "expected callback.",
    "stepsize_controller": "expected controller.",
    "adjoint": "Write sensealg=, such as sensealg=ude.GaussAdjoint().",
    "y0": "Give it to the problem: ude.ODEProblem(f, u0, tspan, p)",
    "args": "Give it to the problem",
    "p": "Give it to the problem",
    "jac": "Give it with f: ODEProblem(ude.ODEFunction(f, jac=...), u0, tspan).",
    "dense_output": "Leave it out: every solution has dense output, sol(t).",
    "save_everystep": "Leave it out: without saveat every accepted step is saved.",
    "dtype": "Leave it out: a solve has the dtype and device of u0.",
    "reltoll": "expected reltol. Write reltol= in place of reltoll=.",
    "quux": "expected one of prob, alg, saveat, abstol, reltol",
}
PROBLEM_NAMES = {
    "y0": "expected u0.",
    "t_span": "expected tspan.",
    "args": "expected p.",
    "params": "expected p.",
    "fun": "expected f.",
    "quux": "expected one of f, u0, tspan, p, names",
}
FIT_NAMES = {
    "epochs": "Give options=ude.FitOptions(single_iterations=(500, 200))",
    "lr": "Give stages=[ude.stages.SingleShooting((ude.optimizers.Adam(500, learning_rate=0.01),))].",
    "optimizer": "Give stages=[",
    "loss": "Give noise=, such as ude.noise.Gaussian().",
    "verbose": "expected progress.",
    "test_size": "expected holdout.",
    "random_state": "expected seed.",
    "rtol": "Give options=ude.FitOptions(solver=",
    "stage": "expected stages.",
}
PACKAGE_NAMES = {
    "QNDF": "expected ude.FBDF()",
    "CVODE_BDF": "expected ude.FBDF()",
    "Dopri5": "expected ude.methods.DP5() (Dormand and Prince 5(4)), or ude.Tsit5().",
    "RK45": "expected ude.methods.DP5()",
    "Dopri8": "expected ude.methods.DP8()",
    "Radau": "expected ude.Rodas5P()",
    "LSODA": "expected ude.AutoTsit5(ude.Rodas5P())",
    "odeint": "expected ude.solve(ude.ODEProblem(f, u0, tspan, p), ude.Tsit5(), saveat=...).",
    "solve_ivp": "expected ude.solve(",
    "diffeqsolve": "expected ude.solve(",
    "ODETerm": "expected ude.ODEProblem(",
    "SDEProblem": "no SDEs",
    "Vern9": "expected ude.methods.Vern9.",
    "Adam": "expected ude.optimizers.Adam.",
    "SINDy": "expected ude.search.SINDy",
    "Tsit4": "expected ude.Tsit5",
    "NeuralODe": "expected ude.NeuralODE",
    "quux": "dir(ude) lists the names",
}
SOLUTION_NAMES = {"y": "u", "ys": "u", "ts": "t", "x": "u", "status": "retcode", "nfev": "stats", "t_events": "events"}

NET = nn.Linear(2, 2)
TAKES = "f must be callable as f(u, p, t): a function of "
RIGHT_HAND_SIDES = {
    "network": (NET, TAKES + "(input). Give the network in p"),
    "f(t, y)": (lambda t, y: -y, TAKES + "(t, y). The state comes first and the time last"),
    "f(t, y, args)": (lambda t, y, args: -y, TAKES + "(t, y, args). The state comes first"),
    "f(u, t, p)": (lambda u, t, p: -u, TAKES + "(u, t, p). The state comes first"),
    "f!(du, u, p, t)": (
        lambda du, u, p, t: None,
        TAKES + "(du, u, p, t). Return du/dt in place of writing it into du.",
    ),
    "f(u)": (lambda u: -u, TAKES + "(u). The state"),
    "class": (nn.Linear, "f must be callable as f(u, p, t): the class Linear. Pass a function."),
    "text": ("-u", "f must be callable as f(u, p, t): str. Pass a function."),
    "returns nothing": (lambda u, p, t: None, "f(u, p, t) must return a tensor: expected shape (2,), got NoneType."),
    "returns a list": (lambda u, p, t: [1.0, 2.0], "f(u, p, t) must return a tensor: expected shape (2,), got list."),
    "shape": (lambda u, p, t: u[..., :1], "f(u, p, t) must return the shape of u: expected (2,), got (1,)."),
    "dtype": (lambda u, p, t: u.float(), "f(u, p, t) must return the dtype of u0: expected torch.float64"),
    "matrix": (lambda u, p, t: u @ torch.ones(3), "f(u, p, t) must work for u of shape (2,), torch.float64, and t of"),
    "no parameters": (lambda u, p, t: -p.k * u, "f(u, p, t) must work for u of shape (2,)"),
    "random": (
        lambda u, p, t: torch.rand_like(u),
        "f must give the same value for the same arguments: an f that draws",
    ),
}
MANY = torch.linspace(0.0, 1.0, 50)
ONE_TENSOR = "u0 must be one tensor of all states: "
STATES = {
    "NaN": ([NAN, 1.0], "u0 must be finite: nan at index 0."),
    "infinity": (torch.tensor([1.0, math.inf]), "u0 must be finite: inf at index 1."),
    "empty": ([], "u0 must have at least one state: shape (0,)."),
    "empty batch": (torch.ones(0, 2), "u0 must have at least one state: shape (0, 2)."),
    "number": (1.0, "u0 must have a state axis: expected shape (*batch, state), got a scalar. Write u0=[value]."),
    "tuple": ((torch.ones(2), torch.ones(3)), ONE_TENSOR + "a tuple with tensors in it. Join them along the last axis"),
    "tracked": (
        [torch.tensor(1.0, requires_grad=True)],
        ONE_TENSOR + "a list with tensors in it. Write torch.stack(u0).",
    ),
    "dict": ({"x": 1.0, "y": 2.0}, ONE_TENSOR + "a mapping with x, y. Give a list with names='x, y'"),
    "ragged": ([[1.0], [1.0, 2.0]], "u0 must be numbers or a tensor: [[1.0], [1.0, 2.0]]."),
    "text": ("abc", "u0 must be numbers or a tensor: 'abc'."),
    "nothing": (None, "u0 must be numbers or a tensor: None."),
    "complex": (
        torch.ones(2, dtype=torch.complex64),
        "u0 must be real: torch.complex64. Give real and imaginary",
    ),
    "half": (torch.ones(2, dtype=torch.half), "u0 must be float64 or float32: torch.float16."),
    "meta": (torch.ones(2, device="meta"), "u0 must hold numbers: expected a dense tensor, got a tensor on the meta"),
    "sparse": (
        torch.eye(2).to_sparse(),
        "u0 must hold numbers: expected a dense tensor, got a tensor of layout torch.spar",
    ),
}
SPANS = {
    "NaN": ((0.0, NAN), "the end of tspan must be finite: nan."),
    "infinity": ((-math.inf, 0.0), "the start of tspan must be finite: -inf."),
    "number": (5.0, "tspan must be a pair: expected (start, end), got 5.0."),
    "times": (
        MANY,
        "tspan must be a pair: expected (start, end), got 50 times. Write tspan=(t[0], t[-1]), and solve(...",
    ),
    "text": (("a", "b"), "the start of tspan must be a number: 'a'."),
    "nothing": ((0.0, None), "the end of tspan must be a number: None."),
    "shape": ((torch.zeros(3), 1.0), "the start of tspan must be one number or one for each trajectory"),
}
PARAMETERS = {
    "NaN": (NAN, "p must be finite where f uses it: nan in p['k']."),
    "infinity": (torch.tensor(math.inf), "p must be finite where f uses it: inf in p['k']."),
    "text": ("a", "p must be built of numbers, tensors and modules: 'a' of type str."),
    "function": (decay, "p must be built of numbers, tensors and modules"),
    "complex": (1j, "p must be built of numbers, tensors and modules: 1j of type complex."),
    "meta": (torch.ones((), device="meta"), "p must hold numbers"),
}
OPTIONS: list[tuple[str, Any, str]] = [
    (
        "saveat",
        1e-9,
        "saveat as a number must make at most 10,000,000 times: saveat=1e-09 over a span of 1. Save fewer",
    ),
    ("saveat", 1e-300, "saveat as a number must make at most 10,000,000 times"),
    ("saveat", "a", "saveat must be a positive number or a list of times: 'a'."),
    ("saveat", ["a"], "saveat must be a positive number or a list of times: ['a']."),
    ("saveat", -0.1, "saveat must be a positive number or a list of times: -0.1."),
    ("saveat", math.inf, "saveat must be a positive number or a list of times: inf."),
    ("saveat", True, "saveat must be a positive number or a list of times: True. Leave it out to save every step."),
    ("saveat", [NAN], "saveat must be finite: NaN or infinity among the times."),
    ("saveat", [2.0], "saveat must lie within tspan: expected times from 0 to 1, got 2 at index 0."),
    ("saveat", [0.5, 0.2], "saveat must increase: saveat[1]=0.2 follows saveat[0]=0.5. Sort it"),
    ("saveat", [], "saveat must have at least one time"),
    ("maxiters", 2.5, "maxiters must be a whole number, at least 1: maxiters=2.5."),
    ("maxiters", "many", "maxiters must be a whole number, at least 1: maxiters='many'."),
    ("max_events", 0, "max_events must be a whole number, at least 1: max_events=0."),
    ("reltol", -1.0, "reltol must be zero or more: -1.0."),
    ("reltol", "a", "reltol must be a number, or one for each state: 'a'."),
    ("reltol", NAN, "reltol must be zero or more: nan."),
    ("abstol", 0.0, "abstol must be positive: 0.0."),
    (
        "abstol",
        [1.0, 2.0, 3.0],
        "abstol must be one number or one number for each state: expected a number or 2 numbers",
    ),
    ("dt", "a", "dt must be a number: 'a'."),
    ("dt", -1.0, "dt must be positive and finite: dt=-1.0."),
    ("dtmin", [0.1], "dtmin must be a number: [0.1]."),
    ("adaptive", "no", "adaptive must be True or False: 'no'."),
    (
        "sensealg",
        ude.GaussAdjoint,
        "sensealg must be a sensitivity algorithm object: expected one such as ude.GaussAdjoi",
    ),
    ("sensealg", "adjoint", "sensealg must be a sensitivity algorithm object"),
    ("controller", ude.methods.PIController, "controller must be a controller object"),
    ("engine", "cuda", "no such engine: expected one of auto, fused, torch, torchdiffeq, got 'cuda'."),
    ("engine", 3, "engine must be a name: expected such as 'auto' or 'torch', got 3."),
    ("callback", decay, "callback must be a callback object: expected e.g. ContinuousCallback(condition, affect)"),
    ("callback", [3], "callback must be a callback object"),
    ("tstops", "a", "tstops must be a time or times: 'a'."),
    ("isoutofdomain", 3, "isoutofdomain must be callable as isoutofdomain(u, p, t): int."),
    (
        "unstable_check",
        lambda u: u,
        "unstable_check must be callable as unstable_check(dt, u, p, t): a function of (u).",
    ),
    ("trajectories", 3, "trajectories requires an EnsembleProblem"),
]
ALGORITHMS = {
    "class": (ude.Tsit5, "alg must be an algorithm object: expected one such as ude.Tsit5(), got <class"),
    "SciPy's": ("RK45", "got 'RK45'. Write ude.methods.DP5()"),
    "torchdiffeq's": ("dopri5", "got 'dopri5'. Write ude.methods.DP5()"),
    "number": (5, "alg must be an algorithm object: expected one such as ude.Tsit5(), got 5."),
}


def linear(u: Tensor) -> Tensor:
    value: Tensor = ude.solve(ude.ODEProblem(decay, u, (0.0, 1.0)), ude.Tsit5()).u[-1]
    return value


def rated(k: Tensor) -> Tensor:
    value: Tensor = ude.solve(ude.ODEProblem(scaled, [1.0], (0.0, 1.0), dict(k=k)), ude.Tsit5()).u[-1, 0]
    return value


ONES = torch.ones(2, dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)
TRANSFORMS: dict[str, Call] = {
    "grad": lambda: torch.func.grad(lambda u: linear(u).sum())(ONES),
    "jacrev": lambda: torch.func.jacrev(linear)(ONES),
    "jacfwd": lambda: torch.func.jacfwd(linear)(ONES),
    "hessian": lambda: torch.func.hessian(lambda u: linear(u).sum())(ONES),
    "vmap": lambda: torch.func.vmap(linear)(ONES.expand(3, 2)),
    "jvp": lambda: torch.func.jvp(linear, (ONES,), (ONES,)),
    "grad of p": lambda: torch.func.grad(rated)(ONE),
    "vmap of p": lambda: torch.func.vmap(rated)(ONES),
    "vmap of tspan": lambda: torch.func.vmap(lambda t: problem(tspan=(0.0, t))().u[-1])(ONES),
}
ENSEMBLE = ude.EnsembleProblem(PROB, lambda prob, i: prob)
OTHERS: dict[str, tuple[Call, str]] = {
    "three positions": (
        lambda: ude.solve(PROB, ude.Tsit5(), 0.1),
        "solve takes at most 2 arguments without a name: expected prob, alg, got 3 arguments. Give the others by name.",
    ),
    "no problem": (lambda: ude.solve(), "solve needs prob: expected solve(prob)."),
    "twice": (lambda: ude.solve(PROB, prob=PROB), "solve was given prob twice."),
    "no tspan": (lambda: ude.ODEProblem(decay, [1.0]), "ODEProblem needs tspan: expected ODEProblem(f, u0, tspan)."),
    "f for prob": (
        lambda: ude.solve(decay),
        "solve takes a problem: expected ude.solve(ude.ODEProblem(f, u0, tspan, p)",
    ),
    "float32 network": (
        problem(f=lambda u, p, t: p.net(u), p=dict(net=NET)),
        "u0 and the parameters of f must have one dtype: u0 of torch.float64 and parameters of torch.float32. Write ",
    ),
    "network elsewhere": (
        problem(f=lambda u, p, t: p.net(u), p=dict(net=nn.Linear(2, 2, device="meta", dtype=torch.float64))),
        "u0 and the parameters of f must be on one device: u0 on cpu and parameters on meta. Write net.to('cpu')",
    ),
    "misspelled parameter": (problem(f=scaled, p=dict(kk=1.0)), "p has no 'k': expected one of kk."),
    "missing key": (problem(f=lambda u, p, t: p["k"] * u, p=dict(kk=1.0)), "p has no 'k': expected one of kk."),
    "names": (problem(names="x"), "names must be one name for each state: expected 2 different names, got x."),
    "names of numbers": (problem(names=[1, 2]), "names must be text: expected 'x, y' or a list of names, got [1, 2]."),
    "remake": (
        lambda: ude.remake(PROB, y0=[1.0]),
        "remake cannot change 'y0': expected u0. Write u0= in place of y0=.",
    ),
    "remake of f": (
        lambda: ude.remake(decay, u0=[1.0]),
        "remake changes a problem: expected an ODEProblem, got function.",
    ),
    "algorithm option": (lambda: ude.Tsit5(rtol=1e-3), "Tsit5 has no option 'rtol': expected no options. Tolerances"),
    "variants": (
        lambda: ude.solve(ENSEMBLE, ude.Tsit5(), trajectories=2.5),
        "trajectories must be a whole number, at least 1: trajectories=2.5.",
    ),
    "prob_func": (
        lambda: ude.EnsembleProblem(PROB, lambda prob, i, repeat: prob),
        "prob_func must be callable as prob_func(prob, i): a function of (prob, i, repeat).",
    ),
    "time of a solution": (lambda: solve()()("a"), "sol(t) takes one time or a list of times: 'a'."),
    "time beyond": (lambda: solve()()(5.0), "the times of sol(t) must lie within its span: expected times from 0 to 1"),
    "state of a solution": (lambda: solve()()["q"], "no such state: expected one of u1, u2, got 'q'."),
    "place in a solution": (lambda: solve()()[1.5], "sol[...] takes the index or slice of saved states"),
    "model for data": (
        fit(DATA, MODEL),
        "fit needs a model: expected a ude.models.Model such as ude.UDE(...), got Dataset",
    ),
    "network for a model": (fit(NET, DATA), "got Linear. A network becomes a model by ude.NeuralODE."),
    "function for a model": (fit(decay, DATA), "got function. A function becomes a model by ude.FunctionModel."),
    "number for data": (fit(MODEL, 3), "data must be a table of measurements: expected a Dataset, a path"),
    "no data": (fit(MODEL, None), "data must be a table of measurements: expected a Dataset, a path"),
    "no stage": (fit(stages=["adam"]), "stages must be some of 'derivatives', 'multiple shooting', 'single shooting'"),
    "class of a stage": (fit(stages=ude.stages.SingleShooting), "stages must be names or objects of ude.stages"),
    "optimizer for a stage": (fit(stages=ude.optimizers.Adam(3)), "stages must be names or objects of ude.stages"),
    "seed": (fit(seed=-1), "seed must be an integer, zero or more: -1."),
    "holdout": (fit(holdout=None), 'holdout must be a fraction, a number of points or "after TIME": None.'),
    "starts": (fit(u0="a"), "u0 must be numbers of shape (trajectory, state), or a dict: 'a'."),
    "positive": (fit(positive=3), 'positive must be "auto", True, False or names of states: 3.'),
    "noise": (fit(noise="gaussian"), "noise must be noise models: expected one such as ude.noise.Gaussian()"),
    "priors": (fit(priors=3), "priors must map parameters to priors: 3."),
    "prior": (fit(priors=dict(k=1.0)), "the prior of k must be a prior object"),
    "penalties": (fit(penalties=3), "penalties must be a list of penalty objects: 3."),
    "callback of a fit": (fit(callback=3), "callback must be callable as callback(iteration): int."),
    "folder": (fit(out=5), "out must be the path of a folder: 5."),
    "options of a solve": (
        fit(options=ude.solving.SolveOptions()),
        "options must be ude.FitOptions(...): SolveOptions(",
    ),
    "class of options": (fit(options=ude.FitOptions), "options must be ude.FitOptions(...): the class FitOptions."),
    "iterations": (
        lambda: ude.FitOptions(single_iterations=5),
        "single_iterations of FitOptions must be two counts, of Adam and of L-BFGS: (0, 300): 5.",
    ),
    "weight_prior": (
        lambda: ude.FitOptions(weight_prior="a"),
        "weight_prior of FitOptions must be zero or a positive number: 'a'.",
    ),
    "solver": (
        lambda: ude.FitOptions(solver=ude.Tsit5()),
        "solver of FitOptions must be ude.fitting.SolverOptions(...): Tsit5().",
    ),
    "continuity": (
        lambda: ude.stages.MultipleShooting(continuity=3.0),
        "continuity of MultipleShooting must be positive penalties: (1.0, 10.0): 3.0.",
    ),
    "fractions": (
        lambda: ude.stages.GrowingHorizon(fractions=(0.5,)),
        "fractions of GrowingHorizon must be increasing",
    ),
    "optimizers": (
        lambda: ude.stages.SingleShooting(ude.optimizers.Adam(3)),
        "optimizers of SingleShooting must be a tuple of optimizers",
    ),
    "learning rate": (
        lambda: ude.optimizers.Adam(lr=0.1),
        "Adam has no argument 'lr': expected learning_rate. Write learning_rate= in place of lr=.",
    ),
    "rate": (lambda: ude.optimizers.Adam(3, "fast"), "learning_rate of Adam must be a number: 'fast'."),
    "options of a selection": (
        lambda: ude.discovery.SelectionOptions(fit=ude.FitOptions()),
        "SelectionOptions(fit) must be a RefitOptions, which says how constants are refitted",
    ),
    "discover(model)": (lambda: ude.discover(MODEL), "discover takes the result of a fit: UDE. Fit the model first"),
    "discover(model, data)": (
        lambda: ude.discover(MODEL, DATA),
        "discover takes the result of a fit: UDE. Fit the model",
    ),
    "discover(data=)": (
        lambda: ude.discover(MODEL, data=DATA),
        "discover has no argument 'data'. Fit the model first: ude.discover(ude.fit(model, data)).",
    ),
    "check_gradient": (
        lambda: ude.check_gradient(PROB, rtol=1e-3),
        "check_gradient has no argument 'rtol'",
    ),
}


def mistakes() -> Iterator[tuple[str, Call, str]]:
    for name, text in SOLVE_NAMES.items():
        yield f"solve {name}", solve(**{name: 1.0}), f"solve has no argument {name!r}"
        yield f"solve {name} fix", solve(**{name: 1.0}), text
    for name, text in PROBLEM_NAMES.items():
        yield f"problem {name}", problem(**{name: 1.0}), text
    for name, text in FIT_NAMES.items():
        yield f"fit {name}", fit(**{name: 1.0}), text
    for name, text in PACKAGE_NAMES.items():
        yield f"ude.{name}", lambda name=name: getattr(ude, name), text
    for name, right in SOLUTION_NAMES.items():
        call = lambda name=name: getattr(solve(saveat=0.5)(), name)  # noqa: E731
        yield f"sol.{name}", call, f"a Solution has no {name!r}: expected {right}."
    for name, (f, text) in RIGHT_HAND_SIDES.items():
        yield name, problem(f=f), text
    for name, (u0, text) in STATES.items():
        yield f"u0: {name}", problem(u0=u0), text
    for name, (tspan, text) in SPANS.items():
        yield f"tspan: {name}", problem(tspan=tspan), text
    for name, (value, text) in PARAMETERS.items():
        yield f"p: {name}", problem(f=scaled, p=dict(k=value)), text
    for name, value, text in OPTIONS:
        # an address in a name would differ between the processes that run the tests
        yield re.sub(r" at 0x\w+", "", f"{name}={value!r}")[:40], solve(**{name: value}), text
    for name, (alg, text) in ALGORITHMS.items():
        yield f"alg: {name}", lambda alg=alg: ude.solve(PROB, alg), text
    for name, call in TRANSFORMS.items():
        yield name, call, "a solve cannot be transformed by torch.func (grad, vmap, jacrev, jvp)"
    for name, (call, text) in OTHERS.items():
        yield name, call, text


MISTAKES = list(mistakes())


# torch.func compiles its first Jacobian-vector product by an interface that torch itself deprecates
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("call", "text"), [pytest.param(call, text, id=name) for name, call, text in MISTAKES])
def test_a_mistake_is_answered_by_the_rule_and_the_remedy(call: Call, text: str) -> None:
    with pytest.raises(UdeError, match=re.escape(text)) as raised:
        call()
    message = str(raised.value)
    assert "usable" not in message
    assert "\n" not in message


def test_there_are_mistakes_enough() -> None:
    assert len({id(call) for _, call, _ in MISTAKES}) >= 150


def test_nothing_begins_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is f called nor a stage run."""
    calls = []

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        calls.append(t)
        return -u

    monkeypatch.setattr(import_module("ude.fitting.fit"), "run_stages", lambda *given: calls.append(given))
    for wrong in (
        dict(maxiters=2.5),
        dict(saveat=1e-9),
        dict(sensealg="adjoint"),
        dict(adaptive="no"),
        dict(tstops="a"),
    ):
        with pytest.raises(InputError):
            ude.solve(ude.ODEProblem(f, [1.0], (0.0, 1.0)), ude.Tsit5(), **wrong)
    for wrong in (dict(seed=-1), dict(callback=3), dict(options={}), dict(penalties=3), dict(noise="gaussian")):
        with pytest.raises(InputError):
            fit(**wrong)()
    assert not calls


def test_unknown_names_behave_as_python_expects() -> None:
    assert not hasattr(ude, "QNDF")
    assert getattr(solve()(), "ys", None) is None
    assert ude.ODEProblem(scaled, [1.0], (0.0, 1.0), dict(k=1.0)).p.get("q", 7) == 7
    with pytest.raises(KeyError):
        ude.problems.Parameters(k=1.0)["q"]
    assert issubclass(UnknownName, AttributeError)


def test_tables_name_only_what_there_is() -> None:
    """Every argument, attribute and name that a message recommends exists."""
    for table, owner in (
        (vocabulary.OF_SOLVE, ude.solve),
        (vocabulary.OF_PROBLEMS, ude.ODEProblem),
        (vocabulary.OF_FIT, ude.fit),
        (vocabulary.OF_STAGE, ude.stages.MultipleShooting),
        (vocabulary.OF_OPTIMIZER, ude.optimizers.Adam),
    ):
        for elsewhere, here in table.items():
            assert here in signature(owner).parameters or " " in here, (elsewhere, here)
            assert elsewhere not in signature(owner).parameters or table is vocabulary.OF_FIT, elsewhere
    for elsewhere, here in vocabulary.OF_PACKAGE.items():
        for name in re.findall(r"ude\.([A-Za-z_0-9.]+[A-Za-z0-9])", here):
            place: Any = ude
            for part in name.split("."):
                place = getattr(place, part)
        assert not hasattr(ude, elsewhere)


def test_arguments_in_the_right_form_still_work() -> None:
    sol = ude.solve(
        prob=PROB, alg=ude.Tsit5(), saveat=np.array([0.5, 1.0]), maxiters=np.int64(1000), dt=np.float32(0.1)
    )
    assert bool(sol.success)
    assert list(sol.u[0]) == list(sol[0])
    assert pd.DataFrame(sol.u.numpy()).shape == (2, 2)
