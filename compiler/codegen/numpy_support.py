"""What generated schedules call: views of the arena, tiles, and ops that have no single statement.

One `Support` serves one arena on one device; `xp` is NumPy, or CuPy under `CupySupport`.
Invariant: results go to the arrays given; what is allocated beside them is bounded by a block, or
is named in the docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from retrograde.compiler.codegen.live_rows import LiveRows, counts, for_each_count
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
from retrograde.compiler.ops.segments import segments
from retrograde.compiler.ops.steps import chunks
from retrograde.compiler.plan.revolve import checkpoints

Array = Any  # an array of the module `xp`

_REDUCTIONS = {
    "sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
    "any": np.logical_or, "all": np.logical_and,
}  # fmt: skip
_RUNS = {"cumsum": np.add, "cumprod": np.multiply, "cummax": np.maximum, "cummin": np.minimum}


class Memory(Protocol):
    """An arena on a device, as generated code sees it."""

    xp: Any  # the array module: NumPy or CuPy
    # (rows run, rows of all steps, steps run, steps) of each ragged loop, in the run at hand
    ragged: dict[int, tuple[int, ...]]

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
    for_each_count = staticmethod(for_each_count)

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

    def truth(self, x: Array) -> bool:
        """A 0-d boolean as Python's."""
        return bool(x)

    def live_rows(self, mask: Array, loop: int, cut: bool) -> LiveRows:
        """What a ragged loop, the `loop`-th of the program, runs of a mask [time, batch].

        Without `cut` its turns run on all rows.  What it runs is added to what the memory notes."""
        found = self.on_host(counts(self.xp, mask)).tolist()
        steps, batch = mask.shape
        turns = sum(1 for n in found if n)
        ran = (sum(found) if cut else turns * batch, steps * batch, turns, steps)
        before = self._memory.ragged.get(loop, (0, 0, 0, 0))
        self._memory.ragged[loop] = tuple(a + b for a, b in zip(before, ran, strict=True))
        return LiveRows(found, batch)

    def on_host(self, x: Array) -> Any:
        """An array of the device as one of NumPy's."""
        return x

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
        moving: Sequence[int] = (),
    ) -> Tiles:
        """The tiles of a fused step; those of the arrays that are `moving` are stacked."""
        arrays = [*operands, *results]
        return Tiles(shape, arrays, scratch, rows, whole_rows, moving=moving)

    # --- loops in segments

    def parts(
        self, length: int, segment: int, reverse: bool, rest_last: bool,
        make: Callable[[int], Callable[[int], None]],
    ) -> list[Callable[[], None]]:  # fmt: skip
        """A function for each segment, in their order; `make` gives those of equal size."""
        cut = list(segments(length, segment, reverse, rest_last))
        made = {steps: make(steps) for steps in dict.fromkeys(steps for _, steps in cut)}
        return [partial(made[steps], start) for start, steps in cut]

    def sweep(
        self, parts: Sequence[Callable[[], None]], last: Sequence[Callable[[], None]], slots: int,
        carries: Sequence[Array], kept: Sequence[Array],
    ) -> None:  # fmt: skip
        """Runs all segments, the last one by `last`, and keeps the states that the way back begins
        with in their slots."""
        if not kept or not parts:
            for part in (*parts[:-1], *last[-1:]):
                part()
            return
        for action in checkpoints(len(parts), slots).sweep:
            if action.kind == "store":
                self._move(carries, [rows[action.slot, ...] for rows in kept])
            else:
                parts[action.segment]()
        last[-1]()

    def replay(
        self, advance: Sequence[Callable[[], None]], again: Sequence[Callable[[], None]],
        retreat: Sequence[Callable[[], None]], slots: int, kept: Sequence[Array],
    ) -> None:  # fmt: skip
        """Reverses all segments, last to first; the residuals of the last are there."""
        at_work = [rows[slots, ...] for rows in kept]
        for action in checkpoints(len(advance), slots).back:
            if action.kind == "reverse":
                if action.segment < len(again) - 1:
                    again[action.segment]()
                retreat[action.segment]()
            elif action.kind == "advance":
                advance[action.segment]()
            elif action.kind == "store":
                self._move(at_work, [rows[action.slot, ...] for rows in kept])
            else:
                self._move([rows[action.slot, ...] for rows in kept], at_work)

    def _move(self, sources: Sequence[Array], targets: Sequence[Array]) -> None:
        for source, target in zip(sources, targets, strict=True):
            target[...] = source

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
            # Row by row: in a product with a column a BLAS rounds by the place of a row.
            self.xp.vecdot(x, self.ones(x.shape[-1], x.dtype)[:, 0], out=out[..., 0])
        else:
            self.sum(x, out, axes=(x.ndim - 1,), keepdims=True)

    def row_dot(self, a: Array, b: Array, out: Array) -> None:
        """Sums of products along the last axis."""
        if a.dtype.itemsize == 2:  # summed in f32
            self.store([out], lookup("row_dot").evaluate({}, a, b))
        elif _blas(a) and b.size == b.shape[-1] == a.shape[-1] and _blas(b):
            self.xp.matmul(a, b.reshape(b.shape[-1], 1), out=out)
        else:
            self.xp.vecdot(a, b, out=out[..., 0])

    def row_max(self, x: Array, out: Array) -> None:
        self._reduce("max", x, out, (x.ndim - 1,), True)

    def row_min(self, x: Array, out: Array) -> None:
        self._reduce("min", x, out, (x.ndim - 1,), True)

    def row_prod(self, x: Array, out: Array) -> None:
        self._reduce("prod", x, out, (x.ndim - 1,), True)

    # --- reductions and running ops

    def sum(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        k = len(axes)
        leading = bool(axes) and axes == tuple(range(k)) and x.ndim > k
        if leading and _blas(x) and x.flags.c_contiguous and out.flags.c_contiguous:
            rows = int(np.prod(x.shape[:k]))
            matrix = x.reshape(rows, -1)
            self.xp.matmul(self.ones(rows, x.dtype).T, matrix, out=out.reshape(1, -1))
            return
        self._reduce("sum", x, out, axes, keepdims)

    def dot_steps(
        self, start: Array, a: Array, b: Array, out: Array, part: Array, chunk: int, reverse: bool
    ) -> None:
        """`a` is [m, k] here; `part` has room for the product of a chunk."""
        part = part.reshape(out.shape)
        if start is not out:
            out[...] = start
        for rows in chunks(len(b), max(1, chunk), reverse):
            self.xp.matmul(a[:, rows], b[rows], out=part)
            out += part

    def prod(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce("prod", x, out, axes, keepdims)

    def max(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce("max", x, out, axes, keepdims)

    def min(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce("min", x, out, axes, keepdims)

    def any(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce("any", x, out, axes, keepdims)

    def all(self, x: Array, out: Array, axes: tuple[int, ...], keepdims: bool) -> None:
        self._reduce("all", x, out, axes, keepdims)

    def cumsum(self, x: Array, out: Array, axis: int, reverse: bool) -> None:
        self._run("cumsum", x, out, axis, reverse)

    def cumprod(self, x: Array, out: Array, axis: int, reverse: bool) -> None:
        self._run("cumprod", x, out, axis, reverse)

    def cummax(self, x: Array, out: Array, axis: int, reverse: bool) -> None:
        self._run("cummax", x, out, axis, reverse)

    def cummin(self, x: Array, out: Array, axis: int, reverse: bool) -> None:
        self._run("cummin", x, out, axis, reverse)

    def _run(self, name: str, x: Array, out: Array, axis: int, reverse: bool) -> None:
        if reverse:
            back = tuple(slice(None, None, -1 if i == axis else 1) for i in range(x.ndim))
            x, out = x[back], out[back]
        self._cumulate(name, x, out, axis)

    def _reduce(self, name: str, x: Array, out: Array, axes: Any, keepdims: bool) -> None:
        if name in ("sum", "prod") and (out.dtype.itemsize == 2 or x.dtype != out.dtype):
            # Accumulated in a wider type, or cast on the way.
            out[...] = lookup(name).evaluate({"axes": axes, "keepdims": keepdims}, x)
            return
        if not x.size and name in ("max", "min"):
            self._refuse_empty(name, x, axes)
        _REDUCTIONS[name].reduce(x, axis=axes, keepdims=keepdims, out=out)

    def _refuse_empty(self, name: str, x: Array, axes: Any) -> None:
        """The reference's error for an extreme of no elements."""
        lookup(name).evaluate({"axes": axes, "keepdims": True}, np.empty(x.shape, np.float32))

    def _cumulate(self, name: str, x: Array, out: Array, axis: int) -> None:
        if out.dtype.itemsize == 2:  # carried in a wider type
            self.store([out], lookup(name).evaluate({"axis": axis, "reverse": False}, x))
        else:
            _RUNS[name].accumulate(x, axis=axis, out=out)

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
        """0 … size-1; allocates as much.  What a narrow type cannot hold wraps around."""
        wide = dtype.numpy if dtype.bytes >= 4 else np.int64
        self.xp.copyto(out, self.xp.arange(size, dtype=wide), casting="unsafe")

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
        if out.flags.c_contiguous:
            philox_bits(self.xp, key, row, out.shape, out)
        else:
            self.xp.copyto(out, philox_bits(self.xp, key, row, out.shape))

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
