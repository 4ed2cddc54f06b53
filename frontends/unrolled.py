"""Notices of loops that Python unrolls: the operations being traced -> a warning with the way out.

A builder counts how often an op is made from the same calls, down to the instruction.  Invariant:
only what a scan could do is told: the repetitions make the same types, and read the same values
from before the loop.  A walk over the parameters of a model reads others each time.
"""

from __future__ import annotations

import linecache
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

from retrograde.compiler.errors import Notice
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.graph import Node, Value, same_type
from retrograde.compiler.ir.op import Op

MOST = 64  # repetitions without a word


class WatchingBuilder(Builder):
    """A builder that tells, once, of a loop that was unrolled for more than MOST steps."""

    _base: FrameType | None = None  # what called the trace: no frame outside of it counts
    _told = False

    def __enter__(self) -> Builder:
        self._base = sys._getframe(1)
        self._repeated: dict[Any, list[Node]] = {}
        self._places: dict[CodeType, list[Any]] = {}
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        self._base = None
        self._repeated.clear()
        self._places.clear()
        super().__exit__(*details)

    def emit(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> tuple[Value, ...]:
        outputs = super().emit(op, inputs, attrs)
        if self._base is not None and not self._told:
            node = self.nodes[-1]
            found = self._repeated.setdefault((op.name, node.scope, *self._calls()), [])
            found.append(node)
            if len(found) == MOST + 1 and self._is_loop(found):
                self._told = True
                self._repeated.clear()
                _tell(node)
        return outputs

    def _calls(self) -> list[Any]:
        """The calls that led here, inside of the trace.

        An instruction is known by its place in the source: its offset is another one once the
        interpreter has specialised it.
        """
        calls: list[Any] = []
        frame = sys._getframe(2)
        while frame is not self._base and frame.f_back is not None:
            code = frame.f_code
            places = self._places.get(code)
            if places is None:
                places = self._places[code] = list(code.co_positions())
            calls.append((id(code), places[frame.f_lasti // 2]))
            frame = frame.f_back
        return calls

    def _is_loop(self, found: list[Node]) -> bool:
        """Whether a scan could do what these nodes, and what they are made of, do."""
        first, middle, last = found[0], found[len(found) // 2], found[-1]
        for v, *others in zip(first.outputs, middle.outputs, last.outputs, strict=True):
            if not all(same_type(v.type, other.type) for other in others):
                return False
        loop: list[Node] = []
        for node in reversed(self.nodes):
            loop.append(node)
            if node is first:
                break
        if _same_again(middle, last, reversed(loop)):
            return False  # as x[0] in a walk over parameters: no step of anything
        maker = {v: node for node in loop for v in node.outputs}
        reads = _reads(last, maker)
        return bool(reads) and reads == _reads(middle, maker)


def _same_again(one: Node, other: Node, nodes: Iterable[Node]) -> bool:
    """Whether two of `nodes`, which stand in order, compute the same from the same."""
    numbers: dict[Any, int] = {}
    of: dict[Value, Any] = {}
    for node in nodes:
        made = (node.op.name, tuple(of.get(v, v) for v in node.inputs), repr(node.attrs))
        number = numbers.setdefault(made, len(numbers))
        of.update({v: (number, i) for i, v in enumerate(node.outputs)})
    return [of[v] for v in one.outputs] == [of[v] for v in other.outputs]


def _reads(node: Node, maker: Mapping[Value, Node]) -> set[Value]:
    """The values that `node` depends on and that no node of the loop made."""
    found: set[Value] = set()
    seen: set[Node] = {node}
    work = [node]
    while work:
        for v in work.pop().inputs:
            made = maker.get(v)
            if made is None:
                found.add(v)
            elif made not in seen:
                seen.add(made)
                work.append(made)
    return found


def _tell(node: Node) -> None:
    line = linecache.getline(node.loc.file, node.loc.line).strip() if node.loc else ""
    place = f"{node.loc.full}: " if node.loc else ""
    turn = "..." if line.startswith(("for ", "while ")) else line
    warnings.warn(
        f"{place}a Python loop is unrolled over more than {MOST} steps, each of which is traced "
        f"and compiled by itself:\n    {line}\nAs one step that runs that often:\n"
        f"    def step(carry, x):\n        {turn}\n        return carry, y\n"
        "    carry, ys = rg.scan(step, carry, xs)",
        Notice,
        stacklevel=2,
    )
