"""The vector mathematics of generated programs: accuracy in units in the last place, special values, lanes alike."""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

COMPILER = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (gcc, clang or cc) on this machine")

LANES = (1, 4, 8)
TYPES = {"double": np.float64, "float": np.float32}
# fmt: off
ONE_ARGUMENT = [
    "neg", "abs", "sign", "square", "reciprocal", "sqrt", "rsqrt", "round", "floor", "ceil", "trunc", "exp",
    "exp2", "expm1", "tanh", "sigmoid", "log_sigmoid", "log", "log2", "log10", "log1p", "sin", "cos", "tan",
    "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "lgamma", "digamma",
]
# fmt: on
TWO_ARGUMENTS = ["min", "max", "fmin", "fmax", "pow", "atan2", "hypot", "fmod", "remainder", "copysign"]
COMPARISONS = ["lt", "le", "gt", "ge", "eq", "ne"]
# the second has neither fused multiply-add nor wide registers: what is exact must be exact there as well
BUILDS = {
    "native": ["-O3", "-march=native"],
    "uncontracted": ["-O1", "-ffp-contract=off"],
}


def source() -> str:
    """One program with every instance of the template and a loop over an array for each function."""
    template = files("ude.engines").joinpath("fused/c/vector_math.h").read_text()
    parts = []
    for real, lanes in itertools.product(TYPES, LANES):
        v = f"{real}{lanes}_"
        parts.append(f"#define VM_REAL {real}\n#define VM_LANES {lanes}\n#define VM(name) {v}##name\n{template}")
        wrap = f"void run_{v}%s(const {real} *x, const {real} *y, const {real} *z, {real} *out, long n)"
        loop = f"{{ for (long k = 0; k < n; k += {lanes}) {v}store(out + k, %s); (void)x; (void)y; (void)z; }}"
        x, y, z = (f"{v}load({letter} + k)" for letter in "xyz")
        calls = {name: f"{v}{name}({x})" for name in ONE_ARGUMENT}
        calls |= {name: f"{v}{name}({x}, {y})" for name in TWO_ARGUMENTS}
        calls |= {name: f"{v}number({v}{name}({x}, {y}))" for name in COMPARISONS}
        calls["select"] = f"{v}select({v}lt({x}, {y}), {x}, {y})"
        calls |= {name: f"{v}{name}({x}, {y}, {z})" for name in ("madd", "clamp", "softplus")}
        calls |= {"cube": f"{v}powi({x}, 3)", "inverse_square": f"{v}powi({x}, -2)", "hsum": f"{v}splat({v}hsum({x}))"}
        calls |= {w: f"{v}splat({v}{w}({v}gt({x}, {y})))" for w in ("any", "all")}
        parts += [wrap % name + loop % call for name, call in calls.items()]
    return "\n".join(parts)


@pytest.fixture(scope="module", params=BUILDS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder: Path = tmp_path_factory.mktemp("vector_math")
    (folder / "all.c").write_text(source())
    flags = [*BUILDS[request.param], "-Wall", "-Werror", "-Wno-psabi", "-fno-math-errno", "-shared", "-fPIC"]
    command = [str(COMPILER), *flags, "all.c", "-o", "all.so", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "all.so"))


def run(library: ctypes.CDLL, real: str, lanes: int, name: str, *arguments: np.ndarray) -> np.ndarray:
    """The function over arrays, whose size is filled up to whole vectors of eight."""
    count = arguments[0].size
    filled = [np.resize(np.asarray(a, TYPES[real]), -(-count // 8) * 8) for a in arguments]
    out = np.empty_like(filled[0])
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (filled * 3)[:3]]
    pointers[: len(filled)] = [a.ctypes.data_as(ctypes.c_void_p) for a in filled]
    function = getattr(library, f"run_{real}{lanes}_{name}")
    function(*pointers, out.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(out.size))
    return out[:count]


def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Equal bit for bit, all NaN counting as one."""
    return ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))


def specials(real: str) -> np.ndarray:
    info = np.finfo(TYPES[real])
    tiny, huge = float(info.tiny), float(info.max)
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.3, 1e-3, 7.0, 20.0, 40.0, 90.0, 104.0, 750.0, 1e5, 1e15, 1e30]
    values += [tiny, tiny / 8, huge, np.inf, 1 + float(info.eps), 1 - float(info.eps)]
    return np.array([sign * v for v in values for sign in (1, -1)] + [np.nan], TYPES[real])


@functools.cache
def points(real: str, low: float, high: float) -> np.ndarray:
    """Random points of [low, high]: uniform, near one, of every magnitude, and of random bits."""
    random = np.random.default_rng(5)
    width, top = (np.uint64, 64) if real == "double" else (np.uint32, 32)
    magnitude = np.exp2(random.uniform(-60 if real == "float" else -300, 60, 150)) * random.choice([-1, 1], 150)
    drawn = [
        random.uniform(max(low, -800), min(high, 800), 150),
        random.uniform(-1, 1, 250),
        random.uniform(-6, 6, 250),
        random.uniform(0.5, 2, 150),
        magnitude,
        random.integers(0, 2**top, 200, dtype=width).view(TYPES[real]).astype(np.float64),
    ]
    x = np.concatenate([specials(real).astype(np.float64), *drawn])
    return x[(x >= low) & (x <= high)].astype(TYPES[real])


def ulps(value: float, exact: mpmath.mpf, real: str) -> float:
    """|value - exact| in units of the last place that the type has at the exact number; infinities must agree."""
    info = np.finfo(TYPES[real])
    if abs(exact) >= mpmath.mpf(float(info.max)) * (1 + mpmath.mpf(2) ** (-info.nmant - 2)):
        return 0.0 if value == float(mpmath.sign(exact)) * np.inf else np.inf
    if not np.isfinite(value):
        return np.inf
    exponent = mpmath.frexp(exact)[1] - 1 if exact else -10000
    unit = mpmath.mpf(2) ** max(exponent - info.nmant, int(info.minexp) - info.nmant)
    return float(abs(mpmath.mpf(value) - exact) / unit)


INF = float("inf")
# what it computes, the interval where it has a value, the bound (double, float) in ulp
ACCURATE: dict[str, tuple[Callable[..., mpmath.mpf], float, float, float]] = {
    "exp": (mpmath.exp, -740.0, 1e4, 1.1),
    "exp2": (lambda x: mpmath.mpf(2) ** x, -1070.0, 1e4, 1.3),
    "expm1": (mpmath.expm1, -1e4, 1e4, 2.0),
    "log": (mpmath.log, 1e-320, INF, 1.0),
    "log2": (lambda x: mpmath.log(x, 2), 1e-320, INF, 2.0),
    "log10": (mpmath.log10, 1e-320, INF, 2.0),
    "log1p": (mpmath.log1p, -1 + 2e-16, INF, 1.5),
    "tanh": (mpmath.tanh, -INF, INF, 2.0),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), -87.0, INF, 2.0),
    "sin": (mpmath.sin, -1e20, 1e20, 2.0),
    "cos": (mpmath.cos, -1e20, 1e20, 2.0),
    "erf": (mpmath.erf, -INF, INF, 2.0),
    "sqrt": (mpmath.sqrt, 0.0, INF, 0.5),
    "reciprocal": (lambda x: 1 / x, 1e-30, 1e30, 0.5),
}


@functools.cache
def case(name: str, real: str) -> tuple[np.ndarray, list[mpmath.mpf]]:
    reference, low, high, _ = ACCURATE[name]
    x = points(real, low, high)
    x = x[np.isfinite(x)]
    x = x[x > 0] if low > 0 else x
    if name == "log1p":
        x = x[x > -1]
    with mpmath.workprec(160):
        return x, [reference(mpmath.mpf(float(value))) for value in x]


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("name", ACCURATE)
def test_error_stays_below_its_bound_over_the_whole_range(library, name, real):
    x, exact = case(name, real)
    assert x.size > 300
    y = run(library, real, 8, name, x)
    with mpmath.workprec(160):
        errors = np.array([ulps(float(value), truth, real) for value, truth in zip(y, exact, strict=True)])
    worst = int(errors.argmax())
    assert errors[worst] <= ACCURATE[name][3], (errors[worst], x[worst], y[worst])


@functools.cache
def powers(real: str) -> tuple[np.ndarray, np.ndarray, list[mpmath.mpf]]:
    """Bases of every magnitude and near one, exponents that bring the power anywhere from underflow to overflow."""
    random = np.random.default_rng(6)
    span = 700.0 if real == "double" else 85.0
    near, wide = 1 + random.uniform(-1e-3, 1e-3, 300), np.exp(random.uniform(-span, span, 500))
    base = np.concatenate([near, wide, np.exp(random.uniform(-3, 3, 500))]).astype(TYPES[real])
    base = base[base != 1]
    target = random.uniform(-1, 1, base.size) * np.where(random.random(base.size) < 0.5, span, 3.0)
    exponent = (target / np.log(base.astype(np.float64))).astype(TYPES[real])
    with mpmath.workprec(160):
        exact = [mpmath.mpf(float(b)) ** mpmath.mpf(float(e)) for b, e in zip(base, exponent, strict=True)]
    return base, exponent, exact


@pytest.mark.parametrize("real", TYPES)
def test_power_is_good_to_two_ulp(library, real):
    base, exponent, exact = powers(real)
    y = run(library, real, 8, "pow", base, exponent)
    with mpmath.workprec(160):
        errors = [ulps(float(value), truth, real) for value, truth in zip(y, exact, strict=True)]
    assert max(errors) <= 2.0


@pytest.mark.parametrize("real", TYPES)
def test_lanes_give_the_same_bits_whatever_their_number(library, real):
    x = np.concatenate([points(real, -INF, INF), specials(real)])
    random = np.random.default_rng(7)
    y, z = random.permutation(x), random.permutation(x)
    for name in [*ONE_ARGUMENT, *TWO_ARGUMENTS, *COMPARISONS, "madd", "clamp", "softplus", "cube", "inverse_square"]:
        one, *more = (run(library, real, lanes, name, x, y, z) for lanes in LANES)
        for lanes, other in zip(LANES[1:], more, strict=True):
            different = ~alike(one, other)
            assert not different.any(), (name, lanes, x[different][:3], one[different][:3], other[different][:3])


def tensors(real: str, *arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a, TYPES[real])) for a in arrays]


LIKE_TORCH: dict[str, Callable[..., torch.Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "square": torch.square,
    "reciprocal": torch.reciprocal,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "round": torch.round,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": torch.nn.functional.logsigmoid,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
    "cube": lambda x: x**3,
    "inverse_square": lambda x: x**-2,
}


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("name", LIKE_TORCH)
def test_special_values_and_signs_are_those_of_torch(library, name, real):
    x = np.concatenate([specials(real), points(real, -30.0, 30.0)])
    relative, smallest = (1e-12, 1e-300) if real == "double" else (2e-5, 1e-37)
    if name in ("lgamma", "digamma"):  # near their zeros and between their poles torch keeps an absolute error only
        x = x[~((x < 0) & (x > -1e30))]
        smallest = 1e-12 if real == "double" else 1e-5
    y = run(library, real, 8, name, x)
    wanted = LIKE_TORCH[name](*tensors(real, x)).numpy()
    assert np.array_equal(np.isnan(y), np.isnan(wanted)), x[np.isnan(y) != np.isnan(wanted)]
    good = np.isfinite(wanted)
    infinite = ~good & ~np.isnan(wanted)
    assert np.array_equal(y[infinite], wanted[infinite]), name
    assert np.allclose(y[good], wanted[good], rtol=relative, atol=smallest), name
    zero = good & (wanted == 0) & (y == 0)
    assert np.array_equal(np.signbit(y[zero]), np.signbit(wanted[zero])), x[zero]


PAIRS: dict[str, Callable[..., torch.Tensor]] = {
    "min": torch.minimum,
    "max": torch.maximum,
    "fmin": torch.fmin,
    "fmax": torch.fmax,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "hypot": torch.hypot,
    "fmod": torch.fmod,
    "remainder": torch.remainder,
    "copysign": torch.copysign,
    "select": lambda x, y: torch.where(x < y, x, y),
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
}


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_special_values_are_treated_as_in_torch(library, name, real):
    x, y = (a.ravel() for a in np.meshgrid(specials(real), specials(real)))
    got = run(library, real, 8, name, x, y)
    wanted = PAIRS[name](*tensors(real, x, y)).numpy().astype(TYPES[real])
    relative = 1e-13 if real == "double" else 1e-6
    if name in ("fmod", "remainder"):  # torch says NaN where the quotient has more digits than the type
        wanted = np.where(np.isnan(wanted) & np.isfinite(x) & np.isfinite(y) & (y != 0), got, wanted)
    close = (got == wanted) | (np.isnan(got) & np.isnan(wanted)) | np.isclose(got, wanted, rtol=relative, atol=0)
    assert close.all(), [(a, b, g, w) for a, b, g, w in zip(x, y, got, wanted, strict=True)][int((~close).argmax())]


@pytest.mark.parametrize("real", TYPES)
def test_clamp_passes_nan_through(library, real):
    x, low = (a.ravel() for a in np.meshgrid(specials(real), specials(real)))
    high = np.random.default_rng(8).permutation(low)
    wanted = torch.clamp(*tensors(real, x, low, high)).numpy()
    assert np.array_equal(run(library, real, 8, "clamp", x, low, high), wanted, equal_nan=True)


@pytest.mark.parametrize("real", TYPES)
def test_sign_is_one_zero_or_nan(library, real):
    x = specials(real)
    assert np.array_equal(run(library, real, 4, "sign", x), np.sign(x), equal_nan=True)


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (2.5, 7.0)])
def test_softplus_switches_to_the_identity_above_its_threshold(library, real, beta, threshold):
    x = np.concatenate([specials(real), points(real, -60.0, 60.0)])
    got = run(library, real, 8, "softplus", x, np.full_like(x, beta), np.full_like(x, threshold))
    wanted = torch.nn.functional.softplus(tensors(real, x)[0], beta, threshold).numpy()
    relative, smallest = (1e-14, 1e-300) if real == "double" else (1e-6, 1e-37)
    assert np.allclose(got, wanted, rtol=relative, atol=smallest, equal_nan=True)


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("lanes", LANES)
def test_lanes_are_summed_by_halves_and_masks_reduced(library, real, lanes):
    x = np.random.default_rng(9).normal(size=64).astype(TYPES[real])
    rows = x.reshape(-1, lanes)
    halves = rows
    while halves.shape[1] > 1:
        half = halves.shape[1] // 2
        halves = halves[:, :half] + halves[:, half:]
    assert np.array_equal(run(library, real, lanes, "hsum", x), np.repeat(halves, lanes))
    y = np.zeros_like(x)
    positive = rows > 0
    assert np.array_equal(run(library, real, lanes, "any", x, y), np.repeat(positive.any(1), lanes))
    assert np.array_equal(run(library, real, lanes, "all", x, y), np.repeat(positive.all(1), lanes))


@pytest.mark.parametrize("real", TYPES)
def test_digamma_is_the_derivative_of_lgamma(library, real):
    x = np.concatenate([np.linspace(0.05, 30.0, 200), -np.linspace(0.05, 9.95, 34)]).astype(TYPES[real])
    wanted = np.array([float(mpmath.digamma(mpmath.mpf(float(value)))) for value in x])
    tolerance = 1e-12 if real == "double" else 1e-6
    assert np.allclose(run(library, real, 4, "digamma", x), wanted, rtol=tolerance, atol=tolerance)
