extern "C" __global__ void k0(const f32 *x0, f32 *y0, f32 *w0, i64 n0, i64 n1, i64 count) {
  f32 *const b0 = w0 + RG_ROW * n1;
  for (i64 r = RG_ROW; r < count; r += RG_ROWS) {
    const f32 *const x0r = x0 + r * n0;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = -3.4028234663852886e+38f;
    const f32 v1 = 1.0f;
    f32 s0_0 = -INFINITY;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v2 = x0r[i];
      s0_0 = rg_maximum_f32(s0_0, v2);
    }
    RG_ROW_TOTAL(f32, s0_0, o, rg_maximum_f32(s0_0, o));
    const f32 v2 = s0_0;
    const f32 v3 = rg_maximum_f32(v2, v0);
    f32 s1_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v4 = x0r[i];
      const f32 v5 = v4 - v3;
      const f32 v6 = rg_exp_f32(v5);
      b0[i] = v6;
      s1_0 = s1_0 + v6;
    }
    RG_ROW_TOTAL(f32, s1_0, o, s1_0 + o);
    const f32 v4 = s1_0;
    const f32 v5 = rg_maximum_f32(v4, v1);
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v6 = b0[i];
      const f32 v7 = v6 / v5;
      y0r[i] = v7;
    }
  }
}

extern "C" __global__ void k1(const f32 *x0, const f32 *x1, f32 *y0, i64 n0, i64 count) {
  for (i64 r = RG_ROW; r < count; r += RG_ROWS) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1 + r * n0;
    f32 *const y0r = y0 + r * n0;
    const f32 v0 = 1.0f;
    f32 s0_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v1 = x0r[i];
      const f32 v2 = x1r[i];
      const f32 v3 = v0 * v1;
      s0_0 = s0_0 + v3 * v2;
    }
    RG_ROW_TOTAL(f32, s0_0, o, s0_0 + o);
    const f32 v1 = s0_0;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v2 = x0r[i];
      const f32 v3 = x1r[i];
      const f32 v4 = v0 * v2;
      const f32 v5 = v4 - v1;
      const f32 v6 = v5 * v3;
      y0r[i] = v6;
    }
  }
}
