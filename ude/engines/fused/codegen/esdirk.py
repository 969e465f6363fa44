"""A singly diagonally implicit Runge-Kutta method as C: its stages, its dense output, and the reverse of a step.

The arithmetic that does not depend on the tableau is c/newton.h's; what is decided, and how, is as in the torch
engine's esdirk.py, so that both take the same steps.
"""

from __future__ import annotations

from typing import Any

import torch

from ude.engines.base import SolveSpec
from ude.engines.fused.codegen.explicit import interpolant, weighted
from ude.engines.fused.codegen.family import FusedFamily
from ude.engines.fused.codegen.texts import section, text_of
from ude.engines.torch.families.diagonally_implicit import tensors_of
from ude.methods import LU
from ude.methods.esdirk import DiagonallyImplicitRungeKutta, DiagonallyImplicitTableau
from ude.problems.ode import FlatRightHandSide
from ude.problems.split import SplitFunction

#: What bounds loops over states, where compilers should not unroll them.
ROWS = section("newton.h", "loops over rows")


class EsdirkFamily(FusedFamily):
    """A singly diagonally implicit method, whose linear systems are dense."""

    methods = DiagonallyImplicitRungeKutta
    kind = "implicit"
    # a dense LU of more states takes longer than anything that a kernel saves
    most_states = 256
    # the text of larger Jacobians would take compilers many seconds, and they are put together of pullbacks
    most_written_out = 12

    def why_not(self, spec: SolveSpec) -> str | None:
        divided = isinstance(spec.f, FlatRightHandSide) and isinstance(spec.f.f, SplitFunction)
        if self.algorithm.linsolve != LU() or divided:
            return "other linear solvers than LU, and split problems of implicit methods, are the torch engine's"
        return super().why_not(spec)

    def text(self, *, gradient: bool, rows: str) -> str:
        tableau = self.algorithm.tableau
        parts = [
            section("newton.h", "") + rows + section("newton.h", "factors and Newton's iteration"),
            _solve_stages(tableau),
            _attempt(self.algorithm),
            _settle(tableau),
            "static void read_step(Context *c, const v_t *u, v_t t, v_t h, v_t k[][STATES]) {",
            "    (void)c; (void)u; (void)t; (void)h; (void)k;\n}",
            interpolant(tableau.interpolant),
        ]
        if gradient:
            parts += [text_of("transposed.h"), _pull_row(tableau)]
        return "\n".join(parts)

    def macros(self, *, gradient: bool) -> dict[str, Any]:
        tableau = self.algorithm.tableau
        return {
            "STAGES": tableau.stages,
            "ALL_STAGES": tableau.stages,
            # the reverse sweep starts from the stages; the steps themselves need the first one only
            "KEPT_STAGES": tableau.stages if gradient else 1,
            "CARRIES": 1,
            "TWO_ERRORS": 0,
            "ERROR_ORDER": _error_order(tableau),
            "IMPLICIT": 1,
            "SWITCHES": 0,
            "GAMMA": repr(float(tableau.gamma)),
            "NEWTON_TOLERANCE": repr(float(self.algorithm.newton_tolerance)),
            "NEWTON_MAXITERS": self.algorithm.newton_maxiters,
        }


def _error_order(tableau: DiagonallyImplicitTableau) -> int:
    """The power of dt to which the estimated error behaves."""
    return min(tableau.order, tableau.embedded_order) + 1 if tableau.b_error else tableau.order


def _needed(tableau: DiagonallyImplicitTableau) -> tuple[bool, ...]:
    """Which stages the new state or the dense output need; the others serve the error estimate alone."""
    return tensors_of(tableau, torch.float64, torch.device("cpu")).needed


def _solve_stages(tableau: DiagonallyImplicitTableau) -> str:
    """Stages one after another; `all` includes those of the error estimate alone, `again` starts from k as it is."""
    numbers = tensors_of(tableau, torch.float64, torch.device("cpu"))
    lines = [
        "static void solve_stages(Context *c, Newton *w, const v_t *u, v_t t, v_t h, v_t k[][STATES], v_t *end,",
        "                         int all, int again) {",
        "    v_t base[STATES], z[STATES];",
        "    const v_t divisor = v_select(v_eq(w->step, v_splat(0)), v_splat(1), w->step);",
        "    const v_i every = v_eq(h - h, h - h) | ~v_eq(h - h, h - h);",
        "    v_i solved = every;",
    ]
    for i in range(1, tableau.stages):
        guess = weighted(numbers.predictor[i].tolist())
        inner = [
            f"for (int n = 0; n < ROWS; n++) base[n] = u[n] + h * ({weighted(tableau.a[i][:-1])});",
            f"for (int n = 0; n < ROWS; n++) z[n] = w->step * (again ? k[{i}][n] : {guess});",
            "if (again) w->converged = every;",
            f"newton_solve(c, w, base, t + (real){float(tableau.c[i])!r} * h, z);",
            "if (again) solved = v_le(w->size, v_splat((real)NEWTON_TOLERANCE));",
            f"for (int n = 0; n < ROWS; n++) k[{i}][n] = v_select(solved, z[n] / divisor, k[{i}][n]);",
        ]
        if i == tableau.end_stage:
            inner.append("for (int n = 0; n < ROWS; n++) end[n] = base[n] + z[n];")
        if numbers.needed[i]:
            lines += [f"    {line}" for line in inner]
        else:
            lines += ["    if (all) {", *(f"        {line}" for line in inner), "    } else if (!again)"]
            lines.append(f"        for (int n = 0; n < ROWS; n++) k[{i}][n] = v_splat(0);")
    return "\n".join([*lines, "}"])


def _attempt(algorithm: DiagonallyImplicitRungeKutta) -> str:
    tableau = algorithm.tableau
    lines = [
        "static void attempt(Context *c, Method *method, const Arguments *a, const State *s, v_t h, Trial *trial) {",
        "    const v_t step = h * (real)GAMMA;",
        "    Newton newton;",
        "    linearize(c, method, s, step);",
        "    newton_start(&newton, a, s->u, step, &method->factors, (real)NEWTON_TOLERANCE, NEWTON_MAXITERS);",
        "    for (int n = 0; n < ROWS; n++) trial->k[0][n] = s->k1[n];",
        f"    const int estimate = {'a->adaptive != 0' if tableau.b_error else '0'};",
        "    solve_stages(c, &newton, s->u, s->t, h, trial->k, trial->u, estimate, 0);",
    ]
    if tableau.b_error:
        error = weighted(tableau.b_error, "trial->k[{i}][n]")
        lines += [
            "    if (estimate) {",
            f"        for (int n = 0; n < ROWS; n++) trial->error[n] = h * ({error});",
            "        solve_linear(&method->factors, trial->error);",
            "    }",
        ]
    lines += [
        "    trial->converged = newton.converged;",
        "    trial->shrink = v_select(method->fresh, v_splat(SHRINK), v_splat(1));",
        "    method->seen = newton.rate;",
        "    method->calls += newton.calls;",
        "    method->wanted = ~newton.converged & ~method->fresh;",
    ]
    return "\n".join([*lines, "}"])


def _settle(tableau: DiagonallyImplicitTableau) -> str:
    """The derivative that the next step starts with is the last stage as its equation gave it, not f of the state."""
    return f"""static void settle(Context *c, Method *method, const State *s, v_t h, Trial *trial, v_i accept) {{
    for (int n = 0; n < ROWS; n++) trial->after[n] = trial->k[{tableau.end_stage}][n];
    method->fresh = method->fresh & ~accept;
    method->wanted = method->wanted | (accept & v_gt(method->seen, v_splat(GOOD_RATE)));
    (void)c; (void)s; (void)h;
}}"""


def _pull_row(tableau: DiagonallyImplicitTableau) -> str:
    """w_i = (I - gamma dt J_i)^-T kbar_i; xbar_i = J_i^T w_i, by the implicit function theorem at the solved stage."""
    lines = [
        "static void pull_row(Context *c, const Arguments *a, const Row *row, Way *way, v_t kbar[][STATES],",
        "                     v_t *through, int inside) {",
        "    const v_t *u = row->u, t = row->t, h = row->dt, step = h * (real)GAMMA, zero = v_splat(0);",
        "    const v_i moved = v_ne(h, zero);",
        "    v_t k[STAGES][STATES], y[STATES], of_y[STATES], time;",
        "    ROOMY v_t matrix[STATES * STATES];",
        "    ROOMY Factors factors;",
        "    memcpy(k, row->k, sizeof(k));",
        "    tighten(c, a, row, &factors, k);",
    ]
    for i, weight in enumerate(tableau.b):
        if weight:
            lines.append(
                f"    for (int n = 0; n < ROWS; n++) kbar[{i}][n] += h * ((real){float(weight)!r} * way->state[n]);"
            )
    end = tableau.end_stage
    lines += [
        f"    for (int n = 0; n < ROWS; n++) kbar[{end}][n] += v_select(moved, way->carry[n], zero);",
        "    for (int n = 0; n < ROWS; n++) way->state[n] += through[n];",
    ]
    needed = _needed(tableau)
    for i in reversed(range(1, tableau.stages)):
        if needed[i]:
            lines += _pull_stage(tableau, i)
    lines.append("    for (int n = 0; n < ROWS; n++) way->carry[n] = v_select(moved, kbar[0][n], way->carry[n]);")
    return "\n".join([*lines, "    (void)inside;", "}"])


def _pull_stage(tableau: DiagonallyImplicitTableau, i: int) -> list[str]:
    lines = [
        f"    for (int n = 0; n < ROWS; n++) y[n] = u[n] + h * ({weighted(tableau.a[i])});",
        f"    time = t + (real){float(tableau.c[i])!r} * h;",
        "    f_jacobian(c, y, &time, matrix);",
        "    factorize(matrix, step, &factors);",
        f"    solve_transposed(&factors, kbar[{i}]);",
        f"    for (int n = 0; n < ROWS; n++) kbar[{i}][n] = v_select(moved, kbar[{i}][n], zero);",
        f"    f_pull(c, y, &time, kbar[{i}], of_y);",
        "    for (int n = 0; n < ROWS; n++) {",
        "        of_y[n] = v_select(moved, of_y[n], zero);",
        "        way->state[n] += of_y[n];",
    ]
    for j, entry in enumerate(tableau.a[i][:-1]):
        if entry:
            lines.append(f"        kbar[{j}][n] += h * ((real){float(entry)!r} * of_y[n]);")
    return [*lines, "    }"]
