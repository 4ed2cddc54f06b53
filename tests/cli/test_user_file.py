"""A Python file of the user's as a recipe."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from retrograde.runtime.training import checkpoint

Run = Callable[..., Result]

MODEL = '''
import numpy as np
import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn


def model(width=6, seed=0):
    numbers = nn.Source(seed)
    first, last = nn.Linear(3, width, seed=numbers), nn.Linear(width, 1, seed=numbers)
    return nn.Sequential(first, rnp.tanh, last)


def loss(model, x, y):
    return rg.losses.mse(model(x)[:, 0], y)
'''
BATCH = '''

def batch(k, rows=5):
    rng = np.random.default_rng(k)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": x.sum(1)}
'''
BATCHES = '''

def batches(rows=5):
    for k in range(4):
        rng = np.random.default_rng(k)
        x = rng.normal(size=(rows, 3)).astype(np.float32)
        yield {"x": x, "y": x.sum(1)}
'''
LISTED = '''

batches = [{"x": np.ones((2, 3), "f4") * k, "y": np.arange(2, dtype="f4")} for k in range(3)]
'''
MORE = '''

steps = 40
clip_norm = 1.0
specs = {"x": rg.spec("f32", "B", 3), "y": rg.spec("f32", "B")}
at = {"B": 5}


def optimizer(learning_rate=0.01):
    return rg.optim.Adam(learning_rate)


def validation():
    return [batch(1000, rows=9), batch(1001, rows=3)]


def sample(model):
    return f"the model says {float(model(np.ones((1, 3), np.float32))[0, 0]):.3f}"
'''


@pytest.fixture
def write(here: Path) -> Callable[..., Path]:
    def written(*parts: str, name: str = "my_model.py") -> Path:
        file = here / name
        file.write_text("".join(parts))
        return file

    return written


@pytest.fixture
def train(run: Run) -> Run:
    def invoke(file: Path, *arguments: object, code: int = 0) -> Result:
        return run("train", file, "--no-progress", *arguments, code=code)

    return invoke


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder)[0]


def test_a_file_with_everything(
    write: Callable[..., Path], train: Run, run: Run, here: Path
) -> None:
    file = write(MODEL, BATCH, MORE)
    out = train(file, "--set", "width=7").output
    assert re.search(r"^  width +7 +--set$", out, re.MULTILINE)
    assert re.search(r"^  learning_rate +0.01 +default$", out, re.MULTILINE)
    assert re.search(r"^  steps +40 +default$", out, re.MULTILINE)
    assert "the model says" in out and "validation loss" in out
    tensors = state(here / "runs/my_model-1")
    assert tensors["step"] == 40
    assert tensors["model.layers.0.weight"].shape == (3, 7)
    assert "B=2" in run("compile", file, "--size", "B=2").output
    assert run("plan", file, "-B", "1,64").output.splitlines()[-1].startswith("B=64")


def test_validation_weighs_batches_by_their_count(
    write: Callable[..., Path], train: Run, here: Path
) -> None:
    file = write(MODEL, BATCH, MORE)
    out = train(file, "--steps", 0).output
    scope: dict[str, Any] = {}
    exec(compile(file.read_text(), file, "exec"), scope)
    parts = scope["validation"]()
    whole = {name: np.concatenate([b[name] for b in parts]) for name in ("x", "y")}
    expected = float(scope["loss"](scope["model"](), **whole))
    found = re.search(r"validation loss ([\d.]+)", out)
    assert found is not None and float(found[1]) == pytest.approx(expected, abs=1e-4)


def test_the_least_that_a_file_can_be(
    write: Callable[..., Path], train: Run, here: Path
) -> None:
    out = train(write(MODEL, BATCH), "--steps", 3).output
    assert "training loss" in out
    assert state(here / "runs/my_model-1")["step"] == 3


@pytest.mark.parametrize("data", [BATCH, BATCHES, LISTED])
def test_resuming_sees_the_same_batches(
    data: str, write: Callable[..., Path], train: Run, here: Path
) -> None:
    file = write(MODEL, data)
    train(file, "--steps", 11, "--checkpoint", "whole")
    train(file, "--steps", 6, "--checkpoint", "parts")
    train(file, "--steps", 11, "--checkpoint", "parts", "--resume")
    whole, parts = state(here / "whole"), state(here / "parts")
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_the_seed_reaches_the_functions(
    write: Callable[..., Path], train: Run, here: Path
) -> None:
    file = write(MODEL, BATCH)
    for seed in (0, 0, 1):
        train(file, "--steps", 0, "--seed", seed)
    first, again, other = (
        state(here / f"runs/my_model-{i}")["model.layers.0.weight"] for i in (1, 2, 3)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_file_may_import_its_neighbours(
    write: Callable[..., Path], train: Run, here: Path
) -> None:
    (here / "my_neighbour.py").write_text("WIDTH = 6\n")
    train(write("from my_neighbour import WIDTH\n", MODEL, BATCH), "--steps", 1)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((BATCH,), "defines no `model`"),
        ((MODEL.replace("def loss", "def lost"), BATCH), "defines no `loss`"),
        ((MODEL,), "neither `batch"),
        ((MODEL, "\nbatches = iter([{'x': 1}])\n"), "cannot be begun again"),
        ((MODEL, "\nbatches = []\n"), "empty"),
        ((MODEL, "\ndef batch(k):\n    return k\n"), "a batch is a dict"),
        ((MODEL, BATCH.replace("rows=5", "width=5")), "two defaults"),
        ((MODEL, BATCH.replace("rows=5", "rows=(1, 2)")), "the default of rows"),
        ((MODEL, BATCH.replace('"y":', '"z":')), "loss(model, x, y) does not take"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    parts: tuple[str, ...], message: str, write: Callable[..., Path], train: Run, here: Path
) -> None:
    file = write("import numpy as np\n", *parts)
    result = train(file, "--steps", 1, code=2)
    assert message in result.stderr
    assert not (here / "runs").exists()


def test_options_that_the_file_lacks_are_refused(write: Callable[..., Path], train: Run) -> None:
    assert "has no 'data'" in train(write(MODEL, BATCH), "--data", "x", code=2).stderr
    assert "no setting 'depth'" in train(write(MODEL, BATCH), "--set", "depth=3", code=2).stderr


def test_errors_in_the_model_name_its_line(write: Callable[..., Path], train: Run) -> None:
    file = write(MODEL.replace("model(x)[:, 0]", "model(x[:, :2])[:, 0]"), BATCH)
    result = train(file, "--steps", 1, code=2)
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if "[:, :2]" in text)
    assert f"my_model.py:{line}: Linear takes [..., 3]" in result.stderr


def test_generate_refuses_a_checkpoint_of_a_file(
    write: Callable[..., Path], train: Run, run: Run
) -> None:
    train(write(MODEL, BATCH), "--steps", 1)
    assert "'my_model'" in run("generate", code=2).stderr
