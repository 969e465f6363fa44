"""A fingerprint changes with whatever a trace would freeze, and with nothing else."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import random
import subprocess
import sys
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from torch import Tensor, nn

import ude
from ude.compile.fingerprint import Fingerprint, fingerprint
from ude.problems.ode import flatten

RATE: Any = 2.0
TABLE = {"a": [1.0, 2.0]}
VECTOR = torch.tensor([1.0, 2.0], dtype=torch.float64)


class Kind(enum.Enum):
    A, B = 1, 2


Pair = collections.namedtuple("Pair", "a b")


def key(f: Any) -> tuple[Any, ...]:
    found = fingerprint(f)
    assert found.why_not is None
    return found.key


# -- functions ---------------------------------------------------------------------------------------------------------


def closing_over(value: Any) -> Callable[..., Tensor]:
    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return torch.tanh(u) * value

    return f


def test_two_closures_over_equal_values_are_the_same() -> None:
    assert key(closing_over(3.0)) == key(closing_over(3.0))
    assert hash(key(closing_over(3.0))) == hash(key(closing_over(3.0)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (3.0, 4.0),
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("a", b"a"),
        (None, 0),
        ("leaf", "again"),
        ([1, 2], (1, 2)),
        ([1, 2], [2, 1]),
        ([[1], 2], [[1, 2]]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1}, {1, 2}),
        (1 + 2j, 1 - 2j),
        (range(3), range(4)),
        (slice(1), slice(2)),
        (np.arange(3), np.arange(1, 4)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(1000), np.r_[np.zeros(999), 1]),
        (np.float64(1), np.float64(2)),
        (np.float64(1), np.float32(1)),
        (torch.float64, torch.float32),
        (torch.zeros(3), torch.zeros(4)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(2, 3), torch.zeros(3, 2).T),
        (torch.zeros(3), torch.zeros(3, requires_grad=True)),
        (sympy.Symbol("x"), sympy.Symbol("y")),
        (Path("a"), Path("b")),
        (torch.sin, torch.cos),
        (np.sin, np.cos),
        (closing_over(1.0), closing_over(2.0)),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, 1), functools.partial(min, 1)),
        (int, float),
        (types.MappingProxyType({"a": 1}), types.MappingProxyType({"a": 2})),
        (Kind.A, Kind.B),
        (Pair(1, 2), Pair(1, 3)),
        (collections.OrderedDict(a=1), collections.OrderedDict(a=2)),
        (collections.defaultdict(lambda: 1), collections.defaultdict(lambda: 2)),
        (collections.Counter("ab"), collections.Counter("aab")),
        ([1, 2].count, [1, 3].count),
        ({"a": 1}.get, {"a": 2}.get),
        (weakref.ref(Kind.A), weakref.ref(Kind.B)),
        (torch.vmap(torch.sin), torch.vmap(torch.cos)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (torch.fx.symbolic_trace(nn.Tanh()), torch.fx.symbolic_trace(nn.Sigmoid())),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_captured_value_is_another_fingerprint(one: Any, other: Any) -> None:
    assert key(closing_over(one)) != key(closing_over(other))
    assert key(closing_over(one)) == key(closing_over(one))


def test_nan_equals_itself() -> None:
    assert key(closing_over(float("nan"))) == key(closing_over(float("nan")))


def test_other_code_and_other_constants_are_another_fingerprint() -> None:
    base: Callable[[Any], Any] = lambda u: u * 2.0  # noqa: E731
    same: Callable[[Any], Any] = lambda u: u * 2.0  # noqa: E731
    constant: Callable[[Any], Any] = lambda u: u * 3.0  # noqa: E731
    operation: Callable[[Any], Any] = lambda u: u + 2.0  # noqa: E731
    nested: Callable[[Any], Any] = lambda u: (lambda: u * 2.0)()  # noqa: E731
    nested_constant: Callable[[Any], Any] = lambda u: (lambda: u * 3.0)()  # noqa: E731
    assert key(base) == key(same)
    assert len({key(f) for f in (base, constant, operation, nested, nested_constant)}) == 5


def reads_rate(u: Tensor, p: Any, t: Tensor) -> Tensor:
    return RATE * u


def test_a_changed_global_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(reads_rate)
    assert key(reads_rate) == before
    monkeypatch.setitem(globals(), "RATE", 2.5)
    assert key(reads_rate) != before
    monkeypatch.setitem(globals(), "RATE", 2.0)
    assert key(reads_rate) == before


def test_a_global_read_only_by_a_nested_function_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(u: Tensor) -> Tensor:
        return (lambda: u * RATE)()

    before = key(f)
    monkeypatch.setitem(globals(), "RATE", 2.5)
    assert key(f) != before


def test_a_mutated_container_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(u: Tensor) -> Tensor:
        return u * TABLE["a"][0]

    before = key(f)
    monkeypatch.setitem(TABLE, "a", [1.5, 2.0])
    assert key(f) != before
    captured = [1.0, {"k": 2.0}]
    g = closing_over(captured)
    before = key(g)
    captured[1]["k"] = 3.0  # type: ignore[index]
    assert key(g) != before
    before = key(g)
    captured.append(0.0)
    assert key(g) != before


def test_a_changed_default_argument_changes_the_fingerprint() -> None:
    def f(u: Tensor, k: float = 1.0, *, c: float = 2.0) -> Tensor:
        return k * u + c

    before = key(f)
    f.__defaults__ = (1.5,)
    changed = key(f)
    f.__kwdefaults__ = {"c": 3.0}
    assert len({before, changed, key(f)}) == 3


def innermost(u: Tensor) -> Tensor:
    return u * 1.0


def middle(u: Tensor) -> Tensor:
    return innermost(u)


def outermost(u: Tensor) -> Tensor:
    return middle(u)


def test_a_helper_changed_two_levels_down_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(outermost)
    monkeypatch.setitem(globals(), "innermost", lambda u: u * 2.0)
    assert key(outermost) != before


def test_functions_that_call_each_other_have_a_fingerprint() -> None:
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    itself: list[Any] = []
    itself.append(itself)
    assert key(even) == key(even)
    assert key(closing_over(itself)) == key(closing_over(itself))


def test_only_the_attributes_of_a_module_that_are_read_count(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = types.ModuleType("mine")
    mine.rate, mine.other = 1.0, 1.0  # type: ignore[attr-defined]

    def f(u: Tensor) -> Tensor:
        return u * mine.rate

    before = key(f)
    mine.other = 2.0  # type: ignore[attr-defined]
    assert key(f) == before
    mine.rate = 2.0  # type: ignore[attr-defined]
    assert key(f) != before


def test_a_module_of_the_user_that_hides_a_standard_one_counts_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    hiding = types.ModuleType("colorsys")
    hiding.__file__ = "/home/user/colorsys.py"
    monkeypatch.setitem(sys.modules, "colorsys", hiding)

    class Gain:
        def __call__(self, u: Tensor) -> Tensor:
            return u

    Gain.__module__ = "colorsys"
    before = key(closing_over(Gain()))
    monkeypatch.setattr(Gain, "__call__", lambda self, u: 2 * u)
    assert key(closing_over(Gain())) != before


def test_only_the_attributes_of_an_object_that_are_read_count() -> None:
    settings = types.SimpleNamespace(rate=1.0, log=[])

    def f(u: Tensor) -> Tensor:
        return u * settings.rate

    before = key(f)
    settings.log.append("read")
    assert key(f) == before
    settings.rate = 2.0
    assert key(f) != before


def test_a_decorated_function_counts_as_what_it_wraps() -> None:
    def doubled(k: float) -> Any:
        @functools.wraps(innermost)
        def f(u: Tensor) -> Tensor:
            return k * innermost(u)

        return f

    assert key(doubled(1.0)) == key(doubled(1.0))
    assert key(doubled(1.0)) != key(doubled(2.0))
    assert key(functools.lru_cache(closing_over(1.0))) != key(functools.lru_cache(closing_over(2.0)))


def test_the_default_dtype_counts() -> None:
    before = key(innermost)
    torch.set_default_dtype(torch.float64)
    try:
        assert key(innermost) != before
    finally:
        torch.set_default_dtype(torch.float32)
    assert key(innermost) == before


def test_extra_values_count() -> None:
    assert fingerprint(innermost, extra=(2,)).key != fingerprint(innermost, extra=(3,)).key
    assert fingerprint(innermost, extra=(2,)).key == fingerprint(innermost, extra=(2,)).key


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_writing_into_a_captured_tensor_changes_only_its_values() -> None:
    captured = torch.zeros(3)
    f = closing_over(captured)
    before = fingerprint(f)
    captured += 1.0
    after = fingerprint(f)
    assert after.key == before.key
    assert after.tensors[0] is captured
    assert fingerprint(closing_over(torch.zeros(3))).values() != after.values()
    assert fingerprint(closing_over(torch.ones(3))).values() == after.values()


def test_a_replaced_captured_tensor_keeps_the_key_and_is_the_one_to_read() -> None:
    one, other = torch.zeros(3), torch.ones(3)
    holder = [one]
    f = closing_over(holder)
    before = fingerprint(f)
    holder[0] = other
    after = fingerprint(f)
    assert after.key == before.key
    assert before.tensors[0] is one
    assert after.tensors[0] is other


def test_tensors_are_found_wherever_they_are_captured() -> None:
    a, b, c, d = (torch.full((1,), float(i)) for i in range(4))
    holder = types.SimpleNamespace(deep={"k": [b]}, c=c)

    def f(u: Tensor, k: Tensor = d) -> Tensor:
        return u * a * VECTOR[0] * holder.deep["k"][0] * holder.c * k

    found = fingerprint(f)
    assert [id(tensor) for tensor in found.tensors] == [id(VECTOR), id(a), id(b), id(c), id(d)]


def test_one_tensor_captured_twice_is_not_two_equal_tensors() -> None:
    one, other = torch.zeros(3), torch.zeros(3)
    twice = fingerprint(closing_over([one, one]))
    assert len(twice.tensors) == 1
    assert twice.key != fingerprint(closing_over([one, other])).key


def test_leaves_count_by_their_place() -> None:
    one, other = torch.zeros(3), torch.zeros(3)
    f = closing_over([one, other])
    found = fingerprint(f, known=(one, other))
    assert found.tensors == ()
    assert found.key != fingerprint(f, known=(other, one)).key
    assert fingerprint(f, known=(one,)).tensors[0] is other


# -- modules and objects -----------------------------------------------------------------------------------------------


class Net(nn.Module):
    gain: Any = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.rate: Any = 0.1
        self.register_buffer("shift", torch.zeros(2))
        self.plain = torch.ones(2)

    def helper(self, u: Tensor) -> Tensor:
        return u * self.rate * self.gain

    def never_called(self) -> float:
        return 1.0

    def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.helper(self.net(u) + self.shift * self.plain)


def test_two_modules_of_one_make_are_the_same() -> None:
    one, other = Net(), Net()
    assert key(one) == key(other)
    assert [tensor.shape for tensor in fingerprint(one).tensors] == [
        tensor.shape for tensor in (one.plain, one.shift, *one.parameters())
    ]
    assert len(fingerprint(one, known=tuple(one.parameters())).tensors) == 2


def rate(net: Net) -> None:
    net.rate = 0.2


def new_attribute(net: Net) -> None:
    net.more = 1  # type: ignore[assignment]


def swap_layer(net: Net) -> None:
    net.net[1] = nn.Sigmoid()


def swap_for_another_size(net: Net) -> None:
    net.net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))


def without_bias(net: Net) -> None:
    net.net[0].bias = None


def evaluate(net: Net) -> None:
    net.eval()


def evaluate_a_part(net: Net) -> None:
    net.net[1].eval()


def own_forward(net: Net) -> None:
    net.forward = types.MethodType(lambda self, u, p, t: u, net)  # type: ignore[method-assign]


def negative_slope(net: Net) -> None:
    net.net[1] = nn.LeakyReLU(0.1)


def double(net: Net) -> None:
    net.double()


def buffer_of_other_shape(net: Net) -> None:
    net.shift = torch.zeros(1)


@pytest.mark.parametrize(
    "change",
    [
        rate,
        new_attribute,
        swap_layer,
        swap_for_another_size,
        without_bias,
        evaluate,
        evaluate_a_part,
        own_forward,
        negative_slope,
        double,
        buffer_of_other_shape,
    ],
)
def test_a_changed_module_changes_the_fingerprint(change: Callable[[Net], None]) -> None:
    net = Net()
    before = key(net)
    change(net)
    assert key(net) != before


def test_options_of_a_layer_count() -> None:
    assert key(nn.LeakyReLU(0.1)) != key(nn.LeakyReLU(0.2))
    assert key(nn.Softplus(beta=1.0)) != key(nn.Softplus(beta=2.0))


@pytest.mark.parametrize(
    ("name", "value"), [("forward", lambda self, u, p, t: u), ("helper", lambda self, u: u), ("gain", 2.0)]
)
def test_a_patched_class_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    before = key(Net())
    monkeypatch.setattr(Net, name, value)
    assert key(Net()) != before


def test_a_method_that_nothing_calls_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(Net())
    monkeypatch.setattr(Net, "never_called", lambda self: random.random())
    assert key(Net()) == before


def test_trained_parameters_do_not_count() -> None:
    net = Net()
    before = key(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 1.0
    net.shift += 1.0
    assert key(net) == before


class Base:
    def slope(self) -> float:
        return 1.0


@dataclasses.dataclass
class Law(Base):
    k: float
    table: list[float]

    def __call__(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.k * u * self.slope() + self.table[0]

    @property
    def unused(self) -> float:
        return time.time()


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k: float) -> None:
        self.k = k

    def rhs(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
        return self.k * u


def test_callable_objects_and_bound_methods_count_by_their_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    law = Law(1.0, [1.0])
    before = key(law)
    assert key(Law(1.0, [1.0])) == before
    assert key(Law(2.0, [1.0])) != before
    law.table[0] = 2.0
    assert key(law) != before
    law.table[0] = 1.0
    monkeypatch.setattr(Base, "slope", lambda self: 2.0)
    assert key(law) != before
    assert key(Slotted(1.0).rhs) == key(Slotted(1.0).rhs)
    assert key(Slotted(1.0).rhs) != key(Slotted(2.0).rhs)


def test_attributes_read_under_computed_names_bring_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chooser:
        def __init__(self, which: int) -> None:
            self.which = which

        def law1(self, u: Tensor) -> Tensor:
            return u

        def __call__(self, u: Tensor) -> Tensor:
            return getattr(self, f"law{self.which}")(u)  # type: ignore[no-any-return]

    before = key(Chooser(1))
    monkeypatch.setattr(Chooser, "law1", lambda self, u: 2 * u)
    assert key(Chooser(1)) != before


def test_an_object_made_inside_f_counts_by_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    def f(u: Tensor) -> Tensor:
        return Slotted(2.0).rhs(u, None, u)

    before = key(f)
    monkeypatch.setattr(Slotted, "__init__", lambda self, k: setattr(self, "k", 2 * k))
    assert key(f) != before


# -- ude's own right-hand sides ----------------------------------------------------------------------------------------


def of(prob: ude.ODEProblem) -> Fingerprint:
    found = fingerprint(flatten(prob)[0])
    assert found.why_not is None
    return found


def test_a_problem_counts_its_parameters_as_leaves_whatever_their_values() -> None:
    def prob(alpha: float) -> ude.ODEProblem:
        return ude.ODEProblem(lambda u, p, t: p.alpha * p.net(u), [1.0, 1.0], (0, 1), dict(alpha=alpha, net=Net()))

    one = of(prob(1.0))
    assert one.key == of(prob(2.0)).key
    assert len(one.tensors) == 2  # the buffer and the plain tensor of the network
    assert one.stable == of(prob(2.0)).stable
    assert one.stable is not None


def test_the_structure_of_p_counts() -> None:
    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return u

    one = of(ude.ODEProblem(f, [1.0], (0, 1), dict(a=1.0, b=2.0)))
    assert one.key != of(ude.ODEProblem(f, [1.0], (0, 1), dict(a=1.0, c=2.0))).key
    assert one.key != of(ude.ODEProblem(f, [1.0], (0, 1), dict(a=1.0, b=(2.0,)))).key


LINES = ["dx/dt = a*x - U1(x, y)", "dy/dt = U2(x, y) - d*y"]


def text_model(lines: list[str] = LINES, fit: str = "a", **options: Any) -> ude.UDE:
    return ude.UDE(lines, {"a": 1.3, "d": 1.8}, fit, ude.MLP("U1, U2", "x, y", **{"width": 8, **options}))


def test_a_text_model_counts_by_its_equations_and_not_by_its_numbers() -> None:
    def problem(model: ude.UDE) -> Fingerprint:
        return of(model.problem([1.0, 1.0], (0.0, 1.0)))

    base = problem(text_model())
    other_numbers = text_model(seed=3)
    other_numbers.set_values({"a": 0.5, "d": 0.7})
    assert problem(other_numbers).key == base.key
    assert problem(other_numbers).stable == base.stable
    replaced = text_model().replace({"U1": ude.Symbolic({"U1": "c0*x*y"}, "x, y", {"c0": 0.1})})
    squared = text_model().replace({"U1": ude.Symbolic({"U1": "c0*x*y**2"}, "x, y", {"c0": 0.1})})
    others = [
        text_model([LINES[0], LINES[1] + "*y"]),
        text_model(fit="a, d"),
        text_model(fit="a in [0, 5]"),
        text_model(fit="a in [0, 6]"),
        text_model(width=9),
        text_model(activation="sigmoid"),
        replaced,
        squared,
    ]
    assert len({base.key, *(problem(model).key for model in others)}) == len(others) + 1


def test_second_order_problems_and_function_models_and_forcings_count() -> None:
    def oscillator(k: float) -> ude.ODEProblem:
        return ude.SecondOrderODEProblem(lambda du, u, p, t: -k * u, [0.0], [1.0], (0.0, 1.0))

    assert of(oscillator(1.0)).key == of(oscillator(1.0)).key
    assert of(oscillator(1.0)).key != of(oscillator(2.0)).key

    def model(k: float) -> ude.FunctionModel:
        return ude.FunctionModel(lambda u, p, t: -k * p.a * u, "x", {"a": 1.0})

    assert of(model(1.0).problem([1.0], (0, 1))).key == of(model(1.0).problem([1.0], (0, 1))).key
    assert of(model(1.0).problem([1.0], (0, 1))).key != of(model(2.0).problem([1.0], (0, 1))).key

    def forced(kind: Any, last: float = 0.0) -> Fingerprint:
        forcing = ude.Interpolation([0.0, 1.0, 2.0], [0.0, 1.0, last], kind)
        return of(ude.ODEProblem(lambda u, p, t: p.heat(t) - u, [1.0], (0, 1), dict(heat=forcing)))

    assert forced("linear").key == forced("linear", 3.0).key
    assert forced("linear").key != forced("constant").key
    assert forced("cubic").key == forced("cubic", 3.0).key


# -- what cannot be told -----------------------------------------------------------------------------------------------


def with_generator() -> Any:
    return closing_over(x for x in (1, 2))


def with_iterator() -> Any:
    return closing_over(iter([1, 2]))


def with_file() -> Any:
    with Path(__file__).open() as file:
        return closing_over(file)


def with_chance() -> Any:
    return lambda u: u * random.random()


def with_random_state() -> Any:
    return closing_over(np.random.default_rng(0))


def with_numpy_chance() -> Any:
    return lambda u: u * np.random.rand()  # noqa: NPY002


def with_clock() -> Any:
    return lambda u: u * time.time()


def with_eval() -> Any:
    return lambda u: eval("RATE") * u


def with_import() -> Any:
    def f(u: Tensor) -> Tensor:
        import hypothesis

        return u * len(hypothesis.__name__)

    return f


def with_hook() -> Any:
    net = Net()
    net.net[0].register_forward_hook(lambda *_: None)
    return net


def with_large_array() -> Any:
    return closing_over(np.zeros(1 << 18))


def with_whole_module() -> Any:
    return closing_over(sys.modules[__name__])


def with_sparse_tensor() -> Any:
    return closing_over(torch.eye(2).to_sparse())


def with_torch_compile() -> Any:
    return torch.compile(innermost, backend="eager")


def with_compiled_module() -> Any:
    return torch.compile(Net(), backend="eager")


def with_script() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Tanh())


def with_an_object_that_raises() -> Any:
    class Shy:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise ValueError("not yours")

    return closing_over(Shy())


def with_too_much() -> Any:
    return closing_over([[i] for i in range(30_000)])


def with_deep_nesting() -> Any:
    nested: list[Any] = []
    for _ in range(5000):
        nested = [nested]
    return closing_over(nested)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (with_generator, "f holds a generator, which moves on when it is read, and a kernel would not move it."),
        (with_iterator, "f holds a list_iterator, which moves on"),
        (with_file, "f holds a TextIOWrapper, which moves on"),
        (with_chance, "f calls random, whose value a kernel would freeze."),
        (with_random_state, "f holds a random generator (Generator), whose numbers a kernel would freeze."),
        (with_numpy_chance, "f calls numpy.random, whose value a kernel would freeze."),
        (with_clock, "f calls time, whose value a kernel would freeze."),
        (with_eval, "calls eval, so what it reads cannot be told."),
        (with_import, "imports hypothesis while it runs; import it at the top."),
        (with_hook, "Linear has hooks, which a kernel would not call."),
        (with_large_array, "f captures a numpy array of 2097152 bytes, which a trace would freeze; make it a torch"),
        (with_whole_module, "as a whole; what it reads there cannot be told."),
        (with_sparse_tensor, "f captures a tensor of layout torch.sparse_coo, which a kernel cannot read."),
        (with_torch_compile, "f is compiled by torch.compile, whose place a kernel would take; give the function or"),
        (with_compiled_module, "f is compiled by torch.compile"),
        (with_script, "f runs a RecursiveScriptModule, whose code is not Python's; give what it was made from."),
        (with_an_object_that_raises, "f reaches an object that cannot be looked at (ValueError: not yours)."),
        (with_too_much, "f reaches more than 20000 Python objects, too many to look at in every solve."),
        (with_deep_nesting, "f reaches objects that are nested too deeply to be looked at."),
    ],
)
def test_what_cannot_be_told_is_said_in_one_sentence(make: Callable[[], Any], says: str) -> None:
    found = fingerprint(make())
    assert found.why_not is not None
    assert says in found.why_not
    assert found.why_not.endswith(".")
    assert found.stable is None


def test_an_object_of_an_unknown_kind_counts_by_identity_and_has_no_stable_name() -> None:
    one, other = object(), object()
    assert key(closing_over(one)) == key(closing_over(one))
    assert key(closing_over(one)) != key(closing_over(other))
    assert fingerprint(closing_over(one)).stable is None


def test_what_f_changes_while_it_runs_shows_in_its_fingerprint() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
            self.calls += 1
            return -u

    f = Counting()
    before = key(f)
    f(torch.zeros(1), None, torch.zeros(()))
    assert key(f) != before


# -- another process ---------------------------------------------------------------------------------------------------

SOURCE = """
import dataclasses, math
import numpy as np, torch, ude
from torch import nn
from ude.compile.fingerprint import fingerprint
from ude.problems.ode import flatten

RATE = {rate}
NAMES = {{"x", "y", "z"}}

@dataclasses.dataclass(frozen=True)
class Law:
    k: float
    def __call__(self, u):
        return math.pi * self.k * u

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.law = Law(3.0)
        self.grid = np.linspace(0, 1, 50)
    def forward(self, u, p, t):
        return self.net(u) * RATE + self.law(u) if "x" in {{"x", "y", "z"}} else torch.sin(u)

net = Net()
model = ude.UDE(["dx/dt = a*x - U1(x, y)", "dy/dt = U2(x, y) - d*y"], {{"a": 1.3, "d": 1.8}}, "a")
for f in (net, lambda u, p, t: net.law(u) * RATE, model):
    print(fingerprint(flatten(ude.ODEProblem(f, [1.0, 1.0], (0.0, 1.0)))[0]).stable)
"""


def stable_in_a_fresh_process(folder: Path, rate: float, blank_lines: int, seed: str) -> Iterator[str]:
    script = folder / f"script{blank_lines}.py"
    script.write_text("\n" * blank_lines + SOURCE.format(rate=rate))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    yield from done.stdout.split()


def test_the_same_source_has_the_same_stable_name_in_another_process(tmp_path: Path) -> None:
    one = list(stable_in_a_fresh_process(tmp_path, 2.0, 0, "1"))
    assert len(set(one)) == 3
    assert all(len(name) == 64 for name in one)
    # another file, other line numbers, another order of sets of strings
    assert list(stable_in_a_fresh_process(tmp_path, 2.0, 7, "2")) == one
    changed = list(stable_in_a_fresh_process(tmp_path, 2.5, 0, "1"))
    assert [a == b for a, b in zip(one, changed, strict=True)] == [False, False, True]


def test_a_fingerprint_costs_few_calls() -> None:
    """It is taken before every solve; calls of Python take most of its 15 and 30 microseconds."""

    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
            self.rate = 0.1

        def forward(self, u: Tensor, p: Any, t: Tensor) -> Tensor:
            return self.net(u) * self.rate

    net = Mlp()
    for f, known, most in ((closing_over(3.0), (), 150), (net, tuple(net.parameters()), 300)):
        fingerprint(f, known=known)  # what is remembered of code
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event == "call"

        before = sys.getprofile()
        sys.setprofile(count)
        fingerprint(f, known=known)
        sys.setprofile(before)
        assert 5 < calls < most, calls
