"""Random bits: the published vectors, and that a draw depends on its logical position alone."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.random import philox, philox_bits
from tests.compiler.ops.harness import run

Array = npt.NDArray[Any]

KEY = np.array([7, 2**32 - 5], np.uint32)


def block(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in plain integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p, q = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(q >> 32) ^ c[1] ^ k[0], q & 0xFFFFFFFF, (p >> 32) ^ c[3] ^ k[1], p & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


VECTORS = [  # of Random123, kat_vectors, philox4x32 with 10 rounds
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    assert block(counter, key) == words
    arrays = [np.array([c], np.uint64) for c in counter]
    found = philox(np, np.array(key, np.uint32), arrays, (1,))
    assert [int(w[0]) for w in found] == words


def bits(shape: tuple[int, ...], row: int = 0, key: Array = KEY) -> Array:
    found: Array = run("random_bits", key, np.asarray(row, np.int64), shape=shape)
    return found


@pytest.mark.parametrize("row", [0, 5, 2**32 - 2, 2**40 + 1])
def test_each_element_by_its_position(row: int) -> None:
    x = bits((4, 3, 3), row).reshape(4, 9)
    key = [int(k) for k in KEY]
    for i in range(4):
        for j in range(9):
            at = row + i
            words = block([j // 4, at & 0xFFFFFFFF, at >> 32, 0], key)
            assert int(x[i, j]) == words[j % 4]


def test_a_batch_in_parts_draws_the_same() -> None:
    whole = bits((10, 7))
    parts = [bits((n, 7), row) for row, n in ((0, 3), (3, 1), (4, 6))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_longer_row_starts_alike() -> None:
    np.testing.assert_array_equal(bits((5, 11))[:, :6], bits((5, 6)))


def test_large_draws_cross_blocks_alike() -> None:
    """Rows longer than one block of temporaries, and more rows than fit in one."""
    wide = bits((2, 150_001))
    np.testing.assert_array_equal(wide[1, 65_530:65_545], bits((1, 65_545), 1)[0, 65_530:])
    assert int(wide[1, 150_000]) == block([37_500, 1, 0, 0], [int(k) for k in KEY])[0]
    tall = bits((40_000, 3))
    np.testing.assert_array_equal(tall[16_380:16_390], bits((10, 3), 16_380))
    assert len(np.unique(wide)) > 0.9999 * wide.size


def test_shapes() -> None:
    one = bits(())
    assert one.shape == ()
    assert one == bits((1,))[0] == bits((1, 1))[0, 0]
    assert bits((0, 3)).shape == (0, 3)
    assert bits((3, 0)).shape == (3, 0)
    np.testing.assert_array_equal(bits((3,)), bits((3, 4))[:, 0])


def test_bits_are_even() -> None:
    x = bits((512, 256))
    ones = np.unpackbits(x.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(32 * x.size)
    uniform = x / 2.0**32
    assert abs(np.corrcoef(uniform[:, :-1].ravel(), uniform[:, 1:].ravel())[0, 1]) < 0.015
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < 0.015


def test_folding_makes_a_new_key() -> None:
    key = [int(k) for k in KEY]
    for number in (0, 1, 2**32 - 1, 2**40 + 3, -1):
        folded = run("random_fold", KEY, np.asarray(number, np.int64))
        assert folded.dtype == np.uint32
        assert folded.shape == (2,)
        words = block([number & 0xFFFFFFFF, (number >> 32) & 0xFFFFFFFF, 0, 1], key)
        assert [int(w) for w in folded] == words[:2]
    same = run("random_fold", KEY, np.asarray(9, np.uint32))
    np.testing.assert_array_equal(same, run("random_fold", KEY, np.asarray(9, np.int64)))
    keys = {tuple(run("random_fold", KEY, np.asarray(i, np.int64))) for i in range(200)}
    assert len(keys) == 200


def test_temporaries_are_bounded_and_out_is_used() -> None:
    out = np.empty((64, 40_000), np.uint32)
    tracemalloc.start()
    same = philox_bits(np, KEY, np.asarray(0), out.shape, out=out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert same is out
    assert peak < 2_000_000 < out.nbytes
    np.testing.assert_array_equal(out[63], bits((64, 40_000))[63])


def test_symbolic_shape() -> None:
    builder = Builder("f", Expr)
    with builder:
        key = builder.input(TensorType(dtypes.u32, (2,)))
        like = builder.input(TensorType(dtypes.f32, (dim("B"), dim("T"))))
        row = builder.constant(0, dtypes.i64)
        out = lookup("random_bits")(key, row, shape=like.shape)
    graph = builder.finish([out.value])
    for shape in ((1, 1), (3, 5)):
        found = evaluate(graph, [KEY, np.zeros(shape, np.float32)])[0]
        np.testing.assert_array_equal(found, bits(shape))


def test_bad_operands() -> None:
    with pytest.raises(DTypeError, match="key"):
        run("random_bits", np.zeros(2, np.int32), np.asarray(0), shape=(3,))
    with pytest.raises(DTypeError, match="key"):
        run("random_fold", np.zeros(3, np.uint32), np.asarray(0))
    with pytest.raises(DTypeError, match="first row"):
        run("random_bits", KEY, np.asarray(0.5), shape=(3,))
    with pytest.raises(ShapeError, match="not a scalar"):
        run("random_bits", KEY, np.zeros(3, np.int64), shape=(3,))
    with pytest.raises(DTypeError, match="u32"):
        run("random_bits", KEY, np.asarray(0), shape=(3,), dtype=dtypes.i32)
