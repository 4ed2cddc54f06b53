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
  const i64 n0 = a[4];
  const f32 *const x0 = (void *)a[0];
  const f32 *const x1 = (void *)a[1];
  f32 *const y0 = (void *)a[2];
  f32 *const y1 = (void *)a[3];
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    f32 *const y0r = y0 + r * n0;
    f32 *const y1r = y1 + r;
    const f32 v0 = x1r[0];
    const f32 v1 = 9.999999747378752e-06f;
    f32 s0_0[32];
    for (int l = 0; l < 32; l++) s0_0[l] = 0.0f;
    i64 at0 = 0;
    for (; at0 + 32 <= n0; at0 += 32) {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v2 = x0r[i];
        s0_0[l] = s0_0[l] + v2;
      }
    }
    {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v2 = x0r[i];
        s0_0[l] = s0_0[l] + v2;
      }
    }
    for (int l = 0; l < 16; l++) s0_0[l] = s0_0[l] + s0_0[l + 16];
    for (int l = 0; l < 8; l++) s0_0[l] = s0_0[l] + s0_0[l + 8];
    for (int l = 0; l < 4; l++) s0_0[l] = s0_0[l] + s0_0[l + 4];
    for (int l = 0; l < 2; l++) s0_0[l] = s0_0[l] + s0_0[l + 2];
    for (int l = 0; l < 1; l++) s0_0[l] = s0_0[l] + s0_0[l + 1];
    const f32 v2 = s0_0[0];
    const f32 v3 = v2 / v0;
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
        const f32 v6 = v5 * v5;
        y0r[i] = v5;
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
        const f32 v6 = v5 * v5;
        y0r[i] = v5;
        s1_0[l] = s1_0[l] + v6;
      }
    }
    for (int l = 0; l < 16; l++) s1_0[l] = s1_0[l] + s1_0[l + 16];
    for (int l = 0; l < 8; l++) s1_0[l] = s1_0[l] + s1_0[l + 8];
    for (int l = 0; l < 4; l++) s1_0[l] = s1_0[l] + s1_0[l + 4];
    for (int l = 0; l < 2; l++) s1_0[l] = s1_0[l] + s1_0[l + 2];
    for (int l = 0; l < 1; l++) s1_0[l] = s1_0[l] + s1_0[l + 1];
    const f32 v4 = s1_0[0];
    const f32 v5 = v4 / v0;
    const f32 v6 = v5 + v1;
    const f32 v7 = rg_rsqrt_f32(v6);
    y1r[0] = v7;
  }
  return RG_OK;
}

static i64 k3(const i64 *a, i64 lo, i64 hi, i64 part) {
  const i64 n0 = a[7];
  const i64 n1 = a[8];
  const f32 *const x0 = (void *)a[0];
  const f32 *const x1 = (void *)a[1];
  const f32 *const x2 = (void *)a[2];
  const f32 *const x3 = (void *)a[3];
  const f32 *const x4 = (void *)a[4];
  f32 *const y0 = (void *)a[5];
  f32 *const b0 = (f32 *)a[6] + part * n1;
  for (i64 r = lo; r < hi; r++) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2 + r;
    const f32 *const x3r = x3 + r * n0;
    const f32 *const x4r = x4;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = 1.0f;
    const f32 v1 = x2r[0];
    const f32 v2 = -0.5f;
    const f32 v3 = x4r[0];
    f32 s0_0[32];
    for (int l = 0; l < 32; l++) s0_0[l] = 0.0f;
    i64 at0 = 0;
    for (; at0 + 32 <= n0; at0 += 32) {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        const f32 v5 = x1r[i];
        const f32 v6 = x3r[i];
        const f32 v7 = v0 * v4;
        const f32 v8 = v7 * v5;
        const f32 v9 = v8 * v6;
        s0_0[l] = s0_0[l] + v9;
      }
    }
    {
      const i64 at = at0;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v4 = x0r[i];
        const f32 v5 = x1r[i];
        const f32 v6 = x3r[i];
        const f32 v7 = v0 * v4;
        const f32 v8 = v7 * v5;
        const f32 v9 = v8 * v6;
        s0_0[l] = s0_0[l] + v9;
      }
    }
    for (int l = 0; l < 16; l++) s0_0[l] = s0_0[l] + s0_0[l + 16];
    for (int l = 0; l < 8; l++) s0_0[l] = s0_0[l] + s0_0[l + 8];
    for (int l = 0; l < 4; l++) s0_0[l] = s0_0[l] + s0_0[l + 4];
    for (int l = 0; l < 2; l++) s0_0[l] = s0_0[l] + s0_0[l + 2];
    for (int l = 0; l < 1; l++) s0_0[l] = s0_0[l] + s0_0[l + 1];
    const f32 v4 = s0_0[0];
    const f32 v5 = v2 * v4;
    const f32 v6 = v5 * v1;
    const f32 v7 = v6 * v1;
    const f32 v8 = v7 * v1;
    const f32 v9 = v8 / v3;
    f32 s1_0[32];
    for (int l = 0; l < 32; l++) s1_0[l] = 0.0f;
    i64 at1 = 0;
    for (; at1 + 32 <= n0; at1 += 32) {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < 32; l++) {
        const i64 i = at + l;
        const f32 v10 = x0r[i];
        const f32 v11 = x1r[i];
        const f32 v12 = x3r[i];
        const f32 v13 = v0 * v10;
        const f32 v14 = v13 * v11;
        const f32 v15 = v14 * v1;
        const f32 v16 = v9 * v12;
        const f32 v17 = v15 + v16;
        const f32 v18 = v17 + v16;
        const f32 v19 = -v18;
        b0[i] = v18;
        s1_0[l] = s1_0[l] + v19;
      }
    }
    {
      const i64 at = at1;
      RG_SIMD
      for (i64 l = 0; l < n0 - at; l++) {
        const i64 i = at + l;
        const f32 v10 = x0r[i];
        const f32 v11 = x1r[i];
        const f32 v12 = x3r[i];
        const f32 v13 = v0 * v10;
        const f32 v14 = v13 * v11;
        const f32 v15 = v14 * v1;
        const f32 v16 = v9 * v12;
        const f32 v17 = v15 + v16;
        const f32 v18 = v17 + v16;
        const f32 v19 = -v18;
        b0[i] = v18;
        s1_0[l] = s1_0[l] + v19;
      }
    }
    for (int l = 0; l < 16; l++) s1_0[l] = s1_0[l] + s1_0[l + 16];
    for (int l = 0; l < 8; l++) s1_0[l] = s1_0[l] + s1_0[l + 8];
    for (int l = 0; l < 4; l++) s1_0[l] = s1_0[l] + s1_0[l + 4];
    for (int l = 0; l < 2; l++) s1_0[l] = s1_0[l] + s1_0[l + 2];
    for (int l = 0; l < 1; l++) s1_0[l] = s1_0[l] + s1_0[l + 1];
    const f32 v10 = s1_0[0];
    const f32 v11 = v10 / v3;
    RG_SIMD
    for (i64 i = 0; i < n0; i++) {
      const f32 v12 = b0[i];
      const f32 v13 = v12 + v11;
      y0r[i] = v13;
    }
  }
  return RG_OK;
}
