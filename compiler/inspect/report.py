"""What became of a graph, in words and numbers: Program and its stages -> text.

Invariant: every number stems from the program itself (its plan, its schedule, the cost of its ops);
of a run come only the counts of rows that its ragged loops ran.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.inspect.decisions import Decision
from retrograde.compiler.inspect.explain import again_lines
from retrograde.compiler.inspect.loops import loop_lines, product_cost
from retrograde.compiler.inspect.numbers import bytes_text, count_text
from retrograde.compiler.inspect.traffic import apart, traffic
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ops.region import graph_cost
from retrograde.compiler.plan.liveness import Liveness, analyse, walk
from retrograde.compiler.plan.lower import lower
from retrograde.compiler.plan.steps import (
    BranchStep,
    ChainStep,
    CopyStep,
    FusedStep,
    LoopStep,
    MatmulStep,
    OpStep,
    PackStep,
    PartStep,
    ReplayStep,
    Schedule,
    Step,
    SweepStep,
    Unchained,
    WhileStep,
)
from retrograde.compiler.program import MemoryPlan, PlacedBuffer, Program, standing

LARGEST = 10  # buffers and groups of copies that are listed


def report(
    program: Program,
    stages: Mapping[str, Graph],
    plan: MemoryPlan | None = None,
    ran: Mapping[int, Sequence[int]] | None = None,
    planned: tuple[Schedule, Liveness] | None = None,
    found: Sequence[Decision] = (),
) -> str:
    """The report of `program`, whose graphs by stage are `stages`, at the sizes of `plan`.

    Without a plan, sizes stay symbols: peaks and work are given in closed form.  `ran` says of each
    ragged loop what the last run ran: rows, rows of all steps, steps run, steps.  `planned` is what
    was planned of the last stage; without it that is lowered here.  `found` are the decisions about
    its values, from which the section on what is computed again is made."""
    if plan is None and not program.symbols:
        plan = program.plan({})
    final = list(stages.values())[-1]
    native = bool(program.recipes[0].kernels)
    schedule, liveness = planned or analyse(
        lower(final, native=native), program.recipes[0].reuse
    )
    sections = [
        _passes(stages),
        _steps(schedule, final, plan),
        _moved(final, plan),
        _chains(schedule),
        loop_lines(final, plan),
        _ragged(schedule, plan, ran or {}),
        _memory(program, plan),
        _again(final, plan, found),
        _buffers(program, plan),
        _in_place(liveness),
        _copies(schedule, plan),
    ]
    title = program.name
    if plan is not None and plan.sizes:
        title += " at " + ", ".join(f"{name}={size}" for name, size in plan.sizes.items())
    return "\n".join([title, *(line for section in sections for line in section)]) + "\n"


def _passes(stages: Mapping[str, Graph]) -> list[str]:
    names = list(stages)
    first, last = stages[names[0]], stages[names[-1]]
    lines = ["", f"nodes: {len(first.nodes)} traced, {len(last.nodes)} scheduled"]
    before = len(first.nodes)
    for name in names[1:]:
        after = len(stages[name].nodes)
        lines.append(f"  {name:<16}{after:>7}  {_change(after - before)}".rstrip())
        before = after
    return lines


def _change(difference: int) -> str:
    return f"{difference:+d}" if difference else ""


# --- what it does


def _steps(schedule: Schedule, graph: Graph, plan: MemoryPlan | None) -> list[str]:
    every = [step for _, step, _ in walk(schedule.steps)]
    kinds = Counter(map(_kind, every))
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = ["", f"steps: {len(every)} ({listed})" if every else "steps: none"]
    total, products = graph_cost(graph), product_cost(graph)
    if plan is None:
        lines.append(f"work: {_short(total)} operations")
        return lines
    sizes = {**plan.sizes, **plan.plan_sizes}
    operations = dims.evaluate(total, sizes)
    share = dims.evaluate(products, sizes) / max(1, operations)
    lines.append(f"work: {count_text(operations)} operations, {share:.0%} in matrix products")
    return lines


def _moved(graph: Graph, plan: MemoryPlan | None) -> list[str]:
    """The bytes that go through memory, fused or not, and why the rest of them does."""
    if plan is None:
        return []
    sizes = {**plan.sizes, **plan.plan_sizes}
    found = traffic(graph).at(sizes)
    assert isinstance(found.unfused, int) and isinstance(found.fused, int)
    saved = 1 - found.fused / max(1, found.unfused)
    lines = [
        f"moved: {bytes_text(found.fused)} read and written, {saved:.0%} less than the "
        f"{bytes_text(found.unfused)} of single ops"
    ]
    rows = apart(graph, sizes)
    if rows:
        lines.append(f"not fused: {sum(row.count for row in rows)} arrays between two steps")
    for row in rows[:LARGEST]:
        maker, reader = row.places
        place = maker if maker == reader else f"{maker} to {reader}"
        line = f"  {row.count} x {row.reason}: {bytes_text(row.bytes)}, the largest at {place}"
        lines.append(line if maker and reader else line.partition(", the largest")[0])
    if len(rows) > LARGEST:
        lines.append(f"  and {len(rows) - LARGEST} more reasons")
    return lines


def _chains(schedule: Schedule) -> list[str]:
    """Which products run with row kernels on blocks of rows, and why others do not."""
    chains = [step for step in schedule.steps if isinstance(step, ChainStep)]
    links = [link for chain in chains for link in chain.links]
    products = sum(isinstance(link, MatmulStep) for link in links)
    lines = []
    if chains:
        lines.append(
            f"chains: {len(chains)} over blocks of rows, of {products} products and "
            f"{len(links) - products} row kernels"
        )
    reasons: dict[str, list[Unchained]] = {}
    for x in schedule.unchained:
        reasons.setdefault(x.reason, []).append(x)
    if reasons:
        lines.append("products apart from what reads them")
    for reason, found in sorted(reasons.items(), key=lambda row: -len(row[1])):
        place = found[0].product
        lines.append(f"  {len(found)} x {reason}" + (f", such as at {place}" if place else ""))
    return lines


def _kind(step: Step) -> str:
    if isinstance(step, OpStep):
        return step.node.op.name
    names = {
        CopyStep: "copy",
        MatmulStep: "matrix product",
        PackStep: "packing",
        FusedStep: "fused",
        LoopStep: "loop",
        BranchStep: "branch",
        WhileStep: "loop",
        PartStep: "copy of a segment",
        SweepStep: "loop in segments",
        ReplayStep: "loop in segments",
        ChainStep: "chain",
    }
    return names[type(step)]


def _ragged(
    schedule: Schedule, plan: MemoryPlan | None, ran: Mapping[int, Sequence[int]]
) -> list[str]:
    """The loops over batches of unequal lengths, and what the last run left out of them."""
    loops = [s for _, s, _ in walk(schedule.steps) if isinstance(s, LoopStep) and s.mask]
    if not loops:
        return []
    lines = ["", f"ragged loops: {len(loops)}"]
    avoided = everything = 0.0
    for number, loop in enumerate(loops):
        assert loop.mask is not None
        batch, cost = loop.mask.shape[1], graph_cost(loop.node.attrs["body"])
        what = "live rows" if loop.rows is not None else "steps with a live row, on all rows"
        each = _per_row(cost, batch, plan)
        much = f"{_short(cost)} a step"
        if each is not None:
            much = f"{count_text(round(each))} a row and step"
        role = "" if loop.node.origin.role == "primal" else f" ({loop.node.origin.role})"
        lines.append(f"  {loop.node.place}{role}: runs {what}, {much}")
        if number not in ran:
            continue
        rows, every, turns, steps = ran[number]
        saved = (every - rows) * (each or 0.0)
        left = "" if each is None else f", {count_text(round(saved))} operations avoided"
        lines.append(f"    last run: {rows} of {every} rows in {turns} of {steps} steps{left}")
        avoided += saved
        everything += every * (each or 0)
    if everything:
        share = f"{avoided / 1e9:.3g} of {everything / 1e9:.3g} GFLOP, {avoided / everything:.0%}"
        lines.append(f"  the last run avoided {share}")
    return lines


def _per_row(cost: Dim, batch: Dim, plan: MemoryPlan | None) -> float | None:
    """The operations of one row in one step; None where that takes sizes that are not given."""
    exact = dims.divide_exact(cost, batch)
    if isinstance(exact, int):
        return exact
    if plan is None:
        return None
    return dims.evaluate(cost, plan.sizes) / max(1, dims.evaluate(batch, plan.sizes))


# --- memory


def _memory(program: Program, plan: MemoryPlan | None) -> list[str]:
    lines = ["", "memory"]
    try:
        form = str(program.peak())
    except ShapeError as error:  # a comparison of two terms that cannot be decided
        form = f"no closed form: {error}"
    if plan is None:
        return [*lines, f"  planned peak       {form} bytes"]
    placed = _standing(plan.peak_bytes, plan.lower_bound_bytes, "for this order")
    best = _standing(plan.peak_bytes, plan.order_lower_bound_bytes, "over all orders")
    _, needs = program.order_bound(plan.sizes)
    inputs = sum(b.bytes for b in plan.buffers if b.kind == "input")
    lines += [
        f"  planned peak       {bytes_text(plan.peak_bytes)}",
        f"    state            {bytes_text(plan.state_bytes)}",
        f"    the rest         {bytes_text(plan.peak_bytes - plan.state_bytes)}, "
        f"{bytes_text(inputs)} of inputs among it",
        f"  most live at once  {bytes_text(plan.lower_bound_bytes)}, {placed}",
        f"  in any order       {bytes_text(plan.order_lower_bound_bytes)} for {needs}, {best}",
        f"  returned on top    {bytes_text(plan.output_bytes)}",
    ]
    if program.symbols:
        lines.append(f"  in closed form     {_clipped(form)} bytes")
    if program.budget is not None:
        lines.append(f"  budget             {bytes_text(program.budget)}: {plan.recipe}")
    return lines


def _again(graph: Graph, plan: MemoryPlan | None, found: Sequence[Decision]) -> list[str]:
    if plan is None:
        return []
    sizes = {**plan.sizes, **plan.plan_sizes}
    return again_lines(found, sizes, dims.evaluate(graph_cost(graph), sizes))


def _standing(peak: int, bound: int, over: str) -> str:
    found = standing(peak, bound)
    words = {
        "optimal": f"proven optimal {over}",
        "heuristic": "heuristic: less than half of the peak is proven",
    }
    return words.get(found, f"the peak is {found} of it")


def _buffers(program: Program, plan: MemoryPlan | None) -> list[str]:
    """The largest buffers, those alike together, each with the line it is for."""
    if plan is None:
        return []
    found: dict[tuple[str, str, str, int], list[PlacedBuffer]] = {}
    for b in plan.buffers:
        found.setdefault((b.kind, b.name, _alike(b.place), b.bytes), []).append(b)
    if not found:
        return []
    ranked = sorted(found.values(), key=lambda group: -group[0].bytes)
    lines = ["", f"largest of {len(plan.buffers)} buffers"]
    for group in ranked[:LARGEST]:
        first = group[0]
        times = f" x {len(group)}" if len(group) > 1 else ""
        life = "always" if first.kind == "state" else f"steps {first.start} to {first.end - 1}"
        if len(group) > 1 and first.kind != "state":
            life = "at several times"
        place = first.place if len(group) == 1 else _alike(first.place)
        words = "  ".join(filter(None, (first.kind, first.name, place, life)))
        lines.append(f"  {bytes_text(first.bytes):>10}{times}  {words}")
    return lines


def _alike(place: str) -> str:
    """The place without the numbers of modules: `gpt.py:85 @ blocks.*.mlp_up`."""
    line, at, scope = place.partition(" @ ")
    return line + at + re.sub(r"(?<=\.)\d+(?=\.|$)", "*", scope)


def _in_place(liveness: Liveness) -> list[str]:
    """Results that take over the memory of an operand that dies, and state that is replaced."""
    state = [s for s, home in liveness.merged.items() if liveness.home(home).kind == "state"]
    others = len(liveness.merged) - len(state)
    if not liveness.merged:
        return ["", "in place: nothing"]
    lines = ["", f"in place: {len(liveness.merged)} results"]
    if state:
        lines.append(f"  {len(state)} are the new value of state, written where the old one was")
    if others:
        lines.append(f"  {others} take over an operand that nothing reads afterwards")
    return lines


def _copies(schedule: Schedule, plan: MemoryPlan | None) -> list[str]:
    groups: dict[tuple[str, str], list[Dim]] = {}
    for step in _copies_in(schedule.steps):
        place = step.node.place if step.node else ""
        size = dims.product(step.result.shape) * step.result.dtype.bytes
        groups.setdefault((step.why, place), []).append(size)
    if not groups:
        return ["copies: none"]
    count = sum(map(len, groups.values()))
    lines = [f"copies: {count}"]
    known = {**plan.sizes, **plan.plan_sizes} if plan else {}
    weighed = [
        (sum((dims.evaluate(d, known) for d in sizes), 0), why, place, sizes)
        for (why, place), sizes in groups.items()
    ]
    for total, why, place, sizes in sorted(weighed, key=lambda row: -row[0])[:LARGEST]:
        much = bytes_text(total) if plan else _short(sum(sizes, 0)) + " bytes"
        lines.append(f"  {len(sizes)} x {why}: {much}  {place}".rstrip())
    if len(weighed) > LARGEST:
        lines.append(f"  and {len(weighed) - LARGEST} more places")
    return lines


def _copies_in(steps: Sequence[Step]) -> Iterator[CopyStep]:
    return (step for _, step, _ in walk(steps) if isinstance(step, CopyStep))


# --- numbers for people


def _short(d: Dim) -> str:
    return _clipped(str(d))


def _clipped(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
