"""Probes on the carries of loops: Graph -> Graph whose gradient tells the norms of dL/dh_t.

Every float carry of every scan gets a probe q, one number a step, as one more input of the graph
(inside of another loop: one number for each step of both).  h_t, the carry that leaves step t,
passes through an operation that returns it as it is and whose gradient by q_t is, in place of a
derivative, the Euclidean norm of the cotangent of h_t.  Invariant: the graph computes the same
values, and nothing is kept or made that is larger than the probes, beside what dL/dh_t itself
needs.

All that the step makes of h_t counts: what its results read of it, too.  Where the carry is chosen
between a new and the old value, `where(alive, new, old)`, h_t is what was chosen; and with one
boolean for each row, as `lengths` have it, the rows that keep the old one take no part in the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder, new_value
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, Value, same_type
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.region import custom_call, silent

_ENTERED = frozenset({"cond", "call", "remat_call"})  # those that are differentiated inside
_ORIGIN = Origin("cotangent", "watch")


@dataclass(frozen=True)
class WatchedCarry:
    """Where a probe sits: a carry of the scan at `loc`.

    `reverse` tells, from the outermost loop to this one, which run from the last step to the
    first; `carry` is the path of the leaf."""

    loc: Loc | None
    scope: str
    reverse: tuple[bool, ...]
    carry: str


def watch_carries(graph: Graph, per_row: bool = False) -> tuple[Graph, tuple[WatchedCarry, ...]]:
    """The graph with a probe for each float carry as further inputs, in the order of the result.

    A probe is of shape [steps], with `per_row` [steps, rows] where the carry has axes, the first of
    which are its rows; in f64 for a carry of f64, else in f32.  Loops that a derivative made, and
    those inside of `custom_vjp` and `while_loop`, have none."""
    found, carries = _watched(silent(graph), per_row)
    return found, tuple(carries)


def _watched(graph: Graph, per_row: bool) -> tuple[Graph, list[WatchedCarry]]:
    probes: list[Value] = []
    carries: list[WatchedCarry] = []
    nodes = []
    for node in graph.nodes:
        if node.origin.role == "primal" and node.op.name == "scan":
            node, more, told = _scan(node, per_row)
        elif node.op.name in _ENTERED:
            node, more, told = _entered(node, per_row)
        else:
            more, told = [], []
        nodes.append(node)
        probes += more
        carries += told
    if not probes:
        return graph, []
    return _with_inputs(graph.replace(nodes=tuple(nodes)), probes), carries


def _with_inputs(graph: Graph, more: Sequence[Value]) -> Graph:
    names = graph.input_names or ("",) * len(graph.inputs)
    return graph.replace(
        inputs=(*graph.inputs, *more),
        input_names=(*names, *(f"probe {i}" for i in range(len(more)))),
    )


def _entered(node: Node, per_row: bool) -> tuple[Node, list[Value], list[WatchedCarry]]:
    """A branch or call with the probes of its sub-graphs, all of which take all operands."""
    found = {key: _watched(body, per_row) for key, body in node.subgraphs()}
    operands: list[Value] = []
    carries: list[WatchedCarry] = []
    for key, body in node.subgraphs():
        graph, told = found[key]
        operands += [new_value(v.type) for v in graph.inputs[len(body.inputs) :]]
        carries += told
    if not operands:
        return node, [], []
    attrs = dict(node.attrs)
    for key, body in node.subgraphs():
        n = len(body.inputs)
        taken: list[Value] = []
        for other, whole in node.subgraphs():
            own = found[other][0].inputs[len(whole.inputs) :]
            taken += own if other == key else [new_value(v.type) for v in own]
        graph = found[key][0]
        names = graph.input_names[:n] or ("",) * n
        attrs[key] = _with_inputs(graph.replace(inputs=body.inputs, input_names=names), taken)
    return replace(node, inputs=(*node.inputs, *operands), attrs=attrs), operands, carries


def _scan(node: Node, per_row: bool) -> tuple[Node, list[Value], list[WatchedCarry]]:
    """A loop with its probes: one for each float carry, then those of the loops inside of it."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    names = body.input_names or ("",) * len(body.inputs)
    reverse = bool(node.attrs["reverse"])
    inside, told = _watched(body, per_row)
    probes, carries = [], []
    graph = inside.replace(inputs=body.inputs, input_names=names)
    for i, v in enumerate(body.outputs[:n]):
        if v.dtype.is_float:
            probe = new_value(_probe_type(v.type, per_row))
            graph = _tapped(graph, i, probe, per_row, node)
            probes.append(probe)
            carries.append(WatchedCarry(node.loc, node.scope, (reverse,), names[i]))
    probes += inside.inputs[len(body.inputs) :]
    carries += [replace(c, reverse=(reverse, *c.reverse)) for c in told]
    if not probes:
        return node, [], []
    graph = graph.replace(
        inputs=(*body.inputs[:m], *probes, *body.inputs[m:]),
        input_names=(*names[:m], *("probe",) * len(probes), *names[m:]),
    )
    length = node.attrs["length"]
    operands = [new_value(TensorType(v.dtype, (length, *v.shape))) for v in probes]
    attrs = {**node.attrs, "body": graph, "slices": node.attrs["slices"] + len(probes)}
    inputs = (*node.inputs[:m], *operands, *node.inputs[m:])
    return replace(node, inputs=inputs, attrs=attrs), operands, carries


def _probe_type(carry: TensorType, per_row: bool) -> TensorType:
    return TensorType(_wide(carry.dtype), carry.shape[:1] if per_row else ())


def _wide(dtype: DType) -> DType:
    return dtype if dtype.bytes == 8 else dtypes.f32


def _tapped(graph: Graph, i: int, probe: Value, per_row: bool, loop: Node) -> Graph:
    """A body whose output `i` passes through a tap, for all that reads it afterwards."""
    out = graph.outputs[i]
    makers = graph.producers()
    maker = makers.get(out)
    if maker is None:  # an input that is passed on: of its readers, only the next step is after it
        tap = _tap(out, probe, per_row, loop)
        outputs = (*graph.outputs[:i], tap.output, *graph.outputs[i + 1 :])
        return graph.replace(nodes=(*graph.nodes, tap), outputs=outputs)
    before = _ancestors(maker, makers)
    ahead = [node for node in graph.nodes if node in before]
    after = [node for node in graph.nodes if node not in before]
    choice = _Choice.of(maker, graph.inputs[i])
    tap = _tap(out, probe, per_row, loop, choice)
    renamed = {out: tap.output}
    made = [tap]
    if choice is not None and same_type(choice.new.type, out.type):
        again = choice.made_anew(tap.output)
        renamed[choice.new] = again.output
        made.append(again)
    after = [node.with_inputs(renamed.get(v, v) for v in node.inputs) for node in after]
    outputs = tuple(renamed.get(v, v) for v in graph.outputs)
    return graph.replace(nodes=(*ahead, *made, *after), outputs=outputs)


@dataclass(frozen=True)
class _Choice:
    """A carry `where(flag, new, old)`, or `where(flag, old, new)` if `swapped`."""

    select: Node
    flag: Value
    new: Value
    swapped: bool

    @classmethod
    def of(cls, maker: Node, old: Value) -> _Choice | None:
        if maker.op.name != "select":
            return None
        flag, a, b = maker.inputs
        if (a is old) == (b is old):
            return None
        return cls(maker, flag, b if a is old else a, a is old)

    def made_anew(self, tapped: Value) -> Node:
        """`new`, taken from the tapped carry where that is it: what else reads `new` reads h_t."""
        pair = (self.new, tapped) if self.swapped else (tapped, self.new)
        builder = Builder("watch", Expr)
        with builder, builder.located(self.select.loc, self.select.scope, _ORIGIN):
            builder.emit(self.select.op, (self.flag, *pair), {})
        return builder.nodes[0]

    @property
    def by_row(self) -> bool:
        """Whether one boolean decides for a whole row."""
        carry = self.select.output.shape
        flag = self.flag.shape
        return (
            len(flag) == len(carry) > 0
            and dims.same(flag[0], carry[0])
            and all(dims.same(d, 1) for d in flag[1:])
        )


def _ancestors(node: Node, makers: dict[Value, Node]) -> set[Node]:
    """The node and all that it depends on."""
    found = {node}
    work = [node]
    while work:
        for v in work.pop().inputs:
            made = makers.get(v)
            if made is not None and made not in found:
                found.add(made)
                work.append(made)
    return found


def _tap(v: Value, probe: Value, per_row: bool, loop: Node, choice: _Choice | None = None) -> Node:
    """(h, q) -> h, whose gradient by q is the norm of that by h; of the rows that `choice` took."""
    flags = (choice.flag,) if choice is not None and choice.by_row else ()
    swapped = choice is not None and choice.swapped
    mask = [f.type for f in flags]
    given = [v.type, probe.type, *mask]

    def back(*inner: Expr) -> list[Expr]:
        (*flag, g) = inner
        return [g, _norm(_taken(g, flag[0], swapped) if flag else g, per_row)]

    attrs = {
        "body": _graph("tap", given, lambda x, q, *_: [x]),
        "forward": _graph("tap", given, lambda x, q, *kept: [x, *kept]),
        "backward": _graph("tap.backward", [*mask, v.type], back),
    }
    builder = Builder("watch", Expr)
    with builder, builder.located(loop.loc, loop.scope, _ORIGIN):
        builder.emit(custom_call, (v, probe, *flags), attrs)
    return builder.nodes[0]


def _taken(g: Expr, flag: Expr, swapped: bool) -> Expr:
    """`g`, and zeros in the rows that kept their carry."""
    nothing = zeros(g.type)
    found: Expr = lookup("select")(flag, *((nothing, g) if swapped else (g, nothing)))
    return found


def _graph(name: str, types: Iterable[TensorType], call: Callable[..., list[Expr]]) -> Graph:
    builder = Builder(name, Expr)
    with builder, builder.located(None, None, _ORIGIN):
        outputs = call(*(builder.input(t) for t in types))
    return builder.finish([x.value for x in outputs])


def _norm(g: Expr, per_row: bool) -> Expr:
    """The Euclidean norm, over the rows one by one if `per_row`.

    The numbers are divided by the largest before they are squared, so that neither 1e-30 nor 1e30
    leaves the range of f32; an infinity stays one, and NaN is NaN."""
    size = abs(cast(g, _wide(g.dtype)))
    axes = tuple(range(1 if per_row and g.ndim else 0, g.ndim))
    if not axes:
        out: Expr = size
        return out
    shape = g.shape[:1] if len(axes) < g.ndim else ()
    if any(dims.same(g.shape[a], 0) for a in range(g.ndim)):
        return zeros(TensorType(size.dtype, shape))
    largest = lookup("max")(size, axes=axes, keepdims=True)
    usual = lookup("logical_and")(largest > 0.0, largest < float("inf"))
    scale = lookup("select")(usual, largest, 1.0)
    parts = size / scale
    total = lookup("sum")(parts * parts, axes=axes, keepdims=False)
    norm: Expr = lookup("sqrt")(total) * lookup("reshape")(scale, shape=shape)
    return norm
