"""The default language model, trained beside PyTorch: same weights, same batches, same steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is missing: make peers")

import retrograde as rg  # noqa: E402
from benchmarks.peers import torch_gpt  # noqa: E402  # needs torch
from retrograde.runtime.data.batches import Windows, evaluation_batches  # noqa: E402
from retrograde.runtime.data.text import Vocabulary, split, stdlib_text  # noqa: E402

STEPS, BATCH, LENGTH = 120, 12, 64
SIZES = {"width": 128, "layers": 4, "heads": 4, "context": LENGTH}


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens), targets)


def as_torch(model: Any) -> dict[str, np.ndarray]:
    """Our arrays under PyTorch's names; its projections are [outputs, inputs]."""
    found = {}
    for name, array in model.parameters().items():
        projection = array.ndim == 2 and "embedding" not in name
        found[name] = np.ascontiguousarray(array.T if projection else array)
    return found


def as_longs(batch: dict[str, np.ndarray]) -> list[Any]:
    return [torch.from_numpy(batch[name].astype(np.int64)) for name in ("tokens", "targets")]


def test_a_short_run_ends_where_pytorch_ends() -> None:
    text = stdlib_text()[:400_000]
    vocabulary = Vocabulary.of(text, minimum_count=20)
    training, validation = split(vocabulary.encode(text))
    model = rg.models.GPT(vocab=len(vocabulary), seed=1, **SIZES)
    peer = torch_gpt.build(vocab=len(vocabulary), weights=as_torch(model), **SIZES)
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = rg.spec("i32", "B", "T")
    step = rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(1e-3, betas=(0.9, 0.95), weight_decay=0.1),
        batch={"tokens": ids, "targets": ids},
        clip_norm=1.0,
        at={"B": BATCH, "T": LENGTH},
    )
    for k, batch in zip(range(STEPS), Windows(training, BATCH, LENGTH, seed=2), strict=False):
        ours = step(**batch)
        theirs = torch_gpt.loss_of(peer, *as_longs(batch))
        optimizer.zero_grad()
        theirs.backward()
        norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        if k < 10:  # rounding has not grown yet
            assert ours["loss"] == pytest.approx(theirs.item(), rel=1e-4)
            assert ours["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)

    evaluate = rg.compile(lambda model, b: loss(model, **b).value, step.model, {
        "tokens": ids, "targets": ids
    })  # fmt: skip
    ours_total = theirs_total = 0.0
    held_out = list(evaluation_batches(validation, BATCH, LENGTH, limit=10))
    for batch in held_out:
        ours_total += float(evaluate(step.model, batch)) / len(held_out)
        with torch.no_grad():
            found = torch_gpt.loss_of(peer, *as_longs(batch)).item()
        theirs_total += found / len(held_out)
    assert ours_total < 2.9  # it did learn: the uniform guess is above 4.3
    assert ours_total == pytest.approx(theirs_total, rel=0.01)
