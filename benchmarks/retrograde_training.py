"""A loss, a model and a problem -> their training step on one backend, as a contender."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem, GRUProblem, LSTMProblem, RaggedProblem


def training_contender(
    loss: Callable[..., Any],
    model: Any,
    problem: GPTProblem | LSTMProblem | GRUProblem | RaggedProblem,
    axes: tuple[str, str],
    threads: int,
    backend: str,
    *,
    tables: bool = True,
    budget: int | None = None,
    everything: bool = False,
) -> Contender:
    """The compiled training step, ready to run; `axes` are the sizes of the ids, in their order.

    Without `tables` the products with rows of the embedding table are left as they are written, so
    that a step does the arithmetic that its peers do: the pass that rewrites them
    (compiler/passes/tables.py) is told, in this process, that no table is ever small enough.
    `budget`: the bytes that the step may take; with `everything` what is light is kept as well."""
    import retrograde as rg

    if everything:
        from retrograde.compiler.plan import recomputing

        recomputing.UNNOTICED = -1.0  # of a step's time: nothing costs so little

    if not tables:
        from retrograde.compiler.passes import tables as rewriting

        rewriting.FEWER = sys.maxsize
    if backend == "native":
        from retrograde.runtime.native.toolchain import find_toolchain

        find_toolchain()  # looked for once a machine
    tokens, targets = problem.tokens_and_targets()
    ids = rg.spec("i32", *axes)
    specs, batch = {"tokens": ids, "targets": ids}, {"tokens": tokens, "targets": targets}
    if isinstance(problem, RaggedProblem):
        specs["lengths"], batch["lengths"] = rg.spec("i32", "B"), problem.lengths()
    start = time.perf_counter()
    compiled = rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(problem.learning_rate, betas=(0.9, 0.95), weight_decay=problem.weight_decay),
        batch=specs,
        backend=backend,
        threads=threads,
        clip_norm=problem.clip_norm,
        at={"B": problem.batch, "T": problem.length},
        budget=budget,
    )
    seconds = time.perf_counter() - start

    def step() -> tuple[float, float]:
        metrics = compiled(**batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    plan = compiled.plan(B=problem.batch, T=problem.length)
    return Contender(
        step=step,
        persistent_bytes=problem.persistent_bytes,
        planned_peak_bytes=plan.peak_bytes,
        arena_bytes=plan.arena_bytes,
        compile_seconds=seconds,
    )
