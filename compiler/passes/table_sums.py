"""Gradients by the rows of a table, in loops: a sum over time of products with rows of a table -> a
product with the sums by row.

Graph -> Graph.  `passes/tables.py` does the same for what is there for all steps at once.  Here it
is done to the carries of a reverse loop, before recipes part ways: what a step adds up is then the
same in all of them, so that their gradients have the same bits.

    sum of dot(take(E, i)[t], G[t])   ->  dot(E, S)     S: the sum of scatter_add(0, G[t], i[t])
    scatter_add(0, dot(G[t], W), i)   ->  dot(S, W)     where the loop has S anyhow
    sum of all rows of G[t]           ->  sum(S)        where it has

In 16 bits all that is added up here is added up in f32, and multiplied in f32: a product of sums is
not rounded before them.  Invariant: same values up to the order of summation; the indices are
checked as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import Builder, new_value
from retrograde.compiler.ir.dtypes import DType, f32
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.regions import rewrite_scans
from retrograde.compiler.passes.scan_sink import is_zero
from retrograde.compiler.passes.tables import Rows, rows_of, smaller


@dataclass(frozen=True)
class TableSums:
    """Adds up by the rows of tables in loops, where at `sizes` a table is small."""

    sizes: Mapping[str, int]

    def __call__(self, graph: Graph) -> Graph:
        names = {node.op.name for node in graph.nodes}
        if not {"gather", "scan"} <= names:
            return graph
        makers, scattered = graph.producers(), _scatters(graph)

        def emit(node: Node, builder: Builder, renamed: dict[Value, Value]) -> None:
            found = {
                i: part for i, part in _parts(node, makers)
                if smaller(part.rows, self.sizes) and is_zero(node.inputs[i], makers)
            }  # fmt: skip
            if not found or "live" in node.attrs:
                builder.append(node)
                return
            added = {part.g: part for part in found.values()}
            summed = {
                i: added[g] for i, g in _totals(node)
                if g in added and is_zero(node.inputs[i], makers)
            }  # fmt: skip
            _emit(node, found, summed, scattered, builder, renamed)

        return DCE()(rewrite_scans(graph, emit))


@dataclass(frozen=True)
class _Part:
    """What a step adds to a carry: the product of rows of a table, operand `side`, and of `g`."""

    rows: Rows
    side: int
    g: Value


@dataclass(frozen=True)
class _Scatter:
    """A scatter into zeros of what a step of a loop has, for all steps."""

    node: Node
    indices: Value
    perm: tuple[int, ...] | None


def _parts(node: Node, makers: Mapping[Value, Node]) -> Iterator[tuple[int, _Part]]:
    """The carries that add up products with rows of a table."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    outer = dict(zip(body.inputs[n:m], node.inputs[n:m], strict=True))
    inner, users = body.producers(), body.users()
    for i in range(n):
        carry, add = body.inputs[i], inner.get(body.outputs[i])
        if add is None or add.op.name != "add" or users.get(carry) != [add]:
            continue
        dot = next((_made(v, carry, inner) for v in add.inputs if v is not carry), None)
        if dot is None or dot.op.name != "dot_general" or dot.attrs["batch"] != ((), ()):
            continue
        for side in (0, 1):
            x, g = dot.inputs[side], dot.inputs[1 - side]
            rows = rows_of(outer[x], makers, narrow=True) if x in outer else None
            every = tuple(range(x.type.ndim - 1))
            if rows is None or dot.attrs["contract"] != (every, every):
                continue
            if rows.indices.type.ndim == x.type.ndim and g.type.ndim == x.type.ndim:
                yield i, _Part(rows, side, g)
                break


def _totals(node: Node) -> Iterator[tuple[int, Value]]:
    """The carries that add up all rows of something, with what that is."""
    body: Graph = node.attrs["body"]
    inner, users = body.producers(), body.users()
    for i, carry in enumerate(body.inputs[: node.attrs["carries"]]):
        add = inner.get(body.outputs[i])
        if add is None or add.op.name != "add" or users.get(carry) != [add]:
            continue
        total = next((_made(v, carry, inner) for v in add.inputs if v is not carry), None)
        if total is None or total.op.name != "sum" or total.attrs["keepdims"]:
            continue
        g = total.inputs[0]
        if total.attrs["axes"] == tuple(range(g.type.ndim - 1)) and total.output.dtype is g.dtype:
            yield i, g


def _wide(dtype: DType) -> DType:
    return f32 if dtype.bytes == 2 else dtype


def _made(v: Value, carry: Value, makers: Mapping[Value, Node]) -> Node | None:
    """What makes a value that is added to a carry, in the type of that or in 16 bits."""
    node = makers.get(v)
    if node is None or node.op.name != "cast":
        return node
    x = node.inputs[0]
    halves = x.dtype.is_float and x.dtype.bytes == 2 and carry.dtype is f32
    return makers.get(x) if halves else node


def _scatters(graph: Graph) -> dict[Value, _Scatter]:
    """By what is scattered: the scatters of stacked results."""
    makers = graph.producers()
    found = {}
    for node in graph.nodes:
        if node.op.name != "scatter_add" or node.attrs["axes"] != (0,) or len(node.inputs) != 3:
            continue
        into, updates, indices = node.inputs
        made, perm = makers.get(updates), None
        if made is not None and made.op.name == "transpose":
            order = made.attrs["perm"]
            if order[-1] != len(order) - 1:
                continue
            perm = tuple(order.index(i) for i in range(len(order) - 1))
            updates = made.inputs[0]
            made = makers.get(updates)
        if made is not None and made.op.name == "cast" and node.output.dtype is f32:
            updates = made.inputs[0]
            inner = makers.get(updates)
            if perm is None and inner is not None and inner.op.name == "transpose":
                order = inner.attrs["perm"]
                if order[-1] != len(order) - 1:
                    continue
                perm = tuple(order.index(i) for i in range(len(order) - 1))
                updates = inner.inputs[0]
        if is_zero(into, makers):
            found[updates] = _Scatter(node, indices, perm)
    return found


def _emit(
    node: Node,
    found: Mapping[int, _Part],
    summed: Mapping[int, _Part],
    scattered: Mapping[Value, _Scatter],
    builder: Builder,
    renamed: dict[Value, Value],
) -> None:
    """The scan with sums by row, and what is made of them behind it."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    inner = Builder(body.name, Expr)
    names = body.input_names or ("",) * len(body.inputs)
    sums: dict[tuple[Value, Value], Value] = {}  # by indices and what is added: the total
    added: list[Value] = []
    indices: dict[Value, Value] = {}
    known: dict[Value, Value] = {}
    shapes = {
        (part.rows.indices, part.g): TensorType(
            _wide(part.g.dtype), (part.rows.table.shape[0], part.g.shape[-1])
        )
        for part in found.values()
    }
    with builder.located(node.loc, node.scope, node.origin):
        for part in found.values():
            if part.rows.indices not in indices:
                indices[part.rows.indices] = part.rows.at(builder).value
        begin = [zeros(t).value for t in shapes.values()]
    left = [i for i in range(n) if i not in found and i not in summed]
    with inner:
        for i in left:
            known[body.inputs[i]] = inner.input(body.inputs[i].type, names[i]).value
        carried = [inner.input(t, "sum") for t in shapes.values()]
        for i in range(n, m):
            known[body.inputs[i]] = inner.input(body.inputs[i].type, names[i]).value
        places = {
            v: inner.input(TensorType(x.dtype, x.shape[1:]), "row") for v, x in indices.items()
        }
        for i in range(m, len(body.inputs)):
            known[body.inputs[i]] = inner.input(body.inputs[i].type, names[i]).value
        gone = {body.outputs[i] for i in (*found, *summed)}
        for step in body.nodes:
            if gone.isdisjoint(step.outputs):
                inner.append(step.with_inputs(known.get(v, v) for v in step.inputs))
        with inner.located(node.loc, node.scope, node.origin):
            wraps = {(p.rows.indices, p.g): p.rows.wrap for p in found.values()}
            for (at, g), total in zip(shapes, carried, strict=True):
                one = lookup("scatter_add")(
                    zeros(total.type), cast(Expr(known.get(g, g), inner), total.dtype), places[at],
                    axes=(0,), wrap=wraps[at, g],
                )  # fmt: skip
                added.append((total + one).value)
        rest = [known.get(v, v) for v in body.outputs[n:]]
        step_body = inner.finish([*(known.get(body.outputs[i], body.outputs[i]) for i in left),
                                  *added, *rest])  # fmt: skip
    totals = [new_value(t) for t in shapes.values()]
    sums.update(zip(shapes, totals, strict=True))
    builder.append(
        replace(
            node,
            inputs=(
                *(node.inputs[i] for i in left), *begin, *node.inputs[n:m], *indices.values(),
                *node.inputs[m:],
            ),
            outputs=(*(node.outputs[i] for i in left), *totals, *node.outputs[n:]),
            attrs={
                **node.attrs, "body": DCE()(step_body), "carries": len(left) + len(totals),
                "slices": m - n + len(indices),
            },
        )
    )  # fmt: skip
    made = body.producers()
    fixed = dict(zip(body.inputs[m:], node.inputs[m:], strict=True))
    dot = lookup("dot_general")
    with builder.located(node.loc, node.scope, node.origin):
        for i, part in found.items():
            total = Expr(sums[part.rows.indices, part.g], builder)
            table = Expr(part.rows.table, builder)
            if part.rows.narrow is not None:  # as it is multiplied forward
                table = cast(cast(table, part.rows.narrow), total.dtype)
            pair = (total, table) if part.side else (table, total)
            renamed[node.outputs[i]] = dot(*pair, contract=((0,), (0,)), batch=((), ())).value
        for i, part in summed.items():
            total = Expr(sums[part.rows.indices, part.g], builder)
            renamed[node.outputs[i]] = lookup("sum")(total, axes=(0,), keepdims=False).value
        for v, out in zip(node.outputs[n:], body.outputs[n:], strict=True):
            scatter, product = scattered.get(v), made.get(out)
            if scatter is None or product is None or product.op.name != "dot_general":
                continue
            g, w = product.inputs
            rounds = made.get(w)
            read = rounds.inputs[0] if rounds is not None and rounds.op.name == "cast" else w
            if (scatter.indices, g) not in sums or read not in fixed or w.type.ndim != 2:
                continue
            (mine, theirs), batch = product.attrs["contract"], product.attrs["batch"]
            rows = next(p.rows for p in found.values() if p.rows.indices is scatter.indices)
            if mine != (g.type.ndim - 1,) or batch != ((), ()) or rows.perm != scatter.perm:
                continue
            total = Expr(sums[scatter.indices, g], builder)
            weight = Expr(renamed.get(fixed[read], fixed[read]), builder)
            weight = cast(cast(weight, w.dtype), total.dtype)
            table_sum = dot(total, weight, contract=((1,), theirs), batch=((), ()))
            renamed[scatter.node.output] = table_sum.value
