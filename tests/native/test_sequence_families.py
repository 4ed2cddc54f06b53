"""Models for sequences on the native device: as in float64, and no bit from beyond lengths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import models, tree
from retrograde.runtime.native.toolchain import find_toolchain
from tests.frontends.sequence_checks import beyond, same_bits

Array = npt.NDArray[Any]
B, T, V, W = 3, 9, 7, 8
LENGTHS = np.array([9, 2, 5])
EVERY = np.ones((B, T), bool)
INSIDE = np.arange(T) < LENGTHS[:, None]
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 4, 4, 4, 4, 4, 4, 4], [2] * 9])

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")


def ids(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def packed(model: Any, x: Any, targets: Any, segments: Any, counts: Any) -> Any:
    """A loss of two sequences or more in a row."""
    return rg.losses.cross_entropy(
        model(x, segments=segments), targets, counts, per="sequence", segments=segments
    )


def padded(model: Any, x: Any, targets: Any, lengths: Any, inside: Any) -> Any:
    return rg.losses.cross_entropy(model(x, lengths=lengths), targets, inside)


def paired(model: Any, x: Any, targets: Any, lengths: Any, inside: Any) -> Any:
    return rg.losses.cross_entropy(model(x, targets, lengths, lengths), targets, inside)


GPT = {"vocab": V, "width": W, "layers": 2, "heads": 2, "context": T}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "gpt": (lambda: models.GPT(**GPT, positions="rotary", mlp="swiglu", kv_heads=1, window=4),
            packed),
    "lstm": (lambda: models.RNNLM(vocab=V, width=W, layers=1), packed),
    "ssm": (lambda: models.SSMLM(vocab=V, width=W, layers=2, state=3), packed),
    "tcn": (lambda: models.TCN(inputs=3, outputs=V, width=W, layers=2), padded),
    "tagger": (lambda: models.Tagger(tags=V, inputs=3, width=W, layers=2), padded),
    "seq2seq": (lambda: models.Seq2Seq(vocab=V, source_inputs=3, width=W, layers=1, heads=2),
                paired),
    "rnn seq2seq": (lambda: models.RNNSeq2Seq(vocab=V, source_inputs=3, width=W), paired),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_what_it_is_in_float64(name: str) -> None:
    make, loss = FAMILIES[name]
    rng = np.random.default_rng(5)
    model = tree.map(lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32), make())
    frames = loss is not packed
    x = drawn(B, T, 3) if frames else ids(B, T)
    rest = (ids(B, T, seed=1), LENGTHS if frames else SEGMENTS, INSIDE if frames else EVERY)
    by = (0, 1) if frames else 0
    run = rg.compile(rg.value_and_grad(loss, argnums=by), model, x, *rest, backend="native")
    got = run(model, x, *rest)
    wide = tree.map(lambda x: x.astype(np.float64), model)
    exact = rg.jit(rg.value_and_grad(loss, argnums=by))(
        wide, x.astype(np.float64) if frames else x, *rest
    )
    for a, b in zip(tree.leaves(got), tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    for counts, hidden in hiding(name, frames):  # what may not be seen changes no bit
        other = np.where(hidden[..., None], 9 - 5 * x, x) if frames else (x + 3 * hidden) % V
        plain, changed = (run(model, v.astype(x.dtype), *rest[:2], counts) for v in (x, other))
        assert same_bits(plain, changed)
    for noise in (np.nan, np.inf, -np.inf) if frames else ():
        assert same_bits(got, run(model, beyond(LENGTHS, x, noise), *rest))


def hiding(name: str, frames: bool) -> Iterator[tuple[Array, Array]]:
    """What is in the loss, and what that may not see."""
    early = np.broadcast_to(np.arange(T) < 4, (B, T))
    if name in ("gpt", "lstm", "ssm", "tcn"):
        yield early & INSIDE if frames else early, ~early
    if not frames:
        own = np.array([[2], [4], [2]]) == SEGMENTS
        yield own, ~own
        if name != "tcn":
            yield own & early, ~own | ~early
