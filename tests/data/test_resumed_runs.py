"""A run that is interrupted after any step and resumed ends where the uninterrupted one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import CheckpointError
from retrograde.runtime.data.batches import EpochWindows
from retrograde.runtime.data.packed import Packed
from retrograde.runtime.data.padded import Buckets, Padded
from retrograde.runtime.data.prefetch import Prefetch
from retrograde.runtime.data.streaming import Lines, Streaming
from retrograde.runtime.data.token_file import TokenFile
from retrograde.runtime.training.loop import train

STEPS = 23
ROWS = [np.arange(2 + (7 * k) % 19) + k for k in range(31)]


class Step:
    """Remembers all that it was given, in a number that each batch changes."""

    peak_bytes = 8

    def __init__(self) -> None:
        self.value = np.zeros(2)

    def __call__(self, **batch: Any) -> dict[str, float]:
        for name in sorted(batch):
            array = np.asarray(batch[name], np.float64)
            weights = np.cos(np.arange(array.size) + array.size).reshape(array.shape)
            self.value = 0.7 * self.value[::-1] + [np.sum(array * weights) % 1.7, array.mean()]
        return {"loss": float(self.value[0])}

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"value": self.value}, {}

    def set_state(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
        if tensors.keys() != {"value"}:
            raise CheckpointError("another model")
        self.value = np.array(tensors["value"])


def lines(folder: Path) -> Path:
    path = folder / "lines"
    if not path.exists():
        path.write_text("\n".join("x" * (1 + k % 7) + str(k) for k in range(29)))
    return path


MAKES: dict[str, Callable[[Path], Any]] = {
    "padded": lambda _: Padded(ROWS, 4, seed=9),
    "buckets": lambda _: Buckets(ROWS, 4, buckets=3, seed=9),
    "packed": lambda _: Packed(ROWS, 2, 24, seed=9),
    "token file": lambda folder: EpochWindows(
        TokenFile.write(folder / "tokens", ROWS, 100), 3, 8, seed=9
    ),
    "streaming": lambda folder: Streaming(
        Lines(lines(folder), lambda line: {"x": list(line.encode())}), 4, buffer=6, seed=9
    ),
}


@pytest.fixture(params=[False, True], ids=["alone", "prefetched"])
def prefetched(request: pytest.FixtureRequest) -> Iterator[bool]:
    yield request.param


@pytest.mark.parametrize("kind", sorted(MAKES))
def test_interrupted_runs_end_the_same(kind: str, prefetched: bool, tmp_path: Path) -> None:
    def run(folder: str, steps: int, resume: bool) -> Any:
        step, batches = Step(), MAKES[kind](tmp_path)
        ahead = Prefetch(batches, depth=3) if prefetched else batches
        train(step, ahead, steps=steps, checkpoint=tmp_path / folder, resume=resume, progress=False)
        if prefetched:
            ahead.close()
        return step.value

    expected = run("whole", STEPS, resume=False)
    for cut in (1, 7, 8, 15, 22):
        run(f"cut{cut}", cut, resume=False)
        np.testing.assert_array_equal(run(f"cut{cut}", STEPS, resume=True), expected)
