"""Training steps in checkpoints: loaded without the Python of the model, they go on bit for bit."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import CheckpointError, DataError, RetrogradeError, ShapeError
from retrograde.runtime import archive
from retrograde.runtime.native.toolchain import find_toolchain
from retrograde.saving import FILE, FORMAT, PROGRAM, STEP, VERSION, step_parts
from tests.saving.programs import normal

IDS = rg.spec("i32", "B", rg.dim("T", max=12))
SCALES = normal(7)


class Model(rg.nn.Module):
    embedding: rg.nn.Embedding
    cell: rg.nn.LSTM
    drop: rg.nn.Dropout
    head: rg.nn.Linear
    table: Any  # whole numbers: not trained

    def __call__(self, ids: Any) -> Any:
        y, _ = self.cell(self.embedding(self.table[ids]))
        return self.head(self.drop(y))


def model(seed: int = 1) -> Model:
    return Model(
        rg.nn.Embedding(7, 5, seed=seed), rg.nn.LSTM(5, 6, seed=seed), rg.nn.Dropout(0.3),
        rg.nn.Linear(6, 7, seed=seed), np.arange(7, dtype=np.int32)[::-1].copy(),
    )  # fmt: skip


def loss(model: Model, ids: Any, more: Any, kind: str) -> Any:
    assert kind == "next"
    return rg.losses.cross_entropy(model(ids) * SCALES, more["targets"])


def trainer(backend: str = "numpy", **options: Any) -> Any:
    return rg.compile_training(
        loss, model(), rg.optim.AdamW(rg.optim.warmup_cosine(1e-2, 3, 30)),
        {"ids": IDS, "more": {"targets": IDS}, "kind": "next"},
        at={"B": 4, "T": 12}, clip_norm=1.0, seed=5, backend=backend, **options,
    )  # fmt: skip


def batch(k: int) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    ids = rng.integers(0, 7, (3 + k % 2, 4 + k), dtype=np.int32)
    return {"ids": ids, "more": {"targets": ids[:, ::-1].copy()}, "kind": "next"}


def same_state(a: Any, b: Any) -> bool:
    x, y = a.state()[0], b.state()[0]
    return list(x) == list(y) and all(x[name].tobytes() == y[name].tobytes() for name in x)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("numpy", {}), ("numpy", {"budget": "48KiB"}), ("numpy", {"truncate": 3}), ("native", {})],
)
def test_a_loaded_step_goes_on(backend: str, options: Any, tmp_path: Path) -> None:
    if backend == "native" and find_toolchain() is None:
        pytest.skip("there is no C compiler")
    step = trainer(backend, **options)
    for k in range(3):
        step(**batch(k))
    step.save(tmp_path / "run", program=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = rg.load(tmp_path / "run")
    assert same_state(step, loaded)
    for k in range(3, 7):
        assert step(**batch(k)) == loaded(**batch(k))
    assert same_state(step, loaded)
    assert all(made.as_decided for made in loaded._run.recipes)
    assert str(loaded.peak()) == str(step.peak())
    for b, t in ((4, 12), (3, 7), (1, 1)):
        assert loaded.plan(B=b, T=t) == step.plan(B=b, T=t)
        assert loaded.report(B=b, T=t) == step.report(B=b, T=t)
    assert loaded.peak_bytes == step.peak_bytes and repr(loaded) == repr(step)
    loaded.save(tmp_path / "run", program=True)
    again = rg.load(tmp_path / "run").clone()
    assert again(**batch(7)) == step(**batch(7))


def test_the_model_is_there_where_its_class_is(tmp_path: Path) -> None:
    step = trainer()
    step(**batch(1))
    step.save(tmp_path, program=True)
    loaded = rg.load(tmp_path)
    assert isinstance(loaded.model, Model)
    loaded.model = model(9).parameters()
    for path, x in model(9).parameters().items():
        assert np.array_equal(loaded.model.parameters()[path], x)
    loaded.restore(tmp_path)
    assert same_state(step, loaded)
    assert loaded.first_nonfinite(**batch(2)) is None
    with pytest.raises(rg.errors.UnsupportedError, match="no Python of its loss"):
        loaded.gradient_norms(**batch(2))


def test_batches_are_checked_as_before(tmp_path: Path) -> None:
    trainer().save(tmp_path, program=True)
    loaded = rg.load(tmp_path)
    before = loaded.state()[0]
    good = batch(0)
    for change, error, said in (
        ({"kind": "last"}, DataError, "kind is 'last'"),
        ({"ids": good["ids"][:, :2]}, ShapeError, "axis 1"),
        ({"ids": good["ids"] + 7}, DataError, "7"),
        ({"more": {"labels": good["ids"]}}, ShapeError, "missing"),
        ({"extra": 1}, DataError, "'extra' is not expected"),
    ):  # type: tuple[dict[str, Any], type[Exception], str]
        with pytest.raises(error, match=said):
            loaded(**{**good, **change})
    assert all(np.array_equal(before[n], x) for n, x in loaded.state()[0].items())


def test_folders_without_a_program(tmp_path: Path) -> None:
    step = trainer()
    step.save(tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds no program of a training step"):
        rg.load(tmp_path / "run")
    step.save(tmp_path / "run", program=True)
    step.save(tmp_path / "run")  # the same step: its program stays
    rg.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="load the folder"):
        rg.load(tmp_path / "run" / FILE)
    trainer(truncate=2).save(tmp_path / "run")  # another step
    with pytest.raises(CheckpointError, match="holds no program of a training step"):
        rg.load(tmp_path / "run")


def test_files_that_were_changed(tmp_path: Path) -> None:
    step = trainer()
    step.save(tmp_path, program=True)
    parts, rng = step_parts(step), random.Random(4)
    odd = (None, -1, 0, 3, 10**30, "x", [], [1, 1], {}, ["leaf", 2], ["list", []])
    for _ in range(60):
        program = json.loads(parts[PROGRAM])
        program[rng.choice(list(program))] = rng.choice(odd)
        changed = {**parts, PROGRAM: json.dumps(program).encode()}
        archive.write(tmp_path / FILE, FORMAT, VERSION, STEP, changed)
        try:
            rg.load(tmp_path)
        except RetrogradeError as error:
            assert str(tmp_path) in str(error) or "checkpoint" in str(error)
    assert rnp.tanh is not None
