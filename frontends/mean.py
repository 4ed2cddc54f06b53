"""Losses as sums and counts: `Mean(sum, count)` is the mean of what was counted.

Means add and scale, which makes a list of weighted terms.  Each term keeps its own sum and count,
so that parts of a batch can be totalled before they are divided: padding, packing and splitting
leave the value what it is.  Invariant: a term whose count is 0 is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DTypeError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import current, required
from retrograde.compiler.ir.dims import Poly
from retrograde.compiler.ir.expr import SCALARS, Expr, apply, cast
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.tracing import expression, strong

Term = tuple[Any, Any, Any]  # weight, sum, count


class Mean:
    """The mean `sum / count`, both of them single numbers; 0 where the count is 0.

    `a + b` adds means of different counts, `2 * a` and `a / 2` scale them; a single number that is
    added counts once.  `value` is the number that all this makes.  A count may not depend on what
    is differentiated by (UnsupportedError)."""

    __slots__ = ("terms",)
    __array_ufunc__ = None  # NumPy's numbers hand over to the reflected methods

    def __init__(self, sum: Any, count: Any) -> None:
        for x, what in ((sum, "sum"), (count, "count")):
            if not isinstance(x, (*SCALARS, Poly)) and getattr(x, "shape", None) != ():
                got = f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__
                raise ShapeError(
                    f"{where()}the {what} of a Mean is {got}: it must be a single number, "
                    "rnp.sum(x) of what is counted"
                )
        self.terms: tuple[Term, ...] = ((1.0, sum, count),)

    @property
    def sum(self) -> Any:
        """The sum of the only term."""
        return self._only()[1]

    @property
    def count(self) -> Any:
        """The count of the only term."""
        return self._only()[2]

    def _only(self) -> Term:
        if len(self.terms) != 1:
            raise UnsupportedError(
                f"{where()}this Mean has {len(self.terms)} terms with a sum and a count each: read "
                "`terms`, or `value` for the number that they make"
            )
        return self.terms[0]

    @property
    def value(self) -> Any:
        """The weighted sum of the terms' means: traced inside a trace, else an array."""
        traced = current() is not None
        total: Any = None
        for term in self.terms:
            x = term_value(*term) if traced else _value(*term)
            total = x if total is None else total + x
        return total

    def __add__(self, other: Any) -> Mean:
        if isinstance(other, Mean):
            return _of(self.terms + other.terms)
        if _is_number(other):
            return _of((*self.terms, (1.0, other, 1)))
        return NotImplemented

    __radd__ = __add__

    def __mul__(self, factor: Any) -> Mean:
        if not _is_number(factor):
            return NotImplemented
        return _of(tuple((weight * factor, s, n) for weight, s, n in self.terms))

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Mean:
        if not _is_number(factor):
            return NotImplemented
        return _of(tuple((weight / factor, s, n) for weight, s, n in self.terms))

    def __neg__(self) -> Mean:
        return self * -1.0

    def __sub__(self, other: Any) -> Mean:
        return self.__add__(-other)

    def __rsub__(self, other: Any) -> Mean:
        return (-self).__add__(other)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        parts = [f"{'' if _is_one(w) else f'{w} * '}Mean({s}, {n})" for w, s, n in self.terms]
        return " + ".join(parts)


def _of(terms: tuple[Term, ...]) -> Mean:
    mean = object.__new__(Mean)
    mean.terms = terms
    return mean


def _is_number(x: Any) -> bool:
    return isinstance(x, (*SCALARS, Poly)) or (isinstance(x, (Expr, np.ndarray)) and x.shape == ())


def _is_one(weight: Any) -> bool:
    return isinstance(weight, SCALARS) and weight == 1


def _value(weight: Any, total: Any, count: Any) -> Any:
    total = np.asarray(total)
    if not np.any(count):
        return np.zeros((), total.dtype)
    return np.asarray(weight * (total / np.asarray(count).astype(total.dtype)), total.dtype)


def term_value(weight: Any, total: Any, count: Any) -> Expr:
    """weight * sum / count, with finite gradients where the count is 0."""
    total = strong(expression(total))
    if not total.dtype.is_float:
        raise DTypeError(f"{where()}the sum of a Mean is {total.type}: it must be a float")
    count = expression(count)
    if not count.dtype.is_float:
        count = cast(count, dtypes.i64)
    nothing = apply(lookup("equal"), (count, 0))
    divisor = cast(apply(lookup("select"), (nothing, 1, count)), total.dtype)
    mean = apply(lookup("select"), (nothing, 0.0, total / divisor))
    out: Expr = mean if _is_one(weight) else weight * mean
    return cast(out, total.dtype)


def check_counts(mean: Mean, nodes: Iterable[Node], sources: set[Value]) -> None:
    """UnsupportedError where a count depends on one of `sources`, naming the line it is made at.

    `nodes` are the nodes traced so far."""
    dependent = set(sources)
    makers = {}
    for node in nodes:
        if any(v in dependent for v in node.inputs):
            dependent.update(node.outputs)
        makers.update(dict.fromkeys(node.outputs, node))
    for _, _, count in mean.terms:
        if not isinstance(count, Expr) or required().lift(count).value not in dependent:
            continue
        maker = makers.get(count.value)
        place = where(maker.loc if maker is not None else None)
        raise UnsupportedError(
            f"{place}this count of a Mean depends on what is differentiated by: count something "
            "that the data alone decides (a mask, a length, a size)"
        )


tree.register(
    Mean,
    lambda mean: (
        [x for term in mean.terms for x in term],
        len(mean.terms),
        [f"{i}.{name}" if len(mean.terms) > 1 else name
         for i in range(len(mean.terms)) for name in ("weight", "sum", "count")],
    ),
    lambda n, parts: _of(tuple(tuple(parts[3 * i : 3 * i + 3]) for i in range(n))),
)  # fmt: skip
