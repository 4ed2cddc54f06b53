"""Runs of every recipe that are interrupted anywhere end as the one that is not, bit for bit.

The loop is interrupted in the midst of steps drawn at random: by a signal, after which it saves, or
at once, after which it goes on from the last regular save.  What goes on has nothing of what was:
a step of another state, batches made anew, and at last a step that is compiled anew.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.cli.recipe import Training
from retrograde.cli.recipes import RECIPES, compiled_step
from retrograde.cli.settings import resolve
from retrograde.cli.user_file import UserFile
from retrograde.runtime.training import checkpoint as checkpoints
from retrograde.runtime.training.loop import train
from retrograde.runtime.training.watch import Watch
from tests.recipes.smallest import TEXT, TEXT_FILE, anything

STEPS, POINTS = 16, 6
FILE = "sampled.py"  # a file of the user's
# What each run has beside dropout, shuffled batches and averaged weights.
WITH: dict[str, dict[str, Any]] = {
    "char-gpt": {"precision": "f16", "accumulate": 2},
    "char-lstm": {"accumulate": 2, "cell": "gru"},
    "weather": {"accumulate": 4, "batch": 8},
    "python-tags": {"precision": "bf16"},
    "japanese-vowels": {"patience": 2, "learning_rate": 1.0, "clip_norm": "none"},
    "cmudict": {"precision": "f16"},
}
SAMPLED = """
import numpy as np
import retrograde as rg

specs = {"tokens": rg.spec("i32", "B", "T"), "rate": rg.spec("f32")}


def model(width=8, seed=0):
    return rg.models.RNNLM(vocab=7, width=width, layers=1, dropout=0.1, seed=seed)


def loss(model, tokens, rate):
    given = tokens[:, :-1]
    if model.training:
        given = rg.scheduled_sampling(model, given, rate, passes=2)
    return rg.losses.cross_entropy(model(given), tokens[:, 1:])


def batch(k, rows=4):
    rng = np.random.default_rng(k)
    return {
        "tokens": rng.integers(0, 7, (rows, 6 + k % 3), dtype=np.int32),
        "rate": np.float32(min(0.9, 0.05 * k)),
    }


def validation():
    return [{"tokens": batch(k)["tokens"], "rate": np.float32(0.0)} for k in (900, 901)]


def optimizer(learning_rate=0.05, weight_decay=0.0):
    return rg.optim.AdamW(
        rg.optim.warmup_cosine(learning_rate, 3, 16), weight_decay=weight_decay
    )
"""
EVERY = [*RECIPES, FILE]


class Killed(BaseException):
    """The end of a process, without a word."""


class Cut:
    """A compiled step: in the midst of call number `at` a signal comes, or the end."""

    def __init__(self, step: Any, at: int, kind: int | None) -> None:
        self.step, self.left, self.kind = step, at, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, **batch: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.kind is not None:
            os.kill(os.getpid(), self.kind)
        made = self.step(**batch)
        if self.left == 0 and self.kind is None:
            raise Killed  # what the step has changed is lost with the process
        return made


class Noted:
    """A compiled step that keeps its state before each call."""

    def __init__(self, step: Any) -> None:
        self.step, self.states = step, [step.state()[0]]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, **batch: Any) -> Any:
        made = self.step(**batch)
        self.states.append(self.step.state()[0])
        return made


class Case:
    """A recipe as small as can be, and how it is run."""

    def __init__(self, name: str) -> None:
        recipe: Any = UserFile(Path(FILE)) if name == FILE else RECIPES[name]
        more = {**WITH.get(name, {}), "steps": STEPS, "ema": 0.9, "seed": 5}
        given = anything(name, recipe, **more)
        pairs = [f"{key}={value}" for key, value in given.items()]
        self.recipe = recipe
        self.settings = resolve(recipe.settings, name, {}, pairs, environment={})

    def build(self) -> Training:
        made: Training = self.recipe.build(self.settings)
        return made

    def compiled(self, training: Training) -> Any:
        return compiled_step(training, self.settings)

    def go(
        self, step: Any, training: Training, folder: Path, resume: bool, batches: Any = None
    ) -> Any:
        """Trains to the end, or until something comes in between."""
        validate = training.validate
        assert validate is not None
        return train(
            step, batches or training.batches, steps=STEPS, checkpoint=folder, resume=resume,
            metrics_path=folder / "metrics.jsonl", validate=lambda: validate(step.averaged),
            validate_every=2, save_every=3, keep_best=True, progress=False,
            watch=Watch(training.watch, training.highest, self.settings["patience"]),
        )  # fmt: skip


def same(one: Any, other: Any, where: object) -> None:
    """Tensors by name, bit for bit."""
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.dtype == other[name].dtype and x.tobytes() == other[name].tobytes(), (where, name)


def told(folder: Path) -> tuple[Any, Any]:
    """What a run says of itself, but for how fast it was."""
    _, meta = checkpoints.load(folder)
    del meta["training"]["metrics_position"]
    lines = (folder / "metrics.jsonl").read_text().splitlines() if folder.name != "best" else []
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["tokens_per_second"]
        if "loss" not in record:
            del record["peak_bytes"]  # of the last step in this process
    return meta, records


def first_state(step: Any) -> Any:
    """The state before the first step; where the loss is scaled, so high that some overflow."""
    tensors, meta = step.state()
    scale = "optimizer.loss_scale.scale"
    if scale in tensors:
        tensors[scale] = np.full_like(tensors[scale], 2.0**24)
        step.set_state(tensors, meta)
    return tensors


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_is_interrupted_anywhere_ends_the_same(name: str, here: Path) -> None:
    (here / TEXT_FILE).write_text(TEXT)
    (here / FILE).write_text(SAMPLED)
    case = Case(name)
    training = case.build()
    step = case.compiled(training)
    first = first_state(step)
    noted = Noted(step)
    whole = case.go(noted, training, here / "whole", False)
    assert not np.array_equal(*(np.concatenate([x.ravel() for n, x in noted.states[k].items()
                                if n.startswith("model.")]) for k in (0, -1)))  # fmt: skip
    if case.settings["patience"]:
        assert whole.stopped == "stale" and 2 < whole.step < STEPS
    if case.settings["precision"] == "f16":
        scales = {float(state["optimizer.loss_scale.scale"]) for state in noted.states}
        assert len(scales) > 2  # some steps were skipped

    points = random.Random(name).sample(range(1, whole.step), min(POINTS, whole.step - 1))
    for k, cuts in enumerate((sorted(points[::2]), sorted(points[1::2]))):
        folder = here / f"cut-{k}"
        interrupted(case, step, training, first, noted.states, folder, cuts, k)
        # The last part is a step of its own, as in another process.
        if k:
            anew = case.build()
            result = case.go(case.compiled(anew), training, folder, True, anew.batches)
        else:
            scrambled(step, first)
            result = case.go(step, training, folder, True, case.build().batches)
        assert (result.step, result.stopped) == (whole.step, whole.stopped)
        for part in (".", "best"):
            same(checkpoints.load(folder / part)[0], checkpoints.load(here / "whole" / part)[0],
                 (cuts, part))  # fmt: skip
            assert told((folder / part).resolve()) == told((here / "whole" / part).resolve())


def interrupted(
    case: Case, step: Any, training: Training, first: Any, states: Sequence[Any], folder: Path,
    cuts: Sequence[int], k: int,
) -> None:  # fmt: skip
    """One run, cut at each of the steps; what it saved is what the whole run was there."""
    done = 0
    for number, cut in enumerate(cuts):
        if number == 0:
            step.set_state(first, {})
        else:
            scrambled(step, first)
        batches = case.build().batches
        kind = (signal.SIGINT, signal.SIGTERM, None)[(number + k) % 3]
        if kind is None:
            with pytest.raises(Killed):
                case.go(Cut(step, cut - done, kind), training, folder, number > 0, batches)
            done = max(done, (cut - 1) // 3 * 3)  # the last regular save
        else:
            result = case.go(Cut(step, cut - done, kind), training, folder, number > 0, batches)
            assert result.stopped == "interrupted" and result.step == cut
            done = cut
        saved, meta = checkpoints.load(folder)
        same(saved, states[done], (cuts, cut))
        assert meta["training"]["step"] == done
        assert meta["training"]["data"]["position"] == done


def scrambled(step: Any, state: Any) -> None:
    """Leaves another state in the step: what goes on must come from the checkpoint alone."""
    step.set_state({name: np.ones_like(x) for name, x in state.items()}, {})


def test_so_many_points_are_tried() -> None:
    # One recipe may end early, when nothing becomes better.
    assert (len(EVERY) - 1) * POINTS + 2 >= 50
