"""Sizes -> the training step of `retrograde.models.GPT` on one backend, as a contender."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem


def contender(problem: GPTProblem, threads: int, *, backend: str = "numpy") -> Contender:
    """The compiled training step of the problem, ready to run."""
    import retrograde as rg

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    model = rg.models.GPT(
        vocab=problem.vocab,
        width=problem.width,
        layers=problem.layers,
        heads=problem.heads,
        context=problem.length,
        seed=problem.seed,
    )
    ids = rg.spec("i32", "B", "T")
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
