"""Loops over time: `scan(body, init, xs)` -> one node, however many steps there are.

The body is traced once, for one step, into a graph whose inputs are the carry, the step's slices
and what it uses from outside.  Invariant: a carry leaves the body as the type that it enters with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograde import scopes, tree
from retrograde.compiler.errors import DataError, DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import current, required
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, apply, cast
from retrograde.compiler.ir.graph import TensorType, same_shape, same_type
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.dce import has_effect
from retrograde.custom import stop_gradient
from retrograde.eager_mode import EagerBuilder
from retrograde.jitted import shared_jit
from retrograde.ragged import Body, masked
from retrograde.specs import size_of
from retrograde.tracing import (
    Traced,
    expression,
    is_traced,
    lifted,
    strong,
    trace_inner,
)
from retrograde.truncation import truncated, truncation


def scan(
    body: Body,
    init: Any,
    xs: Any = None,
    *,
    length: Dim | None = None,
    reverse: bool = False,
    lengths: Any = None,
    truncate: int | None = None,
    slots: int | None = None,
) -> tuple[Any, Any]:
    """Runs `body(carry, x) -> (carry, y)` over axis 0 of `xs`; returns (last carry, stacked ys).

    `init`, `xs` and `y` are trees of arrays.  Without `xs`, `length` says how often; x is None
    then.  `reverse` runs from the last step to the first, and y stays at its step's place.

    `lengths`, integers [B], says how many steps each row of a batch has: below 0 counts as 0, more
    than there are as all.  Carries and y then have the batch as axis 0, and xs as axis 1, behind
    time.  Past its end a row keeps its carry, its y is zero, and nothing that stands there in xs
    changes a bit of any result or gradient; with `reverse` a row begins at its own last step.  The
    loop stops at the longest row, and where the rows of the body do not meet, a step computes none
    beyond the last that has it: with the rows sorted, longest first, none that has ended.

    `truncate` of K cuts the gradient: the loop goes on with its carry, but no gradient flows
    through it from a run of K steps into the run before (counted in the order in which steps run;
    Williams & Peng 1990), where the row has the steps on both sides.  The default is what
    `compile_training(truncate=…)` says, else no cut.

    `slots` keeps at most so many states of the loop for its gradient, and no other residuals: the
    steps between are run again, as few as can be for that many slots (Griewank & Walther 2000).  It
    holds for outermost loops; a `budget` chooses for itself.

    Raises ShapeError or DTypeError where a carry changes its type, or has no batch with `lengths`,
    naming the leaf."""
    if not isinstance(reverse, (bool, np.bool_)):
        raise TraceError(
            f"{where()}scan: reverse is a {type(reverse).__name__}, and must be True or False when "
            "the loop is traced: choose between two loops with rg.cond"
        )
    reverse, steps_back = bool(reverse), truncation(truncate)
    if slots is not None and size_of("slots", slots) < 1:
        raise DataError(f"{where()}scan: slots={slots}: give at least 1, or None to keep all")
    if not is_traced():

        def call(init: Any, xs: Any, lengths: Any = None) -> Any:
            return scan(
                body, init, xs, length=length, reverse=reverse, lengths=lengths,
                truncate=truncate, slots=slots,
            )  # fmt: skip

        if length is not None and not isinstance(length, Poly):
            length = size_of("length", length)
        run = shared_jit(body, ("scan", length, reverse, truncate, slots), call)
        ends = () if lengths is None else (np.asarray(lengths),)
        out: tuple[Any, Any] = run(init, xs, *ends)
        return out
    (init, xs), body = lifted((init, xs)), again(body)
    steps = _steps(xs, length)
    marks = {"truncate": steps_back, "slots": slots}
    if lengths is not None:
        body, xs = masked(body, init, xs, lifted(lengths), steps)
        marks["live"] = len(tree.leaves(xs)) - 1  # the mask of the rows that have the step
    if isinstance(current(), EagerBuilder):
        return _one_by_one(body, init, xs, int(steps), reverse, steps_back)
    slices, structure = tree.flatten(xs)
    return _scan(body, init, slices, structure, steps, reverse, marks)


def parts_loop(
    body: Body, init: list[Expr], xs: list[Expr], parts: int
) -> tuple[list[Expr], Any]:
    """Runs `body(carry, x) -> (carry, y)` over the parts of something too large to be worked on
    whole: a scan whose steps stay apart, so that its memory is that of one part."""
    return _scan(again(body), init, xs, tree.structure(xs), parts, False, {"apart": True})


def _steps(xs: Any, length: Dim | None) -> Dim:
    slices = [expression(x, "what scan runs over") for x in tree.leaves(xs)]
    return _length(slices, tree.paths(xs), length)


def again(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, whose modules draw the same dropout masks each time that it is called."""
    same_keys = scopes.repeated()

    def called(*args: Any) -> Any:
        with same_keys():
            return body(*args)

    return called


def _length(slices: list[Expr], paths: list[str], length: Dim | None) -> Dim:
    """The number of steps, on which all that is scanned agrees."""
    found, source = length, "length"
    if found is not None and not isinstance(found, Poly):
        found = size_of("length", found)
        if found < 0:
            raise ShapeError(f"{where()}scan: length = {found} is negative")
    for x, path in zip(slices, paths, strict=True):
        label = f"xs.{path}" if path else "xs"
        if not x.shape:
            raise ShapeError(f"{where()}scan runs over axis 0, and {label} is a scalar, {x.type}")
        if found is None:
            found, source = x.shape[0], label
        elif not dims.same(found, x.shape[0]):
            raise ShapeError(
                f"{where()}scan: {label} has {x.shape[0]} steps along axis 0 ({x.type}), and "
                f"{source} {found}"
            )
    if found is None:
        raise TraceError(f"{where()}scan without xs needs length=, the number of steps")
    return found


def _scan(
    body: Body, init: Any, slices: list[Any], structure: tree.TreeDef, steps: Dim, reverse: bool,
    marks: Mapping[str, int | None] | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """The node, with those of `marks` that are set among its attributes."""
    leaves, carried = tree.flatten(init)
    paths = _paths(carried)
    entering = [expression(x, path) for x, path in zip(leaves, paths, strict=True)]
    weak = [x.weak for x in entering]
    entering = [strong(x) for x in entering]
    xs = [expression(x) for x in slices]
    step_types = [TensorType(x.dtype, x.shape[1:]) for x in xs]
    n = len(entering)

    def call(inner: list[Expr]) -> Any:
        carry, x = tree.unflatten(carried, inner[:n]), tree.unflatten(structure, inner[n:])
        with truncated(None):
            result = body(carry, x)
        after, y = _pair(result)
        return matched(after, carried, inner[:n], paths, weak), tree.map(_output, y)

    def traced() -> Traced:
        types = [*(x.type for x in entering), *step_types]
        names = [*paths, *(["x"] * len(xs))]
        return trace_inner("scan", types, names, call, [False] * len(types))

    try:
        made = traced()
    except Wider as found:  # a carry that begins as a plain number takes the type of the body's
        entering = [cast(x, d) for x, d in zip(entering, found.dtypes, strict=True)]
        weak = [False] * n
        made = traced()
    body_graph = made.graph
    if (marks or {}).get("apart"):
        body_graph = body_graph.replace(aliases=tuple((i, i) for i in range(n)))
    attrs = {
        "body": body_graph, "carries": n, "slices": len(xs), "length": steps, "reverse": reverse,
        **{name: mark for name, mark in (marks or {}).items() if mark is not None},
    }  # fmt: skip
    if not made.graph.outputs and not any(map(has_effect, made.graph.nodes)):
        return init, tree.unflatten(made.structure, [])[1]
    results = apply(lookup("scan"), [*entering, *xs, *made.captured], attrs)
    out: tuple[Any, Any] = tree.unflatten(
        made.structure, list(results) if isinstance(results, tuple) else [results]
    )
    return tree.unflatten(carried, tree.leaves(out[0])), out[1]


def _paths(carried: tree.TreeDef) -> list[str]:
    return [f"carry.{p}" if p else "carry" for p in tree.names(carried)]


def _pair(result: Any) -> tuple[Any, Any]:
    """What a body returned, as (carry, y)."""
    if isinstance(result, tuple) and len(result) == 2:
        return result
    size = f" of {len(result)}" if isinstance(result, (tuple, list)) else ""
    raise TraceError(
        f"{where()}the body of scan must return a tuple (carry, y), y may be None; it returned a "
        f"{type(result).__name__}{size}"
    )


class Wider(Exception):
    """The body makes another dtype of a carry that began as a plain number."""

    def __init__(self, dtypes: list[DType]) -> None:
        super().__init__("carry")
        self.dtypes = dtypes


def matched(
    after: Any, carried: tree.TreeDef, before: list[Expr], paths: list[str], weak: list[bool],
    loop: str = "scan",
) -> list[Expr]:  # fmt: skip
    """The leaves of the carry that a body returns, checked against those it got.

    Raises Wider where one that began as a plain number, which `weak` marks, has another dtype."""
    leaves, structure = tree.flatten(after)
    if structure != carried:
        raise ShapeError(
            f"{where()}the body of {loop} returns a carry of another structure than it got: "
            f"{tree.difference(carried, structure)}"
        )
    found = [expression(x, path) for x, path in zip(leaves, paths, strict=True)]
    found = [cast(x, b.dtype) if x.weak and fits(b.dtype, x.dtype) else strong(x)
             for x, b in zip(found, before, strict=True)]  # fmt: skip
    for x, b, path in zip(found, before, paths, strict=True):
        if not same_shape(x.shape, b.shape):
            raise ShapeError(
                f"{where()}{path} enters the body of {loop} as {b.type} and leaves it as {x.type}: "
                "a carry keeps its shape; begin with one of that shape"
            )
    if required().half is not None:  # a carry in f32 adds up in f32
        found = [x if w else _widened(x, b)
                 for x, b, w in zip(found, before, weak, strict=True)]  # fmt: skip
    if any(w and x.dtype is not b.dtype for x, b, w in zip(found, before, weak, strict=True)):
        raise Wider([x.dtype if w else b.dtype
                      for x, b, w in zip(found, before, weak, strict=True)])  # fmt: skip
    for x, b, path in zip(found, before, paths, strict=True):
        if not same_type(x.type, b.type):
            raise DTypeError(
                f"{where()}{path} enters the body of {loop} as {b.type} and leaves it as {x.type}: "
                f"a carry keeps its dtype; begin with {x.dtype}, or cast with .astype('{b.dtype}')"
            )
    return found


def _widened(x: Expr, carry: Expr) -> Expr:
    """What a body makes in 16 bits for a carry in f32."""
    return cast(x, dtypes.f32) if x.dtype.bytes == 2 and carry.dtype is dtypes.f32 else x


def fits(carry: DType, number: DType) -> bool:
    """Whether a plain number of this dtype may become what the carry is."""
    order = {"bool": 0, "uint": 1, "int": 1, "float": 2}
    return order[number.kind] <= order[carry.kind]


def _output(x: Any) -> Expr:
    return strong(expression(x, "a step result of scan"))


def _one_by_one(
    body: Body, init: Any, xs: Any, steps: int, reverse: bool, steps_back: int | None
) -> tuple[Any, Any]:
    """The loop as Python runs it, for eager mode."""
    if steps == 0:  # only the types of the results are left to find
        leaves, structure = tree.flatten(xs)
        return _scan(body, init, leaves, structure, 0, reverse)
    leaves, carried = tree.flatten(init)
    paths = _paths(carried)
    found = [expression(x, path) for x, path in zip(leaves, paths, strict=True)]
    carry, weak = [strong(x) for x in found], [x.weak for x in found]

    def turn(t: int) -> tuple[list[Expr], Any]:
        with truncated(None):
            result = body(tree.unflatten(carried, carry), tree.map(lambda x: _row(x, t), xs))
        after, y = _pair(result)
        return matched(after, carried, carry, paths, weak), tree.map(_output, y)

    rows: dict[int, Any] = {}
    for done in range(steps):
        t = steps - 1 - done if reverse else done
        if steps_back is not None and done and done % steps_back == 0:
            carry = stop_gradient(carry)
        try:
            carry, rows[t] = turn(t)
        except Wider as wider:
            carry = [cast(x, d) for x, d in zip(carry, wider.dtypes, strict=True)]
            weak = [False] * len(carry)
            carry, rows[t] = turn(t)
        weak = [False] * len(carry)
    return tree.unflatten(carried, carry), _columns([rows[t] for t in range(steps)])


def _columns(rows: list[Any]) -> Any:
    """The step results stacked, leaf by leaf; they must be alike."""
    flat = [tree.flatten(row) for row in rows]
    first, structure = flat[0]
    for t, (leaves, other) in enumerate(flat):
        if other != structure:
            raise ShapeError(
                f"{where()}the step results of scan have another structure at step {t} than at "
                f"step 0: {tree.difference(structure, other)}"
            )
        for x, y, path in zip(first, leaves, tree.names(structure), strict=True):
            if not same_type(x.type, y.type):
                label = f"y.{path}" if path else "y"
                raise ShapeError(
                    f"{where()}{label} of scan is {x.type} at step 0 and {y.type} at step {t}"
                )
    columns = zip(*(leaves for leaves, _ in flat), strict=True)
    return tree.unflatten(structure, [_stacked(column) for column in columns])


def _row(x: Any, t: int) -> Any:
    found: Any = expression(x)
    return found[t]


def _stacked(column: Any) -> Expr:
    rows = [apply(lookup("reshape"), (x,), {"shape": (1, *x.shape)}) for x in column]
    out: Expr = apply(lookup("concatenate"), rows, {"axis": 0})
    return out
