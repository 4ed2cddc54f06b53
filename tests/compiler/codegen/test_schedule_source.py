"""The printed schedule: what Python makes of it costs time in proportion to its length."""

from __future__ import annotations

import dis
from typing import Any

import retrograde as rg
import retrograde.numpy as rnp


def chain(x: Any, w: Any) -> Any:
    for i in range(12):
        x = rnp.tanh(x @ w[i]) + x
    return x


def test_the_first_block_of_bind_ends_before_the_views() -> None:
    """CPython shifts the whole first block for each variable that `run` reads: 3 s of a large
    model's compilation where that block holds all views."""
    source = rg.compile(chain, rg.spec("f32", "B", 5), rg.spec("f32", 12, 5, 5)).source()
    module = compile(source, "source", "exec")
    bind = next(c for c in module.co_consts if getattr(c, "co_name", "") == "bind")
    steps = [step.opname for step in dis.get_instructions(bind)]
    assert "MAKE_CELL" in steps
    first_jump = next(i for i, name in enumerate(steps) if "JUMP" in name)
    first_view = next(i for i, name in enumerate(steps) if name == "STORE_DEREF" and i > first_jump)
    assert first_jump < first_view
    assert "STORE_DEREF" not in steps[:first_jump]
