/* total[i * columns + j] += sum over held evaluations s (and lanes) of left[s][i] right[s][j]. */
static void add_products(real *restrict total, int rows, int columns, const v_t *restrict left, int left_row,
                         const v_t *restrict right, int right_row, int count) {
#if LANES > 1
    for (int i = 0; i < rows; i += 2) {
        const int second = i + 1 < rows;
        for (int j = 0; j < columns; j += 2) {
            const int next = j + 1 < columns;
            v_t s00 = v_splat(0), s01 = v_splat(0), s10 = v_splat(0), s11 = v_splat(0);
            for (int s = 0; s < count; s++) {
                const v_t a = left[s * left_row + i], b = left[s * left_row + i + second];
                const v_t x = right[s * right_row + j], y = right[s * right_row + j + next];
                s00 += a * x;
                s01 += a * y;
                s10 += b * x;
                s11 += b * y;
            }
            total[i * columns + j] += v_hsum(s00);
            if (next) total[i * columns + j + 1] += v_hsum(s01);
            if (second) total[(i + 1) * columns + j] += v_hsum(s10);
            if (second && next) total[(i + 1) * columns + j + 1] += v_hsum(s11);
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
