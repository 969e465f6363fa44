"""Rosenbrock methods: one matrix a step, no Newton iteration; algorithm objects, each a frozen tableau."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import sqrt
from typing import ClassVar

from ude.methods.explicit.explicit_rk import Algorithm
from ude.methods.linear_solvers import LU, LinearSolver
from ude.methods.tableau import Number

Rows = tuple[tuple[Number, ...], ...]


@dataclass(frozen=True)
class RosenbrockTableau:
    """A Rosenbrock method in the transformed variables that need no product with the Jacobian.

    One step from ``u`` at ``t`` with ``J = df/du`` and ``f_t = df/dt`` there::

        (I/(gamma dt) - J) U_i = f(u + sum_{j<i} a[i][j] U_j, p, t + alpha[i] dt) + sum_{j<i} c[i][j] U_j / dt
                                 + d[i] dt f_t
        u_next = u + sum_i b[i] U_i
        error  = sum_i b_error[i] U_i                           (u_next minus the embedded solution)
        u(t + theta dt) = u + sum_i U_i * sum_m interpolant[i][m] theta^(m+1)

    Args:
        a, c: Strictly lower triangular rows, row i of length i.
        alpha: Where in the step f is evaluated.
        d: Weight of the time derivative; the row sums of Gamma.

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, IV.7.
    """

    name: str
    order: int
    embedded_order: int
    interpolant_order: int
    gamma: Number
    alpha: tuple[Number, ...]
    d: tuple[Number, ...]
    a: Rows
    c: Rows
    b: tuple[Number, ...]
    b_error: tuple[Number, ...]
    interpolant: Rows

    def __post_init__(self) -> None:
        stages = len(self.b)
        counts = [len(part) for part in (self.alpha, self.d, self.a, self.c, self.b_error, self.interpolant)]
        triangular = all(len(row) == i for part in (self.a, self.c) for i, row in enumerate(part))
        if counts != [stages] * 6 or not triangular:
            raise ValueError(f"tableau {self.name} is not a Rosenbrock method of {stages} stages: got {counts}")

    @property
    def stages(self) -> int:
        return len(self.b)

    def gamma_matrix(self) -> list[list[Number]]:
        """Gamma = (I/gamma - C)^-1, lower triangular, as in ``k_i = f(..) + dt J sum_j Gamma_ij k_j``."""
        return _inverse(
            [[-entry for entry in row] + [1 / self.gamma] + [0] * (self.stages - i - 1) for i, row in enumerate(self.c)]
        )

    def weights(self, transformed: Sequence[Number]) -> list[Number]:
        """Weights of the untransformed stages k for weights of the U."""
        return _product([list(transformed)], self.gamma_matrix())[0]


def _inverse(lower: Sequence[Sequence[Number]]) -> list[list[Number]]:
    """Inverse of a lower triangular matrix by forward substitution, exact for fractions."""
    size = len(lower)
    result: list[list[Number]] = [[0] * size for _ in range(size)]
    for column in range(size):
        for i in range(column, size):
            known = sum((lower[i][j] * result[j][column] for j in range(column, i)), start=Fraction(0))
            result[i][column] = ((1 if i == column else 0) - known) / lower[i][i]
    return result


def _product(left: Sequence[Sequence[Number]], right: Sequence[Sequence[Number]]) -> list[list[Number]]:
    columns = list(zip(*right, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True)), start=0) for column in columns] for row in left]


@dataclass(frozen=True)
class RosenbrockMethod(Algorithm):
    """Family of the Rosenbrock methods; every member is one `RosenbrockTableau`.

    Args:
        linsolve: How the linear systems are solved: `LU()`, or `GMRES()` for many states.
    """

    linsolve: LinearSolver = LU()

    takes_mass_matrix: ClassVar[bool] = True
    solves_daes: ClassVar[bool] = True
    tableau: ClassVar[RosenbrockTableau]


def _lower(rows: Sequence[Sequence[Number]]) -> Rows:
    return tuple(tuple(row[:i]) for i, row in enumerate(rows))


def _decimals(*entries: str) -> tuple[Fraction, ...]:
    """Read published digits exactly, so that order conditions show rounding of the source and none of ours."""
    return tuple(Fraction(entry) for text in entries for entry in text.split())


def _rosenbrock23() -> RosenbrockTableau:
    """Shampine & Reichelt's three stages, written there with f-values on the right, brought to the common form."""
    d = 1 / (2 + sqrt(2))
    e32 = 6 + sqrt(2)
    gamma: list[list[Number]] = [[d, 0, 0], [-d, d, 0], [d * (e32 - 2), -d * e32, d]]
    alpha: list[list[Number]] = [[0, 0, 0], [0.5, 0, 0], [0, 1, 0]]
    inverse = _inverse(gamma)
    # u(theta) = u + dt (theta (1 - theta) k_1 + theta (theta - 2d) k_2) / (1 - 2d)
    slopes: list[list[Number]] = [[1 / (1 - 2 * d), -2 * d / (1 - 2 * d), 0], [-1 / (1 - 2 * d), 1 / (1 - 2 * d), 0]]
    return RosenbrockTableau(
        name="Rosenbrock23",
        order=2,
        embedded_order=3,
        interpolant_order=2,
        gamma=d,
        alpha=(0, 0.5, 1),
        d=tuple(sum(row) for row in gamma),
        a=_lower(_product(alpha, inverse)),
        c=_lower([[-entry for entry in row] for row in inverse]),
        b=tuple(_product([[0, 1, 0]], inverse)[0]),
        b_error=tuple(_product([[-1 / 6, 2 / 6, -1 / 6]], inverse)[0]),
        interpolant=tuple(zip(*_product(slopes, inverse), strict=True)),
    )


class Rosenbrock23(RosenbrockMethod):
    """Shampine & Reichelt's L-stable pair 2(3), the `ode23s` of old; for loose tolerances and noisy right-hand sides.

    Source: L. F. Shampine & M. W. Reichelt, SIAM J. Sci. Comput. 18 (1997) 1.

    >>> Rosenbrock23().tableau.order
    2
    """

    tableau = _rosenbrock23()


def _stiffly_accurate(
    name: str,
    order: int,
    gamma: Fraction,
    nodes: tuple[tuple[Fraction, ...], tuple[Fraction, ...]],
    rows: tuple[Rows, Rows],
    dense: Rows,
) -> RosenbrockTableau:
    """Complete a method of the RODAS kind: the last stages are the embedded and the new solution.

    `dense` are the rows h_1, h_2, ... of
    ``u(theta) = (1-theta) u + theta (u_next + (1-theta) (H_1 + theta (H_2 + theta H_3)))``, ``H_m = sum_i h_m[i] U_i``.
    """
    a, c = rows
    b = (*a[-1], Fraction(1))
    powers = [list(b)] + [[Fraction(0)] * len(b) for _ in dense]
    for m, row in enumerate(dense):
        # theta^(m+1) (1 - theta) = theta^(m+1) - theta^(m+2)
        for i, entry in enumerate(row):
            powers[m][i] += entry
            powers[m + 1][i] -= entry
    return RosenbrockTableau(
        name=name,
        order=order,
        embedded_order=order - 1,
        interpolant_order=order - 1,
        gamma=gamma,
        alpha=nodes[0],
        d=nodes[1],
        a=a,
        c=c,
        b=b,
        b_error=(Fraction(0),) * (len(b) - 1) + (Fraction(1),),
        interpolant=tuple(zip(*powers, strict=True)),
    )


_RODAS4_A5 = _decimals("1.221224509226641 6.019134481288629 12.53708332932087 -0.6878860361058950")


class Rodas4(RosenbrockMethod):
    """Hairer & Wanner's L-stable, stiffly accurate pair 4(3) of six stages (RODAS).

    Source: E. Hairer & G. Wanner, Solving Ordinary Differential Equations II, VI.4.

    >>> Rodas4().tableau.gamma
    Fraction(1, 4)
    """

    tableau = _stiffly_accurate(
        "Rodas4",
        4,
        Fraction(1, 4),
        (_decimals("0 0.386 0.21 0.63 1 1"), _decimals("0.25 -0.1043 0.1035 -0.0362 0 0")),
        (
            (
                (),
                _decimals("1.544"),
                _decimals("0.9466785280815826 0.2557011698983284"),
                _decimals("3.314825187068521 2.896124015972201 0.9986419139977817"),
                _RODAS4_A5,
                (*_RODAS4_A5, Fraction(1)),
            ),
            (
                (),
                _decimals("-5.6688"),
                _decimals("-2.430093356833875 -0.2063599157091915"),
                _decimals("-0.1073529058151375 -9.594562251023355 -20.47028614809616"),
                _decimals("7.496443313967647 -10.24680431464352 -33.99990352819905 11.70890893206160"),
                _decimals(
                    "8.083246795921522 -7.981132988064893 -31.52159432874371 16.31930543123136 -6.058818238834054"
                ),
            ),
        ),
        (
            _decimals("10.12623508344586 -7.487995877610167 -34.80091861555747 -7.992771707568823 1.025137723295662 0"),
            _decimals("-0.6762803392801253 6.087714651680015 16.43084320892478 24.76722511418386 -6.594389125716872 0"),
        ),
    )


_RODAS5P_A6 = _decimals("-7.502846399306121 2.561846144803919 -11.627539656261098 -0.18268767659942256")
_RODAS5P_A6 = (*_RODAS5P_A6, Fraction("0.030198172008377946"))


class Rodas5P(RosenbrockMethod):
    """Steinebach's L-stable, stiffly accurate pair 5(4) of eight stages, without order reduction on linear problems.

    The method for stiff problems at tight tolerances.

    Source: G. Steinebach, BIT 63 (2023) 27.

    >>> Rodas5P().tableau.stages
    8
    """

    tableau = _stiffly_accurate(
        "Rodas5P",
        5,
        Fraction("0.21193756319429014"),
        (
            _decimals("0 0.6358126895828704 0.4095798393397535 0.9769306725060716 0.4288403609558664 1 1 1"),
            _decimals(
                "0.21193756319429014 -0.42387512638858027 -0.3384627126235924 1.8046452872882734"
                " 2.325825639765069 0 0 0"
            ),
        ),
        (
            (
                (),
                _decimals("3"),
                _decimals("2.849394379747939 0.45842242204463923"),
                _decimals("-6.954028509809101 2.489845061869568 -10.358996098473584"),
                _decimals("2.8029986275628964 0.5072464736228206 -0.3988312541770524 -0.04721187230404641"),
                _RODAS5P_A6,
                (*_RODAS5P_A6, Fraction(1)),
                (*_RODAS5P_A6, Fraction(1), Fraction(1)),
            ),
            (
                (),
                _decimals("-14.155112264123755"),
                _decimals("-17.97296035885952 -2.859693295451294"),
                _decimals("147.12150275711716 -1.41221402718213 71.68940251302358"),
                _decimals("165.43517024871676 -0.4592823456491126 42.90938336958603 -5.961986721573306"),
                _decimals(
                    "24.854864614690072 -3.0009227002832186 47.4931110020768 5.5814197821558125 -0.6610691825249471"
                ),
                _decimals(
                    "30.91273214028599 -3.1208243349937974 77.79954646070892 34.28646028294783"
                    " -19.097331116725623 -28.087943162872662"
                ),
                _decimals(
                    "37.80277123390563 -3.2571969029072276 112.26918849496327 66.9347231244047"
                    " -40.06618937091002 -54.66780262877968 -9.48861652309627"
                ),
            ),
        ),
        (
            _decimals(
                "25.948786856663858 -2.5579724845846235 10.433815404888879 -2.3679251022685204"
                " 0.524948541321073 1.1241088310450404 0.4272876194431874 -0.17202221070155493"
            ),
            _decimals(
                "-9.91568850695171 -0.9689944594115154 3.0438037242978453 -24.495224566215796"
                " 20.176138334709044 15.98066361424651 -6.789040303419874 -6.710236069923372"
            ),
            _decimals(
                "11.419903575922262 2.8879645146136994 72.92137995996029 80.12511834622643"
                " -52.072871366152654 -59.78993625266729 -0.15582684282751913 4.883087185713722"
            ),
        ),
    )
