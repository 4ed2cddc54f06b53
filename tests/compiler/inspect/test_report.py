"""The report says what the program, its plan and its schedule say."""

from __future__ import annotations

import re

from retrograde.compiler.inspect.report import report
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.pipeline import CompiledGraph, Options, compile_graph

SIZES = {"B": 11}


def compiled(graph: Graph) -> CompiledGraph:
    return compile_graph(graph, Options(at=SIZES, verify=True))


def test_numbers_are_those_of_the_plan(step: Graph) -> None:
    made = compiled(step)
    plan = made.program.plan(SIZES)
    text = report(made.program, made.stages, plan)
    assert text.startswith("step at B=11\n")
    assert f"{plan.peak_bytes / 1024:.2f} KiB" in text.split("planned peak")[1].splitlines()[0]
    assert f"{plan.state_bytes} B" in text.split("    state")[1].splitlines()[0]
    assert f"{plan.output_bytes} B" in text.split("returned on top")[1].splitlines()[0]
    assert ("proven optimal" in text) == plan.optimal


def test_passes_are_listed_with_their_node_counts(step: Graph) -> None:
    made = compiled(step)
    text = report(made.program, made.stages)
    first, *rest = made.stages
    assert f"nodes: {len(made.stages[first].nodes)} traced" in text
    for name in rest:
        assert re.search(rf"^  {name} +{len(made.stages[name].nodes)}\b", text, re.MULTILINE), name


def test_work_counts_the_products(forward: Graph) -> None:
    made = compiled(forward)
    text = report(made.program, made.stages, made.program.plan(SIZES))
    products = 2 * 11 * (5 * 7 + 7 * 3)
    found = re.search(r"work: ([\d.]+) k operations, (\d+)% in matrix products", text)
    assert found is not None, text
    total = float(found[1]) * 1000
    assert products < total
    assert abs(products / total - int(found[2]) / 100) < 0.01


def test_state_is_updated_in_place_and_copies_have_reasons(step: Graph) -> None:
    made = compiled(step)
    text = report(made.program, made.stages, made.program.plan(SIZES))
    state = re.search(r"(\d+) are the new value of state", text)
    copied = re.search(r"(\d+) x donated state", text)
    assert (int(state[1]) if state else 0) + (int(copied[1]) if copied else 0) == 2


def test_largest_buffers_come_first_with_their_lines(step: Graph) -> None:
    made = compiled(step)
    plan = made.program.plan(SIZES)
    lines = report(made.program, made.stages, plan).split("largest of ")[1].splitlines()
    listed = [
        float(m[1]) * {"B": 1, "KiB": 1024}[m[2]]
        for line in lines
        if (m := re.match(r" +([\d.]+) (B|KiB)\b.*  ", line))
    ]
    assert listed == sorted(listed, reverse=True)
    assert listed[0] == max(b.bytes for b in plan.buffers)
    assert any("conftest.py:" in line and "blocks.0." in line for line in lines)


def test_without_sizes_the_report_is_in_closed_form(step: Graph) -> None:
    made = compiled(step)
    text = report(made.program, made.stages)
    peak = re.search(r"planned peak +(.*) bytes", text)
    assert peak is not None
    assert peak[1] == str(made.program.peak())
    work = re.search(r"work: (.*) operations", text)
    assert work is not None and "*B" in work[1]


def test_every_buffer_in_a_place_of_its_own_shares_only_state(step: Graph) -> None:
    made = compile_graph(step, Options(at=SIZES, reuse=False))
    text = report(made.program, made.stages, made.program.plan(SIZES))
    assert "take over an operand" not in text
