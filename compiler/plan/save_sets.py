"""What to keep for the way back where light values may be computed again: units -> an order.

It keeps a minimum cut: the fewest bytes from which everything that the way back reads can be
computed without a product or a loop.  As a flow: edges from what is there anyway to what is read,
through arrays whose capacity is their bytes (the formulation of PyTorch's AOTAutograd, He & Yu,
"Transcending runtime-memory tradeoffs in checkpointing by being fusion aware", MLSys 2023).
Invariant: a value is computed again once, right before what reads it first.
"""

from __future__ import annotations

from collections.abc import Iterable

from retrograde.compiler.plan.min_cut import INFINITE, Network
from retrograde.compiler.plan.units import Units


def everything(units: Units) -> frozenset[int]:
    """What the way back reads."""
    pairs = zip(units.reads, units.later, strict=True)
    found = {r for reads, later in pairs if later for r in reads}
    return frozenset(r for r in found if not units.later[r])


def least(units: Units) -> frozenset[int]:
    """The fewest bytes from which light units alone lead to what the way back reads."""
    forward = [i for i, later in enumerate(units.later) if not later]
    source, sink = 2 * len(units.units), 2 * len(units.units) + 1
    network = Network(sink + 1)
    for i in forward:
        network.add(2 * i, 2 * i + 1, units.bytes[i] or 1)
        if not units.light[i]:  # is there once, on the way forward
            network.add(source, 2 * i, INFINITE)
        for r in units.reads[i]:
            network.add(2 * r + 1, 2 * i, INFINITE)
    for r in everything(units):
        network.add(2 * r + 1, sink, INFINITE)
    _, near = network.cut(source, sink)
    return frozenset(i for i in forward if 2 * i in near and 2 * i + 1 not in near)


def keeping(units: Units, kept: Iterable[int]) -> tuple[int, ...]:
    """The order of units that keeps `kept`, and what cannot run again, and computes the rest of
    what the way back reads again, once."""
    there = set(kept)
    order: list[int] = []
    for j, later in enumerate(units.later):
        if later:
            for r in units.reads[j]:
                if not units.later[r]:
                    _rerun(units, r, there, order)
        order.append(j)
    return tuple(order)


def _rerun(units: Units, r: int, there: set[int], order: list[int]) -> None:
    """Appends what has to run for `r` to be there once more, and notes it in `there`."""
    stack = [(r, False)]
    while stack:
        i, ready = stack.pop()
        if i in there or units.fixed[i]:
            continue
        if ready:
            there.add(i)
            order.append(i)
            continue
        stack.append((i, True))
        stack.extend((q, False) for q in reversed(units.reads[i]))
