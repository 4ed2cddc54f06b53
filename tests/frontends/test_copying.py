"""The model that copies: one distribution two ways, sight, noise beyond lengths, machine code."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import tree
from retrograde.models import CopyingSeq2Seq
from tests.frontends.sequence_checks import beyond, same_bits, seen, wide

Array = npt.NDArray[Any]
V, W = 11, 6
LENGTHS, ENDS = np.array([5, 2, 4]), np.array([3, 6, 1])


def ids(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def direct(model: Any, source: Any, tokens: Any, targets: Any, lengths: Any, ends: Any) -> Any:
    return rg.numpy.sum(model.nll(source, tokens, targets, lengths, ends))


def by_logits(model: Any, source: Any, tokens: Any, targets: Any, lengths: Any, ends: Any) -> Any:
    inside = rg.numpy.less(rg.numpy.arange(6), ends[:, None])
    logits = model(source, tokens, lengths, ends)
    return rg.losses.cross_entropy(logits, targets, inside).sum


DATA = ids(3, 5), ids(3, 6, seed=1), ids(3, 6, seed=2), LENGTHS, ENDS


def test_both_ways_to_the_likelihood_agree() -> None:
    model = wide(CopyingSeq2Seq(vocab=V, width=W, cell="lstm"))
    found = [rg.jit(rg.value_and_grad(way))(model, *DATA) for way in (direct, by_logits)]
    for a, b in zip(*map(tree.leaves, found), strict=True):
        assert np.any(a)
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    chances = np.exp(rg.jit(model)(*DATA[:2], LENGTHS))
    np.testing.assert_allclose(chances.sum(-1), 1.0, rtol=1e-12)


def test_what_is_copied_is_in_the_source() -> None:
    model = wide(CopyingSeq2Seq(vocab=V, width=W))
    arrays = model.parameters()
    for bias, name in ((-60.0, "copies"), (60.0, "says")):
        gated = model.replace({**arrays, "gate.bias": np.full(1, bias)})
        chances = np.exp(rg.jit(gated)(*DATA[:2], LENGTHS))
        for row, source, length in zip(chances, DATA[0], LENGTHS, strict=True):
            there = np.isin(np.arange(V), source[:length])
            assert not there.all()
            wanted = there if name == "copies" else np.ones(V, bool)
            assert np.array_equal(row > 1e-12, np.tile(wanted, (6, 1)))


def test_it_sees_the_source_within_its_length_and_its_past() -> None:
    model = wide(CopyingSeq2Seq(vocab=V, width=W))
    source, tokens = ids(2, 5), ids(2, 6, seed=1)
    lengths, run = np.array([5, 3]), rg.jit(model)
    assert run(source, tokens, lengths).shape == (2, 6, V)
    found = seen(lambda x: run(source, x, lengths), tokens, lambda x: (x + 1) % V)
    assert np.array_equal(found, np.tri(6, dtype=bool))
    for j in range(5):
        changed = source.copy()
        changed[:, j] = (changed[:, j] + 1) % V
        moved = np.abs(run(changed, tokens, lengths) - run(source, tokens, lengths)).max((1, 2))
        assert np.array_equal(moved > 0, j < lengths)


def test_noise_beyond_lengths_changes_no_bit() -> None:
    model = CopyingSeq2Seq(vocab=V, width=W)
    source, tokens, targets = DATA[:3]
    for way in (direct, by_logits):
        run = rg.jit(rg.value_and_grad(way))
        plain = run(model, *DATA)
        for number in (-5, V, 3):
            others = (
                beyond(LENGTHS, source, number), beyond(ENDS, tokens, number),
                beyond(ENDS, targets, number),
            )  # fmt: skip
            assert same_bits(plain, run(model, *others, LENGTHS, ENDS))


def test_machine_code_is_what_float64_says() -> None:
    exact = wide(CopyingSeq2Seq(vocab=V, width=W))
    model = tree.map(lambda x: x.astype(np.float32), exact)
    made = rg.compile(rg.value_and_grad(direct), model, *DATA, backend="native")
    right = rg.jit(rg.value_and_grad(direct))(exact, *DATA)
    for a, b in zip(tree.leaves(made(model, *DATA)), tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def test_targets_of_another_shape_are_refused() -> None:
    model = CopyingSeq2Seq(vocab=V, width=W)
    with pytest.raises(rg.errors.ShapeError, match=r"test_copying\.py.* a target for each"):
        model.nll(DATA[0], DATA[1], DATA[2][:, :5])
