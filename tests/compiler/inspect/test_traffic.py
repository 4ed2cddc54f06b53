"""Bytes moved: every array of a step once, what is gathered by its rows, loops by their turns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.inspect.traffic import Traffic, all_refusals, apart, traffic
from retrograde.compiler.passes.group import Group
from tests.compiler.passes.harness import written

SIZES = {"B": 5, "T": 7, "N": 3}
TEXTS = {
    "a chain": (
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = tanh %2
          return %3 }""",
        Traffic(80 + 16 + 80 + 80 + 80, 80 + 16 + 80),
    ),
    "an array read twice, a number, a constant": (
        """(%0: f64[B,4], %1: f64[]) {
          %2: f64[] = constant {dtype=f64, value=3.0}
          %3: f64[B,4] = mul %0, %0
          %4: f64[B,4] = add %3, %1
          %5: f64[B,4] = mul %4, %2
          return %5 }""",
        Traffic(2 * 160 + 2 * 160 + 8 + 2 * 160, 160 + 8 + 160),
    ),
    "what is broadcast lies there once": (
        """(%0: f32[4], %1: f32[B,4]) {
          %2: f32[B,4] = broadcast_to %0 {shape=(dim(B),4)}
          %3: f32[B,4] = add %1, %2
          return %3 }""",
        Traffic(16 + 80 + 80, 16 + 80 + 80),
    ),
    "rows of a table": (
        """(%0: f32[100,4], %1: i32[B]) {
          %2: f32[B,4] = gather %0, %1 {axes=(0,), wrap=False}
          return %2 }""",
        Traffic(20 + 80 + 80, 20 + 80 + 80),
    ),
    "a product": (
        """(%0: f32[B,4], %1: f32[4,3]) {
          %2: f32[B,3] = dot_general %0, %1 {batch=((),()), contract=((1,),(0,))}
          return %2 }""",
        Traffic(80 + 48 + 60, 80 + 48 + 60),
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bytes(name: str) -> None:
    text, wanted = TEXTS[name]
    assert traffic(Group()(written(text))).at(SIZES) == wanted


def test_a_gather_within_a_group_reads_its_rows() -> None:
    graph = Group(native=True)(
        written("""(%0: f32[100,40], %1: i32[B], %2: f32[B,40]) {
          %3: f32[B,40] = gather %0, %1 {axes=(0,), wrap=False}
          %4: f32[B,40] = add %3, %2
          return %4 }""")
    )
    assert len(graph.nodes) == 1
    assert traffic(graph).at(SIZES) == Traffic(20 + 3 * 800 + 2 * 800, 20 + 3 * 800)


def test_a_loop_counts_by_its_turns() -> None:
    def f(h: Any, xs: Any) -> Any:
        return rg.scan(lambda h, x: (rnp.tanh(h + x),) * 2, h, xs)

    compiled = rg.compile(f, rg.spec("f32", 6), rg.spec("f32", "T", 6), backend="numpy")
    one = compiled.traffic(T=1)
    assert (one.fused, one.unfused) == (3 * 24, 5 * 24)
    many = compiled.traffic(T=9)
    assert (many.fused, many.unfused) == (9 * 3 * 24, 9 * 5 * 24)


def test_reasons_are_counted_with_the_largest_first() -> None:
    graph = Group()(
        written("""(%0: f64[B,4], %1: f64[4,3]) {
          %2: f64[B,4] = exp %0
          %3: f64[B,3] = dot_general %2, %1 {batch=((),()), contract=((1,),(0,))}
          %4: f64[B,3] = neg %3
          %5: f64[B,3] = sort %4 {axis=0, descending=False}
          return %5 }""")
    )
    rows = apart(graph, SIZES)
    assert [(row.reason, row.count, row.bytes) for row in rows] == [
        ("read by a matrix product", 1, 160),
        ("made by a matrix product", 1, 120),
        ("read by sort", 1, 120),
    ]
    assert len(list(all_refusals(graph))) == 3


def test_the_report_tells_of_both() -> None:
    def f(x: Any, w: Any) -> Any:
        return rnp.tanh(rnp.exp(x) @ w) * 2

    compiled = rg.compile(f, rg.spec("f32", "B", 8), np.ones((8, 4), np.float32), backend="numpy")
    text, found = compiled.report(B=16), compiled.traffic(B=16)
    assert found.unfused > found.fused > 0
    numbers = [f"{n / 1024:.2f} KiB" for n in (found.fused, found.unfused)]
    assert re.search("moved: {} read and written, .* {} of single ops".format(*numbers), text)
    assert "2 arrays between two steps" in text
    assert re.search(r"1 x read by a matrix product: 512 B, the largest at .*:\d+", text)
