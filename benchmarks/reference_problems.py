"""Initial value problems with published end values, by which solvers are judged.

``get("pleiades")`` gives a problem, its end values and their source; ``names()`` lists all. The Toronto DETEST problems
of classes A, B and C, the three-body orbit of Arenstorf and the Pleiades are not stiff; the others are.

>>> pleiades = reference_problems.get("pleiades")
>>> pleiades.problem.u0.shape
torch.Size([28])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ude.errors import InputError
from ude.problems.function import ODEFunction
from ude.problems.ode import ODEProblem

_DETEST = "W. H. Enright & J. D. Pryce, ACM TOMS 13 (1987) 1 (non-stiff DETEST, Algorithm 648)"
_IVP = "F. Mazzia & C. Magherini, Test Set for Initial Value Problem Solvers, release 2.4 (2008)"


@dataclass(frozen=True, eq=False)
class ReferenceProblem:
    """A problem with its published solution at the end of the span.

    Args:
        name: As asked for.
        problem: One trajectory, float64.
        end_values: ``u(tspan[1])``.
        stiff: Whether it needs an implicit method.
        source: Of the equations and of the end values.
        digits: How many digits of the end values are confirmed, of the largest component: by SciPy, of DAEs by our
            own Rodas5P.
        scale: What errors are measured by. Non-stiff problems: the larger of the states at both ends, at least a
            thousandth of the largest one. Stiff problems: the end values themselves, since stiff chemistry is about
            orders of magnitude; where one is zero, the largest value on the way.
    """

    name: str
    problem: ODEProblem
    end_values: Float[Tensor, "state"]
    stiff: bool
    source: str
    digits: int
    scale: Float[Tensor, "state"]

    def error(self, u: Float[Tensor, "*batch state"]) -> Float[Tensor, "*batch"]:
        """Largest error of a state at the end of the span, each measured by its scale."""
        return ((u - self.end_values.to(u)).abs() / self.scale.to(u)).amax(-1)


@dataclass(frozen=True)
class _Entry:
    f: Callable[[Tensor, Any, Tensor], Tensor]
    u0: Sequence[float]
    tspan: tuple[float, float]
    end: Sequence[float]
    stiff: bool = False
    source: str = _DETEST
    digits: int = 13
    p: dict[str, Any] | None = None
    names: str | None = None
    mass: Sequence[float] | None = None
    scale: Sequence[float] | None = None


_ENTRIES: dict[str, Callable[[], _Entry]] = {}


def names(*, stiff: bool | None = None) -> tuple[str, ...]:
    """Names of all reference problems, or of the stiff or non-stiff ones."""
    return tuple(name for name, entry in _ENTRIES.items() if stiff is None or entry().stiff == stiff)


def get(name: str) -> ReferenceProblem:
    """Build a reference problem.

    Raises:
        InputError: There is none of that name.

    >>> get("pleiades").problem.u0.shape
    torch.Size([28])
    """
    key = name.lower()
    if key not in _ENTRIES:
        raise InputError("no such reference problem", expected=f"one of {', '.join(_ENTRIES)}", got=repr(name))
    entry = _ENTRIES[key]()
    u0 = torch.tensor(list(entry.u0), dtype=torch.float64)
    f = entry.f if entry.mass is None else ODEFunction(entry.f, torch.diag(u0.new_tensor(list(entry.mass))))
    problem = ODEProblem(f, u0, entry.tspan, entry.p, _state_names(entry))
    end = torch.tensor(list(entry.end), dtype=torch.float64)
    if entry.scale is not None:
        scale = torch.tensor(list(entry.scale), dtype=torch.float64)
    elif entry.stiff:
        scale = end.abs()
    else:
        size = torch.maximum(end.abs(), problem.u0.abs())
        scale = size.clamp(min=1e-3 * float(size.max()))
    return ReferenceProblem(key, problem, end, entry.stiff, entry.source, entry.digits, scale)


def _state_names(entry: _Entry) -> str:
    return entry.names or ", ".join(f"y{i + 1}" for i in range(len(entry.u0)))


def _register(name: str) -> Callable[[Callable[[], _Entry]], Callable[[], _Entry]]:
    def keep(build: Callable[[], _Entry]) -> Callable[[], _Entry]:
        _ENTRIES[name] = build
        return build

    return keep


def _column(t: Tensor) -> Tensor:
    """A time that multiplies a state (*batch, state)."""
    return t.unsqueeze(-1)


# --- DETEST class A: single equations -------------------------------------------------------------------------------


@_register("a1")
def _a1() -> _Entry:
    """Decay; u = exp(-t)."""
    return _Entry(lambda u, p, t: -u, [1.0], (0.0, 20.0), [math.exp(-20.0)], digits=16)


@_register("a2")
def _a2() -> _Entry:
    """A special case of the Riccati equation; u = 1/sqrt(t + 1)."""
    return _Entry(lambda u, p, t: -(u**3) / 2, [1.0], (0.0, 20.0), [1 / math.sqrt(21.0)], digits=16)


@_register("a3")
def _a3() -> _Entry:
    """An oscillation; u = exp(sin t)."""
    return _Entry(lambda u, p, t: u * torch.cos(_column(t)), [1.0], (0.0, 20.0), [math.exp(math.sin(20.0))], digits=16)


@_register("a4")
def _a4() -> _Entry:
    """The logistic curve; u = 20 / (1 + 19 exp(-t/4))."""
    exact = 20 / (1 + 19 * math.exp(-5.0))
    return _Entry(lambda u, p, t: u / 4 * (1 - u / 20), [1.0], (0.0, 20.0), [exact], digits=16)


@_register("a5")
def _a5() -> _Entry:
    """A spiral curve."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        return (u - _column(t)) / (u + _column(t))

    return _Entry(f, [4.0], (0.0, 20.0), [-0.7887826688964196], digits=12)


# --- DETEST class B: small systems ----------------------------------------------------------------------------------


@_register("b1")
def _b1() -> _Entry:
    """Two conflicting populations (Lotka & Volterra)."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        prey, predator = u.unbind(-1)
        return torch.stack([2 * (prey - prey * predator), prey * predator - predator], -1)

    return _Entry(f, [1.0, 3.0], (0.0, 20.0), [0.6761876008576667, 0.1860816099640036])


@_register("b2")
def _b2() -> _Entry:
    """A linear chemical reaction."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c = u.unbind(-1)
        return torch.stack([b - a, a - 2 * b + c, b - c], -1)

    return _Entry(f, [2.0, 0.0, 1.0], (0.0, 20.0), [1.000000001030576, 1.0, 0.9999999989694235])


@_register("b3")
def _b3() -> _Entry:
    """A nonlinear chemical reaction."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, _ = u.unbind(-1)
        return torch.stack([-a, a - b**2, b**2], -1)

    return _Entry(f, [1.0, 0.0, 0.0], (0.0, 20.0), [math.exp(-20.0), 0.05257228022048349, 0.947427717718363])


@_register("b4")
def _b4() -> _Entry:
    """The integral surface of a torus."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y, z = u.unbind(-1)
        r = torch.sqrt(x**2 + y**2)
        return torch.stack([-y - x * z / r, x - y * z / r, x / r], -1)

    return _Entry(
        f, [3.0, 0.0, 0.0], (0.0, 20.0), [0.9826950928005993, 2.198447081694832, 0.9129452507276399], digits=12
    )


@_register("b5")
def _b5() -> _Entry:
    """Euler's equations of a rigid body without forces."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y, z = u.unbind(-1)
        return torch.stack([y * z, -x * z, -0.51 * x * y], -1)

    return _Entry(f, [0.0, 1.0, 1.0], (0.0, 20.0), [-0.9396570798729192, -0.3421177754000779, 0.7414126596199957])


# --- DETEST class C: moderate systems -------------------------------------------------------------------------------


def _chain(rates: Sequence[float]) -> Callable[[Tensor, Any, Tensor], Tensor]:
    """Each state decays at its rate into the next one; the last is stable."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        flow = u[..., :-1] * u.new_tensor(rates)
        nothing = torch.zeros_like(u[..., :1])
        return torch.cat([nothing, flow], -1) - torch.cat([flow, nothing], -1)

    return f


@_register("c1")
def _c1() -> _Entry:
    """A radioactive decay chain of equal rates; u_k = exp(-t) t^k / k!."""
    end = [math.exp(-20.0) * 20.0**k / math.factorial(k) for k in range(9)]
    return _Entry(_chain([1.0] * 9), [1.0] + [0.0] * 9, (0.0, 20.0), [*end, 1 - math.fsum(end)], digits=15)


@_register("c2")
def _c2() -> _Entry:
    """A decay chain of growing rates; u_k = exp(-t) (1 - exp(-t))^k."""
    end = [math.exp(-20.0) * (1 - math.exp(-20.0)) ** k for k in range(9)]
    rates = [float(k) for k in range(1, 10)]
    return _Entry(_chain(rates), [1.0] + [0.0] * 9, (0.0, 20.0), [*end, 1 - math.fsum(end)], digits=15)


def _diffusion(u: Tensor, p: Any, t: Tensor) -> Tensor:
    """Second differences with zeros beyond both ends."""
    nothing = torch.zeros_like(u[..., :1])
    return torch.cat([nothing, u[..., :-1]], -1) - 2 * u + torch.cat([u[..., 1:], nothing], -1)


def _diffused(count: int) -> list[float]:
    """Exact solution at t = 20 from 1 in the first cell, by the sine modes of the second difference."""
    size = count + 1
    modes = [math.pi * m / size for m in range(1, size)]
    return [
        2 / size * math.fsum(math.sin(w) * math.sin(j * w) * math.exp(-80.0 * math.sin(w / 2) ** 2) for w in modes)
        for j in range(1, size)
    ]


@_register("c3")
def _c3() -> _Entry:
    """The heat equation by the method of lines, 10 points."""
    return _Entry(_diffusion, [1.0] + [0.0] * 9, (0.0, 20.0), _diffused(10), digits=15)


@_register("c4")
def _c4() -> _Entry:
    """The heat equation by the method of lines, 51 points."""
    return _Entry(_diffusion, [1.0] + [0.0] * 50, (0.0, 20.0), _diffused(51), digits=15)


@_register("c5")
def _c5() -> _Entry:
    """The sun and the five outer planets, Jupiter to Pluto, in heliocentric coordinates."""
    gravity, sun = 2.95912208286, 1.00000597682
    masses = [0.000954786104043, 0.000285583733151, 4.37273164546e-05, 5.17759138449e-05, 2.77777777778e-06]

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        place, speed = (half.unflatten(-1, (5, 3)) for half in u.chunk(2, dim=-1))
        mass = u.new_tensor(masses).unsqueeze(-1)
        to_sun = place / (place**2).sum(-1, keepdim=True) ** 1.5
        apart = place.unsqueeze(-3) - place.unsqueeze(-2)
        distance = (apart**2).sum(-1, keepdim=True) + torch.eye(5, dtype=u.dtype, device=u.device).unsqueeze(-1)
        # the diagonal is zero over one; the sun falls towards every planet too, which moves the origin
        pulled = (mass * apart / distance**1.5).sum(-2) - (mass * to_sun).sum(-2, keepdim=True)
        return torch.cat([speed.flatten(-2), (gravity * (pulled - sun * to_sun)).flatten(-2)], -1)

    u0 = [
        *(3.42947415189, 3.35386959711, 1.35494901715, 6.6414554255, 5.97156957878, 2.18231499728),
        *(11.2630437207, 14.6952576794, 6.27960525067, -30.1552268759, 1.65699966404, 1.43785752721),
        *(-21.123835338, 28.4465098142, 15.3882659679),
        *(-0.557160570446, 0.505696783289, 0.230578543901, -0.415570776342, 0.365682722812, 0.169143213293),
        *(-0.325325669158, 0.189706021964, 0.087726532278, -0.024047625417, -0.287659532608, -0.117219543175),
        *(-0.176860753121, -0.216393453025, -0.014864789309),
    ]
    end = [
        *(-4.792730224323733, -2.420550725448973, -0.9212509306014885),
        *(-4.217310404035213, 7.35620294749897, 3.223785985421212),
        *(4.03555944326227, 17.19865528670555, 7.478910794233703),
        *(-29.98759326324844, -4.107310937550929, -0.9277008321754407),
        *(-24.42125302518482, 23.81459045746554, 14.92096306951359),
        *(0.3499208963063806, -0.5748487687912825, -0.2551694020879149),
        *(-0.5237040978903326, -0.2493000463579661, -0.08045341642044464),
        *(-0.387528923733411, 0.05648603288767891, 0.03023606472143342),
        *(0.04133856546712445, -0.2862393029841379, -0.1183032405136207),
        *(-0.1511986457359206, -0.2460068894318766, -0.03189687411323877),
    ]
    return _Entry(f, u0, (0.0, 20.0), end)


# --- celestial mechanics --------------------------------------------------------------------------------------------


@_register("arenstorf")
def _arenstorf() -> _Entry:
    """A closed orbit around the earth and the moon, which repeats after one period."""
    moon = 0.012277471

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y, vx, vy = u.unbind(-1)
        earth = 1 - moon
        d1 = ((x + moon) ** 2 + y**2) ** 1.5
        d2 = ((x - earth) ** 2 + y**2) ** 1.5
        ax = x + 2 * vy - earth * (x + moon) / d1 - moon * (x - earth) / d2
        ay = y - 2 * vx - earth * y / d1 - moon * y / d2
        return torch.stack([vx, vy, ax, ay], -1)

    start = [0.994, 0.0, 0.0, -2.00158510637908252240537862224]
    source = "R. F. Arenstorf, Amer. J. Math. 85 (1963) 27; Hairer, Norsett & Wanner, Solving ODEs I, II.0"
    # in 34-digit arithmetic the orbit closes to 1e-17; a start rounded to double moves the end by 1e-11, and errors of
    # the first steps grow a hundred thousand times
    return _Entry(f, start, (0.0, 17.0652165601579625588917206249), start, source=source, digits=11)


@_register("pleiades")
def _pleiades() -> _Entry:
    """Seven stars of masses 1 to 7 in the plane, with several near collisions; x, y, x', y' of all stars."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        x, y, vx, vy = u.unflatten(-1, (4, 7)).unbind(-2)
        mass = torch.arange(1, 8, dtype=u.dtype, device=u.device)
        dx, dy = x.unsqueeze(-2) - x.unsqueeze(-1), y.unsqueeze(-2) - y.unsqueeze(-1)
        # the diagonal is zero over one
        cube = (dx**2 + dy**2 + torch.eye(7, dtype=u.dtype, device=u.device)) ** 1.5
        return torch.cat([vx, vy, (mass * dx / cube).sum(-1), (mass * dy / cube).sum(-1)], -1)

    u0 = [
        *(3.0, 3.0, -1.0, -3.0, 2.0, -2.0, 2.0),
        *(3.0, -3.0, 2.0, 0.0, 0.0, -4.0, 4.0),
        *(0.0, 0.0, 0.0, 0.0, 0.0, 1.75, -1.5),
        *(0.0, 0.0, 0.0, -1.25, 1.0, 0.0, 0.0),
    ]
    end = [
        *(0.3706139143970502, 3.237284092057233, -3.222559032418324, 0.6597091455775310),
        *(0.3425581707156584, 1.562172101400631, -0.7003092922212495),
        *(-3.943437585517392, -3.271380973972550, 5.225081843456543, -2.590612434977470),
        *(1.198213693392275, -0.2429682344935824, 1.091449240428980),
        *(3.417003806314313, 1.354584501625501, -2.590065597810775, 2.025053734714242),
        *(-1.155815100160448, -0.8072988170223021, 0.5952396354208710),
        *(-3.741244961234010, 0.3773459685750630, 0.9386858869551073, 0.3667922227200571),
        *(-0.3474046353808490, 2.344915448180937, -1.947020434263292),
    ]
    return _Entry(f, u0, (0.0, 3.0), end, source=_IVP, digits=11)


# --- stiff ----------------------------------------------------------------------------------------------------------


@_register("vdpol")
def _vdpol() -> _Entry:
    """Van der Pol's oscillator, mu = 1000."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        y, v = u.unbind(-1)
        return torch.stack([v, p.mu * (1 - y**2) * v - y], -1)

    end = [1.706167732170469, -0.0008928097010248125]
    return _Entry(f, [2.0, 0.0], (0.0, 2000.0), end, stiff=True, source=_IVP, p={"mu": 1000.0})


@_register("rober")
def _rober() -> _Entry:
    """Robertson's chemical reaction over eleven decades of time."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c = u.unbind(-1)
        made, turned, back = p.k1 * a, p.k2 * b**2, p.k3 * b * c
        return torch.stack([back - made, made - turned - back, turned], -1)

    end = [2.083340149701255e-08, 8.333360770334713e-14, 0.999999979166505]
    p = {"k1": 0.04, "k2": 3e7, "k3": 1e4}
    return _Entry(f, [1.0, 0.0, 0.0], (0.0, 1e11), end, stiff=True, source=_IVP, digits=8, p=p)


@_register("rober_dae")
def _rober_dae() -> _Entry:
    """Robertson's reaction with the conservation of mass in the place of its last equation: a DAE of index 1."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c = u.unbind(-1)
        made, turned, back = p.k1 * a, p.k2 * b**2, p.k3 * b * c
        return torch.stack([back - made, made - turned - back, a + b + c - 1], -1)

    end = [2.083340149701255e-08, 8.333360770334713e-14, 0.999999979166505]
    p = {"k1": 0.04, "k2": 3e7, "k3": 1e4}
    mass = [1.0, 1.0, 0.0]
    return _Entry(f, [1.0, 0.0, 0.0], (0.0, 1e11), end, stiff=True, source=_IVP, digits=8, p=p, mass=mass)


@_register("chemakzo")
def _chemakzo() -> _Entry:
    """A chemical process of Akzo Nobel, 6 species, one of them in equilibrium with others: a DAE of index 1."""
    k1, k2, k3, k4, equilibrium = 18.7, 0.58, 0.09, 0.42, 34.4
    transfer, solubility, pressure, henry = 3.3, 115.83, 0.9, 737.0

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c, d, e, g = u.unbind(-1)
        # a root has no slope at zero, and Newton's iteration may look there
        root = torch.sqrt(b.clamp(min=1e-300))
        r1, r2, r3 = k1 * a**4 * root, k2 * c * d, k2 / equilibrium * a * e
        r4, r5 = k3 * a * d**2, k4 * g**2 * root
        inflow = transfer * (pressure / henry - b)
        return torch.stack(
            [
                -2 * r1 + r2 - r3 - r4,
                -0.5 * r1 - r4 - 0.5 * r5 + inflow,
                r1 - r2 + r3,
                -r2 + r3 - 2 * r4,
                r2 - r3 + r5,
                solubility * a * d - g,
            ],
            -1,
        )

    end = [
        *(0.1150794920661702, 0.1203831471567715e-2, 0.1611562887407974),
        *(0.3656156421249283e-3, 0.1708010885264404e-1, 0.4873531310307455e-2),
    ]
    u0 = [0.444, 0.00123, 0.0, 0.007, 0.0, solubility * 0.444 * 0.007]
    mass = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    return _Entry(f, u0, (0.0, 180.0), end, stiff=True, source=_IVP, digits=13, mass=mass)


@_register("hires")
def _hires() -> _Entry:
    """High irradiance responses of photomorphogenesis, 8 species."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c, d, e, g, h, q = u.unbind(-1)
        bound = 280.0 * g * q
        return torch.stack(
            [
                -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
                1.71 * a - 8.75 * b,
                -10.03 * c + 0.43 * d + 0.035 * e,
                8.32 * b + 1.71 * c - 1.12 * d,
                -1.745 * e + 0.43 * (g + h),
                -bound + 0.69 * d + 1.71 * e - 0.43 * g + 0.69 * h,
                bound - 1.81 * h,
                -bound + 1.81 * h,
            ],
            -1,
        )

    end = [
        *(0.0007371312573325668, 0.0001442485726316185, 5.888729740967575e-05, 0.001175651343283149),
        *(0.002386356198831331, 0.006238968252742796, 0.002849998395185769, 0.002850001604814231),
    ]
    u0 = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057]
    return _Entry(f, u0, (0.0, 321.8122), end, stiff=True, source=_IVP, digits=12)


@_register("orego")
def _orego() -> _Entry:
    """The Oregonator, a model of the Belousov-Zhabotinskii reaction."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        a, b, c = u.unbind(-1)
        return torch.stack(
            [77.27 * (b + a * (1 - 8.375e-6 * a - b)), (c - (1 + a) * b) / 77.27, 0.161 * (a - c)],
            -1,
        )

    end = [1.000814870318523, 1228.178521549917, 132.0554942846706]
    return _Entry(f, [1.0, 2.0, 3.0], (0.0, 360.0), end, stiff=True, source=_IVP, digits=9)


_POLLU_RATES = (
    *(0.35, 26.6, 1.23e4, 8.6e-4, 8.2e-4, 1.5e4, 1.3e-4, 2.4e4, 1.65e4, 9e3, 0.022, 1.2e4, 1.88),
    *(1.63e4, 4.8e6, 3.5e-4, 0.0175, 1e8, 4.44e11, 1240.0, 2.1, 5.78, 0.0474, 1780.0, 3.12),
)


@_register("pollu")
def _pollu() -> _Entry:
    """Air pollution: 25 reactions of 20 species."""

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        y = dict(enumerate(u.unbind(-1), start=1))
        second = {2: (2, 4), 3: (5, 2), 6: (7, 6), 8: (9, 6), 9: (11, 2), 10: (11, 1), 12: (10, 2), 14: (1, 6)}
        second |= {20: (17, 6), 23: (1, 4), 24: (19, 1)}
        first = {1: 1, 4: 7, 5: 7, 7: 9, 11: 13, 13: 14, 15: 3, 16: 4, 17: 4, 18: 16, 19: 16, 21: 19, 22: 19, 25: 20}
        r = {i: _POLLU_RATES[i - 1] * y[species] for i, species in first.items()}
        r |= {i: _POLLU_RATES[i - 1] * y[one] * y[other] for i, (one, other) in second.items()}
        return torch.stack(
            [
                r[2] + r[3] + r[9] + r[11] + r[12] + r[22] + r[25] - r[1] - r[10] - r[14] - r[23] - r[24],
                r[1] + r[21] - r[2] - r[3] - r[9] - r[12],
                r[1] + r[17] + r[19] + r[22] - r[15],
                r[15] - r[2] - r[16] - r[17] - r[23],
                2 * r[4] + r[6] + r[7] + r[13] + r[20] - r[3],
                r[3] + 2 * r[18] - r[6] - r[8] - r[14] - r[20],
                r[13] - r[4] - r[5] - r[6],
                r[4] + r[5] + r[6] + r[7],
                -r[7] - r[8],
                r[7] + r[9] - r[12],
                r[8] + r[11] - r[9] - r[10],
                r[9],
                r[10] - r[11],
                r[12] - r[13],
                r[14],
                r[16] - r[18] - r[19],
                -r[20],
                r[20],
                r[23] + r[25] - r[21] - r[22] - r[24],
                r[24] - r[25],
            ],
            -1,
        )

    start = {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}
    end = [
        *(5.646255480022769e-2, 0.1342484130422339, 4.139734331099427e-9, 5.523140207484359e-3),
        *(2.018977262302196e-7, 1.464541863493966e-7, 7.784249118997964e-2, 0.3245075353396018),
        *(7.494013383880406e-3, 1.622293157301561e-8, 1.135863833257075e-8, 2.230505975721359e-3),
        *(2.087162882798630e-4, 1.396921016840158e-5, 8.964884856898295e-3, 4.352846369330103e-18),
        *(6.899219696263405e-3, 1.007803037365946e-4, 1.772146513969984e-6, 5.682943292316392e-5),
    ]
    u0 = [start.get(i, 0.0) for i in range(1, 21)]
    return _Entry(f, u0, (0.0, 60.0), end, stiff=True, source=_IVP, digits=11)


@_register("e5")
def _e5() -> _Entry:
    """A pyrolysis over thirteen decades of time, with species from 1e-3 down to 1e-23.

    The equations are published with a fourth species ``y2 = y3 + y4``, which is left out here: its equation keeps that
    sum only to rounding errors of its largest value, 1e-10, and those are a thousandth of the end values. The published
    end values (y2 = 8.8677e-23, y3 = 8.8548e-23) show it: y2 and y3 must be equal where y4 is zero. Without the fourth
    equation, SciPy's Radau at tolerances 1e-9 and 1e-11 ends at the same twelve digits.
    """
    a, b, c, m = 7.89e-10, 1.1e7, 1.13e3, 1e6

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        y1, y3, y4 = u.unbind(-1)
        made, bound, freed, spent = a * y1, b * y1 * y3, c * y4, m * c * (y3 + y4) * y3
        return torch.stack([-made - bound, made - bound + freed - spent, bound - freed], -1)

    end, largest = [0.0, 8.861233521288e-23, 0.0], [1.76e-3, 8.861233521288e-23, 1.4e-10]
    source = (
        "W. H. Enright, T. E. Hull & B. Lindberg, BIT 15 (1975) 10 (E5), to 1e13 as in E. Hairer & G. Wanner, Solving "
        "ODEs II, IV.10; end values computed"
    )
    u0 = [1.76e-3, 0.0, 0.0]
    return _Entry(f, u0, (0.0, 1e13), end, True, source, digits=11, names="y1, y3, y4", scale=largest)


@_register("ring_modulator")
def _ring_modulator() -> _Entry:
    """An electrical circuit that mixes a low and a high frequency: stiff and oscillating."""
    (c, cs, cp), (lh, ls1, ls2) = (1.6e-8, 2e-12, 1e-8), (4.45, 0.002, 5e-4)
    r, rp, rg1, rg2, ri, rc = 25000.0, 50.0, 36.3, 17.3, 50.0, 600.0

    def diode(voltage: Tensor) -> Tensor:
        return 40.67286402e-9 * torch.expm1(17.7493332 * voltage)

    def f(u: Tensor, p: Any, t: Tensor) -> Tensor:
        u1, u2, u3, u4, u5, u6, u7, i1, i2, i3, i4, i5, i6, i7, i8 = u.unbind(-1)
        low, high = 0.5 * torch.sin(2000 * math.pi * t), 2 * torch.sin(20000 * math.pi * t)
        q1, q2 = diode(u3 - u5 - u7 - high), diode(u6 - u4 - u7 - high)
        q3, q4 = diode(u4 + u5 + u7 + high), diode(u7 - u3 - u6 + high)
        return torch.stack(
            [
                (i1 - i3 / 2 + i4 / 2 + i7 - u1 / r) / c,
                (i2 - i5 / 2 + i6 / 2 + i8 - u2 / r) / c,
                (i3 - q1 + q4) / cs,
                (q2 - q3 - i4) / cs,
                (i5 + q1 - q3) / cs,
                (q4 - q2 - i6) / cs,
                (q1 + q2 - q3 - q4 - u7 / rp) / cp,
                -u1 / lh,
                -u2 / lh,
                (u1 / 2 - u3 - rg2 * i3) / ls2,
                (u4 - u1 / 2 - rg2 * i4) / ls2,
                (u2 / 2 - u5 - rg2 * i5) / ls2,
                (u6 - u2 / 2 - rg2 * i6) / ls2,
                (low - u1 - (ri + rg1) * i7) / ls1,
                (-u2 - (rc + rg1) * i8) / ls1,
            ],
            -1,
        )

    end = [
        *(-0.02339057358486745, -0.007367485485540825, 0.2582956709291169, -0.4064465721283450),
        *(-0.4039455665149794, 0.2607966765422943, 0.1106761861269975, 2.939904342435596e-7),
        *(-2.840029933642329e-8, 7.267198267264553e-4, 7.929487196960840e-4, -7.255283495698965e-4),
        *(-7.941401968526521e-4, 7.088495416976114e-5, 2.390059075236570e-5),
    ]
    return _Entry(f, [0.0] * 15, (0.0, 1e-3), end, stiff=True, source=_IVP, digits=7)
