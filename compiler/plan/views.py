"""Where values lie: storages, and strided views of them.

Input: symbolic shapes; invariant: a view never reaches outside of its storage.  Sizes, offsets and
strides are dimensions, so one plan serves every size.  Strides and offsets count elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import TensorType, same_shape

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A piece of the arena.  Kinds: state, input, value, scratch."""

    id: int
    bytes: Dim
    kind: str
    name: str = ""
    place: str = ""  # the source line that it is for


@dataclass(frozen=True, eq=False, slots=True)
class View:
    """A strided window of a storage."""

    storage: Storage
    dtype: DType
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def contiguous(self) -> bool:
        """Whether the elements provably lie in row-major order without holes."""
        return _same_all(self.strides, row_major(self.shape), self.shape)

    @property
    def whole(self) -> bool:
        """Whether the view is its whole storage in row-major order."""
        return (
            same(self.offset, 0)
            and self.contiguous
            and same(self.storage.bytes, aligned(dims.product(self.shape) * self.dtype.bytes))
        )

    def equals(self, other: Operand) -> bool:
        """Whether both are provably the same elements in the same order."""
        return self is other or (
            isinstance(other, View)
            and self.storage is other.storage
            and self.dtype is other.dtype
            and same(self.offset, other.offset)
            and same_shape(self.shape, other.shape)
            and _same_all(self.strides, other.strides, self.shape)
        )

    def transposed(self, perm: Sequence[int]) -> View:
        return self.seen(
            tuple([self.shape[i] for i in perm]), tuple([self.strides[i] for i in perm])
        )

    def broadcast(self, shape: Sequence[Dim]) -> View:
        """NumPy's broadcast_to: stretched axes get stride zero."""
        extra = len(shape) - len(self.shape)
        strides: list[Dim] = [0] * extra
        for d, own, stride in zip(shape[extra:], self.shape, self.strides, strict=True):
            strides.append(stride if same(d, own) else 0)
        return self.seen(tuple(shape), tuple(strides))

    def seen(self, shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> View:
        """The same storage from the same place on, under another shape with other strides."""
        if type(self) is not View:
            return replace(self, shape=shape, strides=strides)
        return View(self.storage, self.dtype, shape, strides, self.offset)

    def sliced(self, start: Sequence[Dim], step: Sequence[int], shape: Sequence[Dim]) -> View:
        offset = self.offset
        for s, stride in zip(start, self.strides, strict=True):
            offset = offset + s * stride
        strides = tuple(k * stride for k, stride in zip(step, self.strides, strict=True))
        return replace(self, offset=offset, strides=strides, shape=tuple(shape))

    def flipped(self, axes: Sequence[int]) -> View:
        offset, strides = self.offset, list(self.strides)
        for i in axes:
            offset = offset + (self.shape[i] - 1) * strides[i]
            strides[i] = -strides[i]
        return replace(self, offset=offset, strides=tuple(strides))

    def reshaped(self, shape: Sequence[Dim]) -> View | None:
        """The same elements under another shape, None where that takes a copy."""
        strides = _reshape_strides(self.shape, self.strides, tuple(shape))
        return None if strides is None else self.seen(tuple(shape), strides)


@dataclass(frozen=True, eq=False, slots=True)
class Turn(View):
    """What one turn of a loop has of an array: `stacked` at the number of the turn.

    As a view it is that of turn 0, of which only shape and strides count; views of it cannot be
    made.  `loop` says whose turns are meant."""

    stacked: View | None = None
    loop: object = None

    def equals(self, other: Operand) -> bool:
        return isinstance(other, Turn) and self.loop is other.loop and View.equals(self, other)


def turn_of(stacked: View, loop: object) -> Turn:
    """The view of `stacked` that moves with the turns of `loop`."""
    shape, strides = stacked.shape[1:], stacked.strides[1:]
    return Turn(stacked.storage, stacked.dtype, shape, strides, stacked.offset, stacked, loop)


@dataclass(frozen=True)
class Literal:
    """A scalar constant, stretched to `shape` where an operand needs one."""

    value: bool | int | float
    dtype: DType
    shape: tuple[Dim, ...] = ()


Operand: TypeAlias = View | Literal


def aligned(bytes: Dim) -> Dim:
    """Bytes rounded up to the alignment of the arena."""
    return dims.align(bytes, ALIGNMENT)


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The strides of a contiguous array."""
    strides: list[Dim] = []
    step: Dim = 1
    for d in reversed(shape):
        strides.append(step)
        step = step * d
    return tuple(reversed(strides))


def new_view(type: TensorType, kind: str, name: str = "", place: str = "") -> View:
    """A contiguous view of a storage of its own."""
    storage = Storage(next_id(), aligned(type.bytes), kind, name, place)
    return View(storage, type.dtype, type.shape, row_major(type.shape))


def scratch(elements: Dim, dtype: DType, place: str) -> View:
    """A flat piece of working memory."""
    storage = Storage(next_id(), aligned(elements * dtype.bytes), "scratch", "", place)
    return View(storage, dtype, (elements,), (1,))


def _same_all(a: Sequence[Dim], b: Sequence[Dim], shape: Sequence[Dim]) -> bool:
    """Equal strides, where axes of size one have any."""
    return all(same(d, 1) or same(x, y) for x, y, d in zip(a, b, shape, strict=True))


@lru_cache(maxsize=1 << 14)
def _reshape_strides(
    shape: tuple[Dim, ...], strides: tuple[Dim, ...], new: tuple[Dim, ...]
) -> tuple[Dim, ...] | None:
    """Strides under the new shape: axes are matched in runs of equal products."""
    if any(same(d, 0) for d in shape):
        return row_major(new)  # no element, no step
    old = [(d, s) for d, s in zip(shape, strides, strict=True) if not same(d, 1)]
    target = [d for d in new if not same(d, 1)]
    found: list[Dim] = []
    while old or target:
        if not old or not target:
            return None
        run, wanted = [old.pop(0)], [target.pop(0)]
        have, need = run[0][0], wanted[0]
        while not same(have, need):
            if _grows(have, need) and old:
                run.append(old.pop(0))
                have = have * run[-1][0]
            elif target:
                wanted.append(target.pop(0))
                need = need * wanted[-1]
            elif old:
                run.append(old.pop(0))
                have = have * run[-1][0]
            else:
                return None
        for (_, outer), (size, inner) in pairwise(run):
            if not same(outer, size * inner):
                return None
        inner_stride = run[-1][1]
        found.extend(s * inner_stride for s in row_major(wanted))
    return _with_ones(new, found)


def _grows(have: Dim, need: Dim) -> bool:
    """Whether the old run is to grow: the new product is a multiple of the old one."""
    return dims.divide_exact(need, have) is not None


def _with_ones(shape: tuple[Dim, ...], strides: list[Dim]) -> tuple[Dim, ...]:
    """Strides for all axes, given those of the axes that are not 1."""
    out: list[Dim] = []
    rest = list(strides)
    for d in shape:
        out.append(0 if same(d, 1) else rest.pop(0))
    for i in range(len(out) - 1, -1, -1):  # a unit axis steps over what is inside of it
        if same(shape[i], 1):
            out[i] = out[i + 1] * shape[i + 1] if i + 1 < len(out) else 1
    return tuple(out)
