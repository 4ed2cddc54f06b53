"""The recipes of text: what is held out, figures by hand, writing, memory, precision."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.cli.memory import measure
from retrograde.cli.recipes import RECIPES, compiled_step
from retrograde.cli.settings import resolve
from retrograde.runtime.data.bpe import BytePairs
from retrograde.runtime.data.text import Vocabulary, read_text, text_parts
from retrograde.runtime.training import checkpoint as checkpoints
from tests.recipes.small import TEXTS, pairs, settings, writing

EVERY = list(TEXTS)
PROMPT = "f\u00fcr \U0001d6fc, \U0001f600 \u2202"


def _options(name: str, **more: Any) -> list[str]:
    return [part for pair in pairs(name, **more) for part in ("--set", pair)]


def _nats(logits: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
    """The sum of -log softmax at the targets, in float64."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    return -float(np.take_along_axis(x, targets[..., None].astype(np.int64), -1).sum())


@pytest.mark.parametrize("name", EVERY)
def test_it_learns_and_its_figures_are_those_of_the_test_text(
    name: str, run: Callable[..., Any], here: Path
) -> None:
    path = writing(here)
    options = ["--data", path, "--no-progress", *_options(name, learning_rate=0.03)]
    run("train", name, "--steps", 60, *options)
    folder = here / "runs" / f"{name}-1"
    run("evaluate", folder)
    found = json.loads((folder / "evaluation.json").read_text())
    figures, usual = found["figures"], found["baselines"]["by frequency"]
    assert figures["bits a byte"] < usual["bits a byte"]

    tensors, meta = checkpoints.load(folder)
    recipe: Any = RECIPES[name]
    model, vocabulary = recipe.from_checkpoint(tensors, meta["run"])
    text = text_parts(read_text(path)).test
    tokens = vocabulary.encode(text)
    # The GPTs in windows of their context, the other in one window.
    length = min(1024 if name == "char-lstm" else TEXTS[name]["length"], tokens.size - 1)
    total = 0.0
    ends = range(length, tokens.size, length)
    for end in ends:
        window = tokens[None, end - length : end + 1]
        total += _nats(np.asarray(model.eval()(window[:, :-1])), window[:, 1:])
    told = tokens[1 : ends[-1] + 1]
    if isinstance(vocabulary, Vocabulary):
        content = text[1 : ends[-1] + 1].encode()
    else:
        content = vocabulary.decode_bytes(told)
        assert vocabulary.decode_bytes(tokens) == text.encode()
    characters = len(content.decode("utf-8", "ignore"))  # a first one may be cut
    assert len(content) > 1.1 * characters
    assert figures["nats a character"] == pytest.approx(total / characters, rel=2e-3)
    bits = total / np.log(2) / len(content)
    assert figures["bits a byte"] == pytest.approx(bits, rel=1e-5)
    check_going_on(model.eval(), tokens, length, figures)
    assert figures["perplexity"] == pytest.approx(np.exp(total / told.size), rel=1e-4)


def check_going_on(
    model: Any, tokens: npt.NDArray[Any], length: int, figures: dict[str, float]
) -> None:
    """The last tokens of windows, one by one from the whole of what is before."""
    starts = range(0, tokens.size - length, length)
    starts = starts[:: -(-len(starts) // 64)]
    windows = np.stack([tokens[k : k + length + 1] for k in starts])[:, -129:]
    steps = min(16, (windows.shape[1] - 1) // 2)
    truth = windows[:, -steps:]
    taught = np.argmax(np.asarray(model(windows[:, :-1])), -1)[:, -steps:]
    seen = windows[:, :-steps]
    for _ in range(steps):
        likely = np.argmax(np.asarray(model(seen))[:, -1], -1)
        seen = np.concatenate([seen, likely[:, None].astype(seen.dtype)], axis=1)
    assert figures["tokens right, taught"] == pytest.approx(np.mean(taught == truth))
    assert figures["tokens right, on its own"] == pytest.approx(np.mean(seen[:, -steps:] == truth))


def test_byte_pairs_are_kept_in_the_checkpoint_and_write_any_text(
    run: Callable[..., Any], here: Path
) -> None:
    options = _options("bpe-gpt", vocabulary=280)
    path = writing(here)
    run("train", "bpe-gpt", "--data", path, "--steps", 2, "--no-progress", *options)
    _, meta = checkpoints.load(here / "runs" / "bpe-gpt-1")
    kept = BytePairs.from_json(meta["run"]["vocabulary"])
    training = text_parts(read_text(path)).training
    assert kept == BytePairs.train(training, 280 - 256) and len(kept) == 280
    Path(path).unlink()  # the checkpoint is enough to write

    asked = ["generate", "--prompt", PROMPT, "--tokens", 40]
    result = run(*asked)
    assert result.stdout.startswith(PROMPT) and not result.stderr
    assert result.stdout == run(*asked).stdout
    assert len(result.stdout.encode()) > len(PROMPT.encode()) + 40
    assert run(*asked, "--seed", 1).stdout != result.stdout


def test_byte_pairs_begin_with_bytes(run: Callable[..., Any], here: Path) -> None:
    arguments = ["train", "bpe-gpt", "--data", writing(here), "--set", "vocabulary=255"]
    assert "256 bytes" in run(*arguments, code=2).stderr


@pytest.mark.parametrize("name", EVERY)
def test_half_of_the_memory_is_enough_and_the_plan_is_what_is_taken(name: str, here: Path) -> None:
    """With the default settings.  On the NumPy device char-gpt needs 5% more than half."""
    recipe: Any = RECIPES[name]
    backend = "native" if name == "char-gpt" else "numpy"
    given = {"data": writing(here), "backend": backend}
    values = resolve(recipe.settings, name, given, [], environment={})
    training = recipe.build(values)
    vocab = {"bpe-gpt": 1024}.get(name, 100)  # of the full data
    training = replace(training, model=recipe.make_model(values, vocab))
    batches: Any = training.batches
    batch = batches.at(0)
    whole = compiled_step(training, values)
    half = compiled_step(training, values, str(whole.peak_bytes // 2))
    assert half.peak_bytes <= whole.peak_bytes // 2
    found = measure(half, batch)
    assert found.arena == found.planned
    loss = float(whole(**batch)["loss"])
    assert float(half(**batch)["loss"]) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("name", ["char-gpt", "char-lstm"])
def test_half_precision_reaches_the_loss_of_the_whole(name: str) -> None:
    """In short; docs/training.md has the full runs."""
    own = {"heads": 2, "layers": 2} if name == "char-gpt" else {}
    more = {"width": 24, "length": 24, "batch": 8, "dropout": 0.0, "warmup": 30, **own}
    reached = {}
    for precision in (None, "bf16", "f16"):
        values = settings(
            name, data=argparse.__file__, steps=90, learning_rate=0.004, precision=precision, **more
        )
        training = RECIPES[name].build(values)
        step = compiled_step(training, values)
        batches, validate = cast("Any", training.batches), cast("Any", training.validate)
        before = validate(step.model)["loss"]
        for k in range(90):
            step(**batches.at(k))
        reached[precision] = validate(step.model)["loss"]
        assert reached[precision] < 0.75 * before
    for precision in ("bf16", "f16"):
        assert reached[precision] == pytest.approx(reached[None], rel=0.01)
        assert reached[precision] != reached[None]
