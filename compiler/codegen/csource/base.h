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

/* 0, or what went wrong: a code from rg_fault and, above its 8 bits, a number to tell with it. */
enum rg_fault { RG_OK = 0, RG_INDEX = 1 };

RG_INLINE i64 rg_min(i64 a, i64 b) { return a < b ? a : b; }
RG_INLINE i64 rg_max(i64 a, i64 b) { return a > b ? a : b; }
