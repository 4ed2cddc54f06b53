extern "C" __global__ void k0(const f32 *x0, f32 *y0, i64 count) {
  const f32 v0 = 0.035677406936883926f;
  const f32 v1 = 0.7978845834732056f;
  const f32 v2 = 1.0f;
  const f32 v3 = 0.5f;
  for (i64 i = RG_FLAT; i < count; i += RG_FLATS) {
    const f32 v4 = x0[i];
    const f32 v5 = v4 * v4;
    const f32 v6 = v5 * v0;
    const f32 v7 = v6 + v1;
    const f32 v8 = v7 * v4;
    const f32 v9 = rg_tanh_f32(v8);
    const f32 v10 = v9 + v2;
    const f32 v11 = v10 * v4;
    const f32 v12 = v11 * v3;
    y0[i] = v12;
  }
}

extern "C" __global__ void k1(const f32 *x0, const f32 *x1, f32 *y0, i64 count) {
  const f32 v0 = 0.035677406936883926f;
  const f32 v1 = 0.7978845834732056f;
  const f32 v2 = 0.05351611226797104f;
  const f32 v3 = 0.3989422917366028f;
  const f32 v4 = 1.0f;
  const f32 v5 = 0.5f;
  const f32 v6 = 1.0f;
  for (i64 i = RG_FLAT; i < count; i += RG_FLATS) {
    const f32 v7 = x0[i];
    const f32 v8 = x1[i];
    const f32 v9 = v7 * v7;
    const f32 v10 = v9 * v0;
    const f32 v11 = v10 + v1;
    const f32 v12 = v11 * v7;
    const f32 v13 = rg_tanh_f32(v12);
    const f32 v14 = v9 * v2;
    const f32 v15 = v14 + v3;
    const f32 v16 = v15 * v7;
    const f32 v17 = v4 - v13;
    const f32 v18 = v17 * v16;
    const f32 v19 = v18 + v5;
    const f32 v20 = v13 + v4;
    const f32 v21 = v19 * v20;
    const f32 v22 = v6 * v8;
    const f32 v23 = v21 * v22;
    y0[i] = v23;
  }
}
