"""Why a value is kept, computed again, fused or in place, in words: decisions, a name -> text.

Invariant: a name that fits nothing is refused with the names that are nearest to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.inspect.decisions import Decision
from retrograde.compiler.inspect.numbers import bytes_text, count_text
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where

_MOST_LINES = 40
_NEAREST = 5


def matching(found: Sequence[Decision], name: str) -> list[Decision]:
    """The decisions about what is called `name`: a module path, a source line (`model.py:12`, also
    with ` @ path`), an op, or a value by its number in the text of the graph (`%12`)."""
    tests: tuple[Callable[[Decision], bool], ...] = (
        lambda d: d.node.scope == name or d.node.scope.startswith(f"{name}."),
        lambda d: d.node.loc is not None and name in (str(d.node.loc), d.node.place),
        lambda d: d.node.op.name == name,
    )
    for test in tests:
        if some := [d for d in found if test(d)]:
            return some
    return []


def names(graph: Graph, found: Iterable[Decision]) -> list[str]:
    """Everything that has a name."""
    known = dict.fromkeys((*graph.input_names, *graph.output_names))
    for d in found:
        for name in (d.node.scope, str(d.node.loc) if d.node.loc else "", d.node.op.name):
            if name:
                known.setdefault(name)
    return list(known)


def refusal(name: str, known: Sequence[str]) -> UnsupportedError:
    """What to say of a name that fits nothing."""
    near = difflib.get_close_matches(name, known, _NEAREST, 0.5)
    near += [k for k in known if name and name in k and k not in near][: _NEAREST - len(near)]
    line = re.fullmatch(r"(.+\.py):(\d+)", name)
    if line is not None:
        lines = sorted(
            (k for k in known if k.startswith(f"{line[1]}:")),
            key=lambda k: abs(int(k.rpartition(":")[2]) - int(line[2])),
        )
        near = [*lines[:_NEAREST], *(n for n in near if n not in lines)][:_NEAREST]
    shown = near or known[:12]
    what = "the nearest are" if near else "there are"
    more = "" if near or len(known) <= 12 else f" and {len(known) - 12} more"
    return UnsupportedError(
        f"{where()}nothing is called {name!r}: {what} {', '.join(shown) or 'none'}{more}; names "
        "are those of inputs, outputs, modules (blocks.0.mlp), ops (dot_general) and source lines "
        "such as 'model.py:12'"
    )


def told(
    name: str, found: Sequence[Decision], recipe: str, budget: int | None,
    sizes: Mapping[str, int] | None,
) -> list[str]:  # fmt: skip
    """A line for each decision, in the order of steps; in numbers where `sizes` are given."""
    at = ", ".join(f"{n}={size}" for n, size in sizes.items()) if sizes else ""
    under = "" if budget is None else f", budget {bytes_text(budget)}"
    head = f"{name}{f' at {at}' if at else ''}: {len(found)} values ({recipe}{under})"
    lines = [head]
    views = [d for d in found if d.fate == "view"]
    found = [d for d in found if d.fate != "view"]
    for d in found[:_MOST_LINES]:
        role = "" if d.node.origin.role == "primal" else f" ({d.node.origin.role})"
        lines.append(f"  {d.value.type} {d.node.op.name}  {d.node.place}{role}".rstrip())
        lines.append(f"    {sentence(d, budget, sizes)}")
    if len(found) > _MOST_LINES:
        lines.append(f"  and {len(found) - _MOST_LINES} more")
    if views:
        ops = ", ".join(dict.fromkeys(d.node.op.name for d in views))
        lines.append(f"  and {len(views)} views and single numbers, without steps: {ops}")
    return lines


def sentence(d: Decision, budget: int | None, sizes: Mapping[str, int] | None) -> str:
    """What was decided about a value, and why."""
    much = _text(d.bytes, sizes, bytes_text, " bytes")
    work = _text(d.operations, sizes, count_text, "") + " operations"
    parts = []
    if d.fate == "again":
        why = "to hold less" if budget is not None else "because that costs next to nothing"
        if d.node.origin.made_by != "remat":
            why = "by the rule of its gradient"
        parts.append(f"computed again at step {d.step} {why}: {work}")
    elif d.fate == "fused":
        parts.append(f"fused: made and used within step {d.step}, {much} never stored; {work}")
    elif d.fate == "state":
        parts.append(f"the new value of state, {much}, written in its place at step {d.step}")
    elif d.fate == "kept":
        parts.append(
            f"kept from step {d.step} to {d.end}, {much}, for {d.reader or 'the way back'}; "
            f"to compute it again from what its step reads would take {work}"
        )
    else:
        parts.append(f"stored from step {d.step} to {d.end}, {much}; {work}")
    if d.again and d.fate != "fused":
        parts.append(
            f"computed again at step {', '.join(map(str, d.again))}: its {much} are free for "
            f"{d.gap} steps, for {work}"
        )
    elif d.again:
        parts.append(f"computed again at step {', '.join(map(str, d.again))}")
    if d.over:
        parts.append(f"in place of {d.over}, which nothing reads afterwards")
    return "; ".join(parts)


def again_lines(
    found: Sequence[Decision], sizes: Mapping[str, int], total: int, most: int = 10
) -> list[str]:
    """A section for the report: which kinds of values are computed again, what each of them saves
    and costs."""
    groups: dict[tuple[str, str, int], list[Decision]] = {}
    fused = 0
    for d in found:
        if not d.again:
            continue
        if d.fate == "fused" or not d.gap:
            fused += 1
            continue
        size = dims.evaluate(d.bytes, sizes)
        groups.setdefault((d.node.op.name, _alike(d.node.place), size), []).append(d)
    repeats = [d for d in found if d.fate == "again" and d.node.origin.made_by == "remat"]
    if not repeats:
        return []
    work = sum(dims.evaluate(d.operations, sizes) for d in repeats)
    freed = sum(size * len(group) for (_, _, size), group in groups.items())
    lines = [
        "",
        f"computed again: {sum(map(len, groups.values()))} arrays, {bytes_text(freed)} that are "
        f"not held until they are read, for {count_text(work)} operations "
        f"({work / max(1, total):.1%})",
    ]
    ranked = sorted(groups.items(), key=lambda item: -item[0][2] * len(item[1]))
    for (op, place, size), group in ranked[:most]:
        cost = sum(dims.evaluate(d.operations, sizes) for d in group)
        lines.append(
            f"  {len(group)} x {op}  {place}: {bytes_text(size)} each, free for "
            f"{min(d.gap for d in group)} to {max(d.gap for d in group)} steps, "
            f"{count_text(cost)} operations"
        )
    if len(ranked) > most:
        lines.append(f"  and {len(ranked) - most} more kinds")
    if fused:
        lines.append(f"  {fused} more within fused steps")
    return lines


def _alike(place: str) -> str:
    """The place without the numbers of modules."""
    line, at, scope = place.partition(" @ ")
    return line + at + re.sub(r"(?<=\.)\d+(?=\.|$)", "*", scope)


def _text(
    d: Dim, sizes: Mapping[str, int] | None, shown: Callable[[int], str], unit: str
) -> str:
    if isinstance(d, int) or sizes is not None:
        return shown(dims.evaluate(d, sizes or {}))
    return f"{d}{unit}"
