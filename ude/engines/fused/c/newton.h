/* Small linear systems and Newton's iteration, of every lane on its own. Before this text come STATES, f and f_jacobian.

   Newton's iteration is the torch engine's (ude/engines/torch_engine/newton.py), decision by decision, so that both
   accept the same steps. */

/* LU factors of I - s J with partial pivoting. Lanes pivot apart: rows are swapped by single numbers, which is rare
   and costs little beside the elimination, and all else runs over whole vectors. */
typedef struct {
    v_t lu[STATES][STATES], inverse[STATES];
    int pivot[STATES][LANES], swapped;
} Factors;

/* -- loops over rows ---------------------------------------------------------------------------------------------- */

/* Loops over a known number of rows are unrolled by compilers, which for more than a few rows takes them seconds. */
#if STATES > 4
#define SEPARATE __attribute__((noinline))
static inline int row_count(void) {
    int rows = STATES;
    __asm__("" : "+r"(rows));
    return rows;
}
#else
#define SEPARATE
static inline int row_count(void) { return STATES; }
#endif

#define ROWS row_count()

/* -- factors and Newton's iteration ----------------------------------------------------------------------------- */

static void swap_lanes(v_t *x, v_t *y, int lane) {
    const real kept = LANE(*x, lane);
    LANE(*x, lane) = LANE(*y, lane);
    LANE(*y, lane) = kept;
}

SEPARATE static void factorize(const v_t *jacobian, v_t step, Factors *m) {
    const int rows = row_count();
    m->swapped = 0;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < rows; j++) m->lu[i][j] = v_splat(i == j) - step * jacobian[i * rows + j];
    for (int k = 0; k < rows; k++) {
        v_t largest = v_abs(m->lu[k][k]), place = v_splat((real)k);
        for (int i = k + 1; i < rows; i++) {
            const v_t size = v_abs(m->lu[i][k]);
            const v_i more = v_gt(size, largest);
            largest = v_select(more, size, largest);
            place = v_select(more, v_splat((real)i), place);
        }
        for (int lane = 0; lane < LANES; lane++) {
            const int pivot = m->pivot[k][lane] = (int)CONST_LANE(place, lane);
            if (pivot == k) continue;
            m->swapped = 1;
            for (int j = 0; j < rows; j++) swap_lanes(&m->lu[k][j], &m->lu[pivot][j], lane);
        }
        m->inverse[k] = v_splat(1) / m->lu[k][k];
        for (int i = k + 1; i < rows; i++) {
            const v_t factor = m->lu[i][k] *= m->inverse[k];
            for (int j = k + 1; j < rows; j++) m->lu[i][j] -= factor * m->lu[k][j];
        }
    }
}

SEPARATE static void solve_linear(const Factors *m, v_t *x) {
    const int rows = row_count();
    if (m->swapped)
        for (int k = 0; k < rows; k++)
            for (int lane = 0; lane < LANES; lane++)
                if (m->pivot[k][lane] != k) swap_lanes(&x[k], &x[m->pivot[k][lane]], lane);
    for (int i = 1; i < rows; i++)
        for (int j = 0; j < i; j++) x[i] -= m->lu[i][j] * x[j];
    for (int i = rows - 1; i >= 0; i--) {
        for (int j = i + 1; j < rows; j++) x[i] -= m->lu[i][j] * x[j];
        x[i] *= m->inverse[i];
    }
}

static inline v_t weighted_norm(const v_t *x, const v_t *per_scale) {
    v_t scaled[STATES];
    for (int n = 0; n < ROWS; n++) scaled[n] = x[n] * per_scale[n];
    return v_sqrt(sum_of_squares(scaled)) * (1 / s_sqrt((real)STATES));
}

/* Before an iteration has shown how fast it converges no iterate is believed; later stages go by the slowest rate
   seen, and by this at best. */
#define BEST_GUESS_OF_RATE ((real)0.01)
#define NO_CONVERGENCE ((real)0.999)

typedef struct {
    const Factors *factors;
    v_t step, per_scale[STATES]; /* gamma dt, and one over the tolerance of each component */
    real tolerance;              /* iterates end when their error is below this part of it */
    int maxiters;
    v_t guess_of_rate, rate; /* the slowest rate of convergence seen */
    v_t size, calls;         /* the last change, and how often f was called */
    v_i converged;           /* whether every stage so far was solved */
} Newton;

static void newton_start(Newton *w, const Arguments *a, const v_t *u, v_t step, const Factors *factors, real tolerance,
                         int maxiters) {
    w->factors = factors;
    w->step = step;
    for (int n = 0; n < ROWS; n++)
        w->per_scale[n] = v_splat(1) / (v_abs(u[n]) * v_splat(a->reltol[n]) + v_splat(a->abstol[n]));
    w->tolerance = tolerance;
    w->maxiters = maxiters;
    w->guess_of_rate = v_splat(1);
    w->rate = w->calls = w->size = v_splat(0);
    w->converged = v_eq(w->rate, w->rate);
}

static v_t whole_power(v_t x, int exponent) {
    v_t power = v_splat(1);
    for (; exponent > 0; exponent /= 2, x = x * x)
        if (exponent % 2) power = power * x;
    return power;
}

/* Solve z = s f(base + z, t) for one stage, from the guess z. Lanes that have converged stand still. */
static void newton_solve(Context *c, Newton *w, const v_t *base, v_t time, v_t *z) {
    v_i open = w->converged;
    v_t rate = w->guess_of_rate, size = v_splat(0), quotient = v_splat(0), y[STATES], change[STATES];
    const v_t floor = weighted_norm(base, w->per_scale) * (4 * EPSILON);
    for (int i = 0; i < w->maxiters; i++) {
        w->calls += i == 0 ? v_splat(1) : v_number(open);
        for (int n = 0; n < ROWS; n++) y[n] = base[n] + z[n];
        f(c, y, &time, change);
        for (int n = 0; n < ROWS; n++) change[n] = w->step * change[n] - z[n];
        solve_linear(w->factors, change);
        const v_t before = size;
        size = weighted_norm(change, w->per_scale);
        w->size = v_select(open, size, w->size);
        if (i > 0) {
            /* the mean of the last two: a single quotient can be small by luck */
            const v_t last = quotient;
            quotient = size / before;
            rate = v_select(open, i == 1 ? quotient : v_sqrt(quotient * last), rate);
        }
        for (int n = 0; n < ROWS; n++) z[n] = v_select(open, z[n] + change[n], z[n]);
        const v_t slow = v_min(rate, v_splat(NO_CONVERGENCE));
        const v_t error = slow / (v_splat(1) - slow) * size, tolerance = v_splat(w->tolerance);
        const v_i done = (v_lt(rate, v_splat(NO_CONVERGENCE)) & v_le(error, tolerance)) | v_le(size, floor);
        v_i hopeless = ~v_eq(size - size, v_splat(0));
        if (i > 0) {
            const v_t final = error * whole_power(slow, w->maxiters - i - 1);
            hopeless = hopeless | v_ge(rate, v_splat(NO_CONVERGENCE)) | v_gt(final, tolerance);
            w->rate = v_select(open, v_max(w->rate, rate), w->rate);
        }
        w->converged = w->converged & ~(open & hopeless & ~done);
        open = open & ~done & ~hopeless;
        if (!v_any(open)) break;
    }
    w->converged = w->converged & ~open;
    w->guess_of_rate = v_select(v_gt(w->rate, v_splat(0)), v_max(w->rate, v_splat(BEST_GUESS_OF_RATE)), w->guess_of_rate);
}

/* A Jacobian serves the next step too while the iteration contracts at least this fast with it. */
#define GOOD_RATE ((real)0.01)
/* A lane whose stages do not converge with a new Jacobian changes its step by this. */
#define SHRINK ((real)0.5)

/* What the method remembers of its lanes: the Jacobian, whether a new one is wanted, whether it is of this step, and
   the rate of convergence that it led to. */
typedef struct {
    v_t jacobian[STATES * STATES];
    Factors factors;
    v_i wanted, fresh;
    v_t seen, factored;
    v_t calls, jacobians;
} Method;

static inline void method_start(Method *method, int lane) {
    MASK(method->wanted, lane) = -1;
    MASK(method->fresh, lane) = 0;
    LANE(method->calls, lane) = LANE(method->jacobians, lane) = 0;
}

static inline void method_finish(const Method *method, const Arguments *a, int lane, int64_t at) {
    a->calls[at] = (int64_t)CONST_LANE(method->calls, lane);
    a->jacobians[at] = (int64_t)CONST_LANE(method->jacobians, lane);
}

/* Renew the Jacobian of the lanes that want it, and factorize. */
static void linearize(Context *c, Method *method, const State *s, v_t step) {
    if (v_any(method->wanted)) {
        ROOMY v_t found[STATES * STATES];
        f_jacobian(c, s->u, &s->t, found);
        for (int i = 0; i < STATES * STATES; i++)
            method->jacobian[i] = v_select(method->wanted, found[i], method->jacobian[i]);
        method->fresh = method->fresh | method->wanted;
        method->calls += v_number(method->wanted);
        method->jacobians += v_number(method->wanted);
    } else if (!v_any(v_ne(step, method->factored)))
        return;
    factorize(method->jacobian, step, &method->factors);
    method->factored = step;
}
