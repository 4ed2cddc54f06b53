"""The definition of a graph's meaning: `Graph` and arrays -> arrays, op by op with each reference.

Every optimised path is tested against this.  Invariant: each result has exactly the dtype and the
shape that its type says at the sizes of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError, ShapeError, VerifyError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.dims import Poly
from retrograde.compiler.ir.graph import Attrs, Graph, Node, TensorType, Value

Array = npt.NDArray[Any]
Trace = Callable[[Node, "tuple[Array, ...]"], None]  # called with each node and its results


class Watch:
    """What looks on while a graph is evaluated; each method is one event."""

    def ran(self, node: Node, operands: Sequence[Array], results: tuple[Array, ...]) -> None:
        """A node has run, after all that ran in its sub-graphs."""

    def entered(self, body: Body, operands: Sequence[Array], step: int | None) -> None:
        """A sub-graph begins to run; in a loop `step` is the place that it runs for."""

    def left(self, body: Body, results: Sequence[Array]) -> None:
        """The sub-graph entered last has run."""


def evaluate(
    graph: Graph,
    inputs: Sequence[Array],
    sizes: Mapping[str, int] | None = None,
    trace: Trace | None = None,
    watch: Watch | None = None,
) -> list[Array]:
    """The outputs of `graph` on `inputs`.

    `sizes` gives symbols that no input shows.  `trace` sees every node with its results, those of
    sub-graphs included; `watch` sees more.  Raises ShapeError or DTypeError for inputs that do not
    fit."""
    if trace is not None:
        watch = _Traced(trace)
    if len(inputs) != len(graph.inputs):
        raise ShapeError(f"{graph.name}: expected {len(graph.inputs)} inputs, got {len(inputs)}")
    arrays = [np.asarray(x) for x in inputs]
    for i, (v, x) in enumerate(zip(graph.inputs, arrays, strict=True)):
        _check_dtype(v.type, x, _input_name(graph, i))
    bound = bind_sizes(
        [v.type for v in graph.inputs], graph.input_names, [x.shape for x in arrays], sizes
    )
    values: dict[Value, Array] = dict(zip(graph.inputs, arrays, strict=True))
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            operands = [values[v] for v in node.inputs]
            results = run_node(node, operands, bound, watch)
            values.update(zip(node.outputs, results, strict=True))
            if watch is not None:
                watch.ran(node, operands, results)
    return [values[v] for v in graph.outputs]


class _Traced(Watch):
    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def ran(self, node: Node, operands: Sequence[Array], results: tuple[Array, ...]) -> None:
        self.trace(node, results)


def run_node(
    node: Node, operands: Sequence[Array], sizes: Mapping[str, int], watch: Watch | None = None
) -> tuple[Array, ...]:
    """The results of one node, checked against their types."""
    attrs = resolve(node.attrs, sizes)
    for key, body in node.subgraphs():
        attrs[key] = Body(body, sizes, Place(node, key, operands), watch)
    result = node.op.evaluate(attrs, *operands)
    results = result if isinstance(result, tuple) else (result,)
    if len(results) != len(node.outputs):
        raise VerifyError(f"{_label(node)} gave {len(results)} results for {len(node.outputs)}")
    arrays = tuple(np.asarray(x) for x in results)
    for v, x in zip(node.outputs, arrays, strict=True):
        expected = tuple(dims.evaluate(d, sizes) for d in v.shape)
        if x.dtype != v.dtype.numpy or x.shape != expected:
            raise VerifyError(
                f"{_label(node)} gave {x.dtype}{list(x.shape)} where its type is {v.type}, "
                f"{v.dtype}{list(expected)} at these sizes"
            )
    return arrays


def resolve(attrs: Attrs, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The attributes with every symbolic size as an int."""
    return {key: _resolved(x, sizes) for key, x in attrs.items()}


def _resolved(x: Any, sizes: Mapping[str, int]) -> Any:
    if isinstance(x, Poly):
        return dims.evaluate(x, sizes)
    if isinstance(x, tuple):
        return tuple(_resolved(item, sizes) for item in x)
    return x


@dataclass(frozen=True, eq=False)
class Place:
    """Where a sub-graph runs: in which attribute of which node, and on what that node runs."""

    node: Node
    key: str
    operands: Sequence[Array]


class Body:
    """A sub-graph as the evaluation of a region op sees it: a function of arrays.

    A loop says which `step` a call is for.  `output_types` holds the NumPy dtype and the concrete
    shape of each result."""

    def __init__(
        self,
        graph: Graph,
        sizes: Mapping[str, int],
        place: Place | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.graph = graph
        self.sizes = sizes
        self.place = place
        self.watch = watch

    def __call__(self, *arrays: Array, step: int | None = None) -> tuple[Array, ...]:
        if self.watch is None:
            return tuple(evaluate(self.graph, arrays, self.sizes))
        self.watch.entered(self, arrays, step)
        results = tuple(evaluate(self.graph, arrays, self.sizes, watch=self.watch))
        self.watch.left(self, results)
        return results

    def at(self, sizes: Mapping[str, int]) -> Body:
        """The same with other values for some symbols."""
        return Body(self.graph, {**self.sizes, **sizes}, self.place, self.watch)

    @property
    def output_types(self) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], ...]:
        return tuple(
            (v.dtype.numpy, tuple(dims.evaluate(d, self.sizes) for d in v.shape))
            for v in self.graph.outputs
        )


def _input_name(graph: Graph, i: int) -> str:
    name = graph.input_names[i] if i < len(graph.input_names) else ""
    return name or f"input {i}"


def _check_dtype(type: TensorType, x: Array, name: str) -> None:
    if x.dtype != type.dtype.numpy:
        raise DTypeError(
            f"{name}: expected {type}, got {x.dtype}{list(x.shape)}: "
            f"convert it with .astype({type.dtype.numpy.name!r})"
        )


def _label(node: Node) -> str:
    place = node.place
    return f"{node.op.name} ({place})" if place else node.op.name
