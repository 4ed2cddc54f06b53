"""Sizes and a budget -> value and gradient of a recurrent model under it, as a contender.

The cell is one that a user would write; the loss is that of the last state, or of all states.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.measure import Contender


@dataclass(frozen=True)
class LoopProblem:
    """An LSTM over real-valued frames, whose inputs are not differentiated."""

    width: int = 256
    batch: int = 32
    length: int = 1000
    every_state: bool = False
    seed: int = 0

    def tiny(self) -> LoopProblem:
        """The same program with next to no data."""
        return replace(self, width=4, batch=2, length=3)

    @property
    def sizes(self) -> dict[str, int]:
        return {"B": self.batch, "T": self.length}

    def arrays(self) -> tuple[dict[str, Any], Any, Any]:
        """(weights, inputs [T, B, width], targets [T or 1, B, width])."""
        rng = np.random.default_rng(self.seed)
        d = self.width
        w = {
            "x": rng.standard_normal((d, 4 * d), np.float32) / np.sqrt(d, dtype=np.float32),
            "h": rng.standard_normal((d, 4 * d), np.float32) / np.sqrt(d, dtype=np.float32),
            "b": np.zeros(4 * d, np.float32),
        }
        x = rng.standard_normal((self.length, self.batch, d), np.float32)
        steps = self.length if self.every_state else 1
        return w, x, rng.standard_normal((steps, self.batch, d), np.float32)

    def __str__(self) -> str:
        of = "every state" if self.every_state else "the last state"
        return f"LSTM T{self.length} B{self.batch} d{self.width}, loss of {of}"


def program(problem: LoopProblem, budget: int | None, threads: int | None = None) -> Any:
    """The compiled value and gradient by the weights."""
    import retrograde as rg
    import retrograde.numpy as rnp

    def cell(w: Any, carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    def loss(w: Any, x: Any, targets: Any) -> Any:
        zero = rnp.zeros((x.shape[1], problem.width))
        (h, _), hs = rg.scan(lambda carry, x: cell(w, carry, x), (zero, zero), x)
        return rnp.mean(((hs if problem.every_state else h) - targets) ** 2)

    d = problem.width
    weights = {"x": rg.spec("f32", d, 4 * d), "h": rg.spec("f32", d, 4 * d),
               "b": rg.spec("f32", 4 * d)}  # fmt: skip
    steps = "T" if problem.every_state else 1
    return rg.compile(
        rg.value_and_grad(loss), weights, rg.spec("f32", "T", "B", d),
        rg.spec("f32", steps, "B", d), at=problem.sizes, budget=budget, threads=threads,
    )  # fmt: skip


def activations(problem: LoopProblem) -> tuple[int, int]:
    """(bytes that go in, bytes on top of them when everything is kept)."""
    plan = program(problem, None).plan(**problem.sizes)
    inputs = sum(b.bytes for b in plan.buffers if b.kind == "input")
    return inputs, plan.peak_bytes - inputs


def contender(problem: LoopProblem, threads: int, *, budget: int | None = None) -> Contender:
    """One call of the program under `budget` bytes; None keeps everything."""
    fits = problem.length > 3  # the tiny problem is not measured, and no budget is its size
    compiled = program(problem, budget if fits else None, threads)
    arrays = problem.arrays()
    plan = compiled.plan(**problem.sizes)

    def step() -> float:
        value, _ = compiled(*arrays)
        return float(value)

    step()
    if not fits:
        _fill_buffers_of_blas()
    return Contender(
        step=step,
        persistent_bytes=sum(x.nbytes for x in (*arrays[0].values(), *arrays[1:])),
        planned_peak_bytes=plan.peak_bytes,
        arena_bytes=compiled._runnable().executable.arena_bytes,
    )


def _fill_buffers_of_blas() -> None:
    """Products as large as those to come: what the library packs into is not the model's."""
    rows = np.ones((32 * 1000, 256), np.float32)
    for a, b in ((rows, np.ones((256, 1024), np.float32)), (rows.T, rows)):
        np.matmul(a, b)
