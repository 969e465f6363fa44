/* What every kernel shares: arguments, the record of a chunk, small helpers.

   A chunk is a run of trajectories that LANES lanes work on: each lane integrates one trajectory with its own time,
   step, tolerance and status, and takes the next one of the chunk when it has finished. A row of the record is one
   attempt of all lanes; a lane that did not accept it has dt = 0 there, and the row is the identity for it. The
   reverse sweep reads the rows backwards in the same packing.

   The generated text before this defines real, mask (the signed integer of its width), LANES, STATES, STAGES, and
   includes the vector math as v_ (one number a lane) and s_ (single numbers). */

typedef struct {
    /* per trajectory */
    const real *u0, *t0, *t1;
    const real *saveat; /* row i starts at i * saveat_stride */
    int64_t saves, saveat_stride;
    real *values, *t_end, *u_end;
    int64_t *code, *accepted, *rejected;
    int64_t *calls, *jacobians; /* of f, by methods that iterate */
    /* of the solve */
    const real *abstol, *reltol;
    real dt, dtmin, dtmax;
    int64_t maxiters, adaptive, keep;
    const real *const *shared; /* leaves and captured tensors that all trajectories have in common */
    const real *const *own;    /* leaves of which each trajectory has a row */
    real *uniform;             /* numbers that are computed once a solve */
    /* reverse sweep */
    const real *grad;  /* cotangents of values */
    real *grad_u0;     /* (trajectories, STATES) */
    real *grad_shared; /* (SHARED_SIZE), of one chunk */
    real *const *grad_own;
} Arguments;

enum { SUCCESS = 0, MAX_ITERS = 1, DT_LESS_THAN_MIN = 2, UNSTABLE = 3, CONVERGENCE_FAILURE = 6 };
/* no return code: the trajectory has turned stiff, and another engine takes over */
enum { TURNED_STIFF = -1 };

#define LANE(vector, lane) (((real *)&(vector))[lane])
#define MASK(vector, lane) (((mask *)&(vector))[lane])
#define CONST_LANE(vector, lane) (((const real *)&(vector))[lane])
#define CONST_MASK(vector, lane) (((const mask *)&(vector))[lane])

/* One attempt of all lanes; `trajectory` is what each lane works on, or -1. */
typedef struct {
    int64_t trajectory[LANES];
    v_t t, t_next, dt;
    v_t u[STATES];
    v_t k[KEPT_STAGES][STATES];
} Row;

/* -- rows in the memory of this machine --------------------------------------------------------------------------- */

/* small blocks: a large one is fetched from the system, and given back, at every short solve */
enum { ROWS_A_BLOCK = (1 << 13) / sizeof(Row) > 4 ? (1 << 13) / sizeof(Row) : 4 };

typedef struct {
    Row **blocks;
    int64_t rows, capacity; /* capacity in blocks */
} Record;

static inline Row *row_at(const Record *record, int64_t i) {
    return &record->blocks[i / ROWS_A_BLOCK][i % ROWS_A_BLOCK];
}

static Row *new_row(Record *record) {
    const int64_t block = record->rows / ROWS_A_BLOCK;
    if (record->rows % ROWS_A_BLOCK == 0) {
        if (block == record->capacity) {
            record->capacity = record->capacity ? 2 * record->capacity : 16;
            Row **grown = realloc(record->blocks, (size_t)record->capacity * sizeof(Row *));
            if (!grown) return NULL;
            record->blocks = grown;
        }
        void *memory = NULL;
        if (posix_memalign(&memory, 64, sizeof(Row) * ROWS_A_BLOCK)) return NULL;
        record->blocks[block] = memory;
    }
    return row_at(record, record->rows++);
}

EXPORT void ude_free(Record *record) {
    if (!record) return;
    for (int64_t i = 0; i * ROWS_A_BLOCK < record->rows; i++) free(record->blocks[i]);
    free(record->blocks);
    free(record);
}

/* The steps of a chunk's trajectories, packed: row `filled[i]++` of trajectory i, of `steps` rows each. */
EXPORT void ude_unpack(const Record *record, int64_t steps, int64_t *filled, real *t, real *dt, real *u, real *k1) {
    for (int64_t i = 0; i < record->rows; i++) {
        const Row *row = row_at(record, i);
        for (int lane = 0; lane < LANES; lane++) {
            const int64_t at = row->trajectory[lane];
            if (at < 0 || CONST_LANE(row->dt, lane) == 0) continue;
            const int64_t place = at * steps + filled[at]++;
            t[place] = CONST_LANE(row->t, lane);
            dt[place] = CONST_LANE(row->dt, lane);
            for (int n = 0; n < STATES; n++) {
                u[place * STATES + n] = CONST_LANE(row->u[n], lane);
                k1[place * STATES + n] = CONST_LANE(row->k[0][n], lane);
            }
        }
    }
}

/* -- what an attempt works on ------------------------------------------------------------------------------------ */

/* What grows with the square of the states, or with states times stages, is too large for the stack of a thread where
   there are many; functions that have such variables do not call themselves. */
#if STATES > 32 && !defined(__CUDACC__)
#define ROOMY static _Thread_local
#else
#define ROOMY
#endif

static inline v_t sum_of_squares(const v_t *x) {
    v_t total = x[0] * x[0];
    for (int n = 1; n < STATES; n++) total += x[n] * x[n];
    return total;
}

/* Where every lane stands. */
typedef struct {
    v_t u[STATES], k1[STATES];
    v_t t, dt, end, sign;
    v_t memory[MEMORY + 1]; /* of the controller */
    v_i active;
} State;

/* What an attempt leads to. */
typedef struct {
    v_t u[STATES], after[STATES]; /* the new state, and the derivative there */
    v_t error[STATES], error_low[STATES];
    v_t k[ALL_STAGES][STATES];
#if IMPLICIT
    v_i converged;
    v_t shrink;
#endif
} Trial;

/* Where the reverse sweep stands in every lane. */
typedef struct {
    int64_t at[LANES], cursor[LANES];
    v_t state[STATES]; /* cotangent of the state */
    v_t carry[STATES]; /* cotangent of the derivative there, of methods that carry it over */
} Way;
