"""Batching rules: one op over one step -> the same op over all steps, along a new axis 0.

A rule gets a `Step`: a node, its operands, and which of them are stacked (they have the new axis,
of size `length`, in front; a shared operand is the same in every step).  Invariant: every result
has the new axis in front of the shape it has in one step, and its slice t is the result of step t.
Rules copy nothing by themselves: a reshape here only inserts ones, a shared operand is stretched
as a view.  Only ops that the new axis makes ambiguous have a rule by name; the rest go by kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, as_expr, cast
from retrograde.compiler.ir.graph import Attrs, Node, same_shape
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.ops.composite import widened
from retrograde.compiler.ops.contract import free_axes

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One node of a step, with its operands as they are over all steps."""

    node: Node
    operands: tuple[Expr, ...]
    stacked: tuple[bool, ...]
    length: Dim
    merges: bool = True  # whether the rows of all steps may become those of one product

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def rank(self, i: int) -> int:
        """The rank that operand `i` has in one step."""
        return self.node.inputs[i].type.ndim

    def emit(self, operands: Sequence[Expr], **changed: Any) -> tuple[Expr, ...]:
        """The node's op on `operands`, with some attributes changed."""
        return emit(self.node.op, operands, {**self.attrs, **changed})

    def every(self, i: int) -> Expr:
        """Operand `i` with the new axis; a shared one is stretched."""
        x = self.operands[i]
        return x if self.stacked[i] else spread(x, self.length)

    def aligned(self, i: int, rank: int) -> Expr:
        """Operand `i` such that it broadcasts against a result that has `rank` in one step."""
        x, missing = self.operands[i], rank - self.rank(i)
        if not self.stacked[i] or not missing:
            return x
        return _reshaped(x, (self.length, *(1,) * missing, *x.shape[1:]))


Rule = Callable[[Step], tuple[Expr, ...]]


def emit(op: Op, operands: Sequence[Expr], attrs: Attrs) -> tuple[Expr, ...]:
    """`op` in the current graph.  Nothing is promoted: the operands of a node agree already."""
    builder = required()
    outputs = builder.emit(op, [as_expr(x).value for x in operands], attrs)
    return tuple(builder.wrap(v, builder) for v in outputs)


def spread(x: Expr, length: Dim) -> Expr:
    """A shared value as a stacked one: a view that repeats it `length` times."""
    out: Expr = lookup("broadcast_to")(x, shape=(length, *x.shape))
    return out


def rule_for(node: Node) -> Rule | None:
    """The rule of the node's op, if it has one."""
    if node.op.name == "dot_steps":
        return None  # made of the steps of one loop, it stays in another one
    return _BY_NAME.get(node.op.name) or _BY_KIND.get(node.op.kind)


def _reshaped(x: Expr, shape: tuple[Dim, ...]) -> Expr:
    out: Expr = lookup("reshape")(x, shape=shape)
    return out


def _ordered(x: Expr, perm: Axes) -> Expr:
    if perm == tuple(range(x.ndim)):
        return x
    out: Expr = lookup("transpose")(x, perm=perm)
    return out


def _later(axes: Sequence[int]) -> Axes:
    """The axes of one step, behind the new one."""
    return tuple(a + 1 for a in axes)


# --- ops that take the new axis as one more axis in front


def _elementwise(s: Step) -> tuple[Expr, ...]:
    rank = s.node.output.type.ndim
    return s.emit([s.aligned(i, rank) for i in range(len(s.operands))])


def _as_it_is(s: Step) -> tuple[Expr, ...]:
    """Counted from the last axis, or element by element: nothing changes."""
    return s.emit([s.every(i) for i in range(len(s.operands))])


def _axis(s: Step) -> tuple[Expr, ...]:
    return s.emit([s.every(i) for i in range(len(s.operands))], axis=s.attrs["axis"] + 1)


def _axes(s: Step) -> tuple[Expr, ...]:
    return s.emit(s.operands, axes=_later(s.attrs["axes"]))


def _row_dot(s: Step) -> tuple[Expr, ...]:
    """The second operand stretches to the first; of equal shapes, either may be the first."""
    if s.stacked[0]:
        return s.emit([s.operands[0], s.aligned(1, s.rank(0))])
    a, b = s.node.inputs
    if same_shape(a.shape, b.shape):
        return s.emit([s.operands[1], s.operands[0]])
    return s.emit([s.every(0), s.aligned(1, s.rank(0))])


# --- moves and windows


def _transpose(s: Step) -> tuple[Expr, ...]:
    return s.emit(s.operands, perm=(0, *_later(s.attrs["perm"])))


def _reshape(s: Step) -> tuple[Expr, ...]:
    return s.emit(s.operands, shape=(s.length, *s.attrs["shape"]))


def _broadcast_to(s: Step) -> tuple[Expr, ...]:
    shape = s.attrs["shape"]
    return s.emit([s.aligned(0, len(shape))], shape=(s.length, *shape))


def _slice(s: Step) -> tuple[Expr, ...]:
    a = s.attrs
    start, stop, step = (0, *a["start"]), (s.length, *a["stop"]), (1, *a["step"])
    return s.emit(s.operands, start=start, stop=stop, step=step)


def _pad(s: Step) -> tuple[Expr, ...]:
    windows = {name: (0, *s.attrs[name]) for name in ("low", "high", "interior")}
    return s.emit(s.operands, **windows)


def _set_slice(s: Step) -> tuple[Expr, ...]:
    start, step = (0, *s.attrs["start"]), (1, *s.attrs["step"])
    return s.emit([s.every(0), s.every(1)], start=start, step=step)


# --- places from data


def _gather(s: Step) -> tuple[Expr, ...]:
    """Stacked indices into a shared operand are just more indices.  Shared indices into a stacked
    operand take the new axis along as one that is not indexed, behind those of the indices.  Where
    both are stacked, the step's number is one more index."""
    x, axes = s.operands[0], s.attrs["axes"]
    if not s.stacked[0]:
        return s.emit([x, *_indices(s, 1)])
    if not any(s.stacked[1:]):
        (out,) = s.emit(s.operands, axes=_later(axes))
        lead = s.rank(1)
        return (_ordered(out, (lead, *range(lead), *range(lead + 1, out.ndim))),)
    return s.emit([x, _number(s, 1), *_indices(s, 1)], axes=(0, *_later(axes)))


def _scatter(s: Step) -> tuple[Expr, ...]:
    """The step's number is one more index: all steps in one scatter, each into its own slice."""
    operands = [s.every(0), s.every(1), _number(s, 2), *_indices(s, 2)]
    return s.emit(operands, axes=(0, *_later(s.attrs["axes"])))


def _indices(s: Step, first: int) -> list[Expr]:
    return [s.every(i) for i in range(first, len(s.operands))]


def _number(s: Step, first: int) -> Expr:
    """The number of the step wherever the index that is operand `first` has an element."""
    shape = s.node.inputs[first].shape
    count: Expr = lookup("iota")(size=s.length, dtype=dtypes.i64)
    if not shape:
        return count
    column = _reshaped(count, (s.length, *(1,) * len(shape)))
    out: Expr = lookup("broadcast_to")(column, shape=(s.length, *shape))
    return out


# --- contractions


def _dot_general(s: Step) -> tuple[Expr, ...]:
    """Both stacked: the new axis is one more batch axis.  One stacked: one large product where
    `_merges`, and else a batch of products with the shared operand stretched over it.

    The large product has its batch axes in front, then the new axis and the other axes of the
    stacked operand; a transposed view of it puts the new axis in front."""
    if all(s.stacked):
        return _batched_dot(s)
    own = 0 if s.stacked[0] else 1
    if not _merges(s, own) or not s.merges:
        return _batched_dot(s)
    contract, batch = s.attrs["contract"], s.attrs["batch"]
    (out,) = s.emit(
        [s.operands[own], s.operands[1 - own]],
        contract=(_later(contract[own]), contract[1 - own]),
        batch=(_later(batch[own]), batch[1 - own]),
    )
    b = len(batch[0])
    middle = b + 1 + len(_free(s, own))
    mine, others = range(b + 1, middle), range(middle, out.ndim)
    rest = (*mine, *others) if own == 0 else (*others, *mine)
    return (_ordered(out, (b, *range(b), *rest)),)


def _batched_dot(s: Step) -> tuple[Expr, ...]:
    (left, right), (left_batch, right_batch) = s.attrs["contract"], s.attrs["batch"]
    return s.emit(
        [s.every(0), s.every(1)],
        contract=(_later(left), _later(right)),
        batch=((0, *_later(left_batch)), (0, *_later(right_batch))),
    )


def _merges(s: Step, own: int) -> bool:
    """Whether the steps of the stacked operand `own` become rows of one product.

    It reads the shared operand once instead of in every step, but may have to copy the stacked
    operand into rows, or leave its result in another order than the steps'.  So: the steps are rows
    where each is one row, unless the shared operand is a vector of its batch, which the products
    only pass by.  With batch axes no others are.  Without, those of a left operand are (the result
    is in order), and those of a right operand that is rows already, its contracted axes last."""
    single, vector = _ones(s, own), _ones(s, 1 - own)
    if s.attrs["batch"][0]:
        return single and not vector
    if single or (own == 0 and not vector):
        return True
    summed, rank = s.attrs["contract"][own], s.rank(own)
    return set(summed) == set(range(rank - len(summed), rank))


def _free(s: Step, i: int) -> Axes:
    return free_axes(s.rank(i), s.attrs["contract"][i], s.attrs["batch"][i])


def _ones(s: Step, i: int) -> bool:
    """Whether operand `i` has no axis of its own in the result, or only such of size 1."""
    sizes = [s.node.inputs[i].shape[a] for a in _free(s, i)]
    return all(isinstance(d, int) and d == 1 for d in sizes)


# --- composites stay what they are


def _norm(s: Step) -> tuple[Expr, ...]:
    """A gain or bias of each step is applied behind a normalisation that goes without it."""
    if not any(s.stacked[1:]):
        return s.emit(s.operands)
    kept = s.stacked.index(True, 1)
    y, *statistics = s.emit([widened(x) for x in s.operands[:kept]])
    for i in range(kept, len(s.operands)):
        parameter = widened(s.aligned(i, s.rank(0)))
        y = y * parameter if i == 1 else y + parameter
    if not s.stacked[0]:  # one normalisation served all steps
        statistics = [spread(x, s.length) for x in statistics]
    return (cast(y, s.operands[0].dtype), *statistics)


def _attention(s: Step) -> tuple[Expr, ...]:
    """q, k and v have the same leading axes; a mask broadcasts to the scores."""
    masks = range(3, len(s.operands))
    return s.emit([*(s.every(i) for i in range(3)), *(s.aligned(i, s.rank(0)) for i in masks)])


_BY_NAME: dict[str, Rule] = {
    "row_dot": _row_dot,
    "argmax": _axis,
    "argmin": _axis,
    "sort": _axis,
    "argsort": _axis,
    "top_k": _as_it_is,
    "linear_recurrence": _axis,
    "concatenate": _axis,
    "flip": _axes,
    "transpose": _transpose,
    "reshape": _reshape,
    "broadcast_to": _broadcast_to,
    "slice": _slice,
    "pad": _pad,
    "set_slice": _set_slice,
    "gather": _gather,
    "scatter_add": _scatter,
    "scatter_set": _scatter,
    "softmax": _axis,
    "log_softmax": _axis,
    "logsumexp": _axes,
    "token_nll": _as_it_is,
    "layer_norm": _norm,
    "rms_norm": _norm,
    "gelu": _as_it_is,
    "silu": _as_it_is,
    "attention": _attention,
}
_BY_KIND: dict[Kind, Rule] = {
    Kind.ELEMENTWISE: _elementwise,
    Kind.REDUCE: _axes,
    Kind.CUMULATIVE: _axis,
    Kind.CONTRACT: _dot_general,
}
