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

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind


@dataclass(frozen=True, slots=True)
class AxisSource:
    """Axis `axis` of `value`; `via` is the node id and operand that set two uses of it apart."""

    value: Value | None
    axis: int
    moved: bool = False
    via: tuple[int, int] | None = None

    @property
    def root(self) -> tuple[Value | None, int]:
        return self.value, self.axis


UNKNOWN = AxisSource(None, 0, moved=True)
Sources = frozenset[AxisSource]
NOTHING: Sources = frozenset()


def provenance(graph: Graph) -> dict[Value, tuple[Sources, ...]]:
    """The sources of every axis of every value of `graph` (those of its sub-graphs left out)."""
    found = _analyse(graph, [_own_axes(v) for v in graph.inputs])
    return {v: tuple(map(_sources, axes)) for v, axes in found.items()}


def aligned(a: Sources, b: Sources) -> bool:
    """Whether two axes provably count the same thing: they share an unmoved source."""
    return any(s in b for s in a if not s.moved)


# An axis is a list of factors, major first: several where a reshape merged axes, so that the
# reshape that splits them again finds them as they were.


@dataclass(frozen=True, slots=True)
class _Factor:
    size: Dim = field(compare=False)  # two sizes may refuse to be compared
    sources: Sources


_Axis = tuple[_Factor, ...]
_Axes = tuple[_Axis, ...]
_Rule = Callable[[Node, Sequence[_Axes]], "list[_Axes]"]


def _own_axes(v: Value) -> _Axes:
    return tuple(
        (_Factor(d, frozenset({AxisSource(v, i)})),) for i, d in enumerate(v.shape)
    )


def _unknown_axes(v: Value) -> _Axes:
    return tuple((_Factor(d, frozenset({UNKNOWN})),) for d in v.shape)


def _moved(sources: Iterable[AxisSource]) -> Sources:
    return frozenset(dataclasses.replace(s, moved=True) for s in sources)


def _sources(axis: _Axis) -> Sources:
    """All sources of an axis; merged axes are aligned with none of theirs."""
    if len(axis) == 1:
        return axis[0].sources
    return _moved(s for factor in axis for s in factor.sources)


def _shifted(axis: _Axis, size: Dim) -> _Axis:
    return (_Factor(size, _moved(_sources(axis))),)


def _is_one(d: Dim) -> bool:
    return isinstance(d, int) and d == 1


def _same_factors(a: _Axis, b: _Axis) -> bool:
    return len(a) == len(b) and all(dims.same(x.size, y.size) for x, y in zip(a, b, strict=True))


def _absorb(sources: Sources) -> Sources:
    """Beside a source seen through a node, the same one plain adds nothing: it is aligned to it."""
    told = {s.root for s in sources if s.via is not None}
    return frozenset(s for s in sources if s.via is not None or s.root not in told)


def _join(parts: Sequence[_Axis], size: Dim) -> _Axis:
    """One axis from the operands' axes that lie on it, element by element."""
    parts = [p for p in parts if p]
    if not parts:
        return (_Factor(size, NOTHING),)
    if all(_same_factors(parts[0], p) for p in parts):
        return tuple(
            _Factor(fs[0].size, _absorb(frozenset().union(*(f.sources for f in fs))))
            for fs in zip(*parts, strict=True)
        )
    return (_Factor(size, _absorb(frozenset().union(*map(_sources, parts)))),)


def _split_uses(node: Node, axes: Sequence[list[tuple[int, _Axis]]], shape: Sequence[Dim]) -> _Axes:
    """The axes of a result, given for each the (operand, axis) contributions that lie on it."""
    plain: dict[tuple[Value | None, int], set[int]] = {}
    for i, parts in enumerate(axes):
        joined = _join([axis for _, axis in parts], shape[i])
        for s in (s for f in joined for s in f.sources):
            plain.setdefault(s.root, set()).add(i)
    shared = {root for root, places in plain.items() if len(places) > 1 and root[0] is not None}

    def told_apart(axis: _Axis, operand: int) -> _Axis:
        return tuple(
            _Factor(
                f.size,
                frozenset(
                    dataclasses.replace(s, via=(node.id, operand))
                    if s.root in shared and s.via is None
                    else s
                    for s in f.sources
                ),
            )
            for f in axis
        )

    out = []
    for i, parts in enumerate(axes):
        already = {
            s.root for _, axis in parts for f in axis for s in f.sources if s.via is not None
        }
        joined = _join([axis for _, axis in parts], shape[i])
        if shared and any(
            s.root in shared and s.root not in already for f in joined for s in f.sources
        ):
            joined = _join([told_apart(axis, operand) for operand, axis in parts], shape[i])
        out.append(joined)
    return _simplified(out)


def _simplified(axes: Sequence[_Axis]) -> _Axes:
    """Sources that reach one axis only need not be told apart."""
    places: dict[tuple[Value | None, int], set[int]] = {}
    for i, axis in enumerate(axes):
        for s in (s for f in axis for s in f.sources):
            places.setdefault(s.root, set()).add(i)

    def plain(s: AxisSource) -> AxisSource:
        alone = s.via is not None and len(places[s.root]) == 1
        return dataclasses.replace(s, via=None) if alone else s

    return tuple(
        tuple(_Factor(f.size, frozenset(map(plain, f.sources))) for f in axis) for axis in axes
    )


def _analyse(graph: Graph, inputs: Sequence[_Axes]) -> dict[Value, _Axes]:
    found = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        results = _results(node, [found[v] for v in node.inputs])
        for v, axes in zip(node.outputs, results, strict=True):
            found[v] = _simplified(axes)
    return found


def _results(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    rule = _BY_NAME.get(node.op.name) or _BY_KIND.get(node.op.kind)
    if rule is not None:
        return rule(node, operands)
    return [_unknown_axes(v) for v in node.outputs]


def _body_results(graph: Graph, inputs: Sequence[_Axes]) -> list[_Axes]:
    found = _analyse(graph, inputs)
    return [found[v] for v in graph.outputs]


# --- rules


def _elementwise(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    shape = node.output.shape
    axes: list[list[tuple[int, _Axis]]] = [[] for _ in shape]
    for k, (v, given) in enumerate(zip(node.inputs, operands, strict=True)):
        lead = len(shape) - len(given)
        for i, axis in enumerate(given):
            if not _is_one(v.shape[i]) or _is_one(shape[lead + i]):
                axes[lead + i].append((k, axis))
    return [_split_uses(node, axes, shape)]


def _reduce(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    attrs = node.attrs
    gone = attrs["axes"] if "axes" in attrs else (attrs["axis"],)
    kept: list[_Axis] = []
    for i, axis in enumerate(operands[0]):
        if i not in gone:
            kept.append(axis)
        elif attrs.get("keepdims"):
            kept.append((_Factor(1, NOTHING),))
    return [tuple(kept)]


def _first_operand(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    return [operands[0]]


def _recurrence(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    shape = node.output.shape
    parts = [[(k, axes[i]) for k, axes in enumerate(operands)] for i in range(len(shape))]
    return [_split_uses(node, parts, shape)]


def _contract(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    (left, right), (batch_left, batch_right) = node.attrs["contract"], node.attrs["batch"]
    a, b = operands
    parts = [[(0, a[i]), (1, b[j])] for i, j in zip(batch_left, batch_right, strict=True)]
    parts += [[(0, a[i])] for i in range(len(a)) if i not in (*left, *batch_left)]
    parts += [[(1, b[j])] for j in range(len(b)) if j not in (*right, *batch_right)]
    return [_split_uses(node, parts, node.output.shape)]


def _transpose(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    return [tuple(operands[0][i] for i in node.attrs["perm"])]


def _broadcast(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    shape = node.output.shape
    lead = len(shape) - len(operands[0])
    axes: list[_Axis] = [(_Factor(d, NOTHING),) for d in shape[:lead]]
    for d, old, axis in zip(shape[lead:], node.inputs[0].shape, operands[0], strict=True):
        stretched = _is_one(old) and not _is_one(d)
        axes.append((_Factor(d, NOTHING),) if stretched else axis)
    return [tuple(axes)]


def _flip(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    flipped = node.attrs["axes"]
    return [_move_some(node, operands[0], lambda i: i in flipped)]


def _move_some(node: Node, axes: _Axes, moves: Callable[[int], bool]) -> _Axes:
    """The operand's axes, some with their elements at other places; sizes are the result's."""
    out: list[_Axis] = []
    for i, (axis, d) in enumerate(zip(axes, node.outputs[0].shape, strict=True)):
        if moves(i):
            out.append(_shifted(axis, d))
        elif dims.same(d, node.inputs[0].shape[i]):
            out.append(axis)
        else:
            out.append((_Factor(d, _sources(axis)),))
    return tuple(out)


def _slice(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    start, step = node.attrs["start"], node.attrs["step"]
    return [_move_some(node, operands[0], lambda i: not (_is_zero(start[i]) and step[i] == 1))]


def _pad(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    low, gaps = node.attrs["low"], node.attrs["interior"]
    return [_move_some(node, operands[0], lambda i: not (_is_zero(low[i]) and gaps[i] == 0))]


def _is_zero(d: Dim) -> bool:
    return isinstance(d, int) and d == 0


def _set_slice(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    start, step, shape = node.attrs["start"], node.attrs["step"], node.output.shape
    target, source = operands
    parts: list[list[tuple[int, _Axis]]] = []
    for i, d in enumerate(shape):
        part = source[i]
        if not (_is_zero(start[i]) and step[i] == 1):
            part = _shifted(part, d)
        parts.append([(0, target[i]), (1, (_Factor(d, _sources(part)),))])
    return [_split_uses(node, parts, shape)]


def _concatenate(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    along, shape = node.attrs["axis"], node.output.shape
    parts = [
        [
            (k, _shifted(axes[i], d) if i == along and len(operands) > 1 else axes[i])
            for k, axes in enumerate(operands)
        ]
        for i, d in enumerate(shape)
    ]
    return [_split_uses(node, parts, shape)]


def _reshape(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    shape = node.output.shape
    factors = [f for axis in operands[0] for f in axis if not _is_one(f.size)]
    if any(_is_zero(d) for d in shape):
        everything = _moved(s for f in factors for s in f.sources)
        return [tuple((_Factor(d, everything),) for d in shape)]
    axes: dict[int, _Axis] = {i: (_Factor(1, NOTHING),) for i, d in enumerate(shape) if _is_one(d)}
    places = [i for i in range(len(shape)) if i not in axes]
    for old, new in _groups([f.size for f in factors], [shape[i] for i in places]):
        group = factors[old]
        if len(places[new]) == 1:
            axes[places[new][0]] = tuple(group)
            continue
        mixed = _moved(s for f in group for s in f.sources)
        for i in places[new]:
            axes[i] = (_Factor(shape[i], mixed),)
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


def _gather(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    """The axes of the indices, which lie on each other, then the axes that are not indexed."""
    taken, shape = node.attrs["axes"], node.output.shape
    x, *indices = operands
    parts = [[(1 + k, index[i]) for k, index in enumerate(indices)] for i in range(len(indices[0]))]
    parts += [[(0, axis)] for i, axis in enumerate(x) if i not in taken]
    return [_split_uses(node, parts, shape)]


def _scatter(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    """An axis that data picks places on is aligned with nothing that was scattered."""
    taken, shape = node.attrs["axes"], node.output.shape
    target, updates, *indices = operands
    lead = len(indices[0])
    scattered = _moved(s for axis in updates[:lead] for s in _sources(axis))
    rest = iter(updates[lead:])
    parts: list[list[tuple[int, _Axis]]] = [
        [(0, axis), (1, (_Factor(d, scattered),) if i in taken else next(rest))]
        for i, (axis, d) in enumerate(zip(target, shape, strict=True))
    ]
    return [_split_uses(node, parts, shape)]


def _sort(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    at = node.attrs.get("axis", len(operands[0]) - 1)
    return [
        tuple(
            _shifted(axis, d) if i == at else axis
            for i, (axis, d) in enumerate(zip(operands[0], v.shape, strict=True))
        )
        for v in node.outputs
    ]


def _created(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    return [_own_axes(v) for v in node.outputs]


def _call(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    return _body_results(node.attrs["body"], operands)


def _composite(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    if node.op.decompose is None:
        return [_unknown_axes(v) for v in node.outputs]
    builder = Builder(node.op.name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in node.inputs]
        with builder.located(node.loc, node.scope, node.origin):
            made = node.op.decompose(node.attrs, *inputs)
    results = (made,) if isinstance(made, Expr) else made
    return _body_results(builder.finish([e.value for e in results]), operands)


def _scan(node: Node, operands: Sequence[_Axes]) -> list[_Axes]:
    """Carries are what they become in the steps; time is the axis 0 of what is sliced."""
    body, n, length = node.attrs["body"], node.attrs["carries"], node.attrs["length"]
    m = n + node.attrs["slices"]
    carries = list(operands[:n])
    steps = [axes[1:] for axes in operands[n:m]]
    time = _join([axes[0] for axes in operands[n:m]], length)
    if m == n and node.outputs[n:]:
        time = _own_axes(node.outputs[n])[0]
    for _ in range(2 + sum(map(len, carries))):
        results = _body_results(body, [*carries, *steps, *operands[m:]])
        joined = [
            tuple(_join([a, b], d) for a, b, d in zip(old, new, v.shape, strict=True))
            for old, new, v in zip(carries, results, node.outputs, strict=False)
        ]
        if joined == carries:
            return [*carries, *((time, *axes) for axes in results[n:])]
        carries = joined
    return [_unknown_axes(v) for v in node.outputs]


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
}
_BY_KIND: dict[Kind, _Rule] = {
    Kind.ELEMENTWISE: _elementwise,
    Kind.REDUCE: _reduce,
    Kind.CUMULATIVE: _first_operand,
    Kind.CONTRACT: _contract,
    Kind.CREATE: _created,
    Kind.COMPOSITE: _composite,
}
