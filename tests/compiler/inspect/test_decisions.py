"""What is told of values: kept, computed again, fused, in place, and what that saves and costs."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.inspect.decisions import decisions
from retrograde.compiler.inspect.kinds import KINDS, bars
from retrograde.compiler.ir import dims

AT = {"B": 3, "T": 32}


@cache
def step(budget: str | None = None) -> Any:
    model = rg.models.GPT(vocab=17, width=24, layers=2, heads=2, context=32)

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    ids = rg.spec("i32", "B", "T")
    return rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), {"tokens": ids, "targets": ids}, at=AT,
        backend="native", budget=budget,
    )  # fmt: skip


@cache
def tight() -> Any:
    with pytest.raises(rg.errors.BudgetError) as refused:
        step("1B")
    return step(f"{refused.value.minimum_bytes}B")


def made(c: Any) -> Any:
    return c._runnable().recipes[c._program.choose(AT).index]


def test_what_is_kept_is_in_memory_until_the_way_back_reads_it() -> None:
    free = made(step())
    found = decisions(free.planned, free.stages["order"])
    kept = [d for d in found if d.fate == "kept"]
    assert kept and all(d.end > d.step and "at step" in d.reader for d in kept)
    # The text says the same, with the bytes of the value and what it would cost.
    d = next(d for d in kept if d.node.scope == "blocks.1.qkv")
    text = step().explain("blocks.1.qkv")
    assert f"kept from step {d.step} to {d.end}" in text
    assert "B=3, T=32" in text and "(keep everything)" in text
    much = dims.evaluate(d.bytes, AT)
    assert f"{much / 1024:.2f} KiB, for {d.reader}; to compute it again from" in text


def test_under_a_budget_it_is_computed_again_and_its_bytes_are_free() -> None:
    c, chosen = tight(), made(tight())
    found = decisions(chosen.planned, chosen.stages["order"])
    dropped = [d for d in found if d.again and d.gap and d.fate == "stored"]
    assert dropped
    live = bars(chosen.recipe, chosen.planned, dict(c.plan(**AT).sizes))
    for d in dropped:
        # Nothing of it lies in the arena between its last reader and the run that repeats it.
        repeats = [o for o in found if o.fate == "again" and o.step in d.again]
        assert any(o.node.origin.ancestors[0] == d.node.id for o in repeats)
        assert d.again[0] > d.end
    assert {bar.kind for bar in live} <= set(KINDS) and any(b.kind == "recomputed" for b in live)
    text = c.explain("dot_general")
    assert "computed again at step" in text and "are free for" in text
    report = c.report(**AT)
    line = re.search(r"computed again: (\d+) arrays, ([\d.]+ \w+) that are not held", report)
    assert line is not None and int(line[1]) == len(dropped)
    total = sum(dims.evaluate(d.bytes, AT) for d in dropped)
    assert line[2].startswith(f"{total / 1024:.2f}") or line[2].endswith("MiB")
    assert c.plan(**AT).recipe in report
    assert "computed again" not in step().report(**AT) or step().plan(**AT).recipe in report


def test_fused_and_in_place() -> None:
    def f(x: Any, w: Any) -> Any:
        y = x @ w
        return rnp.exp(rnp.sin(y) + 1.0)

    c = rg.compile(f, rg.spec("f32", "B", 6), rg.spec("f32", 6, 5), backend="numpy")
    text = c.explain("sin")
    assert "fused: made and used within step" in text and "20*B bytes never stored" in text
    assert "5*B operations" in text or "B operations" in text
    text = c.explain("exp", B=7)
    assert "in place of dot_general test_decisions.py:" in text and "140 B" in text
    one = next(d for d in decisions(made_one(c).planned, made_one(c).stages["order"]) if d.over)
    assert one.node.op.name == "exp"


def made_one(c: Any) -> Any:
    return c._runnable().recipes[0]


def test_state_is_written_in_place() -> None:
    text = step().explain("blocks.0.mlp_up.weight")
    assert "memory: state, always there" in text and "used by" in text
    new = [d for d in decisions(made(step()).planned, made(step()).stages["order"]) if d.over]
    assert any(d.over == "blocks.0.mlp_up.weight" for d in new)


def test_unknown_names_give_the_nearest() -> None:
    for wrong, right in (
        ("blocks.1.mlpup", "blocks.1.mlp_up"), ("dotgeneral", "dot_general"),
        ("tokns", "tokens"), ("gpt.py:3", "gpt.py:"),
    ):  # fmt: skip
        with pytest.raises(rg.errors.UnsupportedError, match=r"test_decisions\.py") as refused:
            step().explain(wrong)
        assert right in str(refused.value).partition("the nearest are")[2]


def test_every_module_line_and_op_of_the_schedule_can_be_asked_for() -> None:
    c = step()
    graph = c.ir("order")
    for node in graph.nodes:
        for name in (node.scope, str(node.loc) if node.loc else "", node.op.name):
            if name and name != "fused":
                assert c.explain(name)
