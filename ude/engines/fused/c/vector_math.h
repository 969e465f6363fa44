/* Vector mathematics for generated programs: a template, pasted once for each (real type, number of lanes).
 *
 * Before each paste define
 *     VM_REAL   double or float
 *     VM_LANES  1, 2, 4, 8 or 16
 *     VM(name)  a prefixing macro, for instance `#define VM(name) w_##name`
 * All three, and every macro of this file, are undefined at its end. <math.h>, <stdint.h> and <string.h> are included.
 *
 * It defines the type VM(t) of VM_LANES reals, the integer type VM(i) of as many lanes and the same width, which is
 * also the type of masks (each lane all ones or all zeros; with one lane a plain integer, 0 or -1), and functions on
 * them. Arithmetic (+ - * /) is the compiler's own, on VM(t) directly. Only GCC's vector extensions are used, which
 * clang has too; no intrinsics, so that the same text serves AVX2, AVX-512 and NEON.
 *
 * Vectors wider than the machine's registers are cut into register-wide pieces inside each function, since GCC would
 * otherwise carry every intermediate value through memory. A lane's result does not depend on VM_LANES.
 *
 * Compile with -fno-math-errno (else sqrt tests every lane for a negative argument) and never with -ffast-math or
 * -ffinite-math-only, under which NaN is not seen. -fno-trapping-math is harmless. Contraction to fused
 * multiply-add is welcome: every product that must be exact has factors short enough to be exact without it.
 *
 * Accuracy. At most 2 ulp for exp, expm1, exp2, log, log1p, log2, log10, tanh, sigmoid, sin, cos and erf, and 4 ulp
 * for pow, over the whole range, subnormal results of exp included. What grows from a rounded argument (softplus,
 * log_sigmoid, silu made from sigmoid) is as good as its formula. NaN, infinities and signed zeros are
 * treated as C99 and torch treat them. sigmoid(x) is 0 where it would be less
 * than 5e-309 (2e-39 for float).
 *
 * Coefficients are minimax, by Remez's exchange algorithm in 50 digits with the weight that makes the error of the
 * finished function relative. Reductions follow Cody and Waite (1980), and for log and pow the argument
 * s = f / (2 + f) of Tang (1990, ACM TOMS 16:378), as everyone's libm does. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* vectors are passed between inlined functions only, so how the ABI passes wide ones does not matter */
#pragma GCC diagnostic ignored "-Wpsabi"

/* ---- which type, how wide ---- */
#define VM_CAT_(a, b) a##b
#define VM_CAT(a, b) VM_CAT_(a, b)
#define VM_IS_double 1
#define VM_IS_float 0
#define VM_DOUBLE VM_CAT(VM_IS_, VM_REAL)

#if VM_DOUBLE
#define VM_INT int64_t
#define VM_UINT uint64_t
#define VM_SIZE 8
#define VM_C(d, f) d
#define VM_LIBM(name) name
#else
#define VM_INT int32_t
#define VM_UINT uint32_t
#define VM_SIZE 4
#define VM_C(d, f) f
#define VM_LIBM(name) name##f
#endif

#if defined(__AVX512F__) && (!defined(__PREFER_VECTOR_WIDTH__) || __PREFER_VECTOR_WIDTH__ > 256)
#define VM_REGISTER 64
#elif defined(__AVX2__)
#define VM_REGISTER 32
#else
#define VM_REGISTER 16
#endif

/* VMC(name): the same names for one register-wide piece */
#if VM_LANES * VM_SIZE > VM_REGISTER
#define VM_PIECES (VM_LANES * VM_SIZE / VM_REGISTER)
#define VM_PLANES (VM_REGISTER / VM_SIZE)
#define VMC(name) VM(c_##name)
#else
#define VM_PIECES 1
#define VM_PLANES VM_LANES
#define VMC(name) VM(name)
#endif

#define VM_INLINE __attribute__((always_inline, unused)) static inline

#if VM_PLANES == 1
typedef VM_REAL VMC(t);
typedef VM_INT VMC(i);
typedef VM_UINT VMC(ui);
#define VM_AT(v, k) (v)
#else
typedef VM_REAL VMC(t) __attribute__((vector_size(VM_PLANES * VM_SIZE)));
typedef VM_INT VMC(i) __attribute__((vector_size(VM_PLANES * VM_SIZE)));
typedef VM_UINT VMC(ui) __attribute__((vector_size(VM_PLANES * VM_SIZE)));
#define VM_AT(v, k) ((v)[k])
#endif
typedef VMC(t) VMC(v); /* the same type, for declarations where `t` would read as a name */

/* ---- bits, masks, memory ---- */
#if VM_PLANES == 1
VM_INLINE VMC(i) VMC(bits)(VMC(t) x) { VMC(i) b; memcpy(&b, &x, sizeof b); return b; }
VM_INLINE VMC(t) VMC(real)(VMC(i) b) { VMC(t) x; memcpy(&x, &b, sizeof x); return x; }
#define VM_COMPARE(name, op) VM_INLINE VMC(i) VMC(name)(VMC(t) a, VMC(t) b) { return -(VMC(i))(a op b); }
#else
VM_INLINE VMC(i) VMC(bits)(VMC(t) x) { return (VMC(i))x; }
VM_INLINE VMC(t) VMC(real)(VMC(i) b) { return (VMC(t))b; }
#define VM_COMPARE(name, op) VM_INLINE VMC(i) VMC(name)(VMC(t) a, VMC(t) b) { return (VMC(i))(a op b); }
#endif
VM_COMPARE(lt, <)
VM_COMPARE(le, <=)
VM_COMPARE(gt, >)
VM_COMPARE(ge, >=)
VM_COMPARE(eq, ==)
VM_COMPARE(ne, !=)
/* a where the mask holds, else b. By bits for one lane as well: a branch would keep loops over single numbers from
 * being vectorized (pow runs four times slower). On AVX GCC makes one blend of it. */
VM_INLINE VMC(t) VMC(select)(VMC(i) m, VMC(t) a, VMC(t) b) {
    return VMC(real)((VMC(bits)(a) & m) | (VMC(bits)(b) & ~m));
}

VM_INLINE VMC(t) VMC(splat)(VM_REAL x) {
    VMC(t) v;
    for (int k = 0; k < VM_PLANES; ++k) VM_AT(v, k) = x;
    return v;
}
VM_INLINE VMC(t) VMC(load)(const VM_REAL *p) { VMC(t) v; memcpy(&v, p, sizeof v); return v; }
VM_INLINE void VMC(store)(VM_REAL *p, VMC(t) v) { memcpy(p, &v, sizeof v); }
VM_INLINE int VMC(any)(VMC(i) m) {
    VM_INT r = 0;
    for (int k = 0; k < VM_PLANES; ++k) r |= VM_AT(m, k);
    return r != 0;
}
VM_INLINE int VMC(all)(VMC(i) m) {
    VM_INT r = -1;
    for (int k = 0; k < VM_PLANES; ++k) r &= VM_AT(m, k);
    return r != 0;
}
/* x where the mask holds, else +0 */
VM_INLINE VMC(t) VMC(keep)(VMC(i) m, VMC(t) x) { return VMC(real)(VMC(bits)(x) & m); }
/* 1 where the mask holds, else 0 */
VM_INLINE VMC(t) VMC(number)(VMC(i) m) { return VMC(keep)(m, VMC(splat)(1)); }

#define VM_SIGN ((VM_INT)((VM_UINT)1 << (VM_SIZE * 8 - 1)))
#define VM_MANT VM_C(52, 23)
#define VM_BIAS VM_C(1023, 127)
#define VM_SHIFTER VM_C(0x1.8p52, 0x1.8p23f) /* x + VM_SHIFTER has round(x) in its lowest bits */
#define VM_INFTY ((VM_REAL)INFINITY)
#define VM_NAN ((VM_REAL)NAN)
#define VM_S(x) VMC(splat)((VM_REAL)(x))

VM_INLINE VMC(t) VMC(neg)(VMC(t) x) { return -x; }
VM_INLINE VMC(t) VMC(abs)(VMC(t) x) { return VMC(real)(VMC(bits)(x) & ~VM_SIGN); }
VM_INLINE VMC(t) VMC(copysign)(VMC(t) x, VMC(t) y) {
    return VMC(real)((VMC(bits)(x) & ~VM_SIGN) | (VMC(bits)(y) & VM_SIGN));
}
VM_INLINE VMC(t) VMC(square)(VMC(t) x) { return x * x; }
VM_INLINE VMC(t) VMC(reciprocal)(VMC(t) x) { return (VM_REAL)1 / x; }
/* a b + c, one rounding where the machine has the instruction and the compiler contracts, else two */
VM_INLINE VMC(t) VMC(madd)(VMC(t) a, VMC(t) b, VMC(t) c) { return a * b + c; }
VM_INLINE VMC(t) VMC(sqrt)(VMC(t) x) {
    for (int k = 0; k < VM_PLANES; ++k) VM_AT(x, k) = VM_LIBM(__builtin_sqrt)(VM_AT(x, k));
    return x;
}
VM_INLINE VMC(t) VMC(rsqrt)(VMC(t) x) { return (VM_REAL)1 / VMC(sqrt)(x); }

/* torch.minimum, torch.maximum: NaN if either is NaN */
VM_INLINE VMC(t) VMC(min)(VMC(t) a, VMC(t) b) { return VMC(select)(VMC(lt)(a, b) | VMC(ne)(a, a), a, b); }
VM_INLINE VMC(t) VMC(max)(VMC(t) a, VMC(t) b) { return VMC(select)(VMC(gt)(a, b) | VMC(ne)(a, a), a, b); }
/* torch.fmin, torch.fmax: NaN only if both are NaN */
VM_INLINE VMC(t) VMC(fmin)(VMC(t) a, VMC(t) b) { return VMC(select)(VMC(le)(a, b) | VMC(ne)(b, b), a, b); }
VM_INLINE VMC(t) VMC(fmax)(VMC(t) a, VMC(t) b) { return VMC(select)(VMC(ge)(a, b) | VMC(ne)(b, b), a, b); }
VM_INLINE VMC(t) VMC(clamp)(VMC(t) x, VMC(t) low, VMC(t) high) { return VMC(min)(VMC(max)(x, low), high); }
/* torch.sign, except that NaN stays NaN (torch gives 0), so that a blow-up is never hidden; sign(-0) = 0 */
VM_INLINE VMC(t) VMC(sign)(VMC(t) x) {
    VMC(t) one = VMC(copysign)(VM_S(1), x);
    return VMC(select)(VMC(ne)(x, x), x, VMC(keep)(VMC(ne)(x, VM_S(0)), one));
}

/* ---- rounding: adding and subtracting 2^52 rounds half to even; larger numbers are integers already ---- */
VM_INLINE VMC(t) VMC(round)(VMC(t) x) {
    VMC(t) a = VMC(abs)(x), big = VM_S(VM_C(0x1p52, 0x1p23f));
    VMC(t) r = (a + big) - big;
    return VMC(select)(VMC(lt)(a, big), VMC(copysign)(r, x), x);
}
VM_INLINE VMC(t) VMC(floor)(VMC(t) x) {
    VMC(t) r = VMC(round)(x);
    return VMC(copysign)(r - VMC(keep)(VMC(gt)(r, x), VM_S(1)), x);
}
VM_INLINE VMC(t) VMC(ceil)(VMC(t) x) {
    VMC(t) r = VMC(round)(x);
    return VMC(copysign)(r + VMC(keep)(VMC(lt)(r, x), VM_S(1)), x);
}
VM_INLINE VMC(t) VMC(trunc)(VMC(t) x) { return VMC(copysign)(VMC(floor)(VMC(abs)(x)), x); }

/* ---- exponentials ---- */
#define VM_LOG2E VM_C(0x1.71547652b82fep+0, 0x1.715476p+0f)
/* ln 2 in two parts, the first with so few digits that its product with any exponent is exact */
#define VM_LN2_HI VM_C(0x1.62e42fefa3800p-1, 0x1.62ep-1f)
#define VM_LN2_LO VM_C(0x1.ef35793c76730p-45, 0x1.0bfbe8p-15f)

/* exp(r) - 1 - r for |r| <= ln(2)/2; the Horner chain is cut in two for the processor's sake */
VM_INLINE VMC(t) VMC(exp_tail)(VMC(t) r) {
    VMC(t) r2 = r * r;
#if VM_DOUBLE
    VMC(t) r4 = r2 * r2;
    VMC(t) a = 0x1.0000000000005p-1 + r * 0x1.555555555555cp-3;
    VMC(t) b = 0x1.5555555552143p-5 + r * 0x1.111111110e6f5p-7;
    VMC(t) c = 0x1.6c16c17f27fc7p-10 + r * 0x1.a01a01b5ce43bp-13;
    VMC(t) d = 0x1.a019a6ac05f30p-16 + r * 0x1.71ddea1966dbdp-19;
    VMC(t) e = 0x1.28a28af5c4fc5p-22 + r * 0x1.af768f4bdf964p-26;
    a = a + r2 * b;
    c = c + r2 * d;
    c = c + r4 * e;
    a = a + r4 * c;
#else
    VMC(t) a = 0.5f + r * 0x1.5554b0p-3f;
    VMC(t) b = 0x1.555486p-5f + r * 0x1.1227f2p-7f;
    b = b + r2 * 0x1.6d98f8p-10f;
    a = a + r2 * b;
#endif
    return r2 * a;
}
VM_INLINE VMC(t) VMC(expm1_poly)(VMC(t) r) { return r + VMC(exp_tail)(r); }
/* x = n ln 2 + r: returns r; *shifted has n in its lowest bits */
VM_INLINE VMC(t) VMC(exp_reduce)(VMC(t) x, VMC(t) *shifted) {
    VMC(t) z = x * VM_LOG2E + VM_SHIFTER;
    VMC(t) n = z - VM_SHIFTER;
    VMC(t) r = x - n * VM_LN2_HI;
    *shifted = z;
    return r - n * VM_LN2_LO;
}
/* 2^(n + offset) for the n in the lowest bits of `shifted`, while that is a normal number */
VM_INLINE VMC(t) VMC(power_of_two)(VMC(t) shifted, VM_INT offset) {
    VMC(ui) b = (VMC(ui))VMC(bits)(shifted);
    return VMC(real)((VMC(i))((b << VM_MANT) + ((VM_UINT)(VM_BIAS + offset) << VM_MANT)));
}
/* (1 + p) 2^n, in two steps so that subnormal results and those near overflow are right */
VM_INLINE VMC(t) VMC(scale)(VMC(t) p, VMC(t) n) {
    VMC(t) z1 = n * (VM_REAL)0.5 + VM_SHIFTER;
    VMC(t) z2 = (n - (z1 - VM_SHIFTER)) + VM_SHIFTER;
    VMC(t) s = VMC(power_of_two)(z1, 0);
    return (s + s * p) * VMC(power_of_two)(z2, 0);
}
VM_INLINE VMC(t) VMC(exp)(VMC(t) x) {
    VMC(t) z, r = VMC(exp_reduce)(x, &z);
    VMC(t) y = VMC(scale)(VMC(expm1_poly)(r), z - VM_SHIFTER);
    VMC(i) low = VMC(lt)(x, VM_S(VM_C(-746.0, -105.0f))), high = VMC(gt)(x, VM_S(VM_C(710.0, 89.0f)));
    return VMC(select)(high, VM_S(VM_INFTY), VMC(keep)(~low, y));
}
VM_INLINE VMC(t) VMC(exp2)(VMC(t) x) {
    VMC(t) n = (x + VM_SHIFTER) - VM_SHIFTER;
    VMC(t) f = x - n;
    VMC(t) y = VMC(scale)(VMC(expm1_poly)(f * VM_C(0x1.62e42fefa39efp-1, 0x1.62e430p-1f)), n);
    VMC(i) low = VMC(lt)(x, VM_S(VM_C(-1076.0, -151.0f))), high = VMC(ge)(x, VM_S(VM_C(1024.0, 128.0f)));
    return VMC(select)(high, VM_S(VM_INFTY), VMC(keep)(~low, y));
}
VM_INLINE VMC(t) VMC(expm1)(VMC(t) x) {
    VMC(t) z, r = VMC(exp_reduce)(x, &z);
    VMC(i) low = VMC(lt)(x, VM_S(VM_C(-40.0, -20.0f))), high = VMC(gt)(x, VM_S(VM_C(710.0, 89.0f)));
    VMC(t) tail = VMC(keep)(~low, VMC(exp_tail)(r));
    VMC(t) s = VMC(keep)(~low, VMC(power_of_two)(z, -1)); /* halved: 2^1024 is not a number */
    r = VMC(keep)(~low, r);
    VMC(t) y = (s - (VM_REAL)0.5) + s * r; /* r and the tail one by one: their sum's rounding would be felt at n = 1 */
    y = y + s * tail;
    y = VMC(select)(high, VM_S(VM_INFTY), y + y);
    return VMC(select)(VMC(lt)(VMC(abs)(x), VM_S(VM_C(0x1p-54, 0x1p-25f))), x, y);
}
/* tanh |x| = (1 - e) / (1 + e) with e = exp(-2|x|) = s + s p, s = 2^n; both sums round once only */
VM_INLINE VMC(t) VMC(tanh)(VMC(t) x) {
    VMC(t) a = VMC(abs)(x) * (VM_REAL)-2, z, r = VMC(exp_reduce)(a, &z);
    VMC(i) in = ~VMC(lt)(a, VM_S(VM_C(-40.0, -20.0f))); /* beyond, tanh is 1 to the last digit */
    VMC(t) p = VMC(keep)(in, VMC(expm1_poly)(r));
    VMC(t) s = VMC(keep)(in, VMC(power_of_two)(z, 0));
    VMC(t) t = ((VM_REAL)1 - s) - s * p;
    VMC(t) y = t / (((VM_REAL)1 + s) + s * p);
    return VMC(real)(VMC(bits)(y) | (VMC(bits)(x) & VM_SIGN));
}
/* 1 / (1 + exp(-x)): with E = exp(-x) an error in E counts E / (1 + E) < 1 times */
VM_INLINE VMC(t) VMC(sigmoid)(VMC(t) x) {
    VMC(t) z, r = VMC(exp_reduce)(-x, &z);
    VMC(t) s = VMC(power_of_two)(z, -1);
    VMC(t) e = s + s * VMC(expm1_poly)(r); /* half of exp(-x), which does not overflow where exp(-x) just does */
    VMC(i) one = VMC(gt)(x, VM_S(VM_C(40.0, 20.0f))), zero = VMC(lt)(x, VM_S(VM_C(-710.0, -89.0f)));
    VMC(t) y = (VM_REAL)0.5 / ((VM_REAL)0.5 + VMC(keep)(~one, e));
    return VMC(keep)(~zero, y);
}

/* ---- logarithms ---- */
/* x = 2^k m with sqrt(1/2) <= m < sqrt(2), for x positive and finite: returns m */
VM_INLINE VMC(t) VMC(log_reduce)(VMC(t) x, VMC(t) *k) {
    VM_UINT half = VM_C(UINT64_C(0x3fe6a09e667f3bcd), UINT32_C(0x3f3504f3));
    VMC(i) tiny = VMC(lt)(x, VM_S(VM_C(0x1p-1022, 0x1p-126f)));
    VMC(t) scaled = VMC(select)(tiny, x * VM_C(0x1p54, 0x1p25f), x);
    VMC(ui) b = (VMC(ui))VMC(bits)(scaled) + (((VM_UINT)VM_BIAS << VM_MANT) - half);
    VMC(ui) e = (b >> VM_MANT) | VM_C(UINT64_C(0x4330000000000000), UINT32_C(0x4b000000));
    *k = (VMC(real)((VMC(i))e) - VM_C((0x1p52 + 1023), (0x1p23f + 127))) -
         VMC(keep)(tiny, VM_S(VM_C(54, 25)));
    return VMC(real)((VMC(i))((b & (((VM_UINT)1 << VM_MANT) - 1)) + half));
}
/* k ln 2 + log(1 + f) = k ln 2 + f - (f^2/2 - s (f^2/2 + R)), where log(1 + f) = 2 s + s R(s^2), s = f / (2 + f) */
VM_INLINE VMC(t) VMC(log_finish)(VMC(t) k, VMC(t) f) {
    VMC(t) s = f / ((VM_REAL)2 + f), z = s * s;
#if VM_DOUBLE
    VMC(t) w = z * z;
    VMC(t) a = 0x1.5555555555568p-1 + z * 0x1.999999998aaafp-2;
    VMC(t) b = 0x1.24924939f55bap-2 + z * 0x1.c71c57b0fed50p-3;
    VMC(t) c = 0x1.746534d69bb42p-3 + z * 0x1.39ba35b7b89bfp-3;
    c = c + w * 0x1.2e2121f0512d2p-3;
    b = b + w * c;
    a = a + w * b;
#else
    VMC(t) a = 0x1.995eb6p-2f + z * 0x1.31e34cp-2f;
    a = 0x1.55557ap-1f + z * a;
#endif
    VMC(t) h = f * (VM_REAL)0.5 * f;
    VMC(t) g = h + z * a;
    VMC(t) q = h - s * g;
    q = q - k * VM_LN2_LO;
    return k * VM_LN2_HI - (q - f);
}
/* 0 -> -inf, negative -> NaN, inf -> inf, NaN -> NaN */
VM_INLINE VMC(t) VMC(log_edges)(VMC(t) x, VMC(t) y) {
    VMC(t) edge = VMC(select)(VMC(eq)(x, VM_S(0)), VM_S(-VM_INFTY), VMC(select)(VMC(lt)(x, VM_S(0)), VM_S(VM_NAN), x));
    return VMC(select)(VMC(gt)(x, VM_S(0)) & VMC(lt)(x, VM_S(VM_INFTY)), y, edge);
}
VM_INLINE VMC(t) VMC(log)(VMC(t) x) {
    VMC(t) k, m = VMC(log_reduce)(x, &k);
    return VMC(log_edges)(x, VMC(log_finish)(k, m - (VM_REAL)1));
}
VM_INLINE VMC(t) VMC(log2)(VMC(t) x) {
    VMC(t) k, m = VMC(log_reduce)(x, &k);
    VMC(t) y = VMC(log_finish)(VM_S(0), m - (VM_REAL)1);
    return VMC(log_edges)(x, k + y * VM_LOG2E);
}
VM_INLINE VMC(t) VMC(log10)(VMC(t) x) { return VMC(log)(x) * VM_C(0x1.bcb7b1526e50ep-2, 0x1.bcb7b2p-2f); }
/* u = 1 + x rounded, u + c exactly; log(u + c) is taken of m + 2^-k c, which for k = 0 is 1 + x itself */
VM_INLINE VMC(t) VMC(log1p)(VMC(t) x) {
    VMC(t) u = x + (VM_REAL)1, back = u - (VM_REAL)1;
    VMC(t) c = ((VM_REAL)1 - (u - back)) + (x - back);
    VMC(t) k, m = VMC(log_reduce)(u, &k);
    VMC(t) scale = VMC(power_of_two)(VM_SHIFTER - k, 1); /* 2^(1-k): 2^-k would leave the range at the top */
    VMC(t) f = (m - (VM_REAL)1) + (c * (VM_REAL)0.5) * scale;
    VMC(t) y = VMC(log_edges)(u, VMC(log_finish)(k, f));
    return VMC(select)(VMC(lt)(VMC(abs)(x), VM_S(VM_C(0x1p-54, 0x1p-25f))), x, y);
}

/* ---- made from these, as torch makes them ---- */
VM_INLINE VMC(t) VMC(log_sigmoid)(VMC(t) x) {
    return VMC(min)(x, VM_S(0)) - VMC(log1p)(VMC(exp)(-VMC(abs)(x)));
}
VM_INLINE VMC(t) VMC(softplus)(VMC(t) x, VMC(t) beta, VMC(t) threshold) {
    VMC(t) a = x * beta;
    return VMC(select)(VMC(gt)(a, threshold), x, VMC(log1p)(VMC(exp)(a)) / beta);
}

/* ---- powers ---- */
/* 1 where y is an integer, 2 bits: *odd where it is an odd one */
VM_INLINE VMC(i) VMC(is_integer)(VMC(t) y, VMC(i) *odd) {
    VMC(t) half = y * (VM_REAL)0.5;
    VMC(i) whole = VMC(eq)(VMC(round)(y), y);
    *odd = whole & VMC(ne)(VMC(round)(half), half);
    return whole;
}
/* C99's and torch's pow, from |a|^b in `y` for finite positive |a| */
VM_INLINE VMC(t) VMC(pow_edges)(VMC(t) a, VMC(t) b, VMC(t) y) {
    VMC(i) odd, whole = VMC(is_integer)(b, &odd);
    VMC(i) zero = VMC(eq)(a, VM_S(0)), infinite = VMC(eq)(VMC(abs)(a), VM_S(VM_INFTY));
    VMC(t) b_up = VMC(keep)(VMC(gt)(b, VM_S(0)), VM_S(VM_INFTY)), b_down = VMC(keep)(VMC(lt)(b, VM_S(0)), VM_S(VM_INFTY));
    y = VMC(select)(zero, b_down, VMC(select)(infinite, b_up, y));
    y = VMC(real)(VMC(bits)(y) | (VMC(bits)(a) & odd & VM_SIGN));
    y = VMC(select)(VMC(lt)(a, VM_S(0)) & ~whole & ~infinite, VM_S(VM_NAN), y);
    y = VMC(select)(VMC(ne)(a, a) | VMC(ne)(b, b), a + b, y);
    return VMC(select)(VMC(eq)(b, VM_S(0)) | VMC(eq)(a, VM_S(1)), VM_S(1), y);
}
#if VM_DOUBLE
/* the upper 26 digits, so that a product of two such numbers is exact */
VM_INLINE VMC(t) VMC(upper)(VMC(t) x) { return VMC(real)(VMC(bits)(x) & ~INT64_C(0x7ffffff)); }
/* log2 |a| to some 64 bits as the sum of two numbers: log2(m) = 2/(3 ln 2) s (3 + s^2 + r), every leading product
 * split so as to be exact (the plan of Sun's e_pow, without its table) */
VM_INLINE VMC(t) VMC(pow)(VMC(t) a, VMC(t) b) {
    VMC(t) k, m = VMC(log_reduce)(VMC(abs)(a), &k);
    VMC(t) f = m - 1.0, d = m + 1.0, inverse = 1.0 / d, s = f * inverse;
    VMC(t) sh = VMC(upper)(s), dh = VMC(upper)(d), dl = m - (dh - 1.0);
    VMC(t) sl = ((f - sh * dh) - sh * dl) * inverse;
    VMC(t) z = s * s, w = z * z, z2 = sh * sh;
    VMC(t) q0 = 0x1.333333333334ap-1 + z * 0x1.b6db6db6c2ff9p-2;
    VMC(t) q1 = 0x1.5555557837a73p-2 + z * 0x1.1745bcf261f26p-2;
    VMC(t) q2 = 0x1.d8a9c5510bebdp-3 + z * 0x1.97a5d0761115ap-3;
    q2 = q2 + w * 0x1.91dfa2b1ef946p-3;
    q1 = q1 + w * q2;
    q0 = q0 + w * q1;
    VMC(t) r = sl * (sh + s);
    r = r + w * q0;
    VMC(t) th = VMC(upper)(3.0 + z2 + r), tl = r - ((th - 3.0) - z2);
    VMC(t) u = sh * th, v = sl * th;
    v = v + tl * s;
    VMC(t) ph = VMC(upper)(u + v), pl = v - (ph - u);
    VMC(t) lh = ph * 0x1.ec709d8000000p-1, ll = ph * 0x1.0e80ff5d27f05p-27;
    ll = ll + pl * 0x1.ec709dc3a03fdp-1;
    VMC(t) t1 = VMC(upper)((lh + ll) + k), t2 = ll - ((t1 - k) - lh);
    /* a larger exponent only overflows: |log2 a| >= 2^-53 unless a = 1. (An integer stays even, as it was.) */
    VMC(t) e = VMC(select)(VMC(gt)(VMC(abs)(b), VM_S(0x1p65)), VMC(copysign)(VM_S(0x1p65), b), b);
    VMC(t) eh = VMC(upper)(e), hi = eh * t1, lo = (e - eh) * t1;
    lo = lo + e * t2;
    VMC(t) sum = hi + lo;
    VMC(t) n = (hi + VM_SHIFTER) - VM_SHIFTER;
    VMC(t) y = VMC(scale)(VMC(expm1_poly)(((hi - n) + lo) * 0x1.62e42fefa39efp-1), n);
    y = VMC(keep)(~VMC(lt)(sum, VM_S(-1080.0)), y);
    return VMC(pow_edges)(a, b, VMC(select)(VMC(gt)(sum, VM_S(1030.0)), VM_S(VM_INFTY), y));
}
#else
/* in double precision, half a register of floats at a time */
#if VM_PLANES == 1
#define VM_HALF 1
typedef double VMC(d);
typedef int64_t VMC(di);
typedef uint64_t VMC(du);
#define VM_WIDE(type, x) ((type)(x))
#else
#define VM_HALF (VM_PLANES * 8 > VM_REGISTER ? VM_PLANES / 2 : VM_PLANES)
typedef double VMC(d) __attribute__((vector_size(VM_HALF * 8)));
typedef int64_t VMC(di) __attribute__((vector_size(VM_HALF * 8)));
typedef uint64_t VMC(du) __attribute__((vector_size(VM_HALF * 8)));
typedef float VMC(half) __attribute__((vector_size(VM_HALF * 4)));
#endif
VM_INLINE VMC(di) VMC(dbits)(VMC(d) x) { VMC(di) b; memcpy(&b, &x, sizeof b); return b; }
VM_INLINE VMC(d) VMC(dreal)(VMC(du) b) { VMC(d) x; memcpy(&x, &b, sizeof x); return x; }
/* |a|^b for a positive and finite, as double; n is held within float's range so that the scale is a normal double */
VM_INLINE VMC(d) VMC(dpow)(VMC(d) a, VMC(d) b) {
    VMC(du) half = (VMC(du))(VMC(dbits)(a) - VMC(dbits)(a)) + UINT64_C(0x3fe6a09e667f3bcd);
    VMC(du) x = (VMC(du))VMC(dbits)(a) + (UINT64_C(0x3ff0000000000000) - half);
    VMC(d) k = VMC(dreal)((x >> 52) | UINT64_C(0x4330000000000000)) - (0x1p52 + 1023);
    VMC(d) m = VMC(dreal)((x & UINT64_C(0xfffffffffffff)) + half);
    VMC(d) f = m - 1.0, s = f / (m + 1.0), z = s * s;
    VMC(d) q = 0x1.999999998aaafp-2 + z * (0x1.24924939f55bap-2 + z * (0x1.c71c57b0fed50p-3 + z * 0x1.746534d69bb42p-3));
    q = 0x1.5555555555568p-1 + z * q;
    q = s * (2.0 + z * q);
    VMC(d) y = b * (k + q * 0x1.71547652b82fep+0);
    /* clamped by hand, NaN kept */
    VMC(di) up = (VMC(di))(y > 300.0), down = (VMC(di))(y < -300.0);
#if VM_PLANES == 1
    y = up ? 300.0 : down ? -300.0 : y;
#else
    VMC(d) zero = {0};
    y = (VMC(d))(((VMC(di))y & ~(up | down)) | (up & (VMC(di))(zero + 300.0)) | (down & (VMC(di))(zero - 300.0)));
#endif
    VMC(d) shifted = y + 0x1.8p52, n = shifted - 0x1.8p52;
    VMC(d) r = (y - n) * 0x1.62e42fefa39efp-1;
    VMC(d) e = 0x1.5555555552143p-5 + r * (0x1.111111110e6f5p-7 + r * (0x1.6c16c17f27fc7p-10 + r * 0x1.a01a01b5ce43bp-13));
    e = 0x1.0000000000005p-1 + r * (0x1.555555555555cp-3 + r * e);
    e = 1.0 + r * (1.0 + r * e);
    return e * VMC(dreal)(((VMC(du))VMC(dbits)(shifted) << 52) + UINT64_C(0x3ff0000000000000));
}
VM_INLINE VMC(t) VMC(pow)(VMC(t) a, VMC(t) b) {
    VMC(t) x = VMC(abs)(a), y;
    /* no infinite exponent, which times log2(1) = 0 would be NaN; a larger one only overflows */
    VMC(t) e = VMC(select)(VMC(gt)(VMC(abs)(b), VM_S(1e30f)), VMC(copysign)(VM_S(1e30f), b), b);
#if VM_PLANES == 1
    y = (float)VMC(dpow)((double)x, (double)e);
#else
    for (int k = 0; k < VM_PLANES / VM_HALF; ++k) {
        VMC(half) p, q;
        memcpy(&p, (char *)&x + k * sizeof p, sizeof p);
        memcpy(&q, (char *)&e + k * sizeof q, sizeof q);
        p = __builtin_convertvector(VMC(dpow)(__builtin_convertvector(p, VMC(d)), __builtin_convertvector(q, VMC(d))), VMC(half));
        memcpy((char *)&y + k * sizeof p, &p, sizeof p);
    }
#endif
    return VMC(pow_edges)(a, b, y);
}
#undef VM_HALF
#undef VM_WIDE
#endif
/* a^n by squaring; meant for an n known when compiling, for which it unrolls */
VM_INLINE VMC(t) VMC(powi)(VMC(t) a, int n) {
    VMC(t) y = VM_S(1), p = a;
    for (unsigned k = n < 0 ? -(unsigned)n : (unsigned)n; k; k >>= 1) {
        if (k & 1) y = y * p;
        if (k > 1) p = p * p;
    }
    return n < 0 ? (VM_REAL)1 / y : y;
}

/* ---- the error function: x + x E(x^2) up to 1; beyond, 1 - exp(-L(|x| - 2)), where L stands for -log(erfc) and
 * needs only as many digits as erfc has left to give ---- */
VM_INLINE VMC(t) VMC(erf)(VMC(t) x) {
    VMC(t) a = VMC(abs)(x), z = x * x;
    VMC(i) far = VMC(gt)(a, VM_S(VM_C(6.0, 4.0f))); /* erf is 1 to the last digit; NaN is not far */
    a = VMC(select)(far, VM_S(VM_C(6.0, 4.0f)), a);
    VMC(t) y = a - (VM_REAL)2, y2 = y * y;
#if VM_DOUBLE
    VMC(t) w = z * z;
    VMC(t) e0 = 0x1.06eba8214db68p-3 - z * 0x1.812746b0379c2p-2, e1 = 0x1.ce2f21a041017p-4 - z * 0x1.b82ce3120628bp-6;
    VMC(t) e2 = 0x1.565bccfa9a301p-8 - z * 0x1.c02db072ea1c6p-11, e3 = 0x1.f9a2bf7337803p-14 - z * 0x1.f4ca949097fb5p-17;
    VMC(t) e4 = 0x1.b9827adbd417dp-20 - z * 0x1.5c16e214825a5p-23, e5 = 0x1.d7848f6f3f85dp-27 - z * 0x1.acdff4893dce5p-31;
    e4 = e4 + w * e5;
    e3 = e3 + w * e4;
    e2 = e2 + w * e3;
    e1 = e1 + w * e2;
    e0 = e0 + w * e1;
    VMC(t) l0 = 0x1.575b329b1f510p+2 + y * 0x1.1ac3258a8dbcfp+2, l1 = 0x1.d8f5dece92b3cp-1 + y * 0x1.0dc3b5fc0bdbap-6;
    VMC(t) l2 = -0x1.d406b36e789dfp-9 + y * 0x1.7ffcfa283ce3bp-11, l3 = -0x1.1bc3ac0888284p-13 + y * 0x1.5b65e58755bc1p-16;
    VMC(t) l4 = -0x1.05fe40ad2949ep-19 - y * 0x1.b5a49f990921ep-23, l5 = 0x1.733f3b444f4efp-23 - y * 0x1.ef659ded4b250p-25;
    VMC(t) l6 = 0x1.e9109a0675875p-27 - y * 0x1.681053984ace0p-29, l7 = 0x1.4ec5f8c974279p-33 + y * 0x1.721eb37f79a14p-34;
    l7 = l7 - y2 * 0x1.3213cdd7ea9eep-36;
    l6 = l6 + y2 * l7;
    l5 = l5 + y2 * l6;
    l4 = l4 + y2 * l5;
    l3 = l3 + y2 * l4;
    l2 = l2 + y2 * l3;
    l1 = l1 + y2 * l2;
    l0 = l0 + y2 * l1;
#else
    VMC(t) e0 = -0x1.b7fbb4p-6f + z * (0x1.5419f6p-8f + z * (-0x1.a485eep-11f + z * 0x1.4ae4d2p-14f));
    e0 = 0x1.06eba8p-3f + z * (-0x1.81273ep-2f + z * (0x1.ce2d20p-4f + z * e0));
    VMC(t) l0 = 0x1.575b32p+2f + y * 0x1.1ac320p+2f, l1 = 0x1.d8f62ap-1f + y * 0x1.0e20a2p-6f;
    VMC(t) l2 = -0x1.d07a2ap-9f + y * 0x1.75ac80p-11f;
    l2 = l2 - y2 * 0x1.852bf6p-13f;
    l1 = l1 + y2 * l2;
    l0 = l0 + y2 * l1;
#endif
    VMC(t) shifted, r = VMC(exp_reduce)(-l0, &shifted), s = VMC(power_of_two)(shifted, 0);
    VMC(t) large = VMC(copysign)(((VM_REAL)1 - s) - s * VMC(expm1_poly)(r), x);
    VMC(t) small = x + x * e0;
    return VMC(select)(VMC(le)(a, VM_S(1)), small, large);
}

/* ---- sine and cosine ---- */
/* x - n pi/2, pi/2 cut into pieces whose products with n are exact (33 digits, n < 2^20; 11 digits, n < 2^13) */
VM_INLINE VMC(t) VMC(trig_reduce)(VMC(t) x, VMC(t) *shifted) {
    VMC(t) z = x * VM_C(0x1.45f306dc9c883p-1, 0x1.45f306p-1f) + VM_SHIFTER, n = z - VM_SHIFTER;
    VMC(t) a = x - n * VM_C(0x1.921fb54400000p+0, 0x1.92p+0f);
    VMC(t) w = n * VM_C(0x1.0b4611a600000p-34, 0x1.fb4p-12f);
    VMC(t) b = a - w, lost = (a - b) - w;
    *shifted = z;
#if VM_DOUBLE
    return b + (lost - n * 0x1.3198a2e037073p-69);
#else
    return (b + (lost - n * 0x1.444p-24f)) - n * 0x1.68c234p-39f;
#endif
}
/* sin(x + quarter pi/2) for |x| <= VM_TRIG */
#define VM_TRIG VM_C(1e6, 1e4f)
VM_INLINE VMC(t) VMC(sin_quarter)(VMC(t) x, VM_INT quarter) {
    VMC(t) shifted, r = VMC(trig_reduce)(x, &shifted), z = r * r;
    VMC(i) n = VMC(bits)(shifted) + quarter;
#if VM_DOUBLE
    VMC(t) w = z * z;
    VMC(t) s0 = -0x1.5555555555549p-3 + z * 0x1.111111110f8b2p-7, s1 = -0x1.a01a019c1688fp-13 + z * 0x1.71de357ad0187p-19;
    VMC(t) s2 = -0x1.ae5e67fb883f7p-26 + z * 0x1.5d935c98c1b1dp-33;
    s1 = s1 + w * s2;
    s0 = s0 + w * s1;
    VMC(t) c0 = 0x1.555555555554ep-5 - z * 0x1.6c16c16c15501p-10, c1 = 0x1.a01a019cfdb54p-16 - z * 0x1.27e4f83a8e207p-22;
    VMC(t) c2 = 0x1.1eea09ae74a58p-29 - z * 0x1.8fbcacdb88b5cp-37;
    c1 = c1 + w * c2;
    c0 = c0 + w * c1;
#else
    VMC(t) s0 = -0x1.5555560000000p-3f + z * (0x1.111108p-7f + z * (-0x1.a00fa0p-13f + z * 0x1.6cd888p-19f));
    VMC(t) c0 = 0x1.55554ap-5f + z * (-0x1.6c0c98p-10f + z * 0x1.9a053ap-16f);
#endif
    VMC(t) zr = z * r, sine = r + zr * s0;
    VMC(t) h = (VM_REAL)1 - z * (VM_REAL)0.5, zz = z * z;
    VMC(t) cosine = h + ((((VM_REAL)1 - h) - z * (VM_REAL)0.5) + zz * c0);
    VMC(i) odd = -(n & 1);
    VMC(t) y = VMC(select)(odd, cosine, sine);
    return VMC(real)(VMC(bits)(y) ^ ((n << (VM_SIZE * 8 - 2)) & VM_SIGN));
}
VM_INLINE VMC(t) VMC(sin)(VMC(t) x) {
    VMC(i) far = ~VMC(le)(VMC(abs)(x), VM_S(VM_TRIG));
    VMC(t) y = VMC(select)(VMC(eq)(x, VM_S(0)), x, VMC(sin_quarter)(x, 0)); /* sin(-0) = -0 */
    if (__builtin_expect(VMC(any)(far), 0))
        for (int k = 0; k < VM_PLANES; ++k)
            if (VM_AT(far, k)) VM_AT(y, k) = VM_LIBM(sin)(VM_AT(x, k));
    return y;
}
VM_INLINE VMC(t) VMC(cos)(VMC(t) x) {
    VMC(i) far = ~VMC(le)(VMC(abs)(x), VM_S(VM_TRIG));
    VMC(t) y = VMC(sin_quarter)(x, 1);
    if (__builtin_expect(VMC(any)(far), 0))
        for (int k = 0; k < VM_PLANES; ++k)
            if (VM_AT(far, k)) VM_AT(y, k) = VM_LIBM(cos)(VM_AT(x, k));
    return y;
}

/* ---- rare functions, lane by lane from libm ---- */
#define VM_FROM_LIBM1(name)                                                                              \
    VM_INLINE VMC(t) VMC(name)(VMC(t) x) {                                                               \
        for (int k = 0; k < VM_PLANES; ++k) VM_AT(x, k) = VM_LIBM(name)(VM_AT(x, k));                    \
        return x;                                                                                        \
    }
#define VM_FROM_LIBM2(name)                                                                              \
    VM_INLINE VMC(t) VMC(name)(VMC(t) x, VMC(t) y) {                                                     \
        for (int k = 0; k < VM_PLANES; ++k) VM_AT(x, k) = VM_LIBM(name)(VM_AT(x, k), VM_AT(y, k));       \
        return x;                                                                                        \
    }
VM_FROM_LIBM1(tan)
VM_FROM_LIBM1(asin)
VM_FROM_LIBM1(acos)
VM_FROM_LIBM1(atan)
VM_FROM_LIBM1(sinh)
VM_FROM_LIBM1(cosh)
VM_FROM_LIBM1(asinh)
VM_FROM_LIBM1(acosh)
VM_FROM_LIBM1(atanh)
VM_FROM_LIBM1(erfc)
VM_FROM_LIBM1(lgamma)
VM_FROM_LIBM2(atan2)
VM_FROM_LIBM2(hypot)
VM_FROM_LIBM2(fmod)
#undef VM_FROM_LIBM1
#undef VM_FROM_LIBM2
/* torch.remainder: the sign of the divisor */
VM_INLINE VMC(t) VMC(remainder)(VMC(t) x, VMC(t) y) {
    VMC(t) r = VMC(fmod)(x, y);
    VMC(i) other = VMC(ne)(r, VM_S(0)) & (VMC(lt)(r, VM_S(0)) ^ VMC(lt)(y, VM_S(0)));
    return r + VMC(keep)(other, y);
}
/* psi(x): upwards by recurrence to x >= 10, then the asymptotic series; reflected for x < 0; as torch, psi(0) is
 * -inf with the sign of zero taken off, and NaN at negative integers */
VM_INLINE VMC(t) VMC(digamma)(VMC(t) v) {
    for (int k = 0; k < VM_PLANES; ++k) {
        double x = (double)VM_AT(v, k), y = 0.0;
        if (x == 0.0) {
            VM_AT(v, k) = (VM_REAL)copysign(INFINITY, -x);
            continue;
        }
        if (x < 0.0) {
            double part = x - trunc(x);
            if (part == 0.0) {
                VM_AT(v, k) = VM_NAN;
                continue;
            }
            y = -3.14159265358979323846 / tan(3.14159265358979323846 * part);
            x = 1.0 - x;
        }
        for (; x < 10.0; x += 1.0) y -= 1.0 / x;
        double i = 1.0 / (x * x);
        double tail = i * (1.0 / 12 - i * (1.0 / 120 - i * (1.0 / 252 - i * (1.0 / 240 - i * (1.0 / 132 - i * (691.0 / 32760 - i / 12))))));
        VM_AT(v, k) = (VM_REAL)(x > 1e17 ? y + log(x) : y + (log(x) - 0.5 / x - tail));
    }
    return v;
}

/* ---- vectors of several registers: the same, piece by piece ---- */
#if VM_PIECES > 1
typedef VM_REAL VM(t) __attribute__((vector_size(VM_LANES * VM_SIZE)));
typedef VM_INT VM(i) __attribute__((vector_size(VM_LANES * VM_SIZE)));
VM_INLINE VMC(t) VMC(piece)(const VM(t) *v, int k) {
    VMC(t) p;
    memcpy(&p, (const char *)v + k * sizeof p, sizeof p);
    return p;
}
VM_INLINE VMC(i) VMC(ipiece)(const VM(i) *v, int k) {
    VMC(i) p;
    memcpy(&p, (const char *)v + k * sizeof p, sizeof p);
    return p;
}
#define VM_EACH(type, expression)                                                                        \
    VM(type) out;                                                                                        \
    for (int k = 0; k < VM_PIECES; ++k) {                                                                \
        VMC(type) part = expression;                                                                     \
        memcpy((char *)&out + k * sizeof part, &part, sizeof part);                                      \
    }                                                                                                    \
    return out
#define VM_P(x) VMC(piece)(&x, k)
#define VM_WIDE1(name) VM_INLINE VM(t) VM(name)(VM(t) x) { VM_EACH(t, VMC(name)(VM_P(x))); }
#define VM_WIDE2(name) VM_INLINE VM(t) VM(name)(VM(t) x, VM(t) y) { VM_EACH(t, VMC(name)(VM_P(x), VM_P(y))); }
#define VM_WIDE3(name) \
    VM_INLINE VM(t) VM(name)(VM(t) x, VM(t) y, VM(t) z) { VM_EACH(t, VMC(name)(VM_P(x), VM_P(y), VM_P(z))); }
#define VM_WIDEC(name) VM_INLINE VM(i) VM(name)(VM(t) x, VM(t) y) { VM_EACH(i, VMC(name)(VM_P(x), VM_P(y))); }
VM_WIDEC(lt) VM_WIDEC(le) VM_WIDEC(gt) VM_WIDEC(ge) VM_WIDEC(eq) VM_WIDEC(ne)
VM_INLINE VM(t) VM(select)(VM(i) m, VM(t) a, VM(t) b) {
    VM_EACH(t, VMC(select)(VMC(ipiece)(&m, k), VM_P(a), VM_P(b)));
}
VM_INLINE VM(t) VM(keep)(VM(i) m, VM(t) x) { VM_EACH(t, VMC(keep)(VMC(ipiece)(&m, k), VM_P(x))); }
VM_INLINE VM(t) VM(number)(VM(i) m) { VM_EACH(t, VMC(number)(VMC(ipiece)(&m, k))); }
VM_INLINE VM(t) VM(splat)(VM_REAL x) { VM_EACH(t, VMC(splat)(x)); }
VM_INLINE VM(t) VM(load)(const VM_REAL *p) { VM(t) v; memcpy(&v, p, sizeof v); return v; }
VM_INLINE void VM(store)(VM_REAL *p, VM(t) v) { memcpy(p, &v, sizeof v); }
VM_INLINE int VM(any)(VM(i) m) {
    VMC(i) r = VMC(ipiece)(&m, 0);
    for (int k = 1; k < VM_PIECES; ++k) r |= VMC(ipiece)(&m, k);
    return VMC(any)(r);
}
VM_INLINE int VM(all)(VM(i) m) {
    VMC(i) r = VMC(ipiece)(&m, 0);
    for (int k = 1; k < VM_PIECES; ++k) r &= VMC(ipiece)(&m, k);
    return VMC(all)(r);
}
VM_INLINE VM(t) VM(powi)(VM(t) x, int n) { VM_EACH(t, VMC(powi)(VM_P(x), n)); }
VM_WIDE1(neg) VM_WIDE1(abs) VM_WIDE1(square) VM_WIDE1(reciprocal) VM_WIDE1(sqrt) VM_WIDE1(rsqrt) VM_WIDE1(sign)
VM_WIDE1(round) VM_WIDE1(floor) VM_WIDE1(ceil) VM_WIDE1(trunc)
VM_WIDE1(exp) VM_WIDE1(exp2) VM_WIDE1(expm1) VM_WIDE1(tanh) VM_WIDE1(sigmoid) VM_WIDE1(log_sigmoid)
VM_WIDE1(log) VM_WIDE1(log2) VM_WIDE1(log10) VM_WIDE1(log1p)
VM_WIDE1(sin) VM_WIDE1(cos) VM_WIDE1(tan) VM_WIDE1(asin) VM_WIDE1(acos) VM_WIDE1(atan)
VM_WIDE1(sinh) VM_WIDE1(cosh) VM_WIDE1(asinh) VM_WIDE1(acosh) VM_WIDE1(atanh)
VM_WIDE1(erf) VM_WIDE1(erfc) VM_WIDE1(lgamma) VM_WIDE1(digamma)
VM_WIDE2(copysign) VM_WIDE2(min) VM_WIDE2(max) VM_WIDE2(fmin) VM_WIDE2(fmax) VM_WIDE2(pow) VM_WIDE2(atan2)
VM_WIDE2(hypot) VM_WIDE2(fmod) VM_WIDE2(remainder)
VM_WIDE3(madd) VM_WIDE3(clamp) VM_WIDE3(softplus)
#undef VM_EACH
#undef VM_P
#undef VM_WIDE1
#undef VM_WIDE2
#undef VM_WIDE3
#undef VM_WIDEC
#endif

/* the sum of the lanes, always by halves: lane k and lane k + n/2 first */
VM_INLINE VM_REAL VM(hsum)(VM(t) v) {
    VM_REAL a[VM_LANES];
    memcpy(a, &v, sizeof v);
    for (int n = VM_LANES / 2; n; n /= 2)
        for (int k = 0; k < n; ++k) a[k] += a[k + n];
    return a[0];
}

#undef VM_CAT_
#undef VM_CAT
#undef VM_IS_double
#undef VM_IS_float
#undef VM_DOUBLE
#undef VM_INT
#undef VM_UINT
#undef VM_SIZE
#undef VM_C
#undef VM_LIBM
#undef VM_REGISTER
#undef VM_PIECES
#undef VM_PLANES
#undef VMC
#undef VM_INLINE
#undef VM_AT
#undef VM_COMPARE
#undef VM_SIGN
#undef VM_MANT
#undef VM_BIAS
#undef VM_SHIFTER
#undef VM_INFTY
#undef VM_NAN
#undef VM_S
#undef VM_LOG2E
#undef VM_LN2_HI
#undef VM_LN2_LO
#undef VM_TRIG
#undef VM_REAL
#undef VM_LANES
#undef VM
