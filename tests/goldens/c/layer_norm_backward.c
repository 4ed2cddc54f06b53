static i64 k1(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 *const x0 = (void *)a[0];
  f32 *const y0 = (void *)a[1];
  const i64 v0 = x0[0];
  RG_SIMD
  for (i64 i = lo; i < hi; i++) {
    const f32 v1 = rg_cast_i64_f32(v0);
    y0[0] = v1;
  }
  return RG_OK;
}

static i64 k2(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[6];
  const i64 n1 = a[7];
  const f32 *const x0 = (void *)a[0];
  const f32 *const x1 = (void *)a[1];
  const f32 *const x2 = (void *)a[2];
  const f32 *const x3 = (void *)a[3];
  f32 *const y0 = (void *)a[4];
  f32 *const b0 = (f32 *)a[5] + part * n1;
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2 + r * n0;
    const f32 *const x3r = x3;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = x1r[0];
    const f32 v1 = 9.999999747378752e-06f;
    const f32 v2 = 1.0f;
    const f32 v3 = -0.5f;
    f32 s0_0[32];
    for (int l = 0; l < 32; l++) s0_0[l] = 0.0f;
    i64 at0 = 0;
    for (; at0 + 32 <= n0; at0 += 32) {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        s0_0[l] = s0_0[l] + v4;
      }
    }
    {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        s0_0[l] = s0_0[l] + v4;
      }
    }
    for (int l = 0; l < 16; l++) s0_0[l] = s0_0[l] + s0_0[l + 16];
    for (int l = 0; l < 8; l++) s0_0[l] = s0_0[l] + s0_0[l + 8];
    for (int l = 0; l < 4; l++) s0_0[l] = s0_0[l] + s0_0[l + 4];
    for (int l = 0; l < 2; l++) s0_0[l] = s0_0[l] + s0_0[l + 2];
    for (int l = 0; l < 1; l++) s0_0[l] = s0_0[l] + s0_0[l + 1];
    const f32 v4 = s0_0[0];
    const f32 v5 = v4 / v0;
    f32 s1_0[32];
    for (int l = 0; l < 32; l++) s1_0[l] = 0.0f;
    f32 s1_1[32];
    for (int l = 0; l < 32; l++) s1_1[l] = 0.0f;
    i64 at1 = 0;
    for (; at1 + 32 <= n0; at1 += 32) {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v6 = x0r[i];
        const f32 v7 = x2r[i];
        const f32 v8 = x3r[i];
        const f32 v9 = v6 - v5;
        const f32 v10 = v9 * v9;
        const f32 v11 = v2 * v7;
        const f32 v12 = v11 * v8;
        const f32 v13 = v12 * v9;
        s1_0[l] = s1_0[l] + v10;
        s1_1[l] = s1_1[l] + v13;
      }
    }
    {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v6 = x0r[i];
        const f32 v7 = x2r[i];
        const f32 v8 = x3r[i];
        const f32 v9 = v6 - v5;
        const f32 v10 = v9 * v9;
        const f32 v11 = v2 * v7;
        const f32 v12 = v11 * v8;
        const f32 v13 = v12 * v9;
        s1_0[l] = s1_0[l] + v10;
        s1_1[l] = s1_1[l] + v13;
      }
    }
    for (int l = 0; l < 16; l++) s1_0[l] = s1_0[l] + s1_0[l + 16];
    for (int l = 0; l < 8; l++) s1_0[l] = s1_0[l] + s1_0[l + 8];
    for (int l = 0; l < 4; l++) s1_0[l] = s1_0[l] + s1_0[l + 4];
    for (int l = 0; l < 2; l++) s1_0[l] = s1_0[l] + s1_0[l + 2];
    for (int l = 0; l < 1; l++) s1_0[l] = s1_0[l] + s1_0[l + 1];
    for (int l = 0; l < 16; l++) s1_1[l] = s1_1[l] + s1_1[l + 16];
    for (int l = 0; l < 8; l++) s1_1[l] = s1_1[l] + s1_1[l + 8];
    for (int l = 0; l < 4; l++) s1_1[l] = s1_1[l] + s1_1[l + 4];
    for (int l = 0; l < 2; l++) s1_1[l] = s1_1[l] + s1_1[l + 2];
    for (int l = 0; l < 1; l++) s1_1[l] = s1_1[l] + s1_1[l + 1];
    const f32 v6 = s1_0[0];
    const f32 v7 = s1_1[0];
    const f32 v8 = v6 / v0;
    const f32 v9 = v8 + v1;
    const f32 v10 = rg_rsqrt_f32(v9);
    const f32 v11 = v3 * v7;
    const f32 v12 = v11 * v10;
    const f32 v13 = v12 * v10;
    const f32 v14 = v13 * v10;
    const f32 v15 = v14 / v0;
    f32 s2_0[32];
    for (int l = 0; l < 32; l++) s2_0[l] = 0.0f;
    i64 at2 = 0;
    for (; at2 + 32 <= n0; at2 += 32) {
      const i64 at = at2;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v16 = x0r[i];
        const f32 v17 = x2r[i];
        const f32 v18 = x3r[i];
        const f32 v19 = v16 - v5;
        const f32 v20 = v2 * v17;
        const f32 v21 = v20 * v18;
        const f32 v22 = v21 * v10;
        const f32 v23 = v15 * v19;
        const f32 v24 = v22 + v23;
        const f32 v25 = v24 + v23;
        const f32 v26 = -v25;
        b0[i] = v25;
        s2_0[l] = s2_0[l] + v26;
      }
    }
    {
      const i64 at = at2;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v16 = x0r[i];
        const f32 v17 = x2r[i];
        const f32 v18 = x3r[i];
        const f32 v19 = v16 - v5;
        const f32 v20 = v2 * v17;
        const f32 v21 = v20 * v18;
        const f32 v22 = v21 * v10;
        const f32 v23 = v15 * v19;
        const f32 v24 = v22 + v23;
        const f32 v25 = v24 + v23;
        const f32 v26 = -v25;
        b0[i] = v25;
        s2_0[l] = s2_0[l] + v26;
      }
    }
    for (int l = 0; l < 16; l++) s2_0[l] = s2_0[l] + s2_0[l + 16];
    for (int l = 0; l < 8; l++) s2_0[l] = s2_0[l] + s2_0[l + 8];
    for (int l = 0; l < 4; l++) s2_0[l] = s2_0[l] + s2_0[l + 4];
    for (int l = 0; l < 2; l++) s2_0[l] = s2_0[l] + s2_0[l + 2];
    for (int l = 0; l < 1; l++) s2_0[l] = s2_0[l] + s2_0[l + 1];
    const f32 v16 = s2_0[0];
    const f32 v17 = v16 / v0;
    RG_SIMD
    for (i64 i = 0; i < n0; i++) {
      const f32 v18 = b0[i];
      const f32 v19 = v18 + v17;
      y0r[i] = v19;
    }
  }
  return RG_OK;
}
