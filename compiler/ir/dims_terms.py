"""Atoms of symbolic sizes and the ring of integer polynomials over them, as plain data.

Input: terms, that is pairs (monomial, integer coefficient); output: terms.  Invariant: a monomial
is a tuple of (atom, power >= 1) sorted by `atom_key`, so equal monomials are equal tuples, and no
order depends on a hash seed.  `dims` wraps terms as `Poly`, the type that everybody else sees.
"""

from __future__ import annotations

import keyword
import operator
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from retrograde.compiler.errors import ShapeError

if TYPE_CHECKING:
    from retrograde.compiler.ir.dims_poly import Dim

FuncKind: TypeAlias = Literal["floordiv", "min", "max"]
RESERVED = ("min", "max")


@dataclass(frozen=True)
class Symbol:
    """A named size.  Symbols of one name but different bounds are different atoms: whoever collects
    the sizes of a program (the tracer) gives each name its one symbol first."""

    name: str
    min: int = 1
    max: int | None = None
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
            raise ShapeError(f"{name!r} cannot name a size: use a Python identifier such as 'T'")
        if not name.isascii() and unicodedata.normalize("NFKC", name) != name:
            raise ShapeError(
                f"{name!r} cannot name a size: Python reads it as "
                f"{unicodedata.normalize('NFKC', name)!r}, use that"
            )
        if name in RESERVED:
            raise ShapeError(f"{name!r} cannot name a size: it is a function in size expressions")
        try:
            low = operator.index(self.min)
            high = None if self.max is None else operator.index(self.max)
        except TypeError:
            raise ShapeError(
                f"the bounds of size {name} must be integers, not {self.min!r}, {self.max!r}"
            ) from None
        if low < 0:
            raise ShapeError(f"size {name} has min={low}: a size is at least 0")
        if high is not None and high < low:
            raise ShapeError(f"size {name} has max={high} below min={low}: give max >= min")
        object.__setattr__(self, "min", low)
        object.__setattr__(self, "max", high)
        object.__setattr__(self, "_hash", hash((name, low, high)))

    # Symbols are hashed more often than anything else here.
    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, eq=False)
class Func:
    """`floordiv`, `min` or `max` of sizes that no polynomial expresses.  Each size has one form:
    `a % b` is kept as `a - b*(a // b)`, and a maximum of two as `a + b - min(a, b)` (`max` holds
    three or more); both are printed as they were meant."""

    kind: FuncKind
    args: tuple[Dim, ...]

    # Polynomials are interned: identity is equality here, and cannot raise as their `==` can.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Func):
            return NotImplemented
        return (
            self.kind == other.kind
            and len(self.args) == len(other.args)
            and all(map(_identical, self.args, other.args))
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.args))


Atom: TypeAlias = Symbol | Func
Monomial: TypeAlias = tuple[tuple[Atom, int], ...]
Terms: TypeAlias = tuple[tuple[Monomial, int], ...]
TermMap: TypeAlias = Mapping[Monomial, int]
UNIT: Monomial = ()


def _identical(a: Dim, b: Dim) -> bool:
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


@lru_cache(maxsize=1 << 14)
def atom_key(atom: Atom) -> tuple[Any, ...]:
    """A sort key made of names and numbers alone: the same order in every process."""
    if isinstance(atom, Symbol):
        return (0, atom.name, atom.min, -1 if atom.max is None else atom.max)
    return (1, atom.kind, tuple(dim_key(arg) for arg in atom.args))


def dim_key(d: Dim) -> tuple[Any, ...]:
    return tuple((rank(m), c) for m, c in terms_of(d))


@lru_cache(maxsize=1 << 15)
def rank(m: Monomial) -> tuple[Any, ...]:
    """Ascending rank is descending graded lexicographic order: `B*T` before `T` before 1."""
    return (-sum(p for _, p in m), tuple((atom_key(a), -p) for a, p in m))


def terms_of(d: Dim) -> Terms:
    if isinstance(d, int):
        return ((UNIT, d),) if d else ()
    return d.terms


def sort_terms(terms: TermMap) -> Terms:
    return tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: rank(t[0])))


@lru_cache(maxsize=1 << 15)
def mono_mul(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    powers = dict(a)
    for atom, power in b:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: atom_key(item[0])))


def mono_div(a: Monomial, b: Monomial) -> Monomial | None:
    """`a / b`, or None where `b` does not divide `a`."""
    if not b:
        return a
    powers = dict(a)
    for atom, power in b:
        left = powers.get(atom, 0) - power
        if left < 0:
            return None
        powers[atom] = left
    return tuple(item for item in powers.items() if item[1])


def add_terms(a: Terms, b: Terms, scale: int = 1) -> dict[Monomial, int]:
    """`a + scale*b`; coefficients may come out as zero."""
    total = dict(a)
    for m, c in b:
        total[m] = total.get(m, 0) + scale * c
    return total


def mul_terms(a: Terms, b: Terms) -> dict[Monomial, int]:
    total: dict[Monomial, int] = {}
    for m1, c1 in a:
        for m2, c2 in b:
            m = mono_mul(m1, m2)
            total[m] = total.get(m, 0) + c1 * c2
    return total


def divide_terms(a: Terms, b: Terms) -> dict[Monomial, int] | None:
    """The polynomial q with a == b*q, or None where there is none with integer coefficients."""
    lead, lead_coefficient = b[0]
    rest = dict(a)
    quotient: dict[Monomial, int] = {}
    while rest:
        m = min(rest, key=rank)
        factor = mono_div(m, lead)
        if factor is None or rest[m] % lead_coefficient:
            return None
        c = quotient[factor] = rest[m] // lead_coefficient
        for other, coefficient in b:
            target = mono_mul(factor, other)
            rest[target] = rest.get(target, 0) - c * coefficient
            if not rest[target]:
                del rest[target]
    return quotient
