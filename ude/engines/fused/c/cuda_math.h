/* The functions of c/vector_math.h for one trajectory a thread: CUDA's own, which for double are within 2 ulp. Before this
   text `real` is defined. Masks are 0 or -1, as there. */

typedef real v_t;
typedef int v_i;
typedef v_i mask;
typedef v_t s_t;
typedef v_i s_i;

#define LANES 1
#define FUNCTION __device__ static __forceinline__
#define COMPARE(name, op) FUNCTION v_i v_##name(v_t x, v_t y) { return -(v_i)(x op y); }
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)
COMPARE(eq, ==)
COMPARE(ne, !=)
#undef COMPARE

FUNCTION v_t v_splat(real x) { return x; }
FUNCTION v_t v_select(v_i m, v_t x, v_t y) { return m ? x : y; }
FUNCTION v_t v_number(v_i m) { return m ? 1 : 0; }
FUNCTION int v_any(v_i m) { return m != 0; }
FUNCTION int v_all(v_i m) { return m != 0; }
FUNCTION real v_hsum(v_t x) { return x; }

/* as torch: what is not a number stays so in min and max, not in fmin and fmax */
FUNCTION v_t v_min(v_t x, v_t y) { return x < y || x != x ? x : y; }
FUNCTION v_t v_max(v_t x, v_t y) { return x > y || x != x ? x : y; }
FUNCTION v_t v_fmin(v_t x, v_t y) { return fmin(x, y); }
FUNCTION v_t v_fmax(v_t x, v_t y) { return fmax(x, y); }

#define ONE(name, of) FUNCTION v_t v_##name(v_t x) { return of; }
ONE(abs, fabs(x))
ONE(floor, floor(x))
ONE(ceil, ceil(x))
ONE(round, rint(x))
ONE(trunc, trunc(x))
ONE(sqrt, sqrt(x))
ONE(rsqrt, 1 / sqrt(x))
ONE(exp, exp(x))
ONE(expm1, expm1(x))
ONE(exp2, exp2(x))
ONE(log, log(x))
ONE(log1p, log1p(x))
ONE(log2, log2(x))
ONE(log10, log10(x))
ONE(tanh, tanh(x))
ONE(sin, sin(x))
ONE(cos, cos(x))
ONE(tan, tan(x))
ONE(asin, asin(x))
ONE(acos, acos(x))
ONE(atan, atan(x))
ONE(sinh, sinh(x))
ONE(cosh, cosh(x))
ONE(asinh, asinh(x))
ONE(acosh, acosh(x))
ONE(atanh, atanh(x))
ONE(erf, erf(x))
ONE(erfc, erfc(x))
ONE(lgamma, lgamma(x))
#undef ONE

FUNCTION v_t v_copysign(v_t x, v_t y) { return copysign(x, y); }
FUNCTION v_t v_pow(v_t x, v_t y) { return pow(x, y); }
FUNCTION v_t v_atan2(v_t y, v_t x) { return atan2(y, x); }
FUNCTION v_t v_hypot(v_t x, v_t y) { return hypot(x, y); }
FUNCTION v_t v_fmod(v_t x, v_t y) { return fmod(x, y); }

FUNCTION v_t v_sigmoid(v_t x) {
    const v_t e = exp(-fabs(x));
    return (x < 0 ? e : (v_t)1) / (1 + e);
}

/* torch.remainder: the sign of the divisor */
FUNCTION v_t v_remainder(v_t x, v_t y) {
    const v_t r = fmod(x, y);
    return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}

/* as in c/vector_math.h */
__device__ static v_t v_digamma(v_t v) {
    double x = (double)v, y = 0.0;
    if (x == 0.0) return (v_t)copysign((double)INFINITY, -x);
    if (x < 0.0) {
        const double part = x - trunc(x);
        if (part == 0.0) return (v_t)NAN;
        y = -3.14159265358979323846 / tan(3.14159265358979323846 * part);
        x = 1.0 - x;
    }
    for (; x < 10.0; x += 1.0) y -= 1.0 / x;
    const double i = 1.0 / (x * x);
    const double tail = i * (1.0 / 12 - i * (1.0 / 120 - i * (1.0 / 252 - i * (1.0 / 240 - i * (1.0 / 132 - i * (691.0 / 32760 - i / 12))))));
    return (v_t)(x > 1e17 ? y + log(x) : y + (log(x) - 0.5 / x - tail));
}
#undef FUNCTION
