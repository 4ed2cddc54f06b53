"""The tiled attention kernels, compiled for tests: arrays in, arrays out."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.csource import part
from retrograde.compiler.ops.random import philox_bits

Array = npt.NDArray[Any]

PARTS = ("base", "attention", "attention_masks", "attention_forward", "attention_backward")
FLAGS = [
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fwrapv"),
    *("-std=gnu11", "-fPIC", "-shared"),
]
MAIN = """
i64 forward(const i64 *a, i64 l, i64 h, i64 part) { return rg_attention_forward(a, l, h, part); }
i64 backward(const i64 *a, i64 l, i64 h, i64 part) { return rg_attention_backward(a, l, h, part); }
i64 sum(const i64 *a, i64 l, i64 h, i64 part) { return rg_attention_sum(a, l, h, part); }
i64 scratch(i64 width, i64 values, i64 block) { return rg_attention_scratch(width, values, block); }
"""
_STRUCT = re.search(r"struct rg_attention \{(.*?)\n\};", part("attention"), re.DOTALL)
assert _STRUCT is not None
NAMES = tuple(re.findall(r"\w+(?=[,;])", re.sub(r"/\*.*?\*/", "", _STRUCT[1], flags=re.DOTALL)))
FAR = 1 << 60


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def library(folder: Path, *flags: str) -> ctypes.CDLL:
    """The kernels, compiled with FLAGS and `flags`."""
    cc = compiler()
    assert cc is not None
    source, out = folder / "attention.c", folder / "attention.so"
    source.write_text("\n".join([*map(part, PARTS), MAIN]))
    subprocess.run([cc, *FLAGS, *flags, "-o", out, source, "-lm"], check=True)
    lib = ctypes.CDLL(str(out))
    for name in ("forward", "backward", "sum", "scratch"):
        function = getattr(lib, name)
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    lib.scratch.argtypes = [ctypes.c_int64] * 3
    return lib


def steps(x: Array) -> list[int]:
    return [s // x.itemsize for s in x.strides]


def bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


@dataclass
class Call:
    """One attention: q [B, H, T, D], k [B, G, S, D], v [B, G, S, E]; any strides but the last."""

    q: Array
    k: Array
    v: Array
    scale: float = 1.0
    low: int = -FAR
    high: int = FAR
    lengths: Array | None = None
    query_segments: Array | None = None
    key_segments: Array | None = None
    mask: Array | None = None
    bias: Array | None = None
    drop: tuple[Array, int, float] | None = None  # key, row, chance to keep
    block: int = 256
    parts: int = 1
    words: dict[str, int] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        b, h, t, d = self.q.shape
        g, s, e = self.v.shape[1:]
        w = dict.fromkeys(NAMES, 0)
        w |= {"batch": b, "heads": h, "key_heads": g, "queries": t, "keys": s, "width": d}
        w |= {"values": e, "scale": bits(self.scale), "low": self.low, "high": self.high}
        w |= {"block": self.block, "parts": self.parts}
        self.words = w
        self._put("q", self.q, "qb", "qh", "qi")
        self._put("k", self.k, "kb", "kh", "kj")
        self._put("v", self.v, "vb", "vh", "vj")
        self._put("lengths", self.lengths, "nb")
        self._put("query_segments", self.query_segments, "sb")
        self._put("key_segments", self.key_segments, "tb")
        self._put("mask", self.mask, "mb", "mh", "mi", "mj")
        self._put("bias", self.bias, "ab", "ah", "ai", "aj")
        if self.drop is not None:
            key, row, chance = self.drop
            self._put("drop_key", key)
            self._put("drop_row", np.array(row, np.int64))
            w |= {"limit": int(np.ceil(np.float32(chance) * 2.0**24)), "keep": bits(1 / chance)}
            w |= {"rb": 1, "eh": t * s, "ei": s}

    def _put(self, name: str, x: Array | None, *strides: str) -> None:
        if x is None:
            return
        self.kept.append(x)
        self.words[name] = x.ctypes.data
        self.words |= dict(zip(strides, steps(x), strict=False))

    def _run(self, lib: ctypes.CDLL, name: str, items: int, threads: int) -> None:
        need = lib.scratch(self.q.shape[3], self.v.shape[3], self.block)
        scratch = np.full(threads * need, np.nan, np.float32)
        self.words |= {"scratch": scratch.ctypes.data, "scratch_stride": need}
        words = np.array([self.words[n] for n in NAMES], np.int64)
        cuts = [items * i // threads for i in range(threads + 1)]
        call = getattr(lib, name)
        if threads == 1:
            assert call(words.ctypes.data, 0, items, 0) == 0
            return
        with ThreadPoolExecutor(threads) as pool:
            jobs = [
                pool.submit(call, words.ctypes.data, cuts[i], cuts[i + 1], i)
                for i in range(threads)
            ]
            assert [job.result() for job in jobs] == [0] * threads

    def forward(self, lib: ctypes.CDLL, threads: int = 1) -> tuple[Array, Array]:
        """out [B, H, T, E], which lies as [B, T, H, E], and lse [B, H, T]."""
        b, h, t, _ = self.q.shape
        out = np.full((b, t, h, self.v.shape[3]), np.nan, np.float32).transpose(0, 2, 1, 3)
        lse = np.full((b, h, t), np.nan, np.float32)
        self._put("out", out, "ob", "oh", "oi")
        self._put("lse", lse, "lb", "lh")
        self._run(lib, "forward", b * h * -(-t // 64), threads)
        return out, lse

    def backward(
        self, lib: ctypes.CDLL, dout: Array, threads: int = 1
    ) -> tuple[Array, Array, Array]:
        """dq, dk, dv, after `forward`."""
        b, h, t, d = self.q.shape
        dq = np.full((b, h, t, d), np.nan, np.float32)
        self._put("more", np.full((self.parts - 1, b, h, t, d), np.nan, np.float32))
        dk, dv = (np.full(x.shape, np.nan, np.float32) for x in (self.k, self.v))
        self._put("dout", dout, "gb", "gh", "gi")
        self._put("dq", dq, "dqb", "dqh", "dqi")
        self._put("dk", dk, "dkb", "dkh", "dkj")
        self._put("dv", dv, "dvb", "dvh", "dvj")
        self._run(lib, "backward", b * self.k.shape[1] * self.parts, threads)
        if self.parts > 1:
            self._run(lib, "sum", b * h * -(-t // 64), threads)
        return dq, dk, dv

    def allowed(self) -> Array:
        """[B, H, T, S]: the pairs that all predicates and the mask leave open."""
        (b, h, t, _), s = self.q.shape, self.k.shape[2]
        gap = np.arange(s) - np.arange(t)[:, None]
        out = np.broadcast_to((self.low <= gap) & (gap <= self.high), (b, h, t, s))
        if self.lengths is not None:
            out = out & (np.arange(s) < self.lengths[:, None, None, None])
        if self.query_segments is not None and self.key_segments is not None:
            out = out & (self.query_segments[:, None, :, None] == self.key_segments[:, None, None])
        return out if self.mask is None else out & (self.mask != 0)

    def stays(self) -> Array:
        """[B, H, T, S]: what a weight is multiplied by."""
        (b, h, t, _), s = self.q.shape, self.k.shape[2]
        if self.drop is None:
            return np.ones((b, h, t, s))
        key, row, chance = self.drop
        words = philox_bits(np, key, np.array(row, np.int64), (b, h, t, s))
        unit = (words >> 8).astype(np.float32) * np.float32(2.0**-24)
        return np.where(unit < np.float32(chance), 1 / chance, 0.0)

    def truth(self, dout: Array) -> tuple[Array, Array, Array, Array, Array]:
        """out, lse, dq, dk, dv in float64 from the formulas."""
        q, k, v, g = (x.astype(np.float64) for x in (self.q, self.k, self.v, dout))
        group = q.shape[1] // k.shape[1]
        k, v = (np.repeat(x, group, 1) for x in (k, v))
        scores = q @ k.swapaxes(-1, -2) * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        scores = np.where(self.allowed(), scores, -np.inf)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        e = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = e.sum(-1, keepdims=True)
        weights, stays = e / np.where(total == 0, 1, total), self.stays()
        with np.errstate(divide="ignore"):
            lse = (np.where(total == 0, 0, top) + np.log(total))[..., 0]
        slopes = g @ v.swapaxes(-1, -2) * stays
        slopes = weights * (slopes - (slopes * weights).sum(-1, keepdims=True)) * self.scale

        def per_key_head(x: Array) -> Array:
            return x.reshape(x.shape[0], x.shape[1] // group, group, *x.shape[2:]).sum(2)

        dk = per_key_head(slopes.swapaxes(-1, -2) @ q)
        dv = per_key_head((weights * stays).swapaxes(-1, -2) @ g)
        return (weights * stays) @ v, lse, slopes @ k, dk, dv
