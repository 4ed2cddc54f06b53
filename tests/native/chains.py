"""Random chains of elementwise ops, stretched operands and row reductions: seed -> a graph.

Invariant: values stay within a few units and every op is smooth where it is used, so that a result
in f32 lies as near to that in f64 as rounding leaves it.
"""

from __future__ import annotations

import random

from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr
from tests.native.op_calls import Calls, M, N, numbers, op

SMOOTH = ("tanh", "sin", "sigmoid", "arctan", "erf", "softplus", "cos")
SHAPES = ((N, M), (N, 1), (M,), (1, M), (2, N, M), ())


def chains(seed: int, dtype: DType, count: int) -> Calls:
    """So many chains in one graph; the same choices for every dtype."""
    calls, choose = Calls(f"chains_{seed}"), random.Random(seed)
    with calls.builder:
        pool = [calls.input(numbers(dtype), dtype, *shape) for shape in SHAPES]
        pool.append(op("transpose", calls.input(numbers(dtype), dtype, M, N), perm=(1, 0)))
        pool.append(op("flip", calls.input(numbers(dtype), dtype, N, M), axes=(0, 1)))
        for number in range(count):
            x = choose.choice([v for v in pool if v.ndim >= 2])
            for _ in range(choose.randrange(2, 9)):
                x = _step(x, pool, choose)
                if choose.random() < 0.2:
                    calls.outputs.append(x)
                    calls.labels.append(f"within {number}")
            calls.outputs.append(x)
            calls.labels.append(f"chain {number}")
    return calls.finish()


def _step(x: Expr, pool: list[Expr], choose: random.Random) -> Expr:
    kind = choose.randrange(5)
    if kind == 0:
        return op(choose.choice(SMOOTH), x)  # type: ignore[no-any-return]
    if kind == 1:
        y = choose.choice(pool)
        return op("tanh", getattr(x, choose.choice(("__add__", "__sub__", "__mul__")))(y))  # type: ignore[no-any-return]
    if kind == 2:
        y = choose.choice(pool)
        return op(choose.choice(("maximum", "minimum")), x, y)  # type: ignore[no-any-return]
    last = x.ndim - 1
    total = op("sum", x * x, axes=(last,), keepdims=True)
    if kind == 3:
        return x / op("sqrt", total + 1.0)  # type: ignore[no-any-return]
    kept = op("sum", op("sin", x), axes=(last,), keepdims=True)
    return op("sigmoid", x) + kept / (total + 1.0)  # type: ignore[no-any-return]
