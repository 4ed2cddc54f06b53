"""Every recipe of the command line under random budgets: what is planned is what is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
from retrograde.cli.char_text import CharText
from retrograde.cli.recipe import Training
from retrograde.cli.recipes import RECIPES
from retrograde.runtime.executable import Executable

TEXT = "".join(f"line {i}: {'abcdefg'[i % 7:]} of {i * i}\n" for i in range(400))
SMALL = {"length": 40, "batch": 3, "width": 24, "validation_batches": 1, "steps": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("char-gpt", {"layers": 3, "heads": 2}),
    "gpt tied, dropout": ("char-gpt", {"layers": 2, "heads": 2, "tied": True, "dropout": 0.2}),
    "lstm": ("char-lstm", {}),
    "gru": ("char-lstm", {"cell": "gru", "layers": 2}),
    "rnn tied": ("char-lstm", {"cell": "rnn", "tied": True}),
    "byte pairs": ("bpe-gpt", {"layers": 2, "heads": 2, "vocabulary": 280}),
}
# Those of text; the others are in tests/recipes.
TEXTS = sorted(name for name, recipe in RECIPES.items() if isinstance(recipe, CharText))
CASES |= {name: (name, {}) for name in TEXTS if name not in {of for of, _ in CASES.values()}}
NATIVE = ("gpt", "lstm")  # for whose kernels the C compiler takes seconds


def built(case: str, folder: Path) -> Training:
    name, own = CASES[case]
    recipe = RECIPES[name]
    path = folder / "text.txt"
    path.write_text(TEXT)
    defaults = {s.name: s.default for s in recipe.settings}
    return recipe.build({**defaults, **SMALL, **own, "data": str(path)})


def compiled(training: Training, backend: str, budget: int | None = None) -> Any:
    # The BLAS of the NumPy device adds up in other parts on two threads; native code does not.
    return rg.compile_training(
        training.loss, training.model, training.optimizer, dict(training.specs), at=training.at,
        clip_norm=training.clip_norm, backend=backend, budget=budget,
        threads=2 if backend == "native" else 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "case,backend",
    [*((case, "numpy") for case in CASES), *((case, "native") for case in NATIVE)],
)
def test_random_budgets(case: str, backend: str, tmp_path: Path) -> None:
    """20 of them between the least there is and keeping everything: planned is allocated, never
    above the budget; with less of it the peak never rises and the planned cost never falls; every
    step has the bits of the one without a budget."""
    training = built(case, tmp_path)
    sizes = dict(training.at)
    batches = [next(training.batches) for _ in range(2)]
    free = compiled(training, backend)
    start = free._run.executable.state()
    metrics = [free(**batch) for batch in batches]
    expected = free._run.executable.state()
    most = free.plan(**sizes).peak_bytes
    step = compiled(training, backend, most)
    program, device = step._run.executable.program, step._run.executable.device
    ways = program.frontier(sizes)
    least = ways[-1].height
    assert len(ways) > 2 and least < most
    budgets = np.random.default_rng(len(case)).integers(least, most + 1, 20)
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
            found = executable.run([step._key, *step._batch(batch), *step._fixed], sizes)
            assert [float(x) for x in found] == list(wanted.values())
        assert executable.arena_bytes == choice.height
        for got, want in zip(executable.state(), expected, strict=True):
            np.testing.assert_array_equal(got, want)
        runs += 1
    assert runs > 1
