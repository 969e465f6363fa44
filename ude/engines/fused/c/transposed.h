SEPARATE static void solve_transposed(const Factors *m, v_t *x) {
    const int rows = row_count();
    for (int i = 0; i < rows; i++) {
        x[i] *= m->inverse[i];
        for (int j = i + 1; j < rows; j++) x[j] -= m->lu[i][j] * x[i];
    }
    for (int i = rows - 1; i > 0; i--)
        for (int j = 0; j < i; j++) x[j] -= m->lu[i][j] * x[i];
    if (m->swapped)
        for (int k = rows - 1; k >= 0; k--)
            for (int lane = 0; lane < LANES; lane++)
                if (m->pivot[k][lane] != k) swap_lanes(&x[k], &x[m->pivot[k][lane]], lane);
}

/* Solve the stages of a recorded step as exactly as rounding allows, from the stages k that it was taken with: the
   reverse of a step is the derivative of what its equations define. A lane where the iteration fails, which the
   Jacobian of an earlier step may have served better, keeps a stage as it was. */
static void tighten(Context *c, const Arguments *a, const Row *row, Factors *factors, v_t k[][STATES]) {
    ROOMY v_t matrix[STATES * STATES];
    v_t end[STATES];
    Newton newton;
    const v_t step = row->dt * (real)GAMMA;
    f_jacobian(c, row->u, &row->t, matrix);
    factorize(matrix, step, factors);
    newton_start(&newton, a, row->u, step, factors, (real)1e-9, 60);
    solve_stages(c, &newton, row->u, row->t, row->dt, k, end, 0, 1);
}
