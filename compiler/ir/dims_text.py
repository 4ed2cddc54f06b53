"""Symbolic sizes <-> text, such as `2*B*T + 3`, `min(K, T)`, `(T + 63) // 64`, `T % 4`.

Input: a size, or text; output: text, or a size.  Invariant: the text is a Python expression over
the names of the symbols with the size's value, and reading it gives the same size back.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, cast

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.dims_terms import (
    UNIT,
    Func,
    Monomial,
    Symbol,
    Terms,
    add_terms,
    mono_div,
    mono_mul,
    mul_terms,
    terms_of,
)

if TYPE_CHECKING:
    from retrograde.compiler.ir.dims_poly import Dim

MAX_EXPONENT = 32
MAX_BITS = 4096  # of a number that it makes


def render(d: Dim) -> str:
    if isinstance(d, int):
        return str(d)
    terms, extracted = _extract(dict(d.terms))
    constant = terms.pop(UNIT, 0)
    text = ""
    for m, c in terms.items():
        text = _append(text, c, _factors(m, alone=abs(c) == 1 and (bool(text) or c > 0)))
    for m, c, func in extracted:
        if func.kind == "min":
            last = f"max({', '.join(map(render, func.args))})"
        else:
            last = _binary("%", func)
            if m or abs(c) > 1 or (c < 0 and not text):
                last = f"({last})"
        text = _append(text, c, f"{_factors(m, alone=False)}*{last}" if m else last)
    if constant or not text:
        text = _append(text, constant, "")
    return text


def _append(text: str, c: int, factors: str) -> str:
    size = str(abs(c)) if not factors else factors if abs(c) == 1 else f"{abs(c)}*{factors}"
    if not text:
        return f"-{size}" if c < 0 else size
    return f"{text} {'-' if c < 0 else '+'} {size}"


def _extract(
    terms: dict[Monomial, int],
) -> tuple[dict[Monomial, int], list[tuple[Monomial, int, Func]]]:
    """Find w*(p - q*(p // q)), printed as w*(p % q), and w*(a + b - min(a, b)), w*max(a, b)."""
    found: list[tuple[Monomial, int, Func]] = []
    for m, c in tuple(terms.items()):
        for func in (a for a, power in m if isinstance(a, Func) and power == 1):
            split = _weight(m, c, func)
            # An earlier find may have used up this term.
            if split is None or terms.get(m) != c:
                continue
            weight, scale, whole = split
            parts = mul_terms(((weight, scale),), whole)
            if all(_holds(terms.get(part, 0), pc) for part, pc in parts.items()):
                rest = add_terms(tuple(terms.items()), tuple(parts.items()), -1)
                terms = {k: v for k, v in rest.items() if v and k != m}
                found.append((weight, scale, func))
                break
    return terms, found


def _weight(m: Monomial, c: int, func: Func) -> tuple[Monomial, int, Terms] | None:
    """The factor w of the find that `c*m` would belong to, and the p, or a + b, that it needs."""
    divisor: Terms = ((UNIT, 1),)
    whole = terms_of(func.args[0])
    if func.kind == "floordiv":
        divisor = terms_of(func.args[1])
    elif func.kind == "min" and len(func.args) == 2:
        whole = tuple(add_terms(whole, terms_of(func.args[1])).items())
    else:
        return None
    if len(divisor) != 1 or c % divisor[0][1]:
        return None
    weight = mono_div(m, mono_mul(divisor[0][0], ((func, 1),)))
    return None if weight is None else (weight, -c // divisor[0][1], whole)


def _holds(available: int, part: int) -> bool:
    """Taking `part` away leaves what has the same sign: nothing new appears."""
    return 0 < part <= available or available <= part < 0


def _factors(m: Monomial, *, alone: bool) -> str:
    """The product of `m`; a lone quotient needs no parentheses where `alone`."""
    parts: list[str] = []
    for atom, power in m:
        if isinstance(atom, Symbol):
            text = atom.name
        elif atom.kind == "floordiv":
            text = _binary("//", atom)
            if not alone or len(m) > 1 or power > 1:
                text = f"({text})"
        else:
            text = f"{atom.kind}({', '.join(map(render, atom.args))})"
        parts.append(text if power == 1 else f"{text}**{power}")
    return "*".join(parts)


def _binary(sign: str, func: Func) -> str:
    left, right = func.args
    left_text, right_text = render(left), render(right)
    if not _is_product(left):
        left_text = f"({left_text})"
    if not (_is_product(right) and right_text.count("*") == 0):
        right_text = f"({right_text})"
    return f"{left_text} {sign} {right_text}"


def _is_product(d: Dim) -> bool:
    """A number or a product that needs no parentheses before `//`."""
    terms = terms_of(d)
    if not terms:
        return True
    if len(terms) > 1 or terms[0][1] < 0:
        return False
    return all(isinstance(a, Symbol) or a.kind != "floordiv" for a, _ in terms[0][0])


def checked(d: Dim) -> Dim:
    """`d`; ValueError where its numbers are too large to be parts of a size."""
    if max((c.bit_length() for _, c in terms_of(d)), default=0) > MAX_BITS:
        raise ValueError("its numbers are too large")
    return d


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


BINARY: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def read(
    text: str,
    symbol: Callable[[str], Dim],
    extreme: Callable[[Literal["min", "max"], tuple[Dim, ...]], Dim],
) -> Dim:
    """Evaluate the expression `text`; only the nodes that `render` writes are let in."""

    def value(node: ast.expr) -> Dim:
        return checked(made(node))

    def made(node: ast.expr) -> Dim:
        match node:
            case ast.Constant(value=int() as number) if not isinstance(number, bool):
                return number
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return value(operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if (
                0 <= power <= MAX_EXPONENT
            ):
                base, raised = value(left), cast("Dim", 1)
                for _ in range(power):
                    raised = checked(raised * base)
                return raised
            case ast.BinOp(left=left, op=op, right=right) if type(op) in BINARY:
                return BINARY[type(op)](value(left), value(right))
            case ast.Call(
                func=ast.Name(id=("min" | "max") as kind), args=[_, _, *_] as args, keywords=[]
            ):
                return extreme(kind, tuple(map(value, args)))
        raise ShapeError(
            f"the size expression {_shortened(text)} holds {_shortened(ast.unparse(node))}: write "
            f"integers, names, + - * // %, ** up to {MAX_EXPONENT}, min(a, b) and max(a, b)"
        )

    try:
        tree = ast.parse(text.strip(), mode="eval")
        return value(tree.body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise ShapeError(
            f"{_shortened(text)} is no size expression ({error}): write one such as '2*T + 1' or "
            "'min(K, T)'"
        ) from None
