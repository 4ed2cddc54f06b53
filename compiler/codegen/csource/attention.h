/* Tiled attention, the parts that both directions share: vectors, predicates, products of tiles.
 *
 * A block of 64 queries lies along the lanes.  Scores are held as [key][query], so that maxima and
 * sums over keys are vertical, keys and values are read where they lie, one number at a time, and
 * only queries are transposed.  Sources: Dao et al. 2022 (FlashAttention); Milakov & Gimelshein
 * 2018 (online softmax); Rabe & Staats 2021 (memory linear in the number of keys).
 *
 * A tile of 64 keys x 64 queries is left out when the predicates rule all of it out, and runs
 * without tests when they allow all of it. */

#define RG_AT_Q 64 /* queries of a block */
#define RG_AT_K 64 /* keys of a tile */
#define RG_AT_STRIP 16 /* keys that are trimmed together where a band cuts a tile */
#define RG_AT_LAUNCH static __attribute__((unused)) i64
#define RG_AT_LOG2E 1.4426950408889634f
#define RG_AT_LN2 0.6931471805599453f

#if defined(__AVX512F__)
#define RG_AT_W 16
#define RG_AT_N 4 /* vectors of a row of a register tile */
#elif defined(__AVX2__) && defined(__FMA__)
#define RG_AT_W 8
#define RG_AT_N 2
#else
#define RG_AT_W 4
#define RG_AT_N 2
#endif
#define RG_AT_VECTORS (RG_AT_Q / RG_AT_W)

typedef f32 rg_at_v __attribute__((vector_size(RG_AT_W * 4), may_alias));
typedef i32 rg_at_i __attribute__((vector_size(RG_AT_W * 4), may_alias));
typedef f32 rg_at_u __attribute__((vector_size(RG_AT_W * 4), aligned(4), may_alias));

/* The arguments of all launches, one i64 each: addresses, extents, strides in elements, scalars;
 * f32 numbers are the low 32 bits.  An address of 0 says that the operand is not there.  Axes are
 * batch (b), head (h), query (i), key (j); the last axis of q, k, v, out and their gradients has
 * stride 1.  Query head h reads key head h / (heads / key_heads). */
struct rg_attention {
    i64 batch, heads, key_heads, queries, keys, width, values;
    i64 scale, low, high; /* key j is open to query i where low <= j - i <= high */
    i64 q, qb, qh, qi, k, kb, kh, kj, v, vb, vh, vj;
    i64 out, ob, oh, oi, lse, lb, lh; /* log(sum(exp(scores))) of each query, i has stride 1 */
    i64 lengths, nb;                  /* i32: keys from there on are closed */
    i64 query_segments, sb, key_segments, tb; /* i32 [batch, time]: open where they are equal */
    i64 mask, mb, mh, mi, mj;         /* bytes, open where not 0 */
    i64 bias, ab, ah, ai, aj;         /* f32, added to the scaled scores */
    /* A weight is kept where the upper 24 of its random bits are below `limit`; times `keep`.  Its
     * bits: row *drop_row + (b, h, i) . (rb, rh, ri), element (b, h, i, j) . (eb, eh, ei, 1). */
    i64 drop_key, drop_row, limit, keep, rb, rh, ri, eb, eh, ei;
    i64 scratch, scratch_stride, block; /* f32 a thread: rg_attention_scratch; keys of a round */
    i64 dout, gb, gh, gi, dq, dqb, dqh, dqi, dk, dkb, dkh, dkj, dv, dvb, dvh, dvj;
    i64 parts, more; /* shares of the keys; [parts - 1, batch, heads, queries, width] f32 */
};

RG_INLINE f32 rg_at_number(i64 bits) {
    u32 low = (u32)bits;
    f32 x;
    memcpy(&x, &low, 4);
    return x;
}

typedef struct {
    i64 j, n, row, v0, v1; /* keys [j, j + n) in the rows from `row`, vectors [v0, v1) */
} rg_at_strip;

/* What a thread works in: its part of the scratch, and one array of it after the other. */
RG_INLINE f32 *rg_at_take(f32 **from, i64 count) {
    f32 *out = *from;
    *from += (count + 15) / 16 * 16;
    return out;
}

RG_INLINE f32 *rg_at_scratch(const struct rg_attention *p, i64 part) {
    f32 *at = (f32 *)p->scratch + part * p->scratch_stride;
    return (f32 *)(((uintptr_t)at + 63) & ~(uintptr_t)63);
}

/* --- vectors */

#if RG_AT_W == 16
#define RG_AT_SPLAT(x) ((rg_at_v){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x})
#define RG_AT_PLACES 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define RG_AT_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define RG_AT_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif RG_AT_W == 8
#define RG_AT_SPLAT(x) ((rg_at_v){x, x, x, x, x, x, x, x})
#define RG_AT_PLACES 0, 1, 2, 3, 4, 5, 6, 7
#define RG_AT_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define RG_AT_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define RG_AT_SPLAT(x) ((rg_at_v){x, x, x, x})
#define RG_AT_PLACES 0, 1, 2, 3
#define RG_AT_LOW 0, 4, 1, 5
#define RG_AT_HIGH 2, 6, 3, 7
#endif

#if defined(__clang__)
#define RG_AT_ZIP(a, b, half) __builtin_shufflevector(a, b, half)
#else
#define RG_AT_ZIP(a, b, half) __builtin_shuffle(a, b, (rg_at_i){half})
#endif

/* Holds a vector in a register: without it the compiler reads it again from memory at each use. */
#if defined(__x86_64__)
#define RG_AT_HOLD(x) __asm__("" : "+v"(x))
#else
#define RG_AT_HOLD(x) (void)(x)
#endif

#if defined(__has_builtin) && (defined(__FMA__) || defined(__ARM_FEATURE_FMA))
#if __has_builtin(__builtin_elementwise_fma)
#define RG_AT_HAS_FMA
#endif
#endif

RG_INLINE rg_at_v rg_at_fma(rg_at_v a, rg_at_v b, rg_at_v c) {
#if defined(RG_AT_HAS_FMA)
    return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__)
    return __builtin_ia32_vfmaddps512_mask(a, b, c, (u16)-1, 4);
#elif defined(__AVX2__) && defined(__FMA__)
    return __builtin_ia32_vfmaddps256(a, b, c);
#elif defined(__ARM_FEATURE_FMA) || defined(__FMA__)
    rg_at_v r;
    for (int i = 0; i < RG_AT_W; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}

RG_INLINE rg_at_v rg_at_where(rg_at_i open, rg_at_v a, rg_at_v b) {
    return (rg_at_v)(((rg_at_i)a & open) | ((rg_at_i)b & ~open));
}

RG_INLINE rg_at_v rg_at_larger(rg_at_v a, rg_at_v b) { return rg_at_where(a > b, a, b); }

/* 2^x for x <= 127: 0 below -126, NaN for NaN; within 2.1 units in the last place.  A minimax
 * polynomial of degree 5 in x - round(x). */
RG_INLINE rg_at_v rg_at_exp2(rg_at_v x) {
    const rg_at_v magic = RG_AT_SPLAT(12582912.0f); /* 1.5 * 2^23: its last bits count in ones */
    rg_at_v shifted = x + magic;
    rg_at_v r = x - (shifted - magic);
    rg_at_v p = RG_AT_SPLAT(0.00132647273f);
    p = rg_at_fma(p, r, RG_AT_SPLAT(0.00967151299f));
    p = rg_at_fma(p, r, RG_AT_SPLAT(0.0555073358f));
    p = rg_at_fma(p, r, RG_AT_SPLAT(0.240222424f));
    p = rg_at_fma(p, r, RG_AT_SPLAT(0.693147004f));
    p = rg_at_fma(p, r, RG_AT_SPLAT(1.0f));
    rg_at_i bits = (rg_at_i)p + ((rg_at_i)shifted << 23);
    return (rg_at_v)(bits & ~(x < RG_AT_SPLAT(-126.0f)));
}

/* Up to RG_AT_N vectors side by side; a constant `n` says how many count. */
typedef struct {
    rg_at_v c0, c1, c2, c3;
} rg_at_row;

#define RG_AT_EACH(n, M) \
    do { \
        M(c0); \
        if ((n) > 1) M(c1); \
        if ((n) > 2) M(c2); \
        if ((n) > 3) M(c3); \
    } while (0)

RG_INLINE rg_at_row rg_at_all(f32 x) {
    rg_at_v v = RG_AT_SPLAT(x);
    return (rg_at_row){v, v, v, v};
}

RG_INLINE rg_at_row rg_at_load(const f32 *p, const int n) {
    rg_at_row r = rg_at_all(0.0f);
    r.c0 = *(const rg_at_u *)p;
    if (n > 1) r.c1 = *(const rg_at_u *)(p + RG_AT_W);
    if (n > 2) r.c2 = *(const rg_at_u *)(p + 2 * RG_AT_W);
    if (n > 3) r.c3 = *(const rg_at_u *)(p + 3 * RG_AT_W);
    return r;
}

RG_INLINE void rg_at_store(f32 *p, rg_at_row r, const int n) {
    *(rg_at_u *)p = r.c0;
    if (n > 1) *(rg_at_u *)(p + RG_AT_W) = r.c1;
    if (n > 2) *(rg_at_u *)(p + 2 * RG_AT_W) = r.c2;
    if (n > 3) *(rg_at_u *)(p + 3 * RG_AT_W) = r.c3;
}

RG_INLINE rg_at_row rg_at_held(rg_at_row r, const int n) {
#define RG_AT_DO(c) RG_AT_HOLD(r.c)
    RG_AT_EACH(n, RG_AT_DO);
#undef RG_AT_DO
    return r;
}

#define RG_AT_ROWWISE(name, parameters, expression) \
    RG_INLINE rg_at_row name parameters { \
        RG_AT_EACH(n, expression); \
        return r; \
    }
#define RG_AT_DO(c) r.c = rg_at_fma(x, b.c, r.c)
RG_AT_ROWWISE(rg_at_row_fma, (rg_at_row r, rg_at_v x, rg_at_row b, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = rg_at_exp2(r.c - b.c)
RG_AT_ROWWISE(rg_at_row_power, (rg_at_row r, rg_at_row b, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = rg_at_larger(r.c, b.c)
RG_AT_ROWWISE(rg_at_row_larger, (rg_at_row r, rg_at_row b, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = r.c + b.c
RG_AT_ROWWISE(rg_at_row_add, (rg_at_row r, rg_at_row b, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = w.c * (r.c - b.c)
RG_AT_ROWWISE(rg_at_row_slope, (rg_at_row r, rg_at_row w, rg_at_row b, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = rg_at_where((rg_at_i)open.c, r.c, other)
RG_AT_ROWWISE(rg_at_row_where, (rg_at_row r, rg_at_row open, rg_at_v other, const int n), RG_AT_DO)
#undef RG_AT_DO
#define RG_AT_DO(c) r.c = r.c * x
RG_AT_ROWWISE(rg_at_row_times, (rg_at_row r, rg_at_v x, const int n), RG_AT_DO)
#undef RG_AT_DO

/* --- products of tiles; [key][query] tiles have rows of 64 */

/* x[r] . the columns of `lanes` for R rows of `x` (`step` apart): the sums over `depth`. */
#define RG_AT_ROWS(R, M) \
    do { \
        M(0); \
        if ((R) > 1) { \
            M(1); \
            M(2); \
            M(3); \
        } \
        if ((R) > 4) { \
            M(4); \
            M(5); \
            M(6); \
            M(7); \
        } \
    } while (0)

typedef struct {
    rg_at_row r0, r1, r2, r3, r4, r5, r6, r7;
} rg_at_tile;

RG_INLINE rg_at_tile rg_at_blank(void) {
    rg_at_row r = rg_at_all(0.0f);
    return (rg_at_tile){r, r, r, r, r, r, r, r};
}

/* The R x N tile of sums over t < depth of x[row * row_step + t * depth_step] * lanes[t][...]. */
RG_INLINE rg_at_tile rg_at_products(rg_at_tile a, const f32 *x, i64 row_step, i64 depth_step,
                                    const f32 *lanes, i64 lane_step, i64 depth, const int R,
                                    const int N) {
    for (i64 t = 0; t < depth; t++) {
        rg_at_row b = rg_at_held(rg_at_load(lanes, N), N);
#define RG_AT_DO(i) \
    a.r##i = rg_at_row_fma(a.r##i, RG_AT_SPLAT(x[i * row_step]), b, N)
        RG_AT_ROWS(R, RG_AT_DO);
#undef RG_AT_DO
        x += depth_step;
        lanes += lane_step;
    }
    return a;
}

/* to[row][...] += the tile of sums.  The sums start from zero: what a long row adds up to is then a
 * sum of sums, whose error does not grow with the number of its terms. */
RG_INLINE void rg_at_accumulate(f32 *to, i64 to_step, const f32 *x, i64 row_step, i64 depth_step,
                                const f32 *lanes, i64 lane_step, i64 depth, const int R,
                                const int N) {
    rg_at_tile a = rg_at_blank();
    a = rg_at_products(a, x, row_step, depth_step, lanes, lane_step, depth, R, N);
#define RG_AT_DO(i) \
    rg_at_store(to + i * to_step, rg_at_row_add(a.r##i, rg_at_load(to + i * to_step, N), N), N)
    RG_AT_ROWS(R, RG_AT_DO);
#undef RG_AT_DO
}

/* Queries on lanes: to[d][v0, v1) += sum over keys of x[key][d] * tile[key][v0, v1).  The keys'
 * numbers are read where they lie. */
#define RG_AT_MIX(N) \
    static void rg_at_mix##N(f32 *to, const f32 *x, i64 step, i64 width, const f32 *tile, \
                             i64 keys) { \
        i64 d = 0; \
        for (; d + 4 <= width; d += 4) \
            rg_at_accumulate(to + d * RG_AT_Q, RG_AT_Q, x + d, 1, step, tile, RG_AT_Q, keys, 4, \
                             N); \
        for (; d < width; d++) \
            rg_at_accumulate(to + d * RG_AT_Q, RG_AT_Q, x + d, 1, step, tile, RG_AT_Q, keys, 1, \
                             N); \
    }
RG_AT_MIX(1)
RG_AT_MIX(2)
#if RG_AT_N > 2
RG_AT_MIX(3)
RG_AT_MIX(4)
#endif

static void rg_at_mix(f32 *to, const f32 *x, i64 step, i64 width, const f32 *tile, i64 keys,
                      i64 v0, i64 v1) {
    for (i64 n; v0 < v1; v0 += n) {
        n = rg_min(v1 - v0, RG_AT_N);
        f32 *out = to + v0 * RG_AT_W;
        const f32 *lanes = tile + v0 * RG_AT_W;
        switch (n) {
#if RG_AT_N > 2
        case 4: rg_at_mix4(out, x, step, width, lanes, keys); break;
        case 3: rg_at_mix3(out, x, step, width, lanes, keys); break;
#endif
        case 2: rg_at_mix2(out, x, step, width, lanes, keys); break;
        default: rg_at_mix1(out, x, step, width, lanes, keys);
        }
    }
}

/* Widths on lanes: to[key][d] += sum over queries of tile[key][query] * x[query][d]; `to` and `x`
 * have whole vectors of d there. */
#define RG_AT_OUTER(N, R) \
    static void rg_at_outer##N(f32 *to, i64 to_step, const f32 *tile, i64 keys, const f32 *x, \
                               i64 step, i64 queries) { \
        i64 j = 0; \
        for (; j + R <= keys; j += R) \
            rg_at_accumulate(to + j * to_step, to_step, tile + j * RG_AT_Q, RG_AT_Q, 1, x, step, \
                             queries, R, N); \
        for (; j < keys; j++) \
            rg_at_accumulate(to + j * to_step, to_step, tile + j * RG_AT_Q, RG_AT_Q, 1, x, step, \
                             queries, 1, N); \
    }
#if RG_AT_N > 2
RG_AT_OUTER(1, 8)
RG_AT_OUTER(2, 8)
RG_AT_OUTER(3, 4)
RG_AT_OUTER(4, 4)
#else
RG_AT_OUTER(1, 4)
RG_AT_OUTER(2, 4)
#endif

/* The same for any width: what is left of a vector goes by way of `rest`, [64 keys][vector]. */
static void rg_at_outer(f32 *to, i64 to_step, i64 width, const f32 *tile, i64 keys, const f32 *x,
                        i64 step, i64 queries, f32 *rest) {
    i64 d = 0;
    for (i64 n; d + RG_AT_W <= width; d += n * RG_AT_W) {
        n = rg_min((width - d) / RG_AT_W, RG_AT_N);
        switch (n) {
#if RG_AT_N > 2
        case 4: rg_at_outer4(to + d, to_step, tile, keys, x + d, step, queries); break;
        case 3: rg_at_outer3(to + d, to_step, tile, keys, x + d, step, queries); break;
#endif
        case 2: rg_at_outer2(to + d, to_step, tile, keys, x + d, step, queries); break;
        default: rg_at_outer1(to + d, to_step, tile, keys, x + d, step, queries);
        }
    }
    if (d == width) return;
    size_t bytes = (size_t)(width - d) * sizeof(f32);
    for (i64 j = 0; j < keys; j++) memcpy(rest + j * RG_AT_W, to + j * to_step + d, bytes);
    rg_at_outer1(rest, RG_AT_W, tile, keys, x + d, step, queries);
    for (i64 j = 0; j < keys; j++) memcpy(to + j * to_step + d, rest + j * RG_AT_W, bytes);
}

/* --- between rows and lanes */

/* W rows of W numbers -> their columns: log2(W) rounds of zipping the halves. */
RG_INLINE void rg_at_transposed(rg_at_v *m) {
    rg_at_v t[RG_AT_W];
    for (int round = 1; round < RG_AT_W; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < RG_AT_W / 2; i++) {
            t[2 * i] = RG_AT_ZIP(m[i], m[i + RG_AT_W / 2], RG_AT_LOW);
            t[2 * i + 1] = RG_AT_ZIP(m[i], m[i + RG_AT_W / 2], RG_AT_HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < RG_AT_W; i++) m[i] = t[i];
    }
}

/* lanes[d][row] := x[row][d] * scale for a block of up to 64 rows; zeros for the rows beyond. */
static void rg_at_to_lanes(f32 *lanes, const f32 *x, i64 step, i64 rows, i64 width, f32 scale) {
    rg_at_v m[RG_AT_W];
    for (i64 i = 0; i < RG_AT_Q; i += RG_AT_W)
        for (i64 d = 0; d < width; d += RG_AT_W) {
            i64 n = rg_min(width - d, RG_AT_W);
            for (i64 r = 0; r < RG_AT_W; r++) {
                m[r] = RG_AT_SPLAT(0.0f);
                if (i + r >= rows) continue;
                if (n == RG_AT_W) m[r] = *(const rg_at_u *)(x + (i + r) * step + d);
                else memcpy(&m[r], x + (i + r) * step + d, (size_t)n * sizeof(f32));
            }
            rg_at_transposed(m);
            for (i64 r = 0; r < n; r++)
                *(rg_at_v *)(lanes + (d + r) * RG_AT_Q + i) = m[r] * RG_AT_SPLAT(scale);
        }
}

/* to[row][d] := lanes[d][row] * scale. */
static void rg_at_from_lanes(f32 *to, i64 step, i64 rows, i64 width, const f32 *lanes, f32 scale) {
    rg_at_v m[RG_AT_W];
    for (i64 i = 0; i < rows; i += RG_AT_W)
        for (i64 d = 0; d < width; d += RG_AT_W) {
            i64 n = rg_min(width - d, RG_AT_W), down = rg_min(rows - i, RG_AT_W);
            for (i64 r = 0; r < RG_AT_W; r++)
                m[r] = RG_AT_SPLAT(scale) *
                       *(const rg_at_v *)(lanes + (d + rg_min(r, n - 1)) * RG_AT_Q + i);
            rg_at_transposed(m);
            for (i64 r = 0; r < down; r++) {
                if (n == RG_AT_W) *(rg_at_u *)(to + (i + r) * step + d) = m[r];
                else memcpy(to + (i + r) * step + d, &m[r], (size_t)n * sizeof(f32));
            }
        }
}

/* to[row][d] := x[row][d] * scale in rows of whole vectors; zeros beyond. */
static void rg_at_to_rows(f32 *to, const f32 *x, i64 step, i64 rows, i64 width, f32 scale) {
    i64 whole = (width + RG_AT_W - 1) / RG_AT_W * RG_AT_W;
    for (i64 i = 0; i < RG_AT_Q; i++)
        for (i64 d = 0; d < whole; d++)
            to[i * whole + d] = i < rows && d < width ? x[i * step + d] * scale : 0.0f;
}
