"""Every op on the native device against its reference: all dtypes, sizes from nothing to what fills
no block of a kernel, operands that lie in every way; and the same bits whatever the threads and the
memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde.compiler.codegen.launches as lowering
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import Kind, all_ops
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable
from retrograde.runtime.native.toolchain import find_toolchain
from tests.device.harness import agree, grow, same_bits
from tests.native import op_calls
from tests.native.chains import chains
from tests.native.op_calls import Calls, M, N, Sizes, op

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
EMPTY = [(0, 5), (3, 0)]
SOME = [(1, 1), (2, 7), (33, 5), (5, 33), (31, 65), (13, 131), (64, 32)]
WAYS = {
    "f32": ("plain", "transposed", "flipped"), "f64": ("transposed",), "f16": ("stretched",),
    "bf16": ("sliced",),
    "i32": ("flipped",), "u8": ("sliced",), "bool": ("transposed",),
}  # fmt: skip


@cache
def device(threads: int) -> Any:
    from retrograde.runtime.native.device import NativeDevice

    return NativeDevice(threads)


def sized(n: int, m: int) -> Sizes:
    return {"N": n, "M": m}


class Program:
    """A graph compiled for one, two and three threads, for poisoned memory and for memory that is
    never reused: all must give the same bits."""

    def __init__(self, graph: Graph, modes: Sequence[str] = ("again", "two", "three", "poison")):
        self.graph = graph
        self.runs: dict[str, Executable] = {}
        for mode in ("one", *modes):
            threads = {"two": 2, "three": 3}.get(mode, 1)
            options = Options(
                native=True, threads=threads, poison=mode == "poison", reuse=mode != "apart"
            )
            self.program = compile_graph(graph, options).program
            self.runs[mode] = Executable(self.program, device(threads), poison=options.poison)

    def __call__(self, arrays: Sequence[Array], sizes: Sizes, labels: Sequence[str]) -> list[Array]:
        found = {mode: run.run(arrays, sizes) for mode, run in self.runs.items()}
        for mode, outputs in found.items():
            for label, a, b in zip(labels, found["one"], outputs, strict=True):
                same_bits(a, b, f"{label} at {dict(sizes)}: {mode} differs from one thread")
        return found["one"]


def compare(calls: Calls, sizes: Sequence[tuple[int, int]], scale: float = 10.0) -> None:
    """Every call at every size against its reference."""
    program = Program(calls.graph)
    wrong = []
    for n, m in sizes:
        arrays = calls.arrays(sized(n, m))
        found = program(arrays, sized(n, m), calls.labels)
        with np.errstate(all="ignore"):
            expected = evaluate(calls.graph, arrays)
        for label, x, y in zip(calls.labels, found, expected, strict=True):
            try:
                agree(x, y, scale=scale)
            except AssertionError as error:
                wrong.append(f"{label} at {n}, {m}: {' '.join(str(error).split())[:300]}")
    assert not wrong, f"{len(wrong)} differ:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("dtype", op_calls.TYPES)
def test_elementwise_ops(dtype: str) -> None:
    calls = op_calls.elementwise(dtypes.dtype(dtype))
    assert len(calls.labels) > 15
    compare(calls, [*EMPTY, *SOME], scale=1e-30)


def test_casts_and_what_is_made_of_sizes() -> None:
    compare(op_calls.casts(), [*EMPTY, *SOME])


@pytest.mark.parametrize("dtype", WAYS)
def test_reductions_runs_contractions_moves(dtype: str) -> None:
    compare(op_calls.structure(dtypes.dtype(dtype), WAYS[dtype]), [*EMPTY, *SOME])


@pytest.mark.parametrize("dtype", WAYS)
def test_extremes_and_places_from_data(dtype: str) -> None:
    compare(op_calls.indexed(dtypes.dtype(dtype), WAYS[dtype]), SOME)


def test_random_bits_are_those_of_the_reference() -> None:
    compare(op_calls.draws(), [*EMPTY, *SOME, (70, 3), (3, 70)])


def test_only_sorts_and_prints_are_left_to_numpy() -> None:
    """What the calls above hold is run by kernels; what they leave out is named here."""
    left = {"sort", "argsort", "top_k", "debug_print"}
    ruled = set(lowering._RULES) | {o.name for o in all_ops() if o.kind is Kind.ELEMENTWISE}
    views = {"reshape", "transpose", "broadcast_to", "slice", "flip", "concatenate", "constant"}
    whole = {o.name for o in all_ops() if o.kind in (Kind.REGION, Kind.COMPOSITE)}
    assert {o.name for o in all_ops()} - ruled - views - whole == left
    for calls in (op_calls.draws(), op_calls.indexed(dtypes.f16, ("plain",))):
        source = compile_graph(calls.graph, Options(native=True)).program.recipes[0].source
        body = source[source.index("def run():") : source.index("return run")]
        assert body.split()[2:] == ["run0()"], body


# --- NaN, infinities, signed zeros


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
def test_extremes_and_runs_of_nan_and_infinities(dtype: str) -> None:
    kind = dtypes.dtype(dtype)
    builder = Builder("odd", Expr)
    with builder:
        x = builder.input(TensorType(kind, (N, M)))
        made = [
            op(name, x, axes=(axis,), keepdims=False) for name in ("max", "min") for axis in (0, 1)
        ]
        made += [op(f"arg{e}", x, axis=axis) for e in ("max", "min") for axis in (0, 1)]
        made += [
            op(f"cum{e}", x, axis=axis, reverse=axis == 1)
            for e in ("max", "min")
            for axis in (0, 1)
        ]
        made += [op("any", op("cast", x, dtype=dtypes.bool_), axes=(0,), keepdims=False)]
    graph = builder.finish([e.value for e in made])
    program, rng = Program(graph, ("two",)), np.random.default_rng(4)
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0])
    for n, m in SOME:
        for values in (odd, odd[1:], odd[3:5], odd[:1], odd[1:2], odd[2:3]):
            x = rng.choice(values, (n, m)).astype(kind.numpy)
            found = program([x], sized(n, m), [str(i) for i in range(len(made))])
            for a, b in zip(found, evaluate(graph, [x]), strict=True):
                np.testing.assert_array_equal(a.astype(np.float64), b.astype(np.float64))


def test_halves_are_rounded_once() -> None:
    """A sum of ones in f16 alone would stop at 2048; a region goes on with the rounded total."""
    builder = Builder("halves", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f16, (N, M)))
        total = op("sum", x, axes=(1,), keepdims=True)
        alone = op("sum", x, axes=(0,), keepdims=False)
        left = op("cast", total, dtype=dtypes.f32) - op("cast", x, dtype=dtypes.f32)
    graph = builder.finish([e.value for e in (total, alone, left)])
    program = Program(graph, ("two",))
    x = np.ones((3, 5001), np.float16)
    found = program([x], sized(*x.shape), ["total", "alone", "left"])
    assert float(found[0][0, 0]) == float(np.float16(5001)) == 5000.0
    np.testing.assert_array_equal(found[2], np.full(x.shape, 4999.0, np.float32))
    np.testing.assert_array_equal(found[1], np.full(5001, 3.0, np.float16))


# --- sums of everything, by slices


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32", "bool", "u8"])
def test_totals_of_more_than_a_slice(dtype: str) -> None:
    kind = dtypes.dtype(dtype)
    builder = Builder("totals", Expr)
    with builder:
        x = builder.input(TensorType(kind, (N, M)))
        turned = op("transpose", builder.input(TensorType(kind, (M, N))), perm=(1, 0))
        made = [op("sum", v, axes=(0, 1), keepdims=k) for v, k in ((x, False), (turned, True))]
        made.append(op("max", turned, axes=(0, 1), keepdims=False))
        made.append(op("dot_general", x, turned, contract=((0, 1), (0, 1)), batch=((), ())))
    graph = builder.finish([e.value for e in made])
    program, rng = Program(graph), np.random.default_rng(8)
    for n, m in ((3, 5), (131, 257), (1, 16384), (2, 16385)):
        arrays = [
            op_calls.numbers(kind)(rng, shape, {}) for shape in ((n, m), (m, n))
        ]
        found = program(arrays, sized(n, m), ["sum", "turned", "max", "dot"])
        for a, b in zip(found, evaluate(graph, arrays), strict=True):
            agree(a, b, scale=float(n * m) ** 0.5)


# --- data that is refused


def _updates(x: Expr) -> Any:
    return op("broadcast_to", op("sum", x, axes=(0,), keepdims=False), shape=(3, M))


REFUSED = {
    "gather": lambda x, i: op("exp", op("gather", x, i, axes=(0,), wrap=True)),
    "from the front": lambda x, i: op("gather", x, i, axes=(1,), wrap=False),
    "two axes": lambda x, i: op("gather", x, i, i, axes=(0, 1), wrap=True),
    "scatter_add": lambda x, i: op("scatter_add", x, _updates(x), i, axes=(0,)),
    "scatter_set": lambda x, i: op("scatter_set", x, _updates(x), i, axes=(0,), wrap=False),
    "max": lambda x, i: op("max", x, axes=(0, 1), keepdims=False),
    "max of rows": lambda x, i: op("exp", x - op("max", x, axes=(1,), keepdims=True)),
    "argmin": lambda x, i: op("argmin", x, axis=0),
}
BAD = [
    ((4, 5), [1, -9, 7]), ((4, 5), [-7, 1, -6]), ((4, 5), [-1, 1, 2]), ((0, 5), [0, 0, 0]),
    ((4, 0), [0, -1, 0]), ((6, 5), [2**31 - 1, 5, -(2**31)]), ((6, 3), [5, 4, 0]),
]  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_told_in_the_same_words(what: str) -> None:
    builder = Builder("refused", Expr)
    with builder:
        x = op("sin", builder.input(TensorType(dtypes.f32, (N, M))))
        i = builder.input(TensorType(dtypes.i32, (3,)))
        y = REFUSED[what](x, i)
    graph = builder.finish([y.value])
    runs = [
        Executable(compile_graph(graph, Options(native=d.name == "native")).program, d)
        for d in (get_device("numpy"), device(1), device(2))
    ]
    refused = 0
    for shape, indices in BAD:
        arrays = [np.ones(shape, np.float32), np.array(indices, np.int32)]
        said = []
        for run in runs:
            try:
                run.run(arrays, sized(*shape))
                said.append("")
            except DataError as error:
                said.append(str(error))
        assert said[1:] == said[:1] * 2
        refused += said[0] != ""
    assert refused >= 1


# --- chains of ops, which are grouped


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_chains(seed: int) -> None:
    """Elementwise ops, stretched rows and columns, row reductions: in f32 within a bound of what
    the interpreter makes of them in f64."""
    narrow, wide = (chains(seed, kind, 10) for kind in (dtypes.f32, dtypes.f64))
    program = Program(narrow.graph, ("two", "three", "poison", "apart"))
    for n, m in [(0, 3), (3, 0), (1, 1), (7, 33), (31, 1), (5, 64), (2, 97)]:
        arrays = wide.arrays(sized(n, m))
        found = program([x.astype(np.float32) for x in arrays], sized(n, m), narrow.labels)
        arrays = [x.astype(np.float32).astype(np.float64) for x in arrays]
        largest = [1.0]
        expected = evaluate(
            wide.graph, arrays, trace=lambda node, results, m=largest: grow(m, results)
        )
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * largest[0])
