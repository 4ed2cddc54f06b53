"""Products of f16 and bf16: the bits of f32 products that are rounded once."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

Array = npt.NDArray[Any]
HALVES: dict[str, Any] = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
UNITS = {"f16": 2.0**-11, "bf16": 2.0**-8}  # half the distance of neighbours at 1
DTYPES = pytest.mark.parametrize("dtype", list(HALVES))
FORMS = {
    "plain": ("mk", "kn", "mn"), "left turned": ("km", "kn", "mn"),
    "right turned": ("mk", "nk", "mn"), "result turned": ("mk", "kn", "nm"),
    "batched": ("bmk", "bkn", "bmn"), "one for all": ("bmk", "kn", "bmn"),
    "heads": ("bmhk", "bnhk", "bhmn"),
}  # fmt: skip
# Around tiles, panels, the 48 rows and 512 steps that are in f32 at a time; and vectors.
SIZES = [(7, 5, 3), (49, 67, 31), (97, 513, 33), (50, 1031, 290), (1, 40, 9), (9, 40, 1), (3, 1, 4)]


def arrays(dtype: str, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(len(shapes[0]))
    return [rng.standard_normal(shape).astype(HALVES[dtype]) for shape in shapes]


def compiled(f: Any, dtype: str, *shapes: tuple[Any, ...], **options: Any) -> Any:
    return rg.compile(f, *(rg.spec(dtype, *s) for s in shapes), backend="native", **options)


@DTYPES
@pytest.mark.parametrize("form", FORMS)
def test_products_are_those_of_f32_rounded_once(dtype: str, form: str) -> None:
    left, right, out = FORMS[form]
    text = f"{left},{right}->{out}"
    shapes = tuple(left.upper()), tuple(right.upper())
    half, single = (
        compiled(lambda x, y: rnp.einsum(text, x, y), kind, *shapes) for kind in (dtype, "f32")
    )
    assert "rt.panels(" in half.source()
    for m, k, n in SIZES:
        of = {"m": m, "k": k, "n": n, "b": 2, "h": 3}
        a, b = arrays(dtype, *(tuple(of[c] for c in side) for side in (left, right)))
        got = half(a, b)
        want = single(a.astype(np.float32), b.astype(np.float32))
        assert got.dtype == a.dtype
        assert got.tobytes() == want.astype(a.dtype).tobytes()
        true = np.einsum(text, a.astype(np.float64), b.astype(np.float64))
        most = np.einsum(text, abs(a.astype(np.float64)), abs(b.astype(np.float64)))
        room = 1.001 * UNITS[dtype] * abs(true) + 2 * k * 2.0**-24 * most + 2.0**-25
        assert (abs(got.astype(np.float64) - true) <= room).all()


@DTYPES
@pytest.mark.parametrize("shapes", [((60,), (60, 9)), ((9, 60), (60,)), ((60,), (60,))])
def test_vectors(dtype: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    a, b = arrays(dtype, *shapes)
    got = compiled(lambda x, y: x @ y, dtype, *shapes)(a, b)
    true = a.astype(np.float64) @ b.astype(np.float64)
    most = abs(a.astype(np.float64)) @ abs(b.astype(np.float64))
    assert (abs(got - true) <= 1.001 * UNITS[dtype] * abs(true) + 1e-5 * most).all()


@DTYPES
def test_operands_and_results_with_gaps(dtype: str) -> None:
    def f(x: Any, w: Any) -> Any:
        parts = x[:, 3:40] @ w[:, 1:24], x[:, ::2] @ w[:31], x[:5].T @ w[:5]
        return [rnp.concatenate([parts[0], parts[1][:, 2:]], axis=1), parts[2]]

    x, w = arrays(dtype, (19, 62), (37, 24))
    got = compiled(f, dtype, (19, 62), (37, 24))(x, w)
    wide = compiled(f, "f32", (19, 62), (37, 24))(x.astype(np.float32), w.astype(np.float32))
    for have, want in zip(got, wide, strict=True):
        assert have.tobytes() == want.astype(x.dtype).tobytes()


@DTYPES
def test_a_loop_and_its_gradient_on_any_threads(dtype: str) -> None:
    def loss(w: Any, h: Any, xs: Any) -> Any:
        last, _ = rg.scan(lambda h, x: (rnp.tanh(x + h @ w), None), h, xs @ w)
        return rnp.sum(last.astype("f32") ** 2)

    shapes = (40, 40), ("B", 40), ("T", "B", 40)
    values = arrays(dtype, (40, 40), (9, 40), (6, 9, 40))
    values[0] = (values[0].astype(np.float32) / 8).astype(values[0].dtype)
    found = []
    for threads in (1, 2, 3):
        call = compiled(rg.value_and_grad(loss), dtype, *shapes, threads=threads)
        assert call.source().count("rt.panels(") >= 2
        value, grad = call(*values)
        found.append((value.tobytes(), grad.tobytes()))
    assert found[1:] == found[:-1]
    oracle = rg.compile(
        rg.value_and_grad(loss), *(rg.spec(dtype, *s) for s in shapes), backend="numpy"
    )
    want, slope = oracle(*values)
    assert value == pytest.approx(float(want), rel=20 * UNITS[dtype])
    room = 40 * UNITS[dtype] * np.abs(slope.astype(np.float32)).max()
    np.testing.assert_allclose(grad.astype("f4"), slope.astype("f4"), rtol=0, atol=room)


@DTYPES
def test_sums_do_not_stop_where_a_half_would(dtype: str) -> None:
    """A sum of ones in f16 stops at 2048, in bf16 at 256."""
    ones = np.ones((5, 4096), HALVES[dtype])
    got = compiled(lambda x: x @ x.T, dtype, (5, 4096))(ones)
    assert (got == 4096).all()
    infinite = compiled(lambda x: (x * 300) @ x.T, dtype, (5, 4096))(ones)
    assert np.isinf(infinite.astype(np.float32)).all() == (dtype == "f16")


@DTYPES
def test_nan_and_infinity_travel(dtype: str) -> None:
    a, b = arrays(dtype, (51, 70), (70, 37))
    a[3, 7], b[5, 11] = np.nan, np.inf
    got = compiled(lambda x, y: x @ y, dtype, (51, 70), (70, 37))(a, b).astype(np.float32)
    want = a.astype(np.float32) @ b.astype(np.float32)
    assert (np.isfinite(got) == np.isfinite(want)).all()
    assert (np.isnan(got) == np.isnan(want)).all()
