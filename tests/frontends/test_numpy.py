"""retrograde.numpy against NumPy: outside of a trace, in one, on symbolic sizes, and through np."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import TensorType

SHAPES = [(), (5,), (0,), (3, 4), (2, 0, 3), (2, 3, 4)]


def data(shape: Any, seed: int = 0, low: float = 0.1, high: float = 0.9) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape)


def names(text: str) -> list[str]:
    return text.split()


def close(ours: Any, theirs: Any, rtol: float = 1e-12) -> None:
    """Equal values and shapes, through lists; floats up to rounding."""
    if isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, rtol)
        return
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12)
    kind = np.asarray(theirs).dtype.kind
    assert np.asarray(ours).dtype.kind == {"u": "i"}.get(kind, kind)


# --- one elementwise function on many shapes

UNARY = names(
    "abs absolute negative positive square sqrt exp exp2 expm1 log log2 log10 log1p sin cos tan "
    "arcsin arccos arctan sinh cosh tanh arcsinh arctanh asin acos atan asinh atanh floor ceil "
    "trunc rint round fabs sign reciprocal deg2rad rad2deg degrees radians isnan isinf isfinite "
    "logical_not nan_to_num ravel sum prod mean var std any all cumsum cumprod transpose flip "
    "zeros_like ones_like copy squeeze atleast_1d atleast_2d argsort sort count_nonzero"
)
BINARY = names(
    "add subtract multiply divide true_divide floor_divide remainder mod power pow maximum "
    "minimum fmax fmin arctan2 atan2 hypot copysign logaddexp equal not_equal less less_equal "
    "greater greater_equal logical_and logical_or logical_xor isclose float_power allclose "
    "array_equal"
)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unary(run: Any, name: str, shape: Any) -> None:
    if name in ("sort", "argsort") and shape == ():
        pytest.skip("NumPy refuses scalars here too")
    x = data(shape, low=-0.9) if name in ("abs", "sign", "floor", "round", "ceil") else data(shape)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        want = getattr(np, name)(x)
        close(getattr(rnp, name)(x), want)
        close(run(lambda x: getattr(rnp, name)(x), x), want)
        close(run(lambda x: getattr(np, name)(x), x), want)


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize(
    "shapes", [((), ()), ((4,), ()), ((3, 1), (4,)), ((2, 0), (2, 1)), ((2, 3, 4), (3, 4))], ids=str
)
def test_binary(run: Any, name: str, shapes: Any) -> None:
    if name == "array_equal" and shapes[0] != shapes[1]:
        shapes = (shapes[0], shapes[0])
    x, y = data(shapes[0], 1), data(shapes[1], 2)
    want = getattr(np, name)(x, y)
    close(getattr(rnp, name)(x, y), want)
    close(run(lambda x, y: getattr(rnp, name)(x, y), x, y), want)
    close(run(lambda x, y: getattr(np, name)(x, y), x, y), want)
    close(run(lambda y: getattr(np, name)(x, y), y), want)  # an array of the closure beside it


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_domains_beyond_the_unit_interval(run: Any, shape: Any) -> None:
    x = data(shape, low=1.1, high=3.0)
    close(run(lambda x: np.arccosh(x), x), np.arccosh(x))
    close(rnp.acosh(x), np.arccosh(x))


INTEGERS = names(
    "bitwise_and bitwise_or bitwise_xor left_shift right_shift floor_divide remainder add "
    "multiply maximum equal less bitwise_left_shift bitwise_right_shift"
)


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(run: Any, name: str) -> None:
    x, y = np.arange(-6, 6, dtype=np.int32).reshape(3, 4), np.array([1, 2, 3, 1], np.int32)
    want = getattr(np, name)(x, y)
    close(getattr(rnp, name)(x, y), want)
    close(run(lambda x, y: getattr(np, name)(x, y), x, y), want)


def test_integers_round_to_themselves_and_are_never_nan(run: Any) -> None:
    x = np.arange(-3, 3, dtype=np.int32)
    for name in ("floor", "ceil", "trunc", "rint", "isnan", "isinf", "isfinite"):
        ours = run(lambda x, name=name: getattr(rnp, name)(x), x)
        np.testing.assert_array_equal(ours, getattr(np, name)(x))
        assert ours.dtype == (np.bool_ if name.startswith("is") else np.int32)
    close(rnp.bitwise_not(x), ~x)
    close(rnp.divmod(x, 2), np.divmod(x, 2))


# --- functions with arguments: fn(module, arrays)


@dataclass(frozen=True)
class Case:
    """A call written once for NumPy and for us; arrays of distinct sizes on every axis."""

    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((3, 4),)
    by_numpy: bool = True  # NumPy's own function also takes traced values here
    symbolic: bool = True  # works on symbolic sizes
    integers: bool = False

    @property
    def text(self) -> str:
        return inspect.getsource(self.call)

    def arrays(self) -> list[Any]:
        made = [data(s, i) for i, s in enumerate(self.shapes)]
        return [(x * 20 - 9).astype(np.int32) for x in made] if self.integers else made


V, M, C = ((6,),), ((3, 4),), ((2, 3, 4),)
CASES = {
    "sum axis": Case(lambda m, x: m.sum(x, axis=1), C),
    "sum axes": Case(lambda m, x: m.sum(x, axis=(0, -1), keepdims=True), C),
    "sum where": Case(lambda m, x: m.sum(x, axis=1, where=x > 0.5), C),
    "sum initial": Case(lambda m, x: m.sum(x, initial=3.0), C),
    "sum dtype": Case(lambda m, x: m.sum(x, axis=0, dtype=np.float64), C, integers=True),
    "prod axis": Case(lambda m, x: m.prod(x, axis=1), C),
    "prod where": Case(lambda m, x: m.prod(x, axis=1, where=x > 0.5, initial=2.0), C),
    "mean axis": Case(lambda m, x: m.mean(x, axis=(0, 1), keepdims=True), C),
    "mean where": Case(lambda m, x: m.mean(x, axis=2, where=x < 0.9), C),
    "var ddof": Case(lambda m, x: m.var(x, axis=1, ddof=1), C),
    "std": Case(lambda m, x: m.std(x, axis=-1, keepdims=True), C),
    "max": Case(lambda m, x: m.max(x, axis=1), C),
    "amax all": Case(lambda m, x: m.amax(x), C),
    "min": Case(lambda m, x: m.min(x, axis=(1, 2), keepdims=True), C),
    "max initial": Case(lambda m, x: m.max(x, axis=1, initial=0.5), C),
    "max where": Case(lambda m, x: m.max(x, axis=1, initial=-1.0, where=x < 0.5), C),
    "max of nothing": Case(lambda m, x: m.max(x, axis=1, initial=0.5), ((3, 0),), symbolic=False),
    "ptp": Case(lambda m, x: m.ptp(x, axis=1), C),
    "any": Case(lambda m, x: m.any(x > 0.8, axis=1), C),
    "all": Case(lambda m, x: m.all(x > 0.2, axis=(0, 2), keepdims=True), C),
    "any where": Case(lambda m, x: m.any(x > 0.5, axis=1, where=x < 0.6), C),
    "average": Case(lambda m, x, w: m.average(x, axis=1, weights=w), ((2, 3, 4), (3,))),
    "average all": Case(lambda m, x, w: m.average(x, weights=w), ((3, 4), (3, 4))),
    "argmax": Case(lambda m, x: m.argmax(x, axis=1), C),
    "argmax all": Case(lambda m, x: m.argmax(x), C),
    "argmin keepdims": Case(lambda m, x: m.argmin(x, axis=1, keepdims=True), C),
    "argmin all keepdims": Case(lambda m, x: m.argmin(x, keepdims=True), C),
    "cumsum": Case(lambda m, x: m.cumsum(x, axis=1), C),
    "cumsum flat": Case(lambda m, x: m.cumsum(x), C),
    "cumprod": Case(lambda m, x: m.cumprod(x, axis=-1), C),
    "cumulative_sum": Case(lambda m, x: m.cumulative_sum(x, axis=1, include_initial=True), C),
    "cumulative_prod": Case(lambda m, x: m.cumulative_prod(x, axis=1, include_initial=True), C),
    "diff": Case(lambda m, x: m.diff(x, axis=0), M),
    "diff 2": Case(lambda m, x: m.diff(x, n=2), M, symbolic=False),
    "sort": Case(lambda m, x: m.sort(x, axis=1), C),
    "sort flat": Case(lambda m, x: m.sort(x, axis=None), C),
    "argsort": Case(lambda m, x: m.argsort(x, axis=0), C),
    "median": Case(lambda m, x: m.median(x, axis=1), ((2, 5, 4),)),
    "median even": Case(lambda m, x: m.median(x, axis=2, keepdims=True), C),
    "median all": Case(lambda m, x: m.median(x), C),
    "searchsorted": Case(lambda m, a, v: m.searchsorted(m.sort(a), v), ((6,), (3, 4))),
    "searchsorted right": Case(
        lambda m, a, v: m.searchsorted(m.sort(a), v, side="right"), ((6,), (3, 4)), integers=True
    ),
    "clip": Case(lambda m, x: m.clip(x, 0.3, 0.6), M),
    "clip low": Case(lambda m, x: m.clip(x, 0.3, None), M),
    "clip names": Case(lambda m, x: m.clip(x, a_min=None, a_max=0.5), M),
    "round decimals": Case(lambda m, x: m.round(x, 2), M),
    "around negative": Case(lambda m, x: m.around(x * 100.0, -1), M),
    "where": Case(lambda m, x, y: m.where(x > 0.5, x, y), ((3, 4), (4,))),
    "where number": Case(lambda m, x: m.where(x > 0.5, 0.0, x), M),
    "isclose nan": Case(lambda m, x: m.isclose(x, x * m.nan, equal_nan=True), M),
    "reshape": Case(lambda m, x: m.reshape(x, (4, 6)), C, symbolic=False),
    "reshape -1": Case(lambda m, x: m.reshape(x, (x.shape[0], -1)), C),
    "ravel": Case(lambda m, x: m.ravel(x), C),
    "expand_dims": Case(lambda m, x: m.expand_dims(x, (0, -1)), C),
    "squeeze": Case(lambda m, x: m.squeeze(x, 1), ((3, 1, 4, 1),)),
    "squeeze all": Case(lambda m, x: m.squeeze(x), ((3, 1, 4, 1),)),
    "transpose": Case(lambda m, x: m.transpose(x, (2, 0, 1)), C),
    "permute_dims": Case(lambda m, x: m.permute_dims(x, (1, -1, 0)), C),
    "matrix_transpose": Case(lambda m, x: m.matrix_transpose(x), C),
    "swapaxes": Case(lambda m, x: m.swapaxes(x, 0, -1), C),
    "moveaxis": Case(lambda m, x: m.moveaxis(x, 0, -1), C),
    "moveaxis several": Case(lambda m, x: m.moveaxis(x, (0, 2), (1, 0)), C),
    "broadcast_to": Case(lambda m, x: m.broadcast_to(x, (5, *x.shape)), M),
    "broadcast_arrays": Case(lambda m, x, y: m.broadcast_arrays(x, y), ((3, 1), (4,))),
    "concatenate": Case(lambda m, x, y: m.concatenate([x, y], axis=1), ((2, 3), (2, 4))),
    "concatenate flat": Case(lambda m, x, y: m.concatenate([x, y], axis=None), ((2, 3), (2, 4))),
    "concat": Case(lambda m, x, y: m.concat((x, y)), ((3, 4), (2, 4))),
    "stack": Case(lambda m, x, y: m.stack([x, y], axis=1), ((3, 4), (3, 4))),
    "stack last": Case(lambda m, x, y: m.stack((x, y), axis=-1), ((3, 4), (3, 4))),
    "hstack": Case(lambda m, x, y: m.hstack([x, y]), ((3,), (4,))),
    "vstack": Case(lambda m, x, y: m.vstack([x, y]), ((3,), (3,))),
    "column_stack": Case(lambda m, x, y: m.column_stack([x, y]), ((3,), (3, 2))),
    "append": Case(lambda m, x, y: m.append(x, y, axis=0), ((3, 4), (2, 4))),
    "split": Case(lambda m, x: m.split(x, 2, axis=-1), C, symbolic=False),
    "split at": Case(lambda m, x: m.split(x, [1, 3], axis=2), C),
    "split beyond": Case(lambda m, x: m.split(x, [1, 9], axis=2), C, symbolic=False),
    "array_split": Case(lambda m, x: m.array_split(x, 4), V, symbolic=False),
    "unstack": Case(lambda m, x: m.unstack(x, axis=1), C, symbolic=False),
    "flip": Case(lambda m, x: m.flip(x, (0, 2)), C),
    "fliplr": Case(lambda m, x: m.fliplr(x), C),
    "flipud": Case(lambda m, x: m.flipud(x), C),
    "roll": Case(lambda m, x: m.roll(x, 2, axis=1), C),
    "roll far": Case(lambda m, x: m.roll(x, -7, axis=1), C),
    "roll flat": Case(lambda m, x: m.roll(x, 5), C),
    "roll axes": Case(lambda m, x: m.roll(x, (1, 2), axis=(0, 2)), C),
    "tile": Case(lambda m, x: m.tile(x, 3), M),
    "tile axes": Case(lambda m, x: m.tile(x, (2, 1, 3)), M),
    "repeat": Case(lambda m, x: m.repeat(x, 3, axis=1), C),
    "repeat flat": Case(lambda m, x: m.repeat(x, 2), M),
    "pad": Case(lambda m, x: m.pad(x, 2), M),
    "pad axes": Case(lambda m, x: m.pad(x, ((1, 0), (0, 2)), constant_values=-1.5), M),
    "pad values": Case(
        lambda m, x: m.pad(x, ((1, 0), (1, 2)), constant_values=((1, 2), (3, 4))), M
    ),
    "pad edge": Case(lambda m, x: m.pad(x, ((2, 1), (0, 3)), mode="edge"), M),
    "pad reflect": Case(lambda m, x: m.pad(x, ((2, 1), (0, 3)), mode="reflect"), M, symbolic=False),
    "pad symmetric": Case(lambda m, x: m.pad(x, (2, 3), mode="symmetric"), M, symbolic=False),
    "pad wrap": Case(lambda m, x: m.pad(x, (1, 1), mode="wrap"), M),
    "take": Case(lambda m, x: m.take(x, np.array([[2, -1], [0, 0]]), axis=1), C),
    "take flat": Case(lambda m, x: m.take(x, [1, 5, -2]), C),
    "take_along_axis": Case(lambda m, x: m.take_along_axis(x, m.argsort(x, axis=1), axis=1), C),
    "take_along_axis stretched": Case(
        lambda m, x: m.take_along_axis(x, np.array([[[1, 0, 1, 1]]]), axis=1),
        C,
        symbolic=False,
    ),
    "matmul": Case(lambda m, x, y: m.matmul(x, y), ((2, 3, 4), (4, 5))),
    "matmul batch": Case(lambda m, x, y: m.matmul(x, y), ((2, 3, 4), (2, 4, 5))),
    "matmul stretched": Case(lambda m, x, y: x @ y, ((6, 1, 3, 4), (2, 4, 5))),
    "matmul vector": Case(lambda m, x, y: m.matmul(x, y), ((4,), (2, 4, 5))),
    "matmul to vector": Case(lambda m, x, y: m.matmul(x, y), ((2, 3, 4), (4,))),
    "matvec": Case(lambda m, x, y: m.matvec(x, y), ((2, 3, 4), (4,))),
    "vecmat": Case(lambda m, x, y: m.vecmat(x, y), ((2, 3), (2, 3, 5))),
    "vecdot": Case(lambda m, x, y: m.vecdot(x, y, axis=1), ((2, 3, 4), (1, 3, 4)), by_numpy=False),
    "dot": Case(lambda m, x, y: m.dot(x, y), ((2, 3), (5, 3, 4))),
    "dot vectors": Case(lambda m, x, y: m.dot(x, y), ((3,), (3,))),
    "inner": Case(lambda m, x, y: m.inner(x, y), ((2, 3), (4, 3))),
    "vdot": Case(lambda m, x, y: m.vdot(x, y), ((2, 3), (2, 3))),
    "outer": Case(lambda m, x, y: m.outer(x, y), ((2, 3), (4,))),
    "kron": Case(lambda m, x, y: m.kron(x, y), ((2, 3), (4, 5))),
    "kron ranks": Case(lambda m, x, y: m.kron(x, y), ((3,), (4, 5))),
    "cross": Case(lambda m, x, y: m.cross(x, y), ((4, 3), (4, 3)), symbolic=False),
    "cross axis": Case(lambda m, x, y: m.cross(x, y, axis=0), ((3, 4), (3, 4)), symbolic=False),
    "tensordot": Case(lambda m, x, y: m.tensordot(x, y), ((2, 3, 4), (3, 4, 5))),
    "tensordot axes": Case(
        lambda m, x, y: m.tensordot(x, y, axes=([2, 0], [1, 2])), ((2, 3, 4), (5, 4, 2))
    ),
    "tensordot 0": Case(lambda m, x, y: m.tensordot(x, y, axes=0), ((2, 3), (4,))),
    "trace": Case(lambda m, x: m.trace(x), ((4, 4),)),
    "trace axes": Case(
        lambda m, x: m.trace(x, offset=1, axis1=0, axis2=2), ((3, 4, 5),), symbolic=False
    ),
    "diagonal": Case(lambda m, x: m.diagonal(x, axis1=2, axis2=0), ((3, 4, 5),)),
    "diagonal offset": Case(lambda m, x: m.diagonal(x, -1), ((3, 5),)),
    "diagonal outside": Case(lambda m, x: m.diagonal(x, 7), ((3, 5),), symbolic=False),
    "diag": Case(lambda m, x: m.diag(x, 1), V),
    "diag of matrix": Case(lambda m, x: m.diag(x, -1), ((5, 4),)),
    "tril": Case(lambda m, x: m.tril(x, 1), C),
    "triu": Case(lambda m, x: m.triu(x), C),
    "norm": Case(lambda m, x: m.linalg.norm(x), C),
    "norm axis": Case(lambda m, x: m.linalg.norm(x, axis=1, keepdims=True), C),
    "norm 1": Case(lambda m, x: m.linalg.norm(x, 1, axis=1), C),
    "norm 3": Case(lambda m, x: m.linalg.norm(x, 3, axis=1), C),
    "norm inf": Case(lambda m, x: m.linalg.norm(x, np.inf, axis=2), C),
    "norm -inf": Case(lambda m, x: m.linalg.norm(x, -np.inf, axis=2), C),
    "norm 0": Case(lambda m, x: m.linalg.norm(m.round(x), 0, axis=2), C),
    "norm fro": Case(lambda m, x: m.linalg.norm(x, "fro", axis=(0, 2)), C),
    "norm matrix 1": Case(lambda m, x: m.linalg.norm(x, 1), M),
    "norm matrix inf": Case(lambda m, x: m.linalg.norm(x, np.inf, axis=(2, 1), keepdims=True), C),
    "norm matrix -1": Case(lambda m, x: m.linalg.norm(x, -1), M),
    "vector_norm": Case(lambda m, x: m.linalg.vector_norm(x, axis=(0, 2)), C),
    "matrix_norm": Case(lambda m, x: m.linalg.matrix_norm(x), C),
    "linspace": Case(lambda m, x: m.linspace(x[0], x[1], 5), M),
    "linspace open": Case(lambda m, x: m.linspace(x[0], 2.0, 4, endpoint=False), M),
    "full_like": Case(lambda m, x: m.full_like(x, 2.5), M),
    "full_like int": Case(lambda m, x: m.full_like(x, 2, dtype=np.int32), M),
    "meshgrid": Case(lambda m, x, y: m.meshgrid(x, y), ((3,), (4,))),
    "meshgrid ij": Case(lambda m, x, y, z: m.meshgrid(x, y, z, indexing="ij"), ((3,), (4,), (2,))),
    "shape": Case(
        lambda m, x: [*m.shape(x), m.ndim(x), m.size(x), m.size(x, 1)], M, symbolic=False
    ),
    "astype": Case(lambda m, x: m.astype(x * 9, np.int32), M),
    "nan_to_num": Case(lambda m, x: m.nan_to_num(m.log(m.round(x)), neginf=-7.0), M),
    "isinf": Case(lambda m, x: m.isinf(m.log(m.round(x))), M),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("way", ["outside", "traced", "by numpy", "symbolic"])
def test_as_numpy(run: Any, symbolic: Any, case: Case, way: str) -> None:
    arrays = case.arrays()
    want = case.call(np, *arrays)
    if way == "outside":
        close(case.call(rnp, *arrays), want)
    elif way == "traced":
        close(run(lambda *xs: case.call(rnp, *xs), *arrays), want)
    elif way == "by numpy" and case.by_numpy:
        close(run(lambda *xs: case.call(np, *xs), *arrays), want)
    elif way == "symbolic" and case.symbolic:
        shapes = symbolic(*arrays, min=2)
        close(run(lambda *xs: case.call(rnp, *xs), *arrays, shapes=shapes), want)


# --- promotion and results outside of a trace


def test_numbers_are_weak_everywhere(run: Any) -> None:
    x = np.ones(3, np.float32)
    out = run(
        lambda x: [
            x / np.sqrt(64), np.float64(2.0) * x, x * rnp.sqrt(64), rnp.where(x > 0, 1.0, x),
            rnp.where(x > 0, 1.0, 0.0), rnp.where(x > 0, 1, 0), rnp.concatenate([x, [2.0]]),
            rnp.maximum(x, 0), x + x.shape[0], rnp.clip(x, np.float64(0), 1),
        ],
        x,
    )  # fmt: skip
    assert [str(o.dtype) for o in out] == ["float32"] * 5 + ["int32"] + ["float32"] * 4
    assert isinstance(rnp.sqrt(64), np.floating)


def test_arrays_keep_the_dtype_they_come_with(run: Any) -> None:
    x, y = np.ones(3, np.float32), np.ones(3, np.float64)
    i, b = np.ones(3, np.int64), np.ones(3, bool)
    out = run(lambda x, y, i, b: [x + y, x + i, i + b, x * b, i / i, rnp.exp(b)], x, y, i, b)
    names = ["float64", "float32", "int64", "float32", "float32", "float32"]
    assert [str(o.dtype) for o in out] == names


def test_results_outside_share_no_memory() -> None:
    x = np.arange(6.0).reshape(2, 3)
    for ours in (
        rnp.reshape(x, 6),
        rnp.transpose(x),
        rnp.asarray(x),
        rnp.broadcast_to(x, (4, 2, 3)),
    ):
        assert not np.shares_memory(ours, x)
        ours[...] = 7.0
    assert x.sum() == 15.0


def test_constants_dtypes_and_questions(trace: Any) -> None:
    assert (rnp.pi, rnp.e, rnp.inf, rnp.newaxis) == (math.pi, math.e, math.inf, None)
    assert math.isnan(rnp.nan)
    assert np.dtype(rnp.bfloat16).name == "bfloat16"
    assert rnp.finfo("f32").max == np.finfo(np.float32).max
    assert float(rnp.finfo(rnp.bfloat16).eps) == 2.0**-7
    assert rnp.iinfo("u8").max == 255

    def f(x: Any, i: Any) -> Any:
        assert x.dtype == np.float32 and x.dtype == "f32" and x.dtype != np.float64
        assert x.dtype != i.dtype and x.dtype is not None
        assert np.zeros(2, x.dtype).dtype == np.float32
        assert rnp.result_type(x, 1.5) == rnp.result_type(x, i) == np.float32
        assert rnp.isdtype(x.dtype, "real floating") and not rnp.isdtype(i.dtype, "real floating")
        assert rnp.isdtype(i.dtype, ("bool", "integral")) and rnp.isdtype(i.dtype, np.int32)
        assert rnp.issubdtype(x.dtype, np.floating) and not rnp.issubdtype(i.dtype, np.floating)
        assert rnp.issubdtype(dtypes.bf16, np.floating)
        assert rnp.can_cast(i.dtype, x.dtype) and not rnp.can_cast(x.dtype, i.dtype)
        assert not rnp.isscalar(x) and rnp.isscalar(2.0)
        assert rnp.broadcast_shapes((3, 1), x.shape) == (3, 3)
        return x

    trace(f, [TensorType(dtypes.f32, (3,)), TensorType(dtypes.i32, (3,))])


def test_unknown_names_point_to_near_ones() -> None:
    with pytest.raises(AttributeError, match=r"numpy\.nextafter is not in retrograde\.numpy"):
        _ = rnp.nextafter
    with pytest.raises(AttributeError, match="did you mean softmax"):
        _ = rnp.soft_max
