/* Tiled attention: which keys are open to a block of queries, the bias, the dropped weights.
 *
 * Band, lengths and segments are predicates: tiles are left out by comparing bounds.  Masks and
 * biases are read tile by tile.  What is dropped comes from the counters of random_bits. */

typedef struct {
    const struct rg_attention *p;
    i64 b, h, kh, i0, n, vectors; /* n of 64 queries are there; they fill so many vectors */
    i64 from, to;                 /* the keys that band and length leave, `from` on a tile's edge */
    const i32 *segments;          /* of the n queries, or null */
    i32 least, most;              /* the smallest and largest of them */
    f32 *open, *bias, *kept;      /* [key][query] of one tile, where it needs them */
} rg_at_block;

enum rg_at_state { RG_AT_CLOSED, RG_AT_OPEN, RG_AT_TESTED };

/* 64 queries from i0 on of head h, row b.  `buffers`: room for three tiles. */
static rg_at_block rg_at_begin(const struct rg_attention *p, i64 b, i64 h, i64 i0, f32 *buffers) {
    rg_at_block q = {.p = p, .b = b, .h = h, .i0 = i0};
    q.kh = h / (p->heads / p->key_heads);
    q.n = rg_min(RG_AT_Q, p->queries - i0);
    q.vectors = (q.n + RG_AT_W - 1) / RG_AT_W;
    q.open = buffers;
    q.bias = buffers + RG_AT_K * RG_AT_Q;
    q.kept = buffers + 2 * RG_AT_K * RG_AT_Q;
    q.from = rg_max(0, i0 + p->low) / RG_AT_K * RG_AT_K;
    q.to = rg_min(p->keys, i0 + q.n + p->high);
    if (p->lengths) q.to = rg_min(q.to, ((const i32 *)p->lengths)[b * p->nb]);
    if (p->query_segments) {
        q.segments = (const i32 *)p->query_segments + b * p->sb + i0;
        q.least = q.most = q.segments[0];
        for (i64 i = 1; i < q.n; i++) {
            if (q.segments[i] < q.least) q.least = q.segments[i];
            if (q.segments[i] > q.most) q.most = q.segments[i];
        }
    }
    return q;
}

/* The lanes whose band holds one of the keys [j, j + n). */
RG_INLINE void rg_at_lanes(const rg_at_block *q, i64 j, i64 n, i64 *first, i64 *last) {
    *first = rg_min(rg_max(j - q->p->high - q->i0, 0), RG_AT_Q);
    *last = rg_min(rg_max(j + n - 1 - q->p->low - q->i0, -1), RG_AT_Q - 1);
}

/* The same in whole vectors, within those that there are. */
RG_INLINE void rg_at_span(const rg_at_block *q, i64 j, i64 n, i64 *v0, i64 *v1) {
    i64 first, last;
    rg_at_lanes(q, j, n, &first, &last);
    *v0 = first / RG_AT_W;
    *v1 = last < 0 ? 0 : rg_min(last / RG_AT_W + 1, q->vectors);
}

static void rg_at_band(const rg_at_block *q, i64 j0, i64 n) {
    const rg_at_i places = {RG_AT_PLACES};
    for (i64 j = 0; j < n; j++) {
        i64 first, last;
        rg_at_lanes(q, j0 + j, 1, &first, &last);
        for (i64 v = 0; v < RG_AT_VECTORS; v++) {
            rg_at_i lane = places + (i32)(v * RG_AT_W);
            *(rg_at_i *)(q->open + j * RG_AT_Q + v * RG_AT_W) =
                (lane >= (i32)first) & (lane <= (i32)last);
        }
    }
}

static void rg_at_same_segment(const rg_at_block *q, const i32 *keys, i64 n) {
    rg_at_i own[RG_AT_VECTORS];
    memset(own, 0, sizeof own);
    memcpy(own, q->segments, (size_t)q->n * sizeof(i32));
    for (i64 j = 0; j < n; j++)
        for (i64 v = 0; v < RG_AT_VECTORS; v++)
            *(rg_at_i *)(q->open + j * RG_AT_Q + v * RG_AT_W) &= own[v] == keys[j];
}

static void rg_at_masked(const rg_at_block *q, i64 j0, i64 n) {
    const struct rg_attention *p = q->p;
    const u8 *mask = (const u8 *)p->mask + q->b * p->mb + q->h * p->mh + q->i0 * p->mi + j0 * p->mj;
    if (p->mi == 0) {
        for (i64 j = 0; j < n; j++)
            if (!mask[j * p->mj]) memset(q->open + j * RG_AT_Q, 0, RG_AT_Q * sizeof(i32));
        return;
    }
    rg_at_v m[RG_AT_W];
    for (i64 i = 0; i < q->n; i += RG_AT_W)
        for (i64 j = 0; j < n; j += RG_AT_W) {
            i64 across = rg_min(n - j, RG_AT_W);
            for (i64 r = 0; r < RG_AT_W; r++) {
                rg_at_i row = {0};
                const u8 *from = mask + (i + r) * p->mi + j * p->mj;
                if (i + r < q->n)
                    for (i64 c = 0; c < across; c++) row[c] = -(from[c * p->mj] != 0);
                m[r] = (rg_at_v)row;
            }
            rg_at_transposed(m);
            for (i64 c = 0; c < across; c++)
                *(rg_at_i *)(q->open + (j + c) * RG_AT_Q + i) &= (rg_at_i)m[c];
        }
}

/* Whether `open` holds for none, all or some of the pairs of a tile. */
static enum rg_at_state rg_at_judged(const rg_at_block *q, i64 n) {
    const rg_at_i places = {RG_AT_PLACES};
    rg_at_i any = {0}, all = places >= 0;
    for (i64 v = 0; v < q->vectors; v++) {
        rg_at_i there = places + (i32)(v * RG_AT_W) < (i32)q->n;
        for (i64 j = 0; j < n; j++) {
            rg_at_i open = *(const rg_at_i *)(q->open + j * RG_AT_Q + v * RG_AT_W);
            any |= open & there;
            all &= open | ~there;
        }
    }
    i32 some = 0, every = -1;
    for (int i = 0; i < RG_AT_W; i++) {
        some |= any[i];
        every &= all[i];
    }
    return !some ? RG_AT_CLOSED : every ? RG_AT_OPEN : RG_AT_TESTED;
}

/* The state of the n <= 64 keys from j on; where it is RG_AT_TESTED, `open` is filled. */
static enum rg_at_state rg_at_look(const rg_at_block *q, i64 j, i64 n) {
    const struct rg_attention *p = q->p;
    i64 last = q->i0 + q->n - 1;
    if (j - last > p->high || j + n - 1 - q->i0 < p->low) return RG_AT_CLOSED;
    int whole = j + n - 1 - q->i0 <= p->high && j - last >= p->low;
    const i32 *keys = q->segments ? (const i32 *)p->key_segments + q->b * p->tb + j : 0;
    if (keys) {
        i32 least = keys[0], most = keys[0];
        for (i64 t = 1; t < n; t++) {
            if (keys[t] < least) least = keys[t];
            if (keys[t] > most) most = keys[t];
        }
        if (least > q->most || most < q->least) return RG_AT_CLOSED;
        if (least == most && q->least == q->most) keys = 0;
    }
    if (whole && !keys && !p->mask) return RG_AT_OPEN;
    rg_at_band(q, j, n);
    if (keys) rg_at_same_segment(q, keys, n);
    if (p->mask) rg_at_masked(q, j, n);
    return keys || p->mask ? rg_at_judged(q, n) : RG_AT_TESTED;
}

/* bias[key][query] := the bias times log2(e). */
static void rg_at_fill_bias(const rg_at_block *q, i64 j0, i64 n) {
    const struct rg_attention *p = q->p;
    const f32 *bias =
        (const f32 *)p->bias + q->b * p->ab + q->h * p->ah + q->i0 * p->ai + j0 * p->aj;
    if (p->aj == 1 && p->ai != 0) {
        rg_at_to_lanes(q->bias, bias, p->ai, q->n, n, RG_AT_LOG2E);
        return;
    }
    for (i64 j = 0; j < n; j++)
        for (i64 i = 0; i < RG_AT_Q; i++)
            q->bias[j * RG_AT_Q + i] =
                i < q->n ? bias[i * p->ai + j * p->aj] * RG_AT_LOG2E : 0.0f;
}

/* --- dropout: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), one block a lane */

static void rg_at_philox(u32 k0, u32 k1, const u64 *block, const u64 *row, u32 (*out)[RG_AT_Q]) {
    u32 c[4][RG_AT_Q];
    for (int i = 0; i < RG_AT_Q; i++) {
        c[0][i] = (u32)block[i];
        c[1][i] = (u32)row[i];
        c[2][i] = (u32)(row[i] >> 32);
        c[3][i] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < RG_AT_Q; i++) {
            u64 a = (u64)c[0][i] * 0xD2511F53u, b = (u64)c[2][i] * 0xCD9E8D57u;
            u32 high0 = (u32)(b >> 32) ^ c[1][i] ^ k0, high1 = (u32)(a >> 32) ^ c[3][i] ^ k1;
            c[0][i] = high0;
            c[1][i] = (u32)b;
            c[2][i] = high1;
            c[3][i] = (u32)a;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    memcpy(out, c, sizeof c);
}

/* kept[key][query]: whether the weights of the keys [j0, j0 + n), j0 a multiple of 4, are kept. */
static void rg_at_fill_kept(const rg_at_block *q, i64 j0, i64 n) {
    const struct rg_attention *p = q->p;
    const u32 *key = (const u32 *)p->drop_key;
    u64 first = p->drop_row ? (u64) * (const i64 *)p->drop_row : 0;
    u64 row[RG_AT_Q], block[RG_AT_Q], phase[RG_AT_Q];
    u32 words[8][RG_AT_Q];
    int shifted = 0;
    for (i64 i = 0; i < RG_AT_Q; i++) {
        i64 at = q->i0 + i;
        u64 element = (u64)(q->b * p->eb + q->h * p->eh + at * p->ei + j0);
        row[i] = first + (u64)(q->b * p->rb + q->h * p->rh + at * p->ri);
        block[i] = element / 4;
        phase[i] = element % 4;
        shifted |= phase[i] != 0;
    }
    rg_at_philox(key[0], key[1], block, row, words);
    for (i64 j = 0; j < n; j += 4) {
        for (int i = 0; i < RG_AT_Q; i++) block[i]++;
        if (shifted || j + 4 < n) rg_at_philox(key[0], key[1], block, row, words + 4);
        for (i64 t = 0; t < rg_min(4, n - j); t++) {
            i32 *kept = (i32 *)(q->kept + (j + t) * RG_AT_Q);
            for (int i = 0; i < RG_AT_Q; i++)
                kept[i] = -((i64)(words[phase[i] + (u64)t][i] >> 8) < p->limit);
        }
        memcpy(words, words + 4, sizeof words / 2);
    }
}
