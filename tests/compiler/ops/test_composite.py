"""Composites: the reference, its decomposition and an independent formula agree, and so do the
gradient rule and the gradient of the decomposition; empty rows, NaN, and what is kept or merged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import Kind, all_ops, lookup
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from tests.compiler.ops.harness import build, epsilon, floats, gradient, numpy_dtype, run
from tests.compiler.ops.samples import SAMPLES, Sample

Array = npt.NDArray[Any]
B, T, V = dim("B"), dim("T"), dim("V")
INF, NAN = math.inf, math.nan

COMPOSITES = [op.name for op in all_ops() if op.kind is Kind.COMPOSITE]
CASES = [(name, s) for name in COMPOSITES for s in SAMPLES[name]]
IDS = [f"{name}-{i}" for name in COMPOSITES for i in range(len(SAMPLES[name]))]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def as_dtype(arrays: Sequence[Array], dtype: str) -> list[Array]:
    return [x.astype(numpy_dtype(dtype)) if x.dtype.kind == "f" else x for x in arrays]


def expanded(name: str, *operands: Any, **attrs: Any) -> Any:
    """The results by the decomposition."""
    arrays = [np.asarray(x) for x in operands]
    graph = Expand()(build(name, arrays, attrs))
    assert not any(n.op.kind is Kind.COMPOSITE for n in graph.nodes)
    results = evaluate(graph, arrays)
    return results[0] if len(results) == 1 else tuple(results)


def differentiated(graph: Graph) -> Graph:
    return Backward(floats(graph.outputs), floats(graph.inputs))(graph)


def close(found: Sequence[Array], expected: Sequence[Array], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        wide = np.asarray(b, np.float64)
        scale = float(np.max(np.abs(wide[np.isfinite(wide)]), initial=0.1))
        np.testing.assert_allclose(np.asarray(a, np.float64), wide, 0, tolerance * scale)


# --- every composite


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
@pytest.mark.parametrize(("name", "sample"), CASES, ids=IDS)
def test_reference_and_decomposition_agree(name: str, sample: Sample, dtype: str) -> None:
    operands = as_dtype(sample.operands(), dtype)
    graph = build(name, operands, sample.attrs)
    close(evaluate(Expand()(graph), operands), evaluate(graph, operands), 16 * epsilon(dtype))


@pytest.mark.parametrize("dtype", ["f64", "f32"])
@pytest.mark.parametrize(("name", "sample"), CASES, ids=IDS)
def test_the_gradient_is_that_of_the_decomposition(
    name: str, sample: Sample, dtype: str
) -> None:
    operands = as_dtype(sample.operands(), dtype)
    graph = build(name, operands, sample.attrs)
    rng = np.random.default_rng(5)
    seeds = [rng.uniform(0.5, 1.5, x.shape).astype(x.dtype) for x in evaluate(graph, operands)]
    own, decomposed = differentiated(graph), differentiated(Expand()(graph))
    found = evaluate(Expand()(own), [*operands, *seeds])
    close(found, evaluate(decomposed, [*operands, *seeds]), 64 * epsilon(dtype))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize(("name", "sample"), CASES, ids=IDS)
def test_gradients_of_halves_are_computed_in_f32(name: str, sample: Sample, dtype: str) -> None:
    operands = as_dtype(sample.operands(), dtype)
    wide = as_dtype([x.astype(np.float64) if x.dtype.kind not in "iub" else x for x in operands],
                    "f64")  # fmt: skip
    results = []
    for xs in (operands, wide):
        graph = build(name, xs, sample.attrs)
        seeds = [np.full(x.shape, 0.75, x.dtype) for x in evaluate(graph, xs)]
        results.append(evaluate(differentiated(graph), [*xs, *seeds])[len(graph.outputs) :])
    close([x.astype(np.float64) for x in results[0]], results[1], 8 * epsilon(dtype))


# --- softmax and its kin


@given(st.integers(0, 10_000))
def test_softmax_kin_against_scipy_with_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 5, rng.integers(1, 4)))
    axis = int(rng.integers(len(shape)))
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 3)
    x[rng.uniform(size=shape) < 0.4] = -INF
    empty = np.isneginf(x).all(axis, keepdims=True)
    with np.errstate(all="ignore"):
        softmax = np.where(empty, 0.0, scipy.special.softmax(x, axis))
        log_softmax = np.where(empty, -INF, scipy.special.log_softmax(x, axis))
        lse = scipy.special.logsumexp(x, axis)
    for how in (run, expanded):
        np.testing.assert_allclose(how("softmax", x, axis=axis), softmax, rtol=1e-12)
        found = how("log_softmax", x, axis=axis)
        np.testing.assert_allclose(found, log_softmax, rtol=1e-12, atol=1e-12)
        found = how("logsumexp", x, axes=(axis,), keepdims=False)
        np.testing.assert_allclose(found, lse, rtol=1e-12, atol=1e-12)
    for name in ("softmax", "log_softmax"):
        (g,) = gradient(name, x, axis=axis)
        assert np.isfinite(g).all()
    (g,) = gradient("logsumexp", x, axes=(axis,), keepdims=False)
    np.testing.assert_allclose(g, softmax, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("how", [run, expanded])
def test_empty_rows_nan_and_infinity(how: Any) -> None:
    x = np.array([[-INF, -INF, -INF], [0.0, NAN, 1.0], [1e4, 1e4, -INF], [-1e4, -1e4, -INF]])
    out = how("softmax", x, axis=1)
    np.testing.assert_array_equal(out[[0, 2, 3]], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    assert np.isnan(out[1]).all()
    log = how("log_softmax", x, axis=1)
    assert np.isneginf(log[0]).all() and np.isnan(log[1]).all()
    lse = how("logsumexp", x, axes=(1,), keepdims=False)
    assert np.isneginf(lse[0]) and np.isnan(lse[1])
    assert how("logsumexp", np.array([0.0, INF]), axes=(0,), keepdims=False) == INF


@pytest.mark.parametrize("how", [run, expanded])
def test_rows_without_elements(how: Any) -> None:
    assert how("softmax", np.zeros((3, 0)), axis=1).shape == (3, 0)
    assert how("softmax", np.zeros((0, 3)), axis=1).shape == (0, 3)
    assert how("log_softmax", np.zeros((3, 0)), axis=1).shape == (3, 0)
    lse = how("logsumexp", np.zeros((3, 0)), axes=(1,), keepdims=True)
    np.testing.assert_array_equal(lse, np.full((3, 1), -INF))


def test_a_hand_written_softmax_keeps_its_nan() -> None:
    builder = Builder("by hand", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (2, 3)))
        e = lookup("exp")(x - lookup("max")(x, axes=(1,), keepdims=True))
        y = e / lookup("sum")(e, axes=(1,), keepdims=True)
    (out,) = evaluate(builder.finish([y.value]), [np.array([[-INF] * 3, [0.0] * 3])])
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], 1 / 3)


# --- token_nll


@pytest.mark.parametrize("how", [run, expanded])
def test_token_nll_against_scipy(how: Any) -> None:
    logits, targets = 5 * numbers(2, 3, 7), np.array([[0, 6, 3], [3, 3, 1]], np.int64)
    nll, lse = how("token_nll", logits, targets)
    expected = -np.take_along_axis(scipy.special.log_softmax(logits, -1), targets[..., None], -1)
    np.testing.assert_allclose(nll, expected[..., 0], rtol=1e-12)
    np.testing.assert_allclose(lse, scipy.special.logsumexp(logits, -1), rtol=1e-12)


@pytest.mark.parametrize("how", [run, expanded])
@pytest.mark.parametrize("target", [7, -1, -100])
def test_a_target_that_is_no_class(how: Any, target: int) -> None:
    with pytest.raises(DataError, match=f"{target} is out of range"):
        how("token_nll", numbers(2, 7), np.array([3, target]))


def test_the_gradient_of_a_target_that_is_no_class_is_refused_alone_too() -> None:
    graph = differentiated(build("token_nll", [numbers(2, 7), np.array([3, 1])], {}))
    alone = DCE()(Expand()(graph.replace(outputs=graph.outputs[2:], output_names=())))
    seeds = [np.ones(2), np.zeros(2)]
    with pytest.raises(DataError, match="-1 is out of range"):
        evaluate(alone, [numbers(2, 7), np.array([3, -1]), *seeds])


def test_halves_give_their_likelihoods_in_f32() -> None:
    logits = numbers(4, 7).astype(np.float16)
    nll, lse = run("token_nll", logits, np.array([1, 0, 6, 3]))
    assert nll.dtype == lse.dtype == np.float32
    (g,) = gradient("token_nll", logits, np.array([1, 0, 6, 3]))
    assert g.dtype == np.float16


def test_a_masked_class_and_an_empty_row_of_logits() -> None:
    logits = np.array([[0.0, -INF, 1.0], [-INF, -INF, -INF]])
    graph = differentiated(build("token_nll", [logits, np.array([2, 0])], {}))
    zero = np.zeros(2)
    nll, _, g = evaluate(graph, [logits, np.array([2, 0]), np.array([1.0, 0.0]), zero])
    p = scipy.special.softmax(logits[0])
    np.testing.assert_allclose(g, [[p[0], 0.0, p[2] - 1.0], [0.0, 0.0, 0.0]], atol=1e-15)
    assert np.isfinite(nll[0]) and np.isnan(nll[1])


# --- normalisation


def test_layer_norm_against_its_formula() -> None:
    x, gain, bias = 3.0 + 2.0 * numbers(2, 4, 9), numbers(9, seed=1), numbers(9, seed=2)
    y, mean, rstd = run("layer_norm", x, gain, bias, eps=1e-3)
    m, v = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    np.testing.assert_allclose(y, (x - m) / np.sqrt(v + 1e-3) * gain + bias, rtol=1e-11)
    np.testing.assert_allclose(mean, m, rtol=1e-12)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(v + 1e-3), rtol=1e-12)
    plain, _, _ = run("layer_norm", x, eps=1e-3)
    np.testing.assert_allclose(plain * gain + bias, y, rtol=1e-12)


def test_rms_norm_against_its_formula() -> None:
    x, gain = 3.0 + 2.0 * numbers(2, 4, 9), numbers(9, seed=1)
    y, rstd = run("rms_norm", x, gain, eps=1e-3)
    expected = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(rstd, expected, rtol=1e-12)
    np.testing.assert_allclose(y, x * expected * gain, rtol=1e-12)


def test_layer_norm_does_not_lose_a_small_spread_to_a_large_mean() -> None:
    spread = numbers(3, 64).astype(np.float32)
    x = spread + np.float32(1000.0)
    exact = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    exact /= np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    for how in (run, expanded):
        y, _, _ = how("layer_norm", x, eps=1e-5)
        np.testing.assert_allclose(y, exact, atol=2e-4)


@pytest.mark.parametrize("how", [run, expanded])
def test_norms_of_nothing(how: Any) -> None:
    y, mean, rstd = how("layer_norm", np.zeros((2, 0)), np.zeros(0), np.zeros(0), eps=1e-5)
    assert y.shape == (2, 0) and np.isnan(mean).all() and np.isnan(rstd).all()
    y, rstd = how("rms_norm", np.zeros((0, 3)), np.zeros(3), eps=1e-5)
    assert y.shape == (0, 3) and rstd.shape == (0, 1)


# --- activations


def test_gelu_and_silu_against_their_formulas() -> None:
    x = np.linspace(-8.0, 8.0, 33)
    exact = x * scipy.special.ndtr(x)
    np.testing.assert_allclose(run("gelu", x, approximate=False), exact, atol=1e-14)
    near = run("gelu", x, approximate=True)
    np.testing.assert_allclose(near, exact, atol=1e-3)  # as far as the formula is off
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(near, x * scipy.special.expit(2 * inner), atol=1e-14)
    np.testing.assert_allclose(run("silu", x), x * scipy.special.expit(x), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "attrs"),
    [("gelu", {"approximate": True}), ("gelu", {"approximate": False}), ("silu", {})],
)
def test_activations_far_out(name: str, attrs: Mapping[str, Any]) -> None:
    x = np.array([-1e4, -200.0, 200.0, 1e4, NAN], np.float32)
    for how in (run, expanded):
        y = how(name, x, **attrs)
        np.testing.assert_array_equal(y[:4], [0.0, 0.0, 200.0, 1e4])
        assert np.isnan(y[4])
    (g,) = gradient(name, x, **attrs)
    np.testing.assert_allclose(g[:4], [0.0, 0.0, 1.0, 1.0], atol=1e-6)


def passes(graph: Graph, role: str) -> int:
    """How many elementwise passes over an array the nodes of a role make."""
    return sum(
        n.op.kind is Kind.ELEMENTWISE and n.output.type.ndim > 0 and n.origin.role == role
        for n in graph.nodes
    )


def test_gelu_makes_few_passes() -> None:
    graph = Expand()(differentiated(build("gelu", [numbers(3, 4)], {"approximate": True})))
    counts = {role: passes(graph, role) for role in ("primal", "recompute", "cotangent")}
    assert counts == {"primal": 8, "recompute": 13, "cotangent": 1}


# --- attention


@pytest.mark.parametrize("how", [run, expanded])
def test_attention_against_its_formula(how: Any) -> None:
    q, k, v = numbers(2, 4, 3), numbers(2, 6, 3, seed=1), numbers(2, 6, 5, seed=2)
    mask = np.random.default_rng(3).uniform(size=(2, 1, 6)) < 0.7
    out = how("attention", q, k, v, mask, scale=0.5, causal=True)
    for b in range(2):
        for i in range(4):
            seen = [j for j in range(6) if j <= i + 2 and mask[b, 0, j]]
            weights = scipy.special.softmax([0.5 * (q[b, i] @ k[b, j]) for j in seen])
            np.testing.assert_allclose(out[b, i], weights @ v[b, seen], rtol=1e-12)


@pytest.mark.parametrize("how", [run, expanded])
def test_the_scale_is_that_of_the_width_unless_given(how: Any) -> None:
    q, k, v = numbers(4, 3), numbers(6, 3, seed=1), numbers(6, 5, seed=2)
    given_scale = how("attention", q, k, v, scale=1 / math.sqrt(3))
    np.testing.assert_array_equal(how("attention", q, k, v), given_scale)


def test_a_query_without_keys_gets_zeros_and_gives_zero_gradients() -> None:
    q, k, v = numbers(4, 3), numbers(2, 3, seed=1), numbers(2, 5, seed=2)
    for how in (run, expanded):
        out = how("attention", q, k, v, causal=True)  # the first two queries precede all keys
        np.testing.assert_array_equal(out[:2], np.zeros((2, 5)))
        np.testing.assert_allclose(out[2], v[0])
        alone = how("attention", q, k, v, np.zeros((4, 2), bool))
        np.testing.assert_array_equal(alone, np.zeros((4, 5)))
        assert how("attention", q, k[:0], v[:0]).shape == (4, 5)
    gq, gk, gv = gradient("attention", q, k, v, by=(0, 1, 2), causal=True)
    np.testing.assert_array_equal(gq[:2], np.zeros((2, 3)))
    assert np.isfinite(gk).all() and np.isfinite(gv).all()


# --- shapes and errors


def test_shapes_in_symbols_and_results_at_two_sizes() -> None:
    builder = Builder("model", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (B, T, 6)))
        w = builder.input(TensorType(dtypes.f64, (6, V)))
        tokens = builder.input(TensorType(dtypes.i32, (B, T)))
        y, _, _ = lookup("layer_norm")(x)
        y = lookup("attention")(y, y, lookup("gelu")(y), causal=True)
        logits = lookup("dot_general")(y, w, contract=((2,), (0,)), batch=((), ()))
        nll, _ = lookup("token_nll")(logits, tokens)
        loss = lookup("sum")(nll, axes=(0, 1), keepdims=False)
    assert y.shape == (B, T, 6)
    assert nll.shape == (B, T)
    graph = builder.finish([loss.value])
    own, decomposed = Backward((0,), (0, 1))(graph), Backward((0,), (0, 1))(Expand()(graph))
    rng = np.random.default_rng(0)
    for b, t, v in [(1, 1, 2), (2, 5, 3), (3, 4, 9)]:
        data = [numbers(b, t, 6), numbers(6, v, seed=1), rng.integers(0, v, (b, t), np.int32)]
        found = evaluate(Expand()(own), [*data, np.array(1.0)])
        close(found, evaluate(decomposed, [*data, np.array(1.0)]), 1e-12)


F, K = dtypes.f32, dtypes.i32


@pytest.mark.parametrize(
    ("name", "types", "attrs", "error", "says"),
    [
        ("softmax", [(F, (3,))], {"axis": 1}, ShapeError, "distinct axes"),
        ("softmax", [(F, ())], {"axis": 0}, ShapeError, "distinct axes"),
        ("softmax", [(K, (3,))], {"axis": 0}, DTypeError, "floats"),
        ("logsumexp", [(F, (3,))], {"axes": (1,)}, ShapeError, "rising axes"),
        ("token_nll", [(F, (3, 7)), (F, (3,))], {}, DTypeError, "integers"),
        ("token_nll", [(K, (3, 7)), (K, (3,))], {}, DTypeError, "floats"),
        ("token_nll", [(F, (3, 7)), (K, (7,))], {}, ShapeError, r"targets of shape \[3\]"),
        ("token_nll", [(F, ()), (K, ())], {}, ShapeError, "need targets"),
        ("layer_norm", [(F, (3, 7)), (F, (3,))], {}, ShapeError, "last axis"),
        ("layer_norm", [(F, ())], {}, ShapeError, "no last axis"),
        ("rms_norm", [(F, (3,)), (F, (3,)), (F, (3,))], {}, ShapeError, "1 to 2 operands"),
        ("gelu", [(K, (3,))], {}, DTypeError, "floats"),
        ("attention", [(F, (4, 3)), (F, (6, 3))], {}, ShapeError, "q, k, v"),
        ("attention", [(F, (3,)), (F, (3,)), (F, (3,))], {}, ShapeError, "queries, d"),
        ("attention", [(F, (4, 3)), (F, (6, 2)), (F, (6, 5))], {}, ShapeError, "queries, d"),
        ("attention", [(F, (4, 3)), (F, (B, 3)), (F, (T, 5))], {}, ShapeError, "queries, d"),
        ("attention", [(F, (4, 3)), (F, (6, 3)), (F, (6, 5)), (F, (4, 6))], {}, DTypeError,
         "takes booleans"),
        ("attention", [(F, (4, 3)), (F, (6, 3)), (F, (6, 5)), (dtypes.bool_, (4, 5))], {},
         ShapeError, "does not broadcast|do not broadcast"),
    ],
)  # fmt: skip
def test_operands_that_do_not_fit(
    name: str, types: Any, attrs: Mapping[str, Any], error: Any, says: str
) -> None:
    op = lookup(name)
    with pytest.raises(error, match=says):
        op.infer(tuple(TensorType(*t) for t in types), {**op.defaults, **attrs})


# --- what is kept and what is merged


@pytest.mark.parametrize(
    ("name", "operands", "attrs"),
    [
        ("gelu", [(3, 4)], {"approximate": True}),
        ("gelu", [(3, 4)], {"approximate": False}),
        ("silu", [(3, 4)], {}),
        ("layer_norm", [(3, 4), (4,), (4,)], {}),
        ("rms_norm", [(3, 4), (4,)], {}),
    ],
)
def test_of_the_operands_size_only_the_operand_is_kept(
    name: str, operands: Any, attrs: Mapping[str, Any]
) -> None:
    graph = build(name, [numbers(*shape) for shape in operands], attrs)
    graph = DCE()(CSE()(Expand()(differentiated(graph))))
    primal = {v for n in graph.nodes if n.origin.role == "primal" for v in n.outputs}
    kept = {
        v
        for n in graph.nodes
        if n.origin.role != "primal"
        for v in n.inputs
        if v in primal and v.type.ndim and v.shape == (3, 4)
    }
    assert kept == set()


def test_the_nll_gradient_needs_one_array_of_the_logits_size() -> None:
    graph = build("token_nll", [numbers(5, 7), np.array([1, 0, 6, 3, 3])], {})
    graph = DCE()(Expand()(differentiated(graph)))
    made = [n for n in graph.nodes if n.origin.role != "primal" and n.output.type.size == 35]
    written = [n for n in made if n.op.kind is not Kind.MOVE]
    assert [n.op.name for n in written] == ["sub", "exp", "mul", "scatter_add"]
    assert all(n.op.inplace for n in written)
    users = graph.users()
    assert all(len(users[n.output]) == 1 for n in made[:-1])
