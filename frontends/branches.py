"""What runs is decided by a value: `cond(condition, then, otherwise, …)`, `while_loop(…)`.

Each function is traced once, into a graph of its own; what it uses from outside becomes an operand.
Invariant: both branches return trees of the same structure, shapes and dtypes, and a carry leaves
the body as the type that it enters with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder, current, new_value
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, apply, cast
from retrograde.compiler.ir.graph import Graph, Value, same_shape
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.eager_mode import EagerBuilder, EagerTracer, array_of
from retrograde.jitted import shared_jit
from retrograde.loops import Wider, again, fits, matched
from retrograde.tracer import Tracer
from retrograde.tracing import (
    Traced,
    argument_names,
    checked_function,
    default_dtype,
    expression,
    is_traced,
    leaf_names,
    lifted,
    strong,
    trace_inner,
)

Function = Callable[..., Any]


# --- cond


def cond(condition: Any, then: Function, otherwise: Function, *operands: Any) -> Any:
    """`then(*operands)` where `condition`, one boolean, is true, else `otherwise(*operands)`.

    Only the branch taken runs, forward and backward.  Operands and results are trees of arrays;
    the branches may use traced values from outside.  Raises ShapeError or DTypeError where their
    results differ, naming the leaf."""
    checked_function(then)
    checked_function(otherwise)
    if not is_traced():

        def call(condition: Any, *operands: Any) -> Any:
            return cond(condition, then, otherwise, *operands)

        made = shared_jit(then, ("cond", otherwise), call, (otherwise,))
        return made(_given(condition), *operands)
    flag = _flag(condition, "the condition of rg.cond")
    if isinstance(flag, EagerTracer):
        return _taken(bool(array_of(flag)), then, otherwise, operands)
    first, second, types = _branches(then, otherwise, operands)
    shared = _shared([first.captured, second.captured])
    graphs = {
        "then": _finished(first, types, shared),
        "otherwise": _finished(second, types, shared),
    }
    declared = [x for _, x, _ in _leaves(then, operands)]
    results = apply(lookup("cond"), [flag, *declared, *shared.values()], graphs)
    return tree.unflatten(first.structure, results if isinstance(results, tuple) else (results,))


def _given(condition: Any) -> Any:
    """A condition that is no array yet as one, so that its value is no part of the program."""
    return np.asarray(condition) if isinstance(condition, (bool, np.bool_)) else condition


def _flag(x: Any, what: str) -> Expr:
    """One boolean; ShapeError or DTypeError, with the way out, for anything else."""
    found = expression(x, what)
    if found.shape:
        raise ShapeError(
            f"{where()}{what} is {found.type}, and one boolean decides: reduce it with rnp.any or "
            "rnp.all, or choose element by element with rnp.where"
        )
    if found.dtype is not dtypes.bool_:
        raise DTypeError(f"{where()}{what} is {found.type}, not a boolean: compare it, as in x > 0")
    return found


def _leaves(fn: Function, operands: Sequence[Any]) -> list[tuple[int, Expr, str]]:
    """The leaves of the operands that are traced: their places, expressions and names."""
    names = leaf_names(operands, argument_names(fn, len(operands)))
    return [
        (i, expression(x, name), name)
        for i, (x, name) in enumerate(zip(tree.leaves(operands), names, strict=True))
        if isinstance(x, (Expr, np.ndarray))
    ]


def _branches(
    then: Function, otherwise: Function, operands: tuple[Any, ...]
) -> tuple[Traced, Traced, list[DType]]:
    """Both branches, and the dtypes in which their results meet."""
    flat, structure = tree.flatten(operands)

    def traced(fn: Function, name: str) -> Traced:
        found = _leaves(fn, operands)

        def call(inner: list[Expr]) -> Any:
            given = list(flat)
            for (i, _, _), x in zip(found, inner, strict=True):
                given[i] = x
            return fn(*tree.unflatten(structure, given))

        types, names = [x.type for _, x, _ in found], [label for *_, label in found]
        return trace_inner(name, types, names, call, [x.weak for _, x, _ in found])

    first, second = traced(then, "then"), traced(otherwise, "otherwise")
    if first.structure != second.structure:
        raise ShapeError(
            f"{where()}the branches of rg.cond return other structures: "
            f"{tree.difference(first.structure, second.structure)}"
        )
    dtypes = []
    leaves = zip(
        tree.names(first.structure), first.graph.outputs, first.weak,
        second.graph.outputs, second.weak, strict=True,
    )  # fmt: skip
    for path, a, a_weak, b, b_weak in leaves:
        label = f"the result {path}" if path else "the result"
        differs = f"{where()}{label} of rg.cond is {a.type} of then and {b.type} of otherwise"
        if not same_shape(a.shape, b.shape):
            raise ShapeError(f"{differs}: both branches must return the same shapes")
        dtype = _common(a, a_weak, b, b_weak)
        if dtype is None:
            raise DTypeError(f"{differs}: cast one, with .astype('{b.dtype}')")
        dtypes.append(dtype)
    return first, second, dtypes


def _common(a: Value, a_weak: bool, b: Value, b_weak: bool) -> DType | None:
    """The dtype of a result; plain numbers take that of the other branch."""
    if a_weak and b_weak:
        return default_dtype(a.dtype if fits(a.dtype, b.dtype) else b.dtype)
    if a_weak and fits(b.dtype, a.dtype):
        return b.dtype
    if b_weak and fits(a.dtype, b.dtype):
        return a.dtype
    x, y = (default_dtype(v.dtype) if w else v.dtype for v, w in ((a, a_weak), (b, b_weak)))
    return x if x is y else None


def _shared(captured: Sequence[Sequence[Any]]) -> dict[Value, Expr]:
    """What several functions use from outside, each once."""
    found: dict[Value, Expr] = {}
    for x in (expression(x) for part in captured for x in part):
        found.setdefault(x.value, x)
    return found


def _finished(traced: Traced, types: Sequence[DType], shared: dict[Value, Expr]) -> Graph:
    """The graph with results of these dtypes, which takes all of `shared` after its operands."""
    graph = traced.graph
    n = len(graph.inputs) - len(traced.captured)
    own = {
        expression(x).value: v for x, v in zip(traced.captured, graph.inputs[n:], strict=True)
    }  # fmt: skip
    builder = Builder(graph.name, Tracer)
    builder.inputs.extend(graph.inputs[:n])
    builder.input_names.extend(graph.input_names[:n])
    for i, v in enumerate(shared):
        builder.inputs.append(own.get(v) or new_value(v.type))
        builder.input_names.append(f"<capture {i}>")
    builder.nodes.extend(graph.nodes)
    with builder:
        outputs = [
            cast(builder.wrap(v, builder), dtype).value
            for v, dtype in zip(graph.outputs, types, strict=True)
        ]
    return builder.finish(outputs, graph.output_names)


def _taken(flag: bool, then: Function, otherwise: Function, operands: tuple[Any, ...]) -> Any:
    """The branch as Python takes it, for eager mode."""
    leaves, structure = tree.flatten((then if flag else otherwise)(*lifted(operands)))
    found = [expression(x, "a branch of rg.cond returns something that") for x in leaves]
    if any(x.weak for x in found):  # a plain number takes the dtype of the other branch
        *_, types = _branches(then, otherwise, operands)
        found = [cast(x, dtype) for x, dtype in zip(found, types, strict=True)]
    return tree.unflatten(structure, found)


# --- while_loop


def while_loop(condition: Function, body: Function, init: Any) -> Any:
    """Runs `carry = body(carry)` from `init` on as long as `condition(carry)` is true.

    For what needs no gradient: it is an error to differentiate by what a loop of unknown length
    made; use `rg.scan` there.  A carry is a tree of arrays that keep their shapes and dtypes."""
    checked_function(condition)
    checked_function(body)
    if not is_traced():

        def call(init: Any) -> Any:
            return while_loop(condition, body, init)

        return shared_jit(body, ("while", condition), call, (condition,))(init)
    init = lifted(init)
    leaves, structure = tree.flatten(init)
    if not leaves:
        raise ShapeError(f"{where()}rg.while_loop needs a carry, which its condition tests")
    paths = [f"carry.{p}" if p else "carry" for p in tree.names(structure)]
    found = [expression(x, path) for x, path in zip(leaves, paths, strict=True)]
    loop = _Loop(again(condition), again(body), structure, paths, [x.weak for x in found])
    entering = [strong(x) for x in found]
    builder = current()
    # What is recorded for a gradient is the loop, which has none, and not the turns it took.
    at_once = isinstance(builder, EagerBuilder) and builder.parent is None
    return tree.unflatten(structure, loop.run(entering) if at_once else loop.emit(entering))


class _Loop:
    """The functions of one loop, and what its carry looks like."""

    def __init__(
        self, condition: Function, body: Function, structure: tree.TreeDef, paths: list[str],
        weak: list[bool],
    ) -> None:  # fmt: skip
        self.condition = condition
        self.body = body
        self.structure = structure
        self.paths = paths
        self.weak = weak

    def emit(self, entering: list[Expr]) -> Sequence[Expr]:
        """The loop as one node."""
        entering, turn = self._settled(entering)
        test = self._traced("condition", entering, self._test)
        shared = _shared([test.captured, turn.captured])
        types = [x.dtype for x in entering]
        attrs = {
            "condition": _finished(test, [dtypes.bool_], shared),
            "body": _finished(turn, types, shared),
            "carries": len(entering),
        }
        results = apply(lookup("while"), [*entering, *shared.values()], attrs)
        return results if isinstance(results, tuple) else (results,)

    def run(self, carry: list[Expr]) -> list[Expr]:
        """The loop as Python runs it, for eager mode."""
        first = True
        while bool(array_of(self._test(carry))):
            try:
                carry = self._turn(carry)
            except Wider as found:
                carry = [cast(x, d) for x, d in zip(carry, found.dtypes, strict=True)]
                carry = self._turn(carry)
            first, self.weak = False, [False] * len(carry)
        if first and any(self.weak):  # only the types are left to find
            carry, _ = self._settled(carry)
        return carry

    def _settled(self, entering: list[Expr]) -> tuple[list[Expr], Traced]:
        """The carry in the dtypes it has in the loop, where it began as plain numbers."""
        try:
            return entering, self._traced("body", entering, self._turn)
        except Wider as found:
            entering = [cast(x, d) for x, d in zip(entering, found.dtypes, strict=True)]
            self.weak = [False] * len(entering)
            return entering, self._traced("body", entering, self._turn)

    def _traced(self, name: str, carry: list[Expr], call: Callable[[list[Expr]], Any]) -> Traced:
        types = [x.type for x in carry]
        return trace_inner(name, types, self.paths, call, [False] * len(types))

    def _test(self, carry: list[Expr]) -> Expr:
        return _flag(
            self.condition(tree.unflatten(self.structure, carry)),
            "what the condition of rg.while_loop returns",
        )

    def _turn(self, carry: list[Expr]) -> list[Expr]:
        after = self.body(tree.unflatten(self.structure, carry))
        return matched(after, self.structure, carry, self.paths, self.weak, "while_loop")
