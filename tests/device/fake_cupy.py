"""A strict stand-in for CuPy: its array class on host memory, and nothing that CuPy has not.

Input: what generated schedules and `CupyDevice` ask of the module; output: NumPy's numbers.
Invariant: no array turns into a host value by itself (`float`, `bool`, iteration, `np.asarray`,
mixing with NumPy arrays all raise), and what CuPy 13 refuses is refused: functions, keywords,
`out=` where it takes none, element types that a ufunc has no loop for, ufunc methods beyond those
of `add` and `multiply`.  Checked against the signatures and `ufunc.types` of CuPy 13.3.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.special

float32, float64, int32, int64 = np.float32, np.float64, np.int32, np.int64
uint8, uint32, uint64, bool_ = np.uint8, np.uint32, np.uint64, np.bool_

_SCALARS = (bool, int, float, np.bool_, np.number)
_CHARS = "?bBhHiIlLqQefd"


def _dtype(spec: Any) -> np.dtype[Any]:
    dtype = np.dtype(spec)
    if dtype.char not in _CHARS:
        raise TypeError(f"CuPy 13 has no arrays of {dtype}")
    return dtype


class Pointer:
    """A device address: an allocation and an offset into it."""

    def __init__(self, memory: bytearray, offset: int) -> None:
        self.memory = memory
        self.offset = offset

    def __add__(self, offset: int) -> Pointer:
        if type(offset) is not int:
            raise TypeError(f"an address moves by an int, not by {type(offset).__name__}")
        return Pointer(self.memory, self.offset + offset)


class ndarray:  # its name in CuPy
    """An array on the device.  `_host` is what a kernel would see; nobody else may look."""

    __array_priority__ = 100

    def __init__(
        self,
        shape: Sequence[int],
        dtype: Any = float,
        memptr: Pointer | None = None,
        strides: Sequence[int] | None = None,
        order: str = "C",
    ) -> None:
        dtype = _dtype(dtype)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if memptr is None:
            assert strides is None and order == "C"
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            memptr = Pointer(bytearray(b"\xa5" * (count or 1)), 0)  # never zero by luck
        self._data = memptr
        if 0 in shape:
            self._host = np.empty(shape, dtype)
        else:
            offset, memory = memptr.offset, memptr.memory
            self._host = np.ndarray(shape, dtype, memory, offset, strides)

    # --- what only an explicit call moves to the host

    def get(self) -> Any:
        return np.array(self._host, order="C", copy=True)

    def set(self, arr: Any) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("only a NumPy array can be set")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"shape mismatch: {arr.shape} against {self.shape}")
        if not self._host.flags.c_contiguous:
            raise RuntimeError("cannot set to a non-contiguous array")
        self._host[...] = arr

    def item(self) -> Any:
        return self._host.item()

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion to a host value is not allowed: use .get()")

    __array__ = __float__ = __int__ = __index__ = __bool__ = __complex__ = _refuse
    __iter__ = __contains__ = __reduce__ = _refuse

    def __hash__(self) -> int:
        raise TypeError("unhashable")

    # --- facts

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    T = property(lambda self: _wrap(self._host.T))

    @property
    def data(self) -> Pointer:
        return self._data

    @property
    def flags(self) -> Any:
        f = self._host.flags
        return SimpleNamespace(c_contiguous=f.c_contiguous, f_contiguous=f.f_contiguous)

    def __len__(self) -> int:
        return len(self._host)

    # --- views and copies

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        return _wrap(self._host.reshape(*shape, order=order))

    def transpose(self, *axes: Any) -> ndarray:
        return _wrap(self._host.transpose(*axes))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return _wrap(self._host.astype(_dtype(dtype), copy=copy))

    def view(self, dtype: Any) -> ndarray:
        return _wrap(self._host.view(_dtype(dtype)))

    def copy(self) -> ndarray:
        return _wrap(self._host.copy())

    def __getitem__(self, key: Any) -> ndarray:
        return _wrap(np.asarray(self._host[_key(key)]))

    def __setitem__(self, key: Any, value: Any) -> None:
        self._host[_key(key)] = _operand(value)

    # --- reductions that are methods

    def max(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduce(np.max, self, axis, out, keepdims)

    def min(self, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
        return _reduce(np.min, self, axis, out, keepdims)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or not hasattr(_THIS, ufunc.__name__):
            return NotImplemented
        out = kwargs.pop("out", None)
        if out is not None:
            kwargs["out"] = out[0] if isinstance(out, tuple) else out
        return getattr(_THIS, ufunc.__name__)(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        mine = getattr(_THIS, func.__name__, None)
        if mine is None or builtins.any(not issubclass(t, ndarray) for t in types):
            return NotImplemented
        return mine(*args, **kwargs)


def _wrap(host: Any) -> ndarray:
    """A device array over memory that is on the device already."""
    _dtype(host.dtype)
    out = object.__new__(ndarray)
    out._host = host
    out._data = Pointer(bytearray(), 0)
    return out


def _operand(x: Any) -> Any:
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, _SCALARS):
        return x
    raise TypeError(f"unsupported type {type(x)}")


def _array(x: Any) -> Any:
    if not isinstance(x, ndarray):
        raise TypeError(f"a cupy.ndarray is needed, not {type(x)}")
    return x._host


def _key(key: Any) -> Any:
    parts = key if isinstance(key, tuple) else (key,)
    for k in parts:
        whole = isinstance(k, (int, np.integer, slice)) or k is None or k is Ellipsis
        if not whole and not isinstance(k, ndarray):
            raise IndexError(f"cannot index with {type(k).__name__}")
    return tuple(k._host if isinstance(k, ndarray) else k for k in parts)


def _reduce(fn: Any, x: ndarray, axis: Any, out: Any, keepdims: bool, **kwargs: Any) -> ndarray:
    if axis == ():
        raise ValueError("do not count on a reduction over no axes")
    with np.errstate(all="ignore"):
        if out is None:
            return _wrap(np.asarray(fn(_array(x), axis=axis, keepdims=keepdims, **kwargs)))
        fn(_array(x), axis=axis, keepdims=keepdims, out=_array(out), **kwargs)
    return out


# --- ufuncs


class Ufunc:
    """One universal function with the loops that CuPy has."""

    def __init__(self, fn: Any, loops: str, methods: bool = False) -> None:
        self.fn = fn
        self.name = self.__name__ = f"cupy_{fn.__name__}"
        self.loops = loops
        self.methods = methods

    def __call__(self, *args: Any, out: ndarray | None = None, casting: str = "same_kind") -> Any:
        if len(args) != self.fn.nin:
            raise TypeError(f"{self.name} takes {self.fn.nin} operands")
        operands = [_operand(x) for x in args]
        arrays = [x for x in operands if isinstance(x, np.ndarray)]
        if not arrays:
            raise TypeError(f"{self.name} of scalars alone is host work")
        common = np.result_type(*arrays).char
        if not builtins.any(np.can_cast(common, loop) for loop in self.loops):
            raise TypeError(f"{self.name} has no loop for {np.dtype(common)}")
        with np.errstate(all="ignore"):
            if out is None:
                return _wrap(np.asarray(self.fn(*operands, casting=casting)))
            self.fn(*operands, out=_array(out), casting=casting)
        return out

    def reduce(
        self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        if not self.methods:
            raise NotImplementedError(f"`{self.name}.reduce` is not supported yet")
        return {"add": sum, "multiply": prod}[self.fn.__name__](array, axis, dtype, out, keepdims)

    def accumulate(self, array: Any, axis: int = 0, dtype: Any = None, out: Any = None) -> Any:
        if not self.methods:
            raise NotImplementedError(f"`{self.name}.accumulate` is not supported yet")
        return {"add": cumsum, "multiply": cumprod}[self.fn.__name__](array, axis, dtype, out)

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        if self.fn is not np.add:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        if a.dtype.char not in "iILQefd" or a.dtype == np.int64:
            raise TypeError(f"scatter_add does not support {a.dtype}")
        np.add.at(_array(a), _key(indices), _operand(b))


_ANY, _NUMBERS, _FLOATS, _INTEGERS = _CHARS, _CHARS[1:], "efd", _CHARS[:-3]
_LOOPS = {
    _ANY: "add subtract multiply maximum minimum equal not_equal less less_equal "
    "greater greater_equal logical_and logical_or logical_xor logical_not absolute negative",
    _NUMBERS: "floor_divide remainder power reciprocal sign divide",
    _INTEGERS: "bitwise_and bitwise_or bitwise_xor invert",
    _INTEGERS[1:]: "left_shift right_shift",
    _FLOATS: "arccos arccosh arcsin arcsinh arctan arctanh ceil cos cosh exp exp2 expm1 floor log "
    "log1p log2 rint sin sinh sqrt tan tanh trunc arctan2 copysign hypot logaddexp "
    "isfinite isinf isnan",
}
for _loops, _names in _LOOPS.items():
    for _name in _names.split():
        _fn = getattr(np, _name)
        globals()[_name] = Ufunc(_fn, _loops, _name in ("add", "multiply"))
_THIS = SimpleNamespace()  # filled at the end: what `numpy.f(device array)` dispatches to

_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide",
    "floordiv": "floor_divide", "mod": "remainder", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "left_shift", "rshift": "right_shift",
}  # fmt: skip


def _operators() -> None:
    for sign, name in _OPERATORS.items():
        ufunc = globals()[name]
        setattr(ndarray, f"__{sign}__", lambda a, b, f=ufunc: f(a, b))
        setattr(ndarray, f"__r{sign}__", lambda a, b, f=ufunc: f(b, a))
        setattr(ndarray, f"__i{sign}__", lambda a, b, f=ufunc: f(a, b, out=a))
    for sign, name in {
        "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
        "eq": "equal", "ne": "not_equal",
    }.items():  # fmt: skip
        ufunc = globals()[name]
        setattr(ndarray, f"__{sign}__", lambda a, b, f=ufunc: f(a, b))
    ndarray.__neg__ = lambda a: globals()["negative"](a)  # type: ignore[attr-defined]
    ndarray.__invert__ = lambda a: globals()["invert"](a)  # type: ignore[attr-defined]


_operators()

# --- creation


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def _filled(shape: Any, dtype: Any, value: Any) -> ndarray:
    out = ndarray(shape, dtype)
    out._host[...] = value
    return out


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(shape, dtype, 0)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(shape, dtype, 1)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None or not isinstance(fill_value, _SCALARS):
        raise TypeError("full needs a dtype and a scalar here")
    return _filled(shape, dtype, fill_value)


def asarray(a: Any, dtype: Any = None, order: Any = None) -> ndarray:
    """CuPy's own explicit way to the device: host arrays and scalars are copied to it."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == np.dtype(dtype) else a.astype(dtype)
    host = np.array(a, dtype=dtype, order="C", copy=True)
    out = ndarray(host.shape, host.dtype)
    out._host[...] = host
    return out


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    first, last = (0, start) if stop is None else (start, stop)
    return asarray(np.arange(first, last, step, dtype))


# --- moves, copies, products, orders


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    if where is not None and (not isinstance(where, ndarray) or where.dtype != bool):
        raise TypeError("where is a boolean array on the device")
    mask: Any = True if where is None else _array(where)
    with np.errstate(all="ignore"):
        np.copyto(_array(dst), _operand(src), casting=casting, where=mask)  # type: ignore[arg-type]


def take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> Any:
    """Indices wrap around whatever they are: CuPy checks none."""
    if out is None:
        return _wrap(np.take(_array(a), _array(indices), axis, mode="wrap"))
    if out.dtype != a.dtype:
        raise TypeError("output dtype mismatch")
    _array(out)[...] = np.take(_array(a), _array(indices), axis, mode="wrap")
    return out


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    if a.ndim < 1 or b.ndim < 1:
        raise ValueError("matmul takes no scalars")
    with np.errstate(all="ignore"):
        if out is None:
            return _wrap(np.matmul(_array(a), _array(b)))
        _array(out)[...] = np.matmul(_array(a), _array(b))
    return out


def sum(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
) -> Any:
    return _reduce(np.sum, a, axis, out, keepdims, dtype=dtype)


def prod(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False
) -> Any:
    return _reduce(np.prod, a, axis, out, keepdims, dtype=dtype)


def max(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return _reduce(np.max, a, axis, out, keepdims)


def min(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return _reduce(np.min, a, axis, out, keepdims)


def any(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return _reduce(np.any, a, axis, out, keepdims)


def all(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    return _reduce(np.all, a, axis, out, keepdims)


def _run(fn: Any, a: Any, axis: int, dtype: Any, out: Any) -> Any:
    with np.errstate(all="ignore"):
        if out is None:
            return _wrap(fn(_array(a), axis, dtype))
        fn(_array(a), axis, dtype, _array(out))
    return out


def cumsum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _run(np.cumsum, a, axis, dtype, out)


def cumprod(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    return _run(np.cumprod, a, axis, dtype, out)


def argsort(a: Any, axis: int = -1, kind: Any = None) -> ndarray:
    if kind not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    return _wrap(np.argsort(_array(a), axis, kind="stable"))


def moveaxis(a: Any, source: Any, destination: Any) -> ndarray:
    return _wrap(np.moveaxis(_array(a), source, destination))


def broadcast_to(array: Any, shape: Any) -> ndarray:
    return _wrap(np.broadcast_to(_array(array), shape))


def flip(a: Any, axis: Any = None) -> ndarray:
    return _wrap(np.flip(_array(a), axis))


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    return _wrap(np.ascontiguousarray(_array(a), dtype))


def asnumpy(a: Any) -> Any:
    return a.get()


def _scipy(name: str) -> Callable[..., Any]:
    fn = getattr(scipy.special, name)

    def call(x: Any, out: Any = None) -> Any:
        if x.dtype.char not in "efd":
            raise TypeError(f"{name} has no loop for {x.dtype}")
        if out is None:
            return _wrap(fn(_array(x)))
        fn(_array(x), out=_array(out), casting="same_kind")
        return out

    return call


special = SimpleNamespace(erf=_scipy("erf"), erfc=_scipy("erfc"))

for _name, _thing in list(globals().items()):
    if not _name.startswith("_") and (callable(_thing) and _thing is not ndarray):
        setattr(_THIS, _name, _thing)
