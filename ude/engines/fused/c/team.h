/* Chunks shared out to the threads of a team: each takes the next chunk until none is left. Which thread works on a chunk
   changes nothing about its result. */

typedef struct {
    const Arguments *arguments;
    const int64_t *bounds; /* first and last of each chunk */
    Record **records;
    int64_t count, next;
    real *sums; /* of a reverse sweep: a row of `row` numbers for each chunk */
    int64_t row, failed;
} Team;

EXPORT void ude_forward_team(void *data) {
    Team *team = data;
    int64_t i;
    while ((i = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED)) < team->count)
        if (ude_forward(team->arguments, team->bounds[2 * i], team->bounds[2 * i + 1], &team->records[i]))
            __atomic_store_n(&team->failed, 1, __ATOMIC_RELAXED);
}

/* -- the reverse sweep ------------------------------------------------------------------------------------------ */

EXPORT void ude_pullback_team(void *data) {
    Team *team = data;
    int64_t i;
    while ((i = __atomic_fetch_add(&team->next, 1, __ATOMIC_RELAXED)) < team->count) {
        Arguments mine = *team->arguments;
        mine.grad_shared = team->sums + i * team->row;
        if (ude_pullback(&mine, team->bounds[2 * i], team->bounds[2 * i + 1], team->records[i]))
            __atomic_store_n(&team->failed, 1, __ATOMIC_RELAXED);
    }
}
