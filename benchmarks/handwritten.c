/* What a careful programmer writes in an afternoon: loss and exact gradient of one Lotka-Volterra UDE

       du = rates u + 0.3 (W3 tanh(W2 tanh(W1 u + b1) + b2) + b3),    loss = mean over trajectories, saves, states of u^2

   by Tsit5 with the step-size control of the package, the stages and activations of accepted steps kept, and the
   discrete adjoint by hand. Plain scalar C, libm's tanh, one trajectory after another. The tableau is handed in. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HIDDEN 32
#define STAGES 7
#define SCALE 0.3

typedef struct {
    double w1[HIDDEN][2], b1[HIDDEN], w2[HIDDEN][HIDDEN], b2[HIDDEN], w3[2][HIDDEN], b3[2];
} Net;

typedef struct {
    double a[STAGES][STAGES], b[STAGES], error[STAGES], interpolant[STAGES][4];
} Tableau;

typedef struct {
    double first[HIDDEN], second[HIDDEN];
} Activations;

typedef struct {
    double t, t_next, h, u[2], k[STAGES][2];
    Activations kept[STAGES];
} Step;

static const double rates[2] = {1.3, -1.8};

static void f(const Net *net, const double u[2], double du[2], Activations *kept) {
    for (int i = 0; i < HIDDEN; i++) kept->first[i] = tanh(net->w1[i][0] * u[0] + net->w1[i][1] * u[1] + net->b1[i]);
    for (int i = 0; i < HIDDEN; i++) {
        double sum = net->b2[i];
        for (int j = 0; j < HIDDEN; j++) sum += net->w2[i][j] * kept->first[j];
        kept->second[i] = tanh(sum);
    }
    for (int n = 0; n < 2; n++) {
        double sum = net->b3[n];
        for (int j = 0; j < HIDDEN; j++) sum += net->w3[n][j] * kept->second[j];
        du[n] = rates[n] * u[n] + SCALE * sum;
    }
}

/* Add J^T g to ubar and the cotangents of the weights to bar. */
static void pull_f(const Net *net, Net *bar, const double u[2], const Activations *kept, const double g[2],
                   double ubar[2]) {
    double second[HIDDEN], first[HIDDEN] = {0};
    const double out[2] = {SCALE * g[0], SCALE * g[1]};
    for (int n = 0; n < 2; n++) {
        bar->b3[n] += out[n];
        for (int j = 0; j < HIDDEN; j++) bar->w3[n][j] += out[n] * kept->second[j];
    }
    for (int i = 0; i < HIDDEN; i++) {
        second[i] = (out[0] * net->w3[0][i] + out[1] * net->w3[1][i]) * (1 - kept->second[i] * kept->second[i]);
        bar->b2[i] += second[i];
        for (int j = 0; j < HIDDEN; j++) {
            bar->w2[i][j] += second[i] * kept->first[j];
            first[j] += second[i] * net->w2[i][j];
        }
    }
    for (int n = 0; n < 2; n++) ubar[n] += rates[n] * g[n];
    for (int i = 0; i < HIDDEN; i++) {
        const double one = first[i] * (1 - kept->first[i] * kept->first[i]);
        bar->b1[i] += one;
        for (int n = 0; n < 2; n++) {
            bar->w1[i][n] += one * u[n];
            ubar[n] += one * net->w1[i][n];
        }
    }
}

static double norm(const double x[2], const double scale[2]) {
    return sqrt((x[0] / scale[0] * (x[0] / scale[0]) + x[1] / scale[1] * (x[1] / scale[1])) / 2);
}

/* Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I, II.4; rounded to ten binary digits. */
static double first_step(const Net *net, const double u[2], const double du[2], double span, double tolerance) {
    double scale[2], probe[2], after[2];
    Activations unused;
    for (int n = 0; n < 2; n++) scale[n] = tolerance + tolerance * fabs(u[n]);
    const double d0 = norm(u, scale), d1 = norm(du, scale);
    const double h0 = fmin(d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1, span);
    for (int n = 0; n < 2; n++) probe[n] = u[n] + h0 * du[n];
    f(net, probe, after, &unused);
    for (int n = 0; n < 2; n++) after[n] -= du[n];
    const double steepest = fmax(d1, norm(after, scale) / h0);
    const double h1 = steepest <= 1e-15 ? fmax(1e-6, 1e-3 * h0) : pow(0.01 / steepest, 1.0 / 6);
    int exponent;
    const double mantissa = frexp(fmin(100 * h0, h1), &exponent);
    return fmin(ldexp(nearbyint(mantissa * 1024) / 1024, exponent), span);
}

static void stage(const Tableau *tab, const double u[2], double k[STAGES][2], double h, int i, double y[2]) {
    for (int n = 0; n < 2; n++) {
        double sum = 0;
        for (int j = 0; j < i; j++) sum += tab->a[i][j] * k[j][n];
        y[n] = u[n] + h * sum;
    }
}

static void weights(const Tableau *tab, double theta, double w[STAGES]) {
    for (int j = 0; j < STAGES; j++) {
        const double *c = tab->interpolant[j];
        w[j] = theta * (c[0] + theta * (c[1] + theta * (c[2] + theta * c[3])));
    }
}

typedef struct {
    Step *steps;
    int count, room;
} Record;

static int solve(const Net *net, const Tableau *tab, const double *u0, double end, double tolerance,
                 const double *saves, int saved, double *values, Record *record) {
    double t = 0, u[2] = {u0[0], u0[1]}, k1[2], y[2], memory = 1e-4;
    Activations start;
    int cursor = 0;
    record->count = 0;
    f(net, u, k1, &start);
    double h = first_step(net, u, k1, end, tolerance);
    while (cursor < saved && saves[cursor] <= t) memcpy(values + 2 * cursor++, u, sizeof(u));
    for (int tried = 0; t < end && tried < 100000; tried++) {
        if (record->count == record->room) {
            record->room = record->room ? 2 * record->room : 64;
            record->steps = realloc(record->steps, record->room * sizeof(Step));
            if (!record->steps) return -1;
        }
        Step *s = &record->steps[record->count];
        const int last = t + h >= end;
        const double taken = last ? end - t : h, t_next = last ? end : t + h;
        double error = 0;
        s->t = t, s->t_next = t_next, s->h = taken;
        memcpy(s->u, u, sizeof(u));
        memcpy(s->k[0], k1, sizeof(k1));
        s->kept[0] = start;
        for (int i = 1; i < STAGES; i++) {
            stage(tab, u, s->k, taken, i, y);
            f(net, y, s->k[i], &s->kept[i]);
        }
        for (int n = 0; n < 2; n++) {
            double sum = 0;
            for (int j = 0; j < STAGES; j++) sum += tab->error[j] * s->k[j][n];
            const double scaled = taken * sum / (tolerance + tolerance * fmax(fabs(u[n]), fabs(y[n])));
            error += scaled * scaled / 2;
        }
        error = sqrt(error);
        const double proportional = pow(fmax(error, 1e-30), 0.14), rejected = 0.9 / proportional;
        double factor = fmax(rejected, 0.2);
        if (error <= 1) {
            factor = fmin(fmax(rejected * pow(memory, 0.08), 0.2), 10.0);
            memory = fmax(error, 1e-4);
            for (; cursor < saved && saves[cursor] <= t_next; cursor++) {
                double w[STAGES];
                if (saves[cursor] == t_next) {
                    memcpy(values + 2 * cursor, y, sizeof(y));
                    continue;
                }
                weights(tab, (saves[cursor] - t) / taken, w);
                for (int n = 0; n < 2; n++) {
                    double sum = 0;
                    for (int j = 0; j < STAGES; j++) sum += w[j] * s->k[j][n];
                    values[2 * cursor + n] = u[n] + taken * sum;
                }
            }
            t = t_next;
            memcpy(u, y, sizeof(u));
            memcpy(k1, s->k[STAGES - 1], sizeof(k1));
            start = s->kept[STAGES - 1];
            record->count++;
        }
        h = taken * (nearbyint(factor * 1024) / 1024);
    }
    return 0;
}

static void pull_back(const Net *net, Net *bar, const Tableau *tab, const double *saves, int saved,
                      const double *grad, const Record *record, double ubar[2]) {
    double carried[2] = {0, 0};
    int cursor = saved - 1;
    ubar[0] = ubar[1] = 0;
    for (int row = record->count - 1; row >= 0; row--) {
        const Step *s = &record->steps[row];
        double kbar[STAGES][2] = {{0}}, inside[2] = {0, 0}, y[2];
        kbar[STAGES - 1][0] = carried[0], kbar[STAGES - 1][1] = carried[1];
        for (; cursor >= 0 && saves[cursor] > s->t; cursor--) {
            double w[STAGES];
            const double *g = grad + 2 * cursor;
            if (saves[cursor] == s->t_next) {
                ubar[0] += g[0], ubar[1] += g[1];
                continue;
            }
            weights(tab, (saves[cursor] - s->t) / s->h, w);
            for (int n = 0; n < 2; n++) {
                inside[n] += g[n];
                for (int j = 0; j < STAGES; j++) kbar[j][n] += s->h * w[j] * g[n];
            }
        }
        for (int i = STAGES - 1; i > 0; i--) {
            double ybar[2] = {0, 0};
            stage(tab, s->u, (double(*)[2])s->k, s->h, i, y);
            pull_f(net, bar, y, &s->kept[i], kbar[i], ybar);
            /* the last stage stands at the end of the step, whose cotangent is there */
            if (i == STAGES - 1) ybar[0] += ubar[0], ybar[1] += ubar[1], ubar[0] = ubar[1] = 0;
            for (int n = 0; n < 2; n++) {
                ubar[n] += ybar[n];
                for (int j = 0; j < i; j++) kbar[j][n] += s->h * tab->a[i][j] * ybar[n];
            }
        }
        ubar[0] += inside[0], ubar[1] += inside[1];
        carried[0] = kbar[0][0], carried[1] = kbar[0][1];
    }
    if (record->count) pull_f(net, bar, record->steps[0].u, &record->steps[0].kept[0], carried, ubar);
    for (; cursor >= 0; cursor--) ubar[0] += grad[2 * cursor], ubar[1] += grad[2 * cursor + 1];
}

/* Loss and gradient of all trajectories; returns the loss, NaN without memory. values: (batch, saved, 2). */
double handwritten(const Net *net, Net *bar, const Tableau *tab, const double *u0, long batch, double end,
                   double tolerance, const double *saves, int saved, double *values, long *accepted) {
    Record record = {0};
    double loss = 0, ubar[2];
    double *grad = malloc(2 * saved * sizeof(double));
    const double share = 1.0 / (2.0 * saved * batch);
    memset(bar, 0, sizeof(Net));
    *accepted = 0;
    for (long at = 0; at < batch; at++) {
        double *u = values + 2 * saved * at;
        if (!grad || solve(net, tab, u0 + 2 * at, end, tolerance, saves, saved, u, &record)) {
            loss = NAN;
            break;
        }
        for (int i = 0; i < 2 * saved; i++) loss += share * u[i] * u[i], grad[i] = 2 * share * u[i];
        pull_back(net, bar, tab, saves, saved, grad, &record, ubar);
        *accepted += record.count;
    }
    free(grad);
    free(record.steps);
    return loss;
}
