"""Drawn numbers -> a cell for `rg.scan`: what it carries, what it reads, and what it computes.

A cell is a list of instructions over a pool of values of five kinds; every instruction takes its
operands from the pool by number and adds its results, so any list of instructions is a cell, and a
failing one shrinks to a few.  Kinds: rows f64[B, D], scalars f64[], indices i32[B] in 0..K-1, flags
bool[B], matrices f64[D, D].  Invariant: values stay of order one over any number of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp

B, D, K, INNER = 3, 4, 5, 2
Array = npt.NDArray[Any]
Pool = dict[str, list[Any]]
KINDS = "rows", "scalars", "indices", "flags", "matrices"
SHAPES: dict[str, tuple[int, ...]] = {
    "rows": (B, D), "scalars": (), "indices": (B,), "flags": (B,), "matrices": (D, D),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """`carry`, `slices`: how many of each kind.  `after`: where each new carry comes from (the
    pool's number; counted from the end).  `outputs`: the same, with the kind.  `used`: which
    outputs the loss reads."""

    carry: tuple[tuple[str, int], ...]
    slices: tuple[tuple[str, int], ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    after: tuple[int, ...]
    outputs: tuple[tuple[str, int], ...]
    used: tuple[bool, ...]
    reverse: bool
    twice: bool  # once more, the other way, from the last carry

    def body(self, w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        """One step; `carry` and `x` are dicts kind -> list."""
        pool: Pool = {
            "rows": [], "scalars": [], "indices": [], "flags": [], "matrices": [w["m0"], w["m1"]],
        }  # fmt: skip
        before = {kind: list(values) for kind, values in carry.items()}
        for given in (before, x or {}):
            for kind, values in given.items():
                if kind != "inner":
                    pool[kind] += values
        pool["rows"].append(rnp.broadcast_to(w["bias"], (B, D)))
        pool["scalars"].append(w["scalar"])
        pool["indices"].append(rnp.asarray(np.arange(B, dtype=np.int32)))
        pool["flags"].append(rnp.asarray(np.arange(B) % 2 == 0))
        inner = (x or {}).get("inner")
        for name, numbers in self.steps:
            INSTRUCTIONS[name](_Operands(pool, w, inner, numbers))
        chosen = iter(self.after)
        new = {
            kind: [_last(pool[kind], next(chosen)) for _ in values]
            for kind, values in before.items()
        }
        return new, [_last(pool[kind], i) for kind, i in self.outputs]

    def length_alone(self) -> bool:
        """Whether it runs over nothing (xs=None)."""
        return not self.slices


def _last(values: list[Any], i: int) -> Any:
    return values[-1 - i % len(values)]


class _Operands:
    """The pool as one instruction sees it: each request takes the next of its numbers."""

    def __init__(self, pool: Pool, w: dict[str, Any], inner: Any, numbers: tuple[int, ...]) -> None:
        self.pool, self.w, self.inner = pool, w, inner
        self.numbers = iter(numbers)

    def take(self, kind: str) -> Any:
        return _last(self.pool[kind], next(self.numbers))

    def number(self) -> int:
        return next(self.numbers)

    def put(self, kind: str, *values: Any) -> None:
        self.pool[kind] += values


INSTRUCTIONS: dict[str, Callable[[_Operands], None]] = {}


def instruction(fn: Callable[[_Operands], None]) -> Callable[[_Operands], None]:
    INSTRUCTIONS[fn.__name__] = fn
    return fn


def squash(x: Any) -> Any:
    return rnp.tanh(x)


@instruction
def lstm(o: _Operands) -> None:
    """Gates from a row and a hidden row, each by the same four-fold matrix."""
    x, h, c = o.take("rows"), o.take("rows"), o.take("rows")
    gates = x @ o.w["wx"] + h @ o.w["wh"] + o.w["gates"]
    i, f, g, out = rnp.split(gates, 4, axis=-1)
    c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
    o.put("rows", 0.5 * c, rnp.sigmoid(out) * rnp.tanh(c))


@instruction
def gru(o: _Operands) -> None:
    x, h = o.take("rows"), o.take("rows")
    xs, hs = (x @ o.w["wx"])[:, : 3 * D], (h @ o.w["wh"])[:, : 3 * D]
    (xr, xz, xn), (hr, hz, hn) = rnp.split(xs, 3, axis=1), rnp.split(hs, 3, axis=1)
    r, z = rnp.sigmoid(xr + hr), rnp.sigmoid(xz + hz)
    o.put("rows", z * squash(h) + (1 - z) * rnp.tanh(xn + r * hn))


@instruction
def recurrence(o: _Operands) -> None:
    """y = a*y + b, linear in y."""
    a, y, b = o.take("rows"), o.take("rows"), o.take("rows")
    o.put("rows", rnp.sigmoid(a) * y * 0.9 + 0.1 * b)


@instruction
def scalar_recurrence(o: _Operands) -> None:
    a, y, b = o.take("scalars"), o.take("scalars"), o.take("rows")
    o.put("scalars", rnp.cos(a) * y * 0.5 + rnp.mean(squash(b)))


@instruction
def product(o: _Operands) -> None:
    o.put("rows", squash(o.take("rows") @ o.take("matrices")))


@instruction
def transposed_product(o: _Operands) -> None:
    o.put("rows", squash(o.take("rows") @ o.take("matrices").T))


@instruction
def add(o: _Operands) -> None:
    o.put("rows", 0.5 * (o.take("rows") + o.take("rows")))


@instruction
def multiply(o: _Operands) -> None:
    o.put("rows", squash(o.take("rows")) * rnp.sin(o.take("rows")))


@instruction
def scale(o: _Operands) -> None:
    o.put("rows", rnp.sin(o.take("scalars")) * o.take("rows"))


@instruction
def softmax(o: _Operands) -> None:
    o.put("rows", rnp.softmax(o.take("rows"), axis=-1))


@instruction
def normalised(o: _Operands) -> None:
    x = o.take("rows")
    centred = x - rnp.mean(x, axis=-1, keepdims=True)
    o.put("rows", centred / rnp.sqrt(rnp.mean(centred * centred, axis=-1, keepdims=True) + 0.3))


@instruction
def prefix_sums(o: _Operands) -> None:
    o.put("rows", squash(rnp.cumsum(o.take("rows"), axis=o.number() % 2)))


@instruction
def moved(o: _Operands) -> None:
    x, n = o.take("rows"), o.number()
    o.put("rows", (rnp.flip(x, axis=1), rnp.roll(x, 1, axis=0),
                   rnp.concatenate([x[:, 1:], x[:, :1] * 0.5], axis=1),
                   rnp.where(x > 0, x, 0.25 * x))[n % 4])  # fmt: skip


@instruction
def total(o: _Operands) -> None:
    o.put("scalars", rnp.mean(rnp.sin(o.take("rows"))))


@instruction
def gather(o: _Operands) -> None:
    """From the closed-over table, by an index for each row."""
    o.put("rows", rnp.take(o.w["table"], o.take("indices"), axis=0))


@instruction
def gather_matrix(o: _Operands) -> None:
    """From a matrix that may be a carry."""
    o.put("rows", rnp.take(o.take("matrices"), o.take("indices") % D, axis=0))


@instruction
def gather_in_row(o: _Operands) -> None:
    x, i = o.take("rows"), o.take("indices") % D
    o.put("rows", x * rnp.take_along_axis(x, i[:, None], axis=1))


@instruction
def scatter(o: _Operands) -> None:
    m, i, x = o.take("matrices"), o.take("indices") % D, o.take("rows")
    o.put("matrices", 0.5 * m.at[i].add(squash(x)))


@instruction
def assign(o: _Operands) -> None:
    """A row of a matrix (a carried memory) is written over."""
    m, i, x = o.take("matrices"), o.take("indices") % D, o.take("rows")
    o.put("matrices", m.at[i[0]].set(squash(x[0])))


@instruction
def outer(o: _Operands) -> None:
    m, a, b = o.take("matrices"), o.take("rows"), o.take("rows")
    o.put("matrices", 0.5 * m + rnp.einsum("bi,bj->ij", squash(a), squash(b)) / B)


@instruction
def choose(o: _Operands) -> None:
    o.put("rows", rnp.where(o.take("flags")[:, None], o.take("rows"), o.take("rows")))


@instruction
def compare(o: _Operands) -> None:
    o.put("flags", o.take("rows")[:, 0] > 0.1 * rnp.sin(o.take("scalars")) + 0.0123)


@instruction
def flip_flags(o: _Operands) -> None:
    a, b = o.take("flags"), o.take("indices")
    o.put("flags", rnp.logical_xor(a, b % 2 == 0))


@instruction
def count(o: _Operands) -> None:
    o.put("indices", (o.take("indices") * 2 + 1 + o.number() % K) % K)


@instruction
def add_indices(o: _Operands) -> None:
    o.put("indices", (o.take("indices") + o.take("indices")) % K)


@instruction
def largest(o: _Operands) -> None:
    o.put("indices", rnp.argmax(o.take("rows") + o.w["table"][1], axis=-1).astype("i32"))


@instruction
def as_numbers(o: _Operands) -> None:
    """Integers and flags become floats."""
    i, f = o.take("indices"), o.take("flags")
    o.put("rows", (0.1 * i.astype("f64") + f)[:, None] * o.w["bias"])


@instruction
def over_features(o: _Operands) -> None:
    """A scan inside, over the columns of a row, either way."""
    x, h = o.take("rows"), o.take("rows")
    _, ys = rg.scan(
        lambda c, column: ((d := squash(c + column * o.w["scalar"])), d * column),
        h[:, 0], x.T, reverse=o.number() % 2 == 1,
    )  # fmt: skip
    o.put("rows", ys.T)


@instruction
def over_inner_time(o: _Operands) -> None:
    """A scan inside, over an axis of the step's slice or over nothing, with a weight."""
    h, m = o.take("rows"), o.take("matrices")
    if o.inner is None:
        h, _ = rg.scan(lambda h, _: (squash(h @ m + o.w["bias"]), None), h, length=INNER)
    else:
        h, ys = rg.scan(lambda h, x: ((d := squash(h @ m + x)), rnp.sum(d * x)), h, o.inner)
        o.put("scalars", 0.1 * rnp.sum(ys))
    o.put("rows", h)


@instruction
def loop_in_loop(o: _Operands) -> None:
    """Two scans inside each other, with an integer carry."""
    h, x = o.take("rows"), o.take("rows")

    def middle(carry: Any, row: Any) -> Any:
        h, n = carry
        h, _ = rg.scan(lambda h, _: (squash(h + row), None), h, length=INNER)
        return (h, n + 1), h * n.astype("f64")

    (h, _), ys = rg.scan(middle, (h, rnp.asarray(np.int32(0))), rnp.broadcast_to(x, (2, B, D)))
    o.put("rows", h, 0.3 * ys[1])


@instruction
def branch(o: _Operands) -> None:
    s, a, b, m = o.take("scalars"), o.take("rows"), o.take("rows"), o.take("matrices")
    o.put("rows", rg.cond(s > 0.0321, lambda: squash(a @ m), lambda: a * rnp.sin(b)))


@instruction
def branch_with_loop(o: _Operands) -> None:
    f, h, m = o.take("flags"), o.take("rows"), o.take("matrices")
    found = rg.cond(
        f[0],
        lambda h: rg.scan(lambda h, _: (squash(h @ m), None), h, length=INNER)[0],
        lambda h: 0.5 * h,
        h,
    )
    o.put("rows", found)


@instruction
def while_counting(o: _Operands) -> None:
    """Doubles until the indices' sum reaches a bound: as often as the values say."""
    i = o.take("indices")
    last, n = rg.while_loop(
        lambda c: rnp.sum(c[0]) < 40, lambda c: (c[0] * 2 + 1, c[1] + 1), (i, np.int32(0))
    )
    o.put("indices", (last + n) % K)


@instruction
def while_of_floats(o: _Operands) -> None:
    x = rg.stop_gradient(o.take("rows"))
    halved = rg.while_loop(lambda x: rnp.sum(x * x) > 0.7, lambda x: x * 0.5, x)
    o.put("rows", rg.stop_gradient(halved))


@instruction
def recomputed(o: _Operands) -> None:
    x, m = o.take("rows"), o.take("matrices")
    o.put("rows", rg.remat(lambda x, m: squash(squash(x @ m) * x))(x, m))


@instruction
def own_gradient(o: _Operands) -> None:
    """A gradient that is not that of the function, so that it shows."""
    clipped = rg.custom_vjp(
        lambda x, m: squash(x @ m),
        lambda x, m: (squash(x @ m), (x, m)),
        lambda kept, g: (2.0 * g * rnp.cos(kept[0]), 0.5 * kept[1] * rnp.sum(g)),
    )
    o.put("rows", clipped(o.take("rows"), o.take("matrices")))


@instruction
def gradient_inside(o: _Operands) -> None:
    x, m = o.take("rows"), o.take("matrices")
    o.put("rows", 0.5 * rg.grad(lambda x: rnp.sum(squash(x @ m)))(x))


@instruction
def tangent_inside(o: _Operands) -> None:
    x, v, m = o.take("rows"), o.take("rows"), o.take("matrices")
    y, t = rg.jvp(lambda x: squash(x @ m), (x,), (squash(v),))
    o.put("rows", y, 0.5 * t)


@instruction
def jitted(o: _Operands) -> None:
    o.put("rows", rg.jit(lambda x, y: squash(x) * y)(o.take("rows"), o.take("rows")))


@instruction
def stopped(o: _Operands) -> None:
    o.put("rows", rg.stop_gradient(o.take("rows")))


@instruction
def constant(o: _Operands) -> None:
    o.put("rows", rnp.full((B, D), 0.25, "f64"))
    o.put("scalars", rnp.full((), 0.5, "f64"))


def cells(longest: int = 7) -> st.SearchStrategy[Cell]:
    """Cells of up to `longest` instructions."""
    number = st.integers(0, 9)
    kind = st.sampled_from(KINDS)
    carried = st.lists(kind, min_size=1, max_size=4).filter(lambda c: set(c) & {"rows", "scalars"})
    read = st.lists(st.sampled_from([*KINDS[:4], "inner"]), max_size=4)
    step = st.tuples(st.sampled_from(list(INSTRUCTIONS)), st.tuples(*[number] * 4))

    def counted(kinds: list[str]) -> tuple[tuple[str, int], ...]:
        return tuple((k, kinds.count(k)) for k in (*KINDS, "inner") if k in kinds)

    @st.composite
    def draw(draw: Any) -> Cell:
        carry, slices = draw(carried), draw(read)
        outputs = draw(st.lists(st.tuples(kind, number), max_size=3))
        return Cell(
            counted(carry),
            counted(slices),
            tuple(draw(st.lists(step, min_size=1, max_size=longest))),
            tuple(draw(st.tuples(*[number] * len(carry)))),
            tuple(outputs),
            tuple(draw(st.tuples(*[st.booleans()] * len(outputs)))),
            draw(st.booleans()),
            draw(st.booleans()),
        )

    return draw()


# --- data, loss, and the loop in two spellings


def weights(seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng([1, seed])
    shapes = {
        "m0": (D, D), "m1": (D, D), "wx": (D, 4 * D), "wh": (D, 4 * D), "gates": (4 * D,),
        "bias": (D,), "table": (K, D), "scalar": (),
    }  # fmt: skip
    return {name: np.asarray(draw.normal(size=shape) * 0.6) for name, shape in shapes.items()}


def numbers(draw: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Array:
    if kind == "indices":
        return draw.integers(0, K, shape, dtype=np.int32)
    if kind == "flags":
        return draw.random(shape) < 0.5
    return np.asarray(draw.normal(size=shape) * 0.7)


def first_carry(cell: Cell) -> dict[str, list[Array]]:
    draw = np.random.default_rng(2)
    return {k: [numbers(draw, k, SHAPES[k]) for _ in range(n)] for k, n in cell.carry}


def sequence(cell: Cell, steps: int) -> Any:
    """What the cell runs over; for one that runs over nothing something of that many steps."""
    draw = np.random.default_rng([3, steps])
    if cell.length_alone():
        return {"length": np.zeros((steps, 2))}
    shapes = {**SHAPES, "inner": (INNER, B, D)}
    found: dict[str, Any] = {
        k: [numbers(draw, k, (steps, *shapes[k])) for _ in range(n)] for k, n in cell.slices
    }
    if "inner" in found:
        found["inner"] = found["inner"][0]
    return found


Loop = Callable[[Cell, Any, Any, Any, bool], tuple[Any, Any]]


def scanned(cell: Cell, w: Any, carry: Any, xs: Any, reverse: bool) -> tuple[Any, Any]:
    def body(carry: Any, x: Any) -> tuple[Any, Any]:
        return cell.body(w, carry, x)

    if cell.length_alone():
        return rg.scan(body, carry, length=xs["length"].shape[0], reverse=reverse)
    return rg.scan(body, carry, xs, reverse=reverse)


def unrolled(cell: Cell, w: Any, carry: Any, xs: Any, reverse: bool) -> tuple[Any, Any]:
    """The loop as a list of steps; None for the step results of no steps."""
    steps = rg.tree.leaves(xs)[0].shape[0]
    rows: dict[int, Any] = {}
    for t in range(steps - 1, -1, -1) if reverse else range(steps):
        x = None if cell.length_alone() else rg.tree.map(lambda x, t=t: x[t], xs)
        carry, rows[t] = cell.body(w, carry, x)
    if not steps:
        return carry, None
    columns = zip(*(rows[t] for t in range(steps)), strict=True)
    return carry, [rnp.stack(column) for column in columns]


def loss_with(loop: Loop, cell: Cell) -> Callable[..., Any]:
    """(float leaves, other leaves, structure of (weights, carry, xs)) -> (loss, results).

    The weights act outside of the loop too, and in both loops of a cell that runs `twice`; carry
    and step results that count are weighed each with a number of its own."""

    def loss(floats: list[Any], others: list[Any], structure: Any) -> Any:
        w, carry, xs = rg.tree.map(rnp.asarray, joined(floats, others, structure))
        carry = {k: [squash(x @ w["m0"]) if k == "rows" else x for x in v]
                 for k, v in carry.items()}  # fmt: skip
        last, ys = loop(cell, w, carry, xs, cell.reverse)
        if cell.twice:
            last, more = loop(cell, w, last, xs, not cell.reverse)
            ys = None if ys is None else [*ys, *more]
        total = 0.1 * rnp.sum(w["m0"] * w["m0"])
        for values in last.values():
            for k, x in enumerate(values):
                if x.dtype == "f64":
                    total = total + (1 + k) * rnp.sum(rnp.sin(x))
        for k, y in enumerate(ys or []):
            if cell.used[k % len(cell.used)] and y.dtype == "f64":
                total = total + rnp.sum(rnp.cos((2 + k) * y))
        return total, (last, ys)

    return loss


def parted(data: Any) -> tuple[list[Any], list[Any], Any]:
    """A tree as its float leaves, its other leaves, and what puts them together."""
    leaves, structure = rg.tree.flatten(data)
    floats = [x for x in leaves if x.dtype == np.float64]
    kinds = tuple(x.dtype == np.float64 for x in leaves)
    return floats, [x for x in leaves if x.dtype != np.float64], (structure, kinds)


def joined(floats: list[Any], others: list[Any], form: Any) -> Any:
    structure, kinds = form
    a, b = iter(floats), iter(others)
    return rg.tree.unflatten(structure, [next(a) if is_float else next(b) for is_float in kinds])
