/* What every generated file begins with: types, and what a kernel is.
 *
 * Kernels hold no state: they read their arguments (addresses, extents, strides) and work on the
 * items [lo, hi) of a launch.  Invariant: an item's result does not depend on how items are shared
 * out, so the bits do not depend on the number of threads. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef int64_t i64;
typedef int32_t i32;
typedef int16_t i16;
typedef int8_t i8;
typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;
typedef float f32;
typedef double f64;

#define RG_INLINE static inline __attribute__((always_inline))
#define RG_RESTRICT __restrict__

/* Before a loop whose turns do not depend on each other: where a result lies in the place of an
 * operand, an element is written after it was read, in the same turn. */
#if defined(__clang__)
#define RG_SIMD _Pragma("clang loop vectorize(assume_safety)")
#else
#define RG_SIMD _Pragma("GCC ivdep")
#endif

/* What a kernel returns: 0, or what went wrong.  An index that is out of range (RG_INDEX): which of
 * the index arrays has it, and the index itself, cut to 47 bits.  An extreme of no elements
 * (RG_EMPTY): over which of the axes. */
enum rg_fault { RG_OK = 0, RG_INDEX = 1, RG_EMPTY = 2 };

static inline i64 rg_bad_index(i64 array, i64 index) {
  const i64 most = ((i64)1 << 46) - 1;
  const i64 cut = index > most ? most : index < -most ? -most : index;
  return (i64)((u64)cut << 16) | array << 8 | RG_INDEX;
}

RG_INLINE i64 rg_min(i64 a, i64 b) { return a < b ? a : b; }
RG_INLINE i64 rg_max(i64 a, i64 b) { return a > b ? a : b; }

/* Writing past the caches: whole lines of 64 bytes from a buffer to where nothing reads them soon, so
 * that memory is not read first to be overwritten.  `from` and `to` lie on such lines.  Without an
 * instruction for it, it is a copy.  After the last of them and before others read, rg_streamed(). */
#if defined(__x86_64__) && !defined(__CUDACC__)
#if defined(__AVX512F__)
#define RG_PART 64
#define RG_STREAM __builtin_ia32_movntps512
#elif defined(__AVX__)
#define RG_PART 32
#define RG_STREAM __builtin_ia32_movntps256
#else
#define RG_PART 16
#define RG_STREAM __builtin_ia32_movntps
#endif
typedef f32 rg_part __attribute__((vector_size(RG_PART), may_alias));
#if defined(__clang__)
#undef RG_STREAM
#define RG_STREAM(to, part) __builtin_nontemporal_store(part, (rg_part *)(to))
#endif
RG_INLINE void rg_stream(void *to, const void *from, i64 bytes) {
  f32 *const y = (f32 *)to;
  const i64 parts = bytes / 64 * (64 / RG_PART);
  for (i64 i = 0; i < parts; i++) RG_STREAM(y + i * (RG_PART / 4), ((const rg_part *)from)[i]);
  if (bytes % 64) memcpy(y + bytes / 64 * 16, (const f32 *)from + bytes / 64 * 16, bytes % 64);
}
RG_INLINE void rg_streamed(void) { __builtin_ia32_sfence(); }
#else
RG_INLINE void rg_stream(void *to, const void *from, i64 bytes) { memcpy(to, from, bytes); }
RG_INLINE void rg_streamed(void) {}
#endif
RG_INLINE i64 rg_on_line(const void *place) { return ((uintptr_t)place & 63) == 0; }

/* Asks for `bytes` at a place that will be read, which may lie beyond all arrays. */
RG_INLINE void rg_ahead(const void *place, i64 bytes) {
  for (i64 at = 0; at < bytes; at += 64)
    __builtin_prefetch((const void *)((uintptr_t)place + (uintptr_t)at));
}
