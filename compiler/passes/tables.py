"""Products with rows of a table -> rows of the product with the table: Graph -> Graph.

`take(E, i) @ W` is `take(E @ W, i)`: where a table has fewer rows than are taken from it, as an
embedding of characters has, that saves most of the product.  So do its gradients: the rows are
added up first, and what is left is a product with the table's rows.

    dot(gather(E, i), W)               ->  gather(dot(E, W), i), of rows in 16 bits as well
    scatter_add(0, dot(G, W), i)       ->  dot(scatter_add(0, G, i), W)
    dot(gather(E, i), G) over the i    ->  dot(E, scatter_add(0, G, i))
    sum(G) over the i                  ->  sum(scatter_add(0, G, i)), where that is there anyhow

Invariant: same values up to the order of summation; the indices are checked as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder, required
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.scan_sink import is_zero

FEWER = 4  # how many times more rows have to be taken than the table has


@dataclass(frozen=True)
class TableProducts:
    """Rewrites products with gathered rows, where at `sizes` the table is the smaller one."""

    sizes: Mapping[str, int]

    def __call__(self, graph: Graph) -> Graph:
        if not any(node.op.name == "gather" for node in graph.nodes):
            return graph
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        changed = False
        makers = graph.producers()
        added = self._added(graph, makers)
        with builder:
            for node in graph.nodes:
                rows = _summed(node, added)
                if renamed and any(v in renamed for v in node.inputs):
                    node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
                builder.locate(node.loc, node.scope, node.origin)
                if rows is None:
                    found = self._rewritten(node, makers, builder)
                else:
                    found = _total(node, rows, builder)
                if found is None:
                    builder.append(node)
                else:
                    changed = True
                    renamed[node.output] = found.value
        if not changed:
            return graph
        outputs = [renamed.get(v, v) for v in graph.outputs]
        return builder.finish(outputs, graph.output_names, graph.aliases)

    def _added(self, graph: Graph, makers: Mapping[Value, Node]) -> dict[Value, Rows]:
        """What the products to be rewritten add up by the rows of a table."""
        found: dict[Value, Rows] = {}
        for node in graph.nodes:
            if node.op.name != "dot_general" or node.attrs["batch"] != ((), ()):
                continue
            for side in (0, 1):
                rows = rows_of(node.inputs[side], makers)
                if rows is not None and self._smaller(rows) and _over_rows(node, side, rows):
                    found[node.inputs[1 - side]] = rows
        return found

    def _rewritten(
        self, node: Node, makers: Mapping[Value, Node], builder: Builder
    ) -> Expr | None:
        if node.op.name == "scatter_add":
            return self._scattered(node, makers, builder)
        if node.op.name != "dot_general" or node.attrs["batch"] != ((), ()):
            return None
        for side in (0, 1):
            rows = rows_of(node.inputs[side], makers, narrow=True)
            if rows is not None and self._smaller(rows):
                found = _product(node, side, rows, builder)
                if found is not None:
                    return found
        return None

    def _smaller(self, rows: Rows) -> bool:
        return smaller(rows, self.sizes)

    def _scattered(
        self, node: Node, makers: Mapping[Value, Node], builder: Builder
    ) -> Expr | None:
        """A scatter into zeros of rows that a product made."""
        into, updates, *indices = node.inputs
        dot, perm = makers.get(updates), None
        if node.attrs["axes"] != (0,) or len(indices) != 1 or into.type.ndim != 2:
            return None
        if dot is not None and dot.op.name == "transpose":
            order = dot.attrs["perm"]
            if order[-1] != len(order) - 1:
                return None
            perm = tuple(order.index(i) for i in range(len(order) - 1))
            dot = makers.get(dot.inputs[0])
        if dot is None or dot.op.name != "dot_general" or dot.attrs["batch"] != ((), ()):
            return None
        g, w = dot.inputs
        rank = indices[0].type.ndim
        if g.type.ndim != rank + 1 or dot.attrs["contract"][0] != (rank,) or w.type.ndim != 2:
            return None
        rows = Rows(into, indices[0], perm, node.attrs["wrap"])
        if not is_zero(into, makers) or not self._smaller(rows):
            return None
        total = rows.added(Expr(g, builder))
        contract = ((1,), dot.attrs["contract"][1])
        return _dot(total, Expr(w, builder), contract)


@dataclass(frozen=True)
class Rows:
    """Rows of a two-dimensional table, taken along its first axis; `perm` is the order in which
    the axes of the indices stand, `narrow` the 16-bit type that they are rounded to."""

    table: Value
    indices: Value
    perm: tuple[int, ...] | None
    wrap: bool
    narrow: DType | None = None

    def at(self, builder: Builder) -> Expr:
        """The indices in the order in which the rows stand."""
        found = Expr(self.indices, builder)
        if self.perm is None:
            return found
        out: Expr = lookup("transpose")(found, perm=self.perm)
        return out

    def added(self, g: Expr) -> Expr:
        """Zeros like the table, as wide as `g`, with the rows of `g` added at the indices."""
        builder = required()
        into = zeros(TensorType(g.dtype, (self.table.shape[0], g.shape[-1])))
        out: Expr = lookup("scatter_add")(into, g, self.at(builder), axes=(0,), wrap=self.wrap)
        return out


def smaller(rows: Rows, sizes: Mapping[str, int]) -> bool:
    """Whether the table has so few rows that to go by way of it pays."""
    table = dims.evaluate(rows.table.shape[0], sizes)
    return FEWER * table <= dims.evaluate(rows.indices.type.size, sizes)


def _product(node: Node, side: int, rows: Rows, builder: Builder) -> Expr | None:
    """The product `node`, whose operand `side` is rows of a table, by way of the table."""
    mine, theirs = node.attrs["contract"][side], node.attrs["contract"][1 - side]
    other = Expr(node.inputs[1 - side], builder)
    table = Expr(rows.table, builder)
    if rows.narrow is not None:
        table = cast(table, rows.narrow)
    rank = rows.indices.type.ndim
    if side == 0 and mine == (rank,):
        product = _dot(table, other, ((1,), theirs))
        out: Expr = lookup("gather")(product, rows.at(builder), axes=(0,), wrap=rows.wrap)
        return out
    if rows.narrow is None and _over_rows(node, side, rows):  # in 16 bits sums lose too much
        total = rows.added(other)
        return _dot(total, table, ((0,), (0,))) if side else _dot(table, total, ((0,), (0,)))
    return None


def _over_rows(node: Node, side: int, rows: Rows) -> bool:
    """Whether a product adds up over the rows that its operand `side` is, as does a sum over all
    axes of the other operand but the last."""
    rank = rows.indices.type.ndim
    every = (tuple(range(rank)),) * 2
    return bool(node.attrs["contract"] == every) and node.inputs[1 - side].type.ndim == rank + 1


def _summed(node: Node, added: Mapping[Value, Rows]) -> Rows | None:
    """The rows by which a total over all axes but the last is there in part."""
    if node.op.name != "sum" or node.inputs[0] not in added or node.attrs["keepdims"]:
        return None
    rank = node.inputs[0].type.ndim - 1
    return added[node.inputs[0]] if sorted(node.attrs["axes"]) == list(range(rank)) else None


def _total(node: Node, rows: Rows, builder: Builder) -> Expr:
    out: Expr = lookup("sum")(rows.added(Expr(node.inputs[0], builder)), axes=(0,), keepdims=False)
    return out


def _dot(a: Expr, b: Expr, contract: tuple[tuple[int, ...], tuple[int, ...]]) -> Expr:
    out: Expr = lookup("dot_general")(a, b, contract=contract, batch=((), ()))
    return out


def rows_of(v: Value, makers: Mapping[Value, Node], narrow: bool = False) -> Rows | None:
    """What `v` takes from a table, also where its leading axes changed places, with `narrow` also
    where it was rounded to 16 bits."""
    node = makers.get(v)
    if node is None:
        return None
    if node.op.name == "cast" and narrow and v.dtype.is_float and v.dtype.bytes == 2:
        inner = rows_of(node.inputs[0], makers)
        return None if inner is None else replace(inner, narrow=v.dtype)
    if node.op.name == "transpose":
        perm = node.attrs["perm"]
        inner = rows_of(node.inputs[0], makers, narrow)
        if inner is None or inner.perm is not None or perm[-1] != len(perm) - 1:
            return None
        return replace(inner, perm=perm[:-1])
    if node.op.name != "gather" or node.attrs["axes"] != (0,) or len(node.inputs) != 2:
        return None
    table, indices = node.inputs
    if table.type.ndim != 2 or not table.dtype.is_float:
        return None
    return Rows(table, indices, None, node.attrs["wrap"])
