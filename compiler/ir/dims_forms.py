"""The one form kept of quotients, worked out on plain terms.

Input: the arguments of `//`; output: what can be taken out of the quotient, and what stays inside.
Invariant: applied to what stays inside, each finds nothing more to take out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrograde.compiler.ir.dims_bounds import atom_bounds
from retrograde.compiler.ir.dims_terms import (
    UNIT,
    Func,
    Monomial,
    TermMap,
    Terms,
    add_terms,
    mono_div,
    sort_terms,
    terms_of,
)

if TYPE_CHECKING:
    from retrograde.compiler.ir.dims_poly import Dim


def split_quotient(terms: Terms, k: int) -> tuple[TermMap, int, TermMap, int]:
    """(whole, sign, inner, k2) with terms // k == whole + sign*(inner // k2), for k > 0.

    Coefficients of `inner` lie in [0, k2).  Of floor(p / k) and its equal -floor((k-1 - p) / k) the
    one is kept whose leading coefficient is at most k/2, so that -(-T // 4) is (T + 3) // 4.
    """
    whole: dict[Monomial, int] = {}
    sign = 1
    while True:
        nested = _nested_quotient(terms, k)
        if nested is not None:
            func, coefficient = nested
            p, divisor = terms_of(func.args[0]), terms_of(func.args[1])[0][1]
            # With R the other terms: floor((f + R) / k) == floor((p + m*R) / (m*k)), f = p // m.
            unit = 1 if coefficient % k == 1 and (k > 2 or coefficient > 0) else -1
            lone: Monomial = ((func, 1),)
            whole[lone] = whole.get(lone, 0) + sign * ((coefficient - unit) // k)
            others = tuple((m, c) for m, c in terms if m != lone)
            if unit < 0:
                others = tuple(add_terms(((UNIT, k - 1),), others, -1).items())
                sign = -sign
            terms, k = sort_terms(add_terms(p, others, divisor)), divisor * k
            continue
        for m, c in terms:
            whole[m] = whole.get(m, 0) + sign * (c // k)
        terms = tuple((m, c % k) for m, c in terms if c % k)
        varying = [c for m, c in terms if m]
        if not varying:
            return whole, sign, {}, k
        factor = math.gcd(k, *varying)
        if factor > 1:
            # floor((g*p + c) / (g*k)) == floor((p + floor(c / g)) / k)
            terms = tuple((m, c // factor) for m, c in terms if c >= factor)
            k //= factor
            continue
        leading = next((c for c in varying if 2 * c != k), None)
        constant = dict(terms).get(UNIT, 0)
        if (2 * leading < k) if leading is not None else (2 * constant < k):
            return whole, sign, dict(terms), k
        terms = sort_terms(add_terms(((UNIT, k - 1),), terms, -1))
        sign = -sign


def _nested_quotient(terms: Terms, k: int) -> tuple[Func, int] | None:
    """The one quotient by an integer among the terms, where its coefficient is 1 or -1 modulo k."""
    found: list[tuple[Func, int]] = []
    for m, c in terms:
        if len(m) != 1 or m[0][1] != 1 or c % k == 0:
            continue
        atom = m[0][0]
        if isinstance(atom, Func) and atom.kind == "floordiv" and isinstance(atom.args[1], int):
            found.append((atom, c))
    return found[0] if len(found) == 1 and found[0][1] % k in (1, k - 1) else None


def split_by_term(terms: Terms, divisor: tuple[Monomial, int]) -> TermMap:
    """The multiple u of a single term q so that terms - q*u has nothing more to take out."""
    m0, c0 = divisor
    parts = ((mono_div(m, m0), c // c0) for m, c in terms)
    return {m: c for m, c in parts if m is not None}


def common_factor(sizes: Sequence[Dim], *, nonnegative: bool = False) -> tuple[Monomial, int]:
    """The greatest single term that divides all sizes; of atoms >= 0 only where asked."""
    content = math.gcd(*(c for d in sizes for _, c in terms_of(d)))
    shared: dict[object, int] | None = None
    order: Monomial = UNIT
    for m in (m for d in sizes for m, _ in terms_of(d)):
        powers: dict[object, int] = dict(m)
        if shared is None:
            shared, order = powers, m
        shared = {a: min(p, powers[a]) for a, p in shared.items() if a in powers}
    kept = tuple((a, shared[a]) for a, _ in order if shared and a in shared)
    return tuple(x for x in kept if not nonnegative or atom_bounds(x[0])[0] >= 0), content
