"""Running one op: name, arrays, attributes -> graph, values, gradients (all by the interpreter)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward

Array = npt.NDArray[Any]

FLOATS = ("f64", "f32", "f16", "bf16")
INTEGERS = ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")


def numpy_dtype(name: str) -> np.dtype[Any]:
    return dtypes.dtype(name).numpy


def epsilon(name: str) -> float:
    """The spacing of numbers at 1."""
    return {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}[name]


def type_of(x: Array) -> TensorType:
    return TensorType(dtypes.dtype(x.dtype), x.shape)


def build(name: str, operands: Sequence[Array], attrs: Mapping[str, Any]) -> Graph:
    """The graph that applies one op to inputs like `operands`."""
    builder = Builder(name, Expr)
    with builder:
        inputs = [builder.input(type_of(x)) for x in operands]
        results = lookup(name)(*inputs, **attrs)
    results = results if isinstance(results, tuple) else (results,)
    return builder.finish([e.value for e in results])


def run(name: str, *operands: Any, **attrs: Any) -> Any:
    """The op's result, or the tuple of them."""
    arrays = [np.asarray(x) for x in operands]
    results = evaluate(build(name, arrays, attrs), arrays)
    return results[0] if len(results) == 1 else tuple(results)


def floats(values: Sequence[Any]) -> tuple[int, ...]:
    """The numbers of the float ones."""
    return tuple(i for i, v in enumerate(values) if v.dtype.is_float)


def gradient(
    name: str, *operands: Any, by: Sequence[int] = (0,), order: int = 1, **attrs: Any
) -> list[Array]:
    """The derivatives of the sum of the op's results by some operands; with order 2, those of the
    sum of these derivatives."""
    arrays = [np.asarray(x) for x in operands]
    graph = build(name, arrays, attrs)
    for _ in range(order):
        graph = Backward((0,), tuple(by))(summed(graph))
        graph = without_seed(graph)
    return evaluate(graph, arrays)


def summed(graph: Graph) -> Graph:
    """The sum of all elements of all float outputs."""
    builder = Builder(graph.name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in graph.inputs]
        outputs = builder.inline(graph, inputs)
        total: Any = None
        for i in floats(graph.outputs):
            axes = tuple(range(outputs[i].ndim))
            part = lookup("sum")(outputs[i], axes=axes, keepdims=False)
            total = part if total is None else total + part
    return builder.finish([total.value])


def without_seed(graph: Graph) -> Graph:
    """A differentiated graph with its last input 1 and its first output left out."""
    builder = Builder(graph.name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in graph.inputs[:-1]]
        seed = builder.constant(1.0, graph.inputs[-1].dtype)
        outputs = builder.inline(graph, [*inputs, seed])
    return builder.finish([e.value for e in outputs[1:]])
