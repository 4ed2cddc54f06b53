static i64 k0(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[4];
  const i64 n1 = a[5];
  const f32 *const x0 = (void *)a[0];
  const f32 *const x1 = (void *)a[1];
  const f32 *const x2 = (void *)a[2];
  f32 *const y0 = (void *)a[3];
  const i64 p0 = n1 * n0 >= 8388608 && (u64)y0 != (u64)x0 && (u64)y0 != (u64)x1 && (u64)y0 != (u64)x2;
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2 + r;
    f32 *const y0r = y0 + r * n0;
    const i64 p0r = p0 && rg_on_line(y0r);
    const f32 v0 = 2.0f;
    const f32 v1 = x2r[0];
    const f32 v2 = 0.0f;
    {
      i64 at = 0;
      for (; p0r && at + 64 <= n0; at += 64) {
        f32 t0[64] __attribute__((aligned(64)));
        f32 *const w0 = p0r ? t0 : y0r + at;
        RG_SIMD
        for (i64 l = 0; l < 64; l++) {
          const i64 i = at + l;
          const f32 v3 = x0r[i];
          const f32 v4 = x1r[i];
          const f32 v5 = v3 * v0;
          const f32 v6 = v5 + v4;
          const f32 v7 = rg_exp_f32(v6);
          const f32 v8 = v7 - v1;
          const f32 v9 = rg_maximum_f32(v8, v2);
          w0[l] = v9;
        }
        if (p0r) rg_stream(y0r + at, t0, 256);
      }
      f32 *const w0 = y0r + at;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v3 = x0r[i];
        const f32 v4 = x1r[i];
        const f32 v5 = v3 * v0;
        const f32 v6 = v5 + v4;
        const f32 v7 = rg_exp_f32(v6);
        const f32 v8 = v7 - v1;
        const f32 v9 = rg_maximum_f32(v8, v2);
        w0[l] = v9;
      }
    }
  }
  if (p0) rg_streamed();
  return RG_OK;
}
