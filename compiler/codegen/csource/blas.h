/* Matrix products by a BLAS that the process has loaded: c = a @ b for arrays with strides.
 *
 * f is the address of cblas_sgemm or cblas_dgemm; `wide` tells whether its sizes have 64 bits.  What
 * it cannot read (no unit stride, sizes beyond 32 bits) and everything where f is 0 is computed by
 * rg_gemm_direct_T of gemm.h.
 *
 * Invariant: BLAS runs on the calling thread alone, so the bits of c follow from what is passed. */

enum { RG_BLAS_ROWS = 101, RG_BLAS_PLAIN = 111, RG_BLAS_TURNED = 112 };

/* How BLAS is told of a matrix of `rows` by `columns` whose elements lie sr and sc apart: turned or
 * not, with the leading dimension; 0 where it has no words for that.  The stride along an axis of
 * one element may be anything, a leading dimension has its least size. */
static int rg_blas_layout(i64 rows, i64 columns, i64 sr, i64 sc, i64 *lead) {
    if ((sc == 1 || columns == 1) && (rows == 1 || sr >= columns)) {
        *lead = rows == 1 ? columns : sr;
        return RG_BLAS_PLAIN;
    }
    if ((sr == 1 || rows == 1) && (columns == 1 || sc >= rows)) {
        *lead = columns == 1 ? rows : sc;
        return RG_BLAS_TURNED;
    }
    return 0;
}

#define RG_BLAS_OF(T)                                                                              \
    typedef void (*rg_blas_narrow_##T)(int, int, int, int, int, int, T, const T *, int, const T *, \
                                       int, T, T *, int);                                          \
    typedef void (*rg_blas_wide_##T)(int, int, int, i64, i64, i64, T, const T *, i64, const T *,   \
                                     i64, T, T *, i64);                                            \
                                                                                                   \
    RG_GEMM_SHARED void rg_blas_##T(i64 f, i64 wide, T *c, i64 sc, const T *a, i64 sm, i64 sk,     \
                                    const T *b, i64 skb, i64 snb, i64 m, i64 n, i64 k) {           \
        if (m <= 0 || n <= 0) return;                                                              \
        i64 la = 0, lb = 0;                                                                        \
        const i64 lc = m == 1 ? n : sc, most = wide ? INT64_MAX : INT32_MAX;                       \
        const int ta = rg_blas_layout(m, k, sm, sk, &la), tb = rg_blas_layout(k, n, skb, snb, &lb);\
        const i64 largest = rg_max(rg_max(rg_max(m, n), rg_max(k, la)), rg_max(lb, lc));           \
        if (!f || !ta || !tb || k <= 0 || lc < n || largest > most)                                \
            rg_gemm_direct_##T(c, sc, a, sm, sk, b, skb, snb, m, n, k, 0);                         \
        else if (wide)                                                                             \
            ((rg_blas_wide_##T)f)(RG_BLAS_ROWS, ta, tb, m, n, k, 1, a, la, b, lb, 0, c, lc);       \
        else                                                                                       \
            ((rg_blas_narrow_##T)f)(RG_BLAS_ROWS, ta, tb, (int)m, (int)n, (int)k, 1, a, (int)la, b,\
                                    (int)lb, 0, c, (int)lc);                                       \
    }

RG_BLAS_OF(f32)
RG_BLAS_OF(f64)
