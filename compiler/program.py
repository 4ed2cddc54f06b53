"""What the runtime gets: plain data and source text.

A `Program` has the ports of inputs and outputs and a ladder of recipes: buffers with lifetimes and
symbolic sizes, the order in which they lie in the arena, the source of a schedule.  Binding sizes
picks the cheapest recipe that is within the budget.  Invariant: nothing in it depends on a size.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

from retrograde.compiler.errors import BudgetError, ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.collection import paused_collection
from retrograde.compiler.ir.headroom import with_headroom
from retrograde.compiler.ir.location import where
from retrograde.compiler.plan.bounds import PeakForm
from retrograde.compiler.plan.choice import Choice, choose, frontier
from retrograde.compiler.plan.recipe import KernelFile, Recipe
from retrograde.compiler.plan.specs import BufferSpec, Port

__all__ = [
    "BufferSpec", "Choice", "KernelFile", "MemoryPlan", "Peak", "PlacedBuffer", "Port", "Program",
    "Recipe", "paused_collection", "with_headroom",
]  # fmt: skip

_KEPT = 256  # sizes whose choice is remembered


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
    in this order of steps; `gap_fraction` how far the plan lies above it.  No order of the steps
    of any of the program's recipes, each step run as often as one likes, is below
    `order_lower_bound_bytes` (`plan/step_bound.py` has the proof); `order_gap_fraction` is how far
    the plan lies above that.  `recipe` is the one that the budget let pick, with its
    `plan_sizes`."""

    sizes: Mapping[str, int]
    peak_bytes: int
    state_bytes: int
    output_bytes: int
    lower_bound_bytes: int
    buffers: tuple[PlacedBuffer, ...]
    recipe: str = ""
    plan_sizes: Mapping[str, int] = field(default_factory=dict)  # what the recipe left open
    recomputed_steps: int = 0  # steps of loops over time that run forward again
    order_lower_bound_bytes: int = 0

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

    @property
    def order_gap_fraction(self) -> float:
        if not self.order_lower_bound_bytes:
            return 0.0
        return (self.peak_bytes - self.order_lower_bound_bytes) / self.order_lower_bound_bytes

    @property
    def standing(self) -> str:
        """How the peak stands to all orders of the steps: "optimal", "within 12.5%", or
        "heuristic" where the bound says little: less than half of the peak is proven."""
        return standing(self.peak_bytes, self.order_lower_bound_bytes)


@dataclass(frozen=True)
class Program:
    """A compiled graph: everything a device needs, for every size."""

    name: str
    symbols: tuple[dims.Symbol, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    returned: tuple[int, ...]  # the outputs that a call returns; the others replace state
    recipes: tuple[Recipe, ...]  # the first is the one that needs no budget
    budget: int | None = None  # bytes of the arena
    _chosen: dict[tuple[int, ...], Choice] = field(default_factory=dict, compare=False, repr=False)

    @property
    def buffers(self) -> tuple[BufferSpec, ...]:
        """Those of the first recipe."""
        return self.recipes[0].buffers

    @property
    def source(self) -> str:
        """That of the first recipe."""
        return self.recipes[0].source

    @property
    def state_count(self) -> int:
        """How many buffers are state, in every recipe."""
        return self.recipes[0].state_count

    def state_shapes(self, sizes: Mapping[str, int]) -> list[tuple[int, ...]]:
        """The shapes of the donated inputs."""
        shapes = [p.type.shape for p in self.inputs if p.donated]
        return [
            tuple([d if isinstance(d, int) else dims.evaluate(d, sizes) for d in shape])
            for shape in shapes
        ]

    def choose(self, sizes: Mapping[str, int], within: int | None = None) -> Choice:
        """The recipe for `sizes` and how it is bound: the cheapest within the program's budget, or
        within another one.  Raises BudgetError where none is."""
        budget = self.budget if within is None else within
        key = (-1 if budget is None else budget, *(sizes[s.name] for s in self.symbols))
        found = self._chosen.get(key)
        if found is None:
            given = {s.name: sizes[s.name] for s in self.symbols}
            found = choose(self.recipes, given, budget)
            while len(self._chosen) >= _KEPT:
                self._chosen.pop(next(iter(self._chosen)))
            self._chosen[key] = found
        if budget is not None and found.height > budget:
            raise self._refusal(found, budget)
        return found

    def frontier(self, sizes: Mapping[str, int]) -> list[Choice]:
        """What there is to choose from at `sizes`, without a budget: from the cheapest way to run
        to the one with the lowest arena."""
        return frontier(self.recipes, {s.name: sizes[s.name] for s in self.symbols})

    def _refusal(self, lowest: Choice, budget: int) -> BudgetError:
        placed = self._placed(lowest)
        from retrograde.compiler.plan.step_bound import operation_at

        start = lowest.recipe.fullest(lowest.sizes)
        largest = max((b for b in placed if _lives(b, start)), key=lambda b: b.bytes)
        most = " ".join(filter(None, (largest.name or largest.kind, largest.place)))
        operation = operation_at(lowest.recipe.schedule, start)
        bound, needs = self.order_bound(lowest.sizes)
        known = (
            "they meet"
            if bound == lowest.height
            else f"between {bound} and {lowest.height} nobody knows"
        )
        at = ", ".join(f"{s.name}={lowest.sizes[s.name]}" for s in self.symbols)
        return BudgetError(
            f"{where()}{self.name} does not fit into {budget} bytes{f' at {at}' if at else ''}: "
            f"the smallest peak that can be scheduled is {lowest.height} bytes, for {operation}, "
            f"and no order of its steps needs less than {bound}, for {needs} ({known}). The most "
            f"of the peak is {most} ({largest.bytes} bytes). Give a larger budget, or smaller "
            "sizes",
            minimum_bytes=lowest.height,
            lower_bound_bytes=bound,
            operation=operation,
        )

    def order_bound(self, sizes: Mapping[str, int]) -> tuple[int, str]:
        """Bytes that no order of the steps of any recipe is below, each step run as often as one
        likes, and the operation that needs them."""
        known = {s.name: sizes[s.name] for s in self.symbols}
        return min(r.order_bound(known) for r in self.recipes if r.serves(known))

    def buffer_bytes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The size of each buffer of the recipe for `sizes`."""
        found = self.choose(sizes)
        return found.recipe.buffer_bytes(found.sizes)

    def layout(self, sizes: Mapping[str, int]) -> tuple[list[int], int, int]:
        """(the offset of each buffer, the bytes of state, the height of the arena)."""
        found = self.choose(sizes)
        return found.recipe.layout(found.sizes)

    def _placed(self, found: Choice) -> tuple[PlacedBuffer, ...]:
        offsets, *_ = found.recipe.layout(found.sizes)
        size = found.recipe.buffer_bytes(found.sizes)
        return tuple(
            PlacedBuffer(b.name, b.kind, n, o, b.start, b.end, b.place)
            for b, n, o in zip(found.recipe.buffers, size, offsets, strict=True)
        )

    def plan(self, sizes: Mapping[str, int]) -> MemoryPlan:
        """The memory plan at the given sizes."""
        found = self.choose(sizes)
        _, state, height = found.recipe.layout(found.sizes)
        placed = self._placed(found)
        outputs = sum(
            dims.evaluate(self.outputs[i].type.bytes, sizes) for i in self.returned
        )
        bound = found.recipe.most_live(found.sizes)
        return MemoryPlan(
            dict(sizes), height, state, outputs, bound, placed, found.recipe.name,
            {name: n for name, n in found.sizes.items() if name not in sizes},
            sum(found.again.values()), self.order_bound(sizes)[0],
        )  # fmt: skip

    def peak(self) -> Peak:
        """The height of the arena in closed form over the symbols."""
        return Peak(self)


def standing(peak: int, bound: int) -> str:
    """A peak beside what is proven that no peak is below, in a word."""
    if peak <= bound:
        return "optimal"
    if peak > 2 * bound:
        return "heuristic"
    # Rounded up: "within" is a promise.
    return f"within {math.ceil((peak / bound - 1) * 1000) / 10:.1f}%"


def _lives(b: PlacedBuffer, time: int) -> bool:
    return b.start <= time < b.end


@dataclass(frozen=True)
class Peak:
    """The peak of a program, in bytes: `str()` shows the closed form, a call gives the number.

    Where the form has more terms than can be kept (`form.exact` is false) the text is a lower
    estimate; the call is exact always, by evaluating the plan.  With a budget there is a form for
    each recipe, and a call tells that of the recipe which the budget picks."""

    program: Program

    @property
    def forms(self) -> tuple[PeakForm, ...]:
        """By recipe."""
        return tuple(recipe.form for recipe in self.program.recipes)

    @property
    def form(self) -> PeakForm:
        """The form of the first recipe."""
        return self.program.recipes[0].form

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
        program = self.program
        if len(program.recipes) == 1 and self.form.exact and program.budget is None:
            return self.form.at(exact)
        return self.program.layout(exact)[2]

    def __str__(self) -> str:
        if len(self.program.recipes) == 1:
            return str(self.form)
        named = zip(self.program.recipes, self.forms, strict=True)
        return "; ".join(f"{recipe.name}: {form}" for recipe, form in named)
