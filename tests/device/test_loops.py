"""Loops over time on every device: carries that swap, both directions, captured values, loops in
loops, lengths 0, 1, 2 and 7, first and second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.passes.backward import Backward
from retrograde.runtime.protocol import Device
from tests.device.harness import check

T = dims.dim("T", min=0)
F64 = dtypes.f64
LENGTHS = (0, 1, 2, 7)
Body = Callable[..., tuple[list[Any], int]]  # (carries…, slices…, constants…) -> outputs, carries
BODIES: dict[str, tuple[Body, tuple[tuple[int, ...], ...], int, int]] = {}


def loop(*shapes: tuple[int, ...], carries: int, slices: int) -> Callable[[Body], Body]:
    def put(fn: Body) -> Body:
        BODIES[fn.__name__] = (fn, shapes, carries, slices)
        return fn

    return put


@loop((3,), (3,), (2,), (3, 3), carries=2, slices=1)
def swap(a, b, x, w):  # type: ignore[no-untyped-def]
    """Carries change places; one of them is also a step result."""
    return [b, a, a * op("sum")(x, axes=(0,)), b @ w]


@loop((3,), (3,), (3,), carries=3, slices=0)
def rotate(a, b, c):  # type: ignore[no-untyped-def]
    return [op("tanh")(b), c, a]


@loop((3,), (3,), (3, 3), carries=1, slices=1)
def cell(h, x, w):  # type: ignore[no-untyped-def]
    new = op("tanh")(h @ w + x)
    return [new, new * x, h]


@loop((3,), (3,), carries=1, slices=1)
def pass_through(h, x):  # type: ignore[no-untyped-def]
    """Nothing is computed: the carry stays, slices and carry are the step results."""
    return [h, x, h]


@loop((3,), (3,), carries=1, slices=1)
def last_slice(h, x):  # type: ignore[no-untyped-def]
    return [x, h]


@loop((3, 3), (3,), carries=1, slices=1)
def own_transpose(m, x):  # type: ignore[no-untyped-def]
    return [op("transpose")(m, perm=(1, 0)), m * x]


@loop((3, 3), (3,), carries=1, slices=1)
def own_flip(m, x):  # type: ignore[no-untyped-def]
    return [op("flip")(m, axes=(0,)), op("sum")(m, axes=(0, 1)) * x]


@loop((), (), carries=1, slices=1)
def scalars(s, x):  # type: ignore[no-untyped-def]
    new = s * 0.5 + op("sin")(x)
    return [new, new]


@loop((3,), (3,), (3,), (2, 3), carries=2, slices=1)
def one_value_twice(a, b, x, w):  # type: ignore[no-untyped-def]
    new = op("tanh")(a + x) + op("sum")(w, axes=(0,)) * b
    return [new, new, new]


@loop((3,), (2, 3), carries=1, slices=0)
def constants_alone(h, w):  # type: ignore[no-untyped-def]
    """No slices: a loop of T turns over one captured matrix, which is a step result too."""
    return [h * 0.9 + op("sum")(w, axes=(0,)), w]


@loop((3,), (3,), carries=1, slices=1)
def a_constant_carry(h, x):  # type: ignore[no-untyped-def]
    zero = op("broadcast_to")(op("constant")(value=0.25, dtype=F64), shape=(3,))
    return [zero, h + x]


@loop((2, 3), (4, 3), (3, 3), carries=1, slices=1)
def nested(h, xs, w):  # type: ignore[no-untyped-def]
    """A loop over the rows of each slice, which starts from a row of the outer carry."""
    inner = Builder("inner", Expr)
    with inner:
        a, x, v = (inner.input(TensorType(F64, s)) for s in ((3,), (3,), (3, 3)))
        new = op("tanh")(a @ v + x)
        both = a * new
    body = inner.finish([new.value, both.value])
    row = op("reshape")(op("slice")(h, start=(1, 0), stop=(2, 3), step=(1, 1)), shape=(3,))
    last, ys = op("scan")(row, xs, w, body=body, carries=1, slices=1, length=4, reverse=True)
    total = op("sum")(ys, axes=(0,))
    rows = [op("reshape")(v, shape=(1, 3)) for v in (last, total)]
    return [op("tanh")(op("concatenate")(*rows, axis=0)), ys]


@loop((2, 3), (3,), carries=1, slices=1)
def joined(h, x):  # type: ignore[no-untyped-def]
    """The new carry is put together; its parts read the old one."""
    top = op("slice")(h, start=(1, 0), stop=(2, 3), step=(1, 1))
    return [op("concatenate")(top, op("reshape")(op("sin")(x), shape=(1, 3)), axis=0), h]


def looped(name: str, reverse: bool, length: Any = T) -> Graph:
    fn, shapes, carries, slices = BODIES[name]
    inner = Builder("body", Expr)
    with inner:
        outputs = fn(*(inner.input(TensorType(F64, s)) for s in shapes))
    body = inner.finish([e.value for e in outputs])
    builder = Builder(name, Expr)
    with builder:
        operands = []
        for i, s in enumerate(shapes):
            stacked = carries <= i < carries + slices
            operands.append(builder.input(TensorType(F64, (length, *s) if stacked else s)))
        size = builder.input(TensorType(F64, (length,)), "size")
        results = op("scan")(
            *operands, body=body, carries=carries, slices=slices, length=length, reverse=reverse
        )
        results = results if isinstance(results, tuple) else (results,)
        results = (*results, op("sum")(size, axes=(0,)))
    return builder.finish([e.value for e in results])


def inputs(graph: Graph, length: int) -> list[np.ndarray]:
    rng = np.random.default_rng([7, length])
    return [
        np.asarray(rng.standard_normal([dims.evaluate(d, {"T": length}) for d in v.shape]))
        for v in graph.inputs
    ]


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("name", BODIES)
def test_loop(device: Device, name: str, reverse: bool) -> None:
    graph = looped(name, reverse)
    check(graph, device, [inputs(graph, t) for t in (*LENGTHS, 2)])


@pytest.mark.parametrize("name", BODIES)
def test_gradient_of_loop(device: Device, name: str) -> None:
    graph = looped(name, False)
    of = tuple(range(len(graph.outputs)))
    gradient = Backward(of, tuple(range(len(graph.inputs))))(graph)
    check(gradient, device, [inputs(gradient, t) for t in LENGTHS], 1e-10)


@pytest.mark.parametrize("name", ("cell", "swap", "nested"))
def test_second_gradient_of_loop(device: Device, name: str) -> None:
    graph = looped(name, True)
    first = Backward((0,), tuple(range(len(graph.inputs))))(graph)
    second = Backward((len(graph.outputs),), tuple(range(len(graph.inputs))))(first)
    check(second, device, [inputs(second, t) for t in LENGTHS], 1e-9)


@pytest.mark.parametrize("length", LENGTHS)
def test_static_length(device: Device, length: int) -> None:
    graph = looped("swap", False, length)
    check(graph, device, [inputs(graph, length)])


def test_a_loop_in_a_group_of_work(device: Device) -> None:
    """Operands and results of the loop are temporaries of other steps, and slices of them."""
    builder = Builder("around", Expr)
    inner = Builder("body", Expr)
    with inner:
        h, x, w = (inner.input(TensorType(F64, (3,))) for _ in range(3))
        new = op("tanh")(h * w + x)
    body = inner.finish([new.value, new.value])
    with builder:
        x = builder.input(TensorType(F64, (T, 6)))
        w = builder.input(TensorType(F64, (3,)))
        y = op("sin")(x)
        left, right = (op("slice")(y, start=(0, i), stop=(T, 3 + i), step=(1, 1)) for i in (0, 3))
        h, ys = op("scan")(
            w * 2.0, left, w, body=body, carries=1, slices=1, length=T, reverse=False
        )
        joined = op("concatenate")(right, ys * 2.0, op("flip")(ys, axes=(0,)), axis=1)
        h2, zs = op("scan")(h, op("flip")(ys, axes=(0,)), h, body=body, carries=1, slices=1,
                            length=T, reverse=True)  # fmt: skip
        out = op("concatenate")(joined, zs, axis=1)
    graph = builder.finish([e.value for e in (out, h2, h)])
    check(graph, device, [inputs(graph, t) for t in LENGTHS])
