"""Cells for loops over ragged batches: weights, a first carry, slices, the body; and their total.

Sizes differ on every axis, and every row has data of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree

Array = npt.NDArray[Any]
D, W, V = 3, 6, 7


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


class Cell(NamedTuple):
    body: Callable[[Any, Any, Any], tuple[Any, Any]]  # (weights, carry, x) -> (carry, y)
    weights: Callable[[int], Any]  # batch -> arrays
    start: Callable[[int], Any]  # batch -> carry
    slices: Callable[[int, int], Any]  # (time, batch) -> xs
    # Whether rows are proven to stay apart: in the loop as it is, and with its gradient.
    rowwise: tuple[bool, bool] = (True, True)


def _floats(time: int, batch: int) -> Any:
    return normal(time, batch, D, seed=3)


def _hidden(batch: int) -> Any:
    return normal(batch, W, seed=4)


def _lstm(w: Any, carry: Any, x: Any) -> Any:
    h, c = carry
    s = x @ w["x"] + h @ w["h"] + w["b"]
    i, f, g, o = (s[:, k * W : (k + 1) * W] for k in range(4))
    c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
    h = rnp.sigmoid(o) * rnp.tanh(c)
    return (h, c), h


def _gru(w: Any, h: Any, x: Any) -> Any:
    a, b = x @ w["x"] + w["b"], h @ w["h"]
    r = rnp.sigmoid(a[:, :W] + b[:, :W])
    z = rnp.sigmoid(a[:, W : 2 * W] + b[:, W : 2 * W])
    n = rnp.tanh(a[:, 2 * W :] + r * b[:, 2 * W :])
    h = (1 - z) * n + z * h
    return h, {"out": rnp.tanh(h @ w["o"]), "top": rnp.max(h, axis=-1)}


def _scaled_rows(w: Any, h: Any, x: Any) -> Any:
    """A value for each row, closed over: it is cut as the rows are."""
    h = rnp.tanh(h @ w["h"] + x @ w["x"]) * w["rows"][:, None]
    return h, h * (w["rows"] > 0)[:, None]


def _embedded(w: Any, carry: Any, x: Any) -> Any:
    """A gather of what is scanned, one of a carry of integers, and a carry of booleans."""
    h, k, flag = carry
    k = (k + x["id"] + 1) % V
    table = rnp.asarray(w["table"])
    h = rnp.tanh(h @ w["h"] + table[x["id"]] + table[k] * x["scale"][:, None])
    flag = rnp.logical_xor(flag, x["id"] > 2)
    return (h, k, flag), (h[:, 1:], k, flag)


def _unit_rows(w: Any, h: Any, x: Any) -> Any:
    """Divides by what is zero where nothing was computed."""
    h = h @ w["h"] + x @ w["x"]
    length = rnp.sqrt(rnp.sum(h * h, axis=-1, keepdims=True))
    h = h / length
    return h, rnp.log(length) * (h @ w["o"])


def _logarithms(w: Any, h: Any, x: Any) -> Any:
    """A head whose gradient needs a logarithm of a product with the carry."""
    h = rnp.tanh(h @ w["h"] + x @ w["x"])
    return h, rnp.log(rnp.abs(h @ w["h"])) @ w["o"]


def _apart(w: Any, h: Any, x: Any) -> Any:
    """As before, but what the gradient divides by never meets the mask or the carry."""
    h = rnp.tanh(h @ w["h"] + x @ w["x"])
    return h, rnp.log(rnp.abs(rg.stop_gradient(h) @ w["h"])) @ w["o"]


def _ranked(w: Any, h: Any, x: Any) -> Any:
    """Rows that meet, and stay as many: sorted along the batch."""
    h = rnp.tanh(h @ w["h"] + x @ w["x"]) + 0.1 * rnp.sort(h, axis=0)
    return h, h


def _crossing(w: Any, h: Any, x: Any) -> Any:
    """Rows that meet: of a mean over the batch, ended rows are a part as they were left."""
    h = rnp.tanh(h @ w["h"] + x @ w["x"] - rnp.mean(h, axis=0))
    return h, h


def _dividing_and_crossing(w: Any, h: Any, x: Any) -> Any:
    """Rows that meet, and a division by what was made of them."""
    h = h @ w["h"] + x @ w["x"]
    h = h / rnp.sqrt(rnp.sum(h * h, axis=-1, keepdims=True))
    order = rnp.flip(h, axis=0)
    return h + 0.25 * rnp.tanh(order), h


def _nested(w: Any, h: Any, x: Any) -> Any:
    """A loop in the loop, whose weights get their gradient inside: a sum over the batch.  It
    divides by what the forward loop made."""

    def inner(a: Any, u: Any) -> Any:
        a = a * u + x @ w["x"]
        a = a / rnp.sqrt(rnp.sum(a * a, axis=-1, keepdims=True))
        return a, rnp.max(a, axis=-1)

    h, sums = rg.scan(inner, h, w["h"][:2])
    return h, rnp.swapaxes(sums, 0, 1)


def _turned(w: Any, m: Any, x: Any) -> Any:
    """The batch is not the first axis of what is in between; rows are merged with another axis."""
    m = rnp.tanh(m @ w["square"] + rnp.reshape(x @ w["x"], (x.shape[0], 2, W // 2)))
    across = rnp.transpose(rnp.swapaxes(m, 1, 2), (1, 0, 2))  # [W // 2, B, 2]
    return m, rnp.transpose(rnp.cumsum(across, axis=0), (1, 2, 0))


def _padded(w: Any, h: Any, x: Any) -> Any:
    parts = rnp.concatenate([h[:, 2:], x @ w["x"][:, :2]], axis=1)
    h = rnp.tanh(parts @ w["h"])
    wide = rnp.pad(h, ((0, 0), (1, 2)))
    return rnp.sort(h, axis=-1), wide[:, ::-1]


def _branching(w: Any, h: Any, x: Any) -> Any:
    h = rg.cond(w["flag"] > 0, lambda h: rnp.tanh(h @ w["h"]), lambda h: h * 0.5, h)
    h = h + x @ w["x"]
    return h, rnp.argmax(h, axis=-1)


_RECURRENT = {"h": normal(W, W, seed=11) * 0.5, "x": normal(D, W, seed=12), "o": normal(W, 4)}



def _plain(_: int) -> Any:
    return _RECURRENT


CELLS: dict[str, Cell] = {
    "lstm": Cell(
        _lstm,
        lambda b: {"x": normal(D, 4 * W), "h": normal(W, 4 * W), "b": normal(4 * W)},
        lambda b: (_hidden(b), normal(b, W, seed=6)),
        _floats,
    ),
    "gru": Cell(
        _gru,
        lambda b: {
            "x": normal(D, 3 * W), "h": normal(W, 3 * W), "b": normal(3 * W), "o": normal(W, 4)
        },
        _hidden,
        _floats,
    ),
    "rows": Cell(
        _scaled_rows, lambda b: {**_RECURRENT, "rows": normal(b, seed=9)}, _hidden, _floats
    ),
    "gather": Cell(
        _embedded,
        lambda b: {"h": _RECURRENT["h"], "table": normal(V, W)},
        lambda b: (_hidden(b), np.arange(b, dtype=np.int32) % V, np.arange(b) % 2 == 0),
        lambda t, b: {
            "id": np.random.default_rng(t).integers(0, V, (t, b)).astype(np.int32),
            "scale": normal(t, b),
        },
    ),
    "unit": Cell(_unit_rows, _plain, _hidden, _floats),
    "logarithms": Cell(_logarithms, _plain, _hidden, _floats),
    "apart": Cell(_apart, _plain, _hidden, _floats, (True, False)),
    "ranked": Cell(_ranked, _plain, _hidden, _floats, (False, False)),
    "crossing": Cell(_crossing, _plain, _hidden, _floats, (False, False)),
    "dividing": Cell(_dividing_and_crossing, _plain, _hidden, _floats, (False, False)),
    "nested": Cell(_nested, _plain, _hidden, _floats, (True, False)),
    "turned": Cell(
        _turned,
        lambda b: {"square": normal(W // 2, W // 2), "x": _RECURRENT["x"]},
        lambda b: normal(b, 2, W // 2),
        _floats,
    ),
    "padded": Cell(_padded, _plain, _hidden, _floats, (True, False)),
    "cond": Cell(
        _branching,
        lambda b: {**_RECURRENT, "flag": np.float64(1.0)},
        _hidden,
        _floats,
        (True, False),
    ),
}


def run(cell: Cell, weights: Any, init: Any, xs: Any, lengths: Any, reverse: bool = False) -> Any:
    """(last carry, ys) of the loop."""
    return rg.scan(
        lambda carry, x: cell.body(weights, carry, x), init, xs, reverse=reverse, lengths=lengths
    )


def total(of: Any) -> Any:
    """A number that depends on every float, on each row in its own way."""
    out: Any = 0.0
    for k, x in enumerate(tree.leaves(of)):
        if is_real(x):
            scale = rnp.reshape(rnp.arange(rnp.size(x)), x.shape) * 0.37 + k
            out = out + rnp.sum(rnp.sin(scale) * x * x + rnp.cos(scale) * x)
    return out


def is_real(x: Any) -> bool:
    """Whether `x`, an array or one that is traced, has a gradient."""
    return str(getattr(x, "dtype", "")) in ("f64", "float64")


def floats(of: Any) -> list[Any]:
    return [x for x in tree.leaves(of) if is_real(x)]


def with_floats(of: Any, values: list[Any]) -> Any:
    """`of` with its floats replaced."""
    left = iter(values)
    leaves = [next(left) if is_real(x) else x for x in tree.leaves(of)]
    return tree.unflatten(tree.structure(of), leaves)


def graph_of(cell: Cell, gradient: bool, reverse: bool = False) -> Any:
    """The graph over symbols B and T: (weights, carry, xs, lengths) -> results, and gradients of
    all floats."""
    b, t = 3, 2
    given = (cell.weights(b), cell.start(b), cell.slices(t, b))

    def outputs(weights: Any, init: Any, xs: Any, lengths: Any) -> Any:
        return run(cell, weights, init, xs, lengths, reverse)

    def loss(fw: Any, fi: Any, fx: Any, weights: Any, init: Any, xs: Any, lengths: Any) -> Any:
        out = outputs(
            with_floats(weights, fw), with_floats(init, fi), with_floats(xs, fx), lengths
        )
        return total(out), out

    names = {"B": rg.dim("B"), "T": rg.dim("T", min=0)}
    weights = tree.map(lambda x: spec(x, 0 if np.shape(x) == (b,) else None, names), given[0])
    init = tree.map(lambda x: spec(x, 0, names), given[1])
    xs = tree.map(lambda x: spec(x, 1, names), given[2])
    lengths = rg.spec("i64", "B")
    if not gradient:
        return rg.trace(outputs, weights, init, xs, lengths)
    split = [floats(part) for part in (weights, init, xs)]
    compute = rg.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    return rg.trace(compute, *split, weights, init, xs, lengths)


def spec(x: Any, batch: int | None, names: dict[str, Any]) -> Any:
    """The spec of an array whose axis `batch` is the batch, and whose axis before it is time."""
    x = np.asarray(x)
    sizes: list[Any] = list(x.shape)
    if batch is not None:
        sizes[batch] = names["B"]
        if batch:
            sizes[0] = names["T"]
    return rg.spec(x.dtype.name, *sizes)


def arrays(cell: Cell, time: int, lengths: Any, gradient: bool) -> list[Array]:
    """Operands of `graph_of`."""
    lengths = np.array(lengths)
    b = len(lengths)
    given = [cell.weights(b), cell.start(b), cell.slices(time, b)]
    split = [x for part in given for x in floats(part)] if gradient else []
    return [np.asarray(x) for x in (*split, *tree.leaves(given), lengths)]
