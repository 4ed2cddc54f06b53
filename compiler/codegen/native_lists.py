"""Lists of launches as numbers: nested entries -> instructions, arguments, movers.

An entry is one of
    (kernel, items, grain, arguments[, what its faults are about])      a launch
    (turns, direction, entries)                                         a loop over time
    ("if", flag, entries, entries)                                      one of two runs
    ("while", entries, flag, entries)                                   a condition and its body
    ("turns", numbers, turns, direction, (entries, entries …))
                                                                        a loop whose turn t runs
                                                                        those with the number that
                                                                        lies at numbers[t]
    ("together", launches)                                              launches that do not depend
                                                                        on each other
    ("call", key, make, start)                                          entries that `make()` gives,
                                                                        once for each key
    ("move", to, from, bytes)                                           a copy of memory
    ("repeat", count, launches)                                     launches that follow each other
                                                                        so many times: what differs
                                                                        is an array, a number for
                                                                        each time
    ("chain", blocks, launches)                                         launches that run together
                                                                        on one block after another,
                                                                        `grain` items of each
    ("own", (entries, entries …))                                       for each thread its own
                                                                        entries, alike but for their
                                                                        numbers; a barrier follows
An argument is a number, or (number, stride, level) for what moves: with the turns of a loop, of
which level 0 is the outermost of the list; with the first turn that a list is run with at level -1;
with the start of the call that it is in at level "start".  Invariant: the numbers of a list depend
on sizes and places alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
Mover = tuple[int, int]  # argument, stride

# As runtime/native/pool.c has them.
LAUNCH, LOOP, END, TEST, JUMP, CALL, RETURN, COPY, CHAIN, TURNS, CASE = range(11)
WIDTH = 8  # numbers of an instruction
OWN = 1  # how a launch is shared out: each thread has all of its own


@dataclass
class LaunchList:
    """The numbers of a list in the making."""

    code: array[int] = field(default_factory=lambda: array("q"))  # one after the other
    arguments: array[int] = field(default_factory=lambda: array("q"))
    own: list[tuple[int, list[int]]] = field(default_factory=list)  # place, thread by thread
    movers: list[Mover] = field(default_factory=list)
    turns: list[tuple[int, int, int, int]] = field(default_factory=list)  # turn, place, at, stride
    notes: dict[int, Any] = field(default_factory=dict)  # by instruction
    _alone: bool = False  # whether each thread does all items of a launch, which are its own
    _moving: list[list[Mover]] = field(default_factory=list)  # of the loops around
    _started: list[Mover] = field(default_factory=list)  # of the call at work
    _made: dict[Hashable, int] = field(default_factory=dict)  # the number of what is called
    _makers: list[Callable[[], Sequence[Any]]] = field(default_factory=list)
    _calls: list[tuple[int, int]] = field(default_factory=list)  # instruction, number

    @classmethod
    def of(cls, entries: Sequence[Any]) -> LaunchList:
        """The whole list, with what it calls behind it."""
        made = cls()
        made.add(entries)
        made.finish()
        return made

    def finish(self) -> None:
        """Appends what is called."""
        if not self._makers:
            return
        self._emit(RETURN)
        places: list[tuple[int, int, int]] = []
        for make in self._makers:  # grows while it is walked: calls within calls
            at = self.count
            self._started = []
            self.add(make())
            self._emit(RETURN)
            places.append((at, len(self.movers), len(self._started)))
            self.movers.extend(self._started)
        for instruction, number in self._calls:
            at, first, count = places[number]
            self._set(instruction, 1, at)
            self._set(instruction, 3, first, count)

    def tables(self, threads: int) -> tuple[Table, Table, Table]:
        """Instructions, arguments of each thread, and movers."""
        code = np.array(self.code, np.int64).reshape(-1, WIDTH)
        # Launches of one block are the first thread's: between two of them nobody has to wait.
        op, _, _, items, grain, barrier, spread, _ = code.T
        single = (op == LAUNCH) & (items > 0) & (items <= grain) & (barrier == 1) & (spread == 0)
        barrier[:-1][single[:-1] & single[1:]] = 0
        movers = np.array(self.movers, np.int64).reshape(-1, 2)
        arguments = np.tile(np.array(self.arguments, np.int64), (threads, 1))
        for place, numbers in self.own:
            arguments[:, place] = numbers
        return code, arguments, movers

    @property
    def count(self) -> int:
        """How many instructions there are."""
        return len(self.code) // WIDTH

    def add(self, entries: Sequence[Any]) -> None:
        for entry in entries:
            if isinstance(entry[0], str):
                getattr(self, f"_{entry[0]}")(*entry[1:])
            elif isinstance(entry[2], list):
                self._loop(*entry)
            else:
                self._launch(*entry)

    def _emit(self, *numbers: int) -> int:
        """Adds an instruction; returns its index."""
        self.code.extend(numbers)
        self.code.extend(_NOTHING[len(numbers) :])
        return self.count - 1

    def _set(self, instruction: int, place: int, *numbers: int) -> None:
        """Changes numbers of an instruction, from its place-th on."""
        at = instruction * WIDTH + place
        self.code[at : at + len(numbers)] = array("q", numbers)

    def _launch(
        self, kernel: int, items: int, grain: int, arguments: Sequence[Any], note: Any = None
    ) -> None:
        if self._alone:
            first = self._given([*arguments, items])
            at = self._emit(LAUNCH, kernel, first, len(self.arguments) - 1, grain, 0, OWN)
        elif items <= 0:
            return
        else:
            first = self._given(arguments)
            at = self._emit(LAUNCH, kernel, first, items, grain, 1)
        if note is not None:
            self.notes[at] = note

    def _given(self, arguments: Sequence[Any]) -> int:
        """The index of the first of some arguments."""
        first = len(self.arguments)
        for x in arguments:
            if isinstance(x, tuple):
                base, stride, level = x
                place = len(self.arguments)
                if level == "start":
                    self._started.append((place, stride))
                elif level < 0:
                    self.turns.append((-1 - level, place, base, stride))
                else:
                    self._moving[level].append((place, stride))
                x = base
            self.arguments.append(x)
        return first

    def _loop(self, count: int, direction: int, body: Sequence[Any]) -> None:
        at = self._emit(LOOP, count, direction)
        self._moving.append([])
        self.add(body)
        own = self._moving.pop()
        self._set(at, 3, len(self.movers), len(own), self.count)
        self.movers.extend(own)
        self._emit(END, at)

    def _turns(
        self, numbers: int, count: int, direction: int, cases: Sequence[Sequence[Any]]
    ) -> None:
        head = self._emit(TURNS, count, direction, self._given([numbers]), len(cases))
        places = [self._emit(CASE) for _ in cases]
        ends: list[int] = []
        for place, entries in zip(places, cases, strict=True):
            self._moving.append([])
            at = self.count
            self.add(entries)
            own = self._moving.pop()
            self._set(place, 1, at, len(self.movers), len(own))
            self.movers.extend(own)
            ends.append(self._emit(JUMP))
        end = self._emit(END, head)
        for at in ends:
            self._set(at, 1, end)
        self._set(head, 5, end)

    def _together(self, launches: Sequence[Any]) -> None:
        first = self.count
        self.add(launches)
        for at in range(first, self.count - 1):
            self._set(at, 5, 0)  # threads meet after the last

    def _repeat(self, times: int, launches: Sequence[Any]) -> None:
        """Launches for all threads, with other numbers each time."""
        assert not self._alone, "each thread has its own launches one by one"
        code: list[tuple[Any, ...]] = []
        given: list[Any] = []
        notes: list[tuple[int, Any]] = []
        for kernel, items, grain, arguments, *note in launches:
            if isinstance(items, int) and items <= 0:
                continue
            notes += [(len(code), x) for x in note]
            code.append((LAUNCH, kernel, len(given), items, grain, 1, 0, 0))
            given.extend(arguments)
        all_code = _each(times, [x for row in code for x in row])
        first = np.arange(times, dtype=np.int64) * len(given) + len(self.arguments)
        all_code[:, 2::WIDTH] += first[:, None]
        at = self.count
        self.notes.update(
            (at + time * len(code) + i, x) for i, x in notes for time in range(times)
        )
        self.code.frombytes(all_code.tobytes())
        self.arguments.frombytes(_each(times, given).tobytes())

    def _own(self, threads: Sequence[Sequence[Any]]) -> None:
        """The entries of the first thread; what the others have other numbers for is noted."""
        self._alone = True
        first = len(self.arguments)
        self.add(threads[0])
        self._alone = False
        mine = self.arguments[first:]
        others = [mine]
        for entries in threads[1:]:
            other = LaunchList(_alone=True, _moving=[[] for _ in self._moving])
            other.add(entries)
            assert len(other.arguments) == len(mine), "threads run the same launches"
            others.append(other.arguments)
        for i, numbers in enumerate(zip(*others, strict=True)):
            if any(n != numbers[0] for n in numbers):
                self.own.append((first + i, list(numbers)))
        self._emit(LAUNCH, 0, 0, 0, 1, 1)  # nothing but a barrier

    def _if(self, flag: Any, then: Sequence[Any], otherwise: Sequence[Any]) -> None:
        test = self._emit(TEST, self._given([flag]))
        self.add(then)
        jump = self._emit(JUMP)
        self._set(test, 2, self.count)
        self.add(otherwise)
        self._set(jump, 1, self.count)

    def _while(self, condition: Sequence[Any], flag: Any, body: Sequence[Any]) -> None:
        start = self.count
        self.add(condition)
        test = self._emit(TEST, self._given([flag]))
        self.add(body)
        self._emit(JUMP, start)
        self._set(test, 2, self.count)

    def _call(self, key: Hashable, make: Callable[[], Sequence[Any]], start: int) -> None:
        number = self._made.get(key)
        if number is None:
            number = self._made[key] = len(self._makers)
            self._makers.append(make)
        self._calls.append((self._emit(CALL, 0, start), number))

    def _return(self) -> None:
        self._emit(RETURN)

    def _chain(self, blocks: int, links: Sequence[Any]) -> None:
        self._emit(CHAIN, blocks, len(links), 1)
        for kernel, items, each, arguments in links:
            self._emit(LAUNCH, kernel, self._given(arguments), items, each)

    def _move(self, to: Any, source: Any, bytes: int) -> None:
        if bytes:
            first = self._given([to, source, bytes])
            self._emit(COPY, first, first + 1, first + 2, 1)


_NOTHING = array("q", [0] * WIDTH)


def _each(times: int, numbers: Sequence[Any]) -> Table:
    """A row of numbers for each time; an array among them has one for each."""
    rows = np.empty((times, len(numbers)), np.int64)
    rows[:] = [0 if isinstance(x, np.ndarray) else x for x in numbers]
    for i, x in enumerate(numbers):
        if isinstance(x, np.ndarray):
            rows[:, i] = x
    return rows
