"""Axis provenance: `Graph` -> for every value and axis, the axes it stems from.

A score matrix is [T, T] by one symbol; its query and key axes are told apart here.  A source is an
axis of a graph input, or one that a node created (`iota`, random bits).  An empty set says that the
value does not change along the axis (it was stretched), `UNKNOWN` in a set that nothing is claimed.

Invariant: a source that is not `moved` is aligned: index i of the axis is index i of the source.
Alignment is of coordinates, not of data: a running sum is aligned with its operand.  Where one
source reaches two axes of a value (x·xᵀ), each carries the node and operand it came through, `via`;
where only one is left, the distinction is dropped again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.axis_factors import (
    NOTHING,
    UNKNOWN,
    Axes,
    Axis,
    AxisSource,
    Factor,
    Sources,
    join,
    moved,
    own_axes,
    shifted,
    simplified,
    sources_of,
    split_uses,
    told_apart,
    unknown_axes,
    varying,
)
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind

__all__ = ["UNKNOWN", "AxisSource", "Sources", "aligned", "provenance"]

_Rule = Callable[[Node, Sequence[Axes]], "list[Axes]"]


def provenance(graph: Graph) -> dict[Value, tuple[Sources, ...]]:
    """The sources of every axis of every value of `graph` (those of its sub-graphs left out)."""
    found = _analyse(graph, [own_axes(v) for v in graph.inputs])
    return {v: tuple(map(sources_of, axes)) for v, axes in found.items()}


def aligned(a: Sources, b: Sources) -> bool:
    """Whether two axes provably count the same thing: they share an unmoved source."""
    return any(s in b for s in a if not s.moved)


def _analyse(graph: Graph, inputs: Sequence[Axes]) -> dict[Value, Axes]:
    found = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        results = _results(node, [found[v] for v in node.inputs])
        for v, axes in zip(node.outputs, results, strict=True):
            found[v] = told_apart(node, simplified(axes))
    return found


def _results(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    rule = _BY_NAME.get(node.op.name) or _BY_KIND.get(node.op.kind)
    if rule is not None:
        return rule(node, operands)
    return [unknown_axes(v) for v in node.outputs]


def _body_results(graph: Graph, inputs: Sequence[Axes]) -> list[Axes]:
    found = _analyse(graph, inputs)
    return [found[v] for v in graph.outputs]


# --- rules


def _elementwise(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    shape = node.output.shape
    return [split_uses(node, _aligned_parts(node, operands), shape)]


def _aligned_parts(node: Node, operands: Sequence[Axes]) -> list[list[tuple[int, Axis]]]:
    """For each axis of the result the operands' axes that broadcasting puts there."""
    shape = node.output.shape
    axes: list[list[tuple[int, Axis]]] = [[] for _ in shape]
    for k, (v, given) in enumerate(zip(node.inputs, operands, strict=True)):
        lead = len(shape) - len(given)
        for i, axis in enumerate(given):
            if not _is_one(v.shape[i]) or _is_one(shape[lead + i]):
                axes[lead + i].append((k, axis))
    return axes


def _row_dot(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    rows = _aligned_parts(node, operands)[:-1]
    return [(*split_uses(node, rows, node.output.shape[:-1]), (Factor(1, NOTHING),))]


def _reduce(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    attrs = node.attrs
    gone = attrs["axes"] if "axes" in attrs else (attrs["axis"],)
    kept: list[Axis] = []
    for i, axis in enumerate(operands[0]):
        if i not in gone:
            kept.append(axis)
        elif attrs.get("keepdims"):
            kept.append((Factor(1, NOTHING),))
    return [tuple(kept)]


def _running(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    return [varying(operands[0], node.output, (node.attrs["axis"],))]


def _recurrence(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    shape = node.output.shape
    parts = [[(k, axes[i]) for k, axes in enumerate(operands)] for i in range(len(shape))]
    return [varying(split_uses(node, parts, shape), node.output, (node.attrs["axis"],))]


def _contract(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    (left, right), (batch_left, batch_right) = node.attrs["contract"], node.attrs["batch"]
    a, b = operands
    parts = [[(0, a[i]), (1, b[j])] for i, j in zip(batch_left, batch_right, strict=True)]
    parts += [[(0, a[i])] for i in range(len(a)) if i not in (*left, *batch_left)]
    parts += [[(1, b[j])] for j in range(len(b)) if j not in (*right, *batch_right)]
    return [split_uses(node, parts, node.output.shape)]


def _transpose(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    return [tuple(operands[0][i] for i in node.attrs["perm"])]


def _broadcast(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    shape = node.output.shape
    lead = len(shape) - len(operands[0])
    axes: list[Axis] = [(Factor(d, NOTHING),) for d in shape[:lead]]
    for d, old, axis in zip(shape[lead:], node.inputs[0].shape, operands[0], strict=True):
        stretched = _is_one(old) and not _is_one(d)
        axes.append((Factor(d, NOTHING),) if stretched else axis)
    return [tuple(axes)]


def _flip(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    flipped = node.attrs["axes"]
    return [_move_some(node, operands[0], lambda i: i in flipped)]


def _move_some(node: Node, axes: Axes, moves: Callable[[int], bool]) -> Axes:
    """The operand's axes, some with their elements at other places; sizes are the result's."""
    out: list[Axis] = []
    for i, (axis, d) in enumerate(zip(axes, node.outputs[0].shape, strict=True)):
        if moves(i):
            out.append(shifted(axis, d))
        elif dims.same(d, node.inputs[0].shape[i]):
            out.append(axis)
        else:
            out.append((Factor(d, sources_of(axis)),))
    return tuple(out)


def _slice(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    start, step = node.attrs["start"], node.attrs["step"]
    return [_move_some(node, operands[0], lambda i: not (_is_zero(start[i]) and step[i] == 1))]


def _pad(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    low, high, gaps = node.attrs["low"], node.attrs["high"], node.attrs["interior"]
    axes = _move_some(node, operands[0], lambda i: not (_is_zero(low[i]) and gaps[i] == 0))
    padding = zip(low, high, gaps, strict=True)
    padded = [i for i, sizes in enumerate(padding) if not all(map(_is_zero, sizes))]
    return [varying(axes, node.output, padded)]


def _is_one(d: Dim) -> bool:
    return isinstance(d, int) and d == 1


def _is_zero(d: Dim) -> bool:
    return isinstance(d, int) and d == 0


def _set_slice(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    start, step, shape = node.attrs["start"], node.attrs["step"], node.output.shape
    target, source = operands
    parts: list[list[tuple[int, Axis]]] = []
    for i, d in enumerate(shape):
        part = source[i]
        if not (_is_zero(start[i]) and step[i] == 1):
            part = shifted(part, d)
        parts.append([(0, target[i]), (1, (Factor(d, sources_of(part)),))])
    written = [i for i, d in enumerate(shape) if not dims.same(d, node.inputs[1].shape[i])]
    return [varying(split_uses(node, parts, shape), node.output, written)]


def _concatenate(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    along, shape = node.attrs["axis"], node.output.shape
    parts = [
        [
            (k, shifted(axes[i], d) if i == along and len(operands) > 1 else axes[i])
            for k, axes in enumerate(operands)
        ]
        for i, d in enumerate(shape)
    ]
    return [varying(split_uses(node, parts, shape), node.output, (along,))]


def _reshape(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    shape = node.output.shape
    factors = [f for axis in operands[0] for f in axis if not _is_one(f.size)]
    if any(_is_zero(d) for d in shape):
        everything = moved(s for f in factors for s in f.sources)
        return [tuple((Factor(d, everything),) for d in shape)]
    axes: dict[int, Axis] = {i: (Factor(1, NOTHING),) for i, d in enumerate(shape) if _is_one(d)}
    places = [i for i in range(len(shape)) if i not in axes]
    for old, new in _groups([f.size for f in factors], [shape[i] for i in places]):
        group = factors[old]
        if len(places[new]) == 1:
            axes[places[new][0]] = tuple(group)
            continue
        mixed = moved(s for f in group for s in f.sources)
        for i in places[new]:
            axes[i] = (Factor(shape[i], mixed),)
    return [tuple(axes[i] for i in range(len(shape)))]


def _groups(old: Sequence[Dim], new: Sequence[Dim]) -> Iterator[tuple[slice, slice]]:
    """The smallest runs of `old` and `new` sizes with equal products."""
    i = j = 0
    for a, product in enumerate(_products(old), 1):
        b = next(
            (b for b, q in enumerate(_products(new), 1) if b > j and dims.same(product, q)), None
        )
        if b is not None:
            yield slice(i, a), slice(j, b)
            i, j = a, b
    if i < len(old) or j < len(new):
        yield slice(i, len(old)), slice(j, len(new))


def _products(sizes: Sequence[Dim]) -> Iterator[Dim]:
    total: Dim = 1
    for size in sizes:
        total = total * size
        yield total


def _gather(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    """The axes of the indices, which lie on each other, then the axes that are not indexed."""
    taken, shape = node.attrs["axes"], node.output.shape
    x, *indices = operands
    parts = [[(1 + k, index[i]) for k, index in enumerate(indices)] for i in range(len(indices[0]))]
    parts += [[(0, axis)] for i, axis in enumerate(x) if i not in taken]
    return [split_uses(node, parts, shape)]


def _scatter(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    """An axis that data picks places on is aligned with nothing that was scattered."""
    taken, shape = node.attrs["axes"], node.output.shape
    target, updates, *indices = operands
    lead = len(indices[0])
    scattered = moved(s for axis in updates[:lead] for s in sources_of(axis))
    rest = iter(updates[lead:])
    parts: list[list[tuple[int, Axis]]] = [
        [(0, axis), (1, (Factor(d, scattered),) if i in taken else next(rest))]
        for i, (axis, d) in enumerate(zip(target, shape, strict=True))
    ]
    return [varying(split_uses(node, parts, shape), node.output, taken)]


def _sort(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    at = node.attrs.get("axis", len(operands[0]) - 1)
    results = []
    for v in node.outputs:
        axes = tuple(
            shifted(axis, d) if i == at else axis
            for i, (axis, d) in enumerate(zip(operands[0], v.shape, strict=True))
        )
        results.append(varying(axes, v, (at,)))  # the places of equal elements differ
    return results


def _created(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    return [own_axes(v) for v in node.outputs]


def _call(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    return _body_results(node.attrs["body"], operands)


def _composite(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    if node.op.decompose is None:
        return [unknown_axes(v) for v in node.outputs]
    builder = Builder(node.op.name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in node.inputs]
        with builder.located(node.loc, node.scope, node.origin):
            made = node.op.decompose(node.attrs, *inputs)
    results = (made,) if isinstance(made, Expr) else made
    return _body_results(builder.finish([e.value for e in results]), operands)


def _scan(node: Node, operands: Sequence[Axes]) -> list[Axes]:
    """Carries are what they become in the steps; time is the axis 0 of what is sliced."""
    body, n, length = node.attrs["body"], node.attrs["carries"], node.attrs["length"]
    m = n + node.attrs["slices"]
    carries = list(operands[:n])
    steps = [axes[1:] for axes in operands[n:m]]
    time = join([axes[0] for axes in operands[n:m]], length)
    if not sources_of(time) and node.outputs[n:]:
        time = own_axes(node.outputs[n])[0]
    for _ in range(2 + sum(map(len, carries))):
        results = _body_results(body, [*carries, *steps, *operands[m:]])
        joined = [
            tuple(join([a, b], d) for a, b, d in zip(old, new, v.shape, strict=True))
            for old, new, v in zip(carries, results, node.outputs, strict=False)
        ]
        if joined == carries:
            return [*carries, *((time, *axes) for axes in results[n:])]
        carries = joined
    return [unknown_axes(v) for v in node.outputs]


_BY_NAME: dict[str, _Rule] = {
    "transpose": _transpose,
    "broadcast_to": _broadcast,
    "reshape": _reshape,
    "flip": _flip,
    "slice": _slice,
    "pad": _pad,
    "set_slice": _set_slice,
    "concatenate": _concatenate,
    "gather": _gather,
    "scatter_add": _scatter,
    "scatter_set": _scatter,
    "row_dot": _row_dot,
    "argmax": _reduce,
    "argmin": _reduce,
    "sort": _sort,
    "argsort": _sort,
    "top_k": _sort,
    "linear_recurrence": _recurrence,
    "random_bits": _created,
    "call": _call,
    "remat_call": _call,
    "custom_call": _call,
    "scan": _scan,
    "flash_attention": _composite,
    "flash_attention_grad": _composite,
    "linear_cross_entropy": _composite,
    "linear_cross_entropy_grad": _composite,
}
_BY_KIND: dict[Kind, _Rule] = {
    Kind.ELEMENTWISE: _elementwise,
    Kind.REDUCE: _reduce,
    Kind.CUMULATIVE: _running,
    Kind.CONTRACT: _contract,
    Kind.CREATE: _created,
    Kind.COMPOSITE: _composite,
}
