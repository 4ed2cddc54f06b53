"""Matrix products in C, built for each instruction set that this machine runs: beside float64, at
every edge, and with the same bits however the work is shared out."""

from __future__ import annotations

import ctypes
import mmap
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.codegen.csource import part

Array = npt.NDArray[Any]

CC = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler is there")

FLAGS = "-O2 -fno-math-errno -fno-trapping-math -ffp-contract=off -fwrapv -std=gnu11 -fPIC -shared"
# How a build is asked for, and what the processor must be able to do.
BUILDS = {
    "native": ("-march=native", ""),
    "avx2": ("-march=x86-64 -mavx2 -mfma", "avx2"),
    "portable": ("-march=x86-64", "sse2"),
}
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
BLOCK = 512

ENTRIES = """
i64 nr_T(void) { return RG_NR_T; }
void pack_T(T *to, const T *b, i64 k, i64 n, i64 sk, i64 sn, i64 lo, i64 hi) {
    rg_pack_T(to, b, k, n, sk, sn, lo, hi);
}
void gemm_T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 k, i64 n, i64 row_lo,
            i64 row_hi, i64 lo, i64 hi, i64 chunk, i64 add) {
    rg_gemm_T(c, sc, a, sm, sk, b, k, n, row_lo, row_hi, lo, hi, chunk, (int)add);
}
void direct_T(T *c, i64 sc, const T *a, i64 sm, i64 sk, const T *b, i64 skb, i64 snb, i64 m, i64 n,
              i64 k, i64 add) {
    rg_gemm_direct_T(c, sc, a, sm, sk, b, skb, snb, m, n, k, (int)add);
}
/* 13 x 70 @ 70 x 96, as a generated caller would write it. */
void literal_T(T *c, const T *a, const T *b) {
    rg_gemm_T(c, 96, a, 70, 1, b, 70, 96, 0, 13, 0, 96 / RG_NR_T, 0, 0);
}
"""


class Library:
    """The entries of a build, for arrays of one dtype at a time."""

    def __init__(self, path: Path) -> None:
        self._dll = ctypes.CDLL(str(path))

    def columns(self, kind: str) -> int:
        return int(self._dll[f"nr_{kind}"]())

    def block(self, k: int) -> int:
        self._dll.block.restype = ctypes.c_int64
        return int(self._dll.block(ctypes.c_int64(k)))

    def call(self, name: str, *args: Any) -> None:
        self._dll[name](
            *(
                ctypes.c_void_p(x.ctypes.data) if isinstance(x, np.ndarray) else ctypes.c_int64(x)
                for x in args
            )
        )


@dataclass(frozen=True)
class Product:
    """`a @ b` for arrays of any strides, by panels or in place."""

    library: Library
    kind: str
    a: Array
    b: Array

    def panels(self, lo: int = 0, hi: int | None = None, out: Array | None = None) -> Array:
        (k, n), nr = self.b.shape, self.library.columns(self.kind)
        count = -(-n // nr)
        if out is None:
            out = np.full((count, k, nr), np.nan, DTYPES[self.kind])
        hi = count if hi is None else hi
        self.library.call(f"pack_{self.kind}", out, self.b, k, n, *_steps(self.b), lo, hi)
        return out

    def rows(
        self, c: Array, panels: Array, rows: tuple[int, int], of: tuple[int, int],
        add: bool = False, chunk: int = 0,
    ) -> None:  # fmt: skip
        k, n = self.b.shape
        steps = [*_steps(c)[:1], self.a, *_steps(self.a), panels, k, n]
        self.library.call(f"gemm_{self.kind}", c, *steps, *rows, *of, chunk, int(add))

    def packed(self, c: Array, add: bool = False, chunk: int = 0) -> None:
        panels = self.panels()
        self.rows(c, panels, (0, self.a.shape[0]), (0, len(panels)), add, chunk)

    def direct(self, c: Array, add: bool = False) -> None:
        (m, k), n = self.a.shape, self.b.shape[1]
        steps = (*_steps(c)[:1], self.a, *_steps(self.a), self.b, *_steps(self.b))
        self.library.call(f"direct_{self.kind}", c, *steps, m, n, k, int(add))


@pytest.fixture(scope="module", params=list(BUILDS))
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    flags, need = BUILDS[request.param]
    if need and platform.machine() not in {"x86_64", "AMD64"}:
        pytest.skip("instruction sets of x86")
    folder = tmp_path_factory.mktemp("gemm")
    if need and not _runs(need, folder):
        pytest.skip(f"this processor has no {need}")
    text = [part("base"), part("gemm"), "i64 block(i64 k) { return rg_gemm_block(k); }"]
    text += [ENTRIES.replace("_T", f"_{t}").replace("T ", f"{t} ") for t in DTYPES]
    return Library(_build("\n".join(text), folder / "gemm", f"{FLAGS} {flags} -Wall -Wextra"))


def _runs(feature: str, folder: Path) -> bool:
    source = f'int runs(void) {{ return !!__builtin_cpu_supports("{feature}"); }}'
    return bool(ctypes.CDLL(str(_build(source, folder / "probe", FLAGS))).runs())


def _build(source: str, stem: Path, flags: str) -> Path:
    text, out = stem.with_suffix(".c"), stem.with_suffix(".so")
    text.write_text(source, encoding="utf-8")
    command = [str(CC), *flags.split(), str(text), "-o", str(out), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[:4000]
    assert "warning" not in made.stderr, made.stderr[:4000]
    return out


def _steps(x: Array) -> list[int]:
    return [s // x.itemsize for s in x.strides]


def _laid(x: Array, layout: str) -> Array:
    """The same numbers in memory by rows, by columns, or with gaps both ways; never aligned."""
    rows, columns = x.shape
    space = np.full(3 * rows * columns * 2 + 1, np.nan, x.dtype)[1:]
    if layout == "rows":
        y = space[: rows * columns].reshape(rows, columns)
    elif layout == "columns":
        y = space[: rows * columns].reshape(columns, rows).T
    else:
        y = space.reshape(2 * rows, 3 * columns)[::2, ::3]
    y[...] = x
    return y


def _operands(
    kind: str, m: int, k: int, n: int, layouts: tuple[str, str] = ("rows", "rows"), seed: int = 0
) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    a, b = random.standard_normal((m, k)), random.standard_normal((k, n))
    of = DTYPES[kind]
    return _laid(a.astype(of), layouts[0]), _laid(b.astype(of), layouts[1])


def _guarded(kind: str, m: int, n: int) -> tuple[Array, Array]:
    """Random rows with guard zones around them, and the whole that they lie in."""
    whole = np.full((m + 4, n + 7), 77.25, DTYPES[kind])
    c = whole[2 : 2 + m, 3 : 3 + n]
    c[...] = np.random.default_rng(9).standard_normal((m, n))
    return c, whole


def _is_guarded(whole: Array) -> bool:
    edge = whole.copy()
    edge[2:-2, 3:-4] = 77.25
    return bool((edge == 77.25).all())


def _bound(a: Array, b: Array, blocks: int) -> Any:
    """What rounding can amount to: chains within a block, then the blocks one after the other."""
    eps = np.finfo(a.dtype).eps
    steps = 2 * min(a.shape[1], BLOCK) + blocks + 2
    return steps * eps * (np.abs(a.astype(np.longdouble)) @ np.abs(b.astype(np.longdouble)))


KINDS = pytest.mark.parametrize("kind", list(DTYPES))
LAYOUTS = st.sampled_from(["rows", "columns", "gaps"])
ROWS = st.integers(0, 14) | st.sampled_from([16, 23, 24, 25, 32, 37, 49, 73, 97])
DEPTHS = st.integers(0, 9) | st.sampled_from([31, 64, 127, 511, 512, 513, 1031])


def _around(nr: int) -> st.SearchStrategy[int]:
    near = [p * nr + d for p in (1, 2, 3) for d in (-1, 0, 1)]
    return st.integers(0, 7) | st.sampled_from([*near, nr // 2, 2 * nr - 3])


@KINDS
@given(data=st.data())
def test_products_beside_float64(library: Library, kind: str, data: st.DataObject) -> None:
    nr = library.columns(kind)
    m, k, n = data.draw(ROWS), data.draw(DEPTHS), data.draw(_around(nr))
    layouts, add = data.draw(st.tuples(LAYOUTS, LAYOUTS)), data.draw(st.booleans())
    a, b = _operands(kind, m, k, n, layouts, seed=m + 3 * k + 7 * n)
    c, whole = _guarded(kind, m, n)
    start = c.copy()
    Product(library, kind, a, b).packed(c, add)
    want = a.astype(np.longdouble) @ b.astype(np.longdouble) + (start if add else 0)
    room = _bound(a, b, -(-k // BLOCK)) + 4 * np.finfo(c.dtype).eps * np.abs(start)
    assert (np.abs(c - want) <= room).all()
    assert _is_guarded(whole)

    again, whole = _guarded(kind, m, n)
    Product(library, kind, a, b).direct(again, add)
    assert again.tobytes() == c.tobytes()
    assert _is_guarded(whole)


@KINDS
@given(data=st.data())
def test_any_share_of_rows_and_panels_has_the_same_bits(
    library: Library, kind: str, data: st.DataObject
) -> None:
    nr = library.columns(kind)
    m, k, n = data.draw(st.integers(2, 60)), data.draw(DEPTHS), data.draw(st.integers(1, 4 * nr))
    product = Product(library, kind, *_operands(kind, m, k, n, (data.draw(LAYOUTS), "rows")))
    whole, _ = _guarded(kind, m, n)
    product.packed(whole, add=True)
    count = -(-n // nr)
    row, panel = data.draw(st.integers(0, m)), data.draw(st.integers(0, count))
    c, guard = _guarded(kind, m, n)
    panels = product.panels(panel, count, product.panels(0, panel))
    for rows in ((row, m), (0, row)):
        for of in ((0, panel), (panel, count)):
            before = c.copy()
            product.rows(c, panels, rows, of, add=True)
            before[slice(*rows), of[0] * nr : of[1] * nr] = c[slice(*rows), of[0] * nr : of[1] * nr]
            assert before.tobytes() == c.tobytes(), "an element that was not asked for has changed"
    assert c.tobytes() == whole.tobytes()
    assert _is_guarded(guard)


@KINDS
@pytest.mark.parametrize("k", [513, 1031, 2000])
def test_a_sum_over_k_is_made_of_blocks(library: Library, kind: str, k: int) -> None:
    a, b = _operands(kind, 13, k, 41, ("columns", "rows"))
    whole, chunks = np.zeros((13, 41), a.dtype), np.zeros((13, 41), a.dtype)
    Product(library, kind, a, b).packed(whole)
    size = library.block(k)
    assert size <= BLOCK
    for lo in range(0, k, size):
        Product(library, kind, a[:, lo : lo + size], b[lo : lo + size]).packed(chunks, add=lo > 0)
    assert whole.tobytes() == chunks.tobytes()


@KINDS
@given(data=st.data())
def test_a_sum_in_chunks_may_be_parted_between_any_two(
    library: Library, kind: str, data: st.DataObject
) -> None:
    m, n = data.draw(ROWS.filter(bool)), data.draw(_around(library.columns(kind)).filter(bool))
    k, chunk = data.draw(DEPTHS), data.draw(st.integers(1, 40) | st.sampled_from([256, 600]))
    at, reverse = data.draw(st.integers(0, -(-k // chunk))) * chunk, data.draw(st.booleans())
    a, b = _operands(kind, m, k, n, (data.draw(LAYOUTS), "rows"), seed=k + chunk)
    sign = -chunk if reverse else chunk
    whole, guard = _guarded(kind, m, n)
    parts, start = whole.copy(), whole.copy()
    Product(library, kind, a, b).packed(whole, True, sign)
    assert _is_guarded(guard)
    first = slice(max(0, k - at), k) if reverse else slice(0, at)
    rest = slice(0, max(0, k - at)) if reverse else slice(at, k)
    for rows in (first, rest):
        Product(library, kind, a[:, rows], b[rows]).packed(parts, True, sign)
    assert whole.tobytes() == parts.tobytes()
    room = _bound(a, b, -(-k // chunk)) + (4 + k) * np.finfo(a.dtype).eps * np.abs(start)
    want = a.astype(np.longdouble) @ b.astype(np.longdouble) + start
    assert (np.abs(whole - want) <= room).all()


def test_a_long_sum_stays_accurate(library: Library) -> None:
    k = 1 << 18
    a, b = np.full((1, k), 0.1, np.float32), np.full((k, 1), 1, np.float32)
    c = np.zeros((1, 1), np.float32)
    Product(library, "f32", a, b).direct(c)
    assert abs(c[0, 0] / (k * float(np.float32(0.1))) - 1) < 1e-5
    one_chain = np.cumsum(a[0], dtype=np.float32)[-1]
    assert abs(one_chain / (k * float(np.float32(0.1))) - 1) > 1e-4


@KINDS
@pytest.mark.parametrize("m", [1, 3, 9, 29])
def test_nan_and_infinity_travel_to_their_row_and_column(
    library: Library, kind: str, m: int
) -> None:
    n = 2 * library.columns(kind) + 5
    a, b = _operands(kind, m, 19, n, ("columns", "rows"))
    a[m // 2, 7] = np.nan
    b[3, n - 1] = np.inf
    for entry in ("packed", "direct"):
        c, whole = _guarded(kind, m, n)
        getattr(Product(library, kind, a, b), entry)(c)
        want = np.zeros((m, n), bool)
        want[m // 2], want[:, n - 1] = True, True
        assert (~np.isfinite(c) == want).all()
        others = np.arange(m) != m // 2
        assert (c[others, n - 1] == np.copysign(np.inf, a[others, 3])).all()
        assert np.isnan(c[m // 2]).all()
        assert _is_guarded(whole)


@KINDS
def test_panels_hold_columns_side_by_side_and_zeros(library: Library, kind: str) -> None:
    nr = library.columns(kind)
    for n in (1, nr - 1, nr, 2 * nr + 3):
        for layout in ("rows", "columns", "gaps"):
            b = _operands(kind, 1, 11, n, ("rows", layout))[1]
            want = np.zeros((11, -(-n // nr) * nr), b.dtype)
            want[:, :n] = b
            got = Product(library, kind, b[:0], b).panels()
            assert (got == want.reshape(11, -1, nr).swapaxes(0, 1)).all()


@KINDS
def test_literal_strides_and_extents_have_the_same_bits(library: Library, kind: str) -> None:
    a, b = _operands(kind, 13, 70, 96)
    product = Product(library, kind, a, b)
    c, literal = np.zeros((13, 96), a.dtype), np.zeros((13, 96), a.dtype)
    product.packed(c)
    library.call(f"literal_{kind}", literal, a, product.panels())
    assert literal.tobytes() == c.tobytes()


@pytest.fixture
def end_of_memory() -> Iterator[Any]:
    """`place(x)`: a copy of x with nothing readable behind its last element."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mprotect"):
        pytest.skip("no mprotect")
    kept = []

    def place(x: Array) -> Array:
        size = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        space = mmap.mmap(-1, size + mmap.PAGESIZE)
        start = np.frombuffer(space, np.uint8).ctypes.data
        assert libc.mprotect(ctypes.c_void_p(start + size), mmap.PAGESIZE, 0) == 0
        kept.append(space)
        flat = np.frombuffer(space, x.dtype, x.size, size - x.nbytes)
        flat[:] = x.reshape(-1)
        return flat.reshape(x.shape)

    yield place


@KINDS
@pytest.mark.parametrize("m", [1, 4, 13, 50])
def test_nothing_is_read_or_written_behind_the_operands(
    library: Library, kind: str, m: int, end_of_memory: Any
) -> None:
    n = library.columns(kind) + 5
    for turned in (False, True):
        a, b = _operands(kind, m, 37, n)
        at = end_of_memory(a.T.copy()).T if turned else end_of_memory(a)
        product = Product(library, kind, at, end_of_memory(b))
        c, d = (end_of_memory(np.zeros((m, n), a.dtype)) for _ in range(2))
        panels = product.panels()
        product.rows(c, end_of_memory(panels), (0, m), (0, len(panels)))
        product.direct(d)
        assert c.tobytes() == d.tobytes()
        assert (np.abs(c - a.astype(np.longdouble) @ b) <= _bound(a, b, 1)).all()
