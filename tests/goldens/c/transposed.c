static i64 k0(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[2];
  const f32 *const x0 = (void *)a[0];
  f32 *const y0 = (void *)a[1];
  const i64 p0 = 6 * n0 >= 8388608 && (u64)y0 != (u64)x0;
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r;
    f32 *const y0r = y0 + r * n0;
    const i64 p0r = p0 && rg_on_line(y0r);
    const f32 v0 = 0.0f;
    {
      i64 at = 0;
      for (; p0r && at + 64 <= n0; at += 64) {
        f32 t0[64] __attribute__((aligned(64)));
        f32 *const w0 = p0r ? t0 : y0r + at;
        RG_SIMD
        for (i64 l = 0; l < 64; l++) {
          const i64 i = at + l;
          const f32 v1 = x0r[i * 6];
          const f32 v2 = v1 + v0;
          w0[l] = v2;
        }
        if (p0r) rg_stream(y0r + at, t0, 256);
      }
      f32 *const w0 = y0r + at;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v1 = x0r[i * 6];
        const f32 v2 = v1 + v0;
        w0[l] = v2;
      }
    }
  }
  if (p0) rg_streamed();
  return RG_OK;
}
