"""Ops that change no number: stop_gradient cuts derivatives, debug_print shows values.

Operands -> the operand, or nothing.  Invariant: neither changes what a program computes.
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Any

import numpy as np

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, no_cost
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register


def _same(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return (types[0],)


stop_gradient = register(
    Op(
        "stop_gradient",
        Kind.ELEMENTWISE,
        _same,
        lambda attrs, x: x,
        NotDifferentiable("it is there to cut the derivative"),
        doc="the operand, as a constant to every derivative",
        cost=no_cost,
        numpy="{xp}.copyto({out}, {0})",
        c="{0}",
        inplace=(0,),
    )
)


_WIDE = re.compile(r"[0-9]{4}|[{}]")  # what fills the memory before it is printed
_INSIDE = re.compile(r"[.\[]_")


def _nothing(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    text = attrs["format"]
    try:
        for _, name, how, _ in Formatter().parse(text):
            if _WIDE.search(how or "") or _INSIDE.search(name or ""):
                raise UnsupportedError(
                    f"the format {text!r} asks for more than printing: leave out widths of four "
                    "digits and more, braces within braces, and names that begin with an underscore"
                )
        text.format(*map(_sample, types))
    except (IndexError, KeyError):
        raise UnsupportedError(
            f"the format {text!r} takes other values than the {len(types)} given"
        ) from None
    except (ValueError, TypeError) as error:
        raise UnsupportedError(
            f"the format {text!r} does not fit {', '.join(map(str, types))}: {error} "
            "({:.3f} and the like take single numbers)"
        ) from None
    return ()


def _sample(type: TensorType) -> Any:
    """A value to try a format on: only single numbers take a specification."""
    return type.dtype.numpy.type(0) if not type.shape else np.zeros(0)


def _print(attrs: Attrs, *arrays: Any) -> tuple[()]:
    print(attrs["format"].format(*map(_shown, arrays)), flush=True)
    return ()


def _shown(x: Any) -> Any:
    """A 0-d array as its number, so that formats such as {:.3f} work."""
    return x[()] if x.ndim == 0 else x


debug_print = register(
    Op(
        "debug_print",
        Kind.OPAQUE,
        _nothing,
        _print,
        NotDifferentiable("it returns nothing"),
        doc="prints the operands by `format` when the program runs",
        convention="in the order of the program; not again where a value is recomputed",
        cost=no_cost,
        effect="debug",
    )
)
