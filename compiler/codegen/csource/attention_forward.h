/* Tiled attention, forward: out and, for each query, log(sum(exp(scores))), which is all that the
 * gradient needs of the softmax.  A query without open keys gets zeros and -inf.
 *
 * Items are blocks of 64 queries of every head, the long and the short ones of a causal mask in
 * turn.  A round takes `block` keys: scores and their maxima, powers of two and their sums, then
 * the values are added up, scaled down when the maximum has grown (Milakov & Gimelshein 2018). */

#define RG_AT_ROUND 1024 /* the most keys of a round */
#define RG_AT_STRIPS (RG_AT_ROUND / RG_AT_STRIP + 1)

/* scores[key][query] of n keys, with bias and mask; `best` becomes the largest of each query. */
#define RG_AT_SCORES(N) \
    static void rg_at_scores##N(f32 *to, const f32 *k, i64 step, i64 n, const f32 *lanes, \
                                i64 width, const f32 *open, const f32 *bias, f32 *best) { \
        const rg_at_v closed = RG_AT_SPLAT(-INFINITY); \
        rg_at_row top = rg_at_load(best, N); \
        for (i64 j = 0, down; j < n; j += down) { \
            rg_at_tile a = rg_at_blank(); \
            down = n - j >= 4 ? 4 : 1; \
            if (down == 4) \
                a = rg_at_products(a, k + j * step, step, 1, lanes, RG_AT_Q, width, 4, N); \
            else a = rg_at_products(a, k + j * step, step, 1, lanes, RG_AT_Q, width, 1, N); \
            RG_AT_SCORE_ROW(0, N); \
            if (down == 1) continue; \
            RG_AT_SCORE_ROW(1, N); \
            RG_AT_SCORE_ROW(2, N); \
            RG_AT_SCORE_ROW(3, N); \
        } \
        rg_at_store(best, top, N); \
    }
#define RG_AT_SCORE_ROW(i, N) \
    do { \
        i64 at = (j + i) * RG_AT_Q; \
        if (bias) a.r##i = rg_at_row_add(a.r##i, rg_at_load(bias + at, N), N); \
        if (open) a.r##i = rg_at_row_where(a.r##i, rg_at_load(open + at, N), closed, N); \
        top = rg_at_row_larger(a.r##i, top, N); \
        rg_at_store(to + at, a.r##i, N); \
    } while (0)
RG_AT_SCORES(1)
RG_AT_SCORES(2)
#if RG_AT_N > 2
RG_AT_SCORES(3)
RG_AT_SCORES(4)
#endif

static void rg_at_scores(f32 *to, const f32 *k, i64 step, const rg_at_strip *s, const f32 *lanes,
                         i64 width, const f32 *open, const f32 *bias, f32 *best) {
    for (i64 v = s->v0, n; v < s->v1; v += n) {
        n = rg_min(s->v1 - v, RG_AT_N);
        i64 at = v * RG_AT_W;
        const f32 *o = open ? open + at : 0, *b = bias ? bias + at : 0;
        switch (n) {
#if RG_AT_N > 2
        case 4: rg_at_scores4(to + at, k, step, s->n, lanes + at, width, o, b, best + at); break;
        case 3: rg_at_scores3(to + at, k, step, s->n, lanes + at, width, o, b, best + at); break;
#endif
        case 2: rg_at_scores2(to + at, k, step, s->n, lanes + at, width, o, b, best + at); break;
        default: rg_at_scores1(to + at, k, step, s->n, lanes + at, width, o, b, best + at);
        }
    }
}

/* scores := 2^(scores - top); sums += their columns. */
#define RG_AT_POWERS(N) \
    static void rg_at_powers##N(f32 *scores, i64 n, const f32 *top, f32 *sums) { \
        rg_at_row m = rg_at_load(top, N), l = rg_at_all(0.0f); \
        for (i64 j = 0; j < n; j++) { \
            rg_at_row s = rg_at_row_power(rg_at_load(scores + j * RG_AT_Q, N), m, N); \
            l = rg_at_row_add(l, s, N); \
            rg_at_store(scores + j * RG_AT_Q, s, N); \
        } \
        rg_at_store(sums, rg_at_row_add(l, rg_at_load(sums, N), N), N); \
    }
RG_AT_POWERS(1)
#if RG_AT_N == 4
RG_AT_POWERS(4)
#define RG_AT_POWERS_WIDE rg_at_powers4
#else
RG_AT_POWERS(2)
#define RG_AT_POWERS_WIDE rg_at_powers2
#endif

static void rg_at_powers(f32 *scores, const rg_at_strip *s, const f32 *top, f32 *sums) {
    i64 v = s->v0;
    for (; v + RG_AT_N <= s->v1; v += RG_AT_N)
        RG_AT_POWERS_WIDE(scores + v * RG_AT_W, s->n, top + v * RG_AT_W, sums + v * RG_AT_W);
    for (; v < s->v1; v++)
        rg_at_powers1(scores + v * RG_AT_W, s->n, top + v * RG_AT_W, sums + v * RG_AT_W);
}

/* Zeros for the dropped ones of a strip's weights. */
static void rg_at_drop(const rg_at_block *q, f32 *weights, const rg_at_strip *s) {
    for (i64 j = 0, n; j < s->n; j += n) {
        n = rg_min(RG_AT_K, s->n - j);
        rg_at_fill_kept(q, s->j + j, n);
        for (i64 i = 0; i < n * RG_AT_Q; i += RG_AT_W) {
            rg_at_i *w = (rg_at_i *)(weights + j * RG_AT_Q + i);
            *w &= *(const rg_at_i *)(q->kept + i);
        }
    }
}

/* What a thread works in. */
typedef struct {
    f32 *lanes, *sums, *scores, *top, *best, *total, *buffers;
} rg_at_forward_scratch;

/* Brings the strips of a round into out and sums. */
static void rg_at_round(const rg_at_block *q, const rg_at_forward_scratch *s,
                        const rg_at_strip *strips, i64 count, const f32 *v) {
    const struct rg_attention *p = q->p;
    const rg_at_v nothing = RG_AT_SPLAT(-INFINITY), zero = RG_AT_SPLAT(0.0f);
    rg_at_v safe[RG_AT_VECTORS];
    for (i64 i = 0; i < q->vectors; i++) {
        rg_at_v old = *(rg_at_v *)(s->top + i * RG_AT_W);
        rg_at_v top = *(rg_at_v *)(s->best + i * RG_AT_W);
        safe[i] = rg_at_where(top == nothing, zero, top);
        rg_at_v down = rg_at_exp2(old - safe[i]);
        *(rg_at_v *)(s->top + i * RG_AT_W) = top;
        *(rg_at_v *)(s->total + i * RG_AT_W) *= down;
        for (i64 d = 0; d < p->values; d++)
            *(rg_at_v *)(s->sums + d * RG_AT_Q + i * RG_AT_W) *= down;
    }
    for (const rg_at_strip *t = strips; t < strips + count; t++) {
        f32 *weights = s->scores + t->row * RG_AT_Q;
        rg_at_powers(weights, t, (const f32 *)safe, s->total);
        if (p->drop_key) rg_at_drop(q, weights, t);
        rg_at_mix(s->sums, v + t->j * p->vj, p->vj, p->values, weights, t->n, t->v0, t->v1);
    }
}

static void rg_at_forward_block(const rg_at_block *q, const rg_at_forward_scratch *s) {
    const struct rg_attention *p = q->p;
    const f32 *k = (const f32 *)p->k + q->b * p->kb + q->kh * p->kh;
    const f32 *v = (const f32 *)p->v + q->b * p->vb + q->kh * p->vh;
    rg_at_strip strips[RG_AT_STRIPS];
    i64 count = 0, rows = 0;
    for (i64 i = 0; i < RG_AT_Q; i++) {
        s->top[i] = s->best[i] = -INFINITY;
        s->total[i] = 0.0f;
    }
    memset(s->sums, 0, (size_t)(p->values * RG_AT_Q) * sizeof(f32));
    rg_at_to_lanes(s->lanes, (const f32 *)p->q + q->b * p->qb + q->h * p->qh + q->i0 * p->qi,
                   p->qi, q->n, p->width, rg_at_number(p->scale) * RG_AT_LOG2E);
    for (i64 j = q->from; j < q->to; j += RG_AT_K) {
        i64 n = rg_min(RG_AT_K, q->to - j);
        enum rg_at_state state = rg_at_look(q, j, n);
        if (state == RG_AT_CLOSED) continue;
        if (p->bias) rg_at_fill_bias(q, j, n);
        if (rows + n > p->block) {
            rg_at_round(q, s, strips, count, v);
            count = rows = 0;
        }
        i64 down = state == RG_AT_OPEN ? RG_AT_K : RG_AT_STRIP;
        for (i64 t = 0; t < n; t += down) {
            rg_at_strip strip = {j + t, rg_min(down, n - t), rows, 0, q->vectors};
            if (state == RG_AT_TESTED)
                rg_at_span(q, strip.j, strip.n, &strip.v0, &strip.v1);
            if (strip.v0 >= strip.v1) continue;
            rg_at_scores(s->scores + rows * RG_AT_Q, k + strip.j * p->kj, p->kj, &strip, s->lanes,
                         p->width, state == RG_AT_TESTED ? q->open + t * RG_AT_Q : 0,
                         p->bias ? q->bias + t * RG_AT_Q : 0, s->best);
            rows += strip.n;
            rg_at_strip *before = strips + count - 1;
            if (count && before->j + before->n == strip.j && before->v0 == strip.v0 &&
                before->v1 == strip.v1)
                before->n += strip.n;
            else strips[count++] = strip;
        }
    }
    rg_at_round(q, s, strips, count, v);
}

/* Writes what came out of a block. */
static void rg_at_forward_end(const rg_at_block *q, const rg_at_forward_scratch *s) {
    const struct rg_attention *p = q->p;
    f32 *out = (f32 *)p->out + q->b * p->ob + q->h * p->oh + q->i0 * p->oi;
    f32 *lse = (f32 *)p->lse + q->b * p->lb + q->h * p->lh + q->i0;
    f32 keep = p->drop_key ? rg_at_number(p->keep) : 1.0f;
    for (i64 i = 0; i < q->n; i++) {
        f32 l = s->total[i];
        lse[i] = l == 0.0f ? -INFINITY : (s->top[i] + log2f(l)) * RG_AT_LN2;
        s->total[i] = l == 0.0f ? 0.0f : keep / l;
    }
    for (i64 v = 0; v < q->vectors; v++)
        for (i64 d = 0; d < p->values; d++)
            *(rg_at_v *)(s->sums + d * RG_AT_Q + v * RG_AT_W) *=
                *(rg_at_v *)(s->total + v * RG_AT_W);
    rg_at_from_lanes(out, p->oi, q->n, p->values, s->sums, 1.0f);
}

/* f32 of scratch that a thread needs, in either direction; `block`: keys of a forward round. */
RG_INLINE i64 rg_attention_scratch(i64 width, i64 values, i64 block) {
    i64 both = rg_max(width, values) + RG_AT_W;
    return 16 + (6 * both + rg_max(block, 2 * RG_AT_K) + 3 * RG_AT_K + 8) * RG_AT_Q;
}

RG_AT_LAUNCH rg_attention_forward(const i64 *a, i64 lo, i64 hi, i64 part) {
    const struct rg_attention *p = (const struct rg_attention *)a;
    f32 *at = rg_at_scratch(p, part);
    rg_at_forward_scratch s;
    s.top = rg_at_take(&at, RG_AT_Q);
    s.best = rg_at_take(&at, RG_AT_Q);
    s.total = rg_at_take(&at, RG_AT_Q);
    s.lanes = rg_at_take(&at, p->width * RG_AT_Q);
    s.sums = rg_at_take(&at, p->values * RG_AT_Q);
    s.buffers = rg_at_take(&at, 3 * RG_AT_K * RG_AT_Q);
    s.scores = rg_at_take(&at, p->block * RG_AT_Q);
    i64 blocks = (p->queries + RG_AT_Q - 1) / RG_AT_Q;
    for (i64 item = lo; item < hi; item++) {
        i64 at_block = item % blocks, head = item / blocks;
        i64 block = at_block % 2 ? blocks - 1 - at_block / 2 : at_block / 2;
        rg_at_block q =
            rg_at_begin(p, head / p->heads, head % p->heads, block * RG_AT_Q, s.buffers);
        rg_at_forward_block(&q, &s);
        rg_at_forward_end(&q, &s);
    }
    return RG_OK;
}
