/* total[i * columns + j] += sum over held evaluations s (and lanes) of left[s][i] right[s][j]. */
static void add_products(real *restrict total, int rows, int columns, const v_t *restrict left, int left_row,
                         const v_t *restrict right, int right_row, int count) {
#if LANES > 1
    /* blocks of four by two, whose factors are loaded once for eight products */
    for (int i = 0; i < rows; i += 4) {
        const int in_block = rows - i < 4 ? rows - i : 4;
        const int i1 = in_block > 1, i2 = in_block > 2 ? 2 : 0, i3 = in_block > 3 ? 3 : 0;
        for (int j = 0; j < columns; j += 2) {
            const int next = j + 1 < columns;
            v_t first[4], second[4];
            for (int k = 0; k < 4; k++) first[k] = second[k] = v_splat(0);
            for (int s = 0; s < count; s++) {
                const v_t *a = left + s * left_row + i;
                const v_t x = right[s * right_row + j], y = right[s * right_row + j + next];
                const v_t a0 = a[0], a1 = a[i1], a2 = a[i2], a3 = a[i3];
                first[0] += a0 * x;
                second[0] += a0 * y;
                first[1] += a1 * x;
                second[1] += a1 * y;
                first[2] += a2 * x;
                second[2] += a2 * y;
                first[3] += a3 * x;
                second[3] += a3 * y;
            }
            for (int k = 0; k < in_block; k++) {
                total[(i + k) * columns + j] += v_hsum(first[k]);
                if (next) total[(i + k) * columns + j + 1] += v_hsum(second[k]);
            }
        }
    }
#else
    enum { WIDTH = sizeof(w_t) / sizeof(real) };
    for (int i = 0; i < rows; i++) {
        int j = 0;
        for (; j + 4 * WIDTH <= columns; j += 4 * WIDTH) {
            real *out = total + i * columns + j;
            w_t s0 = w_load(out), s1 = w_load(out + WIDTH), s2 = w_load(out + 2 * WIDTH), s3 = w_load(out + 3 * WIDTH);
            for (int s = 0; s < count; s++) {
                const w_t a = w_splat(left[s * left_row + i]);
                const real *x = right + s * right_row + j;
                s0 += a * w_load(x);
                s1 += a * w_load(x + WIDTH);
                s2 += a * w_load(x + 2 * WIDTH);
                s3 += a * w_load(x + 3 * WIDTH);
            }
            w_store(out, s0);
            w_store(out + WIDTH, s1);
            w_store(out + 2 * WIDTH, s2);
            w_store(out + 3 * WIDTH, s3);
        }
        for (; j + WIDTH <= columns; j += WIDTH) {
            w_t sum = w_load(total + i * columns + j);
            for (int s = 0; s < count; s++) sum += w_splat(left[s * left_row + i]) * w_load(right + s * right_row + j);
            w_store(total + i * columns + j, sum);
        }
        for (; j < columns; j++) {
            real sum = 0;
            for (int s = 0; s < count; s++) sum += left[s * left_row + i] * right[s * right_row + j];
            total[i * columns + j] += sum;
        }
    }
#endif
}
