/* The adaptive loop and the reverse sweep over lanes. What differs between methods comes before this text:

   Method, method_start(method, lane)          what a method remembers of its lanes; a lane takes a new trajectory
   method_finish(method, a, lane, at)          where IMPLICIT: a lane hands in how often it called f
   attempt(c, method, a, s, h, trial)          try one step of every lane
   settle(c, method, s, h, trial, accept)      after it: the derivative at the new state, into trial->after
   read_step(c, u, t, h, k)                    make the stages that only the dense output needs
   interpolant(theta, weights)                 b_i(theta) of every stage
   turns_stiff(method, a, trial, h, accept)    where SWITCHES: which lanes should change to an implicit method now
   pull_row(c, row, way, kbar, through, inside)   pull cotangents back through one step of every lane
   controller_accepts, controller_factor, controller_learn   the step-size controller */

static void load_own(Context *c, const Arguments *a, int lane, int64_t at) {
    int place = 0;
    for (int leaf = 0; leaf < OWN_LEAVES; leaf++)
        for (int i = 0; i < own_sizes[leaf]; i++) LANE(c->own[place++], lane) = a->own[leaf][at * own_sizes[leaf] + i];
}

/* Hairer's choice (Solving ODEs I, II.4): an Euler step's error is about 1 % of the tolerance. */
static v_t first_step(Context *c, const Arguments *a, const State *s, const v_t *du) {
    const v_t span = v_abs(s->end - s->t), limit = v_min(span, v_splat(a->dtmax));
    v_t scaled[STATES], probe[STATES], after[STATES];
    const real per_root = 1 / s_sqrt((real)STATES);
    v_t scale[STATES];
    if (a->dt > 0) return v_splat(a->dt);
    for (int n = 0; n < STATES; n++) scale[n] = v_splat(a->abstol[n]) + v_splat(a->reltol[n]) * v_abs(s->u[n]);
    for (int n = 0; n < STATES; n++) scaled[n] = s->u[n] / scale[n];
    const v_t d0 = v_sqrt(sum_of_squares(scaled)) * per_root;
    for (int n = 0; n < STATES; n++) scaled[n] = du[n] / scale[n];
    const v_t d1 = v_sqrt(sum_of_squares(scaled)) * per_root;
    const v_i small = v_lt(d0, v_splat((real)1e-5)) | v_lt(d1, v_splat((real)1e-5));
    const v_t usual = v_splat((real)0.01) * d0 / v_max(d1, v_splat(TINY));
    const v_t h0 = v_min(v_select(small, v_splat((real)1e-6), usual), limit);
    const v_t step = h0 * s->sign;
    for (int n = 0; n < STATES; n++) probe[n] = s->u[n] + step * du[n];
    const v_t time = s->t + step;
    f(c, probe, &time, after);
    for (int n = 0; n < STATES; n++) scaled[n] = (after[n] - du[n]) / scale[n];
    const v_t d2 = v_sqrt(sum_of_squares(scaled)) * per_root / v_max(h0, v_splat(TINY));
    v_t chosen;
    for (int l = 0; l < LANES; l++) {
        const real one = CONST_LANE(h0, l);
        real steepest = CONST_LANE(d1, l);
        if (!(CONST_LANE(d2, l) <= steepest)) steepest = CONST_LANE(d2, l);
        real h1 = (real)pow(0.01 / (double)steepest, 1.0 / (ERROR_ORDER + 1));
        if (steepest <= (real)1e-15) h1 = one * (real)1e-3 > (real)1e-6 ? one * (real)1e-3 : (real)1e-6;
        real taken = 100 * one < h1 ? 100 * one : h1;
        if (!(taken - taken == 0)) taken = one;
        if (!(h1 - h1 == 0)) taken = one;
        int exponent;
        /* ten binary digits, so that rounding errors in f do not reach the steps */
        const double mantissa = frexp((double)taken, &exponent);
        taken = (real)ldexp(nearbyint(mantissa * 1024) / 1024, exponent);
        LANE(chosen, l) = taken;
    }
    chosen = v_max(chosen, v_splat(RESOLUTION) * v_abs(s->t));
    return v_max(v_min(chosen, limit), v_splat(a->dtmin));
}

typedef struct {
    int64_t at[LANES], cursor[LANES], attempts[LANES], accepted[LANES], rejected[LANES];
} Book;

static void load_lane(Context *c, const Arguments *a, State *s, int lane, int64_t at) {
    for (int n = 0; n < STATES; n++) LANE(s->u[n], lane) = a->u0[at * STATES + n];
    LANE(s->t, lane) = a->t0[at];
    LANE(s->end, lane) = a->t1[at];
    LANE(s->sign, lane) = a->t1[at] >= a->t0[at] ? 1 : -1;
    for (int i = 0; i < MEMORY; i++) LANE(s->memory[i], lane) = controller_start[i];
    load_own(c, a, lane, at);
}

/* Saves that the start itself gives. */
static void save_start(const Arguments *a, const State *s, Book *book, int lane) {
    const int64_t at = book->at[lane];
    const real *times = a->saveat + at * a->saveat_stride;
    const real sign = CONST_LANE(s->sign, lane), t = CONST_LANE(s->t, lane);
    const int still = t == CONST_LANE(s->end, lane);
    int64_t i = 0;
    for (; i < a->saves && (still || times[i] * sign <= t * sign); i++)
        for (int n = 0; n < STATES; n++) a->values[(at * a->saves + i) * STATES + n] = CONST_LANE(s->u[n], lane);
    book->cursor[lane] = i;
}

static void finish_lane(const Arguments *a, State *s, Book *book, int lane, int64_t code) {
    const int64_t at = book->at[lane];
    a->code[at] = code;
    a->t_end[at] = LANE(s->t, lane);
    a->accepted[at] = book->accepted[lane];
    a->rejected[at] = book->rejected[lane];
    for (int n = 0; n < STATES; n++) a->u_end[at * STATES + n] = LANE(s->u[n], lane);
    for (int64_t i = book->cursor[lane]; i < a->saves; i++)
        for (int n = 0; n < STATES; n++) a->values[(at * a->saves + i) * STATES + n] = (real)NAN;
    book->at[lane] = -1;
    MASK(s->active, lane) = 0;
}

/* Values at the saves that the accepted steps have passed. */
static void save_steps(Context *c, const Arguments *a, const State *s, Trial *trial, v_t h, v_t t_next, v_i accept,
                       Book *book) {
    int complete = 0;
    for (int lane = 0; lane < LANES; lane++) {
        if (!MASK(accept, lane)) continue;
        const int64_t at = book->at[lane];
        const real *times = a->saveat + at * a->saveat_stride;
        const real sign = CONST_LANE(s->sign, lane), reached = LANE(t_next, lane);
        const real start = CONST_LANE(s->t, lane), size = LANE(h, lane);
        int64_t i = book->cursor[lane];
        for (; i < a->saves && times[i] * sign <= reached * sign; i++) {
            real *out = a->values + (at * a->saves + i) * STATES;
            if (times[i] == reached) {
                for (int n = 0; n < STATES; n++) out[n] = CONST_LANE(trial->u[n], lane);
                continue;
            }
            if (!complete) {
                read_step(c, s->u, s->t, h, trial->k);
                complete = 1;
            }
            real weights[ALL_STAGES];
            interpolant((times[i] - start) / size, weights);
            for (int n = 0; n < STATES; n++) {
                real sum = 0;
                for (int j = 0; j < ALL_STAGES; j++) sum += weights[j] * LANE(trial->k[j][n], lane);
                out[n] = CONST_LANE(s->u[n], lane) + size * sum;
            }
        }
        book->cursor[lane] = i;
    }
}

/* Root mean square of error / (abstol + reltol max(|u|, |u_next|)) of each lane; not finite when the step is not. */
static v_t scaled_error(const Arguments *a, const State *s, const Trial *trial) {
    if (!a->adaptive) {
        v_t total = v_abs(trial->u[0]);
        for (int n = 1; n < STATES; n++) total += v_abs(trial->u[n]);
        return v_select(v_eq(total - total, v_splat(0)), v_splat(0), v_splat((real)NAN));
    }
    v_t scale[STATES], scaled[STATES];
    const real per_root = 1 / s_sqrt((real)STATES);
    for (int n = 0; n < STATES; n++)
        scale[n] = v_max(v_abs(s->u[n]), v_abs(trial->u[n])) * v_splat(a->reltol[n]) + v_splat(a->abstol[n]);
    for (int n = 0; n < STATES; n++) scaled[n] = trial->error[n] / scale[n];
    v_t norm = v_sqrt(sum_of_squares(scaled)) * per_root;
#if TWO_ERRORS
    for (int n = 0; n < STATES; n++) scaled[n] = trial->error_low[n] / scale[n];
    const v_t low = v_sqrt(sum_of_squares(scaled)) * (per_root * (real)0.1);
    norm = norm * (norm / v_max(v_sqrt(norm * norm + low * low), v_splat((real)SMALLEST_ERROR)));
#endif
    return norm;
}

/* -- lanes of a chunk ------------------------------------------------------------------------------------------- */

static int keep_row(Record *record, const State *s, const Book *book, const Trial *trial, v_t h, v_t t_next, v_i accept) {
    Row *row = new_row(record);
    if (!row) return 0;
    memcpy(row->trajectory, book->at, sizeof(row->trajectory));
    row->t = s->t;
    row->t_next = t_next;
    row->dt = v_select(accept, h, v_splat(0));
    for (int n = 0; n < STATES; n++) row->u[n] = s->u[n];
    /* the stages of a rejected attempt may be infinite, and zero times infinity is no number */
    for (int i = 0; i < KEPT_STAGES; i++)
        for (int n = 0; n < STATES; n++) row->k[i][n] = v_select(accept, trial->k[i][n], v_splat(0));
    return 1;
}

/* Fill lanes with the next trajectories; those without a span end at once. */
static void refill(Context *c, Method *method, const Arguments *a, State *s, Book *book, const real *starts,
                   int64_t first, int64_t last, int64_t *next) {
    for (int lane = 0; lane < LANES; lane++) {
        while (!MASK(s->active, lane) && *next < last) {
            const int64_t at = (*next)++;
            const real *start = starts + (at - first) * (STATES + 1);
            load_lane(c, a, s, lane, at);
            book->at[lane] = at;
            book->attempts[lane] = book->accepted[lane] = book->rejected[lane] = 0;
            save_start(a, s, book, lane);
            if (a->t0[at] == a->t1[at]) {
                finish_lane(a, s, book, lane, SUCCESS);
                continue;
            }
            LANE(s->dt, lane) = start[0];
            for (int n = 0; n < STATES; n++) LANE(s->k1[n], lane) = start[1 + n];
            method_start(method, lane);
            MASK(s->active, lane) = -1;
        }
    }
}

/* The first step and the first derivative of every trajectory of the chunk, (1 + STATES) numbers each. */
static real *all_starts(Context *c, const Arguments *a, int64_t first, int64_t last) {
    real *starts = malloc(sizeof(real) * (size_t)((last - first) * (STATES + 1)));
    if (!starts) return NULL;
    State s;
    memset(&s, 0, sizeof(s));
    for (int64_t group = first; group < last; group += LANES) {
        v_t du[STATES];
        for (int lane = 0; lane < LANES; lane++)
            load_lane(c, a, &s, lane, group + lane < last ? group + lane : group);
        f(c, s.u, &s.t, du);
        const v_t dt = first_step(c, a, &s, du);
        for (int lane = 0; lane < LANES && group + lane < last; lane++) {
            real *start = starts + (group + lane - first) * (STATES + 1);
            start[0] = CONST_LANE(dt, lane);
            for (int n = 0; n < STATES; n++) start[1 + n] = LANE(du[n], lane);
        }
    }
    return starts;
}

/* -- one attempt ---------------------------------------------------------------------------------------------- */

enum { GOES_ON = 0, SOME_FINISHED = 1, GIVEN_UP = 2, OUT_OF_MEMORY = 3 };

/* Try one step of every lane, and move those that accept it. */
static int try_step(Context *c, Method *method, const Arguments *a, State *s, Book *book, Trial *trial, Record *record) {
    const v_t remaining = (s->end - s->t) * s->sign;
    const v_i is_last = v_ge(s->dt, remaining * (real)(1 - 1e-10));
    const v_t size = v_select(s->active, v_select(v_lt(s->dt, remaining), s->dt, remaining), v_splat(0));
    const v_t h = size * s->sign;
    attempt(c, method, a, s, h, trial);
    v_t error = scaled_error(a, s, trial);
    const v_i finite = v_eq(error - error, v_splat(0));
    error = v_select(finite, error, v_splat((real)INFINITY));
    v_i accept = finite & controller_accepts(error, s->memory) & s->active;
#if IMPLICIT
    accept = accept & trial->converged;
#endif
    const v_t before = s->t;
    const v_t t_next = v_select(accept, v_select(is_last, s->end, s->t + h), s->t);
    if (v_any(accept)) {
        settle(c, method, s, h, trial, accept);
        if (record && !keep_row(record, s, book, trial, h, t_next, accept)) return OUT_OF_MEMORY;
        if (a->saves) save_steps(c, a, s, trial, h, t_next, accept, book);
        for (int n = 0; n < STATES; n++) {
            s->u[n] = v_select(accept, trial->u[n], s->u[n]);
            s->k1[n] = v_select(accept, trial->after[n], s->k1[n]);
        }
        s->t = t_next;
    }
#if SWITCHES
    const v_i stiff = turns_stiff(method, a, trial, h, accept);
    if (v_any(stiff)) {
        /* nothing of this solve is used, so that the others need not go on */
        for (int lane = 0; lane < LANES; lane++)
            if (CONST_MASK(stiff, lane)) finish_lane(a, s, book, lane, TURNED_STIFF);
        return GIVEN_UP;
    }
#endif
    if (a->adaptive) {
        v_t factor = controller_factor(error, s->memory, accept);
#if IMPLICIT
        factor = v_select(trial->converged, factor, trial->shrink);
#endif
        s->dt = v_select(s->active, v_min(size * factor, v_splat(a->dtmax)), s->dt);
        controller_learn(error, s->memory, accept);
    }
    const v_t smallest = v_max(v_abs(s->t) * (real)RESOLUTION, v_splat(a->dtmin > TINIEST ? a->dtmin : TINIEST));
    const v_i small = v_lt(s->dt, smallest);
    v_i stuck = ~accept & (a->adaptive ? small : ~(s->active & ~s->active));
#if IMPLICIT
    stuck = stuck & (trial->converged | v_lt(trial->shrink, v_splat(1)));
#endif
    stuck = (stuck | (accept & v_eq(s->t, before) & small)) & s->active;
    if (a->dtmin > 0) s->dt = v_max(s->dt, v_splat(a->dtmin));
    int finished = 0;
    for (int lane = 0; lane < LANES; lane++) {
        if (!MASK(s->active, lane)) continue;
        book->attempts[lane]++;
        if (MASK(accept, lane)) book->accepted[lane]++;
        else book->rejected[lane]++;
        int64_t code = -1;
        if (MASK(stuck, lane)) {
            code = DT_LESS_THAN_MIN;
#if IMPLICIT
            if (!MASK(trial->converged, lane)) code = CONVERGENCE_FAILURE;
#endif
            if (!CONST_MASK(finite, lane)) code = UNSTABLE;
        } else if (!((LANE(s->end, lane) - LANE(s->t, lane)) * LANE(s->sign, lane) > 0))
            code = SUCCESS;
        else if (book->attempts[lane] >= a->maxiters)
            code = MAX_ITERS;
        if (code < 0) continue;
#if IMPLICIT
        method_finish(method, a, lane, book->at[lane]);
#endif
        finish_lane(a, s, book, lane, code);
        finished = 1;
    }
    return finished ? SOME_FINISHED : GOES_ON;
}

/* -- a chunk ----------------------------------------------------------------------------------------------------- */

/* Integrate trajectories first..last; the record is NULL unless `keep`. Returns 0, or 1 when memory ran out. */
EXPORT int ude_forward(const Arguments *a, int64_t first, int64_t last, Record **kept) {
    Context context;
    State s;
    Book book;
    ROOMY Method method;
    ROOMY Trial trial;
    Record *record = NULL;
    int64_t next = first;
    int failed = 0;
    memset(&s, 0, sizeof(s));
    memset(&method, 0, sizeof(method));
    for (int lane = 0; lane < LANES; lane++) book.at[lane] = -1, book.cursor[lane] = 0;
    open_context(&context, a);
    *kept = NULL;
    real *starts = all_starts(&context, a, first, last);
    if (!starts) return 1;
    if (a->keep) *kept = record = calloc(1, sizeof(Record));
    /* lanes that never get a trajectory work on the first one, without effect */
    for (int lane = 0; lane < LANES; lane++) load_lane(&context, a, &s, lane, first);
    refill(&context, &method, a, &s, &book, starts, first, last, &next);
    while (v_any(s.active)) {
        const int outcome = try_step(&context, &method, a, &s, &book, &trial, record);
        if (outcome == SOME_FINISHED) refill(&context, &method, a, &s, &book, starts, first, last, &next);
        if (outcome == OUT_OF_MEMORY) failed = 1;
        if (outcome >= GIVEN_UP) break;
    }
    free(starts);
    return failed;
}

/* -- the reverse sweep ------------------------------------------------------------------------------------------ */

/* Cotangents of what was read inside a row go to its stages; of what was read at its end, to the state. Returns
   whether anything was read inside. */
static int read_row(const Arguments *a, const Row *row, Way *way, v_t kbar[][STATES], v_t *through) {
    int inside = 0;
    for (int lane = 0; lane < LANES; lane++) {
        const real size = CONST_LANE(row->dt, lane);
        if (size == 0) continue;
        const int64_t at = way->at[lane];
        const real *times = a->saveat + at * a->saveat_stride, t = CONST_LANE(row->t, lane);
        const real sign = size > 0 ? 1 : -1, t_next = CONST_LANE(row->t_next, lane);
        int64_t i = way->cursor[lane];
        for (; i >= 0 && times[i] * sign > t * sign; i--) {
            const real *g = a->grad + (at * a->saves + i) * STATES;
            if (times[i] == t_next) {
                for (int n = 0; n < STATES; n++) LANE(way->state[n], lane) += g[n];
                continue;
            }
            real weights[ALL_STAGES];
            interpolant((times[i] - t) / size, weights);
            inside = 1;
            for (int n = 0; n < STATES; n++) {
                LANE(through[n], lane) += g[n];
                for (int j = 0; j < ALL_STAGES; j++) LANE(kbar[j][n], lane) += size * weights[j] * g[n];
            }
        }
        way->cursor[lane] = i;
    }
    return inside;
}

/* Lanes that leave their trajectory hand in what they found. `spare` is a trajectory whose start f is known to take. */
static void hand_in(Context *c, const Arguments *a, Way *way, const int *leaving, int64_t spare) {
#if CARRIES
    v_t u[STATES], t = v_splat(0), g[STATES], of_u[STATES];
    for (int n = 0; n < STATES; n++) u[n] = g[n] = v_splat(0);
    for (int lane = 0; lane < LANES; lane++) {
        const int64_t at = way->at[lane] >= 0 ? way->at[lane] : spare;
        for (int n = 0; n < STATES; n++) {
            LANE(u[n], lane) = a->u0[at * STATES + n];
            if (leaving[lane]) LANE(g[n], lane) = LANE(way->carry[n], lane);
        }
        LANE(t, lane) = a->t0[at];
    }
    f_pull(c, u, &t, g, of_u);
#endif
    for (int lane = 0; lane < LANES; lane++) {
        if (!leaving[lane]) continue;
        const int64_t at = way->at[lane];
        for (int n = 0; n < STATES; n++) {
            real sum = LANE(way->state[n], lane);
#if CARRIES
            sum += LANE(of_u[n], lane);
#endif
            for (int64_t i = way->cursor[lane]; i >= 0; i--) sum += a->grad[(at * a->saves + i) * STATES + n];
            a->grad_u0[at * STATES + n] = sum;
            LANE(way->state[n], lane) = LANE(way->carry[n], lane) = 0;
        }
        hand_in_own(c, a, lane, at);
        way->at[lane] = -1;
    }
}

/* A trajectory that took no step: what was read of it is its start. */
static void pull_still(const Arguments *a, int64_t at) {
    const real *times = a->saveat + at * a->saveat_stride;
    const real sign = a->t1[at] >= a->t0[at] ? 1 : -1;
    const int still = a->t0[at] == a->t1[at];
    for (int n = 0; n < STATES; n++) {
        real sum = 0;
        for (int64_t i = 0; i < a->saves && (still || times[i] * sign <= a->t0[at] * sign); i++)
            sum += a->grad[(at * a->saves + i) * STATES + n];
        a->grad_u0[at * STATES + n] = sum;
    }
}

/* -- a chunk backward -------------------------------------------------------------------------------------------- */

/* Pull the cotangents of the values of trajectories first..last back. Returns 0, or 1 when memory ran out. */
EXPORT int ude_pullback(const Arguments *a, int64_t first, int64_t last, const Record *record) {
    Context context;
    Way way;
    int leaving[LANES];
    memset(&way, 0, sizeof(way));
    if (!open_pullback(&context, a)) return 1;
    for (int lane = 0; lane < LANES; lane++) way.at[lane] = -1, load_own(&context, a, lane, first);
    for (int64_t at = first; at < last; at++)
        if (a->accepted[at] == 0) pull_still(a, at);
    for (int64_t i = record->rows - 1; i >= 0; i--) {
        const Row *row = row_at(record, i);
        ROOMY v_t kbar[ALL_STAGES][STATES];
        v_t through[STATES];
        int any = 0;
        for (int lane = 0; lane < LANES; lane++) {
            const int enters = CONST_LANE(row->dt, lane) != 0 && row->trajectory[lane] != way.at[lane];
            leaving[lane] = enters && way.at[lane] >= 0;
            any |= leaving[lane];
        }
        if (any) hand_in(&context, a, &way, leaving, first);
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t at = row->trajectory[lane];
            if (CONST_LANE(row->dt, lane) == 0 || at == way.at[lane]) continue;
            const real *times = a->saveat + at * a->saveat_stride, sign = a->t1[at] >= a->t0[at] ? 1 : -1;
            int64_t cursor = a->saves - 1;
            while (cursor >= 0 && times[cursor] * sign > a->t_end[at] * sign) cursor--;
            way.at[lane] = at;
            way.cursor[lane] = cursor;
            load_own(&context, a, lane, at);
        }
        memset(kbar, 0, sizeof(kbar));
        memset(through, 0, sizeof(through));
        const int inside = read_row(a, row, &way, kbar, through);
        pull_row(&context, a, row, &way, kbar, through, inside);
    }
    int any = 0;
    for (int lane = 0; lane < LANES; lane++) any |= leaving[lane] = way.at[lane] >= 0;
    if (any) hand_in(&context, a, &way, leaving, first);
    close_pullback(&context, a);
    return 0;
}
