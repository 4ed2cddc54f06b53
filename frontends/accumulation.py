"""Gradients part by part: a loss, parameters, a batch -> loss and gradients of the whole batch.

One loop over k microbatches, forward and back in each, adds up the gradients in carries; the counts
of the whole batch are totalled before, so that every term of every microbatch is weighed as in one
batch.  Random numbers go by the rows of the whole batch.  Invariant: the result is that of the
batch in one piece up to rounding, for losses that are sums over rows which do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde import random, tree
from retrograde.compiler.errors import DataError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.expr import Expr, apply, cast, zeros
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.region import nested, silent
from retrograde.compiler.passes.dce import DCE
from retrograde.gradients import differentiated
from retrograde.loops import parts_loop
from retrograde.mean import Mean, check_counts, term_value
from retrograde.specs import size_of
from retrograde.tracing import Traced, expression, strong, trace_inner

LossOf = Callable[[Sequence[Expr], Sequence[Expr]], Any]  # parameters, the entries of a batch


@dataclass(frozen=True)
class Split:
    """How a batch is cut: into `parts` of equal size along the axes whose size is `rows`."""

    parts: int
    rows: str
    axes: tuple[int | None, ...]  # of each entry; None: all parts get the whole of it

    @property
    def told_by(self) -> tuple[int, int]:
        """An entry, and its axis of rows."""
        return next((i, axis) for i, axis in enumerate(self.axes) if axis is not None)

    def check(self, rows: int, source: str) -> None:
        """ShapeError where so many rows cannot be cut into equal parts."""
        if rows % self.parts or not rows:
            raise ShapeError(
                f"{where()}{source}: accumulate={self.parts} cuts a batch into parts of equal "
                f"size, and {self.rows} = {rows} is no multiple of {self.parts}"
            )


def checked_accumulate(accumulate: Any) -> int:
    """The number of microbatches; DataError for what is none."""
    if isinstance(accumulate, bool) or size_of("accumulate", accumulate) < 1:
        raise DataError(
            f"{where()}accumulate={accumulate!r}: give the number of parts that a batch is cut "
            "into, at least 1"
        )
    return size_of("accumulate", accumulate)


def split_of(
    types: Sequence[TensorType], names: Sequence[str], parts: int
) -> tuple[Split | None, list[TensorType]]:
    """How a batch of these types is cut, and the types with at least a row for each part.

    The rows are the named size that most entries have as an axis, of these the first."""
    if parts == 1:
        return None, list(types)
    held: dict[str, int] = {}
    for t in types:
        for name in dict.fromkeys(s for d in t.shape if (s := _plain(d))):
            held[name] = held.get(name, 0) + 1
    if not held:
        raise UnsupportedError(
            f"{where()}accumulate={parts} cuts the batch along a size that has a name, and its "
            f"entries ({', '.join(names)}) have none: rg.spec('f32', 'B', 5), and at={{'B': 64}} "
            "for the size to plan for"
        )
    rows = max(held, key=held.__getitem__)
    axes = tuple(_axis(t, name, rows, parts) for t, name in zip(types, names, strict=True))
    return Split(parts, rows, axes), [_roomy(t, rows, parts) for t in types]


def _plain(d: Dim) -> str | None:
    """The name of a size that is a symbol and nothing else."""
    found = dims.symbols(d)
    if len(found) != 1 or not dims.same(d, dims.dim(found[0].name, found[0].min, found[0].max)):
        return None
    return found[0].name


def _axis(type: TensorType, name: str, rows: str, parts: int) -> int | None:
    axes = [i for i, d in enumerate(type.shape) if rows in {s.name for s in dims.symbols(d)}]
    if not axes:
        return None
    if len(axes) > 1 or _plain(type.shape[axes[0]]) is None:
        raise UnsupportedError(
            f"{where()}accumulate={parts} cannot cut {name}, {type}, along {rows}: an entry has "
            f"one axis of that size, or none and is the same for all parts"
        )
    return axes[0]


def _roomy(type: TensorType, rows: str, parts: int) -> TensorType:
    """The type, of whose rows there is one for each part at least."""
    env: dict[str, Dim] = {}
    for d in type.shape:
        for s in dims.symbols(d):
            if s.name == rows:
                if s.max is not None and s.max < parts:
                    raise ShapeError(
                        f"{where()}accumulate={parts}: there are at most {s.max} of {rows}"
                    )
                env[rows] = dims.dim(rows, max(s.min, parts), s.max)
    return TensorType(type.dtype, tuple(dims.substitute(d, env) for d in type.shape))


# --- the loss and its gradients


def accumulated(
    split: Split, loss: LossOf, name: str, params: Sequence[Expr], batch: Sequence[Expr]
) -> tuple[Expr, list[Expr]]:
    """The loss of a batch and its gradients by `params`, in the trace at work."""
    entry, axis = split.told_by
    part = dims.floordiv(batch[entry].shape[axis], split.parts)
    xs = [_cut(x, a, split.parts) for x, a in zip(batch, split.axes, strict=True) if a is not None]
    xs.append(apply(lookup("iota"), (), {"size": split.parts, "dtype": dtypes.i64}))
    made = _traced(split, loss, name, params, batch, xs, part)
    totals, shares = made.totals(params, xs, split.parts)

    def body(carry: Sequence[Expr], slices: Sequence[Expr]) -> tuple[list[Expr], None]:
        *sums, value = carry

        def of_part(trained: Sequence[Expr]) -> Expr:
            return made.value(trained, slices, totals, shares)

        of_part.__name__ = name
        found, _, (grads,) = differentiated(of_part, (0,), False, (list(params),), {})
        added = [s + cast(g, s.dtype) for s, g in zip(sums, grads, strict=True)]
        return [*added, value + found], None

    start = [zeros(TensorType(_wide(p.dtype), p.shape)) for p in params]
    value_type = made.value_type
    (*sums, value), _ = parts_loop(body, [*start, zeros(TensorType(value_type))], xs, split.parts)
    return value, [cast(s, p.dtype) for s, p in zip(sums, params, strict=True)]


def _wide(dtype: dtypes.DType) -> dtypes.DType:
    return dtypes.f32 if dtype.bytes == 2 else dtype


def _cut(x: Expr, axis: int, parts: int) -> Expr:
    """[..., rows, ...] -> [parts, ..., rows of a part, ...]."""
    each = dims.floordiv(x.shape[axis], parts)
    start = [0] * x.ndim
    stop = [parts * each if i == axis else d for i, d in enumerate(x.shape)]
    attrs = {"start": tuple(start), "stop": tuple(stop), "step": (1,) * x.ndim}
    x = apply(lookup("slice"), (x,), attrs)  # all of it, which no proof tells
    shape = (*x.shape[:axis], parts, each, *x.shape[axis + 1 :])
    x = apply(lookup("reshape"), (x,), {"shape": shape})
    if axis:
        order = (axis, *(i for i in range(x.ndim) if i != axis))
        x = apply(lookup("transpose"), (x,), {"perm": order})
    return x


@dataclass(frozen=True)
class _Parted:
    """The loss of a part as a graph: parameters, slices, captures -> (weight, sum, count) of each
    term; and what of it depends on which part it is."""

    traced: Traced
    data: frozenset[Value]  # what depends on the slices
    sized: frozenset[Value]  # what depends on the number of rows

    @property
    def value_type(self) -> dtypes.DType:
        return self.traced.graph.outputs[1].dtype

    def terms(self, results: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
        return [tuple(results[i : i + 3]) for i in range(0, len(results), 3)]

    def varies(self, v: Value) -> bool:
        return v in self.data or v in self.sized

    def check(self) -> None:
        """UnsupportedError for terms that cannot be totalled over the parts."""
        makers = self.traced.graph.producers()
        for weight, total, count in self.terms(self.traced.graph.outputs):
            if self.varies(weight):
                raise UnsupportedError(
                    f"{_line(weight, makers)}this weight of a Mean depends on the batch, and "
                    "accumulate needs one that is the same for all its parts: put it into the sum "
                    "and the count"
                )
            if self.varies(total) and not self.varies(count):
                raise UnsupportedError(
                    f"{_line(total, makers)}this sum of a Mean depends on the batch and its count "
                    "does not: accumulate cannot tell whether it adds up over the parts of a "
                    "batch. Return rg.Mean(sum, count) with a count of what is summed, also of "
                    "the terms that are added"
                )

    def totals(
        self, params: Sequence[Expr], xs: Sequence[Expr], parts: int
    ) -> tuple[list[Expr], list[float]]:
        """The count of each term over all parts, and what share of the term a part has where all
        parts have the same."""
        terms = self.terms(self.traced.graph.outputs)
        counts = [count for _, _, count in terms]
        counted = list(dict.fromkeys(c for c in counts if c in self.data))
        rest = list(dict.fromkeys(c for c in counts if c not in self.data))
        found = dict(zip(rest, self._inlined(rest, params, xs), strict=True))
        for c in rest:
            if self.varies(c):  # each part has as many
                found[c] = found[c] * parts
        if counted:
            found.update(zip(counted, self._counted(counted, params, xs, parts), strict=True))
        shares = [1.0 if self.varies(total) else 1.0 / parts for _, total, _ in terms]
        return [found[c] for c in counts], shares

    def _counted(
        self, counts: Sequence[Value], params: Sequence[Expr], xs: Sequence[Expr], parts: int
    ) -> list[Expr]:
        """The totals of counts that the data decide: a loop of its own, for nothing else."""

        def body(carry: list[Expr], slices: list[Expr]) -> tuple[list[Expr], None]:
            more = self._inlined(counts, params, slices)
            return [a + b for a, b in zip(carry, more, strict=True)], None

        return parts_loop(body, [zeros(c.type) for c in counts], list(xs), parts)[0]

    def _inlined(
        self, wanted: Sequence[Value], params: Sequence[Expr], slices: Sequence[Expr]
    ) -> list[Expr]:
        """Some of the values, in the graph being built, from what these need alone."""
        given = [*params, *slices, *self.traced.captured]
        graph = self.traced.graph
        graph = DCE()(silent(graph.replace(outputs=tuple(wanted), output_names=())))
        read = {v for node in graph.nodes for v in node.inputs} | set(graph.outputs)
        used = [i for i, v in enumerate(graph.inputs) if v in read]
        names = graph.input_names
        graph = graph.replace(
            inputs=tuple(graph.inputs[i] for i in used),
            input_names=tuple(names[i] for i in used),
        )
        return required().inline(graph, [given[i] for i in used])

    def value(
        self,
        params: Sequence[Expr],
        slices: Sequence[Expr],
        totals: Sequence[Expr],
        shares: Sequence[float],
    ) -> Expr:
        """What a part adds to the loss of the batch."""
        found = self.terms(self.traced.inlined([*params, *slices]))
        value: Any = None
        for (weight, total, _), count, share in zip(found, totals, shares, strict=True):
            term = term_value(weight, total if share == 1 else total * share, count)
            value = term if value is None else value + term
        return cast(strong(value), self.value_type)


def _traced(
    split: Split,
    loss: LossOf,
    name: str,
    params: Sequence[Expr],
    batch: Sequence[Expr],
    xs: Sequence[Expr],
    part: Dim,
) -> _Parted:
    """The loss of a part, traced."""
    n = len(params)

    def call(inner: list[Expr]) -> list[Expr]:
        *sliced, index = inner[n:]
        given = iter(sliced)
        entries = [
            x if axis is None else next(given) for x, axis in zip(batch, split.axes, strict=True)
        ]
        with random.part_of_batch(index, part):
            result = loss(inner[:n], entries)
        if not isinstance(result, Mean):
            raise UnsupportedError(
                f"{where()}{name} returns a {type(result).__name__}, which does not tell how the "
                "losses of the parts of a batch add up: with accumulate, return "
                "rg.Mean(sum, count), as the losses of rg.losses do"
            )
        check_counts(result, required().nodes, {x.value for x in inner[:n]})
        return [x for term in result.terms for x in _term(*term)]

    types = [*(p.type for p in params), *(TensorType(x.dtype, x.shape[1:]) for x in xs)]
    names = [f"parameter {i}" for i in range(n)] + ["x"] * len(xs)
    traced = trace_inner(name, types, names, call, [False] * len(types))
    inputs = traced.graph.inputs
    data = _reached(traced.graph, set(inputs[n : n + len(xs)]), lambda node: False)
    rows = {s.name for s in dims.symbols(part)}
    sized = _reached(traced.graph, set(), lambda node: _mentions(node, rows))
    made = _Parted(traced, data, sized)
    made.check()
    return made


def _term(weight: Any, total: Any, count: Any) -> tuple[Expr, Expr, Expr]:
    total = strong(expression(total))
    counted = strong(expression(count))
    if not counted.dtype.is_float:
        counted = cast(counted, dtypes.i64)
    factor = expression(weight)
    return cast(factor, total.dtype) if factor.weak else factor, total, counted


def _reached(
    graph: Graph, sources: set[Value], starts: Callable[[Node], bool]
) -> frozenset[Value]:
    found = set(sources)
    for node in graph.nodes:
        if any(v in found for v in node.inputs) or starts(node):
            found.update(node.outputs)
    return frozenset(found)


def _mentions(node: Node, names: set[str]) -> bool:
    """Whether a size among `names` is in what a node makes, or in how it makes it."""
    for inner in nested(node):
        given = [d for v in inner.outputs for d in v.shape] + list(inner.attrs.values())
        for x in tree.leaves([list(x) if isinstance(x, tuple) else x for x in given]):
            if isinstance(x, Poly) and not names.isdisjoint(s.name for s in dims.symbols(x)):
                return True
    return False


def _line(v: Value, makers: Any) -> str:
    made = makers.get(v)
    return where(made.loc if made is not None else None)
