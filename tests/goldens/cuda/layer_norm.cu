extern "C" __global__ void k0(const i64 *x0, f32 *y0, i64 count) {
  const i64 v0 = x0[0];
  for (i64 i = RG_FLAT; i < count; i += RG_FLATS) {
    const f32 v1 = rg_cast_i64_f32(v0);
    y0[0] = v1;
  }
}

extern "C" __global__ void k1(const f32 *x0, const f32 *x1, const f32 *x2, const f32 *x3, f32 *y0, f32 *y1, f32 *y2, f32 *y3, i64 n0, i64 count) {
  for (i64 r = RG_ROW; r < count; r += RG_ROWS) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2;
    const f32 *const x3r = x3;
    f32 *const y0r = y0 + r * n0;
    f32 *const y1r = y1 + r;
    f32 *const y2r = y2 + r * n0;
    f32 *const y3r = y3 + r * n0;
    const f32 v0 = x1r[0];
    const f32 v1 = 9.999999747378752e-06f;
    f32 s0_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v2 = x0r[i];
      s0_0 = s0_0 + v2;
    }
    RG_ROW_TOTAL(f32, s0_0, o, s0_0 + o);
    const f32 v2 = s0_0;
    const f32 v3 = v2 / v0;
    f32 s1_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v4 = x0r[i];
      const f32 v5 = v4 - v3;
      const f32 v6 = v5 * v5;
      y0r[i] = v5;
      s1_0 = s1_0 + v6;
    }
    RG_ROW_TOTAL(f32, s1_0, o, s1_0 + o);
    const f32 v4 = s1_0;
    const f32 v5 = v4 / v0;
    const f32 v6 = v5 + v1;
    const f32 v7 = rg_rsqrt_f32(v6);
    rg_row_meet();
    if (threadIdx.x == 0) {
      y1r[0] = v7;
    }
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v8 = x0r[i];
      const f32 v9 = x2r[i];
      const f32 v10 = x3r[i];
      const f32 v11 = v8 - v3;
      const f32 v12 = v11 * v7;
      const f32 v13 = v12 * v9;
      const f32 v14 = v13 + v10;
      y2r[i] = v12;
      y3r[i] = v14;
    }
  }
}

extern "C" __global__ void k2(const f32 *x0, const f32 *x1, const f32 *x2, const f32 *x3, const f32 *x4, const f32 *x5, f32 *y0, f32 *y1, f32 *y2, f32 *w0, i64 n0, i64 n1, i64 count) {
  f32 *const b0 = w0 + RG_ROW * n1;
  for (i64 r = RG_ROW; r < count; r += RG_ROWS) {
    const f32 *const x0r = x0 + r * n0;
    const f32 *const x1r = x1;
    const f32 *const x2r = x2 + r * n0;
    const f32 *const x3r = x3 + r;
    const f32 *const x4r = x4 + r * n0;
    const f32 *const x5r = x5;
    f32 *const y0r = y0 + r * n0;
    f32 *const y1r = y1 + r * n0;
    f32 *const y2r = y2 + r * n0;
    const f32 v0 = 1.0f;
    const f32 v1 = x3r[0];
    const f32 v2 = -0.5f;
    const f32 v3 = x5r[0];
    f32 s0_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v4 = x0r[i];
      const f32 v5 = x1r[i];
      const f32 v6 = x2r[i];
      const f32 v7 = x4r[i];
      const f32 v8 = v0 * v4;
      const f32 v9 = v8 * v5;
      const f32 v10 = v8 * v6;
      const f32 v11 = v9 * v7;
      y0r[i] = v8;
      y1r[i] = v10;
      s0_0 = s0_0 + v11;
    }
    RG_ROW_TOTAL(f32, s0_0, o, s0_0 + o);
    const f32 v4 = s0_0;
    const f32 v5 = v2 * v4;
    const f32 v6 = v5 * v1;
    const f32 v7 = v6 * v1;
    const f32 v8 = v7 * v1;
    const f32 v9 = v8 / v3;
    f32 s1_0 = 0.0f;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v10 = x0r[i];
      const f32 v11 = x1r[i];
      const f32 v12 = x4r[i];
      const f32 v13 = v0 * v10;
      const f32 v14 = v13 * v11;
      const f32 v15 = v14 * v1;
      const f32 v16 = v9 * v12;
      const f32 v17 = v15 + v16;
      const f32 v18 = v17 + v16;
      const f32 v19 = -v18;
      b0[i] = v18;
      s1_0 = s1_0 + v19;
    }
    RG_ROW_TOTAL(f32, s1_0, o, s1_0 + o);
    const f32 v10 = s1_0;
    const f32 v11 = v10 / v3;
    for (i64 i = threadIdx.x; i < n0; i += blockDim.x) {
      const f32 v12 = b0[i];
      const f32 v13 = v12 + v11;
      y2r[i] = v13;
    }
  }
}
