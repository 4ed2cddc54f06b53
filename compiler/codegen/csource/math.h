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
#if defined(__FMA__) || defined(__aarch64__) || defined(__AVX512F__) || defined(__CUDACC__)
RG_INLINE f32 rg_fma_f32(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
#else
RG_INLINE f32 rg_fma_f32(f32 a, f32 b, f32 c) { return (f32)((f64)a * b + c); }
#endif
RG_INLINE f64 rg_fma_f64(f64 a, f64 b, f64 c) { return __builtin_fma(a, b, c); }

/* --- f16 and bf16: stored as u16, computed as f32; rounded to nearest, halves to even */

/* A ternary here would let GCC follow constants of a selection before it (x < 0 ? 0 : x) through a
 * jump, and a loop with jumps stays scalar. */
RG_INLINE u32 rg_pick(u32 condition, u32 a, u32 b) { return b ^ ((a ^ b) & (0u - condition)); }

RG_INLINE f32 rg_load_f16(u16 h) {
    u32 m = (u32)(h & 0x7fff) << 13;
    u32 b = rg_bits_f32(rg_from_bits_f32(m) * 0x1p112f); /* subnormals become normal, exactly */
    b |= rg_pick(m >= 0x0f800000u, 0x7f800000u, 0);
    return rg_from_bits_f32(b | (u32)(h & 0x8000) << 16);
}
RG_INLINE u16 rg_store_f16(f32 x) {
    u32 b = rg_bits_f32(x), m = b & 0x7fffffffu;
    u32 normal = (m + 0xfff + ((m >> 13) & 1) - (112u << 23)) >> 13;
    u32 small = rg_bits_f32(rg_from_bits_f32(m) + 0.5f) - 0x3f000000u; /* in units of 2^-24 */
    u32 h = rg_pick(m < 0x38800000u, small, normal);
    h = rg_pick(m >= 0x47800000u, 0x7c00u, h);
    h = rg_pick(m > 0x7f800000u, 0x7e00u | ((m >> 13) & 0x1ff), h);
    return (u16)(h | (b >> 16 & 0x8000));
}
RG_INLINE f32 rg_load_bf16(u16 h) { return rg_from_bits_f32((u32)h << 16); }
RG_INLINE u16 rg_store_bf16(f32 x) {
    u32 b = rg_bits_f32(x), m = b & 0x7fffffffu;
    u32 h = (b + 0x7fff + (b >> 16 & 1)) >> 16;
    return (u16)rg_pick(m > 0x7f800000u, b >> 16 | 0x40, h);
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
 * conversions give: the least i32 or i64, of which smaller types keep the low bits.  (To u32 NumPy
 * gives one number for most of a long array and another for its last elements: here it is the
 * first.) */

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
    RG_INLINE u32 rg_cast_##F##_u32(F x) { \
        i32 upper = x >= 0x1p31f; \
        u32 y = (u32)rg_cast_##F##_i32(upper ? x - 0x1p31f : x); \
        return upper ? y ^ 0x80000000u : y; \
    } \
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

/* f64 to f32, towards 0 and with the last bit set where something is lost, so that rounding the
 * result to a narrower type rounds the f64 once (Boldo & Melquiond 2008, Emulation of FMA). */
RG_INLINE f32 rg_to_odd_f32(f64 x) {
    f32 y = (f32)x;
    f64 back = y;
    u32 b = rg_bits_f32(y), lost = (back < x) | (back > x);
    u32 away = __builtin_fabs(back) > __builtin_fabs(x);
    return rg_from_bits_f32((b - away) | lost);
}
RG_INLINE f32 rg_cast_f64_f16(f64 x) { return rg_to_odd_f32(x); }
RG_INLINE f32 rg_cast_f64_bf16(f64 x) { return (f32)x; }

/* --- simple functions of floats, and those that the C library computes */

#define RG_SIMPLE(F, S) \
    RG_INLINE F rg_abs_##F(F x) { return __builtin_fabs##S(x); } \
    RG_INLINE F rg_copysign_##F(F a, F b) { return __builtin_copysign##S(a, b); } \
    RG_INLINE F rg_maximum_##F(F a, F b) { return ((a >= b) | (a != a)) ? a : b; } \
    RG_INLINE F rg_minimum_##F(F a, F b) { return ((a <= b) | (a != a)) ? a : b; } \
    RG_INLINE F rg_sign_##F(F x) { return x != x ? x : (F)((x > 0) - (x < 0)); } \
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

/* --- exponentials and logarithms
 *
 * The polynomials, here and below, are minimax ones: tools/minimax.py computes them and says what
 * they approximate.  Errors are the largest seen, in units in the last place (ulp) of the result:
 * for f32 over every 241st number, for f64 and pairs over a million random ones.
 *
 * e^x = 2^n e^r with n whole and |r| <= log(2) / 2.  Adding 1.5 2^23 (or 2^52) rounds x / log(2) to
 * n and leaves n in the low bits.  2^n is multiplied in two factors, since n may lie outside of the
 * exponents of normal numbers. */

#define RG_WHOLE_f32 0x1.8p23f
#define RG_WHOLE_f64 0x1.8p52

RG_INLINE f32 rg_times_power_f32(f32 x, f32 whole) { /* x 2^n, `whole` = RG_WHOLE + n */
    u32 n = rg_bits_f32(whole) - rg_bits_f32(RG_WHOLE_f32) + 512, half = n >> 1;
    f32 y = x * rg_from_bits_f32((half - 256 + 127) << 23);
    return y * rg_from_bits_f32((n - half - 256 + 127) << 23);
}
RG_INLINE f64 rg_times_power_f64(f64 x, f64 whole) {
    u64 n = rg_bits_f64(whole) - rg_bits_f64(RG_WHOLE_f64) + 4096, half = n >> 1;
    f64 y = x * rg_from_bits_f64((half - 2048 + 1023) << 52);
    return y * rg_from_bits_f64((n - half - 2048 + 1023) << 52);
}
/* 2^n for n from -126 to 127 (-1022 to 1023) */
RG_INLINE f32 rg_power_f32(f32 n) {
    return rg_from_bits_f32((rg_bits_f32(n + RG_WHOLE_f32) << 23) + (127u << 23));
}
RG_INLINE f64 rg_power_f64(f64 n) {
    return rg_from_bits_f64((rg_bits_f64(n + RG_WHOLE_f64) << 52) + ((u64)1023 << 52));
}

/* 2^n times what is returned is e^x; `whole` = RG_WHOLE + n */
RG_INLINE f32 rg_exp_rest_f32(f32 x, f32 *whole) {
    *whole = rg_fma_f32(x, 0x1.715476p+0f, RG_WHOLE_f32);
    f32 n = *whole - RG_WHOLE_f32;
    f32 r = rg_fma_f32(n, -0x1.62e43p-1f, x);
    r = rg_fma_f32(n, 0x1.05c61p-29f, r);
    f32 p = 0x1.6d99bcp-10f;
    p = rg_fma_f32(p, r, 0x1.12288p-7f);
    p = rg_fma_f32(p, r, 0x1.555486p-5f);
    p = rg_fma_f32(p, r, 0x1.5554aep-3f);
    p = rg_fma_f32(p, r, 0x1p-1f);
    return rg_fma_f32(r * r, p, r) + 1.0f;
}
RG_INLINE f32 rg_exp_within_f32(f32 x) { /* for x from -87 to 88: fewer steps, the same bits */
    f32 whole, y = rg_exp_rest_f32(x, &whole);
    return y * rg_from_bits_f32((rg_bits_f32(whole) << 23) + (127u << 23));
}
RG_INLINE f32 rg_exp_f32(f32 x) { /* 1.1 ulp */
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    f32 whole, y = rg_exp_rest_f32(x, &whole);
    return rg_times_power_f32(y, whole);
}
RG_INLINE f32 rg_exp2_f32(f32 x) { /* 1.0 ulp; whole powers are exact */
    x = x > 129.0f ? 129.0f : x;
    x = x < -151.0f ? -151.0f : x;
    f32 whole = x + RG_WHOLE_f32, r = x - (whole - RG_WHOLE_f32);
    f32 p = 0x1.448fbcp-13f;
    p = rg_fma_f32(p, r, 0x1.5f47bp-10f);
    p = rg_fma_f32(p, r, 0x1.3b29aap-7f);
    p = rg_fma_f32(p, r, 0x1.c6aedp-5f);
    p = rg_fma_f32(p, r, 0x1.ebfbep-3f);
    p = rg_fma_f32(p, r, 0x1.62e43p-1f);
    return rg_times_power_f32(rg_fma_f32(p, r, 1.0f), whole);
}
RG_INLINE f32 rg_expm1_f32(f32 x) { /* 1.5 ulp */
    f32 c = x > 89.0f ? 89.0f : x;
    c = c < -30.0f ? -30.0f : c;
    f32 n = rg_fma_f32(c, 0x1.715476p+0f, RG_WHOLE_f32) - RG_WHOLE_f32;
    f32 r = rg_fma_f32(n, -0x1.62e43p-1f, c);
    r = rg_fma_f32(n, 0x1.05c61p-29f, r);
    f32 p = 0x1.a1a21ap-13f;
    p = rg_fma_f32(p, r, 0x1.6d7528p-10f);
    p = rg_fma_f32(p, r, 0x1.11109p-7f);
    p = rg_fma_f32(p, r, 0x1.5554aep-5f);
    p = rg_fma_f32(p, r, 0x1.555556p-3f);
    p = rg_fma_f32(p, r, 0x1p-1f);
    p = rg_fma_f32(r * r, p, r);
    f32 last = n > 127.0f ? 127.0f : n, s = rg_power_f32(last); /* 2^128 is no number */
    f32 y = rg_fma_f32(s, p, s - (n > 127.0f ? 0.5f : 1.0f)) * (n > 127.0f ? 2.0f : 1.0f);
    return __builtin_copysignf(y, x);
}

/* e^x 2^k */
RG_INLINE f64 rg_exp_scaled_f64(f64 x, f64 k) {
    x = x > 711.0 ? 711.0 : x;
    x = x < -746.0 ? -746.0 : x;
    f64 whole = rg_fma_f64(x, 0x1.71547652b82fep+0, RG_WHOLE_f64), n = whole - RG_WHOLE_f64;
    f64 r = rg_fma_f64(n, -0x1.62e42fefa39efp-1, x);
    r = rg_fma_f64(n, -0x1.abc9e3b39803fp-56, r);
    f64 p = 0x1.1f95a12114be2p-29;
    p = rg_fma_f64(p, r, 0x1.af5f32f3bd235p-26);
    p = rg_fma_f64(p, r, 0x1.27e4c5790ff9bp-22);
    p = rg_fma_f64(p, r, 0x1.71ddf81672698p-19);
    p = rg_fma_f64(p, r, 0x1.a01a01b0c9923p-16);
    p = rg_fma_f64(p, r, 0x1.a01a01affb223p-13);
    p = rg_fma_f64(p, r, 0x1.6c16c16c14415p-10);
    p = rg_fma_f64(p, r, 0x1.111111110f67ep-7);
    p = rg_fma_f64(p, r, 0x1.555555555555ap-5);
    p = rg_fma_f64(p, r, 0x1.5555555555559p-3);
    p = rg_fma_f64(p, r, 0x1p-1);
    return rg_times_power_f64(rg_fma_f64(r * r, p, r) + 1.0, whole + k);
}
RG_INLINE f64 rg_exp_f64(f64 x) { return rg_exp_scaled_f64(x, 0.0); } /* 1.0 ulp */
RG_INLINE f64 rg_exp2_f64(f64 x) { /* 1.1 ulp; whole powers are exact */
    x = x > 1025.0 ? 1025.0 : x;
    x = x < -1076.0 ? -1076.0 : x;
    f64 whole = x + RG_WHOLE_f64, r = (x - (whole - RG_WHOLE_f64)) * 0x1.62e42fefa39efp-1;
    f64 p = 0x1.1f95a12114be2p-29;
    p = rg_fma_f64(p, r, 0x1.af5f32f3bd235p-26);
    p = rg_fma_f64(p, r, 0x1.27e4c5790ff9bp-22);
    p = rg_fma_f64(p, r, 0x1.71ddf81672698p-19);
    p = rg_fma_f64(p, r, 0x1.a01a01b0c9923p-16);
    p = rg_fma_f64(p, r, 0x1.a01a01affb223p-13);
    p = rg_fma_f64(p, r, 0x1.6c16c16c14415p-10);
    p = rg_fma_f64(p, r, 0x1.111111110f67ep-7);
    p = rg_fma_f64(p, r, 0x1.555555555555ap-5);
    p = rg_fma_f64(p, r, 0x1.5555555555559p-3);
    p = rg_fma_f64(p, r, 0x1p-1);
    return rg_times_power_f64(rg_fma_f64(r * r, p, r) + 1.0, whole);
}
RG_INLINE f64 rg_expm1_f64(f64 x) { /* 1.8 ulp */
    f64 c = x > 711.0 ? 711.0 : x;
    c = c < -60.0 ? -60.0 : c;
    f64 n = rg_fma_f64(c, 0x1.71547652b82fep+0, RG_WHOLE_f64) - RG_WHOLE_f64;
    f64 r = rg_fma_f64(n, -0x1.62e42fefa39efp-1, c);
    r = rg_fma_f64(n, -0x1.abc9e3b39803fp-56, r);
    f64 p = 0x1.1f95a12114be2p-29;
    p = rg_fma_f64(p, r, 0x1.af5f32f3bd235p-26);
    p = rg_fma_f64(p, r, 0x1.27e4c5790ff9bp-22);
    p = rg_fma_f64(p, r, 0x1.71ddf81672698p-19);
    p = rg_fma_f64(p, r, 0x1.a01a01b0c9923p-16);
    p = rg_fma_f64(p, r, 0x1.a01a01affb223p-13);
    p = rg_fma_f64(p, r, 0x1.6c16c16c14415p-10);
    p = rg_fma_f64(p, r, 0x1.111111110f67ep-7);
    p = rg_fma_f64(p, r, 0x1.555555555555ap-5);
    p = rg_fma_f64(p, r, 0x1.5555555555559p-3);
    p = rg_fma_f64(p, r, 0x1p-1);
    p = rg_fma_f64(r * r, p, r);
    f64 m = n > 1023.0 ? 1023.0 : n, s = rg_power_f64(m);
    f64 y = rg_fma_f64(s, p, s - (n > 1023.0 ? 0.5 : 1.0)) * (n > 1023.0 ? 2.0 : 1.0);
    y = n > 1024.0 ? __builtin_inf() : y;
    return __builtin_copysign(y, x);
}

/* log(x) = e log(2) + log(1 + f), x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2) */
RG_INLINE f32 rg_split_f32(f32 x, f32 *e) { /* x > 0, normal -> f */
    u32 b = rg_bits_f32(x) + (0x3f800000u - 0x3f3504f3u);
    *e = rg_from_bits_f32(rg_bits_f32(RG_WHOLE_f32) + (b >> 23)) - (RG_WHOLE_f32 + 127.0f);
    return rg_from_bits_f32((b & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
}
RG_INLINE f64 rg_split_f64(f64 x, f64 *e) {
    u64 b = rg_bits_f64(x) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    *e = rg_from_bits_f64(rg_bits_f64(RG_WHOLE_f64) + (b >> 52)) - (RG_WHOLE_f64 + 1023.0);
    return rg_from_bits_f64((b & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1.0;
}
RG_INLINE f32 rg_log_rest_f32(f32 f) { /* log(1 + f) - f + f^2 / 2 */
    f32 z = f * f;
    f32 p = 0x1.1b4308p-4f;
    p = rg_fma_f32(p, f, -0x1.e2ee3ap-4f);
    p = rg_fma_f32(p, f, 0x1.e652d2p-4f);
    p = rg_fma_f32(p, f, -0x1.fb4294p-4f);
    p = rg_fma_f32(p, f, 0x1.233294p-3f);
    p = rg_fma_f32(p, f, -0x1.5562e6p-3f);
    p = rg_fma_f32(p, f, 0x1.99a548p-3f);
    p = rg_fma_f32(p, f, -0x1.ffffeep-3f);
    p = rg_fma_f32(p, f, 0x1.555546p-2f);
    return f * z * p;
}
RG_INLINE f32 rg_log_sum_f32(f32 f, f32 e) {
    f32 y = rg_fma_f32(e, 0x1.7f7d1cp-20f, rg_log_rest_f32(f));
    y = rg_fma_f32(-0.5f, f * f, y);
    return rg_fma_f32(e, 0x1.62e4p-1f, f + y);
}
RG_INLINE f64 rg_log_sum_f64(f64 f, f64 e) {
    f64 s = f / (2.0 + f), z = s * s, h = 0.5 * f * f;
    f64 p = 0x1.2f0ee975fe423p-3;
    p = rg_fma_f64(p, z, 0x1.39a0d42e30e9fp-3);
    p = rg_fma_f64(p, z, 0x1.74664761c5f03p-3);
    p = rg_fma_f64(p, z, 0x1.c71c51e2682c4p-3);
    p = rg_fma_f64(p, z, 0x1.249249421e0c2p-2);
    p = rg_fma_f64(p, z, 0x1.999999997fac6p-2);
    p = rg_fma_f64(p, z, 0x1.5555555555593p-1);
    f64 y = rg_fma_f64(s, rg_fma_f64(p, z, h), e * -0x1.718432a1b0e26p-35);
    return rg_fma_f64(e, 0x1.62e42ffp-1, f - (h - y));
}
#define RG_LOG_ENDS(F, y) \
    y = x == 0 ? -(F)INFINITY : y; \
    y = x < 0 ? (F)NAN : y; \
    return x < (F)INFINITY ? y : x; /* NaN and infinity */

RG_INLINE f32 rg_log_f32(f32 x) { /* 0.8 ulp */
    i32 tiny = x < 0x1p-126f;
    f32 e, f = rg_split_f32(tiny ? x * 0x1p23f : x, &e);
    f32 y = rg_log_sum_f32(f, tiny ? e - 23.0f : e);
    RG_LOG_ENDS(f32, y)
}
RG_INLINE f64 rg_log_f64(f64 x) { /* 0.8 ulp */
    i32 tiny = x < 0x1p-1022;
    f64 e, f = rg_split_f64(tiny ? x * 0x1p54 : x, &e);
    f64 y = rg_log_sum_f64(f, tiny ? e - 54.0 : e);
    RG_LOG_ENDS(f64, y)
}
RG_INLINE f64 rg_log2_f64(f64 x) { /* 1.6 ulp; whole powers are exact */
    i32 tiny = x < 0x1p-1022;
    f64 e, f = rg_split_f64(tiny ? x * 0x1p54 : x, &e), y = rg_log_sum_f64(f, 0.0);
    y = (tiny ? e - 54.0 : e) + rg_fma_f64(y, 0x1.71547652b82fep+0, y * 0x1.777d0ffda0d24p-56);
    RG_LOG_ENDS(f64, y)
}
RG_INLINE f32 rg_log2_f32(f32 x) { /* 1.0 ulp; whole powers are exact */
    i32 tiny = x < 0x1p-126f;
    f32 e, f = rg_split_f32(tiny ? x * 0x1p23f : x, &e);
    f32 y = rg_fma_f32(-0.5f, f * f, rg_log_rest_f32(f)), high = f * 0x1.715476p+0f;
    f32 low = rg_fma_f32(f, 0x1.715476p+0f, -high); /* f log2(e) in two parts */
    low = rg_fma_f32(f, 0x1.4ae0cp-26f, low);
    y = (tiny ? e - 23.0f : e) + (high + rg_fma_f32(y, 0x1.715476p+0f, low));
    RG_LOG_ENDS(f32, y)
}

/* log(1 + x): f of 1 + x, and what 1 + x lost in rounding, in units of 2^e */
#define RG_LOG1P_ENDS(F, y) \
    y = x == -1 ? -(F)INFINITY : y; \
    y = x < -1 ? (F)NAN : y; \
    y = x == 0 ? x : y; \
    return x < (F)INFINITY ? y : x;

RG_INLINE f32 rg_log1p_within_f32(f32 x) { /* for finite x above -1 */
    f32 u = 1.0f + x, lost = x >= 1.0f ? 1.0f - (u - x) : x - (u - 1.0f);
    f32 e, f = rg_split_f32(u, &e);
    f = rg_fma_f32(lost, rg_power_f32(e > 126.0f ? -126.0f : -e), f);
    return rg_log_sum_f32(f, e);
}
RG_INLINE f32 rg_log1p_f32(f32 x) { /* 1.4 ulp */
    f32 y = rg_log1p_within_f32(x);
    RG_LOG1P_ENDS(f32, y)
}
RG_INLINE f64 rg_log1p_within_f64(f64 x) { /* for finite x above -1 */
    f64 u = 1.0 + x, lost = x >= 1.0 ? 1.0 - (u - x) : x - (u - 1.0);
    f64 e, f = rg_split_f64(u, &e);
    f = rg_fma_f64(lost, rg_power_f64(e > 1022.0 ? -1022.0 : -e), f);
    return rg_log_sum_f64(f, e);
}
RG_INLINE f64 rg_log1p_f64(f64 x) { /* 1.4 ulp */
    f64 y = rg_log1p_within_f64(x);
    RG_LOG1P_ENDS(f64, y)
}

/* 1 / (1 + e^-x): 2.3 ulp in f32, 2.4 in f64; 0 where e^-x overflows.
 * log(e^a + e^b): 2.9 and 2.6 ulp of the largest of a, b and the result (the two terms of it
 * may cancel).  log(1 + e^x): 1.6 and 1.7 ulp. */

#define RG_FROM_EXP(F, S) \
    RG_INLINE F rg_sigmoid_##F(F x) { return 1 / (1 + rg_exp_##F(-x)); } \
    RG_INLINE F rg_logaddexp_##F(F a, F b) { \
        F apart = a == b ? 0 : a - b; \
        return rg_maximum_##F(a, b) + rg_log1p_within_##F(rg_exp_##F(-__builtin_fabs##S(apart))); \
    } \
    RG_INLINE F rg_softplus_##F(F x) { \
        return (x < 0 ? 0 : x) + rg_log1p_within_##F(rg_exp_##F(-__builtin_fabs##S(x))); \
    }
RG_FROM_EXP(f32, f)
RG_FROM_EXP(f64, )
#undef RG_FROM_EXP

/* --- hyperbolic functions */

/* up to 0.6 x + x^3 p(x^2), beyond 1 - 2 w / (1 + w) with w = e^(-2|x|) */
RG_INLINE f32 rg_tanh_f32(f32 x) { /* 1.5 ulp */
    f32 a = __builtin_fabsf(x), z = a * a;
    f32 p = -0x1.83017cp-8f;
    p = rg_fma_f32(p, z, 0x1.54de08p-6f);
    p = rg_fma_f32(p, z, -0x1.b89e92p-5f);
    p = rg_fma_f32(p, z, 0x1.1109dap-3f);
    p = rg_fma_f32(p, z, -0x1.55553ep-2f);
    f32 small = rg_fma_f32(a * z, p, a);
    f32 w = rg_exp_within_f32(-2.0f * (a > 10.0f ? 10.0f : a));
    f32 y = a < 0.6f ? small : 1.0f - 2.0f * w / (1.0f + w);
    return __builtin_copysignf(y, x);
}
/* -q / (2 + q) with q = e^(-2|x|) - 1 */
RG_INLINE f64 rg_tanh_f64(f64 x) { /* 2.6 ulp */
    f64 q = rg_expm1_f64(-2.0 * __builtin_fabs(x));
    return __builtin_copysign(-q / (2.0 + q), x);
}
RG_INLINE f64 rg_sinh_f64(f64 x) { /* 2.3 ulp */
    f64 a = __builtin_fabs(x), q = rg_expm1_f64(a > 30.0 ? 30.0 : a);
    f64 small = 0.5 * (q + q / (q + 1.0)), large = rg_exp_scaled_f64(a, -1.0);
    return __builtin_copysign(a > 22.0 ? large : small, x);
}
RG_INLINE f64 rg_cosh_f64(f64 x) { /* 1.4 ulp */
    f64 half = rg_exp_scaled_f64(__builtin_fabs(x), -1.0);
    return half + 0.25 / half;
}
/* beyond 2^60 log(2x), where squares overflow */
RG_INLINE f64 rg_arcsinh_f64(f64 x) { /* 1.8 ulp */
    f64 a = __builtin_fabs(x), s = a * a, y = a + s / (1.0 + __builtin_sqrt(1.0 + s));
    y = rg_log1p_f64(a > 0x1p60 ? a : y);
    return __builtin_copysign(a > 0x1p60 ? y + 0x1.62e42fefa39efp-1 : y, x);
}
RG_INLINE f64 rg_arccosh_f64(f64 x) { /* 2.4 ulp */
    f64 t = x < 1.0 ? NAN : x - 1.0, u = t + __builtin_sqrt(t * (x + 1.0));
    f64 y = rg_log1p_f64(x > 0x1p60 ? x : u);
    return x > 0x1p60 ? y + 0x1.62e42fefa39efp-1 : y;
}
RG_INLINE f64 rg_arctanh_f64(f64 x) { /* 1.9 ulp */
    f64 a = __builtin_fabs(x);
    return __builtin_copysign(0.5 * rg_log1p_f64(2.0 * a / (1.0 - a)), x);
}

/* --- trigonometric functions */

/* |x| = 2 pi k + n pi/2 + r with |r| <= pi/4, n in the low bits of `n`.  Up to 2^40 by a multiple
 * of pi/2, itself in two parts; beyond by the bits of 1 / (2 pi) that matter at the exponent of x
 * (Payne & Hanek 1983, Radian reduction for trigonometric functions). */
RG_INLINE f64 rg_quarters_f32(f32 x, u32 *n) {
    f32 a = __builtin_fabsf(x);
    f64 d = a, whole = rg_fma_f64(d, 0x1.45f306dc9c883p-1, RG_WHOLE_f64), m = whole - RG_WHOLE_f64;
    f64 r = rg_fma_f64(m, -0x1.921fb54442d18p+0, d);
    r = rg_fma_f64(m, -0x1.1a62633145c07p-54, r);
    u64 quarters = rg_bits_f64(whole);
    u32 b = rg_bits_f32(a), e = (b >> 23) - 150; /* |x| = c 2^e, used from e = 17 on */
    u64 c = (b & 0x007fffffu) | 0x00800000u, shift = e & 63;
    i32 far = e >= 64;
    u64 k0 = far ? 0x7f09d5f47d4d3770u : 0x28be60db9391054au;
    u64 k1 = far ? 0x36d8a5664f10e410u : 0x7f09d5f47d4d3770u;
    u64 k2 = far ? 0x7f9458eaf7aef158u : 0x36d8a5664f10e410u;
    u64 high = k0 << shift | (k1 >> 1) >> (63 - shift);
    u64 low = (k1 << shift | (k2 >> 1) >> (63 - shift)) >> 32;
    u64 turns = c * high + ((c * low) >> 32); /* in units of 2^-64, whole turns lost */
    u64 turned = (turns + 0x2000000000000000u) >> 62;
    u64 rest = turns - (turned << 62); /* signed; to f64 by halves: AVX2 has no conversion of i64 */
    f64 upper = rg_from_bits_f64((rest >> 32 ^ 0x80000000u) | 0x4330000000000000u);
    f64 lower = rg_from_bits_f64((rest & 0xffffffffu) | 0x4330000000000000u);
    f64 angle = rg_fma_f64(upper - (0x1p52 + 0x1p31), 0x1p32, lower - 0x1p52);
    r = a > 0x1p40f ? angle * 0x1.921fb54442d18p-62 : r;
    quarters = a > 0x1p40f ? turned : quarters;
    *n = (u32)quarters;
    return a < INFINITY ? r : NAN;
}
RG_INLINE f32 rg_sin_quarter_f32(f32 r, u32 n) { /* sin(r + n pi/2) */
    f32 z = r * r;
    f32 s = -0x1.994cfap-13f;
    s = rg_fma_f32(s, z, 0x1.11075cp-7f);
    s = rg_fma_f32(s, z, -0x1.555546p-3f);
    s = rg_fma_f32(r * z, s, r);
    f32 c = 0x1.9a00cep-16f;
    c = rg_fma_f32(c, z, -0x1.6c0c86p-10f);
    c = rg_fma_f32(c, z, 0x1.55554ap-5f);
    c = rg_fma_f32(z * z, c, rg_fma_f32(-0.5f, z, 1.0f));
    return rg_from_bits_f32(rg_bits_f32(n & 1 ? c : s) ^ (n & 2) << 30);
}
RG_INLINE f32 rg_sin_f32(f32 x) { /* 1.6 ulp */
    u32 n;
    f64 r = rg_quarters_f32(x, &n);
    f32 y = rg_sin_quarter_f32((f32)r, n);
    return rg_from_bits_f32(rg_bits_f32(y) ^ (rg_bits_f32(x) & 0x80000000u));
}
RG_INLINE f32 rg_cos_f32(f32 x) { /* 1.6 ulp */
    u32 n;
    f64 r = rg_quarters_f32(x, &n);
    return rg_sin_quarter_f32((f32)r, n + 1);
}
RG_INLINE f32 rg_tan_f32(f32 x) { /* 0.6 ulp */
    u32 n;
    f64 r = rg_quarters_f32(x, &n), z = r * r;
    f64 s = -0x1.994cfap-13;
    s = rg_fma_f64(s, z, 0x1.11075cp-7);
    s = rg_fma_f64(s, z, -0x1.555546p-3);
    s = rg_fma_f64(r * z, s, r);
    f64 c = 0x1.9a00cep-16;
    c = rg_fma_f64(c, z, -0x1.6c0c86p-10);
    c = rg_fma_f64(c, z, 0x1.55554ap-5);
    c = rg_fma_f64(z * z, c, rg_fma_f64(-0.5, z, 1.0));
    f32 y = (f32)((n & 1 ? -c : s) / (n & 1 ? s : c));
    return rg_from_bits_f32(rg_bits_f32(y) ^ (rg_bits_f32(x) & 0x80000000u));
}
/* C library: scalar */
RG_INLINE f64 rg_sin_f64(f64 x) { return sin(x); }
RG_INLINE f64 rg_cos_f64(f64 x) { return cos(x); }
RG_INLINE f64 rg_tan_f64(f64 x) { return tan(x); }

/* the angle of (b, a) for 0 <= a <= b, or pi/2 less it; a/b, or (a - b) / (a + b) and pi/4 */
RG_INLINE f64 rg_arctan2_f64(f64 a, f64 b) { /* 1.9 ulp */
    f64 u = __builtin_fabs(a), v = __builtin_fabs(b);
    i32 infinite = (u == INFINITY) & (v == INFINITY);
    u = infinite ? 1.0 : u;
    v = infinite ? 1.0 : v;
    i32 steep = u > v;
    f64 low = steep ? v : u, high = steep ? u : v;
    f64 scale = high > 0x1p1000 ? 0x1p-60 : high < 0x1p-960 ? 0x1p60 : 1.0;
    low *= scale;
    high *= scale;
    i32 upper = low > high * 0x1.a827999fcef32p-2;
    f64 t = (upper ? low - high : low) / (upper ? low + high : high);
    t = high == 0 ? 0 : t;
    f64 z = t * t;
    f64 p = -0x1.2564d9cedbe02p-6;
    p = rg_fma_f64(p, z, 0x1.37d3ff79cd7a9p-5);
    p = rg_fma_f64(p, z, -0x1.9cd26d5df23afp-5);
    p = rg_fma_f64(p, z, 0x1.df0f4c0576ad5p-5);
    p = rg_fma_f64(p, z, -0x1.10ebb98244d6dp-4);
    p = rg_fma_f64(p, z, 0x1.3b11194eb699dp-4);
    p = rg_fma_f64(p, z, -0x1.745cf8e02325cp-4);
    p = rg_fma_f64(p, z, 0x1.c71c70e631da8p-4);
    p = rg_fma_f64(p, z, -0x1.24924922ad99ap-3);
    p = rg_fma_f64(p, z, 0x1.9999999995863p-3);
    p = rg_fma_f64(p, z, -0x1.555555555553dp-2);
    f64 y = t * z * p; /* arctan(t) = t + y; pi/4, pi/2 and pi in two parts each */
    y = upper ? 0x1.921fb54442d18p-1 + (t + (y + 0x1.1a62633145c07p-55)) : t + y;
    y = steep ? 0x1.921fb54442d18p+0 - (y - 0x1.1a62633145c07p-54) : y;
    y = rg_bits_f64(b) >> 63 ? 0x1.921fb54442d18p+1 - (y - 0x1.1a62633145c07p-53) : y;
    y = ((a != a) | (b != b)) ? a + b : y;
    return __builtin_copysign(y, a);
}
RG_INLINE f64 rg_arctan_f64(f64 x) { return rg_arctan2_f64(x, 1.0); } /* 1.8 ulp */

/* up to 1/2 x + x^3 p(x^2); beyond, by the half angle: arccos(x) = 2 arcsin(sqrt((1 - x) / 2)) */
RG_INLINE f64 rg_arcsin_f64(f64 x) { /* 2.1 ulp */
    f64 a = __builtin_fabs(x);
    i32 upper = a > 0.5;
    f64 z = upper ? 0.5 * (1.0 - a) : a * a, s = upper ? __builtin_sqrt(z) : a;
    f64 p = 0x1.0be5bce96eedbp-5;
    p = rg_fma_f64(p, z, -0x1.59fb18a2e6095p-6);
    p = rg_fma_f64(p, z, 0x1.65057d27d5df2p-6);
    p = rg_fma_f64(p, z, 0x1.e14edf9ae0b14p-9);
    p = rg_fma_f64(p, z, 0x1.618b9ed681134p-7);
    p = rg_fma_f64(p, z, 0x1.75776087972e5p-7);
    p = rg_fma_f64(p, z, 0x1.ca214a51522a8p-7);
    p = rg_fma_f64(p, z, 0x1.1c49ddb9a96c8p-6);
    p = rg_fma_f64(p, z, 0x1.6e8bdfeb23588p-6);
    p = rg_fma_f64(p, z, 0x1.f1c71a8b6caa5p-6);
    p = rg_fma_f64(p, z, 0x1.6db6db722bff2p-5);
    p = rg_fma_f64(p, z, 0x1.333333332df05p-4);
    p = rg_fma_f64(p, z, 0x1.5555555555578p-3);
    f64 y = rg_fma_f64(s * z, p, s);
    y = upper ? 0x1.921fb54442d18p+0 - (2.0 * y - 0x1.1a62633145c07p-54) : y;
    return __builtin_copysign(y, x);
}
RG_INLINE f64 rg_arccos_f64(f64 x) { /* 1.1 ulp */
    f64 a = __builtin_fabs(x);
    i32 upper = a > 0.5;
    f64 z = upper ? 0.5 * (1.0 - a) : a * a, s = upper ? __builtin_sqrt(z) : x;
    f64 p = 0x1.0be5bce96eedbp-5;
    p = rg_fma_f64(p, z, -0x1.59fb18a2e6095p-6);
    p = rg_fma_f64(p, z, 0x1.65057d27d5df2p-6);
    p = rg_fma_f64(p, z, 0x1.e14edf9ae0b14p-9);
    p = rg_fma_f64(p, z, 0x1.618b9ed681134p-7);
    p = rg_fma_f64(p, z, 0x1.75776087972e5p-7);
    p = rg_fma_f64(p, z, 0x1.ca214a51522a8p-7);
    p = rg_fma_f64(p, z, 0x1.1c49ddb9a96c8p-6);
    p = rg_fma_f64(p, z, 0x1.6e8bdfeb23588p-6);
    p = rg_fma_f64(p, z, 0x1.f1c71a8b6caa5p-6);
    p = rg_fma_f64(p, z, 0x1.6db6db722bff2p-5);
    p = rg_fma_f64(p, z, 0x1.333333332df05p-4);
    p = rg_fma_f64(p, z, 0x1.5555555555578p-3);
    f64 y = rg_fma_f64(s * z, p, s);
    f64 flat = 0x1.921fb54442d18p+0 - (y - 0x1.1a62633145c07p-54);
    f64 steep = x < 0 ? 0x1.921fb54442d18p+1 - (2.0 * y - 0x1.1a62633145c07p-53) : 2.0 * y;
    return upper ? steep : flat;
}

/* --- powers and distances */

RG_INLINE f64 rg_hypot_f64(f64 a, f64 b) { /* 1.0 ulp */
    f64 u = __builtin_fabs(a), v = __builtin_fabs(b);
    f64 high = u > v ? u : v, low = u > v ? v : u;
    f64 scale = high > 0x1p500 ? 0x1p-600 : high < 0x1p-400 ? 0x1p600 : 1.0;
    f64 back = high > 0x1p500 ? 0x1p600 : high < 0x1p-400 ? 0x1p-600 : 1.0;
    high *= scale;
    low *= scale;
    f64 y = __builtin_sqrt(rg_fma_f64(high, high, low * low)) * back;
    y = ((a != a) | (b != b)) ? a + b : y;
    return ((u == INFINITY) | (v == INFINITY)) ? INFINITY : y;
}
RG_INLINE f32 rg_hypot_f32(f32 a, f32 b) { /* 0.5 ulp */
    f64 u = a, v = b, y = __builtin_sqrt(rg_fma_f64(u, u, v * v));
    i32 infinite = (__builtin_fabs(u) == INFINITY) | (__builtin_fabs(v) == INFINITY);
    return infinite ? INFINITY : (f32)y;
}
RG_INLINE f32 rg_pow_f32(f32 a, f32 b) { /* 0.5 ulp */
    f64 y = rg_exp2_f64((f64)b * rg_log2_f64(__builtin_fabs((f64)a)));
    f32 h = 0.5f * b;
    i32 whole = __builtin_floorf(b) == b, odd = whole & (__builtin_floorf(h) != h);
    f32 r = (f32)y;
    r = ((__builtin_fabsf(a) == 1.0f) & (b == b)) ? 1.0f : r;
    r = ((a < 0) & !whole & (a > -INFINITY)) ? NAN : r;
    r = (odd & (i32)(rg_bits_f32(a) >> 31)) ? -r : r;
    return ((a == 1.0f) | (b == 0.0f)) ? 1.0f : r;
}
RG_INLINE f64 rg_pow_f64(f64 a, f64 b) { return pow(a, b); } /* C library: scalar */

/* --- the error function */

RG_INLINE f64 rg_erf_lower_f64(f64 x) { /* x + x p(x^2), up to 1 */
    f64 z = x * x;
    f64 p = 0x1.06245618a6fa5p-34;
    p = rg_fma_f64(p, z, -0x1.38ab0c46e8c78p-30);
    p = rg_fma_f64(p, z, 0x1.f7b945c666d25p-27);
    p = rg_fma_f64(p, z, -0x1.5f1f390c9f8e9p-23);
    p = rg_fma_f64(p, z, 0x1.b9df2f741fd3ep-20);
    p = rg_fma_f64(p, z, -0x1.f4d1e42329b07p-17);
    p = rg_fma_f64(p, z, 0x1.f9a321e3d5d9ep-14);
    p = rg_fma_f64(p, z, -0x1.c02db3db41f73p-11);
    p = rg_fma_f64(p, z, 0x1.565bcd0dbd69ep-8);
    p = rg_fma_f64(p, z, -0x1.b82ce31284f28p-6);
    p = rg_fma_f64(p, z, 0x1.ce2f21a042b34p-4);
    p = rg_fma_f64(p, z, -0x1.812746b0379e6p-2);
    p = rg_fma_f64(p, z, 0x1.06eba8214db69p-3);
    return rg_fma_f64(x, p, x);
}
/* e^(-x^2) p(t) / (1 + 2x), t = (x - 4) / (x + 4), for x >= 0 (Schonfelder 1978, Chebyshev
 * expansions for the error and related functions); the square in two parts */
RG_INLINE f64 rg_erfc_upper_f64(f64 a) {
    a = a > 28.0 ? 28.0 : a;
    f64 t = (a - 4.0) / (a + 4.0);
    f64 p = 0x1.49572c3f47894p-30;
    p = rg_fma_f64(p, t, 0x1.cd0b16edf6078p-30);
    p = rg_fma_f64(p, t, -0x1.e3762b5575ef4p-27);
    p = rg_fma_f64(p, t, -0x1.2c204ea1aeb2p-26);
    p = rg_fma_f64(p, t, 0x1.d9e0695f02177p-24);
    p = rg_fma_f64(p, t, 0x1.3e47ab305b8f7p-24);
    p = rg_fma_f64(p, t, -0x1.bb6ffba1ab74ap-21);
    p = rg_fma_f64(p, t, 0x1.3bda94a4a4022p-22);
    p = rg_fma_f64(p, t, 0x1.7f346f5ddb8cep-18);
    p = rg_fma_f64(p, t, -0x1.788dd165346bp-17);
    p = rg_fma_f64(p, t, -0x1.995ace7bc328ap-16);
    p = rg_fma_f64(p, t, 0x1.3be06c0b0d84bp-13);
    p = rg_fma_f64(p, t, -0x1.a1df16157117p-13);
    p = rg_fma_f64(p, t, -0x1.8d4a9c4ddb32p-11);
    p = rg_fma_f64(p, t, 0x1.49c6726f02731p-8);
    p = rg_fma_f64(p, t, -0x1.096238829b2a6p-6);
    p = rg_fma_f64(p, t, 0x1.3079edf6d4d47p-5);
    p = rg_fma_f64(p, t, -0x1.0fb06dfe55358p-4);
    p = rg_fma_f64(p, t, 0x1.7fee004e0fdf1p-4);
    p = rg_fma_f64(p, t, -0x1.9ddb23c3e8956p-4);
    p = rg_fma_f64(p, t, 0x1.16ecefcfa54a5p-4);
    p = rg_fma_f64(p, t, 0x1.f7f5df66fd6ccp-7);
    p = rg_fma_f64(p, t, -0x1.1df1ad154a28fp-3);
    p = rg_fma_f64(p, t, 0x1.3ba5916e9fd7fp+0);
    f64 high = a * a, low = rg_fma_f64(a, a, -high), y = rg_exp_f64(-high);
    return rg_fma_f64(-low, y, y) * (p / rg_fma_f64(2.0, a, 1.0));
}
RG_INLINE f64 rg_erfc_f64(f64 x) { /* 3.0 ulp */
    f64 a = __builtin_fabs(x), y = rg_erfc_upper_f64(a);
    y = x < 0 ? 2.0 - y : y;
    return a < 0.5 ? 1.0 - rg_erf_lower_f64(x) : y;
}
RG_INLINE f32 rg_erfc_f32(f32 x) {
    f64 y = rg_erfc_upper_f64(__builtin_fabs((f64)x));
    return (f32)(x < 0 ? 2.0 - y : y);
}
RG_INLINE f64 rg_erf_f64(f64 x) { /* 1.0 ulp */
    f64 a = __builtin_fabs(x), lower = rg_erf_lower_f64(a);
    return __builtin_copysign(a < 1.0 ? lower : 1.0 - rg_erfc_upper_f64(a), x);
}
RG_INLINE f32 rg_erf_f32(f32 x) { /* 1.2 ulp */
    f32 a = __builtin_fabsf(x), z = a * a;
    f32 p = 0x1.4ae14ap-14f;
    p = rg_fma_f32(p, z, -0x1.a484b8p-11f);
    p = rg_fma_f32(p, z, 0x1.5419cep-8f);
    p = rg_fma_f32(p, z, -0x1.b7fbbp-6f);
    p = rg_fma_f32(p, z, 0x1.ce2d2p-4f);
    p = rg_fma_f32(p, z, -0x1.81273ep-2f);
    p = rg_fma_f32(p, z, 0x1.06eba8p-3f);
    a = a > 4.0f ? 4.0f : a;
    f32 q = 0x1.852d1ep-13f;
    q = rg_fma_f32(q, a, -0x1.814cc2p-9f);
    q = rg_fma_f32(q, a, 0x1.654216p-6f);
    q = rg_fma_f32(q, a, -0x1.a60a7ep-4f);
    q = rg_fma_f32(q, a, -0x1.46c584p-1f);
    q = rg_fma_f32(q, a, -0x1.2085b2p+0f);
    q = rg_fma_f32(q, a, -0x1.72e7aep-12f);
    f32 y = a < 1.0f ? rg_fma_f32(a, p, a) : 1.0f - rg_exp_within_f32(q);
    return __builtin_copysignf(y, x);
}

/* --- f32 functions by way of f64: 0.5 ulp */

#define RG_WIDENED(name) RG_INLINE f32 rg_##name##_f32(f32 x) { return (f32)rg_##name##_f64(x); }
RG_WIDENED(sinh)
RG_WIDENED(cosh)
RG_WIDENED(arcsinh)
RG_WIDENED(arccosh)
RG_WIDENED(arctanh)
RG_WIDENED(arcsin)
RG_WIDENED(arccos)
RG_WIDENED(arctan)
#undef RG_WIDENED
RG_INLINE f32 rg_arctan2_f32(f32 a, f32 b) { return (f32)rg_arctan2_f64(a, b); }
