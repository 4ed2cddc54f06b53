"""Finds attention in a graph: the op, and softmax(q k^T * scale + masks) v as it is written out.

Input: the node that makes the result; output: a `Match`, or `Refused` with the reason.  Invariant:
what is matched computes what `flash_attention` of the match computes, up to rounding, and for
queries without keys what `empty` says: zeros, "nan" (as exp(x - max) / sum gives) or "mean" (as
softmax gives for a row where all scores are one finite number).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ops.attention import scale_of
from retrograde.compiler.ops.contract import free_axes
from retrograde.compiler.passes.attention_masks import MaskReader, Predicates, constant_of
from retrograde.compiler.passes.attention_operands import Operand, before_repeat

CLOSED = -1e4  # a score that counts as minus infinity


class Refused(Exception):
    """Why something that looks like attention is left as it is."""


@dataclass(frozen=True)
class Dropout:
    key: Value
    row: Value
    keep: float


@dataclass
class Match:
    """`batch`: how many lead axes q shares with k and v."""

    q: Operand
    k: Operand
    v: Operand
    batch: int
    scale: float
    predicates: Predicates
    biases: list[tuple[Value, float]] = field(default_factory=list)
    dropout: Dropout | None = None
    empty: str = "zeros"


def attention_op(node: Node, producers: dict[Value, Node]) -> Match:
    """The match of an `attention` node."""
    q, k, v, *masks = node.inputs
    rank = q.type.ndim
    order = tuple(range(rank))
    reader = MaskReader(producers, rank, batch=rank > 2)
    for mask in masks:
        reader.read(mask)
    found = reader.found
    if node.attrs["causal"]:
        found.at_most(k.shape[-2] - q.shape[-2])
    scale = scale_of(node.attrs, q.shape[-1])
    operands = Operand(q, order), Operand(k, order), Operand(v, order)
    return Match(*operands, rank - 2, scale, found)


class Matcher:
    """Reads one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producers = graph.producers()
        self.users = graph.users()
        self.inside: set[Node] = set()

    def match(self, node: Node) -> Match | None:
        """The attention that ends in `node`, or None; raises Refused where it is close to one."""
        if node.op.name == "attention":
            return self._sharing(attention_op(node, self.producers))
        if node.op.name != "dot_general":
            return None
        self.inside = set()
        weights, dropout = self._undropped(node.inputs[0])
        normal = self._softmax(weights)
        if normal is None:
            return None
        scores, empty = normal
        k_dot, factor, masks, biases = self._scores(scores)
        match = self._sharing(self._operands(node, k_dot))
        match.scale, match.dropout = factor, dropout
        self._masked(match, masks, biases, empty, scores)
        self._check_private(node)
        return match

    def _by(self, v: Value, *names: str) -> Node | None:
        node = self.producers.get(v)
        return node if node is not None and node.op.name in names else None

    def _through(self, v: Value, scores: Value) -> Value | None:
        """Past what only shapes, stretches or marks a number for each row of `scores`; None where
        it meets others than that row's, as [T] beside [T, T] does."""
        rows, moves = (*scores.shape[:-1], 1), ("broadcast_to", "stop_gradient")
        while (node := self._by(v, *moves)) is not None and not same_shape(v.shape, rows):
            self.inside.add(node)
            v = node.inputs[0]
        if not same_shape(v.shape, rows):
            return None
        while (node := self._by(v, "reshape", "stop_gradient")) is not None:
            self.inside.add(node)
            v = node.inputs[0]
        return v

    # --- the weights

    def _undropped(self, v: Value) -> tuple[Value, Dropout | None]:
        """Past where(uniform < keep, weights / keep, 0)."""
        node = self._by(v, "select")
        if node is None or constant_of(node.inputs[2], self.producers) != 0.0:
            return v, None
        test = self._by(node.inputs[0], "less")
        times = self._by(node.inputs[1], "mul", "div")
        if test is None or times is None:
            return v, None
        unit, chance = test.inputs
        keep = constant_of(chance, self.producers)
        many = constant_of(times.inputs[1], self.producers)
        drawn = self._drawn(unit)
        if drawn is None or keep is None or many is None:
            return v, None
        if abs((many if times.op.name == "mul" else 1 / many) * keep - 1) > 1e-6:
            return v, None
        same_shape = all(map(dims.same, drawn.output.shape, v.shape))
        if drawn.output.type.ndim != v.type.ndim or not same_shape:
            return v, None
        self.inside |= {node, times}
        key, row = drawn.inputs
        return times.inputs[0], Dropout(key, row, float(keep))

    def _drawn(self, unit: Value) -> Node | None:
        """The bits whose upper 24 make the numbers in [0, 1)."""
        scaled = self._by(unit, "mul")
        if scaled is None or constant_of(scaled.inputs[1], self.producers) != 2.0**-24:
            return None
        number = self._by(scaled.inputs[0], "cast")
        shifted = self._by(number.inputs[0], "shift_right") if number else None
        if shifted is None or constant_of(shifted.inputs[1], self.producers) != 8:
            return None
        return self._by(shifted.inputs[0], "random_bits")

    def _softmax(self, v: Value) -> tuple[Value, str] | None:
        """The scores of the weights `v`, and what a row of -inf gives."""
        last = v.type.ndim - 1
        node = self._by(v, "softmax", "div")
        if node is None:
            return None
        if node.op.name == "softmax":
            self.inside.add(node)
            return (node.inputs[0], "zeros") if node.attrs["axis"] == last else None
        e, total = node.inputs
        exp, below = self._by(e, "exp"), self._through(total, e)
        summed = None if below is None else self._by(below, "sum")
        if exp is None or summed is None or summed.inputs[0] is not e:
            return None
        if summed.attrs["axes"] != (last,):
            return None
        self.inside |= {node, exp, summed}
        less = self._by(exp.inputs[0], "sub")
        by = self._through(less.inputs[1], less.inputs[0]) if less else None
        top = None if by is None else self._by(by, "max")
        if less is None or top is None or top.inputs[0] is not less.inputs[0]:
            raise Refused("exp is not taken of what is left of the largest score")
        if top.attrs["axes"] != (last,):
            raise Refused("the largest score is not that of the axis that is summed over")
        self.inside |= {less, top}
        return less.inputs[0], "nan"

    # --- the scores

    def _scores(
        self, v: Value
    ) -> tuple[Node, float, list[tuple[Value, bool, float]], list[tuple[Value, float]]]:
        """q k^T, its factor, masks (value, truth, what closed scores are), biases with factors."""
        factor = 1.0
        masks: list[tuple[Value, bool, float]] = []
        biases: list[tuple[Value, float]] = []
        while True:
            node = self.producers.get(v)
            if node is None:
                raise Refused("the scores are an input, not a product of queries and keys")
            name = node.op.name
            self.inside.add(node)
            if name == "dot_general":
                return node, factor, masks, biases
            if name in ("mul", "div"):
                by, v = self._constant_factor(node)
                factor *= by
            elif name in ("add", "sub"):
                v, bias, sign = self._biased(node)
                biases.append((bias, factor * sign))
            elif name == "select":
                v, mask, truth, fill = self._closed(node)
                masks.append((mask, truth, fill * factor))
            else:
                raise Refused(f"the scores go through {name}")
            if factor <= 0:
                raise Refused(f"the scores are multiplied by {factor}")

    def _constant_factor(self, node: Node) -> tuple[float, Value]:
        a, b = node.inputs
        by = constant_of(b, self.producers)
        if by is None and node.op.name == "mul":
            a, by = b, constant_of(a, self.producers)
        if by is None:
            raise Refused("the scores are multiplied by what is no constant: scale q instead")
        return float(by) if node.op.name == "mul" else 1.0 / float(by), a

    def _biased(self, node: Node) -> tuple[Value, Value, float]:
        a, b = node.inputs
        sign = 1.0 if node.op.name == "add" else -1.0
        if self._leads_to_product(a):
            return a, b, sign
        if node.op.name == "add" and self._leads_to_product(b):
            return b, a, 1.0
        raise Refused("neither part of the scores is a product of queries and keys")

    def _leads_to_product(self, v: Value) -> bool:
        on_the_way = ("mul", "div", "add", "sub", "select", "dot_general")
        while (node := self._by(v, *on_the_way)) is not None:
            if node.op.name == "dot_general":
                return True
            if node.op.name == "select":
                fill = constant_of(node.inputs[1], self.producers) is not None
                v = node.inputs[2 if fill else 1]
            elif constant_of(node.inputs[0], self.producers) is not None:
                v = node.inputs[1]
            elif node.op.name == "add" and self._leads_to_product(node.inputs[1]):
                return True
            else:
                v = node.inputs[0]
        return False

    def _closed(self, node: Node) -> tuple[Value, Value, bool, float]:
        test, a, b = node.inputs
        for kept, other, truth in ((a, b, True), (b, a, False)):
            fill = constant_of(other, self.producers)
            if fill is not None and fill <= CLOSED:
                return kept, test, truth, float(fill)
        raise Refused("a score is replaced by what is not minus infinity or near it")

    # --- the masks

    def _masked(
        self,
        match: Match,
        masks: Sequence[tuple[Value, bool, float]],
        biases: Sequence[tuple[Value, float]],
        empty: str,
        scores: Value,
    ) -> None:
        lead = scores.type.ndim - 2
        queries, keys = scores.shape[-2:]

        def reading(more: Sequence[tuple[Value, bool, float]]) -> Predicates:
            reader = MaskReader(self.producers, lead + 2, batch=match.batch > 0)
            for mask, truth, _ in more:
                reader.read(mask, truth)
            return reader.found

        taken = list(masks)
        for bias, factor in biases:
            mask = self._mask_of(bias)
            sure = mask is not None and (
                mask[2] == -math.inf or reading([*taken, mask]).never_empty(queries, keys)
            )
            if mask is not None and sure and factor > 0:
                taken.append(mask)
            else:
                match.biases.append((bias, factor))
        match.predicates = reading(taken)
        if match.predicates.never_empty(queries, keys) and not match.biases:
            return
        fills = {fill for _, _, fill in taken}
        if all(fill == -math.inf for fill in fills):
            match.empty = empty
        elif len(taken) > 1 or match.biases or match.dropout:
            raise Refused(
                "a query may have no keys, and its scores would then be finite numbers, masked in "
                "several ways, with a bias or dropped: mask with -inf"
            )
        else:
            match.empty = "mean"

    def _mask_of(self, bias: Value) -> tuple[Value, bool, float] | None:
        """A bias that is 0 or minus infinity: by `where`, or a boolean as a number, multiplied."""
        while (moved := self._by(bias, "reshape", "broadcast_to", "cast")) is not None:
            bias = moved.inputs[0]  # masks stretch to the scores as well
            if not _only_lead(moved) or not bias.dtype.is_float:
                return None
        node = self._by(bias, "select", "mul")
        if node is None:
            return None
        if node.op.name == "mul":
            return self._counted(*node.inputs) or self._counted(*node.inputs[::-1])
        test, a, b = node.inputs
        for zero, other, truth in ((a, b, True), (b, a, False)):
            fill = constant_of(other, self.producers)
            if constant_of(zero, self.producers) == 0 and fill is not None and fill <= CLOSED:
                return test, truth, float(fill)
        return None

    def _counted(self, number: Value, by: Value) -> tuple[Value, bool, float] | None:
        """A closed boolean, or 1 - an open one, times a number; an infinite one would give NaN."""
        fill = constant_of(by, self.producers)
        if fill is None or not -math.inf < fill <= CLOSED:
            return None
        truth = False
        while (node := self._by(number, "cast", "sub")) is not None:
            number = node.inputs[-1]
            if number.dtype is dtypes.bool_:
                return number, truth, float(fill)
            if node.op.name == "sub":
                if constant_of(node.inputs[0], self.producers) != 1:
                    return None
                truth = not truth
            elif not number.dtype.is_float:
                return None
        return None

    # --- the operands

    def _operands(self, node: Node, scores: Node) -> Match:
        """q, k and v from the two products."""
        q, k = scores.inputs
        (q_width, k_width), (q_batch, k_batch) = scores.attrs["contract"], scores.attrs["batch"]
        q_free = free_axes(q.type.ndim, q_width, q_batch)
        k_free = free_axes(k.type.ndim, k_width, k_batch)
        if len(q_width) != 1 or len(k_free) != 1 or not q_free:
            raise Refused("the scores are no product over one width with one axis of keys")
        v = node.inputs[1]
        (w_keys, v_keys), (w_batch, v_batch) = node.attrs["contract"], node.attrs["batch"]
        v_free = free_axes(v.type.ndim, v_keys, v_batch)
        batch = len(q_batch)
        rank = scores.output.type.ndim
        if w_keys != (rank - 1,) or w_batch != tuple(range(batch)) or len(v_free) != 1:
            raise Refused("the weights are not summed with values of the same batch and heads")
        return Match(
            Operand(q, (*q_batch, *q_free, *q_width)),
            Operand(k, (*k_batch, *k_free, *k_width)),
            Operand(v, (*v_batch, *v_keys, *v_free)),
            batch,
            1.0,
            Predicates(),
        )

    def _sharing(self, match: Match) -> Match:
        """Keys and values as they were before they were repeated for several heads."""
        if match.batch == 2 and len(match.q.perm) == 4:
            k, v = (before_repeat(x, self.producers) for x in (match.k, match.v))
            if dims.same(k.shape[1], v.shape[1]):
                match.k, match.v = k, v
        return match

    def _check_private(self, end: Node) -> None:
        """Scores and weights that something else reads have to be there whole."""
        kept = set(self.graph.outputs)
        for node in self.inside:
            for v in node.outputs:
                others = [u for u in self.users.get(v, ()) if u not in self.inside and u is not end]
                if v in kept or others:
                    raise Refused(f"the result of {node.op.name} ({node.place}) is used elsewhere")


def _only_lead(node: Node) -> bool:
    """Whether a reshape or broadcast only puts axes in front."""
    inner, outer = node.inputs[0].shape, node.output.shape
    tail = outer[len(outer) - len(inner) :] if len(inner) <= len(outer) else ()
    return len(tail) == len(inner) and all(
        dims.same(a, b) or dims.same(a, 1) for a, b in zip(inner, tail, strict=True)
    )
