"""The recipe of a recurrent model: trained, resumed, and generating from its carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde import nn
from retrograde.cli import sampling
from retrograde.cli.recipes import RECIPES
from retrograde.cli.sampling import Sampling
from retrograde.models import RNNLM
from retrograde.runtime.training import checkpoint

TINY = ("batch=3", "length=8", "width=8", "validation_batches=2", "warmup=2")
OPTIONS = [part for pair in TINY for part in ("--set", pair)]


@pytest.fixture
def train(run: Callable[..., Any], text: Path) -> Callable[..., Any]:
    def invoke(*arguments: object) -> Any:
        return run("train", "char-lstm", "--data", text, "--no-progress", *OPTIONS, *arguments)

    return invoke


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_trains_resumes_and_generates(
    cell: str, train: Callable[..., Any], run: Callable[..., Any], here: Path
) -> None:
    out = train("--steps", 4, "--set", f"cell={cell}").output
    assert "validation loss" in out and "retrograde generate runs/char-lstm-1" in out
    train("--steps", 2, "--checkpoint", "cut", "--set", f"cell={cell}")
    _, meta = checkpoint.load(here / "runs/char-lstm-1")
    assert meta["run"]["settings"]["cell"] == cell
    generated = run("generate", "runs/char-lstm-1", "--prompt", "the fox", "--tokens", 20).output
    assert len(generated) == len("the fox") + 20 + 1
    train("--steps", 4, "--checkpoint", "cut", "--resume")
    assert int(checkpoint.load(here / "cut")[0]["step"]) == 4


def test_an_unknown_cell_is_refused(run: Callable[..., Any], text: Path) -> None:
    arguments = ["train", "char-lstm", "--data", str(text), *OPTIONS, "--set", "cell=grue"]
    assert "lstm, gru, rnn" in run(*arguments, code=2).stderr


def test_a_window_may_be_longer_than_in_training(run: Callable[..., Any], text: Path) -> None:
    arguments = ["plan", "char-lstm", "--data", text, *OPTIONS]
    assert "512" in run(*arguments, "-B", "2", "-T", "512").output


class Windowed(nn.Module):
    """A model without its carry: computed anew from all tokens, for each one."""

    model: RNNLM
    context: int

    def __call__(self, tokens: Any) -> Any:
        return self.model(tokens)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_tokens_follow_from_a_carry_as_from_the_whole_text(cell: str) -> None:
    model = RNNLM(vocab=6, width=8, layers=2, cell=cell, seed=3)
    rng = np.random.default_rng(1)
    model = model.replace(
        {name: x + 0.5 * rng.normal(size=x.shape).astype(np.float32)
         for name, x in model.parameters().items()}
    )  # fmt: skip
    made = []
    for each in (model, Windowed(model, context=50)):
        following = sampling.next_tokens(each, np.array([1, 2, 5]), Sampling(seed=2))
        made.append([next(following) for _ in range(20)])
    assert made[0] == made[1] and len(set(made[0])) > 2


def test_the_default_settings_are_those_of_the_other_recipe_where_both_have_them() -> None:
    names = [{s.name for s in RECIPES[name].settings} for name in ("char-gpt", "char-lstm")]
    assert names[0] - names[1] == {"heads"} and names[1] - names[0] == {"cell"}
