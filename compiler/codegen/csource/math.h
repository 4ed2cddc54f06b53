/* Elementwise functions: what the C expressions of ops (field `c` of an op) call, by dtype.
 *
 * Needs base.h.  Every function is a plain expression without branches, loops or tables, unless it
 * says otherwise, so that compilers turn a loop over it into vector code; and every operation in it
 * rounds once, in a fixed order, so that the bits are the same in vector code and out of it.
 * Special values (NaN, infinities, signed zeros, subnormals) come out as in NumPy; where NumPy's
 * result depends on the machine, it is that of x86-64.
 *
 * Names: rg_<op>_<dtype>.  f16 and bf16 are computed as f32 and rounded by rg_round_f16 or bf16. */

/* --- bits, and fused multiply-add */

RG_INLINE u32 rg_bits_f32(f32 x) { u32 b; memcpy(&b, &x, 4); return b; }
RG_INLINE f32 rg_from_bits_f32(u32 b) { f32 x; memcpy(&x, &b, 4); return x; }
RG_INLINE u64 rg_bits_f64(f64 x) { u64 b; memcpy(&b, &x, 8); return b; }
RG_INLINE f64 rg_from_bits_f64(u64 b) { f64 x; memcpy(&x, &b, 8); return x; }

/* a * b + c, rounded once.  Without the instruction f32 goes through f64, which may round twice. */
#if defined(__FMA__) || defined(__aarch64__) || defined(__AVX512F__)
RG_INLINE f32 rg_fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
#else
RG_INLINE f32 rg_fma_f32(f32 a, f32 b, f32 c) { return (f32)((f64)a * b + c); }
#endif
RG_INLINE f64 rg_fma_f64(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }

/* --- f16 and bf16: stored as u16, computed as f32; rounded to nearest, halves to even */

RG_INLINE f32 rg_load_f16(u16 h) {
    u32 m = (u32)(h & 0x7fff) << 13;
    u32 b = rg_bits_f32(rg_from_bits_f32(m) * 0x1p112f); /* subnormals become normal, exactly */
    b = m >= 0x0f800000u ? m | 0x7f800000u : b;
    return rg_from_bits_f32(b | (u32)(h & 0x8000) << 16);
}
RG_INLINE u16 rg_store_f16(f32 x) {
    u32 b = rg_bits_f32(x), m = b & 0x7fffffffu;
    u32 normal = (m + 0xfff + ((m >> 13) & 1) - (112u << 23)) >> 13;
    u32 small = rg_bits_f32(rg_from_bits_f32(m) + 0.5f) - 0x3f000000u; /* in units of 2^-24 */
    u32 h = m < 0x38800000u ? small : normal;
    h = m >= 0x47800000u ? 0x7c00u : h;
    h = m > 0x7f800000u ? 0x7e00u | ((m >> 13) & 0x1ff) : h;
    return (u16)(h | (b >> 16 & 0x8000));
}
RG_INLINE f32 rg_load_bf16(u16 h) { return rg_from_bits_f32((u32)h << 16); }
RG_INLINE u16 rg_store_bf16(f32 x) {
    u32 b = rg_bits_f32(x), m = b & 0x7fffffffu;
    u32 h = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    return (u16)(m > 0x7f800000u ? b >> 16 | 0x40 : h);
}
RG_INLINE f32 rg_round_f16(f32 x) { return rg_load_f16(rg_store_f16(x)); }
RG_INLINE f32 rg_round_bf16(f32 x) { return rg_load_bf16(rg_store_bf16(x)); }

/* --- integers: as NumPy, without traps: x / 0 and x % 0 are 0, and the least value / -1 wraps */

#define RG_SIGNED(T, U, WIDTH) \
    RG_INLINE T rg_floor_div_##T(T a, T b) { \
        T d = b == 0 || b == -1 ? 1 : b; \
        T q = a / d, r = a % d; \
        q = q - (r != 0 && (r < 0) != (d < 0)); \
        q = b == -1 ? (T)-a : q; \
        return b == 0 ? 0 : q; \
    } \
    RG_INLINE T rg_mod_##T(T a, T b) { \
        T d = b == 0 || b == -1 ? 1 : b; \
        T r = a % d; \
        return r != 0 && (r < 0) != (d < 0) ? r + d : r; \
    } \
    RG_INLINE T rg_shift_left_##T(T a, T b) { \
        return (U)b < WIDTH ? (T)((U)a << ((U)b & (WIDTH - 1))) : 0; \
    } \
    RG_INLINE T rg_shift_right_##T(T a, T b) { \
        return (T)(a >> ((U)b < WIDTH ? (U)b : WIDTH - 1)); \
    } \
    /* A loop.  To a negative power: 1 / a^-b without its fraction, and 0 where a is 0 (NumPy \
     * refuses negative powers of integers). */ \
    RG_INLINE T rg_pow_##T(T a, T b) { \
        U y = 1, s = (U)a; \
        for (U n = b < 0 ? 0 : (U)b; n; n >>= 1) { y *= n & 1 ? s : 1; s *= s; } \
        T inverse = a == 1 ? 1 : a == -1 ? (b & 1 ? -1 : 1) : 0; \
        return b < 0 ? inverse : (T)y; \
    }
#define RG_UNSIGNED(T, WIDTH) \
    RG_INLINE T rg_floor_div_##T(T a, T b) { return b == 0 ? 0 : a / (b == 0 ? 1 : b); } \
    RG_INLINE T rg_mod_##T(T a, T b) { return a % (b == 0 ? 1 : b); } \
    RG_INLINE T rg_shift_left_##T(T a, T b) { \
        return b < WIDTH ? (T)((u64)a << (b & (WIDTH - 1))) : 0; \
    } \
    RG_INLINE T rg_shift_right_##T(T a, T b) { \
        return b < WIDTH ? (T)(a >> (b & (WIDTH - 1))) : 0; \
    } \
    RG_INLINE T rg_pow_##T(T a, T b) { \
        T y = 1; \
        for (T n = b; n; n >>= 1) { y *= n & 1 ? a : 1; a *= a; } \
        return y; \
    }
RG_SIGNED(i64, u64, 64)
RG_SIGNED(i32, u32, 32)
RG_SIGNED(i16, u16, 16)
RG_SIGNED(i8, u8, 8)
RG_UNSIGNED(u64, 64)
RG_UNSIGNED(u32, 32)
RG_UNSIGNED(u16, 16)
RG_UNSIGNED(u8, 8)
#undef RG_SIGNED
#undef RG_UNSIGNED

/* --- casts: rg_cast_<from>_<to>.  A float that an integer cannot hold, and NaN, give what x86-64
 * conversions give: the least i32 or i64, of which smaller types keep the low bits. */

typedef u8 rg_bool;
#define RG_LEAST_i32 (-2147483647 - 1)
#define RG_LEAST_i64 (-9223372036854775807 - 1)
#define RG_CAST_WHOLE(F) \
    RG_INLINE i32 rg_cast_##F##_i32(F x) { \
        i32 fits = x >= -0x1p31f && x < 0x1p31f; \
        i32 y = (i32)(fits ? x : 0); \
        return fits ? y : RG_LEAST_i32; \
    } \
    RG_INLINE i64 rg_cast_##F##_i64(F x) { \
        i32 fits = x >= -0x1p63f && x < 0x1p63f; \
        i64 y = (i64)(fits ? x : 0); \
        return fits ? y : RG_LEAST_i64; \
    } \
    RG_INLINE i16 rg_cast_##F##_i16(F x) { return (i16)rg_cast_##F##_i32(x); } \
    RG_INLINE i8 rg_cast_##F##_i8(F x) { return (i8)rg_cast_##F##_i32(x); } \
    RG_INLINE u64 rg_cast_##F##_u64(F x) { \
        i32 upper = x >= 0x1p63f; \
        u64 y = (u64)rg_cast_##F##_i64(upper ? x - 0x1p63f : x); \
        return upper ? y ^ 0x8000000000000000u : y; \
    } \
    RG_INLINE u32 rg_cast_##F##_u32(F x) { return (u32)rg_cast_##F##_i64(x); } \
    RG_INLINE u16 rg_cast_##F##_u16(F x) { return (u16)rg_cast_##F##_i32(x); } \
    RG_INLINE u8 rg_cast_##F##_u8(F x) { return (u8)rg_cast_##F##_i32(x); }
RG_CAST_WHOLE(f32)
RG_CAST_WHOLE(f64)
#undef RG_CAST_WHOLE
#undef RG_LEAST_i32
#undef RG_LEAST_i64

/* to a type that C converts to as NumPy does; f16 and bf16 are still to be rounded */
#define RG_CAST(T, FROM, TO) RG_INLINE TO rg_cast_##T##_##TO(FROM x) { return (TO)x; }
#define RG_CAST_FLOAT(T, FROM) \
    RG_CAST(T, FROM, f64) RG_CAST(T, FROM, f32) \
    RG_INLINE u8 rg_cast_##T##_bool(FROM x) { return x != 0; }
#define RG_CAST_HALF(T, FROM) \
    RG_INLINE f32 rg_cast_##T##_f16(FROM x) { return (f32)x; } \
    RG_INLINE f32 rg_cast_##T##_bf16(FROM x) { return (f32)x; }
#define RG_CAST_INTEGER(T, FROM) \
    RG_CAST_FLOAT(T, FROM) RG_CAST_HALF(T, FROM) \
    RG_CAST(T, FROM, i64) RG_CAST(T, FROM, i32) RG_CAST(T, FROM, i16) RG_CAST(T, FROM, i8) \
    RG_CAST(T, FROM, u64) RG_CAST(T, FROM, u32) RG_CAST(T, FROM, u16) RG_CAST(T, FROM, u8)
RG_CAST_INTEGER(i64, i64)
RG_CAST_INTEGER(i32, i32)
RG_CAST_INTEGER(i16, i16)
RG_CAST_INTEGER(i8, i8)
RG_CAST_INTEGER(u64, u64)
RG_CAST_INTEGER(u32, u32)
RG_CAST_INTEGER(u16, u16)
RG_CAST_INTEGER(u8, u8)
RG_CAST_INTEGER(bool, u8)
RG_CAST_FLOAT(f32, f32)
RG_CAST_FLOAT(f64, f64)
RG_CAST_HALF(f32, f32)
#undef RG_CAST
#undef RG_CAST_FLOAT
#undef RG_CAST_HALF
#undef RG_CAST_INTEGER

/* f64 to f32 rounded to odd: what is lost leaves the last bit set, so that rounding the result to
 * a narrower type rounds the f64 once (Boldo & Melquiond 2008, Emulation of FMA). */
RG_INLINE f32 rg_to_odd_f32(f64 x) {
    f32 y = (f32)x;
    u32 b = rg_bits_f32(y);
    f64 back = (f64)y, lost = x - back;
    u32 inexact = back != x && x == x;
    /* towards zero first, then the last bit */
    u32 away = inexact && (__builtin_fabs(back) > __builtin_fabs(x));
    (void)lost;
    return rg_from_bits_f32(inexact ? (b - away) | 1 : b);
}
RG_INLINE f32 rg_cast_f64_f16(f64 x) { return rg_to_odd_f32(x); }
RG_INLINE f32 rg_cast_f64_bf16(f64 x) { return (f32)x; }

/* --- simple functions of floats, and those that the C library computes */

#define RG_SIMPLE(F, S) \
    RG_INLINE F rg_abs_##F(F x) { return __builtin_fabs##S(x); } \
    RG_INLINE F rg_copysign_##F(F a, F b) { return __builtin_copysign##S(a, b); } \
    RG_INLINE F rg_maximum_##F(F a, F b) { return (a >= b) | (a != a) ? a : b; } \
    RG_INLINE F rg_minimum_##F(F a, F b) { return (a <= b) | (a != a) ? a : b; } \
    RG_INLINE F rg_sign_##F(F x) { return x > 0 ? 1 : x < 0 ? -1 : x == 0 ? 0 : x; } \
    RG_INLINE F rg_floor_##F(F x) { return __builtin_floor##S(x); } \
    RG_INLINE F rg_ceil_##F(F x) { return __builtin_ceil##S(x); } \
    RG_INLINE F rg_trunc_##F(F x) { return __builtin_trunc##S(x); } \
    RG_INLINE F rg_round_##F(F x) { return __builtin_rint##S(x); } \
    RG_INLINE F rg_sqrt_##F(F x) { return __builtin_sqrt##S(x); } \
    RG_INLINE F rg_rsqrt_##F(F x) { return 1 / __builtin_sqrt##S(x); } \
    RG_INLINE u8 rg_isinf_##F(F x) { return __builtin_fabs##S(x) == __builtin_inf##S(); } \
    RG_INLINE u8 rg_isfinite_##F(F x) { return __builtin_fabs##S(x) < __builtin_inf##S(); } \
    /* C library: fmod is exact, by as many steps as the exponents lie apart */ \
    RG_INLINE F rg_mod_##F(F a, F b) { \
        F m = fmod##S(a, b); \
        F moved = (m < 0) != (b < 0) ? m + b : m; \
        F y = m == 0 ? __builtin_copysign##S(0, b) : moved; \
        return b == 0 ? m : y; \
    } \
    RG_INLINE F rg_floor_div_##F(F a, F b) { \
        F m = fmod##S(a, b); \
        F q = (a - m) / b; \
        q = m != 0 && (m < 0) != (b < 0) ? q - 1 : q; \
        F whole = __builtin_floor##S(q); \
        whole = q - whole > (F)0.5 ? whole + 1 : whole; \
        F y = q == 0 ? __builtin_copysign##S(0, a / b) : whole; \
        return b == 0 ? a / b : y; \
    }
RG_SIMPLE(f32, f)
RG_SIMPLE(f64, )
#undef RG_SIMPLE

#define RG_LIBM(name, c) \
    RG_INLINE f32 rg_##name##_f32(f32 x) { return c##f(x); } \
    RG_INLINE f64 rg_##name##_f64(f64 x) { return c(x); }
RG_LIBM(exp, exp) RG_LIBM(exp2, exp2) RG_LIBM(expm1, expm1)
RG_LIBM(log, log) RG_LIBM(log2, log2) RG_LIBM(log1p, log1p)
RG_LIBM(sin, sin) RG_LIBM(cos, cos) RG_LIBM(tan, tan)
RG_LIBM(arcsin, asin) RG_LIBM(arccos, acos) RG_LIBM(arctan, atan)
RG_LIBM(sinh, sinh) RG_LIBM(cosh, cosh) RG_LIBM(tanh, tanh)
RG_LIBM(arcsinh, asinh) RG_LIBM(arccosh, acosh) RG_LIBM(arctanh, atanh)
RG_LIBM(erf, erf) RG_LIBM(erfc, erfc)
#define RG_LIBM2(name, c) \
    RG_INLINE f32 rg_##name##_f32(f32 a, f32 b) { return c##f(a, b); } \
    RG_INLINE f64 rg_##name##_f64(f64 a, f64 b) { return c(a, b); }
RG_LIBM2(pow, pow) RG_LIBM2(hypot, hypot) RG_LIBM2(arctan2, atan2)
#define RG_MADE(F) \
    RG_INLINE F rg_sigmoid_##F(F x) { return 1 / (1 + rg_exp_##F(-x)); } \
    RG_INLINE F rg_logaddexp_##F(F a, F b) { \
        F larger = rg_maximum_##F(a, b); \
        F apart = a == b ? 0 : a - b; \
        return larger + rg_log1p_##F(rg_exp_##F(-rg_abs_##F(apart))); \
    } \
    RG_INLINE F rg_softplus_##F(F x) { return rg_logaddexp_##F(x, 0); }
RG_MADE(f32) RG_MADE(f64)
