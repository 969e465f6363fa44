/* Kernels of CUDA: one trajectory a thread. A thread whose trajectory has finished takes the next one of the grid's, while
   its neighbors go on. The attempt and the pullback of a step are those of the C program, with one lane.

   How they are launched: `ude_once` with one thread; `ude_forward`, and with the same numbers of blocks and threads
   `ude_pullback`, with THREADS threads a block; `ude_total` with any. `Arguments` point to memory of the device.

   rows     capacity * ROW_SIZE * count numbers: rows of every trajectory's accepted steps. A trajectory with more of them
            ends with the code TOO_MANY_ROWS, and is solved again with a higher capacity.
   sums     SUMS * (threads of the grid) numbers, zero before the first launch: each thread's share of the gradients. */

/* -- rows ---------------------------------------------------------------------------------------------------------- */

enum { ROW_SIZE = 3 + STATES * (1 + KEPT_STAGES), TOO_MANY_ROWS = -2 };

/* neighboring threads' numbers lie side by side */
typedef struct {
    real *rows;
    int64_t capacity, count;
} Record;

static real *number_of_row(const Record *record, int64_t row, int number, int64_t at) {
    return record->rows + (row * ROW_SIZE + number) * record->count + at;
}

static int keep_row(Record *record, const State *s, const Book *book, const Trial *trial, v_t h, v_t t_next, v_i accept) {
    const int64_t at = book->at[0], row = book->accepted[0];
    int number = 0;
    if (!accept) return 1;
    if (row >= record->capacity) return 0;
    *number_of_row(record, row, number++, at) = s->t;
    *number_of_row(record, row, number++, at) = t_next;
    *number_of_row(record, row, number++, at) = h;
    for (int n = 0; n < STATES; n++) *number_of_row(record, row, number++, at) = s->u[n];
    for (int i = 0; i < KEPT_STAGES; i++)
        for (int n = 0; n < STATES; n++) *number_of_row(record, row, number++, at) = trial->k[i][n];
    return 1;
}

static void load_row(const Record *record, int64_t row, int64_t at, Row *out) {
    int number = 0;
    out->trajectory[0] = at;
    out->t = *number_of_row(record, row, number++, at);
    out->t_next = *number_of_row(record, row, number++, at);
    out->dt = *number_of_row(record, row, number++, at);
    for (int n = 0; n < STATES; n++) out->u[n] = *number_of_row(record, row, number++, at);
    for (int i = 0; i < KEPT_STAGES; i++)
        for (int n = 0; n < STATES; n++) out->k[i][n] = *number_of_row(record, row, number++, at);
}

/* -- forward ------------------------------------------------------------------------------------------------------- */

static int64_t thread_of_grid(void) { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
static int64_t threads_of_grid(void) { return (int64_t)gridDim.x * blockDim.x; }

extern "C" __global__ void ude_evaluate(const __grid_constant__ Arguments a, int64_t count, real *out) {
    Context c;
    open_context(&c, &a, 1);
    for (int64_t at = thread_of_grid(); at < count; at += threads_of_grid()) {
        v_t u[STATES], du[STATES];
        const v_t t = a.t0[at];
        for (int n = 0; n < STATES; n++) u[n] = a.u0[at * STATES + n];
        load_own(&c, &a, 0, at);
        f(&c, u, &t, du);
        for (int n = 0; n < STATES; n++) out[at * STATES + n] = du[n];
    }
}

/* Begin with a trajectory; without a span it ends at once. */
static void begin(Context *c, Method *method, const Arguments *a, State *s, Book *book, int64_t at) {
    load_lane(c, a, s, 0, at);
    book->at[0] = at;
    book->attempts[0] = book->accepted[0] = book->rejected[0] = 0;
    save_start(a, s, book, 0);
    if (a->t0[at] == a->t1[at]) {
        finish_lane(a, s, book, 0, SUCCESS);
        return;
    }
    f(c, s->u, &s->t, s->k1);
    s->dt = first_step(c, a, s, s->k1);
    method_start(method, 0);
    s->active = -1;
}

extern "C" __global__ void __launch_bounds__(THREADS)
ude_forward(const __grid_constant__ Arguments a, int64_t count, real *rows, int64_t capacity) {
    Context c;
    State s;
    Book book;
    Method method;
    Trial trial;
    Record record = {rows, capacity, count};
    int64_t next = thread_of_grid();
    open_context(&c, &a, 1);
    memset(&s, 0, sizeof(s));
    memset(&method, 0, sizeof(method));
    for (;;) {
        for (; !s.active && next < count; next += threads_of_grid()) begin(&c, &method, &a, &s, &book, next);
        if (!s.active) break;
        if (try_step(&c, &method, &a, &s, &book, &trial, a.keep ? &record : NULL) == OUT_OF_MEMORY)
            finish_lane(&a, &s, &book, 0, TOO_MANY_ROWS);
    }
}
/* -- backward ------------------------------------------------------------------------------------------------------ */

extern "C" __global__ void __launch_bounds__(THREADS)
ude_pullback(const __grid_constant__ Arguments a, int64_t count, const real *rows, int64_t capacity, real *sums) {
    Context c;
    Way way;
    const Record record = {(real *)rows, capacity, count};
    const int leaving[1] = {1};
    open_context(&c, &a, 1);
    c.sums = sums + thread_of_grid();
    c.stride = threads_of_grid();
    memset(&way, 0, sizeof(way));
    for (int64_t at = thread_of_grid(); at < count; at += threads_of_grid()) {
        const real *times = a.saveat + at * a.saveat_stride, sign = a.t1[at] >= a.t0[at] ? 1 : -1;
        if (a.accepted[at] == 0) {
            pull_still(&a, at);
            continue;
        }
        way.at[0] = at;
        way.cursor[0] = a.saves - 1;
        while (way.cursor[0] >= 0 && times[way.cursor[0]] * sign > a.t_end[at] * sign) way.cursor[0]--;
        load_own(&c, &a, 0, at);
        for (int64_t i = a.accepted[at] - 1; i >= 0; i--) {
            Row row;
            v_t kbar[ALL_STAGES][STATES], through[STATES];
            load_row(&record, i, at, &row);
            memset(kbar, 0, sizeof(kbar));
            memset(through, 0, sizeof(through));
            const int inside = read_row(&a, &row, &way, kbar, through);
            pull_row(&c, &a, &row, &way, kbar, through, inside);
        }
        hand_in(&c, &a, &way, leaving, at);
    }
}

/* Add up the shares of all threads, always in the same order. */
extern "C" __global__ void ude_total(const real *sums, int64_t threads, real *grad_shared) {
    for (int64_t i = thread_of_grid(); i < SHARED_SUMS; i += threads_of_grid()) {
        real total = 0;
        for (int64_t thread = 0; thread < threads; thread++) total += sums[i * threads + thread];
        grad_shared[i] = total;
    }
}
