/* Counter-based random bits: Philox4x32-10, sixteen blocks at a time (compiler/ops/random.py tells
 * the source and what the counter words hold).  Needs base.h. */

enum { RG_BLOCKS = 16 };

/* The four output words of each block, in place of its counter. */
RG_INLINE void rg_philox(u32 c[4][RG_BLOCKS], u32 k0, u32 k1) {
  for (int step = 0; step < 10; step++) {
    RG_SIMD
    for (int l = 0; l < RG_BLOCKS; l++) {
      const u64 p = (u64)c[0][l] * 0xD2511F53u, q = (u64)c[2][l] * 0xCD9E8D57u;
      const u32 w1 = c[1][l], w3 = c[3][l];
      c[0][l] = (u32)(q >> 32) ^ w1 ^ k0;
      c[1][l] = (u32)q;
      c[2][l] = (u32)(p >> 32) ^ w3 ^ k1;
      c[3][l] = (u32)p;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/* The bits of `width` elements a row, `across` blocks a row: blocks first … last-1, counted through
 * all rows.  Element e of row r lies at y[r * down + e * along]. */
static void rg_random_bits(u32 *y, i64 down, i64 along, i64 width, u32 k0, u32 k1, u64 row,
                           i64 first, i64 last) {
  const i64 across = (width + 3) / 4;
  i64 r = first / across, b = first % across;
  while (first < last) {
    u32 c[4][RG_BLOCKS];
    i64 at[RG_BLOCKS], left[RG_BLOCKS];
    const i64 count = rg_min(RG_BLOCKS, last - first);
    for (i64 l = 0; l < RG_BLOCKS; l++) {
      const u64 global = row + (u64)r;
      c[0][l] = (u32)b;
      c[1][l] = (u32)global;
      c[2][l] = (u32)(global >> 32);
      c[3][l] = 0;
      at[l] = r * down + 4 * b * along;
      left[l] = l < count ? width - 4 * b : 0;
      if (++b == across) { b = 0; r++; }
    }
    rg_philox(c, k0, k1);
    for (i64 l = 0; l < count; l++)
      for (i64 i = 0; i < 4 && i < left[l]; i++) y[at[l] + i * along] = c[i][l];
    first += count;
  }
}

/* The key that a key and a number make. */
static void rg_random_fold(u32 *y, i64 step, u32 k0, u32 k1, u64 number) {
  u32 c[4][RG_BLOCKS] = {{0}};
  c[0][0] = (u32)number;
  c[1][0] = (u32)(number >> 32);
  c[3][0] = 1;
  rg_philox(c, k0, k1);
  y[0] = c[0][0];
  y[step] = c[1][0];
}
