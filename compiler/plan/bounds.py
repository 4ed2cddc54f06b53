"""The peak in closed form.  Input: an orientation and symbolic sizes; output: polynomials.

Invariant: if the form is `exact`, its largest term equals the height that the orientation gives, at
all sizes within the bounds of the symbols; if not, no term is above that height.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.orientation import Orientation

Array = npt.NDArray[Any]
Monomial = tuple[tuple[dims.Atom, int], ...]

# Terms that may meet in one buffer, and numbers compared in all; beyond either, the orientation
# itself is the only exact form.
MOST_TERMS = 128
_MOST_COMPARED = 100_000_000


@dataclass(frozen=True, slots=True)
class PeakForm:
    """The peak as the maximum of `terms`; a lower estimate of it unless `exact`."""

    terms: tuple[Dim, ...]
    exact: bool

    def __str__(self) -> str:
        texts = [str(term) for term in self.terms]
        text = texts[0] if len(texts) == 1 else f"max({', '.join(texts)})"
        return text if self.exact else f"at least {text}"

    def at(self, sizes: Mapping[str, int]) -> int:
        """The value at the sizes of the symbols."""
        return max(dims.evaluate(term, sizes) for term in self.terms)


def peak_terms(
    orientation: Orientation, sizes: Sequence[Dim], most_terms: int = MOST_TERMS
) -> PeakForm:
    """The longest paths of `orientation` at symbolic `sizes`, without those that never count.

    A path is the number of times each distinct size occurs on it.  From the bottom up, every buffer
    gets the paths that end with it, less those that are at most another one at all sizes, and those
    that at most reach some path through the whole, whatever follows.
    """
    count = len(orientation.order)
    if len(sizes) != count:
        raise ShapeError(f"{len(sizes)} sizes were given for {count} buffers")
    for size in sizes:
        if isinstance(size, int) and size < 0:
            raise DataError(f"a buffer cannot have a negative size: {size}")
    if not count:
        return PeakForm((0,), True)
    # Sizes are interned: equal ones are one object.
    distinct = {_identity(size): size for size in sizes}
    kind = {identity: index for index, identity in enumerate(distinct)}
    kinds = [kind[_identity(size)] for size in sizes]
    space = _Space(list(distinct.values()), longest=count)

    below: dict[int, list[int]] = {}
    for low, high in orientation.edges:
        below.setdefault(high, []).append(low)
    whole = space.undominated(_samples(orientation, below, space, kinds))
    above = _reaches(orientation, below, space, kinds)
    tops: dict[int, Array] = {}  # by buffer: the paths that end with it
    for buffer in orientation.order:
        paths = [tops[low] for low in below.get(buffer, ())]
        reach = np.concatenate(paths) if paths else space.nothing
        if len(paths) > 1 and len(reach) > 1:
            reach = space.undominated(reach) if len(reach) <= 4 * most_terms else reach
            if len(reach) > most_terms or space.compared > _MOST_COMPARED:
                return PeakForm(space.sizes(whole), exact=False)
        reach = reach + space.steps[kinds[buffer]]
        tops[buffer] = space.hopeful(reach, above[buffer], whole) if above else reach
    covered = {low for low, _ in orientation.edges}
    for buffer in orientation.order:
        if buffer in covered or not len(tops[buffer]):
            continue
        whole = space.undominated(np.concatenate((whole, tops[buffer])))
        if len(whole) > 4 * most_terms:
            return PeakForm(space.sizes(whole[:most_terms]), exact=False)
    return PeakForm(space.terms(whole), exact=True)


def _samples(
    orientation: Orientation, below: Mapping[int, list[int]], space: _Space, kinds: Sequence[int]
) -> Array:
    """The longest paths at a few sizes, small and large: some of the terms, if not all."""
    rows: list[Array] = []
    for values in space.sample_values():
        top = [0] * len(kinds)
        via = [-1] * len(kinds)
        for buffer in orientation.order:
            for low in below.get(buffer, ()):
                if top[low] >= top[buffer]:
                    top[buffer], via[buffer] = top[low], low
            top[buffer] += values[kinds[buffer]]
        at = top.index(max(top))
        row = space.nothing[0]
        while at >= 0:
            row = row + space.steps[kinds[at]]
            at = via[at]
        rows.append(row)
    return np.array(rows, space.steps.dtype)


def _reaches(
    orientation: Orientation, below: Mapping[int, list[int]], space: _Space, kinds: Sequence[int]
) -> dict[int, Array]:
    """By buffer: coefficients that no path from above it to the top exceeds.  Empty if unknown."""
    if space.signed:
        return {}
    reaches = dict.fromkeys(orientation.order, space.nothing[0])
    for buffer in reversed(orientation.order):
        reach = reaches[buffer] + space.steps[kinds[buffer]]
        for low in below.get(buffer, ()):
            reaches[low] = np.maximum(reaches[low], reach)
    return reaches


def _identity(size: Dim) -> tuple[bool, int]:
    return (True, size) if isinstance(size, int) else (False, id(size))


class _Space:
    """Sums of the given sizes as rows: how often each occurs, then its coefficients.

    The coefficients are those after every symbol is written as its least value plus a rest, which
    is 0 or more: a row whose coefficients are nowhere smaller is then nowhere the smaller size.
    """

    def __init__(self, distinct: Sequence[Dim], longest: int) -> None:
        self._distinct = list(distinct)
        least: dict[str, int] = {}
        most: dict[str, set[int | None]] = {}
        for size in distinct:
            for symbol in dims.symbols(size):
                least[symbol.name] = min(symbol.min, least.get(symbol.name, symbol.min))
                most.setdefault(symbol.name, set()).add(symbol.max)
        self.compared = 0  # numbers, as a measure of work
        self._span = {
            name: max(h - least[name] for h in highs if h is not None)
            if None not in highs
            else None
            for name, highs in most.items()
        }
        self._shift = {n: dims.dim(n, 0, self._span[n]) + low for n, low in least.items()}

        shifted = [_terms(dims.substitute(size, self._shift)) for size in distinct]
        monomials = dict.fromkeys(monomial for terms in shifted for monomial in terms)
        quotients = [q for monomial in monomials if (q := _quotient(monomial)) is not None]
        for quotient in quotients:
            monomials |= dict.fromkeys((*quotient.upper, *quotient.lower))
        column = {monomial: index for index, monomial in enumerate(monomials)}
        values = _rows(shifted, column)
        self.signed = [index for m, index in column.items() if not _nonnegative(m)]
        self._quotients = [column[quotient.monomial] for quotient in quotients]
        self._scale = math.lcm(*(quotient.divisor for quotient in quotients))
        share = [self._scale // quotient.divisor for quotient in quotients]
        upper = _rows([quotient.upper for quotient in quotients], column, share)
        lower = _rows([quotient.lower for quotient in quotients], column, share)

        # Python's integers where 64 bits could overflow: slower, never wrong.
        rounded = _largest([[row[i] for i in self._quotients] for row in values])
        per_step = _largest(values) * self._scale + rounded * _largest(upper + lower) * len(column)
        dtype: Any = np.int64 if 4 * longest * per_step < 2**62 else object
        counts = np.eye(len(distinct), dtype=dtype)
        self.steps: Array = np.concatenate((counts, np.array(values, dtype)), axis=1)
        self.nothing: Array = np.zeros((1, self.steps.shape[1]), dtype)
        self._upper: Array = np.array(upper, dtype)
        self._lower: Array = np.array(lower, dtype)
        self._samples = np.array(self.sample_values(), np.float64).T

    def sizes(self, rows: Array) -> tuple[Dim, ...]:
        """What the rows stand for."""
        sizes: list[Dim] = []
        for row in rows.tolist():
            used = zip(row, self._distinct, strict=False)
            sizes.append(sum((times * size for times, size in used if times), 0))
        return tuple(sizes)

    def sample_values(self) -> list[list[int]]:
        """The distinct sizes at a few values of the symbols."""
        names = sorted(self._shift)
        points = [dict.fromkeys(names, rest) for rest in (0, 7, 63, 511, 4095)]
        points += [dict.fromkeys(names, 7) | {name: 4095} for name in names]
        points += [dict.fromkeys(names, 511) | {name: 0} for name in names]
        values = []
        for point in points:
            rests = {}
            for name, rest in point.items():
                span = self._span[name]
                rests[name] = rest if span is None else min(rest, span)
            env = {name: dims.evaluate(self._shift[name], rests) for name in names}
            values.append([dims.evaluate(size, env) for size in self._distinct])
        return values

    def undominated(self, rows: Array) -> Array:
        """The rows that are not at most another one, each once, the largest first."""
        first: dict[tuple[int, ...], int] = {}
        for index, key in enumerate(map(tuple, rows[:, len(self._distinct) :].tolist())):
            first.setdefault(key, index)
        rows = rows[[first[key] for key in sorted(first, reverse=True)]]
        start = len(self._distinct)
        larger, smaller = self._rivals(rows)
        dominated = np.zeros((len(rows), len(rows)), bool)
        dominated[larger, smaller] = self._at_least(rows[larger, start:] - rows[smaller, start:])
        np.fill_diagonal(dominated, False)
        alive = np.ones(len(rows), bool)
        # One by one: of rows that dominate each other one has to stay.
        for row in np.flatnonzero(dominated.any(axis=0))[::-1].tolist():
            alive[row] = not (dominated[:, row] & alive).any()
        return rows[alive]

    def terms(self, rows: Array) -> tuple[Dim, ...]:
        """The sizes of the rows, without those that the full rules of `dims` find dominated."""
        sizes = self.sizes(rows)
        dropped: set[int] = set()
        for larger, smaller in zip(*(side.tolist() for side in self._rivals(rows)), strict=True):
            proven = larger != smaller and larger not in dropped
            if proven and dims.dominates(sizes[larger], sizes[smaller]):
                dropped.add(smaller)
        return tuple(size for index, size in enumerate(sizes) if index not in dropped)

    def _rivals(self, rows: Array) -> tuple[Array, Array]:
        """Pairs of which the first is nowhere smaller at the samples: the ones worth a proof."""
        values = rows[:, : len(self._distinct)].astype(np.float64) @ self._samples
        larger, smaller = np.nonzero((values[:, None] >= values * (1 - 1e-9)).all(axis=-1))
        self.compared += len(rows) * len(rows) + len(larger) * rows.shape[1]
        return larger, smaller

    def hopeful(self, rows: Array, above: Array, whole: Array) -> Array:
        """The rows that may exceed all of `whole` when at most `above` comes on top."""
        start = len(self._distinct)
        most = rows[:, start:] + above[start:]
        self.compared += most.size * len(whole)
        hopeless = self._at_least(whole[:, None, start:] - most[None, :]).any(axis=0)
        return rows[~hopeless] if hopeless.any() else rows

    def _at_least(self, difference: Array) -> Array:
        """Where the difference of two rows is proven to be 0 or more."""
        holds = self._nowhere_negative(difference)
        if self._quotients:
            # With every quotient replaced by whichever of its bounds is the smaller here.
            rest = difference * self._scale
            rest[..., self._quotients] = 0
            times = difference[..., self._quotients]
            rest = rest + np.maximum(times, 0) @ self._lower + np.minimum(times, 0) @ self._upper
            np.logical_or(holds, self._nowhere_negative(rest), out=holds)
        return holds

    def _nowhere_negative(self, coefficients: Array) -> Array:
        holds: Array = np.asarray((coefficients >= 0).all(axis=-1))
        if self.signed:
            unsigned = (coefficients[..., self.signed] == 0).all(axis=-1)
            np.logical_and(holds, unsigned, out=holds)
        return holds


def _terms(size: Dim) -> dict[Monomial, int]:
    return {(): size} if isinstance(size, int) else dict(size.terms)


def _rows(
    sizes: Sequence[Mapping[Monomial, int]],
    column: Mapping[Monomial, int],
    times: Sequence[int] = (),
) -> list[list[int]]:
    """Coefficients by column, each row times its factor."""
    factors = times if times else [1] * len(sizes)
    return [
        [factor * terms.get(monomial, 0) for monomial in column]
        for terms, factor in zip(sizes, factors, strict=True)
    ]


def _largest(rows: Sequence[Sequence[int]]) -> int:
    return max((abs(value) for row in rows for value in row), default=0)


@dataclass(frozen=True)
class _Quotient:
    """A monomial with one factor `p // divisor`: lower <= divisor * monomial <= upper."""

    monomial: Monomial
    divisor: int
    lower: dict[Monomial, int]
    upper: dict[Monomial, int]


def _quotient(monomial: Monomial) -> _Quotient | None:
    """Sizes that are rounded up hold such a factor; None for everything else."""
    funcs = [(atom, power) for atom, power in monomial if isinstance(atom, dims.Func)]
    if len(funcs) != 1:
        return None
    func, power = funcs[0]
    divisor = func.args[-1]
    if func.kind != "floordiv" or power != 1 or not isinstance(divisor, int) or divisor < 1:
        return None
    rest = _of(tuple(item for item in monomial if item[0] is not func))
    upper = func.args[0] * rest
    return _Quotient(monomial, divisor, _terms(upper - (divisor - 1) * rest), _terms(upper))


def _nonnegative(monomial: Monomial) -> bool:
    """Whether the monomial is at least 0 at all sizes; symbols are."""
    for atom, power in monomial:
        if isinstance(atom, dims.Func) and power % 2:
            low, _ = dims.bounds(_of(((atom, 1),)))
            if low is None or low < 0:
                return False
    return True


def _of(monomial: Monomial) -> Dim:
    """The size that a monomial stands for."""
    make = {"floordiv": dims.floordiv, "min": dims.dim_min, "max": dims.dim_max}
    factors: list[Dim] = []
    for atom, power in monomial:
        if isinstance(atom, dims.Symbol):
            factor = dims.dim(atom.name, atom.min, atom.max)
        else:
            factor = functools.reduce(make[atom.kind], atom.args)
        factors += [factor] * power
    return dims.product(factors)
