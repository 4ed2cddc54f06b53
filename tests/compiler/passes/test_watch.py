"""Probes on carries change no number and no type; a graph without loops stays what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import parse
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.watch import watch_carries

B, D = 3, 4


def gated(xs: Any, flags: Any) -> Any:
    """A carry that is chosen, whose new value is read by the result and by the next carry."""

    def body(carry: Any, given: Any) -> Any:
        h, c, n = carry
        x, flag = given
        new = rnp.tanh(h + x)
        c = rnp.where(flag, c, rnp.sin(new) * c)
        return (rnp.where(flag, new, h), c, n + 1), (new * 2.0, c)

    init = (rnp.zeros((B, D), "f64"), rnp.ones((B, D), "f64"), 0)
    return rg.scan(body, init, (xs, flags), reverse=True)


def branched(xs: Any, flags: Any) -> Any:
    def some(xs: Any) -> Any:
        return rg.scan(lambda h, x: (h * 0.5 + x, h), rnp.zeros((B, D), "f64"), xs)[1]

    def other(xs: Any) -> Any:
        ys = rg.scan(lambda h, x: (rnp.sin(h) + x, h), rnp.ones((B, D), "f64"), xs)[1]
        return rg.scan(lambda h, x: (h - x, h), rnp.ones((B, D), "f64"), ys)[1]

    def body(h: Any, flag: Any) -> Any:
        ys = rg.cond(rnp.any(flag), some, other, xs + h)
        return h + rnp.sum(ys, axis=0), rg.remat(some)(xs)

    return rg.scan(body, rnp.zeros((B, D), "f64"), flags)


@pytest.mark.parametrize(
    ("fn", "carries"), [(gated, [(1,), (1,)]), (branched, [(1,), (2,), (2,), (2,), (2,)])]
)
@pytest.mark.parametrize("per_row", [False, True])
def test_values_stay_bit_for_bit(fn: Any, carries: list[tuple[int]], per_row: bool) -> None:
    rng = np.random.default_rng(1)
    xs, flags = rng.normal(size=(5, B, D)), rng.uniform(size=(5, B, 1)) < 0.5
    graph = rg.trace(fn, rg.spec("f64", "T", B, D), rg.spec("bool", "T", B, 1))
    watched, found = watch_carries(graph, per_row)
    verify(watched)
    assert parse(watched.text()).text() == watched.text()
    assert [(len(c.reverse),) for c in found] == carries
    probes = [v.type for v in watched.inputs[2:]]
    rows = (B,) if per_row else ()
    given = [rng.normal(size=(*(5,) * len(c.reverse), *rows)) for c in found]
    assert [(len(t.shape), t.dtype.name) for t in probes] == [(x.ndim, "f64") for x in given]
    expected = evaluate(graph, [xs, flags])
    for a, b in zip(evaluate(watched, [xs, flags, *given]), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_nothing_to_watch() -> None:
    graph = rg.trace(lambda x: rnp.sum(x), rg.spec("f32", "N"))
    assert watch_carries(graph) == (graph, ())
