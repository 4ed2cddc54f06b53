"""Kernel problems: sizes -> the arrays that a kernel reads, what it is differentiated by, its work.

A kernel is a function of some arrays; a step computes its value y and, with the cotangent `g`, the
gradients by the arrays named in `wrt`.  Every library has the functions under the same names:
benchmarks/retrograde_kernels.py, peers/torch_kernels.py, peers/jax_kernels.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RowProblem:
    """softmax, layer_norm or gelu of [rows, columns]; 16384 x 1024 is 64 MiB."""

    kind: str
    rows: int = 16384
    columns: int = 1024

    @property
    def wrt(self) -> tuple[str, ...]:
        return ("x", "gain", "bias") if self.kind == "layer_norm" else ("x",)

    @property
    def footprint(self) -> int:
        """Bytes that have to move: x and g are read, y and dx are written.

        Gain, bias and their gradients are 4 KiB each and left out.  The copy beside it
        (benchmarks/calibration.py) moves as many bytes, half read and half written, with memcpy on
        as many threads.  Whatever else a kernel moves counts against it: y read again, and lines
        that are read because they are about to be overwritten."""
        return 4 * 4 * self.rows * self.columns

    @property
    def flops(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns}, {4 * self.rows * self.columns / 2**20:g} MiB"

    def tiny(self) -> RowProblem:
        return replace(self, rows=3, columns=5)

    def inputs(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        shape = (self.rows, self.columns)
        found = {name: rng.standard_normal(shape, np.float32) for name in ("x", "g")}
        if self.kind == "layer_norm":
            found["gain"] = rng.standard_normal(self.columns, np.float32)
            found["bias"] = rng.standard_normal(self.columns, np.float32)
        return found


@dataclass(frozen=True)
class AttentionProblem:
    """Causal attention of queries, keys and values [batch, heads, length, head]."""

    length: int
    batch: int = 1
    heads: int = 4
    head: int = 32
    kind: str = "attention"
    wrt: tuple[str, ...] = ("q", "k", "v")

    @property
    def flops(self) -> float:
        """Two products forward and four backward, of which causality leaves half; what flash
        attention computes again is not counted."""
        return 6 * self.batch * self.heads * self.length**2 * self.head

    def __str__(self) -> str:
        return f"causal, T{self.length} B{self.batch}, {self.heads} heads of {self.head}"

    def tiny(self) -> AttentionProblem:
        return replace(self, length=5, head=4)

    def inputs(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        shape = (self.batch, self.heads, self.length, self.head)
        return {name: rng.standard_normal(shape, np.float32) for name in ("q", "k", "v", "g")}


@dataclass(frozen=True)
class HeadProblem:
    """A linear layer without bias and the mean cross-entropy of its logits."""

    tokens: int = 2048
    width: int = 256
    vocab: int = 32768
    kind: str = "head"
    wrt: tuple[str, ...] = ("x", "w")

    @property
    def flops(self) -> float:
        return 6 * self.tokens * self.width * self.vocab

    def __str__(self) -> str:
        return f"linear and cross-entropy, {self.tokens} tokens d{self.width} V{self.vocab}"

    def tiny(self) -> HeadProblem:
        return replace(self, tokens=5, width=4, vocab=7)

    def inputs(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        return {
            "x": rng.standard_normal((self.tokens, self.width), np.float32),
            "w": rng.standard_normal((self.width, self.vocab), np.float32)
            / np.sqrt(self.width, dtype=np.float32),
            "targets": rng.integers(0, self.vocab, self.tokens, dtype=np.int32),
            "g": np.ones((), np.float32),
        }


@dataclass(frozen=True)
class GemmProblem:
    """x @ w, [rows, inner] @ [inner, columns]; with `transposed` x is [inner, rows]: the product
    that makes the gradient of a weight."""

    rows: int
    inner: int
    columns: int
    transposed: bool = False
    wrt: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "gemm_transposed" if self.transposed else "gemm"

    @property
    def flops(self) -> float:
        return 2 * self.rows * self.inner * self.columns

    def __str__(self) -> str:
        x = (
            f"{self.inner}x{self.rows} transposed"
            if self.transposed
            else f"{self.rows}x{self.inner}"
        )
        return f"{x} @ {self.inner}x{self.columns}"

    def tiny(self) -> GemmProblem:
        return replace(self, rows=3, inner=5, columns=4)

    def inputs(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        x = (self.inner, self.rows) if self.transposed else (self.rows, self.inner)
        return {
            "x": rng.standard_normal(x, np.float32),
            "w": rng.standard_normal((self.inner, self.columns), np.float32),
        }


KernelProblem = RowProblem | AttentionProblem | HeadProblem | GemmProblem


def fingerprint(arrays: Iterable[Any]) -> list[float]:
    """Three norms of each array that tell apart values, places and signs, without cancellation."""
    found = []
    for array in arrays:
        x = np.asarray(array, np.float32).ravel()
        norm = _norm(x)
        wave = np.cos(np.arange(x.size, dtype=np.float32) % np.float32(6131))
        shift = np.float32(max(norm, 1e-30) / max(x.size, 1) ** 0.5)
        found += [norm, _norm(x * wave), _norm(x + shift * wave)]
    return found


def _norm(x: Array) -> float:
    """Summed in float64, a part at a time."""
    parts = (x[i : i + 2**16].astype(np.float64) for i in range(0, x.size, 2**16))
    return float(np.sqrt(sum(float(part @ part) for part in parts)))


def resident_bytes(problem: KernelProblem, outputs: Iterable[Any]) -> int:
    """What a kernel reads and what it returns: there before a step, or after it."""
    arrays = [*problem.inputs().values(), *outputs]
    return sum(int(np.prod(x.shape)) * 4 for x in arrays)
