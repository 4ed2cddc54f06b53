"""Compiled programs on numbers: a program, one of its recipes, sizes, inputs -> every output.

Invariant: what runs has memory and state of its own; nothing of the program that is certified
changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.native import NativeProgram
from retrograde.compiler.codegen.numpy import print_schedule
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph, Value
from retrograde.compiler.pipeline import CompiledRecipe, Options, compile_graph
from retrograde.compiler.plan.build import plan_program
from retrograde.compiler.plan.choice import choose
from retrograde.compiler.plan.recipe import Recipe
from retrograde.compiler.program import Program
from retrograde.runtime.executable import Executable
from retrograde.runtime.protocol import Device

Array = npt.NDArray[Any]

UNLIMITED = 2**60  # a budget that everything fits: the ladder has all of its recipes then


@dataclass(frozen=True)
class Made:
    """A program with how it was made, on a device."""

    label: str
    program: Program
    recipes: Sequence[CompiledRecipe]
    device: Device
    options: Options

    def named(self, index: int) -> str:
        """What one of the recipes is called in a certificate."""
        if len(self.recipes) == 1:
            return self.label
        return f"{self.label}, {self.recipes[index].recipe.name}"


def compiled(label: str, graph: Graph, device: Device, options: Options) -> Made:
    """`graph` compiled anew for `device`."""
    made = compile_graph(graph, options)
    return Made(label, made.program, made.recipes, device, options)


def choices(made: Made, index: int, sizes: Mapping[str, int]) -> Iterator[tuple[Program, Any]]:
    """The recipe alone as a program, bound in each of the ways it has at `sizes`: as long segments
    as there are, and as little memory as it can do with."""
    recipe = made.recipes[index].recipe
    if not recipe.serves(sizes):
        return
    seen: list[dict[str, int]] = []
    for within in (None, 1) if recipe.loops else (None,):
        height = choose((recipe,), sizes, within).height if within else None
        program = replace(made.program, recipes=(recipe,), budget=height, _chosen={})
        found = program.choose(sizes)
        if dict(found.sizes) not in seen:
            seen.append(dict(found.sizes))
            yield program, found


def outputs(
    program: Program, device: Device, sizes: Mapping[str, int], inputs: Sequence[Array]
) -> list[Array]:
    """All outputs, state included, of one run on memory filled with NaN."""
    executable = Executable(program, device, poison=True)
    donated = [i for i, p in enumerate(program.inputs) if p.donated]
    replaced = [o for o, p in enumerate(program.outputs) if p.donated]
    executable.set_state([inputs[i] for i in donated])
    taken = set(donated)
    results = executable.run([x for i, x in enumerate(inputs) if i not in taken], sizes)
    out: dict[int, Array] = dict(zip(program.returned, results, strict=True))
    # The outputs that replace state stand in the order of the state they replace.
    out.update(zip(replaced, executable.state(), strict=True))
    return [np.asarray(out[o]) for o in range(len(program.outputs))]


def in_steps(
    graph: Graph, like: CompiledRecipe, sizes: Mapping[str, int], device: Device, options: Options
) -> tuple[list[Value], Program]:
    """The ordered graph as a program that hands out every value, each in a place of its own."""
    values = [v for node in graph.nodes for v in node.outputs]
    probe = graph.replace(
        outputs=tuple(values), output_names=("",) * len(values), aliases=(), derivatives=()
    )
    native = options.native
    planned = plan_program(
        probe, sizes, False, options.threads, native, blas=options.blas
    )
    symbols: tuple[Symbol, ...] = like.recipe.symbols
    printed = (
        planned.schedule, planned.liveness, planned.places, [s.name for s in symbols], False
    )  # fmt: skip
    if native:
        made = NativeProgram()
        source, kernels = made.print(*printed), made.files
    else:
        source, kernels = print_schedule(*printed), ()
    recipe = Recipe(
        "probe", symbols, planned.buffers, planned.orientation, source, kernels, reuse=False,
        schedule=planned.schedule,
    )  # fmt: skip
    return values, Program(
        graph.name, symbols, planned.inputs, planned.outputs, planned.returned, (recipe,)
    )


def plan_sizes(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a recipe, its own symbols among them."""
    return dict(choose((recipe,), sizes, None).sizes)

