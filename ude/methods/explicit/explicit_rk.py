"""Explicit Runge-Kutta methods: algorithm objects, each a frozen tableau."""

from __future__ import annotations

from dataclasses import dataclass, fields
from inspect import signature
from typing import Any, ClassVar, Self

from ude.errors import InputError
from ude.methods.tableau import ExplicitTableau, fractions, polynomial


@dataclass(frozen=True)
class Algorithm:
    """A method of integration: numbers and options, no loop inside. Engines execute it.

    Attributes:
        takes_mass_matrix: Whether it solves ``M u' = f`` with a regular M without forming ``M^-1 f``.
        solves_daes: Whether M may be singular, of index 1.
        reports_steps: Whether its accepted steps are known, so that they can be saved and made to hit given times.
    """

    takes_mass_matrix: ClassVar[bool] = False
    solves_daes: ClassVar[bool] = False
    reports_steps: ClassVar[bool] = True

    def __new__(cls, *values: Any, **options: Any) -> Self:
        known = (
            [parameter for parameter in signature(cls.__init__).parameters if parameter != "self"] if options else []
        )
        for name in options:
            if name not in known:
                raise InputError(
                    f"{cls.__name__} has no option {name!r}",
                    expected=f"one of {', '.join(known)}" if known else "no options",
                    fix="Tolerances and step sizes are arguments of solve: ude.solve(prob, alg, reltol=1e-6).",
                )
        if len(values) > (most := len(fields(cls))):
            raise InputError(f"{cls.__name__} takes at most {most} options", got=f"{len(values)}")
        return super().__new__(cls)

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class ExplicitRungeKutta(Algorithm):
    """Family of the explicit Runge-Kutta methods; every member is one `ExplicitTableau`."""

    tableau: ClassVar[ExplicitTableau]


_BS3 = ExplicitTableau(
    name="BS3",
    order=3,
    embedded_order=2,
    interpolant_order=3,
    c=fractions(0, "1/2", "3/4", 1),
    a=(fractions(), fractions("1/2"), fractions(0, "3/4"), fractions("2/9", "1/3", "4/9")),
    b=fractions("2/9", "1/3", "4/9", 0),
    b_error=fractions("-5/72", "1/12", "1/9", "-1/8"),
    # cubic Hermite through both ends, which the first-same-as-last stage makes free
    interpolant=(
        fractions(1, "-4/3", "5/9"),
        fractions(0, 1, "-2/3"),
        fractions(0, "4/3", "-8/9"),
        fractions(0, -1, 1),
    ),
)


class BS3(ExplicitRungeKutta):
    """Bogacki & Shampine's 3(2) pair; for tolerances looser than about 1e-3.

    Source: P. Bogacki & L. F. Shampine, Appl. Math. Lett. 2 (1989) 321.

    >>> BS3().tableau.order
    3
    """

    tableau = _BS3


_DP5 = ExplicitTableau(
    name="DP5",
    order=5,
    embedded_order=4,
    interpolant_order=4,
    c=fractions(0, "1/5", "3/10", "4/5", "8/9", 1, 1),
    a=(
        fractions(),
        fractions("1/5"),
        fractions("3/40", "9/40"),
        fractions("44/45", "-56/15", "32/9"),
        fractions("19372/6561", "-25360/2187", "64448/6561", "-212/729"),
        fractions("9017/3168", "-355/33", "46732/5247", "49/176", "-5103/18656"),
        fractions("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84"),
    ),
    b=fractions("35/384", 0, "500/1113", "125/192", "-2187/6784", "11/84", 0),
    b_error=fractions("71/57600", 0, "-71/16695", "71/1920", "-17253/339200", "22/525", "-1/40"),
    # Shampine's C1 interpolant of order 4 (Math. Comp. 46 (1986) 135), expanded to powers of theta
    interpolant=(
        fractions(1, "-8048581381/2820520608", "8663915743/2820520608", "-12715105075/11282082432"),
        fractions(0, 0, 0, 0),
        fractions(0, "131558114200/32700410799", "-68118460800/10900136933", "87487479700/32700410799"),
        fractions(0, "-1754552775/470086768", "14199869525/1410260304", "-10690763975/1880347072"),
        fractions(0, "127303824393/49829197408", "-318862633887/49829197408", "701980252875/199316789632"),
        fractions(0, "-282668133/205662961", "2019193451/616988883", "-1453857185/822651844"),
        fractions(0, "40617522/29380423", "-110615467/29380423", "69997945/29380423"),
    ),
)


class DP5(ExplicitRungeKutta):
    """Dormand & Prince's 5(4) pair, the `ode45` of old.

    Source: J. R. Dormand & P. J. Prince, J. Comput. Appl. Math. 6 (1980) 19.

    >>> DP5().tableau.first_same_as_last
    True
    """

    tableau = _DP5


_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
_TSIT5 = ExplicitTableau(
    name="Tsit5",
    order=5,
    embedded_order=4,
    interpolant_order=4,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B,
    ),
    b=(*_TSIT5_B, 0.0),
    b_error=(
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
    interpolant=(
        polynomial(-1.0530884977290216, (-1.3299890189751412, 1.0), (0.7139816917074209, -1.4364028541716351, 1.0)),
        polynomial(0.1017, (0.0, 1.0), (1.2949852507374631, -2.1966568338249754, 1.0)),
        polynomial(2.490627285651252793, (0.0, 1.0), (1.57803468208092486, -2.38535645472061657, 1.0)),
        polynomial(-16.54810288924490272, (0.0, 1.0), (-1.21712927295533244, 1.0), (-0.61620406037800089, 1.0)),
        polynomial(47.37952196281928122, (0.0, 1.0), (-1.203071208372362603, 1.0), (-0.658047292653547382, 1.0)),
        polynomial(-34.87065786149660974, (0.0, 1.0), (-1.2, 1.0), (-0.666666666666666667, 1.0)),
        polynomial(2.5, (0.0, 1.0), (-1.0, 1.0), (-0.6, 1.0)),
    ),
)


class Tsit5(ExplicitRungeKutta):
    """Tsitouras' 5(4) pair with its free interpolant of order 4; the default for non-stiff problems.

    Source: Ch. Tsitouras, Comput. Math. Appl. 62 (2011) 770.

    >>> Tsit5().name
    'Tsit5'
    """

    tableau = _TSIT5
