"""What generated schedules call on a GPU, where CuPy is not NumPy: reductions, runs, row products.

CuPy's ufuncs reduce and accumulate for sums and products alone, it has no `vecdot`, and nothing
moves to the host by itself.  Invariant: ops that CuPy cannot express are evaluated by their
reference on the host, with explicit copies there and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from retrograde.compiler.codegen.native_support import NativeMemory, NativeSupport
from retrograde.compiler.codegen.numpy_support import Array, Memory, Support
from retrograde.compiler.ir.registry import lookup


class CupySupport(Support):
    """The functions of generated code over an arena of CuPy's."""

    def truth(self, x: Array) -> bool:
        """A boolean of the device, which the host waits for."""
        return bool(x.get())

    def on_host(self, x: Array) -> Any:
        return x.get()

    def row_sum(self, x: Array, out: Array) -> None:
        self.sum(x, out, axes=(x.ndim - 1,), keepdims=True)

    def row_dot(self, a: Array, b: Array, out: Array) -> None:
        """Sums of products along the last axis; allocates the products."""
        if a.dtype.itemsize == 2:
            wide = self.xp.float32
            products = a.astype(wide) * b.astype(wide)
            self.xp.copyto(out, self.xp.sum(products, axis=-1, keepdims=True))
        else:
            self.xp.sum(a * b, axis=-1, keepdims=True, out=out)

    def _reduce(self, name: str, x: Array, out: Array, axes: Any, keepdims: bool) -> None:
        if not axes:
            self.xp.copyto(out, x, casting="unsafe")
        elif name in ("sum", "prod") and out.dtype.itemsize == 2 and out.dtype.kind == "f":
            wide = self.xp.float32
            total = getattr(self.xp, name)(x, axis=axes, dtype=wide, keepdims=keepdims)
            self.xp.copyto(out, total)
        else:
            if not x.size and name in ("max", "min"):
                self._refuse_empty(name, x, axes)
            if out.size:
                getattr(self.xp, name)(x, axis=axes, keepdims=keepdims, out=out)

    def _cumulate(self, name: str, x: Array, out: Array, axis: int) -> None:
        if name in ("cumsum", "cumprod") and x.dtype == out.dtype and out.dtype.itemsize >= 4:
            getattr(self.xp, name)(x, axis=axis, out=out)
        else:
            self._on_host(name, {"axis": axis, "reverse": False})(x, out=out)

    def evaluator(self, name: str, attrs: Mapping[str, Any]) -> Callable[..., Any]:
        """The reference of the op on copies on the host."""
        op = lookup(name)

        def evaluate(*operands: Array) -> Any:
            results = op.evaluate(attrs, *(x.get() for x in operands))
            if isinstance(results, tuple):
                return tuple(map(self.xp.asarray, results))
            return self.xp.asarray(results)

        return evaluate

    def _on_host(self, name: str, attrs: Mapping[str, Any]) -> Callable[..., None]:
        evaluate = self.evaluator(name, attrs)
        return lambda *operands, out: self.store([out], evaluate(*operands))


def support(memory: Memory, sizes: Any) -> Support:
    """The functions for the array module of `memory`."""
    on_host = memory.xp.__name__ == "numpy"
    if hasattr(memory, "sequence"):
        return NativeSupport(cast(NativeMemory, memory), sizes)
    return Support(memory, sizes) if on_host else CupySupport(memory, sizes)
