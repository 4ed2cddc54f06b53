"""A product and the cross-entropy of its rows as one op, so that the logits never exist whole.

`linear_cross_entropy` takes x [n, d], w [d, v] (or [v, d], `transposed`), the targets [n] and the
`extras` that are there: a bias [v], and which rows are kept, bool [n].  Results: the negative log
likelihood and the log-sum-exp of each row.  Its gradient rule is one op too, which computes the
logits again from x and w.  Weights by class, smoothing and means are arithmetic on these rows.

The references work on some rows at a time, at most `ELEMENTS` logits.  Wijmans et al. 2024 (Cut
Your Losses in Large-Vocabulary Language Models); Milakov & Gimelshein 2018 (online softmax).
Invariant: a row that is not kept counts as one of zero logits whose target is 0, with zero
gradients, whatever is in it; rows that are kept go as through `token_nll`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape, same_type
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.composite import (
    logsumexp,
    lowest,
    reshaped,
    token_nll,
    widened,
    widened_array,
)
from retrograde.compiler.ops.contract import dot_general
from retrograde.compiler.ops.declare import TRANSCENDENTAL, one_dtype, require, where, wide
from retrograde.compiler.ops.index import scatter_add
from retrograde.compiler.ops.move import Cotangents

Array = npt.NDArray[Any]

ELEMENTS = 1 << 21  # logits at a time in the references
EXTRAS = ("bias", "kept")  # what may come after x, w, targets, in this order
DEFAULTS: Attrs = {"transposed": False, "extras": ()}


def named(attrs: Attrs, operands: Sequence[Any]) -> dict[str, Any]:
    """The operands after x, w, targets by name."""
    return dict(zip(attrs["extras"], operands, strict=True))


def sizes_of(attrs: Attrs, w: Any) -> tuple[Dim, Dim]:
    """The width d and the number v of classes, from w or its type."""
    d, v = w.shape[::-1] if attrs["transposed"] else w.shape
    return d, v


# --- shapes


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    extras = tuple(attrs["extras"])
    if extras != tuple(name for name in EXTRAS if name in extras):
        raise ShapeError(f"extras {extras}: some of {EXTRAS}, in this order")
    if len(types) != 3 + len(extras):
        raise ShapeError(f"takes x, w, targets and {extras}, got {len(types)} operands")
    x, w, targets = types[:3]
    given = named(attrs, types[3:])
    require(x, "float")
    one_dtype([x, w, *([given["bias"]] if "bias" in given else [])])
    if not targets.dtype.is_integer:
        raise DTypeError(f"the targets are {targets}: class indices are integers")
    if x.ndim != 2 or w.ndim != 2 or not dims.same(x.shape[1], sizes_of(attrs, w)[0]):
        layout = "[v, d]" if attrs["transposed"] else "[d, v]"
        raise ShapeError(f"x {x} and w {w} are not [n, d] and {layout}")
    _, v = sizes_of(attrs, w)
    if not same_shape(targets.shape, x.shape[:1]):
        raise ShapeError(f"x {x} needs a target for each row, got {targets}")
    if "bias" in given and not same_shape(given["bias"].shape, (v,)):
        raise ShapeError(f"the bias is {given['bias']}: one number for each of {v} classes")
    if "kept" in given and not same_type(given["kept"], TensorType(dtypes.bool_, x.shape[:1])):
        raise ShapeError(f"which rows of {x} are kept is {given['kept']}: a boolean for each")
    row = TensorType(wide(x.dtype), x.shape[:1])
    return row, row


def _infer_grad(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    n = 3 + len(attrs["extras"])
    row, _ = _infer(types[:n], attrs)
    for t in types[n:]:
        if t.dtype is not row.dtype:
            raise DTypeError(f"a result of linear_cross_entropy or its cotangent is {t}, not {row}")
    if len(types) != n + 3 or not all(same_type(t, row) for t in types[n:]):
        raise ShapeError(
            f"after the operands of linear_cross_entropy come the log-sum-exp, what its softmax is "
            f"multiplied by and the cotangent of the losses, each {row}"
        )
    given = named(attrs, types[3:n])
    return (*types[:2], *([given["bias"]] if "bias" in given else []))


# --- references


class _Rows:
    """The logits of a few kept rows at a time, in the type that is computed in."""

    def __init__(self, attrs: Attrs, x: Array, w: Array, targets: Array, *extras: Array) -> None:
        given = named(attrs, extras)
        self.x, self.w = widened_array(x), widened_array(w.T if attrs["transposed"] else w)
        self.bias = widened_array(given["bias"]) if "bias" in given else None
        self.kept = given.get("kept", np.ones(len(x), bool))
        self.targets = targets.astype(np.intp)
        classes = self.w.shape[1]
        chosen = targets[self.kept]
        wrong = chosen[(chosen < 0) | (chosen >= classes)]
        if wrong.size:
            raise DataError(f"target {wrong.flat[0]} is out of range for {classes} classes")
        self.step = max(1, ELEMENTS // max(1, classes))

    def blocks(self) -> Iterator[tuple[Array, Array]]:
        """Numbers of rows, and their logits."""
        rows = np.flatnonzero(self.kept)
        for i in range(0, len(rows), self.step):
            some = rows[i : i + self.step]
            logits = self.x[some] @ self.w
            yield some, logits if self.bias is None else logits + self.bias


def _evaluate(attrs: Attrs, *operands: Array) -> tuple[Array, Array]:
    rows = _Rows(attrs, *operands)
    count, classes = len(rows.x), rows.w.shape[1]
    lse = np.full(count, np.log(classes) if classes else -np.inf, rows.x.dtype)
    nll = lse.copy()
    for some, logits in rows.blocks():
        lse[some] = logsumexp.evaluate({"axes": (1,), "keepdims": False}, logits)
        with np.errstate(invalid="ignore"):
            nll[some] = lse[some] - logits[np.arange(len(some)), rows.targets[some]]
    return nll, lse


def _evaluate_grad(attrs: Attrs, *operands: Array) -> tuple[Array, ...]:
    *given, lse, gain, loss = operands
    rows = _Rows(attrs, *given)
    x, w = given[:2]
    dx, dw = np.zeros_like(rows.x), np.zeros(rows.w.shape, rows.w.dtype)
    db = np.zeros(rows.w.shape[1], rows.w.dtype)
    level = np.maximum(lse, lowest(dtypes.dtype(lse.dtype)))
    for some, logits in rows.blocks():
        with np.errstate(all="ignore"):
            slopes = np.exp(logits - level[some, None]) * gain[some, None]
            slopes[np.arange(len(some)), rows.targets[some]] -= loss[some]
            dx[some] = slopes @ rows.w.T
            dw += rows.x[some].T @ slopes
            db += slopes.sum(0)
    results = [dx.astype(x.dtype), (dw.T if attrs["transposed"] else dw).astype(w.dtype)]
    return (*results, db.astype(w.dtype)) if "bias" in attrs["extras"] else tuple(results)


# --- as plain ops


def _cleared(x: Expr, kept: Expr | None) -> Expr:
    """`x` with zeros in the rows that are not kept."""
    if kept is None:
        return x
    inside = reshaped(kept, (*kept.shape, *(1,) * (x.ndim - 1)))
    out: Expr = where(inside, x, 0)
    return out


def _logits(attrs: Attrs, x: Expr, w: Expr, given: dict[str, Expr]) -> Expr:
    axis = 1 if attrs["transposed"] else 0
    logits = dot_general(widened(x), widened(w), contract=((1,), (axis,)), batch=((), ()))
    if "bias" in given:
        logits = logits + widened(given["bias"])
    return _cleared(logits, given.get("kept"))


def _decompose(attrs: Attrs, x: Expr, w: Expr, targets: Expr, *extras: Expr) -> Any:
    given = named(attrs, extras)
    logits = _logits(attrs, _cleared(x, given.get("kept")), w, given)
    return token_nll(logits, _cleared(targets, given.get("kept")))


def _decompose_grad(
    attrs: Attrs, x: Expr, w: Expr, targets: Expr, *rest: Expr
) -> tuple[Expr, ...]:
    *extras, lse, gain, loss = rest
    given = named(attrs, extras)
    kept = given.get("kept")
    count = targets.size
    wx, ww = widened(_cleared(x, kept)), widened(w)
    level = lookup("maximum")(lse, lowest(lse.dtype))
    weights = lookup("exp")(_logits(attrs, wx, ww, given) - reshaped(level, (count, 1)))
    rows = lookup("iota")(size=count, dtype=dtypes.i32)
    places = (rows, _cleared(targets, kept))
    slopes = weights * reshaped(gain, (count, 1))
    slopes = _cleared(scatter_add(slopes, -loss, *places, axes=(0, 1), wrap=False), kept)
    of_x, of_classes = (0, 1) if attrs["transposed"] else (1, 0)
    dx = dot_general(slopes, ww, contract=((1,), (of_x,)), batch=((), ()))
    pair = (wx, slopes) if of_classes == 0 else (slopes, wx)
    dw = dot_general(*pair, contract=((0,), (0,)), batch=((), ()))
    results = [cast(dx, x.dtype), cast(dw, w.dtype)]
    if "bias" in given:
        results.append(cast(lookup("sum")(slopes, axes=(0,), keepdims=False), w.dtype))
    return tuple(results)


def _vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    loss, of_lse = cotangents
    if loss is None:
        assert of_lse is not None
        loss, gain = zeros(of_lse.type), of_lse
    else:
        gain = loss if of_lse is None else loss + of_lse
    grad = lookup("linear_cross_entropy_grad")
    found = grad(*ctx.inputs, ctx.outputs[1], gain, loss, **ctx.attrs)
    out: list[Expr | None] = [None] * len(ctx.inputs)
    out[0], out[1] = found[:2]
    if "bias" in ctx.attrs["extras"]:
        out[3] = found[2]
    return out


def _products(inputs: Sequence[TensorType], attrs: Attrs) -> tuple[Dim, Dim]:
    d, v = sizes_of(attrs, inputs[1])
    return inputs[0].shape[0] * v, d


def _cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    logits, d = _products(inputs, attrs)
    return logits * (2 * d + TRANSCENDENTAL + 4)


def _grad_cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    logits, d = _products(inputs, attrs)
    return logits * (6 * d + TRANSCENDENTAL + 4)


linear_cross_entropy = register(
    Op(
        "linear_cross_entropy",
        Kind.OPAQUE,
        _infer,
        _evaluate,
        _vjp,
        doc="the negative log likelihood of each target under softmax of a row of x @ w, and the "
        "logsumexp of the row, some logits at a time; x is [n, d], w [d, v] or `transposed` "
        "[v, d]; `extras` may name a bias [v] and which rows are kept (Wijmans et al. 2024)",
        convention="as token_nll; a row that is not kept has logits of 0 and gradients of 0, "
        "whatever is in it",
        cost=_cost,
        decompose=_decompose,
        defaults=DEFAULTS,
        checks_data=True,
    )
)
linear_cross_entropy_grad = register(
    Op(
        "linear_cross_entropy_grad",
        Kind.OPAQUE,
        _infer_grad,
        _evaluate_grad,
        vjp=None,
        doc="the cotangents of x, w and the bias from the operands of `linear_cross_entropy`, the "
        "logsumexp, what the softmax of each row is multiplied by, and the cotangent of each loss",
        convention="the logits are computed again; differentiated as the plain formulas",
        cost=_grad_cost,
        decompose=_decompose_grad,
        defaults=DEFAULTS,
        checks_data=True,
    )
)
