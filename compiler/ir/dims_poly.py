"""The type of symbolic sizes: interned canonical polynomials, their operators and decisions.

Input: sizes; output: sizes, or answers that hold for all values of the symbols within their bounds.
Invariant: one value, one form, as far as the rules here reach; equal forms are one object; a
constant is always a plain int.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np

from retrograde.compiler.errors import ShapeError, TraceError
from retrograde.compiler.ir import dims_text
from retrograde.compiler.ir.dims_bounds import atom_bounds, interval_of
from retrograde.compiler.ir.dims_forms import (
    common_factor,
    split_by_term,
    split_quotient,
)
from retrograde.compiler.ir.dims_number import SymbolicNumber, is_size, operate
from retrograde.compiler.ir.dims_terms import (
    UNIT,
    Atom,
    Func,
    Monomial,
    Symbol,
    TermMap,
    Terms,
    add_terms,
    atom_key,
    divide_terms,
    mul_terms,
    sort_terms,
    terms_of,
)
from retrograde.compiler.ir.location import where

CACHE = 1 << 16
MAX_PRODUCTS = 1 << 14  # of terms, in one product of sizes
_interned: dict[Terms, Poly] = {}


class Poly(SymbolicNumber):
    """A size that is not a constant.  Make one with `dim` or `parse`, never by its constructor."""

    __slots__ = ("_function", "_symbols", "_text", "terms")
    terms: Terms
    _text: str | None
    _symbols: tuple[Symbol, ...] | None
    _function: Callable[..., int] | None  # filled in by `dims.evaluate`

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._text = self._symbols = self._function = None

    def __reduce__(self) -> tuple[Callable[[TermMap], Dim], tuple[TermMap]]:
        return (make, (dict(self.terms),))

    def __str__(self) -> str:
        if self._text is None:
            self._text = dims_text.render(self)
        return self._text

    __repr__ = __str__

    def __add__(self, other: Dim) -> Dim:
        return _add(self, other) if _plain(other) else _mixed(operator.add, self, other)

    def __radd__(self, other: Dim) -> Dim:
        return _add(self, other) if _plain(other) else _mixed(operator.add, other, self)

    def __sub__(self, other: Dim) -> Dim:
        return _sub(self, other) if _plain(other) else _mixed(operator.sub, self, other)

    def __rsub__(self, other: Dim) -> Dim:
        return _sub(other, self) if _plain(other) else _mixed(operator.sub, other, self)

    def __mul__(self, other: Dim) -> Dim:
        return _mul(self, other) if _plain(other) else _mixed(operator.mul, self, other)

    def __rmul__(self, other: Dim) -> Dim:
        return _mul(self, other) if _plain(other) else _mixed(operator.mul, other, self)

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other) if _plain(other) else _mixed(operator.floordiv, self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return floordiv(other, self) if _plain(other) else _mixed(operator.floordiv, other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other) if _plain(other) else _mixed(operator.mod, self, other)

    def __rmod__(self, other: Dim) -> Dim:
        return mod(other, self) if _plain(other) else _mixed(operator.mod, other, self)

    def __divmod__(self, other: Dim) -> tuple[Dim, Dim]:
        return self // other, self % other

    def __rdivmod__(self, other: Dim) -> tuple[Dim, Dim]:
        return other // self, other % self

    def __pow__(self, exponent: Any) -> Any:
        if isinstance(exponent, (int, np.integer)) and exponent >= 0:
            return product([self] * int(exponent))
        return operate(operator.pow, self, exponent)

    def __neg__(self) -> Dim:
        return _mul(self, -1)

    def __pos__(self) -> Dim:
        return self

    def __abs__(self) -> Dim:
        return self if self >= 0 else -self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not is_size(other):
            return NotImplemented
        return _decided(decide_eq(self, _dim(other)), self, "==", other)

    def __ne__(self, other: object) -> bool:
        if self is other:
            return False
        if not is_size(other):
            return NotImplemented
        return not _decided(decide_eq(self, _dim(other)), self, "!=", other)

    # Interned: objects that compare equal are one object.
    __hash__ = object.__hash__

    def __le__(self, other: Dim) -> bool:
        if not is_size(other):
            return cast(bool, operate(operator.le, self, other))
        return _decided(decide_le(self, _dim(other)), self, "<=", other)

    def __lt__(self, other: Dim) -> bool:
        if not is_size(other):
            return cast(bool, operate(operator.lt, self, other))
        return not _decided(decide_le(_dim(other), self), self, "<", other)

    def __ge__(self, other: Dim) -> bool:
        if not is_size(other):
            return cast(bool, operate(operator.ge, self, other))
        return _decided(decide_le(_dim(other), self), self, ">=", other)

    def __gt__(self, other: Dim) -> bool:
        if not is_size(other):
            return cast(bool, operate(operator.gt, self, other))
        return not _decided(decide_le(self, _dim(other)), self, ">", other)

    def __bool__(self) -> bool:
        if decide_eq(self, 0) is False:
            return True
        raise TraceError(
            f"{where()}whether the size {self} is zero depends on the sizes of a run "
            f"({_ranges(self)}): give it a bound, rg.dim(name, min=1), or compute with rnp.where"
        )


Dim: TypeAlias = int | Poly


def make(terms: TermMap) -> Dim:
    kept = sort_terms(terms)
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    found = _interned.get(kept)
    return found if found is not None else _interned.setdefault(kept, Poly(kept))


def of_atom(atom: Atom) -> Dim:
    """An atom of one possible value is that value, so that equal sizes keep one form."""
    low, high = atom_bounds(atom)
    return low if isinstance(low, int) and low == high else make({((atom, 1),): 1})


@lru_cache(maxsize=CACHE)
def _add(a: Dim, b: Dim) -> Dim:
    return make(add_terms(terms_of(a), terms_of(b)))


@lru_cache(maxsize=CACHE)
def _sub(a: Dim, b: Dim) -> Dim:
    return make(add_terms(terms_of(a), terms_of(b), -1))


@lru_cache(maxsize=CACHE)
def _mul(a: Dim, b: Dim) -> Dim:
    left, right = terms_of(a), terms_of(b)
    if len(left) * len(right) > MAX_PRODUCTS:
        raise ShapeError(
            f"{where()}a product of sizes with {len(left)} and {len(right)} terms is too long: "
            "give a size that is made of so many parts a name of its own"
        )
    return make(mul_terms(left, right))


def product(dims: Iterable[Dim]) -> Dim:
    total: Dim = 1
    for d in dims:
        total = total * d
    return total


def _plain(x: object) -> bool:
    return type(x) is int or type(x) is Poly


def _dim(x: Any) -> Dim:
    return x if isinstance(x, Poly) else int(x)


def _mixed(op: Callable[[Any, Any], Any], a: Any, b: Any) -> Dim:
    if is_size(a) and is_size(b):
        return cast(Dim, op(_dim(a), _dim(b)))
    # A number of the program, or NotImplemented: outside what the annotations promise.
    return cast(Dim, operate(op, a, b))


# --- decisions


@lru_cache(maxsize=CACHE)
def bounds(d: Dim) -> tuple[int | None, int | None]:
    """The proven (lowest, highest) value of `d`; None where there is none."""
    if isinstance(d, int):
        return d, d
    if d.terms[0][1] < 0:
        # One proof serves both a - b and b - a.
        low, high = bounds(-d)
        return None if high is None else -high, None if low is None else -low
    lowest, highest = interval_of(d.terms)
    return (
        lowest if isinstance(lowest, int) else None,
        highest if isinstance(highest, int) else None,
    )


def symbols(d: Dim) -> tuple[Symbol, ...]:
    """The symbols of `d`, also those inside functions, sorted by name."""
    if isinstance(d, int):
        return ()
    if d._symbols is None:
        found: set[Symbol] = set()
        for atom in (atom for m, _ in d.terms for atom, _ in m):
            if isinstance(atom, Symbol):
                found.add(atom)
            else:
                found.update(s for arg in atom.args for s in symbols(arg))
        d._symbols = tuple(sorted(found, key=atom_key))
    return d._symbols


def same(a: Dim, b: Dim) -> bool:
    """Provably equal; never raises."""
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def decide_eq(a: Dim, b: Dim) -> bool | None:
    """Whether a == b at all sizes (True), at none (False), or not decided (None)."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return True if a is b else _decide_zero(_sub(a, b))


@lru_cache(maxsize=CACHE)
def _decide_zero(d: Dim) -> bool | None:
    if isinstance(d, int):
        return d == 0
    rest = dict(d.terms)
    if rest.pop(UNIT, 0) % math.gcd(*rest.values()):
        return False
    low, high = bounds(d)
    return False if (low is not None and low > 0) or (high is not None and high < 0) else None


def decide_le(a: Dim, b: Dim) -> bool | None:
    """Whether a <= b at all sizes (True), at none (False), or not decided (None)."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    low, high = bounds(_sub(b, a))
    if low is not None and low >= 0:
        return True
    return False if high is not None and high < 0 else None


def dominates(a: Dim, b: Dim) -> bool:
    """a >= b for all sizes, provably."""
    return decide_le(b, a) is True


def _decided(answer: bool | None, a: Dim, sign: str, b: Any) -> bool:
    if answer is None:
        error = ShapeError(
            f"{where()}cannot decide {a} {sign} {b} for all sizes ({_ranges(a, _dim(b))}): bound "
            "the sizes with rg.dim(name, min=, max=), give sizes that are always equal one name, "
            "or fix them as integers"
        )
        error.located = True  # type: ignore[attr-defined]  # the message is complete
        raise error
    return answer


def _ranges(*sizes: Dim) -> str:
    found = {symbol for size in sizes for symbol in symbols(size)}
    return ", ".join(
        f"{s.name} >= {s.min}" if s.max is None else f"{s.min} <= {s.name} <= {s.max}"
        for s in sorted(found, key=atom_key)
    )


# --- functions of sizes


def divide_exact(a: Dim, b: Dim) -> Dim | None:
    """The polynomial q with a == b*q at all sizes; None where there is none, or b is 0."""
    if same(b, 0):
        return None
    quotient = divide_terms(terms_of(a), terms_of(b))
    return None if quotient is None else make(quotient)


def floordiv(a: Dim, b: Dim) -> Dim:
    return a // b if isinstance(a, int) and isinstance(b, int) and b else _floordiv(a, b)


def mod(a: Dim, b: Dim) -> Dim:
    """`a % b` with Python's sign, that of `b`; kept as `a - b*(a // b)`."""
    return a % b if isinstance(a, int) and isinstance(b, int) and b else a - b * _floordiv(a, b)


@lru_cache(maxsize=CACHE)
def _floordiv(a: Dim, b: Dim) -> Dim:
    if same(b, 0):
        raise ShapeError(f"the size {a} is divided by zero")
    if terms_of(b)[0][1] < 0:
        return floordiv(-a, -b)
    if isinstance(b, int):
        whole, sign, inner, k = split_quotient(terms_of(a), b)
        return make(whole) + sign * _quotient(make(inner), k)
    # Where b may be zero the quotient stays as written, and fails at that size as Python does.
    if decide_eq(b, 0) is not False:
        return _quotient(a, b)
    exact = divide_exact(a, b)
    if exact is not None:
        return exact
    factor = common_factor((a, b))
    if factor != (UNIT, 1):
        return floordiv(divided(a, factor), divided(b, factor))
    if len(b.terms) > 1:
        return _quotient(a, b)
    multiple = make(split_by_term(terms_of(a), b.terms[0]))
    return multiple + _quotient(a - multiple * b, b)


def _quotient(a: Dim, b: Dim) -> Dim:
    """The function itself, unless bounds give its value."""
    if isinstance(b, int):
        low, high = bounds(a)
        if low is not None and high is not None and low // b == high // b:
            return low // b
    if dominates(a, 0) and dominates(b, a + 1):
        return 0
    if dominates(-1, a) and dominates(a, -b):
        return -1
    return of_atom(Func("floordiv", (a, b)))


def divided(d: Dim, factor: tuple[Monomial, int]) -> Dim:
    quotient = divide_terms(terms_of(d), (factor,))
    assert quotient is not None, (d, factor)
    return make(quotient)
