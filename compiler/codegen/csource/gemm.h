/* Matrix products, f32 and f64: c (+)= a @ b, with b in panels or in place.
 *
 *   rg_pack_T         b, any strides -> panels [panel][k][RG_NR_T], zeros beyond the last column
 *   rg_gemm_T         rows and panels asked for of a @ panels
 *   rg_gemm_direct_T  a @ b without panels, for products too small or too thin to pack for
 *
 * A panel is two vectors wide; a tile holds up to RG_GEMM_ROWS rows of a panel in registers, and
 * reads rows of a where they lie, by broadcast.  Where neighbours of a in k are far apart (a
 * transposed), blocks of a are packed on the stack first.
 *
 * Invariant: an element of c is a sum of blocks of k, in order, and a block is a chain of
 * multiply-adds in order of k that starts at 0.  The blocks depend on k alone (rg_gemm_block), so
 * the bits of an element depend neither on the rows, columns or tile it is computed with, nor on
 * strides, nor on the entry: panels or in place.  Blocks keep long sums accurate.
 *
 * Multiply-adds round once, but for x86 without FMA, where that would be a call of libm: there
 * they round twice. */

#if defined(__AVX512F__)
#define RG_GEMM_BYTES 64
#elif defined(__AVX2__) && defined(__FMA__)
#define RG_GEMM_BYTES 32
#else
#define RG_GEMM_BYTES 16
#endif

#define RG_NR_f32 (2 * RG_GEMM_BYTES / 4)
#define RG_NR_f64 (2 * RG_GEMM_BYTES / 8)

/* Rows of a tile on one panel, and on two panels side by side, for products of few rows: what the
 * registers hold beside the vectors of b and one of a. */
#if defined(__AVX512F__) || defined(__aarch64__)
#ifndef RG_GEMM_ROWS
#define RG_GEMM_ROWS 8
#endif
#define RG_GEMM_WIDE 4
#else
#define RG_GEMM_ROWS 6
#define RG_GEMM_WIDE 2
#endif

/* The longest block of k. */
#ifndef RG_GEMM_K
#define RG_GEMM_K 512
#endif

/* Rows worked on at a time, so that their part of a stays in the second cache; and how many when
 * a is packed, into 96 KB of stack. */
#ifndef RG_GEMM_GROUP
#define RG_GEMM_GROUP 72
#endif
#ifndef RG_GEMM_STACK
#define RG_GEMM_STACK (96 * 1024)
#endif

/* How tiles are made: inline, or with `static` as functions shared by all products of a file,
 * which compiles faster. */
#ifndef RG_GEMM_TILE
#define RG_GEMM_TILE RG_INLINE
#endif

typedef f32 rg_gv_f32 __attribute__((vector_size(RG_GEMM_BYTES)));
typedef f64 rg_gv_f64 __attribute__((vector_size(RG_GEMM_BYTES)));
typedef f32 rg_gu_f32 __attribute__((vector_size(RG_GEMM_BYTES), aligned(4), may_alias));
typedef f64 rg_gu_f64 __attribute__((vector_size(RG_GEMM_BYTES), aligned(8), may_alias));
typedef f32 rg_gx_f32 __attribute__((vector_size(16)));
typedef f64 rg_gx_f64 __attribute__((vector_size(16)));
typedef f32 rg_gy_f32 __attribute__((vector_size(16), aligned(4), may_alias));
typedef f64 rg_gy_f64 __attribute__((vector_size(16), aligned(8), may_alias));

#if RG_GEMM_BYTES == 64
#define RG_GEMM_SET_f32(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#define RG_GEMM_SET_f64(x) {x, x, x, x, x, x, x, x}
#elif RG_GEMM_BYTES == 32
#define RG_GEMM_SET_f32(x) {x, x, x, x, x, x, x, x}
#define RG_GEMM_SET_f64(x) {x, x, x, x}
#else
#define RG_GEMM_SET_f32(x) {x, x, x, x}
#define RG_GEMM_SET_f64(x) {x, x}
#endif

/* a * b + c of whole vectors.  The builtins by name become one instruction each with gcc; newer
 * clang has one for all widths instead.  RG_GEMM_KEEP holds a vector in a register: gcc would read
 * it from memory in each of the multiply-adds that use it, more than the load ports can bear. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_elementwise_fma)
#define RG_GEMM_FMA_f32(a, b, c) __builtin_elementwise_fma(a, b, c)
#define RG_GEMM_FMA_f64(a, b, c) __builtin_elementwise_fma(a, b, c)
#endif
#endif
#if defined(__x86_64__) && !defined(__FMA__) && !defined(__AVX512F__)
#undef RG_GEMM_FMA_f32
#undef RG_GEMM_FMA_f64
#define RG_GEMM_FMA_f32(a, b, c) ((a) * (b) + (c))
#define RG_GEMM_FMA_f64(a, b, c) ((a) * (b) + (c))
#elif !defined(RG_GEMM_FMA_f32) && RG_GEMM_BYTES == 64
#define RG_GEMM_FMA_f32(a, b, c) ((rg_gv_f32)__builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4))
#define RG_GEMM_FMA_f64(a, b, c) ((rg_gv_f64)__builtin_ia32_vfmaddpd512_mask(a, b, c, -1, 4))
#elif !defined(RG_GEMM_FMA_f32) && RG_GEMM_BYTES == 32
#define RG_GEMM_FMA_f32(a, b, c) ((rg_gv_f32)__builtin_ia32_vfmaddps256(a, b, c))
#define RG_GEMM_FMA_f64(a, b, c) ((rg_gv_f64)__builtin_ia32_vfmaddpd256(a, b, c))
#elif !defined(RG_GEMM_FMA_f32) && defined(__x86_64__)
#define RG_GEMM_FMA_f32(a, b, c) ((rg_gv_f32)__builtin_ia32_vfmaddps(a, b, c))
#define RG_GEMM_FMA_f64(a, b, c) ((rg_gv_f64)__builtin_ia32_vfmaddpd(a, b, c))
#elif !defined(RG_GEMM_FMA_f32)
#define RG_GEMM_FMA_f32(a, b, c) rg_gemm_lanes_f32(a, b, c)
#define RG_GEMM_FMA_f64(a, b, c) rg_gemm_lanes_f64(a, b, c)
RG_INLINE rg_gv_f32 rg_gemm_lanes_f32(rg_gv_f32 a, rg_gv_f32 b, rg_gv_f32 c) {
    for (int i = 0; i < 4; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
}
RG_INLINE rg_gv_f64 rg_gemm_lanes_f64(rg_gv_f64 a, rg_gv_f64 b, rg_gv_f64 c) {
    for (int i = 0; i < 2; i++) c[i] = __builtin_fma(a[i], b[i], c[i]);
    return c;
}
#endif
#if defined(__AVX512F__)
#define RG_GEMM_KEEP(v) __asm__("" : "+v"(v))
#elif defined(__x86_64__)
#define RG_GEMM_KEEP(v) __asm__("" : "+x"(v))
#else
#define RG_GEMM_KEEP(v) (void)0
#endif

/* X(T, row) for the rows of a tile of H rows: RG_GEMM_ROWS_H(X, T). */
#define RG_GEMM_ROWS_1(X, T) X(T, 0)
#define RG_GEMM_ROWS_2(X, T) RG_GEMM_ROWS_1(X, T) X(T, 1)
#define RG_GEMM_ROWS_3(X, T) RG_GEMM_ROWS_2(X, T) X(T, 2)
#define RG_GEMM_ROWS_4(X, T) RG_GEMM_ROWS_3(X, T) X(T, 3)
#define RG_GEMM_ROWS_5(X, T) RG_GEMM_ROWS_4(X, T) X(T, 4)
#define RG_GEMM_ROWS_6(X, T) RG_GEMM_ROWS_5(X, T) X(T, 5)
#define RG_GEMM_ROWS_7(X, T) RG_GEMM_ROWS_6(X, T) X(T, 6)
#define RG_GEMM_ROWS_8(X, T) RG_GEMM_ROWS_7(X, T) X(T, 7)
#define RG_GEMM_ROWS_9(X, T) RG_GEMM_ROWS_8(X, T) X(T, 8)
#define RG_GEMM_ROWS_10(X, T) RG_GEMM_ROWS_9(X, T) X(T, 9)
#define RG_GEMM_ROWS_11(X, T) RG_GEMM_ROWS_10(X, T) X(T, 10)
#define RG_GEMM_ROWS_12(X, T) RG_GEMM_ROWS_11(X, T) X(T, 11)

/* What is done for a row of a tile: its accumulators, one step of k, and adding them to c. */
#define RG_GEMM_NEW_2(T, i) rg_gv_##T c##i##_0 = {0}, c##i##_1 = {0};
#define RG_GEMM_STEP_2(T, i)                                                                       \
    {                                                                                              \
        const rg_gv_##T x = RG_GEMM_SET_##T(a[i * sm]);                                            \
        c##i##_0 = RG_GEMM_FMA_##T(x, b0, c##i##_0);                                               \
        c##i##_1 = RG_GEMM_FMA_##T(x, b1, c##i##_1);                                               \
    }
#define RG_GEMM_SET_2(T, i)                                                                        \
    ((rg_gu_##T *)(c + i * sc))[0] = c##i##_0;                                                     \
    ((rg_gu_##T *)(c + i * sc))[1] = c##i##_1;
#define RG_GEMM_ADD_2(T, i)                                                                        \
    ((rg_gu_##T *)(c + i * sc))[0] += c##i##_0;                                                    \
    ((rg_gu_##T *)(c + i * sc))[1] += c##i##_1;
#define RG_GEMM_NEW_4(T, i) RG_GEMM_NEW_2(T, i) rg_gv_##T c##i##_2 = {0}, c##i##_3 = {0};
#define RG_GEMM_STEP_4(T, i)                                                                       \
    {                                                                                              \
        const rg_gv_##T x = RG_GEMM_SET_##T(a[i * sm]);                                            \
        c##i##_0 = RG_GEMM_FMA_##T(x, b0, c##i##_0);                                               \
        c##i##_1 = RG_GEMM_FMA_##T(x, b1, c##i##_1);                                               \
        c##i##_2 = RG_GEMM_FMA_##T(x, b2, c##i##_2);                                               \
        c##i##_3 = RG_GEMM_FMA_##T(x, b3, c##i##_3);                                               \
    }
#define RG_GEMM_SET_4(T, i)                                                                        \
    RG_GEMM_SET_2(T, i)((rg_gu_##T *)(c + i * sc))[2] = c##i##_2;                                  \
    ((rg_gu_##T *)(c + i * sc))[3] = c##i##_3;
#define RG_GEMM_ADD_4(T, i)                                                                        \
    RG_GEMM_ADD_2(T, i)((rg_gu_##T *)(c + i * sc))[2] += c##i##_2;                                 \
    ((rg_gu_##T *)(c + i * sc))[3] += c##i##_3;

/* A tile of H rows of c: one block of k.  b: a panel, sb from one k to the next; the wide one takes
 * a second panel sp further on. */
#define RG_GEMM_TILE_OF(T, H)                                                                      \
    RG_GEMM_TILE void rg_gemm_tile_##T##_##H(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, \
                                             i64 sb, i64 k, int add) {                             \
        RG_GEMM_ROWS_##H(RG_GEMM_NEW_2, T) for (; k > 0; k--, a += sk, b += sb) {                  \
            rg_gv_##T b0 = ((const rg_gu_##T *)b)[0], b1 = ((const rg_gu_##T *)b)[1];              \
            RG_GEMM_KEEP(b0);                                                                      \
            RG_GEMM_KEEP(b1);                                                                      \
            RG_GEMM_ROWS_##H(RG_GEMM_STEP_2, T)                                                    \
        }                                                                                          \
        if (add) {                                                                                 \
            RG_GEMM_ROWS_##H(RG_GEMM_ADD_2, T)                                                     \
        } else {                                                                                   \
            RG_GEMM_ROWS_##H(RG_GEMM_SET_2, T)                                                     \
        }                                                                                          \
    }
#define RG_GEMM_WIDE_OF(T, H)                                                                      \
    RG_GEMM_TILE void rg_gemm_wide_##T##_##H(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, \
                                             i64 sb, i64 sp, i64 k, int add) {                     \
        RG_GEMM_ROWS_##H(RG_GEMM_NEW_4, T) for (; k > 0; k--, a += sk, b += sb) {                  \
            const T *d = b + sp;                                                                   \
            rg_gv_##T b0 = ((const rg_gu_##T *)b)[0], b1 = ((const rg_gu_##T *)b)[1];              \
            rg_gv_##T b2 = ((const rg_gu_##T *)d)[0], b3 = ((const rg_gu_##T *)d)[1];              \
            RG_GEMM_KEEP(b0);                                                                      \
            RG_GEMM_KEEP(b1);                                                                      \
            RG_GEMM_KEEP(b2);                                                                      \
            RG_GEMM_KEEP(b3);                                                                      \
            RG_GEMM_ROWS_##H(RG_GEMM_STEP_4, T)                                                    \
        }                                                                                          \
        if (add) {                                                                                 \
            RG_GEMM_ROWS_##H(RG_GEMM_ADD_4, T)                                                     \
        } else {                                                                                   \
            RG_GEMM_ROWS_##H(RG_GEMM_SET_4, T)                                                     \
        }                                                                                          \
    }

#define RG_GEMM_CASE(T, H)                                                                         \
    case H: rg_gemm_tile_##T##_##H(c, sc, a, sm, sk, b, sb, k, add); break;
#define RG_GEMM_WIDE_CASE(T, H)                                                                    \
    case H: rg_gemm_wide_##T##_##H(c, sc, a, sm, sk, b, sb, sp, k, add); break;

#if RG_GEMM_ROWS == 12
#define RG_GEMM_HEIGHTS(X, T)                                                                      \
    X(T, 1) X(T, 2) X(T, 3) X(T, 4) X(T, 5) X(T, 6) X(T, 7) X(T, 8) X(T, 9) X(T, 10) X(T, 11) X(T, 12)
#elif RG_GEMM_ROWS == 8
#define RG_GEMM_HEIGHTS(X, T) X(T, 1) X(T, 2) X(T, 3) X(T, 4) X(T, 5) X(T, 6) X(T, 7) X(T, 8)
#else
#define RG_GEMM_HEIGHTS(X, T) X(T, 1) X(T, 2) X(T, 3) X(T, 4) X(T, 5) X(T, 6)
#endif
#if RG_GEMM_WIDE == 4
#define RG_GEMM_WIDE_HEIGHTS(X, T) X(T, 1) X(T, 2) X(T, 3) X(T, 4)
#else
#define RG_GEMM_WIDE_HEIGHTS(X, T) X(T, 1) X(T, 2)
#endif

/* How long the blocks of a sum over k are: as few as RG_GEMM_K allows, and about equal. */
RG_INLINE i64 rg_gemm_block(i64 k) {
    const i64 blocks = (k + RG_GEMM_K - 1) / RG_GEMM_K;
    return blocks <= 1 ? k : ((k + blocks - 1) / blocks + 7) / 8 * 8;
}

/* Four rows of x, sn apart, each with neighbours in k -> four rows of out (two for f64). */
RG_INLINE void rg_gemm_turn_f32(f32 *out, const f32 *x, i64 sn) {
    const rg_gx_f32 r0 = *(const rg_gy_f32 *)x, r1 = *(const rg_gy_f32 *)(x + sn);
    const rg_gx_f32 r2 = *(const rg_gy_f32 *)(x + 2 * sn), r3 = *(const rg_gy_f32 *)(x + 3 * sn);
    const rg_gx_f32 p = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
    const rg_gx_f32 q = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
    const rg_gx_f32 u = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    const rg_gx_f32 v = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    *(rg_gy_f32 *)out = __builtin_shufflevector(p, q, 0, 1, 4, 5);
    *(rg_gy_f32 *)(out + RG_NR_f32) = __builtin_shufflevector(p, q, 2, 3, 6, 7);
    *(rg_gy_f32 *)(out + 2 * RG_NR_f32) = __builtin_shufflevector(u, v, 0, 1, 4, 5);
    *(rg_gy_f32 *)(out + 3 * RG_NR_f32) = __builtin_shufflevector(u, v, 2, 3, 6, 7);
}
RG_INLINE void rg_gemm_turn_f64(f64 *out, const f64 *x, i64 sn) {
    const rg_gx_f64 r0 = *(const rg_gy_f64 *)x, r1 = *(const rg_gy_f64 *)(x + sn);
    *(rg_gy_f64 *)out = __builtin_shufflevector(r0, r1, 0, 2);
    *(rg_gy_f64 *)(out + RG_NR_f64) = __builtin_shufflevector(r0, r1, 1, 3);
}

/* w columns of h rows. */
#define RG_GEMM_ROWS_IO(T)                                                                         \
    RG_INLINE void rg_gemm_copy_##T(T *to, i64 st, const T *from, i64 sf, i64 h, i64 w) {          \
        for (i64 i = 0; i < h; i++)                                                                \
            for (i64 j = 0; j < w; j++) to[i * st + j] = from[i * sf + j];                         \
    }                                                                                              \
    /* Tiles [t0, t1) of a, k in [k0, k1) -> [tile][k][row of the tile]. */                        \
    RG_INLINE void rg_gemm_pack_rows_##T(T *out, const T *a, i64 sm, i64 sk, i64 t0, i64 t1,       \
                                         i64 rows, i64 more, i64 k0, i64 k1) {                     \
        const i64 r0 = t0 * rows + rg_min(t0, more), depth = k1 - k0;                              \
        for (i64 l = 0; l < depth; l++) {                                                          \
            i64 r = r0;                                                                            \
            for (i64 t = t0; t < t1; t++) {                                                        \
                const i64 h = rows + (t < more);                                                   \
                const T *from = a + (k0 + l) * sk + r * sm;                                        \
                T *to = out + (r - r0) * depth + l * h;                                            \
                if (sm == 1 && h == RG_GEMM_ROWS)                                                  \
                    memcpy(to, from, RG_GEMM_ROWS * sizeof(T));                                    \
                else                                                                               \
                    for (i64 i = 0; i < h; i++) to[i] = from[i * sm];                              \
                r += h;                                                                            \
            }                                                                                      \
        }                                                                                          \
    }

#define RG_GEMM_OF(T)                                                                              \
    RG_GEMM_HEIGHTS(RG_GEMM_TILE_OF, T)                                                            \
    RG_GEMM_WIDE_HEIGHTS(RG_GEMM_WIDE_OF, T)                                                       \
                                                                                                   \
    RG_INLINE void rg_gemm_tile_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 sb,  \
                                    i64 sp, i64 k, int add, i64 rows, int wide) {                  \
        if (wide) switch (rows) { RG_GEMM_WIDE_HEIGHTS(RG_GEMM_WIDE_CASE, T) }                     \
        else switch (rows) { RG_GEMM_HEIGHTS(RG_GEMM_CASE, T) }                                    \
    }                                                                                              \
                                                                                                   \
    /* Columns of a panel: w columns of b, k rows; the columns beyond w are zeros. */              \
    RG_INLINE void rg_pack_panel_##T(T *out, const T *b, i64 k, i64 sk, i64 sn, i64 w) {           \
        const i64 nr = RG_NR_##T, turn = 16 / (i64)sizeof(T);                                      \
        if (sn == 1 && w == nr) {                                                                  \
            for (i64 l = 0; l < k; l++) {                                                          \
                const rg_gu_##T *x = (const rg_gu_##T *)(b + l * sk);                              \
                ((rg_gu_##T *)(out + l * nr))[0] = x[0];                                           \
                ((rg_gu_##T *)(out + l * nr))[1] = x[1];                                           \
            }                                                                                      \
            return;                                                                                \
        }                                                                                          \
        i64 l = 0;                                                                                 \
        if (sk == 1) {                                                                             \
            for (; l + turn <= k; l += turn) {                                                     \
                i64 j = 0;                                                                         \
                for (; j + turn <= w; j += turn)                                                   \
                    rg_gemm_turn_##T(out + l * nr + j, b + l + j * sn, sn);                        \
                for (i64 t = l; t < l + turn; t++)                                                 \
                    for (i64 i = j; i < nr; i++) out[t * nr + i] = i < w ? b[t + i * sn] : 0;      \
            }                                                                                      \
        }                                                                                          \
        for (; l < k; l++) {                                                                       \
            i64 j = 0;                                                                             \
            for (; j < w; j++) out[l * nr + j] = b[l * sk + j * sn];                               \
            for (; j < nr; j++) out[l * nr + j] = 0;                                               \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_pack_##T(T *panels, const T *b, i64 k, i64 n, i64 sk, i64 sn, i64 lo,        \
                               i64 hi) {                                                           \
        for (i64 p = lo; p < hi; p++)                                                              \
            rg_pack_panel_##T(panels + p * k * RG_NR_##T, b + p * RG_NR_##T * sn, k, sk, sn,       \
                              rg_min(n - p * RG_NR_##T, RG_NR_##T));                               \
    }                                                                                              \
                                                                                                   \
    /* c, a, b: at the first row and column asked for; b: panels sp apart, sb from one k to the    \
     * next.  The tiles of a group of rows pass over a block of a panel while it is in the cache;  \
     * where a is packed, over all panels with a block of a. */                                    \
    RG_INLINE void rg_gemm_core_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 sb,  \
                                    i64 sp, i64 m, i64 n, i64 k, int add) {                        \
        enum { NR = RG_NR_##T, ROWS = RG_GEMM_ROWS, WIDE = RG_GEMM_WIDE };                         \
        T edge[ROWS * NR];                                                                         \
        T packed[RG_GEMM_STACK / sizeof(T)];                                                       \
        if (m <= 0 || n <= 0) return;                                                              \
        const i64 tiles = (m + ROWS - 1) / ROWS, rows = m / tiles, more = m % tiles;               \
        const i64 block = rg_gemm_block(k), outer = sk == 1 ? k : block;                           \
        const i64 group = sk == 1 ? RG_GEMM_GROUP / ROWS                                           \
                                  : RG_GEMM_STACK / (i64)sizeof(T) / RG_GEMM_K / ROWS;             \
        for (i64 t0 = 0; t0 < tiles; t0 += group) {                                                \
            const i64 t1 = rg_min(t0 + group, tiles);                                              \
            const i64 r0 = t0 * rows + rg_min(t0, more);                                       \
            i64 k0 = 0;                                                                            \
            do {                                                                                   \
                const i64 k1 = rg_min(k0 + outer, k);                                              \
                if (sk != 1) rg_gemm_pack_rows_##T(packed, a, sm, sk, t0, t1, rows, more, k0, k1); \
                i64 step = NR;                                                                     \
                for (i64 j = 0; j < n; j += step) {                                                \
                    const int wide = tiles == 1 && m <= WIDE && j + NR < n;                        \
                    step = wide ? 2 * NR : NR;                                                     \
                    const i64 w = rg_min(n - j, step);                                             \
                    i64 l = k0;                                                                    \
                    do {                                                                           \
                        const i64 count = rg_min(block, k1 - l);                                   \
                        const int sum = add || l;                                                  \
                        i64 r = r0;                                                                \
                        for (i64 t = t0; t < t1; t++) {                                            \
                            const i64 h = rows + (t < more);                                       \
                            const T *at = sk == 1 ? a + r * sm + l : packed + (r - r0) * (k1 - k0); \
                            T *to = c + r * sc + j;                                                \
                            i64 st = sc;                                                           \
                            if (w < step) {                                                        \
                                to = edge, st = step;                                              \
                                if (sum) rg_gemm_copy_##T(edge, step, c + r * sc + j, sc, h, w);   \
                            }                                                                      \
                            rg_gemm_tile_##T(to, st, at, sk == 1 ? sm : 1, sk == 1 ? 1 : h,        \
                                             b + j / NR * sp + l * sb, sb, sp, count, sum, h,      \
                                             wide);                                                \
                            if (w < step) rg_gemm_copy_##T(c + r * sc + j, sc, edge, step, h, w);  \
                            r += h;                                                                \
                        }                                                                          \
                        l += block;                                                                \
                    } while (l < k1);                                                              \
                }                                                                                  \
                k0 = k1;                                                                           \
            } while (k0 < k);                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_gemm_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *panels, i64 k,   \
                               i64 n, i64 row_lo, i64 row_hi, i64 panel_lo, i64 panel_hi,          \
                               int add) {                                                          \
        const i64 j = panel_lo * RG_NR_##T;                                                        \
        rg_gemm_core_##T(c + row_lo * sc + j, sc, a + row_lo * sm, sm, sk, panels + j * k,         \
                         RG_NR_##T, k * RG_NR_##T, row_hi - row_lo,                                \
                         rg_min(n, panel_hi * RG_NR_##T) - j, k, add);                             \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_gemm_direct_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b,        \
                                      i64 sb, i64 sn, i64 m, i64 n, i64 k, int add) {              \
        enum { NR = RG_NR_##T };                                                                   \
        const i64 full = sn == 1 ? n / NR * NR : 0, block = rg_gemm_block(k);                      \
        if (full) rg_gemm_core_##T(c, sc, a, sm, sk, b, sb, NR, m, full, k, add);                  \
        if (full == n) return;                                                                     \
        T panel[RG_GEMM_K * NR];                                                                   \
        for (i64 j = full; j < n; j += NR) {                                                       \
            const i64 w = rg_min(n - j, NR);                                                       \
            i64 l = 0;                                                                             \
            do {                                                                                   \
                const i64 count = rg_min(block, k - l);                                            \
                rg_pack_panel_##T(panel, b + l * sb + j * sn, count, sb, sn, w);                   \
                rg_gemm_core_##T(c + j, sc, a + l * sk, sm, sk, panel, NR, 0, m, w, count,         \
                                 add || l);                                                        \
                l += block;                                                                        \
            } while (l < k);                                                                       \
        }                                                                                          \
    }

RG_GEMM_ROWS_IO(f32)
RG_GEMM_ROWS_IO(f64)
RG_GEMM_OF(f32)
RG_GEMM_OF(f64)
