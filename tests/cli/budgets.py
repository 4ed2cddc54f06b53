"""A compiled recipe under random budgets: what is planned is what is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import retrograde as rg
from retrograde.cli.recipe import Training
from retrograde.runtime.executable import Executable


def compiled(training: Training, backend: str, budget: int | None = None) -> Any:
    # The BLAS of the NumPy device adds up in other parts on two threads; native code does not.
    return rg.compile_training(
        training.loss, training.model, training.optimizer, dict(training.specs), at=training.at,
        clip_norm=training.clip_norm, backend=backend, budget=budget,
        threads=2 if backend == "native" else 1,
    )  # fmt: skip


def check_random_budgets(
    training: Training, batches: Sequence[Any], backend: str, seed: int
) -> int:
    """20 of them between the least there is and keeping everything: planned is allocated, never
    above the budget; with less of it the peak never rises and the planned cost never falls; every
    step has the bits of the one without a budget.  How many programs ran on the batches, all of the
    same sizes."""
    free = compiled(training, backend)
    sizes = free._sizes_of(free._batch(batches[0]))
    start = free._run.executable.state()
    metrics = [free(**batch) for batch in batches]
    expected = free._run.executable.state()
    most = free.plan(**sizes).peak_bytes
    step = compiled(training, backend, max(most, free.plan().peak_bytes))
    program, device = step._run.executable.program, step._run.executable.device
    least = program.frontier(sizes)[-1].height
    budgets = np.random.default_rng(seed).integers(least, most + 1, 20)
    before, runs = None, 0
    for budget in sorted({least, most, *budgets.tolist()}):
        limited = replace(program, budget=budget, _chosen={})
        choice = limited.choose(sizes)
        plan = limited.plan(sizes)
        assert plan.peak_bytes == choice.height <= budget
        assert limited.peak()(**sizes) == choice.height
        assert max(b.offset + b.bytes for b in plan.buffers) == choice.height
        if before is not None:
            assert before.height <= choice.height and before.cost >= choice.cost
            if (before.index, before.sizes) == (choice.index, choice.sizes):
                continue
        before = choice
        executable = Executable(limited, device)
        executable.set_state([x.copy() for x in start])
        for batch, wanted in zip(batches, metrics, strict=True):
            given = [step._key, *step._batch(batch), *step._fixed, *step._now()]
            found = executable.run(given, sizes)
            assert [float(x) for x in found] == list(wanted.values())
        assert executable.arena_bytes == choice.height
        for got, want in zip(executable.state(), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        runs += 1
    return runs
