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
 * registers hold beside the vectors of b and one of a, and enough sums to hide the latency. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define RG_GEMM_ROWS 12
#define RG_GEMM_WIDE 4
#else
#define RG_GEMM_ROWS 6
#define RG_GEMM_WIDE 2
#endif

/* The longest block of k, half of it for sums longer than RG_GEMM_LONG; how many rows are worked on
 * at a time, so that their block of a stays in the second cache; how many bytes of stack hold them
 * where a is packed. */
#define RG_GEMM_K 512
#define RG_GEMM_LONG 2048
#define RG_GEMM_GROUP 72
#define RG_GEMM_STACK (96 * 1024)

/* Tiles are inline, or with `static` before this text functions that all products of a file share:
 * that compiles faster.  What is no loop of multiply-adds is shared anyhow. */
#ifndef RG_GEMM_TILE
#define RG_GEMM_TILE RG_INLINE
#endif
#define RG_GEMM_SHARED static __attribute__((noinline, unused))

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

/* What is done for a row of a tile: its accumulators, with its place in c fetched meanwhile; one
 * step of k; and setting c to the sums, or adding them. */
#define RG_GEMM_NEW_1(T, i) rg_gv_##T c##i##_0 = {0};
#define RG_GEMM_STEP_1(T, i)                                                                       \
    {                                                                                              \
        const rg_gv_##T x = RG_GEMM_SET_##T(a[i * sm]);                                            \
        c##i##_0 = RG_GEMM_FMA_##T(x, b0, c##i##_0);                                               \
    }
#define RG_GEMM_SET_1(T, i) *(rg_gu_##T *)(c + i * sc) = c##i##_0;
#define RG_GEMM_ADD_1(T, i) *(rg_gu_##T *)(c + i * sc) += c##i##_0;
#define RG_GEMM_NEW_2(T, i)                                                                        \
    rg_gv_##T c##i##_0 = {0}, c##i##_1 = {0};                                                      \
    __builtin_prefetch(c + i * sc, 1);                                                             \
    __builtin_prefetch(c + i * sc + RG_NR_##T / 2, 1);
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

/* A tile of H rows of c: one block of k.  b: a panel, sb from one k to the next; the half one takes
 * its first vector, the wide one a second panel sp further on.  next: what is wanted after this,
 * `ahead` bytes of it a step; the processor alone fetches a panel from beyond the second cache too
 * late. */
#define RG_GEMM_TILE_OF(T, H)                                                                      \
    RG_GEMM_TILE void rg_gemm_tile_##T##_##H(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, \
                                             i64 sb, i64 k, int add, const char *next,             \
                                             i64 ahead) {                                          \
        RG_GEMM_ROWS_##H(RG_GEMM_NEW_2, T)                                                         \
        for (; k > 0; k--, a += sk, b += sb, next += ahead) {                                      \
            rg_gv_##T b0 = ((const rg_gu_##T *)b)[0], b1 = ((const rg_gu_##T *)b)[1];              \
            RG_GEMM_KEEP(b0);                                                                      \
            RG_GEMM_KEEP(b1);                                                                      \
            __builtin_prefetch(next, 0, 2);                                                        \
            RG_GEMM_ROWS_##H(RG_GEMM_STEP_2, T)                                                    \
        }                                                                                          \
        if (add) {                                                                                 \
            RG_GEMM_ROWS_##H(RG_GEMM_ADD_2, T)                                                     \
        } else {                                                                                   \
            RG_GEMM_ROWS_##H(RG_GEMM_SET_2, T)                                                     \
        }                                                                                          \
    }
#define RG_GEMM_HALF_OF(T, H)                                                                      \
    RG_GEMM_TILE void rg_gemm_half_##T##_##H(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, \
                                             i64 sb, i64 k, int add, const char *next,             \
                                             i64 ahead) {                                          \
        RG_GEMM_ROWS_##H(RG_GEMM_NEW_1, T)                                                         \
        for (; k > 0; k--, a += sk, b += sb, next += ahead) {                                      \
            rg_gv_##T b0 = *(const rg_gu_##T *)b;                                                  \
            RG_GEMM_KEEP(b0);                                                                      \
            __builtin_prefetch(next, 0, 2);                                                        \
            RG_GEMM_ROWS_##H(RG_GEMM_STEP_1, T)                                                    \
        }                                                                                          \
        if (add) {                                                                                 \
            RG_GEMM_ROWS_##H(RG_GEMM_ADD_1, T)                                                     \
        } else {                                                                                   \
            RG_GEMM_ROWS_##H(RG_GEMM_SET_1, T)                                                     \
        }                                                                                          \
    }
#define RG_GEMM_WIDE_OF(T, H)                                                                      \
    RG_GEMM_TILE void rg_gemm_wide_##T##_##H(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, \
                                             i64 sb, i64 sp, i64 k, int add,                       \
                                             const char *next, i64 ahead) {                        \
        RG_GEMM_ROWS_##H(RG_GEMM_NEW_4, T)                                                         \
        for (; k > 0; k--, a += sk, b += sb, next += ahead) {                                      \
            rg_gv_##T b0 = ((const rg_gu_##T *)b)[0], b1 = ((const rg_gu_##T *)b)[1];              \
            const T *d = b + sp;                                                                   \
            rg_gv_##T b2 = ((const rg_gu_##T *)d)[0], b3 = ((const rg_gu_##T *)d)[1];              \
            RG_GEMM_KEEP(b0);                                                                      \
            RG_GEMM_KEEP(b1);                                                                      \
            RG_GEMM_KEEP(b2);                                                                      \
            RG_GEMM_KEEP(b3);                                                                      \
            __builtin_prefetch(next, 0, 2);                                                        \
            RG_GEMM_ROWS_##H(RG_GEMM_STEP_4, T)                                                    \
        }                                                                                          \
        if (add) {                                                                                 \
            RG_GEMM_ROWS_##H(RG_GEMM_ADD_4, T)                                                     \
        } else {                                                                                   \
            RG_GEMM_ROWS_##H(RG_GEMM_SET_4, T)                                                     \
        }                                                                                          \
    }

/* Copies of a known length are a move or two. */
#define RG_GEMM_ROWS_CASE(T, H) case H: memcpy(to, from, H * sizeof(T)); break;
#define RG_GEMM_CASE(T, H)                                                                         \
    case H: rg_gemm_tile_##T##_##H(c, sc, a, sm, sk, b, sb, k, add, next, ahead); break;
#define RG_GEMM_HALF_CASE(T, H)                                                                    \
    case H: rg_gemm_half_##T##_##H(c, sc, a, sm, sk, b, sb, k, add, next, ahead); break;
#define RG_GEMM_WIDE_CASE(T, H)                                                                    \
    case H: rg_gemm_wide_##T##_##H(c, sc, a, sm, sk, b, sb, sp, k, add, next, ahead); break;

#if RG_GEMM_ROWS == 12
#define RG_GEMM_HEIGHTS(X, T)                                                                      \
    X(T, 1) X(T, 2) X(T, 3) X(T, 4) X(T, 5) X(T, 6)                                                \
    X(T, 7) X(T, 8) X(T, 9) X(T, 10) X(T, 11) X(T, 12)
#else
#define RG_GEMM_HEIGHTS(X, T) X(T, 1) X(T, 2) X(T, 3) X(T, 4) X(T, 5) X(T, 6)
#endif
#if RG_GEMM_WIDE == 4
#define RG_GEMM_WIDE_HEIGHTS(X, T) X(T, 1) X(T, 2) X(T, 3) X(T, 4)
#else
#define RG_GEMM_WIDE_HEIGHTS(X, T) X(T, 1) X(T, 2)
#endif

/* How long the blocks of a sum over k are: as few as RG_GEMM_K allows, and about equal.  Sums that
 * are very long are gradients of weights: few rows, for which a block of a panel should lie in the
 * first cache. */
RG_INLINE i64 rg_gemm_block(i64 k) {
    const i64 most = k > RG_GEMM_LONG ? RG_GEMM_K / 2 : RG_GEMM_K, blocks = (k + most - 1) / most;
    return blocks <= 1 ? k : ((k + blocks - 1) / blocks + 7) / 8 * 8;
}

/* Where matrix q of a batch begins.  Of each of its axes, `wide` numbers: the extent, and the strides of
 * several arrays; `which` is one of these. */
RG_INLINE i64 rg_matrix_at(const i64 *axis, i64 axes, i64 wide, i64 which, i64 q) {
    i64 at = 0;
    for (i64 i = axes - 1; i >= 0; i--) {
        at += q % axis[i * wide] * axis[i * wide + which];
        q /= axis[i * wide];
    }
    return at;
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

#define RG_GEMM_SHARED_OF(T)                                                                       \
    /* w columns of h rows. */                                                                     \
    RG_GEMM_SHARED void rg_gemm_copy_##T(T *to, i64 st, const T *from, i64 sf, i64 h, i64 w) {     \
        for (i64 i = 0; i < h; i++)                                                                \
            for (i64 j = 0; j < w; j++) to[i * st + j] = from[i * sf + j];                         \
    }                                                                                              \
                                                                                                   \
    /* Tiles [t0, t1) of a, count of k from k0 on -> [tile][k][row of the tile]. */                \
    RG_GEMM_SHARED void rg_gemm_pack_rows_##T(T *out, const T *a, i64 sm, i64 sk, i64 t0, i64 t1,  \
                                              i64 rows, i64 more, i64 k0, i64 count) {             \
        const i64 r0 = t0 * rows + rg_min(t0, more);                                               \
        for (i64 l = 0; l < count; l++) {                                                          \
            i64 r = r0;                                                                            \
            for (i64 t = t0; t < t1; t++) {                                                        \
                const i64 h = rows + (t < more);                                                   \
                const T *from = a + (k0 + l) * sk + r * sm;                                        \
                T *to = out + (r - r0) * count + l * h;                                            \
                if (sm == 1) {                                                                     \
                    switch (h) { RG_GEMM_HEIGHTS(RG_GEMM_ROWS_CASE, T) }                           \
                } else {                                                                           \
                    for (i64 i = 0; i < h; i++) to[i] = from[i * sm];                              \
                }                                                                                  \
                r += h;                                                                            \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* w columns of b, k rows -> a panel; zeros beyond w. */                                       \
    RG_GEMM_SHARED void rg_pack_panel_##T(T *out, const T *b, i64 k, i64 sk, i64 sn, i64 w) {      \
        enum { NR = RG_NR_##T, TURN = 16 / (int)sizeof(T) };                                       \
        i64 l = 0;                                                                                 \
        if (sn == 1 && w == NR) {                                                                  \
            for (; l < k; l++, out += NR, b += sk) {                                               \
                ((rg_gu_##T *)out)[0] = ((const rg_gu_##T *)b)[0];                                 \
                ((rg_gu_##T *)out)[1] = ((const rg_gu_##T *)b)[1];                                 \
            }                                                                                      \
        }                                                                                          \
        if (sk == 1) {                                                                             \
            for (; l + TURN <= k; l += TURN, out += TURN * NR, b += TURN) {                        \
                i64 j = 0;                                                                         \
                for (; j + TURN <= w; j += TURN) rg_gemm_turn_##T(out + j, b + j * sn, sn);        \
                for (; j < NR; j++)                                                                \
                    for (i64 t = 0; t < TURN; t++) out[t * NR + j] = j < w ? b[t + j * sn] : 0;    \
            }                                                                                      \
        }                                                                                          \
        for (; l < k; l++, out += NR, b += sk) {                                                   \
            i64 j = 0;                                                                             \
            for (; j < w; j++) out[j] = b[j * sn];                                                 \
            for (; j < NR; j++) out[j] = 0;                                                        \
        }                                                                                          \
    }

#define RG_GEMM_OF(T)                                                                              \
    RG_GEMM_HEIGHTS(RG_GEMM_TILE_OF, T)                                                            \
    RG_GEMM_HEIGHTS(RG_GEMM_HALF_OF, T)                                                            \
    RG_GEMM_WIDE_HEIGHTS(RG_GEMM_WIDE_OF, T)                                                       \
                                                                                                   \
    RG_INLINE void rg_gemm_tile_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 sb,  \
                                    i64 sp, i64 k, int add, const char *next, i64 ahead, i64 rows, \
                                    int vectors) {                                                 \
        if (vectors == 4) {                                                                        \
            switch (rows) { RG_GEMM_WIDE_HEIGHTS(RG_GEMM_WIDE_CASE, T) }                           \
        } else if (vectors == 1) {                                                                 \
            switch (rows) { RG_GEMM_HEIGHTS(RG_GEMM_HALF_CASE, T) }                                \
        } else {                                                                                   \
            switch (rows) { RG_GEMM_HEIGHTS(RG_GEMM_CASE, T) }                                     \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* c, a, b: at the first row and column asked for; b: panels sp apart, sb from one k to the    \
     * next.  A group of tiles passes over a block of a panel while that is in the cache.          \
     * odd: columns of the last panel, if that is not full. */                                     \
    RG_INLINE void rg_gemm_core_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 sb,  \
                                    i64 sp, i64 m, i64 n, i64 k, i64 odd, int add) {               \
        enum { NR = RG_NR_##T, ROWS = RG_GEMM_ROWS, LINE = 64 / (int)sizeof(T) };                  \
        enum { STACK = RG_GEMM_STACK / (int)sizeof(T) };                                           \
        T edge[ROWS * NR];                                                                         \
        T packed[STACK];                                                                           \
        if (m <= 0 || n <= 0) return;                                                              \
        const i64 tiles = (m + ROWS - 1) / ROWS, rows = m / tiles, more = m % tiles;               \
        const i64 block = rg_gemm_block(k), panels = (n + NR - 1) / NR;                            \
        const i64 group = sk == 1 ? RG_GEMM_GROUP / ROWS : STACK / ROWS / rg_max(block, 1);        \
        for (i64 t0 = 0; t0 < tiles; t0 += group) {                                                \
            const i64 t1 = rg_min(t0 + group, tiles), t2 = rg_min(t1 + group, tiles);              \
            const i64 r0 = t0 * rows + rg_min(t0, more), r1 = t1 * rows + rg_min(t1, more);        \
            const i64 r2 = t2 * rows + rg_min(t2, more);                                           \
            i64 k0 = 0;                                                                            \
            do {                                                                                   \
                const i64 count = rg_min(block, k - k0), sum = add || k0;                          \
                /* The block of a that is packed next, fetched a few k at a tile. */               \
                const int last = k0 + count >= k;                                                  \
                const T *later = a + (last ? r1 : r0) * sm;                                        \
                const i64 span = sm != 1 ? 0 : last ? r2 - r1 : r1 - r0;                           \
                i64 lk = last ? 0 : k0 + count;                                                    \
                const i64 lend = rg_min(lk + block, k);                                            \
                const i64 some = (lend - lk) / (panels * (t1 - t0)) + 1;                           \
                if (sk != 1)                                                                       \
                    rg_gemm_pack_rows_##T(packed, a, sm, sk, t0, t1, rows, more, k0, count);       \
                i64 step = NR;                                                                     \
                for (i64 j = 0; j < n; j += step) {                                                \
                    const i64 left = n - j;                                                        \
                    const int wide = tiles == 1 && m <= RG_GEMM_WIDE && left > NR;                 \
                    const int vectors = wide ? 4 : odd && left <= NR / 2 ? 1 : 2;                  \
                    step = NR / 2 * vectors;                                                       \
                    const i64 w = odd ? rg_min(left, step) : step;                                 \
                    const T *at = sk == 1 ? a + r0 * sm + k0 : packed;                             \
                    const T *bt = b + j / NR * sp + k0 * sb;                                       \
                    T *ct = c + r0 * sc + j;                                                       \
                    const int fetch = sb == NR && j + step < n;                                    \
                    const char *next = (const char *)(fetch ? bt + step / NR * sp : bt);           \
                    const i64 ahead = fetch ? step * (i64)sizeof(T) / (t1 - t0) : 0;               \
                    for (i64 t = t0; t < t1; t++) {                                                \
                        const i64 h = rows + (t < more);                                           \
                        T *to = ct;                                                                \
                        i64 st = sc;                                                               \
                        if (w < step) {                                                            \
                            to = edge, st = step;                                                  \
                            if (sum) rg_gemm_copy_##T(edge, step, ct, sc, h, w);                   \
                        }                                                                          \
                        if (sk != 1)                                                               \
                            for (i64 i = 0; i < some && lk < lend; i++, lk++)                      \
                                for (i64 x = 0; x < span; x += LINE)                               \
                                    __builtin_prefetch(later + lk * sk + x, 0, 2);                 \
                        rg_gemm_tile_##T(to, st, at, sk == 1 ? sm : 1, sk == 1 ? 1 : h, bt, sb, sp,\
                                         count, sum != 0, next, ahead, h, vectors);                \
                        if (w < step) rg_gemm_copy_##T(ct, sc, edge, step, h, w);                  \
                        at += sk == 1 ? h * sm : h * count;                                        \
                        ct += h * sc;                                                              \
                        next += ahead * count;                                                     \
                    }                                                                              \
                }                                                                                  \
                k0 += count;                                                                       \
            } while (k0 < k);                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_pack_##T(T *panels, const T *b, i64 k, i64 n, i64 sk, i64 sn, i64 lo,        \
                               i64 hi) {                                                           \
        enum { NR = RG_NR_##T };                                                                   \
        for (i64 p = lo; p < hi; p++)                                                              \
            rg_pack_panel_##T(panels + p * k * NR, b + p * NR * sn, k, sk, sn,                     \
                              rg_min(n - p * NR, NR));                                             \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_gemm_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *panels, i64 k,   \
                               i64 n, i64 row_lo, i64 row_hi, i64 panel_lo, i64 panel_hi,          \
                               int add) {                                                          \
        enum { NR = RG_NR_##T };                                                                   \
        rg_gemm_core_##T(c + row_lo * sc + panel_lo * NR, sc, a + row_lo * sm, sm, sk,             \
                         panels + panel_lo * NR * k, NR, NR * k, row_hi - row_lo,                  \
                         rg_min(n, panel_hi * NR) - panel_lo * NR, k, n % NR, add);                \
    }                                                                                              \
                                                                                                   \
    RG_INLINE void rg_gemm_direct_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b,        \
                                      i64 skb, i64 snb, i64 m, i64 n, i64 k, int add) {            \
        enum { NR = RG_NR_##T };                                                                   \
        const i64 full = snb == 1 ? n / NR * NR : 0, block = rg_gemm_block(k);                     \
        if (full) rg_gemm_core_##T(c, sc, a, sm, sk, b, skb, NR, m, full, k, 0, add);              \
        if (full == n) return;                                                                     \
        T panel[RG_GEMM_K * NR];                                                                   \
        for (i64 j = full; j < n; j += NR) {                                                       \
            const i64 w = rg_min(n - j, NR);                                                       \
            i64 k0 = 0;                                                                            \
            do {                                                                                   \
                const i64 count = rg_min(block, k - k0);                                           \
                rg_pack_panel_##T(panel, b + k0 * skb + j * snb, count, skb, snb, w);              \
                rg_gemm_core_##T(c + j, sc, a + k0 * sk, sm, sk, panel, NR, 0, m, w, count, w % NR,\
                                 add || k0);                                                       \
                k0 += count;                                                                       \
            } while (k0 < k);                                                                      \
        }                                                                                          \
    }

RG_GEMM_SHARED_OF(f32)
RG_GEMM_SHARED_OF(f64)
RG_GEMM_OF(f32)
RG_GEMM_OF(f64)
