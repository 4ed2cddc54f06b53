static i64 k0(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[2];
  const f32 *const x0 = (void *)a[0];
  f32 *const y0 = (void *)a[1];
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = 0.0f;
    RG_SIMD
    for (i64 i = 0; i < n0; i++) {
      const f32 v1 = x0r[i * 6];
      const f32 v2 = v1 + v0;
      y0r[i] = v2;
    }
  }
  return RG_OK;
}
