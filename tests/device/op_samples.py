"""Calls of the ops without a gradient, beside `tests.compiler.ops.samples`: every op runs on every
device.  Sizes differ on every axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.registry import all_ops
from tests.compiler.ops.samples import (
    SAMPLES,
    WHILES,
    Sample,
    booleans,
    integers,
    normal,
    sample,
    spaced,
)


def _unary(*makers: Sample) -> list[Sample]:
    return [*makers, sample(normal(3, 4)), sample(normal()), sample(spaced(2, 1, 5))]


def _pairs() -> list[Sample]:
    return [
        sample(normal(3, 4), normal(3, 4)),
        sample(spaced(3, 1), spaced(1, 4)),
        sample(normal(2, 3, 4), normal(4)),
        sample(normal(), normal(5)),
    ]


def _logic() -> list[Sample]:
    return [sample(booleans(3, 4), booleans(3, 4)), sample(booleans(3, 1), booleans(5))]


def _bits() -> list[Sample]:
    return [
        sample(integers(-9, 9, 3, 4), integers(-9, 9, 3, 4)),
        sample(integers(-9, 9, 3, 1), integers(-9, 9, 5)),
        *_logic(),
    ]


def _shifts() -> list[Sample]:
    return [
        sample(integers(-99, 99, 3, 4), integers(0, 9, 3, 4)),
        sample(integers(-99, 99, 3, 1, dtype="int64"), integers(0, 9, 5, dtype="int64")),
    ]


def _truths() -> list[Sample]:
    return [
        sample(booleans(3, 4, 2), axes=(1,), keepdims=False),
        sample(booleans(3, 4, 2), axes=(0, 2), keepdims=True),
        sample(booleans(2, 3), axes=(), keepdims=False),
        sample(booleans(), axes=(), keepdims=False),
        sample(booleans(3, 0), axes=(1,), keepdims=False),
    ]


def _places() -> list[Sample]:
    return [
        sample(spaced(3, 5), axis=1, keepdims=False),
        sample(spaced(3, 5, 2), axis=0, keepdims=True),
        sample(spaced(4), axis=0, keepdims=False),
    ]


def _key() -> np.ndarray:
    return np.array([123, 4_000_000_000], np.uint32)


def _number(value: int):  # type: ignore[no-untyped-def]
    return lambda rng: np.asarray(value, np.int64)


def _random_key(rng: np.random.Generator) -> np.ndarray:
    return _key()


MORE: dict[str, list[Sample]] = {
    "all": _truths(),
    "any": _truths(),
    "argmax": _places(),
    "argmin": _places(),
    "argsort": [
        sample(spaced(3, 5), axis=1, descending=False),
        sample(spaced(3, 5), axis=0, descending=True),
    ],
    "bitwise_and": _bits(),
    "bitwise_or": _bits(),
    "bitwise_xor": _bits(),
    "bitwise_not": [sample(integers(-9, 9, 3, 4)), sample(booleans(5))],
    "ceil": _unary(),
    "floor": _unary(),
    "round": _unary(),
    "trunc": _unary(),
    "sign": _unary(sample(integers(-2, 3, 3, 4))),
    "isfinite": _unary(),
    "isinf": _unary(),
    "isnan": _unary(),
    "constant": [
        sample(value=2.5, dtype=dtypes.f64),
        sample(value=-7, dtype=dtypes.i32),
        sample(value=True, dtype=dtypes.bool_),
        sample(value=float("nan"), dtype=dtypes.f32),
    ],
    "dim_value": [sample(size=11, dtype=dtypes.i64), sample(size=3, dtype=dtypes.f32)],
    "iota": [
        sample(size=n, dtype=d)
        for n in (0, 1, 7, 300)
        for d in (dtypes.f64, dtypes.f32, dtypes.f16, dtypes.i32, dtypes.u8, dtypes.i8)
    ],
    "equal": _pairs(),
    "not_equal": _pairs(),
    "less": _pairs(),
    "less_equal": _pairs(),
    "floor_div": [*_pairs(), sample(integers(-9, 9, 3, 4), integers(-3, 3, 3, 4))],
    "mod": [sample(integers(-9, 9, 3, 4), integers(-3, 3, 3, 4))],
    "logical_and": _logic(),
    "logical_or": _logic(),
    "logical_xor": _logic(),
    "logical_not": [sample(booleans(3, 4)), sample(booleans())],
    "shift_left": _shifts(),
    "shift_right": _shifts(),
    "random_bits": [
        sample(_random_key, _number(5), shape=shape)
        for shape in ((), (3,), (2, 7), (2, 3, 5), (0, 4))
    ],
    "random_fold": [sample(_random_key, _number(77)), sample(_random_key, _number(-1))],
    "dot_steps": [
        sample(normal(3, 2), normal(7, 3), normal(7, 2), chunk=2, reverse=reverse)
        for reverse in (False, True)
    ] + [sample(normal(3, 40), normal(0, 3), normal(0, 40), chunk=2, reverse=True)],
    "row_dot": [
        sample(normal(3, 4), normal(3, 4)),
        sample(normal(2, 3, 4), normal(4)),
        sample(normal(2, 3, 4), normal(3, 4)),
        sample(normal(5), normal(5)),
    ],
    "max": [sample(normal(3, 0), axes=(0,), keepdims=False)],
    "debug_print": [sample(normal(2, 3), normal(), format="{} and {:.3f}")],
    "while": WHILES,
    "stop_gradient": [sample(normal(2, 3)), sample(normal())],
    "pow": [sample(integers(-3, 4, 3, 4), integers(0, 4, 3, 4))],
    "sum": [
        sample(normal(0, 3), axes=(0,), keepdims=False),
        sample(normal(3, 0), axes=(1,), keepdims=True),
    ],
    "prod": [sample(normal(3, 0), axes=(1,), keepdims=False)],
}


def calls() -> Iterator[tuple[str, Sample]]:
    """Every sample of every op, by name."""
    for op in all_ops():
        for s in (*SAMPLES.get(op.name, ()), *MORE.get(op.name, ())):
            yield op.name, s
