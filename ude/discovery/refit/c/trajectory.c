/* A trajectory of du/dt = f(u, p, t) and its forward sensitivities S = du/d(p, u0), for f given as a list of operations.

   The list is run, not compiled: a discovery tries hundreds of right-hand sides, each for a few thousand steps, so that a
   compiler would take longer than the integration. Every operation computes its value and its derivatives along all
   directions at once (forward mode), which costs less than interpreting the derivatives' formulas would.

   A state of the integration is u (n) followed by S (n x width, row by row), all of it under error control. The tableau
   (STAGES, EXTRA, POWERS, A, C, B, E_HIGH, E_LOW, DENSE) is written above this text. Nothing here is kept between calls. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALL (STAGES + EXTRA)

enum { ADD, MUL, DIV, POW, MINIMUM, MAXIMUM, /* of two numbers; what follows is of one */
       SQUARE, SQRT, EXP, LOG, SIN, COS, TAN, TANH, SINH, COSH, ASIN, ACOS, ATAN, ABS, SIGN, SIGMOID, STEP };

enum { DONE = 0, NOWHERE = 1, STIFF = 2, SPENT = 3, NO_MEMORY = 4 };

typedef struct {
    int states, width, registers, operations;
    const int *code;    /* operations x 4: what, result, first, second */
    const int *active;  /* per register: whether it has derivatives */
    const int *outputs; /* per state: the register of its rate */
    double *values;     /* per register: 0 is t, 1 to `states` are u */
    double *slopes;     /* registers x width */
} Program;

static double sigmoid(double x) { return x >= 0 ? 1.0 / (1.0 + exp(-x)) : exp(x) / (1.0 + exp(x)); }

/* The value of an operation, and its partial derivatives. */
static double apply(int what, double x, double y, double *dx, double *dy) {
    double v;
    switch (what) {
    case ADD: *dx = *dy = 1.0; return x + y;
    case MUL: *dx = y; *dy = x; return x * y;
    case DIV: v = x / y; *dx = 1.0 / y; *dy = -v / y; return v;
    case POW: v = pow(x, y); *dx = y * pow(x, y - 1.0); *dy = x > 0 ? v * log(x) : 0.0; return v;
    case MINIMUM: *dx = x <= y; *dy = x > y; return x <= y ? x : y;
    case MAXIMUM: *dx = x >= y; *dy = x < y; return x >= y ? x : y;
    case SQUARE: *dx = 2.0 * x; return x * x;
    case SQRT: v = sqrt(x); *dx = 0.5 / v; return v;
    case EXP: return *dx = exp(x);
    case LOG: *dx = 1.0 / x; return log(x);
    case SIN: *dx = cos(x); return sin(x);
    case COS: *dx = -sin(x); return cos(x);
    case TAN: v = tan(x); *dx = 1.0 + v * v; return v;
    case TANH: v = tanh(x); *dx = 1.0 - v * v; return v;
    case SINH: *dx = cosh(x); return sinh(x);
    case COSH: *dx = sinh(x); return cosh(x);
    case ASIN: *dx = 1.0 / sqrt(1.0 - x * x); return asin(x);
    case ACOS: *dx = -1.0 / sqrt(1.0 - x * x); return acos(x);
    case ATAN: *dx = 1.0 / (1.0 + x * x); return atan(x);
    case ABS: *dx = (x > 0) - (x < 0); return fabs(x);
    case SIGN: *dx = 0.0; return (x > 0) - (x < 0);
    case SIGMOID: v = sigmoid(x); *dx = v * (1.0 - v); return v;
    case STEP: *dx = 0.0; return x == 0 ? 0.5 : x > 0;
    }
    return NAN;
}

/* d(u, S)/dt at t; 0 where some rate is no finite number. */
static int rates(const Program *p, double t, const double *y, double *dy) {
    const int n = p->states, w = p->width;
    p->values[0] = t;
    memcpy(p->values + 1, y, n * sizeof(double));
    memcpy(p->slopes + w, y + n, (size_t)n * w * sizeof(double));
    for (int i = 0; i < p->operations; i++) {
        const int *op = p->code + 4 * i;
        const int to = op[1], one = op[2], two = op[3];
        double dx = 0.0, d2 = 0.0;
        p->values[to] = apply(op[0], p->values[one], p->values[two], &dx, &d2);
        if (!w || !p->active[to])
            continue;
        double *restrict out = p->slopes + (size_t)to * w;
        const double *a = p->slopes + (size_t)one * w, *b = p->slopes + (size_t)two * w;
        if (op[0] > MAXIMUM || !p->active[two])
            for (int k = 0; k < w; k++) out[k] = dx * a[k];
        else if (!p->active[one])
            for (int k = 0; k < w; k++) out[k] = d2 * b[k];
        else
            for (int k = 0; k < w; k++) out[k] = dx * a[k] + d2 * b[k];
    }
    double sum = 0.0;
    for (int i = 0; i < n; i++) {
        const int from = p->outputs[i];
        dy[i] = p->values[from];
        sum += dy[i];
        if (p->active[from])
            memcpy(dy + n + (size_t)i * w, p->slopes + (size_t)from * w, w * sizeof(double));
        else
            memset(dy + n + (size_t)i * w, 0, w * sizeof(double));
    }
    for (int k = n; k < n + n * w; k++) sum += dy[k];
    return isfinite(sum);
}

static double norm(int size, const double *x, const double *y, const double *z, double rtol, const double *atol) {
    double sum = 0.0;
    for (int k = 0; k < size; k++) {
        const double scaled = x[k] / (atol[k] + rtol * fmax(fabs(y[k]), fabs(z[k])));
        sum += scaled * scaled;
    }
    return sqrt(sum / size);
}

/* Hairer, Norsett & Wanner, Solving ODEs I, II.4: a first step whose error will be about right. */
static double first_step(const Program *p, int size, double t, double span, const double *y, const double *f,
                         double *moved, double *there, double rtol, const double *atol) {
    const double d0 = norm(size, y, y, y, rtol, atol), d1 = norm(size, f, y, y, rtol, atol);
    double h = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 * span : 0.01 * d0 / d1;
    h = fmin(h, span);
    for (int k = 0; k < size; k++) moved[k] = y[k] + h * f[k];
    if (!rates(p, t + h, moved, there))
        return 0.1 * h;
    for (int k = 0; k < size; k++) there[k] -= f[k];
    const double most = fmax(d1, norm(size, there, y, y, rtol, atol) / h);
    const double next = most <= 1e-15 ? fmax(1e-6 * span, 1e-3 * h) : pow(0.01 / most, 1.0 / ORDER);
    return fmin(fmin(100.0 * h, next), span);
}

static void combine(int size, const double *y, double h, int terms, const double *weights, double *const *k, double *out) {
    memcpy(out, y, size * sizeof(double));
    for (int j = 0; j < terms; j++) {
        const double weight = h * weights[j];
        if (weight == 0.0) continue;
        const double *restrict slope = k[j];
        for (int i = 0; i < size; i++) out[i] += weight * slope[i];
    }
}

/* Integrates from times[0] to times[count - 1], which increase. start: the state at times[0]; found: count x size.
   values: the registers, of which those of constants and numbers are filled in; directions: registers x width, their
   derivatives. calls: of the right-hand side, up to `most`; steps between two times are bounded by `crawl`. */
int trajectory(int states, int width, int registers, int operations, const int *code, const int *active,
               const int *outputs, double *values, double *directions, int count, const double *times,
               const double *start, double rtol, const double *atol, long most, long crawl, long *calls, double *found) {
    const int size = states * (1 + width);
    Program p = {states, width, registers, operations, code, active, outputs, values, directions};
    double *memory = malloc((size_t)(ALL + 5) * size * sizeof(double));
    if (!memory) return NO_MEMORY;
    double *k[ALL], *y = memory + (size_t)ALL * size, *next = y + size, *wrong = next + size, *low = wrong + size,
           *argument = low + size;
    for (int j = 0; j < ALL; j++) k[j] = memory + (size_t)j * size;
    const double end = times[count - 1];
    double t = times[0], before = 1e-4;
    int at = 1, stiff = 0, calm = 0, rejected = 0, outcome = NOWHERE;
    long steps = 0;
    *calls = 2;
    memcpy(y, start, size * sizeof(double));
    memcpy(found, start, size * sizeof(double));
    if (!rates(&p, t, y, k[0])) goto over;
    double h = first_step(&p, size, t, end - t, y, k[0], argument, next, rtol, atol);
    while (at < count) {
        if (*calls >= most) { outcome = SPENT; goto over; }
        if (++steps > crawl || h < 16.0 * 2.2e-16 * fmax(fabs(t), fabs(end))) goto over;
        const int last = t + 1.01 * h >= end;
        if (last) h = end - t;
        int fine = 1;
        for (int j = 1; j < STAGES && fine; j++) {
            combine(size, y, h, j, A[j], k, argument);
            fine = rates(&p, t + C[j] * h, argument, k[j]);
            ++*calls;
        }
        if (!fine) { h *= 0.25; rejected = 1; continue; }
        combine(size, y, h, STAGES, B, k, next);
        memset(wrong, 0, 2 * (size_t)size * sizeof(double));  /* and low, which follows it */
        for (int j = 0; j < STAGES; j++)
            for (int i = 0; i < size; i++) {
                wrong[i] += h * E_HIGH[j] * k[j][i];
                low[i] += h * E_LOW[j] * k[j][i];
            }
        const double high = norm(size, wrong, y, next, rtol, atol), crude = norm(size, low, y, next, rtol, atol);
        const double error = high == 0.0 ? 0.0 : high * high / sqrt(high * high + 0.01 * crude * crude);
        if (!(error <= 1.0)) {
            h *= isfinite(error) ? fmax(0.2, 0.9 * pow(error, -1.0 / ORDER)) : 0.25;
            rejected = 1;
            continue;
        }
        const double after = last ? end : t + h;
        if (!rates(&p, after, next, k[STAGES])) { ++*calls; h *= 0.25; rejected = 1; continue; }
        ++*calls;
        /* h times the Jacobian's size, by the last stage, which is near the new state (Hairer & Wanner II, IV.2) */
        double above = 0.0, below = 0.0;
        for (int i = 0; i < states; i++) {
            const double df = k[STAGES][i] - k[STAGES - 1][i], du = next[i] - argument[i];
            above += df * df;
            below += du * du;
        }
        if (below > 0.0 && h * sqrt(above / below) > 6.1) {
            calm = 0;
            if (++stiff == 15) { outcome = STIFF; goto over; }
        } else if (stiff && ++calm == 6)
            stiff = 0;
        if (times[at] < after) {
            for (int j = STAGES + 1; j < ALL; j++) {
                combine(size, y, h, j, A[j], k, argument);
                fine = fine && rates(&p, t + C[j] * h, argument, k[j]);
                ++*calls;
            }
            if (!fine) { h *= 0.25; rejected = 1; continue; }
        }
        for (; at < count && times[at] <= after; at++, steps = 0) {
            double weights[ALL];
            const double theta = (times[at] - t) / h;
            if (times[at] == after) {
                memcpy(found + (size_t)at * size, next, size * sizeof(double));
                continue;
            }
            for (int j = 0; j < ALL; j++) {
                weights[j] = 0.0;
                for (int m = POWERS - 1; m >= 0; m--) weights[j] = (weights[j] + DENSE[j][m]) * theta;
            }
            combine(size, y, h, ALL, weights, k, found + (size_t)at * size);
        }
        t = after;
        memcpy(y, next, size * sizeof(double));
        memcpy(k[0], k[STAGES], size * sizeof(double));
        /* a PI controller with the constants of DOP853 left at their defaults but beta, which damps its steps here */
        const double safe = fmax(error, 1e-10);
        double factor = 0.9 * pow(safe, -0.7 / ORDER) * pow(before, 0.4 / ORDER);
        factor = fmin(fmax(factor, 0.3), rejected ? 1.0 : 6.0);
        before = fmax(safe, 1e-4);
        rejected = 0;
        h *= factor;
    }
    outcome = DONE;
over:
    free(memory);
    return outcome;
}
