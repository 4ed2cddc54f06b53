"""The notice of an unrolled Python loop: where a scan could do the same, once, and only there."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import Notice


def notices(fn: Any, *specs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rg.trace(fn, *specs)
    return [str(w.message) for w in caught if w.category is Notice]


def recurrent(steps: int) -> Any:
    def f(xs: Any, w: Any) -> Any:
        h = w[0]
        for t in range(steps):
            h = rnp.tanh(xs[t] @ w + h)
        return h

    return f


SPECS = rg.spec("f32", 70, 3), rg.spec("f32", 3, 3)


def test_a_loop_of_more_than_64_steps_is_told_once_with_its_line() -> None:
    assert notices(recurrent(64), *SPECS) == []
    (message,) = notices(recurrent(70), *SPECS)
    assert "test_unrolled.py:" in message and "more than 64 steps" in message
    assert message.count("h = rnp.tanh(xs[t] @ w + h)") == 2
    assert "carry, ys = rg.scan(step, carry, xs)" in message


def cell(h: Any, w: Any) -> Any:
    return rnp.tanh(h @ w)


@pytest.mark.parametrize(
    "fn",
    [
        lambda xs, w: rnp.stack([rnp.tanh(xs[t] @ w) for t in range(70)]),
        lambda xs, w: [rnp.sin(x) for x in xs],
        lambda xs, w: sum(x @ w for x in xs),
    ],
    ids=["comprehension", "iteration", "sum"],
)
def test_other_spellings(fn: Any) -> None:
    (message,) = notices(fn, *SPECS)
    assert "rg.scan" in message


def test_a_loop_over_a_function_and_inside_a_gradient() -> None:
    def f(xs: Any, w: Any) -> Any:
        h = xs[0]
        for _ in range(65):
            h = cell(h, w)
        return rnp.sum(h)

    (message,) = notices(rg.grad(f, argnums=1), *SPECS)
    assert "return rnp.tanh(h @ w)" in message


def test_the_header_of_a_loop_is_no_step() -> None:
    def f(xs: Any, w: Any) -> Any:
        total = w[0]
        for x in xs:
            total = total + x
        return total

    (message,) = notices(f, *SPECS)
    assert message.count("for x in xs:") == 1 and "        ...\n" in message


LAYERS = {f"layer{i}": np.ones((3, 3), np.float32) for i in range(70)}


def layered(params: Any, x: Any) -> Any:
    for w in params.values():
        x = cell(x, w)
    return x


@pytest.mark.parametrize(
    "fn",
    [
        layered,
        lambda params, x: rg.tree.map(lambda p: p - x[0] * p, params),
        lambda params, x: sum(rnp.sum(p * p) for p in params.values()),
        lambda params, x: rg.grad(lambda p: rnp.sum(layered(p, x)))(params),
    ],
    ids=["layers", "update", "norm", "gradient"],
)
def test_a_walk_over_parameters_is_no_loop_over_time(fn: Any) -> None:
    for _ in range(4):  # the interpreter specialises what runs often: the count is the same
        assert notices(fn, LAYERS, rg.spec("f32", 3)) == []


def test_calls_from_many_lines_and_long_scans_are_no_loops() -> None:
    def f(xs: Any, w: Any) -> Any:
        h = xs[0]
        for _ in range(40):
            h = cell(h, w)
        for _ in range(40):
            h = cell(h, w)
        return rg.scan(lambda h, x: (cell(h + x, w), h), h, xs)

    assert notices(f, *SPECS) == []


def test_parts_of_unlike_shapes_are_no_steps() -> None:
    def f(flat: Any) -> Any:
        at, parts = 0, []
        for i in range(70):
            parts.append(flat[at : at + i + 1])
            at += i + 1
        return parts

    assert notices(f, rg.spec("f32", 70 * 71 // 2)) == []


def test_the_same_operation_again_is_no_step() -> None:
    def f(xs: Any, w: Any) -> Any:
        return [rnp.tanh(w) for _ in range(70)]

    assert notices(f, *SPECS) == []
