"""Random graphs: a source of choices -> a graph over the symbols B and T, and inputs for it.

Invariant: values stay of moderate size and every op is continuous where it is used, so that a
compiled program must agree with the interpreter up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Graph, TensorType, same_shape
from retrograde.compiler.ir.registry import lookup as op

Array = npt.NDArray[Any]
Choose = Callable[[int], int]  # n -> one of 0 … n-1

B = dims.dim("B", min=0)
T = dims.dim("T", min=0)
SHAPES: tuple[tuple[Dim, ...], ...] = (
    (B, T, 6), (B, 2, T, 3), (T, B), (6,), (6, 5), (B, 1, 6), (T, 6), (2, 3, 4), (),
)  # fmt: skip
LARGEST = 4  # axes of a value


class RandomGraph:
    """Draws ops one after the other, each on values that are there."""

    def __init__(self, choose: Choose, dtype: dtypes.DType, steps: int) -> None:
        self.choose = choose
        self.dtype = dtype
        self.builder = Builder("random", Expr)
        with self.builder:
            self.pool = [self.builder.input(TensorType(dtype, s)) for s in SHAPES]
            self.index = self.builder.input(TensorType(dtypes.i32, (T,)), "index")
            self.mask = self.builder.input(TensorType(dtypes.bool_, (B, T, 1)), "mask")
            for _ in range(steps):
                self.step()
            count = 1 + choose(4)
            outputs = [self.pool[-1], *(self.any() for _ in range(count))]
        self.graph: Graph = self.builder.finish([e.value for e in outputs])

    def any(self) -> Expr:
        """A value, more often a young one."""
        n = len(self.pool)
        return self.pool[max(self.choose(n), self.choose(n))]

    def axis(self, x: Expr) -> int:
        return self.choose(x.ndim)

    def having(self, wanted: Callable[[Expr], bool]) -> Expr | None:
        found = [x for x in self.pool if wanted(x)]
        return found[self.choose(len(found))] if found else None

    def step(self) -> None:
        kinds = (
            self.unary, self.binary, self.binary, self.bounded, self.select, self.reduce,
            self.normalise, self.matmul, self.transpose, self.reshape, self.slice, self.flip,
            self.broadcast, self.concatenate, self.pad, self.set_slice, self.gather, self.scatter,
            self.run, self.scan, self.branch, self.repeat, self.number, self.grow, self.causal,
            self.order, self.cast,
        )  # fmt: skip
        made = kinds[self.choose(len(kinds))]()
        if made is not None and made.ndim <= LARGEST:
            self.pool.append(made)

    def tame(self, x: Expr) -> Expr:
        """Back to a moderate size."""
        out: Expr = op("tanh")(x * 0.25)
        return out

    # --- elementwise

    def unary(self) -> Expr:
        name = ("neg", "tanh", "sin", "cos", "abs", "sigmoid", "relu", "softplus", "arctan", "erf")
        out: Expr = op(name[self.choose(len(name))])(self.any())
        return out

    def bounded(self) -> Expr:
        x = self.any()
        safe = op("abs")(x) + 0.5
        names = ("sqrt", "rsqrt", "reciprocal", "log")
        out: Expr = op(names[self.choose(4)])(safe)
        return out

    def other(self, x: Expr) -> Expr | None:
        return self.having(lambda y: _broadcasts(x.shape, y.shape))

    def binary(self) -> Expr | None:
        x = self.any()
        y = self.other(x)
        if y is None:
            return None
        names = ("add", "sub", "mul", "maximum", "minimum", "arctan2")
        name = names[self.choose(len(names))]
        if name == "arctan2":
            y = op("abs")(y) + 1.0
        if name == "mul":
            y = op("sin")(y)
        out: Expr = op(name)(x, y) if self.choose(2) or name == "arctan2" else op(name)(y, x)
        return out

    def select(self) -> Expr | None:
        x = self.any()
        y = self.other(x)
        if y is None:
            return None
        masked = all(_broadcasts(z.shape, self.mask.shape) for z in (x, y))
        if masked and self.choose(2):
            out: Expr = op("select")(self.mask, x, y)
            return out
        out = op("select")(x < y, x, y)  # continuous where they meet
        return out

    def cast(self) -> Expr:
        x = self.any()
        return cast(cast(x, dtypes.f64), self.dtype)

    def number(self) -> Expr:
        x = self.any()
        size = (B, T, B * T + 1)[self.choose(3)]
        return x / (dims_number(size) + 1.0)

    # --- sums, rows, products

    def reduce(self) -> Expr | None:
        x = self.any()
        axes = tuple(i for i in range(x.ndim) if self.choose(2))
        keepdims = bool(self.choose(2))
        if self.choose(2) and all(dims.decide_le(1, x.shape[i]) is True for i in axes):
            out: Expr = op(("max", "min")[self.choose(2)])(x, axes=axes, keepdims=keepdims)
            return out
        return self.tame(op("sum")(x, axes=axes, keepdims=keepdims))

    def normalise(self) -> Expr | None:
        x = self.having(lambda x: x.ndim > 0 and dims.decide_le(1, x.shape[-1]) is True)
        if x is None:
            return None
        if self.choose(2) and same(x.shape[-1], 6):
            out: Expr = op("layer_norm")(x, self.pool[3], eps=0.1)[0]
            return out
        if self.choose(2):
            return op("logsumexp")(x, axes=(x.ndim - 1,), keepdims=bool(self.choose(2)))  # type: ignore[no-any-return]
        out = op("softmax")(x, axis=x.ndim - 1)
        return out

    def matmul(self) -> Expr | None:
        x, y = self.any(), self.any()
        pairs = [(i, j) for i, a in enumerate(x.shape) for j, b in enumerate(y.shape) if same(a, b)]
        if not pairs:
            return None
        contract, batch = [], []
        for _ in range(1 + self.choose(3)):
            free = [(i, j) for i, j in pairs if not _used(contract + batch, i, j)]
            if not free:
                break
            (batch if self.choose(3) == 0 else contract).append(free[self.choose(len(free))])
        free_axes = x.ndim + y.ndim - 2 * len(contract) - len(batch)
        if free_axes > LARGEST:
            return None
        out = op("dot_general")(x, y, contract=_pair(contract), batch=_pair(batch))
        return self.tame(out)

    # --- moves

    def transpose(self) -> Expr | None:
        x = self.any()
        left, perm = list(range(x.ndim)), []
        while left:
            perm.append(left.pop(self.choose(len(left))))
        out: Expr = op("transpose")(x, perm=tuple(perm))
        return out

    def reshape(self) -> Expr | None:
        x = self.any()
        shape = list(x.shape)
        kind = self.choose(3)
        if kind == 0 and len(shape) > 1:  # two axes into one
            i = self.choose(len(shape) - 1)
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
        elif kind == 1:  # one static axis into two
            places = [i for i, d in enumerate(shape) if isinstance(d, int) and d in (4, 6, 12)]
            if not places:
                return None
            i = places[self.choose(len(places))]
            half = shape[i]
            assert isinstance(half, int)
            shape[i : i + 1] = [2, half // 2]
        else:  # an axis of one
            shape.insert(self.choose(len(shape) + 1), 1)
        out: Expr = op("reshape")(x, shape=tuple(shape))
        return out

    def slice(self) -> Expr | None:
        x = self.any()
        start, stop, step = [], [], []
        for d in x.shape:
            if isinstance(d, int) and d > 1 and self.choose(2):
                a = self.choose(d)
                start.append(a)
                stop.append(a + 1 + self.choose(d - a))
                step.append(1 + self.choose(3))
            else:
                half = self.choose(4) == 0
                start.append(0)
                stop.append(dims.floordiv(d + 1, 2) if half else d)
                step.append(1)
        return op("slice")(x, start=tuple(start), stop=tuple(stop), step=tuple(step))  # type: ignore[no-any-return]

    def flip(self) -> Expr:
        x = self.any()
        axes = tuple(i for i in range(x.ndim) if self.choose(2))
        out: Expr = op("flip")(x, axes=axes)
        return out

    def broadcast(self) -> Expr:
        x = self.any()
        shape = [2 if same(d, 1) and self.choose(2) else d for d in x.shape]
        out: Expr = op("broadcast_to")(x, shape=((T, 3)[self.choose(2)], *shape))
        return out

    def grow(self) -> Expr:
        """The sum of stretched constants and a value."""
        x = self.any()
        ones = op("broadcast_to")(op("constant")(value=0.5, dtype=self.dtype), shape=x.shape)
        if x.ndim:
            total = op("sum")(ones, axes=(x.ndim - 1,), keepdims=True)
            return self.tame(x + total)
        return x + ones  # type: ignore[no-any-return]

    def concatenate(self) -> Expr | None:
        x = self.any()
        if not x.ndim:
            return None
        axis = self.axis(x)
        parts = [x]
        for _ in range(1 + self.choose(2)):
            y = self.having(lambda y: y.ndim == x.ndim and _alike(x.shape, y.shape, axis))
            if y is not None:
                parts.insert(self.choose(len(parts) + 1), y)
        if self.choose(3) == 0:
            parts = [op("sin")(p) for p in parts]
        out: Expr = op("concatenate")(*parts, axis=axis)
        return out

    def pad(self) -> Expr:
        x = self.any()

        def counts(n: int) -> tuple[int, ...]:
            return tuple(self.choose(n) for _ in x.shape)

        # The size of a strided part of an axis that may be empty is not proven to come back.
        gaps = (g if isinstance(d, int) else 0 for g, d in zip(counts(2), x.shape, strict=True))
        low, high = counts(3), counts(2)
        return op("pad")(x, low=low, high=high, interior=tuple(gaps), value=0.5)  # type: ignore[no-any-return]

    def set_slice(self) -> Expr | None:
        x = self.any()
        if not x.ndim or not all(
            dims.decide_le(1, d) is True for d in x.shape if isinstance(d, int)
        ):
            return None
        axis = self.axis(x)
        if not isinstance(x.shape[axis], int):
            return None
        start = tuple(self.choose(x.shape[axis]) if i == axis else 0 for i in range(x.ndim))  # type: ignore[arg-type]
        window = tuple(1 if i == axis else d for i, d in enumerate(x.shape))
        y = op("slice")(x, start=(0,) * x.ndim, stop=window, step=(1,) * x.ndim)
        return op("set_slice")(x, op("sin")(y), start=start, step=(1,) * x.ndim)  # type: ignore[no-any-return]

    # --- places from data, runs, loops

    def gather(self) -> Expr | None:
        x = self.having(lambda x: any(same(d, 6) for d in x.shape) and x.ndim < LARGEST)
        if x is None:
            return None
        axis = next(i for i, d in enumerate(x.shape) if same(d, 6))
        out: Expr = op("gather")(x, self.index, axes=(axis,), wrap=True)
        return out

    def scatter(self) -> Expr | None:
        x = self.having(lambda x: x.ndim > 1 and any(same(d, 6) for d in x.shape))
        if x is None:
            return None
        axis = next(i for i, d in enumerate(x.shape) if same(d, 6))
        rest = tuple(d for i, d in enumerate(x.shape) if i != axis)
        updates = self.having(lambda y: same_shape(y.shape, (T, *rest)))
        if updates is None:
            zero = op("constant")(value=0.25, dtype=self.dtype)
            updates = op("broadcast_to")(zero, shape=(T, *rest))
        name = ("scatter_add", "scatter_set")[self.choose(2)]
        return self.tame(op(name)(x, updates, self.index, axes=(axis,), wrap=True))

    def run(self) -> Expr | None:
        x = self.any()
        if not x.ndim:
            return None
        name = ("cumsum", "cummax", "cummin", "cumprod")[self.choose(4)]
        x = op("sin")(x) if name == "cumprod" else x
        return self.tame(op(name)(x, axis=self.axis(x), reverse=bool(self.choose(2))))

    def order(self) -> Expr | None:
        x = self.any()
        if not x.ndim:
            return None
        out: Expr = op("sort")(x, axis=self.axis(x), descending=bool(self.choose(2)))
        return out

    def causal(self) -> Expr:
        """Attention over the second input, with or without a mask of its own."""
        q = self.pool[1]
        out: Expr = op("attention")(q, self.tame(q), q, causal=bool(self.choose(2)), scale=0.5)
        return out

    def scan(self) -> Expr | None:
        """A loop over axis 0 of some value; it swaps its carries now and then."""
        xs = self.having(lambda x: x.ndim > 0)
        if xs is None:
            return None
        shape = xs.shape[1:]
        zero = op("broadcast_to")(op("constant")(value=0.1, dtype=self.dtype), shape=shape)
        first = self.having(lambda y: same_shape(y.shape, shape))
        captured = self.having(lambda y: y.ndim <= len(shape) and _broadcasts(shape, y.shape))
        swap, take = self.choose(2), self.choose(3)
        inner = Builder("body", Expr)
        with inner:
            type = TensorType(self.dtype, shape)
            a, b, x = (inner.input(type, n) for n in "abx")
            w = inner.input((zero if captured is None else captured).type, "w")
            new = op("tanh")(a * 0.5 + x)
            if captured is not None:
                new = new + op("sin")(w)
            new = op("tanh")(new) if same_shape(new.shape, shape) else a
            carries = [b, new] if swap else [new, b]
            y = (new * 2.0, x, a)[take]
        body = inner.finish([e.value for e in (*carries, y)])
        results = op("scan")(
            zero if first is None else first, zero, xs, captured if captured is not None else zero,
            body=body, carries=2, slices=1, length=xs.shape[0], reverse=bool(self.choose(2)),
        )  # fmt: skip
        self.pool.extend(results[:2])
        out: Expr = results[2]
        return out

    def branch(self) -> Expr:
        """What runs depends on the mask; the results are new, operands, views and constants."""
        x = self.any()
        other = self.having(lambda y: same_shape(y.shape, x.shape))
        y = x if other is None else other
        name = ("any", "all")[self.choose(2)]
        flag = op(name)(self.mask, axes=tuple(range(self.mask.ndim)), keepdims=False)
        graphs = {}
        for key in ("then", "otherwise"):
            inner = Builder(key, Expr)
            with inner:
                a, b = (inner.input(v.type) for v in (x, y))
                new = op("tanh")(a * 0.5 + op("sin")(b))
                half = op("constant")(value=0.5, dtype=self.dtype)
                turned = op("flip")(new, axes=tuple(range(a.ndim)))
                made = (new, a, b, turned, op("broadcast_to")(half, shape=a.shape), new * b)
                chosen = [made[self.choose(len(made))] for _ in range(2)]
                graphs[key] = inner.finish([e.value for e in chosen])
        first, second = op("cond")(flag, x, y, **graphs)
        self.pool.append(first)
        out: Expr = self.tame(second) if self.choose(2) else second
        return out

    def repeat(self) -> Expr:
        """A loop that its counter ends; nothing is differentiated through it."""
        x = self.any()
        other = self.having(lambda y: same_shape(y.shape, x.shape))
        w = self.having(lambda y: y.ndim <= x.ndim and _broadcasts(x.shape, y.shape))
        operands = [
            op("constant")(value=0.0, dtype=self.dtype), x,
            x if other is None else other, x if w is None else w,
        ]  # fmt: skip
        limit, swap = float(self.choose(4)), self.choose(2)
        condition, body = Builder("condition", Expr), Builder("body", Expr)
        with condition:
            n, *_ = (condition.input(v.type) for v in operands)
            test = condition.finish([(n < limit).value])
        with body:
            n, a, b, c = (body.input(v.type) for v in operands)
            new = op("tanh")(a * 0.5 + b)
            wider = op("sin")(new + c)
            new = wider if same_shape(wider.shape, new.shape) else new
            turn = body.finish([e.value for e in (n + 1.0, *((b, new) if swap else (new, a)))])
        _, first, second = op("while")(*operands, condition=test, body=turn, carries=3)
        self.pool.append(op("stop_gradient")(first))
        out: Expr = op("stop_gradient")(second)
        return out


def dims_number(size: Dim) -> Expr:
    from retrograde.compiler.ir.expr import dim_number

    return dim_number(size)


def _broadcasts(a: Sequence[Dim], b: Sequence[Dim]) -> bool:
    """Whether both stretch to one shape, which is not larger than the larger of them."""
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if not (same(x, y) or same(x, 1) or same(y, 1)):
            return False
    return True


def _alike(a: Sequence[Dim], b: Sequence[Dim], axis: int) -> bool:
    return all(same(x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if i != axis)


def _used(pairs: Sequence[tuple[int, int]], i: int, j: int) -> bool:
    return any(i == a or j == b for a, b in pairs)


def _pair(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(i for i, _ in pairs), tuple(j for _, j in pairs)


def inputs_for(graph: Graph, sizes: dict[str, int], seed: int = 0) -> list[Array]:
    """Different numbers everywhere; indices from both ends."""
    rng = np.random.default_rng([seed, *sizes.values()])
    out: list[Array] = []
    for v in graph.inputs:
        shape = tuple(dims.evaluate(d, sizes) for d in v.shape)
        if v.dtype.kind == "int":
            out.append(rng.integers(-6, 6, shape).astype(v.dtype.numpy))
        elif v.dtype.kind == "bool":
            out.append(rng.uniform(size=shape) < 0.5)
        else:
            out.append(np.asarray(rng.standard_normal(shape)).astype(v.dtype.numpy))
    return out
