static i64 k0(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[4];
  const f32 *const x0 = (void *)a[0];
  const f32 *const x1 = (void *)a[1];
  const f32 *const x2 = (void *)a[2];
  f32 *const y0 = (void *)a[3];
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2 + r;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = 2.0f;
    const f32 v1 = x2r[0];
    const f32 v2 = 0.0f;
    RG_SIMD
    for (i64 i = 0; i < n0; i++) {
      const f32 v3 = x0r[i];
      const f32 v4 = x1r[i];
      const f32 v5 = v3 * v0;
      const f32 v6 = v5 + v4;
      const f32 v7 = rg_exp_f32(v6);
      const f32 v8 = v7 - v1;
      const f32 v9 = rg_maximum_f32(v8, v2);
      y0r[i] = v9;
    }
  }
  return RG_OK;
}
