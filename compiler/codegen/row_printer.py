"""What all printers of kernels over rows share: `RowKernel` -> the statements on one row.

A printer adds the head of its functions, how rows and the elements of a row are shared out, and how
a total is made.  Invariant: within a loop over elements, turns do not depend on each other but for
totals, and an element is read before a result at its place is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.codegen.cstyle import (
    Extents,
    expression,
    joined,
    literal,
    load,
    memory_type,
    product,
    register_type,
    rounded,
    store,
)
from retrograde.compiler.codegen.kernel import Array, RowKernel
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.plan.sweeps import Sweep
from retrograde.compiler.plan.views import Literal, View


@dataclass
class RowPrinter:
    """Names: x0 … are operands, y0 … results, z0 … the parts of sums over all rows, b0 … rows of
    working memory, v0 … values, n0 … sizes; x0r is where a row of x0 begins, r its number, i an
    element of it, s0_1 the second total of the first sweep; xs0 is gathered from where the indices
    in xi0_0 … tell, x0at a place in it."""

    kernel: RowKernel
    size: Extents = field(default_factory=Extents)
    names: dict[Value, str] = field(default_factory=dict)
    operands: dict[Value, tuple[str, Array]] = field(default_factory=dict)
    results: list[tuple[str, Array]] = field(default_factory=list)

    def __post_init__(self) -> None:
        k = self.kernel
        arrays = [(v, x) for v, x in k.operands.items() if isinstance(x, Array)]
        self.operands = {v: (f"x{i}", x) for i, (v, x) in enumerate(arrays)}
        self.results = [(f"y{j}", y) for j, y in enumerate(k.results)]
        self.gathered = list(k.gathered.items())
        self.sums = {j: k.body.producers()[k.body.outputs[j]] for j in k.sweeps.sums}

    # --- what a printer adds

    def elements(self, body: Sequence[str]) -> list[str]:
        """The loop over the elements of a row."""
        raise NotImplementedError

    def totalled(
        self, number: int, totals: Sequence[tuple[str, Node]], body: Sequence[str]
    ) -> list[str]:
        """The loop of sweep `number`, with `totals` as variables of these names after it."""
        raise NotImplementedError

    def running(self, name: str) -> str:
        """A total within the loop, from its name."""
        raise NotImplementedError

    def total(self, name: str) -> str:
        """A total after the loop, from its name."""
        raise NotImplementedError

    def once(self, stores: Sequence[str]) -> list[str]:
        """What is written once a row."""
        raise NotImplementedError

    # --- what they share

    @property
    def flat(self) -> bool:
        """Whether all elements are one row, which is shared out itself."""
        return not self.kernel.outer

    @property
    def pointers(self) -> list[tuple[str, Array]]:
        """The arrays, in the order in which a launch gives their places."""
        indices = [
            (f"xi{g}_{n}", y)
            for g, (_, found) in enumerate(self.gathered) for n, y in enumerate(found.indices)
        ]  # fmt: skip
        return [*self.operands.values(), *self.results, *indices]

    @property
    def sources(self) -> list[tuple[str, View]]:
        """What is gathered from, which the launch gives after the arrays."""
        return [(f"xs{g}", found.source) for g, (_, found) in enumerate(self.gathered)]

    def row_starts(self) -> list[str]:
        """The beginning of row `r` of each array."""
        k, lines = self.kernel, []
        axes = [f"i{n}" for n in range(len(k.outer))]
        if len(axes) == 1:
            axes = ["r"]
        else:
            lines.append("i64 q = r;")
            for n in range(len(axes) - 1, 0, -1):
                extent = self.size(k.outer[n])
                lines.append(f"const i64 i{n} = q % {extent}; q /= {extent};")
            lines.append("const i64 i0 = q;")
        for name, y in self.pointers:
            steps = [product(i, self.size(s)) for i, s in zip(axes, y.outer, strict=True)]
            offset = "".join(f" + {s}" for s in steps if s != "0")
            lines.append(f"{pointer(name + 'r', y)} = {name}{offset};")
        return lines

    def body(self) -> list[str]:
        """What is done with a row."""
        k = self.kernel
        lines: list[str] = []
        for v, x in k.operands.items():
            if isinstance(x, Literal):
                lines.append(self._define(v, literal(x.value, x.dtype)))
            elif v in k.sweeps.rows or dims.same(x.inner, 0):
                lines.append(self._define(v, load(x.dtype, f"{self._row(self.operands[v])}[0]")))
        for g, (v, found) in enumerate(self.gathered):
            if found.rows:
                lines += self._place(g, "0")
            elif v in k.sweeps.rows:
                lines += [*self._place(g, "0"), self._define(v, load(v.dtype, f"x{g}at[0]"))]
        lines += self._row_nodes(k.sweeps.before)
        lines += self._row_stores(j for j, after in enumerate(k.sweeps.after) if after < 0)
        for n, sweep in enumerate(k.sweeps.sweeps):
            lines += self._sweep(sweep, n)
            lines += self._row_nodes(sweep.rows)
            lines += self._row_stores(j for j in sweep.stores if k.body.outputs[j] in k.sweeps.rows)
        return lines

    def _place(self, g: int, i: str) -> list[str]:
        """Where element `i` (or a row) of gathered `g` begins.  Its indices have been checked."""
        found, name, lines = self.gathered[g][1], f"x{g}at", []
        where = f"xs{g}"
        for n, (index, (stride, extent)) in enumerate(zip(found.indices, found.axes, strict=True)):
            at = product(i, self.size(index.inner))
            lines.append(f"i64 j{g}_{n} = (i64){self._row((f'xi{g}_{n}', index))}[{at}];")
            if found.wrap and index.dtype.kind == "int":
                lines.append(f"j{g}_{n} += j{g}_{n} < 0 ? {self.size(extent)} : 0;")
            where += f" + {product(f'j{g}_{n}', self.size(stride))}"
        return [*lines, f"const {memory_type(found.source.dtype)} *const {name} = {where};"]

    def _row(self, array: tuple[str, Array]) -> str:
        return array[0] if self.flat else f"{array[0]}r"

    def _define(self, v: Value, value: str) -> str:
        name = self.names.setdefault(v, f"v{len(self.names)}")
        return f"const {register_type(v.dtype)} {name} = {value};"

    def _row_nodes(self, nodes: Sequence[Node]) -> list[str]:
        return [
            self._define(n.output, expression(n, [self.names[v] for v in n.inputs])) for n in nodes
        ]

    def _row_stores(self, results: Iterable[int]) -> list[str]:
        lines = [self._stored(j, "0") for j in results]
        return self.once(lines) if lines else []

    def _stored(self, j: int, at: str) -> str:
        value = self.names[self.kernel.body.outputs[j]]
        return f"{self._row(self.results[j])}[{at}] = {store(self.results[j][1].dtype, value)};"

    def _sweep(self, sweep: Sweep, number: int) -> list[str]:
        k = self.kernel
        stores = [j for j in sweep.stores if k.body.outputs[j] not in k.sweeps.rows]
        if not (sweep.totals or stores or sweep.keeps or sweep.sums):
            return []
        totals = [(f"s{number}_{t}", node) for t, node in enumerate(sweep.totals)]
        body = self._element(sweep, stores, totals)
        if not totals:
            return self.elements(body)
        lines = self.totalled(number, totals, body)
        for name, node in totals:
            total = rounded(node.output.dtype, self.total(name))
            lines.append(self._define(node.output, total))
        return lines

    def _element(
        self, sweep: Sweep, stores: Sequence[int], totals: Sequence[tuple[str, Node]]
    ) -> list[str]:
        """What is done with element `i` of a row."""
        k = self.kernel
        lines: list[str] = []
        outside = dict(self.names)
        for v in k.body.inputs:
            if v in sweep.reads and v not in self.names:
                name, x = self.operands[v]
                at = product("i", self.size(x.inner))
                lines.append(self._define(v, load(x.dtype, f"{self._row((name, x))}[{at}]")))
        for g, (v, found) in enumerate(self.gathered):
            if v not in sweep.reads or v in self.names:
                continue
            at = product("i", self.size(found.inner)) if found.rows else "0"
            lines += [] if found.rows else self._place(g, "i")
            lines.append(self._define(v, load(v.dtype, f"x{g}at[{at}]")))
        for v in (*k.sweeps.buffers, *k.sweeps.results):
            if v not in sweep.reads:
                continue
            if v in k.sweeps.buffers:
                value = load(v.dtype, f"b{k.sweeps.buffers[v]}[i]")
            else:
                value = load(v.dtype, f"{self._row(self.results[k.sweeps.results[v]])}[i]")
            lines.append(self._define(v, value))
        for node in sweep.nodes:
            operands = [self.names[v] for v in node.inputs]
            lines.append(self._define(node.output, expression(node, operands)))
        for j in stores:
            lines.append(self._stored(j, product("i", self.size(self.results[j][1].inner))))
        for v in sweep.keeps:
            lines.append(f"b{k.sweeps.buffers[v]}[i] = {store(v.dtype, self.names[v])};")
        for name, node in totals:
            running = self.running(name)
            lines.append(f"{running} = {joined(node, running, self._added(node))};")
        for j in sweep.sums:
            place = f"{self._row(self.results[j])}[i]"
            lines.append(f"{place} = {joined(self.sums[j], place, self._added(self.sums[j]))};")
        self.names = outside
        return lines


    def _added(self, node: Node) -> str:
        """What one element adds to a total."""
        return " * ".join(self.names[v] for v in node.inputs)


def nested(head: str, body: Sequence[str]) -> list[str]:
    """A block of statements."""
    return [f"{head} {{", *(f"  {line}" for line in body), "}"]


def pointer(name: str, y: Array) -> str:
    """The declaration of a place, which is read only where it is an operand's."""
    kind = memory_type(y.dtype)
    return f"const {kind} *const {name}" if name[0] == "x" else f"{kind} *const {name}"
