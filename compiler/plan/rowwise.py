"""Ragged loops on fewer rows: steps -> the same steps, with `Rows` where a loop can leave rows out.

A loop can where no row of its body depends on another.  That is proven on the steps: each storage
of a turn either holds one row of the batch after the other, at a stride that is found by going out
from the mask, or it is whole; and every step that reads rows writes the same rows.  Invariant: the
first rows of everything that holds rows come out as in a turn on the whole batch, and what is whole
comes out whole; so a sum over the batch, which has no rows left, keeps a loop as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.plan.lanes import Lane, aligned, lanes, shifted
from retrograde.compiler.plan.steps import (
    FIRST,
    ROWS,
    BranchStep,
    CopyStep,
    FusedStep,
    LoopStep,
    MatmulStep,
    OpStep,
    Rows,
    Step,
    WhileStep,
    inside,
    reads,
    replaced_runs,
    writes,
)
from retrograde.compiler.plan.views import Operand, Storage, Turn, View

Pairs = Sequence[tuple[Operand, View]]
_Operand = TypeVar("_Operand", View, Operand)


def with_rows(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each ragged loop among them (or in them) with `rows` where it can have them.

    What a loop on fewer rows stacks is zero past them.  A loop on all rows does not know of that
    and might divide by it: the loops that lead to one run on all rows as well."""
    loops = [list(_ragged(step)) for step in steps]
    if not any(loops):
        return tuple(steps)
    found = {loop: _on_rows(loop) for unit in loops for loop in unit}
    before: dict[Storage, set[int]] = {}  # the steps that lead to what a storage holds
    whole: set[int] = set()
    for i, (step, unit) in enumerate(zip(steps, loops, strict=True)):
        upstream = set().union(*(before.get(v.storage, ()) for v in reads(step)))
        if any(found[loop] is None for loop in unit):
            whole |= {i, *upstream}
        for v in writes(step):
            before.setdefault(v.storage, set()).update(upstream, [i])
    return tuple(
        step if i in whole or not unit else _rebuilt(step, found)
        for i, (step, unit) in enumerate(zip(steps, loops, strict=True))
    )


def with_split(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps, each loop among them (or in them) with `split` where threads can share its rows
    out: then a thread runs all turns on its own rows, and waits for nobody."""
    found = {loop: _on_own_rows(loop) for step in steps for loop in _outermost(step)}
    if not any(found.values()):
        return tuple(steps)
    return tuple(_divided(step, found) for step in steps)


def _outermost(step: Step) -> Iterator[LoopStep]:
    """The loops that a step is or holds, without those within loops, and without ragged ones; of
    a loop over parts those in its body."""
    if isinstance(step, LoopStep) and not is_apart(step.node):
        if step.mask is None:
            yield step
        return
    for run in inside(step):
        for inner in run:
            yield from _outermost(inner)


def _divided(step: Step, found: dict[LoopStep, Rows | None]) -> Step:
    if isinstance(step, LoopStep):
        if is_apart(step.node):
            return replace(step, body=tuple(_divided(inner, found) for inner in step.body))
        return replace(step, split=found.get(step))
    runs = inside(step)
    if not runs:
        return step
    changed = [tuple(_divided(inner, found) for inner in run) for run in runs]
    return replaced_runs(step, changed)


def _on_own_rows(loop: LoopStep) -> Rows | None:
    """The turn of `loop` on some of the rows of a carry, the first for which it has one."""
    for _, place in loop.carries:
        if not place.shape or same(place.shape[0], 1):
            continue
        try:
            return _Turn(loop, place, FIRST).cut()
        except _Crossing:
            continue
    return None


def _ragged(step: Step) -> Iterator[LoopStep]:
    """The ragged loops that a step is or holds."""
    if isinstance(step, LoopStep) and step.mask is not None:
        yield step
    for run in inside(step):
        for inner in run:
            yield from _ragged(inner)


def _rebuilt(step: Step, found: dict[LoopStep, Rows | None]) -> Step:
    def run(steps: Iterable[Step]) -> tuple[Step, ...]:
        return tuple(_rebuilt(inner, found) for inner in steps)

    if isinstance(step, LoopStep):
        return replace(step, body=run(step.body), rows=found.get(step))
    return replaced_runs(step, [run(steps) for steps in inside(step)])


def _on_rows(loop: LoopStep) -> Rows | None:
    """The turn of `loop` on its first rows; None where it is not proven that it has one."""
    place = loop.slices[loop.node.attrs["live"]][1]
    nested = any(True for step in loop.body for _ in _ragged(step))
    if nested or same(place.shape[0], 1):
        return None
    try:
        return _Turn(loop, place).cut()
    except _Crossing:
        return None


class _Crossing(Exception):
    """Rows meet, or it is not known that they do not."""


class _Unit(NamedTuple):
    """A step, or a copy of a loop: what it reads and writes, and how their axes go together."""

    operands: tuple[Operand, ...]
    results: tuple[View, ...]
    lanes: list[Lane]
    created: bool = False  # made for the whole batch, of nothing that has rows
    once: bool = True  # whether each element of the results is written once, and not added to


class _Turn:
    """One loop: where rows lie, and its steps cut down to them."""

    def __init__(self, loop: LoopStep, mask: View, first: Dim = 0) -> None:
        self.loop = loop
        self.first = first
        self.batch = mask.shape[0]
        self.strides: dict[Storage, Dim] = {mask.storage: mask.strides[0]}
        units = list(_units(loop))
        made = {v.storage for unit in units for v in unit.results}
        self.made = made
        self.own = made - {v.storage for unit in units if unit.created for v in unit.results}
        known = 0
        while known != len(self.strides):
            known = len(self.strides)
            for unit in units:
                self._spread(unit)

    def _spread(self, unit: _Unit) -> None:
        """Notes the storages that hold rows because others of the same step do."""
        views = [*unit.operands, *unit.results]
        for lane in unit.lanes:
            for i, axis in lane.axes:
                inner = self._inner(views[i], axis)
                if inner is None:
                    continue
                for j, other in lane.axes:
                    view = views[j]
                    if not isinstance(view, View) or view.storage not in self.own:
                        continue
                    size, stride = view.shape[other], view.strides[other]
                    if same(size, self.batch * inner) and not same(stride, 0):
                        self.strides.setdefault(view.storage, stride * inner)

    def _inner(self, view: Operand, axis: int) -> Dim | None:
        """How many elements of `axis` belong to one row; None where it is not the axis of rows."""
        if not isinstance(view, View) or view.storage not in self.strides:
            return None
        size, stride = view.shape[axis], view.strides[axis]
        if same(stride, 0) or not same(size * stride, self.batch * self.strides[view.storage]):
            return None
        return dims.divide_exact(size, self.batch)

    # --- proof and cut

    def cut(self) -> Rows:
        loop = self.loop
        if any(self._may_have_rows(place) for _, place in loop.slices):
            raise _Crossing
        slices = tuple(self._slice(pair) for pair in loop.slices)
        stacked = tuple(self._stacked(pair) for pair in loop.stacked)
        return Rows(
            slices,
            tuple(map(self._step, loop.body)),
            tuple(map(self._copy, loop.updates)),
            stacked,
            tuple(self._axis(place) for _, place in loop.stacked),
            self.batch,
        )

    def _may_have_rows(self, place: View) -> bool:
        """Whether what is not known to hold rows might: past the live ones they would be zeros."""
        known = place.storage in self.strides
        return not known and any(dims.divide_exact(d, self.batch) is not None for d in place.shape)

    def _axis(self, view: View) -> int | None:
        axes = range(len(view.shape))
        return next((a for a in axes if self._inner(view, a) is not None), None)

    def _cut(self, unit: _Unit) -> tuple[list[Operand], list[View], tuple[int, Dim] | None]:
        """Operands and results on the first rows, and which axis of the step that is, as a lane
        and the elements of it that belong to a row.  Raises _Crossing where the rows meet."""
        views = [*unit.operands, *unit.results]
        held = self.strides
        rowed = [i for i, v in enumerate(views) if isinstance(v, View) and v.storage in held]
        if not rowed:
            if not same(self.first, 0) and not self._repeatable(unit):
                raise _Crossing
            return list(unit.operands), list(unit.results), None
        lane, inner = self._lane(unit, views, rowed)
        chosen = dict(unit.lanes[lane].axes)
        first = len(unit.operands)
        if any(i not in chosen for i in rowed) or any(
            i not in rowed for i in range(first, len(views))
        ):
            raise _Crossing
        out: list[Operand] = []
        for i, view in enumerate(views):
            if i not in chosen or not isinstance(view, View):
                out.append(view)
                continue
            axis = chosen[i]
            if i in rowed and not same(self._inner(view, axis) or 0, inner):
                raise _Crossing
            if i in rowed or same(view.shape[axis], self.batch * inner):
                view = self._rows(view, axis, inner)
            elif not same(view.shape[axis], 1):
                raise _Crossing
            out.append(view)
        return out[:first], [v for v in out[first:] if isinstance(v, View)], (lane, inner)

    def _repeatable(self, unit: _Unit) -> bool:
        """Whether all threads may do it, each at a time of its own, while others read what it
        writes: the same values in every turn, without others on the way to them."""
        return unit.once and not any(map(self._moves, unit.operands))

    def _moves(self, x: Operand) -> bool:
        """Whether an operand may differ from turn to turn."""
        return isinstance(x, Turn) or (isinstance(x, View) and x.storage in self.made)

    def _rows(self, view: View, axis: int, inner: Dim) -> View:
        """The rows from the first on."""
        shape = tuple(inner * ROWS if a == axis else d for a, d in enumerate(view.shape))
        ahead = self.first * inner * view.strides[axis]
        if isinstance(view, Turn):
            assert view.stacked is not None
            stacked = replace(view.stacked, offset=view.stacked.offset + ahead)
            return replace(view, shape=shape, offset=view.offset + ahead, stacked=stacked)
        return replace(view, shape=shape, offset=view.offset + ahead)

    def _lane(self, unit: _Unit, views: Sequence[Operand], rowed: list[int]) -> tuple[int, Dim]:
        """The lane along which the rows lie, which must be one that keeps them apart."""
        for k, lane in enumerate(unit.lanes):
            for i, axis in lane.axes:
                if i in rowed and (inner := self._inner(views[i], axis)) is not None:
                    if not lane.apart:
                        raise _Crossing
                    return k, inner
        raise _Crossing

    def _copy(self, pair: tuple[_Operand, View]) -> tuple[_Operand, View]:
        (new,), (place,), _ = self._cut(_copied(pair))
        return new, place  # type: ignore[return-value]

    def _slice(self, pair: tuple[View, View]) -> tuple[View, View]:
        (new,), (place,), cut = self._cut(_taken(pair))
        if cut is None and not same(self.first, 0):
            raise _Crossing
        assert isinstance(new, View)
        return new, place

    def _stacked(self, pair: tuple[Operand, View]) -> tuple[Operand, View]:
        (new,), (place,), _ = self._cut(_put(pair))
        return new, place

    def _step(self, step: Step) -> Step:
        if isinstance(step, LoopStep):
            if step.mask is not None:
                raise _Crossing  # whose mask is of all rows
            return replace(
                step,
                carries=tuple(map(self._copy, step.carries)),
                slices=tuple(map(self._slice, step.slices)),
                body=tuple(map(self._step, step.body)),
                updates=tuple(map(self._copy, step.updates)),
                stacked=tuple(map(self._stacked, step.stacked)),
            )
        if isinstance(step, (BranchStep, WhileStep)):
            return self._choice(step)
        operands, results, cut = self._cut(_unit(step))
        if cut is None:
            return step
        if isinstance(step, CopyStep):
            return replace(step, operand=operands[0], result=results[0])
        if isinstance(step, MatmulStep):
            left, right = operands
            assert isinstance(left, View) and isinstance(right, View)
            return replace(step, operands=(left, right), results=(results[0],))
        if isinstance(step, OpStep):
            if step.scratch and not same(self.first, 0):
                raise _Crossing  # all threads would work in the same memory
            return replace(step, operands=tuple(operands), results=tuple(results))
        assert isinstance(step, FusedStep)
        lane, inner = cut
        axis = len(step.shape) - 1 - lane  # lanes of aligned operands count from the last axis
        if not same(step.shape[axis], self.batch * inner):
            raise _Crossing
        shape = tuple(inner * ROWS if a == axis else d for a, d in enumerate(step.shape))
        return replace(step, shape=shape, operands=tuple(operands), results=tuple(results))

    def _choice(self, step: BranchStep | WhileStep) -> Step:
        if isinstance(step.flag, View) and step.flag.storage in self.strides:
            raise _Crossing
        if isinstance(step, BranchStep):
            return replace(
                step,
                then=tuple(map(self._step, step.then)),
                otherwise=tuple(map(self._step, step.otherwise)),
            )
        return replace(
            step,
            carries=tuple(map(self._copy, step.carries)),
            condition=tuple(map(self._step, step.condition)),
            body=tuple(map(self._step, step.body)),
            updates=tuple(map(self._copy, step.updates)),
        )


# --- what a turn consists of


def _units(loop: LoopStep) -> Iterator[_Unit]:
    yield from map(_taken, loop.slices)
    for step in loop.body:
        yield from _inner_units(step)
    yield from map(_copied, loop.updates)
    yield from map(_put, loop.stacked)


def _inner_units(step: Step) -> Iterator[_Unit]:
    if isinstance(step, LoopStep):
        yield from map(_copied, step.carries)
        yield from _units(step)
        return
    if isinstance(step, WhileStep):
        yield from map(_copied, (*step.carries, *step.updates))
    runs = inside(step)
    for run in runs:
        for inner in run:
            yield from _inner_units(inner)
    if not runs:
        yield _unit(step)


def _unit(step: Step) -> _Unit:
    if isinstance(step, CopyStep):
        return _copied((step.operand, step.result))
    if not isinstance(step, (MatmulStep, OpStep, FusedStep)):
        raise _Crossing
    kind = step.node.op.kind if isinstance(step, OpStep) else None
    created = kind in (Kind.CREATE, Kind.RANDOM)
    once = created or kind is Kind.ELEMENTWISE
    return _Unit(tuple(step.operands), tuple(step.results), lanes(step), created, once)


def _copied(pair: tuple[Operand, View]) -> _Unit:
    return _Unit((pair[0],), (pair[1],), aligned(pair))


def _taken(pair: tuple[View, View]) -> _Unit:
    """A slice of a turn: the axes of what is stacked, without the first."""
    return _Unit((pair[0],), (pair[1],), shifted(*pair, stacked=0))


def _put(pair: tuple[Operand, View]) -> _Unit:
    new, place = pair
    if not isinstance(new, View):
        return _Unit((new,), (place,), [])
    return _Unit((new,), (place,), shifted(place, new, stacked=1))
