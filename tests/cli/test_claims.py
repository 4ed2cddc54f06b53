"""`retrograde certify --claims`: what is said of a model along time holds, or the path is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from retrograde.runtime.data.sets import python_tokens
from tests.recipes.small import python_lines

MODEL = '''
import numpy as np
import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn

ids = rg.spec("i32", "B", rg.dim("T", max=12))
specs = {"tokens": ids, "segments": ids, "targets": ids}


class Model(nn.Module):
    def __init__(self):
        self.embedding = nn.Embedding(7, 4, seed=0)
        self.attention = nn.MultiHeadAttention(4, 2, causal=True, seed=1)
        self.head = nn.Linear(4, 7, seed=2)

    def __call__(self, tokens, segments):
        x = self.embedding(tokens)
        x = x + self.attention(x, segments=segments)
        FAULT
        return self.head(x)


def model():
    return Model()


def loss(model, tokens, segments, targets):
    return rg.losses.cross_entropy(model(tokens, segments), targets)


def batch(k):
    rng = np.random.default_rng(k)
    names = ("tokens", "segments", "targets")
    return {name: rng.integers(0, 3, (2, 5), dtype=np.int32) for name in names}
'''
# What is planted into the model, and the claims that it breaks.
FAULTS = {
    "pass": (),
    "x = x + rnp.mean(x, axis=1, keepdims=True)": ("causality", "segment isolation"),
    "x = x + rnp.concatenate([x[:, :1], x[:, :-1]], axis=1)": ("segment isolation",),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_leak_is_told_with_its_path_and_a_status(
    fault: str, run: Callable[..., Result], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_BACKEND", "numpy")
    file = here / "my_model.py"
    file.write_text(MODEL.replace("FAULT", fault))
    line = 1 + file.read_text().splitlines().index(f"        {fault}")
    base = ["certify", file, "--size", "B=2", "--size", "T=3", "--directions", 1]
    broken = FAULTS[fault]
    one = run(*base, "--claims", "causality", code=int("causality" in broken)).output
    if not broken:
        assert "proven: causality" in one and "proven: segment isolation" in one
    out = run(*base, "--claims", "causality, segment isolation", code=int(bool(broken))).output
    found = re.findall(r"^  at fault: ([a-z ]+): (.*)$", out, re.MULTILINE)
    assert tuple(claim for claim, _ in found) == broken
    for _, seen in found:
        # The line at fault, and the way from there to what the loss reads.
        assert seen.startswith(f"my_model.py:{line}: through ")
        path = re.search(r"\((.* -> .*)\)$", seen)
        assert path is not None and f"my_model.py:{line}" in path[1]


def test_what_cannot_be_claimed_is_refused(
    run: Callable[..., Result], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_BACKEND", "numpy")
    small = [part for pair in ("width=8", "layers=1", "heads=2") for part in ("--set", pair)]
    base = ["certify", "char-gpt", "--data", text, *small, "--claims"]
    assert "there is no claim 'honesty'" in run(*base, "honesty", code=2).stderr
    assert "no input called segments" in run(*base, "segment isolation", code=2).stderr


def test_a_recipe_tells_its_own_lines(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tagger reads both ways, so it sees what comes later."""
    monkeypatch.setenv("RETROGRADE_BACKEND", "numpy")
    monkeypatch.setattr(python_tokens, "load", lambda files: python_lines())
    small = [part for pair in ("width=4", "longest=6", "batch=4") for part in ("--set", pair)]
    at = ["--size", "B=2", "--size", "T=3", "--directions", 1]
    out = run("certify", "python-tags", *small, *at, "--claims", "causality", code=1).output
    found = re.search(r"at fault: causality: tagging\.py:\d+ @ rnn\.backward\.0: .*\((.*)\)", out)
    assert found is not None and "tagging.py" in found[1].split(" -> ")[-1]
