"""sympy as the oracle of canonical polynomial equality, exact division and content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograde.compiler.ir.dims import (
    Dim,
    dim,
    divide_exact,
    gcd_content,
    parse,
    same,
    source,
)

sympy = pytest.importorskip("sympy")

NAMES = ("B", "K", "T")
ORACLE: Mapping[str, Any] = {name: sympy.Symbol(name) for name in NAMES}


def _texts() -> st.SearchStrategy[str]:
    leaf = st.sampled_from(NAMES) | st.integers(-3, 7).map(lambda n: f"({n})")
    return st.recursive(
        leaf,
        lambda inner: (
            st.builds(lambda a, op, b: f"({a} {op} {b})", inner, st.sampled_from("+-*"), inner)
            | st.builds(lambda a, n: f"({a})**{n}", inner, st.integers(0, 3))
        ),
        max_leaves=7,
    )


def oracle(text: str) -> Any:
    return sympy.expand(eval(text, dict(ORACLE)))


@settings(max_examples=150, deadline=None)
@given(_texts())
def test_every_way_of_writing_gives_one_form(text: str) -> None:
    size = parse(text)
    exact = oracle(text)
    assert sympy.expand(oracle(source(size)) - exact) == 0
    for written in (sympy.expand(exact), sympy.factor(exact), sympy.horner(exact)):
        assert same(parse(str(written)), size), written


@settings(max_examples=150, deadline=None)
@given(_texts(), _texts())
def test_same_is_equality_of_polynomials(first: str, second: str) -> None:
    assert same(parse(first), parse(second)) is bool(oracle(first) == oracle(second))


@settings(max_examples=100, deadline=None)
@given(_texts(), _texts(), st.sampled_from(["", "+ 2", "*4", "*({other})"]))
def test_exact_division(first: str, second: str, change: str) -> None:
    first = f"({first}) {change.format(other=second)}"
    a, b = parse(first), parse(second)
    quotient = divide_exact(a, b)
    if same(b, 0):
        assert quotient is None
        return
    q, r = sympy.div(oracle(first), oracle(second), *ORACLE.values(), domain="QQ")
    integral = r == 0 and all(c.is_Integer for c in sympy.Poly(q, *ORACLE.values()).coeffs())
    assert (quotient is not None) is integral
    if quotient is not None:
        assert sympy.expand(oracle(source(quotient)) - q) == 0


@settings(max_examples=100, deadline=None)
@given(_texts())
def test_content(text: str) -> None:
    exact = oracle(text)
    expected = 0 if exact == 0 else abs(sympy.Poly(exact, *ORACLE.values()).content())
    assert gcd_content(parse(text)) == expected


def test_a_long_product() -> None:
    total: Dim = 1
    exact: Any = sympy.Integer(1)
    for i, name in enumerate("BKTBKTBK"):
        total = total * (dim(name) * (i + 2) - i)
        exact = exact * (ORACLE[name] * (i + 2) - i)
    assert sympy.expand(oracle(source(total)) - sympy.expand(exact)) == 0
