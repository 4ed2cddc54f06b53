"""Vectorize against the loop it replaces, for every op, every choice of stacked operands.

Driven by the registry: an op that has neither a batching rule nor a reason in `WITHOUT_RULE`, or
has one but no operands here or in `samples.py`, fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.errors import VerifyError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dims import Dim, dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, same_shape
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, all_ops, lookup
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.vectorize import can_vectorize
from tests.compiler.ops.harness import build, floats
from tests.compiler.ops.samples import (
    SAMPLES,
    WHILES,
    Sample,
    between,
    body,
    booleans,
    integers,
    normal,
    sample,
    spaced,
)
from tests.compiler.passes.stepwise import body_of, choices, names, vectorized

Array = npt.NDArray[Any]

WITHOUT_RULE = {
    "debug_print": "prints in every step, in order",
    "dot_steps": "made of the steps of one loop, it stays in another one",
    "flash_attention": "its lengths, segments and dropped weights are those of one batch",
    "flash_attention_grad": "likewise",
    "fused": "made after loops are done with",
    "linear_cross_entropy": "its rows are those of one batch, and its targets of one step",
    "linear_cross_entropy_grad": "likewise",
    "random_bits": "one key draws one block of bits",
    "random_fold": "one key makes one key",
    "scan": "a loop of its own",
    "cond": "each step takes its own branch",
    "while": "each step ends at its own turn",
}
COMPOSITES = [op.name for op in all_ops() if op.kind is Kind.COMPOSITE]


def _number(high: int, dtype: str) -> Any:
    return integers(0, high, dtype=dtype)


def _key(rng: np.random.Generator) -> Array:
    return rng.integers(0, 1 << 32, 2, dtype=np.uint32)


def _pairs(make: Callable[..., Any], other: Callable[..., Any]) -> list[Sample]:
    return [
        sample(make(3, 4), other(3, 4)),
        sample(make(4), other(2, 3, 1)),
        sample(make(), other(5)),
    ]


def _whole(*shape: int) -> Any:
    return integers(-3, 4, *shape, dtype="int64")


def _small(*shape: int) -> Any:
    return integers(0, 4, *shape)


def _positive(*shape: int) -> Any:
    return between(0.5, 2.0, *shape)


# Ops without a derivative, which samples.py leaves out, and shapes that meet more of the rules.
MORE: dict[str, list[Sample]] = {
    "while": WHILES,
    **{name: _pairs(_whole, _whole) for name in ("equal", "not_equal", "less", "less_equal")},
    **{f"logical_{name}": _pairs(booleans, booleans) for name in ("and", "or", "xor")},
    **{f"bitwise_{name}": _pairs(_small, _small) for name in ("and", "or", "xor")},
    **{f"shift_{name}": _pairs(_small, _small) for name in ("left", "right")},
    **{
        name: [sample(normal(3, 4)), sample(normal())]
        for name in ("ceil", "floor", "round", "trunc", "sign", "isnan", "isinf", "isfinite")
    },
    "stop_gradient": [sample(normal(3, 4))],
    "logical_not": [sample(booleans(3, 4))],
    "bitwise_not": [sample(_small(3, 4))],
    "floor_div": _pairs(normal, _positive),
    "any": [sample(booleans(3, 4), axes=(0,)), sample(booleans(3, 4), axes=(1,), keepdims=True)],
    "all": [sample(booleans(3, 4), axes=(0, 1)), sample(booleans(3, 4), axes=(1,), keepdims=True)],
    "argmax": [sample(spaced(3, 4), axis=0), sample(spaced(3, 4), axis=1, keepdims=True)],
    "argmin": [sample(spaced(3, 4), axis=1), sample(spaced(5), axis=0)],
    "argsort": [sample(spaced(3, 4), axis=0), sample(spaced(5), axis=0, descending=True)],
    "constant": [sample(value=2.5, dtype=dtypes.f64)],
    "iota": [sample(size=4, dtype=dtypes.i32)],
    "dim_value": [sample(size=4, dtype=dtypes.i64)],
    "random_bits": [sample(_key, _number(9, "int64"), shape=(3, 4))],
    "random_fold": [sample(_key, _number(9, "int64"))],
    "dot_general": [
        sample(normal(3), normal(3), contract=((0,), (0,)), batch=((), ())),
        sample(normal(4, 3), normal(3), contract=((1,), (0,)), batch=((), ())),
        sample(normal(3, 4), normal(3), contract=((0,), (0,)), batch=((), ())),
        sample(normal(4, 3), normal(2, 3), contract=((1,), (1,)), batch=((), ())),
        sample(normal(4, 3), normal(3, 1), contract=((1,), (0,)), batch=((), ())),
        sample(normal(2, 3), normal(2, 5, 3), contract=((1,), (2,)), batch=((0,), (0,))),
        sample(normal(5, 3, 2), normal(3, 2), contract=((1,), (0,)), batch=((2,), (1,))),
        sample(normal(2, 3), normal(2, 3), contract=((1,), (1,)), batch=((0,), (0,))),
        sample(normal(2, 1, 3), normal(3, 5, 2), contract=((2,), (0,)), batch=((0,), (2,))),
    ],
    "attention": [
        sample(normal(4, 3), normal(5, 3), normal(5, 2), booleans(5), causal=True),
        sample(normal(2, 4, 3), normal(2, 5, 3), normal(2, 5, 2), booleans(2, 1, 1)),
    ],
    "dot_steps": [sample(normal(3, 2), normal(5, 3), normal(5, 2), chunk=2)],
    "row_dot": [sample(normal(2, 3), normal(3))],
    "logsumexp": [sample(normal(3, 5), axes=(), keepdims=False)],
}

OPS = [op.name for op in all_ops()]
CASES = [(name, s) for name in OPS for s in (*SAMPLES.get(name, ()), *MORE.get(name, ()))]
IDS = [f"{name}-{sum(1 for n, _ in CASES[:i] if n == name)}" for i, (name, _) in enumerate(CASES)]
RULED = [(case, i) for case, i in zip(CASES, IDS, strict=True) if case[0] not in WITHOUT_RULE]


def test_every_op_is_met() -> None:
    after = {"debug_print", "scan_sweep", "scan_replay"}  # stay in loops; made after hoisting
    missing = [n for n in OPS if n not in {name for name, _ in CASES} | after]
    assert not missing, f"add operands to MORE for {missing}"
    assert sorted(WITHOUT_RULE) == sorted(set(WITHOUT_RULE) & set(OPS))


# --- one step, and all of them


@dataclass
class Steps:
    """A step's graph, the operands of each step, and which of them differ from step to step."""

    graph: Graph
    operands: list[list[Array]]
    stacked: tuple[bool, ...]
    kinds: Sequence[Array]  # operands for the types, where there is no step

    def inputs(self) -> list[Array]:
        """All steps' operands: stacked ones in front axes, shared ones as they are."""
        found = []
        for i, flag in enumerate(self.stacked):
            like = self.kinds[i]
            steps = [xs[i] for xs in self.operands]
            empty = np.empty((0, *like.shape), like.dtype)
            found.append((np.stack(steps) if steps else empty) if flag else like)
        return found


def steps_of(name: str, given: Sample, stacked: tuple[bool, ...], length: int) -> Steps:
    kinds = given.operands(100)
    graph = build(name, kinds, given.attrs)
    each = [given.operands(t) for t in range(length)]
    operands = [
        [x if flag else same for x, same, flag in zip(xs, kinds, stacked, strict=True)]
        for xs in each
    ]
    return Steps(graph, operands, stacked, kinds)


def agree(mine: Array, theirs: Array, node: Node) -> None:
    """Equal; but sums may run in another order, and NumPy's vector loops and the scalar code for
    what is left over may differ in the last bits."""
    assert mine.dtype == theirs.dtype
    if mine.dtype.kind != "f" or node.op.kind in (Kind.MOVE, Kind.INDEX, Kind.OPAQUE):
        np.testing.assert_array_equal(mine, theirs)
    elif node.op.kind is Kind.ELEMENTWISE:
        np.testing.assert_allclose(mine, theirs, rtol=1e-15, atol=0)
    else:
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


LENGTHS: list[tuple[Dim, tuple[int, ...]]] = [(1, (1,)), (3, (3,)), (dim("T", min=0), (5, 0))]


@pytest.mark.parametrize(("name", "given"), [c for c, _ in RULED], ids=[i for _, i in RULED])
def test_steps_at_once(name: str, given: Sample) -> None:
    for stacked in choices(len(given.makers)):
        for length, sizes in LENGTHS:
            step = build(name, given.operands(100), given.attrs)
            assert can_vectorize(step.nodes[0], stacked)
            made, found = vectorized(step, stacked, length)
            for v in step.outputs:
                if v in found.stacked:
                    assert same_shape(found.stacked[v].shape, (length, *v.shape))
                else:  # what a part of the op computes from shared operands alone
                    assert name == "token_nll" and v is step.outputs[1] and not stacked[0]
            for size in sizes:
                check_values(made, steps_of(name, given, stacked, size))
            if not isinstance(lookup(name).vjp, NotDifferentiable):
                gradient = Backward(floats(made.outputs), floats(made.inputs))(made)
                verify(gradient)
                for size in sizes:
                    check_gradients(gradient, steps_of(name, given, stacked, size))


def check_values(made: Graph, steps: Steps) -> None:
    node = steps.graph.nodes[0]
    each = [evaluate(steps.graph, xs) for xs in steps.operands]
    for k, mine in enumerate(evaluate(made, steps.inputs())):
        if not each:
            assert mine.shape == (0, *steps.graph.outputs[k].shape)
            continue
        agree(mine, np.stack([results[k] for results in each]), node)


def check_gradients(gradient: Graph, steps: Steps) -> None:
    """The cotangent of a shared operand is the sum over the steps of those of each step."""
    rng = np.random.default_rng(7)
    graph, count = steps.graph, len(steps.operands)
    results, wanted = floats(graph.outputs), floats(graph.inputs)
    seeds = [rng.uniform(0.5, 1.5, (count, *graph.outputs[i].shape)) for i in results]
    first = Backward(results, wanted)(graph)
    found = evaluate(gradient, [*steps.inputs(), *seeds])[len(graph.outputs) :]
    each = [
        evaluate(first, [*xs, *(np.asarray(s[t]) for s in seeds)])[len(graph.outputs) :]
        for t, xs in enumerate(steps.operands)
    ]
    for k, (i, mine) in enumerate(zip(wanted, found, strict=True)):
        like = steps.kinds[i]
        if steps.stacked[i]:
            theirs = np.stack([gs[k] for gs in each]) if each else np.empty((0, *like.shape))
        else:
            theirs = sum((gs[k] for gs in each), np.zeros(like.shape))
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "given"), CASES, ids=IDS)
def test_what_is_shared_is_computed_once(name: str, given: Sample) -> None:
    operands = given.operands()
    step = build(name, operands, given.attrs)
    flags = (False,) * len(operands)
    assert can_vectorize(step.nodes[0], flags)
    made, found = vectorized(step, flags, dim("T", min=0))
    assert not found.stacked
    assert names(made) == names(step)
    for mine, theirs in zip(evaluate(made, operands), evaluate(step, operands), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("name", COMPOSITES)
def test_composites_stay_composites(name: str) -> None:
    """The one that does not is the loss of shared logits, whose logsumexp is computed once."""
    for given in (*SAMPLES[name], *MORE.get(name, ())):
        step = build(name, given.operands(), given.attrs)
        for stacked in choices(len(given.makers)):
            found = names(vectorized(step, stacked, 3)[0])
            once = "logsumexp" if name == "token_nll" and not stacked[0] else name
            assert [n for n in found if n in COMPOSITES] == [once]


# --- what has no rule


@pytest.mark.parametrize("name", sorted(set(WITHOUT_RULE) - {"debug_print"}))
def test_ops_without_a_rule_say_so(name: str) -> None:
    given = (SAMPLES.get(name) or MORE[name])[0]
    step = build(name, given.operands(), given.attrs)
    for stacked in choices(len(given.makers)):
        assert not can_vectorize(step.nodes[0], stacked)
        with pytest.raises(VerifyError, match=f"no rule for {name}"):
            vectorized(step, stacked, 3)


def printing(x: Expr) -> tuple[Expr, ...]:
    lookup("debug_print")(x, format="{}")
    return (x * x,)


def test_effects_stay_where_they_are() -> None:
    """Also inside a call, and also where the same thing would be printed in every step."""
    inner = body(printing, (3,))
    shown = inner.nodes[0]
    called = build("call", [np.zeros(3)], {"body": inner}).nodes[0]
    for flag in (False, True):
        assert not can_vectorize(shown, (flag,))
        assert not can_vectorize(called, (flag,))
    with pytest.raises(VerifyError, match="debug_print"):
        vectorized(inner, (True,), 3)


def test_a_call_is_as_good_as_its_body() -> None:
    fold = body_of(lambda key, n: (lookup("random_fold")(key, n),), (dtypes.u32, 2), (dtypes.i64,))
    called = build("call", [np.zeros(2, np.uint32), np.int64(1)], {"body": fold}).nodes[0]
    assert can_vectorize(called, (False, False))
    assert not can_vectorize(called, (False, True))


def test_a_call_may_hold_what_is_computed_once() -> None:
    """Only what stacked operands reach needs a rule, and only that is stacked."""
    fold, types = lookup("random_fold"), ((dtypes.u32, 2), (dtypes.i64,), (dtypes.f64, 3))
    inner = body_of(lambda key, n, x: (fold(key, n), x * 2.0), *types)
    step = body_of(lambda *operands: lookup("call")(*operands, body=inner), *types)
    assert can_vectorize(step.nodes[0], (False, False, True))
    _, found = vectorized(step, (False, False, True), dim("T"))
    assert [v in found.stacked for v in step.outputs] == [False, True]
