"""The tiled attention kernels against float64: lengths, masks, heads, strides, dropout, threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograde.compiler.ir.registry import lookup
from tests.native import attention_c
from tests.native.attention_c import Call

Array = npt.NDArray[Any]

pytestmark = pytest.mark.skipif(attention_c.compiler() is None, reason="there is no C compiler")

WIDTHS = {"native": ("-march=native",), "avx2": ("-mavx2", "-mfma"), "portable": ()}
LENGTHS = (0, 1, 2, 7, 13, 31, 63, 64, 65, 127, 128, 129, 131, 193)


def runs_here(name: str) -> bool:
    flags = Path("/proc/cpuinfo")
    words = flags.read_text().split() if flags.exists() else []
    return name != "avx2" or {"avx2", "fma"} <= set(words)


@pytest.fixture(scope="module", params=WIDTHS)
def lib(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not runs_here(request.param):
        pytest.skip("this processor has no AVX2")
    return attention_c.library(tmp_path_factory.mktemp(request.param), *WIDTHS[request.param])


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return attention_c.library(tmp_path_factory.mktemp("attention"), "-march=native")


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def as_rows(rng: np.random.Generator, b: int, h: int, t: int, d: int) -> Array:
    """[B, H, T, D] that lies as [B, T, H, D] in rows that hold something else as well."""
    return normal(rng, b, t, h, d + 3)[..., 2 : 2 + d].transpose(0, 2, 1, 3)


def check(lib: ctypes.CDLL, call: Call, rng: np.random.Generator, threads: int = 1) -> None:
    dout = as_rows(rng, *call.q.shape[:3], call.v.shape[3])
    out, lse = call.forward(lib, threads)
    gradients = call.backward(lib, dout, threads)
    for name, got, want in zip(
        ("out", "lse", "dq", "dk", "dv"), (out, lse, *gradients), call.truth(dout), strict=True
    ):
        close = 4e-6 if name in ("out", "lse") else 1.5e-5  # slopes are differences of two sums
        size = np.abs(want[np.isfinite(want)]).max(initial=1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=close * size, err_msg=name)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Call, int]:
    """Any attention; every predicate with its chance."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b, g, group = draw(st.sampled_from([(1, 1, 1), (2, 1, 3), (3, 2, 1), (1, 2, 2)]))
    t, s = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from(LENGTHS))
    d = draw(st.sampled_from((1, 5, 16, 17, 32, 40, 64)))
    e = draw(st.sampled_from((d, 1, 16, 19, 48)))
    h = g * group
    q = as_rows(rng, b, h, t, d)
    call = {"q": q, "k": as_rows(rng, b, g, s, d), "v": normal(rng, b, g, s, e)}
    more: dict[str, Any] = {"scale": float(rng.uniform(0.1, 0.6))}
    if draw(st.booleans()):
        more["high"] = draw(st.sampled_from((0, s - t, -3, 40)))
    if draw(st.booleans()):
        more["low"] = draw(st.sampled_from((-5, -64, s - t - 20, 3)))
    if draw(st.booleans()):
        more["lengths"] = rng.integers(0, s + 2, b).astype(np.int32)
    if draw(st.booleans()):
        more["query_segments"] = np.sort(rng.integers(0, 4, (b, t)).astype(np.int32))
        more["key_segments"] = np.sort(rng.integers(0, 4, (b, s)).astype(np.int32))
    kind = draw(st.sampled_from(("none", "whole", "shared", "keys", "blocks")))
    if kind != "none":
        mask = rng.random((b, h, t, s)) < 0.8
        if kind == "shared":
            mask = np.broadcast_to(mask[:1, :1], mask.shape)
        if kind == "keys":
            mask = np.broadcast_to(mask[:, :1, :1], mask.shape)
        if kind == "blocks":
            mask[:, :, :, : s // 2] = False
        more["mask"] = mask
    kind = draw(st.sampled_from(("none", "whole", "heads", "transposed")))
    if kind == "whole":
        more["bias"] = normal(rng, b, h, t, s)
    if kind == "heads":
        more["bias"] = np.broadcast_to(normal(rng, h, 1, s), (b, h, t, s))
    if kind == "transposed":
        more["bias"] = normal(rng, b, h, s, t).swapaxes(2, 3)
    if draw(st.booleans()):
        key = rng.integers(0, 2**32, 2, dtype=np.uint32)
        more["drop"] = (key, draw(st.sampled_from((0, 5, 2**40))), 0.75)
    more |= {"block": draw(st.sampled_from((64, 256, 1024)))}
    more |= {"parts": draw(st.sampled_from((1, 2, 3)))}
    return Call(**call, **more), draw(st.sampled_from((1, 2)))


@settings(max_examples=200, deadline=None)
@given(calls())
def test_any_attention(native: ctypes.CDLL, drawn: tuple[Call, int]) -> None:
    call, threads = drawn
    check(native, call, np.random.default_rng(9), threads)


def test_each_vector_width(lib: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    for t, s, d, e in ((1, 3, 4, 2), (67, 131, 16, 16), (130, 70, 32, 64), (66, 66, 128, 33)):
        call = Call(
            as_rows(rng, 2, 4, t, d), as_rows(rng, 2, 2, s, d), as_rows(rng, 2, 2, s, e),
            scale=d**-0.5, high=s - t, lengths=np.array([s, s - 1], np.int32), block=128, parts=2,
            drop=(np.array([3, 4], np.uint32), 7, 0.9),
        )  # fmt: skip
        check(lib, call, rng)


def test_bits_do_not_depend_on_threads(native: ctypes.CDLL) -> None:
    rng = np.random.default_rng(2)
    q, k, v, dout = (normal(rng, 2, 3, 197, 24) for _ in range(4))
    found = []
    for threads in (1, 2, 5):
        call = Call(q, k, v, 0.2, high=0, parts=2)
        found.append((*call.forward(native, threads), *call.backward(native, dout, threads)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_errors_are_those_of_numpy(native: ctypes.CDLL) -> None:
    """Against float64, over a long row: at most twice those of the op's reference in f32."""
    rng = np.random.default_rng(7)
    q, k, v, dout = (normal(rng, 1, 2, 1500, 32) for _ in range(4))
    call = Call(q, k, v, 0.2, high=0)
    out, lse = call.forward(native)
    mine = (out, lse, *call.backward(native, dout))
    attrs = {"scale": 0.2, "low": None, "high": 0, "extras": (), "keep": 1.0}
    theirs = lookup("flash_attention").evaluate(attrs, q, k, v)
    theirs += lookup("flash_attention_grad").evaluate(attrs, q, k, v, *theirs, dout)
    for name, a, b, truth in zip(
        ("out", "lse", "dq", "dk", "dv"), mine, theirs, call.truth(dout), strict=True
    ):
        errors = [float(np.sqrt(np.mean((x - truth) ** 2))) for x in (a, b)]
        assert errors[0] <= 2 * errors[1], (name, errors)


def test_rows_without_keys(native: ctypes.CDLL) -> None:
    rng = np.random.default_rng(3)
    q, k, v, dout = (normal(rng, 1, 1, n, 8) for n in (70, 5, 5, 70))
    call = Call(q, k, v, high=-65)  # the first 65 queries precede all keys
    out, lse = call.forward(native)
    dq, _, _ = call.backward(native, dout)
    assert not out[0, 0, :65].any() and np.isneginf(lse[0, 0, :65]).all()
    assert not dq[0, 0, :65].any() and dq[0, 0, 66:].all()
    nothing = Call(q, k[:, :, :0], v[:, :, :0])
    out, lse = nothing.forward(native)
    assert not out.any() and np.isneginf(lse).all()
    assert not nothing.backward(native, dout)[0].any()


def test_keys_that_are_ruled_out_are_not_read(native: ctypes.CDLL) -> None:
    rng = np.random.default_rng(4)
    q, k, v, dout = (normal(rng, 1, 2, 256, 16) for _ in range(4))
    segments = np.repeat(np.array([[1, 2]], np.int32), 128, 1)
    plain = Call(q[:, :, :128], k[:, :, :128], v[:, :, :128], 0.25, low=-40, high=0)
    want = (*plain.forward(native), *plain.backward(native, dout[:, :, :128]))
    k[:, :, 128:] = v[:, :, 128:] = np.nan
    for more in (
        {"lengths": np.array([128], np.int32)},
        {"query_segments": segments, "key_segments": segments},
        {"mask": np.broadcast_to(segments[:, None, None] == 1, (1, 2, 256, 256))},
    ):
        call = Call(q, k, v, 0.25, low=-40, high=0, **more)
        out, lse = call.forward(native)
        got = (out, lse, *call.backward(native, dout * (segments == 1)[:, None, :, None]))
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(b[:, :, :128], a)


def test_nan_and_large_numbers(native: ctypes.CDLL) -> None:
    rng = np.random.default_rng(5)
    q, k, v = (normal(rng, 1, 1, 100, 16) for _ in range(3))
    q[0, 0, 3] *= 1e4  # weights of one and zero
    q[0, 0, 50, 2] = np.nan
    q[0, 0, 70, 1] = np.inf
    call = Call(q, k, v)
    out, lse = call.forward(native)
    bad = np.isnan(out).all(-1)[0, 0]
    assert bad[[50, 70]].all() and bad.sum() == 2
    assert not np.isnan(np.delete(out, [50, 70], 2)).any()
    good = Call(q[:, :, :50], k, v)
    np.testing.assert_allclose(out[:, :, :50], good.truth(v[:, :, :50])[0], atol=1e-5)
    assert np.isnan(lse[0, 0, [50, 70]]).all()


def test_nothing_is_written_beside_the_results(native: ctypes.CDLL) -> None:
    rng = np.random.default_rng(6)
    q, dout = normal(rng, 1, 2, 69, 19), normal(rng, 1, 2, 69, 21)
    k, v = normal(rng, 1, 1, 70, 19), normal(rng, 1, 1, 70, 21)
    call = Call(q, k, v, 0.3, high=1, parts=2)
    call.forward(native)
    call.backward(native, dout)
    for name, shape, strides in (
        ("dk", k.shape, ("dkb", "dkh", "dkj")), ("dv", v.shape, ("dvb", "dvh", "dvj")),
        ("dq", q.shape, ("dqb", "dqh", "dqi")), ("out", dout.shape, ("ob", "oh", "oi")),
    ):  # fmt: skip
        around = np.full((*shape[:2], shape[2] + 2, shape[3] + 9), 7, np.float32)
        inner = around[:, :, 1:-1, 4:-5]
        call._put(name, inner, *strides)
        call._run(native, "forward", 2 * 2, 1)
        call._run(native, "backward", 2, 1)
        assert (inner != 7).any()
        inner[...] = 7
        assert (around == 7).all(), name


def test_sanitizers(tmp_path: Path) -> None:
    cc = attention_c.compiler()
    assert cc is not None
    asked = [cc, "-print-file-name=libasan.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no address sanitizer")
    code = f"""
from pathlib import Path
import numpy as np
from tests.native import attention_c, test_attention_c as t
lib = attention_c.library(
    Path({str(tmp_path)!r}), "-march=native", "-O0", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
rng = np.random.default_rng(0)
for n, s, d, e in ((1, 1, 1, 1), (65, 67, 17, 5), (64, 130, 32, 16)):
    q, k, v = t.normal(rng, 2, 2, n, d), t.normal(rng, 2, 1, s, d), t.normal(rng, 2, 1, s, e)
    key = np.array([1, 2], np.uint32)
    segments = [np.sort(rng.integers(0, 2, (2, m)).astype(np.int32)) for m in (n, s)]
    for more in (
        dict(), dict(high=s - n, low=s - n - 20), dict(lengths=np.array([s, 1], np.int32)),
        dict(query_segments=segments[0], key_segments=segments[1]),
        dict(mask=rng.random((2, 2, n, s)) < 0.5), dict(bias=t.normal(rng, 2, 2, n, s)),
        dict(drop=(key, 1, 0.5)),
    ):
        t.check(lib, t.Call(q, k, v, 0.4, parts=2, block=64, **more), rng)
print("clean")
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert ran.stdout.strip() == "clean", ran.stderr[-2000:]
