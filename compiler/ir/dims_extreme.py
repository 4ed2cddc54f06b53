"""Minima and maxima of sizes, in one form.

Input: sizes; output: a size.  Invariant: the form depends on the differences of the arguments
alone, arguments that bounds prove superfluous are gone, and a maximum of two is written through
their minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

from retrograde.compiler.ir.dims_forms import common_factor
from retrograde.compiler.ir.dims_poly import CACHE, Dim, divided, dominates, make, of_atom, same
from retrograde.compiler.ir.dims_terms import (
    UNIT,
    Atom,
    Func,
    Monomial,
    TermMap,
    add_terms,
    dim_key,
    terms_of,
)

Kind: TypeAlias = Literal["min", "max"]
# A min or max of more arguments than this stays nested instead of growing.
WIDEST = 16


def dim_min(a: Dim, b: Dim) -> Dim:
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else extreme("min", (a, b))


def dim_max(a: Dim, b: Dim) -> Dim:
    """Of two sizes kept as `a + b - min(a, b)`: the lengths of `x[:k]` and `x[k:]` add up."""
    return max(a, b) if isinstance(a, int) and isinstance(b, int) else extreme("max", (a, b))


@lru_cache(maxsize=CACHE)
def extreme(kind: Kind, args: tuple[Dim, ...]) -> Dim:
    kept = _needed(kind, args)
    while True:
        opened = ((x, _opened(kind, x)) for x in kept)
        found = next(((x, p) for x, p in opened if p and len(kept) + len(p) <= WIDEST + 1), None)
        if found is None:
            break
        pieces = map(make, found[1])
        kept = _needed(kind, (*(x for x in kept if not same(x, found[0])), *pieces))
    if len(kept) == 1:
        return kept[0]
    if kind == "max" and len(kept) == 2 and not any(map(_holds_maximum, kept)):
        return kept[0] + kept[1] - extreme("min", tuple(kept))
    # min(K + 1, T + 2) is min(K, T + 1) + 1, and min(2*K, 4*T) is 2*min(K, 2*T).
    shift = make(_common_part(kept))
    rest = [x - shift for x in kept]
    factor = common_factor(rest, nonnegative=True)
    if not same(shift, 0) or factor != (UNIT, 1):
        reduced = tuple(divided(x, factor) for x in rest)
        return shift + make(dict([factor])) * extreme(kind, reduced)
    return of_atom(Func(kind, tuple(sorted(kept, key=dim_key))))


def _needed(kind: Kind, args: Iterable[Dim]) -> list[Dim]:
    """The sizes of `args`, in order, that no other one always makes superfluous."""
    kept: list[Dim] = []
    for x in sorted(args, key=dim_key):
        if not any(_covers(kind, y, x) for y in kept):
            kept = [y for y in kept if not _covers(kind, x, y)] + [x]
    return kept


def _covers(kind: Kind, x: Dim, y: Dim) -> bool:
    return dominates(y, x) if kind == "min" else dominates(x, y)


def _holds_maximum(d: Dim) -> bool:
    atoms = (atom for m, _ in terms_of(d) for atom, _ in m)
    return any(isinstance(atom, Func) and atom.kind == "max" for atom in atoms)


def _opened(kind: Kind, d: Dim) -> list[TermMap] | None:
    """The sizes whose `kind` is `d`: of min(a, b) + r they are a + r and b + r, and for a maximum
    those of r - min(a, b) are r - a and r - b.  None where `d` holds no such function, or two:
    their combinations would grow without end."""
    found = [(m, c) for m, c in terms_of(d) if _opens(kind, m, c)]
    if len(found) != 1:
        return None
    func, scale = found[0][0][0][0], found[0][1]
    assert isinstance(func, Func)
    rest = tuple(t for t in terms_of(d) if t not in found)
    return [add_terms(rest, terms_of(arg), scale) for arg in func.args]


def _opens(kind: Kind, m: Monomial, c: int) -> bool:
    if len(m) != 1 or m[0][1] != 1:
        return False
    atom = m[0][0]
    return isinstance(atom, Func) and atom.kind != "floordiv" and (c > 0) == (atom.kind == kind)


def _common_part(sizes: Sequence[Dim]) -> TermMap:
    """The least coefficient of each term: without it, min and max depend on differences alone."""
    maps = [dict(terms_of(d)) for d in sizes]
    least = {m: min(terms.get(m, 0) for terms in maps) for m in {m: 0 for t in maps for m in t}}
    # A nested function stays where it is, rather than turn up in every other argument.
    return {m: c for m, c in least.items() if c > 0 or not any(map(_is_extreme, dict(m)))}


def _is_extreme(atom: Atom) -> bool:
    return isinstance(atom, Func) and atom.kind != "floordiv"
