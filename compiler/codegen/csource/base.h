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
