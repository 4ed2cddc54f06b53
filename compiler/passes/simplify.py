"""Local algebra by rule tables: Graph -> Graph.

A rule is a pattern over a node and the producers of its operands, and what replaces its result.
Invariant: every rule keeps each element's bits, up to the payload of a NaN and, where a sum is left
out, the sign of a zero; in particular nothing here assumes that values are finite, and sums are not
reassociated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import same
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind, lookup


@dataclass
class Match:
    """What a rule sees: a node, the producers of values, and a builder to write in."""

    node: Node
    producers: dict[Value, Node]
    builder: Builder
    uses: dict[Value, int] = field(default_factory=dict)

    def operand(self, i: int) -> Value:
        return self.node.inputs[i]

    def expr(self, v: Value) -> Expr:
        return Expr(v, self.builder)

    def made_by(self, i: int, *names: str) -> Node | None:
        """The producer of operand `i` if its op is one of `names`."""
        found = self.producers.get(self.node.inputs[i])
        return found if found is not None and found.op.name in names else None

    def scalar(self, i: int) -> Any:
        """The constant that operand `i` is everywhere, or None."""
        found = self.producers.get(self.node.inputs[i])
        while found is not None and found.op.name == "broadcast_to":
            found = self.producers.get(found.inputs[0])
        return found.attrs["value"] if found is not None and found.op.name == "constant" else None

    def keeps_type(self, i: int) -> bool:
        """Whether the result has the type of operand `i`."""
        v = self.node.inputs[i]
        return v.dtype is self.node.output.dtype and same_shape(v.shape, self.node.output.shape)


Rule = Callable[[Match], "Value | Expr | None"]


def _neutral(i: int, value: float) -> Rule:
    """op(x, value) -> x, where `i` is the place of the constant."""

    def rule(m: Match) -> Value | None:
        found = m.scalar(i)
        if found is None or isinstance(found, bool) or repr(float(found)) != repr(float(value)):
            return None
        return m.operand(1 - i) if m.keeps_type(1 - i) else None

    return rule


def _integer_zero(i: int) -> Rule:
    """x + 0 -> x for integers; for floats only -0.0 is neutral, since -0.0 + 0.0 is 0.0."""

    def rule(m: Match) -> Value | None:
        if m.node.output.dtype.is_float or m.scalar(i) != 0:
            return None
        return m.operand(1 - i) if m.keeps_type(1 - i) else None

    return rule


def _same_type(m: Match) -> Value | None:
    """An op that changes nothing but the type, and not even that."""
    return m.operand(0) if m.keeps_type(0) else None


def _twice(m: Match) -> Value | None:
    """op(op(x)) -> x for an involution."""
    inner = m.made_by(0, m.node.op.name)
    return inner.inputs[0] if inner else None


def _reshape_of_reshape(m: Match) -> Expr | None:
    inner = m.made_by(0, "reshape")
    if inner is None:
        return None
    return _reshape(m.expr(inner.inputs[0]), m.node.attrs["shape"])


def _reshape(x: Expr, shape: Any) -> Expr:
    out: Expr = lookup("reshape")(x, shape=shape)
    return out


def _reshape_of_sum(m: Match) -> Expr | None:
    """A sum that drops axes, put back as ones, is the sum that keeps them."""
    inner = m.made_by(0, "sum", "max", "min", "prod")
    if inner is None or inner.attrs["keepdims"] or m.uses.get(inner.output, 0) > 1:
        return None
    source = inner.inputs[0]
    axes = inner.attrs["axes"]
    kept = [1 if i in axes else d for i, d in enumerate(source.shape)]
    if not same_shape(kept, m.node.attrs["shape"]):
        return None
    with m.builder.located(inner.loc, inner.scope, inner.origin):  # a recomputed one stays one
        out: Expr = inner.op(m.expr(source), axes=axes, keepdims=True)
    return out


def _transpose_of_transpose(m: Match) -> Value | Expr | None:
    inner = m.made_by(0, "transpose")
    if inner is None:
        return None
    perm = tuple(inner.attrs["perm"][i] for i in m.node.attrs["perm"])
    out: Expr = lookup("transpose")(m.expr(inner.inputs[0]), perm=perm)
    return out


def _identity_transpose(m: Match) -> Value | None:
    perm = m.node.attrs["perm"]
    return m.operand(0) if perm == tuple(range(len(perm))) else None


def _broadcast_of_broadcast(m: Match) -> Expr | None:
    inner = m.made_by(0, "broadcast_to")
    if inner is None:
        return None
    out: Expr = lookup("broadcast_to")(m.expr(inner.inputs[0]), shape=m.node.attrs["shape"])
    return out


def _cast_of_cast(m: Match) -> Value | Expr | None:
    """A widening cast undone, or two casts of which the first loses nothing."""
    inner = m.made_by(0, "cast")
    if inner is None:
        return None
    first, middle, last = inner.inputs[0].dtype, inner.output.dtype, m.node.output.dtype
    if first.kind != middle.kind or first.bytes > middle.bytes:
        return None
    if first.kind == "float" and first.bytes == middle.bytes and first is not middle:
        return None
    if first.kind == "float" and last.is_integer:
        return None  # what is out of range differs by the type that it comes from
    if first is last:
        return inner.inputs[0]
    out: Expr = lookup("cast")(m.expr(inner.inputs[0]), dtype=last)
    return out


def _add_negated(m: Match) -> Expr | None:
    """a + (-b) -> a - b, and (-a) + b -> b - a."""
    for i in (1, 0):
        inner = m.made_by(i, "neg")
        if inner is not None:
            out: Expr = m.expr(m.operand(1 - i)) - m.expr(inner.inputs[0])
            return out
    return None


def _sub_negated(m: Match) -> Expr | None:
    inner = m.made_by(1, "neg")
    if inner is None:
        return None
    out: Expr = m.expr(m.operand(0)) + m.expr(inner.inputs[0])
    return out


def _drop_broadcast(m: Match) -> Expr | None:
    """An operand that is stretched only for this op stretches by itself."""
    for i, v in enumerate(m.node.inputs):
        inner = m.made_by(i, "broadcast_to")
        if inner is None:
            continue
        others = [w.shape for j, w in enumerate(m.node.inputs) if j != i]
        if not any(same_shape(s, m.node.output.shape) for s in others):
            continue
        operands = [inner.inputs[0] if j == i else w for j, w in enumerate(m.node.inputs)]
        assert v.dtype is operands[i].dtype
        out: Expr = m.node.op(*(m.expr(w) for w in operands), **m.node.attrs)
        return out
    return None


def _full_slice(m: Match) -> Value | None:
    a = m.node.attrs
    whole = all(same(s, 0) for s in a["start"]) and all(k == 1 for k in a["step"])
    return m.operand(0) if whole and same_shape(m.operand(0).shape, m.node.output.shape) else None


def _empty_pad(m: Match) -> Value | None:
    a = m.node.attrs
    none = all(same(d, 0) for d in (*a["low"], *a["high"], *a["interior"]))
    return m.operand(0) if none else None


def _only_operand(m: Match) -> Value | None:
    return m.operand(0) if len(m.node.inputs) == 1 else None


def _add_of_pads(m: Match) -> Expr | None:
    """Zero-padded neighbours, added, are one padded concatenation.

    The gradient of `split` is such a sum.  -0.0 + 0.0 turns a negative zero of an operand into a
    positive one; the concatenation keeps it, as the parts themselves did."""
    a, b = m.made_by(0, "pad"), m.made_by(1, "pad")
    if a is None or b is None or not (_zero_pad(a) and _zero_pad(b)):
        return None
    for first, second in ((a, b), (b, a)):
        axis = _neighbours(first, second)
        if axis is None:
            continue
        x = [m.expr(first.inputs[0]), m.expr(second.inputs[0])]
        joined: Expr = lookup("concatenate")(*x, axis=axis)
        low = list(first.attrs["low"])
        high = list(first.attrs["high"])
        high[axis] = second.attrs["high"][axis]
        interior = (0,) * len(low)
        out: Expr = lookup("pad")(
            joined, low=tuple(low), high=tuple(high), interior=interior, value=0.0
        )
        return out
    return None


def _zero_pad(node: Node) -> bool:
    zero = repr(float(node.attrs["value"])) == "0.0"
    return zero and all(same(d, 0) for d in node.attrs["interior"])


def _neighbours(first: Node, second: Node) -> int | None:
    """The axis along which `second` starts where `first` ends, all else being equal."""
    if not same_shape(first.output.shape, second.output.shape):
        return None
    low1, low2 = first.attrs["low"], second.attrs["low"]
    shape1, shape2 = first.inputs[0].shape, second.inputs[0].shape
    differing = [i for i, (a, b) in enumerate(zip(low1, low2, strict=True)) if not same(a, b)]
    if len(differing) != 1:
        return None
    (axis,) = differing
    if not same(low1[axis] + shape1[axis], low2[axis]):
        return None
    rest = [i for i in range(len(low1)) if i != axis]
    if not all(same(shape1[i], shape2[i]) for i in rest):
        return None
    return axis


def _flat_concatenate(m: Match) -> Expr | None:
    """A concatenation inside one along the same axis joins it."""
    axis = m.node.attrs["axis"]
    parts: list[Value] = []
    for i, v in enumerate(m.node.inputs):
        inner = m.made_by(i, "concatenate")
        nested = inner is not None and inner.attrs["axis"] == axis and m.uses.get(v, 0) == 1
        parts.extend(inner.inputs if nested and inner is not None else (v,))
    if len(parts) == len(m.node.inputs):
        return None
    out: Expr = lookup("concatenate")(*(m.expr(v) for v in parts), axis=axis)
    return out


def _known_select(m: Match) -> Value | None:
    condition = m.scalar(0)
    if condition is None:
        return None
    i = 1 if condition else 2
    return m.operand(i) if m.keeps_type(i) else None


def _sum_of_nothing(m: Match) -> Value | None:
    return m.operand(0) if not m.node.attrs["axes"] and m.keeps_type(0) else None


def _size_one_sum(m: Match) -> Expr | None:
    """A sum over axes of size one is a reshape."""
    x = m.operand(0)
    if x.dtype is not m.node.output.dtype or not m.node.attrs["axes"]:
        return None
    if not all(same(x.shape[i], 1) for i in m.node.attrs["axes"]):
        return None
    return _reshape(m.expr(x), m.node.output.shape)


def _static_dim(m: Match) -> Expr | None:
    size = m.node.attrs["size"]
    if not isinstance(size, int):
        return None
    return m.builder.constant(size, m.node.attrs["dtype"])


def _operand(m: Match) -> Value:
    return m.operand(0)


RULES: dict[str, tuple[Rule, ...]] = {
    "add": (_neutral(0, -0.0), _neutral(1, -0.0), _integer_zero(0), _integer_zero(1),
            _add_of_pads, _add_negated),
    "sub": (_neutral(1, 0.0), _sub_negated),
    "mul": (_neutral(0, 1.0), _neutral(1, 1.0)),
    "div": (_neutral(1, 1.0),),
    "neg": (_twice,),
    "logical_not": (_twice,),
    "select": (_known_select,),
    "cast": (_same_type, _cast_of_cast),
    "reshape": (_same_type, _reshape_of_reshape, _reshape_of_sum),
    "transpose": (_identity_transpose, _transpose_of_transpose),
    "broadcast_to": (_same_type, _broadcast_of_broadcast),
    "slice": (_full_slice,),
    "pad": (_empty_pad,),
    "concatenate": (_only_operand, _flat_concatenate),
    "sum": (_sum_of_nothing, _size_one_sum),
    "max": (_sum_of_nothing, _size_one_sum),
    "min": (_sum_of_nothing, _size_one_sum),
    "dim_value": (_static_dim,),
    "stop_gradient": (_operand,),  # derivatives have been taken by now
}  # fmt: skip
BY_KIND: dict[Kind, tuple[Rule, ...]] = {Kind.ELEMENTWISE: (_drop_broadcast,)}
# Rules by kind, and those of these ops, apply only where one of TELLING makes an operand.
BY_OPERANDS = frozenset({"add", "sub", "mul", "div", "neg", "logical_not", "select"})
TELLING = frozenset({"constant", "broadcast_to", "pad", "neg", "logical_not"})


@dataclass(frozen=True)
class Simplify:
    """Applies the rule tables until nothing changes, at most `rounds` times."""

    rounds: int = 4

    def __call__(self, graph: Graph) -> Graph:
        for _ in range(self.rounds):
            after = self._once(graph)
            if after is graph:
                break
            graph = after
        return graph

    def _once(self, graph: Graph) -> Graph:
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        producers: dict[Value, Node] = {}
        renamed: dict[Value, Value] = {}
        uses: dict[Value, int] = {}
        for node in graph.nodes:
            for v in node.inputs:
                uses[v] = uses.get(v, 0) + 1
        for v in graph.outputs:
            uses[v] = uses.get(v, 0) + 1
        changed = False
        with builder:
            for node in graph.nodes:
                if renamed and any(v in renamed for v in node.inputs):
                    node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
                result = None
                rules = _rules(node, producers)
                if rules:
                    result = _first(rules, Match(node, producers, builder, uses))
                if result is None:
                    builder.append(node)
                    for v in node.outputs:
                        producers[v] = node
                    continue
                changed = True
                renamed[node.output] = result
                uses[result] = uses.get(result, 0) + uses.get(node.output, 0)
        if not changed:
            return graph
        return graph.replace(
            nodes=tuple(builder.nodes),
            outputs=tuple(renamed.get(v, v) for v in graph.outputs),
        )


def _first(rules: Sequence[Rule], m: Match) -> Value | None:
    """The result of the first rule that applies; the nodes it made are registered."""
    node = m.node
    m.builder.locate(node.loc, node.scope, node.origin)
    for rule in rules:
        first = len(m.builder.nodes)
        found = rule(m)
        if found is None:
            continue
        for made in m.builder.nodes[first:]:
            m.producers.update((v, made) for v in made.outputs)
            for v in made.inputs:
                m.uses[v] = m.uses.get(v, 0) + 1
        return found.value if isinstance(found, Expr) else found
    return None


def _rules(node: Node, producers: Mapping[Value, Node]) -> tuple[Rule, ...]:
    """The rules that may apply to a node."""
    name, kind = node.op.name, node.op.kind
    if name not in RULES and kind not in BY_KIND:
        return ()
    if name in BY_OPERANDS or name not in RULES:
        for v in node.inputs:
            made = producers.get(v)
            if made is not None and made.op.name in TELLING:
                break
        else:
            return ()
    return (*RULES.get(name, ()), *BY_KIND.get(kind, ()))

