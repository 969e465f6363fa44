"""An explicit Runge-Kutta method as C: its stages, its dense output, and the reverse of a step, unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from ude.engines.fused.codegen.family import FusedFamily
from ude.methods import Algorithm, ExplicitRungeKutta, ExplicitTableau

_REMEMBERS_NOTHING = """typedef struct { int none; } Method;
static inline void method_start(Method *method, int lane) { (void)method; (void)lane; }"""


class ExplicitFamily(FusedFamily):
    """An explicit Runge-Kutta method, unrolled."""

    methods: ClassVar[type[Algorithm]] = ExplicitRungeKutta
    kind = "explicit"
    # of more states torch's own operations are as quick, and the vectors of a step outgrow the stack of a thread
    most_states = 4096

    @property
    def tableau(self) -> ExplicitTableau:
        """The explicit tableau."""
        tableau: ExplicitTableau = self.algorithm.tableau
        return tableau

    @property
    def remembers(self) -> str:
        """What the method keeps of its lanes from step to step."""
        return _REMEMBERS_NOTHING

    def text(self, *, gradient: bool, rows: str) -> str:
        tableau = self.tableau
        parts = [
            self.remembers,
            _attempt(tableau),
            _settle(tableau),
            _read_step(tableau),
            interpolant(tableau.interpolant),
        ]
        if gradient:
            parts.append(_pull_row(tableau))
        return "\n".join(parts)

    def macros(self, *, gradient: bool) -> dict[str, Any]:
        tableau = self.tableau
        return {
            "STAGES": tableau.stages,
            "ALL_STAGES": tableau.stages + len(tableau.extra_a),
            "KEPT_STAGES": tableau.stages,
            "CARRIES": int(tableau.first_same_as_last),
            "TWO_ERRORS": int(bool(tableau.b_error_low)),
            "ERROR_ORDER": tableau.order,
            "IMPLICIT": 0,
            "SWITCHES": int(self.switches),
        }

    def calls(self) -> tuple[int, int] | None:
        return self.tableau.stages - 1, int(not self.tableau.first_same_as_last)


def weighted(weights: Sequence[object], of: str = "k[{i}][n]") -> str:
    """``w0 * k[0][n] + ...`` without the zeros."""
    terms = [f"(real){float(w)!r} * {of.format(i=i)}" for i, w in enumerate(weights) if w]  # type: ignore[arg-type]
    return " + ".join(terms) or "v_splat(0)"


def _stage(tableau: ExplicitTableau, i: int) -> list[str]:
    c, row = tableau.all_c[i], tableau.all_a[i]
    return [
        f"    for (int n = 0; n < STATES; n++) y[n] = u[n] + h * ({weighted(row, 'k[{i}][n]')});",
        f"    time = t + (real){float(c)!r} * h;",
        f"    f(c, y, &time, k[{i}]);",
    ]


def _attempt(tableau: ExplicitTableau) -> str:
    lines = [
        "static void attempt(Context *c, Method *method, const Arguments *a, const State *s, v_t h, Trial *trial) {",
        "    const v_t *u = s->u, t = s->t;",
        "    v_t (*k)[STATES] = trial->k, y[STATES], time;",
        "    for (int n = 0; n < STATES; n++) k[0][n] = s->k1[n];",
    ]
    for i in range(1, tableau.stages):
        lines += _stage(tableau, i)
    if tableau.first_same_as_last:
        lines.append("    for (int n = 0; n < STATES; n++) trial->u[n] = y[n];")
    else:
        new = weighted(tableau.b, "k[{i}][n]")
        lines.append(f"    for (int n = 0; n < STATES; n++) trial->u[n] = u[n] + h * ({new});")
    for name, weights in (("error", tableau.b_error), ("error_low", tableau.b_error_low)):
        if weights:
            text = weighted(weights, "k[{i}][n]")
            lines.append(f"    for (int n = 0; n < STATES; n++) trial->{name}[n] = h * ({text});")
    return "\n".join([*lines, "    (void)method; (void)a;", "}"])


def _settle(tableau: ExplicitTableau) -> str:
    lines = [
        "static void settle(Context *c, Method *method, const State *s, v_t h, Trial *trial, v_i accept) {",
    ]
    if tableau.first_same_as_last:
        lines.append(f"    for (int n = 0; n < STATES; n++) trial->after[n] = trial->k[{tableau.stages - 1}][n];")
        lines.append("    (void)c; (void)s; (void)h;")
    else:
        lines += ["    const v_t time = s->t + h;", "    f(c, trial->u, &time, trial->after);"]
    return "\n".join([*lines, "    (void)method; (void)accept;", "}"])


def _read_step(tableau: ExplicitTableau) -> str:
    lines = ["static void read_step(Context *c, const v_t *u, v_t t, v_t h, v_t k[][STATES]) {"]
    if tableau.extra_a:
        lines.append("    v_t y[STATES], time;")
        for i in range(tableau.stages, tableau.stages + len(tableau.extra_a)):
            lines += _stage(tableau, i)
    return "\n".join([*lines, "    (void)c; (void)u; (void)t; (void)h; (void)k;", "}"])


def interpolant(rows: Sequence[Sequence[object]]) -> str:
    """``weights[i] = sum_m rows[i][m] theta^(m + 1)``."""
    lines = ["static inline void interpolant(real theta, real *weights) {"]
    for i, row in enumerate(rows):
        text = "0"
        for entry in reversed([float(x) for x in row]):  # type: ignore[arg-type]
            text = (
                f"(real){entry!r}"
                if text == "0" and entry
                else (f"((real){entry!r} + theta * {text})" if text != "0" else "0")
            )
        lines.append(f"    weights[{i}] = " + (f"theta * {text};" if text != "0" else "0;"))
    return "\n".join([*lines, "}"])


def _pull_row(tableau: ExplicitTableau) -> str:
    """k̄_i = dt (b_i λ + sum_{l > i} a_li Ȳ_l) + reads; Ȳ_i = J_iᵀ k̄_i (Hairer, Norsett & Wanner, II.6, transposed)."""
    stages, carries = tableau.stages, tableau.first_same_as_last
    lines = [
        "static void pull_row(Context *c, const Arguments *a, const Row *row, Way *way, v_t kbar[][STATES],",
        "                     v_t *through, int inside) {",
        "    const v_t *u = row->u, t = row->t, h = row->dt;",
        "    v_t y[STATES], of_y[STATES], time;",
        "    const v_i moved = v_ne(h, v_splat(0));",
    ]
    if tableau.extra_a:
        lines += [
            "    ROOMY v_t all[ALL_STAGES][STATES];",
            "    v_t (*k)[STATES] = all;",
            "    memcpy(all, row->k, sizeof(row->k));",
            "    if (inside) read_step(c, u, t, h, all);",
        ]
    else:
        lines.append("    const v_t (*k)[STATES] = row->k;")
    for i, weight in enumerate(tableau.b):
        if weight:
            lines.append(
                f"    for (int n = 0; n < STATES; n++) kbar[{i}][n] += h * ((real){float(weight)!r} * way->state[n]);"
            )
    if carries:
        last = stages - 1
        lines.append(
            f"    for (int n = 0; n < STATES; n++) kbar[{last}][n] += v_select(moved, way->carry[n], v_splat(0));"
        )
    lines.append("    for (int n = 0; n < STATES; n++) way->state[n] += through[n];")
    for i in reversed(range(1 if carries else 0, len(tableau.all_a))):
        if not _pulled(tableau, i):
            continue
        inner = _pull_stage(tableau, i)
        if i >= stages:
            lines += ["    if (inside) {", *(f"    {line}" for line in inner), "    }"]
        else:
            lines += inner
    if carries:
        lines.append("    for (int n = 0; n < STATES; n++) way->carry[n] = v_select(moved, kbar[0][n], way->carry[n]);")
    return "\n".join([*lines, "    (void)a; (void)moved; (void)inside; (void)k;", "}"])


def _pulled(tableau: ExplicitTableau, i: int) -> bool:
    """Whether anything depends on stage i; extra stages serve reads, and stages behind the new state too."""
    below = any(i < j and i < len(row) and row[i] for j, row in enumerate(tableau.all_a))
    own = i < tableau.stages and bool(tableau.b[i])
    last = i == tableau.stages - 1 and tableau.first_same_as_last
    return own or last or any(tableau.interpolant[i]) or below


def _pull_stage(tableau: ExplicitTableau, i: int) -> list[str]:
    row = tableau.all_a[i]
    argument = f"u[n] + h * ({weighted(row, 'k[{i}][n]')})" if any(row) else "u[n]"
    lines = [
        f"    for (int n = 0; n < STATES; n++) y[n] = {argument};",
        f"    time = t + (real){float(tableau.all_c[i])!r} * h;",
        f"    f_pull(c, y, &time, kbar[{i}], of_y);",
        "    for (int n = 0; n < STATES; n++) {",
        "        way->state[n] += of_y[n];",
    ]
    for j, entry in enumerate(row):
        if entry:
            lines.append(f"        kbar[{j}][n] += h * ((real){float(entry)!r} * of_y[n]);")
    return [*lines, "    }"]
