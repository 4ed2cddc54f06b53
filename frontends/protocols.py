"""Plain NumPy functions on traced values: `np.exp(x)`, `np.where(m, x, 0)` -> `retrograde.numpy`.

Input: what NumPy hands to `__array_ufunc__` and `__array_function__`; output: the result of the
function of the same name, or a TraceError with the user's line and what to write instead.
Invariant: no argument is dropped: one that has no meaning in a trace is refused by name.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir.location import skip_frames_under, where

skip_frames_under(os.path.abspath(__file__))

_REDUCTIONS = {
    "add": "sum",
    "multiply": "prod",
    "maximum": "max",
    "minimum": "min",
    "logical_and": "all",
    "logical_or": "any",
    "logaddexp": "logsumexp",
}
_RUNNING = {"add": "cumsum", "multiply": "cumprod", "maximum": "cummax", "minimum": "cummin"}
_ADVICE = {
    "copyto": "make a new array: rnp.full, rnp.where or x.at[...].set(values)",
    "fill_diagonal": "use rnp.where(rnp.eye(n, dtype=bool), value, x)",
    "put": "use x.at[index].set(values)",
    "put_along_axis": "use x.at[index].set(values)",
    "place": "use rnp.where(mask, values, x)",
    "putmask": "use rnp.where(mask, values, x)",
    "shares_memory": "traced values have no memory",
    "may_share_memory": "traced values have no memory",
    "save": "return the value from the function and save the result",
    "savez": "return the value from the function and save the result",
    "savetxt": "return the value from the function and save the result",
    "array2string": "use rg.debug.print, which prints when the program runs",
    "apply_along_axis": "write it for the whole array, or use rg.scan along axis 0",
    "vectorize": "write it for the whole array, or use rg.scan along axis 0",
    "choose": "use rnp.where, or rnp.take along the axis of a stack",
    "select": "use nested rnp.where",
    "piecewise": "use nested rnp.where",
}


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], options: Any) -> Any:
    """The result of a NumPy ufunc, or of one of its methods, on traced values."""
    name = ufunc.__name__
    shown = f"np.{name}" if method == "__call__" else f"np.{name}.{method}"
    if options.get("out") is not None:
        raise TraceError(
            f"{where()}{shown} with out= writes into an array, and traced values are not memory: "
            f"use the result, y = {shown}(x) (and `y = y + x`, not `y += x`, on a NumPy array y)"
        )
    options = {k: v for k, v in options.items() if k != "out"}
    if method == "__call__":
        return _elementwise(name, shown, inputs, options)
    if method in ("reduce", "accumulate"):
        return _along_axis(name, method, shown, inputs, options)
    if method == "outer" and not options:
        a, b = (rnp.asarray(x) for x in inputs)
        return _elementwise(name, shown, (a.reshape(a.shape + (1,) * b.ndim), b), {})
    advice = "use x.at[index].add(values), which returns a new array" if method == "at" else ""
    raise _refused(shown, advice)


def _elementwise(name: str, shown: str, inputs: tuple[Any, ...], options: Any) -> Any:
    fn = getattr(rnp, name, None)
    if fn is None:
        raise _unknown(shown, name)
    if options.get("where", True) is not True:
        raise TraceError(
            f"{where()}{shown} with where= leaves the other elements undefined: "
            f"use rnp.where(mask, rnp.{name}(x), x)"
        )
    dtype = options.pop("dtype", None)
    options.pop("where", None)
    if name in ("matmul", "vecdot", "matvec", "vecmat") and options:
        raise _refused(f"{shown} with {', '.join(options)}", "move the axes with rnp.moveaxis")
    options = {k: v for k, v in options.items() if (k, v) not in _HARMLESS}
    if options:
        raise _refused(f"{shown} with {', '.join(options)}", f"call rnp.{name}(x)")
    out = fn(*inputs)
    if dtype is None:
        return out
    if isinstance(out, tuple):
        return tuple(rnp.astype(x, dtype) for x in out)
    return rnp.astype(out, dtype)


_HARMLESS = (("casting", "same_kind"), ("order", "K"), ("subok", True))


def _along_axis(
    name: str, method: str, shown: str, inputs: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    table = _REDUCTIONS if method == "reduce" else _RUNNING
    if name not in table:
        raise _unknown(shown, name)
    keywords = dict(zip(("axis", "dtype"), inputs[1:], strict=False)) | options
    keywords.setdefault("axis", 0)
    if keywords.get("dtype", 0) is None:
        del keywords["dtype"]
    if keywords.get("where") is True:
        del keywords["where"]
    return _checked(getattr(rnp, table[name]), shown, (inputs[0],), keywords)


def call_function(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """The result of a NumPy function on traced values."""
    name = getattr(func, "__name__", str(func))
    module = getattr(func, "__module__", "numpy") or "numpy"
    shown = f"np.{'linalg.' if module.endswith('linalg') else ''}{name}"
    if name in _ADVICE:
        raise _refused(shown, _ADVICE[name])
    home: Any = rnp.linalg if module.endswith("linalg") else rnp
    if module.startswith(("numpy.fft", "numpy.random")) or not hasattr(home, name):
        raise _unknown(shown, name)
    return _checked(getattr(home, name), shown, args, kwargs)


def _checked(
    fn: Callable[..., Any], shown: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """`fn(*args, **kwargs)`; TraceError for arguments that it does not take."""
    if kwargs.get("out", 0) is None:
        kwargs = {k: v for k, v in kwargs.items() if k != "out"}
    if "out" in kwargs:
        raise _refused(f"{shown} with out=", f"use the result, y = {shown}(x)")
    signature = inspect.signature(fn)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        taken = ", ".join(signature.parameters)
        raise _refused(f"{shown}: {error}", f"rnp.{fn.__name__} takes ({taken})") from None
    return fn(*args, **kwargs)


def _refused(what: str, instead: str) -> TraceError:
    advice = f": {instead}" if instead else ""
    return TraceError(f"{where()}{what} cannot be traced{advice}")


def _unknown(shown: str, name: str) -> TraceError:
    found = [f"rnp.{n}" for n in rnp.nearest(name)]
    near = f"the nearest are {', '.join(found)}" if found else "there is nothing near it"
    return TraceError(
        f"{where()}{shown} has no counterpart in retrograde.numpy ({near}): write it with others, "
        "or compute it outside of the traced function and pass the result in"
    )
