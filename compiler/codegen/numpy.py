"""The NumPy printer: a schedule -> readable Python over an array module.

The text defines `bind(memory, at, bytes, SYMBOLS)`, which makes every view of the arena for one
size and returns `run`, the step itself, with the views of inputs and outputs.  Invariant: `run`
writes every result into the arena through `out=`; names are generated, never taken from user text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from retrograde.compiler.codegen.ragged import Local, ragged_loop, times_on_rows
from retrograde.compiler.codegen.spelling import INDENT, Spelling, comment, number
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.plan.liveness import Liveness, walk
from retrograde.compiler.plan.steps import (
    BranchStep,
    CopyStep,
    FusedStep,
    LoopStep,
    MatmulStep,
    OpStep,
    PartStep,
    ReplayStep,
    Rows,
    Schedule,
    Segments,
    Statement,
    Step,
    SweepStep,
    Tile,
    WhileStep,
)
from retrograde.compiler.plan.views import Literal, Operand, Storage, Turn, View


def print_schedule(
    schedule: Schedule, liveness: Liveness, places: Mapping[Storage, int], symbols: Sequence[str],
    poison: bool = False,
) -> str:  # fmt: skip
    """The Python source of `schedule`, whose storages have the given indices in `at`.

    With `poison`, a buffer is overwritten with a pattern as soon as its last reader is done."""
    return print_with(Printer, schedule, liveness, places, symbols, poison)


def print_with(
    make: Callable[..., Printer], schedule: Schedule, liveness: Liveness,
    places: Mapping[Storage, int], symbols: Sequence[str], poison: bool, **more: Any,
) -> str:  # fmt: skip
    """The Python source of `schedule` by a printer that `make` makes, given `more`."""
    times = {id(step): (start, end) for start, step, end in walk(schedule.steps)}
    times.update(times_on_rows(schedule, times))
    spell = Spelling(symbols)
    deaths = _deaths(liveness, places) if poison else {}
    printer = make(liveness, places, times, deaths, spell, **more)
    loops = (s for _, s, _ in walk(schedule.steps) if isinstance(s, LoopStep) and s.mask)
    printer.ragged = {id(loop): number for number, loop in enumerate(loops)}
    body = printer.steps(schedule.steps, 2)
    inputs = [printer.name(v) for v in schedule.inputs]
    outputs = [printer.result(v) for v in schedule.outputs]
    arguments = "".join(f", {s}" for s in spell.names)
    # The branch of an `assert` keeps the block that `bind` begins with short: CPython puts a
    # MAKE_CELL for each variable that `run` reads there, one by one, and moves the rest each time.
    lines = [
        f'"""The schedule of {_safe(schedule.name)}, {len(schedule.steps)} steps."""',
        "",
        "from retrograde.compiler.codegen.cupy_support import support",
        "",
        "",
        f"def bind(memory, at, bytes{arguments}):",
        f"{INDENT}assert len(at) == {len(places)}",
        f"{INDENT}rt = support(memory, bytes)",
        f"{INDENT}xp = rt.xp",
        *(INDENT + line for line in printer.prologue),
        *(
            f"{INDENT}rt.require({spell.size(c.lower)}, {spell.size(c.upper)}, {c.message!r})"
            for c in schedule.checks
        ),
        *(INDENT + line for line in printer.bindings),
        "",
        f"{INDENT}def run():",
        *(body or [2 * INDENT + "pass"]),
        "",
        f"{INDENT}return run, [{', '.join(inputs)}], [{', '.join(outputs)}]",
        "",
    ]
    return "\n".join(lines)


def _deaths(liveness: Liveness, places: Mapping[Storage, int]) -> dict[int, list[int]]:
    """The buffers to poison after each position."""
    out: dict[int, list[int]] = {}
    for storage in liveness.buffers():
        if storage.kind != "state":
            out.setdefault(liveness.lives[storage].last, []).append(places[storage])
    return out


def _safe(text: str) -> str:
    return "".join(c for c in text if c.isalnum() or c in "._- ")


@dataclass
class Printer:
    """Names for views, constants and tile loops, and the statements that make them."""

    liveness: Liveness
    places: Mapping[Storage, int]
    times: Mapping[int, tuple[int, int]]  # first and last position of each step, by identity
    dead: Mapping[int, list[int]]  # the buffers to poison after each position
    spell: Spelling
    prologue: tuple[str, ...] = ()
    bindings: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # by the expression that makes it
    heading: str = ""
    turns: dict[int, str] = field(default_factory=dict)  # the variables of loops, by identity
    numbers: Iterator[int] = field(default_factory=itertools.count)
    outer: Printer | None = None  # of the code around, for code over one segment
    local: Local | None = None  # what the turns of a ragged loop bind once for each number of rows
    ragged: dict[int, int] = field(default_factory=dict)  # numbers of ragged loops, by identity

    def bind(self, prefix: str, expression: str) -> str:
        """The name of `expression`, evaluated once at binding."""
        if self.local is not None and self.local.holds(expression):
            return self.local.bind(prefix, expression, self.fresh)
        found = self.names.get(expression)
        if found is None:
            found = self.names[expression] = self.fresh(prefix)
            self.bindings.append(f"{found} = {expression}")
        return found

    def fresh(self, prefix: str) -> str:
        """A name that nothing else has."""
        return f"{prefix}{next(self.numbers)}"

    def name(self, x: Operand) -> str:
        """The variable that holds an operand; of what moves with a loop, the part of the turn."""
        if isinstance(x, Turn):
            return f"{self.name(whole_of(x))}[{self.turns[id(x.loop)]}, ...]"
        if isinstance(x, Literal):
            return self.bind("c", f"rt.constant({x.dtype.name!r}, {number(x.value)})")
        at = f"at[{self.places[self.liveness.home(x.storage)]}]"
        if not dims.same(x.offset, 0):
            at += f" + {x.dtype.bytes} * ({self.spell.size(x.offset)})"
        shape = self.spell.shape(x.shape)
        strides = ""
        if not x.contiguous:
            strides = f", {self.spell.shape([s * x.dtype.bytes for s in x.strides])}"
        return self.bind("v", f"rt.view({at}, {x.dtype.name!r}, {shape}{strides})")

    def result(self, x: Operand) -> str:
        """The variable that holds an output of the whole graph."""
        if isinstance(x, Literal):
            value = f"rt.full({x.dtype.name!r}, {self.spell.shape(x.shape)}, {number(x.value)})"
            return self.bind("c", value)
        return self.name(x)

    def steps(self, steps: Sequence[Step], depth: int) -> list[str]:
        lines: list[str] = []
        indent = INDENT * depth
        for step in steps:
            place = place_of(step.node)
            if place and place != self.heading:
                lines.append(f"{indent}# {place}")
                self.heading = place
            if isinstance(step, LoopStep):
                lines.extend(self._loop(step, depth))
            elif isinstance(step, BranchStep):
                lines.extend(self._branch(step, depth))
            elif isinstance(step, WhileStep):
                lines.extend(self._while(step, depth))
            elif isinstance(step, SweepStep):
                lines.extend(self._sweep(step, depth))
            elif isinstance(step, ReplayStep):
                lines.extend(self._replay(step, depth))
            else:
                lines.extend(indent + line for line in self._step(step))
            for position in sorted(set(self.times[id(step)])):
                for buffer in self.dead.get(position, ()):
                    lines.append(f"{indent}rt.poison(at, {buffer})")
        return lines

    def _step(self, step: Step) -> list[str]:
        if isinstance(step, CopyStep):
            target, operand = self.name(step.result), self.name(step.operand)
            return [f"xp.copyto({target}, {operand})  # {step.why}"]
        if isinstance(step, PartStep):
            return [self._part(step)]
        if isinstance(step, MatmulStep):
            a, b = map(self.name, step.operands)
            return [f"xp.matmul({a}, {b}, out={self.name(step.results[0])})"]
        if isinstance(step, FusedStep):
            return self._fused(step)
        assert isinstance(step, OpStep)
        return self._op(step.node, list(map(self.name, step.operands)),
                        list(map(self.name, step.results)))  # fmt: skip

    def _op(self, node: Node, operands: list[str], results: list[str]) -> list[str]:
        """One op, spelled by its kind."""
        op, attrs = node.op, node.attrs
        if op.numpy is not None:
            text = op.numpy.format(*operands, out=results[0], xp="xp", special="rt.special")
            return text.splitlines()
        lowering = _LOWERINGS.get(op.name)
        if lowering is not None:
            arguments = [*operands, *results]
            told = {k: x for k, x in attrs.items() if k != "within"}  # which the plan alone reads
            return [f"rt.{lowering}({', '.join([*arguments, *self.spell.keywords(told)])})"]
        # Evaluated by the op's reference; the results are copied into the arena.
        evaluate = self.bind("f", f"rt.evaluator({op.name!r}, {self.spell.mapping(attrs)})")
        return [f"rt.store([{', '.join(results)}], {evaluate}({', '.join(operands)}))"]

    def _fused(self, step: FusedStep) -> list[str]:
        literal = {i: self.name(x) for i, x in enumerate(step.operands) if isinstance(x, Literal)}
        read = {f"x{i}": x for i, x in enumerate(step.operands) if i not in literal}
        names = [
            *read,
            *(f"y{i}" for i in range(len(step.results))),
            *(f"t{i}" for i in range(len(step.scratch))),
        ]
        made = self._wholes(list(read.values()))
        written = self._wholes(step.results)
        spare = ", ".join(map(self.name, step.scratch))
        space = self.spell.shape(step.shape)
        arrays = [*read.values(), *step.results]
        moving = [i for i, x in enumerate(arrays) if isinstance(x, Turn)]
        more = f", moving={tuple(moving)}" if moving else ""
        tiles = self.bind(
            "tiles",
            f"rt.tiles({space}, [{made}], [{written}], [{spare}], {step.rows!r}, "
            f"{step.whole_rows}{more})",
        )
        if moving:
            turns = {self.turns[id(x.loop)] for x in arrays if isinstance(x, Turn)}
            assert len(turns) == 1, "a step moves with the loop that it is in"
            tiles += f".at({turns.pop()})"
        lines = [f"for {', '.join(names)}{',' if len(names) == 1 else ''} in {tiles}:"]
        for s in step.statements:
            lines.extend(INDENT + line for line in self._statement(s, literal))
        return lines

    def _wholes(self, views: Sequence[Operand]) -> str:
        return ", ".join(self.name(whole_of(x) if isinstance(x, Turn) else x) for x in views)

    def _statement(self, s: Statement, literal: Mapping[int, str]) -> list[str]:
        def variable(t: Tile) -> str:
            return literal[t.index] if t.role == "x" and t.index in literal else str(t)

        operands = [variable(t) for t in s.operands]
        node, out = s.node, str(s.result)
        if node.op.kind is Kind.ELEMENTWISE:
            assert node.op.numpy is not None
            text = node.op.numpy.format(*operands, out=out, xp="xp", special="rt.special")
            return text.splitlines()
        return [f"rt.row_{_ROWS[node.op.name]}({', '.join(operands)}, {out})"]

    def copies(self, pairs: Sequence[tuple[Operand, View]], indent: str) -> list[str]:
        return [f"{indent}xp.copyto({self.name(y)}, {self.name(x)})" for x, y in pairs]

    def _branch(self, step: BranchStep, depth: int) -> list[str]:
        indent = INDENT * depth
        lines = []
        for head, run in (
            (f"if rt.truth({self.name(step.flag)}):", step.then),
            ("else:", step.otherwise),
        ):
            self.heading = ""
            body = self.steps(run, depth + 1)
            lines += [indent + head, *(body or [f"{indent}{INDENT}pass"])]
        self.heading = ""
        return lines

    def _while(self, step: WhileStep, depth: int) -> list[str]:
        indent, inner = INDENT * depth, INDENT * (depth + 1)
        lines = [*self.copies(step.carries, indent), f"{indent}while True:"]
        self.heading = ""
        lines.extend(self.steps(step.condition, depth + 1))
        lines.append(f"{inner}if not rt.truth({self.name(step.flag)}):")
        lines.append(f"{inner}{INDENT}break")
        lines.extend(self.steps(step.body, depth + 1))
        lines.extend(self.copies(step.updates, inner))
        self.heading = ""
        return lines

    def _loop(self, step: LoopStep, depth: int) -> list[str]:
        if step.mask is not None:
            return ragged_loop(self, step, depth, self.ragged[id(step)])
        indent, inner = INDENT * depth, INDENT * (depth + 1)
        lines = self.copies(step.carries, indent)
        count = self.spell.size(step.length)
        turns = f"range({count} - 1, -1, -1)" if step.reverse else f"range({count})"
        turn = self.turns[id(step.turns)] = f"i{depth}"
        lines.append(f"{indent}for {turn} in {turns}:")
        lines.extend(self.turn(step, turn, depth + 1) or [f"{inner}pass"])
        return lines

    def turn(self, step: LoopStep | Rows, turn: str, depth: int) -> list[str]:
        """One turn of a loop, whose number is in the variable `turn`."""
        indent = INDENT * depth
        lines = []
        for stacked, place in step.slices:
            lines.append(f"{indent}xp.copyto({self.name(place)}, {self.name(stacked)}[{turn}])")
        self.heading = ""
        lines.extend(self.steps(step.body, depth))
        for result, stacked_result in step.stacked:
            target = f"{self.name(stacked_result)}[{turn}, ...]"
            lines.append(f"{indent}xp.copyto({target}, {self.name(result)})")
        lines.extend(self.copies(step.updates, indent))
        self.heading = ""
        return lines

    def _sweep(self, step: SweepStep, depth: int) -> list[str]:
        indent = INDENT * depth
        parts = self._parts(step.cut, step.advance)
        last = self._parts(step.cut, step.ahead) if step.ahead else parts
        carries = self._listed([place for _, place in step.carries[: len(step.kept)]])
        slots = self.spell.size(step.cut.slots)
        call = f"rt.sweep({parts}, {last}, {slots}, {carries}, {self._listed(step.kept)})"
        return [*self.copies(step.carries, indent), indent + call]

    def _replay(self, step: ReplayStep, depth: int) -> list[str]:
        indent = INDENT * depth
        runs = [self._parts(step.cut, run) for run in (step.advance, step.again, step.retreat)]
        slots = self.spell.size(step.cut.slots)
        call = f"rt.replay({', '.join(runs)}, {slots}, {self._listed(step.kept)})"
        return [*self.copies(step.carries, indent), indent + call]

    def _listed(self, views: Sequence[View]) -> str:
        return f"[{', '.join(map(self.name, views))}]"

    def _parts(self, cut: Segments, run: Sequence[Step]) -> str:
        """The name of a loop's segments, each a function that runs the steps over it.

        The views over a segment are made by a function of its number of steps, whose parameter
        hides the size of that name: once for whole segments, once for the rest."""
        self.heading = ""
        inner = replace(self, bindings=[], names={}, heading="", outer=self)
        body = inner.steps(run, 2)
        (size,) = dims.symbols(cut.segment)
        part = self.fresh("part")
        self.bindings += [
            f"def {part}({self.spell.size(dims.dim(size.name))}):",
            *(INDENT + line for line in inner.bindings),
            f"{INDENT}def run(start):",
            *(body or [2 * INDENT + "pass"]),
            f"{INDENT}return run",
        ]
        length, segment = self.spell.size(cut.length), self.spell.size(cut.segment)
        order = f"{cut.reverse}, {cut.rest_last}"
        return self.bind("parts", f"rt.parts({length}, {segment}, {order}, {part})")

    def _part(self, step: PartStep) -> str:
        assert self.outer is not None
        if not step.back:
            assert isinstance(step.operand, View)
            whole, place = self.outer.name(step.operand), self.name(step.result)
            return f"xp.copyto({place}, {whole}[start:start + len({place})])"
        whole = self.outer.name(step.result)
        steps = self.spell.size(step.node.attrs["segment"])
        return f"xp.copyto({whole}[start:start + {steps}], {self.name(step.operand)})"


def whole_of(x: Turn) -> View:
    """What a moving view covers in all turns, the turns first."""
    whole = x.stacked
    assert whole is not None
    if len(whole.shape) == len(x.shape):  # a window that moves within `stacked`
        return whole
    shape, strides = (whole.shape[0], *x.shape), (whole.strides[0], *x.strides)
    return View(x.storage, x.dtype, shape, strides, x.offset)


# Ops that the support library spells, by the name of its function.
_LOWERINGS = {
    "sum": "sum", "max": "max", "min": "min", "prod": "prod", "any": "any", "all": "all",
    "cumsum": "cumsum", "cumprod": "cumprod", "cummax": "cummax", "cummin": "cummin",
    "row_dot": "row_dot",
    "gather": "gather", "scatter_add": "scatter_add", "scatter_set": "scatter_set",
    "iota": "iota", "dim_value": "fill_size", "pad": "pad", "set_slice": "set_slice",
    "random_bits": "random_bits", "random_fold": "random_fold",
}  # fmt: skip
_ROWS = {"sum": "sum", "max": "max", "min": "min", "prod": "prod", "row_dot": "dot"}


def place_of(node: Node | None) -> str:
    if node is None:
        return ""
    role = "" if node.origin.role == "primal" else f" ({node.origin.role})"
    return comment(node.place + role) if node.place else ""
