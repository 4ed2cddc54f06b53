/* What every generated CUDA file begins with: types, and how the threads of a row work together.
 *
 * It takes the place of base.h, for nvcc and NVRTC.  Compile with --fmad=false: the plan decides what
 * is fused, as it does for C.  math.h follows it and is device code then, so that a function has
 * one definition, and the same special values, on every device.
 *
 * A launch over rows has blocks of blockDim.x threads for a row, and blockDim.y rows at a time: many
 * threads and one row, or a warp for each of some rows.  Invariant: the order in which a total is
 * added up depends on the length of a row and on blockDim.x, and on nothing else. */
#ifdef __CUDACC_RTC__
typedef long long i64;
typedef int i32;
typedef short i16;
typedef signed char i8;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#else
#include <math.h>
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
#endif
typedef float f32;
typedef double f64;

#define RG_INLINE __device__ __forceinline__

/* The row, or the element of a flat kernel, that a thread begins with, and how far it is to the
 * next one. */
#define RG_ROW ((i64)blockIdx.x * blockDim.y + threadIdx.y)
#define RG_ROWS ((i64)gridDim.x * blockDim.y)
#define RG_FLAT ((i64)blockIdx.x * blockDim.x + threadIdx.x)
#define RG_FLATS ((i64)gridDim.x * blockDim.x)

/* Every thread of a row has come here. */
RG_INLINE void rg_row_meet(void) {
  if (blockDim.x > 32) __syncthreads();
  else __syncwarp();
}

/* Makes `s`, the total of a thread, the total of the row, in all its threads.  `both` is the total
 * of `s` and another one, `o`.  Threads join within their warp, then the warps in their order. */
#define RG_ROW_TOTAL(T, s, o, both) \
  do { \
    for (int apart = 16; apart > 0; apart /= 2) { \
      const T o = (T)__shfl_down_sync(0xffffffffu, s, apart); \
      s = (T)(both); \
    } \
    if (blockDim.x > 32) { \
      __shared__ T of_warps[32]; \
      if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = s; \
      __syncthreads(); \
      s = of_warps[0]; \
      for (u32 warp = 1; warp < blockDim.x / 32; warp++) { \
        const T o = of_warps[warp]; \
        s = (T)(both); \
      } \
      __syncthreads(); /* before of_warps is written again */ \
    } else { \
      s = (T)__shfl_sync(0xffffffffu, s, 0); \
    } \
  } while (0)
