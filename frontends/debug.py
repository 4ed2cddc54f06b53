"""Looking into a program while it runs: `rg.debug.print`."""

from __future__ import annotations

import builtins
from typing import Any

from retrograde.compiler.ir.expr import apply
from retrograde.compiler.ir.registry import lookup
from retrograde.tracing import expression, is_traced


def print(format: str, *args: Any) -> None:
    """Prints `format.format(*args)` when the compiled program gets there: `print("{}", x)`.

    Prints keep their order.  Outside of a trace it prints at once.  Raises UnsupportedError for a
    format that takes other values than those given."""
    if not is_traced():
        builtins.print(format.format(*args), flush=True)
        return
    exprs = [expression(x, "what rg.debug.print shows") for x in args]
    apply(lookup("debug_print"), exprs, {"format": format})
