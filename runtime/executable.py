"""Running programs: arrays in, arrays out.

An `Executable` owns one arena.  `run` binds sizes (once per size, kept), copies the inputs in,
runs the schedule and hands out fresh arrays.  Invariant: state lies at the bottom of the arena at
the same offsets for every size, and a run that fails before its updates leaves it as it was.
"""

from __future__ import annotations

import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.program import (
    MemoryPlan,
    Peak,
    Program,
    paused_collection,
    with_headroom,
)
from retrograde.runtime import red_zones
from retrograde.runtime.host_memory import give_back
from retrograde.runtime.protocol import Bound, Device, HostArray

KEPT_SIZES = 32  # bound sizes that are kept; more are bound again when they come back


def _apart(arrays: Sequence[HostArray]) -> list[HostArray]:
    """Copies in a mapping of their own: its pages go back to the system with the last of them."""
    places, total = [], 0
    for x in arrays:
        places.append(total)
        total += -(-x.nbytes // 64) * 64
    memory = mmap.mmap(-1, max(total, 1))
    copies = []
    for x, place in zip(arrays, places, strict=True):
        copy: HostArray = np.ndarray(x.shape, x.dtype, memory, place if x.nbytes else 0)
        if not _is_clear(x):  # what is mapped has no pages before it is written to
            np.copyto(copy, x)
        copies.append(copy)
    return copies


def _is_clear(x: HostArray) -> bool:
    """Whether all bytes are 0, as of moments at the start; where that is found at once."""
    if not x.flags.c_contiguous or x.dtype.hasobject:
        return False
    of_bytes = x.reshape(-1).view(np.uint8)
    return not of_bytes[:4096].any() and not of_bytes.any()


@dataclass
class _Bound:
    """The program at one size."""

    run: Any
    inputs: list[Any]
    outputs: list[Any]
    height: int
    state_bytes: int
    recipe: int
    sizes: Mapping[str, int]  # with the plan's


class Executable:
    """A program on a device.  One run at a time; others wait.  `clone()` for more."""

    def __init__(self, program: Program, device: Device, poison: bool = False) -> None:
        self.program = program
        self.device = device
        self.poison = poison
        self._arena: Any = None
        self._bound: OrderedDict[tuple[int, ...], _Bound] = OrderedDict()
        self._lock = threading.Lock()
        self._loaded: dict[int, Callable[..., Bound]] = {}  # by recipe
        self._donated = [i for i, p in enumerate(program.inputs) if p.donated]
        self._given = [i for i, p in enumerate(program.inputs) if not p.donated]
        self._held: list[HostArray] | None = None  # state that waits for the first binding
        self._shapes: list[tuple[int, ...]] | None = None  # of the state

    @property
    def arena_bytes(self) -> int:
        """What is allocated now."""
        return 0 if self._arena is None else int(self._arena.bytes)

    def run(self, arrays: Sequence[HostArray], sizes: Mapping[str, int]) -> list[HostArray]:
        """Runs on the inputs that are not state, in order; returns the outputs likewise."""
        if len(arrays) != len(self._given):
            raise ShapeError(f"{self.program.name} takes {len(self._given)} arrays: {len(arrays)}")
        with self._lock:
            with paused_collection():  # what is bound stays
                bound = self._bind(sizes)
            if self.poison:
                transient = bound.height - bound.state_bytes
                self._arena.fill(bound.state_bytes, transient)
            for i, array in zip(self._given, arrays, strict=True):
                self.device.write(bound.inputs[i], array)
            self._arena.ragged.clear()
            zones = red_zones.of(self.program.recipes[bound.recipe], bound.sizes)
            red_zones.fill(self.device, self._arena, zones)
            try:
                bound.run()
            except (DataError, IndexError, ValueError) as error:
                if getattr(error, "placed", False):  # it names its line already
                    raise
                raise DataError(f"{self._place(error)}: {error}") from error
            red_zones.check(self.program.name, self.device, self._arena, zones)
            return [self.device.read(bound.outputs[o]) for o in self.program.returned]

    def ragged(self, recipe: int = 0) -> dict[int, tuple[int, ...]]:
        """What the ragged loops of the last run ran, if it was one by this recipe, by their number
        in it: (rows that ran, rows of all steps, steps that ran, steps)."""
        if not self._bound or next(reversed(self._bound.values())).recipe != recipe:
            return {}
        return dict(self._arena.ragged)

    def state(self) -> list[HostArray]:
        """Copies of the donated inputs as they are now."""
        with self._lock:
            if self._held is not None:
                return [x.copy() for x in self._held]
            if not self._donated:
                return []
            if not self._bound:
                raise DataError(f"{self.program.name}: the state was never set")
            bound = next(reversed(self._bound.values()))
            return [self.device.read(bound.inputs[i]) for i in self._donated]

    def set_state(self, arrays: Sequence[HostArray]) -> None:
        """Replaces the donated inputs; shapes and dtypes are the caller's to check."""
        if len(arrays) != len(self._donated):
            raise ShapeError(f"{len(self._donated)} state arrays are needed, got {len(arrays)}")
        with self._lock:
            if not self._bound or self._shapes != [x.shape for x in arrays]:
                self._held = _apart(arrays)
                self._bound.clear()
                return
            bound = next(reversed(self._bound.values()))
            for i, x in zip(self._donated, arrays, strict=True):
                self.device.write(bound.inputs[i], x)

    def bind(self, sizes: Mapping[str, int]) -> None:
        """Prepares runs at `sizes`, as the first of them would; of what has state, once it is set.

        Raises what that run would raise about the sizes."""
        with self._lock, paused_collection():
            self._bind(sizes)

    def plan(self, sizes: Mapping[str, int]) -> MemoryPlan:
        """The memory plan at `sizes`."""
        return self.program.plan(sizes)

    def peak(self) -> Peak:
        """The peak in closed form."""
        return self.program.peak()

    def clone(self) -> Executable:
        """Another executable of the same program, with an arena and a copy of the state."""
        other = Executable(self.program, self.device, self.poison)
        if self._donated and (self._bound or self._held is not None):
            other.set_state(self.state())
        return other

    def _bind(self, sizes: Mapping[str, int]) -> _Bound:
        key = tuple(sizes[s.name] for s in self.program.symbols)
        found = self._bound.get(key)
        if found is not None:
            self._bound.move_to_end(key)
            return found
        made: _Bound = with_headroom(self._bind_anew, key, sizes)
        return made

    def _bind_anew(self, key: tuple[int, ...], sizes: Mapping[str, int]) -> _Bound:
        self._check_state(sizes)
        choice = self.program.choose(sizes)
        recipe = choice.recipe
        offsets, state, height = recipe.layout(choice.sizes)
        bytes = recipe.buffer_bytes(choice.sizes)
        arena = self._arena_of(height)
        values = [choice.sizes[s.name] for s in recipe.symbols]
        run, inputs, outputs = self.device.bind(
            self._load(choice.index), arena, offsets, bytes, *values
        )
        if arena is not self._arena:  # nothing is given up before the new binding stands
            if self._arena is not None and self._held is None:  # else state comes from there
                self.device.copy_arena(self._arena, arena, state)
            self._bound.clear()
            self._arena = arena
        bound = self._bound[key] = _Bound(
            run, inputs, outputs, height, state, choice.index, choice.sizes
        )
        while len(self._bound) > KEPT_SIZES:
            self._bound.popitem(last=False)
        if self._held is not None:
            for i, x in zip(self._donated, self._held, strict=True):
                self.device.write(inputs[i], x)
            self._held = None
        return bound

    def _place(self, error: BaseException) -> str:
        """The model's line that a statement of the schedule stands for: its nearest comment."""
        trace = error.__traceback__
        source, line = "", 0
        files = {self._file(i): recipe.source for i, recipe in enumerate(self.program.recipes)}
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if name in files:
                source, line = files[name], trace.tb_lineno
            trace = trace.tb_next
        for text in reversed(source.splitlines()[:line]):
            if text.lstrip().startswith("# "):
                return text.strip("# ")
        return self.program.name

    def _file(self, recipe: int) -> str:
        name = "".join(c if c.isprintable() else " " for c in self.program.name)
        return f"<{name}>" if recipe == 0 else f"<{name} {recipe}>"

    def _load(self, recipe: int) -> Callable[..., Bound]:
        """The `bind` function of a recipe's source, compiled once."""
        found = self._loaded.get(recipe)
        if found is None:
            made = self.program.recipes[recipe]
            found = self.device.load(made.source, self._file(recipe), made.kernels)
            self._loaded[recipe] = found
            give_back()
        return found

    def _arena_of(self, height: int) -> Any:
        """The arena, or a new one where it cannot have `height` bytes."""
        arena = self._arena
        if arena is not None and (arena.bytes >= height or arena.grow(height)):
            return arena
        return self.device.allocate(height)

    def _check_state(self, sizes: Mapping[str, int]) -> None:
        """State keeps its place in the arena, so what its shapes depend on keeps its size."""
        shapes = self.program.state_shapes(sizes)
        before = self._shapes if self._held is None else [x.shape for x in self._held]
        for i, shape, old in zip(self._donated, shapes, before or shapes, strict=True):
            if shape != old:
                port = self.program.inputs[i]
                raise ShapeError(
                    f"{self.program.name}: the state {port.name or i} is {port.type} with shape "
                    f"{list(old)}, at these sizes it has shape {list(shape)}: set_state first"
                )
        self._shapes = shapes
