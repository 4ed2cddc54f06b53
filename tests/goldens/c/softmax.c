static i64 k0(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[3];
  const i64 n1 = a[4];
  const f32 *const x0 = (void *)a[0];
  f32 *const y0 = (void *)a[1];
  f32 *const b0 = (f32 *)a[2] + part * n1;
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = -3.4028234663852886e+38f;
    const f32 v1 = 1.0f;
    f32 s0_0[32];
    for (int l = 0; l < 32; l++) s0_0[l] = -INFINITY;
    i64 at0 = 0;
    for (; at0 + 32 <= n0; at0 += 32) {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v2 = x0r[i];
        s0_0[l] = rg_maximum_f32(s0_0[l], v2);
      }
    }
    {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v2 = x0r[i];
        s0_0[l] = rg_maximum_f32(s0_0[l], v2);
      }
    }
    for (int l = 0; l < 16; l++) s0_0[l] = rg_maximum_f32(s0_0[l], s0_0[l + 16]);
    for (int l = 0; l < 8; l++) s0_0[l] = rg_maximum_f32(s0_0[l], s0_0[l + 8]);
    for (int l = 0; l < 4; l++) s0_0[l] = rg_maximum_f32(s0_0[l], s0_0[l + 4]);
    for (int l = 0; l < 2; l++) s0_0[l] = rg_maximum_f32(s0_0[l], s0_0[l + 2]);
    for (int l = 0; l < 1; l++) s0_0[l] = rg_maximum_f32(s0_0[l], s0_0[l + 1]);
    const f32 v2 = s0_0[0];
    const f32 v3 = rg_maximum_f32(v2, v0);
    f32 s1_0[32];
    for (int l = 0; l < 32; l++) s1_0[l] = 0.0f;
    i64 at1 = 0;
    for (; at1 + 32 <= n0; at1 += 32) {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        const f32 v5 = v4 - v3;
        const f32 v6 = rg_exp_f32(v5);
        b0[i] = v6;
        s1_0[l] = s1_0[l] + v6;
      }
    }
    {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        const f32 v5 = v4 - v3;
        const f32 v6 = rg_exp_f32(v5);
        b0[i] = v6;
        s1_0[l] = s1_0[l] + v6;
      }
    }
    for (int l = 0; l < 16; l++) s1_0[l] = s1_0[l] + s1_0[l + 16];
    for (int l = 0; l < 8; l++) s1_0[l] = s1_0[l] + s1_0[l + 8];
    for (int l = 0; l < 4; l++) s1_0[l] = s1_0[l] + s1_0[l + 4];
    for (int l = 0; l < 2; l++) s1_0[l] = s1_0[l] + s1_0[l + 2];
    for (int l = 0; l < 1; l++) s1_0[l] = s1_0[l] + s1_0[l + 1];
    const f32 v4 = s1_0[0];
    const f32 v5 = rg_maximum_f32(v4, v1);
    RG_SIMD
    for (i64 i = 0; i < n0; i++) {
      const f32 v6 = b0[i];
      const f32 v7 = v6 / v5;
      y0r[i] = v7;
    }
  }
  return RG_OK;
}
