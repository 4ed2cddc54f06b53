"""Exact lifetimes and in-place reuse: Schedule -> the buffers of the arena.

Time counts steps, those inside loops one by one; a buffer lives in [start, end).  Invariant: at no
time does a storage hold something that is still to be read while something else is written to
it; a result takes over a dying operand's storage only where the op allows it element by element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.plan.in_place import takes_over
from retrograde.compiler.plan.schedule import may_refuse
from retrograde.compiler.plan.steps import (
    ChainStep,
    CopyStep,
    FusedStep,
    LoopStep,
    OpStep,
    Schedule,
    Step,
    WhileStep,
    inside,
    reads,
    walk_all,
    writes,
)
from retrograde.compiler.plan.views import Operand, Storage, View, new_view


@dataclass(slots=True)
class Life:
    """First write and last access of a storage, in steps; both inclusive."""

    first: int
    last: int


@dataclass(frozen=True)
class Liveness:
    """The lifetimes of all storages, the number of steps, and who shares whose place."""

    lives: dict[Storage, Life]
    steps: int
    merged: dict[Storage, Storage]  # storage -> the one it lies in

    def home(self, storage: Storage) -> Storage:
        """The storage that `storage` lies in, itself if it was not merged."""
        while storage in self.merged:
            storage = self.merged[storage]
        return storage

    def buffers(self) -> list[Storage]:
        """The storages that need a place of their own, in order of birth."""
        own = [s for s in self.lives if s not in self.merged]
        return sorted(own, key=lambda s: (self.lives[s].first, s.id))


def analyse(schedule: Schedule, inplace: bool = True) -> tuple[Schedule, Liveness]:
    """Lifetimes with in-place reuse, and the schedule with copies for donations that need one.

    With `inplace=False` nothing is shared except donated state, which is what it means."""
    schedule = _with_donation_copies(schedule)
    lives, steps = _lifetimes(schedule)
    merged: dict[Storage, Storage] = {}
    liveness = Liveness(lives, steps, merged)
    for storage, home in schedule.merged:
        merged[storage] = home
        _extend(lives, home, lives[storage])
    if inplace:
        chains: dict[int, ChainStep] = {}  # by the identity of a link
        for position, step, _ in walk(schedule.steps):
            if isinstance(step, ChainStep):
                chains.update((id(link), step) for link in step.links)
            _share(liveness, step, position, chains.get(id(step)))
    for position, step, end in walk(schedule.steps):
        if isinstance(step, LoopStep) and step.split is not None:
            _keep_apart(liveness, step.body, Life(position, end))
        elif isinstance(step, ChainStep):
            _keep_apart(liveness, step.links, Life(position, end), read=True)
    return schedule, liveness


def _keep_apart(
    liveness: Liveness, steps: Sequence[Step], life: Life, read: bool = False
) -> None:
    """Threads that share out the rows of a loop or a chain do not wait for each other: while one
    writes its rows of a buffer, another may be at any other step, so none may lie where another one
    does.  With `read` that holds for what is read from outside, too."""
    for step in walk_all(steps):
        slices = [place for _, place in step.slices] if isinstance(step, LoopStep) else []
        for view in (*writes(step), *slices, *(reads(step) if read else ())):
            _extend(liveness.lives, liveness.home(view.storage), life)


def walk(steps: Sequence[Step], start: int = 0) -> Iterator[tuple[int, Step, int]]:
    """(position, step, end): a step that holds others comes first, with the position after them.

    It takes a position before what it holds and one after it, which no other step has."""
    position = start
    for step in steps:
        runs = inside(step)
        if not runs:
            yield position, step, position
            position += 1
            continue
        inner: list[tuple[int, Step, int]] = []
        end = position + 1
        for run in runs:
            inner.extend(walk(run, end))
            end = max((last for *_, last in inner), default=position) + 1
        yield position, step, end
        yield from inner
        position = end + 1


def _lifetimes(schedule: Schedule) -> tuple[dict[Storage, Life], int]:
    lives: dict[Storage, Life] = {}

    def touch(view: Operand, at: int) -> None:
        if isinstance(view, View):
            life = lives.get(view.storage)
            if life is None:
                lives[view.storage] = Life(at, at)
            elif at < life.first:
                life.first = at
            elif at > life.last:
                life.last = at

    for view in schedule.inputs:
        touch(view, 0)
    last = 0
    for position, step, end in walk(schedule.steps):
        last = max(last, end)
        if isinstance(step, ChainStep):
            continue  # its links tell; `_keep_apart` follows when places have been taken over
        for view in (*reads(step), *writes(step)):
            touch(view, position)
            if end != position:
                touch(view, end)  # what a loop uses from outside stays while it turns
        if isinstance(step, LoopStep):
            for _, place in step.slices:
                touch(place, position)  # written anew at every turn
            for operand, _ in (*step.updates, *step.stacked):
                touch(operand, end)
        elif isinstance(step, WhileStep):
            touch(step.flag, position)  # written in one run of steps, read before the other
            for operand in (step.flag, *(new for new, _ in step.updates)):
                touch(operand, end)
    for output in schedule.outputs:
        touch(output, last + 1)
    return lives, last + 2


def _extend(lives: dict[Storage, Life], storage: Storage, other: Life) -> None:
    life = lives[storage]
    life.first, life.last = min(life.first, other.first), max(life.last, other.last)


def _with_donation_copies(schedule: Schedule) -> Schedule:
    """Merges each donated input with its new value where that is safe, else appends a copy."""
    lives, _ = _lifetimes(schedule)
    makers: dict[Storage, tuple[int, Step]] = {}
    for position, step, _ in walk(schedule.steps):
        for view in writes(step):
            makers[view.storage] = (position, step)
    gate = _last_refusal(schedule)
    merged: list[tuple[Storage, Storage]] = []
    saves: list[Step] = []  # old states that are returned, before anything overwrites them
    copies: list[Step] = []
    taken: set[Storage] = set()
    outputs: list[Operand] = list(schedule.outputs)
    updated = {output: schedule.inputs[input] for output, input in schedule.donated}
    for i in range(len(outputs)):
        new: Operand = outputs[i]
        old = updated.get(i)
        if isinstance(new, View) and new.storage.kind == "state" and not (old and old.equals(new)):
            saved = new_view(TensorType(new.dtype, new.shape), "value", "old state")
            saves.append(CopyStep(new, saved, "a state that is returned as it was"))
            outputs[i] = new = saved
        if old is None or old.equals(new):
            continue
        maker = makers.get(new.storage) if isinstance(new, View) else None
        if (
            isinstance(new, View)
            and maker is not None
            and new.storage.kind == "value"
            and new.storage not in taken
            and lives[new.storage].first > gate
            and _read_before(lives, old, new, maker[0])
            and takes_over(maker[1], old, new)
        ):
            taken.add(new.storage)
            merged.append((new.storage, old.storage))
        else:
            copies.append(CopyStep(new, old, "donated state that is read after its update"))
        outputs[i] = old
    return Schedule(
        schedule.name,
        (*schedule.steps, *saves, *copies),
        schedule.inputs,
        tuple(outputs),
        schedule.donated,
        schedule.checks,
        (*schedule.merged, *merged),
        schedule.unchained,
    )


def _last_refusal(schedule: Schedule) -> int:
    """The position of the last step that may refuse its data: no state is written before it."""
    refusing = (
        position
        for position, step, _ in walk(schedule.steps)
        if isinstance(step, (OpStep, FusedStep)) and may_refuse(step.node)
    )
    return max(refusing, default=-1)


def _read_before(lives: dict[Storage, Life], old: View, new: View, maker: int) -> bool:
    """Whether `old` has had its last reader when `new` is first written, or has it in that step,
    which then has to be the only one that writes."""
    read, written = lives[old.storage].last, lives[new.storage].first
    return read < written or read == written == maker


def _share(
    liveness: Liveness, step: Step, position: int, chain: ChainStep | None = None
) -> None:
    """Lets the results of an elementwise or fused step take over operands that die in it.

    In a chain other threads are at other links: there all of them have to keep to their rows."""
    if not isinstance(step, (OpStep, FusedStep)):
        return
    if isinstance(step, OpStep) and not step.node.op.inplace:
        return
    lives = liveness.lives
    for new in step.results:
        storage = new.storage
        if storage in liveness.merged or storage.kind != "value" or lives[storage].first < position:
            continue
        for old in reads(step):
            home = liveness.home(old.storage)
            if home.kind not in ("value", "input") or home is storage:
                continue
            if lives[home].last != position or not takes_over(step, old, new):
                continue
            if any(liveness.home(v.storage) is home and not old.equals(v) for v in reads(step)):
                continue
            if chain is not None and not _by_rows(liveness, chain, (storage, home)):
                continue
            liveness.merged[storage] = home
            _extend(lives, home, lives[storage])
            break


def _by_rows(liveness: Liveness, chain: ChainStep, homes: Sequence[Storage]) -> bool:
    """Whether all links of a chain keep to the rows of their block in what lies at `homes`."""
    touched = {v.storage for link in chain.links for v in (*reads(link), *writes(link))}
    return all(s in chain.rowed for s in touched if liveness.home(s) in homes)
