"""Calls of every op over the sizes N and M: dtype -> graphs whose outputs are one op each.

One graph holds dozens of calls, because one C file is compiled for it; its symbols let the same
kernels run at every size.  Invariant: operands lie in every way that views can have them lie.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.registry import Kind, all_ops, lookup
from tests.compiler.ops.samples import SAMPLES
from tests.device.op_samples import MORE

Array = npt.NDArray[Any]
N, M = dims.dim("N", min=0), dims.dim("M", min=0)
Sizes = Mapping[str, int]
Maker = Callable[[np.random.Generator, tuple[int, ...], Sizes], Array]

ELEMENTWISE = [op.name for op in all_ops() if op.kind is Kind.ELEMENTWISE and op.name != "cast"]
TYPES = ("f32", "f64", "f16", "bf16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8", "bool")
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -3e-39, 1e30, -1e30, 1.0, -1.0, 0.5)


def op(name: str, *operands: Any, **attrs: Any) -> Any:
    return lookup(name)(*operands, **attrs)


def numbers(dtype: DType, special: bool = False) -> Maker:
    """Numbers of both signs; with `special` every tenth is one that floats treat apart."""

    def make(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> Array:
        if dtype.name == "bool":
            return np.asarray(rng.uniform(size=shape) < 0.5)
        if not dtype.is_float:
            low = 0 if dtype.kind == "uint" else -9
            return np.asarray(rng.integers(low, 10, shape)).astype(dtype.numpy)
        x = np.asarray(rng.standard_normal(shape))
        if special:
            odd = rng.choice(np.array(SPECIAL), shape)
            x = np.where(rng.uniform(size=shape) < 0.1, odd, x)
        with np.errstate(over="ignore"):
            return x.astype(dtype.numpy)

    return make


def places(size: Callable[[Sizes], int], dtype: str = "int32") -> Maker:
    """Indices into an axis, from both ends where the type has negative numbers."""

    def make(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> Array:
        n = size(sizes)
        low = 0 if dtype.startswith("u") else -n
        return np.asarray(rng.integers(low, n, shape)).astype(dtype)

    return make


@dataclass
class Calls:
    """A graph in the making, with what its inputs are made of and what its outputs are."""

    name: str
    builder: Builder = field(init=False)
    makers: list[Maker] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    outputs: list[Expr] = field(default_factory=list)
    graph: Graph = field(init=False)

    def __post_init__(self) -> None:
        self.builder = Builder(self.name, Expr)

    def input(self, maker: Maker, dtype: DType, *shape: Dim) -> Expr:
        self.makers.append(maker)
        found: Expr = self.builder.input(TensorType(dtype, shape))
        return found

    def call(self, label: str, name: str, *operands: Expr, **attrs: Any) -> None:
        """Adds the results of an op, unless it does not take the type."""
        try:
            results = op(name, *operands, **attrs)
        except DTypeError:
            return
        results = results if isinstance(results, tuple) else (results,)
        self.outputs += results
        self.labels += [label] * len(results)

    def finish(self) -> Calls:
        self.graph = self.builder.finish([e.value for e in self.outputs])
        return self

    def arrays(self, sizes: Sizes) -> list[Array]:
        """Inputs: different data at every size and in every array."""
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), *sizes.values()])
        shapes = [
            tuple(dims.evaluate(d, dict(sizes)) for d in v.shape) for v in self.graph.inputs
        ]
        return [make(rng, shape, sizes) for make, shape in zip(self.makers, shapes, strict=True)]


def views(calls: Calls, maker: Maker, dtype: DType, *shape: Dim) -> Iterator[tuple[str, Expr]]:
    """Arrays of `shape` as they lie in memory, transposed, each second row, flipped, stretched."""
    rank = len(shape)
    back = tuple(range(rank - 1, -1, -1))
    yield "plain", calls.input(maker, dtype, *shape)
    yield "transposed", op("transpose", calls.input(maker, dtype, *shape[::-1]), perm=back)
    wide = calls.input(maker, dtype, 2 * shape[0] + 1, *(d + 3 for d in shape[1:]))
    start, step = (1, *(2,) * (rank - 1)), (2, *(1,) * (rank - 1))
    stop = (2 * shape[0] + 1, *(d + 2 for d in shape[1:]))
    yield "sliced", op("slice", wide, start=start, stop=stop, step=step)
    yield "flipped", op("flip", calls.input(maker, dtype, *shape), axes=(0, rank - 1))
    yield "stretched", op("broadcast_to", calls.input(maker, dtype, *shape[1:]), shape=shape)


def elementwise(dtype: DType) -> Calls:
    """Every elementwise op: rows that lie in five ways, and a scalar."""
    calls = Calls(f"elementwise_{dtype}")
    maker = numbers(dtype, special=True)
    with calls.builder:
        x = dict(views(calls, maker, dtype, N, M))
        y = dict(views(calls, maker, dtype, N, M))
        flag = calls.input(numbers(dtypes.bool_), dtypes.bool_, N, M)
        for name in ELEMENTWISE:
            arity = len((SAMPLES.get(name) or MORE[name])[0].makers)
            if lookup(name).promotion == "float" and not dtype.is_float:
                continue  # a cast, and then the op of floats
            if name == "select":
                calls.call(name, name, flag, x["plain"], y["transposed"])
                calls.call(name, name, flag, x["stretched"], y["flipped"])
            elif arity == 1:
                calls.call(name, name, x["plain"])
            elif name == "pow" and dtype.kind == "int":  # NumPy refuses negative powers
                calls.call(name, name, x["plain"], op("abs", y["plain"]))
            else:
                calls.call(name, name, x["plain"], y["plain"])
        for way in ("transposed", "sliced", "flipped", "stretched"):
            calls.call(f"abs {way}", "abs", x[way])
            calls.call(f"add {way}", "add", x["plain"], y[way])
            calls.call(f"mul {way}", "maximum", x[way], y[way])
    return calls.finish()


def casts() -> Calls:
    """Every type to every type, and arrays that sizes make."""
    calls = Calls("casts")
    with calls.builder:
        for dtype in map(dtypes.dtype, TYPES):
            x = calls.input(numbers(dtype), dtype, N, M)
            for other in TYPES:  # but for a negative float, which has no unsigned integer
                if other != dtype.name and (other[0] != "u" or not dtype.is_float):
                    to = dtypes.dtype(other)
                    calls.call(f"cast {dtype} to {other}", "cast", x, dtype=to)
            calls.call(f"iota {dtype}", "iota", size=N + M, dtype=dtype)
            calls.call(f"size {dtype}", "dim_value", size=M, dtype=dtype)
    return calls.finish()


def structure(dtype: DType, ways: Sequence[str]) -> Calls:
    """Reductions, runs, contractions, moves: at all sizes, zero among them."""
    calls = Calls(f"structure_{dtype}")
    maker = numbers(dtype)
    with calls.builder:
        cubes = dict(views(calls, maker, dtype, N, 3, M))
        flat = dict(views(calls, maker, dtype, N, M))
        for way in ways:
            z, x = cubes[way], flat[way]
            for name in ("sum", "prod", "any", "all"):
                for axes in ((0,), (1,), (2,), (0, 2), (0, 1), (1, 2), (0, 1, 2), ()):
                    if name in ("sum", "any") or len(axes) == 2:
                        keep = len(axes) % 2 == 0
                        label = f"{name} {way} {axes}"
                        calls.call(label, name, z, axes=axes, keepdims=keep)
            for name in ("cumsum", "cumprod", "cummax", "cummin"):
                for axis in range(3):
                    back = (axis + len(name)) % 2 == 0
                    label = f"{name} {way} {axis}"
                    calls.call(label, name, z, axis=axis, reverse=back)
            for axis in range(2):
                calls.call(
                    f"recurrence {way}", "linear_recurrence", x, flat["plain"], axis=axis,
                    reverse=axis == 1,
                )
            calls.call(f"row_dot {way}", "row_dot", x, flat["plain"])
            other = calls.input(maker, dtype, M, 5)
            calls.call(f"dot {way}", "dot_general", x, other, contract=((1,), (0,)), batch=((), ()))
            calls.call(
                f"gram {way}", "dot_general", x, flat["sliced"], contract=((1,), (1,)),
                batch=((), ()),
            )
            calls.call(
                f"batched {way}", "dot_general", z, cubes["plain"], contract=((2,), (2,)),
                batch=((0,), (0,)),
            )
            calls.call(
                f"outer {way}", "dot_general", x, other, contract=((), ()), batch=((1,), (0,))
            )
            calls.call(
                f"all {way}", "dot_general", x, flat["plain"], contract=((0, 1), (0, 1)),
                batch=((), ()),
            )
            moves(calls, way, x, z, flat, cubes)
    return calls.finish()


def moves(
    calls: Calls, way: str, x: Expr, z: Expr, flat: Mapping[str, Expr], cubes: Mapping[str, Expr]
) -> None:
    calls.call(f"concatenate {way}", "concatenate", x, flat["flipped"], x, axis=1)
    calls.call(f"concatenate {way}", "concatenate", z, cubes["transposed"], axis=1)
    calls.call(
        f"pad {way}", "pad", x, low=(1, 2), high=(0, 1), interior=(0, 0), value=1.0
    )
    window = op("slice", flat["plain"], start=(0, 0), stop=(N, M), step=(1, 1))
    wide = op("pad", x, low=(1, 2), high=(2, 0), interior=(0, 0), value=0.0)
    calls.call(f"set_slice {way}", "set_slice", wide, window, start=(2, 1), step=(1, 1))
    calls.call(f"reshape {way}", "reshape", z, shape=(3 * N * M,))
    calls.call(f"transpose {way}", "reshape", op("transpose", z, perm=(2, 0, 1)), shape=(M, 3 * N))


def indexed(dtype: DType, ways: Sequence[str]) -> Calls:
    """What needs elements: extremes, their places, gathers, scatters (N and M at least 1)."""
    calls = Calls(f"indexed_{dtype}")
    maker = numbers(dtype)

    def rows(sizes: Sizes) -> int:
        return sizes["N"]

    def columns(sizes: Sizes) -> int:
        return sizes["M"]

    with calls.builder:
        cubes = dict(views(calls, maker, dtype, N, 3, M))
        flat = dict(views(calls, maker, dtype, N, M))
        i = calls.input(places(rows), dtypes.i32, 2, 7)
        j = calls.input(places(rows, "uint8"), dtypes.u8, 5)
        k = calls.input(places(columns, "int64"), dtypes.i64, 5)
        back = calls.input(places(columns), dtypes.i32, N)
        turned = op("transpose", calls.input(places(rows), dtypes.i32, 7, 2), perm=(1, 0))
        for way in ways:
            z, x = cubes[way], flat[way]
            for name in ("max", "min"):
                for axes in ((0,), (2,), (0, 2), (1, 2), (0, 1, 2)):
                    label = f"{name} {way} {axes}"
                    calls.call(label, name, z, axes=axes, keepdims=len(axes) == 2)
            for name in ("argmax", "argmin"):
                for axis in range(3):
                    label = f"{name} {way} {axis}"
                    calls.call(label, name, z, axis=axis, keepdims=axis == 1)
            every = [
                ("rows", x, (0,), (i,)), ("turned", x, (0,), (turned,)), ("columns", x, (1,), (k,)),
                ("both", x, (0, 1), (j, k)), ("middle", z, (1,), (_thirds(j),)),
                ("ends", z, (0, 2), (j, k)), ("deep", z, (0,), (i,)), ("last", z, (2,), (back,)),
            ]  # fmt: skip
            for what, a, axes, indices in every:
                calls.call(f"gather {what} {way}", "gather", a, *indices, axes=axes, wrap=True)
                rest = [d for n, d in enumerate(a.shape) if n not in axes]
                updates = calls.input(maker, dtype, *indices[0].shape, *rest)
                if what == "deep":
                    perm = (3, 0, 1, 2)
                    shape = tuple(updates.shape[p] for p in (1, 2, 3, 0))
                    updates = op("transpose", calls.input(maker, dtype, *shape), perm=perm)
                for name in ("scatter_add", "scatter_set"):
                    label = f"{name} {what} {way}"
                    calls.call(label, name, a, updates, *indices, axes=axes, wrap=True)
        front = op("cast", j, dtype=dtypes.i64)
        calls.call("gather front", "gather", flat["plain"], front, axes=(0,), wrap=False)
    return calls.finish()


def _thirds(j: Expr) -> Expr:
    """Indices into an axis of three."""
    three = op("constant", value=3, dtype=j.dtype)
    return op("mod", j, three)  # type: ignore[no-any-return]


def draws() -> Calls:
    """Random bits and keys."""
    calls = Calls("draws")

    def key(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> Array:
        return np.array([sizes["N"] * 77 + 1, 4_000_000_000], np.uint32)

    def first(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> Array:
        return np.asarray(2**33 - 2 if sizes["M"] % 2 else -1, np.int64)

    with calls.builder:
        calls.input(numbers(dtypes.f32), dtypes.f32, N, M)  # so that the sizes are known
        k = calls.input(key, dtypes.u32, 2)
        row = calls.input(first, dtypes.i64)
        for shape in ((), (N,), (N, M), (N, 3, M), (3, N, 2), (M, 8)):
            calls.call(f"random_bits {shape}", "random_bits", k, row, shape=shape)
        calls.call("random_fold", "random_fold", k, row)
        calls.call("random_fold u32", "random_fold", k, op("cast", row, dtype=dtypes.u32))
        bits = op("random_bits", k, row, shape=(N, M))
        both = op("concatenate", bits, op("random_bits", k, row, shape=(N, 5)), axis=1)
        calls.outputs.append(both)
        calls.labels.append("random_bits into a part")
        turned = op("random_bits", op("flip", k, axes=(0,)), row, shape=(M,))
        calls.outputs.append(turned)
        calls.labels.append("random_bits of a flipped key")
    return calls.finish()
