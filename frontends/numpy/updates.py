"""Updates without assignment: `x.at[index].set(v)` -> an array that differs there.

Invariant: no array changes; what NumPy would leave to the order of writes is defined or refused.
"""

from __future__ import annotations

from typing import Any

from retrograde.compiler.errors import DTypeError, TraceError, UnsupportedError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.indexing import Plan, plan
from retrograde.numpy.primitives import Array, ArrayLike

__all__ = ["at"]


class at:
    """`at(x)[index].set(v)`: `x` with other elements at `index`; `x.at` of a traced value."""

    __slots__ = ("_index", "_x")

    def __init__(self, x: ArrayLike, index: Any = None) -> None:
        self._x = x
        self._index = index

    def __getitem__(self, index: Any) -> at:
        return at(self._x, (index,))

    def get(self) -> Array:
        """The elements: `x[index]`."""
        return _update(self._x, self._index, "get", 0)

    def set(self, values: ArrayLike) -> Array:
        """With `values` there; of duplicate indices the last wins."""
        return _update(self._x, self._index, "set", values)

    def add(self, values: ArrayLike) -> Array:
        """With `values` added; duplicate indices add up."""
        return _update(self._x, self._index, "add", values)

    def subtract(self, values: ArrayLike) -> Array:
        """With `values` subtracted; duplicate indices add up."""
        return _update(self._x, self._index, "subtract", values)

    def multiply(self, values: ArrayLike) -> Array:
        """Multiplied by `values`; not for index arrays, which may hold duplicates."""
        return _update(self._x, self._index, "mul", values)

    def divide(self, values: ArrayLike) -> Array:
        """Divided by `values`; not for index arrays, which may hold duplicates."""
        return _update(self._x, self._index, "div", values)

    def power(self, values: ArrayLike) -> Array:
        """To the power `values`; not for index arrays, which may hold duplicates."""
        return _update(self._x, self._index, "pow", values)

    def max(self, values: ArrayLike) -> Array:
        """At least `values`; not for index arrays, which may hold duplicates."""
        return _update(self._x, self._index, "maximum", values)

    def min(self, values: ArrayLike) -> Array:
        """At most `values`; not for index arrays, which may hold duplicates."""
        return _update(self._x, self._index, "minimum", values)


@function
def _update(x: ArrayLike, wrapped: Any, act: str, values: ArrayLike) -> Array:
    if wrapped is None:
        raise p.misfit("say where: x.at[index].set(values)")
    x, (index,) = p.array(x), wrapped
    values = _fitting(x, values)
    if isinstance(index, Expr) and index.dtype is dtypes.bool_ and act != "get":
        return _update_masked(x, index, act, values)
    found = plan(x, index)
    if act == "get":
        return found.read(x)

    def change(region: Expr) -> Expr:
        old = p.gather(region, found.indices, found.axes) if found.indices else region
        new = found.disarrange(p.broadcast_to(values, found.arrange(old).shape))
        if not found.indices:
            return _combined(old, act, new)
        if act in ("add", "subtract") and not found.distinct:
            signed: Any = new if act == "add" else -new
            return _scatter("scatter_add", region, signed, found)
        if act != "set" and not found.distinct:
            raise UnsupportedError(
                f"{where()}x.at[...].{_PUBLIC.get(act, act)} with index arrays, which may name an "
                "element twice: use slices or a mask, or .set with the computed values"
            )
        return _scatter("scatter_set", region, _combined(old, act, new), found)

    return found.write(x, change)


_PUBLIC = {"mul": "multiply", "div": "divide", "pow": "power", "maximum": "max", "minimum": "min"}


def _scatter(name: str, region: Expr, updates: Expr, found: Plan) -> Expr:
    out: Expr = lookup(name)(region, updates, *found.indices, axes=found.axes)
    return out


def _combined(old: Expr, act: str, new: Expr) -> Expr:
    if act == "set":
        return new
    return cast(lookup("sub" if act == "subtract" else act)(old, new), old.dtype)


def _update_masked(x: Expr, mask: Expr, act: str, values: Expr) -> Expr:
    if values.ndim:
        raise TraceError(
            f"{where()}x.at[mask] with a traced mask takes one number, as the count of elements "
            "depends on data: use rnp.where(mask, values, x)"
        )
    if mask.ndim > x.ndim:
        raise p.misfit(f"a mask {mask.type} on {x.type}: it has more axes")
    wide = p.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    return p.select(wide, _combined(x, act, p.broadcast_to(values, x.shape)), x)


def _fitting(x: Expr, values: ArrayLike) -> Expr:
    """The values as the dtype of `x`; DTypeError where that would lose their kind."""
    meets = p.common([x, values])[0].dtype
    if meets.kind != x.dtype.kind and {meets.kind, x.dtype.kind} != {"int", "uint"}:
        raise DTypeError(
            f"{where()}values of kind {meets.kind} do not fit into {x.type}: cast one of them, "
            f"x.astype({meets.name!r}) or values.astype({x.dtype.name!r})"
        )
    return p.array(values, x.dtype)
