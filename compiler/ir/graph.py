"""The IR: SSA in administrative normal form.  Frozen dataclasses, identity equality.

A `Value` is typed and defined once, by the graph's inputs or by one `Node`.  A `Node` applies an
op; sub-graphs (bodies of `call`, `scan`) live in its attributes.  Transformations build new
graphs; a node that keeps its meaning keeps its id through all passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.printer import print_graph

if TYPE_CHECKING:
    from retrograde.compiler.ir.op import Op

Attrs = Mapping[str, Any]  # int, float, str, bool, None, Dim, DType, Graph, tuples of them


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of a value."""

    dtype: DType
    shape: tuple[Dim, ...] = ()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """The number of elements."""
        return _elements(self.shape)

    @property
    def bytes(self) -> Dim:
        return self.size * self.dtype.bytes

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@lru_cache(maxsize=1 << 14)
def _elements(shape: tuple[Dim, ...]) -> Dim:
    return dims.product(shape)


def same_type(a: TensorType, b: TensorType) -> bool:
    """Provably equal types."""
    return a.dtype is b.dtype and same_shape(a.shape, b.shape)


def same_shape(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Provably equal shapes."""
    return len(a) == len(b) and all(map(dims.same, a, b))


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """One tensor, defined once.  `id` is unique within a compilation and only for people."""

    id: int
    type: TensorType

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    def __repr__(self) -> str:
        return f"%{self.id}: {self.type}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Why a node is there: its role, the pass that made it, the ids of the nodes it stems from.

    Roles: primal (what the user wrote), cotangent, recompute, update.  `group` tells recomputations
    apart: nodes of different groups are never merged, which is what keeps a recomputation one.
    """

    role: str = "primal"
    made_by: str = "trace"
    ancestors: tuple[int, ...] = ()
    group: int = 0


PRIMAL = Origin()


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One application of an op."""

    id: int
    op: Op
    inputs: tuple[Value, ...]
    attrs: Attrs
    outputs: tuple[Value, ...]
    loc: Loc | None = None
    scope: str = ""
    origin: Origin = PRIMAL

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    @property
    def place(self) -> str:
        """`model.py:12 @ scope`, for messages and comments."""
        return _place(self.loc, self.scope)

    def with_inputs(self, inputs: Iterable[Value]) -> Node:
        """The same node reading other values (its outputs stay the same values)."""
        return Node(
            self.id, self.op, tuple(inputs), self.attrs, self.outputs, self.loc, self.scope,
            self.origin,
        )  # fmt: skip

    def subgraphs(self) -> Iterator[tuple[str, Graph]]:
        """The sub-graphs in the attributes, by attribute name."""
        if not self.op.has_regions:
            return
        for key, attr in self.attrs.items():
            if isinstance(attr, Graph):
                yield key, attr


@lru_cache(maxsize=1 << 12)
def _place(loc: Loc | None, scope: str) -> str:
    return " @ ".join(part for part in (str(loc) if loc else "", scope) if part)


@dataclass(frozen=True, eq=False)
class Rule:
    """One use of a gradient rule: that of `node`, which reads `inputs` and makes `outputs` in the
    graph, and what it adds to the cotangent of each input (None: nothing)."""

    node: Node
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    parts: tuple[Value | None, ...]


@dataclass(frozen=True, eq=False)
class Derivative:
    """What a backward pass claims of values in its graph: `results` are the derivatives, by the
    values `wrt`, of the products of `of` and `seeds` summed up.

    `rules` are the gradient rules in the order of their use, `totals` pairs a value with its
    cotangent.  `function` makes `of` of `given`: it is what was differentiated, as it was before.
    """

    of: tuple[Value, ...]
    seeds: tuple[Value, ...]
    wrt: tuple[Value, ...]
    results: tuple[Value, ...]
    rules: tuple[Rule, ...] = ()
    totals: tuple[tuple[Value, Value], ...] = ()
    function: Graph | None = None
    given: tuple[Value, ...] = ()

    def values(self) -> tuple[Value, ...]:
        """All values it speaks of, each once."""
        found = dict.fromkeys((*self.of, *self.seeds, *self.wrt, *self.results, *self.given))
        for rule in self.rules:
            found.update(dict.fromkeys((*rule.inputs, *rule.outputs)))
            found.update(dict.fromkeys(v for v in rule.parts if v is not None))
        for pair in self.totals:
            found.update(dict.fromkeys(pair))
        return tuple(found)

    def renamed(self, names: Mapping[Value, Value]) -> Derivative:
        """The same of other values."""

        def new(values: Iterable[Value]) -> tuple[Value, ...]:
            return tuple(names.get(v, v) for v in values)

        rules = tuple(
            Rule(
                rule.node, new(rule.inputs), new(rule.outputs),
                tuple(None if v is None else names.get(v, v) for v in rule.parts),
            )
            for rule in self.rules
        )  # fmt: skip
        totals = tuple((names.get(v, v), names.get(g, g)) for v, g in self.totals)
        return Derivative(
            new(self.of), new(self.seeds), new(self.wrt), new(self.results), rules, totals,
            self.function, new(self.given),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Graph:
    """A function: typed inputs, nodes in an order that defines before it uses, outputs.

    `aliases` holds (output index, input index) pairs: that output replaces that donated input.
    `input_names` and `output_names` are the user's names (tree paths), for people and plans.
    `derivatives`: the gradients in a graph as it was traced; passes leave them behind.
    """

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    aliases: tuple[tuple[int, int], ...] = ()
    derivatives: tuple[Derivative, ...] = ()

    def replace(self, **changes: Any) -> Graph:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def producers(self) -> dict[Value, Node]:
        """The node that defines each value (graph inputs are absent)."""
        return {v: node for node in self.nodes for v in node.outputs}

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value, in order."""
        out: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for v in node.inputs:
                readers = out.get(v)
                if readers is None:
                    out[v] = [node]
                elif readers[-1] is not node:
                    readers.append(node)
        return out

    def values(self) -> Iterator[Value]:
        """Every value defined in this graph, inputs first."""
        yield from self.inputs
        for node in self.nodes:
            yield from node.outputs

    def symbols(self) -> dict[str, Symbol]:
        """The dimension symbols in the types of the inputs, by name."""
        found: dict[str, Symbol] = {}
        for v in self.inputs:
            for d in v.shape:
                for s in dims.symbols(d):
                    found.setdefault(s.name, s)
        return found

    def text(self) -> str:
        """The canonical text form; `retrograde.compiler.ir.parse` reads it back."""
        return print_graph(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.inputs)} inputs, {len(self.nodes)} nodes>"
