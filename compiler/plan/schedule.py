"""The order of a graph's nodes: Graph -> Graph with its nodes permuted.

Candidates are the order of the program and a greedy list schedule; a simulation of the live bytes
at reference sizes picks the lower peak.  There, what grows memory is put off as long as it can be,
if that helps where results are written in place of operands.  Invariant: data flow and effects
keep their order; state is read before it is updated; nothing is updated before every check of the
data has passed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node, Value, same_type
from retrograde.compiler.ops.region import effects_of

_EXTREMES = frozenset({"max", "min", "argmax", "argmin"})  # there is none of no elements
_WORTH = 0.99  # the share of a peak that an order has to be below, to be taken instead
ALIASING = frozenset({"reshape", "transpose", "broadcast_to", "slice", "flip"})


@dataclass(frozen=True)
class Order:
    """Orders the nodes for a low peak at `sizes`, or as it is `given`, graph by graph.

    `chosen` notes the order of each graph: what is given to have the same again."""

    sizes: Mapping[str, int]
    window: int = 64  # how many ready nodes the greedy schedule compares
    given: Iterator[Sequence[int]] | None = None
    chosen: list[tuple[int, ...]] = field(default_factory=list)

    def __call__(self, graph: Graph) -> Graph:
        before = _dependencies(graph)
        if self.given is not None:
            best = _checked(next(self.given, ()), before)
        else:
            model = _Memory(graph, self.sizes)
            candidates = [_topological(before), _greedy(graph, before, model, self.window)]
            best = min(candidates, key=model.peak)
            late = _late(best, graph, before, model)
            # What is written in place is a guess here: it takes more than a little to go by it.
            if (
                model.peak(late) <= model.peak(best)
                and model.peak(late, True) < _WORTH * model.peak(best, True)
            ):
                best = late
        self.chosen.append(tuple(best))
        return graph.replace(nodes=tuple(graph.nodes[i] for i in best))


def _checked(order: Sequence[int], before: Sequence[set[int]]) -> Sequence[int]:
    """`order`, if it is one of all nodes that keeps to their dependencies."""
    done: set[int] = set()
    for i in order:
        if not 0 <= i < len(before) or i in done or not before[i] <= done:
            raise DataError(f"an order of nodes puts node {i} where it cannot be")
        done.add(i)
    if len(done) != len(before):
        raise DataError(f"an order of nodes has {len(done)} of {len(before)}")
    return order


def peak_of(graph: Graph, sizes: Mapping[str, int]) -> int:
    """The largest sum of live bytes over the nodes in their order, views counted once."""
    return _Memory(graph, sizes).peak(range(len(graph.nodes)))


class _Memory:
    """Bytes and readers of each value that owns memory, by index."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int]) -> None:
        root: dict[Value, Value] = {}
        for node in graph.nodes:
            if node.op.name in ALIASING:
                root[node.output] = root.get(node.inputs[0], node.inputs[0])
        self.bytes: dict[Value, int] = {}
        self.makes: list[list[Value]] = []
        self.reads: list[list[Value]] = []
        self.in_place = [n.op.inplace or n.op.name == "fused" for n in graph.nodes]
        readers: dict[Value, int] = {}
        updated = {graph.outputs[o] for o, _ in graph.aliases}  # written where state lies
        for node in graph.nodes:
            own = [] if node.op.name in ALIASING else list(node.outputs)
            self.makes.append(own)
            for v in own:
                constant = node.op.name == "constant"
                free = constant or v in updated
                self.bytes[v] = 0 if free else dims.evaluate(v.type.bytes, sizes)
            sources = {root.get(v, v) for v in node.inputs}
            self.reads.append([v for v in sources if v in self.bytes])
            for v in self.reads[-1]:
                readers[v] = readers.get(v, 0) + 1
        self.returned = [root.get(v, v) for v in graph.outputs]
        for v in self.returned:
            readers[v] = readers.get(v, 0) + 1
        self.readers = readers

    def peak(self, order: Sequence[int], in_place: bool = False) -> int:
        """The most that lives at once; with `in_place` results lie where operands end."""
        left = dict(self.readers)
        live = peak = 0
        for i in order:
            live += sum(self.bytes[v] for v in self.makes[i])
            peak = max(peak, live - (self._taken_over(i, left) if in_place else 0))
            live -= self.release(i, left)
        return peak

    def _taken_over(self, i: int, left: Mapping[Value, int]) -> int:
        """Bytes that node `i` writes where something lies that it reads last."""
        if not self.in_place[i]:
            return 0
        dying = [v.type for v in self.reads[i] if left[v] == 1 and self.bytes[v]]
        found = 0
        for v in self.makes[i]:
            home = next((k for k, type in enumerate(dying) if same_type(type, v.type)), None)
            if home is not None:
                del dying[home]
                found += self.bytes[v]
        return found

    def release(self, i: int, left: dict[Value, int]) -> int:
        """Counts node `i`'s reads off `left`; the bytes that die with it."""
        freed = 0
        for v in self.reads[i]:
            left[v] -= 1
            if left[v] == 0:
                freed += self.bytes[v]
        freed += sum(self.bytes[v] for v in self.makes[i] if not left.get(v))
        return freed

    def delta(self, i: int, left: Mapping[Value, int]) -> int:
        """How many more bytes live after node `i` than before it."""
        grown = sum(self.bytes[v] for v in self.makes[i] if left.get(v))
        return grown - sum(self.bytes[v] for v in self.reads[i] if left[v] == 1)


def _dependencies(graph: Graph) -> list[set[int]]:
    """For each node the nodes that come before it."""
    producer = {v: i for i, n in enumerate(graph.nodes) for v in n.outputs}
    before = [{producer[v] for v in n.inputs if v in producer} for n in graph.nodes]
    last: dict[str, int] = {}
    for i, n in enumerate(graph.nodes):
        for channel in effects_of(n):
            if channel in last:
                before[i].add(last[channel])
            last[channel] = i
    checks = {i for i, n in enumerate(graph.nodes) if may_refuse(n)}
    updates = {producer[graph.outputs[o]]: i for o, i in graph.aliases
               if graph.outputs[o] in producer}  # fmt: skip
    readers: dict[Value, set[int]] = {}
    for i, n in enumerate(graph.nodes):
        for v in n.inputs:
            readers.setdefault(v, set()).add(i)
    after = _followers(before)
    for u, state in updates.items():
        below = _reach(u, after)
        for i in (readers.get(graph.inputs[state], set()) | checks) - below - {u}:
            before[u].add(i)
            after[i].append(u)
    return before


def may_refuse(node: Node) -> bool:
    """Whether running the node may raise: on the values of its operands, or for lack of any."""
    if node.op.checks_data:
        return not node.attrs.get("within")  # places that were made to lie within
    if node.op.name in _EXTREMES:
        axes = node.attrs.get("axes", (node.attrs.get("axis"),))
        return any(dims.decide_le(1, node.inputs[0].shape[i]) is not True for i in axes)
    return any(may_refuse(inner) for _, body in node.subgraphs() for inner in body.nodes)


def _followers(before: Sequence[set[int]]) -> list[list[int]]:
    after: list[list[int]] = [[] for _ in before]
    for i, sources in enumerate(before):
        for s in sources:
            after[s].append(i)
    return after


def _reach(start: int, after: Sequence[Sequence[int]]) -> set[int]:
    """All nodes that depend on `start`."""
    seen: set[int] = set()
    work = list(after[start])
    while work:
        i = work.pop()
        if i not in seen:
            seen.add(i)
            work.extend(after[i])
    return seen


def _topological(before: Sequence[set[int]]) -> list[int]:
    """The order closest to the program's."""
    done: set[int] = set()
    out: list[int] = []
    for i in range(len(before)):
        _visit(i, before, done, out)
    return out


def _visit(i: int, before: Sequence[set[int]], done: set[int], out: list[int]) -> None:
    stack = [i]
    while stack:
        j = stack[-1]
        if j in done:
            stack.pop()
            continue
        missing = [k for k in sorted(before[j], reverse=True) if k not in done]
        if missing:
            stack.extend(missing)
            continue
        done.add(j)
        out.append(j)
        stack.pop()


def _greedy(graph: Graph, before: Sequence[set[int]], memory: _Memory, window: int) -> list[int]:
    """At each turn the ready node that frees most; ties go to the program's order."""
    waiting = [len(b) for b in before]
    after = _followers(before)
    ready = sorted(i for i, n in enumerate(waiting) if n == 0)
    left = dict(memory.readers)
    readers: dict[Value, list[int]] = {}
    for k, values in enumerate(memory.reads):
        for v in values:
            readers.setdefault(v, []).append(k)
    grown: dict[int, int] = {}  # by node, until the last other reader of an operand has run
    out: list[int] = []
    while ready:
        for k in ready[:window]:
            if k not in grown:
                grown[k] = memory.delta(k, left)
        i = min(ready[:window], key=lambda k: (grown[k], k))
        del ready[bisect_left(ready, i)]
        out.append(i)
        memory.release(i, left)
        for v in memory.reads[i]:
            if left[v] == 1:
                for k in readers[v]:
                    grown.pop(k, None)
        for r in after[i]:
            waiting[r] -= 1
            if waiting[r] == 0:
                insort(ready, r)
    return out


def _late(
    order: Sequence[int], graph: Graph, before: Sequence[set[int]], memory: _Memory
) -> list[int]:
    """`order`, with each node moved to the first one that needs it, if what it makes is more than
    what it reads last."""
    after = _followers(before)
    place = {i: at for at, i in enumerate(order)}
    slots = dict(place)  # each goes right ahead of the node that had this place
    # By value: the slot of its last reader, of those seen so far.
    ends = dict.fromkeys(memory.returned, len(order))
    for i in reversed(order):
        moves = graph.nodes[i].op.name in ALIASING
        made = sum(memory.bytes[v] for v in memory.makes[i])
        if after[i] and (made or moves):
            slot = min(slots[k] for k in after[i])
            longer = sum(memory.bytes[v] for v in memory.reads[i] if ends.get(v, -1) < slot)
            if made > longer or moves:
                slots[i] = slot
        if not moves:
            for v in memory.reads[i]:
                ends[v] = max(ends.get(v, -1), slots[i])
    return sorted(order, key=lambda i: (slots[i], place[i]))
