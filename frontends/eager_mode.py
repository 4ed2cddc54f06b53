"""Running op by op: operations in, numbers at once.

Inside `eager()` every traced value holds the array that it stands for: it prints, can be tested
with `if`, converted and looked at.  Each op runs by its reference, the definition that compiled
programs are tested against.  Invariant: gradients, scans and nested functions go through the same
code as in a trace; only the builder differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder, current, next_id
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.interpreter import run_node
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.op import Op
from retrograde.tracer import Tracer

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class EagerValue(Value):
    """A value together with its numbers."""

    array: Array


class EagerTracer(Tracer):
    """A traced value that knows its numbers."""

    __slots__ = ()

    def numpy(self) -> Array:
        """The numbers, as a fresh array."""
        return np.array(array_of(self))

    def __repr__(self) -> str:
        return f"{self.type} {array_of(self)}"

    def __str__(self) -> str:
        return str(array_of(self))

    def __format__(self, spec: str) -> str:
        return format(array_of(self)[()], spec)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(array_of(self), dtype)

    def __bool__(self) -> bool:
        return bool(array_of(self))

    def __float__(self) -> float:
        return float(array_of(self))

    def __int__(self) -> int:
        return int(array_of(self))

    def __index__(self) -> int:
        return int(array_of(self)[()].__index__())

    def item(self) -> Any:
        """The one number in it, as Python's."""
        return array_of(self).item()

    def tolist(self) -> Any:
        """The numbers as nested lists."""
        return array_of(self).tolist()

    def __len__(self) -> int:
        return len(array_of(self))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def array_of(x: Expr) -> Array:
    """The numbers of an eager value (not a copy)."""
    value = x.value
    assert isinstance(value, EagerValue)
    return value.array


class EagerBuilder(Builder):
    """A builder that runs what it is given; one with a parent also records it, for gradients."""

    def __init__(self, name: str, parent: Builder | None = None) -> None:
        super().__init__(name, EagerTracer, parent)

    def input(self, type: TensorType, name: str = "") -> Expr:
        raise TraceError(f"{where()}{self.name}: an eager input needs its numbers")

    def input_array(self, array: Array, name: str = "") -> Expr:
        """Declares one more input, which is this array."""
        array = np.asarray(array)
        type = TensorType(dtypes.dtype(array.dtype), array.shape)
        value = EagerValue(next_id(), type, array)
        self.inputs.append(value)
        self.input_names.append(name)
        return self.wrap(value, self)

    def lift(self, expr: Expr) -> Expr:
        if expr.builder is not self and expr.builder._closed and isinstance(expr, EagerTracer):
            return self.lift_array(array_of(expr))  # the numbers of a block that is over
        return super().lift(expr)

    def lift_array(self, array: Any) -> Expr:
        if self.parent is not None:
            return super().lift_array(array)
        type = TensorType(dtypes.dtype(array.dtype), tuple(array.shape))
        return self.wrap(EagerValue(next_id(), type, np.asarray(array)), self)

    def _capture(self, key: Any, source: Any, type: TensorType, name: str) -> Expr:
        inner = self.input_array(array_of(source), f"<{name} {len(self.captured)}>")
        self.captured.append(source)
        self._lifted[key] = inner
        return inner

    def emit(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Value, ...]:
        super().emit(op, inputs, attrs)
        return self._run(self.nodes.pop(), inputs)

    def inline(self, graph: Graph, args: Sequence[Expr]) -> list[Expr]:
        mapping = {v: self.lift(a).value for v, a in zip(graph.inputs, args, strict=True)}
        for node in graph.nodes:
            if node.op.effect is not None:
                continue  # it took effect when the graph was recorded
            outputs = self._run(node, [mapping[v] for v in node.inputs])
            mapping.update(zip(node.outputs, outputs, strict=True))
        return [self.wrap(mapping[v], self) for v in graph.outputs]

    def inline_derived(self, graph: Graph, args: Sequence[Expr]) -> list[Expr]:
        return self.inline(graph, args)

    def _run(self, node: Node, inputs: Sequence[Value]) -> tuple[Value, ...]:
        operands = []
        for v in inputs:
            assert isinstance(v, EagerValue)
            operands.append(v.array)
        with np.errstate(all="ignore"):
            results = run_node(node, operands, {})
        outputs = tuple(
            EagerValue(next_id(), v.type, x) for v, x in zip(node.outputs, results, strict=True)
        )
        if self.parent is not None:
            made = dataclasses.replace(node, id=next_id(), inputs=tuple(inputs), outputs=outputs)
            self.nodes.append(made)
        return outputs


@contextmanager
def eager() -> Iterator[None]:
    """Inside, functions of traced values run op by op on numbers, printable at every line.

    `grad`, `scan`, `jit` and all others do the same as when compiled; what they return can be
    used as arrays.  For teaching and for finding a fault: it is slow.  Raises TraceError inside
    of a function being traced."""
    if current() is not None and not isinstance(current(), EagerBuilder):
        raise TraceError(
            f"{where()}rg.eager() inside of a function that is being traced: put it around the call"
        )
    with EagerBuilder("eager"):
        yield
