"""What generated schedules call: views of the arena, tiles, and ops that have no single statement.

One `Support` serves one arena on one device; `xp` is NumPy or CuPy.  Invariant: results go to the
arrays given; what is allocated beside them is bounded by a block, or is named in the docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from retrograde.compiler.codegen.tiles import Tiles
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.index_kernels import (
    gather_into,
    scatter_add_into,
    scatter_set_into,
)
from retrograde.compiler.ops.random import philox_bits, philox_fold

Array = Any  # an array of the module `xp`


class Memory(Protocol):
    """An arena on a device, as generated code sees it."""

    xp: Any  # the array module: NumPy or CuPy

    def view(
        self, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None
    ) -> Array:
        """An array on the arena; strides in bytes, None for row-major."""
        ...

    def fill(self, offset: int, bytes: int) -> None:
        """Overwrites dead memory, in the poison mode."""
        ...

    def special(self) -> Any:
        """The module with `erf`."""
        ...


class Support:
    """The functions of generated code over one arena; `sizes` are the bytes of its buffers."""

    dtype = staticmethod(dtypes.dtype)

    def __init__(self, memory: Memory, sizes: Sequence[int]) -> None:
        self.xp = memory.xp
        self._memory = memory
        self._sizes = sizes
        self._ones: dict[tuple[int, Any], Array] = {}

    @property
    def special(self) -> Any:
        """scipy.special or its twin, imported when a schedule first needs it."""
        return self._memory.special()

    def view(
        self,
        offset: int,
        dtype: str,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
    ) -> Array:
        """An array on the arena; strides in bytes."""
        return self._memory.view(offset, dtypes.dtype(dtype).numpy, shape, strides)

    def constant(self, dtype: str, value: float) -> Array:
        """A 0-d array: cheaper for a ufunc than a scalar."""
        return self.xp.asarray(value, dtype=dtypes.dtype(dtype).numpy)

    def full(self, dtype: str, shape: tuple[int, ...], value: float) -> Array:
        """A constant output, outside of the arena: it is handed out as it is."""
        return self.xp.full(shape, value, dtype=dtypes.dtype(dtype).numpy)

    def require(self, lower: int, upper: int, message: str) -> None:
        """A check of sizes that only a run can make."""
        if lower > upper:
            raise ShapeError(f"{message}: {lower} exceeds {upper} at these sizes")

    def poison(self, at: Sequence[int], buffer: int) -> None:
        """Overwrites a dead buffer, in the poison mode."""
        self._memory.fill(at[buffer], self._sizes[buffer])

    def tiles(
        self,
        shape: tuple[int, ...],
        operands: Sequence[Array],
        results: Sequence[Array],
        scratch: Sequence[Array],
        rows: Sequence[bool],
        whole_rows: bool,
    ) -> Tiles:
        """The tiles of a fused step; a device without a cache to block for takes one tile."""
        arrays = [*operands, *results]
        return Tiles(shape, arrays, scratch, rows, whole_rows)

    # --- rows within a tile: reductions over the last axis, which stays with size 1

    def ones(self, n: int, dtype: Any) -> Array:
        """A column of ones: a sum by BLAS takes a fifth of the time of `add.reduce`."""
        key = (n, dtype)
        found = self._ones.get(key)
        if found is None:
            found = self._ones[key] = self.xp.ones((n, 1), dtype)
        return found

    def row_sum(self, x: Array, out: Array) -> None:
        if _blas(x):
            self.xp.matmul(x, self.ones(x.shape[-1], x.dtype), out=out)
        else:
            self.sum(x, out, axes=(x.ndim - 1,), keepdims=True)

    def row_dot(self, a: Array, b: Array, out: Array) -> None:
        """Sums of products along the last axis."""
        if _blas(a) and b.size == b.shape[-1] == a.shape[-1] and _blas(b):
            self.xp.matmul(a, b.reshape(b.shape[-1], 1), out=out)
        else:
            self.xp.vecdot(a, b, out=out[..., 0])

    def row_max(self, x: Array, out: Array) -> None:
        self.xp.maximum.reduce(x, axis=-1, keepdims=True, out=out)

    def row_min(self, x: Array, out: Array) -> None:
        self.xp.minimum.reduce(x, axis=-1, keepdims=True, out=out)

    def row_prod(self, x: Array, out: Array) -> None:
        self.xp.multiply.reduce(x, axis=-1, keepdims=True, out=out)

    # --- reductions

    def sum(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        k = len(axes)
        if axes == tuple(range(k)) and x.ndim > k and _blas(x) and x.flags.c_contiguous:
            rows = int(np.prod(x.shape[:k]))
            matrix = x.reshape(rows, -1)
            self.xp.matmul(self.ones(rows, x.dtype).T, matrix, out=out.reshape(1, -1))
            return
        self._reduce(self.xp.add, x, out, axes, keepdims)

    def prod(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce(self.xp.multiply, x, out, axes, keepdims)

    def max(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._extreme("max", self.xp.maximum, x, out, axes, keepdims)

    def min(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._extreme("min", self.xp.minimum, x, out, axes, keepdims)

    def any(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self.xp.logical_or.reduce(x, axis=axes, keepdims=keepdims, out=out)

    def all(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self.xp.logical_and.reduce(x, axis=axes, keepdims=keepdims, out=out)

    def _reduce(self, ufunc: Any, x: Array, out: Array, axes: Any, keepdims: bool) -> None:
        name = {"add": "sum", "multiply": "prod"}[ufunc.__name__.removeprefix("cupy_")]
        if out.dtype.itemsize == 2 or x.dtype != out.dtype:  # accumulated wider, or cast on the way
            out[...] = lookup(name).evaluate({"axes": axes, "keepdims": keepdims}, x)
        else:
            ufunc.reduce(x, axis=axes, keepdims=keepdims, out=out)

    def _extreme(
        self, name: str, ufunc: Any, x: Array, out: Array, axes: Any, keepdims: bool
    ) -> None:
        if x.size == 0:
            lookup(name).evaluate({"axes": axes, "keepdims": keepdims}, x)  # raises if it must
        ufunc.reduce(x, axis=axes, keepdims=keepdims, out=out)

    # --- places that come from data

    def gather(self, x: Array, *rest: Array, axes: tuple[int, ...], wrap: bool = True) -> None:
        *indices, out = rest
        gather_into(self.xp, out, x, axes, indices, wrap)

    def scatter_add(
        self, x: Array, updates: Array, *rest: Array, axes: tuple[int, ...], wrap: bool = True
    ) -> None:
        *indices, out = rest
        if out is not x:  # in place otherwise
            self.xp.copyto(out, x)
        scatter_add_into(self.xp, out, updates, axes, indices, wrap)

    def scatter_set(
        self, x: Array, updates: Array, *rest: Array, axes: tuple[int, ...], wrap: bool = True
    ) -> None:
        *indices, out = rest
        if out is not x:  # in place otherwise
            self.xp.copyto(out, x)
        scatter_set_into(self.xp, out, updates, axes, indices, wrap)

    # --- creation, padding, random bits

    def iota(self, out: Array, size: int, dtype: DType) -> None:
        """0 … size-1; allocates as much."""
        self.xp.copyto(out, self.xp.arange(size, dtype=dtype.numpy))

    def fill_size(self, out: Array, size: int, dtype: DType) -> None:
        out[...] = size

    def pad(
        self, x: Array, out: Array, low: Any, high: Any, interior: Any, value: float
    ) -> None:
        out[...] = value
        place = tuple(
            slice(a, a + max(n * (k + 1) - k, 0), k + 1)
            for a, k, n in zip(low, interior, x.shape, strict=True)
        )
        self.xp.copyto(out[(*place, ...)], x)

    def set_slice(self, x: Array, y: Array, out: Array, start: Any, step: Any) -> None:
        if out is not x:  # in place otherwise
            self.xp.copyto(out, x)
        place = tuple(
            slice(a, a + max((n - 1) * k + 1, 0), k)
            for a, k, n in zip(start, step, y.shape, strict=True)
        )
        self.xp.copyto(out[(*place, ...)], y)

    def random_bits(self, key: Array, row: Array, out: Array, shape: Any, dtype: DType) -> None:
        philox_bits(self.xp, key, row, out.shape, out)

    def random_fold(self, key: Array, data: Array, out: Array) -> None:
        philox_fold(self.xp, key, data, out)

    # --- everything else: by the reference of the op, copied into the arena

    def evaluator(self, name: str, attrs: Mapping[str, Any]) -> Callable[..., Any]:
        op = lookup(name)
        return lambda *operands: op.evaluate(attrs, *operands)

    def store(self, results: Sequence[Array], values: Any) -> None:
        """Copies what a reference returned; it allocated the values itself."""
        values = values if isinstance(values, tuple) else (values,)
        for out, value in zip(results, values if results else (), strict=True):
            self.xp.copyto(out, value)


def _blas(x: Array) -> bool:
    """Whether BLAS sums along the last axis of `x` without a copy."""
    if x.dtype.kind != "f" or x.dtype.itemsize < 4 or x.size == 0 or x.ndim == 0:
        return False
    item = x.dtype.itemsize
    rows_apart = x.ndim < 2 or x.strides[-2] >= x.shape[-1] * item
    return bool(x.strides[-1] == item and rows_apart)
