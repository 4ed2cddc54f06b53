"""Products by a BLAS: the numbers of float64, bits that depend on no threads, and a user's own BLAS
that notices nothing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import DeviceError
from retrograde.runtime.native import blas
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = [
    pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler"),
    pytest.mark.skipif(blas.find()[0] is None, reason="there is no OpenBLAS in NumPy or SciPy"),
]

Array = npt.NDArray[Any]
NUMPY = {"f32": np.float32, "f64": np.float64}
DTYPES = pytest.mark.parametrize("dtype", list(NUMPY))


@pytest.fixture(autouse=True)
def by_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_BLAS", "blas")


def arrays(dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(len(shapes))
    return [rng.standard_normal(shape).astype(NUMPY[dtype]) for shape in shapes]


def specs(dtype: str, *shapes: tuple[Any, ...]) -> list[Any]:
    return [rg.spec(dtype, *shape) for shape in shapes]


def near(got: Array, want: Array, k: int) -> None:
    room = 4 * k**0.5 * np.finfo(got.dtype).eps * max(np.abs(want).max(initial=0), 1)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= room


FORMS: dict[str, tuple[str, str, str]] = {
    "plain": ("mk", "kn", "mn"), "left turned": ("km", "kn", "mn"),
    "right turned": ("mk", "nk", "mn"), "both turned": ("km", "nk", "mn"),
    "result turned": ("mk", "kn", "nm"), "batched": ("bmk", "bkn", "bmn"),
    "one for all": ("bmk", "kn", "bmn"), "heads": ("bmhk", "bnhk", "bhmn"),
    "heads back": ("bhmn", "bnhk", "bmhk"),
}  # fmt: skip


@DTYPES
@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_float64(dtype: str, form: str) -> None:
    left, right, out = FORMS[form]
    text = f"{left},{right}->{out}"
    compiled = rg.compile(
        lambda x, y: rnp.einsum(text, x, y),
        *specs(dtype, tuple(c.upper() for c in left), tuple(c.upper() for c in right)),
        backend="native",
    )
    assert "rt.products(" in compiled.source() and "rt.panels(" not in compiled.source()
    for m, k, n in [(7, 5, 3), (1, 9, 4), (6, 1, 5), (4, 9, 1), (70, 300, 41), (300, 37, 290)]:
        of = {"m": m, "k": k, "n": n, "b": 2, "h": 3}
        a, b = arrays(dtype, *(tuple(of[c] for c in side) for side in (left, right)))
        want = np.einsum(text, a.astype(np.float64), b.astype(np.float64))
        near(compiled(a, b), want, max(of[c] for c in set(left) & set(right) - set(out)))


@DTYPES
def test_operands_and_results_with_gaps(dtype: str) -> None:
    def f(x: Any, w: Any) -> Any:
        parts = x[:, 3:40] @ w[:, 1:24], x[:, ::2] @ w[:31], x[:5].T @ w[:5]
        return [rnp.concatenate([parts[0], parts[1][:, 2:]], axis=1), parts[2]]

    x, w = arrays(dtype, (19, 62), (37, 24))
    got = rg.compile(f, *specs(dtype, (19, 62), (37, 24)), backend="native")(x, w)
    for have, want in zip(got, _gaps(x, w), strict=True):
        near(have, want, 62)


def _gaps(x: Array, w: Array) -> list[Array]:
    x, w = x.astype(np.float64), w.astype(np.float64)
    parts = x[:, 3:40] @ w[:, 1:24], x[:, ::2] @ w[:31], x[:5].T @ w[:5]
    return [np.concatenate([parts[0], parts[1][:, 2:]], axis=1), parts[2]]


@DTYPES
@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (4, 3, 0)])
def test_sizes_of_zero(dtype: str, shape: tuple[int, ...]) -> None:
    m, k, n = shape
    call = rg.compile(
        lambda x, y: x @ y, rg.spec(dtype, rg.dim("M", min=0), rg.dim("K", min=0)),
        rg.spec(dtype, rg.dim("K", min=0), rg.dim("N", min=0)), backend="native",
    )  # fmt: skip
    got = call(*arrays(dtype, (m, k), (k, n)))
    assert got.shape == (m, n) and not got.any()


def step(dtype: str, threads: int | None) -> Any:
    def loss(ws: Any, x: Any, y: Any) -> Any:
        h = x
        for w in ws:
            h = rnp.tanh(h @ w)
        s = rnp.einsum("btd,bsd->bts", h, h)
        return rnp.sum((rnp.einsum("bts,bsd->btd", s, h) - y) ** 2)

    each = rg.spec(dtype, "B", "T", 40)
    return rg.compile(
        rg.value_and_grad(loss), specs(dtype, (40, 150), (150, 40)), each, each,
        backend="native", threads=threads,
    )  # fmt: skip


def data(dtype: str, rows: int, length: int) -> tuple[list[Array], Array, Array]:
    w1, w2, x, y = arrays(dtype, (40, 150), (150, 40), (rows, length, 40), (rows, length, 40))
    return [w1 / 8, w2 / 8], x, y


@DTYPES
def test_the_bits_depend_on_no_number_of_threads(dtype: str) -> None:
    found = []
    for threads in (1, 2, 3, 2):
        run = step(dtype, threads)
        for rows, length in ((5, 37), (1, 300)):
            value, grads = run(*data(dtype, rows, length))
            found.append([x.tobytes() for x in (value, *grads)])
    assert all(found[i] == found[i % 2] for i in range(len(found)))


@DTYPES
def test_gradients_are_those_of_compiled_kernels(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = step(dtype, None)(*data(dtype, 3, 50))
    monkeypatch.setenv("RETROGRADE_BLAS", "own")
    run = step(dtype, None)
    assert "rt.products(" not in run.source()
    want = run(*data(dtype, 3, 50))
    rel = 1e-4 if dtype == "f32" else 1e-12
    np.testing.assert_allclose(got[0], want[0], rtol=rel)
    for a, b in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=rel, atol=rel * np.abs(b).max())


def test_loops_keep_compiled_kernels() -> None:
    def f(w: Any, h: Any, xs: Any) -> Any:
        return rg.scan(lambda h, x: (rnp.tanh(x + h @ w), None), h, xs @ w)[0]

    call = rg.compile(
        f, *specs("f32", (12, 12), ("B", 12), ("T", "B", 12)), backend="native"
    )  # fmt: skip
    assert call.source().count("rt.products(") == 1  # xs @ w, for all turns at once
    assert call.source().count("rt.blocks(") >= 1


def test_a_program_runs_where_there_is_no_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "products", dict)
    a, b = arrays("f64", (130, 70), (70, 45))
    call = rg.compile(lambda x, y: x @ y, *specs("f64", ("M", 70), (70, 45)), backend="native")
    near(call(a, b), a @ b, 70)


def test_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blas.preferred("portable")[0] == blas.DTYPES
    for vectors in ("AVX-512", "AVX2", "NEON"):
        assert blas.preferred(vectors)[0] == ()
    monkeypatch.setattr(blas, "_find", lambda place: (None, "nothing is there"))
    with pytest.raises(DeviceError, match=r"RETROGRADE_BLAS is blas.*nothing is there"):
        blas.dtypes()
    monkeypatch.setattr(blas, "preferred", lambda vectors: (blas.DTYPES, "short vectors"))
    monkeypatch.setenv("RETROGRADE_BLAS", "auto")
    assert blas.choice() == ((), "short vectors, but nothing is there")
    monkeypatch.setenv("RETROGRADE_BLAS", "mkl")
    with pytest.raises(DeviceError, match="'mkl': set it to auto, own or blas"):
        blas.dtypes()


@pytest.mark.parametrize("spelled", ["scipy.linalg.blas", "numpy"])
def test_sizes_of_32_and_of_64_bits(spelled: str) -> None:
    """SciPy's wheel brings an OpenBLAS with sizes of 32 bits, NumPy's one with 64."""
    __import__(spelled)
    folder = f"{spelled.partition('.')[0]}.libs"
    paths = [p["filepath"] for p in threadpool_info() if folder in p["filepath"]]
    if not paths:
        pytest.skip(f"the libraries of {spelled} are not those of a wheel")
    copied = blas._copied(paths[0])
    assert copied.products["f64"][1] == ("64_" in os.path.basename(paths[0]))
    assert copied.describe().startswith("OpenBLAS ")


# --- the user's own BLAS


def own_threads() -> list[int]:
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def while_running(run: Callable[[], Any], look: Callable[[], Any]) -> list[Any]:
    """What `look` sees from this thread while `run` runs in another one, again and again."""
    done, seen = threading.Event(), []

    def work() -> None:
        try:
            for _ in range(20):
                run()
        finally:
            done.set()

    other = threading.Thread(target=work)
    other.start()
    while not done.is_set():
        seen.append(look())
    other.join()
    return seen


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_the_threads_of_the_user_stay_what_they_are(threads: int | None) -> None:
    run = step("f64", threads)
    with threadpool_limits(2, user_api="blas"):
        before = own_threads()
        seen = while_running(lambda: run(*data("f64", 4, 60)), own_threads)
        assert len(seen) > 1 and all(now == before for now in seen)
        assert own_threads() == before


def test_limits_of_runs_that_overlap_are_taken_back() -> None:
    from retrograde.runtime.blas_threads import limited

    with threadpool_limits(3, user_api="blas"):
        before = own_threads()
        first, second = limited(1), limited(2)
        first.__enter__()
        assert set(own_threads()) == {1}
        second.__enter__()
        assert set(own_threads()) == {2}
        first.__exit__(None, None, None)  # which began first ends first
        second.__exit__(None, None, None)
        assert own_threads() == before


def test_the_copy_has_one_thread_and_stays_apart() -> None:
    made, _ = blas.find()
    assert made is not None
    prefix, suffix = blas._spelling(made.library)
    count = made.library[f"{prefix}openblas_get_num_threads{suffix}"]
    with threadpool_limits(2, user_api="blas"):
        assert count() == 1
    assert not any(os.path.basename(p["filepath"]).startswith("blas") for p in threadpool_info())
    original = ctypes.CDLL(made.origin)[f"{prefix}cblas_dgemm{suffix}"]
    assert ctypes.cast(original, ctypes.c_void_p).value != made.products["f64"][0]


def test_doctor_says_who_computes_products() -> None:
    from retrograde.cli.doctor import findings

    text = findings()
    assert "f32, f64 by BLAS but for loops; f16, bf16 by compiled kernels" in text
    assert "RETROGRADE_BLAS is blas" in text and "a copy of " in text


def test_a_forked_child_multiplies_as_its_parent() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    program = """
import os, sys, numpy as np, retrograde as rg
a = np.random.default_rng(0).standard_normal((200, 200))
call = rg.compile(lambda x: x @ x, rg.spec("f64", 200, 200), backend="native", threads=2)
first = call(a)
child = os.fork()
if not child:
    os._exit(0 if (call(a) == first).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == 0
