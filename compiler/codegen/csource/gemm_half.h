/* Matrix products of f16 and bf16, in f32: elements are converted as they are packed, and results
 * rounded once.
 *
 *   rg_pack_T   b, any strides -> panels of f32, as rg_pack_f32
 *   rg_gemm_T   rows and panels asked for of a @ panels; columns of c lie side by side
 *
 * Invariant: an element is what rg_gemm_f32 makes of the converted operands, rounded. */

/* Rows, depth and panels that are in f32 on the stack at a time: half of the second cache. */
#define RG_GEMM_HALF_ROWS 48
#define RG_GEMM_HALF_PANELS 8

#define RG_GEMM_HALVES_OF(T)                                                                       \
    /* rows by columns of x -> f32, in memory the way x is: by rows, or where its columns have no  \
     * gaps by columns; returns which. */                                                          \
    RG_GEMM_SHARED int rg_gemm_wide_##T(f32 *to, const u16 *x, i64 rows, i64 columns, i64 sr,      \
                                        i64 sc) {                                                  \
        const int turned = sr == 1 && sc != 1;                                                     \
        const i64 outer = turned ? columns : rows, inner = turned ? rows : columns;                \
        const i64 so = turned ? sc : sr, si = turned ? 1 : sc;                                     \
        for (i64 i = 0; i < outer; i++, to += inner, x += so) {                                    \
            if (si == 1) {                                                                         \
                RG_SIMD                                                                            \
                for (i64 j = 0; j < inner; j++) to[j] = rg_load_##T(x[j]);                         \
            } else {                                                                               \
                for (i64 j = 0; j < inner; j++) to[j] = rg_load_##T(x[j * si]);                    \
            }                                                                                      \
        }                                                                                          \
        return turned;                                                                             \
    }                                                                                              \
                                                                                                   \
    RG_GEMM_SHARED void rg_pack_##T(f32 *panels, const u16 *b, i64 k, i64 n, i64 sk, i64 sn,       \
                                    i64 lo, i64 hi) {                                              \
        enum { NR = RG_NR_f32, DEPTH = 64 };                                                       \
        f32 part[DEPTH * NR];                                                                      \
        for (i64 p = lo; p < hi; p++) {                                                            \
            const i64 w = rg_min(n - p * NR, NR);                                                  \
            for (i64 l = 0; l < k; l += DEPTH) {                                                   \
                const i64 d = rg_min(DEPTH, k - l);                                                \
                const u16 *from = b + l * sk + p * NR * sn;                                        \
                const int turned = rg_gemm_wide_##T(part, from, d, w, sk, sn);                     \
                f32 *to = panels + (p * k + l) * NR;                                               \
                rg_pack_panel_f32(to, part, d, turned ? 1 : w, turned ? d : 1, w);                 \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    RG_GEMM_SHARED void rg_gemm_##T(u16 *c, i64 sc, const u16 *a, i64 sm, i64 sk,                  \
                                    const f32 *panels, i64 k, i64 n, i64 row_lo, i64 row_hi,       \
                                    i64 panel_lo, i64 panel_hi) {                                  \
        enum { NR = RG_NR_f32, ROWS = RG_GEMM_HALF_ROWS, WIDTH = RG_GEMM_HALF_PANELS * NR };       \
        f32 left[ROWS * RG_GEMM_K], sums[ROWS * WIDTH];                                            \
        const i64 block = rg_gemm_block(k), end = rg_min(n, panel_hi * NR);                        \
        const i64 parts = (row_hi - row_lo + ROWS - 1) / ROWS;                                     \
        const i64 some = parts ? (row_hi - row_lo + parts - 1) / parts : 1;                        \
        for (i64 r = row_lo; r < row_hi; r += some) {                                              \
            const i64 m = rg_min(some, row_hi - r);                                                \
            int turned = 0;                                                                        \
            for (i64 j = panel_lo * NR; j < end; j += WIDTH) {                                     \
                const i64 w = rg_min(WIDTH, end - j);                                              \
                i64 k0 = 0;                                                                        \
                do {                                                                               \
                    const i64 d = rg_min(block, k - k0);                                           \
                    const u16 *from = a + r * sm + k0 * sk;                                        \
                    if (j == panel_lo * NR || d < k) /* else it is there */                        \
                        turned = rg_gemm_wide_##T(left, from, m, d, sm, sk);                       \
                    const f32 *panel = panels + j * k + k0 * NR;                                   \
                    rg_gemm_core_f32(sums, WIDTH, left, turned ? 1 : d, turned ? m : 1, panel, NR, \
                                     NR * k, m, w, d, w % NR, 0, k0 > 0);                          \
                    k0 += d;                                                                       \
                } while (k0 < k);                                                                  \
                for (i64 i = 0; i < m; i++) {                                                      \
                    u16 *to = c + (r + i) * sc + j;                                                \
                    RG_SIMD                                                                        \
                    for (i64 e = 0; e < w; e++) to[e] = rg_store_##T(sums[i * WIDTH + e]);         \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }

RG_GEMM_HALVES_OF(f16)
RG_GEMM_HALVES_OF(bf16)
