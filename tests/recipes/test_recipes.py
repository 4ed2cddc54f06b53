"""Every recipe of a task, in short: it learns, is evaluated beside its baselines, and answers."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.cli.memory import measure
from retrograde.cli.recipes import RECIPES, compiled_step
from retrograde.cli.settings import resolve
from tests.cli.budgets import check_random_budgets
from tests.recipes.small import TINY, pairs, settings

EVERY = list(TINY)
STEPS = 40
# The sizes of the full data, which the small ones do not have.
SIZES = {
    "japanese-vowels": {"T": 29},
    "python-tags": {"T": 64},
    "brown-tags": {"T": 64},
    "cmudict": {"S": 16, "T": 17},
    "bible": {"S": 64, "T": 64},
}


def _options(name: str, **more: Any) -> list[str]:
    return [part for pair in pairs(name, **more) for part in ("--set", pair)]


def trained(name: str, run: Callable[..., Any], here: Path, kept: Path) -> Path:
    """The folder of a run of the recipe, of which nothing is asked but that it is there."""
    folder = here / "runs" / f"{name}-1"
    if not (kept / name).exists():
        run("train", name, "--no-progress", "--steps", 1, *_options(name))
        shutil.copytree(folder, kept / name)
    elif not folder.exists():
        shutil.copytree(kept / name, folder)
    return folder


@pytest.mark.parametrize("name", EVERY)
def test_it_learns_is_evaluated_and_answers(
    name: str, run: Callable[..., Any], here: Path, kept: Path
) -> None:
    shown = run("train", name, "--no-progress", "--steps", STEPS, *_options(name)).output
    assert "planned peak" in shown and "validation loss" in shown
    folder = here / "runs" / f"{name}-1"
    shutil.copytree(folder, kept / name, dirs_exist_ok=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if "loss" in r]
    assert len(losses) == STEPS
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    ElementTree.parse(folder / "curves.svg")

    shown = run("evaluate", folder).output
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["recipe"] == name and found["baselines"]
    every = [found["figures"], *found["baselines"].values()]
    assert all(np.isfinite(list(figures.values())).all() for figures in every)
    for figure in found["figures"]:
        assert figure in shown
    for picture in set(folder.glob("*.svg")) - {folder / "curves.svg"}:
        ElementTree.parse(picture)

    inputs = TINY[name][1]
    answers = run("predict", folder, *inputs).output
    assert len(answers.splitlines()) >= len(inputs)
    assert answers == run("predict", "-", *inputs).output  # the latest run


@pytest.mark.parametrize("name", EVERY)
def test_random_budgets(name: str) -> None:
    training = RECIPES[name].build(settings(name))
    assert check_random_budgets(training, [next(training.batches)] * 2, "numpy", len(name)) > 1


@pytest.mark.parametrize("name", EVERY)
def test_half_of_the_memory_is_enough_and_the_plan_is_what_is_taken(name: str) -> None:
    recipe = RECIPES[name]
    values = resolve(recipe.settings, name, {}, [], environment={})  # those of the full run
    training = recipe.build(values)
    batches: Any = training.batches
    batch = batches.at(0)
    whole = compiled_step(training, values, at=SIZES.get(name))
    half = compiled_step(training, values, str(whole.peak_bytes // 2), SIZES.get(name))
    assert half.peak_bytes <= whole.peak_bytes // 2
    for step in (whole, half):
        found = measure(step, batch)
        assert found.arena == found.planned
    one, other = whole(**batch), half(**batch)
    assert one == other


@pytest.mark.parametrize("name", EVERY)
def test_a_checkpoint_of_another_kind_is_refused(
    name: str, run: Callable[..., Any], here: Path, kept: Path
) -> None:
    folder = trained(name, run, here, kept)
    refused = run("generate", folder, code=2).stderr
    assert "can generate text" in refused and f"retrograde predict {folder} INPUT" in refused
    path = folder / "checkpoint.json"
    noted = json.loads(path.read_text())
    noted["meta"]["run"]["settings"]["width"] = 16
    path.write_text(json.dumps(noted))
    assert "checkpoint" in run("evaluate", folder, code=2).stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("japanese-vowels", "test:99", "there are 15 recordings"),
        ("japanese-vowels", "nowhere.npy", "neither a file"),
        ("python-tags", "a = 1\nb = 2", "2 lines"),
        ("brown-tags", "  ", "no word"),
        ("weather", "LAX 2013-11-10T06", "EWR"),
        ("weather", "JFK 2014-11-10T06", "do not reach"),
        ("cartpole", "far", "a number"),
        ("cmudict", " ", "no letter"),
        ("bible", " ", "no word"),
    ],
)
def test_what_is_no_input_is_refused(
    name: str, text: str, said: str, run: Callable[..., Any], here: Path, kept: Path
) -> None:
    trained(name, run, here, kept)
    assert said in run("predict", "-", text, code=2).stderr
