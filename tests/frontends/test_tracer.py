"""Tracer: the methods and operators of a NumPy array, on values without numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import TensorType
from retrograde.tracer import Tracer


def data(shape: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.1, 0.9, shape)


# Written once, run on NumPy's array and on a traced one.
METHODS: list[Callable[[Any], Any]] = [
    lambda x: x.T,
    lambda x: x.mT,
    lambda x: x.real,
    lambda x: x.conj(),
    lambda x: x.astype(np.float32),
    lambda x: x.astype("int32", copy=False),
    lambda x: x.copy(),
    lambda x: x.reshape(6, 4),
    lambda x: x.reshape((4, -1)),
    lambda x: x.reshape(-1),
    lambda x: x.transpose(),
    lambda x: x.transpose(None),
    lambda x: x.transpose(1, 0, 2),
    lambda x: x.transpose((2, 0, 1)),
    lambda x: x.swapaxes(0, -1),
    lambda x: x.ravel(),
    lambda x: x.flatten(),
    lambda x: x[None, :, :1].squeeze(),
    lambda x: x[:, :1].squeeze(1),
    lambda x: x.repeat(2, axis=1),
    lambda x: x.diagonal(0, 1, 2),
    lambda x: x.sum(),
    lambda x: x.sum(1),
    lambda x: x.sum(axis=(0, 2), keepdims=True),
    lambda x: x.sum(0, np.float32),
    lambda x: x.prod(axis=-1),
    lambda x: x.mean(axis=1, keepdims=True),
    lambda x: x.var(axis=1, ddof=1),
    lambda x: x.std(),
    lambda x: x.max(axis=0),
    lambda x: x.min(),
    lambda x: (x > 0.5).any(axis=1),
    lambda x: (x > 0.05).all(),
    lambda x: x.argmax(axis=1),
    lambda x: x.argmin(),
    lambda x: x.argsort(axis=1),
    lambda x: x.cumsum(axis=1),
    lambda x: x.cumprod(),
    lambda x: x.trace(),
    lambda x: x.round(1),
    lambda x: x.clip(0.3, 0.6),
    lambda x: x.clip(max=0.5),
    lambda x: x.dot(np.ones((4, 2))),
    lambda x: x.take([0, 1], axis=1),
    lambda x: x.sum(out=None),
    lambda x: [row for row in x],
    lambda x: list(reversed(x)),
    lambda x: len(x) + len(x[0]),
    lambda x: [x.ndim, x.size, x.itemsize, x.nbytes, *x.shape],
    lambda x: +x - -x,
    lambda x: abs(x - 0.5),
    lambda x: ~(x > 0.5) | (x < 0.2) ^ (x > 0.8) & (x != 0.1),
    lambda x: (x // 0.3) * (x % 0.3) / (1.5 - x) ** 2,
    lambda x: divmod(x, 0.3)[1] + divmod(1.0, x)[0],
    lambda x: 2**x + x**0.5 + x**-1 + x**3,
    lambda x: x @ np.ones((4, 3)) + np.ones((5, 1, 3, 3)) @ x[..., :3],
    lambda x: 1 - x + 1 / x + 2 // x + 2 % x,
    lambda x: (x <= 0.5) == (x >= 0.5),
    lambda x: np.ones(4) * x + np.float32(2) * x - np.float64(1) / x,
    lambda x: np.float64(0.5) < x,
    lambda x: (np.ones((3, 4)) < x) | (np.ones(4) == x),
    lambda x: np.ones((2, 3, 4)) @ x.transpose(0, 2, 1),
    lambda x: (x * 10).astype("int32") << 2 >> 1,
    lambda x: 5 // (x * 10).astype("int32").clip(1),
]


@pytest.mark.parametrize("call", METHODS, ids=range(len(METHODS)))
def test_methods_and_operators(run: Any, call: Callable[[Any], Any]) -> None:
    x = data((2, 3, 4))
    want = call(x)
    ours = run(call, x)
    if isinstance(want, list):
        assert len(ours) == len(want)
    for a, b in zip(*(v if isinstance(v, list) else [v] for v in (ours, want)), strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_allclose(a, b, rtol=1e-6 if np.result_type(b) == np.float32 else 1e-12)


def test_reshape_finds_symbolic_sizes(trace: Any) -> None:
    B, T = dims.dim("B"), dims.dim("T")

    def f(x: Any) -> Any:
        b, t, d = x.shape
        assert x.reshape(b, t, 2, -1).shape == (b, t, 2, 3)
        assert x.reshape(-1, d).shape == (b * t, d)
        assert x.reshape(-1, t).shape == (b * d, t)
        assert x.reshape(b * t * d).shape == (b * t * d,)
        assert x.reshape(b, -1).T.shape == (t * d, b)
        assert x.size == b * t * d and x.nbytes == 4 * b * t * d
        return x

    trace(f, [TensorType(dtypes.f32, (B, T, 6))])


def test_sizes_compute_like_numbers(run: Any) -> None:
    B, T = dims.dim("B"), dims.dim("T")
    x = np.ones((2, 5), np.float32)
    ours = run(
        lambda x: [x / x.shape[1], x * np.sqrt(x.shape[1]), x.shape[0] - x, x + rnp.sqrt(x.size)],
        x,
        shapes=[(B, T)],
    )
    want = [x / 5, x * np.float32(np.sqrt(5)), 2 - x, x + np.float32(np.sqrt(10))]
    for a, b in zip(ours, want, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_operators_that_assign_rebind(run: Any) -> None:
    def f(x: Any) -> Any:
        y = x
        y += 1
        y *= 2
        y -= x
        y /= 2
        y **= 2
        return [x, y]

    x = data((3,))
    ours = run(f, x)
    np.testing.assert_array_equal(ours[0], x)
    np.testing.assert_allclose(ours[1], (((x + 1) * 2 - x) / 2) ** 2)


def test_iterating_unpacks_a_static_axis(run: Any) -> None:
    def f(x: Any) -> Any:
        q, k, v = x
        return q + 2 * k + 3 * v + sum(a.sum() for a in x)

    x = data((3, 4))
    np.testing.assert_allclose(run(f, x), x[0] + 2 * x[1] + 3 * x[2] + x.sum())


def test_arrays_of_the_closure_are_inputs_and_seen_once(trace: Any) -> None:
    w, v = data((4, 5)), data(5)
    graph, captured, _ = trace(lambda x: (x @ w + v) * v + x @ w, [TensorType(dtypes.f64, (3, 4))])
    assert len(captured) == 2 and captured[0] is w and captured[1] is v
    assert len(graph.inputs) == 3
    assert not any(n.op.name == "constant" for n in graph.nodes)


def test_nodes_carry_the_line_that_wrote_them(trace: Any) -> None:
    def f(x: Any) -> Any:
        y = np.exp(x)
        z = y.mean(axis=0)
        return rnp.softmax(z * 2)

    graph, _, _ = trace(f, [TensorType(dtypes.f32, (3, 4))])
    first = f.__code__.co_firstlineno
    assert {n.loc.file for n in graph.nodes} == {__file__}
    lines = {n.op.name: n.loc.line - first for n in graph.nodes if n.op.name != "constant"}
    assert lines == {"exp": 1, "sum": 2, "div": 2, "mul": 3, "softmax": 3}


def test_what_a_traced_value_shows(trace: Any) -> None:
    def f(x: Any) -> Any:
        assert isinstance(x, Tracer)
        assert repr(x) == str(x) == f"{x}" == "Tracer(f32[3,T])"
        assert isinstance(x + 1, Tracer) and isinstance(x.shape[1] * 1.0, Tracer)
        assert round(x[0, 0], 2).shape == ()
        return x

    trace(f, [TensorType(dtypes.f32, (3, dims.dim("T")))])


def test_promotion_table() -> None:
    table = dtypes.promotion_table()
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    header = [cell.strip("*` ") for cell in rows[0]]
    assert header == [str(t) for t in dtypes.ALL] + ["True", "1", "1.5"]
    cells = {row[0].strip("*"): dict(zip(header, row[1:], strict=True)) for row in rows[2:]}
    assert cells["f32"]["f64"] == "f64" and cells["f16"]["bf16"] == "f32"
    assert cells["i8"]["u8"] == "i16" and cells["i64"]["u64"] == "-"
    assert cells["i32"]["1.5"] == "f32" and cells["f16"]["1.5"] == "f16"
    assert cells["bool"]["1"] == "i32" and cells["u8"]["1"] == "u8"
    for a in dtypes.ALL:
        for b in dtypes.ALL:
            assert cells[a.name][b.name] == cells[b.name][a.name]


@pytest.mark.parametrize("a", [t for t in dtypes.ALL if t is not dtypes.bf16], ids=str)
@pytest.mark.parametrize("b", [t for t in dtypes.ALL if t is not dtypes.bf16], ids=str)
def test_promotion_follows_the_table(run: Any, a: dtypes.DType, b: dtypes.DType) -> None:
    if dtypes.u64 in (a, b) and "int" in (a.kind, b.kind):
        with pytest.raises(DTypeError, match="no common integer type"):
            dtypes.promote(a, b)
        return
    x, y = np.ones(3, a.numpy), np.ones(3, b.numpy)
    ours = run(lambda x, y: [x + y, rnp.where(x > 0, x, y), rnp.stack([x, y])], x, y)
    assert {o.dtype for o in ours} == {dtypes.promote(a, b).numpy}
    if "f" not in a.name + b.name:  # NumPy goes to wider floats where integers meet floats
        assert ours[0].dtype == np.result_type(a.numpy, b.numpy)
