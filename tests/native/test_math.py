"""The C functions of elementwise ops against the NumPy reference: bits where they are exact, error
in units of the last place where they are approximations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.registry import lookup
from tests.native.elementwise_loops import CC, Case, Library, build, elementwise, is_gcc, is_half

Array = npt.NDArray[Any]

needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler: install gcc or clang")

# The largest error in ulp in f32 and f64; all other ops give the reference's bits.
ULP = {
    "exp": (1.1, 1.1), "exp2": (1.0, 1.2), "expm1": (1.5, 2.0), "log": (0.9, 0.9),
    "log2": (1.1, 1.8), "log1p": (1.5, 1.5), "sigmoid": (2.4, 2.4), "softplus": (1.8, 1.8),
    "logaddexp": (3.0, 3.0), "tanh": (1.5, 2.7), "sinh": (0.6, 2.5), "cosh": (0.6, 1.6),
    "arcsinh": (0.6, 2.0), "arccosh": (0.6, 2.5), "arctanh": (0.6, 2.1), "sin": (1.7, 0.6),
    "cos": (1.7, 0.6), "tan": (0.7, 0.7), "arcsin": (0.6, 2.3), "arccos": (0.6, 1.3),
    "arctan": (0.6, 2.0), "arctan2": (0.6, 2.1), "hypot": (0.6, 1.2), "pow": (0.6, 0.7),
    "erf": (1.2, 1.1), "erfc": (0.6, 3.2), "rsqrt": (1.5, 1.5),
}  # fmt: skip
# What has to become vector code in f32 for a training step to be fast.
FAST = [
    "add_f32", "mul_f32", "div_f32", "exp_f32", "exp2_f32", "expm1_f32", "log_f32", "log1p_f32",
    "tanh_f32", "sigmoid_f32", "softplus_f32", "erf_f32", "sqrt_f32", "rsqrt_f32", "sin_f32",
    "cos_f32", "maximum_f32", "minimum_f32", "relu_f32", "abs_f32", "sign_f32", "less_f32",
    "isnan_f32", "floor_f32", "round_f32", "select_bool_f32", "logical_and_bool",
]  # fmt: skip
SCALAR = {"mod", "floor_div"}  # in every type; and of f64, which call the C library:
SCALAR_F64 = {"sin", "cos", "tan", "pow"}
SIZE = 3000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return build(Path(tmp_path_factory.mktemp("loops")))


# --- operands


def _float_specials(dtype: DType) -> Array:
    """Zeros, infinities, NaN, the ends of each range, halves and what lies beside them."""
    import ml_dtypes

    limits = ml_dtypes.finfo(dtype.numpy)
    ends = [float(limits.max), float(limits.tiny), float(limits.smallest_subnormal)]
    near = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 7.0, 0.1, 88.0, 89.5, 104.0, 709.7, 710.4, 745.1]
    big = [2.0**23 + 1, 2.0**24, 2.0**31, 2.0**32, 2.0**53, 2.0**63, 2.0**64, 1e30]
    whole = [*ends, *near, *big, np.pi / 2, np.pi, 0.0, np.inf]
    values = np.array([*whole, *(-v for v in whole), np.nan])
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(dtype.numpy)


def _floats(dtype: DType, rng: np.random.Generator, n: int) -> Array:
    """Numbers of all magnitudes, and of those that occur."""
    width = np.dtype(f"u{dtype.bytes}")
    bits = rng.integers(0, 1 << (8 * dtype.bytes), n // 3, dtype=np.uint64).astype(width)
    moderate = rng.normal(size=n - 2 * (n // 3)) * 10.0 ** rng.uniform(-3, 2, n - 2 * (n // 3))
    around = rng.uniform(-2.0, 2.0, n // 3)
    usual = np.concatenate([moderate, around]).astype(dtype.numpy)
    out: Array = np.concatenate([bits.view(dtype.numpy), usual])
    return out


def _integers(dtype: DType, rng: np.random.Generator, n: int) -> Array:
    low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    small = rng.integers(max(low, -9), 70, n // 2)
    wide = rng.integers(low, high, n - n // 2, dtype=dtype.numpy, endpoint=True)
    return np.concatenate([small.astype(dtype.numpy), wide])


def _specials(dtype: DType) -> Array:
    if dtype.is_float:
        return _float_specials(dtype)
    if dtype is dtypes.bool_:
        return np.array([False, True])
    low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    values = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, 8, 15, 31, 32, 63, 64]
    values += [-1, -2, -3, -7] if low else []
    return np.array(values, dtype.numpy)


def _operands(case: Case) -> tuple[Array, ...]:
    """Every pair of special values, then random ones, in no order."""
    rng = np.random.default_rng(len(case.name))
    special = [_specials(t) for t in case.operands]
    if is_half(case.of) and len(case.operands) == 1:
        return (np.arange(1 << 16, dtype=np.uint16).view(case.of.numpy),)
    grid = [g.ravel() for g in np.meshgrid(*special[-2:], indexing="ij")]
    if len(case.operands) == 3:
        grid = [rng.random(grid[0].size) < 0.5, *grid]
    order = rng.permutation(grid[0].size + SIZE)
    drawn = []
    for values, dtype in zip(grid, case.operands, strict=True):
        if dtype is dtypes.bool_:
            more: Array = rng.random(SIZE) < 0.5
        else:
            more = (_floats if dtype.is_float else _integers)(dtype, rng, SIZE)
        drawn.append(np.concatenate([values, more])[order])
    if case.op.name == "pow" and case.of.is_integer:  # NumPy refuses negative powers
        drawn[1] = np.where(drawn[1] < 0, 0, drawn[1])
    return tuple(drawn)


# --- comparing


def _same(a: Array, b: Array, *, signs: bool) -> npt.NDArray[np.bool_]:
    """Equal, or both NaN; `signs` tells 0 from -0."""
    with np.errstate(invalid="ignore"):
        equal: npt.NDArray[np.bool_] = (a == b) | ((a != a) & (b != b))
        if signs and a.dtype.kind not in "biu":
            equal &= (np.signbit(a) == np.signbit(b)) | (a != a)
    return equal


def _truth(case: Case, operands: tuple[Array, ...]) -> Array:
    """The reference in a wider type."""
    wide: Any = np.longdouble if case.of is dtypes.f64 else np.float64
    name = case.op.name
    if name in ("erf", "erfc") and wide is np.longdouble:
        return np.array([_by_mpmath(name, float(x)) for x in operands[0]])
    widened = tuple(x.astype(wide) for x in operands)
    with np.errstate(all="ignore"):
        if name == "tan" and wide is np.float64:
            return np.tan(widened[0].astype(np.longdouble)).astype(wide)
        return case.reference(*widened)


def _by_mpmath(name: str, x: float) -> Any:
    if not abs(x) < 30.0:
        x = float(np.clip(x, -30.0, 30.0))
    if x != x or x == 0:  # mpmath has no -0
        return np.longdouble(lookup(name).evaluate({}, np.array([x]))[0])
    with mpmath.workprec(80), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of long doubles that underflow
        return np.longdouble(mpmath.nstr(getattr(mpmath, name)(x), 22))


def _units(case: Case, found: Array, truth: Array, operands: tuple[Array, ...]) -> Array:
    """The error in units of the last place of the truth (for logaddexp, whose terms cancel, of the
    largest number that occurs)."""
    wide = truth.dtype
    with np.errstate(all="ignore"):
        rounded = np.abs(truth.astype(found.dtype))
        if case.op.name == "logaddexp":
            for x in operands:
                rounded = np.maximum(rounded, np.where(np.isfinite(x), np.abs(x), 0))
        largest = np.nextafter(found.dtype.type(np.inf), found.dtype.type(0))
        rounded = np.where(np.isfinite(rounded), rounded, largest).astype(found.dtype)
        unit = np.nextafter(rounded, found.dtype.type(np.inf)).astype(wide) - rounded.astype(wide)
        unit = np.where(rounded == largest, largest.astype(wide) - _below(largest), unit)
        error = np.abs(found.astype(wide) - truth) / unit
        for right in (truth.astype(found.dtype), case.reference(*operands)):
            error = np.where(_same(found, right, signs=False), 0.0, error)
    return np.where(np.isnan(error), np.inf, error)


def _below(x: Any) -> Any:
    return np.nextafter(x, x.dtype.type(0)).astype(np.longdouble)


def _limit(case: Case) -> float:
    f32, f64 = ULP[case.op.name]
    return f64 if case.of is dtypes.f64 else 0.51 if is_half(case.of) else f32


_NO_U32 = [f"cast_{t}_u32" for t in dtypes.ALL if t.is_float]


def _check(case: Case, operands: tuple[Array, ...], found: Array) -> None:
    expected = case.reference(*operands)
    if case.name in _NO_U32:  # elsewhere the reference depends on the place in the array
        keep = (operands[0] > -(2.0**31)) & (operands[0].astype(np.float64) < 2.0**32)
        operands, found, expected = (operands[0][keep],), found[keep], expected[keep]
    assert expected.dtype == found.dtype
    if case.op.name not in ULP or case.of.is_integer:
        # Which zero is the larger is left open; sign(-0) depends on the type.
        signs = case.op.name not in ("maximum", "minimum", "relu", "sign")
        wrong = ~_same(found, expected, signs=signs)
        assert not wrong.any(), _shown(case, operands, found, expected, wrong)
        return
    if case.op.name == "sigmoid":  # the reference is 0 where e^-x overflows
        keep = ~(expected == 0)
        operands, found = tuple(x[keep] for x in operands), found[keep]
    truth = _truth(case, operands)
    errors = _units(case, found, truth, operands)
    wrong = errors > _limit(case)
    assert not wrong.any(), f"{errors.max()} ulp: {_shown(case, operands, found, truth, wrong)}"
    zero = (found == 0) & (truth == 0)
    assert (np.signbit(found) == np.signbit(truth))[zero].all()


def _shown(case: Case, operands: Any, found: Array, expected: Array, wrong: Array) -> str:
    places = np.flatnonzero(wrong)[:5]
    lines = [f"{case.name}: {wrong.sum()} of {wrong.size} elements"]
    lines += [
        f"({', '.join(str(x[i]) for x in operands)}) -> {found[i]}, not {expected[i]}"
        for i in places
    ]
    return "\n".join(lines)


# --- tests


def test_every_elementwise_op_has_a_c_expression() -> None:
    assert [op.name for op in elementwise() if op.c is None] == []
    assert not lookup("sum").c


@needs_cc
@pytest.mark.parametrize("op", [op.name for op in elementwise()])
def test_values(library: Library, op: str) -> None:
    for case in _of(library, op):
        operands = _operands(case)
        with np.errstate(all="ignore"):
            _check(case, operands, library.run(case.name, operands))


@needs_cc
def test_every_length_gives_the_same_bits(library: Library) -> None:
    """Vector code and the scalar code for what is left over agree; nothing is written beyond."""
    for name, case in library.cases.items():
        operands = tuple(x[:77].copy() for x in _operands(case))
        whole = library.run(name, operands)
        for n in range(34):
            found = library.run(name, operands, n)
            assert _same(found[:n], whole[:n], signs=True).all(), (name, n)
            assert (found[n:].view(np.uint8) == 0x55).all(), (name, n)


@needs_cc
@pytest.mark.skipif(CC is not None and not is_gcc(), reason="reads what gcc says of its loops")
def test_loops_become_vector_code(library: Library) -> None:
    assert [name for name in FAST if not library.vectorised(name)] == []
    scalar = {c.name for c in library.cases.values() if not library.vectorised(c.name)}
    unexpected = [c.name for c in _floating(library) if c.name in scalar and not _may_be_scalar(c)]
    assert unexpected == []


def _floating(library: Library) -> Iterator[Case]:
    """What is computed in floats (copies become calls of memcpy)."""
    for case in library.cases.values():
        copies = case.op.name == "stop_gradient" or case.operands == (case.result,)
        if case.of.is_float and not (copies and case.op.name in ("cast", "stop_gradient")):
            yield case


def _may_be_scalar(case: Case) -> bool:
    name = case.op.name
    return name in SCALAR or (case.of is dtypes.f64 and name in SCALAR_F64)


@needs_cc
def test_halves_are_rounded_to_nearest_even(library: Library) -> None:
    """Every f16 and bf16, the numbers halfway between two of them, and those beside the halves."""
    for dtype in (dtypes.f16, dtypes.bf16):
        all_halves = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
        exact = all_halves.astype(np.float32)
        back = library.run(f"cast_f32_{dtype}", (exact,))
        assert _same(back, all_halves, signs=True).all()
        assert (library.run(f"cast_{dtype}_f32", (all_halves,)).view(np.uint32)
                == exact.view(np.uint32))[exact == exact].all()  # fmt: skip
        with np.errstate(all="ignore"):
            middle = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
        places = np.concatenate(
            [middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))]
        )
        places = np.append(places, np.float32([65519.996, 65520.0, 3.4e38, np.inf, np.nan]))
        with np.errstate(all="ignore"):
            expected = places.astype(dtype.numpy)
        assert _same(library.run(f"cast_f32_{dtype}", (places,)), expected, signs=True).all()


@needs_cc
def test_integers_to_negative_powers_are_defined(library: Library) -> None:
    """1 / a^-b without its fraction, 0 where a is 0; NumPy refuses them."""
    base = np.array([1, -1, -1, 2, -3, 0], np.int32)
    power = np.array([-3, -3, -4, -1, -2, -1], np.int32)
    assert library.run("pow_i32", (base, power)).tolist() == [1, -1, 1, 0, 0, 0]


def _of(library: Library, op: str) -> Iterator[Case]:
    found = [case for case in library.cases.values() if case.op.name == op]
    assert found
    yield from found
