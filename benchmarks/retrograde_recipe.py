"""A recipe -> its compiled training step on its own batches, as a contender."""

from __future__ import annotations

import time
from dataclasses import replace

from benchmarks.contender import Contender
from benchmarks.recipe_problem import RecipeProblem


def contender(problem: RecipeProblem, threads: int, *, backend: str = "native") -> Contender:
    """A pass of the training over the problem's batches, ready to run.

    What is compared is the pass without dropout, whose masks every library draws in its own way."""
    from retrograde.cli.recipes import compiled_step

    if backend == "native":
        from retrograde.runtime.native.toolchain import find_toolchain

        find_toolchain()  # looked for once a machine
    training, settings = problem.built(backend, threads)
    start = time.perf_counter()
    compiled = compiled_step(training, settings)
    seconds = time.perf_counter() - start
    batches = problem.arrays.batches
    first: list[float] = []

    def step() -> None:
        for batch in batches:
            metrics = compiled(**batch)
            if len(first) < 2 * len(batches):
                first.extend((float(metrics["loss"]), float(metrics["grad_norm"])))

    def numbers() -> list[float]:
        if not problem.dropout:
            return first
        other = compiled_step(replace(training, model=training.model.eval()), settings)
        every = (other(**batch) for batch in batches)
        return [float(found[name]) for found in every for name in ("loss", "grad_norm")]

    plan = compiled.plan(**training.at)
    return Contender(
        step=step,
        persistent_bytes=problem.persistent_bytes,
        planned_peak_bytes=plan.peak_bytes,
        arena_bytes=plan.arena_bytes,
        compile_seconds=seconds,
        numbers=numbers,
    )
