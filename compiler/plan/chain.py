"""Products and the row kernels around them, a block of rows at a time: steps -> steps with chains.

A link keeps to its rows: what stands in row i of anything that a link of the chain writes is
written and read for row i alone.  That is proven on the views, which must have the same bytes
between rows.  What stands between two links and needs neither goes before the chain.  Invariant: a
chain computes what its links compute one after the other, to the bit, for every cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import f32
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers
from retrograde.compiler.plan.schedule import may_refuse
from retrograde.compiler.plan.steps import (
    ChainStep,
    CopyStep,
    FusedStep,
    MatmulStep,
    OpStep,
    PackStep,
    Step,
    Unchained,
    reads,
    writes,
)
from retrograde.compiler.plan.views import Storage, Turn, View

AHEAD = 16  # steps that may go before a chain
LARGE = 16 << 20  # bytes of a chain's widest product: what is smaller stays in the cache anyway

Link = MatmulStep | FusedStep | OpStep


def with_chains(
    steps: Sequence[Step],
    state: frozenset[Storage] = frozenset(),
    sizes: Mapping[str, int] | None = None,
) -> tuple[tuple[Step, ...], tuple[Unchained, ...]]:
    """The steps with chains among them, and the products that are in none with their readers.
    `state`: where new state is written, which steps around chains leave where it is.  At `sizes`
    (None: at any) a chain is made of large products, for what it touches lives as long as it."""
    if sizes is not None and not any(_large(step, sizes) for step in steps):
        return tuple(steps), tuple(_unchained(steps))
    out: list[Step] = []
    at = 0
    while at < len(steps):
        chain, end = _Chain.begun(steps[at], state), at + 1
        while chain is not None and end < len(steps):
            if not (chain.takes(steps[end], state) or chain.lets_pass(steps[end], state)):
                break
            end += 1
        found = None if chain is None else chain.closed(sizes)
        if found is not None:
            before, made = found
            out += [*before, made]
            at += len(before) + len(made.links)
        else:
            out.append(steps[at])
            at += 1
    return tuple(out), tuple(_unchained(out))


@dataclass
class _Chain:
    """A chain in the making: the steps so far in their order, and how they reach storages."""

    rows: Dim
    steps: list[Step] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    pitches: dict[Storage, set[Dim | None]] = field(default_factory=dict)  # None: not by rows
    written: set[Storage] = field(default_factory=set)

    @classmethod
    def begun(cls, step: Step, state: frozenset[Storage]) -> _Chain | None:
        """A chain that begins with `step`, None where that can be no link."""
        if not isinstance(step, (MatmulStep, FusedStep, OpStep)) or not step.results:
            return None
        shape = _space(step)
        if len(shape) < 2:
            return None
        chain = cls(shape[-2] if isinstance(step, MatmulStep) else dims.product(shape[:-1]))
        return chain if chain.takes(step, state) else None

    def takes(self, step: Step, state: frozenset[Storage]) -> bool:
        """Whether `step` has become a link."""
        if not isinstance(step, (MatmulStep, FusedStep, OpStep)) or same(self.rows, 1):
            return False
        if any(v.storage in state for v in writes(step)):
            return False
        found = _accesses(step, self.rows)
        if found is None:
            return False
        own = {v.storage for v in writes(step)}
        pitches = {s: set(p) for s, p in self.pitches.items()}
        for storage, pitch in found:
            pitches.setdefault(storage, set()).add(pitch)
        for storage in {s for s, _ in found}:
            if storage not in self.written and storage not in own:
                continue
            fresh = storage not in self.pitches and storage not in self.written
            if None in pitches[storage] and fresh and storage not in {
                v.storage for v in reads(step)
            }:
                continue  # a sum over all rows, working memory: for what comes after the chain
            if None in pitches[storage] or len(pitches[storage]) > 1:
                return False
        self.pitches, self.written = pitches, self.written | own
        self.steps.append(step)
        self.links.append(step)
        return True

    def lets_pass(self, step: Step, state: frozenset[Storage]) -> bool:
        """Whether `step` may go before the chain, and does."""
        if not isinstance(step, (PackStep, MatmulStep, CopyStep, FusedStep, OpStep)):
            return False
        if not any(isinstance(link, MatmulStep) for link in self.links) and not isinstance(
            step, PackStep
        ):
            return False  # no product yet to keep a chain for
        if len(self.steps) - len(self.links) >= AHEAD:
            return False
        if isinstance(step, (OpStep, FusedStep)) and may_refuse(step.node):
            return False
        made = {v.storage for v in writes(step)}
        if made & self.pitches.keys() or made & state:
            return False
        if any(v.storage in self.written for v in reads(step)):
            return False
        self.steps.append(step)
        return True

    def closed(self, sizes: Mapping[str, int] | None) -> tuple[list[Step], ChainStep] | None:
        """What goes before the chain, and the chain; None if there is none."""
        links = self._connected()
        products = [link for link in links if isinstance(link, MatmulStep)]
        if not products:
            return None
        if sizes is not None and not any(_large(link, sizes) for link in products):
            return None
        last = self.steps.index(links[-1])
        before = [step for step in self.steps[:last] if step not in links]
        touched = {v.storage for link in links for v in (*reads(link), *writes(link))}
        rowed = {s for s in touched if len(self.pitches[s]) == 1 and None not in self.pitches[s]}
        return before, ChainStep(self.rows, tuple(links), frozenset(rowed))

    def _connected(self) -> list[Link]:
        """The links that take something from another one, or leave something to it."""
        maker: dict[Storage, Link] = {}
        kept: set[Link] = set()
        for link in self.links:
            for v in reads(link):
                if v.storage in maker and maker[v.storage] is not link:
                    kept |= {link, maker[v.storage]}
            maker.update((v.storage, link) for v in writes(link))
        return [link for link in self.links if link in kept]


def _large(step: Step, sizes: Mapping[str, int]) -> bool:
    """Whether a step is a product that a chain is made for."""
    if not isinstance(step, MatmulStep):
        return False
    (out,) = step.results
    return dims.evaluate(dims.product(out.shape), sizes) * out.dtype.bytes >= LARGE


def _accesses(step: Link, rows: Dim) -> list[tuple[Storage, Dim | None]] | None:
    """The storages that a step reaches, each with the bytes from one row to the next, None where
    it is not by rows; None for a step that does not run over so many rows."""
    if isinstance(step, MatmulStep):
        (out,) = step.results
        if step.panels is None or len(out.shape) != 2 or not same(out.shape[0], rows):
            return None
        left = step.operands[0]
        return [
            (left.storage, pitch(left, rows)), (step.panels.storage, None),
            (out.storage, pitch(out, rows)),
        ]  # fmt: skip
    if isinstance(step, OpStep) and step.node.op.kind is not Kind.ELEMENTWISE:
        return None
    space = _space(step)
    sums: tuple[int, ...] = ()
    if len(space) < 2 or _leading(space, rows) is None:
        return None
    elsewhere: set[int] = set()
    if isinstance(step, FusedStep):
        assert step.sweeps is not None
        sums, elsewhere = step.sweeps.sums, _gathering(step)
    if sums and not same(dims.product(space[:-1]), rows):
        return None  # a slice of rows is not one of the rows of the chain
    found = [
        (x.storage, None if i in elsewhere else pitch(x, rows, space))
        for i, x in enumerate(step.operands) if isinstance(x, View)
    ]  # fmt: skip
    for j, y in enumerate(step.results):
        at = None if j in sums else pitch(y, rows, space)
        if at is None and j not in sums:
            return None
        found.append((y.storage, at))
    return found + [(x.storage, None) for x in step.scratch]


def _space(step: Link) -> tuple[Dim, ...]:
    """What a step runs over."""
    return step.shape if isinstance(step, FusedStep) else step.results[0].shape


def _gathering(step: FusedStep) -> set[int]:
    """The operands that the gathers of a region read, at places of their own."""
    body: Graph = step.node.attrs["body"]
    read = {v for node in body.nodes if gathers(node) for v in node.inputs}
    return {i for i, v in enumerate(body.inputs) if v in read}


def pitch(view: View, rows: Dim, space: Sequence[Dim] | None = None) -> Dim | None:
    """The bytes between the `rows` rows that `view` has over `space`, where row i lies within the
    i-th so many bytes of its storage; None where that is not known."""
    if isinstance(view, Turn):
        return None
    shape = view.shape if space is None else tuple(space)
    step = _pitch(view.shape, view.strides, view.offset, rows, shape)
    return None if step is None else step * view.dtype.bytes


_NOWHERE = Storage(-1, 0, "value")


@lru_cache(maxsize=1 << 12)
def _pitch(
    own: tuple[Dim, ...], strides: tuple[Dim, ...], offset: Dim, rows: Dim, shape: tuple[Dim, ...]
) -> Dim | None:
    """The elements between rows, of any view with these extents: layers have the same ones."""
    count = _leading(shape, rows)
    if count is None:
        return None
    seen = View(_NOWHERE, f32, own, strides, offset).broadcast(shape)
    lead = seen.seen(shape[:count], seen.strides[:count]).reshaped((rows,))
    if lead is None or same(lead.strides[0], 0):
        return None
    step = lead.strides[0]
    return step if _fits(seen.seen(shape[count:], seen.strides[count:]), step) else None


def _fits(row: View, step: Dim) -> bool:
    """Whether a row lies within `step` elements from the start of its storage."""
    extents = [(d, s) for d, s in zip(row.shape, row.strides, strict=True) if not same(s, 0)]
    if same(row.offset, 0):
        shape, strides = tuple(d for d, _ in extents), tuple(s for _, s in extents)
        if row.seen(shape, strides).contiguous:
            return dims.decide_le(dims.product(shape), step) is True
    last: Dim = row.offset
    for d, s in extents:
        if not isinstance(s, int) or s < 0:
            return False
        last = last + (d - 1) * s
    return dims.decide_le(0, row.offset) is True and dims.decide_le(last + 1, step) is True


@lru_cache(maxsize=1 << 12)
def _leading(shape: tuple[Dim, ...], rows: Dim) -> int | None:
    """How many of the first axes are the rows."""
    return next(
        (n for n in range(len(shape) - 1, 0, -1) if same(dims.product(shape[:n]), rows)), None
    )


# --- what is in no chain


def _unchained(steps: Iterable[Step]) -> list[Unchained]:
    """The products that a step reads which is not in one chain with them."""
    made: dict[Storage, tuple[MatmulStep, ChainStep | None]] = {}
    found: list[Unchained] = []
    for step in steps:
        chain = step if isinstance(step, ChainStep) else None
        for inner in chain.links if chain is not None else (step,):
            for storage in dict.fromkeys(v.storage for v in reads(inner)):
                product, home = made.get(storage, (None, None))
                if product is None or (home is not None and home is chain):
                    continue
                why = _reason(product, inner)
                place = "" if inner.node is None else inner.node.place
                found.append(Unchained(why, product.node.place, place))
            for v in writes(inner):
                made.pop(v.storage, None)
                if isinstance(inner, MatmulStep):
                    made[v.storage] = (inner, chain)
    return found


def _reason(product: MatmulStep, reader: Step) -> str:
    (out,) = product.results
    if len(out.shape) != 2:
        return "a batch of products"
    if product.panels is None:
        return "a product with a vector"
    if isinstance(reader, PackStep):
        return "packed for another product, all rows at once"
    if isinstance(reader, OpStep) and reader.node.op.kind is not Kind.ELEMENTWISE:
        return f"read by {reader.node.op.name}"
    if not isinstance(reader, (MatmulStep, FusedStep, OpStep)):
        return "read by a copy" if isinstance(reader, CopyStep) else "read by a loop or a branch"
    found = _accesses(reader, out.shape[0])
    if found is None:
        return "read over other rows"
    if any(s is out.storage and at is None for s, at in found):
        return "read across rows"
    return "a step between the two needs all rows, or they are new state"
