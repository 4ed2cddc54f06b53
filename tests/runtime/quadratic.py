"""A real, small training step for the tests of the loop, and a program that trains it.

A table of rows is pulled to the rows of a fixed one by SGD with momentum, on what a batch's tokens
name, with noise drawn by a counter.  All that later steps depend on is in its state.

    python quadratic.py DIRECTORY STEPS [seconds a step] [resume]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from retrograde.compiler.errors import CheckpointError
from retrograde.runtime.data.batches import Windows
from retrograde.runtime.training.loop import TrainResult, train

VOCABULARY = 11
WIDTH = 5


class QuadraticStep:
    peak_bytes = 2 * VOCABULARY * WIDTH * 4

    def __init__(self, rate: float = 0.05, seconds: float = 0.0) -> None:
        draws = np.random.default_rng(3)
        self.goal = draws.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
        self.table = draws.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
        self.momentum = np.zeros_like(self.table)
        self.count = 0
        self.rate = np.float32(rate)
        self.seconds = seconds

    def __call__(self, *, tokens: Any, targets: Any) -> dict[str, float]:
        if self.seconds > 1:
            print("stepping", flush=True)  # someone waits for it
        time.sleep(self.seconds)
        noise = np.random.default_rng([17, self.count]).normal(size=self.table.shape)
        difference = self.table[tokens] - self.goal[targets % VOCABULARY]
        gradient = np.zeros_like(self.table)
        np.add.at(gradient, tokens, difference / np.float32(tokens.size))
        gradient += noise.astype(np.float32) * np.float32(1e-3)
        self.momentum *= np.float32(0.9)
        self.momentum += gradient
        self.table -= self.rate * self.momentum
        self.count += 1
        loss = 0.5 * float(np.square(difference).sum(-1).mean())
        return {"loss": loss, "grad_norm": float(np.linalg.norm(gradient))}

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"table": self.table, "momentum": self.momentum}, {"count": self.count}

    def set_state(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        if tensors.keys() != {"table", "momentum"} or meta.keys() != {"count"}:
            raise CheckpointError("the checkpoint is of another model")
        self.table, self.momentum = tensors["table"], tensors["momentum"]
        self.count = meta["count"]


def make_batches(seed: int = 4) -> Windows:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 501).astype(np.int32)
    return Windows(tokens, batch=3, length=7, seed=seed)


def run(
    directory: Path, steps: int, seconds: float = 0.0, **options: Any
) -> tuple[QuadraticStep, TrainResult]:
    """Train with everything on: checkpoints, metrics and validation."""
    step = QuadraticStep(seconds=seconds)

    def validate() -> dict[str, float]:
        return {"loss": float(np.square(step.table - step.goal).mean())}

    defaults: dict[str, Any] = {
        "validate": validate,
        "validate_every": 7,
        "checkpoint": directory,
        "save_every": 3,
        "metrics_path": directory / "metrics.jsonl",
        "progress": False,
    }
    return step, train(step, make_batches(), steps=steps, **{**defaults, **options})


def records(directory: Path) -> list[dict[str, Any]]:
    """The metrics, without the speed, which no two runs share."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for record in found:
        del record["tokens_per_second"]
    return found


if __name__ == "__main__":
    print("ready", flush=True)
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    _, result = run(Path(sys.argv[1]), int(sys.argv[2]), seconds, resume="resume" in sys.argv)
    print(f"step {result.step} interrupted {result.interrupted}", flush=True)
