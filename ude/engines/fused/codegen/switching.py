"""The explicit one of two methods as C; it counts stiff steps as the torch engine does and stops where that changes.

A kernel of both methods would compile the implicit one for nothing where nothing is stiff, which is what these kernels
are for; and where something is, the torch engine loses less, since its steps are few and dear.
"""

from __future__ import annotations

import torch

from ude.engines.base import SolveSpec
from ude.engines.fused.codegen.explicit import ExplicitFamily, weighted
from ude.engines.torch.families.switching import LOOK_EVERY, ROUNDINGS, TELLING, SwitchingScheme, twin_weights
from ude.methods import AutoSwitch, ExplicitTableau
from ude.methods.switching import stability_size


class SwitchingFamily(ExplicitFamily):
    """The explicit one of the two methods of an `AutoSwitch`."""

    methods = AutoSwitch
    switches = True

    @property
    def tableau(self) -> ExplicitTableau:
        tableau: ExplicitTableau = self.algorithm.nonstiff.tableau
        return tableau

    @property
    def remembers(self) -> str:
        return """typedef struct { int64_t attempts[LANES], stiff[LANES]; } Method;
static inline void method_start(Method *method, int lane) { method->attempts[lane] = method->stiff[lane] = 0; }"""

    def why_not(self, spec: SolveSpec) -> str | None:
        reason = SwitchingScheme.why_not(spec)
        if reason is None and (spec.stiff is not None or self.algorithm.stiffalgfirst):
            reason = f"{self.algorithm.name} starts with its implicit method, and kernels run the explicit one alone"
        return reason

    def text(self, *, gradient: bool, rows: str) -> str:
        method = super().text(gradient=gradient, rows=rows)
        return "\n".join([method, _is_stiff(self.algorithm), _turns_stiff(self.algorithm)])


def _is_stiff(algorithm: AutoSwitch) -> str:
    """``|f(g) - f(h)| > tol S |g - h| / dt`` of the last two stages, where their difference is no noise."""
    tableau = algorithm.nonstiff.tableau
    # as `SwitchingScheme` has it
    of_f, of_u = twin_weights(tableau, torch.float64, torch.device("cpu")).tolist()
    bound = algorithm.nonstifftol * stability_size(tableau)
    return f"""static v_i is_stiff(const Arguments *a, const Trial *trial, v_t h) {{
    const v_t (*k)[STATES] = (const v_t (*)[STATES])trial->k;
    v_t of_f[STATES], of_u[STATES], size[STATES];
    for (int n = 0; n < STATES; n++) {{
        const v_t scale = v_abs(trial->u[n]) * v_splat(a->reltol[n]) + v_splat(a->abstol[n]);
        of_f[n] = ({weighted(of_f, "k[{i}][n]")}) / scale;
        of_u[n] = ({weighted(of_u, "k[{i}][n]")}) / scale;
        size[n] = trial->u[n] / scale;
    }}
    const v_t norm = v_sqrt(sum_of_squares(of_u));
    const v_t rounding = v_sqrt(sum_of_squares(size)) * v_splat((real){ROUNDINGS!r} * EPSILON);
    const v_i tells = v_gt(norm * v_abs(h), rounding + v_splat((real){TELLING!r} * s_sqrt((real)STATES)));
    return v_gt(v_sqrt(sum_of_squares(of_f)), norm * v_splat((real){bound!r})) & tells;
}}"""


def _turns_stiff(algorithm: AutoSwitch) -> str:
    """Count stiff steps in a row, looking at one attempt in so many until there is one."""
    return f"""static v_i turns_stiff(Method *method, const Arguments *a, const Trial *trial, v_t h, v_i accept) {{
    v_i found, turns = accept & ~accept;
    int any = 0, looked[LANES];
    for (int lane = 0; lane < LANES; lane++) {{
        method->attempts[lane]++;
        const int turn = method->stiff[lane] > 0 || method->attempts[lane] % {LOOK_EVERY} == 0;
        looked[lane] = turn && CONST_MASK(accept, lane);
        any |= looked[lane];
    }}
    if (!any) return turns;
    found = is_stiff(a, trial, h);
    for (int lane = 0; lane < LANES; lane++) {{
        if (!looked[lane]) continue;
        method->stiff[lane] = CONST_MASK(found, lane) ? method->stiff[lane] + 1 : 0;
        if (method->stiff[lane] > {algorithm.maxstiffstep}) MASK(turns, lane) = -1;
    }}
    return turns;
}}
"""
