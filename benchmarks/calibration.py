"""The two limits of the machine, measured in turn with the rest: multiply-adds and copies.

Both run on as many threads as the contenders.  Multiply-adds: twelve independent chains on vector
registers, no memory; the width is that of generated code.  Copies: the C library's memcpy of one
part a thread, which streams past the caches.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.measure import Contender

CHAINS = 12

EACH = range(CHAINS)
SOURCE = f"""
i64 rg_chains(i64 turns, f32 *out) {{
  const rg_gv_f32 a = RG_GEMM_SET_f32(0.999f), b = RG_GEMM_SET_f32(0.001f);
  {" ".join(f"rg_gv_f32 c{i} = RG_GEMM_SET_f32(0.{i}f);" for i in EACH)}
  for (i64 t = 0; t < turns; t++) {{
    {" ".join(f"c{i} = RG_GEMM_FMA_f32(c{i}, a, b);" for i in EACH)}
  }}
  *out = {" + ".join(f"c{i}[0]" for i in EACH)};
  return (i64)(sizeof(rg_gv_f32) / sizeof(f32));
}}
"""


@dataclass(frozen=True)
class MultiplyAdds:
    """So many operations, a multiply-add counting two."""

    flops: float = 4e9


@dataclass(frozen=True)
class Copy:
    """So many bytes moved: half of them read, half written."""

    footprint: int


def multiply_adds(problem: MultiplyAdds, threads: int) -> Contender:
    """What the processor can do at most."""
    from retrograde.compiler.codegen import csource
    from retrograde.runtime.native.toolchain import load, shared_library

    text = csource.part("base") + csource.part("gemm") + SOURCE
    chains = load(shared_library(text, None, name="calibration")).rg_chains
    chains.argtypes, chains.restype = (ctypes.c_int64, ctypes.c_void_p), ctypes.c_int64
    outs = [ctypes.c_float() for _ in range(threads)]
    width = chains(1, ctypes.byref(outs[0]))
    turns = int(problem.flops / (2 * CHAINS * width * threads))
    pool = ThreadPoolExecutor(threads)

    def step() -> None:
        list(pool.map(lambda out: chains(turns, ctypes.byref(out)), outs))

    return Contender(step=step, persistent_bytes=0, numbers=lambda: ())


def copy(problem: Copy, threads: int) -> Contender:
    """What the memory can do."""
    import numpy as np

    source = np.ones(problem.footprint // 2, np.uint8)
    target = np.zeros(problem.footprint // 2, np.uint8)
    memcpy = ctypes.CDLL(None).memcpy
    memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    bounds = [64 * (source.size * i // threads // 64) for i in range(threads)] + [source.size]
    pool = ThreadPoolExecutor(threads)

    def part(i: int) -> None:
        lo, hi = bounds[i], bounds[i + 1]
        memcpy(target.ctypes.data + lo, source.ctypes.data + lo, hi - lo)

    def step() -> None:
        list(pool.map(part, range(threads)))

    return Contender(step=step, persistent_bytes=2 * source.size, numbers=lambda: ())
