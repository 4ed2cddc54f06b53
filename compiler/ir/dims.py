"""Symbolic sizes.  Input: integers and named symbols; output: `Dim`, an int or a `Poly`.

Invariant: a `Poly` is a canonical polynomial with integer coefficients over symbols and the
functions `//`, `min`, `max` of such, and never a constant: constants are plain ints.  Comparisons
hold for *all* sizes within the bounds of the symbols, or raise `ShapeError` where that cannot be
decided; `same`, `dominates` and the `decide_` functions never raise.  Symbols of one name but
different bounds are different atoms: the tracer gives each name one symbol first.

This is the module to import.  Its parts: `dims_terms` (data) <- `dims_bounds` (proofs) <-
`dims_forms` (quotients) <- `dims_poly` (the type) <- `dims_extreme` (min, max), beside them
`dims_text` and `dims_number`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import cast

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims_text
from retrograde.compiler.ir.dims_extreme import dim_max, dim_min, extreme
from retrograde.compiler.ir.dims_number import set_number_hook
from retrograde.compiler.ir.dims_poly import (
    Dim,
    Poly,
    bounds,
    decide_eq,
    decide_le,
    divide_exact,
    dominates,
    floordiv,
    mod,
    of_atom,
    product,
    same,
    symbols,
)
from retrograde.compiler.ir.dims_terms import Atom, Func, Symbol, terms_of

__all__ = [
    "Atom",
    "Dim",
    "Func",
    "Poly",
    "Symbol",
    "align",
    "bounds",
    "decide_eq",
    "decide_le",
    "dim",
    "dim_max",
    "dim_min",
    "divide_exact",
    "dominates",
    "evaluate",
    "floordiv",
    "gcd_content",
    "mod",
    "parse",
    "product",
    "same",
    "set_number_hook",
    "source",
    "substitute",
    "symbols",
]


def dim(name: str, min: int = 1, max: int | None = None) -> Dim:
    """The size `name`, at least `min` and at most `max`; the plain int where the two are equal."""
    if isinstance(name, str) and name.startswith("__"):
        raise ShapeError(f"{name!r} cannot name a size: leave out the leading underscores")
    return of_atom(Symbol(name, min, max))


def source(d: Dim) -> str:
    """A Python expression over the names of the symbols, with `//`, `%`, `min` and `max`."""
    return str(d)


def parse(text: str, symbols: Mapping[str, Symbol] | None = None) -> Dim:
    """Read `2*T`, `B*T + 3`, `min(K, T)`, `T // 2`, `T % 4` …; `parse(str(d))` is `d`.

    Names that `symbols` does not hold get the default bounds.
    """
    known = symbols or {}

    def lookup(name: str) -> Dim:
        return of_atom(known[name]) if name in known else dim(name)

    return dims_text.read(text, lookup, extreme)


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The value at the sizes `env`, with Python's floor semantics.  Bounds are not checked."""
    if isinstance(d, int):
        return d
    if d._function is None:
        d._function = _compile(d)
    try:
        return d._function(*[operator.index(env[s.name]) for s in symbols(d)])
    except KeyError as missing:
        raise ShapeError(
            f"the size {missing.args[0]} is not given, and {d} needs it: given are "
            f"{', '.join(sorted(env)) or 'none'}"
        ) from None
    except ZeroDivisionError:
        values = ", ".join(f"{s.name}={env[s.name]}" for s in symbols(d))
        raise ShapeError(f"the size {d} divides by zero at {values}") from None


def _compile(d: Poly) -> Callable[..., int]:
    # The text is our own, and a Symbol takes only identifiers.  Two symbols of one name have one
    # value: the later of the two parameters stands for both.
    names = [s.name for s in symbols(d)]
    unique = [n if n not in names[i + 1 :] else f"__{i}" for i, n in enumerate(names)]
    code = f"lambda {', '.join(unique)}: {source(d)}"
    scope = {"__builtins__": {}, "min": min, "max": max}
    return cast("Callable[..., int]", eval(code, scope))


def substitute(d: Dim, env: Mapping[str, Dim]) -> Dim:
    """`d` with the symbols that `env` names replaced."""
    if isinstance(d, int) or not any(s.name in env for s in symbols(d)):
        return d
    total: Dim = 0
    for m, c in d.terms:
        part: Dim = c
        for atom, power in m:
            part = part * product([_replaced(atom, env)] * power)
        total = total + part
    return total


def _replaced(atom: Atom, env: Mapping[str, Dim]) -> Dim:
    if isinstance(atom, Symbol):
        return env[atom.name] if atom.name in env else of_atom(atom)
    args = tuple(substitute(arg, env) for arg in atom.args)
    return floordiv(*args) if atom.kind == "floordiv" else extreme(atom.kind, args)


def gcd_content(d: Dim) -> int:
    """The greatest integer that divides every coefficient."""
    return math.gcd(*(c for _, c in terms_of(d)))


def ceil_div(d: Dim, k: int) -> Dim:
    """How many pieces of up to `k` make up `d`."""
    return floordiv(d + (k - 1), k)


def align(d: Dim, k: int) -> Dim:
    """`d` rounded up to a multiple of `k`; `d` itself where its coefficients say that it is one."""
    if k <= 0:
        raise ShapeError(f"cannot align the size {d} to {k}: give a positive number")
    if gcd_content(d) % k == 0:
        return d
    return k * floordiv(d + (k - 1), k)
