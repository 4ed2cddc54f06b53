"""Sizes of a run: the shapes of the input arrays -> the value of every dimension symbol.

Invariant: what is returned satisfies every declared shape and the bounds of every symbol; anything
else is a ShapeError that names the input, the axis, what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Func, Poly, Symbol
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where


def bind_sizes(
    types: Sequence[TensorType],
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    known: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """The value of each symbol in `types`, given the actual shapes of the inputs called `names`.

    A dimension linear in its one unknown symbol (`T`, `T - 1`, `2*T`, `B*T` once B is known) binds
    that symbol; every dimension is then checked.  `known` are sizes settled beforehand.
    Raises ShapeError."""
    if len(types) != len(shapes):
        raise ShapeError(f"{where()}expected {len(types)} arrays, got {len(shapes)}")
    labels = [_label(names, i) for i in range(len(types))]
    axes = list(_axes(types, labels, shapes))
    binding = _Binding(dict(known or {}))
    for axis in axes:  # plain symbols first, so that a conflict is told in the simplest terms
        if isinstance(axis.dim, Poly) and (symbol := _plain_symbol(axis.dim)) is not None:
            binding.bind(symbol, axis.extent, axis)
    pending = [axis for axis in axes if binding.unknown(axis.dim)]
    while pending:
        left = [axis for axis in pending if not binding.solve(axis)]
        if len(left) == len(pending):
            raise ShapeError(_unsolved(left, binding))
        pending = [axis for axis in left if binding.unknown(axis.dim)]
    for axis in axes:
        binding.check(axis)
    return binding.sizes


@dataclass(frozen=True)
class _Axis:
    """One axis of one input: its declared size and the actual one."""

    label: str
    type: TensorType
    shape: tuple[int, ...]
    index: int

    @property
    def dim(self) -> Dim:
        return self.type.shape[self.index]

    @property
    def extent(self) -> int:
        return self.shape[self.index]

    @property
    def place(self) -> str:
        return f"axis {self.index} of {self.label}"

    def misfit(self, reason: str) -> ShapeError:
        got = ", ".join(map(str, self.shape))
        return ShapeError(
            f"{where()}{self.label}: expected {self.type}, got shape [{got}]: {reason}"
        )


class _Binding:
    """The symbols found so far and the axis that settled each."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.found_at: dict[str, str] = {}

    def unknown(self, d: Dim) -> list[Symbol]:
        return [s for s in dims.symbols(d) if s.name not in self.sizes]

    def bind(self, symbol: Symbol, value: int, axis: _Axis) -> None:
        if symbol.name not in self.sizes:
            self.sizes[symbol.name] = value
            self.found_at[symbol.name] = axis.place

    def solve(self, axis: _Axis) -> bool:
        """Binds the one unknown symbol of the axis's size if that is linear in it."""
        unknown = self.unknown(axis.dim)
        if len(unknown) != 1:
            return False
        line = _linear(axis.dim, unknown[0], self.sizes)
        if line is None:
            return False
        slope, offset = line
        value, remainder = divmod(axis.extent - offset, slope)
        if remainder:
            raise axis.misfit(
                f"axis {axis.index} is {axis.extent}, no whole {unknown[0].name} makes "
                f"{axis.dim} that{self.told(axis.dim)}"
            )
        self.bind(unknown[0], value, axis)
        return True

    def check(self, axis: _Axis) -> None:
        for s in dims.symbols(axis.dim):
            value = self.sizes[s.name]
            if value < s.min or (s.max is not None and value > s.max):
                allowed = f"at least {s.min}" if s.max is None else f"{s.min}..{s.max}"
                raise axis.misfit(f"{s.name} = {value}, which must be {allowed}")
        expected = dims.evaluate(axis.dim, self.sizes)
        if expected == axis.extent:
            return
        size = f"{axis.dim} = {expected}" if isinstance(axis.dim, Poly) else f"{expected}"
        raise axis.misfit(
            f"axis {axis.index} is {axis.extent}, expected {size}{self.told(axis.dim)}"
        )

    def told(self, d: Dim) -> str:
        """Where the symbols of `d` come from: ` (T = 7 by axis 1 of tokens)`."""
        parts = []
        for s in dims.symbols(d):
            if s.name in self.sizes:
                source = self.found_at.get(s.name)
                parts.append(f"{s.name} = {self.sizes[s.name]}{f' by {source}' if source else ''}")
        return f" ({', '.join(parts)})" if parts else ""


def _label(names: Sequence[str], i: int) -> str:
    return names[i] if i < len(names) and names[i] else f"input {i}"


def _axes(
    types: Sequence[TensorType], labels: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> Iterator[_Axis]:
    for type, label, shape in zip(types, labels, shapes, strict=True):
        if len(type.shape) != len(shape):
            got = ", ".join(map(str, shape))
            raise ShapeError(
                f"{where()}{label}: expected {type} ({len(type.shape)} axes), got shape [{got}] "
                f"({len(shape)} axes)"
            )
        for index in range(len(shape)):
            yield _Axis(label, type, tuple(shape), index)


def _plain_symbol(d: Poly) -> Symbol | None:
    if len(d.terms) != 1:
        return None
    ((monomial, coefficient),) = d.terms
    if coefficient != 1 or len(monomial) != 1:
        return None
    atom, power = monomial[0]
    return atom if isinstance(atom, Symbol) and power == 1 else None


def _linear(d: Dim, x: Symbol, sizes: Mapping[str, int]) -> tuple[int, int] | None:
    """(slope, offset) of `d` as a function of `x`, the rest being known; None if it is no line."""
    if not isinstance(d, Poly):
        return None
    for monomial, _ in d.terms:
        for atom, power in monomial:
            if atom == x:
                if power > 1:
                    return None
            elif isinstance(atom, Func) and any(x in dims.symbols(a) for a in atom.args):
                return None
    at_min, next_to_it = (
        dims.evaluate(d, {**sizes, x.name: value}) for value in (x.min, x.min + 1)
    )
    slope = next_to_it - at_min
    return (slope, at_min - slope * x.min) if slope else None


def _unsolved(axes: Sequence[_Axis], binding: _Binding) -> str:
    listed = "; ".join(f"{axis.place} is {axis.extent} = {axis.dim}" for axis in axes)
    names = dict.fromkeys(s.name for axis in axes for s in binding.unknown(axis.dim))
    return (
        f"{where()}the sizes {', '.join(names)} cannot be told from the shapes ({listed}): "
        "give an input that has the size as an axis of its own"
    )
