"""What a compiled program tells about itself: plans, peaks, reports, stages, sources, drawings.

Invariant: nothing here runs the program, and every number is the one that runs go by (or, of ragged
loops, went by).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrograde.compiler.errors import BudgetError, DataError, ShapeError, UnsupportedError
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.program import BufferSpec, MemoryPlan, Peak, Program
from retrograde.execution import Runnable, in_bytes
from retrograde.specs import size_of

if TYPE_CHECKING:
    from retrograde.certificates.certificate import Certificate
    from retrograde.certificates.subject import Subject
    from retrograde.compiler.inspect.traffic import Traffic

_FARTHEST = 2**40


class Explained:
    """A compiled program, as `_runnable` gives it and for the sizes `_at`."""

    _at: dict[str, int]

    def _runnable(self) -> Runnable:
        raise NotImplementedError

    @property
    def _program(self) -> Program:
        return self._runnable().executable.program

    def plan(self, **sizes: int) -> MemoryPlan:
        """The memory of a run at these sizes: `plan(B=32, T=256)`.

        Sizes left out are those of `at`.  Raises ShapeError for a size that is missing, unknown or
        out of its bounds."""
        return self._program.plan(self._sizes(sizes))

    def peak(self) -> Peak:
        """The peak in closed form: `str(peak())`, and `peak()(B=32, T=256)` in bytes."""
        return self._program.peak()

    def largest(self, symbol: str, budget: int | str, **sizes: int) -> int:
        """The largest `symbol` whose peak is within `budget` (bytes, or "64MiB"), the others given.

        Raises BudgetError where not even the smallest is."""
        limit = in_bytes(budget)
        known = {s.name: s for s in self._program.symbols}
        if symbol not in known:
            raise ShapeError(f"{where()}there is no size {symbol!r}; there are {_listed(known)}")
        low = known[symbol].min

        def fits(n: int) -> bool:
            try:
                self._program.choose(self._sizes({**sizes, symbol: n}), limit)
            except BudgetError as error:
                if n == low:
                    raise BudgetError(
                        f"{where()}{symbol} = {n}, the smallest there is, needs "
                        f"{error.minimum_bytes} bytes, and the budget is {limit}",
                        minimum_bytes=error.minimum_bytes,
                        lower_bound_bytes=error.lower_bound_bytes,
                        operation=error.operation,
                    ) from None
                return False
            return True

        fits(low)
        high = known[symbol].max
        if high is None:
            high = max(low, 1)
            while high < _FARTHEST and fits(high):
                high *= 2
        while low < high:  # the peak never falls as a size grows
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def report(self, **sizes: int) -> str:
        """What the compiler made of the function, and the memory at these sizes (or `at`).

        After a run over a ragged batch, also how many operations that run left out."""
        from retrograde.compiler.inspect.decisions import decisions
        from retrograde.compiler.inspect.report import report  # what few programs are asked for

        run, program = self._runnable(), self._program
        given = {**self._at, **sizes}
        complete = all(s.name in given for s in program.symbols)
        plan = self.plan(**sizes) if sizes or complete else None
        recipe = program.choose(plan.sizes).index if plan is not None else 0
        planned = run.recipes[recipe].planned
        return report(
            program, run.ladder[recipe], plan, run.executable.ragged(recipe),
            (planned.schedule, planned.liveness),
            decisions(planned, run.ladder[recipe]["order"]) if plan is not None else (),
        )  # fmt: skip

    def traffic(self, **sizes: int) -> Traffic:
        """The bytes that one run reads and writes at these sizes (or `at`): `fused` as it is,
        `unfused` if every op were a step of its own."""
        run, plan = self._runnable(), self.plan(**sizes)
        graph = run.ladder[self._program.choose(plan.sizes).index]["order"]
        from retrograde.compiler.inspect.traffic import traffic

        return traffic(graph).at({**plan.sizes, **plan.plan_sizes})

    def ir(self, stage: str = "trace") -> Graph:
        """The graph at a stage: "trace", or after one of the passes."""
        stages = self._runnable().stages
        if stage not in stages:
            raise UnsupportedError(f"{where()}no stage {stage!r}: there are {', '.join(stages)}")
        return stages[stage]

    def source(self) -> str:
        """The generated program: the schedule in Python and, where it launches kernels, their C."""
        recipe = self._program.recipes[0]
        if not recipe.kernels:
            return recipe.source
        from retrograde.compiler.codegen.kernel_file import shown

        return f"{recipe.source}\n{shown(recipe.kernels)}"

    def inspect(self, path: str | os.PathLike[str], stage: str = "trace") -> None:
        """Draws the graph of a stage into `path`: an .svg picture, or .dot for graphviz."""
        kind = Path(path).suffix
        from retrograde.compiler.inspect.dot import to_dot
        from retrograde.compiler.inspect.svg import to_svg

        drawings = {".svg": to_svg, ".dot": to_dot}
        if kind not in drawings:
            raise UnsupportedError(f"{where()}cannot draw {str(path)!r}: use .svg or .dot")
        _write(path, drawings[kind](self.ir(stage)))

    def timeline(self, path: str | os.PathLike[str], **sizes: int) -> None:
        """Draws the arena at these sizes (or `at`) into `path`, an .svg picture: steps to the
        right, addresses up, what lies there coloured by its kind, with the peak and the budget."""
        from retrograde.compiler.inspect.kinds import bars
        from retrograde.compiler.inspect.timeline import timeline

        if Path(path).suffix != ".svg":
            raise UnsupportedError(f"{where()}cannot draw the arena as {str(path)!r}: use .svg")
        run, plan, program = self._runnable(), self.plan(**sizes), self._program
        found = program.choose(plan.sizes)
        at = ", ".join(f"{name}={size}" for name, size in found.sizes.items())
        title = f"{program.name}{f' at {at}' if at else ''}: {plan.recipe}"
        shown = bars(found.recipe, run.recipes[found.index].planned, found.sizes)
        _write(path, timeline(title, shown, plan.peak_bytes, program.budget))

    def explain(self, name: str, **sizes: int) -> str:
        """What is called `name`, and what was decided about it: an input, an output, a module path
        (`blocks.0.mlp`), an op (`dot_general`) or a source line (`model.py:12`).

        Of each of its values: whether it is kept for the way back, computed again, fused or in
        place of another one, and why, with bytes and operations at these sizes (or `at`), or in
        closed form where no sizes are known.  Raises UnsupportedError with the nearest names for a
        name that fits nothing."""
        from retrograde.compiler.inspect.decisions import decisions
        from retrograde.compiler.inspect.explain import matching, names, refusal, told

        run, program = self._runnable(), self._program
        given = {**self._at, **sizes}
        known: dict[str, int] | None = None
        index = 0
        if sizes or all(s.name in given for s in program.symbols):
            plan = self.plan(**sizes)
            known = {**plan.sizes, **plan.plan_sizes}
            index = program.choose(plan.sizes).index
        made = run.recipes[index]
        found = decisions(made.planned, made.stages["order"])
        graph = self.ir("trace")
        text = _explained(graph, name)
        chosen = matching(found, name)
        if text is None and not chosen:
            raise refusal(name, names(graph, found))
        told_lines = (
            told(name, chosen, made.recipe.name, program.budget, known) if chosen else []
        )
        lines = [text] if text else []
        lines += [
            f"memory: {b.kind}, {_held(b)}" for b in made.recipe.buffers if b.name == name
        ]
        return "\n".join([*lines, *told_lines])

    def certify(
        self,
        *args: Any,
        sizes: Sequence[Mapping[str, int]] | None = None,
        directions: int = 2,
        devices: str | Sequence[str] | None = None,
        recipes: bool = True,
        trust_custom: bool = False,
        seed: int = 0,
        claims: str | Sequence[str] = (),
        **batch: Any,
    ) -> Certificate:
        """Compares the program with what was traced, and tells which part is at fault if any is.

        Gradients are compared with finite differences in float64, in random `directions`; the graph
        after every pass, in float64, with the traced graph; then the memory plan, and the programs:
        this one and others made of the same graph, fused and not, on `devices` (its own and "numpy"
        if not given), with `recipes` on "numpy" with each that a budget may choose.  At random
        inputs of small `sizes`, [{"B": 3, "T": 5}], or on the arguments (of a training step: the
        batch) that are given.  A gradient of `custom_vjp` that is not the derivative of its
        function is a fault; with `trust_custom` it is taken as declared.  Nothing is changed by it,
        the state of a training step neither.

        Where the program has a time axis, it is decided from the graph whether outputs (in a step,
        what a loss reads) see earlier places alone, "causality", and no other segment, "segment
        isolation" (of an input called segments): see `Certificate.proofs`.  One that is among
        `claims` and does not hold is a fault.

        Raises nothing where the program is wrong: see `Certificate.ok`, `.blame`, `.check()`.
        Raises DataError where no inputs are found that the function takes: give some then."""
        from retrograde.certificates.check import certificate  # few programs are certified

        subject = self._subject(args, batch)
        return certificate(
            subject, sizes, directions, devices, trust_custom, seed, recipes, claims
        )

    def _subject(self, args: tuple[Any, ...], batch: Mapping[str, Any]) -> Subject:
        """What is certified, with the examples given for it."""
        raise NotImplementedError

    def _sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        given = {**self._at, **sizes}
        known = {s.name: s for s in self._program.symbols}
        for name in sizes:
            if name not in known:
                raise ShapeError(f"{where()}there is no size {name!r}; there are {_listed(known)}")
        for name, symbol in known.items():
            if name not in given:
                raise ShapeError(f"{where()}the size {name} is missing: give plan({name}=…)")
            given[name] = size_of(name, given[name])
            if given[name] < symbol.min or (symbol.max is not None and given[name] > symbol.max):
                raise ShapeError(
                    f"{where()}{name} = {given[name]} is out of the bounds of {symbol}"
                )
        return {name: given[name] for name in known}


def _write(path: str | os.PathLike[str], picture: str) -> None:
    try:
        Path(path).write_text(picture, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{where()}cannot write {str(path)!r} ({error.strerror}): give a file in a folder "
            "that exists and can be written"
        ) from error


def _held(b: BufferSpec) -> str:
    if b.kind == "state":
        return "always there; its new value is written where it lies"
    return f"there from step {b.start} to {b.end - 1}"


def _listed(names: Mapping[str, Any]) -> str:
    shown = list(names)[:12]
    more = len(names) - len(shown)
    return (", ".join(shown) + (f" and {more} more" if more > 0 else "")) or "none"


def _explained(graph: Graph, name: str) -> str | None:
    for kind, values, called in (
        ("input", graph.inputs, graph.input_names),
        ("output", graph.outputs, graph.output_names),
    ):
        if name in called:
            return _value_explained(graph, name, kind, values[called.index(name)])
    return None


def _value_explained(graph: Graph, name: str, kind: str, v: Value) -> str:
    lines = [f"{name}: {kind}, {v.type}, {v.type.bytes} bytes"]
    replaced = {o: i for o, i in graph.aliases}
    if kind == "output" and v in graph.outputs and graph.outputs.index(v) in replaced:
        lines.append(f"  replaces {graph.input_names[replaced[graph.outputs.index(v)]]}")
    made = graph.producers().get(v)
    if made is not None:
        lines += ["made by", _line(made)]
    used = graph.users().get(v, [])
    lines += (
        [f"used by {len(used)} nodes", *(_line(node) for node in used)] if used else ["not used"]
    )
    return "\n".join(lines)


def _line(node: Node) -> str:
    types = ", ".join(str(v.type) for v in node.outputs)
    role = "" if node.origin.role == "primal" else f"  ({node.origin.role})"
    return f"  {types} = {node.op.name}  {node.place}{role}".rstrip()
