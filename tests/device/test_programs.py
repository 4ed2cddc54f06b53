"""Programs as a whole: effects in order, long rows, names of sizes, checks of sizes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.ir.text import parse
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.runtime.protocol import Device
from tests.device.harness import MODES, check, executable

B, T = dims.dim("B"), dims.dim("T", min=0)
F64 = dtypes.f64


def test_effects_come_in_order(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    text = """dims T>=0
    graph f(%0: f64[], %1: f64[T], %2: f64[50,60]) {
      %3: f64[50,60] = exp %2
      %4: f64[] = sum %3 {axes=(0,1), keepdims=False}
      = debug_print %4 {format="start {:.0f}"}
      %5: f64[] = scan %0, %1 {
        body=graph body(%0: f64[], %1: f64[]) {
          %2: f64[] = add %0, %1
          = debug_print %2, %1 {format="turn {:.0f} {:.0f}"}
          %3: f64[] = neg %2
          = debug_print %3 {format="back {:.0f}"}
          return %2
        }, carries=1, length=dim(T), reverse=True, slices=1}
      = debug_print %5 {format="end {:.0f}"}
      %6: f64[] = neg %0
      = debug_print %6 {format="after {:.0f}"}
      return %5 }"""
    graph = parse(text)
    arrays = [np.asarray(1.0), np.array([10.0, 20.0, 30.0]), np.zeros((50, 60))]
    evaluate(graph, arrays)
    expected = capsys.readouterr().out
    assert expected.split("\n")[:4] == ["start 3000", "turn 31 30", "back -31", "turn 51 20"]
    for options in MODES.values():
        _, run = executable(graph, device, options)
        run.run(arrays, {"T": 3})
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("shape", ((100_000,), (3, 70_000), (2, 3, 70_001)), ids=str)
def test_rows_longer_than_a_tile(device: Device, shape: tuple[int, ...]) -> None:
    """Sums along the row, and one number a row that is updated in place beside the row."""
    builder = Builder("long", Expr)
    last = len(shape) - 1
    with builder:
        x = builder.input(TensorType(F64, shape))
        m = builder.input(TensorType(F64, (*shape[:-1], 1)))
        scaled = op("sin")(m)
        scaled = op("sort")(scaled, axis=0)  # a temporary of one number a row
        y = op("tanh")(x - scaled)
        row = scaled * 2.0 + 1.0
        total = op("sum")(y * y, axes=(last,), keepdims=True)
        out = y / total + row
    graph = builder.finish([e.value for e in (out, row, total)])
    rng = np.random.default_rng(2)
    check(
        graph, device, [[rng.standard_normal(shape), rng.standard_normal((*shape[:-1], 1))]], 1e-11
    )


def test_a_row_in_place_beside_long_rows(device: Device) -> None:
    builder = Builder("rows", Expr)
    with builder:
        x = builder.input(TensorType(F64, (3, 70_000)))
        m = op("sort")(builder.input(TensorType(F64, (3, 1))), axis=0)
        y = x - m
        row = op("exp")(m)
    graph = builder.finish([e.value for e in (y, row)])
    rng = np.random.default_rng(2)
    check(graph, device, [[rng.standard_normal((3, 70_000)), rng.standard_normal((3, 1))]], 1e-12)


def test_tiles_of_a_large_space(device: Device) -> None:
    """More elements than a tile in all kinds of layouts: sliced, transposed, stretched."""
    builder = Builder("tiles", Expr)
    with builder:
        x = builder.input(TensorType(F64, (B, T, 96)))
        v = builder.input(TensorType(F64, (T, 1)))
        a, b = (
            op("slice")(x, start=(0, 0, i), stop=(B, T, i + 32), step=(1, 1, 1)) for i in (0, 64)
        )
        c = op("transpose")(op("exp")(x), perm=(1, 0, 2))
        c = op("transpose")(
            op("slice")(c, start=(0, 0, 0), stop=(T, B, 96), step=(1, 1, 3)), perm=(1, 0, 2)
        )
        y = op("tanh")(a * b + c) * v + 0.5
        rows = op("max")(y, axes=(2,), keepdims=True)
        z = op("exp")(y - rows)
    graph = builder.finish([e.value for e in (z, rows, y)])
    rng = np.random.default_rng(2)
    runs = [
        [rng.standard_normal((b, t, 96)), rng.standard_normal((t, 1))]
        for b, t in ((2, 1500), (70, 41), (1, 1), (5, 1), (1, 9), (3, 0))
    ]
    check(graph, device, runs, 1e-11)


NAMES = "at bytes memory rt xp v1 c0 x0 run i2 tiles3 s support range float len sizes t at_"


@pytest.mark.parametrize("name", NAMES.split())
def test_sizes_may_have_any_name(device: Device, name: str) -> None:
    n = dims.dim(name)
    builder = Builder("named", Expr)
    inner = Builder("body", Expr)
    with inner:
        h, x = (inner.input(TensorType(F64, ())) for _ in range(2))
        new = op("tanh")(h + x)
    body = inner.finish([new.value, new.value])
    with builder:
        x = builder.input(TensorType(F64, (n, 3)))
        first = op("slice")(x, start=(0, 0), stop=(dims.dim_min(n, 4), 3), step=(1, 1))
        y = op("concatenate")(first * float("inf"), op("sort")(op("exp")(x) * 2.0, axis=0), axis=0)
        column = op("sum")(x, axes=(1,))
        zero = op("constant")(value=0.0, dtype=F64)
        _, ys = op("scan")(zero, column, body=body, carries=1, slices=1, length=n, reverse=True)
    graph = builder.finish([y.value, ys.value])
    rng = np.random.default_rng(2)
    check(graph, device, [[rng.standard_normal((k, 3))] for k in (1, 5)])


def test_windows_of_open_size_are_checked(device: Device) -> None:
    """What the interpreter refuses when it gets there is refused when sizes are bound."""
    cases = {
        "slice": lambda x: op("slice")(x, start=(1, 0), stop=(4, 2), step=(1, 1)),
        "set_slice": lambda x: op("set_slice")(
            x, op("slice")(x, start=(0, 0), stop=(1, 2), step=(1, 1)), start=(3, 0), step=(1, 1)
        ),
        "pad": lambda x: op("pad")(x, low=(T - 4, 0), high=(0, 0), interior=(0, 0)),
        "iota": lambda x: op("iota")(size=T - 4, dtype=F64),
    }
    for name, make in cases.items():
        builder = Builder(name, Expr)
        with builder:
            x = builder.input(TensorType(F64, (T, 2)))
            out = make(x)
        graph = builder.finish([out.value])
        _, run = executable(graph, device)
        for t in (4, 6):
            array = np.random.default_rng(t).standard_normal((t, 2))
            np.testing.assert_array_equal(
                run.run([array], {"T": t})[0], evaluate(graph, [array])[0]
            )
        with pytest.raises(ShapeError, match="at these sizes"):
            run.run([np.ones((3, 2))], {"T": 3})


@pytest.mark.parametrize("name", ("max", "min", "argmax"))
def test_there_is_no_extreme_of_nothing(device: Device, name: str) -> None:
    builder = Builder(name, Expr)
    with builder:
        x = builder.input(TensorType(F64, (T, 2)))
        s = builder.input(TensorType(F64, (2,)))
        attrs = {"axis": 0} if name == "argmax" else {"axes": (0,)}
        out = op(name)(x, **attrs)
        new = s + 1.0
    graph = builder.finish([out.value, new.value], aliases=[(1, 1)])
    for options in MODES.values():
        _, run = executable(graph, device, options)
        run.set_state([np.zeros(2)])
        array = np.arange(6.0).reshape(3, 2)
        np.testing.assert_array_equal(
            run.run([array], {"T": 3})[0], evaluate(graph, [array, np.zeros(2)])[0]
        )
        with pytest.raises(DataError, match="no elements"):
            run.run([np.ones((0, 2))], {"T": 0})
        np.testing.assert_array_equal(run.state()[0], [1.0, 1.0])


def test_no_text_of_the_model_becomes_code(device: Device) -> None:
    """File names and scopes stand in comments: whatever they are, they stay there."""
    text = """graph f(%0: f64[3]) {
      %1: f64[3] = exp %0   # "a\\nraise SystemExit  #.py":3 @ "s\\r\\nimport os; os._exit(1)"
      return %1 }"""
    graph = parse(text)
    assert "\n" in str(graph.nodes[0].place)
    compiled, run = executable(graph, device, Options())
    for line in compiled.program.source.splitlines():
        assert not re.match(r"\s*(raise|import os)", line)
    run.run([np.zeros(3)], {})


def test_the_same_graph_gives_the_same_source() -> None:
    def make() -> str:
        builder = Builder("same", Expr)
        with builder:
            x = builder.input(TensorType(F64, (B, 5)))
            y = op("softmax")(op("layer_norm")(x)[0], axis=1)
            z = op("sum")(y * x + op("exp")(x), axes=(0,))
        return compile_graph(builder.finish([y.value, z.value])).program.source

    assert make() == make()
