"""Terms of a symbolic size -> proven bounds on its value.

Invariant: sound for all sizes within the bounds of the symbols at which the expression has a value
(no division by zero).  Three methods, the best of which counts: interval arithmetic; interval
arithmetic after writing each atom as its bound plus a distance >= 0 (`B*T - T` becomes `b + b*t`);
and removing functions (`k*(p // k)` is `p - r` with 0 <= r < k; a `min` is at most each of its
arguments, and is one of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from retrograde.compiler.ir.dims_terms import (
    UNIT,
    Atom,
    Func,
    Monomial,
    Symbol,
    TermMap,
    Terms,
    add_terms,
    mono_div,
    mono_mul,
    mul_terms,
    terms_of,
)

if TYPE_CHECKING:
    pass

# Finite bounds are ints; infinities are floats, which Python compares with ints exactly.
Bound: TypeAlias = int | float
Interval: TypeAlias = tuple[Bound, Bound]
INFINITY = math.inf
# Removing functions branches: so many, one after another, and no more.
DEPTH = 4
# Expanding (low + s)**p is left out above this degree; shapes stay far below it.
MAX_DEGREE = 8


def lower(terms: TermMap, depth: int = DEPTH) -> Bound:
    """A proven lower bound of the value of `terms`."""
    best = max(_span(terms, atom_bounds)[0], _shifted(terms, top=False), _shifted(terms, top=True))
    if depth == 0:
        return best
    funcs = {a: None for m, _ in terms.items() for a, _ in m if isinstance(a, Func)}
    if any(f.kind == "floordiv" and isinstance(f.args[1], int) for f in funcs):
        scale, scaled = _without_quotients(terms, depth)
        bound = lower(scaled, depth - 1)
        return max(best, bound if isinstance(bound, float) else -(-bound // scale))
    for func in funcs:
        without = _without_quotient if func.kind == "floordiv" else _without_extreme
        found = without(terms, func, depth - 1)
        if found is not None:
            return max(best, found)
    return best


def interval_of(terms: Terms) -> Interval:
    return lower(dict(terms)), -lower({m: -c for m, c in terms})


@lru_cache(maxsize=1 << 14)
def atom_bounds(atom: Atom) -> Interval:
    if isinstance(atom, Symbol):
        return atom.min, INFINITY if atom.max is None else atom.max
    spans = [interval_of(terms_of(arg)) for arg in atom.args]
    if atom.kind == "min":
        return min(s[0] for s in spans), min(s[1] for s in spans)
    if atom.kind == "max":
        return max(s[0] for s in spans), max(s[1] for s in spans)
    return _quotient(*spans)


def _quotient(p: Interval, q: Interval) -> Interval:
    if q[0] < 0:
        # |p // q| <= |p| for every integer q but 0.
        reach = max(abs(p[0]), abs(p[1]))
        return -reach, reach
    smallest, largest = max(q[0], 1), max(q[1], 1)
    low = _floor(p[0], largest if p[0] >= 0 else smallest)
    high = _floor(p[1], smallest if p[1] >= 0 else largest)
    return low, high


def _floor(p: Bound, q: Bound) -> Bound:
    if isinstance(p, float):
        return p
    if isinstance(q, float):
        return 0 if p >= 0 else -1
    return p // q


def _times(a: Bound, b: Bound) -> Bound:
    if not a or not b:
        return 0
    if isinstance(a, float) or isinstance(b, float):
        return INFINITY if (a > 0) == (b > 0) else -INFINITY
    return a * b


def _product(a: Interval, b: Interval) -> Interval:
    corners = [_times(x, y) for x in a for y in b]
    return min(corners), max(corners)


def _power(base: Interval, exponent: int) -> Interval:
    span = base
    for _ in range(exponent - 1):
        span = _product(span, base)
    return (max(span[0], 0), span[1]) if exponent % 2 == 0 else span


def _span(terms: TermMap, of: Callable[[Atom], Interval]) -> Interval:
    """Plain interval arithmetic with `of(atom)` as the interval of each atom."""
    low: Bound = 0
    high: Bound = 0
    for m, c in terms.items():
        part: Interval = (c, c)
        for atom, power in m:
            part = _product(part, _power(of(atom), power))
        low += part[0]
        high += part[1]
    return low, high


def _shifted(terms: TermMap, *, top: bool) -> Bound:
    """The lower bound after atom = low + s (or high - s where `top` and high is finite), s >= 0."""
    base: dict[Atom, tuple[int, int]] = {}
    left: dict[Atom, Interval] = {}
    for m in terms:
        if sum(p for _, p in m) > MAX_DEGREE:
            return -INFINITY
        for atom, _ in m:
            low, high = atom_bounds(atom)
            if top and isinstance(high, int):
                base[atom], left[atom] = (high, -1), (0, high - low)
            elif isinstance(low, int):
                base[atom], left[atom] = (low, 1), (0, high - low)
            else:
                base[atom], left[atom] = (0, 1), (low, high)
    if top and all(sign > 0 for _, sign in base.values()):
        return -INFINITY
    expanded: dict[Monomial, int] = {}
    for m, c in terms.items():
        part: Terms = ((UNIT, c),)
        for atom, power in m:
            origin, sign = base[atom]
            binomial = tuple(
                (
                    ((atom, j),) if j else UNIT,
                    math.comb(power, j) * origin ** (power - j) * sign**j,
                )
                for j in range(power + 1)
            )
            part = tuple(mul_terms(part, binomial).items())
        expanded = add_terms(tuple(expanded.items()), part)
    return _span(expanded, left.__getitem__)[0]


def _without_quotients(terms: TermMap, depth: int) -> tuple[int, dict[Monomial, int]]:
    """(scale, scale*terms), where p // k with an integer k is (p - r) / k, 0 <= r < k."""
    values: dict[Atom, tuple[int, Terms]] = {}
    scale = 1
    for m in terms:
        divisor = 1
        for atom, power in m:
            if not isinstance(atom, Func) or atom.kind != "floordiv":
                continue
            p, k = atom.args
            if isinstance(k, int):
                divisor *= math.prod([k] * power)
                rest = _remainder(f"{depth}_{len(values)}", k - 1)
                if atom not in values:
                    values[atom] = k, tuple(add_terms(terms_of(p), rest, -1).items())
        scale = math.lcm(scale, divisor)
    total: dict[Monomial, int] = {}
    for m, c in terms.items():
        kept = tuple(item for item in m if item[0] not in values)
        part: Terms = ((kept, c * scale),)
        for atom, power in m:
            if atom in values:
                k, value = values[atom]
                for _ in range(power):
                    part = tuple((n, d // k) for n, d in part)
                    part = tuple(mul_terms(part, value).items())
        total = add_terms(tuple(total.items()), part)
    return scale, _nonzero(total)


def _remainder(tag: str, limit: int | None) -> Terms:
    # A name that no size of a user and no other remainder of the same terms has.
    return ((((Symbol(f"__r{tag}", 0, limit), 1),), 1),)


def _without_quotient(terms: TermMap, func: Func, depth: int) -> Bound | None:
    """Replace q*func by p - r, 0 <= r < q, for a product q of sizes; None where it does not fit."""
    p, q = (terms_of(arg) for arg in func.args)
    if len(q) != 1 or q[0][1] != 1 or interval_of(q)[0] < 0:
        return None
    cofactor: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in terms.items():
        factor = mono_div(m, mono_mul(q[0][0], ((func, 1),)))
        if factor is not None:
            cofactor[factor] = c
        elif func in dict(m):
            return None
        else:
            rest[m] = c
    largest = interval_of(q)[1]
    remainder = _remainder(str(depth), max(largest - 1, 0) if isinstance(largest, int) else None)
    # The remainder is bounded by a size: let it count up from 0, or down from q - 1.
    down = tuple(add_terms(p, q, -1).items())
    values = add_terms(p, remainder, -1), add_terms(down, ((UNIT, 1), *remainder))
    return max(_lower_with(rest, cofactor, tuple(value.items()), depth) for value in values)


def _lower_with(rest: TermMap, cofactor: TermMap, value: Terms, depth: int) -> Bound:
    part = tuple(mul_terms(tuple(cofactor.items()), value).items())
    return lower(_nonzero(add_terms(tuple(rest.items()), part)), depth)


def _without_extreme(terms: TermMap, func: Func, depth: int) -> Bound | None:
    """Replace `func` by its arguments: any of them where that can only lower the value (a min with
    a factor <= 0, a max with a factor >= 0), and otherwise the worst of them."""
    cofactor: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for m, c in terms.items():
        uses = dict(m).get(func, 0)
        if uses > 1:
            return None
        factor = mono_div(m, ((func, 1),)) if uses else None
        if factor is None:
            rest[m] = c
        else:
            cofactor[factor] = c
    bounds = (_lower_with(rest, cofactor, terms_of(arg), depth) for arg in func.args)
    signed = cofactor if func.kind == "max" else {m: -c for m, c in cofactor.items()}
    if lower(signed, 0) < 0:
        return min(bounds)
    # Their mean also is on the safe side: a + b >= 2*min(a, b).
    total: Terms = ()
    for arg in func.args:
        total = tuple(add_terms(total, terms_of(arg)).items())
    n = len(func.args)
    mean = _lower_with({m: n * c for m, c in rest.items()}, cofactor, total, depth)
    return max(*bounds, mean if isinstance(mean, float) else -(-mean // n))


def _nonzero(terms: TermMap) -> dict[Monomial, int]:
    return {m: c for m, c in terms.items() if c}
