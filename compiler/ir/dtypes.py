"""Data types: name -> `DType`; and the promotion table.  Invariant: one object per type.

Promotion follows the array API: within a kind the wider type wins, signed and unsigned integers
meet in the next wider signed one, a float absorbs integers, booleans yield to everything.  Python
and NumPy scalars are weak: they take the array's type unless their kind is higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir.location import where

_KIND_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2}


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One element type: its short name, kind (bool, uint, int, float) and width in bytes.

    It equals every spelling of itself (`x.dtype == np.float32`, `== "f32"`), and NumPy takes it
    where it takes a dtype."""

    name: str
    kind: str
    bytes: int

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype (bfloat16 comes from ml_dtypes)."""
        return _numpy_dtype(self.name)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What `np.dtype(self)` reads."""
        return self.numpy

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self.name == other.name
        try:
            return dtype(other) is self
        except DTypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.name)


f64 = DType("f64", "float", 8)
f32 = DType("f32", "float", 4)
f16 = DType("f16", "float", 2)
bf16 = DType("bf16", "float", 2)
i64 = DType("i64", "int", 8)
i32 = DType("i32", "int", 4)
i16 = DType("i16", "int", 2)
i8 = DType("i8", "int", 1)
u64 = DType("u64", "uint", 8)
u32 = DType("u32", "uint", 4)
u16 = DType("u16", "uint", 2)
u8 = DType("u8", "uint", 1)
bool_ = DType("bool", "bool", 1)

ALL: tuple[DType, ...] = (f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, bool_)
_BY_NAME = {t.name: t for t in ALL}
_LONG = {
    "float64": f64, "float32": f32, "float16": f16, "bfloat16": bf16,
    "int64": i64, "int32": i32, "int16": i16, "int8": i8,
    "uint64": u64, "uint32": u32, "uint16": u16, "uint8": u8,
}  # fmt: skip
_BY_NAME.update(_LONG)
_NUMPY_NAMES = {short: long for long, t in _LONG.items() for short in (t.name,)} | {"bool": "bool"}


@cache
def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bf16":
        import ml_dtypes

        half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return half
    return np.dtype(_NUMPY_NAMES[name])


def named(name: str) -> DType | None:
    """The type of a short or long name, or None."""
    return _BY_NAME.get(name)


def dtype(spec: Any) -> DType:
    """The `DType` of a name ("f32", "float32"), NumPy dtype or scalar type, or Python type.

    Raises DTypeError for anything else (complex, strings, objects)."""
    if isinstance(spec, DType):
        return spec
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]
    if spec is float:
        return f32
    if spec is int:
        return i32
    if spec is bool:
        return bool_
    try:
        if spec is None:  # to NumPy that is float64
            raise TypeError
        return _from_numpy(np.dtype(spec))
    except (TypeError, KeyError):
        raise DTypeError(
            f"{where()}unknown or unsupported dtype {spec!r}: use one of "
            f"{', '.join(t.name for t in ALL)}"
        ) from None


@cache
def _from_numpy(spec: np.dtype[Any]) -> DType:
    return _BY_NAME[spec.name]


@cache
def promote(a: DType, b: DType) -> DType:
    """The type in which two strong operands meet."""
    if a is b:
        return a
    if _KIND_RANK[a.kind] < _KIND_RANK[b.kind]:
        a, b = b, a
    if b.kind == "bool":
        return a
    if a.kind == "float":
        if b.kind != "float":
            return a
        if a.bytes == b.bytes:  # f16 with bf16: neither holds the other
            return f32
        return a if a.bytes > b.bytes else b
    if a.kind == b.kind:
        return a if a.bytes > b.bytes else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if signed.bytes > unsigned.bytes:
        return signed
    if unsigned.bytes == 8:  # NumPy would go to f64; integers stay integers here
        raise DTypeError(
            f"{a} and {b} have no common integer type: cast one of them, x.astype('i64')"
        )
    return {1: i16, 2: i32, 4: i64}[unsigned.bytes]


def weak_kind(value: Any) -> str:
    """The kind of a Python or NumPy scalar: bool, int or float."""
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int"
    if isinstance(value, (float, np.floating)):
        return "float"
    raise DTypeError(f"scalars of type {type(value).__name__} are not supported")


_WEAK_DEFAULT = {"bool": bool_, "int": i32, "float": f32}


def result_type(strong: list[DType], weak: list[str]) -> DType:
    """The common type of strong operand types and weak scalar kinds ("bool", "int", "float")."""
    kinds = sorted(weak, key=lambda k: _KIND_RANK[k])
    if not strong:
        return _WEAK_DEFAULT[kinds[-1]]
    out = strong[0]
    for t in strong[1:]:
        out = promote(out, t)
    if kinds and _KIND_RANK[kinds[-1]] > _KIND_RANK[out.kind]:
        return _WEAK_DEFAULT[kinds[-1]]
    return out


def promotion_table() -> str:
    """The types in which two arrays, and an array and a number, meet: a table in Markdown.

    A dash stands for no common type: one operand has to be cast."""
    numbers = {"`True`": "bool", "`1`": "int", "`1.5`": "float"}
    head = ["", *(f"**{t}**" for t in ALL), *numbers]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for a in ALL:
        cells = [_meeting(a, b) for b in ALL]
        cells += [str(result_type([a], [kind])) for kind in numbers.values()]
        lines.append(f"| {' | '.join([f'**{a}**', *cells])} |")
    return "\n".join(lines) + "\n"


def _meeting(a: DType, b: DType) -> str:
    try:
        return str(promote(a, b))
    except DTypeError:
        return "-"
