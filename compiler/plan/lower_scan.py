"""Lowering loops over time: `scan` -> the step of a loop.

What the steps of a turn can read and write in a stacked array they read and write there.  With
compiled kernels a carry whose states are stacked, the old ones or the new ones, has no place of its
own: it lies in an array of one state more than there are turns, its history, where a turn reads one
row and writes the next.  Invariant: no turn writes a row of a history that a later turn, or a step
after the loop, wants as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.plan.in_place import made_in
from retrograde.compiler.plan.steps import CopyStep, LoopStep
from retrograde.compiler.plan.views import Operand, Turn, View, new_view, turn_of

if TYPE_CHECKING:
    from retrograde.compiler.plan.lower import Lowering


def lower_scan(outer: Lowering, node: Node) -> LoopStep:
    """The step of a `scan`; its results get their places."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    inner = outer.inside(outer.blas if is_apart(node) else frozenset())
    moving = _Moving(node, outer.native)
    histories = _histories(outer, node)
    carries: list[tuple[Operand, View]] = []
    wanted: dict[Value, View] = {}
    for i, (v, b) in enumerate(zip(node.inputs[:n], body.inputs[:n], strict=True)):
        found = histories.get(i)
        if found is None:
            place = new_view(b.type, "value", "carry", node.place)
            inner.places[b] = place
        else:
            place, inner.places[b] = found.first, turn_of(found.old, node)
            if moving.may_write(body.outputs[i]):
                wanted[body.outputs[i]] = turn_of(found.new, node)
        carries.append((outer.places[v], place))
    captured = outer.captures(inner, zip(node.inputs[m:], body.inputs[m:], strict=True))
    slices = []
    for v, b in zip(node.inputs[n:m], body.inputs[n:m], strict=True):
        whole = outer.view_of(v, node)
        turn = inner.places[b] = moving.slice(b, whole) or new_view(
            b.type, "value", "slice", node.place
        )
        if isinstance(turn, Turn):
            captured.append(whole)
        else:
            slices.append((whole, turn))
    kept = {j: found for found in histories.values() for j in (*found.befores, *found.afters)}
    rest = [(v, b) for j, (v, b) in enumerate(_stacked(node)) if j not in kept]
    wholes = [(b, outer.result(node, v)) for v, b in rest]
    inner.run(body, {**moving.results(wholes), **wanted})
    if not is_apart(node):  # whose panels would be there for as long as it runs
        captured += outer.hoisted(inner, captured)
    for i, found in histories.items():
        new = turn_of(found.new, node)
        if not new.equals(inner.places[body.outputs[i]]):
            why = "the next state of a history"
            inner.steps.append(CopyStep(inner.places[body.outputs[i]], new, why, node))
    own = [i for i in range(n) if i not in histories]
    homes = [carries[i][1] for i in own]
    results = inner.carried([body.outputs[i] for i in own], homes, node)
    stacked, direct = [], [found.new for found in histories.values()]
    for b, whole in wholes:
        made = inner.places[b]
        if isinstance(made, Turn) and made.stacked is whole:
            direct.append(whole)
        else:
            stacked.append((made, whole))
    for i, v in enumerate(node.outputs[:n]):
        outer.places[v] = histories[i].last if i in histories else carries[i][1]
    for j, v in enumerate(node.outputs[n:]):
        if j in kept:
            outer.places[v] = kept[j].old if j in kept[j].befores else kept[j].new
    updates = updates_of(results, [carries[i] for i in own])
    if outer.native or is_apart(node):
        updates = _settled(outer, inner, updates, stacked)
    return LoopStep(
        node, node.attrs["length"], node.attrs["reverse"], tuple(carries), tuple(slices),
        tuple(inner.steps), updates, tuple(stacked), tuple(captured), tuple(direct), node,
    )  # fmt: skip


def updates_of(
    new: Sequence[Operand], carries: Sequence[tuple[Operand, View]]
) -> tuple[tuple[Operand, View], ...]:
    """What is copied to the places of the carries at the end of a turn."""
    pairs = zip(new, carries, strict=False)
    return tuple((x, place) for x, (_, place) in pairs if not place.equals(x))


def _settled(
    outer: Lowering,
    inner: Lowering,
    updates: tuple[tuple[Operand, View], ...],
    stacked: Sequence[tuple[Operand, View]],
) -> tuple[tuple[Operand, View], ...]:
    """The updates but for those that are made where they are to be."""
    left = []
    for k, (new, place) in enumerate(updates):
        others = [x for x, _ in (*updates[:k], *updates[k + 1 :], *stacked)]
        old = any(isinstance(x, View) and x.storage is place.storage for x in others)
        if old or not made_in(inner.steps, place, new, outer.merged):
            left.append((new, place))
    return tuple(left)


# --- histories


@dataclass(frozen=True)
class _History:
    """A carry in an array of its states: what turns read of it and what they write, by turn; the
    state before all turns and the one after them; which stacked results are the old states, and
    which the new ones."""

    old: View
    new: View
    first: View
    last: View
    befores: tuple[int, ...]
    afters: tuple[int, ...]


def _stacked(node: Node) -> list[tuple[Value, Value]]:
    """The stacked results, and what a turn has of each."""
    n = node.attrs["carries"]
    return list(zip(node.outputs[n:], node.attrs["body"].outputs[n:], strict=True))


def _histories(outer: Lowering, node: Node) -> dict[int, _History]:
    """The histories of a loop, by carry."""
    if not outer.native or node.attrs.get("live") is not None:
        return {}
    body: Graph = node.attrs["body"]
    n, found = node.attrs["carries"], {}
    users = body.users()
    taken: set[int] = set()
    for i, (b, new) in enumerate(zip(body.inputs[:n], body.outputs[:n], strict=False)):
        results = [
            (j, v) for j, (whole, v) in enumerate(_stacked(node))
            if whole not in outer.targets and j not in taken
        ]  # fmt: skip
        befores = tuple(j for j, v in results if v is b)
        afters = tuple(j for j, v in results if v is new and j not in befores)
        if not (befores or afters) or not _read_anywhere(b, users, body):
            continue
        taken.update((*befores, *afters))
        found[i] = _history(node, b.type, befores, afters)
    return found


def _history(
    node: Node, type: TensorType, befores: tuple[int, ...], afters: tuple[int, ...]
) -> _History:
    length = node.attrs["length"]
    states = new_view(
        TensorType(type.dtype, (length + 1, *type.shape)), "value", "history", node.place
    )
    none, ones = (0,) * type.ndim, (1,) * (type.ndim + 1)

    def window(start: object, count: object) -> View:
        return states.sliced((start, *none), ones, (count, *type.shape))  # type: ignore[arg-type]

    def row(at: object) -> View:
        found = window(at, 1).reshaped(type.shape)
        assert found is not None
        return found

    early, late = window(0, length), window(1, length)
    if node.attrs["reverse"]:
        return _History(late, early, row(length), row(0), befores, afters)
    return _History(early, late, row(0), row(length), befores, afters)


# --- what moves


class _Moving:
    """What the body of a loop reads and writes where it lies, turn by turn: slices and results that
    only elementwise steps touch, with compiled kernels products too.  In a ragged loop nothing: its
    steps are cut to rows."""

    def __init__(self, node: Node, native: bool) -> None:
        self.node = node
        self.native = native
        self.body: Graph = node.attrs["body"]
        self.users = self.body.users()
        self.made = self.body.producers()

    def slice(self, b: Value, whole: View) -> Turn | None:
        """The moving view for a slice of `whole`; None where it has to be copied."""
        if not whole.contiguous or b in self.body.outputs or not self._readable(b):
            return None
        return turn_of(whole, self.node)

    def results(self, wholes: Sequence[tuple[Value, View]]) -> Mapping[Value, View]:
        """The step results that can be written to their place in a stacked result."""
        return {
            v: turn_of(whole, self.node)
            for v, whole in wholes
            if whole.contiguous and self.body.outputs.count(v) == 1 and self.may_write(v)
        }

    def may_write(self, v: Value) -> bool:
        """Whether the step that makes `v` may write it to a moving place."""
        if v not in self.made or not self._readable(v):
            return False
        made = self.made[v]
        return _is_elementwise(made) or (self.native and made.op.name in _WRITERS)

    def _readable(self, v: Value) -> bool:
        if self.node.attrs.get("live") is not None:
            return False
        if self.native:
            return _read_anywhere(v, self.users, self.body)
        return all(map(_is_elementwise, self.users.get(v, ())))


_WRITERS = frozenset({"concatenate", "dot_general"})
_PARTS = frozenset({"slice", "transpose", "broadcast_to"})


def _is_elementwise(node: Node) -> bool:
    return node.op.name == "fused" or (
        node.op.kind is Kind.ELEMENTWISE and node.op.numpy is not None
    )


def _read_anywhere(v: Value, users: Mapping[Value, Sequence[Node]], body: Graph) -> bool:
    """Whether compiled steps alone read `v`, or parts of it, which do so wherever it lies."""
    for node in users.get(v, ()):
        if node.op.name in _PARTS:
            (part,) = node.outputs
            if part in body.outputs or not _read_anywhere(part, users, body):
                return False
        elif not (_is_elementwise(node) or node.op.name == "dot_general"):
            return False
    return True
