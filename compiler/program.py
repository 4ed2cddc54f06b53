"""What the runtime gets: plain data and source text.

A `Program` is a list of buffers with lifetimes and symbolic sizes, the order in which they lie in
the arena, the ports of inputs and outputs, and the source of the schedule.  Invariant: nothing in
it depends on a size; `layout` binds sizes by evaluation alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.location import where
from retrograde.compiler.plan.bounds import PeakForm, peak_terms
from retrograde.compiler.plan.memory import Buffer, Orientation, lower_bound
from retrograde.compiler.plan.specs import BufferSpec, Port

__all__ = ["BufferSpec", "MemoryPlan", "Peak", "PlacedBuffer", "Port", "Program"]


@dataclass(frozen=True)
class PlacedBuffer:
    """A buffer at one size: where it lies in the arena, in bytes."""

    name: str
    kind: str
    bytes: int
    offset: int
    start: int
    end: int
    place: str


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of one run at one size, in bytes.

    `peak_bytes` is the height of the arena: state, inputs, every temporary.  `output_bytes` are the
    fresh arrays that a call returns, on top.  `lower_bound_bytes` is the most that is live at once
    in this order of steps; `gap_fraction` how far the plan lies above it."""

    sizes: Mapping[str, int]
    peak_bytes: int
    state_bytes: int
    output_bytes: int
    lower_bound_bytes: int
    buffers: tuple[PlacedBuffer, ...]

    @property
    def arena_bytes(self) -> int:
        """What is allocated: the planned peak."""
        return self.peak_bytes

    @property
    def gap_fraction(self) -> float:
        if not self.lower_bound_bytes:
            return 0.0
        return (self.peak_bytes - self.lower_bound_bytes) / self.lower_bound_bytes

    @property
    def optimal(self) -> bool:
        """Whether no placement of these lifetimes can be lower."""
        return self.peak_bytes == self.lower_bound_bytes


@dataclass(frozen=True)
class Program:
    """A compiled graph: everything a device needs, for every size."""

    name: str
    symbols: tuple[dims.Symbol, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    returned: tuple[int, ...]  # the outputs that a call returns; the others replace state
    buffers: tuple[BufferSpec, ...]  # state first, in the order of the donated inputs
    orientation: Orientation  # of the buffers that are not state
    source: str
    reuse: bool = True  # False: every buffer has a place of its own

    @property
    def state_count(self) -> int:
        """How many buffers are state."""
        return sum(1 for b in self.buffers if b.kind == "state")

    @cached_property
    def _sizes(self) -> Callable[..., tuple[int, ...]]:
        """The bytes of every buffer as a function of the symbols, one evaluation per polynomial."""
        distinct = list(dict.fromkeys(dims.source(b.bytes) for b in self.buffers))
        index = {text: i for i, text in enumerate(distinct)}
        order = ", ".join(f"s[{index[dims.source(b.bytes)]}]" for b in self.buffers)
        names = ", ".join(s.name for s in self.symbols)
        values = "".join(f"{text}, " for text in distinct)
        namespace: dict[str, Callable[..., tuple[int, ...]]] = {}
        exec(
            f"def sizes({names}):\n    s = ({values})\n    return ({order}{',' if order else ''})",
            namespace,
        )
        return namespace["sizes"]

    def state_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shapes of the donated inputs."""
        types = [p.type for p in self.inputs if p.donated]
        return [tuple(dims.evaluate(d, sizes) for d in t.shape) for t in types]

    def buffer_bytes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The size of each buffer."""
        return self._sizes(**{s.name: sizes[s.name] for s in self.symbols})

    def layout(self, sizes: Mapping[str, int]) -> tuple[list[int], int, int]:
        """(the offset of each buffer, the bytes of state, the height of the arena)."""
        size = self.buffer_bytes(sizes)
        n = self.state_count
        offsets, state = stack(size[:n])
        if self.reuse:
            above, height = self.orientation.offsets(size[n:])
        else:
            above, height = stack(size[n:])
        return [*offsets, *(state + o for o in above)], state, state + height

    def plan(self, sizes: Mapping[str, int]) -> MemoryPlan:
        """The memory plan at the given sizes."""
        offsets, state, height = self.layout(sizes)
        size = self.buffer_bytes(sizes)
        placed = tuple(
            PlacedBuffer(b.name, b.kind, n, o, b.start, b.end, b.place)
            for b, n, o in zip(self.buffers, size, offsets, strict=True)
        )
        transient = [Buffer(b.start, b.end, b.bytes) for b in placed if b.kind != "state"]
        outputs = sum(
            dims.evaluate(self.outputs[i].type.bytes, sizes) for i in self.returned
        )
        bound = state + lower_bound(transient)
        return MemoryPlan(dict(sizes), height, state, outputs, bound, placed)

    def peak(self) -> Peak:
        """The height of the arena in closed form over the symbols."""
        n = self.state_count
        state: Dim = 0
        for b in self.buffers[:n]:
            state = state + b.bytes
        transient = [b.bytes for b in self.buffers[n:]]
        if self.reuse:
            form = peak_terms(self.orientation, transient)
        else:
            form = PeakForm((sum(transient),), True)
        terms = tuple(state + term for term in form.terms)
        return Peak(PeakForm(terms or (state,), form.exact), self)


@dataclass(frozen=True)
class Peak:
    """The peak of a program, in bytes: `str()` shows the closed form, a call gives the number.

    Where the form has more terms than can be kept (`form.exact` is false) the text is a lower
    estimate; the call is exact always, by evaluating the plan."""

    form: PeakForm
    program: Program

    def __call__(self, **sizes: int) -> int:
        """The bytes at the sizes of the symbols, such as B=32, T=256."""
        names = {s.name for s in self.program.symbols}
        if set(sizes) != names:
            wanted, got = sorted(names), sorted(sizes)
            raise ShapeError(f"{where()}sizes for {wanted} are needed, got {got}")
        try:
            exact = {name: operator.index(size) for name, size in sizes.items()}
        except TypeError:
            raise ShapeError(f"{where()}sizes are whole numbers, got {sizes}") from None
        return self.form.at(exact) if self.form.exact else self.program.layout(exact)[2]

    def __str__(self) -> str:
        return str(self.form)


def stack(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets one after the other, and the total."""
    offsets: list[int] = []
    total = 0
    for size in sizes:
        offsets.append(total)
        total += size
    return offsets, total
