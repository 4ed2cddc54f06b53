"""Every rule of `Simplify`: what it turns into what, bit for bit on zeros of both signs, infinities
and NaN; and what it must leave alone because a bit would change."""

from __future__ import annotations

import pytest

from retrograde.compiler.passes.simplify import BY_KIND, RULES, Simplify
from tests.compiler.passes.harness import becomes, names, same_numbers, written

# name -> (before, after).  The first word of a name is the op that the rule belongs to.
REWRITES = {
    "add -0.0": (
        """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=-0.0}
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = add %1, %2
          %4: f32[B,4] = neg %3
          return %4 }""",
        """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=-0.0}
          %2: f32[B,4] = neg %0
          return %2 }""",
    ),
    "add integer zero": (
        """(%0: i32[B,4]) {
          %1: i32[] = constant {dtype=i32, value=0}
          %2: i32[B,4] = add %0, %1
          %3: i32[B,4] = add %1, %2
          return %3 }""",
        """(%0: i32[B,4]) {
          %1: i32[] = constant {dtype=i32, value=0}
          return %0 }""",
    ),
    "add a negated": (
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[4] = neg %1
          %3: f32[B,4] = add %0, %2
          %4: f32[B,4] = add %2, %3
          return %4 }""",
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[4] = neg %1
          %3: f32[B,4] = sub %0, %1
          %4: f32[B,4] = sub %3, %1
          return %4 }""",
    ),
    "add unsigned negated": (
        """(%0: u8[B,4], %1: u8[4]) {
          %2: u8[4] = neg %1
          %3: u8[B,4] = add %0, %2
          return %3 }""",
        """(%0: u8[B,4], %1: u8[4]) {
          %2: u8[4] = neg %1
          %3: u8[B,4] = sub %0, %1
          return %3 }""",
    ),
    "sub 0.0": (
        """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=0.0}
          %2: f32[B,4] = sub %0, %1
          return %2 }""",
        """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=0.0}
          return %0 }""",
    ),
    "sub a negated": (
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[4] = neg %1
          %3: f32[B,4] = sub %0, %2
          return %3 }""",
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[4] = neg %1
          %3: f32[B,4] = add %0, %1
          return %3 }""",
    ),
    "mul 1": (
        """(%0: f32[B,4], %1: i32[T]) {
          %2: f32[] = constant {dtype=f32, value=1.0}
          %3: f32[B,4] = broadcast_to %2 {shape=(dim(B),4)}
          %4: f32[B,4] = mul %3, %0
          %5: f32[B,4] = mul %4, %2
          %6: i32[] = constant {dtype=i32, value=1}
          %7: i32[T] = mul %1, %6
          return %5, %7 }""",
        """(%0: f32[B,4], %1: i32[T]) {
          %2: f32[] = constant {dtype=f32, value=1.0}
          %3: f32[B,4] = broadcast_to %2 {shape=(dim(B),4)}
          %4: i32[] = constant {dtype=i32, value=1}
          return %0, %1 }""",
    ),
    "div 1": (
        """(%0: f64[B,4]) {
          %1: f64[] = constant {dtype=f64, value=1.0}
          %2: f64[B,4] = div %0, %1
          return %2 }""",
        """(%0: f64[B,4]) {
          %1: f64[] = constant {dtype=f64, value=1.0}
          return %0 }""",
    ),
    "neg twice": (
        """(%0: f32[B,4], %1: bool[T]) {
          %2: f32[B,4] = neg %0
          %3: f32[B,4] = neg %2
          %4: bool[T] = logical_not %1
          %5: bool[T] = logical_not %4
          return %3, %5 }""",
        """(%0: f32[B,4], %1: bool[T]) {
          %2: f32[B,4] = neg %0
          %3: bool[T] = logical_not %1
          return %0, %1 }""",
    ),
    "select known": (
        """(%0: f32[B,4], %1: f32[B,4]) {
          %2: bool[] = constant {dtype=bool, value=True}
          %3: bool[] = constant {dtype=bool, value=False}
          %4: f32[B,4] = select %2, %0, %1
          %5: f32[B,4] = select %3, %0, %1
          return %4, %5 }""",
        """(%0: f32[B,4], %1: f32[B,4]) {
          %2: bool[] = constant {dtype=bool, value=True}
          %3: bool[] = constant {dtype=bool, value=False}
          return %0, %1 }""",
    ),
    "cast widening undone": (
        """(%0: f16[B,4], %1: i8[T]) {
          %2: f32[B,4] = cast %0 {dtype=f32}
          %3: f16[B,4] = cast %2 {dtype=f16}
          %4: f64[B,4] = cast %2 {dtype=f64}
          %5: i64[T] = cast %1 {dtype=i64}
          %6: f32[T] = cast %5 {dtype=f32}
          %7: f32[T] = cast %6 {dtype=f32}
          return %3, %4, %7 }""",
        """(%0: f16[B,4], %1: i8[T]) {
          %2: f32[B,4] = cast %0 {dtype=f32}
          %3: f64[B,4] = cast %0 {dtype=f64}
          %4: i64[T] = cast %1 {dtype=i64}
          %5: f32[T] = cast %1 {dtype=f32}
          return %0, %3, %5 }""",
    ),
    "reshape of reshape": (
        """(%0: f32[B,4,3]) {
          %1: f32[B,12] = reshape %0 {shape=(dim(B),12)}
          %2: f32[B,2,6] = reshape %1 {shape=(dim(B),2,6)}
          %3: f32[B,4,3] = reshape %2 {shape=(dim(B),4,3)}
          return %2, %3 }""",
        """(%0: f32[B,4,3]) {
          %1: f32[B,12] = reshape %0 {shape=(dim(B),12)}
          %2: f32[B,2,6] = reshape %0 {shape=(dim(B),2,6)}
          return %2, %0 }""",
    ),
    "reshape of sum": (
        """(%0: f64[B,4,3]) {
          %1: f64[B,3] = sum %0 {axes=(1,), keepdims=False}
          %2: f64[B,1,3] = reshape %1 {shape=(dim(B),1,3)}
          %3: f64[4] = max %0 {axes=(0,2), keepdims=False}
          %4: f64[1,4,1] = reshape %3 {shape=(1,4,1)}
          return %2, %4 }""",
        """(%0: f64[B,4,3]) {
          %1: f64[B,3] = sum %0 {axes=(1,), keepdims=False}
          %2: f64[B,1,3] = sum %0 {axes=(1,), keepdims=True}
          %3: f64[4] = max %0 {axes=(0,2), keepdims=False}
          %4: f64[1,4,1] = max %0 {axes=(0,2), keepdims=True}
          return %2, %4 }""",
    ),
    "transpose of transpose": (
        """(%0: f32[B,4,3]) {
          %1: f32[3,B,4] = transpose %0 {perm=(2,0,1)}
          %2: f32[4,3,B] = transpose %1 {perm=(2,0,1)}
          %3: f32[B,4,3] = transpose %2 {perm=(2,0,1)}
          return %2, %3 }""",
        """(%0: f32[B,4,3]) {
          %1: f32[3,B,4] = transpose %0 {perm=(2,0,1)}
          %2: f32[4,3,B] = transpose %0 {perm=(1,2,0)}
          return %2, %0 }""",
    ),
    "broadcast_to of broadcast_to": (
        """(%0: f32[4], %1: f32[B,4]) {
          %2: f32[3,4] = broadcast_to %0 {shape=(3,4)}
          %3: f32[B,3,4] = broadcast_to %2 {shape=(dim(B),3,4)}
          %4: f32[B,4] = broadcast_to %1 {shape=(dim(B),4)}
          return %3, %4 }""",
        """(%0: f32[4], %1: f32[B,4]) {
          %2: f32[3,4] = broadcast_to %0 {shape=(3,4)}
          %3: f32[B,3,4] = broadcast_to %0 {shape=(dim(B),3,4)}
          return %3, %1 }""",
    ),
    "broadcast_to of an operand": (
        """(%0: f32[4], %1: f32[B,4], %2: bool[B,4]) {
          %3: f32[B,4] = broadcast_to %0 {shape=(dim(B),4)}
          %4: f32[B,4] = maximum %1, %3
          %5: f32[B,4] = select %2, %3, %4
          return %5 }""",
        """(%0: f32[4], %1: f32[B,4], %2: bool[B,4]) {
          %3: f32[B,4] = broadcast_to %0 {shape=(dim(B),4)}
          %4: f32[B,4] = maximum %1, %0
          %5: f32[B,4] = select %2, %0, %4
          return %5 }""",
    ),
    "slice of all": (
        """(%0: f32[B,4]) {
          %1: f32[B,4] = slice %0 {start=(0,0), stop=(dim(B),4), step=(1,1)}
          return %1 }""",
        "(%0: f32[B,4]) { return %0 }",
    ),
    "pad by nothing": (
        """(%0: f32[B,4]) {
          %1: f32[B,4] = pad %0 {low=(0,0), high=(0,0), interior=(0,0), value=3.0}
          return %1 }""",
        "(%0: f32[B,4]) { return %0 }",
    ),
    "concatenate of one, and of concatenations": (
        """(%0: f32[B,4], %1: f32[B,2], %2: f32[B,3]) {
          %3: f32[B,4] = concatenate %0 {axis=1}
          %4: f32[B,5] = concatenate %1, %2 {axis=1}
          %5: f32[B,9] = concatenate %3, %4 {axis=1}
          return %5 }""",
        """(%0: f32[B,4], %1: f32[B,2], %2: f32[B,3]) {
          %3: f32[B,5] = concatenate %1, %2 {axis=1}
          %4: f32[B,9] = concatenate %0, %1, %2 {axis=1}
          return %4 }""",
    ),
    "sum over nothing": (
        """(%0: f32[B,4]) {
          %1: f32[B,4] = sum %0 {axes=(), keepdims=False}
          %2: f32[B,4] = max %1 {axes=(), keepdims=True}
          %3: f32[B,4] = min %2 {axes=(), keepdims=True}
          return %3 }""",
        "(%0: f32[B,4]) { return %0 }",
    ),
    "sum over ones": (
        """(%0: f64[B,1,4]) {
          %1: f64[B,4] = sum %0 {axes=(1,), keepdims=False}
          %2: f64[B,1,4] = max %0 {axes=(1,), keepdims=True}
          return %1, %2 }""",
        """(%0: f64[B,1,4]) {
          %1: f64[B,4] = reshape %0 {shape=(dim(B),4)}
          return %1, %0 }""",
    ),
    "dim_value of a static size": (
        """(%0: f32[B]) {
          %1: i64[] = dim_value {dtype=i64, size=12}
          return %1 }""",
        """(%0: f32[B]) {
          %1: i64[] = constant {dtype=i64, value=12}
          return %1 }""",
    ),
    "stop_gradient": (
        """(%0: f32[B]) {
          %1: f32[B] = stop_gradient %0
          return %1 }""",
        "(%0: f32[B]) { return %0 }",
    ),
}

# What looks like a rewrite above but would change a bit, a type, or the work that is done.
LEFT_ALONE = {
    "a positive zero turns -0.0 into 0.0": """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=0.0}
          %2: f32[B,4] = add %0, %1
          return %2 }""",
    "minus -0.0 turns -0.0 into 0.0": """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=-0.0}
          %2: f32[B,4] = sub %0, %1
          return %2 }""",
    "0 - x is not -x": """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=0.0}
          %2: f32[B,4] = sub %1, %0
          return %2 }""",
    "x * 0 is not 0": """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=0.0}
          %2: f32[B,4] = mul %0, %1
          return %2 }""",
    "1 / x stays": """(%0: f32[B,4]) {
          %1: f32[] = constant {dtype=f32, value=1.0}
          %2: f32[B,4] = div %1, %0
          return %2 }""",
    "x - x is NaN at infinity": """(%0: f32[B,4]) {
          %1: f32[B,4] = sub %0, %0
          return %1 }""",
    "a neutral operand that stretches": """(%0: f32[4], %1: f32[B,4]) {
          %2: f32[] = constant {dtype=f32, value=1.0}
          %3: f32[B,4] = broadcast_to %2 {shape=(dim(B),4)}
          %4: f32[B,4] = mul %0, %3
          return %4, %1 }""",
    "a narrowing cast": """(%0: f32[B,4], %1: i32[T]) {
          %2: f16[B,4] = cast %0 {dtype=f16}
          %3: f32[B,4] = cast %2 {dtype=f32}
          %4: i8[T] = cast %1 {dtype=i8}
          %5: i32[T] = cast %4 {dtype=i32}
          %6: bf16[B,4] = cast %2 {dtype=bf16}
          %7: f16[B,4] = cast %6 {dtype=f16}
          return %3, %5, %7 }""",
    "a wide float to an integer: out of range differs": """(%0: f32[B,4]) {
          %1: f64[B,4] = cast %0 {dtype=f64}
          %2: u8[B,4] = cast %1 {dtype=u8}
          return %2 }""",
    "a sum that is used elsewhere is not taken twice": """(%0: f64[B,4,3]) {
          %1: f64[B,3] = sum %0 {axes=(1,), keepdims=False}
          %2: f64[B,1,3] = reshape %1 {shape=(dim(B),1,3)}
          return %1, %2 }""",
    "a joined part that is used elsewhere": """(%0: f32[B,4], %1: f32[B,2]) {
          %2: f32[B,6] = concatenate %0, %1 {axis=1}
          %3: f32[B,8] = concatenate %2, %1 {axis=1}
          return %3, %2 }""",
    "joined along another axis": """(%0: f32[B,4], %1: f32[B,4]) {
          %2: f32[2*B,4] = concatenate %0, %1 {axis=0}
          %3: f32[2*B,8] = concatenate %2, %2 {axis=1}
          return %3 }""",
    "a sum of booleans changes the type": """(%0: bool[B,1]) {
          %1: i32[B,1] = sum %0 {axes=(1,), keepdims=True}
          return %1 }""",
}

PADS = {
    "neighbours": (
        """(%0: f64[B,4], %1: f64[B,2], %2: f64[B,3]) {
          %3: f64[B,9] = pad %0 {low=(0,0), high=(0,5), interior=(0,0), value=0.0}
          %4: f64[B,9] = pad %1 {low=(0,4), high=(0,3), interior=(0,0), value=0.0}
          %5: f64[B,9] = pad %2 {low=(0,6), high=(0,0), interior=(0,0), value=0.0}
          %6: f64[B,9] = add %3, %4
          %7: f64[B,9] = add %6, %5
          return %7 }""",
        True,
    ),
    "in the other order, with room around": (
        """(%0: f64[4,T], %1: f64[2,T]) {
          %2: f64[9,T + 3] = pad %0 {low=(1,2), high=(4,1), interior=(0,0), value=0.0}
          %3: f64[9,T + 3] = pad %1 {low=(5,2), high=(2,1), interior=(0,0), value=0.0}
          %4: f64[9,T + 3] = add %3, %2
          return %4 }""",
        True,
    ),
    "a gap between them": (
        """(%0: f64[4,T], %1: f64[2,T]) {
          %2: f64[9,T] = pad %0 {low=(0,0), high=(5,0), interior=(0,0), value=0.0}
          %3: f64[9,T] = pad %1 {low=(5,0), high=(2,0), interior=(0,0), value=0.0}
          %4: f64[9,T] = add %3, %2
          return %4 }""",
        False,
    ),
    "padded with ones": (
        """(%0: f64[4,T], %1: f64[2,T]) {
          %2: f64[6,T] = pad %0 {low=(0,0), high=(2,0), interior=(0,0), value=1.0}
          %3: f64[6,T] = pad %1 {low=(4,0), high=(0,0), interior=(0,0), value=0.0}
          %4: f64[6,T] = add %3, %2
          return %4 }""",
        False,
    ),
    "padded with -0.0": (
        """(%0: f64[4,T], %1: f64[2,T]) {
          %2: f64[7,T] = pad %0 {low=(0,0), high=(3,0), interior=(0,0), value=-0.0}
          %3: f64[7,T] = pad %1 {low=(4,0), high=(1,0), interior=(0,0), value=-0.0}
          %4: f64[7,T] = add %3, %2
          return %4 }""",
        False,
    ),
    "of shapes that stretch": (
        """(%0: f64[4,1], %1: f64[2,1]) {
          %2: f64[6,1] = pad %0 {low=(0,0), high=(2,0), interior=(0,0), value=0.0}
          %3: f64[6,3] = pad %1 {low=(4,0), high=(0,2), interior=(0,0), value=0.0}
          %4: f64[6,3] = add %2, %3
          return %4 }""",
        False,
    ),
    "of unequal ranks": (
        """(%0: f64[4], %1: f64[3,2]) {
          %2: f64[6] = pad %0 {low=(0,), high=(2,), interior=(0,), value=0.0}
          %3: f64[3,6] = pad %1 {low=(0,4), high=(0,0), interior=(0,0), value=0.0}
          %4: f64[3,6] = add %2, %3
          return %4 }""",
        False,
    ),
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewrite(name: str) -> None:
    """A sum may turn -0.0 into 0.0; a sum that is left out may not."""
    becomes(Simplify(), *REWRITES[name], signed=not name.startswith("sum over"))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_left_alone(name: str) -> None:
    becomes(Simplify(), LEFT_ALONE[name], "")


@pytest.mark.parametrize("name", PADS)
def test_added_pads(name: str) -> None:
    text, joins = PADS[name]
    before = written(text)
    after = Simplify()(before)
    assert ("concatenate" in names(after)) == joins
    same_numbers(before, after, signed=not joins)
    if joins:
        assert names(after).count("add") == 0 or names(after)[-1] != "add"


def test_every_rule_is_tested() -> None:
    tested = {name.split()[0] for name in REWRITES} | {"max", "min", "logical_not"}
    assert set(RULES) <= tested
    assert len(BY_KIND) == 1  # broadcast_to of an operand
