"""Rows of a table looked up by the turn of a loop that reads them: Graph -> Graph.

    x = take(table, i)               i = checked(i)
    scan(cell, x)              ->    scan(cell', i), which takes its rows of the table in each turn

Rows that are taken over all steps at once are an array that is written and read once more than the
table, which stays in the cache.  Done where elementwise ops read the rows, or columns of them.
Invariant: same values; the indices are checked before the loop, over all steps, as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from retrograde.compiler.ir.builder import Builder, next_id
from retrograde.compiler.ir.dtypes import i32
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.regions import is_apart

MAX_ROWS = 4096  # of a table, which is to stay in the cache


@dataclass(frozen=True)
class LookUpInScan:
    """Moves lookups of rows into the loops that read them."""

    def __call__(self, graph: Graph) -> Graph:
        found = list(_found(graph))
        if not found:
            return graph
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        taken = {look.gather: look for look in found}
        scans: dict[Node, list[_Lookup]] = {}
        for look in found:
            scans.setdefault(look.scan, []).append(look)
        with builder:
            for node in graph.nodes:
                if node in taken:
                    with builder.located(node.loc, node.scope, node.origin):
                        taken[node].indices.append(_checked(node, builder))
                elif node in scans:
                    builder.append(_with_lookups(node, scans[node]))
                else:
                    builder.append(node)
        return builder.finish(graph.outputs, graph.output_names, graph.aliases)


@dataclass(frozen=True, eq=False)
class _Lookup:
    """The gather that slice `place` of the inputs of a scan is made by; its checked indices."""

    gather: Node
    scan: Node
    place: int
    indices: list[Value] = field(default_factory=list)


def _found(graph: Graph) -> Iterator[_Lookup]:
    makers, users, returned = graph.producers(), graph.users(), set(graph.outputs)
    for scan in graph.nodes:
        if scan.op.name != "scan" or is_apart(scan) or scan.attrs.get("live") is not None:
            continue
        n = scan.attrs["carries"]
        for place in range(n, n + scan.attrs["slices"]):
            v = scan.inputs[place]
            gather = makers.get(v)
            if gather is None or v in returned or scan.inputs.count(v) > 1 or len(users[v]) > 1:
                continue
            if _takes_rows(gather) and _read_by_element(scan.attrs["body"], place):
                yield _Lookup(gather, scan, place)


def _takes_rows(node: Node) -> bool:
    if node.op.name != "gather" or node.attrs["axes"] != (0,) or len(node.inputs) != 2:
        return False
    table, indices = node.inputs
    rows = table.shape[0]
    few = table.type.ndim == 2 and isinstance(rows, int) and rows <= MAX_ROWS
    return few and indices.type.ndim > 1 and indices.dtype.is_integer


def _read_by_element(body: Graph, place: int) -> bool:
    """Whether elementwise ops alone read a slice, or some of its columns."""
    users, returned = body.users(), set(body.outputs)
    read = body.inputs[place]
    values = [read]
    for node in users.get(read, ()):
        if node.op.name == "slice":
            if not _of_columns(node):
                return False
            values.append(node.output)
    readers = [u for v in values for u in users.get(v, ()) if u.op.name != "slice"]
    sliced = [u for v in values[1:] for u in users.get(v, ()) if u.op.name == "slice"]
    if not readers or sliced or not returned.isdisjoint(values):
        return False
    return all(u.op.kind is Kind.ELEMENTWISE for u in readers)


def _of_columns(node: Node) -> bool:
    x, attrs = node.inputs[0], node.attrs
    last = x.type.ndim - 1
    whole = [attrs["start"][a] == 0 and attrs["stop"][a] == x.shape[a] for a in range(last)]
    return all(whole) and all(step == 1 for step in attrs["step"])


def _checked(gather: Node, builder: Builder) -> Value:
    """The indices from 0 on, refused as the gather refuses them."""
    table, indices = gather.inputs
    count: Expr = lookup("iota")(size=table.shape[0], dtype=i32)
    given, wrap = Expr(indices, builder), gather.attrs["wrap"]
    out: Expr = lookup("gather")(count, given, axes=(0,), wrap=wrap)
    return out.value


def _with_lookups(scan: Node, found: list[_Lookup]) -> Node:
    """The loop, with indices for rows, and the tables as constants."""
    body: Graph = scan.attrs["body"]
    inputs, given = list(scan.inputs), list(body.inputs)
    tables: list[Value] = []
    rows: dict[Value, tuple[Value, Value]] = {}  # what was a slice -> (table, indices) in the body
    for look in found:
        table, (indices,) = look.gather.inputs[0], look.indices
        inner = Value(next_id(), TensorType(indices.dtype, indices.shape[1:]))
        held = Value(next_id(), table.type)
        rows[given[look.place]] = held, inner
        inputs[look.place], given[look.place] = indices, inner
        inputs.append(table)
        tables.append(held)
    builder = Builder(body.name, Expr)
    builder.inputs.extend((*given, *tables))
    names = body.input_names or ("",) * len(body.inputs)
    builder.input_names.extend((*names, *("table",) * len(tables)))
    _emit(body, rows, builder)
    new = builder.finish(body.outputs, body.output_names, body.aliases)
    return replace(scan, inputs=tuple(inputs), attrs={**scan.attrs, "body": new})


def _emit(body: Graph, rows: Mapping[Value, tuple[Value, Value]], builder: Builder) -> None:
    renamed: dict[Value, Value] = {}
    taken: dict[Value, Value] = {}

    def looked_up(v: Value, columns: Node | None) -> Value:
        table, indices = (Expr(x, builder) for x in rows[v])
        if columns is not None:
            at = {name: columns.attrs[name][-1:] for name in ("start", "stop", "step")}
            table = lookup("slice")(
                table, start=(0, *at["start"]), stop=(table.shape[0], *at["stop"]),
                step=(1, *at["step"]),
            )  # fmt: skip
        out: Expr = lookup("gather")(table, indices, axes=(0,), wrap=False, checked=True)
        return out.value

    with builder:
        for node in body.nodes:
            with builder.located(node.loc, node.scope, node.origin):
                if node.op.name == "slice" and node.inputs[0] in rows:
                    renamed[node.output] = looked_up(node.inputs[0], node)
                    continue
                for v in node.inputs:
                    if v in rows and v not in taken:
                        renamed[v] = taken[v] = looked_up(v, None)
            builder.append(node.with_inputs(renamed.get(v, v) for v in node.inputs))
