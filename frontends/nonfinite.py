"""Where the first NaN comes from: a graph and arrays -> the op, line and time step, or the input.

The graph runs op by op in the interpreter.  A NaN begins at an op whose operands have none; from
there on it is followed through ops, loops and branches to the results.  Invariant: loops are run,
not unrolled, and an origin is told only if its NaN arrives in a result (or if masked ones were
asked for).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.interpreter import Array, Body, Watch, evaluate
from retrograde.compiler.ir.location import Loc, where
from retrograde.gradients import differentiated
from retrograde.mean import Mean
from retrograde.tracing import (
    argument_names,
    checked_function,
    is_traced,
    leaf_names,
    name_of,
    trace_root,
)


@dataclass(frozen=True)
class Looked:
    """What was seen in one array: its type, the range of its finite numbers, what is none.

    `low` and `high` are None where no number is finite."""

    type: str
    size: int
    low: float | None
    high: float | None
    nans: int
    infs: int

    def __str__(self) -> str:
        parts = [] if self.low is None else [f"{self.low:.6g} to {self.high:.6g}"]
        for count, name in ((self.nans, "NaN"), (self.infs, "inf")):
            if count:
                parts.append(f"{count} of {self.size} {name}")
        return f"{self.type}, {', '.join(parts) or 'empty'}"


@dataclass(frozen=True)
class NonFinite:
    """Where the first NaN (or infinity) came from.

    `line` is the user's, "model.py:12", and `loc` the same with its whole path; `steps` are the
    places in time of the loops around it, the outermost first, and `loops` their lines.  `role` is
    "primal", "cotangent" (in the gradient of that line), "recompute" or "update".  For what an
    input brought along, `input` is its name and `op` is "".  `reaches` names the results that it
    arrives in."""

    kind: str
    op: str
    loc: Loc | None
    scope: str
    role: str
    steps: tuple[int, ...]
    loops: tuple[str, ...]
    result: Looked
    operands: tuple[Looked, ...]
    input: str | None = None
    others: int = 0  # further inputs that are not finite
    reaches: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return str(self.loc) if self.loc else ""

    def __str__(self) -> str:
        if self.input is not None:
            also = f" (and {self.others} more inputs)" if self.others else ""
            lines = [f"{self.kind} in the input {self.input}{also}"]
        else:
            lines = [f"the first {self.kind} is made by {self.op}{self._place()}"]
            if self.steps:
                each = zip(self.steps, self.loops, strict=True)
                lines.append("  at step " + ", ".join(f"t={t} of {loop}" for t, loop in each))
        lines.append(f"  {'it' if self.input is not None else 'result'}: {self.result}")
        lines += [f"  operand {i}: {x}" for i, x in enumerate(self.operands)]
        if self.reaches:
            more = len(self.reaches) - 4
            shown = ", ".join(self.reaches[:4]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"  it reaches {shown}")
        else:
            lines.append("  it reaches no result")
        if self.kind == "NaN" and any(x.infs for x in self.operands):
            lines.append("  an operand is infinite: inf=True tells where that comes from")
        return "\n".join(lines)

    def _place(self) -> str:
        role = {"cotangent": "the gradient of ", "recompute": "the recomputation of "}
        what = role.get(self.role, "")
        line = f", in {what}{self.line}" if self.line else f", in {what or 'the program'}".rstrip()
        return line + (f" @ {self.scope}" if self.scope else "")


def first_nonfinite(
    fn: Callable[..., Any],
    *args: Any,
    gradients: bool = False,
    inf: bool = False,
    masked: bool = False,
) -> NonFinite | None:
    """Where the first NaN of `fn(*args)` comes from: op, line, time steps; None if there is none.

    The arguments are trees of arrays.  With `gradients`, `fn` returns one float or a `Mean`, and
    its gradient by every float array is looked at too.  `inf` counts infinities as well.  A NaN
    that reaches no result, because a mask keeps it away, counts with `masked` alone.  An input is
    named where a NaN that it holds arrives in a result.  The time is that of running op by op
    (as `rg.eager` does); nothing is unrolled."""
    checked_function(fn)
    if is_traced():
        raise TraceError(
            f"{where()}first_nonfinite runs {name_of(fn)} on numbers: call it outside of the "
            "function being traced, and of rg.eager()"
        )
    leaves, structure = tree.flatten(args)
    places = [i for i, x in enumerate(leaves) if isinstance(x, (np.ndarray, float, np.floating))]
    names = leaf_names(args, argument_names(fn, len(args)))
    arrays = [np.asarray(leaves[i]) for i in places]
    types = [TensorType(dtypes.dtype(x.dtype), x.shape) for x in arrays]
    wrt = [
        k for k, i in enumerate(places)
        if isinstance(leaves[i], np.ndarray) and types[k].dtype.is_float
    ]  # fmt: skip

    def call(exprs: list[Expr]) -> Any:
        def of(chosen: list[Expr]) -> Any:
            whole = list(leaves)
            given = {**dict(enumerate(exprs)), **dict(zip(wrt, chosen, strict=True))}
            for k, i in enumerate(places):
                whole[i] = given[k]
            return fn(*tree.unflatten(structure, whole))

        of.__name__ = name_of(fn)
        chosen = [exprs[k] for k in wrt]
        if not gradients:
            result = of(chosen)
            return result.value if isinstance(result, Mean) else result
        value, _, (grads,) = differentiated(of, (0,), False, (chosen,), {})
        return value, grads

    weak = [not isinstance(leaves[i], np.ndarray) for i in places]
    traced = trace_root(name_of(fn), types, [names[i] for i in places], weak, call)
    graph = traced.graph
    if gradients:
        told = ("the value", *(f"the gradient by {names[places[k]]}" for k in wrt))
        graph = graph.replace(output_names=told)
    return search(graph, [*arrays, *traced.captured], inf=inf, masked=masked)


def search(
    graph: Graph, arrays: Sequence[Array], *, inf: bool = False, masked: bool = False
) -> NonFinite | None:
    """Where the first NaN that arrives in an output of `graph` comes from."""
    watch = _Search(_is_infinite if inf else _is_nan)
    arrays = [np.asarray(x) for x in arrays]
    names = graph.input_names or ("",) * len(graph.inputs)
    for x, name, v in zip(arrays, names, graph.inputs, strict=True):
        watch.given(x, name, v)
    results = evaluate(graph, arrays, watch=watch)
    return watch.found(results, graph, masked)


def _is_nan(x: Array) -> bool:
    return _is_float(x) and bool(np.isnan(x).any())


def _is_infinite(x: Array) -> bool:
    return _is_float(x) and not bool(np.isfinite(x).all())


def _is_float(x: Array) -> bool:
    return dtypes.dtype(x.dtype).is_float


@dataclass
class _Turn:
    """A sub-graph that is running."""

    body: Body
    step: int | None


class _Search(Watch):
    """Follows what is not finite from where it begins.

    An origin is a number, in the order of time.  `known` says of arrays that are not finite which
    origin they stem from: of several, the first."""

    def __init__(self, is_bad: Callable[[Array], bool]) -> None:
        self.is_bad = is_bad
        self.origins: list[NonFinite] = []
        self.known: dict[int, tuple[weakref.ref[Array], int]] = {}
        self.turns: list[_Turn] = []
        self.made: dict[int, dict[int, int]] = {}  # depth -> result of its node -> origin

    def given(self, x: Array, name: str, v: Value) -> None:
        """An input of the whole."""
        if self.is_bad(x):
            seen = looked(x, v.type)
            kind = "NaN" if seen.nans else "inf"
            self._note(x, len(self.origins))
            self.origins.append(NonFinite(kind, "", None, "", "primal", (), (), seen, (), name))

    def entered(self, body: Body, operands: Sequence[Array], step: int | None) -> None:
        assert body.place is not None
        unknown = [x for x in operands if self.is_bad(x) and self._origin(x) is None]
        outer = self._origins(body.place.operands) if unknown else []
        for x in unknown:  # one step's part of an operand
            if outer:
                self._note(x, min(outer))
        self.turns.append(_Turn(body, step))

    def left(self, body: Body, results: Sequence[Array]) -> None:
        self.turns.pop()
        if body.place is None or body.place.key == "condition":
            return
        slots = self.made.setdefault(len(self.turns), {})
        for j, x in enumerate(results):
            for origin in self._origins([x]):
                slots[j] = min(origin, slots.get(j, origin))

    def ran(self, node: Node, operands: Sequence[Array], results: tuple[Array, ...]) -> None:
        slots = self.made.pop(len(self.turns), {}) if node.op.has_regions else {}
        bad = [(j, x) for j, x in enumerate(results) if self.is_bad(x)]
        if not bad:
            return
        before = self._origins(operands)
        for j, x in bad:
            if self._origin(x) is not None:
                continue  # an operand that was handed on
            if j in slots:
                self._note(x, slots[j])
            elif before:
                self._note(x, min(before))
            else:
                self._note(x, len(self.origins))
                before = [len(self.origins)]
                self.origins.append(self._made_by(node, operands, x, node.outputs[j]))

    def found(self, results: Sequence[Array], graph: Graph, masked: bool) -> NonFinite | None:
        """The first origin that arrives in a result, else with `masked` the first of all."""
        names = graph.output_names or tuple(f"output {i}" for i in range(len(results)))
        arrived: dict[int, list[str]] = {}
        for x, name in zip(results, names, strict=True):
            for origin in self._origins([x]):
                arrived.setdefault(origin, []).append(name)
        if masked and self.origins:
            first = 0
        elif arrived:
            first = min(arrived)
        else:
            return None
        told = self.origins[first]
        others = sum(o.input is not None for o in self.origins) - 1 if told.input else 0
        return replace(told, reaches=tuple(arrived.get(first, ())), others=others)

    # --- which array stems from where

    def _origins(self, arrays: Sequence[Array]) -> list[int]:
        """Those of the arrays that are not finite."""
        return [i for x in arrays if self.is_bad(x) and (i := self._origin(x)) is not None]

    def _origin(self, x: Array) -> int | None:
        for array in (x, x.base):
            found = self.known.get(id(array))
            if found is not None and found[0]() is array:
                return found[1]
        return None

    def _note(self, x: Array, origin: int) -> None:
        for array in (x, x.base):
            if isinstance(array, np.ndarray):
                found = self.known.get(id(array))
                if found is None or found[0]() is not array or array is x:
                    self.known[id(array)] = weakref.ref(array), origin

    def _made_by(
        self, node: Node, operands: Sequence[Array], result: Array, v: Value
    ) -> NonFinite:
        seen = looked(result, v.type)
        loops = [t for t in self.turns if t.step is not None]
        return NonFinite(
            "NaN" if seen.nans else "inf",
            node.op.name,
            node.loc,
            node.scope,
            node.origin.role,
            tuple(t.step for t in loops if t.step is not None),
            tuple(_line(t.body) for t in loops),
            seen,
            tuple(looked(x, u.type) for x, u in zip(operands, node.inputs, strict=True)),
        )


def _line(body: Body) -> str:
    node = body.place.node if body.place is not None else None
    return str(node.loc) if node is not None and node.loc else "a loop"


def looked(x: Array, type: TensorType) -> Looked:
    """What there is to see in an array."""
    shown = f"{type.dtype}[{','.join(map(str, x.shape))}]"
    if not type.dtype.is_float:
        low, high = (float(x.min()), float(x.max())) if x.size else (None, None)
        return Looked(shown, x.size, low, high, 0, 0)
    wide = x.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    return Looked(
        shown, x.size, low, high, int(np.isnan(wide).sum()), int(np.isinf(wide).sum())
    )


