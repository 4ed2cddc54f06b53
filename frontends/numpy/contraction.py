"""`einsum`: subscripts and arrays -> one contraction after the other.

Each label is summed where it is last needed; two operands meet in one `dot_general`, or in an
elementwise product where nothing is summed.  Invariant: the pair of least work, at a nominal size
of the symbols, meets first; the result does not depend on that choice but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.numpy import elementwise as e
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.linalg import diagonal
from retrograde.numpy.primitives import Array, ArrayLike

__all__ = ["einsum"]

_NOMINAL = 64  # what an unknown size counts as when pairs are compared


@dataclass(frozen=True)
class Term:
    """An operand and the label of each of its axes, no label twice."""

    x: Expr
    labels: str

    def size(self, label: str) -> Dim:
        return self.x.shape[self.labels.index(label)]


@function
def einsum(subscripts: Any, /, *operands: ArrayLike, optimize: Any = True) -> Array:
    """Products summed over the labels that the result lacks: `einsum("bik,bkj->bij", a, b)`.

    Ellipsis, repeated labels (diagonals) and an implicit result are as in NumPy; so are axes of
    size 1, which are stretched."""
    text, xs = _spelled(subscripts, operands)
    inputs, output = _parsed(text, [x.ndim for x in xs])
    terms = [_distinct(x, labels) for x, labels in zip(xs, inputs, strict=True)]
    _check_sizes(terms, text)
    while len(terms) > 1:
        i, j = _cheapest(terms, output)
        rest = [t for k, t in enumerate(terms) if k not in (i, j)]
        needed = set(output).union(*(t.labels for t in rest))
        terms = [*rest, _pair(terms[i], terms[j], needed)]
    (last,) = terms
    last = _summed(last, set(output))
    return p.transpose(last.x, [last.labels.index(c) for c in output])


def _spelled(subscripts: Any, operands: Sequence[Any]) -> tuple[str, list[Expr]]:
    """The subscripts as text and the operands of one dtype; lists of numbers are letters."""
    if isinstance(subscripts, str):
        return subscripts.replace(" ", ""), p.factors(operands)
    items = [subscripts, *operands]
    pairs = len(items) // 2
    listed = [_letters(items[2 * i + 1]) for i in range(pairs)]
    text = ",".join(listed) + (f"->{_letters(items[-1])}" if len(items) % 2 else "")
    return text, p.factors(items[: 2 * pairs : 2])


def _letters(numbers: Iterable[Any]) -> str:
    return "".join("..." if i is Ellipsis else chr(ord("a") + int(i)) for i in numbers)


def _parsed(text: str, ranks: list[int]) -> tuple[list[str], str]:
    """The labels of each operand and of the result; an ellipsis becomes labels of its own."""
    left, arrow, right = text.partition("->")
    inputs = left.split(",")
    if len(inputs) != len(ranks):
        raise p.misfit(f"einsum {text!r} names {len(inputs)} operands, got {len(ranks)}")
    widths = []
    for labels, rank in zip(inputs, ranks, strict=True):
        named = labels.replace("...", "")
        if not all(c.isalpha() for c in named) or labels.count("...") > 1:
            raise p.misfit(f"einsum {text!r}: {labels!r} is not letters and one ellipsis")
        width = rank - len(named)
        if width < 0 or ("..." not in labels and width):
            raise p.misfit(f"einsum {text!r}: {labels!r} has {len(named)} labels for {rank} axes")
        widths.append(width)
    extra = "".join(chr(0x100 + i) for i in range(max(widths, default=0)))
    full = [
        labels.replace("...", extra[len(extra) - width :])
        for labels, width in zip(inputs, widths, strict=True)
    ]
    counts = {c: "".join(full).count(c) for c in "".join(full)}
    if not arrow:
        implicit = sorted(c for c, n in counts.items() if n == 1 and c not in extra)
        return full, extra + "".join(implicit)
    output = right.replace("...", extra)
    if len(set(output)) != len(output) or not set(output) <= set(counts):
        raise p.misfit(f"einsum {text!r}: the result takes each label of the operands once")
    if extra and "..." not in right:
        raise p.misfit(f"einsum {text!r}: the result lacks the ellipsis of the operands")
    return full, output


def _distinct(x: Expr, labels: str) -> Term:
    """The operand with the diagonal taken of every repeated label."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            if not dims.same(x.shape[i], x.shape[j]):
                raise p.misfit(f"label {label!r} is {x.shape[i]} and {x.shape[j]} in {x.type}")
            x = diagonal(x, 0, i, j)
            labels = labels[:i] + labels[i + 1 : j] + labels[j + 1 :] + label
    return Term(x, labels)


def _check_sizes(terms: list[Term], text: str) -> None:
    sizes: dict[str, Dim] = {}
    for t in terms:
        for label in t.labels:
            size = t.size(label)
            known = sizes.setdefault(label, size)
            if dims.same(known, 1):
                sizes[label] = size
            elif not dims.same(size, 1) and not dims.same(size, known):
                shapes = ", ".join(str(t.x.type) for t in terms)
                raise p.misfit(
                    f"einsum {text!r}: label {label!r} is {known} and {size} in {shapes}"
                )


def _cheapest(terms: list[Term], output: str) -> tuple[int, int]:
    """The pair whose contraction takes the fewest products (the first of several)."""
    sizes = {c: _nominal(t.size(c)) for t in terms for c in t.labels}
    pairs = list(itertools.combinations(range(len(terms)), 2))
    if len(pairs) == 1:
        return pairs[0]

    def work(pair: tuple[int, int]) -> tuple[int, int]:
        i, j = pair
        joint = set(terms[i].labels) | set(terms[j].labels)
        others = (t.labels for k, t in enumerate(terms) if k not in pair)
        kept = joint & set(output).union(*others)
        return math.prod(sizes[c] for c in joint), math.prod(sizes[c] for c in kept)

    return min(pairs, key=work)


def _nominal(size: Dim) -> int:
    if isinstance(size, int):
        return size
    return dims.evaluate(size, {s.name: max(_NOMINAL, s.min) for s in dims.symbols(size)})


def _pair(a: Term, b: Term, needed: set[str]) -> Term:
    """The contraction of two operands over the labels that nothing else needs."""
    a, b = _unstretched(a, b), _unstretched(b, a)
    a = _summed(a, needed | set(b.labels))
    b = _summed(b, needed | set(a.labels))
    shared = [c for c in a.labels if c in b.labels]
    contract = [c for c in shared if c not in needed]
    batch = [c for c in shared if c in needed]
    if not contract:
        return _product(a, b)
    x = p.dot_general(
        a.x,
        b.x,
        (_places(a, contract), _places(b, contract)),
        (_places(a, batch), _places(b, batch)),
    )
    free = [c for t in (a, b) for c in t.labels if c not in shared]
    return Term(x, "".join([*batch, *free]))


def _places(t: Term, labels: Iterable[str]) -> tuple[int, ...]:
    return tuple(t.labels.index(c) for c in labels)


def _unstretched(t: Term, other: Term) -> Term:
    """`t` without the axes of size 1 that the other operand has in full."""
    gone = [c for c in t.labels if c in other.labels and dims.same(t.size(c), 1)]
    gone = [c for c in gone if not dims.same(other.size(c), 1)]
    if not gone:
        return t
    kept = [c for c in t.labels if c not in gone]
    return Term(p.reshape(t.x, [t.size(c) for c in kept]), "".join(kept))


def _summed(t: Term, needed: set[str]) -> Term:
    """`t` summed over the labels that nothing needs."""
    gone = [c for c in t.labels if c not in needed]
    if not gone:
        return t
    x = p.reduce("sum", t.x, _places(t, gone), False)
    return Term(x, "".join(c for c in t.labels if c in needed))


def _product(a: Term, b: Term) -> Term:
    """The elementwise product, stretched over the labels of both."""
    labels = a.labels + "".join(c for c in b.labels if c not in a.labels)
    left, right = _aligned(a, labels), _aligned(b, labels)
    product: Any = e.multiply(left, right)
    return Term(product, labels)


def _aligned(t: Term, labels: str) -> Expr:
    """The operand with its axes in the order of `labels`, 1 where it lacks one."""
    own = [c for c in labels if c in t.labels]
    x = p.transpose(t.x, [t.labels.index(c) for c in own])
    return p.reshape(x, [t.size(c) if c in own else 1 for c in labels])
