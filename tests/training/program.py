"""A small real training run, for the tests that start, kill and resume it in processes of its own.

    python program.py DIRECTORY STEPS [--resume]     prints a digest of the state it ends with
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

import retrograde as rg
from retrograde.runtime.data.batches import Windows
from retrograde.runtime.training.loop import train

TEXT = Path(__file__).read_bytes()


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens), targets)


def make_step(**options: Any) -> Any:
    """A GPT with dropout and tied tables: randomness, state and sharing are all in play."""
    model = rg.models.GPT(
        vocab=128, width=16, layers=2, heads=2, context=12, seed=3, dropout=0.1, tied=True
    )
    return rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(rg.optim.warmup_cosine(1e-2, warmup=5, steps=60), weight_decay=0.1),
        batch={"tokens": rg.spec("i32", "B", "T"), "targets": rg.spec("i32", "B", "T")},
        clip_norm=1.0,
        seed=7,
        **options,
    )


def batches() -> Windows:
    return Windows(np.frombuffer(TEXT, np.uint8).astype(np.int32) % 128, batch=3, length=12, seed=5)


def digest(step: Any) -> str:
    """Every bit of the state, and the source that made it."""
    tensors, meta = step.state()
    found = hashlib.sha256(step.source().encode())
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].tobytes())
    found.update(repr(sorted(meta.items())).encode())
    return found.hexdigest()


def run(directory: Path, steps: int, resume: bool = False) -> Any:
    step = make_step()
    train(
        step, batches(), steps=steps, checkpoint=directory, save_every=3, resume=resume,
        progress=False,
    )  # fmt: skip
    return step


if __name__ == "__main__":
    print(digest(run(Path(sys.argv[1]), int(sys.argv[2]), "--resume" in sys.argv)))
