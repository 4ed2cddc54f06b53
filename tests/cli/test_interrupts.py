"""A training process that signals end, and that is gone on with, ends as one that no signal met."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from retrograde.runtime.training import checkpoint

STEPS = 600
MODEL = """
import numpy as np
import retrograde as rg
from retrograde import nn

specs = {"tokens": rg.spec("i32", "B", 9)}
at = {"B": 4}


def model(width=8, seed=0):
    numbers = nn.Source(seed)
    return nn.Sequential(
        nn.Embedding(5, width, seed=numbers), nn.Dropout(0.2), nn.Linear(width, 5, seed=numbers)
    )


def loss(model, tokens):
    return rg.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])


def batch(k):
    return {"tokens": np.random.default_rng(k).integers(0, 5, (4, 9), dtype=np.int32)}
"""
OPTIONS = ["--set", "ema=0.9", "--steps", str(STEPS)]
FILE = "my_model.py"
MAIN = "from retrograde.cli import main; main()"


def ended_by(number: int, folder: Path, lines: int, *arguments: str) -> bytes:
    """Trains in a process until the metrics have so many lines, and sends it a signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "train", FILE, "--no-progress", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        # A test runner in the background of a shell hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # fmt: skip
    log = folder / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > lines):
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    return error


def told(folder: Path) -> Any:
    _, meta = checkpoint.load(folder)
    del meta["training"]["metrics_position"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return meta["training"], [{**record, "tokens_per_second": 0} for record in records]


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_signals_leave_a_checkpoint_that_goes_on_bit_for_bit(
    here: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_BACKEND", "numpy")
    (here / FILE).write_text(MODEL)
    start = [*OPTIONS, "--checkpoint"]
    run("train", FILE, "--no-progress", *start, "whole")
    places: list[int] = []
    for number, more in ((signal.SIGINT, start), (signal.SIGTERM, ["--resume", "--checkpoint"])):
        lines = 5 + (places[-1] if places else 0)
        error = ended_by(number, here / "cut", lines, *more, "cut")
        assert b"Interrupted after step" in error and b"Traceback" not in error
        places.append(int(checkpoint.load(here / "cut")[0]["step"]))
    assert 4 < places[0] < places[1] < STEPS
    run("train", FILE, "--no-progress", "--resume", "--checkpoint", "cut")
    one, other = (checkpoint.load(here / name)[0] for name in ("whole", "cut"))
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.tobytes() == other[name].tobytes(), (places, name)
    assert told(here / "whole") == told(here / "cut")
