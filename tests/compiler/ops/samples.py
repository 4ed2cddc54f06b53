"""Sample calls of every differentiable op: op name -> operands in its domain, and attributes.

The gradient test reads this table and fails for an op that is not in it.  Add a line here with an
op.  Rules: sizes differ on every axis; operands keep clear of kinks and of the border of the
domain by more than the test's steps (0.05 is plenty); float operands are f64 and differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.registry import lookup

Array = npt.NDArray[Any]
Maker = Callable[[np.random.Generator], Array]  # one operand


@dataclass(frozen=True)
class Sample:
    """One call of an op: how each operand is made, and the attributes (or how these are made)."""

    makers: tuple[Maker, ...]
    given: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.given() if callable(self.given) else self.given

    def operands(self, seed: int = 0) -> list[Array]:
        rng = np.random.default_rng(seed)
        return [make(rng) for make in self.makers]


def sample(*makers: Maker, **attrs: Any) -> Sample:
    return Sample(makers, attrs)


# --- operands


def between(low: float, high: float, *shape: int) -> Maker:
    """Uniform numbers."""
    return lambda rng: np.asarray(rng.uniform(low, high, shape))


def normal(*shape: int) -> Maker:
    return lambda rng: np.asarray(rng.standard_normal(shape))


def spaced(*shape: int) -> Maker:
    """Numbers of both signs that lie at least 0.2 apart, and from 0."""

    def make(rng: np.random.Generator) -> Array:
        n = int(np.prod(shape))
        numbers = 0.3 * (np.arange(n) - n // 2) + rng.uniform(0.1, 0.2, n)
        return np.asarray(rng.permutation(numbers).reshape(shape))

    return make


def with_zeros(*shape: int) -> Maker:
    """Numbers around 1, some of them exactly 0 (for ops that are smooth there)."""

    def make(rng: np.random.Generator) -> Array:
        x = rng.uniform(0.5, 1.5, shape)
        return np.asarray(np.where(rng.uniform(size=shape) < 0.3, 0.0, x))

    return make


def integers(low: int, high: int, *shape: int, dtype: str = "int32") -> Maker:
    return lambda rng: np.asarray(rng.integers(low, high, shape)).astype(dtype)


def booleans(*shape: int) -> Maker:
    return lambda rng: np.asarray(rng.uniform(size=shape) < 0.5)


# --- elementwise


def _unary(make: Callable[..., Maker]) -> list[Sample]:
    return [sample(make(3, 4)), sample(make()), sample(make(2, 1, 5))]


def _inside(low: float, high: float) -> list[Sample]:
    return _unary(lambda *shape: between(low, high, *shape))


def _binary(a: Callable[..., Maker], b: Callable[..., Maker]) -> list[Sample]:
    """Equal shapes, and every way to broadcast: a vector, both operands, a scalar."""
    return [
        sample(a(3, 4), b(3, 4)),
        sample(a(2, 3, 4), b(4)),
        sample(a(3, 1), b(1, 4)),
        sample(a(), b(5)),
        sample(a(1, 4, 1), b(3, 1, 5)),
    ]


def _span(low: float, high: float) -> Callable[..., Maker]:
    return lambda *shape: between(low, high, *shape)


def _far(*shape: int) -> Maker:
    """Numbers that no element of `spaced` comes near."""

    def make(rng: np.random.Generator) -> Array:
        return 0.3 * rng.integers(-6, 6, shape) + rng.uniform(-0.04, 0.04, shape)

    return make


SAMPLES: dict[str, list[Sample]] = {
    "abs": _unary(spaced),
    "neg": _unary(normal),
    "reciprocal": _unary(_span(0.5, 2.0)),
    "exp": _unary(normal),
    "exp2": _unary(normal),
    "expm1": _unary(normal),
    "log": _inside(0.5, 3.0),
    "log2": _inside(0.5, 3.0),
    "log1p": _inside(-0.5, 2.0),
    "sqrt": _inside(0.5, 3.0),
    "rsqrt": _inside(0.5, 3.0),
    "sin": _unary(normal),
    "cos": _unary(normal),
    "tan": _inside(-1.0, 1.0),
    "arcsin": _inside(-0.7, 0.7),
    "arccos": _inside(-0.7, 0.7),
    "arctan": _unary(normal),
    "sinh": _unary(normal),
    "cosh": _unary(normal),
    "tanh": _unary(normal),
    "arcsinh": _unary(normal),
    "arccosh": _inside(1.5, 4.0),
    "arctanh": _inside(-0.7, 0.7),
    "relu": _unary(spaced),
    "sigmoid": _unary(normal),
    "softplus": _unary(normal),
    "erf": _unary(normal),
    "erfc": _unary(normal),
    "add": _binary(normal, normal),
    "sub": _binary(normal, normal),
    "mul": _binary(normal, normal),
    "div": _binary(normal, _span(0.5, 2.0)),
    "mod": _binary(_span(2.2, 2.8), _span(0.95, 1.05)),
    "pow": _binary(_span(0.5, 2.0), _span(-2.0, 2.0)),
    "maximum": _binary(spaced, _far),
    "minimum": _binary(spaced, _far),
    "arctan2": _binary(_span(0.5, 1.5), _span(-1.0, 1.0)),
    "logaddexp": _binary(normal, normal),
    "hypot": _binary(_span(0.3, 1.5), _span(-1.0, 1.0)),
    "copysign": _binary(spaced, spaced),
    "select": [
        sample(booleans(3, 4), normal(3, 4), normal(3, 4)),
        sample(booleans(3, 1), normal(4), normal()),
        sample(booleans(4), normal(3, 1), normal(2, 3, 4)),
    ],
}

# --- reductions and running ops


def _reductions(make: Callable[..., Maker]) -> list[Sample]:
    return [
        sample(make(3, 4, 2), axes=(1,), keepdims=False),
        sample(make(3, 4, 2), axes=(0, 2), keepdims=True),
        sample(make(2, 3), axes=(0, 1), keepdims=False),
        sample(make(2, 3), axes=(), keepdims=False),
        sample(make(), axes=(), keepdims=False),
    ]


def _running(make: Callable[..., Maker]) -> list[Sample]:
    return [
        sample(make(5), axis=0, reverse=False),
        sample(make(3, 4, 2), axis=1, reverse=True),
        sample(make(3, 4), axis=0, reverse=False),
    ]


SAMPLES |= {
    "sum": _reductions(normal),
    "prod": [*_reductions(normal), *_reductions(with_zeros)],
    "max": _reductions(spaced),
    "min": _reductions(spaced),
    "cumsum": _running(normal),
    "cumprod": [*_running(normal), *_running(with_zeros)],
    "cummax": _running(spaced),
    "cummin": _running(spaced),
    "linear_recurrence": [
        sample(normal(5), normal(5), axis=0, reverse=False),
        sample(normal(3, 4, 2), normal(3, 4, 2), axis=1, reverse=True),
    ],
    "sort": [
        sample(spaced(7), axis=0, descending=False),
        sample(spaced(3, 5, 2), axis=1, descending=True),
    ],
    "top_k": [sample(spaced(7), k=3), sample(spaced(2, 3, 5), k=2), sample(spaced(4), k=4)],
}

# --- regions


def body(fn: Callable[..., tuple[Expr, ...]], *shapes: tuple[int, ...]) -> Graph:
    """The graph of `fn` on f64 operands of these shapes."""
    builder = Builder("body", Expr)
    with builder:
        results = fn(*(builder.input(TensorType(dtypes.f64, shape)) for shape in shapes))
    return builder.finish([e.value for e in results])


def _curve(x: Expr, w: Expr) -> tuple[Expr, ...]:
    return lookup("tanh")(x * w), x * x * w


def _calls() -> list[Sample]:
    return [Sample((normal(3, 4), normal(4)), lambda: {"body": body(_curve, (3, 4), (4,))})]


def _cell(carry: Expr, x: Expr, w: Expr) -> tuple[Expr, ...]:
    new = lookup("tanh")(carry * w + x)
    return new, new * x


def _scans() -> list[Sample]:
    def attrs(length: int, reverse: bool) -> Mapping[str, Any]:
        step = body(_cell, (3,), (3,), (3,))
        return {"body": step, "carries": 1, "slices": 1, "length": length, "reverse": reverse}

    return [
        Sample((normal(3), normal(5, 3), normal(3)), lambda: attrs(5, False)),
        Sample((normal(3), normal(1, 3), normal(3)), lambda: attrs(1, True)),
        Sample((normal(3), normal(4, 3), normal(3)), lambda: attrs(4, True)),
    ]


def _custom() -> Mapping[str, Any]:
    """x exp(x) with its gradient written by hand, from the saved exponential."""

    def forward(x: Expr) -> tuple[Expr, ...]:
        e = lookup("exp")(x)
        return x * e, x, e

    return {
        "body": body(lambda x: (x * lookup("exp")(x),), (3, 4)),
        "forward": body(forward, (3, 4)),
        "backward": body(lambda x, e, g: (g * (x + 1.0) * e,), (3, 4), (3, 4), (3, 4)),
    }


def _true(rng: np.random.Generator) -> Array:
    return np.asarray(True)


def _false(rng: np.random.Generator) -> Array:
    return np.asarray(False)


def _conds() -> list[Sample]:
    """Branches that read other operands, return one of them, or a constant."""

    def branches() -> Mapping[str, Any]:
        def otherwise(x: Expr, w: Expr) -> tuple[Expr, ...]:
            half = Builder.constant(x.builder, 0.5, dtypes.f64)
            return x * x * x, lookup("broadcast_to")(half, shape=(3, 4))

        shapes = (3, 4), (4,)
        return {"then": body(_curve, *shapes), "otherwise": body(otherwise, *shapes)}

    return [
        Sample((_true, normal(3, 4), normal(4)), branches),
        Sample((_false, normal(3, 4), normal(4)), branches),
    ]


def _repeated() -> Mapping[str, Any]:
    """h -> 0.5 h + w while the sum of |h| is large; counts the turns."""

    def go_on(h: Expr, w: Expr, n: Expr) -> tuple[Expr, ...]:
        total = lookup("sum")(lookup("abs")(h), axes=(0,), keepdims=False)
        return (total > 1.0,)

    def turn(h: Expr, w: Expr, n: Expr) -> tuple[Expr, ...]:
        return h * 0.5 + w * 0.01, w, n + 1.0

    shapes = (3,), (3,), ()
    return {"condition": body(go_on, *shapes), "body": body(turn, *shapes), "carries": 3}


# Not in the table: it has no derivative.
WHILES = [Sample((normal(3), normal(3), normal()), _repeated)]

SAMPLES |= {
    "cond": _conds(),
    "call": _calls(),
    "remat_call": _calls(),
    "fused": _calls(),
    "custom_call": [Sample((normal(3, 4),), _custom)],
    "scan": _scans(),
}

# --- moves and windows

SAMPLES |= {
    "cast": [sample(normal(2, 3), dtype=dtypes.f64)],
    "reshape": [sample(normal(2, 6), shape=(3, 4)), sample(normal(1, 1), shape=())],
    "transpose": [sample(normal(2, 3, 4), perm=(2, 0, 1)), sample(normal(), perm=())],
    "broadcast_to": [
        sample(normal(3, 1), shape=(2, 3, 4)),
        sample(normal(), shape=(2, 3)),
        sample(normal(2, 3), shape=(2, 3)),
    ],
    "flip": [sample(normal(2, 3, 4), axes=(0, 2)), sample(normal(3), axes=())],
    "concatenate": [
        sample(normal(2, 3), normal(4, 3), normal(1, 3), axis=0),
        sample(normal(2, 3), normal(2, 1), axis=1),
    ],
    "slice": [
        sample(normal(5, 4), start=(1, 0), stop=(4, 4), step=(1, 1)),
        sample(normal(9, 7), start=(1, 2), stop=(8, 7), step=(3, 2)),
        sample(normal(5, 4), start=(2, 1), stop=(2, 3), step=(2, 1)),
    ],
    "pad": [
        sample(normal(2, 3), low=(1, 0), high=(0, 2), interior=(0, 0)),
        sample(normal(3, 2), low=(0, 1), high=(2, 3), interior=(2, 1), value=1.5),
        sample(normal(), low=(), high=(), interior=()),
    ],
    "set_slice": [
        sample(normal(5, 4), normal(2, 3), start=(1, 1), step=(1, 1)),
        sample(normal(9, 7), normal(3, 2), start=(1, 2), step=(3, 4)),
    ],
}

# --- places from data (the indices repeat, and count from both ends)


def _places(*axes: int, wrap: bool = True) -> Mapping[str, Any]:
    return {"axes": axes, "wrap": wrap}


def _scatters() -> list[Sample]:
    return [
        Sample((normal(4, 3), normal(7, 3), integers(-4, 4, 7)), _places(0)),
        Sample((normal(3, 4), normal(2, 5, 3), integers(-4, 4, 2, 5)), _places(1)),
        Sample(
            (normal(3, 4, 2), normal(9, 4), integers(0, 3, 9), integers(-2, 2, 9, dtype="int64")),
            _places(0, 2),
        ),
        Sample((normal(3, 4), normal(6), integers(0, 3, 6), integers(0, 4, 6)), _places(0, 1)),
        Sample((normal(3, 4), normal(4), integers(-3, 3)), _places(0)),
    ]


def _without_updates(scatter: Sample) -> Sample:
    return Sample((scatter.makers[0], *scatter.makers[2:]), scatter.given)


SAMPLES |= {
    "gather": [_without_updates(s) for s in _scatters()],
    "scatter_add": _scatters(),
    "scatter_set": _scatters(),
}

# --- contractions

SAMPLES |= {
    "dot_general": [
        sample(normal(2, 3), normal(3, 4), contract=((1,), (0,)), batch=((), ())),
        sample(normal(2, 5, 3), normal(3, 4), contract=((2,), (0,)), batch=((), ())),
        sample(normal(2, 3, 4), normal(2, 4, 5), contract=((2,), (1,)), batch=((0,), (0,))),
        sample(
            normal(4, 2, 5, 3), normal(3, 5, 6, 4), contract=((2, 3), (1, 0)), batch=((0,), (3,))
        ),
        sample(normal(2, 3), normal(4), contract=((), ()), batch=((), ())),
        sample(normal(2, 3), normal(3, 2), contract=((), ()), batch=((0, 1), (1, 0))),
        sample(normal(2, 3), normal(2, 3), contract=((0, 1), (0, 1)), batch=((), ())),
        sample(normal(2, 0), normal(0, 3), contract=((1,), (0,)), batch=((), ())),
    ],
    "row_dot": [
        sample(normal(2, 3, 4), normal(2, 3, 4)),
        sample(normal(2, 3, 4), normal(1, 4)),
        sample(normal(5), normal(5)),
    ],
}

# --- composites


def nothing_in_first(*shape: int) -> Maker:
    """A random mask whose first row is empty."""

    def make(rng: np.random.Generator) -> Array:
        mask = rng.uniform(size=shape) < 0.7
        mask[..., 0, :] = False
        return np.asarray(mask)

    return make


def _norms(parameters: int) -> list[Sample]:
    return [
        sample(*(normal(2, 3, 5), *(normal(5) for _ in range(k))), eps=eps)
        for k, eps in zip(range(parameters + 1), (1e-5, 0.1, 1e-3), strict=False)
    ] + [sample(normal(5), *(normal(5) for _ in range(parameters)), eps=1e-5)]


SAMPLES |= {
    "softmax": [sample(normal(3, 5), axis=1), sample(normal(2, 4, 3), axis=1)],
    "log_softmax": [sample(normal(3, 5), axis=1), sample(normal(2, 4, 3), axis=1)],
    "logsumexp": [
        sample(normal(3, 5), axes=(1,), keepdims=False),
        sample(normal(2, 4, 3), axes=(0, 2), keepdims=True),
    ],
    "token_nll": [
        sample(normal(2, 3, 5), integers(0, 5, 2, 3)),
        sample(normal(5), integers(0, 5, dtype="int64")),
    ],
    "layer_norm": _norms(2),
    "rms_norm": _norms(1),
    "gelu": [sample(m, approximate=a) for a in (True, False) for m in (normal(3, 4), normal())],
    "silu": _unary(normal),
    "attention": [
        sample(normal(4, 3), normal(5, 3), normal(5, 2)),
        sample(normal(2, 4, 3), normal(2, 4, 3), normal(2, 4, 5), causal=True, scale=0.7),
        sample(normal(2, 4, 3), normal(2, 6, 3), normal(2, 6, 5), nothing_in_first(2, 4, 6)),
        sample(normal(2, 2, 4, 3), normal(2, 2, 6, 3), normal(2, 2, 6, 5), booleans(1, 4, 6),
               causal=True),
    ],
}  # fmt: skip


def flash_calls(grad: bool) -> list[Sample]:
    """Tiled attention: every extra, key heads that are shared."""

    def call(heads: int, shared: int, *extras: Maker, **attrs: Any) -> Sample:
        b, t, s, d, e = 2, 4, 5, 3, 6
        rest = (normal(b, heads, t, e), normal(b, heads, t), normal(b, heads, t, e)) * grad
        operands = (normal(b, heads, t, d), normal(b, shared, s, d), normal(b, shared, s, e))
        return sample(*operands, *extras, *rest, **attrs)

    def mask(rng: np.random.Generator) -> Array:
        open_ = rng.uniform(size=(2, 1, 4, 5)) < 0.5
        open_[..., 0] = True  # for each query one: of nothing the log-sum-exp is -inf
        return np.asarray(open_)

    def segments(n: int) -> Maker:
        return lambda rng: (np.array([[0], [1]]) + np.arange(n) // 2 % 2).astype("int32")

    words = integers(0, 2**32, 2, dtype="uint32")
    return [
        call(1, 1),
        call(2, 2, high=1, low=-1, scale=0.7),
        call(4, 2, integers(1, 6, 2), mask, extras=("lengths", "mask"), high=1),
        call(3, 1, segments(4), segments(5), normal(1, 3, 1, 5),
             extras=("query_segments", "key_segments", "bias")),
        call(2, 1, words, integers(0, 9, dtype="int64"), extras=("drop_key", "drop_row"),
             keep=0.75),
    ]  # fmt: skip


SAMPLES |= {"flash_attention": flash_calls(False), "flash_attention_grad": flash_calls(True)}


def head_calls(grad: bool) -> list[Sample]:
    """A product and its cross-entropy: both layouts of w, every extra."""

    def call(*extras: Maker, transposed: bool = False, **attrs: Any) -> Sample:
        n, d, v = 4, 3, 5
        w = normal(v, d) if transposed else normal(d, v)
        rest = (normal(n), normal(n), normal(n)) * grad
        operands = (normal(n, d), w, integers(0, v, n), *extras, *rest)
        return sample(*operands, transposed=transposed, **attrs)

    def kept(rng: np.random.Generator) -> Array:
        return np.array([True, False, True, True])

    return [
        call(),
        call(normal(5), transposed=True, extras=("bias",)),
        call(kept, transposed=True, extras=("kept",)),
        call(normal(5), kept, extras=("bias", "kept")),
    ]


SAMPLES |= {
    "linear_cross_entropy": head_calls(False), "linear_cross_entropy_grad": head_calls(True),
}  # fmt: skip
