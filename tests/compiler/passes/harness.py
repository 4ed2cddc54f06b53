"""Passes on graphs written as text: what goes in, what comes out, and that both give the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.text import parse
from retrograde.compiler.ir.verify import verify
from tests.device.harness import same_bits

Array = npt.NDArray[Any]
Pass = Callable[[Graph], Graph]
SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-310, 3.5, -2.25, 1e30)
SIZES = {"B": 3, "T": 5, "N": 7}


def plain(graph: Graph) -> str:
    """The text without source lines."""
    return re.sub(r" *# .*", "", graph.text()).strip()


def written(text: str) -> Graph:
    """A graph from its body: `(inputs) { nodes return … }` with sizes B, T and N."""
    return parse(f"dims B>=1, T>=1, N>=1\ngraph f{text}")


def inputs_for(
    graph: Graph, sizes: Mapping[str, int], special: bool = True, seed: int = 0
) -> list[Array]:
    """Numbers of every kind, other ones in each row; integers from -3 to 3."""
    rng = np.random.default_rng(seed)
    out: list[Array] = []
    for v in graph.inputs:
        shape = tuple(dims.evaluate(d, sizes) for d in v.shape)
        if v.dtype.name == "bool":
            x = rng.uniform(size=shape) < 0.5
        elif not v.dtype.is_float:
            x = rng.integers(0 if v.dtype.kind == "uint" else -3, 4, shape)
        elif special:
            x = np.where(
                rng.uniform(size=shape) < 0.7, rng.choice(SPECIAL, shape), rng.normal(size=shape)
            )
        else:
            x = rng.normal(size=shape)
        with np.errstate(all="ignore"):
            out.append(np.asarray(x).astype(v.dtype.numpy))
    return out


def same_numbers(
    before: Graph,
    after: Graph,
    exact: bool = True,
    signed: bool = True,
    seeds: Sequence[int] = range(4),
) -> None:
    """Both graphs give the same bits (up to NaN payloads, and signs of zeros if not `signed`), or
    nearly the same numbers."""
    for seed in seeds:
        arrays = inputs_for(before, SIZES, special=exact, seed=seed)
        sizes = {s: n for s, n in SIZES.items() if s in before.symbols()}
        pairs = zip(evaluate(before, arrays, sizes), evaluate(after, arrays, sizes), strict=True)
        for x, y in pairs:
            if exact and not signed:
                np.testing.assert_array_equal(x, y, strict=True)
            elif exact:
                same_bits(x, y)
            else:
                assert (x.dtype, x.shape) == (y.dtype, y.shape)
                np.testing.assert_allclose(y, x, rtol=1e-12, atol=1e-12)


def becomes(
    transform: Pass, before: str, after: str, exact: bool = True, signed: bool = True
) -> Graph:
    """`transform` turns one text into the other (or leaves it, for ""), with the same numbers."""
    graph = written(before)
    verify(graph)
    found = transform(graph)
    verify(found, made_by=type(transform).__name__)
    if after:
        assert plain(found) == plain(written(after))
    else:
        assert found is graph
    same_numbers(graph, found, exact, signed)
    assert transform(found) is found or plain(transform(found)) == plain(found)
    return found


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


def same_shape_outputs(a: Graph, b: Graph) -> None:
    assert [str(v.type) for v in a.outputs] == [str(v.type) for v in b.outputs]
