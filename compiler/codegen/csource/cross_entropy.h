/* Cross-entropy of a product, f32 and f64: x [rows, d] @ w [d, v] + bias -> log-sum-exp and loss of
 * each row, and the gradients.  The logits exist a tile at a time.
 *
 *   rg_ce_stats_T   one slice of the vocabulary: the largest logit of each row, the sum of e^(logit
 *                   - largest), and the logit of the target where the slice has it
 *   rg_ce_totals_T  rows of these, slice after slice -> log-sum-exp and loss
 *   rg_ce_grads_T   one slice of the vocabulary: its part of dw and dbias, and what it adds to dx
 *   rg_ce_rows_T    rows of dx from what the slices add
 *
 * A slice is worked through in blocks of columns: the block of w is packed into panels once, then
 * the rows pass by, a tile of them at a time, through csource/gemm.h.  The gradient computes the
 * logits again, from which the log-sum-exp makes weights; the terms of the targets are added last,
 * which keeps small sums from being lost beside them.  Milakov & Gimelshein 2018 (online softmax);
 * Wijmans et al. 2024 (Cut Your Losses in Large-Vocabulary Language Models).
 *
 * Invariant: slices, blocks and tiles follow from the sizes alone, and each has one writer, so the
 * bits do not depend on the number of threads. */

#define RG_CE_SHARED static __attribute__((noinline, unused))
enum { RG_CE_LANES = 32, RG_CE_PAD = 16 };

/* w[k, c] lies at w[k * wk + c * wv]; a slice has `slice` columns, a block `block` of them, a tile
 * `tile` rows.  dx is added up in rows of `wide` elements. */
typedef struct {
    i64 n, d, v, wk, wv, slice, block, tile, wide;
} rg_ce_shape;

#define RG_CE_LOW_f32 (-0x1.fffffep+127f)
#define RG_CE_LOW_f64 (-0x1.fffffffffffffp+1023)

#define RG_CE_OF(T)                                                                                \
    /* m rows, n columns, which are whole panels. */                                               \
    RG_CE_SHARED void rg_ce_gemm_##T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 sb, \
                                     i64 sp, i64 m, i64 n, i64 k, int add) {                       \
        rg_gemm_core_##T(c, sc, a, sm, sk, b, sb, sp, m, n, k, 0, 0, add);                         \
    }                                                                                              \
                                                                                                   \
    RG_CE_SHARED T rg_ce_top_##T(const T *row, i64 width) {                                        \
        T s[RG_CE_LANES];                                                                          \
        i64 j = 0;                                                                                 \
        for (int l = 0; l < RG_CE_LANES; l++) s[l] = RG_CE_LOW_##T;                                \
        for (; j + RG_CE_LANES <= width; j += RG_CE_LANES)                                         \
            for (int l = 0; l < RG_CE_LANES; l++) s[l] = row[j + l] > s[l] ? row[j + l] : s[l];    \
        for (i64 l = 0; l < width - j; l++) s[l] = row[j + l] > s[l] ? row[j + l] : s[l];          \
        for (int k = RG_CE_LANES / 2; k; k /= 2)                                                   \
            for (int l = 0; l < k; l++) s[l] = s[l + k] > s[l] ? s[l + k] : s[l];                  \
        return s[0] < -RG_CE_LOW_##T ? s[0] : -RG_CE_LOW_##T;                                      \
    }                                                                                              \
                                                                                                   \
    RG_CE_SHARED T rg_ce_sum_##T(const T *row, i64 width, T top) {                                 \
        T s[RG_CE_LANES];                                                                          \
        i64 j = 0;                                                                                 \
        for (int l = 0; l < RG_CE_LANES; l++) s[l] = 0;                                            \
        for (; j + RG_CE_LANES <= width; j += RG_CE_LANES)                                         \
            for (int l = 0; l < RG_CE_LANES; l++) s[l] += rg_exp_##T(row[j + l] - top);            \
        for (i64 l = 0; l < width - j; l++) s[l] += rg_exp_##T(row[j + l] - top);                  \
        for (int k = RG_CE_LANES / 2; k; k /= 2)                                                   \
            for (int l = 0; l < k; l++) s[l] += s[l + k];                                          \
        return s[0];                                                                               \
    }                                                                                              \
                                                                                                   \
    RG_CE_SHARED void rg_ce_biased_##T(T *row, const T *bias, i64 sb, i64 width) {                 \
        if (sb == 1)                                                                               \
            for (i64 j = 0; j < width; j++) row[j] += bias[j];                                     \
        else                                                                                       \
            for (i64 j = 0; j < width; j++) row[j] += bias[j * sb];                                \
    }                                                                                              \
                                                                                                   \
    /* top, sum: of this slice, by row.  picked: by row.  panels, logits: of this thread. */       \
    RG_CE_SHARED void rg_ce_stats_##T(const rg_ce_shape *s, i64 slice, const T *x,                 \
                                      const i64 *target, i64 count, const T *w, const T *bias,     \
                                      i64 sb, T *top, T *sum, T *picked, T *panels, T *logits) {   \
        enum { NR = RG_NR_##T };                                                                   \
        const i64 first = slice * s->slice, last = rg_min(s->v, first + s->slice);                 \
        const i64 d = s->d, st = s->block + RG_CE_PAD;                                             \
        for (i64 i = 0; i < count; i++) top[i] = RG_CE_LOW_##T, sum[i] = 0;                        \
        for (i64 c = first; c < last; c += s->block) {                                             \
            const i64 width = rg_min(s->block, last - c), full = (width + NR - 1) / NR;            \
            rg_pack_##T(panels, w + c * s->wv, d, width, s->wk, s->wv, 0, full);                   \
            for (i64 r = 0; r < count; r += s->tile) {                                             \
                const i64 m = rg_min(s->tile, count - r);                                          \
                rg_ce_gemm_##T(logits, st, x + r * d, d, 1, panels, NR, NR * d, m, full * NR, d,   \
                               0);                                                                 \
                for (i64 i = r; i < r + m; i++) {                                                  \
                    T *row = logits + (i - r) * st;                                                \
                    if (bias) rg_ce_biased_##T(row, bias + c * sb, sb, width);                     \
                    if (target[i] >= c && target[i] < c + width) picked[i] = row[target[i] - c];   \
                    const T own = rg_ce_top_##T(row, width), old = top[i];                         \
                    const T most = own > old ? own : old;                                          \
                    sum[i] = sum[i] * rg_exp_##T(old - most) + rg_ce_sum_##T(row, width, most);    \
                    top[i] = most;                                                                 \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* top, sum: [slices, n]. */                                                                   \
    RG_CE_SHARED void rg_ce_totals_##T(const rg_ce_shape *s, const i64 *row, const T *top,         \
                                       const T *sum, const T *picked, T *nll, i64 sn, T *lse,      \
                                       i64 sl, i64 lo, i64 hi) {                                   \
        const i64 slices = (s->v + s->slice - 1) / s->slice;                                       \
        for (i64 i = lo; i < hi; i++) {                                                            \
            T most = RG_CE_LOW_##T, total = 0;                                                     \
            for (i64 p = 0; p < slices; p++)                                                       \
                most = top[p * s->n + i] > most ? top[p * s->n + i] : most;                        \
            for (i64 p = 0; p < slices; p++)                                                       \
                total += sum[p * s->n + i] * rg_exp_##T(top[p * s->n + i] - most);                 \
            const T level = rg_log_##T(total) + most;                                              \
            lse[row[i] * sl] = level;                                                              \
            nll[row[i] * sn] = level - picked[i];                                                  \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    /* level, gain: the log-sum-exp of a row, and what its weights are multiplied by; loss: the    \
     * cotangent of its loss.  added: of this slice, rows of `wide`; chosen: by row, the column    \
     * of w of its target.  panels, across, slopes, logits: of this thread. */                     \
    RG_CE_SHARED void rg_ce_grads_##T(const rg_ce_shape *s, i64 slice, const T *x,                 \
                                      const i64 *target, i64 count, const T *level, const T *gain, \
                                      const T *loss, const T *w, const T *bias, i64 sb, T *dw,     \
                                      i64 dk, i64 dv, T *db, i64 sd, T *added, T *chosen,          \
                                      T *panels, T *across, T *slopes, T *logits) {                \
        enum { NR = RG_NR_##T };                                                                   \
        const i64 first = slice * s->slice, last = rg_min(s->v, first + s->slice);                 \
        const i64 d = s->d, wide = s->wide, st = s->block + RG_CE_PAD;                             \
        for (i64 c = first; c < last; c += s->block) {                                             \
            const i64 width = rg_min(s->block, last - c), full = (width + NR - 1) / NR;            \
            rg_pack_##T(panels, w + c * s->wv, d, width, s->wk, s->wv, 0, full);                   \
            rg_pack_##T(across, w + c * s->wv, width, d, s->wv, s->wk, 0, (d + NR - 1) / NR);      \
            if (db)                                                                                \
                for (i64 j = 0; j < width; j++) db[(c + j) * sd] = 0;                              \
            for (i64 r = 0; r < count; r += s->tile) {                                             \
                const i64 m = rg_min(s->tile, count - r);                                          \
                const T *xr = x + r * d;                                                           \
                rg_ce_gemm_##T(logits, st, xr, d, 1, panels, NR, NR * d, m, full * NR, d, 0);      \
                for (i64 i = r; i < r + m; i++) {                                                  \
                    T *row = logits + (i - r) * st;                                                \
                    const T by = level[i], g = gain[i];                                            \
                    if (bias) rg_ce_biased_##T(row, bias + c * sb, sb, width);                     \
                    RG_SIMD                                                                        \
                    for (i64 j = 0; j < width; j++) row[j] = rg_exp_##T(row[j] - by) * g;          \
                    if (db)                                                                        \
                        for (i64 j = 0; j < width; j++) db[(c + j) * sd] += row[j];                \
                }                                                                                  \
                rg_ce_gemm_##T(slopes, st, xr, 1, d, logits, st, NR, d, full * NR, m, r > 0);      \
                rg_ce_gemm_##T(added + r * wide, wide, logits, st, 1, across, NR, NR * width, m,   \
                               (d + NR - 1) / NR * NR, width, c > first);                          \
            }                                                                                      \
            for (i64 i = 0; i < count; i++) {                                                      \
                const i64 t = target[i] - c;                                                       \
                if (t < 0 || t >= width) continue;                                                 \
                for (i64 k = 0; k < d; k++) slopes[k * st + t] -= loss[i] * x[i * d + k];          \
                for (i64 k = 0; k < d; k++)                                                        \
                    chosen[i * d + k] = across[(k / NR * width + t) * NR + k % NR];                \
                if (db) db[target[i] * sd] -= loss[i];                                             \
            }                                                                                      \
            if (!count) memset(slopes, 0, d * st * sizeof(T));                                     \
            rg_ce_placed_##T(dw + c * dv, dk, dv, slopes, st, d, width);                           \
        }                                                                                          \
    }                                                                                              \
                                                                                                   \
    RG_CE_SHARED void rg_ce_rows_##T(const rg_ce_shape *s, const i64 *row, const T *loss,          \
                                     const T *added, const T *chosen, T *dx, i64 sm, i64 sk,       \
                                     i64 lo, i64 hi) {                                             \
        const i64 slices = (s->v + s->slice - 1) / s->slice, d = s->d, wide = s->wide;             \
        for (i64 i = lo; i < hi; i++) {                                                            \
            T *out = dx + row[i] * sm;                                                             \
            const T g = loss[i], *own = chosen + i * d;                                            \
            for (i64 k0 = 0; k0 < d; k0 += RG_CE_LANES) {                                          \
                const i64 some = rg_min(RG_CE_LANES, d - k0);                                      \
                T total[RG_CE_LANES];                                                              \
                for (int l = 0; l < RG_CE_LANES; l++) total[l] = 0;                                \
                for (i64 p = 0; p < slices; p++) {                                                 \
                    const T *part = added + (p * s->n + i) * wide + k0;                            \
                    for (int l = 0; l < RG_CE_LANES; l++) total[l] += part[l];                     \
                }                                                                                  \
                for (i64 l = 0; l < some; l++) out[(k0 + l) * sk] = total[l] - g * own[k0 + l];    \
            }                                                                                      \
        }                                                                                          \
    }

/* d rows of some columns, st apart -> where the gradient of w wants them; 16 rows at a time where
 * columns lie apart, so that lines are written whole. */
#define RG_CE_PLACED_OF(T)                                                                         \
    RG_CE_SHARED void rg_ce_placed_##T(T *dw, i64 dk, i64 dv, const T *from, i64 st, i64 d,        \
                                       i64 width) {                                                \
        if (dv == 1) {                                                                             \
            for (i64 k = 0; k < d; k++) memcpy(dw + k * dk, from + k * st, width * sizeof(T));     \
            return;                                                                                \
        }                                                                                          \
        for (i64 k0 = 0; k0 < d; k0 += 16)                                                         \
            for (i64 j = 0; j < width; j++)                                                        \
                for (i64 k = k0; k < rg_min(d, k0 + 16); k++)                                      \
                    dw[k * dk + j * dv] = from[k * st + j];                                        \
    }

RG_CE_PLACED_OF(f32)
RG_CE_PLACED_OF(f64)
RG_CE_OF(f32)
RG_CE_OF(f64)
