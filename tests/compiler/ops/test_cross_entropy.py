"""A head and its loss as one op: beside the plain ops in float64, a few rows at a time, with rows
left out, at every edge of the sizes; what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops import cross_entropy
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import build, epsilon, numpy_dtype

Array = npt.NDArray[Any]
INF, NAN = math.inf, math.nan
EXTRAS = [(), ("bias",), ("kept",), ("bias", "kept")]


def operands(
    n: int, d: int, v: int, extras: tuple[str, ...], transposed: bool, dtype: str = "f64"
) -> list[Array]:
    rng = np.random.default_rng(n + 7 * d + 31 * v)
    kept = rng.uniform(size=n) < 0.6
    given = {"bias": rng.standard_normal(v), "kept": kept}
    targets = rng.integers(0, max(v, 1), n)
    targets[~kept] = -9 if "kept" in extras else 0
    arrays = [
        rng.standard_normal((n, d)), rng.standard_normal((v, d) if transposed else (d, v)), targets,
        *(given[name] for name in extras),
    ]  # fmt: skip
    return [x.astype(numpy_dtype(dtype)) if x.dtype.kind == "f" else x for x in arrays]


def decomposed(name: str, arrays: list[Array], attrs: dict[str, Any]) -> Graph:
    """The op as plain ops."""
    builder = Builder(name, Expr)
    op = lookup(name)
    assert op.decompose is not None
    with builder:
        inputs = [builder.input(TensorType(dtypes.dtype(x.dtype), x.shape)) for x in arrays]
        results = op.decompose({**op.defaults, **attrs}, *inputs)
    return builder.finish([e.value for e in results])


def close(found: list[Array], expected: list[Array], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = b[np.isfinite(b)]
        scale = float(np.max(np.abs(finite), initial=0.1))
        np.testing.assert_allclose(a, b, 0, tolerance * scale)


@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("extras", EXTRAS)
def test_values_and_gradients_are_those_of_the_plain_ops(
    extras: tuple[str, ...], transposed: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "ELEMENTS", 3 * 7)  # three rows at a time
    attrs = {"extras": extras, "transposed": transposed}
    arrays = operands(11, 5, 7, extras, transposed, dtype)
    graphs = [make("linear_cross_entropy", arrays, attrs) for make in (build, decomposed)]
    close(*(evaluate(g, arrays) for g in graphs), 8 * epsilon(dtype))
    rng = np.random.default_rng(1)
    seeds = [rng.uniform(0.5, 1.5, 11).astype(x.dtype) for x in evaluate(graphs[0], arrays)]
    wrt = tuple(i for i, x in enumerate(arrays) if x.dtype.kind not in "iub")
    for of in ((0,), (1,), (0, 1)):
        given = [*arrays, *(seeds[i] for i in of)]
        found = [evaluate(Backward(of, wrt)(g), given) for g in graphs]
        close(*found, 64 * epsilon(dtype))


@pytest.mark.parametrize(("n", "d", "v"), [(0, 3, 5), (4, 0, 5), (4, 3, 1), (1, 1, 2), (0, 0, 0)])
@pytest.mark.parametrize("extras", EXTRAS)
def test_edges_of_the_sizes(n: int, d: int, v: int, extras: tuple[str, ...]) -> None:
    arrays = operands(n, d, v, extras, False)
    graph = build("linear_cross_entropy", arrays, {"extras": extras})
    found = evaluate(graph, arrays)
    logits = arrays[0] @ arrays[1] + (arrays[3] if "bias" in extras else 0)
    kept = arrays[-1] if "kept" in extras else np.ones(n, bool)
    logits = np.where(kept[:, None], logits, 0)
    lse = scipy.special.logsumexp(logits, axis=1) if v else np.full(n, -INF)
    targets = np.where(kept, arrays[2], 0)
    close(found, [lse - logits[np.arange(n), targets], lse], 1e-14)
    grads = evaluate(Backward((0,), (0, 1))(graph), [*arrays, np.ones(n)])[2:]
    assert [g.shape for g in grads] == [(n, d), (d, v)]
    assert all(np.isfinite(g).all() for g in grads)


def test_a_row_that_is_left_out_counts_as_zeros_whatever_is_in_it() -> None:
    arrays = operands(6, 4, 9, ("bias", "kept"), True)
    left = ~arrays[-1]
    assert 0 < left.sum() < 6
    attrs = {"extras": ("bias", "kept"), "transposed": True}
    graph = Backward((0,), (0, 1, 3))(build("linear_cross_entropy", arrays, attrs))
    clean = evaluate(graph, [*arrays, np.ones(6)])
    arrays[0][left] = NAN
    arrays[2][left] = 10**9
    dirty = evaluate(graph, [*arrays, np.ones(6)])
    for a, b in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(clean[0][left], np.log(9))
    assert not clean[2][left].any()


def test_no_row_at_all_is_kept() -> None:
    arrays = operands(5, 4, 9, ("kept",), False)
    arrays[-1][:] = False
    graph = build("linear_cross_entropy", arrays, {"extras": ("kept",)})
    nll, _lse, dx, dw = evaluate(Backward((0,), (0, 1))(graph), [*arrays, np.ones(5)])
    np.testing.assert_allclose(nll, np.log(9))
    assert not dx.any() and not dw.any()


def test_infinities_and_nan_go_as_through_the_plain_ops() -> None:
    x, w = np.eye(5), np.random.default_rng(0).standard_normal((5, 6))
    w[0, 2], w[1, 3], w[2], w[3, 1] = INF, -INF, -INF, NAN
    arrays = [x + 0.0, w, np.array([0, 1, 2, 3, 4])]
    arrays[0][:, :] = np.where(x == 1, 1.0, 0.0)
    # Rows pick rows of w; 0 * inf elsewhere would be NaN, so each is asked for by itself.
    for row in range(5):
        one = [np.ones((1, 1)), w[row : row + 1], arrays[2][row : row + 1]]
        graphs = [make("linear_cross_entropy", one, {}) for make in (build, decomposed)]
        with np.errstate(all="ignore"):
            found = [evaluate(Backward((0,), (0, 1))(g), [*one, np.ones(1)]) for g in graphs]
        for a, b in zip(*found, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("target", [-1, 7, 10**6])
def test_a_target_beyond_the_classes(target: int) -> None:
    arrays = operands(4, 3, 7, (), False)
    arrays[2][2] = target
    with pytest.raises(DataError, match=f"target {target} is out of range for 7 classes"):
        evaluate(build("linear_cross_entropy", arrays, {}), arrays)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: np.ones((4, 2))}, ShapeError, r"\[n, d\] and \[d, v\]"),
        ({0: np.ones(4)}, ShapeError, r"\[n, d\] and \[d, v\]"),
        ({2: np.ones(4)}, DTypeError, "integers"),
        ({2: np.ones(3, int)}, ShapeError, "a target for each row"),
        ({3: np.ones(6)}, ShapeError, "one number for each of 7 classes"),
        ({3: np.ones(7, np.float32)}, DTypeError, "unequal dtypes"),
        ({4: np.ones(4)}, ShapeError, "a boolean for each"),
    ],
)
def test_misfits(change: dict[int, Array], error: type[Exception], message: str) -> None:
    arrays = operands(4, 3, 7, ("bias", "kept"), False)
    for i, x in change.items():
        arrays[i] = x
    with pytest.raises(error, match=message):
        build("linear_cross_entropy", arrays, {"extras": ("bias", "kept")})


def test_misfits_of_the_extras() -> None:
    arrays = operands(4, 3, 7, ("bias",), False)
    with pytest.raises(ShapeError, match="in this order"):
        build("linear_cross_entropy", arrays, {"extras": ("other",)})
    with pytest.raises(ShapeError, match="got 4 operands"):
        build("linear_cross_entropy", arrays, {})
