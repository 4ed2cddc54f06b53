"""A loss, a model and a problem -> their training step on one backend, as a contender."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem, LSTMProblem


def training_contender(
    loss: Callable[..., Any],
    model: Any,
    problem: GPTProblem | LSTMProblem,
    axes: tuple[str, str],
    threads: int,
    backend: str,
) -> Contender:
    """The compiled training step, ready to run; `axes` are the sizes of the ids, in their order."""
    import retrograde as rg

    ids = rg.spec("i32", *axes)
    compiled = rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(problem.learning_rate, betas=(0.9, 0.95), weight_decay=problem.weight_decay),
        batch={"tokens": ids, "targets": ids},
        backend=backend,
        threads=threads,
        clip_norm=problem.clip_norm,
        at={"B": problem.batch, "T": problem.length},
    )
    tokens, targets = problem.tokens_and_targets()

    def step() -> tuple[float, float]:
        metrics = compiled(tokens=tokens, targets=targets)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    plan = compiled.plan(B=problem.batch, T=problem.length)
    return Contender(
        step=step,
        persistent_bytes=problem.persistent_bytes,
        planned_peak_bytes=plan.peak_bytes,
        arena_bytes=plan.arena_bytes,
    )
