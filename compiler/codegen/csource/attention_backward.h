/* Tiled attention, backward: q, k, v, out, dout and the forward's lse -> dq, dk, dv.
 *
 * The weights of a tile are computed again from lse (Dao et al. 2022).  An item is a row, a key
 * head and one of `parts` shares of the key tiles: it owns dk and dv of its keys, and what its keys
 * bring to dq.  The first share writes that to dq, the others to `more`, and rg_attention_sum, a
 * launch of its own, adds those to dq.  No two items write one place, and the order of every sum is
 * fixed by the sizes and `parts`. */

typedef struct {
    f32 *lanes, *out_lanes, *rows, *out_rows; /* q and dout of the block, both ways */
    f32 *dq, *lse, *delta, *weights, *slopes, *rest, *buffers;
} rg_at_backward_scratch;

/* weights := 2^(scores - lse); slopes := weights * (v . dout - delta), for n keys.  With dropout the
 * dropped weights are zeros in `weights`, and the kept ones count `keep` times. */
#define RG_AT_SLOPES(N) \
    static void rg_at_slopes##N(const rg_at_backward_scratch *s, i64 at, const rg_at_strip *t, \
                                const f32 *k, i64 k_step, const f32 *v, i64 v_step, i64 width, \
                                i64 values, const f32 *open, const f32 *bias, const f32 *kept, \
                                f32 keep) { \
        const rg_at_v closed = RG_AT_SPLAT(-INFINITY), zero = RG_AT_SPLAT(0.0f); \
        const rg_at_v many = RG_AT_SPLAT(keep); \
        const rg_at_row lse = rg_at_load(s->lse + at, N); \
        const rg_at_row delta = rg_at_load(s->delta + at, N); \
        for (i64 j = 0, down; j < t->n; j += down) { \
            rg_at_tile a = rg_at_blank(); \
            const f32 *kj = k + j * k_step, *vj = v + j * v_step; \
            down = t->n - j >= 4 ? 4 : 1; \
            if (down == 4) { \
                a = rg_at_products(a, kj, k_step, 1, s->lanes + at, RG_AT_Q, width, 4, N); \
                RG_AT_WEIGHT_ROW(0, N); \
                RG_AT_WEIGHT_ROW(1, N); \
                RG_AT_WEIGHT_ROW(2, N); \
                RG_AT_WEIGHT_ROW(3, N); \
                a = rg_at_blank(); \
                a = rg_at_products(a, vj, v_step, 1, s->out_lanes + at, RG_AT_Q, values, 4, N); \
                RG_AT_SLOPE_ROW(0, N); \
                RG_AT_SLOPE_ROW(1, N); \
                RG_AT_SLOPE_ROW(2, N); \
                RG_AT_SLOPE_ROW(3, N); \
            } else { \
                a = rg_at_products(a, kj, k_step, 1, s->lanes + at, RG_AT_Q, width, 1, N); \
                RG_AT_WEIGHT_ROW(0, N); \
                a = rg_at_blank(); \
                a = rg_at_products(a, vj, v_step, 1, s->out_lanes + at, RG_AT_Q, values, 1, N); \
                RG_AT_SLOPE_ROW(0, N); \
            } \
        } \
    }
#define RG_AT_WEIGHT_ROW(i, N) \
    do { \
        i64 here = (t->row + j + i) * RG_AT_Q + at; \
        if (bias) a.r##i = rg_at_row_add(a.r##i, rg_at_load(bias + here, N), N); \
        if (open) a.r##i = rg_at_row_where(a.r##i, rg_at_load(open + here, N), closed, N); \
        rg_at_store(s->weights + here, rg_at_row_power(a.r##i, lse, N), N); \
    } while (0)
#define RG_AT_SLOPE_ROW(i, N) \
    do { \
        i64 here = (t->row + j + i) * RG_AT_Q + at; \
        rg_at_row w = rg_at_load(s->weights + here, N); \
        if (kept) { \
            rg_at_row stays = rg_at_load(kept + here, N); \
            rg_at_row part = rg_at_row_where(rg_at_row_times(w, many, N), stays, zero, N); \
            rg_at_store(s->weights + here, part, N); \
            a.r##i = rg_at_row_where(rg_at_row_times(a.r##i, many, N), stays, zero, N); \
        } \
        rg_at_store(s->slopes + here, rg_at_row_slope(a.r##i, w, delta, N), N); \
    } while (0)
RG_AT_SLOPES(1)
RG_AT_SLOPES(2)
#if RG_AT_N > 2
RG_AT_SLOPES(3)
RG_AT_SLOPES(4)
#endif

/* One strip of a tile: the weights, and what they bring to dq, dk and dv. */
static void rg_at_backward_strip(const rg_at_block *q, const rg_at_backward_scratch *s,
                                 const rg_at_strip *t, const f32 *open, const f32 *bias,
                                 const f32 *kept) {
    const struct rg_attention *p = q->p;
    const f32 *k = (const f32 *)p->k + q->b * p->kb + q->kh * p->kh + t->j * p->kj;
    const f32 *v = (const f32 *)p->v + q->b * p->vb + q->kh * p->vh + t->j * p->vj;
    f32 keep = kept ? rg_at_number(p->keep) : 1.0f;
    for (i64 g = t->v0, n; g < t->v1; g += n) {
        n = rg_min(t->v1 - g, RG_AT_N);
#define RG_AT_CALL(N) \
    rg_at_slopes##N(s, g * RG_AT_W, t, k, p->kj, v, p->vj, p->width, p->values, open, bias, kept, \
                    keep)
        switch (n) {
#if RG_AT_N > 2
        case 4: RG_AT_CALL(4); break;
        case 3: RG_AT_CALL(3); break;
#endif
        case 2: RG_AT_CALL(2); break;
        default: RG_AT_CALL(1);
        }
#undef RG_AT_CALL
    }
    i64 first = t->v0 * RG_AT_W, queries = rg_min(t->v1 * RG_AT_W, q->n) - first;
    i64 wide = (p->width + RG_AT_W - 1) / RG_AT_W * RG_AT_W;
    i64 deep = (p->values + RG_AT_W - 1) / RG_AT_W * RG_AT_W;
    const f32 *weights = s->weights + t->row * RG_AT_Q, *slopes = s->slopes + t->row * RG_AT_Q;
    rg_at_mix(s->dq, k, p->kj, p->width, slopes, t->n, t->v0, t->v1);
    f32 *dv = (f32 *)p->dv + q->b * p->dvb + q->kh * p->dvh + t->j * p->dvj;
    rg_at_outer(dv, p->dvj, p->values, weights + first, t->n, s->out_rows + first * deep, deep,
                queries, s->rest);
    f32 *dk = (f32 *)p->dk + q->b * p->dkb + q->kh * p->dkh + t->j * p->dkj;
    rg_at_outer(dk, p->dkj, p->width, slopes + first, t->n, s->rows + first * wide, wide, queries,
                s->rest);
}

/* delta := dout . out of each query. */
static void rg_at_delta(const rg_at_block *q, const rg_at_backward_scratch *s, i64 deep) {
    const struct rg_attention *p = q->p;
    const f32 *out = (const f32 *)p->out + q->b * p->ob + q->h * p->oh + q->i0 * p->oi;
    for (i64 i = 0; i < RG_AT_Q; i += RG_AT_W) {
        rg_at_v m[RG_AT_W], sum = RG_AT_SPLAT(0.0f);
        for (i64 r = 0; r < RG_AT_W; r++) {
            m[r] = sum;
            if (i + r >= q->n) continue;
            const f32 *o = out + (i + r) * p->oi, *g = s->out_rows + (i + r) * deep;
            for (i64 d = 0; d < p->values; d += RG_AT_W) {
                rg_at_v x = RG_AT_SPLAT(0.0f);
                if (d + RG_AT_W <= p->values) x = *(const rg_at_u *)(o + d);
                else memcpy(&x, o + d, (size_t)(p->values - d) * sizeof(f32));
                m[r] = rg_at_fma(x, *(const rg_at_v *)(g + d), m[r]);
            }
        }
        rg_at_transposed(m);
        for (i64 r = 0; r < RG_AT_W; r++) sum += m[r];
        *(rg_at_v *)(s->delta + i) = sum;
    }
}

/* Whose tile it is: shares are dealt out there and back, since a causal mask gives the first keys
 * the most queries. */
RG_INLINE i64 rg_at_owner(i64 tile, i64 parts) {
    i64 at = tile % (2 * parts);
    return at < parts ? at : 2 * parts - 1 - at;
}

/* What the keys of a share beyond the first bring to dq. */
RG_INLINE f32 *rg_at_share(const struct rg_attention *p, i64 share, i64 b, i64 h, i64 i) {
    i64 row = (((share - 1) * p->batch + b) * p->heads + h) * p->queries + i;
    return (f32 *)p->more + row * p->width;
}

static void rg_at_backward_block(const rg_at_block *q, const rg_at_backward_scratch *s, i64 share) {
    const struct rg_attention *p = q->p;
    i64 deep = (p->values + RG_AT_W - 1) / RG_AT_W * RG_AT_W;
    const f32 *rows = (const f32 *)p->q + q->b * p->qb + q->h * p->qh + q->i0 * p->qi;
    const f32 *dout = (const f32 *)p->dout + q->b * p->gb + q->h * p->gh + q->i0 * p->gi;
    const f32 *lse = (const f32 *)p->lse + q->b * p->lb + q->h * p->lh + q->i0;
    f32 scale = rg_at_number(p->scale);
    rg_at_to_lanes(s->lanes, rows, p->qi, q->n, p->width, scale * RG_AT_LOG2E);
    rg_at_to_lanes(s->out_lanes, dout, p->gi, q->n, p->values, 1.0f);
    rg_at_to_rows(s->rows, rows, p->qi, q->n, p->width, scale);
    rg_at_to_rows(s->out_rows, dout, p->gi, q->n, p->values, 1.0f);
    rg_at_delta(q, s, deep);
    for (i64 i = 0; i < RG_AT_Q; i++) { /* +inf makes every weight of a query zero */
        f32 l = i < q->n ? lse[i] : -INFINITY;
        s->lse[i] = l == -INFINITY ? INFINITY : l * RG_AT_LOG2E;
    }
    memset(s->dq, 0, (size_t)(p->width * RG_AT_Q) * sizeof(f32));
    for (i64 j = q->from; j < q->to; j += RG_AT_K) {
        if (rg_at_owner(j / RG_AT_K, p->parts) != share) continue;
        i64 n = rg_min(RG_AT_K, q->to - j);
        enum rg_at_state state = rg_at_look(q, j, n);
        if (state == RG_AT_CLOSED) continue;
        if (p->bias) rg_at_fill_bias(q, j, n);
        if (p->drop_key) rg_at_fill_kept(q, j, n);
        i64 down = state == RG_AT_OPEN ? RG_AT_K : RG_AT_STRIP;
        for (i64 t = 0; t < n; t += down) {
            rg_at_strip strip = {j + t, rg_min(down, n - t), t, 0, q->vectors};
            if (state == RG_AT_TESTED)
                rg_at_span(q, strip.j, strip.n, &strip.v0, &strip.v1);
            if (strip.v0 >= strip.v1) continue;
            rg_at_backward_strip(q, s, &strip, state == RG_AT_TESTED ? q->open : 0,
                                 p->bias ? q->bias : 0, p->drop_key ? q->kept : 0);
        }
    }
    f32 *dq = (f32 *)p->dq + q->b * p->dqb + q->h * p->dqh + q->i0 * p->dqi;
    if (share) dq = rg_at_share(p, share, q->b, q->h, q->i0);
    rg_at_from_lanes(dq, share ? p->width : p->dqi, q->n, p->width, s->dq, scale);
}

/* Zeros where the share's keys have their gradients. */
static void rg_at_clear(f32 *to, i64 step, i64 keys, i64 width, i64 share, i64 parts) {
    for (i64 j = 0; j < keys; j++)
        if (rg_at_owner(j / RG_AT_K, parts) == share)
            memset(to + j * step, 0, (size_t)width * sizeof(f32));
}

/* Items: batch x key head x part. */
RG_AT_LAUNCH rg_attention_backward(const i64 *a, i64 lo, i64 hi, i64 part) {
    const struct rg_attention *p = (const struct rg_attention *)a;
    f32 *at = rg_at_scratch(p, part);
    rg_at_backward_scratch s;
    i64 both = (rg_max(p->width, p->values) + RG_AT_W - 1) / RG_AT_W * RG_AT_W * RG_AT_Q;
    s.lse = rg_at_take(&at, RG_AT_Q);
    s.delta = rg_at_take(&at, RG_AT_Q);
    s.lanes = rg_at_take(&at, both);
    s.out_lanes = rg_at_take(&at, both);
    s.rows = rg_at_take(&at, both);
    s.out_rows = rg_at_take(&at, both);
    s.dq = rg_at_take(&at, both);
    s.weights = rg_at_take(&at, RG_AT_K * RG_AT_Q);
    s.slopes = rg_at_take(&at, RG_AT_K * RG_AT_Q);
    s.rest = rg_at_take(&at, RG_AT_K * RG_AT_W);
    s.buffers = rg_at_take(&at, 3 * RG_AT_K * RG_AT_Q);
    i64 group = p->heads / p->key_heads;
    for (i64 item = lo; item < hi; item++) {
        i64 share = item % p->parts, kh = item / p->parts % p->key_heads;
        i64 b = item / p->parts / p->key_heads;
        rg_at_clear((f32 *)p->dk + b * p->dkb + kh * p->dkh, p->dkj, p->keys, p->width, share,
                    p->parts);
        rg_at_clear((f32 *)p->dv + b * p->dvb + kh * p->dvh, p->dvj, p->keys, p->values, share,
                    p->parts);
        for (i64 h = kh * group; h < (kh + 1) * group; h++)
            for (i64 i0 = 0; i0 < p->queries; i0 += RG_AT_Q) {
                rg_at_block q = rg_at_begin(p, b, h, i0, s.buffers);
                rg_at_backward_block(&q, &s, share);
            }
    }
    return RG_OK;
}

/* dq += what the other shares brought, in their order.  Items: batch x head x block of queries. */
RG_AT_LAUNCH rg_attention_sum(const i64 *a, i64 lo, i64 hi, i64 part) {
    const struct rg_attention *p = (const struct rg_attention *)a;
    i64 blocks = (p->queries + RG_AT_Q - 1) / RG_AT_Q;
    (void)part;
    for (i64 item = lo; item < hi; item++) {
        i64 b = item / blocks / p->heads, h = item / blocks % p->heads;
        i64 first = item % blocks * RG_AT_Q, last = rg_min(first + RG_AT_Q, p->queries);
        for (i64 i = first; i < last; i++) {
            f32 *dq = (f32 *)p->dq + b * p->dqb + h * p->dqh + i * p->dqi;
            for (i64 share = 1; share < p->parts; share++) {
                const f32 *from = rg_at_share(p, share, b, h, i);
                for (i64 d = 0; d < p->width; d++) dq[d] += from[d];
            }
        }
    }
    return RG_OK;
}
