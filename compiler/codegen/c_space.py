"""Spaces of a kernel that are walked through axis by axis: shapes and views -> axes, loops, places.

Axes that all arrays walk through alike are one.  Invariant: an item is one place of the axes that
threads share out, or a block of the elements of the last of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.codegen.c import HEAD, Function
from retrograde.compiler.codegen.cstyle import Extents, product
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.plan.views import View

COLUMNS = 64  # elements of a row that are worked on together


@dataclass(frozen=True)
class Axis:
    """So many elements, each array's a stride apart."""

    extent: Dim
    strides: tuple[Dim, ...]

    @property
    def close(self) -> bool:
        """Whether each array stays in place or goes on to the next element."""
        return all(same(s, 0) or same(s, 1) for s in self.strides)


def axes_of(views: Sequence[View], which: Iterable[int]) -> list[Axis]:
    """The axes `which` of views of one shape (but for stretched axes), merged."""
    return merged(
        Axis(views[0].shape[i], tuple(v.strides[i] for v in views)) for i in which
    )  # fmt: skip


def merged(axes: Iterable[Axis]) -> list[Axis]:
    """As few axes as there can be, without those of one element."""
    out: list[Axis] = []
    for axis in axes:
        if same(axis.extent, 1):
            continue
        before = out[-1] if out else None
        if before is not None and all(
            same(a, b * axis.extent) for a, b in zip(before.strides, axis.strides, strict=True)
        ):
            out[-1] = Axis(before.extent * axis.extent, axis.strides)
        else:
            out.append(axis)
    return out


def with_columns(kept: Sequence[Axis]) -> list[Axis]:
    """The axes with the one last along which the elements lie closest, if there is such a one."""
    best = [n for n, axis in enumerate(kept) if axis.close]
    if not best:
        return list(kept)
    return [*kept[: best[-1]], *kept[best[-1] + 1 :], kept[best[-1]]]


def size_of(axes: Iterable[Axis]) -> Dim:
    """The number of places."""
    return dims.product(axis.extent for axis in axes)


@dataclass
class Text:
    """A function in the making: its sizes, and the lines of its body."""

    size: Extents = field(default_factory=Extents)
    lines: list[str] = field(default_factory=list)

    def add(self, pad: str, *lines: str) -> None:
        self.lines += [pad + line for line in lines]

    def split(self, number: str, axes: Sequence[Axis], name: str, pad: str) -> list[str]:
        """Takes a number apart into the places along `axes`; the names of these."""
        names = [f"{name}{n}" for n in range(len(axes))]
        if len(axes) == 1:
            self.add(pad, f"const i64 {names[0]} = {number};")
        elif axes:
            self.add(pad, f"i64 {name} = {number};")
            for n in range(len(axes) - 1, 0, -1):
                extent = self.size(axes[n].extent)
                self.add(pad, f"const i64 {names[n]} = {name} % {extent}; {name} /= {extent};")
            self.add(pad, f"const i64 {names[0]} = {name};")
        return names

    def offset(self, names: Sequence[str], axes: Sequence[Axis], array: int) -> str:
        """What is added to the address of an array."""
        terms = [
            product(name, self.size(axis.strides[array]))
            for name, axis in zip(names, axes, strict=True)
        ]
        return "".join(f" + {term}" for term in terms if term != "0")

    def loops(self, axes: Sequence[Axis], name: str, pad: str) -> tuple[list[str], str]:
        """Opens a loop for each axis; the names of the places, and the indent inside."""
        names = []
        for n, axis in enumerate(axes):
            names.append(f"{name}{n}")
            i, extent = names[-1], self.size(axis.extent)
            self.add(pad, f"for (i64 {i} = 0; {i} < {extent}; {i}++) {{")
            pad += "  "
        return names, pad

    def close(self, axes: Sequence[Axis], pad: str) -> None:
        """Closes the loops that `loops` opened at indent `pad`."""
        for n in range(len(axes) - 1, -1, -1):
            self.add(pad + "  " * n, "}")

    def function(self, places: Sequence[View], items: Dim, grain: int = 1) -> Function:
        """The function, given its items in `lo` and `hi`."""
        first = len(places)
        sizes = [f"  const i64 n{i} = a[{first + i}];" for i in range(len(self.size.open))]
        text = "\n".join([HEAD, *sizes, *self.lines, "  return RG_OK;", "}"])
        return Function(text, tuple(places), tuple(self.size.open), items, grain)
