"""`retrograde plan` under a budget: the frontier, the table, what is largest, the arena drawn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import retrograde as rg
from retrograde.cli import explanation, recipes

SMALL = ["--set", "layers=2", "--set", "width=32", "--set", "length=64", "--set", "heads=2",
         "--set", "backend=native"]  # fmt: skip
AT = {"B": 8, "T": 64}


def step_of(text: Path, budget: str | None = None) -> Any:
    found = recipes.find("char-gpt")
    pairs = tuple(pair for pair in SMALL if pair != "--set")
    settings = recipes.settled(found, {"data": str(text)}, pairs, None)
    return recipes.compiled_step(found.build(settings), settings, budget, AT)


def test_a_budget_shows_what_it_trades(run: Any, text: Path, here: Path) -> None:
    with pytest.raises(rg.errors.BudgetError) as refused:
        step_of(text, "1B")
    least = refused.value.minimum_bytes or 0
    budget = f"{least * 5 // 4}B"
    step = step_of(text, budget)
    base = ["plan", "char-gpt", "--data", text, *SMALL, "--budget", budget, "--at", "B=8,T=64"]
    out = run(*base, "-B", "4,8,32", "-T", "32,64", "-o", "arena.svg").output
    assert f"budget {budget} at B=8, T=64" in out

    # The frontier: less and less memory for more and more work, down to the smallest peak.
    rows = re.findall(r"^ +([\d.]+) MiB +([\d.]+)  keep", out, re.MULTILINE)
    peaks, work = [float(p) for p, _ in rows], [float(w) for _, w in rows]
    assert len(rows) > 2 and work[0] == 1.0
    assert peaks == sorted(peaks, reverse=True) and work == sorted(work)
    assert abs(peaks[-1] - least / 2**20) < 0.06
    assert out.count("<- within the budget") == 1
    bound = step.plan(**AT).order_lower_bound_bytes
    assert f"needs less than {bound / 2**20:.1f} MiB" in out

    # The table: the peaks of the plans and their recipes, by letter.
    table = re.findall(r"^B=(\d+) +(\(?[\d.]+ MiB\)?(?: \w)?) +(\(?[\d.]+ MiB\)?(?: \w)?)$", out,
                       re.MULTILINE)  # fmt: skip
    assert [int(row[0]) for row in table] == [4, 8, 32]
    letters = dict(re.findall(r"^  (\w): (.+)$", out, re.MULTILINE))
    for b, *cells in table[:2]:
        for t, cell in zip((32, 64), cells, strict=True):
            plan = step.plan(B=int(b), T=t)
            assert cell.startswith(f"{plan.peak_bytes / 2**20:.1f} MiB")
            assert letters[cell[-1]] == plan.recipe
    assert table[2][2].startswith("(") and "in brackets" in out

    # What is largest.
    longest = {int(b): int(t) for b, t in re.findall(r"^  B=(\d+): (\d+)", out, re.MULTILINE)}
    assert longest[4] == 64
    assert longest[32] == step.largest("T", budget, B=32) < 64

    assert "arena.svg" in out
    check_picture(here / "arena.svg", step, AT)


def check_picture(path: Path, step: Any, sizes: dict[str, int]) -> None:
    """The rectangles are the buffers of the plan, to scale."""
    root = ElementTree.parse(path).getroot()
    space = "{http://www.w3.org/2000/svg}"
    drawn = [
        (r.find(f"{space}title"), r) for r in root.iter(f"{space}rect") if r.get("class") == "bar"
    ]
    plan = step.plan(**sizes)
    top = max(float(r.get("y")) + float(r.get("height")) for _, r in drawn)
    scale = max(plan.peak_bytes, step._program.budget)
    found = set()
    for title, r in drawn:
        assert title is not None and title.text is not None
        bytes, offset = map(int, re.findall(r"(\d+) bytes at (\d+)", title.text)[0])
        found.add((bytes, offset))
        low, high = float(r.get("y")), float(r.get("height"))
        assert high == pytest.approx(560 * bytes / scale, abs=0.02)
        assert top - low - high == pytest.approx(560 * offset / scale, abs=0.02)
    assert {(b.bytes, b.offset) for b in plan.buffers if b.bytes} == found
    text = path.read_text()
    for word in ("saved for backward", "gradient", "state", "recomputed", ">peak ", ">budget "):
        assert word in text
    assert re.search(r"gpt\.py:\d+ @ blocks\.1", text)


def test_what_cannot_be_planned_is_refused(run: Any, text: Path) -> None:
    base = ["plan", "char-gpt", "--data", text, *SMALL]
    err = run(*base, "--budget", "10KiB", code=2).stderr
    assert "smallest peak that can be scheduled" in err and "no order of its steps" in err
    assert "no number of bytes" in run(*base, "--budget", "many", code=2).stderr
    assert "--at NAME=N" in run(*base, "--budget", "1GiB", "--at", "B", code=2).stderr
    assert "use .svg" in run(*base, "-o", "arena.png", code=2).stderr


def test_a_long_frontier_is_thinned_out_but_for_its_ends() -> None:
    class Way:
        def __init__(self, height: int) -> None:
            self.height = height

    ways: Any = [Way(h) for h in range(1000, 100, -3)]
    shown = explanation._apart(ways, 502)
    assert shown[0] is ways[0] and shown[-1] is ways[-1] and len(shown) < 20
    assert any(way.height == 502 for way in shown) == any(way.height == 502 for way in ways)
