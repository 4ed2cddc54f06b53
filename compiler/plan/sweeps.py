"""How a fused region runs row by row: its body -> sweeps over one row, with what is kept between.

A sweep computes elements of a row from left to right and may total them; what depends on a total
waits for the next sweep.  A sum over all rows takes each row in the first sweep that knows it.  A
value that a later sweep reads is computed again where that is cheap, else kept: where it is written
anyway, or in a row of working memory.  Invariant: within a sweep an element is read before any
result at its place is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers, sums_rows
from retrograde.compiler.plan.views import View

CHEAP = 3  # operations an element: computed again rather than kept
FAR = 32 << 20  # bytes of an array that no cache holds until it is read: written past the caches


@dataclass(frozen=True)
class Sweep:
    """`nodes` run for each element of a row, `totals` among them over the row; `rows` run after."""

    nodes: tuple[Node, ...]
    totals: tuple[Node, ...]
    rows: tuple[Node, ...]
    stores: tuple[int, ...]  # the results written in it
    keeps: tuple[Value, ...]  # the values it leaves in working memory
    reads: frozenset[Value]  # what it takes from where it lies: operands, gathered, values kept
    sums: tuple[int, ...] = ()  # the results to which it adds the row


@dataclass(frozen=True)
class Sweeps:
    """The sweeps over a row.  `before`: what is computed of operands with one element a row;
    `after[j]`: the sweep that writes result j, counted from 0, -1 before all.  A sum over all rows
    is written when all sweeps of all rows are done: it has their number."""

    before: tuple[Node, ...]
    sweeps: tuple[Sweep, ...]
    rows: frozenset[Value]  # the values with one element a row
    buffers: Mapping[Value, int]  # the row of working memory that holds a value
    results: Mapping[Value, int]  # the result from which a value is read again
    dtypes: tuple[DType, ...]  # of the rows of working memory
    after: tuple[int, ...]
    large: bool = True  # arrays may be larger than the caches

    @property
    def sums(self) -> tuple[int, ...]:
        """The results that are sums over all rows."""
        return tuple(j for sweep in self.sweeps for j in sweep.sums)

    def last_read(self, operand: Value) -> int:
        """The last sweep that reads an operand, -1 for none."""
        found = [i for i, sweep in enumerate(self.sweeps) if operand in sweep.reads]
        return max(found, default=-1)


def sweeps_of(
    body: Graph, shape: Sequence[Dim], results: Sequence[View], large: bool = True
) -> Sweeps:
    """The sweeps of a region over the space `shape`, whose results lie at `results`; `large` where
    arrays may be larger than the caches."""
    return replace(_Planner(body, shape, results).plan(), large=large)


def may_be_far(space: Sequence[Dim], sizes: Mapping[str, int] | None) -> bool:
    """Whether arrays over a space are worth the code for large ones, at the sizes that a plan is
    made for or some larger ones."""
    size = dims.product(space)
    if sizes is None or isinstance(size, int):
        return True
    if any(s.name not in sizes for s in dims.symbols(size)):
        return False  # what is seen of a loop, turn by turn
    return dims.evaluate(size, sizes) * 8 >= FAR // 4


def far(space: Sequence[Dim], dtype: DType) -> bool | None:
    """Whether an array over a space is too large for the caches; None where sizes will tell."""
    size = dims.product(space)
    return size * dtype.bytes >= FAR if isinstance(size, int) else None


def is_row(v: Value, shape: Sequence[Dim]) -> bool:
    """Whether an operand over the space `shape` has one element a row."""
    last = v.shape[-1] if v.shape else 1
    return same(last, 1) and not same(shape[-1], 1)


class _Planner:
    def __init__(self, body: Graph, shape: Sequence[Dim], results: Sequence[View]) -> None:
        self.body, self.shape, self.results = body, shape, results
        self.maker = {n.output: n for n in body.nodes if not gathers(n)}
        self.rows = {v for v in body.inputs if is_row(v, shape)}
        self.sums: dict[Value, int] = {}  # the sweep that a sum over all rows goes with
        self.level: dict[Value, int] = {}  # the sweep that makes it; of a row, that it follows
        for v in body.inputs:
            self.level[v] = -1 if v in self.rows else 0
        for node in body.nodes:
            self._enter(node)
        self.kept: dict[Value, None] = {}

    def _enter(self, node: Node) -> None:
        out = node.output
        if gathers(node):  # a leaf, as an operand is
            self.level[out] = 0
            if is_row(out, self.shape):
                self.rows.add(out)
                self.level[out] = -1
        elif sums_rows(node):
            self.sums[out] = max(max(self._ready(v) for v in node.inputs), 0)
        elif node.op.kind is Kind.REDUCE:
            self.rows.add(out)
            self.level[out] = max(max(self._ready(v) for v in node.inputs), 0)
        elif all(v in self.rows for v in node.inputs):
            self.rows.add(out)
            self.level[out] = max((self.level[v] for v in node.inputs), default=-1)
        else:
            self.level[out] = max(map(self._ready, node.inputs))

    def _ready(self, v: Value) -> int:
        """The first sweep in which `v` can be read."""
        return self.level[v] + 1 if v in self.rows else self.level[v]

    def plan(self) -> Sweeps:
        body = self.body
        count = 1 + max([0, *self.level.values(), *self.sums.values()])
        needed: list[dict[Value, None]] = [{} for _ in range(count)]
        reads: list[set[Value]] = [set() for _ in range(count)]
        totals: list[list[Node]] = [[] for _ in range(count)]
        for v in body.outputs:
            if v in self.sums:
                for x in self.maker[v].inputs:
                    self._need(x, self.sums[v], needed, reads)
            elif v not in self.rows:
                self._need(v, self.level[v], needed, reads)
        for node in body.nodes:
            if node.op.kind is Kind.REDUCE and node.output not in self.sums:
                at = self.level[node.output]
                totals[at].append(node)
                for v in node.inputs:
                    self._need(v, at, needed, reads)
        places = self._places(reads)
        order = {n: i for i, n in enumerate(body.nodes)}
        after = tuple(count if v in self.sums else self.level[v] for v in body.outputs)
        sweeps = tuple(
            Sweep(
                tuple(sorted((self.maker[v] for v in needed[i]), key=order.__getitem__)),
                tuple(totals[i]),
                tuple(self._row_nodes(i)),
                tuple(j for j, v in enumerate(body.outputs) if after[j] == i),
                tuple(v for v in places[0] if self.level[v] == i),
                frozenset(reads[i]),
                tuple(j for j, v in enumerate(body.outputs) if self.sums.get(v) == i),
            )
            for i in range(count)
        )
        return Sweeps(
            tuple(self._row_nodes(-1)), sweeps, frozenset(self.rows), places[0], places[1],
            tuple({b: v.dtype for v, b in places[0].items()}.values()), after,
        )  # fmt: skip

    def _row_nodes(self, level: int) -> list[Node]:
        return [
            n for n in self.body.nodes
            if n.op.kind is not Kind.REDUCE and n.output in self.rows and n.output in self.maker
            and self.level[n.output] == level
        ]  # fmt: skip

    def _need(
        self, v: Value, at: int, needed: list[dict[Value, None]], reads: list[set[Value]]
    ) -> None:
        """Notes that sweep `at` needs `v`, and what that takes."""
        work = [v]
        while work:
            v = work.pop()
            if v in self.rows or v in needed[at] or v in reads[at]:
                continue
            node = self.maker.get(v)
            if node is None:
                reads[at].add(v)
                continue
            if self.level[v] < at and not self._again(v):
                reads[at].add(v)
                if v not in self.kept:
                    self.kept[v] = None
                    self._need(v, self.level[v], needed, reads)
                continue
            needed[at][v] = None
            work.extend(node.inputs)

    def _again(self, v: Value) -> bool:
        """Whether computing `v` again is cheaper than keeping it."""
        work, cost = [v], 0
        while work:
            node = self.maker.get(work.pop())
            if node is None or node.output in self.rows or node.output in self.kept:
                continue
            cost += _operations(node)
            if cost > CHEAP:
                return False
            work.extend(node.inputs)
        return True

    def _places(
        self, reads: Sequence[set[Value]]
    ) -> tuple[dict[Value, int], dict[Value, int]]:
        """What is kept in working memory, and what is read again from a result.  A row of working
        memory holds the next value from the sweep on that last reads the one before."""
        buffers: dict[Value, int] = {}
        again: dict[Value, int] = {}
        free_from: list[int] = []  # by row of working memory
        dtypes: list[DType] = []
        for v in sorted(self.kept, key=self.level.__getitem__):
            j = next((j for j, w in enumerate(self.body.outputs) if w is v), None)
            if (
                j is not None and v.dtype.bytes > 2 and same(self.results[j].strides[-1], 1)
                and not far(self.shape, v.dtype)  # what is written past the caches is not read
            ):  # fmt: skip
                again[v] = j
                continue
            fits = (
                b for b, dtype in enumerate(dtypes)
                if dtype is v.dtype and free_from[b] <= self.level[v]
            )  # fmt: skip
            b = next(fits, len(dtypes))
            if b == len(dtypes):
                dtypes.append(v.dtype)
                free_from.append(0)
            buffers[v] = b
            free_from[b] = max(i for i, read in enumerate(reads) if v in read)
        return buffers, again


def _operations(node: Node) -> int:
    """What one element costs."""
    one = [TensorType(v.dtype, (1,)) for v in node.inputs]
    cost = node.op.cost(one, [TensorType(node.output.dtype, (1,))], node.attrs)
    return cost if isinstance(cost, int) else CHEAP + 1
