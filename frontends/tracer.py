"""`Tracer`: the array that a function sees while it is traced.

It has the methods and properties of a NumPy array that make sense for a value without numbers;
each is the `retrograde.numpy` function of that name.  Invariant: what would need the numbers raises
TraceError with the user's line and what to write instead, never TypeError: NumPy swallows those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

import retrograde.numpy as rnp
from retrograde import protocols
from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.numpy.indexing import getitem
from retrograde.numpy.updates import at as Updates

skip_frames_under(os.path.abspath(__file__))

_IN_PLACE = {
    "fill": "rnp.full_like(x, value)",
    "partition": "rnp.sort(x)",
    "put": "x.at[index].set(values)",
    "resize": "rnp.reshape or rnp.pad",
    "setfield": "x.at[index].set(values)",
    "sort": "x = rnp.sort(x)",
}
_CONCRETE = {
    "item": "keep it as a 0-d array; the caller of the compiled function may read the result",
    "tolist": "keep it as an array; the caller of the compiled function may read the result",
    "tobytes": "return it from the function and convert the result",
    "tofile": "return it from the function and save the result",
    "dump": "return it from the function and save the result",
    "dumps": "return it from the function and save the result",
    "nonzero": "its shape would depend on data: use rnp.where(mask, x, 0)",
    "compress": "its shape would depend on data: use rnp.where(mask, x, 0)",
}


class Tracer(Expr):
    """An array without numbers: dtype and shape are known, the rest is the graph being built."""

    __slots__ = ("__weakref__",)
    def __hash__(self) -> int:
        raise self._concrete(
            "a set, a dictionary key or hash()",
            "use rnp.any(x == item) for `in`, rnp.take(table, x) to look up, x.shape for a cache",
        )

    # --- shape

    @property
    def T(self) -> Any:
        """All axes in reverse order."""
        return rnp.transpose(self)

    @property
    def mT(self) -> Any:
        """The last two axes swapped."""
        return rnp.matrix_transpose(self)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.bytes

    @property
    def nbytes(self) -> Dim:
        """Bytes of all elements."""
        return self.type.bytes

    @property
    def real(self) -> Any:
        """The array itself: it is real."""
        return self

    def conj(self) -> Any:
        """The array itself: it is real."""
        return self

    def astype(self, dtype: Any, *, copy: bool = True) -> Any:
        """The elements as `dtype`."""
        return rnp.astype(self, dtype)

    def copy(self) -> Any:
        """The array itself: traced values never change."""
        return self

    def reshape(self, *shape: Any, order: str = "C") -> Any:
        """Another shape, given as a tuple or size by size, where one may be -1."""
        wanted = shape[0] if len(shape) == 1 else shape
        return rnp.reshape(self, wanted, order)

    def transpose(self, *axes: Any) -> Any:
        """The axes in another order (none given: reversed)."""
        if not axes or axes == (None,):
            return rnp.transpose(self)
        return rnp.transpose(self, axes[0] if isinstance(axes[0], (tuple, list)) else axes)

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        """Two axes swapped."""
        return rnp.swapaxes(self, axis1, axis2)

    def ravel(self, order: str = "C") -> Any:
        """All elements as a vector."""
        return rnp.reshape(self, -1, order)

    flatten = ravel

    def squeeze(self, axis: Any = None) -> Any:
        """Without axes of size 1."""
        return rnp.squeeze(self, axis)

    def repeat(self, repeats: Any, axis: int | None = None) -> Any:
        """Each element so many times in a row."""
        return rnp.repeat(self, repeats, axis)

    def diagonal(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        """The elements whose places on two axes differ by `offset`."""
        return rnp.diagonal(self, offset, axis1, axis2)

    # --- reductions

    def sum(self, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
        """The sum over `axis`."""
        return rnp.sum(self, axis, dtype, **_without_out("sum", options))

    def prod(self, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
        """The product over `axis`."""
        return rnp.prod(self, axis, dtype, **_without_out("prod", options))

    def mean(self, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
        """The mean over `axis`."""
        return rnp.mean(self, axis, dtype, **_without_out("mean", options))

    def var(self, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
        """The variance over `axis`."""
        return rnp.var(self, axis, dtype, **_without_out("var", options))

    def std(self, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
        """The standard deviation over `axis`."""
        return rnp.std(self, axis, dtype, **_without_out("std", options))

    def max(self, axis: Any = None, **options: Any) -> Any:
        """The largest over `axis`."""
        return rnp.max(self, axis, **_without_out("max", options))

    def min(self, axis: Any = None, **options: Any) -> Any:
        """The smallest over `axis`."""
        return rnp.min(self, axis, **_without_out("min", options))

    def any(self, axis: Any = None, **options: Any) -> Any:
        """Whether one is true over `axis`."""
        return rnp.any(self, axis, **_without_out("any", options))

    def all(self, axis: Any = None, **options: Any) -> Any:
        """Whether all are true over `axis`."""
        return rnp.all(self, axis, **_without_out("all", options))

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Any:
        """Where the largest is along `axis`."""
        return rnp.argmax(self, axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Any:
        """Where the smallest is along `axis`."""
        return rnp.argmin(self, axis, keepdims=keepdims)

    def argsort(self, axis: int | None = -1, *, descending: bool = False) -> Any:
        """The places whose elements are in order along `axis`."""
        return rnp.argsort(self, axis, descending=descending)

    def cumsum(self, axis: int | None = None, dtype: Any = None) -> Any:
        """Running sums along `axis`."""
        return rnp.cumsum(self, axis, dtype)

    def cumprod(self, axis: int | None = None, dtype: Any = None) -> Any:
        """Running products along `axis`."""
        return rnp.cumprod(self, axis, dtype)

    def trace(self, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        """The sum of a diagonal."""
        return rnp.trace(self, offset, axis1, axis2)

    # --- elements

    def round(self, decimals: int = 0) -> Any:
        """The nearest number of so many decimals."""
        return rnp.round(self, decimals)

    def clip(self, min: Any = None, max: Any = None) -> Any:
        """Kept between `min` and `max`."""
        return rnp.clip(self, min, max)

    def dot(self, other: Any) -> Any:
        """The product as numpy.dot defines it."""
        return rnp.dot(self, other)

    def take(self, indices: Any, axis: int | None = None) -> Any:
        """The elements at `indices` along `axis`."""
        return rnp.take(self, indices, axis)

    @property
    def at(self) -> Updates:
        """`x.at[index].set(v)`, `.add(v)` …: a new array with other elements there."""
        return Updates(self)

    def __getitem__(self, index: Any) -> Any:
        return getitem(self, index)

    def __iter__(self) -> Iterator[Any]:
        if not self.shape or not isinstance(self.shape[0], int):
            return iter(super().__iter__())  # raises
        return iter(rnp.unstack(self))

    def __len__(self) -> int:
        if self.shape and isinstance(size := self.shape[0], int):
            return size
        if not self.shape:
            raise TraceError(f"{where()}len() of a scalar, {self.type}: it has no axes")
        raise TraceError(
            f"{where()}len() must be a plain integer, and axis 0 of {self.type} has a symbolic "
            "size: use x.shape[0], which computes like a number; lists of such arrays: rnp.stack"
        )

    # --- NumPy's own functions

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        return protocols.call_ufunc(ufunc, method, inputs, options)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return protocols.call_function(func, args, kwargs)

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise self._concrete(
            "making a NumPy array",
            "write rnp.asarray for np.asarray and np.array (lists of traced values: rnp.stack), "
            "x.at[...].set(v) for writing into an array",
        )

    # --- what cannot be traced

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TraceError(
            f"{where()}traced values never change: write `x = x.at[...].set(value)` for "
            "`x[...] = value`, and `x = x.at[...].add(value)` for `x[...] += value`"
        )

    def __delitem__(self, index: Any) -> NoReturn:
        raise TraceError(f"{where()}traced values never change: select what stays, y = x[...]")

    def __contains__(self, item: Any) -> bool:
        raise self._concrete("`in`", "use rnp.any(x == item), which is a traced boolean")

    def __float__(self) -> float:
        raise self._concrete(
            "float(), math functions, or writing into a NumPy array",
            "use the rnp function, x.astype('f32') for a dtype, rnp.stack or y.at[i].set(x)",
        )

    def __int__(self) -> int:
        raise self._concrete(
            "int(), or writing into a NumPy array",
            "x.astype('i32') for a dtype, rnp.stack or y.at[i].set(x) to collect values",
        )

    def __complex__(self) -> complex:
        raise self._concrete("complex()", "complex numbers are not supported")

    def __trunc__(self) -> int:
        raise self._concrete("math.trunc()", "use rnp.trunc")

    def __floor__(self) -> int:
        raise self._concrete("math.floor()", "use rnp.floor")

    def __ceil__(self) -> int:
        raise self._concrete("math.ceil()", "use rnp.ceil")

    def __round__(self, decimals: int | None = None) -> Any:
        return rnp.round(self, decimals or 0)

    def __divmod__(self, other: Any) -> Any:
        return rnp.divmod(self, other)

    def __rdivmod__(self, other: Any) -> Any:
        return rnp.divmod(other, self)

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> NoReturn:
        raise self._concrete("pickling", "return it from the function and store the result")

    def __dlpack__(self, *args: Any, **options: Any) -> NoReturn:
        raise self._concrete("handing it to another library", "stay with retrograde.numpy")

    def __format__(self, spec: str) -> str:
        if not spec:
            return repr(self)
        raise self._concrete(
            f"formatting as {spec!r}", 'use rg.debug.print("{}", x), which prints at run time'
        )

    def __getattr__(self, name: str) -> Any:
        if name in _IN_PLACE:
            raise TraceError(
                f"{where()}x.{name} changes the array, and traced values never change: "
                f"use {_IN_PLACE[name]}"
            )
        if name in _CONCRETE:
            raise self._concrete(f"x.{name}()", _CONCRETE[name])
        if not name.startswith("_") and hasattr(np.ndarray, name):
            raise TraceError(
                f"{where()}x.{name} is about the memory of an array, or not among the methods of "
                "traced values: see retrograde.numpy for what there is"
            )
        near = rnp.nearest(name) if not name.startswith("_") else []
        hint = f": did you mean rnp.{near[0]}?" if near else ""
        raise AttributeError(f"traced values have no attribute {name!r}{hint}")


def _without_out(name: str, options: dict[str, Any]) -> dict[str, Any]:
    if options.pop("out", None) is not None:
        raise TraceError(
            f"{where()}x.{name} with out= writes into an array, and traced values are not memory: "
            f"use the result, y = x.{name}()"
        )
    return options
