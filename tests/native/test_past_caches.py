"""What no cache holds is written past the caches and read ahead: no bit changes for it."""

from __future__ import annotations

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen import c
from retrograde.compiler.plan import sweeps
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")


def normed(x, gain, bias):
    h = x - rnp.mean(x, axis=-1, keepdims=True)
    h = h / rnp.sqrt(rnp.mean(h * h, axis=-1, keepdims=True) + 1e-5)
    return h * gain + bias


def chain(x, gain, bias):
    return rnp.tanh(x * gain + bias) * x


def flat(x, gain, bias):
    return rnp.gelu(x) * x


def weights(x, gain, bias):
    return rnp.softmax(x * gain, axis=-1)


def both(function):
    def of(x, gain, bias, g):
        y, pullback = rg.vjp(lambda x: function(x, gain, bias), x)
        return (y, *pullback(g))

    of.__name__ = function.__name__
    return of


def ran(function, dtype, rows, width, threads, open_sizes):
    """The results for `rows` of `width`, and the source that made them."""
    rng = np.random.default_rng(rows * 1000 + width)
    arrays = [rng.standard_normal(s) for s in ((rows, width), (width,), (width,), (rows, width))]
    if dtype == "f16":
        arrays = [x.astype(np.float16) for x in arrays]
    else:
        arrays = [x.astype(np.float32 if dtype == "f32" else np.float64) for x in arrays]
    b, d = ("B", "D") if open_sizes else (rows, width)
    shapes = ((b, d), (d,), (d,), (b, d))
    compiled = rg.compile(
        both(function), *(rg.spec(dtype, *s) for s in shapes), backend="native", threads=threads,
        at={"B": 1 << 20, "D": 256} if open_sizes else None,
    )  # fmt: skip
    return [np.array(y) for y in compiled(*arrays)], compiled.source()


@pytest.mark.parametrize(
    ("function", "open_sizes"),
    [(normed, True), (weights, False), (weights, True), (chain, True), (flat, False)],
)
def test_no_bit_changes(function, open_sizes, monkeypatch):
    # 112: rows on whole lines, with a rest after whole runs of 32 and 64; 53: most rows begin
    # within a line.
    cases = [("f32", 300, 112, 1), ("f16", 331, 53, 2)]
    for dtype, *sizes in cases:
        near, plain = ran(function, dtype, *sizes, open_sizes)
        with monkeypatch.context() as patch:
            patch.setattr(sweeps, "FAR", 1024)
            patch.setattr(c, "FAR", 1024)
            far, source = ran(function, dtype, *sizes, open_sizes)
        assert "rg_stream(" in source
        assert ("rg_stream(" in plain) == open_sizes
        for a, b in zip(near, far, strict=True):
            np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def test_large_arrays():
    """At the size from which on it happens by itself, with one thread and two."""
    rows, width = sweeps.FAR // 4 // 256, 256
    one, source = ran(weights, "f32", rows, width, 1, True)
    two, _ = ran(weights, "f32", rows, width, 2, True)
    assert "rg_stream(" in source
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(one[0].sum(axis=1), 1, rtol=1e-5)


def test_small_plans_have_no_code_for_large_arrays():
    compiled = rg.compile(lambda x: rnp.tanh(x) * 2, rg.spec("f32", "B", 96), backend="native")
    assert "rg_stream(" not in compiled.source()


def test_in_place_stays_in_the_cache(monkeypatch):
    """Where a result takes the place of an operand, the lines of it are in the cache already."""
    monkeypatch.setattr(sweeps, "FAR", 1024)
    monkeypatch.setattr(c, "FAR", 1024)
    compiled = rg.compile(lambda x: rnp.tanh(x) * 2, rg.spec("f32", 64, 96), backend="native")
    assert "const i64 p0 = (u64)y0 != (u64)x0 && rg_on_line(y0);" in compiled.source()
    x = np.linspace(-3, 3, 64 * 96, dtype=np.float32).reshape(64, 96)
    np.testing.assert_allclose(compiled(x), np.tanh(x) * 2, rtol=1e-6)
