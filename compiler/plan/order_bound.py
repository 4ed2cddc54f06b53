"""Bounds on the peak over all orders: a DAG -> bytes that no order needs less than, and where.

Invariant: whatever `order_bound` returns is below the peak of every order, of every base order even
if it is the best one; the tests compare it with all orders of small graphs.
"""

from __future__ import annotations

from retrograde.compiler.plan.dag import Dag


def order_bound(dag: Dag, recompute: bool = False) -> tuple[int, int]:
    """A peak in bytes that no order is below, and the node at which it is reached (-1: the end).

    With `recompute`, nodes may run any number of times; without it, each runs once.

    While node v runs, what it reads and makes is there, and so are:

    - Without recomputation, every value that an ancestor of v makes (v aside) and a descendant of v
      reads: the ancestor ran before v, the descendant runs after it, and the value is made only
      once, so it is there in between.  An output among the ancestors is there as well, to the end.
    - With recomputation, let v be what ran last of what some reader w reads, before the last run
      of w.  The rest of what w reads is there while v runs, for it ran before and is still to be
      read.  Which of them is last is not known, so the least over them counts, for each w.  At the
      end the same holds of the outputs.  Without recomputation this holds too.

    Time: nodes x edges / 64 for the first (sets of nodes are integers), the sum over all nodes of
    the squares of what they read for the second.
    """
    best, where = dag.floor
    for node, peak in _last_read(dag):
        if peak > best:
            best, where = peak, node
    if not recompute:
        for node, peak in _between(dag):
            if peak > best:
                best, where = peak, node
    return best, where


def _last_read(dag: Dag) -> list[tuple[int, int]]:
    """By reader, and -1 for the end: the least peak at the run of what it reads last."""
    found = []
    asked = [(i, dag.predecessors[i]) for i in sorted(dag.needed)]
    for node, reads in [*asked, (-1, dag.outputs)]:
        together = sum(dag.size[p] for p in reads)
        peaks = []
        for last in reads:
            more = sum(dag.size[q] for q in dag.predecessors[last] if q not in reads)
            peaks.append(together + more)
        if peaks:
            found.append((node, min(peaks)))
    return found


def _between(dag: Dag) -> list[tuple[int, int]]:
    """By node: what it reads and makes, and what passes it by in every order of single runs."""
    order = [i for i in dag.topological if i in dag.needed]
    place = {node: at for at, node in enumerate(order)}
    above = [0] * len(order)  # ancestors, as bits
    below = [0] * len(order)
    for at, node in enumerate(order):
        for p in dag.predecessors[node]:
            above[at] |= above[place[p]] | 1 << place[p]
    for at in range(len(order) - 1, -1, -1):
        for p in dag.predecessors[order[at]]:
            below[place[p]] |= below[at] | 1 << at
    # Bit sets by node of whom a value has to pass: v is below it, and above one of its readers.
    crossing = [0] * len(order)  # by value: the v between it and a reader
    for at, node in enumerate(order):
        for s in dag.successors[node]:
            if s in place:
                crossing[at] |= above[place[s]]
        crossing[at] = below[at] if node in dag.outputs else crossing[at] & below[at]
    peak = [dag.working(node) for node in order]
    for at, node in enumerate(order):
        size, passed = dag.size[node], crossing[at]
        if not size:
            continue
        for s in dag.successors[node]:  # those have it among what they read
            if s in place:
                passed &= ~(1 << place[s])
        while passed:
            low = passed & -passed
            peak[low.bit_length() - 1] += size
            passed ^= low
    return list(zip(order, peak, strict=True))
